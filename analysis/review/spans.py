"""Time spans that people mark in a clip: what one is, its frames, and CVAT's files of them.

A span is `{"start": 0.5, "end": 1.25, "label": "theft"}`, in seconds on the player's clock: it begins with a
frame and ends behind one, so that a single frame has a length. Programs that count frames do so at the clip's mean
rate.

    spans = checked([{"start": 0.5, "end": 1.25, "label": "theft"}])
    frames(spans[0], 8)                      # (4, 9): from the fifth frame to the tenth
    content = to_cvat(items)                 # a zip with a file of tracks for each item
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from deepintuit.errors import DataError
from deepintuit.texts import decoded

Span, Stretch = Mapping[str, Any], tuple[float, float]
MOST, LONGEST = 1000, 1e6
"""Spans in one answer, and seconds that an end may have."""
MOST_BYTES = 256 << 20
"""Of CVAT's files, as they are without compression."""
_NO_XML = re.compile("[^ -~\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def checked(values: Any) -> list[dict[str, Any]]:
    """Spans in order, their ends in whole microseconds. ValueError for what is none."""
    if not isinstance(values, list | tuple) or len(values) > MOST:
        raise ValueError(f"spans are a list of at most {MOST:,}")
    spans = []
    for value in values:
        if not isinstance(value, Mapping) or set(value) != {"start", "end", "label"}:
            raise ValueError("a span has start, end and label")
        ends = [value["start"], value["end"]]
        if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
            raise ValueError("a span starts and ends in seconds, which are numbers")
        start, end = (round(float(end), 6) for end in ends)
        if not 0 <= start < end <= LONGEST or not isinstance(value["label"], str) or not value["label"]:
            raise ValueError("a span starts at 0 s or later, ends after that, and has a label")
        spans.append({"start": start, "end": end, "label": value["label"]})
    return sorted(spans, key=lambda span: (span["start"], span["end"], span["label"]))


def dumps(spans: Sequence[Span]) -> str | None:
    """Spans as JSON, the same for the same spans; None where there are none."""
    return json.dumps(list(spans), ensure_ascii=False) if spans else None


def words(text: str | None) -> str:
    """Spans, as `dumps` gives them, for people to read."""
    return ", ".join(f"{span['label']} {span['start']:.2f}–{span['end']:.2f} s" for span in json.loads(text or "[]"))


def frames(span: Span, fps: float) -> tuple[int, int]:
    """The first and the last frame of a span, from 0; of one shorter than a frame the nearest."""
    first = round(span["start"] * fps)
    return first, max(first, round(span["end"] * fps) - 1)


def of_frames(first: int, last: int, label: str, fps: float) -> dict[str, Any]:
    """The span of these frames, from 0. ValueError where there are no such frames."""
    if not 0 <= first <= last:
        raise ValueError(f"a span from frame {first} to {last}")
    return checked([{"start": first / fps, "end": (last + 1) / fps, "label": label}])[0]


# Stretches of time: (start, end) in seconds, in order and without overlap where these functions give them


def merged(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Those that overlap or touch as one; empty ones are left out."""
    whole: list[Stretch] = []
    for start, end in sorted(stretch for stretch in stretches if stretch[1] > stretch[0]):
        if whole and start <= whole[-1][1]:
            whole[-1] = whole[-1][0], max(end, whole[-1][1])
        else:
            whole.append((start, end))
    return whole


def length(stretches: Iterable[Stretch]) -> float:
    return sum(end - start for start, end in merged(stretches))


def clipped(stretches: Iterable[Stretch], seconds: float) -> list[Stretch]:
    """What of them lies between 0 and so many seconds."""
    return merged((max(0.0, start), min(seconds, end)) for start, end in stretches)


def overlap(first: Iterable[Stretch], second: Iterable[Stretch]) -> float:
    """Seconds that lie in both."""
    second = merged(second)
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in merged(first) for b in second)


def shared(people: Sequence[Sequence[Span]]) -> list[Stretch]:
    """Where more than half of these people marked a span, of whatever label."""
    marks = [merged((span["start"], span["end"]) for span in spans) for spans in people]
    edges = sorted({edge for stretches in marks for stretch in stretches for edge in stretch})
    return merged(
        (start, end)
        for start, end in zip(edges, edges[1:])
        if 2 * sum(any(a <= start and end <= b for a, b in stretches) for stretches in marks) > len(people)
    )


# CVAT


@dataclass(frozen=True)
class Marked:
    """What reviewers marked in one item. `names`: what a file of CVAT may call it, the item's id first; `fps` frames a
    second, `size` in pixels, `count` of frames; `spans` by reviewer."""

    names: Sequence[str]
    fps: float
    size: tuple[int, int]
    count: int
    spans: Mapping[str, Sequence[Span]]


def to_cvat(items: Iterable[Marked], labels: Sequence[str]) -> bytes:
    """A zip with a file in "CVAT for video 1.1" for each item, called by its id, and `labels.json` with the labels as
    CVAT's constructor takes them. A span is a track of the whole picture; its `reviewer` is an attribute."""
    content = io.BytesIO()
    reviewer = {"name": "reviewer", "mutable": False, "input_type": "text", "values": [""], "default_value": ""}
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("labels.json", json.dumps([{"name": label, "attributes": [reviewer]} for label in labels]))
        for item in items:
            file.writestr(f"{quote(item.names[0], safe='')}.xml", _tracks(item, labels))
    return content.getvalue()


def _tracks(item: Marked, labels: Sequence[str]) -> bytes:
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    facts = {"name": item.names[0], "size": item.count, "mode": "interpolation", "source": item.names[-1]}
    for name, fact in facts.items():
        ElementTree.SubElement(task, name).text = _xml(str(fact))
    names = ElementTree.SubElement(task, "labels")
    for label in labels:
        ElementTree.SubElement(ElementTree.SubElement(names, "label"), "name").text = _xml(label)
    corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), ("0.00", "0.00", *(f"{pixels:.2f}" for pixels in item.size))))
    for number, (reviewer, span) in enumerate((who, span) for who, marks in item.spans.items() for span in marks):
        label = _xml(span["label"])
        track = ElementTree.SubElement(root, "track", {"id": str(number), "label": label, "source": "manual"})
        first, last = frames(span, item.fps)
        for frame, outside in ((first, 0), (last + 1, 1)):
            place = {"frame": frame, "keyframe": 1, "outside": outside, "occluded": 0, **corners, "z_order": 0}
            box = ElementTree.SubElement(track, "box", {name: str(value) for name, value in place.items()})
            ElementTree.SubElement(box, "attribute", {"name": "reviewer"}).text = _xml(reviewer)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    if _NO_XML.search(text):
        raise DataError(
            f"{text!r:.100} holds a control character", "XML has none", "export as JSONL or for Label Studio"
        )
    return text


def from_cvat(content: bytes, items: Mapping[str, tuple[str, float]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Spans by item and reviewer, of an XML file of CVAT or a zip of such. `items`: what a file may call an item (the
    task's name, or its video) → its id and frames a second. Without an attribute `reviewer` it is the assignee, else
    the owner. ValueError for what cannot be read."""
    marks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for text in _files(content):
        for names, reviewer, label, first, last in _read_tracks(text):
            place = next((items[name] for name in names if name in items), None)
            if place is None:
                raise ValueError(f"its CVAT task is called {names[0]!r:.100}, as no trace or clip of this task is")
            item, fps = place
            marks.setdefault((item, reviewer), []).append(of_frames(first, last, label, fps))
    return marks


def _files(content: bytes) -> Iterator[str]:
    if not content.startswith(b"PK"):
        yield decoded(content)
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            parts = [part for part in file.infolist() if part.filename.lower().endswith(".xml")]
            if not parts or sum(part.file_size for part in parts) > MOST_BYTES:
                raise ValueError(f"it holds no XML file, or more than {MOST_BYTES >> 20} MiB of them")
            for part in parts:
                yield decoded(file.read(part))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
        raise ValueError(f"it is no whole zip ({error})") from error


def _read_tracks(text: str) -> Iterator[tuple[list[str], str, str, int, int]]:
    """Of each stretch in which a track is seen: what its task is called, reviewer, label, first and last frame."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type, which CVAT does not")
    try:
        root = ElementTree.fromstring(text)  # without a DOCTYPE nothing in it expands
    except ElementTree.ParseError as error:
        raise ValueError(f"it is no XML ({error})") from error
    if root.tag != "annotations" or root.find("image") is not None:
        raise ValueError('it is not in the format "CVAT for video 1.1"')
    tasks = {task.findtext("id"): task for kind in ("task", "job") for task in root.iter(kind)}
    alone = next(iter(tasks.values())) if len(tasks) == 1 else ElementTree.Element("task")
    for track in root.iter("track"):
        task = tasks.get(track.get("task_id"), alone)
        names = [task.findtext("name") or "", task.findtext("source") or root.findtext("meta/source") or ""]
        account = task.findtext("assignee/username") or task.findtext("owner/username") or "CVAT"
        shapes = [(int(shape.attrib["frame"]), shape) for shape in track if "frame" in shape.attrib]
        shapes.sort(key=lambda pair: pair[0])
        attributes = (
            node.text for _, shape in shapes for node in shape.iter("attribute") if node.get("name") == "reviewer"
        )
        reviewer, first = next(filter(None, attributes), account), None
        # A track that nothing ends is seen to the end.
        stop = int(task.findtext("stop_frame") or int(task.findtext("size") or 0) - 1)
        for frame, shape in [*shapes, (max(stop, shapes[-1][0]) + 1, None)] if shapes else ():
            outside = shape is None or shape.get("outside") == "1"
            if first is None and not outside:
                first = frame
            elif first is not None and outside:
                yield names, reviewer, track.attrib["label"], first, frame - 1
                first = None
