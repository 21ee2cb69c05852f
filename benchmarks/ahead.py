"""Features of many clips, the next ones read while the tower works, against one after another; nothing is cached.

The features are compared before anything is timed. Reading is the project's reader with its checks, one thread a clip,
two clips ahead: so at best max(reading / 2, tower) is left of reading + tower, given cores for both. A shrunk tower of
random weights; clips of noise and moving blocks, each file read under several names.

Run it:  python benchmarks/ahead.py [--repeats 5] [--clips 12] [--frames 16] [--family hub25] [--device cpu]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import Row, in_turns, options, report

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the tiny checkpoints stand there
import tiny

from deepintuit.config import ModelConfig
from deepintuit.video import write_mp4
from deepintuit.vlm import VLM

WIDTH, HEIGHT, LENGTH, FPS = 320, 240, 90, 30


def written(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    for number in range(count):
        frames = np.repeat(rng.integers(0, 90, (1, HEIGHT, WIDTH, 3), dtype=np.uint8), LENGTH, 0)
        for at, frame in enumerate(frames):
            left = 3 * at + 40 * number
            frame[60:180, left % (WIDTH - 90) :][:, :90] = rng.integers(90, 255, 3)
        write_mp4(folder / f"{number}.mp4", frames, FPS)
    return sorted(folder.glob("*.mp4"))


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--family", choices=tiny.FAMILIES, default="hub25")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        family = tiny.write_family(given.family, Path(scratch) / "model")
        video = family.video.replace(frames=given.frames, max_pixels=64 * 28 * 28)
        vlm = VLM.load(ModelConfig(path=str(family.folder), device=given.device, dtype="float32"), video)
        paths = written(Path(scratch), 3)
        places = [(str(n), paths[n % len(paths)], WIDTH, HEIGHT) for n in range(given.clips)]

        def plain():
            encoder = vlm.encoder.forgetful()
            return [encoder.encode(*place) for place in places]

        def ours():
            return list(vlm.encoder.forgetful().encode_all(places))

        def reading():
            for place in places:
                vlm.encoder.forgetful().frames(*place)

        for told, found in zip(plain(), ours(), strict=True):
            assert told.frames == found.frames and torch.equal(told.embeds, found.embeds)
        spent = in_turns({"plain": plain, "ours": ours, "reading": reading}, given.repeats, warm=False)
    row = Row("features of clips never seen, read ahead", spent["ours"], spent["plain"])
    read, whole = statistics.median(spent["reading"]), statistics.median(spent["plain"])
    row.counted = {"clips": given.clips, "reads and tower passes a clip": (1, 1)}
    about = f"{given.clips} clips of {WIDTH}x{HEIGHT}, {LENGTH} frames, {given.frames} of them read; "
    limit = whole / max(read / 2, whole - read)
    about += f"reading is {read / whole:.0%} of the plain route, so the limit is {limit:.2f}"
    report(given, [row], about)


if __name__ == "__main__":
    main()
