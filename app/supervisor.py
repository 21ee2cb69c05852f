"""The process that keeps one job: waits for its turn, runs the command, writes what it says and how it ended.

    python -m deepintuit_app.supervisor WORKBENCH/jobs/ID

`jobs` starts it in its own session, so that a job outlives the browser and the server, and asks it to stop with
SIGTERM. It alone writes `job.json` once it runs. Jobs of a workbench go one after the other, oldest first: two that
train on one small machine are each many times slower, so the second waits.

A stage draws its progress as a terminal would see it: the line that is drawn over and over lands in `progress`, every
finished line in `log`. Light on purpose (no Gradio, no DuckDB), since a supervisor may wait for hours.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from deepintuit import disk
from deepintuit.errors import DiskError

PATIENCE = 30.0
"""Seconds from Ctrl-C (SIGINT) to SIGTERM, and from there to SIGKILL. Every stage resumes after any of them."""
NEW = 30.0
"""Seconds that a supervisor may take to start: a job younger than that without one is not lost yet."""

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*+(?:\x07|\x1b\\)|\x1b.|[\x00-\x08\x0b-\x1f\x7f]")
_LONGEST = 4096
_LIVE = {"PYTHONUNBUFFERED": "1", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "NO_COLOR": "1", "COLUMNS": "110"}
"""Makes rich draw its progress though no terminal is there."""


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(folder: Path) -> dict[str, Any] | None:
    """What `job.json` says; None where it is not written yet, or damaged."""
    try:
        about = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return about if _sound(about) else None


def _sound(about: Any) -> bool:
    kinds = {"created_at": (int, float), "command": list, **dict.fromkeys(("stage", "title", "user", "created"), str)}
    if not isinstance(about, dict) or not all(isinstance(about.get(name), kind) for name, kind in kinds.items()):
        return False
    try:
        for name in ("created", "started", "ended"):
            datetime.fromisoformat(about.get(name) or about["created"])
        processes = [process for name in ("keeper", "process") if (process := about.get(name))]
        return all(0 < process["pid"] < 2**31 and process["born"] > 0 for process in processes)
    except (TypeError, ValueError, KeyError, IndexError):
        return False


def note(folder: Path, **fields: Any) -> None:
    disk.write_json(folder / "job.json", {**(read(folder) or {}), **fields})


def identity(pid: int) -> dict[str, float]:
    """A process that cannot be mistaken for a later one with its number."""
    return {"pid": pid, "born": psutil.Process(pid).create_time()}


def alive(process: dict[str, float] | None) -> bool:
    """Whether this very process still runs, not just one that was given its number."""
    if not process:
        return False
    try:
        process_ = psutil.Process(int(process["pid"]))
        return abs(process_.create_time() - process["born"]) < 2 and process_.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def ended(about: dict[str, Any]) -> bool:
    """Whether nothing of a job can still happen: it said how it ended, or none of its processes is left."""
    if about.get("ended"):
        return True
    if alive(about.get("keeper")) or alive(about.get("process")):
        return False
    return bool(about.get("keeper")) or time.time() - about["created_at"] > NEW


class Supervisor:
    """One job from its turn to its end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked: float | None = None
        """When somebody asked to stop it."""

    def run(self) -> None:
        # A handler, not SIG_IGN: what is ignored stays ignored in the command, and Ctrl-C would not reach it.
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGTERM, self._ask)
        note(self.folder, keeper=identity(os.getpid()))
        with open(self.folder.parent / ".turn", "a", encoding="utf-8") as turn:
            while self.asked is None and not self._my_turn(turn):
                time.sleep(0.2)
            if self.asked is not None:
                note(self.folder, ended=now(), exit_code=None, stopped=True)
                return
            self._work()

    def _ask(self, *_: object) -> None:
        self.asked = self.asked or time.monotonic()

    def _my_turn(self, turn: IO[str]) -> bool:
        for folder in sorted(self.folder.parent.iterdir()):
            if folder.name >= self.folder.name:
                break
            about = read(folder)
            if about is not None and not ended(about):
                return False
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of by the kernel when this process ends
        except BlockingIOError:
            return False
        return True

    def _work(self) -> None:
        command = (read(self.folder) or {})["command"]
        with open(self.folder / "log", "ab", buffering=0) as log:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    env={**os.environ, **_LIVE},
                )
            except OSError as error:
                log.write(f"{command[0]} cannot be started: {error.strerror}.\n".encode())
                self._note(ended=now(), exit_code=127)
                return
            self._note(process=identity(process.pid), started=now())
            pump = threading.Thread(target=self._pump, args=(process.stdout, log), daemon=True)
            pump.start()
            self._wait(process)
            pump.join(2)  # a grandchild may hold the pipe; the job is over all the same
        self._note(ended=now(), exit_code=process.returncode, stopped=self.asked is not None)

    def _note(self, **fields: Any) -> None:
        """While a command runs, a full disk does not end it by what cannot be said about it."""
        with contextlib.suppress(DiskError):
            note(self.folder, **fields)

    def _wait(self, process: subprocess.Popen) -> None:
        steps = [(0.0, signal.SIGINT), (PATIENCE, signal.SIGTERM), (2 * PATIENCE, signal.SIGKILL)]
        while process.poll() is None:
            if self.asked is not None and steps and time.monotonic() - self.asked >= steps[0][0]:
                if steps[0][1] == signal.SIGINT:
                    self._note(stopping=now())
                os.killpg(process.pid, steps.pop(0)[1])
            time.sleep(0.1)

    def _pump(self, source: IO[bytes], log: IO[bytes]) -> None:
        """Finished lines to the log; what is drawn over (a carriage return before its line ends) to `progress`."""
        buffer, last_text = "", 0.0
        while chunk := os.read(source.fileno(), 65_536):
            buffer += chunk.decode("utf-8", "replace")
            *lines, buffer = buffer.split("\n")
            with contextlib.suppress(OSError):  # on a full disk the command still has to be listened to
                log.write("".join(text + "\n" for line in lines if (text := clean(line))).encode())
                if time.monotonic() - last_text > 0.5 and (text := clean(buffer[-_LONGEST:])):
                    (self.folder / "progress").write_text(text, encoding="utf-8")
                    last_text = time.monotonic()
            buffer = buffer[-_LONGEST:]
        if text := clean(buffer):
            log.write(f"{text}\n".encode())


def clean(line: str) -> str:
    """What stands on a terminal's line in the end: behind the last carriage return, without control sequences."""
    parts = [part for part in line.split("\r") if _CONTROL.sub("", part).strip()]
    return _CONTROL.sub("", parts[-1]).rstrip()[:_LONGEST] if parts else ""


if __name__ == "__main__":
    os.nice(5)  # the dashboard on the same machine keeps answering
    Supervisor(Path(sys.argv[1])).run()
