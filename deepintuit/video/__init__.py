"""Clip file → frames with their real times: the one reader of the project.

decord reads the files it is known to read as PyAV does (same frames, bit for bit; see `frames.trusted_to_decord`), PyAV
reads the rest, and what neither can read is a `VideoError` with a `VideoReason`. `Frames.reader` says which one read.

- Times are the container's timestamps on the clock a player shows (its start is 0), never index ÷ fps.
- Rotation and mirroring are applied. Pixels that are not square stay as stored: `ClipInfo.sar` records the ratio,
  nothing stretched.
- Of several video streams, FFmpeg's best one (the largest) is read; cover art is not a video stream.
- A file that ends before its header says is read as far as it goes, and `truncated` says so.
- Only regular local files are opened, only as known video containers: no URLs, playlists, devices or still images.

Native decoders cannot be interrupted: in this process `Limits.max_seconds` is looked at between packets. For a file
nobody has read before, `isolate=True` reads in a child process that is killed when it hangs and may crash alone.

Audio and colour management are not handled.
Run it:  python -m deepintuit.video clip.mp4 …
"""

from ..errors import VideoError, VideoReason
from .cache import DiskCache, cached_read
from .clip import DEFAULT_LIMITS, ClipInfo, Limits, file_sha256
from .distort import distorted
from .encode import jpeg, playable_copy, write_mp4
from .frames import FrameRecord, Frames, frame_size, is_video, probe, read, sample, sampled_frames

__all__ = [
    "DEFAULT_LIMITS", "ClipInfo", "DiskCache", "FrameRecord", "Frames", "Limits", "VideoError", "VideoReason",
    "cached_read", "distorted", "file_sha256", "frame_size", "is_video", "jpeg", "playable_copy", "probe", "read",
    "sample", "sampled_frames", "write_mp4",
]  # fmt: skip
