"""The household: labels are its policies in plain words, and each slice holds what it says."""

import csv
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import deepintuit_homecam as homecam
from deepintuit import cli, config, schedule, teach, worlds
from deepintuit.data import Manifest
from deepintuit.prompts import calibrator_prompt
from deepintuit.trace import Trace, parse
from deepintuit_analysis import Workbench
from deepintuit_homecam import commands, demo, draw, household, household_teacher
from deepintuit_homecam.policies import LABELS, POLICIES, Facts, decided, odds, with_idle_box
from deepintuit_homecam.scene import ACTORS, ACTS, LIGHTS, PLACES, scripts
from deepintuit_homecam.witness import Errors, observation

SCENES = [
    Facts(light, place, who, act, states, "clear")
    for light, place, who, act in itertools.product(LIGHTS, PLACES, ACTORS, ACTS)
    for states in scripts(act)
]
PERFECT = {"errors": Errors.none(), "knows": 1.0}


def plans(part: str, count: int, seed: int = 0) -> list[dict]:
    return [household._plan(part, number, seed) for number in range(count)]


@pytest.fixture(scope="module")
def test_plans() -> list[dict]:
    return plans("test", 2000)


@pytest.mark.parametrize(("light", "place", "who", "act", "box", "label"), [
    ("night", "kitchen", "dog", "takes", None, "animal"),
    ("day", "yard", "child", "falls", False, "routine"),  # at play
    ("night", "yard", "child", "falls", False, "emergency"),
    ("day", "porch", "child", "falls", True, "emergency"),
    ("night", "porch", "stranger", "falls", False, "emergency"),
    ("day", "porch", "courier", "takes", None, "routine"),  # collected
    ("night", "porch", "courier", "takes", None, "theft"),
    ("day", "porch", "stranger", "takes", None, "theft"),
    ("day", "garage", "child", "takes", None, "routine"),
    ("night", "porch", "courier", "brings", None, "delivery"),  # a late round
    ("night", "yard", "courier", "brings", None, "intrusion"),
    ("day", "kitchen", "courier", "brings", None, "intrusion"),
    ("day", "yard", "stranger", "brings", None, "delivery"),
    ("night", "garage", "resident", "brings", None, "delivery"),
    ("day", "porch", "stranger", "lingers", False, "routine"),
    ("day", "porch", "stranger", "lingers", True, "intrusion"),
    ("day", "yard", "courier", "passes", True, "delivery"),
    ("day", "yard", "courier", "trips", False, "routine"),
    ("night", "yard", "stranger", "trips", False, "intrusion"),
    ("night", "kitchen", "resident", "trips", True, "routine"),  # most say so
    ("night", "porch", "child", "passes", True, "routine"),
])  # fmt: skip
def test_policies_give_the_label_that_their_words_say(light, place, who, act, box, label):
    facts = Facts(light, place, who, act, scripts(act)[0], "clear")
    facts = facts if box is None else with_idle_box(facts, box)
    assert facts.label == label and decided(facts).words in LABELS.definitions[label]


def test_a_full_prompt_has_the_policies_in_their_order_whatever_the_order_of_its_labels():
    for order in (None, [5, 4, 3, 2, 1, 0]):
        prompt = calibrator_prompt(LABELS, "theft", "A box is taken.", order=order)
        places = {int(place): prompt.index(f"({place}) ") for place in re.findall(r"\((\d+)\) ", prompt)}
        assert sorted(places) == list(range(1, len(POLICIES) + 1)) and "first numbered policy that applies" in prompt
        for number, policy in enumerate(POLICIES, 1):
            assert prompt.startswith(policy.words, places[number] + len(f"({number}) ")), policy.name
            line = prompt[: places[number]].rpartition("\n")[2]
            assert line.startswith(f"- {next(iter(policy.odds))}: ")


def test_the_page_shows_the_policies_in_their_words_and_order():
    page = (Path(__file__).parents[1] / "docs" / "worlds.md").read_text(encoding="utf-8")
    page, _ = page.split("## What each stage reaches")
    rows = re.findall(r"^\| \d+ \| (.*?) \| (.*?) \|", page, re.MULTILINE)
    assert rows == [(policy.words, ", ".join(policy.odds)) for policy in POLICIES]
    shares = {
        name: (a, b) for name, a, b in re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    }
    assert shares == {name: (f"{a / 0.4:g}", f"{b / 0.4:g}") for name, (a, b) in household.SLICES.items()}


def test_every_policy_decides_something_and_an_exception_turns_what_the_others_say():
    deciding = {decided(facts).name for facts in SCENES}
    assert deciding == {policy.name for policy in POLICIES}
    for facts in SCENES:
        if decided(facts).kind == "exception":
            assert decided(facts, without=("exception",)).odds != odds(facts)


def test_odds_are_those_of_the_drawn_labels(test_plans):
    assert all(sum(policy.odds.values()) == pytest.approx(1) for policy in POLICIES)
    drawn = [plan for plan in test_plans if plan["notes"]["slice"] == "noise"]
    assert {json.dumps({"routine": 0.7, "emergency": 0.3})} == {plan["notes"]["odds"] for plan in drawn}
    shares = Counter(plan["label"] for plan in drawn)
    assert shares["routine"] / len(drawn) == pytest.approx(0.7, abs=0.08) and len(shares) == 2
    certain = [plan for plan in test_plans if plan["notes"]["slice"] != "noise"]
    assert all(json.loads(plan["notes"]["odds"]) == {plan["label"]: 1.0} for plan in certain)


def test_slices_have_their_shares_and_hold_what_they_say(test_plans):
    for place, drawn in ((0, test_plans), (1, plans("train", 1200))):
        assert Counter(plan["notes"]["slice"] for plan in drawn) == Counter(
            {name: counts[place] * len(drawn) // 40 for name, counts in household.SLICES.items() if counts[place]}
        )
    held = household.held_out(0)
    for plan in test_plans:
        facts, wanted = plan["facts"], plan["notes"]["slice"]
        assert (facts.who == "dog") == (wanted == "at a glance")
        assert (facts.view == plan["look"] == "poor") == (wanted == "hard to see")
        assert (household.cell_of(facts) in held) == (wanted == "unseen")
        assert (decided(facts).kind == "exception") == (wanted == "exception")
        alike = with_idle_box(facts, True).label == with_idle_box(facts, False).label
        assert alike == (wanted != "only in the video")


@pytest.mark.parametrize("seed", [0, 1])
def test_cells_that_are_held_out_come_in_no_training_clip(seed):
    held = household.held_out(seed)
    cells = {household.cell_of(facts) for facts in SCENES if household.slice_of(facts) == "plain"}
    assert held < cells and len(held) / len(cells) == pytest.approx(1 / 3, abs=0.06)
    seen = {household.cell_of(plan["facts"]) for plan in plans("train", 1200, seed)}
    assert not held & seen and held != household.held_out(seed + 1)


def test_seeds_share_no_home():
    of = [{plan["home"].name for part in ("train", "test") for plan in plans(part, 100, seed)} for seed in (0, 1)]
    assert of[0].isdisjoint(of[1])


def test_a_clip_that_is_hard_to_see_is_the_same_again_and_differs_from_a_clear_one():
    facts, home = SCENES[7], draw.Home("test", 3)
    poor, again, clear = (draw.render_at(facts, home, 5, np.array([0.5]), spoilt) for spoilt in (True, True, False))
    np.testing.assert_array_equal(poor, again)
    assert np.abs(poor.astype(int) - clear).mean() > 10


def test_a_clip_notes_its_slice_and_odds_and_its_own_worlds_teacher_writes_about_it(tmp_path, monkeypatch):
    settings = config.load(config.CONFIGS / "household.toml", [f"workbench={tmp_path}"])
    demo.clips(settings, 24, 4, jobs=1, progress=False, fractions=schedule.fractions(settings), world="household")
    frame = Manifest.load(tmp_path, "household").frame
    assert all({"facts", "slice", "odds"} == set(notes) for notes in frame["notes"])
    assert all(text == {} for text in frame["text"]), "notes are no texts"
    rows = list(csv.DictReader((tmp_path / "sources" / "household-0" / "clips.csv").open()))
    assert [household.facts_of(row["facts"]) for row in rows[:24]] == [plan["facts"] for plan in plans("train", 24)]
    with pytest.raises(TypeError):
        homecam.facts_of(rows[0]["facts"])
    monkeypatch.setattr(worlds, "names", lambda: ["homecam", "household"])
    monkeypatch.setattr(worlds, "named", {"homecam": homecam, "household": household}.get)
    written = teach.run(Workbench(tmp_path), settings, progress=False).read("traces")["text"]
    assert len(written) > 3 and sum("So it is" in text for text in written) > len(written) / 2, "each world its teacher"


@given(facts=st.sampled_from(SCENES), seed=st.integers(0, 10_000))
def test_a_teacher_who_errs_in_nothing_is_right_wherever_no_idle_box_decides(facts, seed):
    written = household.write_trace(facts, seed, **PERFECT)
    trace = parse(written["text"], "think-answer", LABELS)
    assert isinstance(trace, Trace) and trace.label == written["answer"]
    assert (trace.label == facts.label) == (decided(facts).kind != "idle box")
    assert household.misread(written["observation"], facts) == []
    box_decides = with_idle_box(facts, True).label != with_idle_box(facts, False).label
    assert household.label_of_observation(written["observation"]) == (None if box_decides else facts.label)
    assert household.label_of_observation(observation(facts)) == facts.label, "one that tells of the box says enough"


def test_the_judge_of_facts_names_what_is_misread():
    facts = Facts("night", "porch", "courier", "takes", scripts("takes")[0], "clear")
    told = observation(facts).replace("courier", "stranger")
    assert household.misread(told, facts) == ["who", "quarter 2", "quarter 3"]
    assert household.label_of_observation("It is night.") is None


def test_the_teacher_errs_as_often_as_it_is_told(test_plans):
    def kept(wanted: str) -> float:
        of = [plan for plan in test_plans if plan["notes"]["slice"] == wanted]
        traces = [parse(household.write_trace(p["facts"], n)["text"], "think-answer", LABELS) for n, p in enumerate(of)]
        return np.mean([trace.ok and trace.label == plan["label"] for trace, plan in zip(traces, of)])

    assert kept("exception") == pytest.approx(household_teacher.KNOWS_EXCEPTIONS, abs=0.08)
    assert kept("only in the video") == pytest.approx(0.47, abs=0.08)
    assert kept("noise") == pytest.approx(0.63, abs=0.08)
    assert kept("plain") > 0.87 > kept("hard to see") > 0.6


def test_traces_have_50_to_120_tokens_and_name_frames():
    tokenizer = Tokenizer.from_file(str(homecam.MODEL / "tokenizer.json"))
    texts = [household.write_trace(facts, 0, **PERFECT)["text"] for facts in SCENES]
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    assert 50 <= min(lengths) and max(lengths) <= 120
    assert all("Frame 7:" in text for text in texts)


@pytest.mark.parametrize(
    ("words", "world"),
    [
        ([], "household"),
        (["--world", "homecam"], "homecam"),
        (["--config", str(config.CONFIGS / "tiny.toml")], "homecam"),
        (["--set", "clips.dataset=mine"], "household"),
    ],
)
def test_the_demo_shows_the_household_unless_another_world_or_its_dataset_is_named(words, world, tmp_path, monkeypatch):
    rendered = []
    monkeypatch.setattr(demo, "run", lambda *_, world, **__: rendered.append(world))
    for name in ("evaluated", "show_report"):
        monkeypatch.setattr(commands, name, lambda *_: 0)
    assert cli.main(["demo", *words, "--workbench", str(tmp_path)]) == 0 and rendered == [world]
