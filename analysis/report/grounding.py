"""Whether traces cite the moments that reviewers marked: hit rate and temporal IoU of each system, beside its accuracy.

    for row in grounding(workbench, table.rows):
        print(row.system, row.hits, row.iou, row.n)

Reviewers' spans of a clip are those that more than half of them share, instant by instant (`review.quality.marked`); of
a clip with spans of its true label these alone, else all. A cited moment hits where it lies in one. For IoU a range
that a trace names ("2 to 3 s") stands for itself, and a single moment for the stretch around it in which no other frame
that the model saw is nearer. Axes: `_C` clips.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from deepintuit.mentions import mentions, moment
from deepintuit.metrics import Estimate
from deepintuit_analysis.review import quality
from deepintuit_analysis.review.spans import Stretch, clipped, length, overlap, shared

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench
    from deepintuit_analysis.report.results import Result

_RANGE = re.compile(
    r"\s{0,3}(?:s|secs?|seconds?)?\s{0,3}(?:-|\u2013|\u2014|to|until)\s{0,3}(?:frames?\s{0,3})?#?", re.I
)


@dataclass(frozen=True)
class Grounding:
    """Of one system's provisional traces, `n` clips that have spans: means over these clips, as fractions.

    `hits`: of the moments that a trace cites, how many lie in a span; 0 for a trace that cites none. `iou`: of what it
    cites with the spans. Both None where no trace cites any. `cites`: traces that cite a moment. `chance`: how much of
    the clip lies in spans, which is what moments named at random hit. `accuracy`: of the provisional label."""

    system: str
    n: int
    hits: Estimate | None
    iou: Estimate | None
    cites: Estimate
    chance: Estimate
    accuracy: Estimate


def cited(text: str, frame_times: Sequence[float] | None, seconds: float) -> tuple[list[float | None], list[Stretch]]:
    """The moments that a text cites, in seconds, None for a frame that was never seen; and the stretches of the clip
    that they stand for. Without `frame_times` a single moment has no length."""
    places = mentions(text)
    moments = [moment(place, frame_times) for place in places]
    middles = [] if frame_times is None else [(a + b) / 2 for a, b in zip(frame_times, frame_times[1:])]
    edges = [0.0, *middles, seconds] if frame_times is not None and len(frame_times) else []

    def around(at: float) -> Stretch:
        index = int(np.searchsorted(middles, at, side="right"))
        return (edges[index], edges[index + 1]) if edges and 0 <= at <= seconds else (at, at)

    stretches, ends = [], set()
    for k, (start, end) in enumerate(zip(moments, moments[1:])):
        place, place_after = places[k : k + 2]
        both = start is not None and end is not None and place.kind == place_after.kind and start < end
        if both and _RANGE.fullmatch(text, place.end, place_after.start):
            stretches.append((start, end) if place.kind == "time" else (around(start)[0], around(end)[1]))
            ends |= {k, k + 1}
    stretches += [around(at) for k, at in enumerate(moments) if at is not None and k not in ends]
    return list(dict.fromkeys(moments)), stretches


def _scores(
    text: str, frame_times: Sequence[float] | None, seconds: float, spans: Sequence[Stretch]
) -> tuple[float, ...]:
    """Hit share, IoU, whether a moment is cited, the share of the clip in spans."""
    moments, stretches = cited(text, frame_times, seconds)
    hits = [any(start <= at <= end for start, end in spans) for at in moments if at is not None]
    common = overlap(stretches, spans)
    union = length(clipped(stretches, seconds)) + length(spans) - common
    return sum(hits) / max(1, len(moments)), common / union, float(bool(moments)), length(spans) / seconds


def grounding(workbench: Workbench, results: Iterable[Result], *, public: bool = False) -> list[Grounding]:
    """The provisional labels among some results, in their order, whose clips have spans; empty where no reviewer marked
    any. `public`: only spans that everybody may see. Results are asked for when there are any."""
    marked = quality.marked(quality.reading(workbench.reviews), public=public)
    if not marked:
        return []
    clips = workbench.query(
        "SELECT clip_id, any_value(seconds) AS seconds FROM clips WHERE seconds > 0 GROUP BY clip_id"
    ).set_index("clip_id")["seconds"]
    rows = []
    for row in results:
        if row.key[1:] != ("raw", "none"):
            continue
        frame = row.frame[row.frame.index.isin(list(marked)) & row.frame.index.isin(clips.index)]
        traces = workbench.query(
            "SELECT trace_id, any_value(text) AS text, any_value(frame_times) AS frame_times FROM traces "
            "WHERE trace_id IN (SELECT unnest(?::VARCHAR[])) GROUP BY trace_id",
            [frame["trace_id"].dropna().tolist()],
        ).set_index("trace_id")
        scores = {}
        for clip, answer in frame.iterrows():
            spans = _reference(marked[clip], answer["true_label"], clips[clip])
            if spans and answer["trace_id"] in traces.index:
                trace = traces.loc[answer["trace_id"]]
                times = trace["frame_times"] if isinstance(trace["frame_times"], np.ndarray | list) else None
                scores[clip] = _scores(trace["text"] or "", times, clips[clip], spans)
        if not scores:
            continue
        row = row.on(pd.Index(list(scores)))
        scores_C_4 = np.array([scores[clip] for clip in row.frame.index])
        hits, iou, _, chance = row.means(scores_C_4)
        cited_C = scores_C_4[:, 2] > 0
        estimates = (hits, iou) if cited_C.any() else (None, None)
        rows.append(Grounding(row.system, row.n, *estimates, row.share(cited_C), chance, row.share(row.right_C)))
    return rows


def _reference(people: Iterable[Sequence[dict]], label: str, seconds: float) -> list[Stretch]:
    """What more than half of the people marked in a clip; with the clip's own label, where they used it."""
    people = list(people)
    own = [[span for span in spans if span["label"] == label] for spans in people]
    return clipped(shared(own), seconds) or clipped(shared(people), seconds)
