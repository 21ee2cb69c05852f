"""The pages joined, and the server around them.

    deepintuit app --workbench DIR          opens the dashboard on a workbench

Starts without torch: a model is loaded when a page first asks for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
import threading
import time
import warnings
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402
from fastapi.exceptions import RequestValidationError  # noqa: E402
from gradio.routes import INTERNAL_ROUTES  # noqa: E402
from starlette.datastructures import MutableHeaders  # noqa: E402
from starlette.responses import JSONResponse, RedirectResponse  # noqa: E402

from deepintuit.connections import Patient  # noqa: E402
from deepintuit.errors import ConfigError, DeepIntuitError  # noqa: E402
from deepintuit_app import errors, media, review, runs, sql, start, traces, watch  # noqa: E402
from deepintuit_app.context import AppContext  # noqa: E402
from deepintuit_app.doors import Blocks, Doors  # noqa: E402
from deepintuit_app.frame import EXAMPLE, NAME, Frame, theme  # noqa: E402
from deepintuit_app.html import note  # noqa: E402
from deepintuit_app.login import Login  # noqa: E402
from deepintuit_app.outside import LOOPBACK, Outside, named_hosts, named_proxies, sub_path  # noqa: E402
from deepintuit_app.sources import Sources  # noqa: E402
from deepintuit_app.uploads import MAX_BYTES  # noqa: E402

PAGES = {
    "watch": ("Watch", watch), "traces": ("Traces", traces), "review": ("Review", review), "errors": ("Errors", errors),
    "runs": ("Runs", runs), "sql": ("SQL", sql),
}  # fmt: skip
"""Address → name in the navigation and module."""
NAVIGATION = {"": "Start", **{path: name for path, (name, _) in PAGES.items()}}

_OURS = {f"/{name}" for name in (*PAGES, *INTERNAL_ROUTES, "media", "export", "review-api", "static-app", "jobs")}
# Gradio needs inline and evaluated scripts of its own; what the policy keeps out is every other host.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
# Gradio's modules have a hash in their name; its theme and our own files one behind the "?".
_KEPT, _FOREVER = re.compile(r"/(assets/|static-app/|theme\.css$)"), "public, max-age=31536000, immutable"
_ALWAYS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}


def blocks(context: AppContext) -> Blocks:
    """All pages as one multi-page app."""
    banner = note(EXAMPLE, role="status") if context.workbench.is_example else ""
    with Blocks(title=NAME, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        demo.uploads = context.uploads
        demo.has_launched = True  # or Gradio does not ask whether a file that is named was uploaded
    for path, (name, module) in PAGES.items():
        with demo.route(name, f"/{path}"):
            gr.Navbar(visible=False)
            gr.HTML(banner, visible=bool(banner), elem_classes="example")
            module.page(context)
    demo.queue(max_size=64, default_concurrency_limit=20)
    return demo


class _Border:
    """ASGI middleware: adds the policy to every answer. `private`: no page is kept, so that Back shows none after a
    logout.

    (Starlette's helper for functions would hide that a page was closed.)
    """

    def __init__(self, app, private: bool):
        self.app, self.private = app, private

    async def __call__(self, scope, receive, send):
        async def with_headers(message):
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if message["status"] == 200 and (match := _KEPT.search(scope["path"])):
                    versioned = match[1] == "assets/" or scope["query_string"].startswith(b"v=")
                    headers["Cache-Control"] = _FOREVER if versioned else "no-cache"
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
                if self.private and headers.get("content-type", "").startswith("text/html"):
                    headers["Cache-Control"] = "no-store"
                if headers.get("content-type", "").startswith("text/event-stream"):
                    headers["X-Accel-Buffering"] = "no"  # else nginx keeps events until it has many
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def _without_slash(request: Request) -> RedirectResponse:
    """Links of a page begin where it stands, so it has one address. Gradio would leave the sub-path out."""
    page, query = request.url.path.rstrip("/").rpartition("/")[2], request.url.query
    return RedirectResponse(f"../{page}" + (f"?{query}" if query else ""), 308)


def _unread(_: Request, __: Exception) -> JSONResponse:
    """FastAPI would quote what came, and cannot where that is no number of JSON."""
    return JSONResponse({"error": "The request does not hold what this address reads."}, 422)


def create(
    workbench: str | Path,
    users: Mapping[str, str] | None = None,
    hosts: Sequence[str] = LOOPBACK,
    *,
    proxies: Sequence[str] = (),
    root_path: str = "",
    sources: Sources | None = None,
) -> FastAPI:
    """The server as an ASGI app.

    `users`: name → hash, None for no login; `hosts`: names that requests may come under, "*" for any; `proxies`:
    addresses whose `X-Forwarded-…` headers are believed; `root_path`: the sub-path that a proxy shows the dashboard
    under, whether or not it takes it off; `sources`: where pages may import clips from and what may teach (None: from
    nowhere). ConfigError for an empty list of users, and for what is no host, address or sub-path.
    """
    if users is not None and not users:
        why = "nobody could log in, and no login at all would let everybody in"
        raise ConfigError("an empty list of users", why, "Add a user, or give None to go without a login")
    hosts, proxies, root_path = named_hosts(hosts), named_proxies(proxies), sub_path(root_path, _OURS)
    context = AppContext(workbench, sources)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(context.uploads.close)

    server = FastAPI(title="DeepIntuit", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    server.state.context = context
    server.add_exception_handler(RequestValidationError, _unread)
    server.include_router(start.routes(context, NAVIGATION))  # before Gradio, which has a page at the same address
    server.include_router(media.routes(context))
    server.include_router(traces.routes(context))
    server.include_router(sql.routes(context))
    server.include_router(errors.routes(context))
    server.include_router(review.routes(context))
    for path in PAGES:
        server.add_api_route(f"/{path}/", _without_slash, methods=["GET"])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SSR mode is not supported")  # nor asked for
        gr.routes.DEFAULT_TEMP_DIR = str(context.uploads.inbox)  # before the pages are made: they ask where uploads lie
        gr.mount_gradio_app(
            server,
            pages := blocks(context),
            path="",
            root_path=unquote(root_path),
            auth_dependency=(lambda request: request.scope.get("deepintuit_user")) if users is not None else None,
            theme=theme(),
            css_paths=[media.STATIC / "style.css"],
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            max_file_size=MAX_BYTES,
            ssr_mode=False,
        )
    server.add_middleware(Doors, blocks=pages)
    first = {path: module.first for path, (_, module) in PAGES.items() if hasattr(module, "first")}
    server.add_middleware(Frame, context=context, pages=NAVIGATION, first=first)
    server.add_middleware(Login, users=users)  # the last that is added stands outermost
    server.add_middleware(Outside, hosts=hosts, proxies=proxies, root=root_path, inbox=context.uploads.inbox)
    server.add_middleware(_Border, private=users is not None)
    return server


def _listening(app: FastAPI, **settings: Any) -> uvicorn.Server:
    """uvicorn, but slow requests end, and no proxy is believed because it is on this machine (see `Outside`)."""
    return uvicorn.Server(uvicorn.Config(app, http=Patient, proxy_headers=False, **settings))


@contextlib.contextmanager
def served(workbench: str | Path, **settings: Any) -> Iterator[str]:
    """The dashboard on a free port of this machine while the context lasts, for tests and pictures; its address.

    `settings` as of `create`. It runs in a thread of this process. DeepIntuitError when it does not come up."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create(workbench, **settings)
    server = _listening(app, port=port, log_level="error", timeout_graceful_shutdown=1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    began = time.monotonic()
    while not server.started:
        if not thread.is_alive() or time.monotonic() - began > 60:
            raise DeepIntuitError(
                "the server did not start", "60 seconds went by or its thread ended", "See the log above"
            )
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
    trusted_hosts: Sequence[str] = (),
    proxies: Sequence[str] = (),
    root_path: str = "",
    sources: Sources | None = None,
    open_browser: bool = True,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve until stopped. Without users it listens on this machine only: ConfigError for another host.

    `trusted_hosts`: further names that requests may come under, of a proxy before it; `on_ready` is called once pages
    can be opened; the rest is as of `create`."""
    if host not in LOOPBACK and users is None:
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
        port = probe.getsockname()[1]
    hosts = (*LOOPBACK, *named_hosts(trusted_hosts, any_host=False)) if host in LOOPBACK or trusted_hosts else ("*",)
    server = create(workbench, users, hosts, proxies=proxies, root_path=root_path, sources=sources)
    address = f"http://{'localhost' if host in LOOPBACK else host}:{port}{sub_path(root_path)}/"
    print(f"DeepIntuit shows {Path(workbench)} at {address}", flush=True)
    print("Ctrl-C stops it; stages that were started from it keep running.", flush=True)
    if trusted_hosts and users is None:
        print("It asks for no login: whoever the proxy lets through may do all. --auth FILE asks.", flush=True)
    if open_browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    if on_ready:
        on_ready()
    listening = _listening(server, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)
    with contextlib.suppress(KeyboardInterrupt):
        listening.run()
    if not listening.started:
        sys.exit(3)
