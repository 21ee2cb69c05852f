"""Stage "teach" on six real MP4s in a manifest shaped like homecam's; the endpoint is a real server on the loopback."""

import base64
import io
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_endpoint import KEY, Server, chat

from deepintuit import config, teach, video
from deepintuit.data import Manifest
from deepintuit.errors import DataError, LabelError, TeachError
from deepintuit.judges import Question, build_judge
from deepintuit.teach.recorder import INSUFFICIENT
from deepintuit.teach.teachers import framed_reasoning
from deepintuit.trace import GRAMMARS, parse
from deepintuit_analysis import Workbench
from deepintuit_clips import import_csv, scan
from deepintuit_homecam.world import LABELS, Facts, scripts

WORLD = [
    Facts("day", "porch", "courier", "brings", scripts("brings")[0]),
    Facts("day", "porch", "courier", "brings", scripts("brings")[1]),
    Facts("night", "yard", "stranger", "takes", scripts("takes")[0]),
    Facts("day", "kitchen", "resident", "falls", scripts("falls")[0]),
    Facts("night", "yard", "dog", "passes", scripts("passes")[0]),
    Facts("day", "yard", "child", "lingers", scripts("lingers")[0]),
]


@pytest.fixture
def workbench(tmp_path, monkeypatch) -> Workbench:
    """Six clips of different shades in split coldstart, an unreadable file beside them."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = ["path,label,split"]
    for number, facts in enumerate(WORLD):
        video.write_mp4(tmp_path / f"{number}.mp4", np.full((6, 96, 128, 3), 40 * number, np.uint8), 6)
        rows.append(f"{number}.mp4,{facts.label},coldstart")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    rows.append("broken.mp4,routine,coldstart")
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    (tmp_path / "labels.toml").write_text(LABELS.dumps())
    listing = import_csv(tmp_path / "clips.csv", tmp_path)
    manifest, _ = scan(listing, tmp_path / "bench", "tiny", probe=video.probe, progress=False)
    frame = manifest.frame
    stems = [Path(source).stem for source in frame["source"]]
    frame["notes"] = [{"facts": json.dumps(asdict(WORLD[int(stem)]))} if stem.isdigit() else {} for stem in stems]
    Manifest(tmp_path / "bench", "tiny", frame, LABELS).save()
    return Workbench(tmp_path / "bench")


def settings(*sets: str) -> config.Config:
    return config.load(None, ["clips.dataset=tiny", *sets])


def endpoint_sets(server: Server) -> list[str]:
    return [
        "clips.dataset=tiny", "video.frames=2", "teach.source=endpoint", f"teach.base_url={server.base_url}",
        "teach.model=m", "teach.key_variable=TEACHER_KEY", "teach.concurrency=2", "teach.retries=0",
    ]  # fmt: skip


def at(server: Server, *sets: str) -> config.Config:
    return config.load(None, [*endpoint_sets(server), *sets])


def quiet(workbench: Workbench, settings: config.Config, **more):
    return teach.run(workbench, settings, progress=False, **more)


def seen_number(body: dict) -> int:
    """Which of the six clips a request shows, by the shade of its pictures."""
    (url, *_) = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return round(np.asarray(picture).mean() / 40)


def say(answer: str, think: str = "Someone is seen.") -> str:
    return f"<think> {think} </think><answer> {answer} </answer>"


def kept_of(run) -> dict[str, tuple[float, str]]:
    rows = run.read("scores")
    return {row["trace_id"]: (row["value"], row["evidence"]) for row in rows[rows["name"] == "kept"].to_dict("records")}


def test_scripted_teacher_writes_and_judges_every_trace(workbench):
    run = quiet(workbench, settings("teach.source=homecam", "teach.traces=40"))
    traces, kept = run.read("traces"), kept_of(run)
    assert len(traces) == 240 and run.finished and run.stage == "teach"
    for row in traces.to_dict("records"):
        trace = parse(row["text"], "think-answer", LABELS)
        right = trace.ok and trace.label == row["true_label"]
        why = "" if right else str(trace.reason) if not trace.ok else teach.WRONG_LABEL
        assert kept[row["trace_id"]] == (float(right), why)
    found = run.summary
    assert found["asked"] == found["written"] == found["kept"] + sum(found["dropped"].values()) == 240
    assert 0 < found["kept"] < 240, "this teacher errs"
    assert sum(row["kept"] for row in found["by_class"].values()) == found["kept"]
    assert {"accuracy", "format", "kept"} == set(run.read("scores")["name"])


def test_scripted_traces_depend_on_seed_and_clip_alone(workbench):
    changes = ["seed=0"], ["seed=0", "teach.keep_wrong=true"], ["seed=1"]
    runs = [quiet(workbench, settings("teach.source=homecam", *sets)) for sets in changes]
    texts = [list(run.read("traces")["text"]) for run in runs]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("grammar", [name for name in GRAMMARS if name != "think-answer"])
def test_scripted_teacher_writes_in_the_other_grammars_too(workbench, grammar):
    sets = ("teach.source=homecam", "judge.source=facts", f"prompt.grammar={grammar}", "teach.traces=5")
    run = quiet(workbench, settings(*sets))
    assert set(run.summary["dropped"]) <= {teach.WRONG_LABEL, INSUFFICIENT} and run.summary["kept"]


def test_unusable_clips_are_listed_with_their_reason(workbench):
    run = quiet(workbench, settings("teach.source=homecam"))
    (entry,) = run.summary["excluded"]
    assert entry["source"].endswith("broken.mp4") and entry["reason"] == "not_a_video"
    assert "broken.mp4" in (run.path / "log").read_text()


def test_clips_without_facts_are_refused_before_a_run_begins(workbench):
    manifest = Manifest.load(workbench.path, "tiny")
    manifest.frame["notes"] = [{} for _ in range(len(manifest.frame))]
    manifest.save()
    with pytest.raises(DataError, match="teach.source"):
        quiet(workbench, settings("teach.source=homecam"))
    assert not workbench.runs()


def test_a_split_without_clips_and_a_label_not_in_the_list_are_refused(workbench, tmp_path):
    with pytest.raises(DataError, match="no usable clip"):
        quiet(workbench, settings("teach.source=homecam"), split="test")
    (tmp_path / "other.toml").write_text('name = "other"\nlabels = ["routine", "emergency"]\n')
    with pytest.raises(LabelError):
        quiet(workbench, settings("teach.source=homecam", f"clips.labels={tmp_path / 'other.toml'}"))


def test_endpoint_traces_are_kept_or_dropped_for_the_right_reason(workbench):
    def answer(body):
        number = seen_number(body)
        return [
            chat(say("Delivery.", think="Ein Kurier bringt 📦")),
            chat(say("theft")),
            chat(say("robbery")),
            chat("<think> It goes on and on", finish="length"),
            chat("", finish="content_filter"),
            chat(say("routine")),
        ][number]

    with Server(answer) as server:
        prices, pixels = ["teach.price_in=1e5", "teach.price_out=2e5"], ["video.max_pixels=4096", "video.min_pixels=64"]
        run = quiet(workbench, at(server, *prices, *pixels))
    found = run.summary
    assert found["dropped"] == {"wrong_label": 1, "unknown_label": 1, "truncated": 1, "empty": 1} and found["kept"] == 2
    assert found["by_class"]["delivery"] == {
        "clips": 2, "clips_kept": 1, "written": 2, "kept": 1, "dropped": {"wrong_label": 1},
    }  # fmt: skip
    assert (found["prompt_tokens"], found["completion_tokens"], found["cost"]) == (60, 30, 12.0)
    rows = run.read("traces").set_index("reason")
    assert rows.loc["truncated", "truncated"] and rows.loc["truncated", "provisional"] == "none"
    first = run.read("traces").to_dict("records")[0]
    assert list(first["frame_times"]) == sorted(first["frame_times"]) and len(first["frame_indices"]) == 2
    width, height = first["frames_size"]
    assert width * height <= 4096 and abs(width / height - 128 / 96) < 0.05
    assert any("Ein Kurier bringt 📦" in text for text in run.read("traces")["text"])


def test_the_endpoint_sees_small_clips_as_large_as_the_model_does(workbench):
    with Server(lambda body: chat(say("routine"))) as server:
        run = quiet(workbench, at(server, "video.min_pixels=49152", "video.max_pixels=60000"))
    assert {tuple(size) for size in run.read("traces")["frames_size"]} == {(256, 192)}


def test_the_endpoint_is_not_told_the_label(workbench):
    with Server(lambda body: chat(say("routine"))) as server:
        quiet(workbench, at(server))
    asked = {body["messages"][0]["content"][-1]["text"] for body in server.seen}
    assert len(asked) == 1 and "right label is" not in asked.pop(), "one question for clips of five classes"


def test_the_endpoint_is_told_the_form_even_when_our_own_model_gets_brief_prompts(workbench):
    with Server(lambda body: chat(say("routine"))) as server:
        quiet(workbench, at(server, "prompt.style=brief"))
    asked = server.seen[0]["messages"][0]["content"][-1]["text"]
    assert "<think>" in asked and "<answer>" in asked


def test_wrong_traces_are_kept_where_the_settings_say_so_malformed_ones_never(workbench):
    def answer(body):
        return chat(say("theft") if seen_number(body) else "I see it. <answer>theft</answer>")

    with Server(answer) as server:
        run = quiet(workbench, at(server, "teach.keep_wrong=true"))
    assert run.summary["kept"] == 5 and run.summary["dropped"] == {"missing_segment": 1}
    (bare,) = [row for row in run.table("traces").to_pylist() if row["reason"]]
    assert (bare["answer"], bare["provisional"]) == (None, "none")


def test_a_clip_that_vanished_since_the_import_is_unreadable_not_skipped(workbench, tmp_path):
    (tmp_path / "3.mp4").unlink()
    with Server(lambda body: chat(say("routine"))) as server:
        run = quiet(workbench, at(server, "teach.traces=2"))
    (entry,) = run.summary["unreadable"]
    assert entry["source"].endswith("3.mp4") and entry["reason"] == "not_found"
    assert (run.summary["asked"], run.summary["written"]) == (12, 10)


def test_refused_requests_are_listed_and_the_others_answered(workbench):
    def answer(body):
        return (400, {}, b"content policy") if seen_number(body) == 2 else chat(say("routine"))

    with Server(answer) as server:
        run = quiet(workbench, at(server))
    (entry,) = run.summary["refused"]
    assert "content policy" in entry["why"] and run.summary["written"] == 5 and run.finished


def test_missing_answers_leave_the_run_open_and_only_they_are_asked_again(workbench):
    broken = [True]

    def answer(body):
        return (500, {}, b"") if seen_number(body) == 4 and broken else chat(say("routine"))

    with Server(answer) as server:
        with pytest.raises(TeachError, match="1 traces did not come"):
            quiet(workbench, at(server))
        broken.clear()
        # More places and other prices make no other run.
        run = quiet(workbench, at(server, "teach.concurrency=1", "teach.price_in=3"))
    assert len(workbench.runs()) == 1 and run.finished and run.summary["written"] == 6 and len(server.seen) == 7


def test_a_finished_run_is_given_back_and_nothing_is_asked(workbench):
    with Server(lambda body: chat(say("routine"))) as server:
        first = quiet(workbench, at(server))
        again = quiet(workbench, at(server))
    assert again.id == first.id and again.summary == first.summary and len(server.seen) == 6


def test_traces_stored_without_their_scores_are_scored_on_resume(workbench):
    with Server(lambda body: chat(say("routine"))) as server:
        run = quiet(workbench, at(server))
        expected = run.summary
        # As after a kill between two parts: of the scores only the first, what the questions cost, is there.
        for part in sorted(run.path.glob("scores-*.parquet"))[1:]:
            part.unlink()
        about = json.loads((run.path / "run.json").read_text()) | {"status": "running"}
        (run.path / "run.json").write_text(json.dumps(about))
        again = quiet(workbench, at(server))
    assert again.summary | {"seconds": 0} == expected | {"seconds": 0} and len(server.seen) == 6


def test_killed_job_goes_on_where_it_was_and_pays_for_nothing_twice(workbench, root):
    program = (
        "import sys; from deepintuit import config, runs, teach; "
        "teach.run(runs.Workbench(sys.argv[1]), config.load(None, sys.argv[2:]), progress=False)"
    )

    killed = threading.Event()

    def answer(body):
        if len(server.seen) > 30:
            killed.wait(60)  # so that the job cannot end before it is killed, however slow this machine is
        return chat(say("routine"))

    with Server(answer) as server:
        sets = [*endpoint_sets(server), "teach.traces=10"]
        job = subprocess.Popen([sys.executable, "-c", program, str(workbench.path), *sets], cwd=root)
        waited = time.monotonic()
        while len(server.seen) < 20 and job.poll() is None and time.monotonic() - waited < 120:
            time.sleep(0.01)
        job.kill()
        job.wait()
        killed.set()
        asked = len(server.seen)
        run = quiet(workbench, config.load(None, sets))
    assert 20 <= asked < 60 and len(workbench.runs()) == 1
    assert run.summary["written"] == 60 and run.summary["prompt_tokens"] == 600
    assert 60 <= len(server.seen) <= 62, "at most the two that were in flight are asked twice"
    assert not [path for path in run.path.iterdir() if path.name.endswith(".tmp")]
    for path in workbench.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_summary_is_shown_as_a_table(workbench, capsys):
    teach.run(workbench, settings("teach.source=homecam"))
    shown = capsys.readouterr().out
    shown = re.sub(r"\s+", " ", shown)
    assert all(words in shown for words in ("traces kept (homecam)", "delivery", "1 clips excluded at import"))


def test_two_teachers_of_three_start_without_torch(root):
    program = "import sys, deepintuit.teach; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0


def test_a_model_that_does_not_know_the_form_writes_the_reasoning_and_form_and_label_are_put_round_it(workbench):
    own = settings(
        "model.path=embedded:homecam", "model.device=cpu", "video.frames=4", "prompt.style=brief", "teach.source=self",
        "teach.given_answer=true", "teach.max_tokens=24", "teach.temperature=1",
    )  # fmt: skip
    run = quiet(workbench, own)
    traces = run.read("traces")
    assert run.summary["kept"] == len(traces) == len(WORLD)
    for row in traces.itertuples():
        trace = parse(row.text, "think-answer", LABELS)
        assert trace.label == row.true_label and trace.segment("think").strip()
        assert row.token_ids is None and row.token_logprobs is None and not row.truncated


@given(
    text=st.one_of(
        st.text(),
        st.lists(
            st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "<", "thi", " ", "a dog"]), max_size=12
        ).map("".join),
    )
)
def test_any_text_becomes_the_reasoning_of_a_well_formed_trace_or_none(text):
    framed = framed_reasoning(text, "theft", GRAMMARS["think-answer"])
    assert (framed is None) == (
        not text.split("</think>")[0].replace("<think>", "").replace("<answer>", "").replace("</answer>", "").split()
    )
    assert framed is None or parse(framed, "think-answer", LABELS).label == "theft"


def test_reasoning_in_several_parts_is_not_framed():
    assert framed_reasoning("A dog is seen.", "theft", GRAMMARS["observation-think-answer"]) is None


# Judges


@pytest.mark.parametrize(
    "said, sufficient",
    [("yes", True), ("Yes.", True), (" YES\n", True), ("no", False), ("yes, it does", False), ("Not yes", False),
     ("Yes!", False), ("<b>yes</b>", False)],
)  # fmt: skip
def test_a_judge_at_a_server_must_say_a_plain_yes_and_is_asked_once(workbench, said, sufficient):
    manifest = Manifest.load(workbench.path, "tiny")
    question = Question(manifest.frame["clip_id"].iloc[0], "theft", "A stranger takes the box.")
    with Server(lambda body: chat(said)) as server:
        judge = build_judge(
            settings(f"judge.base_url={server.base_url}", "judge.model=m", "judge.key_variable=TEACHER_KEY"),
            LABELS, manifest, workbench.cache,
        )  # fmt: skip
        assert [tuple(verdict) for verdict in judge([question])] == [(sufficient, said.strip())]
        assert judge([question])[0].sufficient is sufficient
    (asked,) = server.seen
    text = json.dumps(asked["messages"])
    assert "A stranger takes the box." in text and "image_url" not in text  # it reads, and sees nothing


def empties(*numbers: int):
    """A server that writes nothing about these clips."""
    return lambda body: chat("" if seen_number(body) in numbers else say("routine"))


def test_empty_answers_are_asked_for_again_once_the_server_is_mended(workbench):
    with Server(empties(*range(6))) as server:
        with pytest.raises(TeachError, match="answers without a text"):
            quiet(workbench, at(server))
        server.answer = lambda body: chat(say("routine"))
        run = quiet(workbench, at(server))
        asked = len(server.seen)
        again = quiet(workbench, config.load(None, [*endpoint_sets(server), "seed=1"]))
    assert run.summary["written"] == again.summary["written"] == 6 and "empty" not in run.summary["dropped"]
    assert len(server.seen) == asked + 6, "another seed is asked anew"


def test_one_empty_answer_leaves_the_run_open_for_one_more_try_and_not_for_ever(workbench):
    with Server(empties(2)) as server:
        with pytest.raises(TeachError, match="1 traces did not come.*Rerun"):
            quiet(workbench, at(server))
        asked = len(server.seen)
        run = quiet(workbench, at(server))
    assert asked == 6 and len(server.seen) == 7
    assert run.finished and run.summary["dropped"]["empty"] == 1 and run.summary["written"] == 6
    (empty,) = [row for row in run.read("traces").to_dict("records") if not row["text"]]
    assert empty["detail"] == "it wrote nothing"


def test_a_run_that_was_finished_with_nothing_but_empty_answers_is_made_anew(workbench):
    with Server(empties()) as server:
        run = quiet(workbench, at(server))
        about = json.loads((run.path / "run.json").read_text())
        about["summary"] |= {"dropped": {"empty": 6}}
        (run.path / "run.json").write_text(json.dumps(about))
        again = quiet(workbench, at(server))
    assert again.id != run.id and again.summary["written"] == 6


def test_where_every_answer_is_filtered_or_refused_the_command_fails_and_stores_nothing(workbench):
    with Server(lambda body: chat(None, finish="content_filter")) as server:
        with pytest.raises(TeachError, match="content filter"):
            quiet(workbench, config.load(None, [*endpoint_sets(server), "teach.concurrency=6"]))
        server.answer = lambda body: chat(say("routine"))
        run = quiet(workbench, config.load(None, [*endpoint_sets(server), "teach.concurrency=6"]))
    assert run.summary["written"] == 6 and len(server.seen) == 12


def test_thinking_that_the_server_took_out_is_put_back(workbench):
    def answer(body):
        message = {"content": "<answer> routine </answer>", "reasoning_content": " Someone is seen. "}
        return 200, {}, json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()

    with Server(answer) as server:
        run = quiet(workbench, at(server))
    assert set(run.read("traces")["text"]) == {say("routine")}


def test_traces_of_a_model_that_takes_no_temperature_carry_none(workbench):
    def answer(body):
        if "temperature" in body:
            said = {"error": {"message": "temperature does not support 0.7. Only the default (1) value is supported."}}
            return 400, {}, json.dumps(said).encode()
        return chat(say("routine"))

    with Server(answer) as server:
        run = quiet(workbench, at(server))
    assert run.read("traces")["temperature"].isna().all() and "temperature" in (run.path / "log").read_text()


def test_a_judge_that_thinks_is_understood_and_one_that_never_ends_is_no_silent_no(workbench):
    manifest = Manifest.load(workbench.path, "tiny")
    question = [Question("x", "routine", "A dog passes.")]
    said = {"content": "Yes.", "reasoning": "The dog does nothing."}
    for told, verdict in ((said, True), ({**said, "content": None}, None), ({"content": ""}, None)):
        body = json.dumps({"choices": [{"message": told, "finish_reason": "stop"}]}).encode()
        with Server(lambda _, body=body: (200, {}, body)) as server:
            judging = [f"judge.base_url={server.base_url}", "judge.model=m", "judge.max_tokens=900", "judge.retries=0"]
            judge = build_judge(settings(*judging, "judge.key_variable=TEACHER_KEY"), LABELS, manifest, workbench.cache)
            if verdict is None:
                with pytest.raises(TeachError, match="unjudged"):
                    judge(question)
            else:
                assert judge(question)[0].sufficient is verdict and server.seen[0]["max_tokens"] == 900
