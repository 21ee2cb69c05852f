"""Questions about runs: which there are, what stands on what, how a training went, what was sampled in a step.

Plain functions of a workbench; values travel as parameters, never as text of a query. All but `at_work` read the index.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from deepintuit_analysis.index.browse import TraceFilter

if TYPE_CHECKING:
    import pandas as pd

    from deepintuit_analysis import Workbench

_HOLDER = re.compile(r"process (\d+), since (\S+)")


def runs(workbench: Workbench, stage: str | None = None, dataset: str | None = None) -> pd.DataFrame:
    """Runs, newest first. `command` (words), `config`, `versions` and `summary` are unpacked from JSON."""
    rows = workbench.query(
        """SELECT * FROM runs WHERE stage = coalesce(?, stage) AND (? IS NULL OR dataset = ?)
           ORDER BY created DESC, run_id DESC""",
        [stage or None, dataset or None, dataset or None],
    )
    for column in ("command", "config", "versions", "summary"):
        rows[column] = [None if text is None else json.loads(text) for text in rows[column]]
    return rows


def datasets(workbench: Workbench) -> list[str]:
    """Datasets that clips were imported into."""
    return list(workbench.query("SELECT DISTINCT dataset FROM clips WHERE dataset IS NOT NULL ORDER BY 1")["dataset"])


def counts(workbench: Workbench) -> dict[str, int]:
    """How many there are: `clips` (usable ones), `traces`, `runs`, `reviews` (answers), and finished runs by stage."""
    rows = workbench.query(
        """SELECT 'clips' AS name, count(*) AS n FROM clips WHERE excluded IS NULL
           UNION ALL SELECT 'traces', sum(n) FROM trace_counts UNION ALL SELECT 'runs', count(*) FROM runs
           UNION ALL SELECT 'reviews', count(*) FROM reviews
           UNION ALL SELECT stage, count(*) FROM runs WHERE status = 'finished' GROUP BY stage"""
    )
    totals = dict(zip(rows["name"], rows["n"].fillna(0).astype(int), strict=True))
    return {**dict.fromkeys(("clips", "traces", "runs", "reviews", "evaluate"), 0), **totals}


def accuracies(workbench: Workbench) -> pd.DataFrame:
    """Without controls: run_id, split, system, method, n, right, no_answer. One row per way of predicting."""
    return workbench.query(
        """SELECT run_id, split, system, method, n, no_answer, round(accuracy * n)::BIGINT AS "right"
           FROM accuracy_by_run WHERE control = 'none' ORDER BY ALL"""
    )


def ends(workbench: Workbench) -> pd.DataFrame:
    """Means of the first and the last quarter (at least three values, as in `report.health`) of every logged number,
    and the newest value: run_id, name, n, width (of a quarter), first, last, newest."""
    return workbench.query(
        """SELECT run_id, name, max(n) AS n, least(max(n), greatest(3, max(n) // 4)) AS width,
                  avg(value) FILTER (place <= greatest(3, n // 4)) AS "first",
                  avg(value) FILTER (place > n - greatest(3, n // 4)) AS "last", arg_max(value, place) AS newest
           FROM (SELECT run_id, name, value, row_number() OVER (PARTITION BY run_id, name ORDER BY step) AS place,
                        count(*) OVER (PARTITION BY run_id, name) AS n
                 FROM steps WHERE value IS NOT NULL AND isfinite(value))
           GROUP BY run_id, name ORDER BY run_id, name"""
    )


def steps(workbench: Workbench, run_id: str) -> pd.DataFrame:
    """The logged numbers of a run: step, name, value, time."""
    return workbench.query("SELECT step, name, value, time FROM steps WHERE run_id = ? ORDER BY step, name", [run_id])


def lineage(workbench: Workbench, run_id: str) -> tuple[list[dict], list[dict]]:
    """What a run stands on and what stands on it, each as {run_id, stage, name, role}: ancestors oldest first, then
    direct children. A run stands on its parent, and on the teacher or the calibrator that its config names."""
    rows = workbench.query(
        """SELECT run_id, stage, name, parent, json_extract_string(config, '$.teacher') AS teacher,
                  json_extract_string(config, '$.calibrator') AS calibrator FROM runs ORDER BY created, run_id"""
    ).to_dict("records")
    row_of = {row["run_id"]: row for row in rows}
    above: dict[str, str] = {}
    waiting = [run_id]
    while waiting:
        for role, neighbour in _stands_on(row_of.get(waiting.pop(), {})):
            if neighbour in row_of and neighbour not in above and neighbour != run_id:
                above[neighbour] = role
                waiting.append(neighbour)
    below = [(row, role) for row in rows for role, neighbour in _stands_on(row) if neighbour == run_id]
    order = list(row_of)
    return (
        [_named(row_of[neighbour], above[neighbour]) for neighbour in sorted(above, key=order.index)],
        [_named(row, role) for row, role in below],
    )


def _stands_on(row: dict) -> list[tuple[str, str]]:
    return [(role, row[role]) for role in ("parent", "teacher", "calibrator") if isinstance(row.get(role), str)]


def _named(row: dict, role: str) -> dict:
    name = row["name"] if isinstance(row["name"], str) else None
    return {"run_id": row["run_id"], "stage": row["stage"], "name": name, "role": role}


def at_work(workbench: Workbench, run_id: str) -> bool:
    """Whether a process of this machine holds the run. Reads the lock's note and does not touch the lock: a stage that
    starts at this moment would be refused."""
    return any(map(_is_held, (workbench.path / "runs" / run_id).glob("lock*")))


def _is_held(lock: Path) -> bool:
    try:
        holder = _HOLDER.match(lock.read_text(encoding="ascii"))
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    if not holder:
        return False
    try:
        process = psutil.Process(int(holder[1]))
        since = datetime.fromisoformat(holder[2]).astimezone(UTC).timestamp()
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= since + 2
    except psutil.Error:
        return False


def rollout_steps(workbench: Workbench, run_id: str) -> list[int]:
    """The updates whose traces are on file."""
    rows = workbench.query(
        "SELECT DISTINCT step FROM traces WHERE run_id = ? AND step IS NOT NULL ORDER BY step", [run_id]
    )
    return [int(step) for step in rows["step"]]


def rollouts(workbench: Workbench, run_id: str, step: int, name: str = "") -> pd.DataFrame:
    """The traces of an update without their text, by clip and sample: trace_id, clip_id, path, sample, provisional,
    true_label, reason, tokens, confidence, and reward, format, accuracy, overlong, advantage (missing where the run
    did not store them). With the `name` of a saved slice, whole groups of which it holds a trace."""
    condition, values = TraceFilter(run=run_id, step=step, slice=name).where(workbench)
    return workbench.query(
        f"""SELECT traces.trace_id, any_value(traces.clip_id) AS clip_id, any_value(sample) AS sample,
               (SELECT any_value(path) FROM clips WHERE clips.clip_id = any_value(traces.clip_id)) AS path,
               any_value(true_label) AS true_label, any_value(provisional) AS provisional, any_value(reason) AS reason,
               any_value(tokens) AS tokens, any_value(confidence) AS confidence,
               any_value(scores.value) FILTER (scores.name = 'reward') AS reward,
               any_value(scores.value) FILTER (scores.name = 'format') AS format,
               any_value(scores.value) FILTER (scores.name = 'accuracy') AS accuracy,
               any_value(scores.value) FILTER (scores.name = 'overlong') AS overlong,
               any_value(scores.value) FILTER (scores.name = 'advantage') AS advantage
           FROM traces LEFT JOIN scores ON scores.trace_id = traces.trace_id AND scores.run_id = traces.run_id
           WHERE traces.run_id = ? AND traces.step = ?
                 AND traces.clip_id IN (SELECT clip_id FROM trace_facts WHERE {condition})
           GROUP BY traces.trace_id ORDER BY clip_id, sample""",  # noqa: S608 - a filter's own conditions
        [run_id, step, *values],
    )


def texts(workbench: Workbench, trace_ids: list[str]) -> dict[str, str]:
    """Trace id → text."""
    rows = workbench.query(
        """SELECT trace_id, text FROM traces WHERE short_id IN (SELECT short_id_of(unnest($1::VARCHAR[])))
           AND trace_id IN (SELECT unnest($1::VARCHAR[]))""",
        [trace_ids],
    )
    return dict(zip(rows["trace_id"], rows["text"], strict=True))
