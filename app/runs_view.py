"""The Runs page as HTML: runs, one run, several side by side, rollouts, jobs. Data in, text out; no Gradio.

`templates/runs` shows them.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from deepintuit.config import Config
from deepintuit.metrics import Estimate
from deepintuit_analysis import Workbench
from deepintuit_analysis.numbers import number, p_value, percent, within
from deepintuit_analysis.report.curves import sampled
from deepintuit_analysis.report.health import Remark
from deepintuit_analysis.report.results import Comparison, Result
from deepintuit_analysis.report.text import shown
from deepintuit_app.html import empty, note, render
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
    "stopped": "No process works on it; the same command resumes where it stopped.",
    "failed": "It met an error; the same command resumes where it stopped.",
}
_SHOWN_NUMBERS = {
    "reward": "reward", "accuracy": "right answers while sampling", "well_formed": "well-formed while sampling",
    "zero_variance_share": "groups that teach nothing", "entropy": "entropy", "loss": "loss",
    "tokens_mean": "tokens per trace", "validation_nll": "validation NLL",
    "sampler_difference_mean": "server and loss apart",
}  # fmt: skip


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
    summary, numbers = run["summary"] or {}, ends[ends["run_id"] == run["run_id"]].set_index("name")
    scores = accuracies[accuracies["run_id"] == run["run_id"]]
    if len(scores):
        return _scored(run, scores, accuracy)
    if run["stage"] == "attribute" and summary.get("sentences"):
        return f"{summary['sentences']:,} sentences of {summary['clips']:,} traces"
    if run["stage"] == "judge" and summary.get("answers"):
        return f"{len(summary['answers'])} questions about {summary['traces']:,} traces"
    if run["stage"] == "teach" and summary.get("written"):
        return f"{summary.get('kept', 0)} of {summary['written']} traces kept"
    if "accuracy" in numbers.index:
        row = numbers.loc["accuracy"]
        went = f"{percent(row['first'])} → {percent(row['last'])} right"
        return f"{went} in the first → last {row['width']:.0f} of {row['n']:.0f} updates, {sampled(run['config'])}"
    if "validation_nll" in numbers.index:
        best = summary.get("validation_nll", numbers.loc["validation_nll", "newest"])
        return f"validation NLL {best:.3f}" + (
            f" at epoch {summary['best_epoch']:g}" if "best_epoch" in summary else ""
        )
    if "loss" in numbers.index:
        row = numbers.loc["loss"]
        return f"loss {row['first']:.3g} → {row['last']:.3g}, {row['n']:.0f} updates"
    return ""


def _scored(run: Mapping[str, Any], scores: pd.DataFrame, accuracy: Accuracy) -> str:
    split = ((run["config"] or {}).get("evaluate") or {}).get("split", "test")
    scores = scores[scores["split"] == split] if (scores["split"] == split).any() else scores
    if scores["system"].nunique() > 1:
        each = ", ".join(f"{row.system} {percent(row.right / row.n, 1)}" for row in scores.itertuples())
        return f"{each} (n {scores['n'].max()})"
    by_method = {row.method: row for row in scores.itertuples()}
    method = ((run["config"] or {}).get("evaluate") or {}).get("method", "label_likelihood")
    raw = by_method.get("raw")
    row = by_method.get(method) or raw or next(iter(by_method.values()))
    right = accuracy(row)
    text = f"{percent(row.right / row.n, 1)} right{'' if right is None else within(right)}, n {row.n}"
    return text + (f"; provisional {percent(raw.right / raw.n, 1)}" if raw is not None and row is not raw else "")


COLUMNS = {
    "stage": "Stage", "status": "Status", "result": "Result", "parent": "Parent", "dataset": "Dataset",
    "started": "Started", "duration": "Duration", "rerun": "Rerun",
}  # fmt: skip
"""Those of the table of runs that are there without a choice, by their names in the address."""


def columns(runs: pd.DataFrame) -> dict[str, str]:
    """What the table can have, name → head: its own columns, seed, commit, and settings, those in which the runs differ
    first."""
    configs = [flat(config or {}) for config in runs["config"]]
    alike = {key: len({_value(config.get(key)) for config in configs}) == 1 for config in configs for key in config}
    settings = sorted((key for key in alike if "." in key), key=lambda key: (alike[key], key))
    return COLUMNS | {"seed": "Seed", "commit": "Commit"} | {key: key for key in settings}


def runs_table(
    runs: pd.DataFrame,
    statuses: Mapping[str, str],
    headlines: Mapping[str, str],
    run_id: str,
    keys: Sequence[str] = tuple(COLUMNS),
) -> str:
    """One line per run, the newest first; the id opens it. `keys` are its columns, of `columns`."""
    rows = []
    for run in runs.to_dict("records"):
        status = statuses[run["run_id"]]
        until = run["finished"] if status == "finished" else _now() if status == "running" else pd.NaT
        rows.append(
            {
                "run_id": run["run_id"],
                "name": run["name"] if isinstance(run["name"], str) else "",
                "stage": run["stage"],
                **_state(status),
                "headline": headlines.get(run["run_id"], ""),
                "parent": run["parent"] if isinstance(run["parent"], str) else "",
                "dataset": run["dataset"] if isinstance(run["dataset"], str) else "–",
                "begun": when(run["created"]),
                "took": took((until - run["created"]).total_seconds()) if not pd.isna(until) else "–",
                "command": command(run["command"]),
                "others": _others(run, keys),
            }
        )
    heads = columns(runs)
    return render(
        "runs/table.html", runs=rows, chosen=run_id, columns=[(key, heads[key]) for key in keys if key in heads]
    )


def _others(run: Mapping[str, Any], keys: Sequence[str]) -> dict[str, str]:
    settings = {**flat(run["config"] or {}), "seed": run["seed"], "commit": str(run["commit"] or "")[:10]}
    return {
        key: _value(None if pd.isna(value) else value) for key in keys if (value := settings.get(key, "–")) is not None
    }


def _state(status: str) -> dict[str, str | None]:
    """A status with the kind of its badge and what it means."""
    return {"status": status, "kind": KINDS.get(status, "plain"), "meaning": MEANINGS.get(status)}


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
    sessions = about.get("sessions") or []
    facts = {
        "Stage": about["stage"],
        "Name": about.get("name"),
        "Dataset": about.get("dataset"),
        "Seed": about.get("seed"),
        "Device": about.get("device"),
        "Started": (about.get("created") or "")[:16].replace("T", " ") + " UTC",
        "Finished": about["finished"][:16].replace("T", " ") + " UTC" if about.get("finished") else None,
        "Sessions": f"{len(sessions)} (it was stopped and went on)" if len(sessions) > 1 else None,
        "Commit": (about.get("commit") or "not from a git checkout") + (" with edits" if about.get("dirty") else ""),
    }
    return render(
        "runs/details.html",
        run_id=about["run_id"],
        **_state(status),
        headline=headline,
        error=about.get("error"),
        stage=about["stage"],
        url=card,
        facts=facts,
        above=above,
        below=below,
        command=command(about.get("command")),
        departures=_departures(about),
        summary=flat(about["summary"]) if about.get("summary") else None,
        log=log,
        versions=about.get("versions") or {},
    )


def _departures(about: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Setting, value here, default."""
    defaults = flat(Config().to_dict())
    return [
        (key, _value(value), _value(defaults.get(key)))
        for key, value in _given(about).items()
        if defaults.get(key) != value
    ]


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A nested mapping by dotted key; empty ones and None are left out."""
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs |= flat(value, f"{above}{key}.")
        elif value is not None and value != []:
            pairs[f"{above}{key}"] = value
    return pairs


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def comparison(
    abouts: Sequence[Mapping[str, Any]],
    statuses: Mapping[str, str],
    results: Mapping[Any, Result | None],
    ends: pd.DataFrame,
) -> str:
    """Two or more runs side by side: their numbers, what stands between each and the first one on the clips that both
    answered, and the settings in which they differ. `results`: rows of `progress.accuracies` → their results."""
    if len(abouts) < 2:
        return ""
    ids = [about["run_id"] for about in abouts]
    numbers: dict[str, dict[str, str]] = {
        "stage": {about["run_id"]: about["stage"] for about in abouts},
        "status": {run_id: statuses[run_id] for run_id in ids},
    }
    for name, scores in _by_answer(results).items():
        for run_id, (score, result) in scores.items():
            right = None if result is None else result.share(result.right_C)
            values = numbers.setdefault(f"right on {name}", {})
            values[run_id] = f"{percent(score.right / score.n, 1)} of {score.n}" + (
                "" if right is None else within(right)
            )
        first = next((run_id for run_id in ids if run_id in scores), "")
        for run_id in (run_id for run_id in ids if run_id in scores and run_id != first):
            if difference := _difference(scores[first][1], scores[run_id][1]):
                numbers.setdefault(f"against {first}, {name}", {})[run_id] = difference
    rows = ends[ends["run_id"].isin(ids)]
    for key, title in _SHOWN_NUMBERS.items():
        for row in rows[rows["name"] == key].to_dict("records"):
            numbers.setdefault(f"{title}, first → last quarter", {})[row["run_id"]] = (
                f"{row['first']:.3g} → {row['last']:.3g}"
            )
    lines = [[name, *(values.get(run_id, "–") for run_id in ids)] for name, values in numbers.items()]
    settings = [_given(about) | {key: about.get(key) for key in ("seed", "commit", "parent")} for about in abouts]
    differing = [
        [key, *values]
        for key in dict.fromkeys(key for s in settings for key in s)
        if len(set(values := [_value(s.get(key)) for s in settings])) > 1
    ]
    return render("runs/comparison.html", heads=["", *ids], numbers=lines, settings=differing)


def _by_answer(results: Mapping[Any, Result | None]) -> dict[str, dict[str, tuple[Any, Result | None]]]:
    """Split and label in words → run → its score and result; with the system where a run has several."""
    systems: dict[str, set[str]] = {}
    for score in results:
        systems.setdefault(score.run_id, set()).add(score.system)
    answers: dict[str, dict[str, tuple[Any, Result | None]]] = {}
    for score, result in results.items():
        name = f"{score.split}, {shown(score.method)}"
        name += f" of {score.system}" if len(systems[score.run_id]) > 1 else ""
        answers.setdefault(name, {})[score.run_id] = (score, result)
    return answers


def _difference(before: Result | None, after: Result | None) -> str:
    """In points, with its interval and McNemar's p; "" where there is nothing to compare."""
    if before is None or after is None or not (compared := Comparison.of(before, after)).n:
        return ""
    points = f"{number(compared.accuracy.value, sign=True)} points{within(compared.accuracy, sign=True)}"
    return f"{points}, {p_value(compared.flips.p_value)}, n {compared.n}"


def _given(about: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that a run has on file, by dotted key."""
    settings = flat({**about["config"], **(about.get("settings") or {})})
    settings.pop("workbench", None)
    return settings


# Training


def health(remarks: Iterable[Remark]) -> str:
    return render("runs/health.html", remarks=list(remarks))


def no_choice() -> str:
    return empty("No run is chosen.", "Choose one above, or click its id in the table of runs.")


def no_curves(run_id: str) -> str:
    if not run_id:
        return no_choice()
    return empty(
        "This run logged no training step.", "Cold start, GRPO and calibrate do; choose one of those runs above."
    )


# Jobs


_OF = re.compile(r"(\d+)\s*/\s*(\d+)(?:\s+(\d+:\d\d(?::\d\d)?))?")


def done_of(line: str) -> tuple[float, str] | None:
    """How far the last line of a job says that it is: the share, and that in words with the time left; None where it
    says no such thing."""
    match = _OF.search(line)
    if match is None or not 0 <= int(match[1]) <= int(match[2]) or match[2] == "0":
        return None
    rest = f", {match[3]} left" if match[3] and match[1] != match[2] else ""
    return int(match[1]) / int(match[2]), f"{int(match[1]):,} of {int(match[2]):,}{rest}"


def jobs_table(jobs: Sequence[Job], job_id: str) -> str:
    rows = [
        {
            "id": job.id,
            "title": job.title,
            "status": job.status,
            "kind": KINDS.get(job.status, "plain"),
            "meaning": STATUSES[job.status],
            "progress": job.progress[-160:],
            "done": done_of(job.progress) if job.active else None,
            "user": job.user,
            "begun": when(job.created),
            "took": took(((job.ended or datetime.now(UTC)) - job.started).total_seconds()) if job.started else "–",
        }
        for job in jobs
    ]
    return render("runs/jobs.html", jobs=rows, chosen=job_id)


def job(job: Job, log: str) -> str:
    meaning = STATUSES[job.status] + (f" (exit code {job.exit_code})" if job.status == "failed" else "")
    kind = KINDS.get(job.status, "plain")
    return render("runs/job.html", job=job, kind=kind, meaning=meaning, log=log, command=shlex.join(job.command))


def preview(words: Sequence[str], changed: Mapping[str, Any]) -> str:
    """What would be started, in words."""
    command = shlex.join(["deepintuit", *words]).replace("{job}", "…")
    return render(
        "runs/preview.html", command=command, settings=[(key, _value(value)) for key, value in changed.items()]
    )


def left_out(problems: Sequence[tuple[str, str]]) -> str:
    """What is in no table, since its file is damaged."""
    return render("runs/problems.html", problems=[f"{source} is left out: {problem}" for source, problem in problems])


def problem(error: Exception | str) -> str:
    return note(error, "runs problem", "alert")


def settings_help(settable: Mapping[str, str], stage: str) -> str:
    """The settings of a stage that can be changed here, with their meaning."""
    sections = {"report": ("evaluate",), "demo": ("teach", "coldstart", "grpo", "calibrate", "evaluate")}.get(
        stage, (stage,)
    )
    names = (*sections, "clips", "video", "prompt", "sampling", "model")
    rows = [(key, meaning) for section in names for key, meaning in settable.items() if key.split(".")[0] == section]
    return render("runs/help.html", settings=rows)


def queue_note() -> str:
    text = (
        "One job runs at a time, since two on one machine are each many times slower; the next ones wait in this list. "
        "A job keeps running when this page or the dashboard is closed. "
        "What is stopped resumes where it stopped when it is started again."
    )
    return note(text, "runs soft")


def card_address(workbench: Workbench, run_id: str) -> str | None:
    return f"media/card/{run_id}" if (workbench.path / "reports" / f"{run_id}.html").is_file() else None
