"""A clip as the language model sees it: features of the frozen visual tower, computed once in the project's life.

The key is content and settings: clip id, frame settings, and a hash of the tower's own weights, so that another
checkpoint or another frame count never meets the wrong features. `video.cache` keeps them, and the frames before them.
Of many clips, the next are read while the tower, or whoever takes the features, works on one.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from transformers.utils import ModelOutput
from transformers.video_utils import VideoMetadata

from deepintuit.config import VideoConfig
from deepintuit.errors import ConfigError, VideoError, VideoReason
from deepintuit.video import DiskCache, FrameRecord, Frames, Limits, cached_read, distorted, frame_size
from deepintuit.video.cache import RECIPE
from deepintuit.vlm.families import Family
from deepintuit.vlm.memory import within_memory
from deepintuit.vlm.weights import raw

_RECIPE = 3
"""Raise when other things are given to the tower or kept of it, so that old entries are not met again."""

AHEAD = 2
"""Clips that are read while one is worked on: their frames, and those of the one, are held at once."""

Place = tuple[str, str | Path, int, int]
"""Clip id, path, width, height."""


@dataclass
class VisualFeatures(ModelOutput):
    """Tower outputs of a batch of clips, as a Qwen-VL `forward` takes them in `mm_encoder_outputs["video"]`."""

    pooler_output: tuple[torch.Tensor, ...] | None = None
    deepstack_features: list[tuple[torch.Tensor, ...]] | None = None


@dataclass(frozen=True)
class EncodedClip:
    """One clip after the tower.

    `vision_ids`: the tokens that stand for the clip in a prompt. `embeds`: (N, hidden), one row per merged patch.
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
    """Path → frames → features, both kept on disk and features in memory. `passes` counts tower runs: one a clip."""

    memory_bytes = 2 << 30
    """What may be held in memory; the clip used last is held whatever its size."""
    isolate = False
    """Whether files are read in a child process: set where they may be a stranger's."""
    distortion: tuple[str, float] | None = None
    """Kind and strength of what is done to frames before the tower sees them (`video.distorted`)."""

    def __init__(self, processor, model, family: Family, video: VideoConfig, cache: Path | None):
        self.processor, self.model, self.family, self.video = processor, model, family, video
        self.cache = DiskCache(cache, video.cache_gib) if cache and video.cache_gib else None
        self.limits = Limits.of(video)
        self.passes = 0
        self._most_pixels()  # what cannot be is refused here
        self.tower = getattr(model.model, family.tower)
        self._tower_hash = "" if self.without_tower else fingerprint(self.tower)
        self._held: OrderedDict[str, EncodedClip] = OrderedDict()
        self._alive: WeakValueDictionary[str, EncodedClip] = WeakValueDictionary()  # rows about a clip share one
        self._room = self.memory_bytes

    @property
    def without_tower(self) -> bool:
        """Whether weights are not here: clips are read, laid out for a prompt, and have no features."""
        return next(self.tower.parameters()).is_meta

    def forgetful(self) -> ClipEncoder:
        """The same tower with no cache, neither on disk nor in memory: for clips that must leave no trace."""
        encoder = copy.copy(self)
        encoder.cache = None
        encoder._held, encoder._alive, encoder._room = OrderedDict(), WeakValueDictionary(), 0
        return encoder

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, by the processor's rule within the settings' limits. Raises `VideoError`."""
        if max(width, height) > 200 * min(width, height):  # the rule's own bound
            raise VideoError(
                f"a clip of {width}x{height} pixels",
                "a Qwen-VL takes no frame more than 200 times as long as it is wide",
                "Crop or scale the clip, or leave it out",
                VideoReason.TOO_SMALL,
            )
        factor, most = self._factor, self._most_pixels()
        w, h = frame_size(width, height, self.video.min_pixels, most, factor)
        if self.video.max_tokens and h * w > most:  # the rule never goes below one patch, however long the other side
            h, w = (h, most // h // factor * factor) if w > h else (most // w // factor * factor, w)
        return w, h

    @property
    def _factor(self) -> int:
        """Pixels of a side of what becomes one visual token."""
        return self.processor.video_processor.patch_size * self.processor.video_processor.merge_size

    def _most_pixels(self) -> int:
        """Of a frame: `max_pixels`, or less where the clip's budget of tokens is shared out over all frames. Raises
        `ConfigError` where that is less than `min_pixels`."""
        video = self.video
        if not video.max_tokens:
            return video.max_pixels
        layers = math.ceil(video.frames / self.processor.video_processor.temporal_patch_size)
        share = video.max_tokens // layers * self._factor**2
        least = max(video.min_pixels, self._factor**2)
        fitting = video.max_tokens * self._factor**2 // least
        if share < least:
            raise ConfigError(
                f"video.max_tokens = {video.max_tokens} with video.frames = {video.frames}",
                f"that leaves {share} pixels a frame, and video.min_pixels asks for {least}",
                f"Set video.frames to {fitting} or fewer, or raise video.max_tokens",
            )
        return min(video.max_pixels, share)

    def frames(self, clip_id: str, path: str | Path, width: int, height: int) -> Frames:
        """The frames that the model sees of this clip. Raises `VideoError`."""
        frames = cached_read(
            self.cache,
            path,
            clip_id,
            self.video.frames,
            self.frame_size(width, height),
            self.limits,
            self.video.fps or None,
            isolate=self.isolate,
        )
        return distorted(frames, *self.distortion, clip_id) if self.distortion else frames

    def encode(self, clip_id: str, path: str | Path, width: int, height: int) -> EncodedClip:
        """Features of one clip: from memory, from the cache, or by one pass of the tower. Raises `VideoError`."""
        return self._recall(clip_id) or self._keep(clip_id, self._read(clip_id, path, width, height))

    def encode_all(self, places: Iterable[Place]) -> Iterator[EncodedClip | VideoError]:
        """What `encode` gives for each place, in order, or the `VideoError` that it raises, while threads read the next
        `AHEAD`: from the cache, or the file. Close it where it is not taken to its end; reads under way end first."""
        places = iter(places)
        window: deque[tuple[Place, Future | None]] = deque()
        reading: set[str] = set()
        pool = ThreadPoolExecutor(AHEAD, "read-ahead")  # its threads start with the first read
        try:
            while True:
                while len(window) <= AHEAD and (place := next(places, None)):
                    future = None
                    if place[0] not in self._alive and place[0] not in reading:
                        future = pool.submit(self._read, *place)
                        reading.add(place[0])
                    window.append((place, future))
                if not window:
                    return
                place, future = window.popleft()
                try:
                    content = future.result() if future else self._recall(place[0]) or self._read(*place)
                    outcome = self._keep(place[0], content)
                except VideoError as error:
                    outcome = error
                if future:
                    reading.remove(place[0])
                future = content = None  # else the frames stay while the caller works
                yield outcome
        finally:
            pool.shutdown(cancel_futures=True)

    def _recall(self, clip_id: str) -> EncodedClip | None:
        if clip_id in self._held:
            self._held.move_to_end(clip_id)
        return self._alive.get(clip_id)

    def _read(self, clip_id: str, path: str | Path, width: int, height: int) -> EncodedClip | Frames:
        """What can be had of a clip without the tower: its kept features, else frames. Threads may call it."""
        entry = self.cache.get(*self._key(clip_id)) if self.cache else None
        return _unpacked(clip_id, *entry) if entry else self.frames(clip_id, path, width, height)

    def _keep(self, clip_id: str, content: EncodedClip | Frames) -> EncodedClip:
        if held_clip := self._recall(clip_id):
            return held_clip
        clip = content
        if isinstance(content, Frames):
            clip = self._run_tower(clip_id, content)
            if self.cache:
                arrays, facts = _packed(clip)
                self.cache.put(*self._key(clip_id), arrays=arrays, facts=facts)
        self._held[clip_id] = self._alive[clip_id] = clip
        self._room -= clip.bytes
        while self._room < 0 and len(self._held) > 1:
            self._room += self._held.popitem(last=False)[1].bytes
        return clip

    @property
    def recipe(self) -> tuple:
        """What a clip's features hang on, beside its content: versions, the hash of the tower's weights, settings."""
        video = self.video
        settings = video.frames, video.fps, self._most_pixels(), video.min_pixels
        return _RECIPE, RECIPE, self._tower_hash, *settings, *(self.distortion or ())

    def _key(self, clip_id: str) -> tuple:
        ours, frames, *rest = self.recipe
        return "features", ours, frames, clip_id, *rest

    @torch.no_grad()
    def _run_tower(self, clip_id: str, frames: Frames) -> EncodedClip:
        inputs = self.processor(
            text=[self.family.vision_block],
            videos=[torch.from_numpy(frames.pixels_T_H_W_3).permute(0, 3, 1, 2)],
            video_metadata=[metadata_of(frames)],
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
        embeds, deepstack = torch.empty(0, 0), ()
        if not self.without_tower:
            self.passes += 1
            device = next(self.tower.parameters()).device
            with within_memory(f"encoding {clip_id!r}", "Lower video.frames or video.max_pixels"):
                features = self.model.model.get_video_features(
                    inputs["pixel_values_videos"].to(device), inputs["video_grid_thw"].to(device), return_dict=True
                )
            embeds = torch.cat(list(features.pooler_output)).cpu()
            deepstack = [torch.cat(list(layer)).cpu() for layer in getattr(features, "deepstack_features", None) or ()]
        seconds = inputs.get("second_per_grid_ts")
        return EncodedClip(
            clip_id=clip_id,
            vision_ids=inputs["input_ids"][0].tolist(),
            embeds=embeds,
            deepstack=tuple(deepstack),
            grid_thw=inputs["video_grid_thw"][0],
            seconds_per_grid=float(seconds[0]) if seconds is not None else 1.0,
            frames=frames.record(),
        )


def fingerprint(tower: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(raw(tensor))
    return digest.hexdigest()[:16]


def _packed(clip: EncodedClip) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and facts for the cache. Numbers go as bytes: NumPy has no bfloat16."""
    layers = (clip.embeds, *clip.deepstack)
    facts = {
        "dtype": str(clip.embeds.dtype).removeprefix("torch."),
        "vision_ids": clip.vision_ids,
        "grid_thw": clip.grid_thw.tolist(),
        "seconds_per_grid": clip.seconds_per_grid,
        "frames": asdict(clip.frames),
    }
    return {str(n): layer.contiguous().view(torch.uint8).numpy() for n, layer in enumerate(layers)}, facts


def _unpacked(clip_id: str, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> EncodedClip:
    dtype = getattr(torch, facts["dtype"])
    embeds, *deepstack = (torch.from_numpy(arrays[str(n)]).view(dtype) for n in range(len(arrays)))
    return EncodedClip(
        clip_id,
        facts["vision_ids"],
        embeds,
        tuple(deepstack),
        torch.tensor(facts["grid_thw"]),
        facts["seconds_per_grid"],
        FrameRecord(**facts["frames"]),
    )
