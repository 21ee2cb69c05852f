"""Tokens that the loss of one clip's traces sends through the model at the sizes of real backbones, in which parts: by
the project's own division, nothing else is run.

Run it:  python benchmarks/scale.py [--tokens-per-pass 16384]
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

from deepintuit.config import ModelConfig
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens-per-pass", type=int, default=ModelConfig().tokens_per_pass)
    most = parser.parse_args().tokens_per_pass
    print("| clip | prompt + traces | parts | tokens through the model | as one tree | a row each |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for words, prompt, traces, length in SHAPES:
        parts, whole = tokens(prompt, traces, length, most), tokens(prompt, traces, length, 10**9)
        rows = traces * (prompt + length)
        told = f"{len(parts)} | {sum(parts):,} | {sum(whole):,} | {rows:,}"
        print(f"| {words} | {prompt:,} + {traces} × {length:,} | {told} |")


if __name__ == "__main__":
    main()
