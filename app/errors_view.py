"""The Errors page as HTML and figures: pure functions of an `analysis.Analysis`.

Every count that stands for clips is a button with `data-set` (the hidden field of the page) and `data-value` (the
cell); `app.js` does the rest. Numbers and intervals are the `Result`'s, as on the run card. `errors_honesty` has
confidence and its figures, `errors_clips` the drawer and the choice of clips behind a cell.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from deepintuit.labels import NONE_LABEL
from deepintuit.metrics import Estimate
from deepintuit_analysis.index import answers
from deepintuit_analysis.numbers import interval, number, p_value, percent, within
from deepintuit_analysis.report.figures import few_of, most_confused
from deepintuit_analysis.report.results import CONTROLS, Result
from deepintuit_analysis.report.text import shown
from deepintuit_app.analysis import Analysis
from deepintuit_app.html import address, badge, empty, esc, table, tag

_PROMISE = "Where a system fails, class by class. Every underlined count opens the clips behind it."
HEAD = tag("h1", "Errors") + tag("p", _PROMISE, class_="soft")
NO_ANSWERS = empty(
    "No system was evaluated yet.",
    "Score one on the test clips, and this page shows where it fails:",
    "deepintuit demo                      # everything, on the embedded world\n"
    "deepintuit evaluate --reasoner RUN --calibrator RUN",
)
UNLABELLED = empty(
    "None of these clips has a true label.",
    "Right and wrong need one. Import the dataset with labels, or choose another split.",
)

_HEADINGS = {
    "classes": ("Classes", "A clip without an answer is a miss of its true class. Small numbers are 95 % intervals."),
    "confusion": ("Confusion", "Rows are true classes, columns what was answered. A cell opens its clips."),
    "reliability": (
        "Reliability",
        "Is the confidence honest? On the diagonal it is. ECE is the mean distance from it.",
    ),
    "risk": (
        "Risk and coverage",
        "Answer only when sure enough, and err less often. The slider shows what a threshold gives on these clips; the "
        "table has those that were chosen on validation clips.",
    ),
    "slices": (
        "Slices by a column",
        "Divide the clips by a column. Numbers make four parts of about equal size. Among many slices some look bad by "
        "chance: an interval that holds the overall accuracy says nothing.",
    ),
}
_NAMES = {
    "seconds": "length (s)", "group": "source (group)", "size": "size (pixels)", "tokens": "trace length (tokens)",
    "fps": "frame rate", "bytes": "size of the file (bytes)", "trace_confidence": "token confidence",
    "reason": "form of the trace", "source": "source file",
}  # fmt: skip


def heading(name: str) -> str:
    title, words = _HEADINGS[name]
    return titled(title, words)


def titled(title: str, words: str = "") -> str:
    return tag("h2", esc(title)) + (tag("p", esc(words), class_="soft") if words else "")


def column_name(column: str) -> str:
    return _NAMES.get(column, column.replace("_", " "))


def answer_words(label: str) -> str:
    return "no answer" if label == NONE_LABEL else f"answered {label}"


def reason_words(reason: str) -> str:
    return "well-formed" if reason == "well-formed" else f"malformed: {reason.replace('_', ' ')}"


def opener(text: object, cell: str, spoken: str, class_: str = "count", **attributes: object) -> str:
    """A button that opens the clips of a cell."""
    return tag(
        "button", esc(text), type="button", class_=class_, data_set="errors-cell", data_value=cell, aria_label=spoken,
        title=spoken, **attributes,
    )  # fmt: skip


def counted(n: int, cell: str, what: str) -> str:
    return opener(n, cell, f"{n} clips: {what}. Show them") if n else tag("span", "0", class_="zero")


def marked(estimate: Estimate | None, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    """A number with its interval, small, beside it."""
    value = number(None if estimate is None else estimate.value, scale, digits, sign)
    span = interval(estimate, scale, digits, sign)
    return esc(value) + (" " + tag("small", esc(span)) if span else "")


def parts(found: Analysis, by: str) -> list[answers.Part]:
    """The labelled clips divided by a column of the facts."""
    values = found.facts[by].reindex(found.mine.frame.index)
    return answers.parts_of(values)


# Sections


def summary(found: Analysis) -> str:
    """The result in a sentence, and what is not in it."""
    mine, n = found.mine, len(found.mine.frame)
    right, f1 = mine.evaluation.accuracy, mine.evaluation.macro_f1.value
    missing = int((mine.frame["predicted"] == NONE_LABEL).sum())
    wrong = n - int(mine.right_C.sum())
    said = (
        f"{percent(right.value, 1)} of {n} clips right{within(right)}, macro F1 {number(f1)}, "
        f"{wrong} wrong, {missing} without an answer."
    )
    left = []
    if found.choice.slice:
        left.append(f"Only the slice {found.choice.slice!r} counts: {n} of the {found.whole} labelled clips.")
    if mine.unlabelled:
        left.append(f"{mine.unlabelled} clips without a true label are left out.")
    if len(found.excluded):
        causes = ", ".join(f"{row.reason} {row.n}" for row in found.excluded.itertuples())
        left.append(f"{int(found.excluded['n'].sum())} clips of this split could not be used at all: {causes}.")
    beside = tag("p", esc(" ".join(left)), class_="soft") if left else ""
    return tag("p", tag("strong", esc(said)), class_="lede") + beside


@lru_cache(maxsize=16)
def classes(found: Analysis) -> str:
    """A row a class; Δ is F1 minus the other's F1 on the clips both answered."""
    mine, compared = found.mine, found.against_other
    scores = mine.evaluation.classes
    rows = []
    for k, label in enumerate(mine.labels):
        cells = [
            esc(label),
            counted(int(scores.support_K[k]), f"true.{k}", f"true {label}"),
            counted(int(scores.predicted_K[k]), f"answered.{k}", f"answered {label}"),
            *map(marked, mine.rates_K[k]),
        ]
        if compared is not None:
            cells.append(marked(compared.f1_K[k], sign=True) + _verdict(compared.f1_K[k]))
        rows.append(cells)
    heads = ["Class", "True clips", "Answered", "Precision %", "Recall %", "F1 %"]
    heads += [f"Δ F1 to {found.other_name}"] if compared is not None else []
    words = f"Intervals are as on the run card: {how_sure(mine)}."
    words += f" Δ rests on the {compared.n} clips that both answered." if compared is not None else ""
    return table(heads, rows, class_="numbers") + tag("p", esc(words), class_="soft")


def how_sure(mine: Result) -> str:
    """How the intervals of the page were made."""
    drawn = "whole sources" if mine.evaluation.groups < mine.n else "clips"
    settings = mine.settings
    return f"{100 * settings.confidence:g} %, by {settings.bootstrap:,} resamples of {drawn}"


def _verdict(change: Estimate) -> str:
    if math.isnan(change.low) or change.low <= 0 <= change.high:
        return ""
    return " " + (badge("better", "good") if change.low > 0 else badge("worse", "bad"))


def confusion_table(found: Analysis, norm: str) -> str:
    """True classes by answers as a heat map. `norm`: "counts", "rows" or "columns"; shades are shares of the row, or of
    the column when that is shown. Of many classes, those that are confused most."""
    labels = found.labels
    counts = found.mine.evaluation.confusion
    total = np.maximum(1, counts.sum(0, keepdims=True) if norm == "columns" else counts.sum(1, keepdims=True))
    shares = counts / total
    kept = most_confused(counts).tolist()
    columns_kept = [*kept, len(labels)] if counts[:, -1].any() else kept
    named = [*labels, NONE_LABEL]
    head = tag("td", "") + "".join(
        tag("th", esc("no answer" if named[j] == NONE_LABEL else named[j]), scope="col") for j in columns_kept
    )
    head += tag("th", "all", scope="col", class_="total")
    body = ""
    for i in kept:
        true = labels[i]
        cells = tag("th", esc(true), scope="row")
        for j in columns_kept:
            name = named[j]
            n, part = int(counts[i, j]), float(shares[i, j])
            text = str(n) if norm == "counts" else percent(part)
            kind = "right" if i == j else "wrong"
            of = "of all so answered" if norm == "columns" else "of this class"
            spoken = f"True {true}, {answer_words(name)}: {n} clips, {percent(part)} {of}. Show them"
            inner = opener(text, f"confusion.{i}.{j}", spoken, "heat") if n else tag("span", "0", class_="zero")
            shade = part**0.5  # by its root, so that a rare mistake shows
            cells += tag("td", inner, class_=f"{kind}{' strong' if shade > 0.55 else ''}", style=f"--share:{shade:.3f}")
        body += tag("tr", cells + tag("td", counted(int(counts[i].sum()), f"true.{i}", f"true {true}"), class_="total"))
    columns = [counted(int(counts[:, j].sum()), f"answered.{j}", answer_words(named[j])) for j in columns_kept]
    sums = "".join(tag("td", column) for column in columns)
    body += tag("tr", tag("th", "all", scope="row") + sums + tag("td", str(int(counts.sum()))), class_="total")
    right = float(np.trace(counts[:, : len(labels)])) / max(1, counts.sum())
    words = f"{percent(right, 1)} on the diagonal, outlined. The stronger the shade, the larger the share."
    if few := few_of(len(labels)):
        words += f" The most confused classes{few}; sums are of all."
    caption = tag("caption", esc(words))
    made = tag("table", f"{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", class_="confusion")
    return tag("div", made, class_="scroll")


def flip_tables(found: Analysis) -> str:
    """What calibration changed against the provisional label, and what stands between two systems."""
    made = ""
    if found.raw is not None:
        made += _flip_table(found, "raw", "Provisional to calibrated", "the provisional label")
    if found.other is not None:
        made += _flip_table(found, "other", f"From {found.other_name}", found.other_name)
    if not made:
        todo = "Choose a calibrated label under “Method”, or another system under “Compare with”."
        made = empty("Nothing to compare: this is a provisional label.", todo)
    words = "Clips whose label changed. McNemar's exact p asks whether as many would change each way at random."
    return titled("Fixed and broken", words) + tag("div", made, class_="side")


def _flip_table(found: Analysis, which: str, title: str, name: str) -> str:
    compared = found.against(which)
    was, before, after = compared.flips, compared.before.frame, compared.after.frame
    cell = {"rr": was.both_right, "rw": was.right_to_wrong, "wr": was.wrong_to_right, "ww": was.both_wrong}

    def opened(key: str) -> str:
        words = {"r": "right", "w": "wrong"}
        return counted(cell[key], f"turned.{which}.{key}", f"{words[key[0]]} by {name}, {words[key[1]]} now")

    rows = [[f"{esc(name)} right", opened("rr"), opened("rw")], [f"{esc(name)} wrong", opened("wr"), opened("ww")]]
    said = f"{was.wrong_to_right} fixed, {was.right_to_wrong} broken ({p_value(was.p_value)}): "
    said += "more than chance would change one way." if was.p_value < 0.05 else "no clear difference."
    if compared.n < found.mine.n:
        said += f" On the {compared.n} clips that both answered."
    still = int((~before["right"] & ~after["right"] & (before["predicted"] != after["predicted"])).sum())
    said += f" {still} went from one wrong label to another." if still else ""
    shown_as = table(["", f"{found.name}: right", "wrong"], rows, title, class_="numbers flips")
    return tag("section", shown_as + tag("p", esc(said)))


@lru_cache(maxsize=16)
def controls(found: Analysis) -> str:
    """What the answer rests on: the same with an input altered, and what was trained without one."""
    title = titled("Controls", "The same answer with a source altered or taken away, and what was trained without one.")
    if not found.controls:
        words = "No controls were scored for this method."
        return title + empty(
            words, "They stand beside label likelihood when evaluate.controls is on (it is by default)."
        )
    scores = found.mine.evaluation
    rows = [[esc(found.name), str(scores.n), marked(scores.accuracy), "–", number(scores.macro_f1.value)]]
    changes: dict[str, tuple[float, Estimate]] = {}
    for name, one in found.controls.items():
        accuracy = one.evaluation.accuracy
        changes[name] = (accuracy.value, one.change)
        shown_as = [marked(accuracy), marked(one.change, sign=True), number(one.evaluation.macro_f1.value)]
        rows.append([esc(shown(name)), str(one.n), *shown_as])
    made = table(["", "n", "Accuracy %", "Change, points", "Macro F1 %"], rows, class_="numbers")
    said = tag("p", esc(reading(scores.accuracy.value, changes) + _kept(found)))
    return title + tag("div", made + said, class_="side")


def _kept(found: Analysis) -> str:
    compared = found.mine.from_raw
    if compared is None:
        return ""
    kept = float((compared.before.frame["predicted"] == compared.after.frame["predicted"]).mean())
    return f" It keeps the provisional label on {percent(kept, 1)} of the clips."


def reading(accuracy: float, changes: dict[str, tuple[float, Estimate]]) -> str:
    """The controls in words. `changes`: control → its accuracy and the change to the uncontrolled `accuracy`. A change
    whose interval holds 0 is called none."""
    said = [f"Undisturbed it is right on {percent(accuracy, 1)}."]
    for name, (value, change) in changes.items():
        *_, start, falls, holds = CONTROLS.get(name, (shown(name).capitalize(), "it was used", "it was not used"))
        points = f"{percent(value, 1)}, {number(change.value, sign=True)} points{within(change, sign=True)}"
        if change.high < 0:
            said.append(f"{start}: {points}; {falls}.")
        elif change.low > 0:
            said.append(f"{start} it does better: {points}; what was taken away misled it.")
        else:
            said.append(f"{start}: {points}, no clear change; {holds}.")
    return " ".join(said)


def slice_table(found: Analysis, by: str | None) -> str:
    """Accuracy of each part of the clips, beside the provisional label's and the other's."""
    if not by or by not in found.facts:
        return empty("Nothing is known of these clips that would divide them.", "The manifest's columns would.")
    mine = found.mine
    overall = mine.evaluation.accuracy.value
    befores = {"provisional label": found.raw, found.other_name if found.other else "": found.other}
    befores = {name: one.frame["right"].reindex(mine.frame.index) for name, one in befores.items() if one is not None}
    rows = []
    for k, part in enumerate(parts(found, by)):
        inside = part.inside_C
        n = int(inside.sum())
        if not n:
            continue
        right = mine.share(mine.right_C, inside)
        below, above = right.high < overall, right.low > overall
        verdict = badge("below", "bad") if below else badge("above", "good") if above else ""
        bar = tag("span", "", class_="bar", style=f"--share:{right.value:.3f}")
        wrong = n - int(mine.right_C[inside].sum())
        opened = counted(n, f"slice.{k}", f"{column_name(by)}: {part.name}")
        row = [esc(part.name), opened, str(wrong), f"{bar} {marked(right)} {verdict}"]
        for series in befores.values():
            known = series[inside].dropna()
            row.append(number(float(known.mean()) if len(known) else None))
        rows.append(row)
    heads = [column_name(by).capitalize(), "Clips", "Wrong", "Accuracy %", *(f"{name}, %" for name in befores)]
    caption = f"Overall {number(overall)} %. Intervals are {how_sure(mine)}."
    return table(heads, rows, caption, class_="numbers slices")


def reasons(found: Analysis) -> str:
    """Why traces have no readable answer, with links to them, and what became of their clips."""
    words = "A trace without a readable answer is wrong, and counted. Why, and what became of its clip."
    title = titled("Malformed traces", words)
    listed = found.reasons
    if listed.empty:
        return title + empty("This system wrote no traces.", "It answers by label alone, or from metadata.")
    mine = found.mine
    form = found.facts["reason"].reindex(mine.frame.index)
    rows = []
    for row in listed.itertuples():
        here = (form == row.reason).to_numpy()
        n = int(here.sum())
        query = {"run": found.run_id, "stage": row.stage, "reason": row.reason, "slice": found.choice.slice}
        traces = tag("a", f"{row.n} traces", href=address("traces", **query))
        now = marked(mine.share(mine.right_C, here))
        opened = counted(n, f"reason.{row.reason}", reason_words(row.reason))
        rows.append([esc(reason_words(row.reason)), traces, percent(float(row.share), 1), opened, now])
    said = "" if (listed["reason"] != "well-formed").any() else tag("p", "Each of them is well-formed.")
    of = "Traces of the slice" if found.choice.slice else "Traces of the run"
    heads = ["Form", of, "Share", "Clips answered from one", "Right %"]
    return title + said + table(heads, rows, class_="numbers")
