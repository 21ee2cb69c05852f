"""Asking an endpoint: a bounded number at once, tries with back-off, answers kept on disk, a key that stays unseen."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from deepintuit import disk
from deepintuit.config import EndpointConfig
from deepintuit.endpoint import wire
from deepintuit.endpoint.wire import Completion, NotACompletion, Request
from deepintuit.errors import TeachError
from deepintuit.runs import without_secrets

# Raise when the way frames are shown changes, so that old answers are not met again.
RECIPE = 1
LONGEST_WAIT = 60.0
"""Seconds between two tries, at most, when the server names no time."""
PATIENCE = 600.0
"""Seconds of Retry-After past which a server is taken for closed (a daily quota, say)."""
_LONGEST_ERROR = 64 << 10  # bytes of an error message
_TRANSIENT = {408, 425, 429}
_THIS_REQUEST = {400, 413, 415, 422}
_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?", re.I)
_PATH = re.compile(r"[^\s?#\\]+")
_END = object()
BETWEEN_LOOKS = 1 / 30
"""Seconds between two looks at a text that is being written; a screen shows no more."""
_Live = tuple[Callable[[Request, str, int], None], Callable[[], bool]]


class Refused(TeachError):
    """The endpoint will not answer this request (400, 413, 415, 422). Others may pass; asking again would not help."""

    reason = "refused"


class Unreachable(TeachError):
    """No usable answer to this request after all tries. Asking again later may help."""


Outcome = Completion | Refused | Unreachable


@dataclass
class Usage:
    """What was asked so far. `paid` answers came over the line, `cached` from disk; tokens are those of the paid."""

    paid: int = 0
    cached: int = 0
    retries: int = 0
    failed: int = 0
    without_usage: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def count(self, answer: Completion) -> None:
        if answer.cached:
            self.cached += 1
            return
        self.paid += 1
        self.without_usage += None in (answer.prompt_tokens, answer.completion_tokens)
        self.prompt_tokens += answer.prompt_tokens or 0
        self.completion_tokens += answer.completion_tokens or 0


class Endpoint:
    """A model at an address, or at several with commas between; `usage` grows with every answer. `TeachError` for an
    address or key that cannot be one.

    `section` of the settings is what its errors point at. `timeout`, in seconds, is for a whole try; `backoff` is the
    first wait between two, doubled each time, with jitter. `token_field` is what the server calls the bound of an
    answer; `send_temperature` false leaves that out. A model that refuses one of them by name is asked again in the
    other way, and so are all requests after it; `left_out` says which. `scope`: answers are kept for those of the
    same one alone, a run for one, where other weights may come to be served under the same name.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        retries: int = 6,
        timeout: float = 120.0,
        backoff: float = 1.0,
        cache: Path | None = None,
        section: str = "teach",
        token_field: str = "max_tokens",
        send_temperature: bool = True,
        scope: str = "",
    ) -> None:
        self.section = section
        self.base_url, self.model, self.key_variable = base_url.rstrip("/"), model, key_variable
        self.addresses = [address.rstrip("/") for address in base_url.split(",")]
        self.concurrency, self.retries, self.timeout, self.backoff = concurrency, retries, timeout, backoff
        # Synced: what is in it was paid for.
        self.cache = None if cache is None else disk.JsonCache(Path(cache) / "endpoint", durable=True)
        self.usage = Usage()
        self.send_temperature, self.scope = send_temperature, scope
        self.left_out = {"max_tokens"} - {token_field} | ({"temperature"} if not send_temperature else set())
        self._jitter = random.Random()
        self.host = ", ".join(dict.fromkeys(map(self._checked_host, self.addresses)))
        self._key()

    @classmethod
    def of(cls, settings: EndpointConfig, cache: Path | None = None, scope: str = "") -> Endpoint:
        """The endpoint that the section `teach`, `judge` or `server` names."""
        return cls(
            settings.base_url,
            settings.model,
            key_variable=settings.key_variable,
            concurrency=settings.concurrency,
            retries=settings.retries,
            timeout=settings.timeout,
            cache=cache,
            token_field=settings.token_field,
            send_temperature=settings.send_temperature,
            section=settings.dotted(),
            scope=scope,
        )

    def complete_many(
        self,
        requests: Iterable[Request],
        on_done: Callable[[Request, Outcome], None] | None = None,
        *,
        on_text: Callable[[Request, str, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Usage:
        """Answer all requests, at most `concurrency` at a time. Works in plain code and in a notebook's event loop.

        Requests are drawn one by one as places become free, in another thread, so a generator may read clips lazily.
        `on_done(request, outcome)` is called one at a time, in the order of the answers; an outcome is a `Completion`,
        or the error of that request alone. What would fail every request (401, 403, 404, a redirect) raises
        `TeachError` at once, and so do failures in a row, twice as many as places: then nobody is there. An exception
        of `on_done` ends the work. Answers that came before stay in the cache.

        With `on_text` or `stop` answers are streamed: `on_text(request, text so far, tokens)` is called as they come,
        and once `stop()` is true connections are closed, what has come is an answer cut short, and no more is asked.
        """
        live = None if on_text is stop is None else (on_text or (lambda *_: None), stop or (lambda: False))
        return _in_an_event_loop(self._complete_many(requests, on_done, live))

    def tell(self, route: str, fields: Mapping[str, Any] | None = None, *, remedy: str) -> list[Any]:
        """What each server replies at a `route` of its root: GET, or POST of `fields`. Raises `TeachError`, which ends
        with the `remedy`, for a status other than 200, and where nobody answers."""
        return _in_an_event_loop(self._tell_all(route, fields, remedy))

    # Asking

    async def _tell_all(self, route: str, fields: Mapping[str, Any] | None, remedy: str) -> list[Any]:
        body = None if fields is None else json.dumps(fields).encode("ascii")
        replies = []
        async with httpx.AsyncClient(timeout=self.timeout) as client:
            for address in self.addresses:
                host, url = self._checked_host(address), address.removesuffix("/v1") + route
                try:
                    status, _, reply = await self._post(client, url, body, None)
                except (httpx.RequestError, NotACompletion) as error:
                    late = isinstance(error, httpx.TimeoutException)
                    todo = f"Raise {self.section}.timeout, now {self.timeout:g} s, and rerun the command"
                    what = f"{host} gives {_spoken(error)} at {route}"
                    raise Unreachable(what, "no answer came", todo if late else remedy) from error
                if status != 200:
                    reason = " ".join(without_secrets([reply])[0].split())[:400] or "it says no more"
                    raise TeachError(f"{host} answers {route} with status {status}", reason, remedy)
                replies.append(reply)
        return replies

    async def _complete_many(
        self, requests: Iterable[Request], on_done: Callable[[Request, Outcome], None] | None, live: _Live | None
    ) -> Usage:
        queue, turn = iter(requests), asyncio.Lock()
        answers, failed_in_a_row = 0, 0

        async def work(client: httpx.AsyncClient) -> None:
            nonlocal answers, failed_in_a_row
            while not (live and live[1]()):
                async with turn:
                    request = await asyncio.to_thread(next, queue, _END)
                if request is _END:
                    return
                outcome: Outcome
                try:
                    outcome = await (self._watched(client, request, *live) if live else self._complete(client, request))
                    self.usage.count(outcome)
                    answers += not outcome.lacking
                    failed_in_a_row = failed_in_a_row + 1 if outcome.lacking and not answers else 0
                except (Refused, Unreachable) as error:
                    outcome = error
                    self.usage.failed += 1
                    # A model that answers others may refuse many; one that never answered is asked in the wrong way.
                    failed_in_a_row += not (answers and isinstance(error, Refused))
                if on_done is not None:
                    on_done(request, outcome)
                if failed_in_a_row >= 2 * self.concurrency:
                    raise outcome if isinstance(outcome, TeachError) else self.empty(outcome)

        limits = httpx.Limits(max_connections=self.concurrency)
        try:
            async with httpx.AsyncClient(timeout=self.timeout, limits=limits) as client, asyncio.TaskGroup() as group:
                for _ in range(self.concurrency):
                    group.create_task(work(client))
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        return self.usage

    async def _watched(
        self,
        client: httpx.AsyncClient,
        request: Request,
        on_text: Callable[[Request, str, int], None],
        stop: Callable[[], bool],
    ) -> Completion:
        arriving, start = [wire.Arriving()], time.perf_counter()  # the last is of the last try
        task = asyncio.ensure_future(self._complete(client, request, arriving))
        text = ""
        try:
            while not task.done() and not stop():
                await asyncio.wait({task}, timeout=BETWEEN_LOOKS)
                if arriving[-1].text != text:
                    text = arriving[-1].text
                    on_text(request, text, arriving[-1].tokens)
            if task.done():
                return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})  # its connection is closed
        return wire.completion_in(arriving[-1].answer(stopped=True), (time.perf_counter() - start) * 1000)

    async def _complete(
        self, client: httpx.AsyncClient, request: Request, arriving: list[wire.Arriving] | None = None
    ) -> Completion:
        key = self._key_of(request)
        if (cached := _answer_of(self.cache.get(*key) if self.cache else None)) is not None:
            return cached
        left_out = set(self.left_out)
        streams = arriving is not None
        body = await asyncio.to_thread(self._body, request, left_out, streams)
        # Requests about one clip go to one server, which computes their prompt once; where it fails, to the next.
        place = zlib.crc32((request.frames.hash if request.frames else request.text).encode(errors="replace"))
        tries = 0
        while tries <= self.retries:
            url = f"{self.addresses[(place + tries) % len(self.addresses)]}/chat/completions"
            wait = min(self.backoff * 2**tries, LONGEST_WAIT) * self._jitter.uniform(0.5, 1.0)
            tries += 1
            start = time.perf_counter()
            try:
                # httpx limits each read, this the whole: a server that drips a byte a second is slow too.
                async with asyncio.timeout(self.timeout):
                    if arriving:
                        arriving.append(wire.Arriving())
                    status, headers, reply = await self._post(client, url, body, arriving[-1] if arriving else None)
                if status == 200:
                    milliseconds = (time.perf_counter() - start) * 1000
                    completion = (
                        wire.completion(reply, milliseconds)
                        if isinstance(reply, str)
                        else wire.completion_in(reply.answer(), milliseconds)
                    )
                    self.left_out |= left_out
                    completion = replace(completion, left_out=tuple(sorted(left_out - {"max_tokens"})))
                    if self.cache and not completion.lacking:
                        self.cache.put(_entry_of(completion), *key)
                    return completion
                if self._asks_otherwise(status, reply, left_out):
                    body, tries = await asyncio.to_thread(self._body, request, left_out, streams), tries - 1
                    continue
                if not _may_pass(status):
                    raise self._verdict(status, reply)
                what, pause = f"status {status}", wire.retry_after(headers.get("Retry-After"))
                if pause > PATIENCE:
                    raise self._unreachable(f"{what} and asks to come back in {pause:.0f} s", tries)
                wait += pause
            except TimeoutError:
                what = f"no answer within {self.timeout:g} s"
            except (httpx.RequestError, NotACompletion) as error:
                what = _spoken(error)
                if isinstance(error, NotACompletion) and error.status != 200 and not _may_pass(error.status):
                    raise self._verdict(error.status, what) from error
            if tries <= self.retries:
                self.usage.retries += 1
                await asyncio.sleep(wait)
        raise self._unreachable(what, self.retries + 1)

    async def _post(
        self, client: httpx.AsyncClient, url: str, body: bytes | None, arriving: wire.Arriving | None
    ) -> tuple[int, httpx.Headers, str | wire.Arriving]:
        """Status, headers and text; `arriving`, filled, where it came in pieces. Of an answer nothing is taken that is
        larger than an answer can be; of an error message, what is over is left."""
        headers = self._headers() | ({"Accept-Encoding": "identity"} if arriving else {})
        async with client.stream("POST" if body else "GET", url, content=body, headers=headers) as answer:
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            in_pieces = arriving is not None and answer.status_code == 200 and kind == "text/event-stream"
            if in_pieces:
                wire.unpacked(b"", answer.headers.get("Content-Encoding", ""))  # refuses what is packed
            raw, size = bytearray(), 0
            async for chunk in answer.aiter_raw():
                size += len(chunk)
                if answer.status_code == 200:
                    wire.within_bounds(size)
                elif size > _LONGEST_ERROR:
                    break
                if in_pieces:
                    arriving.feed(chunk)
                else:
                    raw += chunk
        if in_pieces:
            arriving.feed(b"\n")
            return answer.status_code, answer.headers, arriving
        return answer.status_code, answer.headers, self._said(bytes(raw), answer)

    def _said(self, raw: bytes, answer: httpx.Response) -> str:
        """The text of a body, without the key; of an error that cannot be read, what stands in the way."""
        try:
            return self._safe(wire.unpacked(raw, answer.headers.get("Content-Encoding", "")))
        except NotACompletion as error:
            if answer.status_code == 200:
                raise
            return str(error)

    def _asks_otherwise(self, status: int, reply: str, left_out: set[str]) -> bool:
        """Whether the error names fields that the model does not take, and that were not left out yet: now they are."""
        fields = wire.refused_fields(reply) - left_out if status in _THIS_REQUEST else set()
        left_out |= fields
        return bool(fields)

    def _body(self, request: Request, left_out: Collection[str], streams: bool = False) -> bytes:
        tokens = "max_completion_tokens" if "max_tokens" in left_out else "max_tokens"
        fields = {"model": self.model, "messages": request.messages(), tokens: request.max_tokens, "stream": streams}
        fields |= {"temperature": request.temperature, **request.more}
        if streams:
            fields["stream_options"] = {"include_usage": True}
        fields = {name: value for name, value in fields.items() if name == "max_tokens" or name not in left_out}
        # Escaped to ASCII, so that a lone surrogate in a clip's title is not what stops a job.
        return json.dumps(fields).encode("ascii")

    def _key_of(self, request: Request) -> list[Any]:
        """What names an answer in the cache: all that was asked."""
        frames = request.frames.hash if request.frames is not None else None
        address = self.base_url if not self.scope else None  # a run goes on wherever its server is started again
        parts = [RECIPE, address, self.model, request.text, frames, request.temperature, request.max_tokens]
        # Came later: at their defaults, answers kept before are met again.
        later = [{"seed": request.seed}] * bool(request.seed) + ["no temperature"] * (not self.send_temperature)
        form = {"more": request.more, "video": request.video, "coding": request.coding, "reply": request.reply}
        later += [{"scope": self.scope, **form}] * bool(self.scope or request.more or request.reply)
        return [*parts, request.sample, *later]

    # The address, the key, and what is said when they fail

    def _checked_host(self, address: str) -> str:
        example = f"Write http(s)://host[:port]/v1, for example --set {self.section}.base_url=http://127.0.0.1:8000/v1"
        try:
            url = httpx.URL(address)
            name, host = url.host, url.netloc.decode("ascii")
        except (httpx.InvalidURL, ValueError) as error:  # idna raises the latter
            why = str(error) if "@" not in address else "it cannot be read"  # which may quote a password
            raise TeachError(f"{self.section}.base_url is not an address", why, example) from None
        if url.userinfo or url.query or url.fragment:
            raise TeachError(
                f"{self.section}.base_url for {name!r} carries more than an address",
                "a key or password in it would be written to run.json",
                f"Leave only http(s)://host[:port]/v1 and export the key under the name in {self.section}.key_variable",
            )
        why = ""
        if url.scheme not in ("http", "https") or not name:
            why = "an endpoint has an http or https address"
        elif not (":" in name or _HOST.fullmatch(url.raw_host.decode("ascii"))):
            why = f"{name!r} is no name of a host"
        elif url.port is not None and not 0 < url.port < 2**16:
            why = f"{url.port} is no port: they are numbers from 1 to 65535"
        elif not _PATH.fullmatch(address):
            why = "it holds a space, or a `?` or `#` behind which a server looks for no path"
        if why:
            raise TeachError(f"{self.section}.base_url = {address!r}", why, example)
        if not self.model:
            setting = f"{self.section}.model"
            raise TeachError(f"{setting} is empty", f"{name} serves models by name", f"Set {setting}")
        return host

    def _key(self) -> str:
        """The key, "" when there is none (local servers need none). Never kept."""
        # The name is checked by its form and not shown, because the likeliest mistake is to put the key itself there.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key_variable):
            raise TeachError(
                f"{self.section}.key_variable is not the name of an environment variable",
                "it must be capitals, digits and _; a key itself has no place in a config",
                "Write a name, such as OPENAI_API_KEY, and export the key under it",
            )
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise TeachError(
                f"The key in ${self.key_variable} holds characters that no header can carry",
                "keys are printable ASCII on one line",
                "Export it again",
            )
        return key

    def _headers(self) -> dict[str, str]:
        key = self._key()
        authorized = {"Authorization": f"Bearer {key}"} if key else {}
        return {"Content-Type": "application/json", "Accept-Encoding": "gzip", **authorized}

    def _safe(self, text: str) -> str:
        """Without the key: a server may echo what it was sent."""
        key = self._key()
        return text.replace(key, "***") if key else text

    def _verdict(self, status: int, reply: str) -> TeachError:
        what = f"{self.host} answers with status {status}"
        if status in (401, 403):
            return TeachError(
                what,
                f"the key in ${self.key_variable} {'is not accepted' if self._key() else 'is not set'}",
                f"Export a valid key for {self.model!r} as {self.key_variable}, or set {self.section}.key_variable",
            )
        reply = " ".join(without_secrets([reply])[0].split())[:400] or "it says no more"
        if status in _THIS_REQUEST and "--trust-request-mm-kwargs" in reply:
            return Refused(
                what,
                f"it refuses this request: {reply}",
                "Start vLLM with --trust-request-mm-kwargs: times and number of the frames are among these fields",
            )
        if status in _THIS_REQUEST:
            return Refused(
                what,
                f"it refuses this request: {reply}",
                f"Check {self.section}.model, video.frames and "
                f"{'sampling' if self.section == 'server' else 'teach'}.max_tokens against what the server allows"
                + "; to one that takes no video, send pictures: server.frames=images"
                * (self.section == "server"),
            )
        return TeachError(
            what,
            f"there is no {self.model!r} to ask at this address: {reply}",
            f"Check {self.section}.base_url (up to and with /v1) and {self.section}.model",
        )

    @property
    def unknown(self) -> str:
        """What the server does not take, so that it answers without, in a sentence; "" for nothing."""
        names = ", ".join(sorted(self.left_out - {"max_tokens", "stream_options"}))
        return f"{self.model} at {self.host} does not know {names}, and answers without" if names else ""

    def empty(self, answer: Completion) -> TeachError:
        """What to say of an answer that holds nothing to use."""
        return TeachError(
            f"{self.model!r} at {self.host} gives answers without a text",
            f"{answer.lacking} (finish_reason {answer.finish_reason!r})",
            f"Mend the server, or raise {self.section}.max_tokens, and rerun the command; such answers are not kept",
        )

    def _unreachable(self, what: str, tries: int) -> Unreachable:
        return Unreachable(
            f"{self.host} gives {what}",
            f"no answer came in {tries} {'try' if tries == 1 else 'tries'}",
            "Rerun the command later: what was answered is kept and not asked again",
        )


def _may_pass(status: int) -> bool:
    return status in _TRANSIENT or status >= 500


def _spoken(error: Exception) -> str:
    if isinstance(error, NotACompletion):
        return str(error)
    return f"{type(error).__name__} ({error})" if str(error) else type(error).__name__


def _in_an_event_loop(work: Coroutine[Any, Any, Usage]) -> Usage:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # A notebook has a loop already, and a loop cannot wait inside itself.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _answer_of(entry: Any) -> Completion | None:
    """The answer in an entry of the cache; None where it is damaged or empty, as some once were: it is asked again."""
    try:
        completion = Completion(**(entry | {"cached": True}))
        usable = completion.text.strip() or completion.prompt_logprobs
        return replace(completion, left_out=tuple(completion.left_out)) if usable else None
    except (TypeError, AttributeError):
        return None


def _entry_of(answer: Completion) -> dict[str, Any]:
    came_later = ("lacking", "left_out", "logprobs", "token_ids", "prompt_logprobs")
    return {name: value for name, value in asdict(answer).items() if value or name not in came_later}
