"""A clip as the language model sees it: features of the frozen visual tower, computed once in the project's life.

The key is content and settings: clip id, frame settings, and a hash of the tower's own weights, so that another
checkpoint or another frame count never meets the wrong features. Entries are safetensors, written to a temporary name
and renamed; one that fails its own hash is computed again. Deletable at any time.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import ModelOutput
from transformers.video_utils import VideoMetadata

from deepintuit.config import VideoConfig
from deepintuit.errors import VideoError, VideoReason
from deepintuit.video import FrameCache, Frames, Limits, cached_read
from deepintuit.video.cache import RECIPE

VISION_BLOCK = "<|vision_start|><|video_pad|><|vision_end|>"
"""What a chat template writes for a clip; the processor expands it to one pad for each merged patch."""


@dataclass(frozen=True)
class FrameRecord:
    """Which frames a model saw: stored with every trace, since other frames give other scores."""

    indices: list[int]
    times: list[float]
    hash: str
    reader: str
    width: int
    height: int
    seconds: float


@dataclass
class VisualFeatures(ModelOutput):
    """Tower outputs of a batch of clips, as a Qwen-VL `forward` takes them in `mm_encoder_outputs["video"]`."""

    pooler_output: tuple[torch.Tensor, ...] | None = None
    deepstack_features: list[tuple[torch.Tensor, ...]] | None = None


@dataclass(frozen=True)
class EncodedClip:
    """One clip after the tower.

    `vision_ids`: the tokens that stand for the clip in a prompt. `embeds`: (N, hidden), one row a merged patch.
    `deepstack`: the same from inner layers (Qwen3-VL), else empty. `grid_thw`: patches in time, height, width.
    `seconds_per_grid`: seconds between two temporal patches.
    """

    clip_id: str
    vision_ids: list[int]
    embeds: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]
    grid_thw: torch.Tensor
    seconds_per_grid: float
    frames: FrameRecord

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.embeds, *self.deepstack))

    def blanked(self) -> EncodedClip:
        """The same clip with its content removed (the "video blanked" control): every patch becomes the mean patch.

        Zeros would be an input that the model never saw; a mean keeps the scale and tells nothing of where or when.
        """
        flat = self.embeds.mean(0, keepdim=True).expand_as(self.embeds).contiguous()
        deep = tuple(d.mean(0, keepdim=True).expand_as(d).contiguous() for d in self.deepstack)
        return EncodedClip(
            f"{self.clip_id}/blanked", self.vision_ids, flat, deep, self.grid_thw, self.seconds_per_grid, self.frames
        )


def stack_features(clips: list[EncodedClip], device: torch.device) -> VisualFeatures:
    deep = [tuple(c.deepstack[layer].to(device) for c in clips) for layer in range(len(clips[0].deepstack))]
    return VisualFeatures(pooler_output=tuple(c.embeds.to(device) for c in clips), deepstack_features=deep or None)


def metadata_of(frames: Frames) -> VideoMetadata:
    """Real times for the processor: a clock of milliseconds, so that an uneven rate is not taken for an even one."""
    times = [float(t) for t in frames.times_T]
    spacing = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else max(frames.seconds, 1e-3)
    return VideoMetadata(
        total_num_frames=max(1, round(len(times) * max(spacing, 1e-3) * 1000)),
        fps=1000.0,
        frames_indices=[round(t * 1000) for t in times],
        duration=frames.seconds,
        width=frames.width,
        height=frames.height,
    )


class ClipEncoder:
    """Path → frames → features, with both caches. `passes` counts tower runs: one a clip."""

    def __init__(self, processor, model, video: VideoConfig, cache: Path | None, memory_bytes: int = 2 << 30):
        self.processor, self.model, self.video = processor, model, video
        self.frame_cache = FrameCache(cache / "frames") if cache else None
        self.folder = cache / "features" if cache else None
        self.limits = Limits(
            max_pixels=video.limit_pixels, max_bytes=video.limit_mib << 20, max_seconds=video.limit_seconds
        )
        self.passes = 0
        self._tower = _fingerprint(model.model.visual)
        self._held: OrderedDict[str, EncodedClip] = OrderedDict()
        self._room = memory_bytes

    def forgetful(self) -> ClipEncoder:
        """The same tower with no cache, neither on disk nor in memory: for clips that must leave no trace."""
        other = copy.copy(self)
        other.frame_cache = other.folder = None
        other._held, other._room = OrderedDict(), 0
        return other

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, by the processor's rule within the settings' limits. Raises `VideoError`."""
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

        if max(width, height) > 200 * min(width, height):  # the rule's own bound
            raise VideoError(
                f"a clip of {width}x{height} pixels",
                "a Qwen-VL takes no frame more than 200 times as long as it is wide",
                "Crop or scale the clip, or leave it out",
                VideoReason.TOO_SMALL,
            )
        settings = self.processor.video_processor
        h, w = smart_resize(
            height,
            width,
            factor=settings.patch_size * settings.merge_size,
            min_pixels=self.video.min_pixels,
            max_pixels=self.video.max_pixels,
        )
        return w, h

    def frames(self, clip_id: str, path: str | Path, width: int, height: int) -> Frames:
        """The frames that the model sees of this clip. Raises `VideoError`."""
        return cached_read(
            self.frame_cache,
            path,
            clip_id,
            self.video.frames,
            self.frame_size(width, height),
            self.limits,
            self.video.fps or None,
        )

    def encode(self, clip_id: str, path: str | Path, width: int, height: int) -> EncodedClip:
        """Features of one clip: from memory, from the cache, or by one pass of the tower. Raises `VideoError`."""
        if clip_id in self._held:
            self._held.move_to_end(clip_id)
            return self._held[clip_id]
        entry = self._entry(clip_id)
        clip = _load(entry, clip_id) if entry else None
        if clip is None:
            clip = self._run_tower(clip_id, self.frames(clip_id, path, width, height))
            if entry:
                _save(entry, clip)
        self._held[clip_id] = clip
        self._room -= clip.bytes
        while self._room < 0 and len(self._held) > 1:
            self._room += self._held.popitem(last=False)[1].bytes
        return clip

    def _entry(self, clip_id: str) -> Path | None:
        if self.folder is None:
            return None
        video = self.video
        key = json.dumps([2, RECIPE, clip_id, self._tower, video.frames, video.fps, video.max_pixels, video.min_pixels])
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    @torch.no_grad()
    def _run_tower(self, clip_id: str, frames: Frames) -> EncodedClip:
        self.passes += 1
        inputs = self.processor(
            text=[VISION_BLOCK],
            videos=[torch.from_numpy(frames.pixels_T_H_W_3).permute(0, 3, 1, 2)],
            video_metadata=[metadata_of(frames)],
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
        device = next(self.model.model.visual.parameters()).device
        features = self.model.model.get_video_features(
            inputs["pixel_values_videos"].to(device), inputs["video_grid_thw"].to(device), return_dict=True
        )
        seconds = inputs.get("second_per_grid_ts")
        return EncodedClip(
            clip_id=clip_id,
            vision_ids=inputs["input_ids"][0].tolist(),
            embeds=torch.cat(list(features.pooler_output)).cpu(),
            deepstack=tuple(
                torch.cat(list(layer)).cpu() for layer in getattr(features, "deepstack_features", None) or ()
            ),
            grid_thw=inputs["video_grid_thw"][0],
            seconds_per_grid=float(seconds[0]) if seconds is not None else 1.0,
            frames=FrameRecord(
                [int(i) for i in frames.indices_T],
                [round(float(t), 4) for t in frames.times_T],
                frames.hash,
                frames.reader,
                frames.width,
                frames.height,
                frames.seconds,
            ),
        )


def _fingerprint(tower: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()[:16]


def _raw(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_raw(tensors[name]))
    return digest.hexdigest()


def _save(entry: Path, clip: EncodedClip) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "embeds": clip.embeds.contiguous(),
        "grid_thw": clip.grid_thw,
        "vision_ids": torch.tensor(clip.vision_ids),
    }
    tensors |= {f"deepstack.{index}": layer.contiguous() for index, layer in enumerate(clip.deepstack)}
    facts = {
        "seconds_per_grid": clip.seconds_per_grid,
        "frames": asdict(clip.frames),
        "clip_id": clip.clip_id,
        "checksum": _checksum(tensors),
    }
    handle, temporary = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, entry)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _load(entry: Path, clip_id: str) -> EncodedClip | None:
    """The stored entry, or None when there is none or it cannot be read (then it is computed again)."""
    if not entry.exists():
        return None
    try:
        with safe_open(entry, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if facts["checksum"] != _checksum(tensors):
            return None
        deep = sorted(
            (name for name in tensors if name.startswith("deepstack.")), key=lambda name: int(name.split(".")[1])
        )
        return EncodedClip(
            clip_id,
            tensors["vision_ids"].tolist(),
            tensors["embeds"],
            tuple(tensors[name] for name in deep),
            tensors["grid_thw"],
            facts["seconds_per_grid"],
            FrameRecord(**facts["frames"]),
        )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None
