"""Opening a file that may be anything: checks before a decoder sees it, and the packet index of its pictures."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from ..errors import DeepIntuitError, VideoError, VideoReason

# Anything else FFmpeg would open (HLS playlists, concat scripts, image sequences, SDP) can name other files or hosts.
# The pure audio containers are here only so that a sound file is refused as such.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,asf,ogg,gif,ivf,mxf,nut,rm,dv,wtv,apng,"
    "mp3,wav,flac,aac"
)
NO_TIMES = {"avi", "asf"}
"""Containers with one time a packet, in order of decoding: what FFmpeg gives as time of presentation is its guess."""


@dataclass(frozen=True)
class Limits:
    """What one file may cost. Past any of these it is refused, before memory is taken where the header tells."""

    max_pixels: int = 4096 * 2304
    """Pixels of one stored frame."""
    max_bytes: int = 2**30
    """Memory of one read: the frames returned plus the decoder's own."""
    max_seconds: float = 60.0
    """Wall-clock seconds of one read, or of one probe with the hashing of the file."""
    max_frames: int = 500_000
    """Packets of the video stream."""
    min_side: int = 1
    """Shorter side of a stored frame in pixels."""
    max_copy_bytes: int = 2**40
    """Of a copy for browsers."""

    @classmethod
    def of(cls, settings) -> Limits:
        """Those of the settings under [video]."""
        return cls(settings.limit_pixels, settings.limit_mib << 20, settings.limit_seconds)


DEFAULT_LIMITS = Limits()

# H.264 and HEVC hold up to 16 reference pictures and a few in flight, at 1.5 to 3 bytes a pixel.
DECODER_BYTES_PER_PIXEL = 24


@dataclass(frozen=True)
class ClipInfo:
    """Facts of one file. Sizes are in pixels after rotation, times in seconds.

    `frames` is counted by decoding when `counted`, else the number of packets. `truncated`: fewer frames can be
    decoded than the file claims. A player turns the stored picture by `rotation` degrees clockwise and then, when
    `mirrored`, swaps left and right; frames come so. `sar` is the width of a stored pixel over its height (before
    rotation), 1.0 when the file does not say. `reader` is the one `read` uses. `playable`: every current browser
    plays the file as it is.
    """

    path: str
    sha256: str
    seconds: float
    fps: float
    frames: int
    counted: bool
    truncated: bool
    width: int
    height: int
    rotation: int
    mirrored: bool
    sar: float
    container: str
    codec: str
    pix_fmt: str
    has_audio: bool
    bytes: int
    reader: str
    playable: bool


@dataclass(frozen=True)
class Index:
    """What the packets of the video stream say, without decoding: `times_N` seconds in order of presentation."""

    times_N: np.ndarray
    whole: bool
    """Every packet has its own time and none is to be discarded: packet n is frame n."""
    last_duration: float
    """Seconds the last frame is shown, 0.0 when the file does not say."""
    cut: bool
    """The packets end before the header says."""
    claimed: int
    """Frames that the header claims, 0 when it does not say."""


class Clock:
    """Wall-clock seconds left for one file."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path, self.seconds, self.end = path, seconds, time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise too_slow(self.path, self.seconds)


def too_slow(path: str, seconds: float) -> VideoError:
    return VideoError(
        f"reading {path!r} took more than {seconds:g} seconds",
        "a decoder that hangs on one file would stop the whole run",
        "Exclude the file, or raise Limits.max_seconds.",
        VideoReason.TOO_SLOW,
    )


def too_heavy(path: str, measure: str, max_bytes: int) -> VideoError:
    return refuse(
        path,
        VideoReason.TOO_LARGE,
        f"{measure}, the limit is {max_bytes / 2**20:,.0f} MiB",
        "Ask for fewer or smaller frames (count, size), or raise Limits.max_bytes.",
    )


def refuse(path: str, reason: VideoReason, why: str, todo: str) -> VideoError:
    return VideoError(f"{path!r} cannot be read as a clip", why, todo, reason)


@contextlib.contextmanager
def typed(name: str, limits: Limits) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes a `VideoError` with its reason, so that it costs that file."""
    try:
        yield
    except DeepIntuitError:
        raise
    except MemoryError as error:
        raise too_heavy(name, "decoding it ran out of memory", limits.max_bytes) from error
    except OSError as error:
        raise _unreadable(name, error) from error
    except Exception as error:  # a file that grows or shrinks meanwhile gives KeyError, IndexError and others
        why = f"the reader fails on it ({type(error).__name__}: {error})"
        raise refuse(name, VideoReason.DECODE_FAILED, why, "Re-encode it, or leave it out.") from error


def _unreadable(name: str, error: OSError) -> VideoError:
    """What the system says when it does not give a file: no verdict on what is in it."""
    why = f"the system says: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return refuse(name, VideoReason.NO_PERMISSION, why, "Let this user read the file and enter its folders.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return refuse(name, VideoReason.NOT_FOUND, why, "Check the path.")
    return refuse(name, VideoReason.READ_FAILED, why, "Check the disk or the network mount, then try again.")


def local_file(path: str | os.PathLike[str]) -> str:
    """The absolute path of a regular, non-empty file; `VideoError` for all else. Symbolic links are followed."""
    # An absolute path can never be taken for a protocol ("concat:", "http:", "-"), whatever characters it holds.
    name = os.path.abspath(os.fspath(path))
    try:
        facts = os.stat(name)
    except OSError as error:
        raise _unreadable(name, error) from error
    except ValueError as error:
        raise refuse(name, VideoReason.NOT_FOUND, f"the system says: {error}", "Check the path.") from error
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a device, pipe or socket"
        raise refuse(name, VideoReason.NOT_A_VIDEO, f"it is {kind}, not a regular file", "Name the video file itself.")
    if facts.st_size == 0:
        raise refuse(name, VideoReason.EMPTY_FILE, "it holds 0 bytes", "Copy or download it again.")
    return name


def state(name: str) -> tuple[int, int] | None:
    """Bytes and time stamp of a file; None when it is gone."""
    try:
        facts = os.stat(name)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def changed(name: str) -> VideoError:
    return refuse(
        name,
        VideoReason.CHANGED,
        "it was written to, or taken away, while it was read",
        "Import it when it is complete.",
    )


def file_sha256(path: str | os.PathLike[str], clock: Clock | None = None) -> str:
    """In hex. Raises OSError, and `VideoError` when the time of a `clock` is up."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
            if clock is not None:
                clock.check()
    return digest.hexdigest()


@contextlib.contextmanager
def opened(path: str, limits: Limits) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its best video stream; the decoder has one thread and allocates no more than `max_pixels`."""
    with open_container(path, max_pixels=str(limits.max_pixels)) as container:
        pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not pictures:
            raise refuse(
                path, VideoReason.NO_VIDEO_STREAM, "it holds no moving picture", "Leave sound files out of the set."
            )
        stream = container.streams.best("video")
        if stream not in pictures:
            stream = pictures[0]
        if stream.codec_context is None:
            raise refuse(
                path, VideoReason.DECODE_FAILED, "its codec is unknown to the decoders here", "Re-encode it as H.264."
            )
        width, height = stream.width, stream.height
        if not width or not height:
            # FFmpeg drops sizes past max_pixels: ask the header alone what it claims, without any decoding.
            with open_container(path, probesize="32", analyzeduration="1") as bare:
                width, height = bare.streams[stream.index].width, bare.streams[stream.index].height
        if width * height > limits.max_pixels:
            raise refuse(
                path,
                VideoReason.TOO_LARGE,
                f"its header claims {width}x{height} pixels a frame, the limit is {limits.max_pixels:,}",
                "Raise Limits.max_pixels if you trust the file, or make a smaller copy.",
            )
        if 0 < min(width, height) < limits.min_side:
            raise refuse(
                path,
                VideoReason.TOO_SMALL,
                f"its frames are {width}x{height}, the shorter side must have {limits.min_side}",
                "Leave it out, or lower Limits.min_side.",
            )
        if not stream.codec_context.is_open:
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        yield container, stream


def open_container(path: str, **options: str) -> av.container.InputContainer:
    """A local file in one of the known containers; `options` are FFmpeg's."""
    # One thread: with several, where a damaged stream stops depends on timing. Runs are parallel over clips instead.
    safe = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "threads": "1"}
    try:
        return av.open(path, metadata_errors="ignore", options=safe | options)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (av.FFmpegError, UnicodeError, ValueError) as error:
        raise _unopened(path, error) from error


def _unopened(path: str, error: Exception) -> VideoError:
    """Why FFmpeg could not open it: told from the first bytes, since FFmpeg says "invalid data" to everything."""
    with Path(path).open("rb") as file:
        head = file.read(64)
        boxes = _top_boxes(file) if head[4:8] == b"ftyp" else []
    if head.startswith(b"version https://git-lfs"):
        return refuse(path, VideoReason.NOT_A_VIDEO, "it is a Git LFS pointer", "Run `git lfs pull` to fetch it.")
    if boxes and b"moov" not in boxes:
        return refuse(
            path, VideoReason.TRUNCATED, "its index (moov) is missing: the file is cut", "Copy or record it again."
        )
    if boxes or head[8:12] == b"AVI " or head[:4] in (b"\x1a\x45\xdf\xa3", b"OggS", b"FLV\x01"):
        return refuse(
            path, VideoReason.DECODE_FAILED, f"its container is damaged ({error})", "Copy, repair or re-encode it."
        )
    return refuse(
        path, VideoReason.NOT_A_VIDEO, f"no video container is recognised in it ({error})", "Leave it out of the set."
    )


def _top_boxes(file) -> list[bytes]:
    """Names of the outermost MP4 boxes that begin inside the file (ISO/IEC 14496-12, 4.2)."""
    names, at, end = [], 0, os.fstat(file.fileno()).st_size
    while at + 8 <= end and len(names) < 10_000:
        file.seek(at)
        head = file.read(16)
        names.append(head[4:8])
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:16], "big") if size == 1 else size
        if size < 8:
            break
        at += size
    return names


def start_seconds(container: av.container.InputContainer) -> float:
    """Where the container's clock begins; a player shows this moment as 0. MP4 has a timeline of its own, which begins
    at 0 even where its first frame comes later; recordings of broadcasts and some Matroska files begin anywhere."""
    return 0.0 if container.format.name.startswith("mov") else (container.start_time or 0) / av.time_base


def scan(container: av.container.InputContainer, stream: av.VideoStream, limits: Limits, clock: Clock) -> Index:
    """Read all packets once without decoding: milliseconds where a decode takes seconds."""
    ticks: list[int] = []
    count, whole, last = 0, True, 0.0
    newest, last_duration = -(2**63), 0
    for packet in packets(container, None, clock):
        if packet.pts is not None and packet.time_base is not None:
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != stream.index or not packet.size:
            continue
        count += 1
        whole = whole and packet.pts is not None and not packet.is_discard and not packet.is_corrupt
        tick = tick_of(packet, container)
        if tick is not None and not packet.is_discard:
            ticks.append(tick)
            if tick > newest:
                newest, last_duration = tick, packet.duration or 0
        if count > limits.max_frames:
            raise refuse(
                clock.path,
                VideoReason.TOO_LARGE,
                f"it holds more than {limits.max_frames:,} frames",
                "Cut it into clips, or raise Limits.max_frames.",
            )
    ticks_N = np.unique(np.array(ticks, np.int64))
    start = start_seconds(container)
    seconds = (container.duration or 0) / av.time_base
    claimed = stream.frames
    if container.format.name == "avi" and count:  # counts places, of which those of dropped frames are empty
        after = claimed - newest - 1
        claimed = count + (after if after >= np.diff(ticks_N).max(initial=1) else 0)
    if container.format.name.startswith("matroska"):  # writes where it ends, others how long they are
        seconds -= start
    cut = claimed > count + 1 or last - start < 0.9 * seconds - 0.5
    base = float(stream.time_base or 0)
    return Index(ticks_N * base - start, whole and len(ticks_N) == count, last_duration * base, cut, claimed)


def tick_of(packet: av.Packet, container: av.container.InputContainer) -> int | None:
    """The time that the container itself gives a packet. In order, these are the times of the pictures in order of
    presentation, also where a muxer that knew no B-frames wrote times of decoding."""
    return packet.dts if packet.pts is None or container.format.name in NO_TIMES else packet.pts


def packets(container, stream, clock: Clock) -> Iterator[av.Packet]:
    """Packets until the end or until the file breaks off."""
    demuxed = container.demux(stream) if stream is not None else container.demux()
    while True:
        clock.check()
        try:
            packet = next(demuxed, None)
        except av.FFmpegError:
            return  # what comes after cannot be found; the caller sees fewer packets than the header claims
        if packet is None:
            return
        yield packet
