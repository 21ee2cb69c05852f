"""The login: a page, a cookie, and a pause that grows with every failed attempt.

Gradio has a login of its own without a throttle, and it would guard Gradio's routes only. This one stands before
everything that the server answers. Users come from a file (`--auth FILE`), one `name:hash` a line, written by
`deepintuit app --add-user NAME`; hashes are scrypt with a salt each. Sessions live in memory: a restart logs out.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.html import esc
from deepintuit.errors import ConfigError

COOKIE = "deepintuit-session"
_FREE, _LONGEST, _DAY = 3, 300.0, 86_400.0
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
_MOST_BODY = 4096


def hashed(password: str, salt: bytes | None = None) -> str:
    salt = os.urandom(16) if salt is None else salt
    return f"scrypt${salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"


def matches(password: str, stored: str) -> bool:
    salt = bytes.fromhex(stored.split("$")[1])
    return hmac.compare_digest(hashed(password, salt), stored)


def read_users(path: str | Path) -> dict[str, str]:
    """Name → hash. ConfigError for a line that is neither empty, a comment nor `name:scrypt$salt$hash`."""
    users: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        name, colon, stored = line.strip().partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not colon or not name or stored.count("$") != 2 or not stored.startswith("scrypt$"):
            raise ConfigError(
                f"line {number} of {path}",
                "a user is `name:scrypt$salt$hash`; passwords are never kept as they are",
                f"Write it with `deepintuit app --auth {path} --add-user NAME`",
            )
        users[name] = stored
    return users


def add_user(path: str | Path, name: str, password: str) -> None:
    """Add or change one user; the file is replaced as a whole and readable by its owner only."""
    if not name or ":" in name or any(ord(c) < 33 for c in name):
        raise ConfigError(f"the user name {name!r}", "it stands before a colon on a line", "Use letters, digits, '.', '-' and '_'")
    if len(password) < 8:
        raise ConfigError("a password of under eight characters", "it would be guessed", "Choose a longer one")
    path = Path(path)
    users = read_users(path) if path.exists() else {}
    users[name] = hashed(password)
    temporary = path.with_name(path.name + ".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write("".join(f"{user}:{stored}\n" for user, stored in users.items()))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Throttle:
    """Failed attempts by key. The first three are free; then the pause doubles from one second to five minutes."""

    def __init__(self, clock=time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._failed: dict[str, tuple[int, float]] = {}

    def wait(self, key: str) -> float:
        """Seconds until this key may try again."""
        with self._lock:
            count, last = self._failed.get(key, (0, 0.0))
        pause = 0.0 if count < _FREE else min(_LONGEST, 2.0 ** (count - _FREE))
        return max(0.0, last + pause - self._clock())

    def failed(self, key: str) -> None:
        with self._lock:
            if len(self._failed) > 10_000:  # many addresses trying: forget the oldest, not the memory
                self._failed.pop(next(iter(self._failed)))
            count, _ = self._failed.pop(key, (0, 0.0))
            self._failed[key] = (count + 1, self._clock())

    def passed(self, key: str) -> None:
        with self._lock:
            self._failed.pop(key, None)


class Gate:
    """ASGI middleware: without a session only `/login` answers. `user(scope)` says who is asking."""

    def __init__(self, app: ASGIApp, users: dict[str, str]):
        self.app, self.users = app, users
        self.throttle = Throttle()
        self._sessions: dict[str, tuple[str, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"} or not self.users:
            await self.app(scope, receive, send)
            return
        user = self._user(scope)
        if scope["type"] == "http" and scope["path"] in {"/login", "/login/"}:
            await (await self._login(scope, receive))(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in {"/logout", "/logout/"}:
            self._sessions.pop(self._token(scope), None)
            response = RedirectResponse("/login", 303)
            response.delete_cookie(COOKIE)
            await response(scope, receive, send)
        elif user is None:
            response: Response = RedirectResponse("/login", 303) if scope.get("method") == "GET" else Response("Log in first.", 401)
            await response(scope, receive, send)
        else:
            scope["deepintuit_user"] = user
            await self.app(scope, receive, send)

    @staticmethod
    def _token(scope: Scope) -> str:
        cookies = SimpleCookie()
        for name, value in scope["headers"]:
            if name == b"cookie":
                cookies.load(value.decode("latin-1"))
        return cookies[COOKIE].value if COOKIE in cookies else ""

    def _user(self, scope: Scope) -> str | None:
        user, until = self._sessions.get(self._token(scope), (None, 0.0))
        return user if time.monotonic() < until else None

    async def _login(self, scope: Scope, receive: Receive) -> Response:
        if scope["method"] != "POST":
            return HTMLResponse(_page())
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > _MOST_BODY:
                return Response("Too long.", 413)
            if not message.get("more_body"):
                break
        form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        name, password = form.get("username", ""), form.get("password", "")
        keys = (f"from {scope['client'][0] if scope.get('client') else ''}", f"as {name}")
        pause = max(map(self.throttle.wait, keys))
        if pause > 0:
            return HTMLResponse(_page(f"Too many failed attempts. Wait {pause:.0f} seconds, then try again."), 429)
        # An unknown name costs the same time as a known one.
        if matches(password, self.users.get(name, _NOBODY)) and name in self.users:
            for key in keys:
                self.throttle.passed(key)
            token = secrets.token_urlsafe(32)
            self._sessions = {t: s for t, s in self._sessions.items() if s[1] > time.monotonic()}
            self._sessions[token] = (name, time.monotonic() + _DAY)
            response = RedirectResponse("/", 303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="lax", secure=scope["scheme"] == "https")
            return response
        for key in keys:
            self.throttle.failed(key)
        return HTMLResponse(_page("This name and password do not belong together."), 401)


_NOBODY = hashed(secrets.token_hex())


def _page(problem: str = "") -> str:
    said = f'<p role="alert">{esc(problem)}</p>' if problem else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>DeepIntuit: log in</title><link rel="stylesheet" href="data:,"><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }} body {{ display: grid; place-items: center; min-height: 90vh }}
form {{ display: grid; gap: .6rem; width: min(20rem, 90vw) }} input, button {{ font: inherit; padding: .5rem }}</style>
<form method="post" action="/login"><h1>DeepIntuit</h1>{said}<label>Name <input name="username" autocomplete="username" autofocus required></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label><button>Log in</button></form></html>"""
