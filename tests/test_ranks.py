"""One command in two processes of torchrun: the same weights as in one, each clip's work done once, and no process left
behind when another is killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from embedded import TINY, Bench, lora_of, short_trace
from safetensors.torch import load_file

from deepintuit import disk, ranks
from deepintuit.errors import ConfigError
from deepintuit.vlm import group

pytest_plugins = ["embedded"]

DRIVER = Path(__file__).with_name("together.py")
FAST = ("calibrate.traces=1", "calibrate.epochs=1", "calibrate.patience=1")


@pytest.fixture(scope="module")
def commands(bench, cold):
    """By name, what both do: every stage that trains, whole weights and adapters. An update of `cold-full` has eleven
    clips or one, a round of GRPO three."""
    teacher = bench.teach(short_trace, each=1, name="once").id
    lora, few = lora_of(cold), ("grpo.clips_per_step=3", "grpo.max_steps=2", "grpo.learning_rate=1e-3")
    sets = {
        "cold-full": ("coldstart.batch=11", "coldstart.epochs=2", "coldstart.learning_rate=1e-3"),
        "cold-lora": (*lora, "coldstart.batch=6", "coldstart.epochs=1", "coldstart.learning_rate=1e-3"),
        "grpo-full": (*few, "grpo.objective=softmax_weighted"),
        "grpo-lora": (*lora, *few, "grpo.dynamic_sampling=true", "grpo.beta=0.1", "grpo.filter_rollouts=4"),
        "calibrate-full": FAST,
        "calibrate-lora": (*lora, *FAST),
        "killed": ("coldstart.batch=4", "coldstart.epochs=60", "coldstart.save_steps=3"),
    }
    more = {
        "cold": ("coldstart", "--teacher", teacher),
        "killed": ("coldstart", "--teacher", teacher),
        "grpo": ("grpo", "--start", cold.id),
        "calibrate": ("calibrate", "--reasoner", cold.id),
    }

    def made(own: Bench) -> dict[str, list[str]]:
        found = {}
        for name, given in sets.items():
            words = [*more[name.split("-")[0]], "--config", str(TINY), "--quiet", "--name", name]
            if name == "grpo-lora":
                words[2] = "base"
            found[name] = [*words, *(word for one in own.sets(*given) for word in ("--set", one))]
        return found

    return made


def copied(bench: Bench, folder: Path) -> Bench:
    own = bench.copy(folder)
    features = own.path / "cache"
    if features.exists():
        features.rename(folder.with_name(f"{folder.name} cache"))
    return own


@pytest.fixture(scope="module")
def both(bench, cold, commands, tmp_path_factory):
    """(bench, what it told) of one process, and of two, of which the second was killed in the last command; and what
    the launcher of those wrote."""
    root = tmp_path_factory.mktemp("ranks")
    one, two = copied(bench, root / "one"), copied(bench, root / "two")
    out = str(root / "told")
    alone = [name for name in commands(one) if name != "killed"]
    subprocess.run(
        [sys.executable, DRIVER, f"{out}-1", json.dumps([commands(one)[name] for name in alone])], check=True
    )
    refused = ["evaluate", "--reasoner", cold.id, *commands(two)["cold-full"][3:5], "--workbench", str(two.path)]
    asked = json.dumps([*(commands(two)[name] for name in alone), refused, commands(two)["killed"]])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", DRIVER, f"{out}-2", asked]
    with open(root / "said", "w+b") as said:
        torchrun = subprocess.Popen(launch, stderr=said, env={**os.environ, "TORCHELASTIC_ERROR_FILE": ""})
        marker = "runs/coldstart-killed-*/training/checkpoint-*/complete"
        while torchrun.poll() is None and not list(two.path.glob(marker)):
            time.sleep(0.02)
        for child in children(torchrun.pid) if torchrun.poll() is None else ():
            if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                os.kill(child, signal.SIGKILL)
        torchrun.wait(timeout=60)
        said.seek(0)
        words = said.read().decode()
    told = {rank: json.loads(Path(f"{out}-{rank}").read_text()) for rank in ("1.0", "2.0", "2.1")}
    return one, two, alone, told, words


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def of(bench: Bench, name: str):
    return next(run for run in bench.workbench.runs() if run.about["name"] == name)


NAMES = ["cold-full", "cold-lora", "grpo-full", "grpo-lora", "calibrate-full", "calibrate-lora"]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_what_one_does(both, cold, name):
    one, two, *_, said = both
    mine, others = of(one, name), of(two, name)
    assert others.finished, said
    losses, same = (
        run.read("steps").pivot_table(index="step", columns="name", values="value") for run in (mine, others)
    )
    numbers = ["loss", "grad_norm"] + ["reward", "tokens_mean"] * name.startswith("grpo")
    assert len(losses) > 1 and losses["grad_norm"].max() > 1e-3
    assert (losses[numbers] - same[numbers]).abs().max().max() < 1e-5 * max(1, losses["grad_norm"].max())
    for path in mine.checkpoint.glob("*.safetensors"):
        weights, theirs = load_file(path), load_file(others.checkpoint / path.name)
        assert max(float((weights[key] - theirs[key]).abs().max()) for key in weights) < 1e-5, path.name
    summary, other = mine.summary, others.summary
    assert {key for key in summary if summary[key] != other[key]} <= {"validation_nll", "validation"}
    assert not (others.path / "training").exists() and others.about["processes"] == 2


def test_no_process_does_another_ones_work(both):
    one, two, alone, told, _ = both
    for place, name in enumerate(alone):
        whole, *halves = (told[rank][place]["tokens"] for rank in ("1.0", "2.0", "2.1"))
        assert sum(halves) == whole and min(halves) > whole / 5, "each prompt once: clips are divided, not rows"
        mine, others = of(one, name), of(two, name)
        assert others.summary["tower_passes"] == mine.summary["tower_passes"]
        written = [len(pq.read_table(path)) for path in others.path.glob("traces-*.parquet")]
        assert sum(written) == len(others.read("traces")) == len(mine.read("traces"))
        assert set(others.read("traces")["text"]) == set(mine.read("traces")["text"])
    assert sum(run.summary["tower_passes"] for run in two.workbench.runs()[-6:]) > 0


def test_a_stage_that_is_not_divided_is_refused_before_a_run_is_made(both):
    _, two, alone, told, said = both
    assert [told[rank][len(alone)]["code"] for rank in ("2.0", "2.1")] == [2, 2]
    assert not two.workbench.runs("evaluate")
    assert "begun by 2 processes" in said and "coldstart, grpo, calibrate" in said


def test_a_killed_process_ends_the_others_with_a_sentence_and_one_alone_goes_on(both, commands):
    one, two, _, told, said = both
    assert len(told["2.1"]) == len(told["1.0"]) + 1, "killed in its last command"
    assert "another of the 2 processes of this command has ended" in said
    assert "Traceback" not in said.split("torch.distributed.elastic")[0]
    assert of(two, "killed").status != "finished"
    kept = max(int(path.parent.name[11:]) for path in two.path.glob("runs/*killed*/training/*/complete"))
    words = ["--set", "coldstart.epochs=60"]
    for own in (one, two):
        asked = json.dumps([[*commands(own)["killed"], *words]])
        subprocess.run([sys.executable, DRIVER, str(own.path / "told"), asked], check=True)
    mine, others = of(one, "killed"), of(two, "killed")
    assert mine.summary["steps"] == others.summary["steps"] > kept
    weights, theirs = (load_file(run.checkpoint / "model.safetensors") for run in (mine, others))
    assert max(float((weights[key] - theirs[key]).abs().max()) for key in weights) < 1e-5


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_weights_divided_among_processes_are_refused(monkeypatch, kind):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(ConfigError, match=f"(?i){kind}, 2 processes.*clips are divided"):
        group.join("auto")


def test_a_device_by_number_is_refused_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="cuda:0.*2 processes.*GPU of its own number"):
        group.join("cuda:0")


def test_shares_are_even_and_come_back_in_order(monkeypatch):
    items = list(range(7))
    shares = [items[number::3] for number in range(3)]
    for number in range(3):
        monkeypatch.setattr(ranks, "_number", number)
        monkeypatch.setattr(ranks, "_count", 3)
        monkeypatch.setattr(ranks, "_exchange", lambda value: shares)
        assert ranks.share(items) == shares[number] and ranks.merged(shares[number]) == items


def test_many_writers_lose_no_file_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)

    def write(text: str) -> None:
        for number in range(10):
            disk.publish(lambda path: path.write_text(f"{text}{number}"), tmp_path, "part-{:03d}".format, 0)

    writers = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(path.read_text() for path in tmp_path.glob("part-*")) == [f"{t}{n}" for t in "ab" for n in range(10)]
