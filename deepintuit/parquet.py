"""Parquet files in which a flipped bit is noticed.

    parquet.write(table, path)      # a cache, manifest or part; `disk.replacing` gives the path
    table = parquet.read(path)      # ValueError when it is not what was written

Each page has its checksum, as the format provides for any reader to verify. Headers and the footer (names, sizes,
statistics) have none there, so the footer also holds the SHA-256 of the whole file, in which its own 64 digits count as
zeros. Files without it are read: earlier versions and other programs write them.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_NAME, _UNSET = b"deepintuit.sha256", b"0" * 64
_LARGE = 1 << 20
"""Bytes; threads take ten times as long to read a small file."""
_MARK = _NAME + b"\x18\x40"  # in the footer: a text of 64 bytes follows


def write(table: pa.Table, path: Path) -> None:
    """Fill `path` with the table, its schema's metadata included."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_NAME: _UNSET})
    content = sink.getvalue().to_pybytes()
    before, after = _around(content)
    with open(path, "wb") as file:
        file.writelines((before, _digest(before, after), after))


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table, or those of its columns that are among `columns`. ValueError says why a file is damaged; OSError where
    it cannot be opened."""
    content = path.read_bytes()
    sealed = _MARK in content
    if sealed:
        before, after = _around(content)
        if _digest(before, after) != content[len(before) : len(content) - len(after)]:
            raise ValueError("its checksum is not that of what it holds")
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            selection = None if columns is None else [name for name in columns if name in names]
            table = file.read(selection, use_threads=len(content) > _LARGE)
        if not sealed:
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    return table


def _around(content: bytes) -> tuple[memoryview, memoryview]:
    """What stands before and behind the digest. It follows the last mark: the footer closes the file, and in it the
    statistics, which may hold any text, stand before it."""
    start = content.rindex(_MARK) + len(_MARK)
    whole = memoryview(content)
    return whole[:start], whole[start + len(_UNSET) :]


def _digest(before: memoryview, after: memoryview) -> bytes:
    hasher = hashlib.sha256(before)
    hasher.update(_UNSET)
    hasher.update(after)
    return hasher.hexdigest().encode("ascii")
