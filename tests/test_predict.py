"""Predicting: clips without labels get the answers that an evaluation gives, as a run and as a table, through kills,
odd files and hostile names."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import embedded
import numpy as np
import pandas as pd
import pytest
from embedded import written

import deepintuit
from deepintuit import cli, config, evaluate
from deepintuit.command import with_dataset
from deepintuit.data import Manifest, assign_splits
from deepintuit.errors import DataError, StoreError
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import answers, clips
from deepintuit_analysis.report.gather import tabulate
from deepintuit_analysis.review import EventLog, Reviews, feedback, quality
from deepintuit_app import analysis, watch
from deepintuit_app.context import AppContext
from deepintuit_clips.predict import Predictor
from deepintuit_clips.predict_command import Settled

pytest_plugins = ["embedded"]


@pytest.fixture(scope="module")
def scored(ours, cold, calibrated):
    sets = ours.settings("evaluate.controls=false")
    return evaluate.run(ours.workbench, sets, reasoner=cold.id, calibrator=calibrated.id, progress=False)


@pytest.fixture(scope="module")
def videos(ours, tmp_path_factory):
    """The twelve test clips in a folder, named in the order of the manifest."""
    folder = tmp_path_factory.mktemp("new")
    for number, row in enumerate(ours.manifest.usable("test").itertuples()):
        shutil.copy(row.path, folder / f"{number:02}.mp4")
    return folder


@pytest.fixture(scope="module")
def predictor(ours, calibrated):
    return Predictor(ours.workbench, calibrated.id, ours.settings())


@pytest.fixture(scope="module")
def table(predictor, videos):
    return predictor.predict(videos)


def test_answers_are_those_of_an_evaluation_of_the_same_clips_to_the_digit(scored, table, videos):
    assert table["path"].tolist() == [str(videos / f"{number:02}.mp4") for number in range(12)]
    traces = scored.read("traces").set_index("clip_id")
    rows = scored.read("predictions")
    rows = rows[(rows["method"] == "label_likelihood")].set_index("clip_id")
    assert set(table["clip_id"]) == set(rows.index)
    labels = list(rows["labels"].iloc[0])
    for row in table.to_dict("records"):
        trace, known = traces.loc[row["clip_id"]], rows.loc[row["clip_id"]]
        assert [row[f"p_{label}"] for label in labels] == list(known["probs"])
        assert (row["trace"], row["frame_hash"], row["tokens"]) == (trace["text"], trace["frame_hash"], trace["tokens"])
        assert (row["label"], row["provisional"]) == (known["predicted"], trace["provisional"])
        assert row["calibrated"] and row["seconds"] > 0 and pd.isna(row["reason"]) and pd.isna(row["abstain"])


def test_the_same_question_gives_the_finished_run_back_and_a_grown_folder_asks_only_about_what_is_new(
    ours, predictor, table, videos, tmp_path
):
    run = predictor.run(predictor.find([videos]))
    assert run.finished and run.summary["clips"] == 12 and predictor.predict(videos).equals(table)
    grown = tmp_path / "grown"
    shutil.copytree(videos, grown)
    last = grown / "11.mp4"
    last.rename(tmp_path / "11.mp4")
    first = predictor.predict(grown, name="grown")
    (tmp_path / "11.mp4").rename(last)
    run = predictor.run(predictor.find([grown], name="grown"))
    parts = sorted(run.path.glob("traces-*.parquet"))
    assert [len(pd.read_parquet(part)) for part in parts] == [8, 3, 1], "two parts taken over, one new"
    second = predictor.predict(grown, name="grown")
    shown = [name for name in table if name not in ("path", "seconds")]
    assert second[:11].drop(columns="seconds").equals(first.drop(columns="seconds"))
    pd.testing.assert_frame_equal(second[shown], table[shown])
    assert not [*(ours.path / "clips").glob("*.lock")]
    assert not (ours.path / "clips" / "grown@2.parquet").exists() and len(Manifest.load(ours.path, "grown").frame) == 12


def test_every_clip_given_has_a_row_whatever_its_name_and_content(predictor, videos, tmp_path, monkeypatch, capsys):
    """Hostile names, the same content twice, a file given twice, none at all, no video, one that is not there."""
    folder = tmp_path / "odd"
    (folder / "deep").mkdir(parents=True)
    names = ["new\nline.mp4", "a\"quote'.mp4", "<script>alert(1)</script>.MP4".replace("/", "∕"), "=1+1.mp4", "‮4pm.mp4"]
    for name in names:
        shutil.copy(videos / "03.mp4", folder / "deep" / name)
    shutil.copy(videos / "04.mp4", os.fsencode(folder) + b"/b\xffd.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"no video at all " * 9)
    (folder / "notes.txt").write_text("not a clip")
    out = tmp_path / "out.jsonl"
    monkeypatch.chdir(tmp_path)
    asked = ["odd", os.path.relpath(videos / "03.mp4"), str(videos / "03.mp4"), "gone.mp4"]
    place = ["--workbench", str(predictor.workbench.path), "--system", predictor.system, "--quiet"]
    assert cli.main(["predict", *asked, *place, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "7 of 11 clips answered, 4 without an answer, each with its reason" in said and "'.txt'" in said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    by_name = {row["path"]: row for row in rows}
    assert len(rows) == 11 and {f"odd/deep/{name}" for name in names} <= by_name.keys()
    assert len({row["clip_id"] for row in rows if row["label"]}) == 1
    reasons = {path.rsplit("/", 1)[-1]: row["reason"] for path, row in by_name.items() if row["reason"]}
    assert reasons == {
        "b\\udcffd.mp4": "name_not_utf8", "empty.mp4": "empty_file", "text.mp4": "not_a_video", "gone.mp4": "not_found"
    }  # fmt: skip
    assert cli.main(["predict", *asked, *place, "--out", str(tmp_path / "out.csv")]) == 0
    frame = pd.read_csv(tmp_path / "out.csv")
    assert frame["path"].tolist() == [row["path"] for row in rows]
    assert [None if pd.isna(cell) else json.loads(cell) for cell in frame["moments"]] == [r["moments"] for r in rows]


def test_tables_name_clips_in_each_form_and_row_order_and_spelling_stay(predictor, videos, table, tmp_path):
    names = ["02.mp4", "00.mp4", "none.mp4"]
    frame = pd.DataFrame({"File": names, "label": ["secret"] * 3})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "t.parquet")
    shown = table.set_index("clip_id")["label"]
    for form in ("csv", "jsonl", "parquet"):
        found = predictor.predict(tmp_path / f"t.{form}", path_column="file", videos=videos, name="tables")
        assert found["path"].tolist() == names and found["reason"].tolist()[2] == "not_found"
        assert found["label"].tolist()[:2] == shown.loc[found["clip_id"][:2]].tolist()
    manifest = Manifest.load(predictor.workbench.path, "tables")
    assert not manifest.frame["notes"].map(bool).any() and manifest.frame["label"].isna().all()
    with pytest.raises(DataError, match="has no column 'path'.*--path-column"):
        predictor.predict(tmp_path / "t.csv", videos=videos)
    with pytest.raises(DataError, match="does not lie inside"):
        (tmp_path / "out.csv").write_text("path\n../../etc/passwd\n")
        predictor.predict(tmp_path / "out.csv", videos=videos)


def test_it_abstains_below_a_probability_or_as_validation_chose_for_a_risk(predictor, videos, table):
    probs = table.filter(regex="^p_")
    sets = predictor.predict(videos, threshold=0.3)
    assert sets["abstain"].tolist() == (probs.max(axis=1) < 0.3).tolist()
    chosen = predictor.ways["label_likelihood"]
    for risk, least in chosen["thresholds"].items():
        found = predictor.predict(videos, risk=float(risk))
        wanted = probs.max(axis=1) < (np.inf if least is None else least)
        assert found["abstain"].tolist() == wanted.tolist()
    inside = 1 - probs <= chosen["conformal"]["0.9"]
    names = [name.removeprefix("p_") for name in probs]
    assert [list(one) for one in table["set"]] == [[n for n, i in zip(names, row) if i] for row in inside.to_numpy()]


WRONG = {
    "an unknown risk": (["--risk", "0.03"], "thresholds were chosen for 0.01, 0.02, 0.05, 0.1"),
    "two thresholds": (["--risk", "0.05", "--threshold", "0.5"], "Give one of them"),
    "no probability": (["--threshold", "90"], "between 0 and 1"),
    "another form": (["--out", "answers.xlsx"], "csv, jsonl, parquet"),
    "a folder that is not there": (["--out", "none/answers.csv"], "there is no folder"),
    "another way": (["--set", "evaluate.method=vote"], "one trace, read by label likelihood"),
    "a watch without a file": (["--watch"], "Name folders, --out FILE"),
    "a training dataset": (["--name", "homecam"], "Choose another --name"),
    "a bad name": (["--name", "../up"], "cannot name a dataset"),
    "a run that is no system": (["--system", "evaluate"], "holds no reasoner"),
    "no such run": (["--system", "calibrate-none"], "there is no run"),
    "a watch by shards": (["--watch", "--out", "o.csv", "--shard", "1/2"], "Leave --shard out"),
    "nothing there": (["nowhere"], "Check the path"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_before_anything_is_run(
    case, predictor, scored, videos, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    more, said = WRONG[case]
    more = [scored.id if word == "evaluate" else word for word in more]
    before = written(predictor.workbench.path, "runs/*")
    place = ["--workbench", str(predictor.workbench.path), "--system", predictor.system, "--quiet"]
    inputs = [str(videos)] if more[0].startswith("--") else [more.pop(0)]
    assert cli.main(["predict", *inputs, *place, *more]) == 2
    told = capsys.readouterr().err
    # What must be known of the system may stand before it.
    assert said in told.splitlines()[-1] and "Traceback" not in told
    assert written(predictor.workbench.path, "runs/*") == before


def test_a_dry_run_counts_clips_and_leaves_nothing(predictor, videos, capsys):
    before = written(predictor.workbench.path, "*/*")
    place = ["--workbench", str(predictor.workbench.path), "--system", predictor.system]
    assert cli.main(["predict", str(videos), *place, "--name", "dry", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "12 clips" in said and "'dry'" in said and written(predictor.workbench.path, "*/*") == before


def test_without_a_calibrator_answers_are_said_to_be_uncalibrated(ours, cold, calibrated, videos, tmp_path, capsys):
    own = ours.copy(tmp_path / "own")
    for run in own.path.glob("runs/calibrate-*"):
        shutil.rmtree(run)
    out, place = tmp_path / "out.parquet", ["--workbench", str(own.path), "--system", cold.id, "--quiet"]
    asked = ["predict", str(videos / "00.mp4"), str(videos / "01.mp4"), *place, "--out", str(out)]
    assert cli.main(asked) == 0 and "has no calibrator" in capsys.readouterr().err
    found = pd.read_parquet(out)
    assert not found["calibrated"].any() and "set" not in found and len(found) == 2
    for row in found.to_dict("records"):
        assert row["label"] == row["provisional"] or row["label"] is None and row["provisional"] == "none"
    assert cli.main([*asked, "--risk", "0.05"]) == 2 and "none that did" in capsys.readouterr().err


def _predict(path, system, settings, folder):
    import torch

    torch.set_num_threads(1)
    Predictor(Workbench(path), system, settings).predict(folder, name="killed")


@pytest.mark.thorough
def test_a_killed_run_goes_on_where_it_stopped(ours, calibrated, videos, table):
    settings = ours.settings("sampling.clips_per_batch=3")
    pattern = "runs/predict-killed-*/predictions-00000.parquet"
    process = embedded._SERVER.Process(target=_predict, args=(ours.path, calibrated.id, settings, videos))
    process.start()
    while process.is_alive() and not written(ours.path, pattern):
        process.join(0.005)
    process.kill()
    process.join()
    [first] = written(ours.path, pattern)
    content = first.read_bytes()
    found = Predictor(ours.workbench, calibrated.id, settings).predict(videos, name="killed")
    [run] = [run for run in ours.workbench.runs("predict") if run.about["name"] == "killed"]
    assert run.finished and first.read_bytes() == content
    parts = [len(pd.read_parquet(part)) for part in sorted(run.path.glob("predictions-*.parquet"))]
    assert parts == [6] * 4, "two ways a clip, and no clip twice"
    assert found["trace"].tolist() == table["trace"].tolist()
    probs = [name for name in table if name.startswith("p_")]
    np.testing.assert_allclose(found[probs], table[probs], atol=1e-5)


def _command(words, out):
    with open(out, "w") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        raise SystemExit(cli.main(words))


def test_shards_answer_and_evaluate_what_one_command_does_row_by_row(
    ours, cold, calibrated, scored, videos, table, predictor, tmp_path, capsys
):
    folder, out = tmp_path / "clips", tmp_path / "answers.parquet"
    shutil.copytree(videos, folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    sets = ours.sets("sampling.clips_per_batch=3", "evaluate.controls=false", "clips.dataset=homecam")
    about = ["--quiet", "--name", "sharded", "--workbench", str(ours.path)]
    about += [word for one in sets for word in ("--set", one)]
    words = ["predict", str(folder), "--system", calibrated.id, "--out", str(out), "--jobs", "1", *about, "--shard"]
    assert cli.main([*words, "3/3"]) == 0 and not out.exists()
    assert "is not finished: 4 of 12 clips are done by all shards" in capsys.readouterr().out
    started = [embedded._SERVER.Process(target=_command, args=([*words, f"{n}/3"], tmp_path / f"{n}")) for n in (1, 2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    said = [(tmp_path / f"{n}").read_text() for n in (1, 2)]
    assert sum("is not finished" in text for text in said) == 1, said
    assert sum("12 of 13 clips answered, 1 without an answer" in text for text in said) == 1, said
    found = pd.read_parquet(out)
    assert found["path"].tolist() == [str(folder / name) for name in sorted(os.listdir(folder))]
    shown = [name for name in table if name not in ("path", "seconds", "distance")]
    pd.testing.assert_frame_equal(found.loc[:11, shown], table[shown], check_dtype=False, atol=1e-5)
    [run] = [run for run in ours.workbench.runs("predict") if run.about["name"] == "sharded"]
    parts = [pd.read_parquet(part)["clip_id"].nunique() for part in run.path.glob("predictions-*.parquet")]
    assert run.finished and sorted(parts) == [1, 1, 1, 3, 3, 3], "no clip twice"
    rows = [predictor.predict(folder, name="parts", shard=f"{n}/2") for n in (1, 2)]
    assert sorted(pd.concat(rows)["path"]) == sorted(found["path"]) and len(rows[0]) == 7

    words = ["evaluate", "--reasoner", cold.id, "--calibrator", calibrated.id, *about, "--shard"]
    assert cli.main([*words, "2/2"]) == 0
    assert "6 of 12 clips are done" in capsys.readouterr().out
    assert cli.main([*words, "1/2"]) == 0 and "is finished" in capsys.readouterr().out
    [run] = [run for run in ours.workbench.runs("evaluate") if run.about["name"] == "sharded"]
    key = ["method", "control", "clip_id"]
    rows, same = (one.read("predictions").sort_values(key).reset_index(drop=True) for one in (run, scored))
    assert rows[[*key, "predicted", "provisional"]].equals(same[[*key, "predicted", "provisional"]])
    np.testing.assert_allclose(np.stack(rows["probs"]), np.stack(same["probs"]), atol=1e-5)
    texts, others = (dict(zip(one["clip_id"], one["text"])) for one in (run.read("traces"), scored.read("traces")))
    assert texts == others


def test_the_example_of_ray_answers_each_clip_once_though_a_worker_is_killed(ours, calibrated, tmp_path):
    """By hand, where ray is installed (docs/scale.md)."""
    pytest.importorskip("ray")
    folder = tmp_path / "many"
    folder.mkdir()
    for row in ours.manifest.usable().itertuples():
        shutil.copy(row.path, folder)
    text = (Path(deepintuit.__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(import deepintuit\nimport ray\n.*?)```", text, re.DOTALL)
    other = {"num_gpus": "num_cpus", "/8": "/2", "range(1, 9)": "range(1, 3)", "/shared/workbench": str(ours.path)}
    other |= {"calibrate-20261130-1a2b3c4d": calibrated.id, "/shared/videos": str(folder)}
    for before, after in other.items():
        assert before in example
        example = example.replace(before, after)
    code = f"import ray\nray.init(num_cpus=2)\n{example}\nassert sum(map(len, tables)) == {len([*folder.iterdir()])}"
    command = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "ASKED_BY": str(tmp_path)})
    before = {run.id for run in ours.workbench.runs("predict")}

    def run():
        return next((run for run in ours.workbench.runs("predict") if run.id not in before), None)

    while not (run() and run().stored("predictions")):
        assert command.poll() is None
        time.sleep(0.1)
    workers = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if _text(path).startswith("ray::answered")]
    own = [int(path.name) for path in workers if f"ASKED_BY={tmp_path}" in _text(path / "environ")]
    os.kill(own[0], signal.SIGKILL)
    assert command.wait(240) == 0 and run().finished
    rows = run().read("predictions")
    assert sorted(rows[rows["method"] == "raw"]["clip_id"]) == sorted(ours.manifest.usable()["clip_id"])
    assert len(run().about["sessions"]) == 3


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def test_a_shard_of_other_clips_than_those_that_are_divided_is_refused(predictor, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "clips", ignore=lambda _, names: names[3:])
    first = predictor.predict(tmp_path / "clips", name="changed", shard="1/2")
    shutil.copy(videos / "11.mp4", tmp_path / "clips")
    with pytest.raises(StoreError, match="shard 2 of 2 has other clips.*divide one list.*another --name"):
        predictor.predict(tmp_path / "clips", name="changed", shard="2/2")
    assert len(predictor.predict(tmp_path / "clips", name="changed")) == 4 and len(first) == 2


def test_a_file_that_still_grows_waits_for_the_next_look(tmp_path):
    old, new = tmp_path / "old.mp4", tmp_path / "new.mp4"
    old.write_bytes(b"1")
    os.utime(old, (1000, 1000))
    new.write_bytes(b"1")
    os.utime(new, (1995, 1995))
    settled = Settled(10)
    assert set(settled.ready([old, new, tmp_path / "gone.mp4"], now=2000)) == {str(old)}
    new.write_bytes(b"12")
    assert set(settled.ready([old, new], now=2010)) == {str(old)}
    assert set(settled.ready([old, new], now=2020)) == {str(old), str(new)}


def test_a_watched_folder_is_answered_as_clips_come_and_keeps_what_was_taken_away(
    predictor, videos, tmp_path, monkeypatch, capsys
):
    folder, out = tmp_path / "camera", tmp_path / "out.jsonl"
    folder.mkdir()
    looks = []

    def sleep(seconds):
        looks.append([json.loads(line)["path"] for line in out.read_text().splitlines()] if out.exists() else [])
        if len(looks) == 4:
            raise KeyboardInterrupt
        if len(looks) == 3:
            (folder / "1.mp4").unlink()
        shutil.copy2(videos / f"0{len(looks)}.mp4", folder / f"{len(looks)}.mp4")
        os.utime(folder / f"{len(looks)}.mp4", (1000, 1000))

    monkeypatch.setattr("deepintuit_clips.predict_command.sleep", sleep)
    place = ["--workbench", str(predictor.workbench.path), "--system", predictor.system, "--quiet"]
    asked = ["predict", str(folder), *place, "--watch", "--out", str(out), "--every", "5"]
    assert cli.main(asked) == 0 and "goes on from there" in capsys.readouterr().err
    # A clip that came between two looks is known by its unchanged size at the second.
    assert [len(one) for one in looks] == [0, 0, 1, 2]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row["label"] for row in rows) and str(folder / "1.mp4") in {row["path"] for row in rows}
    [run] = [run for run in predictor.workbench.runs("predict") if (run.about["name"] or "").startswith("camera")]
    assert not run.finished and len(run.done("traces", "clip_id")) == 2
    assert not [*(predictor.workbench.path / "clips").glob("predict-camera*@*")]


def test_pages_index_review_and_splits_know_clips_without_labels(ours, predictor, scored, table, videos, tmp_path):
    run = predictor.run(predictor.find([videos]))
    dataset, workbench = run.about["dataset"], Workbench(ours.path)
    workbench.refresh()
    facts = workbench.query("SELECT * FROM trace_facts WHERE run_id = ?", [run.id])
    assert len(facts) == 12 and facts["true_label"].isna().all() and facts["calibrated"].notna().all()
    assert with_dataset(config.load(None, [f"workbench={ours.path}"])).clips.dataset == "homecam"
    found = answers.sources(workbench)
    assert found["dataset"].iloc[0] == "homecam" and set(found["run_id"][found["dataset"] == dataset]) == {run.id}
    choice, _ = analysis.choose(found, analysis.Choice())
    assert choice.dataset == "homecam", "the Errors page opens on clips that have labels"
    choice, _ = analysis.choose(found, analysis.Choice(dataset=dataset))
    with pytest.raises(StoreError, match="have no label.*choose a dataset with labels"):
        analysis.analysis(workbench, choice)
    with pytest.raises(StoreError, match="clips without labels"):
        tabulate(workbench, [run.id])
    clip_id, trace_id = facts["clip_id"][0], facts["trace_id"][0]
    assert clips.find(workbench, dataset)[1] == 12
    assert [row["method"] for row in clips.predictions_on(workbench, trace_id)] == ["label_likelihood", "raw"]
    assert trace_id in {row["trace_id"] for row in clips.traces_of(workbench, clip_id)}
    context = AppContext(ours.path)
    assert "no split" in watch.strip_html(context, dataset, "", "", "", None)
    with EventLog(tmp_path / "reviews") as log:
        batch = feedback.next_batch(workbench, Reviews(log), dataset, 5)
        assert len(batch) == 5 and set(batch["trace_id"]) <= set(facts["trace_id"])
    with pytest.raises(DataError, match="no calibrated distribution"):
        quality.suspects(workbench, dataset)
    manifest = Manifest.load(ours.path, dataset)
    assert "12 usable clips have no label" in str(manifest.summary())
    labelled = manifest.relabelled({clip_id: "theft"}, {clip_id: "said"})
    Manifest(ours.path, "again", labelled.frame, labelled.labels).save()
    divided = assign_splits(labelled, {"test": 1.0})
    assert divided.frame.set_index("clip_id")["split"].dropna().to_dict() == {clip_id: "test"}
    again = predictor.find([videos], name="again")
    kept = Manifest.load(ours.path, "again").frame.set_index("clip_id")
    assert kept.loc[clip_id, "label"] == "theft" and len(kept) == 12 and len(again.readable) == 12


def test_a_system_is_loaded_in_python_and_import_stays_light(ours, calibrated, videos, table, monkeypatch):
    loaded = deepintuit.load(calibrated.id, workbench=ours.path, sets=["model.device=cpu"])
    assert loaded.system == calibrated.id
    found = loaded.predict([videos / "00.mp4", str(videos / "01.mp4")], threshold=0.0)
    assert found["path"].tolist() == [str(videos / "00.mp4"), str(videos / "01.mp4")]
    assert not found["abstain"].any() and found["trace"].tolist() == table["trace"].tolist()[:2]
