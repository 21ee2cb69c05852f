"""What a browser sent lies in one private folder of the server's process, and goes with it, however that ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from porch import until, write_clip

from deepintuit.errors import VideoError
from deepintuit_app.uploads import Uploads

ROOT = Path(__file__).parents[2]
_HOLDS = "import sys; from deepintuit_app.uploads import Uploads; print(Uploads().inbox, flush=True); sys.stdin.read()"


def process(temporary: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
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


def test_the_folder_is_private_and_goes_with_the_last_that_holds_it():
    one, other = Uploads(), Uploads()
    given = one.inbox / "clip.mp4"
    write_clip(given)
    kept = one.accept(given, "clip.mp4")
    assert one.inbox == other.inbox and one.inbox.parent.stat().st_mode & 0o777 == 0o700
    one.close()
    assert not kept.path.exists() and one.get(kept.id) is None


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
