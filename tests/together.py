"""Commands of `deepintuit` in this process, one after the other: what `test_ranks` starts under torchrun and without.

    python tests/together.py OUT.json '[["coldstart", "--set", …], …]'

Into OUT.json.<rank> go, of each command, its exit code and how many tokens went through the model with gradients.
"""

import json
import os
import sys
from pathlib import Path

import torch

from deepintuit import cli
from deepintuit.vlm import VLM

TOKENS = [0]


def counted(load):
    def loading(*arguments, **more):
        vlm = load(*arguments, **more)
        vlm.core.model.register_forward_pre_hook(count, with_kwargs=True)
        return vlm

    return loading


def count(module, arguments, named):
    TOKENS[0] += named["input_ids"].numel() * torch.is_grad_enabled()


def work(out: str, commands: list[list[str]]) -> None:
    torch.set_num_threads(1)
    rank, told = os.environ.get("RANK", "0"), []
    VLM.load = counted(VLM.load)
    for command in commands:
        TOKENS[0] = 0
        told.append({"code": cli.main(command), "tokens": TOKENS[0]})
        Path(f"{out}.{rank}").write_text(json.dumps(told), encoding="utf-8")
        if told[-1]["code"]:
            print(" ".join(command[:1]), told[-1], file=sys.stderr, flush=True)


if __name__ == "__main__":
    work(sys.argv[1], json.loads(sys.argv[2]))
