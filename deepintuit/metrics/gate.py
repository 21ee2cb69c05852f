"""Think only when needed: what each threshold of the quick answer's confidence would cost and bring (VideoAuto-R1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepintuit.errors import DataError


@dataclass(frozen=True)
class GateCurve:
    """One point per threshold, rising: share of clips that think, accuracy, and mean tokens per clip, if it were the
    gate."""

    thresholds: NDArray[np.float64]
    think_rate: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    tokens: NDArray[np.float64]

    def at(self, threshold: float) -> tuple[float, float, float]:
        """(think rate, accuracy, tokens) of any threshold; nan without clips."""
        if not len(self.thresholds):
            return (float("nan"),) * 3
        place = min(int(np.searchsorted(self.thresholds, threshold)), len(self.thresholds) - 1)
        return float(self.think_rate[place]), float(self.accuracy[place]), float(self.tokens[place])


def gate_curve(
    confidence_C: ArrayLike,
    quick_right_C: ArrayLike,
    final_right_C: ArrayLike,
    quick_tokens_C: ArrayLike,
    tokens_C: ArrayLike,
) -> GateCurve:
    """Every threshold at which something changes, from clips that all thought to the end.

    A quick answer stands where its confidence reaches the threshold. A negative confidence (put off, or none) always
    thinks; at infinity, the last threshold, every clip does. Raises `DataError` for columns of different lengths.
    """
    inputs = confidence_C, quick_right_C, final_right_C, quick_tokens_C, tokens_C
    columns = [np.asarray(column, np.float64) for column in inputs]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise DataError(
            f"columns of shapes {[column.shape for column in columns]}",
            "each holds one number per clip",
            "Pass five of the same length",
        )
    confidence, quick_right, final_right, quick_tokens, tokens = columns
    if not len(confidence):
        return GateCurve(*(np.empty(0) for _ in range(4)))
    thresholds = np.append(np.unique(confidence[confidence >= 0]), np.inf)
    stands_T_C = (confidence[None, :] >= thresholds[:, None]) & (confidence[None, :] >= 0)
    return GateCurve(
        thresholds,
        1 - stands_T_C.mean(1),
        np.where(stands_T_C, quick_right, final_right).mean(1),
        np.where(stands_T_C, quick_tokens, tokens).mean(1),
    )


def cheapest_threshold(curve: GateCurve, tolerance: float = 0.0) -> float:
    """The lowest threshold whose accuracy is within `tolerance` of the best one on these clips: it thinks least [R]."""
    if not len(curve.thresholds):
        return float("nan")
    good = curve.accuracy >= curve.accuracy.max() - tolerance - 1e-12
    return float(curve.thresholds[good.argmax()])
