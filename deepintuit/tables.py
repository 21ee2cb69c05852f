"""Rows as a file that people take along: CSV that no spreadsheet takes for formulas, JSONL, Parquet.

with disk.replacing(path) as temporary:
    temporary.write_bytes(b"".join(written(batches, "csv")))
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = {"csv": "text/csv", "jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}
"""Ending of a file → its media type."""


def written(batches: Iterator[pa.RecordBatch | pa.Table], form: str) -> Iterator[bytes]:
    """Rows as pieces of a file in one of `FORMATS`. What JSON has no form for is written as text."""
    return {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[form](batches)


def _jsonl(batches: Iterator[pa.RecordBatch | pa.Table]) -> Iterator[bytes]:
    for batch in batches:
        rows = ({name: None if value != value else value for name, value in row.items()} for row in batch.to_pylist())
        yield "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode()


def _csv(batches: Iterator[pa.RecordBatch | pa.Table]) -> Iterator[bytes]:
    file, has_header = io.StringIO(newline=""), False
    writer = csv.writer(file)
    for batch in batches:
        if not has_header:
            writer.writerow(map(spreadsheet_safe, batch.schema.names))
            has_header = True
        writer.writerows(zip(*(map(_cell, column.to_pylist()) for column in batch.columns)))
        yield _taken(file).encode()


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list) else spreadsheet_safe(value)


_FORMULA = tuple("=+-@\t\r\n＝＋－＠'")


def spreadsheet_safe(value: Any) -> Any:
    """A text as no spreadsheet takes it for a formula: with a ' in front when it begins with = + - @, a tab, a line's
    end or a wide form of these; or with a ', so that `as_written` has the way back. Other values as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def as_written(cell: Any) -> Any:
    """What a cell of `spreadsheet_safe` was."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") else cell


def _parquet(batches: Iterator[pa.RecordBatch | pa.Table]) -> Iterator[bytes]:
    file, writer = io.BytesIO(), None
    for batch in batches:
        writer = writer or pq.ParquetWriter(file, batch.schema, compression="zstd")
        writer.write(batch)
        yield _taken(file)
    writer.close()
    yield file.getvalue()


def _taken(file: Any) -> Any:
    """What was written since the last call."""
    chunk = file.getvalue()
    file.seek(0)
    file.truncate()
    return chunk
