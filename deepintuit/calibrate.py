"""Calibrate: learn from the model's own traces when to trust them (DeepIntuit, stage 3).

The refined reasoner is frozen and writes several traces for each clip of a split that neither cold start nor GRPO saw.
Wrong and unreadable traces are kept: they are what there is to learn. The calibrator starts from the reasoner's weights
and is trained by cross-entropy on (clip, trace, provisional label) → true label. A clip has the same number of rows as
any other, so each counts once [R]. Label order is shuffled from row to row [R]; training stops early on validation NLL
[R]. A temperature for each way to a distribution is fitted on validation.

Run it:  deepintuit calibrate --config configs/tiny.toml --reasoner RUN
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from deepintuit import disk
from deepintuit.config import Config
from deepintuit.errors import ConfigError, DataError
from deepintuit.metrics import apply_temperature, fit_temperature, nll, thresholds_for
from deepintuit.reasoner import (
    CALIBRATION,
    HEAD,
    Clip,
    Known,
    LinearHead,
    LocalReasoner,
    Scores,
    Task,
    asked,
    card,
    gate_for,
    hidden_states,
    identity,
    inherited,
    likelihood_scores,
    mean_scores,
    parsed,
    reasoner_run,
    refuse_one_class,
    tell,
    vote_scores,
)
from deepintuit.reasoner.controls import siblings
from deepintuit.runs import Run, Workbench, unnamed
from deepintuit.schedule import of_calibrate
from deepintuit.trace import Malformed, Trace
from deepintuit.vlm import VLM, Example
from deepintuit.vlm.finetune import Recipe, finetune
from deepintuit.vlm.training import StepLog

_TRAINED = "trained.json"
_MADE_BY = ("model", "video", "clips", "prompt", "sampling", "calibrate")
"""Sections that decide what this stage makes: a change in another one does not train again."""

AnyTrace = Trace | Malformed
Asked = tuple[Known, list[AnyTrace | None]]
"""Rows of clips with their features, and the trace beside each."""


def run(workbench: Workbench, config: Config, *, reasoner: str, name: str | None = None, progress: bool = True) -> Run:
    """Sample traces of the run `reasoner`, train a calibrator on them, fit its temperatures. Weights and
    `calibration.json` in `checkpoint`."""
    config, departs = inherited(workbench, config, reasoner)
    config.refuse_idle("calibrate")
    if config.calibrate.temperature == 0 and config.calibrate.traces > 1:
        raise ConfigError(
            f"calibrate.temperature = 0 with calibrate.traces = {config.calibrate.traces}",
            "at temperature 0 all traces of a clip are one",
            "Set calibrate.traces=1, or a temperature above 0",
        )
    reasoner_run(workbench, reasoner)
    task = Task(workbench.path, config)
    for split in ("calibration", "validation"):
        refuse_one_class(task.clips(split), split)
    described = identity(workbench.path, config, (*_MADE_BY, *(("gate",) if config.gate.by != "off" else ())))
    run = workbench.start_run(
        "calibrate", described, parent=reasoner, name=name, seed=config.seed, dataset=config.clips.dataset
    )
    if not run.finished:
        with run:
            _calibrate(workbench, config, run, reasoner, departs, progress)
    shutil.rmtree(run.path / "training", ignore_errors=True)  # once all is safe elsewhere
    return run


def _calibrate(
    workbench: Workbench, config: Config, run: Run, reasoner: str, departs: list[str], progress: bool
) -> None:
    settings, batch = config.calibrate, config.sampling.clips_per_batch
    task = Task(workbench.path, config)
    torch.manual_seed(config.seed)  # a new adapter is drawn here
    vlm = VLM.load(
        config.model, config.video, checkpoint=workbench.run(reasoner).checkpoint, cache=workbench.cache, trainable=True
    )
    run.note(device=str(vlm.device), settings=config.to_dict(), asked=asked(task), departs=departs)
    # The calibrator cannot be its own gate while it is made: traces think to the end, and their quick forms are rows
    # too.
    by_calibrator = config.gate.by == "calibrated"
    gate = gate_for(task, config.gate.replace(by="off") if by_calibrator else config.gate)
    local = LocalReasoner(vlm, task, config.seed, gate)
    splits = {split: local.known(task.clips(split)) for split in ("calibration", "validation")}
    for split, known in splits.items():
        if not known:
            raise DataError(
                f"no clip of the split {split!r} can be read",
                "the stage would have nothing to work on",
                "See whether the videos were moved, and import them again",
            )
        refuse_one_class(known.clips, split, readable=True)
    _borrow(workbench, run)
    for known in splits.values():
        _sample(run, local, known.clips, config, progress)
    traces = _Traces(run, task, settings.traces)
    learnt, held_out = (known.clips for known in splits.values())
    given = [(at, trace) for at, clip in enumerate(learnt) for trace in traces.training(clip, settings.greedy_trace)]
    if by_calibrator:  # as many of every clip: where nothing was said at once, the whole trace counts twice
        given += [(at, task.quick_form(trace) or trace) for at, trace in given]
    greedy = [traces.greedy(clip) for clip in held_out]
    truth = np.array([task.labels.index(clip.label) for clip in held_out])
    whole = settings.without == "none"
    rows, told = _shown(splits["calibration"], given, settings.without)
    validation, greedy = _shown(splits["validation"], list(enumerate(greedy)), settings.without)

    scores: dict[str, Scores] = {}
    if whole:  # the frozen reasoner first: training turns its weights into the calibrator's
        states = hidden_states(vlm, task, validation, greedy, batch)
        if not (run.checkpoint / HEAD).exists():
            hidden = hidden_states(vlm, task, rows, told, batch)
            targets = np.array([task.labels.index(clip.label) for clip in rows.clips])
            fit_head(hidden, targets, states, truth, len(task.labels)).save(run.checkpoint / HEAD)
        head = LinearHead.load(run.checkpoint / HEAD)
        scores["linear_head"] = Scores(head(states), np.full(len(truth), np.nan))
        scores["vote"] = vote_scores(task, [traces.sampled(clip) for clip in held_out])

    trained = run.checkpoint / _TRAINED  # written behind the weights: a kill while they are scored does not train again
    if trained.exists():
        result = json.loads(trained.read_text())
        vlm = VLM.load(config.model, config.video, checkpoint=run.checkpoint, cache=workbench.cache)
    else:
        result = _train(run, vlm, task, (rows, told), (validation, greedy), truth, config, progress)
        vlm.save(run.checkpoint, card(run, config))
        disk.write_json(trained, result)
    scores["label_likelihood"] = likelihood_scores(vlm, task, validation, greedy, batch)
    if whole:
        parts = [
            likelihood_scores(vlm, task, validation, [traces.sampled(clip)[k] for clip in held_out], batch)
            for k in range(settings.traces)
        ]
        scores["mean_likelihood"] = mean_scores(parts)
    truths = dict.fromkeys(scores, truth)
    if by_calibrator and whole:  # the gate's own kind of input
        quick = [
            (at, form)
            for at, clip in enumerate(held_out)
            for trace in traces.training(clip, True)
            if (form := task.quick_form(trace))
        ]
        if quick:
            scores["quick"] = likelihood_scores(vlm, task, *_shown(validation, quick), batch)
            truths["quick"] = truth[[at for at, _ in quick]]
    fitted = {method: _fitted(score, truths[method]) for method, score in scores.items()}
    disk.write_json(run.checkpoint / CALIBRATION, fitted)
    run.finish(
        {
            "rows": len(rows),
            "malformed_rows": sum(isinstance(trace, Malformed) for trace in told),
            "clips": len(learnt),
            "validation": fitted,
            "unreadable": {clip_id: str(u.error.reason) for clip_id, u in local.unreadable.items()},
            "tower_passes": vlm.encoder.passes,
            **result,
        }
    )


def _fitted(score: Scores, truth: np.ndarray) -> dict:
    """The temperature of these held-out scores, what they are worth at it, and the confidences from which on they err
    no more than wanted."""
    temperature = fit_temperature(score.logits_C_K, truth)
    probs = score.probs(temperature)
    right = probs.argmax(1) == truth
    return {
        "temperature": temperature,
        "nll": nll(probs, truth),
        "accuracy": float(right.mean()),
        "n": len(truth),
        "thresholds": thresholds_for(probs.max(1), right),
    }


def _shown(known: Known, rows: Sequence[tuple[int, AnyTrace]], without: str = "none") -> Asked:
    """What a calibrator is shown of these rows, places of clips with traces, when it is trained without a source."""
    pairs = known.shown((at, None if without == "video" else at) for at, _ in rows)
    return pairs, [None if without == "trace" else trace for _, trace in rows]


def _borrow(workbench: Workbench, run: Run) -> None:
    """Traces that a calibrator of the same reasoner and settings has sampled are taken over: they would be the same."""
    same = siblings(workbench, run)
    if same and not run.done("traces", "clip_id"):
        run.append("traces", unnamed(same[0].table("traces").to_pylist()))


def _sample(run: Run, local: LocalReasoner, clips: Sequence[Clip], config: Config, progress: bool) -> None:
    """Traces still missing: `traces` sampled ones (samples 0 …) and a greedy one (the sample after the last) for
    each clip."""
    settings, batch = config.calibrate, config.sampling.clips_per_batch
    done = run.done("traces", "clip_id")
    missing = [clip for clip in clips if clip.clip_id not in done]
    starts = range(0, len(missing), batch)
    for start in track(starts, "Traces to learn from", disable=not progress or not missing):
        chosen = missing[start : start + batch]
        limits = {"max_tokens": config.sampling.max_tokens, "top_p": config.sampling.top_p, "batch": batch}
        sampled = next(local.rows(chosen, range(settings.traces), temperature=settings.temperature, **limits), [])
        greedy = next(local.rows(chosen, [0], temperature=0.0, **limits), [])
        # One part: a clip has all its traces or none.
        run.append("traces", [*sampled, *(replace(row, sample=settings.traces) for row in greedy)])


class _Traces:
    """The stored traces by clip: `sampled` ones in order, and the `greedy` one."""

    def __init__(self, run: Run, task: Task, count: int):
        columns = ["clip_id", "sample", "text", "truncated", "thought"]
        rows = run.read("traces", columns).sort_values(["clip_id", "sample"])
        self.count = count
        self._by_clip = {clip_id: parsed(task, part) for clip_id, part in rows.groupby("clip_id")}

    def sampled(self, clip: Clip) -> list[AnyTrace]:
        return self._by_clip[clip.clip_id][: self.count]

    def greedy(self, clip: Clip) -> AnyTrace:
        return self._by_clip[clip.clip_id][self.count]

    def training(self, clip: Clip, with_greedy: bool) -> list[AnyTrace]:
        return self._by_clip[clip.clip_id][: self.count + with_greedy]


def _train(
    run: Run, vlm: VLM, task: Task, learnt: Asked, held_out: Asked, truth: np.ndarray, config: Config, progress: bool
) -> dict[str, float]:
    settings = config.calibrate
    rows, told = learnt

    def example(row: int, epoch: int) -> Example:
        clip, encoded = rows[row]
        order = _order(f"{config.seed}/{row}", len(task.labels)) if settings.shuffle_labels else None
        return Example(encoded, task.calibrator_prompt(clip.clip_id, told[row], order), clip.label)

    def validate() -> float:
        score = likelihood_scores(vlm, task, *held_out, config.sampling.clips_per_batch)
        return nll(apply_temperature(score.logits_C_K, 1.0), truth)

    planned = of_calibrate(settings, len(rows))
    stops = f" It may stop early: patience {settings.patience}." if settings.patience else ""
    tell(run, planned.sentence() + stops, progress)
    recipe = Recipe(
        settings.learning_rate,
        settings.epochs,
        settings.batch,
        save_steps=settings.save_steps,
        patience=settings.patience,
    )
    return finetune(
        vlm,
        [clip.clip_id for clip in rows.clips],
        example,
        recipe,
        run.path / "training",
        seed=config.seed,
        title="Calibrator",
        log=StepLog(partial(run.append, "steps")),
        validate=validate if settings.patience else None,
        progress=progress,
        report_to=config.report_to,
    )


def _order(key: str, count: int) -> list[int]:
    """A permutation of the labels that depends on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).permutation(count).tolist()


def fit_head(
    hidden_R_D: np.ndarray, targets_R: np.ndarray, held_out_V_D: np.ndarray, truth_V: np.ndarray, classes: int
) -> LinearHead:
    """Option B: logistic regression on hidden states, its strength chosen by NLL on the held-out ones. A class
    without a row gets almost nothing."""
    scaler = StandardScaler().fit(hidden_R_D)
    heads = []
    for strength in (0.001, 0.01, 0.1, 1.0):
        model = LogisticRegression(C=strength, max_iter=500).fit(scaler.transform(hidden_R_D), targets_R)
        weight, bias = np.zeros((classes, hidden_R_D.shape[1])), np.full(classes, -20.0)
        if len(model.classes_) == 2:
            weight[model.classes_[1]], bias[model.classes_] = model.coef_[0], (0.0, model.intercept_[0])
        else:
            weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
        heads.append(LinearHead(weight, bias, scaler.mean_, scaler.scale_))
    return min(heads, key=lambda head: nll(apply_temperature(head(held_out_V_D), 1.0), truth_V))
