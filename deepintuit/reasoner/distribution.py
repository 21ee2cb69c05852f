"""From clip and traces to a class distribution: the paper's four ways behind one call.

- `label_likelihood`: softmax over Σ log p(label tokens, end token | meta-review), divided by a temperature fitted
  on validation
- `linear_head`: logistic regression on the last hidden state of the meta-review prompt
- `vote`: the share of K traces for each label, with Laplace smoothing
- `mean_likelihood`: the mean of the first over K traces

Every way returns the same thing: scores (C, K) whose softmax at a fitted temperature is the distribution, and the
mass outside the label set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from deepintuit import ranks
from deepintuit.errors import ModelError
from deepintuit.metrics import apply_temperature
from deepintuit.reasoner.local import EncodedClips
from deepintuit.reasoner.served import ServedScores
from deepintuit.reasoner.task import Clip, Opinion, Task
from deepintuit.trace import Malformed, Trace
from deepintuit.vlm import VLM, EncodedClip, character_offsets, label_logprobs, last_hidden

Pairs = Sequence[tuple[Clip, EncodedClip]]
"""Clips with their features. Of many (`EncodedClips`) a batch is read when its turn comes, and where there are several
processes, which then all ask about the same, each answers for its share; a list is one process's own."""

PromptOf = Callable[[str, Any], str]
"""A clip's id and its trace → the prompt."""

NEEDS_SAMPLES = frozenset({"vote", "mean_likelihood"})
"""Ways that read K sampled traces; the others read one."""


@dataclass(frozen=True)
class Scores:
    """`logits_C_K`: unnormalised log-scores before the temperature. `outside_C`: mass outside the labels, or nan."""

    logits_C_K: np.ndarray
    outside_C: np.ndarray

    def probs(self, temperature: ArrayLike) -> np.ndarray:
        """(C, K) rows that sum to 1; one temperature, or one a clip."""
        return apply_temperature(self.logits_C_K, temperature)


def likelihood_scores(
    vlm: VLM | ServedScores, task: Task, clips: Pairs, traces: Sequence[Trace | Malformed | Opinion | None], batch: int
) -> Scores:
    """`label_likelihood` after one trace per clip (None: blanked), or what is left of it."""
    return _likelihoods(vlm, task, clips, traces, task.calibrator_prompt, batch)


def label_scores(vlm: VLM, task: Task, clips: Pairs, batch: int) -> Scores:
    """Label likelihoods behind Direct-SFT's question: no trace is read."""
    return _likelihoods(vlm, task, clips, [None] * len(clips), lambda clip_id, _: task.label_prompt(clip_id), batch)


def hidden_states(
    vlm: VLM, task: Task, clips: Pairs, traces: Sequence[Trace | Malformed | None], batch: int
) -> np.ndarray:
    """(C, D) what the linear head reads (`head.LinearHead`)."""
    if not vlm.has_weights:
        raise ModelError(
            "hidden states of a model that is at a server",
            "a linear head reads them, and servers give none",
            "Set server.compare=true, which loads the weights on this machine as well",
        )

    def states(pairs: Sequence[tuple[Clip, EncodedClip]], prompts: Sequence[str]) -> torch.Tensor:
        return last_hidden(vlm, [encoded for _, encoded in pairs], prompts)

    return _in_batches(clips, traces, task.calibrator_prompt, batch, states)


def _likelihoods(
    vlm: VLM | ServedScores, task: Task, clips: Pairs, traces: Sequence[Any], prompt_of: PromptOf, batch: int
) -> Scores:
    def logprobs(pairs: Sequence[tuple[Clip, EncodedClip]], prompts: Sequence[str]) -> torch.Tensor:
        if isinstance(vlm, ServedScores):
            return vlm.label_logprobs(task, pairs, prompts)
        return label_logprobs(vlm, [encoded for _, encoded in pairs], prompts, task.labels)

    logits_C_K = _in_batches(clips, traces, prompt_of, batch, logprobs)
    return Scores(logits_C_K, np.clip(1 - np.exp(logits_C_K).sum(1), 0, 1))


def _in_batches(
    clips: Pairs, traces: Sequence[Any], prompt_of: PromptOf, batch: int, compute: Callable[..., torch.Tensor]
) -> np.ndarray:
    """(C, …) what `compute(pairs, prompts)` gives for the clips of each batch and the prompts about their traces."""

    def rows(start: int) -> np.ndarray:
        pairs, traces_of = clips[start : start + batch], traces[start : start + batch]
        prompts = [prompt_of(clip.clip_id, trace) for (clip, _), trace in zip(pairs, traces_of, strict=True)]
        return compute(pairs, prompts).numpy()

    starts = range(0, len(clips), batch)
    parts = ranks.spread(rows, starts) if isinstance(clips, EncodedClips) else [rows(start) for start in starts]
    return np.concatenate(parts).astype(np.float64)


def vote_scores(task: Task, traces_C_K: Sequence[Sequence[Trace | Malformed]], smoothing: float = 1.0) -> Scores:
    """`vote`. Laplace smoothing keeps a label that no trace names above zero; malformed traces count as outside."""
    counts = np.full((len(traces_C_K), len(task.labels)), smoothing)
    outside = np.zeros(len(traces_C_K))
    for row, traces in enumerate(traces_C_K):
        for trace in traces:
            if trace.ok:
                counts[row, task.labels.index(trace.label)] += 1
            else:
                outside[row] += 1 / len(traces)
    return Scores(np.log(counts / counts.sum(1, keepdims=True)), outside)


def mean_scores(parts: Sequence[Scores]) -> Scores:
    """`mean_likelihood`: the mean of K distributions, as log-scores."""
    probs = np.mean([part.probs(1.0) for part in parts], 0)
    return Scores(np.log(np.maximum(probs, 1e-12)), np.mean([part.outside_C for part in parts], 0))


def answer_distribution(
    task: Task,
    trace: Trace | Malformed,
    token_ids: Sequence[int] | None,
    token_logprobs: Sequence[float] | None,
    tokenizer,
) -> np.ndarray | None:
    """(K,) the provisional label's own probability: the product over the tokens of its answer; the rest is spread
    evenly [R]. A malformed trace says nothing: uniform. None where the tokens or their log-probabilities are not known.
    """
    k = len(task.labels)
    if not trace.ok:
        return np.full(k, 1 / k)
    if any(values is None or not np.size(values) or np.ndim(values) == 0 for values in (token_ids, token_logprobs)):
        return None
    start, end = trace.spans[trace.grammar.answer.name]
    offsets_T_2 = character_offsets(tokenizer, [int(token) for token in token_ids])
    inside_T = (offsets_T_2[:, 0] < end) & (offsets_T_2[:, 1] > start)
    p = float(np.clip(np.exp(np.sum(np.asarray(token_logprobs)[inside_T])), 1 / k, 1.0))
    probs = np.full(k, (1 - p) / (k - 1))
    probs[task.labels.index(trace.label)] = p
    return probs
