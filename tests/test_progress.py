"""Runs asked of the index, and what is said of a training's health."""

import json
import os
import time

import numpy as np
import pandas as pd
import pytest

from deepintuit_analysis import Workbench
from deepintuit_analysis.index import progress
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.report.curves import training_figure
from deepintuit_analysis.report.health import Remark, remarks


@pytest.fixture
def workbench(tmp_path) -> Workbench:
    """A teacher, a cold start that imitates it, GRPO with two updates, a calibrator, an evaluation that names both."""
    workbench = Workbench(tmp_path)

    def made(stage: str, config: dict | None = None, **more) -> str:
        with workbench.start_run(stage, config or {}, dataset="home", **more) as run:
            if stage == "grpo":
                for step in (0, 1):
                    rows = [
                        {"clip_id": clip, "sample": i, "step": step, "text": f"{clip} {i}", "true_label": "cat"}
                        for clip in "ab" for i in range(2)
                    ]  # fmt: skip
                    run.append("traces", rows)
                ids = run.read("traces").query("step == 1")["trace_id"]
                run.append(
                    "scores",
                    [
                        {"trace_id": t, "name": n, "value": v}
                        for t in ids
                        for n, v in (("reward", 2.0), ("advantage", -0.5))
                    ],
                )
                run.append("steps", [{"step": s, "name": "reward", "value": float(s)} for s in range(20)])
            if stage == "evaluate":
                run.append("predictions", [
                    {"clip_id": clip, "split": "test", "system": "s", "method": "raw", "control": control,
                     "true_label": "cat", "predicted": said}
                    for clip, said in (("a", "cat"), ("b", "dog"), ("c", "none"))
                    for control in ("none", "trace_blanked")
                ])  # fmt: skip
            run.finish({"clips": 2})
            return run.id

    teacher = made("teach")
    cold = made("coldstart", {"teacher": teacher})
    refined = made("grpo", parent=cold)
    calibrator = made("calibrate", parent=refined)
    made("evaluate", {"calibrator": calibrator}, parent=refined)
    workbench.refresh()
    return workbench


def ids(workbench: Workbench) -> dict[str, str]:
    return {run.stage: run.id for run in workbench.runs()}


def test_runs_come_newest_first_and_are_filtered_by_stage_and_dataset(workbench):
    known = ids(workbench)
    assert list(progress.runs(workbench)["run_id"]) == [run.id for run in reversed(workbench.runs())]
    assert list(progress.runs(workbench, "grpo")["run_id"]) == [known["grpo"]]
    assert progress.runs(workbench, dataset="elsewhere").empty
    assert progress.runs(workbench, "grpo")["summary"][0] == {"clips": 2}


def test_accuracies_leave_controls_out_and_count_no_answer(workbench):
    [row] = progress.accuracies(workbench).to_dict("records")
    assert (row["n"], row["right"], row["no_answer"], row["method"]) == (3, 1, 1, "raw")


def test_ends_are_of_the_updates_that_remarks_and_the_title_of_the_curves_speak_of(workbench):
    [row] = progress.ends(workbench).to_dict("records")
    assert (row["n"], row["first"], row["last"], row["newest"], row["width"]) == (20, 2, 17, 19, 5)
    steps = progress.steps(workbench, row["run_id"])
    assert remarks(steps)[0].text.startswith("The reward rose from 2.00 to 17.00")
    steps["name"] = "accuracy"
    title = training_figure(steps.assign(value=steps["value"] / 20), {"grpo": {"temperature": 0.7}}).layout.title.text
    assert "10 in the first 5 updates, 85 in the last 5" in title
    assert "sampled at temperature 0.7 on training clips" in title


def test_a_run_stands_on_parent_teacher_and_calibrator(workbench):
    known = ids(workbench)
    above, below = progress.lineage(workbench, known["evaluate"])
    assert [one["run_id"] for one in above] == [known[s] for s in ("teach", "coldstart", "grpo", "calibrate")]
    assert below == []
    above, below = progress.lineage(workbench, known["grpo"])
    assert [(one["stage"], one["role"]) for one in above] == [("teach", "teacher"), ("coldstart", "parent")]
    assert {one["stage"] for one in below} == {"calibrate", "evaluate"}
    assert progress.lineage(workbench, "nobody") == ([], [])


def test_rollouts_of_an_update_carry_their_scores_where_they_have_some(workbench):
    run = ids(workbench)["grpo"]
    assert progress.rollout_steps(workbench, run) == [0, 1]
    rows = progress.rollouts(workbench, run, 1)
    assert list(zip(rows["clip_id"], rows["sample"])) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert set(rows["reward"]) == {2.0} and set(rows["advantage"]) == {-0.5} and rows["format"].isna().all()
    assert progress.rollouts(workbench, run, 0)["reward"].isna().all()
    texts = progress.texts(workbench, list(rows["trace_id"]))
    assert [texts[trace] for trace in rows["trace_id"]] == ["a 0", "a 1", "b 0", "b 1"]
    workbench.save_slice("a's first", TraceFilter(clip="a", sample=0, step=1))
    assert list(progress.rollouts(workbench, run, 1, "a's first")["sample"]) == [0, 1], "its whole group"
    assert progress.rollouts(workbench, run, 0, "a's first").empty


def test_a_run_is_at_work_while_its_process_holds_it(workbench):
    finished = ids(workbench)["grpo"]
    assert progress.at_work(workbench, "nobody") is False
    run = workbench.start_run("teach", {}, name="second")
    assert progress.at_work(workbench, run.id)
    lock = run.path / "lock"
    lock.write_text(f"process {os.getpid()}, since 2001-01-01T00:00:00.000+00:00\n")
    assert not progress.at_work(workbench, run.id), "the pid belonged to an earlier process"
    (workbench.path / "runs" / finished / "lock").write_text("process 99999999, since 2026-01-01T00:00:00+00:00\n")
    assert not progress.at_work(workbench, finished)


def test_a_run_without_a_name_is_no_text_called_nan(workbench):
    above, _ = progress.lineage(workbench, ids(workbench)["grpo"])
    assert json.dumps(above).count("NaN") == 0


# Health


def course(**values) -> pd.DataFrame:
    """Steps of some numbers; a pair is a straight way from one to the other in 40 updates, with a little noise."""
    rng = np.random.default_rng(0)
    rows = []
    for name, given in values.items():
        way = np.linspace(*given, 40) + rng.normal(0, 0.01, 40) if isinstance(given, tuple) else np.array(given)
        rows += [{"step": step, "name": name, "value": value} for step, value in enumerate(way)]
    return pd.DataFrame(rows, columns=["step", "name", "value"])


def said(**values) -> list[Remark]:
    return remarks(course(**values))


def only(kind: str, **values) -> str:
    [remark] = said(**values)
    assert remark.kind == kind, remark
    return remark.text


def test_nothing_logged_nothing_said():
    assert said() == [] and said(something_else=(1, 2)) == []


def test_few_updates_are_no_trend():
    assert only("plain", reward=[1.0, 1.5, 2.0]) == "3 updates so far: too few to tell a trend from noise."


def test_a_reward_that_rises_is_said_with_its_noise():
    text = only("good", reward=(1.0, 1.8))
    assert text.startswith("The reward rose from 1.09 to 1.71 in 40 updates; noise alone makes ±0.0")


def test_a_reward_that_moves_less_than_its_noise_did_not_rise():
    rng = np.random.default_rng(1)
    text = only("warn", reward=list(1.5 + rng.normal(0, 0.2, 40)))
    assert text.startswith("The reward did not rise: it moved less than its own noise; it went from 1.5")
    assert "noise alone makes ±0." in text


def test_a_reward_that_falls_is_bad():
    assert (
        only("bad", reward=(1.8, 1.2)) == "The reward fell from 1.73 to 1.27 in 40 updates: the rate may be too high."
    )


def test_a_well_formed_share_that_falls_while_the_reward_rises_is_the_worst_remark():
    first, second = said(reward=(1.2, 1.8), well_formed=(0.96, 0.8))
    assert first.kind == "bad" and second.kind == "good"
    assert first.text == (
        "The well-formed share fell from 95 % to 82 % while the reward rose: the rate may be too high."
    )


def test_a_cold_start_that_cannot_write_the_grammar_is_told_so():
    assert only("bad", well_formed=(0.1, 0.1)).startswith(
        "Only 10 % of the traces are well-formed: train the cold start"
    )


def test_a_well_formed_share_that_holds_is_good():
    assert only("good", well_formed=(0.95, 0.96)) == "96 % of the traces are well-formed (at the beginning 95 %)."


def test_groups_that_teach_are_counted():
    assert only("good", zero_variance_share=(0.19, 0.19)).startswith("81 % of the groups teach (in the last 10 updates")
    text = only("warn", zero_variance_share=(0.7, 0.7))
    assert text.startswith("Only 30 % of the groups teach") and "grpo.dynamic_sampling" in text
    assert only("bad", zero_variance_share=(0.97, 0.97)).startswith("Only 3 % of the groups teach")


def test_entropy_that_collapses_or_grows_under_grpo_is_said():
    texts = [remark.text for remark in said(reward=(1, 1.5), entropy=(1.0, 0.01))]
    assert any(text.startswith("Entropy collapsed from 0.8") and "to 0.1" in text for text in texts)
    texts = [remark.text for remark in said(reward=(1, 1.5), entropy=(0.1, 1.0))]
    assert any(text.startswith("Entropy grew from 0.2") for text in texts)


def test_entropy_that_falls_while_imitating_is_no_remark():
    assert said(entropy=(1.0, 0.1)) == []


def test_lengths_that_run_away_and_traces_that_are_cut_are_said():
    assert only("warn", tokens_mean=(300, 100)).startswith("The traces became shorter: 27")
    assert only("warn", tokens_mean=(100, 300)).startswith("The traces became longer: 12")
    assert only("warn", truncated_share=(0.2, 0.2)) == "20 % of the traces are cut at the limit: raise grpo.max_tokens."


def test_a_training_loss_is_judged_only_where_no_reward_is():
    assert only("good", loss=(2.0, 0.5)).startswith("The training loss fell from 1.8")
    assert only("bad", loss=(0.5, 2.0)).startswith("The loss rose from 0.6")
    assert only("warn", loss=[1.0, 1.2] * 20).startswith("The loss did not fall: it moved less than its own noise")
    assert all("loss" not in remark.text for remark in said(loss=(0.5, 2.0), reward=(1, 2)))


def test_over_fitting_names_the_epoch_and_what_is_kept():
    text = only("warn", validation_nll=[0.5, 0.3, 0.35, 0.6])
    went = "validation NLL 0.300 at epoch 2, 0.600 at the last"
    assert text == f"Over-fits from epoch 3 of 4: {went}. The weights of epoch 2 are kept."
    assert only("bad", validation_nll=[0.3, 0.5]).startswith("Over-fits from epoch 2 of 2")
    assert only("good", validation_nll=[0.5, 0.3]) == (
        "Validation NLL still fell at the last epoch (0.500 → 0.300, epoch 2 of 2): more epochs may help."
    )


def test_a_number_that_is_none_is_the_first_remark():
    texts = [remark.text for remark in said(loss=[1.0, 0.9, float("nan"), float("nan"), 0.8, 0.7, 0.6, 0.5])]
    assert texts[0].startswith("The loss is not a number from update 2 on (2 of 8 updates)")


def test_a_rate_of_nought_is_said():
    assert only("bad", learning_rate=[0.0] * 8) == "The learning rate is 0 in all 8 updates: nothing can be learned."


def test_a_long_training_is_read_quickly():
    steps = course(
        **{name: list(np.random.default_rng(0).normal(size=20_000)) for name in ("reward", "entropy", "loss")}
    )
    began = time.perf_counter()
    remarks(steps)
    assert time.perf_counter() - began < 1
