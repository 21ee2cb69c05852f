"""The loop: what people accept and correct is what cold start imitates, and a corrected label is a new version."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deepintuit import cli, coldstart
from deepintuit.config import load
from deepintuit.data import Manifest
from deepintuit.data.manifest import rows_to_table, to_frame
from deepintuit.errors import DataError
from deepintuit.labels import LabelSet
from deepintuit_analysis import Workbench
from deepintuit_analysis.review import EventLog, Reviews, ReviewTask, read_events
from deepintuit_analysis.review.feedback import coldstart_set, corrections, next_batch, relabel

LABELS = LabelSet.of("pets", ("dog", "cat", "fox"))
CONFIG = load(None, ["clips.dataset=pets"])
SPLITS = ("coldstart",) * 6 + ("grpo", "test")


def trace(label: str, said: str = "It barks.") -> str:
    return f"<think> {said} </think><answer> {label} </answer>"


class House:
    """A dataset of eight clips, all labelled dog, a teach run that kept a trace of each, and reviews of it."""

    def __init__(self, path):
        self.workbench = Workbench(path)
        same = {"label": "dog", "text": {}, "notes": {"who": "x"}, "also_at": []}
        clips = [
            {**same, "clip_id": f"c{n}", "split": split, "group": f"g{n // 2}", "path": f"clips/{n}.mp4"}
            for n, split in enumerate(SPLITS)
        ]
        Manifest(path, "pets", to_frame(rows_to_table(clips), path), LABELS).save()
        with self.workbench.start_run("teach", {"source": "test"}, dataset="pets") as run:
            rows = [
                {
                    "trace_id": f"t{n}",
                    "clip_id": f"c{n}",
                    "sample": 0,
                    "text": trace("dog"),
                    "answer": " dog ",
                    "provisional": "dog",
                    "true_label": "dog",
                }
                for n in range(len(SPLITS))
            ]
            run.append("traces", rows)
            run.append("scores", [{"trace_id": f"t{n}", "name": "kept", "value": float(n != 5)} for n in range(8)])
            run.finish({})
        self.teacher = run.id
        self.workbench.refresh()
        self.log = EventLog(self.workbench.reviews)
        self.reviews = Reviews(self.log)
        self.open("week")

    def open(self, name: str, **settings) -> None:
        items = {f"t{n}": f"c{n}" for n in range(len(SPLITS))}
        self.reviews.open(ReviewTask(name, items, **{"labels": LABELS.labels, "order": "given", **settings}), "lead")

    def say(self, *answers: tuple, task: str = "week", who: str = "ann") -> None:
        """(label, verdict) or (label, verdict, note) of the next items."""
        for label, verdict, *note in answers:
            item = self.reviews.next_item(task, who)
            said = {"label": label, "verdict": verdict, **({"note": note[0]} if note else {})}
            self.reviews.judge(task, who, item.trace_id, said)

    def manifest(self, version: int | None = None) -> Manifest:
        return Manifest.load(self.workbench.path, "pets", version)

    def targets(self, run) -> dict[str, list[str]]:
        """What a cold start with this teacher would imitate, by clip."""
        clips = {clip: clip for clip in self.manifest().usable("coldstart")["clip_id"]}
        found: dict[str, list[str]] = {}
        for clip, text in coldstart.kept_traces(run, clips):
            found.setdefault(clip, []).append(text)
        return found


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.log.close()


# Labels


def test_corrected_labels_are_a_new_version_and_the_old_one_stays(house):
    before = house.manifest()
    house.say(("dog", "right"), ("cat", "wrong"), (None, None))
    found = corrections(house.workbench, house.reviews, ["week"], "pets")
    (one,) = found.changed
    assert (one.clip_id, one.before, one.after, one.by, one.split) == ("c1", "dog", "cat", ("ann",), "coldstart")
    assert found.confirmed == 1 and not found.contested
    relabel(house.workbench, found)
    after, former = house.manifest(), house.manifest(1)
    assert after.frame["label"].tolist() == ["dog", "cat", *["dog"] * 6]
    assert former.fingerprint == before.fingerprint != after.fingerprint
    note = json.loads(after.frame["notes"][1]["review"])
    assert note == {"was": "dog", "by": ["ann"], "events": list(one.events)} and after.frame["notes"][1]["who"] == "x"
    used = Manifest.used(house.workbench.path, "pets", before.fingerprint)
    assert used.version == 1, "runs find what they used"
    house.workbench.refresh()
    assert house.workbench.query("SELECT count(*) AS n FROM clips WHERE label = 'cat'").n[0] == 1
    again = corrections(house.workbench, house.reviews, ["week"], "pets")
    assert not again.changed and again.confirmed == 2
    relabel(house.workbench, again)
    with pytest.raises(DataError, match="There is no version 2 of 'pets'"):
        house.manifest(2)
    with pytest.raises(DataError, match="is a former one"):
        former.save()


def test_a_label_changes_only_where_people_agree(house):
    house.open("pairs", reviewers=2, leads=["lead"])
    house.say(("cat", "wrong"), ("cat", "wrong"), ("cat", "wrong"), task="pairs")
    house.say(("cat", "wrong"), ("fox", "wrong"), task="pairs", who="bo")
    found = corrections(house.workbench, house.reviews, ["pairs"], "pets")
    assert [one.clip_id for one in found.changed] == ["c0"], "agreed; disputed; judged by one of two"
    house.reviews.adjudicate("pairs", "lead", "t1", {"label": "fox", "verdict": "wrong"})
    house.say(("dog", "right"), ("fox", "wrong"))
    found = corrections(house.workbench, house.reviews, ["pairs", "week"], "pets")
    assert found.contested == ["c0"], "two tasks settled it differently"
    assert [(one.clip_id, one.after, one.by) for one in found.changed] == [("c1", "fox", ("lead",))]


def test_a_label_that_the_dataset_does_not_know_is_refused(house):
    house.open("other", labels=["wolf"])
    house.say(("wolf", "wrong"), task="other")
    with pytest.raises(DataError, match="would get the label 'wolf'"):
        relabel(house.workbench, corrections(house.workbench, house.reviews, ["other"], "pets"))


# Traces


def test_accepted_and_corrected_traces_are_what_cold_start_imitates(house):
    house.say(
        ("dog", "right"),
        ("dog", "wrong reasons"),
        ("cat", "wrong", trace("cat", "It purrs.")),
        ("cat", "wrong", "It is a cat!"),
        ("cat", "right"),
        (None, None),
    )
    run = coldstart_set(house.workbench, house.reviews, ["week"], CONFIG)
    assert run.stage == "teach" and run.finished and run.config["teach"] == {"source": "review"}
    assert house.targets(run) == {"c0": [trace("dog")], "c2": [trace("cat", "It purrs.")]}
    assert (run.summary["accepted"], run.summary["corrected"]) == (1, 1)
    assert run.summary["dropped"] == dict.fromkeys(
        ("verdict: wrong reasons", "verdict: wrong", "right, but not ending in that label", "verdict: unsure"), 1
    )
    evidence = json.loads(run.read("scores").query("name == 'reviewed'")["evidence"].iloc[0])
    assert evidence["trace"] == "t0" and evidence["by"] == ["ann"] and evidence["source"] == "accepted"
    assert run.read("traces")["true_label"].tolist() == ["dog", "cat"]


def test_on_top_of_a_teacher_the_refused_ones_are_gone_and_the_rest_stays(house):
    house.say(("dog", "right"), ("dog", "wrong reasons"), ("cat", "wrong", trace("cat")), ("cat", "wrong"))
    relabel(house.workbench, corrections(house.workbench, house.reviews, ["week"], "pets"))
    run = coldstart_set(house.workbench, house.reviews, ["week"], CONFIG, onto=house.teacher)
    assert house.targets(run) == {"c0": [trace("dog")], "c2": [trace("cat")], "c4": [trace("dog")]}, (
        "t5 was not kept by the teacher; t6 and t7 are of other splits"
    )
    assert run.parent == house.teacher and run.summary["onto"] == 1


def test_traces_of_relabelled_clips_leave_the_set_though_nobody_judged_them(house):
    house.say(("cat", "wrong"))
    relabel(house.workbench, corrections(house.workbench, house.reviews, ["week"], "pets"))
    run = coldstart_set(house.workbench, house.reviews, [], CONFIG, onto=house.teacher)
    assert "c0" not in house.targets(run) and run.summary["dropped"] == {"the clip's label was corrected": 1}


def test_clips_that_cold_start_may_not_see_stay_out(house):
    house.say(*[("dog", "right")] * 8)
    run = coldstart_set(house.workbench, house.reviews, ["week"], CONFIG)
    assert set(house.targets(run)) == {f"c{n}" for n in range(6)}
    assert set(run.read("traces")["clip_id"]) == {f"c{n}" for n in range(6)}
    assert run.summary["dropped"] == {"not a clip of the cold-start split": 2}


def test_the_same_reviews_are_the_same_set_and_another_judgement_is_another(house):
    house.say(("dog", "right"))
    planned = coldstart_set(house.workbench, house.reviews, ["week"], CONFIG, dry=True)
    assert planned["kept"] == 1 and len(house.workbench.runs("teach")) == 1, "dry: nothing is written"
    first = coldstart_set(house.workbench, house.reviews, ["week"], CONFIG)
    assert coldstart_set(house.workbench, house.reviews, ["week"], CONFIG).id == first.id
    house.say(("dog", "right"))
    assert coldstart_set(house.workbench, house.reviews, ["week"], CONFIG).id != first.id


def test_an_empty_set_is_a_sentence(house):
    house.say(("dog", "wrong"))
    with pytest.raises(DataError, match="no trace of 'week' can be imitated: left out: {'verdict: wrong': 1}"):
        coldstart_set(house.workbench, house.reviews, ["week"], CONFIG)


# What to label next


def evaluated(house, first_C: list[float], predicted: str = "dog") -> None:
    """Distributions of all clips; `first_C` is the probability of `predicted`, the rest goes to the next class."""
    place = LABELS.index(predicted)
    rows = []
    for n, p in enumerate(first_C):
        probs = np.zeros(3)
        probs[place], probs[(place + 1) % 3] = p, 1 - p
        rows.append(
            {
                "clip_id": f"c{n}",
                "split": SPLITS[n],
                "system": "all",
                "method": "label_likelihood",
                "labels": list(LABELS),
                "probs": probs,
                "trace_id": f"t{n}",
                "predicted": LABELS.labels[probs.argmax()],
                "true_label": "dog",
            }
        )
    with house.workbench.start_run("evaluate", {"p": first_C}, dataset="pets") as run:
        run.append("predictions", rows)
        run.finish({})
    house.workbench.refresh()


def test_the_next_batch_is_unsure_spread_over_classes_and_groups_and_not_judged_yet(house):
    # Groups:         g0   g0    g1    g1    g2    g2    g3    g3, in the test split
    evaluated(house, [0.5, 0.52, 0.53, 0.45, 0.99, 0.54, 0.55, 0.5])
    house.say(("dog", "right"))
    found = next_batch(house.workbench, house.reviews, "pets", 3)
    assert found["clip_id"].tolist() == ["c1", "c3", "c5"], "c0 is judged, c7 test; c3 is the cat, c2 of its group"
    assert found["predicted"].tolist() == ["dog", "cat", "dog"]
    assert found["margin"].tolist() == pytest.approx([0.04, 0.1, 0.08])
    assert next_batch(house.workbench, house.reviews, "pets", 9, splits=["test"])["clip_id"].tolist() == ["c7"]
    some = found["clip_id"].tolist()[1:]
    assert set(next_batch(house.workbench, house.reviews, "pets", 9, among={*some, "c7"})["clip_id"]) == set(some)
    assert next_batch(house.workbench, house.reviews, "pets", 9, among=set()).empty


def test_ties_fall_by_the_seed_and_the_same_again(house):
    evaluated(house, [0.6] * 8)

    def batch(seed: int) -> list[str]:
        return next_batch(house.workbench, house.reviews, "pets", 3, seed=seed)["clip_id"].tolist()

    batches = [batch(seed) for seed in range(9)]
    assert len(set(map(tuple, batches))) > 1 and batch(4) == batches[4]
    assert all(len({int(clip[1]) // 2 for clip in batch}) == 3 for batch in batches), "one of a group"


def test_without_distributions_the_next_batch_says_what_to_run(house):
    with pytest.raises(DataError, match=r"Run `deepintuit evaluate --set evaluate\.split=coldstart`"):
        next_batch(house.workbench, house.reviews, "pets", 3)


# The command line


@pytest.fixture
def review(house, monkeypatch, tmp_path):
    """`deepintuit review …` beside the reviews as they stand: exit code, with the files in a folder of their own."""
    monkeypatch.setattr(cli.console, "width", 200)
    files = tmp_path / "files"
    files.mkdir()
    monkeypatch.chdir(files)
    return lambda *words: cli.main(["review", *words, "--workbench", str(house.workbench.path)])


def test_the_commands_go_round_once(house, review, capsys):
    """Answers out, labels, a set, and the same answers in again elsewhere, each dry first; beside a running writer."""
    house.say(("dog", "right", "[bold]=1+1[/]\x1b[31m"), ("cat", "wrong", trace("cat")))
    for dry in (["--dry-run"], []):
        assert review("export", "week", "week.csv", *dry) == 0
        assert review("labels", *dry) == 0
        assert review("coldstart-set", "--onto", house.teacher, *dry) == 0
        if dry:
            assert len(house.workbench.runs("teach")) == 1 and "cat" not in set(house.manifest().frame["label"])
    said = capsys.readouterr().out
    assert "1 labels corrected, 1 confirmed, 0 contested" in said and "Nothing was written (--dry-run)" in said
    run = house.workbench.runs("teach")[-1]
    assert f"deepintuit coldstart --teacher {run.id}" in said and run.summary["corrected"] == 1
    assert review("report") == 0
    said = capsys.readouterr().out
    assert "week: 2 of 8 judgements" in said and "No label is doubted" in said
    house.open("second")
    assert review("import", "week", "week.csv", "--dry-run") == 0
    assert "0 answers taken in; 2 are here already" in capsys.readouterr().out


def test_label_studio_files_come_with_their_interface(house, review, tmp_path):
    assert review("export", "week", "week.json") == 0
    assert (tmp_path / "files" / "week.xml").read_text().startswith("<View>")
    assert len(json.loads((tmp_path / "files" / "week.json").read_text())) == 8


def test_the_next_batch_becomes_a_task(house, review, capsys):
    evaluated(house, [0.5, 0.52, 0.53, 0.45, 0.99, 0.54, 0.55, 0.5])
    house.log.close()
    assert review("next", "--size", "2", "--task", "more", "--by", "lead") == 0
    assert review("report", "more") == 0
    assert "The task 'more' holds them" in (said := capsys.readouterr().out) and "more: 0 of 2 judgements" in said


@pytest.mark.parametrize("words, sentence", [
    (("export", "gone", "x.csv"), "there is no review task 'gone'"), (("export", "week", "x.doc"), "names no form"),
    (("import", "week", "gone.csv"), "'gone.csv' cannot be read: No such file"), (("labels", "gone"), "no review task"),
    (("coldstart-set", "--onto", "gone"), "there is no run 'gone'"), (("next",), "has a calibrated distribution"),
    (("reports",), "invalid choice"), (("export", "week", "."), "names no form"),
])  # fmt: skip
def test_what_is_wrong_is_a_sentence_and_exit_code_2(review, capsys, words, sentence):
    assert review(*words) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_an_export_replaces_no_file(house, review, capsys):
    house.say(("dog", "right"))
    assert review("export", "week", "week.jsonl") == 0
    assert review("export", "week", "week.jsonl") == 2 and "an export replaces no file" in capsys.readouterr().err
    assert review("log", "week.jsonl") == 2 and "an export replaces no file" in capsys.readouterr().err


def test_an_import_writes_beside_a_log_that_is_open(house, review, capsys):
    house.say(("dog", "right"))
    assert review("export", "week", "week.jsonl") == 0
    row = json.loads(Path("week.jsonl").read_text())
    Path("more.jsonl").write_text(json.dumps(row | {"reviewer": "eve"}))
    assert review("import", "week", "more.jsonl") == 0 and "1 answers taken in" in capsys.readouterr().out
    assert {who for _, who, _ in house.reviews.ratings("week")} == {row["reviewer"], "eve"}


def test_the_log_as_text_is_what_an_earlier_version_wrote_and_comes_back_from_it(house, review, capsys, tmp_path):
    house.say(("dog", "right"))
    assert review("log", "events.jsonl", "--dry-run") == 0 and not Path("events.jsonl").exists()
    assert review("log", "events.jsonl") == 0 and "not written" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    shutil.copy("events.jsonl", tmp_path / "other" / "events.jsonl")
    assert read_events(tmp_path / "other") == read_events(house.workbench.reviews) != ([], [])
