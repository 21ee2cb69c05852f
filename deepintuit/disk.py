"""Files that survive a kill, a power cut and a full disk; the sentence for a disk that refuses; the lock of a folder.

    with disk.replacing(path) as temporary:     # path holds the old content or the new one, never half of one
        save_file(weights, temporary)

File systems without flock (some network mounts) are refused. They get a sentence, not a guess.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from deepintuit.errors import DeepIntuitError, DiskError, StoreError

T = TypeVar("T")
_log = logging.getLogger(__name__)
_OTHER_PLACE = "or name another place"
_REFUSALS = {
    errno.ENOSPC: ("the disk is full", "Free space on it, then rerun the command: what was finished is kept"),
    errno.EDQUOT: ("the quota on this disk is used up", "Free space, or have it raised, then rerun the command"),
    errno.EFBIG: ("the file would be larger than is allowed here", "See `ulimit -f`, or use another file system"),
    errno.EROFS: ("the file system is read-only", f"Mount it writable, {_OTHER_PLACE}"),
    errno.EACCES: ("this user has no permission", f"Give the permission, {_OTHER_PLACE}"),
    errno.EPERM: ("this user has no permission", f"Give the permission, {_OTHER_PLACE}"),
    errno.EIO: ("the disk reports an error", "See the system's log, and copy what can be read to another disk"),
    errno.ESTALE: ("the network file system lost it", "See whether it is mounted, then rerun the command"),
    errno.ENOENT: ("it is not there", f"See whether its disk is mounted, {_OTHER_PLACE}"),
    errno.ENOTDIR: ("a file stands where a folder must be", f"Move the file away, {_OTHER_PLACE}"),
    errno.EEXIST: ("a file stands where a folder must be", f"Move the file away, {_OTHER_PLACE}"),
    errno.EISDIR: ("a folder stands where a file must be", f"Move the folder away, {_OTHER_PLACE}"),
    errno.ENAMETOOLONG: ("the name is longer than the file system allows", "Choose a shorter one"),
    errno.ELOOP: ("its symbolic links lead in a circle", "Mend the links"),
    errno.EMFILE: ("this process has too many files open", "Raise the limit (`ulimit -n`)"),
    errno.ENFILE: ("the system has too many files open", "Close other programs, then rerun the command"),
}
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk says on which nothing can be written at present, though it may be read."""


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def refusal(error: BaseException, path: Path | None = None) -> DiskError | None:
    """The sentence for an error that says what a disk refused, or None. The path is that of the error unless it is
    given. Libraries that write by themselves (safetensors, DuckDB) have the system's words in their text."""
    if isinstance(error, DeepIntuitError):
        return None
    if isinstance(error, OSError):
        code = error.errno
    else:
        code = next((code for code in _REFUSALS if os.strerror(code) in str(error)), None)
    if code == errno.ENOENT and "temporary directory" in str(error):  # tempfile has tried all that it knows
        return DiskError(
            "there is no place for temporary files",
            str(error.strerror),
            "Free space in one of these folders, or name another one in TMPDIR",
            code,
        )
    if code not in _REFUSALS:
        return None
    place = path or getattr(error, "filename", None)
    why, todo = _REFUSALS[code]
    what = f"{os.fsdecode(place)!r} cannot be used" if place else f"a file cannot be used ({str(error):.200})"
    return DiskError(what, why, todo, code)


def sentence(error: Exception) -> DeepIntuitError:
    """What a door says of an error: the sentence that it is or that tells what a disk refused. Raises any other one."""
    failure = error if isinstance(error, DeepIntuitError) else refusal(error)
    if failure is None:
        raise error
    return failure


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the disk refuses inside is raised as a `DiskError` that names `path`."""
    try:
        yield
    except Exception as error:
        if failure := refusal(error, path):
            raise failure from error
        raise


@contextlib.contextmanager
def optional(path: Path) -> Iterator[None]:
    """For what goes into a cache at `path`: a disk that refuses costs one warning, and the work goes on."""
    try:
        yield
    except Exception as error:
        failure = error if isinstance(error, DiskError) else refusal(error, path)
        if failure is None:
            raise
        if failure.errno != errno.ENOENT:  # else it was cleared away by another process
            warnings.warn(f"the cache {path} takes no more: {failure.why}. The work goes on without it.", stacklevel=1)


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


def fsync_tree(folder: Path) -> None:
    """Make durable what others wrote into a folder, before something says that it is there."""
    for path in [*folder.rglob("*"), folder]:
        (fsync_folder if path.is_dir() else fsync_file)(path)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[Path]:
    """A new file beside `path` to be filled inside, which then replaces it: a reader sees the old content or the new
    one. Once the block has ended it is on disk (a cache needs no `durable`). Whatever fails, `path` stays as it was and
    the new file is removed; DiskError where the disk refuses. `mode`: permissions, before the umask."""
    with naming(path), _beside(path, mode) as temporary:
        yield temporary
        if durable:
            fsync_file(temporary)
        os.replace(temporary, path)
        if durable:
            fsync_folder(path.parent)


@contextlib.contextmanager
def _beside(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """An empty file of the same name in a folder beside `path`: what a library leaves there goes with it."""
    place = Scratch(path.parent)
    try:
        temporary = place.path / path.name
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
        yield temporary
    finally:
        place.remove()


class Scratch:
    """A new folder (0700) for passing files at `path` in `parent`, removed with this object, by `remove`, or when this
    process ends. It is locked while the process lives, so the next one knows what a kill left, and removes that.

    `names`: a pattern with one star. OSError where it cannot be made."""

    def __init__(self, parent: Path, names: str = ".*.tmp"):
        _sweep_now_and_then(parent, names, int(time.monotonic() // 60))
        while True:
            self.path = parent / names.replace("*", secrets.token_hex(8))
            self.path.mkdir(0o700)
            with contextlib.suppress(FileNotFoundError):  # somebody swept it before it was locked
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                with contextlib.suppress(OSError):  # a file system without locks, where nothing is swept either
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if self.path.exists():
                    break
                os.close(descriptor)
        self.remove = weakref.finalize(self, _remove, self.path, descriptor, os.getpid())


def _remove(folder: Path, descriptor: int, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def sweep(folder: Path, names: str = ".*.tmp") -> None:
    """Remove what killed writers left half-written: whatever has such a name and is not locked."""
    for leftover in folder.glob(names):
        with contextlib.suppress(OSError):  # it is being written, another user's, or gone
            file = os.open(leftover, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            finally:
                os.close(file)


@lru_cache(maxsize=1024)
def _sweep_now_and_then(folder: Path, names: str, _minute: int) -> None:
    """Once a minute: a cache may hold as many files as there are clips."""
    sweep(folder, names)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Replace `path`; ValueError for nan and infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n", durable=durable)


def write_text(path: Path, text: str, *, durable: bool = True, mode: int = 0o666) -> None:
    """Replace `path`. What is no Unicode text becomes a question mark."""
    with replacing(path, durable=durable, mode=mode) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))


def entry(folder: Path, suffix: str, key: Sequence[Any]) -> Path:
    """The file of a cache for what `key` (JSON) names, in one of 256 folders."""
    digest = hashlib.sha256(json.dumps(key).encode("ascii")).hexdigest()
    return folder / digest[:2] / f"{digest}{suffix}"


class Room:
    """Files of a cache, in `kinds` of folders at `root`, of at most `limit` bytes together; what was used longest ago
    goes first.

    The folders are looked through at a process's first write and after each sixteenth of the bound that it writes;
    then an eighth is free again. So two processes stay within the bound, and each further one may add a sixteenth to
    it. A file of more than `most` bytes, a sixteenth of the bound, is not kept.
    """

    def __init__(self, root: Path, kinds: Sequence[str], limit: int) -> None:
        self._root, self._kinds, self._limit, self.most = root, kinds, limit, limit // 16
        self._allowance = 0  # bytes that this process may write before it looks again
        self._lock = threading.Lock()

    def make(self, size: int) -> bool:
        """Make room for `size` bytes, or say that a file of that size is not kept."""
        if size > self.most:
            return False
        with self._lock:
            self._allowance -= size
            if self._allowance < 0:
                entries = sorted(self._files())  # temporary names too: what a killed process left is the oldest one day
                total = sum(entry_size for _, entry_size, _ in entries)
                for _, entry_size, path in entries:
                    if total <= self._limit - 2 * self.most:
                        break
                    with contextlib.suppress(FileNotFoundError):  # another process was quicker
                        os.unlink(path)
                    total -= entry_size
                self._allowance = self.most - size
        return True

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """(time of last use, bytes, path) of what is there."""
        for kind in self._kinds:
            for folder, _, names in os.walk(self._root / kind):
                for name in names:
                    path = os.path.join(folder, name)
                    with contextlib.suppress(FileNotFoundError):
                        facts = os.stat(path)
                        yield max(facts.st_atime_ns, facts.st_mtime_ns), facts.st_size, path


class JsonCache:
    """JSON values on disk by key; deletable. None where there is none, or what is there cannot be read."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.folder, self.durable = folder, durable

    def get(self, *key: Any) -> Any:
        try:
            return json.loads(entry(self.folder, ".json", key).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def put(self, value: Any, *key: Any) -> None:
        """Where nothing can be kept, one warning."""
        path = entry(self.folder, ".json", key)
        with optional(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, value, durable=self.durable)


def publish(
    write: Callable[[Path], None], folder: Path, name_of: Callable[[int], str], number: int
) -> tuple[Path, int]:
    """Write a file under a temporary name, then give it the first free name from `number` on. Never overwrites.

    `write(path)` fills the temporary file. Returns the final path and its number, once file and folder are synced.
    """
    target = folder / name_of(number)
    with naming(target), _beside(target) as temporary:
        write(temporary)
        fsync_file(temporary)
        while True:
            try:
                _move_to_free_name(temporary, target)
                break
            except FileExistsError:
                number += 1
                target = folder / name_of(number)
        fsync_folder(folder)
    return target, number


def _move_to_free_name(source: Path, target: Path) -> None:
    try:
        # A hard link refuses an existing name, where a rename would replace it.
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        # No hard links here (exFAT, some mounts): one writer after the other.
        with Lock(target.parent / ".naming", wait=30):
            if target.exists():
                raise FileExistsError(target) from error
            os.rename(source, target)


class Lock:
    """An exclusive flock on `path`, with the holder's process id and start time inside for the sentence.

    The kernel drops it with the process, so a lock left by a killed one is never in the way. A forked child (a data
    loader's worker, say) lets go of its copy, or it would keep the lock alive past its parent. StoreError when another
    process holds it for longer than `wait` seconds, DiskError where it cannot be written; then nothing is held.
    `passing`: its file is removed when it is released.
    """

    def __init__(self, path: Path, *, wait: float = 0.0, passing: bool = False):
        until = time.monotonic() + wait
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    while not _locked(fd, path):
                        if time.monotonic() >= until:
                            raise _in_use(fd, path)
                        time.sleep(0.05)
                    with contextlib.suppress(FileNotFoundError):  # who held it has removed it
                        if os.path.samestat(os.fstat(fd), os.stat(path)):
                            os.ftruncate(fd, 0)
                            os.pwrite(fd, f"process {os.getpid()}, since {now()}\n".encode("ascii"), 0)
                            break
                except BaseException:
                    os.close(fd)  # and with it the lock
                    raise
                os.close(fd)
        self._passing = path if passing else None
        self.process = os.getpid()
        self._release = weakref.finalize(self, os.close, fd)
        _held.add(self)

    @property
    def held(self) -> bool:
        return self._release.alive and self.process == os.getpid()

    def release(self) -> None:
        if self._passing and self.held:
            self._passing.unlink(missing_ok=True)
        self._release()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Finishing(Exception):
    """The process that ended last holds this lock, and finishes what all have done."""

    def __init__(self, lock: Path):
        super().__init__(f"{lock} is held")
        self.lock = lock


def lock_of(folder: Path, shard: tuple[int, int] | None = None) -> Path:
    return folder / ("lock-{}-of-{}".format(*shard) if shard else "lock")


def take(folder: Path, shard: tuple[int, int] | None = None, *, last: bool = False) -> Lock:
    """The lock of the work in a folder: the whole of it, a shard (its number, and how many there are) beside others of
    that count, or the `last` one, which finishes it. StoreError where somebody is at work who does some of the same; a
    shard that comes while it is finished gets `Finishing`. Called while nobody else takes one."""
    final = folder / "lock-last"
    own = final if last else lock_of(folder, shard)
    for lock in folder.glob("lock*"):
        if lock != own and not (shard and lock.name.endswith(f"-of-{shard[1]}")):
            try:
                Lock(lock).release()
            except StoreError as error:
                raise Finishing(lock) if shard and lock == final else error from None
    return Lock(own, passing=last)


def once_finished(begin: Callable[[], T]) -> T:
    """`begin()`, which takes a lock, after the wait for a process that finishes the work: afterwards there is nothing
    left to do, or what that one left when it was killed."""
    while True:
        try:
            return begin()
        except Finishing as finishing:
            _log.warning(
                "%r is being finished by the process that ended last: waiting for it", finishing.lock.parent.name
            )
            Lock(finishing.lock, wait=math.inf, passing=True).release()


class Shared:
    """In place of a `Lock` that another process of the same command holds for this one too."""

    held = True

    def release(self) -> None:
        self.held = False


def _locked(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"cannot lock {path} ({error.strerror})",
            "without a lock two processes could write the same run",
            "put the workbench on a local disk (DEEPINTUIT_HOME or the setting `workbench`)",
        ) from error
    return True


def _in_use(fd: int, path: Path) -> StoreError:
    holder = os.pread(fd, 200, 0).decode("ascii", "replace").strip() or "another process"
    part = f" ({path.name})" if path.name.startswith("lock-") else ""
    return StoreError(
        f"{path.parent.name!r}{part} is in use by {holder}",
        "two processes writing one run would each do the work and neither would own the result",
        "wait for that process or stop it, then rerun the command; it continues where the run stands",
    )


_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)
