"""One command in two processes of torchrun: the same weights as in one, each clip's work done once, and no process left
behind when another is killed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import together
from embedded import TINY, Bench, lora_of, short_trace
from safetensors.torch import load_file

from deepintuit import cli, config, disk, ranks, runs, stage
from deepintuit.errors import ConfigError, StoreError
from deepintuit.vlm import group
from deepintuit.vlm.training import Watch

pytest_plugins = ["embedded"]

FAST = ("calibrate.traces=1", "calibrate.epochs=1", "calibrate.patience=1")


@pytest.fixture(scope="module")
def commands(bench, cold, tmp_path_factory):
    """By name, what both do: every stage that trains, whole weights and adapters. An update of `cold-full` has nine
    clips, in several parts, or one; a round of GRPO one or three."""
    teacher = bench.teach(short_trace, each=1, name="once").id
    lora, few = lora_of(cold), ("grpo.clips_per_step=3", "grpo.max_steps=2", "grpo.learning_rate=1e-3")
    sets = {
        "cold-full": (
            "model.tokens_per_pass=400",
            "coldstart.batch=9",
            "coldstart.epochs=2",
            "coldstart.learning_rate=3e-4",
        ),
        "cold-lora": (*lora, "coldstart.batch=6", "coldstart.epochs=1", "coldstart.learning_rate=1e-3"),
        "grpo-full": (*few, "grpo.objective=softmax_weighted", "grpo.clips_per_step=1"),
        "grpo-lora": (*lora, *few, "grpo.dynamic_sampling=true", "grpo.beta=0.1", "grpo.filter_rollouts=4"),
        "calibrate-full": (*FAST, "model.divide_weights=true", "model.tokens_per_pass=400"),
        "evaluate": (),
        "calibrate-lora": (*lora, *FAST),
        "killed": (
            "model.divide_weights=true",
            "model.tokens_per_pass=400",
            "coldstart.batch=5",
            "coldstart.epochs=10",
            "coldstart.save_steps=3",
        ),
    }
    more = {
        "cold": ("coldstart", "--teacher", teacher),
        "killed": ("coldstart", "--teacher", teacher),
        "grpo": ("grpo", "--start", cold.id),
        "calibrate": ("calibrate", "--reasoner", cold.id),
        "evaluate": ("evaluate", "--reasoner", cold.id),  # with the calibrator before it
    }

    videos = tmp_path_factory.mktemp("new")
    for number, row in enumerate(bench.manifest.usable("test").itertuples()):
        shutil.copy(row.path, videos / f"{number:02}.mp4")
    (videos / "broken.mp4").write_bytes(b"no video")

    def made(own: Bench) -> dict[str, list[str]]:
        found = {}
        for name, given in sets.items():
            words = [*more[name.split("-")[0]], "--config", str(TINY), "--quiet", "--name", name]
            words += ["--workbench", str(own.path)]  # the environment names each test's own
            words[2] = {"grpo-lora": "base", "calibrate-lora": "@cold-lora"}.get(name, words[2])
            found[name] = [*words, *(word for one in own.sets(*given) for word in ("--set", one))]
        place = ("--workbench", str(own.path), "--out", str(own.path / "answers.csv"))
        asked = f"predict {videos} --system @calibrate-full --name predict --quiet --jobs 1"
        killed = found.pop("killed")
        return {**found, "predict": [*asked.split(), *place], "killed": killed}

    return made


def copied(bench: Bench, folder: Path, cold) -> Bench:
    """With what the commands begin from, and none of the runs that other tests have made in the meantime."""
    own = bench.copy(folder)
    for run in (own.path / "runs").iterdir():
        if run.is_dir() and run.name != cold.id and not run.name.startswith("teach-"):
            shutil.rmtree(run)
    features = own.path / "cache"
    if features.exists():
        features.rename(folder.with_name(f"{folder.name} cache"))
    return own


@pytest.fixture(scope="module")
def both(bench, cold, commands, tmp_path_factory):
    """(bench, what it told) of one process, and of two, of which the second was killed in the last command; and what
    the launcher of those wrote."""
    root = tmp_path_factory.mktemp("ranks")
    one, two = (copied(bench, root / name, cold) for name in ("one", "two"))
    out = str(root / "told")
    alone = [name for name in commands(one) if name != "killed"]  # comes last
    together.work(f"{out}-1", one.path, commands(one).values())
    with patch.object(Watch, "on_step_end", stop):  # begun by one process, which leaves a checkpoint
        together.work(f"{out}-0", two.path, [commands(two)["killed"]])
    shutil.rmtree(two.path / "cache")
    refused = ["evaluate", "--reasoner", "baselines", *commands(two)["cold-full"][3:5], "--workbench", str(two.path)]
    asked = json.dumps([*(commands(two)[name] for name in alone), refused, commands(two)["killed"]])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", together.__file__, f"{out}-2"]
    with open(root / "said", "w+b") as said:
        torchrun = subprocess.Popen([*launch, two.path, asked], stderr=said)
        places = [f"training/checkpoint-{step}/complete" for step in range(6, 30, 3)]
        try:
            while torchrun.poll() is None and not any(
                (run / place).exists() for run in two.path.glob("runs/coldstart-killed-*") for place in places
            ):
                time.sleep(0.02)
            for child in children(torchrun.pid):
                if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    os.kill(child, signal.SIGKILL)
            torchrun.wait(timeout=120)
        finally:
            torchrun.terminate()
        said.seek(0)
        words = said.read().decode()
    told = {rank: json.loads(Path(f"{out}-{rank}").read_text()) for rank in ("1.0", "2.0", "2.1")}
    return one, two, alone, told, words


def stop(watch, args, state, control, **more) -> None:
    if state.global_step == 4:
        raise StoreError("the process stops", "the test says so", "Go on")


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def of(bench: Bench, name: str):
    return next(run for run in bench.workbench.runs() if run.about["name"] == name)


NAMES = ["cold-full", "cold-lora", "grpo-full", "grpo-lora", "calibrate-full", "calibrate-lora"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_what_one_does(both, cold, name):
    one, two, *_, said = both
    mine, others = of(one, name), of(two, name)
    assert mine.finished and others.finished, said
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_process_does_another_ones_work(both):
    one, two, alone, told, _ = both
    for place, name in enumerate(alone):
        whole, *halves = (told[rank][place]["tokens"] for rank in ("1.0", "2.0", "2.1"))
        assert sum(halves) == whole, "each prompt once: clips are divided, not rows"
        assert name in ("evaluate", "predict", "grpo-full") or min(halves) > 0
        mine, others = of(one, name), of(two, name)
        assert others.summary.get("tower_passes") == mine.summary.get("tower_passes")
        written = [len(pq.read_table(path)) for path in others.path.glob("traces-*.parquet")]
        assert sum(written) == len(others.read("traces")) == len(mine.read("traces"))
        assert set(others.read("traces")["text"]) == set(mine.read("traces")["text"])
    assert of(two, "cold-full").summary["tower_passes"] == of(two, "cold-full").summary["rows"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_evaluate_what_one_does(both):
    one, two, *_, said = both
    mine, others = of(one, "evaluate"), of(two, "evaluate")
    assert others.finished, said
    key = ["method", "control", "clip_id"]
    rows, same = (run.read("predictions").sort_values(key).reset_index(drop=True) for run in (mine, others))
    assert len(rows) > 100 and len(set(rows["control"])) > 3
    assert rows[[*key, "predicted", "farther_than"]].equals(same[[*key, "predicted", "farther_than"]])
    assert np.abs(np.stack(rows["probs"]) - np.stack(same["probs"])).max() < 1e-5
    noted = [run.read("scores").sort_values(["trace_id", "name"])["value"].tolist() for run in (mine, others)]
    assert noted[0] == noted[1] != []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_predict_what_one_does(both):
    one, two, *_ = both
    rows, same = (pd.read_csv(bench.path / "answers.csv").drop(columns="seconds") for bench in (one, two))
    assert len(rows) == 13 and rows["label"].notna().sum() == 12 and rows["reason"].notna().sum() == 1
    pd.testing.assert_frame_equal(rows, same, rtol=0, atol=1e-5)
    shares = [
        {*pq.read_table(path, columns=["clip_id"])["clip_id"].to_pylist()}
        for path in of(two, "predict").path.glob("predictions-*.parquet")
    ]
    assert len(shares) == 2 and not shares[0] & shares[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_stage_that_is_not_divided_is_refused_before_a_run_is_made(both):
    _, two, alone, told, said = both
    assert [told[rank][len(alone)]["code"] for rank in ("2.0", "2.1")] == [2, 2]
    assert [run.about["name"] for run in two.workbench.runs("evaluate")] == ["evaluate"]
    assert "begun by 2 processes" in said and "coldstart, grpo, calibrate" in said


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_process_ends_the_others_with_a_sentence_and_one_alone_goes_on(both, commands):
    one, two, _, told, said = both
    assert len(told["2.1"]) == len(told["1.0"]), "killed in its last command"
    assert "another of the 2 processes of this command has ended" in said
    assert said.count("Traceback") == 1, "the launcher's own"
    assert of(two, "killed").status != "finished"
    kept = max(int(path.parent.name[11:]) for path in two.path.glob("runs/*killed*/training/*/complete"))
    together.work(str(two.path / "told"), two.path, [commands(two)["killed"]])
    mine, others = of(one, "killed"), of(two, "killed")
    assert mine.summary["steps"] == others.summary["steps"] > kept
    weights, theirs = (load_file(run.checkpoint / "model.safetensors") for run in (mine, others))
    assert max(float((weights[key] - theirs[key]).abs().max()) for key in weights) < 1e-5


def test_weights_are_divided_in_full_fine_tuning_and_not_by_grpo(tmp_path):
    divided = config.load(None, ["model.divide_weights=true", "model.device=cpu"])
    with pytest.raises(ConfigError, match="(?s)grpo with model.divide_weights.*for every token.*divide_weights=false"):
        stage.perform(runs.Workbench(tmp_path / "none"), divided, "grpo", dict, sections=(), start=None)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="divide_weights = True with model.lora_rank = 8: an adapter is small"):
        divided.replace(model={"lora_rank": 8}).refuse_idle("coldstart")


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_weights_divided_among_processes_are_refused(monkeypatch, kind):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(ConfigError, match=f"(?i){kind}, 2 processes.*clips are divided"):
        group.join("auto")


@pytest.mark.parametrize(
    "words",
    [
        "serve RUN",
        "app",
        "teach",
        "attribute RUN",
        "plan",
        "report",
        "share OUT",
        "demo",
        "clips show",
        "review report",
    ],
)
def test_a_command_that_divides_nothing_is_refused_in_several_processes(monkeypatch, capsys, tmp_path, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("DEEPINTUIT_HOME", str(tmp_path / "none"))
    assert cli.main(words.split()) == 2
    said = capsys.readouterr().err
    assert f"`deepintuit {words.split()[0]}` started in 2 processes" in said and "Start it without torchrun" in said
    assert not (tmp_path / "none").exists()


def test_a_device_by_number_is_refused_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="cuda:0.*2 processes.*GPU of its own number"):
        group.join("cuda:0")


def test_dropout_goes_on_in_as_many_processes_as_it_was_begun_in(tmp_path):
    (tmp_path / "training").mkdir()
    begun = SimpleNamespace(id="coldstart-a", about={"processes": 2}, path=tmp_path)
    with pytest.raises(ConfigError, match="in 1 processes, and was begun in 2.*lora_dropout"):
        stage._refuse_other_count(begun, config.load(None, ["model.lora_dropout=0.1"]))
    stage._refuse_other_count(begun, config.load(None, []))
    stage._refuse_other_count(SimpleNamespace(about={}, path=tmp_path), config.load(None, ["model.lora_dropout=0.1"]))


def test_a_process_that_sees_another_workbench_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_APPEARS", 0.0)
    workbench = runs.Workbench(tmp_path)
    run = workbench.start_run("coldstart", {})
    assert workbench._joined(run.id, run.about["sessions"]).writable
    for run_id, sessions in ((run.id, [{"started": "on another machine"}]), ("coldstart-b", [])):
        with pytest.raises(StoreError, match="does not see the run.*a disk that all machines share"):
            workbench._joined(run_id, sessions)


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
            content = f"{text}{number}"
            disk.publish(lambda path, content=content: path.write_text(content), tmp_path, "part-{:03d}".format, 0)

    writers = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(path.read_text() for path in tmp_path.glob("part-*")) == [f"{t}{n}" for t in "ab" for n in range(10)]
