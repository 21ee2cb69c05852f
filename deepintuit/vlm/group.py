"""The processes of one command, met over torch.distributed: data parallel training, one GPU (or CPU process) each.

Each process computes the loss of its own clips, and gradients are added up once an update, as
DistributedDataParallel does behind `no_sync`. The hooks of DistributedDataParallel, accelerate and TRL are not used:
they exchange something in every pass, and the parts of a batch are not as many in one process as in another (where
weights are `divided` as well, they are made as many). So that these libraries see one process each, the launcher's
variables are taken out of the environment.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed

from deepintuit import ranks
from deepintuit.errors import ConfigError, StoreError
from deepintuit.vlm.memory import AGAIN

_LOST = re.compile(r"gloo/|NCCL|Connection (closed|reset)|Broken pipe")
_LONGEST = timedelta(days=1)
"""That one process waits for another, which may have much more to sample. One that ends is noticed at once."""


def join(device: str) -> None:
    """Meet the other processes of this command where a launcher started several, once; `device` as in `model.device`.

    Raises `ConfigError` for a launcher that is to shard a model, and for fewer GPUs than processes on this machine.
    """
    count = ranks.launched()
    if count == 1:
        return
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate launch with {kind.lower()}, {count} processes",
                "clips are divided, so passes are not as many in each process, and its hooks would wait for ever",
                "Start it with --multi_gpu alone or with torchrun; for less memory a GPU set "
                "model.divide_weights=true (full weights), model.lora_rank or model.quantize=4bit",
            )
    number, local = ranks.number(), int(os.environ.get("LOCAL_RANK", "0"))
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if device not in ("auto", "cpu", "cuda") or (gpus and local >= gpus):
        raise ConfigError(
            f"model.device = {device!r} for {count} processes, with {gpus} GPUs visible on this machine",
            "each process takes the GPU of its own number",
            "Set model.device=auto, and start as many processes a machine as `nvidia-smi -L` lists GPUs",
        )
    if gpus:
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_LONGEST)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    ranks.meet(number, count, _exchange)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _told_to_stop)
    if len(set(ranks.gather(gpus > 0))) > 1:
        raise ConfigError(
            f"{count} processes, of which some have a GPU and some have none",
            "they would compute other numbers, and the fast ones wait for the slow ones",
            "Start it on machines of one kind, or set model.device=cpu",
        )


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of everyone's tensor of one shape; 1 process: the tensor."""
    if ranks.count() > 1:
        with naming():
            distributed.all_reduce(value := value.detach().clone())
    return value


def share_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up everyone's gradients. What has none anywhere, as in one process, keeps none."""
    if ranks.count() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    has = total(torch.tensor([float(parameter.grad is not None) for parameter in trained]))
    with naming():
        under_way = []
        for parameter in (parameter for parameter, some in zip(trained, has.tolist()) if some):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            under_way.append(distributed.all_reduce(parameter.grad, async_op=True))
        for work in under_way:
            work.wait()


def same_weights(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Everyone's trained weights become those of the leading process."""
    for parameter in parameters if ranks.count() > 1 else ():
        if parameter.requires_grad:
            with naming():
                distributed.broadcast(parameter.data, src=0)


def draw(seed: int, step: int) -> None:
    """Dropout of an update draws from a stream of its own in each of several processes, also after a kill."""
    if ranks.count() > 1:
        torch.manual_seed(int(np.random.SeedSequence([seed, step, ranks.number()]).generate_state(1)[0]))


def _exchange(value: Any) -> list[Any]:
    values = [None] * ranks.count()
    with naming():
        distributed.all_gather_object(values, value)
    return values


@contextmanager
def naming(other_work: bool = False) -> Iterator[None]:
    """What torch raises where another process has gone is a sentence; `other_work`: beside exchanges something else is
    done, whose errors stay what they are."""
    try:
        yield
    except RuntimeError as error:
        if other_work and not (isinstance(error, distributed.DistError) or _LOST.search(str(error))):
            raise
        raise _ended(str(error).strip().splitlines()[0]) from error


def _ended(why: str) -> StoreError:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is on its way out
    return StoreError(
        f"another of the {ranks.count()} processes of this command has ended",
        f"none can go on without its gradients and parts ({why})",
        f"Look at what that one said last, {AGAIN}",
    )


def _told_to_stop(*_: object) -> None:
    raise _ended("the launcher tells all to stop")
