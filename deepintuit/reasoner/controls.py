"""What a calibrated label rests on: the same question with one of its inputs altered (controls).

    views = CONTROLS["conclusion_wrong"](Inputs(opinions, truths, labels, seed))     # one `View` per clip

`report.results.CONTROLS` says in words what each of them asks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.reasoner.task import Opinion, opinion_of
from deepintuit.runs import Run, Workbench


class View(NamedTuple):
    """What a calibrator is shown of a clip: the video of the clip at this place (None: its own, blanked), and what a
    first reviewer said."""

    video: int | None
    opinion: Opinion


@dataclass(frozen=True)
class Inputs:
    """The clips of a split: what their own traces say, and their true labels."""

    opinions_C: Sequence[Opinion]
    truths_C: Sequence[str]
    labels: LabelSet
    seed: int

    def others(self, alike_C: Sequence[Hashable]) -> list[int | None]:
        """For each clip another one that is alike; None where it is the only one of its kind."""
        partners: list[int | None] = [None] * len(alike_C)
        for kind in dict.fromkeys(alike_C):
            members = [i for i, value in enumerate(alike_C) if value == kind]
            if len(members) > 1:
                for i, place in enumerate(derangement(len(members), self.seed)):
                    partners[members[i]] = members[place]
        return partners


def derangement(n: int, seed: int) -> np.ndarray:
    """A permutation without a fixed point (n > 1): every clip gets another one's."""
    order = np.random.default_rng([seed, n]).permutation(n)
    swapped = np.empty(n, int)
    swapped[order] = np.roll(order, 1)
    return swapped


Control = Callable[[Inputs], list[View | None]]
"""None for a clip that it cannot be asked of."""


def _told(alter: Callable[[Opinion], Opinion]) -> Control:
    return lambda inputs: [View(i, alter(opinion)) for i, opinion in enumerate(inputs.opinions_C)]


def _wrong(inputs: Inputs) -> list[View | None]:
    """Any label but the true one, and not what was concluded where there is a third."""
    rng = np.random.default_rng([inputs.seed, len(inputs.opinions_C)])
    views = []
    for i, (opinion, truth) in enumerate(zip(inputs.opinions_C, inputs.truths_C, strict=True)):
        candidates = [label for label in inputs.labels if label != truth]
        candidates = [label for label in candidates if label != opinion.conclusion] or candidates
        views.append(View(i, opinion._replace(conclusion=candidates[int(rng.integers(len(candidates)))])))
    return views


def _trace_of(alike: Callable[[Opinion], Hashable]) -> Control:
    def swapped(inputs: Inputs) -> list[View | None]:
        partners = inputs.others([alike(opinion) for opinion in inputs.opinions_C])
        return [None if partner is None else View(i, inputs.opinions_C[partner]) for i, partner in enumerate(partners)]

    return swapped


def _video_of_another(inputs: Inputs) -> list[View | None]:
    partners = inputs.others([0] * len(inputs.opinions_C))
    return [None if o is None else View(o, opinion) for o, opinion in zip(partners, inputs.opinions_C, strict=True)]


CONTROLS: dict[str, Control] = {
    "trace_blanked": _told(lambda opinion: opinion_of(None)),
    "rationale_blanked": _told(lambda opinion: opinion._replace(rationale="")),
    "conclusion_none": _told(lambda opinion: opinion._replace(conclusion=NONE_LABEL)),
    "conclusion_wrong": _wrong,
    "trace_swapped": _trace_of(lambda opinion: 0),
    "trace_swapped_alike": _trace_of(lambda opinion: opinion.conclusion),
    "video_blanked": lambda inputs: [View(None, opinion) for opinion in inputs.opinions_C],
    "video_swapped": _video_of_another,
}
"""Name in the store → what is shown. "alike": of a clip with the same conclusion."""


def without(calibrator: Run) -> str:
    """The source that this calibrator was trained without: "video", "trace" or "none"."""
    return calibrator.config.get("calibrate", {}).get("without", "none")


def trained_controls(workbench: Workbench, calibrator: Run) -> dict[str, Run]:
    """Source → the newest calibrator that was trained like this one, but without it."""
    return {without(run): run for run in siblings(workbench, calibrator) if without(run) != "none"}


def calibrator_of(workbench: Workbench, reasoner: str | None, server: str = "") -> str | None:
    """The newest finished calibrator of a reasoner that was trained with all its inputs: on traces that the model
    `server` wrote, where that is the one that writes them, else on those written by the weights of the run. None as
    `reasoner`: of a server's own model."""

    def written_by(run: Run) -> str:
        return run.config.get("server", {}).get("model", "")

    runs = [run for run in reversed(workbench.runs("calibrate", finished=True)) if without(run) == "none"]
    servers = (server, "") if reasoner else (server,)
    runs = [run for run in runs if run.parent == reasoner and written_by(run) in servers]
    return next((run.id for name in servers for run in runs if written_by(run) == name), None)


def siblings(workbench: Workbench, calibrator: Run) -> list[Run]:
    """Finished calibrate runs that differ from this one in `calibrate.without` alone, oldest first."""

    def made(run: Run) -> tuple:
        settings = {key: value for key, value in run.config.get("calibrate", {}).items() if key != "without"}
        return {**run.config, "calibrate": settings}, run.parent, run.seed, run.about["dataset"]

    runs = [run for run in workbench.runs("calibrate", finished=True) if run.id != calibrator.id]
    return [run for run in runs if made(run) == made(calibrator)]
