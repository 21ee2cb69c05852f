"""What may be asked of Gradio: the routes that the pages need, and values that their fields can hold.

Gradio takes any object with a `path`, wherever it stands in what a browser sends, for a file to read, and has routes
that give files out, fetch addresses and edit programs. Here a handler gets texts, numbers, switches and flat lists of
them, and a file only from an upload button, if it was uploaded; other routes below `/gradio_api/` are not there.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any

import gradio as gr
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.uploads import Uploads

_ROUTES = re.compile(
    r"(queue/(join|data)|(run|api|call|heartbeat)/.+|upload|upload_progress|cancel|reset|info|app_id|login_check"
    r"|theme\.css)/?"
)
_LONGEST, _MOST, _LARGEST = 100_000, 1_000, 2**53
"""Characters of a text, things in a list, size of a number."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")

_refusals: ContextVar[list[str] | None] = ContextVar("refusals", default=None)
"""What was refused while a request is answered: Gradio calls it an error of the server."""


class Blocks(gr.Blocks):
    """Gradio's, with every value checked before anything is done with it. Set `uploads` before it is served."""

    uploads: Uploads

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        try:
            checked = [self._checked(block, value) for block, value in zip(block_fn.inputs, inputs)]
            return await super().preprocess_data(block_fn, checked, state, explicit_call)
        except Exception as error:  # whatever a component says that cannot read what it was sent
            if (refused := _refusals.get()) is not None:
                refused.append(str(error))
            said = "A field of this page cannot hold what was sent. Reload the page."
            told = error.message if isinstance(error, gr.Error) else said
            raise gr.Error(told, print_exception=False) from error

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


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST and not _NO_TEXT.search(value)
    return value is None or (isinstance(value, int | float) and abs(value) <= _LARGEST)  # nor NaN


class Doors:
    """ASGI middleware: closes Gradio's other routes, and answers 400 to what `Blocks` refused."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, below, asked = scope.get("path", "").partition("/gradio_api/")
        if below and (scope["type"] != "http" or not _ROUTES.fullmatch(asked)):
            await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
            return
        refused: list[str] = []
        _refusals.set(refused)

        async def told(message):
            if refused and message.get("status") == 500:
                message["status"] = 400
            await send(message)

        await self.app(scope, receive, told)
