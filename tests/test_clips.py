"""Clips as a person looks for them: by what calibration changed, with the trace that it changed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepintuit_analysis import Workbench
from deepintuit_analysis.index import clips
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_app import slices, watch
from deepintuit_app.context import AppContext


@pytest.fixture
def workbench(tmp_path) -> Workbench:
    """Two systems that a calibrator read, on two clips: the older one flips the first clip rightly and the second
    wrongly, the newer one nothing."""
    workbench = Workbench(tmp_path)
    rows = {"clip_id": ["c0", "c1"], "path": ["c0.mp4", "c1.mp4"], "label": ["fall", "fall"], "dataset": ["home"] * 2}
    missing = {"excluded": pa.nulls(2, pa.string()), "split": ["test"] * 2, "seconds": [1.0, 1.0]}
    pq.write_table(pa.table(rows | missing), workbench.clips / "home.parquet")
    for system, said, calibrated in (("older", "sit", "fall"), ("newer", "fall", "fall")):
        with workbench.start_run("evaluate", {}, name=system, dataset="home") as run:
            given = [said, "fall"]
            run.append(
                "traces",
                [
                    {"clip_id": f"c{i}", "sample": 0, "text": said, "provisional": given[i], "true_label": "fall"}
                    for i in (0, 1)
                ],
            )
            ids = dict(zip(*(run.read("traces")[name] for name in ("clip_id", "trace_id"))))
            run.append(
                "predictions",
                [
                    {
                        "clip_id": clip,
                        "trace_id": ids[clip],
                        "split": "test",
                        "system": system,
                        "control": "none",
                        "method": "label_likelihood",
                        "true_label": "fall",
                        "provisional": given[i],
                        "predicted": calibrated if i == 0 else said,
                        "probs": [0.9, 0.1],
                        "labels": ["fall", "sit"],
                    }
                    for i, clip in enumerate(("c0", "c1"))
                ],
            )
            run.finish({})
    workbench.refresh()
    return workbench


def trace_of(workbench: Workbench, run_name: str, clip_id: str) -> str:
    sql = "SELECT trace_id FROM traces JOIN runs USING (run_id) WHERE name = ? AND clip_id = ?"
    return workbench.query(sql, [run_name, clip_id])["trace_id"][0]


def test_a_flip_is_found_with_the_trace_that_it_turned(workbench):
    for flip, clip_ids in (("changed", ["c0", "c1"]), ("fixed", ["c0"]), ("broken", ["c1"])):
        found, count = clips.find(workbench, flip=flip)
        assert [row["clip_id"] for row in found] == clip_ids and count == len(clip_ids)
        assert [row["trace_id"] for row in found] == [trace_of(workbench, "older", clip) for clip in clip_ids]
    found, count = clips.find(workbench)
    assert [(row["clip_id"], row["trace_id"]) for row in found] == [("c0", None), ("c1", None)] and count == 2


def test_the_clips_of_a_slice_are_found_each_with_its_newest_trace_of_it(workbench):
    workbench.save_slice("first", TraceFilter(clip="c0"))
    workbench.save_slice("older ones", TraceFilter(provisional="sit"))
    for name, system in (("first", "newer"), ("older ones", "older")):
        found, count = clips.find(workbench, name=name)
        assert [row["trace_id"] for row in found] == [trace_of(workbench, system, "c0")] and count == 1
    assert clips.find(workbench, name="first", flip="broken") == ([], 0), "both hold, or nothing is found"
    more = {"text": "home C0", "label": "fall", "split": "test"}
    found, _ = clips.find(workbench, name="older ones", flip="fixed", **more)
    assert [row["trace_id"] for row in found] == [trace_of(workbench, "older", "c0")]
    assert clips.find(workbench, name="first", label="sit") == ([], 0)


def test_what_a_slice_cannot_give_is_said_on_watch(workbench):
    context, sql = AppContext(workbench.path), "SELECT trace_id FROM trace_facts WHERE step >= 0"
    assert "There is no slice" in watch.strip_html(context, "", "", "", "", None, "<b>gone")
    assert "<b>" not in watch.strip_html(context, "", "", "", "", None, "<b>gone")
    workbench.save_slice("nothing", sql)
    assert "has no trace of a clip" in watch.strip_html(context, "", "", "", "", None, "nothing")
    assert "Remove a filter" in watch.strip_html(context, "", "fall", "", "", None, "nothing")
    assert [words for words, _ in slices.offered(workbench, "gone")] == ["Any", "nothing", "gone"]
    assert slices.offered(Workbench(workbench.path / "new")) == [(slices.NONE_SAVED, "")]


def test_an_address_with_a_slice_opens_its_first_clip_and_trace(workbench):
    workbench.save_slice("older ones", TraceFilter(provisional="sit"))
    do = watch.Handlers(AppContext(workbench.path))
    clip, choice, *_, box, _, _ = do.restore({"slice": "older ones"}, None)
    assert (clip, choice.value, box.value) == ("c0", trace_of(workbench, "older", "c0"), "older ones")
    clip, *_, box, _, _ = do.restore({"slice": "gone"}, None)
    assert (clip, box.value) == ("c0", "gone"), "another clip, and the strip says why"


def test_a_card_of_a_flip_filter_opens_that_trace_and_no_other(workbench):
    context, older = AppContext(workbench.path), trace_of(workbench, "older", "c0")
    assert watch.trace_choices(context, "c0")[0][1] != older, "by itself a clip opens its newest trace"
    assert f'data-value="c0 {older}"' in watch.strip_html(context, "", "", "", "fixed", None)
    assert 'data-value="c0"' in watch.strip_html(context, "", "", "", "", None)
    assert watch.Handlers(context).trace_box("c0", older)[1] == older
