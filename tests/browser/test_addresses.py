"""The address bar: Back undoes one choice and no more, defaults stay out, and a page whose load was lost asks again."""

from urllib.parse import parse_qs, urlparse

import pytest
from conftest import Site


def query_of(page) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlparse(page.url).query).items()}


def entries(page) -> int:
    return page.evaluate("history.length")


def says(page, words: str, where: str) -> None:
    page.wait_for_function(
        "([where, words]) => document.querySelector(where)?.innerText.includes(words)", arg=[where, words]
    )


def back(page) -> None:
    page.evaluate("history.back()")


def forward(page) -> None:
    page.evaluate("history.forward()")


def test_back_on_watch_gives_the_former_clip_and_typing_is_no_choice(page, site: Site):
    page.goto(f"{site.url}/?clip={site.clips[0]}")
    says(page, "test-0", "#screen")
    page.wait_for_function("location.search.includes('trace=')")
    before = entries(page)
    page.get_by_label("Find a clip").fill("test-2")
    page.wait_for_function("document.querySelectorAll('.card').length === 1")
    page.click(".card")
    says(page, "test-2", "#screen")
    page.wait_for_function(f"location.search.includes('clip={site.clips[2]}')")
    assert entries(page) == before + 1
    back(page)
    says(page, "test-0", "#screen")
    says(page, "courier 0", "#trace")
    assert query_of(page)["clip"] == site.clips[0]
    forward(page)
    says(page, "test-2", "#screen")
    says(page, "courier 2", "#trace")
    assert query_of(page)["clip"] == site.clips[2] and entries(page) == before + 1


@pytest.mark.thorough
def test_back_on_errors_closes_the_clip_then_the_cell(page, site: Site):
    page.goto(f"{site.url}/errors")
    page.locator('.errors [data-value="true.0"]').first.click()
    page.locator("#errors-drawer .clips tbody tr button").first.click()
    page.wait_for_selector("#errors-drawer video")
    page.wait_for_function("location.search.includes('clip=')")
    assert not {"threshold", "cells"} & set(query_of(page)), "defaults say nothing"
    back(page)
    page.wait_for_selector("#errors-drawer video", state="detached")
    page.wait_for_selector("#errors-drawer .clips tbody tr")
    assert query_of(page)["cell"] == "true.0" and "clip" not in query_of(page)
    back(page)
    page.wait_for_selector("#errors-drawer header", state="detached")
    page.wait_for_selector(".confusion")
    assert "cell" not in query_of(page)


def test_back_on_traces_closes_the_opened_trace_and_keeps_the_filter(page, site: Site):
    page.goto(f"{site.url}/traces?run={site.runs['evaluate-cold']}")
    rows = page.locator("#traces-list tbody tr")
    rows.nth(5).wait_for()
    rows.first.locator("button.open").click()
    page.wait_for_selector("#traces-detail video")
    page.wait_for_function("location.search.includes('trace=')")
    back(page)
    page.wait_for_selector("#traces-detail header", state="detached")
    page.wait_for_function("!location.search.includes('trace=')")
    assert rows.count() == 6 and query_of(page) == {"run": site.runs["evaluate-cold"]}


def test_back_on_runs_gives_the_table_then_the_run_and_no_default_stands_in_the_address(page, site: Site):
    grpo = site.runs["grpo"]
    page.goto(f"{site.url}/runs")
    page.locator(f"#runs-list tbody th button[data-value='{grpo}']").click()
    article = page.get_by_role("article", name=f"Run {grpo}")
    article.wait_for()
    page.wait_for_function("location.search.includes('tab=details')")
    assert query_of(page) == {"run": grpo, "tab": "details"}
    article.locator(f"button[data-value='{site.runs['coldstart']}']").first.click()
    page.get_by_role("article", name=f"Run {site.runs['coldstart']}").wait_for()
    back(page)
    article.wait_for()
    assert query_of(page) == {"run": grpo, "tab": "details"}
    back(page)
    page.locator("#runs-list tbody").wait_for(state="visible")
    page.wait_for_function("location.search === ''")
    page.evaluate("history.forward()")  # at once, and again before the page could follow
    page.evaluate("history.forward()")
    page.get_by_role("article", name=f"Run {site.runs['coldstart']}").wait_for()
    page.wait_for_function(f"location.search.includes('run={site.runs['coldstart']}')")


def test_a_page_whose_load_was_lost_asks_once_more(page, site: Site):
    def without_load(route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace('"load"', '"lost"'))

    page.clock.install()
    page.route("**/traces", without_load)
    page.goto(f"{site.url}/traces", wait_until="load")
    page.wait_for_selector("#read-address", state="attached")
    page.locator("#traces-list tbody tr").first.wait_for()
    assert page.evaluate("window.deepintuitAsked") is None
    for _ in range(2):  # it is drawn at the first look, and waited for long enough at the second
        page.clock.fast_forward(9000)
    page.locator("#traces-list tbody tr").first.click(trial=True)  # what came with the page can be pressed now
