"""Clips of the `base` part, as the backbone sees them: frames straight from H.264, facts and captions beside them.

Written as small shards that a killed run keeps. Used only to build the embedded backbone (`backbone.py`); no label of
the homecam task is in it.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import av
import numpy as np
from PIL import Image

from deepintuit import disk
from deepintuit_homecam import draw
from deepintuit_homecam.scene import Part
from deepintuit_homecam.world import Facts, any_facts, sample_facts

FRAMES = 8
SIZE = (64, 48)
SHARD = 250
_RESAMPLING = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)


def write_shard(folder: Path, part: Part, number: int) -> Path:
    """Clips `number * SHARD …` of a part: `pixels` (N, 8, 48, 64, 3) uint8, `seconds` (N,), and the facts as JSON
    lines."""
    target = folder / f"{part}-{number:04d}.npz"
    if target.exists():
        return target
    homes = draw.homes(part)
    pixels, seconds, facts_lines = [], [], []
    for index in range(number * SHARD, (number + 1) * SHARD):
        rng = random.Random(f"captions/{part}/{index}")
        facts = any_facts(rng) if part == "base" else sample_facts(rng)
        frames = draw.render_at(facts, rng.choice(homes), index, (np.arange(FRAMES) + 0.5) / FRAMES)
        decoded = through_h264(frames, crf=rng.choice((20, 23, 26, 29)))
        resampling = rng.choice(_RESAMPLING)
        pixels.append(np.stack([np.asarray(Image.fromarray(f).resize(SIZE, resampling)) for f in decoded]))
        seconds.append(rng.uniform(2.0, 6.0))
        facts_lines.append(json.dumps(facts.__dict__))
    with disk.replacing(target, durable=False) as temporary, temporary.open("wb") as file:
        np.savez(file, pixels=np.stack(pixels), seconds=np.array(seconds, np.float32), facts=np.array(facts_lines))
    return target


def read_shard(path: Path) -> tuple[np.ndarray, np.ndarray, list[Facts]]:
    with np.load(path, allow_pickle=False) as data:
        rows = [json.loads(line) for line in data["facts"]]
        facts = [Facts(**{**row, "quarters": tuple(map(tuple, row["quarters"]))}) for row in rows]
        return data["pixels"], data["seconds"], facts


def through_h264(frames: np.ndarray, crf: int) -> list[np.ndarray]:
    """Encode and decode in memory: the artefacts that every real clip has."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=4, options={"crf": str(crf), "preset": "veryfast", "threads": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
