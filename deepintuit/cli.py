"""The command line: arguments → config → one stage.

    deepintuit clips | teach | coldstart | grpo | calibrate | evaluate | report | review | demo | app

Every stage takes `--config FILE`, `--set key=value`, `--seed`, `--workbench`, `--name` and `--dry-run`, and resumes where it was stopped.
Bad input gives one sentence in three beats and exit code 2.
"""

from __future__ import annotations

import argparse
import getpass
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import tomli_w
from rich.console import Console
from rich.syntax import Syntax

from deepintuit import __version__, config, disk, schedule
from deepintuit.config import Config
from deepintuit.errors import ConfigError, DataError, nearest, quiet_libraries
from deepintuit.schedule import fractions

_NO_RUNS = ("baselines", "zero-shot")
_COMMANDS = ("clips", "teach", "coldstart", "grpo", "calibrate", "evaluate", "report", "review", "demo", "app")
console = Console()


class _Parser(argparse.ArgumentParser):
    given: Sequence[str] = ()

    def error(self, message: str):
        words = [word for word in self.given if not word.startswith("-")]
        near = nearest(words[0], _COMMANDS) if words and words[0] not in _COMMANDS else None
        hint = f"Did you mean `deepintuit {near}`" if near else f"See `{self.prog} --help`"
        raise ConfigError(f"`{' '.join(['deepintuit', *self.given])}`", message, hint)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 2 with a sentence on stderr."""
    # Threads that wait shall sleep: spinning, they take the cores from other work. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quiet_libraries()
    _Parser.given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parser().parse_args(arguments)
        return options.run(options) or 0
    except Exception as error:  # noqa: BLE001 - what is no sentence is raised again
        print(disk.sentence(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130


# fmt: off
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deepintuit", description="Classify videos by reasoning, and know when to trust the reasoning.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    clips = commands.add_parser("clips", help="import clips, divide them into splits, show what is there")
    verbs = clips.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    _clips(verbs)

    teach = _common(commands.add_parser("teach", help="write teacher traces for the cold-start clips"))
    teach.add_argument("--split", choices=config.SPLITS, default="coldstart", help="whose clips; of `test`, to evaluate the teacher itself")
    teach.set_defaults(run=_teach, command="teach")

    cold = _stage(commands, "coldstart", "imitate teacher traces (or labels alone)", _coldstart)
    cold.add_argument("--teacher", metavar="RUN", help="the teach run to imitate (default: the newest finished one)")
    cold.add_argument("--start", metavar="RUN", help="begin with the weights of this run instead of model.path")

    grpo = _stage(commands, "grpo", "refine by rule rewards on sampled traces", _grpo)
    grpo.add_argument("--start", metavar="RUN", help="the run to refine, or `base` for the model as it is (default: the newest finished cold start)")

    calibrate = _stage(commands, "calibrate", "learn from the model's own traces when to trust them", _calibrate)
    calibrate.add_argument("--reasoner", metavar="RUN", help="the reasoner (default: the newest finished grpo run, else cold start)")

    evaluate = _stage(commands, "evaluate", "score a system on a split: provisional and calibrated labels, with controls", _evaluate)
    evaluate.add_argument("--reasoner", metavar="RUN", help="a coldstart or grpo run; a teach run of that split; `zero-shot` for the model as it is; `baselines` for those without a model")
    evaluate.add_argument("--calibrator", metavar="RUN", help="its calibrate run (default: the newest finished one of that reasoner)")

    report = _common(commands.add_parser("report", help="the table of systems in the terminal, and a run card as HTML"))
    report.add_argument("runs", nargs="*", metavar="RUN", help="evaluate runs (default: all finished ones of the dataset)")
    report.set_defaults(run=_report)

    review = commands.add_parser("review", help="what people say of traces: out and in, corrected labels, the next cold start, what to label next")
    _review(review.add_subparsers(metavar="VERB", required=True, parser_class=_Parser))

    demo = _common(commands.add_parser("demo", help="everything, from rendered clips to the table, with the embedded world and model"))
    demo.add_argument("--full", action="store_true", help="with RB-FT and zero-shot, and every system calibrated (about three times as long)")
    demo.set_defaults(run=_demo)

    app = commands.add_parser("app", help="the dashboard: watch a clip being reasoned about, browse traces, find where classes fail")
    app.add_argument("--workbench", metavar="DIR", help="where clips and runs lie (default: ./workbench, or DEEPINTUIT_HOME)")
    app.add_argument("--host", default="127.0.0.1", help="another address than this machine's own needs --auth")
    app.add_argument("--port", type=int, default=7860)
    app.add_argument("--auth", metavar="FILE", help="ask for a login; one `name:hash` a line, written by --add-user")
    app.add_argument("--add-user", metavar="NAME", help="ask for a password, write it hashed into the --auth file, and end")
    app.add_argument("--trusted-host", metavar="NAME", action="append", default=[], help="a name that browsers know the proxy before it by (repeatable)")
    app.add_argument("--root-path", metavar="/PATH", default="", help="the sub-path that a proxy shows it under")
    app.add_argument("--proxy", metavar="ADDRESS", action="append", default=[], help="whose X-Forwarded-For, -Proto and -Host are believed (repeatable; default: nobody's)")
    app.add_argument("--no-browser", action="store_true", help="do not open a browser")
    app.set_defaults(run=_app)
    return parser


def _common(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--config", metavar="FILE", help="TOML with departures from the defaults, e.g. configs/tiny.toml")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one departure, e.g. grpo.learning_rate=1e-6 (repeatable)")
    parser.add_argument("--seed", type=int, help="same seed, same run")
    parser.add_argument("--workbench", metavar="DIR", help="where clips and runs lie (default: ./workbench, or DEEPINTUIT_HOME)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and with which settings, and do nothing")
    return parser


def _stage(commands, name: str, help_text: str, run: Callable) -> argparse.ArgumentParser:
    parser = _common(commands.add_parser(name, help=help_text))
    parser.add_argument("--name", help="a word for the run's id")
    parser.set_defaults(run=run, command=name)
    return parser
# fmt: on


def _settings(options) -> Config:
    sets = list(options.set)
    if options.seed is not None:
        sets.append(f"seed={options.seed}")
    settings = config.load(options.config, sets)
    place = options.workbench or os.environ.get("DEEPINTUIT_HOME") or settings.workbench
    return settings.replace(workbench=str(place))


def _open(options, *, indexed: bool = False):
    from deepintuit.runs import Workbench

    if indexed:
        from deepintuit_analysis import Workbench
    settings = _settings(options)
    return Workbench(settings.workbench), settings


def _need_dataset(settings: Config) -> Config:
    """The settings with a dataset: the only one of the workbench, when none is named."""
    if settings.clips.dataset:
        return settings
    known = sorted(p.stem for p in (Path(settings.workbench) / "clips").glob("*.parquet") if "@" not in p.stem)
    if len(known) != 1:
        raise ConfigError(
            "no dataset is named",
            f"the workbench {settings.workbench!r} has {len(known)}: {', '.join(known) or 'none'}",
            "Add --set clips.dataset=NAME"
            if known
            else "Import clips first, e.g. `deepintuit clips folder DIR --name NAME`",
        )
    return settings.replace(clips={"dataset": known[0]})


def _newest(workbench, stages: Sequence[str], settings: Config, what: str, target: str | None = None) -> str:
    """The newest finished run of the first stage that has one, on this dataset. A baseline's own run (RB-FT's) is taken only by name."""
    for stage in stages:
        runs = [r for r in workbench.runs(stage, finished=True) if r.about["dataset"] == settings.clips.dataset]
        runs = [r for r in runs if not (r.about["name"] or "").startswith("rb-ft")]
        runs = [r for r in runs if stage != "teach" or r.config.get("split", "coldstart") == "coldstart"]
        if target:
            runs = [r for r in runs if stage != "coldstart" or r.config["coldstart"]["target"] == target]
        if runs:
            return runs[-1].id
    raise ConfigError(
        f"no finished {' or '.join(stages)} run on {settings.clips.dataset!r}",
        f"{what} is needed",
        f"Run `deepintuit {stages[-1]}` first, or name a run",
    )


def _dry(
    options,
    workbench,
    settings: Config,
    splits: Sequence[str],
    inputs: dict[str, str | None],
    planned: Callable | None = None,
) -> bool:
    """Runs that are named must be there. With --dry-run: inputs, clip counts and settings are printed, and True says to stop."""
    runs = [workbench.run(run).id for run in inputs.values() if run and run not in _NO_RUNS]
    from deepintuit.reasoner import inherited

    settings, departs = inherited(workbench, settings, *runs)
    if options.dry_run and departs:
        console.print(f"Other than in training: {', '.join(departs)}", markup=False)
    settings.refuse_idle(options.command)
    if not options.dry_run:
        return False
    from deepintuit.data import Manifest

    manifest = Manifest.load(settings.workbench, settings.clips.dataset)
    console.print(f"[bold]deepintuit {options.command}[/] on {settings.clips.dataset!r} in {settings.workbench}")
    for name, value in inputs.items():
        console.print(f"  {name}: {value or '(none)'}")
    counts = {split: len(manifest.usable(split)) for split in splits}
    for split, count in counts.items():
        console.print(f"  {split}: {count} usable clips")
    if planned:
        console.print(f"  {planned(settings, counts)}", markup=False, highlight=False, soft_wrap=True)
    _nothing_done(settings, options.command)
    return True


def _nothing_done(settings: Config, command: str) -> None:
    """Prints the settings that a command would use."""
    sections = {"model", "video", "clips", "prompt", "sampling", command, "seed", "workbench"}
    shown = {name: value for name, value in settings.to_dict().items() if name in sections or command == "demo"}
    console.print("Settings:")
    console.print(Syntax(tomli_w.dumps(shown), "toml", background_color="default"))
    console.print("Nothing was run (--dry-run).")


def _ended(run) -> int:
    console.print(f"[bold]{run.id}[/] is finished.")
    return 0


def _teach(options) -> int:
    workbench, settings = _open(options)
    settings = _need_dataset(settings)
    if _dry(options, workbench, settings, [options.split], {}):
        return 0
    from deepintuit import teach

    return _ended(teach.run(workbench, settings, split=options.split, progress=not options.quiet))


def _coldstart(options) -> int:
    workbench, settings = _open(options)
    settings = _need_dataset(settings)
    teacher = None
    if settings.coldstart.target == "trace":
        teacher = options.teacher or _newest(workbench, ["teach"], settings, "a run of teacher traces")

    kept = workbench.run(teacher).summary.get("kept", 0) if teacher else None
    if _dry(
        options,
        workbench,
        settings,
        settings.coldstart.splits,
        {"teacher": teacher, "start": options.start},
        partial(schedule.before_coldstart, kept),
    ):
        return 0
    stage = _torch_stage("coldstart")
    return _ended(
        stage.run(
            workbench, settings, teacher=teacher, start=options.start, name=options.name, progress=not options.quiet
        )
    )


def _grpo(options) -> int:
    workbench, settings = _open(options)
    settings = _need_dataset(settings)
    start = options.start or _newest(workbench, ["coldstart"], settings, "a reasoner to refine", "trace")
    start = None if start == "base" else start
    if _dry(options, workbench, settings, ["grpo"], {"start": start}, schedule.before_grpo):
        return 0
    return _ended(
        _torch_stage("grpo").run(workbench, settings, start=start, name=options.name, progress=not options.quiet)
    )


def _calibrate(options) -> int:
    workbench, settings = _open(options)
    settings = _need_dataset(settings)
    reasoner = options.reasoner or _newest(workbench, ["grpo", "coldstart"], settings, "a reasoner", "trace")

    if _dry(
        options, workbench, settings, ["calibration", "validation"], {"reasoner": reasoner}, schedule.before_calibrate
    ):
        return 0
    return _ended(
        _torch_stage("calibrate").run(
            workbench, settings, reasoner=reasoner, name=options.name, progress=not options.quiet
        )
    )


def _evaluate(options) -> int:
    workbench, settings = _open(options)
    settings = _need_dataset(settings)
    reasoner = options.reasoner or _newest(workbench, ["grpo", "coldstart"], settings, "a reasoner")
    calibrator = options.calibrator or _calibrator_of(workbench, reasoner)
    if _dry(options, workbench, settings, [settings.evaluate.split], {"reasoner": reasoner, "calibrator": calibrator}):
        return 0
    stage = _torch_stage("evaluate")
    if reasoner == "baselines":
        return _ended(stage.baselines(workbench, settings, calibrator, progress=not options.quiet))
    run = stage.run(
        workbench,
        settings,
        reasoner=None if reasoner == "zero-shot" else reasoner,
        calibrator=calibrator,
        system=options.name or "",
        progress=not options.quiet,
    )
    return _ended(run)


def _calibrator_of(workbench, reasoner: str) -> str | None:
    found = [
        run.id
        for run in workbench.runs("calibrate", finished=True)
        if run.parent == reasoner and run.config.get("calibrate", {}).get("without", "none") == "none"
    ]
    return found[-1] if found else None


def _torch_stage(name: str):
    """A stage that needs torch, imported only when it runs."""
    return importlib.import_module(f"deepintuit.{name}")


def _report(options) -> int:
    from deepintuit.data import Manifest

    workbench, settings = _open(options, indexed=True)
    settings = _need_dataset(settings)
    Manifest.load(settings.workbench, settings.clips.dataset)
    chosen = _evaluated(workbench, settings, options.runs)
    if options.dry_run:
        console.print(f"A report would be made of: {', '.join(chosen)}", markup=False)
        _nothing_done(settings, "evaluate")
        return 0
    return _show(workbench, settings, chosen)


def _evaluated(workbench, settings: Config, runs: Sequence[str] = ()) -> list[str]:
    chosen = [workbench.run(run).id for run in runs] or [
        r.id for r in workbench.runs("evaluate", finished=True) if r.about["dataset"] == settings.clips.dataset
    ]
    if not chosen:
        raise ConfigError(
            "nothing was evaluated yet", "the report reads evaluate runs", "Run `deepintuit evaluate` first"
        )
    return chosen


def _show(workbench, settings: Config, chosen: Sequence[str]) -> int:
    from deepintuit_analysis import report

    report.show(workbench, chosen, settings.evaluate, console=console)
    card = report.run_card(workbench, chosen, settings.evaluate)
    workbench.refresh()
    console.print(f"The whole report, with figures: {card}", markup=False, soft_wrap=True)
    return 0


def _demo(options) -> int:
    if options.config is None:
        options.config = str(Path(__file__).resolve().parents[1] / "configs" / "tiny.toml")
    workbench, settings = _open(options, indexed=True)
    if options.dry_run:
        _nothing_done(settings, "demo")
        return 0
    from deepintuit_homecam import demo

    demo.run(
        workbench,
        settings,
        full=options.full,
        fractions=fractions(settings),
        progress=not options.quiet,
        console=console,
    )
    return _show(workbench, settings, _evaluated(workbench, settings))


def _app(options) -> int:
    try:
        from deepintuit_app import gate
        from deepintuit_app.app import serve
    except ImportError as error:
        raise ConfigError(
            f"the dashboard cannot start ({error})",
            "it needs the packages of the extra 'app'",
            "Install them: pip install 'deepintuit[app]'",
        ) from error
    if options.add_user:
        if not options.auth:
            raise ConfigError("--add-user without --auth", "there is no file to write to", "Add --auth FILE")
        gate.add_user(options.auth, options.add_user, getpass.getpass(f"Password for {options.add_user}: "))
        return 0
    place = options.workbench or os.environ.get("DEEPINTUIT_HOME") or Config().workbench
    if not Path(place).is_dir():
        raise ConfigError(
            f"there is no workbench at {str(place)!r}",
            "the dashboard shows what is in one",
            "Make one with `deepintuit demo`, or name another with --workbench",
        )
    users = gate.Users(options.auth) if options.auth is not None else None
    serve(
        place,
        host=options.host,
        port=options.port,
        users=users,
        trusted_hosts=options.trusted_host,
        proxies=options.proxy,
        root_path=options.root_path,
        open_browser=not options.no_browser,
    )
    return 0


# fmt: off
def _review(verbs) -> None:
    def verb(name: str, help_text: str, run: Callable, *, tasks: bool = False) -> argparse.ArgumentParser:
        parser = _common(verbs.add_parser(name, help=help_text))
        parser.set_defaults(run=partial(_reviewed, run))
        if tasks:
            parser.add_argument("tasks", nargs="*", metavar="TASK", help="review tasks (default: all)")
        return parser

    files = {
        "export": verb("export", "a task's answers as a file", lambda said, o, *on: said.export(*on[:2], o.task, o.file, o.form, o.videos, o.dry_run)),
        "import": verb("import", "answers from a file, as new events that name it",
                       lambda said, o, *on: said.bring_in(*on[:2], o.task, o.file, o.form, o.source, o.dry_run)),
    }
    verb("log", "all events of all tasks as readable text, a line of JSON each", lambda said, o, *on: said.log(*on[:2], o.file, o.dry_run)).add_argument("file", metavar="FILE")
    for parser in files.values():
        parser.add_argument("task", metavar="TASK")
        parser.add_argument("file", metavar="FILE")
        parser.add_argument("--form", choices=("jsonl", "csv", "parquet", "label-studio"), help="default: what the file's ending says; .json is Label Studio's")
    files["export"].add_argument("--videos", metavar="PREFIX", help="Label Studio: what goes before a video's path (default: where it serves local storage)")
    files["import"].add_argument("--source", help="where it comes from (default: the file's name)")
    verb("labels", "corrected labels as a new version of the dataset", lambda said, o, *on: said.labels(*on, o.tasks, o.dry_run), tasks=True)
    cold = verb("coldstart-set", "accepted and corrected traces as a teacher for the cold start",
                lambda said, o, *on: said.coldstart_set(*on, o.tasks, o.onto, o.dry_run), tasks=True)
    cold.add_argument("--onto", metavar="RUN", help="a teach run whose kept traces come too, but for those that people refused")
    more = verb("next", "the clips whose labels would teach most",
                lambda said, o, *on: said.next_batch(*on, o.size, o.split, o.task, o.by or getpass.getuser(), o.dry_run))
    more.add_argument("--size", type=int, default=50)
    more.add_argument("--split", action="append", default=[], help="only of this split (repeatable; default: all but test)")
    more.add_argument("--task", metavar="NAME", help="open a task of this name with them")
    more.add_argument("--by", metavar="NAME", help="who leads that task (default: your account's name)")
    verb("report", "progress, agreement, gold items, model against people, suspected label errors",
         lambda said, o, *on: said.report(*on[:2], on[2].clips.dataset or None, o.tasks, o.split), tasks=True).add_argument("--split", default="test", help="whose labels to doubt")
# fmt: on


def _reviewed(run: Callable, options) -> int:
    from deepintuit_analysis.review import commands

    workbench, settings = _open(options, indexed=True)
    if not hasattr(options, "file"):
        settings = _need_dataset(settings)
    workbench.refresh()
    run(commands, options, workbench, console, settings)
    return 0


# fmt: off
def _clips(verbs) -> None:
    def verb(name: str, help_text: str, run: Callable) -> argparse.ArgumentParser:
        parser = _common(verbs.add_parser(name, help=help_text))
        parser.set_defaults(run=run)
        return parser

    def importer(name: str, help_text: str, read: Callable) -> argparse.ArgumentParser:
        parser = verb(name, help_text, partial(_import, read))
        parser.add_argument("--name", required=True, help="what the dataset is called in the workbench")
        parser.add_argument("--labels", metavar="FILE", help="labels.toml with labels, definitions and aliases")
        parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="files looked at side by side")
        parser.add_argument("--truncated", choices=("keep", "exclude"), default="keep", help="what becomes of clips that end before their file says (default: keep)")
        parser.add_argument("--fresh", action="store_true", help="look at every file again, also at those known from an earlier import")
        return parser

    folder = importer("folder", "a folder of class folders", partial(_listed, "folder"))
    folder.add_argument("source", metavar="DIR")
    for name, kind in (("csv", "CSV or TSV"), ("jsonl", "JSONL")):
        table = importer(name, f"a {kind} with path, label and optional group, split and text columns", partial(_listed, name))
        table.add_argument("source", metavar="FILE")
        table.add_argument("--videos", metavar="DIR", help="where paths are relative to (default: the table's folder)")
        table.add_argument("--path-column", metavar="NAME", default="path", help="column that names the video file (default: path)")
        table.add_argument("--label-column", metavar="NAME", default="label", help="column that names the label (default: label)")
        table.add_argument("--group", help="column that names the source video or camera")
        table.add_argument("--split", help="column that names a given split")
        table.add_argument("--text", nargs="*", help="columns with the uploader's own words (title, transcript)")
    for name, title in (("smarthome", "SmartHome-Bench"), ("multihateclip", "MultiHateClip")):
        bench = importer(name, f"{title} annotations and a folder of videos", partial(_listed, name))
        bench.add_argument("source", metavar="ANNOTATIONS")
        bench.add_argument("--videos", metavar="DIR", required=True)
        if name == "smarthome":
            bench.add_argument("--trimmed", action="store_true", help="the videos went through the benchmark's Video_trim.py")
    home = verb("homecam", "render clips of the embedded world and import them", _import_homecam)
    home.add_argument("--train", type=int, default=1200)
    home.add_argument("--test", type=int, default=400)
    home.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    split = verb("split", "divide a dataset by group into cold start, GRPO, calibration, validation and test", _split)
    split.add_argument("name", nargs="?")
    show = verb("show", "what a dataset holds: splits, labels, and every clip that is left out, with its reason", _show_clips)
    show.add_argument("name", nargs="?")
# fmt: on


def _listed(kind: str, options):
    from deepintuit import data, labels

    read = getattr(data, f"import_{kind}")
    if kind in ("smarthome", "multihateclip"):
        return read(options.source, options.videos, **({"trimmed": options.trimmed} if kind == "smarthome" else {}))
    known = labels.LabelSet.load(options.labels) if options.labels else None
    if kind == "folder":
        return read(options.source, labels=known)
    names = {
        "path": options.path_column,
        "label": options.label_column,
        "group": options.group,
        "split": options.split,
        "text": options.text,
    }
    return read(options.source, options.videos or Path(options.source).parent, **names, labels=known)


def _import(read: Callable, options) -> int:
    from deepintuit import data, video

    settings = _settings(options)
    listing = read(options)
    if options.dry_run:
        console.print(str(listing.report), markup=False)
        console.print("Nothing was imported (--dry-run).")
        return 0
    limits = video.Limits.of(settings.video)
    manifest, report = data.scan(
        listing,
        settings.workbench,
        options.name,
        probe=partial(video.probe, isolate=True),
        playable_copy=partial(video.playable_copy, limits=limits, isolate=True),
        limits=limits,
        jobs=options.jobs,
        progress=not options.quiet,
        fresh=options.fresh,
        keep_truncated=options.truncated == "keep",
    )
    console.print(str(report), markup=False)
    if not len(manifest.usable()):
        raise DataError(
            f"no clip of {options.name!r} can be used",
            "nothing was saved, and what is there of this name stays",
            "See the reasons above; are the videos where --videos says",
        )
    return _divide(manifest, settings)


def _divide(manifest, settings: Config, dry: bool = False) -> int:
    from deepintuit import data

    manifest = data.assign_splits(manifest, fractions(settings), settings.seed)
    if not dry:
        manifest.save()
    console.print(str(manifest.summary()), markup=False)
    if dry:
        console.print("Nothing was saved (--dry-run).")
    return 0


def _import_homecam(options) -> int:
    from deepintuit_homecam import demo

    settings = _settings(options)
    settings = settings.replace(clips={"dataset": settings.clips.dataset or "homecam"})
    if options.dry_run:
        console.print(
            f"{options.train} clips to train on and {options.test} to test on would be rendered into {settings.workbench}.",
            markup=False,
        )
        return 0
    manifest = demo.clips(
        settings,
        options.train,
        options.test,
        jobs=options.jobs,
        progress=not options.quiet,
        fractions=fractions(settings),
    )
    console.print(str(manifest.summary()), markup=False)
    return 0


def _named(options) -> Config:
    settings = _settings(options)
    if options.name:
        settings = settings.replace(clips={"dataset": options.name})
    return _need_dataset(settings)


def _split(options) -> int:
    from deepintuit.data import Manifest

    settings = _named(options)
    return _divide(Manifest.load(settings.workbench, settings.clips.dataset), settings, options.dry_run)


def _show_clips(options) -> int:
    from deepintuit.data import Manifest

    settings = _named(options)
    manifest = Manifest.load(settings.workbench, settings.clips.dataset)
    console.print(str(manifest.summary()), markup=False)
    for line in manifest.remarks():
        console.print(f"  {line}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
