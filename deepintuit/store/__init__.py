"""Parquet parts and the DuckDB index: where the stages meet.

    workbench = Workbench("workbench")
    with workbench.start_run("coldstart", config, seed=0) as run:
        run.append("steps", [{"step": 1, "name": "loss", "value": 0.7}])
        run.finish({"loss": 0.7})
    workbench.refresh()
    workbench.query("SELECT * FROM latest_predictions WHERE split = ?", ["test"])

Parts are the truth and never change; the index is a cache that may be deleted at any time. `grains` says which columns
a row has, `run` how a run is written and continued, `index` how all runs are read at once, `disk` what survives a kill,
`reviewed` what people said of traces.

Left out on purpose: writing reviews (`review` does), feature caches (`vlm` writes them).
Never imports torch.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from deepintuit import disk
from deepintuit.errors import DiskError, StoreError, nearest
from deepintuit.store import guarded, index, reviewed, slices
from deepintuit.store.grains import GRAINS, Grain, trace_id, unnamed
from deepintuit.store.run import Run, plain, provenance, read_description, versions, without_secrets
from deepintuit.store.slices import Slice

if TYPE_CHECKING:
    import pandas as pd

    from deepintuit.store.browse import TraceFilter

__all__ = ["GRAINS", "Grain", "Run", "Slice", "Workbench", "trace_id", "unnamed", "without_secrets"]

_STAGE = re.compile(r"[a-z][a-z0-9_]*")
_live: "weakref.WeakValueDictionary[str, Run]" = weakref.WeakValueDictionary()
_starting = threading.Lock()


class Workbench:
    """A folder of clips, runs, reviews and caches (layout in docs/architecture.md); made when first written to."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} is a file", "a workbench is a folder", "name another path")
        self._open: index.Reader | None = None
        self._elsewhere: Path | None = None
        self._opening = threading.Lock()

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        with disk.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def clips(self) -> Path:
        """Manifests, one Parquet file a dataset."""
        return self._folder("clips")

    @property
    def reviews(self) -> Path:
        """What people said; made by the `EventLog` that is the first to write there."""
        return self.path / "reviews"

    @property
    def cache(self) -> Path:
        """Features and frames by hash; deletable. What cannot be kept there is computed again."""
        with contextlib.suppress(StoreError):
            return self._folder("cache")
        return self.path / "cache"

    @property
    def index_path(self) -> Path:
        """Beside what it is of; where nothing can be written there, in a temporary folder of this process."""
        return (self._elsewhere or self.path) / "index.duckdb"

    # Runs

    def start_run(
        self,
        stage: str,
        config: Mapping[str, Any],
        *,
        parent: str | None = None,
        name: str | None = None,
        seed: int = 0,
        dataset: str | None = None,
    ) -> Run:
        """The run of these arguments: new, or continued where a killed or failed one stands, or given back `.finished`.

        What makes it the same run: stage, config, parent, name, seed and dataset. Code and library versions do not, but
        each session's command, commit and versions are kept in run.json. One process at a time may hold it: StoreError
        otherwise. Within a process the same object comes back, so a notebook cell can be run again.
        """
        if not _STAGE.fullmatch(stage):
            raise StoreError(f"the stage is called {stage!r}", "it names folders", "use one lower-case word")
        if parent is not None:
            self.run(parent)
        settings = plain(config)
        identity = {
            "stage": stage,
            "config": settings,
            "parent": parent,
            "name": name,
            "seed": int(seed),
            "dataset": dataset,
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode("ascii")).hexdigest()
        runs = self._folder("runs")
        with _starting, disk.Lock(runs / ".lock", wait=30):
            folder = self._folder_of(stage, key, name)
            live = _live.get(str(folder.resolve()))
            if live is not None and live.writable:
                return live
            about = _description(folder)
            if about is not None and about["status"] == "finished":
                return Run(folder)
            folder.mkdir(exist_ok=True)
            lock = disk.Lock(folder / "lock")
            disk.sweep(folder)
            session = {"started": disk.now(), **provenance(), "versions": versions()}
            if about is None:
                about = {
                    "run_id": folder.name,
                    **identity,
                    "key": key,
                    "created": session["started"],
                    "finished": None,
                    "status": "running",
                    "error": None,
                    "device": None,
                    "command": session["command"],
                    "commit": session["commit"],
                    "dirty": session["dirty"],
                    "versions": session["versions"],
                    "summary": {},
                    "sessions": [],
                }
            about |= {"status": "running", "sessions": [*about["sessions"], session]}
            disk.write_json(folder / "run.json", about)
            disk.fsync_folder(runs)
            run = Run(folder, lock)
            _live[str(folder.resolve())] = run
            return run

    def _folder_of(self, stage: str, key: str, name: str | None) -> Path:
        """The folder of the run with this key, there or not. Its id reads `coldstart-<name or date>-<hash8>`."""
        runs = self.path / "runs"
        for folder in sorted(runs.glob(f"{stage}-*-{key[:8]}")):
            about = _description(folder)
            if about is None or about["key"] == key:
                return folder
        word = re.sub(r"[^a-z0-9]+", "-", (name or "").lower()).strip("-")[:40]
        return runs / f"{stage}-{word or datetime.now(UTC).strftime('%Y%m%d')}-{key[:8]}"

    def run(self, run_id: str) -> Run:
        """A run to read from, whoever writes it. StoreError when there is none of this id."""
        known = {folder.name for folder in self.path.glob("runs/*/")}
        if run_id not in known:
            guess = nearest(str(run_id), sorted(known))
            raise StoreError(
                f"there is no run {run_id!r} in {self.path}",
                f"{len(known)} runs are there" if known else "no run was started in it yet",
                f"nearest: {guess!r}" if guess else "start one, or name another workbench",
            )
        return Run(self.path / "runs" / run_id)

    def runs(self, stage: str | None = None, *, finished: bool | None = None) -> list[Run]:
        """Runs to read from, oldest first; a run.json that cannot be read costs its run, and a warning. A folder killed
        before its run.json was written is not a run yet."""
        found = []
        for folder in self.path.glob("runs/*/"):
            try:
                found += [Run(folder)] if (folder / "run.json").exists() else []
            except StoreError as error:
                warnings.warn(str(error), stacklevel=2)
        chosen = [run for run in found if stage in (None, run.stage) and finished in (None, run.finished)]
        return sorted(chosen, key=lambda run: (run.about["created"], run.id))

    # Slices

    def slice(self, name: str, version: int | None = None) -> Slice:
        """A saved slice; StoreError with the nearest name when there is none."""
        return slices.load(self, name, version)

    def slices(self) -> list[Slice]:
        """The newest version of each saved slice, by name."""
        return slices.saved(self)

    def save_slice(self, name: str, what: "TraceFilter | str", by: str = "") -> Slice:
        """Keep a filter, or a SELECT that gives a column trace_id, under a name; a former version stays."""
        return slices.save(self, name, what, by)

    # The index

    def refresh(self, *, force: bool = False) -> bool:
        """Write the index anew when a part, a run.json or a manifest is new, and the table of reviews when one came in;
        True when either was written. Where parts were only added, only those are read; with `force` all are.

        Readers keep what they have open and see the new file at their next query. What had to be left out is said in a
        warning each; `problems` lists it. On a disk that takes nothing the index is kept elsewhere.
        """
        with disk.naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            new = self._renew(force)
        except DiskError as error:
            if error.errno not in disk.UNWRITABLE or self._elsewhere:
                raise
            if not force and self._indexed() == index.fingerprint(self.path) and reviewed.fresh(self.path, self.path):
                return False
            self._elsewhere = Path(tempfile.mkdtemp(prefix="deepintuit-index-"))
            weakref.finalize(self, shutil.rmtree, self._elsewhere, ignore_errors=True)
            new = self._renew(force)
        for source, problem in self.problems():
            warnings.warn(f"{source} is left out: {problem}", stacklevel=2)
        return new

    def _renew(self, force: bool) -> bool:
        folder = self.index_path.parent
        with disk.Lock(folder / ".index.lock", wait=600), disk.naming(self.index_path):
            mark, said = index.fingerprint(self.path), reviewed.refresh(self.path, folder)
            if not force and self.index_path.exists() and self._indexed() == mark:
                return said
            former = self.index_path if self.index_path.exists() else self.path / "index.duckdb"
            temporary = folder / ".index.duckdb.tmp"
            _remove(*folder.glob(".index.duckdb.tmp*"))
            try:
                index.build(self.path, temporary, mark, None if force else former)
                disk.fsync_file(temporary)
                # Neither a log of changes, which is none of the new file's, nor a folder may be in the way.
                _remove(folder / "index.duckdb.wal", *([self.index_path] if self.index_path.is_dir() else []))
                os.replace(temporary, self.index_path)
                disk.fsync_folder(folder)
            finally:
                _remove(*folder.glob(".index.duckdb.tmp*"))
            return True

    def problems(self) -> list[tuple[str, str]]:
        """What the last refresh had to leave out of the index: the file, and what is wrong with it."""
        return list(self.query("SELECT source, problem FROM problems ORDER BY ALL").itertuples(index=False, name=None))

    def _indexed(self) -> str | None:
        try:
            return self._reader().fingerprint
        except index.BROKEN:
            # Not an index, or of another DuckDB: a cache is rebuilt, not repaired.
            return None

    def _reader(self) -> index.Reader:
        with self._opening:
            if self._open is None or self._open.signature != index.signatures(self.index_path):
                self._open = index.Reader(self.index_path, guarded=False)
            return self._open

    def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] = (),
        *,
        untrusted: bool = False,
        max_rows: int = 10_000,
        seconds: float = 10.0,
    ) -> "pd.DataFrame":
        """One SELECT over runs, clips, traces, scores, predictions, steps, reviews and views, as of the last refresh.

        Nothing can be written, and no file but the index read, by any query. `untrusted=True` (a console's text) also
        runs it in a process of its own, which has no more than a bounded memory, is stopped after `seconds` with
        StoreError, and is cut at `max_rows`; then `frame.attrs["truncated"]` is True.
        """
        try:
            if untrusted:
                rows = self.ask(sql, max_rows, seconds, params)
            else:
                try:
                    rows = self.snapshot().query(sql, params, None, None)
                except index.DamagedIndex:
                    rows = self.snapshot().query(sql, params, None, None)  # of a new one
        except duckdb.Error as error:
            raise StoreError(
                f"the query {sql.strip()!r:.200} fails",
                str(error).strip(),
                "`SHOW TABLES` and `DESCRIBE traces` list what there is",
            ) from error
        try:
            frame = rows.slice(0, max_rows if untrusted else None).to_pandas()
        except (ValueError, OverflowError, pa.ArrowException) as error:
            raise StoreError(
                f"the result of {sql.strip()!r:.200} does not fit into pandas",
                str(error),
                "cast the column, such as `created::VARCHAR`",
            ) from error
        frame.attrs["truncated"] = untrusted and rows.num_rows > max_rows
        return frame

    def ask(self, sql: str, max_rows: int, seconds: float, params: Sequence[Any] | Mapping[str, Any] = ()) -> pa.Table:
        """`query(sql, untrusted=True)` as Arrow, with one row more than `max_rows` where there are more."""
        self.snapshot()
        return guarded.query(self.index_path, sql, params, max_rows, seconds)

    def snapshot(self) -> index.Reader:
        """The index as of the last refresh, for several queries that must agree."""
        try:
            return self._reader()
        except index.BROKEN:
            self.refresh(force=self.index_path.exists())
            return self._reader()


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _description(folder: Path) -> dict[str, Any] | None:
    """run.json, or None where a killed process left a folder without one. StoreError where it cannot be read."""
    return read_description(folder) if (folder / "run.json").exists() else None
