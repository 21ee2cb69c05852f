"""`deepintuit demo`, `deepintuit benchmark` and `deepintuit clips homecam`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deepintuit import cli
from deepintuit.command import common, console, opened, port, positive, print_settings, settings_of
from deepintuit.config import CONFIGS, Config
from deepintuit.errors import ConfigError
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_analysis.commands import evaluated, show_report

_WORLDS = {"household": "household.toml", "homecam": "tiny.toml"}
_WORLD = "household: policies in plain words, with slices; homecam: a rule of several facts (docs/worlds.md)"


def add_demo(commands) -> None:
    about = "everything, from rendered clips to the table, with the embedded world and model"
    parser = common(commands.add_parser("demo", help=about, example="demo --workbench demo --seed 1", settings="demo"))
    option = parser.add_argument
    option("--full", action="store_true", help="on as many clips as README's table, beside labels alone")
    about = "as --full, with RB-FT and zero-shot, and every system calibrated (three times as long)"
    option("--rivals", action="store_true", help=about)
    option("--train", type=positive, metavar="N", help="clips to train and validate on, in place of those of the size")
    option("--test", type=positive, metavar="N", help="clips to test on")
    option("--world", choices=_WORLDS, help=f"{_WORLD}; default: the dataset's name where it is one, else household")
    about = "in a terminal, open the dashboard on the example at once, and run the stages as a job beside it"
    option("--dashboard", action="store_true", help=about)
    option("--port", type=port, help="of that dashboard (default: 7860)")
    parser.set_defaults(run=_demo)


def _demo(options) -> int:
    from deepintuit_homecam import demo, example

    if options.port is not None and not options.dashboard:
        raise ConfigError(f"--port {options.port} without --dashboard", "no dashboard is opened", "Add --dashboard")
    full = options.full or options.rivals
    options.world = options.world or _named_world(options)
    if options.config is None:
        options.config = str(CONFIGS / _WORLDS[options.world])
        options.set = [*(() if full else demo.QUICK_SETTINGS[options.world]), *options.set]
    workbench, settings = opened(options, Workbench)
    for stage in ("teach", "coldstart", "grpo", "calibrate", "evaluate"):  # before minutes are spent on clips
        settings.refuse_idle(stage)
    if options.dry_run:
        print_settings(settings, "demo")
        return 0
    workbench.refuse_example()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small steps gain nothing from a second thread; another stage does
    if options.dashboard:
        if not workbench.path.exists():
            example.unpack(workbench.path, open=True)
        if sys.stdout.isatty():
            return _with_dashboard(options, settings)
        console.print(
            f"Finished runs to look at meanwhile: deepintuit app --workbench {workbench.path}", soft_wrap=True
        )
    train, test = (demo.SIZES if full else demo.QUICK)[options.world]
    counts = {"train": options.train or train, "test": options.test or test}
    extras = {"progress": not options.quiet, "console": console, "world": options.world, "labels": full}
    demo.run(workbench, settings, rivals=options.rivals, fractions=fractions(settings), **counts, **extras)
    return show_report(workbench, settings, evaluated(workbench, settings))


def _named_world(options) -> str:
    dataset = settings_of(options).clips.dataset
    return dataset if dataset in _WORLDS else next(iter(_WORLDS))


def _with_dashboard(options, settings: Config) -> int:
    """The dashboard, with the stages as a job beside it."""
    words = [f"--{name}" for name in ("full", "rivals") if getattr(options, name)]
    values = {name: getattr(options, name) for name in ("config", "seed", "train", "test", "world")}
    words += [f"--{name}={value}" for name, value in values.items() if value is not None]
    words += [f"--set={change}" for change in options.set]
    port = [] if options.port is None else [f"--port={options.port}"]
    return cli.main(["app", f"--workbench={settings.workbench}", *port, "--start", "demo", *words])


def add_benchmark(commands) -> None:
    about = (
        "the household's clips, facts, policies, slices and best rates as a Hugging Face dataset, with a lmms-eval task"
    )
    parser = commands.add_parser("benchmark", help=about, example="benchmark household-0 --seed 0")
    option = parser.add_argument
    option("out", metavar="OUT", help="a folder that is not there yet")
    option("--train", type=int, metavar="N", default=600, help="clips of train and validation (default: 600)")
    option("--test", type=int, metavar="N", default=320, help="clips of test (default: 320)")
    option(
        "--seed", type=int, default=0, help="each seed has other homes, and holds other combinations out of training"
    )
    option("--jobs", type=positive, default=os.cpu_count() or 1, help="clips rendered at once")
    option("--quiet", action="store_true", help="no progress bars")
    option("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.set_defaults(run=_benchmark)


def _benchmark(options) -> int:
    from deepintuit_homecam import benchmark

    counts = {"train": options.train, "test": options.test, "seed": options.seed}
    if options.dry_run:
        benchmark.is_there(Path(options.out), benchmark.origin_of(**counts))
        console.print("{train} clips of train and validation and {test} of test, seed {seed}.".format(**counts))
        console.print("Nothing was written (--dry-run).")
        return 0
    benchmark.write(Path(options.out), jobs=options.jobs, progress=not options.quiet, **counts)
    console.print(f"Its card: {Path(options.out) / 'README.md'}", markup=False, soft_wrap=True)
    return 0


def add_clips(verbs) -> None:
    about, example = "render clips of the embedded world and import them", "clips homecam --train 300 --test 100"
    home = common(verbs.add_parser("homecam", help=about, example=example, settings="clips"))
    home.add_argument("--train", type=int, default=1200)
    home.add_argument("--test", type=int, default=400)
    home.add_argument("--world", choices=_WORLDS, default="homecam", help=_WORLD)
    home.add_argument("--jobs", type=positive, default=os.cpu_count() or 1)
    home.set_defaults(run=_import)


def _import(options) -> int:
    from deepintuit_homecam import demo

    settings = settings_of(options)
    settings = settings.replace(clips={"dataset": settings.clips.dataset or options.world})
    if options.dry_run:
        counts = f"{options.train} clips to train on and {options.test} to test on"
        console.print(f"{counts} would be rendered into {settings.workbench}.", markup=False)
        return 0
    shares = fractions(settings)
    extras = {"jobs": options.jobs, "progress": not options.quiet, "fractions": shares, "world": options.world}
    manifest = demo.clips(settings, options.train, options.test, **extras)
    console.print(str(manifest.summary()), markup=False)
    return 0
