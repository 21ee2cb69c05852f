"""GRPO rollouts as HTML: the groups of an update, and the traces of one group with their rewards. No Gradio.

`templates/runs` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from deepintuit_analysis.numbers import number
from deepintuit_app.html import empty, render


def groups(rows: pd.DataFrame, clip: str, step: int) -> str:
    """The groups of an update as one button each: clip, label, a mark per trace."""
    buttons = []
    for clip_id, group in rows.groupby("clip_id", sort=True) if len(rows) else ():
        right, mean = (group["accuracy"] > 0).sum(), number(group["reward"].mean(), 1, 2)
        label = group["true_label"].iloc[0]
        buttons.append(
            {
                "clip_id": clip_id,
                "label": label if isinstance(label, str) else clip_id,
                "reward": mean,
                "teaches": bool(group["reward"].max() - group["reward"].min() > 1e-9),
                "marks": [_mark(row) for row in group.itertuples()],
                "title": f"{_clip_name(group)}: {right} of {len(group)} right, mean reward {mean}",
            }
        )
    return render("runs/groups.html", groups=buttons, chosen=clip, step=step)


def outside(name: str, step: int) -> str:
    """Where a slice has no trace of an update."""
    none = f"The slice {name!r} has no trace of update {step} of this run."
    return empty(none, "Choose another update or run, or take the slice away.")


def _mark(row: Any) -> tuple[str, str]:
    if row.format == 0 or isinstance(row.reason, str):
        return "none", "∅"
    return ("good", "✓") if row.accuracy > 0 else ("bad", "✗")


def _clip_name(group: pd.DataFrame) -> str:
    path = group["path"].iloc[0]
    return path.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(path, str) else str(group["clip_id"].iloc[0])


def group(rows: pd.DataFrame, texts: Mapping[str, str]) -> str:
    """The traces of one group, each with its rewards and its advantage as bars."""
    if rows.empty:
        return ""
    label = rows["true_label"].iloc[0]
    most = max(1.0, float(rows["advantage"].abs().max()) if rows["advantage"].notna().any() else 1.0)
    top = max(1.0, float(rows["reward"].abs().max()) if rows["reward"].notna().any() else 1.0)
    return render(
        "runs/group.html",
        name=_clip_name(rows),
        clip_id=rows["clip_id"].iloc[0],
        label=label if isinstance(label, str) else "unknown",
        rollouts=[_rollout(row, texts.get(row.trace_id, ""), most, top) for row in rows.itertuples()],
    )


def _rollout(row: Any, text: str, most: float, top: float) -> dict[str, Any]:
    malformed = isinstance(row.reason, str)
    answer = row.provisional if isinstance(row.provisional, str) else "no answer"
    bars = [
        _bar("reward", row.reward, top),
        _bar("accuracy", row.accuracy, 1),
        _bar("format", row.format, 1),
        _bar("overlong", row.overlong or None, 1),
        _bar("advantage", row.advantage, most, signed=True),
    ]
    return {
        "number": row.sample + 1,
        "trace_id": row.trace_id,
        "verdict": row.reason if malformed else answer,
        "kind": "bad" if malformed else "good" if row.accuracy > 0 else "warn",
        "bars": [bar for bar in bars if bar],
        "text": text,
        "tokens": row.tokens if row.tokens == row.tokens else None,
    }


def _bar(name: str, value: float | None, most: float, signed: bool = False) -> dict[str, Any] | None:
    """A number with a bar of a share of `most`; None where there is no number."""
    if value is None or value != value:
        return None
    kind = " signed" * signed + " minus" * (value < 0)
    return {"name": name, "share": min(1.0, abs(value) / most), "kind": kind, "number": number(value, 1, 2, signed)}
