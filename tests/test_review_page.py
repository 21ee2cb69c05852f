"""The Review page's routes: who asks is who logged in, items go to whom they were handed, nothing said is lost."""

import html
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from porch import write_clip

from deepintuit import video
from deepintuit.cli import main
from deepintuit.labels import LabelSet
from deepintuit.trace import Trace, parse
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import browse
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.review import EventLog, Kind, Reviews, read_events
from deepintuit_app import review
from deepintuit_app.app import create
from deepintuit_app.context import AppContext
from deepintuit_app.login import Login, hashed
from deepintuit_app.outside import LARGEST, LOOPBACK, Outside
from deepintuit_clips import import_csv, scan

HOSTILE = "<img src=x onerror=alert(1)> ${1} {{7}} <script>alert(2)</script>"
GOOD = {"label": "theft", "verdict": "right"}
TRACES = 540
PEOPLE = [f"r{n}" for n in range(20)]
WORDS = hashed("correct horse")
KILLS = int(os.environ.get("DEEPINTUIT_KILLS", 5))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Workbench:
    """One clip whose file name tells its label, and many traces about it: half of them wrong."""
    folder = tmp_path_factory.mktemp("review") / "workbench"
    videos = folder / "sources" / "porch"
    videos.mkdir(parents=True)
    write_clip(videos / "a-theft-at-night.mp4")
    (videos / "clips.csv").write_text("path,label,group,split\na-theft-at-night.mp4,theft,a,test\n")
    listing = import_csv(videos / "clips.csv", videos, labels=LabelSet.of("porch", ["theft", "routine"]))
    manifest, _ = scan(listing, folder, "porch", probe=video.probe, progress=False)
    manifest.save()
    workbench = Workbench(folder)
    clip = manifest.frame["clip_id"].iloc[0]
    with workbench.start_run("evaluate", {}, dataset="porch") as run:
        run.append(
            "traces",
            [
                {
                    "clip_id": clip,
                    "sample": n,
                    "provisional": label,
                    "true_label": "theft",
                    "tokens": n,
                    "text": f"<think> A box. {n} is a Routine visit, no theft. </think><answer> {label} </answer>",
                }
                for n, label in ((n, ("theft", "routine")[n % 2]) for n in range(TRACES))
            ],
        )
        judged = run.read("traces", ["trace_id", "tokens"]).query("tokens < 10")
        run.append(
            "scores",
            [
                {"trace_id": row.trace_id, "name": "sufficient", "value": float(row.tokens % 2), "evidence": "yes"}
                for row in judged.itertuples()
            ],
        )
        run.finish({})
    workbench.refresh()
    return workbench


@pytest.fixture
def bench(shelf, tmp_path) -> Workbench:
    """The same without reviews, to write into."""
    for name in ("clips", "runs", "sources", "index.duckdb"):
        (tmp_path / name).symlink_to(shelf.path / name)
    return Workbench(tmp_path)


def served(bench: Workbench, *names: str) -> FastAPI:
    """The routes behind the login, without the pages, which take seconds to build."""
    server = FastAPI()
    server.include_router(review.routes(AppContext(bench.path)))
    server.add_middleware(Login, users=dict.fromkeys(names, WORDS) or None)
    server.add_middleware(Outside, hosts=LOOPBACK, proxies=(), root="", inbox=bench.path)
    return server


class Person:
    """Somebody at the page, logged in where there is a login."""

    def __init__(self, app, name: str | None = None):
        self.client = TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)
        if name is not None:
            form = urlencode({"username": name, "password": "correct horse"})
            asked = {"content-type": "application/x-www-form-urlencoded"}
            assert self.client.post("/login", content=form, headers=asked).status_code == 303

    def send(self, what: str, **given):
        return self.client.post(f"/review-api/{what}", json=given)

    def ask(self, what: str, **given) -> dict:
        answer = self.send(what, **given)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, what: str, **given) -> str:
        answer = self.send(what, **given)
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]


FORM = {"name": "week", "query": "max_tokens=9", "questions": ["label", "verdict", "failing", "note"]}


@pytest.fixture
def crew(bench):
    """Three people of whom `ada` has opened the task "week"."""
    app = served(bench, "ada", "bob", "cyd")
    people = {name: Person(app, name) for name in ("ada", "bob", "cyd")}
    assert people["ada"].ask("open", **FORM, reviewers="2", order="given") == {"task": "week"}
    return people


def events(bench: Workbench, kind: Kind | None = None):
    return [event for event in read_events(bench.reviews)[0] if kind in (None, event.kind)]


def test_who_is_through_sees_what_was_done_and_what_is_next(crew):
    for number in range(10):
        item = crew["bob"].ask("next", task="week", seat="b")["item"]
        label, note = ("theft", "dark <b>") if number < 3 else ("routine", "")
        crew["bob"].ask("judge", task="week", item=item, answers={"label": label, "verdict": "right", "note": note})
    crew["ada"].ask("open", **{**FORM, "name": "second & last"}, reviewers="1", order="given")
    end = crew["bob"].ask("next", task="week", seat="b")
    assert end["item"] is None
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", end["html"])).split())
    assert "You judged 10 items, 3 with a note." in text and "routine 7 · theft 3" in text and "right 10" in text
    assert "judgements of others are still asked for" in text and "Lead’s view" not in text
    assert "second & last : 0 of 10 judgements" in text
    for _ in range(10):
        item = crew["ada"].ask("next", task="week", seat="a")["item"]
        crew["ada"].ask("judge", task="week", item=item, answers={"label": "theft", "verdict": "right"})
    led = crew["ada"].ask("next", task="week", seat="a")["html"]
    assert "Decide 7 disputed items" in led and "Lead’s view" in led and "come free" not in led
    crew["ada"].ask("close", task="week", closed=True)
    assert crew["bob"].ask("next", task="week", seat="b")["html"] == ""


def test_progress_counts_gold_items_like_all_others(bench):
    app = served(bench, "ada", "bob")
    ada, bob = Person(app, "ada"), Person(app, "bob")
    ada.ask("open", **FORM, reviewers="2", order="given", gold="4", gold_share="60")
    gold = events(bench, Kind.OPENED)[0].payload["gold"]
    assert bob.ask("next", task="week", seat="b")["progress"] == {"mine": 0, "done": 0, "asked": 16}
    kinds = []
    for n in range(1, 8):
        item = bob.ask("next", task="week", seat="b")["item"]
        kinds.append(item in gold)
        progress = bob.ask("judge", task="week", item=item, answers=GOOD)["progress"]
        assert progress == {"mine": n, "done": n, "asked": 16}, "every answer counts one, of gold or not"
        assert bob.ask("judge", task="week", item=item, answers=GOOD)["progress"] == progress
    assert {*kinds} == {True, False}
    theirs, leads = (person.ask("tasks")["html"] for person in (bob, ada))
    assert "7 of 16 judgements" in theirs and "items complete" not in theirs
    assert f"{kinds.count(False)} of 12 judgements" in leads and "items complete" in leads


def test_a_task_may_tell_what_is_right_on_gold_items_and_then_the_answer_stays(bench):
    trace = browse.page(bench, TraceFilter(), "tokens", limit=1).rows["trace_id"].iloc[0]
    someone, line = Person(served(bench)), f"{trace}, theft, wrong, 2, seeing"
    assert "gold items and has none" in someone.refused("open", **FORM, feedback="1")
    someone.ask("open", **FORM, gold_list=line, gold_share="90", feedback="1")
    told, wrong = {}, {"label": "routine", "verdict": "wrong", "failing": {"sentence": 0, "in": "seeing"}}
    while trace not in told:
        item = someone.ask("next", task="week", seat="b")["item"]
        given = {"task": "week", "item": item, "answers": wrong, "id": f"{item} once"}
        told[item] = someone.ask("judge", **given)["gold"]
    assert someone.ask("judge", **given)["gold"] == told[trace], "sent again after a broken line"
    text = " ".join(re.sub(r"<[^>]*>", " ", told.pop(trace)).split())
    assert "That item was known, and your answer is another" in text and "label theft routine ✗ other" in text
    assert "failing sentence 2, seeing sentence 1, seeing ✗ other" in text and "verdict wrong wrong ✓ right" in text
    assert {*told.values()} <= {""}, "nothing is told of other items"
    for what, given in (
        ("judge", {"item": trace, "answers": GOOD}),
        ("skip", {"item": trace, "reason": "x"}),
        ("undo", {}),
    ):
        assert "your answer stays" in someone.refused(what, task="week", seat="b", **given)


def test_guidelines_stand_on_the_desk_as_text(bench):
    someone = Person(served(bench))
    someone.ask("open", **FORM, guidelines=f"Look at hands.\n{HOSTILE}")
    desk = someone.ask("start", task="week")["html"]
    assert "Look at hands." in desk and "<img src=x" not in desk and "Guidelines" in desk
    someone.ask("open", **{**FORM, "name": "plain"})
    assert "Guidelines" not in someone.ask("start", task="plain")["html"]
    assert {"guidelines", "feedback"}.isdisjoint(events(bench, Kind.OPENED)[1].payload), "earlier versions read it"
    assert "guidelines of over" in someone.refused("open", **{**FORM, "name": "long"}, guidelines="x" * 20_001)


def test_a_task_is_opened_by_command(bench, tmp_path, capsys):
    (tmp_path / "rules.txt").write_text("Look at hands.", encoding="utf-8")
    words = ["review", "open", "when", "--workbench", str(bench.path), "--filter", "max_tokens=9", "--ask", "spans"]
    more = ["--guidelines", str(tmp_path / "rules.txt"), "--by", "ada"]
    assert main([*words, *more, "--dry-run"]) == 0 and not events(bench)
    assert main([*words, *more]) == 0
    assert "holds 10 traces, 0 of them gold; it asks spans" in " ".join(capsys.readouterr().out.split())
    [opened] = events(bench, Kind.OPENED)
    assert (opened.reviewer, opened.payload["labels"]) == ("ada", ["theft", "routine"])
    assert opened.payload["guidelines"] == "Look at hands." and opened.payload["questions"] == ["spans"]
    words[2] = "other"
    assert main([*words, "--set", "clips.dataset=nowhere"]) == 2, "of that dataset alone"
    assert "no trace" in capsys.readouterr().err
    for unknown in ("colour-of=red", "tset=1&max_tokens=9", "right=maybe&max_tokens=9", "min_tokens=few", "red"):
        assert main(["review", "open", "other", "--workbench", str(bench.path), "--filter", unknown]) == 2, unknown
        assert "is no filter of the page Traces" in capsys.readouterr().err
    for wrong in (["--guidelines", "gone.txt"], ["--order", "best"], ["--ask", "mood"], ["--feedback"]):
        assert main(["review", "open", "other", "--workbench", str(bench.path), *wrong]) == 2


def test_a_task_is_opened_from_a_form_and_says_how_many_traces_it_finds(bench):
    someone = Person(served(bench))
    assert "No review task is open yet" in someone.ask("tasks")["html"]
    run = browse.choices(bench)["run"][0][0]
    assert someone.ask("count", query="http://host/traces?right=wrong&sort=tokens&page=2") == {"count": TRACES // 2}
    assert someone.ask("count", run=run, query="max_tokens=9") == {"count": 10}
    bench.save_slice("first ones", TraceFilter(max_tokens=9), by="ada")
    assert '<option value="first ones">' in someone.ask("tasks")["html"]
    assert '<option value="first ones" selected>' in someone.ask("tasks", slice="first ones")["html"]
    assert "&lt;gone&gt;" in someone.ask("tasks", slice="<gone>")["html"]
    assert "no slice" in someone.refused("count", slice="<gone>", source="teach", dataset="porch")
    shares = {"order": "mixture", "share-random": "2", "share-traces": "1"}
    someone.ask(
        "open",
        **FORM | {"slice": "first ones", "query": "right=wrong"},
        gold="2",
        gold_share="30",
        blind="1",
        leads="bob, cyd",
        **shares,
    )
    opened = events(bench, Kind.OPENED)[0].payload
    assert len(opened["items"]) == 5 and opened["blind"] and opened["order"] == {"traces": 1, "random": 2}
    assert list(opened["gold"].values()) == [{"label": "theft"}] * 2 and opened["gold_share"] == 0.3
    assert opened["labels"] == ["theft", "routine"] and opened["leads"] == ["local", "bob", "cyd"]
    listed = someone.ask("tasks")["html"]
    assert "0 of 3 judgements" in listed and "blind" in listed


def test_a_form_gives_gold_items_with_all_that_is_known_of_them(bench):
    """Ids and addresses of traces; what is left empty is not known, but a label is the clip's true one."""
    first, second, third = browse.page(bench, TraceFilter(), "tokens", limit=3).rows["trace_id"]
    address = f"http://host/traces?run=x&trace={second}"
    lines = f"{first}, routine, wrong, 2, seeing\n\n {address} ,, wrong reasons,,reasoning\n{third}"
    someone = Person(served(bench))
    someone.ask("open", **FORM, gold_list=lines, gold="1", gold_share="50")
    gold = events(bench, Kind.OPENED)[0].payload["gold"]
    assert gold[first] == {"label": "routine", "verdict": "wrong", "failing": {"sentence": 1, "in": "seeing"}}
    assert gold[second] == {"label": "theft", "verdict": "wrong reasons", "failing": {"in": "reasoning"}}
    assert gold[third] == {"label": "theft"} and 3 <= len(gold) <= 4
    item = ""
    while item not in (first, second):
        item = someone.ask("next", task="week", seat=item)["item"]
    someone.ask("judge", task="week", item=item, answers={"label": gold[item]["label"], "verdict": "right"})
    shown = someone.ask("lead", task="week")["html"]
    assert "0 % of 1" in shown and "label 100 % · verdict 0 % · place 0 %" in shown


@pytest.mark.parametrize(("line", "said"), [
    ("nowhere", "Line 1 of the gold items, 'nowhere': it names no trace"), ("{}, bird", "'bird' came as the label"),
    ("{}, , fine", "came as the verdict"), ("{}, , , first", "a number from 1 on"), ("{}, , , 0", "a number from 1 on"),
    ("{}, , , 1, hearing", "came as the failing"), ("{}, a, b, c, d, e", "Line 1 of the gold items"),
])  # fmt: skip
def test_a_gold_item_that_says_nothing_sensible_gets_a_sentence(bench, line, said):
    trace = browse.page(bench, TraceFilter(), limit=1).rows["trace_id"][0]
    assert said in Person(served(bench)).refused("open", **FORM, gold_list=line.format(trace))
    assert events(bench) == []


def test_an_answer_that_comes_too_late_is_kept_and_its_reviewer_told(bench):
    """The item had all its answers by then; what everybody else said is not told."""
    app = served(bench, "ada", "bob", "cyd")
    ada, bob, cyd = (Person(app, name) for name in ("ada", "bob", "cyd"))
    ada.ask("open", **FORM | {"query": "max_tokens=0"}, order="given")
    with EventLog(bench.reviews, clock=lambda: time.time() - 700) as log:
        item = Reviews(log).next_item("week", "bob", seat="t").trace_id
    assert cyd.ask("next", task="week", seat="t")["item"] == item, "bob's reservation ran out"
    assert cyd.ask("judge", task="week", item=item, answers=GOOD)["told"] == ""
    answer = bob.ask("judge", task="week", item=item, answers=GOOD | {"label": "routine"})
    assert answer["saved"] and "kept as an extra" in answer["told"] and "cyd" not in answer["told"]
    assert {event.reviewer for event in events(bench, Kind.JUDGED)} == {"bob", "cyd"}
    shown = ada.ask("lead", task="week")["html"]
    assert "Extra answers, to items that had all they need: 1," in shown and ">extra</span>" in shown
    assert "Decide 1 disputed" in shown


@pytest.mark.parametrize(("changed", "said"), [
    ({"name": " "}, "without a name"), ({"query": "nonsense"}, "it is no filter of the page Traces"),
    ({"query": "text=zzz"}, "holds no trace"),
    ({"questions": []}, "without questions"), ({"order": "mixture"}, "without shares"),
    ({"reviewers": "many"}, "a number"), ({"reviewers": "0"}, "wants 0 reviewers"),
    ({"slice": "none"}, "no slice"), ({"order": "best"}, "order"),
])  # fmt: skip
def test_a_form_that_is_no_task_gets_a_sentence(bench, changed, said):
    assert said in Person(served(bench)).refused("open", **FORM | changed)
    assert events(bench) == []


def test_a_judgement_is_of_whoever_logged_in_and_on_disk_when_it_is_said(bench, crew):
    item = crew["bob"].ask("next", task="week", seat="t", who="ada", reviewer="ada")
    assert crew["bob"].ask("judge", task="week", item=item["item"], answers=GOOD, id="one", reviewer="ada")["saved"]
    (judged,) = events(bench, Kind.JUDGED)
    assert (judged.reviewer, judged.item, judged.id, judged.payload) == ("bob", item["item"], "one", GOOD)
    crew["bob"].ask("judge", task="week", item=item["item"], answers=GOOD, id="one")
    assert len(events(bench, Kind.JUDGED)) == 1, "sent again, it counts once"
    assert "is missing" in crew["bob"].refused("judge", task="week", item=item["item"], answers={"label": "theft"})


def test_nobody_sees_or_answers_an_item_that_was_not_handed_to_them(bench, crew):
    item = crew["bob"].ask("next", task="week", seat="t")["item"]
    before = len(events(bench))
    for what in ("again", "judge", "draft", "skip", "release"):
        said = crew["cyd"].refused(what, task="week", item=item, answers=GOOD, reason="why not", seat="t")
        assert "was not handed to 'cyd'" in said
    for what in ("lead", "decide", "close", "next"):
        given = {"decide": True} if what == "next" else {"answers": GOOD, "item": item, "closed": True}
        assert "Ask one of them" in crew["cyd"].refused(what, task="week", **given)
    assert len(events(bench)) == before
    assert "no review task" in crew["cyd"].refused("next", task="../week", seat="t")


def test_other_sites_pages_and_strangers_can_send_nothing(bench, crew):
    whole = Person(create(bench.path, {"ada": WORDS}), "ada")
    ask = whole.client.post
    foreign = {"origin": "http://evil.example", "content-type": "application/json"}
    assert ask("/review-api/close", content='{"task":"week","closed":true}', headers=foreign).status_code == 403
    plain = {"content-type": "text/plain"}
    assert ask("/review-api/close", content='{"task":"week","closed":true}', headers=plain).status_code == 422
    stranger = TestClient(whole.client.app, base_url="http://127.0.0.1:7860", follow_redirects=False)
    assert stranger.post("/review-api/next", json={"task": "week"}).status_code == 401
    assert events(bench, Kind.CLOSED) == events(bench, Kind.RESERVED) == []


def test_what_a_reviewer_sees_tells_no_true_label_and_in_a_blind_task_no_model_label(bench, crew):
    shown = crew["bob"].ask("next", task="week", seat="t")
    assert "theft" in shown["html"] and "theft-at-night" not in json.dumps(shown)
    crew["ada"].ask("open", **FORM | {"name": "blind"}, blind="1")
    shown = json.dumps(crew["bob"].ask("next", task="blind", seat="t"))
    assert "theft" not in shown.lower() and "routine" not in shown.lower() and "hidden" in shown
    assert shown.count('sentence\\"') == 3, "two of thinking, one of the answer: numbered as in the open text"


def test_the_desk_says_how_a_trace_is_corrected_in_a_form_that_is_read(crew):
    shown = crew["bob"].ask("start", task="week")["html"]
    assert "edit it into what it should be" in shown
    example = html.unescape(re.search("<code>(.*?)</code>", shown[shown.index('id="review-correct"') :])[1])
    labels = LabelSet.of("porch", ["theft", "routine"])
    assert isinstance(parse(example.replace(" label ", " theft "), "think-answer", labels), Trace)


def test_a_reload_gets_back_what_was_on_screen_and_another_tab_can_take_all(crew):
    bob = crew["bob"]
    first = bob.ask("next", task="week", seat="a")["item"]
    second = bob.ask("next", task="week", seat="a", holding=[first])["item"]
    bob.ask("draft", task="week", item=first, answers={"note": "half"})
    again = bob.ask("next", task="week", seat="a", first=first)
    assert again["item"] == first != second and again["draft"] == {"note": "half"}
    assert bob.ask("next", task="week", seat="b", first=first)["item"] not in (first, second), "of its own tab only"
    taken = [first, second]
    while (more := bob.ask("next", task="week", seat="a", holding=taken))["item"]:
        taken.append(more["item"])
    assert more["elsewhere"] == 1 and len(taken) == 9
    assert bob.ask("gather", task="week", seat="a") == {"taken": 1}
    assert bob.ask("next", task="week", seat="a", holding=taken)["item"]


def test_undo_gives_the_item_back_with_what_was_said(crew):
    item = crew["bob"].ask("next", task="week", seat="t")["item"]
    crew["bob"].ask("judge", task="week", item=item, answers=GOOD)
    back = crew["bob"].ask("undo", task="week", seat="t")
    assert (back["item"], back["draft"]) == (item, GOOD)
    assert crew["bob"].ask("undo", task="week", seat="t") == {"item": None}


def test_a_lead_sees_agreement_decides_what_is_disputed_and_closes(bench, crew):
    for name, label in (("bob", "theft"), ("cyd", "routine")):
        for turn in range(2):
            item = crew[name].ask("next", task="week", seat="t")["item"]
            said = {"label": label if turn else "theft", "verdict": "right", "note": HOSTILE}
            crew[name].ask("judge", task="week", item=item, answers=said)
    shown = crew["ada"].ask("lead", task="week")["html"]
    assert "Krippendorff" in shown and "Decide 1 disputed" in shown and "50 " in shown
    assert "Quality by what others say" in shown and "0 of 2 items have another label where each reviewer" in shown
    assert "<img" not in shown and "<script" not in shown and "&lt;img src=x" in shown and "${" not in shown
    assert "<table" in shown and "onerror=alert" in shown, "the note is there, as text"
    export = "/review-api/export?task=week&form="
    assert crew["ada"].client.get(export + "jsonl").text.count(json.dumps(HOSTILE)) == 4
    assert crew["bob"].client.get(export + "csv").status_code == 400
    studio = crew["ada"].client.get(export + "label-studio").json()
    assert sum(len(one["annotations"]) for one in studio) == 4
    assert crew["ada"].client.get(export + "interface").text.startswith("<View>")
    assert crew["ada"].client.get(export + "../../events").status_code == 400
    disputed = crew["ada"].ask("next", task="week", decide=True)
    assert disputed["item"] == item and "cyd" in disputed["html"] and disputed["progress"] == {"left": 1}
    crew["ada"].ask("decide", task="week", item=item, answers=GOOD)
    assert crew["ada"].ask("next", task="week", decide=True)["item"] is None
    back = crew["ada"].ask("undo", task="week", seat="t")
    assert back["decides"] and back["item"] == item and back["draft"] == GOOD
    crew["ada"].ask("decide", task="week", item=item, answers=GOOD)
    held = crew["bob"].ask("next", task="week", seat="t")["item"]
    crew["ada"].ask("close", task="week", closed=True)
    assert crew["cyd"].ask("next", task="week", seat="t")["closed"], "nothing is handed out"
    assert "is closed" in crew["bob"].refused("judge", task="week", item=held, answers=GOOD)
    assert "closed" in crew["ada"].ask("tasks")["html"]
    crew["ada"].ask("close", task="week", closed=False)
    assert crew["cyd"].ask("next", task="week", seat="t")["item"]


def test_a_lead_sees_whether_people_and_the_judge_find_the_same_process_at_fault(crew):
    """Traces 0 and 2 are right without having seen enough; 1 has seen enough and is wrong."""
    for name in ("bob", "cyd"):
        for place in ("seeing", "reasoning", "reasoning", None):
            item = crew[name].ask("next", task="week", seat="t")["item"]
            failing = {"failing": {"sentence": 0, "in": place}} if place else {}
            crew[name].ask("judge", task="week", item=item, answers=GOOD | failing)
    shown = crew["ada"].ask("lead", task="week")["html"]
    assert "Seeing or reasoning: people against the judge" in shown
    rows = re.findall(r"people: (\w+).*?(\d+).*?(\d+)", re.sub(r"<[^>]+>", " ", shown))
    assert rows == [("seeing", "1", "0"), ("reasoning", "1", "1")]
    assert "Agreement 67 " in shown and "Cohen’s κ 0.40" in shown and "n = 3 traces" in shown
    assert "0 more fail for people only, 1 for the judge only" in shown


def test_a_lead_brings_in_answers_from_elsewhere_and_nobody_else_does(bench, crew):
    item = crew["bob"].ask("next", task="week", seat="t")["item"]
    row = {"trace_id": item, "reviewer": "eve", "kind": "judged", "label": "theft", "verdict": "wrong", "note": HOSTILE}

    def send(who: str, file: str = "team <b>.jsonl", content: bytes = json.dumps(row).encode()):
        return crew[who].client.post(f"/review-api/import?{urlencode({'task': 'week', 'file': file})}", content=content)

    assert "leads of a task see that" in send("bob").json()["error"]
    for file, content in (("x.docx", b""), ("x.csv", b"a\n1\n"), ("x.json", b"[" * 99_999), ("x.jsonl", b"\xff")):
        answer = send("ada", file, content)
        assert answer.status_code == 400 and answer.json()["error"].endswith(".")
    assert send("ada", content=b"x" * (LARGEST["/review-api/import"] + 1)).status_code == 413
    assert events(bench, Kind.JUDGED) == []
    assert send("ada").json()["told"].startswith("1 answers taken in")
    assert send("ada").json()["told"].startswith("0 answers taken in; 1 are here already")
    (came,) = events(bench, Kind.JUDGED)
    assert (came.reviewer, came.payload["source"]) == ("eve", "team <b>.jsonl, by ada")
    assert "onerror" in (shown := crew["ada"].ask("lead", task="week")["html"]) and "<img" not in shown


def test_an_import_of_another_process_beside_the_open_page_is_there_when_the_page_looks_next(crew, bench, tmp_path):
    """`deepintuit review import` was refused while a dashboard held the reviews."""
    held = crew["bob"].ask("next", task="week", seat="t")["item"]
    row = {"trace_id": held, "reviewer": "eve", "kind": "judged", "label": "theft", "verdict": "wrong"}
    (tmp_path / "team.jsonl").write_text(json.dumps(row))
    command = ["review", "import", "week", str(tmp_path / "team.jsonl"), "--workbench", str(bench.path)]
    done = subprocess.run([sys.executable, "-m", "deepintuit.cli", *command], capture_output=True, text=True)
    assert done.returncode == 0 and "1 answers taken in" in done.stdout, done.stderr
    assert "eve 1" in crew["ada"].ask("tasks")["html"] and "eve" in crew["ada"].ask("lead", task="week")["html"]
    crew["bob"].ask("judge", task="week", item=held, answers=GOOD)
    assert crew["cyd"].ask("next", task="week", seat="t")["item"] != held, "it has the two answers that it needs"


# Many at once, and kills: a real server in a process of its own, which forks from one import

SERVER = """
import os, socket, sys, threading
import uvicorn
from deepintuit_app.app import create

app = create(sys.argv[1], dict(pair.split("=") for pair in sys.argv[3:]) or None)
for life in range(int(sys.argv[2])):
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen(64)
        pid = os.fork()
        if not pid:
            os.write(1, f"{os.getpid()} {door.getsockname()[1]}\\n".encode())
            uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[door])
    os.waitpid(pid, 0)
"""

CLIENT = """
import http.client, json, sys
port, asks, *tickets = sys.argv[1:]
for turn in range(int(asks)):
    ticket = tickets[turn % len(tickets)]
    door = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    body = json.dumps({"task": "week", "seat": f"process {turn}"})
    door.request("POST", "/review-api/next", body, {"content-type": "application/json", "cookie": ticket})
    print(ticket, json.loads(door.getresponse().read())["item"], flush=True)
    door.close()
"""


class Line:
    """A connection that stays open; `cookie` says who asks."""

    def __init__(self, port: int, cookie: str = ""):
        self.door, self.cookie = http.client.HTTPConnection("127.0.0.1", port, timeout=60), cookie

    def ask(self, what: str, **given) -> dict:
        headers = {"content-type": "application/json", "cookie": self.cookie}
        self.door.request("POST", f"/review-api/{what}", json.dumps(given), headers)
        answer = self.door.getresponse()
        found = json.loads(answer.read())
        assert answer.status == 200, found
        return found


def login(port: int, name: str) -> str:
    door = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    door.request("POST", "/login", urlencode({"username": name, "password": "correct horse"}))
    return door.getresponse().getheader("set-cookie").partition(";")[0]


@pytest.fixture
def server(bench):
    """Starts the server: → its process, and for each of its lives (process id, port)."""
    started = []

    def start(lives: int = 1, people=()):
        command = [sys.executable, "-c", SERVER, str(bench.path), str(lives), *(f"{name}={WORDS}" for name in people)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        for line in process.stdout:
            pid, port = map(int, line.split())
            started.append(pid)
            yield pid, port

    yield start
    for one in reversed(started):
        if isinstance(one, int):
            try:
                os.kill(one, signal.SIGKILL)
            except ProcessLookupError:
                continue
        else:
            one.kill()
            one.communicate()


@pytest.mark.slow
def test_eight_threads_and_three_processes_ask_five_hundred_times_and_nothing_goes_out_twice(server):
    _, port = next(server(people=PEOPLE[:5]))
    tickets = [login(port, name) for name in PEOPLE[:5]]
    Line(port, tickets[0]).ask("open", **FORM | {"query": ""}, reviewers="1", order="given")

    def thread(number: int) -> list[str]:
        line, mine = Line(port, tickets[number % 5]), []
        for _ in range(40):
            mine.append(line.ask("next", task="week", seat=f"thread {number}", holding=mine)["item"])
        return mine

    asks = 60
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(port), str(asks), *tickets[n:], *tickets[:n]],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    with ThreadPoolExecutor(8) as pool:
        by_threads = [item for mine in pool.map(thread, range(8)) for item in mine]
    by_processes = [line.split() for process in processes for line in process.communicate()[0].splitlines()]
    assert len(by_threads) + len(by_processes) == 500
    # A reviewer's seat in one process is the same seat in another: what comes twice comes to the same person and tab.
    handed = {item: ticket for ticket, item in by_processes}
    assert all(handed[item] == ticket for ticket, item in by_processes)
    assert max(Counter([*by_threads, *handed]).values()) == 1 and "None" not in handed and None not in by_threads


@pytest.mark.slow
def test_what_twenty_reviewers_say_at_once_is_all_in_the_file(bench, server, each=15):
    """(Two thousand judgements of twenty are a test of the log.)"""
    _, port = next(server(people=PEOPLE))
    tickets = {name: login(port, name) for name in PEOPLE}
    Line(port, tickets["r0"]).ask("open", **FORM | {"query": "max_tokens=119"}, reviewers="20", order="given")

    def work(name: str) -> None:
        line = Line(port, tickets[name])
        for turn in range(each):
            item = line.ask("next", task="week", seat="t")["item"]
            assert line.ask("judge", task="week", item=item, answers=GOOD | {"note": f"{name} {turn}"})["saved"]

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, PEOPLE))
    judged = events(bench, Kind.JUDGED)
    assert len(judged) == len({(event.reviewer, event.item) for event in judged}) == 20 * each
    assert Counter(event.reviewer for event in judged) == dict.fromkeys(PEOPLE, each)
    assert f"{20 * each} of 2,400 judgements" in Line(port, tickets["r0"]).ask("tasks")["html"]


@pytest.mark.slow
def test_a_server_killed_at_any_moment_has_every_judgement_that_it_called_saved(bench, server, kills=KILLS):
    """Kills under the load of six tabs, each server going on in the file where the last one died."""
    generator, acknowledged, sent = random.Random(0), [], 0
    opened = False
    for life, (pid, port) in enumerate(server(lives=kills)):
        if not opened:
            Line(port).ask("open", **FORM | {"query": ""}, reviewers="1")
            opened = True
        first = threading.Event()

        def tab(number: int, life: int = life, port: int = port, first: threading.Event = first) -> int:
            line, turns = Line(port), 0
            try:
                while item := line.ask("next", task="week", seat=f"{number}")["item"]:
                    turns += 1
                    name = f"{life} {number} {turns}"
                    line.ask("judge", task="week", item=item, answers=GOOD, id=name)
                    acknowledged.append((name, item))
                    first.set()
            except (OSError, http.client.HTTPException, ValueError):
                return turns  # the server is gone, in the middle of something
            finally:
                first.set()
            return turns

        with ThreadPoolExecutor(6) as pool:
            tabs = [pool.submit(tab, number) for number in range(6)]
            assert first.wait(60)
            threading.Timer(generator.uniform(0.0, 0.4), os.kill, (pid, signal.SIGKILL)).start()
            sent += sum(one.result() for one in tabs)
    judged = events(bench, Kind.JUDGED)
    assert life == kills - 1
    assert sent > len(acknowledged) >= kills, "it worked, and was killed at work"
    assert set(acknowledged) <= {(event.id, event.item) for event in judged}
    assert len({event.item for event in judged}) == len(judged), "nor was an item handed out twice"
