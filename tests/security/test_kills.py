"""A stage killed at moments drawn at random ends as if it had not been: the same weights, traces and predictions, and
nothing done twice.

By a command of its own, fifty of each and fifty of the dashboard under load; the whole suite kills each stage at chosen
moments (`test_a_killed_run_continues_…`):

    DEEPINTUIT_KILLS=50 python -m pytest tests/security/test_kills.py tests/test_review_page.py -k killed
"""

import os
import random
import shutil
import time

import numpy as np
import pytest
from embedded import assert_same_weights, short_trace, survivor, undisturbed

pytest_plugins = ["embedded"]
KILLS = int(os.environ.get("DEEPINTUIT_KILLS", 0))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(not KILLS, reason="kills at random: DEEPINTUIT_KILLS=50 says how many"),
]
SETTINGS = {
    "coldstart": ("coldstart.epochs=3", "coldstart.save_steps=4", "coldstart.learning_rate=2e-3", "seed=3"),
    "grpo": ("grpo.max_steps=4", "grpo.save_steps=1", "grpo.learning_rate=1e-3", "seed=3"),
    "calibrate": ("calibrate.epochs=2", "calibrate.save_steps=2", "calibrate.learning_rate=3e-3", "seed=3"),
    "evaluate": ("evaluate.traces=2", "sampling.clips_per_batch=4"),
}


@pytest.mark.parametrize("stage", SETTINGS)
def test_a_stage_killed_at_any_moment_ends_as_if_it_had_not_been(bench, cold, calibrated, tmp_path, stage):
    inputs = {
        "coldstart": {"teacher": bench.teach(short_trace).id},
        "grpo": {"start": cold.id},
        "calibrate": {"reasoner": cold.id},
        "evaluate": {"reasoner": cold.id, "calibrator": calibrated.id, "system": "killed"},
    }[stage]
    started = time.monotonic()
    whole = undisturbed(bench.copy(tmp_path / "whole"), stage, SETTINGS[stage], **inputs)
    seconds, draw, kills = time.monotonic() - started, random.Random(stage), 0
    while kills < KILLS:
        other = bench.copy(tmp_path / "other")
        moments = [draw.uniform(0, 0.8 * seconds) for _ in range(min(5, KILLS - kills))]
        run, done = survivor(other, stage, moments, SETTINGS[stage], **inputs)
        kills += done
        for grain in ("traces", "predictions"):
            assert written(whole, grain) == pytest.approx(written(run, grain), abs=1e-6), grain
        if stage != "evaluate":
            assert_same_weights(whole, run)
        assert not list(run.path.rglob("*.tmp")) and not (run.path / "training").exists()
        shutil.rmtree(other.path)


def written(run, grain: str) -> dict[str, float]:
    """What a run wrote, by what names a row: predictions with their probabilities, traces with their text."""
    rows = run.read(grain)
    if grain == "traces":
        return dict.fromkeys(map(str, zip(rows["clip_id"], rows["step"], rows["sample"], rows["text"])), 1.0)
    keys = zip(rows["method"], rows["control"], rows["clip_id"], rows["predicted"])
    return {str(key): float(np.max(probs)) for key, probs in zip(keys, rows["probs"])}
