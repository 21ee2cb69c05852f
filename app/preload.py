"""The modules of Gradio that a page will ask for, named in its head: they come at once and not in four waves, each of
which is known only when the one before it has run.

Read from Gradio's own files (the tables that its bundler writes); where another version has none, nothing is named.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path

import gradio as gr

from deepintuit_app.html import document

_ASSETS = Path(gr.__file__).parent / "templates" / "frontend" / "assets"
_FILES = re.compile(r"m\.f=\[([^\]]*)\]")
_NAME = re.compile(r"[\w-]+\.(?:js|css)")
_COMPONENT = re.compile(r"\b(\w+):\{(?:(?:base|example):[^{}]*?,)*component:\(\)=>[^{}]*?mapDeps\(\[([\d,]*)\]\)")


def head(html: str) -> str:
    """What belongs into the head of a page of Gradio's: links to the modules that its components need."""
    entry = re.search(r"assets/(index-[\w-]+\.js)", html)
    return _links(entry[1], frozenset(re.findall(r'"type":"(\w+)"', html))) if entry else ""


@lru_cache(maxsize=64)
def _links(entry: str, kinds: frozenset[str]) -> str:
    names = [*_table(entry), *(name for file in _table(entry) if file.startswith("Index-") for name in _table(file))]
    for file in list(names):
        if file.startswith("core-"):
            names += [name for kind in sorted(kinds) for name in _components(file).get(kind, ())]
    late = [path.name for path in _ASSETS.glob("PlotlyPlot-*.js")] if "plot" in kinds else []
    files = dict.fromkeys(name for name in names if name != entry and not name.startswith("Login-"))
    return document("preload.html", names=files, late=late)


@cache
def _text(file: str) -> str:
    path = _ASSETS / file
    return path.read_text(encoding="utf-8") if file.endswith(".js") and path.is_file() else ""


@cache
def _table(file: str) -> list[str]:
    """The files that the dynamic imports of a module may need."""
    files = _FILES.search(_text(file))
    return _NAME.findall(files[1]) if files else []


@cache
def _components(file: str) -> dict[str, list[str]]:
    """Kind of component → the files that it needs."""
    table = _table(file)
    return {
        kind: [table[int(number)] for number in numbers.split(",") if number]
        for kind, numbers in _COMPONENT.findall(_text(file))
    }
