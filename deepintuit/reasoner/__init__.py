"""Clip → trace, provisional label, calibrated distribution: what stages, app and notebooks ask of a model.

- `task`          a dataset with its labels, grammar and prompts
- `local`         traces from a model on this machine, as rows for the store
- `served`        the same from an OpenAI-compatible server
- `sampler`       a server that is given the weights before each round of GRPO
- `distribution`  the four ways to a class distribution
- `head`          one of them: logistic regression on hidden states
- `calibrator`    a trained calibrator, loaded
- `predictions`   what was answered, as rows for the store
- `distance`      how far a clip is from those that the calibrator learnt from
- `controls`      the same question with one of its inputs altered
- `gate`          when a quick answer ends the work
- `live`          one clip reasoned about while somebody watches, as a stream of events
- `replay`        the same events from a stored trace, without torch

A name is imported when it is first asked for, so that a replay starts without torch.
"""

from importlib import import_module
from typing import Any

_FROM = {
    "distribution": (
        "NEEDS_SAMPLES", "Scores", "answer_distribution", "hidden_states", "label_scores", "likelihood_scores",
        "mean_scores", "vote_scores",
    ),
    "head": ("HEAD", "LinearHead", "fit_head"),
    "calibrator": ("CALIBRATION", "Calibrator", "fitted_ways"),
    "predictions": ("prediction_rows",),
    "distance": ("DISTANCE", "FALSE_ALARMS", "Distance", "add_distances"),
    "gate": ("budget_for", "gate_for"),
    "local": ("EncodedClips", "LocalReasoner", "Unreadable"),
    "served": ("ServedScores", "needs_weights", "reasoner_for", "refuse_lost"),
    "sampler": ("ServedSampler",),
    "task": (
        "Clip", "Opinion", "Task", "altered", "asked", "card", "identity", "inherited", "opinion_of", "parsed",
        "rationale_of", "reasoner_run", "refuse_altered", "refuse_one_class", "tell",
    ),
}  # fmt: skip
_HOME = {name: module for module, names in _FROM.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
