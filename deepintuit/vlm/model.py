"""Load a Qwen-VL, with or without an adapter, and build its inputs from encoded clips.

Nothing here knows which checkpoint it holds: the embedded tiny model and a 7B hub folder go through the same lines, and
what differs between families stands in `families`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import torch
import transformers
from trl.trainer.utils import add_fused_lm_head

from deepintuit import disk, ranks
from deepintuit.config import ModelConfig, VideoConfig
from deepintuit.errors import ModelError
from deepintuit.vlm.attention import see_trees
from deepintuit.vlm.clips import ClipEncoder, EncodedClip, stack_features
from deepintuit.vlm.families import FAMILIES, Family, can_share, family_of
from deepintuit.vlm.memory import within_memory
from deepintuit.vlm.precision import evaluating, round_in_forward
from deepintuit.vlm.weights import (
    ADAPTER_CONFIG,
    WHOLE_AGAIN,
    fill_adapter,
    hold_to_base,
    hold_to_numbers,
    located,
    read_config,
    read_model,
    reading,
    record_base,
)


@dataclass(frozen=True)
class Example:
    """A clip, a prompt, and for training the target that the assistant is to write (without the end token)."""

    clip: EncodedClip
    prompt: str
    target: str = ""


class Bases:
    """Frozen weights in memory, and the adapters over them, of which one is active at a time.

    `alike`: what two models must have in common to share them. `users`: who is there still, by the adapter's name; the
    adapter of one that is gone is removed when the next one comes.
    """

    def __init__(self, alike: tuple, core: torch.nn.Module, peft: torch.nn.Module | None, active: str | None):
        self.alike, self.core, self.peft, self.active = alike, core, peft, active
        self.users: WeakValueDictionary[str, VLM] = WeakValueDictionary()
        self.numbers = itertools.count(1)

    def add(self, name: str, family: Family, adapter: Path) -> None:
        from peft import get_peft_model

        shape = _shape(adapter, trainable=False)
        if self.peft is None:
            self.peft = get_peft_model(self.core, shape, name)
        else:
            for unused in set(self.peft.peft_config) - set(self.users):
                self.peft.delete_adapter(unused)
            self.peft.add_adapter(name, shape)
        _hold_to_language(self.peft, family, str(adapter))
        fill_adapter(self.peft, adapter, name)
        hold_to_numbers(self.peft, str(adapter))
        round_in_forward(self.peft)
        self._activate(self.active)

    @contextmanager
    def under(self, adapter: str | None) -> Iterator[None]:
        before = self.active
        try:
            self._activate(adapter)
            yield
        finally:
            self._activate(before)

    def _activate(self, adapter: str | None) -> None:
        if self.peft is not None and adapter is None:
            self.peft.base_model.disable_adapter_layers()
        elif self.peft is not None and adapter in self.peft.peft_config:
            self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(adapter)
        self.active = adapter


_PROBE = "What happens here?"


class VLM:
    """A reasoner or calibrator in memory: `model`, `processor`, and the encoder of clips. Use `VLM.load`."""

    base: tuple[str, Path] | None = None
    """The `model.path` under an adapter, and where that lies."""
    bases: Bases | None = None
    """Where its weights are frozen: who else has them in memory, each with an adapter of its own."""
    adapter: str | None = None
    divides = False
    """Whether several processes that train it divide its weights (`divided`)."""
    counts_from_time = False
    """Text behind a clip counts on from its last moment, as Qwen2.5-VL was published and vLLM's own code for it does;
    else from the longer side of its frames, as the `get_rope_index` of transformers does since 5.3."""

    def __init__(self, model, processor, video: VideoConfig, cache: Path | None, name: str):
        self.model, self.processor, self.tokenizer, self.name = model, processor, processor.tokenizer, name
        self.family = FAMILIES[self.core.config.model_type]
        self.encoder = ClipEncoder(processor, self.core, self.family, video, cache)
        self.shares_prefix = False
        self.tokens_per_pass, self.tokens_in_cache = ModelConfig().tokens_per_pass, ModelConfig().tokens_in_cache
        self.stop_ids = self._stop_ids()
        self.silenced = sorted(
            {i for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
             if (i := getattr(self.core.config, name, None)) is not None}
        )  # fmt: skip

    def forgetful(self) -> VLM:
        """The same model with an encoder that keeps nothing."""
        vlm = copy.copy(self)
        vlm.encoder = self.encoder.forgetful()
        return vlm

    @classmethod
    def load(
        cls,
        settings: ModelConfig,
        video: VideoConfig,
        *,
        checkpoint: Path | None = None,
        cache: Path | None = None,
        trainable: bool = False,
        beside: VLM | None = None,
        weights: bool = True,
    ) -> VLM:
        """The model at `settings.path`, or with the weights of a run's `checkpoint` (full weights or an adapter).

        `trainable` makes the adapter (LoRA) or the language model (full) require gradients; the visual tower, merger
        included, never does. A new adapter is drawn from torch's random state. A frozen model that differs from the
        one `beside` in its adapter alone takes its weights and encoder. Without `weights` it can write prompts and read
        clips, and nothing else. Raises `ModelError` when the folder is no such checkpoint.
        """
        adapter = checkpoint is not None and (checkpoint / ADAPTER_CONFIG).exists()
        whole = checkpoint if checkpoint is not None and not adapter else None
        if trainable and settings.lora_rank and whole:
            raise ModelError(
                f"model.lora_rank = {settings.lora_rank} on {str(whole)!r}",
                "that run holds full weights, and a later load would lay the adapter over model.path instead",
                "Give the folder as model.path, or set model.lora_rank=0",
            )
        device = device_of(settings.device)
        config = read_config(whole or located(settings.path, text_only=True))
        family = family_of(config, str(whole or settings.path))
        base = whole or located(settings.path, text_only=not weights)
        processor = read_processor(base, config, family)
        if not weights:
            with torch.device("meta"):
                model = transformers.AutoModelForImageTextToText.from_config(config)
            return cls(model, processor, video, cache, settings.path)
        if adapter:
            hold_to_base(checkpoint, settings.path, base)
        alike = base, {name: value for name, value in settings.decisive().items() if "lora" not in name}, video
        if beside is not None and not trainable and beside.bases and beside.bases.alike == alike:
            return beside._with(checkpoint if adapter else None)
        extra = {}
        if settings.quantize == "4bit":
            extra["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
                llm_int8_skip_modules=[rf"model\.{family.tower}", "lm_head"],  # features stay those of other runs
            )
        dtype = "float32" if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
        try:
            attention = {"": settings.attention, "vision_config": settings.tower_attention}
            smaller = "Set model.quantize=4bit and model.lora_rank, or give a smaller checkpoint"
            with within_memory(f"loading {str(base)!r}", smaller):
                model = read_model(base, dtype=dtype, attn_implementation=attention, **extra)
                if settings.quantize == "none":
                    model.to(device)
        except ImportError as error:
            raise ModelError(
                f"model.quantize = {settings.quantize!r}, model.attention = {settings.attention!r} and "
                f"model.tower_attention = {settings.tower_attention!r}",
                str(error).strip().splitlines()[0],
                "Install that package, or set model.quantize=none, model.attention=sdpa and model.tower_attention=sdpa",
            ) from error
        model = adapted(model, family, settings, checkpoint if adapter else None, trainable)
        hold_to_numbers(model, str(checkpoint or settings.path))
        round_in_forward(model)
        vlm = cls(model, processor, video, cache, str(checkpoint or settings.path))
        vlm.base = settings.path, base
        vlm.divides = trainable and settings.divide_weights and ranks.count() > 1
        if not trainable:
            vlm.adapter = "default" if adapter else None
            vlm.bases = Bases(alike, vlm.core, model if adapter else None, vlm.adapter)
            vlm.bases.users[vlm.adapter or ""] = vlm
        vlm.tokens_per_pass, vlm.tokens_in_cache = settings.tokens_per_pass, settings.tokens_in_cache
        if settings.share_prefix and settings.attention == "sdpa" and can_share(config):
            see_trees(vlm.core)
            vlm.shares_prefix = True
        # Beside its own forward: log-probabilities of chosen tokens without the logits of a whole vocabulary.
        add_fused_lm_head(vlm.core)
        return vlm

    def _with(self, adapter: Path | None) -> VLM:
        """The same weights in memory under another adapter, or none."""
        vlm, bases = copy.copy(self), self.bases
        vlm.name, vlm.adapter = str(adapter or self.base[0]), None
        if adapter is not None:
            vlm.adapter = f"over-{next(bases.numbers)}"
            bases.add(vlm.adapter, self.family, adapter)
        bases.users[vlm.adapter or ""] = vlm
        return vlm

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients, under this model's own adapter (`precision.evaluating`)."""
        with self.bases.under(self.adapter) if self.bases else nullcontext(), evaluating(self.model):
            yield

    @property
    def core(self):
        """The transformers model under any adapter."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def has_weights(self) -> bool:
        return not self.encoder.without_tower

    @property
    def dtype(self) -> torch.dtype:
        """The number type that every forward pass computes in, and whole weights are saved in: see `precision`."""
        return self.core.dtype

    @property
    def device(self) -> torch.device:
        return self.core.device

    def save(self, folder: Path, about: Mapping[str, str]) -> None:
        """Weights as safetensors (adapter only, if there is one), processor and a model card: a hub folder.

        Whole weights are saved as forward passes read them, an adapter's as they are held.
        """
        with disk.naming(folder):
            if hasattr(self.model, "peft_config"):
                for shape in self.model.peft_config.values():
                    shape.base_model_name_or_path = str(self.base[self.base[0].startswith("embedded:")])
                # The adapter alone: else peft asks the hub whether the base has gained tokens.
                self.model.save_pretrained(folder, save_embedding_layers=False)
                record_base(folder, *self.base)
            else:
                state = self.model.state_dict().items()
                rounded = {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in state}
                self.model.save_pretrained(folder, state_dict=rounded)
            self.processor.save_pretrained(folder)
        lines = [f"- {name}: {value}" for name, value in about.items()]
        facts = (
            "library_name: transformers",
            "pipeline_tag: video-text-to-text",
            "tags: [deepintuit, video-classification]",
        )
        header = "\n".join(["---", *facts, "---", ""])
        (folder / "README.md").write_text(
            "\n".join([f"{header}# {about.get('run', folder.name)}\n", *lines, ""]), encoding="utf-8"
        )
        disk.fsync_tree(folder)

    def prompt_ids(self, clip: EncodedClip | None, prompt: str) -> list[int]:
        """Token ids of the user turn (the clip first, if there is one) and the opening of the assistant's turn."""
        content = [{"type": "video"}] if clip else []
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": harmless(prompt)}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        # A template may begin the answer as well (`<think>`): the grammar writes its own marks.
        text = text[: text.rindex(self.family.opening) + len(self.family.opening)]
        if clip is None:
            return self._tokens(text)
        before, _, after = text.partition(self.family.vision_block)
        return [*self._tokens(before), *clip.vision_ids, *self._tokens(after)]

    def target_ids(self, target: str) -> list[int]:
        """Token ids of what the assistant writes, with the end token that stops it."""
        return [*self._tokens(harmless(target)), self.tokenizer.eos_token_id]

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def inputs(
        self, clips: Sequence[EncodedClip | None], rows: Sequence[list[int]], *, side: str, pad_to: int = 0
    ) -> dict:
        """Model inputs for token rows padded on one side: ids, mask, features, grid, and 3-D positions worked out once.

        `position_ids` (3, B, L) come from the model's own `get_rope_index`; tokens after a prompt count on from its
        last one.
        """
        width = max(pad_to, max(map(len, rows)))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, tokens in enumerate(rows):
            place = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
            ids[row, place] = torch.tensor(tokens)
            mask[row, place] = 1
        return self.forward_inputs(clips, ids.to(self.device), mask.to(self.device))

    def forward_inputs(self, clips: Sequence[EncodedClip | None], ids: torch.Tensor, mask: torch.Tensor) -> dict:
        """As `inputs`, of token rows that are padded already. Rows without a clip (all None) are text alone."""
        if all(clip is None for clip in clips):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[None].expand(3, -1, -1)
            return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        grid = torch.stack([clip.grid_thw for clip in clips]).to(ids.device)
        seconds = torch.tensor([clip.seconds_per_grid for clip in clips], device=ids.device)
        kinds = (ids == self.core.config.video_token_id).int() * 2
        positions, _ = self.core.model.get_rope_index(
            ids, mm_token_type_ids=kinds, video_grid_thw=grid, second_per_grid_ts=seconds, attention_mask=mask
        )
        if self.counts_from_time:
            last_3_B = positions.masked_fill(kinds == 0, -1).amax(-1)
            behind_B_L = (kinds == 0) & (kinds.cumsum(1) == kinds.sum(1, keepdim=True))
            positions = positions + behind_B_L * (last_3_B[0] - last_3_B[1:].amax(0)).clamp(min=0)[:, None]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "mm_encoder_outputs": {"video": stack_features(list(clips), ids.device)},
        }

    def _stop_ids(self) -> list[int]:
        """Ids that end a trace, of this checkpoint's own tokenizer: another's would be `.` or `#`."""
        stops = {self.tokenizer.eos_token_id}
        listed = self.core.generation_config.eos_token_id
        stops |= set(listed if isinstance(listed, list) else [listed])
        return sorted(i for i in stops if i is not None)


def read_processor(folder: Path, config: transformers.PretrainedConfig, family: Family) -> transformers.ProcessorMixin:
    """The processor of a checkpoint. Raises `ModelError` unless template and tokens are what the model needs."""
    with reading(str(folder)):
        kind = getattr(transformers, family.processor)
        processor = kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = processor.tokenizer
        turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": _PROBE}]}
        text = ""
        if processor.chat_template:
            text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        pad = tokenizer.convert_tokens_to_ids("<|video_pad|>")
        rows = config.get_text_config().vocab_size
    if text.count(family.vision_block) != 1 or _PROBE not in text or family.opening not in text:
        raise ModelError(
            f"{str(folder)!r} has {'a chat template that writes ' + repr(text) if text else 'no chat template'}",
            f"a prompt is a clip ({family.vision_block}), a text, and the opening of the assistant's turn",
            "Copy chat_template.jinja (or .json) from the published checkpoint into the folder",
        )
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {str(folder)!r} has no {'pad' if tokenizer.pad_token_id is None else 'end'} token",
            "rows of a batch could not be padded, nor an answer be ended",
            "Copy tokenizer_config.json from the published checkpoint into the folder",
        )
    if pad != config.video_token_id or len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {str(folder)!r} has {len(tokenizer)} tokens, <|video_pad|> the {pad}th",
            f"its model has {rows}, and the video token is the {config.video_token_id}th: they are of two checkpoints",
            "Copy the tokenizer's files from the checkpoint that the weights are from",
        )
    return processor


def device_of(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"model.device = {name!r}",
            "torch finds no such device on this machine",
            "Use auto, cpu, or a cuda:N that `nvidia-smi` lists",
        ) from error


def harmless(text: str) -> str:
    """A text that cannot write the template's own marks, wherever it came from."""
    return text.replace("<|", "< |").replace("|>", "| >")


def _hold_to_language(model, family: Family, source: str) -> None:
    kinds = {str(shape.peft_type.value) for shape in model.peft_config.values()}
    in_tower = [name for name, _ in model.named_parameters() if "lora_" in name and f".{family.tower}." in name]
    if kinds != {"LORA"} or in_tower:
        raise ModelError(
            f"{source!r} is an adapter of kind {', '.join(kinds)}" + " of the visual tower" * bool(in_tower),
            "a clip's features are computed once, by the tower as it was published",
            "Give a LoRA adapter of the language model alone, as the stages make it",
        )


def _shape(adapter: Path, trainable: bool):
    """The shape of an adapter's LoRA; which base it is for was held before."""
    from peft import LoraConfig

    with reading(str(adapter), "LoRA adapter", WHOLE_AGAIN):
        shape = LoraConfig.from_pretrained(str(adapter))
    shape.inference_mode, shape.base_model_name_or_path = not trainable, None
    return shape


def adapted(model, family: Family, settings: ModelConfig, adapter: Path | None, trainable: bool):
    model.requires_grad_(False)
    if adapter is not None or (trainable and settings.lora_rank):
        from peft import LoraConfig, get_peft_model

        if adapter is not None:
            with reading(str(adapter), "LoRA adapter", WHOLE_AGAIN):
                model = get_peft_model(model, _shape(adapter, trainable))
            _hold_to_language(model, family, str(adapter))
            fill_adapter(model, adapter)
        else:
            shape = LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,
                lora_dropout=settings.lora_dropout,
                target_modules=family.lora_pattern,
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, shape)
    elif trainable:
        if settings.quantize != "none":
            raise ModelError(
                "4-bit weights cannot be trained in full", "their numbers are quantised", "Set model.lora_rank, e.g. 64"
            )
        if model.dtype == torch.float16:
            raise ModelError(
                "float16 weights cannot be trained in full",
                "their gradients underflow",
                "Set model.dtype=bfloat16 or model.lora_rank",
            )
        getattr(model.model, family.language).requires_grad_(True)
        model.lm_head.requires_grad_(True)
    if settings.gradient_checkpointing and trainable:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train(trainable)
