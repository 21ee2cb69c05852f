"""The SQL page in a real Chromium: ask, read, follow a row, keep its traces as a slice, and use that on Traces."""

from collections.abc import Iterator

import pytest
from conftest import HOSTILE, Site, serve, write_workbench


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """One of its own: slices are written into it."""
    workbench, clips, traces, runs = write_workbench(tmp_path_factory.mktemp("sql") / "workbench")
    with serve(workbench.path) as url:
        yield Site(url, workbench, clips, traces, runs)


WRONG = (
    "SELECT trace_id, clip_id, run_id, provisional FROM trace_facts "
    "WHERE stage = 'evaluate' AND calibrated <> true_label"
)


def opened(page, site: Site, query: str = ""):
    page.goto(f"{site.url}/sql{query}")
    page.wait_for_selector("#sql-schema details")
    page.wait_for_selector("#sql-history", state="attached")
    return page


def ask(page, sql: str, wait: str = "#sql-result table") -> None:
    page.locator("#sql-box textarea").fill(sql)
    page.locator("#sql-box textarea").press("Control+Enter")
    page.wait_for_selector(wait)


def says(page, selector: str, words: str) -> None:
    page.wait_for_function(
        "([at, words]) => document.querySelector(at)?.innerText.includes(words)", arg=[selector, words]
    )


def test_a_query_is_typed_run_with_the_keyboard_and_its_row_opens_the_trace(page, site):
    opened(page, site)
    box = page.locator("#sql-box textarea")
    box.press_sequentially(WRONG)
    box.press("Control+Enter")
    says(page, "#sql-result", "1 row in ")
    page.wait_for_function("new URLSearchParams(window.location.search).get('q')?.startsWith('SELECT trace_id')")
    page.locator("#sql-result td a").first.click()
    page.wait_for_selector("#traces-detail header")
    assert page.url.endswith(f"/traces?trace={site.traces['refined-1']}")


def test_traces_of_a_query_become_a_slice_that_the_traces_page_filters_by(page, site):
    opened(page, site)
    ask(page, WRONG)
    page.get_by_label("Save these traces as a slice called").fill("wrong after all")
    page.get_by_role("button", name="Save slice").click()
    says(page, "#sql-saved", "Saved as wrong after all, version 1.")
    assert site.workbench.slice("wrong after all").trace_ids() == [site.traces["refined-1"]]
    page.get_by_role("link", name="Show its traces").click()
    says(page, "#traces-list [role=status]", "1 trace")
    page.get_by_role("button", name="More filters").click()
    assert page.get_by_label("Slice", exact=True).input_value() == "wrong after all"
    with page.expect_download() as download:
        page.get_by_role("link", name="JSONL").click()
    with open(download.value.path(), encoding="utf-8") as file:
        assert [site.traces["refined-1"] in line for line in file] == [True]


def test_filters_of_the_traces_page_become_a_slice_and_stand_on_the_sql_page(page, site):
    page.goto(f"{site.url}/traces?flip=fixed")
    says(page, "#traces-list [role=status]", "2 traces")
    page.get_by_role("button", name="More filters").click()
    page.get_by_label("Save these filters as a slice called").fill("mended <b>ones</b>")
    page.get_by_role("button", name="Save slice").click()
    page.get_by_text("Saved as mended <b>ones</b>, version 1.").wait_for()
    assert site.workbench.slice("mended <b>ones</b>").query == {"flip": "fixed"}
    page.get_by_label("Slice", exact=True).click()
    page.get_by_role("option", name="mended <b>ones</b>").wait_for()
    opened(page, site)
    page.locator("summary", has_text="Saved slices").click()
    page.get_by_role("link", name="mended <b>ones</b>").click()
    says(page, "#traces-list [role=status]", "2 traces")


def test_a_slice_that_is_gone_says_so_on_the_traces_page(page, site):
    page.goto(f"{site.url}/traces?slice=nothing+like+it")
    says(page, "#traces-list .empty", "There is no slice 'nothing like it'")


def test_a_query_of_an_address_waits_for_its_reader(page, site):
    opened(page, site, "?q=SELECT+42+AS+answer")
    says(page, "#sql-result", "This query came with the address, so it was not run.")
    assert page.locator("#sql-box textarea").input_value() == "SELECT 42 AS answer"
    assert page.locator("#sql-result table").count() == 0
    page.get_by_role("button", name="Run", exact=True).click()
    says(page, "#sql-result table", "42")


def test_what_is_refused_or_fails_says_why_and_offers_no_slice(page, site):
    opened(page, site)
    ask(page, "SELECT trace_id FROM read_text('secrets.txt')", "#sql-result .failed")
    says(page, "#sql-result .failed", "Permission Error")
    ask(page, "DROP TABLE traces", "#sql-result .failed")
    says(page, "#sql-result .failed", "The query holds DROP")
    ask(page, "SELECT '<img src=x onerror=window.hacked=1>' FROM nowhere", "#sql-result .failed")
    says(page, "#sql-result .failed", "nowhere does not exist")
    assert page.get_by_label("Save these traces as a slice called").count() == 0
    assert page.locator("#sql-result img").count() == 0 and page.evaluate("window.hacked") is None


def test_hostile_texts_stay_text(page, site):
    opened(page, site)
    ask(page, "SELECT text AS \"<b>name</b>\" FROM traces WHERE contains(text, 'window.hacked')")
    assert HOSTILE[:60] in page.inner_text("#sql-result td")
    assert page.locator("#sql-result th").inner_text() == "<b>name</b>"
    assert page.locator("#sql-result :is(img, script, b)").count() == 0 and page.evaluate("window.hacked") is None


def test_examples_columns_and_history_come_into_the_box(page, site):
    opened(page, site)
    box = page.locator("#sql-box textarea")
    page.get_by_role("button", name="Which classes are worst?").click()
    assert "recall" in box.input_value()
    box.press("Control+Enter")
    page.wait_for_selector("#sql-result table")
    box.fill("SELECT  FROM clips")
    box.evaluate("box => box.setSelectionRange(7, 7)")
    page.locator("summary", has_text="the manifest, a row per clip").click()
    page.locator('#sql-schema [data-insert="clip_id"]:visible').click()
    assert box.input_value() == "SELECT clip_id FROM clips"
    box.press("Control+Enter")
    says(page, "#sql-result", "8 rows in")
    opened(page, site)
    page.locator("summary", has_text="History").click()
    kept = page.locator("#sql-history button")
    kept.first.wait_for()
    assert kept.count() == 2 and kept.first.inner_text() == "SELECT clip_id FROM clips"
    kept.first.click()
    assert box.input_value() == "SELECT clip_id FROM clips"
    page.get_by_role("button", name="Forget all").click()
    kept.first.wait_for(state="detached")


@pytest.mark.parametrize("form, head", [("csv", b"i,t"), ("jsonl", b'{"i": 1'), ("parquet", b"PAR1")])
def test_a_result_is_downloaded(page, site, form, head):
    opened(page, site)
    ask(page, "SELECT 1 AS i,\n'${x} \"y\"' AS t -- a comment\n")
    with page.expect_download() as download:
        page.get_by_role("button", name=form.upper()).click()
    with open(download.value.path(), "rb") as file:
        assert file.read().startswith(head)
    assert download.value.suggested_filename == f"result.{form}"


def test_a_phone_has_it_all_without_scrolling_sideways(open_page, site):
    page = opened(open_page(width=390, dark=True), site)
    ask(page, "SELECT * FROM traces")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    heights = page.evaluate("[...document.querySelectorAll('#sql-result tbody tr')].map((row) => row.offsetHeight)")
    assert max(heights) <= 240, "texts are not squeezed into a word's width"
    page.get_by_role("button", name="Save slice").wait_for()
