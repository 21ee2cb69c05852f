"""Frames of one file: which ones, by which reader, at which times. See the package's docstring for what is promised.

PyAV does not seek. It decodes from the first packet, which makes it the reference everywhere; decord seeks, and is used
where it gives the same frames.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np
from PIL import Image

from .. import worlds
from ..config import VideoConfig
from ..errors import VideoError, VideoReason
from .clip import (
    DECODER_BYTES_PER_PIXEL,
    DEFAULT_LIMITS,
    NO_TIMES,
    ClipInfo,
    Clock,
    Index,
    Limits,
    changed,
    file_sha256,
    local_file,
    open_container,
    opened,
    packets,
    refuse,
    scan,
    start_seconds,
    state,
    tick_of,
    too_heavy,
    typed,
)

# decord 0.6 gives PyAV's pixels bit for bit on these, measured; not on 10-bit, where its conversion differs.
DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg4", "h263"}
DECORD_PIXELS = {"yuv420p", "yuvj420p"}
# Not AVI: it has no presentation times, and where B-frames are packed decord's frame n is not the n-th.
DECORD_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
DECORD_MIN_SIDE = 16

# probe counts frames by decoding while frames × pixels stay below this: two minutes of 480p, some seconds of work.
COUNT_BUDGET = 1_000_000_000


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

    def columns(self) -> dict[str, Any]:
        """What a row of the grain `traces` says of them."""
        size = [self.width, self.height]
        columns = {"frame_indices": self.indices, "frame_times": self.times, "frame_hash": self.hash}
        return columns | {"frames_size": size, "reader": self.reader}


@dataclass(frozen=True)
class Frames:
    """Frames of one clip, in order of presentation.

    `pixels_T_H_W_3` uint8 RGB; `indices_T` int64, strictly increasing, counted over the frames that can be decoded;
    `times_T` float64 seconds on the player's clock; `seconds` the clip's length; `hash` the SHA-256 of pixels, indices,
    times and size. `truncated`: the file ends before its header says, these frames are from what is there.
    """

    pixels_T_H_W_3: np.ndarray
    indices_T: np.ndarray
    times_T: np.ndarray
    seconds: float
    reader: str
    truncated: bool
    hash: str

    @classmethod
    def of(cls, pixels_T_H_W_3, indices_T, times_T, seconds: float, reader: str, truncated: bool = False) -> Frames:
        pixels = np.ascontiguousarray(pixels_T_H_W_3, np.uint8)
        indices, times = np.asarray(indices_T, "<i8"), np.asarray(times_T, "<f8")
        digest = hashlib.sha256(repr(pixels.shape).encode())
        for part in (pixels, indices, times):
            digest.update(memoryview(part).cast("B") if part.size else b"")
        return cls(pixels, indices, times, float(seconds), reader, bool(truncated), digest.hexdigest())

    @property
    def width(self) -> int:
        return self.pixels_T_H_W_3.shape[2]

    @property
    def height(self) -> int:
        return self.pixels_T_H_W_3.shape[1]

    def __len__(self) -> int:
        return len(self.indices_T)

    def record(self) -> FrameRecord:
        """All but the pixels; times to a tenth of a millisecond."""
        times = [round(float(time), 4) for time in self.times_T]
        return FrameRecord(
            self.indices_T.tolist(), times, self.hash, self.reader, self.width, self.height, self.seconds
        )


def sample(times_N: np.ndarray, seconds: float, count: int, fps: float | None = None) -> np.ndarray:
    """Which of N frames to take: `indices_T`, strictly increasing, T ≤ min(count, N).

    Without `fps`: the N frames are cut into `count` equal runs and the middle one of each is taken,
    floor((t + ½)·N/count); all N when there are no more than `count`. With `fps`: the clip's length × fps moments (at
    least 1, at most `count`), spread evenly over its time, and the frame on show at each; a frame on show at two
    moments is taken once.
    """
    n = len(times_N)
    if fps:
        first = float(times_N[0])
        number = min(max(1, int((seconds - first) * fps + 0.5)), count)
        moments_T = first + (np.arange(number) + 0.5) * (seconds - first) / number
        return np.unique(np.clip(np.searchsorted(times_N, moments_T, "right") - 1, 0, n - 1))
    if n <= count:
        return np.arange(n)
    return ((2 * np.arange(count) + 1) * n) // (2 * count)


def sampled_frames(path: str, width: int, height: int, settings: VideoConfig) -> Frames:
    """What an endpoint is shown of a clip: by the rule of our own model's frames, but for whole patches. Not cached."""
    size = frame_size(width, height, settings.min_pixels, settings.max_pixels)
    return read(path, settings.frames, size, Limits.of(settings), settings.fps or None)


def frame_size(width: int, height: int, least: int, most: int, factor: int = 1) -> tuple[int, int]:
    """Width and height of a frame brought to `least` … `most` pixels, its aspect kept as far as whole numbers let it.

    The rule of Qwen-VL's processors, for which both sides are multiples of `factor`; no side is shorter than that,
    though a long narrow frame then has more than `most` pixels.
    """
    sides = [round(side / factor) * factor for side in (width, height)]
    if math.prod(sides) > most:
        shrunk = math.sqrt(width * height / most)
        sides = [max(factor, math.floor(side / shrunk / factor) * factor) for side in (width, height)]
    elif math.prod(sides) < least:
        scale = math.sqrt(least / (width * height))
        sides = [math.ceil(side * scale / factor) * factor for side in (width, height)]
    return sides[0], sides[1]


def read(
    path: str | os.PathLike[str],
    count: int,
    size: tuple[int, int] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    fps: float | None = None,
    *,
    isolate: bool = False,
) -> Frames:
    """At most `count` frames of a file, as `sample` chooses them; fewer when it holds fewer, none twice.

    `size` is (width, height) in pixels; frames are resized to it bicubically with antialiasing, their aspect is not
    kept. None keeps the stored size (of the first frame taken, where it changes within the file). Memory is bounded by
    `count` frames of that size and one decoder; decoding has one thread and the same call gives the same bytes.
    `isolate` reads in a child process, for files nobody has read before. Raises `VideoError`.
    """
    if count < 1 or size is not None and min(size) < 1 or fps is not None and not 0 <= fps < float("inf"):
        raise ValueError(f"count {count}, size {size} and fps {fps} must be positive")
    worlds.at_hand(path)
    if isolate:
        from .isolation import remote_read

        return remote_read(path, count, size, limits, fps)
    name = local_file(path)
    with typed(name, limits):
        return _read(name, count, size, limits, fps)


def probe(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS, *, isolate: bool = False) -> ClipInfo:
    """The facts of a file, checked by decoding it (when long, its first frames). Raises `VideoError`, also for a file
    that changes meanwhile: a recording that is still running, or a copy that is not complete."""
    if isolate:
        from .isolation import remote_probe

        return remote_probe(path, limits)
    name = local_file(path)
    before = state(name)
    try:
        with typed(name, limits):
            info = _probe(name, limits)
    except VideoError as error:
        if error.reason != VideoReason.TOO_SLOW and state(name) not in (before, None):
            raise changed(name) from error
        raise
    if state(name) != before:
        raise changed(name)
    return info


def is_video(path: str | os.PathLike[str], *, isolate: bool = False) -> bool:
    """Whether a file begins like one that `read` may take: a known container with moving pictures, of any size."""
    try:
        if isolate:
            from .isolation import remote_is_video

            return remote_is_video(path)
        name = local_file(path)
        with typed(name, DEFAULT_LIMITS), open_container(name) as container:
            return any(not track.disposition & av.stream.Disposition.attached_pic for track in container.streams.video)
    except VideoError:
        return False


def _read(name: str, count: int, size, limits: Limits, fps) -> Frames:
    clock = Clock(name, limits.max_seconds)
    with opened(name, limits) as (container, stream):
        index = scan(container, stream, limits, clock)
        _fits(name, stream, min(count, len(index.times_N) or count), size, limits)
        frames = None
        if trusted_to_decord(container, stream, index) and _turned_by_decord(container, *_first(name, limits, clock)):
            frames = _by_decord(name, stream, index, count, size, fps, clock)
    return frames or _by_pyav(name, index, count, size, limits, fps, clock)


def _probe(name: str, limits: Limits) -> ClipInfo:
    clock = Clock(name, limits.max_seconds)
    with opened(name, limits) as (container, stream):
        index = scan(container, stream, limits, clock)
        trusted = trusted_to_decord(container, stream, index)
    with opened(name, limits) as (container, stream):
        exact = len(index.times_N) * stream.width * stream.height <= COUNT_BUDGET
        decoded = Decoded(container, stream)
        for number, frame in enumerate(decode(name, container, stream, decoded, clock)):
            if number == 0:
                rotation, mirrored = orientation(frame)
                height, width = (frame.width, frame.height) if rotation % 180 else (frame.height, frame.width)
                turned = _turned_by_decord(container, rotation, mirrored)
                facts = {"width": width, "height": height, "rotation": rotation, "mirrored": mirrored}
                pix_fmt = frame.format.name
            if not exact and number == 8:
                break
        times_N = decoded.times_N if exact else index.times_N
        seconds = _length(times_N, stream, decoded.last_duration if exact else index.last_duration)
        span = times_N[-1] - times_N[0] if len(times_N) > 1 else 0.0
        codec = stream.codec_context.codec.canonical_name
        truncated = decoded.damaged or index.cut or exact and _short(index, len(times_N))
        sar = stream.sample_aspect_ratio
        info = ClipInfo(
            path=name,
            sha256=file_sha256(name, clock),
            seconds=seconds,
            fps=float((len(times_N) - 1) / span) if span > 0 else float(stream.average_rate or 0),
            frames=len(times_N),
            counted=exact,
            truncated=bool(truncated),
            sar=float(sar) if sar else 1.0,
            container=container.format.name,
            codec=codec,
            has_audio=bool(container.streams.audio),
            bytes=os.stat(name).st_size,
            reader="pyav",
            pix_fmt=pix_fmt,
            playable=not truncated and not mirrored and _playable(name, container, codec, pix_fmt, rotation),
            **facts,
        )
    if trusted and turned:
        # What read will use can only be known by asking decord for frames.
        with opened(name, limits) as (container, stream):
            if _by_decord(name, stream, index, 3, None, None, clock):
                info = replace(info, reader="decord")
    return info


def _fits(name: str, stream, frames: int, size, limits: Limits) -> None:
    source_pixels = stream.width * stream.height
    pixels = size[0] * size[1] if size else source_pixels
    need = 3 * pixels * frames + (DECODER_BYTES_PER_PIXEL + 6) * source_pixels
    if need > limits.max_bytes:
        raise too_heavy(name, f"{frames} frames of it would take {need / 2**20:,.0f} MiB", limits.max_bytes)


def trusted_to_decord(container, stream, index: Index) -> bool:
    """Whether decord can be expected to read what PyAV reads: packet n is frame n, nothing is missing, formats it has.

    Outside this decord invents: frames past the end of a cut file, times of -3e17 seconds, rows of the wrong length.
    """
    return (
        container.format.name in DECORD_CONTAINERS
        and stream.codec_context.codec.canonical_name in DECORD_CODECS
        and stream.pix_fmt in DECORD_PIXELS
        and min(stream.width, stream.height) >= DECORD_MIN_SIDE
        and index.whole
        and not index.cut
        and stream.frames in (0, len(index.times_N))
        and len(index.times_N) > 0
        and container.streams.best("video") is stream
    )


def _by_decord(name, stream, index: Index, count: int, size, fps, clock: Clock) -> Frames | None:
    """None when decord fails, or when its frames are not those that the packets announce."""
    import decord

    seconds = _length(index.times_N, stream, index.last_duration)
    wanted_T = sample(index.times_N, seconds, count, fps)
    shapes = {(stream.height, stream.width, 3), (stream.width, stream.height, 3)}
    pictures = []
    try:
        reader = decord.VideoReader(name, ctx=decord.cpu(), num_threads=1)
        if len(reader) != len(index.times_N):
            return None
        starts_T = reader.get_frame_timestamp(wanted_T.tolist())[:, 0]
        for i in wanted_T.tolist():
            clock.check()
            picture = reader[i].asnumpy()
            if picture.shape not in shapes:
                return None
            pictures.append(resized(picture, size))
    except (decord.DECORDError, RuntimeError, IndexError, UnicodeError):
        return None  # PyAV reads it, or says why nobody can
    times_T = index.times_N[wanted_T]
    # decord keeps raw timestamps as float32, so only their steps can be compared, and those roughly.
    if np.abs((starts_T - starts_T[0]) - (times_T - times_T[0])).max() > 2e-3 + 1e-6 * np.abs(starts_T).max():
        return None
    return Frames.of(np.stack(pictures), wanted_T, times_T, seconds, "decord")


def _by_pyav(name: str, index: Index, count: int, size, limits: Limits, fps, clock: Clock) -> Frames:
    times_N = index.times_N
    wanted_T = np.arange(count)
    if len(times_N):
        with_end = float(times_N[-1]) + index.last_duration
        wanted_T = sample(times_N, with_end, count, fps)
    # The packets only suggest which frames there are. When decoding finds others, choose again from what was found:
    # decoding is deterministic, so the second round meets its own choice.
    for _ in range(2):
        pictures: dict[int, np.ndarray] = {}
        with opened(name, limits) as (container, stream):
            decoded = Decoded(container, stream)
            numbers = set(wanted_T.tolist())
            goal = size
            for number, frame in enumerate(decode(name, container, stream, decoded, clock)):
                if number in numbers:
                    pictures[number] = resized(upright(name, frame), goal)
                    goal = goal or pictures[number].shape[1::-1]
            truncated = decoded.damaged or index.cut or _short(index, len(decoded.times_N))
        seconds = _length(decoded.times_N, stream, decoded.last_duration)
        again_T = sample(decoded.times_N, seconds, count, fps)
        if np.array_equal(again_T, wanted_T):
            break
        wanted_T = again_T
    pixels = np.stack([pictures[i] for i in wanted_T.tolist()])
    return Frames.of(pixels, wanted_T, decoded.times_N[wanted_T], seconds, "pyav", truncated)


class Decoded:
    """What a decode has met so far: the frames' timestamps, and whether it ended in an error."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self.start, self.base = start_seconds(container), float(stream.time_base or 0)
        self.guessed = container.format.name in NO_TIMES
        self.sent: list[int] = []  # times of the packets
        self.pts: list[int | None] = []
        self.dts: list[int | None] = []
        self.last_duration = 0.0
        self.damaged = False

    @property
    def times_N(self) -> np.ndarray:
        """Seconds of every frame. Where presentation times are missing or run backwards (AVI, or a muxer that knew no
        B-frames), the n-th picture has the n-th time of the packets in order. Where packets and pictures do not
        correspond, FFmpeg's own guess is taken, whichever runs backwards less often; single steps back are levelled."""
        ticks, sent = self.pts, sorted(self.sent)
        if self.guessed or _faults(ticks):
            # One picture less than packets is sound: AVI files with packed B-frames.
            if len(sent) - len(ticks) in (0, 1) and len(set(sent)) == len(sent):
                ticks = sent[: len(ticks)]
            else:
                ticks = min(self.pts, self.dts, key=_faults)
        times = np.maximum.accumulate(np.array([t for t in ticks if t is not None], np.int64))
        if len(times) < len(ticks):
            places = [n for n, t in enumerate(ticks) if t is not None]
            times = np.interp(np.arange(len(ticks)), places, times) if places else np.zeros(0)
        return times * self.base - self.start


def _faults(ticks: list[int | None]) -> int:
    valid = [t for t in ticks if t is not None]
    return len(ticks) - len(valid) + sum(b <= a for a, b in zip(valid, valid[1:], strict=False))


def _length(times_N: np.ndarray, stream: av.VideoStream, last: float = 0.0) -> float:
    """End of the last frame: it is shown for its own duration, else as long as frames usually are."""
    if not last and len(times_N) > 1:
        last = float(np.median(np.diff(times_N)))
    return float(times_N[-1]) + (last or float(1 / (stream.average_rate or 25)))


def _short(index: Index, decoded: int) -> bool:
    """Fewer frames than the header claims. One is missing in sound AVI files with packed B-frames."""
    return index.whole and decoded < index.claimed - 1


def decode(name: str, container, stream, decoded: Decoded, clock: Clock) -> Iterator[av.VideoFrame]:
    """Frames until the end of the file or the first error.

    Errors before the first frame are passed over (a recording that begins between keyframes); one after it ends the
    clip, because what a decoder makes of the rest differs from decoder to decoder. `VideoError` when there is not one
    frame, or not one timestamp.
    """
    error: Exception | None = None
    for packet in packets(container, stream, clock):
        if packet.size and (tick := tick_of(packet, container)) is not None:
            decoded.sent.append(tick)
        try:
            pictures = packet.decode()
        except MemoryError:  # PyAV's own is an FFmpegError too, and is no damage of the file
            raise
        except (av.FFmpegError, ValueError) as failure:
            error = failure
            decoded.damaged = bool(decoded.pts)
            if decoded.damaged:
                break
            continue
        for frame in pictures:
            decoded.pts.append(frame.pts)
            decoded.dts.append(frame.dts)
            decoded.last_duration = float((frame.duration or 0) * (frame.time_base or 0))
            yield frame
    if not decoded.pts and error is not None:
        raise refuse(
            name, VideoReason.DECODE_FAILED, f"no frame of it decodes ({error})", "Re-encode it, or leave it out."
        ) from error
    if not decoded.pts:
        raise refuse(name, VideoReason.NO_FRAMES, "it has a header but holds no frame", "Copy or record it again.")
    if not len(decoded.times_N):
        raise refuse(
            name, VideoReason.DECODE_FAILED, "its frames carry no timestamps", "Remux it into MP4 with a frame rate."
        )


def upright(name: str, frame: av.VideoFrame) -> np.ndarray:
    try:
        picture = frame.to_ndarray(format="rgb24", threads=1)  # more would live until the picture is collected
    except (av.FFmpegError, ValueError) as error:
        raise refuse(
            name, VideoReason.DECODE_FAILED, f"its {frame.format.name} pixels do not convert ({error})", "Re-encode it."
        ) from error
    rotation, mirrored = orientation(frame)
    turned = np.rot90(picture, -rotation // 90)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """How a player shows a stored picture: turned by so many degrees clockwise (0, 90, 180, 270), then mirrored left to
    right or not. One of the eight that are nearest to its display matrix."""
    try:
        matrix = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)
    except KeyError:
        return 0, False
    # FFmpeg's layout: (x, y) is shown at (a·x + c·y, b·x + d·y), y downwards.
    a, b, _, c, d = map(float, matrix[:5])
    mirrored = a * d < b * c
    return 90 * round(math.degrees(math.atan2(b, -a if mirrored else a)) / 90) % 360, mirrored


def _first(name: str, limits: Limits, clock: Clock) -> tuple[int, bool]:
    """The orientation of the first picture."""
    with opened(name, limits) as (container, stream):
        return orientation(next(decode(name, container, stream, Decoded(container, stream), clock)))


def _turned_by_decord(container, rotation: int, mirrored: bool) -> bool:
    """decord knows rotation in MP4 and MOV only, and mirrors nothing."""
    return not mirrored and (not rotation or container.format.name.startswith("mov"))


def resized(pixels_H_W_3: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or pixels_H_W_3.shape[1::-1] == tuple(size):
        return pixels_H_W_3
    return np.asarray(Image.fromarray(pixels_H_W_3).resize(tuple(size), Image.Resampling.BICUBIC))


def _playable(name: str, container, codec: str, pix_fmt: str, rotation: int) -> bool:
    """What Chromium, Firefox and Safari all play: 8-bit 4:2:0 H.264 in MP4; VP8 or VP9 in WebM, which they do not turn;
    one picture stream."""
    audio = {s.codec_context.codec.canonical_name if s.codec_context else "?" for s in container.streams.audio}
    if pix_fmt not in DECORD_PIXELS or len(container.streams.video) > 1:
        return False
    if codec == "h264" and container.format.name.startswith("mov"):
        brand = container.metadata.get("major_brand", "")
        return not brand.startswith(("qt", "3g")) and audio <= {"aac", "mp3"}
    with open(name, "rb") as file:
        webm = b"webm" in file.read(64)
    return webm and not rotation and codec in {"vp8", "vp9"} and audio <= {"vorbis", "opus"}
