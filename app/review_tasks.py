"""Review tasks behind the page: the log of the workbench, a task from a form, an item with what it needs on screen.

    room = Room(context)
    room.open({"name": "broken ones", "query": "flip=broken&split=test", "gold": "10"}, by="ada")
    room.next("broken ones", "bob", seat="tab 1", holding=[])        # a dict for the page's script, as JSON

Plain functions of ids and texts: `review` has the routes, `review_view` draws. What belongs to a reviewer is checked by
`Reviews`; an item is shown only to somebody whom it was handed to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

from deepintuit.errors import DataError
from deepintuit.labels import LabelSet
from deepintuit.trace import parse
from deepintuit_analysis.index import browse, clips
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.index.reviewed import row_of
from deepintuit_analysis.review import (
    ORDERS,
    QUESTIONS,
    EventLog,
    Kind,
    Reviews,
    ReviewTask,
    feedback,
    import_export,
    quality,
    task_of,
)
from deepintuit_analysis.review.agreement import span_agreement
from deepintuit_analysis.review.tasks import known_items, labels_of
from deepintuit_app import media, review_view
from deepintuit_app.context import AppContext

MOST_GOLD, MOST_LISTED = 200, 5000
_KEPT = 60.0
"""Seconds that an item is shown as it was drawn."""
_opening = threading.Lock()


class Room:
    """The reviews of a workbench as the server holds them; every method may be called from many threads at once."""

    def __init__(self, context: AppContext):
        self.context = context
        self._reviews: Reviews | None = None
        self._drawn = lru_cache(maxsize=512)(self._draw)  # several reviewers get an item
        self._counted: dict[tuple[str, str], tuple[float, float, int]] = {}

    @property
    def reviews(self) -> Reviews:
        """Opened when a page first asks, so that a dashboard that nobody reviews in makes no file."""
        with _opening:
            if self._reviews is None:
                self._reviews = Reviews(EventLog(self.context.workbench.reviews))
            return self._reviews

    # Opening

    def filter_of(self, form: Mapping[str, Any]) -> TraceFilter:
        """What the form's slice says: a saved slice, a run, and the address of the Traces page, all that are given."""
        text = str(form.get("query") or "").strip()
        choices = {name: form[name] for name in ("slice", "run") if form.get(name)}
        return TraceFilter.from_query(TraceFilter.from_address(text).to_query() | choices)

    def listed(self, form: Mapping[str, Any]) -> list[str]:
        """The traces of a form that asks for a list instead of a filter, the first to judge first; with a saved slice
        only of clips that it has a trace of."""
        workbench, dataset, most = self.context.look(), str(form.get("dataset") or ""), int(_number(form, "most", 50))
        if not 0 < most <= MOST_LISTED:
            raise DataError(f"{most} traces were asked for", f"a list has 1 to {MOST_LISTED:,}", "give another number")
        among = set(workbench.slice(str(form["slice"])).clips()["clip_id"]) if form.get("slice") else None
        if form.get("source") == "teach":
            batch = feedback.next_batch(workbench, self.reviews, dataset, most, among=among)
            return batch["trace_id"].dropna().tolist()
        rows = quality.suspects(workbench, dataset, str(form.get("split") or "").strip() or None).rows
        mask = rows["suspected"] & (True if among is None else rows["clip_id"].isin(among))
        return rows.loc[mask, "trace_id"].dropna().tolist()[:most]

    def count(self, form: Mapping[str, Any]) -> int:
        if form.get("source"):
            return len(self.listed(form))
        return browse.count(self.context.look(), self.filter_of(form))

    def open(self, form: Mapping[str, Any], by: str) -> ReviewTask:
        """Open the task that a form describes. DataError in a sentence when it cannot be one."""
        name, workbench = str(form.get("name") or "").strip(), self.context.look()
        listed = self.listed(form) if form.get("source") else None
        traces = self.filter_of(form) if listed is None else TraceFilter(dataset=str(form.get("dataset") or ""))
        if not name or len(name) > 200:
            raise DataError("a task without a name, or with a very long one", "it is found by its name", "give it one")
        order: str | dict[str, float] = str(form.get("order") or "random") if listed is None else "given"
        if order == "mixture":
            order = {key: share for key in ORDERS if (share := _number(form, f"share-{key}", 0.0))}
            if not order:
                raise DataError("a mixture without shares", "there is no order then", "give two orders a share above 0")
        questions = [key for key in QUESTIONS if key in _list(form.get("questions"))]
        if not questions:
            raise DataError("a task without questions", "there would be nothing to answer", "choose one at least")
        labels = _list(form.get("labels")) or labels_of(workbench, traces)
        number = min(int(_number(form, "gold", 0)), MOST_GOLD)
        gold = known_items(workbench, traces, number, labels if "label" in questions else [])
        gold |= self._listed_gold(str(form.get("gold_list") or ""), labels if "label" in questions else [])
        task = task_of(
            workbench, name, traces if listed is None else listed, order, gold=gold, labels=labels, questions=questions,
            reviewers=int(_number(form, "reviewers", 1)), blind=bool(form.get("blind")),
            guidelines=str(form.get("guidelines") or "").strip(), feedback=bool(form.get("feedback")),
            gold_share=_number(form, "gold_share", 10) / 100, leads=_list(form.get("leads")),
        )  # fmt: skip
        return self.reviews.open(task, by)

    def _listed_gold(self, text: str, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The gold items of a form's lines: trace, label, verdict, sentence (the first is 1), seeing or reasoning."""
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) > MOST_GOLD:
            raise DataError(f"{len(lines)} gold items", f"a task has at most {MOST_GOLD}", "leave some out")
        gold = {}
        for number, line in lines:
            cells = [cell.strip() for cell in line.split(",")]
            trace, label, verdict, sentence, process = [*cells, "", "", "", ""][:5]
            trace = parse_qs(urlsplit(trace).query).get("trace", [trace])[0]
            fact = browse.fact(self.context.workbench, trace)
            whole = len(cells) <= 5 and (not sentence or (sentence.isdecimal() and int(sentence) > 0))
            if fact is None or not whole:
                why = "its sentence is a number from 1 on, and seeing or reasoning comes last"
                raise DataError(
                    f"line {number} of the gold items, {line.strip()!r:.80}",
                    why if fact is not None else "it names no trace of this workbench",
                    f"write it like {review_view.GOLD_LINE!r}",
                )
            place = {"sentence": int(sentence) - 1} if sentence else {}
            place |= {"in": process} if process else {}
            true = fact["true_label"] if fact["true_label"] in labels else ""
            answers = {"label": label or true, "verdict": verdict, "failing": place}
            gold[trace] = {question: answer for question, answer in answers.items() if answer}
            if not gold[trace]:
                raise DataError(
                    f"line {number} of the gold items says nothing of its trace",
                    "nobody could be measured by it",
                    "give label, verdict or the place that fails",
                )
        return gold

    # Judging

    def next(self, name: str, reviewer: str, seat: str, holding: Sequence[str] = (), first: str = "") -> dict[str, Any]:
        """The next item, drawn and reserved, and how far the task is; `item` is None when nothing is left now, and
        `elsewhere` counts what this reviewer holds in other tabs. `first`: which of the items that this tab holds."""
        reviews = self.reviews
        holds = self._held(name, reviewer)
        if holds.get(first) == seat:
            holding = [item for item in holds if item != first]
        reserved = reviews.next_item(name, reviewer, seat=seat, holding=holding)
        answer = {"progress": self.progress(name, reviewer)}
        if reserved is None:
            closed = reviews.log.look(lambda state: name in state.closed)
            elsewhere = 0 if closed else sum(its != seat for its in self._held(name, reviewer).values())
            html = "" if closed else self._finish_html(name, reviewer)
            return {**answer, "item": None, "elsewhere": elsewhere, "closed": closed, "html": html}
        return {**answer, **self.shown(name, reserved.trace_id, reserved.draft)}

    def _finish_html(self, name: str, reviewer: str) -> str:
        """What this reviewer said in the task, and what there is to do next."""
        reviews, task = self.reviews, self.reviews.task(name)
        payloads = [act.payload for act in reviews.judgements(name) if act.reviewer == reviewer]
        closed = reviews.log.look(lambda state: set(state.closed))
        open_names = [task_name for task_name in quality.names(reviews) if task_name not in {name, *closed}]
        counts = {task_name: reviews.progress(task_name) for task_name in [name, *open_names]}
        wanting = {task_name for task_name, progress in counts.items() if progress["done"] < progress["asked"]}
        unfinished = [
            (task_name, reviews.progress_for(task_name, reviewer)) for task_name in open_names if task_name in wanting
        ]
        undecided = self.undecided(name)["left"] if reviewer in task.leads else None
        return review_view.finish_html(task, name in wanting, payloads, unfinished, undecided)

    def gather(self, name: str, reviewer: str, seat: str) -> int:
        """Give back what this reviewer holds in other tabs, so that this one can have it. Their drafts stay."""
        elsewhere = [item for item, its in self._held(name, reviewer).items() if its != seat]
        for item in elsewhere:
            self.reviews.release(name, reviewer, item)
        return len(elsewhere)

    def _held(self, name: str, reviewer: str) -> dict[str, str]:
        """The items that a reviewer has reserved now → in which tab."""
        since = self.reviews.log.clock() - self.reviews.task(name).seconds
        return self.reviews.log.look(
            lambda state: {item: hold.seat for item, hold in state.held(name, reviewer, since).items()}
        )

    def again(self, name: str, reviewer: str, item: str) -> dict[str, Any]:
        """An item that was handed to this reviewer, with what they typed or said. DataError for any other."""

        def look(state: Any) -> tuple[bool, Any, Any]:
            key = (name, item, reviewer)
            return key in state.handed, state.drafts.get(key), state.answers.get(name, {}).get(item, {}).get(reviewer)

        handed, draft, act = self.reviews.log.look(look)
        if not handed:
            raise DataError(
                f"{item!r:.60} was not handed to {reviewer!r}",
                "reviewers see what they were handed",
                "ask for the next item",
            )
        answers = act.payload if act is not None and act.kind is Kind.JUDGED else {}
        return {**self.shown(name, item, draft or answers), "answered": act is not None}

    def shown(self, name: str, item: str, draft: Mapping[str, Any], lead: str | None = None) -> dict[str, Any]:
        """What the page needs of an item: the clip's player, the drawn trace, the draft. For a lead, who said what."""
        task = self.reviews.task(name)
        html, film = self._drawn(name, item, int(time.time() / _KEPT))
        if lead is not None:
            acts = self.reviews.answers(name, item, lead).values()
            html = review_view.said_html(task, [row_of(act) for act in acts]) + html
        return {"item": item, "html": html, "film": film, "draft": dict(draft), "seconds": task.seconds}

    def _draw(self, name: str, item: str, _when: int) -> tuple[str, dict[str, Any] | None]:
        """The trace as it is shown to all reviewers alike, and what plays its clip."""
        task, workbench = self.reviews.task(name), self.context.workbench
        row = browse.trace(workbench, item)
        if row is None:  # perhaps written a moment ago
            workbench = self.context.look()
            row = browse.trace(workbench, item)
        fact, clip = browse.fact(workbench, item), clips.clip(workbench, task.items[item])
        grammar = clips.grammar_of(workbench, row["run_id"]) if row is not None else "think-answer"
        film = None
        if clip is not None and clip.get("path") and not clip.get("excluded"):
            film = {"src": media.clip_url(clip["clip_id"]), "step": 1 / clip["fps"] if clip.get("fps") else 0.04}
            film |= {"seconds": clip.get("seconds")}
        return review_view.item_html(task, fact, row, clip, grammar), film

    def label_set(self, task: ReviewTask) -> LabelSet:
        """The labels that a task asks for, with the definitions and aliases of its clips' dataset."""
        clip = clips.clip(self.context.workbench, next(iter(task.items.values()), ""))
        labels = self.context.labels((clip or {}).get("dataset"))
        return labels if labels is not None else LabelSet.of(task.name, task.labels)

    def check(self, name: str, item: str, text: str) -> dict[str, Any]:
        """What a trace that somebody edits would count as: `label` where it is well-formed, and words for the page."""
        task, row = self.reviews.task(name), browse.trace(self.context.workbench, item)
        grammar = clips.grammar_of(self.context.workbench, row["run_id"]) if row is not None else "think-answer"
        trace = parse(text, grammar, self.label_set(task))
        words = f"Well-formed; it ends in {trace.label}." if trace.ok else f"Not well-formed: {trace.detail}."
        return {"label": trace.label if trace.ok else None, "told": words}

    def progress(self, name: str, reviewer: str) -> dict[str, int]:
        """How far a task is; what others did a little behind where there is much to count: that takes 5 % of the time
        then."""
        at, cost, count = self._counted.get((name, reviewer), (0.0, 0.0, 0))
        began = time.monotonic()
        if cost < 0.02 or began - at > 20 * cost:
            worked = time.thread_time()  # on a busy machine the clock on the wall would say that counting is much
            count = self.reviews.others_done(name, reviewer)
            self._counted[name, reviewer] = (began, time.thread_time() - worked, count)
        return self.reviews.progress_for(name, reviewer, count)

    def told(self, name: str, reviewer: str, item: str) -> str:
        """What is right on a gold item that somebody has answered, where the task tells them; "" elsewhere."""
        task = self.reviews.task(name)
        if not task.feedback or item not in task.gold:
            return ""
        marks = [marks for act, marks in self.reviews.gold_marks(name) if (act.item, act.reviewer) == (item, reviewer)]
        answers = self.reviews.answers(name, item, reviewer)[reviewer].payload
        return review_view.gold_html(task.gold[item], answers, marks[-1])

    def undo(self, name: str, reviewer: str, seat: str) -> dict[str, Any]:
        """Take the newest act of this reviewer back; `item` is None when there is none."""
        before = self.reviews.log.look(lambda state: state.last_act(name, reviewer))
        event = self.reviews.undo(name, reviewer, seat=seat)
        if event is None or event.item is None:
            return {"item": None}
        if before is not None and before.kind is Kind.ADJUDICATED:
            view = self.shown(name, event.item, before.payload, lead=reviewer)
            return {**view, "decides": True, "progress": self.undecided(name)}
        return {**self.again(name, reviewer, event.item), "progress": self.progress(name, reviewer)}

    # Leading

    def lead(self, name: str, reviewer: str) -> ReviewTask:
        """The task, for one of its leads: DataError for others."""
        task = self.reviews.task(name)
        if reviewer not in task.leads:
            raise DataError(
                f"{reviewer!r} asked for what all reviewers said",
                "leads of a task see that: " + ", ".join(task.leads),
                "ask one of them",
            )
        return task

    def undecided(self, name: str) -> dict[str, int]:
        return {"left": len(quality.disputed(self.reviews, name))}

    def decide_next(self, name: str, reviewer: str, holding: Sequence[str]) -> dict[str, Any]:
        """The next item for a lead to decide, with what everybody said."""
        self.lead(name, reviewer)
        items = [item for item, _ in quality.disputed(self.reviews, name)]
        choice = next((item for item in items if item not in holding), None)
        answer = {"progress": self.undecided(name)}
        return (
            {**answer, "item": None, "elsewhere": 0}
            if choice is None
            else {**answer, **self.shown(name, choice, {}, lead=reviewer)}
        )

    def lead_html(self, name: str, reviewer: str) -> str:
        task, reviews, workbench = self.lead(name, reviewer), self.reviews, self.context.look()
        closed = reviews.log.look(lambda state: name in state.closed)
        model = {}
        if "label" in task.questions and any(view.label for view in quality.settled(reviews, name).values()):
            model = quality.model_against_people(reviews, workbench, name, draws=300)
        return review_view.lead_html(
            task,
            reviews.progress(name),
            import_export.rows(reviews, name),
            quality.gold_records(reviews, name),
            reviews.ratings(name),
            model,
            quality.disputed(reviews, name),
            closed,
            quality.seeing_or_reasoning(reviews, workbench, name, draws=300),
            quality.doubted(workbench, task.items.values()),
            quality.weighed(reviews, name) if task.reviewers > 1 else None,
            span_agreement(reviews.ratings(name, "spans"), draws=300) if "spans" in task.questions else None,
        )

    def export(self, name: str, reviewer: str, form: str) -> bytes:
        """Everything in force in a task as a file, for its leads; `interface`: what Label Studio needs to show its."""
        task = self.lead(name, reviewer)
        if form == "interface":
            return import_export.label_config(task).encode()
        if form == "label-studio":
            return import_export.label_studio(self.context.look(), self.reviews, name)
        if form == "cvat":
            return import_export.cvat(self.context.look(), self.reviews, name)
        return import_export.dump(import_export.rows(self.reviews, name), form)

    def bring_in(self, name: str, reviewer: str, file: str, content: bytes) -> str:
        """The answers of a file into a task, for its leads; a sentence of what came of it. They say that they came from
        this file and by whom, since it names reviewers itself."""
        self.lead(name, reviewer)
        places = import_export.places(self.context.look(), self.reviews, name)
        rows = import_export.load(content, import_export.form_of(file), places)
        return str(import_export.bring_in(self.reviews, name, rows, f"{file[-100:]}, by {reviewer}"))


def _list(value: Any) -> list[str]:
    """Texts of a list, or of one text with commas or lines between them."""
    parts = value if isinstance(value, list) else str(value or "").replace("\n", ",").split(",")
    return list(dict.fromkeys(text for part in parts if (text := str(part).strip())))


def _number(form: Mapping[str, Any], name: str, default: float) -> float:
    value = form.get(name)
    try:
        number = float(default if value in (None, "") else value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < 1e9:
        raise DataError(f"{value!r:.40} came as the {name.replace('_', ' ')}", "it is a number", "give one")
    return number
