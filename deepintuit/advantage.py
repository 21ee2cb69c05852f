"""From rewards to what pushes a trace up or down, on numbers alone (paper, GRPO; VideoP2R for segments).

Axes: N clips of a batch, G traces of a group, T tokens, S segments. Functions of `rewards_G` also take `rewards_N_G`:
the group is the last axis.
Run it:  python -c "from deepintuit.advantage import group_advantages; print(group_advantages([1, 0, 0, 0]))"
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepintuit.errors import ConfigError, DataError

# 1.0 + 0.2 and 0.2 + 1.0 summed in float32 differ by 1e-7: rewards nearer than this are the same reward.
_TIE = 1e-6


def _rewards(rewards_G: ArrayLike) -> NDArray[np.float64]:
    rewards = np.asarray(rewards_G, dtype=np.float64)
    if rewards.ndim == 0 or rewards.shape[-1] == 0:
        raise DataError(f"rewards of shape {rewards.shape}", "a group needs at least one trace", "Pass (G,) or (N, G)")
    if not np.isfinite(rewards).all():
        raise DataError("a reward that is not finite", "it would spoil its whole group", "Look at that clip's score")
    return rewards


def _tied(rewards: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which groups agree with themselves, (…, 1)."""
    scale = np.maximum(np.abs(rewards).max(axis=-1, keepdims=True), 1.0)
    return np.ptp(rewards, axis=-1, keepdims=True) <= _TIE * scale


def group_advantages(rewards_G: ArrayLike, eps: float = 1e-6) -> NDArray[np.float64]:
    """Reward minus the group's mean, over its spread (sample standard deviation, as TRL's) plus eps; same shape.

    A group that agrees with itself, or of one, teaches nothing: exactly zero. Raises `DataError` on NaN or infinity.
    """
    rewards = _rewards(rewards_G)
    centred = rewards - rewards.mean(axis=-1, keepdims=True)
    # The sample standard deviation of a group of one does not exist; it is tied, so any divisor does.
    spread = np.sqrt((centred**2).sum(axis=-1, keepdims=True) / max(rewards.shape[-1] - 1, 1))
    return np.divide(centred, spread + eps, out=np.zeros_like(centred), where=~_tied(rewards))


def softmax_weights(rewards_G: ArrayLike, tau: float = 1.0) -> NDArray[np.float64]:
    """exp(r / tau), normalised over the group: the weights of the paper's objective [R]; same shape.

    A tied group would imitate itself with 1/G each; it is skipped: zeros. Raises `ConfigError` unless tau > 0.
    """
    if not tau > 0:
        raise ConfigError(f"grpo.tau = {tau!r}", "rewards are divided by it, so it must be above 0", "Try 1.0")
    rewards = _rewards(rewards_G)
    powers = np.exp((rewards - rewards.max(axis=-1, keepdims=True)) / tau)
    return np.where(_tied(rewards), 0.0, powers / powers.sum(axis=-1, keepdims=True))


def kept_by_dynamic_sampling(correct_N_G: ArrayLike) -> NDArray[np.bool_]:
    """Which groups have some traces right and some wrong, (N,), judged on accuracy (0 or 1) alone."""
    correct = _rewards(correct_N_G) > 0.5
    return correct.any(axis=-1) & ~correct.all(axis=-1)


def zero_variance_share(rewards_N_G: ArrayLike) -> float:
    """Share of the groups whose rewards are all equal, 0 … 1: what teaches nothing in a batch. NaN of no groups."""
    rewards = _rewards(rewards_N_G)
    return float(_tied(rewards).mean()) if rewards.size else float("nan")


def token_advantages(
    offsets_T: ArrayLike,
    spans: Mapping[str, tuple[int, int]],
    advantages_by_segment: Mapping[str, float],
    elsewhere: float = 0.0,
) -> NDArray[np.float64]:
    """The advantage of each token, (T,), from the segment it lies in (VideoP2R's process-aware GRPO).

    `offsets_T` is (T, 2), each token's (start, end) characters; `spans` the segments' ranges, marks included
    (`trace.outer_spans`). A token that BPE merged across a border takes the segment that holds most of its characters,
    the earlier one on a tie [R]. A token outside all segments, or of no characters (the end token), takes `elsewhere`.
    Raises `DataError` when a segment has no advantage.
    """
    if missing := set(spans) - set(advantages_by_segment):
        raise DataError(
            f"segments {sorted(missing)} without an advantage",
            "their tokens would be left out in silence",
            "Give every segment of the grammar a number",
        )
    offsets = np.asarray(offsets_T, dtype=np.int64).reshape(-1, 2)
    if not spans:
        return np.full(len(offsets), elsewhere, dtype=np.float64)
    names = sorted(spans, key=lambda name: spans[name])
    starts_S, ends_S = np.array([spans[name] for name in names]).T
    overlap_T_S = np.minimum(offsets[:, 1:], ends_S) - np.maximum(offsets[:, :1], starts_S)
    values_S = np.array([advantages_by_segment[name] for name in names], dtype=np.float64)
    return np.where(overlap_T_S.max(axis=1) > 0, values_S[overlap_T_S.argmax(axis=1)], elsewhere)
