"""What carried the calibrated label to the trace on screen: as a run of `deepintuit attribute` stored it, else its
calibrator is asked, in the line of the live traces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from deepintuit.reasoner.replay import Attributed, Failed
from deepintuit.reasoner.task import Clip
from deepintuit.trace import Reason
from deepintuit_analysis.index import clips
from deepintuit_app import trace_view
from deepintuit_app.context import AppContext
from deepintuit_app.html import esc
from deepintuit_app.trace_view import TraceView
from deepintuit_app.uploads import PREFIX

_TICK = 0.1  # seconds between two looks whether the calibrator is done


def handler(context: AppContext, clip_of: Callable[[AppContext, str | None], dict[str, Any] | None]) -> Callable:
    """What the button calls: the trace on screen and its clip → the trace drawn anew, and the view. A trace that is
    replaced meanwhile is left alone."""

    async def attribute(view: TraceView | None, clip_id, request: gr.Request) -> AsyncIterator[list[Any]]:
        clip = await asyncio.to_thread(clip_of, context, clip_id)
        if why := _obstacle(view, clip):
            gr.Info(why)
            return
        rows = await asyncio.to_thread(clips.attributed, context.look(), view.trace_id) if view.trace_id else []
        if rows:
            view.take(Attributed(tuple(rows)))
            yield [trace_view.trace(view), view]
            return
        running = await asyncio.to_thread(context.pages.begin, request.session_hash)
        try:
            view.asking = True
            yield [trace_view.trace(view), view]
            job = context.engine.start(running.stop, **_question(view, clip))
            with context.uploads.held(clip["clip_id"]):
                while not (running.stop.is_set() or job.over):
                    await asyncio.sleep(_TICK)
                    for event in job.take():
                        view.take(event) if isinstance(event, Attributed) else _warn(event)
            view.asking = False
            if not running.quiet:
                yield [trace_view.trace(view), view]
        finally:
            view.asking = False
            context.pages.end(request.session_hash, running)

    return attribute


def _question(view: TraceView, clip: dict[str, Any]) -> dict[str, Any]:
    """The fields of `live.Ask`."""
    sizes = (int(clip["width"] or 0), int(clip["height"] or 0))
    return {
        "clip": Clip(clip["clip_id"], str(clip["file"]), None, *sizes, None),
        "reasoner": view.calibrator,
        "calibrator": view.calibrator,
        "private": clip["clip_id"].startswith(PREFIX),
        "written": {"text": view.text, "truncated": view.done.reason == Reason.TRUNCATED, "thought": view.done.thought},
    }


def _warn(event: Any) -> None:
    if isinstance(event, Failed):
        gr.Warning(esc(event.sentence), duration=12)


def _obstacle(view: TraceView | None, clip: dict[str, Any] | None) -> str:
    """Why nothing can have carried a label, in a sentence; "" where it can be asked."""
    if clip is None or view is None or view.done is None or view.stopped or not view.over:
        return "A whole trace is asked about: choose a stored one, or let one be written to its end."
    if view.calibrator is None:
        return "No calibrator reads this trace, so there is no calibrated label that a sentence could carry."
    if view.calibrated is not None and view.calibrated.unlike:
        return "This clip is unlike those that the calibrator learnt from: there is no label that could be carried."
    return ""
