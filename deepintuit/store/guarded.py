"""Queries of people (a console's text, a saved slice) in a process of their own, bounded in time, memory and size.

Within a process DuckDB neither counts nor interrupts the making of one huge value (`repeat('x', 2000000000)`), and a
text that crashes its parser takes the server along. So a warm child process parses and runs it: under a limit of the
kernel, without environment, unable to write files, killed when it is late. The answer comes back as Arrow, no pickle.

Left out on purpose: limits where the kernel has none (macOS ignores that on memory; time still holds).
"""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from deepintuit.errors import StoreError
from deepintuit.store import index
from deepintuit.store.grains import storable

AT_ONCE = 3
"""Queries of people that run at the same time; one more waits."""
MEMORY, TIRED = 2 << 30, 600 << 10
"""Bytes that a child may take beyond what it has when it is ready; kilobytes held at the most past which it is not
asked again."""
MOST_BYTES = 64 << 20
"""Of a result."""
LONGEST = 100_000  # characters of a query
_GRACE, _STARTING = 1.0, 120.0  # seconds: after the interrupt, and for a child to come up


def _afresh() -> None:
    global _places, _coming_up, _idle
    _places, _coming_up, _idle = threading.BoundedSemaphore(AT_ONCE), threading.Lock(), []


_afresh()
os.register_at_fork(after_in_child=_afresh)  # two processes must not speak to one child


def query(path: Path, sql: str, params: Sequence[Any] | Mapping[str, Any], max_rows: int, seconds: float) -> pa.Table:
    """At most `max_rows` + 1 rows of one SELECT over the index at `path`; its schema's metadata say the `seconds` that
    the query itself took. Parameters are numbers and texts. StoreError for all that it may not or cannot do."""
    sql = storable(sql)
    if len(sql) > LONGEST:
        raise StoreError(f"the query has {len(sql):,} characters", f"at most {LONGEST:,} are read", "shorten it")
    if not _places.acquire(timeout=seconds):
        raise StoreError(f"{AT_ONCE} other queries are running", "one more would slow all down", "try again")
    try:
        with _coming_up:  # one after the other: while one comes up, another may have become free
            child = next((one for one in iter(_waiting, None) if one.alive), None) or _Child()
        try:
            answer, rows = child.ask({"path": str(path), "sql": sql, "params": params, "max_rows": max_rows,
                                      "seconds": seconds})  # fmt: skip
        except BaseException:
            child.end()
            raise
        if answer["held"] > TIRED:
            child.end()
        else:
            _idle.append(child)
    finally:
        _places.release()
    if rows is not None:
        return rows
    raise StoreError(*answer["error"])


def _waiting() -> "_Child | None":
    return _idle.pop() if _idle else None


class _Child:
    """A process that answers one question at a time."""

    def __init__(self) -> None:
        program = f"import sys; sys.path[:] = {sys.path!r}; from deepintuit.store.guarded import _serve; _serve()"
        # None of this environment is a query's business, but the loader's path may be needed to come up at all. What is
        # added keeps libraries from reserving addresses that they do not use, which the limit on memory would count.
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
        kept |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1",
                 "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
        self._process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE,  # noqa: S603
                                         stdout=subprocess.PIPE, env=kept)  # fmt: skip
        with self._alarm(_STARTING):
            if not self._process.stdout.readline():
                self.end()
                raise StoreError("the process for queries did not start", "a query of a person runs in one of its own",
                                 "see the log; it may be out of memory")  # fmt: skip

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], pa.Table | None]:
        late = threading.Event()
        try:
            with self._alarm(question["seconds"] + _GRACE, late):
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
                self._process.stdin.flush()
                answer = json.loads(self._process.stdout.readline())
                told = self._process.stdout.read(answer["bytes"])
        except (OSError, ValueError) as error:
            # Gone, perhaps in the middle of an answer.
            raise (_late(question["seconds"]) if late.is_set() else _gone()) from error
        return answer, pa.ipc.open_stream(told).read_all() if told else None

    @contextlib.contextmanager
    def _alarm(self, seconds: float, late: threading.Event | None = None):
        def strike() -> None:
            if late is not None:
                late.set()
            self._process.kill()

        timer = threading.Timer(seconds, strike)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> None:
        self._process.kill()
        self._process.stdout.close()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


def _late(seconds: float) -> StoreError:
    return StoreError(f"the query was stopped after {seconds:g} s", "a console may not hold the machine",
                      "narrow it with WHERE or LIMIT, or run it from Python without `untrusted`")  # fmt: skip


def _heavy() -> StoreError:
    return StoreError("the query was stopped for the memory it took", "a console may not hold the machine",
                      "select fewer columns or rows, or run it from Python without `untrusted`")  # fmt: skip


def _gone() -> StoreError:
    return StoreError("the query brought its process down", "it took too much memory, or is nested too deeply",
                      "select less, or write it flatter")  # fmt: skip


# In the child


def _serve() -> None:
    """Answer questions from standard input until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the input
    duckdb.connect(config={"threads": "1"}).execute("SELECT 1")  # with what it loads when first used
    _bound()
    reader: index.Reader | None = None
    asked_of = ""
    out = sys.stdout.buffer
    out.write(b"ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        question = json.loads(line)
        # Should the parent be gone, nobody else would end a query that does not listen.
        signal.alarm(int(question["seconds"] + _GRACE) + 5)
        told, begun = b"", time.monotonic()
        answer: dict[str, Any] = {}
        try:
            path = Path(question["path"])
            if reader is None or asked_of != question["path"] or reader.signature != index.signatures(path):
                reader, asked_of = index.Reader(path, guarded=True), question["path"]
            rows = reader.query(question["sql"], question["params"], question["max_rows"], question["seconds"])
            told = _told(rows.replace_schema_metadata({"seconds": str(time.monotonic() - begun)}))
        except (duckdb.OutOfMemoryException, MemoryError, pa.ArrowMemoryError):
            answer["error"] = _heavy().args
        except duckdb.InterruptException:
            answer["error"] = _late(question["seconds"]).args
        except StoreError as error:
            answer["error"] = error.args
        except (duckdb.Error, pa.ArrowException, OSError, ValueError, TypeError, RuntimeError) as error:
            begins = question["sql"].strip().partition("\n")[0]
            answer["error"] = (f"the query {begins!r:.60} fails", str(error).strip() or "in silence",
                               "`SHOW TABLES` and `DESCRIBE traces` list what there is")  # fmt: skip
        out.write(json.dumps(answer | {"bytes": len(told), "held": _held()}).encode() + b"\n" + told)
        out.flush()
        signal.alarm(0)


def _told(rows: pa.Table) -> bytes:
    if rows.nbytes > MOST_BYTES:
        raise StoreError(f"the result has {rows.nbytes / 1e6:,.0f} MB", f"at most {MOST_BYTES / 1e6:.0f} MB are shown",
                         "select fewer columns or rows")  # fmt: skip
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def _held() -> int:
    """Kilobytes at the most so far, of this program alone: Linux counts what the parent held before it into
    ru_maxrss."""
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return int(peak[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most


def _bound() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    held = Path("/proc/self/statm")
    if held.exists():
        most = int(held.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
