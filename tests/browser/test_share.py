"""A shared folder: its pages work from a plain file server and from a double click, and whatever a model, a reviewer or
a file's name says is text there too."""

import functools
import http.server
import json
import threading
from types import SimpleNamespace

import pytest
from conftest import HOSTILE_FILE, write_workbench

from deepintuit import video
from deepintuit.command import Parser
from deepintuit.errors import ConfigError, StoreError
from deepintuit_analysis.commands import add_share
from deepintuit_analysis.index import browse
from deepintuit_analysis.index.browse import TraceFilter

FIRST = """SELECT clip_id FROM traces WHERE stage = 'evaluate' ORDER BY run_id, clip_id, step, sample LIMIT 1"""


def share(bench, *words: str) -> int:
    parser = Parser(prog="deepintuit")
    add_share(parser.add_verbs())
    options = parser.parse_args(["share", *words, "--workbench", str(bench.path)])
    return options.run(options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The workbench of the pages' tests, and what is shared of its two evaluations."""
    folder = tmp_path_factory.mktemp("shared")
    workbench, clips, traces, runs = write_workbench(folder / "workbench")
    assert share(workbench, str(folder / "out")) == 0
    return SimpleNamespace(out=folder / "out", workbench=workbench, clips=clips, traces=traces, runs=runs)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *told) -> None:
        pass


@pytest.fixture(params=["a file server", "a double click"])
def address(request, shared):
    if request.param == "a double click":
        yield (shared.out / "index.html").as_uri()
        return
    handler = functools.partial(Quiet, directory=str(shared.out))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/index.html"
    server.shutdown()
    server.server_close()


def until(page, truth: str) -> None:
    """Waits for it; the page's own policy forbids the scripts by which a browser would."""
    for _ in range(900):
        if page.evaluate(truth):
            return
        page.wait_for_timeout(50)
    raise AssertionError(truth)


def test_watch_traces_and_errors_work_without_a_server_of_ours(page, address, shared):
    page.goto(f"{address}#watch/{shared.traces['refined-1']}")
    until(page, "document.querySelector('video').readyState >= 1")
    assert page.locator(".bars li").count() == 3 and page.get_by_text("Calibrated label:").count() == 1
    whole = page.locator(".segment").first.inner_text()
    assert "a courier 1 steps onto the porch" in whole
    page.get_by_role("button", name="Replay").click()
    until(page, "!document.querySelector('main').innerText.includes('tokens')")
    until(page, "document.querySelector('main').innerText.includes('tokens')")
    assert page.locator(".segment").first.inner_text() == whole
    page.get_by_role("link", name="Errors").click()
    page.get_by_role("combobox").select_option(
        label=f"cold start + GRPO · calibrated label · {shared.runs['evaluate-refined']}"
    )
    page.get_by_text("5 of 6 right").wait_for()
    page.get_by_role("button", name="delivery taken for theft: 1").click()
    page.locator("ul.clips a").click()
    until(page, f"location.hash === '#watch/{shared.traces['refined-1']}'")
    page.get_by_role("link", name="Traces", exact=True).click()
    page.get_by_label("Calibration").select_option("fixed")
    page.get_by_text("2 of 12 traces").wait_for()
    page.get_by_label("Calibration").select_option("")
    page.get_by_label("Text").fill("COURIER 3")
    page.get_by_label("Text").press("Enter")
    page.get_by_text("2 of 12 traces").wait_for()
    page.get_by_role("link", name="Run card").click()
    page.wait_for_url("**/card.html")
    assert "Run card" in page.title()


def test_a_moment_of_a_trace_seeks(page, shared):
    page.goto(f"{(shared.out / 'index.html').as_uri()}#watch/{shared.traces['refined-0']}")
    until(page, "document.querySelector('video').readyState >= 1")
    page.get_by_role("button", name="0.5", exact=True).click()
    until(page, "Math.abs(document.querySelector('video').currentTime - 0.5) < 0.05")


def test_hostile_texts_and_names_are_text_on_every_page(page, address, shared):
    for place in (
        f"#watch/{shared.traces['hostile']}",
        "#traces",
        "#traces?text=%3Cscript%3E",
        "#errors?system=0&true=%3Cb%3E",
    ):
        page.goto(address)
        page.goto(address + place)
        page.locator("main h2").wait_for()
    page.goto(f"{address}#watch/{shared.traces['hostile']}")
    page.get_by_role("heading", name=HOSTILE_FILE.removesuffix(".mp4")).wait_for()
    assert "<script>window.hacked" in page.locator("main").inner_text()
    assert page.evaluate("window.hacked") is None and page.locator("main img, main script, main b").count() == 0
    assert all(name.isascii() and len(name) < 12 for name in (path.name for path in (shared.out / "clips").iterdir()))


def test_a_phone_reads_it_in_the_dark_without_scrolling_sideways(open_page, shared):
    page = open_page(width=390, dark=True)
    for place in (f"#watch/{shared.traces['hostile']}", "#traces", "#errors"):
        page.goto((shared.out / "index.html").as_uri() + place)
        page.locator("main h2").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), place


def test_a_slice_shares_its_traces_alone_and_clips_are_made_small_or_left_out(shared, tmp_path, capsys):
    shared.workbench.save_slice("wrong ones", TraceFilter(run=shared.runs["evaluate-cold"], right="wrong"), "me")
    assert share(shared.workbench, str(tmp_path / "small"), "--slice", "wrong ones", "--clips", "small") == 0
    told = capsys.readouterr().out
    assert "3 traces of 3 clips, 3 videos (small), about" in told and "index.html" in told
    data = json.loads((tmp_path / "small" / "data.js").read_text().removeprefix("const SHARED = ").rstrip(";\n"))
    assert len(data["traces"]) == len(data["clips"]) == 3 and {one["run_id"] for one in data["traces"]} == {
        shared.runs["evaluate-cold"]
    }
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "clips",
        "data.js",
        "index.html",
        "share.css",
        "share.js",
    ]
    info = video.probe(tmp_path / "small" / data["clips"][0]["file"])
    assert info.playable and max(info.width, info.height) <= 320 and abs(info.seconds - 3) < 0.3
    assert (
        share(shared.workbench, str(tmp_path / "none"), "--clips", "none", "--runs", shared.runs["evaluate-cold"]) == 0
    )
    assert not [*(tmp_path / "none" / "clips").iterdir()] and (tmp_path / "none" / "card.html").is_file()


def test_it_opens_on_a_clip_that_has_its_video(page, shared, tmp_path, capsys):
    assert share(shared.workbench, str(tmp_path / "whole"), "--dry-run") == 0
    assert "left out" not in capsys.readouterr().out
    first = browse.clip_file(shared.workbench, shared.workbench.query(FIRST)["clip_id"][0])
    away = first.rename(tmp_path / "away.mp4")
    try:
        assert share(shared.workbench, str(tmp_path / "out")) == 0
    finally:
        away.rename(first)
    assert "Videos left out, since the file is not there any more: 1 (" in capsys.readouterr().out
    page.goto((tmp_path / "out" / "index.html").as_uri())
    until(page, "document.querySelector('video')?.readyState >= 1")
    assert len([*(tmp_path / "out" / "clips").iterdir()]) == 5


def test_nothing_that_is_there_is_lost_and_a_dry_run_writes_nothing(shared, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for place in ("full", "full/mine.txt"):
        with pytest.raises(ConfigError, match="not empty.*Name one that is not there yet"):
            share(shared.workbench, str(tmp_path / place))
    assert share(shared.workbench, str(tmp_path / "dry"), "--dry-run") == 0
    assert "MB" in capsys.readouterr().out and sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    with pytest.raises(StoreError, match="nothing to look at"):
        share(shared.workbench, str(tmp_path / "empty"), "--runs", shared.runs["calibrate"])
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
