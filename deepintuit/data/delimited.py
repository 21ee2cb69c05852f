"""Tables of text: the rows of a CSV, whichever delimiter it uses."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator

from deepintuit.errors import DataError

_LONGEST_CELL = 1 << 30
_SEPARATOR = re.compile(r'"?sep=(.)"?\r?\n', re.I)


def csv_rows(text: str, name: str, delimiter: str = "") -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV by the names in its header, with the line that each ends on. `DataError` for one that cannot be
    told apart. Without a `delimiter` it is what a first line `sep=…` says, else the one that most parts the header.

    A column without a name, as a trailing delimiter makes, is called by its number where it holds anything.
    """
    csv.field_size_limit(_LONGEST_CELL)  # the library's own limit is of 131,072 characters
    text = text if "\n" in text else text.replace("\r", "\n")
    prefix = _SEPARATOR.match(text)
    text = text[prefix.end() :] if prefix else text
    first_line = re.sub('"[^"]*+"', "", text.partition("\n")[0])
    delimiter = delimiter or (prefix[1] if prefix else max(",;\t", key=first_line.count))
    reader = csv.reader(lines(text), strict=True, delimiter=delimiter)
    try:
        header = [word.strip() or f"column {n}" for n, word in enumerate(next(reader, []), 1)]
        twice = [word for word, n in Counter(header).items() if n > 1]
        if twice:
            raise DataError(
                f"{name} has the column {twice[0]!r} twice.",
                "Which of the two is meant is unknown.",
                "Rename or remove one.",
            )
        for cells in reader:
            if any(cells[len(header) :]):
                raise DataError(
                    f"{name}, line {reader.line_num + bool(prefix)}, has {len(cells)} cells for {len(header)} columns.",
                    "A comma inside a cell without quotes shifts every later cell.",
                    'Put the cell in double quotes ("a, b").',
                )
            yield reader.line_num + bool(prefix), dict(zip(header, cells + [""] * (len(header) - len(cells))))
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num + bool(prefix)}, is not valid CSV ({error}).",
            "The cells after it cannot be told apart.",
            "Repair the quoting of that line.",
        ) from error


def lines(text: str) -> Iterator[str]:
    """Its lines with their ends."""
    # Not splitlines(): it also cuts at U+2028, form feeds and the like, which are ordinary characters in a cell.
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end
