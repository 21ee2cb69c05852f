"""Forward and backward over a group's traces: the tree of prompt and traces, against prompt, pixels and trace a row.

Both use TRL's fused head; gradients are compared before anything is timed. The traces are random tokens, unlike from
the first one on: what true traces have in common comes on top (`grpo_step`).

Run it:  python benchmarks/loss.py [--group 8] [--tokens 32] [--repeats 5] [--family embedded] [--device cpu]
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from measure import chosen, options, report
from routes import PROMPT, Pair

from deepintuit.vlm.prefix import pack


def written(vlm, rows: int, tokens: int) -> list[list[int]]:
    words = torch.tensor([i for i in range(50, 250) if i not in vlm.silenced])
    return words[torch.randint(len(words), (rows, tokens), generator=torch.Generator().manual_seed(0))].tolist()


def gradient(vlm, clips, group: int, tokens: int) -> torch.Tensor:
    each = [clip for clip in clips for _ in range(group)]
    prompts = [vlm.prompt_ids(clip, PROMPT) for clip in each]
    rows = [prompt + trace for prompt, trace in zip(prompts, written(vlm, len(each), tokens))]
    packed = pack(vlm, each, rows, [len(prompt) for prompt in prompts])
    logprobs = vlm.model(**packed.inputs, fused_lm_head=True).log_probs.flatten()
    vlm.model.zero_grad()
    torch.stack([logprobs[places] for places in packed.places]).mean().backward()
    return torch.cat([p.grad.flatten() for p in vlm.model.parameters() if p.grad is not None])


def near(plain: torch.Tensor, ours: torch.Tensor) -> None:
    assert (plain - ours).norm() < 1e-4 * ours.norm(), "other gradients"


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--family", choices=("embedded", "hub25", "hub3"), default="embedded")
    parser.add_argument("--device", default="cpu")
    given = chosen(parser)
    with tempfile.TemporaryDirectory() as scratch:
        pair = Pair(given.family, Path(scratch), given.device, trainable=True)
        claim = f"loss and gradients, {given.group} traces of {given.tokens} tokens a clip"
        row = pair.row(claim, partial(gradient, group=given.group, tokens=given.tokens), near, given.repeats)
    report(given, [row], pair.about)


if __name__ == "__main__":
    main()
