"""`deepintuit demo` and `deepintuit clips homecam`."""

from __future__ import annotations

import os

from deepintuit.command import common, console, opened, print_settings, settings_of
from deepintuit.config import CONFIGS
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_analysis.commands import evaluated, show_report

_WORLDS = {"homecam": "tiny.toml", "household": "household.toml"}
_WORLD = "homecam: a rule of several facts; household: policies in plain words, with slices (docs/worlds.md)"


def add_demo(commands) -> None:
    about = "everything, from rendered clips to the table, with the embedded world and model"
    parser = common(commands.add_parser("demo", help=about, example="demo --workbench demo --seed 1", settings="demo"))
    about = "with RB-FT and zero-shot, and every system calibrated (about three times as long)"
    parser.add_argument("--full", action="store_true", help=about)
    parser.add_argument("--world", choices=_WORLDS, default="homecam", help=_WORLD)
    parser.set_defaults(run=_demo)


def _demo(options) -> int:
    if options.config is None:
        options.config = str(CONFIGS / _WORLDS[options.world])
    workbench, settings = opened(options, Workbench)
    for stage in ("teach", "coldstart", "grpo", "calibrate", "evaluate"):  # before minutes are spent on clips
        settings.refuse_idle(stage)
    if options.dry_run:
        print_settings(settings, "demo")
        return 0
    from deepintuit_homecam import demo

    progress, shares = not options.quiet, fractions(settings)
    given = {"progress": progress, "console": console, "world": options.world}
    demo.run(workbench, settings, full=options.full, fractions=shares, **given)
    return show_report(workbench, settings, evaluated(workbench, settings))


def add_clips(verbs) -> None:
    about, example = "render clips of the embedded world and import them", "clips homecam --train 300 --test 100"
    home = common(verbs.add_parser("homecam", help=about, example=example, settings="clips"))
    home.add_argument("--train", type=int, default=1200)
    home.add_argument("--test", type=int, default=400)
    home.add_argument("--world", choices=_WORLDS, default="homecam", help=_WORLD)
    home.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
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
    given = {"jobs": options.jobs, "progress": not options.quiet, "fractions": shares, "world": options.world}
    manifest = demo.clips(settings, options.train, options.test, **given)
    console.print(str(manifest.summary()), markup=False)
    return 0
