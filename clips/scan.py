"""Look at the files of a listing: hash, probe, playable copy; what comes out is a `Manifest`.

The reader is handed in (`video.probe`, `video.playable_copy`), since this shelf stands below `video`. Resumable: every
probed file is a line in `clips/<dataset>.journal.jsonl`; a second scan opens only files whose path, size, time stamp or
limits changed, and those that the system did not give. A file that fails stays as a row.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepintuit import addresses, disk, worlds
from deepintuit.addresses import Object
from deepintuit.data.manifest import Manifest, rows_to_table, to_frame
from deepintuit.errors import OF_THE_MOMENT, DataError, VideoError, VideoReason
from deepintuit_clips.listing import Finding, Kind, Listing, Report, Row, absent, fold, untrimmed

_MEASURED = ("seconds", "width", "height", "fps", "frames", "codec", "bytes", "truncated")
_JOURNAL = 3
"""Raise when more is measured, so that what an earlier version saw is looked at again."""
_HASHED_REFUSED = 64 << 20
"""A refused file of more bytes than this is known by its name, not its content."""


def scan(
    listing: Listing,
    workbench: str | Path,
    dataset: str,
    *,
    probe: Callable[..., Any],
    playable_copy: Callable[[Path, Path], Any] | None = None,
    fingerprint: Callable[[Path], str] | None = None,
    limits: Any = None,
    jobs: int = 1,
    progress: bool = True,
    fresh: bool = False,
    keep_truncated: bool = True,
) -> tuple[Manifest, Report]:
    """Probe every listed file and build the manifest (not saved yet), with the listing's report carried on.

    `probe(path, limits)` returns a `ClipInfo` or raises `VideoError`; without `limits` it is called with the path
    alone. `playable_copy(source, target)` is called for clips that browsers cannot play, `fingerprint(path)` (`near`)
    for all that can be read. They run in `jobs` threads, and with `isolate=True` in as many processes. `fresh` ignores
    the journal. A clip that ends before its file says is reported, and excluded unless `keep_truncated`. Content listed
    twice is kept once; a clip_id is the first 16 hex digits of the content's SHA-256.
    """
    manifest = Manifest(workbench, dataset, pd.DataFrame(), listing.labels)
    clips = manifest.path.parent
    clips.mkdir(parents=True, exist_ok=True)
    journal = _Journal(clips / f"{dataset}.journal.jsonl", repr(limits), fresh)
    addresses.allow(manifest.workbench, {row.path.store for row in listing.rows if isinstance(row.path, Object)})
    paths = dict.fromkeys(row.path for row in listing.rows if row.path is not None and not absent(row.path))
    keys = {path: journal.key(path) for path in paths}  # as the files are before they are looked at
    looks = {path: entry for path in paths if (entry := journal.get(keys[path]))}

    todo = [path for path in paths if path not in looks]
    look_at = partial(_look, probe=probe, limits=limits, workbench=manifest.workbench)
    for path, look in _each(look_at, todo, jobs, "Looking at clips", progress):
        looks[path] = look
        journal.put(keys[path], look)
    # From here on an object is the copy of it that lies in the cache, or comes back there.
    copies = {path: _copied(manifest.workbench, path, look) for path, look in looks.items()}
    looks, keys = ({copies[path]: value for path, value in of.items()} for of in (looks, keys))
    listing = replace(listing, rows=tuple(replace(row, path=copies.get(row.path, row.path)) for row in listing.rows))

    folder = clips / "playable"
    targets = {
        path: folder / f"{look['sha256'][:16]}.mp4"
        for path, look in looks.items()
        if playable_copy and _wants_copy(look, folder)
    }
    if targets:
        folder.mkdir(exist_ok=True)
        disk.sweep(folder)  # half copies of a killed import
    copy = partial(_copy, playable_copy=playable_copy, targets=targets)
    for path, problem in _each(copy, list(targets), jobs, "Copies for browsers", progress):
        looks[path]["copy_problem"] = problem
        journal.put(keys[path], looks[path])
    bare = [path for path, look in looks.items() if fingerprint and look["info"] and look.get("print") is None]
    for path, text in _each(partial(_fingerprint, fingerprint=fingerprint), bare, jobs, "Fingerprints", progress):
        looks[path]["print"] = text
        journal.put(keys[path], looks[path])
    return _assemble(manifest, listing, looks, keep_truncated)


def readable(workbench: str | Path, dataset: str) -> list[dict[str, Any]]:
    """What scans of a dataset saw of each file that can be read; empty where its journal is gone."""
    journal = _Journal(Path(workbench) / "clips" / f"{dataset}.journal.jsonl", "", fresh=False)
    return [look for look in journal.known.values() if look["info"]]


def _fingerprint(path: Path, fingerprint: Callable[[Path], str]) -> str:
    try:
        return fingerprint(path)
    except VideoError:
        return ""  # what cannot be read a second time is like nothing


def _copied(workbench: Path, path: Path | Object, look: dict[str, Any]) -> Path | Object:
    return (
        addresses.copy_of(workbench, path.address, look["sha256"])
        if isinstance(path, Object) and look["info"]
        else path
    )


def _look(path: Path | Object, probe: Callable[..., Any], limits: Any, workbench: Path) -> dict[str, Any]:
    try:
        path = addresses.fetch(workbench, path.address) if isinstance(path, Object) else path
        info = probe(path) if limits is None else probe(path, limits)
    except VideoError as error:
        return _failed(path, error.reason, str(error))
    measured = {name: getattr(info, name) for name in _MEASURED}
    return {"sha256": info.sha256, "info": {**measured, "audio": info.has_audio, "playable": bool(info.playable)}}


def _failed(path: Path, reason: VideoReason, detail: str) -> dict[str, Any]:
    digest = None  # the reader has said why; without content the clip is known by its name
    with contextlib.suppress(OSError):
        if isinstance(path, Path) and path.is_file() and path.stat().st_size <= _HASHED_REFUSED:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "info": None, "excluded": str(reason), "detail": detail}


def _wants_copy(look: dict[str, Any], folder: Path) -> bool:
    if not look["info"] or look["info"]["playable"]:
        return False
    problem = look.get("copy_problem")  # None: not tried; "": made; a sentence: failed, and would fail again
    return problem is None or problem == "" and not (folder / f"{look['sha256'][:16]}.mp4").is_file()


def _copy(path: Path, playable_copy: Callable[[Path, Path], Any], targets: dict[Path, Path]) -> str:
    """The sentence when the copy failed, "" when it did not. `playable_copy` itself writes to a temp name and
    renames."""
    try:
        playable_copy(worlds.at_hand(path), targets[path])
    except VideoError as error:
        return str(error)
    return ""


def _each(
    work: Callable[[Path], Any], paths: Sequence[Path], jobs: int, title: str, progress: bool
) -> Iterator[tuple[Path, Any]]:
    """(path, work(path)) as they are finished, by `jobs` threads. An error of `work` ends the scan."""
    todo, queue = deque(paths), SimpleQueue()

    def run() -> None:
        with contextlib.suppress(IndexError):
            while True:
                path = todo.popleft()
                try:
                    queue.put((path, work(path), None))
                except BaseException as error:  # noqa: BLE001
                    queue.put((path, None, error))

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, disable=not progress or not paths) as bar:
            task = bar.add_task(title, total=len(paths))
            for _ in range(min(max(jobs, 1), len(paths))):
                Thread(target=run, daemon=True).start()  # daemon: Ctrl-C does not wait for what they are at
            for _ in paths:
                path, result, error = queue.get()
                if error is not None:
                    raise error
                yield path, result
                bar.advance(task)
    finally:
        todo.clear()


def _assemble(
    manifest: Manifest, listing: Listing, looks: dict[Path, dict[str, Any]], keep_truncated: bool
) -> tuple[Manifest, Report]:
    findings = list(listing.report.findings)
    rows = []
    for row in listing.rows:
        look = looks.get(row.path)
        if look and not look["info"]:
            findings.append(
                Finding(Kind.UNREADABLE, row.source, f"{row.source!r}: {look['excluded']}. {look['detail']}")
            )
            row = replace(row, excluded=look["excluded"], detail=look["detail"])
        elif look and look["info"].get("truncated"):
            extent = f"{look['info']['frames']} frames, {look['info']['seconds']:.1f} s can be read"
            detail = f"It ends before its file says: {extent}, and its label may belong to what is missing."
            used = "used" if keep_truncated and not row.excluded else "excluded"
            findings.append(Finding(Kind.TRUNCATED, row.source, f"{row.source!r} is truncated ({used}). {detail}"))
            if not keep_truncated and not row.excluded:
                row = replace(row, excluded=VideoReason.TRUNCATED, detail=detail)
        if row.cut and look and look["info"]:
            findings = [f for f in findings if (f.kind, f.source) != (Kind.UNTRIMMED, row.source)]
            if look["info"]["seconds"] > abs(row.cut):  # a file that is shorter than what goes has lost it already
                findings.append(untrimmed(row, look["info"]["seconds"]))
        if look and look.get("copy_problem"):
            findings.append(Finding(Kind.NO_PLAYABLE_COPY, row.source, f"{row.source!r}: {look['copy_problem']}"))
        rows.append(row)

    def content(row: Row) -> str | None:
        # Files that cannot be read are listed one by one, even where two are equal (two empty ones, say).
        return looks[row.path]["sha256"] if row.path in looks and looks[row.path]["info"] else None

    rows, folded = fold(rows, content)
    ids = _ids(rows, looks)
    table = rows_to_table([_record(row, clip_id, looks.get(row.path), manifest) for row, clip_id in zip(rows, ids)])
    manifest.frame = to_frame(table, manifest.workbench)
    return manifest, Report(Counter(listing.report.listed), (*findings, *folded))


def _ids(rows: list[Row], looks: dict[Path, dict[str, Any]]) -> list[str]:
    """A clip_id per row: by content; for a file that is missing, closed or unreadable twice, by name."""
    ids: dict[str, str] = {}
    for row in rows:
        digest = looks[row.path]["sha256"] if row.path in looks else None
        clip_id = digest[:16] if digest else "unread-" + hashlib.sha256(row.source.encode()).hexdigest()[:16]
        if clip_id in ids and digest and looks[row.path]["info"] and ids[clip_id] != digest:
            raise DataError(
                f"{row.source!r} has the clip_id {clip_id} of another clip.",
                "The first 16 hex digits of two contents' SHA-256 are equal.",
                "Leave one of the two out.",
            )
        if clip_id in ids:
            clip_id = "again-" + hashlib.sha256(row.source.encode()).hexdigest()[:16]
        ids[clip_id] = digest
    return list(ids)


def _record(row: Row, clip_id: str, look: dict[str, Any] | None, manifest: Manifest) -> dict[str, Any]:
    info = (look or {}).get("info") or {}
    path = str(row.path) if isinstance(row.path, Path) else None  # an object that was never read has no copy
    playable = path if info.get("playable") else None
    if info and not playable and look.get("copy_problem") == "":
        playable = str(manifest.path.parent / "playable" / f"{clip_id}.mp4")
    return {
        "clip_id": clip_id,
        "sha256": (look or {}).get("sha256"),
        "path": path,
        "source": row.source,
        "label": row.label,
        "label_given": row.label_given,
        "group": row.group or clip_id,
        "given_split": row.split,
        "split": row.split if row.split != "train" else None,
        **{name: info.get(name) for name in (*_MEASURED, "audio")},
        "playable_path": playable,
        "excluded": row.excluded,
        "excluded_detail": row.detail,
        "also_at": list(row.also_at),
        "text": row.text,
        "notes": row.notes,
    }


_INFO = {
    **dict.fromkeys(("seconds", "fps"), (int, float)),
    **dict.fromkeys(("width", "height", "frames", "bytes"), (int,)),
    **dict.fromkeys(("audio", "playable"), (bool,)),
    "codec": (str,),
}


def _check(look: dict[str, Any]) -> None:
    """Raises an error for what no scan wrote."""
    info, digest = look["info"], look["sha256"]
    texts = (look.get("copy_problem"), look.get("print"), *(() if info else (look["excluded"], look["detail"])))
    numbers = {name: info[name] for name in _INFO if info[name] is not None} if info else {}
    if (
        not all(text is None or isinstance(text, str) for text in texts)
        or info
        and not isinstance(info.get("truncated", False), bool)
        or not (digest is None and not info or re.fullmatch("[0-9a-f]{64}", digest))
        or not all(isinstance(value, _INFO[name]) for name, value in numbers.items())
        or any(abs(value) >= 2**63 for value in numbers.values() if isinstance(value, int))
    ):
        raise ValueError("a field of it is of another type")


class _Journal:
    """What was seen of each file, a JSON line each; a line cut short by a kill is passed over and the file looked at
    again."""

    def __init__(self, path: Path, limits: str, fresh: bool) -> None:
        self._path, self._limits = path, limits
        self.known = {} if fresh or not path.is_file() else dict(self._read())

    def _read(self) -> Iterator[tuple[tuple, dict[str, Any]]]:
        lost = 0
        for line in filter(bytes.strip, self._path.read_bytes().split(b"\n")):
            try:
                entry = json.loads(line)
                key, look = tuple(entry["key"]), entry["seen"]
                hash(key)
                _check(look)
                yield key, look
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                lost += 1
        if lost:
            warnings.warn(
                f"{self._path}: {lost} of its lines cannot be read. Their files are looked at again.", stacklevel=1
            )

    def key(self, path: Path | Object) -> tuple | None:
        """What a file is known by; None when the system does not say."""
        if isinstance(path, Object):
            return (path.address, path.version, self._limits, _JOURNAL) if path.version else None
        try:
            stat = path.stat()
        except OSError:
            return None
        return str(path), stat.st_size, stat.st_mtime_ns, self._limits, _JOURNAL

    def get(self, key: tuple | None) -> dict[str, Any] | None:
        look = self.known.get(key)
        return dict(look) if look else None

    def put(self, key: tuple | None, look: dict[str, Any]) -> None:
        if key is None or look.get("excluded") in OF_THE_MOMENT:
            return
        # The leading newline ends a line that a kill may have cut short.
        line = b"\n" + json.dumps({"key": key, "seen": look}).encode()
        with disk.naming(self._path), open(self._path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
