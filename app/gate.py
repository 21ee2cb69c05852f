"""The login: a page, a cookie, and a pause that grows with every failed attempt.

Gradio has a login of its own without a throttle, and it would guard Gradio's routes only. This one stands before
everything that the server answers. Users come from a file (`--auth FILE`), one `name:hash` a line, written by
`deepintuit app --add-user NAME`; hashes are scrypt with a salt each. Sessions live in memory: a restart logs out.

Left out on purpose: roles (who is in may do all), and a way to change one's password in the browser.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlencode

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.html import esc
from deepintuit import disk
from deepintuit.errors import ConfigError

COOKIE = "deepintuit-session"
_FREE, _LONGEST, _DAY = 3, 300.0, 86_400.0
_LONGEST_OF_A_NAME = 15.0
"""Seconds. Guesses at one name from many addresses are slowed down, and its owner is never locked out for long."""
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
_MOST_BODY = 4096


_HASH = re.compile(r"scrypt\$(?:[0-9a-f]{2})+\$[0-9a-f]{128}")


def hashed(password: str, salt: bytes | None = None) -> str:
    """What is stored of a password: `scrypt$salt$hash`. The salt is drawn unless it is given."""
    salt = os.urandom(16) if salt is None else salt
    return f"scrypt${salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"


def matches(password: str, stored: str) -> bool:
    """Whether it is the password that was stored. Takes the same time either way."""
    salt = bytes.fromhex(stored.split("$")[1])
    return hmac.compare_digest(hashed(password, salt), stored)


def read_users(path: str | Path) -> dict[str, str]:
    """Name → hash. ConfigError for a line that is neither empty, a comment nor `name:scrypt$salt$hash`."""
    users: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        name, colon, stored = line.strip().partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not colon or not name or not _HASH.fullmatch(stored):
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
        raise ConfigError(
            f"the user name {name!r}", "it stands before a colon on a line", "Use letters, digits, '.', '-' and '_'"
        )
    if len(password) < 8:
        raise ConfigError("a password of under eight characters", "it would be guessed", "Choose a longer one")
    path = Path(path)
    users = read_users(path) if path.exists() else {}
    users[name] = hashed(password)
    disk.write_text(path, "".join(f"{user}:{stored}\n" for user, stored in users.items()), mode=0o600)


class Throttle:
    """Failed attempts by key. The first three are free; then the pause doubles from one second to five minutes."""

    def __init__(self, clock=time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._failed: dict[str, tuple[int, float]] = {}

    def wait(self, key: str, longest: float = _LONGEST) -> float:
        """Seconds until this key may try again, at most `longest` after the last attempt."""
        with self._lock:
            count, last = self._failed.get(key, (0, 0.0))
        pause = 0.0 if count < _FREE else min(longest, 2.0 ** min(count - _FREE, 20))
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
    """ASGI middleware: without a session only `/login` answers. Behind it, `scope["deepintuit_user"]` says who asks."""

    def __init__(self, app: ASGIApp, users: dict[str, str]):
        self.app, self.users = app, users
        self.throttle = Throttle()
        self._sessions: dict[str, tuple[str, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"} or not self.users:
            await self.app(scope, receive, send)
            return
        user, token = self._user(scope)
        path = scope["path"].rstrip("/") if scope["type"] == "http" else None
        if path == "/login":
            await (await self._login(scope, receive))(scope, receive, send)
        elif path == "/logout":
            self._sessions.pop(token, None)
            response = RedirectResponse("/login", 303)
            response.delete_cookie(COOKIE)
            await response(scope, receive, send)
        elif user is not None:
            scope["deepintuit_user"] = user
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._refuse(scope)(scope, receive, send)

    @staticmethod
    def _refuse(scope: Scope) -> Response:
        """A page sends the reader to the login, and back to where they were going; anything else is an error."""
        if scope["method"] != "GET" or b"text/html" not in dict(scope["headers"]).get(b"accept", b""):
            return Response("Log in first.", 401)
        query = scope["query_string"].decode("latin-1")
        wanted = scope["path"] + (f"?{query}" if query else "")
        return RedirectResponse("/login" + (f"?{urlencode({'next': wanted})}" if wanted != "/" else ""), 303)

    def _user(self, scope: Scope) -> tuple[str | None, str]:
        for name, value in scope["headers"]:
            for cookie in value.decode("latin-1").split(";") if name == b"cookie" else ():
                key, _, token = cookie.strip().partition("=")
                user, until = self._sessions.get(token, (None, 0.0))
                if key == COOKIE and time.monotonic() < until:
                    return user, token
        return None, ""

    async def _login(self, scope: Scope, receive: Receive) -> Response:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["method"] != "POST":
            return HTMLResponse(_page(query.get("next", ["/"])[0]))
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > _MOST_BODY:
                return Response("Too long.", 413)
            if not message.get("more_body"):
                break
        form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        name, password, wanted = form.get("username", ""), form.get("password", ""), form.get("next", "/")
        address, person = f"from {scope['client'][0] if scope.get('client') else ''}", f"as {name}"
        pause = max(self.throttle.wait(address), self.throttle.wait(person, _LONGEST_OF_A_NAME))
        if pause > 0:
            seconds = max(1, round(pause))
            said = f"Too many failed attempts. Wait {seconds} second{'s' * (seconds > 1)}, then try again."
            return HTMLResponse(_page(wanted, said), 429)
        for key in (address, person):  # before it is known, so that many attempts at once are counted as many
            self.throttle.failed(key)
        # An unknown name costs the same time as a known one.
        right = await asyncio.to_thread(matches, password, self.users.get(name, _NOBODY))
        if not right or name not in self.users:
            return HTMLResponse(_page(wanted, "This name and password do not belong together."), 401)
        for key in (address, person):
            self.throttle.passed(key)
        token = secrets.token_urlsafe(32)
        self._sessions = {t: s for t, s in self._sessions.items() if s[1] > time.monotonic()}
        self._sessions[token] = (name, time.monotonic() + _DAY)
        response = RedirectResponse(_ours(wanted), 303)
        response.set_cookie(COOKIE, token, httponly=True, samesite="lax", secure=scope["scheme"] == "https")
        return response


def _ours(wanted: str) -> str:
    """A path of this server to go to after the login; `//host`, `/\\host` and whole addresses lead elsewhere."""
    return wanted if re.fullmatch(r"/(?![/\\])[^\\\x00-\x20]*", wanted) else "/"


_NOBODY = hashed(secrets.token_hex())


def _page(wanted: str = "/", problem: str = "") -> str:
    said = f'<p role="alert">{esc(problem)}</p>' if problem else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>DeepIntuit: log in</title><link rel="icon" href="data:,"><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; accent-color: #2563eb }}
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0 }}
form {{ display: grid; gap: .8rem; width: min(20rem, 88vw) }} h1 {{ margin: 0; font-size: 1.5rem }}
label {{ display: grid; gap: .2rem }} input, button {{ font: inherit; padding: .55rem .7rem; border-radius: .4rem }}
input {{ border: 1px solid #8886 }} button {{ border: 0; background: #2563eb; color: #fff; font-weight: 600 }}
:focus-visible {{ outline: 2px solid #2563eb; outline-offset: 2px }} p {{ margin: 0; color: #b42318 }}
@media (prefers-color-scheme: dark) {{ p {{ color: #f7a199 }} }}</style>
<form method="post" action="/login"><h1>DeepIntuit</h1>{said}<input type="hidden" name="next" value="{esc(wanted)}">
<label>Name <input name="username" autocomplete="username" autofocus required></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button></form></html>"""
