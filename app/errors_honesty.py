"""How honest an answer's confidence is, and when not to answer: numbers in HTML and the page's figures.

Pure functions of an `analysis.Analysis`; the figures are the report's, cut for half a page. Left out on purpose:
choosing a threshold (that is done on validation clips, by a person).
"""

from __future__ import annotations

import html
import math
import textwrap
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from deepintuit.metrics import (
    Estimate,
    bootstrap,
    brier_each,
    class_scores,
    conformal_folds,
    ece,
    ece_of,
    mean_of,
    nll_each,
    reliability_bins,
    risk_coverage,
    wilson,
)
from deepintuit_analysis.report import class_f1_figure, reliability_figure, risk_coverage_figure
from deepintuit_analysis.report.table import COVERAGES
from deepintuit_analysis.report.text import NO_THRESHOLDS, interval, number
from deepintuit_app.errors_view import (
    BINS,
    bins_of,
    counted,
    cut,
    draws_for,
    marked,
    opener,
    share,
    top_right,
    truth_of,
)
from deepintuit_app.html import empty, esc, percent, table, tag

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from deepintuit_app.analysis import Analysis, Answers


def narrow(figure: go.Figure) -> go.Figure:
    """The report's figure for half a page or a phone: title on short lines, no dragging (it would catch a scroll)."""
    lines = textwrap.wrap(str(figure.layout.meta or ""), 46)
    top = 56 + 19 * len(lines)
    text = "<br>".join(html.escape(line, quote=False) for line in lines)
    tools = ["zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "resetScale"]
    height = figure.layout.height - figure.layout.margin.t + top
    figure.update_layout(
        title=dict(text=text, font_size=14), height=height, margin_t=top, dragmode=False, modebar_remove=tools
    )
    return figure


def f1_figure(found: Analysis) -> go.Figure:
    """F1 by class: what it is compared with (the other, else the raw label), then the answer."""

    def scores(one: Answers):
        return class_scores(one.frame["true_label"].tolist(), one.frame["predicted"].tolist(), found.labels)

    before = found.other or found.raw
    named = {before.name: before, found.mine.name: found.mine} if before is not None else {found.mine.name: found.mine}
    f1 = {name: scores(one).f1_K for name, one in named.items()}
    return narrow(class_f1_figure(found.labels, f1, scores(found.mine).support_K))


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
    return narrow(reliability_figure({
        name: reliability_bins(probs.max(1).clip(0, 1), top_right(one, found.labels, probs), BINS)
        for name, (one, probs) in named.items()
    }))  # fmt: skip


@lru_cache(maxsize=16)
def honesty(found: Analysis) -> str:
    """ECE, Brier score and NLL before and after, and the bins as a table."""
    named = _reliabilities(found)
    if not named:
        return empty("These answers have no probabilities.", "Choose an answer by label likelihood.")
    rows, columns = [], []
    for name, (one, probs) in named.items():
        truth, n = truth_of(one, found.labels), len(one.frame)
        sure, right = probs.max(1).clip(0, 1), top_right(one, found.labels, probs)
        options = {"draws": draws_for(n), "groups_C": one.groups_C}
        gap = bootstrap(ece_of(sure, right, BINS), n, **options)
        gap = Estimate(ece(sure, right, BINS), gap.low, gap.high)
        rows.append([
            esc(name), str(n), marked(gap), marked(bootstrap(mean_of(brier_each(probs, truth)), n, **options), 1, 3),
            marked(bootstrap(mean_of(nll_each(probs, truth)), n, **options), 1, 3),
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
            cells.append(counted(count, f"bin.{k}", f"confidence {cells[0]}") if own else str(count))
            cells.append(percent(bins.accuracy[k]))
        body.append(cells)
    heads = ["Confidence", *(text for name, _ in columns for text in (f"{name}: clips", "right"))]
    bins = tag("details", tag("summary", "The bins as a table") + table(heads, body, class_="numbers"))
    words = f"Brier from 0 to 2, NLL in nats; intervals by {draws_for(len(found.mine.frame))} resamples. "
    words += "ECE is biased upwards on few clips."
    return numbers + tag("p", esc(words), class_="soft") + bins


def _sure_and_right(found: Analysis, one: Answers) -> tuple[np.ndarray, np.ndarray]:
    return one.probs_C_K.max(1), top_right(one, found.labels, one.probs_C_K)


def risk_plot(found: Analysis, threshold: float) -> go.Figure:
    """The curve of the answer over that of the raw label, and where the threshold lies on it."""
    named = {one.name: one for one in (found.raw, found.mine) if one is not None and one.probs_C_K is not None}
    curves = {name: risk_coverage(*_sure_and_right(found, one)) for name, one in named.items()}
    figure = narrow(risk_coverage_figure(curves))
    if found.mine.probs_C_K is not None:
        covered = 100 * float((found.mine.frame["confidence"] >= threshold).mean())
        figure.add_vline(x=covered, line_dash="dot", line_color="#d55e00", line_width=2)
        side = {"xanchor": "right", "xshift": -5} if covered > 50 else {"xanchor": "left", "xshift": 5}
        text = {"text": f"≥ {threshold:.3g}", "font_color": "#d55e00", "showarrow": False}
        figure.add_annotation(x=covered, y=1, yref="paper", **text, **side)
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
    said = "Answers nothing: no clip is that sure."
    if given:
        risk = share(~right[answered], cut(mine.groups_C, answered))
        said = f"Answers {given} of {n} clips (coverage {percent(given / n, 1)}), "
        said += f"{percent(risk.value, 1)} of them wrong ({interval(risk)})."
    opened = tag("p", "It abstains on no clip.")
    if withheld:
        spoken = f"{withheld} clips less sure than the threshold"
        button = opener(f"Show the {withheld} clips it abstains on", "unsure", spoken, "wide")
        opened = tag("p", button + esc(f"; {int((~right[~answered]).sum())} of them would have been wrong."))
    curve = risk_coverage(sure, right)
    wishes = tag("p", NO_THRESHOLDS, class_="soft")
    if found.thresholds is not None:
        rows = []
        for wanted, lowest in found.thresholds.items():
            coverage, risk = curve.at(math.inf if lowest is None else lowest)
            cells = ["none does" if lowest is None else f"{lowest:.3f}", percent(coverage, 1)]
            wrong = wilson(round(risk * coverage * n), round(coverage * n)) if coverage else None
            rows.append([f"at most {percent(float(wanted))} wrong", *cells, marked(wrong)])
        where = "on these very clips" if found.choice.split == "validation" else "on validation clips"
        heads = ["Wanted", f"threshold, chosen {where}", "coverage here", "wrong here %"]
        wishes = table(heads, rows, class_="numbers")
    mean = tag("p", f"Mean risk over all coverages (AURC): {number(curve.area)} %", class_="soft")
    return tag("p", esc(said), role="status") + opened + wishes + mean + _label_sets(found)


@lru_cache(maxsize=16)
def _label_sets(found: Analysis) -> str:
    """Split-conformal sets of labels, as the run card has them."""
    truth = truth_of(found.mine, found.labels)
    rows = []
    for target in COVERAGES:
        one = conformal_folds(found.mine.probs_C_K, truth, target)
        rows.append([percent(target), str(one.n), marked(one.coverage), number(one.size, 1, 2), percent(one.single)])
    words = "Or a set of labels for each clip, large enough to hold the truth as often as promised (split-conformal)."
    heads = ["Promised", "n", "holds the truth %", "labels a set", "of one label"]
    return tag("p", words, class_="soft") + table(heads, rows, class_="numbers")
