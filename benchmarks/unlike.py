"""How well a distance tells clips of other worlds from those of homes that were never seen, beside simple scores.

    python benchmarks/unlike.py WORKBENCH CALIBRATE_RUN FOLDER…

Usual clips are those of the test split. Each score is higher where a clip is less like the training clips; its limit is
taken from the validation clips at 1 and at 5 % of false alarms, as `deepintuit predict` does. Intervals are 95 % by
bootstrap over clips. Clips are predicted first, as by `deepintuit predict FOLDER`; what is answered is not asked again.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from deepintuit.metrics import wilson
from deepintuit.reasoner import LocalReasoner, Task
from deepintuit.reasoner.distance import features
from deepintuit.runs import Run, Workbench
from deepintuit_clips.predict import Predictor


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("workbench")
    options.add_argument("run")
    options.add_argument("folders", nargs="+")
    options = options.parse_args()
    workbench = Workbench(options.workbench)
    predictor = Predictor(workbench, options.run)
    encoder, runs, seen = predictor.models[0].encoder, {}, {}
    task = Task(workbench.path, predictor.config)
    local = LocalReasoner(predictor.models[0], task)
    splits = ("calibration", "validation", "test")
    for split in splits:
        seen[split] = [(clip.clip_id, *_looked_at(encoder, clip)) for clip, _ in local.readable(task.clips(split))]
    for folder in options.folders:
        runs[folder] = predictor.run(predictor.find([folder]))
        its = Task(workbench.path, predictor.config.replace(clips={"dataset": runs[folder].about["dataset"]}))
        answered = its.unlabelled(runs[folder].done("predictions", "clip_id"))
        seen[folder] = [(clip.clip_id, *_looked_at(encoder, clip)) for clip in answered]
    said = {name: _probabilities(run) for name, run in runs.items()} | _evaluated(workbench, predictor.system)
    ids, tower, pixels = ({name: [row[k] for row in rows] for name, rows in seen.items()} for k in range(3))
    tower, pixels = ({name: np.stack(rows) for name, rows in one.items()} for one in (tower, pixels))
    half = tower["test"].shape[1] // 2
    scores = {
        "5th neighbour, mean and deviation (used)": _neighbour(tower, 5),
        "nearest, mean and deviation": _neighbour(tower, 1),
        "5th neighbour, mean alone": _neighbour({name: rows[:, :half] for name, rows in tower.items()}, 5),
        "Mahalanobis, mean and deviation": _mahalanobis(tower),
        "5th neighbour, pixel statistics": _neighbour(pixels, 5),
    }
    for name, of in {
        "1 - highest probability": lambda p: 1 - p.max(),
        "entropy": lambda p: -(p * np.log(p)).sum(),
    }.items():
        scores[name] = {n: np.array([of(rows[i]) for i in ids[n] if i in rows]) for n, rows in said.items()}
    print("| score | clips | n | AUROC against test | noticed at 1 % | at 5 % | false alarms on test at 1 % | at 5 % |")
    print("|---|---|---|---|---|---|---|---|")
    for name, found in scores.items():
        for folder in options.folders:
            print(_row(name, folder, found))


def _looked_at(encoder, clip) -> tuple[np.ndarray, np.ndarray]:
    """Features of the tower, and of the pixels that it saw: means, deviations, and how much changes."""
    place = clip.clip_id, clip.path, clip.width, clip.height
    shown = encoder.frames(*place).pixels_T_H_W_3.astype(np.float32) / 255
    moved = np.abs(np.diff(shown, axis=0)).mean() if len(shown) > 1 else 0.0
    return features(encoder.encode(*place)), np.array([*shown.mean((0, 1, 2)), *shown.std((0, 1, 2)), moved])


def _probabilities(run: Run) -> dict[str, np.ndarray]:
    rows = run.read("predictions").query("method == 'label_likelihood' and control == 'none'")
    return {clip_id: np.maximum(probs, 1e-12) for clip_id, probs in zip(rows["clip_id"], rows["probs"])}


def _evaluated(workbench: Workbench, calibrator: str) -> dict[str, dict[str, np.ndarray]]:
    """Of the evaluations that there are with this calibrator, by their split."""
    runs = [run for run in workbench.runs("evaluate", finished=True) if run.config.get("calibrator") == calibrator]
    return {run.config["evaluate"]["split"]: _probabilities(run) for run in runs}


def _neighbour(rows: dict[str, np.ndarray], neighbours: int) -> dict[str, np.ndarray]:
    scaler = StandardScaler().fit(rows["calibration"])
    known = NearestNeighbors(n_neighbors=neighbours).fit(scaler.transform(rows["calibration"]))
    return {name: known.kneighbors(scaler.transform(rows[name]))[0][:, -1] for name in rows}


def _mahalanobis(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    scaler = StandardScaler().fit(rows["calibration"])
    fitted = LedoitWolf().fit(scaler.transform(rows["calibration"]))
    return {name: fitted.mahalanobis(scaler.transform(rows[name])) for name in rows}


def _row(name: str, folder: str, found: dict[str, np.ndarray]) -> str:
    other, usual, validation = found[folder], found["test"], np.sort(found.get("validation", []))
    limits = [validation[-max(1, int(rate * (len(validation) + 1)))] for rate in (0.01, 0.05) if len(validation)]
    rng = np.random.default_rng(0)

    def auroc(a: np.ndarray, b: np.ndarray) -> float:
        return roc_auc_score(np.repeat([1, 0], [len(a), len(b)]), np.concatenate([a, b]))

    drawn = [auroc(rng.choice(other, len(other)), rng.choice(usual, len(usual))) for _ in range(1000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    cells = [name, folder.rstrip("/").rsplit("/", 1)[-1], f"{len(other)} / {len(usual)}"]
    cells.append(f"{auroc(other, usual):.3f} ({low:.3f}–{high:.3f})")
    for clips in (other, usual):
        for limit in limits:
            share = wilson(int((clips > limit).sum()), len(clips))
            cells.append(f"{100 * share.value:.1f} % ({100 * share.low:.1f}–{100 * share.high:.1f})")
    cells += ["not evaluated on validation"] * (8 - len(cells))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
