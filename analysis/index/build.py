"""The index: all parts of all runs as one DuckDB file, a cache that may be deleted at any time.

It is built beside the old one and swapped in by os.replace, so reading never blocks writing. What is found broken (a
part that cannot be read, a run without run.json) is listed in the table `problems`, not skipped in silence.

Where parts are only new, a copy of the former index gets their rows, and no other part is read again. Either way rows
are loaded some megabytes at a time and written out in between (`_LIMITS`), so ten million traces need no more memory
than a hundred thousand.

A trace is stored once, as one row of `stored_traces`; people and pages know it as the views `traces` (as its part says)
and `trace_facts` (what it is looked for by). `trace_counts` says how many traces are alike in all that is counted and
filtered by name, so that no count reads a row per trace. A trace is found by `short_id`, a number of 32 bits, and the
traces of a clip by `short_clip`, since to compare ten million texts takes five times as long.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from deepintuit import disk, parquet
from deepintuit.data.schema import SCHEMA
from deepintuit.errors import DeepIntuitError, StoreError
from deepintuit.runs.run import parts, read_description, read_part
from deepintuit.runs.schema import GRAINS, Grain
from deepintuit_analysis.index import reviewed, search

LAYOUT = 12  # raise when tables or views change, so that old index files are rebuilt
_BATCH_BYTES, _BATCH_PARTS = 64 << 20, 500  # what is inserted at once
_KEPT_BYTES = 4 * _BATCH_BYTES  # what may wait in memory for the next checkpoint
_LIMITS = {
    "memory_limit": "1500MB",
    "threads": "2",
    "preserve_insertion_order": "true",
    "python_enable_replacements": "false",
}
"""Of DuckDB while it builds; beyond its limit it spills to a folder beside the new file."""
_READING = "2GB"
"""Of memory for a process that asks the index; a query that needs more spills to a folder beside it."""

_CLIPS = pa.schema([("dataset", pa.string()), *(column for column in SCHEMA if not pa.types.is_nested(column.type))])
"""Of all manifests: what one of another version lacks is null, what it has beside, or nested, is a column more."""
_RUN_TEXT = ("run_id", "stage", "name", "parent", "dataset", "status", "device", "commit", "error")
_RUN_JSON = ("command", "config", "versions", "summary")
_RUNS = """CREATE TABLE runs (run_id VARCHAR, stage VARCHAR, name VARCHAR, parent VARCHAR, dataset VARCHAR,
    status VARCHAR, device VARCHAR, "commit" VARCHAR, error VARCHAR, command JSON, config JSON, versions JSON,
    summary JSON, seed BIGINT, dirty BOOLEAN, created TIMESTAMP, finished TIMESTAMP)"""
_FACTS = """
    CREATE TABLE parts (run_id VARCHAR, grain VARCHAR, part INTEGER, bytes BIGINT, changed BIGINT, row_count BIGINT);
    CREATE TABLE problems (source VARCHAR, problem VARCHAR);
    CREATE MACRO short_id_of(id) AS (md5_number_lower(id) % 4294967296)::UINTEGER;
    CREATE TABLE about (fingerprint VARCHAR, layout INTEGER, basis VARCHAR[]);
"""
COUNTED_BY = ("run_id", "created", "stage", "dataset", "split", "true_label", "provisional", "calibrated", "reason")
"""What `trace_counts` counts traces by."""
FOUND_BY_ID = "short_id = short_id_of($1) AND trace_id = $1"
"""A condition over what has a trace_id; $1 is the id."""
# Columns of traces that are filled from elsewhere where their part leaves them out → what the part says.
_FILLED = {"stage": "own_stage", "true_label": "own_label", "provisional": "own_answer"}
AS_WRITTEN = ", ".join(f"{_FILLED[name]} AS {name}" if name in _FILLED else name for name in GRAINS["traces"].columns)
"""The columns of a part's traces, of `stored_traces`."""
METHOD_NAMES = {
    "raw": "provisional label",
    "label_likelihood": "calibrated label",
    "linear_head": "calibrated label, linear head",
    "vote": "vote over traces",
    "mean_likelihood": "calibrated label, mean over traces",
}
"""Method of predictions as it is stored → as people read it."""
_WHENS = " ".join(f"WHEN '{method}' THEN '{name}'" for method, name in METHOD_NAMES.items())
_VIEWS = f"""
    CREATE VIEW traces AS
        SELECT {AS_WRITTEN}, part, short_id, short_clip, confidence AS token_confidence FROM stored_traces;
    CREATE VIEW trace_facts AS
        SELECT trace_id, run_id, stage, dataset, split, clip_id, sample, step, true_label, provisional, calibrated,
               certainty, reason, confidence, tokens, milliseconds, created, lowered, marks, short_id,
               short_clip, confidence AS token_confidence, certainty AS calibrated_confidence
        FROM stored_traces;
    -- For each clip and way of predicting, what the newest run says.
    CREATE VIEW latest_predictions AS
        SELECT predictions.* FROM predictions JOIN runs USING (run_id)
        QUALIFY rank() OVER (
            PARTITION BY clip_id, split, system, method, control ORDER BY created DESC, run_id DESC) = 1;
    -- What judges answered about a trace, and what the newest that was asked did; value is null where it is unclear.
    CREATE VIEW every_judge_answer AS
        SELECT trace_id, substr(scores.name, 7) AS question, split_part(evidence, ':', 1) AS answer,
               CASE WHEN NOT isnan(value) THEN value END AS value, evidence, run_id AS judge_run, created, short_id
        FROM scores JOIN runs USING (run_id) WHERE stage = 'judge';
    CREATE VIEW judge_answers AS
        FROM every_judge_answer QUALIFY row_number() OVER (
            PARTITION BY short_id, trace_id, question ORDER BY created DESC, judge_run DESC) = 1;
    CREATE VIEW accuracy_by_run AS
        SELECT run_id, split, system, method, method_name, control, count(*) AS n,
               count(*) FILTER (predicted = 'none') AS no_answer,
               avg((predicted = true_label)::INT) AS accuracy
        FROM predictions WHERE true_label IS NOT NULL GROUP BY ALL;
    CREATE VIEW trace_reasons AS
        SELECT *, n / sum(n) OVER (PARTITION BY run_id, stage) AS share
        FROM (SELECT run_id, stage, coalesce(reason, 'well-formed') AS reason, sum(n)::BIGINT AS n
              FROM trace_counts GROUP BY ALL);
"""  # noqa: S608

# Beside the columns of the grain. `lowered` is there to be searched, since ILIKE takes twice as long, and not
# compressed, since else 2,048 texts are unpacked to read one.
_STORED = f"""dataset VARCHAR, split VARCHAR, calibrated VARCHAR, certainty DOUBLE, created TIMESTAMP, stage VARCHAR,
    true_label VARCHAR, provisional VARCHAR, short_clip UINTEGER, lowered VARCHAR USING COMPRESSION uncompressed,
    marks {search.KIND}"""
# What the newest calibrator says of the traces in `incoming`; of a clip unlike what it learnt from it is not certain.
_SAID = """
    SELECT trace_id, predicted, CASE WHEN unlike IS NOT TRUE THEN list_max(probs) END AS certainty
    FROM predictions JOIN runs USING (run_id)
    WHERE method = 'label_likelihood' AND control = 'none'
        AND short_id IN (SELECT short_id_of(trace_id) FROM incoming) AND trace_id IN (SELECT trace_id FROM incoming)
    QUALIFY row_number() OVER (PARTITION BY trace_id ORDER BY created DESC, run_id DESC, split, system) = 1"""
_PLACES = """
    CREATE TEMP TABLE held AS
        SELECT clip_id, dataset, any_value(split) AS split, any_value(label) AS label FROM clips GROUP BY ALL;
    CREATE TEMP TABLE anywhere AS
        SELECT clip_id, min(dataset) AS dataset, min_by(split, dataset) AS split FROM clips GROUP BY ALL;
    CREATE TEMP TABLE touched (run_id VARCHAR);
"""
_TAKE_TRACES = f"""
    INSERT INTO stored_traces BY NAME
    SELECT new.* EXCLUDE ({", ".join(_FILLED)}), {", ".join(f"new.{name} AS {own}" for name, own in _FILLED.items())},
           short_id_of(new.trace_id) AS short_id, short_id_of(new.clip_id) AS short_clip,
           coalesce(new.stage, runs.stage) AS stage,
           coalesce(runs.dataset, anywhere.dataset) AS dataset, coalesce(held.split, anywhere.split) AS split,
           coalesce(new.true_label, held.label) AS true_label, coalesce(new.provisional, 'none') AS provisional,
           said.predicted AS calibrated, said.certainty AS certainty, runs.created AS created
    FROM incoming AS new JOIN runs ON runs.run_id = new.run_id
    LEFT JOIN ({_SAID}) AS said ON said.trace_id = new.trace_id
    LEFT JOIN held ON held.clip_id = new.clip_id AND held.dataset = runs.dataset
    LEFT JOIN anywhere ON anywhere.clip_id = new.clip_id
"""  # noqa: S608
_IS_SAID = "stored_traces.short_id = short_id_of(said.trace_id) AND stored_traces.trace_id = said.trace_id"
_SAID_AGAIN = f"""
    UPDATE stored_traces SET calibrated = said.predicted, certainty = said.certainty FROM ({_SAID}) AS said
    WHERE {_IS_SAID};
    INSERT INTO touched SELECT DISTINCT run_id FROM stored_traces JOIN incoming AS said ON {_IS_SAID};
"""  # noqa: S608
_COUNT_AGAIN = f"""
    DELETE FROM trace_counts WHERE run_id IN (FROM touched);
    INSERT INTO trace_counts SELECT {", ".join(COUNTED_BY)}, count(*) FROM stored_traces
    WHERE run_id IN (FROM touched) GROUP BY ALL;
"""  # noqa: S608


BROKEN = (duckdb.Error, OSError, ValueError, RuntimeError)
"""What a file that is no index, a damaged one, or one of another DuckDB may raise when it is opened or added to."""
_DAMAGE = re.compile("Corrupt database file|IO Error: Could not read enough bytes")


class DamagedIndex(StoreError):
    """A part of the index that was not read when it was opened is damaged. The file is gone; a new one will be made."""


def fingerprint(root: Path) -> str:
    """Changes when a part appears, or run.json or a manifest is replaced. Reads names and sizes, no contents."""
    entries = [str(LAYOUT)]
    for path in (*root.glob("clips/*.parquet"), *root.glob("runs/*/run.json"), *root.glob("runs/*/*.parquet")):
        try:
            facts = path.stat()
        except FileNotFoundError:
            continue
        entries.append(f"{path.relative_to(root)}\0{facts.st_size}\0{facts.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(entries)).encode("utf-8", "surrogateescape")).hexdigest()


def build(root: Path, target: Path, mark: str, former: Path | None = None) -> None:
    """Write the index of the workbench `root` to the new file `target`, marked with the fingerprint `mark`.

    `former`: an index of the same workbench. If parts and runs were only added since, it is copied and added to.
    """
    basis = _basis(root)
    if former is not None and _may_grow(root, former, basis):
        with contextlib.suppress(*BROKEN):
            shutil.copyfile(former, target)
            return _fill(root, target, mark, basis, grows=True)
        target.unlink(missing_ok=True)  # the former one is damaged
    try:
        _fill(root, target, mark, basis, grows=False)
    except duckdb.Error as error:
        raise disk.refusal(error, target) or StoreError(
            f"the index of {str(root)!r} cannot be built ({str(error):.300})",
            "it is made of all parts",
            "See whether its disk has room and the machine memory, then rerun the command",
        ) from error


def _fill(root: Path, target: Path, mark: str, basis: Sequence[str], *, grows: bool) -> None:
    # Nobody sees the file before it is whole, so there is no need for a log beside it.
    with duckdb.connect(":memory:", config=_LIMITS | {"temp_directory": f"{target}.spilled"}) as connection:
        _attach(connection, target, "RECOVERY_MODE no_wal_writes")
        _without_bar(connection)
        if not grows:
            connection.execute(f"{_RUNS}; {_FACTS}")
            _make_tables(connection)
        connection.execute("DELETE FROM runs; DELETE FROM problems; DELETE FROM about; DROP TABLE IF EXISTS clips")
        problems = [*_load_clips(connection, root), *_load_runs(connection, root, grows)]
        if problems:
            connection.executemany("INSERT INTO problems VALUES (?, ?)", problems)
        if not grows:
            connection.execute(_VIEWS)
        connection.execute("INSERT INTO about VALUES (?, ?, ?)", [mark, LAYOUT, basis])
        connection.execute("CHECKPOINT; USE memory; DETACH workbench")


def _attach(connection: duckdb.DuckDBPyConnection, path: Path, mode: str) -> None:
    quoted = str(path).replace("'", "''")
    connection.execute(f"ATTACH '{quoted}' AS workbench ({mode}); USE workbench")


def _basis(root: Path) -> list[str]:
    """What stored rows take from elsewhere: the manifests, and for each run what its traces say of it."""
    entries = [repr(sorted((path.name, *file_signature(path)[1:]) for path in root.glob("clips/*.parquet")))]
    for folder in root.glob("runs/*/"):
        with contextlib.suppress(DeepIntuitError):
            about = read_description(folder)
            entries.append(repr((folder.name, about.get("stage"), about.get("dataset"), about.get("created"))))
    return entries


def _may_grow(root: Path, former: Path, now: Sequence[str]) -> bool:
    """Whether all that stands in an index still does: its layout, its basis, and each of its parts."""
    with duckdb.connect(":memory:", config={"temp_directory": ""}) as connection:
        try:
            _attach(connection, former, "READ_ONLY")
            [(layout, then)] = connection.execute("SELECT layout, basis FROM about").fetchall()
            rows = connection.execute("SELECT run_id, grain, part, bytes, changed FROM parts").fetchall()
        except BROKEN:
            return False  # not an index, or one of another layout
    if layout != LAYOUT or not set(then) <= set(now):
        return False
    there = {
        (folder.name, grain, number, *file_signature(path)[1:])
        for folder in root.glob("runs/*/")
        for grain in GRAINS
        for number, path in parts(folder, grain)
    }
    return there.issuperset(rows)


def _make_tables(connection: duckdb.DuckDBPyConnection) -> None:
    for grain in GRAINS.values():
        connection.register("incoming", _columns(grain).empty_table())
        shape = []
        for name, kind, *_ in connection.execute("DESCRIBE incoming").fetchall():
            shape.append(f'"{_FILLED.get(name, name) if grain.name == "traces" else name}" {kind}')
        # A number of our own, since another release of DuckDB may hash() otherwise.
        shape += ["short_id UINTEGER"] if "trace_id" in grain.columns else []
        shape += [_STORED] if grain.name == "traces" else []
        shape += (
            [f"method_name VARCHAR GENERATED ALWAYS AS (CASE method {_WHENS} ELSE method END)"]
            if grain.name == "predictions"
            else []
        )
        connection.execute(f"CREATE TABLE {_table_of(grain)} ({', '.join(shape)})")
        connection.unregister("incoming")
    kinds = ", ".join(f"{name} {'TIMESTAMP' if name == 'created' else 'VARCHAR'}" for name in COUNTED_BY)
    connection.execute(f"CREATE TABLE trace_counts ({kinds}, n BIGINT)")


def _table_of(grain: Grain) -> str:
    return "stored_traces" if grain.name == "traces" else grain.name


def _columns(grain: Grain) -> pa.Schema:
    """Of its rows in the index as they come from a part."""
    return pa.schema([*(field.with_nullable(True) for field in grain.schema), pa.field("part", pa.int32())])


def _insert(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table, *, create: bool = False) -> None:
    # `name` is one of this module's own table names, never a caller's text.
    verb = f"CREATE TABLE IF NOT EXISTS {name} AS" if create else f"INSERT INTO {name} BY NAME"
    _with(connection, rows, f"{verb} FROM incoming")


def _with(connection: duckdb.DuckDBPyConnection, rows: pa.Table, sql: str) -> None:
    connection.register("incoming", rows)
    connection.execute(sql)
    connection.unregister("incoming")


def _load_clips(connection: duckdb.DuckDBPyConnection, root: Path) -> Iterator[tuple[str, str]]:
    whole = _CLIPS.empty_table()
    for path in _manifests(root):
        try:
            rows = _manifest(path)
            for name in {"path", "playable_path"} & set(rows.column_names):
                places = [place and without_places(place, root) for place in rows[name].to_pylist()]
                rows = rows.set_column(rows.column_names.index(name), name, pa.array(places, pa.string()))
            whole = pa.concat_tables([whole, rows], promote_options="permissive")
        except (pa.ArrowException, ValueError, OSError) as error:
            yield str(path.relative_to(root)), without_places(str(error), root)
    _insert(connection, "clips", whole, create=True)


def _manifests(root: Path) -> list[Path]:
    """Those in force; beside them `data` keeps former versions."""
    return sorted(path for path in root.glob("clips/*.parquet") if "@" not in path.name)


def _manifest(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    rows = parquet.read(path, columns)
    if "dataset" not in rows.column_names:
        rows = rows.append_column("dataset", pa.array([path.stem] * rows.num_rows, pa.string()))
    return rows


def _places(root: Path) -> pa.Table:
    """Where the files of clips lie that are outside the workbench: for this project's own queries, not for people's."""
    columns = ("dataset", "clip_id", "path", "playable_path")
    tables = [_CLIPS.empty_table().select(columns)]
    for path in _manifests(root):
        with contextlib.suppress(pa.ArrowException, ValueError, OSError):
            rows = _manifest(path, columns)
            outside = [
                any(map(os.path.isabs, filter(None, places)))
                for places in zip(
                    *(rows[name].to_pylist() for name in ("path", "playable_path") if name in rows.column_names)
                )
            ]
            tables.append(rows.filter(pa.array(outside, pa.bool_())))
    return pa.concat_tables(tables, promote_options="permissive")


def without_places(text: str, root: Path) -> str:
    """A text without the machine's folders: of an absolute path what lies inside the workbench, else its name."""
    return _PLACE.sub(r"\1", text.replace(f"{root}/", ""))


# Not of an address (://), a closing mark (</think>) or a fraction.
_PLACE = re.compile(r"""(?<![\w.:/<…])(?:/|[A-Za-z]:[\\/])(?:[^\s"'\\:,;/]*+[\\/]++)*+([^\s"'\\:,;/]++)""")


def _load_runs(connection: duckdb.DuckDBPyConnection, root: Path, grows: bool) -> Iterator[tuple[str, str]]:
    folders = []
    for folder in sorted(root.glob("runs/*/")):
        try:
            about = read_description(folder)
        except DeepIntuitError as error:
            yield f"runs/{folder.name}", without_places(str(error), root)
            continue
        if about.get("run_id") != folder.name:
            yield f"runs/{folder.name}", f"its run.json is of the run {about.get('run_id')!r}"
            continue
        values = [about.get(name) for name in _RUN_TEXT] + [json.dumps(about.get(name)) for name in _RUN_JSON]
        values = [without_places(value, root) if isinstance(value, str) else value for value in values]
        values += [about.get("seed"), about.get("dirty"), _naive(about.get("created")), _naive(about.get("finished"))]
        try:
            connection.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608 - marks
        except (duckdb.Error, ValueError, TypeError) as error:
            yield f"runs/{folder.name}", f"its run.json holds what does not fit: {str(error):.200}"
            continue
        folders.append(folder)
    connection.execute(_PLACES)
    # What is said of a trace goes into its row of `trace_facts`, so predictions come before traces.
    for name in sorted(GRAINS):
        yield from _load_grain(connection, GRAINS[name], folders, grows)
    connection.execute(_COUNT_AGAIN)


def _naive(instant: str | None) -> str | None:
    return None if instant is None else instant.removesuffix("+00:00")


def _load_grain(
    connection: duckdb.DuckDBPyConnection, grain: Grain, folders: Sequence[Path], grows: bool
) -> Iterator[tuple[str, str]]:
    columns = _columns(grain)
    stood = set(connection.execute("SELECT run_id, part FROM parts WHERE grain = ?", [grain.name]).fetchall())
    batch: list[pa.Table] = []
    facts: list[tuple[Any, ...]] = []
    waiting = 0
    for folder in folders:
        files = parts(folder, grain.name)
        came = [(number, path) for number, path in files if (folder.name, number) not in stood]
        for number, path in came:
            try:
                rows = read_part(path)
                unknown = [name for name in rows.column_names if name not in columns.names]
                rows = rows.drop_columns(unknown) if unknown else rows
                pa.unify_schemas([columns, rows.schema], promote_options="permissive")
                _, size, changed = file_signature(path)
            except (DeepIntuitError, pa.ArrowException, OSError) as error:
                yield f"runs/{folder.name}/{path.name}", without_places(str(error), folder.parents[1])
                continue
            batch.append(rows.append_column("part", pa.array([number] * rows.num_rows, pa.int32())))
            facts.append((folder.name, grain.name, number, size, changed, rows.num_rows))
            if len(batch) >= _BATCH_PARTS or sum(rows.nbytes for rows in batch) >= _BATCH_BYTES:
                waiting = _take(connection, grain, batch, waiting)
        waiting = _take(connection, grain, batch, waiting)
        if came and len(files) > 1:
            _newest_stands(connection, grain, folder.name)
        if came and grain.name == "traces":
            connection.execute("INSERT INTO touched VALUES (?)", [folder.name])
        if came and grows and grain.name == "predictions":
            of_new = "SELECT DISTINCT trace_id FROM predictions WHERE run_id = ? AND part IN (SELECT unnest(?))"
            rows = connection.sql(of_new, params=[folder.name, [number for number, _ in came]]).to_arrow_table()
            _with(connection, rows, _SAID_AGAIN)
    if facts:
        names = ["run_id", "grain", "part", "bytes", "changed", "row_count"]
        _insert(connection, "parts", pa.table([pa.array(column) for column in zip(*facts)], names=names))


def _take(connection: duckdb.DuckDBPyConnection, grain: Grain, batch: list[pa.Table], waiting: int) -> int:
    """Insert a batch of one run and empty it; how many bytes wait in memory now."""
    if batch:
        whole = pa.concat_tables([_columns(grain).empty_table(), *batch], promote_options="permissive")
        batch.clear()
        if grain.name == "traces":
            lowered = search.lowered(whole["text"])
            whole = whole.append_column("lowered", lowered).append_column("marks", search.marks(lowered))
            _with(connection, whole, _TAKE_TRACES)
        else:
            mark = ", short_id_of(trace_id) AS short_id" if "trace_id" in grain.columns else ""
            _with(connection, whole, f"INSERT INTO {grain.name} BY NAME SELECT *{mark} FROM incoming")  # noqa: S608
        waiting += whole.nbytes
    if waiting > _KEPT_BYTES:
        connection.execute("CHECKPOINT")
        return 0
    return waiting


def _newest_stands(connection: duckdb.DuckDBPyConnection, grain: Grain, run_id: str) -> None:
    """The last written row of a key stands (see grains)."""
    name = _table_of(grain)
    key = ", ".join(grain.key)
    again = f"SELECT {key}, max(part) AS last FROM {name} WHERE run_id = ? GROUP BY {key} HAVING count(*) > 1"  # noqa: S608
    same_key = " AND ".join(f"old.{column} IS NOT DISTINCT FROM again.{column}" for column in grain.key)
    connection.execute(
        f"DELETE FROM {name} AS old USING ({again}) AS again WHERE run_id = ? AND {same_key} AND old.part < last",  # noqa: S608
        [run_id, run_id],
    )


_CLIPS_WITH_PLACES = """CREATE VIEW clips AS SELECT c.* REPLACE (coalesce(known.path, c.path) AS path,
    coalesce(known.playable_path, c.playable_path) AS playable_path)
    FROM workbench.main.clips AS c LEFT JOIN clip_places AS known USING (dataset, clip_id)"""


class Reader:
    """A read-only view of one index file as it was when opened; several threads may query it at once.

    Each opens the file inside a private in-memory instance. A plain `duckdb.connect(path)` would be wrong after a swap:
    within a process DuckDB knows databases by path and hands out the old file as long as anyone still reads it.
    """

    def __init__(self, path: Path, *, guarded: bool):
        path.stat()  # FileNotFoundError here, where it is expected
        self.path = path
        self.signature = signatures(path)
        # Queries may read the folder for temporary files. Unless it is named it would be the current one; and nobody
        # else's files may lie in it.
        limits = {"threads": "2", "memory_limit": "1GB", "max_temp_directory_size": "0MB", "temp_directory": ""}
        if not guarded:
            try:
                self._spilled = disk.Scratch(path.parent, f"{path.name}.spilled-*")
            except OSError:
                self._spilled = disk.Scratch(Path(tempfile.gettempdir()), "deepintuit-spilled-*")
            limits = {"memory_limit": _READING, "temp_directory": str(self._spilled.path)}
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "python_enable_replacements": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
                **limits,
            },
        )
        # Its threads may hold things of Python's, and end the process with an abort where they let go of them while the
        # interpreter goes down. A finalizer ends them before that.
        weakref.finalize(self, self._connection.close)
        quoted = str(path).replace("'", "''")
        self._connection.execute(f"ATTACH '{quoted}' AS workbench (READ_ONLY)")
        # Reviews come in all day; they lie beside the index, so that no judgement has it built anew.
        answers = reviewed.read(path.parent, public=guarded)
        _insert(self._connection, "reviews", answers, create=True)
        _insert(self._connection, "spans", reviewed.spans_of(answers), create=True)
        self._searched = "workbench.main,memory.main"
        if not guarded and len(places := _places(path.parent)):
            self._searched = "memory.main,workbench.main"
            _insert(self._connection, "clip_places", places, create=True)
            self._connection.execute(_CLIPS_WITH_PLACES)
        _without_bar(self._connection)
        self._connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        [(self.fingerprint,)] = self._cursor().execute("SELECT fingerprint FROM about").fetchall()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        # One cursor a call: a connection shared by threads returns wrong rows without an error.
        cursor = self._connection.cursor()
        cursor.execute("SET search_path = '" + self._searched + "'")
        return cursor

    def query(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any], max_rows: int | None, seconds: float | None
    ) -> pa.Table:
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
        except duckdb.Error as error:
            if not _DAMAGE.match(str(error)):
                raise
            with contextlib.suppress(OSError):
                self.path.unlink()
            raise DamagedIndex("the index is damaged", str(error), "Ask again: it is made anew") from error
        finally:
            if timer is not None:
                timer.cancel()
            cursor.close()


def _without_bar(connection: duckdb.DuckDBPyConnection) -> None:
    """No progress bar. Inside Jupyter without ipywidgets DuckDB refuses any setting of its bar, and shows none."""
    with contextlib.suppress(duckdb.InvalidInputException):
        connection.execute("SET enable_progress_bar = false")


def _refuse_unless_select(sql: str) -> None:
    statements = duckdb.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise StoreError(
            f"the query holds {kinds}",
            "the index is only read; it is rebuilt from the parts, so a change in it would be lost",
            "send a single SELECT",
        )


def signatures(path: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """Changes with the index at `path` and with the reviews beside it."""
    return file_signature(path), file_signature(reviewed.cache(path.parent))


def file_signature(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns
