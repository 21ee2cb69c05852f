"""The nearest clips beside a clip, and the map of clips: what Watch and Errors show of stored embeddings.

gr.HTML(alike.nearest_html(context, clip_id, dataset, (run_id, system, method)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from deepintuit.embeddings import places_of
from deepintuit.errors import DeepIntuitError
from deepintuit_analysis.index import alike, clips
from deepintuit_analysis.report.clip_map import about, clip_map
from deepintuit_app import media, slices
from deepintuit_app.analysis import Analysis
from deepintuit_app.context import AppContext
from deepintuit_app.html import note, render
from deepintuit_app.sql_view import saved_html
from deepintuit_app.uploads import PREFIX

MOST_SHOWN = 24
COLOURS = {"label": "true label", "right": "right or wrong", "turned": "what calibration changed"}
"""What the points of the map are coloured by."""
_TURNED = {(True, True): "right before and after", (False, True): "fixed", (True, False): "broken"}
NOTHING = {
    "instead": "No embeddings are stored.",
    "todo": "They say which clips look alike. Make them once, and again when clips were added:",
    "command": "deepintuit embed",
}


def nearest_html(
    context: AppContext, clip_id: str, dataset: str, system: tuple[str, str, str] | None = None, picks: bool = False
) -> str:
    """The clips that look most like this one. `system`: whose answers are told (run, system, method); `picks`: a click
    picks the clip on the page, and does not lead to Watch."""
    about: dict[str, Any] = {"title": "Nearest clips", "words": "", "picks": picks, "clips": []}
    if clip_id.startswith(PREFIX):
        return render(
            "alike.html", **about, instead="An upload has no nearest clips.", todo="It is not embedded.", command=""
        )
    neighbours = alike.nearest(context.workbench, clip_id, dataset, system)
    if neighbours is None:
        return render("alike.html", **about | NOTHING)
    words = f"By the {neighbours.viewer}; the number is the cosine of their features."
    words += (
        f" Answers are those of {system[1]}." if any(clip["right"] is not None for clip in neighbours.clips) else ""
    )
    return render("alike.html", **about | {"words": words, "clips": _cards(neighbours.clips)}, instead="")


def handler(context: AppContext, clip_of: Callable[[AppContext, str], Any]) -> Callable[[str, str], str]:
    """On Watch: the nearest clips of the picked one, and what the system of the opened trace answered to them."""

    def beside(clip_id: str, trace_id: str) -> str:
        if (clip := clip_of(context, clip_id)) is None:
            return ""
        rows = clips.predictions_on(context.workbench, trace_id) if isinstance(trace_id, str) and trace_id else []
        system = next(((row["run_id"], row["system"], row["method"]) for row in rows), None)
        return nearest_html(context, clip_id, clip.get("dataset") or "", system, picks=True)

    return beside


def _cards(clips: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**clip, "url": media.poster_url(clip["clip_id"])} for clip in clips[:MOST_SHOWN]]


def map_of(context: AppContext, analysis: Analysis, colour: str) -> tuple[Any, str]:
    """The plot of the analysis' clips, or none, and the words below it."""
    frame = analysis.mine.frame
    places = places_of(context.workbench.path, frame.index.tolist())
    if places is None:
        about_none = {"title": "", "words": "", "clips": [], "picks": False}
        return gr.update(visible=False), render("alike.html", **about_none | NOTHING)
    groups, order = frame["true_label"], analysis.labels
    if colour == "right":
        groups, order = frame["right"].map({True: "right", False: "wrong"}), ("right", "wrong")
    elif colour == "turned" and analysis.raw is not None:
        before = analysis.raw.frame["right"].reindex(frame.index)
        turned = [_TURNED.get(pair, "wrong before and after") for pair in zip(before, frame["right"])]
        groups, order = dict(zip(frame.index, turned)), (*_TURNED.values(), "wrong before and after")
    count = sum(clip_id in places.place_of for clip_id in frame.index)
    plot = clip_map(places, dict(groups), f"Where {count:,} clips lie, by {COLOURS.get(colour, colour)}", order)
    return gr.update(value=plot, visible=True), note(about(places, count, len(frame)))


def chosen_html(analysis: Analysis, selection: str) -> str:
    """The clips drawn around, wrong ones first, and how often they are right. `selection`: their ids, with commas."""
    frame = analysis.mine.frame
    inside_C = frame.index.isin(selection.split(","))
    if not inside_C.any():
        return ""
    inner, outer = frame[inside_C], frame[~inside_C]
    words = f"{100 * inner['right'].mean():.1f} % of them are answered rightly"
    words += f", of the others {100 * outer['right'].mean():.1f} %." if len(outer) else "."
    files, rows = analysis.facts["file"].reindex(inner.index), inner.sort_values(["right", "confidence"])
    words += f" {MOST_SHOWN} of them:" if len(inner) > MOST_SHOWN else ""
    clips = [
        {
            "clip_id": clip_id,
            "name": Path(files[clip_id]).stem if isinstance(files[clip_id], str) else clip_id,
            "split": analysis.choice.split,
            "label": row.true_label,
            "predicted": row.predicted,
            "right": bool(row.right),
        }
        for clip_id, row in zip(rows.index[:MOST_SHOWN], rows.itertuples())
    ]
    title = f"{len(inner):,} clips chosen"
    return render("alike.html", title=title, words=words, clips=_cards(clips), picks=False, instead="")


def saved(context: AppContext, selection: str, name: str, request: gr.Request) -> tuple[str, Any]:
    """Keeps the traces of the clips drawn around as a slice: what came of it, and the slices that can be chosen."""
    try:
        ids = [clip_id for clip_id in selection.split(",") if clip_id]
        entry = context.workbench.save_slice(str(name or ""), alike.slice_of(ids), by=context.user(request))
    except DeepIntuitError as error:
        return note(error, role="status"), gr.skip()
    return saved_html(entry), gr.Dropdown(choices=slices.offered(context.workbench))
