"""One class against the rest, by its probability: ROC, precision–recall, and what misses and false alarms cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from deepintuit.metrics.inputs import Floats, Ints, same_length
from deepintuit.metrics.intervals import Statistic


@dataclass(frozen=True)
class ClassCurve:
    """One entry a distinct probability of the class, highest first: calling each clip of at least `threshold` the class
    finds `hits` of its `positives` clips and calls `alarms` of the `negatives` others so too."""

    threshold: Floats
    hits: Ints
    alarms: Ints
    positives: int
    negatives: int

    @property
    def recall(self) -> Floats:
        """The true positive rate; nan where the class has no clip."""
        return self.hits / self.positives if self.positives else np.full(len(self.hits), np.nan)

    @property
    def fall_out(self) -> Floats:
        """The false positive rate; nan where there is no other clip."""
        return self.alarms / self.negatives if self.negatives else np.full(len(self.hits), np.nan)

    @property
    def precision(self) -> Floats:
        return self.hits / (self.hits + self.alarms)

    def cheapest(self, miss: float, alarm: float) -> float:
        """The threshold of least cost on these clips, the highest of several; inf where it costs least never to call
        the class. It has as few decimals as leave what it calls here as it is."""
        costs = miss * (self.positives - self.hits) + alarm * self.alarms
        if not len(costs) or miss * self.positives <= costs.min():
            return math.inf
        k = int(np.argmin(costs))
        below = self.threshold[k + 1] if k + 1 < len(costs) else -math.inf
        return shortest(below, self.threshold[k])


def shortest(low: float, high: float) -> float:
    """The number above `low` and at most `high` of the fewest decimals."""
    for digits in range(1, 17):
        number = math.floor(high * 10**digits) / 10**digits
        if low < number <= high:
            return number
    return float(high)


def class_curve(probs_C: ArrayLike, inside_C: ArrayLike) -> ClassCurve:
    """`inside_C`: whether a clip is of the class."""
    same_length(probs=probs_C, inside=inside_C)
    probs, inside = np.asarray(probs_C, dtype=np.float64), np.asarray(inside_C, dtype=bool)
    order, ends = _ordered(probs)
    hits = np.cumsum(inside[order])[ends]
    positives = int(inside.sum())
    return ClassCurve(probs[order][ends], hits, ends + 1 - hits, positives, len(probs) - positives)


def _ordered(probs_C: Floats) -> tuple[Ints, Ints]:
    """The order of falling probability, and where in it each run of equal ones ends."""
    order = np.argsort(-probs_C, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(probs_C[order]) != 0, True)) if len(order) else order


def ranking_of(probs_C_K: ArrayLike, truth_C: ArrayLike) -> Statistic:
    """The statistics "area under the ROC curve and average precision of each class", values_B_2K: all areas first. Ties
    count half in an area; average precision is the sum over thresholds of precision times gain in recall. nan for a
    class without clips, an area also where there is no other clip."""
    probs, truth = np.asarray(probs_C_K, dtype=np.float64), np.asarray(truth_C)

    def statistic(weights_B_C: Floats) -> Floats:
        areas, precisions = [], []
        for k in range(probs.shape[1]):
            order, ends = _ordered(probs[:, k])
            weights = weights_B_C[:, order]
            hits, called = (np.cumsum(values, 1)[:, ends] for values in (weights * (truth[order] == k), weights))
            alarms, gained = called - hits, np.diff(hits, prepend=0.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                area = (np.diff(alarms, prepend=0.0) * (hits - gained / 2)).sum(1) / (hits[:, -1] * alarms[:, -1])
                right = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
                precisions.append((gained * right).sum(1) / hits[:, -1])
            areas.append(area)
        return np.stack([*areas, *precisions], 1)

    return statistic


def costs_each(truth_C: Ints, answered_C: Ints, miss_K: Floats, alarm_K: Floats) -> Floats:
    """What each clip costs: a wrong answer the miss of the true class and the false alarm of the one answered, no
    answer (K) the miss alone."""
    alarms = np.append(alarm_K, 0.0)
    return np.where(truth_C == answered_C, 0.0, miss_K[truth_C] + alarms[answered_C])


def cheapest_answers(probs_C_K: Floats, miss_K: Floats, alarm_K: Floats) -> Ints:
    """The answer of least expected cost by the probabilities, K (none) where it costs less than any label does."""
    saved_C_K = probs_C_K * (miss_K + alarm_K) - alarm_K
    return np.where(saved_C_K.max(1) > 0, saved_C_K.argmax(1), probs_C_K.shape[1])
