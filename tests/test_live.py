"""A trace as a stream of events: live from the embedded model, replayed from the store, and what a watcher is shown."""

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from porch import endless, live_workbench, living, until, wish

from deepintuit.reasoner.replay import Attributed, Distribution, Failed, Seen, Stage, TraceDone, Written, replay
from deepintuit_analysis import Workbench
from deepintuit_app import trace_view
from deepintuit_app.live import Engine, Pages
from deepintuit_app.trace_view import TraceView

ROOT = Path(__file__).parents[1]
TEXT = "<think> At 0.5 s a courier comes. Frame 2 shows a box. </think><answer> theft </answer>"
ROW = {
    "text": TEXT, "tokens": 20, "milliseconds": 500.0, "provisional": "theft", "reason": None, "detail": None,
    "confidence": 0.9, "frame_indices": np.array([1, 4]), "frame_times": np.array([0.1, 0.4]),
}  # fmt: skip
PREDICTED = {"labels": ["theft", "routine"], "probs": [0.3, 0.7], "method": "label_likelihood", "temperature": 0.9}


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    return live_workbench(tmp_path_factory.mktemp("live") / "workbench")


# Replay


def test_a_replay_ends_with_the_text_and_the_predictions_that_were_stored():
    happened = list(replay(ROW, [PREDICTED], tokens_per_second=40.0))
    events = [event for _, event in happened]
    assert [at for at, _ in happened] == sorted(at for at, _ in happened)
    assert happened[-1][0] == pytest.approx(20 / 40)
    texts = [event.text for event in events if isinstance(event, Written)]
    assert texts[-1] == TEXT and all(TEXT.startswith(text) for text in texts)
    assert events[0] == Seen((1, 4), (0.1, 0.4))
    assert TraceDone(TEXT, "theft", None, None, 0.9, 20, 500.0) in events
    assert events[-1] == Distribution(("theft", "routine"), (0.3, 0.7), "label_likelihood", 0.9)
    assert events[-1].predicted == "routine"


@pytest.mark.parametrize(("pace", "seconds"), [(None, 0.5), (float("inf"), 0.0), (10.0, 2.0)])
def test_a_replay_has_the_pace_that_is_asked_for(pace, seconds):
    assert list(replay(ROW, tokens_per_second=pace))[-1][0] == pytest.approx(seconds)


def test_a_trace_without_counts_times_or_probabilities_is_replayed_all_the_same():
    bare = {"text": "He leaves", "provisional": float("nan"), "reason": float("nan"), "tokens": float("nan")}
    events = [event for _, event in replay(bare, [{"method": "raw", "probs": None, "labels": None}])]
    assert [type(event) for event in events] == [Stage, Written, Written, TraceDone, Stage]
    assert events[3] == TraceDone("He leaves", "none")


def test_a_replay_needs_no_torch():
    program = "import sys, app.trace_view, deepintuit.reasoner.replay; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0


# Live


def test_a_live_trace_goes_through_its_steps_and_ends_with_two_distributions(workbench):
    from deepintuit.reasoner.live import Ask, Models, reason

    events = []
    models = Models(workbench)
    reason(models, Ask(**wish(workbench, max_tokens=60)), events.append, lambda: False)
    names = [event.name for event in events if isinstance(event, Stage)]
    assert names == ["load", "decode", "encode", "reason", "load", "calibrate"]
    done = next(event for event in events if isinstance(event, TraceDone))
    texts = [event.text for event in events if isinstance(event, Written)]
    assert texts and all(done.text.startswith(text) for text in texts) and not done.stopped
    seen = next(event for event in events if isinstance(event, Seen))
    assert len(seen.times) == len(seen.pixels_T_H_W_3) == 8
    last = events[-1]
    assert last.method == "label_likelihood" and last.temperature == 2.0 and last.labels == ("theft", "routine")
    assert sum(last.probs) == pytest.approx(1)
    again = []
    reason(models, Ask(**wish(workbench, max_tokens=60)), again.append, lambda: False)
    assert [e.name for e in again if isinstance(e, Stage)] == ["decode", "encode", "reason", "calibrate"]
    assert next(e for e in again if isinstance(e, TraceDone)).text == done.text


def test_a_quick_answer_that_is_sure_enough_ends_a_live_trace(workbench):
    from deepintuit.reasoner.live import Ask, Models, reason

    def written(**more):
        events = []
        reason(Models(workbench), Ask(**wish(workbench, max_tokens=60), **more), events.append, lambda: False)
        return next(event for event in events if isinstance(event, TraceDone))

    plain = written(think_below=0.5)  # a grammar without a quick answer: nothing to gate
    assert plain.thought is None and plain == replace(written(), milliseconds=plain.milliseconds)
    stored = {"text": TEXT, "provisional": "theft", "quick_confidence": 0.99, "thought": False}
    done = next(event for _, event in replay(stored) if isinstance(event, TraceDone))
    assert (done.thought, done.quick_confidence) == (False, 0.99)


def test_the_calibrator_is_asked_what_carried_its_label_to_a_trace_that_is_there(workbench):
    from deepintuit.reasoner.live import Ask, Models, reason

    files = {path for path in workbench.cache.rglob("*") if path.is_file()}
    for text, truncated, sentences in (
        (TEXT, False, ["At 0.5 s a courier comes.", "Frame 2 shows a box.", "theft"]),
        ("<think> A dog. It ru", True, ["A dog.", "It ru"]),
        ("", False, []),
    ):
        events, written = [], {"text": text, "truncated": truncated, "thought": None}
        models = Models(workbench)
        reason(models, Ask(**wish(workbench, 1, private=True), written=written), events.append, lambda: False)
        assert [event.name for event in events if isinstance(event, Stage)] == ["load", "encode", "calibrate"]
        assert [row["text"] for row in events[-1].rows] == sentences
        assert all(row["answer"] in ("theft", "routine") and abs(row["effect"]) <= 1 for row in events[-1].rows)
    assert {path for path in workbench.cache.rglob("*") if path.is_file()} == files


def test_effects_stand_in_numbers_before_their_sentences():
    rows = [("It", 0.42, "routine"), ("box", -0.07, "theft"), ("theft", 0.0, "theft")]
    shown = grown(TraceDone(TEXT, "theft"), mode="stored")
    assert "effect" not in trace_view.trace(shown)
    about = {"answer": "theft", "probability": 0.9}
    attributed = [
        {**about, "sentence": n, "effect": effect, "answer_without": then} for n, (_, effect, then) in enumerate(rows)
    ]
    assert shown.take(Attributed(tuple(attributed))) == {"trace"}
    drawn = trace_view.trace(shown)
    assert re.findall(r'class="effect"[^>]*>\s*([^<]*)</span>', drawn) == ["+42 → routine", "−7", "0"]
    assert "Without it theft has 48.0 % instead of 90.0 %" in drawn and "points of that are lost" in drawn
    assert re.findall(r'class="sentence (\w+)" style="--effect:([\d.]+)%"', drawn) == [
        ("carries", "42.00"), ("opposes", "7.00"), ("opposes", "0.00"),
    ]  # fmt: skip
    evil = "<img src=x onerror=alert(1)>"
    shown.take(Attributed(tuple({**row, "answer": evil, "answer_without": "b"} for row in attributed)))
    assert "<img src=x" not in trace_view.trace(shown)
    shown.asking = True
    assert "Asking the calibrator" in trace_view.trace(shown)


def test_no_more_than_two_models_are_kept(workbench):
    from deepintuit.reasoner.live import Models

    models = Models(workbench, room=1)
    asked = wish(workbench)
    models.get(asked["reasoner"])
    models.get(asked["calibrator"])
    assert asked["calibrator"] in models and asked["reasoner"] not in models


def test_a_private_clip_leaves_nothing_in_the_caches_and_is_opened_in_another_process(workbench, monkeypatch):
    monkeypatch.setattr("av.open", lambda *_, **__: pytest.fail("a stranger's video was opened in this process"))
    from deepintuit.reasoner.live import Ask, Models, reason

    def kept():
        return {path for path in workbench.cache.rglob("*") if path.is_file()}

    before, events = kept(), []
    asked = wish(workbench, 1, max_tokens=4, private=True)
    reason(Models(workbench), Ask(**asked), events.append, lambda: False)
    assert any(isinstance(event, TraceDone) for event in events) and kept() == before


def test_a_clip_that_cannot_be_read_ends_in_one_sentence(workbench, tmp_path):
    from dataclasses import replace

    from deepintuit.reasoner.live import Ask, Models, reason

    (tmp_path / "gone.mp4").write_bytes(b"no video at all")
    asked = wish(workbench)
    asked["clip"] = replace(asked["clip"], clip_id="0" * 16, path=str(tmp_path / "gone.mp4"))
    events = []
    reason(Models(workbench), Ask(**asked), events.append, lambda: False)
    assert isinstance(events[-1], Failed) and "cannot be read" in events[-1].sentence


def test_stop_ends_the_generating_thread_within_a_second(workbench):
    engine, stop, taken = Engine(workbench), threading.Event(), []
    with endless():
        job = engine.start(stop, **wish(workbench, max_tokens=8000))
        until(lambda: taken.extend(job.take()) or any(isinstance(event, Written) for event in taken), 60)
    assert job.thread in living()
    stop.set()
    assert until(lambda: job.thread not in living(), 1.0) < 1.0
    taken += job.take()
    assert taken[-1].stopped and job.over


def test_one_trace_is_written_at_a_time_and_the_others_know_their_place(workbench):
    engine = Engine(workbench)
    stops = [threading.Event() for _ in range(3)]
    with endless():
        jobs = [engine.start(stop, **wish(workbench, max_tokens=8000)) for stop in stops]
        _line_of_three(jobs, stops)


def _line_of_three(jobs, stops) -> None:
    assert [job.ahead for job in jobs] == [0, 1, 2]
    stops[1].set()
    until(lambda: jobs[1].over, 1.0)
    assert [job.ahead for job in jobs] == [0, 0, 1]
    until(lambda: any(isinstance(event, Written) for event in jobs[0].take()), 60)
    assert jobs[2].take() == []
    stops[0].set()
    until(lambda: any(isinstance(event, Written) for event in jobs[2].take()), 60)
    stops[2].set()
    until(lambda: not jobs[2].thread.is_alive(), 1.0)


def test_an_error_in_the_thread_is_told_and_frees_the_line(workbench):
    engine, stop = Engine(workbench), threading.Event()
    job = engine.start(stop, nonsense=1)
    until(lambda: not job.thread.is_alive(), 60)
    assert isinstance(job.take()[-1], Failed) and job.over
    after = engine.start(stop, **wish(workbench, max_tokens=4))
    assert after.ahead == 0
    after.thread.join(60)
    assert any(isinstance(event, TraceDone) for event in after.take())


def test_a_page_runs_one_thing_at_a_time():
    pages = Pages()
    first = pages.begin("a")
    other = pages.begin("b")
    threading.Timer(0.05, pages.end, ["a", first]).start()
    second = pages.begin("a")
    assert first.quiet and first.stop.is_set() and not other.stop.is_set() and not second.stop.is_set()
    pages.stop("a")
    assert second.stop.is_set() and not second.quiet
    pages.stop("nobody")


# What is shown


def grown(*events, mode="live", **more) -> TraceView:
    shown = TraceView(mode, "by somebody", seconds=2.0, **more)
    for event in events:
        shown.take(event)
    return shown


def test_a_flip_is_badged_and_the_truth_is_shown_only_when_asked_for():
    shown = grown(TraceDone(TEXT, "theft"), Distribution(("theft", "routine"), (0.3, 0.7), "label_likelihood"))
    plain = trace_view.verdict(shown)
    assert "changed: theft → routine" in plain and "True label" not in plain and "right" not in plain
    asked = trace_view.verdict(shown, "theft")
    assert "True label" in asked and "wrong" in asked


@pytest.mark.parametrize(("threshold", "abstains"), [(0.5, False), (0.75, True)])
def test_a_top_probability_below_the_threshold_abstains(threshold, abstains):
    shown = grown(TraceDone(TEXT, "routine"), Distribution(("theft", "routine"), (0.3, 0.7), "label_likelihood"))
    drawn = trace_view.verdict(shown, None, threshold)
    assert ("abstains: below" in drawn) is abstains and f"width:{100 * threshold:.1f}%" in drawn


def test_without_a_calibrator_the_verdict_says_what_to_run():
    shown = grown(TraceDone(TEXT, "theft"))
    shown.finish()
    assert "deepintuit calibrate" in trace_view.verdict(shown)


def test_every_state_has_words():
    assert "Pick a clip" in trace_view.status(None) and "No trace yet" in trace_view.trace(None)
    waiting = grown()
    waiting.ahead = 2
    assert "number 3 in the queue" in trace_view.status(waiting)
    doing = trace_view.status(grown(Stage("reason")))
    assert "Reasoning" in doing and 'aria-current="step"' in doing
    stopped = grown(Stage("reason"), Written("<think> At", 3))
    stopped.finish(stopped=True)
    assert "Stopped" in trace_view.status(stopped) and "caret" not in trace_view.trace(stopped)
    assert "no longer gives the frames" in trace_view.film(grown(Seen((1,), (0.1,)), lost=True))
    malformed = grown(TraceDone("<think> x", "none", "truncated", "cut"))
    assert "cut at the token limit" in trace_view.trace(malformed)


def test_hostile_words_are_text_in_every_part():
    evil = "<img src=x onerror=alert(1)> ${1} {{2}}"
    shown = grown(
        Written(evil, 3), TraceDone(f"<think>{evil}</think>{evil}", evil, evil, evil),
        Distribution((evil, "b"), (0.6, 0.4), evil), Failed(evil), mode="stored",
    )  # fmt: skip
    shown.source = evil
    drawn = (
        trace_view.status(shown) + trace_view.trace(shown) + trace_view.film(shown) + trace_view.verdict(shown, evil)
    )
    assert "<img src=x" not in drawn and "${" not in drawn and "{{" not in drawn


def test_of_many_labels_the_likeliest_the_provisional_and_the_true_one_are_shown():
    labels = tuple(f"label {number}" for number in range(30))
    probs = tuple(2.0 ** -(number + 1) for number in range(29)) + (2.0**-29,)
    shown = grown(TraceDone(TEXT, "label 20"), Distribution(labels, probs, "label_likelihood"))
    drawn = trace_view.verdict(shown, "label 25")
    assert drawn.count('class="track"') == 10 and "20 other labels" in drawn
    assert "label 20" in drawn and "label 25" in drawn and "label 15" not in drawn
