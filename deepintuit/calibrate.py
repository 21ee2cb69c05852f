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
    EncodedClips,
    LinearHead,
    LocalReasoner,
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

    pairs: EncodedClips
    traces: list[AnyTrace | None]


def learn_to_trust(stage: Stage) -> dict[str, Any]:
    """Three steps, on two splits that the reasoner π was not trained on:

    1. sample   π, frozen, writes K traces and a greedy one of each clip x; wrong and unreadable ones are kept
    2. train    the calibrator q, from π's weights, by −log q(y | x, trace, provisional label) per row, y the true label
    3. fit      on validation, for each way to a distribution with logits z (V, K), T = argmin NLL(softmax(z / T), y)
    """
    task, settings, quick = stage.task, stage.config.calibrate, stage.config.gate.by == "calibrated"
    stage.reasoner = frozen_reasoner(stage)
    calibration, validation = stage.readable("calibration"), stage.readable("validation")
    traces = sample(stage, calibration.clips, validation.clips)

    examples = traces.training(calibration.clips, settings.greedy_trace)
    if quick:  # as many of every clip: where there is no quick answer, the whole trace counts twice
        examples += [(place, task.quick_form(trace) or trace) for place, trace in examples]
    training = calibrator_rows(calibration, examples, settings.without)  # R rows
    greedy = [(place, traces.greedy(clip)) for place, clip in enumerate(validation.clips)]
    held_out = calibrator_rows(validation, greedy, settings.without)  # V rows, one per clip
    truth_V = np.array([task.labels.index(clip.label) for clip in validation.clips])

    is_control = settings.without != "none"  # which is scored by its own likelihood alone
    if not is_control and ranks.leads():
        Distance.fit(calibration, validation).save(stage.run.checkpoint)
    # Before training changes the reasoner's weights.
    ways = {} if is_control else reasoner_ways(stage, training, held_out, traces, truth_V)
    summary = train(stage, training, held_out, truth_V)
    ways["label_likelihood"] = likelihoods(stage, held_out), truth_V
    if not is_control:
        ways |= calibrator_ways(stage, validation, traces, truth_V, quick)
    fits = {method: fit(scores, truth) for method, (scores, truth) in ways.items()}
    if ranks.leads():
        disk.write_json(stage.run.checkpoint / CALIBRATION, fits)
    malformed = sum(isinstance(trace, Malformed) for trace in training.traces)
    counts = {"rows": len(training.traces), "malformed_rows": malformed, "clips": len(calibration)}
    return {**counts, "validation": fits, **summary}


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
    stage: Stage, training: CalibratorRows, held_out: CalibratorRows, traces: _Traces, truth_V: np.ndarray
) -> Ways:
    """Those that need the reasoner alone: a linear head on its hidden states, and its votes."""
    task, batch, path = stage.task, stage.config.sampling.clips_per_batch, stage.run.checkpoint / HEAD
    hidden_V_D = hidden_states(stage.vlm, task, *held_out, batch)
    if not ranks.first(path.exists):
        hidden_R_D = hidden_states(stage.vlm, task, *training, batch)
        targets_R = np.array([task.labels.index(clip.label) for clip in training.pairs.clips])
        if ranks.leads():
            fit_head(hidden_R_D, targets_R, hidden_V_D, truth_V, len(task.labels)).save(path)
    ranks.gather(None)  # it is there
    head = Scores(LinearHead.load(path)(hidden_V_D), np.full(len(truth_V), np.nan))
    votes = vote_scores(task, [traces.sampled(clip) for clip in held_out.pairs.clips])
    return {"linear_head": (head, truth_V), "vote": (votes, truth_V)}


def calibrator_ways(stage: Stage, validation: EncodedClips, traces: _Traces, truth_V: np.ndarray, quick: bool) -> Ways:
    """The mean over K sampled traces of a clip; for a calibrator that will be a gate, traces in their quick form."""
    clips, task = validation.clips, stage.task
    samples_K_V = zip(*(traces.sampled(clip) for clip in clips))  # the k-th trace of each clip
    parts = [likelihoods(stage, CalibratorRows(validation, list(samples_V))) for samples_V in samples_K_V]
    ways = {"mean_likelihood": (mean_scores(parts), truth_V)}
    examples = traces.training(clips, with_greedy=True)
    if quick and (forms := [(place, form) for place, trace in examples if (form := task.quick_form(trace))]):
        ways["quick"] = likelihoods(stage, calibrator_rows(validation, forms)), truth_V[[place for place, _ in forms]]
    return ways


def train(stage: Stage, training: CalibratorRows, held_out: CalibratorRows, truth_V: np.ndarray) -> dict[str, float]:
    """The stage's model becomes the calibrator; the best epoch by validation NLL where `patience` asks for it."""
    config, settings, task = stage.config, stage.config.calibrate, stage.task
    path = stage.run.checkpoint / _TRAINED  # written behind the weights: a kill while they are scored trains no more
    if (summary := ranks.first(lambda: path.exists() and path.read_text())) is not False:
        load = {"checkpoint": stage.run.checkpoint, "cache": stage.workbench.cache}
        stage.reasoner.vlm = VLM.load(config.model, config.video, **load)
        return json.loads(summary)

    def example(row: int, epoch: int) -> Example:
        clip, encoded = training.pairs[row]
        order = _order(f"{config.seed}/{row}", len(task.labels)) if settings.shuffle_labels else None
        return Example(encoded, task.calibrator_prompt(clip.clip_id, training.traces[row], order), clip.label)

    def validate() -> float:
        return nll(apply_temperature(likelihoods(stage, held_out).logits_C_K, 1.0), truth_V)

    stops = f" It may stop early: patience {settings.patience}." if settings.patience else ""
    stage.announce(of_calibrate(settings, len(training.traces)), stops)
    clip_ids = [clip.clip_id for clip in training.pairs.clips]
    validation = validate if settings.patience else None
    summary = stage.finetune(clip_ids, example, Recipe.of(settings), "Calibrator", validation)
    stage.keep_weights()
    if ranks.leads():
        disk.write_json(path, summary)
    return summary


def likelihoods(stage: Stage, rows: CalibratorRows) -> Scores:
    """(R, K) label log-likelihoods under the stage's model as it stands."""
    return likelihood_scores(stage.vlm, stage.task, *rows, stage.config.sampling.clips_per_batch)


def calibrator_rows(clips: EncodedClips, rows: Sequence[tuple[int, AnyTrace]], without: str = "none") -> CalibratorRows:
    """Rows (place of a clip, trace), less what a control is trained without: the video, or the trace."""
    pairs = clips.shown((place, None if without == "video" else place) for place, _ in rows)
    return CalibratorRows(pairs, [None if without == "trace" else trace for _, trace in rows])


def sample(stage: Stage, *splits: Sequence[Clip]) -> _Traces:
    """The traces of these clips: `traces` sampled ones (samples 0 …) and a greedy one (the sample after the last).

    What is there is not sampled again, and what a calibrator of the same reasoner and settings has sampled is taken
    over: it would be the same.
    """
    for clips in splits:
        refuse_one_class(clips, clips[0].split, readable=True)
    run, local, config = stage.run, stage.reasoner, stage.config

    def stored_clips() -> set[str]:
        if (runs := siblings(stage.workbench, run)) and not run.done("traces", "clip_id"):
            run.append("traces", unnamed(runs[0].table("traces").to_pylist()))
        return run.done("traces", "clip_id")

    count, batch, clip_ids = config.calibrate.traces, config.sampling.clips_per_batch, ranks.first(stored_clips)
    limits = {"max_tokens": config.sampling.max_tokens, "top_p": config.sampling.top_p, "batch": batch}
    temperatures = [config.calibrate.temperature] * count + [0.0]
    for clips in splits:
        missing = [clip for clip in clips if clip.clip_id not in clip_ids]
        starts = ranks.share(range(0, len(missing), batch))
        for start in track(starts, "Traces to learn from", disable=not stage.progress or not missing):
            # One part: a clip has all its traces or none.
            run.append("traces", next(local.rows(missing[start : start + batch], temperatures, **limits), []))
        refuse_lost(local, clips)
    run.settle()
    return _Traces(run, stage.task, count)


def frozen_reasoner(stage: Stage) -> LocalReasoner:
    """Who writes the traces. A calibrator cannot be its own gate while it is made: they think to the end."""
    gate = stage.config.gate.replace(by="off") if stage.config.gate.by == "calibrated" else stage.config.gate
    about = {"run": stage.run, "cache": stage.workbench.cache, "progress": stage.progress}
    return reasoner_for(stage.vlm, stage.task, stage.config, gate=gate_for(stage.task, gate), **about)


class _Traces:
    """The stored traces by clip: K `sampled` ones in order, and the `greedy` one."""

    def __init__(self, run: Run, task: Task, count: int):
        columns = ["clip_id", "sample", "text", "truncated", "thought"]
        rows = run.read("traces", columns).sort_values(["clip_id", "sample"])
        self.count = count
        self._by_clip = {clip_id: parsed(task, part) for clip_id, part in rows.groupby("clip_id")}

    def sampled(self, clip: Clip) -> list[AnyTrace]:
        return self._by_clip[clip.clip_id][: self.count]

    def greedy(self, clip: Clip) -> AnyTrace:
        return self._by_clip[clip.clip_id][self.count]

    def training(self, clips: Sequence[Clip], with_greedy: bool) -> list[tuple[int, AnyTrace]]:
        """(place of the clip, trace), as many of each clip."""
        count = self.count + with_greedy
        return [(place, trace) for place, clip in enumerate(clips) for trace in self._by_clip[clip.clip_id][:count]]


def fit(scores: Scores, truth_V: np.ndarray) -> dict:
    """The temperature of these held-out scores, what they are worth at it, and the confidences from which on they err
    no more than wanted, and the quantile of conformal sets by their coverage."""
    temperature = fit_temperature(scores.logits_C_K, truth_V)
    probs_V_K = scores.probs(temperature)
    right_V = probs_V_K.argmax(1) == truth_V
    return {
        "temperature": temperature,
        "nll": nll(probs_V_K, truth_V),
        "accuracy": float(right_V.mean()),
        "n": len(truth_V),
        "thresholds": thresholds_for(probs_V_K.max(1), right_V),
        "conformal": {"0.9": conformal_quantile(probs_V_K, truth_V, 0.1)},
    }


def _order(key: str, count: int) -> list[int]:
    """A permutation of the labels that depends on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).permutation(count).tolist()
