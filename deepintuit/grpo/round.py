"""One round of GRPO: sample → score → advantage → loss, in `play_round`, with the formula of each step.

The grammar decides the rewards (`rewards`): of the whole trace, of seeing and reasoning apart, of a quick and a final
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deepintuit import ranks
from deepintuit.advantage import group_advantages, softmax_weights, token_advantages, zero_variance_share
from deepintuit.config import Config
from deepintuit.judges import Judge, Question, Verdict
from deepintuit.reasoner import Clip, LocalReasoner
from deepintuit.rewards import ProcessScore, Score, dual_score, process_score, score
from deepintuit.trace import GRAMMARS, Malformed, Trace, outer_spans
from deepintuit.vlm import EncodedClip, Sample, character_offsets

Sampled = Sequence[tuple[Clip, EncodedClip, list[Sample]]]
"""The groups of a call to `LocalReasoner.groups`."""


def play_round(
    clips: Sequence[Clip],
    sample: Callable[[Sequence[Clip], int], Sampled],
    scorer: Scorer,
    pool: Sequence[Clip],
    seed: Sequence[int],
) -> tuple[list[Group], list[np.ndarray], dict[str, float]]:
    """A round on N clips: its groups, the advantage of each token of each trace, and what dynamic sampling did.
    `sample(clips, n)` gives a group of each clip, for the round itself (n = 0) or its n-th refill from the `pool`.

    1. sample     G traces o_1 … o_G of each clip from the policy π as it stands
    2. score      r_i by rule, from the trace's grammar, label and length
    3. advantage  A_i = (r_i − mean r) / (std r + ε) within the group; all of a group that agrees: 0
    4. loss       −mean_t min(ρ_t A, clip(ρ_t, 1 − ε_low, 1 + ε_high) A),  ρ_t = π(o_t) / π_sampled(o_t)

    Step 4 is TRL's (`Trainer._compute_loss`): over all tokens of the round ("dapo") or a trace first ("grpo"). Sampled
    and updated once a round, ρ is 1 there and clipping idle: the gradient is A ∇ log π(o_t). With
    `objective = "softmax_weighted"` A_i is G softmax(r / τ)_i in its place. Where a server samples (`grpo.sampler`),
    each token's loss is weighed by min(π(o_t) / π_server(o_t), 2), without a gradient (`ServedSampler.weights`).

    Of several processes `sample` gives each the groups of its share of the clips, and so does this.
    """
    groups = scorer.score(sample(clips, 0))  # N groups of G
    dynamic = {}
    if scorer.config.dynamic_sampling:
        groups, dynamic = refill(groups, sample, scorer, pool, seed)
    advantages = [advantage_T for group in groups for advantage_T in scorer.advantages(group)]  # N·G of (T,)
    return groups, advantages, dynamic


def refill(
    groups: Sequence[Group],
    sample: Callable[[Sequence[Clip], int], Sampled],
    scorer: Scorer,
    pool: Sequence[Clip],
    seed: Sequence[int],
) -> tuple[list[Group], dict[str, float]]:
    """Dynamic sampling (DAPO): keep groups with 0 < #correct < G, and draw further clips at most `max_refills` times.

    What is still missing is filled with groups that agree: their advantages are zero on accuracy, and the batch keeps
    its shape. Decided on the groups of all processes, in each the same.
    """
    groups = gather_groups(groups)
    total, sampled, size = len(groups), len(groups), scorer.config.group
    mixed, uniform = [g for g in groups if g.mixed], [g for g in groups if not g.mixed]
    rng = np.random.default_rng(seed)
    for turn in range(1, scorer.config.max_refills + 1):
        if len(mixed) >= total:
            break
        indices = rng.choice(len(pool), size=min(len(pool), total - len(mixed)), replace=False)
        new = gather_groups(scorer.score(sample([pool[i] for i in indices], turn), first=turn * size))
        sampled += len(new)
        mixed += [g for g in new if g.mixed]
        uniform += [g for g in new if not g.mixed]
    stats = {"dynamic_kept_share": len(mixed) / sampled, "dynamic_sampled_groups": sampled}
    return [group for group in (mixed + uniform)[:total] if isinstance(group, Group)], stats


class RemoteGroup(NamedTuple):
    """A group that another process has sampled; this one knows only whether it is mixed."""

    mixed: bool


def gather_groups(groups: Sequence[Group]) -> list[Group | RemoteGroup]:
    """The groups of all processes, in the order of the clips."""
    marks, own = ranks.merged([(ranks.number(), group.mixed) for group in groups]), iter(groups)
    return [next(own) if number == ranks.number() else RemoteGroup(mixed) for number, mixed in marks]


def splits_rewards(config: Config) -> bool:
    """Whether perception (the observation) and reasoning are rewarded each by its own rule (VideoP2R)."""
    return GRAMMARS[config.prompt.grammar].observes and config.grpo.process != "off"


@dataclass
class Group:
    """The traces of one clip in one round; `first` is the sample number of the first, which names its random stream.

    `perception_T`: for each trace (T,), 1 where a token is its observation's, else 0. `verdicts`: the judge's, where
    one was asked.
    """

    clip: Clip
    encoded: EncodedClip
    samples: list[Sample]
    traces: list[Trace | Malformed]
    scores: list[Score]
    perception_T: list[np.ndarray]
    verdicts: list[Verdict | None]
    prompt_ids: list[int]
    first: int

    @property
    def mixed(self) -> bool:
        return 0 < sum(s.accuracy for s in self.scores) < len(self.scores)


class Scorer:
    """Scores groups by the rules of a config, and says what each token is pushed by; `judge` where observations are
    judged."""

    def __init__(self, reasoner: LocalReasoner, config: Config, judge: Judge | None = None):
        self.reasoner, self.config, self.judge = reasoner, config.grpo, judge
        self.separate = judge is not None and config.grpo.process == "separate"

    def score(self, sampled: Sampled, first: int = 0) -> list[Group]:
        """Sampled groups, parsed, judged and scored; `first`: the sample number of each group's first trace."""
        task, groups = self.reasoner.task, []
        for clip, encoded, samples in sampled:
            traces = [task.parse(sample.text, sample.truncated) for sample in samples]
            masks = [self._perception_tokens(sample, trace) for sample, trace in zip(samples, traces)]
            prompt = self.reasoner.vlm.prompt_ids(encoded, task.reasoner_prompt(clip.clip_id))
            groups.append(Group(clip, encoded, samples, traces, [], masks, [None] * len(samples), prompt, first))
        self._judge_observations(groups)
        for group in groups:
            group.scores = [self._score(group, number) for number in range(len(group.samples))]
        return groups

    def advantages(self, group: Group) -> list[np.ndarray]:
        """(T,) of each trace: one number for all its tokens, or that of the process a token belongs to."""
        if not self.separate:
            advantages_G = self._advantages_of([s.value for s in group.scores])
            return [np.full(len(s.token_ids), a) for s, a in zip(group.samples, advantages_G)]
        # Each is normalised on its own, so that a weight on the rewards alone would cancel.
        perception_G = self._advantages_of([s.perception for s in group.scores]) * self.config.perception_weight
        reasoning_G = self._advantages_of([s.reasoning for s in group.scores])
        return [np.where(mask_T > 0, p, r) for mask_T, p, r in zip(group.perception_T, perception_G, reasoning_G)]

    def zero_variance(self, groups: Sequence[Any]) -> dict[str, float]:
        """Of each process, the share of groups (what has `scores`) that agree with themselves (VideoP2R: fewer than of
        their sum)."""
        if not self.separate:
            return {}
        return {
            f"zero_variance_{name}": zero_variance_share(
                [[getattr(s, name) for s in group.scores if isinstance(s, ProcessScore)] for group in groups]
            )
            for name in ("perception", "reasoning")
        }

    def _judge_observations(self, groups: Sequence[Group]) -> None:
        """Verdicts on every observation of a round, in one call: a server answers many at a time."""
        if self.judge is None:
            return
        places = [(group, i) for group in groups for i, trace in enumerate(group.traces) if trace.ok]
        questions = [Question(g.clip.clip_id, g.clip.label, g.traces[i].segment("observation")) for g, i in places]
        for (group, i), verdict in zip(places, self.judge(questions), strict=True):
            group.verdicts[i] = verdict

    def _perception_tokens(self, sample: Sample, trace: Trace | Malformed) -> np.ndarray:
        """(T,) which tokens are the observation's, its marks included; none of a text that could not be parsed."""
        if self.judge is None or not trace.ok:
            return np.zeros(len(sample.token_ids))
        spans = outer_spans(trace)
        offsets_T_2 = character_offsets(self.reasoner.vlm.tokenizer, sample.token_ids)
        return token_advantages(offsets_T_2, spans, {name: float(name == "observation") for name in spans})

    def _score(self, group: Group, number: int) -> Score:
        settings, trace, label = self.config, group.traces[number], group.clip.label
        length = len(group.samples[number].token_ids)
        weights = {name: getattr(settings, name) for name in ("accuracy_weight", "format_weight")}
        limits = {"length": length, "max_length": settings.max_tokens, "overlong_cache": settings.overlong_cache}
        if trace.grammar.quick:
            weights_of_two = {
                name: getattr(settings, name) for name in ("quick_weight", "final_weight", "fallback_bonus")
            }
            answer_score = dual_score(trace, label, **weights_of_two, **weights, **limits)
        else:
            answer_score = score(trace, label, **weights, **limits)
        if self.judge is None:
            return answer_score
        perception_tokens, verdict = int(group.perception_T[number].sum()), group.verdicts[number]
        return process_score(
            trace,
            label,
            **weights,
            answer_score=answer_score,
            sufficient=bool(verdict and verdict.sufficient),
            perception_tokens=perception_tokens,
            reasoning_tokens=length - perception_tokens,
            perception_target=(settings.perception_min, settings.perception_max),
            reasoning_target=(settings.reasoning_min, settings.reasoning_max),
            bonus=settings.length_bonus,
            perception_weight=settings.perception_weight,
        )

    def _advantages_of(self, rewards_G: Sequence[float]) -> np.ndarray:
        """(G,) advantages by the objective of the settings."""
        if self.config.objective == "softmax_weighted":
            return softmax_weights(rewards_G, self.config.tau) * len(rewards_G)  # the loss divides by the group's size
        return group_advantages(rewards_G)
