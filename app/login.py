"""The login: a page, two cookies, and bounds on how often one may try.

Gradio has a login of its own without a throttle, and it would guard Gradio's routes only. This one stands before
everything that the server answers. Users come from a file (`--auth FILE`), one `name:hash:role` a line, written by
`deepintuit app --add-user NAME`; hashes are scrypt with a salt each. Sessions live in memory: a restart logs out, and
so does a change of the password. A second cookie says that a browser was logged in before; it opens nothing, but what
strangers try at the same name does not keep such a browser waiting.

A line without a role is a lead's (`roles`). Passwords are not changed in the browser.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import hmac
import ipaddress
import itertools
import os
import re
import secrets
import stat
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deepintuit import disk, texts
from deepintuit.errors import ConfigError, nearest
from deepintuit_app.html import document
from deepintuit_app.roles import ROLES

COOKIE, DEVICE = "deepintuit-session", "deepintuit-device"
FREE, LONGEST, LONGEST_OF_A_FRIEND = 3, 300.0, 15.0
"""Tries without a pause; the longest pause in seconds of a strange address, and of one that belongs to the name."""
NAME_FREE, NAME_AN_HOUR = 30, 60
"""Tries at one name of all strange addresses that have used up their free ones: at once, and an hour after that."""
AT_ONCE, SECONDS_A_TRY, IN_LINE = 2, 0.1, 1024
"""Passwords of strangers that are checked at a time, how long one takes at least, and how many may wait."""
SESSIONS, SESSIONS_OF_ONE, ADDRESSES = 4096, 64, 50_000
_DAY, _YEAR = 86_400, 365 * 86_400
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
_HASH = re.compile(r"scrypt\$(?:[0-9a-f]{2})+\$[0-9a-f]{128}")


def hashed(password: str, salt: bytes | None = None) -> str:
    """What is stored of a password: `scrypt$salt$hash`. The salt is drawn unless it is given."""
    salt = os.urandom(16) if salt is None else salt
    return f"scrypt${salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"


def matches(password: str, entry: str) -> bool:
    """Whether it is the password that was stored. Takes the same time either way."""
    digest, _ = parted(entry)
    salt = bytes.fromhex(digest.split("$")[1])
    return hmac.compare_digest(hashed(password, salt), digest)


def parted(entry: str) -> tuple[str, str]:
    """Hash and role of what a list says of a user."""
    digest, _, role = entry.partition(":")
    return digest, role or "lead"


def _parsed(path: str | Path) -> dict[str, str]:
    """Name → `hash` or `hash:role` of a list of users, which may be empty."""
    users: dict[str, str] = {}
    write = f"Write it with `deepintuit app --auth {path} --add-user NAME`"
    try:
        text = texts.read(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"the list of users {str(path)!r} cannot be read", why, write) from error
    for number, line in enumerate(text.split("\n"), 1):
        name, colon, entry = line.strip().partition(":")
        digest, role = parted(entry)
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not colon or not name or not _HASH.fullmatch(digest):
            why = "a user is `name:scrypt$salt$hash:role`; passwords are never kept as they are"
            raise ConfigError(f"line {number} of {path}", why, write)
        if role not in ROLES:
            why = f"{name!r} has the role {role!r}, and there are {', '.join(ROLES)}"
            raise ConfigError(f"line {number} of {path}", why, f"Nearest: {nearest(role, ROLES) or 'viewer'!r}")
        if name in users:
            why = f"{name!r} stands there twice, and one of the two passwords would count for nothing"
            raise ConfigError(f"line {number} of {path}", why, "Take one of the two lines out")
        users[name] = entry
    return users


def read_users(path: str | Path) -> dict[str, str]:
    """Name → `hash` or `hash:role`. ConfigError for a file that cannot be read, names nobody, or lets everybody write;
    for a line that is neither empty, a comment nor `name:scrypt$salt$hash`, with a role or without; and for a name that
    comes twice."""
    users = _parsed(path)
    if not users:
        raise ConfigError(
            f"{path} names no user", "a login that nobody can pass is a mistake, and so is a dashboard without one",
            f"Add one with `deepintuit app --auth {path} --add-user NAME`",
        )  # fmt: skip
    if os.name == "posix" and stat.S_ISREG(mode := os.stat(path).st_mode) and mode & stat.S_IWOTH:
        why = "everybody on this machine can write to it, and so add a user"
        raise ConfigError(f"the list of users {str(path)!r}", why, f"Close it: chmod 600 {path}")
    return users


class Users(Mapping[str, str]):
    """The users of a file, read again when it changes: who is taken out of it is out. A file that cannot be read then
    changes nothing, which is said once."""

    def __init__(self, path: str | Path):
        self._path, self._known = Path(path), read_users(path)
        self._read = self._facts()
        if os.name == "posix" and stat.S_ISREG(mode := self._path.stat().st_mode) and mode & stat.S_IROTH:
            print(
                f"{path} can be read by everybody on this machine, who could try passwords on its hashes without any "
                f"pause. Close it: chmod 600 {path}",
                file=sys.stderr,
            )

    def _facts(self) -> tuple[int, int, int] | None:
        try:
            facts = self._path.stat()
        except OSError:
            return None
        return (facts.st_mtime_ns, facts.st_size, facts.st_ino) if stat.S_ISREG(facts.st_mode) else None

    def _now(self) -> dict[str, str]:
        facts = self._facts()
        if facts != self._read:
            self._read = facts
            try:
                self._known = _parsed(self._path)
            except ConfigError as error:
                print(f"The users stay as they were: {error}", file=sys.stderr)
        return self._known

    def __getitem__(self, name: str) -> str:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


def add_user(path: str | Path, name: str, password: str, role: str | None = None) -> None:
    """Add or change one user; without a `role` it keeps its own, and a new one leads. The file is replaced as a whole
    and readable by its owner only."""
    if not name or ":" in name or name.startswith("#") or not re.fullmatch(r"[^\s]+", name) or not name.isprintable():
        why = "it stands before a colon on a line of its own"
        raise ConfigError(f"the user name {name!r}", why, "Use letters, digits, '.', '-' and '_'")
    if len(password) < 8:
        raise ConfigError("a password of under eight characters", "it would be guessed", "Choose a longer one")
    path = Path(path)
    lines, users = [], {}
    if path.exists():
        users = _parsed(path)
        lines = texts.read(path).rstrip("\n").split("\n")
    rest = [line for line in lines if line.strip().partition(":")[0] != name]
    role = role or parted(users.get(name, ""))[1]
    disk.write_text(path, "\n".join([*rest, f"{name}:{hashed(password)}:{role}"]) + "\n", mode=0o600)


class Throttle:
    """Who may try a password now. What strangers do never keeps an owner out.

    A try counts at a *place*: an address (of IPv6 the /64) or, for the name that it belongs to, a browser or address
    that was logged in before, a *friend*. Each has `FREE` tries at once, then a pause that doubles from a second.
    Beyond their free tries strange addresses share one budget a name. A day without a failure forgets all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._friends: OrderedDict[tuple[str, str], None] = OrderedDict()
        # By hash: memory is bounded, and names that do not exist are treated as those that do.
        self._secret, self._budgets = secrets.token_bytes(16), [(float(NAME_FREE), clock())] * 1024

    def place(self, address: str, name: str, device: str | None = None) -> tuple[str, bool]:
        """Where a try counts, and whether that place is a friend of the name."""
        if device:
            return f"browser {device}", True
        address = network(address)
        return (f"{address} as {name}", True) if (address, name) in self._friends else (address, False)

    def failures(self, place: str) -> int:
        count, last = self._failed.get(place, (0, 0.0))
        return count if self._clock() - last < _DAY else 0

    def enter(self, place: str, name: str, friend: bool = False) -> float:
        """Seconds to wait. 0.0 lets one try in, which counts as failed until it `passed`: many at once are many."""
        with self._lock:
            now, count = self._clock(), self.failures(place)
            if count >= FREE:
                pause = min(LONGEST_OF_A_FRIEND if friend else LONGEST, 2.0 ** min(count - FREE, 20))
                if (wait := self._failed[place][1] + pause - now) > 0:
                    return wait
                if not friend:
                    digest = hashlib.blake2b(name.encode(), key=self._secret, digest_size=8).digest()
                    number = int.from_bytes(digest) % len(self._budgets)
                    budget, since = self._budgets[number]
                    budget = min(float(NAME_FREE), budget + (now - since) * NAME_AN_HOUR / 3600)
                    if budget < 1:
                        return (1 - budget) * 3600 / NAME_AN_HOUR
                    self._budgets[number] = (budget - 1, now)
            self._failed[place] = (count + 1, now)
            self._failed.move_to_end(place)
            if len(self._failed) > ADDRESSES:
                self._failed.popitem(last=False)
            return 0.0

    def untried(self, place: str) -> None:
        """The last try is not counted after all."""
        with self._lock:
            count, last = self._failed.pop(place, (1, 0.0))
            if count > 1:
                self._failed[place] = (count - 1, last)

    def passed(self, place: str, name: str, friend: bool, address: str) -> None:
        """The try was right. A strange address keeps its other failures: they may have been at other names."""
        self.untried(place)
        with self._lock:
            if friend:
                self._failed.pop(place, None)
            self._friends[network(address), name] = None
            self._friends.move_to_end((network(address), name))
            if len(self._friends) > ADDRESSES:
                self._friends.popitem(last=False)


def network(address: str) -> str:
    """An address as it counts: IPv4 as it is, also where it is written as IPv6; of IPv6 the /64 that a person has."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
    return str(getattr(ip, "ipv4_mapped", None) or ip)


class _Line:
    """Passwords of strangers are checked `AT_ONCE` at a time, each for `SECONDS_A_TRY` or longer: who failed least goes
    first, then who came first. Friends, whose pauses are their own, have places of theirs."""

    def __init__(self) -> None:
        self._lock, self._free, self._numbers = threading.Lock(), {False: AT_ONCE, True: AT_ONCE}, itertools.count()
        self._waiting: dict[bool, list[tuple[int, int, Future[bool]]]] = {False: [], True: []}

    async def matches(self, password: str, digest: str, failures: int, friend: bool) -> bool | None:
        """Whether it is the password; None where too many wait."""
        if not await self._turn(failures, friend):
            return None
        try:
            checked = asyncio.to_thread(matches, password, digest)
            return (await asyncio.gather(checked, asyncio.sleep(0.0 if friend else SECONDS_A_TRY)))[0]
        finally:
            with self._lock:
                if self._waiting[friend]:
                    heapq.heappop(self._waiting[friend])[2].set_result(True)
                else:
                    self._free[friend] += 1

    async def _turn(self, failures: int, friend: bool) -> bool:
        with self._lock:
            waiting = self._waiting[friend]
            if self._free[friend]:
                self._free[friend] -= 1
                return True
            if len(waiting) >= IN_LINE:
                last = max(waiting)
                if last[0] <= failures:
                    return False
                waiting.remove(last)
                heapq.heapify(waiting)
                last[2].set_result(False)
            turn: Future[bool] = Future()
            heapq.heappush(waiting, (failures, next(self._numbers), turn))
        return await asyncio.shield(asyncio.wrap_future(turn))


class Login:
    """ASGI middleware: without a session only `/login` answers. Behind it, `scope["deepintuit_user"]` says who asks,
    and `scope["deepintuit_role"]` as what.

    `users`: name → `hash` or `hash:role`, read at every request; None: no login."""

    def __init__(self, app: ASGIApp, users: Mapping[str, str] | None):
        self.app, self.users = app, users
        self.throttle, self._line = Throttle(), _Line()
        self._sessions: OrderedDict[str, tuple[str, str, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"} or self.users is None:
            await self.app(scope, receive, send)
            return
        user, token, role = self._user(scope)
        path = _path(scope).rstrip("/") if scope["type"] == "http" else None
        if path == "/login":
            await (await self._login(scope, receive))(scope, receive, send)
        elif path == "/logout":
            await self._logout(scope, token)(scope, receive, send)
        elif user is not None:
            scope["deepintuit_user"] = user
            scope["deepintuit_role"] = role
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
        target = _path(scope) + (f"?{query}" if query else "")
        after = f"?{urlencode({'next': target})}" if target != "/" else ""
        return RedirectResponse(f"{_root(scope)}/login{after}", 303)

    def _logout(self, scope: Scope, token: str) -> Response:
        """By POST alone: a link or picture of another site must not log anybody out."""
        if scope["method"] != "POST":
            return HTMLResponse(document("login.html", action=f"{_root(scope)}/logout", leaving=True))
        self._sessions.pop(token, None)
        response = RedirectResponse(f"{_root(scope)}/login", 303)
        response.delete_cookie(COOKIE, path=_root(scope) or "/")
        return response

    def _user(self, scope: Scope) -> tuple[str | None, str, str]:
        for token in _cookies(scope, COOKIE):
            name, entry, until = self._sessions.get(token, ("", "", 0.0))
            if time.monotonic() < until and self.users.get(name) == entry:
                return name, token, parted(entry)[1]
        return None, "", ""

    async def _login(self, scope: Scope, receive: Receive) -> Response:
        query, root = parse_qs(scope["query_string"].decode("latin-1")), _root(scope)
        if scope["method"] != "POST":
            return _login_page(root, query.get("next", ["/"])[0])
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        name, password, target = form.get("username", ""), form.get("password", ""), form.get("next", "/")
        # An unknown name costs the same time as a known one.
        entry = self.users.get(name, _NOBODY)
        digest, _ = parted(entry)
        device = next((value for value in _cookies(scope, DEVICE) if _belongs(value, digest)), None)
        address = scope["client"][0] if scope.get("client") else ""
        place, friend = self.throttle.place(address, name, device)
        failures = self.throttle.failures(place)
        if (pause := self.throttle.enter(place, name, friend)) > 0:
            seconds = max(1, round(pause))
            notice = f"Too many failed attempts. Wait {seconds} second{'s' * (seconds > 1)}, then try again."
            return _login_page(root, target, notice, 429)
        right = await self._line.matches(password, digest, failures, friend)
        if right is None:
            self.throttle.untried(place)
            return _login_page(root, target, "Too many are trying to log in. Wait a minute, then try again.", 429)
        if not right or self.users.get(name) != entry:
            return _login_page(root, target, "This name and password do not belong together.", 401)
        self.throttle.passed(place, name, friend, address)
        response = RedirectResponse(root + _ours(target), 303)
        # A browser says under which scheme it shows the page, also where a proxy does not.
        secure = scope["scheme"] == "https" or Headers(scope=scope).get("origin", "").startswith("https:")
        options = {"path": root or "/", "httponly": True, "samesite": "lax", "secure": secure}
        response.set_cookie(COOKIE, self._session(name, entry), **options)
        response.set_cookie(DEVICE, device or _device(digest), max_age=_YEAR, **options)
        return response

    def _session(self, name: str, entry: str) -> str:
        """A new token. The oldest go: of this user beyond `SESSIONS_OF_ONE`, of all beyond `SESSIONS`."""
        now = time.monotonic()
        for token, (_, _, until) in list(self._sessions.items()):
            if until < now:
                self._sessions.pop(token, None)
        own = [token for token, session in self._sessions.items() if session[0] == name]
        for token in own[: max(0, len(own) + 1 - SESSIONS_OF_ONE)]:
            self._sessions.pop(token, None)
        if len(self._sessions) >= SESSIONS:
            self._sessions.popitem(last=False)
        token = secrets.token_urlsafe(32)
        self._sessions[token] = (name, entry, now + _DAY)
        return token


def _path(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _root(scope: Scope) -> str:
    """The sub-path as it stands in addresses."""
    return scope.get("deepintuit_root", "")


def _cookies(scope: Scope, name: str) -> Iterator[str]:
    """Every value of a cookie: the same name may be sent for several paths."""
    for key, value in scope["headers"]:
        for cookie in value.decode("latin-1").split(";") if key == b"cookie" else ():
            label, _, text = cookie.strip().partition("=")
            if label == name:
                yield text


def _device(digest: str, about: str | None = None) -> str:
    """What marks a browser that this user logged in from: signed with the user's hash, so it ends with the password."""
    about = f"{int(time.time())}.{secrets.token_urlsafe(12)}" if about is None else about
    return f"{about}.{hmac.new(digest.encode(), about.encode(), hashlib.sha256).hexdigest()}"


def _belongs(device: str, digest: str) -> bool:
    about, _, _ = device.rpartition(".")
    issued = about.partition(".")[0]
    young = issued.isascii() and issued.isdigit() and len(issued) < 12 and time.time() - int(issued) < _YEAR
    return young and hmac.compare_digest(_device(digest, about).encode(), device.encode("utf-8", "replace"))


def _ours(target: str) -> str:
    """A path of this server to go to after the login; `//host`, `/\\host` and whole addresses lead elsewhere."""
    return target if re.fullmatch(r"/(?![/\\])[^\\\x00-\x20]*", target) else "/"


_NOBODY = hashed(secrets.token_hex())


def _login_page(root: str, target: str = "/", problem: str = "", status: int = 200) -> Response:
    values = {"action": f"{root}/login", "wanted": target, "problem": problem, "leaving": False}
    return HTMLResponse(document("login.html", **values), status)
