"""The household as a benchmark for any model: a folder for Hugging Face `datasets`, and a task of lmms-eval that scores
a local or served model on it.

    benchmark.write("household", train=600, test=320, seed=0)

    README.md             the dataset's card
    benchmark.json        prompt, labels, policies, best reachable rates, and what made it
    train/ validation/ test/    MP4s, and `metadata.jsonl` with a row for each: label, slice, odds, home, stage, facts
    lmms_eval/            `deepintuit_household.yaml` and the functions that it names
"""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

import deepintuit
from deepintuit import config, disk, labels
from deepintuit.config import CONFIGS
from deepintuit.errors import ConfigError
from deepintuit.runs.run import provenance
from deepintuit.schedule import fractions
from deepintuit_homecam import demo
from deepintuit_homecam.household import LABELS, SLICES
from deepintuit_homecam.policies import POLICIES

HERE = Path(__file__).parent
ABOUT = "benchmark.json"
COLUMNS = "file_name clip_id label slice odds home stage seconds frames facts".split()
TESTS = {
    "plain": "policies in circumstances that training clips have: the floor",
    "unseen": "the same policies in combinations of light, indoors or outdoors, actor and act of no training clip",
    "at a glance": "a dog: one look decides, and thinking is not needed",
    "exception": "rare policies that overrule others",
    "only in the video": "a box that merely stands by decides, which a description easily leaves out",
    "noise": "the label is a matter of opinion, drawn with known odds",
    "hard to see": "strong grain, something in the way, and a moment cut short",
}
"""Slice → what it tests."""


def rates_of(clips: pd.DataFrame, majority: str) -> dict[str, dict[str, float]]:
    """Slice, or `all` → its clips and what can be reached there. `clips` has `slice`, `label` and `odds`.

    `best_accuracy` and `best_nll` (nats) are expected of one who knows the odds; `drawn_accuracy` and `drawn_nll` what
    the same one has on these labels, which were drawn once; `majority` is the accuracy of that label.
    """
    best_C = [max(odds.values()) for odds in clips["odds"]]
    likelihood_C = [odds[label] for odds, label in zip(clips["odds"], clips["label"])]
    rates = clips[["slice"]].assign(
        clips=1,
        best_accuracy=best_C,
        best_nll=[sum(p * math.log(1 / p) for p in odds.values() if p) for odds in clips["odds"]],
        drawn_accuracy=np.equal(likelihood_C, best_C),
        drawn_nll=-np.log(likelihood_C) + 0.0,
        majority=clips["label"] == majority,
    )
    of = pd.concat([rates, rates.assign(slice="all")]).groupby("slice")
    table = of.mean().assign(clips=of.size()).reindex([*SLICES, "all"]).dropna().astype({"clips": int})
    return table.to_dict("index")


def write(out: Path, *, train: int, test: int, seed: int = 0, jobs: int = 1, progress: bool = True) -> None:
    """Write the folder, whole or not at all; clips of an attempt that was stopped are not rendered again.

    The clips and splits are those of `deepintuit demo` with the same numbers and seed. The same command at the same
    commit writes the same bytes. ConfigError where something else is in its place.
    """
    out, origin = out.resolve(), origin_of(train, test, seed)
    part = out.parent / f".{out.name}.part"
    with disk.naming(out):
        if is_there(out, origin):
            return
        with disk.Lock(part / "lock"):
            workbench = disk.entry(part, "", list(origin.values()))  # other code may draw other clips of these names
            settings = config.load(CONFIGS / "household.toml").replace(workbench=str(workbench), seed=seed)
            shares = fractions(settings)
            extras = {"jobs": jobs, "progress": progress, "fractions": shares, "world": "household"}
            manifest = demo.clips(settings, train, test, **extras)
            whole = part / "whole"
            shutil.rmtree(whole, ignore_errors=True)
            _fill(whole, rows_of(manifest.frame), origin)
            disk.fsync_tree(whole)
            if not is_there(out, origin):
                os.rename(whole, out)
                disk.fsync_folder(out.parent)
            shutil.rmtree(part)


def origin_of(train: int, test: int, seed: int) -> dict[str, Any]:
    """What two benchmarks have in common that are the same. ConfigError for numbers of which none can be made."""
    if train < 8 or test < 1 or seed < 0:
        raise ConfigError(
            f"{train} clips of train and validation, {test} of test, seed {seed}",
            "the four stages of training and test need clips of their own, and a seed counts from 0",
            "Ask for 8 or more to train, 1 or more to test, and a seed of 0 or more",
        )
    command = f"deepintuit benchmark OUT --seed {seed} --train {train} --test {test}"
    code = provenance()
    return {"command": command, "version": deepintuit.__version__, "commit": code["commit"], "edited": code["dirty"]}


def is_there(out: Path, origin: dict[str, Any]) -> bool:
    """Whether `out` holds the benchmark of this origin, all its clips included. ConfigError where something else is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    why, todo = "it is not empty, and nothing that is there may be lost", "Name one that is not there yet"
    try:
        present = json.loads((out / ABOUT).read_text(encoding="utf-8"))["origin"]
        lost = [file for file in _files(out) if not file.is_file()]
        if present == origin and not lost:
            return True
        of, now = ("{command} at version {version}, commit {commit}".format(**about) for about in (present, origin))
        why = f"it holds {of}, and this would be {now}" + (" with edits" if origin["edited"] else "")
        if present == origin:
            why, todo = f"{len(lost)} of its clips are gone, {lost[0].name} first", f"Remove it, or {todo.lower()}"
    except (OSError, ValueError, LookupError, TypeError):
        pass  # not ours
    raise ConfigError(f"the folder {str(out)!r}", why, todo)


def _files(out: Path) -> list[Path]:
    lines = ((table, line) for table in out.glob("*/metadata.jsonl") for line in table.open(encoding="utf-8"))
    return [table.parent / json.loads(line)["file_name"] for table, line in lines]


def rows_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a manifest as the benchmark has them: `split` is train, validation or test, and `stage` the split
    that our stages know; `odds` holds every label."""
    frame = frame[frame["split"].notna()].sort_values("source")
    notes = pd.DataFrame(list(frame["notes"]), index=frame.index)
    return frame.assign(
        stage=frame["split"],
        split=frame["split"].where(frame["split"].isin(["validation", "test"]), "train"),
        file_name=frame["path"].map(lambda path: Path(path).name),
        slice=notes["slice"],
        odds=notes["odds"].map(lambda odds: dict.fromkeys(LABELS, 0.0) | json.loads(odds)),
        home=frame["group"],
        seconds=frame["seconds"].round(3),
        facts=notes["facts"].map(json.loads),
    )


def _fill(folder: Path, rows: pd.DataFrame, origin: dict[str, Any]) -> None:
    parts = {split: rows[rows["split"] == split] for split in ("train", "validation", "test")}
    majority = parts["train"]["label"].mode()[0]
    for split, clips in parts.items():
        (folder / split).mkdir(parents=True)
        for path in clips["path"]:
            shutil.copyfile(path, folder / split / Path(path).name)
        lines = (json.dumps(row) + "\n" for row in clips[COLUMNS].to_dict("records"))
        (folder / split / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    policies = [{"words": p.words, "kind": p.kind, "odds": p.odds} for p in POLICIES]
    about = {
        "origin": origin,
        "prompt": _text("prompt.txt", labels=LABELS, policies=policies).strip(),
        "labels": {label: LABELS.definitions[label] for label in LABELS},
        "aliases": LABELS.aliases,
        "answers": {labels.normalise(word): LABELS.resolve(word) for word in [*LABELS, *LABELS.aliases]},
        "policies": policies,
        "slices": TESTS,
        "majority": majority,
        "rates": {split: rates_of(clips, majority) for split, clips in parts.items()},
    }
    disk.write_json(folder / ABOUT, about)
    (folder / "lmms_eval").mkdir()
    (folder / "README.md").write_text(_text("card.md", rows=rows, **about), encoding="utf-8")
    task = folder / "lmms_eval" / "deepintuit_household.yaml"
    task.write_text(_text("task.yaml", **about), encoding="utf-8")
    task.with_name("scoring.py").write_text(_standing_alone(HERE / "scoring.py"), encoding="utf-8")


def _text(name: str, **values: Any) -> str:
    templates = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return templates.from_string((HERE / name).read_text(encoding="utf-8")).render(values)


def _standing_alone(path: Path) -> str:
    """The functions of the task without this package: what they import of it stands in the text."""
    constants = (f"{name} = {getattr(labels, name)!r}\n" for name in ("_QUOTES", "_FINAL", "_LONGEST"))
    source = "import unicodedata\n\n" + "".join(constants) + "\n\n" + inspect.getsource(labels.normalise) + "\n"
    return path.read_text(encoding="utf-8").replace("\nfrom deepintuit.labels import normalise\n", source)
