"""Traces, errors, clips and run card as a folder of static files, which any web server or a double click opens.

    shared = gather(workbench, runs=["evaluate-…"], name="a saved slice", clips="small")
    shared.bytes                      # about what it will take
    shared.write(Path("for-the-team"))

A page that was opened from a file may fetch nothing, so the data is a script. `share.js` puts every text into the page
as text.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from deepintuit import addresses, disk, video, worlds
from deepintuit.errors import ConfigError, StoreError, VideoError
from deepintuit.mentions import mentions, moment
from deepintuit.trace import pieces
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import browse
from deepintuit_analysis.index.clips import grammar_of
from deepintuit_analysis.render import renderer
from deepintuit_analysis.report.text import shown

Clips = Literal["whole", "small", "none"]
KINDS = get_args(Clips)
_TEMPLATES = Path(__file__).parent / "templates"
_SMALL, _RATE, _LONGEST = 320, 8, 240  # of a small clip: its longer side in pixels, frames per second, frames
_SMALL_BYTES = 40_000  # a second of a small clip takes about this
_PLAYABLE = (".mp4", ".m4v", ".mov", ".webm")
_GONE = "the file is not there any more"
_UNPLAYABLE = "browsers cannot play such a file as it is, which --clips small mends"
_render = renderer(_TEMPLATES, interpreted=False)


@dataclass(frozen=True)
class Shared:
    """What a folder will hold. `data`: what the page shows; `videos`: name in the folder → row of the clip and its
    file, which a world may have yet to render; `left_out`: why → names of the clips without a video; `card`: makes the
    run card, or None."""

    title: str
    data: dict[str, Any]
    videos: dict[str, tuple[dict[str, Any], Path]]
    left_out: dict[str, list[str]]
    small: bool
    card: Callable[[], Path] | None

    @property
    def script(self) -> bytes:
        return b"const SHARED = " + json.dumps(self.data, allow_nan=False).encode() + b";\n"

    @property
    def bytes(self) -> int:
        """About what the folder takes; small clips, and those that a world renders, are not made yet."""
        guess = [_SMALL_BYTES * (row["seconds"] or 1) for row, _ in self.videos.values()]
        sizes = [path.stat().st_size if path.exists() else None for _, path in self.videos.values()]
        size = sum(most if here is None or self.small and here > most else here for here, most in zip(sizes, guess))
        return len(self.script) + int(size)

    def write(self, target: Path) -> dict[str, list[str]]:
        """The folder, whole or not at all; what was left out beside `left_out`. Clips that a world renders are rendered
        first. ConfigError where something is in its place, DiskError where the disk refuses."""
        refuse(target)
        lost: dict[str, str] = {}
        with disk.naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                folder.chmod(0o755)
                (folder / "clips").mkdir()
                for name, (row, path) in self.videos.items():
                    try:
                        worlds.at_hand(path)
                        _small(row, path, folder / name) if self.small else shutil.copyfile(path, folder / name)
                    except VideoError as error:
                        lost[name] = error.why
                    except FileNotFoundError:
                        lost[name] = _GONE
                for clip in self.data["clips"]:
                    clip["file"] = None if clip["file"] in lost else clip["file"]
                (folder / "data.js").write_bytes(self.script)
                for name in ("share.js", "share.css"):
                    shutil.copyfile(_TEMPLATES / "share" / name, folder / name)
                if self.card:
                    shutil.copyfile(self.card(), folder / "card.html")
                page = _render("share/page.html", title=self.title, card=self.card is not None)
                (folder / "index.html").write_text(page, encoding="utf-8")
                os.rename(folder, target)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return _grouped((why, self.videos[name][0]) for name, why in lost.items())


def refuse(target: Path) -> None:
    """ConfigError for a place where something is already."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        why = "it is not empty, and nothing that is there may be lost"
        raise ConfigError(f"the folder {str(target)!r}", why, "Name one that is not there yet")


def gather(
    workbench: Workbench,
    runs: Sequence[str],
    name: str = "",
    clips: Clips = "whole",
    card: Callable[[], Path] | None = None,
) -> Shared:
    """The traces of these runs, of the saved slice `name` alone where one is named; without runs all of the slice.
    StoreError where that is none."""
    traces = _traces(workbench, runs, name)
    rows = _clips(workbench, traces)
    place_of = {row["clip_id"]: place for place, row in enumerate(rows)}
    traces = [row for row in traces if row["clip_id"] in place_of]
    if not traces:
        raise StoreError(
            f"no trace of {', '.join(runs) or 'any run'}" + (f" in the slice {name!r}" if name else ""),
            "there would be nothing to look at",
            "Name other runs, or another slice",
        )
    trace_ids = {row["trace_id"] for row in traces}
    answers = _answers(workbench, runs or sorted({row["run_id"] for row in traces}))
    answers = [row for row in answers if row["trace_id"] in trace_ids]
    videos, left_out = ({}, {}) if clips == "none" else _videos(workbench, rows, clips == "small")
    file_of = {row["clip_id"]: file for file, (row, _) in videos.items()}
    answers_of: dict[str, list[dict[str, Any]]] = {}
    for row in answers:
        answers_of.setdefault(row["trace_id"], []).append(row)
    grammars = {run: grammar_of(workbench, run) for run in {row["run_id"] for row in traces}}
    data = {
        "clips": [_clip(row, file_of.get(row["clip_id"])) for row in rows],
        "traces": [
            _trace(row, grammars[row["run_id"]], place_of[row["clip_id"]], answers_of.get(row["trace_id"], []))
            for row in traces
        ],
        "systems": _systems(answers, place_of),
    }
    return Shared(name or workbench.path.name, data, videos, left_out, clips == "small", card)


def _traces(workbench: Workbench, runs: Sequence[str], name: str) -> list[dict[str, Any]]:
    condition, values = browse.TraceFilter(slice=name or None).where(workbench)
    among = "AND run_id IN (SELECT unnest(?::VARCHAR[]))" if runs else ""
    return browse.records(
        workbench.query(
            f"""SELECT trace_id, run_id, stage, split, clip_id, sample, step, true_label, provisional, reason,
                       detail, tokens, milliseconds, frame_times, text
                FROM stored_traces WHERE {condition} {among} ORDER BY run_id, clip_id, step, sample""",  # noqa: S608
            [*values, *([list(runs)] if runs else [])],
        )
    )


def _answers(workbench: Workbench, runs: Sequence[str]) -> list[dict[str, Any]]:
    return browse.records(
        workbench.query(
            """SELECT run_id, clip_id, trace_id, system, method, true_label, predicted, labels, probs, distance,
                      farther_than, unlike
               FROM predictions WHERE control = 'none' AND run_id IN (SELECT unnest(?::VARCHAR[]))
               ORDER BY run_id, system, method <> 'label_likelihood', method = 'raw', method, clip_id""",
            [list(runs)],
        )
    )


def _clips(workbench: Workbench, traces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return browse.records(
        workbench.query(
            """SELECT clip_id, path, coalesce(playable_path, path) AS file, label, "group", split, seconds, width,
                      height
               FROM clips WHERE excluded IS NULL AND path IS NOT NULL AND clip_id IN (SELECT unnest(?::VARCHAR[]))
               QUALIFY row_number() OVER (PARTITION BY clip_id ORDER BY dataset) = 1 ORDER BY path, clip_id""",
            [sorted({row["clip_id"] for row in traces})],
        )
    )


def _videos(
    workbench: Workbench, rows: Sequence[dict[str, Any]], small: bool
) -> tuple[dict[str, tuple[dict[str, Any], Path]], dict[str, list[str]]]:
    """Those whose file is there or can be rendered, numbered, since names of files are a stranger's; and the others."""
    videos, left_out = {}, []
    for number, row in enumerate(rows):
        path = workbench.path / row["file"]
        if not path.is_file() and worlds.to_render(path) is None and addresses.origin(path) is None:
            left_out.append((_GONE, row))
        elif not small and path.suffix.lower() not in _PLAYABLE:
            left_out.append((_UNPLAYABLE, row))
        else:
            videos[f"clips/{number:05}{'.mp4' if small else path.suffix.lower()}"] = row, path
    return videos, _grouped(left_out)


def _grouped(left_out: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for why, row in left_out:
        groups.setdefault(why, []).append(_name(row))
    return groups


def _name(row: dict[str, Any]) -> str:
    return Path(row["path"]).stem


def _clip(row: dict[str, Any], file: str | None) -> dict[str, Any]:
    facts = {name: row[name] for name in ("label", "group", "split", "seconds", "width", "height")}
    return {"name": _name(row), "file": file, **facts}


def _trace(row: dict[str, Any], grammar: str, clip: int, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A trace as the page takes it; `parts`: segments of texts, each with the second that it speaks of, or None."""
    names = ("run_id", "stage", "split", "sample", "step", "true_label", "provisional", "reason", "detail", "tokens")
    best = next((p for p in answers if p["method"] != "raw" and p["probs"] is not None), None)
    facts = {name: best[name] for name in ("predicted", "farther_than", "distance", "unlike", "method")} if best else {}
    probs = [] if best is None or best["unlike"] else [*zip(best["labels"], map(float, best["probs"]))]
    return {
        "id": row["trace_id"],
        "clip": clip,
        "system": answers[0]["system"] if answers else None,
        "ms": row["milliseconds"],
        **{name: row[name] for name in names},
        **facts,
        "probs": probs,
        "times": [] if row["frame_times"] is None else [float(t) for t in row["frame_times"]],
        "parts": [
            [piece.name, _spoken(row["text"][piece.start : piece.end], row["frame_times"])]
            for piece in pieces(row["text"], grammar)
        ],
    }


def _spoken(text: str, times: Sequence[float] | None) -> list[tuple[str, float | None]]:
    parts, at = [], 0
    for mention in mentions(text):
        if mention.start >= at and (second := moment(mention, times)) is not None:
            parts += [(text[at : mention.start], None), (text[mention.start : mention.end], round(second, 3))]
            at = mention.end
    return [part for part in (*parts, (text[at:], None)) if part[0]]


def _systems(answers: Sequence[dict[str, Any]], place_of: dict[str, int]) -> list[dict[str, Any]]:
    """Of each system and way its answers to clips that have a label: clip, trace, true label, answer."""
    answers_of: dict[tuple[str, str, str], list] = {}
    names = "run", "system", "method"
    for row in answers:
        if row["true_label"] is not None:
            answer = place_of[row["clip_id"]], row["trace_id"], row["true_label"], row["predicted"]
            answers_of.setdefault((row["run_id"], row["system"], row["method"]), []).append(answer)
    return [{**dict(zip(names, key)), "label": shown(key[2]), "rows": rows} for key, rows in answers_of.items()]


def _small(row: dict[str, Any], source: Path, target: Path) -> None:
    """A silent copy of few frames, `_SMALL` pixels at most."""
    scale = min(1.0, _SMALL / max(row["width"], row["height"]))
    size = tuple(max(2, int(side * scale) // 2 * 2) for side in (row["width"], row["height"]))
    count = max(1, min(_LONGEST, round((row["seconds"] or 1) * _RATE)))
    frames = video.read(source, count, size, isolate=True)
    video.write_mp4(target, frames.pixels_T_H_W_3, len(frames.pixels_T_H_W_3) / max(frames.seconds, 1 / _RATE))
