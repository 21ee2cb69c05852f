"""Files by id: what a browser cannot play and what is excluded, and ids that were written to do harm."""

from __future__ import annotations

import io
import os
import shutil
import signal
from pathlib import Path

import av
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from porch import write_clip

from deepintuit import parquet, video, worker
from deepintuit.labels import LabelSet
from deepintuit.video import isolation
from deepintuit_analysis import Workbench
from deepintuit_app import media
from deepintuit_app.app import create
from deepintuit_clips import import_csv, scan

HOSTILE = [
    "..%2f..%2fetc%2fpasswd", "..%5c..%5cwindows", "%2fetc%2fpasswd", "%2e%2e", "....%2f%2f", "%00", "a%00.mp4",
    "%ff%fe", "%ed%a0%80", "a" * 5000, "%F0%9F%8E%AC" * 300, "upload-", "upload-" + "x" * 5000, "upload-..%2f..%2fx",
    "' OR 1=1 --", "%0d%0aSet-Cookie:%20x=1", "{0}", "${jndi:x}", "nul", "~root", "*", "%2a", "%E2%80%AE", "-1", "0x1",
    "1e3", "NaN", "9" * 5000,
]  # fmt: skip


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    """One clip that a browser plays, one that none does and that has no copy, one excluded by its listing's label."""
    folder = tmp_path_factory.mktemp("media")
    videos = folder / "videos"
    videos.mkdir()
    write_clip(videos / "plays.mp4")
    write_clip(videos / "excluded.mp4", 30)
    with av.open(str(videos / "old.avi"), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(8):
            out.mux(stream.encode(av.VideoFrame(96, 64, "yuv420p")))
        out.mux(stream.encode())
    (videos / "clips.csv").write_text("path,label\nplays.mp4,theft\nold.avi,routine\nexcluded.mp4,nobody knows\n")
    listing = import_csv(videos / "clips.csv", videos, labels=LabelSet.of("porch", ["theft", "routine"]))
    manifest, _ = scan(listing, folder / "workbench", "porch", probe=video.probe, progress=False)
    manifest.save()
    workbench = Workbench(folder / "workbench")
    workbench.refresh()
    return workbench


@pytest.fixture(scope="module")
def client(workbench) -> TestClient:
    return TestClient(create(workbench.path), base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


def clip_id(workbench: Workbench, name: str) -> tuple[str, Path]:
    row = workbench.query("SELECT clip_id, path FROM clips WHERE path LIKE ?", [f"%{name}"]).iloc[0]
    return row.clip_id, workbench.path / row.path


def test_a_clip_without_a_copy_for_browsers_is_sent_as_it_is_and_has_a_poster(workbench, client):
    number, path = clip_id(workbench, "old.avi")
    assert workbench.query("SELECT playable_path FROM clips WHERE clip_id = ?", [number]).iloc[0].isna().all()
    answer = client.get(f"/media/clip/{number}")
    assert answer.status_code == 200 and answer.content == path.read_bytes()
    poster = client.get(f"/media/poster/{number}")
    assert poster.status_code == 200 and Image.open(io.BytesIO(poster.content)).size == (96, 64)


def test_an_excluded_clip_is_not_given_out(workbench, client):
    number, path = clip_id(workbench, "excluded.mp4")
    assert path.is_file()
    for kind in ("clip", "poster"):
        answer = client.get(f"/media/{kind}/{number}")
        assert answer.status_code == 404 and "excluded" in answer.json()["detail"]


def test_a_clip_whose_file_became_a_folder_or_is_no_video_any_more_is_said_so(workbench, client):
    number, path = clip_id(workbench, "plays.mp4")
    kept = path.read_bytes()
    path.unlink()
    path.mkdir()
    assert [client.get(f"/media/{kind}/{number}").status_code for kind in ("clip", "poster")] == [410, 404]
    path.rmdir()
    path.write_bytes(b"no video")
    assert client.get(f"/media/poster/{number}").status_code == 404
    path.write_bytes(kept)


def test_a_workbench_of_somebody_else_shows_no_file_of_this_machine_but_videos(workbench, tmp_path):
    """Its manifest names what it likes; and a file that is a video and a web page too is sent as a video."""
    shutil.copytree(workbench.path, tmp_path / "theirs")
    videos = workbench.path.parent / "videos"
    page = (videos / "plays.mp4").read_bytes() + b"\x00\x00\x00\x21free<script>alert(1)</script>"
    (tmp_path / "theirs" / "page.html").write_bytes(page)
    (tmp_path / "secret.txt").write_text("secret " * 500)
    os.mkfifo(tmp_path / "pipe.mp4")
    named = [
        "page.html",
        "/etc/passwd",
        "../secret.txt",
        str(tmp_path / "secret.txt"),
        "/proc/self/environ",
        str(tmp_path / "pipe.mp4"),
        "/dev/zero",
        "../" * 30 + "etc/passwd",
    ]
    manifest = tmp_path / "theirs" / "clips" / "porch.parquet"
    table = parquet.read(manifest)
    row = next(row for row in table.to_pylist() if row["path"].endswith("plays.mp4"))
    rows = [{**row, "clip_id": f"{n:016x}", "path": one, "playable_path": one} for n, one in enumerate(named)]
    parquet.write(pa.Table.from_pylist(rows, table.schema), manifest)
    Workbench(tmp_path / "theirs").refresh()
    client = TestClient(create(tmp_path / "theirs"), base_url="http://127.0.0.1:7860")
    answer = client.get(f"/media/clip/{0:016x}")
    assert answer.status_code == 200 and answer.content == page
    assert answer.headers["content-type"] == "video/mp4" and answer.headers["x-content-type-options"] == "nosniff"
    for number in range(1, len(named)):
        for kind in ("clip", "poster"):
            answer = client.get(f"/media/{kind}/{number:016x}")
            assert answer.status_code in (404, 410)
            assert b"secret" not in answer.content and b"root:" not in answer.content


@pytest.mark.parametrize("place", ["clip/{}", "poster/{}", "frame/{}/0", "frame/{0}/{0}", "kept/{}/0", "card/{}"])
def test_an_id_of_nothing_is_404_whatever_it_is(client, place):
    for number in HOSTILE:
        answer = client.get(f"/media/{place.format(number)}")
        assert answer.status_code == 404, number
        assert "Traceback" not in answer.text


@pytest.fixture
def no_decoder_here(monkeypatch):
    """Whatever opens a video in this process fails."""

    def opened(*_, **__):
        raise AssertionError("a stranger's video was opened in the process of the server")

    monkeypatch.setattr("av.open", opened)
    monkeypatch.setattr("decord.VideoReader", opened)
    media._middle.cache_clear()
    media._is_video.cache_clear()


def test_videos_are_opened_in_child_processes_only(workbench, no_decoder_here):
    """Those of uploads and those of a workbench, for their facts, copies, posters and films."""
    server = create(workbench.path)
    visitor = TestClient(server, base_url="http://127.0.0.1:7860")
    known = [clip_id(workbench, name)[0] for name in ("plays.mp4", "old.avi")]
    for name in ("plays.mp4", "old.avi"):
        given = server.state.context.uploads.inbox / name
        shutil.copy(workbench.path.parent / "videos" / name, given)
        known.append(server.state.context.uploads.accept(given, name).id)
    for number in known:
        for kind, begins in (("poster", b"\xff\xd8"), ("clip", b"")):
            answer = visitor.get(f"/media/{kind}/{number}")
            assert answer.status_code == 200 and answer.content.startswith(begins), (kind, number)
    server.state.context.uploads.close()


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGSEGV])
def test_a_video_that_hangs_or_kills_its_decoder_costs_its_own_poster_once(workbench, client, monkeypatch, how):
    number, path = clip_id(workbench, "plays.mp4")
    os.utime(path)  # a file that nobody has seen yet
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(media, "_LIMITS", video.Limits(max_seconds=0.2))
    video.is_video(path, isolate=True)
    child = isolation._children.idle[-1].process.pid
    decode = isolation._children.ask
    struck = []

    def ask(request, *given, **named):
        struck.append(request["call"])
        os.kill(child, how)
        return decode(request, *given, **named)

    monkeypatch.setattr(worker.Child, "alive", True)
    monkeypatch.setattr(isolation._children, "ask", ask)
    assert [client.get(f"/media/poster/{number}").status_code for _ in range(3)] == [404] * 3
    assert struck == ["read"]
    monkeypatch.undo()
    assert client.get(f"/media/clip/{number}").status_code == 200
    os.utime(path)
    assert client.get(f"/media/poster/{number}").status_code == 200
