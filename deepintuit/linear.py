"""Logistic regression on texts, metadata or embeddings, for baselines and for the control that reads traces alone.

Run it:  python -c "from deepintuit.linear import text_features; print(text_features().build_analyzer()('a cat'))"
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from deepintuit.errors import DataError
from deepintuit.labels import LabelSet


def logistic_regression(scaler, strength: float = 1.0) -> Pipeline:
    """On what `scaler` makes of the inputs; a smaller `strength` regularises more."""
    return make_pipeline(scaler, LogisticRegression(C=strength, max_iter=2000))


def text_features() -> TfidfVectorizer:
    """TF-IDF over words, pairs of words, and runs of one to four characters: scripts without spaces, and emoji, have
    no words [R]. What a single text holds tells nothing about another."""
    return TfidfVectorizer(analyzer=_grams, min_df=2, sublinear_tf=True, max_features=50_000)


def _grams(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", text)
    grams = [f"{{{word}}}" for word in words] + [f"{{{a} {b}}}" for a, b in pairwise(words)]
    for piece in text.split():
        padded = f" {piece} "
        grams += [padded[i : i + n] for n in range(1, 5) for i in range(len(padded) - n + 1)]
    return [gram for gram in grams if gram != " "]


def class_probabilities(model: Pipeline, inputs, labels_C: Sequence[str], new, labels: LabelSet) -> np.ndarray:
    """The model fitted on `inputs` → probabilities (C, K) of `new`. A class without an example gets almost nothing.

    DataError where there is nothing to learn: one class only, or texts that have nothing in common.
    """
    if len(set(labels_C)) < 2:
        raise DataError(
            f"all {len(labels_C)} training clips are {labels_C[0]!r}",
            "there is nothing to tell apart",
            "Divide the clips so that training holds two classes",
        )
    try:
        model.fit(inputs, labels_C)
    except ValueError as error:
        raise DataError(
            f"nothing in these {len(labels_C)} training clips occurs twice ({error})",
            "what one clip alone says tells nothing about another",
            "Name fields with more text, or go without",
        ) from error
    probs = np.full((len(new), len(labels)), 1e-9)
    probs[:, [labels.index(label) for label in model.classes_]] = model.predict_proba(new)
    return probs / probs.sum(1, keepdims=True)
