"""Evaluation: every row of every way and control, nothing fitted on what is scored, baselines beside, a kill changes
nothing."""

import json

import numpy as np
import pandas as pd
import pytest
from embedded import survivor, undisturbed
from hypothesis import given
from hypothesis import strategies as st

from deepintuit import calibrate, coldstart, config, evaluate, teach
from deepintuit.data import Manifest
from deepintuit.data.manifest import rows_to_table, to_frame
from deepintuit.errors import StoreError
from deepintuit.labels import LabelSet
from deepintuit.reasoner import LocalReasoner, Task, answer_distribution
from deepintuit.store import Workbench
from deepintuit.vlm import VLM

pytest_plugins = ["embedded"]

WAYS = [("label_likelihood", "none"), ("label_likelihood", "trace_blanked"), ("label_likelihood", "trace_swapped"),
        ("label_likelihood", "video_blanked"), ("linear_head", "none"), ("raw", "none")]  # fmt: skip


@pytest.fixture(scope="module")
def scored(bench, cold, calibrated):
    """Once with several traces a clip, so that every way is there."""
    return evaluate.run(
        bench.workbench, bench.settings("evaluate.traces=2"), reasoner=cold.id, calibrator=calibrated.id, progress=False
    )


def test_every_way_and_control_has_one_row_a_clip(bench, scored):
    rows = scored.read("predictions")
    clips = set(bench.manifest.usable("test")["clip_id"])
    found = dict(iter(rows.groupby(["method", "control"])))
    assert sorted(found) == sorted([*WAYS, ("vote", "none"), ("mean_likelihood", "none")])
    for part in found.values():
        assert len(part) == len(clips) and set(part["clip_id"]) == clips
        probs = np.stack(part["probs"])
        np.testing.assert_allclose(probs.sum(1), 1)
    assert set(rows["system"]) == {"cold start"} and scored.summary["clips"] == len(clips)
    likelihood = found["label_likelihood", "none"]
    assert likelihood["outside_mass"].between(0, 1).all() and found["linear_head", "none"]["outside_mass"].isna().all()


def test_a_teacher_is_scored_by_what_it_wrote(bench, tmp_path):
    own = bench.copy(tmp_path / "own")
    settings = own.settings("teach.source=homecam", "teach.traces=2")
    with pytest.raises(StoreError, match="holds no trace of the split 'test'"):
        other = teach.run(own.workbench, settings, progress=False)
        evaluate.run(own.workbench, settings, reasoner=other.id, progress=False)
    source = teach.run(own.workbench, settings, split="test", progress=False)
    scored = evaluate.run(own.workbench, settings, reasoner=source.id, progress=False)
    rows, traces = scored.read("predictions"), source.read("traces")
    assert set(rows["clip_id"]) == set(own.manifest.usable("test")["clip_id"]) and set(rows["method"]) == {"raw"}
    assert set(rows["system"]) == {"teacher, homecam"}
    for row in rows.itertuples():
        votes = traces[traces["clip_id"] == row.clip_id].sort_values("sample")["provisional"]
        assert row.provisional == votes.iloc[0] and row.predicted in set(votes)
        counts = np.array([(votes == label).sum() for label in row.labels])
        np.testing.assert_allclose(row.probs, (counts + 1) / (counts.sum() + len(counts)))
    assert evaluate.run(own.workbench, settings, reasoner=source.id, progress=False).id == scored.id


def test_a_malformed_trace_predicts_none_and_says_nothing(scored):
    rows = scored.read("predictions")
    raw = rows[rows["method"] == "raw"].merge(
        scored.read("traces")[["trace_id", "reason", "provisional"]], on="trace_id", suffixes=("", "_read")
    )
    assert (raw["predicted"] == raw["provisional_read"]).all()
    for row in raw.itertuples():
        top = max(row.probs)
        if pd.isna(row.reason):
            assert row.labels[int(np.argmax(row.probs))] == row.predicted or top == pytest.approx(1 / 6)
        else:
            assert row.predicted == "none" and list(row.probs) == pytest.approx([1 / 6] * 6)


def test_raw_probability_is_that_of_the_answer_tokens(bench, cold, scored):
    """A slow reading of the same rule: decode token by token, add up those that reach into the answer."""
    config = bench.settings()
    vlm, task = VLM.load(config.model, config.video, checkpoint=cold.checkpoint), Task(bench.path, config)
    row = next(
        r
        for r in scored.read("traces").itertuples()
        if r.sample == 0 and r.reason is None or r.sample == 0 and pd.isna(r.reason)
    )
    trace, total, place = task.parse(row.text, row.truncated), 0.0, 0
    start, end = trace.spans[trace.grammar.answer.name]
    for number, logprob in enumerate(row.token_logprobs):
        reached = len(vlm.tokenizer.decode([int(i) for i in row.token_ids[: number + 1]], skip_special_tokens=True))
        total += logprob if place < end and reached > start else 0.0
        place = reached
    found = answer_distribution(task, trace, row.token_ids, row.token_logprobs, vlm.tokenizer)
    assert found[task.labels.index(trace.label)] == pytest.approx(max(np.exp(total), 1 / 6))


@given(n=st.integers(2, 300), seed=st.integers(0, 1000))
def test_swapped_traces_are_always_another_clips(n, seed):
    order = evaluate._derangement(n, seed)
    assert sorted(order) == list(range(n)) and (order != np.arange(n)).all()


def test_nothing_is_fitted_on_the_clips_that_are_scored(bench, cold, calibrated, scored, tmp_path):
    fitted = json.loads((calibrated.checkpoint / calibrate.CALIBRATION).read_text())
    rows = scored.read("predictions")
    for method, part in rows[rows["method"] != "raw"].groupby("method"):
        assert set(part["temperature"]) == {fitted[method]["temperature"]}
    own = bench.copy(tmp_path / "own")  # other labels on the test clips change no probability
    manifest = own.manifest
    manifest.frame.loc[manifest.frame["split"] == "test", "label"] = "stray"
    manifest.save()
    again = evaluate.run(
        own.workbench,
        own.settings("evaluate.traces=2"),
        reasoner=cold.id,
        calibrator=calibrated.id,
        system="relabelled",
        progress=False,
    )
    keys = ["method", "control", "clip_id"]
    mine, yours = (r.read("predictions").sort_values(keys)["probs"] for r in (scored, again))
    np.testing.assert_allclose(np.stack(mine), np.stack(yours), atol=1e-6)


def test_baselines_need_no_model_and_stand_beside(bench):
    run = evaluate.baselines(bench.workbench, bench.settings())
    rows = run.read("predictions")
    assert set(rows["system"]) == {"majority", "metadata"}
    training = bench.manifest.usable()
    training = training[training["split"].isin(["coldstart", "grpo", "calibration"])]["label"]
    said = set(rows.loc[rows["system"] == "majority", "predicted"])
    assert len(said) == 1 and training.value_counts()[said.pop()] == training.value_counts().max()


# Baselines on clips that are texts and numbers alone


def baselines_of(tmp_path, titles: list[str], given: list[str], labels=("fall", "walk"), **columns):
    """The baselines' rows by system, and what was left out, of a manifest in which every second clip is a test clip."""
    blank = {"also_at": [], "notes": {}, "path": "a.mp4", "width": 64, "height": 64, "fps": 8.0, "seconds": 2.0,
             "frames": 16, "audio": False, "bytes": 1000}  # fmt: skip
    rows = [
        {**blank, **columns, "clip_id": f"{i:03d}", "label": label, "group": str(i), "text": {"title": title},
         "split": "test" if i % 2 else "coldstart"}
        for i, (title, label) in enumerate(zip(titles, given, strict=True))
    ]  # fmt: skip
    Manifest(tmp_path, "made", to_frame(rows_to_table(rows), tmp_path), LabelSet.of("made", labels)).save()
    settings = config.load(None, [f"workbench={tmp_path}", "clips.dataset=made", "clips.text_fields=title"])
    run = evaluate.baselines(Workbench(tmp_path), settings)
    return dict(iter(run.read("predictions").groupby("system"))), run.summary["left_out"]


def right(rows: pd.DataFrame) -> float:
    return (rows["predicted"] == rows["true_label"]).mean()


@pytest.mark.parametrize(
    "fall, walk",
    [
        ("老人在厨房里跌倒了", "孩子在公园里散步"),
        ("おばあさんが転倒した", "犬と散歩する"),
        ("คนล้มในครัว", "คนเดินในสวน"),
        ("🤕🚑", "🚶🌳"),
        ("넘어짐이발생", "산책하는사람"),
        ("e\u0301chec", "marche"),
    ],
)
def test_a_title_that_tells_the_label_is_seen_in_every_script(tmp_path, fall, walk):
    """Each title says what happens once, in one run of characters, among others that differ from clip to clip."""
    others = [chr(0x4E00 + 37 * i) * 2 for i in range(40)]
    titles = [f"{other}{fall if i // 2 % 2 else walk}{other}" for i, other in enumerate(others)]
    found, left_out = baselines_of(tmp_path, titles, ["fall" if i // 2 % 2 else "walk" for i in range(40)])
    assert right(found["text"]) == 1 and right(found["majority"]) == 0.5 and not left_out


@pytest.mark.parametrize("titles", [[""] * 12, [chr(0x4E00 + i) for i in range(12)]])
def test_texts_that_have_nothing_in_common_are_left_out_with_a_remark(tmp_path, titles):
    found, left_out = baselines_of(tmp_path, titles, ["fall", "fall", "walk", "walk"] * 3)
    assert set(found) == {"majority", "metadata"} and "occurs twice" in left_out["text"]


def test_one_class_in_training_keeps_the_majority_and_says_so(tmp_path):
    given = ["fall" if i % 2 == 0 else "walk" for i in range(12)]  # all that is trained on falls
    found, left_out = baselines_of(tmp_path, ["a title"] * 12, given)
    assert set(found) == {"majority"} and set(found["majority"]["predicted"]) == {"fall"}
    assert set(left_out) == {"metadata", "text"} and "all 6 training clips are 'fall'" in left_out["text"]


def test_baselines_stand_without_metadata_and_with_a_class_that_training_lacks(tmp_path):
    given = [("fall", "walk")[i // 2 % 2] if i % 2 == 0 else "sit" for i in range(12)]
    nothing = dict.fromkeys(("fps", "seconds", "frames", "audio", "bytes"))
    found, left_out = baselines_of(tmp_path, ["fall now", "walk now"] * 6, given, ("fall", "walk", "sit"), **nothing)
    assert set(found) == {"majority", "metadata", "text"} and not left_out
    for rows in found.values():
        probs = np.stack(rows["probs"])
        assert np.isfinite(probs).all() and right(rows) == 0 and (probs[:, 2] > 0).all()


def test_labels_only_and_zero_shot_are_scored_too(bench):
    config = bench.settings("coldstart.target=label", "coldstart.epochs=1")
    labels = coldstart.run(bench.workbench, config, teacher=None, name="labels", progress=False)
    run = evaluate.run(bench.workbench, config, reasoner=labels.id, progress=False)
    assert (
        set(run.read("predictions")["method"]) == {"raw", "label_likelihood"} and run.summary["system"] == "labels only"
    )
    zero = evaluate.run(bench.workbench, config, reasoner=None, progress=False)
    assert zero.summary["system"] == "zero-shot" and set(zero.read("predictions")["predicted"]) == {"none"}, (
        "random weights write no trace"
    )


def test_a_deleted_video_is_counted_and_not_replaced(bench, cold, calibrated, tmp_path):
    own = bench.copy(tmp_path / "own")
    manifest = own.manifest
    lost = manifest.usable("test")["clip_id"].iloc[0]
    manifest.frame.loc[manifest.frame["clip_id"] == lost, "path"] = str(tmp_path / "deleted.mp4")
    manifest.save()
    (own.path / "cache").rename(tmp_path / "elsewhere")
    run = evaluate.run(
        own.workbench, own.settings(), reasoner=cold.id, calibrator=calibrated.id, system="less one", progress=False
    )
    assert run.finished and list(run.summary["unreadable"]) == [lost] and run.summary["clips"] == 11
    rows = run.read("predictions")
    assert lost not in set(rows["clip_id"]) and set(rows.groupby(["method", "control"]).size()) == {11}


def test_a_calibrator_that_is_not_there_is_refused_before_a_run_begins(bench, cold):
    known = len(bench.workbench.runs())
    for calibrator in ("calibrate-nobody", cold.id):
        with pytest.raises(StoreError):
            evaluate.run(
                bench.workbench,
                bench.settings(),
                reasoner=cold.id,
                calibrator=calibrator,
                system="never",
                progress=False,
            )
    assert len(bench.workbench.runs()) == known


def test_a_killed_run_continues_to_the_same_predictions(bench, cold, calibrated, tmp_path):
    one, other = bench.copy(tmp_path / "one"), bench.copy(tmp_path / "other")
    sets = ("evaluate.traces=2", "sampling.clips_per_batch=4")
    arguments = dict(reasoner=cold.id, calibrator=calibrated.id, system="killed")
    whole = undisturbed(one, "evaluate", sets, **arguments)
    moments = [
        "traces-00000.parquet",
        "traces-00001.parquet",
        0.3,
        "predictions-00000.parquet",
        "predictions-00003.parquet",
    ]
    run, kills = survivor(other, "evaluate", moments, sets, **arguments)
    assert kills == len(moments)
    for grain, columns in {
        "traces": ["clip_id", "sample", "text"],
        "predictions": ["method", "control", "clip_id", "predicted"],
    }.items():
        mine, yours = (r.read(grain).sort_values(columns[:3], ignore_index=True) for r in (whole, run))
        pd.testing.assert_frame_equal(mine[columns], yours[columns])
        assert len(list(run.path.glob(f"{grain}-*.parquet"))) == len(list(whole.path.glob(f"{grain}-*.parquet"))), (
            "nothing is done twice"
        )
    np.testing.assert_allclose(
        *(np.stack(r.read("predictions").sort_values(["method", "control", "clip_id"])["probs"]) for r in (whole, run)),
        atol=1e-6,
    )


def test_greedy_traces_are_the_same_whatever_is_beside_them(bench, cold, scored):
    config = bench.settings()
    vlm = VLM.load(config.model, config.video, checkpoint=cold.checkpoint, cache=bench.workbench.cache)
    reasoner = LocalReasoner(vlm, Task(bench.path, config))
    alone = reasoner.groups(reasoner.task.clips("test")[:1], [0], temperature=0.0, max_tokens=24)[0]
    stored = scored.read("traces").query("sample == 0").set_index("clip_id")["text"]
    assert alone[2][0].text == stored[alone[0].clip_id]
