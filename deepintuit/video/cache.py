"""Decoded frames and visual features on disk, by content and settings: computed once in the project's life. Deletable.

An entry is a safetensors file, written to a temporary name and renamed. It holds its own name and a checksum over all
that is in it: one that is damaged, cut, or in another's place counts as absent, is computed again and overwritten.
Several processes may write, read and evict at once; whoever finds an entry gone computes it. Processes do not lock each
other out. Two that miss the same entry at once both compute it, and write the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .. import disk
from .clip import DEFAULT_LIMITS, Limits
from .frames import Frames, read

# Raise when sampling, resizing or rotation change, so that old entries are not met again.
RECIPE = 2

KINDS = ("frames", "features")
"""Folders under one bound: features outlive the frames they were made of, since frames are read no more after them."""


class DiskCache:
    """Arrays and facts by key, in folders of at most `gib` GiB together; what was used longest ago makes room
    (`disk.Room`)."""

    def __init__(self, root: str | os.PathLike[str], gib: float = 50.0) -> None:
        self.root = Path(root)
        self._room = disk.Room(self.root, KINDS, int(gib * 2**30))

    def get(self, kind: str, *key: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and facts as they were put; None when they are not there whole."""
        entry = self._entry(kind, key)
        try:
            with safe_open(entry, "np") as file:
                checksum, name, facts = json.loads(file.metadata()["entry"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}
            if name != entry.stem or checksum != _checksum(name, facts, arrays):
                return None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)  # used now; evicted meanwhile, or another person's: read is read
        return arrays, facts

    def put(self, kind: str, *key: Any, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Keep contiguous arrays and facts (JSON) for `get`."""
        entry = self._entry(kind, key)
        about = json.dumps([_checksum(entry.stem, facts, arrays), entry.stem, facts])
        with disk.optional(self.root):
            if not self._room.make(sum(array.nbytes for array in arrays.values()) + len(about) + 4096):
                return
            entry.parent.mkdir(parents=True, exist_ok=True)
            with disk.replacing(entry, durable=False) as temporary:
                save_file(dict(arrays), temporary, {"entry": about})

    def _entry(self, kind: str, key: tuple) -> Path:
        return disk.entry(self.root / kind, ".safetensors", key)


def _checksum(name: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(json.dumps([name, facts]).encode(), digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def cached_read(
    cache: DiskCache | None,
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
    key = "frames", RECIPE, sha256, int(count), list(map(int, size)) if size else None, float(fps or 0)
    if entry := cache.get(*key):
        arrays, facts = entry
        return Frames(arrays["pixels"], arrays["indices"], arrays["times"], **facts)
    frames = read(path, count, size, limits, fps, isolate=isolate)
    cache.put(
        *key,
        arrays={"pixels": frames.pixels_T_H_W_3, "indices": frames.indices_T, "times": frames.times_T},
        facts={name: getattr(frames, name) for name in ("seconds", "reader", "truncated", "hash")},
    )
    return frames
