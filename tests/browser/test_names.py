"""What is on screen calls a quantity by its one name: pages, run card and figures of the small workbench."""

import html
import re
from io import StringIO

from rich.console import Console
from test_words import others

from deepintuit_analysis.index import answers
from deepintuit_analysis.report import markdown_table, multi_seed_table, run_card, sentence, terminal_table
from deepintuit_analysis.report.gather import tabulate
from deepintuit_analysis.report.results import METHODS
from deepintuit_analysis.report.text import NAMES
from deepintuit_app import analysis


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


def test_an_address_calls_a_label_by_its_name_or_as_it_is_stored(site):
    found = answers.sources(site.workbench)
    for method, wishes in {
        "raw": ("raw", "provisional", "provisional label"),
        "label_likelihood": ("label_likelihood", "label likelihood", "calibrated", "calibrated label"),
    }.items():
        for wish in wishes:
            system = f"{site.runs['evaluate-cold']}/cold start"
            choice, _ = analysis.choose(found, analysis.Choice(method=wish, compare=f"{system}/provisional label"))
            assert (choice.method, choice.compare) == (method, f"{system}/raw")
    assert len({NAMES[method] for method in METHODS}) == len(METHODS)
