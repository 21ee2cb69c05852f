"""The grains: which columns a stored row has, and how rows become a table.

One chain of ids: runs → clips → traces → scores. A *grain* has a fixed schema and a key. A later row with the key of an
earlier one replaces it for every reader (a training run that resumes from a checkpoint writes some steps twice); the
parts themselves never change.

Text comes back as it went in, NUL and emoji included, with one exception: a lone surrogate has no UTF-8 form and is
stored as U+FFFD. `nan` in a number column reads back as missing in pandas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from deepintuit.errors import StoreError, nearest
from deepintuit.trace import Malformed, Trace

_text, _int, _real, _flag = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_instant = pa.timestamp("us")  # UTC


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


@dataclass(frozen=True)
class Grain:
    """`key`: columns that name a row within a run."""

    name: str
    key: tuple[str, ...]
    schema: pa.Schema

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.schema.names)


def _column(kind: pa.DataType, *, needed: bool = False) -> Any:
    return field(metadata={"kind": kind}) if needed else field(default=None, metadata={"kind": kind})


@dataclass(kw_only=True)
class TraceRow:
    """A row of the grain `traces`: one generated text, with all that is known of how it came about. None is missing;
    `trace_id`, `run_id` and `stage` are filled in when a run stores it."""

    trace_id: str | None = _column(_text)
    run_id: str | None = _column(_text)
    clip_id: str = _column(_text, needed=True)
    stage: str | None = _column(_text)
    sample: int = _column(_int, needed=True)
    step: int | None = _column(_int)  # in training only
    temperature: float | None = _column(_real)
    text: str = _column(_text, needed=True)
    answer: str | None = _column(_text)  # as written; of a malformed text there is none
    provisional: str | None = _column(_text)
    reason: str | None = _column(_text)  # why it is malformed (`trace.Reason`)
    detail: str | None = _column(_text)
    true_label: str | None = _column(_text)
    tokens: int | None = _column(_int)
    token_logprobs: Sequence[float] | None = _column(pa.list_(pa.float32()))  # natural logarithms
    token_ids: Sequence[int] | None = _column(pa.list_(pa.int32()))
    frame_indices: Sequence[int] | None = _column(pa.list_(pa.int32()))
    frame_times: Sequence[float] | None = _column(pa.list_(pa.float64()))  # seconds
    frame_hash: str | None = _column(_text)
    frames_size: Sequence[int] | None = _column(pa.list_(pa.int32()))  # [width, height] in pixels
    reader: str | None = _column(_text)
    milliseconds: float | None = _column(_real)
    confidence: float | None = _column(_real)  # exp(mean of `token_logprobs`)
    truncated: bool | None = _column(_flag)
    prompt_hash: str | None = _column(_text)
    model: str | None = _column(_text)
    # Where no gate watched, `thought` is missing; false where the quick answer was sure enough (`quick_confidence`) and
    # ended the work after `quick_tokens`. `quick_probability`: the calibrator's highest after it, where that was the
    # gate.
    quick_confidence: float | None = _column(_real)
    quick_tokens: int | None = _column(_int)
    thought: bool | None = _column(_flag)
    quick_probability: float | None = _column(_real)

    @classmethod
    def of(cls, trace: Trace | Malformed, **columns: Any) -> TraceRow:
        """The row of a parsed text; `columns` are the others, and go before what the parser says."""
        answer, reason, detail = (trace.answer, None, None) if trace.ok else (None, str(trace.reason), trace.detail)
        parsed = {"answer": answer, "provisional": trace.provisional, "reason": reason, "detail": detail}
        return cls(**{"text": trace.text, **parsed, **columns})

    def to_dict(self) -> dict[str, Any]:
        """The columns that are not missing."""
        return {name: value for name, value in vars(self).items() if value is not None}


_TRACES = pa.schema(
    pa.field(column.name, column.metadata["kind"], column.default is None and column.name not in ("trace_id", "run_id"))
    for column in fields(TraceRow)
)

# fmt: off
GRAINS: dict[str, Grain] = {grain.name: grain for grain in (
    Grain("traces", ("trace_id",), _TRACES),
    # One number about one trace (accuracy, format, …) with what it rests on.
    Grain("scores", ("trace_id", "name"), pa.schema([
        _required("trace_id", _text), _required("run_id", _text), _required("name", _text), _required("value", _real),
        ("evidence", _text),
    ])),
    # One class distribution for one clip by one system. `control`: none, or a key of `report.results.CONTROLS`;
    # `probs` follows `labels`; `outside_mass` is the probability outside the label set. The last three are those of
    # `reasoner.distance.Far`, missing where it was not measured.
    Grain("predictions", ("clip_id", "split", "system", "method", "control", "trace_id"), pa.schema([
        _required("run_id", _text), _required("clip_id", _text), _required("split", _text), _required("system", _text),
        _required("method", _text), _required("control", _text), ("trace_id", _text), ("true_label", _text),
        ("provisional", _text), _required("predicted", _text), ("labels", pa.list_(_text)),
        ("probs", pa.list_(pa.float64())), ("outside_mass", _real), ("temperature", _real),
        ("distance", _real), ("farther_than", _real), ("unlike", _flag),
    ])),
    # One sentence of a trace left out (`reasoner.attribution`): `effect` is what the probability of `answer`, the
    # calibrated label, loses by it. `sentence` counts from 0 as in reviews; `begins`, `ends`: characters of the trace.
    Grain("attributions", ("trace_id", "sentence"), pa.schema([
        _required("run_id", _text), _required("trace_id", _text), _required("clip_id", _text),
        _required("sentence", _int), _required("segment", _text), _required("begins", _int), _required("ends", _int),
        _required("text", _text), _required("answer", _text), _required("probability", _real),
        _required("effect", _real), _required("answer_without", _text),
    ])),
    # One logged number of a training run; `time` is the wall clock in UTC.
    Grain("steps", ("step", "name"), pa.schema([
        _required("run_id", _text), _required("step", _int), _required("name", _text), ("value", _real),
        ("time", _instant),
    ])),
)}
# fmt: on


def grain_named(name: str) -> Grain:
    if name not in GRAINS:
        raise StoreError(
            f"there is no grain {name!r}",
            f"the store holds {', '.join(GRAINS)}",
            f"nearest: {nearest(str(name), GRAINS) or next(iter(GRAINS))!r}",
        )
    return GRAINS[name]


def trace_id(run_id: str, clip_id: str, sample: int, step: int | None = None) -> str:
    """The same run, clip, sample (and training step) always give the same id: 20 hex digits."""
    text = "\n".join((run_id, clip_id, str(int(sample)), "" if step is None else str(int(step))))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def unnamed(traces: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one run's traces as another run appends them, under names of its own."""
    return [{key: value for key, value in row.items() if key not in ("trace_id", "run_id", "stage")} for row in traces]


def storable(value: Any) -> Any:
    """Text that UTF-8 can hold: surrogate pairs joined, a lone surrogate replaced by U+FFFD. Other values pass."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def table(grain: Grain, rows: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]) -> pa.Table:
    """Rows as an Arrow table of the grain's schema; `defaults` fill what a row leaves out.

    StoreError for an unknown column, a missing required one, a value of another type, two rows with one key.
    """
    rows = [{**defaults, **row} for row in rows]
    for row in rows:
        for column in row.keys() - set(grain.columns):
            raise StoreError(
                f"a row of {grain.name!r} has the column {column!r}",
                "the columns of a grain are fixed, so that every part of every run can be read together",
                f"nearest: {nearest(str(column), grain.columns) or grain.columns[0]!r}; the columns are "
                + ", ".join(grain.columns),
            )
        if grain.name == "traces" and row.get("trace_id") is None and row.get("sample") is not None:
            row["trace_id"] = trace_id(row["run_id"], str(row.get("clip_id")), row["sample"], row.get("step"))
    arrays = [_array(grain, field, [row.get(field.name) for row in rows]) for field in grain.schema]
    result = pa.Table.from_arrays(arrays, schema=grain.schema)
    _refuse_repeats(grain, result)
    return result


def _array(grain: Grain, field: pa.Field, values: list[Any]) -> pa.Array:
    if not field.nullable and any(value is None for value in values):
        raise StoreError(
            f"row {values.index(None)} of {grain.name!r} has no {field.name!r}",
            "without it the row could not be joined or counted",
            "give it a value",
        )
    if pa.types.is_string(field.type):
        values = [storable(value) for value in values]
    elif field.type == pa.list_(_text):
        values = [None if value is None else [storable(item) for item in value] for value in values]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        position = _first_bad(values, field.type)
        raise StoreError(
            f"row {position} of {grain.name!r} has {field.name} = {values[position]!r:.80}",
            f"the column holds {field.type} ({error})",
            "convert the value before it is stored",
        ) from error


def _first_bad(values: Sequence[Any], kind: pa.DataType) -> int:
    for position, value in enumerate(values):
        try:
            pa.array([value], kind)
        except (pa.ArrowException, TypeError, OverflowError):
            return position
    return 0


def _refuse_repeats(grain: Grain, rows: pa.Table) -> None:
    keys: set[tuple[Any, ...]] = set()
    for key in zip(*(rows[column].to_pylist() for column in grain.key)):
        if key in keys:
            raise StoreError(
                f"two rows of {grain.name!r} in one call have the key {dict(zip(grain.key, key))}",
                "one would hide the other",
                "give each sample, score or prediction a key of its own",
            )
        keys.add(key)


def newest(tables: Iterable[pa.Table], grain: Grain, columns: Sequence[str] | None = None) -> pa.Table:
    """Parts in writing order as one table in which the last row of a key stands; columns new since a part are null."""
    names = tuple(grain.columns if columns is None else columns)
    schema = pa.schema([grain.schema.field(name).with_nullable(True) for name in dict.fromkeys((*names, *grain.key))])
    whole = pa.concat_tables(
        [
            schema.empty_table(),
            *(part.select([name for name in schema.names if name in part.column_names]) for part in tables),
        ],
        promote_options="permissive",
    )
    last = dict(zip(zip(*(whole[column].to_pylist() for column in grain.key)), range(whole.num_rows)))
    if len(last) < whole.num_rows:
        whole = whole.take(pa.array(sorted(last.values()), pa.int64()))
    return whole.select(names)
