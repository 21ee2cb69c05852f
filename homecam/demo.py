"""Everything once, from rendered clips to the table of systems, with the embedded world and model.

    deepintuit demo            the three stages beside labels alone and the baselines without a model
    deepintuit demo --full     also zero-shot, labels alone on all training clips, RB-FT, and calibration on cold start
    alone

A door like `cli`: it only puts stages one behind the other. Stopped anywhere, the same command goes on from there.

    bench = demo.finished("workbench")      what notebooks open: the finished runs there, or small ones made beside it
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich import get_console, reconfigure
from rich.console import Console

import deepintuit_homecam as homecam
from deepintuit import config, video
from deepintuit.config import Config
from deepintuit.data import Manifest, assign_splits
from deepintuit.errors import quiet_libraries
from deepintuit.runs import Run
from deepintuit_analysis import Workbench
from deepintuit_clips import scan
from deepintuit_homecam import household

WORLDS = {"homecam": homecam, "household": household}
"""The worlds that this package renders."""
TRAIN, TEST = 1200, 400
"""Clips rendered for the four training and validation splits together, and for test."""
SIZES = {"homecam": (TRAIN, TEST), "household": (600, 320)}
"""The same by world."""

SMALL_TRAIN, SMALL_TEST = 280, 60
SMALL = (
    "coldstart.epochs=10", "coldstart.batch=4", "grpo.clips_per_step=6", "grpo.max_steps=3",
    "grpo.check_clips=6", "calibrate.traces=2", "calibrate.epochs=2", "evaluate.bootstrap=200",
)  # fmt: skip
"""The notebooks' own workbench, all stages in minutes: its numbers show the form of a result, not the method."""
_SMALL_SHARES = {"coldstart": 0.4, "grpo": 0.1, "calibration": 0.35, "validation": 0.15}


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
        probe=partial(video.probe, isolate=True),
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
    full: bool = False,
    fractions: Mapping[str, float],
    progress: bool = True,
    console: Console | None = None,
    train: int | None = None,
    test: int | None = None,
    world: str = "homecam",
) -> list[Run]:
    """All stages and evaluations; returns the evaluate runs, in the order of the table. `train` and `test`: clips, None
    for the world's `SIZES`."""
    console = console or Console()
    clock = _Clock(console)
    show = {"progress": progress}
    made = {"jobs": os.cpu_count() or 1, "progress": progress, "fractions": fractions, "world": world}
    counts = [given or usual for given, usual in zip((train, test), SIZES[world])]
    clock("Clips", lambda: clips(settings, *counts, **made))
    from deepintuit import calibrate, coldstart, evaluate, grpo, teach

    def labels_only(*splits: str) -> Config:
        passes = settings.coldstart.epochs * settings.teach.traces  # as many updates as the traces get
        return settings.replace(coldstart={"target": "label", "splits": splits, "epochs": passes})

    teacher = clock("Teacher traces", lambda: teach.run(workbench, settings, **show))
    labels = clock(
        "Labels only, cold-start clips",
        lambda: coldstart.run(workbench, labels_only("coldstart"), teacher=None, name="labels", **show),
    )
    cold = clock("Cold start", lambda: coldstart.run(workbench, settings, teacher=teacher.id, **show))
    refined = clock("GRPO", lambda: grpo.run(workbench, settings, start=cold.id, **show))
    calibrated = {
        refined.id: clock("Calibrate", lambda: calibrate.run(workbench, settings, reasoner=refined.id, **show))
    }
    systems: list[tuple[str, Run | None]] = [
        ("labels only", labels),
        ("cold start", cold),
        ("cold start + GRPO", refined),
    ]
    if full:
        everything = labels_only("coldstart", "grpo", "calibration")
        # Four times the clips: a third of the passes are more updates than labels alone get on the cold-start clips.
        everything = everything.replace(coldstart={"epochs": settings.coldstart.epochs / 3})
        labels_all = clock(
            "Labels only, all training clips",
            lambda: coldstart.run(workbench, everything, teacher=None, name="labels-all", **show),
        )
        calibrated[cold.id] = clock(
            "Calibrate cold start alone", lambda: calibrate.run(workbench, settings, reasoner=cold.id, **show)
        )
        for source in ("video", "trace"):
            control = settings.replace(calibrate={"without": source})
            clock(
                f"Calibrate without the {source}",
                lambda c=control: calibrate.run(workbench, c, reasoner=refined.id, **show),
            )
        own = _rationales(workbench, settings, clock, show)
        systems = [
            ("zero-shot", None),
            ("labels only, all clips", labels_all),
            *([("RB-FT", own)] if own else []),
            *systems,
        ]
    runs = [clock("Baselines", lambda: evaluate.baselines(workbench, settings, **show))]
    for name, system in systems:
        judge = calibrated.get(system.id) if system else None
        runs.append(
            clock(
                f"Evaluate {name}",
                lambda s=system, j=judge: evaluate.run(
                    workbench, settings, reasoner=s.id if s else None, calibrator=j.id if j else None, **show
                ),
            )
        )
    console.print(f"All stages took {clock.total / 60:.1f} minutes.")
    return runs


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
    small: bool

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.workbench.path, self.settings.clips.dataset)

    def file(self, clip_id: str) -> Path:
        """The file of a clip that a browser plays."""
        row = self.manifest.frame.set_index("clip_id").loc[clip_id]
        return Path(row["playable_path"] if isinstance(row["playable_path"], str) else row["path"])

    def scratch(self) -> Workbench:
        """A throw-away workbench with the same clips, features and runs to start from; gone when this process ends.

        What a notebook trains goes there, since commands take the newest run of a workbench for the one that is meant.
        """
        folder = Path(tempfile.mkdtemp(prefix="deepintuit-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # links are removed, not followed
        for name in ("clips", "runs"):
            (folder / name).mkdir()
        manifest = self.manifest
        Manifest(folder, manifest.dataset, manifest.frame, manifest.labels).save()
        (folder / "cache").symlink_to(self.workbench.cache)
        for run in (self.teach, self.cold, self.grpo, self.calibrate):
            (folder / "runs" / run.id).symlink_to(run.path)
        return Workbench(folder)


def finished(path: str | os.PathLike[str], *, progress: bool = True) -> Finished:
    """The newest chain of finished runs in the workbench at `path`; where there is none, a small one made beside it.

    The small workbench is `<path>-small`: the embedded world with few clips and short training, about three minutes on
    two cores, once. Stopped anywhere, the same call goes on from there. Nothing but its index is written into `path`.
    """
    quiet_libraries()
    # Threads of torch that wait shall sleep: spinning, on two cores that others use too, they take six times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if get_console().is_jupyter:
        # There rich draws bars with ipywidgets or not at all; drawn as in a terminal, they show and can be kept. No
        # colours: Jupyter writes a line over the last one character by character, and would cut their codes in two.
        reconfigure(force_jupyter=False, force_terminal=True, color_system=None)
    console = get_console()
    path = Path(path).expanduser().absolute()
    found = _chain(Workbench(path), small=False) if path.is_dir() else None
    if found is None:
        path = path.with_name(path.name + "-small")
        found = _chain(Workbench(path), small=True)
    if found is None:
        console.print(f"No finished runs yet: a small workbench is made in {path.name}, once, in a few minutes.")
        settings = config.load(config.CONFIGS / "tiny.toml", [f"workbench={path}", *SMALL])
        bench = Workbench(path)
        counts = {"train": SMALL_TRAIN, "test": SMALL_TEST}
        quiet = console if progress else Console(quiet=True)
        run(bench, settings, fractions=_SMALL_SHARES, progress=progress, console=quiet, **counts)
        found = _chain(bench, small=True)
    found.workbench.refresh()
    whose = "small runs, which show the form of a result and not its size" if found.small else "finished runs"
    console.print(f"{path.name}: {whose}; {found.settings.clips.dataset}, {found.grpo.id}.", highlight=False)
    shown = os.path.normpath(path)
    console.print(f'On the dashboard: make app ARGS="--workbench {shown}"', highlight=False, soft_wrap=True)
    return found


def _chain(workbench: Workbench, small: bool) -> Finished | None:
    """The newest calibrated GRPO run with what it stands on."""
    if not (workbench.path / "runs").is_dir():
        return None
    done = {run.id: run for run in workbench.runs(finished=True)}
    judges = [run for run in done.values() if run.stage == "calibrate"]
    for judge in reversed([run for run in judges if run.config.get("calibrate", {}).get("without", "none") == "none"]):
        refined = done.get(judge.parent or "")
        cold = done.get(refined.parent or "") if refined and refined.stage == "grpo" else None
        teacher = done.get(cold.config.get("teacher") or "") if cold else None
        if teacher is None:
            continue
        alike: Sequence[Run] = [run for run in done.values() if run.about["dataset"] == judge.about["dataset"]]
        rivals = [run for run in alike if run.stage == "coldstart" and run.summary.get("target") == "label"]
        scored = [run for run in alike if run.stage == "evaluate" and run.seed == judge.seed]
        own = [run for run in scored if run.config.get("calibrator") == judge.id]
        if not own:
            continue
        settings = config.of(refined.about["settings"]).replace(workbench=str(workbench.path))
        same = cold.config["coldstart"]["splits"]
        rival = next((run for run in rivals if run.config["coldstart"]["splits"] == same), None)
        return Finished(workbench, settings, teacher, cold, refined, judge, rival, own[-1], scored, small)
    return None


def _rationales(workbench: Workbench, settings: Config, clock: _Clock, show: dict) -> Run | None:
    """RB-FT: the untouched model writes its own rationales, is tuned on them, then on labels. None when it wrote no
    usable one."""
    from deepintuit import coldstart, teach

    own = settings.replace(teach={"source": "self", "given_answer": True})
    labels = settings.replace(coldstart={"target": "label"})
    written = clock("RB-FT: own rationales", lambda: teach.run(workbench, own, **show))
    if not written.summary["kept"]:
        clock.console.print("RB-FT is left out: the untouched model wrote no trace that holds grammar and label.")
        return None
    tuned = clock(
        "RB-FT: tune on them",
        lambda: coldstart.run(workbench, own, teacher=written.id, name="rb-ft-rationales", **show),
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
        spent = time.perf_counter() - started
        self.total += spent
        self.console.print(f"{title}: {spent:.0f} s")
        return result
