"""How far a clip is from those that the calibrator learnt from: measured at calibration, told with every answer, and a
reason to give none."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

from deepintuit import calibrate, cli, evaluate
from deepintuit.errors import ConfigError, ModelError
from deepintuit.reasoner import Clip, live
from deepintuit.reasoner.distance import DISTANCE, Distance
from deepintuit.reasoner.replay import Distribution, TraceDone, distribution
from deepintuit.video import write_mp4
from deepintuit_analysis import Workbench, share
from deepintuit_app import trace_view
from deepintuit_clips.predict import Predictor

pytest_plugins = ["embedded"]


def clips(count: int, at: float, seed: int) -> list:
    """Pairs of a clip and its features: 6 patches of 4 numbers around `at`."""
    rng = np.random.default_rng(seed)
    values = at + rng.normal(size=(count, 6, 4)) + rng.normal(size=(count, 1, 4))
    return [(None, SimpleNamespace(embeds=torch.tensor(value))) for value in values]


@pytest.fixture(scope="module")
def fitted() -> Distance:
    return Distance.fit(clips(300, 0.0, 1), clips(199, 0.0, 2))


def test_at_most_the_stated_share_of_clips_like_validation_is_taken_for_unlike(fitted):
    usual, other = clips(400, 0.0, 3), clips(50, 6.0, 4)
    far = np.array([fitted.of(clip).distance for _, clip in usual])
    for rate in (0.01, 0.05, 0.2):
        assert (far > fitted.limit(rate)).mean() < 2 * rate + 0.01
        assert (fitted.held_out_V / fitted.middle > fitted.limit(rate)).sum() == int(rate * 200) - 1
    assert np.median(far) == pytest.approx(1, abs=0.2)
    strange = [fitted.of(clip) for _, clip in other]
    assert all(one.unlike and one.farther_than == 1 and one.distance > 1.5 for one in strange)


@pytest.mark.parametrize(
    ("n", "rate", "promised"), [(18, 0.05, False), (19, 0.05, True), (98, 0.01, False), (99, 0.01, True)]
)
def test_so_few_validation_clips_as_promise_nothing_make_no_limit(n, rate, promised):
    found = Distance.fit(clips(30, 0.0, 1), clips(n, 0.0, 2))
    assert np.isfinite(found.limit(rate)) == promised == (found.least <= rate)


def test_a_dimension_that_never_varies_and_a_single_clip_are_measured_too():
    still = [(None, SimpleNamespace(embeds=torch.ones(6, 4) * value)) for value in (1.0, 1.0, 2.0)]
    found = Distance.fit(still, still)
    assert np.isfinite(found.held_out_V).all() and np.isfinite(found.of(clips(1, 0.0, 1)[0][1]).distance)
    alone = Distance.fit(still[:1], still[:1])
    assert np.isfinite(alone.of(still[2][1]).distance) and not alone.of(still[2][1]).unlike


def test_what_is_stored_measures_the_same_and_a_damaged_file_is_refused(fitted, tmp_path):
    run = SimpleNamespace(checkpoint=tmp_path, id="calibrate-1")
    assert Distance.load(run) is None
    fitted.save(tmp_path)
    one = clips(1, 0.5, 9)[0][1]
    assert Distance.load(run).of(one).distance == pytest.approx(fitted.of(one).distance, rel=1e-5)
    whole = load_file(tmp_path / DISTANCE)
    for damaged in ({**whole, "mean_D": whole["mean_D"][1:]}, {**whole, "held_out_V": whole["held_out_V"] * np.nan}):
        save_file(damaged, tmp_path / DISTANCE)
        with pytest.raises(ModelError, match="cannot be used.*trains nothing"):
            Distance.load(run)
    (tmp_path / DISTANCE).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be used"):
        Distance.load(run)
    with pytest.raises(ModelError, match="another backbone"):
        fitted.between(np.zeros(3))


@pytest.fixture(scope="module")
def odd(tmp_path_factory, bench):
    """A usual clip, and a chessboard of single pixels, which no home looks like."""
    folder = tmp_path_factory.mktemp("odd")
    shutil.copy(bench.manifest.usable("test").iloc[0].path, folder / "home.mp4")
    board = (np.indices((144, 192)).sum(0) % 2 * 255).astype(np.uint8)
    write_mp4(folder / "board.mp4", np.tile(board[None, :, :, None], (12, 1, 1, 3)), 6)
    return folder


def test_a_clip_unlike_all_gets_no_label_and_no_percentage_and_its_answer_stays_in_the_run(
    ours, calibrated, odd, tmp_path, capsys
):
    n = len(ours.manifest.usable("validation"))
    predictor = Predictor(ours.workbench, calibrated.id, ours.settings())
    table = predictor.predict(odd, false_alarms=1 / (n + 1)).set_index("path")
    home, board = table.loc[str(odd / "home.mp4")], table.loc[str(odd / "board.mp4")]
    assert board["unlike"] and board["abstain"] and board["farther_than"] == 1 and board["distance"] > home["distance"]
    assert board[[name for name in table if name.startswith("p_")]].isna().all() and pd.isna(board["label"])
    assert board["trace"] and board["set"] is None
    kept = predictor.predict(odd, false_alarms=0).set_index("path").loc[str(odd / "board.mp4")]
    assert kept["label"] and not kept["unlike"] and pd.isna(kept["abstain"]) and kept["distance"] == board["distance"]
    place = ["--workbench", str(ours.path), "--system", calibrated.id, "--quiet"]
    out = ["--out", str(tmp_path / "out.jsonl")]
    assert cli.main(["predict", str(odd), *place, *out]) == 0
    assert f"{n} validation clips promise no fewer" in capsys.readouterr().err
    assert cli.main(["predict", str(odd), *place, *out, "--false-alarms", str(1 / (n + 1))]) == 0
    assert "(1 unlike the clips that were learnt from)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="between 0 and 1"):
        predictor.predict(odd, false_alarms=5)


def test_a_live_trace_and_a_shared_folder_tell_the_distance_that_predict_tells(ours, cold, calibrated, odd):
    predictor = Predictor(ours.workbench, calibrated.id, ours.settings())
    run = predictor.run(predictor.find([odd]))
    told = run.read("predictions").set_index(["clip_id", "method"])["distance"]
    file = odd / "home.mp4"
    clip = Clip(hashlib.sha256(file.read_bytes()).hexdigest()[:16], str(file), None, 192, 144, None)
    events = []
    ask = live.Ask(clip, cold.id, calibrated.id, private=True)
    live.reason(live.Models(ours.workbench), ask, events.append, lambda: False)
    assert events[-1].distance == pytest.approx(told[clip.clip_id, "label_likelihood"], rel=1e-4)
    workbench = Workbench(ours.path)
    workbench.refresh()
    shared = json.loads(share.gather(workbench, [run.id], clips="none").script.removeprefix(b"const SHARED = ")[:-2])
    assert {one["distance"] for one in shared["traces"]} == set(told) and not shared["systems"]


def test_an_evaluation_keeps_distances_with_its_rows_and_controls_have_none(bench, cold, calibrated):
    settings = bench.settings()
    run = evaluate.run(bench.workbench, settings, reasoner=cold.id, calibrator=calibrated.id, progress=False)
    rows = run.read("predictions")
    plain = rows[rows["control"] == "none"]
    assert plain["distance"].gt(0).all() and plain["farther_than"].between(0, 1).all() and plain["unlike"].notna().all()
    assert rows.loc[rows["control"] != "none", "distance"].isna().all() and run.summary["unlike"] == 0
    assert plain.groupby("clip_id")["distance"].nunique().eq(1).all()


def test_a_calibrator_from_before_says_not_measured_and_gets_its_distances_without_training(
    bench, cold, calibrated, odd, tmp_path, capsys
):
    own = bench.copy(tmp_path / "own")
    workbench = Workbench(own.path)
    file = workbench.run(calibrated.id).checkpoint / DISTANCE
    before = file.read_bytes()
    file.unlink()
    place = ["--workbench", str(own.path), "--system", calibrated.id, "--quiet"]
    assert cli.main(["predict", str(odd / "home.mp4"), *place, "--out", str(tmp_path / "out.parquet")]) == 0
    assert "is not measured" in capsys.readouterr().err
    told = pd.read_parquet(tmp_path / "out.parquet")
    assert told[["distance", "farther_than", "unlike"]].isna().all(axis=None) and told["label"].notna().all()
    weights = {path: path.stat().st_mtime_ns for path in file.parent.iterdir()}
    again = calibrate.run(workbench, own.settings("calibrate.epochs=2"), reasoner=cold.id, progress=False)
    assert again.id == calibrated.id and file.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in file.parent.iterdir() if path != file} == weights
    assert cli.main(["predict", str(odd / "home.mp4"), *place, "--out", str(tmp_path / "out.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "out.parquet")["distance"].gt(0).all()


def test_watch_shows_no_percentage_for_an_unlike_clip_and_says_where_nothing_was_measured():
    def drawn(*far):
        shown = trace_view.TraceView("live")
        shown.take(TraceDone("<think> a </think><answer> theft </answer>", "theft"))
        shown.take(Distribution(("theft", "routine"), (0.03, 0.97), "label_likelihood", 1.0, 0.0, *far))
        return trace_view.verdict(shown, "theft")

    unlike = drawn(4.2, 1.0, True)
    assert "abstains: unlike the clips" in unlike and "4.2 times" in unlike and "97%" not in unlike.replace(" ", "")
    assert 'class="bars"' not in unlike and "changed" not in unlike
    assert "farther from the clips that were learnt from than 42" in drawn(0.9, 0.42, False)
    assert "not measured" in drawn() and 'class="bars"' in drawn()


def test_a_stored_row_is_replayed_with_its_distance_and_an_old_one_without():
    row = {"labels": ["a", "b"], "probs": [0.5, 0.5], "method": "label_likelihood", "temperature": 1.0}
    assert distribution({**row, "distance": 2.0, "farther_than": 1.0, "unlike": True}).unlike is True
    assert distribution({**row, "unlike": float("nan")}).unlike is None is distribution(row).distance
