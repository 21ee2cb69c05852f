"""A trace as HTML: its segments told apart, its sentences findable by time, every moment it mentions a chip that seeks.

Pure functions on text. A text still being written, or one that is no trace, is shown as far as its marks go: nothing is
repaired and nothing left out. Everything that a model wrote is escaped.

    prose.trace_html(text, "think-answer", frame_times=[0.1, 0.6, 1.1], seconds=1.5)

`app.js` does the rest in the browser: a click on `[data-seek]` seeks the page's player, and of all `.sentence[data-at]`
the one whose moment was reached last is lit while the clip plays.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from deepintuit.mentions import Mention, mentions, moment
from deepintuit.texts import sentences
from deepintuit.trace import GRAMMARS, Grammar, pieces
from deepintuit_analysis.report.steps import FalseStep
from deepintuit_app.html import render

TITLES = {
    None: "Outside the form",
    "think": "Thinking",
    "answer": "Answer",
    "observation": "Observation",
    "quick": "Quick answer",
}
_A_SENTENCE = 6  # words: "So it is a theft." says no more than the label beside it
_FRAME_WORD = re.compile(r"frames?\s{0,3}#?\Z", re.I)
_UNIT = re.compile(r"\s{0,3}(?:seconds?|secs?|s)\b", re.I)


class TokenMark(NamedTuple):
    """Characters start … end that get a class (a token's confidence, say) and a title."""

    start: int
    end: int
    kind: str
    title: str = ""


def deciding(text: str, grammar: Grammar | str) -> str:
    """The sentence by which the reasoning of a trace ends, with what stands before it where it is a few words."""
    grammar = GRAMMARS[grammar] if isinstance(grammar, str) else grammar
    argued = {segment.name for segment in grammar.text_segments}
    parts = [text[piece.start : piece.end] for piece in pieces(text, grammar) if piece.name in argued]
    body = parts[-1] if parts else text
    for start, _ in reversed(sentences(body)):
        if len(body[start:].split()) >= _A_SENTENCE:
            return " ".join(body[start:].split())
    return " ".join(body.split())


class Part(NamedTuple):
    """A text of a sentence: a chip that seeks when it has `seconds`, else marked with a class and a title if any."""

    text: str
    kind: str = ""
    title: str = ""
    seconds: float | None = None


class Sentence(NamedTuple):
    """`at`: the moments it mentions, in seconds with commas between, for the script that lights it; `mistake`: why
    it is marked, if it is; `effect`: its row of the grain `attributions`."""

    at: str
    parts: list[Part]
    mistake: str = ""
    effect: Mapping[str, Any] | None = None


def trace_html(
    text: str,
    grammar: Grammar | str = "think-answer",
    frame_times: Sequence[float] | None = None,
    seconds: float | None = None,
    *,
    writing: bool = False,
    token_marks: Sequence[TokenMark] = (),
    effects: Mapping[int, Mapping[str, Any]] | None = None,
    mistake: FalseStep | None = None,
) -> str:
    """The whole trace. `frame_times`: of the frames that the model saw, in seconds; `seconds`: the length of the clip,
    a moment past it is marked and does not seek; `writing`: more is to come; `token_marks`: sorted, without overlap;
    `effects`: number of a sentence → its row of the grain `attributions`; `mistake`: the step to mark, none where it is
    empty."""
    grammar = GRAMMARS[grammar] if isinstance(grammar, str) else grammar
    visible = _without_half_mark(text, grammar) if writing else text
    segments, numbers = [], itertools.count()
    for piece in pieces(visible, grammar):
        blank = len(visible[piece.start : piece.end]) - len(visible[piece.start : piece.end].lstrip())
        cut = _sentences(visible, piece.start + blank, piece.end, frame_times, seconds, token_marks, mistake)
        body = [sentence._replace(effect=(effects or {}).get(next(numbers))) for sentence in cut]
        segments.append((piece.name, TITLES.get(piece.name, piece.name), body, writing and piece.open))
    return render("trace.html", segments=segments)


def _sentences(
    text: str,
    start: int,
    end: int,
    frame_times: Sequence[float] | None,
    seconds: float | None,
    token_marks: Sequence[TokenMark],
    mistake: FalseStep | None,
) -> Iterator[Sentence]:
    """Characters start … end of a text."""
    inner = text[start:end]
    places = [_grown(inner, mention) for mention in mentions(inner)]
    for first, last in sentences(inner):
        here = [mention for mention in places if first <= mention.start < last]
        moments = [at for mention in here if (at := moment(mention, frame_times)) is not None]
        parts, place = [], first
        for mention in here:
            if mention.start < place:
                continue
            parts += _plain(text, start + place, start + mention.start, token_marks)
            parts.append(_chip(inner[mention.start : mention.end], moment(mention, frame_times), seconds))
            place = mention.end
        parts += _plain(text, start + place, start + last, token_marks)
        at = ",".join(f"{at:.3f}" for at in moments if seconds is None or at <= seconds)
        marked = mistake is not None and mistake.begins < start + last and start + first < mistake.ends
        yield Sentence(at, [part for part in parts if part.text], mistake.words if marked else "")


def _chip(words: str, at: float | None, seconds: float | None) -> Part:
    if at is None:
        return Part(words, "chip lost", "The model was shown no such frame")
    if seconds is not None and at > seconds + 0.05:
        return Part(words, "chip lost", f"The clip ends at {seconds:.1f} s")
    at = min(at, seconds) if seconds is not None else at
    return Part(words, title=f"Show the clip at {at:.1f} s", seconds=at)


def _grown(text: str, mention: Mention) -> Mention:
    """The mention with its word or unit: "Frame 3" and "1.5 s" rather than the bare number."""
    if mention.kind == "frame" and (word := _FRAME_WORD.search(text, max(0, mention.start - 12), mention.start)):
        return mention._replace(start=word.start())
    if mention.kind == "time" and (unit := _UNIT.match(text, mention.end)):
        return mention._replace(end=unit.end())
    return mention


def _plain(text: str, start: int, end: int, token_marks: Sequence[TokenMark]) -> Iterator[Part]:
    for mark in token_marks:
        first, last = max(start, mark.start), min(end, mark.end)
        if first < last:
            yield Part(text[start:first])
            yield Part(text[first:last], f"token {mark.kind}", mark.title)
            start = last
    yield Part(text[start:end])


def _without_half_mark(text: str, grammar: Grammar) -> str:
    """A text without the beginning of a mark at its end: "…</thi" would flash as text."""
    longest = max((n for mark in grammar.marks for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0)
    return text[: len(text) - longest]
