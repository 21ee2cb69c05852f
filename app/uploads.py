"""Clips that a visitor brought: checked by the reader before use, served by an id nobody can guess, gone after an hour.

They lie in one folder of this process (0700, outside the workbench), which ends with it however it ends: the last
server of a process removes it, a child that outlives a killed process does, and so does the next start.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deepintuit import disk, video
from deepintuit.errors import DiskError, VideoError, VideoReason

PREFIX = "upload-"
MAX_BYTES = 200 * 2**20
MAX_SECONDS = 600.0
ROOM = 4 * 2**30
"""Bytes of all accepted files with their copies for browsers, where the disk has as much to give (see `room`)."""
_HOUR = 3600.0
_MOST = 50
_LIMITS = video.Limits(max_copy_bytes=MAX_BYTES)
_FOLDERS = "deepintuit-uploads-*"
_AFTER_ITS_PARENT = 'trap "" HUP INT TERM; read -r _; rm -rf -- "$0"'
"""For a shell whose input ends when the process that holds the other end does, killed or not."""


@dataclass(frozen=True)
class Upload:
    """An accepted file. `path`: what the model reads; `playable`: what a browser plays; `bytes` of both; `until`:
    monotonic seconds."""

    id: str
    name: str
    path: Path
    playable: Path
    info: video.ClipInfo
    bytes: int
    until: float

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self.playable.unlink(missing_ok=True)


class _Folder:
    """The private folder of a process: one for all its servers, since Gradio knows one place for uploads."""

    def __init__(self) -> None:
        self._lock, self._holders = threading.Lock(), 0
        atexit.register(self._remove)

    def hold(self) -> Path:
        """The folder, made where nobody holds it yet."""
        with self._lock:
            if not self._holders:
                self._make()
            self._holders += 1
            return self.path

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._remove()

    def _make(self) -> None:
        self._scratch = disk.Scratch(Path(tempfile.gettempdir()).resolve(), _FOLDERS)
        self.path = self._scratch.path
        self._child = subprocess.Popen(
            ["/bin/sh", "-c", _AFTER_ITS_PARENT, self.path],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/",
        )  # fmt: skip
        (self.path / "received").mkdir(0o700)
        os.environ["GRADIO_TEMP_DIR"] = str(self.path / "received")

    def _remove(self) -> None:
        if (child := self.__dict__.pop("_child", None)) is not None:
            self._scratch.remove()
            os.environ.pop("GRADIO_TEMP_DIR", None)
            child.communicate()


_folder = _Folder()


class Uploads:
    """All that is here now. Every method may be called from many threads."""

    def __init__(self, keep: float = _HOUR, clock=time.monotonic):
        self._keep, self._clock, self._lock = keep, clock, threading.Lock()
        self._known: OrderedDict[str, Upload] = OrderedDict()  # what was asked for last stands last
        self._read: Counter[str] = Counter()

    @cached_property
    def _root(self) -> Path:
        return _folder.hold()

    @property
    def inbox(self) -> Path:
        """Where Gradio puts what a browser sends, before it is accepted."""
        return self._root / "received"

    def received(self, place: object) -> Path | None:
        """The file at `place`, links followed, if a browser sent it to this process; None for any other."""
        try:
            path = Path(place).resolve(strict=True)  # type: ignore[arg-type]
            return path if path.is_relative_to(self.inbox) and path.is_file() else None
        except (OSError, RuntimeError, TypeError, ValueError):
            return None

    def close(self) -> None:
        """Delete all that is here."""
        with self._lock:
            uploads, self._known = list(self._known.values()), {}
        for upload in uploads:
            upload.delete()
        if self.__dict__.pop("_root", None) is not None:
            _folder.release()

    def accept(self, place: str | os.PathLike[str], name: str) -> Upload:
        """Take a file over: the one at `place` is moved away or, when refused, deleted. Raises `VideoError`, also for a
        file that no browser sent here, which is left alone."""
        file = self.received(place)
        if file is None:
            todo = "Bring the file with the upload button of this page"
            raise _refused(name, "it was not uploaded here", todo, VideoReason.NOT_FOUND)
        number = PREFIX + secrets.token_urlsafe(18)
        playable = path = self._root / f"{number}{file.suffix.lower() if file.suffix.isascii() else ''}"
        try:
            if file.stat().st_size > MAX_BYTES:
                raise _refused(name, f"it is larger than {MAX_BYTES >> 20} MB", "Cut or scale it down")
            info = video.probe(file, isolate=True)
            if info.seconds > MAX_SECONDS:
                raise _refused(name, f"it is {info.seconds / 60:.0f} minutes long, more than 10", "Cut out the clip")
            shutil.move(file, path)
            if not info.playable:
                playable = self._root / f"{number}.play.mp4"
                video.playable_copy(path, playable, _LIMITS, isolate=True)
            size = sum(p.stat().st_size for p in {path, playable})
            upload = Upload(number, name, path, playable, info, size, self._clock() + self._keep)
            with self._lock:
                self._known[number] = upload
            if self.get(number) is None:
                why = f"it takes {size >> 20} MB with its copy for browsers, more than is left of the room for uploads"
                raise _refused(name, why, "Bring a smaller file, or try again later")
        except BaseException as error:
            for leftover in self._root.glob(f"{number}*"):
                leftover.unlink(missing_ok=True)
            if isinstance(error, DiskError):
                raise _refused(name, error.why, "Try again later, or tell who runs this server") from error
            if isinstance(error, VideoError):
                what, why = (beat.replace(str(file), name).replace(str(path), name) for beat in (error.what, error.why))
                raise VideoError(what, why, error.todo, error.reason) from error
            raise
        finally:
            file.unlink(missing_ok=True)
        timer = threading.Timer(self._keep + 1, self.sweep)  # also when nobody asks again
        timer.daemon = True
        timer.start()
        return upload

    def get(self, number: str) -> Upload | None:
        """The upload of this id while it is here."""
        self.sweep()
        with self._lock:
            if number in self._known:
                self._known.move_to_end(number)
            return self._known.get(number)

    @contextlib.contextmanager
    def held(self, number: str) -> Iterator[None]:
        """What is done with the upload of this id inside is not disturbed by `sweep`."""
        with self._lock:
            self._read[number] += 1
        try:
            yield
        finally:
            with self._lock:
                self._read[number] -= 1
                self._read += Counter()  # without those that are 0
            self.sweep()

    def sweep(self) -> None:
        """Delete what is past its hour and, where there are more than fifty or more bytes than there is room for, what
        was asked for longest ago."""
        with self._lock:
            if not self._known:
                return
            now, used, late = self._clock(), sum(u.bytes for u in self._known.values()), []
            most = room(ROOM, used, self._root)
            idle = [u for u in self._known.values() if not self._read[u.id]]
            for upload in sorted(idle, key=lambda u: u.until > now):
                if upload.until <= now or len(self._known) > _MOST or used > most:
                    late.append(self._known.pop(upload.id))
                    used -= upload.bytes
        for upload in late:
            upload.delete()


def room(most: int, used: int, folder: Path) -> int:
    """Bytes that files may take in a folder where they take so many already: `most`, and a quarter of what the disk
    would have free without them."""
    return min(most, (shutil.disk_usage(folder).free + used) // 4)


def _refused(name: str, why: str, todo: str, reason: VideoReason = VideoReason.TOO_LARGE) -> VideoError:
    return VideoError(f"The file {name!r} cannot be used", why, todo, reason)
