"""From what people said to what is trained next: a cold-start set, corrected labels, and what to label next.

    changed = corrections(workbench, reviews, ["week 1"], "homecam")
    relabel(workbench, changed)                                          # a new version; the old one stays
    run = coldstart_set(workbench, reviews, ["week 1"], config, onto="teach-…")   # deepintuit coldstart --teacher RUN
    next_batch(workbench, reviews, "homecam", 50)

Traces of clips that cold start may not see are not taken, however good.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.errors import DataError
from deepintuit.labels import LabelSet
from deepintuit.runs.schema import TraceRow
from deepintuit.runs.schema import trace_id as named
from deepintuit.trace import parse
from deepintuit_analysis.review.events import Kind
from deepintuit_analysis.review.quality import Settled, calibrated, settled
from deepintuit_analysis.review.reviews import Reviews

if TYPE_CHECKING:
    import pandas as pd

    from deepintuit.runs import Run
    from deepintuit_analysis import Workbench

POOL = 3
"""`next_batch` chooses among so many times the clips asked for."""


# Labels


@dataclass(frozen=True)
class Correction:
    """A clip whose settled label is another than the manifest's; `by` whom, in which `events`."""

    clip_id: str
    split: str | None
    before: str
    after: str
    by: tuple[str, ...]
    events: tuple[str, ...]


@dataclass(frozen=True)
class Corrections:
    """`changed` labels, how many clips were `confirmed` as they are, and the `contested` ones: settled differently on
    two of their traces, for a lead to adjudicate."""

    dataset: str
    changed: list[Correction]
    confirmed: int
    contested: list[str]


def corrections(workbench: "Workbench", reviews: Reviews, tasks: Sequence[str], dataset: str) -> Corrections:
    """What these tasks say about the labels of a dataset's clips. A clip counts when a trace of it is settled (see
    `quality.settled`) on a label; where a lead adjudicated, only that counts."""
    manifest = Manifest.load(workbench.path, dataset)
    views_of: dict[str, list[Settled]] = defaultdict(list)
    for name in tasks:
        for view in settled(reviews, name).values():
            if view.label is not None:
                views_of[view.clip_id].append(view)
    changes, contested, confirmed = [], [], 0
    for row in manifest.usable().itertuples():
        if row.clip_id not in views_of:
            continue
        views = [view for view in views_of[row.clip_id] if view.adjudicated] or views_of[row.clip_id]
        if len({view.label for view in views}) > 1:
            contested.append(row.clip_id)
        elif manifest.labels.resolve(views[0].label) == row.label:
            confirmed += 1
        else:
            label = manifest.labels.resolve(views[0].label) or views[0].label
            by, events = ({name: None for view in views for name in getattr(view, field)} for field in ("by", "events"))
            split = row.split if isinstance(row.split, str) else None
            changes.append(Correction(row.clip_id, split, row.label, label, tuple(by), tuple(events)))
    return Corrections(dataset, changes, confirmed, contested)


def relabel(workbench: "Workbench", corrections: Corrections) -> Manifest:
    """A new version of the manifest with the corrected labels; each says in its note "review" what it was and who says
    so. The former version stays as `<dataset>@<n>`, and runs know which one they used (`Manifest.used`). Nothing to
    correct: the version in force."""
    manifest = Manifest.load(workbench.path, corrections.dataset)
    if not corrections.changed:
        return manifest
    why = {
        change.clip_id: json.dumps({"was": change.before, "by": change.by, "events": change.events}, ensure_ascii=False)
        for change in corrections.changed
    }
    version = manifest.relabelled({change.clip_id: change.after for change in corrections.changed}, why)
    version.save()
    return version


# Traces


@dataclass(frozen=True)
class _Example:
    """A trace for the set. `source`: accepted, corrected, or the run that it was written by."""

    clip_id: str
    text: str
    answer: str
    label: str
    source: str
    evidence: Mapping[str, Any]


def coldstart_set(
    workbench: "Workbench",
    reviews: Reviews,
    tasks: Sequence[str],
    config: Config,
    *,
    onto: str | None = None,
    dry: bool = False,
) -> "Run | dict[str, Any]":
    """The settled traces of these tasks as a finished run of the stage "teach", to be named as the cold start's
    teacher. `dry`: only its summary.

    - accepted: the verdict is "right", and the trace ends in the settled label (the clip's, where no label was asked);
    - corrected: else, where a note of those who agree is itself a well-formed trace that ends in the settled label;
    - `onto` a run of teacher traces: its kept traces too, without those that people refused, and without those whose
      answer is not the clip's label any more.

    Only clips of the cold-start split: later stages need clips that it never saw. DataError when nothing is left.
    """
    manifest = Manifest.load(workbench.path, config.clips.dataset)
    labels = manifest.labels_or(config.clips.labels)
    clips = dict(zip(manifest.usable("coldstart")["clip_id"], manifest.usable("coldstart")["label"]))
    views = [view for name in tasks for view in settled(reviews, name).values()]
    dropped: Counter[str] = Counter()
    examples, refused = _reviewed(workbench, views, clips, labels, config.prompt.grammar, dropped)
    if onto is not None:
        trace_ids = {example.evidence["trace"] for example in examples} | refused
        examples += _kept(workbench, onto, clips, trace_ids, labels, dropped)
    if not examples:
        raise DataError(
            f"no trace of {', '.join(map(repr, tasks)) or 'no task'} can be imitated",
            f"left out: {dict(dropped) or 'nothing is settled'}",
            "Review traces of cold-start clips, or build --onto a run of teacher traces",
        )
    summary = _summary(examples, clips, dropped)
    if dry:
        return summary
    events = sorted({event for view in views for event in view.events})
    sections = {name: config.to_dict()[name] for name in ("clips", "prompt")}
    identity = {
        **sections,
        "teach": {"source": "review"},
        "split": "coldstart",
        "manifest": manifest.fingerprint,
        "tasks": sorted(tasks),
        "onto": onto,
        "events": hashlib.sha256("\n".join(events).encode()).hexdigest(),
    }
    dataset = manifest.dataset
    with workbench.start_run("teach", identity, parent=onto, name="review", seed=config.seed, dataset=dataset) as run:
        if not run.finished:
            _write(run, examples)
            run.finish(summary)
    return run


def _one_view(views: Sequence[Settled]) -> Settled | None:
    """What several tasks came to on one trace: a lead's word, or what all say; None when they differ."""
    decided = [view for view in views if view.adjudicated] or list(views)
    return decided[0] if len({(view.label, view.verdict) for view in decided}) == 1 else None


def _reviewed(
    workbench: "Workbench",
    views: Sequence[Settled],
    clips: Mapping[str, str],
    labels: LabelSet,
    grammar: str,
    dropped: Counter[str],
) -> tuple[list[_Example], set[str]]:
    """The traces to imitate, and the ids of those that people did not accept."""
    by_trace: dict[str, list[Settled]] = defaultdict(list)
    for view in views:
        by_trace[view.trace_id].append(view)
    texts = workbench.query(
        """SELECT trace_id, text, coalesce(truncated, false) AS truncated FROM traces
           WHERE trace_id IN (SELECT unnest(?::VARCHAR[]))
           QUALIFY row_number() OVER (PARTITION BY trace_id ORDER BY run_id) = 1""",
        [list(by_trace)],
    )
    traces = {row.trace_id: parse(row.text, grammar, labels, bool(row.truncated)) for row in texts.itertuples()}
    examples, refused = [], set()
    for trace_id, several in by_trace.items():
        view, clip_id = _one_view(several), several[0].clip_id
        if clip_id not in clips:
            dropped["not a clip of the cold-start split"] += 1
            continue
        if view is None:
            refused.add(trace_id)
            dropped["tasks differ"] += 1
            continue
        label = labels.resolve(clips[clip_id] if view.label is None else view.label)
        notes = (parse(note.strip(), grammar, labels) for note in view.notes)
        rewrites = [note for note in notes if note.ok and note.label == label]
        original = traces.get(trace_id)
        if view.verdict == "right" and original is not None and original.ok and original.label == label:
            trace, source = original, "accepted"
        else:
            refused.add(trace_id)
            if view.label is None or not rewrites:
                dropped[
                    "right, but not ending in that label"
                    if view.verdict == "right"
                    else f"verdict: {view.verdict or 'unsure'}"
                ] += 1
                continue
            trace, source = rewrites[0], "corrected"
        evidence = {"trace": trace_id, "by": view.by, "events": view.events}
        examples.append(_Example(clip_id, trace.text, trace.answer, trace.label, source, evidence))
    return examples, refused


def _kept(
    workbench: "Workbench",
    onto: str,
    clips: Mapping[str, str],
    excluded: set[str],
    labels: LabelSet,
    dropped: Counter[str],
) -> list[_Example]:
    run = workbench.run(onto)
    scores = run.read("scores")
    kept_ids = set(scores.loc[(scores["name"] == "kept") & (scores["value"] == 1), "trace_id"])
    examples = []
    for row in run.table("traces", ["trace_id", "clip_id", "text", "answer", "provisional"]).to_pylist():
        if row["trace_id"] not in kept_ids or row["clip_id"] not in clips or row["trace_id"] in excluded:
            continue
        if labels.resolve(clips[row["clip_id"]]) != row["provisional"]:
            dropped["the clip's label was corrected"] += 1
            continue
        evidence = {"trace": row["trace_id"]}
        examples.append(_Example(row["clip_id"], row["text"], row["answer"], row["provisional"], onto, evidence))
    return examples


def _summary(examples: Sequence[_Example], clips: Mapping[str, str], dropped: Counter[str]) -> dict[str, Any]:
    """As a teach run's, as far as it goes."""
    sources = Counter(example.source for example in examples)
    people = {source: sources.pop(source, 0) for source in ("accepted", "corrected")}
    return {
        "source": "review",
        "clips": len(clips),
        "clips_kept": len({example.clip_id for example in examples}),
        **people,
        "written": len(examples) + sum(dropped.values()),
        "kept": len(examples),
        "dropped": dict(dropped.most_common()),
        "onto": sources.total(),
    }


def _write(run: "Run", examples: Sequence[_Example]) -> None:
    numbers: Counter[str] = Counter()
    rows, scores = [], []
    for example in examples:
        sample, numbers[example.clip_id] = numbers[example.clip_id], numbers[example.clip_id] + 1
        number = named(run.id, example.clip_id, sample)
        rows.append(
            TraceRow(
                trace_id=number,
                clip_id=example.clip_id,
                sample=sample,
                text=example.text,
                answer=example.answer,
                provisional=example.label,
                true_label=example.label,
                truncated=False,
            )
        )
        scores += [
            {"trace_id": number, "name": "kept", "value": 1.0, "evidence": ""},
            {
                "trace_id": number,
                "name": "reviewed",
                "value": float(example.source in ("accepted", "corrected")),
                "evidence": json.dumps({"source": example.source, **example.evidence}, ensure_ascii=False),
            },
        ]
    run.append("scores", scores)
    run.append("traces", rows)


# What to label next


def next_batch(
    workbench: "Workbench",
    reviews: Reviews,
    dataset: str,
    size: int,
    *,
    splits: Sequence[str] = (),
    seed: int = 0,
    among: Collection[str] | None = None,
) -> "pd.DataFrame":
    """The clips whose labels would teach most, the first to label first: clip_id, trace_id, split, group, predicted,
    margin. Give their trace ids to a task, order "given".

    Of the clips that nobody judged, by their newest calibrated distribution: the `POOL` × `size` with the smallest
    margin between the first two classes; from these, the predicted classes in turn (the one with the smallest margin
    first), within a class from the group that gave least so far, and of that the smallest margin. Ties are broken at
    random, the same for a seed. `splits`: by default all but test, whose labels train nothing, and clips without a
    label, which are in none. `among`: only of these clips.
    DataError when no clip of the splits has a distribution.
    """
    pool_splits = list(splits) or ["coldstart", "grpo", "calibration", "validation"]
    rows = calibrated(workbench, dataset).drop_duplicates("clip_id")
    rows = rows[rows["split"].isin(pool_splits) | (rows["given"].isna() & (not splits))]
    heard = reviews.log.look(
        lambda state: {
            act.clip
            for by_item in state.answers.values()
            for by in by_item.values()
            for act in by.values()
            if act.kind is Kind.JUDGED
        }
    )
    if rows.empty:
        raise DataError(
            f"no clip of {', '.join(pool_splits)} of {dataset!r} has a calibrated distribution",
            "how unsure the model is stands in it",
            f"Run `deepintuit evaluate --set evaluate.split={pool_splits[0]}` with a calibrator first",
        )
    mask = ~rows["clip_id"].isin(heard) & (True if among is None else rows["clip_id"].isin(among))
    rows = rows[mask].sample(frac=1, random_state=seed)
    probs = [np.sort(np.asarray(p, float))[::-1] for p in rows["probs"]]
    rows = rows.assign(
        predicted=[labels[int(np.argmax(p))] for labels, p in zip(rows["labels"], rows["probs"])],
        margin=[float(p[0] - p[1:2].sum()) for p in probs],
        group=rows["group"].fillna(rows["clip_id"]),
    )
    pool = rows.sort_values("margin", kind="stable").head(POOL * size)
    rest = {label: list(rows.index) for label, rows in pool.groupby("predicted", sort=False)}
    places, counts = [], Counter()
    while rest and len(places) < size:
        for label in list(rest):
            if len(places) == size:
                break
            place = min(rest[label], key=lambda row: counts[pool.at[row, "group"]])  # the first of the least drawn
            rest[label].remove(place)
            places.append(place)
            counts[pool.at[place, "group"]] += 1
            if not rest[label]:
                del rest[label]
    return pool.loc[places, ["clip_id", "trace_id", "split", "group", "predicted", "margin"]].reset_index(drop=True)
