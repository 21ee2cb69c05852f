"""Traces that argue for one label and answer another are found, marked, counted and judged first."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from deepintuit.labels import LabelSet
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import answers, browse, clips
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.review import plan
from deepintuit_app import analysis, prose, traces, verdicts, watch
from deepintuit_app.app import create
from deepintuit_app.context import AppContext
from deepintuit_app.runs_view import done_of

ARGUED = ("theft", "theft", "routine", None)
"""What the reasoning of each trace argues for; the third one answers theft all the same, the last one has no answer."""


def text_of(number: int) -> str:
    argued = ARGUED[number]
    return (
        f"<think> A box is seen. Nobody may take a box away. So it is {argued}. </think><answer> theft </answer>"
        if argued
        else "<think> A box"
    )


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    """Four thefts, a trace each, read by a calibrator that calls the second one routine in the end."""
    workbench = Workbench(tmp_path_factory.mktemp("follows"))
    names = [f"c{number}" for number in range(4)]
    rows = {
        "clip_id": names,
        "path": [f"{name}.mp4" for name in names],
        "label": ["theft"] * 4,
        "dataset": ["home"] * 4,
    }
    more = {"excluded": pa.nulls(4, pa.string()), "split": ["test"] * 4, "seconds": [1.0] * 4}
    pq.write_table(pa.table(rows | more), workbench.clips / "home.parquet")
    with workbench.start_run("evaluate", {}, name="system", dataset="home") as run:
        told = [
            {"clip_id": name, "sample": 0, "text": text_of(i), "provisional": "theft" if ARGUED[i] else "none",
             "true_label": "theft", "reason": None if ARGUED[i] else "truncated"}
            for i, name in enumerate(names)
        ]  # fmt: skip
        run.append("traces", told)
        ids = dict(zip(*(run.read("traces")[name] for name in ("clip_id", "trace_id"))))
        run.append("scores", [
            {"trace_id": ids[name], "name": "mismatch", "value": float(ARGUED[i] != "theft"), "evidence": ARGUED[i]}
            for i, name in enumerate(names) if ARGUED[i]
        ])  # fmt: skip
        run.append("predictions", [
            {"clip_id": name, "trace_id": ids[name], "split": "test", "system": "system", "control": "none",
             "method": "label_likelihood", "true_label": "theft", "provisional": told[i]["provisional"],
             "predicted": "routine" if i == 1 else "theft", "probs": [0.9, 0.1], "labels": ["theft", "routine"]}
            for i, name in enumerate(names)
        ])  # fmt: skip
        run.finish({})
    workbench.refresh()
    return workbench


def found(workbench: Workbench, **asked) -> list[str]:
    return sorted(browse.page(workbench, TraceFilter(**asked)).rows["clip_id"])


def test_the_filter_finds_them_alone_and_with_others_and_stands_in_the_address(workbench):
    assert found(workbench, follows="no") == ["c2"] and found(workbench, follows="yes") == ["c0", "c1"]
    assert found(workbench, follows="yes", final="wrong") == ["c1"] and browse.count(
        workbench, TraceFilter(follows="no")
    )
    assert TraceFilter.from_query({"follows": "no"}).to_query() == {"follows": "no"}
    assert TraceFilter.from_query({"follows": "'; DROP"}) == TraceFilter()


def test_a_row_is_marked_with_what_it_argues_for_and_shows_the_sentence_that_decides(workbench):
    html = traces.list_html(AppContext(workbench.path), TraceFilter(follows="no"), "", "", "", "")
    assert "argues for routine" in html and "away. So it is routine." in html and "A box is seen" not in html
    assert 'data-set="traces-remove" data-value="follows"' in html and 'src="media/poster/c2"' in html
    others = traces.list_html(AppContext(workbench.path), TraceFilter(), "", "", "", "")
    assert others.count("argues for routine") == others.count("argues for ") - 1 == 1, "a badge and its title"


def test_they_come_first_in_their_order_of_review_and_divide_the_clips_of_errors(workbench):
    first, *_ = plan(workbench, TraceFilter(), "mismatch").values()
    assert first == "c2"
    run = workbench.runs()[0].id
    facts = answers.facts(workbench, run, "system", "test")["follows"]
    assert (
        [facts[f"c{i}"] for i in range(3)] == ["yes", "yes", "no"] and facts["c3"] != facts["c3"] or facts["c3"] is None
    )


def test_the_clip_to_begin_with_is_right_throughout_and_follows(workbench):
    assert clips.clean(workbench)["clip_id"] == "c0"
    chosen = watch.Handlers(AppContext(workbench.path))._first(dict.fromkeys(watch.FILTERS, ""))
    assert chosen["clip_id"] == "c0"


def test_what_was_not_scored_is_computed_where_the_labels_are_known():
    labels = LabelSet.of("home", ["theft", "routine"])
    known = verdicts.with_mismatch({}, text_of(2), "think-answer", labels)
    assert known["mismatch"] == (1.0, "routine")
    assert verdicts.with_mismatch({}, text_of(3), "think-answer", labels) == {}, "a malformed text has no label"
    assert verdicts.with_mismatch({"mismatch": (0.0, "x")}, text_of(2), "think-answer", labels)["mismatch"] == (
        0.0,
        "x",
    )


@pytest.mark.parametrize(("text", "said"), [
    ("<think> At 1.5 s he falls. So it is a fall. </think><answer> fall </answer>",
     "At 1.5 s he falls. So it is a fall."),
    ("<think> It is night. No outsider may stay at night. So it is theft. </think><answer> theft </answer>",
     "No outsider may stay at night. So it is theft."),
    ("<think> Nobody stays down at night. Stray? Stray. </think><answer> stray </answer>",
     "Nobody stays down at night. Stray? Stray."),
    ("He falls", "He falls"), ("", ""),
])  # fmt: skip
def test_the_sentence_that_decides_ends_the_reasoning_and_is_more_than_its_label(text, said):
    assert prose.deciding(text, "think-answer") == said


def test_all_clips_can_be_paged_through_and_a_filter_is_a_chip(workbench, monkeypatch):
    monkeypatch.setattr(watch, "SHOWN", 3)
    context = AppContext(workbench.path)
    pages = [watch.strip_html(context, "", "", "", "", None, "", number) for number in ("", "2", "9", "x")]
    assert ["c0" in page for page in pages] == [True, False, False, True] and "4–4 of 4 clips" in pages[1]
    assert pages[2] == pages[1], "past the end is the last page"
    chip = watch.strip_html(context, "c1", "theft", "", "", None)
    assert 'data-value="find"' in chip and 'data-value="label"' in chip and "1 clip<" in chip.replace("\n", "")


@pytest.mark.parametrize(("told", "done"), [
    ("GRPO ━━━━━━╸━━━ 34/120 0:01:20", (34 / 120, "34 of 120, 0:01:20 left")), ("Evaluate 7/7 0:00:00", (1, "7 of 7")),
    ("reading 3 files", None), ("0/0", None), ("9/7", None), ("", None),
])  # fmt: skip
def test_how_far_a_job_is_comes_from_its_last_line(told, done):
    assert done_of(told) == done


def test_errors_takes_its_tables_along_and_knows_a_system_by_its_name(workbench):
    client = TestClient(create(workbench.path), base_url="http://127.0.0.1:7860")
    run = workbench.runs()[0].id
    for wish in (f"{run}/system", "system", run):
        rows = client.get(f"/export/errors/confusion.csv?system={wish}&method=label+likelihood").text.splitlines()
        assert rows[0] == "true,answered,clips" and "theft,theft,3" in rows and "theft,routine,1" in rows
    [theft] = [row for row in client.get("/export/errors/classes.jsonl").text.splitlines() if '"theft"' in row]
    assert '"true_clips": 4, "answered": 3' in theft and '"recall": 0.75, "recall_low"' in theft
    assert (
        client.get("/export/errors/secrets.csv").status_code
        == client.get("/export/errors/classes.exe").status_code
        == 404
    )
    known = answers.sources(workbench)
    assert analysis.choose(known, analysis.Choice(system="nothing of that name"))[0].system == f"{run}/system"
