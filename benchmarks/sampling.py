"""A group of traces behind one prefill, against TRL's way: prompt and pixels G times through tower and prefill.

Traces are drawn at temperature 1 from the same random streams by both routes, never end early, and are compared before
anything is timed. The model has random weights, so the traces of a group part with their first tokens, and what is
shared is the prompt: traces of a trained model stay alike for long, and share more (`grpo_step`).

Run it:  python benchmarks/sampling.py [--group 8] [--tokens 32] [--repeats 7] [--family embedded] [--device cpu]
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from measure import chosen, options, report
from routes import PROMPT, Pair, sampled


def traces(vlm, clips, group: int, tokens: int) -> list[list[int]]:
    keys = [[f"{clip.clip_id}/{number}" for number in range(group)] for clip in clips]
    groups = sampled(vlm, clips, [PROMPT] * len(clips), keys, temperature=1, max_tokens=tokens)
    return [sample.token_ids for samples in groups for sample in samples]


def same(plain: list, ours: list) -> None:
    assert plain == ours, "the two routes write other traces"


def main() -> None:
    parser = options(__doc__, repeats=7)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--family", choices=("embedded", "hub25", "hub3"), default="embedded")
    parser.add_argument("--device", default="cpu")
    given = chosen(parser)
    with tempfile.TemporaryDirectory() as scratch:
        pair = Pair(given.family, Path(scratch), given.device)
        for _, vlm, _ in pair:
            vlm.silenced = sorted({*vlm.silenced, *vlm.stop_ids})  # no trace ends early
        claim = f"sampling, {given.group} traces of {given.tokens} tokens a clip"
        row = pair.row(claim, partial(traces, group=given.group, tokens=given.tokens), same, given.repeats)
    report(given, [row], pair.about)


if __name__ == "__main__":
    main()
