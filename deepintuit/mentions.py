"""What a text says of when: times and frame numbers, with the seconds of the clip that they mean.

Run it:  python -c "from deepintuit.mentions import mentions; print(mentions('it falls at 1.5 s, frames 3 to 5'))"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Mention(NamedTuple):
    """A place in a clip that a text speaks of: characters start … end, and `value` in seconds or as a frame number."""

    start: int
    end: int
    kind: str
    value: float


# Every repeat is bounded: a text of a million spaces must not cost a million squared.
_NUMBER = r"((?<![\w.:])[0-9]{1,5}(?:\.[0-9]{1,6})?)"
_RANGE = r"\s{0,3}(?:-|\u2013|\u2014|to|and|until)\s{0,3}"
_SECONDS = re.compile(rf"(?:{_NUMBER}(?:\s?s)?{_RANGE})?{_NUMBER}\s{{0,3}}(?:s|secs?|seconds?)\b", re.I)
_CLOCK = re.compile(r"(?<![\w.:])(?:([0-9]{1,2}):)?([0-9]{1,2}):([0-5][0-9](?:\.[0-9]{1,6})?)(?![\w:])")
_FRAME = re.compile(rf"\bframes?\s{{0,3}}#?([0-9]{{1,7}})(?:{_RANGE}#?([0-9]{{1,7}}))?\b", re.I)


def mentions(text: str) -> list[Mention]:
    """Times ("at 1.5 s", "2-3 seconds", "0:03") and frame numbers ("frame 3", "frames 3 to 5") in a text, in order.

    Both ends of a range are mentioned. A duration ("for 2 s") looks like a time and is one. Never raises.
    """
    matches = []
    for pattern, kind, convert in ((_SECONDS, "time", float), (_FRAME, "frame", int)):
        for match in pattern.finditer(text):
            numbers = [group for group in range(1, pattern.groups + 1) if match.group(group)]
            matches += [Mention(*match.span(group), kind, convert(match.group(group))) for group in numbers]
    for match in _CLOCK.finditer(text):
        hours, minutes, seconds = match.groups()
        matches.append(Mention(*match.span(), "time", int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)))
    return sorted(matches)


def moment(mention: Mention, frame_times: Sequence[float] | None) -> float | None:
    """Seconds of what a text mentions: frame n is the n-th that the model saw, from 1. None for one it never saw."""
    if mention.kind == "time":
        return float(mention.value)
    number = int(mention.value)
    return float(frame_times[number - 1]) if frame_times is not None and 1 <= number <= len(frame_times) else None
