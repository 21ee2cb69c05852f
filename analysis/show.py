"""Clips, frames, traces and tokens inline, for notebooks. No torch.

    from deepintuit_analysis import show
    from deepintuit import video
    show.clip("clip.mp4")                              # a player, the file inside the notebook
    show.frames(video.read("clip.mp4", 8))             # what a model is shown, with times
    show.row(show.trace(before), show.trace(after))    # parsed traces side by side
    show.clip_map(workbench, "homecam", by="split")    # where clips lie, after `deepintuit embed`

Each gives a piece of HTML that a notebook displays as its cell's value, by the templates of `templates/show`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from deepintuit.embeddings import places_of
from deepintuit.errors import DataError, StoreError, nearest
from deepintuit.trace import Malformed, Trace, outer_spans
from deepintuit.video import Frames, jpeg
from deepintuit_analysis.render import renderer

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

APP = "http://127.0.0.1:7860"
"""Where `deepintuit app` listens by default."""

_MOST_BYTES = 32_000_000
_KINDS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
_BLUE, _VERMILION = "47,127,193", "213,94,0"
_WASHES = {"think": _BLUE, "observation": "176,104,155", "quick": "230,159,0", "answer": "0,158,115"}
_LASSO = """
const plot = document.getElementById("{plot_id}"), line = plot.parentElement.appendChild(document.createElement("pre"));
plot.on("plotly_selected", (chosen) => {
  const ids = (chosen?.points || []).map((point) => point.customdata);
  line.textContent = ids.length ? `workbench.save_slice("NAME", alike.slice_of(${JSON.stringify(ids)}))` : "";
});"""
"""Behind a map: `alike` is `deepintuit_analysis.index.alike`."""
_render = renderer(Path(__file__).parent / "templates", interpreted=False)


class Html(Markup):
    """A piece of HTML, made by a template, that a notebook shows as such."""

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
    url = _data_url(_KINDS.get(path.suffix.lower(), "video/mp4"), path.read_bytes())
    return Html(_render("show/clip.html", url=url, width=width, caption=caption))


def frames(clip_frames: Frames, caption: str = "", height: int = 96) -> Html:
    """The frames in order, `height` pixels high, each above its number (from 1, as traces count) and its time."""
    pictures = (_data_url("image/jpeg", jpeg(pixels, (10_000, 2 * height))) for pixels in clip_frames.pixels_T_H_W_3)
    timed = list(zip(pictures, clip_frames.times_T, strict=True))
    return Html(_render("show/frames.html", frames=timed, height=height, caption=caption))


def trace(parsed: Trace | Malformed, title: str = "") -> Html:
    """A parsed text with its segments washed in colours; a malformed one with its marks bold, and why it is none."""
    spans, end = [], 0
    for name, (start, stop) in sorted(outer_spans(parsed).items(), key=lambda item: item[1]) if parsed.ok else ():
        spans += [
            ("", "", [(parsed.text[end:start], False)]),
            (name, _WASHES.get(name, _BLUE), _pieces(parsed, start, stop)),
        ]
        end = stop
    rest = [(parsed.text[end:], False)] if parsed.ok else _pieces(parsed, 0, len(parsed.text))
    return Html(_render("show/trace.html", found=parsed, title=title, spans=[*spans, ("", "", rest)]))


def tokens(text: str, offsets_T: ArrayLike, values_T: ArrayLike, caption: str = "") -> Html:
    """A text token by token: blue where the value is above 0, vermilion and underlined below, stronger with its size.

    `offsets_T` is (T, 2), each token's (start, end) characters; hovering shows number and value. Text between tokens
    is left as it is.
    """
    offsets = np.asarray(offsets_T, dtype=np.int64).reshape(-1, 2)
    values = np.asarray(values_T, dtype=np.float64)
    largest = float(np.abs(values).max(initial=0)) or 1.0
    tokens, end = [], 0
    for (start, stop), value in zip(offsets, values, strict=True):
        colour = f"{_BLUE if value > 0 else _VERMILION},{0.55 * abs(value) / largest:.2f}"
        about = {"gap": text[end:start], "text": text[start:stop], "value": f"{value:+.3f}"}
        tokens.append({**about, "colour": colour, "below": value < 0})
        end = max(end, stop)
    return Html(_render("show/tokens.html", tokens=tokens, rest=text[end:], caption=caption))


def words(*sentences: str) -> Html:
    """A paragraph of computed sentences: what a figure says, in numbers that are true of the workbench at hand."""
    return Html(_render("show/words.html", text=" ".join(sentences)))


def table(markdown: str) -> Markdown:
    """A table of `report` for the width of a page: its cells break between words, never inside an interval."""
    return Markdown(markdown.replace("\u2013", "\u2013\u2060").replace("\u00b1 ", "\u00b1\u00a0"))


def row(*parts: Html) -> Html:
    """Pieces side by side, one below the other where there is no room."""
    return Html(_render("show/row.html", parts=parts))


def app(page: str, words: str, **query: object) -> Html:
    """A link to a page of the dashboard in a state: `show.app("traces", "the same traces", run=run.id)`."""
    state = {name: value for name, value in query.items() if value not in (None, "")}
    address = f"{APP}/{page}" + (f"?{urlencode(state)}" if state else "")
    return Html(_render("show/app.html", url=address, words=words))


def clip_map(
    workbench: Workbench, dataset: str, by: str | Mapping[str, str] = "label", include_plotlyjs: bool = True
) -> Html:
    """Where the clips of a dataset lie by their embeddings, coloured by a column of the manifest or by a word for each
    clip id; below it the line that saves what a lasso holds as a slice. StoreError where nothing is embedded."""
    from deepintuit_analysis.report.clip_map import about, clip_map

    clips = workbench.query("SELECT * FROM clips WHERE dataset = ? AND excluded IS NULL", [dataset])
    places = places_of(workbench.path, clips["clip_id"].tolist())
    if places is None:
        why = "the map is made of the embeddings of its clips"
        raise StoreError(f"no clip of {dataset!r} has an embedding", why, f"Run `deepintuit embed {dataset}`")
    if isinstance(by, str) and by not in clips:
        near = nearest(by, clips.columns) or "label"
        raise StoreError(f"the clips have no column {by!r}", "points are coloured by one", f"Nearest: {near!r}")
    name = by if isinstance(by, str) else "group"
    groups = by if isinstance(by, Mapping) else dict(zip(clips["clip_id"], clips[by].fillna("none").astype(str)))
    figure = clip_map(places, groups, f"Clips of {dataset} by {name.replace('_', ' ')}")
    count = sum(len(points.x) for points in figure.data)
    page = figure.to_html(full_html=False, include_plotlyjs=include_plotlyjs, post_script=_LASSO)
    return Html(page + words(about(places, count, len(groups))))


def _data_url(kind: str, file: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def _pieces(parsed: Trace | Malformed, start: int, stop: int) -> list[tuple[str, bool]]:
    """Characters start … stop, cut at the marks of the grammar: text, and whether it is a mark."""
    marks = parsed.grammar.marks
    parts = re.split("(" + "|".join(map(re.escape, sorted(marks))) + ")", parsed.text[start:stop])
    return [(part, part in marks) for part in parts]
