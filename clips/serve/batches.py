"""One worker that owns the models, and the line before it: clips that wait are answered a batch at a time.

A place in the line is taken before a clip is even received, so that the line is as long as it was said to be, and given
back when its batch begins or whoever asked has gone. Clips leave nothing behind: neither frames nor features are kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from deepintuit.errors import DeepIntuitError
from deepintuit.reasoner import Clip, Task
from deepintuit.video import ClipInfo

_LONGEST_WAIT = 600


class Full(Exception):
    """The line is full; `seconds` until it is worth asking again."""

    def __init__(self, seconds: int):
        super().__init__(seconds)
        self.seconds = seconds


class Closed(Exception):
    """Nothing is answered any more."""


class Message(NamedTuple):
    """What a question hears: `waiting` (how many are before it), `trace` (what was written since), and then one of
    `answer` (the row of a table of answers) and `failed` (a sentence, and the reason where the clip is unreadable)."""

    kind: str
    data: Any
    reason: str | None = None


@dataclass(eq=False)
class Question:
    """A place in the line, and the clip that it is for. `hear` is called by the worker, `streams`: also with the trace
    as it is written. `upload`: whether the file is to be deleted once it was read."""

    hear: Callable[[Message], None]
    streams: bool = False
    name: str = ""
    path: Path = Path()
    info: ClipInfo | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    upload: bool = False
    since: float = field(default_factory=time.monotonic)
    gone: bool = False

    @property
    def clip_id(self) -> str:
        return self.info.sha256[:16]

    def tell(self, kind: str, data: Any, reason: str | None = None) -> None:
        if not self.gone:
            self.hear(Message(kind, data, reason))

    def forget(self) -> None:
        if self.upload:
            self.path.unlink(missing_ok=True)


class Metrics:
    """What /metrics tells, of this server alone."""

    def __init__(self, line: Line):
        self.registry = CollectorRegistry()
        within = {"registry": self.registry, "namespace": "deepintuit"}
        self.ended = Counter("questions", "Questions by how they ended.", ["outcome"], **within)
        self.batch = Histogram("batch_clips", "Clips in a batch.", buckets=[2**n for n in range(9)], **within)
        self.seconds = Histogram("answer_seconds", "From the beginning of a request to its answer.", **within)
        self.tokens = Counter("tokens", "Tokens of traces that were written.", **within)
        Gauge("line_places", "Places in the line.", **within).set(line.places)
        Gauge("line_taken", "Places that are taken.", **within).set_function(lambda: line.taken)
        Gauge("answering", "Questions in the batch that is being answered.", **within).set_function(
            lambda: len(line.batch)
        )


class Line:
    """`places`: how many questions may wait beside those that are being answered."""

    def __init__(self, predictor: Any, rules: Any, places: int):
        self.predictor, self.rules, self.places = predictor, rules, places
        self.batch: set[Question] = set()
        self._coming: set[Question] = set()
        self._waiting: deque[Question] = deque()
        self._moved = threading.Condition()
        self._closed = False
        self._each = 1.0  # seconds that a question took of late
        self._task = Task(predictor.workbench.path, predictor.config)
        self._local: Any = None  # the reasoner, once the models are there
        self.metrics = Metrics(self)
        self._thread = threading.Thread(target=self._work, name="deepintuit-serve", daemon=True)
        self._thread.start()

    @property
    def taken(self) -> int:
        return len(self._coming) + len(self._waiting)

    @property
    def open(self) -> bool:
        return not self._closed and self._thread.is_alive()

    def enter(self, hear: Callable[[Message], None]) -> Question:
        """Take a place, for a clip that is still coming. Raises `Full` and `Closed`."""
        with self._moved:
            if not self.open:
                raise Closed
            if self.taken >= self.places:
                self.metrics.ended.labels("full").inc()
                raise Full(max(1, min(_LONGEST_WAIT, round(self.taken * self._each))))
            question = Question(hear)
            self._coming.add(question)
            return question

    def ask(self, question: Question) -> None:
        """Its clip is there. Raises `Closed`."""
        with self._moved:
            if not self.open:
                raise Closed
            question.tell("waiting", {"ahead": len(self._waiting) + len(self.batch)})
            self._coming.remove(question)
            self._waiting.append(question)
            self._moved.notify()

    def leave(self, question: Question, outcome: str) -> None:
        """Whoever asked has heard enough, or has gone: what was not answered is answered no more."""
        with self._moved:
            question.gone = True
            if question in self._waiting:
                self._waiting.remove(question)
            self._coming.discard(question)
            if question not in self.batch:
                question.forget()
        self.metrics.ended.labels(outcome).inc()

    def close(self) -> None:
        """Answer what is being answered, and nothing more; those that wait are told."""
        with self._moved:
            self._closed = True
            for question in self._waiting:
                question.tell("closed", None)
            self._waiting.clear()
            self._moved.notify()

    def end(self, seconds: float) -> None:
        """Close, and wait for the worker; whoever still waits for an answer is taken to have gone."""
        self.close()
        for question in [*self.batch]:
            question.gone = True
        self._thread.join(seconds)

    # The worker

    def _work(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            self._answer(batch)
            with self._moved:
                for question in self.batch:
                    question.forget()
                self._each += 0.3 * ((time.monotonic() - began) / len(self.batch) - self._each)
                self.batch.clear()

    def _next(self) -> list[list[Question]]:
        """Who waited longest, as many clips as go into a batch, with all that ask the same of the same clip; nothing
        once the line is closed."""
        with self._moved:
            while not self._waiting and not self._closed:
                self._moved.wait()
            batch: dict[str, list[Question]] = {}
            for question in [*self._waiting] if not self._closed else ():
                alike = batch.get(question.clip_id)
                if alike is None and len(batch) < self.predictor.config.sampling.clips_per_batch:
                    alike = batch.setdefault(question.clip_id, [])
                elif alike is None or alike[0].texts != question.texts:
                    continue
                alike.append(question)
                self._waiting.remove(question)
                self.batch.add(question)
            return [*batch.values()]

    def _answer(self, batch: Sequence[list[Question]]) -> None:
        try:
            self._ask_models({alike[0].clip_id: alike for alike in batch})
        except Exception as error:  # the border of a thread: whoever waits must hear of it
            if len(batch) > 1:  # one clip's trouble is not the others'
                for alike in batch:
                    self._answer([alike])
                return
            sentence = str(error)
            if not isinstance(error, DeepIntuitError):
                logging.getLogger(__name__).exception("a clip could not be answered")
                sentence = f"The model stopped with an error ({type(error).__name__}). The server's log has more."
            for question in batch[0]:
                question.tell("failed", sentence)

    def _ask_models(self, batch: Mapping[str, list[Question]]) -> None:
        self._local = self._local or self.predictor.reasoner_for(self._task)
        local = self._local.asking(self._task.with_texts({name: alike[0].texts for name, alike in batch.items()}))
        local.vlm = local.vlm.forgetful()
        clips = [
            Clip(name, str(alike[0].path), None, alike[0].info.width, alike[0].info.height, None)
            for name, alike in batch.items()
        ]
        writers = {name: _Writer(alike) for name, alike in batch.items()}
        rows, predictions = self.predictor.answer_batch(
            local,
            clips,
            "serve",
            on_text=lambda clip, text, _tokens: writers[clip.clip_id].tell(text),
            stop=lambda: all(question.gone for alike in batch.values() for question in alike),
        )
        self.metrics.batch.observe(len(batch))
        for row in rows:
            answer = self.rules.answer(vars(row), [p for p in predictions if p["clip_id"] == row.clip_id])
            self.metrics.tokens.inc(row.tokens)
            writers[row.clip_id].tell(row.text)
            for question in batch[row.clip_id]:
                question.tell("answer", {"path": question.name, "clip_id": row.clip_id, **answer})
        for clip_id, failure in local.unreadable.items():
            for question in batch[clip_id]:
                question.tell("failed", sentence_of(failure.error, question), str(failure.error.reason))


def sentence_of(error: DeepIntuitError, question: Question) -> str:
    """What is said of a clip, under the name that it came with."""
    return str(error).replace(str(question.path), question.name)


class _Writer:
    """Sends a trace to those who watch it being written."""

    def __init__(self, alike: Sequence[Question]):
        self._watching, self._sent = [question for question in alike if question.streams], 0

    def tell(self, text: str) -> None:
        """What is new of the text so far."""
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        for question in self._watching if new else ():
            question.tell("trace", {"text": new})
