"""Who says whether an observation, read without the clip, suffices for the right answer (VideoP2R, trace pipeline and
PA-GRPO).

    judge = build_judge(config, labels, manifest, workbench.cache)
    judge([Question("clip", "theft", "A stranger takes the box.")])     # [Verdict(sufficient=True, evidence="yes")]

Three judges behind one call: a server that is asked yes or no, a frozen model that must reach the true label from the
text alone, and the known facts of homecam. Strict: whatever is not a plain yes is no. Asked twice, a judge answers
once: servers' answers lie in the endpoint's cache, an answerer's beside it, by content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deepintuit import disk, worlds
from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.endpoint import Endpoint, Outcome, Request
from deepintuit.errors import DataError, TeachError
from deepintuit.labels import LabelSet
from deepintuit.prompts import observed_prompt, sufficient_prompt
from deepintuit.trace import THINK

if TYPE_CHECKING:
    from deepintuit.vlm import VLM


@dataclass(frozen=True)
class Question:
    """An observation of a clip whose true label is known to the judge, who never sees the clip."""

    clip_id: str
    label: str
    observation: str


class Verdict(NamedTuple):
    """`said`: what the verdict rests on, in the judge's own words."""

    sufficient: bool
    evidence: str


Judge = Callable[[Sequence[Question]], list[Verdict]]

RECIPE = 1
"""Raise when an answerer is asked in another way, so that old verdicts are not met again."""


def build_judge(config: Config, labels: LabelSet, manifest: Manifest, cache: Path, beside: VLM | None = None) -> Judge:
    """The judge that `judge.source` names. What cannot work is refused here, before a stage begins. `beside`: a model
    in memory, whose weights an answerer takes where they are the same."""
    if config.judge.source == "facts":
        return _knowing(manifest)
    if config.judge.source == "endpoint":
        return _asking(Endpoint.of(config.judge, cache), labels, config.judge.max_tokens)
    return _answering(config, labels, cache, beside)


def _knowing(manifest: Manifest) -> Judge:
    notes = dict(zip(manifest.frame["clip_id"], manifest.frame["notes"]))

    def known(clip_id: str) -> tuple[worlds.World, Any]:
        try:
            return worlds.knowing(notes[clip_id]["facts"])
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"clip {clip_id} of {manifest.dataset!r} has no known facts ({error!r})",
                "the judge 'facts' compares an observation with them, and only homecam's own clips have any",
                "Set judge.source to endpoint or answerer",
            ) from error

    def judge(questions: Sequence[Question]) -> list[Verdict]:
        verdicts = []
        for question in questions:
            world, facts = known(question.clip_id)
            mistakes = world.misread(question.observation, facts)
            leads_to = world.label_of_observation(question.observation)
            misread = f"; wrong or missing: {', '.join(mistakes)}" if mistakes else ""
            evidence = f"it leads to {leads_to or 'no label'}{misread}"
            verdicts.append(Verdict(leads_to == question.label, evidence))
        return verdicts

    return judge


def _asking(endpoint: Endpoint, labels: LabelSet, max_tokens: int) -> Judge:
    def judge(questions: Sequence[Question]) -> list[Verdict]:
        outcomes: dict[int, Outcome] = {}
        requests = (
            Request(sufficient_prompt(labels, q.label, q.observation), max_tokens=max_tokens, tag=number)
            for number, q in enumerate(questions)
        )
        endpoint.complete_many(requests, lambda request, outcome: outcomes.__setitem__(request.tag, outcome))
        lacking = next((why for outcome in outcomes.values() if (why := unanswered(outcome))), None)
        if lacking is not None:
            raise TeachError(
                f"the judge {endpoint.model!r} left observations unjudged",
                f"the first of them: {lacking}",
                "Rerun the command: verdicts that came are kept",
            )
        return [_strictly(outcomes[number].text) for number in range(len(questions))]

    return judge


def unanswered(outcome: Outcome) -> str:
    """Why there is no answer in what came; "" where there is one."""
    if isinstance(outcome, TeachError):
        return outcome.what
    endless = THINK.open in outcome.text and THINK.close not in outcome.text
    return "it thinks and does not come to an end; raise judge.max_tokens" if endless else outcome.lacking


def after_thinking(text: str) -> str:
    return text.rpartition(THINK.close)[2].strip()


def _strictly(text: str) -> Verdict:
    """Yes after the thinking, if any; in any case and with a full stop or not; anything else is no."""
    text = after_thinking(text)
    return Verdict(text.rstrip(".").casefold() == "yes", text)


def _answering(config: Config, labels: LabelSet, cache: Path, beside: VLM | None) -> Judge:
    from deepintuit.vlm import VLM, label_logprobs, located  # here, so that the other judges start without torch

    path = config.judge.model or config.model.path
    files = sorted(Path(located(path)).glob("*.safetensors"))
    weights = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    models: list[VLM] = []
    store = disk.JsonCache(cache / "judge")
    asked_of = RECIPE, path, weights, config.model.dtype, list(labels)

    def answers(prompts: Sequence[str]) -> list[str]:
        if not models:
            model = config.model.replace(path=path, lora_rank=0)
            models.append(VLM.load(model, config.video, checkpoint=None, cache=cache, beside=beside))
        scores_C_K = label_logprobs(models[0], [None] * len(prompts), prompts, labels)
        return [labels.labels[i] for i in scores_C_K.argmax(1).tolist()]

    def judge(questions: Sequence[Question]) -> list[Verdict]:
        prompts = [observed_prompt(labels, q.observation, config.prompt.style) for q in questions]
        label_of = {p: label for p in set(prompts) if (label := store.get(*asked_of, p)) in tuple(labels)}
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in label_of]
        batch = config.sampling.clips_per_batch
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            for prompt, label in zip(part, answers(part)):
                label_of[prompt] = label
                store.put(label, *asked_of, prompt)
        return [Verdict(label_of[p] == q.label, f"answers {label_of[p]}") for p, q in zip(prompts, questions)]

    return judge
