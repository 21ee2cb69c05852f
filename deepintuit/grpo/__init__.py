"""GRPO on video prompts: sample a group of traces per clip, score each by rule, push the good ones up (DeepIntuit,
stage 2).

DAPO's form by default: clipped ratio with a higher upper bound, a mean over all tokens, no KL. TRL's GRPOTrainer does
the update; what it lacks is video (its own generation would see the clip and its loss would not), so sampling, scoring
and log-probabilities are given to it here, with the clip in both. `objective = "softmax_weighted"` is the paper's text
[R]: weights softmax(r/τ) over a group, no negative ones.

The grammar decides what is rewarded. observation-think-answer: seeing and reasoning apart, each normalised in its own
group, each advantage given to the tokens of its segment (VideoP2R's PA-GRPO; `grpo.process` has the ablations).
answer-think-answer: a quick and a final answer (VideoAuto-R1). answer-observation-think-answer: both at once. `before`
counts what the starting model does with each clip, and can leave out those with nothing to teach.

Left out on purpose: a value model, vLLM sampling, more than one update a round.
Run it:  deepintuit grpo --config configs/tiny.toml --start RUN
"""

from __future__ import annotations

import shutil

import torch
from transformers import PrinterCallback

from deepintuit.config import Config
from deepintuit.errors import DataError
from deepintuit.grpo import before
from deepintuit.grpo.groups import Scorer, apart
from deepintuit.grpo.trainer import Trainer
from deepintuit.judges import appoint
from deepintuit.reasoner import (
    LocalReasoner,
    Task,
    asked,
    card,
    identity,
    inherited,
    reasoner_run,
    refuse_one_class,
    tell,
)
from deepintuit.runs import Run, Workbench
from deepintuit.schedule import few, of_grpo
from deepintuit.vlm import VLM

__all__ = ["run"]

_MADE_BY = ("model", "video", "clips", "prompt", "grpo")
"""Sections that decide what this stage makes: a change in another one does not train again."""


def run(
    workbench: Workbench, config: Config, *, start: str | None, name: str | None = None, progress: bool = True
) -> Run:
    """Refine the weights of the run `start` (None: the model as it is) on the GRPO split. Rollouts, rewards and
    advantages are stored as they come."""
    config, departs = inherited(workbench, config, start)
    config.refuse_idle("grpo")
    if start is not None:
        reasoner_run(workbench, start)
    clips = Task(workbench.path, config).clips("grpo")
    refuse_one_class(clips, "grpo")
    of_grpo(config.grpo, len(clips)).refuse_no_peak("grpo")
    described = identity(workbench.path, config, (*_MADE_BY, *(("judge",) if apart(config) else ())))
    run = workbench.start_run(
        "grpo", described, parent=start, name=name, seed=config.seed, dataset=config.clips.dataset
    )
    if not run.finished:
        with run:
            _train(workbench, config, run, start, departs, progress)
    shutil.rmtree(run.path / "training", ignore_errors=True)  # once all is safe elsewhere
    return run


def _train(
    workbench: Workbench, config: Config, run: Run, start: str | None, departs: list[str], progress: bool
) -> None:
    task = Task(workbench.path, config)
    torch.manual_seed(config.seed)  # a new adapter is drawn here
    checkpoint = workbench.run(start).checkpoint if start else None
    vlm = VLM.load(config.model, config.video, checkpoint=checkpoint, cache=workbench.cache, trainable=True)
    run.note(device=str(vlm.device), settings=config.to_dict(), asked=asked(task), departs=departs)
    judge = appoint(config, task.labels, task.manifest, workbench.cache) if apart(config) else None
    reasoner = LocalReasoner(vlm, task, config.seed)
    clips = reasoner.known(task.clips("grpo")).clips
    if not clips:
        raise DataError(
            "no clip of the split 'grpo' can be read",
            "the stage would have nothing to work on",
            "See whether the videos were moved, and import them again",
        )
    clips = before.chosen(reasoner, clips, config.grpo, run, progress)
    planned = of_grpo(config.grpo, len(clips))
    planned.refuse_no_peak("grpo")
    tell(run, planned.sentence() + few(planned), progress)
    trainer = Trainer(Scorer(reasoner, config, judge), clips, config, run, progress)
    trainer.remove_callback(PrinterCallback)
    trainer.train_or_resume(run.path / "training")
    vlm.model.eval()
    if "ref" in getattr(vlm.model, "peft_config", {}):
        vlm.model.delete_adapter("ref")  # TRL's frozen copy for the KL term
    vlm.save(run.checkpoint, card(run, config))
    run.finish(
        {
            "clips": len(clips),
            "steps": trainer.state.global_step,
            "tower_passes": vlm.encoder.passes,
            "unreadable": {clip_id: str(u.error.reason) for clip_id, u in reasoner.unreadable.items()},
            "check": run.about.get("check"),
            "filter": run.about.get("filter"),
        }
    )
