"""What a config takes is known before: shapes give the numbers that loaded models have, and the memory they take."""

import pytest
import tiny
import torch
from tiny import CLIPS, LONG
from transformers import AutoModelForImageTextToText

from deepintuit.cli import main
from deepintuit.config import ModelConfig
from deepintuit.vlm import sample_groups
from deepintuit.vlm.footprint import footprint, peak, published
from deepintuit.vlm.prefix import pack
from deepintuit.vlm.weights import read_config

TRACES, WRITTEN = 4, 48
SHAPES = [("hub25", {"lora_rank": 8}), ("hub25", {"gradient_checkpointing": True}), ("hub3", {"lora_rank": 8})]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def loaded(request, tmp_path_factory):
    name, settings = request.param
    folder = tmp_path_factory.mktemp("plan")
    family = tiny.write_family(name, folder / "model")
    vlm = family.load(trainable=True, **settings)
    paths = tiny.write_clips(folder)
    clip = vlm.encoder.encode(LONG, paths[LONG], CLIPS[LONG][2], CLIPS[LONG][1])
    prompt = len(vlm.prompt_ids(clip, "What happens?"))
    told = ModelConfig(path=str(family.folder), device="cpu", dtype="float32", **settings)
    shape = {"prompt": prompt, "traces": TRACES, "trace_tokens": WRITTEN, "clips": 1, "prefilled": 1}
    return vlm, clip, footprint(read_config(family.folder), told, **shape)


def near(planned: float, measured: float) -> None:
    assert abs(planned - measured) <= 0.15 * measured, (planned, measured)


def test_parameters_and_bytes_of_weights_are_those_of_the_loaded_model(loaded):
    vlm, _, size = loaded
    held = list(vlm.model.parameters())
    assert size.trained == sum(p.numel() for p in held if p.requires_grad)
    assert size.weights == sum(p.numel() * p.element_size() for p in held)
    assert size.tower == sum(p.numel() for p in vlm.encoder.tower.parameters())


def test_a_loss_takes_the_memory_that_was_planned(loaded):
    vlm, clip, size = loaded
    asked = vlm.prompt_ids(clip, "What happens?")
    rows = [[*asked, *[50 + number] * WRITTEN] for number in range(TRACES)]

    def loss():
        packed = pack(vlm, [clip] * TRACES, rows, [len(asked)] * TRACES)
        vlm.model(**packed.inputs, fused_lm_head=True).log_probs.sum().backward()

    vlm.model.zero_grad()
    near(size.loss, peak(vlm.model, loss))
    vlm.model.zero_grad()


def test_a_round_of_sampling_takes_the_memory_that_was_planned(loaded, monkeypatch):
    vlm, clip, size = loaded
    monkeypatch.setattr(vlm, "stop_ids", [])  # none ends early
    keys = [[str(number) for number in range(TRACES)]]

    def sample():
        return sample_groups(vlm, [clip], ["What happens?"], keys, temperature=1.0, max_tokens=WRITTEN)

    prompt = len(vlm.prompt_ids(clip, "What happens?"))
    cache = size.cache_token * (prompt + TRACES * WRITTEN) * 1.125 + size.step
    near(max(cache, size.prefill), peak(vlm.model, sample))


@pytest.mark.parametrize(
    ("path", "billions", "cache"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3.75, 36_864),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.29, 57_344),
        ("Qwen/Qwen3-VL-4B-Instruct", 4.44, 147_456),
        ("Qwen/Qwen3-VL-8B-Instruct", 8.77, 147_456),
    ],
)
def test_published_shapes_have_the_numbers_that_their_makers_state(path, billions, cache):
    config = published(path)
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert 2 * text.num_hidden_layers * text.num_key_value_heads * width * 2 == cache


def test_the_command_says_what_fits_and_which_setting_to_lower(tmp_path, capsys):
    family = tiny.write_family("hub25", tmp_path / "model")
    words = [
        "plan",
        "--set",
        f"model.path={family.folder}",
        "--set",
        "model.lora_rank=4",
        "--set",
        "grpo.max_tokens=64",
    ]
    words += ["--set", "video.frames=4", "--clips", "100"]
    assert main([*words, "--memory", "1000", "--rates", "1000", "100"]) == 0
    told = capsys.readouterr().out
    assert "trained" in told and told.count(": fits") == 3 and " hours" in told
    assert main([*words, "--memory", "0.001"]) == 0
    assert "too much, lower model.tokens_in_cache" in capsys.readouterr().out
    assert main([*words, "--clips", "0"]) == 2
    assert "Give another number" in capsys.readouterr().err


def test_a_backbone_whose_rows_stand_alone_is_refused_with_what_to_do(tmp_path, capsys):
    family = tiny.write_family("hub35", tmp_path / "model")
    assert main(["plan", "--set", f"model.path={family.folder}"]) == 2
    assert "Plan for another backbone" in capsys.readouterr().err
