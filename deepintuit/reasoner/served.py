"""The reasoner, and if wanted its calibrator, at an OpenAI-compatible server: vLLM first, any other as far as it tells.

The server is shown the frames that the local processor reads and records, and is asked for each trace by itself. What
it does not give (log-probabilities, token ids) is missing in the rows, never made up. Of one answer of each session the
length of the prompt and the log-probabilities are compared with those of the model on this machine.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepintuit import ranks
from deepintuit.config import Config, ServerConfig
from deepintuit.endpoint import Completion, Endpoint, Refused, Request
from deepintuit.errors import ConfigError, DataError, DeepIntuitError, TeachError, VideoError, VideoReason
from deepintuit.reasoner.local import LocalReasoner, OnText, Unreadable
from deepintuit.reasoner.task import Clip, Task, tell
from deepintuit.runs import Run, TraceRow
from deepintuit.texts import parse_json
from deepintuit.video import Frames
from deepintuit.vlm import VLM, EncodedClip, Sample, harmless, metadata_of, token_logprobs

if TYPE_CHECKING:
    from deepintuit.reasoner.gate import GateOf

PLAIN = {
    **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
}
"""Sampling from the model as it is: vLLM would take what a checkpoint's generation_config.json recommends."""
SCORED = {"prompt_logprobs": 0, "add_generation_prompt": False, "return_token_ids": True}
_TAIL = 16  # tokens that a template may write behind a label
_APART = 0.05
"""Mean difference of log-probabilities from which on it is more than rounding [R]: bfloat16 gives a few hundredths."""

COUNTING = "its text behind a clip counts on from the last moment, as in vLLM's own code for Qwen2.5-VL"
UNTOLD = "its processor takes a clip's frames as 24 a second, as vLLM's transformers models do"


def reasoner_for(
    vlm: VLM,
    task: Task,
    config: Config,
    *,
    gate: GateOf | None = None,
    run: Run | None = None,
    cache: Path | None = None,
    progress: bool = False,
    compare: bool = True,
) -> LocalReasoner:
    """What writes the traces: the model on this machine, or the one at the server that the settings name. Answers of a
    server are kept in `cache` for this `run`, whose record says how the first one compared."""
    server = config.server
    if not server.model:
        if server.base_url or server.calibrator:
            setting = "server.base_url" if server.base_url else "server.calibrator"
            raise ConfigError(
                f"{setting} without server.model", "a server serves models by name", "Set server.model, or neither"
            )
        return LocalReasoner(vlm, task, config.seed, gate)
    if config.gate.by != "off":
        raise ConfigError(
            f"gate.by = {config.gate.by!r} with server.model = {server.model!r}",
            "a gate decides between two tokens, and a server writes a trace to its end",
            "Leave one of them out",
        )
    return ServedReasoner(vlm, task, config, run, cache, progress, compare)


def needs_weights(config: Config, calibrator: str | None) -> bool:
    """Whether weights must be on this machine: they write, calibrate, make features for a head, or are compared."""
    server = config.server
    calibrates = calibrator is not None and not server.calibrator
    return not server.model or server.compare or calibrates or config.evaluate.method == "linear_head"


def refuse_lost(local: LocalReasoner, clips: Sequence[Clip]) -> None:
    """Raises what stood in the way of a trace of one of these clips, which could be read before: a split is scored
    whole. A server may refuse it, or its file be gone since."""
    for clip in clips:
        if clip.clip_id in local.unreadable:
            raise local.unreadable[clip.clip_id].error


@dataclass(frozen=True)
class ServedSample(Sample):
    """A trace from a server: `tokens` as it counted them. Log-probabilities and ids are empty where it gave none, or
    none that can be read here; `missing` names what it lacks, `left_out` what the server was asked without."""

    tokens: int | None = None
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class _Asking:
    """What reasoner and calibrator at a server have in common: requests about clips, with the frames of the record."""

    def __init__(self, server: ServerConfig, model: str, cache: Path | None, scope: str):
        settings = server.replace(model=model)
        self.server = server
        self.met = self.answered = False
        self.endpoint = Endpoint.of(settings, cache if scope else None, scope)
        self._extra = parse_json(server.extra) if server.extra else {}

    @staticmethod
    def frames(vlm: VLM, clip: Clip, encoded: EncodedClip) -> Frames:
        """Those that the record names. VideoError where the file no longer gives them."""
        frames = vlm.encoder.frames(clip.clip_id, clip.path, clip.width, clip.height)
        if frames.hash != encoded.frames.hash:
            what, why = f"the clip {clip.clip_id}", "its file gives other frames than those on record"
            raise VideoError(what, why, "Bring the old file back, or import the clips again", VideoReason.CHANGED)
        return frames

    def request(self, text: str, frames: Frames, **about: Any) -> Request:
        more = {**self._extra, **about.pop("more")}
        if self.server.frames == "video":
            metadata, names = metadata_of(frames), ("fps", "frames_indices", "total_num_frames", "duration")
            video = {name: getattr(metadata, name) for name in names}
            # Of more than `num_frames`, 32 by default, vLLM takes the first ones.
            video |= {"num_frames": len(frames), "do_sample_frames": False}
            more["media_io_kwargs"] = {"video": video}
        form = {"video": self.server.frames == "video", "coding": self.server.encoding}
        return Request(harmless(text), frames, more=more, **form, **about)


class ServedReasoner(LocalReasoner):
    """A reasoner whose traces a server writes; prompts, frames and features are those of `vlm`, which may be without
    weights.

    One answer of a session is compared with what is here, and what it says goes to the run's record under `server`.
    """

    def __init__(
        self,
        vlm: VLM,
        task: Task,
        config: Config,
        run: Run | None = None,
        cache: Path | None = None,
        progress: bool = False,
        compare: bool = True,
    ):
        super().__init__(vlm, task, config.seed)
        self._asking = _Asking(config.server, config.server.model, cache, run.id if run else "")
        self._run, self._progress, self._compares = run, progress, compare and vlm.has_weights

    def groups(
        self,
        clips: Sequence[Clip],
        samples: Sequence[int],
        *,
        temperature: float | Sequence[float],
        max_tokens: int,
        top_p: float = 1.0,
        step: int | None = None,
        on_text: OnText | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[tuple[Clip, EncodedClip, list[Sample]]]:
        """As a local reasoner. Raises `TeachError` where the server is gone, or refuses whatever it is asked; a clip
        that it alone refuses is in `unreadable`. What was answered before is kept."""
        pairs = self.encode(clips)
        heats = [temperature] * len(samples) if isinstance(temperature, int | float) else temperature
        answers: dict[tuple[str, int], Completion] = {}
        failures: list[DeepIntuitError] = []

        def requests() -> Iterator[Request]:
            for clip, encoded in pairs:
                try:
                    frames = self._asking.frames(self.vlm, clip, encoded)
                except VideoError as error:
                    self.unreadable[clip.clip_id] = Unreadable(clip, error)
                    continue
                prompt = self.task.reasoner_prompt(clip.clip_id)
                for number, heat in zip(samples, heats, strict=True):
                    seed = int(hashlib.sha256(self.key(clip, number, step).encode()).hexdigest()[:7], 16)
                    more = {**PLAIN, "top_p": top_p, "logprobs": True, "return_token_ids": True, "seed": seed}
                    about = {"temperature": float(heat), "max_tokens": max_tokens, "sample": number, "seed": self.seed}
                    yield self._asking.request(prompt, frames, more=more, tag=(clip, number), **about)

        def take(request: Request, outcome: Completion | TeachError) -> None:
            clip, number = request.tag
            if isinstance(outcome, Completion):
                answers[clip.clip_id, number] = outcome
                self._asking.answered = True
            elif isinstance(outcome, Refused):
                self.unreadable[clip.clip_id] = Unreadable(clip, outcome)
            else:
                failures.append(outcome)

        live = {"stop": stop} if stop else {}
        if on_text:
            live["on_text"] = lambda request, text, tokens: on_text(request.tag[0], text, tokens)
        self._asking.endpoint.complete_many(requests(), take, **live)
        refusals = [lost.error for lost in self.unreadable.values() if isinstance(lost.error, Refused)]
        if failures or (refusals and not self._asking.answered):
            raise [*failures, *refusals][0]
        stopped = Completion("", "length", None, None, 0.0)  # before it was asked
        groups = []
        for clip, encoded in pairs:
            if clip.clip_id not in self.unreadable:
                own = [answers.get((clip.clip_id, number), stopped) for number in samples]
                traces = [self._sample(answer, heat) for answer, heat in zip(own, heats, strict=True)]
                if not self._asking.met and not own[0].cached and own[0] is not stopped:
                    self._meet(clip, encoded, own[0], traces[0])
                groups.append((clip, encoded, traces))
        return groups

    def row(
        self, clip: Clip, encoded: EncodedClip, sample: Sample, number: int, temperature: float, step: int | None = None
    ) -> TraceRow:
        row = super().row(clip, encoded, sample, number, temperature, step)
        row.tokens, row.model = sample.tokens, self._asking.server.model
        if not sample.logprobs_T:
            row.token_logprobs = row.confidence = None
        if not sample.token_ids:
            row.token_ids = None
        if "temperature" in sample.left_out:
            row.temperature = None
        return row

    def _sample(self, answer: Completion, heat: float) -> ServedSample:
        text, ids, logprobs = answer.text, answer.token_ids, answer.logprobs
        missing = []
        if heat not in (0, 1) and logprobs:
            logprobs = None  # servers give those at temperature 1
            missing.append(f"log-probabilities at temperature {heat:g}")
        elif not logprobs:
            missing.append("log-probabilities")
        if ids:
            decoded = self.vlm.tokenizer.decode(ids, skip_special_tokens=True)
            if decoded.split() == text.split() or "".join(decoded.split()) == "".join(text.split()):
                text = decoded  # as it was written: what takes thinking out of a text strips it too
            else:
                ids = None
                missing.append("token ids of the tokenizer here")
        else:
            missing.append("token ids")
        if ids and logprobs and len(ids) != len(logprobs):
            ids = logprobs = None
            missing.append("a log-probability for each token id")
        about = {"tokens": answer.completion_tokens, "missing": tuple(missing), "left_out": answer.left_out}
        return ServedSample(text, list(ids or []), list(logprobs or []), answer.truncated, answer.milliseconds, **about)

    def _meet(self, clip: Clip, encoded: EncodedClip, answer: Completion, sample: ServedSample) -> None:
        """Compares an answer with the model here, and says how, in the run's record and log."""
        self._asking.met = True
        self._note(self._contact(clip, encoded, answer, sample))

    def _contact(self, clip: Clip, encoded: EncodedClip, answer: Completion, sample: ServedSample) -> dict[str, Any]:
        server = self._asking.server
        prompt = self.vlm.prompt_ids(encoded, self.task.reasoner_prompt(clip.clip_id))
        contact: dict[str, Any] = {"model": server.model, "base_url": self._asking.endpoint.base_url}
        contact |= {"clip_id": clip.clip_id, "prompt_tokens": answer.prompt_tokens, "prompt_tokens_here": len(prompt)}
        if sample.logprobs_T and sample.token_ids and self._compares:
            apart_T = _apart(self.vlm, encoded, prompt, sample)
            contact |= {"tokens": len(apart_T), "mean_difference": float(apart_T.mean())}
            contact |= {"largest_difference": float(apart_T.max())}
            if contact["mean_difference"] > _APART and self.vlm.family.told_seconds:
                contact["mean_difference_if"] = self._explained(encoded, prompt, sample)
        contact |= {"missing": list(sample.missing), "left_out": list(sample.left_out)}
        contact["said"] = _said(contact, self._asking.endpoint, self._compares)
        return contact

    def _note(self, contact: dict[str, Any]) -> None:
        if self._run is None:
            logging.getLogger(__name__).warning(contact["said"])
        elif ranks.leads():
            self._run.note(server=[*(self._run.about.get("server") or []), contact])
            tell(self._run, contact["said"], self._progress)

    def _explained(self, encoded: EncodedClip, prompt: list[int], sample: ServedSample) -> dict[str, float]:
        """Mean differences if the server gave the tokens of Qwen2.5-VL such positions as vLLM is known to."""
        counting = copy.copy(self.vlm)
        counting.counts_from_time = True
        untold = replace(encoded, seconds_per_grid=self.vlm.processor.video_processor.temporal_patch_size / 24)
        cases = {COUNTING: (counting, encoded), UNTOLD: (self.vlm, untold)}
        return {name: float(_apart(vlm, clip, prompt, sample).mean()) for name, (vlm, clip) in cases.items()}


def _apart(vlm: VLM, encoded: EncodedClip, prompt: list[int], sample: ServedSample) -> np.ndarray:
    """(T,) distances of the log-probabilities of a trace from those of `vlm`."""
    with vlm.evaluating():
        [own_T] = token_logprobs(vlm, [encoded], [prompt], [sample.token_ids])
    return np.abs(own_T.float().cpu().numpy() - np.asarray(sample.logprobs_T))


def _said(contact: dict[str, Any], endpoint: Endpoint, compares: bool) -> str:
    here, there = contact["prompt_tokens_here"], contact["prompt_tokens"]
    if there is None:
        prompt = f"it does not say how long the prompt was, which has {here} tokens here"
    elif there == here:
        prompt = f"its prompt has {here} tokens, as here"
    else:
        prompt = (
            f"its prompt has {there} tokens, and {here} here: it is shown something else (frames, their size, or the "
            "chat template)"
        )
    if "mean_difference" in contact:
        mean, largest = contact["mean_difference"], contact["largest_difference"]
        logprobs = f"the log-probabilities of {contact['tokens']} tokens are {mean:.2g} from those computed here"
        logprobs += f" on average, {largest:.2g} at most"
        cases = contact.get("mean_difference_if", {})
        if cases and cases[case := min(cases, key=cases.get)] < mean / 10:
            logprobs += f" ({cases[case]:.2g} if {case}: see docs/servers.md, Positions of Qwen2.5-VL)"
        elif mean > _APART:
            logprobs += " (other weights, frames or number types)"
    elif not compares:
        logprobs = "log-probabilities were not compared, since its weights are not loaded here"
    else:
        logprobs = "log-probabilities could not be compared"
    lacking = f"; missing in its answers: {', '.join(contact['missing'])}" if contact["missing"] else ""
    unknown = f". {endpoint.unknown}" if endpoint.unknown else ""
    return f"{contact['model']} at {endpoint.host}: {prompt}; {logprobs}{lacking}{unknown}."


class ServedScores:
    """The label likelihoods of a calibrator at a server; it stands where a `VLM` does, without hidden states.

    Each label is a prompt of its own, whose last tokens are scored (`prompt_logprobs`, as vLLM gives them).
    """

    def __init__(self, server: ServerConfig, vlm: VLM, cache: Path | None = None, scope: str = ""):
        self.vlm, self._asking = vlm.forgetful(), _Asking(server, server.calibrator, cache, scope)

    def label_logprobs(
        self, task: Task, pairs: Sequence[tuple[Clip, EncodedClip]], prompts: Sequence[str]
    ) -> torch.Tensor:
        """(C, K) as `vlm.label_logprobs`. DataError for a clip whose features were blanked: a server sees frames."""
        targets = [self.vlm.target_ids(label) for label in task.labels]
        sums, failures = torch.full((len(pairs), len(targets)), torch.nan, dtype=torch.float64), []
        if blanked := [encoded.clip_id for _, encoded in pairs if encoded.clip_id.endswith("/blanked")]:
            raise DataError(
                f"the video of {blanked[0].removesuffix('/blanked')} was to be blanked",
                "that is done to the features of a tower, and the calibrator at the server is shown frames",
                "Leave server.calibrator out, and it is asked on this machine",
            )

        def requests() -> Iterator[Request]:
            for place, ((clip, encoded), prompt) in enumerate(zip(pairs, prompts, strict=True)):
                video = clip if clip.clip_id == encoded.clip_id else task.unlabelled([encoded.clip_id])[0]
                frames = self._asking.frames(self.vlm, video, encoded)
                for k, label in enumerate(task.labels):
                    about = {"more": SCORED, "reply": harmless(label), "max_tokens": 1, "tag": (place, k)}
                    yield self._asking.request(prompt, frames, **about)

        def take(request: Request, outcome: Completion | TeachError) -> None:
            if isinstance(outcome, Completion):
                place, k = request.tag
                sums[place, k] = self._sum(outcome, targets[k])
            else:
                failures.append(outcome)

        self._asking.endpoint.complete_many(requests(), take)
        if failures:
            raise failures[0]
        return sums

    def _sum(self, answer: Completion, target: Sequence[int]) -> float:
        """Σ log p of the label's tokens and the end token, which stand at the end of the prompt."""
        entries = answer.prompt_logprobs or []
        for end in range(len(entries), max(len(entries) - _TAIL, len(target) - 1), -1):
            tail = [
                entry.get(str(token)) for entry, token in zip(entries[end - len(target) : end], target, strict=True)
            ]
            if None not in tail:
                return float(sum(tail))
        endpoint = self._asking.endpoint
        why = "it gives no log-probabilities of a prompt" if not entries else "its prompt does not end with the label"
        raise TeachError(
            f"{endpoint.model!r} at {endpoint.host} was asked for the likelihood of a label",
            why,
            "Serve the calibrator with vLLM and its own chat template, or leave server.calibrator out, and it is asked "
            "on this machine",
        )
