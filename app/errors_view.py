"""The Errors page as HTML and figures: pure functions of an `errors.Analysis`.

Every count that stands for clips is a button with `data-set` (the hidden field of the page) and `data-value` (the cell);
`app.js` does the rest. Intervals are 95 %: Wilson's for shares of clips that stand alone, else a bootstrap of whole
sources. Left out on purpose: metrics (`deepintuit.metrics`) and the choice of clips behind a cell (`errors.behind`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from app import prose
from app.html import address, badge, empty, esc, percent, table, tag
from app.media import clip_url
from deepintuit.labels import NONE_LABEL
from deepintuit.metrics import (
    Bins,
    Estimate,
    bootstrap,
    brier_each,
    class_indices,
    class_scores,
    ece,
    ece_of,
    flips,
    macro_f1,
    mean_of,
    nll_each,
    paired_difference,
    reliability_bins,
    risk_coverage,
    threshold_for_risk,
    wilson,
)
from deepintuit.metrics import confusion as confusion_of
from deepintuit.report import class_f1_figure, reliability_figure, risk_coverage_figure
from deepintuit.report.text import interval, number, p_value, shown
from deepintuit.store import answers

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from app.errors import Analysis, Answers

BINS = 15
MOST_CLIPS = 2000
HEAD = tag("h1", "Errors") + tag("p", "Where a system fails, class by class. Every underlined count opens the clips behind it.", class_="soft")  # fmt: skip
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
FOCUS = "() => setTimeout(() => document.querySelector('#errors-drawer h2')?.focus(), 80)"

_HEADINGS = {
    "confusion": ("Confusion", "Rows are true classes, columns what was answered. A cell opens its clips."),
    "reliability": ("Reliability", "Is the confidence honest? On the diagonal it is. ECE is the mean distance from it."),
    "risk": (
        "Risk and coverage",
        "Answer only when sure enough, and err less often. Choose a threshold on validation clips: what it gives here "
        "it does not promise elsewhere.",
    ),
    "slices": (
        "Slices",
        "Numbers are divided into four parts of about equal size. Among many slices some look bad by chance: "
        "an interval that holds the overall accuracy says nothing.",
    ),
}
_NAMES = {
    "seconds": "length (s)", "group": "source (group)", "size": "size (pixels)", "tokens": "trace length (tokens)",
    "fps": "frame rate", "bytes": "size of the file (bytes)", "trace_confidence": "confidence of the trace's tokens",
    "reason": "form of the trace", "source": "source file",
}  # fmt: skip
_REASONS = {"well-formed": "well-formed", "nested_tag": "malformed: a tag inside another"}


def heading(name: str) -> str:
    title, words = _HEADINGS[name]
    return _title(title, words)


def _title(title: str, words: str = "") -> str:
    return tag("h2", esc(title)) + (tag("p", esc(words), class_="soft") if words else "")


def column_name(column: str) -> str:
    return _NAMES.get(column, column.replace("_", " "))


def answer_words(label: str) -> str:
    return "no answer" if label == NONE_LABEL else f"answered {label}"


def reason_words(reason: str) -> str:
    return "well-formed" if reason == "well-formed" else f"malformed: {reason.replace('_', ' ')}"


def _opener(text: object, cell: str, spoken: str, class_: str = "count", **attributes: object) -> str:
    """A button that opens the clips of a cell."""
    return tag(
        "button", esc(text), type="button", class_=class_, data_set="errors-cell", data_value=cell, aria_label=spoken,
        title=spoken, **attributes,
    )  # fmt: skip


def _count(n: int, cell: str, what: str) -> str:
    return _opener(n, cell, f"{n} clips: {what}. Show them") if n else tag("span", "0", class_="zero")


def _marked(estimate: Estimate | None, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    """A number with its interval, small, beside it."""
    value = number(None if estimate is None else estimate.value, scale, digits, sign)
    span = interval(estimate, scale, digits, sign)
    return esc(value) + (" " + tag("small", esc(span)) if span else "")


# Numbers


def _draws(clips: int) -> int:
    """Resamples that keep a page quick: 500 up to 1,000 clips, never under 100."""
    return int(np.clip(500_000 // max(1, clips), 100, 500))


def share(right_C: np.ndarray, groups_C: np.ndarray | None) -> Estimate:
    """Share of true values: Wilson's interval, or a bootstrap of whole groups where clips come in groups."""
    n = len(right_C)
    if groups_C is None or not n or right_C.all() or not right_C.any():
        groups = n if groups_C is None else len(np.unique(groups_C.astype(str)))
        # As in the report: resampling cannot doubt a share of 0 or 1, so each group counts as one clip.
        return wilson(int(round(float(np.mean(right_C)) * groups)) if n else 0, groups)
    return bootstrap(mean_of(right_C), n, groups_C=groups_C.astype(str), draws=_draws(n))


def _f1_of(true_C: np.ndarray, answered_C: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    both_C, sum_C = (true_C & answered_C).astype(float), true_C.astype(float) + answered_C

    def statistic(weights_B_C: np.ndarray) -> np.ndarray:
        total = weights_B_C @ sum_C
        return np.divide(2 * (weights_B_C @ both_C), total, out=np.full(len(total), np.nan), where=total > 0)

    return statistic


def _cut(groups_C: np.ndarray | None, kept_C: np.ndarray) -> np.ndarray | None:
    return None if groups_C is None else groups_C[kept_C]


def _truth(one: Answers, labels: Sequence[str]) -> np.ndarray:
    return class_indices(one.frame["true_label"].tolist(), labels)


def _top_right(one: Answers, labels: Sequence[str], probs_C_K: np.ndarray) -> np.ndarray:
    """Whether the distribution's own highest class is the truth, whatever was answered (as the report has it)."""
    return probs_C_K.argmax(1) == _truth(one, labels)


def bins_of(one: Answers) -> Bins:
    """Reliability bins of the answers as they are; the edges are those of `errors.behind`."""
    known = one.frame["confidence"].notna()
    return reliability_bins(one.frame["confidence"][known].clip(0, 1), one.frame["right"][known], BINS)


def parts(found: Analysis, by: str) -> list[answers.Part]:
    """The labelled clips divided by a column of the facts."""
    values = found.facts[by].reindex(found.mine.frame.index)
    return answers.parts_of(values)


# Sections


def summary(found: Analysis) -> str:
    """The result in a sentence, and what is not in it."""
    mine, n = found.mine, len(found.mine.frame)
    right = share(mine.right_C, mine.groups_C)
    missing = int((mine.frame["predicted"] == NONE_LABEL).sum())
    f1 = macro_f1(mine.frame["true_label"].tolist(), mine.frame["predicted"].tolist(), found.labels)
    wrong = n - int(mine.right_C.sum())
    said = (
        f"{percent(right.value, 1)} of {n} clips right ({interval(right)}), macro F1 {number(f1)}, "
        f"{wrong} wrong, {missing} without an answer."
    )
    left = []
    if mine.unlabelled:
        left.append(f"{mine.unlabelled} clips without a true label are left out.")
    if len(found.excluded):
        causes = ", ".join(f"{row.reason} {row.n}" for row in found.excluded.itertuples())
        left.append(f"{int(found.excluded['n'].sum())} clips of this split could not be used at all: {causes}.")
    return tag("p", tag("strong", esc(said)), class_="lede") + (tag("p", esc(" ".join(left)), class_="soft") if left else "")


@lru_cache(maxsize=16)
def classes(found: Analysis) -> str:
    """A row a class; Δ is F1 minus the other's F1 on the clips both answered."""
    mine, other, labels = found.mine, found.other, found.labels
    true_C, answered_C = mine.frame["true_label"].to_numpy(), mine.frame["predicted"].to_numpy()
    scores = class_scores(true_C.tolist(), answered_C.tolist(), labels)
    n = len(mine.frame)
    options = {"draws": _draws(n), "groups_C": None if mine.groups_C is None else mine.groups_C.astype(str)}
    both = None
    if other is not None:
        earlier = other.frame["predicted"].reindex(mine.frame.index)
        both = earlier.notna().to_numpy()
    rows = []
    for k, label in enumerate(labels):
        is_true, is_answered = true_C == label, answered_C == label
        right = int((is_true & is_answered).sum())
        cells = [
            esc(label),
            _count(int(scores.support_K[k]), f"true.{k}", f"true {label}"),
            _count(int(scores.predicted_K[k]), f"answered.{k}", f"answered {label}"),
            _marked(wilson(right, int(scores.predicted_K[k]))) if scores.predicted_K[k] else "–",
            _marked(wilson(right, int(scores.support_K[k]))) if scores.support_K[k] else "–",
            _marked(bootstrap(_f1_of(is_true, is_answered), n, **options)),
        ]
        if both is not None:
            after = _f1_of(is_true[both], is_answered[both])
            before = _f1_of(is_true[both], earlier.to_numpy()[both] == label)
            groups = _cut(options["groups_C"], both)
            change = paired_difference(after, before, int(both.sum()), draws=options["draws"], groups_C=groups)
            cells.append(_marked(change, sign=True) + _verdict(change))
        rows.append(cells)
    heads = ["Class", "True clips", "Answered", "Precision %", "Recall %", "F1 %"]
    heads += [f"Δ F1 to {other.name}"] if other is not None else []
    words = (
        f"Small numbers are 95 % intervals: precision and recall by Wilson (each clip for itself), F1 and Δ by {_draws(n)} "
        f"resamples{' of whole sources' if mine.groups_C is not None else ''}; the run card draws more. "
        "A clip without an answer is a miss of its true class."
    )
    shared = f" Δ rests on the {int(both.sum())} clips that both answered." if both is not None else ""
    return _title("Classes", words + shared) + table(heads, rows, class_="numbers")


def _verdict(change: Estimate) -> str:
    if math.isnan(change.low) or change.low <= 0 <= change.high:
        return ""
    return " " + (badge("better", "good") if change.low > 0 else badge("worse", "bad"))


def f1_figure(found: Analysis) -> go.Figure:
    """F1 by class: what it is compared with (the other, else the raw label), then the answer."""

    def scores(one: Answers):
        return class_scores(one.frame["true_label"].tolist(), one.frame["predicted"].tolist(), found.labels)

    before = found.other or found.raw
    named = {before.name: before, found.mine.name: found.mine} if before is not None else {found.mine.name: found.mine}
    return class_f1_figure(found.labels, {name: scores(one).f1_K for name, one in named.items()}, scores(found.mine).support_K)  # fmt: skip


def confusion_table(found: Analysis, norm: str) -> str:
    """True classes by answers as a heat map. `norm`: "counts", "rows" or "columns"; shades are shares of the row, or of
    the column when that is shown."""
    labels = found.labels
    counts = confusion_of(found.mine.frame["true_label"].tolist(), found.mine.frame["predicted"].tolist(), labels)
    total = np.maximum(1, counts.sum(0, keepdims=True) if norm == "columns" else counts.sum(1, keepdims=True))
    shares = counts / total
    last = len(labels) if counts[:, -1].any() else len(labels) - 1
    answered = [*labels, NONE_LABEL][: last + 1]
    head = tag("td", "") + "".join(tag("th", esc("no answer" if name == NONE_LABEL else name), scope="col") for name in answered)
    head += tag("th", "all", scope="col", class_="total")
    body = ""
    for i, true in enumerate(labels):
        cells = tag("th", esc(true), scope="row")
        for j, name in enumerate(answered):
            n, part = int(counts[i, j]), float(shares[i, j])
            text = str(n) if norm == "counts" else percent(part)
            kind = "right" if i == j else "wrong"
            of = "of all so answered" if norm == "columns" else "of this class"
            spoken = f"True {true}, {answer_words(name)}: {n} clips, {percent(part)} {of}. Show them"
            inner = _opener(text, f"confusion.{i}.{j}", spoken, "heat") if n else tag("span", "0", class_="zero")
            dark = " strong" if part > 0.55 else ""
            cells += tag("td", inner, class_=f"{kind}{dark}", style=f"--share:{part:.3f}")
        body += tag("tr", cells + tag("td", _count(int(counts[i].sum()), f"true.{i}", f"true {true}"), class_="total"))
    sums = "".join(tag("td", _count(int(counts[:, j].sum()), f"answered.{j}", answer_words(name))) for j, name in enumerate(answered))
    body += tag("tr", tag("th", "all", scope="row") + sums + tag("td", str(int(counts.sum()))), class_="total")
    caption = tag("caption", f"{percent(float(np.trace(counts[:, : len(labels)])) / max(1, counts.sum()), 1)} on the diagonal, outlined")
    return tag("div", tag("table", f"{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", class_="confusion"), class_="scroll")


def flip_tables(found: Analysis) -> str:
    """What calibration changed against the raw label, and what stands between two systems."""
    made = ""
    if found.raw is not None:
        made += _flip_table(found, "raw", "Provisional to calibrated", "the raw label")
    if found.other is not None:
        made += _flip_table(found, "other", f"From {found.other.name}", found.other.name)
    if not made:
        todo = "Choose a calibrated answer under “Answer by”, or another system under “Compare with”."
        made = empty("Nothing to compare: this is a raw label.", todo)
    return _title("Flips", "Clips whose answer turned. McNemar's exact p asks whether as many would turn each way by chance.") + tag("div", made, class_="side")  # fmt: skip


def _flip_table(found: Analysis, which: str, title: str, name: str) -> str:
    frame = found.mine.frame
    before = found.before(which).reindex(frame.index)
    both = before.notna().to_numpy()
    was = flips(before[both].tolist(), frame["predicted"][both].tolist(), frame["true_label"][both].tolist())
    cell = {"rr": was.both_right, "rw": was.right_to_wrong, "wr": was.wrong_to_right, "ww": was.both_wrong}

    def opened(key: str) -> str:
        words = {"r": "right", "w": "wrong"}
        return _count(cell[key], f"turned.{which}.{key}", f"{words[key[0]]} by {name}, {words[key[1]]} now")

    rows = [[f"{esc(name)} right", opened("rr"), opened("rw")], [f"{esc(name)} wrong", opened("wr"), opened("ww")]]
    said = f"{was.wrong_to_right} mended, {was.right_to_wrong} broken ({p_value(was.p_value)}): "
    said += "more than chance would turn one way." if was.p_value < 0.05 else "no clear difference."
    if not both.all():
        said += f" On the {int(both.sum())} clips that both answered."
    turned = frame["predicted"][both] != before[both]
    still = int((turned & (frame["predicted"][both] != frame["true_label"][both]) & (before[both] != frame["true_label"][both])).sum())
    said += f" {still} turned from one wrong answer to another." if still else ""
    shown_as = table(["", f"{found.mine.name}: right", "wrong"], rows, title, class_="numbers flips")
    return tag("section", shown_as + tag("p", esc(said)))


def _reliabilities(found: Analysis) -> dict[str, tuple[Answers, np.ndarray]]:
    """Name → answers and distribution, in the order of the work: raw, before the temperature, calibrated."""
    named = {}
    if found.raw is not None and found.raw.probs_C_K is not None:
        named[found.raw.name] = (found.raw, found.raw.probs_C_K)
    if found.mine.probs_C_K is not None:
        if found.mine.before_C_K is not None:
            named[f"before the temperature {found.mine.temperature:.2f}"] = (found.mine, found.mine.before_C_K)
        named[found.mine.name] = (found.mine, found.mine.probs_C_K)
    return named


def reliability_plot(found: Analysis) -> go.Figure:
    named = _reliabilities(found)
    if len(named) == 3:  # the diagram shows before and after; the table beside it has all three
        named = {name: named[name] for name in (next(iter(named)), found.mine.name)}
    return reliability_figure({
        name: reliability_bins(probs.max(1).clip(0, 1), _top_right(one, found.labels, probs), BINS)
        for name, (one, probs) in named.items()
    })  # fmt: skip


@lru_cache(maxsize=16)
def honesty(found: Analysis) -> str:
    """ECE, Brier score and NLL before and after, and the bins as a table."""
    named = _reliabilities(found)
    if not named:
        return empty("These answers have no probabilities.", "Choose an answer by label likelihood to see how honest it is.")
    rows, columns = [], []
    for name, (one, probs) in named.items():
        truth, n = _truth(one, found.labels), len(one.frame)
        sure, right = probs.max(1).clip(0, 1), _top_right(one, found.labels, probs)
        options = {"draws": _draws(n), "groups_C": None if one.groups_C is None else one.groups_C.astype(str)}
        gap = bootstrap(ece_of(sure, right, BINS), n, **options)
        gap = Estimate(ece(sure, right, BINS), gap.low, gap.high)
        rows.append([
            esc(name), str(n), _marked(gap), _marked(bootstrap(mean_of(brier_each(probs, truth)), n, **options), 1, 3),
            _marked(bootstrap(mean_of(nll_each(probs, truth)), n, **options), 1, 3),
        ])  # fmt: skip
        columns.append((name, reliability_bins(sure, right, BINS)))
    numbers = table(["Answer", "n", "ECE %", "Brier", "NLL"], rows, class_="numbers")
    mine = bins_of(found.mine)
    body = []
    for k in range(len(mine.counts)):
        if not any(bins.counts[k] for _, bins in columns):
            continue
        cells = [f"{mine.edges[k]:.2f} to {mine.edges[k + 1]:.2f}"]
        for name, bins in columns:
            count = int(bins.counts[k])
            own = name == found.mine.name
            cells.append(_count(count, f"bin.{k}", f"confidence {cells[0]}") if own else str(count))
            cells.append(percent(bins.accuracy[k]))
        body.append(cells)
    heads = ["Confidence", *(text for name, _ in columns for text in (f"{name}: clips", "right"))]
    bins = tag("details", tag("summary", "The bins as a table") + table(heads, body, class_="numbers"))
    words = f"Brier from 0 to 2, NLL in nats; intervals by {_draws(len(found.mine.frame))} resamples. ECE is biased upwards on few clips."
    return numbers + tag("p", esc(words), class_="soft") + bins


def _sure_and_right(found: Analysis, one: Answers) -> tuple[np.ndarray, np.ndarray]:
    return one.probs_C_K.max(1), _top_right(one, found.labels, one.probs_C_K)


def risk_plot(found: Analysis, threshold: float) -> go.Figure:
    """The curve of the answer over that of the raw label, and where the threshold lies on it."""
    named = {one.name: one for one in (found.raw, found.mine) if one is not None and one.probs_C_K is not None}
    figure = risk_coverage_figure({name: risk_coverage(*_sure_and_right(found, one)) for name, one in named.items()})
    if found.mine.probs_C_K is not None:
        covered = 100 * float((found.mine.frame["confidence"] >= threshold).mean())
        figure.add_vline(x=covered, line_dash="dot", line_color="#d55e00", line_width=2)
        figure.add_annotation(x=covered, y=1, yref="paper", text=f"≥ {threshold:.3g}", showarrow=False, font_color="#d55e00",
                              xanchor="right" if covered > 50 else "left", xshift=-5 if covered > 50 else 5)  # fmt: skip
    return figure


def abstain(found: Analysis, threshold: float) -> str:
    """What the threshold gives in words, the clips it abstains on, and thresholds for wanted risks."""
    mine = found.mine
    if mine.probs_C_K is None:
        return empty("These answers have no probabilities, so none can be withheld by confidence.")
    sure, right = _sure_and_right(found, mine)
    answered = sure >= threshold
    n, given = len(sure), int(answered.sum())
    withheld = n - given
    if given:
        risk = share(~right[answered], _cut(mine.groups_C, answered))
        said = f"Answers {given} of {n} clips (coverage {percent(given / n, 1)}), {percent(risk.value, 1)} of them wrong ({interval(risk)})."
    else:
        said = "Answers nothing: no clip is that sure."
    lost = int((~right[~answered]).sum())
    caught = f" {lost} of them would have been wrong." if withheld else ""
    opened = tag("p", _opener(f"Show the {withheld} clips it abstains on", "unsure", f"{withheld} clips less sure than the threshold", "wide") + esc(caught)) if withheld else tag("p", "It abstains on no clip.")  # fmt: skip
    rows = []
    for wanted in (0.01, 0.02, 0.05, 0.1):
        lowest = threshold_for_risk(sure, right, wanted)
        reach = "–" if math.isinf(lowest) else percent(float((sure >= lowest).mean()), 1)
        rows.append([f"at most {percent(wanted)} wrong", "none does" if math.isinf(lowest) else f"{lowest:.3f}", reach])
    area = risk_coverage(sure, right).area
    wishes = table(["Wanted", "lowest threshold", "coverage"], rows, class_="numbers")
    return tag("p", esc(said), role="status") + opened + wishes + tag("p", f"Mean risk over all coverages (AURC): {number(area)} %", class_="soft")


def controls(found: Analysis) -> str:
    """What the answer rests on: the same with the trace blanked, the video blanked, another clip's trace."""
    title = _title("Controls", "The same answer with one of its sources taken away. A drop says that it was used.")
    if not found.controls:
        words = "No controls were scored for this answer."
        return title + empty(words, "They stand beside label likelihood when evaluate.controls is on (it is by default).")
    mine = found.mine
    right = share(mine.right_C, mine.groups_C)
    rows = [[esc(mine.name), str(len(mine.frame)), _marked(right), "–", number(_f1(found, mine))]]
    changes: dict[str, tuple[float, Estimate]] = {}
    for name, one in found.controls.items():
        both = one.frame.index.intersection(mine.frame.index)
        after, before = one.frame.loc[both, "right"], mine.frame.loc[both, "right"]
        groups = _cut(mine.groups_C, mine.frame.index.isin(both))
        options = {"draws": _draws(len(both)), "groups_C": None if groups is None else groups.astype(str)}
        change = paired_difference(mean_of(after), mean_of(before), len(both), **options)
        changes[name] = (float(after.mean()), change)
        accuracy = share(one.right_C, one.groups_C)
        rows.append([esc(shown(name)), str(len(one.frame)), _marked(accuracy), _marked(change, sign=True), number(_f1(found, one))])
    made = table(["", "n", "Accuracy %", "Change, points", "Macro F1 %"], rows, class_="numbers")
    return title + tag("div", made + tag("div", tag("p", esc(reading(right.value, changes)) + esc(_kept(found)))), class_="side")


def _f1(found: Analysis, one: Answers) -> float:
    return macro_f1(one.frame["true_label"].tolist(), one.frame["predicted"].tolist(), found.labels)


def _kept(found: Analysis) -> str:
    if found.raw is None:
        return ""
    kept = float((found.mine.frame["predicted"] == found.mine.frame["provisional"]).mean())
    return f" It keeps the provisional label on {percent(kept, 1)} of the clips."


def reading(accuracy: float, changes: dict[str, tuple[float, Estimate]]) -> str:
    """The controls in words. `changes`: control → its accuracy and the change to the uncontrolled `accuracy`. A change
    whose interval holds 0 is called none."""
    words = {
        "trace_blanked": ("Without the trace", "the answer rests on the trace", "it does not need the trace"),
        "video_blanked": ("Without the video", "it looks at the video too", "beyond the trace it makes no use of the video"),
        "trace_swapped": (
            "With another clip's trace", "it believes the trace it is given, even a wrong one",
            "it is not led astray by a wrong trace",
        ),
    }  # fmt: skip
    said = [f"Undisturbed it is right on {percent(accuracy, 1)}."]
    for name, (value, change) in changes.items():
        start, falls, holds = words.get(name, (shown(name).capitalize(), "it was used", "it was not used"))
        points = f"{percent(value, 1)}, {number(change.value, sign=True)} points ({interval(change, sign=True)})"
        if change.high < 0:
            said.append(f"{start}: {points}; {falls}.")
        elif change.low > 0:
            said.append(f"{start} it does better: {points}; what was taken away misled it.")
        else:
            said.append(f"{start}: {points}, no clear change; {holds}.")
    return " ".join(said)


def slice_table(found: Analysis, by: str | None) -> str:
    """Accuracy of each part of the clips, beside the raw label's and the other's."""
    if not by or by not in found.facts:
        return empty("Nothing is known of these clips that would divide them.", "Columns of the manifest would stand here.")
    mine = found.mine
    overall = float(mine.right_C.mean())
    befores = {"raw label": found.before("raw"), found.other.name if found.other else "": found.before("other")}
    befores = {name: series.reindex(mine.frame.index) for name, series in befores.items() if series is not None}
    rows = []
    for k, part in enumerate(parts(found, by)):
        inside = part.inside_C
        n = int(inside.sum())
        if not n:
            continue
        right = share(mine.right_C[inside], _cut(mine.groups_C, inside))
        verdict = badge("below", "bad") if right.high < overall else badge("above", "good") if right.low > overall else ""
        bar = tag("span", "", class_="bar", style=f"--share:{right.value:.3f}")
        wrong = n - int(mine.right_C[inside].sum())
        row = [esc(part.name), _count(n, f"slice.{k}", f"{column_name(by)}: {part.name}"), str(wrong), f"{bar} {_marked(right)} {verdict}"]
        for series in befores.values():
            known = inside & series.notna().to_numpy()
            row.append(number(float((series[known] == mine.frame["true_label"][known]).mean())) if known.any() else "–")
        rows.append(row)
    heads = [column_name(by).capitalize(), "Clips", "Wrong", "Accuracy %", *(f"{name}, %" for name in befores)]
    how = "a resampling of whole sources" if mine.groups_C is not None else "Wilson's"
    caption = f"Overall {number(overall)} %. Intervals are {how}, 95 %."
    return table(heads, rows, caption, class_="numbers slices")


def reasons(found: Analysis) -> str:
    """Why traces have no readable answer, with links to them, and what became of their clips."""
    title = _title("Malformed traces", "A trace without a readable answer is wrong, and counted. Why, and what became of its clip.")
    listed = found.reasons
    if listed.empty:
        return title + empty("This system wrote no traces.", "It answers by label alone, or from metadata.")
    mine = found.mine.frame
    form = found.facts["reason"].reindex(mine.index) if "reason" in found.facts else pd.Series(index=mine.index, dtype=object)
    rows = []
    for row in listed.itertuples():
        here = (form == row.reason).to_numpy()
        n, right = int(here.sum()), int(mine["right"][here].sum())
        query = {"run": found.run_id, "stage": row.stage, "reason": row.reason}
        traces = tag("a", f"{row.n} traces", href=address("traces", **query))
        now = _marked(wilson(right, n)) if n else "–"
        opened = _count(n, f"reason.{row.reason}", reason_words(row.reason))
        rows.append([esc(reason_words(row.reason)), traces, percent(float(row.share), 1), opened, now])
    said = "" if (listed["reason"] != "well-formed").any() else tag("p", "Every trace of this run is well-formed.")
    heads = ["Form", "Traces of the run", "Share", "Clips answered from one", "Right %"]
    return title + said + table(heads, rows, class_="numbers")


# The drawer


def no_such_cell() -> str:
    return _drawer("No such clips", empty("This address names clips that are not there.", "Choose a number on the page."))


def _drawer(title: str, body: str) -> str:
    close = tag("button", "Close", type="button", class_="close", data_set="errors-cell", data_value="", data_close=True)
    return tag("header", tag("h2", esc(title), tabindex="-1") + close) + body


def clip_list(found: Analysis, title: str, frame: pd.DataFrame) -> str:
    """The clips behind a cell, a row each; a row's button plays it."""
    other = None if found.other is None else found.other.frame["predicted"].reindex(frame.index)
    raw = found.raw is not None or (frame["provisional"] != frame["predicted"]).any()
    heads = ["Clip", "True", *(["Provisional"] if raw else []), "Answered", "Confidence", *([found.other.name] if other is not None else [])]
    files = found.facts["file"].reindex(frame.index) if "file" in found.facts else pd.Series(None, frame.index, object)
    rows = []
    for clip_id, row in frame.head(MOST_CLIPS).iterrows():
        name = files[clip_id] if isinstance(files[clip_id], str) else clip_id
        open_it = tag("button", esc(name), type="button", class_="pick", data_set="errors-clip", data_value=clip_id)
        mark = "good" if row["right"] else "bad"
        cells = [open_it, esc(row["true_label"])]
        cells += [esc(row["provisional"])] if raw else []
        cells += [badge(row["predicted"], mark), "–" if np.isnan(row["confidence"]) else f"{row['confidence']:.3f}"]
        cells += [esc(other[clip_id])] if other is not None else []
        rows.append(cells)
    n = len(frame)
    cut = f", of which the first {MOST_CLIPS} are listed" if n > MOST_CLIPS else ""
    count = tag("p", f"{n} {'clip' if n == 1 else 'clips'}{cut}, surest answers first. Choose one to watch it.", class_="soft", role="status")
    return _drawer(title, count + tag("div", table(heads, rows, class_="clips"), class_="list"))


def clip_detail(found: Analysis, clip_id: str, trace: pd.Series | None) -> str:
    """The player with what was answered, the distribution and the trace."""
    row = found.mine.frame.loc[clip_id]
    known = found.facts.loc[clip_id] if clip_id in found.facts.index else pd.Series(dtype=object)
    name = known.get("file") if isinstance(known.get("file"), str) else clip_id
    video = tag("video", "", controls=True, preload="metadata", playsinline=True, src=clip_url(clip_id), aria_label=f"Clip {name}")
    place = found.mine.frame.index.get_loc(clip_id)
    said = [f"true {badge(row['true_label'])}"]
    if found.raw is not None:
        said.append(f"provisional {badge(row['provisional'], 'good' if row['provisional'] == row['true_label'] else 'bad')}")
    said.append(f"{esc(found.mine.name)} {badge(row['predicted'], 'good' if row['right'] else 'bad')}")
    bars = "" if found.mine.probs_C_K is None else _distribution(found, found.mine.probs_C_K[place], row)
    written = tag("p", "No trace is stored for this answer.", class_="soft")
    if trace is not None:
        times = None if trace["frame_times"] is None else [float(at) for at in trace["frame_times"]]
        seconds = float(known["seconds"]) if "seconds" in known and pd.notna(known["seconds"]) else None
        malformed = tag("p", badge(reason_words(trace["reason"]), "warn") + " " + esc(trace["detail"])) if isinstance(trace["reason"], str) else ""  # fmt: skip
        written = malformed + prose.trace_html(trace["text"], found.grammar, times, seconds)
    shown_elsewhere = [tag("a", "All traces of this clip", href=address("traces", clip=clip_id))]
    if trace is not None:
        shown_elsewhere.append(tag("a", "Replay it", href=address("watch", clip=clip_id, trace=trace["trace_id"])))
    title = tag("h3", esc(name))
    return tag("div", video + title + tag("p", " · ".join(said)) + bars + written + tag("p", " · ".join(shown_elsewhere)), class_="watching")


def _distribution(found: Analysis, probs_K: np.ndarray, row: pd.Series) -> str:
    """The class distribution as bars, highest first."""
    rows = []
    for k in np.argsort(-probs_K, kind="stable"):
        label = found.labels[k]
        name = tag("strong", esc(label)) if label == row["true_label"] else esc(label)
        bar = tag("span", "", class_="bar", style=f"--share:{probs_K[k]:.3f}")
        rows.append([name, f"{bar} {percent(float(probs_K[k]), 1)}"])
    return table(["Class", "Probability"], rows, class_="numbers distribution")
