"""Scores of distributions: NLL, Brier, reliability and ECE, and the temperature that makes them honest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from deepintuit.errors import DataError
from deepintuit.metrics.inputs import Floats, Ints, confidence_and_correct, distribution, mean, same_length

FLOOR = 1e-12  # a probability of 0 on the truth costs -log(FLOOR) = 27.6 nats instead of infinity


def nll_each(probs_C_K: Floats, truth_C: Ints) -> Floats:
    return -np.log(np.clip(probs_C_K[np.arange(len(truth_C)), truth_C], FLOOR, 1.0))


def brier_each(probs_C_K: Floats, truth_C: Ints) -> Floats:
    """Squared distance to the truth, summed over classes: from 0 to 2 (Brier 1950), twice the binary score of two."""
    gaps_C_K = np.array(probs_C_K, dtype=np.float64)
    gaps_C_K[np.arange(len(truth_C)), truth_C] -= 1
    return (gaps_C_K**2).sum(1)


def nll(probs_C_K: ArrayLike, truth_C: ArrayLike) -> float:
    """Mean negative log-likelihood of the truth, in nats; probabilities are floored at FLOOR. nan for no clips."""
    return mean(nll_each(*distribution(probs_C_K, truth_C)))


@dataclass(frozen=True)
class Bins:
    """`edges` has one entry more than the others. `accuracy` and `confidence` are means, nan in an empty bin. A
    confidence on an edge lies in the lower bin."""

    edges: Floats
    counts: Ints
    accuracy: Floats
    confidence: Floats

    @property
    def ece(self) -> float:
        """|accuracy − confidence| of each bin, weighted by its count. nan where all are empty."""
        full = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[full] * self.counts[full]
        return float(gaps.sum() / self.counts.sum()) if full.any() else math.nan


def reliability_bins(confidence_C: ArrayLike, correct_C: ArrayLike, bins: int = 15) -> Bins:
    """Accuracy and mean confidence by confidence, in `bins` of equal width over 0 … 1."""
    confidence, correct = confidence_and_correct(confidence_C, correct_C)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence)
    counts = np.bincount(place, minlength=bins)
    empty = np.full(bins, np.nan)
    return Bins(
        edges,
        counts,
        *(
            np.divide(
                np.bincount(place, weights=values, minlength=len(counts)), counts, out=empty.copy(), where=counts > 0
            )
            for values in (correct, confidence)
        ),
    )


def ece(confidence_C: ArrayLike, correct_C: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: |accuracy − confidence| of each bin, weighted by its count (Guo et al. 2017). It is
    biased upwards on few clips. nan for no clips."""
    return reliability_bins(confidence_C, correct_C, bins).ece


def _shifted(logits_C_K: ArrayLike) -> Floats:
    logits = np.asarray(logits_C_K, dtype=np.float64)
    top = logits.max(axis=1, keepdims=True) if logits.size else logits
    if not np.isfinite(top).all():
        raise DataError(
            "a row of scores without a finite maximum came",
            "no class of it can be preferred",
            "look at that clip's label likelihoods; nan or all -inf means the model's forward broke",
        )
    # −inf is a class the model excludes; a finite stand-in keeps every temperature finite.
    return np.maximum(logits - top, -1e4)


def apply_temperature(logits_C_K: ArrayLike, temperature: ArrayLike) -> Floats:
    """softmax(logits / temperature), shape (C, K), by one temperature or one a clip; the order of classes in a row
    never changes."""
    temperatures = np.asarray(temperature, dtype=np.float64).reshape(-1, 1)
    if not (temperatures > 0).all():
        raise DataError(
            f"a temperature of {temperatures.min()} came",
            "dividing by it gives no distribution",
            "use a positive one; fit_temperature finds it",
        )
    return softmax(_shifted(logits_C_K) / temperatures, axis=1)


def fit_temperature(logits_C_K: ArrayLike, truth_C: ArrayLike) -> float:
    """The temperature of least NLL on held-out clips (Guo et al. 2017), from 0.05 to 20. NLL is convex in 1/T, so the
    one minimum is found; where it lies outside (all clips right: T → 0) the nearer bound is returned. No clips: 1.0."""
    logits, truth = _shifted(logits_C_K), np.asarray(truth_C, dtype=np.int64)
    same_length(logits=logits, truth=truth)
    if truth.size == 0:
        return 1.0
    rows = np.arange(len(truth))

    def loss(inverse: float) -> float:
        return float(-log_softmax(logits * inverse, axis=1)[rows, truth].sum() / len(truth))

    ends = (1 / 20, 1 / 0.05)
    minimum = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return float(1 / min((*ends, minimum.x), key=loss))
