"""The Runs page as HTML: runs, one run, several side by side, rollouts, jobs. Data in, text out; no Gradio.

A `data-set` button puts its `data-value` into the hidden field of that id (`app.js`), whose event the page answers.
Every word that a person, a model or a process wrote goes through `esc`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from deepintuit.config import Config
from deepintuit.metrics import Estimate
from deepintuit_analysis import Workbench
from deepintuit_analysis.numbers import percent, within
from deepintuit_analysis.report.health import Remark
from deepintuit_app.html import badge, empty, esc, facts, link, table, tag
from deepintuit_app.jobs import STATUSES, Job

KINDS = {
    "finished": "good",
    "failed": "bad",
    "broken off": "bad",
    "running": "warn",
    "stopping": "warn",
    "waiting": "warn",
}
MEANINGS = {
    "finished": "All it had to do is done.",
    "running": "A process of this machine works on it.",
    "stopped": "No process works on it; the same command goes on from where it stands.",
    "failed": "It met an error; the same command goes on from where it stands.",
}
_SHOWN_NUMBERS = {
    "reward": "reward", "accuracy": "right answers while sampling", "well_formed": "well-formed while sampling",
    "zero_variance_share": "groups that teach nothing", "entropy": "entropy", "loss": "loss",
    "tokens_mean": "tokens a trace", "validation_nll": "validation NLL",
}  # fmt: skip


def button(text: str, field: str, value: object, **more: object) -> str:
    """A button that puts `value` into the hidden field `field`."""
    return tag("button", esc(text), type="button", class_="pick", data_set=field, data_value=value, **more)


def copy(text: str, what: str = "Copy the command") -> str:
    return tag("button", "Copy", type="button", class_="copy", data_copy=text, aria_label=what, title=text)


# Runs


def command(words: Sequence[str] | None) -> str:
    """The command of a run as one types it."""
    if not words:
        return ""
    first, rest = words[0], list(words[1:])
    return shlex.join([*(["deepintuit"] if first == "cli.py" else shlex.split(first)), *rest])


def took(seconds: float) -> str:
    """A length of time in the two largest units."""
    if not math.isfinite(seconds):
        return "–"
    seconds = round(max(0.0, seconds))
    days, hours, minutes = seconds // 86_400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def when(moment: datetime | pd.Timestamp | None) -> str:
    return "–" if moment is None or pd.isna(moment) else f"{moment:%Y-%m-%d %H:%M} UTC"


Accuracy = Callable[[Any], Estimate | None]
"""A row of `progress.accuracies` → its accuracy as on the run card."""


def headline(run: Mapping[str, Any], accuracies: pd.DataFrame, ends: pd.DataFrame, accuracy: Accuracy) -> str:
    """The number that a run is known by, with its n."""
    summary, mine = run["summary"] or {}, ends[ends["run_id"] == run["run_id"]].set_index("name")
    scores = accuracies[accuracies["run_id"] == run["run_id"]]
    if len(scores):
        return _scored(run, scores, accuracy)
    if run["stage"] == "teach" and summary.get("written"):
        return f"{summary.get('kept', 0)} of {summary['written']} traces kept"
    if "accuracy" in mine.index:
        row = mine.loc["accuracy"]
        return f"right while sampling {percent(row['first'])} → {percent(row['last'])}, {row['n']:.0f} updates"
    if "validation_nll" in mine.index:
        best = summary.get("validation_nll", mine.loc["validation_nll", "last"])
        return f"validation NLL {best:.3f}" + (
            f" at epoch {summary['best_epoch']:g}" if "best_epoch" in summary else ""
        )
    if "loss" in mine.index:
        row = mine.loc["loss"]
        return f"loss {row['first']:.3g} → {row['last']:.3g}, {row['n']:.0f} updates"
    return ""


def _scored(run: Mapping[str, Any], scores: pd.DataFrame, accuracy: Accuracy) -> str:
    split = ((run["config"] or {}).get("evaluate") or {}).get("split", "test")
    scores = scores[scores["split"] == split] if (scores["split"] == split).any() else scores
    if scores["system"].nunique() > 1:
        each = ", ".join(f"{row.system} {percent(row.right / row.n, 1)}" for row in scores.itertuples())
        return f"{each} (n {scores['n'].max()})"
    by_method = {row.method: row for row in scores.itertuples()}
    wanted = ((run["config"] or {}).get("evaluate") or {}).get("method", "label_likelihood")
    raw = by_method.get("raw")
    row = by_method.get(wanted) or raw or next(iter(by_method.values()))
    right = accuracy(row)
    text = f"{percent(row.right / row.n, 1)} right{'' if right is None else within(right)}, n {row.n}"
    return text + (f"; provisional {percent(raw.right / raw.n, 1)}" if raw is not None and row is not raw else "")


def runs_table(runs: pd.DataFrame, statuses: Mapping[str, str], headlines: Mapping[str, str], chosen: str) -> str:
    """One line a run, the newest first; the id opens it."""
    if runs.empty:
        return empty("No run of this kind is here.", "Choose another stage or dataset, or start one under Jobs.")
    rows = []
    for run in runs.to_dict("records"):
        name = run["name"] if isinstance(run["name"], str) else ""
        status = statuses[run["run_id"]]
        until = run["finished"] if status == "finished" else _now() if status == "running" else pd.NaT
        current = {"aria_current": "true"} if run["run_id"] == chosen else {}
        parent = run["parent"] if isinstance(run["parent"], str) else ""
        rows.append(
            [
                button(run["run_id"], "runs-pick", run["run_id"], **current)
                + (tag("small", esc(name)) if name else ""),
                esc(run["stage"]),
                badge(status, KINDS.get(status, "plain"), MEANINGS.get(status)),
                esc(headlines.get(run["run_id"], "")),
                button(parent, "runs-pick", parent) if parent else "–",
                esc(run["dataset"] if isinstance(run["dataset"], str) else "–"),
                esc(when(run["created"])),
                esc(took((until - run["created"]).total_seconds()) if not pd.isna(until) else "–"),
                copy(command(run["command"]), "Copy the command that makes this run again"),
            ]
        )
    heads = ["Run", "Stage", "Status", "Result", "Parent", "Dataset", "Begun", "Took", "Again"]
    return table(heads, rows, class_="runs-table")


def _now() -> pd.Timestamp:
    return pd.Timestamp(datetime.now(UTC).replace(tzinfo=None))


def no_runs() -> str:
    return empty(
        "This workbench has no run yet.",
        "The demo makes one of every stage in some minutes. It can also be started here, under Jobs.",
        "deepintuit demo",
    )


def details(
    about: Mapping[str, Any],
    status: str,
    headline: str,
    above: list[dict],
    below: list[dict],
    log: str,
    card: str | None,
) -> str:
    """Everything that run.json says of one run. `log` is the end of its log, `card` the address of its card."""
    run_id, sessions = about["run_id"], about.get("sessions") or []
    title = tag("h2", esc(run_id)) + tag(
        "p", badge(status, KINDS.get(status, "plain"), MEANINGS.get(status)) + " " + esc(headline)
    )
    title += tag("p", esc(about["error"]), class_="problem") if about.get("error") else ""
    where = [link("Its traces", "traces", run=run_id), button("Training", "runs-goto", "training")]
    where += [button("Rollouts", "runs-goto", "rollouts")] if about["stage"] == "grpo" else []
    where += [tag("a", "Run card", href=card, target="_blank", rel="noopener")] if card else []
    known = {
        "Stage": about["stage"],
        "Name": about.get("name"),
        "Dataset": about.get("dataset"),
        "Seed": about.get("seed"),
        "Device": about.get("device"),
        "Begun": (about.get("created") or "")[:16].replace("T", " ") + " UTC",
        "Finished": about["finished"][:16].replace("T", " ") + " UTC" if about.get("finished") else None,
        "Sessions": f"{len(sessions)} (it was stopped and went on)" if len(sessions) > 1 else None,
        "Commit": (about.get("commit") or "not from a git checkout") + (" with edits" if about.get("dirty") else ""),
    }
    again = command(about.get("command"))
    parts = [
        tag("header", title + tag("p", " · ".join(where), class_="where")),
        tag(
            "div",
            tag("section", tag("h3", "What it is") + facts(known))
            + tag("section", tag("h3", "Lineage") + _tree(run_id, above, below)),
            class_="side",
        ),
        tag("h3", "Run it again") + tag("pre", esc(again)) + copy(again) if again else "",
        tag("h3", "Settings that depart from the method's defaults") + _departures(about),
        tag("h3", "Summary") + facts(flat(about["summary"])) if about.get("summary") else "",
        _fold(
            "Log, its end",
            tag("pre", esc(log), class_="log") if log else "<p>It wrote nothing.</p>",
            bool(about.get("error")),
        ),
        _fold("Versions", facts(about.get("versions") or {})),
    ]
    return tag("article", "".join(parts), class_="runs", aria_label=f"Run {run_id}")


def _fold(title: str, content: str, opened: bool = False) -> str:
    return tag("details", tag("summary", esc(title)) + content, open=opened)


def _tree(run_id: str, above: list[dict], below: list[dict]) -> str:
    def line(one: dict) -> str:
        said = f" {one['name']}" if one["name"] else ""
        return tag(
            "li",
            esc(one["stage"])
            + " "
            + button(one["run_id"], "runs-pick", one["run_id"])
            + esc(said)
            + tag("small", f" {esc(one['role'])}"),
        )

    own = tag("li", tag("strong", esc(run_id)), aria_current="true")
    groups = [("Stands on", above), ("", None), ("Was used by", below)]
    shown = ""
    for title, runs in groups:
        if runs is None:
            shown += tag("ul", own)
        elif runs:
            shown += tag("p", esc(title), class_="soft") + tag("ul", "".join(map(line, runs)))
    return tag("div", shown, class_="lineage")


def _departures(about: Mapping[str, Any]) -> str:
    defaults = flat(Config().to_dict())
    rows = [
        [esc(key), esc(_value(value)), esc(_value(defaults.get(key)))]
        for key, value in _given(about).items()
        if defaults.get(key) != value
    ]
    return table(["Setting", "Here", "Default"], rows) if rows else "<p>None.</p>"


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A nested mapping by dotted key; empty ones and None are left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        elif value is not None and value != []:
            found[f"{above}{key}"] = value
    return found


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def comparison(
    abouts: Sequence[Mapping[str, Any]], statuses: Mapping[str, str], accuracies: pd.DataFrame, ends: pd.DataFrame
) -> str:
    """Two or more runs side by side: their numbers, then the settings in which they differ."""
    if len(abouts) < 2:
        return ""
    ids = [about["run_id"] for about in abouts]
    numbers: dict[str, dict[str, str]] = {
        "stage": {about["run_id"]: about["stage"] for about in abouts},
        "status": {run_id: statuses[run_id] for run_id in ids},
    }
    for row in accuracies[accuracies["run_id"].isin(ids)].itertuples():
        name = f"right on {row.split}, {row.system if row.method == 'raw' else row.method}"
        numbers.setdefault(name if row.method != "raw" else f"right on {row.split}, raw", {})[row.run_id] = (
            f"{percent(row.right / row.n, 1)} of {row.n}"
        )
    mine = ends[ends["run_id"].isin(ids)]
    for key, shown in _SHOWN_NUMBERS.items():
        for row in mine[mine["name"] == key].to_dict("records"):
            numbers.setdefault(f"{shown}, first → last tenth", {})[row["run_id"]] = (
                f"{row['first']:.3g} → {row['last']:.3g}"
            )
    heads = ["", *ids]
    lines = [[esc(name), *(esc(found.get(run_id, "–")) for run_id in ids)] for name, found in numbers.items()]
    settings = [_given(about) | {key: about.get(key) for key in ("seed", "commit", "parent")} for about in abouts]
    differing = [
        [esc(key), *map(esc, values)]
        for key in dict.fromkeys(key for one in settings for key in one)
        if len(set(values := [_value(one.get(key)) for one in settings])) > 1
    ]
    shown = table(heads, lines, "Numbers side by side")
    shown += table(heads, differing, "Settings that differ") if differing else "<p>They differ in no setting.</p>"
    return tag("section", shown, class_="runs")


def _given(about: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that a run has on file, by dotted key."""
    found = flat({**about["config"], **(about.get("settings") or {})})
    found.pop("workbench", None)
    return found


# Training


def health(remarks: Iterable[Remark]) -> str:
    words = {"good": "good", "warn": "look", "bad": "bad", "plain": "note"}
    items = "".join(tag("li", badge(words[one.kind], one.kind) + " " + esc(one.text)) for one in remarks)
    return tag("ul", items, class_="runs health", aria_label="Health remarks") if items else ""


def no_choice() -> str:
    return empty("No run is chosen.", "Choose one above, or click its id in the table of runs.")


def no_curves(run_id: str) -> str:
    if not run_id:
        return no_choice()
    return empty(
        "This run logged no training step.", "Cold start, GRPO and calibrate do; choose one of those runs above."
    )


# Jobs


def jobs_table(jobs: Sequence[Job], chosen: str) -> str:
    if not jobs:
        return empty(
            "No job was started from here yet.",
            "Start a stage above. It goes on when this page, or the dashboard, is closed.",
        )
    rows = []
    for job in jobs:
        current = {"aria_current": "true"} if job.id == chosen else {}
        until = job.ended or datetime.now(UTC)
        rows.append(
            [
                button(job.title, "runs-job", job.id, **current),
                badge(job.status, KINDS.get(job.status, "plain"), STATUSES[job.status]),
                esc(job.progress[-160:]),
                esc(job.user),
                esc(when(job.created)),
                esc(took((until - job.started).total_seconds()) if job.started else "–"),
            ]
        )
    return table(["Job", "Status", "Last line", "By", "Begun", "Took"], rows, class_="runs-table jobs")


def job(job: Job, log: str) -> str:
    said = STATUSES[job.status] + (f" (exit code {job.exit_code})" if job.status == "failed" else "")
    progress = tag("p", esc(job.progress), class_="progress", role="status") if job.active and job.progress else ""
    shown = tag("h3", esc(job.title)) + tag(
        "p", badge(job.status, KINDS.get(job.status, "plain")) + f" It {esc(said)}. Started by {esc(job.user)}."
    )
    shown += progress + tag(
        "pre", esc(log) if log else "Nothing was written yet.", class_="log", tabindex=0, aria_label="Log of the job"
    )
    return tag("section", shown + tag("p", esc(shlex.join(job.command)), class_="soft"), class_="runs")


def preview(words: Sequence[str], changed: Mapping[str, Any]) -> str:
    """What would be started, in words."""
    settings = table(["Setting", "Value"], [[esc(key), esc(_value(value))] for key, value in changed.items()])
    shown = tag("pre", esc(shlex.join(["deepintuit", *words]).replace("{job}", "…")))
    return tag(
        "div", shown + _fold(f"{len(changed)} settings depart from the method's defaults", settings), class_="runs"
    )


def left_out(problems: Sequence[tuple[str, str]]) -> str:
    """What is in no table, since its file is damaged."""
    return "".join(problem(f"{source} is left out: {what}") for source, what in problems)


def problem(error: Exception | str) -> str:
    return tag("p", esc(error), class_="runs problem", role="alert")


def settings_help(settable: Mapping[str, str], stage: str) -> str:
    """The settings of a stage that can be changed here, with their meaning."""
    sections = {"report": ("evaluate",), "demo": ("teach", "coldstart", "grpo", "calibrate", "evaluate")}.get(
        stage, (stage,)
    )
    wanted = (*sections, "clips", "video", "prompt", "sampling", "model")
    rows = [
        [esc(key), esc(meaning)]
        for section in wanted
        for key, meaning in settable.items()
        if key.split(".")[0] == section
    ]
    return tag("div", table(["Setting", "Meaning"], rows), class_="runs help")


def queue_note() -> str:
    said = (
        "One job runs at a time, since two on one machine are each many times slower; the next ones wait in this list. "
        "A job goes on when this page or the dashboard is closed. "
        "What is stopped goes on from where it stood when it is started again."
    )
    return tag("p", said, class_="runs soft")


def card_address(workbench: Workbench, run_id: str) -> str | None:
    return f"media/card/{run_id}" if (workbench.path / "reports" / f"{run_id}.html").is_file() else None
