"""What is sent to an endpoint and what it answers, as data. Nothing here opens a connection or knows a key."""

from __future__ import annotations

import base64
import email.utils
import io
import math
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
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
    `tag` is the caller's own and not sent.
    """

    text: str
    frames: Pictures | None = None
    temperature: float = 0.0
    max_tokens: int = 2048
    sample: int = 0
    seed: int = 0
    tag: Any = None

    def messages(self) -> list[dict[str, Any]]:
        """One user turn: each frame as a JPEG data URL behind its time in seconds, then the question."""
        if self.frames is None:
            return [{"role": "user", "content": self.text}]
        count, seconds = len(self.frames.times_T), self.frames.seconds
        content: list[dict[str, Any]] = [{"type": "text", "text": f"{count} frames of a clip of {seconds:.2f} s:"}]
        for moment, pixels_H_W_3 in zip(self.frames.times_T, self.frames.pixels_T_H_W_3, strict=True):
            picture = io.BytesIO()
            Image.fromarray(pixels_H_W_3).save(picture, "JPEG", quality=JPEG_QUALITY)
            url = "data:image/jpeg;base64," + base64.b64encode(picture.getvalue()).decode("ascii")
            content += [{"type": "text", "text": f"{moment:.2f} s"}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": [*content, {"type": "text", "text": self.text}]}]


NOTHING = "it wrote nothing"


@dataclass(frozen=True)
class Completion:
    """An answer. Token counts are None where the server gave none that can be. `milliseconds` of the last try.

    Thinking that the server took out of the text stands in it again, between `<think>` and `</think>`. `lacking` says
    why there is nothing to use (refused, filtered, `NOTHING`); such an answer is not kept. `left_out` names what was
    asked for and could not be sent, since the model refuses it.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    milliseconds: float
    cached: bool = False
    lacking: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def truncated(self) -> bool:
        """The answer was cut at `max_tokens`."""
        return self.finish_reason == "length"


def completion(text: str, milliseconds: float) -> Completion:
    """The answer in a response body. Raises `NotACompletion` when there is none; wrong token counts become None."""
    try:
        answer = parse_json(text)
        _raise_said(answer)
        choice = answer["choices"][0]
        _raise_said(choice)
        pieces, reason = _pieces(choice["message"]), str(choice.get("finish_reason") or "unknown")[:100]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotACompletion(f"status 200 without a chat completion ({text[:80]!r})") from error
    content = _put_back(pieces.thinking, pieces.content)
    prompt_tokens, completion_tokens = (_tokens(answer.get("usage"), name) for name in ("prompt", "completion"))
    lacking = _lacking(content, pieces.refusal, reason, "tool_calls" in choice["message"])
    return Completion(content, reason, prompt_tokens, completion_tokens, milliseconds, lacking=lacking)


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


def refused_field(reply: str) -> str | None:
    """Which field of ours an error (of status 400 or 422) names as one that the model does not take."""
    fields = (name for name in ("max_tokens", "temperature") if re.search(rf"\b{name}\b", reply))
    return next(fields, None) if _UNSUPPORTED.search(reply) else None


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
