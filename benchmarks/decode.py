"""Frames of a clip: kept ones against decoding again, the project's reader, decord, and PyAV, same clips and indices.

PyAV is the plain route: it decodes to the last frame that is wanted. decord is measured bare (open, decode, RGB; no
resizing), `read` is the project's reader with its checks, and a kept clip is one that `read` left in the cache of
frames. Pixels are compared before anything is timed; decoding has one thread.

Run it:  python benchmarks/decode.py [FOLDER] [--clips 6] [--count 16] [--repeats 5]     without a folder, written clips
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import decord
import numpy as np
from measure import Row, chosen, in_turns, options, report

from deepintuit.video import DiskCache, VideoError, cached_read, probe, read, write_mp4

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov")


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


def written(folder: Path, count: int) -> None:
    """Clips of 640×360, five seconds: a block that wanders over noise that stands still."""
    rng = np.random.default_rng(0)
    for number in range(count):
        frames = np.repeat(rng.integers(0, 90, (1, 360, 640, 3), np.uint8), 150, 0)
        for at, frame in enumerate(frames):
            frame[100:220, 3 * at + 10 * number :][:, :90] = rng.integers(90, 255, 3)
        write_mp4(folder / f"{number}.mp4", frames, 30)


def decodable(folder: Path, most: int, count: int) -> list[tuple[str, list[int]]]:
    """Clips that decord reads, spread over the folder, with the frames that are wanted."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    taken = []
    for path in found[:: max(1, len(found) // most)][:most]:
        try:
            if probe(path).reader == "decord":
                taken.append((str(path), read(path, count).indices_T.tolist()))
        except VideoError as error:
            print(f"{path.name}: {error.reason}")
    if not taken:
        raise SystemExit("No clip in this folder is read by decord. Name a folder of MP4 files.")
    return taken


def same(clips: Sequence[tuple[str, list[int]]]) -> int:
    """Of how many clips decord and PyAV give the same pixels."""
    return sum(np.array_equal(by_decord(*clip), by_pyav(*clip)) for clip in clips)


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--count", type=int, default=16, help="frames of a clip")
    given = chosen(parser)
    with tempfile.TemporaryDirectory() as scratch:
        if given.folder is None:
            written(Path(scratch), given.clips)
        clips = decodable(given.folder or Path(scratch), given.clips, given.count)
        alike, cache = same(clips), DiskCache(Path(scratch) / "cache")

        def kept() -> list:
            return [cached_read(cache, path, path, given.count) for path, _ in clips]

        kept()
        spent = in_turns(
            {
                "pyav": lambda: [by_pyav(*clip) for clip in clips],
                "decord": lambda: [by_decord(*clip) for clip in clips],
                "read": lambda: [read(path, given.count) for path, _ in clips],
                "kept": kept,
            },
            given.repeats,
        )
        size = sum(path.stat().st_size for path in (Path(scratch) / "cache").rglob("*") if path.is_file())
    frames, decoded = sum(len(wanted) for _, wanted in clips), sum(wanted[-1] + 1 for _, wanted in clips)
    rows = [
        Row("decode, decord bare", spent["decord"], spent["pyav"], {"frames wanted": frames, "frames passed": decoded}),
        Row("decode, the project's reader", spent["read"], spent["pyav"]),
        Row("frames from the cache", spent["kept"], spent["read"], {"clips decoded": (len(clips), 0),
                                                                    "MB kept": round(size / 1e6, 1)}),
    ]  # fmt: skip
    about = f"{len(clips)} clips, {given.count} frames each; decord and PyAV give the same pixels in {alike}"
    report(given, rows, about)


if __name__ == "__main__":
    main()
