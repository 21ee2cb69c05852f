"""Predict: clips without labels, any number of them → trace, calibrated distribution, and whether to abstain.

    predictor = deepintuit.load("calibrate-…", workbench="workbench")
    frame = predictor.predict(["videos", "clip.mp4"], risk=0.05)        # a row per clip, in the order given

The clips go into a dataset of their own, without labels and without a split, and their traces and predictions into a
run of the stage `predict`: both are there for the dashboard and for reviews. A killed run goes on where it stopped,
and clips that an earlier run of the same system has answered are taken over.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from deepintuit import addresses, disk, ranks, video
from deepintuit.command import with_dataset
from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.errors import ConfigError, DataError, StoreError
from deepintuit.plan import fitted
from deepintuit.reasoner import (
    FALSE_ALARMS,
    Calibrator,
    Clip,
    Distance,
    LocalReasoner,
    Task,
    answer_distribution,
    fitted_ways,
    gate_for,
    inherited,
    likelihood_scores,
    needs_weights,
    opinion_of,
    parsed,
    prediction_rows,
    reasoner_for,
    reasoner_run,
)
from deepintuit.reasoner.controls import calibrator_of, without
from deepintuit.runs import Run, TraceRow, Workbench, trace_id, unnamed
from deepintuit.runs.run import parts, plain, read_part
from deepintuit.vlm import VLM
from deepintuit.vlm.group import join
from deepintuit_clips import Listing, Report, import_new, scan
from deepintuit_clips.predict.table import Answers, Rules, threshold_of

SPLIT = "unlabelled"
"""The split that prediction rows name: the clips are in none of the dataset's."""
_LONG = 24 * 3600.0
"""Seconds to wait for a process that looks at the same files."""


@dataclass(frozen=True)
class Clips:
    """Clips as they were found. `given`: for each in the order given its name and its source in the manifest;
    `clip_of`: source → clip id; `refused`: clip id → reason and sentence, of clips that cannot be read."""

    dataset: str
    given: list[tuple[str, str]]
    clip_of: dict[str, str]
    refused: dict[str, tuple[str, str | None]]
    report: Report

    @property
    def readable(self) -> list[str]:
        """Clip ids, each once."""
        ids = dict.fromkeys(self.clip_of[source] for _, source in self.given)
        return [clip_id for clip_id in ids if clip_id not in self.refused]

    def of(self, shard: ranks.Shard | None) -> Clips:
        """Those of a shard; all of them without one."""
        if not shard:
            return self
        own = {*ranks.share([*dict.fromkeys(self.clip_of[source] for _, source in self.given)], shard)}
        return replace(self, given=[(name, source) for name, source in self.given if self.clip_of[source] in own])


class Predictor:
    """A system that answers: a calibrate run with the reasoner that it was trained on, or a coldstart or grpo run with
    its newest calibrator, or without one where there is none. Models are loaded when a clip needs them, once.

    `config` holds departures; everything else is as the runs were made. Of several processes (docs/scale.md) each
    answers its share of the clips, into one run.
    """

    def __init__(self, workbench: Workbench, system: str, config: Config | None = None):
        self.workbench = workbench
        config = config or Config()
        self.reasoner, self.calibrator = _system(workbench, system, config.server.model)
        stands_on = [run.id for run in (self.reasoner, self.calibrator) if run]
        if stands_on:
            taught_on = (self.reasoner or self.calibrator).about["dataset"]
            config = config.replace(clips={"dataset": taught_on or ""})
        elif not config.server.model:
            raise ConfigError(
                f"--system {system} without a server",
                "a model that was never taught writes no traces in the form that is asked for",
                "Name a run, or a server that writes the traces: server.model and server.base_url",
            )
        else:
            dataset = with_dataset(config.replace(workbench=str(workbench.path))).clips.dataset
            config = config.replace(clips={"dataset": dataset})
        self.config, self.departs = inherited(workbench, config, *stands_on)
        self.config.refuse_idle("predict")
        _refuse_other_ways(self.config)
        join(self.config.model.device)
        clips = self.config.clips
        self.labels = Manifest.load(workbench.path, clips.dataset).labels_or(clips.labels)
        self.ways = fitted_ways(self.calibrator) if self.calibrator else {}
        self.distance = Distance.load(self.calibrator) if self.calibrator else None

    @property
    def system(self) -> str:
        """The id of the run that answers; of a server alone the name of its model."""
        answering = self.calibrator or self.reasoner
        return answering.id if answering else self.config.server.model

    @property
    def weights(self) -> bool:
        """Whether the weights are loaded on this machine, and not at a server alone."""
        return needs_weights(self.config, self.calibrator.id if self.calibrator else None)

    @cached_property
    def models(self) -> tuple[VLM, Calibrator | None]:
        """The reasoner's model and the calibrator."""
        config, calibrator = self.config, self.calibrator.id if self.calibrator else None
        load = {"checkpoint": self.reasoner and self.reasoner.checkpoint, "weights": self.weights}
        model = fitted(config, "evaluate", logging.getLogger(__name__).warning) if self.weights else config.model
        vlm = VLM.load(model, config.video, cache=self.workbench.cache, **load)
        vlm.encoder.isolate = True
        return vlm, Calibrator.load(self.workbench, config, calibrator, vlm) if calibrator else None

    def reasoner_for(self, task: Task, run: Run | None = None, progress: bool = False) -> LocalReasoner:
        """What writes the traces, for this run, with the gate of the settings."""
        vlm, calibrator = self.models
        gate = gate_for(task, self.config.gate, calibrator)
        about = {"gate": gate, "run": run, "cache": self.workbench.cache, "progress": progress}
        return reasoner_for(vlm, task, self.config, **about)

    def predict(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        threshold: float | None = None,
        risk: float | None = None,
        false_alarms: float = FALSE_ALARMS,
        name: str = "",
        path_column: str = "path",
        videos: str | Path | None = None,
        progress: bool = False,
        shard: str | None = None,
    ) -> pd.DataFrame:
        """Answers to clips: folders, video files and tables of them, as of the command `deepintuit predict`; a row a
        clip in the columns of docs/predict.md, also for clips that cannot be read. `shard`: "2/8" answers that part of
        the clips, and gives its rows."""
        part = ranks.Shard.of(shard)
        rules = self.rules(threshold, risk, false_alarms)
        inputs = [paths] if isinstance(paths, str | os.PathLike) else [*paths]
        options = {"name": name, "path_column": path_column, "videos": videos, "progress": progress}
        clips = ranks.first(lambda: self.find(inputs, **options))
        run = self.run(clips, progress=progress, shard=part)
        return pa.concat_tables(self.answers(run, clips.of(part), rules).tables()).to_pandas()

    def rules(
        self, threshold: float | None = None, risk: float | None = None, false_alarms: float = FALSE_ALARMS
    ) -> Rules:
        """When answers abstain: below a probability, or as was chosen on validation clips for a risk; and on clips too
        unlike those that were learnt from, so that it befalls at most the share `false_alarms` of clips like those of
        validation (0: none). ConfigError for what is no probability, share or known risk."""
        if not 0 <= false_alarms < 1:
            why = "a share of clips lies between 0 and 1"
            raise ConfigError(f"--false-alarms {false_alarms:g}", why, "Give such a number, 0 to answer every clip")
        least = threshold_of(self.ways, threshold, risk, self.config.gate.by)
        farthest = self.distance.limit(false_alarms) if self.distance and false_alarms else float("inf")
        return Rules(self.labels, self.ways, least, farthest)

    def find(
        self,
        inputs: Sequence[str | Path],
        *,
        name: str = "",
        path_column: str = "path",
        videos: str | Path | None = None,
        jobs: int = 1,
        progress: bool = False,
        watch: bool = False,
    ) -> Clips:
        """The clips of these inputs, each looked at, in a dataset called `name` (by default after inputs and labels);
        with `watch` beside all that are in it already. Of processes that begin together one looks, and the others
        wait. DataError where there is none, or the dataset is one with labels of its own."""
        self.workbench.refuse_example()  # before minutes are spent on files
        names, listing = self.listed(inputs, path_column, videos)
        dataset, limits = name or self.dataset_of(inputs), video.Limits.of(self.config.video)
        self._former(dataset)  # refused before files are looked at
        place = Manifest(self.workbench.path, dataset, pd.DataFrame(), self.labels).path
        with disk.Lock(place.with_name(f".{dataset}.lock"), wait=_LONG, passing=True):
            manifest, report = scan(
                listing,
                self.workbench.path,
                dataset,
                probe=partial(video.probe, isolate=True),
                playable_copy=partial(video.playable_copy, limits=limits, isolate=True),
                limits=limits,
                jobs=jobs,
                progress=progress,
            )
            former = self._former(dataset)
            whole = manifest.onto(former) if former else manifest
            whole.save(keep=not watch)
        rows = [*(whole if watch else manifest).frame.itertuples()]
        if watch:
            names = [(source, source) for row in rows for source in (row.source, *row.also_at)]
        clip_of = {source: row.clip_id for row in rows for source in (row.source, *row.also_at)}
        refused = {row.clip_id: (row.excluded, row.excluded_detail) for row in rows if pd.notna(row.excluded)}
        return Clips(dataset, names, clip_of, refused, report)

    def listed(
        self, inputs: Sequence[str | Path], path_column: str = "path", videos: str | Path | None = None
    ) -> tuple[list[tuple[str, str]], Listing]:
        """What `import_new` finds, with the texts that this system reads."""
        texts = self.config.clips.text_fields
        return import_new(inputs, self.labels, path=path_column, text=texts, videos_root=videos)

    def dataset_of(self, inputs: Sequence[str | Path]) -> str:
        """The name of the dataset of these inputs: another set of labels has another one."""
        places = sorted({path if addresses.is_address(path) else os.path.abspath(path) for path in inputs})
        text = "\n".join([*places, self.labels.dumps()])
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        word = re.sub(r"[^A-Za-z0-9]+", "-", Path(places[0]).stem).strip("-")[:40] if len(places) == 1 else ""
        return f"predict-{word or 'clips'}-{digest}"

    def run(self, clips: Clips, *, progress: bool = False, shard: ranks.Shard | None = None) -> Run:
        """The finished run that has answered these clips: new, continued, or from before. Of one `shard` it is finished
        where all others have done their part."""
        run = self.begin(clips, shard=shard)
        if not run.finished:
            with run:
                self.answer(run, clips, {}, progress=progress)
        return run

    def begin(self, clips: Clips, *, watch: bool = False, shard: ranks.Shard | None = None) -> Run:
        """The run of these clips; with `watch` the one of their dataset, which is never finished."""
        config = self._config(clips)
        gate = ("gate",) if config.gate.by != "off" else ()
        settings = config.decisive()
        server = ("server",) if config.server.model else ()
        described = {name: settings[name] for name in ("model", "video", "clips", "prompt", "sampling", *gate, *server)}
        digest = "watch" if watch else _digest(self._prompts(Task(self.workbench.path, config), clips))
        described |= {"temperature": config.evaluate.temperature, "asked": digest}
        described |= {"calibrator": self.calibrator.id if self.calibrator else None}
        if self.distance:
            described["distance"] = True  # answers from before it was measured are not taken over
        about = {"name": clips.dataset.removeprefix("predict-"), "seed": config.seed, "dataset": clips.dataset}
        about |= {"parent": self.reasoner and self.reasoner.id, "together": not watch, "shard": shard}
        if shard:
            self._refuse_other_clips(described, clips, shard)
        return self.workbench.start_run("predict", described, **about)

    def answer(self, run: Run, clips: Clips, unreadable: dict[str, str], *, progress: bool, last: bool = True) -> None:
        """Ask about the clips that have no answer yet, a batch at a time, and finish the run if this is the `last`
        time. Clips that turn out to be unreadable are added to `unreadable`, with the reason."""
        config, own = self._config(clips), clips.of(run.shard)
        task, batch = Task(self.workbench.path, config), config.sampling.clips_per_batch

        def answered() -> set[str]:
            self._borrow(run, self._prompts(task, own))
            return run.stored("predictions")

        clip_ids = ranks.first(answered)
        missing = task.unlabelled(c for c in own.readable if c not in clip_ids and c not in unreadable)
        if missing:
            local = self.reasoner_for(task, run, progress)
            run.note(device=str(local.vlm.device), settings=config.to_dict(), departs=self.departs)
            starts = ranks.share(range(0, len(missing), batch))
            bar = progress and ranks.leads()
            for start in run.track("predictions", starts, "Predictions", len(clips.readable), bar):
                rows, predictions = self.answer_batch(local, missing[start : start + batch], run.id)
                if rows:
                    run.append("traces", rows)
                    run.append("predictions", predictions)  # one part: what is in it is answered
                unreadable |= {clip_id: str(lost.error.reason) for clip_id, lost in local.unreadable.items()}
        for causes in ranks.gather(dict(unreadable)):
            unreadable |= causes
        run.settle()
        if run.shard:
            last = run.last("predictions", clips.readable, unreadable)
            unreadable = _unreadable(run)
        if last:
            answered = len(run.stored("predictions"))
            summary = {"system": self.system, "calibrated": self.calibrator is not None, "listed": len(clips.given)}
            run.finish({**summary, "clips": answered, "refused": len(clips.refused), "unreadable": unreadable})

    def answer_batch(
        self, local: LocalReasoner, batch: Sequence[Clip], run_id: str, **live: Any
    ) -> tuple[list[TraceRow], list[dict[str, Any]]]:
        """The rows of the traces of these clips, and of the predictions, as a run of this id keeps them; none for clips
        that cannot be read, which are in `local.unreadable`. `live`: `on_text` and `stop` of `LocalReasoner.groups`."""
        calibrator, task = self.models[1], local.task
        sampling, temperature = self.config.sampling, self.config.evaluate.temperature
        limits = {"max_tokens": sampling.max_tokens, "top_p": sampling.top_p}
        groups = local.groups(batch, [0], temperature=temperature, **limits, **live)
        if not groups:
            return [], []
        rows = [local.row(clip, encoded, sample, 0, temperature) for clip, encoded, [sample] in groups]
        traces, clips = parsed(task, map(vars, rows)), [clip for clip, *_ in groups]
        ids, labels = [trace_id(run_id, clip.clip_id, 0) for clip in clips], [trace.provisional for trace in traces]
        # As they are stored, so that an evaluation of the same traces gives the same digits.
        logprobs = [None if r.token_logprobs is None else np.float32(r.token_logprobs) for r in rows]
        tokens = zip(traces, rows, logprobs)
        raw = [answer_distribution(task, t, r.token_ids, each, local.vlm.tokenizer) for t, r, each in tokens]
        about = {"split": SPLIT, "system": self.system}
        pairs = [(clip, encoded) for clip, encoded, _ in groups]
        far = calibrator.far(pairs) if calibrator else {}
        columns = {"predicted": labels, "provisional": labels, "far": far}
        predictions = prediction_rows(task.labels, clips, ids, raw, {**about, "method": "raw"}, **columns)
        if calibrator:
            opinions = [opinion_of(t) for t in traces]
            scores = likelihood_scores(calibrator.vlm, task, pairs, opinions, len(pairs))
            heat = calibrator.temperatures(traces)
            columns = {"provisional": labels, "outside": scores.outside_C, "temperature": heat, "far": far}
            about["method"] = "label_likelihood"
            predictions += prediction_rows(task.labels, clips, ids, scores.probs(heat), about, **columns)
        return rows, predictions

    def answers(self, run: Run, clips: Clips, rules: Rules, unreadable: dict[str, str] | None = None) -> Answers:
        """The table of a run's answers to these clips, told by `rules`; `unreadable` of a run that is not finished."""
        causes = _unreadable(run) if unreadable is None else unreadable
        refused = {**{clip_id: (reason, None) for clip_id, reason in causes.items()}, **clips.refused}
        return Answers(run, clips.given, clips.clip_of, refused, rules)

    def _former(self, dataset: str) -> Manifest | None:
        """The dataset as it is; DataError for one that an annotation gave labels."""
        if not (self.workbench.path / "clips" / f"{dataset}.parquet").is_file():
            return None
        former = Manifest.load(self.workbench.path, dataset)
        if former.labelled:
            raise DataError(
                f"{dataset!r} is a dataset with labels",
                "clips to be predicted have none, and its splits would not be what they were",
                "Choose another --name",
            )
        return former

    def _config(self, clips: Clips) -> Config:
        return self.config.replace(clips={"dataset": clips.dataset})

    def _prompts(self, task: Task, clips: Clips) -> dict[str, str]:
        return {clip_id: task.prompt_hash(task.reasoner_prompt(clip_id)) for clip_id in clips.readable}

    def _refuse_other_clips(self, described: dict[str, Any], clips: Clips, shard: ranks.Shard) -> None:
        """StoreError where the newest run of these settings is one that shards divide, of other clips."""
        settings = {**plain(described), "asked": None}
        runs = [run for run in self.workbench.runs("predict") if _made(run)[::3] == (settings, clips.dataset)]
        if runs and not runs[-1].finished and runs[-1].config["asked"] != described["asked"]:
            if [*runs[-1].path.glob("lock-*")]:
                raise StoreError(
                    f"shard {shard.number} of {shard.count} has other clips than those that {runs[-1].id!r} divides",
                    "files came, went or changed since its first shard began, and shards divide one list",
                    "Name the files in a table, or begin all shards anew with another --name",
                )

    def _borrow(self, run: Run, prompts: dict[str, str]) -> None:
        """Answers that runs of the same system and settings gave to clips of this dataset are taken over: they would
        be the same."""
        open_ = {*prompts} - run.stored("predictions")
        for source in reversed(self.workbench.runs("predict")):
            if source.id == run.id or _made(source) != _made(run) or not open_:
                continue
            for traces, predictions in _stored(source, open_, prompts):
                ids = {row["clip_id"]: trace_id(run.id, row["clip_id"], 0) for row in traces}
                run.append("traces", unnamed(traces))
                fresh = ({k: v for k, v in row.items() if k != "run_id"} for row in predictions)
                run.append("predictions", [{**row, "trace_id": ids[row["clip_id"]]} for row in fresh])
                open_ -= {*ids}


def load(run: str, workbench: str | Path | None = None, sets: Iterable[str] = ()) -> Predictor:
    """The system of a run, ready to `predict`. `workbench`: default as everywhere; `sets`: departures, "key=value"."""
    from deepintuit import config

    settings = config.load(None, [*sets])
    return Predictor(Workbench(workbench or settings.workbench), run, settings)


def _unreadable(run: Run) -> dict[str, str]:
    """The clips that could not be read, and why; of shards, by now."""
    if run.finished:
        return run.summary.get("unreadable", {})
    return {k: why for k, why in run.about.get("unreadable", {}).items() if k not in run.stored("predictions")}


def _made(run: Run) -> tuple:
    """By what, from what: whatever clips it was asked about."""
    return {**run.config, "asked": None}, run.parent, run.seed, run.about["dataset"]


def _stored(run: Run, clip_ids: set[str], prompts: dict[str, str]) -> Iterator[tuple[list[dict], list[dict]]]:
    """The answers of a run to clips that are wanted, with the prompt that is asked now, a part of its
    traces at a time."""
    answers_of: dict[str, list[dict]] = {}
    for row in run.table("predictions").to_pylist():
        answers_of.setdefault(row["clip_id"], []).append(row)
    clip_ids = clip_ids & answers_of.keys()
    ids: set[str] = set()
    for _, path in parts(run.path, "traces"):
        rows = read_part(path).to_pylist()
        fits = [r for r in rows if r["clip_id"] in clip_ids and r["prompt_hash"] == prompts[r["clip_id"]]]
        fits = [row for row in fits if row["clip_id"] not in ids]
        ids |= {row["clip_id"] for row in fits}
        if fits:
            yield fits, [row_ for row in fits for row_ in answers_of[row["clip_id"]]]


def _digest(prompts: dict[str, str]) -> str:
    lines = sorted(f"{clip_id} {prompt}" for clip_id, prompt in prompts.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _system(workbench: Workbench, system: str, server: str) -> tuple[Run | None, Run | None]:
    """The reasoner and the calibrator of a run; none of a server's own model, called "zero-shot", and no reasoner of a
    calibrator that learnt from such a model's traces. StoreError for one that has none, or is not finished."""
    if system == "zero-shot":
        newest = calibrator_of(workbench, None, server)
        return None, workbench.run(newest) if newest else None
    run = workbench.run(system)
    calibrator = run if run.stage == "calibrate" else None
    reasoner = None if calibrator else reasoner_run(workbench, system)
    if calibrator and run.parent:
        reasoner = workbench.run(run.parent)
    for part in filter(None, (reasoner, calibrator)):
        if not part.finished:
            why = "a model is used when it is whole"
            raise StoreError(
                f"run {part.id!r} is not finished", why, f"Run `deepintuit {part.stage}` again: it resumes"
            )
    if calibrator and without(calibrator) != "none":
        raise StoreError(
            f"the calibrator {system!r} was trained without the {without(calibrator)}",
            "it is a control, and answers nothing by itself",
            "Name the one that was trained with calibrate.without=none, or its reasoner",
        )
    if reasoner and reasoner.config.get("coldstart", {}).get("target") == "label":
        raise StoreError(
            f"run {reasoner.id!r} answers by label alone",
            "a prediction rests on a trace, and it writes none",
            "Name a run that was taught traces; `deepintuit evaluate` scores this one",
        )
    newest = None if calibrator else calibrator_of(workbench, reasoner.id, server)
    return reasoner, workbench.run(newest) if newest else calibrator


def _refuse_other_ways(config: Config) -> None:
    defaults = type(config.evaluate)()
    for name in ("method", "traces"):
        value = getattr(config.evaluate, name)
        if value != getattr(defaults, name):
            raise ConfigError(
                f"evaluate.{name} = {value!r}",
                "a prediction rests on one trace, read by label likelihood",
                f"Leave evaluate.{name} out; `deepintuit evaluate` compares the other ways",
            )
