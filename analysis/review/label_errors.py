"""Which given labels are probably wrong: confident learning (Northcutt, Jiang and Chuang 2021), as cleanlab has it.

Probabilities must be out of fold: of a model that was not trained on the labels that it is to doubt.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from deepintuit.metrics.inputs import Floats, Ints, distribution


@dataclass(frozen=True)
class LabelErrors:
    """`order_C`: clips, the most suspicious first. `suspected_C`: the clip is confidently of another class than given;
    `likely_C` is the likeliest class of such a clip, else the given one. `noise`: the estimated share of wrong labels,
    nan without clips."""

    order_C: Ints
    suspected_C: np.ndarray
    likely_C: Ints
    self_confidence_C: Floats
    noise: float


def label_errors(given_C: ArrayLike, probs_C_K: ArrayLike) -> LabelErrors:
    """A clip is confidently of class k when p_k reaches the mean p_k of the clips that are labelled k; it is suspected
    when that is another class than the given one, and its likeliest class is too. The order is by self-confidence, the
    probability of the given label, upwards.

    A class that the model never gives (`_known`) has no threshold that means anything: cleanlab's, the mean of almost
    nothing, makes every unsure clip a suspect. No clip is confidently of it, and clips labelled so are of their
    likeliest class.

    `given_C` are class indices; DataError for rows that are no distribution.
    """
    probs, classes = distribution(probs_C_K, given_C)
    own = probs[np.arange(len(classes)), classes]
    known_K = _known(classes, own, probs)
    likely = np.where(known_K, probs, -1.0).argmax(1) if known_K.any() else classes
    sound = known_K[classes]  # labelled with a class that the model knows
    suspected, noise = ~sound & (likely != classes), 0.0
    if known_K.sum() > 1:
        from cleanlab.count import estimate_joint  # here, since it takes seconds to import
        from cleanlab.filter import find_label_issues

        labels, among = (np.cumsum(known_K) - 1)[classes[sound]], probs[sound][:, known_K]
        suspected[sound] = find_label_issues(labels, among, filter_by="confident_learning", n_jobs=1)
        noise = float(1 - np.trace(estimate_joint(labels, among)))
    noise = (noise * sound.sum() + suspected[~sound].sum()) / len(classes) if len(classes) else float("nan")
    return LabelErrors(np.argsort(own, kind="stable"), suspected, np.where(suspected, likely, classes), own, noise)


def _known(given_C: Ints, own_C: Floats, probs_C_K: Floats) -> np.ndarray:
    """The classes of which the model knows something: clips labelled k have a higher mean p_k than the others, and one
    above a tenth of chance."""
    K = probs_C_K.shape[1]
    counts, sums = np.bincount(given_C, minlength=K), np.bincount(given_C, own_C, minlength=K)
    means = sums / np.maximum(counts, 1)
    elsewhere = (probs_C_K.sum(0) - sums) / np.maximum(counts.sum() - counts, 1)
    return (counts > 0) & (means > elsewhere + 1e-12) & (means > 0.1 / max(1, K))
