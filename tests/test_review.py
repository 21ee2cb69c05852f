"""Reviews: nothing acknowledged is lost, nothing is handed out twice, and the state is a fold over what was written."""

import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit import disk
from deepintuit.errors import DataError, StoreError
from deepintuit_analysis import Workbench
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.review import Event, EventLog, Kind, Reviews, ReviewTask, fold, log, plan, read_events, task_of
from deepintuit_analysis.review.agreement import agreement, rating_matrix
from deepintuit_analysis.review.quality import disputed, gold_records, settled

GOOD = {"label": "dog", "verdict": "right"}
NOON = "2026-01-01T12:00:00+00:00"


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: float = 1e9):
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def reviews(tmp_path: Path, clock: Clock):
    with EventLog(tmp_path / "reviews", clock=clock) as log:
        yield Reviews(log)


def opened(reviews: Reviews, items: int = 3, **settings) -> ReviewTask:
    names = {f"t{number}": f"c{number}" for number in range(items)}
    return reviews.open(ReviewTask("week", **{"items": names, "labels": ["dog", "cat"], **settings}), "lead")


def take(reviews: Reviews, who: str, **more) -> str | None:
    item = reviews.next_item("week", who, **more)
    return item and item.trace_id


def table(folder: Path, sql: str = "SELECT event FROM events ORDER BY number", *values) -> list:
    """What SQL, perhaps another program's, says of the file of events."""
    with closing(sqlite3.connect(folder / "events.sqlite", isolation_level=None)) as connection:
        return connection.execute(sql, values).fetchall()


def lines(reviews: Reviews) -> list[dict]:
    return [json.loads(line) for (line,) in table(reviews.log.folder)]


def judged(number: int, who: str = "ann", **more) -> Event:
    return Event(Kind.JUDGED, "week", who, f"t{number}", payload=GOOD, **more)


# The file

WRITERS = """
import os, sys, threading
from pathlib import Path
from deepintuit_analysis.review import Event, EventLog, Kind

def write(log, who):
    for number in range(100_000):
        event = log.append(Event(Kind.JUDGED, "week", who, f"t{number}", payload={"note": "x" * 3000}))
        os.write(1, event.id.encode() + b"\\n")

for life in range(30):  # a process each, from one import
    pid = os.fork()
    if not pid:
        log = EventLog(Path(sys.argv[1]))
        for who in "abcd":
            threading.Thread(target=write, args=(log, who), daemon=True).start()
        os.write(1, f"pid {os.getpid()}\\n".encode())
        threading.Event().wait()
    os.waitpid(pid, 0)
"""


def test_a_writer_killed_at_any_moment_has_lost_nothing_that_it_acknowledged(tmp_path: Path):
    """Thirty kills on one file, each writer going on where the last one died."""
    generator, acknowledged, killed = random.Random(0), [], []
    with subprocess.Popen([sys.executable, "-c", WRITERS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        for line in parent.stdout:
            first, _, pid = line.strip().partition(" ")
            if first == "pid":
                threading.Timer(generator.uniform(0.001, 0.05), os.kill, (int(pid), signal.SIGKILL)).start()
                killed.append(pid)
            else:
                acknowledged.append(first)
    assert parent.returncode == 0 and len(set(killed)) == 30
    written, damaged = read_events(tmp_path)
    assert set(acknowledged) <= {event.id for event in written}
    assert len(acknowledged) > 100 and len(damaged) <= 30, "the writers wrote, and a kill tears one line at most"


@pytest.mark.parametrize("garbage", [b"\0" * 50, b"[" * 100_000, b"null", b'{"kind": "eaten"}', b"\xff\xfe", b"{}"])
def test_damaged_rows_are_counted_and_hide_no_other(tmp_path: Path, garbage: bytes):
    with EventLog(tmp_path) as log:
        first = log.append(judged(0))
    table(tmp_path, "INSERT INTO events (event) VALUES (?)", garbage)
    with EventLog(tmp_path) as log:
        second = log.append(judged(1))
        assert log.damaged == [2] and read_events(tmp_path) == ([first, second], [2])


def test_twenty_reviewers_at_once_lose_nothing_and_share_transactions(tmp_path: Path):
    commits = []
    with EventLog(tmp_path) as log:
        log._connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        together = threading.Barrier(20)

        def work(who: int) -> list[Event]:
            together.wait(60)
            return [log.append(judged(number, f"r{who}")) for number in range(100)]

        with ThreadPoolExecutor(20) as pool:
            said = {f"r{who}": mine for who, mine in enumerate(pool.map(work, range(20)))}
        assert log.look(lambda state: sum(len(by) for by in state.answers["week"].values())) == 2000
    written, damaged = read_events(tmp_path)
    assert len(written) == 2000 and not damaged and len(commits) < 1500
    for who, mine in said.items():
        assert [event for event in written if event.reviewer == who] == mine, "in the order of each"


def test_what_is_acknowledged_is_synced_and_in_the_file(tmp_path: Path):
    """SQLite's own promise, if it is asked for: a commit returns after an fsync of the log that holds it."""
    with EventLog(tmp_path) as log:
        settings = [log._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        assert settings == ["wal", 2]
        for number in range(3):
            event = log.append(judged(number))
            assert read_events(tmp_path)[0][-1] == event


def test_four_processes_write_a_hundred_judgements_each_and_all_are_in_the_file(tmp_path: Path):
    """At once, and beside a log that is open as a dashboard's is, and knows of them when it looks."""
    opened, begin = os.pipe()
    children = []
    for name in ("p0", "p1", "p2", "p3"):
        children.append(os.fork())
        if not children[-1]:
            try:
                os.close(begin)
                os.read(opened, 1)  # until it is closed
                with EventLog(tmp_path) as log:
                    for number in range(100):
                        log.append(judged(number, name))
                os._exit(0)
            finally:
                os._exit(1)
    with EventLog(tmp_path) as log:
        os.close(begin)
        mine = [log.append(judged(number, "here")) for number in range(50)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        said = log.look(lambda state: [act for by in state.answers["week"].values() for act in by.values()])
        assert Counter(act.reviewer for act in said) == {"here": 50} | {f"p{n}": 100 for n in range(4)}
    os.close(opened)
    written, damaged = read_events(tmp_path)
    assert len(written) == 450 and not damaged and fold(written).answers == log.state.answers
    assert [event for event in written if event.reviewer == "here"] == mine


def test_an_item_that_another_process_handed_out_goes_to_nobody_else(reviews: Reviews, clock: Clock):
    opened(reviews, items=2)
    with EventLog(reviews.log.folder, clock=clock) as log:
        there = Reviews(log)
        assert there.next_item("week", "ann").trace_id == "t0" and take(reviews, "bob") == "t1"
        assert take(reviews, "eve") is None and there.next_item("week", "eve") is None
        there.judge("week", "ann", "t0", GOOD)
        assert reviews.standing("week", "t0", "ann") == "counted"


def test_a_full_file_is_said_and_what_it_refused_is_gone_from_file_and_state(tmp_path: Path):
    with EventLog(tmp_path) as log:
        kept = log.append(judged(0))
        log._connection.execute("PRAGMA max_page_count = 3")
        with pytest.raises(StoreError, match="was not saved: database or disk is full.*send it again"):
            log.append(replace(judged(1, id="sent-twice"), payload={"note": "n" * 9000}))
        assert read_events(tmp_path) == ([kept], [])
        assert log.look(lambda state: list(state.answers["week"])) == ["t0"]
        log._connection.execute("PRAGMA max_page_count = 1000")
        again = log.append(judged(1, id="sent-twice"))
        assert read_events(tmp_path) == ([kept, again], [])


def test_everyone_in_a_transaction_that_failed_is_told_and_file_and_state_hold_what_was_acknowledged(tmp_path: Path):
    with EventLog(tmp_path) as log:

        def work(who: int) -> list[Event]:
            said = []
            for number in range(20):
                try:
                    note = "n" * (50_000 if number % 5 == 4 else 1)
                    said.append(log.append(replace(judged(number, f"r{who}"), payload={"note": note})))
                except StoreError as error:
                    assert "was not saved" in str(error)
            return said

        log._connection.execute("PRAGMA max_page_count = 40")
        with ThreadPoolExecutor(8) as pool:
            saved = {event.id for said in pool.map(work, range(8)) for event in said}
        held = log.look(lambda state: {act.id for by in state.answers["week"].values() for act in by.values()})
        assert 0 < len(saved) < 160 and saved == held == {event.id for event in read_events(tmp_path)[0]}


def test_an_item_whose_reservation_was_not_saved_goes_out_again(reviews: Reviews):
    opened(reviews, items=1)
    pages = reviews.log._connection.execute("PRAGMA page_count").fetchone()[0]
    with pytest.raises(StoreError, match="was not saved"):
        reviews.log._connection.execute(f"PRAGMA max_page_count = {pages}")
        take(reviews, "ann", seat="s" * 9000)
    reviews.log._connection.execute("PRAGMA max_page_count = 1000")
    assert take(reviews, "bob") == "t0"


def test_what_is_sent_twice_is_written_once(tmp_path: Path):
    with EventLog(tmp_path) as log:
        event = judged(0)
        with ThreadPoolExecutor(4) as pool:
            saved = list(pool.map(log.append, [event] * 8))
        assert len({each.time for each in saved}) == 1 and len(read_events(tmp_path)[0]) == 1
        with EventLog(tmp_path) as other:
            assert other.append(event) == saved[0], "nor by another process"
        with pytest.raises(DataError, match="two different events"):
            log.append(replace(event, payload={"label": "cat"}))
    with EventLog(tmp_path) as log:
        assert log.append(event) == saved[0] and len(table(tmp_path)) == 1


def test_a_refusal_of_one_is_no_refusal_of_those_who_wait_with_it(tmp_path: Path):
    with EventLog(tmp_path) as log:

        def refuse(state: object) -> None:
            raise DataError("so", "it", "is")

        with ThreadPoolExecutor(8) as pool:
            done = [pool.submit(log.append, refuse if n % 2 else judged(n)) for n in range(8)]
            kinds = [type(one.exception()) for one in done]
        assert kinds == [type(None), DataError] * 4 and len(read_events(tmp_path)[0]) == 4


def test_a_forked_child_writes_nothing(reviews: Reviews):
    pid = os.fork()
    if not pid:
        try:
            reviews.log.append(Event(Kind.JUDGED, "week", "child", "t0"))
        except StoreError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7 and lines(reviews) == []


def test_texts_are_values_and_never_sql(reviews: Reviews):
    hostile = "x'); DROP TABLE events; --"
    reviews.open(ReviewTask(hostile, {hostile: "c0"}, labels=[hostile]), hostile)
    assert reviews.next_item(hostile, hostile).trace_id == hostile
    reviews.judge(hostile, hostile, hostile, {"label": hostile, "verdict": None}, event_id=hostile)
    assert [event.reviewer for event in read_events(reviews.log.folder)[0]] == [hostile] * 3


@pytest.mark.parametrize("name", ["a?mode=memory", "50 % #1", "ü 🐕"])
def test_the_folder_may_have_any_name(tmp_path: Path, name: str):
    with EventLog(tmp_path / name) as log:
        kept = log.append(judged(0))
    assert read_events(tmp_path / name) == ([kept], []) and (tmp_path / name / "events.sqlite").exists()


@pytest.mark.parametrize("content", [b"no database at all" * 99, None], ids=["something else", "a page overwritten"])
def test_a_damaged_file_is_a_sentence(tmp_path: Path, content: bytes | None):
    with EventLog(tmp_path) as log:
        log.append(judged(0))
    file = tmp_path / "events.sqlite"
    file.write_bytes(content or file.read_bytes()[:4096] + b"\xff" * 4096)
    for look in (EventLog, read_events):
        with pytest.raises(StoreError, match="events.sqlite' is damaged.*Put a copy back"):
            look(tmp_path)


# What earlier versions wrote


def old(folder: Path, *events: Event, more: bytes = b"") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "events.jsonl"
    file.write_bytes(b"".join(event.line() + b"\n" for event in events) + more)
    return file


def test_events_of_an_earlier_version_are_read_as_they_are_and_read_in_once(tmp_path: Path):
    before = [judged(number, time=NOON) for number in range(3)]
    content = old(tmp_path, *before).read_bytes()
    assert read_events(tmp_path) == (before, []) and not (tmp_path / "events.sqlite").exists(), "reading writes nothing"
    with EventLog(tmp_path) as log:
        more = log.append(judged(3))
        assert log.append(replace(before[0], time="")) == before[0], "known, under its id"
    assert read_events(tmp_path) == ([*before, more], []) and not (tmp_path / "events.jsonl").exists()
    assert (tmp_path / "events-read-in-1.jsonl").read_bytes() == content, "kept"
    again = judged(9, time=NOON)
    old(tmp_path, before[1], again)  # by an earlier version that was started once more
    assert read_events(tmp_path) == ([*before, more, again], [])
    with EventLog(tmp_path):
        assert read_events(tmp_path) == ([*before, more, again], []) and len(table(tmp_path)) == 5
    assert (tmp_path / "events-read-in-1.jsonl").read_bytes() == content
    assert (tmp_path / "events-read-in-2.jsonl").exists()


def test_a_torn_last_line_of_an_earlier_version_is_passed_over_and_one_without_its_end_is_not(tmp_path: Path):
    kept, other = judged(0, time=NOON), judged(1, time=NOON)
    for cut in range(1, len(other.line())):
        old(tmp_path, kept, more=other.line()[:cut])
        assert read_events(tmp_path) == ([kept], [2]), "cut at any byte"
    with EventLog(tmp_path) as log:
        assert log.damaged == [2]
        second = log.append(judged(2))
    assert read_events(tmp_path) == ([kept, second], [2])
    old(tmp_path / "whole", kept, more=other.line())
    with EventLog(tmp_path / "whole"):
        assert read_events(tmp_path / "whole") == ([kept, other], [])


def killed_while_reading_in(folder: Path, moment: int) -> bool:
    """Open the log in a process that is killed before its statement of that number, or before it renames the file."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    steps = itertools.count()

    def step(*_: object) -> None:
        if next(steps) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def connected(*given: object) -> sqlite3.Connection:
        connection = log_connected(*given)
        connection.set_trace_callback(step)
        return connection

    log_connected, rename = log._connected, os.replace
    log._connected, os.replace = connected, lambda *names: (step(), rename(*names))
    try:
        EventLog(folder)
    finally:
        os._exit(0)


def test_a_kill_while_events_are_read_in_leaves_all_of_them(tmp_path: Path):
    """At each statement, and before the file has its new name; the next one goes on."""
    before = [judged(number, time=NOON) for number in range(3)]
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        old(folder, *before, more=b"torn")
        killed = killed_while_reading_in(folder, moment)
        assert read_events(folder) == (before, [4]), moment
        with EventLog(folder) as log:
            assert read_events(folder) == (before, [4]) and fold(before).answers == log.state.answers
            assert len(table(folder)) == 4 and (folder / "events-read-in-1.jsonl").exists()
        if not killed:
            break
    assert moment > 8


def test_an_earlier_version_that_still_writes_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock = disk.Lock
    monkeypatch.setattr(disk, "Lock", lambda path, wait: lock(path))
    with lock(tmp_path / "lock"), pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        EventLog(tmp_path)


@given(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
)
def test_any_text_comes_back_from_its_line(text: str, value: object):
    event = Event(Kind.DRAFT, "week", text, "t0", payload={"note": value, "more": text}, time=NOON)
    line = event.line()
    assert b"\n" not in line and Event.read(line) == event


def test_what_json_has_no_form_for_is_refused_before_it_is_written(reviews: Reviews):
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises(DataError, match="JSON"):
            reviews.log.append(Event(Kind.DRAFT, "week", "ann", "t0", payload={"note": value}))
    assert lines(reviews) == [] and reviews.log.append(Event(Kind.DRAFT, "week", "a\ud800", "t0")).reviewer == "a\ufffd"


# The fold

ACTS = (Kind.JUDGED, Kind.SKIPPED, Kind.ADJUDICATED)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(sorted({*Kind} - {Kind.OPENED})),
        st.sampled_from("ab"),
        st.sampled_from(["t0", "t1"]),
        st.integers(0, 30),
    ),
    max_size=30,
)


@given(STEPS)
def test_what_stands_is_the_last_act_that_was_not_undone(steps):
    events = []
    for number, (kind, who, item, back) in enumerate(steps):
        payload = {"event": str(back)} if kind == "undone" else {"label": number}
        events.append(Event(Kind(kind), "week", who, item, payload=payload, id=str(number), time=NOON))
    state = fold(events)
    undone = set()
    for number, event in enumerate(events):
        known = {e.id for e in events[:number] if e.reviewer == event.reviewer and e.kind in ACTS}
        undone |= {event.payload["event"]} & known if event.kind is Kind.UNDONE else set()
    stand = [event for event in events if event.id not in undone]
    acts = {(e.item, e.reviewer): e for e in stand if e.kind in (Kind.JUDGED, Kind.SKIPPED)}
    finals = {e.item: e for e in stand if e.kind is Kind.ADJUDICATED}
    assert {(item, who): act for item, by in state.answers["week"].items() for who, act in by.items()} == acts
    assert {item: act for item in ("t0", "t1") if (act := state.final("week", item))} == finals
    for who in "ab":
        mine = [e for e in stand if e.reviewer == who and e.kind in ACTS]
        assert state.last_act("week", who) == (mine[-1] if mine else None)


# Handing out


def test_an_item_goes_to_as_many_as_asked_and_never_twice_to_one(reviews: Reviews):
    opened(reviews, items=2, reviewers=2)
    assert [take(reviews, who) for who in ("ann", "bob", "eve", "dan")] == ["t0", "t0", "t1", "t1"]
    assert take(reviews, "kim") is None, "all are out"
    for who, item in (("ann", "t0"), ("bob", "t0")):
        reviews.judge("week", who, item, GOOD)
    assert take(reviews, "kim") is None and take(reviews, "ann") is None
    reviews.release("week", "eve", "t1")
    assert take(reviews, "ann") == "t1"
    reviews.judge("week", "ann", "t1", GOOD)
    assert take(reviews, "ann") is None, "she has answered all"


def test_a_reservation_times_out_and_a_draft_keeps_it(reviews: Reviews, clock: Clock):
    opened(reviews, items=1, seconds=60)
    assert take(reviews, "ann") == "t0"
    clock.now += 59
    assert take(reviews, "bob") is None
    reviews.draft("week", "ann", "t0", {"note": "half a"})
    clock.now += 59
    assert take(reviews, "bob") is None
    clock.now += 2
    assert take(reviews, "bob") == "t0"
    assert take(reviews, "ann") is None, "it is bob's now"
    reviews.judge("week", "ann", "t0", GOOD)  # late, and not lost
    assert list(reviews.answers("week", "t0", "lead")) == ["ann"]


LATE = {"label": "cat", "verdict": "wrong"}


def late(reviews: Reviews, clock: Clock, *, extra: bool = True) -> None:
    """Ann holds t0 until her reservation runs out, bob answers it meanwhile, ann answers all the same."""
    opened(reviews, items=1, seconds=60)
    take(reviews, "ann")
    clock.now += 61
    assert take(reviews, "bob") == "t0"
    for who, said in (("bob", GOOD), ("ann", LATE)) if extra else (("ann", LATE), ("bob", GOOD)):
        reviews.judge("week", who, "t0", said)


def test_an_answer_beyond_those_asked_for_is_kept_told_and_left_out_of_what_counts(reviews: Reviews, clock: Clock):
    late(reviews, clock)
    assert [reviews.standing("week", "t0", who) for who in ("bob", "ann", "eve")] == ["counted", "extra", "none"]
    assert set(reviews.answers("week", "t0", "lead")) == {"ann", "bob"}, "leads see it"
    assert reviews.ratings("week") == [("t0", "bob", "dog")] and settled(reviews, "week")["t0"].label == "dog"
    assert disputed(reviews, "week") == [("t0", 1.0)], "that it differs is for a lead to look at"
    assert reviews.progress("week") == {"asked": 1, "done": 1, "items": 1, "complete": 1, "by": {"bob": 1, "ann": 1}}
    assert take(reviews, "eve") is None, "it goes to nobody else"
    reviews.adjudicate("week", "lead", "t0", LATE)
    assert reviews.standing("week", "t0", "ann") == "decided"


def test_an_extra_answer_counts_when_the_one_before_it_is_taken_back(reviews: Reviews, clock: Clock):
    late(reviews, clock)
    reviews.undo("week", "bob")
    assert reviews.standing("week", "t0", "ann") == "counted" and reviews.ratings("week") == [("t0", "ann", "cat")]
    reviews.judge("week", "bob", "t0", GOOD)
    assert reviews.standing("week", "t0", "bob") == "extra", "now bob is the later one"
    assert fold(read_events(reviews.log.folder)[0]).answers == reviews.log.state.answers


def test_who_came_first_counts_and_stays_first_with_another_answer(reviews: Reviews, clock: Clock):
    late(reviews, clock, extra=False)
    reviews.judge("week", "ann", "t0", GOOD)
    assert [reviews.standing("week", "t0", who) for who in ("ann", "bob")] == ["counted", "extra"]


def test_who_skipped_and_answers_after_all_stands_behind_who_has_answered(reviews: Reviews):
    opened(reviews, items=1)
    take(reviews, "ann")
    reviews.skip("week", "ann", "t0", "too dark")
    take(reviews, "bob")
    for who in ("bob", "ann"):
        reviews.judge("week", who, "t0", GOOD)
    assert [reviews.standing("week", "t0", who) for who in ("ann", "bob")] == ["extra", "counted"]


def test_a_gold_item_has_no_extra_answers(reviews: Reviews):
    opened(reviews, items=3, gold={"t0": {"label": "dog"}}, gold_share=0.99)
    for who in ("ann", "bob"):
        assert take(reviews, who) == "t0"
        reviews.judge("week", who, "t0", GOOD)
        assert reviews.standing("week", "t0", who) == "counted"


def test_a_reload_gets_the_same_item_and_its_draft_and_another_tab_another(reviews: Reviews):
    opened(reviews)
    assert take(reviews, "ann", seat="tab 1") == "t0" and take(reviews, "ann", seat="tab 2") == "t1"
    reviews.draft("week", "ann", "t0", {"label": "cat"})
    again = reviews.next_item("week", "ann", seat="tab 1")
    assert (again.trace_id, again.clip_id, again.draft) == ("t0", "c0", {"label": "cat"})
    assert take(reviews, "ann", seat="tab 1", holding=["t0"]) == "t2", "one ahead"
    assert take(reviews, "ann", seat="tab 1", holding=["t0", "t2"]) is None
    reviews.judge("week", "ann", "t0", GOOD)
    assert take(reviews, "ann", seat="tab 1") == "t2" and take(reviews, "ann", seat="tab 2") == "t1"


def test_a_kill_forgets_no_reservation(reviews: Reviews, clock: Clock):
    opened(reviews, items=1)
    assert take(reviews, "ann") == "t0"
    reviews.log.close()
    with EventLog(reviews.log.folder, clock=clock) as log:
        assert Reviews(log).next_item("week", "bob") is None
        assert Reviews(log).next_item("week", "ann").trace_id == "t0"


def test_sixteen_threads_ask_five_hundred_times_and_nothing_goes_out_twice(reviews: Reviews):
    opened(reviews, items=300, reviewers=2, seconds=3600)

    def work(who: int) -> list[tuple[str, int]]:
        mine = []
        for _ in range(40):
            item = take(reviews, f"r{who % 8}", seat=str(who), holding=[one for one, _ in mine])
            if item:
                mine.append((item, who % 8))
        return mine

    with ThreadPoolExecutor(16) as pool:
        handed = [pair for mine in pool.map(work, range(16)) for pair in mine]
    assert len(handed) == 600 and len(set(handed)) == 600, "never twice to one"
    assert set(Counter(item for item, _ in handed).values()) == {2}, "to as many as asked"


@given(
    st.lists(
        st.tuples(st.sampled_from(["next", "judge", "skip", "undo", "release", "wait"]), st.sampled_from("abc")),
        max_size=40,
    ),
    st.integers(1, 2),
)
def test_whatever_people_do_hand_outs_hold_the_rules(tmp_path_factory, steps, wanted):
    clock = Clock()
    folder = tmp_path_factory.mktemp("reviews")
    with EventLog(folder, clock=clock) as log:
        reviews = Reviews(log)
        opened(reviews, items=2, reviewers=wanted, seconds=60)
        held: dict[str, str] = {}
        for step, who in steps:
            clock.now += 1
            if step == "wait":
                clock.now += 61
            elif step == "undo":
                reviews.undo("week", who)
            elif step == "next":
                said = log.look(lambda state: {item: dict(by) for item, by in state.answers["week"].items()})
                out = log.look(
                    lambda state: {
                        (item, other)
                        for item, by in state.holds["week"].items()
                        for other, hold in by.items()
                        if hold.at > clock.now - 60
                    }
                )
                item = take(reviews, who)
                if item:
                    held[who] = item
                    busy = {other for name, other in out if name == item} | {
                        other for other, act in said.get(item, {}).items() if act.kind is Kind.JUDGED
                    }
                    assert who not in said.get(item, {}) and (len(busy | {who}) <= wanted or (item, who) in out)
            elif who in held:
                more = {"judge": [GOOD], "skip": ["dark"], "release": []}[step]
                getattr(reviews, step)("week", who, held[who], *more)
        live = log.look(lambda state: (dict(state.answers["week"]), dict(state.holds["week"]), dict(state.drafts)))
    again = fold(read_events(folder)[0])
    assert live == (dict(again.answers["week"]), dict(again.holds["week"]), dict(again.drafts)), "memory is the file"


# Answering


def test_undo_gives_the_item_back_with_what_was_said(reviews: Reviews):
    opened(reviews)
    assert reviews.undo("week", "ann") is None
    for item in ("t0", "t1"):
        take(reviews, "ann")
        reviews.judge("week", "ann", item, GOOD | {"note": item})
    assert reviews.undo("week", "ann").item == "t1"
    assert take(reviews, "bob") == "t2", "t1 is ann's again"
    back = reviews.next_item("week", "ann")
    assert (back.trace_id, back.draft["note"]) == ("t1", "t1")
    assert reviews.undo("week", "ann").item == "t0" and reviews.undo("week", "ann") is None
    assert [line["kind"] for line in lines(reviews)].count("undone") == 2 and reviews.progress("week")["done"] == 0


def test_undo_of_a_second_thought_brings_the_first_back(reviews: Reviews):
    opened(reviews)
    take(reviews, "ann")
    reviews.judge("week", "ann", "t0", GOOD)
    reviews.judge("week", "ann", "t0", {"label": "cat", "verdict": "wrong"})
    assert [act.payload["label"] for act in reviews.judgements("week")] == ["cat"]
    reviews.undo("week", "ann")
    assert [act.payload["label"] for act in reviews.judgements("week")] == ["dog"]


def test_a_skipped_item_waits_for_somebody_else(reviews: Reviews):
    opened(reviews, items=1)
    take(reviews, "ann")
    with pytest.raises(DataError, match="without a reason"):
        reviews.skip("week", "ann", "t0", "  ")
    reviews.skip("week", "ann", "t0", "too dark")
    assert take(reviews, "ann") is None and take(reviews, "bob") == "t0"


def test_others_answers_are_hidden_from_all_but_leads(reviews: Reviews):
    opened(reviews, reviewers=2, leads=["eve"])
    for who in ("ann", "bob"):
        take(reviews, who)
        reviews.judge("week", who, "t0", GOOD)
    assert [list(reviews.answers("week", "t0", who)) for who in ("ann", "kim", "lead", "eve")] == [
        ["ann"],
        [],
        ["ann", "bob"],
        ["ann", "bob"],
    ]


def test_a_lead_decides_and_the_item_goes_out_no_more(reviews: Reviews):
    opened(reviews, items=1, reviewers=3)
    with pytest.raises(DataError, match="leads of this task do"):
        reviews.adjudicate("week", "ann", "t0", GOOD)
    reviews.adjudicate("week", "lead", "t0", GOOD)
    assert take(reviews, "ann") is None and reviews.progress("week")["complete"] == 1
    reviews.undo("week", "lead")
    assert take(reviews, "ann") == "t0"


def test_nobody_answers_or_takes_back_once_a_task_is_closed_and_all_may_read_it(reviews: Reviews):
    opened(reviews, reviewers=2)
    for who in ("ann", "bob"):
        take(reviews, who)
    sent = reviews.judge("week", "bob", "t0", GOOD, event_id="sent twice")
    reviews.close("week", "lead")
    assert take(reviews, "ann") is None, "not even what she holds"
    reviews.draft("week", "ann", "t0", {"label": "cat"})
    for act in (
        lambda: reviews.judge("week", "ann", "t0", GOOD),
        lambda: reviews.skip("week", "ann", "t0", "dark"),
        lambda: reviews.judge("week", "bob", "t0", GOOD),
        lambda: reviews.undo("week", "bob"),
    ):
        with pytest.raises(DataError, match="the task 'week' is closed.*Ask a lead to open it again"):
            act()
    assert reviews.judge("week", "bob", "t0", GOOD, event_id="sent twice") == sent, "saved before, and said so again"
    reviews.adjudicate("week", "lead", "t0", GOOD)
    reviews.undo("week", "lead")
    reviews.close("week", "lead", closed=False)
    assert reviews.next_item("week", "ann").draft == {"label": "cat"}
    reviews.judge("week", "ann", "t0", GOOD)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"label": "dog"}, "'verdict' is missing"),
        ({"label": "bird", "verdict": "right"}, "'bird' came as the label"),
        (GOOD | {"label": ["dog"]}, "came as the label"),
        (GOOD | {"verdict": "fine"}, "'fine' came as the verdict.*Give one of right, wrong reasons, wrong"),
        (GOOD | {"mood": 1}, "came as the mood: this task asks label, verdict, failing, note"),
        (GOOD | {"note": 3}, "came as the note.*text up to 10,000"),
        (GOOD | {"note": "x" * 10_001}, "came as the note"),
        (GOOD | {"failing": {"sentence": -1, "in": "seeing"}}, "came as the failing"),
        (GOOD | {"failing": {"sentence": 1, "in": "hearing"}}, 'seeing" or "reasoning'),
        (GOOD | {"failing": {"sentence": True, "in": "seeing"}}, "came as the failing"),
        (GOOD | {"failing": [1]}, "came as the failing"),
    ],
)
def test_answers_that_answer_nothing_get_a_sentence(reviews: Reviews, answers, said):
    opened(reviews)
    take(reviews, "ann")
    with pytest.raises(DataError, match=said):
        reviews.judge("week", "ann", "t0", answers)
    assert [line["kind"] for line in lines(reviews)] == ["opened", "reserved"]


def test_unsure_is_an_answer(reviews: Reviews):
    opened(reviews)
    take(reviews, "ann")
    reviews.judge("week", "ann", "t0", {"label": None, "verdict": None, "failing": {"sentence": 0, "in": "reasoning"}})
    assert reviews.ratings("week") == [("t0", "ann", None)]


def test_nobody_judges_what_was_not_handed_to_them(reviews: Reviews):
    opened(reviews)
    for item in ("t0", "nothing", "../../x"):
        with pytest.raises(DataError, match="was not handed to 'ann'"):
            reviews.judge("week", "ann", item, GOOD)
    with pytest.raises(DataError, match="there is no review task 'weak'.*Nearest: 'week'"):
        reviews.next_item("weak", "ann")
    with pytest.raises(DataError, match="Give the name of a login"):
        reviews.next_item("week", " ")


def test_an_answer_sent_again_after_a_broken_line_counts_once(reviews: Reviews):
    opened(reviews)
    take(reviews, "ann")
    first, second = (reviews.judge("week", "ann", "t0", GOOD, event_id="tab1-0001") for _ in range(2))
    assert first == second and len(lines(reviews)) == 3


def test_a_task_is_opened_once_and_means_one_thing(reviews: Reviews):
    task = opened(reviews)
    assert opened(reviews) == task and len(lines(reviews)) == 1
    with pytest.raises(DataError, match="two different events.*give a task another name"):
        opened(reviews, items=4)
    for wrong in ({"reviewers": 0}, {"questions": ["mood"]}, {"labels": []}, {"gold": {"t9": {}}}, {"seconds": 0}):
        with pytest.raises(DataError):
            opened(reviews, **wrong)


# What the team learns


def test_gold_items_are_hidden_go_to_everybody_and_say_who_drifts(reviews: Reviews):
    opened(reviews, items=60, gold={f"t{n}": {"label": "dog"} for n in range(10)}, gold_share=0.3)
    places = {}
    for who, label in (("ann", "dog"), ("bob", "cat")):
        places[who] = []
        for turn in range(25):
            item = reviews.next_item("week", who)
            assert set(vars(item)) == {"trace_id", "clip_id", "draft"}
            places[who] += [turn] if item.trace_id in reviews.task("week").gold else []
            reviews.judge("week", who, item.trace_id, {"label": label, "verdict": None})
    assert places["ann"] != places["bob"] and all(3 <= len(turns) <= 10 for turns in places.values())
    right = {(act.reviewer, *marks.values()) for act, marks in reviews.gold_marks("week")}
    assert right == {("ann", True), ("bob", False)}
    progress = reviews.progress("week")
    assert progress["items"] == 50 and progress["done"] == 50 - sum(map(len, places.values()))
    assert progress["by"] == {"ann": 25, "bob": 25}


def test_of_a_gold_item_all_that_is_known_is_measured(reviews: Reviews):
    """Label, verdict, and of the place that fails sentence or kind or both."""
    known = {"label": "dog", "verdict": "wrong"}
    gold = {
        "t0": known | {"failing": {"sentence": 2, "in": "seeing"}},
        "t1": known | {"failing": {"in": "seeing"}},
        "t2": {"verdict": "right"},
    }
    opened(reviews, items=4, gold=gold, gold_share=0.99)
    said = known | {"failing": {"sentence": 1, "in": "seeing"}}
    while item := take(reviews, "ann"):
        reviews.judge("week", "ann", item, said)
    marks = {act.item: right for act, right in reviews.gold_marks("week")}
    everything = {"label": True, "verdict": True, "failing": True}
    assert marks == {"t0": everything | {"failing": False}, "t1": everything, "t2": {"verdict": False}}
    (record,) = gold_records(reviews, "week")
    assert (record.n, record.share.value) == (3, pytest.approx(1 / 3))
    assert {name: (share.value) for name, share in record.by.items()} == {
        "label": 1.0,
        "verdict": pytest.approx(2 / 3),
        "failing": 0.5,
    }
    for wrong in ({"failing": {"in": "hearing"}}, {"failing": {"sentence": -1}}, {"failing": [1]}, {"verdict": "so"}):
        with pytest.raises(DataError):
            opened(reviews, gold={"t0": wrong})


def test_judgements_go_straight_into_agreement(reviews: Reviews):
    opened(reviews, items=4, reviewers=2)
    for who, said in (("ann", ["dog", "dog", "cat", "cat"]), ("bob", ["dog", "cat", "cat", "cat"])):
        for label in said:
            reviews.judge("week", who, take(reviews, who), {"label": label, "verdict": None})
    matrix, _, people = rating_matrix(reviews.ratings("week"), ["dog", "cat"])
    overall = agreement(matrix, ["dog", "cat"], draws=50)[0]
    assert sorted(people) == ["ann", "bob"] and overall.percent.value == 0.75
    assert overall.kappa.value == pytest.approx(0.5)


def test_where_people_differ_a_third_one_looks_first(reviews: Reviews):
    opened(reviews, items=3, reviewers=3, order="reviewers")
    for who in ("ann", "bob"):
        for _ in range(3):
            item = take(reviews, who)
            label = "cat" if (who, item) == ("bob", "t1") else "dog"
            reviews.judge("week", who, item, {"label": label, "verdict": None})
    assert take(reviews, "eve") == "t1"


# Orders, over a real index


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Four clips with two traces each; a calibrator that is sure of c0, torn on c1, between on c2, silent on c3."""
    found = Workbench(tmp_path_factory.mktemp("workbench"))
    said = {"c0": ("dog", "dog"), "c1": ("dog", "cat"), "c2": ("cat", "cat"), "c3": ("cat", "cat")}
    with found.start_run("coldstart", {}) as run:
        run.append(
            "traces",
            [
                {"clip_id": clip, "sample": sample, "text": "a dog", "provisional": label}
                for clip, labels in said.items()
                for sample, label in enumerate(labels)
            ],
        )
        run.finish()
    traces = run.read("traces")
    probs = {"c0": [0.98, 0.01, 0.01], "c1": [0.34, 0.33, 0.33], "c2": [0.5, 0.5, 0.0]}
    with found.start_run("calibrate", {}) as run:
        run.append(
            "predictions",
            [
                {
                    "clip_id": clip,
                    "trace_id": trace,
                    "split": "test",
                    "system": "calibrated",
                    "method": "label_likelihood",
                    "control": "none",
                    "predicted": "dog",
                    "labels": ["dog", "cat", "fox"],
                    "probs": probs[clip],
                }
                for clip, trace in zip(traces.clip_id, traces.trace_id)
                if clip in probs
            ],
        )
        run.finish()
    found.refresh()
    return found


def test_uncertain_ones_come_first_and_unknown_ones_last(workbench: Workbench):
    assert list(dict.fromkeys(plan(workbench, TraceFilter(), "entropy").values())) == ["c1", "c2", "c0", "c3"]
    margins = list(plan(workbench, TraceFilter(), "margin").values())
    assert margins[:2] == ["c2", "c2"] and margins[4:] == ["c0", "c0", "c3", "c3"]
    changed = list(plan(workbench, TraceFilter(), "changed").values())
    assert sorted(changed[:3]) == ["c1", "c2", "c2"] and changed[6:] == ["c3", "c3"]
    assert set(list(plan(workbench, TraceFilter(), "traces").values())[:2]) == {"c1"}
    assert set(plan(workbench, TraceFilter(sample=0), "traces").values()) == {"c0", "c1", "c2", "c3"}


def test_chance_is_seeded_and_a_list_keeps_its_order(workbench: Workbench):
    orders = {tuple(plan(workbench, TraceFilter(), "random", seed)) for seed in range(6)}
    assert len(orders) > 3 and tuple(plan(workbench, TraceFilter(), "random", 3)) in orders
    ids = [*plan(workbench, TraceFilter(), "random")][:5]
    assert [*plan(workbench, ids[::-1], "given")] == ids[::-1]
    with pytest.raises(DataError, match="'nowhere' is not in the index"):
        plan(workbench, ["nowhere"])


def test_a_mixture_takes_from_each_order_by_its_share(workbench: Workbench):
    mixed = plan(workbench, TraceFilter(), {"entropy": 3, "random": 1})
    assert len(mixed) == 8 and set(mixed) == set(plan(workbench, TraceFilter()))
    pure = [*plan(workbench, TraceFilter(), "entropy")]
    assert [one for one in mixed if one in pure[:2]] == pure[:2]
    for wrong in ("entropie", {"entropy": 0}, {"reviewers": 1, "random": 1}):
        with pytest.raises(DataError, match="Nearest"):
            plan(workbench, TraceFilter(), wrong)


def test_a_task_of_a_slice_is_fixed_when_it_is_opened(workbench: Workbench):
    gold = [*plan(workbench, TraceFilter(clip="c3"))][0]
    with EventLog(workbench.reviews) as log:
        task = task_of(
            workbench,
            "torn",
            TraceFilter(calibrated="dog"),
            {"entropy": 2, "random": 1},
            gold={gold: {"label": "cat"}},
            labels=["dog", "cat"],
            reviewers=2,
        )
        opened = Reviews(log).open(task, "lead")
        assert opened.slice == {"calibrated": "dog"} and len(opened.items) == 7 and opened.items[gold] == "c3"
    with EventLog(workbench.reviews) as log:
        assert Reviews(log).task("torn") == opened
        assert Reviews(log).next_item("torn", "ann").clip_id in ("c0", "c1", "c2")
    with pytest.raises(DataError, match="holds no trace"):
        task_of(workbench, "none", TraceFilter(run="nowhere"), labels=["dog"])
