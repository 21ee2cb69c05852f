"""When thinking ends: the gate of think-only-when-needed (VideoAuto-R1), which lets a quick answer end the work, and a
budget of tokens, after which a thought is closed (DeepIntuit, figure 7).

    gate = gate_for(task, config.gate)          # by the confidence of the quick answer's tokens
    LocalReasoner(vlm, task, seed, gate)        # every trace stops at its quick answer where the gate is sure
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deepintuit.config import Config, GateConfig
from deepintuit.errors import ConfigError
from deepintuit.reasoner.distribution import likelihood_scores
from deepintuit.reasoner.task import Clip, Task
from deepintuit.trace import THINK
from deepintuit.vlm import VLM, Budget, EncodedClip, Gate, Quick

if TYPE_CHECKING:
    from deepintuit.reasoner.calibrator import Calibrator

GateOf = Callable[[Sequence[tuple[Clip, EncodedClip]]], Gate]
"""The gate over a batch of clips, whose places the quick answers name."""


def gate_for(task: Task, settings: GateConfig, calibrator: Calibrator | None = None) -> GateOf | None:
    """The gate that the section `gate` describes; None for a grammar without a quick answer.

    With `by` "off" it only measures: every trace thinks, and keeps the confidence of its quick answer. Raises
    `ConfigError` when there is nothing to gate, or `by` is "calibrated" without a calibrator of quick answers.
    """
    quick = task.grammar.quick
    if quick is None and settings.by != "off":
        raise ConfigError(
            f"gate.by = {settings.by!r} with prompt.grammar = {task.grammar.name!r}",
            "that grammar has no quick answer that could end the work",
            "Set prompt.grammar=answer-think-answer, or gate.by=off",
        )
    if settings.by == "calibrated" and (calibrator is None or "quick" not in calibrator.ways):
        raise ConfigError(
            "gate.by = 'calibrated' without a calibrator that knows quick answers",
            "its distribution after the quick answer is what decides, at a temperature fitted on such answers",
            "Give a run of `deepintuit calibrate --set gate.by=calibrated`, or set gate.by=confidence",
        )
    if quick is None:
        return None

    def gate_over(pairs: Sequence[tuple[Clip, EncodedClip]]) -> Gate:
        def calibrated(answers: Sequence[Quick]) -> list[float]:
            traces = [task.parse(answer.text, False, thought=False) for answer in answers]
            scores = likelihood_scores(calibrator.vlm, task, [pairs[a.clip] for a in answers], traces, len(answers))
            return scores.probs(calibrator.ways["quick"]["temperature"]).max(1).tolist()

        if settings.by == "off":
            return Gate(quick)
        return Gate(quick, settings.threshold, calibrated if settings.by == "calibrated" else None)

    return gate_over


def budget_for(vlm: VLM, task: Task, config: Config) -> Budget | None:
    """The budget of `evaluate.thinking_tokens`. ConfigError where traces end before it."""
    tokens = config.evaluate.thinking_tokens
    if not tokens:
        return None
    closing = f" {THINK.close}{task.grammar.answer.open}"
    ids, most = tuple(vlm.tokenizer.encode(closing, add_special_tokens=False)), config.sampling.max_tokens
    if tokens + len(ids) >= most:
        raise ConfigError(
            f"evaluate.thinking_tokens = {tokens} with sampling.max_tokens = {most}",
            f"closing a thought takes {len(ids)} tokens more, so that none would be left for an answer",
            f"Set evaluate.thinking_tokens to {max(most - len(ids) - 1, 1)} or less, or raise sampling.max_tokens",
        )
    return Budget(THINK, tokens, ids)
