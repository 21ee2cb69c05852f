"""Scores of answers: F1, confusion, and what one system changed against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import comb

from deepintuit.errors import DataError
from deepintuit.labels import NONE_LABEL
from deepintuit.metrics.inputs import Floats, Ints, class_indices, same_length


def confusion(truth_C: Sequence[str], predicted_C: Sequence[str], labels: Sequence[str]) -> Ints:
    """Counts, shape (K, K + 1): rows are truths, columns predictions in the order of `labels`, the last one "none"."""
    same_length(truth=truth_C, predicted=predicted_C)
    truth, predicted = class_indices(truth_C, labels), class_indices(predicted_C, labels)
    K = len(labels)
    if (truth == K).any():
        raise DataError(
            f"{NONE_LABEL!r} came as a true label",
            "it means that no answer could be read",
            "leave clips without a true label out",
        )
    counts_K_K = np.zeros((K, K + 1), dtype=np.int64)
    np.add.at(counts_K_K, (truth, predicted), 1)
    return counts_K_K


@dataclass(frozen=True)
class ClassScores:
    """One entry per class. `predicted` counts how often it was answered. Never answered: precision 0. Never true:
    recall 0. Neither: F1 is nan, since nothing was asked and nothing claimed; otherwise F1 = 2tp / (2tp + fp + fn)."""

    labels: tuple[str, ...]
    precision_K: Floats
    recall_K: Floats
    f1_K: Floats
    support_K: Ints
    predicted_K: Ints


def class_scores(truth_C: Sequence[str], predicted_C: Sequence[str], labels: Sequence[str]) -> ClassScores:
    """Precision, recall, F1 and support per class. A clip answered "none" is a miss of its true class."""
    counts = confusion(truth_C, predicted_C, labels)
    right, support, predicted = np.diag(counts), counts.sum(1), counts[:, :-1].sum(0)
    denominator_K = support + predicted
    f1_K = np.divide(2 * right, denominator_K, out=np.full(len(denominator_K), np.nan), where=denominator_K > 0)
    return ClassScores(
        tuple(labels), right / np.maximum(predicted, 1), right / np.maximum(support, 1), f1_K, support, predicted
    )


def nanmean(values_B_K: Floats) -> Floats:
    present = ~np.isnan(values_B_K)
    total = present.sum(1)
    return np.divide(np.where(present, values_B_K, 0).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)


def macro_f1(truth_C: Sequence[str], predicted_C: Sequence[str], labels: Sequence[str]) -> float:
    """Mean F1 over the classes that occur among truths or predictions; a class predicted but never true counts as 0,
    one that is neither is left out (as scikit-learn does). "none" is no class. nan for no clips."""
    return float(nanmean(class_scores(truth_C, predicted_C, labels).f1_K[None])[0])


@dataclass(frozen=True)
class Flips:
    """What a stage changed: counts of clips, and McNemar's exact two-sided p (1.0 when nothing flipped)."""

    right_to_wrong: int
    wrong_to_right: int
    both_right: int
    both_wrong: int
    p_value: float


def flips(before_C: Sequence[str], after_C: Sequence[str], truth_C: Sequence[str]) -> Flips:
    """Clips that became wrong and that became right from one system to the next."""
    same_length(before=before_C, after=after_C, truth=truth_C)
    truth = np.asarray(truth_C)
    before, after = np.asarray(before_C) == truth, np.asarray(after_C) == truth
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    from scipy.stats import binomtest  # here, since it takes over a second to import

    p = float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0
    return Flips(lost, won, int((before & after).sum()), int((~before & ~after).sum()), p)


def pass_at_k(right_C_G: ArrayLike, k: int) -> Floats:
    """(C,) of each clip, the chance that k of its G sampled traces, drawn without putting back, hold a right one: the
    unbiased estimate 1 − C(G − c, k) / C(G, k) with c right ones (Chen et al., 2021). k = 1 is the mean of samples."""
    right = np.asarray(right_C_G, dtype=bool)
    G = right.shape[1]
    if not 1 <= k <= G:
        raise DataError(f"pass@{k} of {G} samples", "it needs as many samples as it draws", f"Ask for 1 to {G}")
    return 1 - comb(G - right.sum(1), k) / comb(G, k)
