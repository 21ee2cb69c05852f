"""Reviews in and out: every form gives back what went in, and what comes in never replaces what is there."""

import csv
import io
import json
from datetime import datetime
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import DataError
from deepintuit.review import EventLog, Kind, Reviews, Task
from deepintuit.review.exchange import FORMS, Imported, bring_in, dump, form_of, label_config, label_studio, load, rows
from deepintuit.store import Workbench
from deepintuit.store.browse import as_written, spreadsheet_safe
from deepintuit.store.reviewed import SCHEMA

HOSTILE = ("=HYPERLINK(\"http://x\")", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'quoted", "''", "<b>x</b>",
           "a,b;c\"d\"", "'; DROP TABLE reviews; --", "＝1", "\u2028\u0000 Ünï 🐕", "line\r\nline\n")  # fmt: skip
LABELS = ("dog", "<cat> & \"co\"", "=fox")
WHO = "=ann@example.org"


def task(name: str = "week", **settings) -> Task:
    return Task(name, {f"t{n}": f"c{n}" for n in range(4)}, **{"labels": LABELS, "leads": ["lead"], **settings})


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
judged = st.fixed_dictionaries({
    "task": st.just("week"), "trace_id": st.sampled_from(["t0", "t1"]), "clip_id": st.none() | text, "reviewer": text,
    "kind": st.sampled_from(["judged", "adjudicated"]), "label": st.sampled_from([*LABELS, None]),
    "verdict": st.sampled_from(["right", "wrong reasons", None]), "failing_sentence": st.none() | st.integers(0, 9),
    "failing_in": st.sampled_from(["seeing", None]), "note": st.none() | text, "reason": st.none(),
    "source": st.none() | text, "time": times, "event_id": st.none() | text})  # fmt: skip
skipped = judged.map(lambda row: {**row, "kind": "skipped", "label": None, "verdict": None, "failing_sentence": None,
                                  "failing_in": None, "note": None, "reason": "=dark"})  # fmt: skip


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


@pytest.mark.parametrize("form", FORMS)
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
        size = (tmp_path / "other" / "events.jsonl").stat().st_size
        assert bring_in(there, "week", load(content, form), "a file") == Imported(0, 4, [])
        assert (tmp_path / "other" / "events.jsonl").stat().st_size == size, "coming again writes nothing"
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
    good = {**dict.fromkeys(SCHEMA.names), "trace_id": "t0", "reviewer": WHO, "kind": "judged", "label": "dog",
            "verdict": "right", "time": datetime(2026, 1, 1)}  # fmt: skip
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


def test_forms_are_known_by_their_endings():
    assert form_of("a/b.CSV") == "csv" and form_of("x.json") == "label-studio"
    with pytest.raises(DataError, match="names no form"):
        form_of("week.xlsx")


# Label Studio

def small(tmp_path) -> tuple[Workbench, list[str]]:
    workbench = Workbench(tmp_path / "workbench")
    with workbench.start_run("evaluate", {}) as run:
        said = "<think> A dog. </think><answer> dog </answer>"
        run.append("traces", [{"clip_id": f"c{n}", "sample": 0, "text": said, "provisional": "dog"} for n in (0, 1)])
        ids = run.read("traces")["trace_id"].tolist()
    workbench.refresh()
    return workbench, ids


@pytest.mark.parametrize("blind", [False, True])
def test_label_studio_shows_video_trace_and_the_models_label_unless_the_task_is_blind(tmp_path, blind):
    workbench, ids = small(tmp_path)
    with EventLog(workbench.reviews) as log:
        reviews = Reviews(log)
        reviews.open(Task("week", dict(zip(ids, ("c0", "c1"))), labels=LABELS, blind=blind), "lead")
        first, _ = json.loads(label_studio(workbench, reviews, "week"))
    assert first["data"]["trace_id"] == ids[0] and "A dog." in first["data"]["text"] and first["annotations"] == []
    assert ("<answer>" in first["data"]["text"]) is not blind
    guess = [one["result"][0]["value"]["choices"] for one in first["predictions"]]
    assert guess == ([] if blind else [["dog"]])


def test_what_label_studio_writes_comes_in(reviews):
    """An export as its documentation has it: accounts as numbers or with e-mail, a skip, regions of no use here."""
    said = {"label": ("choices", {"choices": ["dog"]}), "note": ("textarea", {"text": ["one", "two"]}),
            "failing_sentence": ("number", {"number": 2.0}), "failing_in": ("choices", {"choices": ["seeing"]})}
    result = [{"id": name, "from_name": name, "to_name": "video", "type": kind, "origin": "manual", "value": value}
              for name, (kind, value) in said.items()]  # fmt: skip
    done = {"id": 1, "completed_by": 10, "was_cancelled": False, "ground_truth": False, "lead_time": 4.2,
            "result": result, "created_at": "2021-03-09T22:16:08.728353Z"}  # fmt: skip
    left = {**done, "completed_by": {"id": 3, "email": "bo@example.org"}, "was_cancelled": True, "result": []}
    tasks = [{"id": 7, "data": {"trace_id": "t0", "video": "x.mp4"}, "annotations": [done, left]}]
    found = load(json.dumps(tasks).encode(), "label-studio")
    assert bring_in(reviews, "week", found, "project 83") == Imported(2, 0, [])
    first, second = sorted(rows(reviews, "week"), key=lambda row: row["kind"])
    assert (first["reviewer"], first["label"], first["verdict"]) == ("Label Studio account 10", "dog", None)
    assert (first["note"], first["failing_sentence"], first["failing_in"]) == ("one\ntwo", 1, "seeing")
    assert first["time"] == datetime(2021, 3, 9, 22, 16, 8, 728353)
    assert (second["reviewer"], second["kind"], second["reason"]) == ("bo@example.org", "skipped", "no reason given")


def test_the_labelling_interface_names_all_that_annotations_hold():
    found = ElementTree.fromstring(label_config(task()))
    controls = {node.get("name"): node for node in found if node.get("name")}
    assert [choice.get("value") for choice in controls["label"]] == list(LABELS), "hostile labels are text"
    assert {"verdict", "failing_sentence", "failing_in", "note", "reason", "reviewer", "video", "text"} < set(controls)
    assert "verdict" not in label_config(task(questions=["label"]))
