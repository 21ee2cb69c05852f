"""What is sent to an endpoint and what it answers, as data. Nothing here opens a connection or knows a key."""

from __future__ import annotations

import base64
import email.utils
import io
import json
import math
import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from deepintuit.texts import decoded, parse_json
from deepintuit.trace import THINK

JPEG_QUALITY = 90


class Pictures(Protocol):
    """What is shown of a clip, as `video.Frames` has it: uint8 RGB pixels, times and length in seconds, a hash."""

    pixels_T_H_W_3: np.ndarray
    times_T: np.ndarray
    seconds: float
    hash: str


class NotACompletion(Exception):
    """Status 200, and yet no answer. `status` is the one that the server should have given, where its body says so."""

    def __init__(self, why: str, status: int = 200) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, eq=False)
class Request:
    """One question about a clip, or about no clip (`frames` None). `sample` tells the repeats of a question apart.

    `max_tokens` bounds the answer. `seed` is not sent: under another one, an answer that is kept is not met again.
    `more`: further fields, of which those in `LEFT_OUT` are left out where the server refuses them by name. `video`:
    the frames are one video, a list of pictures; else each is a picture behind its time. `coding` of a picture: PNG
    or JPEG. `reply`: a whole turn of the assistant behind the question, to be scored. `tag` is the caller's own and
    not sent.
    """

    text: str
    frames: Pictures | None = None
    temperature: float = 0.0
    max_tokens: int = 2048
    sample: int = 0
    seed: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)
    video: bool = False
    coding: str = "jpeg"
    reply: str | None = None
    tag: Any = None

    def messages(self) -> list[dict[str, Any]]:
        """A turn of the user, the frames and then the question, and the `reply` where there is one."""
        content: Any = self.text
        if self.frames is not None:
            content = [*(self._video() if self.video else self._pictures()), {"type": "text", "text": self.text}]
        replied = [] if self.reply is None else [{"role": "assistant", "content": self.reply}]
        return [{"role": "user", "content": content}, *replied]

    def _pictures(self) -> list[dict[str, Any]]:
        count, seconds = len(self.frames.times_T), self.frames.seconds
        content: list[dict[str, Any]] = [{"type": "text", "text": f"{count} frames of a clip of {seconds:.2f} s:"}]
        for moment, picture in zip(self.frames.times_T, self._coded(), strict=True):
            url = f"data:image/{self.coding};base64,{picture}"
            content += [{"type": "text", "text": f"{moment:.2f} s"}, {"type": "image_url", "image_url": {"url": url}}]
        return content

    def _video(self) -> list[dict[str, Any]]:
        """As vLLM takes a client's own frames; it looks at the bytes of each to see which kind of picture it is."""
        return [{"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(self._coded())}}]

    def _coded(self) -> Iterator[str]:
        options = {"quality": JPEG_QUALITY} if self.coding == "jpeg" else {"compress_level": 1}
        for pixels_H_W_3 in self.frames.pixels_T_H_W_3:
            picture = io.BytesIO()
            Image.fromarray(pixels_H_W_3).save(picture, self.coding.upper(), **options)
            yield base64.b64encode(picture.getvalue()).decode("ascii")


NOTHING = "it wrote nothing"
LEFT_OUT = (
    *("max_tokens", "temperature", "logprobs", "return_token_ids", "seed", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "stream_options"),
)
"""Fields that a request can do without: by another name, or with less in the answer."""


@dataclass(frozen=True)
class Completion:
    """An answer. Token counts are None where the server gave none that can be. `milliseconds` of the last try.

    Thinking that the server took out of the text stands in it again, between `<think>` and `</think>`. `lacking` says
    why there is nothing to use (refused, filtered, `NOTHING`); such an answer is not kept. `left_out` names what was
    asked for and could not be sent, since the model refuses it. Where it was asked for and is given: `logprobs` and
    `token_ids` of the tokens written, the end token included, and of each token of the prompt but the first the
    log-probabilities by id, `prompt_logprobs`.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    milliseconds: float
    cached: bool = False
    lacking: str = ""
    left_out: tuple[str, ...] = ()
    logprobs: Sequence[float] | None = None
    token_ids: Sequence[int] | None = None
    prompt_logprobs: Sequence[Mapping[str, float]] | None = None

    @property
    def truncated(self) -> bool:
        """The answer was cut at `max_tokens`."""
        return self.finish_reason == "length"


def completion(text: str, milliseconds: float) -> Completion:
    """The answer in a response body. Raises `NotACompletion` when there is none; wrong token counts become None."""
    try:
        return completion_in(parse_json(text), milliseconds)
    except ValueError as error:
        raise NotACompletion(f"status 200 without a chat completion ({text[:80]!r})") from error


def completion_in(answer: Any, milliseconds: float) -> Completion:
    """As `completion`, of a body that is parsed."""
    try:
        _raise_said(answer)
        choice = answer["choices"][0]
        _raise_said(choice)
        pieces, reason = _pieces(choice["message"]), str(choice.get("finish_reason") or "unknown")[:100]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotACompletion(f"status 200 without a chat completion ({json.dumps(answer)[:80]!r})") from error
    content = _put_back(pieces.thinking, pieces.content)
    prompt_tokens, completion_tokens = (_tokens(answer.get("usage"), name) for name in ("prompt", "completion"))
    tokens = {"logprobs": _logprobs(choice), "token_ids": _ids(choice.get("token_ids"))}
    tokens["prompt_logprobs"] = _prompt_logprobs(answer.get("prompt_logprobs"))
    lacking = _lacking(content, pieces.refusal, reason, "tool_calls" in choice["message"])
    lacking = "" if tokens["prompt_logprobs"] else lacking  # what was asked for is there
    return Completion(content, reason, prompt_tokens, completion_tokens, milliseconds, lacking=lacking, **tokens)


def _logprobs(choice: Mapping[str, Any]) -> list[float] | None:
    """Of the tokens written; None where one of them has none that can be."""
    entries = choice["logprobs"].get("content") if isinstance(choice.get("logprobs"), dict) else None
    entries = entries if isinstance(entries, list) else []
    values = [entry.get("logprob") if isinstance(entry, dict) else None for entry in entries]
    return values if values and all(map(_is_logprob, values)) else None


def _is_logprob(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value <= 1e-3


def _ids(values: Any) -> list[int] | None:
    fits = isinstance(values, list) and all(type(value) is int and 0 <= value < 2**31 for value in values)
    return values if fits and values else None


def _prompt_logprobs(entries: Any) -> list[dict[str, float]] | None:
    if not isinstance(entries, list):
        return None
    tables = [entry if isinstance(entry, dict) else {} for entry in entries]
    values = [{k: v.get("logprob") for k, v in table.items() if isinstance(v, dict)} for table in tables]
    return [{token: value for token, value in table.items() if _is_logprob(value)} for table in values]


class Arriving:
    """An answer that comes in pieces, as server-sent events: what has come, and the whole in the form of one body."""

    def __init__(self) -> None:
        self._rest, self._thinking, self._content, self._refusal = b"", "", "", ""
        self._reason: Any = None
        self._fields: dict[str, Any] = {}
        self._logprobs: list[Any] = []
        self._ids: list[Any] = []
        self._pieces = 0

    @property
    def text(self) -> str:
        return _put_back(self._thinking, self._content)

    @property
    def tokens(self) -> int:
        """How many have come, as far as can be told."""
        return max(len(self._logprobs), len(self._ids)) or self._pieces

    def feed(self, chunk: bytes) -> None:
        """Raises `NotACompletion` for an error among the events, and what is no chunk of an answer."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.partition(b":")
            if name.strip() == b"data" and value.strip() not in (b"", b"[DONE]"):
                self._take(value)

    def _take(self, value: bytes) -> None:
        try:
            event = parse_json(decoded(value))
            _raise_said(event)
            self._fields |= {name: event[name] for name in ("usage", "prompt_logprobs") if event.get(name)}
            for choice in event["choices"]:
                _raise_said(choice)
                pieces = _pieces(choice.get("delta") or {})
                self._thinking, self._content = self._thinking + pieces.thinking, self._content + pieces.content
                self._refusal += pieces.refusal
                self._pieces += bool(pieces.thinking or pieces.content)
                self._logprobs += (choice.get("logprobs") or {}).get("content") or []
                self._ids += choice.get("token_ids") or []
                self._reason = choice.get("finish_reason") or self._reason
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotACompletion(f"an event that is no part of a chat completion ({value[:80]!r})") from error

    def answer(self, stopped: bool = False) -> dict[str, Any]:
        """The whole as one body; raises `NotACompletion` where it has not ended, unless it was `stopped`."""
        if self._reason is None and not stopped:
            raise NotACompletion("an answer that broke off")
        thinking = {"reasoning": self._thinking} if self._thinking else {}
        message = {"content": self._content, "refusal": self._refusal or None, **thinking}
        choice = {"message": message, "finish_reason": self._reason or "length", "token_ids": self._ids}
        return {"choices": [{**choice, "logprobs": {"content": self._logprobs}}], **self._fields}


def _put_back(thinking: str, content: str) -> str:
    """The text as the model wrote it, before a server's reasoning parser took the thinking out. A content with marks of
    its own is whole; without any content the parser saw no end of the thinking."""
    if not thinking or THINK.open in content or THINK.close in content:
        return content
    text = thinking if THINK.open in thinking else THINK.open + thinking
    return text + (THINK.close if content.strip() and THINK.close not in thinking else "") + content


def _lacking(content: str, refusal: str, reason: str, calls: bool = False) -> str:
    """Why an answer cannot be used; "" where it can."""
    if reason.casefold() in _FILTERED:
        return f"a content filter stopped it ({reason})"
    if content.strip():
        return ""
    if refusal:
        return f"it refuses: {' '.join(refusal.split())[:200]}"
    if reason == "length":
        return "it used up max_tokens before it wrote an answer"
    return "it calls a tool instead of answering" if calls else NOTHING


_FILTERED = {"content_filter", "safety", "recitation", "prohibited_content", "blocklist"}
_THINKING = ("reasoning_content", "reasoning", "thinking")


class _Pieces(NamedTuple):
    content: str
    thinking: str
    refusal: str


def _pieces(message: Mapping[str, Any]) -> _Pieces:
    """What a message holds. Its content is a text, a list of parts, or null."""
    content, refusal = message.get("content"), message.get("refusal")
    thinking = next((words for name in _THINKING if (words := _words(message.get(name)))), "")
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, str | dict | None) for part in parts):
        raise NotACompletion(f"an answer that is no text but a {type(content).__name__}")
    refusal = refusal if isinstance(refusal, str) else ""
    text = ""
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind in ("thinking", "reasoning"):
            thinking += _words(part)
        elif kind == "refusal":
            refusal += _words(part.get("refusal"))
        else:
            text += _words(part)
    return _Pieces(text, thinking, refusal)


def _words(value: Any) -> str:
    """The text in a value that is one, or in parts that hold some."""
    if isinstance(value, dict):
        keys = ("text", "thinking", "content", "summary")
        return next((words for name in keys if (words := _words(value.get(name)))), "")
    if isinstance(value, list):
        return "".join(map(_words, value))
    return value if isinstance(value, str) else ""


def _raise_said(answer: Any) -> None:
    """An error that came as an answer, as some gateways send it."""
    if isinstance(answer, dict) and (error := answer.get("error")):
        message = error.get("message") if isinstance(error, dict) else error
        code = error.get("code") if isinstance(error, dict) else None
        status = code if type(code) is int and 400 <= code < 600 else 200
        raise NotACompletion(f"an error instead of an answer ({str(message)[:200]!r})", status)


def _tokens(usage: Any, kind: str) -> int | None:
    count = usage.get(f"{kind}_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 2**40 else None


def refused_fields(reply: str) -> set[str]:
    """Which fields of ours an error (of status 400 or 422) names as ones that the model does not take."""
    return {name for name in LEFT_OUT if re.search(rf"\b{name}\b", reply)} if _UNSUPPORTED.search(reply) else set()


_UNSUPPORTED = re.compile(
    r"unsupported|n.t support|not (?:permitted|allowed|accepted)|un(?:known|expected|recogni[sz]ed)|deprecated|extra"
    r"|only (?:the default|be set)|use .?max_completion_tokens",
    re.I,
)


# Bytes within bounds

MOST_BYTES = 16 << 20
"""Of an answer, packed and unpacked."""


def unpacked(content: bytes, coding: str) -> str:
    """A body as text, unpacked by its Content-Encoding to at most `MOST_BYTES`. What a server says of its charset is
    not asked: JSON is UTF-8."""
    coding = coding.strip().casefold()
    if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise NotACompletion(f"an answer packed as {coding[:40]!r}, which was not asked for")
    if coding not in ("", "identity"):
        try:
            content = zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(content, MOST_BYTES + 1)
        except zlib.error as error:
            raise NotACompletion(f"an answer that is not {coding} as it says") from error
    within_bounds(len(content))
    try:
        return decoded(content)
    except ValueError as error:
        raise NotACompletion(f"an answer that is no text ({error})") from error


def within_bounds(size: int) -> None:
    if size > MOST_BYTES:
        raise NotACompletion(f"an answer of more than {MOST_BYTES >> 20} MiB")


def retry_after(header: str | None) -> float:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; 0 when it is missing or neither."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
