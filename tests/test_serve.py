"""A served system: the answers of `deepintuit predict` from a real server process, whoever asks and however many."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from embedded import Bench
from fastapi import HTTPException
from fastapi.testclient import TestClient

from deepintuit import cli, video
from deepintuit_clips.predict import Predictor
from deepintuit_clips.serve import batches, http

pytest_plugins = ["embedded"]

KEY = "a-key-of-this-test-alone"
PLACES = 6


@contextmanager
def serving(bench: Bench, system: str, temporary: Path, *words: str):
    """A server process and a client that knows its key."""
    command = [sys.executable, "-m", "deepintuit.cli", "serve", system, "--port", "0", "--queue", str(PLACES), *words]
    sets = [word for one in bench.sets("sampling.clips_per_batch=2") for word in ("--set", one)]
    environment = {**os.environ, "DEEPINTUIT_SERVE_KEY": f"another-key-for-later {KEY}", "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [*command, "--workbench", str(bench.path), "--config", "configs/tiny.toml", *sets],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said = process.stdout.readline()
        address = re.search(r"http://[\d.:]+", said)
        assert address, said + process.stderr.read()
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=address[0], headers=headers, timeout=120) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def videos(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    for number, row in enumerate(ours.manifest.usable("test").itertuples()):
        (folder / f"{number:02}.mp4").write_bytes(Path(row.path).read_bytes())
    return folder


@pytest.fixture(scope="module")
def table(ours, calibrated, videos):
    """What predict says, by file name."""
    frame = Predictor(ours.workbench, calibrated.id, ours.settings()).predict(videos, threshold=0.3)
    return {Path(path).name: row for path, row in zip(frame["path"], json.loads(frame.to_json(orient="records")))}


@pytest.fixture(scope="module")
def server(ours, calibrated, videos, tmp_path_factory):
    temporary = tmp_path_factory.mktemp("uploads")
    words = ("--root", str(videos), "--threshold", "0.3", "--most-mib", "1")
    with serving(ours, calibrated.id, temporary, *words) as (process, client):
        client.uploads, client.process = temporary, process
        yield client


def same(answer: dict, known: dict) -> bool:
    """Whether two answers are one: to the digit but for probabilities, whose last ones hang on the batch."""
    rounded = {name for name, value in known.items() if isinstance(value, float)} - {"seconds"}
    assert {name for name in known if name != "path"} <= answer.keys() and answer["seconds"] > 0
    assert answer.keys() == {*known, "path"}
    exact = {name for name in known if name not in rounded | {"path", "seconds"}}
    return all(answer[name] == known[name] for name in exact) and all(
        answer[name] == pytest.approx(known[name], rel=1e-4, abs=1e-6) for name in rounded
    )


def events(client: httpx.Client, **form) -> list[tuple[str, dict]]:
    with client.stream("POST", "/predict", data={**form, "stream": "true"}) as answer:
        if answer.status_code == 503:  # it began to stop before the clip was there
            return [("error", json.loads(answer.read()))]
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    found = [dict(line.split(": ", 1) for line in event.splitlines()) for event in text.split("\n\n") if event]
    return [(one["event"], json.loads(one["data"])) for one in found]


def metrics(client: httpx.Client) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def until(holds) -> None:
    """Wait for a state, not for a time."""
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to hold")


def test_many_clients_get_each_answer_once_and_as_predict_gives_it_though_the_line_is_short(server, videos, table):
    before, full = metrics(server), Counter()

    def visit(number: int) -> list[tuple[str, dict]]:
        heard = []
        with httpx.Client(base_url=server.base_url, headers=server.headers, timeout=120) as client:
            for name in sorted(table)[number % 4 :: 4]:
                while True:
                    sent = {"data": {"path": name}} if number % 2 else {"files": {"file": (name, videos / name)}}
                    if "files" in sent:
                        sent["files"]["file"] = (name, (videos / name).read_bytes())
                    answer = client.post("/predict", **sent)
                    if answer.status_code != 429:
                        break
                    assert "Ask again in" in answer.json()["detail"] and int(answer.headers["Retry-After"]) >= 1
                    full[number] += 1
                    time.sleep(0.05)
                assert answer.status_code == 200, answer.text
                heard.append((name, answer.json()))
        return heard

    with ThreadPoolExecutor(12) as pool:
        heard = [one for many in pool.map(visit, range(12)) for one in many]
    assert len(heard) == 36 and all(answer["path"] == name and same(answer, table[name]) for name, answer in heard)
    assert sum(full.values()), "twelve never filled six places"
    after = metrics(server)
    told = {name: after[name] - before.get(name, 0) for name in after if name.startswith("deepintuit_questions_total")}
    answered = sum(told.get(f'deepintuit_questions_total{{outcome="{how}"}}', 0) for how in ("answered", "abstained"))
    assert answered == 36 and told['deepintuit_questions_total{outcome="full"}'] == sum(full.values())
    batches = after["deepintuit_batch_clips_count"] - before["deepintuit_batch_clips_count"]
    assert batches < 36, "nothing was batched"
    until(lambda: metrics(server)["deepintuit_line_taken"] == 0)
    [scratch] = server.uploads.glob("deepintuit-serve-*")
    assert not [*scratch.iterdir()], "uploads are gone when they are answered"


def test_a_stream_shows_the_trace_as_it_is_written_and_ends_with_the_same_answer(server, table):
    said = events(server, path="03.mp4")
    assert [kind for kind, _ in said] == ["waiting", *["trace"] * (len(said) - 2), "answer"] and len(said) > 3
    assert same(said[-1][1], table["03.mp4"])
    assert "".join(data["text"] for kind, data in said if kind == "trace") == table["03.mp4"]["trace"]


def test_what_cannot_be_answered_gets_a_sentence_and_no_name_becomes_a_path(server, videos, tmp_path):
    (tmp_path / "secret.mp4").write_bytes((videos / "00.mp4").read_bytes())
    (videos / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (videos / "pipe").is_fifo() or os.mkfifo(videos / "pipe")
    for path in ("../00.mp4", str(tmp_path / "secret.mp4"), "link.mp4", "pipe", ".", "gone.mp4", "a\0b", "x" * 5000):
        answer = server.post("/predict", data={"path": path})
        assert (answer.status_code, answer.json()["detail"]) == (404, "There is no such file below this server's root")
    for name in ("../../x.mp4", "/etc/passwd", "a\n<script>.mp4", "\u202e4pm.mp4", "CON"):
        answer = server.post("/predict", files={"file": (name, b"no video at all " * 9)})
        told = answer.json()
        assert (
            answer.status_code == 422
            and told["reason"] == "not_a_video"
            and "cannot be read as a clip" in told["detail"]
        )
        assert str(server.uploads) not in answer.text
    for form in ({}, {"path": "00.mp4", "nonsense": "1"}, {"path": "00.mp4", "texts": "{}"}):
        assert server.post("/predict", data=form).status_code == 422
    both = server.post("/predict", data={"path": "00.mp4"}, files={"file": ("a.mp4", b"x")})
    assert both.status_code == 422 and "or two of them" in both.json()["detail"]
    assert server.post("/predict", json={"path": "00.mp4"}).status_code == 422
    large = server.post("/predict", files={"file": ("large.mp4", b"x" * (3 << 20))})
    assert large.status_code == 413 and "more than 1 MiB" in large.json()["detail"]

    def pieces():  # without a length that is told before
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield from [b"x" * (1 << 20)] * 3

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    assert server.post("/predict", content=pieces(), headers=kind).status_code == 413
    until(lambda: metrics(server)["deepintuit_line_taken"] == 0)
    [scratch] = server.uploads.glob("deepintuit-serve-*")
    assert not [*scratch.iterdir()]


def test_only_a_key_opens_and_the_pages_need_nothing_from_outside(server):
    for headers in ({"Authorization": ""}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}):
        for ask in (
            lambda h: server.post("/predict", data={"path": "00.mp4"}, headers=h),
            lambda h: server.get("/metrics", headers=h),
        ):
            answer = ask(headers)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    assert server.get("/metrics", headers={"Authorization": "bearer another-key-for-later"}).status_code == 200
    health = server.get("/health", headers={"Authorization": ""}).json()
    assert health["ok"] and health["places"] == PLACES
    page = server.get("/docs").text
    assert "POST /predict" in page and "server-sent events" in page and "p_theft" in page
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    described = server.get("/openapi.json").json()
    answer = described["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["properties"]["trace"]["anyOf"][0]["type"] == "string"
    assert described["paths"]["/predict"]["post"]["security"] == [{"HTTPBearer": []}]


def test_a_client_that_goes_away_gives_its_place_back(server):
    before = metrics(server).get('deepintuit_questions_total{outcome="gone"}', 0)
    with server.stream("POST", "/predict", data={"path": "05.mp4", "stream": "true"}) as answer:
        next(answer.iter_text())  # it waits, or is being answered

    def settled() -> bool:
        now = metrics(server)
        return (
            now["deepintuit_line_taken"] == now["deepintuit_answering"] == 0
            and before < now['deepintuit_questions_total{outcome="gone"}']
        )

    until(settled)
    assert server.post("/predict", data={"path": "05.mp4"}).status_code == 200


def test_it_listens_to_others_only_with_a_key_that_is_none_to_guess(ours, calibrated, monkeypatch, capsys):
    place = [calibrated.id, "--workbench", str(ours.path)]
    assert cli.main(["serve", *place, "--host", "0.0.0.0"]) == 2
    assert "without a key" in capsys.readouterr().err
    for key in ("", "sh0rt!", "long-enough-for-all but", "with-an-ümlaut-in-the-middle"):
        monkeypatch.setenv("DEEPINTUIT_SERVE_KEY", key)
        assert cli.main(["serve", *place]) == 2 and (said := capsys.readouterr().err)
        assert "16 or more" in said and (not key or key not in said)
    monkeypatch.delenv("DEEPINTUIT_SERVE_KEY")
    for words in (["--queue", "0"], ["--root", "/nowhere"], ["--port", "70000"], ["--threshold", "7"]):
        assert cli.main(["serve", *place, *words]) == 2 and words[0].strip("-") in capsys.readouterr().err


def test_one_clips_trouble_is_not_the_others_and_without_a_key_only_this_machine_is_answered(
    ours, calibrated, videos, table, tmp_path, monkeypatch
):
    predictor = Predictor(ours.workbench, calibrated.id, ours.settings())
    whole, first = predictor.answer_batch, table["00.mp4"]["clip_id"]

    def answer_batch(local, clips, *rest, **live):
        if any(clip.clip_id == first for clip in clips):
            raise RuntimeError("out of order")
        return whole(local, clips, *rest, **live)

    monkeypatch.setattr(predictor, "answer_batch", answer_batch)
    messages = {name: [] for name in ("00.mp4", "01.mp4", "gone.mp4")}
    line = batches.Line(predictor, predictor.rules(threshold=0.3), places=3)
    (tmp_path / "gone.mp4").write_bytes((videos / "02.mp4").read_bytes())
    with line._moved:  # all three go into one batch
        for name, inbox in messages.items():
            question = line.enter(inbox.append)
            question.name, question.path = name, (tmp_path if name == "gone.mp4" else videos) / name
            question.info = video.probe(question.path)
            line.ask(question)
        with pytest.raises(batches.Full):
            line.enter(print)
        (tmp_path / "gone.mp4").unlink()
    until(lambda: all(inbox[-1].kind != "waiting" for inbox in messages.values()))
    ends = {name: inbox[-1] for name, inbox in messages.items()}
    assert "RuntimeError" in ends["00.mp4"].data and ends["00.mp4"].reason is None
    assert ends["01.mp4"].data["trace"] == table["01.mp4"]["trace"] and ends["gone.mp4"].reason == "not_found"
    line.end(30)
    with pytest.raises(batches.Closed):
        line.enter(print)
    with TestClient(
        http.create(predictor, line.rules, places=1, most_bytes=1 << 20), "http://localhost:8080"
    ) as client:
        assert client.get("/health").status_code == 200 and client.get("/metrics").status_code == 200
        assert client.get("/health", headers={"Host": "elsewhere.example"}).status_code == 400
        answer = client.post("/predict", data={"path": "x"}, headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403 and "another site" in answer.json()["detail"]
        assert "start it with --root" in client.post("/predict", data={"path": "x"}).json()["detail"]


def test_texts_beside_a_clip_are_those_that_the_system_was_taught_with():
    assert http._texts('{"title": "a", "notes": ""}', ("title", "notes")) == {"title": "a"}
    for texts in (
        None,
        "{}",
        '{"title": 1}',
        '["title"]',
        '{"title": "a", "other": "b"}',
        '{"title": "a", "title": "b"}',
    ):
        with pytest.raises(HTTPException, match="422.*beside a clip: title"):
            http._texts(texts, ("title",))


def test_sigterm_answers_what_is_being_answered_tells_those_who_wait_and_leaves_nothing(server, table):
    """The last that asks this server."""
    with ThreadPoolExecutor(PLACES) as pool:
        asked = [pool.submit(events, server, path=f"{number:02}.mp4") for number in range(PLACES)]
        until(
            lambda: (now := server.get("/health").json())["answering"] and now["answering"] + now["waiting"] == PLACES
        )
        server.process.send_signal(signal.SIGTERM)
        ends = [one.result()[-1] for one in asked]
    assert server.process.wait(60) == 0, server.process.stderr.read()
    kinds = Counter(kind for kind, _ in ends)
    assert kinds["answer"] and kinds["answer"] + kinds["error"] == PLACES
    for kind, told in ends:
        assert same(told, table[told["path"]]) if kind == "answer" else "is stopping" in told["detail"]
    assert not [*server.uploads.iterdir()]
