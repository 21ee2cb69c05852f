"""Full fine-tuning with weights divided among the processes of one command: FSDP2, torch's `fully_shard`.

A copy of the model is trained, of which each process holds a part: of the weights in float32, of their gradients and of
the optimizer's numbers. A layer's weights are gathered when a pass comes to it, in the type that it computes in. The
model itself keeps all weights in that type, for passes without gradients: those are not the same number in all
processes, and would gather them anew each time. `fill` gives it what was trained.

What is saved is whole (`whole`), as one process would save it, so any number of processes goes on from it (`part`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from trl.trainer.utils import add_fused_lm_head

from deepintuit import ranks
from deepintuit.vlm.group import naming
from deepintuit.vlm.model import VLM
from deepintuit.vlm.precision import read_as_held


def divided(vlm: VLM) -> torch.nn.Module:
    """A copy of the model to train. The model's own weights are rounded to the type that it computes in."""
    kept = {id(tensor): tensor for tensor in chain(vlm.model.parameters(), vlm.model.buffers())}
    model = copy.deepcopy(vlm.model, kept)
    del model.forward  # the original's, with another head
    add_fused_lm_head(model)
    read_as_held(model)  # or torch would take rounded weights for those that are trained
    mesh = init_device_mesh(vlm.device.type, (ranks.count(),))
    policy = MixedPrecisionPolicy(vlm.dtype, torch.float32, cast_forward_inputs=False)
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    with naming():
        for module in (*getattr(model.model, vlm.family.language).layers, model):
            fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=frozen)
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)  # each has its share of the batch's mean: a sum
    for parameter in vlm.model.parameters():
        parameter.data = parameter.data.to(vlm.dtype)
    return model


def is_divided(model: torch.nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@torch.no_grad()
def fill(model: torch.nn.Module, trained: torch.nn.Module) -> None:
    """Give the model all that was trained; of an undivided one it is there."""
    if is_divided(trained):
        for own, theirs in zip(model.parameters(), trained.parameters(), strict=True):
            if isinstance(theirs, DTensor):
                own.copy_(full(theirs))


def full(value: Any) -> Any:
    """Everyone's parts of a tensor as one; whatever else as it is."""
    if not isinstance(value, DTensor):
        return value
    with naming():
        return value.full_tensor()


def whole(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a dict of tensors all parts, on the CPU of the leading process; all of them call it."""
    gathered = {}
    for name, value in values.items():
        value = full(value)
        gathered[name] = value.cpu() if ranks.leads() and isinstance(value, torch.Tensor) else None
    return gathered


def part(values: Mapping[str, Any], of: Mapping[str, Any]) -> dict[str, Any]:
    """Of whole tensors this process's parts, as the tensors of the same names are divided."""
    return {name: _part(value, of[name]) for name, value in values.items()}


def _part(value: Any, of: Any) -> Any:
    if not isinstance(of, DTensor) or isinstance(value, DTensor) or value.shape != of.shape:  # a count of steps, say
        return value
    return distribute_tensor(value.to(of.device), of.device_mesh, of.placements, src_data_rank=None)


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state with whole tensors, in the leading process; all of them call it."""
    state = optimizer.state_dict()
    return {**state, "state": {number: whole(numbers) for number, numbers in state["state"].items()}}


def take_whole(optimizer: torch.optim.Optimizer) -> None:
    """Let it load the state that `moments` gives."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def divide(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        of = {number: dict.fromkeys(numbers, parameters[number]) for number, numbers in state["state"].items()}
        return {**state, "state": {number: part(numbers, of[number]) for number, numbers in state["state"].items()}}

    optimizer.register_load_state_dict_pre_hook(divide)
