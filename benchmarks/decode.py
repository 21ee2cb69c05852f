"""What decord buys: seconds to take frames by decord over seconds by PyAV, same clips and indices, one thread, one run.

Both are measured bare (open, decode, RGB; no resizing), alternating, best of `--rounds`; `read` is the project's reader
with its checks. A ratio below 1 means that the first is faster. Pixels are compared before anything is timed.

Run it:  python benchmarks/decode.py FOLDER [--clips 20] [--count 16]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import decord
import numpy as np

from deepintuit.video import VideoError, probe, read


def by_decord(path: str, indices_T: list[int]) -> np.ndarray:
    return decord.VideoReader(path, num_threads=1).get_batch(indices_T).asnumpy()


def by_pyav(path: str, indices_T: list[int]) -> np.ndarray:
    wanted, taken = set(indices_T), []
    with av.open(path, metadata_errors="ignore", options={"threads": "1"}) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                taken.append(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
                if len(taken) == len(wanted):
                    break
    return np.stack(taken)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found = sorted(p for p in args.folder.rglob("*") if p.suffix in {".mp4", ".webm", ".mkv", ".mov"})
    spread = found[:: max(1, len(found) // args.clips)][: args.clips]
    rows = []
    for path in spread:
        try:
            if probe(path).reader != "decord":
                continue
            indices_T = read(path, args.count).indices_T.tolist()
        except VideoError as error:
            print(f"{path.name}: {error.reason}")
            continue
        name = str(path)
        same = np.array_equal(by_decord(name, indices_T), by_pyav(name, indices_T))
        times = [
            (
                seconds(partial(by_decord, name, indices_T)),
                seconds(partial(by_pyav, name, indices_T)),
                seconds(partial(read, name, args.count)),
            )
            for _ in range(args.rounds)
        ]
        rows.append((path.name, same, *map(min, zip(*times, strict=True))))
    for name, same, decord_s, pyav_s, read_s in rows:
        print(
            f"{name:28} decord {1e3 * decord_s:7.1f} ms  pyav {1e3 * pyav_s:7.1f} ms  ratio {decord_s / pyav_s:5.2f}  "
            f"read {1e3 * read_s:7.1f} ms  pixels {'same' if same else 'DIFFER'}"
        )
    if not rows:
        raise SystemExit("No clip in this folder is read by decord. Name a folder of MP4 files.")
    ratios = [d / p for _, _, d, p, _ in rows]
    print(
        f"{len(rows)} clips, {args.count} frames each: decord/pyav median {statistics.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f}; all clips together "
        f"{sum(r[2] for r in rows) / sum(r[3] for r in rows):.2f}; read/pyav together "
        f"{sum(r[4] for r in rows) / sum(r[3] for r in rows):.2f}"
    )


if __name__ == "__main__":
    main()
