"""A video classifier of transformers (VideoMAE, V-JEPA 2, TimeSformer, ViViT …): what stands beside a reasoner, and a
viewer for embeddings.

It sees as many frames as it was made for, spread over the clip, each whole and squeezed into its square [R]: a crop
would lose what happens at the border. Computes in float32. What is no classification head must be in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    VideoMAEConfig,
)
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

from deepintuit import disk
from deepintuit.config import VideoConfig
from deepintuit.errors import ModelError, VideoError
from deepintuit.schedule import of_rows
from deepintuit.video import DiskCache, Frames, Limits, cached_read
from deepintuit.vlm.clips import Place, fingerprint
from deepintuit.vlm.finetune import BestEpoch, Recipe
from deepintuit.vlm.memory import within_memory
from deepintuit.vlm.model import device_of
from deepintuit.vlm.precision import evaluating
from deepintuit.vlm.training import Resumable, StepLog, Watch, common_arguments, trackers
from deepintuit.vlm.weights import hold_to_fit, hold_to_numbers, located, read_config, reading, some, weight_files

RANDOM = "random"
"""In place of a path: a small VideoMAE of random weights."""
_SMALL = {"image_size": 64, "patch_size": 8, "num_frames": 8, "hidden_size": 128, "intermediate_size": 256}
_SMALL |= {"num_hidden_layers": 4, "num_attention_heads": 4}
_KIND = "video classifier"
_TODO = "Give a folder or hub id that transformers' AutoModelForVideoClassification loads, or `random`"
_AT_ONCE = 8


class VideoClassifier:
    """`model` in evaluation, with its `processor`; `labels` are those of its head, in order."""

    def __init__(self, model, processor, name: str, video: VideoConfig, cache: Path | None):
        self.model, self.processor, self.name = model, processor, name
        self.cache = DiskCache(cache, video.cache_gib) if cache and video.cache_gib else None
        self.limits = Limits.of(video)
        config = model.config
        self.count = int(getattr(config, "num_frames", 0) or config.frames_per_clip)
        side = getattr(config, "crop_size", None) or config.image_size
        self.size = (side, side) if isinstance(side, int) else (int(side[1]), int(side[0]))

    @classmethod
    def load(
        cls, path: str, labels: Sequence[str] | None, device: str, video: VideoConfig, cache: Path | None
    ) -> VideoClassifier:
        """With a head for `labels`, new where it had another; None leaves it as it is. ModelError where `path` holds no
        such classifier, or lacks tensors of it."""
        head = (
            {"id2label": dict(enumerate(labels)), "label2id": {name: k for k, name in enumerate(labels)}}
            if labels
            else {}
        )
        if path == RANDOM:
            config = VideoMAEConfig(**_SMALL, **head)
            model = AutoModelForVideoClassification.from_config(config)
            processor = VIDEO_PROCESSOR_MAPPING[type(config)]["torchvision"]()
        else:
            config = read_config(located(path, text_only=True, kind=_KIND, todo=_TODO), _KIND, _TODO)
            folder = located(path)
            weight_files(folder)
            with reading(path, _KIND, _TODO):
                model, info = AutoModelForVideoClassification.from_pretrained(
                    str(folder),
                    dtype="float32",
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    ignore_mismatched_sizes=True,  # of a head for other labels; others are told of below
                    output_loading_info=True,
                    **head,
                )
                try:
                    processor = AutoVideoProcessor.from_pretrained(str(folder), local_files_only=True)
                except OSError:  # none was saved with it
                    processor = VIDEO_PROCESSOR_MAPPING[type(config)]["torchvision"]()
            _hold_to_fit(path, model, info, trained=labels is not None)
        with within_memory(f"loading {path!r}", "Give a smaller classifier"):
            model.to(device_of(device)).eval()
        hold_to_numbers(model, path)
        parts = [part for part in Path(path).parts if part != "checkpoint"]  # of a run that trained it: the run's name
        name = parts[-1] if Path(path).is_dir() else path
        return cls(
            model, processor, f"{config.model_type}, {'random weights' if path == RANDOM else name}", video, cache
        )

    core = property(lambda self: self.model)
    device = property(lambda self: self.model.device)
    dtype = property(lambda self: self.model.dtype)

    @property
    def about(self) -> dict[str, Any]:
        """As a viewer of embeddings."""
        return {"name": f"video classifier {self.name}", "recipe": [fingerprint(self.model), self.count, *self.size]}

    def frames(self, place: Place) -> Frames:
        """The frames of a clip that it sees; fewer where the clip has fewer. Raises `VideoError`."""
        clip_id, path, *_ = place
        return cached_read(self.cache, path, clip_id, self.count, self.size, self.limits)

    def pixels(self, clips: Sequence[Frames]) -> torch.Tensor:
        """(C, T, 3, H, W) as the model takes them; of a shorter clip, frames are repeated."""
        spread = (np.linspace(0, len(f.pixels_T_H_W_3) - 1, self.count).round().astype(int) for f in clips)
        videos = [torch.from_numpy(f.pixels_T_H_W_3[at]).permute(0, 3, 1, 2) for f, at in zip(clips, spread)]
        as_they_are = {"do_resize": False, "do_center_crop": False, "do_sample_frames": False}
        return self.processor(videos, return_tensors="pt", **as_they_are)[self.model.main_input_name]

    def forward(self, clips: Sequence[Frames], **more: torch.Tensor):
        pixels = self.pixels(clips).to(self.device)
        return self.model(**{self.model.main_input_name: pixels}, **more)

    def logits(self, places: Sequence[Place]) -> np.ndarray:
        """(C, K) of readable clips."""
        parts = []
        with evaluating(self.model), within_memory("classifying clips", "Give a smaller classifier"):
            for start in range(0, len(places), _AT_ONCE):
                outcome = self.forward([self.frames(place) for place in places[start : start + _AT_ONCE]])
                parts.append(outcome.logits.float().cpu().numpy())
        return np.concatenate(parts)

    def vectors(self, places: Sequence[Place]) -> Iterator[np.ndarray | VideoError]:
        """What the classification layer is given, (D,) a clip, or why the clip cannot be read."""
        inputs: list[torch.Tensor] = []
        hook = self.model.classifier.register_forward_pre_hook(lambda _, given_inputs: inputs.append(given_inputs[0]))
        try:
            for place in places:
                try:
                    frames = self.frames(place)
                except VideoError as error:
                    yield error
                    continue
                with evaluating(self.model), within_memory("embedding a clip", "Give a smaller classifier"):
                    self.forward([frames])
                yield inputs.pop()[0].float().cpu().numpy()
        finally:
            hook.remove()

    def save(self, folder: Path) -> None:
        """A hub folder, as `load` takes it."""
        with disk.naming(folder):
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
        disk.fsync_tree(folder)

    def finetune(
        self,
        places: Sequence[Place],
        truth_C: Sequence[int],
        validation: tuple[Sequence[Place], Sequence[int]],
        recipe: Recipe,
        folder: Path,
        *,
        seed: int,
        log: StepLog,
        progress: bool,
        report_to: str,
    ) -> dict[str, float]:
        """Train all of it on the labels' numbers by cross-entropy; the epoch of the least NLL on validation is what is
        left. The same call after a kill goes on from the last checkpoint in `folder`, which the caller removes."""
        title, count = "Encoder", len(places)
        planned = of_rows(
            title, count, recipe.batch, recipe.epochs, recipe.learning_rate, recipe.warmup, recipe.scheduler
        )
        reports, callbacks = trackers(report_to, folder.parent)
        an_epoch = math.ceil(count / recipe.batch)
        arguments = TrainingArguments(
            **common_arguments(self, folder, seed=seed, save_steps=an_epoch) | reports,
            max_steps=planned.updates,
            per_device_train_batch_size=recipe.batch,
            learning_rate=recipe.learning_rate,
            warmup_steps=planned.warmup,
            lr_scheduler_type=recipe.scheduler,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
        )
        validate = partial(self._nll, *validation)
        folder.mkdir(parents=True, exist_ok=True)
        keeper = BestEpoch(self, folder, validate, recipe.patience, log, an_epoch)
        trainer = _Trainer(
            model=self.model,
            args=arguments,
            train_dataset=Dataset.from_dict({"row": list(range(count))}),
            data_collator=lambda rows: self._batch([row["row"] for row in rows], places, truth_C),
            callbacks=[Watch(title, log, log.flush, progress), *callbacks, keeper],
        )
        trainer.remove_callback(PrinterCallback)
        self.model.train()
        trainer.train_or_resume(folder)
        keeper.restore()
        self.model.eval()
        return {"steps": trainer.state.global_step, **keeper.summary()}

    def _batch(self, rows: Sequence[int], places: Sequence[Place], truth_C: Sequence[int]) -> dict[str, torch.Tensor]:
        pixels = self.pixels([self.frames(places[row]) for row in rows])
        return {self.model.main_input_name: pixels, "labels": torch.tensor([truth_C[row] for row in rows])}

    def _nll(self, places: Sequence[Place], truth_C: Sequence[int]) -> float:
        logits, truth = torch.from_numpy(self.logits(places)), torch.as_tensor(truth_C)
        return float(torch.nn.functional.cross_entropy(logits, truth))


class _Trainer(Resumable):
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        Trainer._load_from_checkpoint(self, resume_from_checkpoint, model)


def _hold_to_fit(path: str, model: torch.nn.Module, info: dict[str, Any], trained: bool) -> None:
    """Raises `ModelError` where a tensor of the backbone is missing, unknown or of another shape; and, unless the head
    will be `trained`, where one in front of the classification layer is missing."""
    prefix = f"{model.base_model_prefix}."
    missing = [name for name in info["missing_keys"] if name.startswith(prefix)]
    unknown = [name for name in info["unexpected_keys"] if name.startswith(prefix)]
    shapes = [str(name) for name, *_ in info["mismatched_keys"] if name.startswith(prefix)]
    hold_to_fit(path, missing, unknown, shapes, info["error_msgs"])
    random = [name for name in info["missing_keys"] if not name.startswith(("classifier.", "fc_norm."))]
    if random and not trained:
        raise ModelError(
            f"{path!r} has no tensors for {some(random)}",
            "they stand between the clip and what an embedding is, and would be drawn at random",
            "Give a checkpoint that was fine-tuned for classification",
        )
