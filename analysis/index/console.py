"""The SQL console without its page: ask, export, what there is to ask about, and questions to begin with.

    answer = ask(workbench, "SELECT true_label, count(*) FROM trace_facts GROUP BY ALL")
    answer.names, answer.rows, answer.cut

The words are in `console.toml`. Never imports torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deepintuit.errors import StoreError, nearest
from deepintuit.tables import FORMATS, written

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

SHOWN, EXPORTED, SECONDS = 200, 100_000, 10.0
"""Rows on a page, rows of a file, and how long a query may take."""

_SAID = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
EXAMPLES: dict[str, str] = _SAID["examples"]
"""Question → query."""
TABLES: dict[str, str] = _SAID["tables"]
"""Table → what it holds, the most useful first."""


@dataclass(frozen=True)
class Answer:
    """`rows` hold a cell per column, None where nothing is; `numbers` tells for each column whether it holds numbers;
    `cut`: there were more rows; `seconds` that the query itself took."""

    names: Sequence[str]
    numbers: Sequence[bool]
    rows: Sequence[Sequence[Any]]
    cut: bool
    seconds: float


def ask(workbench: Workbench, sql: str, rows: int = SHOWN, seconds: float = SECONDS) -> Answer:
    """The first rows of a person's query; StoreError for all that it may not do, with the reason."""
    table = workbench.ask(sql, rows, seconds)
    kinds = [table.schema.field(i).type for i in range(table.num_columns)]
    numbers = [pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) for kind in kinds]
    cells = [_cells(column) for column in table.slice(0, rows).columns]
    return Answer(
        table.column_names, numbers, list(zip(*cells)), table.num_rows > rows, float(table.schema.metadata[b"seconds"])
    )


def warm(workbench: Workbench) -> None:
    """Have the process for queries up before the first one comes."""
    workbench.ask("SELECT 1", 1, SECONDS)


def _cells(column: pa.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        return [f"({column.type} that Python cannot hold)" if cell.is_valid else None for cell in column]


def export(workbench: Workbench, sql: str, form: str) -> bytes:
    """At most `EXPORTED` rows of a person's query as a file in one of `tables.FORMATS`."""
    if form not in FORMATS:
        raise StoreError(
            f"an export as {form!r}", f"there are {', '.join(FORMATS)}", f"nearest: {nearest(form, FORMATS) or 'csv'!r}"
        )
    table = workbench.ask(sql, EXPORTED, SECONDS).slice(0, EXPORTED)
    try:
        return b"".join(written(iter([table]), form))
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise StoreError(
            f"the result cannot be written as {form}", str(error), "cast the column, such as `created::VARCHAR`"
        ) from error


def schema(workbench: Workbench) -> dict[str, list[tuple[str, str, str]]]:
    """Table → (column, type, meaning; "" for a column of the manifest's own)."""
    rows = workbench.query(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY column_index"
    )
    columns_of: dict[str, list[tuple[str, str, str]]] = {name: [] for name in TABLES}
    for table, column, kind in rows.itertuples(index=False):
        if table in columns_of:
            meaning = _SAID["elsewhere"].get(table, {}).get(column) or _SAID["columns"].get(column, "")
            columns_of[table].append((column, "STRUCT[]" if kind.startswith("STRUCT") else kind, meaning))
    return columns_of


def to_python(workbench: Workbench, sql: str) -> str:
    """Lines that give the same rows, all of them, in a notebook."""
    text = repr(sql) if "\\" in sql or '"""' in sql or sql.endswith('"') else f'"""{sql}"""'
    return (
        f"from deepintuit_analysis import Workbench\n\nworkbench = Workbench({str(workbench.path)!r})\n"
        f"workbench.refresh()\nrows = workbench.query({text})\n"
    )
