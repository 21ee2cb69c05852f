"""The command line: arguments → config → one stage.

    deepintuit clips | teach | coldstart | grpo | calibrate | evaluate | attribute | judge | embed | predict | report | review | demo | app

Every stage takes `--config FILE`, `--set key=value`, `--seed`, `--workbench`, `--name` and `--dry-run`, and resumes where it was stopped.
Bad input gives one sentence in three beats and exit code 2.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

from deepintuit import __version__, config, disk, ranks, schedule
from deepintuit.command import (
    Parser,
    common,
    console,
    ended,
    opened,
    print_settings,
    settings_of,
    shard_option,
    with_dataset,
)
from deepintuit.config import Config
from deepintuit.errors import ConfigError, ModelError, quiet_libraries

_BESIDE = ("baselines", "encoder", "probe")
"""What evaluate scores beside reasoners: none writes a trace."""
_NO_RUNS = (*_BESIDE, "zero-shot")
_SHIPPED = [("clips",), ("clips", "homecam"), ("predict",), ("report",), ("review",), ("demo",), ("app",)]
"""The commands of this project's other packages, in the order of the help; more may come by entry points."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 2 with a sentence on stderr."""
    # Threads that wait shall sleep: spinning, they take the cores from other work. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quiet_libraries()
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        options = _parser(words).parse_args(words)
        _refuse_several(words[0])
        return options.run(options) or 0
    except Exception as error:  # noqa: BLE001 - what is no sentence is raised again
        prefix = "" if ranks.leads() else f"Process {ranks.number()}: "
        print(f"{prefix}{disk.sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. What was finished is kept; rerun the same command to resume.", file=sys.stderr)
        return 130


def _refuse_several(command: str) -> None:
    """ConfigError where a launcher started a command in several processes that divides nothing among them."""
    if ranks.launched() > 1 and command not in ranks.DIVIDED:
        raise ConfigError(
            f"`deepintuit {command}` started in {ranks.launched()} processes (WORLD_SIZE)",
            "each of them would do the whole of it, side by side",
            f"Start it without torchrun and accelerate launch; {', '.join(ranks.DIVIDED)} divide their clips among processes",
        )


def _parser(words: Sequence[str] | None = None) -> Parser:
    """The parser of these words, in which commands of other packages that they do not ask for are names alone: loading
    those takes longer than a stage's help. None: of all."""
    parser = Parser(
        prog="deepintuit",
        description="Classify videos by reasoning, and know when to trust the reasoning.",
        example="demo --workbench demo",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_verbs("COMMAND")
    _add_stages(commands)
    points = {tuple(point.name.split()): point for point in entry_points(group="deepintuit.commands")}
    for path in [*_SHIPPED, *sorted(set(points) - set(_SHIPPED))]:
        verbs = commands if len(path) == 1 else getattr(commands.choices[path[0]], "verbs", None)
        if verbs is None:
            continue  # its first word is a name alone
        calls = ([*path[:-1], word] for word in (path[-1], "-h", "--help"))
        if words is None or list(words[: len(path)]) in calls:
            _register(verbs, path[-1], points.get(path))
        else:
            verbs.add_parser(path[-1])
    return parser


def _register(verbs, name: str, point: EntryPoint | None) -> None:
    """Adds the command of an entry point. Where that cannot be loaded, the command says so when it is called."""
    try:
        if point is None:
            raise ImportError("no installed package brings it")
        point.load()(verbs)
    except Exception as error:  # noqa: BLE001 - a package of somebody else may raise anything
        broken = ConfigError(
            f"`deepintuit {name}` cannot be loaded",
            f"{type(error).__name__}: {error}",
            "Install the package that brings it anew; all other commands work",
        )
        parser = verbs.choices.get(name) or verbs.add_parser(name, help=f"{broken.what}: {broken.why}"[:200])
        parser.parse_known_args = partial(_raise, broken)


def _raise(error: ConfigError, *_) -> NoReturn:
    raise error


# Stages


def _add_stages(commands) -> None:
    teach = _stage(
        commands, "teach", "write teacher traces for the cold-start clips", _teach, "--config configs/small.toml"
    )
    teach.add_argument(
        "--split",
        choices=config.SPLITS,
        default="coldstart",
        help="whose clips; of `test`, to evaluate the teacher itself",
    )
    cold = _stage(
        commands, "coldstart", "imitate teacher traces (or labels alone)", _coldstart, "--set coldstart.epochs=3"
    )
    cold.add_argument("--teacher", metavar="RUN", help="the teach run to imitate (default: the newest finished one)")
    cold.add_argument("--start", metavar="RUN", help="begin with the weights of this run instead of model.path")

    grpo = _stage(commands, "grpo", "refine by rule rewards on sampled traces", _grpo, "--set grpo.group=4 --dry-run")
    grpo.add_argument(
        "--start",
        metavar="RUN",
        help="the run to refine, or `base` for the model as it is (default: the newest finished cold start)",
    )
    calibrate = _stage(
        commands, "calibrate", "learn from the model's own traces when to trust them", _calibrate, "--seed 1"
    )
    calibrate.add_argument(
        "--reasoner",
        metavar="RUN",
        help="the reasoner (default: the newest finished grpo run, else cold start); `base` for the model as it is, "
        "where a server writes the traces",
    )
    evaluate = _stage(
        commands,
        "evaluate",
        "score a system on a split: provisional and calibrated labels, with controls",
        _evaluate,
        "--reasoner baselines",
    )
    evaluate.add_argument(
        "--reasoner",
        metavar="RUN",
        help="a coldstart or grpo run; a teach run of that split; `zero-shot` for the model as it is; "
        "`baselines` for those without a model; `encoder` trains a video classifier on the same clips, `probe` a linear "
        "one on frozen features",
    )
    evaluate.add_argument(
        "--calibrator", metavar="RUN", help="its calibrate run (default: the newest finished one of that reasoner)"
    )
    shard_option(evaluate, "sample the traces")
    about = "leave out each sentence of a run's traces in turn: which ones its calibrated labels rest on"
    attribute = common(commands.add_parser("attribute", help=about, example="attribute RUN", settings="attribute"))
    attribute.add_argument("source", metavar="RUN", help="an evaluate or predict run of a system with a calibrator")
    attribute.set_defaults(run=_attribute, command="attribute")
    about = "ask a judge a rubric's yes/no questions about a run's traces, and which step of a wrong one is false"
    judge = common(commands.add_parser("judge", help=about, example="judge RUN --rubric house.toml", settings="judge"))
    judge.add_argument("source", metavar="RUN", help="a finished run that has traces")
    judge.add_argument("--rubric", metavar="FILE", help="a TOML file of yes/no questions, see docs/training.md")
    judge.add_argument("--steps", action="store_true", help="the first false step of each trace whose label is wrong")
    judge.add_argument("--every", action="store_true", help="all sampled traces of a clip, not the first alone")
    judge.set_defaults(run=_judge, command="judge")
    about = "a vector of every clip, for the nearest clips beside a clip and the map of the dashboard"
    embed = common(commands.add_parser("embed", help=about, example="embed kitchen", settings="embed"))
    embed.add_argument("name", nargs="?", metavar="DATASET", help="default: the only one")
    about = "by this video classifier (a folder, a hub id, or a run of `evaluate --reasoner encoder`) and not the model's visual tower"
    embed.add_argument("--encoder", metavar="PATH", help=about)
    shard_option(embed, "embed those")
    embed.set_defaults(run=_embed, command="embed")
    about = "say what a config takes before its first hour: memory by part, updates, tokens, disk, time"
    plan = common(commands.add_parser("plan", help=about, example="plan --config configs/qwen2.5-vl-7b-lora.toml"))
    plan.add_argument("--clips", type=int, default=10_000, help="clips of all splits (default: %(default)s)")
    plan.add_argument("--gpus", type=int, default=1, help="GPUs that share the clips (default: %(default)s)")
    about = "of each GPU: says which part of the work fits (default: of the GPU at hand, if there is one)"
    plan.add_argument("--memory", type=float, metavar="GIB", help=about)
    about = "tokens per second and GPU that a loss takes, and that sampling writes: gives hours"
    plan.add_argument("--throughput", "--rates", type=float, nargs=2, metavar=("LOSS", "SAMPLING"), help=about)
    about = "measure that on this machine, in about a minute: a few layers at the true width, without weights"
    plan.add_argument("--measure", action="store_true", help=about)
    plan.set_defaults(run=_plan)


def _stage(commands, name: str, help_text: str, run: Callable, example: str) -> Parser:
    parser = common(commands.add_parser(name, help=help_text, example=f"{name} {example}", settings=name))
    if name != "teach":
        parser.add_argument("--name", help="a word for the run's id")
    parser.set_defaults(run=run, command=name)
    return parser


def _teach(options) -> int:
    workbench, settings = opened(options)
    settings = with_dataset(settings)
    if _dry(options, workbench, settings, [options.split], {}):
        return 0
    from deepintuit import teach

    return ended(teach.run(workbench, settings, split=options.split, progress=not options.quiet))


def _plan(options) -> int:
    numbers = (options.clips, options.gpus, options.memory, *(options.throughput or ()))
    if amiss := [value for value in numbers if not (value is None or value > 0)]:
        raise ConfigError(
            f"`deepintuit plan` was given {amiss[0]:g}", "all its numbers are above 0", "Give another number"
        )
    if options.measure and options.throughput:
        why = "one of them gives the tokens per second"
        raise ConfigError("`deepintuit plan --measure --throughput`", why, "Leave one of them out")
    from deepintuit.plan import TEXT, measured, memory_here, plan_of, split

    settings = settings_of(options)
    planned = plan_of(settings, split(settings, options.clips), gpus=options.gpus)
    gpus = "one GPU" if options.gpus == 1 else f"{options.gpus} GPUs"
    about = f"{settings.model.path}, {options.clips:,} clips, {gpus}, a question of {TEXT} tokens"
    console.print(f"{about}. Tokens and memory are at most:", markup=False, soft_wrap=True)
    rates = measured(settings) if options.measure else options.throughput
    if options.measure:
        words = f"Measured here: {rates[0]:,.0f} tokens per second in losses, {rates[1]:,.0f} sampled."
        console.print(words, markup=False, highlight=False)
    _print_rows(planned.rows(options.memory or memory_here(), rates))
    return 0


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    for name, value in rows:
        console.print(f"  {name:<38}{value}", markup=False, soft_wrap=True, highlight=False)


def _coldstart(options) -> int:
    workbench, settings = opened(options)
    settings = with_dataset(settings)
    teacher = None
    if settings.coldstart.target == "trace":
        teacher = options.teacher or _newest(workbench, ["teach"], settings, "a run of teacher traces")
    traces = workbench.run(teacher).summary.get("kept", 0) if teacher else None
    inputs = {"teacher": teacher, "start": options.start}
    planned = partial(schedule.before_coldstart, traces)
    if _dry(options, workbench, settings, settings.coldstart.splits, inputs, planned, traces or 0):
        return 0
    return _trained(options, workbench, settings, **inputs)


def _grpo(options) -> int:
    workbench, settings = opened(options)
    settings = with_dataset(settings)
    start = options.start or _newest(workbench, ["coldstart"], settings, "a reasoner to refine", "trace")
    inputs = {"start": None if start == "base" else start}
    if _dry(options, workbench, settings, ["grpo"], inputs, schedule.before_grpo):
        return 0
    return _trained(options, workbench, settings, **inputs)


def _calibrate(options) -> int:
    workbench, settings = opened(options)
    settings = with_dataset(settings)
    reasoner = options.reasoner or _newest(workbench, ["grpo", "coldstart"], settings, "a reasoner", "trace")
    inputs = {"reasoner": None if reasoner == "base" else reasoner}
    if _dry(options, workbench, settings, ["calibration", "validation"], inputs, schedule.before_calibrate):
        return 0
    return _trained(options, workbench, settings, **inputs)


def _evaluate(options) -> int:
    from deepintuit.reasoner.controls import calibrator_of

    workbench, settings = opened(options)
    settings = with_dataset(settings)
    reasoner = options.reasoner or _newest(workbench, ["grpo", "coldstart"], settings, "a reasoner")
    own = None if reasoner == "zero-shot" else reasoner
    writes = settings.server.model if reasoner not in _BESIDE else ""
    calibrator = options.calibrator or (calibrator_of(workbench, own, writes) if own or writes else None)
    if _dry(options, workbench, settings, [settings.evaluate.split], {"reasoner": reasoner, "calibrator": calibrator}):
        return 0
    stage = importlib.import_module("deepintuit.evaluate")
    progress, shard = not options.quiet, ranks.Shard.of(options.shard)
    if shard and reasoner in _BESIDE:
        shard.refuse(f"of {reasoner} no traces are sampled, which is what shards divide")
    if reasoner in ("encoder", "probe"):
        return ended(_beside(workbench, settings, reasoner, calibrator)(system=options.name or "", progress=progress))
    if reasoner == "baselines":
        from deepintuit import baselines

        return ended(baselines.simple(workbench, settings, calibrator, progress=progress))
    run = stage.run(
        workbench,
        settings,
        reasoner=None if reasoner == "zero-shot" else reasoner,
        calibrator=calibrator,
        system=options.name or "",
        progress=progress,
        shard=shard,
    )
    return ended(run)


def _beside(workbench, settings: Config, name: str, calibrator: str | None) -> Callable:
    """What stands beside a reasoner. A probe is of the tower that the newest reasoner sees clips by."""
    from deepintuit import baselines
    from deepintuit.reasoner import inherited

    if calibrator:
        why = "it writes no trace that a calibrator could read"
        raise ConfigError(f"the calibrator {calibrator!r} was named for the {name}", why, "Leave it out")
    if name == "probe":
        settings, _ = inherited(workbench, settings, _newest_reasoner(workbench, settings))
    return partial(getattr(baselines, name), workbench, settings)


def _attribute(options) -> int:
    workbench, settings = opened(options)
    from deepintuit import attribute

    answers = workbench.run(options.source)
    settings = settings.replace(clips={"dataset": answers.about["dataset"] or ""})
    inputs = {"run": answers.id, "calibrator": attribute.calibrator_in(answers)}
    if _dry(options, workbench, settings, [], inputs):
        return 0
    return ended(attribute.run(workbench, settings, source=answers.id, progress=not options.quiet))


def _embed(options) -> int:
    workbench, settings = opened(options)
    settings = with_dataset(settings.replace(clips={"dataset": options.name}) if options.name else settings)
    shard = ranks.Shard.of(options.shard)
    inputs = {"encoder": options.encoder} if options.encoder else {"as": _newest_reasoner(workbench, settings)}
    if options.dry_run:
        console.print(f"[bold]deepintuit embed[/] {settings.clips.dataset!r} {inputs}")
    from deepintuit.reasoner import inherited

    settings, _ = inherited(workbench, settings, inputs.get("as"))
    if options.dry_run:
        print_settings(settings, "embed")
        return 0
    from deepintuit import embed

    space, unreadable = embed.run(workbench, settings, encoder=options.encoder, progress=not options.quiet, shard=shard)
    for clip_id, error in unreadable.items():
        console.print(f"{clip_id} is left out: {error}", markup=False, soft_wrap=True)
    more = "" if space.arranged else "; the shard that ends last says where they lie"
    console.print(f"{len(space.ids())} clips by the {space.about['name']}{more}", markup=False, soft_wrap=True)
    return 0


def _newest_reasoner(workbench, settings: Config) -> str | None:
    """Whose settings say which tower sees the clips, and at how many frames; None where nothing is trained yet."""
    try:
        return _newest(workbench, ["grpo", "coldstart"], settings, "a reasoner")
    except ConfigError:
        return None


def _judge(options) -> int:
    workbench, settings = opened(options)
    from deepintuit import judge
    from deepintuit.rubrics import Rubric

    source = workbench.run(options.source)
    settings = settings.replace(clips={"dataset": source.about["dataset"] or ""})
    asked = {"rubric": options.rubric and Rubric.load(options.rubric), "steps": options.steps, "every": options.every}
    judge.refuse(settings, asked["rubric"], options.steps)
    if _dry(options, workbench, settings, [], {"run": source.id}, lambda *_: judge.planned(source, **asked)):
        return 0
    run = judge.run(workbench, settings, source=source.id, **asked, progress=not options.quiet)
    for question, counts in run.summary["answers"].items():
        words = ", ".join(f"{n} {answer}" for answer, n in counts.items())
        console.print(f"  {question}: {words}", markup=False, highlight=False, soft_wrap=True)
    return ended(run)


def _trained(options, workbench, settings: Config, **inputs: str | None) -> int:
    """Run a stage that trains. It needs torch, so it is imported only now."""
    stage = importlib.import_module(f"deepintuit.{options.command}")
    return ended(stage.run(workbench, settings, **inputs, name=options.name, progress=not options.quiet))


def _newest(workbench, stages: Sequence[str], settings: Config, purpose: str, target: str | None = None) -> str:
    """The newest finished run of the first stage that has one, on this dataset. A baseline's own run (RB-FT's) is taken
    only by name."""
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
        f"{purpose} is needed",
        f"Run `deepintuit {stages[-1]}` first, or name a run",
    )


def _dry(
    options,
    workbench,
    settings: Config,
    splits: Sequence[str],
    inputs: Mapping[str, str | None],
    planned: Callable | None = None,
    rows: int = 0,
) -> bool:
    """Runs that are named must be there. With --dry-run: inputs, clip counts and settings are printed, and True says
    to stop."""
    runs = [_fit(workbench, run, role, options.command) for role, run in inputs.items() if run and run not in _NO_RUNS]
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
    if not {*_BESIDE} & {*inputs.values()} and not settings.server.model:
        _print_plan(options.command, settings, counts, rows)
    print_settings(settings, options.command)
    return True


def _fit(workbench, run_id: str, role: str, command: str) -> str:
    """The id of the run that is named for a role; ConfigError or StoreError for one of a stage that has another."""
    from deepintuit.reasoner import reasoner_run

    run, stage = workbench.run(run_id), {"teacher": "teach", "calibrator": "calibrate"}.get(role)
    if stage and run.stage != stage:
        why, todo = f"a {role} is a run of the stage {stage}", f"Name one, or leave --{role} out"
        raise ConfigError(f"--{role} {run_id}, a run of the stage {run.stage}", why, todo)
    if role in ("start", "reasoner") and not (command == "evaluate" and run.stage == "teach"):
        reasoner_run(workbench, run_id)
    return run.id


def _print_plan(stage: str, settings: Config, counts: Mapping[str, int], rows: int) -> None:
    """What the stage takes on this machine, where it is one that a model of known shape does."""
    from deepintuit.plan import STAGES, memory_here, plan_of

    if stage not in STAGES or not any(counts.values()):
        return
    try:
        planned = plan_of(settings, counts, stage, rows=rows)
    except ModelError as error:
        console.print(f"  Memory is not known before: {error}", markup=False, highlight=False, soft_wrap=True)
        return
    _print_rows(planned.rows(memory_here()))


if __name__ == "__main__":
    sys.exit(main())
