"""Text on every page stands out from its ground by WCAG AA, in light and dark, and what is pressed is large enough."""

import pytest

PAGES = {
    "": ".uses", "watch": "#verdict .bars", "traces": "#traces-list tbody tr", "review": "#review form",
    "errors": ".errors .confusion", "runs": "#runs-list tbody tr", "sql": "#sql-box textarea", "nothing": "main",
}  # fmt: skip
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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_of_every_page_can_be_read(open_page, site, dark):
    page = open_page(dark=dark)
    faint = {}
    for path, there in PAGES.items():
        page.goto(f"{site.url}/{path}")
        page.wait_for_selector(there)
        if found := page.evaluate(TOO_FAINT):
            faint[path] = found
    assert not faint
