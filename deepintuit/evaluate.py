"""Evaluate: traces and class distributions on a split, with the baselines and controls that stand beside every result.

A *system* is a reasoner with, if there is one, its calibrator. Rows: the raw answer (the provisional label; its own
probability from the tokens of the answer), and the calibrated distribution, with the trace blanked, the video blanked
and another clip's trace swapped in. Choices were made on validation before: nothing is fitted here on the split that is
scored.

Run it:  deepintuit evaluate --config configs/tiny.toml --reasoner RUN --calibrator RUN
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
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
from deepintuit.metrics import fit_temperature
from deepintuit.reasoner import (
    HEAD,
    NEEDS_SAMPLES,
    Calibrator,
    Clip,
    LinearHead,
    LocalReasoner,
    Scores,
    Task,
    answer_distribution,
    fitted_ways,
    gate_for,
    hidden_states,
    identity,
    likelihood_scores,
    mean_scores,
    parsed,
    prompt_likelihoods,
    reasoner_run,
    vote_scores,
)
from deepintuit.store import Run, Workbench
from deepintuit.store import trace_id as id_of
from deepintuit.trace import Malformed, Trace, argued_label
from deepintuit.vlm import VLM, EncodedClip

_TRAINING = ("coldstart", "grpo", "calibration")
AnyTrace = Trace | Malformed


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

    A teach run of that split is a reasoner too: what its teacher wrote is scored as it stands, nothing is sampled.
    """
    config.refuse_idle("evaluate")
    _refuse_one_trace_for_many(config)
    system = system or name_of(workbench, reasoner)
    if reasoner and workbench.run(reasoner).stage == "teach":
        return _teacher(workbench, config, workbench.run(reasoner), system)
    if reasoner:
        reasoner_run(workbench, reasoner)
    if calibrator:
        fitted_ways(workbench.run(calibrator))
    described = {**_identity(workbench, config), "calibrator": calibrator, "system": system}
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
        calibrating = None
        if calibrator:
            checkpoint, ways = workbench.run(calibrator).checkpoint, fitted_ways(workbench.run(calibrator))
            judge = VLM.load(config.model, config.video, checkpoint=checkpoint, cache=workbench.cache)
            calibrating = Calibrator(judge, ways["label_likelihood"]["temperature"])
        local = LocalReasoner(vlm, task, config.seed, gate_for(task, config.gate, calibrating))
        known = _readable(local, config.evaluate.split)
        writer = _Predictions(run, task, system, config.evaluate.split)
        if reasoner and _answers_without_trace(workbench.run(reasoner)):
            _labels_only(writer, local, known, config)
        else:
            _reasoned(workbench, writer, local, known, config, calibrator, calibrating, progress)
        run.finish(
            {
                "system": system,
                "clips": len(known),
                "tower_passes": vlm.encoder.passes,
                "unreadable": {clip_id: str(u.error.reason) for clip_id, u in local.unreadable.items()},
            }
        )
    return run


def _teacher(workbench: Workbench, config: Config, source: Run, system: str) -> Run:
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
    described = {**_identity(workbench, config), "calibrator": None, "system": system}
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
        if not run.done("predictions", "clip_id"):
            _Predictions(run, task, system, split).add(
                "raw", known, predicted, votes.probs(1.0), provisional=firsts, outside=votes.outside_C
            )
        run.finish({"system": system, "clips": len(known), "unreadable": {}, "unwritten": len(clips) - len(known)})
    return run


def baselines(workbench: Workbench, config: Config, progress: bool = False) -> Run:
    """What needs no model: the majority class, the container's metadata alone, and (where texts or notes are shown)
    the text alone. One that has nothing to learn from is left out with a remark: in the summary, the log and, with
    `progress`, on the terminal."""
    described = {**_identity(workbench, config), "system": "baselines"}
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
        majority = _Predictions(run, task, "majority", config.evaluate.split)
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
        left_out = {}
        for system, (model, features) in models.items():
            try:
                known, new = (features.loc[[clip.clip_id for clip in clips]] for clips in (train, test))
                probs = class_probabilities(model, known, labels, new, task.labels)
            except DataError as error:
                left_out[system] = f"The baseline {system!r} is left out: {error}"
                run.log(left_out[system])
                if progress:
                    Console().print(left_out[system], markup=False)
                continue
            predicted = [task.labels.labels[i] for i in probs.argmax(1)]
            _Predictions(run, task, system, config.evaluate.split).add("raw", test, predicted, probs)
        run.finish({"system": "baselines", "clips": len(test), "left_out": left_out})
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


def _identity(workbench: Workbench, config: Config) -> dict:
    """Settings that only the report reads are left out: other intervals are no other run."""
    settings = config.to_dict()
    evaluate = {name: settings["evaluate"][name] for name in ("split", "traces", "temperature", "method", "controls")}
    sampled = {name: settings["calibrate"][name] for name in ("traces", "temperature")}
    gate = ("gate",) if config.gate.by != "off" else ()
    sections = identity(workbench.path, config, ("model", "video", "clips", "prompt", "sampling", *gate))
    return {**sections, "evaluate": evaluate, "calibrate": sampled}


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
    """What a table calls the system of this run, from what it was trained on."""
    if reasoner is None:
        return "zero-shot"
    run = workbench.run(reasoner)
    if run.stage == "teach":
        settings = run.config["teach"]
        return f"teacher, {settings['model'] if settings['source'] == 'endpoint' else settings['source']}"
    if reasoner_run(workbench, reasoner).stage == "grpo":
        return f"{name_of(workbench, run.parent)} + GRPO" if run.parent else "GRPO alone"
    settings = run.config["coldstart"]
    if settings["target"] == "label":
        return "RB-FT" if run.parent else ("labels only" if len(settings["splits"]) == 1 else "labels only, all clips")
    return "cold start"


def _reasoned(
    workbench: Workbench,
    writer: _Predictions,
    local: LocalReasoner,
    known: list[tuple[Clip, EncodedClip]],
    config: Config,
    calibrator: str | None,
    calibrating: Calibrator | None,
    progress: bool,
) -> None:
    settings, task = config.evaluate, local.task
    methods = fitted_ways(workbench.run(calibrator)) if calibrator else {}
    wanted = settings.traces if settings.traces > 1 else config.calibrate.traces
    count = wanted if _samples(config) else 0
    _sample(writer.run, local, [clip for clip, _ in known], config, count, progress)
    _note(workbench, writer.run, task, config)
    rows = writer.run.read("traces").sort_values(["clip_id", "sample"])
    by_clip = dict(iter(rows.groupby("clip_id")))
    first = [by_clip[clip.clip_id].iloc[0] for clip, _ in known]
    traces = parsed(task, first)
    done = writer.run.done("predictions", ("method", "control"))
    clips = [clip for clip, _ in known]
    ids = [row.trace_id for row in first]
    provisional = [trace.provisional for trace in traces]
    if ("raw", "none") not in done:
        pairs, read = zip(traces, first), local.vlm.tokenizer
        raw = np.stack([answer_distribution(task, t, r.token_ids, r.token_logprobs, read) for t, r in pairs])
        writer.add("raw", clips, provisional, raw, provisional=provisional, traces=ids)
    sampled = [parsed(task, by_clip[clip.clip_id].iloc[1 : 1 + count]) for clip in clips]
    if calibrator is None:
        if count and ("vote", "none") not in done:
            votes = vote_scores(task, sampled)
            said = [task.labels.labels[i] for i in votes.logits_C_K.argmax(1)]
            writer.add(
                "vote", clips, said, votes.probs(1.0), provisional=provisional, traces=ids, outside=votes.outside_C
            )
        return
    checkpoint, judge = workbench.run(calibrator).checkpoint, calibrating.vlm
    batch = config.sampling.clips_per_batch

    def likelihood(pairs: list[tuple[Clip, EncodedClip]], shown: Sequence[AnyTrace | None]) -> Scores:
        return likelihood_scores(judge, task, pairs, shown, batch)

    def linear_head() -> Scores:
        head = LinearHead.load(checkpoint / HEAD)
        return Scores(head(hidden_states(local.vlm, task, known, traces, batch)), np.full(len(known), np.nan))

    ways: dict[tuple[str, str], Callable[[], Scores]] = {
        ("label_likelihood", "none"): lambda: likelihood(known, traces), ("linear_head", "none"): linear_head,
    }  # fmt: skip
    if count:
        ways["vote", "none"] = lambda: vote_scores(task, sampled)
        ways["mean_likelihood", "none"] = lambda: mean_scores(
            [likelihood(known, [s[k] for s in sampled]) for k in range(count)]
        )
    if settings.controls:
        blanked = [(clip, encoded.blanked()) for clip, encoded in known]
        swapped = [traces[i] for i in _derangement(len(traces), config.seed)]
        ways["label_likelihood", "trace_blanked"] = lambda: likelihood(known, [None] * len(known))
        ways["label_likelihood", "video_blanked"] = lambda: likelihood(blanked, traces)
        if len(known) > 1:  # one clip alone has no other's trace
            ways["label_likelihood", "trace_swapped"] = lambda: likelihood(known, swapped)
    for (method, control), way in ways.items():
        if (method, control) in done:
            continue
        score, temperature = way(), methods[method]["temperature"]
        probs = score.probs(temperature)
        predicted = [task.labels.labels[i] for i in probs.argmax(1)]
        writer.add(
            method,
            clips,
            predicted,
            probs,
            control=control,
            provisional=provisional,
            traces=ids,
            outside=score.outside_C,
            temperature=temperature,
        )


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
            argued = argued_label(trace, task.labels)
            about = {"name": "mismatch", "value": float(argued != trace.label), "evidence": argued or NONE_LABEL}
            scores.append({"trace_id": row["trace_id"], **about})
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

    validation = _readable(local, "validation")
    truth = np.array([task.labels.index(clip.label) for clip, _ in validation])
    temperature = fit_temperature(scores(validation).logits_C_K, truth)
    score, clips = scores(known), [clip for clip, _ in known]
    for method, t in (("raw", 1.0), ("label_likelihood", temperature)):
        probs = score.probs(t)
        predicted = [task.labels.labels[i] for i in probs.argmax(1)]
        writer.add(method, clips, predicted, probs, provisional=predicted, outside=score.outside_C, temperature=t)


def _derangement(n: int, seed: int) -> np.ndarray:
    """A permutation without a fixed point (n > 1): every clip gets another clip's trace."""
    order = np.random.default_rng([seed, n]).permutation(n)
    swapped = np.empty(n, int)
    swapped[order] = np.roll(order, 1)
    return swapped


class _Predictions:
    """Writes prediction rows of one system."""

    def __init__(self, run: Run, task: Task, system: str, split: str):
        self.run, self.task, self.system, self.split = run, task, system, split

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
        temperature: float | None = None,
    ) -> None:
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
                    "temperature": temperature,
                }
                for i, clip in enumerate(clips)
            ],
        )
