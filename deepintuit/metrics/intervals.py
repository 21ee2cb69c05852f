"""How sure a number is: the bootstrap of any metric, by clip or by group, and Wilson's interval.

A resample is a weight a clip (how often it was drawn), so a statistic is a function of weights and all draws are
computed at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from deepintuit.metrics.answers import nanmean
from deepintuit.metrics.inputs import Floats, Ints, class_indices, confidence_and_correct, same_length

_CELLS = 4_000_000  # weights held at once: 32 MB
_KEPT = 64_000_000  # draws kept for the next statistic, a byte each


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; nan where nothing could be computed."""

    value: float
    low: float
    high: float


Statistic = Callable[[Floats], Floats]  # weights_B_C, how often each clip was drawn → values_B


def totals_of(places_C: Ints, kinds: int, values_C: ArrayLike = 1.0) -> csr_array:
    """The matrix (C, kinds) that holds each clip's value at its place and is 0 elsewhere: `weights_B_C @` it are the
    weighted totals (B, kinds). It takes a number per clip, however many kinds there are."""
    C = len(places_C)
    values = np.broadcast_to(np.asarray(values_C, dtype=np.float64), C)
    return csr_array((values, places_C, np.arange(C + 1)), shape=(C, kinds))


def bootstrap(statistic: Statistic, clips: int, **options: Any) -> Estimate:
    """`bootstrap_each` of one statistic."""
    return bootstrap_each(lambda weights_B_C: statistic(weights_B_C)[:, None], clips, **options)[0]


def bootstrap_each(
    statistics: Callable[[Floats], Floats],
    clips: int,
    *,
    groups_C: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Estimate]:
    """Percentile bootstrap of statistics of weighted clips, all on the same draws: weights_B_C → values_B_S. With
    `groups_C` (source video, camera) whole groups are drawn, as clips of one group are alike. A statistic biased on
    resamples, such as ECE, may lie outside its interval. Draws where it is nan are left out; no clips: all nan; no
    draws: no interval (nan); one clip or group: the interval is the value itself."""
    with np.errstate(invalid="ignore"):  # of no clips: 0 / 0
        values_S = statistics(np.ones((1, clips)))[0]
    values_S = values_S if clips else np.full(len(values_S), math.nan)
    values = []
    if clips and draws:
        groups = (
            np.arange(clips) if groups_C is None else np.unique(np.asarray(groups_C), return_inverse=True)[1].ravel()
        )
        same_length(clips=np.empty(clips), groups=groups)
        alone = np.array_equal(groups, np.arange(clips))
        for counts_G_B in _counts(int(groups.max()) + 1, clips, draws, seed):
            counts_C_B = counts_G_B if alone else counts_G_B[groups]
            values.append(statistics(counts_C_B.astype(np.float64).T))
    drawn_S_B = np.concatenate(values).T if values else np.empty((len(values_S), 0))
    ends = [(1 - level) / 2, (1 + level) / 2]
    finite_S = (drawn_B[~np.isnan(drawn_B)] for drawn_B in drawn_S_B)
    return [
        Estimate(float(value), *map(float, np.quantile(finite, ends) if finite.size else (math.nan, math.nan)))
        for value, finite in zip(values_S, finite_S, strict=True)
    ]


def _counts(groups: int, clips: int, draws: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """How often each group was drawn, shape (G, B), in parts of so many draws that a row per clip fits in `_CELLS`."""
    step = max(1, _CELLS // clips)
    if groups * draws > _KEPT:
        yield from _drawn(groups, draws, seed, step)
    else:
        counts_G_B = _kept(groups, draws, seed)
        yield from (counts_G_B[:, start : start + step] for start in range(0, draws, step))


@lru_cache(maxsize=2)
def _kept(groups: int, draws: int, seed: int) -> NDArray[np.uint8]:
    """All draws at once: every statistic of clips in as many groups shares them."""
    return np.concatenate(list(_drawn(groups, draws, seed, max(1, _CELLS // groups))), axis=1)


def _drawn(groups: int, draws: int, seed: int, step: int) -> Iterator[NDArray[np.uint8]]:
    """Parts of `step` draws, the same ones however they are parted. A byte holds a count: of n draws from n groups, one
    group gets more than 255 with a chance below 10^-500."""
    generator = np.random.default_rng(seed)
    for start in range(0, draws, step):
        B = min(step, draws - start)
        picks = generator.integers(0, groups, (B, groups)) + groups * np.arange(B)[:, None]
        counts_B_G = np.bincount(picks.ravel(), minlength=B * groups).reshape(B, groups)
        yield np.ascontiguousarray(counts_B_G.astype(np.uint8).T)


def mean_of(values_C: ArrayLike) -> Statistic:
    """The statistic "mean of these values"."""
    values = np.asarray(values_C, dtype=np.float64)
    return lambda weights_B_C: weights_B_C @ values / weights_B_C.sum(1)


def class_rates_of(truth_C: Sequence[str], predicted_C: Sequence[str], labels: Sequence[str]) -> Statistic:
    """The statistics "precision, recall and F1 of each class", values_B_3K: all precisions first. F1 is
    2tp / (2tp + fp + fn), nan where the class is neither true nor answered; precision and recall are nan where it is
    never answered, and never true."""
    K = len(labels)
    truth, predicted = class_indices(truth_C, labels), class_indices(predicted_C, labels)
    right = totals_of(truth, K, truth == predicted)
    true, answered = totals_of(truth, K + 1), totals_of(predicted, K + 1)  # the last kind is "none"

    def statistic(weights_B_C: Floats) -> Floats:
        right_B_K, true_B_K, answered_B_K = (weights_B_C @ totals for totals in (right, true, answered))
        below = np.concatenate([answered_B_K[:, :K], true_B_K[:, :K], (true_B_K + answered_B_K)[:, :K]], 1)
        above = np.concatenate([right_B_K, right_B_K, 2 * right_B_K], 1)
        return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)

    return statistic


def class_f1_of(truth_C: Sequence[str], predicted_C: Sequence[str], labels: Sequence[str]) -> Statistic:
    """The last third of `class_rates_of`."""
    rates = class_rates_of(truth_C, predicted_C, labels)
    return lambda weights_B_C: rates(weights_B_C)[:, -len(labels) :] if len(labels) else rates(weights_B_C)


def share_of(inside_C: ArrayLike, among_C: ArrayLike) -> Statistic:
    """The statistic "share of `inside_C` among `among_C`", both of 0 and 1; nan where none of these was drawn."""
    totals_C_2 = np.stack([np.asarray(inside_C) & np.asarray(among_C), np.asarray(among_C)], 1).astype(np.float64)

    def statistic(weights_B_C: Floats) -> Floats:
        above, below = (weights_B_C @ totals_C_2).T
        return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)

    return statistic


def macro_f1_of(truth_C: Sequence[str], predicted_C: Sequence[str], labels: Sequence[str]) -> Statistic:
    """The statistic `macro_f1`."""
    of_each = class_f1_of(truth_C, predicted_C, labels)
    return lambda weights_B_C: nanmean(of_each(weights_B_C))


def ece_of(confidence_C: ArrayLike, correct_C: ArrayLike, bins: int = 15) -> Statistic:
    """The statistic `ece` with bins of equal width."""
    confidence, correct = confidence_and_correct(confidence_C, correct_C)
    places = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence)
    gaps = totals_of(places, bins, correct - confidence)
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
