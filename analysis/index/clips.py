"""Clips as a person looks for them, and what was said about one: its traces, and the predictions that rest on a trace.

Plain functions of a workbench; values travel as parameters, never as text of a query. Rows come back as dicts.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from deepintuit.trace import GRAMMARS
from deepintuit_analysis.index.browse import TraceFilter, records
from deepintuit_analysis.index.build import FOUND_BY_ID

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

FLIPS = ("changed", "fixed", "broken")
"""What calibration changed, by the name that the page shows."""

_WAYS = ("label_likelihood", "mean_likelihood", "linear_head", "vote", "raw")

_CHANGED = """
    SELECT clip_id, trace_id, run_id, created FROM (
        SELECT latest_predictions.*, created FROM latest_predictions JOIN runs USING (run_id)
        WHERE control = 'none' AND method <> 'raw' AND trace_id IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY trace_id ORDER BY list_position(?::VARCHAR[], method)) = 1)
    WHERE provisional <> 'none' AND """
_HOW = {
    "changed": "provisional <> predicted",
    "fixed": "provisional <> predicted AND predicted = true_label",
    "broken": "provisional <> predicted AND provisional = true_label",
}
_HOLDS = """contains(lower(concat_ws(' ', clip_id, path, "group", dataset, label)), lower(?))"""


def choices(workbench: Workbench) -> dict[str, list[str]]:
    """The labels and splits that occur among the usable clips."""
    labels = workbench.query("SELECT DISTINCT label AS it FROM clips WHERE excluded IS NULL ORDER BY it NULLS LAST")
    splits = workbench.query("SELECT DISTINCT split AS it FROM clips WHERE excluded IS NULL ORDER BY it NULLS LAST")
    return {"label": labels["it"].dropna().tolist(), "split": splits["it"].dropna().tolist()}


def find(
    workbench: Workbench,
    text: str = "",
    label: str = "",
    split: str = "",
    flip: str = "",
    limit: int = 24,
    name: str = "",
    offset: int = 0,
) -> tuple[list[dict[str, Any]], int]:
    """Usable clips whose id, path, group, dataset and label hold every word of `text`, and how many there are in all.

    `flip`: one of `FLIPS`, or empty; what counts is the first way of calibration that a trace has, as it is shown
    (`predictions_on`). `name`: a saved slice; its clips are found, StoreError where it cannot be asked. `trace_id` of a
    row: the newest trace that changed so, of the slice; None without both. Held-out clips come first, since they have
    most to show.
    """
    inside, values = TraceFilter(slice=name).where(workbench)
    traces = f"({_CHANGED}{_HOW[flip]})" if flip else "trace_facts"
    values = [*([list(_WAYS)] if flip else []), *values]
    of_slice = f"trace_id IN (SELECT trace_id FROM trace_facts WHERE {inside})" if name else "true"  # noqa: S608
    joined = f"""(SELECT clip_id, arg_max(trace_id, (created, run_id, trace_id)) AS trace_id
                  FROM {traces} WHERE {of_slice} GROUP BY clip_id) AS chosen USING (clip_id)"""  # noqa: S608
    conditions = ["excluded IS NULL", "path IS NOT NULL"]
    for column, value in (("label", label), ("split", split)):
        if value:
            conditions.append(f"{column} = ?")
            values.append(value)
    for word in text.split()[:20]:
        conditions.append(_HOLDS)
        values.append(word)
    rows = records(
        workbench.query(
            f"""SELECT clips.*, trace_id, count(*) OVER () AS found
            FROM clips {f"JOIN {joined}" if flip or name else "CROSS JOIN (SELECT NULL::VARCHAR AS trace_id)"}
            WHERE {" AND ".join(conditions)}
            ORDER BY (split = 'test')::INT DESC, (split = 'validation')::INT DESC, dataset, path, clip_id
            LIMIT {int(limit)} OFFSET {int(offset)}""",  # noqa: S608 - parts from above, values as parameters
            values,
        )
    )
    if offset and not rows:  # past the end
        return [], find(workbench, text, label, split, flip, 1, name)[1]
    return rows, int(rows[0]["found"]) if rows else 0


def clean(workbench: Workbench) -> dict[str, Any] | None:
    """A clip to begin with, and its trace: well-formed, right before and after calibration, with reasoning that argues
    for its label; of test clips first, then the newest, then the surest."""
    rows = records(
        workbench.query(
            """SELECT facts.clip_id, trace_id FROM trace_facts AS facts JOIN clips USING (clip_id)
               WHERE excluded IS NULL AND path IS NOT NULL AND reason IS NULL
                 AND provisional = true_label AND calibrated = true_label
                 AND NOT EXISTS (SELECT 1 FROM scores WHERE scores.trace_id = facts.trace_id
                                 AND scores.run_id = facts.run_id AND scores.name = 'mismatch' AND scores.value > 0)
               ORDER BY (facts.split = 'test')::INT DESC, created DESC, certainty DESC, trace_id LIMIT 1"""
        )
    )
    return rows[0] if rows else None


def clip(workbench: Workbench, clip_id: str) -> dict[str, Any] | None:
    """One clip of the manifest."""
    rows = records(workbench.query("SELECT * FROM clips WHERE clip_id = ? LIMIT 1", [clip_id]))
    return rows[0] if rows else None


def traces_of(workbench: Workbench, clip_id: str, limit: int = 60) -> list[dict[str, Any]]:
    """Traces of a clip without their texts: those that predictions rest on first, then the newest.

    `system` names who wrote it, where that is known; `judged` says that a calibrator read it.
    """
    return records(
        workbench.query(
            """SELECT trace_id, traces.run_id, traces.stage, sample, step, temperature, provisional, reason, confidence,
                      runs.name AS run_name, created,
                      said.system, coalesce(said.judged, false) AS judged
               FROM traces LEFT JOIN runs USING (run_id) LEFT JOIN (
                   SELECT trace_id, any_value(system) AS system, bool_or(method <> 'raw') AS judged
                   FROM predictions WHERE clip_id = $1 GROUP BY trace_id) said USING (trace_id)
               WHERE short_clip = short_id_of($1) AND clip_id = $1
               ORDER BY judged DESC, (system IS NOT NULL) DESC, created DESC, step DESC, sample LIMIT $2""",
            [clip_id, int(limit)],
        )
    )


def predictions_on(workbench: Workbench, trace_id: str) -> list[dict[str, Any]]:
    """What was predicted from one trace, controls aside, the paper's way first and the answer as it was given last."""
    on_it = f"SELECT * FROM predictions WHERE {FOUND_BY_ID} AND control = 'none'"  # noqa: S608
    rows = records(workbench.query(on_it, [trace_id]))
    return sorted(rows, key=lambda row: _WAYS.index(row["method"]) if row["method"] in _WAYS else len(_WAYS))


def attributed(workbench: Workbench, trace_id: str) -> list[dict[str, Any]]:
    """What carried the calibrated label to a trace, a row a sentence; empty where nobody asked."""
    return records(workbench.query(f"SELECT * FROM attributions WHERE {FOUND_BY_ID} ORDER BY sentence", [trace_id]))  # noqa: S608


def calibrator_of(workbench: Workbench, run_id: str) -> str | None:
    """The calibrator that read a run's traces, or else the newest of the reasoner that wrote them."""
    rows = workbench.query("SELECT config->>'$.calibrator' AS it FROM runs WHERE run_id = ?", [run_id])
    if len(rows) and isinstance(rows["it"][0], str):
        return rows["it"][0]
    return next((row["calibrator"] for row in reasoners(workbench) if row["run_id"] == run_id), None)


def grammar_of(workbench: Workbench, run_id: str) -> str:
    """The grammar that a run's traces were asked for in; think-answer where it does not say."""
    rows = workbench.query("SELECT config->>'$.prompt.grammar' AS it FROM runs WHERE run_id = ?", [run_id])
    return rows["it"][0] if len(rows) and rows["it"][0] in GRAMMARS else "think-answer"


def gate_of(workbench: Workbench, run_id: str) -> dict[str, Any]:
    """What could end a run's traces after their quick answer: the section `gate` of its config, empty without one."""
    rows = workbench.query("SELECT config->'$.gate' AS it FROM runs WHERE run_id = ?", [run_id])
    gate = json.loads(rows["it"][0]) if len(rows) and isinstance(rows["it"][0], str) else {}
    return gate if gate.get("by", "off") != "off" else {}


def watched(workbench: Workbench, reasoner: str) -> tuple[str, str, str] | None:
    """The finished evaluation (run, dataset, split) that tells what a threshold of the quick answer's confidence would
    cost: quick answers were asked for, and all traces thought on. Validation before others, then the newest."""
    rows = workbench.query(
        """SELECT run_id, dataset, config->>'$.evaluate.split' AS split FROM runs
           WHERE stage = 'evaluate' AND status = 'finished' AND parent = ? AND dataset IS NOT NULL
             AND coalesce(config->>'$.gate.by', 'off') = 'off'
             AND config->>'$.prompt.grammar' IN (SELECT unnest(?::VARCHAR[]))
           ORDER BY split = 'validation' DESC, created DESC LIMIT 1""",
        [reasoner, [name for name, grammar in GRAMMARS.items() if grammar.quick]],
    )  # fmt: skip
    return tuple(rows.iloc[0]) if len(rows) else None


def reasoners(workbench: Workbench) -> list[dict[str, Any]]:
    """Finished runs that hold a reasoner which writes traces, the newest of the last stage first, each with the newest
    calibrator trained on it (`calibrator`, or None). Last, for each model at a `server` (else None), the newest run
    whose traces it wrote."""
    return records(
        workbench.query(
            """WITH finished AS (
                   SELECT *, nullif(config->>'$.server.model', '') AS server FROM runs WHERE status = 'finished'
                     AND coalesce(config->>'$.calibrate.without', 'none') = 'none'
                     AND coalesce(config->>'$.coldstart.target', 'trace') <> 'label')
               SELECT run_id, stage, name, dataset, created, calibrator, server
               FROM finished LEFT JOIN (
                   SELECT parent AS run_id, arg_max(run_id, created) AS calibrator FROM finished
                   WHERE stage = 'calibrate' AND server IS NULL GROUP BY parent) USING (run_id)
               WHERE stage IN ('coldstart', 'grpo')
               UNION ALL
               SELECT run_id, stage, name, dataset, created,
                   if(stage = 'calibrate', run_id, config->>'$.calibrator') AS calibrator, server
               FROM finished WHERE stage IN ('calibrate', 'evaluate') AND server IS NOT NULL
               QUALIFY row_number() OVER (
                   PARTITION BY server, parent ORDER BY calibrator IS NULL, stage = 'calibrate' DESC, created DESC) = 1
               ORDER BY server IS NOT NULL, calibrator IS NULL, (stage = 'grpo') DESC, created DESC"""
        )
    )
