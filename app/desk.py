"""What all pages share: the workbench, its queries, the model when it is asked for, and who is asking.

New parts appear without a restart: `look()` refreshes the index at most every two seconds, off the readers' way.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import gradio as gr

from deepintuit.store import Workbench

LOCAL = "local"
"""Who asks when there is no login."""


class Desk:
    """One for the whole server; every method may be called from many threads at once."""

    def __init__(self, workbench: str | Path):
        self.workbench = Workbench(workbench)
        self._looked = 0.0
        self._looking = threading.Lock()

    def look(self) -> Workbench:
        """The workbench with an index no older than two seconds. One caller rebuilds it, the others read the former one."""
        if self._looking.acquire(blocking=not self.workbench.index_path.exists()):
            try:
                if time.monotonic() - self._looked > 2:
                    self.workbench.refresh()
                    self._looked = time.monotonic()
            finally:
                self._looking.release()
        return self.workbench

    @staticmethod
    def user(request: gr.Request | None) -> str:
        return (request.username if request else None) or LOCAL
