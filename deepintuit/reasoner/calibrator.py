"""A trained calibrator, loaded: its run, its weights, and what it fitted on validation clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepintuit import ranks
from deepintuit.config import Config
from deepintuit.errors import StoreError
from deepintuit.reasoner.distance import Distance, Far
from deepintuit.reasoner.distribution import Pairs
from deepintuit.reasoner.local import EncodedClips
from deepintuit.reasoner.served import ServedScores
from deepintuit.reasoner.task import Clip
from deepintuit.runs import Run, Workbench
from deepintuit.trace import Malformed, Trace
from deepintuit.vlm import VLM, EncodedClip

CALIBRATION = "calibration.json"
"""Its file in the checkpoint of a calibrate run: way to a distribution → temperature, and what it is worth."""


def fitted_ways(run: Run) -> dict[str, dict]:
    """What a calibrate run fitted: way to a distribution → temperature, and validation NLL, accuracy and n.

    Raises `StoreError` while its calibration is not finished, and where the file is damaged.
    """
    try:
        return json.loads((run.checkpoint / CALIBRATION).read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(
            f"{CALIBRATION} of run {run.id!r} is no JSON ({error})",
            "the file was changed after it was written, and its temperatures are lost",
            "Move the run's folder out of the workbench and run `deepintuit calibrate` again",
        ) from error
    except FileNotFoundError as error:
        raise StoreError(
            f"run {run.id!r} has no {CALIBRATION}",
            "its calibration is not finished",
            "Run `deepintuit calibrate` again: it resumes",
        ) from error


class Calibrator(NamedTuple):
    """`ways`: way to a distribution → its temperature and what it is worth on validation (`fitted_ways`); "quick" is
    among them where it learnt from quick answers. `distance`: None for a run from before distances were fitted."""

    run: Run
    vlm: VLM | ServedScores
    ways: dict[str, dict]
    distance: Distance | None

    @classmethod
    def load(
        cls, workbench: Workbench, config: Config, run_id: str, beside: VLM | None = None, scope: str = ""
    ) -> Calibrator:
        """`beside`: a model in memory, whose weights are taken where only the adapter is another one. One at a server,
        where the settings name it there, is shown the clips of the one `beside`; its answers are kept for the run
        `scope`."""
        run = workbench.run(run_id)
        if config.server.calibrator:
            scores = ServedScores(config.server, beside, workbench.cache if scope else None, scope)
            return cls(run, scores, fitted_ways(run), Distance.load(run) if beside.has_weights else None)
        vlm = VLM.load(config.model, config.video, checkpoint=run.checkpoint, cache=workbench.cache, beside=beside)
        return cls(run, vlm, fitted_ways(run), Distance.load(run))

    def far(self, clips: Pairs) -> dict[str, Far]:
        """How far each clip is from those that were learnt from, by its id; nothing where that was not measured."""
        if self.distance is None:
            return {}
        if isinstance(clips, EncodedClips):  # of several processes each reads its share
            return dict(ranks.spread(lambda at: self._far(*clips[at]), range(len(clips))))
        return dict(self._far(*pair) for pair in clips)

    def _far(self, clip: Clip, encoded: EncodedClip) -> tuple[str, Far]:
        return clip.clip_id, self.distance.of(encoded)

    def quick(self, traces_C: Sequence[Trace | Malformed]) -> list[bool]:
        """Which traces ended with their quick answer: they have a temperature of their own kind, where one was
        fitted."""
        return ["quick" in self.ways and trace.ok and trace.quick_only for trace in traces_C]

    def temperatures(self, traces_C: Sequence[Trace | Malformed]) -> np.ndarray:
        """(C,) temperatures of label likelihoods."""
        kinds = ["quick" if ended else "label_likelihood" for ended in self.quick(traces_C)]
        return np.array([self.ways[kind]["temperature"] for kind in kinds])
