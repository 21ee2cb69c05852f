"""Review tasks: which traces, in which order, asked what, and handed to whom.

A task is fixed when it is opened: its traces and their order stand in its event, so that nothing moves under people's
hands when a new run comes in. An item is handed out under a reservation that times out, never to more reviewers than
asked, never again to one who has answered it. Reviewers see their own answers; leads see everybody's.

An answer that comes after its reservation ran out is stored like any other. When as many as asked had judged the item
by then it is an *extra*: leads see it, and it is left out of what is settled and of agreement (`Task.counted`).

    tasks = Reviews(EventLog(workbench.reviews))
    tasks.open(task_of(workbench, "broken ones", TraceFilter(flip="broken"), order={"entropy": 2, "random": 1}), "lead")
    item = tasks.next_item("broken ones", "ann")

Left out on purpose: who may log in (`app`).
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from deepintuit.errors import DataError, nearest
from deepintuit.labels import spellings
from deepintuit.trace import GRAMMARS
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.review.events import Event, EventLog, Kind, State, new_id

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

QUESTIONS = ("label", "verdict", "failing", "note")
VERDICTS = ("right", "wrong reasons", "wrong")
"""Of a trace: right; right label for wrong reasons; wrong. None as a label or verdict means "unsure"."""
FAILING_IN = ("seeing", "reasoning")
ORDERS = ("entropy", "margin", "changed", "traces", "reviewers", "doubted", "random", "given")
"""Uncertain calibrated distributions first, by entropy or by the margin of the first two classes; provisional ≠
calibrated; traces of the clip that disagree; people who disagree so far; clips whose label is probably wrong
(`quality.doubted`); by chance; as listed. Ties fall by chance."""
LONGEST_NOTE = 10_000  # characters


@dataclass(frozen=True)
class Task:
    """A review task. `items`: trace id → clip id, in the order of handing out, gold items included; `gold`: trace id →
    the answers that are known to be right (of a `failing` place perhaps a part), hidden among the others and given to
    everybody, about `gold_share` of what one gets. `blind` asks the page to hide the model's label. A reservation lasts
    `seconds` from its last draft."""

    name: str
    items: Mapping[str, str]
    labels: Sequence[str] = ()
    questions: Sequence[str] = QUESTIONS
    reviewers: int = 1
    order: str | Mapping[str, float] = "random"
    gold: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gold_share: float = 0.1
    blind: bool = False
    seconds: float = 600.0
    leads: Sequence[str] = ()
    slice: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self._sound():
            raise DataError(
                f"the task {str(self.name)[:100]!r} has a field of another type",
                "nothing could be handed out by it",
                "Open it as the Review page does",
            )
        wrong = [
            text
            for bad, text in (
                (not self.name.strip(), "has no name"),
                (self.reviewers < 1, f"wants {self.reviewers} reviewers an item"),
                (not self.seconds > 0, f"reserves for {self.seconds} s"),
                (not 0 <= self.gold_share < 1, f"has a gold share of {self.gold_share}, not 0 to below 1"),
                (not set(self.questions) <= set(QUESTIONS), f"asks something else than {', '.join(QUESTIONS)}"),
                ("label" in self.questions and not self.labels, "asks for a label and lists none"),
                (not set(self.gold) <= set(self.items), "has gold traces that are not among its items"),
            )
            if bad
        ]
        if wrong:
            raise DataError(f"the task {self.name!r} {wrong[0]}", "it could not be handed out or answered", "mend that")
        for answers in self.gold.values():
            place = answers.get("failing")
            if isinstance(place, Mapping):  # sentence or kind may be all that is known
                answers = {**answers, "failing": {"sentence": 0, "in": FAILING_IN[0], **place}}
            self.checked(answers, whole=False)

    def _sound(self) -> bool:
        """Whether each field is of its type: a task is read from a file."""

        def all_text(values: Any) -> bool:
            return isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values)

        plans = (self.items, self.gold, self.slice)
        numbers = (self.reviewers, self.gold_share, self.seconds)
        return (
            isinstance(self.name, str)
            and all(isinstance(plan, Mapping) and all_text([*plan]) for plan in plans)
            and all_text([*self.items.values()])
            and all(isinstance(answers, Mapping) for answers in self.gold.values())
            and all(map(all_text, (self.labels, self.questions, self.leads)))
            and all(isinstance(number, (int, float)) and abs(number) < 2**31 for number in numbers)
            and isinstance(self.order, (str, Mapping))
        )

    def counted(self, item: str, said: Mapping[str, Event]) -> dict[str, Event]:
        """Of the answers in force of an item (`State.answers`), the judgements that count: those of the first as many
        as asked, and all that were brought in from elsewhere. Of a gold item all."""
        kept: dict[str, Event] = {}
        for who, act in said.items():
            room = len(kept) < self.reviewers or item in self.gold or act.payload.get("source")
            if act.kind is Kind.JUDGED and room:
                kept[who] = act
        return kept

    def covered(self, text: str) -> str:
        """A trace as a blind task shows it: its answers and every label it names covered, with as many sentences."""
        parts = {part for grammar in GRAMMARS.values() for part in grammar.segments}
        for part in (part for part in parts if part.role == "answer"):
            inside = rf"({re.escape(part.open)}).*?({re.escape(part.close)}|\Z)"
            text = re.sub(inside, r"\1 ▒▒▒▒ \2", text, flags=re.DOTALL)
        # A mark of a grammar is no mention, even where a label is called like it.
        marks = "|".join(re.escape(mark) for part in parts for mark in (part.open, part.close) if len(mark) > 1)
        named = "|".join(
            r"[\s_-]+".join(map(re.escape, re.split(r"[\s_]+", label))) for label in spellings(self.labels)
        )
        cover = re.compile(rf"({marks})|(?<!\w)(?:{named})(?!\w)", re.I)
        return cover.sub(lambda found: found[1] or "▒▒▒▒", text) if named else text

    def checked(self, answers: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        """The answers as they are stored; DataError when they do not answer this task's questions. `whole`: a label and
        a verdict, where asked, must be there."""
        rules = {
            "label": (lambda given: given in (*self.labels, None), f"one of {', '.join(self.labels)}, or None"),
            "verdict": (lambda given: given in (*VERDICTS, None), f"one of {', '.join(VERDICTS)}, or None"),
            "failing": (_fails, 'None or {"sentence": 0 or above, "in": "' + '" or "'.join(FAILING_IN) + '"}'),
            "note": (
                lambda given: isinstance(given, str) and len(given) <= LONGEST_NOTE,
                f"text up to {LONGEST_NOTE:,} characters",
            ),
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
        return dict(answers)


def _fails(answer: Any) -> bool:
    return answer is None or (
        isinstance(answer, Mapping)
        and set(answer) == {"sentence", "in"}
        and answer["in"] in FAILING_IN
        and type(answer["sentence"]) is int
        and answer["sentence"] >= 0
    )


@dataclass(frozen=True)
class Item:
    """What a reviewer gets: nothing in it says whether others saw it or whether it is gold. `draft`: what they had
    typed, or undone."""

    trace_id: str
    clip_id: str
    draft: Mapping[str, Any]


def plan(
    workbench: "Workbench",
    slice: TraceFilter | Sequence[str],
    order: str | Mapping[str, float] = "random",
    seed: int = 0,
) -> dict[str, str]:
    """Trace id → clip id of a slice, in order: one of `ORDERS`, or a mixture as shares ({"entropy": 2, "random": 1}).

    What an order knows nothing about (no calibrated distribution) comes last in it. "reviewers" begins by chance.
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
    where, values = (
        slice.where(workbench)
        if isinstance(slice, TraceFilter)
        else ("trace_id IN (SELECT unnest(?::VARCHAR[]))", [list(slice)])
    )
    rows = workbench.query(
        f"""WITH chosen AS (SELECT * FROM trace_facts WHERE {where}),
                 votes AS (SELECT run_id, clip_id, step, entropy(provisional) AS spread FROM trace_facts
                           WHERE clip_id IN (SELECT clip_id FROM chosen) GROUP BY ALL),
                 said AS (SELECT trace_id, probs FROM predictions JOIN runs USING (run_id)
                          WHERE method = 'label_likelihood' AND control = 'none'
                                AND trace_id IN (SELECT trace_id FROM chosen)
                          QUALIFY row_number() OVER
                              (PARTITION BY trace_id ORDER BY created DESC, run_id DESC, split, system) = 1)
            SELECT chosen.trace_id, chosen.clip_id, provisional, calibrated, spread, probs
            FROM chosen LEFT JOIN said USING (trace_id) LEFT JOIN votes ON votes.run_id = chosen.run_id
                 AND votes.clip_id = chosen.clip_id AND votes.step IS NOT DISTINCT FROM chosen.step
            ORDER BY chosen.run_id, chosen.step, chosen.clip_id, sample""",  # noqa: S608 - a filter's own conditions
        values,
    ).drop_duplicates("trace_id")
    clips = dict(zip(rows["trace_id"], rows["clip_id"]))
    if not isinstance(slice, TraceFilter):
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
    rest, given, taken = {name: iter(places) for name, places in ranked.items()}, Counter(), set()
    for _ in range(len(next(iter(ranked.values())))):
        name = min(shares, key=lambda name: given[name] / shares[name])
        given[name] += 1
        taken.add(place := next(place for place in rest[name] if place not in taken))
        yield int(place)


def task_of(
    workbench: "Workbench",
    name: str,
    slice: TraceFilter | Sequence[str],
    order: str | Mapping[str, float] = "random",
    *,
    gold: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Task:
    """The task of a slice, its items in order; `settings` as of `Task`. Gold traces need not lie in the slice."""
    gold = dict(gold or {})
    items = plan(workbench, slice, order, seed) | (plan(workbench, list(gold), "given") if gold else {})
    if not items:
        raise DataError(f"the slice of {name!r} holds no trace", "there is nothing to review", "widen the filter")
    text = slice.to_query() if isinstance(slice, TraceFilter) else {}
    return Task(name, items, order=order, gold=gold, slice=text, **settings)


class Reviews:
    """All tasks of a log: opening, handing out, answering. Every method is safe in any thread, and has synced to disk
    what it says when it returns. `event_id` makes it safe to send an answer again after a broken connection."""

    def __init__(self, log: EventLog):
        self.log = log
        self._tasks: dict[str, Task] = {}

    def task(self, name: str) -> Task:
        """A task by its name; DataError when none was opened."""
        opened, names = self.log.look(lambda state: (state.tasks.get(name), list(state.tasks)))
        if opened is None:
            raise DataError(
                f"there is no review task {name!r:.100}",
                f"{len(names)} were opened",
                f"nearest: {nearest(name, names)!r}" if nearest(name, names) else "open it first",
            )
        if name not in self._tasks:
            self._tasks[name] = Task(**opened.payload)
        return self._tasks[name]

    def open(self, task: Task, by: str) -> Task:
        """Open a task; whoever opens it is a lead. The same one may be opened again, another of its name may not."""
        leads = [*dict.fromkeys((by, *task.leads))]
        self.log.append(
            Event(
                Kind.OPENED, task.name, person(by), payload={**asdict(task), "leads": leads}, id=f"opened {task.name}"
            )
        )
        return self.task(task.name)

    def next_item(self, name: str, reviewer: str, *, seat: str = "", holding: Sequence[str] = ()) -> Item | None:
        """The next item of a reviewer, reserved; None when nothing is left for them now.

        `seat` names a tab of theirs: a reload gets back what it held, another tab something else. `holding` are trace
        ids on that tab already, so that a page can fetch one ahead.
        """
        task = self.task(name)

        def choose(state: State) -> Event | None:
            chosen = self._chosen(state, task, person(reviewer), seat, set(holding))
            return chosen and Event(Kind.RESERVED, name, reviewer, chosen, task.items[chosen], {"seat": seat})

        event = self.log.append(choose)
        if event is None:
            return None
        draft = self.log.look(lambda state: state.drafts.get((name, event.item, reviewer), {}))
        return Item(event.item, event.clip, dict(draft))

    def _chosen(self, state: State, task: Task, who: str, seat: str, holding: set[str]) -> str | None:
        answers, holds = state.answers.get(task.name, {}), state.holds.get(task.name, {})
        since = self.log.clock() - task.seconds
        held = state.held(task.name, who, since)
        if task.name in state.closed:
            return None
        own = [item for item, hold in held.items() if hold.seat == seat and item not in holding]
        if own:
            return min(own, key=lambda item: held[item].at)
        if task.name not in state.unfinished:
            state.unfinished[task.name] = dict.fromkeys(item for item in task.items if item not in task.gold)
        unfinished, finished, mine = state.unfinished[task.name], [], holding | held.keys()

        def free() -> Iterator[str]:
            for item in unfinished:
                said = answers.get(item, {})
                busy = {name for name, act in said.items() if act.kind is Kind.JUDGED}
                if len(busy) >= task.reviewers or state.final(task.name, item) is not None:
                    finished.append(item)
                elif who not in said and item not in mine:
                    busy.update(name for name, hold in holds.get(item, {}).items() if hold.at > since)
                    if len(busy) < task.reviewers:
                        yield item

        found = (
            next(free(), None)
            if task.order != "reviewers"
            else max(free(), key=lambda item: dispute(answers.get(item, {})), default=None)
        )
        for item in finished:
            del unfinished[item]
        gold = [item for item in task.gold if who not in answers.get(item, {}) and item not in mine]
        # By chance, but the same after a restart; it cannot be guessed by counting.
        turn = len(held) + len(state.acts.get((task.name, who), {}))
        chance = random.Random(f"{task.name}\n{who}\n{turn}")  # noqa: S311 - no secret
        return chance.choice(gold) if found and gold and chance.random() < task.gold_share else found

    def draft(self, name: str, reviewer: str, item: str, answers: Mapping[str, Any]) -> Event:
        """Keep what is typed; the reservation goes on from now."""
        return self._say(Kind.DRAFT, name, reviewer, item, self.task(name).checked(answers, whole=False))

    def judge(
        self, name: str, reviewer: str, item: str, answers: Mapping[str, Any], event_id: str | None = None
    ) -> Event:
        """Answer an item, also after the reservation ran out, or once more: the last answer stands. `standing` tells
        what became of it."""
        return self._say(Kind.JUDGED, name, reviewer, item, self.task(name).checked(answers, whole=True), event_id)

    def skip(self, name: str, reviewer: str, item: str, reason: str, event_id: str | None = None) -> Event:
        """Leave an item to others, and say why."""
        if not reason.strip() or len(reason) > LONGEST_NOTE:
            raise DataError(
                "a skip without a reason, or with a very long one",
                "leads learn from reasons what to mend",
                "give a few words",
            )
        return self._say(Kind.SKIPPED, name, reviewer, item, {"reason": reason}, event_id)

    def release(self, name: str, reviewer: str, item: str) -> Event:
        """Give a reserved item back."""
        return self._say(Kind.RELEASED, name, reviewer, item, {})

    def _say(
        self, kind: Kind, name: str, reviewer: str, item: str, payload: Mapping[str, Any], event_id: str | None = None
    ) -> Event:
        clip = self.task(name).items.get(item)
        event = Event(kind, name, person(reviewer), item, clip, payload, id=event_id or new_id())

        def if_handed(state: State) -> Event:
            if (name, item, reviewer) not in state.handed:
                raise DataError(
                    f"{item!r} was not handed to {reviewer!r}",
                    "items are handed out, so that each has as many answers as asked and no more",
                    "ask for the next item",
                )
            if kind in (Kind.JUDGED, Kind.SKIPPED) and event.id not in state.acts.get((name, reviewer), {}):
                _open(state, name)
            return event

        return self.log.append(if_handed)

    def undo(self, name: str, reviewer: str, *, seat: str = "") -> Event | None:
        """Take back the newest act in force of a reviewer, of the `item` that the event names; None when there is none.
        The item is theirs again, with what they had said as the draft."""
        self.task(name)

        def newest(state: State) -> Event | None:
            act = state.last_act(name, reviewer)
            if act is not None and act.kind is not Kind.ADJUDICATED:
                _open(state, name)
            return act and Event(Kind.UNDONE, name, reviewer, act.item, act.clip, {"event": act.id, "seat": seat})

        return self.log.append(newest)

    def adjudicate(
        self, name: str, lead: str, item: str, answers: Mapping[str, Any], event_id: str | None = None
    ) -> Event:
        """Decide an item for good; it is handed out no more. DataError unless by a lead of the task."""
        task = self.task(name)
        if lead not in task.leads or item not in task.items:
            raise DataError(
                f"{lead!r} adjudicates {item!r}",
                f"leads of this task do, on its {len(task.items)} items: {', '.join(task.leads)}",
                "ask one of them",
            )
        return self.log.append(
            Event(
                Kind.ADJUDICATED,
                name,
                lead,
                item,
                task.items[item],
                task.checked(answers, whole=True),
                id=event_id or new_id(),
            )
        )

    def close(self, name: str, lead: str, closed: bool = True) -> Event:
        """Hand out nothing more of a task and take no more answers (drafts stay), since all may read what was said from
        now on; or open it again. DataError unless by a lead of the task."""
        leads = self.task(name).leads
        if lead not in leads:
            raise DataError(f"{lead!r} closes {name!r}", f"leads of it do: {', '.join(leads)}", "ask one of them")
        return self.log.append(Event(Kind.CLOSED, name, lead, payload={"closed": closed}))

    def standing(self, name: str, item: str, reviewer: str) -> str:
        """What became of a judgement: "counted"; "extra" when as many as asked had judged the item before; "decided"
        when a lead has; "none" where there is no judgement."""
        task = self.task(name)

        def at(state: State) -> str:
            said = state.answers.get(name, {}).get(item, {})
            if reviewer not in said or said[reviewer].kind is not Kind.JUDGED:
                return "none"
            if state.final(name, item) is not None:
                return "decided"
            return "counted" if reviewer in task.counted(item, said) else "extra"

        return self.log.look(at)

    def answers(self, name: str, item: str, viewer: str) -> dict[str, Event]:
        """Answers in force by reviewer: all of them for a lead, for others only their own."""
        leads = self.task(name).leads
        said = self.log.look(lambda state: dict(state.answers.get(name, {}).get(item, {})))
        return {who: act for who, act in said.items() if viewer in leads or who == viewer}

    def judgements(self, name: str) -> list[Event]:
        """All judgements in force, gold items included, in order of time. For leads: it shows everybody's."""
        said = self.log.look(lambda state: [act for by in state.answers.get(name, {}).values() for act in by.values()])
        return sorted((act for act in said if act.kind is Kind.JUDGED), key=lambda act: act.time)

    def ratings(self, name: str, question: str = "label") -> list[tuple[str, str, Any]]:
        """(trace id, reviewer, answer) as `metrics.agreement` takes them; unsure is None. Without gold items and
        extras: who came late to an item did so because of it, so these would weigh hard items more."""
        gold, extra = self.task(name).gold, self.extras(name)
        return [
            (act.item, act.reviewer, act.payload.get(question))
            for act in self.judgements(name)
            if act.item not in gold and act.id not in extra
        ]

    def extras(self, name: str) -> set[str]:
        """Ids of the judgements in force beyond those asked for."""
        task = self.task(name)
        return self.log.look(
            lambda state: {
                act.id
                for item, said in state.answers.get(name, {}).items()
                for who, act in said.items()
                if act.kind is Kind.JUDGED and who not in task.counted(item, said)
            }
        )

    def gold_marks(self, name: str) -> list[tuple[Event, dict[str, bool]]]:
        """What reviewers said on gold items, in order of time, and for each question whose answer is known whether it
        is that. Of a place that fails, sentence or kind alone may be known."""
        gold = self.task(name).gold

        def right(said: Any, known: Any) -> bool:
            if isinstance(known, Mapping) and isinstance(said, Mapping):
                return all(said.get(part) == value for part, value in known.items())
            return said == known

        return [
            (act, {key: right(act.payload.get(key), known) for key, known in gold[act.item].items()})
            for act in self.judgements(name)
            if act.item in gold
        ]

    def progress(self, name: str) -> dict[str, Any]:
        """`asked` and `done` judgements (gold apart), `items` and how many are `complete`, and `by` reviewer the number
        of judgements, gold and extras included."""
        task, everything = self.task(name), self.judgements(name)
        plain = task.items.keys() - task.gold.keys()
        each = Counter(act.item for act in everything if act.item in plain)
        done = {item: min(n, task.reviewers) for item, n in each.items()}
        decided = self.log.look(lambda state: {item for item in plain if state.final(name, item)})
        return {
            "asked": len(plain) * task.reviewers,
            "done": sum(done.values()),
            "items": len(plain),
            "complete": len(decided | {item for item, n in done.items() if n == task.reviewers}),
            "by": dict(Counter(act.reviewer for act in everything)),
        }


def _open(state: State, name: str) -> None:
    if name in state.closed:
        raise DataError(
            f"the task {name!r} is closed",
            "all may read its answers since, so they stay as they are",
            "ask a lead to open it again; your draft is kept",
        )


def dispute(said: Mapping[str, Event]) -> float:
    """How far people differ on an item so far: the share of pairs of (label, verdict) that are not the same."""
    views = [(act.payload.get("label"), act.payload.get("verdict")) for act in said.values() if act.kind is Kind.JUDGED]
    same = sum(n * (n - 1) for n in Counter(views).values())
    return 1 - same / (len(views) * (len(views) - 1)) if len(views) > 1 else 0.0


def person(name: str) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > 200:
        raise DataError(f"a reviewer called {name!r:.100}", "answers belong to somebody", "give the name of a login")
    return name
