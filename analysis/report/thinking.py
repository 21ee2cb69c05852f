"""Thinking only when needed, drawn: what each threshold of the gate costs and brings (VideoAuto-R1).

quick = quick_answers(run.read("traces"), labels)                   # of a run whose traces all thought
gate_figure(gate_curve(*(quick[name] for name in GATE_COLUMNS)))
"""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from deepintuit.labels import LabelSet
from deepintuit.metrics import GateCurve
from deepintuit.trace import GRAMMARS, parse
from deepintuit_analysis.report.figures import COLOURS, empty, finished

QUICK_GRAMMARS = tuple(name for name, grammar in GRAMMARS.items() if grammar.quick)
GATE_COLUMNS = ("confidence", "quick_right", "final_right", "quick_tokens", "tokens")
"""Of `quick_answers`, in the order in which `metrics.gate_curve` takes them."""


def quick_answers(traces: pd.DataFrame, labels: LabelSet) -> pd.DataFrame:
    """One row per trace that gave, or could have given, a quick answer and thought to the end: its confidence (the
    calibrator's, where that was the gate), whether quick and final answer were right, tokens up to the quick answer and
    in all. Empty where no trace was watched."""
    watched = traces[traces["quick_tokens"].notna() & (traces["thought"] != False)]  # noqa: E712 - null is neither
    rows = []
    for row in watched.to_dict("records"):
        readings = (parse(row["text"], grammar, labels, bool(row["truncated"])) for grammar in QUICK_GRAMMARS)
        quick = next((trace.quick for trace in readings if trace.ok), None)
        rows.append((
            row["clip_id"], row["quick_confidence"] if pd.isna(sure := row.get("quick_probability")) else sure,
            float(quick == row["true_label"]),
            float(row["provisional"] == row["true_label"]), row["quick_tokens"], row["tokens"],
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=["clip_id", *GATE_COLUMNS])


def gate_figure(curve: GateCurve, threshold: float | None = None) -> go.Figure:
    """Accuracy against the share of clips that think, with the tokens each point costs; `threshold` marks one of
    them."""
    if not len(curve.thresholds):
        return empty(f"No trace here gave a quick answer: {' and '.join(QUICK_GRAMMARS)} ask for one.")
    figure = go.Figure()
    figure.add_scatter(
        x=100 * curve.think_rate, y=100 * curve.accuracy, mode="lines+markers", name="thresholds",
        line=dict(color=COLOURS[0], width=2.5), marker=dict(size=4),
        customdata=np.stack([curve.thresholds, curve.tokens], 1),
        hovertemplate="thinks on %{x:.0f} % of clips, %{y:.1f} % right, %{customdata[1]:.0f} tokens per clip, "
                      "threshold %{customdata[0]:.3f}<extra></extra>",
    )  # fmt: skip
    never, always = curve.at(0.0), curve.at(np.inf)
    words = (
        f"Always thinking is {100 * always[1]:.1f} % right at {always[2]:.0f} tokens per clip; "
        f"never, where it may, {100 * never[1]:.1f} % at {never[2]:.0f}"
    )
    if threshold is not None:
        rate, accuracy, tokens = curve.at(threshold)
        label = f"{threshold:.3g}: {100 * accuracy:.1f} %, {tokens:.0f} tokens"
        figure.add_scatter(
            x=[100 * rate], y=[100 * accuracy], mode="markers+text", text=[html.escape(label)], name="chosen",
            textposition="bottom center", marker=dict(size=12, color=COLOURS[1], symbol="diamond"),
        )  # fmt: skip
    return finished(
        figure,
        words,
        320,
        xaxis=dict(title_text="Clips that think (%)", range=[-2, 102]),
        yaxis=dict(title_text="Accuracy (%)"),
        showlegend=False,
    )
