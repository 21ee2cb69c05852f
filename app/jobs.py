"""Detached jobs: a stage started from the page keeps running when the browser and the server are gone.

    job = jobs.launch(workbench, [sys.executable, "-m", "deepintuit.cli", "report"], stage="report", title="report")
    jobs.find(workbench, job.id).status, jobs.tail(workbench, job.id), jobs.stop(workbench, job.id)

State lies in `workbench/jobs/<id>/`: `job.json`, `log`, `progress`, and files that the command was given. A process of
`supervisor` writes it; here it is read, by whichever server asks. `job_requests` says what the page may start.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepintuit import disk
from deepintuit.errors import DiskError, StoreError
from deepintuit.runs import Workbench
from deepintuit_app import supervisor

_ID = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{4}")
_TAIL = 64 * 1024

STATUSES = {
    "starting": "is being started",
    "waiting": "waits for the job before it",
    "running": "runs",
    "stopping": "was asked to stop and writes what it has",
    "finished": "is finished",
    "stopped": "was stopped; started again, it resumes there",
    "failed": "failed; its log says why",
    "broken off": "ended without a word: killed, or the machine went down; started again, it resumes there",
}
ACTIVE = ("starting", "waiting", "running", "stopping")


@dataclass(frozen=True)
class Job:
    """One job as it stands. Times are UTC; `progress` is the last line that it drew or wrote."""

    id: str
    stage: str
    title: str
    user: str
    command: tuple[str, ...]
    created: datetime
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    status: str
    progress: str

    @property
    def active(self) -> bool:
        return self.status in ACTIVE


def launch(
    workbench: Path,
    command: Sequence[str],
    *,
    stage: str,
    title: str,
    user: str = "local",
    files: Mapping[str, str] | None = None,
) -> Job:
    """Start a command as a job, behind those that wait. `{job}` in an argument is the job's folder, which `files` are
    written to first. StoreError in the example."""
    Workbench(workbench).refuse_example()
    moment = datetime.now(UTC)
    folder = workbench / "jobs" / f"{moment:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"
    try:
        with disk.naming(folder):
            folder.mkdir(parents=True)
            _start(folder, command, moment, {"stage": stage, "title": title, "user": user}, files or {})
    except DiskError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return find(workbench, folder.name)


def _start(
    folder: Path, command: Sequence[str], moment: datetime, facts: Mapping[str, str], files: Mapping[str, str]
) -> None:
    for name, text in files.items():
        disk.write_text(folder / name, text)
    about = {"id": folder.name, **facts, "created": moment.isoformat(timespec="seconds"), "created_at": time.time()}
    supervisor.note(folder, **about, command=[argument.replace("{job}", str(folder)) for argument in command])
    with open(folder / "keeper.log", "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "deepintuit_app.supervisor", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # so that no zombie stays while this server lives


def listed(workbench: Path) -> list[Job]:
    """All jobs, newest first."""
    folders = sorted((workbench / "jobs").glob("*/job.json"), reverse=True)
    return [
        _job(path.parent, about)
        for path in folders
        if _ID.fullmatch(path.parent.name) and (about := supervisor.read(path.parent))
    ]


def find(workbench: Path, job_id: str) -> Job:
    """StoreError when there is no job of this id."""
    folder = _folder(workbench, job_id)
    return _job(folder, supervisor.read(folder) or {})


def stop(workbench: Path, job_id: str) -> Job:
    """Ask a job to stop: Ctrl-C for its processes, SIGTERM and SIGKILL for those that do not hear it. One that is over
    stays as it is."""
    folder = _folder(workbench, job_id)
    about = supervisor.read(folder) or {}
    try:
        if about.get("ended"):
            pass
        elif supervisor.alive(about.get("keeper")):
            os.kill(about["keeper"]["pid"], signal.SIGTERM)
        elif supervisor.alive(about.get("process")):
            os.killpg(about["process"]["pid"], signal.SIGINT)  # its supervisor was killed
    except ProcessLookupError:
        pass  # it ended in this very moment
    return find(workbench, job_id)


def again(workbench: Path, job_id: str, user: str) -> Job:
    """The same command as a new job: a stage that was stopped resumes, a finished one says so."""
    folder = _folder(workbench, job_id)
    about = supervisor.read(folder) or {}
    if not supervisor.ended(about):
        raise StoreError(
            f"job {job_id!r} is not over", "the same stage cannot run twice at once", "Stop it first, or wait for it"
        )
    return launch(workbench, about["command"], stage=about["stage"], title=about["title"], user=user)


def tail(workbench: Path, job_id: str) -> str:
    """The last 64 KB of what a job wrote, whole lines."""
    folder = _folder(workbench, job_id)
    return "\n".join(filter(None, (end_of(folder / "log"), end_of(folder / "keeper.log"))))


def _folder(workbench: Path, job_id: str) -> Path:
    folder = workbench / "jobs" / str(job_id)
    if not _ID.fullmatch(str(job_id)) or supervisor.read(folder) is None:
        raise StoreError(
            f"there is no job {job_id!r}", "none of this id was started from this workbench", "See the list of jobs"
        )
    return folder


def end_of(path: Path) -> str:
    """The last 64 KB of a text file, whole lines; empty where there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return (text if size <= _TAIL else text.partition("\n")[2]).rstrip("\n")


def _job(folder: Path, about: Mapping[str, Any]) -> Job:
    status = _status(about)
    try:
        progress = (folder / "progress").read_text(encoding="utf-8") if status in ("running", "stopping") else ""
    except FileNotFoundError:
        progress = ""
    times = {
        name: datetime.fromisoformat(about[name]) if about.get(name) else None
        for name in ("created", "started", "ended")
    }
    return Job(
        id=folder.name,
        stage=about["stage"],
        title=about["title"],
        user=about["user"],
        command=tuple(about["command"]),
        exit_code=about.get("exit_code"),
        status=status,
        progress=progress or end_of(folder / "log").rpartition("\n")[2],
        **times,
    )


def _status(about: Mapping[str, Any]) -> str:
    if about.get("ended"):
        code = about.get("exit_code")
        return "finished" if code == 0 else "stopped" if about.get("stopped") or code == 130 else "failed"
    if supervisor.ended(dict(about)):
        return "broken off"
    if about.get("stopping"):
        return "stopping"
    if about.get("process"):
        return "running"
    return "waiting" if about.get("keeper") else "starting"
