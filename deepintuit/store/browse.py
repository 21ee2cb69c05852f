"""Questions that a person asks the index: this clip's file, this trace, the traces of a slice.

Plain functions of a workbench; values travel as parameters, never as text of a query.
Left out on purpose: anything that computes a metric (`metrics`, `report`) and anything that draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from deepintuit.store import Workbench


def clip_file(workbench: Workbench, clip_id: str, *, playable: bool = True) -> Path | None:
    """Where the video of a clip lies: with `playable` the copy that a browser can show, where import made one."""
    found = workbench.query("SELECT path, playable_path FROM clips WHERE clip_id = ? AND path IS NOT NULL LIMIT 1", [clip_id])
    if found.empty:
        return None
    path = Path((playable and found.playable_path[0]) or found.path[0])
    return path if path.is_absolute() else workbench.path / path


def trace(workbench: Workbench, trace_id: str) -> pd.Series | None:
    """One trace with all its columns."""
    found = workbench.query("SELECT * FROM traces WHERE trace_id = ? LIMIT 1", [trace_id])
    return None if found.empty else found.iloc[0]
