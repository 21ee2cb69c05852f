"""How the SQL page looks: a result as a table with links, what there is to ask about, saved slices.

Plain functions from rows to HTML; the queries are in `deepintuit_analysis.index.console`, the events in `app.sql`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from deepintuit.errors import DeepIntuitError
from deepintuit.tables import FORMATS
from deepintuit_analysis import Slice
from deepintuit_analysis.index.console import EXAMPLES, SHOWN, TABLES, Answer
from deepintuit_app.html import address, empty, note, render

_LINKS = {"trace_id": ("traces", "trace"), "clip_id": ("watch", "clip"), "run_id": ("runs", "run")}
"""Column of a result → page and the name in its address."""
_CELL, _SHORT, _COLUMNS = 200, 30, 60
"""Characters of a cell that are shown, and that a narrow column holds; columns of a result. Exports have all."""
_NAMES = {"csv": "CSV", "jsonl": "JSONL", "parquet": "Parquet"}


def answer_html(sql: str, answer: Answer, python: str) -> str:
    """How many rows and how long it took, exports, the rows, and the same in Python."""
    count, hidden = len(answer.rows), len(answer.names) - _COLUMNS
    summary = f"The first {count:,} rows" if answer.cut else f"{count:,} row{'s' * (count != 1)}"
    summary += f" in {answer.seconds:.2f} s" + (f"; {hidden} more columns are in the exports" if hidden > 0 else "")
    columns = list(zip(answer.names[:_COLUMNS], answer.numbers))
    return render(
        "sql/answer.html",
        summary=summary,
        sql=sql,
        python=python,
        forms=[(form, _NAMES[form]) for form in FORMATS],
        columns=columns,
        rows=[
            [{**_cell(name, value), "number": number} for (name, number), value in zip(columns, row)]
            for row in answer.rows
        ],
    )


def _cell(name: str, value: Any) -> dict[str, Any]:
    """A value's text as it is shown, and the page that it leads to."""
    text = None if value is None else _text(value)
    if name in _LINKS and isinstance(value, str):
        page, parameter = _LINKS[name]
        return {"text": text, "url": address(page, **{parameter: value})}
    cut = text is not None and len(text) > _CELL
    return {
        "text": f"{text[:_CELL]}…" if cut else text,
        "url": "",
        "long": text is not None and len(text) > _SHORT,
        "title": text[: 10 * _CELL] if cut else None,
    }


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value).lower() if isinstance(value, bool) else str(value)


def error_html(error: DeepIntuitError) -> str:
    """The three beats."""
    what, todo = (beat[:1].upper() + beat[1:] for beat in (error.what, error.todo))
    return render("sql/error.html", what=what, why=error.why, todo=todo)


def waiting_html(from_address: bool, anything: bool) -> str:
    """Before anything was run."""
    if from_address:
        return note("This query came with the address, so it was not run. Read it, then press Run.", "note", "status")
    if not anything:
        return empty("No run is in this workbench yet: every table is empty.", "The stages fill them:", "make demo")
    return empty("Write a query, or begin with an example.", f"Run shows its first {SHOWN} rows.")


def examples_html() -> str:
    return render("sql/examples.html", examples=EXAMPLES)


def history_html(user: str) -> str:
    """A list that the browser fills: what was run stays with who ran it, on their own machine."""
    return render("sql/history.html", user=user)


def schema_html(schema: dict[str, list[tuple[str, str, str]]]) -> str:
    """Tables and their columns; each name is a button that puts it into the query."""
    return render("sql/schema.html", schema=schema, about=TABLES)


def slices_html(slices: Sequence[Slice]) -> str:
    """Saved slices: to the traces, into the box where it is a query, into a notebook."""
    return render("sql/slices.html", slices=slices)


def saved_html(saved: Slice) -> str:
    """Where a slice that was just saved can be used."""
    return render("sql/saved.html", saved=saved, python=f"workbench.slice({saved.name!r}).df()")
