"""Prediction rows as an error analysis reads them: who answered what, facts of the clips, and how they divide.

    found = sources(workbench)                                   # dataset, split, run, system and methods that exist
    rows = answers(workbench, run_id, system, split, ["raw", "label_likelihood"])
    known = facts(workbench, run_id, system, split)              # a row per clip: the manifest, and its trace
    for part in parts_of(known["seconds"]): ...                  # quantile bins; names and masks

Never imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepintuit.errors import StoreError
from deepintuit_analysis.index.browse import TraceFilter, count

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

_NOT_SLICED = {
    "dataset", "clip_id", "path", "playable_path", "sha256", "label", "label_given", "split", "given_split", "excluded",
    "excluded_detail", "also_at", "text", "notes", "width", "height", "trace_id",
}  # fmt: skip
FIRST = ("seconds", "note: slice", "group", "size", "tokens")
"""What an analysis asks for first: length, slices that the data names itself, source, size, trace length."""
MOST_WORDS = 200
_MOST_VALUES = 20
_FEW_NUMBERS = 6


def sources(workbench: Workbench) -> pd.DataFrame:
    """A row for each run, system and split that has answers, newest run first, but those that stand on no other
    run come late, and those to clips without labels last:
    dataset ("" when the run names none), split, run_id, system, methods (sorted), clips (the most that one method
    answered), seed, created."""
    rows = workbench.query("""
        SELECT coalesce(runs.dataset, '') AS dataset, split, run_id, system, list(method ORDER BY method) AS methods,
               max(n) AS clips, any_value(runs.seed) AS seed, any_value(runs.created) AS created
        FROM (SELECT run_id, system, split, method, count(*) AS n, count(true_label) AS labelled
              FROM predictions WHERE control = 'none' GROUP BY ALL)
        JOIN runs USING (run_id)
        GROUP BY ALL ORDER BY max(labelled) = 0, any_value(runs.parent) IS NULL, created DESC, run_id DESC, system""")
    return rows.assign(methods=[list(methods) for methods in rows["methods"]])


def answers(workbench: Workbench, run_id: str, system: str, split: str, methods: Sequence[str]) -> pd.DataFrame:
    """All rows of one system on one split by these methods, under every control, ordered by clip."""
    return workbench.query(
        """SELECT clip_id, run_id, split, system, method, control, trace_id, true_label, provisional, predicted, labels,
                  probs, temperature, outside_mass
           FROM predictions WHERE run_id = ? AND system = ? AND split = ? AND method IN (SELECT unnest(?::VARCHAR[]))
           ORDER BY method, control, clip_id""",
        [run_id, system, split, list(methods)],
    )


def within(workbench: Workbench, run_id: str, system: str, split: str, method: str, name: str) -> list[str]:
    """Ids of the clips that this system answered from a trace of the saved slice `name`; an answer that rests on no
    trace counts where the slice is about its clip. StoreError where there is none, or the slice cannot be asked."""
    condition, values = TraceFilter(slice=name).where(workbench)
    rows = workbench.query(
        f"""WITH chosen AS MATERIALIZED (SELECT trace_id, clip_id FROM trace_facts WHERE {condition})
            SELECT DISTINCT clip_id FROM predictions
            WHERE run_id = ? AND system = ? AND split = ? AND method = ? AND control = 'none'
                  AND CASE WHEN trace_id IN (SELECT trace_id FROM trace_facts)
                      THEN trace_id IN (SELECT trace_id FROM chosen)
                      ELSE clip_id IN (SELECT clip_id FROM chosen) END""",  # noqa: S608 - a filter's own conditions
        [*values, run_id, system, split, method],
    )
    if rows.empty:
        n = count(workbench, TraceFilter(slice=name))
        raise StoreError(
            f"the slice {name!r} has no trace of this run on this split",
            f"it holds {n:,} traces, and no answer here rests on one of them",
            "Choose another slice, or the system whose traces it holds",
        )
    return rows["clip_id"].tolist()


def facts(workbench: Workbench, run_id: str, system: str, split: str) -> pd.DataFrame:
    """What is known of each clip that this system answered, by clip_id: `file`, every manifest column with one value a
    clip, `size`, its texts and notes (`text: name`, `note: name`; a note that is a JSON object gives a column a key),
    and of its trace in this run `tokens`, `trace_confidence`, `reason` ("well-formed" where there is none), and
    `follows` ("no" where the reasoning argues for another label than the answer), and `judge: question`."""
    clips = workbench.query(
        """SELECT clips.* FROM clips SEMI JOIN
                  (SELECT clip_id FROM predictions WHERE run_id = $run AND system = $system AND split = $split)
                  USING (clip_id)
           WHERE dataset IS NOT DISTINCT FROM coalesce((SELECT dataset FROM runs WHERE run_id = $run), dataset)
           QUALIFY row_number() OVER (PARTITION BY clip_id ORDER BY dataset) = 1 ORDER BY clip_id""",
        {"run": run_id, "system": system, "split": split},
    ).set_index("clip_id")
    traces = workbench.query(
        """SELECT answered.clip_id, any_value(tokens) AS tokens, any_value(confidence) AS trace_confidence,
                  any_value(coalesce(reason, 'well-formed')) AS reason,
                  any_value(CASE WHEN mismatch > 0 THEN 'no' WHEN mismatch = 0 THEN 'yes' END) AS follows
           FROM (SELECT DISTINCT clip_id, trace_id FROM predictions
                 WHERE run_id = $run AND system = $system AND split = $split) AS answered
           JOIN traces ON traces.run_id = $run AND traces.trace_id = answered.trace_id
           LEFT JOIN (SELECT trace_id, max(value) AS mismatch FROM scores WHERE run_id = $run AND name = 'mismatch'
                      GROUP BY trace_id) AS scored ON scored.trace_id = answered.trace_id GROUP BY answered.clip_id""",
        {"run": run_id, "system": system, "split": split},
    ).set_index("clip_id")
    judged = workbench.query(
        """SELECT DISTINCT answered.clip_id, question, answer
           FROM (SELECT clip_id, trace_id FROM predictions
                 WHERE run_id = $run AND system = $system AND split = $split) AS answered
           JOIN judge_answers USING (trace_id)""",
        {"run": run_id, "system": system, "split": split},
    ).pivot_table(index="clip_id", columns="question", values="answer", aggfunc="first")
    table = clips.drop(columns=[name for name in clips if name in _NOT_SLICED])
    table["file"] = [_file_name(path) for path in clips["path"]]
    has_size = clips["width"].notna() & clips["height"].notna()
    sizes = clips["width"].fillna(0).astype(int).astype(str) + "×" + clips["height"].fillna(0).astype(int).astype(str)
    table["size"] = sizes.where(has_size, None)
    for kind, column in (("text", "text"), ("note", "notes")):
        if column in clips:
            table = table.join(_named(clips[column], kind))
    return table.join(traces, how="outer").join(judged.add_prefix("judge: "))


def words(workbench: Workbench, run_id: str, system: str, split: str, method: str, least: int) -> pd.DataFrame:
    """Which clip's trace has which word (clip_id, word), of the traces that this system answered from: words of three
    letters and more that neither all but `least` of them have nor fewer than `least`, the most evenly spread
    `MOST_WORDS`."""
    return workbench.query(
        r"""WITH answered AS MATERIALIZED (
                SELECT DISTINCT clip_id, trace_id, short_id FROM predictions
                WHERE run_id = $run AND system = $system AND split = $split AND method = $method AND control = 'none'),
            had AS MATERIALIZED (
                SELECT answered.clip_id, unnest(list_distinct(regexp_extract_all(lowered, '\p{L}{3,}'))) AS word
                FROM answered JOIN stored_traces USING (short_id, trace_id)),
            common AS (
                SELECT word, n FROM (SELECT word, count(*) AS n FROM had GROUP BY word),
                    (SELECT count(*) AS clips FROM answered)
                WHERE n >= $least AND clips - n >= $least ORDER BY least(n, clips - n) DESC, word LIMIT $most)
            SELECT clip_id, word FROM had SEMI JOIN common USING (word) ORDER BY word, clip_id""",
        {
            "run": run_id, "system": system, "split": split, "method": method, "least": least, "most": MOST_WORDS,
        },
    )  # fmt: skip


def _file_name(path: Any) -> str | None:
    return path.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(path, str) else None


def _named(lists_C: pd.Series, kind: str) -> pd.DataFrame:
    """Lists of {name, value} as columns; numbers where every value is one."""
    rows = []
    for entries in lists_C:
        row: dict[str, Any] = {}
        for entry in entries if entries is not None and not isinstance(entries, float) else ():
            value = _object(entry["value"])
            if value is None:
                row[f"{kind}: {entry['name']}"] = entry["value"]
            else:
                plain = {key: part for key, part in value.items() if isinstance(part, str | int | float)}
                row |= {f"{kind}: {entry['name']}.{key}": part for key, part in plain.items()}
        rows.append(row)
    frame = pd.DataFrame(rows, index=lists_C.index)
    for name in frame:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if numbers.notna().sum() == frame[name].notna().sum():
            frame[name] = numbers
    return frame


def _object(text: Any) -> dict[str, Any] | None:
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def sliceable(facts: pd.DataFrame) -> list[str]:
    """Columns of `facts` that divide the clips into at least two parts, those of `FIRST` in front. Text that is almost
    another one for each clip (a file name) divides nothing."""

    def divides(name: str) -> bool:
        if name in _NOT_SLICED or name == "file":
            return False
        values = facts[name].dropna()
        distinct = values.nunique()
        if distinct + int(len(values) < len(facts)) < 2:
            return False
        return _numeric(values) or distinct <= max(_MOST_VALUES, len(values) // 2)

    names = [name for name in facts if divides(name)]
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), names.index(name)))


@dataclass(frozen=True)
class Part:
    """A named part of the clips; `inside_C` marks them."""

    name: str
    inside_C: np.ndarray


def parts_of(values_C: pd.Series, bins: int = 4) -> list[Part]:
    """The clips divided by a column: numbers in quantile bins (each value is its own part where there are at most six),
    texts by value, commonest first, past twenty together as "others"; what is missing last, as "not known". Every clip
    is in exactly one part."""
    if pd.api.types.is_float_dtype(values_C):
        values_C = values_C.round(4)  # a rate of 5.0000001 is no other rate than 5
    has_value = values_C.notna().to_numpy()
    numeric = _numeric(values_C.dropna())
    counts = values_C[has_value].value_counts()
    if numeric and len(counts) > _FEW_NUMBERS:
        parts = _quantile_parts(values_C.astype(float).to_numpy(), has_value, bins)
    else:
        names = sorted(counts.index, key=lambda value: value if numeric else (-counts[value], str(value)))
        place_C = pd.Index(names).get_indexer(values_C)
        parts = [Part(_shown(value), place_C == k) for k, value in enumerate(names[:_MOST_VALUES])]
        if len(names) > _MOST_VALUES:
            parts.append(Part(f"others ({len(names) - _MOST_VALUES} values)", place_C >= _MOST_VALUES))
    return [*parts, Part("not known", ~has_value)] if not has_value.all() else parts


def _quantile_parts(values_C: np.ndarray, known_C: np.ndarray, bins: int) -> list[Part]:
    edges = np.unique(np.quantile(values_C[known_C], np.linspace(0, 1, bins + 1)))
    place_C = np.where(known_C, np.searchsorted(edges[1:-1], values_C, side="left"), -1)
    insides = [inside_C for k in range(len(edges) - 1) if (inside_C := place_C == k).any()]
    ends = [(float(values_C[inside_C].min()), float(values_C[inside_C].max())) for inside_C in insides]
    digits = _digits(ends)
    texts = [[f"{round(end, digits) + 0.0:,.{digits}f}" for end in dict.fromkeys(pair)] for pair in ends]
    return [Part(" to ".join(pair), inside_C) for pair, inside_C in zip(texts, insides)]


def _digits(ends: Sequence[tuple[float, float]]) -> int:
    """Decimals for the ends of all bins: the fewest, four at most, that keep them apart and move none by more than a
    tenth of the narrowest bin."""
    every = {end for pair in ends for end in pair}
    most = min(high - low for low, high in ends if low < high) / 10

    def enough(digits: int) -> bool:
        texts = {end: round(end, digits) for end in every}
        return len({*texts.values()}) == len(every) and all(abs(texts[end] - end) <= most for end in every)

    return next((digits for digits in range(4) if enough(digits)), 4)


def _numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) and len(values) > 0


def _shown(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | float | np.number):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def reasons(workbench: Workbench, run_id: str, name: str = "") -> pd.DataFrame:
    """Every trace of a run (of the saved slice `name`), by stage and what is wrong with it: stage, reason
    ("well-formed" where nothing is), n, share of the stage."""
    query = TraceFilter(run=run_id, slice=name)
    condition, values = query.where(workbench)
    return workbench.query(
        f"""SELECT *, n / sum(n) OVER (PARTITION BY stage) AS share
            FROM (SELECT stage, coalesce(reason, 'well-formed') AS reason, sum(n)::BIGINT AS n
                  FROM {query.counts} WHERE {condition} GROUP BY ALL)
            ORDER BY stage, n DESC, reason""",  # noqa: S608 - as above
        values,
    )


def excluded(workbench: Workbench, dataset: str, split: str) -> pd.DataFrame:
    """Clips of a split that no system could be asked about: reason, n."""
    return workbench.query(
        """SELECT excluded AS reason, count(*) AS n FROM clips
           WHERE dataset = ? AND split = ? AND excluded IS NOT NULL GROUP BY ALL ORDER BY n DESC, reason""",
        [dataset, split],
    )
