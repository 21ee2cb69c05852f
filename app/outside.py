"""What comes in from the network, before any page sees it: under which name, through which proxy, how large.

Proxies are believed only where they are named. The sub-path that a proxy serves may be left on the address or taken
off; behind here it is always on it, as ASGI wants it (`path` begins with `root_path`), and `scope["deepintuit_root"]`
is the text of it that goes into links. A body that is too large is refused before anything keeps it.

TLS is left to a proxy.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from deepintuit.errors import ConfigError
from deepintuit_app.uploads import MAX_BYTES, room

LOOPBACK = ("127.0.0.1", "localhost", "::1")
UPLOAD = "/gradio_api/upload"
LARGEST = {
    UPLOAD: MAX_BYTES + 2**20, "/review-api/import": 64 * 2**20, "/gradio_api/": 4 * 2**20, "/review-api/": 2**20,
    "/export/": 2**20, "/login": 2**12, "/": 2**16,
}  # fmt: skip
"""Beginning of an address → bytes that a body may have there; the first that fits counts."""
KEPT_BYTES, KEPT_FILES = 2 * 2**30, 2000
"""What uploads may take on the disk, where it has as much to give, before they are looked at, those that are still
coming in included."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?|[0-9a-fA-F:.]+", re.ASCII)


def named_proxies(proxies: Sequence[str]) -> list[str]:
    """Addresses and networks of proxies as they are. ConfigError for a name, and for all the world."""
    for proxy in proxies:
        try:
            wide = ipaddress.ip_network(proxy).prefixlen == 0
        except ValueError as error:
            why = f"a proxy is known by the address that it connects from ({error})"
            raise ConfigError(f"--proxy {proxy}", why, "Give its address or network, e.g. 127.0.0.1") from error
        if wide:
            why = "then everybody could claim any address, and failed logins would count against nobody"
            raise ConfigError(f"--proxy {proxy} means every address", why, "Name the proxy's own")
    return list(proxies)


def named_hosts(names: Sequence[str], any_host: bool = True) -> list[str]:
    """`NAME` or `NAME:PORT` in lower case. ConfigError for whole addresses, patterns and what is no name; `any_host`:
    whether "*" may stand for every name."""
    for name in names:
        wild = any_host and name == "*"
        if not wild and not _HOST.fullmatch(name):
            why = "a host is a name as it stands between '//' and the next '/' in the address bar"
            raise ConfigError(f"--trusted-host {name}", why, "Write it like clips.example.org")
    return [name.lower() for name in names]


def sub_path(path: str, reserved: Sequence[str] = ()) -> str:
    """A sub-path with a '/' before and none behind; '' for none. ConfigError for what is none, or is in `reserved`."""
    path = path.rstrip("/")
    if path and not re.fullmatch(r"(/(?!\.{1,2}(/|$))[\w.~!$&'()*+,=:@%-]+)+", path, re.ASCII):
        why = "it is the part of the address behind the host, as a browser shows it: letters, digits and %40 for others"
        raise ConfigError(f"--root-path {path}", why, "Write it like /clips, and the host with --trusted-host")
    if path in reserved:
        why = f"{path} is an address of the dashboard itself, so the two could not be told apart"
        raise ConfigError(f"--root-path {path}", why, "Choose another sub-path in the proxy")
    return path


class Outside:
    """ASGI middleware, before everything but the headers of answers.

    `hosts`: names that requests may come under (see `named_hosts`), "*" for any; `proxies`: who may say on whose behalf
    it asks; `root`: the sub-path; `inbox`: where uploads lie."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], proxies: Sequence[str], root: str, inbox: str | Path):
        self.app, self.root, self.inbox = app, root, inbox
        self.hosts = frozenset(hosts)
        self.any_host = "*" in hosts
        self._behind = ProxyHeadersMiddleware(app, list(proxies))
        self._coming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        scope = dict(scope, deepintuit_root=self.root)
        app = self._believed(scope)
        refusal = self._refusal(scope)
        if refusal is not None and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif refusal is not None:
            await refusal(scope, receive, send)
        elif scope["type"] == "websocket":
            await app(scope, receive, send)
        else:
            await self._bounded(app, scope, receive, send)

    def _believed(self, scope: Scope) -> ASGIApp:
        """Puts what a named proxy says in its place, takes the same words of anybody else away, and sets the path."""
        believed = bool(scope.get("client")) and scope["client"][0] in self._behind.trusted_hosts
        head = Headers(scope=scope)
        pairs = [
            (name, value) for name, value in scope["headers"]
            if name not in {b"forwarded", b"x-forwarded-host", b"x-gradio-server"}
            and (believed or not name.startswith(b"x-forwarded-"))
        ]  # fmt: skip
        names = [name.strip() for text in head.getlist("x-forwarded-host") for name in text.split(",") if name.strip()]
        if believed and names:
            host = next(filter(self._known, names), names[-1])
            pairs = [pair for pair in pairs if pair[0] != b"host"] + [(b"host", host.encode("latin-1"))]
        # Gradio would put its own idea of the outer address into every page; a browser needs none.
        scope["headers"] = [*pairs, (b"x-gradio-server", (self.root or ".").encode())]
        root = unquote(self.root)
        if root and scope["path"] != root and not scope["path"].startswith(root + "/"):
            scope["path"] = root + scope["path"]
            scope["raw_path"] = self.root.encode() + (scope.get("raw_path") or b"")
        scope["root_path"] = root
        return self._behind if believed else self.app

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return self.any_host or {name, f"[{name}]", host.lower()} & self.hosts != set()

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._known(host):
            return PlainTextResponse(
                f"This server does not answer to the name {host[:100]!r}: a page elsewhere could use it to reach in. "
                f"If it is the server's name, start it with --trusted-host {host[:100]}.", 400
            )  # fmt: skip
        changes = scope["type"] == "websocket" or scope["method"] not in {"GET", "HEAD"}
        if changes and self._foreign(host, origin, headers.get("sec-fetch-site", "same-origin")):
            return PlainTextResponse(
                f"This came from another site's page ({(origin or 'unknown')[:100]}). If that is this server's address "
                "behind a proxy, start it with --trusted-host and that name.", 403
            )  # fmt: skip
        if scope["path"] == unquote(self.root) and self.root:  # links of a page lead on from the '/' behind it
            query = scope["query_string"].decode("latin-1")
            return RedirectResponse(f"{self.root}/" + (f"?{query}" if query else ""), 308)
        return None

    def _foreign(self, host: str, origin: str | None, site: str) -> bool:
        """Whether a browser says that a request was made by a page of another origin.

        A proxy may have replaced the host; then the page must be one of a name that was given."""
        if site not in {"same-origin", "none"}:
            return True
        if origin is None:
            return False
        try:
            page = urlsplit(origin)
        except ValueError:
            return True
        ours = self.hosts - {*LOOPBACK, "[::1]"}
        return page.netloc != host and not {page.hostname, page.netloc.lower()} & ours

    async def _bounded(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"].removeprefix(scope["root_path"]), Headers(scope=scope)
        uploads, stores = path == UPLOAD, path in (UPLOAD, "/review-api/import")
        most = next(most for beginning, most in LARGEST.items() if path.startswith(beginning) or beginning == "/")
        length = headers.get("content-length")
        expected = int(length) if length else most if "transfer-encoding" in headers else 0
        if expected > most:
            await _too_large(most)(scope, receive, send)
            return
        if stores and not self._room(expected):
            message = "Too much was sent in the last hour, and waits to be looked at or deleted. Try again later."
            await JSONResponse({"error": message}, 507)(scope, receive, send)
            return
        came, over, started, ended = 0, False, False, not expected

        async def bounded() -> Message:
            nonlocal came, over, ended
            message = await receive()
            came += len(message.get("body", b""))
            over = over or came > most
            if over or (uploads and not ended and message["type"] == "http.disconnect"):
                # What Gradio deletes the parts for that it has written; nothing else would.
                raise MultiPartException("The body exceeds the maximum allowed size, or was broken off.")
            ended = ended or not message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            nonlocal started
            if not over or started:
                started = started or message["type"] == "http.response.start"
                await send(message)

        with self._counted(expected if stores else 0):
            try:
                await app(scope, bounded, answer)
            except MultiPartException:
                if not over and not uploads:
                    raise
            if over and not started:
                await _too_large(most)(scope, receive, send)

    def _room(self, expected: int) -> bool:
        files = size = 0
        for folder, _, names in os.walk(self.inbox):
            for name in names:
                with contextlib.suppress(OSError):  # taken over or deleted meanwhile
                    size += os.stat(os.path.join(folder, name)).st_size
            files += len(names)
            if files >= KEPT_FILES:
                return False
        return size + self._coming + expected <= room(KEPT_BYTES, size, Path(self.inbox))

    @contextlib.contextmanager
    def _counted(self, expected: int) -> Iterator[None]:
        self._coming += expected
        try:
            yield
        finally:
            self._coming -= expected


def _too_large(most: int) -> Response:
    size = f"{most >> 20} MiB" if most >= 2**20 else f"{most >> 10} KiB"
    return JSONResponse({"error": f"What was sent is larger than {size}, the most that this address takes."}, 413)
