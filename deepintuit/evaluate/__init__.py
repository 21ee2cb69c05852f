"""Evaluate: traces and class distributions on a split, with the baselines and controls that stand beside every result.

A *system* is a reasoner with, if there is one, its calibrator. Rows: the provisional label (method "raw"; its own
probability from the tokens of the answer), the calibrated distribution, and its controls: the same calibrator with one
of its inputs altered (`reasoner.controls`), calibrators that were trained without one, and a classifier of the traces'
text alone. Choices were made on validation before: nothing is fitted here on the split that is scored.

Run it:  deepintuit evaluate --config configs/tiny.toml --reasoner RUN --calibrator RUN
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from deepintuit import ranks
from deepintuit.config import TRAINING, Config, ServerConfig
from deepintuit.errors import ConfigError, DataError, StoreError
from deepintuit.evaluate.others import other_ways, write_others
from deepintuit.evaluate.rows import Rows, Traced
from deepintuit.judges import Question, build_judge
from deepintuit.labels import NONE_LABEL
from deepintuit.plan import fitted
from deepintuit.reasoner import (
    DISTANCE,
    NEEDS_SAMPLES,
    Calibrator,
    Clip,
    EncodedClips,
    LocalReasoner,
    Scores,
    Task,
    altered,
    answer_distribution,
    budget_for,
    fitted_ways,
    gate_for,
    identity,
    inherited,
    label_scores,
    likelihood_scores,
    needs_weights,
    parsed,
    reasoner_for,
    reasoner_run,
    refuse_altered,
    refuse_lost,
    vote_scores,
)
from deepintuit.reasoner.controls import CONTROLS, trained_controls, without
from deepintuit.runs import Run, Workbench, unnamed
from deepintuit.stage import refuse_none
from deepintuit.trace import mismatch
from deepintuit.vlm import VLM
from deepintuit.vlm.group import join


def score(rows: Rows, reasoner: LocalReasoner, pairs: EncodedClips, calibrator: Calibrator | None, own: bool) -> None:
    """The rows of one system on C clips of K classes. Reasoner π and calibrator q are frozen:

    1. trace        π writes one of each clip x, greedy by default, and n more where a way reads several
    2. provisional  the label y₀ that the trace concludes with, and its probability from the tokens of the answer
    3. calibrated   softmax(z / T), z = log q(y | x, trace, y₀) for each label y; T was fitted on validation
    4. beside it    other ways to a distribution, and the same question with one of its inputs altered (controls)
    """
    task, clips = rows.task, pairs.clips
    traces_of = write_traces(rows, reasoner, clips)  # clip id → its 1 + n rows
    firsts = [traces_of[clip.clip_id].iloc[0] for clip in clips]  # (C,)
    traced = Traced(pairs, parsed(task, firsts), [row.trace_id for row in firsts])
    sampled = [parsed(task, traces_of[clip.clip_id].iloc[1:]) for clip in clips]  # (C, n)
    provisional = [trace.provisional for trace in traced.traces]  # (C,)
    about, existing = {"provisional": provisional, "traces": traced.ids}, rows.done()
    rows.far = calibrator.far(pairs) if calibrator else {}
    if ("raw", "none") not in existing:
        answers, tokenizer = zip(traced.traces, firsts), reasoner.vlm.tokenizer
        probs = [answer_distribution(task, t, row.token_ids, row.token_logprobs, tokenizer) for t, row in answers]
        if lacking := sum(each is None for each in probs):
            what = f"{lacking} of {len(probs)} answers came without log-probabilities or token ids"
            why = f"the server of {rows.config.server.model!r} gave none that can be read here"
            rows.leave_out("raw: probabilities", DataError(what, why, "See docs/servers.md for servers that give them"))
        rows.add("raw", clips, probs, provisional, **about)  # (C, K)
    if calibrator is None:
        if any(sampled) and ("vote", "none") not in existing:
            votes = vote_scores(task, sampled)
            rows.add("vote", clips, votes.probs(1.0), outside=votes.outside_C, **about)
        return
    write_calibrated(rows, calibrator, traced)
    write_others(rows, calibrator, traced, other_ways(rows, reasoner, calibrator, traced, sampled), own)


def write_calibrated(rows: Rows, calibrator: Calibrator, traced: Traced) -> None:
    """Step 3: the label likelihoods of the calibrator after each clip's trace, at the temperature of its kind."""
    if ("label_likelihood", "none") in rows.done():
        return
    (pairs, traces, ids), batch = traced, rows.config.sampling.clips_per_batch
    scores = likelihood_scores(calibrator.vlm, rows.task, pairs, traces, batch)  # z (C, K)
    T_C = calibrator.temperatures(traces)
    about = {"provisional": [trace.provisional for trace in traces], "traces": ids, "outside": scores.outside_C}
    rows.add("label_likelihood", pairs.clips, scores.probs(T_C), temperature=T_C, **about)  # (C, K)


def run(
    workbench: Workbench,
    config: Config,
    *,
    reasoner: str | None,
    calibrator: str | None = None,
    system: str = "",
    progress: bool = True,
    shard: ranks.Shard | None = None,
) -> Run:
    """Score one system on `evaluate.split`. `reasoner` None is the model at `model.path`, untouched (zero-shot).

    A teach run of that split is a reasoner too: what its teacher wrote is scored as it stands, nothing is sampled, and
    a calibrator that is named reads the first trace of each clip. A `shard` samples the traces of its clips; the last
    one goes on from there, and the run is not finished before.
    """
    config, departs = inherited(workbench, config, reasoner, calibrator)
    config.refuse_idle("evaluate")
    _refuse_one_trace_for_many(config)
    model = reasoner is None and config.server.model
    departs += altered(config.evaluate)
    system = (system or model or name_of(workbench, reasoner)) + (f" ({', '.join(departs)})" if departs else "")
    if calibrator:
        _refuse_no_calibrator(workbench, reasoner, calibrator)
    unsampled = reasoner and (workbench.run(reasoner).stage == "teach" or _by_label(workbench.run(reasoner)))
    if shard and unsampled:
        shard.refuse(f"of {reasoner!r} no traces are sampled, which is what shards divide")
    if unsampled:
        refuse_altered(config.evaluate, reasoner, *(["thinking_tokens"] if _by_label(workbench.run(reasoner)) else []))
    if reasoner and workbench.run(reasoner).stage == "teach":
        local = config.replace(server=ServerConfig())  # its traces are written, and nothing is asked
        return _teacher(workbench, local, workbench.run(reasoner), system, calibrator, progress)
    if reasoner:
        reasoner_run(workbench, reasoner)
    if config.server.model and reasoner and _by_label(workbench.run(reasoner)):
        raise ConfigError(
            f"server.model = {config.server.model!r} for {reasoner!r}, which answers by label alone",
            "a server is asked for traces, and there is none",
            "Leave the server out",
        )
    Task(workbench.path, config).clips(config.evaluate.split)  # none: refused before a run begins
    join(config.model.device)
    together, progress = {"together": True, "shard": shard}, progress and ranks.leads()
    run = _started(workbench, config, reasoner, calibrator, system, **together)
    if run.finished:
        return run
    with run:
        task = Task(workbench.path, config)
        checkpoint = workbench.run(reasoner).checkpoint if reasoner else None
        weights = needs_weights(config, calibrator)
        model = fitted(config, "evaluate", run.log) if weights else config.model
        vlm = VLM.load(model, config.video, checkpoint=checkpoint, cache=workbench.cache, weights=weights)
        run.note(device=str(vlm.device), settings=config.to_dict(), departs=departs)
        if config.evaluate.distortion != "none":
            vlm.encoder.distortion = config.evaluate.distortion, config.evaluate.distortion_strength
        loaded = Calibrator.load(workbench, config, calibrator, vlm, run.id) if calibrator else None
        gate = gate_for(task, config.gate, loaded)
        about = {"gate": gate, "run": run, "cache": workbench.cache, "progress": progress}
        local = reasoner_for(vlm, task, config, **about)
        local.budget = budget_for(vlm, task, config)
        rows = Rows(workbench, config, run, task, system, progress)
        if shard and not _is_last(rows, local):
            return run
        pairs = _readable(local, config.evaluate.split)
        if reasoner and _by_label(workbench.run(reasoner)):
            _labels_only(rows, local, pairs)
        else:
            score(rows, local, pairs, loaded, own=loaded is not None and loaded.run.parent == reasoner)
        passes = sum(ranks.gather(vlm.encoder.passes))
        run.finish({**rows.summary(len(pairs)), "tower_passes": passes, "unreadable": _unreadable(local)})
    return run


def _started(
    workbench: Workbench, config: Config, parent: str | None, calibrator: str | None, system: str, **together: Any
) -> Run:
    described = {**run_identity(workbench, config, calibrator), "calibrator": calibrator, "system": system}
    about = {"name": system, "seed": config.seed, "dataset": config.clips.dataset}
    return workbench.start_run("evaluate", described, parent=parent, **about, **together)


def _unreadable(local: LocalReasoner) -> dict[str, str]:
    return {clip_id: str(failure.error.reason) for clip_id, failure in local.unreadable.items()}


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
    if reasoner and _by_label(workbench.run(reasoner)):
        raise StoreError(
            f"the calibrator {calibrator!r} was named for {reasoner!r}, which answers by label alone",
            "a calibrator reads a trace, and there is none",
            "Leave the calibrator out: label likelihoods get a temperature of their own",
        )


def _teacher(
    workbench: Workbench, config: Config, source: Run, system: str, calibrator: str | None, progress: bool
) -> Run:
    """Predictions of a teacher, an endpoint's model for one, from its stored traces, each clip's as votes: it told no
    probabilities."""
    task, split = Task(workbench.path, config), config.evaluate.split
    clips = {clip.clip_id: clip for clip in task.clips(split)}
    rows_of_run = [row for row in source.table("traces").to_pylist() if row["clip_id"] in clips]
    if not source.finished or not rows_of_run:
        lack = f"holds no trace of the split {split!r}" if source.finished else "is not finished"
        raise StoreError(
            f"run {source.id!r} {lack}",
            "a teacher is scored by what it has written",
            f"Run `deepintuit teach --split {split}` with its settings, to the end",
        )
    run = _started(workbench, config, source.id, calibrator, system)
    if run.finished:
        return run
    with run:
        if not run.done("traces", "clip_id"):  # one part: a kill leaves all or none
            run.append("traces", unnamed(rows_of_run))
        traces = run.read("traces").sort_values(["clip_id", "sample"])
        by_clip = {clip_id: parsed(task, part) for clip_id, part in traces.groupby("clip_id")}
        answered = [clips[clip_id] for clip_id in by_clip]
        ids = traces.drop_duplicates("clip_id")["trace_id"].tolist()  # of the first trace of each
        rows, unreadable = Rows(workbench, config, run, task, system, progress), {}
        _score_traces(rows)
        if not rows.done():
            votes = vote_scores(task, list(by_clip.values()))
            ranking = zip(by_clip.values(), votes.logits_C_K.argmax(1))
            winners = [task.labels.labels[k] if any(t.ok for t in traces) else NONE_LABEL for traces, k in ranking]
            about = {"provisional": [traces[0].provisional for traces in by_clip.values()], "traces": ids}
            rows.add("raw", answered, votes.probs(1.0), winners, outside=votes.outside_C, **about)
        if calibrator:
            loaded = Calibrator.load(workbench, config, calibrator)
            run.note(device=str(loaded.vlm.device), settings=config.to_dict())
            local = LocalReasoner(loaded.vlm, task, config.seed)
            pairs, id_of = local.readable(answered), dict(zip(by_clip, ids, strict=True))
            clip_ids = [clip.clip_id for clip in pairs.clips]
            rows.far = loaded.far(pairs)
            if clip_ids:
                traced = Traced(pairs, [by_clip[name][0] for name in clip_ids], [id_of[name] for name in clip_ids])
                write_calibrated(rows, loaded, traced)
                write_others(rows, loaded, traced, {}, own=False)
            unreadable = _unreadable(local)
        run.finish({**rows.summary(len(answered)), "unreadable": unreadable, "unwritten": len(clips) - len(answered)})
    return run


def run_identity(workbench: Workbench, config: Config, calibrator: str | None) -> dict:
    """Settings that only the report reads are left out: other intervals are no other run. Controls are rows: others
    make another run."""
    settings = config.decisive()
    names = ["split", "traces", "temperature", "method", "controls"]
    names += settings["evaluate"].keys() & {"thinking_tokens", "distortion", "distortion_strength"}
    evaluate = {name: settings["evaluate"][name] for name in names}
    sampled = {name: settings["calibrate"][name] for name in ("traces", "temperature")}
    gate = ("gate",) if config.gate.by != "off" else ()
    server = ("server",) if config.server.model else ()
    sections = identity(workbench.path, config, ("model", "video", "clips", "prompt", "sampling", *gate, *server))
    measured = calibrator and (workbench.run(calibrator).checkpoint / DISTANCE).exists()
    rows = {"distance": True} if measured else {}
    if calibrator and config.evaluate.controls:
        rows["rows"] = [*CONTROLS, *(run.id for run in trained_controls(workbench, workbench.run(calibrator)).values())]
    return {**sections, "evaluate": evaluate, "calibrate": sampled, **rows}


def _further(config: Config) -> int:
    """How many traces of each clip are sampled beside the first: some where a way to a distribution reads several."""
    if config.evaluate.traces > 1:
        return config.evaluate.traces
    return config.calibrate.traces if config.evaluate.method in NEEDS_SAMPLES else 0


def _refuse_one_trace_for_many(config: Config) -> None:
    """Traces that are to be compared must be able to differ."""
    settings = config.evaluate
    if _further(config) and config.calibrate.temperature == 0:
        raise ConfigError(
            f"calibrate.temperature = 0 with evaluate.traces = {settings.traces} by {settings.method}",
            "the further traces are sampled at that temperature, and at 0 they are all the first one",
            "Set calibrate.temperature=1, or evaluate.traces=1 and a method that reads one trace",
        )


def _by_label(run: Run) -> bool:
    return run.stage == "coldstart" and run.config["coldstart"]["target"] == "label"


def _readable(local: LocalReasoner, split: str) -> EncodedClips:
    return refuse_none(local.readable(local.task.clips(split)), split)


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
    if sorted(settings["splits"]) == sorted(TRAINING):
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


def write_traces(rows: Rows, local: LocalReasoner, clips: Sequence[Clip]) -> dict[str, pd.DataFrame]:
    """By clip: sample 0 at the evaluation temperature, samples 1 … n at that of calibration for the ways that need
    several."""
    _sample(rows, local, clips, len(clips))
    rows.run.settle()
    _score_traces(rows, local.vlm)
    return dict(iter(rows.run.read("traces").sort_values(["clip_id", "sample"]).groupby("clip_id")))


def _sample(rows: Rows, local: LocalReasoner, clips: Sequence[Clip], of: int) -> None:
    """The traces of these clips, `of` so many in all. What is there is not sampled again."""
    config, batch = rows.config, rows.config.sampling.clips_per_batch
    temperatures = [config.evaluate.temperature] + [config.calibrate.temperature] * _further(config)
    limits = {"max_tokens": config.sampling.max_tokens, "top_p": config.sampling.top_p, "batch": batch}
    clip_ids = ranks.first(lambda: rows.run.stored("traces"))
    missing = [clip for clip in clips if clip.clip_id not in clip_ids]
    starts = ranks.share(range(0, len(missing), batch))
    for start in rows.run.track("traces", starts, "Traces", of, rows.progress and bool(missing)):
        rows.run.append("traces", next(local.rows(missing[start : start + batch], temperatures, **limits), []))
    refuse_lost(local, clips)


def _is_last(rows: Rows, local: LocalReasoner) -> bool:
    """Sample the traces of a shard's clips. Whether those of all shards are there, and it goes on with them."""
    run, clips = rows.run, rows.task.clips(rows.config.evaluate.split)
    _sample(rows, local, local.readable(ranks.share(clips, run.shard)).clips, len(clips))
    return run.last("traces", [clip.clip_id for clip in clips], _unreadable(local))


def _score_traces(rows: Rows, beside: VLM | None = None) -> None:
    """Whether each trace concludes what it argued, and, where a judge can be asked, whether it had seen enough."""
    run, task, config = rows.run, rows.task, rows.config
    frame = run.read("traces", ["trace_id", "clip_id", "true_label", "text", "truncated", "thought"])
    frame = frame[~frame["trace_id"].isin(ranks.first(lambda: run.done("scores", "trace_id")))]
    frame = frame.iloc[ranks.share(range(len(frame)))]
    well_formed = [(row, trace) for row, trace in zip(frame.to_dict("records"), parsed(task, frame)) if trace.ok]
    scores = []
    for row, trace in well_formed:
        if trace.grammar.text_segments:
            value, label = mismatch(trace, task.labels)
            scores.append({"trace_id": row["trace_id"], "name": "mismatch", "value": value, "evidence": label})
    pairs = [(row, trace) for row, trace in well_formed if "observation" in trace.spans]
    if pairs and (config.judge.source != "endpoint" or config.judge.base_url):
        judge = build_judge(config, task.labels, task.manifest, rows.workbench.cache, beside)
        queries = [Question(row["clip_id"], row["true_label"], trace.segment("observation")) for row, trace in pairs]
        for (row, _), verdict in zip(pairs, judge(queries), strict=True):
            about = {"name": "sufficient", "value": float(verdict.sufficient), "evidence": verdict.evidence}
            scores.append({"trace_id": row["trace_id"], **about})
    run.append("scores", scores)


def _labels_only(rows: Rows, local: LocalReasoner, pairs: EncodedClips) -> None:
    """Direct-SFT and RB-FT answer without a trace: label likelihoods as they are, and at a temperature fitted on
    validation."""
    batch = rows.config.sampling.clips_per_batch

    def held_out() -> tuple[Sequence[Clip], Scores]:
        validation = _readable(local, "validation")
        return validation.clips, label_scores(local.vlm, local.task, validation, batch)

    rows.add_at_temperatures(pairs.clips, label_scores(local.vlm, local.task, pairs, batch), held_out)
