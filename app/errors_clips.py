"""The drawer of the Errors page: the clips behind a cell, and one of them with its player, distribution and trace.

Pure functions of an `analysis.Analysis`; `behind` lists the kinds of cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from deepintuit.labels import NONE_LABEL
from deepintuit_analysis.report.steps import false_step
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


def clip_list(analysis: Analysis, title: str, frame: pd.DataFrame, cell: str = "") -> str:
    """The clips behind a cell, a row each; a row's button plays it. `cell` names it as `behind` does."""
    other_labels = None if analysis.other is None else analysis.other.frame["predicted"].reindex(frame.index)
    raw = analysis.raw is not None or (frame["provisional"] != frame["predicted"]).any()
    heads = ["Clip", "True", *(["Provisional"] if raw else []), analysis.heading, "Confidence"]
    heads += [analysis.other_name] if other_labels is not None else []
    files = analysis.facts["file"].reindex(frame.index)
    rows = []
    for clip_id, row in frame.head(MOST_CLIPS).iterrows():
        name = files[clip_id] if isinstance(files[clip_id], str) else clip_id
        rows.append(
            {
                "clip_id": clip_id,
                "name": name,
                **row[["true_label", "provisional", "predicted", "right"]],
                "confidence": None if np.isnan(row["confidence"]) else row["confidence"],
                "other": None if other_labels is None else other_labels[clip_id],
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
        url=_their_traces(analysis, frame) if sums else "",
        raw=raw,
        compared=other_labels is not None,
    )


def _their_traces(analysis: Analysis, frame: pd.DataFrame) -> str:
    """The address of the traces of a confusion cell, where they can be sorted, searched and exported; "" where the page
    of traces has no filter for this way of answering, or no trace is behind it."""
    column = {"raw": "provisional", "label_likelihood": "calibrated"}.get(analysis.choice.method)
    if column is None or frame.empty or frame["trace_id"].isna().any():
        return ""
    query = {"run": analysis.run_id, "split": analysis.choice.split, "slice": analysis.choice.slice}
    for name, labels in (("true", frame["true_label"]), (column, frame["predicted"])):
        if labels.nunique() == 1:  # a row or column of sums has several on one side
            query[name] = labels.iloc[0]
    return address("traces", **query)


def clip_detail(analysis: Analysis, clip_id: str, trace: pd.Series | None) -> str:
    """The player with what was answered, the distribution and the trace."""
    row = analysis.mine.frame.loc[clip_id]
    facts = analysis.facts.loc[clip_id] if clip_id in analysis.facts.index else pd.Series(dtype=object)
    name = facts.get("file") if isinstance(facts.get("file"), str) else clip_id
    place = analysis.mine.frame.index.get_loc(clip_id)
    fields: dict[str, Any] = {"trace": "", "trace_id": "", "malformed": "", "detail": ""}
    if trace is not None:
        times = None if trace["frame_times"] is None else [float(at) for at in trace["frame_times"]]
        seconds = float(facts["seconds"]) if "seconds" in facts and pd.notna(facts["seconds"]) else None
        step = false_step(analysis.steps, trace["trace_id"])
        fields["trace"] = prose.trace_html(trace["text"], analysis.grammar, times, seconds, mistake=step)
        fields["trace_id"] = trace["trace_id"]
        if isinstance(trace["reason"], str):
            fields |= {"malformed": view.reason_words(trace["reason"]), "detail": trace["detail"]}
    probs_K = None if analysis.mine.probs_C_K is None else analysis.mine.probs_C_K[place]
    order = [] if probs_K is None else np.argsort(-probs_K, kind="stable")
    return render(
        "errors/clip.html",
        url=clip_url(clip_id),
        name=name,
        clip_id=clip_id,
        **row[["true_label", "predicted", "right"]],
        provisional=None if analysis.raw is None else row["provisional"],
        system=analysis.name,
        shares=[(analysis.labels[k], float(probs_K[k])) for k in order],
        **fields,
    )


def behind(analysis: Analysis, cell: str, threshold: float, by: str) -> tuple[str, pd.DataFrame] | None:
    """The clips that a cell names, surest answers first, and what they have in common. None for no such cell.

    confusion.i.j (true label i answered as j, K is "no answer") · true.i · answered.j · turned.provisional.rw (right by
    the provisional label, wrong now; also `other`, and any of r and w) · bin.k (confidence) · unsure (below the
    threshold) · slice.k (of the column `by`) · reason.<reason> · clip.<id> · follows.yes, follows.no
    · why.<kind> (the first false step of its wrong trace) · missed.k, alarm.k (true k not
    answered so, and the reverse; missed.k.0.25, alarm.k.0.25: called k from that probability on)
    """
    kind, *places = cell.replace("turned.raw.", "turned.provisional.").split(".")  # as older addresses have it
    frame, labels = analysis.mine.frame, (*analysis.labels, NONE_LABEL)
    mask: pd.Series | np.ndarray | None = None
    title = ""
    try:
        if kind == "confusion" and len(places) == 2:
            true, answered = (labels[int(place)] for place in places)
            mask = (frame["true_label"] == true) & (frame["predicted"] == answered)
            title = f"True {true}, {view.answer_words(answered)}"
        elif kind in {"true", "answered"} and len(places) == 1:
            label = labels[int(places[0])]
            mask = frame["true_label" if kind == "true" else "predicted"] == label
            title = f"True {label}" if kind == "true" else view.answer_words(label).capitalize()
        elif kind in {"missed", "alarm"} and places:
            label, least = labels[int(places[0])], ".".join(places[1:])
            true = (frame["true_label"] == label).to_numpy()
            called = (frame["predicted"] == label).to_numpy()
            if least:
                called = analysis.mine.probs_C_K[:, analysis.labels.index(label)] >= float(least)
            mask = true & ~called if kind == "missed" else called & ~true
            title = f"True {label}, missed" if kind == "missed" else f"False alarms of {label}"
            title += (
                f" with a probability {'below' if kind == 'missed' else 'from'} {least}{' on' * (kind == 'alarm')}"
                * bool(least)
            )
        elif kind == "turned" and len(places) == 2 and (compared := analysis.against(places[0])) is not None:
            was, now = (mark == "r" for mark in places[1])
            before, after = (side.frame["right"] for side in (compared.before, compared.after))
            mask = ((before == was) & (after == now)).reindex(frame.index, fill_value=False)
            names = ("wrong", "right")
            former = "the provisional label" if places[0] == "provisional" else analysis.other_name
            title = f"{names[was].capitalize()} by {former}"
            title += f", {names[now]} by {analysis.name}"
        elif kind == "bin" and len(places) == 1 and analysis.mine.probs_C_K is not None:
            bins = analysis.mine.evaluation.bins
            k = int(places[0])
            mask = np.searchsorted(bins.edges[1:-1], frame["confidence"]) == k
            title = f"Confidence {bins.edges[k]:.2f} to {bins.edges[k + 1]:.2f}"
        elif kind == "unsure" and analysis.mine.probs_C_K is not None:
            mask = frame["confidence"] < threshold
            title = f"Less sure than {threshold:.3g}: abstained"
        elif kind == "slice" and len(places) == 1:
            part = view.parts(analysis, by)[int(places[0])]
            mask, title = part.inside_C, f"{view.column_name(by)}: {part.name}"
        elif kind == "reason":
            reason = cell.removeprefix("reason.")
            mask = analysis.facts["reason"].reindex(frame.index) == reason
            title = f"Traces that are {view.reason_words(reason)}"
        elif kind == "clip":
            mask, title = frame.index == cell.removeprefix("clip."), "One clip"
        elif kind == "follows" and len(places) == 1:
            mask = analysis.facts["follows"].reindex(frame.index) == places[0]
            title = f"The reasoning {view.FOLLOWS[places[0]]}"
        elif kind == "why" and len(places) == 1:
            [row] = [row for row in analysis.why if row.kind == places[0]]
            mask = pd.Series(row.inside_C, analysis.provisional.frame.index).reindex(frame.index, fill_value=False)
            title = f"Wrong by the provisional label: {row.words[0].lower()}{row.words[1:]}"
    except (ValueError, IndexError, KeyError, TypeError):  # an address written by hand
        return None
    return None if mask is None else (title, frame[np.asarray(mask, bool)].sort_values("confidence", ascending=False))
