"""GRPO rollouts as HTML: the groups of an update, and the traces of one group with their rewards. No Gradio.

Every word that a model or a file wrote goes through `esc`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from deepintuit_analysis.numbers import number
from deepintuit_app.html import badge, empty, esc, link, tag


def groups(rows: pd.DataFrame, chosen: str, step: int) -> str:
    """The groups of an update as one button each: clip, label, a mark a trace."""
    if rows.empty:
        return empty("No rollout is on file for this update.", "Choose a GRPO run above, or another update.")
    shown, teaching, total = [], 0, 0
    for clip_id, group in rows.groupby("clip_id", sort=True):
        spread = group["reward"].max() - group["reward"].min()
        teaches = bool(spread > 1e-9)
        total, teaching = total + 1, teaching + teaches
        right = (group["accuracy"] > 0).sum()
        marks = "".join(_mark(row) for row in group.itertuples())
        label = group["true_label"].iloc[0]
        inner = tag("span", esc(label if isinstance(label, str) else clip_id), class_="label") + tag(
            "span", marks, class_="marks", aria_hidden="true"
        )
        inner += tag("small", f"reward {number(group['reward'].mean(), 1, 2)}" + ("" if teaches else ", all alike"))
        told = f"{_clip_name(group)}: {right} of {len(group)} right, mean reward {number(group['reward'].mean(), 1, 2)}"
        current = {"aria_current": "true"} if clip_id == chosen else {}
        shown.append(
            tag(
                "button",
                inner,
                type="button",
                class_="group" + ("" if teaches else " alike"),
                title=told,
                data_set="runs-clip",
                data_value=clip_id,
                **current,
            )
        )
    said = f"Update {step}: {total} groups, {teaching} of them teach (their traces earn different rewards)."
    legend = "✓ right and well-formed, ✗ wrong, ∅ malformed."
    return tag(
        "section", tag("p", esc(f"{said} {legend}")) + tag("div", "".join(shown), class_="groups"), class_="runs"
    )


def outside(name: str, step: int) -> str:
    """Where a slice has no trace of an update."""
    none = f"The slice {name!r} has no trace of update {step} of this run."
    return empty(none, "Choose another update or run, or take the slice away.")


def _mark(row: Any) -> str:
    kind, sign = (
        ("none", "∅")
        if row.format == 0 or isinstance(row.reason, str)
        else ("good", "✓")
        if row.accuracy > 0
        else ("bad", "✗")
    )
    return tag("i", sign, class_=kind)


def _clip_name(group: pd.DataFrame) -> str:
    path = group["path"].iloc[0]
    return path.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(path, str) else str(group["clip_id"].iloc[0])


def group(rows: pd.DataFrame, texts: Mapping[str, str]) -> str:
    """The traces of one group, each with its rewards and its advantage as bars."""
    if rows.empty:
        return ""
    clip_id, label = rows["clip_id"].iloc[0], rows["true_label"].iloc[0]
    head = tag("h3", esc(_clip_name(rows))) + tag(
        "p",
        f"True label {badge(label if isinstance(label, str) else 'unknown')} · "
        + link("Watch the clip", "watch", clip=clip_id),
    )
    most = max(1.0, float(rows["advantage"].abs().max()) if rows["advantage"].notna().any() else 1.0)
    top = max(1.0, float(rows["reward"].abs().max()) if rows["reward"].notna().any() else 1.0)
    return tag(
        "section",
        head
        + tag(
            "div",
            "".join(_rollout(row, texts.get(row.trace_id, ""), most, top) for row in rows.itertuples()),
            class_="rollouts",
        ),
        class_="runs",
        aria_label="Traces of this group",
    )


def _rollout(row: Any, text: str, most: float, top: float) -> str:
    said = row.provisional if isinstance(row.provisional, str) else "no answer"
    verdict = (
        badge(row.reason, "bad") if isinstance(row.reason, str) else badge(said, "good" if row.accuracy > 0 else "warn")
    )
    bars = _bar("reward", row.reward, top) + _bar("accuracy", row.accuracy, 1) + _bar("format", row.format, 1)
    bars += _bar("overlong", row.overlong, 1) if row.overlong == row.overlong and row.overlong else ""
    bars += _bar("advantage", row.advantage, most, signed=True)
    tokens = f"{row.tokens:.0f} tokens · " if row.tokens == row.tokens else ""
    stored = link("in Traces", "traces", trace=row.trace_id)
    replay = link("replay in Watch", "watch", clip=row.clip_id, trace=row.trace_id)
    head = tag("h4", f"Trace {row.sample + 1} {verdict}") + tag("div", bars, class_="scores")
    return tag("article", head + tag("pre", esc(text)) + tag("p", f"{tokens}{stored} · {replay}", class_="soft"))


def _bar(name: str, value: float, most: float, signed: bool = False) -> str:
    """A number with a bar: from the left, or, signed, from the middle to either side."""
    if value is None or value != value:
        return ""
    share = min(1.0, abs(value) / most)
    kind = "signed minus" if signed and value < 0 else "signed" if signed else "minus" if value < 0 else ""
    drawn = tag("span", tag("i", "", style=f"--share:{share:.3f}"), class_=f"track {kind}".strip(), aria_hidden="true")
    return tag("span", f"{esc(name)} {drawn} {tag('b', number(value, 1, 2, signed))}", class_="score")
