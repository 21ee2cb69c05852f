"""What holds on every page and in its states, looked at in one walk: text stands out from its ground by WCAG AA in
light and dark, what is pressed is large enough, headings are in order, nothing is wider than the screen, and a quantity
has one name."""

import json
import re
import urllib.request
from urllib.parse import urlencode

import pytest
from test_words import others

from deepintuit_analysis.report.results import CONTROLS, METHODS
from deepintuit_app import frame

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
TOO_FAINT = """() => {
  const parse = (text) => {
    const once = () => document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const canvas = window.contrastCanvas ||= once();
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (rgb) => rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    const layers = [];
    for (let one = node; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), over(parse("Canvas"), [1, 1, 1]));
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (node.closest("script, style, noscript, :disabled, [aria-hidden=true], svg, video")) continue;
    const style = getComputedStyle(node), below = ground(node);
    const above = over(parse(style.color), below), [a, b] = [light(above), light(below)].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio >= (large ? 3 : 4.5)) continue;
    found.push(`${ratio.toFixed(2)} ${node.tagName}.${node.className} ${text.slice(0, 40)}`);
  }
  return [...new Set(found)];
}"""

# WCAG 2.2, 2.5.8: smaller than 24 px and, drawn as a circle of 24 px, on another target. Links inside text may be.
TOO_SMALL = """() => {
  const pressed = "a[href], button, input, select, textarea, summary, [role=tab], [role=button]";
  const seen = { opacityProperty: true, visibilityProperty: true };
  const targets = [...document.querySelectorAll(pressed)]
    .filter((node) => node.checkVisibility(seen) && !node.disabled && !node.closest("[aria-hidden=true], svg"))
    .map((node) => ({ node, box: node.getBoundingClientRect() }))
    .filter(({ box }) => box.width > 1 && box.height > 1);
  const small = ({ box }) => Math.min(box.width, box.height) < 23.5;
  const words = (one) => one.nodeType === Node.TEXT_NODE && /\\w{2,}/.test(one.textContent);
  const over = (node) => Boolean(node.closest("#errors-drawer, #traces-detail-column"));
  const inText = (node) => [...node.parentElement.childNodes].some(words);
  const wrong = targets.filter((one) => {
    if (!small(one) || inText(one.node)) return false;
    const x = one.box.x + one.box.width / 2, y = one.box.y + one.box.height / 2;
    return targets.some((other) => {
      if (other.node.contains(one.node) || one.node.contains(other.node)) return false;
      if (over(other.node) !== over(one.node)) return false; // what lies over the page hides it
      const b = other.box;
      if (small(other)) return Math.hypot(b.x + b.width / 2 - x, b.y + b.height / 2 - y) < 24;
      return Math.hypot(Math.max(b.x - x, 0, x - b.right), Math.max(b.y - y, 0, y - b.bottom)) < 12;
    });
  });
  return [...new Set(wrong.map(({ node, box }) =>
    `${box.width.toFixed()} x ${box.height.toFixed()} ${node.tagName} ${node.innerText || node.ariaLabel}`))];
}"""

# Levels that leave one out, and another number of first headings than one.
DISORDER = """() => {
  const seen = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter((node) => node.checkVisibility());
  const level = (node) => Number(node.tagName[1]), first = seen.filter((node) => level(node) === 1).length;
  const gaps = seen.filter((node, i) => level(node) > (i ? level(seen[i - 1]) : 0) + 1);
  return [...(first === 1 ? [] : [`${first} h1`]), ...gaps.map((node) => `${node.tagName} ${node.innerText}`)];
}"""
# What makes the page scroll sideways, and tables that are cut without a sign that they scroll.
TOO_WIDE = """() => {
  const cut = [...document.querySelectorAll("table")].filter((node) => {
    const box = node.checkVisibility() && node.parentElement;
    return box && box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).animationName !== "more";
  });
  const wide = document.documentElement.scrollWidth > innerWidth ? ["the page"] : [];
  return [...wide, ...cut.map((node) => `table ${node.className || node.ariaLabel || node.innerText}`)];
}"""
DRAWN_IN = """(theme) => {
  const ours = !document.querySelector("gradio-app"), dark = document.body.classList.contains("dark");
  const moving = document.getAnimations().some((one) => one instanceof CSSTransition);
  return (ours || dark === (theme === "dark")) && !moving;
}"""
NAMES = {
    "errors?method=provisional": ("provisional label", "confidence"),
    "errors": ("provisional label", "fixed", "broken", "confidence"),
    "traces": ("provisional", "calibrated", "token confidence"),
    "runs": ("provisional",),
    "watch": ("provisional label", "calibrated label"),
}


def states(site) -> dict[str, str]:
    """Address → what is there once it is drawn, with semicolons between."""
    cell = urlencode({"cell": "true.1", "clip": site.clips[2]})
    both = ",".join((site.runs["evaluate-cold"], site.runs["evaluate-refined"]))
    return {
        "": ".uses",
        f"watch?{urlencode({'clip': site.clips[1], 'trace': site.traces['refined-1']})}": "#verdict .bars",
        "traces": "#traces-list tbody tr",
        f"traces?trace={site.traces['refined-1']}": "#traces-detail header",
        "review": "#review form",
        f"errors?compare={site.runs['evaluate-cold']}&{cell}": "#errors-drawer .trace; .confusion",
        "errors?method=provisional": ".confusion",
        f"runs?compare={both}": "#runs-compare table",
        f"runs?tab=details&run={site.runs['evaluate-refined']}": "#runs-details article",
        f"runs?tab=training&run={site.runs['grpo']}": "#runs-curves .main-svg",
        f"runs?tab=rollouts&run={site.runs['grpo']}": "#runs-group article",
        "runs?tab=jobs": "#runs-jobs .empty",
        "sql": "#sql-box textarea",
        "nothing": "main",
    }


@pytest.fixture(scope="module")
def walk(browser, site):
    """Address → kind of finding → what was found."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(45_000)
    seen = {}
    for path, there in states(site).items():
        page.goto(f"{site.url}/{path}")
        for part in there.split("; "):
            page.locator(part).first.wait_for()
        if path == "runs?tab=jobs":
            page.get_by_role("button", name="Start a stage").click()
            page.locator("#runs-preview pre").wait_for()
            page.get_by_label("Other settings").fill("evaluate.bootstrap = -1")
            page.locator("#runs-preview [role=alert]").wait_for()
        found = seen[path] = {"texts": page.evaluate(ON_SCREEN), "disorder": page.evaluate(DISORDER)}
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            page.wait_for_function(DRAWN_IN, arg=theme)
            found[f"faint, {theme}"] = page.evaluate(TOO_FAINT)
        page.emulate_media(color_scheme="light")
        for width in (390, 820, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            found[f"small, {width}"], found[f"wide, {width}"] = page.evaluate(TOO_SMALL), page.evaluate(TOO_WIDE)
    page.context.close()
    return seen


def found(walk, kind: str) -> dict:
    return {(path, name): what for path, seen in walk.items() for name, what in seen.items() if kind in name and what}


def test_text_of_every_page_stands_out_from_its_ground_in_light_and_dark(walk):
    assert not found(walk, "faint")


def test_what_is_pressed_is_large_enough_or_stands_apart_on_every_page(walk):
    assert not found(walk, "small")


def test_every_page_has_one_first_heading_and_leaves_no_level_out(walk):
    assert not found(walk, "disorder")


def test_no_page_is_wider_than_the_screen_and_wide_tables_show_that_they_scroll(walk):
    assert not found(walk, "wide")


def test_no_page_shows_a_method_or_a_control_as_it_is_stored_or_another_word_for_a_quantity(walk):
    """Settings, paths and commands aside, which are written as they are typed."""
    wrong = {}
    for path, seen in walk.items():
        assert len(seen["texts"]) > 10, path
        bad = [text for text in seen["texts"] if STORED.search(text) or others(text)]
        wrong |= {path: bad} if bad else {}
    assert not wrong


@pytest.mark.parametrize("page_of", NAMES)
def test_pages_have_one_name_for_a_quantity(walk, page_of):
    shown = [" ".join(seen["texts"]).casefold() for path, seen in walk.items() if path.startswith(page_of)]
    assert shown and all(name in text for name in NAMES[page_of] for text in shown[:1])


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("traces", {"traces-list": "</tbody>"}),
        ("runs", {"runs-list": "</tbody>"}),
        ("watch", {"verdict": "bars", "screen": "<video"}),
        ("errors", {"errors-summary": "clips right", "errors-confusion-table": "</tbody>"}),
    ],
)
def test_the_first_answer_holds_what_a_page_is_opened_for_and_no_tag_that_a_trace_wrote(site, monkeypatch, path, shown):
    monkeypatch.setattr(frame, "_MOMENT", 60)
    query = {"trace": site.traces["hostile"]} if path in ("traces", "watch") else {}
    request = urllib.request.Request(f"{site.url}/{path}?{urlencode(query)}", headers={"Accept": "text/html"})
    text = urllib.request.urlopen(request, timeout=60).read().decode().partition("window.gradio_config = ")[2]
    config, end = json.JSONDecoder().raw_decode(text)
    values = {one["props"].get("elem_id"): one["props"].get("value") for one in config["components"]}
    assert all(part in values[name] for name, part in shown.items())
    assert "<" not in text[:end] and text[end:].lstrip(";").startswith("</script>") and "<gradio-app inert" in text
    monkeypatch.setattr(frame, "_MOMENT", 0)
    assert b"<gradio-app inert" not in urllib.request.urlopen(request, timeout=60).read()
