"""What reviewers did, as rows of one SQLite file that only grows, and the state that follows from them.

    log = EventLog(workbench.reviews)
    log.append(Event(Kind.JUDGED, task, reviewer, item=trace_id, payload={"label": "dog"}))   # on disk when it returns

`reviews/events.sqlite` is in WAL mode: any process may write, with any number of threads, while others read. Threads
that wait together share one transaction and one fsync. A row is an event as a line of JSON; no row is ever changed.
`events.jsonl`, which earlier versions wrote, is read in by the first process that writes, and kept under another name.
"""

import contextlib
import hashlib
import itertools
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from deepintuit import disk
from deepintuit.errors import DataError, StoreError
from deepintuit_analysis.review.events import Event, State

_Seen = TypeVar("_Seen")
_Decision = Callable[[State], Event | None]

FILE, _OLD_FILE = "events.sqlite", "events.jsonl"
"""Of a `reviews` folder: the events, and where earlier versions wrote them."""
_CREATE = "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, event TEXT NOT NULL)"
_SELECT = "SELECT number, CAST(event AS BLOB) FROM events WHERE number > ? ORDER BY number"
_NEWEST = "SELECT number, CAST(event AS BLOB) FROM events ORDER BY number DESC LIMIT 1"


def _connected(file: Path, mode: str) -> sqlite3.Connection:
    """SQLite's file, opened as `mode` says (ro, rwc); a transaction begins and ends where it is said to."""
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None, check_same_thread=False
    )


@contextlib.contextmanager
def _saying(folder: Path) -> Iterator[None]:
    """What SQLite refuses inside is raised as a StoreError, a DiskError where it is the disk."""
    try:
        yield
    except sqlite3.Error as error:
        file, name = folder / FILE, getattr(error, "sqlite_errorname", "")
        what, why, todo = f"{str(file)!r} cannot be used", str(error), "Mend that, then try again"
        if name.startswith("SQLITE_BUSY"):
            why, todo = "another process has not let go of it for 30 s", "Try again, or stop that process"
        elif name in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR"):
            what = f"{str(file)!r} is damaged"
            todo = f"Put a copy back that you have, or see what `sqlite3 {FILE} .recover` finds in it"
        else:  # SQLite does not tell why a disk refuses; a file beside it does
            with disk.naming(file), tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(1 << 16))
                probe.flush()
        raise StoreError(what, why, todo) from error


def _ask(folder: Path, sql: str, *values: Any) -> list[tuple[int, bytes]]:
    """Rows of the events, while others write them. WAL needs room beside the file: where there is none, of a copy."""
    file = folder / FILE
    if not file.exists():
        return []

    def ask(file: Path) -> list[tuple[int, bytes]]:
        with contextlib.closing(_connected(file, "ro")) as connection:
            exists = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone()
            return connection.execute(sql, values).fetchall() if exists else []

    with _saying(folder), disk.naming(file):
        try:
            return ask(file)
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_IOERR")):
                raise
        with tempfile.TemporaryDirectory() as copies:
            for path in (file, file.with_name(f"{FILE}-wal")):
                if path.exists():
                    shutil.copyfile(path, Path(copies, path.name))
            return ask(Path(copies, FILE))


def _old_lines(folder: Path) -> list[bytes]:
    """The lines of an `events.jsonl` that has its name still."""
    try:
        return [line for line in (folder / _OLD_FILE).read_bytes().split(b"\n") if line.strip()]
    except FileNotFoundError:
        return []


def stored(folder: Path) -> list[tuple[int, bytes]]:
    """The events of a `reviews` folder as numbered lines, in order, for any process while others write."""
    lines = _old_lines(folder)  # first: they go away once they are in the table
    rows = _ask(folder, _SELECT, 0)
    table_lines = {line for _, line in rows} if lines else ()
    lines = [line for line in dict.fromkeys(lines) if line not in table_lines]
    return rows + list(enumerate(lines, rows[-1][0] + 1 if rows else 1))


def newest(folder: Path) -> str | None:
    """Changes with every event of the folder; None where there are none."""
    lines, last = _old_lines(folder), _ask(folder, _NEWEST)
    if not lines and not last:
        return None
    return hashlib.sha256(repr((len(lines), lines[-1:], last)).encode()).hexdigest()


def _events(lines: Iterable[tuple[int, bytes]], by_id: dict[str, Event]) -> Iterator[tuple[int, Event | None]]:
    """The events of numbered lines, but for those that `by_id` has, to which they are added; None for a
    line that cannot be read, or that says something else under an id that is taken."""
    for number, line in lines:
        event = Event.read(line)
        first = event and by_id.setdefault(event.id, event)
        if event is None or replace(event, time=first.time) != first:
            yield number, None
        elif event is first:
            yield number, event


def read_events(folder: Path) -> tuple[list[Event], list[int]]:
    """All events of the `reviews` folder, in order, and the numbers of the rows that could not be read. For any
    process, while others write."""
    entries = list(_events(stored(folder), {}))
    return [event for _, event in entries if event], [number for number, event in entries if event is None]


def damage(numbers: Sequence[int]) -> str:
    """A sentence about the rows that could not be read; empty where there are none."""
    if not numbers:
        return ""
    listing = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
    return (
        f"reviews/{FILE}: {len(numbers)} of its events cannot be read, or say something else under an id that "
        f"is taken ({listing}). They count for nothing; all others do."
    )


class EventLog:
    """The events of a `reviews` folder and the `state` after them. With `writing` False: as they are now, to read from.
    StoreError where the file is damaged, DiskError where it cannot be written."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time, writing: bool = True):
        self.folder, self.clock, self.process = folder, clock, os.getpid()
        self._turn = threading.Lock()
        self._waiting: deque[tuple[Event | _Decision, Future[Event | None]]] = deque()
        self._connection: sqlite3.Connection | None = None
        self._forget()
        if not writing:
            self._take(stored(folder))
            return
        # One process at a time opens the log; earlier versions held this lock for as long as they wrote.
        with disk.naming(folder), disk.Lock(folder / "lock", wait=10), _saying(folder):
            self._connection = _connected(folder / FILE, "rwc")
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = FULL")
                self._read_in()
                self._catch_up()
            except BaseException:
                self.close()
                raise

    def _read_in(self) -> None:
        """Make the table, and take over the lines of `events.jsonl` that it has not. A kill leaves both, and the next
        one goes on."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(_CREATE)
        if lines := _old_lines(self.folder):
            table_lines = {line for _, line in self._connection.execute(_SELECT, (0,))}
            for line in dict.fromkeys(lines):
                if line not in table_lines:
                    self._insert(line)
        self._connection.execute("COMMIT")
        old = self.folder / _OLD_FILE
        if old.exists():
            names = (self.folder / f"events-read-in-{number}.jsonl" for number in itertools.count(1))
            os.replace(old, next(name for name in names if not name.exists()))
        disk.fsync_folder(self.folder)

    def _insert(self, line: bytes) -> int:
        """The number of the row. A damaged line stays the bytes that it is."""
        return self._connection.execute("INSERT INTO events (event) VALUES (CAST(? AS TEXT))", (line,)).lastrowid

    def _forget(self) -> None:
        self.state, self.damaged, self._known, self._last = State(), [], {}, 0

    def _take(self, lines: Iterable[tuple[int, bytes]]) -> None:
        for number, event in _events(lines, self._known):
            self._last = number
            if event is None:
                self.damaged.append(number)
            else:
                self.state.apply(event)

    def _catch_up(self) -> None:
        """Take what other processes have written since."""
        if self._connection is not None and self.process == os.getpid():
            self._take(self._connection.execute(_SELECT, (self._last,)))

    def look(self, at: Callable[[State], _Seen]) -> _Seen:
        """What `at(state)` gives, with no event coming in between. It must not keep parts of the state."""
        with self._turn:
            with _saying(self.folder):
                self._catch_up()
            return at(self.state)

    def append(self, event: Event | _Decision) -> Event | None:
        """Write an event, and return it as it stands in the file once it is synced to disk.

        A function is called with the state and decides what to write (None: nothing), with no event coming in between;
        it must be quick. StoreError: it was not saved, and may be sent again.
        """
        future: Future[Event | None] = Future()
        self._waiting.append((event, future))
        with self._turn:
            if not future.done():  # whoever had the turn before writes what waits, in one transaction
                self._write([self._waiting.popleft() for _ in range(len(self._waiting))])
        return future.result()

    def _write(self, batch: Sequence[tuple[Event | _Decision, Future[Event | None]]]) -> None:
        try:
            with _saying(self.folder):
                if self._connection is None or self.process != os.getpid():
                    raise StoreError(
                        "these reviews are open for reading", "this process does not write them", "Open them anew"
                    )
                self._connection.execute("BEGIN IMMEDIATE")
                self._catch_up()
                decided = [self._decide(event) for event, _ in batch]
                self._connection.execute("COMMIT")
        except BaseException as error:
            # Nobody was told that these are saved: they leave the state as well.
            self._roll_back()
            why = error.why if isinstance(error, StoreError) else str(error) or type(error).__name__
            for _, future in batch:
                future.set_exception(StoreError("a review was not saved", why, "Mend that, then send it again"))
            if not isinstance(error, StoreError):
                raise
        else:
            for (_, future), outcome in zip(batch, decided):
                (future.set_exception if isinstance(outcome, Exception) else future.set_result)(outcome)

    def _decide(self, event: Event | _Decision) -> Event | Exception | None:
        """The event as it is stored, or the error that is its own and of no other. Its effect on the state is there at
        once: what is decided next counts on it."""
        try:
            decision = event(self.state) if callable(event) else event
            if decision is None or (former := self._known_as(decision)):
                return decision and former
            instant = datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds")
            line = replace(decision, time=instant).line()
            saved = Event.read(line)
            if saved is None:
                raise DataError(
                    f"a review event of {decision.reviewer!r} cannot be read back",
                    "its fields must be text",
                    "give ids and names as text, and a mapping as the payload",
                )
        except Exception as error:  # noqa: BLE001
            return error
        self._last = self._insert(line)
        self._known[saved.id] = saved
        self.state.apply(saved)
        return saved

    def _known_as(self, event: Event) -> Event | None:
        """The event that was written under this id before."""
        former = self._known.get(event.id)
        if former is not None and Event.read(replace(event, time=former.time).line()) != former:
            raise DataError(
                f"two different events came as {event.id!r}",
                "what was said first under an id stands",
                "leave the id out, or give a task another name",
            )
        return former

    def _roll_back(self) -> None:
        if self._connection is None or self.process != os.getpid():
            return
        try:
            self._connection.rollback()
            self._forget()
            self._catch_up()
        except sqlite3.Error:
            self._connection = None  # a file that cannot be trusted takes nothing until it is opened anew

    def close(self) -> None:
        """Waits for what is on its way."""
        with self._turn:
            if self._connection is not None and self.process == os.getpid():
                self._connection.close()
            self._connection = None

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
