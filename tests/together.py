"""Commands of `deepintuit` in this process, one after the other: what `test_ranks` starts under torchrun and without.

    python tests/together.py OUT WORKBENCH '[["coldstart", "--set", …], …]'

Into OUT.<rank> go, of each command, its exit code and how many tokens went through the model with gradients. A word
`@name` stands for the run of that name.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from unittest.mock import patch

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


def named(workbench: str | Path, word: str) -> str:
    return next(Path(workbench).glob(f"runs/*-{word[1:]}-*")).name if word[0] == "@" else word


def work(out: str, workbench: str | Path, commands: Iterable[Sequence[str]]) -> None:
    rank, told = os.environ.get("RANK", "0"), []
    with patch.object(VLM, "load", counted(VLM.load)):
        for command in commands:
            TOKENS[0] = 0
            told.append({"code": cli.main([named(workbench, word) for word in command]), "tokens": TOKENS[0]})
            Path(f"{out}.{rank}").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(*sys.argv[1:3], json.loads(sys.argv[3]))
