"""Decoded frames kept by clip and settings: a clip is decoded once in the project's life. Deletable at any time.

Left out on purpose: eviction. Delete the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from .clip import DEFAULT_LIMITS, Limits
from .frames import Frames, read

# Raise when sampling, resizing or rotation change, so that old entries are not met again.
RECIPE = 1


class FrameCache:
    """A folder of `.npz` files, one per (clip SHA-256, settings). An entry that fails its own hash counts as absent."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def entry(self, sha256: str, count: int, size: tuple[int, int] | None, fps: float | None) -> Path:
        settings = [RECIPE, sha256, int(count), list(map(int, size)) if size else None, float(fps or 0)]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.npz"

    def get(self, entry: Path) -> Frames | None:
        try:
            with np.load(entry, allow_pickle=False) as held:
                reader, truncated, digest = json.loads(str(held["facts"]))
                frames = Frames.of(
                    held["pixels"], held["indices"], held["times"], float(held["seconds"]), reader, truncated
                )
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, TypeError, KeyError, NotImplementedError, zipfile.BadZipFile):
            return None  # damaged: the caller decodes again and overwrites it
        return frames if frames.hash == digest else None

    def put(self, entry: Path, frames: Frames) -> None:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temp = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file,
                    pixels=frames.pixels_T_H_W_3,
                    indices=frames.indices_T,
                    times=frames.times_T,
                    seconds=np.float64(frames.seconds),
                    facts=np.array(json.dumps([frames.reader, frames.truncated, frames.hash])),
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, entry)
        finally:
            Path(temp).unlink(missing_ok=True)


def cached_read(
    cache: FrameCache | None,
    path: str | os.PathLike[str],
    sha256: str,
    count: int,
    size: tuple[int, int] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    fps: float | None = None,
    *,
    isolate: bool = False,
) -> Frames:
    """`read`, or what it gave before for the same clip content and settings. `sha256` is the clip id; the file is not
    hashed again, so a manifest whose file was changed since its import gives the old frames."""
    if cache is None:
        return read(path, count, size, limits, fps, isolate=isolate)
    entry = cache.entry(sha256, count, size, fps)
    frames = cache.get(entry)
    if frames is None:
        frames = read(path, count, size, limits, fps, isolate=isolate)
        cache.put(entry, frames)
    return frames
