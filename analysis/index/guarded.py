"""Queries of people (a console's text, a saved slice) in a process of their own, bounded in time, memory and size.

Within a process DuckDB neither counts nor interrupts the making of one huge value (`repeat('x', 2000000000)`), and a
text that crashes its parser takes the server along. So a warm child process (`worker`) parses and runs it, without
environment and unable to write files. The answer comes back as Arrow, no pickle.
"""

import os
import re
import resource
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from deepintuit import worker
from deepintuit.errors import StoreError
from deepintuit.runs.schema import storable
from deepintuit_analysis.index import build

AT_ONCE = 3
"""Queries of people that run at the same time; one more waits."""
MEMORY = 2 << 30
"""Bytes that a query may take beyond what its process holds."""
MOST_BYTES = 64 << 20
"""Of a result."""
LONGEST = 100_000  # characters of a query

_children = worker.Pool(__name__, AT_ONCE)
_line = threading.BoundedSemaphore(AT_ONCE + 12)
"""Those that run, and those that wait."""


def query(path: Path, sql: str, params: Sequence[Any] | Mapping[str, Any], max_rows: int, seconds: float) -> pa.Table:
    """At most `max_rows` + 1 rows of one SELECT over the index at `path`; its schema's metadata say the `seconds` that
    the query itself took. Parameters are numbers and texts. StoreError for all that it may not or cannot do."""
    sql = storable(sql)
    if len(sql) > LONGEST:
        raise StoreError(f"the query has {len(sql):,} characters", f"at most {LONGEST:,} are read", "shorten it")
    request = {"path": str(path), "sql": sql, "params": params, "max_rows": max_rows}
    busy = StoreError(f"{AT_ONCE} other queries are running", "one more would slow all down", "try again")
    if not _line.acquire(blocking=False):
        raise busy
    try:
        answer, rows = _children.ask(request, seconds, MEMORY, wait=seconds)
    except worker.Busy:
        raise busy from None
    except worker.Stopped as stop:
        raise (_late(seconds) if stop.late else _gone()) from stop
    finally:
        _line.release()
    if rows:
        return pa.ipc.open_stream(rows).read_all()
    raise StoreError(*answer["error"])


def _late(seconds: float) -> StoreError:
    return StoreError(
        f"the query was stopped after {seconds:g} s",
        "a console may not hold the machine",
        "narrow it with WHERE or LIMIT, or run it from Python without `untrusted`",
    )


def _heavy() -> StoreError:
    return StoreError(
        "the query was stopped for the memory it took",
        "a console may not hold the machine",
        "select fewer columns or rows, or run it from Python without `untrusted`",
    )


def _gone() -> StoreError:
    return StoreError(
        "the query brought its process down",
        "it took too much memory, or is nested too deeply",
        "select less, or write it flatter",
    )


# In the child


def serve() -> None:
    duckdb.connect(config={"threads": "1"}).execute("SELECT 1")  # with what it loads when first used
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    worker.serve(_answer)


_reader: build.Reader | None = None
_asked_of = ""


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    global _reader, _asked_of
    start, path = time.monotonic(), Path(request["path"])
    folders = {str(path.parent), os.path.realpath(path.parent)}
    try:
        if _reader is None or _asked_of != request["path"] or _reader.signature != build.signatures(path):
            _reader, _asked_of = build.Reader(path, guarded=True), request["path"]
        rows = _reader.query(request["sql"], request["params"], request["max_rows"], request["seconds"])
        # DuckDB tells every query where an attached file lies, by functions that cannot be taken from it.
        rows = pa.table([_without(folders, column) for column in rows.columns], schema=rows.schema)
        return {}, _told(rows.replace_schema_metadata({"seconds": str(time.monotonic() - start)}))
    except (duckdb.OutOfMemoryException, MemoryError, pa.ArrowMemoryError):
        error = _heavy().args
    except duckdb.InterruptException:
        error = _late(request["seconds"]).args
    except StoreError as refused:
        error = refused.args
    except (duckdb.Error, pa.ArrowException, OSError, ValueError, TypeError, RuntimeError) as failure:
        begins = request["sql"].strip().partition("\n")[0]
        message = build.without_places(str(failure).strip(), path.parent)
        error = (
            f"the query {begins!r:.60} fails",
            message or "in silence",
            "`SHOW TABLES` and `DESCRIBE traces` list what there is",
        )
    return {"error": error}, b""


def _without(folders: Iterable[str], column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose texts, in lists and structs too, do not name these folders."""
    if not re.search(r"\b(large_)?string\b", str(column.type)):
        return column
    for folder in folders:
        if pa.types.is_string(column.type):
            column = pc.replace_substring(pc.replace_substring(column, f"{folder}/", ""), folder, ".")
        else:
            texts = [_renamed(cell, folder) for cell in column.to_pylist()]
            column = pa.chunked_array([pa.array(texts, column.type)])
    return column


def _renamed(cell: Any, folder: str) -> Any:
    if isinstance(cell, str):
        return cell.replace(f"{folder}/", "").replace(folder, ".")
    if isinstance(cell, dict):
        return {_renamed(key, folder): _renamed(value, folder) for key, value in cell.items()}
    return type(cell)(_renamed(each, folder) for each in cell) if isinstance(cell, list | tuple) else cell


def _told(rows: pa.Table) -> bytes:
    if rows.nbytes > MOST_BYTES:
        raise StoreError(
            f"the result has {rows.nbytes / 1e6:,.0f} MB",
            f"at most {MOST_BYTES / 1e6:.0f} MB are shown",
            "select fewer columns or rows",
        )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()
