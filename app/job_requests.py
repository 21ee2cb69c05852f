"""What the page may start: a stage with run ids and typed settings, checked before anything runs.

    request = checked(workbench, "grpo", base="run:coldstart-…", changes="grpo.group = 4")
    jobs.launch(workbench.path, request.command, files=request.files, stage=request.stage, title=request.title)

A command is a list of words built here, never a text for a shell. Settings begin with those of a stored run or of a
shipped file; a user may change numbers, switches, choices, and a few names. What names a file, an address or an
environment variable stays with the command line: who may open this page need not be allowed to read the server's disk.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from deepintuit import config
from deepintuit.config import Config
from deepintuit.errors import ConfigError, StoreError, nearest
from deepintuit_analysis import Workbench

NEWEST = "newest"
"""In place of a run: the newest finished one that fits when the job's turn comes."""

STAGES = {
    "teach": "write teacher traces for the cold-start clips",
    "coldstart": "imitate teacher traces",
    "grpo": "refine by rule rewards on sampled traces",
    "calibrate": "learn from the model's own traces when to trust them",
    "evaluate": "score a system: provisional and calibrated labels, with controls",
    "report": "write the card of all evaluations of a dataset",
    "demo": "everything once, from rendered clips to the table",
}
INPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "coldstart": {"teacher": ("teach",)},
    "grpo": {"start": ("coldstart", "grpo")},
    "calibrate": {"reasoner": ("grpo", "coldstart")},
    "evaluate": {"reasoner": ("grpo", "coldstart", "zero-shot", "baselines"), "calibrator": ("calibrate",)},
}
"""Stage → option → the stages whose runs it takes, and the words that stand for none."""

_WORDS = ("zero-shot", "baselines")
_FREE_TEXT = ("clips.text_fields", "clips.notes_shown", "coldstart.splits", "teach.model")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class JobRequest:
    """A job that may be started. `{job}` in the command is the folder that `files` are written to."""

    stage: str
    title: str
    command: list[str]
    files: dict[str, str]
    config: Config


def bases(workbench: Workbench) -> list[tuple[str, str]]:
    """Where settings can begin, as (shown, value): stored runs, newest first, shipped files, the method's defaults."""
    runs = [(f"as run {run.id}", f"run:{run.id}") for run in reversed(workbench.runs())]
    files = [
        (f"configs/{path.name}", f"file:{path.stem}")
        for path in sorted(config.CONFIGS.glob("*.toml"), key=lambda path: path.stem != "tiny")
    ]
    return [*runs, *files, ("the method's defaults", "defaults")]


def candidates(workbench: Workbench, stage: str, option: str, dataset: str) -> list[str]:
    """Finished runs of this dataset that an option takes, newest first, and the words that it takes."""
    stages = INPUTS.get(stage, {}).get(option, ())
    runs = [
        run.id
        for run in reversed(workbench.runs(finished=True))
        if run.stage in stages and dataset in ("", run.about["dataset"])
    ]
    return runs + [word for word in stages if word in _WORDS]


def checked(
    workbench: Workbench,
    stage: str,
    *,
    base: str = "defaults",
    changes: str = "",
    dataset: str = "",
    seed: str = "",
    inputs: Mapping[str, str] | None = None,
    name: str = "",
    full: bool = False,
    dry: bool = False,
) -> JobRequest:
    """Check everything and give the request. ConfigError or StoreError for what the stage could not run with.

    `changes`: one `section.key = value` a line. `inputs`: option → run id, one of its words, or `NEWEST`.
    """
    if stage not in STAGES:
        raise ConfigError(
            f"stage {stage!r}", f"there are {', '.join(STAGES)}", f"Nearest: {nearest(str(stage), STAGES) or 'demo'!r}"
        )
    text, more = _text(workbench, base), _more(dataset, seed)
    settings = config.loads(text, [*_sets(changes), *more], "the settings to begin with")
    _refuse_closed(config.loads(text, more), settings)
    settings = settings.replace(workbench=str(workbench.path))
    command = [
        sys.executable,
        "-m",
        "deepintuit.cli",
        stage,
        "--config={job}/config.toml",
        f"--workbench={workbench.path}",
    ]
    title = [f"{stage} on {settings.clips.dataset or 'homecam'}"]
    for option, run in (inputs or {}).items():
        if run and run != NEWEST and option in INPUTS.get(stage, {}):
            options = candidates(workbench, stage, option, settings.clips.dataset)
            if run not in options:
                raise ConfigError(
                    f"{option} {run!r}",
                    "it is no finished run of this dataset that the stage can begin with",
                    f"Nearest: {nearest(run, options)!r}" if nearest(run, options) else "Choose one of the list",
                )
            command.append(f"--{option}={run}")
            title.append(f"{option} {run}")
    if name and stage in ("coldstart", "grpo", "calibrate", "evaluate"):
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"name {name!r}", "it becomes part of a folder's name", "Use up to 40 small letters, digits and hyphens"
            )
        command.append(f"--name={name}")
    if full and stage == "demo":
        command.append("--full")
    if dry:
        command.append("--dry-run")
        title.append("dry run")
    return JobRequest(stage, ", ".join(title), command, {"config.toml": tomli_w.dumps(settings.told())}, settings)


def refuse_unless_stage(command: Sequence[str]) -> None:
    """StoreError for what `checked` never gives: the file of a job may come from somebody else."""
    if [*command[:3]] != [sys.executable, "-m", "deepintuit.cli"] or not {*command[3:4]} & {*STAGES}:
        raise StoreError(
            f"this job ran {' '.join(map(str, command[:4]))!r:.80}",
            "a page starts stages with the Python that it runs in, and no other command that a file names",
            "Start it from the command line, or ask for the stage anew",
        )


def changed(settings: Config) -> dict[str, Any]:
    """Departures from the method's defaults by dotted key, the workbench's place aside."""
    changes = {}
    for section, value in settings.departures().items():
        changes |= (
            {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {section: value}
        )
    changes.pop("workbench", None)
    return changes


def settable() -> dict[str, str]:
    """What the page may change: dotted key → meaning."""
    return {
        f"{section}.{key}": meaning for section, key, _, meaning in config.describe() if section and _open(section, key)
    }


def _open(section: str, key: str) -> bool:
    field = config.field_of(f"{section}.{key}")
    typed = not isinstance(field.default, str | tuple) or config.choices_of(field)
    return bool(typed) or f"{section}.{key}" in _FREE_TEXT


def _sets(changes: str) -> list[str]:
    lines = (line.strip() for line in changes.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _refuse_closed(before: Config, after: Config) -> None:
    """Whatever way it was written: what the page may not change has not changed."""
    for section, key, _, _ in config.describe():
        if section and not _open(section, key):
            was, value = (getattr(getattr(settings, section), key) for settings in (before, after))
            if was != value:
                raise ConfigError(
                    f"{section}.{key} = {value!r} cannot be set from this page",
                    "it names a file, an address, a device or a dataset of the server",
                    "Choose the dataset above, begin with a run that has it, or use the command line",
                )


def _more(dataset: str, seed: str) -> list[str]:
    return ([f"clips.dataset={json.dumps(dataset)}"] if dataset else []) + ([f"seed={seed}"] if seed else [])


def _text(workbench: Workbench, base: str) -> str:
    """The settings to begin with, as TOML."""
    kind, _, name = base.partition(":")
    if kind == "run":
        about = workbench.run(name).about
        saved = config.known(about.get("settings") or about["config"])
        return tomli_w.dumps(Config.model_validate(saved).told())
    shipped = {path.stem: path for path in config.CONFIGS.glob("*.toml")}
    if kind == "file" and name in shipped:
        return shipped[name].read_text(encoding="utf-8")
    if base == "defaults":
        return ""
    raise ConfigError(f"settings {base!r}", "no run, file or default is called so", "Choose one of the list")
