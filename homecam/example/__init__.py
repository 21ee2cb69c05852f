"""The finished workbench that ships with the package, and how it becomes one that can be opened.

    place = unpack(Path("workbench-example"))       # read-only but for reviews and slices
    place = unpack(Path("workbench"), open=True)    # a workbench like any other, which further runs may join

`files/` holds the runs as they are, without what can be had again: clips are rendered when first looked at
(`worlds.at_hand`), tensors that no stage trains are those of the embedded model, which lie in `../model` already, and
caches, run cards and TensorBoard's files are left out. `workshop.example` makes it; `example.json` says from what.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors import deserialize
from safetensors.numpy import load_file, save_file

from deepintuit import disk, runs, worlds
from deepintuit.data import Manifest
from deepintuit_homecam import MODEL

FILES = Path(__file__).parent / "files"
DATASET = "example"


def unpack(place: Path, *, open: bool = False) -> Path:
    """The example at `place`. One of another version that lies there is kept beside it, under a number; so are reviews
    in it. `open`: without the mark that keeps stages from writing into it."""
    about = (FILES / runs.EXAMPLE).read_bytes()
    place, mark = place.absolute(), place.absolute() / runs.EXAMPLE
    if mark.exists() and mark.read_bytes() == about:
        return place
    with disk.naming(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as folder:
            new = Path(folder) / "workbench"
            shutil.copytree(FILES, new, copy_function=shutil.copyfile)
            for weights in new.glob("runs/*/checkpoint/model.safetensors"):
                _complete(weights)
            _list_clips(new)
            if open:
                (new / runs.EXAMPLE).unlink()
            with disk.Lock(place.parent / f".{place.name}.lock", wait=60):
                if mark.exists() and mark.read_bytes() == about:
                    return place  # another process was quicker
                if mark.exists():
                    os.replace(
                        place, next(old for n in itertools.count(1) if not (old := _numbered(place, n)).exists())
                    )
                os.replace(new, place)
    return place


def _numbered(place: Path, number: int) -> Path:
    return place.with_name(f"{place.name}@{number}")


def _complete(weights: Path) -> None:
    """Make a whole checkpoint of the tensors that training changed."""
    for file in MODEL.iterdir():
        if not (weights.parent / file.name).exists():
            shutil.copyfile(file, weights.parent / file.name)
    whole = load_file(MODEL / weights.name)
    for name, tensor in deserialize(weights.read_bytes()):
        # NumPy has no bfloat16, which is the upper half of a float32.
        upper = np.frombuffer(tensor["data"], np.uint16).astype(np.uint32) << 16
        whole[name] = upper.view(np.float32).reshape(tensor["shape"])
    save_file(whole, weights, {"format": "pt"})


def _list_clips(workbench: Path) -> None:
    """Say which clips are rendered on demand."""
    world = json.loads((workbench / runs.EXAMPLE).read_text(encoding="utf-8"))["world"]
    clips = Manifest.load(workbench, DATASET).frame
    for folder, rows in clips.groupby(clips["path"].map(os.path.dirname)):
        Path(folder).mkdir(parents=True)
        hashes = {Path(path).name: digest for path, digest in zip(rows["path"], rows["sha256"])}
        listing = json.dumps({"world": world, "sha256": hashes})
        (Path(folder) / worlds.RENDERED).write_text(listing, encoding="utf-8")
