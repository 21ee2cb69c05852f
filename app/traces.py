"""Traces: every text that a model or a teacher wrote about a clip, filtered, sorted, searched, opened and compared.

`browse` finds; here is how rows and one opened trace look, what the events call, and the route that exports. What is on
screen (filters, order, page, opened trace, compared trace) is in the address.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import fields
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse

from deepintuit.errors import DeepIntuitError
from deepintuit.tables import FORMATS
from deepintuit_analysis.index import browse, clips, reviewed
from deepintuit_analysis.index.browse import FLIPS, OLDER_NAMES, SORTS, TraceFilter
from deepintuit_analysis.report.steps import false_step, first_false_steps
from deepintuit_app import links, media, prose, slices, sql_view
from deepintuit_app.context import AppContext, apart
from deepintuit_app.html import address, empty, heading, note, render
from deepintuit_app.roles import needs
from deepintuit_app.token_confidence import LEVELS, marked_tokens
from deepintuit_app.verdicts import verdicts, with_mismatch

FILTERS = tuple(field.name for field in fields(TraceFilter))
SIZES = (50, 100, 200)
_EXCERPT = 150
_FORM_NAMES = {"csv": "CSV", "jsonl": "JSONL", "parquet": "Parquet"}
_HEADS = (
    ("Trace", "newest", ""), ("True", "true", ""), ("Provisional", "provisional", ""), ("Calibrated", "calibrated", ""),
    ("Token confidence", "token_confidence", "number"), ("Tokens", "tokens", "number wide"), ("Run", "run", "wide"),
)  # fmt: skip
NAMES = {
    "true": "True label", "provisional": "Provisional label", "calibrated": "Calibrated label",
    "right": "Provisional is", "final": "Calibrated is", "flip": "Calibration", "follows": "Label follows",
    "judge": "Judge",
    "reason": "Form", "dataset": "Dataset", "split": "Split", "min_token_confidence": "Token confidence from",
    "max_token_confidence": "Token confidence to", "min_tokens": "Tokens from", "max_tokens": "Tokens to",
    "step": "Step", "sample": "Sample", "clip": "Clip id", "slice": "Slice",
}  # fmt: skip
"""The filters that stand among the further ones, as the page calls them."""
_TITLES = {
    "newest": "Sort by the time of the run", "token_confidence": "Sort by the mean confidence in the tokens",
    "provisional": "Sort by the provisional label, the trace's own", "calibrated": "Sort by the calibrated label",
}  # fmt: skip


def order_of(sort: str | None) -> tuple[str, bool | None]:
    """A key of `SORTS` and whether downwards, from "tokens" or "-tokens"; the newest run first for anything else."""
    name = (sort or "").removeprefix("-")
    name = OLDER_NAMES.get(name, name)
    return (name, str(sort).startswith("-")) if name in SORTS else ("newest", None)


def _whole(text: Any, default: int, low: int, high: int) -> int:
    try:
        return min(high, max(low, int(float(text))))
    except (TypeError, ValueError, OverflowError):
        return default


# The list


def list_html(context: AppContext, filters: TraceFilter, sort: str, number: str, size: str, opened: str) -> str:
    """A page of what the filter finds: how many, the table, the way to other pages, exports."""
    name, descending = order_of(sort)
    rows = _whole(size, SIZES[0], SIZES[0], SIZES[-1])
    place = _whole(number, 1, 1, 10**7)
    workbench = context.look()
    result = browse.page(workbench, filters, name, descending, rows, (place - 1) * rows)
    if result.rows.empty and result.total:  # past the end: the last page
        place = -(-result.total // rows)
        result = browse.page(workbench, filters, name, descending, rows, (place - 1) * rows)
    if not result.total and filters == TraceFilter():
        todo = "A teacher, a reasoner in training and an evaluation write them:"
        return empty("No trace is in this workbench yet.", todo, "make demo")
    if not result.total:
        return empty("No trace fits these filters.", "Remove one, or clear them all.")
    records = browse.records(result.rows)
    grammars = {run: clips.grammar_of(workbench, run) for run in {row["run_id"] for row in records}}
    argued = browse.argued(workbench, [row["trace_id"] for row in records])
    rows_shown = [
        (
            {**row, "argued": argued.get(row["trace_id"]), "url": media.poster_url(row["clip_id"])},
            excerpt(row["text"] or "", filters.text, grammars[row["run_id"]]),
        )
        for row in records
    ]
    query = filters.to_query()
    return render(
        "traces/list.html",
        total=result.total,
        more=result.more,
        query=urlencode(query),
        filters=[(name, NAMES[name], value) for name, value in query.items() if name in NAMES],
        exports=[(_FORM_NAMES[form], export_url(filters, form)) for form in FORMATS],
        heads=[_head(*head, name, descending) for head in _HEADS],
        rows=rows_shown,
        opened=opened,
        place=place,
        pages=-(-result.total // rows),
        sizes=SIZES,
        size_now=rows,
    )


def first(context: AppContext, query: dict[str, str]) -> dict[str, str]:
    """The list, for the HTML of the page."""
    wish = (query.get(key, "")[:64] for key in ("sort", "page", "size", "trace"))
    return {"traces-list": list_html(context, TraceFilter.from_query(query), *wish)}


def _head(words: str, key: str, kind: str, sorted_by: str, descending: bool | None) -> dict[str, str]:
    """A column's head: how the table is sorted by it now, and by what a click sorts."""
    now = key == sorted_by
    down = descending if descending is not None else key == "newest"
    follows = f"-{key}" if now and not down else key
    if key == "newest":
        follows = "newest" if now and down else ""
    order = ("descending" if down else "ascending") if now else ""
    title = _TITLES.get(key, f"Sort by {words.lower()}")
    return {"words": words, "kind": kind, "sorted": order, "follows": follows, "title": title}


def excerpt(text: str, searched: str | None = None, grammar: str = "think-answer") -> tuple[str, str, str]:
    """The sentence that decides, or, when something was searched, its first place, as what stands before, what was
    found, and what stands behind."""
    plain = " ".join(text.removeprefix("<think>").removeprefix("<observation>").split())
    # What does not keep its length in lower case could not be found again by its place.
    at = plain.lower().find(" ".join(searched.lower().split())) if searched and len(plain.lower()) == len(plain) else -1
    if at < 0:
        sentence = prose.deciding(text, grammar)
        return "…" * (len(sentence) > _EXCERPT) + sentence[-_EXCERPT:], "", ""
    start, end = max(0, at - 50), at + len(" ".join(searched.split()))
    after = plain[end : max(end + 30, start + _EXCERPT)]
    return "…" * (start > 0) + plain[start:at], plain[at:end], after + "…" * (end + len(after) < len(plain))


# One trace


def detail_html(context: AppContext, trace_id: str, compared: str, coloured: bool) -> tuple[str, str]:
    """The player, the trace with chips, its facts, and the clip's other traces, one of them beside it when chosen; and
    the id of that one, "" where `compared` is no other trace of the clip."""
    if not trace_id:
        return "", ""
    workbench = context.look()
    fact, row = browse.fact(workbench, trace_id), browse.trace(workbench, trace_id)
    if fact is None or row is None:
        return render("traces/detail.html", shown=None), ""
    clip = clips.clip(workbench, fact["clip_id"])
    siblings = browse.records(browse.siblings(workbench, trace_id))
    beside = next((sibling for sibling in siblings if sibling["trace_id"] == compared), None)
    its_row = browse.trace(workbench, compared) if beside is not None else None
    playable = clip is not None and clip.get("path") and not clip.get("excluded")
    sized = playable and clip.get("width") and clip.get("height")
    html = render(
        "traces/detail.html",
        shown=_one(context, fact, row, clip, coloured),
        beside=_one(context, beside, its_row, clip, coloured) if its_row is not None else None,
        name=_clip_name(clip, fact),
        url=media.clip_url(fact["clip_id"]) if playable else "",
        ratio=f"{clip['width']:.0f} / {clip['height']:.0f}" if sized else "16 / 9",
        levels=LEVELS if coloured else (),
        others=siblings,
        compared=compared,
        facts=_facts(fact, row, clip),
    )
    return html, compared if beside is not None else ""


def _clip_name(clip: Mapping[str, Any] | None, fact: Mapping[str, Any]) -> str:
    path = (clip or {}).get("path")
    return str(path).replace("\\", "/").rsplit("/", 1)[-1] if path else f"clip {fact['clip_id']}"


def _one(
    context: AppContext, fact: Mapping[str, Any], row: Any, clip: Mapping[str, Any] | None, coloured: bool
) -> dict[str, Any]:
    """A trace, what is known beside its answer, and why its tokens cannot be coloured when that was asked for."""
    marks, why_not = marked_tokens(context.workbench, row) if coloured else ([], "")
    times = row["frame_times"] if hasattr(row["frame_times"], "__len__") else None
    grammar, seconds = clips.grammar_of(context.workbench, fact["run_id"]), (clip or {}).get("seconds")
    scores = browse.scores_of(context.workbench, fact["trace_id"])
    people = reviewed.fails_in(context.workbench.index_path.parent, fact["trace_id"]) if "sufficient" in scores else ()
    step = false_step(first_false_steps(context.workbench, fact["run_id"], [fact["trace_id"]]), fact["trace_id"])
    return {
        "fact": fact,
        "uncoloured": why_not,
        "verdicts": verdicts(
            with_mismatch(scores, row["text"], grammar, context.labels(fact["dataset"])),
            row,
            fact["true_label"],
            people,
            clips.gate_of(context.workbench, fact["run_id"]),
            step,
            browse.judge_answers(context.workbench, fact["trace_id"]),
        ),
        "text": row["text"].strip()
        and prose.trace_html(row["text"], grammar, times, seconds, token_marks=marks, mistake=step),
    }


def _facts(fact: Mapping[str, Any], row: Any, clip: Mapping[str, Any] | None) -> dict[str, Any]:
    frames = row["frame_indices"] if hasattr(row["frame_indices"], "__len__") else None
    size = "×".join(str(int(side)) for side in row["frames_size"]) if hasattr(row["frames_size"], "__len__") else "?"
    return {
        "True label": fact["true_label"] or "not known", "Answer as written": _text_of(row["answer"]),
        "Malformed": fact["reason"] and f"{fact['reason'].replace('_', ' ')}: {_text_of(row['detail'])}",
        "Calibrated": fact["calibrated"] and f"{fact['calibrated']} ({100 * (fact['certainty'] or 0):.1f} %)",
        "Token confidence": None if fact["confidence"] is None else f"{100 * fact['confidence']:.2f} %",
        "Tokens": None if fact["tokens"] is None else f"{fact['tokens']:.0f}",
        "Time": None if fact["milliseconds"] is None else f"{fact['milliseconds']:.0f} ms",
        "Temperature": None if row["temperature"] != row["temperature"] else f"{row['temperature']:g}",
        "Frames seen": None if frames is None else f"{len(frames)} of {size}, read by {_text_of(row['reader'])}",
        "Split": fact["split"], "Dataset": fact["dataset"], "Group": (clip or {}).get("group"), "Clip": fact["clip_id"],
        "Run": fact["run_id"], "Trace": fact["trace_id"], "Checkpoint": _checkpoint(row["model"]),
    }  # fmt: skip


def _checkpoint(model: Any) -> str | None:
    """The end of a path is enough to know a checkpoint by, and tells nothing about the machine."""
    return "/".join(model.replace("\\", "/").split("/")[-2:]) if isinstance(model, str) else None


def _text_of(value: Any) -> str | None:
    return value if isinstance(value, str) else None


# Export


def export_url(filters: TraceFilter, form: str) -> str:
    return address(f"export/traces.{form}", **filters.to_query())


def routes(context: AppContext) -> APIRouter:
    """`/export/traces.csv?…`: all that a filter finds, written as it is read."""
    router, piece = APIRouter(), apart(2, waiting=10_000)(next)

    async def written(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        while (content := await piece(pieces, None)) is not None:
            yield content

    @router.get("/export/traces.{form}")
    def export(form: str, request: Request) -> StreamingResponse:
        if form not in FORMATS:
            raise HTTPException(404, f"Traces are exported as {', '.join(FORMATS)}.")
        filters = TraceFilter.from_query(dict(request.query_params))
        try:
            pieces = browse.export(context.look(), filters, form)
        except DeepIntuitError as error:
            raise HTTPException(404, str(error)) from error
        header = f'attachment; filename="traces.{form}"'
        return StreamingResponse(written(pieces), media_type=FORMATS[form], headers={"Content-Disposition": header})

    return router


# Events


class Handlers:
    """What the page's events call. Everything from a browser is an id or a setting, and is checked here."""

    def __init__(self, context: AppContext):
        self.context = context

    def restore(self, query: dict[str, str], request: gr.Request) -> list[Any]:
        """An update for each filter, then sort, size, page, opened, compared, coloured."""
        filters = TraceFilter.from_query(query).to_query()
        options = browse.choices(self.context.look())
        updates = []
        for name in FILTERS:
            value = filters.get(name, "")
            if name == "slice":
                updates.append(gr.Dropdown(choices=slices.offered(self.context.workbench, value), value=value))
            elif name in options:
                updates.append(gr.Dropdown(choices=_choices(options[name], value), value=value))
            else:
                updates.append((float(value) if value else None) if name in _NUMBERS else value)
        rest = {name: str(query.get(name, ""))[:64] for name in browse.PAGE}
        return [*updates, *rest.values()]

    @needs("reviewer")
    def save(self, request: gr.Request, name: str, *values: Any) -> list[Any]:
        """A name and the filters → what came of it, and the slices that can be chosen."""
        filters = TraceFilter.from_query(dict(zip(FILTERS, values)))
        if filters == TraceFilter():
            return [note("Nothing is filtered: a slice of all traces says nothing."), gr.skip()]
        try:
            saved = self.context.workbench.save_slice(str(name or ""), filters, by=self.context.user(request))
        except DeepIntuitError as error:
            return [note(error, role="status"), gr.skip()]
        return [sql_view.saved_html(saved), gr.Dropdown(choices=slices.offered(self.context.workbench, filters.slice))]

    def show(self, *values: Any) -> list[Any]:
        """Filters, sort, size, page, the opened trace and what was shown last → page, list, what is shown; and while
        the index is being rebuilt, which one was asked, and a timer by which it is asked again.

        Another filter or order begins at the first page; what is shown already is left alone, since a restored address
        changes many fields at once.
        """
        *texts, sort, size, number, opened, former = values
        filters = TraceFilter.from_query(dict(zip(FILTERS, texts)))
        state = [filters.to_query(), str(sort), str(size)]
        if former and former[:3] != state:
            number = ""
        if former == [*state, str(number)]:
            return [gr.skip()] * 5
        self.context.look()
        behind = self.context.behind()
        try:
            html = list_html(self.context, filters, sort, number, size, opened)
        except DeepIntuitError as error:
            html = empty(*slices.sentences(error))
        return [number, html, [*state, str(number)], behind, gr.Timer(active=behind is not None)]

    def once_more(self, behind: object, *values: Any) -> list[Any]:
        """The list as of the new index, when it is there; asked for once, and not at all where nothing is new."""
        renewed = self.context.renewed(behind)
        if renewed is None:
            return [gr.skip()] * 5
        return [*(self.show(*values[:-1], None)[:3] if renewed else [gr.skip()] * 3), None, gr.Timer(active=False)]

    def detail(self, trace_id: str, compared: str, coloured: str, former: list[str] | None) -> list[Any]:
        """The opened trace, the one beside it, colours, and what was shown last → beside, detail, what is shown now."""
        state = [str(trace_id or "")[:64], str(compared or "")[:64], "1" if coloured else ""]
        if former == state:
            return [gr.skip()] * 3
        html, state[1] = detail_html(self.context, state[0], state[1], bool(coloured))
        return [state[1], html, state]

    @staticmethod
    def cleared() -> list[Any]:
        """→ empty filters."""
        return [None if name in _NUMBERS else "" for name in FILTERS]

    @staticmethod
    def removed(name: str) -> list[Any]:
        """→ the wish granted, and the filters without the one of this name."""
        empty_one = gr.update(value=None if name in _NUMBERS else "")
        return ["", *(empty_one if name == key else gr.skip() for key in FILTERS)]


_NUMBERS = ("min_token_confidence", "max_token_confidence", "min_tokens", "max_tokens", "step", "sample")


def _choices(counts: list[tuple[str, int]], current: str) -> list[tuple[str, str]]:
    options = [("Any", ""), *((f"{value}  ({n:,})", value) for value, n in counts)]
    return options if any(value == current for _, value in options) else [*options, (f"{current}  (0)", current)]


def _filters() -> dict[str, gr.components.Component]:
    """The filter bar's components by the name of what they filter, and those that save it: name, save, saved."""
    narrow = {"min_width": 130, "filterable": False}
    parts: dict[str, gr.components.Component] = {}
    with gr.Row(elem_id="traces-find", equal_height=True):
        parts["text"] = gr.Textbox(label="Text contains", placeholder="a word or a phrase", scale=3, min_width=220)
        parts["run"] = gr.Dropdown([("Any", "")], value="", label="Run", scale=3, min_width=220)
        parts["stage"] = gr.Dropdown([("Any", "")], value="", label="Stage", **narrow)
    with gr.Accordion("More filters", open=False, elem_id="traces-filters"):
        with gr.Row():
            verdicts = [("Right", "right"), ("Wrong", "wrong")]
            few = {
                "right": verdicts, "final": verdicts, "flip": [(key, key) for key in FLIPS],
                "follows": [("Yes", "yes"), ("No", "no")],
            }  # fmt: skip
            for name in ("true", "provisional", "calibrated", "right", "final", "flip", "follows", "judge", "reason"):
                parts[name] = gr.Dropdown([("Any", ""), *few.get(name, ())], value="", label=NAMES[name], **narrow)
        with gr.Row():
            for name in ("dataset", "split"):
                parts[name] = gr.Dropdown([("Any", "")], value="", label=NAMES[name], **narrow)
            for name in _NUMBERS:
                share = {"step": 0.01, "placeholder": "0 to 1"} if name.endswith("confidence") else {}
                parts[name] = gr.Number(None, label=NAMES[name], min_width=110, **share)
        with gr.Row(elem_id="traces-slice", equal_height=False):
            parts["clip"] = gr.Textbox("", label=NAMES["clip"], min_width=150)
            parts["slice"] = slices.box(220)
            parts["name"] = gr.Textbox(
                label="Save these filters as a slice called",
                max_length=80,
                scale=2,
                placeholder="night falls",
                min_width=220,
                elem_classes="for-reviewers",
            )
            parts["save"] = gr.Button("Save slice", scale=0, min_width=140, elem_classes="for-reviewers")
        parts["saved"] = gr.HTML("", padding=False)
    return parts


def page(context: AppContext) -> None:
    """The components and what ties them together."""
    do = Handlers(context)
    with gr.Row(elem_id="traces-top", equal_height=False):
        about = "Every text that a model or a teacher wrote about a clip. Open one to read it beside its clip."
        gr.HTML(heading("Traces", about))
        clear = gr.Button("Clear filters", size="sm", scale=0, min_width=120, elem_id="traces-clear")
    parts = _filters()
    filters = {name: parts[name] for name in FILTERS}
    hidden = {
        name: gr.Textbox("", elem_id=f"traces-{name}", visible="hidden", label=name)
        for name in ("sort", "size", "page", "open", "compare", "colour")
    }
    sort, size, number, opened, compared, coloured = hidden.values()
    remove = gr.Textbox("", elem_id="traces-remove", visible="hidden", label="Filter to remove")
    with gr.Row(elem_id="traces-body", equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_id="traces-list-column"):
            listed = gr.HTML(note("Looking…"), elem_id="traces-list", elem_classes="traces-part")
        with gr.Column(scale=4, min_width=320, elem_id="traces-detail-column"):
            detail = gr.HTML("", elem_id="traces-detail", elem_classes="traces-part")

    listing, opening, behind = gr.State(None), gr.State(None), gr.State(None)
    timer = gr.Timer(1.0, active=False)
    quiet = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    look = {
        "fn": do.show,
        "inputs": [*filters.values(), sort, size, number, opened, listing],
        "outputs": [number, listed, listing, behind, timer],
    }
    show = {"fn": do.detail, "inputs": [opened, compared, coloured, opening], "outputs": [compared, detail, opening]}
    state = {"sort": sort, "size": size, "page": number, "trace": opened, "compare": compared, "colour": coloured}
    event = links.bind({**filters, **state}, do.restore, choices=("trace", "compare", "page"))
    event.then(**look, **quiet).then(**links.FILLED)
    event.then(**show, **quiet)
    # A textbox's `input` is fired by key presses alone: not by a paste, a phone's keyboard or a script.
    changes = [part.input if isinstance(part, gr.Dropdown) else part.change for part in filters.values()]
    gr.on([*changes, sort.change, size.change, number.change], **look, trigger_mode="always_last", **quiet)
    timer.tick(do.once_more, [behind, *look["inputs"]], look["outputs"], **quiet)
    gr.on([opened.change, compared.change, coloured.change], **show, trigger_mode="always_last", **quiet)
    keep = {"fn": do.save, "inputs": [parts["name"], *filters.values()], "outputs": [parts["saved"], filters["slice"]]}
    gr.on([parts["save"].click, parts["name"].submit], **keep, **quiet)
    remove.change(do.removed, remove, [remove, *filters.values()], **quiet).then(**look, **quiet)
    clear.click(do.cleared, None, [*filters.values()], queue=False, api_visibility="private").then(**look, **quiet)
