"""One clip reasoned about while somebody watches: decode, encode, reason, calibrate, as a stream of events.

    models = Models(workbench)
    reason(models, Ask(clip, reasoner="grpo-…"), emit=print, stop=threading.Event().is_set)

Models are loaded when first asked for and kept, two at most: a reasoner and its calibrator. One `reason` at a time for
one `Models`; who calls it keeps the line. Nothing is stored: a trace that should stay comes from a stage.

Methods that need several traces are not offered here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deepintuit import config
from deepintuit.config import Config, GateConfig
from deepintuit.errors import DeepIntuitError, StoreError
from deepintuit.reasoner.attribution import attributions
from deepintuit.reasoner.calibrator import Calibrator, fitted_ways
from deepintuit.reasoner.distance import Distance
from deepintuit.reasoner.distribution import answer_distribution, likelihood_scores
from deepintuit.reasoner.gate import gate_for
from deepintuit.reasoner.local import LocalReasoner
from deepintuit.reasoner.replay import Attributed, Distribution, Event, Failed, Seen, Stage, TraceDone, Written
from deepintuit.reasoner.served import reasoner_for
from deepintuit.reasoner.task import REASONERS, Clip, Task, parsed
from deepintuit.runs import Workbench
from deepintuit.vlm import VLM


@dataclass(frozen=True)
class Ask:
    """What to do. `reasoner`, `calibrator`: run ids; None for `top_p` and `max_tokens`: as the run was made.

    `think_below`: a quick answer at least this sure ends the trace; None thinks always. Nothing for other grammars.

    `written`: text, `truncated` and `thought` of a trace that is there already, of which the calibrator is asked what
    carried its answer; none is written.

    `private`: nothing derived from the clip is written to the workbench's caches (an upload).
    """

    clip: Clip
    reasoner: str
    calibrator: str | None = None
    temperature: float = 0.0
    top_p: float | None = None
    max_tokens: int | None = None
    think_below: float | None = None
    seed: int = 0
    private: bool = False
    written: Mapping[str, Any] | None = None


class Models:
    """Loaded models by run id, the two last used. Not for several threads at once."""

    def __init__(self, workbench: Workbench, room: int = 2):
        self.workbench, self.room = workbench, room
        self._held: OrderedDict[str, VLM] = OrderedDict()

    def settings(self, run_id: str) -> Config:
        """The settings that a run was made with. StoreError for a run that holds no model of this project's stages."""
        run = self.workbench.run(run_id)
        settings = run.about.get("settings")
        if not run.finished or settings is None:
            raise StoreError(
                f"run {run_id!r}",
                "it is not finished, or does not say with which settings its model was made",
                "Choose another reasoner, or run its stage again",
            )
        return config.of(settings)

    def get(self, run_id: str) -> VLM:
        """The model of a run, loaded unless it is held; beside a server, without the weights that are there. Raises
        what `VLM.load` raises."""
        if run_id in self._held:
            self._held.move_to_end(run_id)
            return self._held[run_id]
        while len(self._held) >= self.room:
            self._held.popitem(last=False)
        settings, run = self.settings(run_id), self.workbench.run(run_id)
        here = run if run.stage in (*REASONERS, "calibrate") else self.workbench.run(run.parent) if run.parent else None
        weights = not (settings.server.model and (run.stage != "calibrate" or settings.server.calibrator))
        load = {"checkpoint": here and here.checkpoint, "cache": self.workbench.cache, "weights": weights}
        vlm = VLM.load(settings.model, settings.video, **load, beside=next(reversed(self._held.values()), None))
        vlm.encoder.isolate = True
        self._held[run_id] = vlm
        return vlm

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._held


def reason(models: Models, ask: Ask, emit: Callable[[Event], None], stop: Callable[[], bool]) -> None:
    """Do what is asked and tell `emit`. Bad input ends in a `Failed`; `stop` is looked at between steps and tokens."""
    try:
        (_attribute if ask.written else _reason)(models, ask, emit, stop)
    except DeepIntuitError as error:
        emit(Failed(str(error)))


def _reason(models: Models, ask: Ask, emit: Callable[[Event], None], stop: Callable[[], bool]) -> None:
    settings = models.settings(ask.reasoner)
    if ask.reasoner not in models:
        emit(Stage("load"))
    vlm, task = models.get(ask.reasoner), Task(models.workbench.path, settings)
    if stop():
        return
    clip = ask.clip
    by = "off" if ask.think_below is None or task.grammar.quick is None else "confidence"
    gate = gate_for(task, GateConfig(by=by, threshold=ask.think_below or 0.0))
    vlm, live_settings = vlm.forgetful() if ask.private else vlm, settings.replace(seed=ask.seed, gate={"by": by})
    local = reasoner_for(vlm, task, live_settings, gate=gate, compare=False)
    emit(Stage("decode"))
    frames = local.vlm.encoder.frames(clip.clip_id, clip.path, clip.width, clip.height)
    times = tuple(round(float(t), 4) for t in frames.times_T)
    emit(Seen(tuple(map(int, frames.indices_T)), times, frames.pixels_T_H_W_3))
    emit(Stage("encode"))
    pairs = local.encode([clip])
    if not pairs:
        raise local.unreadable[clip.clip_id].error
    if stop():
        return
    emit(Stage("reason"))
    groups = local.groups(
        [clip],
        [0],
        temperature=ask.temperature,
        max_tokens=ask.max_tokens or settings.sampling.max_tokens,
        top_p=ask.top_p or settings.sampling.top_p,
        on_text=lambda _, text, tokens: emit(Written(text, tokens)),
        stop=stop,
    )
    if not groups:
        raise local.unreadable[clip.clip_id].error
    [(_, encoded, [sample])] = groups
    row = local.row(clip, encoded, sample, 0, ask.temperature)
    trace = task.parse(sample.text, sample.truncated, sample.thought is not False)
    stopped = stop() and sample.truncated
    reason, detail = (None, None) if trace.ok else (str(trace.reason), trace.detail)
    ms = sample.milliseconds
    gated = sample.quick_confidence, sample.thought
    emit(TraceDone(sample.text, trace.provisional, reason, detail, row.confidence, row.tokens, ms, stopped, *gated))
    probs_K = answer_distribution(task, trace, row.token_ids, row.token_logprobs, vlm.tokenizer)
    if trace.ok and probs_K is not None and not stop():
        emit(Distribution(tuple(task.labels), tuple(map(float, probs_K)), "raw"))
    if ask.calibrator is None or stop():
        return
    calibrator = _calibrator(models, ask.calibrator, emit)
    if stop():
        return
    emit(Stage("calibrate"))
    score = likelihood_scores(calibrator.vlm, task, pairs, [trace], 1)
    [temperature] = calibrator.temperatures([trace]).tolist()
    far = calibrator.far(pairs).get(clip.clip_id, ())
    probs, outside = score.probs(temperature)[0], float(score.outside_C[0])
    emit(Distribution(tuple(task.labels), tuple(map(float, probs)), "label_likelihood", temperature, outside, *far))


def _attribute(models: Models, ask: Ask, emit: Callable[[Event], None], stop: Callable[[], bool]) -> None:
    """What carried the calibrated label to a trace that is there already."""
    task = Task(models.workbench.path, models.settings(ask.calibrator))
    calibrator = _calibrator(models, ask.calibrator, emit)
    emit(Stage("encode"))
    local = LocalReasoner(calibrator.vlm.forgetful() if ask.private else calibrator.vlm, task, ask.seed)
    if not (pairs := local.encode([ask.clip])):
        raise local.unreadable[ask.clip.clip_id].error
    if not stop():
        emit(Stage("calibrate"))
        [trace] = parsed(task, [ask.written])
        emit(Attributed(tuple(attributions(calibrator, task, *pairs[0], trace))))


def _calibrator(models: Models, run_id: str, emit: Callable[[Event], None]) -> Calibrator:
    if run_id not in models:
        emit(Stage("load"))
    vlm, run, settings = models.get(run_id), models.workbench.run(run_id), models.settings(run_id)
    if settings.server.calibrator:
        return Calibrator.load(models.workbench, settings, run_id, vlm)
    return Calibrator(run, vlm, fitted_ways(run), Distance.load(run))
