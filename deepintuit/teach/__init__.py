"""Stage "teach": ask a teacher for traces of a split; keep those whose grammar and answer hold (paper, cold start).

Three teachers (`teach.source`): the scripted one of homecam, which reads each clip's facts; a model at an
OpenAI-compatible endpoint, which sees the frames and is blind to the label; the local model itself, which is told the
label and says why (the RB-FT baseline). `teachers` holds them, `recorder` scores, stores and counts.

All traces are stored, kept or not: grain `traces`, and in `scores` for each trace `accuracy`, `format` and `kept`,
whose evidence is the reason when it was dropped (a `trace.Reason`, or "wrong_label"). The summary is counted from the
stored rows, so it is the same however often the run was killed.

With a grammar that has an observation a third step follows (VideoP2R): a judge reads the observation alone, without
the clip, and a trace whose observation does not suffice is dropped too (`judges`; `teach.judged`).

Malformed traces are not repaired.
Run it:  python -m pytest tests/test_teach.py
"""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.errors import DataError, TeachError
from deepintuit.judges import build_judge
from deepintuit.labels import LabelSet
from deepintuit.runs import Run, Workbench
from deepintuit.teach.recorder import WRONG_LABEL, Clip, TraceRecorder, summary, summary_table
from deepintuit.teach.teachers import build_teacher
from deepintuit.trace import GRAMMARS, Reason

__all__ = ["WRONG_LABEL", "run", "summary_table"]


def run(workbench: Workbench, config: Config, *, split: str = "coldstart", progress: bool = True) -> Run:
    """Traces of every usable clip of the split, as a finished run; what a former call left undone is done, no more.

    Clips that cannot be used or read, and requests that were refused, are listed in the summary with their reason, and
    in the run's log. Raises `DataError` for a split without clips, and `TeachError` when the teacher cannot be asked or
    left some traces unwritten for now; then all that came is kept, and the same call resumes there.
    """
    config.refuse_idle("teach")
    manifest = Manifest.load(workbench.path, config.clips.dataset)
    labels = manifest.labels_or(config.clips.labels)
    clips = _clips(manifest, labels, split)
    texts = manifest.text_fields(config.clips.text_fields, config.clips.notes_shown)
    write = build_teacher(workbench, config, labels, texts, clips)
    judge = build_judge(config, labels, manifest, workbench.cache) if _judged(config) else None
    description = _identity(config, split) | {"manifest": manifest.fingerprint}
    with _started(workbench, description, config.seed, manifest.dataset) as run:
        if not run.finished:
            start = time.perf_counter()
            run.note(settings=config.to_dict())
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            with Progress(*columns, disable=not progress) as bar, TraceRecorder(run, config, labels, judge) as recorder:
                todo = recorder.todo(clips)
                task = bar.add_task("Writing traces", total=sum(map(len, todo.values())))
                recorder.advance = lambda traces: bar.advance(task, traces)
                write([clip for clip in clips if todo[clip["clip_id"]]], todo, recorder)
            _refuse_to_finish(recorder, len(clips) * config.teach.traces)
            lists = {
                "excluded": _excluded(manifest, split),
                "unreadable": recorder.unreadable,
                "refused": recorder.refused,
            }
            for kind, entries in lists.items():
                for entry in entries:
                    run.log(f"{kind}: {json.dumps(entry, ensure_ascii=False)}")
            seconds = {"seconds": round(time.perf_counter() - start, 3)}
            run.finish(summary(run, clips, labels, config.teach) | seconds | lists)
    if progress:
        Console().print(summary_table(run.summary))
    return run


def _started(workbench: Workbench, description: dict[str, Any], seed: int, dataset: str) -> Run:
    """The run; where a finished one holds nothing but empty answers, as was possible once, another one."""
    run = workbench.start_run("teach", description, seed=seed, dataset=dataset)
    summary = run.summary if run.finished else {}
    if summary.get("written") and summary.get("dropped", {}).get(Reason.EMPTY) == summary["written"]:
        return workbench.start_run("teach", description, seed=seed, dataset=dataset, name="again")
    return run


def _refuse_to_finish(recorder: TraceRecorder, count: int) -> None:
    """A finished run never changes, so one that could still get its traces is left open."""
    if recorder.unanswered:
        raise TeachError(
            f"{len(recorder.unanswered)} traces did not come",
            f"the first of them: {recorder.unanswered[0].what}",
            "Rerun the command: what came is kept, and only these are asked again",
        )
    if len(recorder.refused) == count:
        raise TeachError(
            "Every request was refused", f"the first so: {recorder.refused[0]['why']}", "Mend it and rerun the command"
        )
    if len({entry["clip_id"] for entry in recorder.unreadable}) == count // recorder.config.teach.traces:
        raise DataError(
            "No clip of the split could be read",
            f"the first for this reason: {recorder.unreadable[0]['reason']}",
            "See the files with `python -m deepintuit.video FILE`, then rerun the command",
        )


def _clips(manifest: Manifest, labels: LabelSet, split: str) -> list[Clip]:
    clips = manifest.usable(split).to_dict("records")
    if not clips:
        raise DataError(
            f"Split {split!r} of {manifest.dataset!r} has no usable clip",
            "there is nothing to write about",
            "See `deepintuit clips` for what each split holds, or assign splits first",
        )
    # A labels.toml of the user's may keep the manifest's word as an alias.
    return [clip | {"label": labels.canonical(clip["label"])} for clip in clips]


def _excluded(manifest: Manifest, split: str) -> list[dict[str, Any]]:
    """Clips of the split, or of no split yet, that the manifest excludes."""
    out = manifest.frame[manifest.frame["excluded"].notna()]
    out = out[(out["split"] == split) | out["split"].isna()]
    fields = out[["clip_id", "source", "excluded"]].rename(columns={"excluded": "reason"})
    return fields.to_dict("records")


def _identity(config: Config, split: str) -> dict[str, Any]:
    """The settings that decide what the traces are; a change elsewhere in the config does not make them another run."""
    settings = config.decisive()
    teach = settings["teach"]
    del teach["judged"]  # a judge stands beside it, or none
    judge_settings = {name: settings["judge"][name] for name in ("source", "model", "base_url")}
    judge = {"judge": judge_settings} if _judged(config) else {}
    sections = {"homecam": (), "endpoint": ("video",), "self": ("video", "model", "sampling")}[config.teach.source]
    identity = {name: settings[name] for name in ("clips", "prompt", *sections)}
    return identity | judge | {"teach": teach, "split": split}


def _judged(config: Config) -> bool:
    return config.teach.judged and GRAMMARS[config.prompt.grammar].observes
