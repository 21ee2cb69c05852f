"""What stands around every page: its title, its icon, the header with the names of the workbench and its datasets, and
a page for what is not there.

ASGI middleware between the login and Gradio: the header is HTML of the answer, so that it is there before any script
has run. `theme` is Gradio's, in this product's colours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepintuit.errors import DeepIntuitError
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import progress
from deepintuit_analysis.index.build import file_signature
from deepintuit_app import preload
from deepintuit_app.context import AppContext, apart
from deepintuit_app.html import document, note
from deepintuit_app.roles import role_of

NAME = "DeepIntuit"
EXAMPLE = (
    "This is the example that ships: finished runs on rendered clips. It takes reviews and slices; stages run in a "
    "workbench of your own."
)
First = Callable[[AppContext, dict[str, str]], dict[str, Any]]
_MOMENT = 0.4
"""Seconds that the HTML of a page waits for its first content."""
FAULT = "fault"
"""Stands beside content that says a fault; no component has this id."""
PLACES = {"watch": "trace", "traces": "traces-list", "errors": "errors-condition", "runs": "runs-list"}
"""Page → the component that says why its first content could not be made."""
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Text is at least 4.5 : 1 against what it stands on, in light and dark (tests/browser/test_every_page.py)."""
    sizes = {"spacing_size": "sm", "radius_size": "md", "text_size": "md"}
    base = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO, **sizes)
    return base.set(
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        body_background_fill_dark="*neutral_950",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_text_size="*text_sm",
        block_title_text_weight="500",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_border_width="0px",
        block_shadow="none",
        block_padding="*spacing_sm 0",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        input_padding="*spacing_md *spacing_lg",
        link_text_color="*primary_700",
        link_text_color_hover="*primary_800",
        link_text_color_visited="*primary_700",
        link_text_color_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
        link_text_color_visited_dark="*primary_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_secondary_background_fill="*neutral_200",
        button_secondary_background_fill_hover="*neutral_300",
        button_secondary_text_color="*neutral_800",
        button_secondary_background_fill_dark="*neutral_700",
        button_secondary_background_fill_hover_dark="*neutral_600",
        button_secondary_text_color_dark="white",
        button_cancel_background_fill="*neutral_200",
        button_cancel_background_fill_dark="*neutral_700",
        button_cancel_text_color="#991b1b",
        button_cancel_text_color_dark="#fecaca",
        button_medium_padding="*spacing_md *spacing_xl",
        button_medium_text_weight="600",
        button_large_padding="*spacing_md *spacing_xl",
        button_large_text_size="*text_md",
    )


def header(
    context: AppContext, page: str, pages: Mapping[str, str], scope: Mapping[str, Any] | None = None, root: str = ""
) -> str:
    """The header as HTML. `page`: the address of the one that is shown, `pages`: address → name, `scope`: of the
    request, `root`: what comes before an address, where that is not the folder that the page stands in."""
    workbench, datasets = context.workbench, []
    with _logged("the datasets in the header"):
        datasets = _datasets(workbench, file_signature(workbench.index_path))
    return document(
        "header.html",
        name=NAME,
        page=page,
        pages=pages,
        url=root,
        user=(scope or {}).get("deepintuit_user"),
        role=role_of(scope or {}),
        workbench=workbench.path.absolute().name,
        datasets=datasets,
    )


@lru_cache(maxsize=8)
def _datasets(workbench: Workbench, _index: object) -> list[str]:
    """Those of the index as it stands: a page does not wait for the next one."""
    return progress.datasets(workbench) if workbench.index_path.exists() else []


@contextlib.contextmanager
def _logged(part: str) -> Iterator[None]:
    """A fault in what is put into Gradio's page costs that part, and is in the log: the page opens."""
    try:
        yield
    except Exception:
        logging.getLogger(__name__).exception("a page opens without %s", part)


def title(page: str, workbench: Workbench, root: str = "") -> str:
    """What the head of a page begins with, as HTML: its title, icon and style."""
    heading = " · ".join(filter(None, (page, workbench.path.absolute().name, NAME)))
    return document("title.html", title=heading, url=root)


class Frame:
    """ASGI middleware. `pages`: address → name of those that the navigation shows; `first`: address → what its
    components, by their ids, hold for a query before any script has asked, True for one that is shown."""

    def __init__(self, app: ASGIApp, context: AppContext, pages: Mapping[str, str], first: Mapping[str, First]):
        self.app, self.context, self.pages = app, context, pages
        self.first = {path: apart(2)(content) for path, content in first.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
        reads = "text/html" in Headers(scope=scope).get("accept", "") if path else False
        page = path.strip("/") if path.strip("/") and path.strip("/") in self.pages else None
        if not path or scope["method"] != "GET" or not (reads or page is not None):
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        parts: list[bytes] = []

        async def framed(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                html = Headers(raw=message["headers"]).get("content-type", "").startswith("text/html")
                if (message["status"] == 200 and page is not None and html) or (message["status"] == 404 and reads):
                    start = message
                    return
            if start is None:
                await send(message)
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = b"".join(parts)
                if page in self.first and start["status"] == 200:
                    content = await self._content(page, scope)
                    with _logged("its first content"):
                        body = _filled(body, content)
                answer = await asyncio.to_thread(self._answer, start["status"], body, page, scope)
                await GZipMiddleware(answer, compresslevel=5)(scope, receive, send)

        plain = MutableHeaders(raw=[pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]).raw
        await self.app({**scope, "headers": plain if page is not None else scope["headers"]}, receive, framed)

    async def _content(self, page: str, scope: Scope) -> dict[str, Any]:
        """Nothing where it takes longer than a moment: the page asks for it again, when it is drawn. Where it cannot be
        made, a fault is said in its place until the page has asked again."""
        query = {name: texts[-1] for name, texts in parse_qs(scope["query_string"].decode("latin-1")).items()}
        answer = asyncio.ensure_future(self.first[page](self.context, query))
        try:
            return await asyncio.wait_for(asyncio.shield(answer), _MOMENT)
        except (TimeoutError, DeepIntuitError, HTTPException):
            answer.add_done_callback(lambda late: late.cancelled() or late.exception())
            return {}
        except Exception as error:
            what, why = f"{self.pages[page]} came without its content", f"an unexpected {type(error).__name__}"
            logging.getLogger(__name__).exception("%s: %s", what, why)
            fault = DeepIntuitError(what, why, "Reload the page; if this stays, the server's log has the whole error")
            return {PLACES[page]: note(fault, "problem", role="alert"), FAULT: True}

    def _answer(self, status: int, body: bytes, page: str | None, scope: Scope) -> HTMLResponse:
        workbench = self.context.workbench
        if status == 404:
            root = f"{scope.get('deepintuit_root', '')}/"
            top = header(self.context, "", self.pages, scope, root)
            name, message = title("Not found", workbench, root), _said(body)
            return HTMLResponse(document("not_found.html", title=name, header=top, said=message, url=root), status)
        modules = ""
        with _logged("the modules in its head"):
            modules = preload.head(body.decode("utf-8", "replace"))
        head = title(self.pages[page], workbench) + document("head.html", page=page, modules=modules)
        top = header(self.context, page, self.pages, scope) + document(
            "skeleton.html", page=page, name=self.pages[page]
        )
        body = body.replace(b"<head>", b"<head>" + head.encode(), 1)
        body = body.replace(b"<gradio-app", top.encode() + b"<gradio-app", 1)
        return HTMLResponse(body.replace(b'control_page_title="true"', b'control_page_title="false"', 1), status)


def _filled(body: bytes, content: Mapping[str, Any]) -> bytes:
    """A page of Gradio's with this content, to be read, and to be pressed when it has filled itself with the same
    (links.FILLED), at once where it says a fault; without any it says that some is to come."""
    before, mark, rest = body.partition(b"window.gradio_config = ")
    if not mark or not content:
        return body.replace(b"<gradio-app", b'<gradio-app aria-busy="true"', 1)
    text = rest.decode()
    config, end = json.JSONDecoder().raw_decode(text)
    for component in config["components"]:
        if (value := content.get(component["props"].get("elem_id"))) is not None:
            component["props"]["visible" if value is True else "value"] = value
    safe = (
        json.dumps(config, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    filled = before + mark + safe.encode() + text[end:].encode()
    return filled if FAULT in content else filled.replace(b"<gradio-app", b"<gradio-app inert", 1)


def _said(body: bytes) -> str:
    """Why there is nothing, where a route said more than that."""
    try:
        detail: Any = json.loads(body).get("detail")
    except (ValueError, AttributeError):
        detail = None
    return detail if isinstance(detail, str) and detail != "Not Found" else ""
