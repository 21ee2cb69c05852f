"""Reading in a child process (`worker`), so that a decoder that hangs, crashes or eats memory takes only itself along.

It is no sandbox. The child has the rights of its parent.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from .. import worker
from ..errors import DiskError, VideoError, VideoReason
from .clip import ClipInfo, Limits, refuse, too_slow
from .encode import COPY_SECONDS, playable_copy
from .frames import Frames, is_video, probe, read

# Address space beyond what the limits allow: thread stacks, allocator arenas and libraries that load late.
HEADROOM_BYTES = 2**30
BEGINNING = Limits(max_seconds=10)
"""For a look at how a file begins."""

_children = worker.Pool(__name__, os.cpu_count() or 1)


def _ask(
    path: str | os.PathLike[str], limits: Limits, request: dict[str, Any], times: float = 1
) -> tuple[dict[str, Any], bytes]:
    name, seconds = os.path.abspath(os.fspath(path)), times * limits.max_seconds
    request = request | {"path": name, "limits": dataclasses.asdict(limits)}
    try:
        answer, body = _children.ask(request, seconds, limits.max_bytes + HEADROOM_BYTES)
    except worker.Stopped as stop:
        if stop.late:
            raise too_slow(name, seconds) from stop
        why = f"the decoder crashed on it ({stop.reason})"
        raise refuse(name, VideoReason.DECODE_FAILED, why, "Re-encode it, or leave it out.") from stop
    if "error" in answer:
        raise VideoError(*answer["error"])
    if "disk" in answer:
        raise DiskError(*answer["disk"])
    return answer, body


def remote_probe(path, limits: Limits) -> ClipInfo:
    return ClipInfo(**_ask(path, limits, {"call": "probe"})[0]["info"])


def remote_read(path, count: int, size, limits: Limits, fps) -> Frames:
    answer, body = _ask(path, limits, {"call": "read", "count": count, "size": size, "fps": fps})
    pixels = np.frombuffer(bytearray(body), np.uint8).reshape(answer["shape"])
    return Frames.of(
        pixels, answer["indices"], answer["times"], answer["seconds"], answer["reader"], answer["truncated"]
    )


def remote_copy(path, target: str | os.PathLike[str], limits: Limits) -> str:
    request = {"call": "copy", "target": os.path.abspath(os.fspath(target))}
    return _ask(path, limits, request, COPY_SECONDS)[0]["note"]


def remote_is_video(path) -> bool:
    return _ask(path, BEGINNING, {"call": "is_video"})[0]["is_video"]


def serve() -> None:
    """The child's loop."""
    import decord  # noqa: F401  its libraries are to be counted in the base, not in the first file's memory

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders chatter there; what matters comes back as an error
    worker.serve(_answer)


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], bytes | memoryview]:
    path, limits = request["path"], Limits(**request["limits"])
    try:
        if request["call"] == "probe":
            return {"info": dataclasses.asdict(probe(path, limits))}, b""
        if request["call"] == "is_video":
            return {"is_video": is_video(path)}, b""
        if request["call"] == "copy":
            return {"note": playable_copy(path, request["target"], limits)}, b""
        size = tuple(request["size"]) if request["size"] else None
        frames = read(path, request["count"], size, limits, request["fps"])
    except VideoError as error:
        return {"error": [error.what, error.why, error.todo, error.reason]}, b""
    except DiskError as error:  # of the target of a copy
        return {"disk": error.args}, b""
    facts = {
        "shape": frames.pixels_T_H_W_3.shape,
        "indices": frames.indices_T.tolist(),
        "times": frames.times_T.tolist(),
        "seconds": frames.seconds,
        "reader": frames.reader,
        "truncated": frames.truncated,
    }
    return facts, memoryview(frames.pixels_T_H_W_3).cast("B")
