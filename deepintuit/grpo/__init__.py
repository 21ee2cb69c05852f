"""GRPO on video prompts: sample a group of traces per clip, score each by rule, push the good ones up (DeepIntuit,
stage 2).

DAPO's form by default, which departs from the GRPO of the textbook in three ways:

1. no KL term, so no reference model (`beta` brings both back)
2. a clipped ratio with a higher upper bound; with one update a round it is idle, the ratio being 1
3. a mean over all tokens of a round, not over traces first (`objective = "grpo"`)

TRL's GRPOTrainer does the update; what it lacks is video (its own generation would see the clip and its loss would
not), so sampling, scoring and log-probabilities are given to it here, with the clip in both. `objective =
"softmax_weighted"` is the paper's text [R]: weights softmax(r/τ) over a group, no negative ones.

The grammar decides what is rewarded. observation-think-answer: seeing and reasoning apart, each normalised in its own
group, each advantage given to the tokens of its segment (VideoP2R's PA-GRPO; `grpo.process` has the ablations).
answer-think-answer: a quick and a final answer (VideoAuto-R1). answer-observation-think-answer: both at once.
`prefilter` counts what the starting model does with each clip, and can leave out those with nothing to teach.

There is no value model, and one update a round. `sampler = "server"`: vLLM writes the traces (`reasoner.sampler`).
Run it:  deepintuit grpo --config configs/tiny.toml --start RUN
"""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback

from deepintuit.config import Config
from deepintuit.grpo import prefilter
from deepintuit.grpo.round import Scorer, splits_rewards
from deepintuit.grpo.trainer import Trainer
from deepintuit.judges import build_judge
from deepintuit.reasoner import ServedSampler, Task, inherited, reasoner_run, refuse_one_class
from deepintuit.runs import Run, Workbench
from deepintuit.schedule import few, of_grpo
from deepintuit.stage import Stage, perform

__all__ = ["run"]

_MADE_BY = ("model", "video", "clips", "prompt", "grpo")
"""Sections that decide what this stage makes: a change in another one does not train again."""


def refine(stage: Stage) -> dict[str, Any]:
    """Choose clips, then rounds (`round.play_round`) until the schedule ends: sample, score, push the good ones up."""
    config, task, run = stage.config, stage.task, stage.run
    judge = build_judge(config, task.labels, task.manifest, stage.workbench.cache) if splits_rewards(config) else None
    clips = stage.readable("grpo").clips
    if config.grpo.sampler == "server":
        stage.reasoner = ServedSampler(stage.reasoner, config, run, stage.progress)
        stage.reasoner.begin(clips)
    clips = prefilter.choose(stage.reasoner, clips, config, run, stage.progress)
    schedule = of_grpo(config.grpo, len(clips))
    schedule.refuse_no_peak("grpo")
    stage.announce(schedule, few(schedule))
    trainer = Trainer(Scorer(stage.reasoner, config, judge), clips, config, run, stage.progress)
    trainer.remove_callback(PrinterCallback)
    trainer.train_or_resume(run.path / "training")
    model = stage.vlm.model.eval()
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")  # TRL's frozen copy for the KL term
    stage.keep_weights()
    outcomes = {name: run.about.get(name) for name in ("check", "filter")}
    return {"clips": len(clips), "steps": trainer.state.global_step, **outcomes}


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
    sections = (*_MADE_BY, *(("judge",) if splits_rewards(config) else ()))
    options = {"start": start, "name": name, "departs": departs, "progress": progress}
    return perform(workbench, config, "grpo", refine, sections=sections, **options)
