"""Which given labels are probably wrong: confident learning (Northcutt, Jiang and Chuang 2021), from the paper.

Probabilities must be out of fold: of a model that was not trained on the labels that it is to doubt.

Left out on purpose: the best-known library for this, since its licence (AGPL) and ours do not go together; pruning by
noise rate, and training on what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from deepintuit.metrics.inputs import Floats, Ints, distribution


@dataclass(frozen=True)
class LabelErrors:
    """`order_C`: clips, the most suspicious first. `suspected_C`: the clip is confidently of another class than given;
    `likely_C` is that class, else the given one. `joint_K_K`: the estimated share of clips of (given, true) class."""

    order_C: Ints
    suspected_C: np.ndarray
    likely_C: Ints
    self_confidence_C: Floats
    joint_K_K: Floats

    @property
    def noise(self) -> float:
        """The estimated share of wrong labels."""
        return float(1 - np.trace(self.joint_K_K)) if self.order_C.size else float("nan")


def label_errors(given_C: ArrayLike, probs_C_K: ArrayLike) -> LabelErrors:
    """A clip is confidently of class k when p_k reaches the mean p_k of the clips that are labelled k (of several such
    classes, the likeliest); off the diagonal of (given, confident) are the suspects. The order is by self-confidence,
    the probability of the given label, upwards; with flips injected it found as many as suspects first, or more. No
    clips: empty, and a joint of zeros.

    A class that the model never gives (`_known`) has no threshold that means anything: no clip is confidently of it,
    and clips labelled so are of their likeliest class [R].

    `given_C` are class indices; DataError for rows that are no distribution.
    """
    probs, given = distribution(probs_C_K, given_C)
    C, K = len(given), probs.shape[1]
    counts = np.bincount(given, minlength=K).astype(np.float64)
    own = probs[np.arange(C), given]
    means = np.divide(np.bincount(given, own, minlength=K), counts, out=np.zeros(K), where=counts > 0)
    known_K = _known(means, counts, probs)
    sure = np.where(known_K & (probs >= means - 1e-12), probs, -1.0)
    likeliest = np.where(known_K, probs, -1.0).argmax(1) if C and known_K.any() else given
    counted = (sure.max(1, initial=-1) >= 0) | ~known_K[given]
    confident = np.where(sure.max(1, initial=-1) >= 0, sure.argmax(1) if C else given, likeliest)
    confident = np.where(counted, confident, given)
    # Clips that are confidently of no class count nowhere; rows are then scaled to the classes' true counts.
    joint = np.zeros((K, K))
    np.add.at(joint, (given[counted], confident[counted]), 1)
    rows = joint.sum(1, keepdims=True)
    joint = np.where(rows > 0, joint / np.maximum(rows, 1) * counts[:, None], np.diag(counts))
    suspected = confident != given
    return LabelErrors(np.argsort(own, kind="stable"), suspected, confident, own, joint / max(1.0, joint.sum()))


def _known(means_K: Floats, counts_K: Floats, probs_C_K: Floats) -> np.ndarray:
    """The classes of which the model knows something: clips labelled k have a higher mean p_k than the others, and one
    above a tenth of chance. Of the others a threshold of almost 0 would make every clip a suspect."""
    others_K = counts_K.sum() - counts_K
    elsewhere = np.divide(
        probs_C_K.sum(0) - counts_K * means_K, others_K, out=np.zeros(len(counts_K)), where=others_K > 0
    )
    return (counts_K > 0) & (means_K > elsewhere + 1e-12) & (means_K > 0.1 / max(1, len(counts_K)))
