"""What may be asked of Gradio: the routes that the pages need, and values that their fields can hold.

Gradio takes any object with a `path`, wherever it stands in what a browser sends, for a file to read, and has routes
that give files out, fetch addresses and edit programs. Here a handler gets texts, numbers, switches and flat lists of
them, and a file only from an upload button, if it was uploaded; other routes below `/gradio_api/` are not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import gradio as gr
from gradio.routes import App
from gradio.utils import LRUCache
from starlette.datastructures import QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepintuit.errors import ConfigError
from deepintuit.texts import decoded, parse_json
from deepintuit_app import roles
from deepintuit_app.uploads import Uploads

_log = logging.getLogger(__name__)
_ROUTES = re.compile(
    r"(queue/(join|data)|run/predict|heartbeat/.+|upload|upload_progress|cancel|reset|info|app_id|login_check"
    r"|theme\.css)/?"
)
_CALLS = re.compile(r"(queue/join|run/predict|cancel|reset)/?")
_LONGEST_NAME = 64
"""Characters of what a browser calls its session: Gradio keeps it, with all that belongs to it."""
SESSIONS = 300
"""Sessions (a page that is open or was) that Gradio keeps about half a megabyte of each; the longest unused go."""
UNREAD = 200
"""Messages that wait for a session to read them, beyond which it may ask nothing more."""
_LONGEST, _MOST, _LARGEST = 100_000, 1_000, 2**53
"""Characters of a text, things in a list, size of a number."""
_NOBODY = (
    'data: {"msg": "unexpected_error", "message": "This session is not known here.", "success": false, '
    '"session_not_found": true}\n\n'
)
"""What Gradio says too, before it raises an error in the middle of its answer."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")

_refusals: ContextVar[list[int] | None] = ContextVar("refusals", default=None)
"""The statuses of what was refused while a request is answered: Gradio calls it an error of the server."""


@contextlib.contextmanager
def _no_app() -> Iterator[None]:
    """Gradio builds an app of a hundred routes each time that a page ends, and serves only the one that is mounted."""
    build, App.create_app = App.create_app, staticmethod(lambda *_, **__: None)
    try:
        yield
    finally:
        App.create_app = staticmethod(build)


class Blocks(gr.Blocks):
    """Gradio's, with every value checked before anything is done with it. Set `uploads` before it is served."""

    uploads: Uploads

    def __exit__(self, *error):
        with _no_app():
            return super().__exit__(*error)

    def queue(self, *args, **kwargs):
        with _no_app():
            super().queue(*args, **kwargs)
        self.state_session_capacity = SESSIONS
        self._queue.pending_messages_per_session = _OfSessions(asyncio.Queue)
        self._queue.pending_event_ids_session = _OfSessions(set)
        return self

    def get_config_file(self):
        """Without a connection for as long as a page is open: a browser has six of them for all its tabs, and the
        seventh page would never come. A page that goes while it waits for something is noticed by that."""
        return {**super().get_config_file(), "connect_heartbeat": False}

    async def process_api(self, block_fn, inputs, state=None, request=None, *args, **more):
        handler = (self.fns[block_fn] if isinstance(block_fn, int) else block_fn).fn
        try:
            if least := getattr(handler, "least_role", None):
                roles.check(request.request.scope, least)
        except ConfigError as error:
            if (refused := _refusals.get()) is not None:
                refused.append(403)
            raise gr.Error(str(error), print_exception=False) from error
        return await super().process_api(block_fn, inputs, state, request, *args, **more)

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        try:
            checked = [self._checked(block, value) for block, value in zip(block_fn.inputs, inputs)]
            return await super().preprocess_data(block_fn, checked, state, explicit_call)
        except Exception as error:  # whatever a component says that cannot read what it was sent
            if (refused := _refusals.get()) is not None:
                refused.append(400)
            _log.debug("refused what a page was sent", exc_info=error)
            fallback = "A field of this page cannot hold what was sent. Reload the page."
            message = error.message if isinstance(error, gr.Error) else fallback
            raise gr.Error(message, print_exception=False) from error

    def _checked(self, block: Any, value: Any) -> Any:
        if isinstance(block, gr.UploadButton) and isinstance(value, dict):
            if (file := self.uploads.received(value.get("path"))) is not None:
                return {"path": str(file), "meta": {"_type": "gradio.FileData"}}
        elif block.stateful or _plain(value):
            return "" if value is None and isinstance(block, gr.Textbox) else value
        elif getattr(block, "multiselect", None) and isinstance(value, list) and len(value) <= _MOST:
            if all(map(_plain, value)):
                return value
        raise ValueError(f"{type(value).__name__} for {block.get_block_name()}")


class _OfSessions(LRUCache):
    """Something a session, for the last that asked. What comes for one that is forgotten goes nowhere."""

    def __init__(self, kind: Callable[[], Any]):
        super().__init__(SESSIONS)
        self._kind = kind

    def __missing__(self, _: object) -> Any:
        return self._kind()


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST and not _NO_TEXT.search(value)
    return value is None or (isinstance(value, int | float) and abs(value) <= _LARGEST)  # nor NaN


class Doors:
    """ASGI middleware: closes Gradio's other routes, lets calls through only to the events and sessions that there are,
    and answers 400 or 403 to what `blocks` refused."""

    def __init__(self, app: ASGIApp, blocks: Blocks):
        self.app, self.blocks = app, blocks
        self._pages = {page[0] for page in blocks.pages} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, below, route = scope.get("path", "").partition("/gradio_api/")
        if below and (scope["type"] != "http" or not _ROUTES.fullmatch(route)):
            await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
            return
        if route.startswith("queue/data") and self._of_nobody(scope):
            await PlainTextResponse(_NOBODY, media_type="text/event-stream")(scope, receive, send)
            return
        if below and scope["method"] == "POST" and _CALLS.fullmatch(route):
            body, receive = await _whole(receive)
            if (answer := self._refusal(body, route)) is not None:
                await answer(scope, receive, send)
                return
        elif scope.get("path", "").removeprefix(scope.get("root_path", "")).lstrip("/") in self._pages:
            scope = dict(scope, query_string=b"")  # the page's script reads it; Gradio has names of its own in it
        refused: list[int] = []
        _refusals.set(refused)

        async def told(message):
            if refused and message.get("status") == 500:
                message["status"] = refused[0]
            await send(message)

        await self.app(scope, receive, told)

    def _of_nobody(self, scope: Scope) -> bool:
        """Whether a session that nothing waits for asks for results."""
        session = QueryParams(scope["query_string"]).get("session_hash", "")
        return session not in self.blocks._queue.pending_messages_per_session

    def _refusal(self, body: bytes, route: str) -> PlainTextResponse | None:
        try:
            call = parse_json(decoded(body, nul=True))
            json.dumps(call, allow_nan=False)  # FastAPI could not say in JSON what is wrong with NaN or infinity
        except ValueError as error:
            return PlainTextResponse(f"The request is no JSON that is read here: {error}.", 400)
        if not isinstance(call, dict) or not isinstance(call.get("session_hash"), str | None):
            return PlainTextResponse("The request is no call of a page.", 400)
        if len(call.get("session_hash") or "") > _LONGEST_NAME:
            return PlainTextResponse(f"A session's name has at most {_LONGEST_NAME} characters.", 400)
        number = call.get("fn_index")
        event = self.blocks.fns.get(number) if type(number) is int else None
        if route.startswith(("queue", "run")) and (event is None or event.fn is None):  # or it runs in the browser
            return PlainTextResponse("No page has an event of this number. Reload the page.", 404)
        if route.startswith("queue") and self._unread(call.get("session_hash")) > UNREAD:
            return PlainTextResponse("This page does not read what it was answered. Reload it.", 429)
        return None

    def _unread(self, session: str | None) -> int:
        """How many messages wait for a session, which is the last to go now."""
        queue = self.blocks._queue
        for pending in (queue.pending_event_ids_session, queue.pending_messages_per_session):
            if session in pending:
                pending.move_to_end(session)
        return queue.pending_messages_per_session[session].qsize()


async def _whole(receive: Receive) -> tuple[bytes, Receive]:
    """The body of a request, which is bounded already, and what gives it once more."""
    messages, parts = [], []
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
        parts.append(messages[-1].get("body", b""))
    waiting = iter(messages)

    async def again() -> Message:
        return next(waiting, None) or await receive()

    return b"".join(parts), again
