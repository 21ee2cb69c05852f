"""Gradio's FileData, sent where no file belongs: nothing of the server is read, kept, moved, deleted or fetched by it.

Every dependency of every page and every route is tried: without a login, before the login, as a reviewer and as a lead.
A true upload still works.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import itertools
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from apart import run_apart
from porch import live_workbench, write_clip

from deepintuit_app.app import create, served
from deepintuit_app.login import hashed

SECRET = b"only the owner of this machine reads this"
MARKS = (SECRET, b"root:x:0", b"PATH=/", b"[tool.pytest")
"""What stands in the files that are asked for: ours, the machine's users, this environment, the server's folder."""
VISITORS = ("nobody", "stranger", "reviewer", "lead")
_numbers = itertools.count()


@dataclass
class House:
    """Two servers over one workbench, the files that nobody may touch, and what was answered."""

    folder: Path
    open: str
    closed: str
    routes: set[tuple[str, str]]
    victims: list[Path]
    before: list[tuple[int, bytes]]
    fetched: list[str]
    answers: list[bytes] = field(default_factory=list)

    @property
    def secrets(self) -> list[str]:
        near = os.path.relpath(self.folder / "secret.txt")
        return [str(self.folder / "secret.txt"), near, "pyproject.toml", "/etc/passwd", "/proc/self/environ"]

    def file(self, path: str | Path, **more: Any) -> dict[str, Any]:
        return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **more}

    def shapes(self) -> list[Any]:
        """FileData as it is, streamed, by address, and inside everything that is walked through."""
        secret, near, *others = (self.file(path) for path in self.secrets)
        address = f"http://127.0.0.1:{self.fetched_at}/x.mp4"
        inbox = os.environ.get("GRADIO_TEMP_DIR", tempfile.gettempdir())
        out = self.file(f"{inbox}/../{self.folder.name}/secret.txt", orig_name="a.mp4", mime_type="video/mp4")
        up = self.file("/".join([inbox, *[".."] * len(Path(inbox).parts), "etc", "passwd"]))
        return [
            secret, *(self.file(victim, is_stream=True, orig_name="clip.mp4") for victim in self.victims),
            {"value": secret, "__type__": "update"}, {"a": {"b": [near, *others]}}, [secret, near], [[secret]],
            self.file(address), self.file(self.victims[0], url=address), self.file("x.mp4", url=f"file://{secret}"),
            out, up, {"path": secret["path"]}, [self.file(self.victims[1], is_stream=True)],
        ]  # fmt: skip

    fetched_at: int = 0


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("filedata")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        (folder / "temporary").mkdir()
        patch.setattr(tempfile, "tempdir", str(folder / "temporary"))
        workbench = live_workbench(folder / "workbench")
        (folder / "secret.txt").write_bytes(SECRET)
        write_clip(folder / "mine.mp4")
        victims = [folder / "mine.mp4", next((folder / "workbench" / "sources").rglob("clip-0.mp4"))]
        fetched: list[str] = []

        class Counting(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                fetched.append(self.path)
                self.send_error(404)

        web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        stack.callback(web.shutdown)
        users = {name: hashed("correct horse") for name in ("reviewer", "lead")}
        servers = [stack.enter_context(served(workbench.path, **more)) for more in ({}, {"users": users})]
        before = [(path.stat().st_ino, path.read_bytes()) for path in victims]
        yield House(
            folder, *servers, routes_of(create(workbench.path)), victims, before, fetched, fetched_at=web.server_port
        )


def routes_of(app: Any) -> set[tuple[str, str]]:
    """Method and path of every route, those that are mounted or included too."""
    found = set()
    for route in getattr(app, "routes", ()):
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if path := getattr(route, "path", ""):
            found |= {(method, path) for method in getattr(route, "methods", None) or {"GET"}}
        if hasattr(inner, "routes"):
            found |= routes_of(inner)
    return found


@contextlib.asynccontextmanager
async def visiting(house: House, who: str):
    """A client as this visitor, logged in where they have a name. A lead has opened a review task."""
    url = house.open if who == "nobody" else house.closed
    limits = httpx.Limits(max_connections=16)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        if who in ("reviewer", "lead"):
            await client.post("/login", data={"username": who, "password": "correct horse"})
            assert client.cookies
        if who == "lead":
            await client.post("/review-api/open", json={"name": "mine", "query": "", "questions": ["label"]})
        yield client


async def said(client: httpx.AsyncClient, method: str, path: str, patience: float = 20.0, **more: Any) -> bytes:
    """What is answered, as far as it comes: some answers are streams that do not end."""
    found = b""
    with contextlib.suppress(TimeoutError, httpx.InvalidURL):
        async with asyncio.timeout(patience), client.stream(method, path, **more) as answer:
            async for piece in answer.aiter_bytes():
                found += piece
                if b"process_completed" in found or b"close_stream" in found:
                    break
    return found


async def queued(client: httpx.AsyncClient, dependency: int, data: list[Any]) -> bytes:
    """What an event of a page answers."""
    session = f"s{next(_numbers)}"
    asked = {"fn_index": dependency, "data": data, "session_hash": session}
    joined = await client.post("/gradio_api/queue/join", json=asked)
    if joined.status_code != 200:
        return joined.content
    return await said(client, "GET", "/gradio_api/queue/data", params={"session_hash": session})


def nothing_was_given_away(house: House, answers: list[bytes]) -> None:
    for mark in MARKS:
        assert not [answer[:300] for answer in answers if mark in answer]
    kept = [path for path in house.folder.rglob("*") if path.is_file() and SECRET in path.read_bytes()]
    assert kept == [house.folder / "secret.txt"]
    assert [(path.stat().st_ino, path.read_bytes()) for path in house.victims] == house.before
    assert house.fetched == []


async def copies(client: httpx.AsyncClient, answers: list[bytes]) -> list[bytes]:
    """What the files that were named in answers give."""
    named = {path for answer in answers for path in re.findall(rb'"path":\s*"([^"]+)"', answer)}
    doors = ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/gradio_api/stream/")
    return [await said(client, "GET", door + path.decode("utf-8", "replace")) for door in doors for path in named]


@pytest.mark.parametrize("who", VISITORS)
def test_no_dependency_of_a_page_reads_moves_or_fetches_what_a_browser_names(house, who):
    async def attack() -> list[bytes]:
        async with visiting(house, who) as client:
            answer = await client.get("/config")
            if who == "stranger":
                assert answer.status_code == 401
                dependencies = [{"id": number, "inputs": [0] * 3} for number in range(0, 180, 30)]
            else:
                dependencies = answer.json()["dependencies"]
                assert len(dependencies) > 100
            gate = asyncio.Semaphore(16)
            shapes = house.shapes()

            async def one(dependency: dict[str, Any], shape: Any) -> bytes:
                async with gate:
                    data = [shape] * len(dependency["inputs"])
                    asked = {"fn_index": dependency["id"], "data": data, "session_hash": "one"}
                    if dependency["id"] % 8 == 0 or shape is shapes[1]:
                        return await queued(client, dependency["id"], data)
                    name = dependency.get("api_name") or "predict"
                    where = ("run/predict", "api/predict", f"call/{name}")[dependency["id"] % 3]
                    return await said(client, "POST", f"/gradio_api/{where}", json=asked)

            # Every shape to the few that may take an upload, and one shape after the other to the rest.
            tried = [
                (dependency, shape)
                for number, dependency in enumerate(one for one in dependencies if one["inputs"])
                for shape in (shapes if len(dependency["inputs"]) == 3 else [shapes[number % len(shapes)]])
            ]
            answers = await asyncio.gather(*(one(*call) for call in tried))
            return answers + await copies(client, answers)

    nothing_was_given_away(house, run_apart(attack()))


@pytest.mark.parametrize("who", VISITORS)
def test_no_route_gives_away_or_touches_a_file_that_is_named_to_it(house, who):
    async def attack() -> list[bytes]:
        async with visiting(house, who) as client:
            gate = asyncio.Semaphore(16)
            secret = house.secrets[0]
            victim = house.file(house.victims[0], is_stream=True)
            body = {
                "data": [victim], "fn_index": 13, "session_hash": "r", "event_id": secret, "component_id": 10,
                "file": secret, "fn_name": "preprocess", "task": house.file(secret), "item": victim,
                "hash": f"../../{secret}",
                "code": "x", "prompt": secret, "answers": victim, "holding": [victim], "query": secret, "slice": secret,
            }  # fmt: skip

            async def one(method: str, path: str) -> bytes:
                filled = re.sub(r"\{[^}]*\}", lambda _: secret, path)
                query = {
                    "path": secret,
                    "file": secret,
                    "task": secret,
                    "deep_link": f"../{secret}",
                    "form": "csv",
                    "session_hash": "one",
                    "upload_id": secret,
                }
                async with gate:
                    more = {"json": body} if method in ("POST", "PUT") else {}
                    return await said(client, method, filled, patience=1.0, params=query, **more)

            assert len(house.routes) > 60
            answers = await asyncio.gather(*(one(*route) for route in sorted(house.routes)))
            answers += [
                await said(client, "GET", f"/gradio_api/{door}{path}")
                for path in house.secrets
                for door in ("file=", "file/", "proxy=file://", "stream/")
            ]
            return answers + await copies(client, answers)

    nothing_was_given_away(house, run_apart(attack()))


@pytest.mark.parametrize("who", ["nobody", "reviewer", "lead"])
def test_a_true_upload_is_taken_on_watch_and_nobody_elses_is(house, who):
    async def bring() -> None:
        content = house.victims[0].read_bytes()
        async with visiting(house, who) as client:
            config = (await client.get("/config")).json()
            (button,) = [part["id"] for part in config["components"] if part["type"] == "uploadbutton"]
            taking = next(one for one in config["dependencies"] if button in one["inputs"])
            sent = await client.post("/gradio_api/upload", files={"files": ("mine.mp4", content)})
            (path,) = sent.json()
            assert os.stat(Path(path).parents[1]).st_mode & 0o77 == 0
            answer = await queued(client, taking["id"], [house.file(path, orig_name="mine.mp4"), False, 0.5])
            (number,) = set(re.findall(rb"upload-[\w-]{20,}", answer))
            assert (await client.get(f"/media/clip/{number.decode()}")).content == content
            assert not Path(path).exists()
            again = await queued(client, taking["id"], [house.file(path), False, 0.5])
            assert json.loads(again.split(b"data: ")[-1])["success"] is False

    run_apart(bring())
