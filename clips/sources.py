"""Importers for one's own clips: a folder of class folders, a CSV or TSV, a JSONL.

Each returns a `Listing`; no video is opened. A column that describes the clip or argues for its label is kept as a
*note*, which no model sees unless it is asked for by name (`Manifest.text_fields`): the human description alone gave
away 85.2 % of the labels of the paper's own test ids (METHOD.md 1.7). Only the names in `TEXT` are taken as
uploader's text without being asked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from deepintuit import addresses, parquet, texts
from deepintuit.data.delimited import csv_rows, lines
from deepintuit.errors import DataError, VideoReason, nearest
from deepintuit.labels import LabelSet
from deepintuit_clips.listing import Excluded, Finding, Kind, Listing, Row, finish, given_split, is_split

VIDEO_SUFFIXES = frozenset(
    ".mp4 .mov .m4v .mkv .webm .avi .3gp .3g2 .mpg .mpeg .mpe .vob .ts .mts .m2ts .flv .wmv .asf .ogv .mxf "
    ".gif .apng".split()
)
TEXT = frozenset({"title", "transcript", "asr", "subtitles"})
# Measured again from the file itself, so the annotation's word for it is not kept.
MEASURED = frozenset("width height fps frames seconds audio bytes codec sha256".split())


def import_folder(root: str | Path, *, labels: LabelSet | None = None) -> Listing:
    """`root/<label>/…/clip.mp4`; or `root/<split>/<label>/…` where every top folder with a video is named like a
    split (train, valid, test, …); or `root/<label>/<split>/…` where every second one is.

    The clip's name is its path below `root`. Files without a video suffix are counted, not listed. Raises `DataError`
    for a root that is no folder or holds no clip. `root` may be an address (`deepintuit.addresses`).
    """
    refused: list[OSError] = []
    if addresses.is_address(root):
        root = addresses.checked(root)
        named = ((path, tuple(name.split("/"))) for name, path in addresses.objects(root).items())
        paths = [(path, parts) for path, parts in named if not any(map(_hidden, parts))]
        tops = sorted({parts[0] for _, parts in paths if len(parts) > 1})
    else:
        root = folder(root)
        paths = [(path, path.relative_to(root).parts) for path in files(root, refused)]
        tops = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    clips = [(path, parts) for path, parts in paths if path.suffix.lower() in VIDEO_SUFFIXES and len(parts) > 1]
    at, beside = _split_level(root, tops, [parts for _, parts in clips])
    depth = 2 if at == 0 else 1
    rows, suffixes = [], Counter()
    for path, parts in paths:
        if path.suffix.lower() not in VIDEO_SUFFIXES or len(parts) <= depth or parts[0] in beside:
            suffixes[
                "directly in the root" if path.suffix.lower() in VIDEO_SUFFIXES else path.suffix.lower() or "none"
            ] += 1
            continue
        rows.append(
            _utf8(
                Row(
                    source="/".join(parts),
                    path=path,
                    label_given=parts[depth - 1],
                    split=None if at is None else given_split(parts[at], str(root)),
                )
            )
        )
    rows += [_closed(error, root, depth) for error in refused]
    findings = [
        Finding(Kind.NOT_A_CLIP, suffix, f"{n} files not listed: suffix or place {suffix!r}.")
        for suffix, n in sorted(suffixes.items())
    ]
    findings += [
        Finding(Kind.NOT_A_CLIP, name, f"The folder {name!r} is no split and holds no video; left out.")
        for name in beside
    ]
    findings += [Finding(Kind.UNREADABLE, row.source, row.detail) for row in rows if row.excluded in set(VideoReason)]
    return finish(rows, labels, os.path.basename(root), findings)


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


def _split_level(
    root: Path | str, tops: Sequence[str], clips: Sequence[tuple[str, ...]]
) -> tuple[int | None, list[str]]:
    """At which level of the folders splits are named: the first, the second, or None; and the top folders that are
    neither split nor class. A `DataError` where splits and classes stand side by side."""
    splits = [name for name in tops if is_split(name)]
    inside = [len(parts) > 2 for parts in clips if parts[0] in splits]
    nested = bool(inside) and all(inside)
    classes = sorted({parts[0] for parts in clips} - set(splits))
    if splits and nested and not classes:
        return 0, [name for name in tops if name not in splits]
    if len(splits) > 1 and nested:
        raise DataError(
            f"{str(root)!r} holds folders named like splits ({', '.join(splits)}) beside {', '.join(classes[:5])}.",
            "Read as classes, training and test clips would be mixed; read as splits, the others would be lost.",
            "Move the others out of this folder, or into a split.",
        )
    inner = clips and all(len(parts) > 2 and is_split(parts[1]) for parts in clips)
    return (1 if inner else None), []


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
    records: Callable[[Path], Iterator[tuple[int, dict[str, Any]]]] | None = None,
) -> Listing:
    """One row per clip, with a header, paths relative to `videos_root`; encoding and delimiter as of `csv_rows`.

    `path`, `label`, `group` and `split` name columns; the last two are taken where columns of these names exist.
    `text` names the columns that hold the uploader's own words (default: those in `TEXT`); every other column becomes
    a note. `records` reads another form of table. Raises `DataError` for a missing column, a path outside
    `videos_root`, a row with more cells than the header, several labels of a clip, no rows.
    """
    table = Path(table)
    root = addresses.checked(videos_root) if addresses.is_address(videos_root) else folder(videos_root)
    rows, findings = [], []
    numbered = list((records or csv_records)(table))
    columns = list(dict.fromkeys(name for _, record in numbered for name in record))
    options = [("--path-column", path), ("--label-column", label), ("--group", group), ("--split", split)]
    for option, column in [*options, *(("--text", name) for name in text or ())]:
        if numbered and column and _column(column, columns) is None:
            near = nearest(column, columns)
            raise DataError(
                f"{table.name} has no column {column!r}.",
                f"Its columns are {', '.join(map(repr, columns))}.",
                f"Name the right column with {option}{f' (nearest: {near!r})' if near else ''}.",
            )
    path, label, group, split = (
        _column(name, columns) or name for name in (path, label, group or "group", split or "split")
    )
    text_columns = set(TEXT if text is None else (_column(name, columns) for name in text))
    lines = [(f"{table.name}, line {number},", number, record) for number, record in numbered]
    names = [_single(record.get(path), "path", location).strip() for location, _, record in lines]
    places = {name: inside(root, name, location) for name, (location, *_) in zip(names, lines) if name}
    files_of = _files_of(root, places.values())
    for name, (location, number, record) in zip(names, lines):
        if not name:
            findings.append(Finding(Kind.EMPTY_ROW, f"line {number}", f"{location} names no file; passed over."))
            continue
        used = {path, label, group, split} | text_columns
        cells = {key: as_text(value) for key, value in record.items()}
        place = files_of.find(name, location)
        if isinstance(place, Path) and place != places[name]:
            as_is = place.relative_to(root).as_posix()
            findings.append(Finding(Kind.OTHER_NAME, name, f"{name!r} is taken to be the file {as_is!r}."))
        rows.append(
            _utf8(
                Row(
                    source=name,
                    path=place,
                    label_given=_single(record.get(label), "label", location),
                    group=_single(record.get(group), "group", location).strip() or None,
                    split=given_split(_single(record.get(split), "split", location), location),
                    text={key: value for key, value in cells.items() if key in text_columns and value},
                    notes=_notes(cells, used),
                )
            )
        )
    return finish(rows, labels, table.stem, findings)


def import_jsonl(table: str | Path, videos_root: str | Path, **columns: Any) -> Listing:
    """As `import_csv`, one JSON object a line; a value that is not text is kept as JSON."""
    return import_csv(table, videos_root, records=_json_records, **columns)


def import_new(
    inputs: Sequence[str | Path],
    labels: LabelSet,
    *,
    path: str = "path",
    text: Sequence[str] = (),
    videos_root: str | Path | None = None,
) -> tuple[list[tuple[str, str]], Listing]:
    """Clips without labels: folders (or addresses) with all that lies below them, video files, and tables (CSV, TSV,
    JSONL, Parquet) whose column `path` names files below `videos_root` (default: the table's folder) and whose columns
    `text` hold the uploader's own words. Of a table, nothing else is kept.

    Also returns, for each clip in the order given, its name as given and its `source` in the listing, which is its
    absolute path. A file that is not there is listed; `DataError` for an input that is neither, and for no clip at all.
    """
    names, rows, findings, suffixes = [], [], [], Counter()

    def add(name: str, place: Path | addresses.Object, **columns: Any) -> None:
        full = os.path.abspath(place) if isinstance(place, Path) else place.address
        path = Path(full) if isinstance(place, Path) else place
        row = _utf8(Row(source=full, path=path, label_given="", **columns))
        names.append((_as_utf8(name), row.source))
        rows.append(row)

    stores = [addresses.checked(place) for place in inputs if addresses.is_address(place)]
    for thing in (thing for store in stores for thing in addresses.objects(store).values()):
        if thing.suffix.lower() in VIDEO_SUFFIXES:
            add(thing.address, thing)
        else:
            suffixes[thing.suffix.lower() or "none"] += 1
    for place in (Path(place) for place in inputs if not addresses.is_address(place)):
        if place.is_dir():
            refused: list[OSError] = []
            for file in files(place, refused):
                if file.suffix.lower() in VIDEO_SUFFIXES:
                    add(str(file), file)
                else:
                    suffixes[file.suffix.lower() or "none"] += 1
            for error in refused:
                row = _closed(error, place, 1)
                rows.append(replace(row, source=_as_utf8(os.path.abspath(error.filename)), label_given=""))
                names.append((_as_utf8(str(error.filename)), rows[-1].source))
        elif place.suffix.lower() in _RECORDS:
            root = videos_root or place.parent
            root = addresses.checked(root) if addresses.is_address(root) else folder(root)
            named_rows = list(_table_rows(place, path, text))
            files_of = _files_of(root, [inside(root, name, location) for location, name, _ in named_rows if name])
            for location, name, texts_of in named_rows:
                if name:
                    add(name, files_of.find(name, location), text=texts_of)
                else:
                    findings.append(Finding(Kind.EMPTY_ROW, location, f"{location} names no file; passed over."))
        elif place.suffix.lower() in VIDEO_SUFFIXES or _is_file(place):
            add(str(place), place)
        else:
            raise DataError(
                f"there is nothing at {_as_utf8(str(place))!r}",
                "clips are read from folders, video files and tables (CSV, TSV, JSONL, Parquet)",
                "Check the path",
            )
    findings += [
        Finding(Kind.NOT_A_CLIP, suffix, f"{n} files not listed: suffix {suffix!r}.") for suffix, n in suffixes.items()
    ]
    if not rows:
        raise DataError(
            f"there is no video in {', '.join(_as_utf8(addresses.shown(str(place))) for place in inputs) or 'nothing'}",
            "a video is told by its ending: " + " ".join(sorted(VIDEO_SUFFIXES)),
            "Name a folder, files or a table with clips",
        )
    return names, finish(rows, labels, "the input", findings, labelled=False)


def _table_rows(table: Path, path: str, text: Sequence[str]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Where, the file's name, and the texts, of each row."""
    numbered = list(_RECORDS[table.suffix.lower()](table))
    columns = list(dict.fromkeys(name for _, record in numbered for name in record))
    for column in (path, *text) if numbered else ():
        if _column(column, columns) is None:
            raise DataError(
                f"{table.name} has no column {column!r}",
                f"its columns are {', '.join(map(repr, columns))}"
                + (", and the system was taught with that text beside the clip" if column != path else ""),
                "Name the column of files with --path-column" if column == path else "Bring that column",
            )
    for number, record in numbered:
        location = f"{table.name}, line {number},"
        texts = {name: as_text(record.get(_column(name, columns))) for name in text}
        name = _single(record.get(_column(path, columns)), "path", location).strip()
        yield location, name, {key: value for key, value in texts.items() if value}


def _parquet_records(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = parquet.read(table)
    except (ValueError, OSError) as error:
        raise DataError(f"{table.name} cannot be read", str(error), "Save it as Parquet, CSV or JSONL again") from error
    yield from enumerate(rows.to_pylist(), 1)


def inside(root: Path | str, name: str, location: str) -> Path | str:
    """The file that `name` means below `root`, or its address there; a name that leads out of it is refused with a
    `DataError`.

    Judged by the letters of the path, not by where links lead: links below `root` were put there by its owner, a name
    in a table may come from anyone.
    """
    if isinstance(root, str) or addresses.is_address(name):
        return f"{root}/{addresses.below(str(root), name, location)}"
    base, name = os.path.abspath(root), name.removeprefix("file://")
    full = os.path.abspath(os.path.join(base, name.replace("\0", "")))
    if "\0" in name or os.path.commonpath([full, base]) != base or full == base:
        raise DataError(
            f"{location} names the file {name!r}, which does not lie inside the videos folder {base!r}.",
            "A table that reaches out of its folder could read any file of this machine.",
            "Move the file into the videos folder, or name a videos folder that holds it.",
        )
    return Path(full)


def read_text(path: Path) -> str:
    """A text file as `texts.read` has it; `DataError` for one that is absent, closed or no text."""
    try:
        return texts.read(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(
            f"{str(path)!r} is not a file.", "The annotations are read from it.", "Check the path."
        ) from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read.", error.strerror or str(error), "Let it be read.") from error
    except ValueError as error:
        raise DataError(
            f"{str(path)!r} cannot be read: {error}.",
            "Guessing the encoding would corrupt names and labels.",
            "Save it as UTF-8 and import again.",
        ) from error


def csv_records(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    return csv_rows(read_text(table), table.name, "\t" if table.suffix.lower() == ".tsv" else "")


def _json_records(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines(read_text(table)), 1):
        if not line.strip():
            continue
        try:
            record = texts.parse_json(line, unique=True)
        except ValueError as error:
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
        yield number, {as_text(key): value for key, value in record.items()}


def as_text(value: object) -> str:
    """A JSON value as a cell; what is missing (null, NaN) is "". Half a surrogate pair, which JSON can escape but UTF-8
    cannot hold, becomes "?"."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def _single(value: object, meaning: str, location: str) -> str:
    """The one text or number that a cell must be; a list of one stands for what it holds."""
    if isinstance(value, list) and len(value) <= 1:
        value = value[0] if value else None
    if isinstance(value, list | dict):
        raise DataError(
            f"{location} has the {meaning} {json.dumps(value, ensure_ascii=False)!r:.200}.",
            f"A clip has one {meaning}.",
            f"Write one text, or leave the {meaning} empty.",
        )
    return as_text(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value)


_RECORDS = {
    ".csv": csv_records,
    ".tsv": csv_records,
    ".jsonl": _json_records,
    ".ndjson": _json_records,
    ".parquet": _parquet_records,
}


def _column(column: str, columns: Sequence[str]) -> str | None:
    """The column that is meant: of this name, else the only one that differs from it in case alone."""
    alike = [name for name in columns if name.strip().casefold() == column.casefold()]
    return column if column in columns else alike[0] if len(alike) == 1 else None


def _files_of(root: Path | str, places: Collection[Path | str]) -> _Files | _Objects:
    return _Files(root, places) if isinstance(root, Path) else _Objects(root, places)


class _Objects:
    """The objects that a table names by addresses below a store, which is asked once what lies where they do."""

    def __init__(self, root: str, places: Collection[str]) -> None:
        self._root, folders = root, {place.rpartition("/")[0] for place in places}
        common = os.path.commonprefix([f"{folder}/" for folder in folders]).rpartition("/")[0] if folders else root
        self._there = {thing.address: thing for thing in addresses.objects(common).values()} if folders else {}

    def find(self, name: str, location: str) -> addresses.Object:
        place = inside(self._root, name, location)
        thing = self._there.get(place)
        return thing._replace(store=self._root) if thing else addresses.Object(place, self._root, there=False)


class _Files:
    """The files below a folder by the names that tables give them: as written, with backslashes, percent-encoded, in
    another case, or with accents encoded in another way. A file that a row names as it is called is of no other row."""

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        self._root = root
        self._taken = {path for path in paths if _is_file(path)}
        self._alike: dict[str, list[Path]] | None = None

    def find(self, name: str, location: str) -> Path:
        """The file that is there; where none or several could be meant, the place where one should be."""
        place = inside(self._root, name, location)
        if place in self._taken:
            return place
        for spelling in (name, name.replace("\\", "/"), unquote(name)):
            with contextlib.suppress(DataError):
                guess = inside(self._root, spelling, location)
                matches = [guess] if _is_file(guess) else self._by_folded().get(self._folded(guess), [])
                if len(matches) == 1 and matches[0] not in self._taken:
                    return matches[0]
        return place

    def _folded(self, path: Path) -> str:
        return unicodedata.normalize("NFC", path.relative_to(self._root).as_posix()).casefold()

    def _by_folded(self) -> dict[str, list[Path]]:
        if self._alike is None:
            self._alike = {}
            for path in files(self._root):
                self._alike.setdefault(self._folded(path), []).append(path)
        return self._alike


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or that no file system can hold
        return False


def _notes(record: Mapping[str, str], used: set[str]) -> dict[str, str]:
    return {key: value for key, value in record.items() if key not in used and key not in MEASURED and value}


def folder(path: str | Path) -> Path:
    path = Path(str(path).removeprefix("file://"))
    if not path.is_dir():
        raise DataError(f"{str(path)!r} is not a folder.", "The clips are looked for in it.", "Check the path.")
    return Path(os.path.abspath(path))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def files(root: Path, refused: list[OSError] | None = None) -> Iterator[Path]:
    """What lies below a folder, but for hidden names. Links to folders are followed, once round a circle. `refused`
    takes the errors of folders that the system does not list."""
    above = {os.fspath(root): frozenset({os.path.realpath(root)})}
    for folder, folders, names in os.walk(root, onerror=None if refused is None else refused.append, followlinks=True):
        here = above.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders if not _hidden(name)}
        folders[:] = sorted(name for name in real if real[name] not in here)
        above |= {os.path.join(folder, name): here | {real[name]} for name in folders}
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _utf8(row: Row) -> Row:
    try:
        (row.source + row.label_given).encode()
    except UnicodeEncodeError:
        # Parquet holds UTF-8 only; the name is shown with the odd bytes escaped, the file is not opened under a guess.
        name, label = _as_utf8(row.source), _as_utf8(row.label_given)
        return Row(
            source=name,
            path=None,
            label_given=label,
            split=row.split,
            excluded=Excluded.NAME_NOT_UTF8,
            detail=f"The file name {name!r} is not UTF-8; rename the file.",
        )
    return row


def _as_utf8(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
