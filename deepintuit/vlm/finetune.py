"""Cross-entropy on targets given (clip, prompt): the one loss of cold start, Direct-SFT, RB-FT and the calibrator.

TRL's SFTTrainer with a collator of our own: the clip's features come from the frozen tower's cache, the prompt is
masked, the loss is a mean over the target's tokens. Resumable: the same call after a kill goes on from the last
checkpoint to the same result. A batch goes through the model in parts of at most `model.tokens_per_pass` tokens, in
which what the rows of a clip share is computed once; where it holds clips enough, such rows stand in one batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, SchedulerType, TrainerCallback
from trl import SFTConfig, SFTTrainer

from deepintuit import disk, ranks
from deepintuit.schedule import of_rows
from deepintuit.vlm.divided import divided, fill
from deepintuit.vlm.model import VLM, Example
from deepintuit.vlm.prefix import Packed, pack, packed_in_parts
from deepintuit.vlm.training import Resumable, StepLog, Watch, common_arguments, trackers
from deepintuit.vlm.weights import hold_to_fit

_LEAST_CLIPS = 16
"""In a batch whose rows stand clip by clip. Three were too few for the embedded calibrator: LOG.md."""

_SETTLED = 0.1
"""Share of the peak learning rate below which training may stop early: LOG.md."""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune; see ColdstartConfig and CalibrateConfig for meanings and units."""

    learning_rate: float
    epochs: float
    batch: int
    warmup: float = 0.06
    scheduler: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    save_steps: int = 50
    patience: int = 0

    @classmethod
    def of(cls, settings: Any) -> Recipe:
        """From a section of the settings: what it does not say stays as it is here."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls) if hasattr(settings, f.name)})


def finetune(
    vlm: VLM,
    clips: Sequence[str],
    example: Callable[[int, int], Example],
    recipe: Recipe,
    folder: Path,
    *,
    seed: int,
    title: str,
    log: StepLog | None = None,
    validate: Callable[[], float] | None = None,
    progress: bool = True,
    report_to: str = "tensorboard",
) -> dict[str, float]:
    """Train `vlm` in place on one row for each of `clips`; `example(row, epoch)` makes a row's example.

    Each epoch takes the rows in another order; those of a clip one after the other, if a batch of such still holds 16
    clips: with fewer, an update would see too little of the world.

    With `validate` (lower is better, called after each epoch) the best epoch's weights are what is left in `vlm`, and
    `recipe.patience` epochs without a better one end the training; where the learning rate falls, only once it is below
    a tenth of its peak, since a worse epoch before that says little about the last ones. `folder` holds resumable
    state; the caller removes it once the weights are safe.
    """
    count = len(clips)
    steps_an_epoch = math.ceil(count / recipe.batch)
    planned = of_rows(title, count, recipe.batch, recipe.epochs, recipe.learning_rate, recipe.warmup, recipe.scheduler)
    reporting, callbacks = trackers(report_to, folder.parent)
    collate = _Collator(vlm, example, clips)
    arguments = SFTConfig(
        **common_arguments(vlm, folder, seed=seed, save_steps=recipe.save_steps) | reporting,
        max_steps=planned.updates,
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=1,  # a batch goes through the model in parts of its own: loss_in_parts
        learning_rate=recipe.learning_rate,
        warmup_steps=planned.warmup,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(recipe.scheduler, recipe.scheduler),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = divided(vlm) if vlm.divides else vlm.model
    keeper = BestEpoch(vlm, folder, validate, recipe.patience, log, steps_an_epoch) if validate else None
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": list(range(count))}),
        data_collator=collate,
        processing_class=vlm.processor,
        callbacks=[
            _Epochs(collate, steps_an_epoch),
            Watch(title, log, log.flush if log else None, progress),
            *callbacks,
            *([keeper] if keeper else []),
        ],
    )
    together = recipe.batch * len(set(clips)) >= _LEAST_CLIPS * count
    units = clips if together else list(map(str, range(count)))
    trainer.idle = partial(_idle, vlm, model)
    trainer.order = lambda: _by_clip(units, [seed, trainer.state.global_step // steps_an_epoch])
    trainer.remove_callback(PrinterCallback)
    trainer.train_or_resume(folder)
    fill(vlm.model, model)
    if keeper:
        keeper.restore()
    vlm.model.eval()
    return {"steps": trainer.state.global_step, **(keeper.summary() if keeper else {})}


def _idle(vlm: VLM, model: torch.nn.Module) -> torch.Tensor:
    """The loss of no clip: 0, behind a pass of two tokens."""
    packed = pack(vlm, [None], [[vlm.tokenizer.eos_token_id] * 2], [1])
    return 0 * model(**packed.inputs, fused_lm_head=True).log_probs.sum()


class _Trainer(Resumable, SFTTrainer):
    order: Callable[[], list[int]]

    def __init__(self, **arguments):
        super().__init__(**arguments)
        # Qwen-VL says no, and the loss would be a sum of the parts' means, whatever the tokens in each; TRL's own loss
        # divides by the tokens of the whole batch when it is told them.
        self.model_accepts_loss_kwargs = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        whole = partial(super().compute_loss, num_items_in_batch=num_items_in_batch)

        def loss(pack: Callable[[], Packed]) -> torch.Tensor:
            part = pack().inputs
            return whole(model, {**part, "labels": part["shift_labels"]})

        return self.loss_in_parts([partial(loss, pack) for pack in inputs["parts"]])

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return _Sampler(self.order, len(self.train_dataset))


class _Sampler(Sampler):
    """The order that is right when an epoch begins, or is begun again after a kill."""

    def __init__(self, order: Callable[[], list[int]], count: int):
        self.order, self.count = order, count

    def __iter__(self):
        return iter(self.order())

    def __len__(self) -> int:
        return self.count


def _by_clip(clips: Sequence[str], seed: Sequence[int]) -> list[int]:
    """Rows in a random order of their clips."""
    rows: dict[str, list[int]] = {}
    for row, clip in enumerate(clips):
        rows.setdefault(clip, []).append(row)
    members = list(rows.values())
    return [row for clip in np.random.default_rng(seed).permutation(len(members)) for row in members[clip]]


class _Collator:
    """Rows → what packs each part of the batch when its turn comes, and all labels. Holds the epoch: an example may
    differ from epoch to epoch. Of several processes each takes the rows of its share of the clips."""

    def __init__(self, vlm: VLM, example: Callable[[int, int], Example], clips: Sequence[str]):
        self.vlm, self.example, self.clips, self.epoch = vlm, example, clips, 0

    def __call__(self, rows: Sequence[dict]) -> dict:
        numbers = [row["row"] for row in rows]
        own_clips = set(ranks.share(list(dict.fromkeys(self.clips[number] for number in numbers))))
        examples = [self.example(number, self.epoch) for number in numbers if self.clips[number] in own_clips]
        prompts = [self.vlm.prompt_ids(e.clip, e.prompt) for e in examples]
        targets = [self.vlm.target_ids(e.target) for e in examples]
        rows, firsts = [prompt + target for prompt, target in zip(prompts, targets)], list(map(len, prompts))
        clips = [e.clip for e in examples]
        parts = [pack for _, pack in packed_in_parts(self.vlm, clips, rows, firsts, apart=True)]
        labels = torch.tensor([[token for target in targets for token in target]])
        return {"parts": parts, "labels": labels, "shift_labels": labels}  # what the trainer counts


class _Epochs(TrainerCallback):
    def __init__(self, collate: _Collator, steps_an_epoch: int):
        self.collate, self.steps = collate, steps_an_epoch

    def on_epoch_begin(self, args, state, control, **kwargs):  # a step's rows are collated before it begins
        self.collate.epoch = state.global_step // self.steps


class BestEpoch(TrainerCallback):
    """Validates after each epoch, keeps the best epoch's trained weights on disk, and stops when patience is out and
    the learning rate low."""

    def __init__(
        self,
        vlm: VLM,
        folder: Path,
        validate: Callable[[], float],
        patience: int,
        log: StepLog | None,
        steps_an_epoch: int,
    ):
        self.vlm, self.folder, self.validate = vlm, folder, validate
        self.patience, self.log, self.steps = patience, log, steps_an_epoch
        self.scores: dict[int, float] = {}
        text = ranks.first(lambda: (folder / "scores.json").exists() and (folder / "scores.json").read_text())
        if text:
            self.scores = {int(step): value for step, value in json.loads(text).items()}

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        if step % self.steps and step != state.max_steps:
            return
        if step not in self.scores:
            fill(self.vlm.model, kwargs["model"])
            self.scores[step] = self.validate()
            if self.log:
                self.log(step, {"validation_nll": self.scores[step]})
                self.log.flush()  # a score that is kept is not computed, and so not logged, again
            if self._best() == step and ranks.leads():
                save_trained(self.vlm, self.folder / "best.safetensors")
            if ranks.leads():
                disk.write_text(self.folder / "scores.json", json.dumps(self.scores))  # may hold nan
        settled = kwargs["lr_scheduler"].get_last_lr()[0] < _SETTLED * args.learning_rate
        settled |= args.lr_scheduler_type == SchedulerType.CONSTANT_WITH_WARMUP
        if self.patience and settled and (step - self._best()) >= self.patience * self.steps:
            control.should_training_stop = control.should_save = True

    def _best(self) -> int:
        """The step of the lowest score, the earliest of equals. A score that is not a number is the worst."""
        return min(self.scores, key=lambda step: (math.isnan(self.scores[step]), self.scores[step], step))

    def restore(self) -> None:
        from safetensors.torch import load_file

        best = self.folder / "best.safetensors"
        if ranks.first(best.exists):
            weights = load_file(best, device=str(self.vlm.device))
            trained = {name for name, p in self.vlm.model.named_parameters() if p.requires_grad}
            hold_to_fit(str(best), trained - weights.keys(), weights.keys() - trained, ())
            self.vlm.model.load_state_dict(weights, strict=False)

    def summary(self) -> dict[str, float]:
        best = self._best()
        return {"validation_nll": self.scores[best], "best_epoch": round(best / self.steps, 2)}


def save_trained(vlm: VLM, path: Path) -> None:
    """The weights that training changes, as one safetensors file, in place of any former one."""
    from safetensors.torch import save_file

    trained = {
        name: p.detach().cpu().contiguous().clone() for name, p in vlm.model.named_parameters() if p.requires_grad
    }
    with disk.replacing(path) as temporary:
        save_file(trained, temporary)
