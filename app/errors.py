"""Errors: where a system fails, class by class, and in one click the clips behind any number.

    address   /errors?dataset=…&split=…&system=…&method=…&compare=…&slice=…&only=…&cell=confusion.2.4&clip=…
              &threshold=0.9&class=…&costs=fall=10/1;theft=5/1

A *cell* names some clips of what is on screen (`behind` lists the kinds): every count of the page is a button that puts
its cell into the address and the clips into the drawer. `errors_view`, `errors_honesty` and `errors_clips` write the
HTML, `errors_classes` that of each class against the rest; `deepintuit_analysis.index.answers` reads the rows,
`deepintuit.metrics` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import NamedTuple

import gradio as gr
import pyarrow as pa
from fastapi import APIRouter, HTTPException, Request, Response

from deepintuit.errors import DeepIntuitError
from deepintuit.tables import FORMATS, written
from deepintuit_analysis.index import answers, browse
from deepintuit_analysis.index.build import file_signature
from deepintuit_app import alike, errors_classes, errors_clips, errors_honesty, links, slices
from deepintuit_app import errors_view as view
from deepintuit_app.analysis import (
    SPELLED,
    THRESHOLD,
    Analysis,
    Choice,
    Offers,
    analysis,
    choose,
    clamped,
    grounded,
    one_of,
)
from deepintuit_app.context import AppContext, apart
from deepintuit_app.html import empty, esc
from deepintuit_app.roles import needs

TABLES = ("classes", "confusion")
"""What can be taken along."""
NORMS = {"counts": "counts", "rows": "share of the true class", "columns": "share of the label answered"}
PICKS = ("dataset", "split", "system", "method", "compare", "slice", "only")
"""What is looked at, by its names in the address (the fields of a `Choice`)."""


class At(NamedTuple):
    """How it is looked at: the rest of the address, in the order of the page's fields."""

    cells: str
    by: str
    threshold: float
    label: str
    costs: str
    colour: str
    cell: str
    clip: str
    scroll: str = ""


EVERY = 5.0
"""Seconds between two looks for new answers."""


def routes(context: AppContext) -> APIRouter:
    """`/export/errors/classes.csv?…`: a table of the page, of what its address chooses."""
    router = APIRouter()

    @router.get("/export/errors/{what}.{form}")
    async def export(what: str, form: str, request: Request) -> Response:
        return await made(what, form, dict(request.query_params))

    @apart(2)
    def made(table: str, form: str, query: dict[str, str]) -> Response:
        if table not in TABLES or form not in FORMATS:
            raise HTTPException(404, f"{' and '.join(TABLES)} are exported as {', '.join(FORMATS)}.")
        wish = Choice(*(query.get(name, "")[:1000] for name in PICKS))
        choice, _ = choose(answers.sources(context.look()), wish, slices.offered(context.workbench, wish.slice))
        try:
            rows = view.exported(analysis(context.workbench, choice), table) if choice.system else []
        except DeepIntuitError as error:
            raise HTTPException(404, str(error)) from error
        if not rows:
            raise HTTPException(404, "No system was evaluated yet.")
        header = f'attachment; filename="{table}.{form}"'
        content = b"".join(written(iter([pa.Table.from_pylist(rows)]), form))
        return Response(content, media_type=FORMATS[form], headers={"Content-Disposition": header})

    return router


def first(context: AppContext, query: dict[str, str]) -> dict[str, object]:
    """What the page says in tables before its figures are drawn, for its HTML."""
    wish = Choice(*(query.get(name, "")[:1000] for name in PICKS))
    choice, _ = choose(answers.sources(context.look()), wish, slices.offered(context.workbench, wish.slice))
    if not choice.system or not len((result := analysis(context.workbench, choice)).mine.frame):
        return {}
    cells = query.get("cells") if query.get("cells") in NORMS else "counts"
    return {
        "errors-body": True, "errors-condition": view.condition(result.choice, result),
        "errors-summary": view.summary(result), "errors-classes-table": view.classes(result),
        "errors-confusion-table": view.confusion_table(result, cells), "errors-flips": view.flip_tables(result),
    }  # fmt: skip


def page(context: AppContext) -> None:
    """The page's components and what they do."""
    # What is offered changes as runs appear, and a page may outlive the server that offered it: `choose` decides.
    free = {"allow_custom_value": True}
    gr.HTML(view.HEAD, padding=False)
    with gr.Row(elem_classes="errors-bar"):
        dataset = gr.Dropdown([], label="Dataset", min_width=130, **free)
        split = gr.Dropdown([], label="Split", min_width=110, **free)
        system = gr.Dropdown([], label="System (run)", min_width=220, scale=2, **free)
        method = gr.Dropdown([], label="Method", min_width=160, **free)
        compare = gr.Dropdown([], label="Compare with", min_width=220, scale=2, **free)
        within = slices.box()
    only = gr.Textbox(visible="hidden")
    picks = [dataset, split, system, method, compare, within, only]
    condition = gr.HTML(padding=False, elem_id="errors-condition")
    nothing = gr.HTML(visible=False)
    with gr.Column(visible=False, elem_classes="errors", elem_id="errors-body") as body:
        summary = gr.HTML(padding=False, elem_id="errors-summary")
        gr.HTML(view.heading("classes"), padding=False)
        with gr.Row():
            with gr.Column(min_width=560, scale=3):
                classes = gr.HTML(padding=False, elem_id="errors-classes-table")
            with gr.Column(min_width=340, scale=2):
                f1 = gr.Plot(show_label=False, container=False)
        with gr.Row():
            with gr.Column(min_width=560):
                gr.HTML(view.heading("confusion"), padding=False)
                norm = gr.Radio(
                    [(name, key) for key, name in NORMS.items()],
                    value="counts",
                    label="Cells show",
                    container=False,
                    elem_id="errors-norm",
                )
                confusion = gr.HTML(padding=False, elem_id="errors-confusion-table")
            with gr.Column(min_width=340):
                flips = gr.HTML(padding=False, elem_id="errors-flips")
        gr.HTML(view.heading("ranking"), padding=False)
        with gr.Row():
            with gr.Column(min_width=560):
                curves = gr.Plot(show_label=False, container=False, elem_id="errors-curves", elem_classes="late")
            with gr.Column(min_width=340):
                ranking = gr.HTML(padding=False)
        gr.HTML(view.heading("costs"), padding=False)
        with gr.Row():
            with gr.Column(min_width=340):
                fields = gr.HTML(padding=False)
            with gr.Column(min_width=560, scale=2):
                bills = gr.HTML(padding=False)
        gr.HTML(view.heading("reliability"), padding=False)
        with gr.Row():
            with gr.Column(min_width=340):
                reliability = gr.Plot(show_label=False, container=False, elem_classes="late tall")
            with gr.Column(min_width=340):
                honesty = gr.HTML(padding=False)
        gr.HTML(view.heading("risk"), padding=False)
        with gr.Row():
            with gr.Column(min_width=340):
                risk = gr.Plot(show_label=False, container=False, elem_classes="late")
            with gr.Column(min_width=340):
                threshold = gr.Slider(
                    0, 1, value=THRESHOLD, step=0.005, label="Minimum confidence", elem_id="errors-threshold"
                )
                abstain = gr.HTML(padding=False)
        controls = gr.HTML(padding=False)
        with gr.Row():
            with gr.Column(min_width=560):
                gr.HTML(view.heading("slices"), padding=False)
                by = gr.Dropdown([], label="Divide the clips by", elem_id="errors-by", elem_classes="narrow", **free)
                divided = gr.HTML(padding=False)
            with gr.Column(min_width=340):
                worst = gr.HTML(padding=False)
        gr.HTML(view.heading("map"), padding=False)
        colour = gr.Radio(
            [(name, key) for key, name in alike.COLOURS.items()],
            value="label",
            label="Coloured by",
            container=False,
            elem_id="errors-colour",
        )
        plot = gr.Plot(show_label=False, container=False, elem_id="errors-map", visible=False)
        places = gr.HTML(padding=False)
        inside = gr.HTML(padding=False, elem_id="errors-chosen")
        with gr.Row(visible=False, equal_height=False, elem_classes="for-reviewers") as keeping:
            called = gr.Textbox(label="Save the chosen clips as a slice called", max_length=80, min_width=220, scale=2)
            keep = gr.Button("Save slice", scale=0, min_width=140)
        saved_as = gr.HTML(padding=False)
        reasons = gr.HTML(padding=False)
    with gr.Column(elem_id="errors-drawer"):
        clips = gr.HTML(padding=False)
        player = gr.HTML(padding=False)
    cell = gr.Textbox(visible="hidden", elem_id="errors-cell")
    clip = gr.Textbox(visible="hidden", elem_id="errors-clip")
    label = gr.Textbox(visible="hidden", elem_id="errors-class")
    click = gr.Textbox(visible="hidden", elem_id="errors-take")
    costs = gr.Textbox(visible="hidden", elem_id="errors-costs")
    lasso = gr.Textbox(visible="hidden", elem_id="errors-lasso")
    scroll = gr.Textbox("", visible="hidden", elem_id="errors-scroll")  # "1" once somebody comes near the lower figures
    state = [*picks, norm, by, threshold, label, costs, colour, cell, clip, scroll]
    timer, mark = gr.Timer(EVERY), gr.State(None)

    def chosen_of(wish: Sequence[str | None]) -> tuple[Choice, Offers]:
        wished = Choice(*(text or "" for text in wish))
        return choose(answers.sources(context.look()), wished, slices.offered(context.workbench, wished.slice))

    def settle(*wish: str | None) -> list[object]:
        """The dropdowns above, valid whatever was wished for, and what each offers."""
        choice, offers = chosen_of(wish)
        boxes = [gr.update(choices=offered, value=value) for offered, value in zip(astuple(offers), astuple(choice))]
        return [*boxes, choice.only]

    def restore(query: dict[str, str], request: gr.Request) -> list[object]:
        wished = [query.get(name, "")[:1000] for name in PICKS]
        shown_as = query.get("cells") if query.get("cells") in NORMS else "counts"
        column = query.get("by") or answers.FIRST[0]
        choice, _ = chosen_of(wished)
        if wished[2] and wished[2] not in (choice.system, *choice.system.split("/", 1)):
            gr.Info(f"No system {esc(wished[2][:80])} was evaluated here; this is another one.")
        return [
            *settle(*wished),
            shown_as,
            gr.update(choices=[(view.column_name(column), column)], value=column),
            clamped(query.get("threshold")),
            query.get("class", "")[:200],
            query.get("costs", "")[:4000],
            query.get("colour") if query.get("colour") in alike.COLOURS else "label",
            query.get("cell", "")[:200],
            query.get("clip", "")[:200],
        ]

    def looked_up(wish: tuple[str | None, ...]) -> Analysis | None:
        """None when there is nothing to analyse; DeepIntuitError when what there is cannot be."""
        choice, _ = chosen_of(wish)
        return analysis(context.workbench, choice) if choice.system else None

    everything = [
        nothing, body, condition, summary, classes, f1, confusion, flips, curves, ranking, fields, bills, reliability,
        honesty, risk, abstain, controls, by, divided, worst, plot, places, reasons, clips, player,
    ]  # fmt: skip

    def show(*values) -> list[object]:
        wish, at = values[: len(picks)], At(*values[len(picks) :])
        try:
            analysis = looked_up(tuple(wish))
            if analysis is None:
                raise LookupError
            if not len(analysis.mine.frame):
                return _instead(view.UNLABELLED)
            columns = answers.sliceable(analysis.facts)
            curve, bins, risk_curve, *map_parts = figures(analysis, at) if at.scroll else [gr.skip()] * 5
            column = one_of(at.by, columns)
            offered = [(view.column_name(name), name) for name in columns]
            return [
                gr.update(visible=False), gr.update(visible=True), view.condition(analysis.choice, analysis),
                view.summary(analysis), view.classes(analysis),
                errors_honesty.f1_figure(analysis),
                view.confusion_table(analysis, at.cells), view.flip_tables(analysis),
                curve, errors_classes.ranking(analysis, at.label),
                errors_classes.cost_fields(analysis, at.costs), errors_classes.costs(analysis, at.costs),
                bins, errors_honesty.honesty(analysis), risk_curve, errors_honesty.abstain(analysis, at.threshold),
                view.controls(analysis) + view.moments(analysis, grounded(context.workbench, analysis)),
                gr.update(choices=offered, value=column or None), view.slice_table(analysis, column),
                view.worst(analysis), *map_parts, view.reasons(analysis),
                _clips(analysis, at._replace(by=column)), _player(analysis, at.clip),
            ]  # fmt: skip
        except LookupError:
            return _instead(view.NO_ANSWERS)
        except DeepIntuitError as error:
            return _instead(empty(*slices.sentences(error)), view.condition(chosen_of(wish)[0]))

    def figures(analysis: Analysis, at: At) -> tuple[object, ...]:
        """Those below the first screen: half of what a browser spends on this page."""
        return (
            errors_classes.ranking_plot(analysis, at.label, at.costs),
            errors_honesty.reliability_plot(analysis),
            errors_honesty.risk_plot(analysis, at.threshold),
            *alike.map_of(context, analysis, at.colour),
        )

    def fresh(before: tuple | None, *values) -> list[object]:
        """What appeared since `before` (index, all answers, those on screen) → seen now, dropdowns, everything. What is
        chosen stays; it is drawn anew where it got more answers, or where nothing could be chosen before."""
        workbench = context.look()
        index = file_signature(workbench.index_path)
        as_it_is = [gr.skip()] * (len(picks) + len(everything))
        if before and before[0] == index:
            return [before, *as_it_is]
        sources, wish = answers.sources(workbench), Choice(*(text or "" for text in values[: len(picks)]))
        choice, offers = choose(sources, wish, slices.offered(workbench, wish.slice))
        shown_now = [f"{row.run_id}/{row.system}" in f"{wish.system} {wish.compare}" for row in sources.itertuples()]
        now = (index, sources.to_csv(), sources[shown_now].to_csv())
        if before and before[1:] == now[1:]:
            return [now, *as_it_is]
        if choice != wish:
            redrawn = show(*astuple(choice), *values[len(picks) :])
        else:  # the list of clips and the player stay: one of them may be playing
            grown = before is not None and before[2] != now[2]
            redrawn = [*show(*values)[:-2], gr.skip(), gr.skip()] if grown else as_it_is[len(picks) :]
        boxes = [gr.update(choices=offered) for offered in astuple(offers)] + [gr.update()]  # values are the browser's
        if choice != wish:
            boxes = [{**box, "value": value} for box, value in zip(boxes, astuple(choice))]
        return [now, *boxes, *redrawn]

    def _instead(html: str, condition: str = "") -> list[object]:
        return [
            gr.update(value=html, visible=True),
            gr.update(visible=False),
            condition,
            *[gr.update()] * (len(everything) - 5),
            "",
            "",
        ]

    def _clips(analysis: Analysis, at: At) -> str:
        if not at.cell:
            return ""
        rows = errors_clips.behind(analysis, at.cell, at.threshold, at.by)
        return errors_clips.no_such_cell() if rows is None else errors_clips.clip_list(analysis, *rows, cell=at.cell)

    def opened(analysis: Analysis, at: At) -> tuple[str, str, str]:
        """The clips of a cell. The clip that plays goes on playing when it is among them."""
        listed = errors_clips.behind(analysis, at.cell, at.threshold, at.by) if at.cell else None
        playing = at.clip if listed is not None and at.clip in listed[1].index else ""
        return _clips(analysis, at), playing, _player(analysis, playing)

    def at_threshold(analysis: Analysis, at: At) -> tuple[object, ...]:
        listed = _clips(analysis, at) if at.cell == "unsure" else gr.skip()
        return errors_honesty.risk_plot(analysis, at.threshold), errors_honesty.abstain(analysis, at.threshold), listed

    def of_class(analysis: Analysis, at: At) -> tuple[object, ...]:
        return errors_classes.ranking_plot(analysis, at.label, at.costs), errors_classes.ranking(analysis, at.label)

    def at_costs(analysis: Analysis, at: At) -> tuple[object, ...]:
        return errors_classes.ranking_plot(analysis, at.label, at.costs), errors_classes.costs(analysis, at.costs)

    def _player(analysis: Analysis, watched: str) -> str:
        if not watched or watched not in analysis.mine.frame.index:
            return ""
        trace_id = analysis.mine.frame.loc[watched, "trace_id"]
        trace = browse.trace(context.look(), trace_id) if isinstance(trace_id, str) else None
        system = analysis.run_id, analysis.choice.system.split("/", 1)[1], analysis.choice.method
        near = alike.nearest_html(context, watched, analysis.choice.dataset, system)
        return errors_clips.clip_detail(analysis, watched, trace) + near

    def part(make):
        """A handler of one part of the page by `make(analysis, at)`."""

        def handler(*values):
            try:
                analysis = looked_up(values[: len(picks)])
            except DeepIntuitError as error:
                raise gr.Error(str(error), print_exception=False) from error
            return gr.skip() if analysis is None else make(analysis, At(*(text or "" for text in values[len(picks) :])))

        return handler

    quick = {"queue": False, "show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    last = {**quick, "trigger_mode": "always_last"}
    names = (*PICKS, "cells", "by", "threshold", "class", "costs", "colour", "cell", "clip")
    shown_all = links.bind(
        dict(zip(names, state[:-1], strict=True)),
        restore,
        choices=(*PICKS, "class", "cell", "clip"),
        spelled=dict.fromkeys(("method", "compare"), SPELLED),
        defaults={"cells": "counts", "by": answers.FIRST[0], "threshold": f"{THRESHOLD:g}", "colour": "label"},
    )
    shown_all.then(show, state, everything, **quick).then(**links.FILLED)
    scroll.change(part(figures), state, [curves, reliability, risk, plot, places], **last)
    timer.tick(fresh, [mark, *state], [mark, *picks, *everything], **quick)
    for pick in picks[:-1]:  # the conditions change with the address alone
        pick.input(settle, picks, picks, **quick).then(lambda: ("", ""), None, [cell, clip], **quick).then(
            show, state, everything, **quick
        )
    norm.input(part(lambda analysis, at: view.confusion_table(analysis, at.cells)), state, confusion, **quick)
    by.input(part(lambda analysis, at: view.slice_table(analysis, at.by)), state, divided, **quick)
    threshold.input(part(at_threshold), state, [risk, abstain, clips], **last)
    click.change(
        lambda value: (clamped(value), "") if value else (gr.skip(), gr.skip()), click, [threshold, click], **last
    ).then(part(at_threshold), state, [risk, abstain, clips], **quick)
    label.change(part(of_class), state, [curves, ranking], **last)
    costs.change(part(at_costs), state, [curves, bills], **last)
    colour.input(part(lambda result, at: alike.map_of(context, result, at.colour)), state, [plot, places], **last)

    def drawn_around(selection: str, *values):
        """What a lasso holds, and the form to save it."""
        html = part(lambda result, at: alike.chosen_html(result, selection))(*values) if selection else ""
        return html, gr.update(visible=bool(selection)), ""

    lasso.change(drawn_around, [lasso, *state], [inside, keeping, saved_as], **last)

    @needs("reviewer")
    def save(selection: str, name: str, request: gr.Request):
        return alike.saved(context, selection, name, request)

    gr.on([keep.click, called.submit], save, [lasso, called], [saved_as, within], **quick)
    cell.change(part(opened), state, [clips, clip, player], **last).then(None, js=errors_clips.FOCUS)
    clip.change(part(lambda analysis, at: _player(analysis, at.clip)), state, player, **last)
