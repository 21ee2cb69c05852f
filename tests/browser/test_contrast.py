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
  const inText = (node) => [...node.parentElement.childNodes].some(words);
  const wrong = targets.filter((one) => {
    if (!small(one) || inText(one.node)) return false;
    const x = one.box.x + one.box.width / 2, y = one.box.y + one.box.height / 2;
    return targets.some((other) => {
      if (other.node.contains(one.node) || one.node.contains(other.node)) return false;
      const b = other.box;
      if (small(other)) return Math.hypot(b.x + b.width / 2 - x, b.y + b.height / 2 - y) < 24;
      return Math.hypot(Math.max(b.x - x, 0, x - b.right), Math.max(b.y - y, 0, y - b.bottom)) < 12;
    });
  });
  return [...new Set(wrong.map(({ node, box }) =>
    `${box.width.toFixed()} x ${box.height.toFixed()} ${node.tagName} ${node.innerText || node.ariaLabel}`))];
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_of_every_page_can_be_read_and_what_is_pressed_is_large_enough(open_page, site, dark):
    page = open_page(dark=dark)
    faint, small = {}, {}
    for path, there in PAGES.items():
        page.goto(f"{site.url}/{path}")
        page.wait_for_selector(there)
        if found := page.evaluate(TOO_FAINT):
            faint[path] = found
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            if found := page.evaluate(TOO_SMALL):
                small[path, width] = found
    page.goto(f"{site.url}/runs?tab=jobs")
    page.get_by_role("button", name="Start a stage").click()
    page.locator("#runs-preview pre").wait_for()
    page.get_by_label("Other settings").fill("evaluate.bootstrap = -1")
    page.locator("#runs-preview [role=alert]").wait_for()
    faint |= {"a refusal": found} if (found := page.evaluate(TOO_FAINT)) else {}
    assert not faint and not small
