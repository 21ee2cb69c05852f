"""`deepintuit predict`: answers to clips without labels, once or as they come into a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import sleep, time
from typing import Any

from rich.table import Table

from deepintuit import addresses, ranks
from deepintuit.command import common, console, ended, opened, positive, shard_option
from deepintuit.errors import ConfigError, DataError

_SHOWN = 20
"""Rows that the terminal shows where no file is asked for."""


def add(commands) -> None:
    """The command's parser."""
    help_text, example = "answer clips without labels: a folder, files or a table", "predict videos --system RUN"
    parser = common(commands.add_parser("predict", help=help_text, example=example, settings="predict"))
    parser.add_argument("inputs", nargs="+", metavar="CLIPS", help="folders, video files, tables with a path column")
    about = "a calibrate run, or a coldstart or grpo run (its calibrator); `zero-shot` for a server's own model"
    parser.add_argument("--system", metavar="RUN", required=True, help=about)
    parser.add_argument("--out", metavar="FILE", help="where the answers go: .csv, .jsonl or .parquet")
    abstaining(parser)
    parser.add_argument("--name", default="", help="what the clips are called in the workbench")
    parser.add_argument("--path-column", metavar="NAME", default="path", help="a table's column of video files")
    parser.add_argument("--videos", metavar="DIR", help="what a table's paths are relative to (default: its folder)")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, help="files looked at side by side")
    shard_option(parser, "answer those")
    parser.add_argument("--watch", action="store_true", help="go on with what comes into the folder, until Ctrl-C")
    parser.add_argument("--every", type=float, metavar="SECONDS", default=10.0, help="with --watch: between two looks")
    parser.set_defaults(run=_predict)


def abstaining(parser) -> None:
    """The options that say when an answer abstains (`Predictor.rules`)."""
    parser.add_argument("--threshold", type=float, metavar="P", help="abstain where the probability is below P")
    parser.add_argument(
        "--risk", type=float, metavar="R", help="abstain as was chosen on validation clips to err on at most R"
    )
    parser.add_argument(
        "--false-alarms",
        type=float,
        metavar="R",
        default=0.05,
        help="abstain on clips unlike those that were learnt from, taking at most R of usual clips for such; 0: never "
        "(default 0.05)",
    )


def _predict(options) -> int:
    from deepintuit_clips.predict import Predictor
    from deepintuit_clips.predict.table import form_of

    addresses.refuse_address(options.out, "where answers go")
    out = Path(options.out) if options.out else None
    if out is not None:
        form_of(out)
    if options.watch and (out is None or not all(map(os.path.isdir, options.inputs)) or options.every <= 0):
        raise ConfigError(
            f"--watch of {', '.join(options.inputs)}",
            "it looks into folders every few seconds, and writes their answers to a file",
            "Name folders, --out FILE, and --every above 0",
        )
    shard = ranks.Shard.of(options.shard)
    if shard and options.watch:
        shard.refuse("with --watch clips are those of one process")
    workbench, settings = opened(options)
    predictor = Predictor(workbench, options.system, settings)
    rules = predictor.rules(options.threshold, options.risk, options.false_alarms)
    say_of(predictor, options, rules)
    if options.dry_run:
        return _dry(predictor, options)
    if options.watch:
        return _watch(predictor, options, out, rules)
    clips = ranks.first(lambda: predictor.find(options.inputs, **_how(options)))
    _tell_findings(clips)
    run = predictor.run(clips, progress=not options.quiet, shard=shard)
    if run.waits or not ranks.leads():
        return ended(run)
    answers = predictor.answers(run, clips, rules)
    if out is not None:
        answers.write(out)
    else:
        _show(next(answers.tables()), len(clips.given))
    ended(run)
    _count(answers, out)
    return 0


def _how(options) -> dict[str, Any]:
    return {
        "name": options.name,
        "path_column": options.path_column,
        "videos": options.videos,
        "jobs": options.jobs,
        "progress": not options.quiet,
    }


def _say(text: str) -> None:
    if ranks.leads():
        print(text, file=sys.stderr)


def say_of(predictor, options, rules) -> None:
    """What a reader of the answers must know of the system."""
    if predictor.departs:
        _say(f"Other than in training: {', '.join(predictor.departs)}")
    if predictor.calibrator is None:
        _say(
            f"{predictor.system} has no calibrator: probabilities are those of its own answers, and not "
            "calibrated. `deepintuit calibrate` trains one."
        )
    elif not predictor.weights:
        _say(
            "How far clips are from those that were learnt from is not measured: server.compare=true loads the weights."
        )
    elif predictor.distance is None:
        _say(
            f"How far clips are from those that {predictor.calibrator.id} learnt from is not measured: it is older. "
            "Repeat its `deepintuit calibrate`, which adds that and trains nothing."
        )
    elif 0 < options.false_alarms < predictor.distance.least:
        n = len(predictor.distance.held_out_V)
        _say(
            f"{n} validation clips promise no fewer false alarms than {predictor.distance.least:.1%}, so no clip is "
            f"taken for unlike those that were learnt from. Give --false-alarms {predictor.distance.least:.3f} or more."
        )
    if rules.least == float("inf"):
        n = predictor.ways["label_likelihood"]["n"]
        _say(f"No threshold kept a risk of {options.risk:g} on the {n} validation clips: it abstains on every clip.")


def _tell_findings(clips) -> None:
    if clips.report.findings:
        _say(str(clips.report))


def _dry(predictor, options) -> int:
    predictor.workbench.refuse_example()
    with_rows = predictor.listed(options.inputs, options.path_column, options.videos)[0]
    console.print(f"deepintuit predict with {predictor.system} in {predictor.workbench.path}", markup=False)
    reasoner, server = predictor.reasoner, predictor.config.server
    console.print(f"  reasoner: {reasoner.id if reasoner else '(none)'}", markup=False)
    if server.model:
        console.print(f"  written by: {server.model} at {server.base_url}", markup=False)
    console.print(f"  calibrator: {predictor.calibrator.id if predictor.calibrator else '(none)'}", markup=False)
    dataset = options.name or predictor.dataset_of(options.inputs)
    console.print(f"  {len(with_rows)} clips, to be called {dataset!r}", markup=False)
    console.print("Nothing was run (--dry-run).")
    return 0


def _show(rows, count: int) -> None:
    table = Table("clip", "label", "probability", "abstain", "reason")
    for row in rows.slice(0, _SHOWN).to_pylist():
        most = max((p for name, p in row.items() if name.startswith("p_") and p is not None), default=None)
        cells = (row["path"], row["label"] or "–", "" if most is None else f"{most:.3f}")
        cells += ("" if row["abstain"] is None else "yes" if row["abstain"] else "no",)
        cells += (row["reason"] or ("unlike the clips that were learnt from" if row["unlike"] else ""),)
        table.add_row(*(_plain(cell) for cell in cells))
    console.print(table)
    if count > _SHOWN:
        console.print(f"… and {count - _SHOWN} more: all of them, with their traces, with --out FILE")


def _plain(text: str):
    """A cell as it is: no markup, and what is no printable character escaped."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def _count(answers, out: Path | None) -> None:
    counts = answers.counts()
    parts = [f"{counts['answered']} of {counts['given']} clips answered"]
    if counts["abstained"]:
        unlike = f" ({counts['unlike']} unlike the clips that were learnt from)" if counts["unlike"] else ""
        parts.append(f"{counts['abstained']} of them abstained{unlike}")
    if counts["unanswered"]:
        parts.append(f"{counts['unanswered']} without an answer, each with its reason")
    _say(", ".join(parts) + (f": {out}" if out else "") + ".")


class Settled:
    """Which files of a folder are whole, as far as can be told: those that have not changed since the last look, and
    at the first look those that were not written to for `every` seconds."""

    def __init__(self, every: float):
        self._every, self._seen, self._first = every, {}, True

    def ready(self, paths: Sequence[str | Path], now: float | None = None) -> dict[str, tuple[int, int]]:
        """Those of these files, with their sizes and times; another look will tell of the others."""
        now, stats, ready = time() if now is None else now, {}, {}
        for path in map(os.fspath, paths):
            with suppress(OSError):
                stat = os.stat(path)
                stats[path] = stat.st_size, stat.st_mtime_ns
                quiet = self._first and abs(now - stat.st_mtime) >= self._every
                if quiet or self._seen.get(path) == stats[path]:
                    ready[path] = stats[path]
        self._seen, self._first = stats, False
        return ready


def _watch(predictor, options, out: Path, rules) -> int:
    from deepintuit_clips import VIDEO_SUFFIXES, files

    settled, done_files, unreadable = Settled(options.every), {}, {}
    run = None
    name = options.name or predictor.dataset_of(options.inputs)
    try:
        while True:
            paths = [path for folder in options.inputs for path in files(_folder(folder))]
            ready = settled.ready([path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES])
            if ready.items() - done_files.items():
                done_files |= ready
                clips = predictor.find([*ready], **{**_how(options), "name": name}, watch=True)
                run = run or predictor.begin(clips, watch=True)
                predictor.answer(run, clips, unreadable, progress=not options.quiet, last=False)
                answers = predictor.answers(run, clips, rules, unreadable)
                answers.write(out)
                _count(answers, out)
            sleep(options.every)
    except KeyboardInterrupt:
        _say("Stopped. What was answered is kept; the same command goes on from there.")
        return 0
    finally:
        if run is not None:
            run.close()


def _folder(path: str) -> Path:
    if not os.path.isdir(path):
        raise DataError(
            f"the folder {path!r} is gone", "it was being watched", "Rerun the command when it is there again"
        )
    return Path(path)
