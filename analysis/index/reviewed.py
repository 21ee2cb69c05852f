"""What people said of traces, as rows that SQL can join: `reviews/events.sqlite` → `reviews/answers.parquet`, a cache.

    workbench.query("SELECT reviewer, count(*) FROM reviews WHERE kind = 'judged' GROUP BY ALL")

A row for each (task, trace, reviewer): the judgement or skip in force, and one for the adjudication of a trace, by the
rules of `review.events.fold` and `review.tasks.Task.counted` (a test holds them together). A person's own query sees
closed tasks only, and of these no clip that an open task asks about: reviewers may not see what others answer before
they have. Left out on purpose: drafts, reservations, what is gold.
"""

import contextlib
import hashlib
import json
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepintuit import disk, parquet
from deepintuit.errors import StoreError

FILE, OLD_FILE = "events.sqlite", "events.jsonl"
"""Of a `reviews` folder: the events, and where earlier versions wrote them."""
CREATE = "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, event TEXT NOT NULL)"
SELECT = "SELECT number, CAST(event AS BLOB) FROM events WHERE number > ? ORDER BY number"
_NEWEST = "SELECT number, CAST(event AS BLOB) FROM events ORDER BY number DESC LIMIT 1"

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


def connected(file: Path, mode: str) -> sqlite3.Connection:
    """SQLite's file, opened as `mode` says (ro, rwc); a transaction begins and ends where it is said to."""
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None, check_same_thread=False
    )


@contextlib.contextmanager
def saying(folder: Path) -> Iterator[None]:
    """What SQLite refuses inside is raised as a StoreError, a DiskError where it is the disk."""
    try:
        yield
    except sqlite3.Error as error:
        raise _sentence(error, folder / FILE) from error


def _sentence(error: sqlite3.Error, file: Path) -> StoreError:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith("SQLITE_BUSY"):
        return StoreError(f"{str(file)!r} is in use", "another process has not let go of it for 30 s", "Try again")
    if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR"):
        return StoreError(
            f"{str(file)!r} is damaged",
            str(error),
            f"Put a copy back that you have, or see what `sqlite3 {FILE} .recover` finds in it",
        )
    try:  # SQLite does not tell why a disk refuses; a file beside it does
        with tempfile.TemporaryFile(dir=file.parent) as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
    except OSError as refused:
        return disk.refusal(refused, file) or StoreError(f"{str(file)!r} cannot be used", str(refused), "Mend that")
    return StoreError(f"{str(file)!r} cannot be used", str(error), "Mend that, then try again")


def _ask(folder: Path, sql: str, *values: Any) -> list[tuple[int, bytes]]:
    """Rows of the events, while others write them. WAL needs room beside the file: where there is none, of a copy."""
    file = folder / FILE
    if not file.exists():
        return []

    def ask(file: Path) -> list[tuple[int, bytes]]:
        with contextlib.closing(connected(file, "ro")) as connection:
            made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone()
            return connection.execute(sql, values).fetchall() if made else []

    with saying(folder), disk.naming(file):
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


def old_lines(folder: Path) -> list[bytes]:
    """The lines of an `events.jsonl` that has its name still."""
    try:
        return [line for line in (folder / OLD_FILE).read_bytes().split(b"\n") if line.strip()]
    except FileNotFoundError:
        return []


def stored(folder: Path) -> list[tuple[int, bytes]]:
    """The events of a `reviews` folder as numbered lines, in order, for any process while others write."""
    left = old_lines(folder)  # first: they go away once they are in the table
    found = _ask(folder, SELECT, 0)
    known = {line for _, line in found} if left else ()
    left = [line for line in dict.fromkeys(left) if line not in known]
    return found + list(enumerate(left, found[-1][0] + 1 if found else 1))


def rows(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows in force after these lines, in the order in which they were said, as of `SHOWN`; `public` says whether
    a person's own query sees them. Lines that cannot be read, and those repeated under one id, change nothing."""
    tasks: dict[str, Mapping[str, Any]] = {}
    closed: set[str] = set()
    acts: dict[tuple[str, str, str], dict[str, Any]] = {}
    said: dict[tuple[str, str], dict[str, dict[str, dict[str, Any]]]] = {}  # item → reviewer → event → row
    finals: dict[tuple[str, str], dict[str, None]] = {}
    seen = set()
    for line in lines:
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


def _table(root: Path) -> pa.Table:
    return pa.Table.from_pylist(rows(line for _, line in stored(root / "reviews")), schema=_CACHED)


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
    """Changes with every event; None where there are none."""
    left, newest = old_lines(root / "reviews"), _ask(root / "reviews", _NEWEST)
    if not left and not newest:
        return None
    return hashlib.sha256(repr((len(left), left[-1:], newest, _CACHED.names)).encode()).hexdigest().encode()


def refresh(root: Path, folder: Path | None = None) -> bool:
    """Write the cache anew (in `folder`, by default the workbench `root`) when the events are others than those it was
    made of; True when it was written."""
    folder = folder or root
    if fresh(root, folder):
        return False
    target, mark = cache(folder), _mark(root) or b""
    target.parent.mkdir(exist_ok=True)
    found = _table(root).replace_schema_metadata({_MARK: mark})
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
        found = _table(root)  # damaged
    return (found.filter(found["public"]) if public else found).select(SHOWN.names).replace_schema_metadata(None)
