"""Tiny checkpoints of random weights and the clips to show them: what the tests of `vlm` and the benchmarks stand on.

Four families, each written as a hub folder and loaded through `VLM.load`, in about a second and with nothing
downloaded:

- `embedded`  Qwen2.5-VL as the embedded world has it (patch 8, its own tokenizer)
- `hub25`     Qwen2.5-VL-7B's configuration in the hub's own layout (flat config, `visual.*` weight names, shards, no
              video processor file), with the true patch, window, head and rotary sizes; depth, width and vocabulary
              are shrunk
- `hub3`      Qwen3-VL's configuration, shrunk in the same way: features from inner layers, timestamps in the prompt
- `hub35`     Qwen3.5's configuration, shrunk in the same way: three of four layers are recurrent, and the template
              opens the answer with `<think>`

Queries and keys are larger than at birth: a model of random weights hardly reacts to positions, and would hide wrong
ones.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

import deepintuit_homecam as homecam
from deepintuit.config import ModelConfig, VideoConfig
from deepintuit.video import write_mp4
from deepintuit.vlm import VLM
from deepintuit_homecam.workshop.backbone import build_model, build_processor

FAMILIES = ("embedded", "hub25", "hub3", "hub35")
SHARING = FAMILIES[:3]
"""Whose rows are computed as trees."""
LONG, WIDE, TALL = "long", "wide", "tall"
CLIPS = {LONG: (40, 64, 64, 8.0), WIDE: (8, 160, 192, 4.0), TALL: (5, 128, 64, 2.0)}
"""Frames, height, width, frames a second. `long` is longer in time than in space, `tall` has an odd frame count."""

_MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>",
    "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n"
    "{% if turn['content'] is string %}{{ turn['content'] }}{% else %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A saved checkpoint and the frame settings that suit its patches."""

    name: str
    folder: Path
    video: VideoConfig

    def load(
        self, *, checkpoint: Path | None = None, cache: Path | None = None, trainable: bool = False, **settings
    ) -> VLM:
        return VLM.load(
            ModelConfig(path=str(self.folder), device="cpu", **settings),
            self.video,
            checkpoint=checkpoint,
            cache=cache,
            trainable=trainable,
        )


def write_clips(folder: Path) -> dict[str, Path]:
    """One MP4 for each of `CLIPS`: bright blocks of random colours that wander over noise."""
    rng = np.random.default_rng(0)
    for name, (count, height, width, fps) in CLIPS.items():
        frames = rng.integers(0, 80, (count, height, width, 3)).astype(np.uint8)
        for _ in range(4):
            colour, size = rng.integers(80, 256, 3), rng.integers(12, 28)
            top, left = (
                rng.integers(0, height, count).cumsum() // 2 % (height - size),
                rng.integers(0, width, count).cumsum() // 3 % (width - size),
            )
            for frame, y, x in zip(frames, top, left):
                frame[y : y + size, x : x + size] = colour
        write_mp4(folder / f"{name}.mp4", frames, fps)
    return {name: folder / f"{name}.mp4" for name in CLIPS}


def write_family(name: str, folder: Path) -> Family:
    """The checkpoint of a family, written to `folder`."""
    torch.manual_seed(0)
    {"embedded": _embedded, "hub25": _hub25, "hub3": _hub3, "hub35": _hub35}[name](folder)
    return Family(name, folder, video(name))


def video(name: str) -> VideoConfig:
    """Every frame of the longest clip, each as 4 to 30 merged patches of the family's size."""
    factor = {"embedded": 16, "hub25": 28, "hub3": 32, "hub35": 32}[name]
    return VideoConfig(frames=40, min_pixels=4 * factor**2, max_pixels=30 * factor**2)


def _embedded(folder: Path) -> None:
    processor = _embedded_processor()
    model = build_model(processor)
    awake(model).save_pretrained(folder)
    processor.save_pretrained(folder)


@functools.cache
def _embedded_processor():
    from transformers import AutoProcessor

    return (
        AutoProcessor.from_pretrained(homecam.MODEL)
        if (homecam.MODEL / "tokenizer.json").exists()
        else build_processor()
    )


def awake(model: PreTrainedModel, by: float = 3.0) -> PreTrainedModel:
    """The model with larger queries and keys (where they are normalised, larger norms), so that it reacts to what it
    is shown and where.
    """
    with torch.no_grad():
        normed = any(name.endswith("q_norm.weight") for name, _ in model.named_parameters())
        ends = ("q_norm.weight", "k_norm.weight") if normed else ("q_proj.weight", "k_proj.weight")
        for name, parameter in model.named_parameters():
            if "language_model" in name and name.endswith(ends):
                # Qwen3.5's norms multiply by 1 + weight.
                from_zero = normed and not parameter.any()
                parameter.copy_(parameter + 0.5 if from_zero else parameter * (1.5 if normed else by))
    return model


def _tokenizer(kind: type = Qwen2Tokenizer) -> PreTrainedTokenizerBase:
    """Qwen's tokenizer without a single merge: bytes and marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = kind(
        vocab={token: number for number, token in enumerate(alphabet)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_MARKS),
        model_max_length=4096,
    )
    return tokenizer


def _hub25(folder: Path) -> None:
    """As the files of Qwen2.5-VL-7B-Instruct lie on the hub: 28 → 2 layers, 3,584 → 256 wide, 32 → 4 tower blocks,
    1,280 → 160 wide.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "attention_dropout": 0.0,
        "bos_token_id": ids("<|endoftext|>"), "eos_token_id": ids("<|im_end|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"), "vision_token_id": ids("<|vision_pad|>"),
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"), "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 128000, "max_window_layers": 2, "num_attention_heads": 2, "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True, "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": len(tokenizer) + 10,  # the hub's, too, has rows that no token uses
        "vision_config": {
            "depth": 4, "hidden_act": "silu", "hidden_size": 160, "intermediate_size": 428, "num_heads": 2,
            "in_chans": 3, "out_hidden_size": 256,
            "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2, "temporal_patch_size": 2,
        },
    }  # fmt: skip
    generation = {
        "bos_token_id": ids("<|endoftext|>"), "pad_token_id": ids("<|endoftext|>"), "do_sample": True,
        "repetition_penalty": 1.05,
        "eos_token_id": [ids("<|im_end|>"), ids("<|endoftext|>")], "temperature": 1e-06,
    }  # fmt: skip
    pixels = {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    }  # fmt: skip
    files = {
        "config": config,
        "generation_config": generation,
        "preprocessor_config": pixels,
        "chat_template": {"chat_template": _SYSTEM + _TEMPLATE},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))
    tokenizer.save_pretrained(folder)
    model = awake(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder)))
    old = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }
    halves = (
        [name for name in old if name.startswith("visual.")],
        [name for name in old if not name.startswith("visual.")],
    )
    where = {}
    for number, names in enumerate(halves, 1):
        shard = f"model-{number:05d}-of-{len(halves):05d}.safetensors"
        save_file({name: old[name] for name in names}, folder / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(names, shard)
    size = sum(tensor.numel() * tensor.element_size() for tensor in old.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": where})
    )


def _hub3(folder: Path) -> None:
    """Qwen3-VL-8B-Instruct: 36 → 4 layers, 4,096 → 256 wide, 27 → 4 tower blocks, features of two inner ones."""
    tokenizer = _tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 10, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 128, "max_position_embeddings": 262144,
            "bos_token_id": ids("<|endoftext|>"),
            "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0, "mrope_interleaved": True,
            "mrope_section": [24, 20, 20]},
        },
        vision_config={
            "depth": 4, "hidden_size": 144, "intermediate_size": 268, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 256,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [1, 2],
        },
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip
    model = awake(Qwen3VLForConditionalGeneration(config))
    model.generation_config.update(
        eos_token_id=[ids("<|im_end|>"), ids("<|endoftext|>")], pad_token_id=ids("<|endoftext|>"), do_sample=True,
        top_p=0.8, top_k=20,
        temperature=0.7,
    )  # fmt: skip
    model.save_pretrained(folder)
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, temporal_patch_size=2, merge_size=2),
        video_processor=Qwen3VLVideoProcessor(cap_pixels_per_frame=False),
        tokenizer=tokenizer,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)


def _hub35(folder: Path) -> None:
    """Qwen3.5-9B: 32 → 4 layers of which three are recurrent, 4,096 → 256 wide, 27 → 3 tower blocks."""
    tokenizer = _tokenizer(Qwen3_5Tokenizer)
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen3_5Config(
        text_config={
            "vocab_size": len(tokenizer) + 10, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "max_position_embeddings": 262144,
            "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "mrope_interleaved": True,
            "mrope_section": [6, 5, 5], "partial_rotary_factor": 0.25},
        },
        vision_config={
            "depth": 3, "hidden_size": 144, "intermediate_size": 268, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 256, "num_position_embeddings": 2304,
        },
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip
    model = awake(Qwen3_5ForConditionalGeneration(config))
    model.generation_config.update(
        eos_token_id=[ids("<|im_end|>"), ids("<|endoftext|>")], pad_token_id=ids("<|endoftext|>"), do_sample=True
    )
    model.save_pretrained(folder)
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, temporal_patch_size=2, merge_size=2),
        video_processor=Qwen3VLVideoProcessor(cap_pixels_per_frame=False),
        tokenizer=tokenizer,
        chat_template=_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),
    ).save_pretrained(folder)
