"""What a watcher sees of one trace, as it grows: events in, HTML out. Live, replayed and stored traces look the same.

A `Scene` takes events one by one and says what changed; `status`, `trace`, `film` and `verdict` draw its parts. Pure:
nothing here waits, reads a file or knows Gradio.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from deepintuit.reasoner.replay import Distribution, Event, Failed, Seen, Stage, TraceDone, Written
from deepintuit_analysis.numbers import percent
from deepintuit_app import media, prose
from deepintuit_app.html import badge, empty, esc, tag
from deepintuit_app.verdicts import verdicts

PARTS = ("status", "trace", "film", "verdict")
WAYS = {
    "label_likelihood": "label likelihood",
    "mean_likelihood": "mean likelihood over traces",
    "linear_head": "linear head",
    "vote": "vote over traces",
    "raw": "provisional label alone",
}
_SHOWN = (("decode", "Decode"), ("encode", "Encode"), ("reason", "Reason"), ("calibrate", "Calibrate"))
_DOING = {
    "load": "Loading the model",
    "decode": "Decoding frames",
    "encode": "Encoding what they show",
    "reason": "Reasoning",
    "calibrate": "Calibrating",
}
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
class Scene:
    """One trace on the stage. `mode`: live, replay or stored; `source`: where it comes from, in words.

    `seconds`: length of the clip; `trace_id`: of a stored trace, whose frames can be asked for by it; `lost`: those
    frames cannot be had any more.
    """

    mode: str
    source: str = ""
    grammar: str = "think-answer"
    seconds: float | None = None
    trace_id: str | None = None
    lost: bool = False
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


def status(scene: Scene | None) -> str:
    """The four named steps and a line that says what is going on."""
    steps = "".join(_step(scene, key, name) for key, name in _SHOWN)
    return tag("ol", steps, class_="steps") + tag("p", _line(scene), class_="now", role="status")


def _step(scene: Scene | None, key: str, name: str) -> str:
    state, note = "idle", ""
    if scene is not None:
        if scene.stage == key:
            state = "doing"
        elif key in scene.stages:
            state = "done"
            note = _spent(scene.stages[key]) if scene.mode == "live" else "stored"
        elif scene.mode != "live" and key in ("decode", "encode") and scene.times:
            state, note = "done", "stored"
        elif scene.mode == "stored" and (scene.done if key == "reason" else scene.calibrated):
            state, note = "done", "stored"
    small = tag("small", esc(note)) if note else ""
    return tag("li", tag("span", esc(name)) + small, class_=state, aria_current="step" if state == "doing" else None)


def _spent(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _line(scene: Scene | None) -> str:
    if scene is None:
        return "Pick a clip to begin."
    if scene.failed:
        return tag("span", esc(scene.failed), class_="failed")
    counted = f"{scene.tokens} tokens" if scene.tokens else ""
    if scene.ahead and not scene.over:
        others = "one trace is" if scene.ahead == 1 else f"{scene.ahead} traces are"
        return f"You are number {scene.ahead + 1} in the queue: {others} being written before yours."
    if not scene.over:
        doing = "Replaying" if scene.mode == "replay" else _DOING.get(scene.stage or "load", "Starting")
        return esc(" · ".join(filter(None, (f"{doing} …", counted, scene.source))))
    if scene.stopped:
        return esc(" · ".join(filter(None, ("Stopped", counted, scene.source))))
    facts = [counted]
    if scene.done is not None:
        if scene.done.confidence is not None:
            facts.append(f"token confidence {percent(scene.done.confidence)}")
        if scene.mode == "live" and scene.done.milliseconds:
            facts.append(_spent(scene.done.milliseconds / 1000))
    return esc(" · ".join(filter(None, (scene.source, *facts))))


def trace(scene: Scene | None) -> str:
    """The text with its segments, its chips, and what keeps it from being a trace."""
    if scene is None:
        return empty("No trace yet", "“Reason now” lets the model write one. What is stored can be replayed.")
    if not scene.text:
        words = "Nothing was written." if scene.over else "The trace appears here as it is written."
        return tag("div", esc(words), class_="trace waiting")
    body = prose.trace_html(
        scene.text, scene.grammar, scene.times or None, scene.seconds, writing=scene.done is None and not scene.over
    )
    if scene.done is not None and scene.done.reason and not scene.stopped:
        why = _REASONS.get(scene.done.reason, scene.done.reason)
        said = badge("Not well-formed", "warn") + " " + esc(f"This text counts as no answer: {why}.")
        body += tag("p", said, class_="malformed", title=scene.done.detail)
    return body


def film(scene: Scene | None) -> str:
    """The exact frames that the model saw, with their times; a click seeks."""
    if scene is None or not scene.times or scene.lost:
        words = "The sampled frames appear here."
        if scene is not None and scene.lost:
            words = "The file of this clip no longer gives the frames that this trace was written from."
        elif scene is not None and (scene.over or scene.mode != "live"):
            words = "This trace does not say which frames it was written from."
        return _titled("What the model saw", "", tag("p", words, class_="quiet"))
    shots = []
    for number, (at, url) in enumerate(zip(scene.times, scene.frame_urls), 1):
        picture = tag("img", src=url, alt=f"Frame {number}", loading="lazy", width=96)
        label = tag("span", tag("b", str(number)) + f" {at:.1f} s")
        title = f"Frame {number}, at {at:.2f} s: show the clip there"
        shots.append(tag("button", picture + label, type="button", class_="shot", data_seek=f"{at:.3f}", title=title))
    count = f"{len(scene.times)} frames"
    return _titled("What the model saw", count, tag("div", "".join(shots), class_="film"))


def verdict(scene: Scene | None, truth: str | None = None, threshold: float = 0.5) -> str:
    """The provisional label against the calibrated distribution. `truth`: only when it is known and was asked for.

    Below `threshold` the top probability is too small to answer: it abstains.
    """
    if scene is None or (scene.done is None and not scene.distributions):
        return _titled("Verdict", "", tag("p", "It follows the trace.", class_="quiet"))
    provisional = scene.done.provisional if scene.done else "none"
    shown = scene.calibrated
    answer = tag("strong", esc(provisional)) if provisional != "none" else tag("strong", "no answer")
    line = tag("div", tag("span", "Provisional label", class_="quiet") + answer, class_="said")
    if scene.done:
        line += verdicts({}, vars(scene.done), truth)
    if shown is None:
        known = [tag("div", line + _truth(truth, provisional), class_="headline")]
        if scene.raw is not None:
            known.append(_bars(scene.raw, None, provisional, truth, None))
        why = "No calibrated distribution is stored for this trace." if scene.mode != "live" else _uncalibrated(scene)
        return _titled("Verdict", "", "".join(known) + tag("p", why, class_="quiet"))
    top = max(shown.probs)
    said = tag("strong", esc(shown.predicted)) + tag("span", percent(top), class_="share")
    badges = ""
    if provisional == "none":
        badges += badge("the trace has no provisional label", "plain")
    elif provisional != shown.predicted:
        badges += _change(truth, provisional, shown.predicted)
    if top < threshold:
        badges += badge(f"abstains: below {percent(threshold)}", "warn", "No class is sure enough to be answered")
    line += tag("div", tag("span", "Calibrated label", class_="quiet") + said, class_="said")
    head = tag("div", line + _truth(truth, shown.predicted), class_="headline")
    head += tag("div", badges, class_="badges") if badges else ""
    return _titled("Verdict", "", head + _bars(shown, scene.raw, provisional, truth, threshold) + _notes(scene, shown))


def _change(truth: str | None, provisional: str, predicted: str) -> str:
    """What calibration did to the provisional label: it fixed or broke it, where the truth is told."""
    done = "fixed" if predicted == truth else "broken" if provisional == truth else "changed"
    kind = {"fixed": "good", "broken": "bad"}.get(done, "warn")
    return badge(f"{done}: {provisional} → {predicted}", kind, "Calibration changed the provisional label")


def _uncalibrated(scene: Scene) -> str:
    if scene.stopped or not scene.over:
        return "Not calibrated: it was stopped before." if scene.stopped else "Calibration follows."
    return "This reasoner has no calibrator yet. Train one: " + tag("code", "deepintuit calibrate")


def _truth(truth: str | None, answer: str) -> str:
    if truth is None:
        return ""
    mark = badge("right", "good") if truth == answer else badge("wrong", "bad")
    return tag("div", tag("span", "True label", class_="quiet") + tag("strong", esc(truth)) + mark, class_="said")


def _bars(
    shown: Distribution, raw: Distribution | None, provisional: str, truth: str | None, threshold: float | None
) -> str:
    first = dict(zip(raw.labels, raw.probs)) if raw is not None else {}
    rows = []
    for label, probability in zip(shown.labels, shown.probs):
        marks = tag("i", "provisional", title="The provisional label") if label == provisional else ""
        marks += tag("i", "true", class_="true", title="The true label") if label == truth else ""
        track = tag("span", "", class_="abstain", style=f"width:{100 * threshold:.1f}%") if threshold else ""
        track += tag("span", "", class_="fill", style=f"width:{100 * probability:.2f}%")
        if label == provisional and label in first:  # the rest of it is spread evenly, which says nothing
            title = f"Provisional label alone: {percent(first[label])}"
            track += tag("span", "", class_="tick", style=f"left:{100 * first[label]:.2f}%", title=title)
        name = tag("span", esc(label) + marks, class_="name")
        share = tag("span", percent(probability, 1 if probability < 0.1 else 0), class_="share")
        kind = "top" if label == shown.predicted else None
        rows.append(tag("li", name + tag("span", track, class_="track", aria_hidden="true") + share, class_=kind))
    return tag("ul", "".join(rows), class_="bars", aria_label="Probability of each label")


def _notes(scene: Scene, shown: Distribution) -> str:
    facts = [f"By {WAYS.get(shown.method, shown.method)}"]
    if shown.temperature is not None:
        facts.append(f"temperature {shown.temperature:.2f}")
    if shown.outside is not None:
        facts.append(f"{percent(shown.outside, 1)} outside the labels")
    others = [d for d in scene.distributions if d is not shown and d.method != "raw"]
    for other in others:
        facts.append(f"{WAYS.get(other.method, other.method)}: {other.predicted} {percent(max(other.probs))}")
    key = "The shaded part is where it abstains"
    key += "; the line marks the provisional label's own probability." if scene.raw is not None else "."
    return tag("p", esc(" · ".join(facts)) + "<br>" + key, class_="quiet")


def _titled(title: str, aside: str, body: str) -> str:
    small = tag("small", esc(aside)) if aside else ""
    return tag("section", tag("h3", esc(title) + small) + body, class_="panel")
