"""Evaluate: traces and class distributions on a split, with the baselines and controls that stand beside every result.

A *system* is a reasoner with, if there is one, its calibrator. Rows: the raw answer (the provisional label; its own
probability from the tokens of the answer), the calibrated distribution, and its controls: the same calibrator with one
of its inputs altered (`reasoner.controls`), calibrators that were trained without one, and a classifier of the traces'
text alone. Choices were made on validation before: nothing is fitted here on the split that is scored.

Run it:  deepintuit evaluate --config configs/tiny.toml --reasoner RUN --calibrator RUN
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.progress import track
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from deepintuit.config import Config
from deepintuit.data import container_features, text_corpus
from deepintuit.errors import ConfigError, DataError, StoreError
from deepintuit.judges import Question, appoint
from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.metrics import fit_temperature, thresholds_for
from deepintuit.reasoner import (
    HEAD,
    NEEDS_SAMPLES,
    Calibrator,
    Clip,
    LinearHead,
    LocalReasoner,
    Opinion,
    Scores,
    Task,
    answer_distribution,
    fitted_ways,
    gate_for,
    hidden_states,
    identity,
    likelihood_scores,
    mean_scores,
    opinion_of,
    parsed,
    prompt_likelihoods,
    reasoner_run,
    refuse_one_class,
    vote_scores,
)
from deepintuit.reasoner.controls import CONTROLS, Asked, Shown, trained_controls, without
from deepintuit.store import Run, Workbench
from deepintuit.store import trace_id as id_of
from deepintuit.trace import Malformed, Trace, mismatch
from deepintuit.vlm import VLM, EncodedClip

_TRAINING = ("coldstart", "grpo", "calibration")
_MOST_TEXTS = 20_000
"""Traces that the classifier of text alone learns from, at most."""
AnyTrace = Trace | Malformed
_Answers = tuple[list[int], Scores, np.ndarray]
"""The places of the clips that were asked about, their scores, and of every clip the temperature."""


def run(
    workbench: Workbench,
    config: Config,
    *,
    reasoner: str | None,
    calibrator: str | None = None,
    system: str = "",
    progress: bool = True,
) -> Run:
    """Score one system on `evaluate.split`. `reasoner` None is the model at `model.path`, untouched (zero-shot).

    A teach run of that split is a reasoner too: what its teacher wrote is scored as it stands, nothing is sampled, and
    a calibrator that is named reads the first trace of each clip.
    """
    config.refuse_idle("evaluate")
    _refuse_one_trace_for_many(config)
    system = system or name_of(workbench, reasoner)
    if calibrator:
        _refuse_no_calibrator(workbench, reasoner, calibrator)
    if reasoner and workbench.run(reasoner).stage == "teach":
        return _teacher(workbench, config, workbench.run(reasoner), system, calibrator, progress)
    if reasoner:
        reasoner_run(workbench, reasoner)
    Task(workbench.path, config).clips(config.evaluate.split)  # none: refused before a run begins
    described = {**_identity(workbench, config, calibrator), "calibrator": calibrator, "system": system}
    run = workbench.start_run(
        "evaluate", described, parent=reasoner, name=system, seed=config.seed, dataset=config.clips.dataset
    )
    if run.finished:
        return run
    with run:
        task = Task(workbench.path, config)
        checkpoint = workbench.run(reasoner).checkpoint if reasoner else None
        vlm = VLM.load(config.model, config.video, checkpoint=checkpoint, cache=workbench.cache)
        run.note(device=str(vlm.device), settings=config.to_dict())
        judge = _Judge.load(workbench, config, calibrator) if calibrator else None
        local = LocalReasoner(vlm, task, config.seed, gate_for(task, config.gate, judge.gate if judge else None))
        known = _readable(local, config.evaluate.split)
        writer = _Predictions(workbench, run, task, system, config.evaluate.split, progress)
        if reasoner and _answers_without_trace(workbench.run(reasoner)):
            _labels_only(writer, local, known, config)
        else:
            _reasoned(writer, local, known, config, judge, own=judge is not None and judge.run.parent == reasoner)
        run.finish(
            {
                **writer.summary(len(known)),
                "tower_passes": vlm.encoder.passes,
                "unreadable": {clip_id: str(u.error.reason) for clip_id, u in local.unreadable.items()},
            }
        )
    return run


def _refuse_no_calibrator(workbench: Workbench, reasoner: str | None, calibrator: str) -> None:
    """A calibrator that is named must be one, finished, and have traces to read."""
    run = workbench.run(calibrator)
    fitted_ways(run)
    if without(run) != "none":
        raise StoreError(
            f"the calibrator {calibrator!r} was trained without the {without(run)}",
            "it is a control, and stands as a row beside the calibrator that reads both",
            "Name the calibrator that was trained with calibrate.without=none, or none",
        )
    if reasoner and _answers_without_trace(workbench.run(reasoner)):
        raise StoreError(
            f"the calibrator {calibrator!r} was named for {reasoner!r}, which answers by label alone",
            "a calibrator reads a trace, and there is none",
            "Leave the calibrator out: label likelihoods get a temperature of their own",
        )


class _Judge(NamedTuple):
    """A calibrator that is asked: its run, its weights, and what it fitted on validation."""

    run: Run
    vlm: VLM
    ways: dict[str, dict]

    @classmethod
    def load(cls, workbench: Workbench, config: Config, calibrator: str) -> _Judge:
        run = workbench.run(calibrator)
        vlm = VLM.load(config.model, config.video, checkpoint=run.checkpoint, cache=workbench.cache)
        return cls(run, vlm, fitted_ways(run))

    @property
    def gate(self) -> Calibrator | None:
        """As a gate: with the temperature of quick answers; None where it never learnt from any."""
        return Calibrator(self.vlm, self.ways["quick"]["temperature"]) if "quick" in self.ways else None


def _teacher(
    workbench: Workbench, config: Config, source: Run, system: str, calibrator: str | None, progress: bool
) -> Run:
    """Predictions of a teacher, an endpoint's model for one, from its stored traces, each clip's as votes: it told no
    probabilities."""
    task, split = Task(workbench.path, config), config.evaluate.split
    clips = {clip.clip_id: clip for clip in task.clips(split)}
    written = [row for row in source.table("traces").to_pylist() if row["clip_id"] in clips]
    if not source.finished or not written:
        lack = f"holds no trace of the split {split!r}" if source.finished else "is not finished"
        raise StoreError(
            f"run {source.id!r} {lack}",
            "a teacher is scored by what it has written",
            f"Run `deepintuit teach --split {split}` with its settings, to the end",
        )
    described = {**_identity(workbench, config, calibrator), "calibrator": calibrator, "system": system}
    run = workbench.start_run(
        "evaluate", described, parent=source.id, name=system, seed=config.seed, dataset=config.clips.dataset
    )
    if run.finished:
        return run
    with run:
        if not run.done("traces", "clip_id"):  # one part: a kill leaves all or none
            own = ("trace_id", "run_id", "stage")
            run.append("traces", [{key: value for key, value in row.items() if key not in own} for row in written])
        rows = run.read("traces").sort_values(["clip_id", "sample"])
        by_clip = {clip_id: parsed(task, part) for clip_id, part in rows.groupby("clip_id")}
        known = [clips[clip_id] for clip_id in by_clip]
        _note(workbench, run, task, config)
        votes = vote_scores(task, list(by_clip.values()))
        firsts = [traces[0].provisional for traces in by_clip.values()]
        said = [task.labels.labels[i] for i in votes.logits_C_K.argmax(1)]
        answers = [any(trace.ok for trace in traces) for traces in by_clip.values()]
        predicted = [label if answered else NONE_LABEL for label, answered in zip(said, answers)]
        writer, summary = _Predictions(workbench, run, task, system, split, progress), {"unreadable": {}}
        if not run.done("predictions", "clip_id"):
            writer.add("raw", known, predicted, votes.probs(1.0), provisional=firsts, outside=votes.outside_C)
        if calibrator:
            judge = _Judge.load(workbench, config, calibrator)
            run.note(device=str(judge.vlm.device), settings=config.to_dict())
            local = LocalReasoner(judge.vlm, task, config.seed)
            if pairs := local.encode(known):
                chosen = rows.drop_duplicates("clip_id").set_index("clip_id").loc[[clip.clip_id for clip, _ in pairs]]
                traces = [by_clip[clip_id][0] for clip_id in chosen.index]
                _calibrated(writer, judge, pairs, traces, chosen["trace_id"].tolist(), config, {}, own=False)
            summary["unreadable"] = {clip_id: str(u.error.reason) for clip_id, u in local.unreadable.items()}
        run.finish({**writer.summary(len(known)), **summary, "unwritten": len(clips) - len(known)})
    return run


def baselines(workbench: Workbench, config: Config, progress: bool = False) -> Run:
    """What needs no model: the majority class, the container's metadata alone, and (where texts or notes are shown)
    the text alone. One that has nothing to learn from is left out with a remark: in the summary, the log and, with
    `progress`, on the terminal."""
    described = {**_identity(workbench, config, None), "system": "baselines"}
    run = workbench.start_run("evaluate", described, name="baselines", seed=config.seed, dataset=config.clips.dataset)
    if run.finished:
        return run
    with run:
        task = Task(workbench.path, config)
        frame = task.manifest.usable().set_index("clip_id", drop=False)
        train = [clip for split in _TRAINING if len(task.manifest.usable(split)) for clip in task.clips(split)]
        test = task.clips(config.evaluate.split)
        train = train or task.clips(_TRAINING[0])  # says that there are none
        labels = [clip.label for clip in train]
        counts = np.array([labels.count(label) for label in task.labels], float)
        majority = _Predictions(workbench, run, task, "majority", config.evaluate.split, progress)
        majority.add(
            "raw",
            test,
            [task.labels.labels[int(counts.argmax())]] * len(test),
            np.tile((counts + 1) / (counts + 1).sum(), (len(test), 1)),
        )
        models = {"metadata": (make_pipeline(StandardScaler(), _regression()), container_features(frame).fillna(0))}
        if config.clips.text_fields or config.clips.notes_shown:
            texts = text_corpus(frame, config.clips.text_fields, config.clips.notes_shown)
            models["text"] = (make_pipeline(text_features(), _regression()), texts)
        for system, (model, features) in models.items():
            try:
                known, new = (features.loc[[clip.clip_id for clip in clips]] for clips in (train, test))
                probs = class_probabilities(model, known, labels, new, task.labels)
            except DataError as error:
                majority.leave_out(system, error)
                continue
            predicted = [task.labels.labels[i] for i in probs.argmax(1)]
            writer = _Predictions(workbench, run, task, system, config.evaluate.split, progress)
            writer.add("raw", test, predicted, probs)
        run.finish({**majority.summary(len(test)), "system": "baselines"})
    return run


def _regression() -> LogisticRegression:
    return LogisticRegression(max_iter=2000)


def text_features() -> TfidfVectorizer:
    """TF-IDF over words, pairs of words, and runs of one to four characters: scripts without spaces, and emoji, have
    no words [R]. What a single text holds tells nothing about another."""
    return TfidfVectorizer(analyzer=_grams, min_df=2, sublinear_tf=True, max_features=50_000)


def _grams(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", text)
    found = [f"{{{word}}}" for word in words] + [f"{{{a} {b}}}" for a, b in pairwise(words)]
    for piece in text.split():
        padded = f" {piece} "
        found += [padded[i : i + n] for n in range(1, 5) for i in range(len(padded) - n + 1)]
    return [gram for gram in found if gram != " "]


def class_probabilities(model: Pipeline, known, labels_C: Sequence[str], new, labels: LabelSet) -> np.ndarray:
    """The model fitted on `known` → probabilities (C, K) of `new`. A class without an example gets almost nothing.

    DataError where there is nothing to learn: one class only, or texts that have nothing in common.
    """
    if len(set(labels_C)) < 2:
        raise DataError(
            f"all {len(labels_C)} training clips are {labels_C[0]!r}",
            "there is nothing to tell apart",
            "Divide the clips so that training holds two classes",
        )
    try:
        model.fit(known, labels_C)
    except ValueError as error:
        raise DataError(
            f"nothing in these {len(labels_C)} training clips occurs twice ({error})",
            "what one clip alone says tells nothing about another",
            "Name fields with more text, or go without",
        ) from error
    probs = np.full((len(new), len(labels)), 1e-9)
    probs[:, [labels.index(label) for label in model.classes_]] = model.predict_proba(new)
    return probs / probs.sum(1, keepdims=True)


def _identity(workbench: Workbench, config: Config, calibrator: str | None) -> dict:
    """Settings that only the report reads are left out: other intervals are no other run. Controls are rows: others
    make another run."""
    settings = config.decisive()
    evaluate = {name: settings["evaluate"][name] for name in ("split", "traces", "temperature", "method", "controls")}
    sampled = {name: settings["calibrate"][name] for name in ("traces", "temperature")}
    gate = ("gate",) if config.gate.by != "off" else ()
    sections = identity(workbench.path, config, ("model", "video", "clips", "prompt", "sampling", *gate))
    rows = {}
    if calibrator and config.evaluate.controls:
        rows["rows"] = [*CONTROLS, *(run.id for run in trained_controls(workbench, workbench.run(calibrator)).values())]
    return {**sections, "evaluate": evaluate, "calibrate": sampled, **rows}


def _samples(config: Config) -> bool:
    """Whether a way to a distribution reads several traces."""
    return config.evaluate.traces > 1 or config.evaluate.method in NEEDS_SAMPLES


def _refuse_one_trace_for_many(config: Config) -> None:
    """Traces that are to be compared must be able to differ."""
    settings = config.evaluate
    if _samples(config) and config.calibrate.temperature == 0:
        raise ConfigError(
            f"calibrate.temperature = 0 with evaluate.traces = {settings.traces} by {settings.method}",
            "the further traces are sampled at that temperature, and at 0 they are all the first one",
            "Set calibrate.temperature=1, or evaluate.traces=1 and a method that reads one trace",
        )


def _answers_without_trace(run: Run) -> bool:
    return run.stage == "coldstart" and run.config["coldstart"]["target"] == "label"


def _readable(local: LocalReasoner, split: str) -> list[tuple[Clip, EncodedClip]]:
    found = local.encode(local.task.clips(split))
    if not found:
        raise DataError(
            f"no clip of the split {split!r} can be read",
            "there would be nothing to score",
            "See whether the videos were moved, and import them again",
        )
    return found


def name_of(workbench: Workbench, reasoner: str | None) -> str:
    """What a table calls the system of this run: the stages that made it, one behind the other, and on what data where
    that is not what the stage is for."""
    if reasoner is None:
        return "zero-shot"
    run = workbench.run(reasoner)
    if run.stage == "teach":
        settings = run.config["teach"]
        return f"teacher, {settings['model'] if settings['source'] == 'endpoint' else settings['source']}"
    before = name_of(workbench, run.parent) if run.parent else None
    if reasoner_run(workbench, reasoner).stage == "grpo":
        return f"{before} + GRPO" if before else "GRPO alone"
    settings = run.config["coldstart"]
    data = f", first {settings['limit']}" if settings.get("limit") else ""
    if settings["target"] == "trace":
        own = _teacher_source(workbench, run) == "self"
        return (f"{before} + " if before else "") + ("own rationales" if own else "cold start") + data
    if sorted(settings["splits"]) == sorted(_TRAINING):
        data = ", all clips" + data
    elif list(settings["splits"]) != ["coldstart"]:
        data = f", {' and '.join(settings['splits'])} clips" + data
    # RB-FT: own rationales, then labels.
    return ("RB-FT" if before == "own rationales" else f"{before} + labels" if before else "labels only") + data


def _teacher_source(workbench: Workbench, run: Run) -> str | None:
    """Who wrote the traces that a cold start imitates, where that run is still there."""
    try:
        return workbench.run(run.config["teacher"]).config.get("teach", {}).get("source")
    except StoreError:
        return None


def _reasoned(
    writer: _Predictions,
    local: LocalReasoner,
    known: list[tuple[Clip, EncodedClip]],
    config: Config,
    judge: _Judge | None,
    own: bool,
) -> None:
    settings, task = config.evaluate, local.task
    wanted = settings.traces if settings.traces > 1 else config.calibrate.traces
    count = wanted if _samples(config) else 0
    clips = [clip for clip, _ in known]
    _sample(writer.run, local, clips, config, count, writer.progress)
    _note(writer.workbench, writer.run, task, config)
    rows = writer.run.read("traces").sort_values(["clip_id", "sample"])
    by_clip = dict(iter(rows.groupby("clip_id")))
    first = [by_clip[clip.clip_id].iloc[0] for clip in clips]
    traces = parsed(task, first)
    ids = [row.trace_id for row in first]
    done, provisional = writer.run.done("predictions", ("method", "control")), [trace.provisional for trace in traces]
    if ("raw", "none") not in done:
        pairs, read = zip(traces, first), local.vlm.tokenizer
        raw = np.stack([answer_distribution(task, t, r.token_ids, r.token_logprobs, read) for t, r in pairs])
        writer.add("raw", clips, provisional, raw, provisional=provisional, traces=ids)
    sampled = [parsed(task, by_clip[clip.clip_id].iloc[1 : 1 + count]) for clip in clips]
    if judge is None:
        if count and ("vote", "none") not in done:
            votes = vote_scores(task, sampled)
            voted = [task.labels.labels[i] for i in votes.logits_C_K.argmax(1)]
            writer.add(
                "vote", clips, voted, votes.probs(1.0), provisional=provisional, traces=ids, outside=votes.outside_C
            )
        return
    batch = config.sampling.clips_per_batch

    def linear_head() -> Scores:
        head = LinearHead.load(judge.run.checkpoint / HEAD)
        return Scores(head(hidden_states(local.vlm, task, known, traces, batch)), np.full(len(known), np.nan))

    ways = {"linear_head": linear_head}
    if count:
        ways["vote"] = lambda: vote_scores(task, sampled)
        ways["mean_likelihood"] = lambda: mean_scores(
            [likelihood_scores(judge.vlm, task, known, [s[k] for s in sampled], batch) for k in range(count)]
        )
    _calibrated(writer, judge, known, traces, ids, config, ways, own)


def _calibrated(
    writer: _Predictions,
    judge: _Judge,
    known: list[tuple[Clip, EncodedClip]],
    traces: Sequence[AnyTrace],
    ids: Sequence[str],
    config: Config,
    more: dict[str, Callable[[], Scores]],
    own: bool,
) -> None:
    """Rows of the calibrator's label likelihood, of `more` ways, and of the controls. `own`: the traces are of the
    reasoner that it was trained for, and what was trained on the same traces stands beside it."""
    task, batch = writer.task, config.sampling.clips_per_batch
    clips, said = [clip for clip, _ in known], [opinion_of(trace) for trace in traces]
    # A trace that ended with its quick answer has a temperature of its own kind.
    knows = "quick" in judge.ways
    kinds = ["quick" if knows and trace.ok and trace.quick_only else "label_likelihood" for trace in traces]
    every, own_temperatures = list(range(len(clips))), np.array([judge.ways[kind]["temperature"] for kind in kinds])

    def likelihood(shown: Sequence[Shown | None], vlm: VLM = judge.vlm, temperatures=own_temperatures) -> _Answers:
        kept = [i for i, one in enumerate(shown) if one is not None]
        if not kept:
            why = "no clip has another like it", "there is nothing to swap in", "Score more clips for this row"
            raise DataError(*why)
        videos = [known[i][1].blanked() if shown[i].video is None else known[shown[i].video][1] for i in kept]
        pairs = [(clips[i], video) for i, video in zip(kept, videos, strict=True)]
        return kept, likelihood_scores(vlm, task, pairs, [shown[i].opinion for i in kept], batch), temperatures

    def trained(source: str, control_run: Run) -> _Answers:
        shown = [Shown(None, one) if source == "video" else Shown(i, opinion_of(None)) for i, one in enumerate(said)]
        other = _Judge.load(writer.workbench, config, control_run.id)
        temperature = other.ways["label_likelihood"]["temperature"]
        return likelihood(shown, other.vlm, np.full(len(clips), temperature))

    ways: dict[tuple[str, str], Callable[[], _Answers]] = {
        ("label_likelihood", "none"): lambda: likelihood([Shown(i, one) for i, one in enumerate(said)])
    }
    for method, way in more.items():
        fitted = np.full(len(clips), judge.ways[method]["temperature"])
        ways[method, "none"] = lambda way=way, fitted=fitted: (every, way(), fitted)
    if config.evaluate.controls:
        asked = Asked(said, [clip.label for clip in clips], task.labels, config.seed)
        for name, control in CONTROLS.items():
            ways["label_likelihood", name] = lambda control=control: likelihood(control(asked))
    if config.evaluate.controls and own:
        ways["label_likelihood", "text_only"] = lambda: (every, *_text_alone(judge.run, task, said, config.seed))
        for source, control_run in trained_controls(writer.workbench, judge.run).items():
            ways["label_likelihood", f"trained_without_{source}"] = partial(trained, source, control_run)

    done = writer.run.done("predictions", ("method", "control"))
    for (method, control), way in ways.items():
        if (method, control) in done:
            continue
        try:
            kept, score, temperatures = way()
        except DataError as error:
            if control == "none":
                raise
            writer.leave_out(control, error)
            continue
        probs = score.probs(temperatures[kept])
        writer.add(
            method,
            [clips[i] for i in kept],
            [task.labels.labels[k] for k in probs.argmax(1)],
            probs,
            control=control,
            provisional=[said[i].conclusion for i in kept],
            traces=[ids[i] for i in kept],
            outside=score.outside_C,
            temperature=temperatures[kept],
        )
    # Calibrators from before chose none, and those of whole traces say nothing of quick answers.
    for method in ("label_likelihood", *more) if "quick" not in kinds else ():
        if "thresholds" in judge.ways[method]:
            writer.thresholds[method] = {"n": judge.ways[method]["n"], "risks": judge.ways[method]["thresholds"]}


def _text_alone(calibration: Run, task: Task, said: Sequence[Opinion], seed: int) -> tuple[Scores, np.ndarray]:
    """The true label by TF-IDF and logistic regression on what the traces say, learnt from those that the calibrator
    learnt from, and the temperature of least NLL on validation; of very many traces, some [R]."""
    columns = ["clip_id", "sample", "text", "truncated", "thought"]
    rows = calibration.read("traces", columns).sort_values(["clip_id", "sample"])
    label_of = {split: {c.clip_id: c.label for c in task.clips(split)} for split in ("calibration", "validation")}
    learnt, held_out = (rows[rows["clip_id"].isin(clips)] for clips in label_of.values())
    learnt = learnt.sample(min(len(learnt), _MOST_TEXTS), random_state=seed)
    held_out = held_out.drop_duplicates("clip_id", keep="last")  # the greedy one

    def texts(opinions: Sequence[Opinion]) -> list[str]:
        return [f"{one.conclusion}\n{one.rationale}" for one in opinions]

    known, new = (texts([opinion_of(trace) for trace in parsed(task, part)]) for part in (learnt, held_out))
    truths = [label_of["calibration"][clip_id] for clip_id in learnt["clip_id"]]
    model = make_pipeline(text_features(), _regression())
    logs = np.log(class_probabilities(model, known, truths, [*new, *texts(said)], task.labels))
    truth = np.array([task.labels.index(label_of["validation"][clip_id]) for clip_id in held_out["clip_id"]])
    temperature = fit_temperature(logs[: len(new)], truth)
    return Scores(logs[len(new) :], np.full(len(said), np.nan)), np.full(len(said), temperature)


def _sample(run: Run, local: LocalReasoner, clips: Sequence[Clip], config: Config, count: int, progress: bool) -> None:
    """Sample 0 at the evaluation temperature (greedy by default), samples 1 … count at temperature 1 for the ways
    that need several."""
    batch = config.sampling.clips_per_batch
    limits = {"max_tokens": config.sampling.max_tokens, "top_p": config.sampling.top_p}
    done = run.done("traces", "clip_id")
    missing = [clip for clip in clips if clip.clip_id not in done]
    for start in track(range(0, len(missing), batch), "Traces", disable=not progress or not missing):
        chosen = missing[start : start + batch]
        rows = next(local.rows(chosen, [0], temperature=config.evaluate.temperature, batch=batch, **limits), [])
        if count:
            rows += next(
                local.rows(
                    chosen, range(1, count + 1), temperature=config.calibrate.temperature, batch=batch, **limits
                ),
                [],
            )
        run.append("traces", rows)


def _note(workbench: Workbench, run: Run, task: Task, config: Config) -> None:
    """Whether each trace concludes what it argued, and, where a judge can be asked, whether it had seen enough."""
    done = run.done("scores", "trace_id")
    rows = run.read("traces", ["trace_id", "clip_id", "true_label", "text", "truncated", "thought"])
    rows = rows[~rows["trace_id"].isin(done)]
    noted = [(row, trace) for row, trace in zip(rows.to_dict("records"), parsed(task, rows)) if trace.ok]
    scores = []
    for row, trace in noted:
        if trace.grammar.text_segments:
            value, argued = mismatch(trace, task.labels)
            scores.append({"trace_id": row["trace_id"], "name": "mismatch", "value": value, "evidence": argued})
    seen = [(row, trace) for row, trace in noted if "observation" in trace.spans]
    if seen and (config.judge.source != "endpoint" or config.judge.base_url):
        judge = appoint(config, task.labels, task.manifest, workbench.cache)
        asked = [Question(row["clip_id"], row["true_label"], trace.segment("observation")) for row, trace in seen]
        for (row, _), verdict in zip(seen, judge(asked), strict=True):
            about = {"name": "sufficient", "value": float(verdict.sufficient), "evidence": verdict.said}
            scores.append({"trace_id": row["trace_id"], **about})
    run.append("scores", scores)


def _labels_only(
    writer: _Predictions, local: LocalReasoner, known: list[tuple[Clip, EncodedClip]], config: Config
) -> None:
    """Direct-SFT and RB-FT answer without a trace: label likelihoods as they are, and at a temperature fitted on
    validation."""
    task, vlm = local.task, local.vlm

    def scores(pairs: list[tuple[Clip, EncodedClip]]) -> Scores:
        return prompt_likelihoods(
            vlm,
            task,
            [e for _, e in pairs],
            [task.label_prompt(clip.clip_id) for clip, _ in pairs],
            config.sampling.clips_per_batch,
        )

    score, clips, ways = scores(known), [clip for clip, _ in known], {"raw": 1.0}
    try:
        validation = _readable(local, "validation")
        refuse_one_class([clip for clip, _ in validation], "validation", readable=True)
        truth = np.array([task.labels.index(clip.label) for clip, _ in validation])
        held_out = scores(validation)
        ways["label_likelihood"] = fit_temperature(held_out.logits_C_K, truth)
        probs = held_out.probs(ways["label_likelihood"])
        risks = thresholds_for(probs.max(1), probs.argmax(1) == truth)
        writer.thresholds["label_likelihood"] = {"n": len(truth), "risks": risks}
    except DataError as error:
        writer.leave_out("label_likelihood", error)
    for method, t in ways.items():
        probs = score.probs(t)
        predicted = [task.labels.labels[i] for i in probs.argmax(1)]
        writer.add(method, clips, predicted, probs, provisional=predicted, outside=score.outside_C, temperature=t)


class _Predictions:
    """Writes prediction rows of one system, and gathers what its summary says."""

    def __init__(self, workbench: Workbench, run: Run, task: Task, system: str, split: str, progress: bool):
        self.workbench, self.run, self.task = workbench, run, task
        self.system, self.split, self.progress = system, split, progress
        self.left_out: dict[str, str] = {}
        self.thresholds: dict[str, dict] = {}

    def leave_out(self, name: str, why: DataError) -> None:
        """A row that cannot be: said in the summary, the log, and with `progress` on the terminal."""
        self.left_out[name] = f"The row {name!r} is left out: {why}"
        self.run.log(self.left_out[name])
        if self.progress:
            Console().print(self.left_out[name], markup=False)

    def summary(self, clips: int) -> dict:
        return {
            "system": self.system,
            "clips": clips,
            "left_out": self.left_out,
            "thresholds": self.thresholds,  # of confidence, chosen on validation clips
        }

    def add(
        self,
        method: str,
        clips: Sequence[Clip],
        predicted: Sequence[str],
        probs: np.ndarray,
        *,
        control: str = "none",
        provisional: Sequence[str] | None = None,
        traces: Sequence[str] | None = None,
        outside: np.ndarray | None = None,
        temperature: ArrayLike | None = None,
    ) -> None:
        temperatures = None if temperature is None else np.broadcast_to(temperature, len(clips))
        self.run.append(
            "predictions",
            [
                {
                    "clip_id": clip.clip_id,
                    "split": self.split,
                    "system": self.system,
                    "method": method,
                    "control": control,
                    "trace_id": traces[i] if traces else id_of(self.run.id, clip.clip_id, 0),
                    "true_label": clip.label,
                    "provisional": provisional[i] if provisional else NONE_LABEL,
                    "predicted": predicted[i],
                    "labels": list(self.task.labels),
                    "probs": [float(p) for p in probs[i]],
                    "outside_mass": None if outside is None or np.isnan(outside[i]) else float(outside[i]),
                    "temperature": None if temperatures is None else float(temperatures[i]),
                }
                for i, clip in enumerate(clips)
            ],
        )
