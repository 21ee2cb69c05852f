"""What a config takes is known before: shapes give the numbers that loaded models have, and the memory they take."""

import re
from types import SimpleNamespace

import pytest
import tiny
from tiny import CLIPS, LONG

from deepintuit import config, plan
from deepintuit.cli import main
from deepintuit.config import ModelConfig
from deepintuit.vlm import sample_groups
from deepintuit.vlm.footprint import Footprint, peak, published
from deepintuit.vlm.prefix import pack
from deepintuit.vlm.weights import read_config

TRACES, WRITTEN = 4, 48
SHAPES = [
    ("hub25", {"lora_rank": 8}),
    ("hub25", {"gradient_checkpointing": True}),
    ("hub3", {"lora_rank": 8}),
    ("hub35", {"lora_rank": 8}),
]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def loaded(request, tmp_path_factory):
    name, settings = request.param
    folder = tmp_path_factory.mktemp("plan")
    family = tiny.write_family(name, folder / "model")
    vlm = family.load(trainable=True, **settings)
    paths = tiny.write_clips(folder)
    clip = vlm.encoder.encode(LONG, paths[LONG], CLIPS[LONG][2], CLIPS[LONG][1])
    told = ModelConfig(path=str(family.folder), device="cpu", dtype="float32", **settings)
    return vlm, clip, Footprint(read_config(family.folder), told)


def near(planned: float, measured: float) -> None:
    assert abs(planned - measured) <= 0.15 * measured, (planned, measured)


def test_parameters_and_bytes_of_weights_are_those_of_the_loaded_model(loaded):
    vlm, _, size = loaded
    held = list(vlm.model.parameters())
    assert size.trained == sum(p.numel() for p in held if p.requires_grad)
    assert size.weights == sum(p.numel() * p.element_size() for p in held)
    assert size.tower == sum(p.numel() for p in vlm.encoder.tower.parameters())


def test_the_parts_of_a_batch_take_the_memory_that_was_planned(loaded):
    vlm, clip, size = loaded
    asked = vlm.prompt_ids(clip, "What happens?")
    rows = [[*asked, *[50 + number] * WRITTEN] for number in range(TRACES)]

    def losses():
        for _ in range(2):  # the second beside the gradients of the first
            packed = pack(vlm, [clip] * TRACES, rows, [len(asked)] * TRACES)
            vlm.model(**packed.inputs, fused_lm_head=True).log_probs.sum().backward()

    vlm.model.zero_grad()
    near(size.loss(prompt=len(asked), traces=TRACES, trace_tokens=WRITTEN), peak(vlm.model, losses))
    vlm.model.zero_grad()


def test_a_round_of_sampling_takes_the_memory_that_was_planned(loaded, monkeypatch):
    vlm, clip, size = loaded
    monkeypatch.setattr(vlm, "stop_ids", [])  # none ends early
    keys = [[str(number) for number in range(TRACES)]]

    def sample():
        return sample_groups(vlm, [clip], ["What happens?"], keys, temperature=1.0, max_tokens=WRITTEN)

    prompt, rows = len(vlm.prompt_ids(clip, "What happens?")), 1 if size.shares else TRACES
    tokens = rows * prompt + TRACES * WRITTEN
    cache = size.cache_token * tokens * 1.125 + size.cache_row * rows + size.step(TRACES)
    near(max(cache, size.prefill(prompt, 1)), peak(vlm.model, sample))


@pytest.mark.parametrize(
    ("path", "billions", "cache"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3.75, 36_864),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.29, 57_344),
        ("Qwen/Qwen3-VL-4B-Instruct", 4.44, 147_456),
        ("Qwen/Qwen3-VL-8B-Instruct", 8.77, 147_456),
        ("Qwen/Qwen3.5-4B", 4.54, 32_768),
        ("Qwen/Qwen3.5-9B", 9.41, 32_768),
    ],
)
def test_published_shapes_have_the_numbers_that_their_makers_state(path, billions, cache):
    size = Footprint(published(path), ModelConfig(path=path, dtype="bfloat16", lora_rank=8))
    assert size.parameters / 1e9 == pytest.approx(billions, abs=0.005) and size.cache_token == cache


def test_of_divided_weights_each_process_holds_its_part_beside_all_in_the_type_of_passes():
    path, told = "Qwen/Qwen2.5-VL-7B-Instruct", {"dtype": "bfloat16", "divide_weights": True}
    one, eight = (Footprint(published(path), ModelConfig(path=path, **told), processes=count) for count in (1, 8))
    assert one.held == one.weights + one.optimizer == 12 * one.trained + 2 * one.tower
    assert eight.held == pytest.approx(2 * one.parameters + 12 / 8 * one.trained, rel=1e-6)
    assert eight.gradients < 0.5 * one.gradients


def words(family, *more: str) -> list[str]:
    sets = (
        f"model.path={family.folder}",
        "model.lora_rank=4",
        "grpo.max_tokens=64",
        "video.frames=4",
        "model.tokens_per_pass=1024",
        *more,
    )
    return ["plan", "--clips", "100", *(word for one in sets for word in ("--set", one))]


def test_the_command_says_what_fits_and_which_setting_to_lower(tmp_path, capsys):
    asked = words(tiny.write_family("hub25", tmp_path / "model"))
    told = {}
    for gpus in ("1", "4"):
        rates = ("--memory", "1000", "--throughput", "100", "10", "--gpus", gpus)
        assert main([*asked, *rates]) == 0
        told[gpus] = capsys.readouterr().out
    assert "trained" in told["1"] and told["1"].count(": fits") == 9
    hours = [[float(one) for one in re.findall(r"([\d.,]+) hours", text)] for text in told.values()]
    assert len(hours[0]) == 4 and hours[1] == pytest.approx([one / 4 for one in hours[0]], rel=0.1, abs=0.06)
    assert main([*asked, "--memory", "0.001"]) == 0
    assert "too much, lower model.tokens_in_cache" in capsys.readouterr().out
    for amiss in (("--clips", "0"), ("--gpus", "-1"), ("--memory", "nan"), ("--throughput", "1", "0")):
        assert main([*asked, *amiss]) == 2
        assert "Give another number" in capsys.readouterr().err


def test_passes_and_rounds_are_halved_until_a_stage_fits_where_nobody_set_them(tmp_path, monkeypatch):
    settings = config.load(None, [f"model.path={tiny.write_family('hub25', tmp_path / 'model').folder}"])

    def planned(config, counts, stage, **_):
        """A GiB for each 1024 tokens of a pass, and each 16384 of a cache, beside two for the weights."""
        model = config.model
        losses, sampling = 2 + model.tokens_per_pass / 1024, 2 + model.tokens_in_cache / 16384
        peaks = {"losses": (losses, "model.tokens_per_pass"), "sampling": (sampling, "model.tokens_in_cache")}
        return SimpleNamespace(work={stage: plan.Work(peaks)})

    monkeypatch.setattr(plan, "plan_of", planned)
    log: list[str] = []
    for gib, sizes in ((None, (16384, 262144)), (80.0, (16384, 262144)), (16.0, (8192, 131072)), (1.0, (1024, 1024))):
        monkeypatch.setattr(plan, "memory_here", lambda gib=gib: gib)
        model = plan.fitted(settings, "grpo", log.append)
        assert (model.tokens_per_pass, model.tokens_in_cache) == sizes
    assert log[0] == "For 16 GiB of free GPU memory: model.tokens_in_cache = 131072, model.tokens_per_pass = 8192."
    assert len(log) == 2 and log[1].endswith("Even so it is planned to take more.")
    assert settings.replace(model=dict(model)).decisive() == settings.decisive(), "no other run"
    for sets in ({"tokens_in_cache": 262144, "tokens_per_pass": 16384}, {"device": "cpu"}):
        mine = settings.replace(model=sets)
        assert plan.fitted(mine, "grpo", log.append) == mine.model


def test_throughput_is_measured_here_where_none_is_stated(tmp_path, capsys, monkeypatch):
    shape = tiny.write_family("hub25", tmp_path / "model")
    settings = config.load(None, words(shape)[4::2])
    losses, sampling = plan.measured(settings, seconds=0.4)
    assert losses > 0 and sampling > 0
    with monkeypatch.context() as patch:
        patch.setattr(plan, "measured", lambda _: (1234.4, 56.0))
        assert main([*words(shape), "--measure"]) == 0
    told = capsys.readouterr().out
    assert "1,234 tokens per second in losses, 56 sampled" in told and told.count(" hours") == 4
    assert main([*words(shape), "--measure", "--throughput", "1", "1"]) == 2
    assert main([*words(shape, "model.quantize=4bit"), "--measure"]) == 2
    assert "give --throughput" in capsys.readouterr().err


def test_a_backbone_whose_rows_stand_alone_holds_each_row_by_itself(tmp_path):
    family = tiny.write_family("hub35", tmp_path / "model")
    asked = config.load(None, words(family, "video.frames=2")[4::2])
    peaks = plan.plan_of(asked, plan.split(asked, 100), "grpo").work["grpo"].peaks
    assert {*peaks} == {"losses", "prefill", "sampling"} and min(peaks.values())[0] > 0
    assert peaks["prefill"][1] == "model.tokens_in_cache", "all prompts of a round go at once"
    shape = read_config(family.folder)
    alone, one = (Footprint(shape, ModelConfig(path=str(family.folder), lora_rank=rank)) for rank in (4, 0))
    assert not alone.shares and alone.cache_row > 0 and one.trained > alone.trained


def test_what_a_server_samples_takes_no_memory_and_no_hours_here(tmp_path):
    sets = words(tiny.write_family("hub25", tmp_path / "model"), "grpo.filter_rollouts=4")[4::2]
    served = [*sets, "grpo.sampler=server", "server.model=m", "server.base_url=http://127.0.0.1:9/v1"]
    plans = [plan.plan_of(config.load(None, one), {"grpo": 100}, "grpo") for one in (sets, served)]
    here, there = (planned.work["grpo"] for planned in plans)
    assert here.samples == there.served > 0 == there.samples == here.served and here.reading > there.reading == 0
    assert {*there.peaks} == {"losses"} and there.hours((100, 10), 3, 1) < here.hours((100, 10), 3, 1)
    assert "million tokens sampled by the server" in dict(plans[1].rows())["GRPO"]
