"""What people said of traces, as rows that SQL can join: `reviews/events.sqlite` → `reviews/answers.parquet`, a cache.

    workbench.query("SELECT reviewer, count(*) FROM reviews WHERE kind = 'judged' GROUP BY ALL")

A row for each (task, trace, reviewer): the judgement or skip in force, and one for the adjudication of a trace, by the
rules of `review.events`. A person's own query sees closed tasks only, and of these no clip that an open task asks
about: reviewers may not see what others answer before they have.
"""

import json
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepintuit import disk, parquet
from deepintuit.errors import StoreError
from deepintuit_analysis.review import spans
from deepintuit_analysis.review.events import Event, State, fold
from deepintuit_analysis.review.log import newest, read_events

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
        ("spans", _text),
    ]
)
"""`kind`: judged, skipped (with a `reason`), adjudicated. A judgement without label or verdict says unsure, where these
were asked. `source`: where an imported one comes from. `time` is UTC, of the judgement itself where that is known.
`spans`: JSON, as `review.spans` writes it; null: none were marked."""
SHOWN = SCHEMA.append(pa.field("extra", pa.bool_()))
"""`extra`: a judgement beyond those asked for, which settles nothing."""
_CACHED = SHOWN.append(pa.field("public", pa.bool_()))
_MARK = b"events"


def row_of(event: Event) -> dict[str, Any]:
    """An event as a row of `SCHEMA`. Answers of another type are left out."""
    payload = event.payload
    failing = payload.get("failing") or {}
    sentence = failing.get("sentence")
    words = {name: payload.get(name) or None for name in ("label", "verdict", "note", "reason", "source")}
    words["failing_in"] = failing.get("in")
    time = datetime.fromisoformat(payload.get("said_at") or event.time).astimezone(UTC).replace(tzinfo=None)
    return {
        "task": event.task, "trace_id": event.item, "clip_id": event.clip, "reviewer": event.reviewer,
        "kind": str(event.kind), "time": time,
        "failing_sentence": sentence if type(sentence) is int and abs(sentence) < 2**63 else None,
        "event_id": event.id, "spans": spans.dumps(payload.get("spans") or ()),
        **{name: word if isinstance(word, str) else None for name, word in words.items()},
    }  # fmt: skip


def spans_of(reviews: pa.Table) -> pa.Table:
    """A row for each span of a table of reviews."""
    about = ["task", "trace_id", "clip_id", "reviewer", "kind", "extra", "event_id"]
    marks = [
        {**row, "start_seconds": span["start"], "end_seconds": span["end"], "label": span["label"]}
        for row, text in zip(reviews.select(about).to_pylist(), reviews["spans"].to_pylist())
        for span in json.loads(text or "[]")
    ]
    ends = [(name, pa.float64()) for name in ("start_seconds", "end_seconds")]
    fields = [SHOWN.field(name) for name in about]
    return pa.Table.from_pylist(marks, schema=pa.schema([*fields, *ends, ("label", _text)]))


def rows(state: State, task: str | None = None) -> list[dict[str, Any]]:
    """What is in force (in one task), in the order in which it was said, in the columns of `SHOWN`."""
    rows = [{**row_of(act), "extra": extra} for act, extra in state.in_force(task)]
    return sorted(rows, key=lambda row: row["time"])


def cache(root: Path) -> Path:
    return root / "reviews" / "answers.parquet"


def _table(root: Path) -> pa.Table:
    """The rows in force; `public` are those that a person's own query sees."""
    state = fold(read_events(root / "reviews")[0])
    hidden = state.hidden()
    table_rows = rows(state)
    for row in table_rows:
        row["public"] = row["task"] in state.closed and row["clip_id"] not in hidden
    return pa.Table.from_pylist(table_rows, schema=_CACHED)


def fresh(root: Path, folder: Path) -> bool:
    """Whether the cache in `folder` is made of the events as they are, or there are none. Of events that cannot be read
    it stays what it is, with a warning."""
    try:
        return _made_of(folder) == _mark(root)
    except StoreError as error:
        warnings.warn(f"Reviews are left as they were read last: {error}", stacklevel=2)
        return True


def _made_of(folder: Path) -> bytes | None:
    try:
        return (pq.read_schema(cache(folder)).metadata or {}).get(_MARK)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException):
        return b"damaged"


def _mark(root: Path) -> bytes | None:
    last = newest(root / "reviews")
    return last and f"{last} {','.join(_CACHED.names)}".encode()


def refresh(root: Path, folder: Path | None = None) -> bool:
    """Write the cache anew (in `folder`, by default the workbench `root`) when the events are others than those it was
    made of; True when it was written."""
    folder = folder or root
    if fresh(root, folder):
        return False
    target, mark = cache(folder), _mark(root) or b""
    target.parent.mkdir(exist_ok=True)
    table = _table(root).replace_schema_metadata({_MARK: mark})
    with disk.replacing(target, durable=False) as temporary:
        parquet.write(table, temporary)
    return True


def fails_in(root: Path, trace_id: str) -> list[str]:
    """The process in which this trace fails (seeing, reasoning) by each who named one, of what everybody may see."""
    reviews = read(root, public=True)
    mask = pc.and_(pc.equal(reviews["trace_id"], trace_id), pc.invert(reviews["extra"]))
    return reviews.filter(mask)["failing_in"].drop_null().to_pylist()


def read(root: Path, *, public: bool = False) -> pa.Table:
    """The rows of the cache, with `public` only those that a person's own query may see; none where there is none."""
    try:
        table = parquet.read(cache(root))
    except FileNotFoundError:
        return SHOWN.empty_table()
    except (OSError, ValueError):
        table = _table(root)  # damaged
    return (table.filter(table["public"]) if public else table).select(SHOWN.names).replace_schema_metadata(None)
