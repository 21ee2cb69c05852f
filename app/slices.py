"""The choice of a saved slice: the same box, words and `?slice=NAME` on every page that chooses clips or traces.

part = slices.box()                                                  # links.bind({"slice": part, …}, restore)
gr.Dropdown(choices=slices.offered(context.workbench, name), value=name)

empty(*slices.sentences(error))                                      # a slice that cannot be asked, or has nothing
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from deepintuit.errors import DeepIntuitError
from deepintuit_analysis import Workbench

NONE_SAVED = "None saved"


def box(min_width: int = 150, **settings: Any) -> gr.Dropdown:
    return gr.Dropdown([("Any", "")], value="", label="Slice", filterable=False, min_width=min_width, **settings)


def offered(workbench: Workbench, *in_use: str | None) -> list[tuple[str, str]]:
    """What can be chosen, as (words, value). Those `in_use` are among it even when they are gone: the page says so."""
    names = dict.fromkeys([*(entry.name for entry in workbench.slices()), *filter(None, in_use)])
    return [("Any" if names else NONE_SAVED, ""), *((name, name) for name in names)]


def sentences(error: DeepIntuitError) -> tuple[str, str]:
    """What cannot be and why, and what to do."""
    what, todo = (beat[:1].upper() + beat[1:] for beat in (error.what, error.todo.rstrip(".")))
    return f"{what}: {error.why.rstrip('.')}.", f"{todo}."
