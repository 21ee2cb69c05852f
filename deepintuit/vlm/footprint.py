"""How much memory a model takes before it is there: its passes on tensors that have a shape and no numbers.

torch's fake tensors hold nothing, so a 7B is built in a second on any machine. Losses, prefill and decoding run on them
through the same code as on real ones, and what is alive at once is added up. Not counted: the visual tower's pass (one
clip at a time, without gradients), and what an allocator loses between blocks (10 to 20 % on CUDA).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig
from transformers.cache_utils import DynamicCache
from trl.trainer.utils import add_fused_lm_head

from deepintuit.config import ModelConfig
from deepintuit.errors import ModelError
from deepintuit.vlm.attention import Branch, Tree, see_trees
from deepintuit.vlm.families import can_share, family_of
from deepintuit.vlm.model import adapted
from deepintuit.vlm.precision import round_in_forward

_NF4 = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits: half of one, and a float32 scale for each 64."""
_ADAM = 8
"""Bytes that the optimizer keeps for each trained number: two in float32."""

_QWEN3 = {"num_key_value_heads": 8, "num_attention_heads": 32, "head_dim": 128, "num_hidden_layers": 36}
_SHAPES: dict[str, tuple[str, bool, dict[str, Any], dict[str, Any]]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl", True,
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
         "num_key_value_heads": 2, "vocab_size": 151936},
        {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 2048},
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "qwen2_5_vl", False,
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064},
        {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 3584},
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        "qwen3_vl", True,
        {"hidden_size": 2560, "intermediate_size": 9728, "vocab_size": 151936, **_QWEN3},
        {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16, "out_hidden_size": 2560,
         "deepstack_visual_indexes": [5, 11, 17]},
    ),
    "Qwen/Qwen3-VL-8B-Instruct": (
        "qwen3_vl", False,
        {"hidden_size": 4096, "intermediate_size": 12288, "vocab_size": 151936, **_QWEN3},
        {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16, "out_hidden_size": 4096,
         "deepstack_visual_indexes": [8, 16, 24]},
    ),
}  # fmt: skip
"""Name on the hub → family, whether head and embeddings are one, and what its config.json says of text and vision."""


def published(path: str) -> PretrainedConfig | None:
    """The configuration of a published checkpoint whose shape is known here, without a network."""
    if path not in _SHAPES:
        return None
    kind, tied, text, vision = _SHAPES[path]
    return AutoConfig.for_model(kind, text_config=text, vision_config=vision, tie_word_embeddings=tied)


@dataclass(frozen=True)
class Footprint:
    """Numbers and bytes. `trained`: numbers that training changes. `weights`: bytes of the model in memory, what is
    trained in float32. `optimizer`: bytes kept for what is trained. `loss` and `prefill`: at most, beside the weights,
    while one part of a loss, gradients included, or the prompts of one pass are computed. `step`: of one token for
    every trace of a round, beside the cache. `cache_token`: bytes of one token in the cache."""

    parameters: int
    tower: int
    trained: int
    weights: int
    optimizer: int
    loss: int
    prefill: int
    step: int
    cache_token: int


def footprint(
    config: PretrainedConfig,
    settings: ModelConfig,
    *,
    prompt: int,
    traces: int,
    trace_tokens: int,
    clips: int,
    prefilled: int,
) -> Footprint:
    """Of a training with these settings, the trained parts in float32: a loss over `traces` traces of
    `trace_tokens` tokens behind one prompt; a round of `clips` clips, of which `prefilled` are read at once."""
    family = family_of(config, settings.path)
    if not can_share(config) or not settings.share_prefix or settings.attention != "sdpa":
        raise ModelError(
            f"{settings.path!r} with model.share_prefix = {settings.share_prefix} and attention {settings.attention!r}",
            "memory is known before for models that compute a clip's rows as one tree alone",
            "Plan for another backbone, or leave these settings out",
        )
    dtype = {"float32": torch.float32, "float16": torch.float16}.get(settings.dtype, torch.bfloat16)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
        parameters = _numbers(model)
        tower = _numbers(getattr(model.model, family.tower))
        linear = sum(
            module.weight.numel()
            for module in getattr(model.model, family.language).modules()
            if isinstance(module, torch.nn.Linear)
        )
        model = adapted(model, family, settings.replace(quantize="none"), None, trainable=True)
        round_in_forward(model)
    with FakeTensorMode():
        _placed(model)
        core = model.get_base_model() if hasattr(model, "get_base_model") else model
        see_trees(core)
        add_fused_lm_head(core)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        if settings.quantize == "4bit":
            weights -= int(linear * (dtype.itemsize - _NF4))
        loss = peak(model, lambda: _loss(core, dtype, prompt, traces, trace_tokens))
        model.zero_grad()
        model.eval()
        with torch.no_grad():
            prefill = peak(model, lambda: _prefill(core, dtype, prompt, prefilled))
            step = peak(model, lambda: _step(core, dtype, clips * traces))
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * width * dtype.itemsize
    return Footprint(parameters, tower, trained, weights, _ADAM * trained, loss, prefill, step, token)


def _placed(model: torch.nn.Module) -> None:
    """Its tensors as fake ones of a CPU in place of those without a device, which have kernels of their own."""
    fakes: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None and id(old) not in fakes:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    fakes[id(old)] = torch.nn.Parameter(new, old.requires_grad) if table is module._parameters else new
                table[name] = old if old is None else fakes[id(old)]


def _numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _embeds(core, dtype: torch.dtype, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    hidden = core.config.get_text_config().hidden_size
    places = torch.zeros(3, rows, tokens, dtype=torch.long)
    return {"inputs_embeds": torch.zeros(rows, tokens, hidden, dtype=dtype), "position_ids": places}


def _loss(core, dtype: torch.dtype, prompt: int, traces: int, trace_tokens: int) -> None:
    """Forward and backward of one clip's tree, as `prefix.pack` lays it."""
    tokens = prompt + traces * trace_tokens
    inputs = _embeds(core, dtype, 1, tokens)
    inputs["inputs_embeds"].requires_grad_(True)
    none, before = torch.zeros(0, dtype=torch.long), torch.zeros(prompt, dtype=torch.long)
    visible = torch.zeros(trace_tokens, prompt + trace_tokens, dtype=torch.bool)
    tree = Tree(((Branch(prompt, none, None), *[Branch(trace_tokens, before, visible)] * traces),))
    labels = torch.zeros(1, tokens, dtype=torch.long)
    mask = torch.zeros(1, 1, 1, 1)
    out = core(**inputs, attention_mask=mask, tree=tree, shift_labels=labels, use_cache=False, fused_lm_head=True)
    out.log_probs.sum().backward()


def _prefill(core, dtype: torch.dtype, prompt: int, clips: int) -> None:
    mask = torch.ones(clips, 1, prompt, prompt, dtype=torch.bool)
    cache = DynamicCache(config=core.config)
    core(**_embeds(core, dtype, clips, prompt), attention_mask=mask, past_key_values=cache, logits_to_keep=1)


def _step(core, dtype: torch.dtype, traces: int) -> None:
    """The draw of a token for each trace, which takes more than the layers of one token."""
    logits = torch.zeros(traces, core.config.get_text_config().vocab_size, dtype=dtype)
    probs = logits.float().log_softmax(-1).clone().softmax(-1).double()
    probs.cumsum(-1)


class _Alive(TorchDispatchMode):
    """Bytes of tensors that were made while it is on and are alive, and the most there were at once."""

    def __init__(self, model: torch.nn.Module):
        """The tensors of `model` itself do not count."""
        super().__init__()
        self.now = self.most = 0
        tensors = (*model.parameters(), *model.buffers())
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, out)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._less, storage.nbytes())

    def _less(self, size: int) -> None:
        self.now -= size


def peak(model: torch.nn.Module, work: Callable[[], Any]) -> int:
    """Bytes at most of what is alive beside the model's own tensors while it works, on tensors real or not."""
    with _Alive(model) as alive:
        work()
    return alive.most
