"""Attribute: which sentences of the traces of a split carried the calibrated labels (`reasoner.attribution`).

It reads a finished run of evaluate or predict and asks its calibrator again about the same clips and traces. What
it writes are rows of the grain `attributions`, a clip at a time: a killed run resumes where it stopped.

Run it:  deepintuit attribute RUN
"""

from __future__ import annotations

from rich.progress import track

from deepintuit.config import Config
from deepintuit.errors import ConfigError, ModelError, StoreError
from deepintuit.reasoner import Calibrator, LocalReasoner, Task, inherited, parsed
from deepintuit.reasoner.attribution import attributions
from deepintuit.runs import Run, Workbench

_MOST_APART = 0.05
"""Between a probability as it was stored and as it is computed again: beyond rounding, in any precision."""


def calibrator_in(source: Run) -> str:
    """The calibrator whose answers a run holds. StoreError for a run without one, and for one that is not finished."""
    calibrator = source.config.get("calibrator") if source.stage in ("evaluate", "predict") else None
    if calibrator and source.finished:
        return calibrator
    lack, todo = "has no calibrator", "Give an evaluate or predict run of a system that has one"
    if calibrator:
        lack, todo = "is not finished", "Rerun its command: it resumes"
    why = "what is asked is which sentences its calibrated labels rest on"
    raise StoreError(f"run {source.id!r}, of the stage {source.stage}, {lack}", why, todo)


def run(workbench: Workbench, config: Config, *, source: str, progress: bool = True) -> Run:
    """The effects of all sentences behind the calibrated labels of the run `source`, with the settings that it was
    made with. ConfigError for others, ModelError where its calibrator does not answer any more as is stored."""
    answers = workbench.run(source)
    calibrator = calibrator_in(answers)
    config, departs = inherited(
        workbench, config.replace(clips={"dataset": answers.about["dataset"]}), source, calibrator
    )
    if departs:
        raise ConfigError(
            f"{', '.join(departs)} for the answers of {source}",
            "they rest on what the calibrator saw then, and it would be another question",
            "Leave these settings out: they are taken from the run",
        )
    about = {"parent": source, "name": answers.about["name"], "seed": answers.seed, "dataset": config.clips.dataset}
    run = workbench.start_run("attribute", {"calibrator": calibrator}, **about)
    if run.finished:
        return run
    with run:
        task, loaded = Task(workbench.path, config), Calibrator.load(workbench, config, calibrator)
        run.note(device=str(loaded.vlm.device), settings=config.to_dict())
        local, apart = LocalReasoner(loaded.vlm, task, config.seed), 0.0
        rows = answers.read("predictions")
        rows = rows[(rows["method"] == "label_likelihood") & (rows["control"] == "none")].set_index("clip_id")
        traces = answers.read("traces").set_index("trace_id", drop=False)
        clip_ids = run.done("attributions", "clip_id")
        missing = [clip for clip in task.unlabelled(rows.index) if clip.clip_id not in clip_ids]
        batch = config.sampling.clips_per_batch
        for start in track(range(0, len(missing), batch), "Attributions", disable=not progress):
            for clip, encoded in local.encode(missing[start : start + batch]):
                answer = rows.loc[clip.clip_id]
                [trace] = parsed(task, traces.loc[[answer["trace_id"]]])
                effects = attributions(loaded, task, clip, encoded, trace, answer["predicted"])
                if effects:
                    apart = max(apart, _apart(effects[0], answer))
                run.append("attributions", [{**row, "trace_id": answer["trace_id"]} for row in effects])
        unreadable = {clip_id: str(lost.error.reason) for clip_id, lost in local.unreadable.items()}
        clip_ids = run.table("attributions", ["clip_id"])["clip_id"]
        counts = {"clips": len(clip_ids.unique()), "sentences": len(clip_ids), "apart": apart}
        run.finish({"source": source, **counts, "unreadable": unreadable})
    return run


def _apart(row: dict, answer) -> float:
    """How far a probability is from the stored one. ModelError where that is more than rounding."""
    was = float(answer["probs"][list(answer["labels"]).index(row["answer"])])
    apart = abs(row["probability"] - was)
    if not apart <= _MOST_APART:
        raise ModelError(
            f"{row['answer']!r} now has a probability of {row['probability']:.3f} on the clip {row['clip_id']!r}",
            f"the run says {was:.3f}: its weights, the clip or the labels are not what they were",
            "Evaluate the system again, and attribute the answers of that run",
        )
    return apart
