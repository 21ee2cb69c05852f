"""What every training stage does around its algorithm, once: resume or begin the run, open the model, keep the weights.

    def train(stage: Stage) -> dict:          # the algorithm; what it returns is the run's summary
        ...
    perform(workbench, config, "coldstart", train, sections=("model", …), start=run_id)

A stage that was killed is called again with the same arguments and resumes; a finished run is given back as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from deepintuit import ranks
from deepintuit.config import Config
from deepintuit.errors import ConfigError, DataError, ModelError
from deepintuit.plan import fitted
from deepintuit.reasoner import LocalReasoner, Task, asked, card, identity, tell
from deepintuit.reasoner.local import EncodedClips
from deepintuit.runs import Run, Workbench
from deepintuit.schedule import Schedule
from deepintuit.vlm import VLM, Example
from deepintuit.vlm.finetune import Recipe, finetune
from deepintuit.vlm.group import join
from deepintuit.vlm.training import StepLog


@dataclass
class Stage:
    """An open stage: its run, and the model (in training, with the weights that it starts from) asked by `reasoner`."""

    workbench: Workbench
    config: Config
    run: Run
    reasoner: LocalReasoner
    progress: bool

    @property
    def vlm(self) -> VLM:
        return self.reasoner.vlm

    @property
    def task(self) -> Task:
        return self.reasoner.task

    def readable(self, *splits: str) -> EncodedClips:
        """The clips of these splits that can be read; the others go to the run's summary. DataError for none."""
        clips = [clip for split in splits for clip in self.task.clips(split)]
        return refuse_none(self.reasoner.readable(clips), *splits)

    def announce(self, planned: Schedule, more: str = "") -> None:
        """Says how many updates will be made and at which rates."""
        tell(self.run, planned.sentence() + more, self.progress)

    def finetune(
        self,
        clips: Sequence[str],
        example: Callable[[int, int], Example],
        recipe: Recipe,
        title: str,
        validate: Callable[[], float] | None = None,
    ) -> dict[str, float]:
        """Cross-entropy on one row for each of `clips` (`vlm.finetune`), logged to the run and resumable in it."""
        return finetune(
            self.vlm,
            clips,
            example,
            recipe,
            self.run.path / "training",
            seed=self.config.seed,
            title=title,
            log=StepLog(partial(self.run.append, "steps")),
            validate=validate,
            progress=self.progress,
            report_to=self.config.report_to,
        )

    def keep_weights(self) -> None:
        if ranks.leads():
            self.vlm.save(self.run.checkpoint, card(self.run, self.config))


def perform(
    workbench: Workbench,
    config: Config,
    stage: str,
    train: Callable[[Stage], Mapping[str, Any]],
    *,
    sections: Sequence[str],
    start: str | None,
    name: str | None = None,
    departs: Sequence[str] = (),
    progress: bool = True,
    **inputs: Any,
) -> Run:
    """The finished run of a training stage that begins with the weights of the run `start` (None: the model as it is).

    `sections` of the settings decide what it makes, and with `inputs` which run it is; `departs` says what differs from
    the run it stands on.
    """
    join(config.model.device)
    if ranks.count() == 1 and config.model.device != "cpu" and torch.cuda.device_count() > 1:
        raise ModelError(
            f"{torch.cuda.device_count()} GPUs are visible",
            "a process trains on one, and the others would be idle",
            f"Start `torchrun --nproc-per-node {torch.cuda.device_count()} -m deepintuit.cli {stage} …`, or set "
            "CUDA_VISIBLE_DEVICES=0, or the number of the one to use",
        )
    if config.model.divide_weights and stage == "grpo":
        raise ConfigError(
            "grpo with model.divide_weights = true",
            "its traces are sampled between updates, and divided weights would be gathered anew for every token",
            "Set model.divide_weights=false, and model.lora_rank=64 where memory is short",
        )
    settings = {**identity(workbench.path, config, sections), **inputs}
    keys = {"parent": start, "name": name, "seed": config.seed, "dataset": config.clips.dataset}
    run = workbench.start_run(stage, settings, **keys, together=True)  # all processes write this one
    progress = progress and ranks.leads()
    if not run.finished:
        with run:
            _refuse_other_count(run, config)
            task = Task(workbench.path, config)
            model, checkpoint = fitted(config, stage, run.log), workbench.run(start).checkpoint if start else None
            torch.manual_seed(config.seed)  # a new adapter is drawn here
            vlm = VLM.load(model, config.video, checkpoint=checkpoint, cache=workbench.cache, trainable=True)
            about = {"device": str(vlm.device), "processes": ranks.count(), "departs": list(departs)}
            run.note(**about, settings=config.to_dict(), asked=asked(task))
            opened = Stage(workbench, config, run, LocalReasoner(vlm, task, config.seed), progress)
            summary = train(opened)
            unreadable = {clip_id: str(u.error.reason) for clip_id, u in opened.reasoner.unreadable.items()}
            passes = sum(ranks.gather(opened.vlm.encoder.passes))  # all have come here, with their parts written
            run.finish({**summary, "unreadable": unreadable, "tower_passes": passes})
    if ranks.leads():
        shutil.rmtree(run.path / "training", ignore_errors=True)  # once all is safe elsewhere
    return run


def _refuse_other_count(run: Run, config: Config) -> None:
    before = run.about.get("processes", 1)
    if config.model.lora_dropout and (run.path / "training").exists() and before != ranks.count():
        raise ConfigError(
            f"{run.id} goes on in {ranks.count()} processes, and was begun in {before}",
            f"model.lora_dropout = {config.model.lora_dropout} draws by process, so it would train other weights",
            f"Rerun the command in {before} processes, or begin another run with model.lora_dropout=0",
        )


def refuse_none(clips: Sequence[Any], *splits: str) -> Any:
    """These clips; DataError where there are none."""
    if not clips:
        raise DataError(
            f"no clip of the split{'s' * (len(splits) > 1)} {', '.join(map(repr, splits))} can be read",
            "the stage would have nothing to work on",
            "See whether the videos were moved, and import them again",
        )
    return clips
