"""Work that runs while a page is open: whose it is, when it is their turn, and how it ends.

A page has one thing running at a time, a live trace or a replay; starting another, Stop, a closed tab and a reload all
end it. Live traces are written by one worker thread each, one at a time, in the order of asking; the thread ends within
a token of being told. Torch is imported by the first of them.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from typing import Any

from deepintuit.reasoner.replay import Event, Failed, Stage
from deepintuit_analysis import Workbench

THREAD = "deepintuit-live"
"""Name of the threads that hold a model."""


class Running:
    """One thing that a page is doing. `stop` is set to end it; `ended` when its handler is through."""

    def __init__(self) -> None:
        self.stop, self.ended = threading.Event(), threading.Event()
        self.quiet = False
        """Ended by something newer: its handler shows nothing more."""


class Pages:
    """What each open page is doing, by its session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}

    def begin(self, session: str) -> Running:
        """Something new; what ran before is ended first."""
        self.replace(session)
        running = Running()
        with self._lock:
            self._running[session] = running
        return running

    def stop(self, session: str) -> None:
        """End what the page is doing; its handler shows how far it came."""
        with self._lock:
            running = self._running.get(session)
        if running is not None:
            running.stop.set()

    def replace(self, session: str, patience: float = 1.0) -> None:
        """End what the page is doing without another word, and wait for it: something else will be shown."""
        with self._lock:
            running = self._running.pop(session, None)
        if running is not None:
            running.quiet = True
            running.stop.set()
            running.ended.wait(patience)

    def end(self, session: str, running: Running) -> None:
        """Called by the handler when it is through, however it ended."""
        running.stop.set()
        running.ended.set()
        with self._lock:
            if self._running.get(session) is running:
                del self._running[session]


class Generation:
    """One live trace: a thread, and the events that it hands over. `take` them until `over`."""

    def __init__(self, engine: Engine, stop: threading.Event, wish: dict[str, Any]):
        self._engine, self.stop, self._wish = engine, stop, wish
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=THREAD, daemon=True)

    @property
    def ahead(self) -> int:
        """How many were there before and are not done yet."""
        return self._engine.ahead(self)

    @property
    def over(self) -> bool:
        return not self.thread.is_alive() and self._events.empty()

    def take(self) -> list[Event]:
        """What has happened since the last call."""
        events = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                return events

    def _work(self) -> None:
        try:
            while self._engine.ahead(self):
                if self.stop.wait(0.05):
                    return
            self._engine.run(self._wish, self._events.put, self.stop.is_set)
        except Exception as error:  # the border of a thread: whoever waits must hear of it
            logging.getLogger(__name__).exception("a live trace failed")
            kind = type(error).__name__
            self._events.put(Failed(f"The model stopped with an error ({kind}: {error}). The server's log has more."))
        finally:
            self._engine.leave(self)


class Engine:
    """The models of this server and the line before them."""

    def __init__(self, workbench: Workbench):
        self._workbench = workbench
        self._models: Any = None
        self._line: list[Generation] = []
        self._lock = threading.Lock()
        atexit.register(self.close)  # a thread inside torch while the interpreter goes down would take it with a crash

    def start(self, stop: threading.Event, **wish: Any) -> Generation:
        """Get in line. `wish`: the fields of `deepintuit.reasoner.live.Ask`."""
        job = Generation(self, stop, wish)
        with self._lock:
            self._line.append(job)
        job.thread.start()
        return job

    def ahead(self, job: Generation) -> int:
        with self._lock:
            return self._line.index(job) if job in self._line else 0

    def leave(self, job: Generation) -> None:
        with self._lock:
            self._line.remove(job)

    def close(self) -> None:
        """End all jobs, waiting for them a moment."""
        with self._lock:
            line = list(self._line)
        for job in line:
            job.stop.set()
        for job in line:
            job.thread.join(3)

    def run(self, wish: dict[str, Any], emit, stop) -> None:
        """The work itself, in the thread of the job whose turn it is."""
        if self._models is None:
            emit(Stage("load"))  # torch alone takes seconds
            from deepintuit.errors import quiet_libraries

            quiet_libraries()
        try:
            from deepintuit.reasoner import live
        except ImportError as error:
            message = (
                f"Live reasoning needs {error.name}, which `make app-light` leaves out. `make app` installs all of it."
            )
            emit(Failed(message))
            return
        if self._models is None:
            self._models = live.Models(self._workbench)
        if not stop():
            live.reason(self._models, live.Ask(**wish), emit, stop)
