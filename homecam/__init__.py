"""A small rendered home-camera world with known facts, so that everything runs with nothing downloaded.

    table = homecam.write_clips("clips-of-homecam", train=1000, test=400, seed=0)
    listing = homecam.listing(table)          # then data.scan, as for anybody's clips

- `world`    facts, and the rule that makes a label of several of them
- `draw`     facts → frames, in three parts of the world that share no room and no clothes
- `teacher`  facts → a trace, with realistic errors
- `model/`   the embedded backbone (card inside); `workshop/` builds it anew

Left out on purpose: sound, and anything that would let a look stand for a label.
"""

from __future__ import annotations

import csv
import json
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepintuit import disk, worker
from deepintuit.data import Listing, import_csv
from deepintuit.video import write_mp4
from deepintuit_homecam.draw import homes, render
from deepintuit_homecam.teacher import label_of_observation, misread, write_trace
from deepintuit_homecam.world import LABELS, Facts, sample_facts

MODEL = Path(__file__).parent / "model"
"""The embedded backbone, as a hub folder."""

__all__ = [
    "LABELS",
    "MODEL",
    "Facts",
    "facts_of",
    "label_of_observation",
    "listing",
    "misread",
    "write_clips",
    "write_trace",
]


def write_clips(
    folder: str | Path, *, train: int, test: int, seed: int = 0, jobs: int = 1, progress: bool = True
) -> Path:
    """Render MP4 files and their table `clips.csv` (path, label, group, split, facts) into a folder; returns the
    table's path.

    Resumable: a clip that is there is not rendered again. The group of a clip is its home. The same arguments give the
    same clips.
    """
    folder = Path(folder)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    plans = [_plan(part, number, seed) for part, count in (("train", train), ("test", test)) for number in range(count)]
    todo = [plan for plan in plans if not (folder / plan["path"]).exists()]
    columns = (TextColumn("Rendering clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress or not todo) as bar:
        task = bar.add_task("clips", total=len(plans), completed=len(plans) - len(todo))
        for _ in _each(partial(_render, folder), todo, jobs):
            bar.advance(task)
    table = folder / "clips.csv"
    with disk.replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split", "facts"])
        for plan in plans:
            facts = plan["facts"]
            writer.writerow([plan["path"], facts.label, plan["home"].name, plan["part"], json.dumps(facts.__dict__)])
    return table


def listing(table: Path) -> Listing:
    """The rendered clips as any importer lists them. Facts are a note: no model reads them."""
    return import_csv(table, table.parent, labels=LABELS, text=())


def facts_of(note: str) -> Facts:
    """The facts of a clip from its `facts` note."""
    row = json.loads(note)
    return Facts(**{**row, "quarters": tuple((posture, box) for posture, box in row["quarters"])})


def _plan(part: str, number: int, seed: int) -> dict:
    """Everything random about a clip but its pixels. Speeds differ between the parts, as everything seen does."""
    rng = random.Random(f"homecam/{part}/{seed}/{number}")
    return {
        "part": part,
        "path": f"videos/{part}-{seed}-{number:05d}.mp4",
        "facts": sample_facts(rng),
        "home": rng.choice(homes(part)),
        "seconds": rng.uniform(2.4, 4.2) if part == "train" else rng.uniform(2.0, 5.5),
        "fps": rng.choice((6, 8)) if part == "train" else rng.choice((5, 7, 10)),
        "seed": rng.getrandbits(32),
    }


def _render(folder: Path, plan: dict) -> None:
    frames = render(plan["facts"], plan["home"], plan["seed"], plan["seconds"], plan["fps"])
    write_mp4(folder / plan["path"], frames, plan["fps"])


def _each(work, items: list, jobs: int):
    if jobs == 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=worker.end_with_parent) as pool:
        yield from pool.map(work, items, chunksize=8)
