"""What is known of each family of backbones: one record each, and nothing about any other.

A checkpoint of another family is refused by its `config.json`, before its weights are read: what is guessed of one
trains on wrong losses without a word. `tests/test_families.py` holds every record to the family's own code in
transformers. Not here: Qwen2-VL, mixtures of experts (adapters would miss the experts), sound.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from deepintuit.errors import ModelError

FULL, WINDOW, RECURRENT = "full_attention", "sliding_attention", "linear_attention"
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_DELTA_NET = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")


@dataclass(frozen=True)
class Family:
    """A family of vision-language models.

    `processor`: its class in transformers. `layers`: the kinds of layers that its language model may have.
    `projections`: names of all its linear layers, where LoRA goes. `told_seconds`: `get_rope_index`, which gives the
    3-D positions, is told the seconds between two temporal patches; else their times stand in the prompt as text.
    `vision_block`: what its chat template writes for a clip, and the processor expands to one pad for each merged
    patch. `opening`: how the assistant's turn begins. `tower` and `language`: where its two parts stand in
    `model.model`.
    """

    title: str
    processor: str
    layers: frozenset[str]
    projections: tuple[str, ...] = _ATTENTION + _MLP
    told_seconds: bool = False
    vision_block: str = "<|vision_start|><|video_pad|><|vision_end|>"
    opening: str = "<|im_start|>assistant\n"
    tower: str = "visual"
    language: str = "language_model"

    @property
    def lora_pattern(self) -> str:
        """A pattern for whole module names: the usual list of names would also adapt the tower."""
        return rf".*\b{self.language}\..*\.({'|'.join(self.projections)})"


FAMILIES = {
    "qwen2_5_vl": Family("Qwen2.5-VL", "Qwen2_5_VLProcessor", frozenset({FULL, WINDOW}), told_seconds=True),
    "qwen3_vl": Family("Qwen3-VL", "Qwen3VLProcessor", frozenset({FULL})),
    "qwen3_5": Family(
        "Qwen3.5", "Qwen3VLProcessor", frozenset({FULL, RECURRENT}), _ATTENTION + _MLP + _DELTA_NET
    ),
}  # fmt: skip
"""By the `model_type` of `config.json`."""

KNOWN = "Qwen2.5-VL, Qwen3-VL or Qwen3.5"


def family_of(config: PretrainedConfig, source: str) -> Family:
    """The record of the family that `config` names. Raises `ModelError` where there is none."""
    family = FAMILIES.get(config.model_type)
    strange = set(layer_types(config)) - family.layers if family else set()
    if family is None or strange:
        raise ModelError(
            f"{source!r} is a {config.model_type!r} model"
            + (f" with layers of {', '.join(sorted(strange))}" * bool(strange)),
            "how it places a clip's tokens, and what its layers see, is not known here; guessed, losses would be wrong",
            f"Give a checkpoint of {KNOWN} (none with experts) in model.path",
        )
    return family


def layer_types(config: PretrainedConfig) -> list[str]:
    """What each layer of the language model sees: all before, a window, or a state that runs along."""
    return get_layer_types_and_kwargs(config.get_text_config())[0]


def can_share(config: PretrainedConfig) -> bool:
    """Whether rows may be computed as a tree: every layer sees all ancestors of a token and nothing else."""
    return set(layer_types(config)) == {FULL}
