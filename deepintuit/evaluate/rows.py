"""Prediction rows of one system, on their way to the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console

from deepintuit import ranks
from deepintuit.config import Config
from deepintuit.errors import DataError
from deepintuit.metrics import fit_temperature, thresholds_for
from deepintuit.reasoner import Clip, EncodedClips, Scores, Task, prediction_rows, refuse_one_class
from deepintuit.reasoner.distance import Far
from deepintuit.runs import Run, Workbench, trace_id
from deepintuit.trace import Malformed, Trace


class Traced(NamedTuple):
    """C readable clips, beside each its first trace and that one's id."""

    clips: EncodedClips
    traces: list[Trace | Malformed]
    ids: list[str]


@dataclass
class Rows:
    """Writes the rows of a system, and gathers what the run's summary says of them."""

    workbench: Workbench
    config: Config
    run: Run
    task: Task
    system: str
    progress: bool
    left_out: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, dict] = field(default_factory=dict)
    far: dict[str, Far] = field(default_factory=dict)

    def done(self) -> set:
        """The (method, control) that are written."""
        return ranks.first(lambda: self.run.done("predictions", ("method", "control")))

    def add(
        self,
        method: str,
        clips: Sequence[Clip],
        probs: Sequence[np.ndarray | None],
        predicted: Sequence[str] | None = None,
        *,
        control: str = "none",
        provisional: Sequence[str] | None = None,
        traces: Sequence[str] | None = None,
        outside: np.ndarray | None = None,
        temperature: ArrayLike = np.nan,
    ) -> None:
        """One row a clip; `predicted` is what has the highest probability where nothing else is said. Of several
        processes all know them, and the leading one writes."""
        if not ranks.leads():
            return
        traces = traces or [trace_id(self.run.id, clip.clip_id, 0) for clip in clips]
        about = {"split": self.config.evaluate.split, "system": self.system, "method": method, "control": control}
        extra = {"predicted": predicted, "provisional": provisional, "outside": outside, "temperature": temperature}
        far = self.far if control == "none" else {}
        self.run.append("predictions", prediction_rows(self.task.labels, clips, traces, probs, about, **extra, far=far))

    def add_at_temperatures(
        self, clips: Sequence[Clip], scores: Scores, held_out: Callable[[], tuple[Sequence[Clip], Scores]]
    ) -> None:
        """For what answers without a trace: label scores as they are ("raw"), and at the temperature of least NLL on
        `held_out` clips of validation, with the thresholds of confidence chosen there."""
        labels = [self.task.labels.labels[k] for k in scores.logits_C_K.argmax(1)]
        ways = {"raw": 1.0}
        try:
            validation, held_out_scores = held_out()
            refuse_one_class(validation, "validation", readable=True)
            truth = np.array([self.task.labels.index(clip.label) for clip in validation])
            ways["label_likelihood"] = fit_temperature(held_out_scores.logits_C_K, truth)
            probs = held_out_scores.probs(ways["label_likelihood"])
            risks = thresholds_for(probs.max(1), probs.argmax(1) == truth)
            self.thresholds["label_likelihood"] = {"n": len(truth), "risks": risks}
        except DataError as error:
            self.leave_out("label_likelihood", error)
        about = {"provisional": labels, "outside": scores.outside_C}
        for method in [method for method in ways if (method, "none") not in self.done()]:
            temperature = ways[method]
            self.add(method, clips, scores.probs(temperature), labels, temperature=temperature, **about)

    def leave_out(self, name: str, why: DataError) -> None:
        """A row that cannot be: said in the summary, the log, and with `progress` on the terminal."""
        self.left_out[name] = f"The row {name!r} is left out: {why}"
        self.run.log(self.left_out[name])
        if self.progress:
            Console().print(self.left_out[name], markup=False)

    def summary(self, clips: int) -> dict:
        """`thresholds` of confidence are those that were chosen on validation clips."""
        summary = {"system": self.system, "clips": clips}
        summary["unlike"] = sum(far.unlike for far in self.far.values()) if self.far else None
        return {**summary, "left_out": self.left_out, "thresholds": self.thresholds}
