"""Clip → trace, provisional label, calibrated distribution: what stages, app and notebooks ask of a model.

- `task`          a dataset with its labels, grammar and prompts
- `local`         traces from a model on this machine, as rows for the store
- `distribution`  the four ways to a class distribution

Left out on purpose: batching over several machines (Ray Data or a vLLM server do that).
"""

from deepintuit.reasoner.distribution import (
    CALIBRATION,
    HEAD,
    NEEDS_SAMPLES,
    LinearHead,
    Scores,
    hidden_states,
    likelihood_scores,
    mean_scores,
    prompt_likelihoods,
    vote_scores,
)
from deepintuit.reasoner.local import LocalReasoner, Unreadable
from deepintuit.reasoner.task import Clip, Task, card, identity, parsed, rationale_of

__all__ = [
    "CALIBRATION", "HEAD", "NEEDS_SAMPLES", "Clip", "LinearHead", "LocalReasoner", "Scores", "Task", "Unreadable", "card", "hidden_states", "identity",
    "likelihood_scores", "mean_scores", "parsed", "prompt_likelihoods", "rationale_of", "vote_scores",
]  # fmt: skip
