"""What stands around every page, the page for what is not there, and the start page."""

import json
import re

import pytest
from fastapi.testclient import TestClient
from porch import live_workbench

from deepintuit import cli
from deepintuit_analysis import Workbench
from deepintuit_app import errors, frame, preload, runs, start, traces, watch
from deepintuit_app.app import NAVIGATION, PAGES, create
from deepintuit_app.context import AppContext
from deepintuit_app.login import hashed

HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    workbench = live_workbench(tmp_path_factory.mktemp("frame") / "a <b> bench")
    workbench.refresh()
    return workbench


def client(workbench: Workbench, **more) -> TestClient:
    return TestClient(create(workbench.path, **more), base_url="http://127.0.0.1:7860", follow_redirects=False)


@pytest.fixture(scope="module")
def plain(workbench) -> TestClient:
    return client(workbench)


@pytest.mark.parametrize("path", ["", *PAGES])
def test_every_page_has_its_title_its_header_and_its_place_in_the_navigation(plain, path):
    answer = plain.get(f"/{path}", headers=HTML)
    html = answer.text
    assert answer.status_code == 200 and answer.headers.get("content-encoding") == ("gzip" if path else None)
    named = NAVIGATION[path] if path else "Start"
    assert re.findall("<title>(.*)</title>", html) == [f"{named} · a &lt;b&gt; bench · DeepIntuit"]
    assert html.count("<header") == 1 and "<strong>a &lt;b&gt; bench</strong> · porch" in " ".join(html.split())
    assert re.findall(r'href="([^"]*)" aria-current="page"', html) == ([path] if path else [])
    assert 'rel="icon" href="static-app/icon.svg"' in html and "static-app/frame.css" in html
    if path:
        assert 'control_page_title="true"' not in html, "Gradio would set its own title"


def test_what_is_not_there_has_a_page_that_says_why(plain):
    nothing = plain.get("/no/such <page>", headers=HTML)
    assert nothing.status_code == 404 and "There is nothing at this address" in nothing.text
    assert "such <page>" not in nothing.text and 'href="/watch"' in nothing.text
    clip = plain.get("/media/clip/nothing", headers=HTML)
    assert clip.status_code == 404 and "No clip of this id is in the workbench" in clip.text
    assert plain.get("/media/clip/nothing").json()["detail"].startswith("No clip"), "scripts get what they got"


def test_an_old_address_of_watch_leads_to_it(plain):
    moved = plain.get("/?clip=a%26b&trace=t")
    assert moved.status_code == 307 and moved.headers["location"] == "./watch?clip=a%26b&trace=t"
    assert plain.get("/?page=traces").status_code == 200


def test_the_start_page_says_what_there_is_and_what_to_do(workbench, plain):
    html = plain.get("/").text
    clips = len(workbench.query("SELECT * FROM clips WHERE excluded IS NULL"))
    assert f'<a href="watch">{clips}</a>' in html
    for where in ('href="errors"', 'href="review"', 'href="runs?tab=jobs"'):
        assert where in html
    assert "deepintuit evaluate" in html and "<script>" not in html and html.count("<script src") == 1


def test_an_empty_workbench_is_led_from_import_to_evaluation(tmp_path):
    shown = start.page(AppContext(tmp_path / "empty"), NAVIGATION)
    assert "It is empty" in shown and 'class="uses"' not in shown
    assert re.findall(r'<li class="(\w+)"><strong>([\w ]+)', shown)[:2] == [
        ("next", "Import clips"),
        ("later", "Teach"),
    ]


@pytest.mark.parametrize("command", [command for _, _, command, _ in start.STEPS])
def test_the_start_page_offers_commands_that_are_understood(command):
    assert cli._parser().parse_args(command.split()[1:]).run


def test_where_no_stage_can_be_started_none_is_offered(workbench, monkeypatch):
    monkeypatch.setattr(Workbench, "is_example", True)
    shown = start.page(AppContext(workbench.path), NAVIGATION)
    assert "See the runs" in shown and "tab=jobs" not in shown and "This is the example" in shown


def test_stages_are_done_next_or_later_in_the_order_of_the_work():
    counts = {"clips": 5, "teach": 1, "coldstart": 0}
    states = [one["state"] for one in start.steps(counts, [])]
    assert states == ["done", "done", "next", "later", "later", "later"]
    running = start.steps(counts, [{"stage": "coldstart"}])
    assert [one["state"] for one in running][2:4] == ["running", "later"]


def test_who_is_logged_in_is_named_and_can_leave(workbench):
    user = client(workbench, users={"ann": hashed("correct horse")})
    user.post("/login", data={"username": "ann", "password": "correct horse"})
    answer = user.get("/runs", headers=HTML)
    assert 'ann · <a href="logout">Log out</a>' in answer.text
    assert answer.headers["cache-control"] == "no-store", "Back would show it after the logout"


@pytest.mark.parametrize("path", ["watch", "traces", "errors", "runs"])
def test_the_first_html_names_the_modules_that_its_components_need_and_has_something_to_look_at(plain, path):
    html = plain.get(f"/{path}", headers=HTML).text
    kinds = set(re.findall(r'"type":"(\w+)"', html))
    named = re.findall(r'<link rel="modulepreload" crossorigin href="./assets/([^"]+)"', html)
    [core] = [name for name in named if name.startswith("core-")]
    needs = {kind: files for kind, files in preload._components(core).items() if kind in kinds}
    assert {"html", "button", "textbox"} <= needs.keys() and len(named) == len(set(named)) > 30
    scripts = {name for files in needs.values() for name in files if name.endswith(".js")}
    assert scripts - {*named} <= {*re.findall(r"assets/(index-[\w-]+\.js)", html)}, "but the first, which stands there"
    assert all((preload._ASSETS / name).is_file() for name in named)
    assert ("PlotlyPlot-" in html) == ("plot" in kinds), "the largest module waits until nothing else is to be done"
    assert html.index('class="skeleton') < html.index("<gradio-app") and 'aria-hidden="true"' in html
    assert '"connect_heartbeat":false' in html.replace(" ", ""), (
        "or a browser's seventh tab of the dashboard never comes"
    )
    [rules] = re.findall(r'<script type="speculationrules">(.*?)</script>', html)
    assert json.loads(rules)["prerender"][0]["eagerness"] == "moderate"
    assert ("review.js" in html) is False and "review.js" in plain.get("/review", headers=HTML).text


def test_what_never_changes_is_kept_by_browsers_and_what_may_is_asked_for_again(plain):
    html = plain.get("/traces", headers=HTML).text
    [ours] = re.findall(r'src="(static-app/app.js\?v=\w+)"', html)
    [module] = re.findall(r'type="module" crossorigin src="\./(assets/[^"]+)"', html)
    for address in (ours, module):
        assert plain.get(f"/{address}").headers["cache-control"] == "public, max-age=31536000, immutable"
    assert plain.get("/static-app/app.js").headers["cache-control"] == "no-cache"
    assert "cache-control" not in plain.get("/assets/nothing.js").headers
    assert "immutable" not in plain.get("/traces", headers=HTML).headers.get("cache-control", "")


def test_where_gradio_writes_no_table_of_modules_no_page_names_any(monkeypatch):
    monkeypatch.setattr(preload, "_text", lambda file: "")
    preload._table.cache_clear()
    assert "<link" not in preload.head('<script src="./assets/index-none.js"></script>"type":"html"')
    assert preload.head("no page of Gradio's") == ""
    preload._table.cache_clear()


def test_a_fault_in_what_comes_first_costs_the_content_alone_and_is_said_in_its_place(plain, monkeypatch, caplog):
    def faulty(*_):
        raise KeyError("<b>clip</b>")

    monkeypatch.setattr(frame, "_MOMENT", 60)
    for module, part in {watch: "clip_of", traces: "list_html", errors: "choose", runs: "table"}.items():
        monkeypatch.setattr(module, part, faulty)
    for path, place in frame.PLACES.items():
        answer = plain.get(f"/{path}", headers=HTML)
        config, _ = json.JSONDecoder().raw_decode(answer.text.partition("window.gradio_config = ")[2])
        [said] = [one["props"]["value"] for one in config["components"] if one["props"].get("elem_id") == place]
        assert answer.status_code == 200 and "<gradio-app inert" not in answer.text, "the page can be used"
        assert f"{NAVIGATION[path]} came without its content: an unexpected KeyError. Reload the page" in said
        assert "clip" not in said and f"{NAVIGATION[path]} came without its content" in caplog.text
    assert set(frame.PLACES) == {path for path, (_, module) in PAGES.items() if hasattr(module, "first")}
    # Other parts that are put into a page cost themselves alone, too.
    for module, part in ((preload, "head"), (frame, "_datasets"), (frame, "_filled")):
        monkeypatch.setattr(module, part, faulty)
    answer = plain.get("/runs", headers=HTML)
    assert answer.status_code == 200 and "<strong>a &lt;b&gt; bench</strong>" in answer.text
    assert caplog.text.count("a page opens without") == 3 and "its first content" in caplog.text
