"""What people said of traces, as rows that SQL can join: `reviews/events.jsonl` → `reviews/answers.parquet`, a cache.

    workbench.query("SELECT reviewer, count(*) FROM reviews WHERE kind = 'judged' GROUP BY ALL")

A row for each (task, trace, reviewer): the judgement or skip in force, and one for the adjudication of a trace, by the
rule of `review.events.fold` (a test holds the two together). A person's own query sees closed tasks only, since
reviewers may not see what others answer. Left out on purpose: drafts, reservations, what is gold.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_text = pa.string()
SCHEMA = pa.schema([
    ("task", _text), ("trace_id", _text), ("clip_id", _text), ("reviewer", _text), ("kind", _text), ("label", _text),
    ("verdict", _text), ("failing_sentence", pa.int64()), ("failing_in", _text), ("note", _text), ("reason", _text),
    ("source", _text), ("time", pa.timestamp("us")), ("event_id", _text),
])
"""`kind`: judged, skipped (with a `reason`), adjudicated. A judgement without label or verdict says unsure, where these
were asked. `source`: where an imported one comes from. `time` is UTC, of the judgement itself where that is known."""
_CACHED = SCHEMA.append(pa.field("closed", pa.bool_()))
_MARK = b"events"


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
        "kind": str(event["kind"]), "failing_sentence": sentence if type(sentence) is int else None, "time": time,
        "event_id": event["id"], **{name: word if isinstance(word, str) else None for name, word in words.items()},
    }  # fmt: skip


def rows(content: bytes) -> list[dict[str, Any]]:
    """The rows in force after these lines, in the order in which they were said, and in `closed` whether their task is.
    Lines that cannot be read, and those repeated under one id, change nothing."""
    closed: dict[str, bool] = {}
    acts: dict[tuple[str, str, str], dict[str, Any]] = {}
    seen = set()
    for line in content.split(b"\n"):
        try:
            event = json.loads(line.decode("utf-8"))
            kind, task, who, number = event["kind"], event["task"], event["reviewer"], event["id"]
            if number in seen:
                continue
            seen.add(number)
            if kind == "undone":
                acts.pop((task, who, event["payload"]["event"]), None)
            elif kind == "closed":
                closed[task] = bool(event["payload"].get("closed", True))
            elif kind in ("judged", "skipped", "adjudicated"):
                acts[task, who, number] = row_of(event)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in acts.values():
        key = (row["task"], row["trace_id"], None if row["kind"] == "adjudicated" else row["reviewer"])
        last.pop(key, None)
        last[key] = row
    return [{**row, "closed": closed.get(row["task"], False)} for row in last.values()]


def cache(root: Path) -> Path:
    return root / "reviews" / "answers.parquet"


def refresh(root: Path) -> bool:
    """Write the cache anew when the events are others than those it was made of; True when it was written."""
    source, target = root / "reviews" / "events.jsonl", cache(root)
    try:
        facts = source.stat()
    except FileNotFoundError:
        return False
    mark = f"{facts.st_size} {facts.st_mtime_ns} {','.join(_CACHED.names)}".encode()
    try:
        if (pq.read_schema(target).metadata or {}).get(_MARK) == mark:
            return False
    except (OSError, pa.ArrowException):
        pass  # none there yet, or damaged: written anew
    found = pa.Table.from_pylist(rows(source.read_bytes()), schema=_CACHED).replace_schema_metadata({_MARK: mark})
    temporary = target.with_name(".answers.parquet.tmp")
    pq.write_table(found, temporary)
    os.replace(temporary, target)
    return True


def read(root: Path, *, closed: bool = False) -> pa.Table:
    """The rows of the cache, with `closed` only those of closed tasks; none where there is no cache."""
    try:
        with pq.ParquetFile(cache(root)) as file:
            found = file.read(use_threads=False).replace_schema_metadata(None)
        return (found.filter(found["closed"]) if closed else found).select(SCHEMA.names)
    except (OSError, KeyError, pa.ArrowException):
        return SCHEMA.empty_table()
