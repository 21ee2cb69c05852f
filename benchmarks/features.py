"""Features of a clip from memory against the tower each time, in a forward pass over the prompt.

The logits are compared before anything is timed. A tiny model of random weights: the tower of a 7B is 10 to 14 % of a
step by operations, and 7 to 29 MB a clip are kept for it.

Run it:  python benchmarks/features.py [--repeats 9] [--family embedded] [--device cpu]
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from measure import chosen, options, report
from routes import PROMPT, Pair


@torch.inference_mode()
def logits(vlm, clips) -> torch.Tensor:
    rows = [vlm.prompt_ids(clip, PROMPT) for clip in clips]
    return vlm.model(**vlm.inputs(clips, rows, side="left"), logits_to_keep=1).logits.cpu()


near = partial(torch.testing.assert_close, rtol=0, atol=1e-3)


def main() -> None:
    parser = options(__doc__, repeats=9)
    parser.add_argument("--family", choices=("embedded", "hub25", "hub3"), default="embedded")
    parser.add_argument("--device", default="cpu")
    given = chosen(parser)
    with tempfile.TemporaryDirectory() as scratch:
        pair = Pair(given.family, Path(scratch), given.device)
        row = pair.row("features from memory", logits, near, given.repeats)
    kept = sum(clip.bytes for clip in pair.clips["ours"]) / len(pair.clips["ours"])
    row.counted["KB kept a clip"] = round(kept / 1000)
    report(given, [row], pair.about)


if __name__ == "__main__":
    main()
