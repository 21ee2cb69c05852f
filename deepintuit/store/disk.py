"""Writing that survives a kill or a power cut, and the lock that keeps a run to one process.

Left out on purpose: file systems without flock (some network mounts). They get a sentence, not a guess.
"""

import errno
import fcntl
import json
import os
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepintuit.errors import StoreError


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable; fsync of the file alone does not cover its name."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Replace `path` as `write_text` does; ValueError for nan and infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` atomically: a reader sees the old file or the new one, never half of one. What is no Unicode text
    becomes a question mark."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_folder(path.parent)


def publish(write: Callable[[Path], None], folder: Path, name_of: Callable[[int], str],
            number: int) -> tuple[Path, int]:
    """Write a file under a temporary name, then give it the first free name from `number` on. Never overwrites.

    `write(path)` fills the temporary file. Returns the final path and its number, once file and folder are synced.
    """
    temporary = folder / f".{name_of(number)}.{os.getpid()}.tmp"
    write(temporary)
    fsync_file(temporary)
    while True:
        target = folder / name_of(number)
        try:
            _move_to_free_name(temporary, target)
            break
        except FileExistsError:
            number += 1
    fsync_folder(folder)
    return target, number


def _move_to_free_name(source: Path, target: Path) -> None:
    try:
        # A hard link refuses an existing name, where a rename would replace it.
        os.link(source, target)
        os.unlink(source)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        # No hard links here (exFAT, some mounts): the run lock makes this process the only writer.
        if target.exists():
            raise FileExistsError(target) from error
        os.rename(source, target)


def sweep(folder: Path) -> None:
    """Remove what a killed writer left half-written. Only for the holder of the folder's lock."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


class Lock:
    """An exclusive flock on `path`, with the holder's process id and start time inside for the sentence.

    The kernel drops it with the process, so a lock left by a killed one is never in the way. A forked child (a data
    loader's worker, say) lets go of its copy, or it would keep the lock alive past its parent.
    """

    def __init__(self, path: Path, *, wait: bool = False):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode("ascii", "replace").strip() or "another process"
            os.close(fd)
            raise StoreError(
                f"{path.parent.name!r} is in use by {holder}",
                "two processes writing one run would each do the work and neither would own the result",
                "wait for that process or stop it, then repeat the command; it continues where the run stands",
            ) from None
        except OSError as error:
            os.close(fd)
            raise StoreError(
                f"cannot lock {path} ({error.strerror})",
                "without a lock two processes could write the same run",
                "put the workbench on a local disk (DEEPINTUIT_HOME or the setting `workbench`)",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}, since {now()}\n".encode("ascii"), 0)
        self._fd = fd
        self.process = os.getpid()
        self._release = weakref.finalize(self, os.close, fd)
        _held.add(self)

    @property
    def held(self) -> bool:
        return self._release.alive and self.process == os.getpid()

    def release(self) -> None:
        self._release()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)
