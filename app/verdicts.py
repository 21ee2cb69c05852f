"""What is known about a trace beside its answer: was enough seen, does it conclude what it argued, did it have to
think.

Plain functions: scores and a trace row in, escaped HTML out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from deepintuit_analysis.review.quality import failed
from deepintuit_app.html import badge, esc, tag

Scores = Mapping[str, tuple[float, str]]
"""Name → (value, what it rests on)."""


def verdicts(
    scores: Scores,
    row: Mapping[str, Any],
    true_label: str | None,
    people: Sequence[str] = (),
    gate: Mapping[str, Any] | None = None,
) -> str:
    """A short list; empty where nothing is known. `people`: the process in which the trace fails, by each who named
    one. `gate`: the settings of its run, empty where it had none, None where they are not known."""
    known = (
        _seeing(scores, row, true_label),
        _people(scores, row, true_label, people),
        _arguing(scores, row),
        _thinking(row, gate),
    )
    lines = [line for line in known if line]
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


def _people(scores: Scores, row: Mapping[str, Any], true_label: str | None, people: Sequence[str]) -> str:
    if "sufficient" not in scores or not people:
        return ""
    its = failed(scores["sufficient"][0], true_label is not None and row["provisional"] == true_label)
    said = ", ".join(f"{process} ({n})" for process, n in Counter(people).most_common())
    against = "the judge says the same" if set(people) == {its} else f"by the judge it fails in {its or 'neither'}"
    return esc(f"By reviewers it fails in {said}; {against}.")


def _arguing(scores: Scores, row: Mapping[str, Any]) -> str:
    if "mismatch" not in scores or not scores["mismatch"][0]:
        return ""
    argued = scores["mismatch"][1]
    told = f"argues for {argued}" if argued != "none" else "argues for no label"
    words = esc(f"The reasoning {told}, the provisional label is {row['provisional']}.")
    return f"{badge('Label does not follow', 'warn')} {words}"


def _thinking(row: Mapping[str, Any], gate: Mapping[str, Any] | None) -> str:
    confidence, thought, judged = (row.get(name) for name in ("quick_confidence", "thought", "quick_probability"))
    if any(value is None or value != value for value in (confidence, thought)):
        return ""
    if confidence < 0:
        return esc("Thought: the quick answer was put off, or missing.")
    by_calibrator = judged is not None and judged == judged
    sure = f"the calibrator was {judged:.3f}" if by_calibrator else f"its tokens were {confidence:.3f}"
    why = ""
    if gate and by_calibrator == (gate["by"] == "calibrated"):
        why = f", {'less than' if thought else 'at least'} the {gate['threshold']:g} that was asked for"
    elif gate is not None and thought:
        why = ", and no gate could end it there"
    return esc(f"{'Thought' if thought else 'Answered at once'}: {sure} sure of the quick answer{why}.")
