"""What reviewers did, one event each, and the state that follows from them: a fold, the only one.

state = fold(events)
state.answers["week 1"][trace_id]["ann"].payload["label"]
"""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from deepintuit.errors import DataError
from deepintuit.runs.schema import storable
from deepintuit_analysis.review import spans
from deepintuit_analysis.review.tasks import ReviewTask


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
        try:
            fields = json.loads(line.decode("utf-8"))
            if {*fields, "item", "clip"} != _FIELDS or not _sound(fields):
                return None
            event = cls(**{**fields, "kind": Kind(fields["kind"])})
            opens = ReviewTask(**event.payload).name if event.kind is Kind.OPENED else event.task
        except (ValueError, TypeError, AttributeError, RecursionError, DataError):
            return None
        return event if opens == event.task else None


_FIELDS = {"kind", "task", "reviewer", "item", "clip", "payload", "id", "time"}
_WORDS = ("label", "verdict", "note", "reason", "source", "said_at")


def _sound(fields: Mapping[str, Any]) -> bool:
    """Whether the fields have their types and times that a calendar has. Errors are those of `Event.read`."""
    payload = fields["payload"]
    words = [fields[name] for name in ("kind", "task", "reviewer", "id", "time")]
    words += [fields.get(name) or "" for name in ("item", "clip")]
    sentence, times = None, [fields["time"]]
    if fields["kind"] in ("judged", "skipped", "adjudicated"):
        spans.checked(payload.get("spans") or [])
        failing = payload.get("failing") or {}
        sentence, times = failing.get("sentence"), [*times, payload.get("said_at") or fields["time"]]
        words += [failing.get("in") or "", *(payload.get(name) or "" for name in _WORDS)]
    return (
        isinstance(payload, dict)
        and all(isinstance(word, str) for word in words)
        and (sentence is None or type(sentence) is int)
        and all(1970 <= datetime.fromisoformat(time).year < 9999 for time in times)
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
        self.tasks: dict[str, ReviewTask] = {}
        self.closed: set[str] = set()
        self.answers: dict[str, dict[str, dict[str, Event]]] = defaultdict(lambda: defaultdict(dict))
        self.holds: dict[str, dict[str, dict[str, Hold]]] = defaultdict(lambda: defaultdict(dict))
        self.handed: set[tuple[str, str, str]] = set()
        self.drafts: dict[tuple[str, str, str], Mapping[str, Any]] = {}
        self.acts: dict[tuple[str, str], dict[str, Event]] = defaultdict(dict)
        self.unfinished: dict[str, dict[str, None]] = {}  # a note of `tasks` of where to look; follows no event
        self._finals: dict[tuple[str, str], dict[str, Event]] = defaultdict(dict)

    def hidden(self) -> set[str]:
        """The clips that an open task asks about: what was said of them answers for those who are still asked."""
        return {clip for name, task in self.tasks.items() if name not in self.closed for clip in task.items.values()}

    def final(self, task: str, item: str) -> Event | None:
        """The adjudication in force."""
        finals = self._finals.get((task, item))
        return list(finals.values())[-1] if finals else None

    def counted(self, task: str, item: str) -> dict[str, Event]:
        """Of the answers of an item by reviewer, the judgements that count: those of the first as many as asked, and
        all that were brought in from elsewhere. Of a gold item, or of a task that was not opened, all."""
        spec, acts = self.tasks.get(task), {}
        for reviewer, act in self.answers.get(task, {}).get(item, {}).items():
            room = spec is None or len(acts) < spec.reviewers or item in spec.gold or act.payload.get("source")
            if act.kind is Kind.JUDGED and room:
                acts[reviewer] = act
        return acts

    def in_force(self, task: str | None = None) -> Iterator[tuple[Event, bool]]:
        """Judgements, skips and adjudications (of one task), each with whether it is an extra."""
        for name in [*self.answers] if task is None else [task]:
            for item, by in self.answers.get(name, {}).items():
                judgements = self.counted(name, item)
                yield from ((act, act.kind is Kind.JUDGED and person not in judgements) for person, act in by.items())
        for (name, _), acts in self._finals.items():
            if acts and task in (None, name):
                yield list(acts.values())[-1], False

    def held(self, task: str, name: str, since: float) -> dict[str, Hold]:
        """What somebody has reserved, or drafted in, after that time."""
        return {item: by[name] for item, by in self.holds.get(task, {}).items() if name in by and by[name].at > since}

    def last_act(self, task: str, reviewer: str) -> Event | None:
        """What an undo would take back: the newest judgement, skip or adjudication in force."""
        return next(reversed(self.acts[task, reviewer].values()), None)

    def apply(self, event: Event) -> None:
        """Go one event on. One that makes no sense (undoing what is not there) changes nothing."""
        task, item, reviewer = event.task, event.item or "", event.reviewer
        if event.kind is Kind.OPENED:
            self.tasks.setdefault(task, ReviewTask(**event.payload))
        elif event.kind is Kind.CLOSED:
            (self.closed.add if event.payload.get("closed", True) else self.closed.discard)(task)
        elif event.kind is Kind.RESERVED:
            self.holds[task][item][reviewer] = Hold(str(event.payload.get("seat", "")), event.at)
            self.handed.add((task, item, reviewer))
        elif event.kind is Kind.DRAFT:
            self.drafts[task, item, reviewer] = event.payload
            if hold := self.holds[task].get(item, {}).get(reviewer):
                self.holds[task][item][reviewer] = Hold(hold.seat, event.at)
        elif event.kind is Kind.RELEASED:
            self._let_go(task, item, reviewer)
        elif event.kind is Kind.UNDONE:
            self._undo(event)
        else:
            self.acts[task, reviewer][event.id] = event
            if event.kind is Kind.ADJUDICATED:
                self._finals[task, item][event.id] = event
            else:
                by = self.answers[task][item]
                if reviewer in by and by[reviewer].kind is not Kind.JUDGED:
                    del by[reviewer]  # who skipped before stands behind those who have judged since
                by[reviewer] = event
                self._let_go(task, item, reviewer)
                self.drafts.pop((task, item, reviewer), None)

    def _let_go(self, task: str, item: str, reviewer: str) -> None:
        by = self.holds[task].get(item, {})
        by.pop(reviewer, None)
        if not by:
            self.holds[task].pop(item, None)

    def _undo(self, event: Event) -> None:
        task, reviewer, acts = event.task, event.reviewer, self.acts[event.task, event.reviewer]
        target = acts.pop(str(event.payload.get("event")), None)
        if target is None:
            return
        self.unfinished.pop(task, None)
        item = target.item or ""
        if target.kind is Kind.ADJUDICATED:
            del self._finals[task, item][target.id]
            return
        # What was said before is in force again; without it, the item lies on its reviewer's desk as it did.
        before = [act for act in acts.values() if act.item == target.item and act.kind is not Kind.ADJUDICATED]
        if before:
            self.answers[task][item][reviewer] = before[-1]
        elif self.answers[task][item].pop(reviewer, None):
            self.holds[task][item][reviewer] = Hold(str(event.payload.get("seat", "")), event.at)
            self.drafts[task, item, reviewer] = target.payload


def fold(events: Iterable[Event]) -> State:
    """The state after these events."""
    state = State()
    for event in events:
        state.apply(event)
    return state
