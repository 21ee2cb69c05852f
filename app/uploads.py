"""Clips that a visitor brought: checked by the reader before use, served by an id nobody can guess, gone after an hour.

They lie in a folder of this process outside the workbench, and nothing derived from them is kept.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from deepintuit import video
from deepintuit.errors import VideoError, VideoReason

PREFIX = "upload-"
MAX_BYTES = 200 * 2**20
MAX_SECONDS = 600.0
_HOUR = 3600.0
_MOST = 50


@dataclass(frozen=True)
class Upload:
    """An accepted file. `path`: what the model reads; `playable`: what a browser plays; `until`: monotonic seconds."""

    id: str
    name: str
    path: Path
    playable: Path
    info: video.ClipInfo
    until: float


class Uploads:
    """All that is here now. Every method may be called from many threads."""

    def __init__(self, keep: float = _HOUR, clock=time.monotonic):
        self._keep, self._clock, self._lock = keep, clock, threading.Lock()
        self._known: dict[str, Upload] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def accept(self, given: str | os.PathLike[str], name: str) -> Upload:
        """Take a file over: the one at `given` is moved away or, when refused, deleted. Raises `VideoError`."""
        given = Path(given)
        try:
            if given.stat().st_size > MAX_BYTES:
                raise _refused(name, f"it is larger than {MAX_BYTES >> 20} MB", "Cut or scale it down")
            info = video.probe(given, isolate=True)
            if info.seconds > MAX_SECONDS:
                raise _refused(name, f"it is {info.seconds / 60:.0f} minutes long, more than 10", "Cut out the clip")
            number = PREFIX + secrets.token_urlsafe(18)
            path = self._root() / f"{number}{given.suffix.lower() if given.suffix.isascii() else ''}"
            shutil.move(given, path)
        except VideoError as error:
            what, why = (beat.replace(str(given), name) for beat in (error.what, error.why))
            raise VideoError(what, why, error.todo, error.reason) from error
        finally:
            given.unlink(missing_ok=True)
        playable = path
        if not info.playable:
            playable = self._root() / f"{number}.play.mp4"
            try:
                video.playable_copy(path, playable)
            except VideoError:
                path.unlink(missing_ok=True)
                raise
        upload = Upload(number, name, path, playable, info, self._clock() + self._keep)
        with self._lock:
            self._known[number] = upload
        self.sweep()
        timer = threading.Timer(self._keep + 1, self.sweep)  # also when nobody asks again
        timer.daemon = True
        timer.start()
        return upload

    def get(self, number: str) -> Upload | None:
        """The upload of this id while it is here."""
        self.sweep()
        with self._lock:
            return self._known.get(number)

    def sweep(self) -> None:
        """Delete what is past its hour, and the oldest past fifty."""
        with self._lock:
            late = [upload for upload in self._known.values() if upload.until <= self._clock()]
            late += list(self._known.values())[: max(0, len(self._known) - len(late) - _MOST)]
            for upload in late:
                self._known.pop(upload.id, None)
        for upload in late:
            upload.path.unlink(missing_ok=True)
            upload.playable.unlink(missing_ok=True)

    def _root(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="deepintuit-uploads-")
            return Path(self._folder.name)


def _refused(name: str, why: str, todo: str) -> VideoError:
    return VideoError(f"The file {name!r} cannot be used", why, todo, VideoReason.TOO_LARGE)
