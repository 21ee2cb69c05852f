"""Cold start: imitate the teacher's traces (DeepIntuit, stage 1), or the labels alone (the Direct-SFT baseline).

Token cross-entropy on the assistant's turn; visual tower and merger frozen. With `coldstart.target = "label"` and a
`start` run, the second half of RB-FT: a model tuned on its own rationales is tuned on labels.

Run it:  deepintuit coldstart --config configs/tiny.toml --teacher RUN
"""

from __future__ import annotations

import shutil
from functools import partial

import torch

from deepintuit.config import Config
from deepintuit.errors import DataError, StoreError
from deepintuit.reasoner import Clip, LocalReasoner, Task, asked, card, identity, inherited, refuse_one_class, tell
from deepintuit.runs import Run, Workbench
from deepintuit.schedule import of_coldstart
from deepintuit.vlm import VLM, Example
from deepintuit.vlm.finetune import Recipe, finetune
from deepintuit.vlm.training import StepLog

_MADE_BY = ("model", "video", "clips", "prompt", "coldstart")
"""Sections that decide what this stage makes: a change in another one does not train again."""


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
    config, departs = inherited(workbench, config, start, teacher if config.coldstart.target == "trace" else None)
    config.refuse_idle("coldstart")
    if config.coldstart.target == "trace":
        if teacher is None:
            raise StoreError(
                "no teacher run was named",
                "cold start imitates the traces of one",
                "Run `deepintuit teach` and pass --teacher RUN",
            )
        workbench.run(teacher)
    task, splits = Task(workbench.path, config), config.coldstart.splits
    refuse_one_class([clip for split in splits for clip in task.clips(split)], ", ".join(splits))
    described = {**identity(workbench.path, config, _MADE_BY), "teacher": teacher}
    run = workbench.start_run(
        "coldstart", described, parent=start, name=name, seed=config.seed, dataset=config.clips.dataset
    )
    if not run.finished:
        with run:
            _train(workbench, config, run, teacher, start, departs, progress)
    shutil.rmtree(run.path / "training", ignore_errors=True)  # once all is safe elsewhere
    return run


def _train(
    workbench: Workbench,
    config: Config,
    run: Run,
    teacher: str | None,
    start: str | None,
    departs: list[str],
    progress: bool,
) -> None:
    settings = config.coldstart
    task = Task(workbench.path, config)
    checkpoint = workbench.run(start).checkpoint if start else None
    torch.manual_seed(config.seed)  # a new adapter is drawn here
    vlm = VLM.load(config.model, config.video, checkpoint=checkpoint, cache=workbench.cache, trainable=True)
    run.note(device=str(vlm.device), settings=config.to_dict(), asked=asked(task), departs=departs)
    reasoner = LocalReasoner(vlm, task, config.seed)
    clips = {clip.clip_id: clip for split in settings.splits for clip in reasoner.known(task.clips(split)).clips}
    if not clips:
        raise DataError(
            f"no clip of {', '.join(settings.splits)} can be read",
            "the stage would have nothing to work on",
            "See whether the videos were moved, and import them again",
        )
    targets = (
        _targets(workbench, clips, teacher)
        if settings.target == "trace"
        else [(clip, clip.label) for clip in clips.values()]
    )
    targets = targets[: settings.limit or None]
    ask = task.reasoner_prompt if settings.target == "trace" else task.label_prompt

    def example(row: int, epoch: int) -> Example:
        clip, text = targets[row]
        return Example(reasoner.features(clip), ask(clip.clip_id), text)

    recipe = Recipe(
        settings.learning_rate,
        settings.epochs,
        settings.batch,
        settings.warmup,
        settings.scheduler,
        settings.weight_decay,
        settings.max_grad_norm,
        settings.save_steps,
    )
    planned = of_coldstart(settings, len(targets))
    planned.refuse_no_peak("coldstart")
    tell(run, planned.sentence(), progress)
    result = finetune(
        vlm,
        [clip.clip_id for clip, _ in targets],
        example,
        recipe,
        run.path / "training",
        seed=config.seed,
        title=planned.stage,
        log=StepLog(partial(run.append, "steps")),
        progress=progress,
        report_to=config.report_to,
    )
    vlm.save(run.checkpoint, card(run, config))
    run.finish(
        {
            "rows": len(targets),
            "target": settings.target,
            "unreadable": {clip_id: str(u.error.reason) for clip_id, u in reasoner.unreadable.items()},
            "tower_passes": vlm.encoder.passes,
            **result,
        }
    )


def _targets(workbench: Workbench, clips: dict[str, Clip], teacher: str) -> list[tuple[Clip, str]]:
    """(clip, text) of each kept teacher trace whose clip is still in the cold-start split and readable."""
    source = workbench.run(teacher)
    scores = source.read("scores")
    kept = set(scores.loc[(scores["name"] == "kept") & (scores["value"] == 1), "trace_id"])
    rows = source.read("traces", ["trace_id", "clip_id", "text"])
    found = [(clips[r.clip_id], r.text) for r in rows.itertuples() if r.trace_id in kept and r.clip_id in clips]
    if not found:
        raise StoreError(
            f"run {teacher!r} kept no trace for a clip of the cold-start split",
            "there is nothing to imitate",
            "Look at its counts with `deepintuit report`, or teach again",
        )
    return found
