"""One run: a folder that says how it was made, holds its rows as immutable Parquet parts, and can be continued.

with workbench.start_run("coldstart", config) as run:
    for clip in clips_not_in(run.done("traces", "clip_id")):
        run.append("traces", [...])          # on disk when this returns
    run.finish({"accuracy": 0.82})
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from rich.progress import Progress

from deepintuit import disk, parquet, ranks, texts
from deepintuit.errors import DiskError, StoreError, nearest
from deepintuit.runs.schema import GRAINS, Grain, TraceRow, grain_named, newest, storable, table

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
WAIT = 300.0
"""Seconds to wait for others that begin runs, or write down what they know of one: many shards may start at once."""
PACKAGES = (
    "deepintuit",
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pyarrow",
    "duckdb",
    "decord",
    "av",
    "safetensors",
    "tokenizers",
)

_SECRET_NAME = re.compile(
    r"(?:(?:api|access|private|secret)[-_]?key"
    r"|(?:^|[-_.])(?:token|secret|password|passwd|authorization|credentials?))$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"\b(?:sk|hf|ghp|glpat|xox[bap])[-_][A-Za-z0-9_-]{12,}|(?<=://)[^/\s@]+(?=@)|(?<=[Bb]earer )\S+"
)
_HIDDEN = "***"


def _hide(text: str) -> str:
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= 8:
            text = text.replace(value, _HIDDEN)
    return _SECRET_TEXT.sub(_HIDDEN, text)


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line fit for a file others read: values of options named like a secret, values of such environment
    variables, and texts shaped like a key become `***`."""
    safe: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("-"):
            safe.append(_HIDDEN)
            hide_next = False
            continue
        secret = bool(_SECRET_NAME.search(name))
        safe.append(f"{name}={_HIDDEN}" if secret and equals else _hide(argument))
        hide_next = secret and not equals and name.startswith("-")
    return safe


def plain(value: Any, place: str = "config") -> Any:
    """A value as JSON has it: numpy scalars and arrays unpacked, paths and enums as text, nan and infinity as null,
    secrets as `***`. StoreError for anything else."""
    if isinstance(value, Enum):
        return plain(value.value, place)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return storable(_hide(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {
            str(key): _HIDDEN
            if isinstance(item, str) and item and _SECRET_NAME.search(str(key))
            else plain(item, f"{place}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, place) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item, place) for item in value), key=repr)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), place)
    raise StoreError(
        f"{place} holds a {type(value).__name__}",
        "a run's description is JSON, to be read anywhere",
        "pass numbers, text, lists and mappings",
    )


def _git(*arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def provenance() -> dict[str, Any]:
    """Command line, commit and whether tracked files had edits (null when the package lies in no git checkout)."""
    program = Path(sys.argv[0])
    command = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    changed = _git("status", "--porcelain", "--untracked-files=no") if tracked else None
    return {
        "command": without_secrets([*command, *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD") if tracked else None,
        "dirty": None if changed is None else bool(changed),
    }


def versions() -> dict[str, str]:
    packages = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return packages


def part_name(grain: str, number: int) -> str:
    return f"{grain}-{number:05d}.parquet"


def parts(folder: Path, grain: str) -> list[tuple[int, Path]]:
    """The finished parts of a grain with their numbers, in writing order. Half-written ones have another name."""
    files = []
    for path in folder.glob(f"{grain}-*.parquet"):
        number = path.stem.removeprefix(f"{grain}-")
        if number.isdigit():
            files.append((int(number), path))
    return sorted(files)


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A part or those of its columns that it has. StoreError when it cannot be read or is not what was written."""
    try:
        return parquet.read(path, columns)
    except (ValueError, OSError) as error:
        raise StoreError(
            f"part {path.name} of run {path.parent.name!r} cannot be read ({error})",
            "finished parts are whole when written, so the disk or another program changed it",
            "Restore the file from a copy; without one, move the run's folder out of the workbench and "
            "repeat the stage",
        ) from error


_text, _maybe = (str,), (str, type(None))
_FIELDS = {
    "run_id": _text, "stage": _text, "status": _text, "created": _text, "key": _text, "config": (dict,),
    "summary": (dict,), "sessions": (list,), "seed": (int,), "parent": _maybe, "name": _maybe, "dataset": _maybe,
    "finished": _maybe, "error": _maybe,
}  # fmt: skip


def read_description(folder: Path) -> dict[str, Any]:
    """run.json as a dict with a run's own fields; StoreError when it is missing or something else."""
    try:
        about = texts.parse_json(texts.read(folder / "run.json"))
        faults = [
            name
            for name, kinds in _FIELDS.items()
            if not isinstance(about, dict) or name not in about or not isinstance(about[name], kinds)
        ]
        if faults:
            raise ValueError(f"{faults[0]!r} is missing in it or of another type")
        for instant in filter(None, (about["created"], about["finished"])):
            datetime.fromisoformat(instant)
        if abs(about["seed"]) >= 2**63:
            raise ValueError("its seed is out of range")
        return about
    except (OSError, ValueError) as error:
        raise StoreError(
            f"run {folder.name!r} has no readable run.json ({error})",
            "nothing says which stage and settings its rows come from",
            "Restore the file or move the run's folder out of the workbench",
        ) from error


class Run:
    """A run opened to be written (by `Workbench.start_run`) or to be read (by `Workbench.run`).

    One process writes; its threads may share the object. As a context manager it records an exception with `fail`. Of
    several processes of one command each appends parts, and the leading one alone writes run.json and the log. Of
    several shards each does both.
    """

    def __init__(self, path: Path, lock: disk.Lock | disk.Shared | None = None, shard: ranks.Shard | None = None):
        self.path, self.shard, self.waits = path, shard, ""
        self._lock = lock
        self._threads = threading.RLock()
        self._about = read_description(path)
        self._written: list[str] = []
        self._stored: dict[str, dict[str, list[str]]] = {}
        self._next = {name: max((number for number, _ in parts(path, name)), default=-1) + 1 for name in GRAINS}

    @property
    def id(self) -> str:
        return self._about["run_id"]

    @property
    def stage(self) -> str:
        return self._about["stage"]

    @property
    def about(self) -> dict[str, Any]:
        """A copy of run.json."""
        return json.loads(json.dumps(self._about))

    @property
    def config(self) -> dict[str, Any]:
        return self.about["config"]

    @property
    def parent(self) -> str | None:
        return self._about["parent"]

    @property
    def seed(self) -> int:
        return self._about["seed"]

    @property
    def status(self) -> str:
        """`running` (also after a kill), `failed` or `finished`."""
        return self._about["status"]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def summary(self) -> dict[str, Any]:
        return self.about["summary"]

    @property
    def checkpoint(self) -> Path:
        """The folder for weights (safetensors) and trainer state."""
        folder = self.path / "checkpoint"
        if self.writable:
            folder.mkdir(exist_ok=True)
        return folder

    @property
    def writable(self) -> bool:
        return self._lock is not None and self._lock.held and not self.finished

    def append(self, grain: str, rows: Sequence[Mapping[str, Any] | TraceRow]) -> Path | None:
        """Store rows as one immutable part; they are on disk when this returns its path. No rows: no part, None.

        `run_id` is filled in, so are `trace_id` of traces, `control` ("none") of predictions and `time` of steps.
        StoreError for a row that does not fit the grain; then nothing of the call is stored.
        """
        kind = grain_named(grain)
        self._refuse_unless_writable()
        if not rows:
            return None
        rows = [row.to_dict() if isinstance(row, TraceRow) else row for row in rows]
        for row in rows:
            if row.get("run_id", self.id) != self.id:
                raise StoreError(
                    f"a row of {grain!r} names run {row['run_id']!r}",
                    f"this is run {self.id!r}",
                    "leave `run_id` out; it is filled in",
                )
        data = table(kind, rows, self._defaults(kind))
        with self._threads:
            target, number = disk.publish(
                lambda path: parquet.write(data, path),
                self.path,
                lambda number: part_name(grain, number),
                self._next[grain],
            )
            self._next[grain] = number + 1
            self._written.append(target.name)
        return target

    def settle(self) -> None:
        """All processes of the command have come here, and what each has appended is seen by this one, on a network
        disk too. StoreError where it does not appear."""
        names, until = {name for parts in ranks.gather(self._written) for name in parts}, time.monotonic() + 60
        while lacking := names - set(os.listdir(self.path)):
            if time.monotonic() > until:
                raise StoreError(
                    f"{len(lacking)} parts of run {self.id!r}, {min(lacking)} for one, are not seen here",
                    f"another of the {ranks.count()} processes has written them",
                    "See whether all machines have the workbench on one disk, then rerun the command: it resumes",
                )
            time.sleep(0.1)

    def _defaults(self, grain: Grain) -> dict[str, Any]:
        filled: dict[str, Any] = {"run_id": self.id}
        if grain.name == "traces":
            filled["stage"] = self.stage
        elif grain.name == "predictions":
            filled["control"] = "none"
        elif grain.name == "steps":
            filled["time"] = datetime.now(UTC).replace(tzinfo=None)
        return filled

    def read(self, grain: str, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """The rows of a grain in writing order, the last one of each key; an empty frame with its columns if none."""
        return self.table(grain, columns).to_pandas()

    def table(self, grain: str, columns: Sequence[str] | None = None) -> pa.Table:
        """As `read`, as an Arrow table (keeps nulls and lists as they are)."""
        kind = grain_named(grain)
        for column in columns or ():
            if column not in kind.columns:
                raise StoreError(
                    f"{grain!r} has no column {column!r}",
                    f"its columns are {', '.join(kind.columns)}",
                    f"nearest: {nearest(column, kind.columns) or kind.columns[0]!r}",
                )
        needed = None if columns is None else (*columns, *kind.key)
        return newest((read_part(path, needed) for _, path in parts(self.path, grain)), kind, columns)

    def done(self, grain: str, key: str | Sequence[str]) -> set[Any]:
        """The values of a column (tuples for several columns) that are stored already: what a resumed stage skips."""
        columns = [key] if isinstance(key, str) else list(key)
        values = self.table(grain, columns)
        if isinstance(key, str):
            return set(values[key].to_pylist())
        return set(zip(*(values[column].to_pylist() for column in columns)))

    def stored(self, grain: str) -> set[str]:
        """The clips that have rows by now, whoever wrote them. Parts are read once, so it may be asked often."""
        clips_of = self._stored.setdefault(grain, {})
        for _, path in parts(self.path, grain):
            if path.name not in clips_of:
                clips_of[path.name] = read_part(path, ["clip_id"])["clip_id"].to_pylist()
        return {clip_id for clip_ids in clips_of.values() for clip_id in clip_ids}

    def track(self, grain: str, work: Iterable[T], title: str, clips: int, progress: bool) -> Iterator[T]:
        """Each piece of work, beside a bar that says of how many of the clips rows are stored, by all processes."""
        with Progress(disable=not progress) as bar:
            task = bar.add_task(title, total=clips)
            for piece in work:
                if progress:
                    bar.update(task, completed=len(self.stored(grain)))
                yield piece

    def last(self, grain: str, clips: Collection[str], unreadable: Mapping[str, str]) -> bool:
        """Of a shard that has done its part, but for clips that are `unreadable`: whether no other is at work and all
        clips are done. Then the run is its own from now on; else it lets go of it, and `waits` says how far all are. Of
        shards that end together it is true for one."""
        self._update(unreadable=unreadable)
        with disk.Lock(self.path.parent / ".lock", wait=WAIT):
            self._about = read_description(self.path)
            ended = self.stored(grain) | self._about["unreadable"].keys()
            missing = sum(clip not in ended for clip in clips)
            self.waits = f"{len(clips) - missing:,} of {len(clips):,} clips are done by all shards"
            self.log(f"Shard {self.shard.number} of {self.shard.count} has done its part: {self.waits}.")
            self.close()
            with contextlib.suppress(StoreError):  # raised where another is at work
                whole = disk.take(self.path, last=True)
                if not missing:
                    self._lock, self.shard, self.waits = whole, None, ""
                    return True
                whole.release()
        return False

    def note(self, **fields: Any) -> None:
        """Add facts known only later to run.json, such as `device="cpu"`. The run's own fields cannot be changed. What
        a shard adds to a list or mapping stands beside what others have there."""
        fixed = {
            "run_id",
            "stage",
            "config",
            "parent",
            "name",
            "seed",
            "dataset",
            "key",
            "created",
            "finished",
            "status",
            "summary",
        }
        for name in fields.keys() & fixed:
            raise StoreError(
                f"note({name}=…) would change what run {self.id!r} is", "a run is known by it", "start another run"
            )
        self._update(**fields)

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Close the run for good with its summary (nan becomes null). Starting it again gives it back finished."""
        self._update(status="finished", finished=disk.now(), error=None, summary=plain(summary or {}, "summary"))
        for lock in self.path.glob("lock-*"):  # of shards: none is at work
            lock.unlink(missing_ok=True)
        self.close()

    def fail(self, error: BaseException | str) -> None:
        """Record why the run stopped, and let go of it. It can be continued: same stage, config, parent and seed."""
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
        self._refuse_unless_writable()
        try:
            # A disk that does not take it shall not hide the error; without it the run is as after a kill.
            with contextlib.suppress(OSError, DiskError):
                if isinstance(error, BaseException):
                    self._log("".join(traceback.format_exception(error)))
                self._update(status="running" if self.shard else "failed", error=text)
        finally:
            self.close()

    def log(self, text: str) -> None:
        """Append to the run's log file, each line behind the time."""
        self._refuse_unless_writable()
        if ranks.leads():
            self._log(text)

    def _log(self, text: str) -> None:
        lines = "".join(f"{disk.now()} {line}\n" for line in storable(_hide(str(text))).rstrip("\n").split("\n"))
        path = self.path / "log"
        with self._threads, disk.naming(path), open(path, "a", encoding="utf-8") as file:
            file.write(lines)

    def close(self) -> None:
        """Let go of the run without a verdict; another process may continue it."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception) and self.writable:
            self.fail(error)
        self.close()

    def __repr__(self) -> str:
        return f"Run({self.id!r}, {self.status})"

    def _update(self, **fields: Any) -> None:
        self._refuse_unless_writable()
        alone = disk.Lock(self.path.parent / ".lock", wait=WAIT) if self.shard else contextlib.nullcontext()
        with self._threads, alone:
            before = read_description(self.path) if self.shard else self._about
            fields = plain(fields, "note")
            if self.shard:
                fields = {name: _beside(before.get(name), value) for name, value in fields.items()}
            about = {**before, **fields}
            if ranks.leads():
                disk.write_json(self.path / "run.json", about)
            self._about = about

    def _refuse_unless_writable(self) -> None:
        if self.finished:
            raise StoreError(
                f"run {self.id!r} is finished",
                "a finished run never changes, so its results stay",
                "start one with another config, seed or name",
            )
        if not self.writable:
            raise StoreError(
                f"run {self.id!r} is open for reading here",
                "only the process that started it writes",
                "call Workbench.start_run with its stage, config, parent and seed",
            )


def _beside(before: Any, more: Any) -> Any:
    if isinstance(before, dict) and isinstance(more, dict):
        return {**before, **more}
    if isinstance(before, list) and isinstance(more, list):
        return [*before, *(item for item in more if item not in before)]
    return more
