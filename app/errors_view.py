"""The Errors page as HTML and figures: pure functions of an `analysis.Analysis`.

Every count that stands for clips is a button with `data-set` (the hidden field of the page) and `data-value` (the
cell); `app.js` does the rest. Numbers and intervals are the `Result`'s, as on the run card. `errors_honesty` has
confidence and its figures, `errors_clips` the drawer and the choice of clips behind a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from deepintuit.labels import NONE_LABEL
from deepintuit.metrics import Estimate
from deepintuit.tables import FORMATS
from deepintuit_analysis.index import answers
from deepintuit_analysis.numbers import number, p_value, percent, within
from deepintuit_analysis.report.attribution import carriers
from deepintuit_analysis.report.figures import few_of, most_confused
from deepintuit_analysis.report.grounding import Grounding
from deepintuit_analysis.report.results import CONTROLS, Result
from deepintuit_analysis.report.text import column_name, shown
from deepintuit_analysis.report.worst import WORSE, tried, words_of
from deepintuit_app import prose
from deepintuit_app.analysis import Analysis, Choice
from deepintuit_app.html import address, empty, render
from deepintuit_app.html import heading as page_heading

_PROMISE = "Where a system fails, class by class. Every underlined count opens the clips behind it."
HEAD = page_heading("Errors", _PROMISE, "soft")
NO_ANSWERS = empty(
    "No system was evaluated yet.",
    "Score one on the test clips, and this page shows where it fails:",
    "deepintuit demo                      # everything, on the embedded world\n"
    "deepintuit evaluate --reasoner RUN --calibrator RUN",
)
UNLABELLED = empty(
    "None of these clips has a true label.",
    "Right and wrong need one. Have the clips reviewed, import the dataset with labels, or choose another one.",
)

_HEADINGS = {
    "classes": ("Classes", "A clip without an answer is a miss of its true class. Small numbers are 95 % intervals."),
    "confusion": ("Confusion", "Rows are true classes, columns what was answered. A cell opens its clips."),
    "reliability": (
        "Reliability",
        "Is the confidence honest? On the diagonal it is. ECE is the mean distance from it.",
    ),
    "ranking": (
        "ROC and precision–recall",
        "Each class against the rest, by its probability. The mark is where the answers stand. A class in the table is "
        "drawn in blue.",
    ),
    "costs": (
        "Costs",
        "What does a miss of a class cost, and what a false alarm? A wrong answer costs a miss of the true class and a "
        "false alarm of the one answered; no answer costs the miss alone.",
    ),
    "risk": (
        "Risk and coverage",
        "Answer only when sure enough, and err less often. The slider shows what a threshold gives on these clips; the "
        "table has those that were chosen on validation clips.",
    ),
    "map": (
        "Map",
        "Where the clips lie by what they show. Draw around some to see and to save them as a slice. A point opens "
        "its clip.",
    ),
    "slices": (
        "Slices by a column",
        "Divide the clips by a column. Numbers make four parts of about equal size. Among many slices some look bad by "
        "chance: an interval that holds the overall accuracy says nothing.",
    ),
}
_STRONG = 0.55
SECTIONS = (
    "Classes", "Confusion", "Fixed and broken", "ROC and precision–recall", "Costs", "Reliability", "Risk and coverage",
    "Controls", "What carried the label", "Cited moments", "Slices by a column", "Worst slices", "Map",
    "Why is it wrong?", "Labels that do not follow", "Malformed traces",
)  # fmt: skip
"""Titles on the page, for the links to them."""
FOLLOWS = {"yes": "argues for its label", "no": "argues for another label"}


def heading(name: str) -> str:
    title, words = _HEADINGS[name]
    return render("errors/heading.html", title=title, words=words)


def answer_words(label: str) -> str:
    return "no answer" if label == NONE_LABEL else f"answered {label}"


def reason_words(reason: str) -> str:
    return "well-formed" if reason == "well-formed" else f"malformed: {reason.replace('_', ' ')}"


def parts(analysis: Analysis, by: str) -> list[answers.Part]:
    """The labelled clips divided by a column of the facts."""
    values = analysis.facts[by].reindex(analysis.mine.frame.index)
    return answers.parts_of(values)


# Sections


def summary(analysis: Analysis) -> str:
    """The result in a sentence, and what is not in it."""
    own, n = analysis.mine, len(analysis.mine.frame)
    right, f1 = own.evaluation.accuracy, own.evaluation.macro_f1.value
    missing = int((own.frame["predicted"] == NONE_LABEL).sum())
    n_wrong = n - int(own.right_C.sum())
    result = (
        f"{percent(right.value, 1)} of {n} clips right{within(right)}, macro F1 {number(f1)}, "
        f"{n_wrong} wrong, {missing} without an answer."
    )
    notes = []
    if (compared := analysis.against_other or own.from_raw) is not None:
        points = f"{number(compared.accuracy.value, sign=True)} points{within(compared.accuracy, sign=True)}"
        clips_and_p = f"{compared.n} clips ({p_value(compared.flips.p_value)})"
        name = "the provisional label" if analysis.other is None else analysis.other_name
        notes.append(f"{points} against {name}, on {clips_and_p}.")
    if analysis.choice.slice:
        notes.append(f"Only the slice {analysis.choice.slice!r} counts: {n} of the {analysis.whole} labelled clips.")
    if own.unlabelled:
        notes.append(f"{own.unlabelled} clips without a true label are left out.")
    if len(analysis.excluded):
        causes = ", ".join(f"{row.reason} {row.n}" for row in analysis.excluded.itertuples())
        notes.append(f"{int(analysis.excluded['n'].sum())} clips of this split could not be used at all: {causes}.")
    return render("errors/summary.html", result=result, missing=" ".join(notes), sections=SECTIONS)


def exported(analysis: Analysis, table: str) -> list[dict[str, Any]]:
    """The rows of `classes` or of `confusion` as they are taken along: shares of 1, with their intervals."""
    labels, counts = analysis.labels, analysis.mine.evaluation.confusion
    if table == "confusion":
        names = [*labels, NONE_LABEL]
        return [
            {"true": true, "answered": names[j], "clips": int(counts[i, j])}
            for i, true in enumerate(labels)
            for j in range(counts.shape[1])
        ]
    rows, scores = [], analysis.mine.evaluation.classes
    for k, label in enumerate(labels):
        row = {"class": label, "true_clips": int(scores.support_K[k]), "answered": int(scores.predicted_K[k])}
        for name, rate in zip(("precision", "recall", "f1"), analysis.mine.rates_K[k]):
            ends = (None, None, None) if rate is None else (rate.value, rate.low, rate.high)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends))
        rows.append(row)
    return rows


def _exports(analysis: Analysis, table: str) -> list[tuple[str, str]]:
    names = {"parquet": "Parquet"}
    return [
        (names.get(form, form.upper()), address(f"export/errors/{table}.{form}", **asdict(analysis.choice)))
        for form in FORMATS
    ]


@lru_cache(maxsize=16)
def classes(analysis: Analysis) -> str:
    """A row per class; Δ is F1 minus the other's F1 on the clips both answered."""
    own, compared = analysis.mine, analysis.against_other
    scores = own.evaluation.classes
    rows = [
        {
            "label": label,
            "support": int(scores.support_K[k]),
            "predicted": int(scores.predicted_K[k]),
            "rates": own.rates_K[k],
            "change": None if compared is None else compared.f1_K[k],
        }
        for k, label in enumerate(own.labels)
    ]
    heads = ["Class", "True clips", "Answered", "Precision %", "Recall %", "F1 %"]
    heads += [f"Δ F1 to {analysis.other_name}"] if compared is not None else []
    words = f"Intervals are as on the run card: {how_sure(own)}."
    words += f" Δ rests on the {compared.n} clips that both answered." if compared is not None else ""
    return render("errors/classes.html", heads=heads, rows=rows, about=words, exports=_exports(analysis, "classes"))


def how_sure(result: Result) -> str:
    """How the intervals of the page were made."""
    units = "whole sources" if result.evaluation.groups < result.n else "clips"
    settings = result.settings
    return f"{100 * settings.confidence:g} %, by {settings.bootstrap:,} resamples of {units}"


def confusion_table(analysis: Analysis, norm: str) -> str:
    """True classes by answers as a heat map. `norm`: "counts", "rows" or "columns"; shades are shares of the row, or of
    the column when that is shown. Of many classes, those that are confused most."""
    labels = analysis.labels
    counts = analysis.mine.evaluation.confusion
    total = np.maximum(1, counts.sum(0, keepdims=True) if norm == "columns" else counts.sum(1, keepdims=True))
    shares = counts / total
    places = most_confused(counts).tolist()
    columns_kept = [*places, len(labels)] if counts[:, -1].any() else places
    names = [*labels, NONE_LABEL]
    rows = []
    for i in places:
        cells = []
        for j in columns_kept:
            n, part = int(counts[i, j]), float(shares[i, j])
            of = "of all so answered" if norm == "columns" else "of this class"
            shade = part**0.5  # by its root, so that a rare mistake shows
            strong = shade > _STRONG  # in white, on a ground that is dark enough for it
            cells.append(
                {
                    "n": n,
                    "text": str(n) if norm == "counts" else percent(part),
                    "place": f"confusion.{i}.{j}",
                    "spoken": f"True {labels[i]}, {answer_words(names[j])}: {n} clips, {percent(part)} {of}. Show them",
                    "kind": ("right" if i == j else "wrong") + " strong" * strong,
                    "shade": 0.9 + 0.1 * (shade - _STRONG) / (1 - _STRONG) if strong else shade,
                }
            )
        rows.append({"label": labels[i], "place": i, "n": int(counts[i].sum()), "cells": cells})
    columns = [
        {
            "name": "no answer" if names[j] == NONE_LABEL else names[j],
            "place": j,
            "n": int(counts[:, j].sum()),
            "spoken": answer_words(names[j]),
        }
        for j in columns_kept
    ]
    right = float(np.trace(counts[:, : len(labels)])) / max(1, counts.sum())
    words = f"{percent(right, 1)} on the diagonal, outlined. The stronger the shade, the larger the share."
    if few := few_of(len(labels)):
        words += f" The most confused classes{few}; sums are of all."
    sums = {"total": int(counts.sum()), "exports": _exports(analysis, "confusion")}
    return render("errors/confusion.html", caption=words, columns=columns, rows=rows, **sums)


def flip_tables(analysis: Analysis) -> str:
    """What calibration changed against the provisional label, and what stands between two systems."""
    flips = []
    if analysis.raw is not None:
        flips.append(_flip(analysis, "provisional", "Provisional to calibrated", "the provisional label"))
    if analysis.other is not None:
        flips.append(_flip(analysis, "other", f"From {analysis.other_name}", analysis.other_name))
    return render("errors/flips.html", flips=flips)


def _flip(analysis: Analysis, side: str, title: str, name: str) -> dict[str, Any]:
    compared = analysis.against(side)
    was, before, after = compared.flips, compared.before.frame, compared.after.frame
    words = f"{was.wrong_to_right} fixed, {was.right_to_wrong} broken ({p_value(was.p_value)}): "
    words += "more than chance would change one way." if was.p_value < 0.05 else "no clear difference."
    if compared.n < analysis.mine.n:
        words += f" On the {compared.n} clips that both answered."
    still = int((~before["right"] & ~after["right"] & (before["predicted"] != after["predicted"])).sum())
    words += f" {still} went from one wrong label to another." if still else ""
    counts = {"rr": was.both_right, "rw": was.right_to_wrong, "wr": was.wrong_to_right, "ww": was.both_wrong}
    return {"which": side, "title": title, "name": name, "now": analysis.name, "counts": counts, "words": words}


@lru_cache(maxsize=16)
def controls(analysis: Analysis) -> str:
    """What the answer rests on: the same with an input altered, and what was trained without one."""
    scores = analysis.mine.evaluation
    if not analysis.controls:
        return render("errors/controls.html", rows=[], words="") + attribution(analysis)
    results = [
        (analysis.name, analysis.mine, None),
        *((shown(name), result, result.change) for name, result in analysis.controls.items()),
    ]
    rows = [
        {
            "name": name,
            "n": result.n,
            "accuracy": result.evaluation.accuracy,
            "change": change,
            "f1": result.evaluation.macro_f1.value,
        }
        for name, result, change in results
    ]
    changes = {name: (result.evaluation.accuracy.value, result.change) for name, result in analysis.controls.items()}
    words = reading(scores.accuracy.value, changes) + _kept(analysis)
    return render("errors/controls.html", rows=rows, words=words) + attribution(analysis)


def attribution(analysis: Analysis) -> str:
    """Which kinds of sentences carried the labels of the calibrator."""
    if analysis.mine.method != "label_likelihood" or analysis.attributions.empty:
        command = f"deepintuit attribute {analysis.run_id}" if analysis.mine.method == "label_likelihood" else ""
        return render("errors/attribution.html", tables=[], words="", command=command)
    segments, words, among = carriers(analysis.attributions, analysis.mine)
    titles = prose.TITLES | {"outside": "Malformed text", "answer": "Answer: the conclusion"}
    tables = [("Part of the trace", [(titles.get(row.kind, row.kind), None, row) for row in segments])]
    if words:
        links = ((row.kind, address("traces", run=analysis.run_id, text=row.kind), row) for row in words)
        tables.append(("Sentences with the word", list(links)))
    caption = (
        f"Intervals are {how_sure(analysis.mine)}. Sentences that say the same can replace each other, so a small "
    )
    caption += "number is no proof that a kind is not read."
    if words:
        caption += f" The words are the first of {among} by their mean: expect less of them on other clips."
    return render("errors/attribution.html", tables=tables, words=caption, command="")


def moments(analysis: Analysis, rows: Sequence[Grounding]) -> str:
    """Whether traces cite the moments that reviewers marked, by system; else how one gets to know it."""
    command = f"deepintuit review open when --filter split={analysis.choice.split} --ask spans"
    return render("errors/moments.html", rows=rows, about=how_sure(analysis.mine), command=command)


def _kept(analysis: Analysis) -> str:
    compared = analysis.mine.from_raw
    if compared is None:
        return ""
    share = float((compared.before.frame["predicted"] == compared.after.frame["predicted"]).mean())
    return f" It keeps the provisional label on {percent(share, 1)} of the clips."


def reading(accuracy: float, changes: dict[str, tuple[float, Estimate]]) -> str:
    """The controls in words. `changes`: control → its accuracy and the change to the uncontrolled `accuracy`. A change
    whose interval holds 0 is called none."""
    sentences = [f"Undisturbed it is right on {percent(accuracy, 1)}."]
    for name, (value, change) in changes.items():
        *_, start, falls, holds = CONTROLS.get(name, (shown(name).capitalize(), "it was used", "it was not used"))
        points = f"{percent(value, 1)}, {number(change.value, sign=True)} points{within(change, sign=True)}"
        if change.high < 0:
            sentences.append(f"{start}: {points}; {falls}.")
        elif change.low > 0:
            sentences.append(f"{start} it does better: {points}; what was taken away misled it.")
        else:
            sentences.append(f"{start}: {points}, no clear change; {holds}.")
    return " ".join(sentences)


def slice_table(analysis: Analysis, by: str | None) -> str:
    """Accuracy of each part of the clips, beside the provisional label's and the other's."""
    if not by or by not in analysis.facts:
        return render("errors/slices.html", heads=None)
    own = analysis.mine
    overall = own.evaluation.accuracy.value
    befores = {"provisional label": analysis.raw, analysis.other_name if analysis.other else "": analysis.other}
    befores = {name: r.frame["right"].reindex(own.frame.index) for name, r in befores.items() if r is not None}
    rows = []
    for k, part in enumerate(parts(analysis, by)):
        inside = part.inside_C
        n = int(inside.sum())
        if not n:
            continue
        series_of = [series[inside].dropna() for series in befores.values()]
        rows.append(
            {
                "name": part.name,
                "n": n,
                "cell": f"slice.{k}",
                "spoken": f"{column_name(by)}: {part.name}",
                "wrong": n - int(own.right_C[inside].sum()),
                "right": own.share(own.right_C, inside),
                "before": [float(values.mean()) if len(values) else None for values in series_of],
            }
        )
    heads = [
        column_name(by).capitalize(),
        "Clips",
        "Wrong",
        "Accuracy %",
        *(f"{name[:1].upper()}{name[1:]}, %" for name in befores),
    ]
    caption = f"Overall {number(overall)} %. Intervals are {how_sure(own)}."
    return render("errors/slices.html", heads=heads, rows=rows, caption=caption, overall=overall)


def condition(choice: Choice, analysis: Analysis | None = None) -> str:
    """What all clips of the page have in common, and how it is taken away; nothing where there is none."""
    share = f": {analysis.mine.n} of the {analysis.whole} labelled clips" if analysis is not None else ""
    url = address("errors", **asdict(choice) | {"only": ""})
    return render("errors/condition.html", words=words_of(choice.conditions), share=share, url=url)


@lru_cache(maxsize=16)
def worst(analysis: Analysis) -> str:
    """Slices that are worse than the rest, those tried, and how: each with a link that filters the page to it."""
    rows = [
        {
            "name": item.name,
            "n": item.n,
            "url": address(
                "errors",
                **asdict(analysis.choice) | {"only": "&".join(filter(None, (analysis.choice.only, item.only)))},
            ),
            "accuracy": item.accuracy,
            "difference": item.difference,
            "as_sure": item.as_sure,
            "p": {WORSE[kind]: p_value(p) for kind, p in item.p.items()},
            "alike": [words_of(conditions) for conditions in item.alike],
        }
        for item in analysis.worst.slices
    ]
    return render("errors/worst.html", rows=rows, words=tried(analysis.worst))


def why(analysis: Analysis) -> str:
    """The first false step of wrong traces by kind, and what became of their clips; else how one gets to know it."""
    result, values = analysis.provisional, {"rows": [], "name": "", "words": "", "what": "", "command": ""}
    if result is None or result.frame["trace_id"].isna().all():
        return render(
            "errors/why.html", **values | {"what": "This system wrote no traces.", "todo": "It answers by label alone."}
        )
    wrong_C = ~result.right_C
    n, count = int(wrong_C.sum()), sum(row.n for row in analysis.why)
    if not n:
        return render("errors/why.html", **values | {"what": "None of its provisional labels is wrong.", "todo": ""})
    if count < n:
        lacking = "no wrong trace" if not count else f"{count} of {n} wrong traces"
        values |= {
            "what": f"The first false step is known of {lacking}.",
            "todo": "Known facts tell, or a judge: a server that is asked about each wrong trace and its clip.",
            "command": f"deepintuit judge {analysis.run_id} --steps --set judge.base_url=URL --set judge.model=NAME",
        }
    else:
        values["words"] = f"Of all {n} wrong traces. Intervals are as on the run card: {how_sure(result)}."
    own, calibrated = analysis.mine, result is not analysis.mine
    for row in analysis.why:
        inside_C = pd.Series(row.inside_C, result.frame.index).reindex(own.frame.index, fill_value=False).to_numpy()
        first = result.frame["trace_id"][row.inside_C].iloc[0]
        values["rows"].append(
            row._asdict()
            | {
                "right": own.share(own.right_C, inside_C),
                "url": address("traces", run=analysis.run_id, right="wrong", trace=first),
            }
        )
    return render("errors/why.html", **values | {"name": analysis.name if calibrated else ""})


def reasons(analysis: Analysis) -> str:
    """Why traces have no readable answer, with links to them, and what became of their clips."""
    listed, own = analysis.reasons, analysis.mine
    form = analysis.facts["reason"].reindex(own.frame.index)
    rows = []
    for row in listed.itertuples():
        here = (form == row.reason).to_numpy()
        query = {"run": analysis.run_id, "stage": row.stage, "reason": row.reason, "slice": analysis.choice.slice}
        rows.append(
            {
                "reason": row.reason,
                "words": reason_words(row.reason),
                "url": address("traces", **query),
                "traces": row.n,
                "share": float(row.share),
                "n": int(here.sum()),
                "right": own.share(own.right_C, here),
            }
        )
    argued = analysis.facts["follows"].reindex(own.frame.index)
    follows = [
        {
            "follows": value,
            "words": words,
            "n": int((argued == value).sum()),
            "url": address("traces", run=analysis.run_id, follows=value, slice=analysis.choice.slice),
            "before": None if analysis.raw is None else _share_on(analysis.raw, argued == value),
            "right": own.share(own.right_C, (argued == value).to_numpy()),
        }
        for value, words in FOLLOWS.items()
        if argued.notna().any()
    ]
    malformed = bool(len(listed)) and bool((listed["reason"] != "well-formed").any())
    shown_as = {"rows": rows, "malformed": malformed, "slice": analysis.choice.slice}
    shown_as |= {"follows": follows, "before": analysis.raw is not None, "name": analysis.name}
    return why(analysis) + render("errors/reasons.html", **shown_as)


def _share_on(result: Result, inside_C: pd.Series) -> Estimate:
    """Accuracy of a result on some of the clips that another one answered."""
    inside_C = inside_C.reindex(result.frame.index, fill_value=False).to_numpy()
    return result.share(result.right_C, inside_C)
