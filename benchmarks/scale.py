"""Tokens that the loss of one clip's traces sends through the model at the sizes of real backbones, in which parts: by
the project's own division, nothing else is run. With `--plans` the memory that GRPO takes on each published backbone,
as `deepintuit plan` says, and the smallest of common GPUs that holds it.

Run it:  python benchmarks/scale.py [--tokens-per-pass 16384] [--plans [NAME …]]
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

from deepintuit import config, plan
from deepintuit.config import ModelConfig
from deepintuit.vlm.footprint import SHAPES as BACKBONES
from deepintuit.vlm.prefix import grow, in_parts

SHAPES = (
    ("32 frames, traces of 600", 4_300, 8, 600),
    ("32 frames, the paper's longest traces", 4_300, 8, 2_048),
    ("configs/videoauto-r1.toml", 8_500, 16, 1_024),
    ("many frames", 16_000, 8, 1_024),
)
"""Words, tokens of the prompt, traces, tokens of each; the traces are unlike from their first token on."""


def tokens(prompt: int, traces: int, length: int, most: int) -> list[int]:
    """Of each part."""
    rows = [[*range(prompt), *[prompt + number] * length] for number in range(traces)]
    budget = SimpleNamespace(shares_prefix=True, tokens_per_pass=most)
    return [len(grow([rows[row] for row in part])[0]) for part in in_parts(budget, [None] * traces, rows)]


def plans(names: list[str]) -> None:
    """A row for each backbone and way to train it; GiB."""
    print(
        "| backbone | trained by | parameters, billion | trained, million | weights + optimizer | losses | prefill | ",
        end="",
    )
    print("sampling | fits |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    ways = {"LoRA 64": [], "QLoRA 64": ["model.quantize=4bit"], "full": ["model.lora_rank=0", "model.lora_alpha=32"]}
    for path in names or BACKBONES:
        for way, sets in ways.items():
            settings = config.load("configs/qwen2.5-vl-7b-lora.toml", [f"model.path={path}", *sets])
            planned = plan.plan_of(settings, plan.split(settings, 10_000), "grpo")
            size, peaks = planned.footprint, [peak for peak, _ in planned.work["grpo"].peaks.values()]
            fits = next((str(gib) for gib in (24, 48, 80, 141) if max(peaks) <= gib), "none")
            base = f"{size.weights / plan.GIB:.1f} + {size.optimizer / plan.GIB:.1f}"
            numbers = (
                f"{size.parameters / 1e9:.2f}",
                f"{size.trained / 1e6:,.0f}",
                base,
                *(f"{one:.1f}" for one in peaks),
            )
            print(f"| {' | '.join((path.partition('/')[2], way, *numbers, fits))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens-per-pass", type=int, default=ModelConfig().tokens_per_pass)
    parser.add_argument("--plans", nargs="*", metavar="NAME", help="of these backbones (default: of all)")
    given = parser.parse_args()
    if given.plans is not None:
        plans(given.plans)
        return
    most = given.tokens_per_pass
    print("| clip | prompt + traces | parts | tokens through the model | as one tree | a row each |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for words, prompt, traces, length in SHAPES:
        parts, whole = tokens(prompt, traces, length, most), tokens(prompt, traces, length, 10**9)
        rows = traces * (prompt + length)
        told = f"{len(parts)} | {sum(parts):,} | {sum(whole):,} | {rows:,}"
        print(f"| {words} | {prompt:,} + {traces} × {length:,} | {told} |")


if __name__ == "__main__":
    main()
