"""The drawer of the Errors page: the clips behind a cell, and one of them with its player, distribution and trace.

Pure functions of an `analysis.Analysis`; `behind` lists the kinds of cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from deepintuit.labels import NONE_LABEL
from deepintuit_app import errors_view as view
from deepintuit_app import prose
from deepintuit_app.analysis import Analysis
from deepintuit_app.html import address, render
from deepintuit_app.media import clip_url

MOST_CLIPS = 2000
FOCUS = (
    "() => setTimeout(() => document.querySelector('#errors-cell :is(textarea, input)')?.value "
    "&& document.querySelector('#errors-drawer h2')?.focus(), 80)"
)
"""To the drawer's heading once it is drawn; not when it was closed in between, for focus is back at its cell then."""


def no_such_cell() -> str:
    return render("errors/drawer.html", title="No such clips", rows=None)


def clip_list(found: Analysis, title: str, frame: pd.DataFrame, cell: str = "") -> str:
    """The clips behind a cell, a row each; a row's button plays it. `cell` names it as `behind` does."""
    other = None if found.other is None else found.other.frame["predicted"].reindex(frame.index)
    raw = found.raw is not None or (frame["provisional"] != frame["predicted"]).any()
    heads = ["Clip", "True", *(["Provisional"] if raw else []), found.heading, "Confidence"]
    heads += [found.other_name] if other is not None else []
    files = found.facts["file"].reindex(frame.index)
    rows = []
    for clip_id, row in frame.head(MOST_CLIPS).iterrows():
        name = files[clip_id] if isinstance(files[clip_id], str) else clip_id
        rows.append(
            {
                "clip_id": clip_id,
                "name": name,
                **row[["true_label", "provisional", "predicted", "right"]],
                "confidence": None if np.isnan(row["confidence"]) else row["confidence"],
                "other": None if other is None else other[clip_id],
            }
        )
    n = len(frame)
    cut = f", of which the first {MOST_CLIPS} are listed" if n > MOST_CLIPS else ""
    count = f"{n} {'clip' if n == 1 else 'clips'}{cut}, surest answers first. Choose one to watch it."
    sums = cell.split(".")[0] in ("confusion", "true", "answered")
    return render(
        "errors/drawer.html",
        title=title,
        heads=heads,
        rows=rows,
        count=count,
        url=_their_traces(found, frame) if sums else "",
        raw=raw,
        compared=other is not None,
    )


def _their_traces(found: Analysis, frame: pd.DataFrame) -> str:
    """The address of the traces of a confusion cell, where they can be sorted, searched and exported; "" where the page
    of traces has no filter for this way of answering, or no trace is behind it."""
    column = {"raw": "provisional", "label_likelihood": "calibrated"}.get(found.choice.method)
    if column is None or frame.empty or frame["trace_id"].isna().any():
        return ""
    query = {"run": found.run_id, "split": found.choice.split, "slice": found.choice.slice}
    for name, labels in (("true", frame["true_label"]), (column, frame["predicted"])):
        if labels.nunique() == 1:  # a row or column of sums has several on one side
            query[name] = labels.iloc[0]
    return address("traces", **query)


def clip_detail(found: Analysis, clip_id: str, trace: pd.Series | None) -> str:
    """The player with what was answered, the distribution and the trace."""
    row = found.mine.frame.loc[clip_id]
    known = found.facts.loc[clip_id] if clip_id in found.facts.index else pd.Series(dtype=object)
    name = known.get("file") if isinstance(known.get("file"), str) else clip_id
    place = found.mine.frame.index.get_loc(clip_id)
    written: dict[str, Any] = {"trace": "", "trace_id": "", "malformed": "", "detail": ""}
    if trace is not None:
        times = None if trace["frame_times"] is None else [float(at) for at in trace["frame_times"]]
        seconds = float(known["seconds"]) if "seconds" in known and pd.notna(known["seconds"]) else None
        written["trace"] = prose.trace_html(trace["text"], found.grammar, times, seconds)
        written["trace_id"] = trace["trace_id"]
        if isinstance(trace["reason"], str):
            written |= {"malformed": view.reason_words(trace["reason"]), "detail": trace["detail"]}
    probs_K = None if found.mine.probs_C_K is None else found.mine.probs_C_K[place]
    order = [] if probs_K is None else np.argsort(-probs_K, kind="stable")
    return render(
        "errors/clip.html",
        url=clip_url(clip_id),
        name=name,
        clip_id=clip_id,
        **row[["true_label", "predicted", "right"]],
        provisional=None if found.raw is None else row["provisional"],
        system=found.name,
        shares=[(found.labels[k], float(probs_K[k])) for k in order],
        **written,
    )


def behind(found: Analysis, cell: str, threshold: float, by: str) -> tuple[str, pd.DataFrame] | None:
    """The clips that a cell names, surest answers first, and what they have in common. None for no such cell.

    confusion.i.j (true label i answered as j, K is "no answer") · true.i · answered.j · turned.raw.rw (right by the
    provisional label, wrong now; also `other`, and any of r and w) · bin.k (confidence) · unsure (below the threshold)
    · slice.k (of the column `by`) · reason.<reason>
    · follows.yes, follows.no · missed.k, alarm.k (true k not answered so, and the reverse; missed.k.0.25, alarm.k.0.25:
    called k from that probability on)
    """
    kind, *places = cell.split(".")
    frame, labels = found.mine.frame, (*found.labels, NONE_LABEL)
    chosen: pd.Series | np.ndarray | None = None
    title = ""
    try:
        if kind == "confusion" and len(places) == 2:
            true, answered = (labels[int(place)] for place in places)
            chosen = (frame["true_label"] == true) & (frame["predicted"] == answered)
            title = f"True {true}, {view.answer_words(answered)}"
        elif kind in {"true", "answered"} and len(places) == 1:
            label = labels[int(places[0])]
            chosen = frame["true_label" if kind == "true" else "predicted"] == label
            title = f"True {label}" if kind == "true" else view.answer_words(label).capitalize()
        elif kind in {"missed", "alarm"} and places:
            label, least = labels[int(places[0])], ".".join(places[1:])
            true = (frame["true_label"] == label).to_numpy()
            called = (frame["predicted"] == label).to_numpy()
            if least:
                called = found.mine.probs_C_K[:, found.labels.index(label)] >= float(least)
            chosen = true & ~called if kind == "missed" else called & ~true
            title = f"True {label}, missed" if kind == "missed" else f"False alarms of {label}"
            title += (
                f" with a probability {'below' if kind == 'missed' else 'from'} {least}{' on' * (kind == 'alarm')}"
                * bool(least)
            )
        elif kind == "turned" and len(places) == 2 and (compared := found.against(places[0])) is not None:
            was, now = (mark == "r" for mark in places[1])
            before, after = (one.frame["right"] for one in (compared.before, compared.after))
            chosen = ((before == was) & (after == now)).reindex(frame.index, fill_value=False)
            names = ("wrong", "right")
            title = (
                f"{names[was].capitalize()} by {'the provisional label' if places[0] == 'raw' else found.other_name}"
            )
            title += f", {names[now]} by {found.name}"
        elif kind == "bin" and len(places) == 1 and found.mine.probs_C_K is not None:
            bins = found.mine.evaluation.bins
            k = int(places[0])
            chosen = np.searchsorted(bins.edges[1:-1], frame["confidence"]) == k
            title = f"Confidence {bins.edges[k]:.2f} to {bins.edges[k + 1]:.2f}"
        elif kind == "unsure" and found.mine.probs_C_K is not None:
            chosen = frame["confidence"] < threshold
            title = f"Less sure than {threshold:.3g}: abstained"
        elif kind == "slice" and len(places) == 1:
            part = view.parts(found, by)[int(places[0])]
            chosen, title = part.inside_C, f"{view.column_name(by)}: {part.name}"
        elif kind == "reason":
            reason = cell.removeprefix("reason.")
            chosen = found.facts["reason"].reindex(frame.index) == reason
            title = f"Traces that are {view.reason_words(reason)}"
        elif kind == "follows" and len(places) == 1:
            chosen = found.facts["follows"].reindex(frame.index) == places[0]
            title = f"The reasoning {view.FOLLOWS[places[0]]}"
    except (ValueError, IndexError, KeyError, TypeError):  # an address written by hand
        return None
    return (
        None if chosen is None else (title, frame[np.asarray(chosen, bool)].sort_values("confidence", ascending=False))
    )
