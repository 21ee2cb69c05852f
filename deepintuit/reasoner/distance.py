"""How far a clip is from those that the calibrator learnt from, in features of the frozen tower.

A probability speaks of clips like those that it was fitted on, and is no smaller where a clip is like none of them.
The distance is Euclidean, to the `NEIGHBOURS`-th nearest of these clips, over the mean and the standard deviation of a
clip's patches, each standardised (deep nearest neighbours: Sun et al. 2022). It is compared with those of the
validation clips, which nothing was fitted on: farther than all but a share of them, a clip is unlike what was learnt
from. Of clips exchangeable with those of validation that befalls at most this share.

The trace is not read. A model that has never seen such a clip writes about it as about any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from deepintuit import disk, ranks
from deepintuit.config import Config
from deepintuit.errors import ModelError
from deepintuit.reasoner.local import LocalReasoner
from deepintuit.reasoner.task import Clip, Task
from deepintuit.runs import Run, Workbench
from deepintuit.vlm import VLM, EncodedClip

DISTANCE = "distance.safetensors"
"""What a calibrate run leaves beside its weights."""
NEIGHBOURS = 5
MOST_KEPT = 2_000
"""Clips that are kept to be near to; of more, some [R]."""
FALSE_ALARMS = 0.05
"""Share of clips like those of validation that may be taken for unlike ones."""


class Far(NamedTuple):
    """Of one clip. `distance`: 1 is that of the middle validation clip. `farther_than`: the share of validation clips
    that are nearer. `unlike`: beyond the limit of `FALSE_ALARMS`."""

    distance: float
    farther_than: float
    unlike: bool


@dataclass(frozen=True)
class Distance:
    """`known_N_D`: standardised features of the clips that were learnt from; `mean_D`, `scale_D`: of their features;
    `held_out_V`: distances of the validation clips, as they are computed."""

    known_N_D: np.ndarray
    mean_D: np.ndarray
    scale_D: np.ndarray
    held_out_V: np.ndarray

    @classmethod
    def fit(
        cls, learnt: Sequence[tuple[Clip, EncodedClip]], validation: Sequence[tuple[Clip, EncodedClip]]
    ) -> Distance:
        """From clips with their features, a few of which are held at a time."""
        order = np.random.default_rng(len(learnt)).permutation(len(learnt))[:MOST_KEPT]
        raw_N_D = np.stack([features(pair) for pair in _each(learnt, sorted(order.tolist()))])
        mean, scale = raw_N_D.mean(0), raw_N_D.std(0)
        scale[scale < 1e-6 * max(scale.max(), 1e-6)] = 1.0
        fitted = cls((raw_N_D - mean) / scale, mean, scale, np.empty(0, np.float32))
        held_out = [fitted.between(features(pair)) for pair in _each(validation, range(len(validation)))]
        return cls(fitted.known_N_D, mean, scale, np.sort(np.array(held_out, np.float32)))

    def between(self, features_D: np.ndarray) -> float:
        """From these features to the neighbour that counts, not yet compared with validation. ModelError for features
        of another size."""
        if features_D.shape != self.mean_D.shape:
            raise ModelError(
                f"distances over {len(self.mean_D)} features for a clip of {len(features_D)}",
                "they were fitted on the features of another backbone",
                "Use the calibrator with the reasoner that it was trained for",
            )
        apart_N = np.linalg.norm(self.known_N_D - (features_D - self.mean_D) / self.scale_D, axis=1)
        return float(np.partition(apart_N, (at := min(NEIGHBOURS, len(apart_N)) - 1))[at])

    def of(self, clip: EncodedClip) -> Far:
        """Of a clip that nothing was fitted on."""
        apart = np.float32(self.between(features(clip)))
        share = float(np.searchsorted(self.held_out_V, apart)) / len(self.held_out_V)
        distance = float(apart) / self.middle
        return Far(distance, share, not distance <= self.limit(FALSE_ALARMS))  # no number is no nearness

    @cached_property
    def middle(self) -> float:
        """Of the validation clips; `Far.distance` is told in it."""
        return max(float(np.median(self.held_out_V)), 1e-12)

    def limit(self, false_alarms: float) -> float:
        """The `Far.distance` beyond which a clip is unlike what was learnt from, so that at most this share of
        clips exchangeable with those of validation is. Infinity for less than `least`: no distance promises that."""
        beyond = int(false_alarms * (len(self.held_out_V) + 1) + 1e-9)
        return float(self.held_out_V[-min(beyond, len(self.held_out_V))]) / self.middle if beyond else float("inf")

    @property
    def least(self) -> float:
        """The smallest share of false alarms that so many validation clips can promise."""
        return 1 / (len(self.held_out_V) + 1)

    def save(self, folder: Path) -> None:
        tensors = {name: np.ascontiguousarray(self.__dict__[name], np.float32) for name in self.__dataclass_fields__}
        with disk.replacing(folder / DISTANCE) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, run: Run) -> Distance | None:
        """Of a calibrate run; None for one from before distances were fitted. ModelError for a damaged file."""
        path = run.checkpoint / DISTANCE
        try:
            distance = cls(**load_file(path))
            (clips, size), validation = distance.known_N_D.shape, len(distance.held_out_V)
            fits = clips and validation and distance.mean_D.shape == distance.scale_D.shape == (size,)
            sound = fits and all(np.isfinite(distance.__dict__[name]).all() for name in cls.__dataclass_fields__)
            why = "" if sound else "its tensors do not belong together"
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError, SafetensorError) as error:
            why = str(error).splitlines()[0]
        if why:
            todo = (
                f"Remove it, and run `deepintuit calibrate` again: it fits the distances of {run.id} and trains nothing"
            )
            raise ModelError(f"{str(path)!r} cannot be used", why, todo)
        return distance


def features(clip: EncodedClip) -> np.ndarray:
    """(D,) mean and standard deviation over the patches of a clip, D twice the size of the model's embeddings."""
    patches = clip.embeds.float().numpy()
    return np.concatenate([patches.mean(0), patches.std(0)])


def add_distances(workbench: Workbench, config: Config, run: Run) -> None:
    """To a finished calibrate run that has none, from before there were any; nothing where its clips are gone."""
    if ranks.first((run.checkpoint / DISTANCE).exists):
        return
    vlm = VLM.load(config.model, config.video, checkpoint=run.checkpoint, cache=workbench.cache)
    task = Task(workbench.path, config)
    local = LocalReasoner(vlm, task)
    clips_of = [local.readable(task.clips(split)) for split in ("calibration", "validation")]
    if all(clips_of) and ranks.leads():
        Distance.fit(*clips_of).save(run.checkpoint)


def _each(clips: Sequence[tuple[Clip, EncodedClip]], places: Sequence[int]) -> Iterator[EncodedClip]:
    for at in places:
        yield clips[at][1]
