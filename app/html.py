"""HTML by the templates of `templates/`, the addresses of pages, and paths as they are shown.

    render("watch/strip.html", clips=found, count=count, picked=clip_id)

What a model, a file or a person wrote is escaped wherever it lands (`deepintuit_analysis.render`); the templates also
know `address`, and `number` and `interval` of the report.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlencode

from deepintuit_analysis.numbers import interval, number
from deepintuit_analysis.render import renderer

_ABSOLUTE = re.compile(r"/|\\\\|[A-Za-z]:[\\/]")


def without_places(value: Any, *roots: str | Path) -> Any:
    """A stored value as it is shown, mappings and lists inside too: of an absolute path the part inside one of the
    workbench's folders `roots`, else its name; a sentence as of `without_roots`."""
    if isinstance(value, Mapping):
        return {key: without_places(item, *roots) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(item, *roots) for item in value]
    if not isinstance(value, str):
        return value
    if _ABSOLUTE.match(value):
        path = PurePosixPath(value.replace("\\", "/"))
        root = next((root for root in roots if path.is_relative_to(root)), path)
        return path.name if path == PurePosixPath(root) else str(path.relative_to(root))
    if value.startswith("--") and "=" in value:
        option, _, text = value.partition("=")
        return f"{option}={without_places(text, *roots)}"
    return without_roots(value, *roots)


def without_roots(text: str, *roots: str | Path) -> str:
    """A sentence or a log with paths inside the workbench's folders as they are called there."""
    for root in filter(None, (str(root).rstrip("/") for root in roots)):
        text = text.replace(f"{root}/", "").replace(root, PurePosixPath(root).name)
    return text


def address(page: str, **query: object) -> str:
    """The address of a page in a state, as seen from any page."""
    state = {key: value for key, value in query.items() if value not in (None, "", [])}
    return page + (f"?{urlencode(state, doseq=True)}" if state else "")


_TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"
_VERSION = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(STATIC.iterdir()))).hexdigest()[:12]


def static(name: str) -> str:
    """The address of a file of ours, another one whenever one of them has changed: browsers keep what it gives."""
    return f"static-app/{name}?v={_VERSION}"


_KNOWN = {"address": address, "number": number, "interval": interval, "static": static}
render = renderer(_TEMPLATES, **_KNOWN)
document = renderer(_TEMPLATES, interpreted=False, **_KNOWN)
"""For whole pages of our own, which Gradio never reads."""


def empty(missing: object, todo: str = "", command: str = "") -> str:
    """An empty state: what is missing, and what to run."""
    return render("empty.html", what=missing, todo=todo, command=command)


def note(text: object, kind: str = "quiet", role: str = "") -> str:
    """A sentence by itself."""
    return render("note.html", text=text, kind=kind, role=role)


def esc(text: object) -> str:
    """A text for Gradio's messages, which are HTML."""
    return render("text.html", text=text)


def heading(title: str, about: str = "", kind: str = "quiet", level: int = 1) -> str:
    """The top of a page, or of a part of it."""
    return render("heading.html", title=title, about=about, kind=kind, level=level)
