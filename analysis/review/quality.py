"""What reviews tell a team: what is settled, how reviewers hold up on gold items, the model against people, and which
labels are probably wrong.

    reviews = reading(workbench.reviews)                       # beside a dashboard that writes
    settled(reviews, "week 1")[trace_id].label
    suspects(workbench, "homecam", "test").rows                # the most suspicious clip first
"""

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepintuit.data import Manifest
from deepintuit.errors import DataError
from deepintuit.labels import NONE_LABEL
from deepintuit.metrics import Estimate, wilson
from deepintuit_analysis.review.agreement import Agreement, agreement, consensus, rating_matrix
from deepintuit_analysis.review.events import Event, State
from deepintuit_analysis.review.label_errors import label_errors
from deepintuit_analysis.review.log import EventLog, damage
from deepintuit_analysis.review.reviews import Reviews, dispute
from deepintuit_analysis.review.tasks import PROCESSES, QUESTIONS

if TYPE_CHECKING:
    import pandas as pd

    from deepintuit.runs import Run
    from deepintuit_analysis import Workbench


def reading(folder: Path) -> Reviews:
    """The reviews of a folder as they are now, to read from, whoever writes them."""
    log = EventLog(folder, writing=False)
    if sentence := damage(log.damaged):
        warnings.warn(sentence, stacklevel=2)
    return Reviews(log)


def names(reviews: Reviews) -> list[str]:
    """The names of all tasks, in the order of opening."""
    return reviews.log.look(lambda state: list(state.tasks))


@dataclass(frozen=True)
class Settled:
    """What people came to on a trace. A label or verdict of None: they were unsure, or not more than half agree.

    `by` said that label (with no label: everybody who judged), `events` are theirs, `notes` what they wrote, the newest
    first; `adjudicated`: a lead decided. `fails_in`: the process in which a sentence fails, where they name one.
    """

    trace_id: str
    clip_id: str
    label: str | None
    verdict: str | None
    by: tuple[str, ...]
    events: tuple[str, ...]
    notes: tuple[str, ...]
    adjudicated: bool
    fails_in: str | None = None


def settled(reviews: Reviews, name: str) -> dict[str, Settled]:
    """By trace, where a lead decided, or as many judged as the task asks: what more than half of these say; extras
    (`State.counted`) do not count. Without gold items, whose answers were known."""
    task = reviews.task(name)

    def acts_of(state: State) -> dict[str, tuple[list[Event], bool]]:
        acts = {}
        for item in task.items.keys() - task.gold.keys():
            final = state.final(name, item)
            judgements = [*state.counted(name, item).values()]
            if final is not None or len(judgements) >= task.reviewers:
                acts[item] = ([final] if final is not None else judgements), final is not None
        return acts

    acts = reviews.log.look(acts_of)
    return {item: _settle(item, task.items[item], *acts[item]) for item in task.items if item in acts}


def _settle(item: str, clip: str, acts: Sequence[Event], adjudicated: bool) -> Settled:
    def most(answer_of: Callable[[Event], Any]) -> Any:
        answer, n = Counter(map(answer_of, acts)).most_common(1)[0]
        return answer if 2 * n > len(acts) else None

    label = most(lambda act: act.payload.get("label"))
    agreed = sorted((act for act in acts if label in (None, act.payload.get("label"))), key=lambda act: act.time)
    notes = tuple(act.payload["note"] for act in reversed(agreed) if act.payload.get("note"))
    fails_in = most(lambda act: (act.payload.get("failing") or {}).get("in"))
    return Settled(
        item,
        clip,
        label,
        most(lambda act: act.payload.get("verdict")),
        tuple(act.reviewer for act in agreed),
        tuple(act.id for act in agreed),
        notes,
        adjudicated,
        fails_in,
    )


def disputed(reviews: Reviews, name: str) -> list[tuple[str, float]]:
    """Traces for a lead to adjudicate, the most disputed first: (trace id, share of pairs of reviewers that differ in
    label or verdict). Extra answers dispute too. Those that are decided, or that nobody disputes, are left out; ties in
    the task's order."""
    task = reviews.task(name)
    open_ = reviews.log.look(
        lambda state: {
            item: dispute(state.answers.get(name, {}).get(item, {}))
            for item in task.items
            if item not in task.gold and not state.final(name, item)
        }
    )
    return sorted(((item, far) for item, far in open_.items() if far > 0), key=lambda pair: -pair[1])


def marked(reviews: Reviews, *, public: bool = False) -> dict[str, list[list[Mapping[str, Any]]]]:
    """Clip → the spans that each of its reviewers marked, perhaps none, in the tasks that ask for spans. Where a lead
    decided, the newest decision alone; else of traces that as many judged as asked, the newest judgement of each.
    `public`: of closed tasks, without clips that an open one asks about."""
    acts: dict[str, dict[str, Event]] = {}

    def collect(state: State) -> None:
        hidden = state.hidden() if public else set()
        for name, task in state.tasks.items():
            asked = "spans" in task.questions and not (public and name not in state.closed)
            for item, clip in task.items.items() if asked else ():
                if clip in hidden:
                    continue
                final, judgements = state.final(name, item), state.counted(name, item)
                if final is None and len(judgements) < task.reviewers:
                    continue
                for who, act in {"": final}.items() if final else judgements.items():
                    former = acts.setdefault(clip, {}).get(who)
                    if former is None or former.time < act.time:
                        acts[clip][who] = act

    reviews.log.look(collect)
    of_clips = {clip: [by[""]] if "" in by else [*by.values()] for clip, by in acts.items()}
    return {clip: [act.payload.get("spans") or [] for act in each] for clip, each in of_clips.items()}


# Reviewers by what others say


@dataclass(frozen=True)
class Weighed:
    """Reviewers' labels, each weighed by the reviewer's quality (`agreement.consensus`). `quality` by reviewer, nan
    where nobody else labelled their traces; `other`: trace → (label of the majority, label by quality), where these
    differ, None where there is none. `traces`: how many have a label."""

    quality: Mapping[str, float]
    other: Mapping[str, tuple[str | None, str | None]]
    traces: int


def weighed(reviews: Reviews, name: str) -> Weighed | None:
    """None where a task does not ask for labels, or no two people gave one trace the same label. Gold items and extras
    do not count."""
    labels = [*reviews.task(name).labels, None]  # the last one is that of −1
    matrix, traces, people = rating_matrix(reviews.ratings(name), labels[:-1])
    votes = consensus(matrix, len(labels) - 1)
    if votes is None:
        return None
    pairs = {trace: (labels[a], labels[b]) for trace, a, b in zip(traces, votes.majority_C, votes.label_C)}
    changes = {trace: pair for trace, pair in pairs.items() if pair[0] != pair[1]}
    return Weighed(dict(zip(people, votes.quality_R.tolist())), changes, int((matrix >= 0).any(1).sum()))


# Reviewers on gold items


@dataclass(frozen=True)
class GoldRecord:
    """A reviewer on hidden gold items: the share right of all, of the first and the second half, and Fisher's exact p
    that the halves are the same (nan below two answers). An item is right when all that is known of it was said; `by`
    question whose answer is known: the share of that alone."""

    reviewer: str
    n: int
    share: Estimate
    early: Estimate
    late: Estimate
    p: float
    by: Mapping[str, Estimate]


def gold_records(reviews: Reviews, name: str) -> list[GoldRecord]:
    """Each reviewer who met a gold item of the task, by name; all shares with Wilson's 95 % interval. Nothing says that
    the items of both halves are equally hard: a small p asks for a look at them."""
    by: dict[str, list[Mapping[str, bool]]] = {}
    for act, marks in reviews.gold_marks(name):
        by.setdefault(act.reviewer, []).append(marks)
    return [_record(reviewer, answers) for reviewer, answers in sorted(by.items())]


def _record(reviewer: str, answers: Sequence[Mapping[str, bool]]) -> GoldRecord:
    from scipy.stats import fisher_exact  # here, since it takes over a second to import

    right = [int(all(marks.values())) for marks in answers]
    n, half = len(right), len(right) // 2
    early, late = right[:half], right[half:]
    table = [[sum(part), len(part) - sum(part)] for part in (early, late)]
    p = float(fisher_exact(table).pvalue) if half else math.nan
    marks_of = {question: [marks[question] for marks in answers if question in marks] for question in QUESTIONS}
    each = {question: wilson(sum(marks), len(marks)) for question, marks in marks_of.items() if marks}
    return GoldRecord(reviewer, n, wilson(sum(right), n), *(wilson(row[0], sum(row)) for row in table), p, each)


# The model against people


def model_against_people(
    reviews: Reviews, workbench: "Workbench", name: str, *, draws: int = 1000, seed: int = 0
) -> dict[str, list[Agreement]]:
    """How far the settled labels agree with the traces' own answers ("provisional") and with the calibrated labels
    ("calibrated"), as `agreement` has it (all classes, then each), clips drawn whole. A model that gave no
    label of the task says "none", which is a class of its own."""
    people = {item: view for item, view in settled(reviews, name).items() if view.label is not None}
    facts = workbench.query(
        """SELECT trace_id, any_value(provisional) AS provisional, any_value(calibrated) AS calibrated FROM trace_facts
           WHERE trace_id IN (SELECT unnest(?::VARCHAR[])) GROUP BY trace_id""",
        [list(people)],
    ).set_index("trace_id")
    labels = list(reviews.task(name).labels)
    agreements = {}
    for kind in ("provisional", "calibrated"):
        model = {item: answer if answer in labels else NONE_LABEL for item, answer in facts[kind].dropna().items()}
        classes = [*labels, *([NONE_LABEL] if NONE_LABEL in model.values() and NONE_LABEL not in labels else [])]
        pairs = [(item, "people", people[item].label) for item in model]
        matrix, items, _ = rating_matrix([*pairs, *((item, "model", label) for item, label in model.items())], classes)
        clips = [people[item].clip_id for item in items]
        agreements[kind] = agreement(matrix, classes, groups_C=clips, draws=draws, seed=seed)
    return agreements


# Seeing or reasoning


def failed(sufficient: float, right: bool) -> str | None:
    """Which process of a trace failed, by the judge of its observation (the known facts, a server, an answerer): seeing
    where the observation does not suffice, reasoning where it does and the answer is wrong, else none."""
    return "seeing" if not sufficient else None if right else "reasoning"


@dataclass(frozen=True)
class Blame:
    """Where people say traces fail, beside where their judge says so. `counts_2_2`: traces where both name a process,
    people's answer down, the judge's across, in the order of `PROCESSES`; `found` is their agreement. `people_only`
    and `judge_only`: the other one finds that nothing fails."""

    counts_2_2: np.ndarray
    found: Agreement
    people_only: int
    judge_only: int

    @property
    def n(self) -> int:
        return int(self.counts_2_2.sum())


def seeing_or_reasoning(
    reviews: Reviews, workbench: "Workbench", name: str, *, draws: int = 1000, seed: int = 0
) -> Blame | None:
    """Settled traces of the task whose observation was judged (score `sufficient`), clips drawn whole. None where the
    task does not ask where a trace fails, or no settled trace was judged."""
    if "failing" not in reviews.task(name).questions:
        return None
    people = settled(reviews, name)
    judged = workbench.query(
        """SELECT trace_id, any_value(value) AS sufficient,
                  coalesce(bool_or(provisional = true_label), false) AS "right"
           FROM scores JOIN trace_facts USING (trace_id)
           WHERE scores.name = 'sufficient' AND trace_id IN (SELECT unnest(?::VARCHAR[])) GROUP BY trace_id""",
        [list(people)],
    )
    if judged.empty:
        return None
    rows = [
        (people[row.trace_id].fails_in, failed(row.sufficient, row.right), people[row.trace_id].clip_id)
        for row in judged.itertuples()
    ]
    both = [(PROCESSES.index(person), PROCESSES.index(judge), clip) for person, judge, clip in rows if person and judge]
    counts = np.zeros((2, 2), dtype=np.int64)
    for person, judge, _ in both:
        counts[person, judge] += 1
    estimate, *_ = agreement(
        np.array([pair[:2] for pair in both], dtype=np.int64).reshape(-1, 2),
        PROCESSES,
        groups_C=[clip for *_, clip in both],
        draws=draws,
        seed=seed,
    )
    return Blame(
        counts,
        estimate,
        sum(bool(person and not judge) for person, judge, _ in rows),
        sum(bool(judge and not person) for person, judge, _ in rows),
    )


# Labels that are probably wrong


@dataclass(frozen=True)
class Suspects:
    """`rows`, the most suspicious clip first: clip_id, trace_id, group, given, likely, self_confidence, suspected.
    `run` and `system` gave the distributions; `noise` is the estimated share of wrong labels."""

    rows: "pd.DataFrame"
    run: str
    system: str
    noise: float


def suspects(workbench: "Workbench", dataset: str, split: str | None = None) -> Suspects:
    """Clips of a split (by default the one predicted last) by how probably their label (of the manifest in force) is
    wrong; give their trace ids to a task as its slice, order "given".

    From the newest calibrated distributions that are out of fold: neither the reasoner, nor a run that it
    comes from, nor the calibrator was trained on these clips (validation clips only chose when to stop, and one
    temperature). DataError where there are none.
    """
    answers = calibrated(workbench, dataset, split).dropna(subset="given")
    scope = f"the split {split!r} of {dataset!r}" if split else repr(dataset)
    if answers.empty:
        raise DataError(
            f"no calibrated distribution of {scope}",
            "labels are doubted by what a model says of clips",
            f"Run `deepintuit evaluate --set evaluate.split={split or 'test'}` with a calibrator first",
        )
    for (run_id, system), rows in answers.groupby(["run_id", "system"], sort=False):
        if not trained_on(workbench, workbench.run(run_id)) & set(rows["clip_id"]):
            answers, source = rows, (run_id, system)
            break
    else:
        raise DataError(
            f"{answers['run_id'][0]!r} was trained on clips of {scope}",
            "a model hardly doubts the labels that it was trained on",
            "Ask for another split; or divide the clips with another "
            "seed, train and ask again: a split is out of fold for every chain that left it out",
        )
    labels = list(answers["labels"].iloc[0])
    rows = answers[answers["given"].isin(labels)].reset_index(drop=True)
    guess = label_errors([labels.index(label) for label in rows["given"]], np.stack(rows["probs"]))
    rows = rows.assign(
        likely=[labels[k] for k in guess.likely_C], self_confidence=guess.self_confidence_C, suspected=guess.suspected_C
    ).iloc[guess.order_C]
    columns = ["clip_id", "trace_id", "group", "given", "likely", "self_confidence", "suspected"]
    return Suspects(rows[columns].reset_index(drop=True), *source, guess.noise)


def doubted(workbench: "Workbench", clips: Collection[str]) -> list[Any]:
    """The rows of `suspects` that are suspected and about these clips, of all their datasets and splits whose
    distributions are out of fold."""
    sources = workbench.query(
        "SELECT DISTINCT dataset, split FROM clips WHERE split IS NOT NULL AND clip_id IN "
        "(SELECT unnest(?::VARCHAR[]))",
        [list(clips)],
    )
    doubts, among = [], set(clips)
    for dataset, split in sources.itertuples(index=False):
        with contextlib.suppress(DataError):
            rows = suspects(workbench, dataset, split).rows
            doubts += rows[rows["suspected"] & rows["clip_id"].isin(among)].itertuples()
    return sorted(doubts, key=lambda row: row.self_confidence)


def calibrated(workbench: "Workbench", dataset: str, split: str | None = None) -> "pd.DataFrame":
    """Every calibrated distribution of a usable clip of the dataset, newest run first: clip_id, trace_id, split,
    run_id, system, group, given (the label in force), labels, probs. One a clip, run and system."""
    return workbench.query(
        """SELECT clip_id, trace_id, clips.split, run_id, system, clips."group", clips.label AS given, labels, probs
           FROM predictions JOIN runs USING (run_id) JOIN clips USING (clip_id)
           WHERE method = 'label_likelihood' AND control = 'none' AND probs IS NOT NULL AND runs.dataset = $dataset
                 AND clips.dataset = $dataset AND clips.excluded IS NULL AND ($split IS NULL OR clips.split = $split)
           QUALIFY row_number() OVER (PARTITION BY run_id, system, clip_id ORDER BY trace_id) = 1
           ORDER BY created DESC, run_id DESC, system, clip_id""",
        {"dataset": dataset, "split": split},
    )


def trained_on(workbench: "Workbench", run: "Run") -> set[str]:
    """The clips whose labels or traces shaped this run's models: those of the training splits of the run, of all that
    it comes from and of its calibrator, in the versions of the manifest that they used."""
    clips: set[str] = set()
    todo: list[str | None] = [run.id]
    while todo:
        name = todo.pop()
        if name is None:
            continue
        ancestor = workbench.run(name)
        todo += [ancestor.parent, ancestor.config.get("calibrator")]
        splits = {
            "coldstart": ancestor.config.get("coldstart", {}).get("splits", ["coldstart"]),
            "grpo": ["grpo"],
            "calibrate": ["calibration"],
        }.get(ancestor.stage, [])
        if splits:
            frame = Manifest.used(workbench.path, ancestor.about["dataset"], ancestor.config.get("manifest")).frame
            clips |= set(frame.loc[frame["split"].isin(splits), "clip_id"])
    return clips
