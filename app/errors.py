"""Errors: where a system fails, class by class, and in one click the clips behind any number.

    address   /errors?dataset=…&split=…&system=…&method=…&compare=…&slice=…&cell=confusion.2.4&clip=…&threshold=0.9

A *cell* names some clips of what is on screen (`behind` lists the kinds): every count of the page is a button that puts
its cell into the address and the clips into the drawer. `errors_view`, `errors_honesty` and `errors_clips` write the
HTML, `deepintuit_analysis.index.answers` reads the rows, `deepintuit.metrics` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import gradio as gr
import pyarrow as pa
from fastapi import APIRouter, HTTPException, Request, Response

from deepintuit.errors import DeepIntuitError
from deepintuit.tables import FORMATS, written
from deepintuit_analysis.index import answers, browse
from deepintuit_analysis.index.build import file_signature
from deepintuit_app import errors_clips, errors_honesty, links, slices
from deepintuit_app import errors_view as view
from deepintuit_app.analysis import THRESHOLD, Analysis, Choice, Offers, analysis, choose, clamped, one_of
from deepintuit_app.context import AppContext, apart
from deepintuit_app.html import empty, esc

TABLES = ("classes", "confusion")
"""What can be taken along."""
NORMS = {"counts": "counts", "rows": "share of the true class", "columns": "share of the label answered"}
PICKS = ("dataset", "split", "system", "method", "compare", "slice")
"""What is looked at, by its names in the address (the fields of a `Choice`)."""
EVERY = 5.0
"""Seconds between two looks for new answers."""


def routes(context: AppContext) -> APIRouter:
    """`/export/errors/classes.csv?…`: a table of the page, of what its address chooses."""
    router = APIRouter()

    @router.get("/export/errors/{what}.{form}")
    async def export(what: str, form: str, request: Request) -> Response:
        return await made(what, form, dict(request.query_params))

    @apart(2)
    def made(what: str, form: str, query: dict[str, str]) -> Response:
        if what not in TABLES or form not in FORMATS:
            raise HTTPException(404, f"{' and '.join(TABLES)} are exported as {', '.join(FORMATS)}.")
        wish = Choice(*(query.get(name, "")[:300] for name in PICKS))
        choice, _ = choose(answers.sources(context.look()), wish, slices.offered(context.workbench, wish.slice))
        try:
            rows = view.exported(analysis(context.workbench, choice), what) if choice.system else []
        except DeepIntuitError as error:
            raise HTTPException(404, str(error)) from error
        if not rows:
            raise HTTPException(404, "No system was evaluated yet.")
        named = f'attachment; filename="{what}.{form}"'
        content = b"".join(written(iter([pa.Table.from_pylist(rows)]), form))
        return Response(content, media_type=FORMATS[form], headers={"Content-Disposition": named})

    return router


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
    picks = [dataset, split, system, method, compare, within]
    nothing = gr.HTML(visible=False)
    with gr.Column(visible=False, elem_classes="errors") as body:
        summary = gr.HTML(padding=False)
        gr.HTML(view.heading("classes"), padding=False)
        with gr.Row():
            with gr.Column(min_width=560, scale=3):
                classes = gr.HTML(padding=False)
            with gr.Column(min_width=340, scale=2):
                f1 = gr.Plot(show_label=False, container=False)
        gr.HTML(view.heading("confusion"), padding=False)
        norm = gr.Radio(
            [(name, key) for key, name in NORMS.items()],
            value="counts",
            label="Cells show",
            container=False,
            elem_id="errors-norm",
        )
        confusion = gr.HTML(padding=False)
        flips = gr.HTML(padding=False)
        gr.HTML(view.heading("reliability"), padding=False)
        with gr.Row():
            with gr.Column(min_width=340):
                reliability = gr.Plot(show_label=False, container=False)
            with gr.Column(min_width=340):
                honesty = gr.HTML(padding=False)
        gr.HTML(view.heading("risk"), padding=False)
        with gr.Row():
            with gr.Column(min_width=340):
                risk = gr.Plot(show_label=False, container=False)
            with gr.Column(min_width=340):
                threshold = gr.Slider(
                    0, 1, value=THRESHOLD, step=0.005, label="Minimum confidence", elem_id="errors-threshold"
                )
                abstain = gr.HTML(padding=False)
        controls = gr.HTML(padding=False)
        gr.HTML(view.heading("slices"), padding=False)
        by = gr.Dropdown(
            [], label="Divide the clips by", container=False, elem_id="errors-by", elem_classes="narrow", **free
        )
        divided = gr.HTML(padding=False)
        reasons = gr.HTML(padding=False)
    with gr.Column(elem_id="errors-drawer"):
        clips = gr.HTML(padding=False)
        player = gr.HTML(padding=False)
    cell = gr.Textbox(visible="hidden", elem_id="errors-cell")
    clip = gr.Textbox(visible="hidden", elem_id="errors-clip")
    state = [*picks, norm, by, threshold, cell, clip]
    timer, seen = gr.Timer(EVERY), gr.State(None)

    def chosen_of(wish: Sequence[str | None]) -> tuple[Choice, Offers]:
        wished = Choice(*(text or "" for text in wish))
        return choose(answers.sources(context.look()), wished, slices.offered(context.workbench, wished.slice))

    def settle(*wish: str | None) -> list[object]:
        """The dropdowns above, valid whatever was wished for, and what each offers."""
        choice, offers = chosen_of(wish)
        return [gr.update(choices=offered, value=chosen) for offered, chosen in zip(astuple(offers), astuple(choice))]

    def restore(query: dict[str, str], request: gr.Request) -> list[object]:
        wished = [query.get(name, "")[:300] for name in PICKS]
        shown_as = query.get("cells") if query.get("cells") in NORMS else "counts"
        column = query.get("by") or answers.FIRST[0]
        chosen, _ = chosen_of(wished)
        if wished[2] and wished[2] not in (chosen.system, *chosen.system.split("/", 1)):
            gr.Info(f"No system {esc(wished[2][:80])} was evaluated here; this is another one.")
        return [
            *settle(*wished),
            shown_as,
            gr.update(choices=[(view.column_name(column), column)], value=column),
            clamped(query.get("threshold")),
            query.get("cell", "")[:200],
            query.get("clip", "")[:200],
        ]

    def looked_up(wish: tuple[str | None, ...]) -> Analysis | None:
        """None when there is nothing to analyse; DeepIntuitError when what there is cannot be."""
        choice, _ = chosen_of(wish)
        return analysis(context.workbench, choice) if choice.system else None

    everything = [
        nothing, body, summary, classes, f1, confusion, flips, reliability, honesty, risk, abstain, controls, by,
        divided, reasons, clips, player,
    ]  # fmt: skip

    def show(*values) -> list[object]:
        *wish, shown_as, column, sure, chosen, watched = values
        try:
            found = looked_up(tuple(wish))
            if found is None:
                raise LookupError
            if not len(found.mine.frame):
                return _instead(view.UNLABELLED)
            columns = answers.sliceable(found.facts)
            column = one_of(column, columns)
            offered = [(view.column_name(name), name) for name in columns]
            return [
                gr.update(visible=False), gr.update(visible=True), view.summary(found), view.classes(found),
                errors_honesty.f1_figure(found), view.confusion_table(found, shown_as), view.flip_tables(found),
                errors_honesty.reliability_plot(found), errors_honesty.honesty(found),
                errors_honesty.risk_plot(found, sure), errors_honesty.abstain(found, sure), view.controls(found),
                gr.update(choices=offered, value=column or None), view.slice_table(found, column),
                view.reasons(found), _clips(found, chosen, sure, column), _player(found, watched),
            ]  # fmt: skip
        except LookupError:
            return _instead(view.NO_ANSWERS)
        except DeepIntuitError as error:
            return _instead(empty(*slices.sentences(error)))

    def fresh(seen: tuple | None, *values) -> list[object]:
        """What appeared since `seen` (index, all answers, those on screen) → seen now, dropdowns, everything. What is
        chosen stays; it is drawn anew where it got more answers, or where nothing could be chosen before."""
        workbench = context.look()
        index = file_signature(workbench.index_path)
        as_it_is = [gr.skip()] * (len(picks) + len(everything))
        if seen and seen[0] == index:
            return [seen, *as_it_is]
        found, wish = answers.sources(workbench), Choice(*(text or "" for text in values[: len(picks)]))
        choice, offers = choose(found, wish, slices.offered(workbench, wish.slice))
        shown_now = [f"{row.run_id}/{row.system}" in f"{wish.system} {wish.compare}" for row in found.itertuples()]
        now = (index, found.to_csv(), found[shown_now].to_csv())
        if seen and seen[1:] == now[1:]:
            return [now, *as_it_is]
        if choice != wish:
            redrawn = show(*astuple(choice), *values[len(picks) :])
        else:  # the list of clips and the player stay: one of them may be playing
            grown = seen is not None and seen[2] != now[2]
            redrawn = [*show(*values)[:-2], gr.skip(), gr.skip()] if grown else as_it_is[len(picks) :]
        boxes = [gr.update(choices=offered) for offered in astuple(offers)]  # their values are the browser's
        if choice != wish:
            boxes = [{**box, "value": chosen} for box, chosen in zip(boxes, astuple(choice))]
        return [now, *boxes, *redrawn]

    def _instead(html: str) -> list[object]:
        return [
            gr.update(value=html, visible=True),
            gr.update(visible=False),
            *[gr.update()] * (len(everything) - 4),
            "",
            "",
        ]

    def _clips(found: Analysis, chosen: str, sure: float, column: str) -> str:
        if not chosen:
            return ""
        listed = errors_clips.behind(found, chosen, sure, column)
        return errors_clips.no_such_cell() if listed is None else errors_clips.clip_list(found, *listed, cell=chosen)

    def opened(
        found: Analysis, _norm: str, column: str, sure: float, chosen: str, watched: str
    ) -> tuple[str, str, str]:
        """The clips of a cell. The clip that plays goes on playing when it is among them."""
        listed = errors_clips.behind(found, chosen, sure, column) if chosen else None
        kept = watched if listed is not None and watched in listed[1].index else ""
        return _clips(found, chosen, sure, column), kept, _player(found, kept)

    def _player(found: Analysis, watched: str) -> str:
        if not watched or watched not in found.mine.frame.index:
            return ""
        trace_id = found.mine.frame.loc[watched, "trace_id"]
        trace = browse.trace(context.look(), trace_id) if isinstance(trace_id, str) else None
        return errors_clips.clip_detail(found, watched, trace)

    def part(make):
        """A handler of one part of the page by `make(analysis, norm, by, threshold, cell, clip)`."""

        def handler(*values):
            *wish, shown_as, column, sure, chosen, watched = values
            try:
                found = looked_up(tuple(wish))
            except DeepIntuitError as error:
                raise gr.Error(str(error), print_exception=False) from error
            return make(found, shown_as, column, sure, chosen or "", watched or "") if found is not None else gr.skip()

        return handler

    quick = {"queue": False, "show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    shown_all = links.bind(
        dict(zip((*PICKS, "cells", "by", "threshold", "cell", "clip"), state, strict=True)),
        restore,
        choices=(*PICKS, "cell", "clip"),
        defaults={"cells": "counts", "by": answers.FIRST[0], "threshold": f"{THRESHOLD:g}"},
    )
    shown_all.then(show, state, everything, **quick)
    timer.tick(fresh, [seen, *state], [seen, *picks, *everything], **quick)
    for pick in picks:
        pick.input(settle, picks, picks, **quick).then(lambda: ("", ""), None, [cell, clip], **quick).then(
            show, state, everything, **quick
        )
    norm.input(part(lambda found, shown_as, *_: view.confusion_table(found, shown_as)), state, confusion, **quick)
    by.input(part(lambda found, _, column, *__: view.slice_table(found, column)), state, divided, **quick)
    threshold.input(
        part(lambda found, _, column, sure, chosen, __: (
            errors_honesty.risk_plot(found, sure), errors_honesty.abstain(found, sure),
            _clips(found, chosen, sure, column) if chosen == "unsure" else gr.skip(),
        )),
        state, [risk, abstain, clips], trigger_mode="always_last", **quick,
    )  # fmt: skip
    cell.change(part(opened), state, [clips, clip, player], trigger_mode="always_last", **quick).then(
        None, js=errors_clips.FOCUS
    )
    clip.change(part(lambda found, *rest: _player(found, rest[-1])), state, player, trigger_mode="always_last", **quick)
