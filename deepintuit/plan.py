"""What a config takes, known before its first hour: numbers trained, memory by part, updates, tokens, disk, time.

Nothing is loaded: shapes come from the checkpoint's config.json, or from those that are known here. Tokens are at
most, but for the question, of which `TEXT` are taken: clips as large as `video` allows, traces as long as they may be.
Run it:  deepintuit plan --config configs/qwen2.5-vl-7b-lora.toml --clips 10000 --gpus 8 --memory 80
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from deepintuit import ranks
from deepintuit.config import SPLITS, Config, ModelConfig, VideoConfig
from deepintuit.errors import ModelError
from deepintuit.schedule import fractions, of_calibrate, of_coldstart, of_grpo
from deepintuit.vlm.footprint import Footprint, Layers, published
from deepintuit.vlm.weights import located, read_config

TEXT = 150
"""Tokens of a prompt beside its clip: question, labels and marks of the chat."""
STAGES = {"coldstart": "cold start", "grpo": "GRPO", "calibrate": "calibration", "evaluate": "evaluation"}
"""Those that are planned, and what they are called here."""
_ROOM = 1.125
"""A cache has room for an eighth more."""
_USABLE = 0.85
"""What is left of free memory once an allocator has lost some between its blocks [R]."""
_SIZES = ("tokens_per_pass", "tokens_in_cache")
_LEAST = 1024
"""Tokens below which no pass or cache is made smaller without being asked to."""
_FORWARD = 3
"""Passes without gradients that take the time of a loss: forward once, backward twice (and with
model.gradient_checkpointing, forward again)."""
GIB = 2**30


@dataclass(frozen=True)
class Work:
    """One stage. `peaks`: GiB at most on one GPU of each part of the work, and the setting that lowers it. Tokens:
    `losses` go through the model with gradients, `reading` without, and `samples` are written, one after the other;
    `served` are written by a server, in its time and memory."""

    peaks: dict[str, tuple[float, str]] = field(default_factory=dict)
    updates: int = 0
    losses: int = 0
    reading: int = 0
    samples: int = 0
    served: int = 0

    def hours(self, rates: tuple[float, float], passes: int, gpus: int) -> float:
        """At so many tokens per second and GPU in losses, and in sampling."""
        return (self.losses / rates[0] + self.reading / rates[0] / passes + self.samples / rates[1]) / 3600 / gpus


@dataclass(frozen=True)
class Plan:
    """`disk`: GiB of all clips' features. `passes`: how many tokens are read in the time of one in a loss."""

    footprint: Footprint
    visual: int
    work: dict[str, Work]
    disk: float
    passes: int
    gpus: int

    def rows(self, memory: float | None = None, rates: tuple[float, float] | None = None) -> list[tuple[str, str]]:
        """Name and value of everything; with `memory` (GiB a GPU) whether each part fits, with `rates` (tokens per
        second and GPU of a loss, and of sampling) the hours."""
        size, rows = self.footprint, []
        share = f"{size.tower / 1e9:.2f} of them in the visual tower, frozen"
        rows.append(("parameters", f"{size.parameters / 1e9:.2f} billion, {share}"))
        rows.append(("trained", f"{size.trained / 1e6:,.1f} million"))
        rows.append(("visual tokens per clip", f"{self.visual:,} at most"))
        rows.append(("weights, and the optimizer's numbers", f"{_gib(size.weights)} + {_gib(size.optimizer)} GiB"))
        if size.held != size.weights + size.optimizer:
            rows.append(("both in training, weights divided", f"{_gib(size.held)} GiB"))
        for stage, work in self.work.items():
            hours = f", {work.hours(rates, self.passes, self.gpus):,.1f} hours" if rates else ""
            words = [f"{work.updates:,} updates"] if work.updates else []
            tokens_of = {"in losses": work.losses, "read": work.reading, "sampled": work.samples}
            tokens_of["sampled by the server, beside the hours here"] = work.served
            for what, tokens in tokens_of.items():
                words += [f"{tokens / 1e6:,.1f} million tokens {what}"] if tokens else []
            rows.append((STAGES[stage], ", ".join(words) + hours))
            for part, (peak, setting) in work.peaks.items():
                fits = "" if memory is None else ": fits" if peak <= memory else f": too much, lower {setting}"
                rows.append((f"  peak of {part}", f"{peak:.1f} GiB{fits}"))
        return [*rows, ("features on disk", f"{self.disk:,.1f} GiB")]


def memory_here() -> float | None:
    """GiB of the GPU at hand that nobody uses; None where there is none."""
    return torch.cuda.mem_get_info()[0] / GIB if torch.cuda.is_available() else None


def split(config: Config, clips: int) -> dict[str, int]:
    """So many clips by split."""
    return {name: round(share * clips) for name, share in fractions(config).items()}


def plan_of(
    config: Config,
    counts: Mapping[str, int],
    stage: str = "",
    *,
    gpus: int = 1,
    rows: int = 0,
    size: Footprint | None = None,
) -> Plan:
    """Of one stage, or all, on so many clips of each split; `rows`: how many traces cold start learns from, where that
    is known. Raises `ModelError` where the checkpoint's shape cannot be had."""
    size, visual = (size, _visual_tokens(size.config.vision_config, config.video)) if size else _sized(config, gpus)
    work, counts = {}, Counter(counts)
    for name in [stage] if stage else STAGES:
        work[name] = _Planner(config, size, visual + TEXT, counts, gpus).of(name, rows)
    disk = sum(counts.values()) * _feature_bytes(size.config, config, visual) / GIB
    return Plan(size, visual, work, disk, _FORWARD + config.model.gradient_checkpointing, gpus)


@dataclass(frozen=True)
class _Planner:
    config: Config
    size: Footprint
    prompt: int
    counts: Mapping[str, int]
    gpus: int

    def of(self, stage: str, rows: int) -> Work:
        if stage == "coldstart":
            return self._coldstart(rows)
        return {"grpo": self._grpo, "calibrate": self._calibrate, "evaluate": self._evaluate}[stage]()

    def _coldstart(self, rows: int) -> Work:
        settings, length = self.config.coldstart, self.config.sampling.max_tokens
        rows = rows or max(1, sum(self.counts.get(split, 0) for split in settings.splits))
        planned = of_coldstart(settings, min(rows, settings.limit or rows))
        lost = planned.updates * planned.batch * (self.prompt + length)
        return Work(self._losses(planned.batch, 1, length), planned.updates, lost)

    def _grpo(self) -> Work:
        settings, clips = self.config.grpo, max(1, self.counts["grpo"])
        planned, group, length = of_grpo(settings, clips), settings.group, settings.max_tokens
        visits = planned.updates * planned.batch  # clips, as often as they are
        first = settings.filter_rollouts * clips + group * min(settings.check_clips, clips)  # traces before training
        tree = self._tokens(group, length)
        peaks = self._losses(planned.batch, group, length)
        if here := settings.sampler == "local":
            together = max(planned.batch, self.config.sampling.clips_per_batch * (first > 0))
            peaks |= self._sampling(together, max(group, settings.filter_rollouts), length, trained=True)
        prompts = here * (visits + clips * (settings.filter_rollouts > 0)) * self.prompt
        prompts, samples = prompts + (settings.beta > 0) * visits * tree, (visits * group + first) * length
        return Work(peaks, planned.updates, visits * tree, prompts, here * samples, (not here) * samples)

    def _calibrate(self) -> Work:
        settings, length = self.config.calibrate, self.config.sampling.max_tokens
        each, clips = settings.traces + settings.greedy_trace, max(1, self.counts["calibration"])
        planned = of_calibrate(settings, each * clips)
        together = planned.batch // each if planned.batch >= 16 * each else 0  # else a row of a clip stands alone
        peaks = self._losses(together or planned.batch, each if together else 1, length)
        group = settings.traces + 1
        peaks |= self._sampling(self.config.sampling.clips_per_batch, group, length, trained=False)
        clips += self.counts["validation"]
        lost = planned.updates * planned.batch * (self.prompt + length)
        checks = math.ceil(settings.epochs) * self.counts["validation"] * (settings.patience > 0)
        prompts = clips * self.prompt + (checks + self.counts["validation"] * group) * (self.prompt + length)
        return Work(peaks, planned.updates, lost, prompts, clips * group * length)

    def _evaluate(self) -> Work:
        settings, length = self.config.evaluate, self.config.sampling.max_tokens
        clips, group = self.counts[settings.split], 1 + (settings.traces if settings.traces > 1 else 0)
        frozen = Footprint(self.size.config, self.config.model, trainable=False)
        models = 1 if self.config.model.lora_rank else 2  # reasoner and calibrator: adapters share their base
        base = models * frozen.weights + 8 * self.size.trained * (models == 1)
        peaks = self._sampling(self.config.sampling.clips_per_batch, group, length, size=frozen, base=base)
        looks = 1 + 4 * settings.controls  # the row, and what is shown otherwise
        return Work(peaks, 0, 0, clips * (self.prompt + looks * (self.prompt + length)), clips * group * length)

    def _tokens(self, traces: int, length: int) -> int:
        """Of a clip's rows."""
        return (self.prompt if self.size.shares else traces * self.prompt) + traces * length

    def _losses(self, clips: int, traces: int, length: int) -> dict[str, tuple[float, str]]:
        """Of the largest part of this GPU's share of a batch (`prefix.in_parts`)."""
        most, behind = self.config.model.tokens_per_pass, length if self.size.shares else self.prompt + length
        fitting = max(1, min(traces, most // behind))
        clips = min(math.ceil(clips / self.gpus), max(1, most // self._tokens(fitting, length)))
        loss = self.size.loss(prompt=self.prompt, traces=fitting, trace_tokens=length, clips=clips)
        return {"losses": ((self.size.held + loss) / GIB, "model.tokens_per_pass")}

    def _sampling(
        self,
        clips: int,
        traces: int,
        length: int,
        trained: bool = False,
        size: Footprint | None = None,
        base: int | None = None,
    ) -> dict[str, tuple[float, str]]:
        """Of one round (`sampling._rounds`), behind an update if `trained`."""
        model, size = self.config.model, size or self.size
        base = size.weights + size.optimizer * trained if base is None else base
        fitting = max((n for n in range(1, traces + 1) if self._tokens(n, length) <= model.tokens_in_cache), default=1)
        tokens = self._tokens(fitting, length)
        clips = max(1, min(math.ceil(clips / self.gpus), model.tokens_in_cache // tokens))
        rows = clips * (1 if size.shares else fitting)
        prompts = clips if size.cache_row else max(1, min(clips, model.tokens_per_pass // self.prompt))
        cache = size.cache_token * clips * tokens * _ROOM + size.cache_row * rows
        prefill = size.prefill(self.prompt, prompts) + size.cache_token * (clips - prompts) * self.prompt
        return {
            "prefill": ((base + prefill) / GIB, "model.tokens_in_cache" if size.cache_row else "model.tokens_per_pass"),
            "sampling": ((base + cache + size.step(clips * fitting)) / GIB, "model.tokens_in_cache"),
        }


def fitted(config: Config, stage: str, log: Callable[[str], None]) -> ModelConfig:
    """The model's settings for one stage on the GPU at hand: where nobody gave them, `tokens_per_pass` and
    `tokens_in_cache` halved until the stage fits into its free memory. They change what the work costs, and not what
    comes of it. As they are on a CPU, and where the shape is not known."""
    memory, size, halved = memory_here() if config.model.device != "cpu" else None, None, set()
    while memory is not None:
        try:
            size = size or _sized(config, ranks.count())[0]
            planned = plan_of(config, dict.fromkeys(SPLITS, 1_000), stage, gpus=ranks.count(), size=size)
        except ModelError as error:
            log(f"Memory is not known before: {error}")
            break
        over = {setting for peak, setting in planned.work[stage].peaks.values() if peak > memory * _USABLE}
        free = [name for name in _SIZES if name in halved or not config.is_given(f"model.{name}")]
        lower = {name: getattr(config.model, name) // 2 for name in free if f"model.{name}" in over}
        lower = {name: value for name, value in lower.items() if value >= _LEAST}
        if not lower:
            break
        config, halved = config.replace(model=lower), halved | lower.keys()
    if halved:
        sizes = ", ".join(f"model.{name} = {getattr(config.model, name)}" for name in sorted(halved))
        rest = " Even so it is planned to take more." if over else ""
        log(f"For {memory:.0f} GiB of free GPU memory: {sizes}.{rest}")
    return config.model


def measured(config: Config, seconds: float = 60) -> tuple[float, float]:
    """Tokens per second of a loss and of sampling, on the GPU at hand or this CPU, in about so many seconds: of a few
    layers at the true width, with weights that mean nothing, carried on to all of them. Where the machine is slow, of a
    clip's prompt and traces as much shorter. Raises `ModelError` for 4-bit weights."""
    if config.model.quantize != "none":
        raise ModelError(
            f"model.quantize = {config.model.quantize!r}",
            "a measurement has no weights to quantise",
            "Measure with model.quantize=none, or give --throughput",
        )
    size, visual = _sized(config)
    device = torch.device("cuda" if torch.cuda.is_available() and config.model.device != "cpu" else "cpu")
    prompt, group, length = visual + TEXT, config.grpo.group, config.grpo.max_tokens

    def spent(work: Callable[[], object]) -> float:
        work()  # warm
        started = _now()
        work()
        return _now() - started

    def lost(layers: Layers, part: int) -> float:
        return spent(lambda: layers.pass_back(prompt // part, group, max(1, length // part), 1))

    def sampled(layers: Layers, clips: int, tokens: int) -> float:
        rows, slots = (clips, group) if size.shares else (clips * group, 1)
        cache = layers.read(tokens, rows)
        return spent(lambda: (layers.write(cache, rows, slots), layers.draw(clips * group)))

    part = 64  # of the true lengths, taken while a pass is short
    while part > 1 and lost(size.few(device), part) < seconds / 40:
        part //= 2
    tokens = prompt // part + group * max(1, length // part)
    tokens += 0 if size.shares else (group - 1) * (prompt // part)
    clips = max(1, min(config.grpo.clips_per_step, config.model.tokens_in_cache // (prompt + group * length)))
    prompts = max(1, min(prompt // part, config.model.tokens_per_pass // clips))
    losses = size.whole(lambda layers: lost(layers, part), device)
    return tokens / losses, clips * group / size.whole(lambda layers: sampled(layers, clips, prompts), device)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _sized(config: Config, gpus: int = 1) -> tuple[Footprint, int]:
    """The model, and visual tokens of a clip at most."""
    shape = published(config.model.path) or read_config(located(config.model.path, text_only=True))
    return Footprint(shape, config.model, processes=gpus), _visual_tokens(shape.vision_config, config.video)


def _visual_tokens(vision, video: VideoConfig) -> int:
    side = vision.patch_size * vision.spatial_merge_size
    layers = math.ceil(video.frames / vision.temporal_patch_size)
    a_frame = video.max_pixels // side**2
    return layers * max(1, min(a_frame, video.max_tokens // layers) if video.max_tokens else a_frame)


def _feature_bytes(shape, config: Config, visual: int) -> int:
    deep = len(getattr(shape.vision_config, "deepstack_visual_indexes", None) or ())
    return visual * shape.get_text_config().hidden_size * (1 + deep) * (4 if config.model.dtype == "float32" else 2)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
