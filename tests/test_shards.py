"""Shards of one run: processes that never meet do each clip once, and the one that ends last finishes it."""

import multiprocessing
import os
import signal
import time

import pyarrow.parquet as pq
import pytest

from deepintuit import disk, ranks
from deepintuit.errors import ConfigError, StoreError
from deepintuit.ranks import Shard
from deepintuit.runs import Workbench
from deepintuit_analysis.index.progress import at_work

CLIPS = [f"clip-{number:02}" for number in range(23)]
READABLE = [clip for clip in CLIPS if clip != CLIPS[5]]
IN_USE = 99


def begun(path, shard: Shard | None = None):
    return Workbench(path).start_run("evaluate", {"asked": 1}, shard=shard)


def work(path, text: str, until=None, dies: bool = False) -> bool:
    """One shard as a stage does it, two clips at a time; whether it finished the run."""
    with begun(path, Shard.of(text)) as run:
        if run.finished:
            return False
        own = [clip for clip in ranks.share(CLIPS, run.shard) if clip not in run.stored("traces")]
        for start in run.track("traces", range(0, len(own), 2), "Work", len(CLIPS), progress=False):
            clips = [clip for clip in own[start : start + 2] if clip != CLIPS[5]]
            run.append("traces", [{"clip_id": clip, "sample": 0, "text": text} for clip in clips])
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            while until and not until.exists():
                time.sleep(0.01)
        finishes = run.last("traces", CLIPS, {CLIPS[5]: "not a video"} if CLIPS[5] in own else {})
        if finishes:
            run.finish({"unreadable": run.about["unreadable"]})
    return finishes


def processes(path, *shards: str, **how) -> list:
    def body(shard: str) -> None:
        try:
            os._exit(10 + work(path, shard, **how))
        except StoreError as error:
            os._exit(IN_USE if "is in use by process" in str(error) else 1)

    started = [multiprocessing.get_context("fork").Process(target=body, args=(shard,)) for shard in shards]
    for process in started:
        process.start()
    return started


def ended(started) -> list[int]:
    for process in started:
        process.join(60)
    return [process.exitcode for process in started]


def parts(path) -> list[str]:
    return [*path.glob("runs/evaluate-*/traces-*.parquet")]


def clips_in_parts(path) -> list[str]:
    tables = (pq.read_table(part, columns=["clip_id"]) for part in parts(path))
    return sorted(clip for table in tables for clip in table["clip_id"].to_pylist())


def wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_shards_that_run_together_do_each_clip_once_and_one_of_them_finishes(tmp_path):
    codes = ended(processes(tmp_path, *(f"{number}/4" for number in range(1, 5))))
    assert sorted(codes) == [10] * 3 + [11]
    assert clips_in_parts(tmp_path) == READABLE
    run = begun(tmp_path)
    assert run.finished and run.summary["unreadable"] == {CLIPS[5]: "not a video"}
    assert len(run.about["sessions"]) == 4 and not [*run.path.glob("lock-*")]
    assert "Shard 3 of 4 has done its part" in (run.path / "log").read_text()


def test_while_shards_are_at_work_the_same_one_those_of_another_count_and_the_whole_are_refused(tmp_path):
    go = tmp_path / "go"
    one, other = processes(tmp_path, "1/2", "2/2", until=go)
    wait_for(lambda: len(parts(tmp_path)) == 2)
    [run] = Workbench(tmp_path).runs()
    assert at_work(Workbench(tmp_path), run.id)
    assert ended(processes(tmp_path, "1/2", "2/3", "1/12")) == [IN_USE] * 3
    with pytest.raises(StoreError, match="is in use by process"):
        begun(tmp_path)
    go.touch()
    assert sorted(ended([one, other])) == [10, 11] and clips_in_parts(tmp_path) == READABLE
    assert not at_work(Workbench(tmp_path), run.id)


def test_a_killed_shard_goes_on_where_it_stood_and_shards_of_another_count_heed_what_is_there(tmp_path):
    assert ended(processes(tmp_path, "1/2", dies=True)) == [-signal.SIGKILL]
    before = {part.name: part.read_bytes() for part in parts(tmp_path)}
    assert len(before) == 1 and not work(tmp_path, "2/2"), "the other half is not done"
    assert not work(tmp_path, "1/3") and not work(tmp_path, "2/3") and work(tmp_path, "3/3")
    assert clips_in_parts(tmp_path) == READABLE
    assert all((parts(tmp_path)[0].parent / name).read_bytes() == content for name, content in before.items())


@pytest.mark.parametrize("killed", [False, True])
def test_a_shard_that_comes_while_the_last_one_finishes_waits_and_finds_the_run_finished_or_finishes_it(
    tmp_path, killed
):
    assert not work(tmp_path, "1/2")
    with begun(tmp_path, Shard(2, 2)) as last:
        own = [clip for clip in ranks.share(CLIPS, last.shard) if clip in READABLE]
        last.append("traces", [{"clip_id": clip, "sample": 0, "text": ""} for clip in own])
        assert last.last("traces", CLIPS, {CLIPS[5]: "not a video"})
        started = processes(tmp_path, "1/2", "2/2")
        started[0].join(1)
        assert all(process.exitcode is None for process in started), "they wait"
        with pytest.raises(StoreError, match="is in use by process"):
            begun(tmp_path)
        last.close() if killed else last.finish()
    assert sorted(ended(started)) == ([10, 11] if killed else [10, 10])
    assert begun(tmp_path).finished and not [*last.path.glob("lock-*")]


def test_a_run_that_was_finished_a_moment_ago_stays_as_it_is(tmp_path, monkeypatch):
    run, take = begun(tmp_path), disk.take

    def taken(*arguments):
        run.finish({"score": 1})
        return take(*arguments)

    monkeypatch.setattr(disk, "take", taken)
    other = begun(tmp_path, Shard(1, 2))
    assert other.finished and other.summary == {"score": 1} and not other.writable


def test_the_whole_goes_on_where_shards_were_never_started_and_a_failed_one_stops_no_other(tmp_path):
    with begun(tmp_path, Shard(1, 2)) as run, begun(tmp_path, Shard(2, 2)) as other:
        run.fail(ValueError("no more memory"))
        other.note(departs=["video.frames"], server=[1])
        assert not other.finished and other.about["status"] == "running" and "no more memory" in other.about["error"]
    with begun(tmp_path, Shard(2, 2)) as run:
        run.note(server=[2])
        run.append("traces", [{"clip_id": CLIPS[1], "sample": 0, "text": ""}])
        assert not run.last("traces", CLIPS, {}) and run.waits == "1 of 23 clips are done by all shards"
        assert not run.writable
    with begun(tmp_path) as whole:
        assert whole.stored("traces") == {CLIPS[1]} and whole.about["server"] == [1, 2]
        whole.finish()
    assert whole.about["error"] is None


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "1/0", "1", "a/b", "1/4/2", "-1/4", "1.0/4", "\u0661/4", "1/ 4", "1/4\n"]
)
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match="counted from 1.*Write 1/8"):
        Shard.of(text)


def test_a_shard_of_several_launched_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="those divide the clips.*leave --shard out"):
        Shard.of("1/2")


def test_shards_share_out_every_item_once():
    for count in (1, 3, 9):
        shares = [ranks.share(CLIPS[:7], Shard(number, count)) for number in range(1, count + 1)]
        assert sorted(one for share in shares for one in share) == CLIPS[:7]
