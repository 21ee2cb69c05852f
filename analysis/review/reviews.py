"""Reviews at work: items are handed out, answered, decided.

An item is handed out under a reservation that times out, never to more reviewers than asked, never again to one who has
answered it. Reviewers see their own answers; leads see everybody's.

An answer that comes after its reservation ran out is stored like any other. When as many as asked had judged the item
by then it is an *extra*: leads see it, and it is left out of what is settled and of agreement (`State.counted`).

    reviews = Reviews(EventLog(workbench.reviews))
    reviews.open(task_of(workbench, "broken ones", TraceFilter(flip="broken"), "entropy", labels=labels), by="lead")
    item = reviews.next_item("broken ones", "ann")
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deepintuit.errors import DataError, nearest
from deepintuit_analysis.review.events import Event, Kind, State, new_id
from deepintuit_analysis.review.log import EventLog
from deepintuit_analysis.review.tasks import LONGEST_NOTE, ReviewTask


@dataclass(frozen=True)
class Item:
    """What a reviewer gets: nothing in it says whether others saw it or whether it is gold. `draft`: what they had
    typed, or undone."""

    trace_id: str
    clip_id: str
    draft: Mapping[str, Any]


class Reviews:
    """All tasks of a log: opening, handing out, answering. Every method is safe in any thread, and has synced to disk
    what it says when it returns. `event_id` makes it safe to send an answer again after a broken connection."""

    def __init__(self, log: EventLog):
        self.log = log

    def task(self, name: str) -> ReviewTask:
        """A task by its name; DataError when none was opened."""
        task, names = self.log.look(lambda state: (state.tasks.get(name), list(state.tasks)))
        if task is None:
            raise DataError(
                f"there is no review task {name!r:.100}",
                f"the workbench has {len(names)} of other names" if names else "the workbench has none yet",
                f"Nearest: {nearest(name, names)!r}" if nearest(name, names) else "Open it first",
            )
        return task

    def open(self, task: ReviewTask, by: str) -> ReviewTask:
        """Open a task; whoever opens it is a lead. The same one may be opened again, another of its name may not."""
        leads = [*dict.fromkeys((by, *task.leads))]
        # What earlier versions do not know is there where it is used: they read all other tasks.
        fields = {
            name: value for name, value in asdict(task).items() if value or name not in ("guidelines", "feedback")
        }
        self.log.append(
            Event(Kind.OPENED, task.name, person(by), payload={**fields, "leads": leads}, id=f"opened {task.name}")
        )
        return self.task(task.name)

    def next_item(self, name: str, reviewer: str, *, seat: str = "", holding: Sequence[str] = ()) -> Item | None:
        """The next item of a reviewer, reserved; None when nothing is left for them now.

        `seat` names a tab of theirs: a reload gets back what it held, another tab something else. `holding` are trace
        ids on that tab already, so that a page can fetch one ahead.
        """
        task = self.task(name)

        def choose(state: State) -> Event | None:
            item = self._chosen(state, task, person(reviewer), seat, set(holding))
            return item and Event(Kind.RESERVED, name, reviewer, item, task.items[item], {"seat": seat})

        event = self.log.append(choose)
        if event is None:
            return None
        draft = self.log.look(lambda state: state.drafts.get((name, event.item, reviewer), {}))
        return Item(event.item, event.clip, dict(draft))

    def _chosen(self, state: State, task: ReviewTask, reviewer: str, seat: str, holding: set[str]) -> str | None:
        answers, holds = state.answers.get(task.name, {}), state.holds.get(task.name, {})
        since = self.log.clock() - task.seconds
        own_holds = state.held(task.name, reviewer, since)
        if task.name in state.closed:
            return None
        own = [item for item, hold in own_holds.items() if hold.seat == seat and item not in holding]
        if own:
            return min(own, key=lambda item: own_holds[item].at)
        if task.name not in state.unfinished:
            state.unfinished[task.name] = dict.fromkeys(item for item in task.items if item not in task.gold)
        unfinished, finished, reserved = state.unfinished[task.name], [], holding | own_holds.keys()

        def free() -> Iterator[str]:
            for item in unfinished:
                acts = answers.get(item, {})
                busy = {name for name, act in acts.items() if act.kind is Kind.JUDGED}
                if len(busy) >= task.reviewers or state.final(task.name, item) is not None:
                    finished.append(item)
                elif reviewer not in acts and item not in reserved:
                    busy.update(name for name, hold in holds.get(item, {}).items() if hold.at > since)
                    if len(busy) < task.reviewers:
                        yield item

        choice = (
            next(free(), None)
            if task.order != "reviewers"
            else max(free(), key=lambda item: dispute(answers.get(item, {})), default=None)
        )
        for item in finished:
            del unfinished[item]
        gold = [item for item in task.gold if reviewer not in answers.get(item, {}) and item not in reserved]
        # By chance, but the same after a restart; it cannot be guessed by counting.
        turn = len(own_holds) + len(state.acts.get((task.name, reviewer), {}))
        chance = random.Random(f"{task.name}\n{reviewer}\n{turn}")  # noqa: S311 - no secret
        return chance.choice(gold) if choice and gold and chance.random() < task.gold_share else choice

    def draft(self, name: str, reviewer: str, item: str, answers: Mapping[str, Any]) -> Event:
        """Keep what is typed; the reservation starts anew."""
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
                _untold(state, state.answers.get(name, {}).get(item, {}).get(reviewer))
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
                _untold(state, act)
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
        self.task(name)

        def at(state: State) -> str:
            answers = state.answers.get(name, {}).get(item, {})
            if reviewer not in answers or answers[reviewer].kind is not Kind.JUDGED:
                return "none"
            if state.final(name, item) is not None:
                return "decided"
            return "counted" if reviewer in state.counted(name, item) else "extra"

        return self.log.look(at)

    def answers(self, name: str, item: str, viewer: str) -> dict[str, Event]:
        """Answers in force by reviewer: all of them for a lead, for others only their own."""
        leads = self.task(name).leads
        answers = self.log.look(lambda state: dict(state.answers.get(name, {}).get(item, {})))
        return {reviewer: act for reviewer, act in answers.items() if viewer in leads or reviewer == viewer}

    def judgements(self, name: str) -> list[Event]:
        """All judgements in force, gold items included, in order of time. For leads: it shows everybody's."""
        acts = self.log.look(lambda state: [act for act, _ in state.in_force(name)])
        return sorted((act for act in acts if act.kind is Kind.JUDGED), key=lambda act: act.time)

    def ratings(self, name: str, question: str = "label") -> list[tuple[str, str, Any]]:
        """(trace id, reviewer, answer) as `agreement` takes them; unsure is None. Without gold items and
        extras: who came late to an item did so because of it, so these would weigh hard items more."""
        gold, extra = self.task(name).gold, self.extras(name)
        return [
            (act.item, act.reviewer, act.payload.get(question))
            for act in self.judgements(name)
            if act.item not in gold and act.id not in extra
        ]

    def extras(self, name: str) -> set[str]:
        """Ids of the judgements in force beyond those asked for."""
        self.task(name)
        return self.log.look(lambda state: {act.id for act, extra in state.in_force(name) if extra})

    def gold_marks(self, name: str) -> list[tuple[Event, dict[str, bool]]]:
        """What reviewers said on gold items, in order of time, and for each question whose answer is known whether it
        is that. Of a place that fails, sentence or kind alone may be known."""
        gold = self.task(name).gold

        def right(answer: Any, truth: Any) -> bool:
            if isinstance(truth, Mapping) and isinstance(answer, Mapping):
                return all(answer.get(part) == value for part, value in truth.items())
            return answer == truth

        return [
            (act, {key: right(act.payload.get(key), truth) for key, truth in gold[act.item].items()})
            for act in self.judgements(name)
            if act.item in gold
        ]

    def progress(self, name: str) -> dict[str, Any]:
        """`asked` and `done` judgements (gold apart), `items` and how many are `complete`, and `by` reviewer the number
        of judgements, gold and extras included."""
        task, everything = self.task(name), self.judgements(name)
        plain = task.items.keys() - task.gold.keys()
        each = Counter(act.item for act in everything if act.item in plain)
        counts = {item: min(n, task.reviewers) for item, n in each.items()}
        decided = self.log.look(lambda state: {item for item in plain if state.final(name, item)})
        return {
            "asked": len(plain) * task.reviewers,
            "done": sum(counts.values()),
            "items": len(plain),
            "complete": len(decided | {item for item, n in counts.items() if n == task.reviewers}),
            "by": dict(Counter(act.reviewer for act in everything)),
        }

    def others_done(self, name: str, reviewer: str) -> int:
        """How many of the judgements asked for others have given, gold apart."""
        task = self.task(name)
        counts = Counter(act.item for act in self.judgements(name) if act.reviewer != reviewer)
        return sum(min(n, task.reviewers) for item, n in counts.items() if item in task.items and item not in task.gold)

    def progress_for(self, name: str, reviewer: str, count: int | None = None) -> dict[str, int]:
        """How far a task is to one of its reviewers: `mine` and `done` of `asked` judgements, each with all gold items
        that they judged or might get. Every answer counts one, so that none tells whether it was of gold. `count`: as
        of `others_done`, counted before."""
        task = self.task(name)
        items = self.log.look(
            lambda state: {act.item for act in state.acts.get((name, reviewer), {}).values() if act.kind is Kind.JUDGED}
        )
        count = self.others_done(name, reviewer) if count is None else count
        most = (len(task.items) - len(task.gold)) * task.reviewers + len(task.gold)
        return {"mine": len(items), "done": min(most, count + len(items)), "asked": most}


def _open(state: State, name: str) -> None:
    if name in state.closed:
        raise DataError(
            f"the task {name!r} is closed",
            "all may read its answers since, so they stay as they are",
            "ask a lead to open it again; your draft is kept",
        )


def _untold(state: State, act: Event | None) -> None:
    """DataError for a judgement of a gold item about which its reviewer was told what is right."""
    task = state.tasks.get(act.task) if act is not None and act.kind is Kind.JUDGED else None
    if task is not None and task.feedback and act.item in task.gold:
        raise DataError(
            "that is an answer to a known item",
            "you were told what is right, so your answer stays",
            "go on; ← goes back to other answers, which you may replace",
        )


def dispute(acts: Mapping[str, Event]) -> float:
    """How far people differ on an item so far: the share of pairs of (label, verdict) that are not the same."""
    views = [(act.payload.get("label"), act.payload.get("verdict")) for act in acts.values() if act.kind is Kind.JUDGED]
    pairs = sum(n * (n - 1) for n in Counter(views).values())
    return 1 - pairs / (len(views) * (len(views) - 1)) if len(views) > 1 else 0.0


def person(name: str) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > 200:
        raise DataError(f"a reviewer called {name!r:.100}", "answers belong to somebody", "give the name of a login")
    return name
