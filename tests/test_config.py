"""Settings: defaults are the paper, departures are few, and nothing impossible gets in."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepintuit import config
from deepintuit.errors import ConfigError
from deepintuit.trace import GRAMMARS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


def test_the_defaults_are_the_papers_settings():
    default = config.Config()
    assert (default.video.frames, default.video.max_pixels) == (32, 256 * 28 * 28)
    assert (default.coldstart.learning_rate, default.coldstart.epochs, default.coldstart.batch) == (2e-5, 5, 64)
    grpo = default.grpo
    assert (grpo.group, grpo.clips_per_step, grpo.learning_rate, grpo.warmup_steps) == (8, 64, 1e-6, 10)
    assert (grpo.epsilon_low, grpo.epsilon_high, grpo.beta, grpo.weight_decay) == (0.2, 0.28, 0.0, 0.1)
    calibrate = default.calibrate
    assert (calibrate.traces, calibrate.learning_rate, calibrate.epochs, calibrate.batch) == (4, 2e-5, 10, 256)


def test_no_departures_from_the_defaults():
    assert config.load().departures() == {}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_in_the_repository_loads_and_departs_from_the_defaults(path):
    loaded = config.load(path)
    assert loaded.departures()
    assert config.loads(loaded.dumps()) == loaded


def test_the_papers_config_turns_off_what_this_project_added_by_default():
    paper = config.load(CONFIGS[0].parent / "paper.toml")
    assert paper.calibrate.patience == 0 and not paper.calibrate.greedy_trace and not paper.calibrate.shuffle_labels
    assert paper.grpo == config.GrpoConfig(warmup_share=1.0)


def test_a_file_then_each_assignment_in_order(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("seed = 3\n[grpo]\ngroup = 4\ntau = 2\n")
    loaded = config.load(path, ["grpo.group=6", "grpo.group=16", "prompt.style=brief", "clips.text_fields=title, asr"])
    assert loaded.departures() == {
        "seed": 3,
        "grpo": {"group": 16, "tau": 2.0},
        "prompt": {"style": "brief"},
        "clips": {"text_fields": ["title", "asr"]},
    }
    assert isinstance(loaded.grpo.tau, float)


@pytest.mark.parametrize(
    "assignment, value",
    [
        ("model.path=7", "7"),
        ("model.path=true", "true"),
        ('model.path="a=b"', "a=b"),
        ("model.path=a=b", "a=b"),
        ("model.path=", ""),
        ("model.path=x\nseed = 3", "x\nseed = 3"),
    ],
)
def test_a_text_setting_takes_any_word(assignment, value):
    loaded = config.load(None, [assignment])
    assert loaded.model.path == value and loaded.seed == 0


@pytest.mark.parametrize(
    "assignment, says",
    [
        ("grpo.lr=1e-6", "Nearest: grpo.learning_rate"),
        ("grpo.goup=3", "Nearest: grpo.group"),
        ("gpro.group=3", "Nearest: grpo"),
        ("frames=4", "It is video.frames"),
        ("seed.x=1", "one value, not a section"),
        ("grpo=3", "a section, not a value"),
        ("grpo.group", "no key and value"),
        ("grpo.a.b=1", "no key and value"),
        ("=1", "no key and value"),
        ("grpo.group=1", "grpo.group = 1: it must be at least 2"),
        ("grpo.group=x", "it must be a whole number"),
        ("grpo.group=4.0", "it must be a whole number"),
        ("grpo.group=true", "it must be a whole number"),
        ("grpo.tau=0", "it must be above 0"),
        ("grpo.tau=nan", "it must be above 0"),
        ("grpo.beta=inf", "it must be at least 0"),
        ("grpo.tau=[1]", "it must be a number"),
        ("grpo.dynamic_sampling=1", "it must be true or false"),
        ("grpo.objective=dappo", "one of dapo, softmax_weighted, grpo. Nearest: 'dapo'"),
        ("clips.text_fields=[1]", "it must be a list of texts"),
        ("evaluate.split=train", "one of coldstart, grpo, calibration, validation, test"),
        ("seed=-1", "seed = -1: it must be at least 0"),
        ("grpo.overlong_cache=4000", "grpo.max_tokens is 2048"),
        ("grpo.filter_rollouts=1", "no clip would be left"),
        ("grpo.perception_min=400", "grpo.perception_max is only 320"),
        ("grpo.reasoning_max=9", "grpo.reasoning_max is only 9"),
        ("grpo.epochs=0", "it must be above 0"),
        ("grpo.temperature=0", "it must be above 0"),
        ("sampling.top_p=0", "it must be above 0"),
        ("clips.grpo_share=0.9", "must sum to 1"),
        ("video.max_pixels=10", "video.max_pixels is only 10"),
        ("clips.test_share=0.9", "nothing would be left"),
        ("coldstart.splits=test", "only coldstart, grpo and calibration clips are trained on"),
        ("coldstart.splits=coldstart,gpro", "Nearest: 'grpo'"),
        ("coldstart.splits=coldstart,grpo", 'Set coldstart.target = "label"'),
        ("coldstart.splits=grpo", "teacher traces belong to the cold-start split"),
    ],
)
def test_an_impossible_setting_is_refused_with_what_is_possible(assignment, says):
    with pytest.raises(ConfigError) as caught:
        config.load(None, [assignment])
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["grpo = 3", "[grpo]\nlr = 1", "[seed]\nx = 1", "x", "[model.path]\na = 1"])
def test_a_bad_file_is_refused_with_a_sentence(tmp_path, text):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        config.load(path)


def test_labels_alone_may_be_trained_on_all_clips_that_any_stage_trains_on():
    loaded = config.load(None, ["coldstart.splits=coldstart,grpo,calibration", "coldstart.target=label"])
    assert loaded.coldstart.splits == ("coldstart", "grpo", "calibration")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.toml"):
        config.load(tmp_path / "nowhere.toml")


def test_a_section_made_by_hand_is_checked_too():
    with pytest.raises(ConfigError):
        config.GrpoConfig(group=1)
    with pytest.raises(ConfigError):
        dataclasses.replace(config.Config(), seed="x")


def test_the_hash_sees_the_named_sections_only_and_never_the_workbench():
    one, other = config.load(None, ["grpo.group=4"]), config.load(None, ["workbench=elsewhere"])
    default = config.load()
    assert one.hash() != default.hash() and one.hash("model", "seed") == default.hash("model", "seed")
    assert other.hash() == default.hash()
    assert default.hash("grpo", "model") == default.hash("model", "grpo")
    with pytest.raises(ConfigError):
        default.hash("gpro")


def test_settings_that_only_cost_are_told_apart_from_those_that_decide():
    dear = config.load(None, ["model.tokens_per_pass=1", "video.cache_gib=0", "sampling.clips_per_batch=1"])
    assert dear.decisive() == config.load().decisive() != config.load(None, ["sampling.max_tokens=7"]).decisive()
    assert "tokens_per_pass" in dear.to_dict()["model"] and "tokens_per_pass" not in dear.decisive()["model"]


def test_settings_that_came_later_leave_runs_of_before_what_they_were():
    """The hash of all default settings that decide, as the first workbenches have them: a new one is `added`."""
    told = {name: settings for name, settings in config.load().decisive().items() if name != "workbench"}
    assert hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16] == "7ed37fcc95b5afa8"


def test_the_workbench_comes_from_the_environment_where_it_is_not_set(monkeypatch):
    monkeypatch.setenv("DEEPINTUIT_HOME", "from-home")
    assert config.load().workbench == "from-home" and config.load().departures() == {}
    assert config.load(None, ["workbench=mine"]).workbench == "mine"
    monkeypatch.delenv("DEEPINTUIT_HOME")
    assert config.load().workbench == "./workbench"


def test_every_setting_says_what_it_means():
    rows = config.describe()
    assert all(meaning for _, _, _, meaning in rows)
    known = {(section, key) for section, key, _, _ in rows}
    content = config.Config().to_dict()
    nested = {(name, key) for name, part in content.items() if isinstance(part, dict) for key in part}
    assert known == nested | {("", "seed"), ("", "workbench"), ("", "report_to")}


def test_the_grammars_to_choose_from_are_the_parsers():
    assert config.GRAMMAR_NAMES == tuple(GRAMMARS)


def _drawn(name, hint, limits):
    """Values inside the limits of a field; where fields are checked together, those that all others allow."""
    if name == "splits":
        return st.just(("coldstart",))
    if limits["choices"]:
        return st.sampled_from(limits["choices"])
    if hint == "bool":
        return st.booleans()
    if hint == "int":
        return st.integers(int(max(limits["low"], -9)), int(min(limits["high"], 10**6)))
    if hint == "float":
        low = max(limits["low"], limits["above"], 0.0)
        return st.floats(low, min(limits["high"], 1e6), exclude_min=limits["above"] >= low)
    if hint == "str":
        return st.text(st.characters(exclude_categories=["Cs"]))
    return st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple)


@pytest.mark.parametrize("name", ["model", "sampling", "teach", "coldstart", "calibrate", "evaluate", "prompt"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_possible_settings_survive_being_written_and_read(name, data):
    kind = type(getattr(config.Config(), name))
    fields = dataclasses.fields(kind)
    values = {field.name: data.draw(_drawn(field.name, field.type, field.metadata)) for field in fields}
    made = config.Config(**{name: kind(**values)})
    assert config.loads(made.dumps()) == made
    assert config.loads(made.dumps()).hash() == made.hash()


def test_settings_and_words_load_without_torch():
    modules = "errors, labels, trace, prompts, config, rewards, advantage"
    heavy = "{'torch', 'transformers', 'trl', 'peft', 'pandas'}"
    code = f"import sys; from deepintuit import {modules}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
