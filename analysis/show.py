"""Clips, frames, traces and tokens inline, for notebooks. No torch.

    from deepintuit_analysis import show
    from deepintuit import video
    show.clip("clip.mp4")                              # a player, the file inside the notebook
    show.frames(video.read("clip.mp4", 8))             # what a model is shown, with times
    show.row(show.trace(before), show.trace(after))    # parsed traces side by side

Each gives a piece of HTML that a notebook displays as its cell's value. Colours are washes over whatever the page's
ground is, so that light and dark both read. Every text is escaped.

Left out on purpose: charts (`report` draws them), anything that needs a server, and seeking (the dashboard has it).
"""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from numpy.typing import ArrayLike

from deepintuit.errors import DataError
from deepintuit.trace import Malformed, Trace, outer_spans
from deepintuit.video import Frames, jpeg

APP = "http://127.0.0.1:7860"
"""Where `deepintuit app` listens by default."""

_MOST_BYTES = 32_000_000
_KINDS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
_BLUE, _VERMILION = "47,127,193", "213,94,0"
_WASHES = {"think": _BLUE, "observation": "176,104,155", "quick": "230,159,0", "answer": "0,158,115"}
_BOX = "border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:.6em .8em;line-height:1.6;max-width:46em"
_SMALL = "font-size:85%;opacity:.8"


class Html(str):
    """A piece of HTML that a notebook shows as such."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<{len(self)} characters of HTML>"


class Markdown(str):
    """A piece of Markdown that a notebook shows as such."""

    def _repr_markdown_(self) -> str:
        return str(self)


def clip(path: str | Path, caption: str = "", width: int = 320) -> Html:
    """A player with the file inside it. Raises `DataError` for a file that is too long to put into a notebook."""
    path = Path(path)
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise DataError(
            f"{path.name} has {size / 1e6:.0f} MB",
            f"a notebook carries what it shows, up to {_MOST_BYTES / 1e6:.0f} MB",
            "Show its frames instead: show.frames(video.read(path, 8))",
        )
    kind = _KINDS.get(path.suffix.lower(), "video/mp4")
    data = _base64(path.read_bytes())
    player = f'<video controls loop muted playsinline width="{width}" src="data:{kind};base64,{data}"></video>'
    return _figure(player, caption)


def frames(seen: Frames, caption: str = "", height: int = 96) -> Html:
    """The frames in order, `height` pixels high, each above its number (from 1, as traces count) and its time."""
    shown = "".join(
        f'<figure style="margin:0;text-align:center"><img style="height:{height}px;max-width:none" '
        f'alt="frame {number} at {time:.2f} s" '
        f'src="data:image/jpeg;base64,{_base64(jpeg(pixels, (10_000, 2 * height)))}">'
        f'<figcaption style="{_SMALL}">{number} · {time:.2f} s</figcaption></figure>'
        for number, (pixels, time) in enumerate(zip(seen.pixels_T_H_W_3, seen.times_T, strict=True), 1)
    )
    return _figure(f'<div style="display:flex;flex-wrap:wrap;gap:6px">{shown}</div>', caption)


def trace(found: Trace | Malformed, title: str = "") -> Html:
    """A parsed text with its segments washed in colours; a malformed one with its marks bold, and why it is none."""
    if found.ok:
        body, end = "", 0
        for name, (start, stop) in sorted(outer_spans(found).items(), key=lambda item: item[1]):
            wash = f"background:rgba({_WASHES.get(name, _BLUE)},.16)"
            body += html.escape(found.text[end:start])
            body += f'<span title="{html.escape(name)}" style="{wash}">{_marked(found, start, stop)}</span>'
            end = stop
        body += html.escape(found.text[end:])
        verdict = f"answers <b>{html.escape(found.label)}</b>"
    else:
        body = _marked(found, 0, len(found.text)) or "<i>(nothing)</i>"
        verdict = (
            f'<b style="color:rgb({_VERMILION})">malformed, {html.escape(str(found.reason))}</b>: '
            f"{html.escape(found.detail)}"
        )
    head = f"<b>{html.escape(title)}</b> · " if title else ""
    return Html(
        f'<div style="{_BOX}"><div style="{_SMALL}">{head}{verdict}</div>'
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{body}</div></div>'
    )


def tokens(text: str, offsets_T: ArrayLike, values_T: ArrayLike, caption: str = "") -> Html:
    """A text token by token: blue where the value is above 0, vermilion and underlined below, stronger with its size.

    `offsets_T` is (T, 2), each token's (start, end) characters; hovering shows number and value. Text between tokens
    is left as it is.
    """
    offsets = np.asarray(offsets_T, dtype=np.int64).reshape(-1, 2)
    values = np.asarray(values_T, dtype=np.float64)
    largest = float(np.abs(values).max(initial=0)) or 1.0
    body, end = "", 0
    for number, ((start, stop), value) in enumerate(zip(offsets, values, strict=True)):
        ground = f"rgba({_BLUE if value > 0 else _VERMILION},{0.55 * abs(value) / largest:.2f})"
        line = ";text-decoration:underline dotted" if value < 0 else ""
        body += html.escape(text[end:start])
        body += (
            f'<span title="token {number}: {value:+.3f}" style="background:{ground}{line};'
            f'border-left:1px solid rgba(128,128,128,.35)">{html.escape(text[start:stop])}</span>'
        )
        end = max(end, stop)
    body += html.escape(text[end:])
    return _figure(f'<div style="{_BOX};white-space:pre-wrap;overflow-wrap:anywhere">{body}</div>', caption)


def words(*sentences: str) -> Html:
    """A paragraph of computed sentences: what a figure says, in numbers that are true of the workbench at hand."""
    return Html(f'<p style="max-width:46em;line-height:1.6">{html.escape(" ".join(sentences))}</p>')


def table(markdown: str) -> Markdown:
    """A table of `report` for the width of a page: its cells break between words, never inside an interval."""
    return Markdown(markdown.replace("\u2013", "\u2013\u2060").replace("\u00b1 ", "\u00b1\u00a0"))


def row(*parts: Html) -> Html:
    """Pieces side by side, one below the other where there is no room."""
    cells = "".join(f'<div style="flex:1 1 17em;min-width:0">{part}</div>' for part in parts)
    return Html(f'<div style="display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start">{cells}</div>')


def app(page: str, words: str, **query: object) -> Html:
    """A link to a page of the dashboard in a state: `show.app("traces", "the same traces", run=run.id)`."""
    known = {name: value for name, value in query.items() if value not in (None, "")}
    address = f"{APP}/{page}" + (f"?{urlencode(known)}" if known else "")
    return Html(
        f'<p><a href="{html.escape(address)}" target="_blank" rel="noopener">{html.escape(words)}</a> '
        f'<span style="{_SMALL}">(while <code>make app</code> runs on this workbench)</span></p>'
    )


def _figure(inside: str, caption: str) -> Html:
    below = f'<figcaption style="{_SMALL}">{html.escape(caption)}</figcaption>' if caption else ""
    return Html(f'<figure style="margin:.3em 0">{inside}{below}</figure>')


def _base64(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _marked(found: Trace | Malformed, start: int, stop: int) -> str:
    """Characters start … stop, escaped, with the marks of the grammar bold."""
    marks = found.grammar.marks
    pieces = re.split("(" + "|".join(map(re.escape, sorted(marks))) + ")", found.text[start:stop])
    return "".join(f"<b>{html.escape(piece)}</b>" if piece in marks else html.escape(piece) for piece in pieces)
