"""What all pages share: the workbench, its queries, the model when it is asked for, uploads, and who is asking.

New parts appear without a restart: `look()` has the index refreshed at most every two seconds, off the readers' way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
from fastapi import HTTPException

from deepintuit.errors import DeepIntuitError
from deepintuit.labels import LabelSet
from deepintuit_analysis import Workbench
from deepintuit_analysis.index.build import file_signature
from deepintuit_app.live import Engine, Pages
from deepintuit_app.sources import PROVIDERS, Sources
from deepintuit_app.uploads import Uploads

LOCAL = "local"
"""Who asks when there is no login."""

_FRESH, _PATIENCE = 2.0, 0.25
"""Seconds after which the parts are looked at again, and how long a reader waits for that: a small workbench is always
shown as it is, a large one as it was a moment ago."""


class AppContext:
    """One for the whole server; every method may be called from many threads at once."""

    def __init__(self, workbench: str | Path, sources: Sources | None = None):
        self.workbench = Workbench(workbench)
        self.sources = sources or Sources(endpoints=PROVIDERS)
        self.pages, self.engine, self.uploads = Pages(), Engine(self.workbench), Uploads()
        self._looked = 0.0
        self._lock = threading.Lock()
        self._looking: threading.Thread | None = None

    def look(self) -> Workbench:
        """The workbench, its index being brought up to date.

        Readers wait for the first index, and only a moment for a later one.
        """
        with self._lock:
            if self._looking is None and time.monotonic() - self._looked > _FRESH:
                self._looking = threading.Thread(target=self._refresh, name="deepintuit-index", daemon=True)
                self._looking.start()
            looking = self._looking
        if looking is not None:
            looking.join(_PATIENCE if self.workbench.index_path.exists() else None)
        return self.workbench

    def behind(self) -> object:
        """Which index is read while newer parts may be on their way into the next one; None when it is up to date."""
        with self._lock:
            looking = self._looking is not None
        return file_signature(self.workbench.index_path) if looking else None

    def renewed(self, behind: object) -> bool | None:
        """Whether there is another index than the one that was `behind`; None while that is not known yet."""
        if behind != file_signature(self.workbench.index_path):
            return True
        return None if self.behind() is not None else False

    def _refresh(self) -> None:
        try:
            self.workbench.refresh()
        except (DeepIntuitError, OSError):
            logging.getLogger(__name__).exception("the index could not be brought up to date; the former one is shown")
        finally:
            with self._lock:
                self._looking, self._looked = None, time.monotonic()

    def labels(self, dataset: str | None) -> LabelSet | None:
        """The label set of a dataset as it stands; None where there is none that can be read."""
        path = self.workbench.clips / f"{dataset}.labels.toml"
        changed = file_signature(path) if dataset else None
        return None if changed is None else _labels(path, changed)

    @staticmethod
    def user(request: gr.Request | None) -> str:
        return (request.username if request else None) or LOCAL


@lru_cache(maxsize=32)
def _labels(path: Path, _changed: object) -> LabelSet | None:
    try:
        return LabelSet.load(path)
    except (DeepIntuitError, OSError):
        return None


def apart(at_once: int, waiting: int = 200) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For routes that may take long: so many at a time, in threads that no page needs. Some more wait, and hold none;
    the rest is told to come again."""
    threads, here = anyio.CapacityLimiter(at_once), 0

    def around(answer: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(answer)
        async def answered(*args: Any, **kwargs: Any) -> Any:
            nonlocal here
            if here >= at_once + waiting:
                message = "Many wait for the same, and one more would slow all down. Try again in a minute."
                raise HTTPException(503, message, {"Retry-After": "60"})
            here += 1
            try:
                return await anyio.to_thread.run_sync(partial(answer, *args, **kwargs), limiter=threads)
            finally:
                here -= 1

        return answered

    return around
