"""The forms of the start page: a folder becomes clips and an endpoint teaches, as jobs; what is refused and why."""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from deepintuit import video
from deepintuit.cli import main
from deepintuit.errors import DataError, DeepIntuitError, StoreError
from deepintuit_analysis import Workbench
from deepintuit_app import job_requests, jobs
from deepintuit_app.app import create
from deepintuit_app.sources import OTHER_KEY, PROVIDERS, Sources

SECRET = "sk-of-the-environment"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A folder that may be imported from, with one of class folders in it, and what lies beside it."""
    root = tmp_path_factory.mktemp("disk")
    for label, shade in (("theft", 60), ("routine", 160)):
        (root / "videos" / "two rooms" / label).mkdir(parents=True)
        for number in range(5):
            frames = np.full((4, 32, 32, 3), shade + 9 * number, np.uint8)
            video.write_mp4(root / "videos" / "two rooms" / label / f"{number}.mp4", frames, 8.0)
    (root / "private" / "theft").mkdir(parents=True)
    (root / "videos" / "notes.txt").write_text("no table")
    (root / "videos" / "away").symlink_to(root / "private")
    return root / "videos"


@pytest.fixture(scope="module")
def sources(videos) -> Sources:
    return Sources.of([videos], ["http://teacher.test:9/v1=TEACHER_KEY"], login=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("empty") / "workbench"


@pytest.fixture(scope="module")
def visitor(place, sources) -> TestClient:
    return TestClient(create(place, sources=sources), base_url="http://127.0.0.1", follow_redirects=False)


@pytest.fixture
def launched(monkeypatch) -> list[dict]:
    """Requests that would have become jobs."""
    calls = []
    monkeypatch.setattr(jobs, "launch", lambda place, command, **about: calls.append({"command": command, **about}))
    return calls


def test_a_folder_becomes_a_dataset_by_a_job_and_the_page_leads_on_to_the_teacher(place, visitor, sources):
    empty = visitor.get("/").text
    assert '<option value="two rooms">' in empty and "videos" in empty and str(sources.folders[0]) not in empty
    answer = visitor.post("/jobs", data={"stage": "clips", "source": "two rooms", "name": "rooms"})
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    [job] = jobs.listed(place)
    began = time.monotonic()
    while jobs.find(place, job.id).active and time.monotonic() - began < 60:
        assert "Running now" in visitor.get("/").text or not jobs.find(place, job.id).active
        time.sleep(0.3)
    assert jobs.find(place, job.id).status == "finished", jobs.tail(place, job.id)
    workbench = Workbench(place)
    workbench.refresh()
    rows = workbench.query("SELECT DISTINCT label, dataset FROM clips ORDER BY label")
    assert rows.values.tolist() == [["routine", "rooms"], ["theft", "rooms"]]
    time.sleep(2.1)  # the index is looked at every two seconds
    html = visitor.get("/").text
    assert re.search(r'class="next"><strong>Teach', html) and 'name="endpoint"' in html
    assert visitor.get("/jobs").headers["location"] == "./runs?tab=jobs"


@pytest.mark.parametrize("source", [
    "../private", "away", "away/theft", "/etc", "~", "nothing here", "notes.txt", "", " ", "a\0b",
    "two rooms/../../private", "two rooms/theft/0.mp4", "file:///etc", "<b>x</b>", "x" * 5000,
])  # fmt: skip
def test_what_lies_outside_the_allowed_folders_is_refused_in_the_page(visitor, sources, source, launched):
    answer = visitor.post("/jobs", data={"stage": "clips", "source": source, "name": "rooms"})
    assert answer.status_code == 400 and not launched
    [alert] = re.findall(r'<p class="problem" role="alert">(.*?)</p>', answer.text, re.DOTALL)
    assert alert.count(". ") >= 1 and str(sources.folders[0].parent) not in answer.text and "<b>x" not in answer.text
    assert 'name="name" value="rooms"' in answer.text, "what was written stands there still"


def test_a_table_and_its_labels_are_imported_by_their_own_ways(tmp_path, videos, sources):
    workbench = Workbench(tmp_path)
    (videos / "some.TSV").write_text("path\tlabel\n")
    (videos / "labels.toml").write_text("")
    try:
        command = job_requests.import_of(workbench, sources, str(videos / "some.TSV"), "rooms", dry=True).command
        assert command[4:6] == ["csv", str(videos / "some.TSV")] and command[-1] == "--dry-run"
        assert f"--labels={videos / 'labels.toml'}" in command
        assert job_requests.import_of(workbench, sources, "two rooms", "rooms").command[4] == "folder"
    finally:
        (videos / "some.TSV").unlink()
        (videos / "labels.toml").unlink()


def test_without_a_named_folder_a_login_imports_nothing(tmp_path, monkeypatch, videos):
    monkeypatch.chdir(videos)
    with pytest.raises(DataError, match="--clips-from DIR"):
        Sources.of([], [], login=True).place("two rooms")
    assert Sources.of([], [], login=False).place("two rooms").name == "two rooms"
    monkeypatch.chdir("/")
    assert Sources.of([], [], login=False).folders == (), "not the whole disk, because a service starts there"


def taught(sources: Sources, url: str, **more) -> dict:
    return job_requests.endpoint(sources, url, more.get("model", "m"), more.get("traces", "1"))


def test_a_key_goes_to_its_own_provider_only(visitor, videos, monkeypatch, launched):
    for variable in (*PROVIDERS.values(), "TEACHER_KEY"):
        monkeypatch.setenv(variable, SECRET)
    for login in (False, True):
        sources = Sources.of([videos], ["http://teacher.test:9/v1=TEACHER_KEY"], login=login)
        assert {url: taught(sources, f"{url}/")["key_variable"] for url in sources.endpoints} == {
            **PROVIDERS,
            "http://teacher.test:9/v1": "TEACHER_KEY",
        }
        for url in ("http://127.0.0.1:8000/v1", "https://api.openai.com.evil.test/v1", "https://api.openai.com/v2"):
            if login:
                with pytest.raises(DeepIntuitError, match="--endpoint"):
                    taught(sources, url)
            else:
                assert taught(sources, url)["key_variable"] == OTHER_KEY
    form = {"stage": "teach", "endpoint": "http://127.0.0.1:8000/v1", "model": "m", "traces": "2", "base": "file:small"}
    assert visitor.post("/jobs", data=form | {"dataset": "rooms"}).status_code == 303
    settings = launched[0]["files"]["config.toml"]
    assert f'key_variable = "{OTHER_KEY}"' in settings and "traces = 2" in settings and SECRET not in settings
    assert SECRET not in visitor.get("/").text


@pytest.mark.parametrize(("url", "more", "why"), [
    ("ftp://x/v1", {}, "http or https"), ("http://user:secret@x/v1", {}, "more than an address"), ("", {}, "http"),
    ("http://x/v1?key=secret", {}, "more than an address"), ("http:///v1", {}, "http or https"),
    ("http://x/v1", {"model": " "}, "Name the model"), ("http://x/v1", {"traces": "two"}, "a number"),
    ("http://x/v1", {"traces": "0"}, "teach.traces"), ("https://api.openai.com/v1", {}, "Export OPENAI_API_KEY"),
    ("http://x/v1\r\nHost: y", {}, ""), ("http://x/v1", {"traces": "9" * 30}, "teach.traces"),
])  # fmt: skip
def test_an_endpoint_that_cannot_be_asked_is_refused_in_the_page(visitor, monkeypatch, url, more, why, launched):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    form = {"stage": "teach", "endpoint": url, "model": "m", "traces": "1", "base": "defaults", **more}
    answer = visitor.post("/jobs", data=form)
    [alert] = re.findall(r'<p class="problem" role="alert">(.*?)</p>', answer.text, re.DOTALL)
    assert answer.status_code == 400 and why in alert and not launched and "secret" not in alert


@pytest.mark.parametrize(
    "text", ["teacher.test", "http://x/v1=sk-123", "http://a:b@x/v1", "http://x/v1?k=v", "=KEY", ""]
)
def test_an_option_that_names_no_endpoint_or_holds_a_key_starts_no_server(tmp_path, capsys, text):
    assert main(["app", "--workbench", str(tmp_path), "--endpoint", text]) == 2
    assert "sk-123" not in capsys.readouterr().err
    assert main(["app", "--workbench", str(tmp_path), "--clips-from", str(tmp_path / "none")]) == 2


def test_an_import_that_a_file_of_somebody_else_names_is_checked_anew(tmp_path, sources, videos):
    workbench = Workbench(tmp_path)
    ours = job_requests.import_of(workbench, sources, "two rooms", "rooms").command
    job_requests.refuse_unless_stage(json.loads(json.dumps(ours)), workbench, sources)
    for at, word in (
        (5, "/etc"),
        (5, str(videos.parent / "private")),
        (4, "csv"),
        (7, "--workbench=/elsewhere"),
        (0, "sh"),
    ):
        with pytest.raises((StoreError, DataError)):
            job_requests.refuse_unless_stage([*ours[:at], word, *ours[at + 1 :]], workbench, sources)
    with pytest.raises(StoreError):
        job_requests.refuse_unless_stage([*ours, "--fresh"], workbench, sources)
    with pytest.raises(StoreError):
        job_requests.refuse_unless_stage([sys.executable, "-m", "deepintuit.cli", "clips"], workbench, sources)
