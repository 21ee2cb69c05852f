"""Files by id: clips with Range requests, the frames that a trace was written from, what the pages need of scripts and styles.

A handler takes an id and looks the path up in the manifest; no address holds a path. Frames are decoded again at the
indices that the trace recorded, and kept in the workbench's cache.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, Response

from app.desk import Desk
from deepintuit.errors import DeepIntuitError
from deepintuit.store import browse

STATIC = Path(__file__).with_name("static")
_SERVED = {"style.css": "text/css", "app.js": "text/javascript"}
_A_DAY = {"Cache-Control": "private, max-age=86400"}


def clip_url(clip_id: str) -> str:
    return f"/media/clip/{clip_id}"


def frame_url(trace_id: str, number: int) -> str:
    return f"/media/frame/{trace_id}/{number}"


@lru_cache(maxsize=1)
def _plotly() -> bytes:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().encode()


def routes(desk: Desk) -> APIRouter:
    router = APIRouter()

    @router.get("/static-app/{name}")
    def static(name: str) -> Response:
        if name == "plotly.js":
            return Response(_plotly(), media_type="text/javascript", headers=_A_DAY)
        if name not in _SERVED:
            raise HTTPException(404)
        return FileResponse(STATIC / name, media_type=_SERVED[name])

    @router.get("/media/clip/{clip_id}")
    def clip(clip_id: str) -> FileResponse:
        """The copy that a browser can play, where import made one; else the file itself."""
        path = browse.clip_file(desk.look(), clip_id)
        if path is None:
            raise HTTPException(404, "No clip of this id is in the workbench.")
        if not path.is_file():
            raise HTTPException(410, "The file of this clip was moved or deleted.")
        return FileResponse(path, media_type="video/mp4" if path.suffix.lower() in {".mp4", ".m4v"} else None, headers=_A_DAY)

    @router.get("/media/frame/{trace_id}/{number}")
    def frame(trace_id: str, number: int) -> Response:
        pictures = seen(desk, trace_id)
        if not 0 <= number < len(pictures):
            raise HTTPException(404, "This trace saw no such frame.")
        return Response(pictures[number], media_type="image/jpeg", headers=_A_DAY)

    return router


def seen(desk: Desk, trace_id: str) -> list[bytes]:
    """JPEGs of the frames that this trace was written from, in order. Empty when the clip can no longer be read."""
    trace = browse.trace(desk.look(), trace_id)
    path = browse.clip_file(desk.workbench, trace.clip_id, playable=False) if trace is not None else None
    if path is None or trace.frame_indices is None or trace.frames_size is None:
        return []
    try:
        width, height = map(int, trace.frames_size)
        return _jpegs(str(path), len(trace.frame_indices), (width, height), trace.frame_hash)
    except DeepIntuitError:
        return []


@lru_cache(maxsize=64)
def _jpegs(path: str, count: int, size: tuple[int, int], expected: str) -> list[bytes]:
    # `expected` is part of the key: a clip whose file changed is another picture.
    from PIL import Image

    from deepintuit import video

    frames = video.read(path, count, size)
    pictures = []
    for pixels in frames.pixels_T_H_W_3:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=88)
        pictures.append(file.getvalue())
    return pictures
