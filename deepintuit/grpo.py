"""GRPO on video prompts: sample a group of traces per clip, score each by rule, push the good ones up (DeepIntuit, stage 2).

DAPO's form by default: clipped ratio with a higher upper bound, a mean over all tokens, no KL. TRL's GRPOTrainer does the update; what it
lacks is video (its own generation would see the clip and its loss would not), so sampling, scoring and log-probabilities are given to it here,
with the clip in both. `objective = "softmax_weighted"` is the paper's text [R]: weights softmax(r/τ) over a group, no negative ones.

The grammar decides what is rewarded. observation-think-answer: seeing and reasoning apart, each normalised in its own group, each advantage
given to the tokens of its segment (VideoP2R's PA-GRPO; `grpo.process` has the ablations). answer-think-answer: a quick and a final answer
(VideoAuto-R1).

Left out on purpose: a value model, vLLM sampling, more than one update a round.
Run it:  deepintuit grpo --config configs/tiny.toml --start RUN
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback
from trl import GRPOConfig as TRLConfig
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler, use_adapter

from deepintuit.advantage import (
    group_advantages,
    kept_by_dynamic_sampling,
    softmax_weights,
    token_advantages,
    zero_variance_share,
)
from deepintuit.config import Config, GrpoConfig
from deepintuit.errors import DataError
from deepintuit.judges import Judge, Question, Verdict, appoint
from deepintuit.reasoner import Clip, LocalReasoner, Task, card, identity
from deepintuit.rewards import ProcessScore, Score, dual_score, process_score, score
from deepintuit.store import Run, Workbench, trace_id
from deepintuit.trace import Malformed, Trace, argued_label, outer_spans
from deepintuit.vlm import VLM, EncodedClip, Sample, character_offsets
from deepintuit.vlm.training import Resumable, StepLog, Watch, common_arguments, tensorboard

_LOGGED = frozenset({"loss", "grad_norm", "learning_rate", "entropy", "kl"})
"""What is kept of TRL's own numbers; the others are about rewards that it does not compute here."""

_TOLD = ("sufficient", "perception", "reasoning", "quick", "put_off", "mismatch")
"""Numbers of single traces whose mean over a round is logged, where the grammar has them."""

_MADE_BY = ("model", "video", "clips", "prompt", "grpo")
"""Sections that decide what this stage makes: a change in another one does not train again."""


def _apart(config: Config) -> bool:
    """Whether seeing and reasoning are rewarded apart."""
    return config.prompt.grammar == "observation-think-answer" and config.grpo.process != "off"


def run(workbench: Workbench, config: Config, *, start: str, name: str | None = None, progress: bool = True) -> Run:
    """Refine the weights of the run `start` on the GRPO split. Rollouts, rewards and advantages are stored as they come."""
    described = identity(workbench.path, config, (*_MADE_BY, *(("judge",) if _apart(config) else ())))
    run = workbench.start_run(
        "grpo", described, parent=start, name=name, seed=config.seed, dataset=config.clips.dataset
    )
    if not run.finished:
        with run:
            _train(workbench, config, run, start, progress)
    shutil.rmtree(run.path / "training", ignore_errors=True)  # once all is safe elsewhere
    return run


def _train(workbench: Workbench, config: Config, run: Run, start: str, progress: bool) -> None:
    task = Task(workbench.path, config)
    torch.manual_seed(config.seed)  # a new adapter is drawn here
    vlm = VLM.load(
        config.model, config.video, checkpoint=workbench.run(start).checkpoint, cache=workbench.cache, trainable=True
    )
    run.note(device=str(vlm.device), settings=config.to_dict())
    judge = appoint(config, task.labels, task.manifest, workbench.cache) if _apart(config) else None
    reasoner = LocalReasoner(vlm, task, config.seed)
    clips = [clip for clip, _ in reasoner.encode(task.clips("grpo"))]
    if not clips:
        raise DataError(
            "no clip of the split 'grpo' can be read",
            "the stage would have nothing to work on",
            "See whether the videos were moved, and import them again",
        )
    if config.grpo.check_clips and "check" not in run.about:
        before = check(reasoner, clips[: config.grpo.check_clips], config.grpo)
        run.note(check=asdict(before))
        run.log(before.sentence())
        if progress:
            Console().print(before.sentence())
    trainer = _Trainer(reasoner, clips, config, run, progress, judge)
    trainer.remove_callback(PrinterCallback)
    trainer.train_or_resume(run.path / "training")
    vlm.model.eval()
    if "ref" in getattr(vlm.model, "peft_config", {}):
        vlm.model.delete_adapter("ref")  # TRL's frozen copy for the KL term
    vlm.save(run.checkpoint, card(run, config))
    run.finish(
        {
            "clips": len(clips),
            "steps": trainer.state.global_step,
            "tower_passes": vlm.encoder.passes,
            "unreadable": {clip_id: str(u.error.reason) for clip_id, u in reasoner.unreadable.items()},
            "check": run.about.get("check"),
        }
    )


@dataclass(frozen=True)
class Check:
    """What sampling at the training temperature gives before GRPO: shares over traces, and the share of groups that can teach."""

    traces: int
    well_formed: float
    correct: float
    groups_that_teach: float
    reasons: dict[str, int]

    @property
    def hopeless(self) -> bool:
        return self.groups_that_teach == 0 or self.well_formed < 0.05

    def sentence(self) -> str:
        text = (
            f"Before GRPO, {self.traces} traces at the sampling temperature: {self.well_formed:.0%} well-formed, {self.correct:.0%} correct, "
            f"{self.groups_that_teach:.0%} of groups have both right and wrong traces."
        )
        if self.hopeless:
            text += " Warning: there is nothing to learn from. Train the cold start longer or at a higher rate, or lower grpo.temperature."
        if self.reasons:
            text += (
                " Malformed: " + ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items())) + "."
            )
        return text


def check(reasoner: LocalReasoner, clips: Sequence[Clip], settings: GrpoConfig) -> Check:
    """Sample one group a clip and count. Costs one sampling round."""
    scores: list[list[Score]] = []
    reasons: Counter[str] = Counter()
    for start in range(0, len(clips), settings.clips_per_step):
        groups = reasoner.groups(
            clips[start : start + settings.clips_per_step],
            range(settings.group),
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            step=-1,
        )
        for clip, _, group in groups:
            traces = [reasoner.task.parse(s.text, s.truncated) for s in group]
            reasons.update(str(t.reason) for t in traces if not t.ok)
            scores.append([score(t, clip.label) for t in traces])
    flat = [s for group in scores for s in group]
    mixed = kept_by_dynamic_sampling(np.array([[s.accuracy for s in group] for group in scores]))
    return Check(
        len(flat),
        float(np.mean([s.format for s in flat])),
        float(np.mean([s.accuracy for s in flat])),
        float(np.mean(mixed)),
        dict(reasons),
    )


@dataclass
class _Group:
    """The traces of one clip in one round; `first` is the sample number of the first, which names its random stream.

    `seeing_T`: of each trace, 1 for a token of its observation, else 0. `verdicts`: the judge's, where one was asked.
    """

    clip: Clip
    encoded: EncodedClip
    samples: list[Sample]
    traces: list[Trace | Malformed]
    scores: list[Score]
    seeing_T: list[np.ndarray]
    verdicts: list[Verdict | None]
    prompt_ids: list[int]
    first: int

    @property
    def mixed(self) -> bool:
        return 0 < sum(s.accuracy for s in self.scores) < len(self.scores)


class _Trainer(Resumable, GRPOTrainer):
    """TRL's trainer with the clip in sampling and in loss. Four methods are ours; loss, clipping, accumulation and schedule are TRL's."""

    def __init__(
        self,
        reasoner: LocalReasoner,
        clips: list[Clip],
        config: Config,
        run: Run,
        progress: bool,
        judge: Judge | None = None,
    ):
        settings = config.grpo
        self._judge = judge
        self._separate = _apart(config) and settings.process == "separate"
        self.reasoner, self.vlm, self.clips, self.config, self.run_ = reasoner, reasoner.vlm, clips, settings, run
        self._encoded: list[EncodedClip] = []
        self._rows: torch.Tensor | None = None
        self._extra: dict[str, float] = {}
        self._log = StepLog(partial(run.append, "steps"))
        batch = min(settings.clips_per_step, len(clips))
        traces = batch * settings.group
        micro = max(
            size for size in range(1, min(settings.micro_batch, traces) + 1) if traces % size == 0
        )  # a part of the batch, no more
        steps = settings.max_steps or max(1, round(settings.epochs * len(clips) / batch))
        folder = run.path / "training"
        folder.mkdir(exist_ok=True)
        arguments = TRLConfig(
            **common_arguments(self.vlm, folder, seed=config.seed, save_steps=settings.save_steps),
            max_steps=steps,
            num_generations=settings.group,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=traces // micro,
            steps_per_generation=traces // micro,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            lr_scheduler_type="constant_with_warmup",
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            max_completion_length=settings.max_tokens,
            temperature=settings.temperature,
            loss_type="grpo" if settings.objective in {"grpo", "softmax_weighted"} else "dapo",
            epsilon=settings.epsilon_low,
            epsilon_high=settings.epsilon_high,
            beta=settings.beta,
            mask_truncated_completions=settings.mask_truncated,
            disable_dropout=True,  # or the loss would see other probabilities than sampling did
        )
        super().__init__(
            model=self.vlm.model,
            reward_funcs=lambda completions, **_: (
                [0.0] * len(completions)
            ),  # rewards are computed beside their evidence, in _score
            args=arguments,
            train_dataset=Dataset.from_dict({"clip": list(range(len(clips))), "prompt": [""] * len(clips)}),
            processing_class=self.vlm.processor,
            callbacks=[Watch("GRPO", self._log_training, self._log.flush, progress), tensorboard(run.path / "tensorboard")],
        )

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        """TRL's sampler, with an order that belongs to the epoch: TRL's own begins again with the first order after a resume."""
        sampler = super()._get_train_sampler(dataset)
        each = sampler.num_samples // sampler.batch_size
        return _Order(sampler, lambda: [self.args.seed, self.state.global_step // each])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A round of sampling: groups, scores, advantages, and the tensors that TRL's loss takes, with each row's clip index."""
        chosen = list(dict.fromkeys(row["clip"] for row in inputs))
        step = self.state.global_step
        groups = self._sample([self.clips[i] for i in chosen], step)
        if self.config.dynamic_sampling:
            groups = self._refill(groups, len(chosen), step)
        advantages = [advantage_T for group in groups for advantage_T in self._advantages(group)]
        self._store(groups, advantages, step)
        self._encoded = [group.encoded for group in groups]
        size = self.config.group
        samples = [sample for group in groups for sample in group.samples]
        pad, device = self.vlm.tokenizer.pad_token_id, self.accelerator.device
        prompts = _padded([group.prompt_ids for group in groups for _ in range(size)], pad, left=True)
        written = _padded([sample.token_ids for sample in samples], pad, left=False)
        mask = written[1]
        if self.config.mask_truncated:
            mask = mask * torch.tensor([[0 if sample.truncated else 1] for sample in samples])
        batch = {
            "prompt_ids": prompts[0].to(device),
            "prompt_mask": prompts[1].to(device),
            "completion_ids": written[0].to(device),
            "completion_mask": mask.to(device),
            "advantages": _padded(advantages, 0.0, left=False)[0].to(device),
            "num_items_in_batch": mask.sum().to(device),
            "clip_index": torch.arange(len(groups)).repeat_interleave(size).to(device),
        }
        if self.beta:
            batch["ref_per_token_logps"] = self._reference_logps(batch)
        return batch

    @torch.no_grad()
    def _reference_logps(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities under the weights that GRPO began with, for the KL term: a frozen copy of the model, of the adapter, or the base."""
        self._rows = batch["clip_index"]
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        wanted, size = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
        if self.ref_model is not None:
            return self._get_per_token_logps_and_entropies(self.ref_model, ids, mask, wanted, batch_size=size)[0]
        with use_adapter(self.model, "ref" if "ref" in self.model.peft_config else None):
            return self._get_per_token_logps_and_entropies(self.model, ids, mask, wanted, batch_size=size)[0]

    def _compute_loss(self, model, inputs):
        self._rows = inputs["clip_index"]
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **_,
    ):
        """TRL's fused head over inputs that hold each row's clip. (An auxiliary loss is for mixtures of experts; Qwen-VL has none.)"""
        logps, entropies = [], []
        size = batch_size or len(input_ids)
        for start in range(0, len(input_ids), size):
            part = slice(start, start + size)
            clips = [self._encoded[i] for i in self._rows[part].tolist()]
            inputs = self.vlm.forward_inputs(clips, input_ids[part], attention_mask[part])
            labels = input_ids[part].masked_fill(attention_mask[part] == 0, -100)
            labels[:, :-logits_to_keep] = -100
            with self.accelerator.autocast():
                out = model(**inputs, labels=labels, fused_lm_head=True)
            logps.append(out.log_probs[:, -logits_to_keep:])
            if compute_entropy:
                entropies.append(out.entropy[:, -logits_to_keep:])
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _sample(self, clips: list[Clip], step: int, refill: int = 0) -> list[_Group]:
        settings = self.config
        groups = self.reasoner.groups(
            clips,
            range(refill * settings.group, (refill + 1) * settings.group),
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            step=step,
        )
        task, found = self.reasoner.task, []
        for clip, encoded, samples in groups:
            traces = [task.parse(sample.text, sample.truncated) for sample in samples]
            seeing = [self._seeing(sample, trace) for sample, trace in zip(samples, traces)]
            prompt = self.vlm.prompt_ids(encoded, task.reasoner_prompt(clip.clip_id))
            unjudged: list[Verdict | None] = [None] * len(samples)
            found.append(_Group(clip, encoded, samples, traces, [], seeing, unjudged, prompt, refill * settings.group))
        self._ask_judge(found)
        for group in found:
            group.scores = [self._score(group, number) for number in range(len(group.samples))]
        return found

    def _ask_judge(self, groups: Sequence[_Group]) -> None:
        """Verdicts on every observation of a round, in one call: a server answers many at a time."""
        if self._judge is None:
            return
        places = [(group, i) for group in groups for i, trace in enumerate(group.traces) if trace.ok]
        questions = [Question(g.clip.clip_id, g.clip.label, g.traces[i].segment("observation")) for g, i in places]
        for (group, i), verdict in zip(places, self._judge(questions), strict=True):
            group.verdicts[i] = verdict

    def _seeing(self, sample: Sample, trace: Trace | Malformed) -> np.ndarray:
        """(T,) which tokens are the observation's, its marks included; none of a text that could not be parsed."""
        if self._judge is None or not trace.ok:
            return np.zeros(len(sample.token_ids))
        spans = outer_spans(trace)
        offsets_T_2 = character_offsets(self.vlm.tokenizer, sample.token_ids)
        return token_advantages(offsets_T_2, spans, {name: float(name == "observation") for name in spans})

    def _score(self, group: _Group, number: int) -> Score:
        settings, trace, label = self.config, group.traces[number], group.clip.label
        length = len(group.samples[number].token_ids)
        if self._judge:
            seen, verdict = int(group.seeing_T[number].sum()), group.verdicts[number]
            return process_score(
                trace,
                label,
                sufficient=bool(verdict and verdict.sufficient),
                perception_tokens=seen,
                reasoning_tokens=length - seen,
                perception_target=(settings.perception_min, settings.perception_max),
                reasoning_target=(settings.reasoning_min, settings.reasoning_max),
                bonus=settings.length_bonus,
                perception_weight=settings.perception_weight,
            )
        if trace.grammar.quick:
            return dual_score(
                trace,
                label,
                quick_weight=settings.quick_weight,
                final_weight=settings.final_weight,
                format_weight=settings.format_weight,
                fallback_bonus=settings.fallback_bonus,
            )
        return score(
            trace,
            label,
            accuracy_weight=settings.accuracy_weight,
            format_weight=settings.format_weight,
            length=length,
            max_length=settings.max_tokens,
            overlong_cache=settings.overlong_cache,
        )

    def _refill(self, groups: list[_Group], wanted: int, step: int) -> list[_Group]:
        """Dynamic sampling (DAPO): keep groups with 0 < #correct < G; draw further clips at most `max_refills` times.

        What is still missing is filled with groups that agree: their advantages are zero on accuracy, and TRL's batch keeps its shape.
        """
        kept, spare, sampled = [g for g in groups if g.mixed], [g for g in groups if not g.mixed], len(groups)
        rng = np.random.default_rng([self.args.seed, step])
        for refill in range(1, self.config.max_refills + 1):
            if len(kept) >= wanted:
                break
            more = rng.choice(len(self.clips), size=min(len(self.clips), wanted - len(kept)), replace=False)
            new = self._sample([self.clips[i] for i in more], step, refill)
            sampled += len(new)
            kept += [g for g in new if g.mixed]
            spare += [g for g in new if not g.mixed]
        self._extra = {"dynamic_kept_share": len(kept) / sampled, "dynamic_sampled_groups": sampled}
        return (kept + spare)[:wanted]

    def _advantages(self, group: _Group) -> list[np.ndarray]:
        """(T,) of each trace: one number for all its tokens, or that of the process a token belongs to."""
        if not self._separate:
            whole_G = self._weighed([s.value for s in group.scores])
            return [np.full(len(s.token_ids), a) for s, a in zip(group.samples, whole_G)]
        seeing_G = self._weighed([s.perception for s in group.scores])
        reasoning_G = self._weighed([s.reasoning for s in group.scores])
        return [np.where(m > 0, p, r) for m, p, r in zip(group.seeing_T, seeing_G, reasoning_G)]

    def _weighed(self, rewards_G: Sequence[float]) -> np.ndarray:
        if self.config.objective == "softmax_weighted":
            return softmax_weights(rewards_G, self.config.tau) * len(rewards_G)  # the loss divides by the group's size
        return group_advantages(rewards_G)

    def _store(self, groups: list[_Group], advantages: list[np.ndarray], step: int) -> None:
        """Rollouts with every reward and the advantage, and the round's numbers.

        A round that is sampled again after a kill takes the place of the first: what is on file is what the weights were trained on.
        """
        rows, scores, all_numbers = [], [], []
        remaining = iter(advantages)
        for group in groups:
            for number, (sample, trace, scored) in enumerate(zip(group.samples, group.traces, group.scores)):
                sampled = group.first + number
                row = self.reasoner.row(group.clip, group.encoded, sample, sampled, self.config.temperature, step)
                name = trace_id(self.run_.id, group.clip.clip_id, sampled, step)
                rows.append({"trace_id": name, **row})
                advantage_T, seeing_T = next(remaining), group.seeing_T[number] > 0
                numbers = scored.numbers() | {"advantage": float(advantage_T[-1])}  # the end token is never seeing's
                if self._separate and seeing_T.any():
                    numbers["advantage_perception"] = float(advantage_T[seeing_T][0])
                evidence = dict.fromkeys(numbers, scored.reason or scored.answer)
                if trace.ok and trace.grammar.text_segments:
                    argued = argued_label(trace, self.reasoner.task.labels)
                    numbers["mismatch"], evidence["mismatch"] = float(argued != trace.label), argued or "none"
                if verdict := group.verdicts[number]:
                    evidence["sufficient"] = verdict.said
                scores += [{"trace_id": name, "name": n, "value": v, "evidence": evidence[n]} for n, v in numbers.items()]
                all_numbers.append(numbers)
        self.run_.append("traces", rows)
        self.run_.append("scores", scores)
        flat = [s for group in groups for s in group.scores]
        lengths = [len(s.token_ids) for group in groups for s in group.samples]
        self._log(
            step,
            {
                "reward": float(np.mean([s.value for s in flat])),
                "accuracy": float(np.mean([s.accuracy for s in flat])),
                "well_formed": float(np.mean([s.format for s in flat])),
                "zero_variance_share": float(
                    zero_variance_share(np.array([[s.value for s in g.scores] for g in groups]))
                ),
                "tokens_mean": float(np.mean(lengths)),
                "truncated_share": float(np.mean([s.truncated for g in groups for s in g.samples])),
                **{f"{name}_mean": float(np.mean(told)) for name in _TOLD
                   if (told := [numbers[name] for numbers in all_numbers if name in numbers])},
                **self._zero_variance(groups),
                **self._extra,
            },
        )

    def _zero_variance(self, groups: Sequence[_Group]) -> dict[str, float]:
        """Of each process, the share of groups that agree with themselves (VideoP2R: fewer than of their sum)."""
        if not self._separate:
            return {}
        return {
            f"zero_variance_{name}": zero_variance_share(
                [[getattr(s, name) for s in group.scores if isinstance(s, ProcessScore)] for group in groups]
            )
            for name in ("perception", "reasoning")
        }

    def _log_training(self, step: int, numbers: dict[str, float]) -> None:
        """TRL's numbers of an update, which it counts from 1, beside those of the round that was sampled for it."""
        self._log(step - 1, {name: value for name, value in numbers.items() if name in _LOGGED})


class _Order(RepeatSampler):
    """The rows of a TRL sampler, shuffled by `seed()` as it stands when an epoch begins."""

    def __init__(self, like: RepeatSampler, seed: Callable[[], Sequence[int]]):
        super().__init__(
            like.data_source, like.mini_repeat_count, like.batch_size, like.repeat_count, like.shuffle, like.seed
        )
        self._seed_now = seed

    def __iter__(self):
        self.generator.manual_seed(int(np.random.SeedSequence(self._seed_now()).generate_state(1)[0]))
        return super().__iter__()


def _padded(rows: Sequence[Sequence[float]], pad: float, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids (or of numbers, when `pad` is one with a fraction) as one tensor, and where they are."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[row, place] = torch.as_tensor(tokens, dtype=ids.dtype)
        mask[row, place] = 1
    return ids, mask
