"""The store: nothing acknowledged is lost, nothing half-written is seen, one process a run, readers never wait."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepintuit.disk import JsonCache
from deepintuit.errors import StoreError
from deepintuit.labels import LabelSet
from deepintuit.runs import GRAINS, TraceRow, trace_id, without_secrets
from deepintuit.runs.schema import storable
from deepintuit.trace import parse
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import build


@pytest.fixture
def workbench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path / "a 'workbench' [1]")


def trace(clip: str = "c0", sample: int = 0, **more: object) -> dict[str, object]:
    return {"clip_id": clip, "sample": sample, "text": "<think>a dog</think><answer>dog</answer>", **more}


def prediction(clip: str = "c0", **more: object) -> dict[str, object]:
    return {
        "clip_id": clip,
        "split": "test",
        "system": "coldstart",
        "method": "label_likelihood",
        "true_label": "dog",
        "predicted": "dog",
        "labels": ["dog", "cat"],
        "probs": [0.75, 0.25],
        **more,
    }


def write_manifest(workbench: Workbench, label: str) -> None:
    rows = pa.table({"dataset": ["home"] * 2, "clip_id": ["a", "b"], "label": [label] * 2, "split": ["test"] * 2})
    pq.write_table(rows, workbench.clips / "home.parquet")


# Rows


def test_rows_come_back_as_they_were(workbench: Workbench) -> None:
    run = workbench.start_run("coldstart", {})
    run.append(
        "traces",
        [
            trace(
                token_logprobs=np.array([-0.5, -0.25]),
                token_ids=[3, 4],
                frame_times=[0.0, 1 / 3],
                frames_size=(96, 64),
                truncated=False,
                tokens=np.int64(2),
            )
        ],
    )
    [row] = run.table("traces").to_pylist()
    assert row["trace_id"] == trace_id(run.id, "c0", 0) and row["run_id"] == run.id and row["stage"] == "coldstart"
    assert row["token_logprobs"] == [-0.5, -0.25] and row["frame_times"] == [0.0, 1 / 3]
    assert row["frames_size"] == [96, 64] and row["truncated"] is False and row["tokens"] == 2 and row["reason"] is None


def test_a_row_made_of_a_parsed_text_says_what_the_parser_says_and_has_a_column_for_each(workbench: Workbench) -> None:
    labels = LabelSet.of("two", ["cat", "dog"])
    sound, doubtful = "<think>A.</think><answer> Cat </answer>", "well <think>A.</think><answer>cat</answer>"
    run = workbench.start_run("grpo", {})
    about = {"clip_id": "c0", "step": 3, "token_ids": [1], "thought": False}
    for sample, text in enumerate((sound, doubtful)):
        run.append("traces", [TraceRow.of(parse(text, "think-answer", labels), sample=sample, **about)])
    first, second = run.table("traces").to_pylist()
    assert (first["trace_id"], first["stage"]) == (trace_id(run.id, "c0", 0, 3), "grpo")
    assert (first["answer"], first["provisional"], first["reason"]) == (" Cat ", "cat", None)
    # Also where the label can still be read: the column holds answers as they were written in a trace.
    assert (second["answer"], second["provisional"], second["reason"]) == (None, "none", "text_outside")
    assert first["token_ids"] == [1] and first["thought"] is False and first["tokens"] is None
    with pytest.raises(TypeError, match="frame_hsah"):
        TraceRow.of(parse(sound, "think-answer", labels), clip_id="c0", sample=0, frame_hsah="x")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_entry_of_a_json_cache_counts_as_absent_and_is_written_again(tmp_path: Path, content: bytes) -> None:
    cache = JsonCache(tmp_path / "kept")
    cache.put({"text": "\ud800"}, "a", 1)
    assert cache.get("a", 1) == {"text": "\ud800"} and cache.get("a", 2) is None
    (entry,) = tmp_path.rglob("*.json")
    entry.write_bytes(content)
    assert cache.get("a", 1) is None
    cache.put("new", "a", 1)
    assert cache.get("a", 1) == "new" and [path.name for path in tmp_path.rglob("*.json")] == [entry.name]


def test_a_grain_without_rows_is_an_empty_frame_with_its_columns(workbench: Workbench) -> None:
    run = workbench.start_run("coldstart", {})
    assert run.append("traces", []) is None
    for grain in GRAINS.values():
        frame = run.read(grain.name)
        assert list(frame.columns) == list(grain.columns) and frame.empty
    assert list(run.read("steps", ["value"]).columns) == ["value"] and run.done("traces", "clip_id") == set()


def test_parts_are_read_in_writing_order_and_only_the_asked_columns(workbench: Workbench) -> None:
    run = workbench.start_run("grpo", {})
    for step in range(12):
        run.append("steps", [{"step": step, "name": "reward", "value": step / 4}])
    frame = run.read("steps", ["value", "step"])
    assert list(frame.columns) == ["value", "step"] and frame.step.tolist() == list(range(12))


def test_a_row_written_again_replaces_the_first_for_readers_and_index(workbench: Workbench) -> None:
    run = workbench.start_run("grpo", {})
    run.append("steps", [{"step": 1, "name": "loss", "value": 9.0}, {"step": 2, "name": "loss", "value": 8.0}])
    run.append("steps", [{"step": 2, "name": "loss", "value": 7.0}])
    run.append("predictions", [prediction(predicted="cat")])
    run.append("predictions", [prediction()])
    assert run.read("steps").value.tolist() == [9.0, 7.0]
    assert run.read("predictions", ["predicted"]).predicted.tolist() == ["dog"]
    workbench.refresh()
    assert workbench.query("SELECT value FROM steps ORDER BY step").value.tolist() == [9.0, 7.0]
    assert workbench.query("SELECT predicted FROM predictions").predicted.tolist() == ["dog"]


def test_done_names_what_a_resumed_stage_skips(workbench: Workbench) -> None:
    run = workbench.start_run("coldstart", {})
    run.append("traces", [trace("a", 0), trace("a", 1), trace("b", 0)])
    assert run.done("traces", "clip_id") == {"a", "b"}
    assert run.done("traces", ("clip_id", "sample")) == {("a", 0), ("a", 1), ("b", 0)}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec=None)), min_size=1, max_size=4))
def test_text_comes_back_with_only_lone_surrogates_replaced(tmp_path: Path, texts: list[str]) -> None:
    run = Workbench(tmp_path).start_run("coldstart", {"texts": texts})
    if not run.finished:
        run.append("traces", [trace(sample=number, text=text) for number, text in enumerate(texts)])
        run.finish()
    stored = run.read("traces").text.tolist()
    for text, back in zip(texts, stored, strict=True):
        assert back == storable(text) and len(back) <= len(text)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            assert "\ufffd" in back or any(ord(character) > 0xFFFF for character in back)
        else:
            assert back == text


@pytest.mark.parametrize(
    "text",
    [
        'it\'s "quoted"; DROP TABLE traces',
        "<script>alert(1)</script>",
        "a\nb\r\nc\t",
        "nul\0inside",
        "",
        "👩‍👩‍👧 हिन्दी \u202e",
        "NULL",
        "\\x00 \\",
    ],
)
def test_hostile_text_survives_the_index(workbench: Workbench, text: str) -> None:
    run = workbench.start_run("coldstart", {}, dataset=None)
    run.append("traces", [trace(text=text, answer=text)])
    workbench.refresh()
    assert workbench.query("SELECT text, answer FROM traces WHERE text = ?", [text]).values.tolist() == [[text, text]]


def test_a_lone_surrogate_is_stored_as_the_replacement_character(workbench: Workbench) -> None:
    run = workbench.start_run("coldstart", {"prompt": "a\ud800"})
    run.append("traces", [trace(text="a\ud800b\udfffc\ud83d\ude00")])
    assert run.read("traces").text[0] == "a\ufffdb\ufffdc😀" and run.config == {"prompt": "a\ufffd"}


def test_trace_ids_are_the_same_every_time_and_differ_by_every_part() -> None:
    assert trace_id("run", "clip", 0) == hashlib.sha256(b"run\nclip\n0\n").hexdigest()[:20] == "fc0692727340b368e6ca"
    ids = {
        trace_id(run, clip, sample, step)
        for run in ("r", "s")
        for clip in ("c", "d")
        for sample in (0, 1)
        for step in (None, 0, 1)
    }
    assert len(ids) == 24


# Sentences


@pytest.mark.parametrize(
    "grain, rows, beats",
    [
        ("trace", [trace()], ["no grain 'trace'", "Nearest: 'traces'"]),
        (
            "traces",
            [trace(token_logprob=[1.0])],
            ["'token_logprob'", "columns of a grain are fixed", "'token_logprobs'"],
        ),
        ("traces", [trace(), {"clip_id": "c1", "sample": 0}], ["row 1 of 'traces' has no 'text'", "Give it a value"]),
        ("traces", [trace(), trace("c1", tokens="many")], ["row 1", "tokens = 'many'", "int64", "convert"]),
        ("traces", [trace(text=3)], ["text = 3", "string"]),
        ("traces", [trace(), trace()], ["two rows of 'traces'", "one would hide the other"]),
        ("traces", [trace(run_id="elsewhere")], ["names run 'elsewhere'", "Leave `run_id` out"]),
        ("scores", [{"trace_id": "t", "name": "accuracy"}], ["has no 'value'"]),
    ],
)
def test_a_row_that_does_not_fit_is_refused_in_a_sentence_and_leaves_nothing(
    workbench: Workbench, grain: str, rows: list, beats: list[str]
) -> None:
    run = workbench.start_run("coldstart", {})
    with pytest.raises(StoreError) as caught:
        run.append(grain, rows)
    for beat in beats:
        assert beat in str(caught.value)
    assert not list(run.path.glob("*.parquet")) and not list(run.path.glob(".*.tmp"))


def test_other_misuse_gets_a_sentence(workbench: Workbench, tmp_path: Path) -> None:
    run = workbench.start_run("coldstart", {}, name="first")
    for call, beats in [
        (lambda: workbench.run("coldstart-frist"), ["no run 'coldstart-frist'", f"Nearest: {run.id!r}"]),
        (lambda: workbench.run("../runs"), ["no run '../runs'"]),
        (lambda: workbench.start_run("grpo", {}, parent="nothing"), ["no run 'nothing'"]),
        (lambda: workbench.start_run("Cold Start", {}), ["'Cold Start'", "lower-case word"]),
        (lambda: workbench.start_run("grpo", {"model": {"class": object()}}), ["config.model.class holds a object"]),
        (lambda: run.read("traces", ["txt"]), ["no column 'txt'", "Nearest: 'text'"]),
        (lambda: run.note(seed=3), ["note(seed=…)", "Start another run"]),
        (lambda: workbench.run(run.id).append("traces", [trace()]), ["open for reading", "start_run"]),
    ]:
        with pytest.raises(StoreError) as caught:
            call()
        for beat in beats:
            assert beat in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        Workbench(tmp_path / "file")


def test_a_damaged_part_is_named_by_readers_and_listed_by_the_index(workbench: Workbench) -> None:
    run = workbench.start_run("coldstart", {})
    run.append("traces", [trace("a")])
    part = run.append("traces", [trace("b")])
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StoreError, match="traces-00001.parquet.*cannot be read"):
        run.read("traces")
    workbench.refresh()
    assert workbench.query("SELECT clip_id FROM traces").clip_id.tolist() == ["a"]
    assert workbench.query("SELECT source FROM problems").source.tolist() == [f"runs/{run.id}/traces-00001.parquet"]


# Runs


def test_the_same_arguments_continue_the_run_and_others_start_another(workbench: Workbench) -> None:
    parent = workbench.start_run("coldstart", {"lr": 1e-3})
    parent.finish()
    first = workbench.start_run("grpo", {"lr": 1e-3}, parent=parent.id, seed=1)
    first.append("steps", [{"step": 1, "name": "loss", "value": 1.0}])
    first.close()
    again = workbench.start_run("grpo", {"lr": 1e-3}, parent=parent.id, seed=1)
    assert again.id == first.id and len(again.about["sessions"]) == 2 and again.done("steps", "step") == {1}
    others = {
        workbench.start_run("grpo", {"lr": 2e-3}, parent=parent.id, seed=1).id,
        workbench.start_run("grpo", {"lr": 1e-3}, parent=parent.id, seed=2).id,
        workbench.start_run("grpo", {"lr": 1e-3}, parent=parent.id, seed=1, dataset="homecam").id,
        workbench.start_run("grpo", {"lr": 1e-3}, parent=parent.id, seed=1, name="other").id,
        workbench.start_run("grpo", {"lr": 1e-3}, seed=1).id,
        first.id,
    }
    assert len(others) == 6 and [run.id for run in workbench.runs("coldstart")] == [parent.id]


def test_a_finished_run_comes_back_finished_and_never_changes(workbench: Workbench) -> None:
    run = workbench.start_run("evaluate", {})
    run.note(device="cpu")
    run.finish({"accuracy": np.float64(0.5), "f1": float("nan"), "n": np.int64(4), "path": Path("x")})
    again = workbench.start_run("evaluate", {})
    assert again.finished and again.id == run.id and again.about["device"] == "cpu"
    assert again.summary == {"accuracy": 0.5, "f1": None, "n": 4, "path": "x"}
    with pytest.raises(StoreError, match="is finished"):
        again.append("traces", [trace()])


def test_a_failure_is_recorded_and_the_run_goes_on(workbench: Workbench) -> None:
    with pytest.raises(ZeroDivisionError):
        with workbench.start_run("grpo", {}) as run:
            run.append("steps", [{"step": 1, "name": "loss", "value": 1.0}])
            raise ZeroDivisionError
    assert workbench.run(run.id).status == "failed" and "ZeroDivisionError" in workbench.run(run.id).about["error"]
    assert "Traceback" in (run.path / "log").read_text()
    with workbench.start_run("grpo", {}) as again:
        assert again.id == run.id and again.status == "running" and len(again.read("steps")) == 1
        again.finish()
    assert again.about["error"] is None


def test_run_json_says_how_to_run_it_again(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "very-secret-value")
    command = ["/somewhere/deepintuit", "teach", "--set", "teach.model=m", "--note", "very-secret-value"]
    monkeypatch.setattr(sys, "argv", command)
    run = workbench.start_run("teach", {"api_key": "abc", "api_key_env": "TEACHER_API_KEY", "max_tokens": 512})
    text = (run.path / "run.json").read_text()
    about = json.loads(text)
    assert about["command"] == ["deepintuit", "teach", "--set", "teach.model=m", "--note", "***"]
    assert about["config"] == {"api_key": "***", "api_key_env": "TEACHER_API_KEY", "max_tokens": 512}
    assert about["versions"]["duckdb"] == duckdb.__version__ and {"commit", "dirty", "seed", "created"} <= about.keys()
    assert "very-secret" not in text


@pytest.mark.parametrize(
    "given, shown",
    [
        (["--api-key", "abc", "--lr", "1"], ["--api-key", "***", "--lr", "1"]),
        (["--token=abc"], ["--token=***"]),
        (["teach.api_key=abc", "grpo.max_tokens=5", "a.key=b"], ["teach.api_key=***", "grpo.max_tokens=5", "a.key=b"]),
        (["https://me:pw@host/v1"], ["https://***@host/v1"]),
        (["sk-abcdefghijklmnop"], ["***"]),
    ],
)
def test_secrets_never_reach_the_command_line_record(given: list[str], shown: list[str]) -> None:
    assert without_secrets(given) == shown


def test_a_folder_killed_before_its_run_json_is_taken_over(workbench: Workbench) -> None:
    run = workbench.start_run("coldstart", {})
    run.close()
    (run.path / "run.json").unlink()
    assert workbench.runs() == []
    assert workbench.start_run("coldstart", {}).id == run.id


# Processes

WRITER = """
import sys
from deepintuit_analysis import Workbench
run = Workbench(sys.argv[1]).start_run("coldstart", {})
start = len(run.done("traces", "clip_id"))
print("ready", flush=True)
for number in range(start, start + 10_000):
    rows = [{"clip_id": f"clip{number}", "sample": sample, "text": "x" * 2000} for sample in range(3)]
    run.append("traces", rows)
    print(f"clip{number}", flush=True)
"""


def writer(workbench: Workbench, **pipes: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(workbench.path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        **pipes,
    )


def test_kill_at_any_moment_loses_no_acknowledged_row_and_shows_no_half_part(workbench: Workbench) -> None:
    chance = np.random.default_rng(0)
    acknowledged: list[str] = []
    kills = 0
    while kills < 10 or len(acknowledged) < 10:  # a busy machine needs more rounds to write ten
        kills += 1
        process = writer(workbench)
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(chance.uniform(0, 0.06)))
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.read().split()
        process.wait()
        process.stdout.close()
        [run] = workbench.runs()
        rows = run.read("traces")
        assert rows.trace_id.is_unique and (rows.groupby("clip_id").size() == 3).all()
        assert set(acknowledged) <= set(rows.clip_id)
    assert len(acknowledged) == len(set(acknowledged))
    assert 0 <= rows.clip_id.nunique() - len(acknowledged) <= kills  # a part may be whole before its word is out
    (run.path / ".traces-99999.parquet.1.tmp").write_bytes(b"half")
    workbench.refresh()
    assert workbench.query("SELECT count(*) AS n FROM traces").n[0] == len(rows)
    continued = workbench.start_run("coldstart", {})
    assert continued.id == run.id and not list(run.path.glob(".*.tmp"))


def test_two_processes_cannot_hold_one_run(workbench: Workbench) -> None:
    process = writer(workbench)
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(StoreError) as caught:
            workbench.start_run("coldstart", {})
        assert f"in use by process {process.pid}, since 2" in str(caught.value)
        assert "Wait for that process" in str(caught.value)
        workbench.start_run("coldstart", {"another": 1}).finish()
    finally:
        process.kill()
        process.communicate()
    assert workbench.start_run("coldstart", {}).writable  # the lock of a killed process is not in the way


def test_of_two_processes_starting_at_once_one_gets_the_run(workbench: Workbench) -> None:
    processes = [writer(workbench, stderr=subprocess.PIPE) for _ in range(2)]
    first_words = [process.stdout.readline() for process in processes if process.stdout.readable()]
    for process in processes:
        process.kill()
    errors = [process.communicate()[1] for process in processes]
    assert sorted(first_words) == ["", "ready\n"] and sum("in use by process" in error for error in errors) == 1
    assert len(workbench.runs()) == 1


def test_a_forked_child_neither_writes_nor_keeps_the_lock(workbench: Workbench) -> None:
    run = workbench.start_run("coldstart", {})
    reader, writer_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer_end, b"w" if run.writable else b"r")
        time.sleep(30)
        os._exit(0)
    try:
        assert os.read(reader, 1) == b"r" and run.writable
        run.close()
        assert workbench.start_run("coldstart", {}).writable
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer_end)


def test_the_same_process_gets_the_same_open_run_back(workbench: Workbench) -> None:
    run = workbench.start_run("coldstart", {})
    assert workbench.start_run("coldstart", {}) is run


def test_threads_append_side_by_side(workbench: Workbench) -> None:
    run = workbench.start_run("coldstart", {})

    def write(writer: int) -> None:
        for number in range(5):
            run.append("traces", [trace(f"{writer}-{number}")])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(run.read("traces")) == 40


# The index


def test_refresh_does_nothing_when_nothing_changed(workbench: Workbench) -> None:
    assert workbench.refresh() and not workbench.refresh()
    run = workbench.start_run("coldstart", {})
    assert workbench.refresh() and not workbench.refresh()
    run.append("traces", [trace()])
    assert workbench.refresh() and not Workbench(workbench.path).refresh()
    run.finish({"accuracy": 1.0})
    assert workbench.refresh()
    rows = workbench.query("SELECT status, summary->>'accuracy' AS accuracy FROM runs")
    assert rows.values.tolist() == [["finished", "1.0"]]


def contents(workbench: Workbench) -> dict[str, list[str]]:
    """All tables of the index, without the order of their rows."""
    tables = ["runs", "clips", "parts", "problems", *GRAINS, "trace_facts", "trace_counts"]
    return {
        name: sorted(map(repr, workbench.query(f"SELECT {name}::VARCHAR AS row FROM {name}").row.tolist()))
        for name in tables
    }


def test_an_index_that_is_added_to_holds_what_a_new_one_would(workbench: Workbench) -> None:
    write_manifest(workbench, "dog")
    run = workbench.start_run("grpo", {}, dataset="home")
    run.append("traces", [trace("a", step=1, text="first"), trace("b", step=1), trace("a", step=2)])
    workbench.refresh()
    [first] = run.path.glob("traces-*.parquet")
    known = run.read("traces").trace_id.tolist()

    run.append("traces", [trace("a", step=1, text="Written again"), trace("b", step=3)])
    run.append("steps", [{"step": 1, "name": "loss", "value": 1.0}])
    (run.path / "traces-00009.parquet").write_bytes(b"broken")
    said = [prediction("a", trace_id=known[0]), prediction("b", trace_id=known[1], predicted="cat")]
    judge = workbench.start_run("calibrate", {}, dataset="home")
    judge.append("predictions", said)
    judge.append("predictions", [said[0] | {"predicted": "cat", "probs": [0.1, 0.9]}])
    # What stood is not read again: were it, the index would miss its rows.
    whole, facts = first.read_bytes(), first.stat()
    first.write_bytes(b"x" * len(whole))
    os.utime(first, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert workbench.refresh()
    first.write_bytes(whole)
    os.utime(first, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    grown = contents(workbench)
    rows = workbench.query("SELECT lowered, calibrated, certainty FROM trace_facts WHERE clip_id = 'a' AND step = 1")
    assert rows.values.tolist() == [["written again", "cat", 0.9]] and len(grown["problems"]) == 1
    assert workbench.refresh(force=True) and contents(workbench) == grown


def test_what_is_counted_once_is_what_counting_the_rows_gives(workbench: Workbench) -> None:
    alike = ", ".join(build.COUNTED_BY)

    def counted() -> tuple[list, list]:
        workbench.refresh()
        rows = f"SELECT {alike}, count(*)::BIGINT AS n FROM trace_facts GROUP BY ALL ORDER BY ALL"
        found = (workbench.query(sql).astype(str) for sql in (rows, "FROM trace_counts ORDER BY ALL"))
        there, said = (one.values.tolist() for one in found)
        return there, said

    write_manifest(workbench, "dog")
    run = workbench.start_run("grpo", {}, dataset="home")
    run.append("traces", [trace("a", step=1, provisional="cat"), trace("b", step=1, provisional="dog"), trace("c")])
    there, said = counted()
    assert there == said and len(said) == 3
    ids = run.read("traces").trace_id.tolist()
    other = workbench.start_run("evaluate", {}, dataset="home")
    other.append("traces", [trace("a", provisional="cat")])
    run.append("traces", [trace("a", step=1, provisional="dog")])
    there, said = counted()
    assert there == said and sum(int(row[-1]) for row in said) == 4
    judge = workbench.start_run("calibrate", {}, dataset="home")
    judge.append("predictions", [prediction("b", trace_id=ids[1], predicted="cat")])
    there, said = counted()
    assert there == said and sum("cat" == row[build.COUNTED_BY.index("calibrated")] for row in said) == 1


def test_a_query_beyond_its_memory_spills_and_leaves_nothing(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_READING", "40MB")
    workbench.start_run("grpo", {})
    sql = "SELECT max(place) AS n FROM (SELECT row_number() OVER (ORDER BY hash(i)) AS place FROM range(3000000) t(i))"
    assert workbench.query(sql)["n"][0] == 3_000_000 and list(workbench.path.glob("*.spilled-*"))
    workbench._open = None
    assert not list(workbench.path.glob("*.spilled-*"))


def test_what_stood_and_changed_has_the_index_built_anew(workbench: Workbench) -> None:
    write_manifest(workbench, "dog")
    run = workbench.start_run("grpo", {}, dataset="home")
    run.append("traces", [trace("a")])
    run.append("traces", [trace("b")])
    workbench.refresh()
    write_manifest(workbench, "cat")
    assert workbench.refresh()
    assert workbench.query("SELECT DISTINCT true_label FROM trace_facts").values.tolist() == [["cat"]]
    sorted(run.path.glob("traces-*.parquet"))[1].unlink()
    assert workbench.refresh() and workbench.query("SELECT clip_id FROM trace_facts").clip_id.tolist() == ["a"]


def test_what_a_killed_build_left_is_swept_away(workbench: Workbench) -> None:
    workbench.start_run("grpo", {})
    (workbench.path / ".index.duckdb.tmp.spilled").mkdir()
    (workbench.path / ".index.duckdb.tmp.spilled" / "x").write_bytes(b"x")
    (workbench.path / ".index.duckdb.tmp").write_bytes(b"half")
    assert workbench.refresh() and not list(workbench.path.glob(".index.duckdb.tmp*"))


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 1000])
def test_the_index_may_be_deleted_or_spoilt_at_any_time(workbench: Workbench, content: bytes | None) -> None:
    run = workbench.start_run("coldstart", {})
    run.append("traces", [trace()])
    workbench.refresh()
    workbench.query("SELECT 1")
    workbench.index_path.unlink()
    if content is not None:
        workbench.index_path.write_bytes(content)
    assert workbench.query("SELECT count(*) AS n FROM traces").n[0] == 1


def test_manifests_are_joined_by_clip(workbench: Workbench) -> None:
    pq.write_table(
        pa.table(
            {
                "clip_id": ["a", "b"],
                "label": ["dog", "cat"],
                "group": ["g", "h"],
                "split": ["test"] * 2,
                "text": pa.array([[("title", "x")], []], pa.map_(pa.string(), pa.string())),
            }
        ),
        workbench.clips / "homecam.parquet",
    )
    pq.write_table(pa.table({"clip_id": ["c"], "label": ["dog"], "extra": [1]}), workbench.clips / "other.parquet")
    run = workbench.start_run("coldstart", {})
    run.append("predictions", [prediction("a"), prediction("c", predicted="none")])
    workbench.refresh()
    rows = workbench.query(
        "SELECT clip_id, dataset, label, predicted FROM clips JOIN predictions USING (clip_id) ORDER BY clip_id"
    )
    assert rows.values.tolist() == [["a", "homecam", "dog", "dog"], ["c", "other", "dog", "none"]]
    assert workbench.query("SELECT count(*) AS n FROM problems").n[0] == 0
    assert workbench.query("SELECT n, no_answer, accuracy FROM accuracy_by_run").values.tolist() == [[2, 1, 0.5]]


def test_latest_predictions_come_from_the_newest_run(workbench: Workbench) -> None:
    for seed, predicted in enumerate(["cat", "dog"]):
        run = workbench.start_run("evaluate", {}, seed=seed)
        run.append("predictions", [prediction("a", predicted=predicted, trace_id=trace) for trace in ("t0", "t1")])
        run.finish()
        time.sleep(0.002)
    workbench.refresh()
    assert workbench.query("SELECT run_id, predicted FROM latest_predictions").values.tolist() == [[run.id, "dog"]] * 2
    assert workbench.query("SELECT count(*) AS n FROM predictions").n[0] == 4


def test_eight_threads_read_whole_snapshots_while_the_index_is_swapped(workbench: Workbench) -> None:
    run = workbench.start_run("grpo", {})
    run.append("steps", [{"step": 0, "name": f"n{i}", "value": 0.0} for i in range(50)])
    workbench.refresh()
    stop, wrong, seen = threading.Event(), [], set()

    def read(marker: int) -> None:
        while not stop.is_set():
            frame = workbench.query(
                "SELECT $m AS marker, step, count(*) AS n FROM steps GROUP BY step ORDER BY step", {"m": marker}
            )
            if set(frame.marker) != {marker} or set(frame.n) != {50} or frame.step.tolist() != list(range(len(frame))):
                wrong.append(frame)
            seen.add(len(frame))

    threads = [threading.Thread(target=read, args=(marker,)) for marker in range(8)]
    for thread in threads:
        thread.start()
    for step in range(1, 6):
        run.append("steps", [{"step": step, "name": f"n{i}", "value": 0.0} for i in range(50)])
        assert workbench.refresh()
    newest = workbench.query("SELECT max(step) AS step FROM steps").step[0]
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and newest == 5 and len(seen) > 1


@pytest.mark.parametrize("untrusted", [False, True])
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM 'x.parquet'",
        "COPY traces TO 'stolen.csv'",
        "DROP TABLE traces",
        "CREATE TABLE memory.main.x AS SELECT 1",
        "ATTACH 'x.duckdb'",
        "SET threads = 64",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT 1; SELECT 2",
        "SELECT nothing FROM traces",
        "SELECT * FROM threading",
        "not sql at all",
        "",
        "EXPORT DATABASE 'x'",
        "PRAGMA enable_profiling",
    ],
)
def test_no_query_reads_other_files_or_changes_anything(workbench: Workbench, sql: str, untrusted: bool) -> None:
    workbench.refresh()
    before = workbench.index_path.read_bytes()
    with pytest.raises(StoreError):
        workbench.query(sql, untrusted=untrusted)
    assert workbench.index_path.read_bytes() == before and not Path("stolen.csv").exists()


def test_an_untrusted_query_is_cut_in_rows_and_in_time(workbench: Workbench) -> None:
    workbench.refresh()
    frame = workbench.query("SELECT * FROM range(50)", untrusted=True, max_rows=20)
    assert len(frame) == 20 and frame.attrs["truncated"]
    frame = workbench.query("SELECT * FROM range(50)", untrusted=True, max_rows=50)
    assert len(frame) == 50 and not frame.attrs["truncated"]
    start = time.monotonic()
    with pytest.raises(StoreError, match="stopped after 0.3 s"):
        workbench.query(
            "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b", untrusted=True, seconds=0.3
        )
    assert time.monotonic() - start < 5
    limit = workbench.query("SELECT value FROM duckdb_settings() WHERE name = 'memory_limit'", untrusted=True)
    assert limit.value.tolist() == ["953.6 MiB"]


def test_parameters_are_values_never_sql(workbench: Workbench) -> None:
    workbench.refresh()
    hostile = "x' OR '1'='1"
    assert workbench.query("SELECT ? AS a", [hostile]).a[0] == hostile
    assert workbench.query("SELECT $word AS a", {"word": hostile}).a[0] == hostile


def test_the_store_never_imports_torch() -> None:
    code = "import sys, deepintuit_analysis as _; sys.exit(bool({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


@pytest.mark.parametrize("ranks", ["2", "16"])
def test_a_run_is_not_begun_by_several_processes(workbench, monkeypatch, ranks):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    with pytest.raises(StoreError, match=rf"{ranks} processes.*CUDA_VISIBLE_DEVICES"):
        workbench.start_run("grpo", {})
    assert not workbench.runs()
    for alone in ("1", "", "many"):
        monkeypatch.setenv("WORLD_SIZE", alone)
        workbench.start_run("grpo", {"world": alone}).finish({})
