"""Training curves from the `steps` grain: a panel a quantity, with plain names and units.

Not smoothed: a mean hides the collapse that one looks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepintuit_analysis.report.figures import COLOURS, DASHES, empty, finished, safe
from deepintuit_analysis.report.health import Course


@dataclass(frozen=True)
class Panel:
    """One small plot. `series` maps what the legend says to the name that is logged; `scale` brings fractions to
    percent."""

    title: str
    unit: str
    series: dict[str, str]
    scale: float = 1.0


PANELS = (
    Panel("Loss", "nats a token", {"training": "loss", "validation": "validation_nll"}),
    Panel("Reward, mean", "reward", {"reward": "reward"}),
    Panel("Right answers", "% of traces", {"accuracy reward": "accuracy"}, 100),
    Panel("Well-formed", "% of traces", {"format reward": "well_formed"}, 100),
    Panel("Seeing and reasoning", "reward, mean", {"seeing": "perception_mean", "reasoning": "reasoning_mean"}),
    Panel(
        "Seeing enough, arguing otherwise",
        "% of traces",
        {"observation suffices": "sufficient_mean", "answer is not what was argued": "mismatch_mean"},
        100,
    ),
    Panel("Quick answers", "% of traces", {"right at once": "quick_mean", "put off": "put_off_mean"}, 100),
    Panel(
        "Groups that teach nothing",
        "% of groups, all rewards equal",
        {
            "zero variance": "zero_variance_share",
            "of seeing": "zero_variance_perception",
            "of reasoning": "zero_variance_reasoning",
        },
        100,
    ),
    Panel("Entropy", "nats a token", {"entropy": "entropy"}),
    Panel("Completion length", "tokens, mean", {"length": "tokens_mean"}),
    Panel(
        "Server and loss apart",
        "log-probability",
        {"mean": "sampler_difference_mean", "most": "sampler_difference_max"},
    ),
    Panel(
        "Tokens by their weights",
        "% of tokens",
        {"effective": "sampler_effective_share", "weight cut": "sampler_truncated_share"},
        100,
    ),
    Panel("Learning rate", "an update", {"rate": "learning_rate"}),
    Panel("Cut at the limit", "% of traces", {"truncated": "truncated_share"}, 100),
)


def sampled(config: Mapping[str, Any] | None) -> str:
    """Of which traces GRPO counts right answers, in words, by a run's config."""
    at = ((config or {}).get("grpo") or {}).get("temperature")
    return f"sampled {'' if at is None else f'at temperature {at:g} '}on training clips"


def training_figure(
    steps: pd.DataFrame,
    config: Mapping[str, Any] | None = None,
    name: str = "",
    beside: Mapping[str, pd.DataFrame] | None = None,
) -> go.Figure:
    """Panels of whatever known quantities `steps` (columns step, name, value) holds; other names are passed over.
    `config` of the run: for the title. `beside`: steps of other runs by their names, laid over those of this one,
    which is called `name`: a colour per run then, and a dash per quantity."""
    runs = [(run, _by_quantity(rows)) for run, rows in [(name, steps), *(beside or {}).items()]]
    runs = [(run, quantities) for run, quantities in runs if quantities]
    panels = []
    for panel in PANELS:
        series = [
            (run, legend, quantities[quantity], (k, j))
            for k, (run, quantities) in enumerate(runs)
            for j, (legend, quantity) in enumerate(panel.series.items())
            if quantity in quantities
        ]
        if series:
            panels.append((panel, series))
    if not panels:
        return empty("No training step was logged yet.")
    columns = 1 if len(panels) == 1 else 2
    lines = -(-len(panels) // columns)
    figure = make_subplots(
        rows=lines,
        cols=columns,
        vertical_spacing=0.42 / max(2, lines),
        horizontal_spacing=0.13,
        subplot_titles=[panel.title for panel, _ in panels],
    )
    several, legends = len(runs) > 1, set()
    for place, (panel, series) in enumerate(panels):
        row, column = place // columns + 1, place % columns + 1
        for run, legend, rows, (k, j) in series:
            figure.add_scatter(
                x=rows["step"],
                y=panel.scale * rows["value"],
                name=safe(run) if several else legend,
                legendgroup=run if several else None,
                showlegend=run not in legends if several else len(series) > 1,
                mode="lines+markers" if len(rows) < 30 else "lines",
                marker_size=4,
                row=row,
                col=column,
                line=dict(color=COLOURS[(k if several else j) % 5], width=1.5, dash=DASHES[j]),
                hovertemplate=f"{safe(run)} {legend}, update %{{x}}: %{{y:.3g}}<extra></extra>",
            )
            legends.add(run)
        bounds = dict(range=[0, 103]) if panel.scale == 100 else dict(rangemode="tozero")
        place = dict(row=row, col=column)
        figure.update_yaxes(title_text=panel.unit, title_font_size=11, exponentformat="e", **place, **bounds)
        figure.update_xaxes(title_text="update", title_font_size=11, row=row, col=column)
    figure.update_annotations(font_size=13)
    title = f"{len(runs)} runs, each by its updates" if several else _title(panels, config)
    figure = finished(figure, title, 210 * lines)
    figure.update_layout(legend_y=1 + 30 / (210 * lines))
    return figure


def _by_quantity(steps: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each quantity in the order of the updates."""
    return {str(name): rows.sort_values("step") for name, rows in steps.dropna(subset=["value"]).groupby("name")}


def _title(panels: list[tuple[Panel, list]], config: Mapping[str, Any] | None) -> str:
    """Where the quantity that the run is after began and ended, over the same updates as its summary and remarks."""
    order = ("Right answers", "Reward, mean", "Loss")
    panel, series = min(panels, key=lambda pair: order.index(pair[0].title) if pair[0].title in order else len(order))
    rows = series[0][2]
    course = Course(rows["value"].to_numpy(float), rows["step"].to_numpy()).finite
    if not len(course.values):
        return panel.title
    first, last = (f"{panel.scale * value:.3g}" for value in (course.first, course.last))
    unit = panel.unit.split(",")[0] + (f", {sampled(config)}" if panel.title == order[0] else "")
    return f"{panel.title}: {first} in the first {course.width} updates, {last} in the last {course.width} ({unit})"
