"""Rewards of a parsed trace: is the answer right, is the text well formed, is it too long (paper, GRPO).

Pure functions, and no `except`: a malformed trace scores 0 because the rule says so, anything else that is wrong stops
the run. Left out on purpose: no partial credit and no reward model; the observation's rewards (VideoP2R) come apart.
Run it:  python -m pytest tests/test_rewards.py
"""

from __future__ import annotations

from dataclasses import dataclass

from deepintuit.errors import ConfigError, LabelError
from deepintuit.labels import NONE_LABEL, normalise
from deepintuit.trace import Malformed, Trace


@dataclass(frozen=True)
class Score:
    """A reward that keeps its evidence. `value` is the weighted sum that the objective sees.

    `accuracy` and `format` are 0 or 1, `overlong` is −1 … 0, `answer` is the label that was read or "none", and
    `reason` is why the text is not a trace ("" when it is one).
    """

    value: float
    accuracy: float
    format: float
    overlong: float
    answer: str
    reason: str


def accuracy_reward(trace: Trace | Malformed, true_label: str) -> float:
    """1.0 when the answer is the true label after normalising, else 0.0.

    Format is rewarded apart from it (paper, GRPO), so a malformed text whose answer is beyond doubt can be right
    too [R]; `trace.parse` says when that is. Raises `LabelError` without a true label: all rewards would be 0.
    """
    wanted = normalise(true_label)
    if wanted in ("", NONE_LABEL):
        raise LabelError(f"true label {true_label!r}", "no answer could ever be right", "Label the clip, or exclude it")
    return float(trace.label is not None and normalise(trace.label) == wanted)


def format_reward(trace: Trace | Malformed) -> float:
    """1.0 for a well-formed trace, else 0.0. An answer that names no label is not well formed [R]."""
    return float(trace.ok)


def overlong_penalty(length: int, max_length: int, cache: int) -> float:
    """DAPO's length penalty, in tokens: 0 up to max_length − cache, then linear down to −1 at max_length and beyond.

    A `cache` of 0 switches it off. Raises `ConfigError` for a cache that is negative or larger than the limit.
    """
    if not 0 <= cache <= max_length:
        raise ConfigError(f"overlong cache {cache}", f"it must lie in 0 … {max_length} tokens, the limit", "Change it")
    if cache == 0:
        return 0.0
    excess = length - (max_length - cache)
    return 0.0 if excess <= 0 else -min(excess / cache, 1.0)


def score(
    trace: Trace | Malformed,
    true_label: str,
    *,
    accuracy_weight: float = 1.0,
    format_weight: float = 1.0,
    length: int = 0,
    max_length: int = 0,
    overlong_cache: int = 0,
) -> Score:
    """accuracy_weight · accuracy + format_weight · format + overlong penalty. Lengths and the cache are in tokens."""
    accuracy, form = accuracy_reward(trace, true_label), format_reward(trace)
    overlong = overlong_penalty(length, max_length, overlong_cache)
    return Score(
        value=accuracy_weight * accuracy + format_weight * form + overlong,
        accuracy=accuracy,
        format=form,
        overlong=overlong,
        answer=trace.label or NONE_LABEL,
        reason="" if isinstance(trace, Trace) else str(trace.reason),
    )
