"""How honest an answer's confidence is, and when not to answer: numbers in HTML and the page's figures.

Pure functions of an `analysis.Analysis`; the figures are the report's, cut for half a page.
"""

from __future__ import annotations

import html
import textwrap
from functools import lru_cache
from typing import TYPE_CHECKING

from deepintuit_analysis.numbers import percent, within
from deepintuit_analysis.report import class_f1_figure, reliability_figure, risk_coverage_figure
from deepintuit_analysis.report.text import NO_THRESHOLDS
from deepintuit_app.html import empty, render

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
    columns = [(name, one.evaluation.bins) for name, one in named.items()]
    rows = []
    for k in range(len(columns[-1][1].counts) if columns else 0):
        if not any(bins.counts[k] for _, bins in columns):
            continue
        edges = columns[-1][1].edges
        rows.append(
            {
                "range": f"{edges[k]:.2f} to {edges[k + 1]:.2f}",
                "place": f"bin.{k}",
                "cells": [(int(bins.counts[k]), bins.accuracy[k], name == found.name) for name, bins in columns],
            }
        )
    return render(
        "errors/honesty.html",
        results=[(name, one.n, one.evaluation) for name, one in named.items()],
        heads=["Confidence", *(text for name, _ in columns for text in (f"{name}: clips", "right"))],
        bins=rows,
    )


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
    words = "Answers nothing: no clip is that sure."
    if given:
        risk = mine.wrong_from(threshold)
        words = f"Answers {given} of {n} clips (coverage {percent(given / n, 1)}), "
        words += f"{percent(risk.value, 1)} of them wrong{within(risk)}."
    return render(
        "errors/abstain.html",
        answered=words,
        withheld=withheld,
        wrong=int((~mine.top_right_C[~answered]).sum()),
        thresholds=None if mine.thresholds is None else mine.at_thresholds,
        no_thresholds=NO_THRESHOLDS,
        where="on these very clips" if found.choice.split == "validation" else "on validation clips",
        area=mine.risk.area,
        sets=mine.sets,
    )
