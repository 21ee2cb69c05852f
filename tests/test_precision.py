"""One number type for every forward pass: what sampling, scores and losses of a model in training see is what its saved
weights give, to the bit.
"""

import json
from types import SimpleNamespace

import pytest
import tiny
import torch
from accelerate import Accelerator
from embedded import lora_of, short_trace, survivor, undisturbed
from tiny import TALL, WIDE
from torch import distributed
from torch.nn.modules.module import register_module_forward_pre_hook

from deepintuit import calibrate, coldstart, grpo
from deepintuit.labels import LabelSet
from deepintuit.vlm import Example, label_logprobs, last_hidden, sample_groups, token_logprobs
from deepintuit.vlm.finetune import Recipe, finetune
from deepintuit.vlm.prefix import pack
from deepintuit.vlm.training import StepLog

pytest_plugins = ["embedded"]

LABELS = LabelSet("two", ("theft", "routine"))
TRACES = ("A person waits.", "A person leaves.", "No.")
KINDS = [
    ("embedded", "float32", 0),
    ("embedded", "float32", 4),
    ("embedded", "bfloat16", 4),
    ("embedded", "float16", 4),
    *((family, "bfloat16", 0) for family in tiny.FAMILIES),
]
BOUND = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
"""Of a log-probability, where two passes add up the same numbers in another order."""


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    return {name: tiny.write_family(name, tmp_path_factory.mktemp(name) / "model") for name in tiny.FAMILIES}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return tiny.write_clips(tmp_path_factory.mktemp("clips"))


def encoded(vlm, paths):
    return [vlm.encoder.encode(name, paths[name], tiny.CLIPS[name][2], tiny.CLIPS[name][1]) for name in (WIDE, TALL)]


def near(found, wanted, tolerance):
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def tune(vlm, clip, folder):
    """One step of at most 1e-6. Returns what is trained, before and behind it."""
    before = {name: p.detach().clone() for name, p in vlm.model.named_parameters() if p.requires_grad}
    recipe = Recipe(learning_rate=1e-6, epochs=1, batch=1, warmup=0, scheduler="constant")
    example = Example(clip, "Say.", "theft")
    finetune(vlm, ["one"], lambda *_: example, recipe, folder, seed=0, title="t", progress=False)
    return before, {name: p.detach() for name, p in vlm.model.named_parameters() if p.requires_grad}


def in_training(family, dtype, rank, **settings):
    """A model as it is while it is trained: what is held in float32 lies between the numbers of its type."""
    torch.manual_seed(0)
    vlm = family.load(trainable=True, dtype=dtype, lora_rank=rank, **settings)
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            if parameter.requires_grad:
                assert parameter.dtype == torch.float32
                parameter.add_(torch.randn_like(parameter) * 3e-3)
    vlm.model.eval()
    return vlm


def test_divided_weights_are_trained_in_float32_as_undivided_ones(families, paths, tmp_path):
    losses = {False: [], True: []}
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        for divides, rows in losses.items():
            vlm = in_training(families["embedded"], "bfloat16", 0)
            vlm.divides, log = divides, StepLog(rows.extend)
            example, recipe = Example(encoded(vlm, paths)[0], "Say.", "theft"), Recipe(1e-4, epochs=6, batch=1)
            folder = tmp_path / str(divides)
            finetune(vlm, ["one"], lambda *_: example, recipe, folder, seed=0, title="t", log=log, progress=False)  # noqa: B023
    finally:
        distributed.destroy_process_group()
    apart, whole = ([row["value"] for row in losses[d] if row["name"] == "loss"] for d in (True, False))
    assert len(whole) == 6 and whole[-1] < 0.9 * whole[0] and apart == pytest.approx(whole, rel=0.02)


@torch.no_grad()
def everything(vlm, clips):
    """What the stages compute, and the log-probabilities of the same sampled tokens by sampling, score and loss."""
    prompts = ["What happens?", "Who is there?"]
    groups = sample_groups(vlm, clips, prompts, [["a", "b"], ["c", "d"]], temperature=1.0, max_tokens=6)
    samples = [(clip, prompt, sample) for clip, prompt, group in zip(clips, prompts, groups) for sample in group]
    asked = [vlm.prompt_ids(clip, prompt) for clip, prompt, _ in samples]
    written = [sample.token_ids for *_, sample in samples]
    of_rows = [clip for clip, *_ in samples]
    rows = [[*prompt, *tokens] for prompt, tokens in zip(asked, written)]
    packed = pack(vlm, of_rows, rows, list(map(len, asked)))
    fused = vlm.model(**packed.inputs, fused_lm_head=True).log_probs.flatten()
    return SimpleNamespace(
        sampled=torch.cat([torch.tensor(sample.logprobs_T) for *_, sample in samples]),
        scored=torch.cat(token_logprobs(vlm, of_rows, asked, written)).float(),
        in_the_loss=torch.cat([fused[places] for places in packed.places]).float(),
        tokens=torch.tensor(sum(written, [])),
        labels=label_logprobs(vlm, clips, prompts, LABELS),
        hidden=last_hidden(vlm, clips, prompts),
    )


class Seen:
    """Number types of what goes into a language model's MLP, and of the weight it meets there, in every pass of any
    model; with and without gradients."""

    def __enter__(self):
        self.types = {True: set(), False: set()}
        self.handle = register_module_forward_pre_hook(self._look)
        return self

    def _look(self, module, inputs):
        if hasattr(module, "gate_proj") and hasattr(module, "down_proj") and "Vision" not in type(module).__name__:
            linear = getattr(module.gate_proj, "base_layer", module.gate_proj)
            autocast = torch.is_autocast_enabled("cpu")
            self.types[torch.is_grad_enabled()] |= {inputs[0].dtype, linear.weight.dtype, *(["autocast"] * autocast)}

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize(("name", "dtype", "rank"), KINDS)
def test_a_model_in_training_computes_what_its_saved_weights_give(name, dtype, rank, families, paths, tmp_path):
    vlm = in_training(families[name], dtype, rank)
    clips = encoded(vlm, paths)
    with Seen() as seen:
        now = everything(vlm, clips)
    assert seen.types[False] == {getattr(torch, dtype)} and len(now.tokens) > 6
    vlm.save(tmp_path / "saved", {})
    again = everything(families[name].load(checkpoint=tmp_path / "saved", dtype=dtype), clips)
    for kind, values in vars(now).items():
        near(values, getattr(again, kind), 1e-5)
    near(now.scored, now.sampled, BOUND[dtype])
    near(now.in_the_loss, now.sampled, BOUND[dtype])


@pytest.mark.parametrize("rank", [0, 4])
def test_activation_checkpointing_recomputes_with_the_same_rounded_weights(rank, families, paths):
    gradients = []
    for checkpointing in (False, True):
        vlm = in_training(families["embedded"], "bfloat16", rank, gradient_checkpointing=checkpointing)
        clips = encoded(vlm, paths)[:1]
        with Seen() as seen:
            (found,) = token_logprobs(vlm, clips, [vlm.prompt_ids(clips[0], "Say.")], [vlm.target_ids("theft")])
            vlm.model.train()
            found.sum().backward()
        assert seen.types[True] == {torch.bfloat16}
        gradients.append({name: p.grad for name, p in vlm.model.named_parameters() if p.grad is not None})
    assert gradients[0] and {value.dtype for value in gradients[0].values()} == {torch.float32}
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def test_the_adapter_of_a_quantised_model_is_held_in_float32_as_any_other(families, paths, tmp_path):
    vlm = in_training(families["embedded"], "bfloat16", 4)
    vlm.model.is_loaded_in_4bit = True  # as bitsandbytes marks it, and TRL then rounds what is trained
    before, after = tune(vlm, encoded(vlm, paths)[0], tmp_path)
    assert {value.dtype for value in after.values()} == {torch.float32}
    moved = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    assert 0 < moved.max() < 2e-6, "a step of AdamW, and nothing rounded"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_trainer_scales_float16_losses_and_adds_no_autocast_of_its_own(
    dtype, families, paths, tmp_path, monkeypatch
):
    scaled, make = [], Accelerator.__init__

    class Scaler(torch.amp.GradScaler):
        def scale(self, loss):
            scaled.append(loss)
            return super().scale(loss)

    def as_on_a_gpu(self, *args, **settings):
        make(self, *args, **settings)
        self.native_amp = self.mixed_precision != "no"
        self.scaler = Scaler("cpu", init_scale=256.0) if self.mixed_precision == "fp16" else None

    monkeypatch.setattr(Accelerator, "__init__", as_on_a_gpu)
    vlm = in_training(families["embedded"], dtype, 4)
    clip = encoded(vlm, paths)[0]
    with Seen() as seen:
        before, after = tune(vlm, clip, tmp_path)
    assert seen.types[True] == {getattr(torch, dtype)}
    assert bool(scaled) == (dtype == "float16")
    assert 0 < max(float((after[name] - before[name]).abs().max()) for name in before) < 2e-6


# --------------------------------------------------------------------------------------------------------- the stages


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("weights", ["full", "lora"])
def test_every_pass_of_every_stage_has_one_number_type_and_the_kl_term_starts_at_nought(
    weights, dtype, bench, cold, cold_lora
):
    start, sets = (cold, ()) if weights == "full" else (cold_lora, lora_of(cold))
    sets = [
        *sets,
        f"model.dtype={dtype}",
        "sampling.max_tokens=8",
        "grpo.max_tokens=8",
        "grpo.max_steps=1",
        "grpo.clips_per_step=2",
        "grpo.beta=0.04",
        "coldstart.epochs=0.1",
        "calibrate.epochs=0.2",
        "calibrate.traces=1",
    ]
    config, quiet = bench.settings(*sets), {"name": f"{weights}-{dtype}", "progress": False}
    runs = (
        lambda: coldstart.run(bench.workbench, config, teacher=bench.teach(short_trace).id, **quiet),
        lambda: grpo.run(bench.workbench, config, start=start.id, **quiet),
        lambda: calibrate.run(bench.workbench, config, reasoner=start.id, **quiet),
    )
    for stage in runs:
        with Seen() as seen:
            run = stage()
        assert seen.types[True] == {getattr(torch, dtype)}, run.stage
        if run.stage != "coldstart":
            assert seen.types[False] == seen.types[True], run.stage
        if run.stage == "grpo":
            steps = run.read("steps")
            assert abs(float(steps[steps["name"] == "kl"]["value"].iloc[0])) < 1e-9


def test_a_bfloat16_calibration_killed_after_its_training_ends_with_the_same_temperatures(bench, cold, tmp_path):
    sets = ("model.dtype=bfloat16", "calibrate.traces=1", "calibrate.epochs=2", "calibrate.learning_rate=3e-3")
    one, other = bench.copy(tmp_path / "one"), bench.copy(tmp_path / "other")
    whole = undisturbed(one, "calibrate", sets, reasoner=cold.id)
    run, kills = survivor(other, "calibrate", ["checkpoint/trained.json"], sets, reasoner=cold.id)
    assert kills == 1
    told, again = (json.loads((r.checkpoint / calibrate.CALIBRATION).read_text()) for r in (whole, run))
    assert told == again
