"""What is known about a trace beside its answer: was enough seen, does it conclude what it argued, did it have to
think.

Plain functions: scores and a trace row in, escaped HTML out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.html import badge, esc, tag

Scores = Mapping[str, tuple[float, str]]
"""Name → (value, what it rests on)."""


def verdicts(scores: Scores, row: Mapping[str, Any], true_label: str | None) -> str:
    """A short list; empty where nothing is known."""
    lines = [line for line in (_seeing(scores, row, true_label), _arguing(scores, row), _thinking(row)) if line]
    return tag("ul", "".join(tag("li", line) for line in lines), class_="verdicts") if lines else ""


def _seeing(scores: Scores, row: Mapping[str, Any], true_label: str | None) -> str:
    if "sufficient" not in scores:
        return ""
    enough, said = scores["sufficient"]
    right = true_label is not None and row["provisional"] == true_label
    words, kind = {
        (True, True): ("Seen enough, concluded rightly", "good"),
        (True, False): ("Seen enough; the reasoning failed", "bad"),
        (False, True): ("Right without having seen enough", "warn"),
        (False, False): ("The seeing failed", "bad"),
    }[bool(enough), right]
    return f"{badge(words, kind)} {tag('span', 'The judge of the observation: ' + esc(said), class_='quiet')}"


def _arguing(scores: Scores, row: Mapping[str, Any]) -> str:
    if "mismatch" not in scores or not scores["mismatch"][0]:
        return ""
    argued = scores["mismatch"][1]
    told = f"argues for {argued}" if argued != "none" else "argues for no label"
    words = esc(f"The reasoning {told}, the answer is {row['provisional']}.")
    return f"{badge('Answer does not follow', 'warn')} {words}"


def _thinking(row: Mapping[str, Any]) -> str:
    confidence, thought = row.get("quick_confidence"), row.get("thought")
    if confidence is None or confidence != confidence or thought is None or thought != thought:
        return ""
    if not thought:
        return esc(f"Answered at once: the quick answer was sure enough, at {confidence:.3f}.")
    if confidence < 0:
        return esc("Thought: the quick answer was put off.")
    return esc(f"Thought after its quick answer, which was sure at {confidence:.3f}.")
