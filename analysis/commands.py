"""`deepintuit report`, `share` and `review`: words of a command line into calls of the packages of these names."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from deepintuit.command import Parser, common, console, opened, print_settings, with_dataset
from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.errors import ConfigError
from deepintuit_analysis import Workbench


def add_report(commands) -> None:
    about = "the table of systems in the terminal, and a run card as HTML"
    parser = common(
        commands.add_parser("report", help=about, example="report --set evaluate.bins=10", settings="report")
    )
    about = "evaluate runs (default: all finished ones of the dataset)"
    parser.add_argument("runs", nargs="*", metavar="RUN", help=about)
    parser.set_defaults(run=_report)


def _report(options) -> int:
    workbench, settings = opened(options, Workbench)
    settings = with_dataset(settings)
    Manifest.load(settings.workbench, settings.clips.dataset)
    run_ids = evaluated(workbench, settings, options.runs)
    if options.dry_run:
        console.print(f"A report would be made of: {', '.join(run_ids)}", markup=False)
        print_settings(settings, "report")
        return 0
    return show_report(workbench, settings, run_ids)


def evaluated(workbench: Workbench, settings: Config, runs: Sequence[str] = ()) -> list[str]:
    """The evaluate runs of these ids, or all finished ones of the dataset. ConfigError where there is none."""
    for run in map(workbench.run, runs):
        if run.stage != "evaluate":
            raise ConfigError(
                f"the run {run.id!r} of the stage {run.stage}",
                "the report reads evaluate runs",
                "Name some, or leave runs out: then it is made of all that are finished",
            )
    run_ids = [workbench.run(run).id for run in runs] or [
        r.id for r in workbench.runs("evaluate", finished=True) if r.about["dataset"] == settings.clips.dataset
    ]
    if not run_ids:
        raise ConfigError(
            "nothing was evaluated yet", "the report reads evaluate runs", "Run `deepintuit evaluate` first"
        )
    return run_ids


def show_report(workbench: Workbench, settings: Config, run_ids: Sequence[str]) -> int:
    """The table of these runs on the console, and their run card as a file."""
    from deepintuit_analysis import report

    report.show(workbench, run_ids, settings.evaluate, console=console)
    card = report.run_card(workbench, run_ids, settings.evaluate)
    workbench.refresh()
    console.print(f"The whole report, with figures: {card}", markup=False, soft_wrap=True)
    return 0


def add_share(commands) -> None:
    about = "traces, errors, clips and run card as a folder that opens without a server"
    parser = common(commands.add_parser("share", help=about, example="share for-the-team --clips small"))
    parser.add_argument("out", metavar="OUT", help="a folder that is not there yet")
    about = "whose traces (default: all finished evaluate runs of the dataset, or with --slice all of the slice)"
    parser.add_argument("--runs", nargs="+", metavar="RUN", default=[], help=about)
    parser.add_argument("--slice", metavar="NAME", default="", help="only the traces of this saved slice")
    about = "the videos as they are (default), small and without sound, or none"
    parser.add_argument("--clips", choices=("whole", "small", "none"), default="whole", help=about)
    parser.set_defaults(run=_share)


def _share(options) -> int:
    from deepintuit_analysis import report, share

    workbench, settings = opened(options, Workbench)
    target = Path(options.out)
    share.refuse(target)
    workbench.refresh()
    runs = [workbench.run(run).id for run in options.runs]
    if not runs and not options.slice:
        runs = evaluated(workbench, with_dataset(settings))
    evaluations = [run for run in runs if workbench.run(run).stage == "evaluate"]
    card = partial(report.run_card, workbench, evaluations) if evaluations else None
    bundle = share.gather(workbench, runs, options.slice, options.clips, card)
    traces, clips, videos = (len(bundle.data["traces"]), len(bundle.data["clips"]), len(bundle.videos))
    size = f"about {bundle.bytes / 1e6:,.1f} MB" + (" and a run card of about 5 MB" if card else "")
    summary = f"{traces:,} traces of {clips:,} clips, {videos:,} videos ({options.clips}), {size}"
    console.print(summary, markup=False, soft_wrap=True)
    _say_left_out(bundle.left_out)
    if options.dry_run:
        console.print("Nothing was written (--dry-run).")
        return 0
    _say_left_out(bundle.write(target))
    console.print(f"Open it, or put it on any web server: {target / 'index.html'}", markup=False, soft_wrap=True)
    return 0


def _say_left_out(names_by_why: Mapping[str, Sequence[str]]) -> None:
    for why, names in names_by_why.items():
        line = f"Videos left out, since {why}: {len(names):,} ({', '.join(names)})"
        console.print(line, markup=False, soft_wrap=True)


def add_review(commands) -> None:
    about = "what people say of traces: out and in, corrected labels, the next cold start, what to label next"
    verbs = commands.add_parser("review", help=about, example="review report").add_verbs()

    def verb(name: str, about: str, run: Callable, example: str) -> Parser:
        parser = common(verbs.add_parser(name, help=about, example=f"review {name} {example}"))
        parser.set_defaults(run=run)
        return parser

    example = "when --filter split=test --ask spans --guidelines guidelines.txt"
    new = verb("open", "a task of the traces that a filter finds", _open_task, example)
    new.add_argument("task", metavar="TASK")
    about = "the address of the page Traces with its filters, or what stands behind its ? (default: all)"
    new.add_argument("--filter", metavar="QUERY", default="", help=about)
    about = "label, verdict, failing, note or spans (repeatable; default: all but spans)"
    new.add_argument("--ask", action="append", default=[], metavar="QUESTION", help=about)
    new.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help="default: those of the dataset")
    new.add_argument("--order", default="random", help="as on the page: entropy, margin, given … (default: random)")
    new.add_argument("--reviewers", type=int, default=1, metavar="N", help="of each trace (default: 1)")
    new.add_argument("--gold", type=int, default=0, metavar="N", help="hidden items whose clips' labels count as known")
    about = "tell reviewers at once what is right on a gold item; an answer given stays"
    new.add_argument("--feedback", action="store_true", help=about)
    new.add_argument("--blind", action="store_true", help="hide the model's label")
    new.add_argument("--guidelines", metavar="FILE", help="a text that stands on the desk")
    new.add_argument("--by", metavar="NAME", help="who leads it (default: your account's name)")

    out = verb("export", "a task's answers as a file", _export, "first-look answers.csv")
    back = verb("import", "answers from a file, as new events that name it", _import_answers, "first-look answers.csv")
    for parser in (out, back):
        parser.add_argument("task", metavar="TASK")
        parser.add_argument("file", metavar="FILE")
        about = "default: what the file's ending says; .json is Label Studio's, .zip or .xml CVAT's"
        parser.add_argument("--form", choices=("jsonl", "csv", "parquet", "label-studio", "cvat"), help=about)
    about = "all events of all tasks as readable text, a line of JSON each"
    verb("log", about, _log, "events.jsonl").add_argument("file", metavar="FILE")
    about = "Label Studio: what goes before a video's path (default: where it serves local storage)"
    out.add_argument("--videos", metavar="PREFIX", help=about)
    back.add_argument("--source", help="where it comes from (default: the file's name)")

    labels = verb("labels", "corrected labels as a new version of the dataset", _relabel, "first-look --dry-run")
    about = "accepted and corrected traces as a teacher for the cold start"
    cold = verb("coldstart-set", about, _coldstart_set, "first-look")
    about = "a teach run whose kept traces come too, but for those that people refused"
    cold.add_argument("--onto", metavar="RUN", help=about)
    about = "progress, agreement, gold items, model against people, suspected label errors"
    report = verb("report", about, _review_report, "--split validation")
    report.add_argument("--split", default="test", help="whose labels to doubt")
    for parser in (labels, cold, report):
        parser.add_argument("tasks", nargs="*", metavar="TASK", help="review tasks (default: all)")

    more = verb("next", "the clips whose labels would teach most", _next_batch, "--size 20 --task second-look")
    more.add_argument("--size", type=int, default=50)
    about = "only of this split (repeatable; default: all but test)"
    more.add_argument("--split", action="append", default=[], help=about)
    more.add_argument("--task", metavar="NAME", help="open a task of this name with them")
    more.add_argument("--by", metavar="NAME", help="who leads that task (default: your account's name)")


def _reviewed(options):
    """The functions behind the verbs, the workbench with its index made anew, and the settings."""
    from deepintuit_analysis.review import commands

    workbench, settings = opened(options, Workbench)
    workbench.refresh()
    return commands, workbench, settings


def _open_task(options) -> None:
    review, workbench, settings = _reviewed(options)
    by, dataset = options.by or getpass.getuser(), settings.clips.dataset or None
    review.open_task(
        workbench, console, options.task, options.filter, dataset, options.labels, options.gold, by, options.dry_run,
        options.guidelines, options.ask, order=options.order, reviewers=options.reviewers, blind=options.blind,
        feedback=options.feedback,
    )  # fmt: skip


def _export(options) -> None:
    review, workbench, _ = _reviewed(options)
    review.export(workbench, console, options.task, options.file, options.form, options.videos, options.dry_run)


def _import_answers(options) -> None:
    review, workbench, _ = _reviewed(options)
    review.bring_in(workbench, console, options.task, options.file, options.form, options.source, options.dry_run)


def _log(options) -> None:
    review, workbench, _ = _reviewed(options)
    review.log(workbench, console, options.file, options.dry_run)


def _relabel(options) -> None:
    review, workbench, settings = _reviewed(options)
    review.labels(workbench, console, with_dataset(settings), options.tasks, options.dry_run)


def _coldstart_set(options) -> None:
    review, workbench, settings = _reviewed(options)
    review.coldstart_set(workbench, console, with_dataset(settings), options.tasks, options.onto, options.dry_run)


def _next_batch(options) -> None:
    review, workbench, settings = _reviewed(options)
    by = options.by or getpass.getuser()
    review.next_batch(
        workbench, console, with_dataset(settings), options.size, options.split, options.task, by, options.dry_run
    )


def _review_report(options) -> None:
    review, workbench, settings = _reviewed(options)
    review.report(workbench, console, with_dataset(settings).clips.dataset or None, options.tasks, options.split)
