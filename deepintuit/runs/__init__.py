"""Where the stages meet: a folder of runs, each of which appends rows to Parquet parts.

    workbench = Workbench("workbench")
    with workbench.start_run("coldstart", config, seed=0) as run:
        run.append("steps", [{"step": 1, "name": "loss", "value": 0.7}])
        run.finish({"loss": 0.7})

Parts are the truth and never change. `schema` says which columns a row has, `run` how a run is written and continued.
What people ask of all runs at once (the DuckDB index, saved slices) is `deepintuit_analysis.Workbench`, on the same
folder.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
import time
import warnings
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from deepintuit import addresses, disk, ranks
from deepintuit.errors import StoreError, nearest
from deepintuit.runs.run import WAIT, Run, plain, provenance, read_description, versions, without_secrets
from deepintuit.runs.schema import GRAINS, Grain, TraceRow, trace_id, unnamed

__all__ = ["EXAMPLE", "GRAINS", "Grain", "Run", "TraceRow", "Workbench", "trace_id", "unnamed", "without_secrets"]

EXAMPLE = "example.json"
"""In the root of a workbench that shows finished runs and takes no others: what they are of."""

_APPEARS = 60.0
"""Seconds within which a network disk shows what another machine has written."""
_STAGE = re.compile(r"[a-z][a-z0-9_]*")
_live: "weakref.WeakValueDictionary[str, Run]" = weakref.WeakValueDictionary()
_starting = threading.Lock()


class Workbench:
    """A folder of clips, runs, reviews and caches (layout in docs/architecture.md); made when first written to."""

    def __init__(self, path: str | os.PathLike[str]):
        addresses.refuse_address(path, "a workbench")
        self.path = Path(path).expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} is a file", "a workbench is a folder", "name another path")

    @property
    def is_example(self) -> bool:
        return (self.path / EXAMPLE).exists()

    def refuse_example(self) -> None:
        """StoreError in a workbench that shows how finished runs look."""
        if self.is_example:
            raise StoreError(
                f"{self.path} is the example",
                "its runs stay as they were made; reviews and slices are all that is added to it",
                "Name one of your own (--workbench DIR, or DEEPINTUIT_HOME); `make demo` begins one with these runs",
            )

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

    def start_run(
        self,
        stage: str,
        config: Mapping[str, Any],
        *,
        parent: str | None = None,
        name: str | None = None,
        seed: int = 0,
        dataset: str | None = None,
        together: bool = False,
        shard: ranks.Shard | None = None,
    ) -> Run:
        """The run of these arguments: new, or continued where a killed or failed one stands, or given back `.finished`.

        What makes it the same run: stage, config, parent, name, seed and dataset. Code and library versions do not, but
        each session's command, commit and versions are kept in run.json. One process at a time may hold it: StoreError
        otherwise. Within a process the same object comes back, so a notebook cell can be run again.

        `together`: the stage divides its work among the processes that have met (`ranks`), and all call this. The
        leading one holds the run; each appends parts. `shard`: this process does one of several parts of the work, and
        holds the run beside the others of that count, which it never meets (`Run.last`); while the one that ended
        last finishes the run, it waits.
        """
        processes = max(ranks.count(), ranks.launched())
        if processes > 1 and not (together and ranks.count() > 1):
            raise StoreError(
                f"a run of the stage {stage!r} begun by {processes} processes (WORLD_SIZE)",
                "it belongs to one: each of several would do all of its clips",
                f"Start it without torchrun and accelerate launch; {', '.join(ranks.DIVIDED)} divide their clips among "
                "processes, and of others a run each goes beside the next, with its own CUDA_VISIBLE_DEVICES",
            )
        members: list[Run] = []

        def begin() -> tuple[str, list]:
            about_run = {"parent": parent, "name": name, "seed": int(seed), "dataset": dataset}
            members.append(disk.once_finished(partial(self._begin, stage, config, about_run, shard)))
            return members[0].id, members[0].about["sessions"]

        run_id, sessions = ranks.first(begin)
        return members[0] if members else self._joined(run_id, sessions)

    def _joined(self, run_id: str, sessions: list) -> Run:
        """The run that the leading process has begun, or found finished, to append to beside it."""
        folder, until = self.path / "runs" / run_id, time.monotonic() + _APPEARS
        while True:
            with contextlib.suppress(StoreError):
                run = Run(folder, disk.Shared())
                if run.about["sessions"] == sessions:
                    return run
            if time.monotonic() > until:
                raise StoreError(
                    f"process {ranks.number()} of {ranks.count()} does not see the run {run_id} in {self.path}",
                    "all processes write one run, and this machine has another folder there",
                    "Put the workbench on a disk that all machines share, and name it with --workbench",
                )
            time.sleep(0.1)

    def _begin(
        self, stage: str, config: Mapping[str, Any], about_run: Mapping[str, Any], shard: ranks.Shard | None
    ) -> Run:
        if not _STAGE.fullmatch(stage):
            raise StoreError(f"the stage is called {stage!r}", "it names folders", "use one lower-case word")
        self.refuse_example()
        if about_run["parent"] is not None:
            self.run(about_run["parent"])
        identity = {"stage": stage, "config": plain(config), **about_run}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode("ascii")).hexdigest()
        runs = self._folder("runs")
        with _starting, disk.Lock(runs / ".lock", wait=WAIT):
            folder = self._folder_of(stage, key, identity["name"])
            place = str(disk.lock_of(folder.resolve(), shard))
            live = _live.get(place)
            if live is not None and live.writable:
                return live
            about = _description(folder)
            if about is not None and about["status"] == "finished":
                return Run(folder)
            folder.mkdir(exist_ok=True)
            lock = disk.take(folder, shard)
            about = _description(folder)
            if about is not None and about["status"] == "finished":  # by who held it until now
                lock.release()
                return Run(folder)
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
            run = _live[place] = Run(folder, lock, shard)
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
        ids = {folder.name for folder in self.path.glob("runs/*/")}
        if run_id not in ids:
            guess = nearest(str(run_id), sorted(ids))
            raise StoreError(
                f"there is no run {run_id!r} in {self.path}",
                f"{len(ids)} runs are there" if ids else "no run was started in it yet",
                f"Nearest: {guess!r}" if guess else "Start one, or name another workbench",
            )
        return Run(self.path / "runs" / run_id)

    def runs(self, stage: str | None = None, *, finished: bool | None = None) -> list[Run]:
        """Runs to read from, oldest first; a run.json that cannot be read costs its run, and a warning. A folder killed
        before its run.json was written is not a run yet."""
        runs = []
        for folder in self.path.glob("runs/*/"):
            try:
                runs += [Run(folder)] if (folder / "run.json").exists() else []
            except StoreError as error:
                warnings.warn(str(error), stacklevel=2)
        matches = [run for run in runs if stage in (None, run.stage) and finished in (None, run.finished)]
        return sorted(matches, key=lambda run: (run.about["created"], run.id))


def _description(folder: Path) -> dict[str, Any] | None:
    """run.json, or None where a killed process left a folder without one. StoreError where it cannot be read."""
    return read_description(folder) if (folder / "run.json").exists() else None
