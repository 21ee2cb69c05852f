"""Figures of a result: pure functions from computed numbers to Plotly figures, each titled with what it shows.

One calm template: grey is the provisional label, blue the calibrated one, vermilion a loss. Colour-blind eyes tell them
apart (after Okabe & Ito), and grey print does by marker, dash or hatching. Titles wrap at 700 px; the plain title is
in `layout.meta`. Empty input gives a figure with a sentence in it.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from deepintuit.metrics import Bins, ClassCurve, Estimate, Flips, RiskCoverage
from deepintuit_analysis.numbers import number, percent

RAW, CALIBRATED, LOSS, GAIN, FOURTH = "#8a8f98", "#2f7fc1", "#d55e00", "#009e73", "#b0689b"
COLOURS = (CALIBRATED, LOSS, GAIN, FOURTH, RAW)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_ONE_LINE = 78  # characters of a title at 700 px
MOST_CLASSES = 40
"""Classes that a figure or a table of pairs shows; of more, those that it is about. Lists of classes hold all."""


def template(dark: bool = False) -> go.layout.Template:
    """The look of every figure, for a light or a dark page. Backgrounds are clear, so that the page's shows."""
    ink, line, clear = ("#e6e8eb", "#3a4048", "rgba(0,0,0,0)") if dark else ("#22262b", "#dfe3e8", "rgba(0,0,0,0)")
    axis = dict(
        gridcolor=line,
        linecolor=line,
        zerolinecolor=line,
        ticks="",
        automargin=True,
        title=dict(standoff=8, font=dict(size=13)),
    )
    return go.layout.Template(
        data=dict(bar=[dict(error_x=dict(color=ink))]),
        layout=dict(
            font=dict(family=_FONT, size=13, color=ink),
            paper_bgcolor=clear,
            plot_bgcolor=clear,
            colorway=list(COLOURS),
            title=dict(
                font=dict(size=16),
                x=0,
                xref="container",
                xanchor="left",
                pad=dict(l=8),
                y=1,
                yref="container",
                yanchor="top",
            ),
            legend=dict(
                orientation="h", x=0, xanchor="left", y=1.0, yanchor="bottom", bgcolor=clear, font=dict(size=12)
            ),
            margin=dict(l=8, r=20, t=84, b=8),
            xaxis=axis,
            yaxis=axis,
            hoverlabel=dict(font=dict(family=_FONT)),
            annotationdefaults=dict(font=dict(color=ink), arrowcolor=ink),
            separators=".\u202f",
        ),
    )


LIGHT, DARK = template(), template(dark=True)


def safe(text: str, most: int = 60) -> str:
    """Foreign text for Plotly, which reads a little HTML in every label; cut at `most` characters."""
    return html.escape(cut(text, most), quote=False)


def cut(text: str, most: int) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"


def finished(figure: go.Figure, title: str, height: int, **layout: object) -> go.Figure:
    """Title (wrapped, escaped), template and height in pixels."""
    lines = textwrap.wrap(title, _ONE_LINE)
    text = "<br>".join(html.escape(line, quote=False) for line in lines)
    top = 60 + 22 * max(1, len(lines))
    figure.update_layout(
        template=LIGHT,
        title_text=text,
        title_pad=dict(t=12, l=8),
        height=height + top,
        margin_t=top,
        meta=title,
        **layout,
    )
    return figure


def empty(text: str, height: int = 120) -> go.Figure:
    """A figure that says why there is nothing to see."""
    figure = go.Figure()
    figure.add_annotation(
        text=html.escape(text, quote=False), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper"
    )
    return finished(figure, "Nothing to draw yet", height, xaxis_visible=False, yaxis_visible=False)


def few_of(classes: int) -> str:
    """What a title says where not all classes are shown; nothing where they are."""
    return f" ({MOST_CLASSES} of {classes} classes)" if classes > MOST_CLASSES else ""


def most_confused(counts_K_K1: np.ndarray) -> np.ndarray:
    """The classes with the most mistakes, their own clips' or others' answered as they are, at most `MOST_CLASSES`, in
    the order of the labels."""
    right = np.diag(counts_K_K1)
    mistakes = counts_K_K1.sum(1) + counts_K_K1[:, :-1].sum(0) - 2 * right
    return np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])


def bars(estimates: Sequence[Estimate | None]) -> tuple[np.ndarray, dict[str, object]]:
    """Values and error bars in percent; where there is no interval the bar has none."""
    rows = [(math.nan,) * 3 if e is None else (e.value, e.low, e.high) for e in estimates]
    value, low, high = 100 * np.array(rows).reshape(-1, 3).T
    return value, dict(
        type="data",
        symmetric=False,
        array=np.nan_to_num(high - value).clip(0),
        arrayminus=np.nan_to_num(value - low).clip(0),
        thickness=1.5,
        width=4,
    )


def _fill(colour: str, hatched: bool) -> dict[str, object]:
    hatching = dict(shape="/", fgcolor="rgba(255,255,255,0.6)", bgcolor=colour, size=6, solidity=0.2)
    return dict(color=colour, pattern=hatching if hatched else None)


def _names_axis(names: Sequence[str], **more: object) -> dict[str, object]:
    """Positions with texts beside them: names that look like dates or numbers, or are alike when cut, stay apart.

    Ticks that nobody sees hold the names off the axis, where a mark at 0 would lie on them."""
    return dict(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[safe(name, 34) for name in names],
        ticks="outside",
        ticklen=8,
        tickcolor="rgba(0,0,0,0)",
        **more,
    )


def stages_figure(
    names: Sequence[str],
    raw: Sequence[Estimate | None],
    calibrated: Sequence[Estimate | None],
    *,
    title: str | None = None,
    quantity: str = "Accuracy",
    series: tuple[str, str] = ("provisional label", "calibrated label"),
) -> go.Figure:
    """Horizontal bars with intervals, a pair per system (fractions); None leaves a bar out."""
    if not names:
        return empty("No system was evaluated yet.")
    figure = go.Figure()
    for name, estimates, colour, offset in ((series[0], raw, RAW, -0.19), (series[1], calibrated, CALIBRATED, 0.19)):
        if all(estimate is None for estimate in estimates):
            continue
        values, spans = bars(estimates)
        alone = [before is None or after is None for before, after in zip(raw, calibrated, strict=True)]
        places = [k + (0 if single else offset) for k, single in enumerate(alone)]
        figure.add_bar(
            y=places,
            x=values,
            error_x=spans,
            name=html.escape(name),
            orientation="h",
            width=0.34,
            marker=_fill(colour, hatched=colour == RAW),
            customdata=[safe(system) for system in names],
            hovertemplate="%{customdata}: %{x:.1f} %<extra>" + html.escape(name) + "</extra>",
        )
    for k, pair in enumerate(zip(raw, calibrated, strict=True)):
        for estimate, offset in zip(pair, (-0.19, 0.19), strict=True):
            if estimate is not None and not math.isnan(estimate.value):
                figure.add_annotation(
                    x=100 * np.fmax(estimate.value, estimate.high),
                    y=k + (0 if None in pair else offset),
                    text=number(estimate.value),
                    showarrow=False,
                    xanchor="left",
                    xshift=6,
                    font_size=12,
                )
    return finished(
        figure,
        title or _stages_title(names, raw, calibrated),
        40 + 54 * len(names),
        xaxis=dict(title_text=f"{quantity} (%)", range=[0, 104]),
        yaxis=_names_axis(names, autorange="reversed", showgrid=False),
        bargap=0.3,
        barmode="overlay",
    )


def _stages_title(names: Sequence[str], raw: Sequence[Estimate | None], calibrated: Sequence[Estimate | None]) -> str:
    pairs = [(name, a.value, b.value) for name, a, b in zip(names, raw, calibrated, strict=True) if a and b]
    if not pairs:
        return "How many clips each system answers right"
    name, before, after = pairs[-1]
    if abs(after - before) < 5e-4:
        return f"{name}: {percent(before, 1)} provisional, and the same calibrated"
    return f"{name}: from {percent(before, 1)} provisional to {percent(after, 1)} calibrated"


def confusion_figure(counts_K_K1: ArrayLike, labels: Sequence[str]) -> go.Figure:
    """Counts of true (rows) against answered labels; the last column is "none". Shades are shares of a row. Of more
    than `MOST_CLASSES` classes, those that are confused most."""
    counts = np.asarray(counts_K_K1, dtype=np.int64)
    if not counts.size or not counts.sum():
        return empty("No clip with a true label was answered yet.")
    total = counts.sum(1, keepdims=True)
    shares = np.divide(100.0 * counts, total, out=np.zeros(counts.shape), where=total > 0)
    title = _confusion_title(counts, labels) + few_of(len(labels))
    classes = most_confused(counts)
    cells = np.ix_(classes, [*classes, len(labels)])
    counts, shares, labels = counts[cells], shares[cells], [labels[k] for k in classes]
    answers = [*labels, "no answer"]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            zmin=0,
            zmax=100,
            xgap=2,
            ygap=2,
            text=counts,
            texttemplate="%{text}",
            hoverongaps=False,
            colorscale=[[0, "#eef3f8"], [0.5, "#7fb0d9"], [1, "#1d5f99"]],
            showscale=False,
            customdata=[[f"{safe(true)} answered as {safe(answer)}" for answer in answers] for true in labels],
            hovertemplate="%{customdata}<br>%{text} clips, %{z:.1f} % of the row<extra></extra>",
        )
    )
    return finished(
        figure,
        title,
        90 + 44 * len(labels),
        xaxis=_names_axis(
            answers, title_text="Answered (shade: share of the row)", tickangle=-40, showgrid=False, zeroline=False
        ),
        yaxis=_names_axis(labels, title_text="True", autorange="reversed", showgrid=False, zeroline=False),
    )


def _confusion_title(counts: np.ndarray, labels: Sequence[str]) -> str:
    off = counts.copy()
    off[np.arange(len(labels)), np.arange(len(labels))] = 0
    if not off.sum():
        return f"All {counts.sum()} clips are answered right"
    true, answer = np.unravel_index(off.argmax(), off.shape)
    name = labels[answer] if answer < len(labels) else "no answer"
    return (
        f"The commonest mistake: {cut(labels[true], 30)} answered as {cut(name, 30)}, "
        f"{off[true, answer]} of {counts[true].sum()} clips"
    )


def reliability_figure(bins_by_name: Mapping[str, Bins]) -> go.Figure:
    """Accuracy against confidence for each named set of bins, over the count of clips a bin. On the diagonal,
    confidence is honest."""
    filled = {name: bins for name, bins in bins_by_name.items() if bins.counts.sum()}
    if not filled:
        return empty("No answer came with probabilities, so there is no confidence to check.")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.74, 0.26], vertical_spacing=0.06)
    figure.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        line=dict(color=RAW, width=1, dash="dot"),
        showlegend=False,
        hoverinfo="skip",
        row=1,
        col=1,
    )
    colours = (RAW, CALIBRATED) if len(filled) == 2 else COLOURS
    for k, (name, bins) in enumerate(filled.items()):
        full = bins.counts > 0
        colour, counts = colours[k % len(colours)], bins.counts
        figure.add_scatter(  # no line runs through an empty bin
            x=np.where(full, 100 * bins.confidence, np.nan),
            y=np.where(full, 100 * bins.accuracy, np.nan),
            mode="lines+markers",
            customdata=counts,
            name=f"{html.escape(name)} (ECE {percent(bins.ece, 1)})",
            legendgroup=str(k),
            line=dict(color=colour, width=1.5, dash=DASHES[(len(filled) - 1 - k) % 5]),
            # Area as the count, so that a bin of three clips does not look like one of three hundred.
            marker=dict(color=colour, symbol=SYMBOLS[k % 5], size=6 + 14 * np.sqrt(counts / bins.counts.max())),
            hovertemplate="confidence %{x:.1f} %, accuracy %{y:.1f} %, n = %{customdata}<extra></extra>",
            row=1,
            col=1,
        )
        middle, wide = 50 * (bins.edges[1:] + bins.edges[:-1]), 100 * np.diff(bins.edges) / len(filled)
        figure.add_bar(
            x=middle + wide * (k - (len(filled) - 1) / 2),
            y=bins.counts,
            width=wide * 0.9,
            marker_color=colour,
            legendgroup=str(k),
            showlegend=False,
            row=2,
            col=1,
            hovertemplate="%{y} clips<extra></extra>",
        )
    ticks = dict(range=[0, 101], dtick=20)
    figure.update_xaxes(**ticks)
    figure.update_xaxes(title_text="Confidence, the probability of the calibrated label (%)", row=2, col=1)
    figure.update_yaxes(**ticks, title_text="Accuracy (%)", row=1, col=1)
    figure.update_yaxes(title_text="Clips", row=2, col=1)
    return finished(figure, _reliability_title(filled), 430, barmode="overlay")


def _reliability_title(bins_by_name: Mapping[str, Bins]) -> str:
    last = list(bins_by_name.values())[-1]
    gap = float(np.nansum((last.confidence - last.accuracy) * last.counts) / last.counts.sum())
    lean = "neither too sure nor too shy" if abs(gap) < 0.02 else "too sure" if gap > 0 else "too shy"
    return f"Confidence and accuracy differ by {number(last.ece)} points on average; on the whole {lean}"


def risk_coverage_figure(curves: Mapping[str, RiskCoverage]) -> go.Figure:
    """Share of wrong answers among those given, as fewer and fewer unsure clips are answered. The last curve is the one
    the figure speaks of: blue and solid."""
    filled = {name: curve for name, curve in curves.items() if len(curve.coverage)}
    if not filled:
        return empty("No answer came with probabilities, so none can be withheld by confidence.")
    figure = go.Figure()
    colours = (CALIBRATED, RAW) if len(filled) == 2 else COLOURS
    for k, (name, curve) in zip(reversed(range(len(filled))), filled.items(), strict=True):
        figure.add_scatter(
            x=100 * curve.coverage,
            y=100 * curve.risk,
            customdata=curve.threshold,
            name=html.escape(name),
            mode="lines+markers" if len(curve.coverage) < 3 else "lines",
            line=dict(color=colours[k % len(colours)], width=1.5 if k else 2.5, dash=DASHES[k % 5], shape="hv"),
            hovertemplate="answers %{x:.0f} % of clips, %{y:.1f} % of them wrong, "
            "confidence from %{customdata:.2f} on<extra></extra>",
        )
    curve = list(filled.values())[-1]
    half, whole = (float(curve.risk[np.searchsorted(curve.coverage, share - 1e-9)]) for share in (0.5, 1.0))
    words = f"Answering only the surer half errs on {percent(half, 1)}; answering all errs on {percent(whole, 1)}"
    return finished(
        figure,
        words,
        300,
        xaxis=dict(title_text="Clips answered, surest first (%)", range=[0, 101]),
        yaxis=dict(title_text="Wrong among them (%)", rangemode="tozero"),
        showlegend=len(filled) > 1,
    )


def ranking_figure(
    labels: Sequence[str],
    curves_K: Sequence[ClassCurve] | None,
    focus: int,
    points: Mapping[str, tuple[float, float, float]],
    words: str = "",
) -> go.Figure:
    """ROC and precision–recall of each class against the rest; that of `focus` is blue, the others grey. `points`:
    name → false positive rate, recall and precision at which that class is called."""
    if not curves_K:
        return empty("No answer came with probabilities, so no class can be ranked by them.")
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for k in [*(k for k in range(len(labels))[:MOST_CLASSES] if k != focus), focus]:
        curve, bold = curves_K[k], k == focus
        look = dict(color=CALIBRATED, width=2.5) if bold else dict(color=RAW, width=1)
        places = np.unique(np.linspace(0, len(curve.threshold) - 1, 500 if bold else 100).astype(int))
        fall_out, recall, precision = (
            (100 * rate[places]).round(2) for rate in (curve.fall_out, curve.recall, curve.precision)
        )
        # Precision is that of the step that leads to a recall, as average precision sums it.
        roc = np.append(0, fall_out), np.append(0, recall), "linear"
        for col, (x, y, shape) in enumerate((roc, (recall, precision, "vh")), 1):
            figure.add_scatter(
                x=x, y=y, name=safe(labels[k]), mode="lines", line=dict(look, shape=shape), showlegend=False,
                opacity=1 if bold else 0.45, row=1, col=col, hovertemplate="%{y:.1f} % at %{x:.1f} %",
            )  # fmt: skip
    for mark_index, (name, (fall_out, recall, precision)) in enumerate(points.items()):
        mark = dict(
            size=13,
            color=(LOSS, FOURTH)[mark_index % 2],
            symbol=SYMBOLS[2 + mark_index % 2],
            line_color="white",
            line_width=1,
        )
        for col, (x, y) in enumerate(((fall_out, recall), (recall, precision)), 1):
            figure.add_scatter(
                x=[100 * x], y=[100 * y], mode="markers", marker=mark, name=safe(name), legendgroup=name,
                showlegend=col == 1, cliponaxis=False, row=1, col=col, hovertemplate="%{y:.1f} % at %{x:.1f} %",
            )  # fmt: skip
    figure.update_xaxes(range=[-1, 101], dtick=20)
    figure.update_yaxes(range=[-1, 103], dtick=20)
    for col, (x, y) in enumerate((("False positive rate (%)", "Recall (%)"), ("Recall (%)", "Precision (%)")), 1):
        figure.update_xaxes(title_text=x, row=1, col=col)
        figure.update_yaxes(title_text=y, row=1, col=col)
    return finished(figure, words or f"{labels[focus]} against the other classes", 300)


def class_f1_figure(labels: Sequence[str], f1_by_name: Mapping[str, ArrayLike], support_K: ArrayLike) -> go.Figure:
    """F1 of each class for each named system; a class that was neither true nor answered has no point. Of more than
    `MOST_CLASSES` classes, those of lowest F1."""
    if not labels or not f1_by_name:
        return empty("No class was scored yet.")
    every = [100 * np.asarray(f1_K, dtype=float) for f1_K in f1_by_name.values()]
    words = _f1_title(labels, every[-1]) + few_of(len(labels))
    classes = np.sort(np.argsort(every[-1], kind="stable")[:MOST_CLASSES])  # nan, which nobody asked for, comes last
    columns, labels = [column[classes] for column in every], [labels[k] for k in classes]
    names = [f"{label} (n = {n})" for label, n in zip(labels, np.asarray(support_K)[classes].tolist(), strict=True)]
    figure = go.Figure()
    if len(columns) > 1:
        ends = np.stack([np.fmin.reduce(columns), np.fmax.reduce(columns), np.full(len(labels), np.nan)], 1)
        figure.add_scatter(
            x=ends.ravel(),
            y=np.repeat(np.arange(len(labels)), 3),
            mode="lines",
            line=dict(color=RAW, width=1),
            opacity=0.6,
            showlegend=False,
            hoverinfo="skip",
        )
    colours = (RAW, CALIBRATED) if len(columns) == 2 else COLOURS
    for k, (name, column) in enumerate(zip(f1_by_name, columns, strict=True)):
        figure.add_scatter(
            x=column,
            y=list(range(len(labels))),
            mode="markers",
            name=html.escape(name),
            cliponaxis=False,
            marker=dict(size=12, color=colours[k % len(colours)], symbol=SYMBOLS[k % 5]),
            hovertemplate="F1 %{x:.1f} %<extra>" + html.escape(name) + "</extra>",
        )
    return finished(
        figure,
        words,
        60 + 36 * len(labels),
        xaxis=dict(title_text="F1 (%)", range=[0, 101]),
        yaxis=_names_axis(names, range=[len(labels) - 0.5, -0.5], zeroline=False),
    )


def _f1_title(labels: Sequence[str], last: np.ndarray) -> str:
    if np.isnan(last).all():
        return "F1 by class"
    worst, best = int(np.nanargmin(last)), int(np.nanargmax(last))
    words = f"F1 is lowest on {labels[worst]} ({percent(last[worst] / 100, 1)})"
    return words + (f" and highest on {labels[best]} ({percent(last[best] / 100, 1)})" if best != worst else "")


def flips_figure(names: Sequence[str], flips: Sequence[Flips]) -> go.Figure:
    """Clips fixed (to the right) and broken (to the left) against the provisional label."""
    if not names:
        return empty("No calibrated label stands beside a provisional one yet.")
    figure = go.Figure()
    won, lost = [f.wrong_to_right for f in flips], [f.right_to_wrong for f in flips]
    for values, counts, colour, name in (([-n for n in lost], lost, LOSS, "broken"), (won, won, CALIBRATED, "fixed")):
        figure.add_bar(
            y=list(range(len(names))),
            x=values,
            orientation="h",
            name=name,
            text=counts,
            textposition="outside",
            cliponaxis=False,
            width=0.55,
            hovertemplate="%{text} clips<extra>" + name + "</extra>",
            marker=_fill(colour, hatched=colour == LOSS),
        )
    most = max([1, *won, *lost])
    step = next(s * 10**e for e in range(9) for s in (1, 2, 5) if s * 10**e >= most / 4)
    ticks = list(range(-step * (most // step), most + 1, step))
    words = f"{names[-1]}: {won[-1]} clips fixed, {lost[-1]} broken"
    return finished(
        figure,
        words,
        70 + 34 * len(names),
        barmode="overlay",
        xaxis=dict(
            title_text="Clips whose label changed",
            tickvals=ticks,
            range=[-1.1 * max(lost) - 0.1 * most, 1.1 * max(won) + 0.1 * most],
            ticktext=[str(abs(tick)) for tick in ticks],
            zerolinewidth=1.5,
            zerolinecolor=RAW,
        ),
        yaxis=_names_axis(names, range=[len(names) - 0.5, -0.5], showgrid=False),
    )
