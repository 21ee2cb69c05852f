"""A world's clips as files: plans → MP4s and the table that any importer reads.

files = ClipFiles(LABELS, Facts, plan)
table = files.write_clips(folder, train=1000, test=400)
listing = files.listing(table)            # then `deepintuit_clips.scan`, as for anybody's clips
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepintuit import disk, worker
from deepintuit.labels import LabelSet
from deepintuit.video import write_mp4
from deepintuit_clips import Listing, import_csv
from deepintuit_homecam.draw import Home, render
from deepintuit_homecam.scene import Part, Scene

Plan = dict[str, Any]
"""Everything about a clip but its pixels; `notes` are further columns of the table."""
Speeds = Mapping[str, tuple[tuple[float, float], tuple[int, ...]]]


SPEEDS = {"train": ((2.4, 4.2), (6, 8)), "test": ((2.0, 5.5), (5, 7, 10))}
"""Seconds from and to, and frames per second, by part: speeds differ between the parts, as everything seen does."""


def planned(
    rng: random.Random,
    part: Part,
    name: str,
    facts: Scene,
    label: str,
    home: Home,
    *,
    look: str = "clear",
    speeds: Speeds = SPEEDS,
    **notes: str,
) -> Plan:
    """A clip's plan; what is left to chance is drawn here."""
    seconds, fps = speeds[part]
    return {
        "part": part,
        "path": f"videos/{name}.mp4",
        "facts": facts,
        "label": label,
        "home": home,
        "seconds": rng.uniform(*seconds),
        "fps": rng.choice(fps),
        "seed": rng.getrandbits(32),
        "look": look,
        "notes": notes,
    }


def write(folder: str | Path, plans: Sequence[Plan], *, jobs: int = 1, progress: bool = True) -> Path:
    """Render MP4 files and their table `clips.csv` (path, label, group, split, facts, notes) into a folder; returns
    the table's path.

    Resumable: a clip that is there is not rendered again. The group of a clip is its home. The same plans give the
    same clips.
    """
    folder = Path(folder)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    todo = [plan for plan in plans if not (folder / plan["path"]).exists()]
    columns = (TextColumn("Rendering clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress or not todo) as bar:
        task = bar.add_task("clips", total=len(plans), completed=len(plans) - len(todo))
        for _ in _each(partial(_render, folder), todo, jobs):
            bar.advance(task)
    table = folder / "clips.csv"
    with disk.replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split", "facts", *plans[0]["notes"]])
        for plan in plans:
            facts = json.dumps(plan["facts"].__dict__)
            row = [plan["path"], plan["label"], plan["home"].name, plan["part"], facts]
            writer.writerow([*row, *plan["notes"].values()])
    return table


@dataclass(frozen=True)
class ClipFiles:
    """The clips of one world as files. `plan`: part, number and seed → the plan of a clip."""

    labels: LabelSet
    facts: type[Scene]
    plan: Callable[[Part, int, int], Plan]

    def write_clips(
        self, folder: str | Path, *, train: int, test: int, seed: int = 0, jobs: int = 1, progress: bool = True
    ) -> Path:
        """Render clips into a folder and return their table (`write`)."""
        counts: dict[Part, int] = {"train": train, "test": test}
        plans = [self.plan(part, number, seed) for part, count in counts.items() for number in range(count)]
        return write(folder, plans, jobs=jobs, progress=progress)

    def render_clip(self, path: Path) -> None:
        """Write the one clip that `write_clips` writes under this file name (part, seed and number), the same bytes."""
        part, seed, number = path.stem.split("-")
        _render(path.parent.parent, self.plan(part, int(number), int(seed)))

    def listing(self, table: Path) -> Listing:
        """The rendered clips as any importer lists them. Facts and other notes: no model reads them."""
        return import_csv(table, table.parent, labels=self.labels, text=())

    def facts_of(self, note: str) -> Any:
        """The facts of a clip from its `facts` note."""
        row = json.loads(note)
        return self.facts(**{**row, "quarters": tuple((posture, box) for posture, box in row["quarters"])})


def _render(folder: Path, plan: Plan) -> None:
    poor = plan["look"] == "poor"
    frames = render(plan["facts"], plan["home"], plan["seed"], plan["seconds"], plan["fps"], poor)
    write_mp4(folder / plan["path"], frames, plan["fps"])


def _each(work, items: list, jobs: int):
    if jobs == 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=worker.end_with_parent) as pool:
        yield from pool.map(work, items, chunksize=8)
