"""The nearest clips and the map in a real browser: from a clip to its neighbours, from a lasso to a saved slice."""

import shutil

import numpy as np
import pytest
from conftest import CALIBRATED, TRUE, serve

from deepintuit.embeddings import Space
from deepintuit_analysis import Workbench

POINTS = """(ids) => {
  const plot = document.querySelector("#errors-map .js-plotly-plot"), { xaxis, yaxis } = plot._fullLayout;
  plot.scrollIntoView({ block: "center" });
  return plot._fullData.flatMap((group) => Array.from(group.customdata, (id, k) => [id, group.x[k], group.y[k]]))
    .filter(([id]) => ids.includes(id)).map(([, x, y]) => [xaxis.d2p(x), yaxis.d2p(y)]);
}"""
"""Where the points of clips lie within the plot, in pixels."""


def draw(page, clip_ids) -> None:
    """A lasso around the points of these clips, wherever they lie."""
    points = page.evaluate(POINTS, clip_ids)
    assert len(points) == len(clip_ids)
    box = page.locator("#errors-map .nsewdrag").first.bounding_box()
    (left, top), (right, bottom) = np.min(points, 0) - 12, np.max(points, 0) + 12
    page.mouse.move(box["x"] + left, box["y"] + top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
        page.mouse.move(box["x"] + x, box["y"] + y, steps=6)
    page.mouse.up()


@pytest.fixture(scope="module")
def embedded(site, tmp_path_factory):
    """The same workbench with embeddings: the first three test clips on one side, the other three on the other."""
    folder = tmp_path_factory.mktemp("alike") / "workbench"
    shutil.copytree(site.workbench.path, folder)
    space = Space(folder, {"name": "tower <b>x</b>", "recipe": [1]})
    vectors = np.array([[9, 9, 8], [9, 8, 9], [8, 9, 9], [-9, -9, -8], [-9, -8, -9], [-8, -9, -9]], np.float32)
    with space.writing():
        space.add(site.clips, vectors)
        space.arrange()
    with serve(folder) as url:
        yield url, Workbench(folder)


@pytest.mark.thorough
def test_without_embeddings_both_pages_name_the_command(page, site):
    page.goto(f"{site.url}/watch?clip={site.clips[0]}")
    page.wait_for_selector("#alike .empty")
    assert "deepintuit embed" in page.inner_text("#alike")
    page.goto(f"{site.url}/errors?cell=true.0&clip={site.clips[0]}")
    page.wait_for_selector("#errors-drawer video")
    assert page.locator("#errors-drawer .empty", has_text="deepintuit embed").count() == 1
    page.wait_for_selector(".errors .empty >> text=deepintuit embed")
    assert page.locator("#errors-map .js-plotly-plot").count() == 0


def test_a_clip_has_its_nearest_beside_it_on_both_pages(page, site, embedded):
    url, _ = embedded
    page.goto(f"{url}/watch?clip={site.clips[1]}&trace={site.traces['refined-1']}")
    page.wait_for_selector("#alike .card")
    cards = page.locator("#alike .card")
    assert cards.count() == 5 and "tower <b>x</b>" in page.inner_text("#alike")
    names = cards.locator(".name").all_inner_texts()
    assert set(names[:2]) == {"test-0", "test-2"} and "test-1" not in names
    marks = {name.split(".")[0][:6]: card for name, card in zip(names, cards.all_inner_texts())}
    for number, (true, answer) in enumerate(zip(TRUE, CALIBRATED)):
        if number != 1:
            assert f"{'✓' if true == answer else '✗'} {answer}" in marks[f"test-{number}"]
    cards.first.click()
    page.wait_for_function(f"!location.search.includes('{site.clips[1]}')")
    page.goto(f"{url}/errors?cell=clip.{site.clips[1]}&clip={site.clips[1]}")
    page.wait_for_selector("#errors-drawer .card")
    assert page.locator("#errors-drawer .card").count() == 5
    assert "watch?clip=" in page.locator("#errors-drawer .card").first.get_attribute("href")


def test_a_lasso_on_the_map_becomes_a_slice(page, site, embedded):
    url, workbench = embedded
    page.goto(f"{url}/errors?colour=right")
    page.locator("#errors-by").scroll_into_view_if_needed()  # figures are drawn when somebody comes near
    page.wait_for_selector("#errors-map .js-plotly-plot .nsewdrag")
    page.wait_for_function("document.querySelector('#errors-map .js-plotly-plot')?.data?.length === 2")
    for _ in range(10):  # the page may still move while it is drawn
        draw(page, site.clips[:3])
        if page.locator("#errors-chosen .card").count() == 3:
            break
        page.wait_for_timeout(1000)
    assert page.locator("#errors-chosen .card").count() == 3
    assert "3 clips chosen" in page.inner_text("#errors-chosen")
    page.get_by_label("Save the chosen clips as a slice called").fill("left side")
    page.get_by_role("button", name="Save slice").click()
    page.wait_for_selector("text=Saved as left side")
    assert sorted(workbench.slice("left side").clips()["clip_id"]) == sorted(site.clips[:3])
    page.goto(f"{url}/errors?slice=left+side")
    page.wait_for_selector(".confusion")
    assert "3 of the 6" in page.inner_text(".errors")
