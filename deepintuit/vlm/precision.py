"""The number type of every forward pass, in one place: that of the checkpoint in memory, whoever calls.

At a rate of 1e-6 an AdamW step is smaller than the spacing of most bfloat16 weights: they would stay where they are. So
what is trained is held in float32 and rounded wherever a forward pass reads it. Sampling, scores, hidden states and
losses then are what the saved weights, loaded again, would give: the same numbers in the same arithmetic. Gradients
pass the rounding as they are and add up in float32. Autocast is not used: under it, what a pass computes depends on who
calls it, and on each operation's place in a list.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn


def round_in_forward(model: nn.Module) -> None:
    """Hold in float32 what is trained, and let forward passes read that, and any adapter, rounded to the model's type.

    That type is the tower's, which comes first and is never trained. Again for adapters that were added since.
    """
    dtype = model.dtype
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules() if dtype != torch.float32 else ():
        if _held(module) and not isinstance(module, _Rounded):
            module.__class__, module.read_as = _rounded(type(module)), dtype


def read_as_held(model: nn.Module) -> None:
    """Undo `round_in_forward` but for the float32: who gathers the weights rounds them."""
    for module in model.modules():
        if isinstance(module, _Rounded):
            module.__class__ = type(module).__bases__[1]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, in which weights are rounded once for all passes."""
    was_training = model.training
    rounded = [(module, name) for module in model.modules() if isinstance(module, _Rounded) for name in _held(module)]
    try:
        with torch.no_grad():
            for module, name in rounded:
                module.__dict__[name] = getattr(module, name)  # found there first
            model.eval()
            yield
    finally:
        for module, name in rounded:
            module.__dict__.pop(name, None)
        model.train(was_training)


class _Rounded(nn.Module):
    """A module that computes with its float32 weights as they are in `read_as`. `parameters` and `state_dict`, and so
    optimizer and checkpoints, see them as they are held."""

    read_as: torch.dtype

    def __getattr__(self, name: str):
        value = super().__getattr__(name)
        rounded = isinstance(value, nn.Parameter) and value.dtype == torch.float32
        return value.to(self.read_as) if rounded else value


def _held(module: nn.Module) -> list[str]:
    own = module.named_parameters(recurse=False)
    return [name for name, parameter in own if parameter.dtype == torch.float32]


@cache
def _rounded(kind: type) -> type:
    return type(kind.__name__, (_Rounded, kind), {"__module__": kind.__module__})
