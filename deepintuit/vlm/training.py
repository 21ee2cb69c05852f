"""What every TRL trainer here shares: arguments, a progress bar with time left, checkpoints that survive a kill.

A checkpoint of the trainer counts only with the marker that is written last; one without it is a kill's leftover and
is removed. Trainer state (optimizer, random state) lies in torch's own files inside the run and is deleted when the
stage ends; weights are safetensors.
"""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME

from deepintuit import disk, ranks
from deepintuit.vlm import group
from deepintuit.vlm.divided import full, is_divided, moments, part, take_whole, whole
from deepintuit.vlm.memory import AGAIN, within_memory
from deepintuit.vlm.model import VLM
from deepintuit.vlm.precision import round_in_forward
from deepintuit.vlm.weights import fill_adapter, read_model

MARKER = "complete"
LogRow = Callable[[int, dict[str, float]], None]
"""Takes (step, numbers by name)."""


class StepLog:
    """The numbers of training steps, handed to `write` as rows of the grain `steps`: every few seconds and before each
    checkpoint.

    A part a step would be thousands of files. What a kill takes from the buffer lies behind the last checkpoint, so it
    is logged again. Of several processes the leading one writes.
    """

    def __init__(self, write: Callable[[list[dict]], object], seconds: float = 5.0):
        self._write, self._seconds = write, seconds
        self._rows: list[dict] = []
        self._written = time.monotonic()

    def __call__(self, step: int, numbers: dict[str, float]) -> None:
        self._rows += [{"step": step, "name": name, "value": value} for name, value in numbers.items()]
        if time.monotonic() - self._written > self._seconds:
            self.flush()

    def flush(self) -> None:
        if self._rows and ranks.leads():
            self._write(self._rows)
        self._rows, self._written = [], time.monotonic()


def common_arguments(vlm: VLM, folder: Path, *, seed: int, save_steps: int) -> dict:
    """Keyword arguments for any TRL config: nothing is reported or pushed, and the model computes as it does anyway."""
    return {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": vlm.device.type == "cpu",
        "bf16": False,  # TRL's default is True
        "fp16": vlm.dtype == torch.float16,  # for its loss scaling alone
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": vlm.core.is_activation_checkpointing,  # TRL's default is True
    }


class Resumable(Trainer):
    """A trainer that computes as its model does elsewhere, and goes on after a kill as if there had been none. Put it
    before a TRL trainer among the bases.

    Of several processes (`group`) each is given the whole batch, computes the loss of its own clips in it, divided by
    what the whole batch has, and makes the same update from everyone's gradients; the leading one saves. Of a model
    whose weights are `divided` each updates its part, and all make as many passes: `idle` ones where clips are fewer.
    """

    idle: Callable[[], torch.Tensor]
    _whole: tuple[dict[str, Any], dict[str, Any]] | None = None
    """While a checkpoint of divided weights is saved: weights, and the optimizer's state."""

    def __init__(self, *, model, **arguments):
        arguments["args"]._n_gpu = 1  # or transformers would divide batches among all that are visible
        device = next(model.parameters()).device
        arguments["args"].__dict__["_setup_devices"] = device  # transformers knows of one process: the first GPU
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.divided = is_divided(model)
        originals = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(model=model, **arguments)
        if not self.divided:
            for parameter, data in originals:
                parameter.data = data  # TRL rounds the adapter of a quantised model
            round_in_forward(model)  # TRL's copy of an adapter, too
        self.accelerator.autocast_handler = AutocastKwargs(enabled=False)

    def train_or_resume(self, folder: Path) -> None:
        """Train to the end, from the newest complete checkpoint where there is one.

        The checkpoint of the last step gives its weights back and nothing is trained: a stage that is killed after
        its training, while it saves or scores, does not train again, nor one step too many.
        """
        resumed = ranks.first(lambda: last_checkpoint(folder))
        if not self.divided:
            group.same_weights(self.model.parameters())
        if resumed and _marker(Path(resumed))["last"]:
            self._load_from_checkpoint(resumed)
            self.state = TrainerState.load_from_json(str(Path(resumed) / TRAINER_STATE_NAME))
        else:
            fewer = "Give adapters (model.lora_rank=64): an optimizer holds three numbers for each that is trained"
            with within_memory("updating the weights", fewer), group.naming(other_work=True):
                self.train(resume_from_checkpoint=resumed)

    def loss_in_parts(self, losses: Sequence[Callable[[], torch.Tensor]]) -> torch.Tensor:
        """The sum of a batch's losses, part by part: behind all but the last one lies their backward pass already, so
        that the activations of one part are held at a time."""
        behind = torch.zeros((), device=self.args.device)
        if self.divided:
            losses = [*losses, *[self.idle] * (max(ranks.gather(len(losses))) - len(losses))]
        if not losses:  # of this batch, other processes have all clips
            return behind.requires_grad_()
        *parts, last = losses
        with within_memory("computing a loss", f"Lower model.tokens_per_pass, {AGAIN}"):
            for part in parts:
                loss = part()
                self.accelerator.backward(loss)
                behind += loss.detach()
            return last() + behind

    def training_step(self, *arguments, **more) -> torch.Tensor:
        group.draw(self.args.seed, self.state.global_step)
        loss = super().training_step(*arguments, **more)
        if not self.divided:  # else behind each pass
            group.share_gradients(self.model.parameters())
        return group.total(loss)

    def _clip_grad_norm(self, model) -> torch.Tensor:
        return full(super()._clip_grad_norm(model))

    def _get_num_items_in_batch(self, *arguments) -> torch.Tensor | None:
        count = super()._get_num_items_in_batch(*arguments)
        return count if count is None else group.total(count)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's own numbers are means over the parts of all processes; a plain trainer has none."""
        numbers = getattr(self, "_metrics", {"train": {}})["train"]
        everyone = ranks.gather(dict(numbers))
        for name in dict.fromkeys(name for process in everyone for name in process):
            numbers[name] = [value for process in everyone for value in process.get(name, ())]
        if "num_tokens" in numbers:
            numbers["num_tokens"] = [sum(numbers["num_tokens"])]
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial) -> None:
        """One that the disk does not take whole is removed: it would fill the room that is missing."""
        if self.divided:
            self._whole = whole(dict(self.model.named_parameters())), moments(self.optimizer)
        if not ranks.leads():
            self._whole = None
            return
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with disk.naming(folder):
            try:
                super()._save_checkpoint(model, trial)
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True)
                if "inline_container" in str(error) and "strerror" not in str(error):
                    raise OSError(errno.ENOSPC, str(error)) from error  # torch keeps the system's reason to itself
                raise
            finally:
                self._whole = None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, self._whole[0] if self._whole else state_dict)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.divided:
            optimizer.register_state_dict_post_hook(lambda _, state: self._whole[1] if self._whole else state)
            take_whole(optimizer)
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Full weights through `from_pretrained`: transformers writes them under the hub's names (`visual.…`), and
        its Trainer looks for those in memory (`model.visual.…`), finds none, warns, and would go on from the weights
        that the stage began with."""
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif hasattr(self.model, "peft_config"):
            fill_adapter(self.model, Path(resume_from_checkpoint))
        else:
            # In float32, or master weights would come back rounded; each value takes its parameter's type when copied.
            weights = read_model(Path(resume_from_checkpoint), dtype="float32").state_dict()
            self.model.load_state_dict(part(weights, self.model.state_dict()))


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete trainer checkpoint; incomplete ones are removed."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if _marker(path):
            complete.append((int(path.name.rpartition("-")[2]), path))
        else:
            shutil.rmtree(path)
    return str(max(complete)[1]) if complete else None


def _marker(checkpoint: Path) -> dict | None:
    """What the marker says, or None where it is missing or a kill cut it short."""
    try:
        return {"last": False, **json.loads((checkpoint / MARKER).read_text())}
    except (FileNotFoundError, ValueError):
        return None


def trackers(report_to: str, run: Path) -> tuple[dict[str, Any], list[TrainerCallback]]:
    """What tells `report_to` the numbers of the training in the folder `run`: arguments for any TRL config, and
    callbacks. TensorBoard's logs lie beside the run's other files; the other trackers are transformers' own, under the
    run's id, and take their keys and addresses from the environment."""
    if not ranks.leads():
        return {}, []
    if report_to == "tensorboard":
        threading.excepthook = _unless_said
        return {}, [TensorBoardCallback(SummaryWriter(log_dir=str(run / "tensorboard")))]
    arguments = {"report_to": report_to, "run_name": run.name}
    return (arguments | {"project": "deepintuit"} if report_to == "trackio" else arguments), []


def _unless_said(error: threading.ExceptHookArgs) -> None:
    """No traceback of the thread that writes the logs where the disk refuses them: the next line raises it again."""
    if disk.refusal(error.exc_value or error.exc_type()) is None:
        threading.__excepthook__(error)


class Watch(TrainerCallback):
    """Progress bar, the marker behind each checkpoint, and every logged number to the run's `steps`."""

    def __init__(self, title: str, log: LogRow | None, flush: Callable[[], None] | None, progress: bool):
        self.log, self.flush = log, flush
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, disable=not progress)
        self.task = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar.start()
        self.task = self.bar.add_task("steps", total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, (int, float))}
        note = next((f"{name} {numbers[name]:.3f}" for name in ("reward", "loss") if name in numbers), "")
        self.bar.update(self.task, note=note)
        if self.log and numbers:
            self.log(state.global_step, numbers)

    def on_save(self, args, state, control, **kwargs):
        if not ranks.leads():
            return
        if self.flush:
            self.flush()
        marker = Path(args.output_dir) / f"checkpoint-{state.global_step}" / MARKER
        disk.fsync_tree(marker.parent)
        disk.write_json(marker, {"step": state.global_step, "last": control.should_training_stop})

    def on_train_end(self, args, state, control, **kwargs):
        if self.flush:
            self.flush()
        self.bar.stop()
