"""Rows of the grain `predictions`: what was answered for a clip, as it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.reasoner.task import Clip


def prediction_rows(
    labels: LabelSet,
    clips: Sequence[Clip],
    traces: Sequence[str],
    probs_C_K: Sequence[np.ndarray | None],
    about: Mapping[str, str],
    *,
    predicted: Sequence[str] | None = None,
    provisional: Sequence[str] | None = None,
    outside: np.ndarray | None = None,
    temperature: ArrayLike = np.nan,
    far: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the grain `predictions`, one a clip: `traces` are ids, `about` the columns that all rows share;
    `predicted` is what has the highest probability where nothing else is said; `far`: `distance.Far` by clip id.
    `probs_C_K` has None for a clip without probabilities, which `predicted` must be told of."""
    far = far or {}
    predicted = predicted or [labels.labels[probs.argmax()] for probs in probs_C_K]
    outside = np.broadcast_to(np.nan if outside is None else outside, len(clips))
    temperatures = np.broadcast_to(temperature, len(clips))
    return [
        {
            **about,
            "labels": list(labels),
            "clip_id": clip.clip_id,
            "trace_id": traces[i],
            "true_label": clip.label,
            "provisional": provisional[i] if provisional else NONE_LABEL,
            "predicted": predicted[i],
            "probs": None if probs_C_K[i] is None else [float(p) for p in probs_C_K[i]],
            "outside_mass": None if np.isnan(outside[i]) else float(outside[i]),
            "temperature": None if np.isnan(temperatures[i]) else float(temperatures[i]),
            **(far[clip.clip_id]._asdict() if clip.clip_id in far else {}),
        }
        for i, clip in enumerate(clips)
    ]
