"""How reviews look: the list of tasks, the form that opens one, the desk where items are judged, and a lead's view.

Pure functions of tasks and events: what `templates/review` shows, which `static/review.js` moves.

A blind task hides what the model answered: the answer's segment, and every place where the trace names one of the
labels. The true label and the clip's file name, which may tell it, are shown to nobody who judges.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from deepintuit_analysis.review import ORDERS, ReviewTask, import_export, spans
from deepintuit_analysis.review.agreement import Agreement, SpanAgreement, agreement, rating_matrix
from deepintuit_analysis.review.quality import PROCESSES, Blame, GoldRecord, Weighed
from deepintuit_app import prose
from deepintuit_app.html import render
from deepintuit_app.slices import NONE_SAVED

ORDER_WORDS = {
    "entropy": "uncertain first (entropy)", "margin": "uncertain first (margin)",
    "changed": "changed by calibration first", "traces": "clips whose traces disagree first",
    "mismatch": "labels that do not follow from the trace first",
    "reviewers": "where reviewers differ so far", "doubted": "labels that are probably wrong first",
    "random": "at random", "given": "as listed",
}  # fmt: skip
GOLD_LINE = "3f0c9a…, theft, wrong, 2, seeing"
STANDING = {
    "extra": "Saved. The item before this one had all the answers it needs by then: yours is kept as an extra, which "
    "leads see and agreement leaves out.",
    "decided": "Saved. A lead had decided the item before this one by then: yours is kept, and does not change that.",
}
"""What is said when an answer comes too late to settle its item, by `Reviews.standing`."""
_FORMS = (
    ("csv", "CSV"),
    ("jsonl", "JSONL"),
    ("parquet", "Parquet"),
    ("label-studio", "Label Studio"),
    ("interface", "its interface"),
    ("cvat", "CVAT"),
)
_MODEL = (("provisional", "provisional label"), ("calibrated", "calibrated label"))


def tasks_html(
    tasks: Sequence[tuple[ReviewTask, Mapping[str, Any]]], closed: set[str], user: str, damage: str = ""
) -> str:
    """Tasks with how far they are, the newest first, behind what is said of `damage`."""
    return render("review/tasks.html", tasks=tasks, closed=closed, who=user, damage=damage, order=_order)


def _order(order: str | Mapping[str, float]) -> str:
    if isinstance(order, str):
        return ORDER_WORDS.get(order, order)
    return "mixed: " + ", ".join(f"{ORDER_WORDS.get(name, name)} {share:g}" for name, share in order.items())


def form_html(
    slices: Sequence[str],
    runs: Sequence[tuple[str, int]],
    datasets: Sequence[str],
    reviewer: str,
    opened: bool,
    query: str = "",
    slice_name: str = "",
) -> str:
    """The form that opens a task, with the address of traces and the slice that a link brought."""
    names = dict.fromkeys([*slices, *filter(None, [slice_name])])
    return render(
        "review/form.html",
        slices=[("", "Any" if names else NONE_SAVED), *((name, name) for name in names)],
        runs=[("", "Any"), *((run, f"{run} ({n:,} traces)") for run, n in runs)],
        datasets=[(name, name) for name in datasets],
        orders=[*((name, ORDER_WORDS[name]) for name in ORDERS), ("mixture", "a mixture of these")],
        gold_line=GOLD_LINE,
        who=reviewer,
        opened=opened,
        query=query,
        chosen=slice_name,
    )


def desk_html(task: ReviewTask, decide: bool = False, definitions: Mapping[str, str] | None = None) -> str:
    """The desk without an item: player, trace and questions, to be filled by the script again and again.
    `definitions`: of the labels, where they have some."""
    texts = {label: (definitions or {})[label] for label in task.labels if label in (definitions or {})}
    return render("review/desk.html", task=task, decide=decide, definitions=texts)


def finish_html(
    task: ReviewTask,
    waiting: bool,
    answers: Sequence[Mapping[str, Any]],
    tasks: Sequence[tuple[str, Mapping[str, Any]]],
    undecided: int | None,
) -> str:
    """What stands on the desk when nothing is left: one's own `answers` counted, whether the task is `waiting` for
    judgements of others, the other `tasks` that want some, and for a lead how many items are `undecided` (None for
    others)."""
    counts = {
        question: Counter(answer[question] or "unsure" for answer in answers if question in answer).most_common()
        for question in ("label", "verdict")
    }
    notes = sum(bool(answer.get("note")) for answer in answers)
    marked = sum(len(answer.get("spans") or ()) for answer in answers)
    said = {"judged": len(answers), "counts": counts, "notes": notes, "spans": marked}
    return render("review/finish.html", task=task, waiting=waiting, said=said, tasks=tasks[:5], undecided=undecided)


def gold_html(truth: Mapping[str, Any], answers: Mapping[str, Any], marks: Mapping[str, bool]) -> str:
    """What is right on a gold item beside what a reviewer answers, question by question."""

    def words(question: str, answer: Any) -> str:
        if question != "failing":
            return str(answer or "unsure")
        answer = answer or {}
        sentence = [f"sentence {answer['sentence'] + 1}"] if "sentence" in answer else []
        return ", ".join([*sentence, *([answer["in"]] if "in" in answer else [])]) or "none"

    rows = [(name, words(name, truth[name]), words(name, answers.get(name)), right) for name, right in marks.items()]
    return render("review/gold.html", rows=rows, right=all(marks.values()))


def item_html(
    task: ReviewTask, fact: Mapping[str, Any] | None, row: Any, clip: Mapping[str, Any] | None, grammar: str
) -> str:
    """The trace of an item and, unless the task is blind, what the model said of the clip."""
    trace = ""
    if row is not None and row["text"].strip():
        times = row["frame_times"] if hasattr(row["frame_times"], "__len__") else None
        text = task.covered(row["text"]) if task.blind else row["text"]
        trace = prose.trace_html(text, grammar, times, (clip or {}).get("seconds"))
    return render("review/item.html", task=task, fact=fact, row=row, trace=trace)


def said_html(task: ReviewTask, rows: Sequence[Mapping[str, Any]]) -> str:
    """What reviewers said of an item, for a lead; `rows` as `import_export.rows` gives them."""
    return render("review/said.html", task=task, rows=_shown(rows))


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their spans in words."""
    return [{**row, "when": spans.words(row["spans"])} for row in rows]


def lead_html(
    task: ReviewTask,
    progress: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    gold: Sequence[GoldRecord],
    ratings: Sequence[tuple[str, str, Any]],
    model: Mapping[str, Sequence[Agreement]],
    disputed: Sequence[tuple[str, float]],
    closed: bool,
    blame: Blame | None = None,
    doubted: Sequence[Any] = (),
    votes: Weighed | None = None,
    marked: SpanAgreement | None = None,
) -> str:
    """Agreement, gold items, doubted labels, what is disputed and decided, notes and skips, files out and in, closing.
    `rows`: what is in force, as `import_export.rows` gives it; `doubted`: as `quality.doubted` does."""
    rows = _shown(rows)
    judged, skipped, adjudicated = (
        [row for row in rows if row["kind"] == kind] for kind in ("judged", "skipped", "adjudicated")
    )
    rows_of = defaultdict(list)
    for row in judged:
        rows_of[row["trace_id"]].append(row)
    verdicts = Counter(row["verdict"] or "unsure" for row in judged).most_common()
    failing = Counter(row["failing_in"] for row in judged if row["failing_in"]).most_common()
    return render(
        "review/lead.html",
        task=task,
        progress=progress,
        judged=judged,
        adjudicated=adjudicated,
        extra=sum(row["extra"] for row in rows),
        forms=_FORMS,
        accept=",".join(import_export.FORMS.values()),
        people=_people(judged, skipped, gold, votes.quality if votes else {}),
        weighed=votes,
        marked=marked,
        between_people=_between_people(ratings, list(task.labels)),
        model=[
            (f"{words}: {numbers.label or 'all classes'}", numbers)
            for kind, words in _MODEL
            for numbers in model[kind]
            if numbers.items
        ]
        if model
        else None,
        verdicts=[*verdicts, *((f"fails in {process}", n) for process, n in failing)],
        blame=blame,
        processes=PROCESSES,
        disputed=disputed,
        doubted=doubted,
        closed=closed,
        listed=(
            ("Disputed items, the most disputed first", [row for item, _ in disputed[:50] for row in rows_of[item]]),
            ("Decided by leads, the newest last", adjudicated[-50:]),
            (
                "Notes, spans and skips, the newest last",
                [row for row in rows if row["note"] or row["when"] or row["kind"] == "skipped"][-50:],
            ),
        ),
    )


def _people(
    judged: Sequence[Mapping], skipped: Sequence[Mapping], gold: Sequence[GoldRecord], quality: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row per reviewer; gold items in two halves of time, so that drift shows."""
    records = {record.reviewer: record for record in gold}
    judgements, skips = (Counter(row["reviewer"] for row in rows) for rows in (judged, skipped))
    last = {row["reviewer"]: row["time"] for row in sorted([*judged, *skipped], key=lambda row: row["time"])}
    return [
        {
            "name": name,
            "judged": judgements[name],
            "skipped": skips[name],
            "gold": records.get(name),
            "quality": quality.get(name, math.nan),
            "last": last[name],
        }
        for name in sorted(last)
    ]


def _between_people(ratings: Sequence[tuple[str, str, Any]], labels: list[str]) -> list[tuple[str, Agreement]]:
    """Agreement of all classes and of each; nothing where no item has two labels."""
    matrix, _, _ = rating_matrix(ratings, labels)
    if not len(matrix) or not ((matrix >= 0).sum(1) >= 2).any():
        return []
    return [(row.label or "all classes", row) for row in agreement(matrix, labels, draws=300)]
