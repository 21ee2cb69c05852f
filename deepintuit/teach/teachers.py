"""The teachers of stage "teach", each a function (clips, samples to write by clip, recorder). The third needs torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from deepintuit import worlds
from deepintuit.config import Config
from deepintuit.endpoint import NOTHING, Completion, Endpoint, Outcome, Refused, Request
from deepintuit.errors import DataError, TeachError, VideoError
from deepintuit.labels import LabelSet
from deepintuit.prompts import PromptStyle, rationale_prompt
from deepintuit.runs import Workbench
from deepintuit.teach.recorder import Clip, TraceRecorder
from deepintuit.trace import FALLBACK, Grammar, grammar_named, render
from deepintuit.video import sampled_frames

Teacher = Callable[[Sequence[Clip], Mapping[str, Sequence[int]], TraceRecorder], None]
_Prompt = Callable[[Clip], str]


def build_teacher(
    workbench: Workbench,
    config: Config,
    labels: LabelSet,
    texts: Mapping[str, Mapping[str, str]],
    clips: Sequence[Clip],
) -> Teacher:
    """The teacher that `teach.source` names. What cannot work is refused here, before a run begins."""
    if config.teach.source == "homecam":
        return _scripted({clip["clip_id"]: _known(clip) for clip in clips}, config)
    with_label = config.teach.source == "self"
    # A server reads instructions, however small the model that will imitate it; brief ones would not tell it the form.
    style = config.prompt.style if with_label else PromptStyle.FULL

    def prompt(clip: Clip) -> str:
        label = clip["label"] if with_label else None
        return rationale_prompt(labels, label, config.prompt.grammar, style, texts[clip["clip_id"]])

    if with_label:
        return _itself(workbench, config, prompt)
    return _endpoint(Endpoint.of(config.teach, workbench.cache), config, prompt)


# A world's own


def _scripted(facts_of: Mapping[str, tuple[worlds.World, Any]], config: Config) -> Teacher:
    def write(clips: Sequence[Clip], todo: Mapping[str, Sequence[int]], recorder: TraceRecorder) -> None:
        for clip in clips:
            world, facts = facts_of[clip["clip_id"]]
            for sample in todo[clip["clip_id"]]:
                start = time.perf_counter()
                # By clip too: two clips with the same facts are not misread in the same way.
                draw = hashlib.sha256(f"{config.seed}/{clip['clip_id']}/{sample}".encode()).hexdigest()[:16]
                text = _in_grammar(world.write_trace(facts, int(draw, 16)), config.prompt.grammar)
                milliseconds = (time.perf_counter() - start) * 1000
                recorder.take(clip, sample, text, model="homecam.teacher", milliseconds=milliseconds)

    return write


def _in_grammar(pieces: Mapping[str, str], grammar_name: str) -> str:
    """The scripted parts in another grammar than their own [R]: without an observation, thinking opens with it."""
    if grammar_name == "think-answer":
        return pieces["text"]
    names = [segment.name for segment in grammar_named(grammar_name).segments]
    thinking = pieces["think"] if "observation" in names else f"{pieces['observation']} {pieces['think']}"
    # Half of the quick answers are put off [R]: a model that starts here must know both forms.
    put_off = int(hashlib.sha256(pieces["text"].encode()).hexdigest(), 16) % 2
    parts = {**pieces, "think": thinking, "quick": FALLBACK if put_off else pieces["answer"]}
    return render(grammar_name, **{name: parts[name] for name in names})


def _known(clip: Clip) -> tuple[worlds.World, Any]:
    try:
        return worlds.knowing(clip["notes"]["facts"])
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"Clip {clip['source']!r} has no facts that the scripted teacher can read ({error!r})",
            "it writes from the note `facts` of an embedded world's own clips and sees no pixels",
            "Set teach.source to endpoint or self for other clips, or render the clips anew",
        ) from error


# An endpoint, blind to the label


def _endpoint(endpoint: Endpoint, config: Config, prompt: _Prompt) -> Teacher:
    def write(clips: Sequence[Clip], todo: Mapping[str, Sequence[int]], recorder: TraceRecorder) -> None:
        def requests() -> Iterator[Request]:
            for clip in clips:
                samples = todo[clip["clip_id"]]
                try:
                    frames = sampled_frames(clip["path"], clip["width"], clip["height"], config.video)
                except VideoError as error:
                    recorder.skip(clip, error, len(samples))
                    continue
                question = prompt(clip)
                for sample in samples:
                    teach = config.teach
                    yield Request(question, frames, teach.temperature, teach.max_tokens, sample, config.seed, tag=clip)

        def on_done(request: Request, outcome: Outcome) -> None:
            place = [request.tag["clip_id"], request.sample]
            if isinstance(outcome, Completion) and not outcome.lacking:
                recorder.take(**_told(request, outcome, endpoint.model))
            elif isinstance(outcome, Completion) and (outcome.lacking != NOTHING or place in empty_before):
                lacking.append(_told(request, outcome, endpoint.model))
                failure.append(endpoint.empty(outcome))
            else:
                recorder.advance(1)
                if isinstance(outcome, Refused):
                    columns = {name: request.tag[name] for name in ("clip_id", "source")}
                    recorder.refused.append({**columns, "sample": request.sample, "why": outcome.why})
                elif isinstance(outcome, Completion):
                    empty.append(place)
                    recorder.unanswered.append(endpoint.empty(outcome))
                else:
                    recorder.unanswered.append(outcome)

        # An empty answer is asked for again, once: one such clip shall not hold the run up for ever.
        empty_before, empty = recorder.run.about.get("empty", []), []
        lacking: list[dict[str, Any]] = []
        failure: list[TeachError] = []
        endpoint.complete_many(requests(), on_done)
        if empty:
            recorder.run.note(empty=[*empty_before, *empty])
        if endpoint.unknown:
            recorder.run.log(endpoint.unknown)
        recorder.flush()
        if lacking and not recorder.run.done("traces", "trace_id"):
            raise failure[0]  # nothing is stored, so that a server that was mended is asked again
        for arguments in lacking:
            recorder.take(**arguments)

    return write


def _told(request: Request, answer: Completion, model: str) -> dict[str, Any]:
    """What `TraceRecorder.take` is told of an answer; no pixels, which are large."""
    return {
        "clip": request.tag,
        "sample": request.sample,
        "text": answer.text,
        "truncated": answer.truncated,
        "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.completion_tokens,
        "milliseconds": answer.milliseconds,
        "temperature": None if "temperature" in answer.left_out else request.temperature,
        "model": model,
        "prompt_hash": _hash(request.text),
        **request.frames.record().columns(),
        **({"detail": answer.lacking} if answer.lacking else {}),
    }


# The local model, told the label


def _itself(workbench: Workbench, config: Config, prompt: _Prompt) -> Teacher:
    def write(clips: Sequence[Clip], todo: Mapping[str, Sequence[int]], recorder: TraceRecorder) -> None:
        from deepintuit.vlm import VLM, sample_groups  # here, so that the other teachers start without torch

        if not clips:
            return
        grammar = grammar_named(config.prompt.grammar)
        vlm = VLM.load(config.model, config.video, checkpoint=None, cache=workbench.cache)
        recorder.run.note(device=str(vlm.device))
        count = config.sampling.clips_per_batch
        # Of the batch that follows, the first clips are read while this one is written about.
        features = vlm.encoder.encode_all((c["clip_id"], c["path"], c["width"], c["height"]) for c in clips)
        for start in range(0, len(clips), count):
            readable = []
            for clip, outcome in zip(clips[start : start + count], features, strict=False):
                if isinstance(outcome, VideoError):
                    recorder.skip(clip, outcome, len(todo[clip["clip_id"]]))
                else:
                    readable.append((clip, outcome))
            if not readable:
                continue
            prompts = [prompt(clip) for clip, _ in readable]
            # Whole groups: a trace hangs on its key alone, so one that is written again is the same.
            numbers = range(config.teach.traces)
            groups = sample_groups(
                vlm,
                [encoded for _, encoded in readable],
                prompts,
                [[f"teach/{config.seed}/{clip['clip_id']}/{n}" for n in numbers] for clip, _ in readable],
                temperature=config.teach.temperature,
                max_tokens=config.teach.max_tokens,
                top_p=config.sampling.top_p,
            )
            for (clip, encoded), question, group in zip(readable, prompts, groups, strict=True):
                for number in todo[clip["clip_id"]]:
                    sample = group[number]
                    given_answer = config.teach.given_answer
                    framed = framed_reasoning(sample.text, clip["label"], grammar) if given_answer else None
                    recorder.take(
                        clip,
                        number,
                        framed or sample.text,
                        truncated=sample.truncated and not framed,
                        tokens=len(sample.token_ids),
                        token_ids=None if framed else sample.token_ids,  # they are of another text
                        token_logprobs=None if framed else sample.logprobs_T,
                        confidence=sample.confidence,
                        milliseconds=sample.milliseconds,
                        temperature=config.teach.temperature,
                        model=vlm.name,
                        prompt_hash=_hash(question),
                        **encoded.frames.columns(),
                    )
            recorder.flush()

    return write


def framed_reasoning(text: str, label: str, grammar: Grammar) -> str | None:
    """What a model wrote, up to the first closing mark, as the reasoning of a trace that ends in `label`.

    For a model that does not know the marks yet. None where nothing is left to frame, or the grammar has several texts
    to fill.
    """
    if len(grammar.text_segments) != 1:
        return None
    (segment,) = grammar.text_segments
    reasoning = text.split(segment.close)[0]
    for mark in {mark for each in grammar.segments for mark in (each.open, each.close)}:
        reasoning = reasoning.replace(mark, " ")
    reasoning = " ".join(reasoning.split())
    texts = {each.name: f" {label} " for each in grammar.segments if each.name != segment.name}
    return render(grammar, **{segment.name: f" {reasoning} "}, **texts) if reasoning else None


def _hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
