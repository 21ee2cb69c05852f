"""The finished workbench that ships: small, opened without torch and without a workbench, and left as it was made."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from porch import until

from deepintuit import cli, runs, video, worlds
from deepintuit.command import settings_of
from deepintuit.data import Manifest
from deepintuit.errors import StoreError, VideoError
from deepintuit.reasoner import FALSE_ALARMS, Distance, live
from deepintuit.reasoner.replay import Distribution, TraceDone
from deepintuit.reasoner.task import Task
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import browse, clips
from deepintuit_analysis.review import EventLog, Reviews
from deepintuit_app import commands, jobs
from deepintuit_homecam import demo, example

MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
TRAINING = tuple(re.search("^TRAINING := (.*)$", MAKEFILE, re.MULTILINE)[1].split("|"))
"""Packages that the light install leaves out."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Workbench:
    bench = Workbench(worlds.example(tmp_path_factory.mktemp("example") / "workbench"))
    bench.refresh()
    return bench


def clip_of(bench: Workbench, split: str = "test", number: int = 0):
    return Manifest.load(bench.path, example.DATASET).usable(split).iloc[number]


def test_the_example_is_small_and_says_from_which_commit_its_runs_are():
    files = [file for file in example.FILES.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    about = json.loads((example.FILES / runs.EXAMPLE).read_text())
    made_by = {json.loads(file.read_text())["commit"] for file in files if file.name == "run.json"}
    assert made_by == {about["runs_of_commit"]} and re.fullmatch("[0-9a-f]{40}", about["runs_of_commit"])
    assert not [file for file in files if re.search(rb"/(home|root|tmp|work|Users)/", file.read_bytes())]


def test_its_calibrator_knows_how_far_a_clip_is_from_those_that_it_learnt_from(opened):
    (calibrated,) = opened.runs("calibrate", finished=True)
    assert Distance.load(calibrated).limit(FALSE_ALARMS) < float("inf")


def test_every_stage_of_the_example_is_there_with_its_rows_and_no_problem(opened):
    assert opened.problems() == [] and opened.path.name == "workbench-example"
    counted = opened.query("SELECT stage, count(*) AS n FROM runs WHERE status = 'finished' GROUP BY stage")
    assert {*counted["stage"]} == {"teach", "coldstart", "grpo", "calibrate", "evaluate"}
    for table in ("traces", "scores", "predictions", "steps", "reviews"):
        assert opened.query(f"SELECT count(*) AS n FROM {table}")["n"][0] > 20, table


def test_a_clip_of_the_example_is_rendered_when_it_is_first_looked_at_bit_for_bit(opened):
    for split in ("test", "coldstart"):
        row = clip_of(opened, split)
        assert not Path(row["path"]).exists()
        file = browse.clip_file(opened, row["clip_id"])
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"] and str(file) == row["path"]
    unseen = clip_of(opened, number=1)
    assert len(video.read(unseen["path"], 4)) == 4, "whoever reads frames need not have asked for the file"
    with pytest.raises(VideoError, match="not_found|the system says"):
        video.read(Path(unseen["path"]).with_name("test-0-99999.mp4"), 4)


def test_another_rendering_than_the_one_that_traces_are_about_is_refused(opened):
    row = clip_of(opened, number=2)
    listed = Path(row["path"]).parent / worlds.RENDERED
    told = listed.read_text()
    listed.write_text(told.replace(row["sha256"], row["sha256"][::-1]))
    try:
        with pytest.raises(VideoError, match="renders it with other bytes"):
            worlds.at_hand(row["path"])
        assert not Path(row["path"]).exists()
    finally:
        listed.write_text(told)


def test_sharing_renders_the_clips_first_and_names_those_that_cannot_be_had(opened, tmp_path, capsys):
    rendered, changed, gone = (clip_of(opened, number=-n) for n in (1, 2, 3))
    ids = ", ".join(f"'{row['clip_id']}'" for row in (rendered, changed, gone))
    opened.save_slice("three", f"SELECT trace_id FROM traces WHERE clip_id IN ({ids})")  # noqa: S608
    listed = Path(rendered["path"]).parent / worlds.RENDERED
    told = listed.read_text()
    hashes = json.loads(told)["sha256"]
    hashes[Path(changed["path"]).name] = "0" * 64
    del hashes[Path(gone["path"]).name]
    listed.write_text(json.dumps({**json.loads(told), "sha256": hashes}))
    try:
        words = ["share", str(tmp_path / "out"), "--slice", "three", "--workbench", str(opened.path)]
        assert cli.main([*words, "--dry-run"]) == 0 and not Path(rendered["path"]).exists()
        assert cli.main(words) == 0
    finally:
        listed.write_text(told)
    said = capsys.readouterr().out
    name = {row["clip_id"]: Path(row["path"]).stem for row in (changed, gone)}
    assert said.count(f"is not there any more: 1 ({name[gone['clip_id']]})") == 2, "a dry run says it too"
    assert f"other bytes than those that its traces were written about: 1 ({name[changed['clip_id']]})" in said
    data = json.loads((tmp_path / "out" / "data.js").read_text().removeprefix("const SHARED = ").rstrip(";\n"))
    [file] = [clip["file"] for clip in data["clips"] if clip["file"]]
    assert hashlib.sha256((tmp_path / "out" / file).read_bytes()).hexdigest() == rendered["sha256"]


def test_the_example_takes_reviews_and_neither_runs_nor_jobs(opened, capsys):
    clips, words = opened.path / "clips", ["--workbench", str(opened.path), "--system"]
    before, [run] = sorted(clips.iterdir()), opened.runs("calibrate")
    for more in ([], ["--dry-run"]):
        assert cli.main(["predict", str(opened.path), *words, run.id, *more]) == 2
        assert "is the example" in capsys.readouterr().err and sorted(clips.iterdir()) == before
    with pytest.raises(StoreError, match="is the example"):
        opened.start_run("coldstart", {})
    with pytest.raises(StoreError, match="is the example"):
        jobs.launch(opened.path, [sys.executable, "-c", ""], stage="report", title="report")
    assert not (opened.path / "jobs").exists()
    with EventLog(opened.reviews) as log:
        reviews = Reviews(log)
        item = reviews.next_item("first look", "somebody")
        reviews.judge("first look", "somebody", item.trace_id, {"label": None, "verdict": None})
        assert reviews.progress("first look")["by"]["somebody"] == 1


def test_live_reasoning_on_the_example_writes_about_the_stored_trace_and_calibrates_it(opened):
    found = clips.reasoners(opened)[0]
    row, events = clip_of(opened, number=3), []
    models = live.Models(opened)
    clip = next(
        c for c in Task(opened.path, models.settings(found["run_id"])).clips("test") if c.clip_id == row["clip_id"]
    )
    ask = live.Ask(clip, reasoner=found["run_id"], calibrator=found["calibrator"])
    live.reason(models, ask, events.append, lambda: False)
    [done] = [event for event in events if isinstance(event, TraceDone)]
    stored = opened.query(
        "SELECT text FROM traces WHERE clip_id = ? AND run_id LIKE 'evaluate-cold-start-grpo%' AND temperature = 0",
        [row["clip_id"]],
    )
    # Weights are rounded, and machines round: a word may differ.
    assert done.reason is None and SequenceMatcher(None, done.text, stored["text"][0]).ratio() > 0.8
    assert {event.method for event in events if isinstance(event, Distribution)} >= {"label_likelihood"}


def test_another_version_of_the_example_is_kept_under_a_number_with_its_reviews(opened, tmp_path):
    place = tmp_path / "there"
    (place / "reviews").mkdir(parents=True)
    (place / "reviews" / "events.sqlite").write_bytes(b"mine")
    (place / runs.EXAMPLE).write_text("{}")
    assert example.unpack(place) == place == example.unpack(place)
    assert (tmp_path / "there@1" / "reviews" / "events.sqlite").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["there", "there@1"]
    own = example.unpack(tmp_path / "own", open=True)
    with Workbench(own).start_run("coldstart", {}) as run:
        run.finish({})


def test_the_dashboard_opens_the_example_where_there_is_no_workbench_and_without_torch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `make app-light` leaves out cannot be imported.
    program = f"""
import sys
class Without:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {TRAINING!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
from deepintuit.cli import main
sys.exit(main(["app", "--no-browser", "--port", "{port}"]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "DEEPINTUIT_HOME"}
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True) as server:
        try:
            ask = lambda path: urllib.request.urlopen(f"http://localhost:{port}{path}", timeout=60)  # noqa: E731, S310

            def up() -> bool:
                assert server.poll() is None
                try:
                    return ask("/").status == 200
                except OSError:
                    return False

            until(up, 120)
            assert "This is the example that ships" in ask("/").read().decode()
            row = clip_of(Workbench(tmp_path / "workbench-example"), number=4)
            assert hashlib.sha256(ask(f"/media/clip/{row['clip_id']}").read()).hexdigest() == row["sha256"]
        finally:
            server.terminate()


def test_a_stage_that_starts_with_the_dashboard_says_in_its_terminal_how_it_ended(tmp_path, capsys):
    said = []
    commands._start(tmp_path, ["report", "--quiet"])

    def over() -> bool:
        said.append(capsys.readouterr().out)
        return "The job failed" in said[-1]

    until(over, 60)
    assert "`deepintuit report --quiet` runs as a job" in "".join(said) and "no dataset is named" in "".join(said)


def test_a_demo_with_its_dashboard_begins_as_the_example_and_orders_the_stages_as_they_were_asked(
    tmp_path, monkeypatch
):
    main, asked, place = cli.main, [], tmp_path / "bench"
    monkeypatch.setattr(cli, "main", asked.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    main(["demo", "--dashboard", "--seed", "3", "--set", "grpo.group=4", "--workbench", str(place)])
    bench = Workbench(place)
    assert not bench.is_example and demo.chain_of(bench).settings.clips.dataset == example.DATASET
    [[app, where, start, *words]] = asked
    assert (app, where, start) == ("app", f"--workbench={place}", "--start")
    options = cli._parser(words).parse_args(words)
    assert settings_of(options).grpo.group == 4 and (options.seed, options.full, options.dashboard) == (3, False, False)
    main(["demo", "--dashboard", "--port", "8123", "--workbench", str(place)])
    assert asked[-1][:4] == ["app", where, "--port=8123", "--start"]


def test_a_port_of_a_dashboard_that_a_demo_does_not_open_is_refused(tmp_path, capsys):
    assert cli.main(["demo", "--port", "8123", "--workbench", str(tmp_path / "bench")]) == 2
    assert "--port 8123 without --dashboard" in capsys.readouterr().err and not (tmp_path / "bench").exists()
