"""How many edited copies of real clips are known again as near-duplicates, and how many other pairs are taken for such.

    python benchmarks/near.py FOLDER… [--clips 60]

Of each folder with a `clips.csv` (path, and split_group or group, the source), some clips are compared with edited
copies of them, and all with each other, across sources and within one. Each share has its n and Wilson's 95 % interval.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

from deepintuit import video
from deepintuit.errors import VideoError
from deepintuit.metrics import Estimate, wilson
from deepintuit_clips import near


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folders", nargs="+", type=Path)
    options.add_argument("--clips", type=int, default=60, help="of which copies are made, in all")
    options = options.parse_args()
    for folder in options.folders:
        sources = dict(clips_of(folder))
        prints = {str(path): text for path in sources if (text := fingerprint(path))}
        rng = np.random.default_rng(0)
        originals = rng.permutation([*prints])[: options.clips // len(options.folders)].tolist()
        hits: dict[str, list[bool]] = {}
        for original in originals:
            for edit, text in copies(Path(original), rng):
                pairs = near.pairs({original: prints[original], "copy": text})
                hits.setdefault(edit, []).append(bool(pairs))
        print(f"{folder.name}: {len(prints)} clips with a fingerprint of {len(sources)}")
        for edit, known in hits.items():
            print(f"  {edit}: {share(wilson(sum(known), len(known)))} of n = {len(known)} copies known again")
        named = {pair[:2] for pair in near.pairs(prints)}
        for words, same in (("different sources", False), ("one source", True)):
            pairs = [
                pair
                for pair in combinations(sorted(prints), 2)
                if (sources[Path(pair[0])] == sources[Path(pair[1])]) == same
            ]
            count = sum(pair in named for pair in pairs)
            print(f"  {words}: {count} of {len(pairs)} pairs named, {share(wilson(count, len(pairs)), 3)}", flush=True)
            if not same:
                print("   ", [f"{Path(a).name} {Path(b).name}" for a, b in pairs if (a, b) in named][:20])


def share(estimate: Estimate, digits: int = 1) -> str:
    return f"{100 * estimate.value:.{digits}f} % ({100 * estimate.low:.{digits}f}–{100 * estimate.high:.{digits}f})"


def clips_of(folder: Path) -> Iterator[tuple[Path, str]]:
    with open(folder / "clips.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield folder / row["path"], row.get("split_group") or row["group"]


def fingerprint(path: Path) -> str:
    try:
        return near.fingerprint(path)
    except VideoError:
        return ""


def copies(original: Path, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Name of the edit, fingerprint of the copy, encoded anew as H.264 at 320 to 639 pixels of width."""
    frames = video.read(original, 100)
    step = max(1, frames.width // 320)
    pixels = frames.pixels_T_H_W_3[:, ::step, ::step]
    T, H, W, _ = pixels.shape
    top, bottom, left, right = rng.random(4) * 0.1

    def cut(top: float, bottom: float, left: float, right: float) -> np.ndarray:
        return pixels[:, round(H * top) : H - round(H * bottom), round(W * left) : W - round(W * right)]

    edits = {
        "re-encoded, smaller": pixels,
        "and a tenth cropped": cut(*[0.05] * 4),
        "and a fifth cropped": cut(*[0.1] * 4),
        "and each edge cropped by up to a tenth": cut(top, bottom, left, right),
        "and trimmed to the middle half": pixels[T // 4 : max(T // 4 + 1, 3 * T // 4)],
        "and trimmed to the last half and a tenth cropped": cut(*[0.05] * 4)[T // 2 :],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, edited in edits.items():
            path = Path(folder) / "copy.mp4"
            even = edited[:, : edited.shape[1] // 2 * 2, : edited.shape[2] // 2 * 2]
            video.write_mp4(path, even, max(1.0, len(frames) / max(frames.seconds, 0.1)))
            yield name, near.fingerprint(path)


if __name__ == "__main__":
    main()
