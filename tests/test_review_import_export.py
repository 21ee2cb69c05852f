"""Reviews in and out: every form gives back what went in, and what comes in never replaces what is there."""

import csv
import io
import json
from datetime import datetime
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import DataError
from deepintuit.tables import as_written, spreadsheet_safe
from deepintuit_analysis import Workbench
from deepintuit_analysis.index.reviewed import SCHEMA
from deepintuit_analysis.review import EventLog, Kind, Reviews, ReviewTask, read_events
from deepintuit_analysis.review.import_export import (
    FORMS,
    Imported,
    bring_in,
    dump,
    form_of,
    label_config,
    label_studio,
    load,
    rows,
)

HOSTILE = (
    '=HYPERLINK("http://x")',
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "'quoted",
    "''",
    "<b>x</b>",
    'a,b;c"d"',
    "'; DROP TABLE reviews; --",
    "＝1",
    "\u2028\u0000 Ünï 🐕",
    "line\r\nline\n",
)
LABELS = ("dog", '<cat> & "co"', "=fox")
WHO = "=ann@example.org"


def task(name: str = "week", **settings) -> ReviewTask:
    return ReviewTask(name, {f"t{n}": f"c{n}" for n in range(4)}, **{"labels": LABELS, "leads": ["lead"], **settings})


@pytest.fixture
def reviews(tmp_path):
    with EventLog(tmp_path / "reviews") as log:
        opened = Reviews(log)
        opened.open(task(), "lead")
        yield opened


def answer(reviews: Reviews, who: str, label: str | None = "dog", **more) -> str:
    item = reviews.next_item("week", who).trace_id
    reviews.judge("week", who, item, {"label": label, "verdict": "right", **more})
    return item


def plain(found: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in ("event_id", "source")} for row in found]


text = (st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8"), max_size=20)).filter(bool)
times = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1))
judged = st.fixed_dictionaries(
    {
        "task": st.just("week"),
        "trace_id": st.sampled_from(["t0", "t1"]),
        "clip_id": st.none() | text,
        "reviewer": text,
        "kind": st.sampled_from(["judged", "adjudicated"]),
        "label": st.sampled_from([*LABELS, None]),
        "verdict": st.sampled_from(["right", "wrong reasons", None]),
        "failing_sentence": st.none() | st.integers(0, 9),
        "failing_in": st.sampled_from(["seeing", None]),
        "note": st.none() | text,
        "reason": st.none(),
        "source": st.none() | text,
        "time": times,
        "event_id": st.none() | text,
        "spans": st.none() | st.just('[{"start": 0.0, "end": 1.5, "label": "=fox"}]'),
    }
)
skipped = judged.map(
    lambda row: {
        **row,
        "kind": "skipped",
        "label": None,
        "verdict": None,
        "failing_sentence": None,
        "failing_in": None,
        "note": None,
        "spans": None,
        "reason": "=dark",
    }
)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@given(st.lists(judged | skipped, max_size=5))
def test_every_form_gives_back_what_went_in(form, found):
    assert load(dump(found, form), form) == found


@given(st.text() | st.sampled_from(HOSTILE))
def test_a_spreadsheet_takes_no_text_for_a_formula_and_the_text_comes_back(text):
    safe = spreadsheet_safe(text)
    assert not safe.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
    assert as_written(safe) == text and spreadsheet_safe(-1.5) == -1.5


def test_csv_cells_of_hostile_notes_are_harmless(reviews):
    for note in HOSTILE[:4]:
        answer(reviews, WHO, "=fox", note=note)
    content = dump(rows(reviews, "week"), "csv").decode()
    cells = [cell for line in csv.reader(io.StringIO(content, newline="")) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))] and "'=fox" in cells
    assert {row["note"] for row in load(content.encode(), "csv")} == set(HOSTILE[:4])


@pytest.mark.parametrize("form", [form for form in FORMS if form != "cvat"])
def test_a_task_moves_to_another_workbench(form, reviews, tmp_path):
    """Judgements of two, unsure ones, a skip, an adjudication, an undone answer that must not come along."""
    answer(reviews, "bo", "=fox", failing={"sentence": 0, "in": "seeing"}, note=HOSTILE[0])
    answer(reviews, WHO, None, note="two\nlines\r\n")
    reviews.skip("week", WHO, reviews.next_item("week", WHO).trace_id, "+too dark")
    reviews.adjudicate("week", "lead", "t1", {"label": LABELS[1], "verdict": None})
    answer(reviews, "bo")
    reviews.undo("week", "bo")
    before = rows(reviews, "week")
    assert len(before) == 4
    content = label_studio(Workbench(tmp_path), reviews, "week") if form == "label-studio" else dump(before, form)
    with EventLog(tmp_path / "other") as log:
        there = Reviews(log)
        there.open(task(), "lead")
        assert bring_in(there, "week", load(content, form), "a file", dry=True) == Imported(4, 0, [])
        assert not rows(there, "week")
        assert bring_in(there, "week", load(content, form), "a file") == Imported(4, 0, [])
        after = rows(there, "week")
        assert plain(after) == plain(before) and {row["source"] for row in after} == {"a file"}
        written = len(read_events(tmp_path / "other")[0])
        assert bring_in(there, "week", load(content, form), "a file") == Imported(0, 4, [])
        assert len(read_events(tmp_path / "other")[0]) == written, "coming again writes nothing"
    assert {act.kind for act in log.state.acts[("week", WHO)].values()} == {Kind.JUDGED, Kind.SKIPPED}


def test_what_comes_in_never_replaces_an_answer_that_is_here(reviews):
    item = answer(reviews, WHO, "dog")
    strange = [{**row, "label": "=fox"} for row in rows(reviews, "week")]
    assert bring_in(reviews, "week", strange, "elsewhere") == Imported(0, 0, [(item, WHO)])
    assert rows(reviews, "week")[0]["label"] == "dog"
    twice = [{**strange[0], "reviewer": "bo"}, {**strange[0], "reviewer": "bo", "label": "dog"}]
    assert bring_in(reviews, "week", twice, "elsewhere") == Imported(1, 0, [(item, "bo")]), "nor one of the same file"


@pytest.mark.parametrize("wrong, sentence", [
    ({"trace_id": "gone"}, "row 2: the trace 'gone'"), ({"task": "day"}, "of the task 'day'"),
    ({"label": "wolf"}, "'wolf' came as the label"), ({"verdict": "so so"}, "as the verdict"),
    ({"reviewer": " "}, "a reviewer called ' '"), ({"note": "x" * 10_001}, "as the note"),
    ({"failing_sentence": 2}, "as the failing"), ({"kind": "adjudicated"}, f"row 2: {WHO!r} adjudicates"),
])  # fmt: skip
def test_one_wrong_row_and_nothing_comes_in(reviews, wrong, sentence):
    good = {
        **dict.fromkeys(SCHEMA.names),
        "trace_id": "t0",
        "reviewer": WHO,
        "kind": "judged",
        "label": "dog",
        "verdict": "right",
        "time": datetime(2026, 1, 1),
    }
    with pytest.raises(DataError, match=r"nothing was taken in\.") as error:
        bring_in(reviews, "week", [good, {**good, **wrong}], "elsewhere")
    assert sentence in str(error.value) and not rows(reviews, "week")


@pytest.mark.parametrize("content, form, sentence", [
    (b"{]", "jsonl", "not read as jsonl"), (b"[1]\n", "jsonl", "row 1 is not a review"),
    (b"\xff\xfe", "csv", "not read as csv"), (b"PAR1", "parquet", "not read as parquet"),
    (b'[{"data": {}}, 3]', "label-studio", "not read as label-"), (b'{"a": "b"}', "label-studio", "not read as label-"),
    (b"[" * 100_000, "label-studio", "not read as label-"),
    (b"reviewer,kind,trace_id,time\nann,judged,t0,yesterday\n", "csv", "row 1"), (b"", "xml", "reviews as 'xml'"),
    (b"reviewer,kind\nann,judged\n", "csv", "row 1"), (b'x\n"never closed', "csv", "not read as csv"),
])  # fmt: skip
def test_a_file_that_is_no_review_is_a_sentence(content, form, sentence):
    with pytest.raises(DataError) as error:
        load(content, form)
    assert sentence in str(error.value)


@pytest.mark.parametrize("field, value", [
    ("reviewer", "\ud800ada"), ("label", "a\udfff"), ("note", {"a": 1}), ("label", ["a"]), ("trace_id", "t\ud800"),
])  # fmt: skip
def test_a_row_with_what_no_file_of_ours_can_hold_is_named(field, value):
    row = {"trace_id": "t", "reviewer": "ada", "kind": "judged", field: value}
    with pytest.raises(DataError, match="row 1 is not a review"):
        load(json.dumps(row).encode(), "jsonl")


def test_a_parquet_column_of_bytes_or_a_sentence_without_end_is_no_review():
    file, row = io.BytesIO(), {"trace_id": "t", "reviewer": "ada", "kind": "judged"}
    pq.write_table(pa.Table.from_pylist([{**row, "note": b"\xff"}]), file)
    with pytest.raises(DataError, match="its note is no text"):
        load(file.getvalue(), "parquet")
    result = [{"from_name": "failing_sentence", "value": {"number": float("inf")}}]
    task = {"data": {"trace_id": "t"}, "annotations": [{"completed_by": "ada", "result": result}]}
    with pytest.raises(DataError, match="infinity"):
        load(json.dumps(task).replace("Infinity", "1e999").encode(), "label-studio")


def test_a_small_file_that_stands_for_much_is_not_unpacked():
    many, text = pa.array(np.zeros(900_000, np.int32)), pa.DictionaryArray.from_arrays
    tables = {
        "rows or": text(pa.array(np.zeros(1_000_001, np.int32)), pa.array(["x"])),
        "its texts": text(many, pa.array(["x" * 1000])),
        "lists": pa.array([[1] * 1000]),
    }
    for sentence, column in tables.items():
        file = io.BytesIO()
        pq.write_table(pa.table({"trace_id": column}), file, compression="zstd")
        assert file.tell() < 2**20
        with pytest.raises(DataError, match=sentence):
            load(file.getvalue(), "parquet")
    with pytest.raises(DataError, match="row 1 is not"):
        load(b"{}\n" * 2**20, "jsonl")


def test_forms_are_known_by_their_endings():
    assert form_of("a/b.CSV") == "csv" and form_of("x.json") == "label-studio" and form_of("x.xml") == "cvat"
    with pytest.raises(DataError, match="names no form"):
        form_of("week.xlsx")


# Label Studio


def small(tmp_path) -> tuple[Workbench, list[str]]:
    workbench = Workbench(tmp_path / "workbench")
    with workbench.start_run("evaluate", {}) as run:
        said = "<think> A tail, so a Dog. </think><answer> dog </answer>"
        run.append("traces", [{"clip_id": f"c{n}", "sample": 0, "text": said, "provisional": "dog"} for n in (0, 1)])
        ids = run.read("traces")["trace_id"].tolist()
    workbench.refresh()
    return workbench, ids


@pytest.mark.parametrize("blind", [False, True])
def test_label_studio_shows_video_trace_and_the_models_label_unless_the_task_is_blind(tmp_path, blind):
    workbench, ids = small(tmp_path)
    with EventLog(workbench.reviews) as log:
        reviews = Reviews(log)
        reviews.open(ReviewTask("week", dict(zip(ids, ("c0", "c1"))), labels=LABELS, blind=blind), "lead")
        first, _ = json.loads(label_studio(workbench, reviews, "week"))
        reviews.open(ReviewTask("no labels", dict(zip(ids, ("c0", "c1"))), questions=["verdict"]), "lead")
        assert not any(one["predictions"] for one in json.loads(label_studio(workbench, reviews, "no labels")))
    assert first["data"]["trace_id"] == ids[0] and "A tail" in first["data"]["text"] and first["annotations"] == []
    assert ("dog" in first["data"]["text"].lower()) is not blind
    guess = [one["result"][0]["value"]["choices"] for one in first["predictions"]]
    assert guess == ([] if blind else [["dog"]])


def part(name: str, kind: str, value: object) -> dict:
    key = "text" if kind == "textarea" else kind
    return {
        "id": f"r_{name}",
        "from_name": name,
        "to_name": "video",
        "type": kind,
        "origin": "manual",
        "value": {key: value},
    }


def annotation(number: int, by: object, result: list | None, hour: int, **more: object) -> dict:
    """With the fields that its exports have, those of no use here among them."""
    time = f"2021-03-09T{hour:02}:16:08.728353Z"
    return {
        "id": number,
        "completed_by": by,
        "result": result,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": time,
        "updated_at": time,
        "draft_created_at": time,
        "lead_time": 4.288,
        "prediction": {},
        "result_count": len(result or []),
        "unique_id": f"0b1c-{number}",
        "import_id": None,
        "last_action": None,
        "bulk_created": False,
        "task": 1,
        "project": 83,
        "updated_by": 10,
        "parent_prediction": None,
        "parent_annotation": None,
        "last_created_by": None,
        **more,
    }


def exported(trace: str, *annotations: dict, **more: object) -> dict:
    guess = {
        "id": 5,
        "model_version": "evaluate-1",
        "score": 0.7,
        "created_ago": "3 hours",
        "cluster": None,
        "mislabeling": 0.0,
        "result": [part("label", "choices", ["=fox"])],
        "task": 1,
        "project": 83,
    }
    cancelled = sum(bool(one["was_cancelled"]) for one in annotations)
    return {
        "id": 1,
        "inner_id": 1,
        "data": {"trace_id": trace, "task": "week", "video": "x.mp4", "text": "…"},
        "annotations": list(annotations),
        "predictions": [guess],
        "drafts": [],
        "meta": {},
        "file_upload": "a.json",
        "total_annotations": len(annotations) - cancelled,
        "cancelled_annotations": cancelled,
        "total_predictions": 1,
        "comment_count": 0,
        "project": 83,
        "updated_by": 10,
        "comment_authors": [],
        "created_at": "2021-03-09T21:52:49.513742Z",
        "updated_at": "2021-03-09T22:16:08.746926Z",
        **more,
    }


BO, EVE = (
    {"id": n, "email": f"{name}@example.org", "first_name": name, "last_name": ""}
    for n, name in ((3, "bo"), (4, "eve"))
)


def test_what_label_studio_exports_comes_in(reviews):
    """Accounts as numbers and as people, several on a task, skips, drafts, predictions that nobody took over, a task
    that nobody touched, a star of somebody who leads nothing here, regions and relations of no use."""
    said = [
        part("label", "choices", ["dog"]),
        part("verdict", "choices", ["wrong"]),
        part("failing_sentence", "number", 2.0),
        part("failing_in", "choices", ["seeing"]),
        part("note", "textarea", ["one", "two"]),
        part("mood", "rating", 4),
        {"type": "relation", "from_id": "r_label", "to_id": "r_note", "direction": "right"},
    ]
    unsure = [part("label", "choices", []), part("note", "textarea", "in one piece")]
    draft = {"id": 1, "user": "eve@example.org", "result": [part("label", "choices", ["=fox"])], "was_postponed": False}
    tasks = [
        exported("t0", annotation(1, 10, said, 12), annotation(2, BO, said[:1], 13, ground_truth=True), drafts=[draft]),
        exported("t1", annotation(3, BO, [], 12, was_cancelled=True), annotation(4, EVE, unsure, 13)),
        exported("t2", annotation(5, EVE, None, 12, was_cancelled=True, skipped=True)),
        exported("t3"),
    ]
    found = load(json.dumps(tasks).encode(), "label-studio")
    assert bring_in(reviews, "week", found, "project 83") == Imported(5, 0, [])
    mine = {(row["trace_id"], row["reviewer"]): row for row in rows(reviews, "week")}
    first = mine["t0", "Label Studio account 10"]
    assert (first["label"], first["verdict"], first["note"]) == ("dog", "wrong", "one\ntwo")
    assert (first["failing_sentence"], first["failing_in"]) == (1, "seeing")
    assert first["time"] == datetime(2021, 3, 9, 12, 16, 8, 728353)
    kinds = {key: (row["kind"], row["label"], row["reason"]) for key, row in mine.items() if row is not first}
    bo, eve, skipped = BO["email"], EVE["email"], ("skipped", None, "no reason given")
    assert kinds == {
        ("t0", bo): ("judged", "dog", None),
        ("t1", bo): skipped,
        ("t1", eve): ("judged", None, None),
        ("t2", eve): skipped,
    }
    assert mine["t1", eve]["note"] == "in one piece"
    assert not any(row["extra"] for row in mine.values()), "whoever brings answers in wants them all to count"
    assert len(reviews.ratings("week")) == 3


def test_a_star_of_a_lead_is_a_decision_and_of_two_answers_the_newer_comes_in(reviews):
    lead = {"id": 1, "email": "lead"}
    again = [
        annotation(1, BO, [part("label", "choices", [label])], hour)
        for label, hour in (("=fox", 13), ("dog", 15), ("=fox", 12))
    ]
    star = annotation(4, lead, [part("label", "choices", ["dog"])], 14, ground_truth=True)
    one = exported("t0", *again, star)  # a task on its own, as the snapshot of one is
    done = bring_in(reviews, "week", load(json.dumps(one).encode(), "label-studio"), "project 83")
    assert done == Imported(2, 0, [("t0", "bo@example.org")] * 2)
    assert {(row["kind"], row["label"]) for row in rows(reviews, "week")} == {("adjudicated", "dog"), ("judged", "dog")}


@pytest.mark.parametrize(
    "task, sentence",
    [
        ({"id": 1, "trace_id": "t0", "label": "dog", "annotator": 1, "annotation_id": 7}, "it is JSON-MIN"),
        (
            exported("t0", annotation(1, 10, [part("label", "choices", ["dog", "=fox"])], 12)),
            "2 choices came as the label",
        ),
    ],
)
def test_an_export_that_says_too_little_or_too_much_gets_a_sentence(task, sentence):
    with pytest.raises(DataError, match=sentence):
        load(json.dumps([task]).encode(), "label-studio")


def test_the_labelling_interface_names_all_that_annotations_hold():
    found = ElementTree.fromstring(label_config(task()))
    controls = {node.get("name"): node for node in found if node.get("name")}
    assert [choice.get("value") for choice in controls["label"]] == list(LABELS), "hostile labels are text"
    assert {"verdict", "failing_sentence", "failing_in", "note", "reason", "reviewer", "video", "text"} < set(controls)
    assert "verdict" not in label_config(task(questions=["label"]))
