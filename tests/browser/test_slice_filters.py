"""A saved slice on every page that chooses clips or traces: its name is in the address, only what it holds counts, and
what it cannot give is said in a sentence."""

from collections.abc import Iterator
from urllib.parse import parse_qs, urlencode, urlparse

import pytest
from conftest import Site, serve, write_workbench

from deepintuit.errors import StoreError
from deepintuit_analysis.index import answers
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_app import analysis, errors_view


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """One of its own, with slices: two clips that calibration mended, the traces of a cold start, those of one GRPO
    clip, and one whose query does not run any more."""
    workbench, clips, traces, runs = write_workbench(tmp_path_factory.mktemp("slices") / "workbench")
    workbench.save_slice("mended", TraceFilter(flip="fixed"), by="ann")
    workbench.save_slice("cold", TraceFilter(run=runs["evaluate-cold"]), by="ann")
    first = workbench.query("SELECT min(clip_id) AS clip FROM traces WHERE run_id = ?", [runs["grpo"]])["clip"][0]
    workbench.save_slice("one clip", TraceFilter(clip=first), by="ann")
    workbench.save_slice("breaks", "SELECT trace_id FROM traces WHERE length(text) > 0", by="ann")
    [file] = (workbench.path / "slices").glob("breaks-*.json")
    file.write_text(file.read_text().replace("length(text)", "column_that_went"))
    with serve(workbench.path) as url:
        yield Site(url, workbench, clips, traces, runs)


def says(page, selector: str, words: str) -> None:
    page.wait_for_function(
        "([at, words]) => document.querySelector(at)?.innerText.includes(words)", arg=[selector, words]
    )


def choose(page, name: str) -> None:
    page.get_by_label("Slice", exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


# Without a browser


def looked_at(site, name: str, **wish: str) -> analysis.Analysis:
    choice, _ = analysis.choose(answers.sources(site.workbench), analysis.Choice(slice=name, **wish))
    return analysis.analysis(site.workbench, choice)


def test_all_that_is_counted_is_of_the_slice(site):
    cold = f"{site.runs['evaluate-cold']}/cold start/raw"
    found = looked_at(site, "mended", compare=cold)
    mended = sorted((site.clips[3], site.clips[5]))
    for part in (found.mine, found.raw, *found.controls.values()):
        assert part.frame.index.tolist() == mended
    assert found.facts.index.tolist() == mended and found.reasons["n"].sum() == 2 and found.whole == 6
    assert "Only the slice &#39;mended&#39; counts: 2 of the 6 labelled clips." in errors_view.summary(found)
    assert found.mine.right_C.all() and not found.raw.right_C.any()


def test_a_slice_that_changed_is_counted_anew(site):
    site.workbench.save_slice("changes", TraceFilter(true="theft"), by="ann")
    assert len(looked_at(site, "changes").mine.frame) == 2
    site.workbench.save_slice("changes", TraceFilter(run=site.runs["evaluate-refined"]), by="ann")
    assert len(looked_at(site, "changes").mine.frame) == 6


@pytest.mark.parametrize("name, said", [
    ("cold", "has no trace of this run"), ("breaks", "column_that_went"), ("gone", "there is no slice")
])  # fmt: skip
def test_what_a_slice_cannot_give_is_a_sentence(site, name, said):
    with pytest.raises(StoreError, match=said):
        looked_at(site, name)


# In the browser


def test_errors_count_only_the_slice_and_the_address_brings_it_back(open_page, site):
    page = open_page()
    page.goto(f"{site.url}/errors")
    page.wait_for_selector(".confusion")
    choose(page, "mended")
    says(page, ".errors", "Only the slice 'mended' counts: 2 of the 6 labelled clips.")
    assert "100.0 % of 2 clips right" in page.inner_text(".errors .lede")
    page.wait_for_function("new URLSearchParams(location.search).get('slice') === 'mended'")
    other = open_page()
    other.goto(f"{page.url}&cell=confusion.1.1")
    other.wait_for_selector("#errors-drawer .clips tbody tr")
    assert other.locator("#errors-drawer .clips tbody tr").count() == 1
    link = other.get_by_role("link", name="Their traces").get_attribute("href")
    assert parse_qs(urlparse(link).query)["slice"] == ["mended"]
    other.goto(f"{site.url}/{link}")
    says(other, "#traces-list [role=status]", "1 trace")


@pytest.mark.parametrize("name, said", [
    ("cold", "has no trace of this run on this split"),
    pytest.param("gone", "There is no slice", marks=pytest.mark.thorough),
    pytest.param("breaks", "column_that_went", marks=pytest.mark.thorough),
])  # fmt: skip
def test_every_page_says_what_a_slice_cannot_give(page, site, name, said):
    asked = urlencode({"slice": name})
    page.goto(f"{site.url}/errors?{asked}")
    says(page, "body", f"{said}")
    assert page.get_by_label("Slice", exact=True).input_value() == name
    choose(page, "mended")
    page.wait_for_selector(".confusion")
    if name != "cold":
        page.goto(f"{site.url}/?{asked}")
        says(page, "#found [role=status]", said)
        page.wait_for_selector("video#player")


def test_watch_offers_the_clips_of_the_slice_and_opens_its_traces(page, site):
    page.goto(f"{site.url}/?slice=mended")
    page.wait_for_function("document.querySelectorAll('.card').length === 2")
    says(page, "#screen", "test-3")
    values = page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.value)")
    assert values == [f"{site.clips[i]} {site.traces[f'refined-{i}']}" for i in (3, 5)]
    page.locator(".card").nth(1).click()
    says(page, "#screen", "test-5")
    page.wait_for_function("(trace) => location.search.includes(trace)", arg=site.traces["refined-5"])
    assert "slice=mended" in page.url
    choose(page, "Any")
    page.wait_for_function("document.querySelectorAll('.card').length > 2 && !location.search.includes('slice')")


def test_rollouts_show_the_groups_that_the_slice_has_a_trace_of(page, site):
    where = {"tab": "rollouts", "run": site.runs["grpo"]}
    page.goto(f"{site.url}/runs?{urlencode({**where, 'slice': 'one clip'})}")
    page.wait_for_function("document.querySelectorAll('#runs-groups .group').length === 1")
    choose(page, "cold")
    says(page, "#runs-groups", "The slice 'cold' has no trace of update 1 of this run.")
    choose(page, "Any")
    page.wait_for_function("document.querySelectorAll('#runs-groups .group').length === 2")


@pytest.mark.thorough
def test_a_phone_has_the_box_too(open_page, site):
    page = open_page(width=390, dark=True)
    for path, there in (("/errors?slice=mended", ".confusion"), ("/watch?slice=mended", ".card")):
        page.goto(site.url + path)
        page.wait_for_selector(there)
        assert page.get_by_label("Slice", exact=True).input_value() == "mended"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
