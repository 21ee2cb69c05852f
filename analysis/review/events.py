"""What reviewers did, as lines of one file that only grows, and the state that follows from them.

    log = EventLog(workbench.reviews)
    log.append(Event(Kind.JUDGED, task, reviewer, item=trace_id, payload={"label": "dog"}))   # synced when it returns

One process writes (a lock says so in a sentence), with any number of threads: those that wait together share one write
and one fsync. A line that can be read is an event; a line torn by a kill cannot, was never acknowledged, and is passed
over. No byte that an append returned for is ever changed.

Left out on purpose: compaction (a hundred thousand events are read in about a second), several writing processes.
"""

import json
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from deepintuit import disk
from deepintuit.errors import DataError, StoreError
from deepintuit.runs.schema import storable
from deepintuit_analysis.index.reviewed import event_of

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
        """The event as a line of JSON. DataError when JSON has no form for it."""
        try:
            text = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"a review event of {self.reviewer!r} holds what JSON has not ({error})",
                "it could not be read back",
                "send numbers, text, lists and mappings",
            ) from error
        return storable(text).encode("utf-8") + b"\n"

    @classmethod
    def read(cls, line: bytes) -> "Event | None":
        """The event of a line; None for one that is torn, damaged or of another kind."""
        from deepintuit_analysis.review.queue import Task  # which stands on this module

        try:
            found = event_of(line)
            event = cls(**{**found, "kind": Kind(found["kind"])})
            if event.kind is Kind.OPENED and Task(**event.payload).name != event.task:
                return None
        except (ValueError, TypeError, AttributeError, DataError):
            return None
        return event


def read_events(folder: Path) -> tuple[list[Event], list[int]]:
    """All events of the `reviews` folder, in order, and the numbers of the lines that could not be read.

    For any process, while another one writes. An event written twice under one id is given once; another event under
    that id is damage.
    """
    try:
        lines = (folder / "events.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    found: dict[str, Event] = {}
    damaged = []
    for number, line in enumerate(lines, 1):
        event = Event.read(line) if line.strip() else None
        known = event and found.setdefault(event.id, event)
        if line.strip() and (event is None or replace(event, time=known.time) != known):
            damaged.append(number)
    return list(found.values()), damaged


def damage(numbers: Sequence[int]) -> str:
    """A sentence about the lines that could not be read; empty where there are none."""
    if not numbers:
        return ""
    shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
    return (
        f"reviews/events.jsonl: {len(numbers)} of its lines cannot be read, or say something else under an id that "
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
        self.unfinished: dict[str, dict[str, None]] = {}  # the queue's note by task of where to look; follows no event
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
    """An event on its way to the disk. `saved` is None until it is known."""

    def __init__(self, event: Event, line: bytes):
        self.event, self.line = event, line
        self.saved: bool | None = None


class EventLog:
    """The one writer of a `reviews` folder. StoreError when another process holds it."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time):
        try:
            self._lock = disk.Lock(folder / "lock")
        except StoreError as error:
            if error.__cause__ is not None:  # no locks on this file system
                raise
            raise StoreError(
                error.what,
                "one process writes the reviews, or two could hand out one item twice",
                "use the dashboard that runs already, or stop it first",
            ) from None
        self.folder, self.clock = folder, clock
        self._turn = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._writing = False
        self._fd = -1
        try:
            with disk.naming(folder / "events.jsonl"):
                self._take_up()
        except BaseException:
            self.close()
            raise

    def _take_up(self) -> None:
        path = self.folder / "events.jsonl"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.write(self._fd, b"\n")  # ends what a killed writer left
        os.fsync(self._fd)  # lines that it wrote and could not sync
        disk.fsync_folder(self.folder)
        self._load()

    def _load(self) -> None:
        self._size = os.fstat(self._fd).st_size
        events, self.damaged = read_events(self.folder)
        self.state = fold(events)
        self._known = {event.id: _Ticket(event, b"") for event in events}
        for ticket in self._known.values():
            ticket.saved = True

    def look(self, at: Callable[[State], _Seen]) -> _Seen:
        """What `at(state)` gives, with no event coming in between. It must not keep parts of the state."""
        with self._turn:
            return at(self.state)

    def append(self, event: Event | Callable[[State], Event | None]) -> Event | None:
        """Write an event, and return it as it stands in the file once it is synced to disk.

        A function is called with the state and decides what to write (None: nothing), with no event coming in between;
        it must be quick. StoreError: it was not saved, and may be sent again.
        """
        with self._turn:
            ticket = self._ticket(event)
            while ticket is not None and ticket.saved is None and self._writing:
                self._turn.wait()
            if ticket is None or ticket.saved is not None:
                return None if ticket is None else self._outcome(ticket)
            batch, self._waiting, self._writing = self._waiting, [], True
        failure, saved = None, False
        try:
            self._write(b"".join(ticket.line for ticket in batch))
            saved = True
        except OSError as error:
            failure = error
        finally:
            with self._turn:
                self._settle(batch, saved)
        return self._outcome(ticket, failure)

    def _ticket(self, event: Event | Callable[[State], Event | None]) -> _Ticket | None:
        """The place in the line of an event, and its effect on the state at once: what is decided next counts on it."""
        if not self._lock.held:
            raise StoreError(
                "the reviews are closed",
                "this process does not hold them any more",
                "open them again, or send this to the dashboard that runs",
            )
        made = event(self.state) if callable(event) else event
        if made is None:
            return None
        known = self._known.get(made.id)
        if known is not None:
            if Event.read(replace(made, time=known.event.time).line()) != known.event:
                raise DataError(
                    f"two different events came as {made.id!r}",
                    "what was said first under an id stands",
                    "leave the id out, or give a task another name",
                )
            return known
        instant = datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds")
        line = replace(made, time=instant).line()
        stored = Event.read(line)
        if stored is None:
            raise DataError(
                f"a review event of {made.reviewer!r} cannot be read back",
                "its fields must be text",
                "give ids and names as text, and a mapping as the payload",
            )
        ticket = self._known[made.id] = _Ticket(stored, line)
        self._waiting.append(ticket)
        self.state.apply(stored)
        return ticket

    def _write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        os.fsync(self._fd)

    def _settle(self, batch: list[_Ticket], saved: bool) -> None:
        self._writing = False
        if saved:
            self._size += sum(len(ticket.line) for ticket in batch)
        else:
            # Nobody was told that these are saved. What was decided after them may rest on them, so it goes as well.
            batch, self._waiting = [*batch, *self._waiting], []
            try:
                os.ftruncate(self._fd, self._size)
                self._load()
            except OSError:
                self._lock.release()  # a file that cannot be trusted takes nothing until it is opened anew
        for ticket in batch:
            ticket.saved = saved
        self._turn.notify_all()

    def _outcome(self, ticket: _Ticket, failure: OSError | None = None) -> Event:
        if not ticket.saved:
            raise StoreError(
                f"what {ticket.event.reviewer!r} did was not saved",
                (failure and failure.strerror) or "the disk did not take it",
                "make room on the disk of the workbench, then send it again",
            ) from failure
        return ticket.event

    def close(self) -> None:
        """Let another process write. Waits for what is on its way."""
        with self._turn:
            while self._writing or self._waiting:
                self._turn.wait()
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
            self._lock.release()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
