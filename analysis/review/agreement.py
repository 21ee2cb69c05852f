"""How far people agree: per cent, Cohen's kappa, Krippendorff's alpha, of all classes and of each, with intervals; and
what they come to when each counts by how good they are.

Ratings are `ratings_C_R`: class indices of R raters for C items, −1 where a rater said nothing. Each number is a
statistic of weighted items, so one bootstrap over items (or groups of items) serves all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deepintuit.errors import DataError
from deepintuit.metrics.inputs import Floats, Ints
from deepintuit.metrics.intervals import Estimate, Statistic, bootstrap_each, totals_of
from deepintuit_analysis.review.spans import Span, Stretch, length, overlap


def rating_matrix(
    ratings: Iterable[tuple[Hashable, Hashable, Any]], labels: Sequence[Any]
) -> tuple[Ints, list[Hashable], list[Hashable]]:
    """(item, rater, label) triples as `ratings_C_R`, with its items and raters. None as a label is a missing value; a
    later rating of an item by its rater replaces the earlier. DataError for a label that is not in `labels`."""
    last = {(item, rater): label for item, rater, label in ratings}
    items, raters = (list(dict.fromkeys(pair[place] for pair in last)) for place in (0, 1))
    rows, columns = ({name: i for i, name in enumerate(names)} for names in (items, raters))
    place = {label: k for k, label in enumerate(labels)} | {None: -1}
    matrix = np.full((len(items), len(raters)), -1, dtype=np.int64)
    for (item, rater), label in last.items():
        if label not in place:
            raise DataError(
                f"the rating {label!r} of {item!r} came",
                f"the labels are {', '.join(map(str, labels))}",
                "add it to them, or map it",
            )
        matrix[rows[item], columns[rater]] = place[label]
    return matrix, items, raters


def _counts(ratings_C_R: ArrayLike, K: int) -> tuple[Floats, Floats]:
    """How many raters gave each class, `counts_C_K`, and how many rated, `raters_C`; items with one rating are emptied,
    since there is nothing to compare them with."""
    ratings = np.asarray(ratings_C_R)
    counts = np.zeros((len(ratings), K))
    items, raters = np.nonzero(ratings >= 0)
    np.add.at(counts, (items, ratings[items, raters]), 1)
    counts[counts.sum(1) < 2] = 0
    return counts, counts.sum(1)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 1e-12)


def percent_agreement_of(ratings_C_R: ArrayLike, K: int, k: int | None = None) -> Statistic:
    """The share, 0 … 1, of pairs of ratings of one item that are the same, all pairs alike. With `k`,
    specific agreement (Cicchetti and Feinstein 1990): one rater says k: the share of others who do. No pair: nan."""
    counts, raters = _counts(ratings_C_R, K)
    counts = counts if k is None else counts[:, [k]]
    matches, pairs = (counts * (counts - 1)).sum(1), (counts * (raters[:, None] - 1)).sum(1)
    return lambda weights_B_C: _ratio(weights_B_C @ matches, weights_B_C @ pairs)


def kappa_of(ratings_C_R: ArrayLike, K: int) -> Statistic:
    """Cohen's kappa (1960); of more than two raters the mean of all pairs, weighted by the items that both rated (where
    all rated all, Light's kappa). A pair that uses one class only has none (0/0) and is left out."""
    ratings = np.asarray(ratings_C_R)
    pairs = []
    for a, b in itertools.combinations(ratings.T, 2):
        both = (a >= 0) & (b >= 0)
        if both.any():
            pairs.append((both, (a == b)[both].astype(np.float64), *(totals_of(x[both], K) for x in (a, b))))

    def statistic(weights_B_C: Floats) -> Floats:
        above, below = np.zeros(len(weights_B_C)), np.zeros(len(weights_B_C))
        for both, matches, hot_a, hot_b in pairs:
            weights = weights_B_C[:, both]
            n = weights.sum(1)
            observed = _ratio(weights @ matches, n)
            expected = _ratio(((weights @ hot_a) * (weights @ hot_b)).sum(1), n**2)
            kappa = _ratio(observed - expected, 1 - expected)
            defined = ~np.isnan(kappa)
            above[defined] += (n * kappa)[defined]
            below[defined] += n[defined]
        return _ratio(above, below)

    return statistic


def alpha_of(ratings_C_R: ArrayLike, K: int) -> Statistic:
    """Krippendorff's alpha, nominal, with missing values: 1 − observed over expected disagreement. Ratings that are all
    of one class leave nothing to disagree on: nan."""
    counts, raters = _counts(ratings_C_R, K)
    matches = _ratio((counts * (counts - 1)).sum(1), raters - 1)
    matches[raters < 2] = 0

    def statistic(weights_B_C: Floats) -> Floats:
        n_B_K = weights_B_C @ counts
        n = n_B_K.sum(1)
        return 1 - _ratio((n - 1) * (n - weights_B_C @ matches), n**2 - (n_B_K**2).sum(1))

    return statistic


@dataclass(frozen=True)
class Agreement:
    """`items` with two ratings or more, `ratings` of those, and the three numbers. Of one class (`label` is not None):
    `percent` is specific agreement, kappa and alpha speak of "this class or another"."""

    label: str | None
    items: int
    ratings: int
    percent: Estimate
    kappa: Estimate
    alpha: Estimate


def agreement(
    ratings_C_R: ArrayLike,
    labels: Sequence[str],
    *,
    groups_C: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Agreement]:
    """Agreement on all classes, then on each, with bootstrap intervals over items (over groups with `groups_C`). A
    model is one more rater. Nothing rated twice: nan."""
    ratings, K = np.asarray(ratings_C_R, dtype=np.int64), len(labels)
    if ratings.ndim != 2 or (ratings.size and not (-1 <= ratings.min() and ratings.max() < K)):
        raise DataError(
            f"ratings of shape {ratings.shape} for {K} labels came",
            "they are class indices, items by raters, −1 where there is none",
            "make them with rating_matrix",
        )
    paired = (ratings >= 0).sum(1) >= 2
    twice = ratings[paired]
    groups = None if groups_C is None else np.asarray(groups_C)[paired]

    statistics: list[Statistic] = [percent_agreement_of(twice, K), kappa_of(twice, K), alpha_of(twice, K)]
    rated = [k for k in range(K) if (twice == k).any()]
    for k in rated:
        against = np.where(twice < 0, -1, twice == k)
        # Specific agreement on k is that on "k or another", of its second class.
        statistics += [percent_agreement_of(against, 2, 1), kappa_of(against, 2), alpha_of(against, 2)]
    estimates = iter(
        bootstrap_each(
            lambda weights_B_C: np.stack([statistic(weights_B_C) for statistic in statistics], 1),
            len(twice),
            groups_C=groups,
            draws=draws,
            seed=seed,
            level=level,
        )
    )
    rows = [Agreement(None, len(twice), int((twice >= 0).sum()), next(estimates), next(estimates), next(estimates))]
    unknown = Estimate(math.nan, math.nan, math.nan)
    for k, label in enumerate(labels):
        mask = twice == k
        numbers = [next(estimates) for _ in range(3)] if k in rated else [unknown] * 3
        rows.append(Agreement(label, int(mask.any(1).sum()), int(mask.sum()), *numbers))
    return rows


@dataclass(frozen=True)
class SpanAgreement:
    """Of time spans, over `pairs` of reviewers of `items`. `f1`: spans of one that the other has too (the same label,
    IoU of half or more, each once) among all spans of both. `iou`: the time that both marked with the same label over
    what either did, mean over the pairs in which one marked any. Fractions, nan where nobody did."""

    items: int
    pairs: int
    f1: Estimate
    iou: Estimate


def span_agreement(
    ratings: Iterable[tuple[Hashable, Hashable, Sequence[Span] | None]],
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> SpanAgreement | None:
    """(item, rater, spans), one of each item and rater, as `agreement` with intervals over items; None where no item
    has two raters."""
    people: dict[Hashable, list[Sequence[Span]]] = {}
    for item, _, spans in ratings:
        people.setdefault(item, []).append(spans or [])
    pairs = [[_compared(a, b) for a, b in itertools.combinations(of_item, 2)] for of_item in people.values()]
    sums_C_4 = np.array([np.sum(of_item, 0) for of_item in pairs if of_item]).reshape(-1, 4)
    if not len(sums_C_4):
        return None

    def statistics(weights_B_C: Floats) -> Floats:
        sums_B_4 = weights_B_C @ sums_C_4
        return _ratio(sums_B_4[:, [0, 2]], sums_B_4[:, [1, 3]])

    estimates = bootstrap_each(statistics, len(sums_C_4), draws=draws, seed=seed, level=level)
    return SpanAgreement(len(sums_C_4), sum(map(len, pairs)), *estimates)


def _compared(first: Sequence[Span], second: Sequence[Span]) -> tuple[float, float, float, float]:
    """Of two people: spans that both have, counted for each, and all of them; IoU of their time, and 1 where one marked
    any."""
    from scipy.optimize import linear_sum_assignment  # here, since it takes over a second to import

    first, second = ([(span["label"], (span["start"], span["end"])) for span in spans] for spans in (first, second))
    ious = np.array([[_iou([a], [b]) if label == other else 0.0 for other, b in second] for label, a in first])
    ious = np.where(ious >= 0.5, ious, 0.0).reshape(len(first), len(second))
    matched = float((ious[linear_sum_assignment(ious, maximize=True)] > 0).sum())
    labels = {label for label, _ in [*first, *second]}
    times = [[[time for one, time in spans if one == label] for spans in (first, second)] for label in labels]
    common, either = (sum(of(*both) for both in times) for of in (overlap, _either))
    return 2 * matched, float(len(first) + len(second)), common / either if either else 0.0, float(bool(labels))


def _either(first: Sequence[Stretch], second: Sequence[Stretch]) -> float:
    return length([*first, *second])


def _iou(first: Sequence[Stretch], second: Sequence[Stretch]) -> float:
    return overlap(first, second) / _either(first, second)


@dataclass(frozen=True)
class Consensus:
    """What raters come to when each counts by how good they are. `label_C`, class indices, and `majority_C`, the class
    of more than half; −1: none, as in a tie. `quality_R`, 0 … 1: how often a rater is right, nan where they share no
    item with anybody."""

    label_C: Ints
    majority_C: Ints
    quality_R: Floats


def consensus(ratings_C_R: ArrayLike, K: int) -> Consensus | None:
    """The weighted vote of CROWDLAB (Goh, Tkachenko and Mueller 2022), of people alone: a model that is compared with
    people has no vote among them. A rater weighs as much as they agree with others, beyond what always saying the
    commonest class would. None where no two raters say the same of an item: nobody is known to be good then."""
    ratings = np.asarray(ratings_C_R, dtype=np.int64)
    if not ratings.size or not K:
        return None
    votes = np.stack([ratings == k for k in range(K)], axis=1)  # (C, K, R)
    counts = votes.sum(2)
    majority = np.where(2 * counts.max(1) > counts.sum(1), counts.argmax(1), -1)
    rated, raters = counts.sum(1) > 0, (ratings >= 0).any(0)
    if not (counts > 1).any():
        return None
    from cleanlab.multiannotator import get_label_quality_multiannotator  # here, since it takes seconds to import

    table = np.where(ratings < 0, np.nan, ratings)[rated][:, raters]
    # A flat opinion of a model, uneven by so little that ties of the first round fall by it and not at random.
    flat = np.full((len(table), K), 1 / K) + 1e-9 * np.arange(K)
    result = get_label_quality_multiannotator(
        table, flat, return_detailed_quality=False, return_weights=True, verbose=False
    )
    quality, weights = np.full(len(raters), np.nan), np.zeros(len(raters))
    quality[raters] = result["annotator_stats"]["annotator_quality"].sort_index()
    weights[raters] = result["annotator_weight"]
    scores = votes @ weights
    best = np.sort(scores, axis=1)[:, ::-1]
    decided = rated & (best[:, 0] - best[:, 1:2].sum(1) > 1e-9)
    return Consensus(np.where(decided, scores.argmax(1), -1), majority, quality)
