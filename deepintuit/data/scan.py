"""Look at the files of a listing: hash, probe, playable copy; what comes out is a `Manifest`.

The reader is handed in (`video.probe`, `video.playable_copy`), since this shelf stands below `video`. Resumable:
every probed file is a line in `clips/<dataset>.journal.jsonl`; a second scan opens only files whose path, size, time
stamp or limits changed. Left out on purpose: killing a decoder that hangs, which is `video.probe(isolate=True)`'s
duty, and dropping anything: a file that fails stays as a row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepintuit import disk
from deepintuit.data.listing import Finding, Kind, Listing, Report, Row, fold
from deepintuit.data.manifest import Manifest, rows_to_table, to_frame
from deepintuit.errors import DataError, VideoError, VideoReason

_MEASURED = ("seconds", "width", "height", "fps", "frames", "codec", "bytes")
_DIED = "The process that read the file died on it."


def scan(
    listing: Listing,
    workbench: str | Path,
    dataset: str,
    *,
    probe: Callable[..., Any],
    playable_copy: Callable[[Path, Path], Any] | None = None,
    limits: Any = None,
    jobs: int = 1,
    progress: bool = True,
    fresh: bool = False,
) -> tuple[Manifest, Report]:
    """Probe every listed file and build the manifest (not saved yet), with the listing's report carried on.

    `probe(path, limits)` returns a `ClipInfo` or raises `VideoError`; without `limits` it is called with the path
    alone. `playable_copy(source, target)` is called for clips that browsers cannot play. With `jobs` above 1 both run
    in that many processes (so they must be importable, and a script needs its `if __name__ == "__main__"`). `fresh`
    ignores the journal. Content listed twice is kept once; a clip_id is the first 16 hex digits of the content's
    SHA-256.
    """
    manifest = Manifest(workbench, dataset, pd.DataFrame(), listing.labels)
    clips = manifest.path.parent
    clips.mkdir(parents=True, exist_ok=True)
    journal = _Journal(clips / f"{dataset}.journal.jsonl", repr(limits), fresh)
    paths = list(dict.fromkeys(row.path for row in listing.rows if row.path is not None and row.path.is_file()))
    seen = {path: known for path in paths if (known := journal.get(path))}

    todo = [path for path in paths if path not in seen]
    for path, look in _each(partial(_look, probe=probe, limits=limits), todo, jobs, "Looking at clips", progress):
        seen[path] = _failed(path, VideoReason.DECODE_FAILED, _DIED) if look is None else look
        journal.put(path, seen[path])

    folder = clips / "playable"
    targets = {
        path: folder / f"{look['sha256'][:16]}.mp4"
        for path, look in seen.items()
        if playable_copy and _wants_copy(look, folder)
    }
    if targets:
        folder.mkdir(exist_ok=True)
    copy = partial(_copy, playable_copy=playable_copy, targets=targets)
    for path, problem in _each(copy, list(targets), jobs, "Copies for browsers", progress):
        seen[path]["copy_problem"] = _DIED if problem is None else problem
        journal.put(path, seen[path])
    return _assemble(manifest, listing, seen)


def _look(path: Path, probe: Callable[..., Any], limits: Any) -> dict[str, Any]:
    try:
        info = probe(path) if limits is None else probe(path, limits)
    except VideoError as error:
        return _failed(path, error.reason, str(error))
    measured = {name: getattr(info, name) for name in _MEASURED}
    return {"sha256": info.sha256, "info": {**measured, "audio": info.has_audio, "playable": bool(info.playable)}}


def _failed(path: Path, reason: VideoReason, detail: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        digest = None  # the reader has said why; without content the clip is known by its name
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
        playable_copy(path, targets[path])
    except VideoError as error:
        return str(error)
    return ""


def _each(
    work: Callable[[Path], Any], paths: Sequence[Path], jobs: int, what: str, progress: bool
) -> Iterator[tuple[Path, Any]]:
    """(path, work(path)) as they are finished; None for a path whose process died. Any other error ends the scan."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress or not paths) as bar:
        task = bar.add_task(what, total=len(paths))
        if jobs <= 1:
            for path in paths:
                yield path, work(path)
                bar.advance(task)
            return
        left = dict.fromkeys(paths)
        for path, result in _pooled(work, paths, jobs):
            if result is not None:
                del left[path]
                yield path, result
                bar.advance(task)
        # A process that dies takes the whole pool along: what it left is done one by one, so that only the culprit
        # is named.
        for path in left:
            yield from _pooled(work, [path], 1)
            bar.advance(task)


def _pooled(work: Callable[[Path], Any], paths: Sequence[Path], jobs: int) -> Iterator[tuple[Path, Any]]:
    # spawn: forking a process that holds threads (torch, rich) can deadlock.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        futures = {pool.submit(work, path): path for path in paths}
        for future in as_completed(futures):
            try:
                result = future.result()
            except BrokenProcessPool:
                result = None
            yield futures[future], result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _assemble(manifest: Manifest, listing: Listing, seen: dict[Path, dict[str, Any]]) -> tuple[Manifest, Report]:
    findings = list(listing.report.findings)
    rows = []
    for row in listing.rows:
        look = seen.get(row.path)
        if look and not look["info"]:
            findings.append(
                Finding(Kind.UNREADABLE, row.source, f"{row.source!r}: {look['excluded']}. {look['detail']}")
            )
            row = replace(row, excluded=look["excluded"], detail=look["detail"])
        if look and look.get("copy_problem"):
            findings.append(Finding(Kind.NO_PLAYABLE_COPY, row.source, f"{row.source!r}: {look['copy_problem']}"))
        rows.append(row)

    def content(row: Row) -> str | None:
        # Files that cannot be read are listed one by one, even where two are equal (two empty ones, say).
        return seen[row.path]["sha256"] if row.path in seen and seen[row.path]["info"] else None

    rows, folded = fold(rows, content)
    ids = _ids(rows, seen)
    table = rows_to_table([_record(row, clip_id, seen.get(row.path), manifest) for row, clip_id in zip(rows, ids)])
    manifest.frame = to_frame(table, manifest.workbench)
    return manifest, Report(Counter(listing.report.listed), (*findings, *folded))


def _ids(rows: list[Row], seen: dict[Path, dict[str, Any]]) -> list[str]:
    """A clip_id per row: by content; for a file that is missing, closed or unreadable twice, by name."""
    ids: dict[str, str] = {}
    for row in rows:
        digest = seen[row.path]["sha256"] if row.path in seen else None
        clip_id = digest[:16] if digest else "unread-" + hashlib.sha256(row.source.encode()).hexdigest()[:16]
        if clip_id in ids and digest and seen[row.path]["info"] and ids[clip_id] != digest:
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
    path = str(row.path) if row.path else None
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


class _Journal:
    """What was seen of each file, a JSON line each; a line cut short by a kill is passed over and the file looked at
    again."""

    def __init__(self, path: Path, limits: str, fresh: bool) -> None:
        self._path, self._limits = path, limits
        self._known = {} if fresh or not path.is_file() else dict(self._read())

    def _read(self) -> Iterator[tuple[tuple[str, int, int, str], dict[str, Any]]]:
        for line in self._path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                yield tuple(entry["key"]), entry["seen"]
            except (ValueError, KeyError, TypeError):
                continue

    def _key(self, path: Path) -> tuple[str, int, int, str]:
        stat = path.stat()
        return str(path), stat.st_size, stat.st_mtime_ns, self._limits

    def get(self, path: Path) -> dict[str, Any] | None:
        seen = self._known.get(self._key(path))
        return dict(seen) if seen else None

    def put(self, path: Path, seen: dict[str, Any]) -> None:
        key = self._key(path)
        # The leading newline ends a line that a kill may have cut short.
        line = b"\n" + json.dumps({"key": key, "seen": seen}).encode()
        with disk.naming(self._path), open(self._path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
