"""What is on screen calls a quantity by its one name: pages, run card and figures of the small workbench."""

import html
import re
from io import StringIO
from urllib.parse import urlencode

import pytest
from rich.console import Console
from test_words import others

from deepintuit_analysis.index import answers
from deepintuit_analysis.report import markdown_table, multi_seed_table, run_card, sentence, terminal_table
from deepintuit_analysis.report.gather import tabulate
from deepintuit_analysis.report.results import CONTROLS, METHODS
from deepintuit_analysis.report.text import NAMES
from deepintuit_app import analysis

# How methods and controls are stored, and what they were called beside their names: a person reads neither.
STORED = re.compile(rf"label.likelihoods?|conclusion none|\b({'|'.join((*METHODS, *CONTROLS))})\b(?! over traces)")
ON_SCREEN = """() => {
  const outside = "pre, code, textarea, script, style, [hidden], #runs-details dl, #runs-details table, .settings";
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const seen = !node.closest(outside) && (node.checkVisibility() || node.closest("svg"));
    if (seen) texts.push(walker.currentNode.textContent.trim());
  }
  document.querySelectorAll("[title], [aria-label], [placeholder], input").forEach((node) =>
    texts.push(node.title, node.ariaLabel, node.placeholder, node.type === "hidden" ? "" : node.value));
  return texts.filter(Boolean);
}"""


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


def test_no_page_shows_a_method_or_a_control_as_it_is_stored(page, site):
    """Settings, paths and commands aside, which are written as they are typed."""
    both = ",".join((site.runs["evaluate-cold"], site.runs["evaluate-refined"]))
    pages = {
        "": ".uses",
        f"watch?{urlencode({'clip': site.clips[1], 'trace': site.traces['refined-1']})}": "#verdict .bars",
        "traces": "#traces-list tbody tr",
        f"traces?trace={site.traces['refined-1']}": "#traces-detail header",
        "review": "#review form",
        f"errors?compare={site.runs['evaluate-cold']}&cell=true.1": "#errors-drawer .clips",
        "errors?method=provisional": ".confusion",
        f"runs?compare={both}": "#runs-compare table",
        f"runs?tab=details&run={site.runs['evaluate-refined']}": "#runs-details article",
        f"runs?tab=training&run={site.runs['grpo']}": "#runs-curves .scatterlayer path",
        f"runs?tab=rollouts&run={site.runs['grpo']}": "#runs-group article",
        "runs?tab=jobs": "#runs-jobs .empty",
        "sql": "#sql-box textarea",
    }
    wrong = {}
    for path, there in pages.items():
        page.goto(f"{site.url}/{path}")
        page.locator(there).first.wait_for(state="attached")
        texts = page.evaluate(ON_SCREEN)
        assert len(texts) > 15, path
        bad = [text for text in texts if STORED.search(text) or others(text)]
        wrong |= {path: bad} if bad else {}
    assert not wrong


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
