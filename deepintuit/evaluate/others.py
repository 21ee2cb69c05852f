"""What stands beside a calibrated distribution: other ways to one, and what it rests on (controls)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from deepintuit import ranks
from deepintuit.errors import DataError
from deepintuit.evaluate.rows import Rows, Traced
from deepintuit.linear import class_probabilities, logistic_regression, text_features
from deepintuit.metrics import fit_temperature
from deepintuit.reasoner import Calibrator, LocalReasoner, Opinion, ServedScores, Task, opinion_of, parsed, vote_scores
from deepintuit.reasoner.controls import CONTROLS, Inputs, View, trained_controls
from deepintuit.reasoner.distribution import Scores, hidden_states, likelihood_scores, mean_scores
from deepintuit.reasoner.head import HEAD, LinearHead
from deepintuit.runs import Run
from deepintuit.trace import Malformed, Trace
from deepintuit.vlm import VLM

_MOST_TEXTS = 20_000
"""Traces that the classifier of text alone learns from, at most."""
Sampled = Sequence[Sequence[Trace | Malformed]]
Ways = dict[str, Callable[[], Scores]]
_Answers = tuple[list[int], Scores, np.ndarray]
"""The places of the clips that were asked about, their scores, and of every clip the temperature."""


def other_ways(rows: Rows, reasoner: LocalReasoner, calibrator: Calibrator, traced: Traced, sampled: Sampled) -> Ways:
    """Beside the likelihood after the first trace: a head on the reasoner's hidden states, and what reads the n
    further traces (C, n) of each clip, where there are any."""
    (pairs, traces, _), task, batch = traced, rows.task, rows.config.sampling.clips_per_batch

    def linear_head() -> Scores:
        head = LinearHead.load(calibrator.run.checkpoint / HEAD)
        return Scores(head(hidden_states(reasoner.vlm, task, pairs, traces, batch)), np.full(len(pairs), np.nan))

    def mean_likelihood(vlm: VLM | ServedScores = calibrator.vlm) -> Scores:
        return mean_scores([likelihood_scores(vlm, task, pairs, each, batch) for each in zip(*sampled, strict=True)])

    if not reasoner.vlm.has_weights:
        why = "it reads hidden states, and a server gives none"
        rows.leave_out("linear_head", DataError("a linear head", why, "Set server.compare=true for this row"))
    head = {"linear_head": linear_head} if reasoner.vlm.has_weights else {}
    further = {"vote": lambda: vote_scores(task, sampled), "mean_likelihood": mean_likelihood}
    return {**head, **(further if any(sampled) else {})}


def write_others(rows: Rows, calibrator: Calibrator, traced: Traced, more: Ways, own: bool) -> None:
    """`more` ways to a distribution, and the controls. `own`: the traces are of the reasoner that the calibrator was
    trained for, so what else was trained on such traces stands beside it."""
    (pairs, traces, ids), task, config = traced, rows.task, rows.config
    clips, opinions = pairs.clips, [opinion_of(trace) for trace in traces]
    all_places, T_C = list(range(len(clips))), calibrator.temperatures(traces)

    def likelihood(
        views: Sequence[View | None], vlm: VLM | ServedScores = calibrator.vlm, T_C: np.ndarray = T_C
    ) -> _Answers:
        by_place = {i: view for i, view in enumerate(views) if view is not None}
        if not by_place:
            raise DataError("no clip has another like it", "nothing can be swapped in", "Score more clips for this row")
        shown_pairs = pairs.shown((i, view.video) for i, view in by_place.items())
        shown_opinions, batch = [view.opinion for view in by_place.values()], config.sampling.clips_per_batch
        return [*by_place], likelihood_scores(vlm, task, shown_pairs, shown_opinions, batch), T_C

    def ask_control(source: str, run: Run) -> _Answers:
        if isinstance(calibrator.vlm, ServedScores):
            why = "its weights are not at the server"
            raise DataError(f"the calibrator {run.id}", why, "Leave server.calibrator out for this row")
        views = [View(None, o) if source == "video" else View(i, opinion_of(None)) for i, o in enumerate(opinions)]
        variant = Calibrator.load(rows.workbench, config, run.id, calibrator.vlm)
        return likelihood(views, variant.vlm, np.full(len(clips), variant.ways["label_likelihood"]["temperature"]))

    def at_temperature(method: str) -> _Answers:
        return all_places, more[method](), np.full(len(clips), calibrator.ways[method]["temperature"])

    ways: dict[tuple[str, str], Callable[[], _Answers]] = {
        (method, "none"): partial(at_temperature, method) for method in more
    }
    if config.evaluate.controls:
        inputs = Inputs(opinions, [clip.label for clip in clips], task.labels, config.seed)
        for name, alter in CONTROLS.items():
            ways["label_likelihood", name] = lambda alter=alter: likelihood(alter(inputs))
    if config.evaluate.controls and own:
        ways["label_likelihood", "text_only"] = lambda: (
            all_places,
            *ranks.first(lambda: text_alone(calibrator.run, task, opinions, config.seed)),
        )
        for source, run in trained_controls(rows.workbench, calibrator.run).items():
            ways["label_likelihood", f"trained_without_{source}"] = partial(ask_control, source, run)

    existing = rows.done()
    for (method, control), way in ways.items():
        if (method, control) in existing:
            continue
        try:
            places, score, temperatures = way()
        except DataError as error:
            if control == "none":
                raise
            rows.leave_out(control, error)
            continue
        about = {"provisional": [opinions[i].conclusion for i in places], "traces": [ids[i] for i in places]}
        about |= {"control": control, "outside": score.outside_C, "temperature": temperatures[places]}
        rows.add(method, [clips[i] for i in places], score.probs(temperatures[places]), **about)
    # Calibrators from before chose none, and those of whole traces say nothing of quick answers.
    for method in ("label_likelihood", *more) if not any(calibrator.quick(traces)) else ():
        if "thresholds" in calibrator.ways[method]:
            rows.thresholds[method] = {
                "n": calibrator.ways[method]["n"],
                "risks": calibrator.ways[method]["thresholds"],
            }


def text_alone(calibration: Run, task: Task, opinions: Sequence[Opinion], seed: int) -> tuple[Scores, np.ndarray]:
    """The true label by TF-IDF and logistic regression on what the traces say, learnt from those that the calibrator
    learnt from, and the temperature of least NLL on validation; of very many traces, some [R]."""
    traces = calibration.read("traces", ["clip_id", "sample", "text", "truncated", "thought"])
    traces = traces.sort_values(["clip_id", "sample"])
    label_of = {split: {c.clip_id: c.label for c in task.clips(split)} for split in ("calibration", "validation")}
    training, held_out = (traces[traces["clip_id"].isin(clips)] for clips in label_of.values())
    training = training.sample(min(len(training), _MOST_TEXTS), random_state=seed)
    held_out = held_out.drop_duplicates("clip_id", keep="last")  # the greedy one
    all_opinions = [opinion_of(trace) for part in (training, held_out) for trace in parsed(task, part)] + [*opinions]
    texts = [f"{opinion.conclusion}\n{opinion.rationale}" for opinion in all_opinions]
    labels = [label_of["calibration"][clip_id] for clip_id in training["clip_id"]]
    model, n = logistic_regression(text_features()), len(training)
    logs = np.log(class_probabilities(model, texts[:n], labels, texts[n:], task.labels))
    truth = np.array([task.labels.index(label_of["validation"][clip_id]) for clip_id in held_out["clip_id"]])
    temperature, scores = fit_temperature(logs[: len(truth)], truth), logs[len(truth) :]
    return Scores(scores, np.full(len(opinions), np.nan)), np.full(len(opinions), temperature)
