"""What is sent to an endpoint and what it answers, as data. Nothing here opens a connection or knows a key.

Left out on purpose: every field that only some servers know.
"""

from __future__ import annotations

import base64
import email.utils
import io
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

JPEG_QUALITY = 90


class Pictures(Protocol):
    """What is shown of a clip, as `video.Frames` has it: uint8 RGB pixels, times and length in seconds, a hash."""

    pixels_T_H_W_3: np.ndarray
    times_T: np.ndarray
    seconds: float
    hash: str


class NotACompletion(Exception):
    """Status 200, and yet no answer."""


@dataclass(frozen=True, eq=False)
class Request:
    """One question about a clip, or about no clip (`frames` None). `sample` tells the repeats of a question apart.

    `max_tokens` bounds the answer. `tag` is the caller's own and not sent.
    """

    text: str
    frames: Pictures | None = None
    temperature: float = 0.0
    max_tokens: int = 2048
    sample: int = 0
    tag: Any = None

    def messages(self) -> list[dict[str, Any]]:
        """One user turn: each frame as a JPEG data URL behind its time in seconds, then the question."""
        if self.frames is None:
            return [{"role": "user", "content": self.text}]
        count, seconds = len(self.frames.times_T), self.frames.seconds
        shown: list[dict[str, Any]] = [{"type": "text", "text": f"{count} frames of a clip of {seconds:.2f} s:"}]
        for moment, pixels_H_W_3 in zip(self.frames.times_T, self.frames.pixels_T_H_W_3, strict=True):
            picture = io.BytesIO()
            Image.fromarray(pixels_H_W_3).save(picture, "JPEG", quality=JPEG_QUALITY)
            url = "data:image/jpeg;base64," + base64.b64encode(picture.getvalue()).decode("ascii")
            shown += [{"type": "text", "text": f"{moment:.2f} s"}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": self.text}]}]


@dataclass(frozen=True)
class Completion:
    """An answer. Token counts are None where the server gave none that can be. `milliseconds` of the last try."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    milliseconds: float
    cached: bool = False

    @property
    def truncated(self) -> bool:
        """The answer was cut at `max_tokens`."""
        return self.finish_reason == "length"


def completion(text: str, milliseconds: float) -> Completion:
    """The answer in a response body. Raises `NotACompletion` when there is none; wrong token counts become None."""
    try:
        answer = json.loads(text)
        choice = answer["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise NotACompletion(f"status 200 without a chat completion ({text[:80]!r})") from error
    if not isinstance(content, str | None):
        raise NotACompletion(f"an answer that is no text but a {type(content).__name__}")
    prompt_tokens, completion_tokens = (_tokens(answer.get("usage"), name) for name in ("prompt", "completion"))
    return Completion(content or "", str(reason or "unknown"), prompt_tokens, completion_tokens, milliseconds)


def _tokens(usage: Any, kind: str) -> int | None:
    count = usage.get(f"{kind}_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 2**40 else None


def deltas(lines: Iterable[str]) -> Iterator[str]:
    """The pieces of text in server-sent events. Raises `NotACompletion` for an event that is none, or an early end."""
    ended = False
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            choices = json.loads(data)["choices"]
            piece = choices[0]["delta"].get("content") if choices else None
            ended = ended or bool(choices and choices[0].get("finish_reason"))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise NotACompletion(f"a stream event that holds no piece of an answer ({data[:80]!r})") from error
        if isinstance(piece, str) and piece:
            yield piece
    if not ended:
        raise NotACompletion("a stream that broke off")


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
