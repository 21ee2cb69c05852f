"""Disks that are full, read-only or damaged: one sentence, nothing acknowledged lost, nothing half-written left.

The full and the read-only disk are real ones (tmpfs) where the tests may mount.
"""

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepintuit import cli, disk, parquet, video
from deepintuit.errors import DiskError, StoreError
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import reviewed
from deepintuit_analysis.review import Event, EventLog, Kind, quality, read_events
from deepintuit_app import jobs, runs
from deepintuit_app.context import AppContext
from deepintuit_clips import import_folder, scan

ROWS = [{"clip_id": f"c{number}", "sample": 0, "text": f"text {number}"} for number in range(50)]


class Disk:
    """A small file system of its own at `path`."""

    def __init__(self, path: Path):
        self.path = path

    def fill(self, left: int = 0) -> None:
        """Take all its room, but for `left` bytes."""
        with open(self.path / "filler", "wb") as file:
            room = os.statvfs(self.path)
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - left)

    def free(self) -> None:
        (self.path / "filler").unlink()

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)


@contextmanager
def mounted(path: Path, size: str = "2m") -> Iterator[Disk]:
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True)
    if done.returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "small") as found:
        yield found


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of four clips each."""
    root = tmp_path_factory.mktemp("videos")
    for label in ("calm", "busy"):
        for number in range(4):
            frames = np.full((6, 96, 128, 3), 20 * number + 10 * (label == "busy"), np.uint8)
            (root / label).mkdir(exist_ok=True)
            video.write_mp4(root / label / f"{number}.mp4", frames, 6)
    return root


def leftovers(place: Path) -> list[str]:
    return [str(path.relative_to(place)) for path in place.rglob("*") if path.name.endswith(".tmp")]


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that cannot be done: exit code 2 and one line."""
    assert cli.main([*arguments, "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said and said.endswith(".") and "\n" not in said
    return said


# One file, whole or not at all


@pytest.mark.parametrize("write", [
    lambda path: disk.write_text(path, "new" * 100_000), lambda path: disk.write_json(path, ["new"] * 100_000),
])  # fmt: skip
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(small: Disk, write: Callable[[Path], None]) -> None:
    path = small.path / "file"
    disk.write_text(path, "old")
    small.fill(left=4096)
    with pytest.raises(DiskError, match=f"{path}' cannot be used: the disk is full. Free space") as error:
        write(path)
    assert error.value.errno == errno.ENOSPC
    assert path.read_text() == "old" and leftovers(small.path) == []


def test_what_is_interrupted_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), disk.replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


WRITERS = """
import os, signal, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from deepintuit import disk, parquet, video
from deepintuit_analysis import Workbench
from safetensors.numpy import save_file

bench, folder = Workbench(sys.argv[1]), Path(sys.argv[1])
rows, black = pa.table({"a": [1]}), np.zeros((2, 64, 64, 3), np.uint8)


def save_weights():
    with disk.replacing(folder / "checkpoint" / "head.safetensors") as temporary:
        save_file({"a": np.zeros(9)}, temporary)


writers = {
    "clips": lambda: disk.write_text(folder / "clips" / "labels.toml", "x"),
    "clips/playable": lambda: video.write_mp4(folder / "clips" / "playable" / "a.mp4", black, 2),
    "reports": lambda: disk.write_text(folder / "reports" / "card.html", "x"),
    "slices": lambda: bench.save_slice("night", "SELECT trace_id FROM trace_facts"),
    "checkpoint": save_weights,
    "parts": lambda: disk.publish(lambda to: parquet.write(rows, to), folder / "parts", "{}.parquet".format, 1),
    ".": lambda: bench.refresh(force=True),
}
for name in writers:
    (folder / name).mkdir(parents=True, exist_ok=True)


def end_of(work):
    if not (child := os.fork()):
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed():
    os.replace = os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    write()


assert end_of(bench.refresh) == 0
for write in writers.values():  # DuckDB's threads would not be in a child
    assert end_of(killed) == -signal.SIGKILL
for name, write in writers.items():
    left = set((folder / name).glob(".*.tmp"))
    (folder / name / ".of-an-earlier-version.tmp").write_text("half")
    held = disk.Scratch(folder / name, ".of-another*.tmp")
    write()
    assert left and set((folder / name).glob(".*.tmp")) == {held.path}, name
    held.remove()
"""


def test_what_a_kill_leaves_of_a_file_is_swept_by_the_next_that_writes_there(tmp_path: Path) -> None:
    """Killed as the file was to take its name; another one that is being written stays."""
    done = subprocess.run([sys.executable, "-c", WRITERS, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert leftovers(tmp_path) == []


def test_a_pipe_or_link_with_a_temporary_name_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".0.tmp")
    (tmp_path / "mine").mkdir()
    (tmp_path / ".1.tmp").symlink_to(tmp_path / "mine")
    disk.write_text(tmp_path / "file", "text")
    assert (tmp_path / "mine").is_dir() and not (tmp_path / ".0.tmp").exists()


def test_what_killed_readers_left_of_an_index_is_removed(tmp_path: Path) -> None:
    program = "import os, sys; from deepintuit_analysis import Workbench; b = Workbench(sys.argv[1]); b.refresh()\n"
    program += "b.query('SELECT 1'); os.kill(os.getpid(), 9)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True)
    assert len(list(tmp_path.glob("index.duckdb.spilled-*"))) == 1


def test_an_index_is_closed_before_the_interpreter_goes_down(tmp_path: Path) -> None:
    """Its threads would end the process with an abort (134) where they let go of a thing of Python's after that."""
    program = """
import atexit, sys
def last():
    try:
        bench._open._connection.execute("SELECT 1")
    except Exception as error:
        print(type(error).__name__)
atexit.register(last)  # the first that is registered runs last
from deepintuit_analysis import Workbench
bench = Workbench(sys.argv[1])
bench.refresh()
bench.query("SELECT 1")
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "ConnectionException"), done.stderr


def test_what_replaces_a_file_is_on_disk_before_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("replace"), replace(old, new)))
    disk.write_text(tmp_path / "file", "text")
    assert done[0].endswith(".tmp/file") and done[1:] == ["replace", str(tmp_path)]


REFUSED = "ENOSPC EDQUOT EROFS EACCES EPERM EIO ENOTDIR EISDIR EMFILE ENAMETOOLONG EFBIG".split()


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_disk_refuses_is_a_sentence_that_names_the_path(name: str) -> None:
    number = getattr(errno, name)
    said = str(disk.refusal(OSError(number, os.strerror(number), "/some/where")))
    assert said.startswith("'/some/where' cannot be used: ") and said.count(". ") == 1
    hidden = RuntimeError(f"IO error: {os.strerror(number)} (os error {number})")
    assert disk.refusal(hidden, Path("/some/where")).errno == disk.refusal(OSError(number, "")).errno
    assert disk.refusal(ValueError("no disk")) is None


# The command line


PLACES = {"full": lambda small: small.fill(), "read-only": lambda small: small.read_only()}


@pytest.mark.parametrize("state", PLACES)
def test_an_import_into_a_disk_that_takes_nothing_is_one_sentence(
    small: Disk, videos: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    place = small.path / "bench"
    (place / "clips").mkdir(parents=True)
    PLACES[state](small)
    said = sentence(capsys, "clips", "folder", str(videos), "--name", "x", "--jobs", "1", "--workbench", str(place))
    assert str(place) in said and ("disk is full" if state == "full" else "is read-only") in said
    assert leftovers(small.path) == []


@pytest.mark.parametrize("place", ["file", "file/bench", "n" * 300])
def test_a_workbench_that_cannot_be_a_folder_is_one_sentence(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("text")
    for command in (
        ["clips", "folder", str(videos), "--name", "x", "--jobs", "1"],
        ["clips", "show"],
        ["report"],
        ["clips", "homecam", "--train", "1", "--test", "1"],
        ["teach"],
        ["review", "report"],
    ):
        assert str(tmp_path / place) in sentence(capsys, *command, "--workbench", str(tmp_path / place))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "text"


def test_a_run_on_a_full_disk_is_let_go_of_and_goes_on_once_there_is_room(small: Disk) -> None:
    bench = Workbench(small.path / "bench")
    with pytest.raises(DiskError, match="traces-00001.parquet' cannot be used: the disk is full"):
        with bench.start_run("teach", {}) as run:
            run.append("traces", ROWS)
            small.fill()
            run.append("traces", [{"clip_id": "more", "sample": 0, "text": os.urandom(9000).hex()}])
    assert leftovers(small.path) == [] and not run.writable
    small.free()
    with bench.start_run("teach", {}) as again:
        assert again.id == run.id and len(again.read("traces")) == 50
        again.finish()


# Flipped bits


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A part of traces as a stage writes it."""
    with Workbench(tmp_path_factory.mktemp("bench")).start_run("teach", {}) as run:
        return run.append("traces", ROWS).read_bytes()


def sampled(content: bytes, count: int) -> list[int]:
    """Bits: `count` at random, and all of the last 40 bytes, where the footer says how long it is."""
    drawn = np.random.default_rng(0).choice(len(content) * 8, count, replace=False).tolist()
    return [*drawn, *range(len(content) * 8 - 320, len(content) * 8)]


def test_a_flipped_bit_in_a_part_changes_nothing_or_is_noticed(part: bytes, tmp_path: Path) -> None:
    path, missed = tmp_path / "part", 0
    path.write_bytes(part)
    whole = parquet.read(path)
    for bit in sampled(part, 600):
        path.write_bytes(flipped(part, bit))
        try:
            assert parquet.read(path).equals(whole)
            missed += 1
        except ValueError:
            continue
    assert missed < 20, "only where the mark of the checksum itself is hit does a file pass for one without"


def test_other_readers_find_the_damage_in_a_page_too(part: bytes, tmp_path: Path) -> None:
    place = part.index(b"PAR1") + 200
    (tmp_path / "part").write_bytes(flipped(part, place * 8))
    with pytest.raises(OSError):
        pq.read_table(tmp_path / "part", page_checksum_verification=True)


def test_a_damaged_part_is_named_left_out_of_pages_and_refused_by_stages(
    part: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Workbench(tmp_path / "bench")
    with bench.start_run("teach", {}) as run:
        path = run.append("traces", ROWS)
        run.append("traces", [{"clip_id": "whole", "sample": 0, "text": "text"}])
        run.finish()
    path.write_bytes(flipped(path.read_bytes(), 4000))
    with pytest.raises(
        StoreError, match=f"part traces-00000.parquet of run '{run.id}' cannot be read.*checksum.*Restore"
    ):
        bench.run(run.id).read("traces", ["clip_id"])
    bench.refresh()
    assert bench.query("SELECT clip_id FROM traces").clip_id.tolist() == ["whole"]
    [(source, problem)] = bench.problems()
    assert source == f"runs/{run.id}/traces-00000.parquet" and "checksum" in problem


def test_parts_of_earlier_versions_are_read_as_they_are(tmp_path: Path) -> None:
    table = pa.table({"clip_id": ["a", "b"], "text": ["deepintuit.sha256", "0" * 60]})
    pq.write_table(table, tmp_path / "part")
    assert (
        parquet.read(tmp_path / "part").equals(table)
        and parquet.read(tmp_path / "part", ["text", "new"]).num_columns == 1
    )


def test_no_text_passes_for_the_checksum(tmp_path: Path) -> None:
    mark = parquet._MARK.decode("latin-1")
    table = pa.table({"text": [mark + "0" * 64, mark, "z" + mark]})
    parquet.write(table, tmp_path / "part")
    assert parquet.read(tmp_path / "part").equals(table)


def test_a_flipped_bit_in_a_manifest_is_named(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--workbench", str(tmp_path / "bench")]
    assert cli.main(["clips", "folder", str(videos), "--name", "x", "--jobs", "1", "--quiet", *place]) == 0
    path = tmp_path / "bench" / "clips" / "x.parquet"
    path.write_bytes(flipped(path.read_bytes(), 900))
    capsys.readouterr()
    assert f"{path}' cannot be read (its checksum" in sentence(capsys, "clips", "show", "x", *place)


# Locks


def test_a_lock_that_cannot_be_written_is_released(small: Disk) -> None:
    small.fill()
    with pytest.raises(DiskError, match="lock' cannot be used: the disk is full"):
        disk.Lock(small.path / "lock")
    small.free()
    with disk.Lock(small.path / "lock") as lock:
        assert lock.held


def test_after_a_full_disk_refresh_hangs_in_no_process(small: Disk) -> None:
    bench = stored(small.path / "bench")
    small.fill()
    assert bench.refresh()
    program = f"from deepintuit_analysis import Workbench; Workbench({str(bench.path)!r}).refresh()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    small.free()
    assert Workbench(bench.path).refresh() and (bench.path / "index.duckdb").exists()


def test_who_waits_for_a_lock_is_told_who_holds_it(tmp_path: Path) -> None:
    with disk.Lock(tmp_path / "lock"), pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        disk.Lock(tmp_path / "lock", wait=0.2)


def test_a_lock_whose_holder_was_killed_is_free(tmp_path: Path) -> None:
    program = f"""from pathlib import Path; import os, signal; from deepintuit import disk
lock = disk.Lock(Path({str(tmp_path / "lock")!r})); os.kill(os.getpid(), signal.SIGKILL)"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert disk.Lock(tmp_path / "lock").held


# Reviews


def test_a_review_that_a_full_disk_did_not_take_is_not_acknowledged(small: Disk) -> None:
    with EventLog(small.path / "reviews") as log:
        kept = log.append(Event(Kind.JUDGED, "week", "ann", "t0"))
        small.fill()
        with pytest.raises(StoreError, match="was not saved: the disk is full"):
            log.append(Event(Kind.JUDGED, "week", "ann", "t1", payload={"note": "n" * 9000}))
        assert read_events(small.path / "reviews") == ([kept], [])
        small.free()
        assert log.append(Event(Kind.JUDGED, "week", "ann", "t1"))


def test_reviews_on_a_read_only_disk_are_a_sentence_and_hold_no_lock(small: Disk) -> None:
    (small.path / "reviews").mkdir()
    small.read_only()
    with pytest.raises(DiskError, match="is read-only"):
        EventLog(small.path / "reviews")


# The index


def stored(place: Path) -> Workbench:
    """A workbench with a run of 50 traces, which is not finished."""
    bench = Workbench(place)
    with bench.start_run("teach", {}) as run:
        run.append("traces", ROWS)
    return bench


def count(bench: Workbench) -> int:
    return int(bench.query("SELECT count(*) AS n FROM traces WHERE text LIKE 'text%'").n[0])


@pytest.mark.parametrize("left", [0, 64 << 10, 512 << 10])
@pytest.mark.parametrize("state", PLACES)
def test_a_workbench_that_takes_nothing_can_be_browsed(small: Disk, state: str, left: int) -> None:
    """Also where the room ends while the index is written."""
    bench = stored(small.path / "bench")
    with EventLog(bench.reviews) as log:
        log.append(Event(Kind.JUDGED, "week", "ann", "t0"))
    small.fill(left)
    if state == "read-only":
        small.read_only()
    assert bench.refresh() and count(bench) == 50 and bench.query("SELECT reviewer FROM reviews").reviewer[0] == "ann"
    assert not bench.refresh(), "nothing is new"
    assert sorted(path.name for path in bench.path.glob(".index.duckdb.tmp*")) == []


def test_reviews_of_a_read_only_workbench_without_any_are_none(small: Disk) -> None:
    bench = stored(small.path / "bench")
    small.read_only()
    assert quality.names(quality.reading(bench.reviews)) == []


def test_an_index_that_lies_on_a_read_only_disk_is_used_as_it_is(small: Disk) -> None:
    bench = stored(small.path / "bench")
    bench.refresh()
    small.read_only()
    again = Workbench(bench.path)
    assert not again.refresh() and count(again) == 50 and again.index_path == bench.path / "index.duckdb"


def test_where_temporary_files_have_no_room_either_there_is_a_sentence(
    small: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = stored(small.path / "bench")
    with mounted(tmp_path / "temporary") as other:
        monkeypatch.setattr("tempfile.tempdir", str(other.path))
        small.fill()
        other.fill()
        with pytest.raises((DiskError, OSError)) as error:
            bench.refresh()
        assert "the disk is full" in str(disk.sentence(error.value))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def scribble(path: Path) -> None:
    """Another byte in each block: whichever is read is damaged."""
    content = bytearray(path.read_bytes())
    for place in range(3 * 4096 + 100, len(content), 4096):
        content[place] ^= 0xFF
    path.write_bytes(content)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"x")


def change(sql: str) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        other = path.with_name("other.duckdb")  # a process opens a file once
        shutil.copyfile(path, other)
        with duckdb.connect(str(other)) as connection:
            connection.execute(sql)
        os.replace(other, path)

    return work


DAMAGES = {
    "cut": cut,
    "scribbled": scribble,
    "of a newer version": lambda path: path.write_bytes(path.read_bytes()[:12] + b"\xff" + path.read_bytes()[13:]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(50_000)),
    "a folder": folder,
    "without a table": change("DROP TABLE steps"),
    "without its mark": change("DELETE FROM about"),
    "with another column": change("ALTER TABLE predictions DROP COLUMN probs"),
    "with a foreign log beside it": lambda path: Path(f"{path}.wal").write_bytes(os.urandom(5000)),
    "with a folder for a log": lambda path: Path(f"{path}.wal").mkdir(),
}


@pytest.mark.parametrize(
    ("damage", "grows"), [(each, grows) for each in DAMAGES for grows in (True, False) if grows or "table" not in each]
)
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: str, grows: bool) -> None:
    bench = stored(tmp_path / "bench")
    bench.refresh()
    expected = 50
    if grows:
        with bench.start_run("teach", {}) as run:
            run.append("traces", [{"clip_id": "new", "sample": 0, "text": "text"}])
            run.append("steps", [{"step": 1, "name": "loss", "value": 1.0}])
            run.append(
                "predictions", [{"clip_id": "c0", "split": "test", "system": "s", "method": "m", "predicted": "a"}]
            )
        expected = 51
    DAMAGES[damage](bench.index_path)
    bench = Workbench(bench.path)
    bench.refresh()
    assert count(bench) == expected and bench.problems() == []
    assert len(bench.query("SELECT * FROM steps, predictions")) == grows


# Jobs


def until(ready: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_job_that_cannot_be_written_is_a_sentence_and_leaves_no_half(small: Disk) -> None:
    (small.path / "jobs").mkdir()
    small.fill()
    with pytest.raises(DiskError, match="the disk is full"):
        jobs.launch(small.path, [sys.executable, "-c", ""], stage="report", title="x", files={"x.toml": "a"})
    assert list((small.path / "jobs").iterdir()) == []


def test_a_job_goes_on_when_what_it_says_fills_the_disk(small: Disk, tmp_path: Path) -> None:
    """It says more than the disk holds, and more than a pipe does to which nobody listens."""
    program = f"""for _ in range(5000): print('y' * 1000)
open({str(tmp_path / "done")!r}, 'w')"""
    begun = jobs.launch(small.path, [sys.executable, "-c", program], stage="report", title="x")
    until((tmp_path / "done").exists)
    until(lambda: not jobs.find(small.path, begun.id).active)
    assert jobs.tail(small.path, begun.id).startswith("y") and leftovers(small.path) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"stage": 1}', b"[" * 100_000])
def test_a_damaged_job_costs_itself(tmp_path: Path, content: bytes) -> None:
    kept = jobs.launch(tmp_path, [sys.executable, "-c", ""], stage="report", title="x")
    damaged = tmp_path / "jobs" / "20200101-000000-000000-0000"
    damaged.mkdir()
    (damaged / "job.json").write_bytes(content)
    until(lambda: jobs.find(tmp_path, kept.id).status == "finished")
    assert [job.id for job in jobs.listed(tmp_path)] == [kept.id]
    with pytest.raises(StoreError, match="there is no job"):
        jobs.find(tmp_path, damaged.name)


# Training


def trainer_on(place: Path):  # noqa: ANN202 - transformers is imported where it is needed
    import torch
    from transformers import TrainingArguments

    from deepintuit.vlm.training import Resumable, Watch, trackers

    class Model(torch.nn.Module):
        dtype = torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(60_000))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * x.mean()).sum()}

    arguments = TrainingArguments(
        str(place / "training"), max_steps=6, save_steps=1, save_total_limit=2, logging_steps=1, report_to="none",
        use_cpu=True, disable_tqdm=True, per_device_train_batch_size=1, dataloader_pin_memory=False,
    )  # fmt: skip
    callbacks = [Watch("", None, None, False), *trackers("tensorboard", place)[1]]
    rows = [{"x": torch.ones(1)}] * 6
    return Resumable(model=Model(), args=arguments, train_dataset=rows, callbacks=callbacks)


@pytest.mark.parametrize("left", [4 << 10, 400 << 10, 900 << 10, 1600 << 10])
def test_a_checkpoint_for_which_there_is_no_room_is_a_sentence_and_leaves_no_half(
    small: Disk, capsys: pytest.CaptureFixture[str], left: int
) -> None:
    """In the weights, in the state of the optimizer, or in the logs."""
    small.fill(left)
    with pytest.raises((DiskError, OSError)) as error:
        trainer_on(small.path).train()
    assert str(small.path) in str(disk.sentence(error.value)) and "the disk is full" in str(disk.sentence(error.value))
    assert "record_writer" not in capsys.readouterr().err, "no traceback of the thread that writes logs"
    checkpoints = [path for path in small.path.glob("training/checkpoint-*") if not (path / "complete").exists()]
    assert checkpoints == [] and leftovers(small.path) == []


# What is damaged costs itself


ABOUTS = {
    "cut": lambda text: text[:100],
    "empty": lambda text: "",
    "no object": lambda text: "[]",
    "deep": lambda text: "[" * 100_000,
    "without a field": lambda text: text.replace('"status"', '"sta"'),
    "of another type": lambda text: text.replace('"seed": 0', '"seed": "0"'),
    "out of range": lambda text: text.replace('"seed": 0', '"seed": 1' + "0" * 30),
    "of no time": lambda text: text.replace('"created": "2', '"created": "x'),
    "of half a character": lambda text: text.replace('"stage": "teach"', '"stage": "\\ud800"'),
    "of another run": lambda text: text.replace('"run_id": "teach', '"run_id": "peach'),
    "no text": lambda text: b"\xff\xfe\x00\xd8",
}


@pytest.mark.parametrize("damage", ABOUTS)
def test_a_damaged_run_json_costs_its_run_and_is_named(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = stored(tmp_path / "bench")
    with bench.start_run("grpo", {}) as whole:
        whole.finish()
    [run] = bench.runs("teach")
    content = ABOUTS[damage]((run.path / "run.json").read_text())
    (run.path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert whole.id in [found.id for found in bench.runs()]
        bench.refresh()
    assert bench.query("SELECT run_id FROM runs").run_id.tolist() == [whole.id]
    assert [source for source, _ in bench.problems()] == [f"runs/{run.path.name}"]
    assert any(run.path.name in str(one.message) for one in warned)
    context = AppContext(bench.path)
    assert f"runs/{run.path.name} is left out" in runs.table(context, None, None, None)
    assert sentence(capsys, "report", "--workbench", str(bench.path))


GOOD = {
    "kind": "judged",
    "task": "week",
    "reviewer": "ann",
    "item": "t0",
    "clip": "c0",
    "id": "one",
    "payload": {},
    "time": "2026-11-30T12:00:00+00:00",
}
OPENED = {"name": "bad", "items": {"t0": "c0"}, "labels": ["a"], "questions": ["label"]}
EVENTS = {
    "no text": b"\xff\xfe{",
    "deep": b"[" * 100_000,
    "no object": b"[1, 2]",
    "without a field": {name: value for name, value in GOOD.items() if name != "time"},
    "with a foreign field": GOOD | {"more": 1},
    "of an unknown kind": GOOD | {"kind": "eaten"},
    "with a number for an id": GOOD | {"id": 7},
    "with a list for a reviewer": GOOD | {"reviewer": ["ann"]},
    "with a list for its answers": GOOD | {"payload": []},
    "with a list for a label": GOOD | {"payload": {"label": ["a"]}},
    "with a number for a note": GOOD | {"payload": {"note": 3}},
    "with a text for a place": GOOD | {"payload": {"failing": "first"}},
    "with a text for a sentence": GOOD | {"payload": {"failing": {"sentence": "1", "in": "seeing"}}},
    "of year 1": GOOD | {"time": "0001-01-01T00:00:00+23:00"},
    "said in year 1": GOOD | {"payload": {"said_at": "0001-01-01T00:00:00+23:00"}},
    "of no time": GOOD | {"time": "yesterday"},
    "under another's id": GOOD | {"id": "kept", "item": "t9"},
    "opens nothing": GOOD | {"kind": "opened", "task": "bad"},
    "opens with a list of items": GOOD | {"kind": "opened", "task": "bad", "payload": OPENED | {"items": ["t0"]}},
    "opens for a crowd": GOOD | {"kind": "opened", "task": "bad", "payload": OPENED | {"reviewers": 1e999}},
    "opens with a foreign field": GOOD | {"kind": "opened", "task": "bad", "payload": OPENED | {"more": 1}},
    "opens another task": GOOD | {"kind": "opened", "task": "good", "payload": OPENED},
}


@pytest.mark.parametrize("damage", EVENTS)
def test_a_review_event_of_another_shape_costs_itself_and_is_named(tmp_path: Path, damage: str) -> None:
    bench = stored(tmp_path / "bench")
    with EventLog(bench.reviews) as log:
        kept = log.append(Event(Kind.JUDGED, "week", "ann", "t1", "c1", {"label": "a"}, id="kept"))
    line = EVENTS[damage] if isinstance(EVENTS[damage], bytes) else json.dumps(EVENTS[damage]).encode()
    with closing(sqlite3.connect(bench.reviews / "events.sqlite", isolation_level=None)) as connection:
        connection.execute("INSERT INTO events (event) VALUES (?)", (line,))
    assert read_events(bench.reviews) == ([kept], [2])
    with pytest.warns(UserWarning, match=r"events.sqlite: 1 of its events cannot be read.*taken \(2\)"):
        reviews = quality.reading(bench.reviews)
    assert quality.names(reviews) == []
    bench.refresh()
    assert bench.query("SELECT event_id, label FROM reviews").values.tolist() == [["kept", "a"]]
    with EventLog(bench.reviews) as log:
        assert log.damaged == [2] and log.append(Event(Kind.JUDGED, "week", "bob", "t1"))


def test_a_sentence_beyond_all_numbers_spoils_no_other_row(tmp_path: Path) -> None:
    far = GOOD | {"payload": {"failing": {"sentence": 10**30, "in": "seeing"}}}
    event = Event.read(json.dumps(far).encode())
    assert reviewed.row_of(event)["failing_sentence"] is None


def replaced(**fields: object) -> Callable[[dict], dict]:
    return lambda entry: {"key": entry["key"], "seen": entry["seen"] | fields}


def measured(**fields: object) -> Callable[[dict], dict]:
    return lambda entry: replaced(info=entry["seen"]["info"] | fields)(entry)


JOURNAL = {
    "no text": lambda entry: b"\xff\xfe{",
    "deep": lambda entry: b"[" * 100_000,
    "no object": lambda entry: 7,
    "with lists for a key": lambda entry: entry | {"key": [["a"], 1, 2, "x"]},
    "with nothing seen": lambda entry: entry | {"seen": []},
    "without its hash": lambda entry: {"key": entry["key"], "seen": {"info": None}},
    "with a path for a hash": replaced(sha256="../../../../tmp/somewhere" + "0" * 39),
    "with a text for a width": measured(width="96"),
    "with a half frame": measured(frames=2.5),
    "with a width beyond all numbers": measured(width=10**30),
    "with a list for a codec": measured(codec=["h264"]),
    "excluded for a number": replaced(info=None, excluded=3, detail=""),
}


@pytest.mark.parametrize("damage", JOURNAL)
def test_a_damaged_line_of_the_journal_has_its_file_looked_at_again(tmp_path: Path, videos: Path, damage: str) -> None:
    looked: list[Path] = []

    def probe(path: Path) -> object:
        looked.append(path)
        return video.probe(path)

    def scanned() -> list:
        manifest, _ = scan(import_folder(videos), tmp_path, "x", probe=probe, progress=False)
        return manifest.frame.astype(object).where(manifest.frame.notna(), None).to_dict("records")

    first = scanned()
    journal = tmp_path / "clips" / "x.journal.jsonl"
    *others, line = filter(None, journal.read_bytes().split(b"\n"))
    entry = json.loads(line)
    changed = JOURNAL[damage](entry)
    others.append(changed if isinstance(changed, bytes) else json.dumps(changed).encode())
    journal.write_bytes(b"\n".join(others))
    looked.clear()
    with pytest.warns(UserWarning, match="x.journal.jsonl: 1 of its lines cannot be read"):
        assert scanned() == first
    assert looked == [Path(entry["key"][0])]


# Caches


@pytest.mark.parametrize("state", PLACES)
def test_a_cache_that_takes_nothing_costs_one_warning(small: Disk, videos: Path, state: str) -> None:
    cache = video.DiskCache(small.path / "cache")
    PLACES[state](small)
    path = next(videos.rglob("*.mp4"))
    with pytest.warns(UserWarning, match="takes no more: the .* The work goes on without it") as warned:
        first, second = (video.cached_read(cache, path, "sha", 4) for _ in range(2))
    assert first.hash == second.hash and len({str(one.message) for one in warned}) == 1
    assert leftovers(small.path) == []


def test_threads_that_write_one_file_never_mix(tmp_path: Path) -> None:
    texts = [str(number) * 50_000 for number in range(4)]
    threads = [threading.Thread(target=disk.write_text, args=(tmp_path / "file", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in texts and leftovers(tmp_path) == []
