"""The household as a benchmark for any model: `datasets` reads the folder, lmms-eval's functions score it."""

import filecmp
import importlib.util
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from datasets import Video, load_dataset
from huggingface_hub import DatasetCard

from deepintuit import cli, labels
from deepintuit.errors import ConfigError
from deepintuit_homecam import benchmark, demo, household
from deepintuit_homecam.policies import LABELS, POLICIES

COUNTS = {"train": 8, "test": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "household"
    assert cli.main(["benchmark", str(out), "--train=8", "--test=3", "--jobs=1", "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def task(folder):
    """The functions that the task names, as lmms-eval loads them: from the file, without this package's import."""
    path = folder / "lmms_eval" / "scoring.py"
    assert "deepintuit." not in path.read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("scoring", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / split / "metadata.jsonl").open(encoding="utf-8")]


def test_datasets_loads_the_clips_and_rows_that_the_world_has(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    splits = load_dataset(str(folder), cache_dir=str(tmp_path))
    assert {split: len(clips) for split, clips in splits.items()} == {
        split: len(list((folder / split).glob("*.mp4"))) for split in ("train", "validation", "test")
    }
    plans = [household._plan(part, n, 0) for part, count in COUNTS.items() for n in range(count)]
    named = {Path(plan["path"]).name: plan for plan in plans}
    homes = {}
    for split, clips in splits.items():
        for row in clips.cast_column("video", Video(decode=False)):
            path = Path(row["video"]["path"])
            plan = named.pop(path.name)
            assert path.is_file() and row["label"] == plan["label"] and row["home"] == plan["home"].name
            assert row["slice"] == plan["notes"]["slice"] and row["facts"]["who"] == plan["facts"].who
            assert {label: p for label, p in row["odds"].items() if p} == json.loads(plan["notes"]["odds"])
            assert list(row["odds"]) == list(LABELS) and (split == plan["part"] or split == "validation")
            homes.setdefault(row["home"], set()).add(split)
    assert not named and all(len(splits) == 1 for splits in homes.values())
    assert min(row["frames"] for split in splits for row in rows(folder, split)) >= 8
    assert {row["stage"] for row in rows(folder, "train")} == {"coldstart", "grpo", "calibration"}


def test_the_card_is_one_that_the_hub_reads_and_names_nothing_of_this_machine(folder):
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and card.data.task_categories == ["video-classification"]
    assert [split["path"] for split in card.data.configs[0]["data_files"]] == ["train/*", "validation/*", "test/*"]
    sizes = {split["name"]: (split["num_examples"], split["num_bytes"]) for split in card.data.dataset_info["splits"]}
    for split, size in sizes.items():
        files = list((folder / split).glob("*.mp4"))
        assert size == (len(files), sum(path.stat().st_size for path in files))
    assert "deepintuit benchmark OUT --seed 0 --train 8 --test 3" in card.text
    assert all(policy.words in card.text for policy in POLICIES)
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix not in ("", ".mp4")]
    assert not [text for text in texts if str(folder.parent) in text]


def test_an_answer_is_right_wrong_an_alias_or_none(task, folder):
    doc = rows(folder, "test")[0] | {"label": "theft", "slice": "at a glance", "home": "h"}

    def scores(answer: str) -> tuple[float, ...]:
        of = task.process_results(doc, [answer])
        assert {"accuracy", "accuracy_at_a_glance", "no_answer"} == set(of)
        assert of["accuracy"] == of["accuracy_at_a_glance"] and of["accuracy"]["home"] == "h"
        return of["accuracy"]["score"], of["no_answer"]["score"]

    assert scores("theft") == scores(' "Theft." ') == scores("Package  theft") == (1, 0)
    assert scores("intrusion") == scores("trespass") == (0, 0)
    assert scores("the label is theft") == scores("thef") == scores("") == scores("theft, intrusion") == (0, 1)
    assert task.mean([{"score": 1.0}, {"score": 0.0}]) == 0.5
    assert task.doc_to_visual(doc) == [str(folder.resolve() / "test" / doc["file_name"])]


def test_the_prompt_says_every_policy_in_its_order_and_every_label(task):
    lines = task.doc_to_text({}, {}).splitlines()
    policies = [line.split(". ", 1)[1] for line in lines if line[0].isdigit()]
    assert policies == [f"{max(p.odds, key=p.odds.get)}: {p.words}" for p in POLICIES]
    assert all(label in lines[0] for label in LABELS) and lines[-1].startswith("Answer with one label")


@pytest.mark.parametrize(
    "answer", ["THEFT", "\u00abtheft\u00bb", "\tpet!\n", "pet pet", "the\u017ft", "\u201cTrespass\u201d.", "none", ""]
)
def test_answers_are_read_as_labels_are(task, answer):
    assert task.label_of(answer) == (LABELS.resolve(answer) or labels.NONE_LABEL)


def test_the_task_names_functions_that_are_there_and_a_metric_for_each_slice(task, folder):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: getattr(task, node.value.removeprefix("scoring.")))
    path = folder / "lmms_eval" / "deepintuit_household.yaml"
    about = yaml.load(path.read_text(encoding="utf-8"), Loader)
    assert (path.parent / about["dataset_kwargs"]["data_files"]["test"]).is_file()
    metrics = {entry["metric"] for entry in about["metric_list"]}
    assert metrics == {"accuracy", "no_answer"} | {f"accuracy_{name.replace(' ', '_')}" for name in household.SLICES}
    assert all(entry["aggregation"] is task.mean for entry in about["metric_list"])
    assert benchmark.TESTS.keys() == household.SLICES.keys()


def test_best_rates_are_those_of_one_who_knows_the_odds():
    opinion, sure = {"routine": 0.7, "emergency": 0.3, "theft": 0.0}, {"routine": 0.0, "emergency": 0.0, "theft": 1.0}
    clips = pd.DataFrame(
        [("noise", "routine", opinion)] * 2 + [("noise", "emergency", opinion)] * 2 + [("plain", "theft", sure)] * 4,
        columns=["slice", "label", "odds"],
    )
    entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
    drawn = -(math.log(0.7) + math.log(0.3)) / 2
    names = ("clips", "best_accuracy", "best_nll", "drawn_accuracy", "drawn_nll", "majority")
    rates = {name: [of[key] for key in names] for name, of in benchmark.rates_of(clips, "routine").items()}
    assert rates["noise"] == pytest.approx([4, 0.7, entropy, 0.5, drawn, 0.5]) and entropy == pytest.approx(
        0.611, abs=5e-4
    )
    assert rates["plain"] == pytest.approx([4, 1, 0, 1, 0, 0])
    assert rates["all"] == pytest.approx([8, 0.85, entropy / 2, 0.75, drawn / 2, 0.25])
    assert list(rates) == ["plain", "noise", "all"]


def test_the_same_command_writes_the_same_bytes_and_renders_no_clip_twice(folder, tmp_path, monkeypatch):
    out = tmp_path / "again"
    out.mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(benchmark, "_fill", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        benchmark.write(out, progress=False, **COUNTS)
    assert not any(out.iterdir()), "whole or not at all"
    monkeypatch.setattr("deepintuit_homecam.clips.render", None)  # all are there
    benchmark.write(out, progress=False, **COUNTS)
    files = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    assert filecmp.cmpfiles(folder, out, files, shallow=False) == (files, [], [])
    assert [path.name for path in tmp_path.iterdir()] == ["again"], "nothing is left beside it"
    benchmark.write(out, progress=False, **COUNTS)  # is there


def test_what_is_there_is_not_lost(folder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for out, train, why in ((tmp_path, 8, "it is not empty"), (folder, 9, "--train 8 --test 3 at version")):
        with pytest.raises(ConfigError, match=why):
            benchmark.write(out, train=train, test=3, progress=False)
    for damage in ('{"origin": 3}', "[]", "{", '{"origin": {"command": 1}}'):
        (tmp_path / "benchmark.json").write_text(damage)
        with pytest.raises(ConfigError, match="it is not empty"):
            benchmark.write(tmp_path, progress=False, **COUNTS)
    assert cli.main(["benchmark", str(tmp_path), "--train=7"]) == 2 and "7 clips" in capsys.readouterr().err
    for option in ("benchmark new", "clips homecam", "clips folder videos --name v", "predict v --system r"):
        assert cli.main([*option.split(), "--jobs=0"]) == 2 and "positive value: '0'" in capsys.readouterr().err
    assert cli.main(["benchmark", str(tmp_path / "new"), "--dry-run"]) == 0 and not (tmp_path / "new").exists()
    (clip := folder / "test" / rows(folder, "test")[0]["file_name"]).rename(tmp_path / "clip.mp4")
    with pytest.raises(ConfigError, match=f"1 of its clips are gone, {clip.name} first"):
        benchmark.write(folder, progress=False, **COUNTS)


def test_its_usual_numbers_are_those_of_the_tables():
    options = cli._parser().parse_args(["benchmark", "out"])
    assert (options.train, options.test) == demo.SIZES["household"]
    fewest = [seconds[0] * min(fps) for seconds, fps in household._SPEEDS.values()]
    assert min(fewest) >= 8, "frames that every clip has"
