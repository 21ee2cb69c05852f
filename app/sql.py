"""SQL: questions to the index that no other page asks, read-only, and their traces as saved slices.

A query runs guarded (`deepintuit_analysis.index.guarded`): one SELECT, no files, bounded in time, memory and size.
One that came with the address is put into the box and waits for its reader.

Nothing is written but slices, and queries of other people are not shown.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import gradio as gr
from fastapi import APIRouter, Form, Response
from fastapi.responses import PlainTextResponse

from deepintuit.errors import DeepIntuitError, StoreError
from deepintuit.tables import FORMATS
from deepintuit_analysis.index import console
from deepintuit_analysis.index.guarded import AT_ONCE
from deepintuit_app import links
from deepintuit_app import sql_view as view
from deepintuit_app.context import AppContext, apart
from deepintuit_app.html import heading, note
from deepintuit_app.roles import needs

LONGEST = 8_000
"""Characters of a query here: it stands in the address."""


def routes(context: AppContext) -> APIRouter:
    """`POST /export/sql.csv`: the rows of a query as a file. Not by an address: nobody's link may run something."""
    router = APIRouter()

    @router.post("/export/sql.{form}")
    @apart(2, waiting=8)
    def export(form: str, sql: Annotated[str, Form()]) -> Response:
        try:
            content = console.export(context.look(), _unix(sql), form)
        except DeepIntuitError as error:
            return PlainTextResponse(str(error), 400)
        return Response(
            content, media_type=FORMATS[form], headers={"Content-Disposition": f'attachment; filename="result.{form}"'}
        )

    return router


def _unix(text: Any) -> str:
    """Lines as in the box: a form sends them with carriage returns."""
    return str(text or "").replace("\r\n", "\n")


class Handlers:
    """What the page's events call."""

    def __init__(self, context: AppContext):
        self.context = context

    def restore(self, query: dict[str, str], request: gr.Request) -> str:
        return str(query.get("q", ""))[:LONGEST]

    def opened(self, sql: str, request: gr.Request) -> list[Any]:
        """The query of the address → what stands below it, history, tables, slices."""
        workbench = self.context.look()
        schema = console.schema(workbench)
        below = view.waiting_html(bool(sql.strip()), bool(workbench.runs()))
        return [below, view.history_html(self.context.user(request)), view.schema_html(schema), self._slices()]

    def _slices(self) -> str:
        return view.slices_html(self.context.workbench.slices())

    def warm(self) -> None:
        """Have the process for queries come up while the first one is being written."""
        with contextlib.suppress(StoreError):  # it is up, and busy
            console.warm(self.context.workbench)

    def run(self, sql: str) -> list[Any]:
        """The query → what it gives, the query that was run where it can be saved as a slice, the form to save it, and
        no word about a slice saved before."""
        sql = str(sql or "").strip()
        if not sql:
            return [view.waiting_html(False, True), "", gr.Row(visible=False), ""]
        try:
            answer = console.ask(self.context.look(), sql)
        except DeepIntuitError as error:
            return [view.error_html(error), "", gr.Row(visible=False), ""]
        fits = "trace_id" in answer.names
        html = view.answer_html(sql, answer, console.to_python(self.context.workbench, sql))
        return [html, sql if fits else "", gr.Row(visible=fits), ""]

    @needs("reviewer")
    def save(self, name: str, sql: str, request: gr.Request) -> list[Any]:
        """A name and the query that was run → what came of it, the slices."""
        try:
            saved = self.context.workbench.save_slice(str(name or ""), sql, by=self.context.user(request))
        except DeepIntuitError as error:
            return [note(error, role="status"), gr.skip()]
        return [view.saved_html(saved), self._slices()]


def page(context: AppContext) -> None:
    """The components and what ties them together."""
    do = Handlers(context)
    about = (
        "Ask the index anything: one SELECT at a time, in DuckDB's SQL. Nothing can be changed here, a query ends "
        f"after {console.SECONDS:g} s, and what it may take is bounded."
    )
    gr.HTML(heading("SQL", about), elem_id="sql-top")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            box = gr.Textbox(
                label="Query (Ctrl+Enter runs it)",
                lines=8,
                max_lines=24,
                max_length=LONGEST,
                placeholder="SELECT … FROM trace_facts",
                elem_id="sql-box",
            )
            run = gr.Button("Run", variant="primary", elem_id="sql-run")
            below = gr.HTML("", elem_id="sql-result", elem_classes="sql-part")
            with gr.Row(visible=False, elem_id="sql-save", elem_classes="for-reviewers", equal_height=False) as saving:
                name = gr.Textbox(
                    label="Save these traces as a slice called", max_length=80, scale=3, placeholder="night falls"
                )
                save = gr.Button("Save slice", scale=0, min_width=140)
            saved = gr.HTML("", elem_id="sql-saved", elem_classes="sql-part")
        with gr.Column(scale=2, min_width=300, elem_id="sql-side"):
            gr.HTML(view.examples_html(), elem_classes="sql-part")
            history = gr.HTML("", elem_classes="sql-part")
            slices = gr.HTML("", elem_classes="sql-part", elem_id="sql-slices")
            schema = gr.HTML("", elem_classes="sql-part", elem_id="sql-schema")

    ran = gr.State("")
    quiet = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    event = links.bind({"q": box}, do.restore)
    event.then(do.opened, [box], [below, history, schema, slices], **quiet)
    event.then(do.warm, None, None, **quiet)
    options = {**quiet, "show_progress": "minimal", "concurrency_limit": AT_ONCE}
    run.click(do.run, [box], [below, ran, saving, saved], show_progress_on=[below], trigger_mode="once", **options)
    gr.on([save.click, name.submit], do.save, [name, ran], [saved, slices], **quiet)
