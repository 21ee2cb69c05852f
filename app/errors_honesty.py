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


def f1_figure(analysis: Analysis) -> go.Figure:
    """F1 by class: what it is compared with (the other, else the provisional label), then its own."""

    base = {analysis.other_name: analysis.other} if analysis.other is not None else {"provisional label": analysis.raw}
    results = {name: result for name, result in {**base, analysis.name: analysis.mine}.items() if result is not None}
    f1 = {name: result.evaluation.classes.f1_K for name, result in results.items()}
    return narrow(class_f1_figure(analysis.labels, f1, analysis.mine.evaluation.classes.support_K))


def _reliabilities(analysis: Analysis) -> dict[str, Result]:
    """Name → result with probabilities, in the order of the work: raw, before the temperature, calibrated."""
    own, results = analysis.mine, {}
    if analysis.raw is not None:
        results["provisional label"] = analysis.raw
    if own.untempered is not None and abs(own.temperature - 1) > 1e-3:
        results[f"before the temperature {own.temperature:.2f}"] = own.untempered
    results[analysis.name] = own
    return {name: result for name, result in results.items() if result.probs_C_K is not None}


def reliability_plot(analysis: Analysis) -> go.Figure:
    results = _reliabilities(analysis)
    if len(results) == 3:  # the diagram shows before and after; the table beside it has all three
        results = {name: results[name] for name in (next(iter(results)), analysis.name)}
    return narrow(reliability_figure({name: result.evaluation.bins for name, result in results.items()}))


@lru_cache(maxsize=16)
def honesty(analysis: Analysis) -> str:
    """ECE, Brier score and NLL before and after, and the bins as a table."""
    results = _reliabilities(analysis)
    columns = [(name, result.evaluation.bins) for name, result in results.items()]
    rows = []
    for k in range(len(columns[-1][1].counts) if columns else 0):
        if not any(bins.counts[k] for _, bins in columns):
            continue
        edges = columns[-1][1].edges
        rows.append(
            {
                "range": f"{edges[k]:.2f} to {edges[k + 1]:.2f}",
                "place": f"bin.{k}",
                "cells": [(int(bins.counts[k]), bins.accuracy[k], name == analysis.name) for name, bins in columns],
            }
        )
    return render(
        "errors/honesty.html",
        results=[(name, result.n, result.evaluation) for name, result in results.items()],
        heads=["Confidence", *(text for name, _ in columns for text in (f"{name}: clips", "right"))],
        bins=rows,
    )


def risk_plot(analysis: Analysis, threshold: float) -> go.Figure:
    """The curve of the method over that of the provisional label, and where the threshold lies on it."""
    results = {"provisional label": analysis.raw, analysis.name: analysis.mine}
    curves = {name: result.risk for name, result in results.items() if result is not None and result.risk is not None}
    figure = narrow(risk_coverage_figure(curves))
    if analysis.mine.probs_C_K is not None:
        covered = 100 * float((analysis.mine.frame["confidence"] >= threshold).mean())
        figure.add_vline(x=covered, line_dash="dot", line_color="#d55e00", line_width=2)
        side = {"xanchor": "right", "xshift": -5} if covered > 50 else {"xanchor": "left", "xshift": 5}
        text = {"text": f"≥ {threshold:.3g}", "font_color": "#d55e00", "showarrow": False}
        figure.add_annotation(x=covered, y=1, yref="paper", **text, **side)
    return figure


def abstain(analysis: Analysis, threshold: float) -> str:
    """What the threshold gives in words, the clips it abstains on, and thresholds for wanted risks."""
    result = analysis.mine
    if result.probs_C_K is None:
        return empty("These answers have no probabilities, so none can be withheld by confidence.")
    answered = (result.frame["confidence"] >= threshold).to_numpy()
    n, n_answered = result.n, int(answered.sum())
    withheld = n - n_answered
    words = "Answers nothing: no clip is that sure."
    if n_answered:
        risk = result.wrong_from(threshold)
        words = f"Answers {n_answered} of {n} clips (coverage {percent(n_answered / n, 1)}), "
        words += f"{percent(risk.value, 1)} of them wrong{within(risk)}."
    return render(
        "errors/abstain.html",
        answered=words,
        withheld=withheld,
        wrong=int((~result.top_right_C[~answered]).sum()),
        thresholds=None if result.thresholds is None else result.at_thresholds,
        no_thresholds=NO_THRESHOLDS,
        where="on these very clips" if analysis.choice.split == "validation" else "on validation clips",
        area=result.risk.area,
        sets=result.sets,
    )
