"""Saved slices: a name for a set of traces, to be used as a filter everywhere and from notebooks.

    workbench.save_slice("night falls", TraceFilter(true="fall", text="night"), by="ann")
    workbench.save_slice("twice wrong", "SELECT trace_id FROM trace_facts WHERE ...", by="ann")
    workbench.slice("night falls").df()                               # also .trace_ids(), .clips(), .to_python()
    browse.page(workbench, TraceFilter(slice="night falls", right="wrong"))

A slice is a filter or the text of a query, not a list of traces: what a new run wrote belongs to it too. Each version
is a file `slices/<word>-<hash>@<n>.json` that never changes; saving under a known name (capitals aside) adds one.
Queries are texts of people, so they run guarded, always.

Never imports torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepintuit import disk
from deepintuit.errors import StoreError, nearest
from deepintuit.runs.schema import storable
from deepintuit_analysis.index.browse import _SHOWN, TraceFilter

if TYPE_CHECKING:
    import pandas as pd

    from deepintuit_analysis import Workbench

MOST_TRACES = 200_000
"""Of a slice by a query; one that finds more is refused, since a part of it would pass for the whole."""
LONGEST_NAME = 80


@dataclass(frozen=True)
class Slice:
    """A version of a saved slice: exactly one of `query` (of a `TraceFilter`) and `sql` is not None. `at` is in UTC."""

    name: str
    query: Mapping[str, str] | None
    sql: str | None
    by: str
    at: str
    version: int
    workbench: Workbench = field(repr=False, compare=False)

    def where(self, within: tuple[str, ...] = ()) -> tuple[str, list[Any]]:
        """A condition over `trace_facts` and its parameters. `within`: slices that this one is being looked up for."""
        if self.name.casefold() in within:
            raise StoreError(
                f"the slice {self.name!r} is a part of itself",
                "it would never end",
                "save it from a filter that does not name it",
            )
        if self.query is not None:
            return _filter(self.query).where(self.workbench, (*within, self.name.casefold()))
        return "trace_id IN (SELECT unnest(?::VARCHAR[]))", [self._asked()]

    def _asked(self) -> list[str]:
        sql = self.sql.strip().rstrip(";").rstrip()
        # On its own first: a text that only parses inside the brackets below is not a query.
        if "trace_id" not in self.workbench.query(sql, untrusted=True, max_rows=1).columns:
            raise StoreError(
                f"the query of the slice {self.name!r} gives no column trace_id",
                "a slice is a set of traces",
                "add trace_id to what it selects",
            )
        rows = self.workbench.query(
            f"SELECT DISTINCT trace_id::VARCHAR AS trace_id FROM (\n{sql}\n)",  # noqa: S608
            untrusted=True,
            max_rows=MOST_TRACES,
        )
        if rows.attrs["truncated"]:
            raise StoreError(
                f"the query of the slice {self.name!r} finds more than {MOST_TRACES:,} traces",
                "a part of them would pass for all",
                "narrow it, or save a filter instead",
            )
        return rows["trace_id"].dropna().tolist()

    def trace_ids(self) -> list[str]:
        """Its traces, in stored order."""
        return self._rows("SELECT trace_id FROM stored_traces WHERE {} ORDER BY rowid")["trace_id"].tolist()

    def df(self) -> pd.DataFrame:
        """A row per trace, in stored order: what the traces page lists, and `text`."""
        return self._rows(f"SELECT {_SHOWN} FROM stored_traces WHERE {{}} ORDER BY rowid")  # noqa: S608

    def clips(self) -> pd.DataFrame:
        """The rows of the manifest that its traces are about, each once."""
        return self._rows(
            """SELECT clips.* FROM clips JOIN (SELECT DISTINCT dataset, clip_id FROM trace_facts WHERE {})
               USING (dataset, clip_id) ORDER BY dataset, clip_id"""
        )

    def _rows(self, sql: str) -> pd.DataFrame:
        condition, values = self.where()
        return self.workbench.query(sql.format(condition), values)

    def to_python(self) -> str:
        """Lines that give its rows in a notebook."""
        return (
            f"from deepintuit_analysis import Workbench\n\nworkbench = Workbench({str(self.workbench.path)!r})\n"
            f"traces = workbench.slice({self.name!r}).df()\n"
        )


def save(workbench: Workbench, name: str, traces: TraceFilter | str, by: str = "") -> Slice:
    """The slice, written and synced; StoreError when it could not be used. What stands already is not written again."""
    name = " ".join(storable(str(name)).split())
    if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise StoreError(
            f"a slice called {name!r:.100}",
            f"a name has 1 to {LONGEST_NAME} printable characters",
            "name it by what its traces have in common",
        )
    query, sql = (traces.to_query(), None) if isinstance(traces, TraceFilter) else (None, storable(str(traces)).strip())
    version = Slice(name, query, sql, str(by), disk.now(), 1, workbench)
    version.trace_ids()
    folder = workbench.path / "slices"
    with disk.Lock(folder / ".lock", wait=30):
        former = max(_versions(workbench, name), key=lambda version: version.version, default=None)
        if former is not None and (former.query, former.sql) == (query, sql):
            return former
        about = {"name": name, "query": query, "sql": sql, "by": version.by, "at": version.at}
        first = 1 if former is None else former.version + 1
        path, _ = disk.publish(
            lambda path: disk.write_json(path, about), folder, lambda n: f"{_stem(name)}@{n}.json", first
        )
    return _read(workbench, path)


def load(workbench: Workbench, name: str, version: int | None = None) -> Slice:
    """The newest version, or the one asked for; StoreError with the nearest name when there is none."""
    name = " ".join(str(name).split())
    versions = {version.version: version for version in _versions(workbench, name)}
    if not versions:
        names = [entry.name for entry in saved(workbench)]
        guess = nearest(name, names)
        raise StoreError(
            f"there is no slice {name!r:.100} in {workbench.path.name!r}",
            f"{len(names)} were saved" if names else "none was saved in it yet",
            f"nearest: {guess!r}" if guess else "save it on the Traces or the SQL page",
        )
    if version is not None and version not in versions:
        raise StoreError(
            f"the slice {name!r} has no version {version}",
            f"it has {', '.join(map(str, sorted(versions)))}",
            "ask for one of them",
        )
    return versions[max(versions) if version is None else version]


def saved(workbench: Workbench) -> list[Slice]:
    """The newest version of each slice, by name."""
    newest: dict[str, Slice] = {}
    for version in _versions(workbench):
        key = version.name.casefold()
        if key not in newest or newest[key].version < version.version:
            newest[key] = version
    return [newest[key] for key in sorted(newest)]


def _versions(workbench: Workbench, name: str | None = None) -> Iterator[Slice]:
    paths = (workbench.path / "slices").glob(f"{'*' if name is None else _stem(name)}@*.json")
    return (version for version in (_read(workbench, path) for path in paths) if version is not None)


def _stem(name: str) -> str:
    """A file's name that people can read and that no two slices share."""
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "slice"
    return f"{word}-{hashlib.sha256(name.casefold().encode()).hexdigest()[:12]}"


def _read(workbench: Workbench, path: Path) -> Slice | None:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        version = int(path.stem.rpartition("@")[2])
        return Slice(
            version=version, workbench=workbench, **{name: about[name] for name in ("name", "query", "sql", "by", "at")}
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"slices/{path.name} is passed over: it is no slice ({type(error).__name__})", stacklevel=2)
        return None


def _filter(query: Mapping[str, str]) -> TraceFilter:
    filters = TraceFilter.from_query(query)
    if filters.to_query() != dict(query):
        lost = sorted(set(dict(query).items()) ^ set(filters.to_query().items()))
        raise StoreError(
            f"the filter of a slice says {lost[0][0]} = {lost[0][1]!r:.100}",
            "a filter that is read in part would find more than it says",
            "choose it on the Traces page, or write a query",
        )
    return filters
