"""A listing: what an annotation file says exists, before any video file was opened.

An importer turns one source into a `Listing` of `Row`s and a `Report` of what was missing, doubled or contradictory.
Nothing here opens a video: `scan` does that next. Annotations are not repaired. A contradiction is reported, and the
clip excluded or kept by one stated rule, never guessed.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from deepintuit.addresses import Object
from deepintuit.data import SPLITS
from deepintuit.errors import DataError, nearest
from deepintuit.labels import LabelSet, normalise

# The most protected first: a clip listed in two splits stays in the one that must not be trained on.
_PROTECTED = ("test", "validation", "calibration", "grpo", "coldstart", "train")
_SPLIT_NAMES = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    **{name: name for name in _PROTECTED},
}


class Excluded(StrEnum):
    """Why a listed clip is not used. A clip whose file fails carries the `VideoReason` of the failure instead."""

    MISSING = "not_found"
    CONFLICTING_LABEL = "conflicting_label"
    UNKNOWN_LABEL = "unknown_label"
    NO_LABEL = "no_label"
    PRIVATE = "private"
    NAME_NOT_UTF8 = "name_not_utf8"


class Kind(StrEnum):
    """What a `Finding` is about."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    DUPLICATE = "duplicate"
    CONFLICTING_LABEL = "conflicting_label"
    TWO_SPLITS = "two_splits"
    TWO_GROUPS = "two_groups"
    UNKNOWN_LABEL = "unknown_label"
    LABELS_ALIKE = "labels_alike"
    EMPTY_ROW = "empty_row"
    AMBIGUOUS_FILE = "ambiguous_file"
    NOT_LISTED = "not_listed"
    NOT_A_CLIP = "not_a_clip"
    TRUNCATED = "truncated"
    NO_PLAYABLE_COPY = "no_playable_copy"
    OTHER_NAME = "other_name"
    TRIM_TABLE = "trim_table"
    UNTRIMMED = "untrimmed"


@dataclass(frozen=True)
class Finding:
    """One thing that an import saw and a person should know; `source` is the clip's name as the annotation gives it."""

    kind: Kind
    source: str
    sentence: str


@dataclass(frozen=True)
class Report:
    """What an import saw: how many rows each given split listed, and the findings."""

    listed: Counter[str]
    findings: tuple[Finding, ...] = ()

    def of(self, kind: Kind) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]

    def counts(self) -> dict[str, int]:
        return dict(Counter(str(finding.kind) for finding in self.findings))

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {n}" for split, n in sorted(self.listed.items()))
        lines = [f"{sum(self.listed.values())} rows listed ({splits})."]
        for kind, n in sorted(self.counts().items()):
            examples = [f"    {finding.sentence}" for finding in self.of(Kind(kind))[:5]]
            lines += [f"  {kind}: {n}", *examples, *([f"    … and {n - 5} more"] if n > 5 else [])]
        return "\n".join(lines)


@dataclass(frozen=True)
class Row:
    """One listed clip. `path` is None where no file belongs to the entry; `label` is None where it could not be
    resolved. `cut`: seconds that must be cut off before use, of the end, or below 0 of the beginning."""

    source: str
    path: Path | Object | None
    label_given: str
    label: str | None = None
    group: str | None = None
    split: str | None = None
    text: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    excluded: str | None = None
    detail: str | None = None
    also_at: tuple[str, ...] = ()
    cut: float = 0.0


def place_of(row: Row) -> str:
    """Where its file lies, as a path or an address."""
    return row.path.address if isinstance(row.path, Object) else str(row.path)


def untrimmed(row: Row, seconds: float | None = None) -> Finding:
    """That this clip's file still has what must be cut off; `seconds`: its length, where it is known."""
    part = f"last {row.cut:g} s" if row.cut > 0 else f"first {-row.cut:g} s"
    long = f" of {seconds:.1f}" if seconds else ""
    return Finding(
        Kind.UNTRIMMED,
        row.source,
        f"{row.source!r} ({row.split or 'no split'}): the {part}{long} must be cut off before use, and were not as "
        "far as can be told. Cut them with the benchmark's Video_trim.py, and import its folder with --trimmed.",
    )


@dataclass(frozen=True)
class Listing:
    labels: LabelSet
    rows: tuple[Row, ...]
    report: Report


def is_split(name: str) -> bool:
    """Whether a folder is named like a split, in any of the words that `given_split` knows."""
    return name.strip().lower() in _SPLIT_NAMES


def given_split(name: str | None, location: str) -> str | None:
    """The split that an annotation means (`val`, `dev` → `validation`, …); blank is None; an unknown word is a
    `DataError`."""
    word = (name or "").strip().lower()
    if not word:
        return None
    if word not in _SPLIT_NAMES:
        near = nearest(word, list(_SPLIT_NAMES))
        raise DataError(
            f"{location} puts a clip into the split {name!r}.",
            f"Splits are {', '.join(SPLITS)} or train, which is divided later.",
            f"Write one of these{f' (nearest: {near})' if near else ''}, or leave the cell empty.",
        )
    return _SPLIT_NAMES[word]


def finish(
    rows: Iterable[Row], labels: LabelSet | None, name: str, findings: Sequence[Finding] = (), *, labelled: bool = True
) -> Listing:
    """Resolve labels, mark missing files, fold rows of the same file: the last step of every importer. Unless the clips
    are `labelled`, none is asked for a label.

    Without a label set, one is made of the labels found: spellings that are equal after normalising are one label,
    under its most frequent spelling. `name` is the dataset as the user knows it, for messages. No rows at all:
    `DataError`.
    """
    rows, findings = list(rows), list(findings)
    if not rows:
        raise DataError(
            f"{name} lists no clips.",
            "A manifest of 0 clips can train and score nothing.",
            "Check that the path is the one you meant and that it holds a header and at least one row, "
            "or class folders with video files.",
        )
    if labels is None:
        labels = _labels_of(rows, name)
        findings += _alike(labels)
    listed = Counter(row.split or "no split" for row in rows)
    rows, doubled = fold([_look(row, labels, labelled) for row in rows], lambda row: row.path or row.source)
    for row in rows:
        if row.excluded == Excluded.MISSING:
            findings.append(Finding(Kind.MISSING, row.source, row.detail))
        elif row.excluded in (Excluded.UNKNOWN_LABEL, Excluded.NO_LABEL):
            findings.append(Finding(Kind.UNKNOWN_LABEL, row.source, row.detail))
    return Listing(labels, tuple(rows), Report(listed, (*findings, *doubled)))


def fold(rows: Sequence[Row], key: Callable[[Row], Hashable | None]) -> tuple[list[Row], list[Finding]]:
    """Keep one row per key and report the others; rows whose key is None stay as they are.

    The row in the most protected split stays (test before validation before the training splits). Rows that disagree
    on the label are kept once and excluded as `conflicting_label`.
    """
    clusters: dict[Hashable, list[Row]] = {}
    for i, row in enumerate(rows):
        own = key(row)
        clusters.setdefault(("alone", i) if own is None else ("key", own), []).append(row)
    folded, findings = [], []
    for cluster in clusters.values():
        row, notes = _fold_one(cluster) if len(cluster) > 1 else (cluster[0], [])
        folded.append(row)
        findings += notes
    return folded, findings


def _fold_one(cluster: list[Row]) -> tuple[Row, list[Finding]]:
    keep = min(cluster, key=lambda row: _PROTECTED.index(row.split) if row.split else len(_PROTECTED))
    rest = [row for row in cluster if row is not keep]
    keep = replace(keep, also_at=keep.also_at + tuple(name for row in rest for name in (row.source, *row.also_at)))
    findings = [
        Finding(
            Kind.DUPLICATE,
            row.source,
            f"{row.source!r} is listed twice; kept once."
            if row.source == keep.source
            else f"{row.source!r} is the same clip as {keep.source!r}; kept once.",
        )
        for row in rest
    ]
    source_of = {word: row.source for row in cluster if (word := row.label or normalise(row.label_given))}
    if len(source_of) > 1:
        detail = "; ".join(f"{source!r} says {label!r}" for label, source in sorted(source_of.items()))
        findings.append(
            Finding(Kind.CONFLICTING_LABEL, keep.source, f"One clip, {len(source_of)} labels: {detail}. Excluded.")
        )
        keep = replace(keep, excluded=Excluded.CONFLICTING_LABEL, detail=detail)
    splits = sorted({row.split for row in cluster if row.split})
    if len(splits) > 1:
        findings.append(
            Finding(
                Kind.TWO_SPLITS,
                keep.source,
                f"{keep.source!r} is listed in {' and '.join(splits)}; kept in {keep.split} only.",
            )
        )
    groups = sorted({row.group for row in cluster if row.group})
    if len(groups) > 1:
        findings.append(
            Finding(
                Kind.TWO_GROUPS,
                keep.source,
                f"{keep.source!r} is listed in the groups {', '.join(map(repr, groups))}; kept in "
                f"{keep.group!r}. Groups that share a clip probably share footage: merge them.",
            )
        )
    return keep, findings


def _labels_of(rows: list[Row], name: str) -> LabelSet:
    spellings: dict[str, Counter[str]] = {}
    for row in rows:
        if folded := _given(row.label_given):
            spellings.setdefault(folded, Counter())[row.label_given.strip()] += 1
    return LabelSet.of(name, sorted(min(c, key=lambda word: (-c[word], word)) for c in spellings.values()))


def _alike(labels: LabelSet) -> list[Finding]:
    """Labels that one word may be meant by: apart in what is hardly seen, or in the form of a number."""
    groups: dict[str | float, list[str]] = {}
    for label in labels:
        word = unicodedata.normalize("NFKC", label).casefold()
        try:
            key: str | float = float(word)
        except ValueError:
            key = "".join(letter for letter in word if unicodedata.category(letter)[0] not in "CPZ")
        groups.setdefault(key, []).append(label)
    return [
        Finding(
            Kind.LABELS_ALIKE,
            group[0],
            f"{' and '.join(map(repr, group))} are classes of their own, though they differ in spaces, punctuation, "
            "invisible signs or the form of a number alone. If one class is meant, write one of them, or name the "
            "other as an alias in --labels.",
        )
        for key, group in groups.items()
        if key != "" and len(group) > 1
    ]


def absent(path: Path | Object) -> str | None:
    """Why the system says that nothing lies at `path`; None when something does, be it readable or not."""
    if isinstance(path, Object):
        return None if path.there else "the store lists no object of this name"
    try:
        os.stat(path)
    except OSError as error:
        return None if error.errno in (errno.EACCES, errno.EPERM) else error.strerror
    return None


_MISSING = {"nan", "<na>"}
"""How libraries write a cell that holds nothing."""


def _given(word: str) -> str:
    """A label as labels are compared: a whole number that a library wrote as 1.0 is 1."""
    folded = normalise(word)
    whole, point, zeros = folded.partition(".")
    folded = whole if point and whole.removeprefix("-").isdecimal() and not zeros.strip("0") else folded
    return "" if folded in _MISSING else folded


def _look(row: Row, labels: LabelSet, labelled: bool) -> Row:
    label = labels.resolve(row.label_given)
    if label is None and (folded := _given(row.label_given)):
        label = next((name for name in labels if _given(name) == folded), None)
    elif normalise(row.label_given) in _MISSING - set(map(normalise, labels)):
        row = replace(row, label_given="")
    row = replace(row, label=label)
    if row.excluded:
        return row
    if row.path is None or (why := absent(row.path)):
        problem = f"no file at {place_of(row)!r} ({why})" if row.path else "no video file has this name"
        return replace(row, excluded=Excluded.MISSING, detail=f"{row.source!r}: {problem}.")
    if label is None and labelled and not row.label_given.strip():
        return replace(row, excluded=Excluded.NO_LABEL, detail=f"{row.source!r} has no label.")
    if label is None and labelled:
        near = nearest(row.label_given, list(labels))
        return replace(
            row,
            excluded=Excluded.UNKNOWN_LABEL,
            detail=f"{row.source!r} has the label {row.label_given!r}, which {labels.name!r} does not know"
            f"{f' (nearest: {near!r})' if near else ''}; add it or an alias.",
        )
    return row
