"""What carried a calibrated label: each sentence of the trace left out in turn, and the probability that goes with it.

    rows = attributions(calibrator, task, clip, encoded, trace, "fall")      # of the grain `attributions`

Leave-one-out: a sentence's *effect* is p(answer | clip, whole trace) − p(answer | clip, trace without it). The clip and
the conclusion stay; the effect of the answer segment is that of the conclusion. All that a calibrator reads of one clip
is computed as one tree of prefixes.

Effects do not sum to anything: of two sentences that say the same, neither is missed, and half of a question and its
answer may be worse than none. Sets of sentences are not left out, and an effect does not say that a sentence is true.
"""

from __future__ import annotations

from typing import Any

from deepintuit.labels import NONE_LABEL
from deepintuit.reasoner.calibrator import Calibrator
from deepintuit.reasoner.distribution import likelihood_scores
from deepintuit.reasoner.task import Clip, Opinion, Task, opinion_of
from deepintuit.trace import Malformed, Piece, Trace, sentences_of
from deepintuit.vlm import EncodedClip

_AT_ONCE = 32
"""Variants of a trace whose rows are held and computed together."""


def attributions(
    calibrator: Calibrator, task: Task, clip: Clip, encoded: EncodedClip, trace: Trace | Malformed, answer: str = ""
) -> list[dict[str, Any]]:
    """Rows of the grain `attributions`, one for each sentence that the calibrator reads, in their order; none where it
    reads none. `answer`: the label whose probability is asked about; by default that of the whole trace."""
    numbered = enumerate(sentences_of(trace.text, trace.grammar))
    variants = [(n, sentence, rest) for n, sentence in numbered if (rest := without(trace, sentence)) is not None]
    if not variants:
        return []
    opinions = [opinion_of(trace), *(rest for *_, rest in variants)]
    scores = likelihood_scores(calibrator.vlm, task, [(clip, encoded)] * len(opinions), opinions, _AT_ONCE)
    probs_V_K = scores.probs(calibrator.temperatures([trace] * len(opinions)))
    labels = task.labels.labels
    k = labels.index(answer) if answer else int(probs_V_K[0].argmax())
    return [
        {
            "clip_id": clip.clip_id,
            "sentence": n,
            "segment": sentence.name or "outside",
            "begins": sentence.start,
            "ends": sentence.end,
            "text": trace.text[sentence.start : sentence.end].strip(),
            "answer": labels[k],
            "probability": float(probs_V_K[0, k]),
            "effect": float(probs_V_K[0, k] - probs_K[k]),
            "answer_without": labels[int(probs_K.argmax())],
        }
        for (n, sentence, _), probs_K in zip(variants, probs_V_K[1:], strict=True)
    ]


def without(trace: Trace | Malformed, sentence: Piece) -> Opinion | None:
    """What a calibrator is told of a trace without this sentence of it; None where it was not told that sentence."""
    whole, start, end = opinion_of(trace), sentence.start, sentence.end
    if not trace.ok:
        return whole._replace(rationale=trace.text[:start] + trace.text[end:])
    if sentence.name == trace.grammar.answer.name:
        return whole._replace(conclusion=NONE_LABEL)
    parts = []
    for segment in trace.grammar.text_segments:
        inner, first = trace.segment(segment.name), trace.spans[segment.name][0]
        if segment.name == sentence.name:
            rest = inner[: start - first] + inner[end - first :]
            inner = rest.rstrip() + inner[len(inner.rstrip()) :]  # it ends as it did
        parts.append(inner)
    in_grammar = any(segment.name == sentence.name for segment in trace.grammar.text_segments)
    return whole._replace(rationale="\n".join(parts)) if in_grammar else None
