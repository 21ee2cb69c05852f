"""GRPO's traces from vLLM, which is given the weights as they are before each round, by its own routes.

An adapter goes by `/v1/load_lora_adapter`; whole weights by `reload_weights`, behind which keys and values of earlier
prompts are dropped. Both are read from the run's folder, which the server must see at the same path. Behind each call
the server is asked which weights it has: one that was started anew in the meantime has others.

Two engines never give quite the same numbers. So each token of the loss weighs min(π / π_server, 2), and how far they
are apart is logged of each round, and refused where it is too far.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deepintuit import disk, ranks
from deepintuit.config import Config
from deepintuit.errors import ModelError, TeachError
from deepintuit.reasoner.local import LocalReasoner
from deepintuit.reasoner.served import ServedReasoner, ServedSample, refuse_lost
from deepintuit.reasoner.task import Clip, tell
from deepintuit.runs import Run
from deepintuit.texts import parse_json
from deepintuit.vlm import EncodedClip, Sample
from deepintuit.vlm.training import MARKER

_ADAPTER = (
    "Start vLLM over the model of model.path with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and "
    "--max-lora-rank {rank}, where it sees the workbench at the same path; server.model is a name that it does not have"
)
_WHOLE = (
    "Start vLLM with VLLM_SERVER_DEV_MODE=1 over a checkpoint of this shape, where it sees the workbench at the same "
    "path"
)
_AGAIN = "Rerun the command: the run goes on from its last checkpoint, and the server is given its weights"
_LIKE_HERE = "Serve it as docs/servers.md says, under A sampler for GRPO"
_BEFORE = -1  # the round of the traces that come before training
_MET = 4
"""Clips of whose traces one is compared before anything else [R]: in some, other positions make no difference."""
MOST = 2.0
"""Of a token's weight in the loss."""


class ServedSampler(ServedReasoner):
    """A reasoner whose traces a server writes with the weights that `vlm` had at the last `update`.

    Answers are kept by round, as long as the training lasts: a run that goes on asks for what is missing.
    """

    def __init__(self, local: LocalReasoner, config: Config, run: Run, progress: bool):
        super().__init__(local.vlm, local.task, config, run, progress=progress)
        self.unreadable, self._settings = local.unreadable, config.grpo
        self._folder, self._weights = run.path / "training", ""
        self._differences: list[np.ndarray] = []  # of the round's tokens, part by part
        self._told, self._speaks = False, True

    def begin(self, clips: Sequence[Clip]) -> None:
        """Gives each server the weights and compares a trace of some clips from it, which is not kept, with the model
        here. ModelError where it is another model, or does not say what the loss needs."""
        self.update(_BEFORE)
        ranks.first(lambda: self._meet_each(clips[:_MET]))
        self._asking.met = True

    def _meet_each(self, clips: Sequence[Clip]) -> None:
        asking, server = self._asking, self._asking.server
        for address in asking.endpoint.addresses:
            self._asking = type(asking)(server.replace(base_url=address), server.model, None, "")
            for self._speaks, clip in zip([True, *[False] * len(clips)], clips):
                self._asking.met = False
                self.groups([clip], [0], temperature=1.0, max_tokens=self._settings.max_tokens, step=_BEFORE)
        self._asking = asking

    def update(self, step: int) -> None:
        """Gives each server the weights as they are, for the round of this step. TeachError where one does not take
        them."""
        self._weights = ranks.first(lambda: self._give(step))
        self._asking.endpoint.cache = disk.JsonCache(self._folder / f"answers-{step}", durable=True)

    def weights(self, logps: torch.Tensor, sampled_logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(rows, T) min(π / π_server, 2) of each token of a part of the round, without a gradient; `mask`: 1 where
        there is one. `compare` will know them."""
        differences = (logps.detach() - sampled_logps).double()
        self._differences.append(differences[mask.bool()].cpu().numpy())
        return differences.exp().clamp(max=MOST).to(logps.dtype)

    def compare(self, step: int) -> dict[str, float]:
        """Over the round's tokens in all processes: mean and largest difference of log-probabilities, the share of
        weights that were cut, and the effective share of the tokens (Σw)² / n Σw². ModelError where the mean is above
        `grpo.max_difference`, in which case the round is asked for again."""
        parts = [part for own in ranks.gather(self._differences) for part in own]
        self._differences = []
        differences = np.concatenate([np.empty(0), *parts])
        if not differences.size:
            return {}
        ratios = np.exp(np.minimum(differences, 100.0))
        mean, largest = float(np.abs(differences).mean()), float(np.abs(differences).max())
        cut, effective = float((ratios > MOST).mean()), float(ratios.mean() ** 2 / (ratios**2).mean())
        sentence = (
            f"log-probabilities of the server are {mean:.2g} from those in the loss on average, {largest:.2g} at most"
        )
        if mean > self._settings.max_difference:
            ranks.first(self._forget)
            raise ModelError(
                f"round {step} of GRPO was sampled from another model than the one that is trained",
                f"{sentence}, and grpo.max_difference is {self._settings.max_difference:g}",
                f"{_LIKE_HERE}, and rerun the command; for number types of few bits raise grpo.max_difference",
            )
        if not self._told:
            self._told = True
            more = f"{cut:.1%} of the tokens weigh {MOST:g} in place of more"
            tell(self._run, f"Round {step}: {sentence}; {more}.", self._progress)
        return {
            "sampler_difference_mean": mean,
            "sampler_difference_max": largest,
            "sampler_truncated_share": cut,
            "sampler_effective_share": effective,
        }

    def groups(
        self, clips: Sequence[Clip], samples: Sequence[int], **options: Any
    ) -> list[tuple[Clip, EncodedClip, list[Sample]]]:
        """As of any reasoner, each trace with ids and log-probabilities. Raises what kept a clip from its traces,
        TeachError for a server that has other weights by now, ModelError for a trace without what the loss needs."""
        groups = super().groups(clips, samples, **options)
        refuse_lost(self, clips)
        if groups:
            self._refuse_other_weights()
        for sample in (sample for _, _, traces in groups for sample in traces):
            self._refuse_unusable(sample)
        return groups

    def _give(self, step: int) -> str:
        folder, tell = self._folder / f"weights-{step}-{secrets.token_hex(4)}", self._asking.endpoint.tell
        self.vlm.save(folder, {"run": self._run.id})
        self._weights = path = str(folder.resolve())
        if self._adapter_rank:
            # A path of its own each time: by it vLLM tells apart keys and values that it keeps of prompts.
            about = {"lora_name": self._asking.server.model, "lora_path": path, "load_inplace": True}
            tell("/v1/load_lora_adapter", about, remedy=self._remedy)
        else:
            reload = {"method": "reload_weights", "kwargs": {"weights_path": path}}
            tell("/collective_rpc", reload, remedy=self._remedy)
            tell("/reset_prefix_cache?reset_running_requests=true", {}, remedy=self._remedy)
            tell("/update_weight_version", {"new_version": path}, remedy=self._remedy)
        self._refuse_other_weights()
        checkpoints = [int(path.parent.name.rpartition("-")[2]) for path in self._folder.glob(f"checkpoint-*/{MARKER}")]
        behind = {f"answers-{n}" for n in range(_BEFORE, min(checkpoints, default=_BEFORE))}
        for old in self._folder.iterdir():
            if old.name in behind or (old.name.startswith("weights-") and old != folder):
                shutil.rmtree(old, ignore_errors=True)
        return path

    @property
    def _adapter_rank(self) -> int:
        """0: there is no adapter."""
        return next((shape.r for shape in getattr(self.vlm.model, "peft_config", {}).values()), 0)

    @property
    def _remedy(self) -> str:
        return _ADAPTER.format(rank=self._adapter_rank) if self._adapter_rank else _WHOLE

    def _forget(self) -> None:
        if cache := self._asking.endpoint.cache:
            shutil.rmtree(cache.folder, ignore_errors=True)

    def _refuse_other_weights(self) -> None:
        endpoint, name = self._asking.endpoint, self._asking.server.model
        for reply in endpoint.tell("/v1/models" if self._adapter_rank else "/weight_info", remedy=self._remedy):
            try:
                about = parse_json(reply)
                cards = about["data"] if self._adapter_rank else [{"id": name, "root": about["weight_version"]}]
                weights = {card["id"]: card.get("root") for card in cards}
            except (ValueError, KeyError, TypeError, AttributeError):
                weights = {}
            if weights.get(name) != self._weights:
                self._forget()
                raise TeachError(
                    f"{name} at {endpoint.host} has other weights than it was given",
                    f"it names {weights.get(name) or 'none'}: it was started anew, or somebody else gives it some",
                    _AGAIN,
                )

    def _refuse_unusable(self, sample: ServedSample) -> None:
        lacking, unknown = sample.missing, {*sample.left_out} - {"max_tokens", "seed"}
        if lacking or unknown:
            raise ModelError(
                f"{self._asking.server.model} at {self._asking.endpoint.host} "
                + (f"gives no {', no '.join(lacking)}" if lacking else f"does not know {', '.join(sorted(unknown))}"),
                "the loss is that of the tokens which were drawn, at the probability with which they were",
                "Serve the model with vLLM, or set grpo.sampler=local",
            )

    def _meet(self, *about: Any) -> None:
        contact = self._contact(*about)
        apart, alike = contact.get("mean_difference"), contact["prompt_tokens"] == contact["prompt_tokens_here"]
        fits = alike and apart is not None and apart <= self._settings.max_difference
        if self._speaks or not fits:
            self._note(contact)
        if not fits and not contact["missing"]:
            raise ModelError(
                f"{contact['model']} at {self._asking.endpoint.host} is not the model that is trained here",
                contact["said"].removesuffix("."),
                f"{_LIKE_HERE}; for number types of few bits raise grpo.max_difference, now "
                f"{self._settings.max_difference:g}",
            )
