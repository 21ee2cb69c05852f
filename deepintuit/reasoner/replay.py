"""A stored trace as the stream of events that a live one is: no model, no torch, so that a demo cannot fail.

The events are shared with `live`: what a page shows while one clip is reasoned about. `replay` lays a stored text out
in time; who shows it does the waiting.

A replay advances by words: where the tokens of a stored text were cut is not kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STAGES = ("load", "decode", "encode", "reason", "calibrate")
"""In the order in which a live trace goes through them."""

_WORD = re.compile(r"(?:\A\s*+)?\S++\s*+")


@dataclass(frozen=True)
class Stage:
    """Work of this name (one of `STAGES`) begins; the one before it has ended."""

    name: str


@dataclass(frozen=True)
class Seen:
    """The frames that the model is shown, with their times in seconds; `pixels_T_H_W_3` (uint8 RGB) only when live."""

    indices: tuple[int, ...]
    times: tuple[float, ...]
    pixels_T_H_W_3: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Written:
    """The whole text so far, and how many tokens it has taken (None where nobody counted)."""

    text: str
    tokens: int | None = None


@dataclass(frozen=True)
class TraceDone:
    """The text as it stays. `reason` and `detail` say why it is no trace; `stopped`: somebody stopped it.

    `thought` False: its quick answer was sure enough, at `quick_confidence` (or, to the calibrator that was the gate,
    at `quick_probability`), and ended the work.
    """

    text: str
    provisional: str
    reason: str | None = None
    detail: str | None = None
    confidence: float | None = None
    tokens: int | None = None
    milliseconds: float | None = None
    stopped: bool = False
    quick_confidence: float | None = None
    thought: bool | None = None
    quick_probability: float | None = None


@dataclass(frozen=True)
class Distribution:
    """Probabilities of the labels by one way (`method`; "raw": the provisional label's own). `outside`: mass on no
    label. The others are those of `distance.Far`, None where it was not measured."""

    labels: tuple[str, ...]
    probs: tuple[float, ...]
    method: str
    temperature: float | None = None
    outside: float | None = None
    distance: float | None = None
    farther_than: float | None = None
    unlike: bool | None = None

    @property
    def predicted(self) -> str:
        return self.labels[int(np.argmax(self.probs))]


@dataclass(frozen=True)
class Attributed:
    """What of the calibrated probability goes with each sentence: rows of the grain `attributions`."""

    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Failed:
    """It ended early; `sentence` says why, for the person who watches."""

    sentence: str


Event = Stage | Seen | Written | TraceDone | Distribution | Failed


def replay(
    trace: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]] = (), *, tokens_per_second: float | None = None
) -> Iterator[tuple[float, Event]]:
    """(seconds since the start, event) of a stored trace and the predictions that rest on it.

    `tokens_per_second` None is the measured pace: the stored milliseconds; infinity is at once. A trace without a token
    count is taken for four characters a token.
    """
    text = str(trace["text"])
    tokens = _number(trace.get("tokens"))
    count = tokens or max(1, len(text) / 4)
    measured = _number(trace.get("milliseconds")) or 0.0
    length = measured / 1000 if tokens_per_second is None else count / tokens_per_second
    times = trace.get("frame_times")
    if times is not None and len(times):
        yield 0.0, Seen(tuple(int(i) for i in trace["frame_indices"]), tuple(float(t) for t in times))
    yield 0.0, Stage("reason")
    for match in _WORD.finditer(text):
        share = match.end() / len(text)
        yield length * share, Written(text[: match.end()], int(count * share) if tokens else None)
    yield length, done(trace)
    if predictions:
        yield length, Stage("calibrate")
    for row in predictions:
        if (event := distribution(row)) is not None:
            yield length, event


def done(trace: Mapping[str, Any]) -> TraceDone:
    """What a stored trace came to."""
    tokens = _number(trace.get("tokens"))
    return TraceDone(
        str(trace["text"]),
        _text(trace.get("provisional")) or "none",
        _text(trace.get("reason")),
        _text(trace.get("detail")),
        _number(trace.get("confidence")),
        None if tokens is None else int(tokens),
        _number(trace.get("milliseconds")),
        quick_confidence=_number(trace.get("quick_confidence")),
        thought=None if _number(trace.get("thought")) is None else bool(trace["thought"]),
        quick_probability=_number(trace.get("quick_probability")),
    )


def distribution(row: Mapping[str, Any]) -> Distribution | None:
    """A stored prediction; None when it kept no probabilities."""
    if row.get("probs") is None or row.get("labels") is None or not len(row["probs"]):
        return None
    labels, probs = tuple(map(str, row["labels"])), tuple(float(p) for p in row["probs"])
    numbers = (_number(row.get(name)) for name in ("temperature", "outside_mass", "distance", "farther_than"))
    unlike = None if _number(row.get("unlike")) is None else bool(row["unlike"])
    return Distribution(labels, probs, row["method"], *numbers, unlike)


def _text(value: Any) -> str | None:
    """A text that is there: pandas says nan for one that is not."""
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
