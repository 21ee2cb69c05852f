"""The addresses of a server of answers: what may come in, and what goes out.

What is sent is bounded before it is kept; a file lies under a name of ours in a private folder, and is read in a child
process as everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import UploadFile
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from deepintuit import __version__, disk, texts, video
from deepintuit.connections import Patient
from deepintuit.errors import VideoError
from deepintuit.tables import written
from deepintuit_clips.serve.batches import Closed, Full, Line, Message, Question, sentence_of

_FORM = 64 << 10
"""Bytes of a field that is no file."""
_ENVELOPE = 1 << 20
_PING = 15.0
_KINDS = {pa.string(): "string", pa.float64(): "number", pa.bool_(): "boolean", pa.int64(): "integer"}
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_STOPPING = "This server is stopping, and the clip was not answered. Ask again in a moment"
_REFUSED = {
    401: "No key, or another one",
    404: "No such file below the root",
    413: "More bytes than a clip may have",
    422: "No clip, or one that cannot be read: `detail` says why, `reason` in one word",
    429: "The line is full: Retry-After says when to ask again",
    503: "The server is stopping",
    507: "The disk has no room for the clip",
}
_NAMES = ["127.0.0.1", "localhost", "[::1]", "::1"]
_UPLOADS = "deepintuit-serve-*"


def create(
    predictor: Any, rules: Any, *, keys: Sequence[str] = (), root: Path | None = None, places: int, most_bytes: int
) -> FastAPI:
    """The server as an ASGI app, whose models are loaded. `keys`: any of them opens; without one it answers to names of
    this machine only. `root`: below it clips may be named by path. `places`: in the line; `most_bytes`: of an upload.
    """
    line, scratch = Line(predictor, rules, places), disk.Scratch(Path(tempfile.gettempdir()).resolve(), _UPLOADS)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(line.end, 10)
        scratch.remove()

    about = f"Answers of {predictor.system}: a row of the table of `deepintuit predict` for each clip."
    api = FastAPI(
        title="DeepIntuit", version=__version__, description=about, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    api.state.line = line
    if not keys:
        api.add_middleware(TrustedHostMiddleware, allowed_hosts=_NAMES, www_redirect=False)
    text_fields = predictor.config.clips.text_fields
    guarded = [Depends(HTTPBearer(auto_error=False)), Depends(_guard(keys))]

    schema = {"type": "object", "properties": _fields(text_fields)}
    extra = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}

    @api.post("/predict", dependencies=guarded, openapi_extra=extra, responses=_answers(rules))
    async def predict(request: Request) -> Response:
        """Answer one clip: a `file`, or the `path` of one below the server's --root. With `stream` the answer comes as
        server-sent events: `waiting`, `trace` (what was written since the last), and `answer` or `error`."""
        inbox: asyncio.Queue[Message] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            question = line.enter(lambda message: loop.call_soon_threadsafe(inbox.put_nowait, message))
        except Full as full:
            sentence = f"{places} clips wait already. Ask again in {full.seconds} s"
            raise HTTPException(429, sentence, {"Retry-After": str(full.seconds)}) from full
        except Closed as closed:
            raise _stopping() from closed
        try:
            await _receive(_bounded(request, most_bytes), question, scratch.path, root, text_fields)
            question.info = await asyncio.to_thread(
                video.probe, question.path, video.Limits.of(predictor.config.video), isolate=True
            )
            line.ask(question)
        except BaseException as error:
            line.leave(question, "gone" if isinstance(error, ClientDisconnect | asyncio.CancelledError) else "refused")
            if isinstance(error, VideoError):
                return _unreadable(sentence_of(error, question), str(error.reason))
            if isinstance(error, ClientDisconnect):
                return Response(status_code=499)
            if isinstance(error, Closed):
                raise _stopping() from error
            if isinstance(error, OSError):
                raise HTTPException(507, str(disk.refusal(error, "the folder of uploads"))) from error
            raise
        return _Reply(line, question, inbox, rules)

    @api.get("/health", responses={503: {"description": "It is stopping, or its worker has ended."}})
    def health() -> JSONResponse:
        """Whether it answers, which system, and how long the line is."""
        body = {"ok": line.open, "system": predictor.system, "labels": list(predictor.labels)}
        body |= {"waiting": line.taken, "places": places, "answering": len(line.batch), "version": __version__}
        return JSONResponse(body, 200 if line.open else 503)

    @api.get("/metrics", dependencies=guarded)
    def metrics() -> Response:
        """Counts and times in the text form of Prometheus."""
        return Response(generate_latest(line.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @api.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        page = jinja2.Environment(autoescape=True, loader=jinja2.PackageLoader("deepintuit_clips.serve"))
        return HTMLResponse(page.get_template("api.html").render(api=api.openapi()))

    return api


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.line.close()  # those that wait hear of it before their connections are waited for
        await super().shutdown(sockets)


def listen(api: FastAPI, at: socket.socket, grace: int) -> None:
    """Serve at a bound socket until SIGTERM or Ctrl-C; what is being answered has `grace` seconds to end."""
    settings = {"proxy_headers": False, "log_level": "warning", "timeout_graceful_shutdown": grace}
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more at its end
    with contextlib.suppress(KeyboardInterrupt):
        _Server(uvicorn.Config(api, http=Patient, **settings)).run(sockets=[at])


# What comes in


def _guard(keys: Sequence[str]) -> Callable[[Request], None]:
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def guard(request: Request) -> None:
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest() if kind.lower() == "bearer" else b""
        if digests and not any(hmac.compare_digest(digest, allowed) for allowed in digests):
            raise HTTPException(401, "A key of this server is needed: Authorization: Bearer KEY", _CHALLENGE)
        if not digests and request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise HTTPException(403, "This came from another site's page, and this server asks for no key")

    return guard


def _bounded(request: Request, most: int) -> Request:
    """The same request, whose body ends in an `HTTPException` where a file in it would be larger."""
    came, sentence = 0, f"A clip of more than {most >> 20} MiB is not taken: cut or scale it down"
    if int(request.headers.get("content-length", 0)) > most + _ENVELOPE:
        raise HTTPException(413, sentence)

    async def receive() -> Any:
        nonlocal came
        message = await request.receive()
        came += len(message.get("body", b""))
        if came > most + _ENVELOPE:
            raise HTTPException(413, sentence)
        return message

    return Request(request.scope, receive)


async def _receive(
    request: Request, question: Question, folder: Path, root: Path | None, fields: Sequence[str]
) -> None:
    """The form of a request, into its question. Raises `HTTPException` for what is none, and `ClientDisconnect`."""
    async with request.form(max_files=1, max_fields=3, max_part_size=_FORM) as form:
        if unknown := sorted(set(form) - set(_fields(fields))):
            raise HTTPException(422, f"The field {unknown[0][:100]!r} means nothing here: see /docs")
        file, path = form.get("file"), form.get("path")
        if isinstance(file, UploadFile) == isinstance(path, str) or not isinstance(file or path, UploadFile | str):
            raise HTTPException(422, "No clip, or two of them: send a form with `file`, or with `path`")
        question.streams = form.get("stream") in ("true", "1")
        question.texts = _texts(form.get("texts"), fields)
        name = path if file is None else file.filename or "clip"
        question.name = name.encode("utf-8", "replace").decode()[:1000]
        if file is None:
            question.path = await asyncio.to_thread(_below, root, path)
        else:
            question.path, question.upload = folder / secrets.token_hex(16), True
            await asyncio.to_thread(_keep, file.file, question.path)


def _keep(file: Any, path: Path) -> None:
    with open(path, "xb") as target:
        shutil.copyfileobj(file, target)


def _below(root: Path | None, name: str) -> Path:
    """The file of this name below the root, links followed."""
    if root is None:
        raise HTTPException(422, "This server takes no paths: send the clip as `file`, or start it with --root")
    try:
        path = (root / name).resolve(strict=True)
        if path.is_relative_to(root) and path.is_file():
            return path
    except (OSError, RuntimeError, ValueError):
        pass
    raise HTTPException(404, "There is no such file below this server's root")


def _texts(field: Any, fields: Sequence[str]) -> dict[str, str]:
    """The texts beside a clip: those that the system was taught with, each once."""
    try:
        body = texts.parse_json(field, unique=True) if field else {}
    except ValueError:
        body = None
    fits = isinstance(body, dict) and all(isinstance(value, str) for value in body.values())
    if not fits or set(body) != set(fields):
        names = ", ".join(fields) or "none"
        raise HTTPException(
            422, f"`texts` is no JSON object of the texts that this system reads beside a clip: {names}"
        )
    return {name: body[name].encode("utf-8", "replace").decode() for name in fields if body[name]}


# What goes out


class _Reply(Response):
    """What becomes of a question, as one answer or as events. It ends with its client, and gives the place back."""

    def __init__(self, line: Line, question: Question, inbox: asyncio.Queue[Message], rules: Any):
        super().__init__()
        self._line, self._question, self._inbox, self._rules = line, question, inbox, rules

    async def __call__(self, scope, receive, send) -> None:
        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        reply = self._streamed(send) if self._question.streams else self._whole(scope, receive, send)
        work, client_gone, outcome = asyncio.ensure_future(reply), asyncio.ensure_future(gone()), "gone"
        try:
            await asyncio.wait({work, client_gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                outcome = work.result()
        finally:
            work.cancel()
            client_gone.cancel()
            self._line.leave(self._question, outcome)

    async def _whole(self, scope, receive, send) -> str:
        while (message := await self._inbox.get()).kind in ("waiting", "trace"):
            pass
        status, body = self._body(message)
        headers = {"Retry-After": "5"} if status == 503 else None
        await Response(body, status, headers, "application/json")(scope, receive, send)
        return self._outcome(message)

    async def _streamed(self, send) -> str:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        message = None
        while message is None or message.kind in ("waiting", "trace"):
            try:
                message = await asyncio.wait_for(self._inbox.get(), _PING)
            except TimeoutError:
                event = KEEPALIVE_COMMENT
            else:
                status, body = self._body(message)
                kind = message.kind if status == 200 else "error"
                event = format_sse_event(event=kind, data_str=body.decode().strip())
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return self._outcome(message)

    def _body(self, message: Message) -> tuple[int, bytes]:
        if message.kind == "answer":
            table = pa.Table.from_pylist([message.data], schema=self._rules.schema)
            return 200, b"".join(written(iter([table]), "jsonl"))
        if message.kind == "closed":
            status, body = 503, {"detail": _STOPPING}
        elif message.kind == "failed":
            status = 422 if message.reason else 500
            body = {"detail": message.data, **({"reason": message.reason} if message.reason else {})}
        else:
            status, body = 200, message.data
        return status, json.dumps(body).encode()

    def _outcome(self, message: Message) -> str:
        if message.kind != "answer":
            return "unreadable" if message.reason else message.kind
        self._line.metrics.seconds.observe(time.monotonic() - self._question.since)
        return "unlike" if message.data["unlike"] else "abstained" if message.data["abstain"] else "answered"


# What /openapi.json says


def _fields(text_fields: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The fields of a form, as JSON Schema."""
    fields: dict[str, Any] = {
        "file": {"type": "string", "format": "binary", "description": "the clip"},
        "path": {"type": "string", "description": "instead: where it lies below the server's --root"},
        "stream": {"type": "boolean", "default": False, "description": "answer with server-sent events"},
    }
    about = f"a JSON object of the texts beside the clip: {', '.join(text_fields)}"
    return {**fields, **({"texts": {"type": "string", "description": about}} if text_fields else {})}


def _answers(rules: Any) -> dict[int | str, dict[str, Any]]:
    def kind(of: pa.DataType) -> dict[str, Any]:
        return {"type": "array", "items": kind(of.value_type)} if pa.types.is_list(of) else {"type": _KINDS[of]}

    columns = {column.name: {"anyOf": [kind(column.type), {"type": "null"}]} for column in rules.schema}
    answer = {"application/json": {"schema": {"title": "Answer", "type": "object", "properties": columns}}}
    return {200: {"description": "A row of the table of `deepintuit predict`", "content": answer}} | {
        status: {"description": about} for status, about in _REFUSED.items()
    }


def _unreadable(sentence: str, reason: str) -> JSONResponse:
    return JSONResponse({"detail": sentence, "reason": reason}, 422)


def _stopping() -> HTTPException:
    return HTTPException(503, _STOPPING, {"Retry-After": "5"})
