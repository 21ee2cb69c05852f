"""The command line: help everywhere, dry runs that leave nothing, a three-beat sentence and exit code 2 for whatever
is wrong."""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from deepintuit import cli, command, config, video
from deepintuit.data import Manifest
from deepintuit_analysis import Workbench

COMMANDS = ("teach", "coldstart", "grpo", "calibrate", "evaluate", "report", "demo")
VERBS = ("folder", "csv", "jsonl", "smarthome", "multihateclip", "homecam", "split", "show")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two class folders of six clips each, a table that names them, and a file that is no video."""
    root = tmp_path_factory.mktemp("videos")
    rows = []
    for label, number in itertools.product(("calm", "busy"), range(6)):
        (root / label).mkdir(exist_ok=True)
        shade = 20 * number + (10 if label == "busy" else 0)
        video.write_mp4(root / label / f"{number}.mp4", np.full((6, 96, 128, 3), shade, np.uint8), 6)
        rows.append(
            {"path": f"{label}/{number}.mp4", "label": label, "camera": f"{label}{number}", "title": f"clip {number}"}
        )
    (root / "calm" / "broken.mp4").write_bytes(b"not a video")
    with (root / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def imported(videos, tmp_path_factory):
    """A workbench with the dataset `tiny` and no run in it."""
    place = tmp_path_factory.mktemp("bench")
    assert (
        cli.main(
            ["clips", "folder", str(videos), "--name", "tiny", "--jobs", "1", "--quiet", "--workbench", str(place)]
        )
        == 0
    )
    return place


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setattr(cli.console, "width", 400)


def refused(capsys, *arguments: str) -> str:
    """What a wrong command says: exit code 2, one text of three beats on stderr, no traceback."""
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and len(said.strip()) > 20
    assert len([beat for beat in re.split(r"[:.;]\s|—|\n", said) if beat.strip()]) >= 3, said
    return said


@pytest.mark.parametrize(
    "words", [[], ["clips"], *([command] for command in COMMANDS), *(["clips", verb] for verb in VERBS)]
)
def test_every_command_explains_itself(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "usage: deepintuit" in said
    if words and words != ["clips"]:
        assert all(option in said for option in ("--config", "--set", "--seed", "--dry-run", "--workbench"))


def parsers(parser=None):
    parser = parser or cli._parser()
    verbs = getattr(parser, "verbs", None)
    return [parser, *(inner for verb in (verbs.choices.values() if verbs else ()) for inner in parsers(verb))]


def test_every_help_shows_an_example_that_is_understood_and_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for parser in parsers():
        words = parser.example.split()
        assert f"deepintuit {parser.example}".startswith(parser.prog), parser.prog
        cli._parser().parse_args(words)
        said = parser.format_help()
        assert f"example:\n  deepintuit {parser.example}\n" in said and max(map(len, said.splitlines())) <= 100
    assert len(parsers()) > 20


@pytest.mark.parametrize("stage", ["teach", "coldstart", "grpo", "calibrate", "evaluate"])
def test_the_help_of_a_stage_fits_a_screen_and_another_lists_its_settings(stage, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    brief = cli._parser().verbs.choices[stage].format_help()
    assert len(brief.splitlines()) <= 40 and f"`deepintuit {stage} --help-settings`" in " ".join(brief.split())
    with pytest.raises(SystemExit) as ended:
        cli.main([stage, "--help-settings"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for section, key, default, meaning in config.describe():
        if section in command.SECTIONS[stage]:
            shown = f"{key} = {json.dumps(default)}"
            assert f" {shown} " in said and " ".join(meaning.split()) in said, key
    assert said.index(f"[{stage}]") < said.index("[model]")


def test_importing_the_command_line_imports_no_torch():
    program = "import sys, deepintuit.cli; sys.exit(bool({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_the_program_ends_with_two_and_no_traceback():
    done = subprocess.run([sys.executable, "-m", "deepintuit.cli", "grpoo"], capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 2 and "Traceback" not in done.stderr and "deepintuit grpo" in done.stderr and not done.stdout
    )


@pytest.mark.parametrize(("arguments", "named"), [
    (["coldstrat"], "coldstart"),
    ([], "required"),
    (["grpo", "--frobnicate"], "--frobnicate"),
    (["clips", "foldr", "x"], "`deepintuit clips foldr`"),
    (["clips", "fodler"], "Did you mean 'folder'?"),
    (["review", "exprot", "a", "b"], "Did you mean 'export'?"),
    (["review", "export", "a", "b", "--form", "cvs"], "Did you mean 'csv'?"),
    (["teach", "--split", "tets"], "Did you mean 'test'?"),
    (["grpo", "--wrokbench=x"], "Did you mean '--workbench'?"),
    (["clips", "folder", "a", "b", "--name", "c"], "'b' is one word too many"),
    (["clips", "folder"], "required"),
    (["grpo", "--set", "grpo.learning_rat=1"], "learning_rate"),
    (["grpo", "--set", "nonsense"], "nonsense"),
    (["grpo", "--set", "grpo.group=many"], "whole number"),
    (["grpo", "--set", "grpo.group=1"], "at least 2"),
    (["grpo", "--config", "nowhere.toml"], "nowhere.toml"),
    (["grpo", "--seed", "-1"], "seed"),
    (["grpo", "--seed", "x"], "--seed"),
    (["app", "--port", "99999"], "argument --port: invalid port"),
    (["serve", "run", "--port", "-1"], "argument --port: invalid port"),
    (["demo", "--port", "65536"], "argument --port: invalid port"),
])  # fmt: skip
def test_wrong_words_get_a_sentence_that_names_what_was_meant(arguments, named, capsys, imported):
    place = ["--workbench", str(imported)] if arguments and arguments[0] == "grpo" else []
    assert named in refused(capsys, *arguments, *place)


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_a_workbench_without_clips_and_an_unknown_dataset_are_refused(command, capsys, tmp_path, imported):
    assert "clips" in refused(capsys, command, "--workbench", str(tmp_path / "empty"))
    said = refused(capsys, command, "--workbench", str(imported), "--set", "clips.dataset=tinny")
    assert "There is no dataset 'tinny'" in said and "Nearest: 'tiny'" in said
    assert not (tmp_path / "empty").exists(), "nothing is made by asking"


@pytest.mark.parametrize("arguments", [
    ["coldstart", "--teacher", "teach-nobody"], ["coldstart"], ["grpo"], ["grpo", "--start", "coldstart-nobody"],
    ["calibrate"], ["calibrate", "--reasoner", "nobody"], ["evaluate", "--reasoner", "nobody"], ["report"],
    ["report", "nobody"],
])  # fmt: skip
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_run_that_is_not_there_is_refused_and_none_begins(arguments, dry, capsys, imported):
    refused(capsys, *arguments, *dry, "--workbench", str(imported))
    assert not Workbench(imported).runs()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_run_of_another_stage_is_refused_before_anything_begins(dry, capsys, imported, tmp_path):
    workbench = Workbench(shutil.copytree(imported, tmp_path / "workbench"))
    runs = {}
    for stage in ("teach", "coldstart", "calibrate"):
        with workbench.start_run(stage, {}, dataset="tiny") as run:
            runs[stage] = run.id
    for arguments in (
        ["coldstart", "--teacher", runs["coldstart"]],
        ["grpo", "--start", runs["teach"]],
        ["calibrate", "--reasoner", runs["calibrate"]],
        ["evaluate", "--reasoner", runs["coldstart"], "--calibrator", runs["coldstart"]],
        ["report", runs["calibrate"]],
    ):
        assert "of the stage" in refused(capsys, *arguments, "--workbench", str(workbench.path), *dry)
    assert {run.id for run in workbench.runs()} == {*runs.values()}


@pytest.mark.parametrize("arguments", [
    ["teach", "--set", "teach.source=homecam"],
    ["coldstart", "--set", "coldstart.target=label", "--set", "model.path=embedded:homecam"],
    ["evaluate", "--reasoner", "zero-shot", "--set", "model.path=embedded:homecam"],
    ["evaluate", "--reasoner", "baselines"], ["demo"],
])  # fmt: skip
def test_a_dry_run_shows_settings_and_leaves_nothing(arguments, capsys, imported, wide):
    before = sorted(imported.rglob("*"))
    assert cli.main([*arguments, "--dry-run", "--seed", "7", "--workbench", str(imported)]) == 0
    said = capsys.readouterr().out
    assert "seed = 7" in said and "Nothing was run" in said
    assert sorted(imported.rglob("*")) == before


def test_a_dry_run_counts_the_clips_that_would_be_used(capsys, imported, wide):
    words = ["--set", "coldstart.target=label", "--set", "model.path=embedded:homecam", "--workbench", str(imported)]
    cli.main(["coldstart", "--dry-run", *words])
    count, said = len(Manifest.load(imported, "tiny").usable("coldstart")), capsys.readouterr().out
    assert f"coldstart: {count} usable clips" in said
    assert "trained" in said and "peak of losses" in said and "GRPO" not in said, "its own plan"
    for system in ("encoder", "probe"):
        assert cli.main(["evaluate", "--reasoner", system, "--dry-run", *words]) == 0
        assert "peak of" not in capsys.readouterr().out, "a reasoner's plan is not that of what stands beside it"


def test_a_dry_run_says_why_memory_is_not_known(capsys, imported, tmp_path, wide):
    words = ["--set", "coldstart.target=label", "--set", f"model.path={tmp_path}", "--workbench", str(imported)]
    assert cli.main(["coldstart", "--dry-run", *words]) == 0
    assert "Memory is not known before: " in capsys.readouterr().out


def test_a_folder_is_imported_divided_and_shown(imported, capsys, wide):
    manifest = Manifest.load(imported, "tiny")
    assert (
        len(manifest.usable()) == 12 and manifest.labels.labels and set(manifest.usable()["label"]) == {"calm", "busy"}
    )
    assert set(manifest.usable()["split"]) == {"coldstart", "grpo", "calibration", "validation", "test"}
    assert cli.main(["clips", "show", "tiny", "--workbench", str(imported)]) == 0
    said = capsys.readouterr().out
    assert "broken.mp4: not_a_video" in said and "calm" in said


def test_a_table_is_imported_with_its_groups_and_texts(videos, tmp_path):
    arguments = ["clips", "csv", str(videos / "clips.csv"), "--name", "table", "--group", "camera", "--text", "title"]
    assert cli.main([*arguments, "--jobs", "1", "--quiet", "--workbench", str(tmp_path)]) == 0
    manifest = Manifest.load(tmp_path, "table")
    assert len(manifest.usable()) == 12 and manifest.usable()["group"].nunique() == 12
    assert next(iter(manifest.text_fields(("title",)).values()))["title"].startswith("clip")


def test_a_dry_import_opens_no_video_and_saves_nothing(videos, tmp_path, capsys):
    place = tmp_path / "bench"
    assert cli.main(["clips", "folder", str(videos), "--name", "dry", "--dry-run", "--workbench", str(place)]) == 0
    assert "Nothing was imported" in capsys.readouterr().out and not place.exists()


def test_splits_follow_the_seed_and_a_dry_one_is_not_saved(videos, tmp_path):
    place = ["--workbench", str(tmp_path)]
    cli.main(["clips", "folder", str(videos), "--name", "tiny", "--jobs", "1", "--quiet", *place])

    def splits() -> list[str]:
        return list(Manifest.load(tmp_path, "tiny").frame.sort_values("clip_id")["split"].fillna(""))

    first = splits()
    assert cli.main(["clips", "split", "tiny", "--seed", "3", "--dry-run", *place]) == 0
    assert splits() == first
    assert cli.main(["clips", "split", "tiny", "--seed", "3", *place]) == 0
    third = splits()
    assert third != first
    assert cli.main(["clips", "split", "tiny", "--seed", "0", *place]) == 0
    assert splits() == first


def test_homecam_clips_are_rendered_and_imported(tmp_path, capsys):
    arguments = [
        "clips",
        "homecam",
        "--train",
        "12",
        "--test",
        "3",
        "--jobs",
        "1",
        "--quiet",
        "--workbench",
        str(tmp_path / "w"),
    ]
    assert cli.main([*arguments, "--dry-run"]) == 0 and not (tmp_path / "w").exists()
    assert cli.main(arguments) == 0
    assert len(Manifest.load(tmp_path / "w", "homecam").usable()) == 15


@pytest.mark.parametrize(
    "arguments", [["folder", "nowhere"], ["csv", "nowhere.csv"], ["split", "nothing"], ["show", "nothing"]]
)
def test_an_import_of_what_is_not_there_is_refused(arguments, tmp_path, capsys):
    name = ["--name", "x"] if arguments[0] in ("folder", "csv") else []
    refused(capsys, "clips", *arguments, *name, "--workbench", str(tmp_path / "w"))
    assert not (tmp_path / "w" / "clips").exists()


def test_the_whole_way_through_baselines_and_report(imported, capsys, tmp_path, wide):
    place = tmp_path / "own"
    import shutil

    shutil.copytree(imported, place)
    arguments = ["--workbench", str(place), "--quiet"]
    assert cli.main(["evaluate", "--reasoner", "baselines", *arguments]) == 0
    (run,) = Workbench(place).runs("evaluate")
    assert run.finished
    assert cli.main(["report", "--dry-run", *arguments]) == 0
    capsys.readouterr()
    assert cli.main(["report", *arguments]) == 0
    assert "majority" in capsys.readouterr().out


@pytest.fixture
def others(tmp_path):
    """The command line beside another package with a command that works and one that cannot be loaded."""
    (tmp_path / "other-1.dist-info").mkdir()
    (tmp_path / "other-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    points = "[deepintuit.commands]\ngreet = greeting:add\nbroken = greeting:gone\nclips count = greeting:add_count\n"
    (tmp_path / "other-1.dist-info" / "entry_points.txt").write_text(points)
    (tmp_path / "greeting.py").write_text(
        "def add(verbs, name='greet'):\n"
        "    parser = verbs.add_parser(name, help='says hello', example='greet')\n"
        "    parser.set_defaults(run=lambda options: print('hello'))\n\n\n"
        "def add_count(verbs):\n    add(verbs, 'count')\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*words: str):
        command = [sys.executable, "-m", "deepintuit.cli", *words]
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return run


def test_a_package_brings_a_command_and_one_that_cannot_be_loaded_costs_itself_alone(others):
    assert others("greet").stdout == others("clips", "count").stdout == "hello\n"
    broken = others("broken", "--what", "ever")
    assert broken.returncode == 2 and "`deepintuit broken` cannot be loaded" in broken.stderr
    assert "Traceback" not in broken.stderr and "gone" in broken.stderr
    said = others("--help").stdout
    assert re.search(r"evaluate .*report .*review .*demo .*app .*broken .*greet .*says hello", said, re.DOTALL)
    assert "Did you mean 'greet'?" in others("gret").stderr and others("clips", "--help").returncode == 0


def test_a_command_whose_package_is_not_there_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    assert "`deepintuit report` cannot be loaded" in refused(capsys, "report", "--dry-run", "x", "y")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
