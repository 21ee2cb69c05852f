"""A trace as HTML: its segments told apart, its sentences findable by time, every moment it mentions a chip that seeks.

Pure functions on text. A text still being written, or one that is no trace, is shown as far as its marks go: nothing is
repaired and nothing left out. Everything that a model wrote is escaped.

    prose.trace_html(text, "think-answer", frame_times=[0.1, 0.6, 1.1], seconds=1.5)

`app.js` does the rest in the browser: a click on `[data-seek]` seeks the page's player, and of all `.sentence[data-at]`
the one whose moment was reached last is lit while the clip plays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deepintuit.trace import GRAMMARS, Grammar, Mention, mentions, pieces
from deepintuit_app.html import esc, tag

TITLES = {"think": "Thinking", "answer": "Answer", "observation": "Observation", "quick": "Quick answer"}
_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?![\s\"')\]]|$)[^.!?\n]*)*(?:[.!?]+[\"')\]]*|\n|$)\s*")
_FRAME_WORD = re.compile(r"frames?\s{0,3}#?\Z", re.I)
_UNIT = re.compile(r"\s{0,3}(?:seconds?|secs?|s)\b", re.I)


class Tint(NamedTuple):
    """Characters start … end that get a class (a token's confidence, say) and a title."""

    start: int
    end: int
    kind: str
    title: str = ""


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, white space behind them included. "1.5 s" is not two."""
    return [match.span() for match in _SENTENCE.finditer(text) if match.end() > match.start()]


def moment(mention: Mention, frame_times: Sequence[float] | None) -> float | None:
    """Seconds of what a text mentions: frame n is the n-th that the model saw, from 1. None for one it never saw."""
    if mention.kind == "time":
        return float(mention.value)
    number = int(mention.value)
    return float(frame_times[number - 1]) if frame_times is not None and 1 <= number <= len(frame_times) else None


def chip(words: object, seconds: float, title: str = "") -> str:
    """A button that seeks the page's player."""
    title = title or f"Show the clip at {seconds:.1f} s"
    return tag("button", esc(words), type="button", class_="chip", data_seek=f"{seconds:.3f}", title=title)


def trace_html(
    text: str,
    grammar: Grammar | str = "think-answer",
    frame_times: Sequence[float] | None = None,
    seconds: float | None = None,
    *,
    writing: bool = False,
    tints: Sequence[Tint] = (),
) -> str:
    """The whole trace. `frame_times`: of the frames that the model saw, in seconds; `seconds`: the length of the clip,
    a moment past it is marked and does not seek; `writing`: more is to come; `tints`: in order, not overlapping."""
    grammar = GRAMMARS[grammar] if isinstance(grammar, str) else grammar
    shown = _without_half_mark(text, grammar) if writing else text
    parts = []
    for piece in pieces(shown, grammar):
        blank = len(shown[piece.start : piece.end]) - len(shown[piece.start : piece.end].lstrip())
        body = prose_html(shown, piece.start + blank, piece.end, frame_times, seconds, tints)
        if piece.name is None:
            parts.append(tag("div", tag("h4", "Outside the form") + tag("p", body), class_="segment outside"))
        else:
            caret = tag("span", "", class_="caret", aria_hidden="true") if writing and piece.open else ""
            title = tag("h4", esc(TITLES.get(piece.name, piece.name)))
            parts.append(tag("div", title + tag("p", body + caret), class_=f"segment {piece.name}"))
    return tag("div", "".join(parts), class_="trace")


def prose_html(
    text: str,
    start: int = 0,
    end: int | None = None,
    frame_times: Sequence[float] | None = None,
    seconds: float | None = None,
    tints: Sequence[Tint] = (),
) -> str:
    """Characters start … end as sentences with chips, without any segment round them."""
    end = len(text) if end is None else end
    inner = text[start:end]
    found = [_grown(inner, mention) for mention in mentions(inner)]
    parts = []
    for first, last in sentences(inner):
        here = [mention for mention in found if first <= mention.start < last]
        moments = [at for mention in here if (at := moment(mention, frame_times)) is not None]
        at = [at for at in moments if seconds is None or at <= seconds]
        body, place = "", first
        for mention in here:
            if mention.start < place:
                continue
            body += _plain(text, start + place, start + mention.start, tints)
            body += _mention(inner, mention, frame_times, seconds)
            place = mention.end
        body += _plain(text, start + place, start + last, tints)
        parts.append(tag("span", body, class_="sentence", data_at=",".join(f"{a:.3f}" for a in at) or None))
    return "".join(parts)


def _mention(text: str, mention: Mention, frame_times: Sequence[float] | None, seconds: float | None) -> str:
    words, at = text[mention.start : mention.end], moment(mention, frame_times)
    if at is None:
        return tag("span", esc(words), class_="chip lost", title="The model was shown no such frame")
    if seconds is not None and at > seconds + 0.05:
        return tag("span", esc(words), class_="chip lost", title=f"The clip ends at {seconds:.1f} s")
    return chip(words, min(at, seconds) if seconds is not None else at)


def _grown(text: str, mention: Mention) -> Mention:
    """The mention with its word or unit: "Frame 3" and "1.5 s" rather than the bare number."""
    if mention.kind == "frame" and (word := _FRAME_WORD.search(text, max(0, mention.start - 12), mention.start)):
        return mention._replace(start=word.start())
    if mention.kind == "time" and (unit := _UNIT.match(text, mention.end)):
        return mention._replace(end=unit.end())
    return mention


def _plain(text: str, start: int, end: int, tints: Sequence[Tint]) -> str:
    return "".join(_tinted(text, start, end, tints)) if tints else esc(text[start:end])


def _tinted(text: str, start: int, end: int, tints: Sequence[Tint]) -> Iterator[str]:
    for tint in tints:
        first, last = max(start, tint.start), min(end, tint.end)
        if first < last:
            shown = tag("span", esc(text[first:last]), class_=f"tint {tint.kind}", title=tint.title or None)
            yield esc(text[start:first]) + shown
            start = last
    yield esc(text[start:end])


def _without_half_mark(text: str, grammar: Grammar) -> str:
    """A text without the beginning of a mark at its end: "…</thi" would flash as text."""
    longest = max((n for mark in grammar.marks for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0)
    return text[: len(text) - longest]
