"""How good and how honest: accuracy, F1, reliability, intervals, abstention. Pure functions on arrays, no drawing.

Axes in names: `_C` clips, `_K` classes, `_B` bootstrap draws. A prediction of `"none"` is an answer that could not be
read: wrong, and counted on its own line. Truths and predictions are label texts; probabilities `probs_C_K` follow the
order of `labels`, and `truth_C` beside them holds class indices. Empty input gives nan, never an exception.

`answers`, `distributions`, `intervals`, `abstention` and `ranking` hold them; `evaluate_predictions` gives all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from deepintuit.labels import NONE_LABEL
from deepintuit.metrics.abstention import (
    RISKS,
    Conformal,
    RiskCoverage,
    conformal_folds,
    conformal_quantile,
    conformal_sets,
    risk_coverage,
    set_coverage,
    thresholds_for,
)
from deepintuit.metrics.answers import ClassScores, Flips, class_scores, confusion, flips, macro_f1, pass_at_k
from deepintuit.metrics.distributions import (
    FLOOR,
    Bins,
    apply_temperature,
    brier_each,
    ece,
    fit_temperature,
    nll,
    nll_each,
    reliability_bins,
)
from deepintuit.metrics.gate import GateCurve, cheapest_threshold, gate_curve
from deepintuit.metrics.inputs import Ints, class_indices, distribution
from deepintuit.metrics.intervals import (
    Estimate,
    Statistic,
    bootstrap,
    bootstrap_each,
    class_f1_of,
    class_rates_of,
    ece_of,
    macro_f1_of,
    mean_of,
    paired_difference,
    share_of,
    wilson,
)
from deepintuit.metrics.ranking import ClassCurve, cheapest_answers, class_curve, costs_each, ranking_of

__all__ = [
    "FLOOR",
    "RISKS",
    "Bins",
    "ClassCurve",
    "ClassScores",
    "Conformal",
    "Estimate",
    "Evaluation",
    "Flips",
    "GateCurve",
    "RiskCoverage",
    "Statistic",
    "apply_temperature",
    "bootstrap",
    "bootstrap_each",
    "brier_each",
    "cheapest_answers",
    "cheapest_threshold",
    "class_curve",
    "class_f1_of",
    "class_indices",
    "class_rates_of",
    "class_scores",
    "conformal_folds",
    "conformal_quantile",
    "conformal_sets",
    "confusion",
    "costs_each",
    "ece",
    "ece_of",
    "evaluate_predictions",
    "fit_temperature",
    "flips",
    "gate_curve",
    "macro_f1",
    "macro_f1_of",
    "mean_of",
    "nll",
    "nll_each",
    "paired_difference",
    "pass_at_k",
    "ranking_of",
    "reliability_bins",
    "risk_coverage",
    "set_coverage",
    "share_of",
    "thresholds_for",
    "wilson",
]


@dataclass(frozen=True)
class Evaluation:
    """Everything a results table prints about one system on one split. The four last are None without probabilities;
    they speak of the distribution's own highest class, whatever was answered."""

    n: int
    groups: int
    accuracy: Estimate
    macro_f1: Estimate
    no_answer: Estimate
    classes: ClassScores
    confusion: Ints
    nll: Estimate | None
    brier: Estimate | None
    ece: Estimate | None
    bins: Bins | None


def evaluate_predictions(
    truth_C: Sequence[str],
    predicted_C: Sequence[str],
    labels: Sequence[str],
    probs_C_K: ArrayLike | None = None,
    *,
    groups_C: ArrayLike | None = None,
    bins: int = 15,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Evaluation:
    """All metrics of one system with bootstrap intervals, by group where `groups_C` is given. No clips: n 0 and nan."""
    counts = confusion(truth_C, predicted_C, labels)
    n = int(counts.sum())
    statistics = [
        mean_of(np.asarray(truth_C) == np.asarray(predicted_C)),
        macro_f1_of(truth_C, predicted_C, labels),
        mean_of(np.asarray(predicted_C) == NONE_LABEL),
    ]
    reliability = None
    if probs_C_K is not None:
        probs, truth = distribution(probs_C_K, class_indices(truth_C, labels))
        confidence, correct = (probs.max(1), probs.argmax(1) == truth) if n else (np.empty(0), np.empty(0))
        reliability = reliability_bins(confidence, correct, bins)
        statistics += [
            mean_of(nll_each(probs, truth)),
            mean_of(brier_each(probs, truth)),
            ece_of(confidence, correct, bins),
        ]
    estimates: list[Estimate | None] = [
        *bootstrap_each(
            lambda weights_B_C: np.stack([statistic(weights_B_C) for statistic in statistics], 1),
            n,
            groups_C=groups_C,
            draws=draws,
            seed=seed,
            level=level,
        )
    ]
    accuracy, macro, no_answer, *proper = estimates + [None] * (6 - len(estimates))
    return Evaluation(
        n,
        n if groups_C is None else len(np.unique(np.asarray(groups_C))),
        accuracy,
        macro,
        no_answer,
        class_scores(truth_C, predicted_C, labels),
        counts,
        *proper,
        reliability,
    )
