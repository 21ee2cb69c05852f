"""The pages joined, and the server around them.

    deepintuit app --workbench DIR          opens the dashboard on a workbench

Starts without torch: a model is loaded when a page first asks for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
import warnings
import webbrowser
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from starlette.datastructures import Headers, MutableHeaders  # noqa: E402
from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402

from app import errors, media, review, runs, sql, traces, watch  # noqa: E402
from app.desk import Desk  # noqa: E402
from app.doors import Blocks, Doors  # noqa: E402
from app.gate import Gate  # noqa: E402
from app.uploads import MAX_BYTES  # noqa: E402
from deepintuit.errors import ConfigError  # noqa: E402

PAGES = {
    "watch": ("Watch", watch), "traces": ("Traces", traces), "review": ("Review", review), "errors": ("Errors", errors),
    "runs": ("Runs", runs), "sql": ("SQL", sql),
}  # fmt: skip
"""Address → name in the navigation bar and module. The first is what `/` shows."""

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_HEAD = (
    '<script src="/static-app/app.js" defer></script><script src="/static-app/review.js" defer></script>'
    '<link rel="stylesheet" href="/static-app/review.css"><link rel="icon" href="data:,">'
)
# Gradio needs inline and evaluated scripts of its own; what the policy keeps out is every other host.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
_ALWAYS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}


def blocks(desk: Desk) -> gr.Blocks:
    """All pages as one multi-page app."""
    (_, (first, module)), *others = PAGES.items()
    with Blocks(title="DeepIntuit", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        demo.uploads = desk.uploads
        demo.has_launched = True  # or Gradio does not ask whether a file that is named was uploaded
        gr.Navbar(main_page_name=first)
        module.page(desk)
    for path, (name, module) in others:
        with demo.route(name, f"/{path}"):
            gr.Navbar(main_page_name=first)  # each page names the first one, or calls it "Home"
            module.page(desk)
    return demo.queue(max_size=64, default_concurrency_limit=20)


class _Border:
    """ASGI middleware: adds the policy to every answer, and refuses what another site's page sends here.

    (Starlette's helper for functions would hide that a page was closed.)
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["method"] not in {"GET", "HEAD"} and _foreign(Headers(scope=scope)):
            await PlainTextResponse("This came from another site's page.", 403)(scope, receive, send)
            return

        async def with_headers(message):
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def _foreign(headers: Headers) -> bool:
    """Whether a browser says that a request was made by a page of another origin."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def create(workbench: str | Path, users: Mapping[str, str] | None = None, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The server as an ASGI app.

    `users`: name → hash, none means no login; `hosts`: names that requests may come under, "*" for any.
    """
    desk = Desk(workbench)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(desk.uploads.close)

    server = FastAPI(title="DeepIntuit", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    server.state.desk = desk
    server.include_router(media.routes(desk))
    server.include_router(traces.routes(desk))
    server.include_router(sql.routes(desk))
    server.include_router(review.routes(desk))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SSR mode is not supported")  # nor asked for
        gr.routes.DEFAULT_TEMP_DIR = str(desk.uploads.inbox)  # before the pages are made: they ask where uploads lie
        gr.mount_gradio_app(
            server,
            blocks(desk),
            path="/",
            auth_dependency=(lambda request: request.scope.get("deepintuit_user")) if users else None,
            theme=gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO),
            css_paths=[media.STATIC / "style.css"],
            head=_HEAD,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            max_file_size=MAX_BYTES,
            ssr_mode=False,
        )
    server.add_middleware(Doors)
    server.add_middleware(Gate, users=dict(users or {}))  # the last that is added stands outermost
    if "*" not in hosts:
        server.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    server.add_middleware(_Border)
    return server


@contextlib.contextmanager
def served(workbench: str | Path, **settings: Any) -> Iterator[str]:
    """The dashboard on a free port of this machine while the context lasts, for tests and pictures; its address.

    `settings` as of `create`. It runs in a thread of this process. RuntimeError when it does not come up."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create(workbench, **settings)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    began = time.monotonic()
    while not server.started:
        if not thread.is_alive() or time.monotonic() - began > 60:
            raise RuntimeError("the server did not start")
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def serve(
    workbench: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    users: Mapping[str, str] | None = None,
    open_browser: bool = True,
) -> None:
    """Serve until stopped. Without users it listens on this machine only: ConfigError for another host."""
    if host not in LOOPBACK and not users:
        raise ConfigError(
            f"host {host!r} without a login",
            "anyone who reaches this machine could read the clips and start stages",
            "Add --auth FILE, or leave --host out",
        )
    with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = f"it cannot be listened on ({error.strerror})"
            raise ConfigError(f"port {port} on {host}", why, "Name another with --port") from error
    address = f"http://{'localhost' if host in LOOPBACK else host}:{port}"
    print(f"DeepIntuit shows {Path(workbench)} at {address}", flush=True)
    print("Ctrl-C stops it; stages that were started from it go on.", flush=True)
    if open_browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    uvicorn.run(create(workbench, users, hosts), host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)
