"""What is on screen calls a quantity by its one name: pages, run card and figures of the small workbench."""

import html
import re
from io import StringIO
from urllib.parse import urlencode

import pytest
from rich.console import Console
from test_words import others

from deepintuit_analysis.report import markdown_table, multi_seed_table, run_card, sentence, terminal_table
from deepintuit_analysis.report.gather import tabulate


def test_tables_and_run_card_have_one_name_for_a_quantity(site):
    ids = [site.runs["evaluate-cold"], site.runs["evaluate-refined"]]
    rows = tabulate(site.workbench, ids).rows
    console = Console(width=140, file=StringIO())
    console.print(terminal_table(rows, 140))
    card = re.sub(r"<script>.*?</script>", "", run_card(site.workbench, ids).read_text("utf-8"), flags=re.DOTALL)
    texts = [card, console.file.getvalue(), markdown_table(rows), multi_seed_table({0: [row.measured for row in rows]})]
    for text in [*texts, *map(sentence, rows)]:
        assert not others(html.unescape(text))
    for text in texts:
        assert "provisional label" in text.casefold()
    assert "Fixed / broken" in card and "fixed /" in console.file.getvalue()


@pytest.mark.parametrize(
    ("path", "there", "names"),
    [
        ("errors", ".confusion", ["provisional label", "fixed", "broken", "confidence"]),
        ("traces", "#traces-list [role=status]", ["provisional", "calibrated", "token confidence"]),
        ("runs", "#runs-list table", ["provisional"]),
        ("watch", "#verdict .bars", ["provisional label", "calibrated label"]),
    ],
)
def test_pages_have_one_name_for_a_quantity(page, site, path, there, names):
    query = {"clip": site.clips[1], "trace": site.traces["refined-1"]} if path == "watch" else {}
    page.goto(f"{site.url}/{path}?{urlencode(query)}")
    page.wait_for_selector(there)
    shown = page.locator("body").inner_text()
    titles = page.locator("[title]").evaluate_all("all => all.map(one => one.title)")
    for text in (shown, *titles):
        assert not others(text)
    for name in names:
        assert name in shown.casefold(), name
