"""The run card: one HTML file that shows a result, how sure it is, what it rests on and how to get it again.

    run_card(Workbench("workbench"), ["evaluate-20260101-0a1b2c3d"])

`templates/card` has a file for each section; here are the plain values that they show.

No pixels of clips (a card is passed on, footage is not), and nothing that needs a server or a network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from rich.console import Console
from rich.text import Text

from deepintuit import disk
from deepintuit.config import SPLITS, EvaluateConfig
from deepintuit.metrics import Estimate, gate_curve
from deepintuit_analysis import Workbench
from deepintuit_analysis.numbers import interval, number, p_value
from deepintuit_analysis.render import renderer
from deepintuit_analysis.report.curves import training_figure
from deepintuit_analysis.report.figures import (
    DARK,
    LIGHT,
    class_f1_figure,
    confusion_figure,
    flips_figure,
    reliability_figure,
    risk_coverage_figure,
    stages_figure,
)
from deepintuit_analysis.report.gains import gains_figure
from deepintuit_analysis.report.gather import KINDS, Story, departures, gather, tabulate
from deepintuit_analysis.report.grounding import grounding
from deepintuit_analysis.report.results import CONTROLS, Result, headline
from deepintuit_analysis.report.text import (
    COLUMNS,
    NO_ROWS,
    NO_THRESHOLDS,
    grounding_sentence,
    sentence,
    shown,
    terminal_table,
)
from deepintuit_analysis.report.thinking import GATE_COLUMNS, gate_figure
from deepintuit_analysis.report.worst import WORSE, tried

_SECTIONS = {
    "result": "Result",
    "figures": "Figures",
    "controls": "Controls",
    "classes": "By class",
    "worst": "Worst slices",
    "unsure": "When unsure",
    "traces": "Traces",
    "run": "What was run",
    "again": "Rerun",
}
_render = renderer(
    Path(__file__).parents[1] / "templates",
    interpreted=False,
    number=number,
    interval=interval,
    p_value=p_value,
    shown=shown,
)


def run_card(workbench: Workbench, run_ids: str | Sequence[str], config: EvaluateConfig | None = None) -> Path:
    """Write the card of one or several evaluate runs and give its path, `reports/<first run id>.html` in the workbench.
    A card that is there is replaced whole.

    `config` defaults to the first run's settings, whose dataset also says what the labels are.
    StoreError for an unknown run. A run without predictions gets a card that says so.
    """
    ids = [run_ids] if isinstance(run_ids, str) else list(run_ids)
    story = gather(workbench, ids, config)
    path = workbench.path / "reports" / f"{ids[0]}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_text(path, _page(story))
    return path


def show(
    workbench: Workbench,
    run_ids: Sequence[str],
    config: EvaluateConfig | None = None,
    *,
    console: Console | None = None,
) -> None:
    """Print the table of these runs and its headline in words; settings and errors as of `run_card`."""
    console = console or Console()
    table = tabulate(workbench, run_ids, config)
    console.print(terminal_table(table.rows, console.width))
    if table.rows:
        console.print(Text(sentence(headline(table.rows, table.config.method))))
    for row in grounding(workbench, table.rows):
        console.print(Text(grounding_sentence(row)))


def _page(story: Story) -> str:
    row, reasons, figures = story.headline, story.reasons, _figures(story)
    values = {
        "rows": story.rows,
        "no_rows": NO_ROWS,
        "columns": COLUMNS,
        "level": f"{100 * story.level:g}",
        "drawn": "clips" if all(row.evaluation.groups == row.n for row in story.rows) else "whole sources of clips",
        "unlabelled": max((row.unlabelled for row in story.rows), default=0),
        "figures": figures,
        "controls": CONTROLS,
        "headline": row,
        "name": _name(row) if row else "",
        "no_thresholds": NO_THRESHOLDS,
        "gains": story.gains,
        "worst": story.worst,
        "tried": tried(story.worst) if story.worst else "",
        "worse": WORSE,
        "stages": tuple(f"{name} %" for name in story.gains.stages) if story.gains else (),
        "reasons": reasons.to_dict("records"),
        "traces": reasons["n"].sum(),
        "malformed": reasons.loc[reasons["reason"] != "well-formed", "n"].sum(),
        "examples": story.examples,
        "sampled": story.sampled,
        "grounding": story.grounding,
        "passes": sorted({k for row in story.sampled for k in row.passes}),
        "kinds": KINDS,
        "why": story.why,
        "rubrics": story.rubrics,
        "judges": story.judges,
        "known": sum(row.n for row in story.why),
        "runs": _runs(story),
        "clips": _clips(story),
        "excluded": story.excluded.to_dict("records"),
    }
    rendered = ((name, head, _render(f"card/{name}.html", **values).strip()) for name, head in _SECTIONS.items())
    about = story.runs[0]
    title = f"Run card: {about['dataset'] or about['name'] or about['run_id']}"
    sections = [section for section in rendered if section[-1]]
    return document(title, sentence(row), sections, {name: figure for name, (figure, *_) in figures.items()})


def document(
    title: str, lede: str, sections: Sequence[tuple[str, str, Markup]], figures: Mapping[str, go.Figure]
) -> str:
    """The whole page, with Plotly's script in it. `sections` are (id, heading, what a template gave)."""
    plotly = Markup(get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script"))
    scripts = (plotly, _render("card/card.js")) if figures else ()
    return _render(
        "card/page.html",
        title=title,
        lede=lede,
        sections=sections,
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        drawing={
            "figures": {f"figure-{name}": _untitled(figure) for name, figure in figures.items()},
            "light": LIGHT.to_plotly_json(),
            "dark": DARK.to_plotly_json(),
        },
        plotly=plotly,
    )


def _untitled(figure: go.Figure) -> dict[str, Any]:
    """The figure without the title, which the page sets as a caption: there it wraps at any width."""
    plain = json.loads(figure.to_json())
    layout = plain["layout"]
    spare = layout["margin"]["t"] - 44
    layout |= {"title": {"text": ""}, "height": layout["height"] - spare, "margin": {**layout["margin"], "t": 44}}
    layout.pop("template", None)
    return plain


def _name(row: Result) -> str:
    return f"{shown(row.system)}, {shown(row.method)}"


# Figures


def _figures(story: Story) -> dict[str, tuple[go.Figure, str, bool]]:
    """By element id: figure, a note under its title, whether it takes the whole width."""
    row = story.headline
    figures = {} if row is None else _result_figures(story, row)
    for place, (run_id, steps) in enumerate(reversed(story.steps.items())):
        figure = training_figure(steps)
        if figure.data:
            figures[f"training-{place}"] = (figure, run_id, len(figure.data) > 2)
    return {name: entry for name, entry in figures.items() if entry[0].data}


def _result_figures(story: Story, row: Result) -> dict[str, tuple[go.Figure, str, bool]]:
    plain = [line for line in story.rows if line.control == "none"]
    systems = list(dict.fromkeys(line.system for line in plain))
    raw = {line.system: line for line in plain if line.method == "raw"}
    best_known = {line.system: line for line in plain if line.method != "raw"}
    calibrated = {**best_known, **{line.system: line for line in plain if line.method == row.method != "raw"}}

    def accuracies(rows: dict[str, Result]) -> list[Estimate | None]:
        return [rows[name].evaluation.accuracy if name in rows else None for name in systems]

    counts = sorted({line.n for line in plain})
    n = f"n = {counts[0]}" + (f" to {counts[-1]}" if counts[0] != counts[-1] else "")
    compared = [line for line in calibrated.values() if line.flips is not None]
    rest = f"{_name(row)}, n = {row.n}"
    figures = {
        "stages": (
            stages_figure([shown(name) for name in systems], accuracies(raw), accuracies(calibrated)),
            f"Accuracy by system with intervals, {n} clips",
            True,
        ),
        "flips": (
            flips_figure([shown(line.system) for line in compared], [line.flips for line in compared]),
            "Calibrated label against the provisional label of the same system",
            True,
        ),
        "confusion": (confusion_figure(row.evaluation.confusion, story.labels), rest, False),
    }
    if story.gains is None:
        alone = {shown(row.method): row.evaluation.classes.f1_K}
        figures["classes-f1"] = (class_f1_figure(story.labels, alone, row.evaluation.classes.support_K), rest, False)
    else:
        note = f"F1 by class with {100 * story.level:g} % bootstrap intervals; n: clips of the class"
        figures["classes-f1"] = (gains_figure(story.gains), note, True)
    if row.evaluation.bins is not None:
        before = {
            "provisional label": raw[row.system].evaluation.bins if row.system in raw and row.method != "raw" else None,
            "before temperature": row.untempered.evaluation.bins if row.untempered else None,
        }
        first = {name: bins for name, bins in list(before.items()) if bins is not None}
        bins = {**dict(list(first.items())[:1]), shown(row.method): row.evaluation.bins}
        figures["reliability"] = (reliability_figure(bins), rest, False)
    if len(story.quick):
        curve = gate_curve(*(story.quick[name] for name in GATE_COLUMNS))
        note = f"provisional labels of clips that all thought, n = {len(story.quick)}"
        figures["thinking"] = (gate_figure(curve), note, False)
    if row.risk is not None:
        risks = {shown(r.system): r.risk for r in compared if r.risk is not None and r.system != row.system}
        # Five is what the palette tells apart; the stages nearest to the headline stay.
        curves = {**dict(list(risks.items())[-4:]), shown(row.system): row.risk}
        figures["risk"] = (risk_coverage_figure(curves), f"n = {row.n} clips", False)
    return figures


# What was run


def _runs(story: Story) -> list[dict[str, Any]]:
    runs, versions = [], None
    for about in story.runs:
        sessions, prefilter = about["sessions"], about.get("filter")
        facts = {
            "stage": about["stage"],
            "dataset": about["dataset"] or "not named",
            "seed": about["seed"],
            "commit": "; ".join(dict.fromkeys(map(_commit, sessions or [about]))),
            "device": about["device"] or "not noted",
            "started": about["created"],
            "status": _status(about),
            "stands on": about["parent"] or "no other run",
            "sees otherwise than it": ", ".join(about.get("departs") or ()) or None,
            "versions": "as above"
            if versions == about["versions"]
            else ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
            "sessions": f"{len(sessions)}, continued after a stop" if len(sessions) > 1 else None,
            "data filter": prefilter
            and f"{prefilter['rollouts']} traces per clip: {prefilter['kept']} of "
            f"{prefilter['kept'] + prefilter['all_right'] + prefilter['all_wrong']} clips kept, "
            f"{prefilter['all_right']} all right and {prefilter['all_wrong']} all wrong left out",
        }
        versions = about["versions"]
        runs.append(
            {
                "run_id": about["run_id"],
                "seed": about["seed"],
                "commit": f" at commit {about['commit'][:12]}" if about["commit"] else "",
                "command": shlex.join(map(str, about["command"])),
                "facts": facts,
                "departures": [
                    f"{key} = {json.dumps(value, ensure_ascii=False)}"
                    for key, value in departures(about["config"]).items()
                ],
            }
        )
    return runs


def _commit(session: dict[str, Any]) -> str:
    if not session["commit"]:
        return "not in a git checkout"
    return session["commit"][:12] + (" with uncommitted changes" if session["dirty"] else "")


def _status(about: dict[str, Any]) -> str:
    if about["status"] == "finished":
        return f"finished {about['finished']}"
    return about["status"] + (f": {about['error']}" if about["error"] else ", these numbers are not final")


def _clips(story: Story) -> dict[str, Any]:
    counts = story.clips.pivot_table(index="split", columns="label", values="n", aggfunc="sum", fill_value=0)
    counts = counts.reindex(index=_in_order(counts.index, SPLITS), columns=_in_order(counts.columns, story.labels))
    rows = [(split, [*row, sum(row)]) for split, row in zip(counts.index, counts.to_numpy().tolist(), strict=True)]
    return {"heads": ("Split", *counts.columns, "all"), "rows": rows}


def _in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Known names as they are listed, others behind them."""
    places = {name: place for place, name in enumerate(order)}
    return sorted(names, key=lambda name: places.get(name, len(places)))
