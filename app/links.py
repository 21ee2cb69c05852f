"""The address bar reproduces what is on screen: components of a page are tied to names in its query.

    def page(desk):
        run = gr.Dropdown(...); label = gr.Dropdown(...)
        links.bind({"run": run, "label": label}, restore).then(show, [run, label], ...)

On load, `restore(query, request)` gets the query as a dict of texts and returns one update a component: it decides
what is valid, so that a hand-written address can only choose, never inject. Whenever one of them changes, the address
follows without a reload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import gradio as gr

# Components also "change" while the page is drawn: until the address was read, nothing may be written over it.
_READ = "() => { window.deepintuitRead = true; }"
_WRITE = """(...values) => {{
  if (!window.deepintuitRead) return;
  const names = {names};
  const query = new URLSearchParams(window.location.search);
  names.forEach((name, i) => {{
    const value = values[i];
    const empty = [null, undefined, "", false].includes(value) || (Array.isArray(value) && !value.length);
    if (empty) query.delete(name);
    else query.set(name, Array.isArray(value) ? value.join(",") : String(value));
  }});
  const text = query.toString();
  window.history.replaceState(null, "", window.location.pathname + (text ? "?" + text : ""));
}}"""


def bind(
    components: Mapping[str, gr.components.Component],
    restore: Callable[[dict[str, str], gr.Request], Sequence[object]],
) -> gr.events.Dependency:
    """Tie components to query names. Returns the load event: chain `.then(show, …)` behind it to fill the page."""
    names, parts = list(components), list(components.values())

    def load(request: gr.Request):
        return restore(dict(request.query_params), request)

    write = _WRITE.format(names=names)
    for part in parts:
        part.change(None, inputs=parts, outputs=None, js=write, queue=False, show_progress="hidden")
    # Queued, for what `restore` has to say (an id that is gone): without the queue it goes to the server's log alone.
    loaded = gr.context.Context.root_block.load(load, None, parts, concurrency_limit=None, show_progress="hidden")
    loaded.then(None, None, None, js=_READ, queue=False, show_progress="hidden")
    return loaded
