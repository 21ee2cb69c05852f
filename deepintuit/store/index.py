"""The index: all parts of all runs as one DuckDB file, a cache that may be deleted at any time.

It is built beside the old one and swapped in by os.replace, so reading never blocks writing. What is found broken (a
part that cannot be read, a run without run.json) is listed in the table `problems`, not skipped in silence.

Left out on purpose: an incremental refresh (the table `parts` holds what it would need) and extensions, which would
have to be downloaded.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from deepintuit.errors import DeepIntuitError, StoreError
from deepintuit.store import reviewed
from deepintuit.store.grains import GRAINS, Grain
from deepintuit.store.run import parts, read_description, read_part

LAYOUT = 2  # raise when tables or views change, so that old index files are rebuilt
_BATCH_ROWS = 50_000
_BATCH_PARTS = 500

# What a manifest holds at least; `data` owns it and may add columns.
_CLIPS = pa.schema([
    ("dataset", pa.string()), ("clip_id", pa.string()), ("path", pa.string()), ("label", pa.string()),
    ("group", pa.string()), ("split", pa.string()), ("seconds", pa.float64()), ("width", pa.int64()),
    ("height", pa.int64()), ("fps", pa.float64()), ("frames", pa.int64()), ("codec", pa.string()),
    ("audio", pa.bool_()), ("bytes", pa.int64()), ("excluded", pa.string()), ("playable_path", pa.string()),
])
_RUN_TEXT = ("run_id", "stage", "name", "parent", "dataset", "status", "device", "commit", "error")
_RUN_JSON = ("command", "config", "versions", "summary")
_RUNS = """CREATE TABLE runs (run_id VARCHAR, stage VARCHAR, name VARCHAR, parent VARCHAR, dataset VARCHAR,
    status VARCHAR, device VARCHAR, "commit" VARCHAR, error VARCHAR, command JSON, config JSON, versions JSON,
    summary JSON, seed BIGINT, dirty BOOLEAN, created TIMESTAMP, finished TIMESTAMP)"""
_FACTS = """
    CREATE TABLE parts (run_id VARCHAR, grain VARCHAR, part INTEGER, bytes BIGINT, row_count BIGINT);
    CREATE TABLE problems (source VARCHAR, problem VARCHAR);
    CREATE TABLE about (fingerprint VARCHAR, layout INTEGER);
"""
_VIEWS = """
    -- For each clip and way of predicting, what the newest run says.
    CREATE VIEW latest_predictions AS
        SELECT predictions.* FROM predictions JOIN runs USING (run_id)
        QUALIFY rank() OVER (
            PARTITION BY clip_id, split, system, method, control ORDER BY created DESC, run_id DESC) = 1;
    CREATE VIEW accuracy_by_run AS
        SELECT run_id, split, system, method, control, count(*) AS n,
               count(*) FILTER (predicted = 'none') AS no_answer,
               avg((predicted = true_label)::INT) AS accuracy
        FROM predictions WHERE true_label IS NOT NULL GROUP BY ALL;
    CREATE VIEW trace_reasons AS
        SELECT *, n / sum(n) OVER (PARTITION BY run_id, stage) AS share
        FROM (SELECT run_id, stage, coalesce(reason, 'well-formed') AS reason, count(*) AS n FROM traces GROUP BY ALL);
"""

# What traces are looked for by, one narrow row a trace (`browse` asks it). Joined once here, so that a filter over a
# million traces reads a few short columns; `lowered` is there to be searched, since ILIKE takes twice as long.
_TRACE_FACTS = """
    CREATE TABLE trace_facts AS
    WITH held AS (
            SELECT clip_id, dataset, any_value(split) AS split, any_value(label) AS label FROM clips GROUP BY ALL),
         anywhere AS (SELECT clip_id, min(dataset) AS dataset, min_by(split, dataset) AS split FROM clips GROUP BY ALL),
         said AS (
            SELECT trace_id, predicted, list_max(probs) AS certainty FROM predictions JOIN runs USING (run_id)
            WHERE method = 'label_likelihood' AND control = 'none' AND trace_id IS NOT NULL
            QUALIFY row_number() OVER (PARTITION BY trace_id ORDER BY created DESC, run_id DESC, split, system) = 1)
    SELECT traces.trace_id, traces.run_id, coalesce(traces.stage, runs.stage) AS stage,
           coalesce(runs.dataset, anywhere.dataset) AS dataset, coalesce(held.split, anywhere.split) AS split,
           traces.clip_id, sample, step, coalesce(traces.true_label, held.label) AS true_label,
           coalesce(provisional, 'none') AS provisional, said.predicted AS calibrated, said.certainty, reason,
           confidence, tokens, milliseconds, runs.created, lower(traces.text) AS lowered
    FROM traces JOIN runs USING (run_id) LEFT JOIN said USING (trace_id)
    LEFT JOIN held ON held.clip_id = traces.clip_id AND held.dataset = runs.dataset
    LEFT JOIN anywhere ON anywhere.clip_id = traces.clip_id
"""


def fingerprint(root: Path) -> str:
    """Changes when a part appears, or run.json or a manifest is replaced. Reads names and sizes, no contents."""
    found = [str(LAYOUT)]
    for path in (*root.glob("clips/*.parquet"), *root.glob("runs/*/run.json"), *root.glob("runs/*/*.parquet")):
        try:
            facts = path.stat()
        except FileNotFoundError:
            continue
        found.append(f"{path.relative_to(root)}\0{facts.st_size}\0{facts.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(found)).encode("utf-8", "surrogateescape")).hexdigest()


def build(root: Path, target: Path, mark: str) -> None:
    """Write the index of the workbench `root` to the new file `target`, marked with the fingerprint `mark`."""
    with duckdb.connect(str(target)) as connection:
        connection.execute("SET preserve_insertion_order = true; SET python_enable_replacements = false")
        _without_bar(connection)
        connection.execute("BEGIN")
        connection.execute(_RUNS)
        connection.execute(_FACTS)
        problems = list(_load_clips(connection, root)) + list(_load_runs(connection, root))
        if problems:
            connection.executemany("INSERT INTO problems VALUES (?, ?)", problems)
        connection.execute(_TRACE_FACTS)
        connection.execute(_VIEWS)
        connection.execute("INSERT INTO about VALUES (?, ?)", [mark, LAYOUT])
        connection.execute("COMMIT")


def _insert(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table, *, create: bool = False) -> None:
    # `name` is one of this module's own table names, never a caller's text.
    connection.register("incoming", rows)
    verb = f"CREATE TABLE {name} AS" if create else f"INSERT INTO {name} BY NAME"
    connection.execute(f"{verb} FROM incoming")
    connection.unregister("incoming")


def _load_clips(connection: duckdb.DuckDBPyConnection, root: Path) -> Iterator[tuple[str, str]]:
    whole = _CLIPS.empty_table()
    for path in sorted(root.glob("clips/*.parquet")):
        if "@" in path.name:  # a former version that `data` keeps beside the manifest in force
            continue
        try:
            with pq.ParquetFile(path) as file:
                rows = file.read()
            if "dataset" not in rows.column_names:
                rows = rows.append_column("dataset", pa.array([path.stem] * rows.num_rows, pa.string()))
            whole = pa.concat_tables([whole, rows], promote_options="permissive")
        except (pa.ArrowException, OSError) as error:
            yield str(path.relative_to(root)), f"{type(error).__name__}: {error}"
    _insert(connection, "clips", whole, create=True)


def _load_runs(connection: duckdb.DuckDBPyConnection, root: Path) -> Iterator[tuple[str, str]]:
    folders = []
    for folder in sorted(root.glob("runs/*/")):
        try:
            about = read_description(folder)
        except DeepIntuitError as error:
            yield f"runs/{folder.name}", str(error)
            continue
        folders.append(folder)
        values = [about.get(name) for name in _RUN_TEXT] + [json.dumps(about.get(name)) for name in _RUN_JSON]
        values += [about.get("seed"), about.get("dirty"), _naive(about.get("created")), _naive(about.get("finished"))]
        connection.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608 - marks
    for grain in GRAINS.values():
        yield from _load_grain(connection, grain, folders)


def _naive(instant: str | None) -> str | None:
    return None if instant is None else instant.removesuffix("+00:00")


def _load_grain(connection: duckdb.DuckDBPyConnection, grain: Grain,
                folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    columns = pa.schema([*(field.with_nullable(True) for field in grain.schema), pa.field("part", pa.int32())])
    _insert(connection, grain.name, columns.empty_table(), create=True)
    batch: list[pa.Table] = []
    facts: list[tuple[Any, ...]] = []
    for folder in folders:
        for number, path in parts(folder, grain.name):
            try:
                rows = read_part(path)
                unknown = [name for name in rows.column_names if name not in columns.names]
                rows = rows.drop_columns(unknown) if unknown else rows
                pa.unify_schemas([columns, rows.schema], promote_options="permissive")
                size = path.stat().st_size
            except (DeepIntuitError, pa.ArrowException, OSError) as error:
                yield f"runs/{folder.name}/{path.name}", str(error)
                continue
            batch.append(rows.append_column("part", pa.array([number] * rows.num_rows, pa.int32())))
            facts.append((folder.name, grain.name, number, size, rows.num_rows))
            if len(batch) >= _BATCH_PARTS or sum(rows.num_rows for rows in batch) >= _BATCH_ROWS:
                _insert(connection, grain.name, pa.concat_tables(batch, promote_options="permissive"))
                batch.clear()
    if batch:
        _insert(connection, grain.name, pa.concat_tables(batch, promote_options="permissive"))
    if facts:
        names = ["run_id", "grain", "part", "bytes", "row_count"]
        _insert(connection, "parts", pa.table([pa.array(column) for column in zip(*facts)], names=names))
    # The last written row of a key stands (see grains).
    key = ", ".join(("run_id", *grain.key))
    older = f"SELECT rowid FROM {grain.name} QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY part DESC) > 1"  # noqa: S608
    connection.execute(f"DELETE FROM {grain.name} WHERE rowid IN ({older})")  # noqa: S608 - a grain's own names


class Reader:
    """A read-only view of one index file as it was when opened; several threads may query it at once.

    Each opens the file inside a private in-memory instance. A plain `duckdb.connect(path)` would be wrong after a swap:
    within a process DuckDB knows databases by path and hands out the old file as long as anyone still reads it.
    """

    def __init__(self, path: Path, *, guarded: bool):
        path.stat()  # FileNotFoundError here, where it is expected
        self.signature = signatures(path)
        # Without a name for it, the folder for temporary files would stay readable to every query.
        limits = {"threads": "2", "memory_limit": "1GB", "max_temp_directory_size": "0MB", "temp_directory": ""}
        limits = limits if guarded else {"temp_directory": ""}
        self._connection = duckdb.connect(":memory:", config={
            "python_enable_replacements": "false", "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false", "allow_community_extensions": "false", **limits})
        quoted = str(path).replace("'", "''")
        self._connection.execute(f"ATTACH '{quoted}' AS workbench (READ_ONLY)")
        # Reviews come in all day; they lie beside the index, so that no judgement has it built anew.
        _insert(self._connection, "reviews", reviewed.read(path.parent, closed=guarded), create=True)
        _without_bar(self._connection)
        self._connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        [(self.fingerprint,)] = self._cursor().execute("SELECT fingerprint FROM about").fetchall()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        # One cursor a call: a connection shared by threads returns wrong rows without an error.
        cursor = self._connection.cursor()
        cursor.execute("SET search_path = 'workbench.main,memory.main'")
        return cursor

    def query(self, sql: str, params: Sequence[Any] | Mapping[str, Any], max_rows: int | None,
              seconds: float | None) -> pa.Table:
        """Rows of one SELECT, at most `max_rows` + 1 of them; duckdb.InterruptException after `seconds`."""
        _refuse_unless_select(sql)
        cursor = self._cursor()
        timer = threading.Timer(seconds, cursor.interrupt) if seconds is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            relation = cursor.sql(sql, params=params or None)
            return (relation if max_rows is None else relation.limit(max_rows + 1)).to_arrow_table()
        finally:
            if timer is not None:
                timer.cancel()
            cursor.close()

    def stream(self, sql: str, params: Sequence[Any] | Mapping[str, Any], rows: int) -> Iterator[pa.RecordBatch]:
        """Rows of one SELECT, about `rows` at a time, as they are found; an empty batch first, for its schema. Closing
        the iterator ends the query."""
        _refuse_unless_select(sql)
        cursor = self._cursor()
        try:
            found = cursor.sql(sql, params=params or None).to_arrow_reader(rows)
            yield pa.RecordBatch.from_pylist([], found.schema)
            yield from found
        finally:
            cursor.close()


def _without_bar(connection: duckdb.DuckDBPyConnection) -> None:
    """No progress bar. Inside Jupyter without ipywidgets DuckDB refuses any setting of its bar, and shows none."""
    with contextlib.suppress(duckdb.InvalidInputException):
        connection.execute("SET enable_progress_bar = false")


def _refuse_unless_select(sql: str) -> None:
    statements = duckdb.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise StoreError(f"the query holds {kinds}", "the index is only read; it is rebuilt from the parts, so a "
                         "change in it would be lost", "send a single SELECT")


def signatures(path: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """Changes with the index at `path` and with the reviews beside it."""
    return file_signature(path), file_signature(reviewed.cache(path.parent))


def file_signature(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns
