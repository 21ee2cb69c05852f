"""Evaluation: every row of every way and control, nothing fitted on what is scored, baselines beside, a kill changes
nothing."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from embedded import short_trace, survivor, undisturbed
from hypothesis import given
from hypothesis import strategies as st

from deepintuit import baselines, calibrate, coldstart, config, evaluate, teach
from deepintuit.data import Manifest
from deepintuit.data.manifest import rows_to_table, to_frame
from deepintuit.errors import ConfigError, DataError, StoreError
from deepintuit.labels import LabelSet
from deepintuit.reasoner import (
    LocalReasoner,
    Opinion,
    Task,
    answer_distribution,
    fitted_ways,
    likelihood_scores,
    opinion_of,
    parsed,
)
from deepintuit.reasoner.controls import CONTROLS, Inputs, View, calibrator_of, derangement
from deepintuit.trace import THINK
from deepintuit.vlm import VLM, Budget
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import clips
from deepintuit_app import media
from deepintuit_app.context import AppContext

pytest_plugins = ["embedded"]

LABELS_ALONE = ("coldstart.target=label", "coldstart.epochs=1")
SHOWN = [("label_likelihood", control) for control in (*CONTROLS, "text_only")]
WAYS = [("label_likelihood", "none"), *SHOWN, ("linear_head", "none"), ("raw", "none")]


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
    for (_, control), part in found.items():
        if control == "trace_swapped_alike":  # of clips that are not alone with their conclusion
            concluded = part["provisional"].value_counts()
            assert set(part["clip_id"]) <= clips and (concluded > 1).all()
            continue
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
    order = derangement(n, seed)
    assert sorted(order) == list(range(n)) and (order != np.arange(n)).all()


@given(said=st.lists(st.sampled_from(("fall", "walk", "none")), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_controls_alter_one_input_and_leave_the_others(said, seed):
    labels, rng = LabelSet.of("three", ("fall", "walk", "sit")), np.random.default_rng(seed)
    own = [Opinion(conclusion, f"because {i}") for i, conclusion in enumerate(said)]
    truths = [labels.labels[k] for k in rng.integers(0, 3, len(said))]
    shown = {name: control(Inputs(own, truths, labels, seed)) for name, control in CONTROLS.items()}
    for i, (mine, truth) in enumerate(zip(own, truths)):
        found = {name: rows[i] for name, rows in shown.items()}
        assert found["trace_blanked"] == View(i, Opinion("none", ""))
        assert found["rationale_blanked"] == View(i, Opinion(mine.conclusion, ""))
        assert found["conclusion_none"] == View(i, Opinion("none", mine.rationale))
        assert found["video_blanked"] == View(None, mine)
        wrong = found["conclusion_wrong"]
        assert (wrong.video, wrong.opinion.rationale) == (i, mine.rationale)
        assert wrong.opinion.conclusion not in (truth, mine.conclusion) and wrong.opinion.conclusion in labels
        for name, alike in (("trace_swapped", own), ("trace_swapped_alike", [o for o in own if o[0] == mine[0]])):
            swapped = found[name]
            assert (swapped is None) == (len(alike) == 1)
            assert swapped is None or swapped.video == i and swapped.opinion in alike and swapped.opinion != mine
        other = found["video_swapped"]
        assert (other is None) == (len(own) == 1) and (other is None or other.video != i and other.opinion == mine)


def test_a_calibrator_trained_without_an_input_stands_as_a_row(bench, cold, calibrated, tmp_path):
    own = bench.copy(tmp_path / "own")
    blind = {}
    for source in ("video", "trace"):
        settings = own.settings("calibrate.epochs=2", f"calibrate.without={source}")
        blind[source] = calibrate.run(own.workbench, settings, reasoner=cold.id, progress=False)
        assert set(fitted_ways(blind[source])) == {"label_likelihood"}
        texts = (run.read("traces").set_index(["clip_id", "sample"])["text"] for run in (calibrated, blind[source]))
        pd.testing.assert_series_equal(*texts)  # taken over, not sampled again
    run = evaluate.run(
        own.workbench, own.settings(), reasoner=cold.id, calibrator=calibrated.id, system="controls", progress=False
    )
    rows = dict(iter(run.read("predictions").query("method == 'label_likelihood'").groupby("control")))
    task = Task(own.path, own.settings())
    for source, judge in blind.items():
        found = rows[f"trained_without_{source}"].sort_values("clip_id")
        vlm = VLM.load(own.settings().model, own.settings().video, checkpoint=judge.checkpoint)
        known = LocalReasoner(vlm, task).encode(task.clips("test"))
        traces = parsed(task, run.read("traces").set_index("clip_id").loc[[c.clip_id for c, _ in known]].reset_index())
        if source == "video":
            known = [(clip, encoded.blanked()) for clip, encoded in known]
        said = traces if source == "video" else [None] * len(known)
        temperature = fitted_ways(judge)["label_likelihood"]["temperature"]
        probs = likelihood_scores(vlm, task, known, said, 8).probs(temperature)
        order = np.argsort([clip.clip_id for clip, _ in known])
        np.testing.assert_allclose(np.stack(found["probs"]), probs[order], atol=1e-4)
        with pytest.raises(StoreError, match=f"trained without the {source}"):
            evaluate.run(own.workbench, own.settings(), reasoner=cold.id, calibrator=judge.id, progress=False)
    chosen = calibrator_of(own.workbench, cold.id)
    assert chosen not in {judge.id for judge in blind.values()}
    own.workbench.refresh()
    assert [row["calibrator"] for row in clips.reasoners(own.workbench) if row["run_id"] == cold.id] == [chosen]


def test_text_alone_learns_from_the_calibrators_own_traces(bench, tmp_path):
    """Traces whose last word gives the true label away; the test's too."""
    task = Task(bench.path, bench.settings())
    words = {label: chr(0x4E00 + 100 * k) for k, label in enumerate(task.labels)}

    def row(clip, sample):
        text = f"<think> a {words[clip.label]} </think><answer> {task.labels.labels[0]} </answer>"
        return {"clip_id": clip.clip_id, "sample": sample, "text": text, "truncated": False}

    own = bench.copy(tmp_path / "own")
    with own.workbench.start_run("calibrate", {"made": "up"}, dataset="homecam") as run:
        clips = [clip for split in ("calibration", "validation") for clip in task.clips(split)]
        run.append("traces", [row(clip, sample) for clip in clips for sample in range(2)])
        run.finish({})
    taught = {clip.label for clip in task.clips("calibration")}
    test = [clip for clip in task.clips("test") if clip.label in taught]
    said = [opinion_of(trace) for trace in parsed(task, [row(clip, 0) for clip in test])]
    score, temperatures = evaluate.others.text_alone(run, task, said, 0)
    assert (temperatures > 0).all() and len(set(temperatures)) == 1
    assert [task.labels.labels[k] for k in score.probs(1.0).argmax(1)] == [clip.label for clip in test]


def test_thresholds_are_chosen_on_validation_and_stored(calibrated, scored):
    fitted = fitted_ways(calibrated)
    chosen = scored.summary["thresholds"]
    assert set(chosen) == {"label_likelihood", "linear_head", "vote", "mean_likelihood"}
    for method, found in chosen.items():
        assert found["risks"] == fitted[method]["thresholds"] and found["n"] == fitted[method]["n"]
        assert set(found["risks"]) == {"0.01", "0.02", "0.05", "0.1"}


def test_systems_are_called_what_they_are(tmp_path):
    workbench = Workbench(tmp_path)

    numbers = itertools.count()

    def made(stage, parent=None, **config):
        with workbench.start_run(stage, config, parent=parent, name=str(next(numbers)), dataset="d") as run:
            run.finish({})
        return run.id

    def cold(parent=None, teacher="", target="trace", splits=("coldstart",), limit=0):
        settings = {"target": target, "splits": list(splits), "limit": limit}
        return made("coldstart", parent, coldstart=settings, teacher=teacher)

    every = ("coldstart", "grpo", "calibration")
    taught, own = (made("teach", teach={"source": source, "model": "m"}) for source in ("endpoint", "self"))
    refined = made("grpo", cold(teacher=taught))
    rationales = cold(teacher=own)
    names = {
        None: "zero-shot",
        taught: "teacher, m",
        cold(teacher=taught): "cold start",
        cold(teacher=taught, limit=50): "cold start, first 50",
        refined: "cold start + GRPO",
        made("grpo"): "GRPO alone",
        cold(target="label"): "labels only",
        cold(target="label", splits=every): "labels only, all clips",
        cold(target="label", splits=("coldstart", "grpo")): "labels only, coldstart and grpo clips",
        rationales: "own rationales",
        cold(rationales, target="label"): "RB-FT",
        cold(rationales, target="label", splits=every): "RB-FT, all clips",
        made("grpo", cold(rationales, target="label")): "RB-FT + GRPO",
        cold(refined, target="label"): "cold start + GRPO + labels",
        cold(cold(target="label"), teacher=taught): "labels only + cold start",
        cold(teacher="gone"): "cold start",
    }
    assert {run: evaluate.name_of(workbench, run) for run in names} == names


def test_a_servers_traces_are_calibrated_by_a_named_calibrator_or_refused(bench, cold, calibrated, tmp_path):
    own = bench.copy(tmp_path / "own")
    settings = own.settings("teach.source=homecam")
    source = teach.run(own.workbench, settings, split="test", progress=False)
    known = len(own.workbench.runs())
    for nobody in ("no-such-run", source.id):
        with pytest.raises(StoreError):
            evaluate.run(own.workbench, settings, reasoner=source.id, calibrator=nobody, progress=False)
    labels = own.settings(*LABELS_ALONE)
    bare = coldstart.run(own.workbench, labels, teacher=None, name="labels", progress=False)
    with pytest.raises(StoreError, match="answers by label alone"):
        evaluate.run(own.workbench, labels, reasoner=bare.id, calibrator=calibrated.id, progress=False)
    assert len(own.workbench.runs()) == known + 1
    run = evaluate.run(own.workbench, settings, reasoner=source.id, calibrator=calibrated.id, progress=False)
    rows = run.read("predictions")
    clips = set(own.manifest.usable("test")["clip_id"])
    found = rows[rows["method"] == "label_likelihood"].groupby("control")["clip_id"].apply(set)
    assert set(found.index) == {"none", *CONTROLS} and found["none"] == clips
    assert set(rows["trace_id"]) <= set(run.read("traces")["trace_id"]) and not rows["trace_id"].isna().any()
    assert run.summary["thresholds"]["label_likelihood"]["n"] > 0


def test_nothing_is_fitted_on_the_clips_that_are_scored(bench, cold, calibrated, scored, tmp_path):
    fitted = json.loads((calibrated.checkpoint / calibrate.CALIBRATION).read_text())
    rows = scored.read("predictions")
    fitted_here = (rows["method"] == "raw") | (rows["control"] == "text_only")  # whose T is of validation traces
    for method, part in rows[~fitted_here].groupby("method"):
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
    # A wrong conclusion is one that is not the true label, so that row alone knows it.
    mine, yours = (
        r.read("predictions").query("control != 'conclusion_wrong'").sort_values(keys)["probs"] for r in (scored, again)
    )
    np.testing.assert_allclose(np.stack(mine), np.stack(yours), atol=1e-6)


def test_baselines_need_no_model_and_stand_beside(bench):
    run = baselines.simple(bench.workbench, bench.settings())
    rows = run.read("predictions")
    assert set(rows["system"]) == {"majority", "metadata"}
    training = bench.manifest.usable()
    training = training[training["split"].isin(["coldstart", "grpo", "calibration"])]["label"]
    said = set(rows.loc[rows["system"] == "majority", "predicted"])
    assert len(said) == 1 and training.value_counts()[said.pop()] == training.value_counts().max()


# Baselines on clips that are texts and numbers alone


def baselines_of(tmp_path, titles: list[str], given: list[str], labels=("fall", "walk"), **columns):
    """The baselines' rows by system, and what was left out, of a manifest in which every second clip is a test clip."""
    blank = {
        "also_at": [],
        "notes": {},
        "path": "a.mp4",
        "width": 64,
        "height": 64,
        "fps": 8.0,
        "seconds": 2.0,
        "frames": 16,
        "audio": False,
        "bytes": 1000,
    }
    rows = [
        {**blank, **columns, "clip_id": f"{i:03d}", "label": label, "group": str(i), "text": {"title": title},
         "split": "test" if i % 2 else "coldstart"}
        for i, (title, label) in enumerate(zip(titles, given, strict=True))
    ]  # fmt: skip
    Manifest(tmp_path, "made", to_frame(rows_to_table(rows), tmp_path), LabelSet.of("made", labels)).save()
    settings = config.load(None, [f"workbench={tmp_path}", "clips.dataset=made", "clips.text_fields=title"])
    run = baselines.simple(Workbench(tmp_path), settings)
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


def test_a_thought_that_reaches_its_budget_is_closed_and_answers(bench, cold, scored):
    settings = bench.settings("evaluate.thinking_tokens=4", "evaluate.controls=false")
    run = evaluate.run(bench.workbench, settings, reasoner=cold.id, progress=False)
    own, free = (r.read("traces").query("sample == 0").set_index("clip_id").sort_index() for r in (run, scored))
    assert set(run.read("predictions")["system"]) == {"cold start (thought of 4 tokens)"}
    tokenizer = VLM.load(settings.model, settings.video, checkpoint=cold.checkpoint).tokenizer
    ids = tokenizer.encode(" </think><answer>", add_special_tokens=False)
    end = 4 + len(ids)
    for clip_id, row in own.iterrows():
        assert list(row["token_ids"][:4]) == list(free["token_ids"][clip_id][:4]), "what is drawn before stays"
        assert list(row["token_ids"][4:end]) == ids and not np.any(row["token_logprobs"][4:end])
        assert np.all(row["token_logprobs"][end:] < 0)
    written = re.compile(rf"<think> \w+ \w+ </think><answer> ({'|'.join(bench.manifest.labels)})\b")
    assert all(map(written.match, own["text"])), "the answer is its own"
    with pytest.raises(ConfigError, match="none would be left for an answer"):
        evaluate.run(bench.workbench, bench.settings("evaluate.thinking_tokens=20"), reasoner=cold.id, progress=False)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("", False),
        ("<thi", False),
        ("<think> ", False),  # empty, it would be no thought
        ("<think> It is", True),
        ("<think> It is </", False),  # it closes itself
        ("<think> It is </think", False),
        ("<think> 1 < 2", True),
        ("<think> It is </think>", None),
        (r"\boxed{theft}<think> It", True),
    ],
)
def test_a_budget_closes_a_thought_that_has_begun_and_does_not_close_itself(text, state):
    assert Budget(THINK, 1, (1,)).state(text) is state


def test_distorted_frames_are_others_for_the_same_moments_and_rows_and_pages_say_so(bench, cold, scored, tmp_path):
    settings = bench.settings(
        "evaluate.distortion=occlusion", "evaluate.distortion_strength=1", "evaluate.controls=false"
    )
    run = evaluate.run(bench.workbench, settings, reasoner=cold.id, progress=False)
    own, clean = (r.read("traces").query("sample == 0").set_index("clip_id") for r in (run, scored))
    assert set(run.read("predictions")["system"]) == {"cold start (occlusion 1)"}
    assert (own["frame_hash"] != clean["frame_hash"][own.index]).all()
    assert [list(t) for t in own["frame_times"]] == [list(t) for t in clean["frame_times"][own.index]]
    assert all(list(own["token_logprobs"][c]) != list(clean["token_logprobs"][c]) for c in own.index)
    assert evaluate.run(bench.workbench, settings, reasoner=cold.id, progress=False).id == run.id
    shown = media.seen(AppContext(bench.copy(tmp_path / "own").path), own["trace_id"].iloc[0])
    assert len(shown) == len(own["frame_times"].iloc[0]) and len(set(shown)) == 1, "grey, as the model saw them"


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (("evaluate.thinking_tokens=4", "prompt.grammar=observation-think-answer"), "more than a thought"),
        (("evaluate.thinking_tokens=4", "server.model=x"), "a server writes a trace to its end"),
        (("evaluate.distortion_strength=0.5",), "no frame is distorted"),
    ],
)
def test_a_budget_or_strength_that_would_change_nothing_is_refused(sets, says):
    with pytest.raises(ConfigError, match=says):
        config.load(None, sets).refuse_idle("evaluate")


def test_what_writes_no_trace_on_these_frames_refuses_budget_and_distortion(bench):
    noisy, brief = (bench.settings(f"evaluate.{given}") for given in ("distortion=noise", "thinking_tokens=4"))
    taught = bench.teach(short_trace)
    for settings, call in itertools.product(
        (noisy, brief),
        (
            lambda s: baselines.simple(bench.workbench, s),
            lambda s: evaluate.run(bench.workbench, s, reasoner=taught.id, system="x", progress=False),
        ),
    ):
        with pytest.raises(ConfigError, match=r"Leave evaluate\.(distortion|thinking_tokens) out"):
            call(settings)


def test_labels_only_and_zero_shot_are_scored_too(bench, tmp_path):
    config = bench.settings(*LABELS_ALONE)
    labels = coldstart.run(bench.workbench, config, teacher=None, name="labels", progress=False)
    run = evaluate.run(bench.workbench, config, reasoner=labels.id, progress=False)
    assert (
        set(run.read("predictions")["method"]) == {"raw", "label_likelihood"} and run.summary["system"] == "labels only"
    )
    chosen = run.summary["thresholds"]["label_likelihood"]
    assert chosen["n"] == len(bench.manifest.usable("validation")) and not run.summary["left_out"]
    own = bench.copy(tmp_path / "own")  # a validation split of one class fits no temperature; the raw row stands
    manifest = own.manifest
    manifest.frame.loc[manifest.frame["split"] == "validation", "label"] = "stray"
    manifest.save()
    bare = evaluate.run(own.workbench, own.settings(*LABELS_ALONE), reasoner=labels.id, progress=False)
    assert set(bare.read("predictions")["method"]) == {"raw"}
    assert "readable clips of the split 'validation' are 'stray'" in bare.summary["left_out"]["label_likelihood"]
    manifest.frame.loc[manifest.frame["split"] == "test", "excluded"] = "decode_failed"
    manifest.save()
    known = len(own.workbench.runs())
    for reasoner in (labels.id, None):
        with pytest.raises(DataError, match="no usable clip in the split 'test'"):
            evaluate.run(own.workbench, own.settings(*LABELS_ALONE), reasoner=reasoner, progress=False)
    assert len(own.workbench.runs()) == known
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


@pytest.mark.thorough
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
