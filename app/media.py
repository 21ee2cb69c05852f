"""Files by id: clips with Range requests, the frames that a model saw, what the pages need of scripts and styles.

A handler takes an id and looks the path up in the manifest; no address holds a path. A manifest of somebody else may
name any file of this machine, so only what the reader takes for a video is sent, and always as one: no browser runs it.
The frames of a stored trace are decoded again and shown only if they are, bit for bit, those that it recorded.
"""

from __future__ import annotations

import contextlib
import mimetypes
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, Response

from deepintuit import video
from deepintuit.errors import OF_THE_MOMENT, DeepIntuitError, VideoError
from deepintuit_analysis.index import browse
from deepintuit_app.context import AppContext, apart
from deepintuit_app.uploads import PREFIX

STATIC = Path(__file__).with_name("static")
_SERVED = {
    "frame.css": "text/css", "style.css": "text/css", "review.css": "text/css", "icon.svg": "image/svg+xml",
    "app.js": "text/javascript", "review.js": "text/javascript",
}  # fmt: skip
_A_DAY = {"Cache-Control": "private, max-age=86400"}
# The card's own policy names the hashes of its scripts, and holds beside this one.
_CARD = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; frame-ancestors 'self'"
)
_NOT_KEPT = {"Cache-Control": "private, no-store"}
_NONE = "No clip of this id is in the workbench, or it is excluded."
_POSTER = 320
_LIMITS = video.Limits(max_seconds=20)
"""For a poster."""
_decoding = threading.Lock()
"""One trace's frames at a time: a page asks for many at once, and most of them are of one clip."""


def clip_url(clip_id: str) -> str:
    return f"media/clip/{clip_id}"


def poster_url(clip_id: str) -> str:
    return f"media/poster/{clip_id}"


def frame_url(trace_id: str, number: int) -> str:
    """Frame `number` (from 0) of those that the trace was written from."""
    return f"media/frame/{trace_id}/{number}"


def kept_url(key: str, number: int) -> str:
    """Frame `number` (from 0) of pictures that `Pictures.keep` took."""
    return f"media/kept/{key}/{number}"


class Pictures:
    """JPEGs of what live models saw, by an id nobody can guess; the last sets only."""

    def __init__(self, room: int = 64):
        self._room, self._lock = room, threading.Lock()
        self._held: OrderedDict[str, list[bytes]] = OrderedDict()

    def keep(self, pixels_T_H_W_3: np.ndarray) -> str:
        key = secrets.token_urlsafe(18)
        pictures = [video.jpeg(pixels) for pixels in pixels_T_H_W_3]
        with self._lock:
            self._held[key] = pictures
            while len(self._held) > self._room:
                self._held.popitem(last=False)
        return key

    def get(self, key: str) -> list[bytes]:
        with self._lock:
            return self._held.get(key, [])


pictures = Pictures()


@lru_cache(maxsize=1)
def _plotly() -> bytes:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().encode()


def routes(context: AppContext) -> APIRouter:
    router, decoding = APIRouter(), apart(2)

    @router.get("/static-app/{name}")
    def static(name: str) -> Response:
        if name == "plotly.js":
            return Response(_plotly(), media_type="text/javascript", headers=_A_DAY)
        if name not in _SERVED:
            raise HTTPException(404)
        return FileResponse(STATIC / name, media_type=_SERVED[name])

    @router.get("/media/clip/{clip_id}")
    @decoding
    def clip(clip_id: str) -> FileResponse:
        """The copy that a browser can play, where import made one; else the file itself."""
        path, headers = _file(context, clip_id)
        if path is None:
            raise HTTPException(404, _NONE)
        if not _readable(path):
            raise HTTPException(410, "The file of this clip was moved or deleted, or it cannot be read.")
        facts = path.stat()
        if not _is_video(str(path), facts.st_mtime_ns, facts.st_size):
            raise HTTPException(404, "This clip cannot be read any more.")
        kind = mimetypes.guess_type(path.name)[0] or ""
        kind = kind if kind.startswith("video/") else "video/mp4"
        return FileResponse(path, media_type=kind, headers=headers)

    @router.get("/media/poster/{clip_id}")
    @decoding
    def poster(clip_id: str) -> Response:
        """A small picture of the middle of a clip."""
        path, headers = _file(context, clip_id)
        if path is None or not _readable(path):
            raise HTTPException(404, _NONE)
        facts = path.stat()
        with contextlib.suppress(DeepIntuitError):
            if (picture := _middle(str(path), facts.st_mtime_ns, facts.st_size)) is not None:
                return Response(picture, media_type="image/jpeg", headers=headers)
        raise HTTPException(404, "This clip cannot be read any more.")

    @router.get("/media/frame/{trace_id}/{number}")
    @decoding
    def frame(trace_id: str, number: str) -> Response:
        return _picture(seen(context, trace_id), number, _A_DAY)

    @router.get("/media/kept/{key}/{number}")
    def kept(key: str, number: str) -> Response:
        return _picture(pictures.get(key), number, _NOT_KEPT)

    @router.get("/media/card/{run_id}")
    def card(run_id: str) -> FileResponse:
        """A run card, in a sandbox of its own: it may draw its figures and reach nothing, not even this server."""
        run_ids = {run.id for run in context.workbench.runs()}
        path = context.workbench.path / "reports" / f"{run_id}.html"
        if run_id not in run_ids or not path.is_file():
            raise HTTPException(404, "No card was written for a run of this id.")
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": _CARD, **_NOT_KEPT})

    return router


def _picture(pictures: Sequence[bytes], number: str, headers: dict[str, str]) -> Response:
    if number not in map(str, range(len(pictures))):
        raise HTTPException(404, "There is no such frame.")
    return Response(pictures[int(number)], media_type="image/jpeg", headers=headers)


def _readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:  # a folder that is closed
        return False


def _file(context: AppContext, clip_id: str) -> tuple[Path | None, dict[str, str]]:
    if clip_id.startswith(PREFIX):
        upload = context.uploads.get(clip_id)
        return (upload.playable if upload else None), _NOT_KEPT
    return browse.clip_file(context.look(), clip_id), _A_DAY


def seen(context: AppContext, trace_id: str) -> list[bytes]:
    """JPEGs of the frames that this trace was written from, in order.

    Empty when they cannot be had any more: the clip is gone, cannot be read, or gives other frames than those recorded.
    """
    trace = browse.trace(context.look(), trace_id)
    path = browse.clip_file(context.workbench, trace.clip_id, playable=False) if trace is not None else None
    if path is None or not _readable(path) or browse.missing(trace.frame_indices) or browse.missing(trace.frames_size):
        return []
    facts, (width, height) = path.stat(), map(int, trace.frames_size)
    expected = None if browse.missing(trace.frame_hash) else str(trace.frame_hash)
    settings = _settings(context, trace.run_id)
    sampling, evaluated = (settings.get(section) or {} for section in ("video", "evaluate"))
    ways = [(len(trace.frame_indices), None)]
    if sampling.get("fps") and sampling.get("frames"):
        ways.append((int(sampling["frames"]), float(sampling["fps"])))
    distortion = None
    if evaluated.get("distortion", "none") != "none":
        distortion = evaluated["distortion"], evaluated["distortion_strength"], trace.clip_id
    try:
        with _decoding:
            return _jpegs(
                str(path), facts.st_mtime_ns, facts.st_size, tuple(ways), (width, height), expected, distortion
            )
    except DeepIntuitError:
        return []


def _settings(context: AppContext, run_id: str) -> dict[str, dict]:
    """Those of a run, by section; nothing of one that is not there."""
    try:
        about = context.workbench.run(run_id).about
    except DeepIntuitError:
        return {}
    return about.get("settings") or about.get("config") or {}


@lru_cache(maxsize=4096)
def _is_video(path: str, _changed: int, _bytes: int) -> bool:
    return video.is_video(path, isolate=True)


@lru_cache(maxsize=64)
def _jpegs(
    path: str,
    _changed: int,
    _bytes: int,
    ways: tuple[tuple[int, float | None], ...],
    size: tuple[int, int],
    expected: str | None,
    distortion: tuple[str, float, str] | None,
) -> list[bytes]:
    # Time and size of the file are part of the key: a clip that was replaced gives other pictures.
    for count, rate in ways:
        frames = video.read(path, count, size, fps=rate, isolate=True)
        if distortion:
            frames = video.distorted(frames, *distortion)
        if expected in (None, frames.hash):
            return [video.jpeg(pixels) for pixels in frames.pixels_T_H_W_3]
    return []


@lru_cache(maxsize=1024)
def _middle(path: str, _changed: int, _bytes: int) -> bytes | None:
    """None where it cannot be decoded in time, which is not tried again."""
    try:
        info = video.read(path, 1, isolate=True, limits=_LIMITS)
    except VideoError as error:
        if error.reason in OF_THE_MOMENT:
            raise
        return None
    return video.jpeg(info.pixels_T_H_W_3[0], (_POSTER, 4 * _POSTER))
