"""Answers as a table: a row for each clip that was given, in that order, whether it could be read or not.

Rows are made some hundred at a time from the run's parts, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deepintuit import disk
from deepintuit.errors import ConfigError, nearest
from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.mentions import mentions, moment
from deepintuit.metrics import conformal_sets
from deepintuit.runs import Run
from deepintuit.runs.run import parts, read_part
from deepintuit.tables import FORMATS, written

_AT_ONCE = 512
_WAY = "label_likelihood"
UNTOLD = "no probabilities: the server gives no log-probabilities with token ids that can be read here"
"""What `detail` says of an answer that has a label and no more."""


def threshold_of(ways: Mapping[str, dict], threshold: float | None, risk: float | None, gate: str) -> float | None:
    """The probability below which to abstain: as given, or as chosen on validation clips for a risk; infinity where no
    threshold kept it. ConfigError for a number that is none, or a risk for which nothing was chosen."""
    if threshold is not None and risk is not None:
        raise ConfigError("--threshold and --risk", "each says when to abstain", "Give one of them")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold {threshold:g}", "a probability lies between 0 and 1", "Give such a number")
    if risk is None:
        return threshold
    thresholds = ways.get(_WAY, {}).get("thresholds") or {}
    by_risk = {float(name): value for name, value in thresholds.items()}
    if not by_risk:
        raise ConfigError(
            f"--risk {risk:g}",
            "thresholds for a risk are chosen when a calibrator is made, and this system has none that did",
            "Give --threshold, or a run of `deepintuit calibrate`",
        )
    if risk not in by_risk:
        raise ConfigError(
            f"--risk {risk:g}",
            f"on validation clips thresholds were chosen for {', '.join(map(str, by_risk))}",
            "Give one of these, or --threshold",
        )
    if gate != "off":
        raise ConfigError(
            f"--risk {risk:g} with gate.by = {gate!r}",
            "thresholds were chosen on whole traces, and say nothing of quick answers",
            "Give --threshold, or leave the gate out",
        )
    return float("inf") if by_risk[risk] is None else by_risk[risk]


def form_of(path: Path) -> str:
    """The form of a file of answers, by its ending; ConfigError for another one, or a folder that is not there."""
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        near = nearest(form, FORMATS)
        why = f"answers are written as {', '.join(FORMATS)}, by the ending"
        raise ConfigError(f"--out {str(path)!r}", why, f"Write {path.stem}.{near or 'csv'}")
    if not path.parent.is_dir() or path.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}"
        raise ConfigError(f"--out {str(path)!r}", why, "Name a file in a folder that is there")
    return form


@dataclass(frozen=True)
class Rules:
    """How an answer is given. `ways`: what the calibrator fitted (`fitted_ways`), empty without one; `least`: the
    probability below which it abstains, or None; `farthest`: the distance past which it does."""

    labels: LabelSet
    ways: Mapping[str, dict]
    least: float | None = None
    farthest: float = float("inf")

    @property
    def calibrated(self) -> bool:
        return _WAY in self.ways

    @property
    def _quantile(self) -> float | None:
        return self.ways.get(_WAY, {}).get("conformal", {}).get("0.9")

    @property
    def schema(self) -> pa.Schema:
        """The columns, as docs/predict.md lists them."""
        text, real = pa.string(), pa.float64()
        probs = [(f"p_{label}", real) for label in self.labels]
        sets = [("set", pa.list_(text))] if self._quantile is not None else []
        return pa.schema(
            [
                *(("path", text), ("clip_id", text), ("label", text), ("calibrated", pa.bool_())),
                *(*probs, ("abstain", pa.bool_()), *sets, ("distance", real), ("farther_than", real)),
                *(("unlike", pa.bool_()), ("provisional", text), ("malformed", text), ("trace", text)),
                *(("moments", pa.list_(real)), ("frame_hash", text), ("tokens", pa.int64()), ("seconds", real)),
                *(("reason", text), ("detail", text)),
            ]
        )

    def answer(self, trace: Mapping[str, Any], predictions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The columns of an answer, from the stored row of its trace and those of its predictions."""
        prediction = {row["method"]: row for row in predictions}[_WAY if self.calibrated else "raw"]
        has_probs = prediction["probs"] is not None
        probs = np.array(prediction["probs"] if has_probs else [])
        label = self.labels.labels[int(probs.argmax())] if has_probs else prediction["provisional"]
        if not self.calibrated and prediction["provisional"] == NONE_LABEL:
            label = None
        times = (moment(mention, trace["frame_times"]) for mention in mentions(trace["text"]))
        unlike = None if prediction.get("distance") is None else not prediction["distance"] <= self.farthest
        # Of what is unlike all that was learnt from, a probability says nothing.
        answer: dict[str, Any] = {"abstain": True}
        if not unlike:
            answer = {"label": label, **{f"p_{name}": float(p) for name, p in zip(self.labels, probs)}}
            answer["abstain"] = None if self.least is None else not has_probs or bool(probs.max() < self.least)
            if self._quantile is not None and prediction["temperature"] == self.ways[_WAY].get("temperature"):
                mask = conformal_sets(probs[None], self._quantile)[0]
                answer["set"] = [name for name, inside in zip(self.labels, mask) if inside]
        if not has_probs:
            answer["detail"] = UNTOLD
        return {
            **answer,
            "calibrated": self.calibrated,
            "distance": prediction.get("distance"),
            "farther_than": prediction.get("farther_than"),
            "unlike": unlike,
            "provisional": prediction["provisional"],
            "malformed": trace["reason"],
            "trace": trace["text"],
            "moments": sorted({at for at in times if at is not None}),
            "frame_hash": trace["frame_hash"],
            "tokens": trace["tokens"],
            "seconds": trace["milliseconds"] / 1000,
        }


class Answers:
    """The answers of a run to the clips that were given."""

    def __init__(
        self,
        run: Run,
        names: Sequence[tuple[str, str]],
        clip_of: Mapping[str, str],
        refused: Mapping[str, tuple[str, str | None]],
        rules: Rules,
    ):
        self._given, self._clip_of, self._refused, self._rules = names, clip_of, refused, rules
        trace_columns = ["clip_id", "text", "reason", "frame_times", "frame_hash", "tokens", "milliseconds"]
        self._traces = _Stored(run, "traces", trace_columns)
        prediction_columns = ["clip_id", "method", "provisional", "probs", "temperature", "distance", "farther_than"]
        self._predictions = _Stored(run, "predictions", prediction_columns)

    def tables(self) -> Iterator[pa.Table]:
        """The rows, some hundred at a time; one empty table where there is none."""
        for start in range(0, max(len(self._given), 1), _AT_ONCE):
            rows = [self._row(*pair) for pair in self._given[start : start + _AT_ONCE]]
            yield pa.Table.from_pylist(rows, schema=self._rules.schema)

    def counts(self) -> dict[str, int]:
        """Of the clips given, how many have an answer, how many of these it abstained on, how many of them for being
        unlike what was learnt from, and how many have none."""
        counts = dict.fromkeys(("given", "answered", "abstained", "unlike", "unanswered"), 0)
        for table in self.tables():
            reasons, abstained = table["reason"].to_pylist(), table["abstain"].to_pylist()
            counts["unlike"] += sum(map(bool, table["unlike"].to_pylist()))
            answered = sum(reason is None for reason in reasons)
            counts["given"] += len(reasons)
            counts["answered"] += answered
            counts["unanswered"] += len(reasons) - answered
            counts["abstained"] += sum(map(bool, abstained))
        return counts

    def write(self, path: Path) -> None:
        """All rows as a file, in the form that its ending says, in place of what is there."""
        with disk.replacing(path) as temporary, open(temporary, "wb") as file:
            file.writelines(written(self.tables(), form_of(path)))

    def _row(self, name: str, source: str) -> dict[str, Any]:
        clip_id = self._clip_of[source]
        row: dict[str, Any] = {"path": name, "clip_id": clip_id}
        if clip_id in self._refused:
            reason, detail = self._refused[clip_id]
            return {**row, "reason": reason, "detail": detail}
        trace, predictions = self._traces.of(clip_id), self._predictions.of(clip_id)
        if not trace or not predictions:
            return {**row, "reason": "not_answered"}
        return {**row, **self._rules.answer(trace[-1], predictions)}


class _Stored:
    """The rows of a grain by clip, with some parts in memory: as many as processes that wrote by turns."""

    def __init__(self, run: Run, grain: str, columns: Sequence[str]):
        self._part_of = {
            clip_id: path
            for _, path in parts(run.path, grain)
            for clip_id in read_part(path, ["clip_id"])["clip_id"].to_pylist()
        }
        self._read = lru_cache(maxsize=128)(lambda path: _by_clip(read_part(path, columns).to_pylist()))

    def of(self, clip_id: str) -> list[dict[str, Any]]:
        return self._read(self._part_of[clip_id]).get(clip_id, []) if clip_id in self._part_of else []


def _by_clip(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        rows_of.setdefault(row["clip_id"], []).append(row)
    return rows_of
