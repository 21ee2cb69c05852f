r"""The grammars of a reasoning trace, and the one parser: text in, a `Trace` or a `Malformed` with its reason out.

A grammar is data: segments in order, each between its own open and close mark; they are those of DeepIntuit, VideoP2R
and VideoAuto-R1, and a fourth that joins the latter two. A text is well formed when every segment occurs once, in
order, none inside another, none empty, with only white space around them, and every answer names a label. Rewards,
metrics and the app all count the same `Reason`s.

Nothing is repaired. A malformed text stays malformed; where its answer can still be read, `Malformed.label` has it.
Run it:  python -c "from deepintuit.trace import render; print(render('think-answer', think='A cat.', answer='normal'))"
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from deepintuit.errors import ConfigError, DataError, nearest
from deepintuit.labels import NONE_LABEL, LabelSet, spellings
from deepintuit.texts import sentences

FALLBACK = "Let's analyze the problem step by step."
"""What the first box holds when the model wants to think before it answers (VideoAuto-R1)."""


@dataclass(frozen=True)
class Segment:
    """One part of a trace. `role` is "text" or "answer"; a non-empty `fallback` may stand in an answer for a label."""

    name: str
    open: str
    close: str
    role: str = "text"
    fallback: str = ""


@dataclass(frozen=True)
class Grammar:
    """Segments in the order in which they must come. The last answer segment holds the provisional label."""

    name: str
    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def answer(self) -> Segment:
        """The segment of the provisional label."""
        return [segment for segment in self.segments if segment.role == "answer"][-1]

    @property
    def quick(self) -> Segment | None:
        """The answer that comes before the reasoning, where the grammar has one (VideoAuto-R1)."""
        answers = [segment for segment in self.segments if segment.role == "answer"]
        return answers[0] if len(answers) > 1 else None

    @property
    def observes(self) -> bool:
        """Whether what is seen has a segment of its own (VideoP2R), which can be judged apart."""
        return _OBSERVATION in self.segments

    @property
    def marks(self) -> set[str]:
        """The marks that are no ordinary text anywhere: a lone "}" closes a box, and is a character elsewhere."""
        return {mark for segment in self.segments for mark in (segment.open, segment.close) if len(mark) > 1}

    @property
    def text_segments(self) -> tuple[Segment, ...]:
        """The segments that hold reasoning, not answers."""
        return tuple(segment for segment in self.segments if segment.role == "text")


THINK = Segment("think", "<think>", "</think>")
_ANSWER = Segment("answer", "<answer>", "</answer>", "answer")
_OBSERVATION = Segment("observation", "<observation>", "</observation>")
_QUICK_BOX = Segment("quick", r"\boxed{", "}", "answer", FALLBACK)
_FINAL_BOX = Segment("answer", r"\boxed{", "}", "answer")

GRAMMARS: dict[str, Grammar] = {
    grammar.name: grammar
    for grammar in (
        Grammar("think-answer", (THINK, _ANSWER)),
        Grammar("observation-think-answer", (_OBSERVATION, THINK, _ANSWER)),
        Grammar("answer-think-answer", (_QUICK_BOX, THINK, _FINAL_BOX)),
        Grammar("answer-observation-think-answer", (_QUICK_BOX, _OBSERVATION, THINK, _FINAL_BOX)),
    )
}


class Reason(StrEnum):
    """Why a text is not a trace."""

    EMPTY = "empty"
    TRUNCATED = "truncated"
    NO_ANSWER = "no_answer"
    UNKNOWN_LABEL = "unknown_label"
    UNCLOSED_TAG = "unclosed_tag"
    MISSING_SEGMENT = "missing_segment"
    NESTED_TAG = "nested_tag"
    REPEATED_SEGMENT = "repeated_segment"
    TEXT_OUTSIDE = "text_outside"
    WRONG_ORDER = "wrong_order"
    EMPTY_SEGMENT = "empty_segment"


@dataclass(frozen=True)
class Trace:
    """A well-formed trace: `label` is resolved, `answer` is as written, `spans` are inner (start, end) characters.

    `quick` is the label that was given before the reasoning; None where the grammar asks for none, or it was put off.
    """

    text: str
    grammar: Grammar
    label: str
    answer: str
    spans: Mapping[str, tuple[int, int]] = field(hash=False)
    quick: str | None = None

    ok = True

    @property
    def provisional(self) -> str:
        return self.label

    @property
    def quick_only(self) -> bool:
        """Whether the quick answer ended the work: there is no reasoning."""
        return not self.grammar.text_segments

    def segment(self, name: str) -> str:
        """The inner text of a segment, exactly as written."""
        start, end = self.spans[name]
        return self.text[start:end]


@dataclass(frozen=True)
class Malformed:
    """A text that is not a trace. `label` is the answer that can be read all the same (see `parse`), else None.

    `provisional` is "none" even where `label` is not: later stages take a malformed trace as no answer.
    """

    text: str
    grammar: Grammar
    reason: Reason
    detail: str
    label: str | None = None

    ok = False

    @property
    def provisional(self) -> str:
        return NONE_LABEL


def grammar_named(name: str | Grammar) -> Grammar:
    """The grammar of that name. Raises `ConfigError` for an unknown one; a grammar passes through."""
    if isinstance(name, Grammar):
        return name
    if name not in GRAMMARS:
        near = nearest(name, GRAMMARS)
        raise ConfigError(
            f"grammar {name!r} is not known",
            f"there are {', '.join(GRAMMARS)}",
            f"Nearest: {near!r}" if near else "Choose one of them",
        )
    return GRAMMARS[name]


def parse(
    text: str, grammar: Grammar | str, labels: LabelSet, truncated: bool = False, thought: bool = True
) -> Trace | Malformed:
    """Read a completion. Never raises on any text.

    `thought` False says that the quick answer was sure enough to end the work: the text is that answer and no more.

    `truncated` says that sampling stopped at the token limit: then an unfinished text is `TRUNCATED`, whatever else it
    lacks, while one that happens to be complete is judged as usual.

    A malformed text keeps a `label` when its answer is beyond doubt: it holds exactly as many closed answers as the
    grammar asks for, and the last one names a label. Two answers where one is asked for are a hedge, and count as none.
    """
    grammar = grammar_named(grammar)
    if not thought and grammar.quick:
        grammar = Grammar(f"{grammar.name}, quick", (replace(grammar.quick, fallback=""),))

    def malformed(reason: Reason, detail: str) -> Malformed:
        return Malformed(text, grammar, reason, detail, _answer_beyond_doubt(text, grammar, labels))

    fault, spans = _read_segments(text, grammar)
    if fault and truncated and fault[0] in _UNFINISHED:
        return malformed(Reason.TRUNCATED, f"cut at the token limit: {fault[1]}")
    if fault:
        return malformed(*fault)
    for segment in grammar.segments:
        if segment.role == "answer":
            start, end = spans[segment.name]
            answer = text[start:end]
            if labels.resolve(answer) is None and (not segment.fallback or answer.strip() != segment.fallback):
                return malformed(Reason.UNKNOWN_LABEL, f"{answer.strip()!r} is not a label of {labels.name!r}")
    start, end = spans[grammar.answer.name]
    quick = labels.resolve(text[slice(*spans[grammar.quick.name])]) if grammar.quick else None
    return Trace(text, grammar, labels.resolve(text[start:end]), text[start:end], spans, quick)


def argued_label(trace: Trace, labels: LabelSet) -> str | None:
    """The label that the reasoning argues for: the last one that its last text segment names [R]; None without one.

    Labels are looked for as whole words, longer ones first, so that "abnormal" does not name "normal". In scripts that
    set no spaces a word ends where another begins, so that there a label is found wherever it stands [R].
    """
    if not trace.grammar.text_segments:
        return None
    text = trace.segment(trace.grammar.text_segments[-1].name)
    names = re.findall("|".join(map(_as_word, spellings([*labels, *labels.aliases]))), text, re.IGNORECASE)
    return labels.resolve(names[-1]) if names else None


_SPACED = "[0-9_A-Za-z\u00c0-\u024f\u0300-\u052f\u1e00-\u1fff]"  # digits; Latin, Greek, Cyrillic, and their accents


def _as_word(name: str) -> str:
    before = f"(?<!{_SPACED})" if re.match(_SPACED, name[0]) else ""
    after = f"(?!{_SPACED})" if re.match(_SPACED, name[-1]) else ""
    return before + r"\s+".join(map(re.escape, name.split())) + after


def mismatch(trace: Trace, labels: LabelSet) -> tuple[float, str]:
    """1.0 where the reasoning argues for one label and the answer is another (VideoP2R, analysis), else 0.0; and the
    label that it argues for, "none" where it names none."""
    label = argued_label(trace, labels)
    return float(label is not None and label != trace.label), label or NONE_LABEL


def render(grammar: Grammar | str, /, **segments: str) -> str:
    """Write a well-formed text; `parse` gives the segments back unchanged.

    Raises `DataError` for a missing or unknown segment, an empty one, or one that holds a mark of the grammar.
    """
    grammar = grammar_named(grammar)
    names = [segment.name for segment in grammar.segments]
    if set(names) != set(segments):
        raise DataError(
            f"segments {sorted(segments)} were given for the grammar {grammar.name!r}",
            f"it has exactly {', '.join(names)}",
            "Give each of them once",
        )
    text = "".join(segment.open + segments[segment.name] + segment.close for segment in grammar.segments)
    fault, spans = _read_segments(text, grammar)
    if fault or any(text[slice(*spans[name])] != segments[name] for name in names):
        raise DataError(
            f"the segments {segments!r} do not make a text of the grammar {grammar.name!r}",
            fault[1] if fault else "one of them holds a closing mark",
            "Leave no segment empty and no mark of the grammar inside one",
        )
    return text


_UNFINISHED = {Reason.EMPTY, Reason.UNCLOSED_TAG, Reason.MISSING_SEGMENT, Reason.NO_ANSWER, Reason.TEXT_OUTSIDE}

_Fault = tuple[Reason, str]


def _read_segments(text: str, grammar: Grammar) -> tuple[_Fault | None, dict[str, tuple[int, int]]]:
    """The first fault of the structure, if any, and the inner span of each segment when there is none."""
    if not text.strip():
        return (Reason.EMPTY, "nothing was written"), {}
    fault, blocks = _blocks(text, grammar)
    expected = [segment.open for segment in grammar.segments]
    marks = [mark for mark, _, _ in blocks]  # the opening ones, in the order in which they came
    # A stray word outside matters less than a segment that is not there, but a broken tag matters more.
    if fault and fault[0] is not Reason.TEXT_OUTSIDE:
        return fault, {}
    missing, surplus = Counter(expected) - Counter(marks), Counter(marks) - Counter(expected)
    if surplus:
        return (Reason.REPEATED_SEGMENT, f"{next(iter(surplus))} occurs too often"), {}
    if grammar.answer.open in missing:
        return (Reason.NO_ANSWER, f"{grammar.answer.open} … {grammar.answer.close} is missing"), {}
    if missing:
        return (Reason.MISSING_SEGMENT, f"{next(iter(missing))} is missing"), {}
    if marks != expected:
        return (Reason.WRONG_ORDER, f"{' '.join(marks)} instead of {' '.join(expected)}"), {}
    if fault:
        return fault, {}
    spans = {}
    for segment, (_, start, end) in zip(grammar.segments, blocks, strict=True):
        if not text[start:end].strip():
            reason = Reason.NO_ANSWER if segment.role == "answer" else Reason.EMPTY_SEGMENT
            return (reason, f"{segment.name} is empty"), {}
        spans[segment.name] = (start, end)
    return None, spans


def _blocks(text: str, grammar: Grammar) -> tuple[_Fault | None, list[tuple[str, int, int]]]:
    """The closed segments of a text (open mark, inner start, inner end), left to right, up to the first broken mark."""
    marks_of = {segment.name: (segment.open, segment.close) for segment in grammar.segments}
    any_mark = re.compile("|".join(map(re.escape, grammar.marks)))
    outside: _Fault | None = None
    blocks: list[tuple[str, int, int]] = []
    for piece in pieces(text, grammar):
        strange = any_mark.search(text, piece.start, piece.end)
        if piece.name is None:
            if strange:
                return (Reason.UNCLOSED_TAG, f"{strange.group()} closes what was never opened"), blocks
            stray = text[piece.start : piece.end].strip()
            outside = outside or (Reason.TEXT_OUTSIDE, f"{stray[:40]!r} stands outside every segment")
            continue
        open_mark, close = marks_of[piece.name]
        if piece.open:
            return (Reason.UNCLOSED_TAG, f"{open_mark} is never closed"), blocks
        if strange:
            return (Reason.NESTED_TAG, f"{strange.group()} stands between {open_mark} and {close}"), blocks
        blocks.append((open_mark, piece.start, piece.end))
    return outside, blocks


class Piece(NamedTuple):
    """Characters start … end of a text: inside the segment `name`, or outside of all (None).

    `open`: its end mark is not there.
    """

    name: str | None
    start: int
    end: int
    open: bool = False


def pieces(text: str, grammar: Grammar | str) -> list[Piece]:
    """Any text cut at the marks of the grammar, left to right: an open segment runs to the end, strange marks are text.

    Nothing but white space is left out. `parse` judges these pieces; a page shows them while a trace is written.
    """
    grammar = grammar_named(grammar)
    parts, at, counts = [], 0, dict.fromkeys((segment.open for segment in grammar.segments), 0)
    while at < len(text):
        next_marks = ((place, mark) for mark in counts if (place := text.find(mark, at)) >= 0)
        start, mark = min(next_marks, default=(len(text), ""))
        if text[at:start].strip():
            parts.append(Piece(None, at, start))
        if not mark:
            break
        candidates = [segment for segment in grammar.segments if segment.open == mark]
        segment = candidates[min(counts[mark], len(candidates) - 1)]
        counts[mark] += 1
        inner = start + len(mark)
        end = text.find(segment.close, inner)
        parts.append(Piece(segment.name, inner, len(text) if end < 0 else end, end < 0))
        at = len(text) if end < 0 else end + len(segment.close)
    return parts


def sentences_of(text: str, grammar: Grammar | str) -> list[Piece]:
    """The sentences of any text, piece by piece; by their places in the list attributions, judges and reviews name
    them."""
    cut = pieces(text, grammar)
    return [Piece(piece.name, *span) for piece in cut for span in sentences(text, piece.start, piece.end)]


def _answer_beyond_doubt(text: str, grammar: Grammar, labels: LabelSet) -> str | None:
    count = sum(segment.role == "answer" for segment in grammar.segments)
    mark, close = grammar.answer.open, grammar.answer.close
    answers = []
    position = text.find(mark)
    while position >= 0 and (end := text.find(close, position)) >= 0:
        answers.append(text[position + len(mark) : end])
        position = text.find(mark, end)
    return labels.resolve(answers[-1]) if len(answers) == count else None


def outer_spans(trace: Trace) -> dict[str, tuple[int, int]]:
    """The character range of each segment *with* its marks, by name; what a process-aware advantage is laid over."""
    outer = {}
    for segment in trace.grammar.segments:
        start, end = trace.spans[segment.name]
        outer[segment.name] = (start - len(segment.open), end + len(segment.close))
    return outer
