"""The recorder of stage "teach": traces come in, are scored and put on disk; at the end the stored rows are counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from deepintuit import rewards
from deepintuit.config import Config, TeachConfig
from deepintuit.errors import TeachError, VideoError
from deepintuit.judges import Judge, Question
from deepintuit.labels import LabelSet
from deepintuit.runs import Run, TraceRow, trace_id
from deepintuit.trace import Trace, parse

WRONG_LABEL = "wrong_label"
"""Why a well-formed trace is dropped: its answer is not the clip's label."""
INSUFFICIENT = "insufficient"
"""Why one whose answer is right is dropped: its observation alone does not lead there, says the judge (VideoP2R,
step 3)."""

PART_ROWS = 64
PART_SECONDS = 20.0
"""Rows are put on disk when so many are held or so much time has passed."""

Clip = Mapping[str, Any]
"""A row of the manifest."""


@dataclass
class TraceRecorder:
    """Takes traces as they come, scores them, stores both in parts; on leaving, even by an error, the rest."""

    run: Run
    config: Config
    labels: LabelSet
    judge: Judge | None = None
    unreadable: list[dict[str, str]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    unanswered: list[TeachError] = field(default_factory=list)
    advance: Callable[[int], None] = lambda traces: None
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _prices: list[dict[str, Any]] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    def todo(self, clips: Sequence[Clip]) -> dict[str, list[int]]:
        """The sample numbers still to be written, by clip. Traces stored just before a kill are scored here."""
        columns = ["trace_id", "clip_id", "sample", "text", "truncated", "true_label"]
        rows = self.run.table("traces", columns).to_pylist()
        scored_ids = {key for key, name in self.run.done("scores", ("trace_id", "name")) if name == "kept"}
        self._score([row for row in rows if row["trace_id"] not in scored_ids])
        existing = {(row["clip_id"], row["sample"]) for row in rows}
        numbers = range(self.config.teach.traces)
        return {clip["clip_id"]: [n for n in numbers if (clip["clip_id"], n) not in existing] for clip in clips}

    def take(
        self,
        clip: Clip,
        sample: int,
        text: str,
        *,
        truncated: bool = False,
        prompt_tokens: int | None = None,
        **fields: Any,
    ) -> None:
        """One trace, and what its question cost in tokens where that is known. `fields` are columns of the grain."""
        row = TraceRow.of(
            parse(text, self.config.prompt.grammar, self.labels, truncated),
            trace_id=trace_id(self.run.id, clip["clip_id"], sample),
            clip_id=clip["clip_id"],
            sample=sample,
            true_label=clip["label"],
            truncated=truncated,
            **fields,
        )
        self._rows.append(row.to_dict())
        if prompt_tokens is not None:
            self._prices.append({"trace_id": row.trace_id, "name": "prompt_tokens", "value": float(prompt_tokens)})
        self.advance(1)
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._flushed > PART_SECONDS:
            self.flush()

    def skip(self, clip: Clip, error: VideoError, traces: int) -> None:
        """A clip that could not be read after all."""
        self.unreadable.append({"clip_id": clip["clip_id"], "source": clip["source"], "reason": str(error.reason)})
        self.advance(traces)

    def flush(self) -> None:
        """Put what is held on disk: what cannot be computed again before what can."""
        rows, prices = self._rows, self._prices
        self._rows, self._prices, self._flushed = [], [], time.monotonic()
        self.run.append("scores", prices)
        self.run.append("traces", rows)
        self._score(rows)

    def _score(self, rows: Sequence[Mapping[str, Any]]) -> None:
        scores: list[dict[str, Any]] = []

        def note(row: Mapping[str, Any], name: str, value: float, evidence: str) -> None:
            scores.append({"trace_id": row["trace_id"], "name": name, "value": value, "evidence": evidence})

        pairs: list[tuple[Mapping[str, Any], Trace]] = []
        for row in rows:
            trace = parse(row["text"], self.config.prompt.grammar, self.labels, bool(row["truncated"]))
            score = rewards.score(trace, row["true_label"])
            note(row, "accuracy", score.accuracy, score.label)
            note(row, "format", score.format, score.reason)
            why = score.reason or ("" if score.accuracy or self.config.teach.keep_wrong else WRONG_LABEL)
            if why:
                note(row, "kept", 0.0, why)
            else:
                pairs.append((row, trace))
        if self.judge:
            questions = [Question(r["clip_id"], r["true_label"], t.segment("observation")) for r, t in pairs]
            for (row, _), verdict in zip(pairs, self.judge(questions), strict=True):
                note(row, "sufficient", float(verdict.sufficient), verdict.evidence)
                note(row, "kept", float(verdict.sufficient), "" if verdict.sufficient else INSUFFICIENT)
        else:
            for row, _ in pairs:
                note(row, "kept", 1.0, "")
        self.run.append("scores", scores)

    def __enter__(self) -> TraceRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


@dataclass
class _Count:
    clips: int = 0
    clips_kept: int = 0
    written: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def summary(run: Run, clips: Sequence[Clip], labels: LabelSet, teach: TeachConfig) -> dict[str, Any]:
    """Counts over the stored rows: clips, traces, kept, dropped by reason, in all and by class; tokens, cost, seconds.

    `clips_kept` have at least one kept trace. Tokens are those of every stored trace, whichever session paid for them;
    `cost`, in the currency of the prices, is a lower bound where `without_usage` is above 0. A clip that left the split
    since the run began is counted nowhere.
    """
    label_of = {clip["clip_id"]: clip["label"] for clip in clips}
    traces = run.table("traces", ["trace_id", "clip_id", "tokens", "milliseconds"]).to_pylist()
    traces = [row for row in traces if row["clip_id"] in label_of]
    scores = {(row["trace_id"], row["name"]): row for row in run.table("scores").to_pylist()}
    prices = {key: int(row["value"]) for (key, name), row in scores.items() if name == "prompt_tokens"}
    by_class = {label: _Count() for label in labels}
    with_kept = set()
    for row in traces:
        count, verdict = by_class[label_of[row["clip_id"]]], scores[row["trace_id"], "kept"]
        count.written += 1
        if verdict["value"]:
            count.kept += 1
            with_kept.add(row["clip_id"])
        else:
            count.dropped[verdict["evidence"]] += 1
    for clip_id, label in label_of.items():
        by_class[label].clips += 1
        by_class[label].clips_kept += clip_id in with_kept
    prompt_tokens = sum(prices.get(row["trace_id"], 0) for row in traces)
    completion_tokens = sum(row["tokens"] or 0 for row in traces)
    asked_for_pay = teach.source == "endpoint"
    return {
        "source": teach.source,
        "clips": len(clips),
        "clips_kept": len(with_kept),
        "asked": len(clips) * teach.traces,
        "written": len(traces),
        "kept": sum(count.kept for count in by_class.values()),
        "dropped": dict(sum((count.dropped for count in by_class.values()), Counter()).most_common()),
        "by_class": {label: {**vars(count), "dropped": dict(count.dropped)} for label, count in by_class.items()},
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "without_usage": asked_for_pay * sum(row["tokens"] is None or row["trace_id"] not in prices for row in traces),
        "cost": (prompt_tokens * teach.price_in + completion_tokens * teach.price_out) / 1e6,
        "teacher_seconds": round(sum(row["milliseconds"] or 0 for row in traces) / 1000, 3),
    }


def summary_table(summary: Mapping[str, Any]) -> Table:
    """A finished run's summary for the terminal: a row per class, a column per reason."""
    reasons = list(summary["dropped"])
    remarks = [f"{len(summary[kind])} {words}" for kind, words in _LISTS.items() if summary[kind]]
    if summary["prompt_tokens"] or summary["completion_tokens"]:
        tokens = f"{summary['prompt_tokens']:,} + {summary['completion_tokens']:,} tokens"
        remarks.append(f"{tokens}, cost {summary['cost']:.4f}")
    if summary["without_usage"]:
        remarks.append(f"{summary['without_usage']} answers without token counts: the cost is a lower bound")
    table = Table(
        title=f"{summary['kept']} of {summary['asked']} traces kept ({summary['source']})",
        caption=" · ".join([*remarks, f"{summary['seconds']:.1f} s"]),
    )
    table.add_column("class")
    for column in ("clips", "with a trace", "written", "kept", *reasons):
        table.add_column(column, justify="right")
    for label, row in summary["by_class"].items():
        _add_row(table, label, row, reasons)
    table.add_section()
    _add_row(table, "all", summary, reasons)
    return table


_LISTS = {"excluded": "clips excluded at import", "unreadable": "clips unreadable", "refused": "requests refused"}


def _add_row(table: Table, label: str, row: Mapping[str, Any], reasons: Sequence[str]) -> None:
    counts = [row[name] for name in ("clips", "clips_kept", "written", "kept")]
    table.add_row(label, *map(str, counts), *(str(row["dropped"].get(reason, 0)) for reason in reasons))
