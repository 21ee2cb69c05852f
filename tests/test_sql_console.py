"""The console without its page: a person's query reads the index and nothing else, and always comes to an end."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_slices import write

from deepintuit.errors import StoreError
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import console, guarded
from deepintuit_app import sql_view


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return write(tmp_path_factory.mktemp("console") / "workbench")


def rows(workbench: Workbench, sql: str, **more: float) -> list[tuple]:
    return list(console.ask(workbench, sql, **more).rows)


SECRET = "/etc/passwd"


@pytest.mark.parametrize("sql", [
    f"SELECT * FROM '{SECRET}'", f"SELECT * FROM read_csv('{SECRET}')", f"SELECT * FROM read_text('{SECRET}')",
    f"SELECT * FROM read_blob('{SECRET}')", f"SELECT * FROM read_json('{SECRET}')", "SELECT * FROM glob('/etc/*')",
    f"SELECT * FROM read_parquet('{SECRET}')", f"SELECT * FROM sniff_csv('{SECRET}')",
    f"FROM parquet_schema('{SECRET}')", f"FROM read_ndjson('{SECRET}')",
    "SELECT * FROM 'https://example.org/x.csv'", "SELECT getenv('HOME')", "SELECT * FROM duckdb_secrets()",
    f"COPY traces TO '{SECRET}'", f"COPY (SELECT 1) TO '{SECRET}'", f"COPY traces FROM '{SECRET}'",
    "ATTACH 'other.duckdb'", "DETACH workbench", "USE memory", "INSTALL httpfs", "LOAD httpfs", "SET threads = 64",
    "SET enable_external_access = true", "RESET lock_configuration", "PRAGMA enable_profiling", "PRAGMA database_size",
    "CALL pragma_version()", "EXPORT DATABASE 'x'", "IMPORT DATABASE 'x'", "CREATE TABLE x AS SELECT 1",
    "CREATE TEMP TABLE x AS SELECT 1", "CREATE MACRO x() AS 1", "CREATE SECRET x (TYPE s3)", "DROP TABLE traces",
    "INSERT INTO traces SELECT * FROM traces", "UPDATE traces SET text = ''", "DELETE FROM traces", "CHECKPOINT",
    "VACUUM", "BEGIN", "EXPLAIN ANALYZE SELECT 1", "PREPARE x AS SELECT 1", "SELECT 1; SELECT 2",
    "SELECT 1; COPY traces TO 'x'", "SELECT * FROM query('DROP TABLE traces')", "PIVOT traces ON stage", "",
    "-- nothing", "SELECT \x00", "SELECT '\ud800' || nothing", "(" * 99_000,
    "SELECT " + "NOT " * 20_000 + "true", "x" * 100_001,
])  # fmt: skip
def test_hostile_sql_is_refused_and_the_next_query_runs(workbench: Workbench, sql: str) -> None:
    before = workbench.index_path.read_bytes()
    with pytest.raises(StoreError):
        console.ask(workbench, sql, seconds=20)
    assert rows(workbench, "SELECT count(*) FROM traces") == [(6,)]
    assert workbench.index_path.read_bytes() == before


def test_no_folder_stays_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB lets every query read its folder for temporary files, `.tmp`, however much else is forbidden."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "x.txt").write_text("secret", encoding="utf-8")
    workbench = write(tmp_path / "workbench")
    for untrusted in (True, False):
        with pytest.raises(StoreError, match="Permission Error"):
            workbench.query("SELECT * FROM read_text('.tmp/x.txt')", untrusted=untrusted)
    assert rows(workbench, "SELECT value FROM duckdb_settings() WHERE name = 'allowed_directories'") == [("[]",)]


@pytest.mark.parametrize("sql", [
    "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b",
    "WITH RECURSIVE t AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM t) SELECT max(i) FROM t",
])  # fmt: skip
def test_a_runaway_query_is_stopped(workbench: Workbench, sql: str) -> None:
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"stopped after 0\.3 s"):
        console.ask(workbench, sql, seconds=0.3)
    assert time.monotonic() - start < 20
    assert rows(workbench, "SELECT 1") == [(1,)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its memory")
@pytest.mark.parametrize("sql", [
    "SELECT repeat('x', 3000000000) AS a", "SELECT length(repeat('x', 4000000000)) AS a",
    "SELECT length(repeat('x' || range::VARCHAR, 1500000000)) AS a FROM range(3)", "SELECT range(2000000000) AS a",
])  # fmt: skip
def test_one_huge_value_is_refused_and_never_made(workbench: Workbench, sql: str) -> None:
    with pytest.raises(StoreError, match="memory"):
        console.ask(workbench, sql, seconds=60)
    assert rows(workbench, "SELECT 1") == [(1,)]


def test_a_result_too_large_to_show_is_refused(workbench: Workbench) -> None:
    with pytest.raises(StoreError, match="the result has 100 MB: at most 67 MB"):
        console.ask(workbench, "SELECT repeat('x', 1000000) AS a FROM range(100)", seconds=60)


def _child(workbench: Workbench):
    """The process that waits for the next question. One that a former test made hold much ends with its answer, so a
    second question is asked where none waits."""
    for _ in range(2):
        rows(workbench, "SELECT 1")
        if guarded._children.idle:
            break
    return guarded._children.idle[-1].process


def test_a_process_that_does_not_answer_is_killed_and_replaced(workbench: Workbench) -> None:
    stuck = _child(workbench)
    os.kill(stuck.pid, signal.SIGSTOP)
    with pytest.raises(StoreError, match=r"stopped after 0\.2 s"):
        console.ask(workbench, "SELECT 1", seconds=0.2)
    assert rows(workbench, "SELECT 1") == [(1,)] and _child(workbench).pid != stuck.pid


def test_a_process_that_died_between_queries_is_nobodys_error(workbench: Workbench) -> None:
    dead = _child(workbench)
    dead.kill()
    dead.wait()
    assert rows(workbench, "SELECT 1") == [(1,)]


def test_the_processes_end_with_the_one_that_asked(workbench: Workbench) -> None:
    program = f"""
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import guarded
Workbench({str(workbench.path)!r}).query("SELECT 1", untrusted=True)
print(guarded._children.idle[0].process.pid)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    pid, end = int(done.stdout.split()[0]), time.monotonic() + 60
    while _runs(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Where nobody reaps orphans, an ended one stays as a zombie.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_many_at_once_each_get_their_own_rows(workbench: Workbench) -> None:
    found: dict[int, list[tuple]] = {}

    def ask(number: int) -> None:
        found[number] = rows(workbench, f"SELECT {number}, count(*) FROM traces", seconds=60)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [(number, 6)] for number in range(12)} and len(guarded._children.idle) <= guarded.AT_ONCE


def test_a_query_sees_a_new_run_after_a_refresh(tmp_path: Path) -> None:
    workbench = write(tmp_path / "workbench")
    assert rows(workbench, "SELECT count(*) FROM runs") == [(1,)]
    workbench.start_run("grpo", {}).finish()
    workbench.refresh()
    assert rows(workbench, "SELECT count(*) FROM runs") == [(2,)]


def test_rows_are_cut_and_say_so(workbench: Workbench) -> None:
    answer = console.ask(workbench, "SELECT range AS i, range::VARCHAR AS t FROM range(50)", rows=20)
    assert answer.cut and answer.rows[-1] == (19, "19") and list(answer.numbers) == [True, False]
    assert not console.ask(workbench, "SELECT * FROM range(20)", rows=20).cut


ODD = """SELECT 'infinity'::DATE AS d, '294246-01-01'::TIMESTAMP AS t, '\\xFF'::BLOB AS b, [1, NULL] AS l,
    {'a': 1} AS s, MAP {'k': 2} AS m, 1::HUGEINT AS h, 1.5::DECIMAL(9, 2) AS e, uuid() AS u, INTERVAL 1 DAY AS i,
    NULL AS n, '<b>' AS x"""


def test_every_type_of_duckdb_can_be_shown(workbench: Workbench) -> None:
    answer = console.ask(workbench, ODD)
    assert len(answer.rows) == 1 and answer.rows[0][-2:] == (None, "<b>")
    html = sql_view.answer_html(ODD, answer, "")
    assert "&lt;b&gt;" in html and "<b>" not in html and "NULL" in html


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_an_export_holds_the_rows(workbench: Workbench, form: str) -> None:
    content = console.export(workbench, "SELECT range AS i, 'a' || chr(10) AS t, '=1' AS \"=2\" FROM range(3)", form)
    wanted = [(i, "a\n", "=1") for i in range(3)]
    if form == "jsonl":
        assert [tuple(json.loads(line).values()) for line in content.splitlines()] == wanted
    elif form == "parquet":
        assert [tuple(row.values()) for row in pq.read_table(io.BytesIO(content)).to_pylist()] == wanted
    else:
        head, *read = csv.reader(io.StringIO(content.decode(), newline=""))
        assert head == ["i", "t", "'=2"] and read == [[str(i), "a\n", "'=1"] for i in range(3)]


def test_an_export_that_cannot_be_written_says_why(workbench: Workbench) -> None:
    assert console.export(workbench, "SELECT 1 AS i WHERE false", "csv").startswith(b"i")
    for form in ("csv", "jsonl"):
        with pytest.raises(StoreError, match="Cast the column"):
            console.export(workbench, ODD, form)
    with pytest.raises(StoreError, match="there are csv, jsonl, parquet"):
        console.export(workbench, "SELECT 1", "xlsx")


def test_every_table_and_column_has_a_meaning(workbench: Workbench) -> None:
    schema = console.schema(workbench)
    assert [table for table, columns in schema.items() if not columns] == []
    assert [(table, name) for table, columns in schema.items() for name, _, meaning in columns if not meaning] == []
    held = workbench.query("SELECT DISTINCT table_name AS name FROM duckdb_columns() WHERE NOT internal")["name"]
    assert set(held) - set(schema) == {"about", "stored_traces"}, "what nobody asks by name"


@pytest.mark.parametrize("question", console.EXAMPLES)
def test_every_example_runs(workbench: Workbench, question: str) -> None:
    assert console.ask(workbench, console.EXAMPLES[question]).names


@pytest.mark.parametrize("sql", [
    "SELECT 1 AS a", "SELECT 'it''s' AS a -- \"", "SELECT '\\d\n\"\"\"' AS a", "SELECT '\\' AS a",
])  # fmt: skip
def test_the_lines_of_python_give_the_same_rows(workbench: Workbench, sql: str) -> None:
    names: dict = {}
    exec(console.to_python(workbench, sql), names)  # noqa: S102
    assert names["rows"].to_numpy().tolist() == [list(row) for row in rows(workbench, sql)]


def test_ids_are_links_and_hostile_cells_are_text(workbench: Workbench) -> None:
    hostile = "'a&b=c\"<' AS trace_id, '<script>${x}{{y}}' AS t, repeat('z', 900) AS long"
    html = sql_view.answer_html("", console.ask(workbench, f"SELECT clip_id, run_id, {hostile} FROM traces"), "p")
    assert 'href="traces?trace=a%26b%3Dc%22%3C"' in html
    assert 'href="watch?clip=c0"' in html and 'href="runs?run=eval' in html
    assert "<script" not in html and "${" not in html and "{{" not in html and "z" * 200 + "…" in html
    failed = sql_view.error_html(StoreError("the <b> fails", "at <i>", "mend {{it}}"))
    assert "<b>" not in failed and "<i>" not in failed and "{{" not in failed


def test_a_forked_process_asks_through_children_of_its_own(workbench: Workbench) -> None:
    program = f"""
import os
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import guarded
workbench = Workbench({str(workbench.path)!r})
ask = lambda n: int(workbench.query(f"SELECT {{n}} AS n", untrusted=True)["n"][0])
assert ask(1) == 1
if os.fork() == 0:
    os._exit(ask(2))
assert ask(3) == 3 and os.waitstatus_to_exitcode(os.wait()[1]) == 2
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_the_asking_process_holds_does_not_tire_its_children(workbench: Workbench) -> None:
    program = f"""
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import guarded
import numpy
much = numpy.ones(120_000_000)  # 0.96 GB, more than a child may have held to be asked again
Workbench({str(workbench.path)!r}).query("SELECT 1", untrusted=True)
print(len(guarded._children.idle))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split()[0] == "1"


PLACES = [
    "SELECT path FROM duckdb_databases()",
    "SELECT {'a': [path]} AS s FROM duckdb_databases()",
    "FROM pragma_database_list",
    "SELECT name, value FROM duckdb_settings()",
    "SELECT current_setting('allowed_paths') AS a",
    "FROM duckdb_extensions()",
    "SELECT path, playable_path FROM clips",
    "FROM workbench.main.clips",
    "FROM runs",
    "FROM problems",
    "FROM duckdb_secrets()",
]


@pytest.mark.parametrize("sql", PLACES)
def test_no_answer_and_no_error_names_a_folder_of_the_server(tmp_path: Path, sql: str) -> None:
    workbench = write(tmp_path / "workbench")
    place = tmp_path / "videos" / "1.mp4"
    rows_ = [{"dataset": "far", "clip_id": "c9", "path": str(place), "playable_path": str(place)}]
    pq.write_table(pa.Table.from_pylist(rows_), workbench.clips / "far.parquet")
    (workbench.clips / "broken.parquet").write_bytes(b"PAR1")
    run = workbench.start_run("grpo", {"clips": {"labels": str(place)}}, name="paths")
    run.fail(f"no file {place}")
    workbench.refresh()
    try:
        said = repr(console.ask(workbench, sql).rows)
    except StoreError as error:
        said = str(error)
    assert str(tmp_path) not in said and os.path.realpath(tmp_path) not in said
    own = workbench.query("SELECT path, playable_path FROM clips WHERE clip_id = 'c9'")
    assert own.loc[0].tolist() == [str(place)] * 2, "this project's own pages still find the file"


def test_older_names_in_queries_give_the_same_rows(workbench: Workbench) -> None:
    for old, new in (
        ("SELECT clip_id FROM predictions WHERE method = 'raw'", "method_name = 'provisional label'"),
        (
            "SELECT clip_id FROM latest_predictions WHERE method = 'label_likelihood'",
            "method_name = 'calibrated label'",
        ),
        ("SELECT n FROM accuracy_by_run WHERE method = 'raw'", "method_name = 'provisional label'"),
        ("SELECT trace_id FROM trace_facts WHERE certainty > 0.3", "calibrated_confidence > 0.3"),
    ):
        condition = old.partition("WHERE ")[2]
        assert sorted(rows(workbench, old)) == sorted(rows(workbench, old.replace(condition, new)))
    for table in ("traces", "trace_facts"):
        [(n, same)] = rows(
            workbench, f"SELECT count(*), count_if(confidence IS NOT DISTINCT FROM token_confidence) FROM {table}"
        )
        assert 0 < n == same
