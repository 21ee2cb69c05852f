"""When not to answer: risk against coverage, thresholds, and split-conformal label sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepintuit.metrics.inputs import Floats, distribution, mean, same_length
from deepintuit.metrics.intervals import Estimate, wilson

RISKS = (0.01, 0.02, 0.05, 0.1)
"""Shares of wrong answers among those given, for which a threshold of confidence is chosen on validation clips."""


@dataclass(frozen=True)
class RiskCoverage:
    """One entry a distinct confidence, highest first: answering every clip of at least `threshold` covers the share
    `coverage` and errs on the share `risk` of those. `area` is the mean risk over coverages (AURC; lower is better)."""

    threshold: Floats
    coverage: Floats
    risk: Floats
    area: float

    def at_most(self, risk: float) -> tuple[float, float]:
        """The lowest confidence from which on the measured risk is at most `risk`, and its coverage, the widest; where
        none is, (inf, 0): answer nothing. Choose it on validation clips; it promises nothing on others."""
        good = np.flatnonzero(self.risk <= risk)
        return (float(self.threshold[good[-1]]), float(self.coverage[good[-1]])) if good.size else (math.inf, 0.0)

    def at(self, threshold: float) -> tuple[float, float]:
        """(coverage, risk) of answering from this confidence on; (0, nan) where that answers nothing."""
        count = int((self.threshold >= threshold).sum())
        return (float(self.coverage[count - 1]), float(self.risk[count - 1])) if count else (0.0, math.nan)


def thresholds_for(confidence_C: ArrayLike, correct_C: ArrayLike) -> dict[str, float | None]:
    """For each of `RISKS`, as text, the confidence from which on these clips, of validation, err no more than that;
    None where none does. Plain enough for a JSON file."""
    curve = risk_coverage(confidence_C, correct_C)
    thresholds = {str(risk): curve.at_most(risk)[0] for risk in RISKS}
    return {risk: None if math.isinf(threshold) else threshold for risk, threshold in thresholds.items()}


def risk_coverage(confidence_C: ArrayLike, correct_C: ArrayLike) -> RiskCoverage:
    """Risk against coverage (El-Yaniv & Wiener 2010). Clips of equal confidence are answered together. No clips: empty
    arrays and area nan."""
    same_length(confidence=confidence_C, correct=correct_C)
    confidence, correct = np.asarray(confidence_C, dtype=np.float64), np.asarray(correct_C, dtype=np.float64)
    if not confidence.size:
        return RiskCoverage(np.empty(0), np.empty(0), np.empty(0), math.nan)
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    coverage = (ends + 1) / len(order)
    risk = np.cumsum(1 - correct[order])[ends] / (ends + 1)
    return RiskCoverage(confidence[order][ends], coverage, risk, float((np.diff(coverage, prepend=0.0) * risk).sum()))


def conformal_quantile(probs_C_K: ArrayLike, truth_C: ArrayLike, alpha: float) -> float:
    """Split-conformal quantile of 1 − p(truth): sets built with it hold the truth with probability ≥ 1 − alpha when new
    clips are exchangeable with these. Fewer than 1/alpha − 1 clips: 1.0, every label is in every set."""
    probs, truth = distribution(probs_C_K, truth_C)
    n = len(truth)
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(1 - probs[np.arange(n), truth])[rank - 1]) if 1 <= rank <= n else (1.0 if rank > n else 0.0)


def conformal_sets(probs_C_K: ArrayLike, quantile: float) -> NDArray[np.bool_]:
    """The labels of each clip's set, shape (C, K); a set may be empty or hold every label."""
    return 1 - np.asarray(probs_C_K, dtype=np.float64) <= quantile


def set_coverage(sets_C_K: NDArray[np.bool_], truth_C: ArrayLike) -> tuple[float, float]:
    """Share of sets that hold the truth, and mean set size."""
    truth = np.asarray(truth_C, dtype=np.int64)
    same_length(sets=sets_C_K, truth=truth)
    return mean(sets_C_K[np.arange(len(truth)), truth].astype(np.float64)), mean(sets_C_K.sum(1).astype(np.float64))


@dataclass(frozen=True)
class Conformal:
    """Label sets with a promised coverage `target`: the share that holds the truth, labels a set, sets of one label."""

    target: float
    n: int
    coverage: Estimate
    size: float
    single: float


def conformal_folds(
    probs_C_K: ArrayLike, truth_C: ArrayLike, target: float = 0.9, seed: int = 0, level: float = 0.95
) -> Conformal:
    """Split-conformal sets, each half's quantile taken from the other half, so that every clip is measured once [R].

    `level` is that of the interval of the coverage, Wilson's. With fewer than two clips all is nan.
    """
    probs, truth = np.asarray(probs_C_K, float), np.asarray(truth_C, int)
    n = len(truth)
    if n < 2:
        nothing = float("nan")
        return Conformal(target, n, wilson(0, 0), nothing, nothing)
    order = np.random.default_rng([seed, n]).permutation(n)
    sets = np.zeros(probs.shape, bool)
    for half, other_half in ((order[: n // 2], order[n // 2 :]), (order[n // 2 :], order[: n // 2])):
        sets[half] = conformal_sets(probs[half], conformal_quantile(probs[other_half], truth[other_half], 1 - target))
    covered, size = set_coverage(sets, truth)
    return Conformal(target, n, wilson(round(covered * n), n, level), size, float((sets.sum(1) == 1).mean()))
