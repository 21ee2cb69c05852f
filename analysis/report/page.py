"""One self-contained page: style, script and the pieces of HTML the cards are made of.

Nothing is fetched: Plotly's script stands in the page once, and the content security policy forbids the browser any
request. It also allows only the two scripts whose hashes it names, so that even an escaping mistake could not run.

Left out on purpose: templates by a library; `html.escape` and f-strings do for one page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from deepintuit_analysis.report.figures import DARK, LIGHT

_STYLE = """
:root { color-scheme: light dark;
  --ink: #22262b; --soft: #59616b; --line: #dfe3e8; --page: #ffffff; --card: #f6f8fa; --link: #1d5f99; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3abb5; --line: #353b43; --page: #15181c; --card: #1d2126; --link: #7fb6e6; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 2.5rem) 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .35rem; }
p, ul, dl { max-width: 46rem; margin: .4rem 0 .8rem; }
.lede { font-size: 1.1rem; max-width: 50rem; }
.soft, small, caption { color: var(--soft); }
a { color: var(--link); }
nav a { margin-right: 1.1em; white-space: nowrap; }
.scroll { overflow-x: auto; margin: .75rem 0; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .35rem .55rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td.text { text-align: left; white-space: normal; }
thead th { white-space: normal; font-weight: 600; border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 400; min-width: 11rem; }
tbody th.system { font-weight: 600; }
tr.system > * { border-top: 1px solid var(--soft); }
th.method { padding-left: 1.5rem; } th.control { padding-left: 2.5rem; color: var(--soft); }
td small { display: block; font-size: .88em; line-height: 1.2; }
.figures { display: grid; gap: 1.5rem 2rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; min-width: 0; break-inside: avoid; } figure.wide { grid-column: 1 / -1; }
figcaption { font-weight: 600; font-size: .98rem; line-height: 1.35; }
figcaption small { display: block; font-weight: 400; }
pre { margin: .4rem 0 .8rem; padding: .8rem 1rem; background: var(--card); border-radius: 6px; overflow-x: auto;
  font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre.trace { white-space: pre-wrap; max-height: 22rem; overflow-y: auto; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .9em; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1.25rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
details { margin: .4rem 0; } summary { cursor: pointer; }
.examples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
.examples article { min-width: 0; break-inside: avoid; }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --card: #f4f4f4; --link: #000; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } nav { display: none; }
  .scroll, pre, pre.trace { overflow: visible; max-height: none; white-space: pre-wrap; }
  table { font-size: 7.5pt; } th, td { padding: .2rem .35rem; } tbody th { min-width: 0; }
  thead { display: table-header-group; }
  h2, h3 { break-after: avoid; } tr, pre { break-inside: avoid; }
  .figures { grid-template-columns: 1fr; } }
"""

_SCRIPT = """
"use strict";
const page = JSON.parse(document.getElementById("figure-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw(isDark) {
  for (const [id, figure] of Object.entries(page.figures))
    Plotly.react(id, figure.data, {...figure.layout, template: isDark ? page.dark : page.light},
      {responsive: true, displayModeBar: false});
}
draw(dark.matches);
dark.addEventListener("change", () => draw(dark.matches));
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  draw(false);
});
addEventListener("afterprint", () => draw(dark.matches));
"""


def document(title: str, body: str, figures: Mapping[str, go.Figure]) -> str:
    """The whole page. `body` is HTML whose foreign texts are escaped; `figures` go by the name given to `figure`."""
    plotly = get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script") if figures else ""
    script = _SCRIPT if figures else ""
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {' '.join(_hash(text) for text in (plotly, script))}"
    )
    data = {
        "figures": {f"figure-{name}": _untitled(figure) for name, figure in figures.items()},
        "light": LIGHT.to_plotly_json(),
        "dark": DARK.to_plotly_json(),
    }
    scripts = (
        f'<script type="application/json" id="figure-data">{_json(data)}</script>\n<script>{plotly}</script>\n'
        f"<script>{script}</script>\n"
        if figures
        else ""
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"{scripts}</body>\n</html>\n"
    )


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _untitled(figure: go.Figure) -> dict[str, Any]:
    """The figure without the title, which the page sets as a caption: there it wraps at any width."""
    plain = json.loads(figure.to_json())
    layout = plain["layout"]
    spare = layout["margin"]["t"] - 44
    layout |= {"title": {"text": ""}, "height": layout["height"] - spare, "margin": {**layout["margin"], "t": 44}}
    layout.pop("template", None)
    return plain


def figure(name: str, drawn: go.Figure, note: str = "", wide: bool = False) -> str:
    """The place of a figure, its title as caption. `note` is text."""
    title = escape(str(drawn.layout.meta))
    below = f"<small>{escape(note)}</small>" if note else ""
    return (
        f'<figure class="{"wide" if wide else "half"}"><figcaption>{title}{below}</figcaption>'
        f'<div id="figure-{escape(name)}" role="img" aria-label="{title}"></div></figure>'
    )


def table(caption: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table that scrolls by finger and by keyboard. `heads` are texts; rows are (row class, cells as HTML), the first
    cell a row header."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(f'<tr class="{escape(kind)}">{"".join(cells)}</tr>' for kind, cells in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def row_head(text: str, kind: str = "") -> str:
    return f'<th scope="row" class="{escape(kind)}">{escape(text)}</th>'


def cell(text: str, below: str = "", kind: str = "") -> str:
    small = f"<small>{escape(below)}</small>" if below else ""
    return (f'<td class="{kind}">' if kind else "<td>") + f"{escape(text)}{small}</td>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Name and value, both text."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"
