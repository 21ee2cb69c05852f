"""Clips that a visitor brought: checked by the reader before use, served by an id nobody can guess, gone after an hour.

They lie in one folder of this process (0700, outside the workbench), which ends with it however it ends: the last
server of a process removes it, a child that outlives a killed process does, and so does the next start.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deepintuit import video
from deepintuit.errors import VideoError, VideoReason

PREFIX = "upload-"
MAX_BYTES = 200 * 2**20
MAX_SECONDS = 600.0
_HOUR = 3600.0
_MOST = 50
_FOLDER = "deepintuit-uploads-"
_AFTER_ITS_PARENT = 'trap "" HUP INT TERM; read -r _; rm -rf -- "$0"'
"""For a shell whose input ends when the process that holds the other end does, killed or not."""


@dataclass(frozen=True)
class Upload:
    """An accepted file. `path`: what the model reads; `playable`: what a browser plays; `until`: monotonic seconds."""

    id: str
    name: str
    path: Path
    playable: Path
    info: video.ClipInfo
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
        for left in Path(tempfile.gettempdir()).glob(_FOLDER + "*"):
            with contextlib.suppress(OSError):  # it is held, another user's, or gone
                lock = _locked(left, fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_FOLDER)).resolve()
            with contextlib.suppress(FileNotFoundError):  # another start removed it before it was locked
                self._file = _locked(self.path)
                break
        self._child = subprocess.Popen(
            ["/bin/sh", "-c", _AFTER_ITS_PARENT, self.path],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/",
        )  # fmt: skip
        (self.path / "received").mkdir(0o700)
        os.environ["GRADIO_TEMP_DIR"] = str(self.path / "received")

    def _remove(self) -> None:
        if (child := self.__dict__.pop("_child", None)) is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.environ.pop("GRADIO_TEMP_DIR", None)
            child.communicate()
            os.close(self._file)


def _locked(folder: Path, how: int = 0) -> int:
    """Lock a folder against being removed while this process lives. OSError where it cannot be, or is gone."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is somebody else's")
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | how)
        os.stat(folder / ".lock")
    except OSError:
        os.close(file)
        raise
    return file


_folder = _Folder()


class Uploads:
    """All that is here now. Every method may be called from many threads."""

    def __init__(self, keep: float = _HOUR, clock=time.monotonic):
        self._keep, self._clock, self._lock = keep, clock, threading.Lock()
        self._known: dict[str, Upload] = {}

    @cached_property
    def _root(self) -> Path:
        return _folder.hold()

    @property
    def inbox(self) -> Path:
        """Where Gradio puts what a browser sends, before it is accepted."""
        return self._root / "received"

    def received(self, given: object) -> Path | None:
        """The file at `given`, links followed, if a browser sent it to this process; None for any other."""
        try:
            path = Path(given).resolve(strict=True)  # type: ignore[arg-type]
            return path if path.is_relative_to(self.inbox) and path.is_file() else None
        except (OSError, RuntimeError, TypeError, ValueError):
            return None

    def close(self) -> None:
        """Delete all that is here."""
        with self._lock:
            known, self._known = list(self._known.values()), {}
        for upload in known:
            upload.delete()
        if self.__dict__.pop("_root", None) is not None:
            _folder.release()

    def accept(self, given: str | os.PathLike[str], name: str) -> Upload:
        """Take a file over: the one at `given` is moved away or, when refused, deleted. Raises `VideoError`, also for a
        file that no browser sent here, which is left alone."""
        file = self.received(given)
        if file is None:
            todo = "Bring the file with the upload button of this page"
            raise _refused(name, "it was not uploaded here", todo, VideoReason.NOT_FOUND)
        try:
            if file.stat().st_size > MAX_BYTES:
                raise _refused(name, f"it is larger than {MAX_BYTES >> 20} MB", "Cut or scale it down")
            info = video.probe(file, isolate=True)
            if info.seconds > MAX_SECONDS:
                raise _refused(name, f"it is {info.seconds / 60:.0f} minutes long, more than 10", "Cut out the clip")
            number = PREFIX + secrets.token_urlsafe(18)
            path = self._root / f"{number}{file.suffix.lower() if file.suffix.isascii() else ''}"
            shutil.move(file, path)
        except VideoError as error:
            what, why = (beat.replace(str(file), name) for beat in (error.what, error.why))
            raise VideoError(what, why, error.todo, error.reason) from error
        finally:
            file.unlink(missing_ok=True)
        playable = path
        if not info.playable:
            playable = self._root / f"{number}.play.mp4"
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
            upload.delete()


def _refused(name: str, why: str, todo: str, reason: VideoReason = VideoReason.TOO_LARGE) -> VideoError:
    return VideoError(f"The file {name!r} cannot be used", why, todo, reason)
