"""What a watcher sees of one trace, as it grows: events in, HTML out. Live, replayed and stored traces look the same.

A `TraceView` takes events one by one and says what changed; `status`, `trace`, `film` and `verdict` draw its parts.
Nothing here waits, reads a file or knows Gradio.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepintuit.labels import LabelSet
from deepintuit.reasoner.replay import Attributed, Distribution, Event, Failed, Seen, Stage, TraceDone, Written
from deepintuit_analysis.numbers import percent
from deepintuit_analysis.report.text import shown
from deepintuit_app import media, prose
from deepintuit_app.html import render
from deepintuit_app.verdicts import Scores, verdicts, with_mismatch

PARTS = ("status", "trace", "film", "verdict")
_SHOWN = (("decode", "Decode"), ("encode", "Encode"), ("reason", "Reason"), ("calibrate", "Calibrate"))
_DOING = {
    "load": "Loading the model",
    "decode": "Decoding frames",
    "encode": "Encoding what they show",
    "reason": "Reasoning",
    "calibrate": "Calibrating",
}
_MOST_BARS = 8
_REASONS = {
    "empty": "nothing was written",
    "truncated": "it was cut at the token limit",
    "no_answer": "it has no answer",
    "unknown_label": "its answer is no label",
    "unclosed_tag": "a tag is not closed",
    "missing_segment": "a part is missing",
    "nested_tag": "a tag stands inside another",
    "repeated_segment": "a part occurs too often",
    "text_outside": "text stands outside its parts",
    "wrong_order": "its parts are in the wrong order",
    "empty_segment": "a part is empty",
}


@dataclass
class TraceView:
    """One trace on screen. `mode`: live, replay or stored; `source`: where it comes from, in words.

    `seconds`: length of the clip; `trace_id`: of a stored trace, whose frames can be asked for by it; `lost`: those
    frames cannot be had any more; `scores`: what is stored of the trace; `judged`: what judges answered about it;
    `labels`: of its dataset, where it has one; `calibrator`: the run of the one that reads it; `asking` it which
    sentences carry its answer.
    """

    mode: str
    source: str = ""
    grammar: str = "think-answer"
    seconds: float | None = None
    trace_id: str | None = None
    lost: bool = False
    scores: Scores = field(default_factory=dict)
    judged: Sequence[tuple[str, str, str]] = ()
    labels: LabelSet | None = None
    calibrator: str | None = None
    asking: bool = False
    attributed: tuple[Mapping[str, Any], ...] = ()
    stage: str | None = None
    stages: dict[str, float] = field(default_factory=dict)
    text: str = ""
    tokens: int | None = None
    times: tuple[float, ...] = ()
    pictures: str | None = None
    done: TraceDone | None = None
    distributions: list[Distribution] = field(default_factory=list)
    failed: str | None = None
    ahead: int = 0
    over: bool = False
    stopped: bool = False
    _since: float = field(default_factory=time.monotonic)

    def take(self, event: Event) -> set[str]:
        """Let an event happen; returns which of `PARTS` look different now."""
        match event:
            case Stage(name):
                self._close_stage()
                self.stage = name
                return {"status"}
            case Seen(_, times, pixels):
                self.times = times
                self.pictures = media.pictures.keep(pixels) if pixels is not None else None
                return {"film"}
            case Written(text, tokens):
                self.text, self.tokens = text, tokens
                return {"trace", "status"}
            case TraceDone():
                self.text, self.tokens, self.done = event.text, event.tokens, event
                self.stopped = event.stopped
                return {"trace", "status", "verdict"}
            case Distribution():
                self.distributions.append(event)
                return {"verdict"}
            case Attributed(rows):
                self.attributed = rows
                return {"trace"}
            case Failed(sentence):
                self.failed = sentence
                return {"status"}
        return set()

    def finish(self, stopped: bool = False) -> set[str]:
        """Nothing more comes."""
        self._close_stage()
        self.over, self.stopped = True, self.stopped or stopped
        return {"status", "trace", "verdict"}

    def _close_stage(self) -> None:
        now = time.monotonic()
        if self.stage is not None:
            self.stages[self.stage] = self.stages.get(self.stage, 0.0) + now - self._since
        self.stage, self._since = None, now

    @property
    def calibrated(self) -> Distribution | None:
        """The distribution that counts: the first way that is not the provisional label."""
        return next((d for d in self.distributions if d.method != "raw"), None)

    @property
    def raw(self) -> Distribution | None:
        return next((d for d in self.distributions if d.method == "raw"), None)

    @property
    def frame_urls(self) -> list[str]:
        if self.pictures:
            return [media.kept_url(self.pictures, n) for n in range(len(self.times))]
        return [media.frame_url(self.trace_id, n) for n in range(len(self.times))] if self.trace_id else []


def status(view: TraceView | None) -> str:
    """The four named steps and a line that says what is going on."""
    steps = [(name, *_step(view, key)) for key, name in _SHOWN]
    return render("watch/status.html", steps=steps, line=_line(view), failed=view and view.failed)


def _step(view: TraceView | None, key: str) -> tuple[str, str]:
    """How far a step is, and a note."""
    if view is None:
        return "idle", ""
    if view.stage == key:
        return "doing", ""
    if key in view.stages:
        return "done", _spent(view.stages[key]) if view.mode == "live" else "stored"
    frames_stored = view.mode != "live" and key in ("decode", "encode") and view.times
    if frames_stored or (view.mode == "stored" and (view.done if key == "reason" else view.calibrated)):
        return "done", "stored"
    return "idle", ""


def _spent(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _line(view: TraceView | None) -> str:
    if view is None:
        return "Pick a clip to begin."
    tokens = f"{view.tokens} tokens" if view.tokens else ""
    if view.ahead and not view.over:
        ahead = "one trace is" if view.ahead == 1 else f"{view.ahead} traces are"
        return f"You are number {view.ahead + 1} in the queue: {ahead} being written before yours."
    if not view.over:
        doing = "Replaying" if view.mode == "replay" else _DOING.get(view.stage or "load", "Starting")
        return " · ".join(filter(None, (f"{doing} …", tokens, view.source)))
    if view.stopped:
        return " · ".join(filter(None, ("Stopped", tokens, view.source)))
    facts = [tokens]
    if view.done is not None:
        if view.done.confidence is not None:
            facts.append(f"token confidence {percent(view.done.confidence)}")
        if view.mode == "live" and view.done.milliseconds:
            facts.append(_spent(view.done.milliseconds / 1000))
    return " · ".join(filter(None, (view.source, *facts)))


def trace(view: TraceView | None) -> str:
    """The text with its segments, its chips, and what keeps it from being a trace."""
    body, waiting, malformed, detail = None, "", "", ""
    if view is not None and not view.text:
        waiting = "Nothing was written." if view.over else "The trace appears here as it is written."
    elif view is not None:
        writing = view.done is None and not view.over
        effects = {row["sentence"]: row for row in view.attributed}
        about = {"writing": writing, "effects": effects}
        body = prose.trace_html(view.text, view.grammar, view.times or None, view.seconds, **about)
        if view.done is not None and view.done.reason and not view.stopped:
            malformed, detail = _REASONS.get(view.done.reason, view.done.reason), view.done.detail
    values = {"trace": body, "waiting": waiting, "malformed": malformed, "detail": detail}
    carried = view.attributed[0] if view is not None and view.attributed else None
    return render("watch/trace.html", **values, carried=carried, asking=view is not None and view.asking)


def film(view: TraceView | None) -> str:
    """The exact frames that the model saw, with their times; a click seeks."""
    missing = ""
    if view is not None and view.lost:
        missing = "The file of this clip no longer gives the frames that this trace was written from."
    elif view is not None and not view.times and (view.over or view.mode != "live"):
        missing = "This trace does not say which frames it was written from."
    elif view is None or not view.times:
        missing = "The sampled frames appear here."
    frames = [] if missing else list(zip(view.times, view.frame_urls))
    return render("watch/film.html", frames=frames, missing=missing)


def verdict(view: TraceView | None, truth: str | None = None, threshold: float = 0.5) -> str:
    """The provisional label against the calibrated distribution. `truth`: only when it is known and was asked for.

    Below `threshold` the top probability is too small to answer: it abstains.
    """
    has_label = view is not None and (view.done is not None or bool(view.distributions))
    dist = view.calibrated or view.raw if has_label else None
    provisional = (view.done.provisional if view.done else "none") if has_label else None
    return render(
        "watch/verdict.html",
        view=view,
        provisional=provisional,
        verdicts=_known_of(view, truth) if has_label and view.done else "",
        true_label=truth,
        threshold=threshold,
        bars=_bars(dist, provisional, truth, view.raw) if dist else None,
        facts=_facts(view, view.calibrated) if has_label and view.calibrated else "",
        definitions=view.labels.definitions if view is not None and view.labels is not None else {},
    )


def _known_of(view: TraceView, truth: str | None) -> str:
    scores = with_mismatch(view.scores, view.done.text, view.grammar, view.labels)
    if truth is None:  # whether the seeing sufficed tells whether the answer is right
        scores = {name: score for name, score in scores.items() if name == "mismatch"}
    return verdicts(scores, vars(view.done), truth, judged=view.judged)


def _bars(dist: Distribution, provisional: str, truth: str | None, raw: Distribution | None) -> dict[str, Any]:
    """The labels with their probabilities, as they are listed; of many, the most probable, the provisional and the true
    one, and how much the others have together."""
    likeliest = sorted(range(len(dist.labels)), key=lambda k: -dist.probs[k])[:_MOST_BARS]
    many = len(dist.labels) > _MOST_BARS
    places = [k for k, label in enumerate(dist.labels) if not many or k in likeliest or label in (provisional, truth)]
    first = raw.probs[raw.labels.index(provisional)] if raw is not None and provisional in raw.labels else None
    if many:
        places.sort(key=lambda k: -dist.probs[k])
    return {
        "rows": [(dist.labels[k], dist.probs[k], first if dist.labels[k] == provisional else None) for k in places],
        "predicted": dist.predicted,
        "others": len(dist.labels) - len(places),
        "rest": 1.0 - sum(dist.probs[k] for k in places),
    }


def _facts(view: TraceView, dist: Distribution) -> str:
    """How the distribution was made, and what other ways give."""
    facts = [shown(dist.method).capitalize()]
    if dist.temperature is not None:
        facts.append(f"temperature {dist.temperature:.2f}")
    if dist.outside is not None:
        facts.append(f"{percent(dist.outside, 1)} outside the labels")
    if dist.farther_than is None:
        facts.append("distance to the clips that were learnt from: not measured")
    else:
        facts.append(
            f"farther from the clips that were learnt from than {percent(dist.farther_than)} of validation clips"
        )
    alternatives = [d for d in view.distributions if d is not dist and d.method != "raw"]
    facts += (f"{shown(d.method)}: {d.predicted} {percent(max(d.probs))}" for d in alternatives)
    return " · ".join(facts)
