"""What real backbones need: memory that is bounded by a setting and not by the size of a batch, at tiny size."""

import functools

import pytest
import tiny
import torch
from tiny import CLIPS, TALL, WIDE
from transformers.cache_utils import DynamicLayer
from transformers.quantizers.quantizers_utils import should_convert_module

from deepintuit.config import Config, ModelConfig
from deepintuit.errors import ModelError
from deepintuit.labels import LabelSet
from deepintuit.stage import perform
from deepintuit.trace import GRAMMARS
from deepintuit.vlm import VLM, Example, Gate, label_logprobs, last_hidden, sample_groups
from deepintuit.vlm import model as vlm_model
from deepintuit.vlm.finetune import Recipe, _Collator, finetune

PROMPTS = {WIDE: "Who is there, and why?", TALL: "Say."}
LABELS = LabelSet.of("events", ["theft", "the", "the end of it", "delivery", "t"])


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: tiny.write_family(name, folder / name) for name in tiny.FAMILIES}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return tiny.write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def vlm(request, families):
    return families[request.param].load()


@pytest.fixture(scope="module")
def small(families):
    return families["embedded"].load()


@pytest.fixture
def clips(vlm, paths):
    return [encoded(vlm, paths, name) for name in PROMPTS]


def encoded(vlm, paths, name):
    return vlm.encoder.encode(name, paths[name], CLIPS[name][2], CLIPS[name][1])


class Passes:
    """Of each forward pass of the language model while it is watched: its tokens, and whether it kept a cache."""

    def __init__(self, vlm):
        self.vlm, self.tokens, self.cached = vlm, [], []

    def __enter__(self):
        self.handle = self.vlm.core.model.language_model.register_forward_hook(self.note, with_kwargs=True)
        return self

    def note(self, module, args, kwargs, output):
        self.tokens.append(kwargs["inputs_embeds"].shape[0] * kwargs["inputs_embeds"].shape[1])
        self.cached.append(output.past_key_values is not None)

    def __exit__(self, *error):
        self.handle.remove()


@pytest.fixture
def narrow(vlm):
    """A budget that no clip's prompt with all its labels fits in beside another's."""
    before, vlm.tokens_per_pass = vlm.tokens_per_pass, 40
    yield vlm
    vlm.tokens_per_pass = before


def test_scores_and_hidden_states_keep_to_the_tokens_of_a_pass_and_fill_no_cache(vlm, clips, request):
    prompts = [*PROMPTS.values()]
    with Passes(vlm) as whole:
        sums, hidden = label_logprobs(vlm, clips, prompts, LABELS), last_hidden(vlm, clips, prompts)
    assert len(whole.tokens) == 2, "a pass each where the budget has room"
    request.getfixturevalue("narrow")
    with Passes(vlm) as parted:
        again, states = label_logprobs(vlm, clips, prompts, LABELS), last_hidden(vlm, clips, prompts)
    longest = max(len(vlm.prompt_ids(clip, prompt)) for clip, prompt in zip(clips, prompts))
    assert max(parted.tokens) <= longest + 40 < max(whole.tokens)
    assert not any(whole.cached + parted.cached)
    torch.testing.assert_close(again, sums, rtol=0, atol=1e-4)
    torch.testing.assert_close(states, hidden, rtol=1e-4, atol=1e-4)


def test_hidden_states_are_those_behind_the_last_token_of_the_prompt(vlm, clips):
    for clip, prompt in zip(clips, PROMPTS.values()):
        with torch.no_grad():
            plain = vlm.core.model(**vlm.inputs([clip], [vlm.prompt_ids(clip, prompt)], side="right"))
        torch.testing.assert_close(
            last_hidden(vlm, [clip], [prompt])[0], plain.last_hidden_state[0, -1], rtol=1e-4, atol=1e-4
        )


def test_a_batch_on_its_way_to_the_loss_holds_token_numbers_and_no_features(vlm, clips, narrow):
    """accelerate's loader is a batch ahead: what it holds lies beside the model."""
    batch = _Collator(vlm, lambda row, epoch: Example(clips[row % 2], "What happens?", "theft"), list("abab"))(
        [{"row": row} for row in range(4)]
    )
    parts = batch.pop("parts")
    assert sum(tensor.numel() for tensor in batch.values()) == 2 * 4 * len(vlm.target_ids("theft"))
    assert len(parts) > 1 and not any(isinstance(part, torch.Tensor | dict) for part in parts)
    packed = [part() for part in parts]
    labels = torch.cat([part.inputs["shift_labels"].flatten() for part in packed])
    assert sorted(labels[labels != -100].tolist()) == sorted(batch["labels"].flatten().tolist())


# ------------------------------------------------------------------------------------------------------ tower and head


def test_four_bits_leave_the_tower_and_the_head_as_they_were_published(vlm, families, monkeypatch):
    """The configuration that transformers is given, read by its own rule."""
    given = {}

    def read(folder, **settings):
        given.update(settings)
        raise ImportError("stop")

    monkeypatch.setattr(vlm_model, "read_model", read)
    with pytest.raises(ModelError, match="Install that package"):
        next(family for family in families.values() if str(family.folder) == vlm.name).load(quantize="4bit")
    skipped = given["quantization_config"].llm_int8_skip_modules
    linear = [name for name, module in vlm.model.named_modules() if isinstance(module, torch.nn.Linear)]
    kept = {name for name in linear if not should_convert_module(name, skipped)}
    assert kept == {name for name in linear if name.startswith("model.visual.") or name == "lm_head"} != set(linear)


def test_four_bits_leave_the_features_as_they_are(vlm, families):
    pytest.importorskip("bitsandbytes")
    family = next(family for family in families.values() if str(family.folder) == vlm.name)
    quantised = family.load(quantize="4bit", dtype="float32")
    assert quantised.encoder._tower_hash == vlm.encoder._tower_hash
    kinds = {type(module).__name__ for module in quantised.core.model.language_model.modules()}
    assert "Linear4bit" in kinds


def test_tower_and_language_model_have_attention_of_their_own(vlm, families, paths):
    family = next(family for family in families.values() if str(family.folder) == vlm.name)
    other = family.load(tower_attention="eager")
    assert other.encoder.tower.config._attn_implementation == "eager"
    assert other.shares_prefix == vlm.shares_prefix, "rows share their prefix whatever the tower computes with"
    assert other.encoder._tower_hash == vlm.encoder._tower_hash
    torch.testing.assert_close(encoded(other, paths, TALL).embeds, encoded(vlm, paths, TALL).embeds, rtol=0, atol=1e-4)
    plain = family.load(attention="eager")
    assert not plain.shares_prefix and plain.encoder.tower.config._attn_implementation == "sdpa"


# ------------------------------------------------------------------------------------------------------------- sampling


class Caches:
    """Of each forward pass of the language model while it is watched: how many tokens lie in the cache of a layer, and
    how many there is room for."""

    def __init__(self, vlm):
        self.vlm, self.held, self.room = vlm, [], []

    def __enter__(self):
        self.handle = self.vlm.core.model.language_model.register_forward_hook(self.note, with_kwargs=True)
        return self

    def note(self, module, args, kwargs, output):
        layers = [layer for layer in kwargs["past_key_values"].layers if isinstance(layer, DynamicLayer)]
        keys = layers[-1].keys
        self.held.append(keys.shape[0] * keys.shape[2])
        self.room.append(keys.untyped_storage().nbytes() / (keys.element_size() * keys.shape[1] * keys.shape[3]))

    def __exit__(self, *error):
        self.handle.remove()


KEYS = [[f"{name}/{number}" for number in range(4)] for name in PROMPTS]


def sampled(vlm, clips, **settings):
    told = {"temperature": 1.0, "max_tokens": 12, **settings}
    return sample_groups(vlm, clips, [*PROMPTS.values()], KEYS, **told)


def tokens_of(groups):
    return [[sample.token_ids for sample in group] for group in groups]


@pytest.mark.parametrize("part", ["a clip", "half a group", "one trace"])
def test_sampling_goes_in_rounds_of_bounded_cache_to_the_same_traces(part, vlm, clips, monkeypatch):
    whole = sampled(vlm, clips)
    longest = max(len(vlm.prompt_ids(clip, prompt)) for clip, prompt in zip(clips, PROMPTS.values()))
    traces = {"a clip": 4, "half a group": 2, "one trace": 1}[part]
    most = longest + traces * 12 if vlm.shares_prefix else traces * (longest + 12)
    monkeypatch.setattr(vlm, "tokens_in_cache", most)
    told = []
    with Caches(vlm) as caches:
        again = sampled(vlm, clips, on_token=lambda *place: told.append(place))
    assert max(caches.held) <= most
    assert tokens_of(again) == tokens_of(whole)
    for clip, group in enumerate(again):
        for number, sample in enumerate(group):
            assert [token for *place, token in told if place == [clip, number]] == sample.token_ids


def test_a_gate_is_asked_about_clips_and_samples_of_the_whole_call(vlm, clips, monkeypatch):
    asked = []
    monkeypatch.setattr(vlm, "tokens_in_cache", 1)
    gate = Gate(
        GRAMMARS["answer-think-answer"].quick,
        0.5,
        lambda quick: [asked.append((one.clip, one.sample)) or 0.0 for one in quick],
    )
    monkeypatch.setattr(Gate, "read", lambda *_: ("yes", 1.0))
    sampled(vlm, clips, gate=gate)
    assert asked == [(clip, number) for clip in range(2) for number in range(4)]


def test_prompts_are_read_in_passes_of_bounded_tokens_to_the_same_traces(vlm, clips, monkeypatch):
    if not vlm.shares_prefix:
        pytest.skip("a recurrent state is not laid beside another one")
    whole = sampled(vlm, clips)
    longest = max(len(vlm.prompt_ids(clip, prompt)) for clip, prompt in zip(clips, PROMPTS.values()))
    monkeypatch.setattr(vlm, "tokens_per_pass", longest)
    with Passes(vlm) as passes:
        again = sampled(vlm, clips)
    assert passes.tokens[:2] == [longest, longest] and tokens_of(again) == tokens_of(whole)


def test_a_cache_has_room_for_an_eighth_more_and_gives_back_what_finished_clips_took(vlm, clips, monkeypatch):
    monkeypatch.setattr(vlm, "stop_ids", [*range(0, 40)])  # traces end one by one
    with Caches(vlm) as caches:
        groups = sampled(vlm, clips, max_tokens=64)
    lengths = [max(len(sample.token_ids) for sample in group) for group in groups]
    assert min(lengths) < max(lengths), "a clip ends before the other"
    assert min(caches.held) < max(caches.held) / 1.5
    assert all(room <= held * 1.125 + 16 * 8 for held, room in zip(caches.held, caches.room))


def test_greedy_and_sampled_traces_of_a_clip_are_written_together(vlm, clips):
    temperatures = [1.0, 0.0, 0.7, 0.0]
    with Passes(vlm) as passes:
        together = sampled(vlm, clips, temperature=temperatures, top_p=0.9)
    assert len(passes.tokens) <= 12
    for number, temperature in enumerate(temperatures):
        apart = sampled(vlm, clips, temperature=temperature, top_p=0.9)
        for mixed, own in zip(together, apart):
            assert mixed[number].token_ids == own[number].token_ids
            assert mixed[number].logprobs_T == pytest.approx(own[number].logprobs_T, abs=1e-4)


# ------------------------------------------------------------------------------------------------- memory that runs out


def swallow(*_):
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "setting"),
    [
        (lambda vlm, clips: sampled(vlm, clips), "model.tokens_in_cache (now 262144)"),
        (
            lambda vlm, clips: label_logprobs(vlm, clips, [*PROMPTS.values()], LABELS),
            "model.tokens_per_pass (now 16384)",
        ),
        (lambda vlm, clips: last_hidden(vlm, clips, [*PROMPTS.values()]), "model.tokens_per_pass (now 16384)"),
    ],
)
def test_memory_that_runs_out_is_a_sentence_that_names_the_setting_to_lower(call, setting, small, paths):
    clips = [encoded(small, paths, name) for name in PROMPTS]
    hook = small.core.model.language_model.register_forward_pre_hook(swallow)
    try:
        with pytest.raises(ModelError) as caught:
            call(small, clips)
    finally:
        hook.remove()
    assert setting in caught.value.todo and "rerun the command" in caught.value.todo
    assert "allocate" in caught.value.why and "\n" not in str(caught.value)
    assert not small.model.training


def test_the_tower_names_the_frames_when_memory_runs_out(small, paths):
    hook = small.encoder.tower.register_forward_pre_hook(swallow)
    try:
        with pytest.raises(ModelError, match=r"encoding 'other'.*video\.frames"):
            small.encoder.encode("other", paths[TALL], CLIPS[TALL][2], CLIPS[TALL][1])
    finally:
        hook.remove()


def test_another_fault_of_the_model_stays_what_it_is(small, paths):
    hook = small.core.model.language_model.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
    try:
        with pytest.raises(RuntimeError, match="size"):
            sampled(small, [encoded(small, paths, name) for name in PROMPTS])
    finally:
        hook.remove()


def test_a_training_that_ran_out_of_memory_goes_on_with_the_setting_lowered(families, small, paths, tmp_path):
    clips = [encoded(small, paths, name) for name in PROMPTS]

    def train(most, *, memory=True):
        torch.manual_seed(0)
        vlm, seen = families["embedded"].load(trainable=True, lora_rank=2, tokens_per_pass=most), []
        if not memory:  # it lasts for two updates
            count = iter(range(100))
            vlm.core.model.language_model.register_forward_pre_hook(lambda *_: swallow() if next(count) > 1 else None)

        def example(row, epoch):
            seen.append(row)
            return Example(clips[row % 2], "What happens?", "theft")

        recipe = Recipe(1e-3, 1, 2, save_steps=1)
        result = finetune(vlm, list("abababab"), example, recipe, tmp_path / "t", seed=0, title="t", progress=False)
        return result, seen

    with pytest.raises(ModelError, match=r"computing a loss.*Lower model\.tokens_per_pass, and rerun the command"):
        train(10_000, memory=False)
    result, seen = train(1)
    assert result["steps"] == 4 and len(seen) == 4, "two updates of two rows were left"


# ------------------------------------------------------------------------------------------ adapters over one base


@pytest.fixture(scope="module")
def adapters(families, tmp_path_factory):
    """Two adapters of the embedded base, of different ranks, that both change what it says."""
    found = []
    for rank in (2, 4):
        torch.manual_seed(rank)
        vlm = families["embedded"].load(trainable=True, lora_rank=rank)
        for name, parameter in vlm.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        found.append(tmp_path_factory.mktemp("adapter") / "checkpoint")
        vlm.save(found[-1], {"run": "r"})
    return found


def scores_of(vlm, clips):
    return label_logprobs(vlm, clips, [*PROMPTS.values()], LABELS)


@pytest.mark.parametrize("order", [(None, 0, 1), (0, None, 1), (0, 1, None), (1, 0, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_over_one_base_in_memory_give_the_numbers_of_models_apart(order, dtype, families, adapters, paths):
    family, folders = families["embedded"], [None if at is None else adapters[at] for at in order]
    load = functools.partial(VLM.load, ModelConfig(path=str(family.folder), device="cpu", dtype=dtype), family.video)
    apart = [load(checkpoint=folder) for folder in folders]
    clips = [encoded(apart[0], paths, name) for name in PROMPTS]
    wanted = [scores_of(vlm, clips) for vlm in apart]
    together = [load(checkpoint=folders[0])]
    for folder in folders[1:]:
        together.append(load(checkpoint=folder, beside=together[-1]))
    towers = {
        vlm.encoder.tower.state_dict()[name].data_ptr() for vlm in together for name in ["patch_embed.proj.weight"]
    }
    heads = {vlm.core.lm_head.weight.data_ptr() for vlm in together}
    assert len(towers) == len(heads) == 1 and together[1].encoder is together[0].encoder
    for at in (2, 0, 1, 1, 2, 0):
        torch.testing.assert_close(scores_of(together[at], clips), wanted[at], rtol=0, atol=0)
    with together[0].evaluating():  # as a gate asks the calibrator while the reasoner writes
        torch.testing.assert_close(scores_of(together[1], clips), wanted[1], rtol=0, atol=0)
        inputs = together[0].inputs(clips, [together[0].prompt_ids(c, "Say.") for c in clips], side="left")
        between = together[0].model(**inputs).logits
    with apart[0].evaluating():
        torch.testing.assert_close(between, apart[0].model(**inputs).logits, rtol=0, atol=0)


def test_an_adapter_that_nobody_uses_any_more_leaves_the_base(families, adapters):
    family = families["embedded"]
    load = functools.partial(VLM.load, ModelConfig(path=str(family.folder), device="cpu"), family.video)
    first = load()
    for folder in (*adapters, *adapters):
        beside = load(checkpoint=folder, beside=first)
        names = [name for name, _ in first.core.named_parameters() if "lora_A" in name]
        assert len({name.split("lora_A.")[1] for name in names}) <= 2
    assert beside.core is first.core


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"attention": "eager"}, {"trainable": True, "lora_rank": 2}])
def test_a_model_that_differs_in_more_than_its_adapter_has_weights_of_its_own(other, families, adapters):
    family = families["embedded"]
    told, more = {"path": str(family.folder), "device": "cpu"}, {**other}
    trainable = more.pop("trainable", False)
    first = VLM.load(ModelConfig(**told), family.video)
    second = VLM.load(ModelConfig(**told, **more), family.video, trainable=trainable, beside=first)
    third = VLM.load(ModelConfig(**told), family.video.replace(frames=3), checkpoint=adapters[0], beside=first)
    assert first.core is not second.core is not third.core is not first.core


def test_a_stage_says_that_several_gpus_are_visible_before_a_run_begins(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ModelError, match="2 GPUs are visible.*torchrun --nproc-per-node 2.*or set CUDA_VISIBLE_DEVICES=0"
    ):
        perform(None, Config(), "coldstart", None, sections=(), start=None)
    with pytest.raises(AttributeError):  # on a CPU it goes on to the workbench, which is none
        perform(None, Config().replace(model={"device": "cpu"}), "coldstart", None, sections=(), start=None)
