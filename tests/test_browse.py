"""Browsing traces: filters find what they say, pages are whole, a slice travels in an address, exports lose nothing."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import StoreError
from deepintuit.tables import FORMATS
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import browse, progress, search
from deepintuit_analysis.index.browse import EXPORTED, TraceFilter

TEXTS = (
    "At 0.5 s a Dog 100% runs_by.", "Ein Hund, über dem Zaun", "it's \"quoted\"; DROP TABLE traces; --", "<b>a dog</b>",
)  # fmt: skip
LABELS = (("dog", "dog", "dog"), ("dog", "dog", "cat"), ("cat", "dog", "cat"), ("cat", "none", "dog"))
"""For each clip: true, provisional, calibrated. Kept right; right → wrong; wrong → right; no answer, then wrong."""


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Four clips; an evaluation with calibrated labels, then a training run of two steps × two samples."""
    workbench = Workbench(tmp_path_factory.mktemp("browse"))
    clips = {"clip_id": [f"c{i}" for i in range(4)], "split": ["test", "test", "grpo", "grpo"], "label": ["dog"] * 4}
    pq.write_table(pa.table({**clips, "dataset": ["home"] * 4}), workbench.clips / "home.parquet")
    former = {**clips, "split": ["validation"] * 4, "dataset": ["home"] * 4}
    pq.write_table(pa.table(former), workbench.clips / "home@1.parquet")
    with workbench.start_run("evaluate", {}, dataset="home") as run:
        rows = [
            {
                "clip_id": f"c{i}",
                "sample": 0,
                "text": TEXTS[i],
                "true_label": true,
                "provisional": given,
                "reason": "truncated" if given == "none" else None,
                "confidence": 0.2 * (i + 1),
                "tokens": 10 * i,
            }
            for i, (true, given, _) in enumerate(LABELS)
        ]
        run.append("traces", rows)
        ids = run.read("traces")["trace_id"].tolist()
        said = [
            {
                "clip_id": f"c{i}",
                "split": "test",
                "system": "all",
                "trace_id": ids[i],
                "true_label": true,
                "provisional": given,
                "labels": ["dog", "cat"],
                "probs": [0.75, 0.25],
                "method": "label_likelihood",
            }
            for i, (true, given, _) in enumerate(LABELS)
        ]
        run.append("predictions", [{**row, "predicted": labels[2]} for row, labels in zip(said, LABELS)])
        run.append("predictions", [{**row, "predicted": "dog", "control": "trace_blanked"} for row in said])
        run.append("predictions", [{**row, "predicted": "cat", "method": "linear_head"} for row in said])
        run.finish()
    with workbench.start_run("grpo", {}, dataset="home") as run:
        run.append(
            "traces",
            [
                {"clip_id": f"c{i}", "sample": s, "step": step, "text": "a cat", "provisional": "cat"}
                for i in (2, 3)
                for step in (1, 2)
                for s in (0, 1)
            ],
        )
        run.finish()
    workbench.refresh()
    return workbench


def clips_of(workbench: Workbench, **asked: object) -> list[str]:
    rows = browse.page(workbench, TraceFilter(**asked), sort="clip").rows
    assert len(rows) == browse.count(workbench, TraceFilter(**asked))
    return rows["clip_id"].tolist()


@pytest.mark.parametrize("asked, found", [
    ({"stage": "evaluate"}, ["c0", "c1", "c2", "c3"]),
    ({"true": "dog", "stage": "evaluate"}, ["c0", "c1"]),
    ({"provisional": "none"}, ["c3"]),
    ({"calibrated": "cat"}, ["c1", "c2"]),
    ({"right": "right", "stage": "evaluate"}, ["c0", "c1"]),
    ({"right": "wrong", "stage": "evaluate"}, ["c2", "c3"]),
    ({"final": "right"}, ["c0", "c2"]),
    ({"final": "wrong"}, ["c1", "c3"]),
    ({"flip": "broken"}, ["c1"]),
    ({"flip": "fixed"}, ["c2"]),
    ({"flip": "changed"}, ["c1", "c2", "c3"]),
    ({"flip": "kept"}, ["c0"]),
    ({"reason": "malformed"}, ["c3"]),
    ({"reason": "truncated"}, ["c3"]),
    ({"reason": "well-formed", "stage": "evaluate"}, ["c0", "c1", "c2"]),
    ({"min_token_confidence": 0.4, "max_token_confidence": 0.6}, ["c1"]),
    ({"min_tokens": 10, "max_tokens": 20}, ["c1", "c2"]),
    ({"min_tokens": 0, "max_tokens": 0}, ["c0"]),
    ({"split": "test"}, ["c0", "c1"]),
    ({"split": "validation"}, []),
    ({"dataset": "home", "step": 1, "sample": 1}, ["c2", "c3"]),
    ({"clip": "c3", "stage": "grpo"}, ["c3"] * 4),
    ({"text": "DOG"}, ["c0", "c3"]),
    ({"text": "100% runs_by"}, ["c0"]),
    ({"text": "0% r"}, ["c0"]),
    ({"text": "ÜBER dem"}, ["c1"]),
    ({"text": "'s \"quoted\"; drop table traces; --"}, ["c2"]),
    ({"text": "<B>a d"}, ["c3"]),
    ({"text": "no such words"}, []),
    ({"run": "gone"}, []),
])  # fmt: skip
def test_a_filter_finds_what_it_says(workbench: Workbench, asked: dict, found: list[str]) -> None:
    assert clips_of(workbench, **asked) == found


def test_the_calibrated_label_is_the_likelihood_one_without_a_control(workbench: Workbench) -> None:
    rows = browse.page(workbench, TraceFilter(stage="evaluate"), sort="clip").rows
    assert rows["calibrated"].tolist() == [labels[2] for labels in LABELS] and set(rows["certainty"]) == {0.75}
    assert browse.page(workbench, TraceFilter(stage="grpo")).rows["calibrated"].isna().all()


def test_a_former_manifest_does_not_count(workbench: Workbench) -> None:
    assert workbench.query("SELECT count(*) AS n FROM clips")["n"][0] == 4


def test_pages_hold_every_trace_once_in_order_and_with_its_text(workbench: Workbench) -> None:
    pages = [browse.page(workbench, TraceFilter(), "confidence", True, limit=5, offset=at) for at in (0, 5, 10)]
    assert [page.total for page in pages] == [12] * 3 and [len(page.rows) for page in pages] == [5, 5, 2]
    ids = [name for page in pages for name in page.rows["trace_id"]]
    assert len(set(ids)) == 12
    shown = pages[0].rows
    assert shown["confidence"].tolist()[:4] == pytest.approx([0.8, 0.6, 0.4, 0.2]), "what is missing comes last"
    assert shown["text"].tolist()[:4] == list(reversed(TEXTS))


def test_a_page_past_the_end_is_empty_and_still_knows_the_total(workbench: Workbench) -> None:
    past = browse.page(workbench, TraceFilter(stage="evaluate"), offset=1000)
    assert past.rows.empty and past.total == 4 and "text" in past.rows
    assert browse.page(workbench, TraceFilter(run="gone")).total == 0


def test_a_page_is_never_longer_than_five_hundred_rows_nor_shorter_than_one(workbench: Workbench) -> None:
    assert len(browse.page(workbench, TraceFilter(), limit=10**9, offset=-5).rows) == 12
    assert len(browse.page(workbench, TraceFilter(), limit=-3).rows) == 1


def test_every_known_sort_works_both_ways_and_another_is_refused(workbench: Workbench) -> None:
    for name in browse.SORTS:
        for descending in (None, False, True):
            assert browse.page(workbench, TraceFilter(), name, descending).total == 12
    with pytest.raises(StoreError, match="confidence"):
        browse.page(workbench, TraceFilter(), "confidence; DROP TABLE traces")


@pytest.mark.parametrize("asked", [
    {}, {"stage": "grpo"}, {"flip": "changed"}, {"true": "dog", "provisional": "cat"}, {"min_token_confidence": 0.3},
    {"run": "gone"},
])  # fmt: skip
def test_a_page_holds_the_rows_that_a_sort_of_all_would_put_there(workbench: Workbench, asked: dict) -> None:
    condition, values = TraceFilter(**asked).where(workbench)
    for sort, column in browse.SORTS.items():
        for descending in (False, True):
            order = f"{column} {'DESC' if descending else 'ASC'} NULLS LAST, rowid"
            sql = f"SELECT trace_id FROM stored_traces WHERE {condition} ORDER BY {order}"
            all_of_it = workbench.query(sql, values).trace_id.tolist()
            for at in range(0, 15, 5):
                found = browse.page(workbench, TraceFilter(**asked), sort, descending, limit=5, offset=at)
                assert found.rows.trace_id.tolist() == all_of_it[at : at + 5] and found.total == len(all_of_it)
                assert list(found.rows) == [*browse._FACTS.split(", "), "text"]


def test_a_trace_is_found_by_its_id_and_no_other_one_is(workbench: Workbench) -> None:
    rows = workbench.query("SELECT trace_id, text FROM traces")
    for trace_id, text in rows.itertuples(index=False):
        assert browse.trace(workbench, trace_id).text == text and browse.trace(workbench, trace_id + "0") is None
    assert progress.texts(workbench, rows.trace_id.tolist()) == dict(zip(rows.trace_id, rows.text))


@pytest.mark.parametrize("asked", [{"flip": "sideways"}, {"right": "perhaps"}, {"final": "1 = 1"}])
def test_a_word_that_is_not_one_of_the_few_known_is_refused_in_code(workbench: Workbench, asked: dict) -> None:
    with pytest.raises(StoreError):
        browse.count(workbench, TraceFilter(**asked))


def test_choices_count_what_is_there(workbench: Workbench) -> None:
    known = browse.choices(workbench)
    assert known["stage"] == [("grpo", 8), ("evaluate", 4)] and known["split"] == [("grpo", 10), ("test", 2)]
    assert [n for _, n in known["run"]] == [8, 4], "newest run first"
    assert known["calibrated"] == [("cat", 2), ("dog", 2)] and dict(known["provisional"])["none"] == 1
    assert known["reason"] == [("well-formed", 11), ("malformed", 1), ("truncated", 1)]


def test_an_empty_workbench_is_browsed_without_an_error(tmp_path: Path) -> None:
    empty = Workbench(tmp_path)
    assert browse.page(empty, TraceFilter()).total == 0 and not any(browse.choices(empty).values())
    for form in FORMATS:
        assert b"".join(browse.export(empty, TraceFilter(text="x"), form)) or form == "jsonl"


def test_siblings_are_the_other_traces_of_the_same_clip(workbench: Workbench) -> None:
    [first] = browse.page(workbench, TraceFilter(clip="c2", stage="evaluate")).rows["trace_id"]
    others = browse.siblings(workbench, first)
    assert len(others) == 4 and set(others["clip_id"]) == {"c2"} and first not in set(others["trace_id"])
    assert others[["step", "sample"]].values.tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert browse.siblings(workbench, "no such trace").empty and browse.fact(workbench, "no such trace") is None
    assert browse.fact(workbench, first)["calibrated"] == "cat" and browse.fact(workbench, first)["step"] is None


# Search


@pytest.fixture(scope="module")
def memory() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


_letters = st.characters(codec="utf-8", max_codepoint=0x17FF)


@given(st.lists(st.text(_letters, max_size=60) | st.text("aAbB ü", max_size=60), max_size=6), st.data())
def test_a_search_finds_exactly_the_texts_that_hold_the_phrase(
    memory: duckdb.DuckDBPyConnection, texts: list[str], data: st.DataObject
) -> None:
    inside = [text[i : i + n] for text in texts for i in (0, len(text) // 3) for n in (1, 4, 9, 30)]
    phrase = data.draw(st.text(_letters, min_size=1, max_size=12) | st.sampled_from([*inside, "ab"]).map(str.swapcase))
    lowered = search.lowered(pa.chunked_array([texts], pa.string()))
    rows = pa.table({"text": pa.array(texts, pa.string()), "lowered": lowered, "marks": search.marks(lowered)})
    condition, asked = search.condition(phrase)
    memory.register("rows", rows)
    found = memory.execute(f"SELECT text FROM rows WHERE {condition}", [asked]).fetchall()
    plain = memory.execute("SELECT text FROM rows WHERE contains(lower(text), lower(?))", [phrase]).fetchall()
    memory.unregister("rows")
    assert found == plain


@pytest.mark.parametrize("sort", browse.SORTS)
@pytest.mark.parametrize("descending", [None, False, True])
def test_of_many_finds_the_first_ones_of_the_order_are_shown_and_more_is_said(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, sort: str, descending: bool | None
) -> None:
    asked = TraceFilter(text="A", dataset="home")
    whole = browse.page(workbench, asked, sort, descending)
    assert not whole.more and whole.total == 12
    monkeypatch.setattr(browse, "COUNTED", 7)
    pages = [browse.page(workbench, asked, sort, descending, limit=4, offset=at) for at in (0, 4, 8)]
    assert {(page.total, page.more) for page in pages} == {(7, True)}
    names = [name for page in pages for name in page.rows["trace_id"]]
    assert names == whole.rows["trace_id"].tolist()[:7]
    monkeypatch.setattr(browse, "COUNTED", 12)
    assert browse.page(workbench, asked).more is False


# The slice in an address

_number = st.floats(0, 1).map(lambda value: round(value, 4))
_word = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).map(str.strip).filter(bool)
_filters = st.builds(
    TraceFilter, run=st.none() | _word, true=st.none() | _word, text=st.none() | _word,
    min_token_confidence=st.none() | _number,
    min_tokens=st.none() | st.integers(0, 10**6), step=st.none() | st.integers(0, 10**6),
    flip=st.none() | st.sampled_from(list(browse.FLIPS)), right=st.none() | st.sampled_from(["right", "wrong"]),
    reason=st.none() | st.sampled_from(["malformed", "well-formed", "truncated"]),
)  # fmt: skip


@given(_filters)
def test_a_filter_comes_back_from_its_address(asked: TraceFilter) -> None:
    assert TraceFilter.from_query(asked.to_query()) == asked


@given(
    st.dictionaries(
        st.sampled_from([*TraceFilter.__dataclass_fields__, "sort", "x; DROP"]),
        st.text() | st.floats() | st.none() | st.lists(st.text()),
    )
)
def test_any_address_gives_a_filter_that_can_be_asked(workbench: Workbench, query: dict) -> None:
    asked = TraceFilter.from_query(query)
    if asked.slice is None:
        assert browse.count(workbench, asked) >= 0
    else:
        with pytest.raises(StoreError, match="there is no slice"):
            browse.count(workbench, asked)


def test_what_an_address_gets_wrong_is_left_out_but_an_unknown_run_is_not() -> None:
    query = {
        "step": "three",
        "min_token_confidence": "nan",
        "flip": "x",
        "right": "' OR 1=1",
        "run": " gone ",
        "sort": "x",
    }
    assert TraceFilter.from_query(query) == TraceFilter(run="gone")
    query = {"min_tokens": "20.0", "max_tokens": "1e999", "text": ""}
    assert TraceFilter.from_query(query) == TraceFilter(min_tokens=20)


# Exports


def exported(workbench: Workbench, asked: TraceFilter, form: str) -> list[dict]:
    content = b"".join(browse.export(workbench, asked, form))
    if form == "parquet":
        return pq.read_table(io.BytesIO(content)).to_pylist()
    if form == "jsonl":
        return [json.loads(line) for line in content.decode().splitlines()]
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_holds_exactly_what_is_filtered_with_texts_as_written(workbench: Workbench, form: str) -> None:
    rows = exported(workbench, TraceFilter(stage="evaluate", right="wrong"), form)
    assert [row["text"] for row in rows] == list(TEXTS[2:]) and list(rows[0]) == list(EXPORTED)
    assert [str(row["calibrated"]) for row in rows] == ["cat", "dog"]
    assert exported(workbench, TraceFilter(run="gone"), form) == []


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_is_the_same_however_many_rows_are_looked_at_in_one_go(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    asked = TraceFilter(provisional="cat")
    whole = exported(workbench, asked, form)
    monkeypatch.setattr(browse, "_STRETCH", 3)
    assert len(whole) == 8 and exported(workbench, asked, form) == whole


def test_an_export_of_another_kind_is_refused_before_anything_is_read(workbench: Workbench) -> None:
    with pytest.raises(StoreError, match=re.escape("csv, jsonl, parquet")):
        browse.export(workbench, TraceFilter(), "xlsx")


def test_an_export_is_written_while_it_is_read(workbench: Workbench) -> None:
    pieces = browse.export(workbench, TraceFilter(), "csv")
    assert next(pieces).decode().startswith("trace_id,run_id")
    pieces.close()


def test_older_addresses_filter_and_sort_as_they_did(workbench):
    old = TraceFilter.from_query({"min_confidence": "0.4", "max_confidence": "0.6"})
    assert old == TraceFilter(min_token_confidence=0.4, max_token_confidence=0.6)
    assert set(old.to_query()) == {"min_token_confidence", "max_token_confidence"}
    both = TraceFilter.from_query({"min_confidence": "0.4", "min_token_confidence": "0.7"})
    assert both.min_token_confidence == 0.7, "the name of today counts"
    for name, today in (("confidence", "token_confidence"), ("certainty", "calibrated_confidence")):
        assert browse.page(workbench, old, sort=name).rows.equals(browse.page(workbench, old, sort=today).rows)
