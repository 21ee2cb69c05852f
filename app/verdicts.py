"""What is known about a trace beside its answer: was enough seen, does it conclude what it argued, did it have to
think.

Plain functions: scores and a trace row in, escaped HTML out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deepintuit.labels import LabelSet
from deepintuit.trace import mismatch, parse
from deepintuit_analysis.report.steps import KINDS, SOURCES, FalseStep
from deepintuit_analysis.review.quality import failed
from deepintuit_app.html import render

Scores = Mapping[str, tuple[float, str]]
"""Name → (value, what it rests on)."""


class Line(NamedTuple):
    """`badge`: words on a ground of `kind`, before the `words`; `quiet`: what they rest on."""

    words: str = ""
    badge: str = ""
    kind: str = "plain"
    quiet: str = ""


def with_mismatch(scores: Scores, text: str, grammar: str, labels: LabelSet | None) -> Scores:
    """The scores, with whether the reasoning argues for another label than it answers: as it was stored, else of the
    text itself where the labels are known."""
    parsed = None if labels is None or "mismatch" in scores else parse(text, grammar, labels)
    return {**scores, "mismatch": mismatch(parsed, labels)} if parsed is not None and parsed.ok else scores


def verdicts(
    scores: Scores,
    row: Mapping[str, Any],
    true_label: str | None,
    people: Sequence[str] = (),
    gate: Mapping[str, Any] | None = None,
    step: FalseStep | None = None,
    judged: Sequence[tuple[str, str, str]] = (),
) -> str:
    """A short list; empty where nothing is known. `people`: the process in which the trace fails, by each who named
    one. `gate`: the settings of its run, empty where it had none, None where they are not known. `step`: its first
    false one, where it is known. `judged`: questions of a rubric, the answers, and what these rest on."""
    lines = (
        _seeing(scores, row, true_label),
        _people(scores, row, true_label, people),
        _false(row, true_label, step),
        _arguing(scores, row),
        _thinking(row, gate),
        *(Line(words, answer, "plain", evidence.partition(": ")[2]) for words, answer, evidence in judged),
    )
    return render("verdicts.html", lines=[line for line in lines if line])


def _seeing(scores: Scores, row: Mapping[str, Any], true_label: str | None) -> Line | None:
    if "sufficient" not in scores:
        return None
    enough, evidence = scores["sufficient"]
    right = true_label is not None and row["provisional"] == true_label
    words, kind = {
        (True, True): ("Seen enough, concluded rightly", "good"),
        (True, False): ("Seen enough; the reasoning failed", "bad"),
        (False, True): ("Right without having seen enough", "warn"),
        (False, False): ("The seeing failed", "bad"),
    }[bool(enough), right]
    return Line(badge=words, kind=kind, quiet=f"The judge of the observation: {evidence}")


def _people(scores: Scores, row: Mapping[str, Any], true_label: str | None, people: Sequence[str]) -> Line | None:
    if "sufficient" not in scores or not people:
        return None
    process = failed(scores["sufficient"][0], true_label is not None and row["provisional"] == true_label)
    counts = ", ".join(f"{process} ({n})" for process, n in Counter(people).most_common())
    agrees = set(people) == {process}
    against = "the judge says the same" if agrees else f"by the judge it fails in {process or 'neither'}"
    return Line(f"By reviewers it fails in {counts}; {against}.")


def _false(row: Mapping[str, Any], true_label: str | None, step: FalseStep | None) -> Line | None:
    if step is None or step.kind == "malformed" or (step.kind == "none" and row["provisional"] == true_label):
        return None
    if step.kind == "none":
        return Line("Every step is right, and the provisional label is wrong.", quiet=f"Told {SOURCES[step.by]}.")
    return Line(f"{KINDS[step.kind]}: the step is marked.", "First false step", "bad", f"Told {SOURCES[step.by]}.")


def _arguing(scores: Scores, row: Mapping[str, Any]) -> Line | None:
    if "mismatch" not in scores or not scores["mismatch"][0]:
        return None
    argued = scores["mismatch"][1]
    conclusion = f"argues for {argued}" if argued != "none" else "argues for no label"
    words = f"The reasoning {conclusion}, the provisional label is {row['provisional']}."
    return Line(words, "Label does not follow", "warn")


def _thinking(row: Mapping[str, Any], gate: Mapping[str, Any] | None) -> Line | None:
    confidence, thought, judged = (row.get(name) for name in ("quick_confidence", "thought", "quick_probability"))
    if any(value is None or value != value for value in (confidence, thought)):
        return None
    if confidence < 0:
        return Line("Thought: the quick answer was put off, or missing.")
    by_calibrator = judged is not None and judged == judged
    sure = f"the calibrator was {judged:.3f}" if by_calibrator else f"its tokens were {confidence:.3f}"
    why = ""
    if gate and by_calibrator == (gate["by"] == "calibrated"):
        why = f", {'less than' if thought else 'at least'} the {gate['threshold']:g} that was asked for"
    elif gate is not None and thought:
        why = ", and no gate could end it there"
    return Line(f"{'Thought' if thought else 'Answered at once'}: {sure} sure of the quick answer{why}.")
