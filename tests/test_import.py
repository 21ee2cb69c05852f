"""What an import meets on real disks: each odd file costs one row with its reason, and a kill leaves nothing behind."""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deepintuit import video
from deepintuit.cli import main
from deepintuit.data import Manifest
from deepintuit.errors import DiskError
from deepintuit.video import Limits, VideoError, VideoReason, isolation
from deepintuit_clips import Kind, import_csv, import_folder, scan

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which processes there are")
quiet_scan = partial(scan, probe=video.probe, playable_copy=video.playable_copy, progress=False)


def mp4(path: Path, shade: int = 1, frames: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write_mp4(path, np.full((frames, 64, 64, 3), 10 * shade, np.uint8), 6)
    return path


def csv(path: Path, *names: str) -> Path:
    rows = [f'"{name}",{"ab"[number % 2]}' for number, name in enumerate(names)]
    path.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    return path


def reasons(manifest: Manifest) -> dict[str, str]:
    return manifest.frame.set_index("source")["excluded"].dropna().to_dict()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sound clips, v/a/1.mp4 and v/b/2.mp4."""
    for number, label in enumerate("ab", 1):
        mp4(tmp_path / "v" / label / f"{number}.mp4", number)
    return tmp_path / "v"


# Files that the system does not give


def as_nobody() -> None:
    """In a child before it starts: file modes hold for root too."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def clips(*arguments: str | Path) -> str:
    """`deepintuit clips …` by a user who is not above file modes; what it prints."""
    command = [sys.executable, "-m", "deepintuit.cli", "clips", *map(str, arguments), "--quiet"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, preexec_fn=as_nobody, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_unreadable_file_is_a_matter_of_permission_and_is_tried_again(folder, tmp_path):
    for number in range(3, 7):
        mp4(folder / "a" / f"{number}.mp4", number)
    mp4(folder / "c" / "7.mp4", 7)
    mp4(folder / "b" / "hall" / "8.mp4", 8)
    closed, inside, hall = folder / "a" / "3.mp4", folder / "c", folder / "b" / "hall"
    closed.chmod(0)
    inside.chmod(0o600)  # its names can be listed, its files cannot be reached
    hall.chmod(0)
    at = ("--name", "d", "--workbench", tmp_path / "w")
    try:
        clips("folder", folder, *at)
        found = reasons(Manifest.load(tmp_path / "w", "d"))
        assert found == dict.fromkeys(("a/3.mp4", "b/hall", "c/7.mp4"), "no_permission")
        detail = Manifest.load(tmp_path / "w", "d").frame.set_index("source")["excluded_detail"]["a/3.mp4"]
        assert "Permission denied" in detail and "crash" not in detail
    finally:
        closed.chmod(0o644)
        inside.chmod(0o755)
        hall.chmod(0o755)
    clips("folder", folder, *at)
    assert reasons(Manifest.load(tmp_path / "w", "d")) == {}


def test_links_to_folders_are_followed_and_circles_end(folder, tmp_path):
    mp4(tmp_path / "elsewhere" / "3.mp4", 3)
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "round").symlink_to("../b")
    (folder / "b" / "about").symlink_to("../a")
    (folder / "b" / "self").symlink_to(".")
    found = {row.source for row in import_folder(folder).rows}
    assert found == {"a/1.mp4", "b/2.mp4", "c/3.mp4", "a/round/2.mp4", "b/about/1.mp4"}


def test_fresh_looks_at_every_file_again(folder, tmp_path):
    for number in range(3, 6):
        mp4(folder / "a" / f"{number}.mp4", number)
    at = ["clips", "folder", str(folder), "--name", "d", "--workbench", str(tmp_path), "--quiet", "--jobs", "1"]
    assert main(at) == 0
    journal = tmp_path / "clips" / "d.journal.jsonl"
    journal.write_text(journal.read_text().replace('"frames": 6', '"frames": 7'))
    assert main(at) == 0
    assert set(Manifest.load(tmp_path, "d").frame["frames"]) == {7}
    assert main([*at, "--fresh"]) == 0
    assert set(Manifest.load(tmp_path, "d").frame["frames"]) == {6}


def test_what_is_no_regular_file_costs_its_row_and_is_never_opened(folder, tmp_path):
    os.mkfifo(folder / "a" / "pipe.mp4")
    (folder / "a" / "loop.mp4").symlink_to("loop.mp4")
    (folder / "a" / "gone.mp4").symlink_to("nowhere.mp4")
    (folder / "a" / "device.mp4").symlink_to("/dev/zero")
    here = os.open(".", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(folder / "a")  # the name of a socket has at most 107 bytes
        try:
            listening.bind("socket.mp4")
        finally:
            os.fchdir(here)
            os.close(here)
        manifest, report = quiet_scan(import_folder(folder), tmp_path, "d")
    found = reasons(manifest)
    assert found == {
        "a/pipe.mp4": "not_a_video", "a/loop.mp4": "not_found", "a/gone.mp4": "not_found",
        "a/device.mp4": "not_a_video", "a/socket.mp4": "not_a_video",
    }  # fmt: skip
    assert len(report.findings) == 5 and len(manifest.usable()) == 2


@pytest.mark.parametrize("name", ["x" * 252 + ".mp4", "y/" * 3000 + "1.mp4", "a/1.mp4/2.mp4"])
def test_a_name_that_no_file_can_have_is_missing(folder, tmp_path, name):
    listing = import_csv(csv(tmp_path / "t.csv", "a/1.mp4", "b/2.mp4", name), folder)
    manifest, report = quiet_scan(listing, tmp_path, "d")
    assert reasons(manifest) == {name: "not_found"} and len(report.of(Kind.MISSING)) == 1


# Files that change while they are read


def test_a_file_that_vanishes_between_listing_and_reading_costs_its_row(folder, tmp_path):
    listing = import_folder(folder)

    def probe(path):
        path.unlink(missing_ok=True) if path.name == "1.mp4" else None
        return video.probe(path)

    manifest, _ = quiet_scan(listing, tmp_path, "d", probe=probe)
    assert reasons(manifest) == {"a/1.mp4": "not_found"}


@pytest.mark.parametrize("change", ["grows", "shrinks"])
def test_a_file_that_changes_while_it_is_read_is_no_clip_yet_and_is_looked_at_again(
    folder, tmp_path, monkeypatch, change
):
    target, whole = folder / "a" / "1.mp4", (folder / "a" / "1.mp4").read_bytes()
    hashed = video.frames.file_sha256

    def meanwhile(name, clock):
        if Path(name) == target:
            target.write_bytes(whole + bytes(100) if change == "grows" else whole[:-100])
        return hashed(name, clock)

    with monkeypatch.context() as patch:
        patch.setattr(video.frames, "file_sha256", meanwhile)
        manifest, _ = quiet_scan(import_folder(folder), tmp_path, "d")
    assert reasons(manifest) == {"a/1.mp4": "changed"}
    stamp = target.stat().st_mtime_ns
    target.write_bytes(whole)
    os.utime(target, ns=(stamp, stamp))
    manifest, _ = quiet_scan(import_folder(folder), tmp_path, "d")
    assert reasons(manifest) == {}


def test_a_recording_that_goes_on_is_read_or_refused_with_a_reason_at_every_moment(tmp_path):
    """A Matroska file that is written in steps, read after each of them and during them."""
    whole = (video_of(tmp_path / "whole.mkv", 40)).read_bytes()
    growing, over = tmp_path / "growing.mkv", threading.Event()
    growing.write_bytes(whole[:300])

    def write():
        with open(growing, "ab", buffering=0) as file:
            for at in range(300, len(whole), 97):
                file.write(whole[at : at + 97])
                time.sleep(0.001)
        over.set()

    threading.Thread(target=write).start()
    met = set()
    while not over.is_set():
        with contextlib.suppress(VideoError):
            video.read(growing, 4)
        try:
            met.add(video.probe(growing).truncated)
        except VideoError as error:
            met.add(error.reason)
    assert VideoReason.CHANGED in met
    assert video.probe(growing).frames == 40


def video_of(path: Path, frames: int) -> Path:
    import av

    noise = np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width = stream.height = 64
        for pixels in noise:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    return path


def test_an_error_of_the_reader_costs_its_row_and_not_the_child(folder, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyError(7)

    monkeypatch.setattr(video.frames, "_probe", broken)
    manifest, _ = quiet_scan(import_folder(folder), tmp_path, "d")
    assert set(reasons(manifest).values()) == {"decode_failed"}
    assert "KeyError: 7" in manifest.frame["excluded_detail"][0]


# What a file may cost


def test_a_refused_file_of_any_size_costs_no_hashing(folder, tmp_path):
    with open(folder / "a" / "sparse.mp4", "wb") as file:
        file.truncate(8 << 30)
    (folder / "a" / "text.mp4").write_text("no video")
    begun = time.monotonic()
    manifest, _ = quiet_scan(import_folder(folder), tmp_path, "d")
    assert time.monotonic() - begun < 10
    rows = manifest.frame.set_index("source")
    assert rows["excluded"]["a/sparse.mp4"] == rows["excluded"]["a/text.mp4"] == "not_a_video"
    assert rows["sha256"].isna().to_dict() == {
        "a/1.mp4": False, "b/2.mp4": False, "a/sparse.mp4": True, "a/text.mp4": False,
    }  # fmt: skip


def test_the_limit_on_time_includes_hashing(folder):
    clip = folder / "a" / "1.mp4"
    with open(clip, "ab") as file:  # a box that players skip: a size of 64 bits, then nothing
        file.write(b"\0\0\0\1free" + (64 << 30).to_bytes(8, "big"))
        file.truncate(file.tell() + (64 << 30) - 16)
    begun = time.monotonic()
    with pytest.raises(VideoError) as caught:
        video.probe(clip, Limits(max_seconds=1))
    assert caught.value.reason == VideoReason.TOO_SLOW and time.monotonic() - begun < 5


# Kills


IMPORT = """
import sys
from functools import partial
from deepintuit import video
from deepintuit_clips import import_folder, scan
scan(import_folder(sys.argv[1]), sys.argv[2], "d", probe=partial(video.probe, isolate=True),
          playable_copy=partial(video.playable_copy, isolate=True), jobs=2, progress=False)
"""


def descendants(pid: int) -> set[int]:
    """The processes below a process, by Linux's table."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            parents[int(entry.parent.name)] = int(fields[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {pid}


def runs(pid: int) -> bool:
    """Where nobody reaps orphans, an ended one stays as a zombie of one thread."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" or len(os.listdir(f"/proc/{pid}/task")) > 1
    return False


def wait_until(what, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unplayable(tmp_path_factory) -> Path:
    """Two clips that no browser plays, long enough to be killed in the middle of their copies."""
    folder = tmp_path_factory.mktemp("unplayable")
    for label, frames in (("a", 800), ("b", 801)):
        (folder / label).mkdir()
        video_of(folder / label / "1.mkv", frames)
    return folder


@LINUX
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_killed_import_leaves_no_process_and_the_next_one_no_half_copy(unplayable, tmp_path, how):
    """Killed while it copies, its children deep in an encoder."""
    copies = tmp_path / "w" / "clips" / "playable"
    command = [sys.executable, "-c", IMPORT, str(unplayable), str(tmp_path / "w")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as running:
        wait_until(lambda: copies.is_dir() and list(copies.glob("*.tmp")))
        left = descendants(running.pid)
        assert left
        running.send_signal(how)
        running.wait(20)
    wait_until(lambda: not any(map(runs, left)), 5)
    if how != signal.SIGKILL:
        return
    assert list(copies.glob("*.tmp"))
    with open(copies / ".of-another.tmp", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        quiet_scan(import_folder(unplayable), tmp_path / "w", "d", probe=None)
        assert [path.name for path in copies.glob("*.tmp")] == [".of-another.tmp"], "another import is writing it"
    assert len(list(copies.glob("*.mp4"))) == 2


@LINUX
def test_a_child_that_nobody_asks_ends_with_its_parent(folder):
    program = "import os, signal, sys; from deepintuit import video; from deepintuit.video import isolation as i\n"
    program += "video.probe(sys.argv[1], isolate=True); print(i._children.idle[0].process.pid, flush=True)\n"
    program += "os.kill(os.getpid(), signal.SIGKILL)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    clip = str(folder / "a" / "1.mp4")
    done = subprocess.run([sys.executable, "-c", program, clip], env=env, capture_output=True, timeout=60)
    wait_until(lambda: not runs(int(done.stdout)), 5)


@LINUX
def test_processes_that_render_clips_end_with_their_parent(tmp_path):
    program = "import sys; import deepintuit_homecam as homecam\n"
    program += "if __name__ == '__main__': homecam.write_clips(sys.argv[1], train=999, test=9, jobs=2, progress=False)"
    (tmp_path / "program.py").write_text(program)
    env, command = os.environ | {"PYTHONPATH": str(ROOT)}, [sys.executable, tmp_path / "program.py", tmp_path / "clips"]
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as running:
        wait_until(lambda: list((tmp_path / "clips").rglob("*.mp4")), 60)
        left = descendants(running.pid)
        running.kill()
    assert len(left) >= 2
    wait_until(lambda: not any(map(runs, left)), 10)


def test_a_child_knows_no_key_of_its_parent(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    isolation._children.close()
    video.probe(folder / "a" / "1.mp4", isolate=True)
    child = isolation._children.idle[-1].process.pid
    if sys.platform == "linux":
        assert b"sk-secret" not in Path(f"/proc/{child}/environ").read_bytes()


def test_copies_are_made_in_a_child_within_the_limits_of_the_import(tmp_path):
    source = video_of(tmp_path / "1.mkv", 10)
    assert video.playable_copy(source, tmp_path / "copy.mp4", isolate=True) == ""
    assert video.probe(tmp_path / "copy.mp4").playable
    with pytest.raises(VideoError) as caught:
        video.playable_copy(source, tmp_path / "no.mp4", Limits(max_seconds=0), isolate=True)
    assert caught.value.reason == VideoReason.TOO_SLOW and not (tmp_path / "no.mp4").exists()
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="a file stands where"):
        video.playable_copy(source, tmp_path / "file" / "copy.mp4", isolate=True)


# Files that end before they say


def test_a_download_that_broke_off_is_reported_and_kept_or_excluded(folder, tmp_path, capsys):
    for number in range(3, 8):
        mp4(folder / "a" / f"{number}.mp4", number)
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
    video.write_mp4(folder / "b" / "cut.mp4", noise, 10)
    whole = (folder / "b" / "cut.mp4").read_bytes()
    (folder / "b" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    at = ["clips", "folder", str(folder), "--name", "d", "--workbench", str(tmp_path), "--quiet", "--jobs", "1"]
    assert main(at) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "'b/cut.mp4' is truncated (used)" in said and "1 usable clips end before" in said
    frame = Manifest.load(tmp_path, "d").frame.set_index("source")
    assert frame["truncated"].to_dict() == {source: source == "b/cut.mp4" for source in frame.index}
    assert main(["clips", "show", "d", "--workbench", str(tmp_path)]) == 0
    assert "b/cut.mp4: used, but truncated" in capsys.readouterr().out
    assert main([*at, "--truncated", "exclude"]) == 0
    assert reasons(Manifest.load(tmp_path, "d")) == {"b/cut.mp4": "truncated"}


def test_a_manifest_of_an_earlier_version_opens_without_that_knowledge(folder, tmp_path):
    manifest, _ = quiet_scan(import_folder(folder), tmp_path, "d")
    path = manifest.save()
    pq.write_table(pq.read_table(path).drop_columns("truncated"), path)
    assert Manifest.load(tmp_path, "d").frame["truncated"].isna().all()
    assert Manifest.load(tmp_path, "d").summary().truncated == 0
