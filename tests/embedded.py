"""A small embedded world for the stage tests: rendered clips in a workbench, a model of random weights, and a cold
start on short traces.

Everything is real and tiny: MP4 files, the store, the stages, a Qwen2.5-VL with its own tokenizer. Used as a plugin of
the test modules (`pytest_plugins = ["embedded"]`).
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from deepintuit import calibrate, coldstart, config
from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.data.manifest import datasets
from deepintuit.runs import Run, trace_id
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_homecam import demo
from deepintuit_homecam.workshop.backbone import build_model, build_processor

TRAIN, TEST = 40, 12
TINY = Path(__file__).parents[1] / "configs" / "tiny.toml"


class Bench:
    """A workbench with the dataset `homecam` and the random model at `model`; `copy` gives a test one of its own."""

    def __init__(self, path: Path, model: Path, common: Path | None = None):
        """`common`: where the workers of one test run make what each of them has a copy of."""
        self.path, self.model, self.common = path, model, common

    @property
    def workbench(self) -> Workbench:
        return Workbench(self.path)

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.path, "homecam")

    def sets(self, *more: str) -> list[str]:
        return [
            f"workbench={self.path}", f"model.path={self.model}", "clips.coldstart_share=0.3", "clips.grpo_share=0.3",
            "clips.calibration_share=0.4", "clips.validation_share=0.1", "clips.test_share=0.2",
            "coldstart.weight_decay=0.01", "coldstart.scheduler=cosine", "grpo.max_steps=0", "calibrate.patience=2",
            "calibrate.learning_rate=3e-4", "video.frames=4", "sampling.max_tokens=24", "sampling.clips_per_batch=8",
            "coldstart.batch=8", "grpo.max_tokens=24", "grpo.clips_per_step=4",
            "grpo.group=4", "grpo.check_clips=0", "grpo.warmup_steps=0", "calibrate.traces=2",
            "calibrate.batch=8", *more,
        ]  # fmt: skip

    def settings(self, *more: str) -> Config:
        return config.load(TINY, self.sets(*more))

    def copy(self, folder: Path) -> Bench:
        shutil.copytree(self.path, folder)
        return Bench(folder, self.model)

    def together(self, stage: Callable[[Bench], Run]) -> Run:
        """The finished run, made once by whichever worker comes first."""
        first = Bench(self.common, self.model)
        with FileLock(f"{first.path}.lock"):
            run = stage(first)
            shutil.copytree(first.path, self.path, dirs_exist_ok=True)
        return self.workbench.run(run.id)

    def teach(self, write, each: int = 8, name: str = "short") -> Run:
        """A finished teach run that kept `write(clip, sample)` for every cold-start clip, `each` times."""
        with self.workbench.start_run("teach", {"made": name}, name=name, dataset="homecam") as run:
            if not run.finished:
                asked = [
                    (clip, sample)
                    for clip in self.manifest.usable("coldstart").to_dict("records")
                    for sample in range(each)
                ]
                run.append(
                    "traces", [{"clip_id": clip["clip_id"], "sample": k, "text": write(clip, k)} for clip, k in asked]
                )
                kept = [trace_id(run.id, clip["clip_id"], k) for clip, k in asked]
                run.append("scores", [{"trace_id": name, "name": "kept", "value": 1.0} for name in kept])
                run.finish({})
        return run


def short_trace(clip: dict, sample: int) -> str:
    """A well-formed trace of few tokens whose label is drawn without a look at the clip."""
    rng = random.Random(f"{clip['clip_id']}/{sample}")
    seen = rng.choice(("It is day.", "It is night.", "A dog is seen."))
    return f"<think> {seen} </think><answer> {rng.choice(('theft', 'stray', 'routine', 'delivery'))} </answer>"


@pytest.fixture(scope="session")
def common(tmp_path_factory) -> Path:
    """The folder that the workers of one test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def model_folder(common) -> Path:
    """A saved model of random weights; queries, keys and the head are larger than at birth, so that it looks at what
    it is shown."""
    folder = common / "model"
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return folder
        processor = build_processor()
        model = build_model(processor)
        with torch.no_grad():
            for name, parameter in model.model.language_model.named_parameters():
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    parameter.mul_(4)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bench(tmp_path_factory, common, model_folder) -> Bench:
    """40 clips divided over the training splits and validation, 12 to test on. Shared: runs may be added, nothing be
    changed."""
    first = Bench(common / "bench", model_folder)
    settings = first.settings()
    with FileLock(f"{first.path}.lock"):
        demo.clips(settings, TRAIN, TEST, jobs=1, progress=False, fractions=fractions(settings))
        bench = first.copy(tmp_path_factory.mktemp("own") / "workbench")
    bench.common = first.path
    _shared.append(bench.path)
    return bench


_shared: list[Path] = []


@pytest.fixture(autouse=True)
def _shared_workbench_keeps_one_dataset() -> Iterator[None]:
    """So that the test which breaks this is named, and not the last of its worker."""
    yield
    for path in _shared:
        assert datasets(path) == ["homecam"], "a test that imports clips or predicts has a copy of its own"


@pytest.fixture(scope="session")
def cold(bench) -> Run:
    """The random model after a cold start on short traces: it writes the form, and guesses the label."""
    sets = ("coldstart.epochs=12", "coldstart.learning_rate=2e-3")

    def stage(bench: Bench) -> Run:
        teacher = bench.teach(short_trace).id
        return coldstart.run(bench.workbench, bench.settings(*sets), teacher=teacher, progress=False)

    return bench.together(stage)


@pytest.fixture(scope="session")
def cold_lora(bench, cold) -> Run:
    """An adapter on the cold-started model, which is its base: pass `lora_of(cold)` as settings."""
    sets = (*lora_of(cold), "coldstart.epochs=1", "coldstart.learning_rate=2e-3")
    teacher = bench.teach(short_trace).id
    return coldstart.run(bench.workbench, bench.settings(*sets), teacher=teacher, name="lora", progress=False)


def lora_of(base: Run) -> tuple[str, str]:
    return (f"model.path={base.checkpoint}", "model.lora_rank=4")


@pytest.fixture(scope="session")
def calibrated(bench, cold) -> Run:
    settings = ("calibrate.epochs=2",)
    return bench.together(
        lambda first: calibrate.run(first.workbench, first.settings(*settings), reasoner=cold.id, progress=False)
    )


@pytest.fixture(scope="module")
def ours(bench, calibrated, tmp_path_factory) -> Bench:
    """A workbench of the test file's own with the calibrated system: what predicts adds datasets."""
    return bench.copy(tmp_path_factory.mktemp("ours") / "workbench")


# Stages in processes of their own, to be killed

_SERVER = multiprocessing.get_context("forkserver")  # imports torch and trl once; a child starts in no time
_SERVER.set_forkserver_preload(
    ["deepintuit.coldstart", "deepintuit.grpo", "deepintuit.calibrate", "deepintuit.evaluate"]
)


def _work(stage: str, path: Path, settings: Config, arguments: dict) -> None:
    torch.set_num_threads(1)
    importlib.import_module(f"deepintuit.{stage}").run(Workbench(path), settings, progress=False, **arguments)


def begin(bench: Bench, stage: str, sets: Sequence[str] = (), **arguments):
    """The stage in a process of its own, started."""
    process = _SERVER.Process(target=_work, args=(stage, bench.path, bench.settings(*sets), arguments))
    process.start()
    return process


def undisturbed(bench: Bench, stage: str, sets: Sequence[str] = (), **arguments) -> Run:
    process = begin(bench, stage, sets, **arguments)
    process.join()
    assert process.exitcode == 0
    return bench.workbench.runs(stage, finished=True)[-1]


def survivor(
    bench: Bench, stage: str, moments: Sequence[str | float], sets: Sequence[str] = (), **arguments
) -> tuple[Run, int]:
    """The finished run of a stage that was killed at each of the moments, and how many kills it took.

    A moment is a pattern in the stage's run folder (kill -9 as soon as one more path matches and holds something) or a
    number of seconds.
    """
    kills = 0
    for moment in moments:
        pattern = f"runs/{stage}-*/{moment}"
        before = written(bench.path, pattern)
        process, started = begin(bench, stage, sets, **arguments), time.monotonic()
        while process.is_alive():
            if (
                time.monotonic() - started > moment
                if isinstance(moment, float)
                else written(bench.path, pattern) - before
            ):
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    return undisturbed(bench, stage, sets, **arguments), kills


def written(folder: Path, pattern: str) -> set[Path]:
    return {path for path in folder.glob(pattern) if path.is_dir() or path.stat().st_size}


def assert_same_weights(one: Run, other: Run) -> None:
    files = sorted(path.name for path in one.checkpoint.glob("*.safetensors"))
    assert files and files == sorted(path.name for path in other.checkpoint.glob("*.safetensors"))
    for name in files:
        mine, yours = load_file(one.checkpoint / name), load_file(other.checkpoint / name)
        assert mine.keys() == yours.keys()
        apart = {key: float((mine[key] - yours[key]).abs().max()) for key in mine}
        assert max(apart.values()) < 1e-6, max(apart, key=apart.get)
