"""Everything once, from rendered clips to the table of systems, with the embedded world and model.

    deepintuit demo             the three stages beside baselines without a model, on as few clips as show their gains
    deepintuit demo --full      on as many clips as README's table, beside labels alone
    deepintuit demo --rivals    also zero-shot, labels alone on all training clips, RB-FT, and calibration on cold start
    alone

A door like `cli`: it only puts stages one behind the other. Stopped anywhere, the same command resumes there.

    bench = demo.finished("workbench")      what notebooks open: the finished runs there, or the example that ships
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich import get_console, reconfigure
from rich.console import Console

import deepintuit_homecam as homecam
from deepintuit import config, video, worker, worlds
from deepintuit.config import Config
from deepintuit.data import Manifest, assign_splits
from deepintuit.errors import quiet_libraries
from deepintuit.runs import Run
from deepintuit_analysis import Workbench
from deepintuit_clips import scan
from deepintuit_homecam import household

WORLDS = {"household": household, "homecam": homecam}
"""The worlds that this package renders."""
SIZES = {"household": (600, 320), "homecam": (1200, 400)}
"""Clips rendered for the four training and validation splits together, and for test."""
QUICK = {"household": (600, 200), "homecam": (560, 150)}
"""What `deepintuit demo` renders unless --full asks for `SIZES`."""
QUICK_SETTINGS = {
    "homecam": (
        "clips.coldstart_share=0.5", "clips.grpo_share=0.16", "clips.calibration_share=0.34", "grpo.clips_per_step=13",
        "grpo.epochs=2", "calibrate.traces=3", "calibrate.batch=8",
    ),
    "household": ("grpo.max_steps=60", "calibrate.epochs=2"),
}  # fmt: skip
"""In what it departs from the world's settings then. The household's gains show after fewer updates, in minutes. On
homecam half of the training clips are for the cold start: with a quarter it found no rule (LOG.md)."""


def clips(
    settings: Config,
    train: int,
    test: int,
    *,
    jobs: int,
    progress: bool,
    fractions: Mapping[str, float],
    world: str = "homecam",
) -> Manifest:
    """Render (or find) the clips of an embedded world for this seed, import and divide them."""
    workbench = Path(settings.workbench)
    dataset, rendered = settings.clips.dataset or world, WORLDS[world]
    table = rendered.write_clips(
        workbench / "sources" / f"{dataset}-{settings.seed}",
        train=train,
        test=test,
        seed=settings.seed,
        jobs=jobs,
        progress=progress,
    )
    manifest, _ = scan(
        rendered.listing(table),
        workbench,
        dataset,
        probe=video.probe,  # in this process: these files are our own
        playable_copy=video.playable_copy,
        jobs=jobs,
        progress=progress,
    )
    manifest = assign_splits(manifest, fractions, settings.seed)
    manifest.save()
    return manifest


def run(
    workbench: Workbench,
    settings: Config,
    *,
    labels: bool = False,
    rivals: bool = False,
    fractions: Mapping[str, float],
    progress: bool = True,
    console: Console | None = None,
    train: int | None = None,
    test: int | None = None,
    world: str = "homecam",
    jobs: int = min(2, os.cpu_count() or 1),
) -> list[Run]:
    """All stages and evaluations; returns the evaluate runs, in the order of the table. `labels`: beside the model of
    labels alone; `rivals`: beside all of them. `train` and `test`: clips, None for the world's `SIZES`. With 2 `jobs`,
    what no stage begins with is made in a second process."""
    console = console or Console()
    clock, start = _Clock(console), sum(os.times()[:4])
    show = {"progress": progress}
    cores = (os.cpu_count() or 1) if jobs > 1 else 1
    extras = {"jobs": cores, "progress": progress, "fractions": fractions, "world": world}
    counts = [number or usual for number, usual in zip((train, test), SIZES[world])]
    clock("Clips", lambda: clips(settings, *counts, **extras))
    from deepintuit import baselines, calibrate, coldstart, evaluate, grpo, teach

    passes = settings.coldstart.epochs * settings.teach.traces  # as many updates as the traces get
    alone = settings.replace(coldstart={"target": "label", "splits": ("coldstart",), "epochs": passes})
    with _Beside(workbench, settings, clock, jobs) as beside:
        teacher = clock("Teacher traces", lambda: teach.run(workbench, settings, **show))
        futures, labels = [beside("Baselines", baselines.simple)], labels or rivals
        if labels:
            rival = beside("Labels only", coldstart.run, alone, teacher=None, name="labels")
        if jobs > 1:
            beside("Features of all clips", _encode)
        cold = clock("Cold start", lambda: coldstart.run(workbench, settings, teacher=teacher.id, **show))
        if labels:
            futures.append(beside("Evaluate labels only", evaluate.run, reasoner=rival.result()))
        if not rivals:  # which calibrate it, too
            futures.append(beside("Evaluate cold start", evaluate.run, reasoner=cold.id))
        refined = clock("GRPO", lambda: grpo.run(workbench, settings, start=cold.id, **show))
        calibrator = clock("Calibrate", lambda: calibrate.run(workbench, settings, reasoner=refined.id, **show))
        runs = clock("What ran beside them", lambda: [workbench.run(future.result()) for future in futures])
    systems: list[tuple[str, str | None, str | None]] = [("cold start + GRPO", refined.id, calibrator.id)]
    if rivals:
        rows = _rivals(workbench, settings, clock, cold, refined, show)
        simple, labels_only = runs
        runs = [simple, *(_score(workbench, settings, clock, *row, **show) for row in rows[:-1]), labels_only]
        systems.insert(0, rows[-1])
    runs += [_score(workbench, settings, clock, *row, **show) for row in systems]
    seconds = sum(os.times()[:4]) - start  # of processes that were waited for, too
    console.print(f"All stages took {clock.total / 60:.1f} minutes, and {seconds / 60:.1f} minutes of processor.")
    return runs


def _score(
    bench: Workbench, settings: Config, clock: _Clock, name: str, reasoner: str | None, calibrator: str | None, **show
) -> Run:
    from deepintuit import evaluate

    inputs = {"reasoner": reasoner, "calibrator": calibrator, **show}
    return clock(f"Evaluate {name}", lambda: evaluate.run(bench, settings, **inputs))


def _rivals(
    workbench: Workbench, settings: Config, clock: _Clock, cold: Run, refined: Run, show: dict
) -> list[tuple[str, str | None, str | None]]:
    """Train what the three stages are compared with; what there is to score, as (name, reasoner, calibrator)."""
    from deepintuit import calibrate, coldstart

    # Four times the clips: a third of the passes are more updates than labels alone get on the cold-start clips.
    epochs, splits = settings.coldstart.epochs / 3, ("coldstart", "grpo", "calibration")
    everything = settings.replace(coldstart={"target": "label", "splits": splits, "epochs": epochs})
    labels_all = clock(
        "Labels only, all training clips",
        lambda: coldstart.run(workbench, everything, teacher=None, name="labels-all", **show),
    )
    alone = clock("Calibrate cold start alone", lambda: calibrate.run(workbench, settings, reasoner=cold.id, **show))
    for source in ("video", "trace"):
        control = settings.replace(calibrate={"without": source})
        clock(
            f"Calibrate without the {source}",
            lambda c=control: calibrate.run(workbench, c, reasoner=refined.id, **show),
        )
    own = _rationales(workbench, settings, clock, show)
    return [
        ("zero-shot", None, None),
        ("labels only, all clips", labels_all.id, None),
        *([("RB-FT", own.id, None)] if own else []),
        ("cold start", cold.id, alone.id),
    ]


class _Beside:
    """Stages that no other begins with, in a second process, one after the other: training is many small steps, which
    a second thread does not make faster. Called, it gives the id of the stage's run as a future. One job: in this
    process, when it is called."""

    def __init__(self, workbench: Workbench, settings: Config, clock: _Clock, jobs: int):
        self.workbench, self.settings, self.clock = workbench, settings, clock
        apart = {"mp_context": get_context("spawn"), "initializer": worker.end_with_parent}
        self.pool = ProcessPoolExecutor(1, **apart) if jobs > 1 else None

    def __enter__(self) -> _Beside:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=error is not None)

    def __call__(self, title: str, stage: Callable, settings: Config | None = None, **inputs: Any) -> Future[str]:
        work = partial(_run_beside, stage, self.workbench.path, settings or self.settings, inputs)
        if self.pool:
            self.clock.console.print(f"{title}: in a second process")
            return self.pool.submit(work)
        future: Future[str] = Future()
        future.set_result(self.clock(title, work))
        return future


def _run_beside(stage: Callable, place: Path, settings: Config, inputs: dict[str, Any]) -> str | None:
    quiet_libraries()
    run = stage(Workbench(place), settings, progress=False, **inputs)
    return run and run.id


def _encode(workbench: Workbench, settings: Config, *, progress: bool) -> None:
    """Have features of the clips in the cache before a stage asks for them."""
    from deepintuit.reasoner import LocalReasoner, Task
    from deepintuit.vlm import VLM

    if settings.video.cache_gib:
        task = Task(workbench.path, settings)
        reasoner = LocalReasoner(VLM.load(settings.model, settings.video, cache=workbench.cache), task)
        for split in ("grpo", "calibration", "validation", "test"):
            reasoner.readable(task.clips(split))


@dataclass(frozen=True)
class Finished:
    """A workbench in which every stage has ended, with one chain of runs through it; `settings` are the reasoner's.

    `labels` is the model of labels alone on the same clips (None where it was not trained). `evaluation` scores the
    chain's last system, `evaluations` are all of the dataset, in the order in which they were made.
    """

    workbench: Workbench
    settings: Config
    teach: Run
    cold: Run
    grpo: Run
    calibrate: Run
    labels: Run | None
    evaluation: Run
    evaluations: list[Run]

    @property
    def small(self) -> bool:
        """Whether its numbers show the form of a result and not its size."""
        return len(self.manifest.usable()) - len(self.manifest.usable("test")) < SIZES["household"][0]

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.workbench.path, self.settings.clips.dataset)

    def file(self, clip_id: str) -> Path:
        """The file of a clip that a browser plays."""
        row = self.manifest.frame.set_index("clip_id").loc[clip_id]
        return worlds.at_hand(row["playable_path"] if isinstance(row["playable_path"], str) else row["path"])

    def scratch(self, most: int | None = None) -> Workbench:
        """A throw-away workbench with the same clips (at most so many of each split), features and runs to start from;
        gone when this process ends.

        What a notebook trains goes there, since commands take the newest run of a workbench for the one that is meant.
        """
        folder = Path(tempfile.mkdtemp(prefix="deepintuit-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # links are removed, not followed
        for name in ("clips", "runs"):
            (folder / name).mkdir()
        manifest = self.manifest
        clips = manifest.frame if most is None else manifest.frame.groupby("split").head(most)
        Manifest(folder, manifest.dataset, clips, manifest.labels).save()
        (folder / "cache").symlink_to(self.workbench.cache)
        for run in (self.teach, self.cold, self.grpo, self.calibrate):
            (folder / "runs" / run.id).symlink_to(run.path)
        return Workbench(folder)


def finished(path: str | os.PathLike[str]) -> Finished:
    """The newest chain of finished runs in the workbench at `path`; where there is none, that of the example that
    ships, in a copy beside it. Nothing but its index is written into `path`."""
    quiet_libraries()
    # Threads of torch that wait shall sleep: spinning, on two cores that others use too, they take six times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if get_console().is_jupyter:
        # There rich draws bars with ipywidgets or not at all; drawn as in a terminal, they show and can be kept. No
        # colours: Jupyter writes a line over the last one character by character, and would cut their codes in two.
        reconfigure(force_jupyter=False, force_terminal=True, color_system=None)
    console = get_console()
    path = Path(path).expanduser().absolute()
    chain = chain_of(Workbench(path)) if path.is_dir() else None
    if chain is None:
        path = worlds.example(path)
        chain = chain_of(Workbench(path))
    chain.workbench.refresh()
    origin = "the example that ships" if chain.workbench.is_example else "finished runs"
    console.print(f"{path.name}: {origin}; {chain.settings.clips.dataset}, {chain.grpo.id}.", highlight=False)
    folder = os.path.normpath(path)
    console.print(f'On the dashboard: make app ARGS="--workbench {folder}"', highlight=False, soft_wrap=True)
    return chain


def chain_of(workbench: Workbench) -> Finished | None:
    """The newest calibrated GRPO run with what it stands on."""
    if not (workbench.path / "runs").is_dir():
        return None
    runs = {run.id: run for run in workbench.runs(finished=True)}
    calibrators = [run for run in runs.values() if run.stage == "calibrate"]
    for calibrator in reversed(
        [r for r in calibrators if r.config.get("calibrate", {}).get("without", "none") == "none"]
    ):
        refined = runs.get(calibrator.parent or "")
        cold = runs.get(refined.parent or "") if refined and refined.stage == "grpo" else None
        teacher = runs.get(cold.config.get("teacher") or "") if cold else None
        if teacher is None:
            continue
        alike: Sequence[Run] = [run for run in runs.values() if run.about["dataset"] == calibrator.about["dataset"]]
        rivals = [run for run in alike if run.stage == "coldstart" and run.summary.get("target") == "label"]
        evaluations = [run for run in alike if run.stage == "evaluate" and run.seed == calibrator.seed]
        own = [run for run in evaluations if run.config.get("calibrator") == calibrator.id]
        if not own:
            continue
        settings = config.of(refined.about["settings"]).replace(workbench=str(workbench.path))
        splits = cold.config["coldstart"]["splits"]
        rival = next((run for run in rivals if run.config["coldstart"]["splits"] == splits), None)
        return Finished(workbench, settings, teacher, cold, refined, calibrator, rival, own[-1], evaluations)
    return None


def _rationales(workbench: Workbench, settings: Config, clock: _Clock, show: dict) -> Run | None:
    """RB-FT: the untouched model writes its own rationales, is tuned on them, then on labels. None when it wrote no
    usable one."""
    from deepintuit import coldstart, teach

    own = settings.replace(teach={"source": "self", "given_answer": True})
    labels = settings.replace(coldstart={"target": "label"})
    rationales = clock("RB-FT: own rationales", lambda: teach.run(workbench, own, **show))
    if not rationales.summary["kept"]:
        clock.console.print("RB-FT is left out: the untouched model wrote no trace that holds grammar and label.")
        return None
    tuned = clock(
        "RB-FT: tune on them",
        lambda: coldstart.run(workbench, own, teacher=rationales.id, name="rb-ft-rationales", **show),
    )
    return clock(
        "RB-FT: then on labels",
        lambda: coldstart.run(workbench, labels, teacher=None, start=tuned.id, name="rb-ft", **show),
    )


class _Clock:
    """Says what runs and how long it took; a stage that was finished before takes no time."""

    def __init__(self, console: Console):
        self.console, self.total = console, 0.0

    def __call__(self, title: str, work: Callable):
        self.console.rule(f"[bold]{title}", align="left")
        started = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started
        self.total += seconds
        self.console.print(f"{title}: {seconds:.0f} s")
        return result
