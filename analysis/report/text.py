"""Results as text: the terminal's table, Markdown for docs, the table over seeds, and the result in one sentence.

Shares are printed in percent, differences in points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich import box
from rich.table import Table
from rich.text import Text

from deepintuit.metrics import Estimate
from deepintuit_analysis.index.build import METHOD_NAMES
from deepintuit_analysis.numbers import NOTHING, interval, number, p_value, percent, with_interval, within
from deepintuit_analysis.report.grounding import Grounding
from deepintuit_analysis.report.results import CONTROLS, Measured, Result, SeedRow, over_seeds

NAMES = {
    **METHOD_NAMES,
    "cold start + grpo": "cold start + GRPO",
    "rb-ft": "RB-FT",
    **{name: control.shown for name, control in CONTROLS.items()},
}
_COLUMNS_OF_CLIPS = {
    "seconds": "length (s)", "group": "source (group)", "size": "size (pixels)", "tokens": "trace length (tokens)",
    "fps": "frame rate", "bytes": "size of the file (bytes)", "trace_confidence": "token confidence",
    "reason": "form of the trace", "follows": "label follows from the trace", "source": "source file",
}  # fmt: skip
NO_ROWS = "No predictions of this split yet: run `deepintuit evaluate`, then this table has a row for each system."
NO_THRESHOLDS = (
    "No threshold of confidence is quoted: none was chosen on validation clips for this answer. "
    "Calibration does that at its end; a calibrator from before must be trained again under another name."
)


def shown(word: str) -> str:
    """A system, method or control as people read it; an unknown one stays as it is."""
    return NAMES.get(word, word)


def column_name(column: str) -> str:
    """A column of what is known of clips as people read it."""
    return _COLUMNS_OF_CLIPS.get(column, column.replace("_", " "))


def sentence(row: Result | None) -> str:
    """What the headline row says, in words. An interval that holds 0 is called no clear difference."""
    if row is None or not row.n:
        return NO_ROWS
    numbers = row.evaluation
    system = shown(row.system) + (f", {shown(row.method)}," if row.method != "raw" else "")
    right = f"{percent(numbers.accuracy.value, 1)} of {row.n} {row.split} clips right{within(numbers.accuracy)}"
    text = f"{system[:1].upper()}{system[1:]} answers {right}"
    if row.gain is not None:
        text += (
            f": {number(row.gain.value, sign=True)} points against its provisional label{within(row.gain, sign=True)}"
        )
        text += ", no clear difference" if row.gain.low <= 0 <= row.gain.high else ""
    if numbers.ece is not None:
        text += f". Its confidence is off by {number(numbers.ece.value)} points on average{within(numbers.ece)}"
    return text + "."


def grounding_sentence(row: Grounding) -> str:
    """How far the traces of one system cite what reviewers marked."""
    name = shown(row.system)
    name = name[:1].upper() + name[1:]
    if row.hits is None:
        return f"{name} cites no moment in {row.n} clips with reviewers' spans."
    return (
        f"{name}: {percent(row.hits.value, 1)} of the moments that a trace cites lie in reviewers' "
        f"spans{within(row.hits)}, by chance {percent(row.chance.value, 1)}; IoU {with_interval(row.iou, 1, 2)}, "
        f"n = {row.n}."
    )


# Terminal


def terminal_table(rows: Sequence[Result], width: int = 100) -> Table | Text:
    """A rich renderable of at most `width` columns, from 80 on; nothing in it is cut.

    A system's own line is its provisional label; methods lie under it and controls under their method. Below 100
    columns an interval is shown as ± its farther end and macro F1 is left to the card; from 110 on the share of traces
    that argue for another label than they answer is there, from 130 on NLL, Brier and flips.
    """
    if not rows:
        return Text(NO_ROWS)
    columns = [column for column in _COLUMNS if width >= column.from_width]
    narrow = width < 100
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold",
        min_width=60,
        caption=_caption(rows, narrow),
        caption_justify="left",
        caption_style="dim",
    )
    table.add_column("", no_wrap=True, overflow="fold")
    for column in columns:
        table.add_column(Text(column.head), justify="right", no_wrap=True, vertical="bottom")
    previous = None
    for row in rows:
        fresh = row.system != previous
        if fresh and previous is not None:
            table.add_row()
        if fresh and (row.method, row.control) != ("raw", "none"):
            table.add_row(_line_name(shown(row.system), 0))
        depth = 0 if (row.method, row.control) == ("raw", "none") else 1 if row.control == "none" else 2
        name = shown((row.system, row.method, row.control)[depth])
        table.add_row(_line_name(name, depth), *(column.cell(row, narrow) for column in columns))
        previous = row.system
    return table


@dataclass(frozen=True)
class _Column:
    head: str
    cell: Callable[[Result, bool], Text]
    from_width: int = 0


def _line_name(name: str, depth: int) -> Text:
    """A name under its system, on as many lines as it needs: broken between words, or at a hyphen, and indented."""
    indent = "  " * depth
    lines = wrap(name, 22, initial_indent=indent, subsequent_indent=indent + "  ")
    return Text("\n".join(lines), style="dim" if depth == 2 else "")


def _cell(estimate: Estimate | None, narrow: bool, sign: bool = False) -> Text:
    value = number(None if estimate is None else estimate.value, sign=sign)
    if estimate is None or not (span := interval(estimate, sign=sign)):
        return Text(value)
    if narrow:
        span = f"\u00b1{number(max(estimate.high - estimate.value, estimate.value - estimate.low))}"
    return Text.assemble(value, (f" {span.replace(' to ', chr(0x2026))}", "dim"))


def _bare(estimate: Estimate | None, scale: float = 100.0, digits: int = 1) -> Text:
    return Text(number(None if estimate is None else estimate.value, scale, digits))


def _fixed_broken(row: Result) -> Text:
    return Text(f"{row.flips.wrong_to_right} / {row.flips.right_to_wrong}" if row.flips else NOTHING)


_COLUMNS = (
    _Column("n", lambda row, narrow: Text(str(row.n))),
    _Column("accuracy %", lambda row, narrow: _cell(row.evaluation.accuracy, narrow)),
    _Column("macro\nF1 %", lambda row, narrow: _bare(row.evaluation.macro_f1), 100),
    _Column("no\nanswer %", lambda row, narrow: _bare(row.evaluation.no_answer)),
    _Column("ECE %", lambda row, narrow: _cell(row.evaluation.ece, narrow)),
    _Column("gain", lambda row, narrow: _cell(row.gain, narrow, sign=True)),
    _Column("argues\nother %", lambda row, narrow: _bare(row.mismatch), 110),
    _Column("NLL", lambda row, narrow: _bare(row.evaluation.nll, 1, 2), 130),
    _Column("Brier", lambda row, narrow: _bare(row.evaluation.brier, 1, 2), 130),
    _Column("fixed /\nbroken", lambda row, narrow: _fixed_broken(row), 130),
)


def _caption(rows: Sequence[Result], narrow: bool) -> Text:
    missing = max(row.unlabelled for row in rows)
    note = "\u00b1: how far the bootstrap interval reaches" if narrow else "Behind a number its bootstrap interval"
    text = (
        f"{note}. A system's own line is its provisional label; gain: points of accuracy on it, same clips. "
        f"{NOTHING}: no probabilities, or nothing to compare."
    )
    return Text(text + (f" {missing} clips without a true label are left out." if missing else ""))


# Markdown


COLUMNS = (
    "n",
    "Accuracy %",
    "Macro F1 %",
    "No answer %",
    "Argues otherwise %",
    "NLL",
    "Brier",
    "ECE %",
    "Gain, points",
    "Fixed / broken",
)
"""Of the full table, behind the names of system and label."""


def markdown_table(rows: Sequence[Result]) -> str:
    """The full table as GitHub Markdown, for docs; ends with a newline."""
    if not rows:
        return NO_ROWS + "\n"
    heads = ["System", "Label", *COLUMNS]
    body = []
    for row in rows:
        numbers = row.evaluation
        body.append(
            [
                shown(row.system),
                _answer(row.method, row.control),
                str(row.n),
                with_interval(numbers.accuracy),
                with_interval(numbers.macro_f1),
                with_interval(numbers.no_answer),
                with_interval(row.mismatch),
                with_interval(numbers.nll, 1, 3),
                with_interval(numbers.brier, 1, 3),
                with_interval(numbers.ece),
                with_interval(row.gain, sign=True),
                changed(row),
            ]
        )
    return _markdown(heads, body)


def changed(row: Result) -> str:
    """Clips fixed and broken against the provisional label, with McNemar's p."""
    if row.flips is None:
        return NOTHING
    return f"{row.flips.wrong_to_right} / {row.flips.right_to_wrong} ({p_value(row.flips.p_value)})"


def multi_seed_table(seeds: Mapping[int, Sequence[Measured]], level: float = 0.95) -> str:
    """Means over seeds as Markdown: mean, Student's t interval over seeds, ± standard deviation between seeds."""
    rows = over_seeds(seeds, level)
    if not rows:
        return NO_ROWS + "\n"
    heads = [
        "System",
        "Label",
        "Seeds",
        "n a seed",
        "Accuracy %",
        "Macro F1 %",
        "No answer %",
        "NLL",
        "ECE %",
        "Gain, points",
    ]
    body = []
    for row in rows:
        low, high = row.clips
        body.append(
            [
                shown(row.system),
                _answer(row.method, row.control),
                str(len(row.seeds)),
                str(low) if low == high else f"{low}\u2013{high}",
                _spread(row, "accuracy"),
                _spread(row, "macro_f1"),
                _spread(row, "no_answer"),
                _spread(row, "nll", 1, 3),
                _spread(row, "ece"),
                _spread(row, "gain", sign=True),
            ]
        )
    return _markdown(heads, body)


def _answer(method: str, control: str) -> str:
    return shown(method) + (f", {shown(control)}" if control != "none" else "")


def _spread(row: SeedRow, name: str, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    text = with_interval(row.means.get(name), scale, digits, sign)
    between = row.spread.get(name, math.nan)
    return text if math.isnan(between) else f"{text} \u00b1 {number(between, scale, digits)}"


def _markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *([_plain(cell) for cell in row] for row in body)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _plain(cell: str) -> str:
    """One line, and nothing that Markdown or HTML would read as its own."""
    cell = " ".join(cell.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|!" else c for c in cell)
