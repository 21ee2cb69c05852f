"""What a browser sent lies in one private folder of the server's process, and goes with it, however that ends."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import httpx
import pytest
from porch import until, write_clip

from deepintuit import video
from deepintuit.errors import DiskError, VideoError
from deepintuit.video import Limits
from deepintuit_app import uploads
from deepintuit_app.uploads import Uploads

ROOT = Path(__file__).parents[2]
_HOLDS = "import sys; from deepintuit_app.uploads import Uploads; print(Uploads().inbox, flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def own_folder(monkeypatch):
    """Servers of other tests in this process may hold theirs, with files in it."""
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setattr("deepintuit_app.uploads._folder", uploads._Folder())


def process(temporary: Path, *command: str) -> subprocess.Popen[str]:
    known = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": known}
    return subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=temporary,
        env=environment,
    )


def folders(temporary: Path) -> list[Path]:
    return list(temporary.glob("deepintuit-uploads-*"))


@pytest.mark.parametrize("way", ["there", "by a link", "upwards", "a folder", "no path", "not there"])
def test_a_file_that_no_browser_sent_is_refused_and_left_alone(tmp_path, way):
    uploads = Uploads()
    mine = tmp_path / "mine.mp4"
    write_clip(mine)
    link = uploads.inbox / f"{way}.mp4"
    if way == "by a link":
        link.symlink_to(mine)
    given = {
        "there": mine,
        "by a link": link,
        "upwards": f"{uploads.inbox}/../../../{mine}",
        "a folder": uploads.inbox,
        "no path": "a\0b.mp4",
        "not there": uploads.inbox / "x.mp4",
    }[way]
    with pytest.raises(VideoError, match="not uploaded here"):
        uploads.accept(given, "mine.mp4")
    assert mine.exists() and uploads.inbox.is_dir()
    uploads.close()


def test_the_folder_is_private_and_goes_with_the_last_that_holds_it():
    one, other = Uploads(), Uploads()
    given = one.inbox / "clip.mp4"
    write_clip(given)
    kept = one.accept(given, "clip.mp4")
    assert one.inbox == other.inbox and one.inbox.parent.stat().st_mode & 0o777 == 0o700
    one.close()
    assert not kept.path.exists() and one.get(kept.id) is None
    other.close()


def brought(uploads: Uploads, name: str, shade: int = 90) -> Path:
    given = uploads.inbox / name
    write_clip(given, shade)
    return given


def test_uploads_take_a_bounded_part_of_the_disk_and_what_was_asked_for_last_stays(monkeypatch):
    uploads = Uploads()
    first, second = (uploads.accept(brought(uploads, f"{n}.mp4", 50 + n), "clip.mp4") for n in range(2))
    free = [10 * 2**40]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    monkeypatch.setattr("deepintuit_app.uploads.ROOM", first.bytes + second.bytes + 100)
    assert uploads.get(second.id) and uploads.get(first.id)
    third = uploads.accept(brought(uploads, "3.mp4", 53), "clip.mp4")
    assert [uploads.get(one.id) is not None for one in (first, second, third)] == [True, False, True]
    assert not second.path.exists()
    free[0] = 0  # a quarter of what would be free without them is theirs
    assert uploads.get(third.id) is None and uploads.get(first.id) is None
    assert list(uploads.inbox.parent.glob("upload-*")) == []
    uploads.close()


def test_what_a_live_trace_reads_stays_and_an_upload_without_room_is_refused(monkeypatch):
    now = [0.0]
    uploads = Uploads(3600, lambda: now[0])
    held = uploads.accept(brought(uploads, "a.mp4"), "a.mp4")
    with uploads.held(held.id):
        monkeypatch.setattr("deepintuit_app.uploads.ROOM", held.bytes)
        with pytest.raises(
            VideoError, match=r"'b.mp4' cannot be used: .* room for uploads. Bring a smaller"
        ) as refused:
            uploads.accept(brought(uploads, "b.mp4", 91), "b.mp4")
        assert refused.value.reason == "too_large" and list(uploads.inbox.iterdir()) == []
        assert list(uploads.inbox.parent.glob("upload-*")) == [held.path]
        now[0] = 3601
        assert uploads.get(held.id) is held
    assert uploads.get(held.id) is None and not held.path.exists()
    uploads.close()


def test_a_copy_for_browsers_is_bounded_and_a_full_disk_is_a_sentence_that_names_no_folder(monkeypatch):
    uploads = Uploads()

    def refused() -> str:
        given = uploads.inbox / "clip.avi"
        with av.open(str(given), "w") as out:
            stream = out.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
            for _ in range(8):
                out.mux(stream.encode(av.VideoFrame(96, 96, "yuv420p")))
            out.mux(stream.encode())
        with pytest.raises(VideoError, match="'clip.avi' cannot be used|clip.avi' cannot be read") as error:
            uploads.accept(given, "clip.avi")
        assert list(uploads.inbox.iterdir()) == list(uploads.inbox.parent.glob("upload-*")) == []
        assert str(uploads.inbox.parent) not in str(error.value)
        return str(error.value)

    def full(*_: object, **__: object) -> str:
        raise DiskError(f"{uploads.inbox!r} cannot be used", "the disk is full", "Free space", errno.ENOSPC)

    monkeypatch.setattr("deepintuit_app.uploads._LIMITS", Limits(max_copy_bytes=10))
    assert "a copy for browsers would be larger" in refused()
    monkeypatch.setattr(video, "playable_copy", full)
    assert "the disk is full. Try again later" in refused()
    uploads.close()


def test_a_killed_server_leaves_no_upload_behind(tmp_path):
    with process(tmp_path, "-c", _HOLDS) as killed:
        inbox = Path(killed.stdout.readline().strip())
        (inbox / "clip.mp4").write_bytes(b"somebody's clip")
        assert folders(tmp_path) == [inbox.parent]
        killed.kill()
    until(lambda: not folders(tmp_path), 10)


def test_a_start_removes_what_dead_processes_left_and_nothing_of_the_living(tmp_path):
    dead = tmp_path / "deepintuit-uploads-dead"
    (dead / "received").mkdir(parents=True)
    (dead / "upload-x.mp4").write_bytes(b"somebody's clip")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "deepintuit-uploads-link").symlink_to(outside)
    with process(tmp_path, "-c", _HOLDS) as first, process(tmp_path, "-c", _HOLDS) as second:
        inboxes = {Path(one.stdout.readline().strip()) for one in (first, second)}
        assert not dead.exists() and outside.is_dir() and len(inboxes) == 2 and all(one.is_dir() for one in inboxes)
        first.stdin.close()
        second.stdin.close()
    until(lambda: folders(tmp_path) == [tmp_path / "deepintuit-uploads-link"], 10)


def test_a_server_that_is_told_to_end_takes_all_uploads_with_it(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "workbench").mkdir()
    write_clip(tmp_path / "clip.mp4")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ("-m", "deepintuit.cli", "app", "--workbench", str(tmp_path / "workbench"), "--port", str(port))
    with process(temporary, *command, "--no-browser") as server:
        url = f"http://127.0.0.1:{port}"

        def up() -> bool:
            assert server.poll() is None
            try:
                return httpx.get(f"{url}/config").status_code == 200
            except httpx.TransportError:
                return False

        until(up, 60)
        sent = httpx.post(
            f"{url}/gradio_api/upload", files={"files": ("clip.mp4", (tmp_path / "clip.mp4").read_bytes())}
        )
        assert Path(sent.json()[0]).is_relative_to(temporary) and len(folders(temporary)) == 1
        server.send_signal(signal.SIGTERM)
        server.wait(20)
        assert folders(temporary) == []
        assert not (temporary / "gradio").exists()
