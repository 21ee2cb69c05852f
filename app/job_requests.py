"""What the page may start: a stage with run ids and typed settings, checked before anything runs.

    request = checked(workbench, "grpo", base="run:coldstart-…", changes="grpo.group = 4")
    jobs.launch(workbench.path, request.command, files=request.files, stage=request.stage, title=request.title)

A command is a list of words built here, never a text for a shell. Settings begin with those of a stored run or of a
shipped file; a user may change numbers, switches, choices, and a few names. What names a file, an address or an
environment variable stays with the command line, but for a folder to import and a teacher's endpoint, which `sources`
allows or refuses: who may open this page need not be allowed to read the server's disk.
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
from deepintuit_app.sources import TABLES, Sources

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
_RUN_OF = {"teacher": "teacher", "calibrator": "calibrator"}
"""Option → what run.json calls the run; the others are a run's parent."""
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
    teacher: Mapping[str, Any] | None = None,
) -> JobRequest:
    """Check everything and give the request. ConfigError or StoreError for what the stage could not run with.

    `changes`: one `section.key = value` a line. `inputs`: option → run id, one of its words, or `NEWEST`. `teacher`:
    settings of teach, as of `endpoint`.
    """
    if stage not in STAGES:
        raise ConfigError(
            f"stage {stage!r}", f"there are {', '.join(STAGES)}", f"Nearest: {nearest(str(stage), STAGES) or 'demo'!r}"
        )
    text, more = _text(workbench, base), _more(dataset, seed)
    more += [f"teach.{key}={json.dumps(value)}" for key, value in (teacher or {}).items()]
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


def import_of(workbench: Workbench, sources: Sources, source: str, name: str, dry: bool = False) -> JobRequest:
    """The import of a folder or table as a job. ConfigError or DataError for what cannot be imported."""
    path = sources.place(source)
    if not _NAME.fullmatch(name):
        why = "it names the dataset in addresses and files"
        raise ConfigError(f"name {name[:80]!r}", why, "Use up to 40 small letters, digits and hyphens")
    command = [sys.executable, "-m", "deepintuit.cli", "clips", TABLES.get(path.suffix.lower(), "folder")]
    if path.is_dir():
        command[-1] = "folder"
    command += [str(path), f"--name={name}", f"--workbench={workbench.path}"]
    labels = (path if path.is_dir() else path.parent) / "labels.toml"
    command += [f"--labels={labels}"] if labels.is_file() else []
    title = f"clips of {path.name} as {name}" + (", dry run" if dry else "")
    return JobRequest("clips", title, [*command, *(["--dry-run"] if dry else [])], {}, Config())


def endpoint(sources: Sources, address: str, model: str, traces: str = "1") -> dict[str, Any]:
    """Settings of a teacher at an endpoint. ConfigError or TeachError for one that cannot be asked."""
    from deepintuit.endpoint import Endpoint  # not before somebody asks: its client takes half a second to import

    address, model = address.strip().rstrip("/"), model.strip()
    if not model or len(model) > 200 or not traces.strip().isascii() or not traces.strip().isdigit():
        why = "a teacher is a model at its endpoint that writes so many traces for each clip"
        raise ConfigError(f"the model {model[:80]!r} with {traces[:20]!r} traces", why, "Name the model, and a number")
    variable = sources.key_variable(address)
    Endpoint(address, model, key_variable=variable)  # refuses what is no address
    return {"source": "endpoint", "base_url": address, "model": model, "key_variable": variable, "traces": int(traces)}


def rerun(workbench: Workbench, about: Mapping[str, Any]) -> list[str]:
    """The words that make a run again: the command that made it, or, where that made several stages (`demo`) or was no
    command (a notebook), that of its stage with the run's settings and those whose runs it stands on."""
    words, stage = list(about["command"] or ()), about["stage"]
    if stage in words or stage not in STAGES:
        return words
    inputs_of = {**about["config"], "parent": about["parent"]}
    runs = {option: inputs_of.get(_RUN_OF.get(option, "parent")) for option in INPUTS.get(stage, ())}
    if stage == "evaluate" and not runs["reasoner"]:
        runs["reasoner"] = inputs_of["system"] if inputs_of.get("system") in _WORDS else "zero-shot"
    settings_given = _settings(about)
    settings = changed(settings_given)
    for run in filter(None, (inputs_of["parent"], inputs_of.get("calibrator"))):  # what it would take over from them
        for key in changed(_settings(workbench.run(run).about)):
            section, _, name = key.partition(".")
            value = getattr(settings_given, section)
            settings.setdefault(key, getattr(value, name) if name else value)
    if about["name"] and stage != "teach" and runs.get("reasoner") not in _WORDS:
        runs["name"] = about["name"]
    sections = {key: value for key, value in settings.items() if key.split(".")[0] in {*inputs_of, "seed"}}
    sets = [f"--set={key}={json.dumps(value)}" for key, value in sections.items()]
    return ["deepintuit", stage, *(f"--{option}={value}" for option, value in runs.items() if value), *sets]


def _settings(about: Mapping[str, Any]) -> Config:
    return Config.model_validate(config.known(about.get("settings") or about["config"]))


def refuse_unless_stage(command: Sequence[str], workbench: Workbench, sources: Sources) -> None:
    """StoreError for what this module never gives: the file of a job may come from somebody else. An import is checked
    anew."""
    if [*command[3:4]] == ["clips"] and len(command) > 6:
        wish = import_of(workbench, sources, command[5], command[6].removeprefix("--name="), "--dry-run" in command)
        if wish.command == [*command]:
            return
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
        return tomli_w.dumps(_settings(about).told())
    shipped = {path.stem: path for path in config.CONFIGS.glob("*.toml")}
    if kind == "file" and name in shipped:
        return shipped[name].read_text(encoding="utf-8")
    if base == "defaults":
        return ""
    raise ConfigError(f"settings {base!r}", "no run, file or default is called so", "Choose one of the list")
