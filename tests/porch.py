"""A workbench that can reason live on a CPU within a second: two clips, and the embedded model as a finished cold start
with a calibrator. For the tests of live reasoning, in the package and in the browser."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepintuit_homecam as homecam
from deepintuit import config, video
from deepintuit.labels import LabelSet
from deepintuit.reasoner.task import Clip
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import clips
from deepintuit_app.live import THREAD
from deepintuit_clips import import_csv, scan

ROOT = Path(__file__).parents[1]


def write_clip(path: Path, shade: int = 90) -> None:
    frames = np.full((16, 96, 128, 3), shade, np.uint8)
    for t in range(16):
        frames[t, 30:60, 4 * t : 4 * t + 30] = (240, 210, 60)
    video.write_mp4(path, frames, 8.0)


def live_workbench(folder: Path) -> Workbench:
    """Two clips, and the embedded model as the checkpoint of a finished cold start with its calibrator."""
    videos = folder / "sources" / "porch"
    videos.mkdir(parents=True)
    for number in range(2):
        write_clip(videos / f"clip-{number}.mp4", 60 + 60 * number)
    rows = "path,label,group,split\nclip-0.mp4,theft,a,test\nclip-1.mp4,routine,b,test\n"
    (videos / "clips.csv").write_text(rows)
    labels = LabelSet.of("porch", ["theft", "routine"])
    listing = import_csv(videos / "clips.csv", videos, labels=labels)
    manifest, _ = scan(listing, folder, "porch", probe=video.probe, progress=False)
    manifest.save()
    workbench = Workbench(folder)
    settings = config.load(ROOT / "configs" / "tiny.toml", ["clips.dataset=porch"]).to_dict()
    parent = None
    for stage in ("coldstart", "calibrate"):
        with workbench.start_run(stage, {}, parent=parent, dataset="porch") as run:
            shutil.copytree(homecam.MODEL, run.checkpoint, dirs_exist_ok=True)
            if stage == "calibrate":
                (run.checkpoint / "calibration.json").write_text('{"label_likelihood": {"temperature": 2.0}}')
            run.note(settings=settings)
            run.finish({})
        parent = run.id
    workbench.refresh()
    return workbench


def wish(workbench: Workbench, number: int = 0, **more: Any) -> dict[str, Any]:
    """What to ask of `reason` for clip 0 or 1."""
    row, _ = clips.find(workbench, f"clip-{number}")
    facts = row[0]
    path = workbench.path / facts["path"]
    clip = Clip(facts["clip_id"], str(path), facts["label"], facts["width"], facts["height"], "test")
    reasoner = clips.reasoners(workbench)[0]
    return {"clip": clip, "reasoner": reasoner["run_id"], "calibrator": reasoner["calibrator"], **more}


def living() -> list[threading.Thread]:
    """The threads that hold a model now."""
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def until(true: Callable[[], object], seconds: float) -> float:
    """Waits for it; returns how long that took."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        time.sleep(0.005)
    return time.monotonic() - started


@contextlib.contextmanager
def endless() -> Iterator[None]:
    """Models loaded meanwhile never end a trace by themselves, and write no faster than a page can show it: something
    to stop, on a busy machine too."""
    from deepintuit.vlm import VLM, sampling

    draw = sampling._Traces.draw

    def slowly(*given):
        time.sleep(0.01)
        return draw(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VLM, "_stop_ids", lambda self: [2**30])
        patch.setattr(sampling._Traces, "draw", slowly)
        yield
