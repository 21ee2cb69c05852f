"""Reading in a child process, so that a decoder that hangs, crashes or eats memory takes only itself along.

One child serves one process (and all its threads, in turn) until it is killed or dies; the next call starts another.
Requests and answers are JSON lines, pixels raw bytes after them: nothing is unpickled.
Left out on purpose: a sandbox. The child has the rights of its parent.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from ..errors import VideoError, VideoReason
from .clip import ClipInfo, Limits, refuse, too_slow
from .frames import Frames, probe, read

# The child looks at its own clock between packets; the parent waits this much longer before it kills.
GRACE_SECONDS = 2.0
# Address space beyond what the limits allow: thread stacks, allocator arenas and libraries that load late.
HEADROOM_BYTES = 2**30


class Child:
    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deepintuit.video.isolation"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders chatter there; what matters comes back as an error
            process_group=0,  # a Jupyter kernel would end it as its own, and wait half a minute for us to notice
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
        )
        self.owner = os.getpid()
        self.process.stdout.readline()  # started: what follows is the file's time, not the interpreter's

    def ask(self, path: str, request: dict, seconds: float) -> tuple[dict, bytes]:
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds + GRACE_SECONDS, kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
            body = self.process.stdout.read(answer.get("bytes", 0)) if answer else b""
        except BrokenPipeError:
            answer, body = None, b""
        finally:
            timer.cancel()
        if answer is None or len(body) < answer.get("bytes", 0):
            self.process.kill()
            code = self.process.wait()
            if late.is_set():
                raise too_slow(path, seconds)
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise refuse(
                path, VideoReason.DECODE_FAILED, f"the decoder crashed on it ({how})", "Re-encode it, or leave it out."
            )
        return answer, body


_lock = threading.Lock()
_child: Child | None = None


def _ask(path: str | os.PathLike[str], limits: Limits, request: dict) -> tuple[dict, bytes]:
    global _child
    name = os.path.abspath(os.fspath(path))
    request = request | {"path": name, "limits": dataclasses.asdict(limits)}
    with _lock:
        # After a fork the pipe belongs to the parent: two askers on one pipe would read each other's answers.
        if _child is None or _child.owner != os.getpid() or _child.process.poll() is not None:
            _child = Child()
        answer, body = _child.ask(name, request, limits.max_seconds)
    if "error" in answer:
        raise VideoError(*answer["error"])
    return answer, body


@atexit.register
def _end() -> None:
    if _child is not None and _child.owner == os.getpid():
        _child.process.kill()
        _child.process.wait()


def remote_probe(path, limits: Limits) -> ClipInfo:
    return ClipInfo(**_ask(path, limits, {"call": "probe"})[0]["info"])


def remote_read(path, count: int, size, limits: Limits, fps) -> Frames:
    answer, body = _ask(path, limits, {"call": "read", "count": count, "size": size, "fps": fps})
    pixels = np.frombuffer(bytearray(body), np.uint8).reshape(answer["shape"])
    return Frames.of(
        pixels, answer["indices"], answer["times"], answer["seconds"], answer["reader"], answer["truncated"]
    )


def serve() -> None:
    """The child's loop: one request a line on stdin, one answer on the true stdout."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into an answer
    import decord  # noqa: F401  its libraries are to be counted in the base, not in the first file's memory

    out.write(b"ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limits = Limits(**request["limits"])
        _bound_memory(limits.max_bytes)
        body = memoryview(b"")
        try:
            if request["call"] == "probe":
                answer = {"info": dataclasses.asdict(probe(request["path"], limits))}
            else:
                size = tuple(request["size"]) if request["size"] else None
                frames = read(request["path"], request["count"], size, limits, request["fps"])
                body = memoryview(frames.pixels_T_H_W_3).cast("B")
                answer = {
                    "shape": frames.pixels_T_H_W_3.shape,
                    "indices": frames.indices_T.tolist(),
                    "times": frames.times_T.tolist(),
                    "seconds": frames.seconds,
                    "reader": frames.reader,
                    "truncated": frames.truncated,
                    "bytes": len(body),
                }
        except VideoError as error:
            answer = {"error": [error.what, error.why, error.todo, error.reason]}
        out.write(json.dumps(answer).encode() + b"\n")
        out.write(body)
        out.flush()


def _bound_memory(max_bytes: int) -> None:
    if sys.platform != "linux":
        return  # elsewhere the limits that `read` checks beforehand must do
    import resource

    base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = base + max_bytes + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    serve()
