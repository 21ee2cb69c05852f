"""How sure a number is: the bootstrap of any metric, by clip or by group, and Wilson's interval.

A resample is a weight a clip (how often it was drawn), so a statistic is a function of weights and all draws are
computed at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deepintuit.metrics.answers import f1_from_counts, nanmean
from deepintuit.metrics.inputs import Floats, class_indices, confidence_and_correct, same_length

_CELLS = 4_000_000  # weights held at once: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; nan where nothing could be computed."""

    value: float
    low: float
    high: float


Statistic = Callable[[Floats], Floats]  # weights_B_C, how often each clip was drawn → values_B


def bootstrap(statistic: Statistic, clips: int, *, groups_C: ArrayLike | None = None, draws: int = 2000, seed: int = 0,
              level: float = 0.95) -> Estimate:
    """Percentile bootstrap of a statistic of weighted clips. With `groups_C` (source video, camera) whole groups are
    drawn, as clips of one group are alike. A statistic biased on resamples, such as ECE, may lie outside its interval.
    Draws where it is nan are left out; no clips: all nan; no draws: no interval (nan); one clip or group: the
    interval is the value itself."""
    if clips == 0:
        return Estimate(math.nan, math.nan, math.nan)
    groups = np.arange(clips) if groups_C is None else np.unique(np.asarray(groups_C), return_inverse=True)[1].ravel()
    same_length(clips=np.empty(clips), groups=groups)
    G = int(groups.max()) + 1
    generator = np.random.default_rng(seed)
    values = []
    for start in range(0, draws, step := max(1, _CELLS // clips)):
        B = min(step, draws - start)
        drawn = generator.integers(0, G, (B, G)) + G * np.arange(B)[:, None]
        weights_B_G = np.bincount(drawn.ravel(), minlength=B * G).reshape(B, G).astype(np.float64)
        values.append(statistic(weights_B_G[:, groups]))
    known = np.concatenate(values) if values else np.empty(0)
    known = known[~np.isnan(known)]
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if known.size else (math.nan, math.nan)
    return Estimate(float(statistic(np.ones((1, clips)))[0]), float(low), float(high))


def mean_of(values_C: ArrayLike) -> Statistic:
    """The statistic "mean of these values"."""
    values = np.asarray(values_C, dtype=np.float64)
    return lambda weights_B_C: weights_B_C @ values / weights_B_C.sum(1)


def macro_f1_of(truth_C: Sequence[str], predicted_C: Sequence[str], labels: Sequence[str]) -> Statistic:
    """The statistic `macro_f1`."""
    K = len(labels)
    cells = np.eye(K * (K + 1))[class_indices(truth_C, labels) * (K + 1) + class_indices(predicted_C, labels)]
    return lambda weights_B_C: nanmean(f1_from_counts((weights_B_C @ cells).reshape(-1, K, K + 1)))


def class_f1_of(truth_C: Sequence[str], predicted_C: Sequence[str], label: str) -> Statistic:
    """The statistic "F1 of this class": 2tp / (2tp + fp + fn), nan where it is neither true nor answered."""
    true, said = (np.asarray(given) == label for given in (truth_C, predicted_C))
    right, named = (true & said).astype(np.float64), true.astype(np.float64) + said

    def statistic(weights_B_C: Floats) -> Floats:
        below = weights_B_C @ named
        return np.divide(2 * (weights_B_C @ right), below, out=np.full(len(below), np.nan), where=below > 0)

    return statistic


def ece_of(confidence_C: ArrayLike, correct_C: ArrayLike, bins: int = 15) -> Statistic:
    """The statistic `ece` with bins of equal width."""
    confidence, correct = confidence_and_correct(confidence_C, correct_C)
    inside = np.eye(bins)[np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence)]
    gaps = inside * (correct - confidence)[:, None]
    return lambda weights_B_C: np.abs(weights_B_C @ gaps).sum(1) / weights_B_C.sum(1)


def paired_difference(after: Statistic, before: Statistic, clips: int, **options: Any) -> Estimate:
    """Bootstrap of after − before on the same draws of the same clips; options as of `bootstrap`."""
    return bootstrap(lambda weights_B_C: after(weights_B_C) - before(weights_B_C), clips, **options)


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Wilson's score interval of a share. n = 0: nan between 0 and 1, since nothing is known."""
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0)
    from scipy.stats import binomtest  # here, since it takes over a second to import

    interval = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high))
