"""What the metrics accept: arrays of one length, labels of the set, rows that are distributions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepintuit.errors import DataError
from deepintuit.labels import NONE_LABEL

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def class_indices(names_C: Sequence[str], labels: Sequence[str]) -> Ints:
    """Label texts as indices into `labels`, with K for "none". DataError for any other text."""
    places = {**{label: k for k, label in enumerate(labels)}, NONE_LABEL: len(labels)}
    unknown = sorted({str(name) for name in names_C} - places.keys())
    if unknown:
        raise DataError(
            f"{unknown[0]!r} is among the labels to be scored",
            f"the label set is {', '.join(labels)}",
            f"resolve answers with LabelSet.resolve and write {NONE_LABEL!r} where that gives None",
        )
    return np.array([places[str(name)] for name in names_C], dtype=np.int64)


def in_order(names_C: Iterable[Sequence[str]], probs_C: Iterable[Sequence[float]], labels: Sequence[str]) -> Floats:
    """Each clip's probabilities, given beside their own names, as (C, K) in the order of `labels`. DataError where they
    are over other labels."""
    orders = [tuple(names) for names in names_C]
    places = {}
    for order in dict.fromkeys(orders):
        if sorted(order) != sorted(labels):
            raise DataError(
                f"probabilities over {', '.join(map(str, order))} came",
                f"the label set is {', '.join(labels)}",
                "Score these clips with the label set of their dataset",
            )
        places[order] = np.argsort(class_indices(order, labels))  # where in the row each label is
    rows = [np.asarray(values, dtype=np.float64) for values in probs_C]
    if any(len(row) != len(labels) for row in rows):
        raise DataError(
            f"{next(len(row) for row in rows if len(row) != len(labels))} probabilities of a clip came",
            f"there are {len(labels)} labels",
            "Give each label one",
        )
    columns_C_K = np.array([places[order] for order in orders], dtype=np.int64).reshape(len(orders), len(labels))
    return np.take_along_axis(np.array(rows).reshape(columns_C_K.shape), columns_C_K, axis=1)


def same_length(**arrays: ArrayLike) -> None:
    sizes = {name: len(np.asarray(array)) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(
            "arrays of different length came: " + ", ".join(f"{k} {v}" for k, v in sizes.items()),
            "each clip has one entry in each of them",
            "pass the same clips in the same order",
        )


def distribution(probs_C_K: ArrayLike, truth_C: ArrayLike) -> tuple[Floats, Ints]:
    probs, truth = np.asarray(probs_C_K, dtype=np.float64), np.asarray(truth_C, dtype=np.int64)
    if truth.size == 0:
        return probs.reshape(0, probs.shape[-1] if probs.ndim == 2 else 0), truth.reshape(0)
    if probs.ndim != 2 or len(probs) != len(truth):
        raise DataError(
            f"probabilities of shape {probs.shape} came for {len(truth)} clips",
            "there must be a row per clip and a column per class",
            "stack one distribution per clip",
        )
    if not (np.isfinite(probs).all() and (probs >= -1e-9).all() and np.allclose(probs.sum(1), 1, atol=1e-3)):
        worst = int(np.argmax(np.where(np.isfinite(probs).all(1), np.abs(probs.sum(1) - 1), np.inf)))
        raise DataError(
            f"row {worst} of the probabilities is {probs[worst].tolist()}",
            "it is not a distribution over the classes",
            "apply softmax (apply_temperature) first",
        )
    if truth.min() < 0 or truth.max() >= probs.shape[1]:
        raise DataError(
            f"class index {int(truth.max())} or {int(truth.min())} came for {probs.shape[1]} classes",
            "a truth must be one of the classes",
            "use class_indices with the labels of the columns",
        )
    return probs, truth


def confidence_and_correct(confidence_C: ArrayLike, correct_C: ArrayLike) -> tuple[Floats, Floats]:
    same_length(confidence=confidence_C, correct=correct_C)
    confidence, correct = np.asarray(confidence_C, dtype=np.float64), np.asarray(correct_C, dtype=np.float64)
    outside = ~((confidence >= -1e-9) & (confidence <= 1 + 1e-9))
    if outside.any():
        raise DataError(
            f"a confidence of {confidence[outside][0]} came",
            "it must lie in 0 … 1",
            "pass probabilities, not logits, and leave out clips that have none",
        )
    return np.clip(confidence, 0.0, 1.0), correct


def mean(values: Floats) -> float:
    return float(values.mean()) if values.size else math.nan
