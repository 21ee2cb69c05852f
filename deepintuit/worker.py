"""Child processes for work on what strangers made: bounded in time and memory, free to crash, gone with their parent.

A `Pool` keeps its children warm; each answers one request at a time. Requests and answers are JSON lines, bytes after
them: nothing is unpickled. Of the parent's environment a child gets what its loader and its file names need, no key.
It ends as soon as the parent's end of its standard input is closed, however the parent ended. PR_SET_PDEATHSIG would
not do: it strikes when the *thread* that started the child ends.

There is no memory limit where the kernel has none (macOS), and no other user or file system for the child.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepintuit.errors import DeepIntuitError

GRACE_SECONDS = 1.0
"""A child looks at its own clock where it can; the parent waits this much longer before it kills."""
STARTING_SECONDS = 120.0
TIRED_KIB = 600 << 10
"""A child that has ever held more memory than this is not asked again."""
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONUTF8", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
# Keeps libraries from reserving addresses that they do not use, which the limit on memory would count.
_FRUGAL = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Stopped(Exception):
    """A child that gave no answer: killed for being `late`, or ended by itself; `reason`: the signal or exit code."""

    def __init__(self, reason: str, late: bool) -> None:
        super().__init__(reason)
        self.reason, self.late = reason, late


class Busy(Exception):
    """All children of a pool are at work, and none became free in time."""


class Pool:
    """At most `most` children that run `serve()` of a module, which calls `worker.serve`; any number of threads may
    ask. A forked process starts its own."""

    def __init__(self, module: str, most: int) -> None:
        self.module, self.most = module, most
        self._afresh()
        os.register_at_fork(after_in_child=self._afresh)  # two processes must not speak to one child
        atexit.register(self.close)

    def _afresh(self) -> None:
        self._places, self._starting = threading.BoundedSemaphore(self.most), threading.Lock()
        self.idle: list[Child] = []

    def ask(
        self, request: Mapping[str, Any], seconds: float, memory: int, wait: float | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """What a child answers. It is killed `GRACE_SECONDS` after `seconds`, and `memory` bounds the bytes that it may
        take beyond what it holds. Raises `Stopped`, and `Busy` when no place is free after `wait` seconds."""
        if not self._places.acquire(timeout=wait):
            raise Busy
        try:
            with self._starting:  # one after the other: while one comes up, another may have become free
                child = next((idle for idle in iter(self._take, None) if idle.alive), None) or Child(self.module)
            try:
                answer, body = child.ask({**request, "seconds": seconds, "memory": memory}, seconds)
            except BaseException:
                child.end()
                raise
            if answer["held"] > TIRED_KIB:
                child.end()
            else:
                self.idle.append(child)
            return answer, body
        finally:
            self._places.release()

    def _take(self) -> Child | None:
        return self.idle.pop() if self.idle else None

    def close(self) -> None:
        """End the children that wait. Those at work end with this process."""
        for child in iter(self._take, None):
            child.end()


class Child:
    def __init__(self, module: str) -> None:
        program = f"import sys; sys.path[:] = {sys.path!r}; from {module} import serve; serve()"
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is for the parent; and a Jupyter kernel would end a child of its group, and wait for us to notice.
            process_group=0,
            env={name: os.environ[name] for name in _KEPT if name in os.environ} | _FRUGAL,
        )
        with self._killed_after(STARTING_SECONDS):
            if not self.process.stdout.readline():
                self.end()
                raise DeepIntuitError(
                    "A child process did not start",
                    "files and queries of strangers are read in one",
                    "See its message above, if there is one; the machine may be out of memory",
                )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any], bytes]:
        with self._killed_after(seconds + GRACE_SECONDS) as late:
            try:
                self.process.stdin.write(json.dumps(request).encode() + b"\n")
                self.process.stdin.flush()
                answer = json.loads(self.process.stdout.readline())
                body = self.process.stdout.read(answer["bytes"])
            except (OSError, ValueError):  # gone, perhaps in the middle of an answer
                answer, body = {"bytes": 1}, b""
        if late.is_set() or len(body) < answer["bytes"]:
            self.process.kill()
            code = self.process.wait()
            raise Stopped(signal.Signals(-code).name if code < 0 else f"exit code {code}", late.is_set())
        return answer, body

    @contextlib.contextmanager
    def _killed_after(self, seconds: float):
        late = threading.Event()

        def strike() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, strike)
        timer.daemon = True
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()

    def end(self) -> None:
        self.process.kill()
        self.process.stdout.close()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait()


# In the child


def end_with_parent() -> None:
    """For the processes of a `ProcessPoolExecutor`, which else outlive a parent that is killed."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def serve(answer: Callable[[dict[str, Any]], tuple[dict[str, Any], bytes | memoryview]]) -> None:
    """Answer requests from standard input until it is closed. What the modules above imported counts as held."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into an answer
    out.write(b"ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # Of the kernel: it also ends native code that lets no thread of Python run, when nobody is left to kill it.
        signal.alarm(int(min(request["seconds"] + GRACE_SECONDS + 5, 1e9)))
        _bound_memory(request["memory"])
        facts, body = answer(request)
        out.write(json.dumps({**facts, "bytes": len(body), "held": _most_held_kib()}).encode() + b"\n")
        out.write(body)
        out.flush()
        signal.alarm(0)


def _end_with(parent: int) -> None:
    """End this process, whatever it is doing, when its parent ends."""
    hangup = select.poll()
    hangup.register(0, 0)
    while os.getppid() == parent and not hangup.poll(1000):
        pass
    os._exit(0)


def _bound_memory(memory: int) -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _most_held_kib() -> int:
    """Of this program alone: Linux counts what the parent held before it into ru_maxrss."""
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return int(peak[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most
