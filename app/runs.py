"""Runs: which there are and what they gave, how trainings went, what GRPO sampled, and stages started from here.

Functions on top read and give HTML or figures, `page` wires them. HTML is in `runs_view` and `rollouts_view`, queries
are in `index.progress`, remarks in `report.health`; `jobs_tab` is the tab from which stages are started.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from deepintuit.errors import DeepIntuitError
from deepintuit.metrics import Estimate
from deepintuit_analysis import Workbench, report
from deepintuit_analysis.index import progress
from deepintuit_analysis.report.health import remarks
from deepintuit_app import analysis, jobs, jobs_tab, links, rollouts_view, slices
from deepintuit_app import runs_view as view
from deepintuit_app.context import AppContext
from deepintuit_app.html import empty, heading, without_places, without_roots
from deepintuit_app.job_requests import rerun
from deepintuit_app.roles import needs

TABS = ("runs", "details", "training", "rollouts", "jobs")
EVERY = 2.0
"""Seconds between two looks at what runs. Nothing is asked while nothing runs."""
_LOG_LINES = 200


def statuses(workbench: Workbench, runs: pd.DataFrame) -> dict[str, str]:
    """Run id → finished, failed, running, or stopped: on file as running, but no process holds it."""
    return {
        run: status if status != "running" or progress.at_work(workbench, run) else "stopped"
        for run, status in zip(runs["run_id"], runs["status"], strict=True)
    }


def headlines(workbench: Workbench, runs: pd.DataFrame) -> dict[str, str]:
    """Run id → the number that a run is known by."""
    accuracies, ends = progress.accuracies(workbench), progress.ends(workbench)

    def accuracy(row: Any) -> Estimate | None:
        return analysis.accuracy(workbench, row.run_id, row.system, row.split, row.method, row.n)

    return {run["run_id"]: view.headline(run, accuracies, ends, accuracy) for run in runs.to_dict("records")}


def table(
    context: AppContext,
    stage: str | None,
    dataset: str | None,
    run_id: str | None,
    columns: Sequence[str] | None = None,
) -> str:
    workbench = context.look()
    runs = progress.runs(workbench, stage, dataset)
    problems = [(source, without_roots(text, *_roots(workbench))) for source, text in workbench.problems()]
    if runs.empty and not stage and not dataset:
        return view.left_out(problems) + view.no_runs()
    runs["config"] = [without_places(value, *_roots(workbench)) for value in runs["config"]]
    runs["command"] = [_rerun(workbench, run) for run in runs.to_dict("records")]
    return view.left_out(problems) + view.runs_table(
        runs, statuses(workbench, runs), headlines(workbench, runs), run_id or "", columns or tuple(view.COLUMNS)
    )


def _roots(workbench: Workbench, about: Mapping[str, Any] | None = None) -> list[str]:
    """The workbench's folder, as it is called now and as it was when a run was written: it may have been moved."""
    roots_then = [((about or {}).get(part) or {}).get("workbench") for part in ("settings", "config")]
    roots = (workbench.path.absolute(), workbench.path.resolve(), *roots_then)
    return [str(root) for root in dict.fromkeys(roots) if root and Path(root).is_absolute()]


def first(context: AppContext, query: dict[str, str]) -> dict[str, str]:
    """The table, for the HTML of the page."""
    columns = _columns(query.get("columns", ""), list(view.columns(progress.runs(context.look()))))
    return {"runs-list": table(context, *(query.get(key) for key in ("stage", "dataset", "run")), columns)}


def _rerun(workbench: Workbench, run: Mapping[str, Any]) -> list[str]:
    """The words that make a run again, as they are shown; those that made it, where what it stands on is gone."""
    words = run["command"]
    if run["stage"] not in (words or ()):  # else they say all, and no file is read
        with contextlib.suppress(DeepIntuitError):
            words = _again(workbench, run["run_id"], run["status"])
    return without_places(words, *_roots(workbench))


@lru_cache(maxsize=10_000)
def _again(workbench: Workbench, run_id: str, _status: str) -> list[str]:
    return rerun(workbench, workbench.run(run_id).about)


def _about(workbench: Workbench, run_id: str) -> dict[str, Any]:
    """run.json as it is shown: without the machine's folders."""
    about = workbench.run(run_id).about
    return without_places(about, *_roots(workbench, about))


def details(context: AppContext, run_id: str | None) -> str:
    """All of one run, or nothing while none is chosen."""
    workbench = context.look()
    runs = progress.runs(workbench)
    row = runs[runs["run_id"] == run_id]
    if row.empty:
        return view.no_choice()
    run = workbench.run(run_id)
    above, below = progress.lineage(workbench, run_id)
    return view.details(
        _about(workbench, run.id) | {"command": _rerun(workbench, run.about)},
        statuses(workbench, row)[run_id],
        headlines(workbench, row)[run_id],
        above,
        below,
        without_roots(_end(run.path / "log"), *_roots(workbench, run.about)),
        view.card_address(workbench, run_id),
    )


def _end(path) -> str:
    return "\n".join(jobs.end_of(path).splitlines()[-_LOG_LINES:])


def comparison(context: AppContext, run_ids: Sequence[str] | None) -> str:
    workbench = context.look()
    runs = progress.runs(workbench)
    ids = [run_id for run_id in run_ids or [] if run_id in set(runs["run_id"])]
    abouts = [_about(workbench, run_id) for run_id in ids]
    scores = progress.accuracies(workbench)
    results = {
        row: analysis.result_of(workbench, row.run_id, row.system, row.split, row.method)
        for row in scores[scores["run_id"].isin(ids)].itertuples(index=False)
    }
    return view.comparison(abouts, statuses(workbench, runs), results, progress.ends(workbench))


def training(context: AppContext, run_id: str | None, beside: Sequence[str] | None = None) -> tuple[str, Any]:
    """Health remarks and curves, with those of the runs `beside` laid over them; an empty state instead of curves where
    none were logged."""
    workbench = context.look()
    curves = {run: progress.steps(workbench, run) for run in dict.fromkeys([run_id or "", *(beside or ())])}
    steps = curves.pop(run_id or "")
    if steps.empty and all(rows.empty for rows in curves.values()):
        return view.no_curves(run_id or ""), gr.Plot(visible=False)
    config = _about(workbench, run_id)["config"] if len(steps) else None
    figure = report.training_figure(steps, config, run_id or "", curves)
    return view.health(remarks(steps) if len(steps) else []), gr.Plot(value=figure, visible=True)


def nearest_step(steps: Sequence[int], text: str | None) -> int:
    """The update on file that is nearest to the wanted one, the first for no number; 0 where none is."""
    number = int(text[:12]) if isinstance(text, str) and text[:12].isdecimal() else 0
    return min(steps, key=lambda step: abs(step - number), default=0)


def rollouts(
    context: AppContext, run_id: str | None, number: str | None, clip_id: str | None, name: str | None = ""
) -> tuple[str, str]:
    """The groups of an update (of which a saved slice has a trace), and the traces of one of them: the clip's, else the
    first that teaches."""
    workbench = context.look()
    steps = progress.rollout_steps(workbench, run_id or "")
    step = nearest_step(steps, number)
    try:
        rows = progress.rollouts(workbench, run_id or "", step, name or "")
    except DeepIntuitError as error:
        return empty(*slices.sentences(error)), ""
    if rows.empty and name and steps:
        return rollouts_view.outside(name, step), ""
    clip = clip_id if clip_id in set(rows["clip_id"]) else _telling(rows)
    group = rows[rows["clip_id"] == clip]
    return rollouts_view.groups(rows, clip, step), rollouts_view.group(
        group, progress.texts(workbench, list(group["trace_id"]))
    )


def _telling(rows: pd.DataFrame) -> str:
    """The first clip whose traces earn different rewards, else the first."""
    spread = rows.groupby("clip_id")["reward"].agg(lambda rewards: rewards.max() - rewards.min())
    teaching = spread[spread > 1e-9]
    clips = teaching if len(teaching) else spread
    return str(clips.index[0]) if len(clips) else ""


def busy(context: AppContext) -> bool:
    """Whether a job or a run of this workbench is at work, so that the page should look again."""
    if any(job.active for job in jobs.listed(context.workbench.path)):
        return True
    runs = progress.runs(context.look())
    return "running" in statuses(context.workbench, runs).values()


def run_choices(context: AppContext) -> list[tuple[str, str]]:
    runs = progress.runs(context.look())
    pairs = zip(runs["run_id"], runs["name"], strict=True)
    return [(f"{run} · {name}" if isinstance(name, str) else run, run) for run, name in pairs]


# Wiring

_QUICK = jobs_tab.QUICK


def page(context: AppContext) -> None:
    """The Runs page."""
    hidden = {
        name: gr.Textbox("runs" if name == "tab" else "", elem_id=f"runs-{name}", visible="hidden")
        for name in ("pick", "goto", "tab", "clip", "job", "update")
    }
    # The update is empty until somebody moves the slider: the first one of the run.
    tab, clip, job, update = (hidden[name] for name in ("tab", "clip", "job", "update"))
    run_ids = gr.State(())
    timer = gr.Timer(EVERY, active=False)
    gr.HTML(heading("Runs", "What ran, from what, with which settings, and what it gave."), padding=False)
    with gr.Row(elem_id="runs-top"):
        run = gr.Dropdown([], label="Run", info="for all tabs of this page; or click an id in the table", scale=4)
        again = gr.Button("Refresh", scale=0, min_width=120, size="sm")
    with gr.Tabs() as tabs:
        with gr.Tab("Runs", id="runs"):
            with gr.Row(elem_id="runs-choice"):
                stage = gr.Dropdown([], label="Stage")
                dataset = gr.Dropdown([], label="Dataset")
                compare = gr.Dropdown(
                    [], value=[], label="Compare", multiselect=True, info="two or more runs, side by side"
                )
            with gr.Accordion("Columns", open=False, elem_id="runs-columns"):
                columns = gr.Dropdown([], label="Columns of the table, settings too", multiselect=True)
            side_by_side = gr.HTML(elem_id="runs-compare")
            listed = gr.HTML(elem_id="runs-list")
        with gr.Tab("Details", id="details"):
            details_box = gr.HTML(elem_id="runs-details")
            card = gr.Button(
                "Write the run card", visible=False, size="sm", elem_id="runs-card", elem_classes="for-leads"
            )
        with gr.Tab("Training", id="training"):
            health = gr.HTML(elem_id="runs-health")
            curves = gr.Plot(visible=False, show_label=False, elem_classes="runs", elem_id="runs-curves")
        with gr.Tab("Rollouts", id="rollouts"):
            with gr.Row():
                step = gr.Slider(
                    0, 1, value=0, step=1, label="Update", info="of the chosen GRPO run", elem_id="runs-step", scale=3,
                    min_width=260,
                )  # fmt: skip
                within = slices.box(info="groups that it has a trace of")
            groups = gr.HTML(elem_id="runs-groups")
            group = gr.HTML(elem_id="runs-group")
        with gr.Tab("Jobs", id="jobs"):
            job_list, job_of = jobs_tab.tab(context, job, timer)

    def choices(_: object = None) -> list[Any]:
        runs = run_choices(context)
        ids = tuple(value for _, value in runs)
        rows = progress.runs(context.workbench)
        stages = [("all", ""), *((name, name) for name in sorted(set(rows["stage"])))]
        sets = [("all", ""), *((name, name) for name in sorted(set(rows["dataset"].dropna())))]
        heads = [(head, name) for name, head in view.columns(rows).items()]
        return [*(gr.update(choices=names) for names in (runs, stages, sets, runs, heads)), ids]

    def restore(query: Mapping[str, str], request: gr.Request) -> list[Any]:
        runs, stages, sets, comparable, heads, _ = choices()
        ids = {value for _, value in runs["choices"]}
        compared = [value for value in query.get("compare", "").split(",") if value in ids]
        run_id = query["run"] if query.get("run") in ids else None
        return [
            {**runs, "value": run_id},
            {**stages, "value": query["stage"] if query.get("stage") in {v for _, v in stages["choices"]} else ""},
            {**sets, "value": query["dataset"] if query.get("dataset") in {v for _, v in sets["choices"]} else ""},
            {**comparable, "value": compared},
            {**heads, "value": _columns(query.get("columns", ""), [name for _, name in heads["choices"]])},
            query["tab"] if query.get("tab") in TABS else "runs",
            query.get("step", "")[:12],
            query.get("clip", "")[:64],
            query.get("job", "")[:64],
            gr.Dropdown(choices=slices.offered(context.workbench, query.get("slice")), value=query.get("slice", "")),
        ]

    def show_details(run_id: str | None) -> tuple[str, Any]:
        stages = dict(zip(*(progress.runs(context.look())[column] for column in ("run_id", "stage")), strict=True))
        missing = stages.get(run_id) == "evaluate" and view.card_address(context.workbench, run_id) is None
        return details(context, run_id), gr.Button(visible=missing)

    def show_training(run_id: str | None, tab_name: str, beside: Sequence[str] | None) -> tuple[Any, Any]:
        # Drawn only where it can be seen: a figure in a hidden tab gets the wrong width.
        return training(context, run_id, beside) if tab_name == "training" else (gr.skip(), gr.skip())

    def show_rollouts(run_id: str | None, number: str, clip_id: str, tab_name: str, name: str) -> tuple[Any, Any]:
        return rollouts(context, run_id, number, clip_id, name) if tab_name == "rollouts" else (gr.skip(), gr.skip())

    def filled(stage_, dataset_, keys, run_id, number, clip_id, tab_name, beside, name) -> list[Any]:
        """All that a restored address shows, in one answer."""
        return [
            table(context, stage_, dataset_, run_id, keys),
            *show_details(run_id),
            *show_training(run_id, tab_name, beside),
            *show_rollouts(run_id, number, clip_id, tab_name, name),
            comparison(context, beside),
            gr.Timer(active=busy(context)),
        ]

    def new_run(run_id: str | None, number: str) -> Any:
        return _slider(progress.rollout_steps(context.look(), run_id or ""), number)

    @needs("lead")
    def write_card(run_id: str | None) -> tuple[str, Any]:
        try:
            report.run_card(context.workbench, context.workbench.run(str(run_id)).id)
        except DeepIntuitError as error:
            gr.Warning(str(error))
        return show_details(run_id)

    def tick(before: tuple, *state: Any) -> list[Any]:
        stage_, dataset_, run_id, job_id, tab_name, beside, keys = state
        ids = tuple(value for _, value in run_choices(context))
        fresh = choices() if ids != tuple(before) else [gr.skip()] * 6
        lists = [table(context, stage_, dataset_, run_id, keys) if tab_name == "runs" else gr.skip()]
        lists += job_list(job_id) if tab_name == "jobs" else [gr.skip()] * len(job_of)
        on_screen = [name for name in (run_id, *(beside or ())) if name in ids]
        live = any(progress.at_work(context.workbench, name) for name in on_screen)
        lists += [*show_training(run_id, tab_name if live else "", beside)]
        return [*fresh, *lists, gr.Timer(active=busy(context))]

    reading = {**_QUICK, "concurrency_limit": None}
    picks = [run, stage, dataset, compare, columns, run_ids]
    loaded = links.bind(
        {
            "run": run,
            "stage": stage,
            "dataset": dataset,
            "compare": compare,
            "columns": columns,
            "tab": tab,
            "step": update,
            "clip": clip,
            "job": job,
            "slice": within,
        },
        restore,
        choices=("run", "tab", "clip", "job", "slice"),
        defaults={"tab": TABS[0], "columns": ",".join(view.COLUMNS)},
    )
    drawn = [listed, details_box, card, health, curves, groups, group, side_by_side, timer]
    show = [
        (lambda *inputs: table(context, *inputs), [stage, dataset, run, columns], [listed]),
        (lambda inputs: comparison(context, inputs), [compare], [side_by_side]),
        (show_details, [run], [details_box, card]),
        (show_training, [run, tab, compare], [health, curves]),
        (show_rollouts, [run, update, clip, tab, within], [groups, group]),
        (lambda inputs: job_list(inputs), [job], job_of),
        (lambda: gr.Timer(active=busy(context)), [], [timer]),
    ]

    def chain(event: Any, parts: Sequence[tuple]) -> None:
        for handler, inputs, result in parts:
            event.then(handler, inputs, result, **reading)

    to_tab = {"fn": lambda tab_name: gr.Tabs(selected=tab_name), "inputs": tab, "outputs": tabs, **reading}
    opened = loaded.then(new_run, [run, update], step, **reading).then(**to_tab)
    opened.then(filled, [stage, dataset, columns, run, update, clip, tab, compare, within], drawn, **reading).then(
        **links.FILLED
    )
    chain(again.click(choices, None, picks, **reading), show)
    for part in (stage, dataset, columns):
        part.input(show[0][0], show[0][1], show[0][2], **reading)
    chain(compare.input(show[1][0], show[1][1], show[1][2], **reading), [show[3]])
    chain(run.input(new_run, [run, update], step, **reading), [show[0], *show[2:5]])
    # Buttons in our HTML write into hidden fields, which are emptied again so that the same button works twice.
    chain(
        hidden["pick"].change(
            lambda value, number: (
                (value, "details", gr.Tabs(selected="details"), new_run(value, number), "")
                if value
                else (gr.skip(),) * 5
            ),
            [hidden["pick"], update],
            [run, tab, tabs, step, hidden["pick"]],
            **reading,
        ),
        [show[0], show[2]],
    )
    hidden["goto"].change(
        lambda value: (value, gr.Tabs(selected=value), "") if value in TABS else (gr.skip(),) * 3,
        hidden["goto"],
        [tab, tabs, hidden["goto"]],
        **reading,
    )
    for tab_item in tabs.children:
        # In the browser, at once: a tab is also "selected" when the page is drawn, before the address was read.
        tab_item.select(None, tab, tab, js=f"(now) => now ? {tab_item.id!r} : now", **_QUICK)
    chain(tab.change(*show[2], **reading), show[3:6])
    step.input(None, step, update, js="(number) => String(number)", **_QUICK)
    update.change(*show[4], trigger_mode="always_last", **reading)
    clip.change(*show[4], trigger_mode="always_last", **reading)
    within.input(*show[4], trigger_mode="always_last", **reading)
    card.click(write_card, run, [details_box, card], show_progress="minimal", concurrency_limit=1)
    timer.tick(
        tick,
        [run_ids, stage, dataset, run, job, tab, compare, columns],
        [*picks, listed, *job_of, health, curves, timer],
        **reading,
    )


def _columns(text: str, names: Sequence[str]) -> list[str]:
    """Those that an address names, the table's own where it names none that there is."""
    return [name for name in text[:2000].split(",") if name in names] or list(view.COLUMNS)


def _slider(steps: Sequence[int], number: str | None) -> Any:
    if not steps:
        return gr.update(minimum=0, maximum=1, value=0, interactive=False)
    return gr.update(
        minimum=steps[0],
        maximum=max(steps[-1], steps[0] + 1),
        value=nearest_step(steps, number),
        interactive=len(steps) > 1,
    )
