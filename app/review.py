"""Review: people judge traces one after the other, by keyboard; a lead sees how far they agree and decides.

The page is one element that `static/review.js` fills from the routes below: between two items nothing of Gradio is
asked, so the next one, fetched ahead, is there at once. Every route takes ids and answers with JSON; what it writes is
on disk before it answers. Who asks is what the login says, never what the request says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO, Annotated, Any

import gradio as gr
from fastapi import APIRouter, Body, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from deepintuit.errors import DeepIntuitError
from deepintuit.tables import FORMATS
from deepintuit_analysis.index import browse
from deepintuit_analysis.review import import_export, quality
from deepintuit_analysis.review.log import damage
from deepintuit_analysis.review.tasks import LONGEST_NOTE
from deepintuit_app import review_view, roles
from deepintuit_app.context import LOCAL, AppContext, apart
from deepintuit_app.html import render
from deepintuit_app.review_tasks import Room
from deepintuit_app.slices import sentences

Asked = Annotated[dict[str, Any], Body()]
_NOT_KEPT = {"Cache-Control": "private, no-store"}
_ENDINGS = import_export.FORMS | {"interface": ".xml"}
_MEDIA = FORMATS | {"label-studio": "application/json", "interface": "application/xml", "cvat": "application/zip"}
_MOST_HELD = 200
_LEAST = {"tasks": "viewer"} | dict.fromkeys(
    ("start", "next", "check", "again", "gather", "draft", "judge", "skip", "release", "undo"), "reviewer"
)
"""Route → the role that it takes; all others are for leads."""


def routes(context: AppContext) -> APIRouter:
    """`POST /review-api/<what>` with a JSON object. 400 with `error`, a sentence, for what cannot be."""
    room, router = Room(context), APIRouter()
    for name, answer in _answers(room).items():
        router.add_api_route(f"/review-api/{name}", _route(answer, _LEAST.get(name, "lead")), methods=["POST"])

    @router.get("/review-api/export")
    @apart(2, waiting=8)
    def export(request: Request, task: str, form: str) -> Response:
        try:
            roles.check(request.scope, "lead")
            content = room.export(task, request.scope.get("deepintuit_user") or LOCAL, form)
        except DeepIntuitError as error:
            raise HTTPException(400, str(error)) from error
        headers = {"Content-Disposition": f'attachment; filename="reviews{_ENDINGS[form]}"'}
        return Response(content, media_type=_MEDIA[form], headers=_NOT_KEPT | headers)

    @router.post("/review-api/import")
    async def bring_in(request: Request, task: str, file: str) -> JSONResponse:
        with tempfile.TemporaryFile() as content:  # on disk until it is whole
            async for piece in request.stream():
                content.write(piece)
            content.seek(0)
            return await take(request, task, file, content)

    @apart(1, waiting=8)
    def take(request: Request, task: str, file: str, content: IO[bytes]) -> JSONResponse:
        answer = _route(lambda _, reviewer: {"told": room.bring_in(task, reviewer, file, content.read())}, "lead")
        return answer(request, {})

    return router


def _route(answer: Callable[[dict[str, Any], str], Any], least: str) -> Callable[..., JSONResponse]:
    """The route of an answer, for who has the role `least`; to decide, or to look at how, one leads."""

    def asked(request: Request, body: Asked) -> JSONResponse:
        try:
            roles.check(request.scope, "lead" if body.get("decide") or body.get("view") == "decide" else least)
            return JSONResponse(answer(body, request.scope.get("deepintuit_user") or LOCAL), headers=_NOT_KEPT)
        except DeepIntuitError as error:
            return JSONResponse({"error": " ".join(sentences(error))}, 400, _NOT_KEPT)
        except UnicodeError:
            return JSONResponse({"error": "A text holds half of a character (a lone surrogate)."}, 400, _NOT_KEPT)

    return asked


def _answers(room: Room) -> dict[str, Callable[[dict[str, Any], str], Any]]:
    """What is asked → a function of the request and of who asks."""

    def task(body: dict[str, Any]) -> str:
        return str(body.get("task") or "")

    def item(body: dict[str, Any]) -> tuple[str, str]:
        return task(body), str(body.get("item") or "")

    def seat(body: dict[str, Any]) -> str:
        return str(body.get("seat") or "")[:64]

    def holding(body: dict[str, Any]) -> list[str]:
        ids = body.get("holding")
        return [str(trace_id) for trace_id in ids[:_MOST_HELD]] if isinstance(ids, list) else []

    def said(body: dict[str, Any]) -> dict[str, Any]:
        return body["answers"] if isinstance(body.get("answers"), dict) else {}

    def event_id(body: dict[str, Any]) -> str | None:
        return str(body["id"])[:64] if body.get("id") else None

    def progress(name: str, reviewer: str) -> dict[str, Any]:
        """What leads see of a task, and what others see, of whom gold is hidden."""
        whole = room.reviews.progress(name)
        if reviewer in room.reviews.task(name).leads:
            return whole
        counts = room.reviews.progress_for(name, reviewer)
        number = counts["done"] if whole["done"] < whole["asked"] else counts["asked"]
        return {**whole, **counts, "done": number, "items": len(room.reviews.task(name).items)}

    def tasks(body: dict[str, Any], reviewer: str) -> dict[str, Any]:
        reviews, workbench = room.reviews, room.context.look()
        names = quality.names(reviews)
        closed = reviews.log.look(lambda state: set(state.closed))
        listed = [(reviews.task(name), progress(name, reviewer)) for name in reversed(names)]
        query = str(body.get("query") or "")[:2000]
        options = browse.choices(workbench)
        slices, datasets = [entry.name for entry in workbench.slices()], [name for name, _ in options["dataset"]]
        slice_name = str(body.get("slice") or "")[:300]
        opened = not names or bool(query or slice_name)
        form = review_view.form_html(slices, options["run"], datasets, reviewer, opened, query, slice_name)
        return {"html": review_view.tasks_html(listed, closed, reviewer, damage(reviews.log.damaged)) + form}

    def start(body: dict[str, Any], reviewer: str) -> dict[str, Any]:
        decide = body.get("view") == "decide"
        opened_task = room.lead(task(body), reviewer) if decide else room.reviews.task(task(body))
        html = review_view.desk_html(opened_task, decide, room.label_set(opened_task).definitions)
        return {"html": html, "questions": list(opened_task.questions), "who": reviewer}

    def take(body: dict[str, Any], reviewer: str) -> dict[str, Any]:
        if body.get("decide"):
            return room.decide_next(task(body), reviewer, holding(body))
        return room.next(task(body), reviewer, seat(body), holding(body), str(body.get("first") or ""))

    def saved(event: Any) -> dict[str, Any]:
        return {"saved": event.time}

    def judge(body: dict[str, Any], reviewer: str) -> dict[str, Any]:
        event = room.reviews.judge(task(body), reviewer, item(body)[1], said(body), event_id(body))
        standing = room.reviews.standing(*item(body), reviewer)
        words = review_view.STANDING.get(standing, "")
        gold = room.told(*item(body)[:1], reviewer, item(body)[1])
        return {**saved(event), "told": words, "gold": gold, "progress": room.progress(task(body), reviewer)}

    return {
        "tasks": tasks, "start": start, "next": take,
        "check": lambda body, _: room.check(*item(body), str(body.get("text") or "")[:LONGEST_NOTE]),
        "lead": lambda body, reviewer: {"html": room.lead_html(task(body), reviewer)},
        "count": lambda body, reviewer: {"count": room.count(body)},
        "open": lambda body, reviewer: {"task": room.open(body, reviewer).name},
        "again": lambda body, reviewer: room.again(*item(body)[:1], reviewer, item(body)[1]),
        "gather": lambda body, reviewer: {"taken": room.gather(task(body), reviewer, seat(body))},
        "draft": lambda body, reviewer: saved(room.reviews.draft(task(body), reviewer, item(body)[1], said(body))),
        "judge": judge,
        "decide": lambda body, reviewer: {
            **saved(room.reviews.adjudicate(task(body), reviewer, item(body)[1], said(body), event_id(body))),
            "progress": room.undecided(task(body))},
        "skip": lambda body, reviewer: saved(
            room.reviews.skip(task(body), reviewer, item(body)[1], str(body.get("reason") or ""), event_id(body))),
        "release": lambda body, reviewer: saved(room.reviews.release(task(body), reviewer, item(body)[1])),
        "undo": lambda body, reviewer: room.undo(task(body), reviewer, seat(body)),
        "close": lambda body, reviewer: saved(room.reviews.close(task(body), reviewer, bool(body.get("closed")))),
    }  # fmt: skip


def page(context: AppContext) -> None:
    """One element; the script does the rest."""
    gr.HTML(render("review/page.html"), elem_id="review-page", padding=False)
