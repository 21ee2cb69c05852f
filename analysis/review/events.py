"""What reviewers did, as rows of one SQLite file that only grows, and the state that follows from them.

    log = EventLog(workbench.reviews)
    log.append(Event(Kind.JUDGED, task, reviewer, item=trace_id, payload={"label": "dog"}))   # on disk when it returns

`reviews/events.sqlite` is in WAL mode: any process may write, with any number of threads, while others read. Threads
that wait together share one transaction and one fsync. A row is an event as a line of JSON; no row is ever changed.
`events.jsonl`, which earlier versions wrote, is read in by the first process that writes, and kept under another name.

Left out on purpose: compaction (a hundred thousand events are read in about a second).
"""

import contextlib
import itertools
import json
import os
import sqlite3
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from deepintuit import disk
from deepintuit.errors import DataError, StoreError
from deepintuit.runs.schema import storable
from deepintuit_analysis.index.reviewed import (
    CREATE,
    FILE,
    OLD_FILE,
    SELECT,
    connected,
    event_of,
    old_lines,
    saying,
    stored,
)

_Seen = TypeVar("_Seen")


class Kind(StrEnum):
    """What can happen in a review. Undoing is an event too; nothing is taken out of the file."""

    OPENED = "opened"
    RESERVED = "reserved"
    DRAFT = "draft"
    JUDGED = "judged"
    SKIPPED = "skipped"
    UNDONE = "undone"
    ADJUDICATED = "adjudicated"
    RELEASED = "released"
    CLOSED = "closed"


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Event:
    """One thing that one person did. `item` is a trace id, `clip` its clip's; `payload` is JSON (a task's definition,
    the answers, the reason of a skip, the `event` that is undone). The log writes the `time`, UTC in ISO 8601. Whoever
    may have to send an event twice gives it an `id`: the second one changes nothing."""

    kind: Kind
    task: str
    reviewer: str
    item: str | None = None
    clip: str | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    time: str = ""

    @property
    def at(self) -> float:
        """`time` in seconds since 1970."""
        return datetime.fromisoformat(self.time).timestamp()

    def line(self) -> bytes:
        """The event as a line of JSON, without its end. DataError when JSON has no form for it."""
        try:
            text = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"a review event of {self.reviewer!r} holds what JSON has not ({error})",
                "it could not be read back",
                "send numbers, text, lists and mappings",
            ) from error
        return storable(text).encode("utf-8")

    @classmethod
    def read(cls, line: bytes) -> "Event | None":
        """The event of a line; None for one that is torn, damaged or of another kind."""
        from deepintuit_analysis.review.tasks import Task  # which stands on this module

        try:
            found = event_of(line)
            event = cls(**{**found, "kind": Kind(found["kind"])})
            if event.kind is Kind.OPENED and Task(**event.payload).name != event.task:
                return None
        except (ValueError, TypeError, AttributeError, DataError):
            return None
        return event


def _events(lines: Iterable[tuple[int, bytes]], known: dict[str, Event]) -> Iterator[tuple[int, Event | None]]:
    """The events of numbered lines, but for those that `known` has by their id, to which they are added; None for a
    line that cannot be read, or that says something else under an id that is taken."""
    for number, line in lines:
        event = Event.read(line)
        first = event and known.setdefault(event.id, event)
        if event is None or replace(event, time=first.time) != first:
            yield number, None
        elif event is first:
            yield number, event


def read_events(folder: Path) -> tuple[list[Event], list[int]]:
    """All events of the `reviews` folder, in order, and the numbers of the rows that could not be read. For any
    process, while others write."""
    found = list(_events(stored(folder), {}))
    return [event for _, event in found if event], [number for number, event in found if event is None]


def damage(numbers: Sequence[int]) -> str:
    """A sentence about the rows that could not be read; empty where there are none."""
    if not numbers:
        return ""
    shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
    return (
        f"reviews/{FILE}: {len(numbers)} of its events cannot be read, or say something else under an id that "
        f"is taken ({shown}). They count for nothing; all others do."
    )


@dataclass(frozen=True)
class Hold:
    """A reservation: `seat` tells a reviewer's tabs apart; `at` is when it was made or last drafted in, in seconds."""

    seat: str
    at: float


class State:
    """What the events come to. Dicts by task, then item, then reviewer, as far as they go.

    `answers` holds the judgement or skip in force, reviewers in the order in which they answered first; `drafts` what
    was typed and not submitted (after an undo: what was undone); `holds` reservations, timed out ones too; `handed` who
    was ever given what.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Event] = {}
        self.closed: set[str] = set()
        self.answers: dict[str, dict[str, dict[str, Event]]] = defaultdict(lambda: defaultdict(dict))
        self.holds: dict[str, dict[str, dict[str, Hold]]] = defaultdict(lambda: defaultdict(dict))
        self.handed: set[tuple[str, str, str]] = set()
        self.drafts: dict[tuple[str, str, str], Mapping[str, Any]] = {}
        self.acts: dict[tuple[str, str], dict[str, Event]] = defaultdict(dict)
        self.unfinished: dict[str, dict[str, None]] = {}  # a note of `tasks` of where to look; follows no event
        self._finals: dict[tuple[str, str], dict[str, Event]] = defaultdict(dict)

    def final(self, task: str, item: str) -> Event | None:
        """The adjudication in force."""
        found = self._finals.get((task, item))
        return list(found.values())[-1] if found else None

    def held(self, task: str, who: str, since: float) -> dict[str, Hold]:
        """What somebody has reserved, or drafted in, after that time."""
        return {item: by[who] for item, by in self.holds.get(task, {}).items() if who in by and by[who].at > since}

    def last_act(self, task: str, reviewer: str) -> Event | None:
        """What an undo would take back: the newest judgement, skip or adjudication in force."""
        return next(reversed(self.acts[task, reviewer].values()), None)

    def apply(self, event: Event) -> None:
        """Go one event on. One that makes no sense (undoing what is not there) changes nothing."""
        task, item, who = event.task, event.item or "", event.reviewer
        if event.kind is Kind.OPENED:
            self.tasks.setdefault(task, event)
        elif event.kind is Kind.CLOSED:
            (self.closed.add if event.payload.get("closed", True) else self.closed.discard)(task)
        elif event.kind is Kind.RESERVED:
            self.holds[task][item][who] = Hold(str(event.payload.get("seat", "")), event.at)
            self.handed.add((task, item, who))
        elif event.kind is Kind.DRAFT:
            self.drafts[task, item, who] = event.payload
            if hold := self.holds[task].get(item, {}).get(who):
                self.holds[task][item][who] = Hold(hold.seat, event.at)
        elif event.kind is Kind.RELEASED:
            self._let_go(task, item, who)
        elif event.kind is Kind.UNDONE:
            self._undo(event)
        else:
            self.acts[task, who][event.id] = event
            if event.kind is Kind.ADJUDICATED:
                self._finals[task, item][event.id] = event
            else:
                by = self.answers[task][item]
                if who in by and by[who].kind is not Kind.JUDGED:
                    del by[who]  # who skipped before stands behind those who have judged since
                by[who] = event
                self._let_go(task, item, who)
                self.drafts.pop((task, item, who), None)

    def _let_go(self, task: str, item: str, who: str) -> None:
        by = self.holds[task].get(item, {})
        by.pop(who, None)
        if not by:
            self.holds[task].pop(item, None)

    def _undo(self, event: Event) -> None:
        task, who, acts = event.task, event.reviewer, self.acts[event.task, event.reviewer]
        gone = acts.pop(str(event.payload.get("event")), None)
        if gone is None:
            return
        self.unfinished.pop(task, None)
        item = gone.item or ""
        if gone.kind is Kind.ADJUDICATED:
            del self._finals[task, item][gone.id]
            return
        # What was said before is in force again; without it, the item lies on its reviewer's desk as it did.
        before = [act for act in acts.values() if act.item == gone.item and act.kind is not Kind.ADJUDICATED]
        if before:
            self.answers[task][item][who] = before[-1]
        elif self.answers[task][item].pop(who, None):
            self.holds[task][item][who] = Hold(str(event.payload.get("seat", "")), event.at)
            self.drafts[task, item, who] = gone.payload


def fold(events: Iterable[Event]) -> State:
    """The state after these events."""
    state = State()
    for event in events:
        state.apply(event)
    return state


class _Ticket:
    """An event on its way to the disk, or a function that decides on one; once `done`, with what came of it."""

    def __init__(self, event: Event | Callable[[State], Event | None]):
        self.event, self.done = event, False
        self.saved: Event | None = None
        self.error: Exception | None = None


class EventLog:
    """The events of a `reviews` folder and the `state` after them. With `writing` False: as they are now, to read from.
    StoreError where the file is damaged, DiskError where it cannot be written."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time, writing: bool = True):
        self.folder, self.clock, self.process = folder, clock, os.getpid()
        self._turn = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._connection: sqlite3.Connection | None = None
        self._forget()
        if not writing:
            self._take(stored(folder))
            return
        with disk.naming(folder), _alone(folder), saying(folder):
            self._connection = connected(folder / FILE, "rwc")
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
        self._connection.execute(CREATE)
        if lines := old_lines(self.folder):
            known = {line for _, line in self._connection.execute(SELECT, (0,))}
            for line in dict.fromkeys(lines):
                if line not in known:
                    self._insert(line)
        self._connection.execute("COMMIT")
        old = self.folder / OLD_FILE
        if old.exists():
            names = (self.folder / f"events-read-in-{number}.jsonl" for number in itertools.count(1))
            os.replace(old, next(name for name in names if not name.exists()))
        disk.fsync_folder(self.folder)

    def _insert(self, line: bytes) -> int:
        """The number of the row. A damaged line that is no text stays the bytes that it is."""
        try:
            text: str | bytes = line.decode("utf-8")
        except UnicodeDecodeError:
            text = line
        return self._connection.execute("INSERT INTO events (event) VALUES (?)", (text,)).lastrowid

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
            self._take(self._connection.execute(SELECT, (self._last,)))

    def look(self, at: Callable[[State], _Seen]) -> _Seen:
        """What `at(state)` gives, with no event coming in between. It must not keep parts of the state."""
        with self._turn:
            with saying(self.folder):
                self._catch_up()
            return at(self.state)

    def append(self, event: Event | Callable[[State], Event | None]) -> Event | None:
        """Write an event, and return it as it stands in the file once it is synced to disk.

        A function is called with the state and decides what to write (None: nothing), with no event coming in between;
        it must be quick. StoreError: it was not saved, and may be sent again.
        """
        if self._connection is None or self.process != os.getpid():
            raise StoreError(
                "these reviews are open for reading",
                "this process does not write them, or not any more",
                "Open them again with EventLog",
            )
        ticket = _Ticket(event)
        self._waiting.append(ticket)
        with self._turn:
            if not ticket.done:  # whoever had the turn before writes what waits, in one transaction
                self._write([self._waiting.popleft() for _ in range(len(self._waiting))])
        if ticket.error is not None:
            raise ticket.error
        return ticket.saved

    def _write(self, batch: Sequence[_Ticket]) -> None:
        try:
            with saying(self.folder):
                self._connection.execute("BEGIN IMMEDIATE")
                self._catch_up()
                for ticket in batch:
                    self._decide(ticket)
                self._connection.execute("COMMIT")
        except BaseException as error:
            # Nobody was told that these are saved: they leave the state as well.
            self._roll_back()
            for ticket in batch:
                ticket.error = StoreError(
                    "a review was not saved",
                    error.why if isinstance(error, StoreError) else str(error) or type(error).__name__,
                    "Mend that, then send it again",
                )
            if not isinstance(error, StoreError):
                raise
        finally:
            for ticket in batch:
                ticket.done = True

    def _decide(self, ticket: _Ticket) -> None:
        """Its effect on the state is there at once: what is decided next counts on it."""
        try:
            made = ticket.event(self.state) if callable(ticket.event) else ticket.event
            ticket.saved = self._known_as(made) if made else None
            if made is None or ticket.saved is not None:
                return
            instant = datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds")
            line = replace(made, time=instant).line()
            ticket.saved = Event.read(line)
            if ticket.saved is None:
                raise DataError(
                    f"a review event of {made.reviewer!r} cannot be read back",
                    "its fields must be text",
                    "give ids and names as text, and a mapping as the payload",
                )
        except Exception as error:  # noqa: BLE001 - its own, and of no other
            ticket.error = error
            return
        self._last = self._insert(line)
        self._known[ticket.saved.id] = ticket.saved
        self.state.apply(ticket.saved)

    def _known_as(self, made: Event) -> Event | None:
        """The event that was written under this id before."""
        known = self._known.get(made.id)
        if known is not None and Event.read(replace(made, time=known.time).line()) != known:
            raise DataError(
                f"two different events came as {made.id!r}",
                "what was said first under an id stands",
                "leave the id out, or give a task another name",
            )
        return known

    def _roll_back(self) -> None:
        if self._connection is None:
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


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time opens the log. Earlier versions held this lock for as long as they wrote."""
    try:
        lock = disk.Lock(folder / "lock", wait=10)
    except StoreError as error:
        if error.__cause__ is not None:  # no locks on this file system
            raise
        raise StoreError(
            error.what, "an earlier version of DeepIntuit writes the reviews", "Stop it, then try again"
        ) from None
    with lock:
        yield
