"""Rewards of a parsed trace: is the answer right, is the text well formed, is it too long (paper, GRPO).

`score` is DeepIntuit's; `process_score` rewards perception and reasoning apart (VideoP2R), `dual_score` a quick answer
and a final one (VideoAuto-R1), and given the latter the former does both.

Pure functions, and no `except`: a malformed trace scores 0 because the rule says so, anything else that is wrong stops
the run. There is no partial credit and no reward model; who judges an observation is told (`judges`).
Run it:  python -m pytest tests/test_rewards.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from deepintuit.errors import ConfigError, LabelError
from deepintuit.labels import NONE_LABEL, normalise
from deepintuit.trace import Malformed, Trace


@dataclass(frozen=True)
class Score:
    """A reward that keeps its evidence. `value` is the weighted sum that the objective sees.

    `accuracy` and `format` are 0 or 1, `overlong` is −1 … 0, `label` is the one that was read or "none", and
    `reason` is why the text is not a trace ("" when it is one).
    """

    value: float
    accuracy: float
    format: float
    overlong: float
    label: str
    reason: str

    def numbers(self) -> dict[str, float]:
        """What is stored of it, by name; `reward` is the value."""
        return {"accuracy": self.accuracy, "format": self.format, "overlong": self.overlong, "reward": self.value}


@dataclass(frozen=True)
class ProcessScore(Score):
    """VideoP2R: `value` is `perception` + `reasoning`, the two that are normalised apart; `sufficient`: the verdict.
    `quick` and `put_off` as of `DualScore`, where the grammar has a quick answer too."""

    sufficient: float = 0.0
    perception: float = 0.0
    reasoning: float = 0.0
    quick: float | None = None
    put_off: float | None = None

    def numbers(self) -> dict[str, float]:
        apart = {name: getattr(self, name) for name in ("sufficient", "perception", "reasoning", "quick", "put_off")}
        return super().numbers() | {name: value for name, value in apart.items() if value is not None}


@dataclass(frozen=True)
class DualScore(Score):
    """VideoAuto-R1: `quick` is 1 when the quick answer was right, `put_off` when it was the fallback sentence."""

    quick: float = 0.0
    put_off: float = 0.0

    def numbers(self) -> dict[str, float]:
        return super().numbers() | {"quick": self.quick, "put_off": self.put_off}


def accuracy_reward(trace: Trace | Malformed, true_label: str) -> float:
    """1.0 when the answer is the true label after normalising, else 0.0.

    Format is rewarded apart from it (paper, GRPO), so a malformed text whose answer is beyond doubt can be right
    too [R]; `trace.parse` says when that is. Raises `LabelError` without a true label: all rewards would be 0.
    """
    truth = normalise(true_label)
    if truth in ("", NONE_LABEL):
        raise LabelError(f"true label {true_label!r}", "no answer could ever be right", "Label the clip, or exclude it")
    return float(trace.label is not None and normalise(trace.label) == truth)


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
        label=trace.label or NONE_LABEL,
        reason="" if isinstance(trace, Trace) else str(trace.reason),
    )


def length_bonus(length: int, low: int, high: int, right: float, bonus: float = 0.2) -> float:
    """`bonus` for a part of low … high tokens (both included) whose process was right, else 0 (VideoP2R) [R]."""
    return bonus if right and low <= length <= high else 0.0


def process_score(
    trace: Trace | Malformed,
    true_label: str,
    *,
    sufficient: bool,
    perception_tokens: int,
    reasoning_tokens: int,
    perception_target: tuple[int, int] = (128, 320),
    reasoning_target: tuple[int, int] = (320, 512),
    bonus: float = 0.2,
    perception_weight: float = 1.0,
    accuracy_weight: float = 1.0,
    format_weight: float = 1.0,
    answer_score: Score | None = None,
) -> ProcessScore:
    """Perception and reasoning rewarded apart (VideoP2R): each by accuracy, format, and a bonus for a fitting length.

    Of perception, accuracy is the judge's verdict on the observation alone; of reasoning, the answer's. A text that
    cannot be parsed has no observation to judge: it earns no format on either side and no perception at all [R],
    whatever `sufficient` says. `perception_weight` 0 is the ablation without a perception reward. `answer_score`: what
    the answer, or a quick and a final one, earned, with any penalty for length; it is the reasoning's part [R].
    """
    answer = answer_score or score(trace, true_label, accuracy_weight=accuracy_weight, format_weight=format_weight)
    sufficiency = float(sufficient and trace.ok)
    perception = accuracy_weight * sufficiency + format_weight * answer.format
    perception += length_bonus(perception_tokens, *perception_target, sufficiency * answer.format, bonus)
    perception *= perception_weight
    reasoning = answer.value + length_bonus(reasoning_tokens, *reasoning_target, answer.accuracy * answer.format, bonus)
    fields = vars(replace(answer, value=perception + reasoning))
    return ProcessScore(**fields, sufficient=sufficiency, perception=perception, reasoning=reasoning)


def dual_score(
    trace: Trace | Malformed,
    true_label: str,
    *,
    quick_weight: float = 0.9,
    final_weight: float = 1.1,
    accuracy_weight: float = 1.0,
    fallback_bonus: float = 0.3,
    **settings: float,
) -> DualScore:
    """A quick answer and a final one (VideoAuto-R1): 0.9·R(a1) + 1.1·R(a2) + 1.0·format, and 0.3 more when a1 is the
    fallback and a2 is right. `accuracy_weight` is of both answers; `settings` are `score`'s other weights and lengths.

    Reasoning must pay for itself, so the final answer weighs more; putting off pays only when it ends well. Of a text
    that cannot be parsed only a final answer beyond doubt counts.
    """
    final = score(trace, true_label, accuracy_weight=accuracy_weight * final_weight, **settings)
    quick = float(trace.ok and trace.quick is not None and normalise(trace.quick) == normalise(true_label))
    put_off = float(trace.ok and trace.quick is None)
    value = final.value + accuracy_weight * quick_weight * quick + fallback_bonus * put_off * final.accuracy
    return DualScore(**vars(replace(final, value=value)), quick=quick, put_off=put_off)
