"""The Jobs tab of the Runs page: a form that says what would run, the list of jobs, and one of them with its log.

What may be started is decided in `job_requests`, and run by `jobs`. `job` is the hidden field that holds the chosen
job's id.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from deepintuit.errors import DeepIntuitError
from deepintuit_analysis.index import progress
from deepintuit_app import job_requests, jobs
from deepintuit_app import runs_view as view
from deepintuit_app.context import AppContext
from deepintuit_app.html import without_places, without_roots
from deepintuit_app.roles import needs

QUICK = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How events that only read are wired."""


def requested(
    context: AppContext,
    stage: str,
    dataset: str | None,
    base: str,
    first: str | None,
    second: str | None,
    seed: str,
    name: str,
    changes: str,
    full: bool,
    dry: bool,
) -> job_requests.JobRequest:
    """What the form says, checked. DeepIntuitError for what cannot be started."""
    options = list(job_requests.INPUTS.get(stage, {}))
    inputs = dict(zip(options, (first or "", second or ""), strict=False))
    return job_requests.checked(
        context.workbench, stage, base=base or "defaults", changes=changes or "", dataset=dataset or "", inputs=inputs,
        seed=(seed or "").strip(), name=(name or "").strip(), full=bool(full), dry=bool(dry),
    )  # fmt: skip


def preview(context: AppContext, *form: Any) -> str:
    try:
        wish = requested(context, *form)
    except DeepIntuitError as error:
        return view.problem(error)
    return view.preview(wish.command[3:], job_requests.changed(wish.config))


def job_shown(context: AppContext, job_id: str | None) -> tuple[str, jobs.Job | None]:
    if not job_id:
        return "", None
    try:
        job = jobs.find(context.workbench.path, job_id)
    except DeepIntuitError as error:
        return view.problem(error), None
    root = context.workbench.path.absolute()
    job_view = replace(job, command=tuple(without_places(job.command, root)))
    return view.job(job_view, without_roots(jobs.tail(context.workbench.path, job_id), root)), job


def tab(context: AppContext, job: gr.Textbox, timer: gr.Timer) -> tuple[Any, list[gr.components.Component]]:
    """The form, the list and one job. Returns the function that shows them, and what it fills."""
    place = context.workbench.path
    with gr.Accordion("Start a stage", open=False, elem_classes="for-leads"):
        with gr.Row():
            stage = gr.Dropdown(
                [(f"{name}: {about}", name) for name, about in job_requests.STAGES.items()],
                value="report",
                label="Stage",
                scale=2,
            )
            dataset = gr.Dropdown([], label="Dataset", scale=1)
            base = gr.Dropdown([], label="Settings to begin with", scale=2)
        with gr.Row():
            first = gr.Dropdown([], visible=False, label="Input")
            second = gr.Dropdown([], visible=False, label="Input")
            seed = gr.Textbox(label="Seed", max_length=12, info="empty: that of the settings")
            name = gr.Textbox(label="Name", max_length=40, info="a word for the run's id, if wanted")
        changes = gr.Textbox(
            label="Other settings",
            lines=3,
            max_length=4000,
            placeholder="grpo.epochs = 2",
            info="one `section.key = value` a line",
        )
        with gr.Accordion("Which settings there are", open=False):
            meanings = gr.HTML()
        with gr.Row():
            dry = gr.Checkbox(label="Dry run", value=False)
            full = gr.Checkbox(label="As many clips as README's table", value=False, visible=False)
        words = gr.HTML(elem_id="runs-preview")
        go = gr.Button("Start", variant="primary", elem_id="runs-start")
    gr.HTML(view.queue_note())
    listed = gr.HTML(elem_id="runs-jobs")
    with gr.Row(elem_classes="for-leads"):
        stop = gr.Button("Stop this job", visible=False, size="sm", elem_id="runs-stop")
        sure = gr.Button(
            "Stop it, it can resume later", variant="stop", visible=False, size="sm", elem_id="runs-stop-sure"
        )
        leave = gr.Button("Let it run", visible=False, size="sm")
        again = gr.Button("Start again", visible=False, size="sm", elem_id="runs-again")
    log = gr.HTML(elem_id="runs-log", autoscroll=True)
    form = [stage, dataset, base, first, second, seed, name, changes, full, dry]
    job_of = [listed, log, stop, again]
    reading = {**QUICK, "concurrency_limit": None}

    def job_list(job_id: str | None) -> list[Any]:
        text, current = job_shown(context, job_id)
        active = current is not None and current.active
        return [
            view.jobs_table(jobs.listed(place), job_id or ""),
            text,
            gr.Button(visible=active),
            gr.Button(visible=current is not None and not active),
        ]

    def fields(stage_: str, dataset_: str | None) -> list[Any]:
        options = list(job_requests.INPUTS.get(stage_, {}))
        rows = []
        for k in range(2):
            option = options[k] if k < len(options) else ""
            runs = job_requests.candidates(context.workbench, stage_, option, dataset_ or "") if option else []
            names = [("the newest finished one", job_requests.NEWEST), *((run, run) for run in runs)]
            rows.append(
                gr.update(
                    choices=names, value=job_requests.NEWEST, label=option.capitalize() or "Input", visible=bool(option)
                )
            )
        return [*rows, gr.update(visible=stage_ == "demo"), view.settings_help(job_requests.settable(), stage_)]

    def opened(stage_: str) -> list[Any]:
        sets = progress.datasets(context.look())
        default = sets[0] if len(sets) == 1 else ""
        datasets = [("that of the settings", ""), *((name, name) for name in sets)]
        bases = job_requests.bases(context.workbench)
        return [
            gr.update(choices=datasets, value=default),
            gr.update(choices=bases, value=bases[0][1]),
            *fields(stage_, default),
        ]

    @needs("lead")
    def start(request: gr.Request, *form: Any) -> tuple[Any, Any, Any]:
        try:
            wish = requested(context, *form)
            new_job = jobs.launch(
                place, wish.command, stage=wish.stage, title=wish.title, user=context.user(request), files=wish.files
            )
        except DeepIntuitError as error:
            return gr.skip(), view.problem(error), gr.skip()
        return new_job.id, gr.skip(), gr.Timer(active=True)

    @needs("lead")
    def begin_again(job_id: str, request: gr.Request) -> tuple[Any, Any]:
        try:
            job_requests.refuse_unless_stage(jobs.find(place, job_id).command, context.workbench, context.sources)
            return jobs.again(place, job_id, context.user(request)).id, gr.Timer(active=True)
        except DeepIntuitError as error:
            gr.Warning(str(error))
            return gr.skip(), gr.skip()

    @needs("lead")
    def stop_now(job_id: str) -> list[Any]:
        try:
            jobs.stop(place, job_id)
        except DeepIntuitError as error:
            gr.Warning(str(error))
        return [*job_list(job_id), *asked(False), gr.Timer(active=True)]

    def asked(yes: bool) -> list[Any]:
        return [gr.Button(visible=yes), gr.Button(visible=yes)]

    see = lambda *form: preview(context, *form)  # noqa: E731 - one line, used for every field
    gr.context.Context.root_block.load(opened, stage, [dataset, base, first, second, full, meanings], **reading).then(
        see, form, words, **reading
    )
    for part in (stage, dataset):
        part.input(fields, [stage, dataset], [first, second, full, meanings], **reading).then(
            see, form, words, **reading
        )
    for part in (base, first, second):
        part.input(see, form, words, trigger_mode="always_last", **reading)
    for part in (seed, name, changes, full, dry):
        part.change(see, form, words, trigger_mode="always_last", **reading)
    go.click(start, form, [job, words, timer], queue=False, concurrency_limit=1)
    # Queued: a warning reaches the page no other way.
    again.click(begin_again, job, [job, timer], concurrency_limit=1)
    job.change(job_list, job, job_of, **reading).then(lambda: asked(False), None, [sure, leave], **reading)
    stop.click(lambda: asked(True), None, [sure, leave], **reading)
    leave.click(lambda: asked(False), None, [sure, leave], **reading)
    sure.click(stop_now, job, [*job_of, sure, leave, timer], concurrency_limit=None)
    return job_list, job_of
