"""A workbench as people ask it: every run at once through the DuckDB index, and sets of traces saved under a name.

    workbench = Workbench("workbench")
    workbench.refresh()
    workbench.query("SELECT * FROM latest_predictions WHERE split = ?", ["test"])

The index is a cache of the Parquet parts and may be deleted at any time.
"""

import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from deepintuit import disk
from deepintuit.errors import DiskError, StoreError
from deepintuit.runs import Workbench as RunFolder
from deepintuit_analysis.index import build, guarded, reviewed, slices
from deepintuit_analysis.index.slices import Slice

if TYPE_CHECKING:
    import pandas as pd

    from deepintuit_analysis.index.browse import TraceFilter


class Workbench(RunFolder):
    """The folder that stages write to (`deepintuit.runs.Workbench`), with its index and its saved slices."""

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        self._open: build.Reader | None = None
        self._elsewhere: disk.Scratch | None = None
        self._opening = threading.Lock()

    @property
    def index_path(self) -> Path:
        """Beside what it is of; where nothing can be written there, in a temporary folder of this process."""
        return (self._elsewhere or self).path / "index.duckdb"

    # Slices

    def slice(self, name: str, version: int | None = None) -> Slice:
        """A saved slice; StoreError with the nearest name when there is none."""
        return slices.load(self, name, version)

    def slices(self) -> list[Slice]:
        """The newest version of each saved slice, by name."""
        return slices.saved(self)

    def save_slice(self, name: str, traces: "TraceFilter | str", by: str = "") -> Slice:
        """Keep a filter, or a SELECT that gives a column trace_id, under a name; a former version stays."""
        return slices.save(self, name, traces, by)

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
            if not force and self._indexed() == build.fingerprint(self.path) and reviewed.fresh(self.path, self.path):
                return False
            self._elsewhere = disk.Scratch(Path(tempfile.gettempdir()), "deepintuit-index-*")
            new = self._renew(force)
        for source, problem in self.problems():
            warnings.warn(f"{source} is left out: {problem}", stacklevel=2)
        return new

    def _renew(self, force: bool) -> bool:
        folder = self.index_path.parent
        with disk.Lock(folder / ".index.lock", wait=600), disk.naming(self.index_path):
            mark, changed = build.fingerprint(self.path), reviewed.refresh(self.path, folder)
            if not force and self.index_path.exists() and self._indexed() == mark:
                return changed
            former = self.index_path if self.index_path.exists() else self.path / "index.duckdb"
            disk.sweep(folder, ".index.duckdb.tmp*")  # what earlier versions left
            with disk.replacing(self.index_path) as temporary:
                temporary.unlink()  # DuckDB takes an empty file for a damaged one
                build.build(self.path, temporary, mark, None if force else former)
                # Neither a log of changes, which is none of the new file's, nor a folder may be in the way.
                _remove(folder / "index.duckdb.wal", *([self.index_path] if self.index_path.is_dir() else []))
            return True

    def problems(self) -> list[tuple[str, str]]:
        """What the last refresh had to leave out of the index: the file, and what is wrong with it."""
        return list(self.query("SELECT source, problem FROM problems ORDER BY ALL").itertuples(index=False, name=None))

    def _indexed(self) -> str | None:
        try:
            return self._reader().fingerprint
        except build.BROKEN:
            # Not an index, or of another DuckDB: a cache is rebuilt, not repaired.
            return None

    def _reader(self) -> build.Reader:
        with self._opening:
            if self._open is None or self._open.signature != build.signatures(self.index_path):
                self._open = build.Reader(self.index_path, guarded=False)
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
        runs it in its own process, which has no more than a bounded memory, is stopped after `seconds` with
        StoreError, and is cut at `max_rows`; then `frame.attrs["truncated"]` is True.
        """
        try:
            if untrusted:
                rows = self.ask(sql, max_rows, seconds, params)
            else:
                try:
                    rows = self.snapshot().query(sql, params, None, None)
                except build.DamagedIndex:
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

    def snapshot(self) -> build.Reader:
        """The index as of the last refresh, for several queries that must agree."""
        try:
            return self._reader()
        except build.BROKEN:
            self.refresh(force=self.index_path.exists())
            return self._reader()


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
