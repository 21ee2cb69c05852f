"""What a backbone can do is known, not guessed: each record held to its family's own code, and no other family let in.

That what is sampled is what the model's own `generate` writes, and that padded rows, cached features and scores are
those of the plain path, `test_vlm` holds for every family; that trees give the numbers of whole rows, `test_prefix`.
"""

import json
from itertools import product

import pytest
import tiny
import torch
from tiny import TALL, WIDE

from deepintuit.config import ModelConfig
from deepintuit.errors import ModelError
from deepintuit.vlm import VLM, sample_groups, token_logprobs
from deepintuit.vlm.families import FAMILIES, can_share, layer_types
from deepintuit.vlm.prefix import pack

HUB = ("hub25", "hub3", "hub35")
TRACES = ("<think>A person waits.</think>theft", "<think>A person leaves.</think>routine", "No.")


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    return {name: tiny.write_family(name, tmp_path_factory.mktemp(name) / "model") for name in HUB}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tiny.write_clips(tmp_path_factory.mktemp("clips"))


def encoded(vlm, clips, *names):
    return [vlm.encoder.encode(name, clips[name], tiny.CLIPS[name][2], tiny.CLIPS[name][1]) for name in names]


def refused(folder, video) -> str:
    with pytest.raises(ModelError) as caught:
        VLM.load(ModelConfig(path=str(folder), device="cpu"), video)
    assert "\n" not in str(caught.value) and "Qwen2.5-VL, Qwen3-VL or Qwen3.5" in caught.value.todo
    return str(caught.value)


@pytest.mark.parametrize(
    "model_type",
    ["glm4v", "glm46v", "llava", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_omni_thinker", "qwen3_vl_moe",
     "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen3_5_text", "qwen2_5_vl_text", "qwen2", "no_such_model", ""],
)  # fmt: skip
def test_another_family_is_refused_by_its_config_alone(model_type, families, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert "safetensors" not in refused(tmp_path, families["hub25"].video)


def test_layers_that_a_family_is_not_known_to_have_are_refused(families, tmp_path):
    config = json.loads((families["hub3"].folder / "config.json").read_text())
    config["text_config"] |= {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "sliding_attention" in refused(tmp_path, families["hub3"].video)


@pytest.mark.parametrize("name", HUB)
def test_rows_are_trees_only_where_every_layer_sees_all_before(name, families):
    vlm = families[name].load()
    assert vlm.shares_prefix is can_share(vlm.core.config) is (set(layer_types(vlm.core.config)) == {"full_attention"})
    assert vlm.shares_prefix is (name != "hub35") and vlm.family is FAMILIES[vlm.core.config.model_type]


@pytest.mark.parametrize("name", HUB)
def test_adapters_are_on_every_linear_layer_of_the_language_model_and_on_none_of_the_tower(name, families):
    vlm = families[name].load(trainable=True, lora_rank=2)
    adapted = {
        n.partition(".lora_A")[0] for n, p in vlm.model.named_parameters() if ".lora_A." in n and p.requires_grad
    }
    language = vlm.core.model.language_model
    linear = {n for n, m in language.named_modules() if isinstance(m, torch.nn.Linear) and "lora_" not in n}
    assert {n.partition("language_model.")[2] for n in adapted} == {n.removesuffix(".base_layer") for n in linear}
    assert not any("visual" in n for n in adapted)


@pytest.mark.parametrize(("name", "rank"), [*product(HUB, (0, 4))])
def test_packed_rows_have_the_loss_and_gradients_of_transformers_row_by_row(name, rank, families, clips):
    """Rows of two clips, of unlike lengths: what one leaks into another, through padding or a state, would show."""
    torch.manual_seed(2)
    vlm = families[name].load(trainable=True, lora_rank=rank)
    for parameter_name, parameter in vlm.model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.05)
    vlm.model.eval()
    shown = [clip for clip in encoded(vlm, clips, WIDE, TALL) for _ in TRACES]
    asked = [vlm.prompt_ids(clip, "What happens?") for clip in shown]
    rows = [prompt + vlm.target_ids(trace) for prompt, trace in zip(asked, TRACES * 2)]
    packed = pack(vlm, shown, rows, [*map(len, asked)], apart=True)
    found = -vlm.model(**packed.inputs, fused_lm_head=True).log_probs.flatten()[torch.cat(packed.places)].sum()
    found.backward()
    trained = {n: p for n, p in vlm.model.named_parameters() if p.requires_grad and p.grad is not None}
    gradients = {n: p.grad.clone() for n, p in trained.items()}
    vlm.model.zero_grad()
    wanted = 0.0
    for clip, prompt, row in zip(shown, asked, rows):
        labels = torch.tensor([[-100] * len(prompt) + row[len(prompt) :]])
        loss = vlm.core(**vlm.inputs([clip], [row], side="right"), labels=labels, use_cache=False).loss
        (loss * (len(row) - len(prompt))).backward()
        wanted += float(loss.detach()) * (len(row) - len(prompt))
    assert float(found.detach()) == pytest.approx(wanted, rel=2e-6)
    for n, p in trained.items():
        torch.testing.assert_close(gradients[n], p.grad, rtol=2e-3, atol=2e-4, msg=n)


def test_a_window_is_sampled_with_its_own_cache_and_scored_in_plain_rows(families, clips, tmp_path):
    """Qwen2.5-VL with `use_sliding_window`, of a window shorter than the prompt."""
    for file in families["hub25"].folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((families["hub25"].folder / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config | windows))
    vlm = tiny.Family("window", tmp_path, families["hub25"].video).load()
    assert "sliding_attention" in layer_types(vlm.core.config) and not vlm.shares_prefix
    shown = encoded(vlm, clips, WIDE, TALL)
    prompts = ["What happens?", "Say."]
    keys = [[f"{clip.clip_id}/{n}" for n in range(2)] for clip in shown]
    groups = sample_groups(vlm, shown, prompts, keys, temperature=1.0, max_tokens=12)
    for clip, prompt, group in zip(shown, prompts, groups):
        for sample in group:
            (told,) = token_logprobs(vlm, [clip], [vlm.prompt_ids(clip, prompt)], [sample.token_ids])
            torch.testing.assert_close(torch.tensor(sample.logprobs_T), told.detach(), rtol=0, atol=2e-4)


def test_a_template_that_opens_the_answer_is_cut_back_to_the_turn(families, clips):
    """The grammar writes `<think>` itself; twice would be none of its traces."""
    vlm = families["hub35"].load()
    for clip in (None, *encoded(vlm, clips, TALL)):
        text = vlm.tokenizer.decode(vlm.prompt_ids(clip, "Say."))
        assert text.endswith("<|im_start|>assistant\n") and "<think>" not in text
