"""TRL's GRPO trainer with the clip in sampling and in loss; rounds of groups come from it, their scores from
`round`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOConfig as TRLConfig
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler, use_adapter

from deepintuit import ranks
from deepintuit.advantage import zero_variance_share
from deepintuit.config import Config
from deepintuit.grpo.round import Group, Sampled, Scorer, play_round
from deepintuit.reasoner import Clip
from deepintuit.rewards import Score
from deepintuit.runs import Run, trace_id
from deepintuit.schedule import of_grpo
from deepintuit.trace import mismatch
from deepintuit.vlm import EncodedClip
from deepintuit.vlm import group as processes
from deepintuit.vlm.attention import see_trees
from deepintuit.vlm.prefix import in_parts, packed_in_parts
from deepintuit.vlm.training import Resumable, StepLog, Watch, common_arguments, trackers

_LOGGED = frozenset({"loss", "grad_norm", "learning_rate", "entropy", "kl"})
"""What is kept of TRL's own numbers; the others are about rewards that it does not compute here."""

_TRACE_NUMBERS = ("sufficient", "perception", "reasoning", "quick", "put_off", "mismatch")
"""Numbers of single traces whose mean over a round is logged, where the grammar has them."""


class _GroupSummary(NamedTuple):
    """What the numbers of a round are made of, for one group: of each trace its score, tokens, and whether it was cut
    short, and all that was computed of it."""

    scores: list[Score]
    lengths: list[int]
    truncated: list[bool]
    numbers: list[dict[str, float]]


class Trainer(Resumable, GRPOTrainer):
    """TRL's trainer with the clip in sampling and in loss. Four methods are ours; loss, clipping, accumulation and
    schedule are TRL's."""

    def __init__(self, scorer: Scorer, clips: list[Clip], config: Config, run: Run, progress: bool):
        settings, reasoner = config.grpo, scorer.reasoner
        self.scorer = scorer
        self.reasoner, self.vlm, self.clips, self.config, self.run_ = reasoner, reasoner.vlm, clips, settings, run
        self._encoded: list[EncodedClip] = []  # of the groups of the round
        self._rows: torch.Tensor | None = None  # which rows of the round are in hand; TRL's methods do not say
        self._part: dict[str, torch.Tensor] = {}  # and what TRL's loss has of them
        self._log = StepLog(partial(run.append, "steps"))
        planned = of_grpo(settings, len(clips))
        reporting, callbacks = trackers(config.report_to, run.path)
        folder = run.path / "training"
        folder.mkdir(exist_ok=True)
        arguments = TRLConfig(
            **common_arguments(self.vlm, folder, seed=config.seed, save_steps=settings.save_steps) | reporting,
            max_steps=planned.updates,
            num_generations=settings.group,
            per_device_train_batch_size=planned.batch * settings.group,
            gradient_accumulation_steps=1,  # a round goes through the model in parts of its own: loss_in_parts
            steps_per_generation=1,
            learning_rate=settings.learning_rate,
            warmup_steps=planned.warmup,
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
            reward_funcs=_no_reward,
            args=arguments,
            train_dataset=Dataset.from_dict({"clip": list(range(len(clips))), "prompt": [""] * len(clips)}),
            processing_class=self.vlm.processor,
            callbacks=[Watch("GRPO", self._log_training, self._log.flush, progress), *callbacks],
        )
        self.use_vllm = settings.sampler == "server"  # TRL's loss then weighs tokens by "importance_sampling_ratio"
        if self.ref_model is not None and self.vlm.shares_prefix:  # TRL's own copy, for the KL term
            see_trees(self.ref_model)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        """TRL's sampler, with an order that belongs to the epoch: TRL's own begins again with the first order after
        a resume."""
        sampler = super()._get_train_sampler(dataset)
        each = sampler.num_samples // sampler.batch_size
        return _Order(sampler, lambda: [self.args.seed, self.state.global_step // each])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A round of sampling: groups, scores, advantages, and the tensors that TRL's loss takes, with each row's
        clip index."""
        step, size, pad = self.state.global_step, self.config.group, self.vlm.tokenizer.pad_token_id
        clips = [self.clips[i] for i in dict.fromkeys(row["clip"] for row in inputs)]
        if self.use_vllm:
            self.reasoner.update(step)
        sample, seed = partial(self._sample, step), [self.args.seed, step]
        groups, advantages, dynamic = play_round(clips, sample, self.scorer, self.clips, seed)
        self._log_round(self._store(groups, advantages, step), step, dynamic)
        self._encoded = [group.encoded for group in groups]
        samples = [sample for group in groups for sample in group.samples]  # B = N·G rows
        prompt_ids, prompt_mask = _padded([group.prompt_ids for group in groups for _ in range(size)], pad, "left")
        completion_ids, completion_mask = _padded([sample.token_ids for sample in samples], pad, "right")  # (B, T)
        if self.config.mask_truncated:
            completion_mask = completion_mask * torch.tensor([not sample.truncated for sample in samples])[:, None]
        tensors = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "advantages": _padded(advantages, 0.0, "right")[0],  # (B, T), one per token
            "row": torch.arange(len(samples)),
        }
        if self.use_vllm:
            tensors["sampled_logps"] = _padded([sample.logprobs_T for sample in samples], 0.0, "right")[0]  # (B, T)
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()}
        batch["num_items_in_batch"] = processes.total(batch["completion_mask"].sum())
        self._rows_of_all = sum(ranks.gather(len(samples)))
        if self.beta and samples:
            batch["ref_per_token_logps"] = self._reference_logps(batch)
        return batch

    @torch.no_grad()
    def _reference_logps(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities under the weights that GRPO began with, for the KL term: a frozen copy of the model, of
        the adapter, or the base."""
        self._rows = batch["row"]
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        length = batch["completion_ids"].shape[1]
        if self.ref_model is not None:
            return self._get_per_token_logps_and_entropies(self.ref_model, ids, mask, length)[0]
        with use_adapter(self.model, "ref" if "ref" in self.model.peft_config else None):
            return self._get_per_token_logps_and_entropies(self.model, ids, mask, length)[0]

    def _compute_loss(self, model, inputs):
        """TRL's, over the parts of a round, in the order in which it was sampled."""
        of_rows = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.dim()}
        of_rows = {name: value[inputs["row"].argsort()] for name, value in of_rows.items()}
        ids = torch.cat([of_rows["prompt_ids"], of_rows["completion_ids"]], 1)
        mask = torch.cat([of_rows["prompt_mask"], of_rows["completion_mask"]], 1)
        count, compute_loss = self._rows_of_all, super()._compute_loss

        def loss(part: list[int]) -> torch.Tensor:
            rows = {**inputs, **{name: value[part] for name, value in of_rows.items()}}
            self._rows, self._part = rows["row"], rows
            # "grpo" is a mean over the rows it is given; "dapo" divides by the tokens of the round, of all processes.
            return compute_loss(model, rows) * (len(part) / count if self.loss_type == "grpo" else 1.0)

        total = self.loss_in_parts([partial(loss, part) for part in self._parts(of_rows["row"], ids, mask)])
        if self.use_vllm:
            self._log(self.state.global_step, self.reasoner.compare(self.state.global_step))
        return total

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, compute_entropy=False, compute_aux_loss=False, **_
    ):
        """TRL's fused head over inputs that hold each row's clip. (An auxiliary loss is for mixtures of experts;
        Qwen-VL has none.)"""
        clips, rows = self._clips_and_tokens(self._rows, input_ids, attention_mask)
        prompts = attention_mask[:, :-logits_to_keep].sum(1).tolist()
        logps, entropies = {}, {}
        for part, pack in packed_in_parts(self.vlm, clips, rows, prompts):
            packed = pack()
            out = model(**packed.inputs, fused_lm_head=True)
            logps |= zip(part, _by_row(out.log_probs, packed.places, logits_to_keep))
            if compute_entropy:
                entropies |= zip(part, _by_row(out.entropy, packed.places, logits_to_keep))
        order = range(len(rows))
        logps_B_T = torch.stack([logps[row] for row in order])
        if self.use_vllm and torch.is_grad_enabled():  # TRL's loss reads it behind this call
            sampled_logps, mask = self._part["sampled_logps"], self._part["completion_mask"]
            self._part["importance_sampling_ratio"] = self.reasoner.weights(logps_B_T, sampled_logps, mask)
        return (logps_B_T, torch.stack([entropies[row] for row in order]) if compute_entropy else None, None)

    def _clips_and_tokens(
        self, rows: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[list, list[list[int]]]:
        """Clips and tokens of rows that are padded as TRL has them."""
        tokens = [row[valid].tolist() for row, valid in zip(ids, mask.bool())]
        return [self._encoded[row // self.config.group] for row in rows.tolist()], tokens

    def _parts(self, rows: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        return in_parts(self.vlm, *self._clips_and_tokens(rows, ids, mask))

    def _sample(self, step: int, clips: Sequence[Clip], refill: int) -> Sampled:
        """A group of each clip of this process's share, from the policy as it stands. A refill's traces have sample
        numbers of their own."""
        settings = self.config
        return self.reasoner.groups(
            ranks.share(clips),
            range(refill * settings.group, (refill + 1) * settings.group),
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            step=step,
        )

    def _store(self, groups: list[Group], advantages: list[np.ndarray], step: int) -> list[_GroupSummary]:
        """Writes the rollouts with every reward and the advantage; gives what the round's numbers are made of.

        A round that is sampled again after a kill takes the place of the first: what is on file is what the weights
        were trained on.
        """
        rows, scores, summaries = [], [], []
        remaining = iter(advantages)
        for group in groups:
            lengths, cut = [len(s.token_ids) for s in group.samples], [s.truncated for s in group.samples]
            summaries.append(_GroupSummary(group.scores, lengths, cut, []))
            for number, (sample, trace, score) in enumerate(zip(group.samples, group.traces, group.scores)):
                sample_number = group.first + number
                row = self.reasoner.row(group.clip, group.encoded, sample, sample_number, self.config.temperature, step)
                name = trace_id(self.run_.id, group.clip.clip_id, sample_number, step)
                rows.append(replace(row, trace_id=name))
                advantage_T, mask_T = next(remaining), group.perception_T[number] > 0
                numbers = score.numbers() | {"advantage": float(advantage_T[-1])}  # the end token is of no observation
                if self.scorer.separate and mask_T.any():
                    numbers["advantage_perception"] = float(advantage_T[mask_T][0])
                evidence = dict.fromkeys(numbers, score.reason or score.label)
                if trace.ok and trace.grammar.text_segments:
                    numbers["mismatch"], evidence["mismatch"] = mismatch(trace, self.reasoner.task.labels)
                if verdict := group.verdicts[number]:
                    evidence["sufficient"] = verdict.evidence
                entries = ({"name": n, "value": value, "evidence": evidence[n]} for n, value in numbers.items())
                scores += [{"trace_id": name, **entry} for entry in entries]
                summaries[-1].numbers.append(numbers)
        self.run_.append("traces", rows)
        self.run_.append("scores", scores)
        return summaries

    def _log_round(self, summaries: list[_GroupSummary], step: int, dynamic: dict[str, float]) -> None:
        """The numbers of a round, over the groups of all processes."""
        groups = ranks.merged(summaries)
        scores = [score for group in groups for score in group.scores]
        traces = [numbers for group in groups for numbers in group.numbers]
        columns = {
            "reward": [score.value for score in scores],
            "accuracy": [score.accuracy for score in scores],
            "well_formed": [score.format for score in scores],
            "tokens_mean": [length for group in groups for length in group.lengths],
            "truncated_share": [cut for group in groups for cut in group.truncated],
            **{f"{name}_mean": [numbers[name] for numbers in traces if name in numbers] for name in _TRACE_NUMBERS},
        }
        means = {name: float(np.mean(values)) for name, values in columns.items() if values}
        ties = {"zero_variance_share": zero_variance_share([[score.value for score in g.scores] for g in groups])}
        self._log(step, {**means, **ties, **self.scorer.zero_variance(groups), **dynamic})

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


def _no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """TRL asks for a reward function; ours come with their evidence, from `Scorer.score`."""
    return [0.0] * len(completions)


def _padded(rows: Sequence[Sequence[float]], pad: float, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids (of numbers, where `pad` is a float) as one tensor (rows, longest), and where they are."""
    width = max(map(len, rows), default=0)
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[row, place] = torch.as_tensor(tokens, dtype=ids.dtype)
        mask[row, place] = 1
    return ids, mask


def _by_row(values: torch.Tensor, places: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """(rows, width): of packed numbers (1, tokens) those at each row's places, zeros behind them."""
    flat = values.flatten()
    rows = torch.nn.utils.rnn.pad_sequence([flat[row] for row in places], batch_first=True)
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]))
