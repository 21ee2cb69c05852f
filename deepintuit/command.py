"""What every command of `deepintuit` is made of: a parser that suggests and explains, the common options, the settings.

Commands of other packages come by entry points of the group `deepintuit.commands`: each is a function `add(commands)`
that adds its parsers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import NoReturn

import tomli_w
from rich.console import Console
from rich.syntax import Syntax

from deepintuit import addresses, config, ranks
from deepintuit.config import Config
from deepintuit.errors import ConfigError, nearest

SECTIONS = {
    "clips": ("clips", "video"),
    "teach": ("teach", "judge", "clips", "prompt", "video", "model", "sampling"),
    "coldstart": ("coldstart", "clips", "prompt", "video", "model"),
    "grpo": ("grpo", "server", "judge", "clips", "prompt", "video", "model", "sampling"),
    "calibrate": ("calibrate", "server", "gate", "clips", "prompt", "video", "model", "sampling"),
    "evaluate": (
        "evaluate",
        "calibrate",
        "server",
        "gate",
        "encoder",
        "judge",
        "clips",
        "prompt",
        "video",
        "model",
        "sampling",
    ),
    "predict": ("server", "gate", "clips", "prompt", "video", "model", "sampling"),
    "attribute": ("model", "video", "sampling"),
    "judge": ("judge", "model", "video", "sampling"),
    "embed": ("model", "video", "clips"),
    "report": ("evaluate",),
    "review": ("clips",),
    "demo": tuple(name for name in Config.model_fields if name not in ("seed", "report_to", "workbench")),
}
"""Command → the sections of settings that it reads, its own first."""

console = Console()


class Parser(argparse.ArgumentParser):
    """Wrong words are a `ConfigError` that suggests the nearest right one; the help ends with an `example`, and
    `--help-settings` lists the settings of the command that `settings` names."""

    verbs: argparse._SubParsersAction

    def __init__(self, *args, example: str = "", settings: str = "", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.example, self.settings = example, settings
        if settings:
            about = "the settings of this command, with defaults and meaning"
            self.add_argument("--help-settings", action=_SettingsHelp, nargs=0, help=about)

    def add_verbs(self, metavar: str = "VERB") -> argparse._SubParsersAction:
        self.verbs = self.add_subparsers(metavar=metavar, required=True, parser_class=Parser)
        return self.verbs

    def format_help(self) -> str:
        example = f"\nexample:\n  deepintuit {self.example}\n" if self.example else ""
        sections = ", ".join(f"[{section}]" for section in SECTIONS.get(self.settings, ()))
        about = textwrap.fill(
            f"settings: of {sections}; `{self.prog} --help-settings` lists them", 80, break_on_hyphens=False
        )
        return super().format_help() + example + (f"\n{about}\n" if sections else "")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"`{self.prog}`", message, f"See `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value) -> None:
        if action.choices is not None and value not in action.choices:
            argument = " ".join([*action.option_strings[-1:], str(value)])
            self._refuse(argument, "invalid choice", str(value), action.choices)

    def parse_known_args(self, args=None, namespace=None):
        parsed, unknown = super().parse_known_args(args, namespace)
        if not unknown:
            return parsed, unknown
        if not unknown[0].startswith("-"):
            self.error(f"{unknown[0]!r} is one word too many")
        options = [name for name in self._option_string_actions if name.startswith("--")]
        self._refuse(unknown[0], "unrecognized argument", unknown[0].partition("=")[0], options)

    def _refuse(self, argument: str, why: str, word: str, names: Iterable[str]) -> NoReturn:
        near = nearest(word, names)
        hint = f"Did you mean {near!r}?" if near else f"See `{self.prog} --help`"
        raise ConfigError(f"`{self.prog} {argument}`", f"{why}, there are {', '.join(names)}", hint)


class _SettingsHelp(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> NoReturn:
        print(settings_help(SECTIONS[parser.settings]).strip("\n"))
        parser.exit()


def settings_help(sections: Sequence[str]) -> str:
    """The settings of these sections: default, choices and meaning, in at most 100 columns."""
    width = min(shutil.get_terminal_size().columns, 100)
    about = "settings, in a --config FILE or by --set SECTION.KEY=VALUE; see docs/training.md:"
    lines = ["", about] if sections else []
    for section in sections:
        lines += ["", f"[{section}]"]
        for _, key, default, meaning in (row for row in config.describe() if row[0] == section):
            assignment = f"{key} = {json.dumps(default)}"
            choices = config.choices_of(config.field_of(f"{section}.{key}"))
            complete = all(choice in meaning for choice in choices)
            text = meaning if complete else f"{' | '.join(choices)}: {meaning}"
            wrapped = textwrap.wrap(text, width - 32, break_on_hyphens=False)
            first = [f"  {assignment:<30}{wrapped.pop(0)}"] if len(assignment) < 30 else [f"  {assignment}"]
            lines += [*first, *(" " * 32 + line for line in wrapped)]
    return "\n".join(lines) + "\n" * bool(lines)


def common(parser: Parser) -> Parser:
    """With the options that every command takes that reads settings."""
    option = parser.add_argument
    option("--config", metavar="FILE", help="TOML with departures from the defaults, e.g. configs/tiny.toml")
    option(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="one departure, e.g. grpo.group=4 (repeatable)"
    )
    option("--seed", type=int, help="same seed, same run")
    workbench_option(parser)
    option("--quiet", action="store_true", help="no progress bars")
    option("--dry-run", action="store_true", help="say what would be done and with which settings, and do nothing")
    return parser


def shard_option(parser: Parser, about: str) -> None:
    parser.add_argument("--shard", metavar="I/N", help=f"{about} of the I-th of N parts of the clips: docs/scale.md")


def positive(text: str) -> int:
    """The number of an option that counts from 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def port(text: str) -> int:
    """The number of an option that names a port; 0: any that is free."""
    if not 0 <= (number := int(text)) < 1 << 16:
        raise ValueError(text)
    return number


def workbench_option(parser: Parser) -> None:
    help_text = "where clips and runs are kept (default: ./workbench, or DEEPINTUIT_HOME)"
    parser.add_argument("--workbench", metavar="DIR", help=help_text)


def settings_of(options: argparse.Namespace) -> Config:
    """The settings of a command line: file, assignments, seed, and the workbench's place."""
    seed = [] if options.seed is None else [f"seed={options.seed}"]
    settings = config.load(options.config, [*options.set, *seed])
    return settings.replace(workbench=named_workbench(options) or settings.workbench)


def named_workbench(options: argparse.Namespace) -> str | None:
    """The workbench that the command line or the environment names."""
    place = options.workbench or os.environ.get("DEEPINTUIT_HOME")
    addresses.refuse_address(place, "a workbench")
    return place


def opened(options: argparse.Namespace, kind: type | None = None):
    """The workbench of a command line, as `runs.Workbench` or another `kind`, and its settings."""
    from deepintuit.runs import Workbench

    settings = settings_of(options)
    return (kind or Workbench)(settings.workbench), settings


def with_dataset(settings: Config) -> Config:
    """The settings with a dataset that is there: when none is named the only one of the workbench, or the only one with
    labels."""
    from deepintuit.data.manifest import Manifest, datasets

    dataset, names = settings.clips.dataset, datasets(settings.workbench)
    if dataset:
        if dataset not in names:
            Manifest.load(settings.workbench, dataset)  # says which are there
        return settings
    candidates = names if len(names) == 1 else datasets(settings.workbench, labelled=True)
    if len(candidates) != 1:
        raise ConfigError(
            "no dataset is named",
            f"the workbench {settings.workbench!r} has {', '.join(names) or 'no clips yet'}",
            "Add --set clips.dataset=NAME"
            if names
            else "Import clips first, e.g. `deepintuit clips folder DIR --name NAME`",
        )
    return settings.replace(clips={"dataset": candidates[0]})


def ended(run) -> int:
    """What is said of a run that a command leaves."""
    if run.waits:
        rest = f"{run.waits}. The one that ends last finishes it, or the command without --shard"
        console.print(f"{run.id} is not finished: {rest}.", markup=False, highlight=False, soft_wrap=True)
    elif ranks.leads():
        console.print(f"[bold]{run.id}[/] is finished.")
    return 0


def print_settings(settings: Config, command: str) -> None:
    """The settings that a command would use, as its dry run shows them."""
    sections = {*SECTIONS[command], "seed", "workbench"}
    tables = {name: value for name, value in settings.to_dict().items() if name in sections}
    console.print("Settings:")
    console.print(Syntax(tomli_w.dumps(tables), "toml", background_color="default"))
    console.print("Nothing was run (--dry-run).")
