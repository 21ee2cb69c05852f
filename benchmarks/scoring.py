"""Log-probabilities of K labels for a clip: one tree of prompt and labels, against a row of prompt and pixels a label.

The sums are compared before anything is timed.

Run it:  python benchmarks/scoring.py [--repeats 9] [--family embedded] [--device cpu]
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from measure import chosen, options, report
from routes import PROMPT, Pair

from deepintuit.labels import LabelSet
from deepintuit.vlm import label_logprobs

LABELS = LabelSet.of(
    "events", ["theft", "delivery", "stray animal", "routine", "a fall", "nobody", "vandalism", "a visitor"]
)


def scores(vlm, clips) -> torch.Tensor:
    return label_logprobs(vlm, clips, [PROMPT] * len(clips), LABELS)


near = partial(torch.testing.assert_close, rtol=0, atol=1e-3)


def main() -> None:
    parser = options(__doc__, repeats=9)
    parser.add_argument("--family", choices=("embedded", "hub25", "hub3"), default="embedded")
    parser.add_argument("--device", default="cpu")
    given = chosen(parser)
    with tempfile.TemporaryDirectory() as scratch:
        pair = Pair(given.family, Path(scratch), given.device)
        row = pair.row(f"scoring {len(LABELS)} labels of a clip", scores, near, given.repeats)
    report(given, [row], pair.about)


if __name__ == "__main__":
    main()
