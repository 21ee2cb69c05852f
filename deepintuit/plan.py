"""What a config takes, known before its first hour: numbers trained, memory by part, updates, tokens, disk, time.

Nothing is loaded: shapes come from the checkpoint's config.json, or from those that are known here. Tokens are at
most, but for the question, of which `TEXT` are taken: clips as large as `video` allows, traces as long as they may be.
Run it:  deepintuit plan --config configs/qwen2.5-vl-7b-lora.toml --clips 10000 --memory 80
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deepintuit.config import Config, VideoConfig
from deepintuit.schedule import fractions, of_calibrate, of_coldstart, of_grpo
from deepintuit.vlm.footprint import Footprint, footprint, published
from deepintuit.vlm.weights import located, read_config

TEXT = 150
"""Tokens of a prompt beside its clip: question, labels and marks of the chat."""
_ROOM = 1.125
"""A cache has room for an eighth more."""
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """`peaks`: GiB at most of each part of the work, and the setting that lowers it. `updates`, `loss_tokens` and
    `sampled`: by stage; tokens that a loss sends through the model, and those that are written. `disk`: GiB of all
    clips' features."""

    footprint: Footprint
    visual: int
    peaks: dict[str, tuple[float, str]]
    updates: dict[str, int]
    loss_tokens: dict[str, int]
    sampled: dict[str, int]
    disk: float

    def rows(self, memory: float | None = None, rates: tuple[float, float] | None = None) -> list[tuple[str, str]]:
        """Name and value of everything; with `memory` (GiB) whether each part fits, with `rates` (tokens per second of
        a loss, and of sampling) the hours."""
        size, rows = self.footprint, []
        share = f"{size.tower / 1e9:.2f} of them in the visual tower, frozen"
        rows.append(("parameters", f"{size.parameters / 1e9:.2f} billion, {share}"))
        rows.append(("trained", f"{size.trained / 1e6:,.1f} million"))
        rows.append(("visual tokens per clip", f"{self.visual:,} at most"))
        rows.append(("weights, and the optimizer's numbers", f"{_gib(size.weights)} + {_gib(size.optimizer)} GiB"))
        for part, (peak, setting) in self.peaks.items():
            fits = "" if memory is None else ": fits" if peak <= memory else f": too much, lower {setting}"
            rows.append((f"peak of {part}", f"{peak:.1f} GiB{fits}"))
        for stage, updates in self.updates.items():
            trained, tokens = self.loss_tokens[stage], self.sampled.get(stage, 0)
            hours = f", {(trained / rates[0] + tokens / rates[1]) / 3600:,.1f} hours" if rates else ""
            sampled = f", {tokens / 1e6:,.1f} million sampled" if tokens else ""
            rows.append((stage, f"{updates:,} updates, {trained / 1e6:,.1f} million tokens in losses{sampled}{hours}"))
        return [*rows, ("features on disk", f"{self.disk:,.1f} GiB")]


def plan_of(config: Config, clips: int) -> Plan:
    """Of all stages on so many clips. Raises `ModelError` where the checkpoint's shape cannot be had."""
    shape = published(config.model.path) or read_config(located(config.model.path, text_only=True))
    visual = _visual_tokens(shape.vision_config, config.video)
    prompt, model, grpo = visual + TEXT, config.model, config.grpo
    group, length, most = grpo.group, grpo.max_tokens, model.tokens_per_pass
    tree = prompt + group * length
    round_ = max(1, min(grpo.clips_per_step, model.tokens_in_cache // tree))
    size = footprint(
        shape,
        model,
        prompt=prompt,
        traces=max(1, min(group, most // length)),
        trace_tokens=length,
        clips=round_,
        prefilled=max(1, min(round_, most // prompt)),
    )
    base, cache = size.weights + size.optimizer, size.cache_token * round_ * tree * _ROOM
    peaks = {
        "losses": ((base + size.loss) / GIB, "model.tokens_per_pass"),
        "prefill": ((base + size.prefill + size.cache_token * round_ * prompt) / GIB, "model.tokens_per_pass"),
        "sampling": ((base + cache + size.step) / GIB, "model.tokens_in_cache"),
    }
    parts = {split: round(share * clips) for split, share in fractions(config).items()}
    each = config.calibrate.traces + config.calibrate.greedy_trace
    cold, refined = of_coldstart(config.coldstart, parts["coldstart"]), of_grpo(grpo, max(1, parts["grpo"]))
    calibration = of_calibrate(config.calibrate, max(1, each * parts["calibration"]))
    traced = prompt + config.sampling.max_tokens
    texts = {"cold start": cold.updates * cold.batch, "calibration": calibration.updates * calibration.batch}
    samples = (config.calibrate.traces + 1) * (parts["calibration"] + parts["validation"])
    return Plan(
        size,
        visual,
        peaks,
        {"cold start": cold.updates, "GRPO": refined.updates, "calibration": calibration.updates},
        {
            "cold start": texts["cold start"] * traced,
            "GRPO": refined.updates * refined.batch * tree,
            "calibration": texts["calibration"] * traced,
        },
        {"GRPO": refined.updates * refined.batch * group * length, "calibration": samples * config.sampling.max_tokens},
        clips * _feature_bytes(shape, config, visual) / GIB,
    )


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
