"""Pieces of HTML that the pages are made of. Everything that a model, a file or a person wrote goes through `esc`.

`gr.HTML` sanitises nothing and reads its value as a template: besides the markup characters, `esc` disarms those that
Handlebars and JavaScript templates would interpret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlencode

from deepintuit_analysis.render import renderer

_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


def esc(text: object) -> str:
    """Text as text, wherever it lands in an element or in a quoted attribute. None is empty."""
    return "" if text is None else escape(str(text), quote=True).translate(_TEMPLATE)


_ABSOLUTE = re.compile(r"/|\\\\|[A-Za-z]:[\\/]")


def without_places(value: Any, *roots: str | Path) -> Any:
    """A stored value as it is shown, mappings and lists inside too: of an absolute path the part inside one of the
    workbench's folders `roots`, else its name; a sentence as of `without_roots`."""
    if isinstance(value, Mapping):
        return {key: without_places(one, *roots) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(one, *roots) for one in value]
    if not isinstance(value, str):
        return value
    if _ABSOLUTE.match(value):
        path = PurePosixPath(value.replace("\\", "/"))
        root = next((root for root in roots if path.is_relative_to(root)), path)
        return path.name if path == PurePosixPath(root) else str(path.relative_to(root))
    if value.startswith("--") and "=" in value:
        option, _, given = value.partition("=")
        return f"{option}={without_places(given, *roots)}"
    return without_roots(value, *roots)


def without_roots(text: str, *roots: str | Path) -> str:
    """A sentence or a log with paths inside the workbench's folders as they are called there."""
    for root in filter(None, (str(root).rstrip("/") for root in roots)):
        text = text.replace(f"{root}/", "").replace(root, PurePosixPath(root).name)
    return text


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element; attribute values are escaped, `content` is HTML already. `class_` is class, `data_x` is data-x."""
    shown = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{esc(value)}"')
        for key, value in attributes.items()
        if value not in (None, False)
    )
    return f"<{name}{shown}>" + ("" if name in {"br", "hr", "img", "input"} else f"{content}</{name}>")


def link(text: object, page: str, **query: object) -> str:
    """A link to one of our pages, its state in the address."""
    return tag("a", esc(text), href=address(page, **query))


def address(page: str, **query: object) -> str:
    """The address of a page in a state, as seen from any page; the first, `watch`, lives at the root."""
    known = {key: value for key, value in query.items() if value not in (None, "", [])}
    return ("./" if page == "watch" else page) + (f"?{urlencode(known, doseq=True)}" if known else "")


def badge(text: object, kind: str = "plain", title: str | None = None) -> str:
    """A small word on a ground: kinds are plain, good, bad, warn."""
    return tag("span", esc(text), class_=f"badge {kind}", title=title)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", **attributes: object) -> str:
    """Cells are HTML already; heads and caption are text. The first cell of a row names it."""
    head = "".join(tag("th", esc(text), scope="col") for text in heads)
    body = "".join(
        "<tr>" + "".join(tag("td", cell) if i else tag("th", cell, scope="row") for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    title = tag("caption", esc(caption)) if caption else ""
    inside = f"{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return tag("div", tag("table", inside, **attributes), class_="scroll")


def empty(what: str, todo: str = "", command: str = "") -> str:
    """An empty state: what is missing, and what to run."""
    code = tag("pre", esc(command)) if command else ""
    return tag("div", tag("p", tag("strong", esc(what))) + (tag("p", esc(todo)) if todo else "") + code, class_="empty")


def facts(pairs: Mapping[str, object]) -> str:
    """Name and value, one a line; values are text."""
    shown = ((name, value) for name, value in pairs.items() if value is not None)
    return tag("dl", "".join(tag("dt", esc(name)) + tag("dd", esc(value)) for name, value in shown))


render = renderer(Path(__file__).parent / "templates", address=address)
