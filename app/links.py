"""The address bar reproduces what is on screen: components of a page are tied to names in its query.

    def page(context):
        run = gr.Dropdown(...); label = gr.Dropdown(...)
        links.bind({"run": run, "label": label}, restore).then(show, [run, label], ...)

On load, `restore(query, request)` gets the query as a dict of texts and returns one update a component: it decides
what is valid, so that a hand-written address can only choose, never inject. Whenever one of them changes, the address
follows without a reload. What a person chose (`choices`: a clip, a cell, a run) becomes an entry of the browser's
history, one for each click or key, and Back restores the one before; what is typed or dragged replaces the last entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs

import gradio as gr

# Components also "change" while the page is drawn: until the address was read, nothing may be written over it.
_READ = "() => { window.deepintuitRead = true; }"
_FILLED = """() => {
  ["inert", "aria-busy"].forEach((name) => document.querySelector("gradio-app").removeAttribute(name));
  window.dispatchEvent(new Event("deepintuit-filled"));
}"""
FILLED = {"fn": None, "js": _FILLED, "show_progress": "hidden"}
"""The event behind the one that first fills a page: what came with its HTML (frame.py) can be pressed now, and nothing
stands any more where something was to come."""
_SEARCH = "() => { window.deepintuitAsked = true; return [window.location.search]; }"
_WRITE = """(...values) => {{
  if (!window.deepintuitRead) return;
  const names = {names}, defaults = {defaults}, spelled = {spelled};
  const query = new URLSearchParams(window.location.search);
  names.forEach((name, i) => {{
    const value = spelled[name] ? values[i]?.replace(/[^/]*$/, (word) => spelled[name][word] ?? word) : values[i];
    const empty = [null, undefined, "", false].includes(value) || (Array.isArray(value) && !value.length);
    if (empty || String(value) === defaults[name]) query.delete(name);
    else query.set(name, Array.isArray(value) ? value.join(",") : String(value));
  }});
  const text = query.toString(), address = window.location.pathname + (text ? "?" + text : "");
  if (address === window.location.pathname + window.location.search) return;
  // `deepintuitActed` (app.js): a click or key that has not become an entry yet. What the server fills in replaces.
  if ({choice} && window.deepintuitActed) {{
    window.deepintuitActed = false;
    window.history.pushState(null, "", address);
  }} else window.history.replaceState(null, "", address);
}}"""


def bind(
    components: Mapping[str, gr.components.Component],
    restore: Callable[[dict[str, str], gr.Request], Sequence[object]],
    *,
    choices: Sequence[str] = (),
    defaults: Mapping[str, str] | None = None,
    also: Sequence[gr.components.Component] = (),
    spelled: Mapping[str, Mapping[str, str]] | None = None,
) -> gr.events.Dependency:
    """Tie components to query names. Returns the load event, which comes again with Back: chain `.then(show, …)` behind
    it to fill the page. `choices`: names that make entries of the history. `defaults`: values, as text, that the
    address leaves out. `also`: what `restore` fills behind them, and no address holds. `spelled`: for a name the words
    of its values, or of what stands behind their last '/', as the address has them; `restore` reads both."""
    names, parts = list(components), list(components.values())
    search = gr.Textbox(visible="hidden", label="Address")
    # Clicked by app.js: on Back and Forward, and once where the page was drawn but its load event never came.
    again = gr.Button("Read the address again", visible="hidden", elem_id="read-address")

    def load(text: str, request: gr.Request):
        query = parse_qs(str(text or "").removeprefix("?"))
        return restore({name: values[-1] for name, values in query.items()}, request)

    for name, part in components.items():
        choice = "true" if name in choices else "false"
        write = _WRITE.format(
            names=json.dumps(names),
            defaults=json.dumps(dict(defaults or {})),
            choice=choice,
            spelled=json.dumps(spelled or {}),
        )
        part.change(None, inputs=parts, outputs=None, js=write, queue=False, show_progress="hidden")
    # Queued, for what `restore` has to say (an id that is gone): without the queue it goes to the server's log alone.
    loaded = gr.on(
        [gr.context.Context.root_block.load, again.click], load, search, [*parts, *also], js=_SEARCH,
        concurrency_limit=None, show_progress="hidden", trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip
    loaded.then(None, None, None, js=_READ, queue=False, show_progress="hidden")
    return loaded
