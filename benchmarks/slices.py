"""Claim: what thinking when needed, rewards for seeing apart from reasoning, other calibrators, a budget of thought,
more frames and worse pictures do to the household's stages, slice by slice. Writes tables of docs/worlds.md.

    python benchmarks/slices.py quick --seeds 0 1 2        the model of labels alone answers, the other thinks
    python benchmarks/slices.py thinking --seeds 0         quick answer and thought by one model (VideoAuto-R1)
    python benchmarks/slices.py processes --seeds 0        PA-GRPO against GRPO of as many updates (VideoP2R)
    python benchmarks/slices.py calibrators --seeds 0 1 2  fewer passes, and labels that are not quite certain
    python benchmarks/slices.py budget --seeds 0 1 2       thoughts closed after so many tokens (DeepIntuit, figure 7)
    python benchmarks/slices.py frames --seeds 0 1 2       other numbers of frames than in training
    python benchmarks/slices.py distortion --seeds 0 1 2   noise, blur, occlusion and dropped frames

A seed's stages are those of `benchmarks/household.py`, trained where they were not yet; thresholds are chosen on
validation. Resumable: a finished seed lies as `docs/evidence/<table>-household-<seed>.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import evidence
import fingerprint
import household
import numpy as np
import pandas as pd
from evidence import ROOT, replace_text, write_between
from household import Right, digits, slice_rows, step
from rich.console import Console

from deepintuit import calibrate, cli, coldstart, config, evaluate, grpo, teach
from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.metrics import cheapest_threshold, gate_curve
from deepintuit.runs import Run
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_analysis.numbers import number
from deepintuit_analysis.report.thinking import quick_answers
from deepintuit_homecam import demo

evidence.fingerprint = cache(fingerprint.fingerprint)  # half a minute, and the same for every seed


class Found(NamedTuple):
    """Of one seed. `digits`: what is counted → system → slice → a digit a clip; `numbers`: system → name → value."""

    digits: dict[str, Right]
    numbers: dict[str, dict[str, float]]


class Seed:
    """A seed's world with its stages, and further runs on them with settings given as `--set` takes them."""

    def __init__(self, number: int, options: argparse.Namespace):
        self.path = Path(options.workbench) / f"seed-{number}"
        self.workbench = Workbench(self.path)
        self.sets = [f"seed={number}", f"workbench={self.path}", *options.set]
        main = self.settings("evaluate.controls=true")
        given = {"fractions": fractions(main), "progress": False, "console": Console(), "world": "household"}
        _, self.labels_only, _, self.full = demo.run(self.workbench, main, labels=True, **given)
        manifest = Manifest.load(self.path, "household")
        self.labels, self.notes = manifest.labels, manifest.frame.set_index("clip_id")["notes"]

    def settings(self, *sets: str) -> Config:
        return config.load(config.CONFIGS / "household.toml", [*self.sets, "evaluate.controls=false", *sets])

    def evaluated(self, reasoner: str, system: str, *sets: str, calibrator: str | None = None) -> Run:
        given = {"reasoner": reasoner, "calibrator": calibrator, "system": system, "progress": False}
        return evaluate.run(self.workbench, self.settings(*sets), **given)

    def by_slice(self, truths_C: pd.Series) -> dict[str, str]:
        return digits(truths_C, self.notes)


def answers(run: Run, method: str = "raw") -> pd.DataFrame:
    """By clip id: `right`, and `sure`, the highest probability (nan where none was told)."""
    rows = run.read("predictions").query("method == @method and control == 'none'").set_index("clip_id")
    sure = [np.nan if probs is None else max(probs) for probs in rows["probs"]]
    return pd.DataFrame({"right": rows["predicted"] == rows["true_label"], "sure": sure}, rows.index).sort_index()


def greedy(run: Run) -> pd.DataFrame:
    return run.read("traces").query("sample == 0").set_index("clip_id").sort_index()


def threshold_of(columns: pd.DataFrame) -> float:
    """The one that thinks least within half a point of the best accuracy on these clips."""
    names = ("sure", "quick_right", "right", "quick_tokens", "tokens")
    return cheapest_threshold(gate_curve(*(columns[name].astype(float) for name in names)), tolerance=0.005)


def gated(seed: Seed, columns: pd.DataFrame, systems: dict[str, float]) -> Found:
    """What each of these thresholds comes to on the clips of `columns`: system → threshold."""
    right, thought, numbers = {}, {}, {}
    for system, threshold in systems.items():
        thinks = ~((columns["sure"] >= threshold) & (columns["sure"] >= 0))
        right[system] = seed.by_slice(columns["right"].where(thinks, columns["quick_right"]))
        thought[system] = seed.by_slice(thinks)
        tokens = columns["tokens"].where(thinks, columns["quick_tokens"])
        numbers[system] = {"tokens a clip": float(tokens.mean())}
        numbers[system] |= {"threshold": float(threshold)} if 0 < threshold < np.inf else {}
    return Found({"right": right, "thought": thought}, numbers)


def quick(seed: Seed) -> Found:
    """The model of labels alone answers where it is sure, at the temperature of its own; else the reasoner thinks."""
    held = ("evaluate.split=validation",)
    fast = {"validation": seed.evaluated(seed.labels_only.parent, "labels only", *held), "test": seed.labels_only}
    thinking, calibrator = seed.full.parent, seed.full.config["calibrator"]
    slow = {"validation": seed.evaluated(thinking, "cold start + GRPO", *held, calibrator=calibrator)}
    slow["test"] = seed.full
    found = Found({"right": {}, "thought": {}}, {})
    for words, method in (("", "raw"), (", calibrated", "label_likelihood")):
        columns = {}
        for split in fast:
            first = answers(fast[split], "label_likelihood").rename(columns={"right": "quick_right"})
            last = answers(slow[split], method)[["right"]]
            columns[split] = first.join([last, greedy(slow[split])[["tokens"]]]).assign(quick_tokens=0)
        at = {f"when needed{words}": threshold_of(columns["validation"]), f"always{words}": np.inf}
        part = gated(seed, columns["test"], at if words else {"never": 0.0, **at})
        for name, systems in part.digits.items():
            found.digits[name].update(systems)
        found.numbers.update(part.numbers)
    return found


LONGER = ("sampling.max_tokens=192", "grpo.max_tokens=192")
"""A quick answer that is put off takes 33 tokens, and marks of an observation some."""


def thinking(seed: Seed) -> Found:
    """One model gives both answers; its quick one stands where its tokens were sure. A trace that continues has the
    tokens that it has without a gate (benchmarks/gate.py), so that one run of whole traces gives every threshold."""
    base = ("prompt.grammar=answer-think-answer", *LONGER)
    taught = teach.run(seed.workbench, seed.settings(*base), progress=False)
    start = coldstart.run(seed.workbench, seed.settings(*base), teacher=taught.id, progress=False)
    tuned = grpo.run(seed.workbench, seed.settings(*base), start=start.id, progress=False)
    columns = {}
    for split in ("validation", "test"):
        run = seed.evaluated(tuned.id, "cold start + GRPO", *base, f"evaluate.split={split}")
        told = quick_answers(run.read("traces"), seed.labels).set_index("clip_id")
        told = told.rename(columns={"confidence": "sure"})[["sure", "quick_right", "quick_tokens"]]
        missing = {"sure": -1.0, "quick_right": 0.0, "quick_tokens": 0.0}
        columns[split] = answers(run)[["right"]].join([told, greedy(run)[["tokens"]]]).fillna(missing)
    at = {"never": 0.0, "when needed": threshold_of(columns["validation"]), "at 0.97": 0.97, "always": np.inf}
    return gated(seed, columns["test"], at)


def processes(seed: Seed) -> Found:
    """Rewards for seeing apart from those for reasoning, and the answer's alone, from one cold start whose
    observations were judged; the bonus is for lengths as the teacher's."""
    lengths = ("grpo.perception_min=50", "grpo.perception_max=90", "grpo.reasoning_min=35", "grpo.reasoning_max=80")
    base = ("prompt.grammar=observation-think-answer", "judge.source=facts", *LONGER)
    taught = teach.run(seed.workbench, seed.settings(*base), progress=False)
    start = coldstart.run(seed.workbench, seed.settings(*base), teacher=taught.id, progress=False)
    found = Found({"right": {}, "sufficient": {}}, {})
    for system, more in {"cold start": None, "GRPO": ("grpo.process=off",), "PA-GRPO": lengths}.items():
        run = start
        if more is not None:
            run = grpo.run(seed.workbench, seed.settings(*base, *more), start=start.id, progress=False)
        scored = seed.evaluated(run.id, system, *base)
        right, scores = answers(scored)["right"], scored.read("scores").query("name == 'sufficient'")
        clips = greedy(scored).reset_index().set_index("trace_id")["clip_id"]
        enough = pd.Series(scores["value"].to_numpy(bool), clips[scores["trace_id"]])
        found.digits["right"][system] = seed.by_slice(right)
        found.digits["sufficient"][system] = seed.by_slice(enough.reindex(right.index, fill_value=False))
    return found


def under(conditions: dict[str, tuple[str, ...]]) -> Callable[[Seed], Found]:
    """The last reasoner and its calibrator, evaluated under other conditions than those that they were trained in:
    name → settings. Nothing is trained or chosen."""

    def find(seed: Seed) -> Found:
        found = Found({"right": {}, "calibrated": {}}, {})
        given = seed.full.parent, "cold start + GRPO"
        for name, sets in {"as trained": (), **conditions}.items():
            run = seed.evaluated(*given, *sets, calibrator=seed.full.config["calibrator"]) if sets else seed.full
            for counted, method in (("right", "raw"), ("calibrated", "label_likelihood")):
                found.digits[counted][name] = seed.by_slice(answers(run, method)["right"])
            found.numbers[name] = {"tokens a clip": float(greedy(run)["tokens"].mean())}
        return found

    return find


CALIBRATORS = {"2 epochs": ("calibrate.epochs=2",), "1 epoch": ("calibrate.epochs=1",)}
SHOWN = "as shown"


def calibrators(seed: Seed) -> Found:
    """Calibrators of the last reasoner that were trained otherwise than the shown one, on the same traces."""
    found = Found({"calibrated": {}}, {})
    for name, sets in {SHOWN: (), **CALIBRATORS}.items():
        run = seed.full
        if sets:
            made = calibrate.run(seed.workbench, seed.settings(*sets), reasoner=run.parent, progress=False)
            run = seed.evaluated(run.parent, "cold start + GRPO", calibrator=made.id)
        rows = run.read("predictions").query("method == 'label_likelihood' and control == 'none'").set_index("clip_id")
        noisy = [clip for clip in rows.index if seed.notes[clip]["slice"] == "noise"]
        found.digits["calibrated"][name] = seed.by_slice(rows["predicted"] == rows["true_label"])
        losses = {"NLL": rows, "NLL on noise": rows.loc[noisy]}
        found.numbers[name] = {key: household.losses(part, seed.notes)["calibrated"] for key, part in losses.items()}
    return found


BUDGETS = {f"{tokens} tokens": (f"evaluate.thinking_tokens={tokens}",) for tokens in (10, 30, 50, 70)}
FRAMES = {f"{frames} frames": (f"video.frames={frames}",) for frames in (4, 6, 12, 16)}
DISTORTIONS = {kind: (f"evaluate.distortion={kind}",) for kind in ("noise", "blur", "occlusion", "dropped")}


class Table(NamedTuple):
    """`steps`: pairs of systems whose paired difference is told, on these slices."""

    find: Callable[[Seed], Found]
    steps: Sequence[tuple[str, str]]
    slices: Sequence[str]


TABLES = {
    "quick": Table(
        quick, (("always", "when needed"), ("always, calibrated", "when needed, calibrated")), ("all", "at a glance")
    ),
    "thinking": Table(thinking, (("always", "when needed"), ("never", "always")), ("all", "at a glance")),
    **{
        name: Table(under(conditions), [("as trained", condition) for condition in conditions], ("all",))
        for name, conditions in {"budget": BUDGETS, "frames": FRAMES, "distortion": DISTORTIONS}.items()
    },
    "calibrators": Table(calibrators, [(SHOWN, name) for name in CALIBRATORS], ("all", "noise")),
    "processes": Table(processes, (("cold start", "GRPO"), ("GRPO", "PA-GRPO")), ("all", "hard to see")),
}
DIGITS = {"threshold": 3, "NLL": 2, "NLL on noise": 2}
WORDS = {
    "right": "Right answers, %",
    "thought": "Clips that were thought about, %",
    "calibrated": "Right calibrated labels, %",
    "sufficient": "Observations that alone lead to the right answer, %",
}


def page(name: str, seeds: Sequence[dict]) -> str:
    """The Markdown of a table: a table of slices for each thing that is counted, paired steps, numbers by seed."""
    table, lines = TABLES[name], []
    for counted in seeds[0]["digits"]:
        found = [one["digits"][counted] for one in seeds]
        made = household.made_by(seeds, f"slices.py {name}")
        lines += [f"{WORDS[counted]}, with Wilson's 95 % interval over the clips of {made}:", ""]
        systems = list(found[0])
        if counted == "thought":  # always and never are what they say
            systems = [system for system in systems if system.startswith("when needed")]
        lines += [*slice_rows(found, systems), ""]
        if counted != "thought":
            steps = (f"{part}: {step(found, *pair, part)}" for part in table.slices for pair in table.steps)
            lines += [f"Paired, in points: {'; '.join(steps)}.", ""]
    names = list(dict.fromkeys(key for one in seeds for row in one["numbers"].values() for key in row))
    for key in names:
        told = []
        for system in seeds[0]["numbers"]:
            values = [one["numbers"][system][key] for one in seeds if key in one["numbers"][system]]
            if values:
                told.append(f"{system} {', '.join(number(value, 1, DIGITS.get(key, 1)) for value in values)}")
        lines += [f"{key[0].upper()}{key[1:]}, by seed: {'; '.join(told)}.", ""]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    parser = household.parser_of(__doc__)
    parser.add_argument("table", choices=TABLES)
    options = parser.parse_args()
    cli.quiet_libraries()
    results = []
    for seed in options.seeds:
        file = ROOT / "docs" / "evidence" / f"{options.table}-household-{seed}.json"
        if not file.exists():
            found = TABLES[options.table].find(Seed(seed, options))
            made = {**evidence.origin(seed, options), **found._asdict()}
            replace_text(file, json.dumps(made, indent=1) + "\n")
        results.append(json.loads(file.read_text(encoding="utf-8")))
    write_between(ROOT / "docs" / "worlds.md", options.table, page(options.table, results))
