"""What `deepintuit review …` does: reviews out and in, corrected labels, the next cold start, the next batch, a report.

Run it:  deepintuit review report --dry-run
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.errors import DataError
from deepintuit.metrics import Estimate
from deepintuit.texts import decoded
from deepintuit_analysis import Workbench
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.numbers import number, with_interval
from deepintuit_analysis.review import feedback, import_export, quality
from deepintuit_analysis.review.agreement import agreement, rating_matrix, span_agreement
from deepintuit_analysis.review.log import EventLog, stored
from deepintuit_analysis.review.reviews import Reviews
from deepintuit_analysis.review.tasks import QUESTIONS, known_items, labels_of, task_of

_ROWS = 20  # of a list that is printed


def export(
    workbench: Workbench, console: Console, task: str, file: str, form: str | None, videos: str | None, dry: bool
) -> None:
    """What is in force in a task, as a file; for Label Studio with its labelling interface beside it (`.xml`)."""
    reviews, target = quality.reading(workbench.reviews), Path(file)
    form = form or import_export.form_of(target)
    rows = import_export.rows(reviews, task)
    if form == "label-studio":
        content = import_export.label_studio(workbench, reviews, task, videos=videos or import_export.LOCAL_FILES)
        files = {target: content, target.with_suffix(".xml"): import_export.label_config(reviews.task(task)).encode()}
    elif form == "cvat":
        files = {target: import_export.cvat(workbench, reviews, task)}
    else:
        files = {target: import_export.dump(rows, form)}
    _write(console, files, dry)
    _say(console, f"{len(rows)} answers of {task!r}.")


def log(workbench: Workbench, console: Console, file: str, dry: bool) -> None:
    """All events of all tasks as readable text, a line of JSON each: an `events.jsonl` as earlier versions wrote it,
    which is read in where it lies in the `reviews` folder of a workbench."""
    lines = [line for _, line in stored(workbench.reviews)]
    _write(console, {Path(file): b"".join(line + b"\n" for line in lines)}, dry)
    _say(console, f"{len(lines)} events.")


def _write(console: Console, files: Mapping[Path, bytes], dry: bool) -> None:
    for path in files:
        if path.exists():
            raise DataError(f"{str(path)!r} exists", "an export replaces no file", "name another one, or move it away")
    for path, content in files.items():
        if not dry:
            path.write_bytes(content)
        _say(console, f"{path}: {len(content):,} bytes{', not written (--dry-run)' if dry else ''}")


def bring_in(
    workbench: Workbench, console: Console, task: str, file: str, form: str | None, source: str | None, dry: bool
) -> None:
    """The rows of a file as new events, which say `source` (by default the file's name)."""
    content = _content(file)
    reviews = quality.reading(workbench.reviews)
    places = import_export.places(workbench, reviews, task)
    rows = import_export.load(content, form or import_export.form_of(file), places)
    if dry:
        outcome = import_export.bring_in(reviews, task, rows, source or Path(file).name, dry=True)
    else:
        with EventLog(workbench.reviews) as log:
            outcome = import_export.bring_in(Reviews(log), task, rows, source or Path(file).name)
        workbench.refresh()
    _say(console, f"{outcome}{' Nothing was written (--dry-run).' if dry else ''}")
    _list(console, ["trace", "reviewer"], outcome.clashes)


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"{file!r} cannot be read", str(error.strerror), "name another file") from error


def _text(file: str) -> str:
    try:
        return decoded(_content(file)).strip()
    except ValueError as error:
        raise DataError(f"{file!r} is no text", str(error), "save it as UTF-8") from error


def labels(workbench: Workbench, console: Console, settings: Config, tasks: Sequence[str], dry: bool) -> None:
    """Corrected labels as a new version of the manifest."""
    reviews = quality.reading(workbench.reviews)
    fixes = feedback.corrections(workbench, reviews, tasks or quality.names(reviews), settings.clips.dataset)
    rows = [(c.clip_id, c.split or "", c.before, c.after, ", ".join(c.by)) for c in fixes.changed]
    _list(console, ["clip", "split", "was", "is", "said by"], rows)
    _list(console, ["contested: for a lead to adjudicate"], [(clip,) for clip in fixes.contested])
    _say(console, f"{len(rows)} labels corrected, {fixes.confirmed} confirmed, {len(fixes.contested)} contested.")
    if dry or not fixes.changed:
        _say(console, "Nothing was saved" + (" (--dry-run)." if dry else "."))
        return
    feedback.relabel(workbench, fixes)
    workbench.refresh()
    _say(console, f"{fixes.dataset!r} has a new version; the former one is kept, and runs on it stay as they are.")


def coldstart_set(
    workbench: Workbench, console: Console, settings: Config, tasks: Sequence[str], onto: str | None, dry: bool
) -> None:
    """Accepted and corrected traces as a teacher for `deepintuit coldstart`."""
    reviews = quality.reading(workbench.reviews)
    outcome = feedback.coldstart_set(workbench, reviews, tasks or quality.names(reviews), settings, onto=onto, dry=dry)
    tally = outcome if isinstance(outcome, dict) else outcome.summary
    _say(
        console,
        f"{tally['kept']} traces of {tally['clips_kept']} of {tally['clips']} cold-start clips: "
        f"{tally['accepted']} accepted, {tally['corrected']} corrected, {tally['onto']} of {onto or 'no other run'}.",
    )
    _list(console, ["left out", "traces"], tally["dropped"].items())
    if isinstance(outcome, dict):
        _say(console, "Nothing was written (--dry-run).")
    else:
        workbench.refresh()
        _say(console, f"{outcome.id} is finished. Train on it: deepintuit coldstart --teacher {outcome.id}")


def next_batch(
    workbench: Workbench,
    console: Console,
    settings: Config,
    size: int,
    splits: Sequence[str],
    task: str | None,
    by: str,
    dry: bool,
) -> None:
    """The clips to label next; with `task`, as a new task of that name, `by` its lead."""
    dataset = settings.clips.dataset
    reviews = quality.reading(workbench.reviews)
    batch = feedback.next_batch(workbench, reviews, dataset, size, splits=splits, seed=settings.seed)
    columns = ["clip_id", "split", "group", "predicted", "margin"]
    _list(console, columns, ((*row[:-1], f"{row[-1]:.3f}") for row in batch[columns].itertuples(index=False)))
    _say(console, f"{len(batch)} clips of {dataset!r} that nobody judged, the least certain first.")
    if task is None or dry:
        _say(console, "No task was opened" + (" (--dry-run)." if dry else "; --task NAME opens one."))
        return
    words = Manifest.load(workbench.path, dataset).labels.labels
    new_task = task_of(workbench, task, batch["trace_id"].dropna().tolist(), "given", labels=words)
    with EventLog(workbench.reviews) as log:
        Reviews(log).open(new_task, by)
    _say(console, f"The task {task!r} holds them; {by} leads it.")


def open_task(
    workbench: Workbench,
    console: Console,
    name: str,
    query: str,
    dataset: str | None,
    labels: Sequence[str],
    gold: int,
    by: str,
    dry: bool,
    guidelines: str | None,
    questions: Sequence[str],
    **settings: Any,
) -> None:
    """A task of the traces that a filter finds, as the page Traces has it in its address, of `dataset` where one is
    named. `guidelines`: a text file; `settings` as of `ReviewTask`."""
    filters = TraceFilter.from_address(query)
    filters = replace(filters, dataset=filters.dataset or dataset)
    labels, questions = list(labels) or labels_of(workbench, filters), questions or QUESTIONS[:4]
    gold_items = known_items(workbench, filters, gold, labels if "label" in questions else [])
    settings |= {"guidelines": _text(guidelines) if guidelines else "", "questions": questions}
    task = task_of(workbench, name, filters, gold=gold_items, labels=labels, **settings)
    if not dry:
        with EventLog(workbench.reviews) as log:
            Reviews(log).open(task, by)
    asks = ", ".join(task.questions)
    verb = "would hold" if dry else "holds"
    _say(console, f"The task {name!r} {verb} {len(task.items)} traces, {len(gold_items)} of them gold; it asks {asks}.")


def report(workbench: Workbench, console: Console, dataset: str | None, tasks: Sequence[str], split: str) -> None:
    """Progress, agreement, gold items, the model against people and disputes of each task; then suspected labels."""
    reviews = quality.reading(workbench.reviews)
    for name in tasks or quality.names(reviews):
        task, tally = reviews.task(name), reviews.progress(name)
        extra = len(reviews.extras(name))
        _say(
            console,
            f"\n{name}: {tally['done']} of {tally['asked']} judgements, {tally['complete']} of {tally['items']} "
            "traces complete" + (f"; {extra} extra, left out of agreement" if extra else ""),
        )
        _list(console, ["reviewer", "judgements"], tally["by"].items())
        if task.reviewers > 1 and "label" in task.questions:
            matrix, _, _ = rating_matrix(reviews.ratings(name), task.labels)
            _agreement(console, "Between people", agreement(matrix, task.labels))
            _weighed(console, quality.weighed(reviews, name))
        if "spans" in task.questions and (spans := span_agreement(reviews.ratings(name, "spans"))):
            _say(
                console,
                f"Spans of time between people, {spans.pairs} pairs on {spans.items} traces: F1 at IoU 0.5 "
                f"{_span(spans.f1)}, IoU {_span(spans.iou)}",
            )
        for kind, rows in quality.model_against_people(reviews, workbench, name).items():
            _agreement(console, f"The model ({kind}) against people", rows)
        if blame := quality.seeing_or_reasoning(reviews, workbench, name):
            _say(
                console,
                f"Seeing or reasoning: people against the judge of the observation, {blame.n} traces where "
                f"both name one; agreement {_span(blame.found.percent)}, kappa {_span(blame.found.kappa)}; "
                f"{blame.people_only} fail for people only, {blame.judge_only} for the judge only",
            )
            _list(
                console,
                ["people", *(f"judge: {process}" for process in quality.PROCESSES)],
                ([process, *row] for process, row in zip(quality.PROCESSES, blame.counts_2_2.tolist())),
            )
        gold = [
            (
                record.reviewer,
                record.n,
                _span(record.share),
                _span(record.early),
                _span(record.late),
                number(record.p, 1, 3),
                ", ".join(f"{question} {share.value:.2f}" for question, share in record.by.items()),
            )
            for record in quality.gold_records(reviews, name)
        ]
        heads = ["on gold items", "n", "right", "first half", "second half", "p that they are alike", "each"]
        _list(console, heads, gold)
        _list(
            console,
            ["disputed", "share of pairs"],
            [(item, f"{far:.2f}") for item, far in quality.disputed(reviews, name)],
        )
    if dataset is None:
        return
    try:
        suspects = quality.suspects(workbench, dataset, split)
    except DataError as error:
        _say(console, f"\nNo label is doubted: {error}")
        return
    doubted = suspects.rows[suspects.rows["suspected"]]
    _say(
        console,
        f"\nSuspected label errors of {dataset!r}, {split}: {len(doubted)} of {len(suspects.rows)} clips, "
        f"estimated {suspects.noise:.1%} wrong ({suspects.run}).",
    )
    _list(
        console,
        ["clip", "label", "likely", "p of the label"],
        ((row.clip_id, row.given, row.likely, f"{row.self_confidence:.3f}") for row in doubted.itertuples()),
    )


def _agreement(console: Console, title: str, rows: Iterable[Any]) -> None:
    lines = [
        (row.label or "all", row.items, *map(_span, (row.percent, row.kappa, row.alpha))) for row in rows if row.items
    ]
    if lines:
        _say(console, title)
    _list(console, ["class", "traces", "agreement", "kappa", "alpha"], lines)


def _weighed(console: Console, votes: quality.Weighed | None) -> None:
    if votes is None:
        _say(console, "No two people gave one trace the same label: their quality cannot be told.")
        return
    people = sorted(votes.quality.items(), key=lambda pair: (math.isnan(pair[1]), -pair[1]))
    _list(console, ["reviewer", "quality by what others say"], ((name, number(value, 1, 3)) for name, value in people))
    _say(console, f"{len(votes.other)} of {votes.traces} traces have another label by quality than by majority.")
    _list(
        console,
        ["trace", "majority", "by quality"],
        ((trace, a or "–", b or "–") for trace, (a, b) in votes.other.items()),
    )


def _span(estimate: Estimate) -> str:
    # Draws that are all the same say nothing about how sure a number is.
    return number(estimate.value, 1, 2) if estimate.low == estimate.high else with_interval(estimate, 1, 2)


def _plain(value: Any) -> Text:
    """People's texts as text: neither markup nor what a terminal would obey."""
    return Text("".join(c if c.isprintable() or c == "\n" else "�" for c in str(value)))


def _say(console: Console, text: str) -> None:
    console.print(_plain(text), soft_wrap=True)


def _list(console: Console, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    rows = list(rows)
    if not rows:
        return
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows[:_ROWS]:
        table.add_row(*map(_plain, row))
    console.print(table)
    if len(rows) > _ROWS:
        console.print(f"… and {len(rows) - _ROWS} more")
