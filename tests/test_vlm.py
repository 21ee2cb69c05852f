"""The model wing: what is computed once equals what is computed plainly, and a training that was killed ends where it
would have.

Everything on four families of tiny checkpoints (see `tiny`), float32, on a CPU.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import CLIPS, LONG, TALL, WIDE
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize
from transformers.video_utils import VideoMetadata

from deepintuit.config import ModelConfig
from deepintuit.errors import ModelError, VideoError, VideoReason
from deepintuit.labels import LabelSet
from deepintuit.video import frame_size
from deepintuit.vlm import VLM, Example, label_logprobs, last_hidden, sample_groups, token_logprobs
from deepintuit.vlm.finetune import Recipe, finetune
from deepintuit.vlm.training import StepLog

PROMPT = "What happens? Answer with one word."
PROMPTS = {LONG: PROMPT, WIDE: "Who is there, and why?", TALL: "Say."}


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    return tiny.write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: tiny.write_family(name, folder / name) for name in tiny.FAMILIES}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def models(families, cache):
    """A frozen model of each family. No test changes it."""
    return {name: family.load(cache=cache) for name, family in families.items()}


@pytest.fixture(params=tiny.FAMILIES)
def vlm(request, models):
    return models[request.param]


@pytest.fixture(params=tiny.SHARING)
def sharing(request, models):
    return models[request.param]


@pytest.fixture
def small(models):
    return models["embedded"]


@pytest.fixture(scope="session")
def encode(paths):
    def encode(vlm, name):
        return vlm.encoder.encode(name, paths[name], CLIPS[name][2], CLIPS[name][1])

    return encode


@pytest.fixture(scope="session")
def pixels(paths):
    """The plain path: chat template, processor, pixels, with the clip's nominal rate; `written` tokens may follow the
    prompt.
    """

    def pixels(vlm, name, prompt=None, written=()):
        count, height, width, fps = CLIPS[name]
        frames = vlm.encoder.frames(name, paths[name], width, height)
        content = [{"type": "video"}, {"type": "text", "text": prompt or PROMPTS[name]}]
        text = vlm.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = vlm.processor(
            text=[text.removesuffix("<think>\n")],
            videos=[torch.from_numpy(frames.pixels_T_H_W_3).permute(0, 3, 1, 2)],
            video_metadata=[
                VideoMetadata(total_num_frames=count, fps=fps, frames_indices=list(range(count)), duration=count / fps)
            ],
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
        more = torch.tensor([list(written)], dtype=torch.long)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], 1)
        vlm.core.model.rope_deltas = None
        return inputs

    return pixels


@pytest.fixture(scope="session")
def plain_logprobs(pixels):
    """Log-probabilities of written tokens by one plain forward pass from pixels, the model placing every token
    itself.
    """

    @torch.no_grad()
    def plain(vlm, name, written, temperature=1.0, prompt=None):
        logits = vlm.model(**pixels(vlm, name, prompt, written)).logits[0, -len(written) - 1 : -1]
        return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(written)[:, None])[:, 0]

    return plain


@torch.no_grad()
def logits_of(vlm, clips, prompts, side="left"):
    rows = [vlm.prompt_ids(clip, prompt) for clip, prompt in zip(clips, prompts)]
    out = vlm.model(**vlm.inputs(clips, rows, side=side)).logits
    return [logits[-len(row) :] if side == "left" else logits[: len(row)] for logits, row in zip(out, rows)]


def near(found, wanted, tolerance=1e-4):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), rtol=0, atol=tolerance)


def with_adapter(family, **settings):
    """A new adapter that changes what the model says: at birth its second matrix is zero."""
    torch.manual_seed(1)
    vlm = family.load(trainable=True, lora_rank=4, **settings)
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    vlm.model.eval()
    return vlm


class Watched:
    """(rows, tokens) of every call of the language model, and the number of tower calls."""

    def __init__(self, vlm):
        self.vlm, self.calls, self.towers = vlm, [], 0

    def __enter__(self):
        def language(module, args, kwargs):
            self.calls.append(tuple(kwargs["inputs_embeds"].shape[:2]))

        def tower(*_):
            self.towers += 1

        model = self.vlm.core.model
        self.hooks = [
            model.language_model.register_forward_pre_hook(language, with_kwargs=True),
            model.visual.register_forward_pre_hook(tower),
        ]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


# ------------------------------------------------------------------------------------------------------------- loading


def test_a_hub_folder_keeps_its_geometry_and_its_weights(models, families):
    core, folder = models["hub25"].core, families["hub25"].folder
    vision, text = core.config.vision_config, core.config.text_config
    assert (vision.patch_size, vision.window_size, vision.tokens_per_second) == (14, 112, 2)
    assert list(vision.fullatt_block_indexes) == [1, 3]
    assert text.rope_parameters["mrope_section"] == [16, 24, 24] and text.hidden_size // text.num_attention_heads == 128
    stored = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    held = dict(core.named_parameters())
    assert len(stored) == len(held)
    for new in ("visual.blocks.0.attn.qkv.weight", "language_model.layers.1.mlp.up_proj.weight"):
        near(held[f"model.{new}"], stored[new.replace("language_model", "model")].float(), 0)


def test_the_model_reacts_to_positions(vlm, encode):
    """Else wrong positions would pass every test below."""
    clip = encode(vlm, WIDE)
    inputs = vlm.inputs([clip], [vlm.prompt_ids(clip, PROMPT)], side="left")
    with torch.no_grad():
        right = vlm.model(**inputs).logits[0, -1]
        inputs["position_ids"] = inputs["position_ids"].clone()
        inputs["position_ids"][:, :, -1] += 9
        moved = vlm.model(**inputs).logits[0, -1]
    assert (torch.log_softmax(moved, -1) - torch.log_softmax(right, -1)).abs().max() > 0.02


def test_stop_ids_are_the_checkpoints_own(vlm):
    marks = vlm.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert vlm.stop_ids == sorted(marks)


@pytest.mark.parametrize("kind", ["full", "adapter"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_what_is_saved_is_what_is_loaded(kind, name, families, encode, cache, tmp_path):
    family = families[name]
    vlm = with_adapter(family) if kind == "adapter" else family.load(trainable=True)
    if kind == "full":
        with torch.no_grad():
            for parameter in (p for p in vlm.model.parameters() if p.requires_grad):
                parameter.mul_(1.1)
        vlm.model.eval()
    vlm.save(tmp_path, {"run": "r1"})
    assert "# r1" in (tmp_path / "README.md").read_text() and not [*tmp_path.glob("*.bin")]
    assert (tmp_path / "adapter_config.json").exists() is (kind == "adapter")
    again = family.load(checkpoint=tmp_path, cache=cache)
    clip = encode(again, WIDE)
    assert not any(p.requires_grad for p in again.model.parameters())
    near(logits_of(again, [clip], [PROMPT])[0], logits_of(vlm, [clip], [PROMPT])[0], 1e-6)
    further = family.load(checkpoint=tmp_path, trainable=True, lora_rank=4 if kind == "adapter" else 0)
    assert {n for n, p in further.model.named_parameters() if p.requires_grad} == {
        n for n, p in vlm.model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("settings", [{"lora_rank": 4}, {}, {"lora_rank": 4, "gradient_checkpointing": True}])
def test_training_touches_the_language_model_only(settings, families, models, encode):
    vlm = families["embedded"].load(trainable=True, **settings)
    trained = [name for name, p in vlm.model.named_parameters() if p.requires_grad]
    assert trained and not any("visual" in name for name in trained)
    if settings:
        assert all("language_model" in name and "_proj.lora_" in name for name in trained)
    clip = encode(models["embedded"], WIDE)
    (logprobs,) = token_logprobs(vlm, [clip], [vlm.prompt_ids(clip, PROMPT)], [vlm.target_ids("theft")])
    logprobs.sum().backward()
    grads = {name for name, p in vlm.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert grads and grads <= set(trained)


def test_full_training_in_bfloat16_moves_float32_master_weights_by_steps_that_bfloat16_cannot_hold(
    families, models, encode, tmp_path
):
    vlm = families["embedded"].load(trainable=True, dtype="bfloat16")
    before = weights(vlm)
    assert {value.dtype for value in before.values()} == {torch.float32}
    clips = [encode(models["embedded"], WIDE)]
    tune(vlm, clips, tmp_path / "training", replace(RECIPE, learning_rate=1e-6), count=2)
    after = weights(vlm)
    moved = torch.cat([(after[name] != before[name]).flatten() for name in before])
    kept = torch.cat([(after[name].bfloat16() != before[name].bfloat16()).flatten() for name in before])
    assert moved.float().mean() > 0.9 and kept.float().mean() < 0.1
    logits = vlm.model(**vlm.inputs(clips, [vlm.prompt_ids(clips[0], PROMPT)], side="left")).logits
    assert logits.dtype == torch.bfloat16, "the arithmetic is bfloat16's"
    vlm.save(tmp_path / "saved", {})
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as saved:
        assert {saved.get_tensor(name).dtype for name in saved.keys()} == {torch.bfloat16}
    again = families["embedded"].load(checkpoint=tmp_path / "saved", dtype="bfloat16")
    same({n: p for n, p in again.model.named_parameters() if n in after}, {n: p.bfloat16() for n, p in after.items()})


def beats(error):
    assert all(beat.strip() for beat in (error.what, error.why, error.todo)) and "\n" not in str(error)
    return str(error)


def test_a_missing_model_path_is_told_in_three_beats(families, tmp_path):
    with pytest.raises(ModelError) as caught:
        VLM.load(ModelConfig(path=str(tmp_path / "no-such-model"), device="cpu"), families["embedded"].video)
    assert "no-such-model" in beats(caught.value) and "model.path" in caught.value.todo


@pytest.mark.parametrize(
    "damage", ["truncated weights", "no weights", "no config", "a text model", "a config that is no JSON"]
)
def test_a_folder_that_is_no_such_checkpoint_is_told_in_three_beats(damage, families, tmp_path):
    source = families["embedded"].folder
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    match damage:
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "no weights":
            weights.unlink()
        case "no config":
            config.unlink()
        case "a text model":
            config.write_text(json.dumps({"model_type": "qwen2"}))
        case "a config that is no JSON":
            config.write_text("{")
    with pytest.raises(ModelError) as caught:
        VLM.load(ModelConfig(path=str(tmp_path), device="cpu"), families["embedded"].video)
    beats(caught.value)


def test_four_bits_without_bitsandbytes_are_refused_with_a_sentence(families):
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(ModelError, match="bitsandbytes") as caught:
            families["embedded"].load(quantize="4bit")
        beats(caught.value)
    else:
        pytest.skip("bitsandbytes is installed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu"])
def test_a_device_that_is_not_there_is_refused_with_a_sentence(device, families):
    family = families["embedded"]
    with pytest.raises(ModelError, match=device) as caught:
        VLM.load(ModelConfig(path=str(family.folder), device=device), family.video)
    beats(caught.value)


def test_an_adapter_on_a_run_of_full_weights_is_refused(families, tmp_path):
    """Its own checkpoint would later be laid over model.path, other weights than it was trained on."""
    family = families["embedded"]
    family.load().save(tmp_path, {})
    with pytest.raises(ModelError, match="lora_rank") as caught:
        family.load(checkpoint=tmp_path, trainable=True, lora_rank=4)
    beats(caught.value)


# ------------------------------------------------------------------------------------------------- clips, encoded once


@pytest.mark.parametrize("name", CLIPS)
def test_cached_features_give_the_logits_of_the_plain_path(vlm, name, encode, pixels):
    clip = encode(vlm, name)
    inputs = pixels(vlm, name)
    assert vlm.prompt_ids(clip, PROMPTS[name]) == inputs["input_ids"][0].tolist()
    with torch.no_grad():
        plain = vlm.model(**inputs).logits[0]
    near(logits_of(vlm, [clip], [PROMPTS[name]])[0], plain, 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_of_unlike_clips_equals_one_at_a_time(vlm, side, encode):
    clips = [encode(vlm, name) for name in CLIPS]
    assert len({len(clip.vision_ids) for clip in clips}) == 3
    together = logits_of(vlm, clips, PROMPTS.values(), side)
    for clip, prompt, logits in zip(clips, PROMPTS.values(), together):
        near(logits, logits_of(vlm, [clip], [prompt])[0], 2e-5)
    near(last_hidden(vlm, clips, [*PROMPTS.values()])[2], last_hidden(vlm, clips[2:], [PROMPTS[TALL]])[0])


def test_the_tower_runs_once_a_clip_also_after_a_reload(families, encode, tmp_path):
    for family in families.values():
        first = family.load(cache=tmp_path)
        with Watched(first) as watched:
            kept = [encode(first, name) for name in (WIDE, TALL, WIDE)]
        assert (watched.towers, first.encoder.passes) == (2, 2) and kept[0] is kept[2]
        again = family.load(cache=tmp_path)
        clip = encode(again, WIDE)
        assert again.encoder.passes == 0 and clip.frames == kept[0].frames and clip.vision_ids == kept[0].vision_ids
        assert torch.equal(clip.embeds, kept[0].embeds) and len(clip.deepstack) == len(kept[0].deepstack) == 2 * (
            family.name == "hub3"
        )
        assert all(torch.equal(a, b) for a, b in zip(clip.deepstack, kept[0].deepstack))


def test_a_trained_run_shares_the_features_of_its_base_and_another_tower_does_not(families, encode, tmp_path):
    family = families["embedded"]
    base = family.load(cache=tmp_path / "cache", trainable=True)
    encode(base, TALL)
    torch.nn.init.normal_(base.core.model.language_model.norm.weight)
    base.save(tmp_path / "trained", {})
    trained = family.load(checkpoint=tmp_path / "trained", cache=tmp_path / "cache")
    encode(trained, TALL)
    assert trained.encoder.passes == 0
    with torch.no_grad():
        base.core.model.visual.patch_embed.proj.weight.mul_(1.01)
    base.save(tmp_path / "other", {})
    other = family.load(checkpoint=tmp_path / "other", cache=tmp_path / "cache")
    encode(other, TALL)
    assert other.encoder.passes == 1


DAMAGE = ["empty", "cut", "a text", "zeros inside", "a fact", "another file", "another clip's"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_entry_is_computed_again(damage, families, encode, tmp_path):
    family = families["embedded"]
    right = encode(family.load(cache=tmp_path), TALL)
    (entry,) = (tmp_path / "features").rglob("*.safetensors")
    whole = entry.read_bytes()
    middle = len(whole) // 2
    match damage:
        case "empty":
            entry.write_bytes(b"")
        case "cut":
            entry.write_bytes(whole[:-100])
        case "a text":
            entry.write_text("not a tensor")
        case "zeros inside":
            entry.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
        case "a fact":
            entry.write_bytes(whole.replace(b"seconds_per_grid", b"seconds_per_clip"))
        case "another clip's":
            encode(family.load(cache=tmp_path), WIDE)
            (other,) = {*(tmp_path / "features").rglob("*.safetensors")} - {entry}
            entry.write_bytes(other.read_bytes())
            other.unlink()
        case "another file":
            entry.write_bytes((family.folder / "model.safetensors").read_bytes())
    vlm = family.load(cache=tmp_path)
    assert torch.equal(encode(vlm, TALL).embeds, right.embeds) and vlm.encoder.passes == 1
    assert entry.read_bytes() == whole
    assert [path for path in (tmp_path / "features").rglob("*") if path.is_file()] == [entry]


def places_of(paths, *names):
    return [(name, paths[name], CLIPS[name][2], CLIPS[name][1]) for name in names]


def read_ahead_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


class Reads:
    """The clips whose frames were asked for, in order; `begun(name)` waits for one."""

    def __init__(self, encoder):
        self.names, self.frames, self.news = [], encoder.frames, threading.Condition()
        encoder.frames = self

    def __call__(self, name, *rest):
        with self.news:
            self.names.append(name)
            self.news.notify_all()
        return self.frames(name, *rest)

    def begun(self, name):
        with self.news:
            return self.news.wait_for(lambda: name in self.names, 60)


def test_clips_read_ahead_give_the_same_features_and_errors_in_the_same_order(families, encode, paths, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for family in families.values():
        alone, vlm = family.load(), family.load(cache=tmp_path / family.name)
        reads = Reads(vlm.encoder)
        wanted = places_of(paths, LONG, WIDE, WIDE, TALL)
        wanted.insert(1, ("text", tmp_path / "text.mp4", 64, 64))
        wanted.insert(3, ("thin", paths[TALL], 4, 4000))
        with Watched(vlm) as watched:
            found = list(vlm.encoder.encode_all(wanted))
        assert watched.towers == 3 and sorted(reads.names) == sorted([LONG, "text", WIDE, "thin", TALL])
        for place, got in zip(wanted, found, strict=True):
            try:
                told = alone.encoder.encode(*place)
            except VideoError as error:
                assert (str(got), got.reason) == (str(error), error.reason)
            else:
                assert got.clip_id == place[0] and got.frames == told.frames and torch.equal(got.embeds, told.embeds)
        assert not read_ahead_threads()
        again = family.load(cache=tmp_path / family.name)
        for got, kept in zip(again.encoder.encode_all(wanted), found, strict=True):
            assert isinstance(got, VideoError) or torch.equal(got.embeds, kept.embeds)
        assert again.encoder.passes == 0


def test_the_next_clips_are_read_while_one_is_worked_on_and_no_more_than_two(families, paths):
    vlm = families["embedded"].load()
    reads = Reads(vlm.encoder)
    wanted = [(str(n), paths[TALL], CLIPS[TALL][2], CLIPS[TALL][1]) for n in range(8)]
    with closing(vlm.encoder.encode_all(wanted)) as features:
        for n in range(5):
            assert next(features).clip_id == str(n)
            assert reads.begun(str(n + 2)), "while nobody asks for it"
            assert sorted(reads.names) == [str(m) for m in range(n + 3)]
    assert not read_ahead_threads() and "7" not in reads.names


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["tower", "reader"])
def test_reading_ahead_ends_with_whatever_ends_the_work(end, where, families, paths):
    vlm = families["embedded"].load()

    def fail(*_):
        raise end

    if where == "tower":
        vlm.core.model.visual.register_forward_pre_hook(fail)
    else:
        vlm.encoder.frames = fail
    with pytest.raises(end):
        list(vlm.encoder.encode_all(places_of(paths, LONG, WIDE, TALL)))
    assert not read_ahead_threads()


def test_clips_in_memory_start_no_thread(families, paths):
    vlm = families["embedded"].load()
    wanted = places_of(paths, LONG, WIDE, TALL)
    kept = list(vlm.encoder.encode_all(wanted))
    for got, clip in zip(vlm.encoder.encode_all(wanted), kept):
        assert got is clip and not read_ahead_threads()


def test_nothing_is_kept_on_disk_without_room(families, encode, tmp_path):
    family = families["embedded"]
    none = replace(family, video=family.video.replace(cache_gib=0.0)).load(cache=tmp_path / "cache")
    encode(none, TALL)
    assert not (tmp_path / "cache").exists()


def test_a_blanked_clip_keeps_its_shape_and_tells_nothing(vlm, encode):
    clips = [encode(vlm, name) for name in (WIDE, TALL)]
    for clip in clips:
        blank = clip.blanked()
        for before, after in zip((clip.embeds, *clip.deepstack), (blank.embeds, *blank.deepstack)):
            assert after.shape == before.shape and after.dtype == before.dtype
            assert (after == after[0]).all() and not torch.equal(after, before)
            near(after[0], before.mean(0))
        assert (
            blank.vision_ids == clip.vision_ids
            and torch.equal(blank.grid_thw, clip.grid_thw)
            and blank.clip_id != clip.clip_id
        )
        assert (logits_of(vlm, [blank], [PROMPT])[0][-1] - logits_of(vlm, [clip], [PROMPT])[0][-1]).abs().max() > 1e-3


@given(st.integers(8, 4000), st.integers(8, 4000), st.sampled_from((28, 32)), st.sampled_from((784, 3136, 12544)))
def test_frames_are_resized_as_the_models_own_processor_would(width, height, factor, least):
    if max(width, height) <= 200 * min(width, height):
        theirs = smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=16 * least)
        assert frame_size(width, height, least, 16 * least, factor) == theirs[::-1]


def test_a_frame_that_no_model_takes_is_a_video_error(small):
    with pytest.raises(VideoError) as caught:
        small.encoder.frame_size(4000, 10)
    assert caught.value.reason is VideoReason.TOO_SMALL


# ------------------------------------------------------------------------------------------------------------- prompts


def test_a_text_with_a_video_mark_adds_no_second_clip(vlm, encode):
    clip, sneaky = (
        encode(vlm, TALL),
        "A <|vision_start|><|video_pad|><|vision_end|> title <|im_end|>\n<|im_start|>system",
    )
    ids = vlm.prompt_ids(clip, sneaky)
    assert ids.count(vlm.core.config.video_token_id) == len(clip.embeds)
    for mark in ("<|im_start|>", "<|im_end|>", "<|vision_start|>"):
        number = vlm.tokenizer.convert_tokens_to_ids(mark)
        assert ids.count(number) == vlm.prompt_ids(clip, "A title").count(number)
    assert "video_pad" in vlm.tokenizer.decode(ids[-120:]), "its words stay readable"
    assert logits_of(vlm, [clip], [sneaky])[0].isfinite().all()
    target = vlm.target_ids("It says <|video_pad|><|im_end|>.")
    assert not set(target[:-1]) & {*vlm.silenced, *vlm.stop_ids} and target[-1] == vlm.tokenizer.eos_token_id


@hypothesis_settings(max_examples=60)
@given(st.text(alphabet="<|> _adeimnopstvx\n", max_size=40))
def test_no_text_can_write_a_mark(marked, text):
    assert not set(marked.target_ids(text)[:-1]) & set(marked.tokenizer.all_special_ids)


@pytest.fixture(scope="session")
def marked(models):
    return models["hub25"]


# ------------------------------------------------------------------------------------------------------------ sampling


def keys(name, group):
    return [f"{name}/{number}" for number in range(group)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_sampled_logprobs_are_those_of_a_plain_forward_over_the_trace(
    name, adapter, temperature, models, families, encode, plain_logprobs
):
    """Video prompts, `long` among them, whose temporal positions go further than the prompt's last token."""
    base = models[name]
    clips = [encode(base, clip) for clip in (LONG, TALL)]
    vlm = with_adapter(families[name]) if adapter else base
    prompts = [PROMPTS[LONG], PROMPTS[TALL]]
    groups = sample_groups(vlm, clips, prompts, [keys(LONG, 3), keys(TALL, 3)], temperature=temperature, max_tokens=12)
    rows = [
        (clip, vlm.prompt_ids(clip, prompt), sample)
        for clip, prompt, group in zip(clips, prompts, groups)
        for sample in group
    ]
    with torch.no_grad():
        again = token_logprobs(
            vlm, [c for c, _, _ in rows], [p for _, p, _ in rows], [s.token_ids for _, _, s in rows], temperature
        )
    for (_, _, sample), logprobs in zip(rows, again):
        near(sample.logprobs_T, logprobs)
    for clip, group in zip((LONG, TALL), groups):
        sample = group[0]
        vlm.encoder = base.encoder
        near(sample.logprobs_T, plain_logprobs(vlm, clip, sample.token_ids, temperature))
        assert 0 < sample.confidence < 1
    if adapter:
        other = plain_logprobs(base, LONG, groups[0][0].token_ids, temperature)
        assert (torch.tensor(groups[0][0].logprobs_T) - other).abs().max() > 1e-2, (
            "the adapter changes what the model says"
        )


def test_a_clip_longer_in_time_than_in_space_continues_from_the_prompts_last_token(small, encode, pixels):
    """`rope_deltas` + length is another place as soon as the clip's last frame is behind its prompt's last token."""
    clip = encode(small, LONG)
    row = small.prompt_ids(clip, "?")
    positions = small.inputs([clip], [[*row, 9, 9]], side="right")["position_ids"][:, 0]
    last = positions[:, len(row) - 1]
    assert (positions[:, len(row) :] - last[:, None] == torch.tensor([1, 2])).all() and (last == last[0]).all()
    places = small.core.model.get_vision_position_ids(0, clip.grid_thw, 1, 2, 4 * clip.seconds_per_grid)
    assert places[0].max() > places[1].max(), "longer in time than in space"


def test_what_a_trace_says_does_not_depend_on_what_is_sampled_beside_it(vlm, encode):
    clips = [encode(vlm, name) for name in CLIPS]
    wanted = {}
    groups = sample_groups(vlm, clips, [*PROMPTS.values()], [keys(n, 3) for n in CLIPS], temperature=1.0, max_tokens=10)
    for name, group in zip(CLIPS, groups):
        wanted |= dict(zip(keys(name, 3), (sample.token_ids for sample in group)))
    assert len({tuple(ids) for ids in wanted.values()}) == len(wanted), "every stream says something else"
    for clip, name in zip(clips, CLIPS):
        for key in keys(name, 3):
            ((alone,),) = sample_groups(vlm, [clip], [PROMPTS[name]], [[key]], temperature=1.0, max_tokens=10)
            assert alone.token_ids == wanted[key]
    back = sample_groups(
        vlm,
        clips[::-1],
        [*PROMPTS.values()][::-1],
        [keys(n, 3)[::-1] for n in CLIPS][::-1],
        temperature=1.0,
        max_tokens=10,
    )
    assert [[s.token_ids for s in group[::-1]] for group in back[::-1]] == [
        [s.token_ids for s in group] for group in groups
    ]


def test_traces_that_are_alike_are_one_row_until_they_part(sharing, encode):
    vlm = sharing
    clips, prompts = [encode(vlm, name) for name in (WIDE, TALL)], [PROMPTS[WIDE], PROMPTS[TALL]]
    streams = [["a", "a", "b"], ["c", "c", "c"]]  # the same numbers are drawn under the same name
    wanted = {}
    for share in (False, True):
        vlm.shares_prefix = share
        with Watched(vlm) as watched:
            groups = sample_groups(vlm, clips, prompts, streams, temperature=1.0, max_tokens=12)
        wanted[share] = [[(sample.token_ids, sample.text) for sample in samples] for samples in groups]
        shapes = watched.calls[1:]
        if share:  # two alike and one apart of the first clip, three alike of the second
            assert shapes[0] in [(2, 1), (2, 2)] and max(seats for _, seats in shapes) == 2
        else:
            assert shapes[0] == (6, 1)
    assert wanted[True] == wanted[False]
    assert wanted[True][0][0] == wanted[True][0][1] != wanted[True][0][2]


def test_a_prompt_is_prefilled_once_a_group_and_no_tower_runs(vlm, encode):
    clips = [encode(vlm, name) for name in (WIDE, TALL)]
    width = max(len(vlm.prompt_ids(clip, PROMPT)) for clip in clips)
    with Watched(vlm) as watched:
        groups = sample_groups(vlm, clips, [PROMPT] * 2, [keys(WIDE, 5), keys(TALL, 5)], temperature=1.0, max_tokens=6)
    assert watched.calls[0] == (2, width) and watched.towers == 0
    most = (2, 5) if vlm.shares_prefix else (10, 1)
    assert all(rows <= most[0] and seats <= most[1] for rows, seats in watched.calls[1:]), "a row a clip"
    longest = max(len(sample.token_ids) for group in groups for sample in group)
    assert len(watched.calls) == longest, "the last token of a trace is never fed"


@torch.no_grad()
def plain_sample(vlm, pixel_inputs, max_tokens):
    """The reference: greedy `generate` from pixels, tower and prefill included."""
    out = vlm.model.generate(
        **pixel_inputs,
        do_sample=False,
        max_new_tokens=max_tokens,
        suppress_tokens=vlm.silenced,
        eos_token_id=vlm.stop_ids,
        pad_token_id=vlm.tokenizer.pad_token_id,
        repetition_penalty=1.0,  # Qwen2.5-VL's own generation config says 1.05
    )
    return vlm.tokenizer.batch_decode(out[:, pixel_inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_greedy_traces_are_those_of_generate(vlm, encode, pixels):
    """Also where the checkpoint's own generation config samples and punishes repetition."""
    for name in CLIPS:
        ((greedy,),) = sample_groups(vlm, [encode(vlm, name)], [PROMPTS[name]], [[""]], temperature=0, max_tokens=16)
        assert [greedy.text] == plain_sample(vlm, pixels(vlm, name), 16)
        assert greedy.truncated == (greedy.token_ids[-1] not in vlm.stop_ids)


class Urged:
    """The same model with some tokens made almost certain."""

    def __init__(self, vlm, ids, by=60.0):
        self.vlm, self.ids, self.by = vlm, ids, by

    def __enter__(self):
        def urge(module, args, logits):
            logits[..., self.ids] += self.by
            return logits

        self.hook = self.vlm.core.lm_head.register_forward_hook(urge)

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_policy_cannot_sample_a_vision_mark(vlm, temperature, encode):
    marks = vlm.tokenizer.convert_tokens_to_ids(
        ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    )
    assert sorted(marks) == vlm.silenced
    with Urged(vlm, marks, 9.0):
        ((*samples,),) = sample_groups(
            vlm, [encode(vlm, TALL)], [PROMPT], [keys("x", 4)], temperature=temperature, max_tokens=8
        )
    assert not any(set(sample.token_ids) & set(marks) for sample in samples)
    assert all(len(sample.token_ids) == len(sample.logprobs_T) and max(sample.logprobs_T) < -5 for sample in samples), (
        "not renormalised"
    )


def test_a_trace_ends_at_any_stop_token_which_is_counted(vlm, encode):
    for stop in vlm.stop_ids:
        with Urged(vlm, [stop]), Watched(vlm) as watched:
            ((sample,),) = sample_groups(vlm, [encode(vlm, TALL)], [PROMPT], [["x"]], temperature=1.0, max_tokens=8)
        assert sample.token_ids == [stop] and sample.text == "" and not sample.truncated and len(sample.logprobs_T) == 1
        assert len(watched.calls) == 1


def test_a_stopped_stream_leaves_truncated_traces_and_says_every_token(small, encode):
    heard = []
    ((*samples,),) = sample_groups(
        small,
        [encode(small, TALL)],
        [PROMPT],
        [keys("s", 2)],
        temperature=1.0,
        max_tokens=20,
        on_token=lambda *token: heard.append(token),
        stop=lambda: len(heard) >= 6,
    )
    assert [s.truncated for s in samples] == [True, True] and [len(s.token_ids) for s in samples] == [3, 3]
    assert [[token for _, number, token in heard if number == g] for g in range(2)] == [s.token_ids for s in samples]


def test_a_nucleus_keeps_to_the_likeliest_tokens(small, encode):
    clip = encode(small, TALL)
    ((greedy,),) = sample_groups(small, [clip], [PROMPT], [[""]], temperature=0, max_tokens=8)
    ((narrow,),) = sample_groups(small, [clip], [PROMPT], [["n"]], temperature=1.0, top_p=1e-6, max_tokens=8)
    assert narrow.token_ids == greedy.token_ids


def test_sampling_leaves_the_model_in_the_mode_it_was_in(families, models, encode):
    vlm = families["embedded"].load(trainable=True)
    clip = encode(models["embedded"], TALL)
    sample_groups(vlm, [clip], [PROMPT], [["x"]], temperature=1.0, max_tokens=2)
    label_logprobs(vlm, [clip], [PROMPT], LabelSet.of("two", ["a", "b"]))
    assert vlm.model.training


# ------------------------------------------------------------------------------------------------------------- scoring

LABELS = LabelSet.of("events", ["theft", "the", "the end of it", "delivery", "t"])


def test_label_logprobs_equal_a_plain_forward_for_each_label(vlm, encode, plain_logprobs):
    """Labels of several tokens, and labels that begin other labels; the end token tells them apart."""
    assert max(len(vlm.target_ids(label)) for label in LABELS) > 3
    clips = [encode(vlm, name) for name in CLIPS]
    with Watched(vlm) as watched:
        sums = label_logprobs(vlm, clips, [*PROMPTS.values()], LABELS)
    labels = sum(len(vlm.target_ids(label)) for label in LABELS)  # each behind a copy of the prompt's last token
    prompts = sum(len(vlm.prompt_ids(clip, prompt)) for clip, prompt in zip(clips, PROMPTS.values()))
    assert watched.towers == 0 and len(watched.calls) == 1 and watched.calls[0][1] <= prompts + len(clips) * labels
    for row, name in enumerate(CLIPS):
        for column, label in enumerate(LABELS):
            near(sums[row, column], plain_logprobs(vlm, name, vlm.target_ids(label)).sum(), 2e-4)
    assert (sums.exp().sum(1) <= 1).all()


def test_labels_of_one_token_are_scored_from_the_prompt_and_the_end(models, encode, plain_logprobs):
    vlm = models["hub3"]
    sums = label_logprobs(vlm, [encode(vlm, WIDE)], [PROMPTS[WIDE]], LabelSet.of("letters", ["a", "b"]))
    for column, label in enumerate("ab"):
        near(sums[0, column], plain_logprobs(vlm, WIDE, vlm.target_ids(label)).sum())


# ---------------------------------------------------------------------------------------------------------- fine-tuning

TARGETS = ("theft", "delivery", "stray cat", "routine", "a fall", "nobody")
RECIPE = Recipe(learning_rate=2e-3, epochs=3, batch=2, save_steps=2)


class Killed(Exception):
    pass


def test_logged_steps_are_written_together_and_none_is_kept_back():
    parts = []
    log = StepLog(parts.append, seconds=3600)
    for step in (1, 2, 3):
        log(step, {"loss": 1 / step, "rate": 0.1})
    assert not parts
    log.flush()
    log.flush()
    assert [(row["step"], row["name"]) for part in parts for row in part] == [
        (step, name) for step in (1, 2, 3) for name in ("loss", "rate")
    ]
    eager = StepLog(parts.append, seconds=-1)
    eager(4, {"loss": 0.1})
    assert len(parts) == 2


def weights(vlm):
    return {name: p.detach().clone() for name, p in vlm.model.named_parameters() if p.requires_grad}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    worst = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
    assert worst == 0, f"weights differ by {worst}"


def tune(vlm, clips, folder, recipe=RECIPE, *, count=6, die_at=None, die_by=None, validate=None, seen=None):
    """Six rows over two clips, whose targets are shuffled from epoch to epoch; dies at a step when told to."""

    def example(row, epoch):
        if seen is not None:
            seen.append((row, epoch))
        return Example(clips[row % len(clips)], PROMPT, TARGETS[(row + epoch) % len(TARGETS)])

    losses = {}

    class Log(StepLog):
        def __call__(self, step, numbers):
            losses.setdefault(step, {}).update(numbers)
            if step == die_at and "loss" in numbers:
                if die_by:
                    os.kill(os.getpid(), die_by)
                raise Killed

    names = [str(row) for row in range(count)]
    log = Log([].append)
    result = finetune(
        vlm, names, example, recipe, folder, seed=0, title="t", log=log, validate=validate, progress=False
    )
    return SimpleNamespace(result=result, losses=losses, weights=weights(vlm))


def student(families, **settings):
    torch.manual_seed(0)
    return families["embedded"].load(trainable=True, **settings)


@pytest.fixture(scope="session")
def pair(models, encode):
    return [encode(models["embedded"], name) for name in (WIDE, TALL)]


@pytest.fixture(scope="session")
def whole(families, pair, tmp_path_factory):
    """The uninterrupted training of `tune`'s rows: full weights, and an adapter with dropout."""
    return {
        rank: tune(
            student(families, lora_rank=rank, lora_dropout=0.1 if rank else 0.0),
            pair,
            tmp_path_factory.mktemp("whole") / "training",
        ).weights
        for rank in (0, 4)
    }


@pytest.mark.parametrize("tokens", [8192, 300, 1])
def test_fine_tuning_lowers_the_loss_which_is_a_mean_over_target_tokens(tokens, families, pair, tmp_path):
    vlm = student(families, tokens_per_pass=tokens)
    before = [vlm.target_ids(text) for text in TARGETS[:4]]
    with torch.no_grad():
        logprobs = token_logprobs(
            vlm,
            [pair[row % 2] for row in range(4)],
            [vlm.prompt_ids(pair[row % 2], PROMPT) for row in range(4)],
            before,
        )
    run = tune(
        vlm, pair, tmp_path / "training", Recipe(2e-3, epochs=8, batch=4, warmup=0, scheduler="constant"), count=4
    )
    losses = [numbers["loss"] for _, numbers in sorted(run.losses.items()) if "loss" in numbers]
    near(losses[0], -torch.cat(logprobs).mean().item(), 1e-5)
    assert run.result["steps"] == 8 and losses[-1] < 0.5 * losses[0] and not vlm.model.training


@pytest.mark.parametrize(("count", "batch"), [(6, 2), (5, 3), (3, 8)])
def test_every_row_is_seen_once_an_epoch_as_that_epochs_example(count, batch, families, pair, tmp_path):
    seen = []
    tune(student(families, lora_rank=2), pair, tmp_path / "training", Recipe(1e-3, 2, batch), count=count, seen=seen)
    assert sorted(seen) == [(row, epoch) for row in range(count) for epoch in range(2)]


@pytest.mark.parametrize(("step", "rank"), [(2, 0), (3, 4), (5, 0), (6, 0), (8, 4)])
def test_a_training_killed_at_a_step_and_started_again_ends_with_the_same_weights(
    step, rank, whole, families, pair, tmp_path
):
    settings = {"lora_rank": rank, "lora_dropout": 0.1 if rank else 0.0}
    with pytest.raises(Killed):
        tune(student(families, **settings), pair, tmp_path / "training", die_at=step)
    again = tune(student(families, **settings), pair, tmp_path / "training")
    assert again.result["steps"] == 9
    same(again.weights, whole[rank])


@pytest.mark.thorough
def test_a_training_killed_by_the_system_ends_with_the_same_weights(whole, families, cache, pair, paths, tmp_path):
    family = families["embedded"]
    code = "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']; import test_vlm; test_vlm.die(*sys.argv[2:])"
    died = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(Path(__file__).parent),
            str(family.folder),
            str(cache),
            str(paths[WIDE].parent),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    kept = sorted(path.name for path in (tmp_path / "training").glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]
    (tmp_path / "training" / "checkpoint-4" / "optimizer.pt").write_bytes(b"torn")
    # As if it had died while it wrote the newest: the marker is written last, and here it is cut short.
    (tmp_path / "training" / "checkpoint-4" / "complete").write_text("")
    again = tune(student(families), pair, tmp_path / "training")
    same(again.weights, whole[0])


def die(folder, cache, clips, target):
    """The child of the test above: begins the training of `whole` and is killed at step 5."""
    paths = {name: Path(clips) / f"{name}.mp4" for name in CLIPS}
    family = tiny.Family("embedded", Path(folder), tiny.video("embedded"))
    torch.manual_seed(0)
    vlm = family.load(cache=Path(cache), trainable=True)
    pair = [vlm.encoder.encode(name, paths[name], CLIPS[name][2], CLIPS[name][1]) for name in (WIDE, TALL)]
    tune(vlm, pair, Path(target) / "training", die_at=5, die_by=signal.SIGKILL)


def test_a_finished_training_that_was_not_saved_is_not_done_again(stopped, families, pair):
    """A stage may be killed between the end of its training and its last file."""
    _, run = stopped
    vlm = student(families)
    with Watched(vlm) as watched:
        again = tune(vlm, pair, run.folder, LONGER, count=4, validate=Script(vlm, []))
    assert watched.calls == [] and again.result == run.result
    same(again.weights, run.weights)


class Script:
    """Validation that reads its scores from a list, one a call, and remembers the weights it was shown."""

    def __init__(self, vlm, scores, die_at=None):
        self.vlm, self.scores, self.shown, self.die_at = vlm, list(scores), [], die_at

    def __call__(self):
        if len(self.shown) == self.die_at:
            raise Killed
        self.shown.append(weights(self.vlm))
        return self.scores[len(self.shown) - 1]


LONGER = Recipe(learning_rate=2e-3, epochs=8, batch=2, save_steps=2, patience=2, scheduler="constant")


@pytest.mark.parametrize(
    ("scores", "epochs", "best"),
    [
        ([3.0, 1.0, 2.0, 2.0, 0.0], 4, 2),
        ([1.0, 1.0, 1.0, 0.5], 3, 1),
        ([float("nan"), 2.0, float("nan"), 3.0, 0.0], 4, 2),
    ],
)
def test_early_stopping_keeps_the_best_epoch_the_earliest_of_equals(scores, epochs, best, families, pair, tmp_path):
    vlm = student(families, lora_rank=4)
    script = Script(vlm, scores)
    run = tune(vlm, pair, tmp_path / "training", LONGER, count=4, validate=script)
    assert len(script.shown) == epochs and run.result == {
        "steps": 2 * epochs,
        "validation_nll": scores[best - 1],
        "best_epoch": best,
    }
    same(run.weights, script.shown[best - 1])


def test_training_does_not_stop_early_while_the_learning_rate_is_still_high(families, pair, tmp_path):
    vlm = student(families, lora_rank=4)
    script = Script(vlm, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5, 2.0])
    run = tune(vlm, pair, tmp_path / "training", replace(LONGER, scheduler="cosine"), count=4, validate=script)
    assert len(script.shown) == 8 and run.result["best_epoch"] == 7, "a cosine is below a tenth in its last two epochs"


@pytest.mark.parametrize("die_at", [1, 3])
def test_a_training_killed_while_it_validates_stops_at_the_same_epoch_with_the_same_weights(
    die_at, stopped, families, pair, tmp_path
):
    scores, run = stopped
    vlm = student(families)
    with pytest.raises(Killed):
        tune(vlm, pair, tmp_path / "training", LONGER, count=4, validate=Script(vlm, scores, die_at))
    vlm = student(families)
    rest = Script(vlm, scores[die_at:])
    again = tune(vlm, pair, tmp_path / "training", LONGER, count=4, validate=rest)
    assert again.result == run.result and len(rest.shown) == 4 - die_at, "no epoch is validated twice"
    same(again.weights, run.weights)


@pytest.fixture(scope="session")
def stopped(families, pair, tmp_path_factory):
    """Scores by epoch, and the training that they stop, whose folder is kept."""
    scores = [3.0, 1.0, 2.0, 2.0, 0.0]
    vlm, folder = student(families), tmp_path_factory.mktemp("stopped") / "training"
    run = tune(vlm, pair, folder, LONGER, count=4, validate=Script(vlm, scores))
    run.folder = folder
    return scores, run
