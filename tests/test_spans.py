"""Time spans: stored with an answer, in SQL, out to Label Studio and CVAT and back; what traces cite against them."""

import io
import json
import math
import zipfile
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from deepintuit.data import Manifest
from deepintuit.data.manifest import rows_to_table, to_frame
from deepintuit.errors import DataError
from deepintuit.labels import LabelSet
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import answers as predictions
from deepintuit_analysis.index import reviewed
from deepintuit_analysis.report.card import run_card, show
from deepintuit_analysis.report.gather import tabulate
from deepintuit_analysis.report.grounding import cited, grounding
from deepintuit_analysis.review import Event, EventLog, Kind, Reviews, ReviewTask, commands, read_events
from deepintuit_analysis.review import spans as marks
from deepintuit_analysis.review.agreement import span_agreement
from deepintuit_analysis.review.import_export import (
    Imported,
    bring_in,
    cvat,
    label_config,
    label_studio,
    load,
    places,
    rows,
)
from deepintuit_app import analysis, errors_view
from deepintuit_app.review_tasks import Room

LABELS = ("dog", '<cat> & "co"', "=fox 🐕")
RATES = (8.0, 30000 / 1001, 25.0, 12.5)
ITEMS = {f"t{n}": f"c{n}" for n in range(4)}
TASK = ReviewTask("when", ITEMS, labels=LABELS, questions=["spans"], leads=["lead"])
OTHER = ReviewTask("also", ITEMS, labels=LABELS, questions=["label", "spans"], leads=["lead"])


CITED = (
    "<think> At 2.5 s it enters. From 3 to 4 s it takes it. </think><answer> dog </answer>",
    "<think> Frame 1 shows it, and at 40 s, and in frame 99. </think><answer> dog </answer>",
    "<think> It barks. </think><answer> fox </answer>",
    "<think> At 1 s. </think><answer> dog </answer>",
)


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    """Four clips of 10 s and other frame rates, with a trace each."""
    return made(tmp_path_factory.mktemp("spans"))


def made(folder) -> Workbench:
    about = {"seconds": 10.0, "width": 320, "height": 180, "text": {}, "notes": {}, "also_at": [], "split": "test"}
    clips = [
        {**about, "clip_id": f"c{n}", "sha256": f"{n}" * 64, "path": f"sources/clip {n}.mp4", "source": f"{n}"}
        | {"label": "dog", "fps": rate, "frames": round(10 * rate)}
        for n, rate in enumerate(RATES)
    ]
    Manifest(folder, "pets", to_frame(rows_to_table(clips), folder), LabelSet.of("pets", ("dog", "fox"))).save()
    bench = Workbench(folder)
    with bench.start_run("evaluate", {}, dataset="pets") as run:
        answers = []
        for (item, clip), text in zip(ITEMS.items(), CITED):
            label = text.split()[-2]
            times = [n + 0.5 for n in range(10)]
            same = {"trace_id": item, "clip_id": clip, "provisional": label, "true_label": "dog"}
            run.append("traces", [{**same, "sample": 0, "text": text, "frame_times": times}])
            answers.append({**same, "split": "test", "system": "cold start", "method": "raw", "control": "none"})
            answers[-1]["predicted"] = label
        quiet = [{**row, "system": "labels only", "trace_id": f"quiet {row['trace_id']}"} for row in answers]
        silent = {"sample": 0, "text": "<answer> dog </answer>", "provisional": "dog", "true_label": "dog"}
        run.append("traces", [{**silent, "trace_id": row["trace_id"], "clip_id": row["clip_id"]} for row in quiet])
        run.append("predictions", answers + quiet)
        run.finish({})
    bench.refresh()
    return bench


@pytest.fixture
def reviews(tmp_path):
    with EventLog(tmp_path / "reviews") as log:
        opened = Reviews(log)
        opened.open(TASK, "lead")
        opened.open(OTHER, "lead")
        yield opened


def span(start: float, end: float, label: str = "dog") -> dict:
    return {"start": start, "end": end, "label": label}


def answer(reviews: Reviews, who: str, *given: dict, task: str = "when", **more) -> str:
    item = reviews.next_item(task, who).trace_id
    reviews.judge(task, who, item, {"spans": list(given), **more})
    return item


def test_an_answer_keeps_its_spans_in_order_and_undo_gives_them_back_as_the_draft(reviews):
    item = answer(reviews, "ann", span(3, 4.5), span(0.1234567, 1, LABELS[1]))
    (row,) = rows(reviews, "when")
    kept = [span(0.123457, 1.0, LABELS[1]), span(3.0, 4.5)]
    assert json.loads(row["spans"]) == kept and marks.words(row["spans"]).endswith('co" 0.12–1.00 s, dog 3.00–4.50 s')
    reviews.undo("when", "ann")
    assert reviews.next_item("when", "ann").draft["spans"] == kept and not rows(reviews, "when")
    reviews.judge("when", "ann", item, {})
    assert rows(reviews, "when")[0]["spans"] is None, "nothing marked is an answer too"


@pytest.mark.parametrize("wrong", [
    [span(2, 1)], [span(1, 1)], [span(-1, 1)], [span(math.nan, 1)], [span(0, math.inf)], [span(0, 1, "wolf")],
    [span(0, 1, None)], [{"start": 0, "end": 1}], [span("0", 1)], [span(False, 1)], "dog", {"start": 0}, [None],
    [span(0, 1)] * (marks.MOST + 1), [span(0, 1e-9)],
])  # fmt: skip
def test_what_is_no_span_is_refused_as_an_answer_and_is_damage_in_a_file(reviews, wrong, tmp_path):
    item = reviews.next_item("when", "ann").trace_id
    with pytest.raises(DataError, match="came as the spans"):
        reviews.draft("when", "ann", item, {"spans": wrong})
    try:
        line = Event(Kind.JUDGED, "when", "ann", "t0", "c0", {"spans": wrong}, time="2026-01-01T00:00:00+00:00").line()
    except DataError:
        return  # NaN, which JSON has not
    known = "wolf" in line.decode()  # a label is the task's matter, not the file's
    assert (Event.read(line) is None) is not known


def test_logs_of_earlier_versions_say_that_no_span_was_asked_or_marked(tmp_path):
    payload = {name: value for name, value in asdict(TASK).items() if name not in ("guidelines", "feedback")}
    old = [
        Event(
            Kind.OPENED, "when", "lead", payload=payload | {"questions": ["label"]}, time="2025-01-01T00:00:00+00:00"
        ),
        Event(Kind.JUDGED, "when", "ann", "t0", "c0", {"label": "dog"}, time="2025-01-01T00:00:01+00:00"),
    ]
    (tmp_path / "events.jsonl").write_bytes(b"".join(event.line() + b"\n" for event in old))
    with EventLog(tmp_path) as log:
        [row] = rows(Reviews(log), "when")
    assert (row["label"], row["spans"]) == ("dog", None) and read_events(tmp_path)[1] == []


def test_a_task_that_asks_for_spans_names_labels_and_has_none_as_gold():
    with pytest.raises(DataError, match="lists none"):
        ReviewTask("when", ITEMS, questions=["spans"])
    with pytest.raises(DataError, match="never equal"):
        ReviewTask("when", ITEMS, labels=LABELS, questions=["spans"], gold={"t0": {"spans": [span(0, 1)]}})


def test_sql_has_a_row_for_each_span_of_closed_tasks(workbench):
    with EventLog(workbench.reviews) as log:
        reviews = Reviews(log)
        reviews.open(TASK, "lead")
        item = answer(reviews, "ann", span(0, 1), span(2, 3, LABELS[2]))
        workbench.refresh()
        query = (
            "SELECT start_seconds, end_seconds, spans.label, clip_id, NOT extra FROM spans JOIN clips USING (clip_id)"
        )
        shown = [[0.0, 1.0, "dog", ITEMS[item], True], [2.0, 3.0, LABELS[2], ITEMS[item], True]]
        assert workbench.query(f"{query} ORDER BY 1").values.tolist() == shown
        assert workbench.ask(query, 10, 10).num_rows == 0, "the page SQL hides what open tasks ask"
        reviews.close("when", "lead")
        workbench.refresh()
        assert workbench.ask(query, 10, 10).num_rows == 2
    assert reviewed.read(workbench.path)["spans"].to_pylist() == [
        marks.dumps([span(0.0, 1.0), span(2.0, 3.0, LABELS[2])])
    ]


# Label Studio and CVAT

frame_pairs = st.tuples(st.integers(0, 60), st.integers(0, 20), st.sampled_from(LABELS))
people = st.sampled_from(["ann", "bo@example.org", "<b>&amp;\"'", "Zoë 🐕", " x "])
answers = st.dictionaries(st.tuples(st.sampled_from([*ITEMS]), people), st.lists(frame_pairs, min_size=1, max_size=4))


def filled(folder, given) -> Reviews:
    """Reviews of the task "when" in which people marked these frames of these items."""
    there = Reviews(EventLog(folder))
    there.open(TASK, "lead")
    table = []
    for (item, who), pairs in given.items():
        fps = RATES[int(item[1])]
        found = [marks.of_frames(first, first + more, label, fps) for first, more, label in pairs]
        table.append({"trace_id": item, "reviewer": who, "kind": "judged", "spans": found})
    content = "".join(json.dumps(row) + "\n" for row in table).encode()
    assert bring_in(there, "when", load(content, "jsonl"), "x").new == len(table)
    return there


@settings(max_examples=6)
@given(answers)
@pytest.mark.parametrize("form", ["label-studio", "cvat"])
def test_spans_come_back_to_the_frame_from_programs_that_count_frames(workbench, tmp_path_factory, form, given):
    there = filled(tmp_path_factory.mktemp("there"), given)
    with there.log:
        content = (label_studio if form == "label-studio" else cvat)(workbench, there, "when")
        found = load(content, form, places(workbench, there, "when"))
        assert bring_in(there, "when", found, "back") == Imported(0, len(given), [])
        other = Reviews(EventLog(tmp_path_factory.mktemp("other")))
        other.open(TASK, "lead")
        assert bring_in(other, "when", found, "back") == Imported(len(given), 0, [])
        said = [
            {(row["trace_id"], row["reviewer"]): row["spans"] for row in rows(one, "when")} for one in (there, other)
        ]
        other.log.close()
    assert said[0] == said[1]


@given(st.floats(0, 100), st.floats(1e-5, 100), st.sampled_from(RATES))
def test_a_span_between_frames_moves_by_half_a_frame_at_most_and_only_once(start, length, fps):
    [given_span] = marks.checked([span(start, start + length)])
    first, last = marks.frames(given_span, fps)
    moved = marks.of_frames(first, last, "dog", fps)
    half = 0.5 / fps + 1e-6
    assert abs(moved["start"] - given_span["start"]) <= half
    assert abs(moved["end"] - given_span["end"]) <= half or (
        last == first and moved["end"] - given_span["end"] <= 3 * half
    )
    assert marks.frames(moved, fps) == (first, last)


def test_label_studio_gets_a_timeline_at_the_clips_own_rate(workbench, reviews):
    item = answer(reviews, "ann", span(0, 0.125), task="also", label="dog")
    task = next(one for one in json.loads(label_studio(workbench, reviews, "also")) if one["data"]["trace_id"] == item)
    region = next(one for one in task["annotations"][0]["result"] if one["type"] == "timelinelabels")
    assert task["data"]["fps"] == RATES[int(item[1])]
    assert region["value"] == {"ranges": [{"start": 1, "end": 1}], "timelinelabels": ["dog"]}
    config = label_config(OTHER)
    assert 'frameRate="$fps"' in config and '<TimelineLabels name="spans" toName="video">' in config


def test_what_label_studio_marks_by_hand_comes_in(reviews):
    """Other ids and types, several ranges and labels in a region, a single frame, a task without regions."""
    ranges = [{"start": 3, "end": 6}, {"start": 9, "end": 9}]
    value = {"ranges": ranges, "timelinelabels": ["dog", "=fox 🐕"]}
    region = {"id": "a1", "from_name": "timeline", "to_name": "video", "type": "timeserieslabels", "value": value}
    data = {"trace_id": "t0", "task": "when", "fps": 8}
    tasks = [
        {"data": data, "annotations": [{"completed_by": 3, "result": [region]}]},
        {"data": data, "annotations": []},
    ]
    [row] = load(json.dumps(tasks).encode(), "label-studio")
    both = [[span(0.25, 0.75, label), span(1.0, 1.125, label)] for label in ("=fox 🐕", "dog")]
    assert json.loads(row["spans"]) == [one for pair in zip(*both) for one in pair]
    for broken in ({"fps": 0}, {"fps": None}, {"fps": "8"}, {"fps": True}):
        changed = [{"data": {**data, **broken}, "annotations": tasks[0]["annotations"]}]
        with pytest.raises(DataError, match="frame rate"):
            load(json.dumps(changed).encode(), "label-studio")


def track(*shapes: tuple[int, int], label: str = "dog", more: str = "", task: str = "") -> str:
    boxes = "".join(
        f'<box frame="{frame}" outside="{outside}" keyframe="0" xtl="1" ytl="2" xbr="3" ybr="4">{more}</box>'
        for frame, outside in shapes
    )
    return f'<track id="0" label="{label}" source="manual"{task}>{boxes}</track>'


def exported(*tracks: str, meta: str = "<task><name>t0</name><size>80</size></task>") -> bytes:
    text = f"<annotations><meta>{meta}</meta>{''.join(tracks)}</annotations>"
    return f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()


PLACES = {"t0": ("t0", 8.0), "t1": ("t1", 8.0), "clip 0.mp4": ("t0", 8.0)}


@pytest.mark.parametrize("content, found", [
    (exported(track((0, 0), (1, 0), (4, 1))), {("t0", "CVAT"): [span(0.0, 0.5)]}),
    # Left and entered again, frames out of order, a track that nothing ends.
    (exported(track((8, 1), (0, 0), (16, 0), (24, 1))), {("t0", "CVAT"): [span(0.0, 1.0), span(2.0, 3.0)]}),
    (exported(track((72, 0))), {("t0", "CVAT"): [span(9.0, 10.0)]}),
    (exported(track((0, 0), (8, 1), label="&lt;cat>")), {("t0", "CVAT"): [span(0.0, 1.0, "<cat>")]}),
    (exported(track((0, 0), (8, 1), more='<attribute name="reviewer">ann</attribute>')),
              {("t0", "ann"): [span(0.0, 1.0)]}),
    (exported(track((0, 0), (8, 1)), meta="<job><id>3</id><assignee><username>bo</username></assignee></job>"
              "<source>clip 0.mp4</source>"), {("t0", "bo"): [span(0.0, 1.0)]}),
    (exported(track((0, 0), (8, 1), task=' task_id="7"'), track((0, 0), (8, 1), task=' task_id="6"'),
              meta="<project><tasks><task><id>6</id><name>t0</name></task><task><id>7</id><name>t1</name></task></tasks>"
              "</project>"), {("t0", "CVAT"): [span(0.0, 1.0)], ("t1", "CVAT"): [span(0.0, 1.0)]}),
    (exported(), {}), (exported(track()), {}), (exported(track((3, 1))), {}),
])  # fmt: skip
def test_what_cvat_exports_comes_in(content, found):
    assert marks.from_cvat(content, PLACES) == found
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("annotations.xml", content)
        file.writestr("images/frame_000000.png", b"no picture")
    assert marks.from_cvat(packed.getvalue(), PLACES) == found


def bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("a.xml", "w", force_zip64=True) as part:
            for _ in range(marks.MOST_BYTES // (1 << 24) + 1):
                part.write(bytes(1 << 24))
    return packed.getvalue()


@pytest.mark.parametrize("content, sentence", [
    (exported(track((0, 0), (8, 1)), meta="<task><name>week</name></task>"), "called 'week'"),
    (exported(track((-3, 0), (8, 1))), "a span from frame -3"), (exported(track((0, 0), (8, 1)))[:-9], "no XML"),
    (exported(track(("x", 0))), "invalid literal"), (b"PK\3\4 torn", "no whole zip"), (b"<svg/>", "CVAT for video"),
    (b"<annotations><image/></annotations>", "CVAT for video"), (bomb, "MiB"),
    (b'<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "document type"),
    ('<?xml version="1.0"?><!DOCTYPE a><annotations/>'.encode("utf-16"), "document type"),
    (b"<annotations><track><box frame='0'/></track></annotations>", "'label'"),
])  # fmt: skip
def test_a_file_of_cvat_that_cannot_be_read_is_a_sentence(content, sentence):
    with pytest.raises(DataError) as error:
        load(content() if callable(content) else content, "cvat", PLACES)
    assert sentence in str(error.value)


def test_cvat_holds_spans_alone_and_so_answers_no_task_that_asks_more(workbench, reviews):
    item = answer(reviews, "ann", span(0.0, 1.0), task="also", label="dog")
    found = load(cvat(workbench, reviews, "also"), "cvat", places(workbench, reviews, "also"))
    assert bring_in(reviews, "also", found, "back") == Imported(0, 1, [])
    assert bring_in(reviews, "also", [{**found[0], "spans": None}], "back") == Imported(0, 0, [(item, "ann")])
    with pytest.raises(DataError, match="asks for the label too"):
        bring_in(reviews, "also", [{**found[0], "reviewer": "bo"}], "back")
    assert len(rows(reviews, "also")) == 1


def test_what_these_programs_cannot_hold_is_refused_before_anything_is_written(workbench, reviews):
    answer(reviews, "a\x00b", span(0.0, 1.0))
    with pytest.raises(DataError, match="control character"):
        cvat(workbench, reviews, "when")
    reviews.open(ReviewTask("lost", {"gone": "no clip"}, labels=LABELS, questions=["spans"]), "lead")
    answer(reviews, "ann", span(0.0, 1.0), task="lost")
    for form in (cvat, label_studio):
        with pytest.raises(DataError, match="no known frame rate"):
            form(workbench, reviews, "lost")


# What traces cite


@pytest.mark.parametrize("text, moments, stretches", [
    ("At 2.5 s, again at 2.5 s.", [2.5], [(2, 3), (2, 3)]), ("From 3 to 4 s.", [3, 4], [(3, 4)]),
    ("3-4 seconds", [3, 4], [(3, 4)]), ("0:03 – 0:05", [3, 5], [(3, 5)]), ("at 1 s until 2 s", [1, 2], [(1, 2)]),
    ("frames 2 to 4", [1.5, 3.5], [(1, 4)]), ("at 3 and 8 s", [3, 8], [(3, 4), (8, 9)]),
    ("4 to 3 s", [4, 3], [(4, 5), (3, 4)]),
    ("frame 1, at 40 s, frame 99", [0.5, 40, None], [(0, 1), (40, 40)]), ("It barks.", [], []), ("", [], []),
])  # fmt: skip
def test_ranges_stand_for_themselves_and_moments_for_what_is_nearest_to_their_frame(text, moments, stretches):
    assert cited(text, [n + 0.5 for n in range(10)], 10) == (moments, stretches)
    assert all(start == end or (start, end) in [(3, 4), (1, 2), (3, 5)] for start, end in cited(text, None, 10)[1])


def test_more_than_half_of_the_reviewers_make_a_span():
    people = [[span(0, 4), span(3, 6, "=fox 🐕")], [span(2, 8)], [span(5, 7)]]
    assert marks.shared(people) == [(2, 7)] and marks.shared(people[:2]) == [(2, 6)] and marks.shared([]) == []
    assert marks.shared([people[0], []]) == [], "of two, both"


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)))
)
def test_overlap_and_length_are_those_of_the_seconds_covered(some, others):
    ours, theirs = ({n for start, end in part for n in range(start, end)} for part in (some, others))
    assert marks.length(some) == len(ours) and marks.overlap(some, others) == len(ours & theirs)


def test_a_run_card_says_how_often_traces_cite_what_reviewers_marked(tmp_path):
    bench = made(tmp_path)
    [run] = bench.runs("evaluate")
    assert "No reviewer has marked a span" in run_card(bench, run.id).read_text()
    with EventLog(bench.reviews) as log:
        reviews = Reviews(log)
        reviews.open(TASK, "lead")
        said = {"t0": [span(2, 4), span(8, 9, LABELS[2])], "t1": [span(0, 1)], "t2": [span(0, 20, LABELS[2])], "t3": []}
        for _ in ITEMS:
            item = reviews.next_item("when", "ann").trace_id
            reviews.judge("when", "ann", item, {"spans": said[item]})
        reviews.adjudicate("when", "lead", "t2", {"spans": [span(0, 5, LABELS[2])]})
    [quiet, row] = grounding(bench, tabulate(bench, [run.id]).rows)
    shares = {"hits": (1 + 1 / 3) / 3, "iou": 2 / 3, "cites": 2 / 3, "chance": (0.2 + 0.1 + 0.5) / 3, "accuracy": 2 / 3}
    assert (row.system, row.n) == ("cold start", 3), "a clip in which nothing was marked tells nothing"
    for name, share in shares.items():
        estimate = getattr(row, name)
        assert estimate.value == pytest.approx(share) and estimate.low <= share <= estimate.high
    assert (quiet.system, quiet.hits, quiet.iou, quiet.n) == ("labels only", None, None, 3)
    card = run_card(bench, run.id).read_text()
    assert "Grounding by system" in card and "44.4" in card and "0.67" in card
    words = io.StringIO()
    show(bench, [run.id], console=Console(file=words, width=200))
    assert "Cold start: 44.4 % of the moments that a trace cites lie in reviewers' spans" in words.getvalue()
    assert "Labels only cites no moment in 3 clips" in words.getvalue()
    choice, _ = analysis.choose(predictions.sources(bench), analysis.Choice())
    found = analysis.analysis(bench, choice)
    assert analysis.grounded(bench, found) == [], "spans of a task that is open tell its reviewers nothing"
    assert "Nobody marked" in (page := errors_view.moments(found, [])) and "split=test --ask spans" in page
    with EventLog(bench.reviews) as log:
        Reviews(log).close("when", "lead")
        assert {row.system: row.hits for row in analysis.grounded(bench, found)} == {
            "labels only": None, "cold start": row.hits
        }  # fmt: skip
        page = errors_view.moments(found, analysis.grounded(bench, found))
        assert "44.4" in page and "0.67" in page and "cold start" in page and "<td>3</td>" in page
        Reviews(log).open(OTHER, "lead")
        assert analysis.grounded(bench, found) == []


# How far people agree on them


def test_people_agree_on_spans_as_far_as_these_share_time_and_label():
    said = {
        "a": [[span(0, 4)], [span(1, 4)]], "b": [[span(0, 1)], [span(0, 1, LABELS[2])]], "c": [[], None],
        "d": [[span(0, 1)]],
    }  # fmt: skip
    found = span_agreement([(item, n, spans) for item, each in said.items() for n, spans in enumerate(each)])
    assert (found.items, found.pairs) == (3, 3), "where neither marked, nothing is counted but the pair"
    assert (found.f1.value, found.iou.value) == (0.5, 0.375) and found.f1.low == 0 and found.iou.high == 0.75
    once = span_agreement([("a", 1, [span(0, 2), span(0, 2.5)]), ("a", 2, [span(0, 2)]), ("a", 3, [span(5, 6)])])
    assert once.pairs == 3 and once.f1.value == 2 / 8, "a span stands for one other"
    nobody = span_agreement([("a", 1, None), ("a", 2, [])])
    assert math.isnan(nobody.f1.value) and math.isnan(nobody.iou.value)
    assert span_agreement([("a", 1, [span(0, 1)]), ("b", 2, [span(0, 1)])]) is None


def test_a_report_and_the_leads_page_say_how_far_people_agree_on_spans(tmp_path):
    bench = made(tmp_path)
    with EventLog(bench.reviews) as log:
        reviews = Reviews(log)
        task = ReviewTask("two", ITEMS, labels=LABELS, questions=["spans"], leads=["lead"], reviewers=2)
        reviews.open(task, "lead")
        context = SimpleNamespace(look=lambda: bench)
        room = SimpleNamespace(context=context, reviews=reviews, lead=lambda name, _: reviews.task(name))

        def told() -> tuple[str, str]:
            words = io.StringIO()
            commands.report(bench, Console(file=words, width=200), None, ["two"], "test")
            return words.getvalue(), " ".join(Room.lead_html(room, "two", "lead").split())

        item = answer(reviews, "ann", span(0, 4), task="two")
        report, page = told()
        assert "between people" not in report and "No item has the spans of two people yet" in page
        assert answer(reviews, "bo", span(1, 4), task="two") == item
        report, page = told()
    assert "1 pairs on 1 traces: F1 at IoU 0.5 1.00, IoU 0.75" in report
    assert "1 pair on 1 item (bootstrap over items): F1 of spans at IoU 0.5 1.00" in page and "0.75" in page
