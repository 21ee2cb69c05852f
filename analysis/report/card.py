"""The run card: one HTML file that shows a result, how sure it is, what it rests on and how to get it again.

    run_card(Workbench("workbench"), ["evaluate-20260101-0a1b2c3d"])

Left out on purpose: pixels of clips (a card is passed on, footage is not), anything that needs a server or a network.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich.console import Console
from rich.text import Text

from deepintuit import disk
from deepintuit.config import SPLITS, EvaluateConfig
from deepintuit.metrics import Estimate, gate_curve
from deepintuit_analysis import Workbench
from deepintuit_analysis.numbers import NOTHING, interval, number, p_value, percent
from deepintuit_analysis.report import page
from deepintuit_analysis.report.curves import training_figure
from deepintuit_analysis.report.figures import (
    class_f1_figure,
    confusion_figure,
    flips_figure,
    reliability_figure,
    risk_coverage_figure,
    stages_figure,
)
from deepintuit_analysis.report.gains import gains_figure
from deepintuit_analysis.report.gather import KINDS, Example, Story, departures, gather, tabulate
from deepintuit_analysis.report.results import CONTROLS, Result, headline
from deepintuit_analysis.report.text import COLUMNS, NO_ROWS, NO_THRESHOLDS, sentence, shown, terminal_table
from deepintuit_analysis.report.thinking import GATE_COLUMNS, gate_figure


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
    disk.write_text(path, _page(story, _title(story)))
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


def _title(story: Story) -> str:
    about = story.runs[0]
    return f"Run card: {about['dataset'] or about['name'] or about['run_id']}"


def _page(story: Story, title: str) -> str:
    drawn = _figures(story)
    sections = [
        ("result", "Result", _result(story)),
        ("figures", "Figures", _shown_figures(drawn)),
        ("controls", "Controls", _controls(story)),
        ("classes", "By class", _classes(story)),
        ("unsure", "When unsure", _unsure(story)),
        ("traces", "Traces", _reasons(story) + _shown_examples(story.examples)),
        ("run", "What was run", _runs(story) + _clips(story)),
        ("again", "Run it again", _commands(story)),
    ]
    filled = [(name, head, text) for name, head, text in sections if text]
    links = "".join(f'<a href="#{name}">{escape(head)}</a>' for name, head, _ in filled)
    body = "\n".join(f'<section id="{name}"><h2>{escape(head)}</h2>\n{text}</section>' for name, head, text in filled)
    header = (
        f'<header><h1>{escape(title)}</h1><p class="lede">{escape(sentence(story.headline))}</p>'
        f"<nav>{links}</nav></header>\n"
    )
    return page.document(title, header + body, {name: figure for name, (figure, _, _) in drawn.items()})


# The table


def _result(story: Story) -> str:
    if not story.rows:
        return f"<p>{escape(NO_ROWS)}</p>"
    heads = ["System", *COLUMNS, "T"]
    lines: list[tuple[str, list[str]]] = []
    previous = None
    for row in story.rows:
        bare = (row.method, row.control) == ("raw", "none")
        if row.system != previous and not bare:
            blank = f'<td colspan="{len(heads) - 1}"></td>'
            lines.append(("system", [page.row_head(shown(row.system), "system"), blank]))
        name, kind = (
            (shown(row.system), "system")
            if bare
            else (shown(row.method), "method")
            if row.control == "none"
            else (shown(row.control), "control")
        )
        lines.append(("system" if bare else "", [page.row_head(name, kind), *_numbers(row)]))
        previous = row.system
    drawn = "clips" if all(row.evaluation.groups == row.n for row in story.rows) else "whole sources of clips"
    missing = max(row.unlabelled for row in story.rows)
    note = (
        f"Under each number its {100 * story.level:g} % bootstrap interval, drawing {drawn}. A system's own "
        "line is its provisional label; the ways to calibrate it lie below, with their controls. “Gain” is the "
        "difference in accuracy to that label on the same clips; fixed / broken are clips that went from wrong to "
        "right and back, with McNemar's p. “Argues otherwise”: of the well-formed traces, those whose reasoning "
        "names another label last than they answer. T is the temperature fitted on validation clips. NLL, Brier "
        "(0 to 2) and ECE need probabilities, which a bare label has not."
    )
    note += f" {missing} clips without a true label are left out." if missing else ""
    scores = page.table(f"Scores on the {story.rows[0].split} split", heads, lines)
    return f'{scores}<p class="soft">{escape(note)}</p>'


def _estimate(estimate: Estimate | None, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    return page.cell(
        number(None if estimate is None else estimate.value, scale, digits, sign),
        interval(estimate, scale, digits, sign),
    )


def _numbers(row: Result) -> list[str]:
    found = row.evaluation
    changed = (
        page.cell(f"{row.flips.wrong_to_right} / {row.flips.right_to_wrong}", p_value(row.flips.p_value))
        if row.flips
        else page.cell(NOTHING)
    )
    return [
        page.cell(str(row.n)),
        _estimate(found.accuracy),
        _estimate(found.macro_f1),
        _estimate(found.no_answer),
        _estimate(row.mismatch),
        _estimate(found.nll, 1, 3),
        _estimate(found.brier, 1, 3),
        _estimate(found.ece),
        _estimate(row.gain, sign=True),
        changed,
        page.cell(number(row.temperature, 1, 2)),
    ]


def _controls(story: Story) -> str:
    found = [row for row in story.rows if row.control in CONTROLS]
    if not found:
        return ""
    said = "".join(
        f"<li><strong>{escape(shown(name).capitalize())}.</strong> {escape(control.asks)}</li>"
        for name, control in CONTROLS.items()
        if any(row.control == name for row in found)
    )
    lines = [
        (
            "",
            [
                page.row_head(f"{shown(row.system)}, {shown(row.control)}"),
                page.cell(str(row.n)),
                _estimate(row.evaluation.accuracy),
                _estimate(row.change, sign=True),
            ],
        )
        for row in found
    ]
    return f"<p>They ask what the calibrated label rests on.</p><ul>{said}</ul>" + page.table(
        "Accuracy under each control, against the same answer uncontrolled",
        ["Control", "n", "Accuracy %", "Against uncontrolled, points"],
        lines,
    )


def _classes(story: Story) -> str:
    row = story.headline
    if row is None:
        return ""
    scores = row.evaluation.classes
    columns = zip(row.labels, row.rates_K, scores.support_K, scores.predicted_K, strict=True)
    lines = [
        ("", [page.row_head(label), *map(_estimate, rates), *(page.cell(str(n)) for n in counts)])
        for label, rates, *counts in columns
    ]
    plain = page.table(
        f"{shown(row.system)}, {shown(row.method)}: {row.n} clips",
        ["Class", "Precision %", "Recall %", "F1 %", "Support (clips)", "Answered (clips)"],
        lines,
    )
    if story.gains is None:
        return plain
    by_class = zip(story.gains.labels, story.gains.support_K, zip(*story.gains.stages.values()), story.gains.gains_K)
    lines = [
        ("", [page.row_head(label), page.cell(str(n)), *map(_estimate, f1), _estimate(gain, sign=True)])
        for label, n, f1, gain in by_class
    ]
    return plain + page.table(
        "F1 of each class, stage by stage",
        ["Class", "n", *(f"{name} %" for name in story.gains.stages), "Gain, points"],
        lines,
    )


def _unsure(story: Story) -> str:
    row = story.headline
    if row is None or not row.sets:
        return ""
    lines = [
        (
            "",
            [
                page.row_head(f"{number(one.target, digits=0)} %"),
                page.cell(str(one.n)),
                _estimate(one.coverage),
                page.cell(number(one.size, 1, 2)),
                page.cell(number(one.single)),
            ],
        )
        for one in row.sets
    ]
    return (
        "<p>Answer only from some confidence on, and err less often.</p>"
        + _thresholds(row)
        + "<p>A set of labels for each clip instead of one, large enough to hold the truth as often as was promised: "
        "split-conformal, each half of the clips measured with the other half's quantile.</p>"
        + page.table(
            f"{shown(row.system)}, {shown(row.method)}: label sets",
            ["Promised", "n", "Holds the truth %", "Labels a set", "Sets of one label %"],
            lines,
        )
    )


def _thresholds(row: Result) -> str:
    """What the thresholds that were chosen on validation clips give on these."""
    if row.thresholds is None:
        return f"<p>{escape(NO_THRESHOLDS)}</p>"
    lines = []
    for wanted, threshold, coverage, wrong in row.at_thresholds:
        lines.append(
            (
                "",
                [
                    page.row_head(f"at most {number(float(wanted), digits=0)} %"),
                    page.cell("none does" if threshold is None else number(threshold, 1, 3)),
                    page.cell(number(coverage)),
                    _estimate(wrong),
                ],
            )
        )
    note = (
        ""
        if row.split != "validation"
        else "<p>These are the very clips that the thresholds were chosen on: on others they give less.</p>"
    )
    head = f"{shown(row.system)}, {shown(row.method)}: chosen on validation clips, and what it gives on these {row.n}"
    return note + page.table(head, ["Wanted wrong", "Lowest confidence", "Answers %", "Wrong among them %"], lines)


# Figures


def _figures(story: Story) -> dict[str, tuple[go.Figure, str, bool]]:
    """By element id: figure, a note under its title, whether it takes the whole width."""
    row = story.headline
    found = {} if row is None else _result_figures(story, row)
    for place, (run_id, steps) in enumerate(reversed(story.steps.items())):
        drawn = training_figure(steps)
        if drawn.data:
            found[f"training-{place}"] = (drawn, run_id, len(drawn.data) > 2)
    return {name: kept for name, kept in found.items() if kept[0].data}


def _result_figures(story: Story, row: Result) -> dict[str, tuple[go.Figure, str, bool]]:
    plain = [one for one in story.rows if one.control == "none"]
    systems = list(dict.fromkeys(one.system for one in plain))
    raw = {one.system: one for one in plain if one.method == "raw"}
    best_known = {one.system: one for one in plain if one.method != "raw"}
    calibrated = {**best_known, **{one.system: one for one in plain if one.method == row.method != "raw"}}

    def accuracies(rows: dict[str, Result]) -> list[Estimate | None]:
        return [rows[name].evaluation.accuracy if name in rows else None for name in systems]

    counts = sorted({one.n for one in plain})
    n = f"n = {counts[0]}" + (f" to {counts[-1]}" if counts[0] != counts[-1] else "")
    compared = [one for one in calibrated.values() if one.flips is not None]
    rest = f"{shown(row.system)}, {shown(row.method)}, n = {row.n}"
    found = {
        "stages": (
            stages_figure([shown(name) for name in systems], accuracies(raw), accuracies(calibrated)),
            f"Accuracy by system with intervals, {n} clips",
            True,
        ),
        "flips": (
            flips_figure([shown(one.system) for one in compared], [one.flips for one in compared]),
            "Calibrated label against the provisional label of the same system",
            True,
        ),
        "confusion": (confusion_figure(row.evaluation.confusion, story.labels), rest, False),
    }
    if story.gains is None:
        alone = {shown(row.method): row.evaluation.classes.f1_K}
        found["classes-f1"] = (class_f1_figure(story.labels, alone, row.evaluation.classes.support_K), rest, False)
    else:
        note = f"F1 by class with {100 * story.level:g} % bootstrap intervals; n: clips of the class"
        found["classes-f1"] = (gains_figure(story.gains), note, True)
    if row.evaluation.bins is not None:
        before = {
            "provisional label": raw[row.system].evaluation.bins if row.system in raw and row.method != "raw" else None,
            "before temperature": row.untempered.evaluation.bins if row.untempered else None,
        }
        first = {name: bins for name, bins in list(before.items()) if bins is not None}
        bins = {**dict(list(first.items())[:1]), shown(row.method): row.evaluation.bins}
        found["reliability"] = (reliability_figure(bins), rest, False)
    if len(story.quick):
        curve = gate_curve(*(story.quick[name] for name in GATE_COLUMNS))
        note = f"provisional labels of clips that all thought, n = {len(story.quick)}"
        found["thinking"] = (gate_figure(curve), note, False)
    if row.risk is not None:
        others = {shown(one.system): one.risk for one in compared if one.risk is not None and one.system != row.system}
        # Five is what the palette tells apart; the stages nearest to the headline stay.
        curves = {**dict(list(others.items())[-4:]), shown(row.system): row.risk}
        found["risk"] = (risk_coverage_figure(curves), f"n = {row.n} clips", False)
    return found


def _shown_figures(drawn: dict[str, tuple[go.Figure, str, bool]]) -> str:
    if not drawn:
        return ""
    shown_all = "\n".join(page.figure(name, figure, note, wide) for name, (figure, note, wide) in drawn.items())
    return (
        f'<div class="figures">\n{shown_all}\n</div>'
        "<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>"
    )


# Traces


def _reasons(story: Story) -> str:
    if story.reasons.empty:
        return ""
    lines = [
        (
            "",
            [
                page.row_head(str(one.run_id)),
                page.cell(str(one.stage), kind="text"),
                page.cell(str(one.reason).replace("_", " "), kind="text"),
                page.cell(str(one.n)),
                page.cell(number(one.share)),
            ],
        )
        for one in story.reasons.itertuples()
    ]
    total = int(story.reasons["n"].sum())
    bad = int(story.reasons.loc[story.reasons["reason"] != "well-formed", "n"].sum())
    return (
        f"<p>{bad} of {total} traces are malformed; each is counted with its reason, none is dropped.</p>"
        + page.table("Traces by what the parser said", ["Run", "Stage", "Reason", "Traces", "% of its stage"], lines)
    )


def _shown_examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    parts = []
    for example in examples:
        probs = ", ".join(f"{label} {percent(p, 1)}" for label, p in list(example.probs.items())[:4])
        told = [
            ("clip", example.clip),
            ("true", example.true_label),
            ("provisional label", example.provisional),
            ("calibrated", example.predicted + (f" ({probs})" if probs else "")),
        ]
        told += [("malformed", example.reason.replace("_", " "))] if example.reason else []
        text = (
            f'<pre class="trace" tabindex="0">{escape(example.text)}</pre>'
            if example.text is not None
            else "<p>Its trace is not in this workbench.</p>"
        )
        parts.append(f"<article><h3>{escape(KINDS[example.kind])}</h3>{page.facts(told)}{text}</article>")
    return (
        "<h3>Examples</h3><p>The first clips of each kind in the order of their ids, not picked by eye.</p>"
        f'<div class="examples">{"".join(parts)}</div>'
    )


# What was run


def _runs(story: Story) -> str:
    parts, known = [], None
    for about in story.runs:
        departed = departures(about["config"])
        settings = (
            "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in departed.items())
            or "none: these are the method's own settings\n"
        )
        commits = list(dict.fromkeys(_commit(session) for session in about["sessions"])) or [_commit(about)]
        told = [
            ("stage", about["stage"]),
            ("dataset", about["dataset"] or "not named"),
            ("seed", str(about["seed"])),
            ("commit", "; ".join(commits)),
            ("device", str(about["device"] or "not noted")),
            ("started", str(about["created"])),
            ("status", _status(about)),
            ("stands on", about["parent"] or "no other run"),
            *([("sees otherwise than it", ", ".join(about["departs"]))] if about.get("departs") else []),
            (
                "versions",
                "as above"
                if known == about["versions"]
                else ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
            ),
        ]
        known = about["versions"]
        if len(about["sessions"]) > 1:
            told.append(("sessions", f"{len(about['sessions'])}, continued after a stop"))
        if sifted := about.get("filter"):
            dropped = sifted["all_right"] + sifted["all_wrong"]
            told.append(
                (
                    "data filter",
                    f"{sifted['rollouts']} traces a clip: {sifted['kept']} of "
                    f"{sifted['kept'] + dropped} clips kept, {sifted['all_right']} all right and "
                    f"{sifted['all_wrong']} all wrong left out",
                )
            )
        parts.append(
            f"<details{' open' if not parts else ''}><summary><strong>{escape(about['run_id'])}</strong>, "
            f"{len(departed)} settings differ from the defaults</summary>{page.facts(told)}"
            f'<pre tabindex="0">{escape(settings)}</pre></details>'
        )
    return "".join(parts)


def _commit(session: dict[str, Any]) -> str:
    if not session["commit"]:
        return "not in a git checkout"
    return session["commit"][:12] + (" with uncommitted changes" if session["dirty"] else "")


def _status(about: dict[str, Any]) -> str:
    if about["status"] == "finished":
        return f"finished {about['finished']}"
    return about["status"] + (f": {about['error']}" if about["error"] else ", these numbers are not final")


def _clips(story: Story) -> str:
    if story.clips.empty and story.excluded.empty:
        return "<p>No manifest of its dataset lies in this workbench, so clips are not counted here.</p>"
    counted = story.clips.pivot_table(index="split", columns="label", values="n", aggfunc="sum", fill_value=0)
    counted = counted.reindex(
        index=[
            *(split for split in SPLITS if split in counted.index),
            *(split for split in counted.index if split not in SPLITS),
        ]
    )
    counted = counted.reindex(
        columns=[
            *(label for label in story.labels if label in counted),
            *(label for label in counted if label not in story.labels),
        ]
    )
    lines = [
        ("", [page.row_head(str(split)), *(page.cell(str(n)) for n in (*row, sum(row)))])
        for split, row in zip(counted.index, counted.to_numpy().tolist(), strict=True)
    ]
    out = _excluded(story.excluded)
    return page.table("Usable clips by split and label", ["Split", *map(str, counted.columns), "all"], lines) + out


def _excluded(excluded: pd.DataFrame) -> str:
    if excluded.empty:
        return "<p>No clip is excluded.</p>"
    lines = [
        ("", [page.row_head(str(one.reason)), page.cell(str(one.split), kind="text"), page.cell(str(one.n))])
        for one in excluded.itertuples()
    ]
    return page.table(f"{int(excluded['n'].sum())} clips excluded, by reason", ["Reason", "Split", "Clips"], lines)


def _commands(story: Story) -> str:
    lines = []
    for about in reversed(story.runs):
        commit = f" at commit {about['commit'][:12]}" if about["commit"] else ""
        lines.append(f"# {about['run_id']}{commit}, seed {about['seed']}\n{shlex.join(map(str, about['command']))}\n")
    return f'<pre tabindex="0">{escape(chr(10).join(lines))}</pre>'
