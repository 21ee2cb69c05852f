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
    clip is confidently of a class that none is labelled with. No clips: empty, and a joint of zeros.

    `given_C` are class indices; DataError for rows that are no distribution.
    """
    probs, given = distribution(probs_C_K, given_C)
    K = probs.shape[1]
    counts = np.bincount(given, minlength=K).astype(np.float64)
    own = probs[np.arange(len(given)), given]
    thresholds = np.divide(np.bincount(given, own, minlength=K), counts, out=np.full(K, np.inf), where=counts > 0)
    sure = np.where(probs >= thresholds - 1e-12, probs, -1.0)
    counted = sure.max(1, initial=-1) >= 0
    confident = np.where(counted, sure.argmax(1) if len(given) else given, given)
    # Clips that are confidently of no class count nowhere; rows are then scaled to the classes' true counts.
    joint = np.zeros((K, K))
    np.add.at(joint, (given[counted], confident[counted]), 1)
    rows = joint.sum(1, keepdims=True)
    joint = np.where(rows > 0, joint / np.maximum(rows, 1) * counts[:, None], np.diag(counts))
    suspected = confident != given
    return LabelErrors(np.argsort(own, kind="stable"), suspected, confident, own, joint / max(1.0, joint.sum()))
