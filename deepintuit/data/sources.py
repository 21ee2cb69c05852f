"""Importers for one's own clips: a folder of class folders, a CSV or TSV, a JSONL.

Each returns a `Listing`; no video is opened. A column that describes the clip or argues for its label is kept as a
*note*, which no model sees unless it is asked for by name (`Manifest.text_fields`): the human description alone gave
away 85.2 % of the labels of the paper's own test ids (METHOD.md 1.7). Only the names in `TEXT` are taken as
uploader's text without being asked.
"""

from __future__ import annotations

import csv
import errno
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deepintuit.data.listing import Excluded, Finding, Kind, Listing, Row, finish, given_split
from deepintuit.errors import DataError, VideoReason, nearest
from deepintuit.labels import LabelSet

VIDEO_SUFFIXES = frozenset(
    ".mp4 .mov .m4v .mkv .webm .avi .3gp .3g2 .mpg .mpeg .mpe .vob .ts .mts .m2ts .flv .wmv .asf .ogv .mxf "
    ".gif .apng".split()
)
TEXT = frozenset({"title", "transcript", "asr", "subtitles"})
# Measured again from the file itself, so the annotation's word for it is not kept.
MEASURED = frozenset("width height fps frames seconds audio bytes codec sha256".split())


def import_folder(root: str | Path, *, labels: LabelSet | None = None) -> Listing:
    """`root/<label>/…/clip.mp4`, or `root/<split>/<label>/…` where every top folder is named like a split.

    The clip's name is its path below `root`. Files without a video suffix are counted, not listed. Raises `DataError`
    for a root that is no folder or holds no clip.
    """
    root = folder(root)
    tops = [entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]
    in_splits = bool(tops) and all(top.lower() in {"train", "val", "valid", "validation", "test"} for top in tops)
    depth = 2 if in_splits else 1
    rows, other = [], Counter()
    refused: list[OSError] = []
    for path in files(root, refused):
        parts = path.relative_to(root).parts
        if path.suffix.lower() not in VIDEO_SUFFIXES or len(parts) <= depth:
            other[
                "directly in the root" if path.suffix.lower() in VIDEO_SUFFIXES else path.suffix.lower() or "none"
            ] += 1
            continue
        rows.append(
            _utf8(
                Row(
                    source="/".join(parts),
                    path=path,
                    label_given=parts[depth - 1],
                    split=given_split(parts[0], str(root)) if in_splits else None,
                )
            )
        )
    rows += [_closed(error, root, depth) for error in refused]
    findings = [
        Finding(Kind.NOT_A_CLIP, suffix, f"{n} files not listed: suffix or place {suffix!r}.")
        for suffix, n in sorted(other.items())
    ]
    findings += [Finding(Kind.UNREADABLE, row.source, row.detail) for row in rows if row.excluded in set(VideoReason)]
    return finish(rows, labels, root.name, findings)


def _closed(error: OSError, root: Path, depth: int) -> Row:
    """The row of a folder that the system does not list: what lies in it is not known, but it is not passed over."""
    parts = Path(error.filename).relative_to(root).parts
    closed, name = error.errno in (errno.EACCES, errno.EPERM), "/".join(parts)
    return _utf8(
        Row(
            source=name,
            path=None,
            label_given=parts[depth - 1] if len(parts) >= depth else "",
            excluded=VideoReason.NO_PERMISSION if closed else VideoReason.READ_FAILED,
            detail=f"The folder {name!r} cannot be looked into ({error.strerror}): its clips are not listed.",
        )
    )


def import_csv(
    table: str | Path,
    videos_root: str | Path,
    *,
    path: str = "path",
    label: str = "label",
    group: str | None = None,
    split: str | None = None,
    text: Sequence[str] | None = None,
    labels: LabelSet | None = None,
) -> Listing:
    """One row a clip, UTF-8 with a header (`.tsv`: tab-separated), paths relative to `videos_root`.

    `path`, `label`, `group` and `split` name columns; the last two are taken where columns of these names exist.
    `text` names the columns that hold the uploader's own words (default: those in `TEXT`); every other column becomes
    a note. Raises `DataError` for a missing column, a path outside `videos_root`, a row with more cells than the
    header, no rows.
    """
    table = Path(table)
    return _from_records(csv_records(table), table, videos_root, path, label, group, split, text, labels)


def import_jsonl(
    table: str | Path,
    videos_root: str | Path,
    *,
    path: str = "path",
    label: str = "label",
    group: str | None = None,
    split: str | None = None,
    text: Sequence[str] | None = None,
    labels: LabelSet | None = None,
) -> Listing:
    """As `import_csv`, one JSON object a line; a value that is not text is kept as JSON."""
    table = Path(table)
    return _from_records(_json_records(table), table, videos_root, path, label, group, split, text, labels)


def inside(root: Path, name: str, where: str) -> Path:
    """The file that `name` means below `root`; a name that leads out of it is refused with a `DataError`.

    Judged by the letters of the path, not by where links lead: links below `root` were put there by its owner, a name
    in a table may come from anyone.
    """
    base = os.path.abspath(root)
    full = os.path.abspath(os.path.join(base, name.replace("\0", "")))
    if "\0" in name or os.path.commonpath([full, base]) != base or full == base:
        raise DataError(
            f"{where} names the file {name!r}, which does not lie inside the videos folder {base!r}.",
            "A table that reaches out of its folder could read any file of this machine.",
            "Move the file into the videos folder, or name a videos folder that holds it.",
        )
    return Path(full)


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without byte-order mark; absent or otherwise encoded: `DataError`."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(
            f"{str(path)!r} is not a file.", "The annotations are read from it.", "Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not UTF-8 text (byte {error.start}).",
            "Guessing the encoding would corrupt names and labels.",
            "Save it as UTF-8 and import again.",
        ) from error


def csv_records(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    reader = csv.reader(_lines(read_text(table)), strict=True, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        twice = [name for name, n in Counter(header).items() if n > 1]
        if twice:
            raise DataError(
                f"{table.name} has the column {twice[0]!r} twice.",
                "Which of the two is meant is unknown.",
                "Rename or remove one.",
            )
        for cells in reader:
            if len(cells) > len(header):
                raise DataError(
                    f"{table.name}, line {reader.line_num}, has {len(cells)} cells for {len(header)} columns.",
                    "A comma inside a cell without quotes shifts every later cell.",
                    'Put the cell in double quotes ("a, b").',
                )
            yield reader.line_num, dict(zip(header, cells + [""] * (len(header) - len(cells))))
    except csv.Error as error:
        raise DataError(
            f"{table.name}, line {reader.line_num}, is not valid CSV ({error}).",
            "The cells after it cannot be told apart.",
            "Repair the quoting of that line.",
        ) from error


def _lines(text: str) -> Iterator[str]:
    # Not splitlines(): it also cuts at U+2028, form feeds and the like, which are ordinary characters in a cell.
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _json_records(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(_lines(read_text(table)), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"{table.name}, line {number}, is not JSON ({error}).",
                "A JSONL file holds one object a line.",
                "Repair or remove that line.",
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{table.name}, line {number}, holds a {type(record).__name__}.",
                "A JSONL file of clips holds one object a line.",
                'Write it as {"path": …, "label": …}.',
            )
        yield number, {as_text(key): as_text(value) for key, value in record.items()}


def as_text(value: object) -> str:
    """A JSON value as a cell. Half a surrogate pair, which JSON can escape but UTF-8 cannot hold, becomes "?"."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def _from_records(
    records: Iterator[tuple[int, dict[str, str]]],
    table: Path,
    videos_root: str | Path,
    path: str,
    label: str,
    group: str | None,
    split: str | None,
    text: Sequence[str] | None,
    labels: LabelSet | None,
) -> Listing:
    root = folder(videos_root)
    rows, findings = [], []
    columns: dict[str, None] = {}
    numbered = list(records)
    for _, record in numbered:
        columns.update(dict.fromkeys(record))
    for column in filter(None, (path, label, group, split, *(text or ()))):
        if numbered and column not in columns:
            near = nearest(column, list(columns))
            raise DataError(
                f"{table.name} has no column {column!r}.",
                f"Its columns are {', '.join(map(repr, columns))}.",
                f"Name the right column{f' (nearest: {near!r})' if near else ''}.",
            )
    group, split = group or "group", split or "split"
    shown = set(TEXT if text is None else text)
    for number, record in numbered:
        where = f"{table.name}, line {number},"
        name = record.get(path, "").strip()
        if not name:
            findings.append(Finding(Kind.EMPTY_ROW, f"line {number}", f"{where} names no file; passed over."))
            continue
        used = {path, label, group, split} | shown
        rows.append(
            Row(
                source=name,
                path=inside(root, name, where),
                label_given=record.get(label, ""),
                group=record.get(group, "").strip() or None,
                split=given_split(record.get(split), where),
                text={key: value for key, value in record.items() if key in shown and value},
                notes=_notes(record, used),
            )
        )
    return finish(rows, labels, table.stem, findings)


def _notes(record: Mapping[str, str], used: set[str]) -> dict[str, str]:
    return {key: value for key, value in record.items() if key not in used and key not in MEASURED and value}


def folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{str(path)!r} is not a folder.", "The clips are looked for in it.", "Check the path.")
    return Path(os.path.abspath(path))


def files(root: Path, refused: list[OSError] | None = None) -> Iterator[Path]:
    """What lies below a folder, but for hidden names. Links to folders are followed, once round a circle. `refused`
    takes the errors of folders that the system does not list."""
    above = {os.fspath(root): frozenset({os.path.realpath(root)})}
    for folder, folders, names in os.walk(root, onerror=None if refused is None else refused.append, followlinks=True):
        here = above.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name in real if real[name] not in here)
        above |= {os.path.join(folder, name): here | {real[name]} for name in folders}
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _utf8(row: Row) -> Row:
    try:
        (row.source + row.label_given).encode()
    except UnicodeEncodeError:
        # Parquet holds UTF-8 only; the name is shown with the odd bytes escaped, the file is not opened under a guess.
        shown = row.source.encode("utf-8", "backslashreplace").decode()
        label = row.label_given.encode("utf-8", "backslashreplace").decode()
        return Row(
            source=shown,
            path=None,
            label_given=label,
            split=row.split,
            excluded=Excluded.NAME_NOT_UTF8,
            detail=f"The file name {shown!r} is not UTF-8; rename the file.",
        )
    return row
