"""How honest an answer's confidence is, and when not to answer: numbers in HTML and the page's figures.

Pure functions of an `analysis.Analysis`; the figures are the report's, cut for half a page. Left out on purpose:
choosing a threshold (that is done on validation clips, by a person).
"""

from __future__ import annotations

import html
import textwrap
from functools import lru_cache
from typing import TYPE_CHECKING

from deepintuit_analysis.numbers import number, percent, within
from deepintuit_analysis.report import class_f1_figure, reliability_figure, risk_coverage_figure
from deepintuit_analysis.report.text import NO_THRESHOLDS
from deepintuit_app.errors_view import counted, marked, opener
from deepintuit_app.html import empty, esc, table, tag

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from deepintuit_analysis.report import Result
    from deepintuit_app.analysis import Analysis


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
    """F1 by class: what it is compared with (the other, else the provisional label), then its own."""

    before = {found.other_name: found.other} if found.other is not None else {"provisional label": found.raw}
    named = {name: one for name, one in {**before, found.name: found.mine}.items() if one is not None}
    f1 = {name: one.evaluation.classes.f1_K for name, one in named.items()}
    return narrow(class_f1_figure(found.labels, f1, found.mine.evaluation.classes.support_K))


def _reliabilities(found: Analysis) -> dict[str, Result]:
    """Name → result with probabilities, in the order of the work: raw, before the temperature, calibrated."""
    mine, named = found.mine, {}
    if found.raw is not None:
        named["provisional label"] = found.raw
    if mine.untempered is not None and abs(mine.temperature - 1) > 1e-3:
        named[f"before the temperature {mine.temperature:.2f}"] = mine.untempered
    named[found.name] = mine
    return {name: one for name, one in named.items() if one.probs_C_K is not None}


def reliability_plot(found: Analysis) -> go.Figure:
    named = _reliabilities(found)
    if len(named) == 3:  # the diagram shows before and after; the table beside it has all three
        named = {name: named[name] for name in (next(iter(named)), found.name)}
    return narrow(reliability_figure({name: one.evaluation.bins for name, one in named.items()}))


@lru_cache(maxsize=16)
def honesty(found: Analysis) -> str:
    """ECE, Brier score and NLL before and after, and the bins as a table."""
    named = _reliabilities(found)
    if not named:
        return empty("These answers have no probabilities.", "Choose the method label likelihood.")
    rows = []
    for name, one in named.items():
        scores = one.evaluation
        rows.append([esc(name), str(one.n), marked(scores.ece), marked(scores.brier, 1, 3), marked(scores.nll, 1, 3)])
    columns = [(name, one.evaluation.bins) for name, one in named.items()]
    numbers = table(["Label", "n", "ECE %", "Brier", "NLL"], rows, class_="numbers")
    mine = columns[-1][1]
    body = []
    for k in range(len(mine.counts)):
        if not any(bins.counts[k] for _, bins in columns):
            continue
        cells = [f"{mine.edges[k]:.2f} to {mine.edges[k + 1]:.2f}"]
        for name, bins in columns:
            count = int(bins.counts[k])
            own = name == found.name
            cells.append(counted(count, f"bin.{k}", f"confidence {cells[0]}") if own else str(count))
            cells.append(percent(bins.accuracy[k]))
        body.append(cells)
    heads = ["Confidence", *(text for name, _ in columns for text in (f"{name}: clips", "right"))]
    bins = tag("details", tag("summary", "The bins as a table") + table(heads, body, class_="numbers"))
    words = "Brier from 0 to 2, NLL in nats. ECE is biased upwards on few clips."
    return numbers + tag("p", esc(words), class_="soft") + bins


def risk_plot(found: Analysis, threshold: float) -> go.Figure:
    """The curve of the method over that of the provisional label, and where the threshold lies on it."""
    named = {"provisional label": found.raw, found.name: found.mine}
    curves = {name: one.risk for name, one in named.items() if one is not None and one.risk is not None}
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
    answered = (mine.frame["confidence"] >= threshold).to_numpy()
    n, given = mine.n, int(answered.sum())
    withheld = n - given
    said = "Answers nothing: no clip is that sure."
    if given:
        risk = mine.wrong_from(threshold)
        said = f"Answers {given} of {n} clips (coverage {percent(given / n, 1)}), "
        said += f"{percent(risk.value, 1)} of them wrong{within(risk)}."
    opened = tag("p", "It abstains on no clip.")
    if withheld:
        spoken = f"{withheld} clips less sure than the threshold"
        button = opener(f"Show the {withheld} clips it abstains on", "unsure", spoken, "wide")
        opened = tag("p", button + esc(f"; {int((~mine.top_right_C[~answered]).sum())} of them would have been wrong."))
    wishes = tag("p", NO_THRESHOLDS, class_="soft")
    if mine.thresholds is not None:
        rows = []
        for wanted, lowest, coverage, wrong in mine.at_thresholds:
            cells = ["none does" if lowest is None else f"{lowest:.3f}", percent(coverage, 1), marked(wrong)]
            rows.append([f"at most {percent(float(wanted))} wrong", *cells])
        where = "on these very clips" if found.choice.split == "validation" else "on validation clips"
        heads = ["Wanted", f"threshold, chosen {where}", "coverage here", "wrong here %"]
        wishes = table(heads, rows, class_="numbers")
    mean = tag("p", f"Mean risk over all coverages (AURC): {number(mine.risk.area)} %", class_="soft")
    return tag("p", esc(said), role="status") + opened + wishes + mean + _label_sets(found)


def _label_sets(found: Analysis) -> str:
    """Split-conformal sets of labels, as the run card has them."""
    rows = [
        [percent(one.target), str(one.n), marked(one.coverage), number(one.size, 1, 2), percent(one.single)]
        for one in found.mine.sets
    ]
    words = "Or a set of labels for each clip, large enough to hold the truth as often as promised (split-conformal)."
    heads = ["Promised", "n", "holds the truth %", "labels a set", "of one label"]
    return tag("p", words, class_="soft") + table(heads, rows, class_="numbers")
