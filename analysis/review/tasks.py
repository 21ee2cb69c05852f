"""Review tasks: which traces, in which order, asked what.

A task is fixed when it is opened: its traces and their order stand in its event, so that nothing moves under people's
hands when a new run comes in.

    task_of(workbench, "broken ones", TraceFilter(flip="broken"), order={"entropy": 2, "random": 1}, labels=labels)
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deepintuit.errors import DataError, nearest
from deepintuit.labels import LabelSet, spellings
from deepintuit.trace import GRAMMARS
from deepintuit_analysis.index import browse
from deepintuit_analysis.review import spans

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

QUESTIONS = ("label", "verdict", "failing", "note", "spans")
"""`spans`: when something is to be seen in the clip (`review.spans`); asked only where a task names it."""
VERDICTS = ("right", "wrong reasons", "wrong")
"""Of a trace: right; right label for wrong reasons; wrong. None as a label or verdict means "unsure"."""
PROCESSES = ("seeing", "reasoning")
ORDERS = ("entropy", "margin", "changed", "mismatch", "traces", "reviewers", "doubted", "random", "given")
"""Uncertain calibrated distributions first, by entropy or by the margin of the first two classes; provisional ≠
calibrated; reasoning that argues for another label than the answer; traces of the clip that disagree; people who
disagree so far; clips whose label is probably wrong (`quality.doubted`); at random; as listed. Ties are broken
at random."""
LONGEST_NOTE, LONGEST_GUIDELINES = 10_000, 20_000  # characters


@dataclass(frozen=True)
class ReviewTask:
    """A review task. `items`: trace id → clip id, in the order of handing out, gold items included; `gold`: trace id →
    the answers that are known to be right (of a `failing` place perhaps a part), hidden among the others and given to
    everybody, about `gold_share` of what one gets. `blind` asks the page to hide the model's label. A reservation lasts
    `seconds` from its last draft. `guidelines` stand on the desk; `feedback`: whoever answers a gold item is told at
    once what is right, and that answer stays."""

    name: str
    items: Mapping[str, str]
    labels: Sequence[str] = ()
    questions: Sequence[str] = QUESTIONS[:4]
    reviewers: int = 1
    order: str | Mapping[str, float] = "random"
    gold: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gold_share: float = 0.1
    blind: bool = False
    seconds: float = 600.0
    leads: Sequence[str] = ()
    slice: Mapping[str, str] = field(default_factory=dict)
    guidelines: str = ""
    feedback: bool = False

    def __post_init__(self) -> None:
        if not self._sound():
            raise DataError(
                f"the task {str(self.name)[:100]!r} has a field of another type",
                "nothing could be handed out by it",
                "Open it as the Review page does",
            )
        flaws = [
            text
            for bad, text in (
                (not self.name.strip(), "has no name"),
                (self.reviewers < 1, f"wants {self.reviewers} reviewers an item"),
                (not self.seconds > 0, f"reserves for {self.seconds} s"),
                (not 0 <= self.gold_share < 1, f"has a gold share of {self.gold_share}, not 0 to below 1"),
                (not set(self.questions) <= set(QUESTIONS), f"asks something else than {', '.join(QUESTIONS)}"),
                ({"label", "spans"} & set(self.questions) and not self.labels, "asks for a label and lists none"),
                (any("spans" in answers for answers in self.gold.values()), "has spans as gold, which are never equal"),
                (not set(self.gold) <= set(self.items), "has gold traces that are not among its items"),
                (self.feedback and not self.gold, "tells what is right on gold items and has none"),
                (
                    len(self.guidelines) > LONGEST_GUIDELINES,
                    f"has guidelines of over {LONGEST_GUIDELINES:,} characters",
                ),
            )
            if bad
        ]
        if flaws:
            raise DataError(f"the task {self.name!r} {flaws[0]}", "it could not be handed out or answered", "mend that")
        for answers in self.gold.values():
            place = answers.get("failing")
            if isinstance(place, Mapping):  # sentence or kind may be all that is known
                answers = {**answers, "failing": {"sentence": 0, "in": PROCESSES[0], **place}}
            self.checked(answers, whole=False)

    def _sound(self) -> bool:
        """Whether each field is of its type: a task is read from a file."""

        def all_text(values: Any) -> bool:
            return isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values)

        plans = (self.items, self.gold, self.slice)
        numbers = (self.reviewers, self.gold_share, self.seconds)
        return (
            isinstance(self.name, str)
            and isinstance(self.guidelines, str)
            and isinstance(self.feedback, bool)
            and all(isinstance(plan, Mapping) and all_text([*plan]) for plan in plans)
            and all_text([*self.items.values()])
            and all(isinstance(answers, Mapping) for answers in self.gold.values())
            and all(map(all_text, (self.labels, self.questions, self.leads)))
            and all(isinstance(number, (int, float)) and abs(number) < 2**31 for number in numbers)
            and isinstance(self.order, (str, Mapping))
        )

    def covered(self, text: str) -> str:
        """A trace as a blind task shows it: its answers and every label it names covered, with as many sentences."""
        parts = {part for grammar in GRAMMARS.values() for part in grammar.segments}
        for part in (part for part in parts if part.role == "answer"):
            inside = rf"({re.escape(part.open)}).*?({re.escape(part.close)}|\Z)"
            text = re.sub(inside, r"\1 ▒▒▒▒ \2", text, flags=re.DOTALL)
        # A mark of a grammar is no mention, even where a label is called like it.
        marks = "|".join(re.escape(mark) for part in parts for mark in (part.open, part.close) if len(mark) > 1)
        pattern = "|".join(
            r"[\s_-]+".join(map(re.escape, re.split(r"[\s_]+", label))) for label in spellings(self.labels)
        )
        cover = re.compile(rf"({marks})|(?<!\w)(?:{pattern})(?!\w)", re.I)
        return cover.sub(lambda match: match[1] or "▒▒▒▒", text) if pattern else text

    def checked(self, answers: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        """The answers as they are stored; DataError when they do not answer this task's questions. `whole`: a label and
        a verdict, where asked, must be there."""
        rules = {
            "label": (lambda value: value in (*self.labels, None), f"one of {', '.join(self.labels)}, or None"),
            "verdict": (lambda value: value in (*VERDICTS, None), f"one of {', '.join(VERDICTS)}, or None"),
            "failing": (_fails, 'None or {"sentence": 0 or above, "in": "' + '" or "'.join(PROCESSES) + '"}'),
            "note": (
                lambda value: isinstance(value, str) and len(value) <= LONGEST_NOTE,
                f"text up to {LONGEST_NOTE:,} characters",
            ),
            "spans": (self._marks, 'a list of {"start": seconds, "end": seconds, "label": …}, with labels of the task'),
        }
        for name, answer in answers.items():
            if name not in self.questions or not rules[name][0](answer):
                raise DataError(
                    f"{answer!r:.100} came as the {name}",
                    f"this task asks {', '.join(self.questions)}",
                    f"give {rules[name][1] if name in self.questions else 'answers to these'}",
                )
        missing = [name for name in ("label", "verdict") if whole and name in self.questions and name not in answers]
        if missing:
            raise DataError(
                f"the answer to {missing[0]!r} is missing",
                "an item is judged once all is answered",
                "answer it; None says unsure",
            )
        return {**answers, **({"spans": spans.checked(answers["spans"])} if "spans" in answers else {})}

    def _marks(self, answer: Any) -> bool:
        try:
            return {span["label"] for span in spans.checked(answer)} <= set(self.labels)
        except ValueError:
            return False


def _fails(answer: Any) -> bool:
    return answer is None or (
        isinstance(answer, Mapping)
        and set(answer) == {"sentence", "in"}
        and answer["in"] in PROCESSES
        and type(answer["sentence"]) is int
        and answer["sentence"] >= 0
    )


def plan(
    workbench: "Workbench",
    slice: "browse.TraceFilter | Sequence[str]",
    order: str | Mapping[str, float] = "random",
    seed: int = 0,
) -> dict[str, str]:
    """Trace id → clip id of a slice, in order: one of `ORDERS`, or a mixture as shares ({"entropy": 2, "random": 1}).

    What an order knows nothing about (no calibrated distribution) comes last in it. "reviewers" begins at random.
    """
    shares = {order: 1.0} if isinstance(order, str) else dict(order)
    for name, share in shares.items():
        if name not in ORDERS or share <= 0 or (name == "reviewers" and len(shares) > 1):
            raise DataError(
                f"the order {name!r} with a share of {share}",
                f"there are {', '.join(ORDERS)}, with "
                "shares above 0; 'reviewers' changes with every answer and cannot be mixed",
                f"nearest: {nearest(name, ORDERS) or 'random'!r}",
            )
    clause, values = (
        slice.where(workbench)
        if isinstance(slice, browse.TraceFilter)
        else ("trace_id IN (SELECT unnest(?::VARCHAR[]))", [list(slice)])
    )
    rows = workbench.query(
        f"""WITH chosen AS (SELECT * FROM trace_facts WHERE {clause}),
                 votes AS (SELECT run_id, clip_id, step, entropy(provisional) AS spread FROM trace_facts
                           WHERE clip_id IN (SELECT clip_id FROM chosen) GROUP BY ALL),
                 said AS (SELECT trace_id, probs FROM predictions JOIN runs USING (run_id)
                          WHERE method = 'label_likelihood' AND control = 'none'
                                AND trace_id IN (SELECT trace_id FROM chosen)
                          QUALIFY row_number() OVER
                              (PARTITION BY trace_id ORDER BY created DESC, run_id DESC, split, system) = 1)
            SELECT chosen.trace_id, chosen.clip_id, provisional, calibrated, spread, probs,
                   (SELECT max(value) FROM scores
                    WHERE name = 'mismatch' AND scores.trace_id = chosen.trace_id) AS mismatch
            FROM chosen LEFT JOIN said USING (trace_id) LEFT JOIN votes ON votes.run_id = chosen.run_id
                 AND votes.clip_id = chosen.clip_id AND votes.step IS NOT DISTINCT FROM chosen.step
            ORDER BY chosen.run_id, chosen.step, chosen.clip_id, sample""",  # noqa: S608 - a filter's own conditions
        values,
    ).drop_duplicates("trace_id")
    clips = dict(zip(rows["trace_id"], rows["clip_id"]))
    if not isinstance(slice, browse.TraceFilter):
        lost = [trace_id for trace_id in slice if trace_id not in clips]
        if lost:
            raise DataError(
                f"the trace {lost[0]!r} is not in the index, nor are {len(lost) - 1} others",
                "it could not be shown",
                "refresh the index, or leave them out",
            )
        rows = rows.set_index("trace_id", drop=False).loc[list(dict.fromkeys(slice))]
    probs = [None if p is None or isinstance(p, float) else np.sort(np.asarray(p, float))[::-1] for p in rows["probs"]]
    worth = {
        "entropy": [np.nan if p is None else -float((p[p > 0] * np.log(p[p > 0])).sum()) for p in probs],
        "margin": [np.nan if p is None else float(p[1:2].sum() - p[0]) for p in probs],
        "changed": np.where(rows["calibrated"].isna(), np.nan, rows["provisional"] != rows["calibrated"]),
        "mismatch": rows["mismatch"].astype(float),
        "traces": rows["spread"].astype(float),
        "given": -np.arange(len(rows)),
    }
    if "doubted" in shares:
        from deepintuit_analysis.review.quality import doubted  # which reads tasks itself

        sure = {row.clip_id: row.self_confidence for row in doubted(workbench, set(rows["clip_id"]))}
        worth["doubted"] = [-sure.get(clip, np.nan) for clip in rows["clip_id"]]
    chance = np.random.default_rng(seed).permutation(len(rows))
    ranked = {
        name: np.lexsort((chance, -np.nan_to_num(np.asarray(worth.get(name, chance), float), nan=-np.inf)))
        for name in shares
    }
    return {trace_id: clips[trace_id] for trace_id in rows["trace_id"].iloc[list(_mixed(ranked, shares))]}


def _mixed(ranked: Mapping[str, Sequence[int]], shares: Mapping[str, float]) -> Iterator[int]:
    """Numbers of several rankings, each once: always the best left of the ranking furthest behind its share."""
    rest, counts, placed = {name: iter(places) for name, places in ranked.items()}, Counter(), set()
    for _ in range(len(next(iter(ranked.values())))):
        name = min(shares, key=lambda name: counts[name] / shares[name])
        counts[name] += 1
        placed.add(place := next(place for place in rest[name] if place not in placed))
        yield int(place)


def labels_of(workbench: "Workbench", filters: "browse.TraceFilter") -> list[str]:
    """The labels of all datasets that the filter finds traces of."""
    datasets = [name for name, _ in browse.choices(workbench)["dataset"]]
    labels = {}
    for dataset in datasets:
        path = workbench.clips / f"{dataset}.labels.toml"
        if (
            path.is_file()
            and (filters.dataset or dataset) == dataset
            and (len(datasets) == 1 or browse.count(workbench, replace(filters, dataset=dataset)))
        ):
            labels |= dict.fromkeys(LabelSet.load(path))
    return list(labels)


def known_items(
    workbench: "Workbench", filters: "browse.TraceFilter", number: int, labels: Sequence[str]
) -> dict[str, dict[str, str]]:
    """So many traces of a filter, drawn at random, as gold items: their clips' labels are taken as known."""
    gold: dict[str, dict[str, str]] = {}
    for trace_id in plan(workbench, filters, "random", seed=1) if number > 0 and labels else ():
        true = (browse.fact(workbench, trace_id) or {}).get("true_label")
        if true in labels:
            gold[trace_id] = {"label": true}
        if len(gold) >= number:
            break
    return gold


def task_of(
    workbench: "Workbench",
    name: str,
    slice: "browse.TraceFilter | Sequence[str]",
    order: str | Mapping[str, float] = "random",
    *,
    gold: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    **settings: Any,
) -> ReviewTask:
    """The task of a slice, its items in order; `settings` as of `ReviewTask`. Gold traces need not lie in the slice."""
    gold = dict(gold or {})
    items = plan(workbench, slice, order, seed) | (plan(workbench, list(gold), "given") if gold else {})
    if not items:
        raise DataError(f"the slice of {name!r} holds no trace", "there is nothing to review", "widen the filter")
    text = slice.to_query() if isinstance(slice, browse.TraceFilter) else {}
    return ReviewTask(name, items, order=order, gold=gold, slice=text, **settings)
