"""Saved slices: a name finds what its filter or query finds, no version is lost, nothing is read in part."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import StoreError
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import browse
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.review import task_of


def write(folder: Path) -> Workbench:
    """Six traces about three clips, two each: right, wrong, malformed."""
    workbench = Workbench(folder)
    clips = {"clip_id": ["c0", "c1", "c2"], "dataset": ["home"] * 3, "label": ["fall", "fall", "normal"]}
    pq.write_table(pa.table(clips), workbench.clips / "home.parquet")
    with workbench.start_run("evaluate", {}, dataset="home") as run:
        run.append("traces", [
            {"clip_id": f"c{i}", "sample": s, "text": f"at night {i}", "true_label": "normal" if i == 2 else "fall",
             "provisional": "fall" if i == 0 else "none", "reason": "truncated" if i == 2 else None}
            for i in range(3) for s in (0, 1)
        ])  # fmt: skip
        run.finish()
    workbench.refresh()
    return workbench


@pytest.fixture
def workbench(tmp_path: Path) -> Workbench:
    return write(tmp_path / "workbench")


FALLS = TraceFilter(true="fall", text="night")
SQL = "SELECT clip_id, trace_id FROM trace_facts WHERE reason IS NULL AND sample = 0 -- the first of each"


def test_a_slice_gives_its_traces_rows_and_clips(workbench: Workbench) -> None:
    made = workbench.save_slice("night falls", FALLS, by="ann")
    assert workbench.slice("night falls") == made and (made.by, made.version) == ("ann", 1)
    rows = made.df()
    assert rows["trace_id"].tolist() == made.trace_ids() and len(rows) == 4
    assert rows["text"].tolist() == ["at night 0"] * 2 + ["at night 1"] * 2
    assert made.clips()["clip_id"].tolist() == ["c0", "c1"] and "label" in made.clips()


def test_a_slice_by_a_query_gives_the_same_things(workbench: Workbench) -> None:
    made = workbench.save_slice("first ones", SQL + ";\n", by="ann")
    assert made.df()["clip_id"].tolist() == ["c0", "c1"] and len(set(made.trace_ids())) == 2
    assert made.clips()["clip_id"].tolist() == ["c0", "c1"]


def test_a_slice_narrows_a_filter_and_a_slice_of_a_slice_is_one(workbench: Workbench) -> None:
    workbench.save_slice("first ones", SQL)
    asked = TraceFilter(slice="first ones", provisional="fall")
    assert browse.page(workbench, asked).rows["clip_id"].tolist() == ["c0"] and browse.count(workbench, asked) == 1
    assert TraceFilter.from_query(asked.to_query()) == asked
    assert b"".join(browse.export(workbench, asked, "jsonl")).count(b"\n") == 1
    assert workbench.save_slice("first falls", asked).df()["clip_id"].tolist() == ["c0"]


def test_a_review_task_takes_a_slice(workbench: Workbench) -> None:
    made = workbench.save_slice("first ones", SQL)
    task = task_of(workbench, "read them", TraceFilter(slice="first ones"), labels=["fall", "normal"])
    assert set(task.items) == set(made.trace_ids()) and task.slice == {"slice": "first ones"}


def test_a_new_run_belongs_to_a_slice_without_saving_it_again(workbench: Workbench) -> None:
    made = workbench.save_slice("falls", TraceFilter(true="fall"))
    with workbench.start_run("grpo", {}, dataset="home") as run:
        run.append("traces", [{"clip_id": "c0", "sample": 0, "step": 1, "text": "new", "true_label": "fall"}])
    workbench.refresh()
    assert len(made.trace_ids()) == 5


def test_a_changed_slice_is_a_new_version_and_the_old_one_stays(workbench: Workbench) -> None:
    old = workbench.save_slice("Falls", FALLS, by="ann")
    assert workbench.save_slice("Falls", FALLS, by="bob") == old, "the same again is no change"
    kept = {path: path.read_bytes() for path in (workbench.path / "slices").glob("*.json")}
    new = workbench.save_slice("falls", SQL, by="bob")
    assert new.version == 2 and workbench.slice("FALLS") == new and workbench.slice("falls", 1) == old
    assert {path: path.read_bytes() for path in kept} == kept
    assert [made.name for made in workbench.slices()] == ["falls"]
    with pytest.raises(StoreError, match="has no version 3: it has 1, 2"):
        workbench.slice("falls", 3)


def test_an_unknown_name_gets_the_nearest(workbench: Workbench) -> None:
    with pytest.raises(StoreError, match="none was saved in it yet"):
        workbench.slice("night falls")
    workbench.save_slice("night falls", FALLS)
    with pytest.raises(StoreError, match="Nearest: 'night falls'"):
        workbench.slice("nigth fals")


@pytest.mark.parametrize("name", ["", "  ", "a\x00b", "x" * 81, "bell \x07"])
def test_a_name_nobody_could_read_is_refused(workbench: Workbench, name: str) -> None:
    with pytest.raises(StoreError, match="printable"):
        workbench.save_slice(name, FALLS)


@pytest.mark.parametrize("sql", [
    "SELECT clip_id FROM traces", "SELECT trace_id FROM nowhere", "DROP TABLE traces", "",
    "SELECT trace_id FROM read_csv('x.csv')", "SELECT trace_id FROM traces) UNION (SELECT 'x' AS trace_id",
    "SELECT trace_id FROM traces; SELECT 1", "SELECT range AS trace_id FROM range(300000)",
])  # fmt: skip
def test_a_query_that_is_no_set_of_traces_is_not_saved(workbench: Workbench, sql: str) -> None:
    with pytest.raises(StoreError):
        workbench.save_slice("broken", sql)
    assert workbench.slices() == []


def test_a_filter_that_would_be_read_in_part_is_not_saved(workbench: Workbench) -> None:
    with pytest.raises(StoreError, match="flip = 'sideways'"):
        workbench.save_slice("broken", TraceFilter(true="fall", flip="sideways"))


def test_a_slice_cannot_be_a_part_of_itself(workbench: Workbench) -> None:
    workbench.save_slice("a", FALLS)
    workbench.save_slice("b", TraceFilter(slice="a"))
    for name in ("a", "b"):
        with pytest.raises(StoreError, match="part of itself"):
            workbench.save_slice("A", TraceFilter(slice=name))
    assert workbench.slice("a").version == 1


def test_a_damaged_file_is_passed_over_with_a_warning(workbench: Workbench) -> None:
    workbench.save_slice("whole", FALLS)
    (workbench.path / "slices" / "half-000000000000@1.json").write_text('{"name": "half', encoding="utf-8")
    with pytest.warns(UserWarning, match="half-000000000000@1.json is passed over"):
        assert [made.name for made in workbench.slices()] == ["whole"]


def test_savers_at_once_lose_no_version(workbench: Workbench) -> None:
    def save(number: int) -> None:
        Workbench(workbench.path).save_slice("shared", TraceFilter(min_tokens=number))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [workbench.slice("shared", version).query["min_tokens"] for version in range(1, 9)]
    assert sorted(kept) == [str(number) for number in range(1, 9)]


def test_the_lines_for_a_notebook_run_as_they_are(workbench: Workbench) -> None:
    names: dict = {}
    exec(workbench.save_slice('it\'s "quoted" {x}', FALLS).to_python(), names)  # noqa: S102
    assert len(names["traces"]) == 4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return write(tmp_path_factory.mktemp("slices"))


@given(
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=80),
    st.builds(
        TraceFilter,
        true=st.sampled_from([None, "fall", "x'; --"]),
        min_token_confidence=st.none() | st.floats(0, 1),
        max_tokens=st.none() | st.integers(0, 10**9),
        flip=st.sampled_from([None, "broken"]),
        text=st.none() | st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=50),
    ),
)
def test_any_name_and_any_filter_come_back(shared: Workbench, name: str, asked: TraceFilter) -> None:
    made = shared.save_slice(name, asked)
    assert shared.slice(name) == made and TraceFilter.from_query(made.query) == asked
    assert len(made.trace_ids()) == browse.count(shared, asked) == browse.count(shared, TraceFilter(slice=name))
