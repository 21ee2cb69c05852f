"""Writing H.264 MP4 files that every browser plays, with the libx264 that comes inside PyAV. No external program.

Files are written under a temporary name, flushed and renamed.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .. import disk
from ..errors import VideoReason
from .clip import DEFAULT_LIMITS, Clock, Limits, local_file, open_container, opened, packets, refuse, too_heavy, typed
from .frames import Decoded, decode, orientation, resized, upright

# Without mbtree, whose look-ahead is not the same from call to call: the same frames give the same bytes, hence the
# same clip id.
X264 = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
# No packet is written before its neighbour in time: all the picture comes from us before all the sound.
MP4 = {"movflags": "+faststart", "max_interleave_delta": "0"}
CLOCK = Fraction(1, 90_000)
AUDIO_RATE = 48_000
COPY_SECONDS = 10
"""A copy may take this many times `Limits.max_seconds`."""


def jpeg(pixels_H_W_3: np.ndarray, most: tuple[int, int] | None = None) -> bytes:
    """One picture as a JPEG file, made smaller where it is wider or higher than `most`."""
    file, picture = io.BytesIO(), Image.fromarray(pixels_H_W_3)
    if most:
        picture.thumbnail(most)
    picture.save(file, "JPEG", quality=88)
    return file.getvalue()


@contextlib.contextmanager
def _replacing(target: str | os.PathLike[str]) -> Iterator[av.container.OutputContainer]:
    """A new MP4 that takes the target's name only when it is complete and on disk."""
    target = Path(os.path.abspath(os.fspath(target)))
    with disk.naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with disk.replacing(target) as temporary:
        # By name and not as a file object: to move its index to the front, FFmpeg opens the file a second time.
        with av.open(str(temporary), "w", format="mp4", container_options=MP4) as out:
            yield out


def _h264(out: av.container.OutputContainer, width: int, height: int, rate: Fraction) -> av.VideoStream:
    stream = out.add_stream("libx264", rate=rate, options=X264)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.thread_count = 1
    return stream


def write_mp4(path: str | os.PathLike[str], frames_T_H_W_3: np.ndarray, fps: float) -> None:
    """uint8 RGB frames at a constant rate, as H.264 (4:2:0, quality 20). The same frames give the same bytes.

    Height and width must be even, because 4:2:0 halves them; `ValueError` otherwise. Beware: decord fails on some sizes
    below 96x96, PyAV then reads.
    """
    frames_T_H_W_3 = np.asarray(frames_T_H_W_3)
    shape = frames_T_H_W_3.shape
    fits = len(shape) == 4 and shape[3] == 3 and 0 not in shape and shape[1] % 2 == shape[2] % 2 == 0
    if frames_T_H_W_3.dtype != np.uint8 or not fits:
        raise ValueError(
            f"frames of shape {shape} and type {frames_T_H_W_3.dtype} cannot become a video: H.264 needs (T, H, W, 3), "
            "even H and W, uint8. Pad or crop them first"
        )
    rate = Fraction(fps).limit_denominator(1001)
    with _replacing(path) as out:
        stream = _h264(out, shape[2], shape[1], rate)
        for pixels_H_W_3 in frames_T_H_W_3:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_H_W_3), format="rgb24")))
        out.mux(stream.encode())


def playable_copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    limits: Limits = DEFAULT_LIMITS,
    *,
    isolate: bool = False,
) -> str:
    """A copy that every browser plays: H.264 4:2:0 and AAC in MP4, index first, rotation baked in, sides made even.

    Frames keep their times and pixel shape (sar). Returns a note on what was lost, empty when nothing was. `isolate`
    works in a child process, for files nobody has read before. `VideoError` when the source cannot be read.
    """
    if isolate:
        from .isolation import remote_copy

        return remote_copy(source, target, limits)
    name = local_file(source)
    with typed(name, limits):
        return _playable_copy(name, target, limits)


def _playable_copy(name: str, target: str | os.PathLike[str], limits: Limits) -> str:
    clock = Clock(name, COPY_SECONDS * limits.max_seconds)
    with opened(name, limits) as (container, stream):  # first for the times alone: which are right is known at the end
        decoded = Decoded(container, stream)
        first = None
        for frame in decode(name, container, stream, decoded, clock):
            first = first if first is not None else frame
        height, width = upright(name, first).shape[:2]
        size = max(2, width - width % 2), max(2, height - height % 2)
        sar = stream.sample_aspect_ratio
        rate = stream.average_rate or Fraction(25)
        note = "the picture ends where the source is damaged" if decoded.damaged else ""
    # A player needs times that grow; two frames at one moment are put one tick apart.
    ticks_N = np.maximum(0, np.round(decoded.times_N / float(CLOCK))).astype(np.int64)
    ticks_N = np.maximum.accumulate(ticks_N - np.arange(len(ticks_N))) + np.arange(len(ticks_N))
    try:
        with _replacing(target) as out, opened(name, limits) as (container, stream):
            picture = _h264(out, *size, rate)
            picture.codec_context.time_base = CLOCK
            if sar:
                picture.codec_context.sample_aspect_ratio = 1 / sar if orientation(first)[0] % 180 else sar
            sound = _Sound(name, decoded.start, clock)
            track = out.add_stream("aac", rate=AUDIO_RATE, layout="stereo") if sound.first is not None else None
            second_pass = Decoded(container, stream)
            for ticks, frame in zip(ticks_N.tolist(), decode(name, container, stream, second_pass, clock), strict=True):
                output = av.VideoFrame.from_ndarray(resized(upright(name, frame), size), format="rgb24")
                output.pts, output.time_base = ticks, CLOCK
                out.mux(picture.encode(output))
                if os.stat(out.name).st_size > limits.max_copy_bytes:
                    raise too_heavy(name, "a copy for browsers would be larger", limits.max_copy_bytes)
            out.mux(picture.encode())
            if track is not None:
                for samples in sound:
                    out.mux(track.encode(samples))
                out.mux(track.encode())
    except av.FFmpegError as error:
        raise refuse(
            name, VideoReason.DECODE_FAILED, f"its pictures or times do not fit into MP4 ({error})", "Leave it out."
        ) from error
    return "; ".join(filter(None, [note, sound.note]))


class _Sound:
    """The best sound track as 48 kHz stereo on the picture's clock, up to its first error; `note` says what is lost."""

    def __init__(self, name: str, start: float, clock: Clock) -> None:
        self.name, self.start, self.clock, self.note = name, start, clock, ""
        self.frames = self._decoded()
        self.first = next(self.frames, None)

    def __iter__(self) -> Iterator[av.AudioFrame]:
        if self.first is not None:
            yield self.first
            yield from self.frames

    def _decoded(self) -> Iterator[av.AudioFrame]:
        with open_container(self.name) as container:
            stream = container.streams.best("audio")
            if stream is None:
                return
            if stream.codec_context is None:
                self.note = "the sound was dropped: its codec is unknown"
                return
            resampler = av.AudioResampler(format="fltp", layout="stereo", rate=AUDIO_RATE)
            position = 0
            for packet in packets(container, stream, self.clock):
                try:
                    resampled = [part for frame in packet.decode() for part in resampler.resample(frame)]
                except (av.FFmpegError, ValueError) as error:
                    self.note = f"the sound ends where it is damaged ({error})"
                    return
                for samples in resampled:
                    # AAC wants samples without overlaps; what begins before the picture's clock is pushed to its start.
                    due = 0 if samples.pts is None else samples.pts - round(self.start * AUDIO_RATE)
                    samples.pts = position = max(position, due)
                    samples.time_base = Fraction(1, AUDIO_RATE)
                    position += samples.samples
                    yield samples
