"""Prediction rows for an error analysis: what exists, what is known of a clip, and how clips divide."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import StoreError
from deepintuit.runs import trace_id
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import answers
from deepintuit_analysis.index.browse import TraceFilter

CLIPS = ("a", "b", "c")


@pytest.fixture
def workbench(tmp_path: Path) -> Workbench:
    """Three clips of "home", scored by an old run and by a newer one that has a calibrated answer and a control."""
    workbench = Workbench(tmp_path)
    named = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
    facts = ['{"light": "day", "seen": 3}', '{"light": "night", "seen": 4, "steps": [1]}', "{broken"]
    manifest = {
        "dataset": ["home"] * 4, "clip_id": [*CLIPS, "x"], "path": ["v/a.mp4", "v/b.mp4", "w\\c.mp4", None],
        "label": ["cat", "dog", "dog", "cat"], "group": ["g", "g", "h", None], "split": ["test"] * 4,
        "seconds": [1.0, 2.0, None, None], "width": [64, 64, 32, None], "height": [48, 48, 32, None],
        "excluded": [None, None, None, "not_a_video"],
    }  # fmt: skip
    notes = pa.array([[{"name": "facts", "value": text}] for text in facts] + [[]], named)
    text = pa.array([[{"name": "score", "value": str(n)}] for n in (1, 2.5, 3)] + [[]], named)
    table = pa.table(manifest).append_column("notes", notes).append_column("text", text)
    pq.write_table(table, workbench.clips / "home.parquet")
    # The same clip in another dataset, with another length.
    other = pa.table({"dataset": ["barn"], "clip_id": ["a"], "path": ["z.mp4"], "split": ["test"], "seconds": [9.0]})
    pq.write_table(other, workbench.clips / "barn.parquet")
    for name, methods in (("old", {"raw": ["none"]}), ("new", {"raw": ["none"], "vote": ["none", "trace_blanked"]})):
        with workbench.start_run("evaluate", {}, name=name, dataset="home") as run:
            reasons = [None, "no_answer", None]
            run.append("traces", [
                {"clip_id": clip, "sample": 0, "text": "…", "tokens": 10 * i, "reason": reason, "stage": "evaluate"}
                for i, (clip, reason) in enumerate(zip(CLIPS, reasons))
            ])  # fmt: skip
            for method, controls in methods.items():
                for control in controls:
                    run.append("predictions", [
                        {"clip_id": clip, "split": "test", "system": name, "method": method, "control": control,
                         "trace_id": trace_id(run.id, clip, 0), "true_label": "cat", "provisional": "cat",
                         "predicted": "dog"} for clip in CLIPS
                    ])  # fmt: skip
            run.finish({})
    workbench.refresh()
    return workbench


def run_of(workbench: Workbench, system: str) -> str:
    found = answers.sources(workbench)
    return found.loc[found["system"] == system, "run_id"].iloc[0]


def test_sources_are_the_runs_systems_and_methods_that_exist_newest_first(workbench):
    found = answers.sources(workbench)
    assert found["system"].tolist() == ["new", "old"]
    assert found["methods"].tolist() == [["raw", "vote"], ["raw"]]
    assert found["dataset"].tolist() == ["home", "home"] and found["clips"].tolist() == [3, 3]


def test_a_workbench_without_predictions_has_no_sources(tmp_path):
    assert answers.sources(Workbench(tmp_path / "empty")).empty


def test_answers_hold_every_control_of_the_asked_methods_and_no_other_system(workbench):
    run_id = run_of(workbench, "new")
    found = answers.answers(workbench, run_id, "new", "test", ["vote"])
    assert found.groupby("control").size().to_dict() == {"none": 3, "trace_blanked": 3}
    assert answers.answers(workbench, run_id, "new", "validation", ["vote"]).empty
    assert answers.answers(workbench, run_id, "' OR 1=1 --", "test", ["vote"]).empty


def test_facts_join_the_manifest_of_the_runs_dataset_with_the_trace(workbench):
    known = answers.facts(workbench, run_of(workbench, "new"), "new", "test")
    assert known.index.tolist() == list(CLIPS)
    assert known["seconds"].iloc[0] == 1.0  # not the 9 seconds of the other dataset
    assert known["file"].tolist() == ["a.mp4", "b.mp4", "c.mp4"]
    assert known["size"].tolist() == ["64×48", "64×48", "32×32"]
    assert known["tokens"].tolist() == [0, 10, 20]
    assert known["reason"].tolist() == ["well-formed", "no_answer", "well-formed"]


def test_notes_that_are_json_objects_become_columns_and_broken_ones_stay_text(workbench):
    known = answers.facts(workbench, run_of(workbench, "new"), "new", "test")
    assert known["note: facts.light"].tolist()[:2] == ["day", "night"]
    assert known["note: facts"].dropna().tolist() == ["{broken"]
    assert "note: facts.steps" not in known
    assert known["text: score"].tolist() == [1, 2.5, 3]


def test_columns_that_divide_nothing_are_not_offered(workbench):
    offered = answers.sliceable(answers.facts(workbench, run_of(workbench, "new"), "new", "test"))
    assert offered[:4] == ["seconds", "group", "size", "tokens"]
    assert not {"file", "path", "clip_id", "label", "fps"} & set(offered)


def test_a_text_that_is_another_one_for_each_clip_divides_nothing():
    known = pd.DataFrame({"source": [f"v/{i}.mp4" for i in range(60)], "camera": ["a", "b"] * 30})
    assert answers.sliceable(known) == ["camera"]


def test_numbers_divide_into_quarters_and_few_values_into_themselves():
    quarters = answers.parts_of(pd.Series(np.arange(100.0)))
    assert [part.name for part in quarters] == ["0 to 24", "25 to 49", "50 to 74", "75 to 99"]
    rates = answers.parts_of(pd.Series([5.0, 5.0000001, 10.0, None]))
    assert [(part.name, int(part.inside_C.sum())) for part in rates] == [("5", 2), ("10", 1), ("not known", 1)]


@pytest.mark.parametrize(("values", "names"), [
    ([2, 2.4, 2.8, 2.857, 3, 3.6, 3.7, 4, 4.6, 4.7, 5, 5.5], ["2.0 to 2.8", "2.9 to 3.6", "3.7 to 4.6", "4.7 to 5.5"]),
    ([0.9512, 0.9634, 0.964, 0.97, 0.9711, 0.98, 0.981, 1], ["0.951 to 0.963", "0.964 to 0.970", "0.971 to 0.980",
     "0.981 to 1.000"]),
    ([1, 1.0004, 1.0005, 500, 700, 900, 5000, 12_345], ["1.0000 to 1.0004", "1.0005 to 500.0000",
     "700.0000 to 900.0000", "5,000.0000 to 12,345.0000"]),
    ([-30, -20, -0.3, 0.4, 24, 31, 47, 60], ["-30.0 to -20.0", "-0.3 to 0.4", "24.0 to 31.0", "47.0 to 60.0"]),
    ([1, 2, 3, 9, 9, 9, 9, 9, 9, 10, 11, 1200], ["1 to 3", "9", "10 to 1,200"]),
])  # fmt: skip
def test_the_bins_of_a_column_are_told_apart_with_one_number_of_decimals(values, names):
    assert [part.name for part in answers.parts_of(pd.Series(values, dtype=float))] == names


@given(st.lists(st.integers(-(10**9), 10**9), min_size=7, unique=True))
def test_no_two_bins_of_numbers_share_a_border(values):
    ends = [end for part in answers.parts_of(pd.Series(values) / 10_000) for end in part.name.split(" to ")]
    assert len(ends) == len({*ends})
    assert len({len(end.partition(".")[2]) for end in ends}) == 1


def test_past_twenty_values_the_rarest_stand_together():
    parts = answers.parts_of(pd.Series([f"camera {i}" for i in range(25) for _ in range(30 - i)]))
    assert len(parts) == 21 and parts[0].name == "camera 0" and parts[-1].name == "others (5 values)"


@given(st.lists(st.none() | st.floats(-1e9, 1e9)) | st.lists(st.none() | st.text(max_size=2)) | st.lists(st.booleans()))
def test_every_clip_is_in_exactly_one_part(values):
    parts = answers.parts_of(pd.Series(values, dtype=None if values else object))
    assert sum((part.inside_C.astype(int) for part in parts), np.zeros(len(values), int)).tolist() == [1] * len(values)


def test_reasons_and_excluded_clips_are_counted(workbench):
    run_id = run_of(workbench, "new")
    counted = answers.reasons(workbench, run_id)
    assert list(zip(counted["reason"], counted["n"])) == [("well-formed", 2), ("no_answer", 1)]
    left_out = answers.excluded(workbench, "home", "test")
    assert list(zip(left_out["reason"], left_out["n"])) == [("not_a_video", 1)]


def test_a_slice_leaves_the_clips_whose_answer_rests_on_its_traces(workbench):
    new, old = (run_of(workbench, system) for system in ("new", "old"))
    workbench.save_slice("long", TraceFilter(min_tokens=10))
    workbench.save_slice("of the new run", TraceFilter(run=new, max_tokens=10))

    def within(run_id: str, name: str, split: str = "test") -> list[str]:
        return sorted(answers.within(workbench, run_id, workbench.run(run_id).about["name"], split, "raw", name))

    assert within(new, "long") == within(old, "long") == ["b", "c"] and within(new, "of the new run") == ["a", "b"]
    for run_id, name, split in ((old, "of the new run", "test"), (new, "long", "validation")):
        with pytest.raises(StoreError, match="has no trace of this run on this split: it holds [24] traces"):
            within(run_id, name, split)
    found = answers.reasons(workbench, new, "long")
    assert sorted(zip(found["reason"], found["n"], found["share"])) == [("no_answer", 1, 0.5), ("well-formed", 1, 0.5)]


def test_an_answer_without_a_trace_counts_where_the_slice_is_about_its_clip(workbench):
    with workbench.start_run("evaluate", {}, name="labels", dataset="home") as run:
        run.append("predictions", [
            {"clip_id": clip, "split": "test", "system": "labels", "method": "raw", "control": "none",
             "true_label": "cat", "trace_id": trace_id(run.id, clip, 0), "provisional": "cat", "predicted": "cat"}
            for clip in CLIPS
        ])  # fmt: skip
        run.finish({})
    workbench.refresh()
    workbench.save_slice("long", TraceFilter(min_tokens=10))
    assert sorted(answers.within(workbench, run.id, "labels", "test", "raw", "long")) == ["b", "c"]
