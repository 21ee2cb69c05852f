"""Judge: a rubric's yes/no questions about the traces of a run, and which step of a wrong one is the first false one.

Who is asked is the section `judge` of the settings: a server, or the local model by its log-probabilities of yes, no
and unclear. What a trace says is material: it stands in the question as one JSON string, and of an answer one of the
words counts that were asked for, else it is unclear. Answers are rows of the grain `scores`, named "judge.QUESTION":
1 yes, 0 no, nan for neither; `evidence` begins with the answer. Of `--steps`, the value is the number of the sentence
(`trace.sentences_of`), -1 where none is false.

Run it:  deepintuit judge RUN --rubric house.toml
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rich.progress import Progress

from deepintuit.config import Config
from deepintuit.endpoint import Endpoint, Outcome, Refused, Request
from deepintuit.errors import ConfigError, StoreError, TeachError, VideoError
from deepintuit.judges import after_thinking, unanswered
from deepintuit.labels import LabelSet
from deepintuit.prompts import false_step_prompt, rubric_prompt
from deepintuit.reasoner import Task, inherited
from deepintuit.rubrics import FALSE_STEP, Rubric, holds
from deepintuit.runs import Run, Workbench
from deepintuit.trace import sentences_of
from deepintuit.video import sampled_frames

PREFIX = "judge."
"""Of the names of these scores."""
ANSWERS = LabelSet.of("answers", ["yes", "no", "unclear"])
STEP_KINDS = ("observation", "summary", "policy", "conclusion")
_VALUES = {"yes": 1.0, "no": 0.0}
_STEP = re.compile(rf"(\d{{1,4}})\W{{1,3}}({'|'.join(STEP_KINDS)})")
_LONGEST = 200  # characters of a judge's words that are kept
_AT_ONCE = 256  # answers that wait to be written


class Query(NamedTuple):
    """One question about one trace. `sentences`: how many it has, where one of them is asked for."""

    trace: Mapping[str, Any]
    name: str
    prompt: str
    clip: bool
    sentences: int = 0


def run(
    workbench: Workbench,
    config: Config,
    *,
    source: str,
    rubric: Rubric | None = None,
    steps: bool = False,
    every: bool = False,
    progress: bool = True,
) -> Run:
    """The answers to the rubric, and to which step is the first false one (`steps`), about the traces of the finished
    run `source`: the first sample of each clip, or `every` one. ConfigError for what its judge cannot answer,
    StoreError for a run without traces, TeachError where answers are missing: a rerun asks for those alone."""
    source_run = workbench.run(source)
    if not source_run.finished or not source_run.table("traces", ["trace_id"]).num_rows:
        lack, todo = "is not finished", "Rerun its command"
        if source_run.finished:
            lack, todo = "has no traces", "Name one that has"
        what = f"run {source!r}, of the stage {source_run.stage}, {lack}"
        raise StoreError(what, "a judge reads the traces of a run", todo)
    refuse(config, rubric, steps)
    config, _ = inherited(workbench, config.replace(clips={"dataset": source_run.about["dataset"]}), source)
    asks = steps or any(question.ask for question in rubric.questions)
    judge = config.decisive()["judge"] | ({"path": config.model.path} if config.judge.source == "answerer" else {})
    described = {
        "rubric": rubric and rubric.to_dict(),
        "steps": steps,
        "every": every,
        "judge": judge if asks else None,
    }
    about = {"parent": source, "name": rubric.name if rubric else "steps", "dataset": source_run.about["dataset"]}
    run = workbench.start_run("judge", described, **about)
    if run.finished:
        return run
    with run:
        task = Task(workbench.path, config)
        run.note(settings=config.to_dict())
        traces = _traces(source_run, every)
        keys = run.done("scores", ("trace_id", "name"))
        missing = [
            query
            for query in questions(traces, rubric, steps, task)
            if (query.trace["trace_id"], PREFIX + query.name) not in keys
        ]
        _follow_rules(run, traces, rubric, keys)
        if missing:
            answer = _by_endpoint if config.judge.source == "endpoint" else _by_model
            with Progress(disable=not progress) as bar:
                following = bar.add_task("Answers", total=len(missing))
                answer(run, workbench, config, task, missing, lambda: bar.advance(following))
        run.finish({"source": source, "traces": len(traces), "answers": _counts(run)})
    return run


def planned(source: Run, rubric: Rubric | None, steps: bool, every: bool) -> str:
    """How much will be asked, in a sentence."""
    traces = _traces(source, every)
    n = len(traces) * sum(bool(question.ask) for question in (rubric.questions if rubric else ()))
    steps_asked = sum(map(_is_wrong, traces)) if steps else 0
    return f"{len(traces):,} traces: {n:,} answers to the rubric and {steps_asked:,} false steps are asked for, at most"


def _traces(source: Run, every: bool) -> list[dict[str, Any]]:
    names = ["trace_id", "clip_id", "sample", "text", "reason", "provisional", "true_label"]
    return [row for row in source.table("traces", names).to_pylist() if every or row["sample"] == 0]


def _is_wrong(row: Mapping[str, Any]) -> bool:
    """Well-formed, and of another label than the true one."""
    return bool(row["true_label"]) and row["reason"] is None and row["provisional"] != row["true_label"]


def refuse(config: Config, rubric: Rubric | None, steps: bool) -> None:
    """ConfigError for what the judge of these settings cannot answer."""
    if rubric is None and not steps:
        raise ConfigError(
            "a judge that is asked nothing",
            "it answers a rubric, or which step is false",
            "Give --rubric FILE, --steps, or both",
        )
    questions_of = rubric.questions if rubric else ()
    asks, shows = (steps or any(getattr(question, name) for question in questions_of) for name in ("ask", "clip"))
    if asks and config.judge.source == "endpoint":
        Endpoint.of(config.judge)  # an address that is none is refused
    if config.judge.source == "facts" and asks:
        why = "known facts answer no question in words, and which step is false Errors reads from them unasked"
        raise ConfigError("judge.source = 'facts'", why, "Set judge.source to endpoint or answerer, or write patterns")
    if config.judge.source == "answerer" and shows:
        why = "the local model is asked for yes or no about a text alone, without the clip"
        raise ConfigError(
            "judge.source = 'answerer'",
            why,
            "Set judge.source=endpoint with judge.base_url and judge.model, or leave out --steps and clip = true",
        )


def questions(traces: Iterable[Mapping[str, Any]], rubric: Rubric | None, steps: bool, task: Task) -> Iterator[Query]:
    """What has to be asked; which step is false, of well-formed traces whose label is wrong."""
    for row in traces:
        for question in rubric.questions if rubric else ():
            if question.ask:
                yield Query(row, question.name, rubric_prompt(task.labels, question.ask, row["text"]), question.clip)
        if steps and _is_wrong(row):
            cut = [row["text"][piece.start : piece.end] for piece in sentences_of(row["text"], task.grammar)]
            prompt = false_step_prompt(task.labels, row["true_label"], cut)
            yield Query(row, FALSE_STEP, prompt, True, len(cut))


def read_answer(query: Query, text: str) -> tuple[float, str]:
    """Value and evidence of an answer; strictly: whatever is not one of the words that were asked for is unclear."""
    words = text.strip()[:_LONGEST]
    word = words.strip(" \t\n.!*\"'`").casefold()
    if query.name == FALSE_STEP:
        if word == "none":
            return -1.0, "none"
        match = _STEP.fullmatch(word)
        if match and 1 <= int(match[1]) <= query.sentences:
            return float(match[1]) - 1, match[2]
    elif word in _VALUES:
        return _VALUES[word], word
    return math.nan, "unclear" if word == "unclear" else f"unclear: {words}"


def _row(query: Query, value: float, evidence: str) -> dict[str, Any]:
    return {"trace_id": query.trace["trace_id"], "name": PREFIX + query.name, "value": value, "evidence": evidence}


def _follow_rules(run: Run, traces: list[Mapping[str, Any]], rubric: Rubric | None, keys: set) -> None:
    for question in rubric.questions if rubric else ():
        rows = [row for row in traces if question.pattern and (row["trace_id"], PREFIX + question.name) not in keys]
        marks = holds(question.pattern, [row["text"] for row in rows]) if rows else []
        queries = (Query(row, question.name, "", False) for row in rows)
        run.append("scores", [_row(query, float(mark), "yes" if mark else "no") for query, mark in zip(queries, marks)])


def _by_endpoint(
    run: Run, workbench: Workbench, config: Config, task: Task, missing: list[Query], advance: Callable[[], None]
) -> None:
    endpoint = Endpoint.of(config.judge, workbench.cache)
    clips = {row.clip_id: row for row in task.manifest.usable().itertuples()}
    rows: list[dict[str, Any]] = []
    lacking: list[str] = []

    def requests() -> Iterator[Request]:
        for query in missing:
            frames = None
            if query.clip:
                try:
                    clip = clips[query.trace["clip_id"]]
                    frames = sampled_frames(clip.path, clip.width, clip.height, config.video)
                except (VideoError, KeyError) as error:
                    why = error.what if isinstance(error, VideoError) else "its clip is in the manifest no more"
                    rows.append(_row(query, math.nan, f"not asked: {why}"[:_LONGEST]))
                    advance()
                    continue
            yield Request(query.prompt, frames, max_tokens=config.judge.max_tokens, tag=query)

    def on_done(request: Request, outcome: Outcome) -> None:
        advance()
        if isinstance(outcome, Refused):  # asked again, it would be refused again
            rows.append(_row(request.tag, math.nan, f"not asked: {outcome.why}"[:_LONGEST]))
        elif why := unanswered(outcome):
            lacking.append(why)
        else:
            rows.append(_row(request.tag, *read_answer(request.tag, after_thinking(outcome.text))))
        if len(rows) >= _AT_ONCE:
            run.append("scores", rows)
            rows.clear()

    try:
        endpoint.complete_many(requests(), on_done)
    finally:
        run.append("scores", rows)
    if endpoint.unknown:
        run.log(endpoint.unknown)
    if lacking:
        raise TeachError(
            f"the judge {endpoint.model!r} left {len(lacking)} of {len(missing)} questions unanswered",
            f"the first of them: {lacking[0]}",
            "Rerun the command: answers that came are kept",
        )


def _by_model(
    run: Run, workbench: Workbench, config: Config, task: Task, missing: list[Query], advance: Callable[[], None]
) -> None:
    from deepintuit.vlm import VLM, label_logprobs  # here, so that a server is asked without torch

    model = config.model.replace(path=config.judge.model or config.model.path, lora_rank=0)
    vlm = VLM.load(model, config.video, checkpoint=None, cache=workbench.cache)
    run.note(device=str(vlm.device))
    for start in range(0, len(missing), config.sampling.clips_per_batch):
        part = missing[start : start + config.sampling.clips_per_batch]
        probs_C_K = label_logprobs(vlm, [None] * len(part), [query.prompt for query in part], ANSWERS).softmax(1)
        rows = []
        for query, probs_K in zip(part, probs_C_K.tolist(), strict=True):
            word = ANSWERS.labels[probs_K.index(max(probs_K))]
            rows.append(_row(query, _VALUES.get(word, math.nan), f"{word}: {max(probs_K):.3f} of yes, no and unclear"))
            advance()
        run.append("scores", rows)


def _counts(run: Run) -> dict[str, dict[str, int]]:
    """Question → answer → traces."""
    rows = run.table("scores", ["name", "evidence"])
    counts: dict[str, Counter[str]] = {}
    for name, evidence in zip(rows["name"].to_pylist(), rows["evidence"].to_pylist()):
        counts.setdefault(name.removeprefix(PREFIX), Counter())[evidence.partition(":")[0]] += 1
    return {name: dict(sorted(counter.items())) for name, counter in counts.items()}
