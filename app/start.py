"""The start page: what this is, what is in the workbench, what runs now, and what to do next.

A document of its own, without Gradio: one answer, read as soon as it is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pandas as pd
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from deepintuit.errors import DeepIntuitError
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import clips, progress
from deepintuit_app import analysis, frame, job_requests, jobs, roles
from deepintuit_app.context import LOCAL, AppContext
from deepintuit_app.html import address, document, static
from deepintuit_app.runs_view import KINDS, card_address, done_of, when
from deepintuit_app.sources import OTHER_KEY

STEPS = (
    ("clips", "Import clips", "deepintuit clips folder FOLDER --name NAME", "A folder of videos, or a list."),
    ("teach", "Teach", "deepintuit teach", "A teacher writes traces that say what is seen and why the label follows."),
    ("coldstart", "Cold start", "deepintuit coldstart", "The reasoner imitates the traces that were kept."),
    ("grpo", "GRPO", "deepintuit grpo", "It samples traces, and those that earn more reward become likelier."),
    ("calibrate", "Calibrate", "deepintuit calibrate", "The calibrator learns from right and wrong traces."),
    ("evaluate", "Evaluate", "deepintuit evaluate", "Provisional and calibrated labels on test clips, with controls."),
)  # fmt: skip
"""Stage, its name, its command, and what it does, in the order of the work."""
_WATCHED = ("clip", "trace", "run", "slice")
"""What an address of Watch held when that was the first page."""
_MOST = 8
_SCRIPT = f'<script src="{static("app.js")}" defer></script></body></html>'


def routes(context: AppContext, pages: dict[str, str]) -> APIRouter:
    router = APIRouter()

    @router.api_route("/", methods=["GET", "HEAD"])
    def start(request: Request) -> Response:
        query = request.url.query
        if set(parse_qs(query)) & set(_WATCHED):
            return RedirectResponse(f"./watch?{query}", 307)
        return HTMLResponse(page(context, pages, request.scope))

    @router.post("/jobs")
    async def begin(request: Request) -> Response:
        form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
        return await run_in_threadpool(begun, request, form)

    def begun(request: Request, form: dict[str, str]) -> Response:
        try:
            roles.check(request.scope, "lead")
            wish, user = requested(context, form), request.scope.get("deepintuit_user") or LOCAL
            about = {"stage": wish.stage, "title": wish.title, "user": user, "files": wish.files}
            jobs.launch(context.workbench.path, wish.command, **about)
        except DeepIntuitError as error:
            return HTMLResponse(page(context, pages, request.scope, form, error), 400)
        return RedirectResponse("./", 303)

    @router.get("/jobs")
    def listed() -> Response:
        return RedirectResponse("./runs?tab=jobs", 307)

    return router


def requested(context: AppContext, form: Mapping[str, str]) -> job_requests.JobRequest:
    """The job that a form of this page asks for. DeepIntuitError for what cannot be started."""
    stage, field = form.get("stage", ""), lambda name: form.get(name, "")
    if stage == "clips":
        dry = field("dry") == "on"
        return job_requests.import_of(context.workbench, context.sources, field("source"), field("name").strip(), dry)
    teacher = None
    if stage == "teach":
        teacher = job_requests.endpoint(context.sources, field("endpoint"), field("model"), field("traces") or "1")
    base, dataset = field("base") or "defaults", field("dataset")
    return job_requests.checked(context.workbench, stage, base=base, dataset=dataset, teacher=teacher)


def page(
    context: AppContext,
    pages: dict[str, str],
    scope: Mapping[str, Any] | None = None,
    form: Mapping[str, str] | None = None,
    error: DeepIntuitError | None = None,
) -> str:
    """The whole document; with a `form` that was sent and the `error` that kept it from starting a job, both in their
    place."""
    workbench = context.look()
    counts, at_work = progress.counts(workbench), active(workbench)
    html = document(
        "start.html",
        title=frame.title("Start", workbench),
        header=frame.header(context, "", pages, scope),
        example=frame.EXAMPLE if workbench.is_example else "",
        counts=counts,
        systems=systems(workbench),
        active=at_work,
        steps=steps(counts, at_work),
        uses=uses(workbench, counts),
        forms=forms(context) if roles.role_of(scope or {}) == "lead" and not workbench.is_example else None,
        sent=form or {},
        error=error,
    )
    return f"{html}{_SCRIPT}"


def steps(counts: dict[str, int], at_work: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages in order, each done, running, next (the first that is not done) or later."""
    running, rows = {row["stage"] for row in at_work}, []
    for stage, name, command, words in STEPS:
        n = counts.get(stage, 0)
        state = "running" if stage in running else "done" if n else "later"
        if state == "later" and all(row["state"] == "done" for row in rows):
            state = "next"
        rows.append({"stage": stage, "name": name, "command": command, "words": words, "n": n, "state": state})
    return rows


def forms(context: AppContext) -> dict[str, Any]:
    """What the forms of this page offer."""
    sources, bases = context.sources, job_requests.bases(context.workbench)
    datasets = [(name, name) for name in reversed(progress.datasets(context.workbench))]
    variables = [
        f"{urlsplit(url).hostname}: {variable}, {'set' if os.environ.get(variable) else 'not set'}"
        for url, variable in sources.endpoints.items()
    ]
    return {
        "sources": sources.offered(),
        "folders": [root.name for root in sources.folders],
        "endpoints": list(sources.endpoints),
        "variables": variables + [f"another: {OTHER_KEY}, if it wants one"] * sources.others,
        "datasets": datasets,
        "dataset": datasets[0][1] if datasets else "",
        "bases": bases,
        "base": bases[0][1] if bases[0][1].startswith("run:") else "file:small",
    }


def active(workbench: Workbench) -> list[dict[str, Any]]:
    """Jobs that wait or run, and runs that a process of this machine holds without a job."""
    listed = [job for job in jobs.listed(workbench.path) if job.active]
    rows = [
        {"what": job.title, "stage": job.stage, "status": job.status, "kind": KINDS.get(job.status, "plain"),
         "told": job.progress[-160:], "done": done_of(job.progress), "url": address("runs", tab="jobs", job=job.id)}
        for job in listed
    ]  # fmt: skip
    stages = {job.stage for job in listed}
    for run in progress.runs(workbench).to_dict("records"):
        if run["status"] == "running" and not stages & {run["stage"], "demo"}:
            if progress.at_work(workbench, run["run_id"]):
                about = {"status": "running", "kind": "warn", "told": f"since {when(run['created'])}", "done": None}
                url = address("runs", run=run["run_id"], tab="details")
                rows.append({"what": run["run_id"], "stage": run["stage"], **about, "url": url})
    return rows


def systems(workbench: Workbench) -> list[dict[str, Any]]:
    """The evaluated systems, the best first: accuracy of the provisional and of the calibrated label on the split that
    was evaluated, with the interval of the run card, and where Errors shows it."""
    accuracies = progress.accuracies(workbench)
    newest = progress.runs(workbench, stage="evaluate")
    entries = []
    for run in newest.to_dict("records"):
        scores = accuracies[accuracies["run_id"] == run["run_id"]]
        settings = (run["config"] or {}).get("evaluate") or {}
        for (system, split), rows in scores.groupby(["system", "split"]):
            entries.append(_system(workbench, run, system, split, rows, settings.get("method", "label_likelihood")))
    latest = {(e["dataset"], e["split"], e["system"]): e for e in reversed(entries)}  # of a name, the newest
    return sorted(latest.values(), key=lambda e: -e["best"])[:_MOST]


def _system(
    workbench: Workbench, run: dict[str, Any], system: str, split: str, rows: pd.DataFrame, method: str
) -> dict[str, Any]:
    by_method = {row.method: row for row in rows.itertuples()}
    raw = by_method.get("raw")
    row = by_method.get(method) or raw or next(iter(by_method.values()))

    def estimate(score: Any) -> Any:
        return analysis.accuracy(workbench, score.run_id, score.system, score.split, score.method, score.n)

    return {
        "system": system,
        "dataset": run["dataset"],
        "split": split,
        "n": row.n,
        "best": row.right / row.n if row.n else 0.0,
        "provisional": None if raw is None else estimate(raw),
        "calibrated": None if row is raw else estimate(row),
        "url": address("errors", dataset=run["dataset"], split=split, system=f"{run['run_id']}/{system}"),
        "card": card_address(workbench, run["run_id"]),
    }  # fmt: skip


def uses(workbench: Workbench, counts: dict[str, int]) -> list[dict[str, str]]:
    """What four kinds of people come for, each with the page that shows it now."""
    first, _ = clips.find(workbench, flip="fixed", limit=1) if counts["evaluate"] else ([], 0)
    watched = {"clip": first[0]["clip_id"], "trace": first[0]["trace_id"]} if first else {}
    last = {"link": "Start a stage", "url": address("runs", tab="jobs")}
    if workbench.is_example:  # where no stage is started
        last = {"link": "See the runs", "url": address("runs")}
    return [
        {"title": "See it reason", "words": "A clip, the trace as it is written, and how the label comes about.",
         "link": f"Watch a clip{' that calibration fixed' * bool(first)}", "url": address("watch", **watched)},
        {"title": "Find where it fails", "words": "Class by class, with the clips behind every number.",
         "link": "Open the errors", "url": address("errors")},
        {"title": "Judge traces", "words": "One after the other, by keyboard; answers become training sets.",
         "link": "Open the reviews", "url": address("review")},
        {"title": "Train and compare", "words": "Stages as jobs, their curves, and runs side by side.", **last},
    ]  # fmt: skip
