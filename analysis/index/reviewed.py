"""What people said of traces, as rows that SQL can join: `reviews/events.jsonl` → `reviews/answers.parquet`, a cache.

    workbench.query("SELECT reviewer, count(*) FROM reviews WHERE kind = 'judged' GROUP BY ALL")

A row for each (task, trace, reviewer): the judgement or skip in force, and one for the adjudication of a trace, by the
rules of `review.events.fold` and `review.queue.Task.counted` (a test holds them together). A person's own query sees
closed tasks only, and of these no clip that an open task asks about: reviewers may not see what others answer before
they have. Left out on purpose: drafts, reservations, what is gold.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepintuit import disk, parquet

_text = pa.string()
SCHEMA = pa.schema(
    [
        ("task", _text),
        ("trace_id", _text),
        ("clip_id", _text),
        ("reviewer", _text),
        ("kind", _text),
        ("label", _text),
        ("verdict", _text),
        ("failing_sentence", pa.int64()),
        ("failing_in", _text),
        ("note", _text),
        ("reason", _text),
        ("source", _text),
        ("time", pa.timestamp("us")),
        ("event_id", _text),
    ]
)
"""`kind`: judged, skipped (with a `reason`), adjudicated. A judgement without label or verdict says unsure, where these
were asked. `source`: where an imported one comes from. `time` is UTC, of the judgement itself where that is known."""
SHOWN = SCHEMA.append(pa.field("extra", pa.bool_()))
"""`extra`: a judgement beyond those asked for, which settles nothing."""
_CACHED = SHOWN.append(pa.field("public", pa.bool_()))
_MARK = b"events"


_EVENT = {"kind", "task", "reviewer", "item", "clip", "payload", "id", "time"}
_WORDS = ("label", "verdict", "note", "reason", "source", "said_at")


def event_of(line: bytes) -> dict[str, Any]:
    """The fields of an event of `review` by name; ValueError for a line that is torn, damaged or of another shape."""
    try:
        event = json.loads(line.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(event, dict) or {*event, "item", "clip"} != _EVENT:
        raise ValueError("it has not the fields of an event")
    event = {"item": None, "clip": None, **event}
    payload, failing = event["payload"], None
    words = [event[name] for name in ("kind", "task", "reviewer", "id", "time")]
    words += [event[name] or "" for name in ("item", "clip")]
    if isinstance(payload, dict) and event["kind"] in ("judged", "skipped", "adjudicated"):
        words += [payload.get(name) or "" for name in _WORDS]
        failing = payload.get("failing") or {}
        words += [failing.get("in") or ""] if isinstance(failing, dict) else [failing]
    if not isinstance(payload, dict) or not all(isinstance(word, str) for word in words):
        raise ValueError("a field of it is of another type")
    if failing and not (failing.get("sentence") is None or type(failing["sentence"]) is int):
        raise ValueError("it names no sentence")
    for instant in filter(None, (event["time"], failing is not None and payload.get("said_at"))):
        if not 1970 <= datetime.fromisoformat(instant).year < 9999:
            raise ValueError("its time is out of range")
    return event


def row_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event of `review` (its fields by name) as a row of `SCHEMA`. Answers of another type are left out."""
    payload = event["payload"]
    failing = payload.get("failing") or {}
    sentence = failing.get("sentence")
    words = {name: payload.get(name) or None for name in ("label", "verdict", "note", "reason", "source")}
    words["failing_in"] = failing.get("in")
    time = datetime.fromisoformat(payload.get("said_at") or event["time"]).astimezone(UTC).replace(tzinfo=None)
    return {
        "task": event["task"], "trace_id": event["item"], "clip_id": event["clip"], "reviewer": event["reviewer"],
        "kind": str(event["kind"]), "time": time,
        "failing_sentence": sentence if type(sentence) is int and abs(sentence) < 2**63 else None,
        "event_id": event["id"], **{name: word if isinstance(word, str) else None for name, word in words.items()},
    }  # fmt: skip


def rows(content: bytes) -> list[dict[str, Any]]:
    """The rows in force after these lines, in the order in which they were said, as of `SHOWN`; `public` says whether
    a person's own query sees them. Lines that cannot be read, and those repeated under one id, change nothing."""
    tasks: dict[str, Mapping[str, Any]] = {}
    closed: set[str] = set()
    acts: dict[tuple[str, str, str], dict[str, Any]] = {}
    said: dict[tuple[str, str], dict[str, dict[str, dict[str, Any]]]] = {}  # item → reviewer → event → row
    finals: dict[tuple[str, str], dict[str, None]] = {}
    seen = set()
    for line in content.split(b"\n"):
        try:
            event = event_of(line)
            kind, task, who, number, payload = (event[name] for name in ("kind", "task", "reviewer", "id", "payload"))
            if number in seen:
                continue
            seen.add(number)
            if kind == "opened":
                about = {
                    "clips": set(payload["items"].values()),
                    "gold": set(payload.get("gold") or ()),
                    "reviewers": int(payload.get("reviewers", 1)),
                }
                tasks.setdefault(task, about)
            elif kind == "closed":
                (closed.add if payload.get("closed", True) else closed.discard)(task)
            elif kind == "undone" and (gone := acts.pop((task, who, payload["event"]), None)):
                place = (task, gone["trace_id"])
                left = finals[place] if gone["kind"] == "adjudicated" else said[place][who]
                del left[gone["event_id"]]
                if not left and gone["kind"] != "adjudicated":
                    del said[place][who]
            elif kind in ("judged", "skipped", "adjudicated"):
                row = acts[task, who, number] = row_of(event)
                place = (task, row["trace_id"])
                if kind == "adjudicated":
                    finals.setdefault(place, {})[number] = None
                else:
                    by = said.setdefault(place, {})
                    if who in by and _last(by[who])["kind"] != "judged":
                        by[who] = by.pop(who)  # who skipped before stands behind those who have judged since
                    by.setdefault(who, {})[number] = row
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            continue
    standing = {_last(mine)["event_id"] for by in said.values() for mine in by.values()}
    standing |= {next(reversed(numbers)) for numbers in finals.values() if numbers}
    extra = {number for place, by in said.items() for number in _extras(tasks.get(place[0]), place[1], by)}
    asked = {clip for name, task in tasks.items() if name not in closed for clip in task["clips"]}
    return [
        {**row, "extra": row["event_id"] in extra, "public": row["task"] in closed and row["clip_id"] not in asked}
        for row in acts.values()
        if row["event_id"] in standing
    ]


def _last(mine: Mapping[str, Any]) -> Any:
    return mine[next(reversed(mine))]


def _extras(task: Mapping[str, Any] | None, item: str, by: Mapping[str, Mapping[str, dict[str, Any]]]) -> list[str]:
    """Ids of the judgements of an item beyond those asked for."""
    if task is None or item in task["gold"]:
        return []
    found, counted = [], 0
    for row in (row for row in map(_last, by.values()) if row["kind"] == "judged"):
        if counted < task["reviewers"] or row["source"] is not None:
            counted += 1
        else:
            found.append(row["event_id"])
    return found


def cache(root: Path) -> Path:
    return root / "reviews" / "answers.parquet"


def _source(root: Path) -> Path:
    return root / "reviews" / "events.jsonl"


def _table(source: Path) -> pa.Table:
    return pa.Table.from_pylist(rows(source.read_bytes()), schema=_CACHED)


def fresh(root: Path, folder: Path) -> bool:
    """Whether the cache in `folder` is made of the events as they are, or there are none."""
    try:
        return (pq.read_schema(cache(folder)).metadata or {}).get(_MARK) == _mark(root)
    except (OSError, pa.ArrowException):
        return not _source(root).exists()  # none there yet, or damaged


def _mark(root: Path) -> bytes:
    facts = _source(root).stat()
    return f"{facts.st_size} {facts.st_mtime_ns} {','.join(_CACHED.names)}".encode()


def refresh(root: Path, folder: Path | None = None) -> bool:
    """Write the cache anew (in `folder`, by default the workbench `root`) when the events are others than those it was
    made of; True when it was written."""
    folder = folder or root
    if fresh(root, folder):
        return False
    target, mark = cache(folder), _mark(root)
    target.parent.mkdir(exist_ok=True)
    found = _table(_source(root)).replace_schema_metadata({_MARK: mark})
    with disk.replacing(target, durable=False) as temporary:
        parquet.write(found, temporary)
    return True


def fails_in(root: Path, trace_id: str) -> list[str]:
    """The process in which this trace fails (seeing, reasoning) by each who named one, of what everybody may see."""
    found = read(root, public=True)
    counted = pc.and_(pc.equal(found["trace_id"], trace_id), pc.invert(found["extra"]))
    return found.filter(counted)["failing_in"].drop_null().to_pylist()


def read(root: Path, *, public: bool = False) -> pa.Table:
    """The rows of the cache, with `public` only those that a person's own query may see; none where there is none."""
    try:
        found = parquet.read(cache(root))
    except FileNotFoundError:
        return SHOWN.empty_table()
    except (OSError, ValueError):
        found = _table(_source(root))  # damaged
    return (found.filter(found["public"]) if public else found).select(SHOWN.names).replace_schema_metadata(None)
