"""How much memory a model takes before it is there: its passes on tensors that have a shape and no numbers.

torch's fake tensors hold nothing, so layers of a 7B are built in a second on any machine. Losses, prefill and decoding
run on them through the same code as on real ones, what is alive at once is added up, and carried on from one layer of
each kind to all of them, by which it grows evenly. Not counted: the visual tower's pass (one
clip at a time, without gradients), and what an allocator loses between blocks (10 to 20 % on CUDA).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig
from transformers.cache_utils import DynamicCache
from trl.trainer.utils import add_fused_lm_head

from deepintuit.config import ModelConfig
from deepintuit.vlm.attention import Branch, Tree, see_trees
from deepintuit.vlm.families import FULL, RECURRENT, can_share, family_of, layer_types
from deepintuit.vlm.model import adapted
from deepintuit.vlm.precision import round_in_forward

_NF4 = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits: half of one, and a float32 scale for each 64."""
_ADAM = 8
"""Bytes that the optimizer keeps for each trained number: two in float32."""

_QWEN3 = {"num_key_value_heads": 8, "num_attention_heads": 32, "head_dim": 128, "num_hidden_layers": 36}
_QWEN35 = {"num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
           "linear_num_key_heads": 16, "linear_num_value_heads": 32, "vocab_size": 248320}  # fmt: skip
SHAPES: dict[str, tuple[str, bool, dict[str, Any], dict[str, Any]]] = {
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
    "Qwen/Qwen3.5-4B": (
        "qwen3_5", True,
        {"hidden_size": 2560, "intermediate_size": 9216, **_QWEN35},
        {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16, "out_hidden_size": 2560},
    ),
    "Qwen/Qwen3.5-9B": (
        "qwen3_5", False,
        {"hidden_size": 4096, "intermediate_size": 12288, **_QWEN35},
        {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16, "out_hidden_size": 4096},
    ),
}  # fmt: skip
"""Name on the hub → family, whether head and embeddings are one, and what its config.json says of text and vision."""


def published(path: str) -> PretrainedConfig | None:
    """The configuration of a published checkpoint whose shape is known here, without a network."""
    if path not in SHAPES:
        return None
    kind, tied, text, vision = SHAPES[path]
    return AutoConfig.for_model(kind, text_config=text, vision_config=vision, tie_word_embeddings=tied)


class Footprint:
    """A model in memory, in training with these settings (or frozen): numbers and bytes.

    `trained`: numbers that training changes, held in float32. `weights`: bytes of the model. `optimizer`: bytes kept
    for what is trained. `held`: both in training, of which each of `processes` may have a part alone. `cache_token`:
    bytes of one token of one row in the cache; `cache_row`: of a row, whatever its tokens (the states of recurrent
    layers). `loss`, `prefill`, `step`: bytes at most beside the weights.
    """

    def __init__(self, config: PretrainedConfig, settings: ModelConfig, *, trainable: bool = True, processes: int = 1):
        self.config, self.settings, self.trainable = config, settings, trainable
        family = family_of(config, settings.path)
        self.shares = can_share(config) and settings.share_prefix and settings.attention == "sdpa"
        self.dtype = {"float32": torch.float32, "float16": torch.float16}.get(settings.dtype, torch.bfloat16)
        self._few: dict[tuple[str, ...], Layers] = {}
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=self.dtype)
            self.parameters, self.tower = _numbers(model), _numbers(getattr(model.model, family.tower))
            language = getattr(model.model, family.language)
            layers = _numbers(language.layers)
            linear = sum(module.weight.numel() for module in language.modules() if isinstance(module, torch.nn.Linear))
            model = adapted(model, family, settings.replace(quantize="none"), None, trainable=trainable)
            round_in_forward(model)
        self.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.weights = sum(p.numel() * p.element_size() for p in model.parameters())
        if settings.quantize == "4bit":
            self.weights -= int(linear * (self.dtype.itemsize - _NF4))
        divides = trainable and settings.divide_weights and processes > 1
        self.optimizer = _ADAM * self.trained // (processes if divides else 1)
        self.held, self.gradients = self.weights + self.optimizer, 4 * self.trained
        if divides:  # beside all weights in the type of passes, and those of a pass, with their gradients
            self.held += self.dtype.itemsize * self.trained + 4 * self.trained // processes - 4 * self.trained
            gathered = self.trained - layers + 2 * layers // len(language.layers)
            self.gradients = 4 * self.trained // processes + 2 * self.dtype.itemsize * gathered
        text, kinds = config.get_text_config(), layer_types(config)
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        keeps = len(kinds) - kinds.count(RECURRENT)
        self.cache_token = 2 * keeps * text.num_key_value_heads * width * self.dtype.itemsize
        self.cache_row = kinds.count(RECURRENT) and kinds.count(RECURRENT) * self._layers(RECURRENT).state()
        # Seconds each, and asked again for every setting that is tried.
        self.loss, self.prefill, self.step = cache(self.loss), cache(self.prefill), cache(self.step)

    def loss(self, *, prompt: int, traces: int, trace_tokens: int, clips: int = 1) -> int:
        """Of forward and backward of one part, so many traces behind each of its clips' prompts, beside the gradients
        of the parts before it."""
        shape = prompt, traces, trace_tokens, clips
        return self.gradients + int(self.whole(lambda layers: layers.peak(lambda: layers.pass_back(*shape))))

    def prefill(self, prompt: int, clips: int) -> int:
        """Of the prompts of one pass, their cache included."""
        return int(self.whole(lambda layers: layers.peak(lambda: layers.read(prompt, clips))))

    def step(self, traces: int) -> int:
        """Of one token for each of so many traces, beside their cache: the layers, or the draw."""

        def most(layers: Layers) -> int:
            with layers:
                cache = layers.read(1, traces)
            return layers.peak(lambda: layers.write(cache, traces), _tensors(cache))

        return max(int(self.whole(most)), self.few().peak(lambda: self.few().draw(traces)))

    def whole(self, take: Callable[[Layers], float], device: torch.device | None = None) -> float:
        """What `take` says of two layers, or one of each kind, and of one more, carried on to all of them: memory and
        time grow by as much with each layer."""
        kinds, few = layer_types(self.config), self._kinds()
        base = total = take(self.few(device))
        for kind in dict.fromkeys(kinds):
            if more := kinds.count(kind) - few.count(kind):
                total += more * max(0.0, take(self._layers(kind, *few, device=device)) - base)
        return total

    def few(self, device: torch.device | None = None) -> Layers:
        """The two layers, or one of each kind, on which `whole` stands."""
        return self._layers(*self._kinds(), device=device)

    def _kinds(self) -> list[str]:
        kinds = layer_types(self.config)
        return [*dict.fromkeys(kinds)] if len(set(kinds)) > 1 else kinds[:2]

    def _layers(self, *kinds: str, device: torch.device | None = None) -> Layers:
        if (kinds, device) not in self._few:
            self._few[kinds, device] = Layers(self, kinds, device)
        return self._few[kinds, device]


class Layers:
    """A model of some layers only, of these kinds: on tensors that have a shape and no numbers, or, with a `device`,
    there, with weights that mean nothing."""

    def __init__(self, of: Footprint, kinds: Sequence[str], device: torch.device | None):
        config = copy.deepcopy(of.config)
        text = config.get_text_config()
        text.num_hidden_layers = len(kinds)
        if getattr(text, "layer_types", None):
            text.layer_types = list(kinds)
        config.vision_config.depth = 1
        self.shares, self.dtype, self.recurrent = of.shares, of.dtype, RECURRENT in kinds
        self.device, self._mode = device or torch.device("cpu"), nullcontext() if device else FakeTensorMode()
        kernel = "eager" if of.settings.attention == "eager" else "sdpa"
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=of.dtype, attn_implementation=kernel)
            settings = of.settings.replace(quantize="none")
            self.model = adapted(model, family_of(config, settings.path), settings, None, trainable=of.trainable)
            round_in_forward(self.model)
        with self:
            _placed(self.model, self.device, filled=device is not None)
        self.core = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if self.shares:
            see_trees(self.core)
        add_fused_lm_head(self.core)

    def __enter__(self) -> Layers:
        self._mode.__enter__()
        return self

    def __exit__(self, *raised) -> None:
        self._mode.__exit__(*raised)

    def pass_back(self, prompt: int, traces: int, trace_tokens: int, clips: int) -> None:
        """Forward and backward of one part, as `prefix.pack` lays the rows of clips; gradients add to what is there."""
        tokens = clips * (prompt + traces * trace_tokens)
        shape = (1, tokens) if self.shares else (clips * traces, prompt + trace_tokens)
        inputs = self._embeds(*shape)
        inputs["inputs_embeds"].requires_grad_(True)
        if self.shares:
            none, before = (torch.zeros(n, dtype=torch.long, device=self.device) for n in (0, prompt))
            visible = torch.ones(trace_tokens, prompt + trace_tokens, dtype=torch.bool, device=self.device)
            branches = [Branch(prompt, none, None), *[Branch(trace_tokens, before, visible)] * traces]
            inputs |= {"tree": Tree((tuple(branches),) * clips)}
            inputs |= {"attention_mask": torch.zeros(1, 1, 1, 1, device=self.device)}
        else:
            inputs |= {"attention_mask": self._mask(shape[0], shape[1], shape[1])}
        labels = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.model.train()
        out = self.core(**inputs, shift_labels=labels, use_cache=False, fused_lm_head=True)
        out.log_probs.sum().backward()

    @torch.no_grad()
    def read(self, prompt: int, clips: int) -> DynamicCache:
        """The cache of these prompts."""
        self.model.eval()
        cache, mask = DynamicCache(config=self.core.config), self._mask(clips, prompt, prompt)
        self.core(**self._embeds(clips, prompt), attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        return cache

    @torch.no_grad()
    def write(self, cache: DynamicCache, rows: int, slots: int = 1) -> None:
        """One step of decoding behind a cache: a token in each slot of each row."""
        self.model.eval()
        mask = self._mask(rows, slots, cache.get_seq_length() + slots)
        self.core(**self._embeds(rows, slots), attention_mask=mask, past_key_values=cache, use_cache=True)

    @torch.no_grad()
    def draw(self, traces: int) -> None:
        """The next token of each."""
        vocabulary = self.core.config.get_text_config().vocab_size
        logits = torch.zeros(traces, vocabulary, dtype=self.dtype, device=self.device)
        logits.float().log_softmax(-1).clone().softmax(-1).double().cumsum(-1)

    def state(self) -> int:
        """Bytes of a row that are kept in place of its tokens."""
        with self:
            cache = self.read(1, 1)
        return sum(tensor.nbytes for tensor in _tensors(cache))

    def peak(self, work: Callable[[], Any], cache: Iterable[torch.Tensor] = ()) -> int:
        """Bytes at most beside the weights and their gradients."""
        with self:
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            most = peak(self.model, work, cache)
        self.model.zero_grad()
        return most

    def _mask(self, rows: int, queries: int, keys: int) -> Any:
        mask = torch.ones(rows, 1, queries, keys, dtype=torch.bool, device=self.device)
        return {FULL: mask, RECURRENT: None} if self.recurrent else mask

    def _embeds(self, rows: int, tokens: int) -> dict[str, Any]:
        hidden = self.core.config.get_text_config().hidden_size
        places = torch.zeros(3, rows, tokens, dtype=torch.long, device=self.device)
        embeds = torch.zeros(rows, tokens, hidden, dtype=self.dtype, device=self.device)
        return {"inputs_embeds": embeds, "position_ids": places}


def _tensors(cache: DynamicCache) -> list[torch.Tensor]:
    values = [value for layer in cache.layers for value in vars(layer).values()]
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _placed(model: torch.nn.Module, device: torch.device, filled: bool) -> None:
    """Its tensors on a device (as fake ones of a CPU, where that mode is on) in place of those without one, which have
    kernels of their own."""
    places: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None and id(old) not in places:
                    new = torch.empty(old.shape, dtype=old.dtype, device=device)
                    new = new.fill_(0.01) if filled else new  # what lies in memory may be slow to compute with
                    places[id(old)] = torch.nn.Parameter(new, old.requires_grad) if table is module._parameters else new
                table[name] = old if old is None else places[id(old)]


def _numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _Alive(TorchDispatchMode):
    """Bytes of tensors that were made while it is on and are alive, and the most there were at once."""

    def __init__(self, model: torch.nn.Module, cache: Iterable[torch.Tensor]):
        """The tensors of `model` and their gradients do not count; of those of the `cache`, what is let go does."""
        super().__init__()
        self.now = self.most = 0
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)
        for tensor in cache:
            self._add(tensor)
        self.begun = self.most

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


def peak(model: torch.nn.Module, work: Callable[[], Any], cache: Iterable[torch.Tensor] = ()) -> int:
    """Bytes at most of what is alive beside the model's own tensors, gradients and the `cache`, while it works, on
    tensors real or not."""
    with _Alive(model, cache) as alive:
        work()
    return alive.most - alive.begun
