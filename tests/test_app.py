"""The server: login and throttle, files by id with Range, no way to a path, other hosts refused, uploads checked."""

import re
import resource
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from porch import live_workbench, until, write_clip

from deepintuit.errors import ConfigError, VideoError
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import clips
from deepintuit_app import login, media, prose, runs
from deepintuit_app.app import LOOPBACK, create, serve
from deepintuit_app.context import AppContext
from deepintuit_app.html import address, without_places, without_roots
from deepintuit_app.login import Throttle, add_user, hashed, read_users
from deepintuit_app.uploads import MAX_BYTES, Uploads

ROOT = Path(__file__).parents[1]
PAGE = {"accept": "text/html"}


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    workbench = live_workbench(tmp_path_factory.mktemp("app") / "workbench")
    clip = clips.find(workbench)[0][0]
    frames = media.video.read(workbench.path / clip["path"], 4, (64, 48))
    with workbench.start_run("evaluate", {}, dataset="porch") as run:
        seen = {
            "frame_indices": frames.indices_T, "frame_times": frames.times_T, "frame_hash": frames.hash,
            "frames_size": (64, 48), "reader": frames.reader,
        }  # fmt: skip
        row = {"clip_id": clip["clip_id"], "text": "<think> x </think><answer> theft </answer>", "provisional": "theft"}
        run.append("traces", [{**row, "sample": 0, **seen}, {**row, "sample": 1, **seen, "frame_hash": "another"}])
        run.finish({})
    workbench.refresh()
    return workbench


def client(workbench, users=None, host="127.0.0.1:7860", **more) -> TestClient:
    app = create(workbench.path, users, **more)
    return TestClient(app, base_url=f"http://{host}", follow_redirects=False)


@pytest.fixture(scope="module")
def plain(workbench) -> TestClient:
    return client(workbench)


@pytest.fixture(scope="module")
def ann() -> dict[str, str]:
    return {"ann": hashed("correct horse")}


# Starting


def test_the_app_starts_without_torch_in_twice_the_time_that_gradio_takes_to_import(workbench):
    """Of processor time, both in one process: how fast this machine is, and what else runs on it, is not the app's."""
    program = f"""
import sys, time
import gradio
gradios = time.process_time()
from deepintuit_app.app import create
from fastapi.testclient import TestClient
with TestClient(create({str(workbench.path)!r}), base_url="http://127.0.0.1:7860") as client:
    assert client.get("/").status_code == 200
heavy = {{"torch", "transformers", "trl", "peft"}} & set(sys.modules)
spent = time.process_time()
told = f"took {{spent:.1f}} s, of which Gradio's import {{gradios:.1f}}"
sys.exit(f"imported {{heavy}}" if heavy else told if spent > 2 * gradios else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_another_host_needs_a_login_and_a_taken_port_is_said(workbench):
    with pytest.raises(ConfigError, match="without a login"):
        serve(workbench.path, host="0.0.0.0", open_browser=False)
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot be listened on"):
            serve(workbench.path, port=taken.getsockname()[1], open_browser=False)


# Files by id


def test_a_clip_is_served_by_its_id_with_ranges(plain, workbench):
    clip = clips.find(workbench)[0][0]
    whole = (workbench.path / clip["path"]).read_bytes()
    answer = plain.get(media.clip_url(clip["clip_id"]))
    assert answer.content == whole and answer.headers["content-type"] == "video/mp4"
    part = plain.get(media.clip_url(clip["clip_id"]), headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == whole[10:20]
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"


def test_a_poster_is_a_small_jpeg(plain, workbench):
    answer = plain.get(media.poster_url(clips.find(workbench)[0][0]["clip_id"]))
    assert answer.headers["content-type"] == "image/jpeg" and answer.content[:2] == b"\xff\xd8"
    assert len(answer.content) < 20_000


def test_the_frames_of_a_trace_are_those_it_recorded_or_none(plain, workbench):
    right, other = [row["trace_id"] for row in clips.traces_of(workbench, clips.find(workbench)[0][0]["clip_id"])]
    assert [plain.get(media.frame_url(right, n)).status_code for n in (0, 3, 4, -1)] == [200, 200, 404, 404]
    assert plain.get(media.frame_url(other, 0)).status_code == 404


@pytest.mark.parametrize("number", [
    "nobody", "..%2f..%2fetc%2fpasswd", "%2e%2e", "upload-..%2f..%2fsecret", "' OR 1=1 --", "%00", "🎬",
])  # fmt: skip
def test_unknown_ids_are_404(plain, number):
    for kind in ("clip/{}", "poster/{}", "frame/{}/0", "kept/{}/0"):
        assert plain.get(f"/media/{kind.format(number)}").status_code == 404


@pytest.mark.parametrize("path", [
    "/static-app/../app.py", "/static-app/..%2fapp.py", "/static-app/app.py", "/gradio_api/file=pyproject.toml",
    "/gradio_api/file=/etc/passwd", f"/gradio_api/file={ROOT}/README.md", "/file=/etc/passwd",
])  # fmt: skip
def test_no_file_is_served_by_its_path(plain, path):
    answer = plain.get(path)
    assert answer.status_code in (403, 404)
    assert not any(words in answer.content for words in (b"[project]", b"root:", b"import annotations"))


def test_nothing_of_the_workbench_is_served_by_its_path(plain, workbench):
    for inside in ("index.duckdb", clips.find(workbench)[0][0]["path"]):
        assert plain.get(f"/gradio_api/file={workbench.path / inside}").status_code in (403, 404)


def test_a_clip_whose_file_is_gone_says_so(workbench, tmp_path):
    import shutil

    shutil.copytree(workbench.path, tmp_path / "copy")
    copy = Workbench(tmp_path / "copy")
    clip = clips.find(copy)[0][0]
    (copy.path / clip["path"]).unlink()
    answer = client(copy).get(media.clip_url(clip["clip_id"]))
    assert answer.status_code == 410 and "moved or deleted" in answer.text


# Who may ask


def test_every_answer_keeps_other_hosts_out(plain):
    for path in ("/", "/static-app/app.js", "/nothing"):
        policy = plain.get(path).headers["content-security-policy"]
        assert "default-src 'self'" in policy and "http" not in policy
        assert plain.get(path).headers["x-content-type-options"] == "nosniff"


def test_requests_under_another_name_are_refused(workbench):
    assert client(workbench, host="evil.example").get("/").status_code == 400
    assert client(workbench, host="localhost:7860").get("/").status_code == 200
    assert client(workbench, host="[::1]:7860").get("/").status_code == 200
    assert "127.0.0.1" in LOOPBACK


def test_another_sites_page_can_send_nothing(plain):
    for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/login"):
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            assert plain.post(path, headers={"Origin": origin}).status_code == 403
    ours = plain.post("/gradio_api/upload", headers={"Origin": "http://127.0.0.1:7860"}, files={})
    assert ours.status_code != 403


def test_what_can_be_asked_without_a_login_is_only_the_login(workbench, ann):
    outside = client(workbench, ann)
    clip = media.clip_url(clips.find(workbench)[0][0]["clip_id"])
    for path in ("/", "/traces", clip, "/config", "/gradio_api/info", "/static-app/app.js", "/theme.css"):
        assert outside.get(path).status_code == 401
        assert outside.get(path, headers=PAGE).status_code == 303
    assert outside.post("/gradio_api/queue/join", json={}).status_code == 401
    assert outside.get("/login").status_code == 200
    assert "content-security-policy" in outside.get("/login").headers


def test_a_login_leads_back_to_where_one_was_going(workbench, ann):
    user = client(workbench, ann)
    to = user.get("/errors?run=a%26b&x=1", headers=PAGE).headers["location"]
    assert to.startswith("/login?next=")
    shown = re.search(r'name="next" value="([^"]*)"', user.get(to).text)[1].replace("&amp;", "&")
    form = {"username": "ann", "password": "correct horse", "next": shown}
    answer = user.post("/login", data=form)
    assert answer.status_code == 303 and answer.headers["location"] == "/errors?run=a%26b&x=1"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie
    assert user.get("/").status_code == 200
    user.cookies.set("other", "{json: [1]}")  # a neighbour's cookie that no parser likes
    assert user.get("/").status_code == 200
    assert user.get("/logout").status_code == 200 and user.get("/").status_code == 200, "a link logs nobody out"
    assert user.post("/logout").status_code == 303 and user.get("/").status_code == 401


@pytest.mark.parametrize(
    "elsewhere", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:1", "/a b"]
)
def test_a_login_leads_nowhere_else(workbench, ann, elsewhere):
    form = {"username": "ann", "password": "correct horse", "next": elsewhere}
    assert client(workbench, ann).post("/login", data=form).headers["location"] == "/"


def test_failed_attempts_are_throttled_and_a_right_one_ends_it(workbench, ann, monkeypatch):
    now = [1000.0]
    user = client(workbench, ann)
    monkeypatch.setattr(login, "Throttle", lambda: Throttle(lambda: now[0]))
    wrong, right = {"username": "ann", "password": "x"}, {"username": "ann", "password": "correct horse"}
    assert [user.post("/login", data=wrong).status_code for _ in range(4)] == [401, 401, 401, 429]
    refused = user.post("/login", data=right)
    assert refused.status_code == 429 and "Wait 1 second," in refused.text
    now[0] += 1.1
    assert user.post("/login", data=right).status_code == 303
    answer = user.post("/login", data={"username": "x" * 5000, "password": ""})
    assert answer.status_code == 413 and "larger than 4 KiB" in answer.json()["error"]


def test_users_are_kept_hashed_and_only_their_owner_reads_the_file(tmp_path):
    path = tmp_path / "users"
    add_user(path, "ann", "correct horse")
    add_user(path, "bob", "battery staple")
    add_user(path, "ann", "another one")
    users = read_users(path)
    assert login.matches("another one", users["ann"]) and not login.matches("correct horse", users["ann"])
    assert "another" not in path.read_text() and path.stat().st_mode & 0o077 == 0
    for name, password in (("", "long enough"), ("a:b", "long enough"), ("carl", "short")):
        with pytest.raises(ConfigError):
            add_user(path, name, password)
    path.write_text("ann:secret\n")
    with pytest.raises(ConfigError, match="never kept as they are"):
        read_users(path)


# Uploads


def sent(uploads: Uploads, name: str) -> Path:
    """Where Gradio would put a file that a browser sends."""
    place = uploads.inbox / secrets.token_hex(8) / name
    place.parent.mkdir()
    return place


def test_an_upload_is_taken_over_served_and_gone_after_its_hour():
    now = [0.0]
    uploads = Uploads(3600, lambda: now[0])
    given = sent(uploads, "mine.mp4")
    write_clip(given)
    upload = uploads.accept(given, "mine.mp4")
    assert not given.exists() and upload.path.exists() and upload.info.seconds == pytest.approx(2)
    assert len(upload.id) > 20 and "mine" not in str(upload.path)
    assert uploads.get(upload.id) is upload and uploads.get("upload-other") is None
    now[0] = 3601
    assert uploads.get(upload.id) is None and not upload.path.exists()


def test_an_uploaded_clip_that_no_browser_plays_gets_a_copy():
    import av

    uploads = Uploads()
    given = sent(uploads, "old.avi")
    with av.open(str(given), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for _ in range(8):
            out.mux(stream.encode(av.VideoFrame(96, 96, "yuv420p")))
        out.mux(stream.encode())
    upload = uploads.accept(given, "old.avi")
    assert upload.playable != upload.path and media.video.probe(upload.playable).playable


@pytest.mark.parametrize("content", [b"", b"not a video", b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 64])
def test_a_refused_upload_is_deleted_and_its_place_is_not_told(content):
    uploads = Uploads()
    given = sent(uploads, "x.mp4")
    given.write_bytes(content)
    with pytest.raises(VideoError) as refused:
        uploads.accept(given, "holiday.mp4")
    assert "holiday.mp4" in str(refused.value) and given.parent.name not in str(refused.value)
    assert not given.exists()


def test_too_large_an_upload_is_refused_on_its_way_and_again_on_arrival(workbench, monkeypatch):
    uploads = Uploads()
    large = sent(uploads, "large.mp4")
    with open(large, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(VideoError, match="larger than 200 MB"):
        uploads.accept(large, "large.mp4")
    monkeypatch.setattr("deepintuit_app.app.MAX_BYTES", 1000)
    visitor = client(workbench)
    for size, code in ((900, 200), (2000, 413)):
        answer = visitor.post("/gradio_api/upload", files={"files": ("a.mp4", b"x" * size)})
        assert answer.status_code == code


def test_the_oldest_upload_goes_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr("deepintuit_app.uploads._MOST", 2)
    uploads = Uploads()
    made = []
    for number in range(3):
        given = sent(uploads, "clip.mp4")
        write_clip(given, 50 + number)
        made.append(uploads.accept(given, "clip.mp4"))
    assert [uploads.get(one.id) is not None for one in made] == [False, True, True]


# What pages share


def test_new_parts_appear_without_a_restart_and_a_slow_index_holds_nobody_up(workbench, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(workbench.path, tmp_path / "copy")
    context = AppContext(tmp_path / "copy")
    monkeypatch.setattr("deepintuit_app.context._FRESH", 0.0)
    before = len(context.look().query("SELECT * FROM runs"))
    with Workbench(tmp_path / "copy").start_run("teach", {}, dataset="porch") as run:
        run.finish({})
    until(lambda: len(context.look().query("SELECT * FROM runs")) == before + 1, 10)
    monkeypatch.setattr(context.workbench, "refresh", lambda: time.sleep(3))
    started = time.monotonic()
    context.look()
    assert time.monotonic() - started < 1


def test_an_address_holds_the_state_of_a_page():
    assert address("watch", clip="a&b", trace=None) == "watch?clip=a%26b" and address("runs") == "runs"


def test_sentences_and_moments_of_a_trace():
    text = "<think> At 1.5 s he waits. Frame 2: he runs! From 2 to 9 s. Frame 7? </think><answer> a </answer> tail"
    shown = prose.trace_html(text, "think-answer", [0.1, 0.4], seconds=3.0)
    assert re.findall(r'data-seek="([\d.]+)"', shown) == ["1.500", "0.400", "2.000"]
    assert re.findall(r'data-at="([\d.,]+)"', shown) == ["1.500", "0.400", "2.000"]
    assert "The clip ends at 3.0 s" in shown and "shown no such frame" in shown
    assert shown.count('class="sentence"') == 6 and "segment outside" in shown
    spans = prose.sentences(text)
    assert "".join(text[a:b] for a, b in spans) == text


@pytest.mark.parametrize("grammar", ["think-answer", "observation-think-answer", "answer-think-answer"])
@pytest.mark.parametrize(
    "text", ["", "<", "<think>", "</think></answer>", "<answer><think></answer>", r"\boxed{a}\boxed{b", "a" * 9]
)
def test_any_text_is_shown_whole_while_it_grows(grammar, text):
    for end in range(len(text) + 1):
        prose.trace_html(text[:end], grammar, writing=True)
    kept = re.sub(r"<div class=\"part\">.*?</div>|<[^>]+>", "", prose.trace_html(text, grammar))
    for mark in (r"\boxed{", "}", "<think>", "</think>", "<answer>", "</answer>", "<observation>"):
        text = text.replace(mark, "")
    assert all(letter in kept for letter in text if letter.isalnum())


def test_hostile_lengths_cost_little():
    started = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    for evil in ("." * 50_000, "Frame 1. " * 2_000, "1:" * 20_000, " " * 50_000, "<think>" * 2_000):
        prose.trace_html(f"<think>{evil}", "think-answer", [0.1], 3.0, writing=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - started < 5


def test_only_the_parts_of_a_token_that_are_marked_get_a_mark():
    shown = prose.trace_html("<think>He runs.</think>", token_marks=[prose.TokenMark(10, 14, "low", "12 %")])
    assert '<p><span class="sentence">He <span class="token low" title="12 %">runs</span>.</span></p>' in shown


@pytest.mark.parametrize(("stored", "shown"), [
    ("/there/wb/runs/a/checkpoint", "runs/a/checkpoint"), ("/there/wb", "wb"), ("/there/wb-2/model.bin", "model.bin"),
    ("/elsewhere/ann/set.toml", "set.toml"), ("D:\\clips\\a b.mp4", "a b.mp4"),
    ("configs/tiny.toml", "configs/tiny.toml"),
    ("--config=/elsewhere/ann/set.toml", "--config=set.toml"), ("/", ""), ("1/2", "1/2"), (0.5, 0.5), (None, None),
    (["demo", "--workbench", "/there/wb"], ["demo", "--workbench", "wb"]), ({"a": {"b": "/x/y"}}, {"a": {"b": "y"}}),
    ("it is not in /there/wb/clips, nor in /there/wb", "it is not in clips, nor in wb"),
])  # fmt: skip
def test_a_stored_path_is_shown_without_the_folders_of_the_machine(stored, shown):
    assert without_places(stored, "/there/wb") == shown


def test_run_details_and_their_log_name_no_folder_of_the_machine(tmp_path):
    workbench = Workbench(tmp_path / "wb")
    with workbench.start_run("teach", {"workbench": str(workbench.path), "teach": {"film": "/elsewhere/x.mp4"}}) as run:
        run.log(f"reads {workbench.path}/clips")
        run.finish({"model": str(run.checkpoint)})
    context = AppContext(workbench.path)
    shown = (
        runs.details(context, run.id) + runs.table(context, None, None, None) + runs.comparison(context, [run.id] * 2)
    )
    assert str(tmp_path) not in shown and "/elsewhere" not in shown
    assert "reads clips" in shown and f"runs/{run.id}/checkpoint" in shown and "x.mp4" in shown
    assert without_roots("/ is no root", "/") == "/ is no root"
