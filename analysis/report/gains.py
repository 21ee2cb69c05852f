"""What each stage brings to each class (DeepIntuit, figure 6): F1 by class, stage against stage, with intervals.

    found = class_gains(stages_of(rows, headline(rows)))
    gains_figure(found)

Not corrected for looking at many classes: with twenty of them, one interval in twenty misses.
"""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from deepintuit.metrics import Estimate
from deepintuit_analysis.numbers import interval, number
from deepintuit_analysis.report.figures import (
    CALIBRATED,
    FOURTH,
    GAIN,
    MOST_CLASSES,
    RAW,
    SYMBOLS,
    bars,
    cut,
    empty,
    few_of,
    finished,
    safe,
)
from deepintuit_analysis.report.results import Comparison, Result
from deepintuit_analysis.report.text import shown


@dataclass(frozen=True)
class ClassGains:
    """F1 of each class after each stage, on the clips that all stages answered; `support_K` counts them by true class.
    `gains_K` are the last stage minus the first, on the same draws of the same clips."""

    labels: tuple[str, ...]
    support_K: tuple[int, ...]
    stages: Mapping[str, tuple[Estimate, ...]]
    gains_K: tuple[Estimate, ...]


def stages_of(rows: Sequence[Result], row: Result | None) -> dict[str, Result]:
    """Stage → result: the provisional label of each system up to the one of `row`, then that row itself."""
    if row is None:
        return {}
    raw = [line for line in rows if (line.method, line.control) == ("raw", "none")]
    stages = {shown(line.system): line for line in raw if f"{row.system} + ".startswith(f"{line.system} + ")}
    return stages if row.method == "raw" else stages | {shown(row.method): row}


def class_gains(stages: Mapping[str, Result]) -> ClassGains | None:
    """None with fewer than two stages, or no clip that all of them answered."""
    if len(stages) < 2:
        return None
    clips = functools.reduce(pd.Index.intersection, (stage.frame.index for stage in stages.values()))
    if not len(clips):
        return None
    common = {name: stage.on(clips) for name, stage in stages.items()}
    first, *_, last = common.values()
    return ClassGains(
        last.labels,
        tuple(last.evaluation.classes.support_K.tolist()),
        {name: stage.f1_K for name, stage in common.items()},
        Comparison(first, last).f1_K,
    )


def gains_figure(table: ClassGains | None) -> go.Figure:
    """A row per class, the largest gain on top: the F1 of each stage with its interval, and the gain in points. Of
    more than `MOST_CLASSES` those that gain most and least."""
    if table is None or not table.labels:
        return empty("Classes are compared where two stages answered the same clips.")
    gains = [-math.inf if math.isnan(gain.value) else gain.value for gain in table.gains_K]
    order = sorted(range(len(gains)), key=lambda k: -gains[k])
    title = _title(table, order)
    if len(order) > MOST_CLASSES:
        order = order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]
        title += few_of(len(gains))
    K = len(order)
    figure = go.Figure()
    colours = (RAW, FOURTH, GAIN)
    for number_of, (name, f1_K) in enumerate(table.stages.items()):
        last = number_of == len(table.stages) - 1
        values, spans = bars([f1_K[k] for k in order])
        offset = 0.5 * (number_of / max(1, len(table.stages) - 1) - 0.5)
        figure.add_scatter(
            x=values,
            y=np.arange(K) + offset,
            mode="markers",
            name=html.escape(name),
            cliponaxis=False,
            marker=dict(size=10, color=CALIBRATED if last else colours[number_of % 3], symbol=SYMBOLS[number_of % 5]),
            error_x=spans,
            customdata=[f"{safe(table.labels[k])}: {number(f1_K[k].value)} % {interval(f1_K[k])}" for k in order],
            hovertemplate="%{customdata}<extra>" + html.escape(name) + "</extra>",
        )
    for place, k in enumerate(order):
        gain = table.gains_K[k]
        figure.add_annotation(
            x=1,
            xref="paper",
            y=place,
            xanchor="left",
            xshift=10,
            showarrow=False,
            align="left",
            text=f"<b>{number(gain.value, sign=True)}</b><br>{interval(gain, sign=True)}",
            font_size=12,
        )
    names = [f"{safe(table.labels[k], 28)} (n = {table.support_K[k]})" for k in order]
    chart = finished(
        figure,
        title,
        60 + 52 * K,
        xaxis=dict(title_text="F1 (%), and gain in points", range=[_start(table), 101]),
        yaxis=dict(tickmode="array", tickvals=list(range(K)), ticktext=names, range=[K - 0.5, -0.5], zeroline=False),
    )
    return chart.update_layout(margin_r=120)


def _start(table: ClassGains) -> float:
    """The axis begins below all intervals: points are compared by place, not by length."""
    lows = [low for f1_K in table.stages.values() for e in f1_K for low in (e.low, e.value) if low == low]
    return 10 * math.floor(min(lows, default=0.0) * 10)


def _title(table: ClassGains, order: Sequence[int]) -> str:
    finite = [k for k in order if not math.isnan(table.gains_K[k].value)]
    if not finite:
        return "No class was true or answered"
    best, least = finite[0], finite[-1]
    words = f"F1 gains most on {cut(table.labels[best], 30)} ({number(table.gains_K[best].value, sign=True)} points)"
    if best != least:
        words += f", least on {cut(table.labels[least], 30)} ({number(table.gains_K[least].value, sign=True)})"
    return words
