"""How the SQL page looks: a result as a table with links, what there is to ask about, saved slices.

Plain functions from rows to HTML; the queries are in `deepintuit_analysis.index.console`, the events in `app.sql`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from deepintuit.errors import DeepIntuitError
from deepintuit_analysis import Slice
from deepintuit_analysis.index.browse import FORMATS
from deepintuit_analysis.index.console import EXAMPLES, SHOWN, TABLES, Answer
from deepintuit_app.html import address, empty, esc, tag

_LINKS = {"trace_id": ("traces", "trace"), "clip_id": ("watch", "clip"), "run_id": ("runs", "run")}
"""Column of a result → page and the name in its address."""
_CELL, _SHORT, _COLUMNS = 200, 30, 60
"""Characters of a cell that are shown, and that a narrow column holds; columns of a result. Exports have all."""
_NAMES = {"csv": "CSV", "jsonl": "JSONL", "parquet": "Parquet"}


def answer_html(sql: str, answer: Answer, python: str) -> str:
    """How many rows and how long it took, exports, the rows, and the same in Python."""
    count = len(answer.rows)
    said = f"The first {count:,} rows" if answer.cut else f"{count:,} row{'s' * (count != 1)}"
    hidden = len(answer.names) - _COLUMNS
    said += f" in {answer.seconds:.2f} s" + (f"; {hidden} more columns are in the exports" if hidden > 0 else "")
    files = "".join(
        tag("button", _NAMES[form], type="submit", formaction=f"export/sql.{form}", class_="small") for form in FORMATS
    )
    kept = tag("input", type="hidden", name_="sql", value=sql)
    exports = tag("form", f"{kept}<span>Export</span> {files}", method="post", class_="exports")
    bar = tag("div", tag("strong", esc(said), role="status") + exports, class_="bar")
    copy = tag("button", "Copy as Python", type="button", class_="small", data_copy=python)
    same = tag("details", tag("summary", "The same in Python") + copy + tag("pre", esc(python)))
    if not answer.rows:
        return bar + empty("The query is right, and finds nothing.", "A looser WHERE may.") + same
    heads = "".join(
        tag("th", esc(name), scope="col", class_="number" if number else None)
        for name, number in zip(answer.names[:_COLUMNS], answer.numbers)
    )
    body = "".join(tag("tr", _row(answer, row)) for row in answer.rows)
    grid = tag("table", f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>", aria_label="Result")
    return bar + tag("div", grid, class_="scroll", tabindex="0") + same


def _row(answer: Answer, row: Sequence[Any]) -> str:
    shown = zip(answer.names[:_COLUMNS], answer.numbers, row)
    return "".join(tag("td", _cell(name, value), class_="number" if number else None) for name, number, value in shown)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return tag("span", "NULL", class_="quiet")
    text = _text(value)
    if name in _LINKS and isinstance(value, str):
        page, parameter = _LINKS[name]
        return tag("a", esc(text), href=address(page, **{parameter: value}))
    if len(text) <= _SHORT:
        return esc(text)
    cut = len(text) > _CELL
    shown = esc(text[:_CELL]) + ("…" if cut else "")
    return tag("span", shown, class_="long", title=text[: 10 * _CELL] if cut else None)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value).lower() if isinstance(value, bool) else str(value)


def error_html(error: DeepIntuitError) -> str:
    """The three beats; DuckDB's own words, which may point at a place with a caret, as they stand."""
    why = tag("pre", esc(error.why))
    what, todo = (esc(beat[:1].upper() + beat[1:]) for beat in (error.what, error.todo))
    return tag("div", tag("p", tag("strong", what), role="status") + why + tag("p", todo), class_="failed")


def waiting_html(from_address: bool, anything: bool) -> str:
    """Before anything was run."""
    if from_address:
        note = "This query came with the address, so it was not run. Read it, then press Run."
        return tag("p", note, class_="note", role="status")
    if not anything:
        return empty("No run is in this workbench yet: every table is empty.", "The stages fill them:", "make demo")
    return empty("Write a query, or begin with an example.", f"Run shows its first {SHOWN} rows.")


def examples_html() -> str:
    rows = "".join(
        tag("li", tag("button", esc(question), type="button", data_set="sql-box", data_value=sql))
        for question, sql in EXAMPLES.items()
    )
    return tag("details", tag("summary", "Questions to begin with") + tag("ul", rows), open=True)


def history_html(user: str) -> str:
    """A list that the browser fills: what was run stays with who ran it, on their own machine."""
    listed = tag("ol", "", id="sql-history", data_user=user)
    forget = tag("button", "Forget all", type="button", class_="small", data_forget=True)
    about = tag("p", "The last 30 queries, kept in this browser only.", class_="quiet")
    return tag("details", tag("summary", "History") + about + listed + forget)


def schema_html(schema: dict[str, list[tuple[str, str, str]]]) -> str:
    """Tables and their columns; each name is a button that puts it into the query."""
    tables = []
    for table, columns in schema.items():
        rows = "".join(
            tag("li", _insert(column) + tag("code", esc(kind.lower())) + tag("span", esc(meaning)))
            for column, kind, meaning in columns
        )
        name = tag("summary", tag("b", esc(table)) + tag("small", esc(TABLES[table])))
        tables.append(tag("details", name + tag("p", _insert(table)) + tag("ul", rows)))
    return tag("h2", "Tables") + "".join(tables)


def _insert(name: str) -> str:
    word = f'"{name}"' if name in ("commit", "group") else name  # words of SQL itself
    return tag("button", esc(name), type="button", class_="insert", data_insert=word, title="Put it into the query")


def slices_html(slices: Sequence[Slice]) -> str:
    """Saved slices: to the traces, into the box where it is a query, into a notebook."""
    title = tag("summary", f"Saved slices ({len(slices)})")
    if not slices:
        none = "None yet. Run a query that selects trace_id and save it, or save the filters of the Traces page."
        return tag("details", title + tag("p", none, class_="quiet"))
    rows = []
    for one in slices:
        what = f"version {one.version}, by {one.by or 'somebody'}, {one.at[:16].replace('T', ' ')} UTC"
        edit = one.sql and tag(
            "button",
            "Edit",
            type="button",
            class_="small",
            data_set="sql-box",
            data_value=one.sql,
            aria_label=f"Edit the query of {one.name}",
        )
        copy = tag("button", "Copy as Python", type="button", class_="small", data_copy=one.to_python())
        shown = tag("a", esc(one.name), href=address("traces", slice=one.name)) + tag("small", esc(what))
        rows.append(tag("li", shown + (edit or "") + copy))
    return tag("details", title + tag("ul", "".join(rows)))


def saved_html(saved: Slice) -> str:
    """Where a slice that was just saved can be used."""
    there = tag("a", "Show its traces", href=address("traces", slice=saved.name))
    said = f"Saved as {saved.name}, version {saved.version}. "
    code = tag("code", esc(f"workbench.slice({saved.name!r}).df()"))
    return tag("p", f"{esc(said)}{there} · in a notebook {code}", role="status", class_="quiet")
