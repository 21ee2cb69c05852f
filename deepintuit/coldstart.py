"""Cold start: imitate the teacher's traces (DeepIntuit, stage 1), or the labels alone (the Direct-SFT baseline).

Token cross-entropy on the assistant's turn; visual tower and merger frozen. With `coldstart.target = "label"` and a
`start` run, the second half of RB-FT: a model tuned on its own rationales is tuned on labels.

Run it:  deepintuit coldstart --config configs/tiny.toml --teacher RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from deepintuit.config import Config
from deepintuit.errors import StoreError
from deepintuit.reasoner import Clip, Task, inherited, refuse_one_class
from deepintuit.runs import Run, Workbench
from deepintuit.schedule import of_coldstart
from deepintuit.stage import Stage, perform
from deepintuit.vlm import Example
from deepintuit.vlm.finetune import Recipe

_MADE_BY = ("model", "video", "clips", "prompt", "coldstart")
"""Sections that decide what this stage makes: a change in another one does not train again."""


def imitate(stage: Stage, teacher: Run | None) -> dict[str, Any]:
    """Minimise, over pairs of a clip and a text (a kept trace of the teacher, or the clip's label), the mean per token

        −log p(text_t | text_<t, prompt, frames)        t = 1 … T, the end token included

    whose gradient reaches the language model only: the tower's features are computed once and kept.
    """
    settings, task, reasoner = stage.config.coldstart, stage.task, stage.reasoner
    clips = {clip.clip_id: clip for clip in stage.readable(*settings.splits).clips}
    pairs = [(clip, clip.label) for clip in clips.values()] if teacher is None else kept_traces(teacher, clips)
    pairs = pairs[: settings.limit or None]
    prompt = task.label_prompt if teacher is None else task.reasoner_prompt

    def example(row: int, epoch: int) -> Example:
        clip, text = pairs[row]
        return Example(reasoner.features(clip), prompt(clip.clip_id), text)

    schedule = of_coldstart(settings, len(pairs))
    schedule.refuse_no_peak("coldstart")
    stage.announce(schedule)
    result = stage.finetune([clip.clip_id for clip, _ in pairs], example, Recipe.of(settings), schedule.stage)
    stage.keep_weights()
    return {"rows": len(pairs), "target": settings.target, **result}


def run(
    workbench: Workbench,
    config: Config,
    *,
    teacher: str | None,
    start: str | None = None,
    name: str | None = None,
    progress: bool = True,
) -> Run:
    """Train on the kept traces of the run `teacher` (target "trace") or on the labels of the cold-start split (target
    "label").

    `start`: a run whose weights to begin with, else the model at `model.path`. Returns the finished run, its weights in
    `checkpoint`.
    """
    by_trace = config.coldstart.target == "trace"
    config, departs = inherited(workbench, config, start, teacher if by_trace else None)
    config.refuse_idle("coldstart")
    if by_trace and teacher is None:
        raise StoreError(
            "no teacher run was named",
            "cold start imitates the traces of one",
            "Run `deepintuit teach` and pass --teacher RUN",
        )
    source = workbench.run(teacher) if by_trace else None
    task, splits = Task(workbench.path, config), config.coldstart.splits
    refuse_one_class([clip for split in splits for clip in task.clips(split)], ", ".join(splits))
    options = {"start": start, "name": name, "departs": departs, "progress": progress}
    train = partial(imitate, teacher=source)
    return perform(workbench, config, "coldstart", train, sections=_MADE_BY, **options, teacher=teacher)


def kept_traces(teacher: Run, clips: Mapping[str, Clip]) -> list[tuple[Clip, str]]:
    """(clip, text) of each kept trace of a teach run whose clip is among these. StoreError where none is."""
    scores = teacher.read("scores")
    kept_ids = set(scores.loc[(scores["name"] == "kept") & (scores["value"] == 1), "trace_id"])
    rows = teacher.read("traces", ["trace_id", "clip_id", "text"])
    pairs = [(clips[r.clip_id], r.text) for r in rows.itertuples() if r.trace_id in kept_ids and r.clip_id in clips]
    if not pairs:
        raise StoreError(
            f"run {teacher.id!r} kept no trace for a clip of the cold-start split",
            "there is nothing to imitate",
            "Look at its counts with `deepintuit report`, or teach again",
        )
    return pairs
