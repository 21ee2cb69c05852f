"""Calibration: all traces are learned from, each clip counts alike, temperatures come from validation, a kill
changes nothing."""

import json

import numpy as np
import pandas as pd
import pytest
from embedded import assert_same_weights, lora_of, survivor, undisturbed

from deepintuit import calibrate, cli, coldstart, evaluate, grpo
from deepintuit.errors import ConfigError, DataError, StoreError
from deepintuit.reasoner import Task
from deepintuit_app.job_requests import rerun

pytest_plugins = ["embedded"]


def test_wrong_and_malformed_traces_stay_and_every_clip_counts_alike(bench, calibrated):
    traces = calibrated.read("traces")
    by_clip = traces.groupby("clip_id")
    assert set(by_clip.size()) == {3} and set(by_clip["sample"].agg(tuple)) == {(0, 1, 2)}, (
        "two sampled ones and a greedy one"
    )
    learned = traces[traces["clip_id"].isin(bench.manifest.usable("calibration")["clip_id"])]
    assert (learned["provisional"] != learned["true_label"]).any()
    assert calibrated.summary["malformed_rows"] == learned["reason"].notna().sum() > 0
    assert calibrated.summary["rows"] == len(learned) == 3 * calibrated.summary["clips"]
    assert set(traces.loc[traces["reason"].notna(), "provisional"]) == {"none"}


def test_calibration_clips_are_nobody_elses(bench, cold, calibrated):
    seen = {split: set(bench.manifest.usable(split)["clip_id"]) for split in ("coldstart", "grpo", "test")}
    used = set(calibrated.read("traces")["clip_id"])
    assert all(used.isdisjoint(clips) for clips in seen.values())
    assert used == set(bench.manifest.usable("calibration")["clip_id"]) | set(
        bench.manifest.usable("validation")["clip_id"]
    )


def test_each_way_has_a_positive_temperature_fitted_on_validation(bench, calibrated):
    fitted = json.loads((calibrated.checkpoint / calibrate.CALIBRATION).read_text())
    assert set(fitted) == {"label_likelihood", "linear_head", "vote", "mean_likelihood"}
    for way in fitted.values():
        assert (
            way["temperature"] > 0 and np.isfinite(way["nll"]) and way["n"] == len(bench.manifest.usable("validation"))
        )


def test_label_order_differs_from_row_to_row_and_is_the_same_again(bench, cold):
    orders = [calibrate._order(f"0/{row}", 6) for row in range(40)]
    assert orders == [calibrate._order(f"0/{row}", 6) for row in range(40)]
    assert all(sorted(order) == list(range(6)) for order in orders) and len(set(map(tuple, orders))) > 30
    task = Task(bench.path, bench.settings())
    clip = task.clips("calibration")[0]
    trace = task.parse("<think> a </think><answer> theft </answer>", False)
    prompts = {task.calibrator_prompt(clip.clip_id, trace, order) for order in orders}
    assert len(prompts) == len(set(map(tuple, orders))), "the order reaches the prompt"


def test_linear_head_learns_what_hidden_states_hold_even_with_classes_missing():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 12)) * 2
    targets, truth = rng.integers(0, 4, 200), rng.integers(0, 4, 80)
    hidden, held_out = (centres[y] + rng.normal(size=(len(y), 12)) for y in (targets, truth))
    head = calibrate.fit_head(hidden, targets, held_out, truth, classes=6)
    assert (head(held_out).argmax(1) == truth).mean() > 0.8
    two = targets < 2
    head = calibrate.fit_head(hidden[two], targets[two], held_out[truth < 2], truth[truth < 2], classes=6)
    assert (head(held_out[truth < 2]).argmax(1) == truth[truth < 2]).mean() > 0.8


def test_training_stops_early_and_keeps_the_best_epoch(bench, cold):
    config = bench.settings("calibrate.epochs=12", "calibrate.patience=1", "calibrate.learning_rate=5e-3")
    run = calibrate.run(bench.workbench, config, reasoner=cold.id, name="early", progress=False)
    nll = run.read("steps").query("name == 'validation_nll'").sort_values("step")["value"].to_numpy()
    best = int(nll.argmin())
    assert len(nll) == max(best + 2, 10) < 12, "one epoch without a better one ends it, once the learning rate is low"
    assert run.summary["validation_nll"] == pytest.approx(nll[best]) and run.summary["best_epoch"] == best + 1


def test_several_traces_at_temperature_zero_are_refused(bench, cold):
    with pytest.raises(ConfigError, match="temperature"):
        calibrate.run(bench.workbench, bench.settings("calibrate.temperature=0"), reasoner=cold.id, progress=False)


@pytest.mark.parametrize("split", ["calibration", "validation", "coldstart", "grpo"])
def test_a_split_of_one_class_is_refused_before_anything_is_trained(bench, cold, tmp_path, split):
    own = bench.copy(tmp_path / "own")
    manifest = own.manifest
    manifest.frame.loc[manifest.frame["split"] == split, "label"] = "stray"
    manifest.save()
    known = len(own.workbench.runs())
    with pytest.raises(DataError, match=f"clips of the split '{split}' are 'stray'"):
        if split == "coldstart":
            coldstart.run(own.workbench, own.settings("coldstart.target=label"), teacher=None, progress=False)
        elif split == "grpo":
            grpo.run(own.workbench, own.settings(), start=cold.id, progress=False)
        else:
            calibrate.run(own.workbench, own.settings(), reasoner=cold.id, progress=False)
    assert len(own.workbench.runs()) == known


@pytest.mark.thorough
@pytest.mark.parametrize("weights", ["full", "lora"])
def test_a_killed_run_continues_to_the_same_calibrator(bench, cold, cold_lora, tmp_path, weights):
    reasoner, model = (cold, ()) if weights == "full" else (cold_lora, lora_of(cold))
    one, other = bench.copy(tmp_path / "one"), bench.copy(tmp_path / "other")
    sets = (
        *model,
        "calibrate.epochs=3",
        "calibrate.save_steps=2",
        "calibrate.patience=3",
        "calibrate.learning_rate=3e-3",
        "seed=5",
    )
    whole = undisturbed(one, "calibrate", sets, reasoner=reasoner.id)
    moments = [
        "traces-00000.parquet",
        "traces-00002.parquet",
        "checkpoint/head.safetensors",
        "training/checkpoint-4/complete",
        "training/checkpoint-8/complete",
        "checkpoint/trained.json",
    ]
    run, kills = survivor(other, "calibrate", moments, sets, reasoner=reasoner.id)
    assert kills == len(moments)
    assert_same_weights(whole, run)
    columns = ["clip_id", "sample", "text"]
    pd.testing.assert_frame_equal(
        *(r.read("traces")[columns].sort_values(columns, ignore_index=True) for r in (whole, run))
    )
    assert sum(1 for _ in run.path.glob("traces-*.parquet")) == sum(1 for _ in whole.path.glob("traces-*.parquet")), (
        "no batch twice"
    )
    mine, yours = (json.loads((r.checkpoint / calibrate.CALIBRATION).read_text()) for r in (whole, run))
    for way in mine:
        chosen = [[-1.0 if t is None else t for t in one[way].pop("thresholds").values()] for one in (mine, yours)]
        sets = [one[way].pop("conformal")["0.9"] for one in (mine, yours)]
        assert sets[0] == pytest.approx(sets[1], rel=1e-4)
        assert mine[way] == pytest.approx(yours[way], rel=1e-4) and chosen[0] == pytest.approx(chosen[1], rel=1e-4)


def test_a_run_that_holds_no_reasoner_is_refused_with_the_one_that_it_stands_on(bench, cold, calibrated):
    known = len(bench.workbench.runs())
    settings = bench.settings()
    stages = (
        lambda run: calibrate.run(bench.workbench, settings, reasoner=run, progress=False),
        lambda run: evaluate.run(bench.workbench, settings, reasoner=run, system="named", progress=False),
        lambda run: grpo.run(bench.workbench, settings, start=run, progress=False),
    )
    for stage in stages:
        with pytest.raises(StoreError) as caught:
            stage(calibrated.id)
        assert caught.value.what == f"run {calibrated.id!r} is of the stage calibrate, and holds no reasoner"
        assert caught.value.why == "the stages coldstart and grpo make one"
        assert caught.value.todo == f"Give the one that it stands on: {cold.id}"
    with pytest.raises(StoreError, match="Give a run of one of these stages"):  # a teacher stands on none
        stages[0](cold.config["teacher"])
    assert len(bench.workbench.runs()) == known


def test_a_run_that_no_command_made_has_one_that_finds_it(bench, cold, calibrated):
    for run in (cold, calibrated):
        words = rerun(bench.workbench, run.about)
        assert words[:2] == ["deepintuit", run.stage]
        before = {one.id for one in bench.workbench.runs()}
        assert cli.main([*words[1:], "--quiet", "--workbench", str(bench.path)]) == 0
        assert {one.id for one in bench.workbench.runs()} == before
    typed = [*words[:2], "--set", "seed=1"]
    assert rerun(bench.workbench, run.about | {"command": typed}) == typed
