"""Importers for the two public benchmarks of the paper. Their videos cannot be shipped: what is missing is listed,
not dropped.

Both take the annotation files from a folder of the reader's own and copy nothing of them but into the workbench.
Descriptions, reasonings, annotators' votes and victims become notes, which no model sees unless asked for by name
(METHOD.md 1.7, trap 2).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from deepintuit.errors import DataError
from deepintuit.labels import LabelSet
from deepintuit_clips.listing import Excluded, Finding, Kind, Listing, Row, finish, given_split, untrimmed
from deepintuit_clips.sources import VIDEO_SUFFIXES, as_text, csv_records, files, folder, read_text

SMARTHOME_BINARY = LabelSet(
    "smarthome",
    ("normal", "abnormal"),
    {
        "normal": "Nothing that the people of the house would need to know of or act on.",
        "abnormal": "Something dangerous, harmful, suspicious or out of the ordinary, also if only possibly so.",
    },
    {"vague abnormal": "abnormal"},
)
SMARTHOME_THREE = LabelSet("smarthome-three", ("normal", "vague abnormal", "abnormal"))
MULTIHATECLIP = LabelSet(
    "multihateclip",
    ("normal", "offensive", "hateful"),
    {
        "normal": "Neither offends nor attacks; speaking against hate counts as normal.",
        "offensive": "Insults or upsets, without attacking people for the group they belong to.",
        "hateful": "Attacks or demeans people for the group they belong to.",
    },
    {"counter narrative": "normal"},
)


def import_smarthome(
    annotations_folder: str | Path, videos_folder: str | Path, labels: str = "binary", trimmed: bool = False
) -> Listing:
    """SmartHome-Bench: `Video_Annotation.csv`, the paper's split in `deepintuit_split.csv`, videos named
    `<Title>.<suffix>`.

    `test` is the paper's 196 ids; `train_candidate` may be divided; `private` clips have no public video and are
    excluded. With `labels="binary"`, "Vague Abnormal" counts as abnormal, as in the paper; with `"three"` it stays a
    class of its own. The group is the source video where `Video_url.csv` gives one. Where `Trim_video_label.csv` (or
    `trim_seconds` of the split file) says that seconds must be cut off a clip, it is reported, unless the videos are
    `trimmed`. Raises `DataError` for a missing file, column or split.
    """
    if labels not in ("binary", "three"):
        raise DataError(
            f"labels={labels!r} is not a reading of SmartHome-Bench.",
            "It has a binary and a three-way one.",
            "Use 'binary' (the paper's) or 'three'.",
        )
    root = folder(annotations_folder)
    if not (root / "deepintuit_split.csv").is_file():
        raise DataError(
            f"{str(root)!r} has no deepintuit_split.csv.",
            "Without it the 196 clips that the paper tests on are unknown, and a score would not be comparable.",
            "Put the file (columns Title, split) beside Video_Annotation.csv, or import that table with import_csv.",
        )
    split_of = {r["Title"]: r["split"] for _, r in _table(root / "deepintuit_split.csv", ("Title", "split"))}
    urls = root / "Video_url.csv"
    source_of = {r["Title"]: _video_id(r["URL"]) for _, r in _table(urls, ("Title", "URL"))} if urls.is_file() else {}
    cuts = _cuts(root)
    videos = _Videos(videos_folder)
    rows, findings = [], []
    for number, record in _table(root / "Video_Annotation.csv", ("Title", "Anomaly Tag")):
        title, location = record["Title"].strip(), f"Video_Annotation.csv, line {number},"
        if not title:
            findings.append(Finding(Kind.EMPTY_ROW, f"line {number}", f"{location} has no Title; passed over."))
            continue
        if title not in split_of:
            raise DataError(
                f"{location} lists {title!r}, which deepintuit_split.csv does not.",
                "A clip whose split is unknown could be a test clip.",
                "Use files of the same release.",
            )
        word = split_of[title]
        private = word == "private"
        rows.append(
            Row(
                source=title,
                path=videos.find(title),
                label_given=record["Anomaly Tag"],
                group=source_of.get(title),
                split=None
                if private
                else given_split("train" if word == "train_candidate" else word, "deepintuit_split.csv"),
                notes={k: v for k, v in record.items() if k not in ("Title", "Anomaly Tag") and v}
                | ({"trim_seconds": f"{cuts[title]:g}"} if cuts.get(title) else {}),
                cut=0.0 if trimmed or private else cuts.get(title, 0.0),
                excluded=Excluded.PRIVATE if private else None,
                detail="A private video without a public address; the paper did not use it." if private else None,
            )
        )
    unlisted = sorted(set(split_of) - {row.source for row in rows})
    if unlisted:
        raise DataError(
            f"deepintuit_split.csv lists {unlisted[0]!r}, which Video_Annotation.csv does not.",
            "The split and the annotation are of different releases.",
            "Use files of the same release.",
        )
    findings += videos.findings({row.source for row in rows})
    for split in ("test", "train"):
        there = [row for row in rows if row.split == split]
        if count := sum(row.cut != 0 for row in there):
            sentence = f"{count} of {len(there)} {split} clips must be trimmed before use."
            findings.append(Finding(Kind.TRIM_TABLE, split, sentence))
    findings += [untrimmed(row) for row in rows if row.cut and row.path is not None]
    return finish(rows, SMARTHOME_BINARY if labels == "binary" else SMARTHOME_THREE, "SmartHome-Bench", findings)


def import_multihateclip(
    annotations_folder: str | Path, videos_folder: str | Path, language: str = "English"
) -> Listing:
    """MultiHateClip: `annotation/{train,valid,test}.tsv` and `text.json`, videos named `<Video_ID>.<suffix>`.

    `annotations_folder` is the folder that holds `text.json`, or one above it. "Counter narrative" counts as normal.
    The one id listed in train and test is reported and stays in test. Title and transcript are text; all else is a
    note: `text.json`'s `label` is a language model's guess. Raises `DataError` for a missing file or column and for a
    cell that is no Python list.
    """
    root = folder(annotations_folder)
    home = next((p for p in (root, root / f"{language}_data") if (p / "annotation").is_dir()), root)
    texts = _texts(home / "text.json")
    videos = _Videos(videos_folder)
    rows, findings = [], []
    for split in ("train", "valid", "test"):
        table = home / "annotation" / f"{split}.tsv"
        for number, record in _table(table, ("Video_ID", "Majority_Voting")):
            clip, location = record["Video_ID"].strip(), f"{table.name}, line {number},"
            if not clip:
                findings.append(
                    Finding(Kind.EMPTY_ROW, f"{split} line {number}", f"{location} has no Video_ID; passed over.")
                )
                continue
            votes = {
                k: _literal(v, f"{location} column {k!r},")
                for k, v in record.items()
                if k not in ("Video_ID", "Majority_Voting") and v
            }
            extra = texts.get(clip, {})
            notes = {f"text_json_{k}": v for k, v in extra.items() if k not in ("title", "transcript") and v}
            rows.append(
                Row(
                    source=clip,
                    path=videos.find(clip),
                    label_given=record["Majority_Voting"],
                    split=given_split(split, table.name),
                    notes={**votes, **notes},
                    text={k: extra[k] for k in ("title", "transcript") if extra.get(k)},
                )
            )
    findings += videos.findings({row.source for row in rows})
    return finish(rows, MULTIHATECLIP, "MultiHateClip", findings)


def _cuts(root: Path) -> dict[str, float]:
    """Title → seconds to cut off the end, or below 0 the beginning, as the benchmark's own script takes its table."""
    tables = sorted(path for path in root.iterdir() if re.fullmatch(r"(video_)?trim\w*\.csv", path.name.lower()))
    table, column = (tables[0], "Time") if tables else (root / "deepintuit_split.csv", "trim_seconds")
    cuts = {}
    for number, record in _table(table, ("Title",)):
        cell = next((v for k, v in record.items() if k.strip().lower() == column.lower()), "").strip()
        try:
            cuts[record["Title"].strip()] = float(Fraction(cell or "0"))  # a number, and neither nan nor infinity
        except (ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"{table.name}, line {number}, column {column!r} holds {cell[:60]!r}.",
                "It is a number of seconds to cut off the end, or below 0 the beginning.",
                "Use the benchmark's own file, unchanged.",
            ) from error
    return cuts


class _Videos:
    """The video files of a folder by stem; where two share a stem the first by depth and name is taken, and
    reported."""

    def __init__(self, root: str | Path) -> None:
        self._by_stem: dict[str, list[Path]] = {}
        videos = (p for p in files(folder(root)) if p.suffix.lower() in VIDEO_SUFFIXES)
        for path in sorted(videos, key=lambda p: (len(p.parts), str(p))):
            self._by_stem.setdefault(path.stem, []).append(path)

    def find(self, stem: str) -> Path | None:
        return self._by_stem.get(stem, [None])[0]

    def findings(self, listed: set[str]) -> Iterator[Finding]:
        for stem, paths in self._by_stem.items():
            if stem not in listed:
                yield Finding(
                    Kind.NOT_LISTED, stem, f"{paths[0].name!r} is a video that the annotation does not list; not used."
                )
            elif len(paths) > 1:
                yield Finding(
                    Kind.AMBIGUOUS_FILE, stem, f"{len(paths)} files are named {stem!r}; {str(paths[0])!r} was taken."
                )


def _table(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    for number, record in csv_records(path):
        missing = [column for column in needed if column not in record]
        if missing:
            raise DataError(
                f"{path.name} has no column {missing[0]!r}.",
                f"Its columns are {', '.join(map(repr, record))}.",
                "Use the benchmark's own file, unchanged.",
            )
        yield number, record


def _texts(path: Path) -> dict[str, dict[str, str]]:
    try:
        contents = json.loads(read_text(path))
        return {clip: {k: as_text(v) for k, v in fields.items()} for clip, fields in contents.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path.name} is not the table of texts ({error}).",
            "It maps each Video_ID to its title and transcript.",
            "Use the benchmark's own file, unchanged.",
        ) from error


def _literal(cell: str, location: str) -> str:
    """A cell that holds a Python list of words or pairs, as JSON. Parsed as data, never run."""
    try:
        value = ast.literal_eval(cell)
        if isinstance(value, list):
            return json.dumps(value, ensure_ascii=False)
        problem = f"a {type(value).__name__}"
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        problem = type(error).__name__
    raise DataError(
        f"{location} holds {cell[:60]!r} ({problem}).",
        "A Python list such as ['Woman', 'Man'] is expected there.",
        "Use the benchmark's own file, unchanged.",
    )


def _video_id(url: str) -> str | None:
    """`yt:<id>` for a YouTube address, so that two clips cut from one video are one group; None for any other text."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").removeprefix("www.").removeprefix("m.")
    if host == "youtu.be":
        video = parts.path.strip("/").split("/")[0]
    elif host == "youtube.com":
        tail = parts.path.strip("/").split("/")
        video = parse_qs(parts.query).get("v", [""])[0] or (
            tail[1] if tail[0] in ("shorts", "embed", "live") and tail[1:] else ""
        )
    else:
        return None
    return f"yt:{video}" if video else None
