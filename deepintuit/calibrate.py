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
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from deepintuit import disk, ranks
from deepintuit.config import Config
from deepintuit.errors import ConfigError
from deepintuit.metrics import apply_temperature, conformal_quantile, fit_temperature, nll, thresholds_for
from deepintuit.reasoner import (
    CALIBRATION,
    HEAD,
    Clip,
    Distance,
    Known,
    LinearHead,
    Scores,
    Task,
    add_distances,
    fit_head,
    gate_for,
    hidden_states,
    inherited,
    likelihood_scores,
    mean_scores,
    parsed,
    reasoner_for,
    reasoner_run,
    refuse_lost,
    refuse_one_class,
    vote_scores,
)
from deepintuit.reasoner.controls import siblings
from deepintuit.runs import Run, Workbench, unnamed
from deepintuit.schedule import of_calibrate
from deepintuit.stage import Stage, perform
from deepintuit.trace import Malformed, Trace
from deepintuit.vlm import VLM, Example
from deepintuit.vlm.finetune import Recipe

_TRAINED = "trained.json"
_MADE_BY = ("model", "video", "clips", "prompt", "sampling", "calibrate")
"""Sections that decide what this stage makes: a change in another one does not train again."""

AnyTrace = Trace | Malformed


class CalibratorRows(NamedTuple):
    """R rows as a calibrator is shown them: clips with features, and the trace beside each."""

    pairs: Known
    traces: list[AnyTrace | None]


def learn_to_trust(stage: Stage) -> dict[str, Any]:
    """Three steps, on two splits that the reasoner π was not trained on:

    1. sample   π, frozen, writes K traces and a greedy one of each clip x; wrong and unreadable ones are kept
    2. train    the calibrator q, from π's weights, by −log q(y | x, trace, provisional label) per row, y the true label
    3. fit      on validation, for each way to a distribution with logits z (V, K), T = argmin NLL(softmax(z / T), y)
    """
    task, settings, gate = stage.task, stage.config.calibrate, stage.config.gate
    # The calibrator cannot be its own gate while it is made: traces think to the end, and quick forms are rows too.
    by_calibrator = gate.by == "calibrated"
    gate_of_traces = gate_for(task, gate.replace(by="off") if by_calibrator else gate)
    about = {"gate": gate_of_traces, "run": stage.run, "cache": stage.workbench.cache, "progress": stage.progress}
    stage.reasoner = reasoner_for(stage.vlm, task, stage.config, **about)
    known, validation = stage.readable("calibration"), stage.readable("validation")
    traces = sample(stage, known.clips, validation.clips)

    rows = [(at, t) for at, clip in enumerate(known.clips) for t in traces.training(clip, settings.greedy_trace)]
    if by_calibrator:  # as many of every clip: where nothing was said at once, the whole trace counts twice
        rows += [(at, task.quick_form(trace) or trace) for at, trace in rows]
    learnt = calibrator_rows(known, rows, settings.without)
    greedy = [(at, traces.greedy(clip)) for at, clip in enumerate(validation.clips)]
    held_out = calibrator_rows(validation, greedy, settings.without)
    truth = np.array([task.labels.index(clip.label) for clip in validation.clips])  # (V,)

    whole = settings.without == "none"  # a control is scored by its own likelihood alone
    if whole and ranks.leads():
        Distance.fit(known, validation).save(stage.run.checkpoint)
    ways = reasoner_ways(stage, learnt, held_out, traces, truth) if whole else {}  # before training changes its weights
    result = train(stage, learnt, held_out, truth)
    ways["label_likelihood"] = likelihoods(stage, held_out), truth
    if whole:
        ways |= calibrator_ways(stage, validation, traces, truth, by_calibrator)
    fitted = {method: fit(scores, true) for method, (scores, true) in ways.items()}
    if ranks.leads():
        disk.write_json(stage.run.checkpoint / CALIBRATION, fitted)
    malformed = sum(isinstance(trace, Malformed) for trace in learnt.traces)
    counts = {"rows": len(learnt.traces), "malformed_rows": malformed, "clips": len(known)}
    return {**counts, "validation": fitted, **result}


def run(
    workbench: Workbench, config: Config, *, reasoner: str | None, name: str | None = None, progress: bool = True
) -> Run:
    """Sample traces of the run `reasoner`, train a calibrator on them, fit its temperatures and distances. Weights,
    `calibration.json` and `distance.safetensors` in `checkpoint`; a finished run without the last gets it. Where a
    server writes the traces, `reasoner` may be None: the calibrator begins with the model at `model.path`."""
    config, departs = inherited(workbench, config, reasoner)
    config.refuse_idle("calibrate")
    if config.calibrate.temperature == 0 and config.calibrate.traces > 1:
        raise ConfigError(
            f"calibrate.temperature = 0 with calibrate.traces = {config.calibrate.traces}",
            "at temperature 0 all traces of a clip are one",
            "Set calibrate.traces=1, or a temperature above 0",
        )
    if reasoner is not None:
        reasoner_run(workbench, reasoner)
    elif not config.server.model:
        raise ConfigError(
            "a calibrator of the model as it is",
            "it writes no traces in the form that is asked for before a cold start",
            "Name a coldstart or grpo run as --reasoner, or a server that writes the traces: server.model",
        )
    task = Task(workbench.path, config)
    for split in ("calibration", "validation"):
        refuse_one_class(task.clips(split), split)
    extra = {"gate": config.gate.by != "off", "server": config.server.model}
    sections = (*_MADE_BY, *(name for name, used in extra.items() if used))
    options = {"start": reasoner, "name": name, "departs": departs, "progress": progress}
    run = perform(workbench, config, "calibrate", learn_to_trust, sections=sections, **options)
    if config.calibrate.without == "none":
        add_distances(workbench, config, run)
    return run


Ways = dict[str, tuple[Scores, np.ndarray]]
"""Way to a distribution → its scores on validation, and the true labels (V,) beside them."""


def reasoner_ways(
    stage: Stage, learnt: CalibratorRows, held_out: CalibratorRows, traces: _Traces, truth: np.ndarray
) -> Ways:
    """Those that need the reasoner alone: a linear head on its hidden states (R, D), and its votes."""
    task, batch, path = stage.task, stage.config.sampling.clips_per_batch, stage.run.checkpoint / HEAD
    states = hidden_states(stage.vlm, task, *held_out, batch)
    if not ranks.first(path.exists):
        hidden = hidden_states(stage.vlm, task, *learnt, batch)
        targets = np.array([task.labels.index(clip.label) for clip in learnt.pairs.clips])
        if ranks.leads():
            fit_head(hidden, targets, states, truth, len(task.labels)).save(path)
    ranks.gather(None)  # it is there
    head = Scores(LinearHead.load(path)(states), np.full(len(truth), np.nan))
    votes = vote_scores(task, [traces.sampled(clip) for clip in held_out.pairs.clips])
    return {"linear_head": (head, truth), "vote": (votes, truth)}


def calibrator_ways(stage: Stage, validation: Known, traces: _Traces, truth: np.ndarray, quick: bool) -> Ways:
    """The mean over K sampled traces of a clip; for a calibrator that will be a gate, traces in their quick form."""
    clips, task = validation.clips, stage.task
    of_each = [[traces.sampled(clip)[k] for clip in clips] for k in range(stage.config.calibrate.traces)]
    ways = {
        "mean_likelihood": (
            mean_scores([likelihoods(stage, CalibratorRows(validation, each)) for each in of_each]),
            truth,
        )
    }
    every = [(at, trace) for at, clip in enumerate(clips) for trace in traces.training(clip, True)] if quick else []
    if forms := [(at, form) for at, trace in every if (form := task.quick_form(trace))]:
        ways["quick"] = likelihoods(stage, calibrator_rows(validation, forms)), truth[[at for at, _ in forms]]
    return ways


def train(stage: Stage, learnt: CalibratorRows, held_out: CalibratorRows, truth: np.ndarray) -> dict[str, float]:
    """The stage's model becomes the calibrator; the best epoch by validation NLL where `patience` asks for it."""
    config, settings, task = stage.config, stage.config.calibrate, stage.task
    done = stage.run.checkpoint / _TRAINED  # written behind the weights: a kill while they are scored trains no more
    if (before := ranks.first(lambda: done.exists() and done.read_text())) is not False:
        load = {"checkpoint": stage.run.checkpoint, "cache": stage.workbench.cache}
        stage.reasoner.vlm = VLM.load(config.model, config.video, **load)
        return json.loads(before)

    def example(row: int, epoch: int) -> Example:
        clip, encoded = learnt.pairs[row]
        order = _order(f"{config.seed}/{row}", len(task.labels)) if settings.shuffle_labels else None
        return Example(encoded, task.calibrator_prompt(clip.clip_id, learnt.traces[row], order), clip.label)

    def validate() -> float:
        return nll(apply_temperature(likelihoods(stage, held_out).logits_C_K, 1.0), truth)

    stops = f" It may stop early: patience {settings.patience}." if settings.patience else ""
    stage.announce(of_calibrate(settings, len(learnt.traces)), stops)
    clips = [clip.clip_id for clip in learnt.pairs.clips]
    best = validate if settings.patience else None
    result = stage.finetune(clips, example, Recipe.of(settings), "Calibrator", best)
    stage.keep_weights()
    if ranks.leads():
        disk.write_json(done, result)
    return result


def likelihoods(stage: Stage, rows: CalibratorRows) -> Scores:
    """(R, K) label log-likelihoods under the stage's model as it stands."""
    return likelihood_scores(stage.vlm, stage.task, *rows, stage.config.sampling.clips_per_batch)


def calibrator_rows(readable: Known, rows: Sequence[tuple[int, AnyTrace]], without: str = "none") -> CalibratorRows:
    """Rows (place of a clip, trace), less what a control is trained without: the video, or the trace."""
    pairs = readable.shown((at, None if without == "video" else at) for at, _ in rows)
    return CalibratorRows(pairs, [None if without == "trace" else trace for _, trace in rows])


def sample(stage: Stage, *splits: Sequence[Clip]) -> _Traces:
    """The traces of these clips: `traces` sampled ones (samples 0 …) and a greedy one (the sample after the last).

    What is there is not sampled again, and what a calibrator of the same reasoner and settings has sampled is taken
    over: it would be the same.
    """
    for clips in splits:
        refuse_one_class(clips, clips[0].split, readable=True)
    run, local, config = stage.run, stage.reasoner, stage.config

    def written() -> set[str]:
        if (same := siblings(stage.workbench, run)) and not run.done("traces", "clip_id"):
            run.append("traces", unnamed(same[0].table("traces").to_pylist()))
        return run.done("traces", "clip_id")

    count, batch, done = config.calibrate.traces, config.sampling.clips_per_batch, ranks.first(written)
    limits = {"max_tokens": config.sampling.max_tokens, "top_p": config.sampling.top_p, "batch": batch}
    temperatures = [config.calibrate.temperature] * count + [0.0]
    for clips in splits:
        missing = [clip for clip in clips if clip.clip_id not in done]
        starts = ranks.share(range(0, len(missing), batch))
        for start in track(starts, "Traces to learn from", disable=not stage.progress or not missing):
            chosen = missing[start : start + batch]
            # One part: a clip has all its traces or none.
            run.append("traces", next(local.rows(chosen, temperatures, **limits), []))
        refuse_lost(local, clips)
    run.settle()
    return _Traces(run, stage.task, count)


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


def fit(score: Scores, truth: np.ndarray) -> dict:
    """The temperature of these held-out scores, what they are worth at it, and the confidences from which on they err
    no more than wanted, and the quantile of conformal sets by their coverage."""
    temperature = fit_temperature(score.logits_C_K, truth)
    probs = score.probs(temperature)
    right = probs.argmax(1) == truth
    return {
        "temperature": temperature,
        "nll": nll(probs, truth),
        "accuracy": float(right.mean()),
        "n": len(truth),
        "thresholds": thresholds_for(probs.max(1), right),
        "conformal": {"0.9": conformal_quantile(probs, truth, 0.1)},
    }


def _order(key: str, count: int) -> list[int]:
    """A permutation of the labels that depends on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).permutation(count).tolist()
