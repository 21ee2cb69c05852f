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
from deepintuit_app import review_view
from deepintuit_app.context import LOCAL, AppContext, apart
from deepintuit_app.html import render
from deepintuit_app.review_tasks import Room
from deepintuit_app.slices import sentences

Asked = Annotated[dict[str, Any], Body()]
_NOT_KEPT = {"Cache-Control": "private, no-store"}
_ENDINGS = import_export.FORMS | {"interface": ".xml"}
_MEDIA = FORMATS | {"label-studio": "application/json", "interface": "application/xml"}
_MOST_HELD = 200


def routes(context: AppContext) -> APIRouter:
    """`POST /review-api/<what>` with a JSON object. 400 with `error`, a sentence, for what cannot be."""
    room, router = Room(context), APIRouter()
    for name, answer in _answers(room).items():
        router.add_api_route(f"/review-api/{name}", _route(answer), methods=["POST"])

    @router.get("/review-api/export")
    @apart(2, waiting=8)
    def export(request: Request, task: str, form: str) -> Response:
        try:
            content = room.export(task, request.scope.get("deepintuit_user") or LOCAL, form)
        except DeepIntuitError as error:
            raise HTTPException(400, str(error)) from error
        named = {"Content-Disposition": f'attachment; filename="reviews{_ENDINGS[form]}"'}
        return Response(content, media_type=_MEDIA[form], headers=_NOT_KEPT | named)

    @router.post("/review-api/import")
    async def bring_in(request: Request, task: str, file: str) -> JSONResponse:
        with tempfile.TemporaryFile() as content:  # on disk until it is whole
            async for piece in request.stream():
                content.write(piece)
            content.seek(0)
            return await take(request, task, file, content)

    @apart(1, waiting=8)
    def take(request: Request, task: str, file: str, content: IO[bytes]) -> JSONResponse:
        return _route(lambda _, who: {"told": room.bring_in(task, who, file, content.read())})(request, {})

    return router


def _route(answer: Callable[[dict[str, Any], str], Any]) -> Callable[..., JSONResponse]:
    def asked(request: Request, given: Asked) -> JSONResponse:
        try:
            return JSONResponse(answer(given, request.scope.get("deepintuit_user") or LOCAL), headers=_NOT_KEPT)
        except DeepIntuitError as error:
            return JSONResponse({"error": " ".join(sentences(error))}, 400, _NOT_KEPT)
        except UnicodeError:
            return JSONResponse({"error": "A text holds half of a character (a lone surrogate)."}, 400, _NOT_KEPT)

    return asked


def _answers(room: Room) -> dict[str, Callable[[dict[str, Any], str], Any]]:
    """What is asked → a function of the request and of who asks."""

    def task(given: dict[str, Any]) -> str:
        return str(given.get("task") or "")

    def item(given: dict[str, Any]) -> tuple[str, str]:
        return task(given), str(given.get("item") or "")

    def seat(given: dict[str, Any]) -> str:
        return str(given.get("seat") or "")[:64]

    def holding(given: dict[str, Any]) -> list[str]:
        held = given.get("holding")
        return [str(one) for one in held[:_MOST_HELD]] if isinstance(held, list) else []

    def said(given: dict[str, Any]) -> dict[str, Any]:
        return given["answers"] if isinstance(given.get("answers"), dict) else {}

    def event_id(given: dict[str, Any]) -> str | None:
        return str(given["id"])[:64] if given.get("id") else None

    def tasks(given: dict[str, Any], who: str) -> dict[str, Any]:
        reviews, workbench = room.reviews, room.context.look()
        names = quality.names(reviews)
        closed = reviews.log.look(lambda state: set(state.closed))
        listed = [(reviews.task(name), reviews.progress(name)) for name in reversed(names)]
        query = str(given.get("query") or "")[:2000]
        known = browse.choices(workbench)
        slices, datasets = [one.name for one in workbench.slices()], [name for name, _ in known["dataset"]]
        chosen = str(given.get("slice") or "")[:300]
        opened = not names or bool(query or chosen)
        form = review_view.form_html(slices, known["run"], datasets, who, opened, query, chosen)
        return {"html": review_view.tasks_html(listed, closed, who, damage(reviews.log.damaged)) + form}

    def start(given: dict[str, Any], who: str) -> dict[str, Any]:
        decide = given.get("view") == "decide"
        found = room.lead(task(given), who) if decide else room.reviews.task(task(given))
        html = review_view.desk_html(found, decide, room.label_set(found).definitions)
        return {"html": html, "questions": list(found.questions), "who": who}

    def take(given: dict[str, Any], who: str) -> dict[str, Any]:
        if given.get("decide"):
            return room.decide_next(task(given), who, holding(given))
        return room.next(task(given), who, seat(given), holding(given), str(given.get("first") or ""))

    def saved(event: Any) -> dict[str, Any]:
        return {"saved": event.time}

    def judge(given: dict[str, Any], who: str) -> dict[str, Any]:
        event = room.reviews.judge(task(given), who, item(given)[1], said(given), event_id(given))
        standing = room.reviews.standing(*item(given), who)
        told = review_view.STANDING.get(standing, "")
        return {**saved(event), "told": told, "progress": room.progress(task(given), who)}

    return {
        "tasks": tasks, "start": start, "next": take,
        "check": lambda given, _: room.check(*item(given), str(given.get("text") or "")[:LONGEST_NOTE]),
        "lead": lambda given, who: {"html": room.lead_html(task(given), who)},
        "count": lambda given, who: {"count": room.count(given)},
        "open": lambda given, who: {"task": room.open(given, who).name},
        "again": lambda given, who: room.again(*item(given)[:1], who, item(given)[1]),
        "gather": lambda given, who: {"taken": room.gather(task(given), who, seat(given))},
        "draft": lambda given, who: saved(room.reviews.draft(task(given), who, item(given)[1], said(given))),
        "judge": judge,
        "decide": lambda given, who: {
            **saved(room.reviews.adjudicate(task(given), who, item(given)[1], said(given), event_id(given))),
            "progress": room.undecided(task(given))},
        "skip": lambda given, who: saved(
            room.reviews.skip(task(given), who, item(given)[1], str(given.get("reason") or ""), event_id(given))),
        "release": lambda given, who: saved(room.reviews.release(task(given), who, item(given)[1])),
        "undo": lambda given, who: room.undo(task(given), who, seat(given)),
        "close": lambda given, who: saved(room.reviews.close(task(given), who, bool(given.get("closed")))),
    }  # fmt: skip


def page(context: AppContext) -> None:
    """One element; the script does the rest."""
    gr.HTML(render("review/page.html"), elem_id="review-page", padding=False)
