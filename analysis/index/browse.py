"""Questions that a person asks the index: this clip's file, this trace, the traces of a slice.

    asked = TraceFilter(run="evaluate-…", true="theft", provisional="delivery")
    found = page(workbench, asked, sort="token_confidence", limit=50)      # found.rows, found.total
    TraceFilter.from_query(asked.to_query()) == asked                # a slice travels in an address

A filter reads only those columns of `stored_traces` that it names; texts are fetched for the rows that are shown. What
is asked by name (run, labels, reason …) is counted in `trace_counts`, and a page in such an order looks only among the
rows of its own run or label. Values travel as parameters, never as text of a query, and columns come from the lists
below.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from deepintuit import addresses, worlds
from deepintuit.errors import DeepIntuitError, StoreError, nearest
from deepintuit.runs.schema import storable
from deepintuit.tables import FORMATS, written
from deepintuit_analysis.index import search
from deepintuit_analysis.index.build import AS_WRITTEN, COUNTED_BY, FOUND_BY_ID

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from deepintuit_analysis import Workbench

MOST_ROWS = 500
COUNTED = 10_000
"""Of a text search, as many finds are counted and can be paged through."""
_STRETCH = 16_384  # rows of the index that an export looks at in one go
_LONGEST = 300  # characters of a value in a query

RIGHT = {"right": "{} = true_label", "wrong": "{} <> true_label"}
FLIPS = {
    "broken": "provisional = true_label AND calibrated <> true_label",
    "fixed": "provisional <> true_label AND calibrated = true_label",
    "changed": "provisional <> calibrated",
    "kept": "provisional = calibrated",
}
"""What calibration did to a trace's answer: right → wrong, wrong → right, another label, the same label."""
_MISMATCHED = "trace_id IN (SELECT trace_id FROM scores WHERE name = 'mismatch' AND value {} 0)"
FOLLOWS = {"no": _MISMATCHED.format(">"), "yes": _MISMATCHED.format("=")}
"""Whether the label of a trace is the one that its reasoning argues for, where that was scored."""
WELL_FORMED, MALFORMED = "well-formed", "malformed"
"""Two values of `reason` beside the reasons themselves."""

_KEYS = {"flip": FLIPS, "follows": FOLLOWS}
_JUDGED = "trace_id IN (SELECT trace_id FROM judge_answers WHERE question = ? AND answer = ?)"
_SAME = {
    "run": "run_id", "stage": "stage", "dataset": "dataset", "split": "split", "true": "true_label",
    "provisional": "provisional", "calibrated": "calibrated", "step": "step", "sample": "sample",
}  # fmt: skip
_RANGE = {
    "min_token_confidence": "confidence >= ?", "max_token_confidence": "confidence <= ?", "min_tokens": "tokens >= ?",
    "max_tokens": "tokens <= ?",
}  # fmt: skip
SORTS = {
    "newest": "created", "run": "run_id", "stage": "stage", "split": "split", "true": "true_label",
    "provisional": "provisional", "calibrated": "calibrated", "calibrated_confidence": "certainty", "reason": "reason",
    "token_confidence": "confidence", "tokens": "tokens", "milliseconds": "milliseconds", "step": "step",
    "sample": "sample", "clip": "clip_id",
}  # fmt: skip
"""What a page may be sorted by, and its column."""
OLDER_NAMES = {
    "confidence": "token_confidence", "certainty": "calibrated_confidence", "min_confidence": "min_token_confidence",
    "max_confidence": "max_token_confidence",
}  # fmt: skip
"""What addresses and saved slices called sorts and filters before → their names."""
PAGE = ("sort", "size", "page", "trace", "compare", "colour")
"""What an address of the page Traces says beside its filters."""
_FACTS = (
    "trace_id, run_id, stage, dataset, split, clip_id, sample, step, true_label, provisional, calibrated, certainty, "
    "reason, confidence, tokens, milliseconds"
)
_SHOWN = f"{_FACTS}, text"
_CHOICES = ("run", "stage", "dataset", "split", "true", "provisional", "calibrated", "reason")
# In two steps, since other columns are only looked at where the short id is found.
_ONE = "rowid IN (SELECT rowid FROM stored_traces WHERE short_id = short_id_of($1)) AND trace_id = $1"
EXPORTED = (*_FACTS.split(", "), "temperature", "detail", "model", "text")


@dataclass(frozen=True)
class TraceFilter:
    """Which traces: every field that is not None (or empty) must hold.

    `true` is the label of the clip, `provisional` the trace's own answer ("none" without one), `calibrated` what the
    newest calibrator says after reading clip and trace. `right`: "right" or "wrong", about the trace's answer; `final`:
    the same about the calibrated label. `reason`: a malformed trace's reason, "malformed" for any, "well-formed".
    `flip`: a key of `FLIPS`, `follows` one of `FOLLOWS`. `judge`: a question of a rubric and its answer, "hedges:yes".
    `text`: a phrase that the trace holds, capitals or not.
    `slice`: a saved slice's name.
    Confidences are 0 … 1, both ends included.
    """

    run: str | None = None
    stage: str | None = None
    dataset: str | None = None
    split: str | None = None
    true: str | None = None
    provisional: str | None = None
    calibrated: str | None = None
    right: str | None = None
    final: str | None = None
    flip: str | None = None
    follows: str | None = None
    judge: str | None = None
    reason: str | None = None
    min_token_confidence: float | None = None
    max_token_confidence: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    step: int | None = None
    sample: int | None = None
    clip: str | None = None
    text: str | None = None
    slice: str | None = None

    @classmethod
    def from_query(cls, query: Mapping[str, Any]) -> TraceFilter:
        """Read what an address (or a form) says. Other names, numbers that are none, and words that are not one of the
        few known are left out; a run or label that does not exist stays, and finds nothing. Never raises."""
        query = {OLDER_NAMES[old]: value for old, value in query.items() if old in OLDER_NAMES} | dict(query)
        return cls(**{field.name: _read(field.name, query.get(field.name)) for field in fields(cls)})

    @classmethod
    def from_address(cls, address: str) -> TraceFilter:
        """The filter in an address of the page Traces, or in what stands behind its `?`; "" is all traces. StoreError
        for a part that filters nothing: without it more would be found than was asked for."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query or address.lstrip("?")).items()}
        filters = cls.from_query(query)
        words = {*filters.to_query(), *PAGE}
        parts = [f"{name}={value}" for name, value in query.items() if OLDER_NAMES.get(name, name) not in words]
        if parts or (address.strip() and not query):
            raise StoreError(
                f"the filter {(*parts, address.strip())[0][:80]!r}",
                "it is no filter of the page Traces, and the rest would find more than was asked for",
                "Filter there, and copy the address of that page",
            )
        return filters

    def to_query(self) -> dict[str, str]:
        """The fields that are set, as text; `from_query` gives the same filter back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value not in (None, "")}

    def where(self, workbench: Workbench, within: tuple[str, ...] = ()) -> tuple[str, list[Any]]:
        """A condition over `trace_facts` and its parameters; StoreError for a slice that does not exist. `within`:
        slices that are being looked up."""
        conditions, values = [], []
        for name, text in self.to_query().items():
            if name in _SAME:
                conditions.append(f"{_SAME[name]} = ?")
                values.append(getattr(self, name))
            elif name in _RANGE:
                conditions.append(_RANGE[name])
                values.append(getattr(self, name))
            elif name == "clip":
                conditions.append("short_clip = short_id_of(?) AND clip_id = ?")
                values += [text, text]
            elif name in ("right", "final"):
                column = "provisional" if name == "right" else "calibrated"
                conditions.append(_one_of(RIGHT, name, text).format(column))
            elif name in _KEYS:
                conditions.append(_one_of(_KEYS[name], name, text))
            elif name == "judge":
                question, _, answer = text.rpartition(":")
                conditions.append(_JUDGED)
                values += [question, answer]
            elif name == "reason" and text in (WELL_FORMED, MALFORMED):
                conditions.append(f"reason IS {'' if text == WELL_FORMED else 'NOT '}NULL")
            elif name == "reason":
                conditions.append("reason = ?")
                values.append(text)
            elif name == "slice":
                clause, parameters = workbench.slice(text).where(within)
                conditions.append(f"({clause})")
                values += parameters
            else:
                clause, phrase = search.condition(storable(text))
                conditions.append(clause)
                values.append(phrase)
        return " AND ".join(conditions) or "true", values

    @property
    def counted(self) -> bool:
        """Whether `trace_counts` knows all that it names."""
        return (
            self.to_query().keys().isdisjoint((*_RANGE, "follows", "judge", "step", "sample", "clip", "text", "slice"))
        )

    @property
    def counts(self) -> str:
        """A table in which `n` summed over the rows that hold is the number of traces."""
        return "trace_counts" if self.counted else "(SELECT *, 1 AS n FROM stored_traces)"


def _read(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (list, tuple, dict, bool)) or not str(value).strip():
        return None
    text = str(value).strip()[:_LONGEST]
    if name in ("right", "final", *_KEYS):
        return text if text in _KEYS.get(name, RIGHT) else None
    if name in _RANGE or name in ("step", "sample"):
        try:
            number = float(text)
        except ValueError:
            return None
        if not abs(number) < 1e15:  # nan and infinity too
            return None
        return number if name.endswith("confidence") else int(number)
    return text


def _one_of(options: Mapping[str, str], name: str, value: str) -> str:
    if value not in options:
        raise StoreError(
            f"{name} = {value!r}",
            f"it is one of {', '.join(options)}",
            f"Nearest: {nearest(value, options) or next(iter(options))!r}",
        )
    return options[value]


@dataclass(frozen=True)
class Page:
    """`rows`: the columns of `trace_facts` but for `lowered` and `marks`, and `text`; `total`: how many the filter
    finds in all; `more`: a text search found more than that, which nobody counted."""

    rows: pd.DataFrame
    total: int
    more: bool = False


def count(workbench: Workbench, filters: TraceFilter) -> int:
    condition, values = filters.where(workbench)
    sql = f"SELECT coalesce(sum(n), 0) AS n FROM {filters.counts} WHERE {condition}"  # noqa: S608
    return int(workbench.query(sql, values).n[0])


def page(
    workbench: Workbench,
    filters: TraceFilter,
    sort: str = "newest",
    descending: bool | None = None,
    limit: int = 50,
    offset: int = 0,
) -> Page:
    """Rows `offset` … `offset + limit` of what the filter finds. Sorted by a key of `SORTS` (StoreError for another
    one), by default the newest run first and all else upwards; what is missing comes last, ties in stored order. A text
    search ends after `COUNTED` rows of this order."""
    sort = OLDER_NAMES.get(sort, sort)
    if sort not in SORTS:
        raise StoreError(
            f"traces sorted by {sort!r}",
            f"they are sorted by {', '.join(SORTS)}",
            f"Nearest: {nearest(sort, SORTS) or 'newest'!r}",
        )
    direction = "DESC" if (sort == "newest" if descending is None else descending) else "ASC"
    column, limit, offset = SORTS[sort], max(1, min(int(limit), MOST_ROWS)), max(0, int(offset))
    order = f"{column} {direction} NULLS LAST, rowid"
    among, values = filters.where(workbench)
    if filters.counted and column in COUNTED_BY:
        return _among_alike(workbench, among, values, column, direction, limit, offset)
    first = ""
    if filters.text or filters.clip:  # what is found is kept, since finding it anew takes longer than the rest
        most = f"LIMIT {COUNTED + 1}" if filters.text else ""
        first = f"found AS MATERIALIZED (SELECT rowid AS number FROM stored_traces WHERE {among} {most}),"  # noqa: S608
        total, among = "SELECT count(*) AS n FROM found", "rowid IN (FROM found)"
    else:
        total = f"SELECT coalesce(sum(n), 0)::BIGINT AS n FROM {filters.counts} WHERE {among}"  # noqa: S608
    # Only the numbers of the rows on this page are carried further. To count on its own is quicker than in a window.
    rows = workbench.query(
        f"""WITH {first} chosen AS MATERIALIZED (
                SELECT rowid AS number FROM stored_traces WHERE {among} ORDER BY {order} LIMIT {limit} OFFSET {offset})
            SELECT ({total}) AS total, {_SHOWN}
            FROM stored_traces JOIN chosen ON stored_traces.rowid = number ORDER BY {order}""",  # noqa: S608
        values if first else [*values, *values],
    )
    totals = rows.pop("total")
    matches = int(totals.max()) if len(rows) else 0
    if rows.empty and offset:
        matches = int(workbench.query(f"{f'WITH {first[:-1]} ' if first else ''}{total}", values).n[0])
    more = bool(filters.text) and matches > COUNTED
    if more:
        matches = COUNTED
        rows = _first_of_many(workbench, filters, order, min(limit, max(0, matches - offset)), offset)
    return Page(rows, matches, more)


def _among_alike(
    workbench: Workbench, among: str, values: list[Any], column: str, direction: str, limit: int, offset: int
) -> Page:
    """A page of which `trace_counts` tells what its rows have in `column`: only among those is it looked for."""
    snapshot = workbench.snapshot()  # both queries must agree
    alike = snapshot.query(
        f"""SELECT {column} AS value, sum(n)::BIGINT AS n FROM trace_counts WHERE {among}
            GROUP BY ALL ORDER BY value {direction} NULLS LAST""", values, None, None).to_pylist()  # fmt: skip  # noqa: S608
    ends = list(accumulate(group["n"] for group in alike))
    here = [group for group, end in zip(alike, ends) if end > offset and end - group["n"] < offset + limit]
    start = sum(group["n"] for group, end in zip(alike, ends) if end <= offset)
    present = [group["value"] for group in here if group["value"] is not None]
    near = [f"{column} IN ({', '.join('?' * len(present))})"] if present else []
    near += [f"{column} IS NULL"] if len(present) < len(here) else []
    order = f"{column} {direction} NULLS LAST, rowid"
    rows = snapshot.query(
        f"""WITH chosen AS MATERIALIZED (
                SELECT rowid AS number FROM stored_traces WHERE {among} AND ({" OR ".join(near) or "false"})
                {f"ORDER BY {order}" if len(here) > 1 else ""} LIMIT {limit} OFFSET {offset - start})
            SELECT {_SHOWN} FROM stored_traces JOIN chosen ON stored_traces.rowid = number ORDER BY {order}""",  # noqa: S608
        [*values, *present],
        None,
        None,
    )
    return Page(rows.to_pandas(), ends[-1] if ends else 0)


def _first_of_many(workbench: Workbench, filters: TraceFilter, order: str, limit: int, offset: int) -> pd.DataFrame:
    """A page of what so many texts hold that the next ones in this order will do: those are read, more if need be."""
    rest, values = replace(filters, text=None).where(workbench)
    holds, phrase = search.condition(storable(filters.text))
    for reach in (8, 64, 512, 10**6):
        rows = workbench.query(
            f"""WITH near AS MATERIALIZED (
                    SELECT rowid AS number FROM stored_traces WHERE {rest} ORDER BY {order}
                    LIMIT {reach * (offset + limit)})
                SELECT {_SHOWN} FROM stored_traces WHERE rowid IN (FROM near) AND {holds}
                ORDER BY {order} LIMIT {limit} OFFSET {offset}""",  # noqa: S608
            [*values, phrase],
        )
        if len(rows) == limit:
            break
    return rows


def choices(workbench: Workbench) -> dict[str, list[tuple[str, int]]]:
    """What each filter can be, with the number of traces: run (newest first), stage, dataset, split, true, provisional,
    calibrated and reason, the commonest first. What a trace does not have is not counted, but `reason` begins with the
    well-formed ones and all malformed ones. `judge`: each question with each of its answers."""
    each = (
        f"""SELECT '{name}' AS what, {column} AS value, sum(n)::BIGINT AS n, max(created) AS newest
                FROM trace_counts WHERE {column} IS NOT NULL GROUP BY ALL"""  # noqa: S608
        for name, column in zip(_CHOICES, (_SAME.get(name, name) for name in _CHOICES))
    )
    counts = workbench.snapshot().query(
        f"""FROM ({" UNION ALL ".join(each)})
            ORDER BY CASE what WHEN 'run' THEN newest END DESC, CASE what WHEN 'run' THEN 0 ELSE n END DESC, value""",
        (),
        None,
        None,
    )
    options: dict[str, list[tuple[str, int]]] = {name: [] for name in _CHOICES}
    for filter_name, value, n in zip(*(counts[name].to_pylist() for name in ("what", "value", "n"))):
        options[filter_name].append((value, n))
    malformed, total = (sum(n for _, n in options[name]) for name in ("reason", "stage"))
    if total:
        options["reason"][:0] = [(WELL_FORMED, total - malformed), (MALFORMED, malformed)]
    judged = workbench.query("SELECT question, answer, count(*) AS n FROM judge_answers GROUP BY ALL ORDER BY ALL")
    options["judge"] = [(f"{row.question}:{row.answer}", row.n) for row in judged.itertuples(index=False)]
    return options


def fact(workbench: Workbench, trace_id: str) -> dict[str, Any] | None:
    """What the list says of one trace (the columns of `page` but for the text); what is missing is None."""
    rows = workbench.query(f"SELECT {_FACTS} FROM stored_traces WHERE {_ONE} LIMIT 1", [trace_id])  # noqa: S608
    return None if rows.empty else records(rows)[0]


def siblings(workbench: Workbench, trace_id: str, limit: int = 100) -> pd.DataFrame:
    """Traces of the same clip by other runs, stages, steps and samples: the columns of `page` but for the text, newest
    run first."""
    facts, limit = fact(workbench, trace_id), max(1, min(int(limit), MOST_ROWS))
    among, values = TraceFilter(clip=facts["clip_id"]).where(workbench) if facts else ("false", [])
    rows = workbench.query(
        f"""SELECT {_FACTS} FROM stored_traces WHERE {among}
            ORDER BY created DESC, run_id, step, sample LIMIT {limit + 1}""",  # noqa: S608
        values,
    )
    return rows[rows["trace_id"] != trace_id].head(limit).reset_index(drop=True)


def judge_answers(workbench: Workbench, trace_id: str) -> list[tuple[str, str, str]]:
    """What judges answered to rubrics about one trace: the question in words where it has any, the answer, and what
    that rests on."""
    rows = workbench.query(
        f"""SELECT coalesce(nullif(list_filter(from_json(config->'$.rubric.questions', '[{{"name": "VARCHAR", "ask":
                "VARCHAR"}}]'), lambda it: it.name = question)[1].ask, ''), question) AS words, answer, evidence
            FROM judge_answers JOIN runs ON runs.run_id = judge_run
            WHERE {FOUND_BY_ID} AND question <> 'false-step' ORDER BY question""",  # noqa: S608
        [trace_id],
    )
    return list(rows.itertuples(index=False, name=None))


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts in which what is missing is None."""
    return [{name: None if missing(value) else value for name, value in row.items()} for row in rows.to_dict("records")]


def missing(value: Any) -> bool:
    """Whether a cell of a row holds nothing."""
    return value is None or (not hasattr(value, "__len__") and value != value)  # a list is compared item by item


def export(workbench: Workbench, filters: TraceFilter, form: str) -> Iterator[bytes]:
    """All that the filter finds, in stored order, as pieces of a file in one of `FORMATS`: the columns of `EXPORTED`.

    Lists (tokens, frames) stay in the parts. In CSV, texts that a spreadsheet might take for a formula are made
    harmless (`spreadsheet_safe`).
    """
    if form not in FORMATS:
        raise StoreError(
            f"an export as {form!r}", f"there are {', '.join(FORMATS)}", f"Nearest: {nearest(form, FORMATS) or 'csv'!r}"
        )
    condition, values = filters.where(workbench)
    return written(_stretches(workbench, condition, values), form)


def _stretches(workbench: Workbench, condition: str, values: list[Any]) -> Iterator[pa.Table]:
    """What an export holds, a stretch of the index after the other: the first rows come at once, and no more than a
    stretch lies in memory."""
    snapshot = workbench.snapshot()  # the same to the last row, whatever is swapped in meanwhile
    [end] = snapshot.query("SELECT max(rowid) FROM stored_traces", (), None, None)[0].to_pylist()
    start, size = 0, _STRETCH // 16
    while not start or start <= (end or 0):
        stretch = snapshot.query(
            f"""SELECT {", ".join(EXPORTED)} FROM stored_traces
                WHERE rowid BETWEEN {start} AND {start + size - 1} AND {condition} ORDER BY rowid""",  # noqa: S608
            values,
            None,
            None,
        )
        if stretch.num_rows or not start:
            yield stretch
        start, size = start + size, _STRETCH


def clip_file(workbench: Workbench, clip_id: str, *, playable: bool = True) -> Path | None:
    """Where the video of a clip lies: with `playable` the copy that a browser can show, where import made one. None for
    a clip that is excluded. What its store does not give any more is not there, like a file that was moved. VideoError
    for one of the example that this machine renders otherwise."""
    column = "coalesce(playable_path, path)" if playable else "path"
    rows = workbench.query(
        f"SELECT {column} AS path FROM clips WHERE clip_id = ? AND path IS NOT NULL AND excluded IS NULL LIMIT 1",  # noqa: S608
        [clip_id],
    )
    if rows.empty:
        return None
    path = workbench.path / rows.path[0]
    with contextlib.suppress(*[DeepIntuitError] * bool(addresses.origin(path))):
        worlds.at_hand(path)
    return path


def trace(workbench: Workbench, trace_id: str) -> pd.Series | None:
    """One trace with all its columns."""
    rows = workbench.query(f"SELECT {AS_WRITTEN}, part FROM stored_traces WHERE {_ONE} LIMIT 1", [trace_id])  # noqa: S608
    return None if rows.empty else rows.iloc[0]


def argued(workbench: Workbench, trace_ids: Sequence[str]) -> dict[str, str]:
    """Of some traces, those whose reasoning argues for another label than they answer: trace id → that label."""
    rows = workbench.query(
        """SELECT trace_id, any_value(evidence) AS label FROM scores
           WHERE name = 'mismatch' AND value > 0 AND short_id IN (SELECT short_id_of(unnest($1::VARCHAR[])))
             AND trace_id IN (SELECT unnest($1::VARCHAR[])) GROUP BY trace_id""",
        [list(trace_ids)],
    )
    return dict(zip(rows["trace_id"], rows["label"], strict=True))


def scores_of(workbench: Workbench, trace_id: str) -> dict[str, tuple[float, str]]:
    """What was scored about one trace: name → (value, evidence)."""
    rows = workbench.query(f"SELECT name, value, evidence FROM scores WHERE {FOUND_BY_ID}", [trace_id])  # noqa: S608
    return {row.name: (float(row.value), row.evidence or "") for row in rows.itertuples(index=False)}
