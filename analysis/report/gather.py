"""Everything a run card tells, asked of a workbench: rows, runs, clips, reasons, examples, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from deepintuit.config import Config, EvaluateConfig, of
from deepintuit.errors import DataError, StoreError
from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.metrics import Estimate, pass_at_k
from deepintuit.runs import Run
from deepintuit_analysis import Workbench
from deepintuit_analysis.report.gains import ClassGains, class_gains, stages_of
from deepintuit_analysis.report.grounding import Grounding, grounding
from deepintuit_analysis.report.results import Result, headline, ordered, table_of
from deepintuit_analysis.report.rubrics import JudgeAgreement, RubricResult, judge_agreements, rubric_results
from deepintuit_analysis.report.steps import Why, first_false_steps, why_wrong
from deepintuit_analysis.report.thinking import quick_answers
from deepintuit_analysis.report.worst import LEVEL, WorstSlices, parts_of, worst_of

KINDS = {
    "fixed": "Fixed by calibration",
    "broken": "Broken by calibration",
    "right": "Right before and after",
    "wrong": "Wrong before and after",
}


@dataclass(frozen=True)
class Example:
    """One clip of the headline system. `probs` by label, highest first; `reason` is what is wrong with the trace."""

    kind: str
    clip: str
    true_label: str
    provisional: str
    predicted: str
    probs: Mapping[str, float]
    text: str | None
    reason: str | None


PASSES = (1, 2, 4, 8, 16, 32)
"""The k of pass@k, as far as there are samples."""


@dataclass(frozen=True)
class Sampled:
    """The sampled traces of one system: G of each of n clips. `passes`: k → pass@k; pass@1 is the mean of samples, what
    GRPO raises. `provisional`: the label of the same clips, by the trace that the table is about."""

    system: str
    n: int
    samples: int
    temperature: float
    provisional: Estimate
    passes: Mapping[int, Estimate]


@dataclass(frozen=True)
class Story:
    """`runs` are run.json of the asked runs, then of the runs they stand on. `clips` has split, label, n; `excluded`
    reason, split, n; `reasons` run_id, stage, reason, n, share; `steps` the training steps by run id; `quick` the quick
    answers of the headline's traces, where the grammar asks for any and all of them thought; `gains`: the
    headline's system by class, stage against stage, None without an earlier stage; `sampled`: of each system whose
    clips have several sampled traces; `worst`: the headline's slices that are worse than the rest; `why`: the first
    false steps of its wrong traces; `rubrics`: what judges answered about each system's traces, and `judges`: how far
    they agree on the headline's; `grounding`: cited moments against reviewers' spans, by system."""

    rows: list[Result]
    headline: Result | None
    labels: tuple[str, ...]
    level: float
    runs: list[dict[str, Any]]
    clips: pd.DataFrame
    excluded: pd.DataFrame
    reasons: pd.DataFrame
    examples: list[Example]
    steps: dict[str, pd.DataFrame]
    quick: pd.DataFrame
    gains: ClassGains | None
    sampled: list[Sampled]
    worst: WorstSlices | None
    why: list[Why]
    rubrics: list[RubricResult]
    judges: list[JudgeAgreement]
    grounding: list[Grounding]


@dataclass(frozen=True)
class Table:
    """The results of some evaluate runs, with what they were made of. `runs` are the run.json asked for, `predictions`
    the rows of the table's split."""

    rows: list[Result]
    labels: tuple[str, ...]
    config: EvaluateConfig
    predictions: pd.DataFrame
    runs: list[dict[str, Any]]
    dataset: str | None


def tabulate(workbench: Workbench, run_ids: Sequence[str], config: EvaluateConfig | None = None) -> Table:
    """The table of these runs' predictions; refreshes the index. Intervals are by the settings and the seed of each
    run; `config` takes their place, and the split of the first run is that of all. StoreError for an unknown run,
    DataError where nothing says what the labels are."""
    if not run_ids:
        raise StoreError(
            "no run was named", "a card tells of at least one", "name an evaluate run; `workbench.runs()` lists them"
        )
    runs = [workbench.run(run_id) for run_id in dict.fromkeys(run_ids)]
    settings = config or settings_of(runs[0])
    predictions = _told_apart(pd.concat([run.read("predictions") for run in runs], ignore_index=True))
    for run in runs:
        if run.stage == "predict":
            raise StoreError(
                f"the run {run.id!r} answered clips without labels",
                "nothing says which answers are right, so there is nothing to report",
                "Name evaluate runs; its answers are in its table and on the Traces page",
            )
    predictions = predictions[predictions["split"] == settings.split]
    workbench.refresh()
    dataset = next((run.about["dataset"] for run in runs if run.about["dataset"]), None)
    labels = labels_of(workbench, dataset, predictions)
    rows = []
    for run in runs:
        scores = run.read("scores", ["trace_id", "name", "value"]).query("name == 'mismatch'")
        run_settings = (config or settings_of(run)).replace(split=settings.split)
        rows += results_of(
            workbench,
            run,
            predictions[predictions["run_id"] == run.id],
            labels,
            run_settings,
            mismatches=dict(zip(scores["trace_id"], scores["value"], strict=True)),
        )
    return Table(ordered(rows), labels, settings, predictions, [run.about for run in runs], dataset)


def results_of(
    workbench: Workbench,
    run: Run,
    predictions: pd.DataFrame,
    labels: Sequence[str],
    config: EvaluateConfig,
    mismatches: Mapping[str, float] | None = None,
) -> list[Result]:
    """The results among a run's predictions, with the sources of its clips, its seed and its thresholds: the one way
    from rows to numbers that are shown."""
    sources = workbench.query(
        'SELECT clip_id, "group" FROM clips WHERE dataset = ? AND "group" IS NOT NULL', [run.about["dataset"]]
    )
    return table_of(
        predictions,
        labels,
        config,
        groups=dict(zip(sources["clip_id"], sources["group"], strict=True)),
        seed=run.about["seed"] or 0,
        mismatches=mismatches,
        thresholds=run.summary.get("thresholds"),
    )


def gather(workbench: Workbench, run_ids: Sequence[str], config: EvaluateConfig | None = None) -> Story:
    """All that a card tells, as `tabulate`."""
    table = tabulate(workbench, run_ids, config)
    leader, dataset = headline(table.rows, table.config.method), table.dataset
    runs = _with_ancestors(workbench, table.runs)
    ids = [about["run_id"] for about in runs]
    logged = {run_id: workbench.run(run_id).read("steps", ["step", "name", "value"]) for run_id in ids}
    return Story(
        table.rows,
        leader,
        table.labels,
        table.config.confidence,
        runs,
        workbench.query(
            """SELECT coalesce(split, 'unassigned') AS split, label, count(*) AS n FROM clips
                           WHERE dataset = ? AND excluded IS NULL GROUP BY ALL ORDER BY ALL""",
            [dataset],
        ),
        workbench.query(
            """SELECT excluded AS reason, coalesce(split, 'unassigned') AS split, count(*) AS n FROM clips
                           WHERE dataset = ? AND excluded IS NOT NULL GROUP BY ALL ORDER BY n DESC, reason""",
            [dataset],
        ),
        workbench.query(
            """SELECT run_id, stage, reason, n, share FROM trace_reasons
                           WHERE run_id IN (SELECT unnest(?)) ORDER BY run_id, stage, n DESC, reason""",
            [ids],
        ),
        _examples(workbench, table.predictions, leader),
        {run_id: steps for run_id, steps in logged.items() if len(steps)},
        _quick(workbench, table, leader),
        class_gains(stages_of(table.rows, leader)),
        sampled(workbench, table),
        _worst(workbench, table, leader),
        _why(workbench, table, leader),
        rubric_results(workbench, table.rows),
        judge_agreements(workbench, leader) if leader else [],
        grounding(workbench, table.rows),
    )


def sampled(workbench: Workbench, table: Table) -> list[Sampled]:
    """What sampling finds, of each reasoner of a table in its order, where all its clips have several sampled traces. A
    teacher's traces are all alike, and its label is their vote."""
    raw = {trace: row for row in table.rows if row.key[1:] == ("raw", "none") for trace in row.frame["trace_id"]}
    systems = []
    for about in table.runs:
        names = ["trace_id", "clip_id", "sample", "temperature", "provisional", "true_label"]
        traces = workbench.run(about["run_id"]).read("traces", names)
        row = next((raw[trace] for trace in traces["trace_id"] if trace in raw), None)
        samples = traces[traces["sample"] > 0].assign(right=lambda rows: rows["provisional"] == rows["true_label"])
        teacher = about["parent"] and workbench.run(about["parent"]).stage == "teach"
        if row is None or teacher or samples["sample"].nunique() < 2:
            continue
        right = samples.pivot(index="clip_id", columns="sample", values="right").reindex(row.frame.index)
        if right.isna().any(axis=None):
            continue
        right_C_G = right.to_numpy(bool)
        counts = [k for k in PASSES if k <= right_C_G.shape[1]]
        means = row.means(np.stack([row.right_C, *(pass_at_k(right_C_G, k) for k in counts)], 1))
        passes = dict(zip(counts, means[1:], strict=True))
        systems.append(Sampled(row.system, *right_C_G.shape, float(samples["temperature"].iloc[0]), means[0], passes))
    return systems


def worst_slices(
    workbench: Workbench, run_id: str, system: str = "", method: str = "", level: float = LEVEL
) -> WorstSlices:
    """Of one system and method of an evaluate run; unless they are named, of the one that its run card speaks of.
    Errors as of `tabulate`; StoreError for answers that it does not have."""
    rows = [row for row in tabulate(workbench, [run_id]).rows if row.control == "none"]
    row = headline([row for row in rows if system in ("", row.system) and method in ("", row.method)])
    if row is None:
        raise StoreError(
            f"{run_id!r} has no answers by {' / '.join(filter(None, (system, method))) or 'any system'}",
            f"it has {', '.join(f'{result.system} / {result.method}' for result in rows) or 'none'}",
            "Name one that it has",
        )
    return worst_of(row, parts_of(workbench, run_id, row), level)


def _run_of(table: Table, row: Result) -> str:
    [run_id] = table.predictions.loc[table.predictions["system"] == row.system, "run_id"].unique()
    return run_id


def _why(workbench: Workbench, table: Table, row: Result | None) -> list[Why]:
    raw = next((result for result in table.rows if row and result.key == (row.system, "raw", "none")), None)
    if raw is None:
        return []
    trace_ids = raw.frame.loc[~raw.right_C, "trace_id"].dropna()
    return why_wrong(first_false_steps(workbench, _run_of(table, raw), trace_ids), raw)


def _worst(workbench: Workbench, table: Table, row: Result | None) -> WorstSlices | None:
    if row is None:
        return None
    run_id = _run_of(table, row)
    system = row.system.removesuffix(f" ({run_id})")  # as the run calls it
    return worst_of(row, parts_of(workbench, run_id, replace(row, system=system)))


def _quick(workbench: Workbench, table: Table, row: Result | None) -> pd.DataFrame:
    rows = table.predictions
    rows = rows[(rows["system"] == row.system) & (rows["control"] == "none")] if row else rows.iloc[:0]
    traces = [workbench.run(run_id).read("traces") for run_id in rows["run_id"].unique()]
    if not traces:
        return pd.DataFrame()
    frame = pd.concat(traces)
    return quick_answers(frame[frame["trace_id"].isin(rows["trace_id"])], LabelSet.of("quick", table.labels))


def departures(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a stored config sets otherwise than the method's defaults, by dotted key; the workbench's place aside."""
    defaults = dict(_flat(Config().to_dict()))
    return {
        key: value
        for key, value in _flat(config)
        if key != "workbench" and (key not in defaults or defaults[key] != value)
    }


def _flat(config: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in config.items():
        pairs += _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else [(f"{above}{key}", value)]
    return pairs


def settings_of(run: Run) -> EvaluateConfig:
    """The evaluate section of a run's config; keys of another version are passed over, missing ones are defaults."""
    return of({"evaluate": run.config.get("evaluate")}).evaluate


def _told_apart(predictions: pd.DataFrame) -> pd.DataFrame:
    """A system that several runs scored carries the run's id, so that their rows stand side by side."""
    if predictions.empty:
        return predictions
    several = predictions.groupby(["system", "split"])["run_id"].transform("nunique") > 1
    names = predictions["system"] + " (" + predictions["run_id"] + ")"
    return predictions.assign(system=predictions["system"].where(~several, names))


def labels_of(workbench: Workbench, dataset: str | None, predictions: pd.DataFrame) -> tuple[str, ...]:
    """The label set of these rows: the dataset's, but where the rows were scored with another one, that one."""
    listed = predictions["labels"].dropna()
    path = workbench.clips / f"{dataset}.labels.toml"
    labels = LabelSet.load(path).labels if dataset and path.is_file() else ()
    if len(listed) and set(listed.iloc[0]) != set(labels):
        labels = tuple(listed.iloc[0])
    if labels:
        return tuple(labels)
    answers = {*predictions["true_label"].dropna(), *predictions["predicted"]} - {NONE_LABEL}
    if len(predictions) and not answers:
        raise DataError(
            "the predictions name no label",
            "the run has no dataset and no clip a true label",
            "evaluate the clips of an imported dataset",
        )
    return tuple(sorted(answers))


def _with_ancestors(workbench: Workbench, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Behind the asked runs those they stand on: parents, and the calibrator that an evaluate run names."""
    by_id = {about["run_id"]: about for about in runs}
    waiting = list(runs)
    while waiting:
        about = waiting.pop(0)
        for run_id in (about["config"].get("calibrator"), about["parent"]):
            if run_id and run_id not in by_id:
                by_id[run_id] = workbench.run(run_id).about
                waiting.append(by_id[run_id])
    return list(by_id.values())


def _examples(workbench: Workbench, predictions: pd.DataFrame, row: Result | None) -> list[Example]:
    """The first clip of each kind."""
    if row is None or row.gain is None:
        return []
    rows = predictions[predictions["system"] == row.system]
    raw = rows[(rows["method"] == "raw") & (rows["control"] == "none")].set_index("clip_id")
    after = rows[(rows["method"] == row.method) & (rows["control"] == row.control) & rows["true_label"].notna()]
    both = after.set_index("clip_id").join(raw[["predicted", "trace_id"]].add_suffix("_raw"), how="inner").sort_index()
    was_right, is_right = both["predicted_raw"] == both["true_label"], both["predicted"] == both["true_label"]
    masks = {
        "fixed": ~was_right & is_right,
        "broken": was_right & ~is_right,
        "right": was_right & is_right,
        "wrong": ~was_right & ~is_right,
    }
    picked = [(kind, clip, answer) for kind in KINDS for clip, answer in both[masks[kind]].head(1).iterrows()]
    trace_of = {
        clip: next((t for t in (answer["trace_id_raw"], answer["trace_id"]) if isinstance(t, str)), None)
        for _, clip, answer in picked
    }
    traces = workbench.query(
        """SELECT trace_id, text, reason FROM traces
                                WHERE trace_id IN (SELECT unnest(?::VARCHAR[]))""",
        [[trace for trace in trace_of.values() if trace]],
    ).set_index("trace_id")
    files = workbench.query(
        """SELECT clip_id, any_value(path) AS path FROM clips
                               WHERE clip_id IN (SELECT unnest(?::VARCHAR[])) GROUP BY clip_id""",
        [list(trace_of)],
    ).set_index("clip_id")["path"]
    return [
        _example(
            kind, clip, answer, traces.loc[trace_of[clip]] if trace_of[clip] in traces.index else None, files.get(clip)
        )
        for kind, clip, answer in picked
    ]


def _example(kind: str, clip: str, answer: pd.Series, trace: pd.Series | None, path: str | None) -> Example:
    probs = {} if answer["probs"] is None else dict(zip(answer["labels"], answer["probs"], strict=True))
    text, reason = (None, None) if trace is None else (trace["text"], trace["reason"])
    return Example(
        kind,
        path.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(path, str) else clip,
        answer["true_label"],
        answer["predicted_raw"],
        answer["predicted"],
        dict(sorted(probs.items(), key=lambda pair: -pair[1])),
        text,
        reason if isinstance(reason, str) else None,
    )
