"""A run stands on its parent's settings: what is not given is taken from it, another question is refused, and other
frames stand in every table."""

import re

import pytest
from embedded import short_trace

from deepintuit import calibrate, cli, coldstart, config, evaluate, grpo
from deepintuit.errors import ConfigError
from deepintuit.labels import LabelSet
from deepintuit.reasoner import inherited
from deepintuit_analysis import Workbench

pytest_plugins = ["embedded"]

BARE = ("clips.dataset=homecam", "calibrate.traces=2", "evaluate.controls=false", "sampling.clips_per_batch=8")


def bare(bench, *sets: str):
    """Settings that name the dataset and nothing of the model, the prompt or the frames."""
    return config.load(None, [f"workbench={bench.path}", *BARE, *sets])


def test_a_forgotten_config_file_changes_neither_the_numbers_nor_what_the_run_is(bench, cold):
    whole = evaluate.run(bench.workbench, bench.settings("evaluate.controls=false"), reasoner=cold.id, progress=False)
    again = evaluate.run(bench.workbench, bare(bench), reasoner=cold.id, progress=False)
    assert again.id == whole.id and again.config["prompt"]["style"] == "brief"


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("prompt.grammar=observation-think-answer", "prompt.grammar = 'observation-think-answer'"),
        ("prompt.style=full", "prompt.style = 'full'"),
        ("clips.text_fields=title", "clips.text_fields = ['title']"),
    ],
)
def test_another_question_than_the_model_was_taught_is_refused_by_every_stage(bench, cold, given, asked):
    known = len(bench.workbench.runs())
    for stage in (
        lambda s: evaluate.run(bench.workbench, s, reasoner=cold.id, progress=False),
        lambda s: grpo.run(bench.workbench, s, start=cold.id, progress=False),
        lambda s: calibrate.run(bench.workbench, s, reasoner=cold.id, progress=False),
    ):
        for settings in (bench.settings(given), bare(bench, given)):
            with pytest.raises(ConfigError) as refused:
                stage(settings)
            assert asked in refused.value.what and cold.id in refused.value.what
    assert len(bench.workbench.runs()) == known, "nothing was begun"


def test_a_question_given_at_its_default_is_given(bench, cold):
    with pytest.raises(ConfigError, match="prompt.style = 'full'"):
        inherited(bench.workbench, bare(bench, "prompt.style=full"), cold.id)
    assert inherited(bench.workbench, bare(bench), cold.id)[0].prompt.style == "brief"


def test_other_frames_stand_in_every_table_and_in_the_run(bench, cold):
    run = evaluate.run(bench.workbench, bare(bench, "video.frames=6"), reasoner=cold.id, progress=False)
    assert run.about["departs"] == ["video.frames 4 → 6"]
    assert set(run.read("predictions")["system"]) == {"cold start (video.frames 4 → 6)"}
    assert max(map(len, run.read("traces")["frame_indices"])) == 6


def test_a_cold_start_is_asked_as_its_teacher_was(bench, tmp_path):
    own = bench.copy(tmp_path / "own")
    with own.workbench.start_run("teach", {"prompt": {"grammar": "answer-think-answer", "style": "brief"}}) as run:
        run.finish({})
    settings, _ = inherited(own.workbench, bare(own), run.id)
    assert (settings.prompt.grammar, settings.prompt.style) == ("answer-think-answer", "brief")
    with pytest.raises(ConfigError, match="prompt.grammar = 'observation-think-answer'"):
        given = own.settings("prompt.grammar=observation-think-answer")
        coldstart.run(own.workbench, given, teacher=run.id, progress=False)


def test_another_label_set_is_refused_and_named(bench, cold, tmp_path):
    labels = bench.manifest.labels
    first, *others = labels
    other = LabelSet(labels.name, ("burglary", *others), {}, {first: "burglary"})
    (tmp_path / "labels.toml").write_text(other.dumps())
    assert cold.about["asked"]["labels"] == list(labels)
    with pytest.raises(ConfigError, match="burglary"):
        inherited(bench.workbench, bare(bench, f"clips.labels={tmp_path / 'labels.toml'}"), cold.id)


def test_a_calibrator_of_another_question_is_refused(bench, cold, tmp_path):
    own = bench.copy(tmp_path / "own")
    with own.workbench.start_run("calibrate", {"prompt": {"style": "full"}}, parent=cold.id) as other:
        other.finish({})
    with pytest.raises(ConfigError, match=f"prompt.style = 'brief' on {other.id}"):
        inherited(own.workbench, bare(own), cold.id, other.id)


def test_a_run_that_does_not_say_how_it_was_made_is_taken_as_it_comes(bench):
    teacher = bench.teach(short_trace)
    assert inherited(bench.workbench, bare(bench), teacher.id) == (bare(bench), [])


def test_settings_that_came_later_are_no_part_of_a_run_at_their_defaults():
    kept = config.load().decisive()
    assert "warmup_share" not in kept["grpo"] and "max_tokens" not in kept["video"]
    assert config.load(None, ["grpo.warmup_share=1"]).decisive()["grpo"]["warmup_share"] == 1


def test_a_dry_run_shows_what_is_inherited(bench, cold, capsys):
    place = [f"--workbench={bench.path}", "--set=clips.dataset=homecam", f"--start={cold.id}", "--dry-run"]
    assert cli.main(["grpo", *place, "--set=video.frames=6"]) == 0
    said = capsys.readouterr().out
    assert "video.frames 4 → 6" in said and 'style = "brief"' in said
    assert re.search(r"GRPO: 1 update of \d+ clips", said) and "Warning: so few updates" in said
    assert cli.main(["grpo", *place, "--set=prompt.style=full"]) == 2
    assert Workbench(bench.path).run(cold.id).finished
