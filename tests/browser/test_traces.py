"""The Traces page in a real Chromium: filters and links hold, a row opens its clip, hostile text stays text."""

from urllib.parse import parse_qs, urlparse

import pytest
from conftest import HOSTILE_FILE, REFINED, TRUE, Site


def opened(page, site: Site, query: str = "", rows: int | None = None, unfold: bool = True):
    """The page, when its list is there, and all filters with `unfold`."""
    page.goto(f"{site.url}/traces{query}")
    page.wait_for_selector("#traces-list [role=status]")
    if unfold:
        page.get_by_role("button", name="More filters").click()
    if rows is not None:
        found(page, rows)
    return page


def found(page, count: int) -> None:
    words = f"{count} trace" + "s" * (count != 1)
    page.wait_for_function("(w) => document.querySelector('#traces-list [role=status]')?.innerText === w", arg=words)


def query_of(page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlparse(page.url).query).items()}


def in_address(page, name: str, value: str | None) -> None:
    page.wait_for_function(
        "([name, value]) => new URLSearchParams(window.location.search).get(name) === value", arg=[name, value]
    )


def choose(page, label: str, words: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=words).click()


def test_a_filter_counts_as_the_store_does_and_stands_in_the_address(page, site):
    opened(page, site, rows=28)
    choose(page, "Provisional is", "Wrong")
    wrong = site.workbench.query("SELECT count(*) AS n FROM traces WHERE provisional <> true_label")["n"][0]
    found(page, int(wrong))
    in_address(page, "right", "wrong")
    choose(page, "Calibration", "broken")
    page.get_by_label("Provisional is", exact=True).wait_for()
    page.get_by_role("button", name="Clear filters").click()
    found(page, 28)
    in_address(page, "right", None)


def test_words_are_searched_as_they_are_typed_pasted_and_deleted(page, site):
    opened(page, site, rows=28)
    box = page.get_by_label("Text contains")
    box.press_sequentially("sample 3")
    found(page, 4)
    assert page.locator("#traces-list mark").first.inner_text().lower() == "sample 3"
    box.fill("COURIER 2 steps")
    found(page, 2)
    for _ in range(len("COURIER 2 steps")):
        box.press("Backspace")
    found(page, 28)


def test_a_deep_link_restores_filters_order_and_the_opened_trace(page, site):
    run, trace = site.runs["evaluate-refined"], site.traces["refined-1"]
    opened(page, site, f"?run={run}&true=delivery&min_confidence=0.1&text=courier&sort=-tokens&trace={trace}", rows=2)
    page.wait_for_selector("#traces-detail header")
    assert page.get_by_label("True label", exact=True).input_value().startswith("delivery")
    assert page.get_by_label("Run", exact=True).input_value().startswith(run)
    assert page.get_by_label("Token confidence from").input_value() == "0.1"
    assert page.get_by_label("Text contains").input_value() == "courier"
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Tokens")
    assert page.locator("#traces-list [aria-current=true]").first.get_attribute("data-value") == trace
    assert query_of(page)["sort"] == "-tokens" and query_of(page)["trace"] == trace


def test_a_link_to_what_is_not_there_says_so_and_breaks_nothing(page, site):
    page.goto(f"{site.url}/traces?run=gone-run&step=x&flip=sideways&trace=nothing&sort=drop&page=-7")
    page.wait_for_selector("#traces-list .empty")
    assert "No trace fits these filters." in page.inner_text("#traces-list")
    page.wait_for_function("document.querySelector('#traces-detail')?.innerText.includes('No such trace')")
    page.get_by_role("button", name="Clear filters").click()
    found(page, 28)


def test_a_row_opens_its_clip_and_a_chip_seeks_it(page, site):
    opened(page, site, f"?run={site.runs['evaluate-refined']}&true=theft&provisional=routine", rows=1)
    page.locator("#traces-list button.open").click()
    page.wait_for_function("document.querySelector('#traces-detail video')?.readyState >= 2")
    assert page.locator("#traces-detail video").get_attribute("src").endswith(site.clips[3])
    page.locator("#traces-detail .chip", has_text="0.5 s").click()
    page.wait_for_function("Math.abs(document.querySelector('#traces-detail video').currentTime - 0.5) < 0.01")
    page.get_by_role("link", name="Open in Watch").click()
    page.wait_for_url(f"**/watch?clip={site.clips[3]}&trace={site.traces['refined-3']}*")


def test_the_keyboard_alone_opens_walks_and_closes(page, site):
    opened(page, site, f"?run={site.runs['evaluate-cold']}&sort=clip", rows=6)
    page.locator("#traces-list button.open").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#traces-detail header")
    second = page.locator("#traces-list button.open").nth(1)
    in_address(page, "trace", second.get_attribute("data-value"))
    page.keyboard.press("Escape")
    page.wait_for_selector("#traces-detail header", state="detached")
    in_address(page, "trace", None)
    focused = "(id) => document.activeElement?.dataset.value === id"
    page.wait_for_function(focused, arg=second.get_attribute("data-value"))


def test_two_stages_stand_side_by_side_and_the_link_keeps_it(page, site, open_page):
    opened(page, site, f"?trace={site.traces['refined-3']}")
    page.wait_for_selector("#traces-detail .siblings")
    page.locator("#traces-detail .siblings").get_by_role("button", name="Side by side").first.click()
    page.wait_for_selector("#traces-detail .pair")
    assert page.locator("#traces-detail .pair section").count() == 2
    assert page.locator("#traces-detail .pair h3").all_inner_texts()[0].find("routine") > 0
    in_address(page, "compare", site.traces["cold-3"])
    other = open_page()
    other.goto(page.url)
    other.wait_for_selector("#traces-detail .pair")
    page.get_by_role("button", name="Remove").click()
    page.wait_for_selector("#traces-detail .pair", state="detached")
    in_address(page, "compare", None)


def test_confidence_colours_come_on_request_and_say_why_when_they_cannot(page, site):
    opened(page, site, f"?trace={site.traces['cold-0']}")
    page.wait_for_selector("#traces-detail .trace")
    before = page.inner_text("#traces-detail .trace")
    assert page.locator("#traces-detail .trace .token").count() == 0
    page.get_by_role("button", name="Colour by token confidence").click()
    page.wait_for_selector("#traces-detail .trace .token")
    assert page.inner_text("#traces-detail .trace") == before
    assert page.locator("#traces-detail .trace .token").first.get_attribute("title").endswith("% sure")
    opened(page, site, f"?trace={site.traces['malformed']}&colour=1")
    why = "document.querySelector('#traces-detail')?.innerText.includes('without token probabilities')"
    page.wait_for_function(why)


def test_hostile_texts_and_names_stay_text(page, site):
    opened(page, site, f"?trace={site.traces['hostile']}&text=window.hacked", rows=1)
    page.wait_for_selector("#traces-detail .trace")
    said = page.inner_text("#traces-detail .trace")
    for text in (
        "<img src=x onerror=\"window.hacked='img'\">",
        "<script>window.hacked='script'</script>",
        "&lt;b&gt;",
        "${window.hacked='dollar'}",
        "{{window.hacked='braces'}}",
        "{{{value}}}",
        "`tick` \"quoted\" 'single'",
    ):
        assert text in said
    assert HOSTILE_FILE in page.inner_text("#traces-detail h2")
    assert page.locator("#traces-detail .trace img, #traces-list img:not(.thumb), #traces-detail b").count() == 0
    page.locator("#traces-list th button").first.click()
    found(page, 1)
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("form, head", [("csv", b"trace_id,run_id"), ("jsonl", b'{"trace_id"'), ("parquet", b"PAR1")])
def test_what_is_filtered_is_downloaded(page, site, form, head):
    opened(page, site, f"?run={site.runs['evaluate-refined']}&final=wrong", rows=1)
    with page.expect_download() as download:
        page.get_by_role("link", name=form.upper()).click()
    with open(download.value.path(), "rb") as file:
        content = file.read()
    assert content.startswith(head) and download.value.suggested_filename == f"traces.{form}"
    if form != "parquet":
        assert content.count(b"\n") == {"csv": 2, "jsonl": 1}[form] and site.traces["refined-1"].encode() in content


def test_pages_and_sorting_hold_together(page, site):
    opened(page, site, "?size=50&page=9", rows=28)
    assert "Page 1 of 1" in page.inner_text("#traces-list nav")
    page.locator("th button", has_text="True").click()
    in_address(page, "sort", "true")
    page.wait_for_selector("th[aria-sort=ascending]")
    shown = page.locator("#traces-list tbody tr td:nth-child(2)").all_inner_texts()
    assert shown == sorted(shown)
    page.locator("th button", has_text="True").click()
    page.wait_for_selector("th[aria-sort=descending]")


def test_a_phone_begins_with_filters_folded_and_an_opened_trace_fills_it(open_page, site):
    page = opened(open_page(width=390), site, f"?run={site.runs['evaluate-refined']}", rows=6, unfold=False)
    page.get_by_label("True label", exact=True).wait_for(state="hidden")
    page.locator("#traces-list button.open").first.click()
    page.wait_for_selector("#traces-detail header")
    box = page.locator("#traces-detail-column").bounding_box()
    assert box["width"] == 390 and box["height"] == 900
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Close").click()
    page.wait_for_selector("#traces-detail header", state="detached")


def test_the_answers_shown_are_those_of_the_store(page, site):
    opened(page, site, f"?run={site.runs['evaluate-refined']}&flip=fixed", rows=2)
    wanted = {(TRUE[i], REFINED[i]) for i in (3, 5)}
    cells = page.locator("#traces-list tbody tr").evaluate_all(
        'rows => rows.map(row => [row.cells[1].innerText, row.cells[2].innerText.replace(/^[✓✗] /, "")])'
    )
    assert {tuple(cell) for cell in cells} == wanted
