"""Claim: on the household each stage gains on the slice that it must earn. Writes the tables of README
and docs/worlds.md.

Each seed has clips, held-out circumstances, homes, splits and training of its own, in a workbench of its own, made by
what `deepintuit demo --world household` runs. Resumable: a finished seed lies as `docs/evidence/household-<seed>.json`.

    python benchmarks/household.py --seeds 0 1 2 --workbench build/household
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from evidence import ROOT, origin, replace_text, write_between
from rich.console import Console

from deepintuit import baselines, cli, config
from deepintuit.data import Manifest
from deepintuit.metrics import mean_of, paired_difference, wilson
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_analysis.numbers import interval, number
from deepintuit_homecam import demo, household

STAGES = ("labels only", "cold start", "cold start + GRPO", "calibrated")
COLUMNS = ("probe", "encoder", *STAGES)
"""Of the page's table: beside the stages, what is trained on the labels of all training clips and writes no trace."""
EARNED = {"unseen": STAGES[:2], "exception": STAGES[1:3], "only in the video": STAGES[2:]}
"""Slice → the two stages between which it must gain."""
BESIDE = {
    "majority": "majority class",
    "encoder": "a small VideoMAE of random weights, trained on the labels of all training clips",
    "probe": "a linear probe of the frozen tower",
    "text_only": "a classifier of the traces' text alone",
    "trace_swapped_alike": "calibrated, with another clip's trace of the same conclusion",
    "video_swapped": "calibrated, with another clip's video",
}
"""Baseline or control → as the page calls it."""
Right = dict[str, dict[str, str]]
"""Stage → slice → a digit a clip, 1 where its label is right; the clips of a slice come in one order everywhere."""


def measure(seed: int, options: argparse.Namespace) -> dict:
    """One seed, trained where it was not yet: what is right by stage and slice, what stands beside the stages, and the
    NLL on noise."""
    path = Path(options.workbench) / f"seed-{seed}"
    settings = config.load(config.CONFIGS / "household.toml", [f"seed={seed}", f"workbench={path}", *options.set])
    given = {"fractions": fractions(settings), "progress": False, "console": Console(), "world": "household"}
    runs = [*demo.run(Workbench(path), settings, labels=True, **given)]
    runs += [baseline(Workbench(path), settings, progress=False) for baseline in (baselines.probe, baselines.encoder)]
    frame = Manifest.load(path, "household").frame.set_index("clip_id")
    right: Right = {}
    beside = {}
    for run in runs:
        found = run.read("predictions").set_index("clip_id")
        for (system, method, control), answers in found.groupby(["system", "method", "control"]):
            hits = (answers["predicted"] == answers["true_label"]).sort_index()
            name = system.split(" (")[0] if control == "none" else control
            if name in BESIDE and (method == "raw" or control != "none"):
                beside[name] = [int(hits.sum()), len(hits)]
            calibrated = method == "label_likelihood" and run.config.get("calibrator")
            stage = "calibrated" if calibrated else system.split(" (")[0] if method == "raw" else None
            if stage not in COLUMNS or control != "none":
                continue
            right[stage] = digits(hits, frame["notes"])
            if stage == "calibrated":
                noisy = [clip for clip in hits.index if frame["notes"][clip]["slice"] == "noise"]
                loss = losses(answers.loc[noisy], frame["notes"])
    return {**origin(seed, options), "right": right, "beside": beside, "nll_of_noise": loss}


def digits(hits_C: pd.Series, notes: pd.Series) -> dict[str, str]:
    """Slice → a digit a clip, in the order of their ids; both by clip id."""
    hits_C = hits_C.sort_index().astype(int)
    slices = np.array([notes[clip]["slice"] for clip in hits_C.index])
    return {name: "".join(map(str, hits_C[slices == name])) for name in household.SLICES}


def losses(answers: pd.DataFrame, notes: pd.Series) -> dict[str, float]:
    """Mean −log p of the drawn labels: as calibrated, and of one who knows the odds."""
    own = [p[list(names).index(y)] for p, names, y in zip(answers["probs"], answers["labels"], answers["true_label"])]
    known = [json.loads(notes[clip]["odds"])[y] for clip, y in zip(answers.index, answers["true_label"])]
    return {"calibrated": float(-np.log(own).mean()), "odds": float(-np.log(known).mean()), "n": len(own)}


def _share(hits: int, n: int) -> str:
    share = wilson(hits, n)
    return f"{number(share.value)} ({interval(share)})"


def hits_of(found: Sequence[Right], system: str, name: str = "all") -> np.ndarray:
    """One place a clip of all seeds, in the same order for every system: 1 right, 0 wrong."""
    slices = household.SLICES if name == "all" else (name,)
    return np.array([int(digit) for one in found for part in slices for digit in one[system][part]])


def slice_rows(found: Sequence[Right], systems: Sequence[str]) -> list[str]:
    """Slices × systems in Markdown, all seeds taken together: Wilson's intervals are over clips, not over seeds."""
    lines = ["| slice | clips | " + " | ".join(systems) + " |", "|---|---:|" + "---:|" * len(systems)]
    for name in (*household.SLICES, "all"):
        hits = [hits_of(found, system, name) for system in systems]
        shares = [_share(int(right.sum()), len(right)) for right in hits]
        cells = [name, str(len(hits[0])), *shares]
        lines.append("| " + " | ".join(f"**{cell}**" if name == "all" else cell for cell in cells) + " |")
    return lines


def step(found: Sequence[Right], before: str, after: str, name: str = "all") -> str:
    """What one system gains on another, paired by clip, in points."""
    ours, theirs = (hits_of(found, system, name) for system in (after, before))
    gain = paired_difference(mean_of(ours), mean_of(theirs), len(ours))
    return f"{before} → {after} {number(gain.value, sign=True)} ({interval(gain, sign=True)})"


def made_by(seeds: Sequence[dict], command: str) -> str:
    """Seeds, commits and command, as a table's first line says them."""
    commits = ", ".join(sorted({f"`{one['commit'][:7]}`" for one in seeds}))
    names = [str(one["seed"]) for one in seeds]
    listed = f"seed{'s' * (len(names) > 1)} {', '.join(names)}"
    return f"{listed} (commit {commits}, `python benchmarks/{command} --seeds {' '.join(names)}`)"


def table(seeds: list[dict], columns: Sequence[str] = COLUMNS) -> str:
    """What each of these columns reaches on each slice, the paired steps between stages, and what stands beside
    them."""
    found = [one["right"] for one in seeds]
    lines = [
        f"Right answers, %, with Wilson's 95 % interval over the clips of {made_by(seeds, 'household.py')}:",
        "",
        *slice_rows(found, columns),
    ]
    steps = [step(found, before, after) for before, after in itertools.pairwise(STAGES)]
    others = [
        f"{words} {_share(*np.sum([one['beside'][name] for one in seeds], axis=0))}" for name, words in BESIDE.items()
    ]
    return "\n".join([*lines, "", f"Paired, in points: {', '.join(steps)}.", "", f"Beside them: {'; '.join(others)}."])


def by_seed(seeds: list[dict]) -> str:
    """What one seed says, and another does not."""
    heads = [f"all, {stage}" for stage in COLUMNS] + [f"{name}: {b} → {a}" for name, (b, a) in EARNED.items()]
    lines = ["By seed:", "", f"| seed | {' | '.join(heads)} |", "|---:|" + "---:|" * len(heads)]
    for one in seeds:
        right = [one["right"]]
        overall = " | ".join(f"{100 * hits_of(right, stage).mean():.1f}" for stage in COLUMNS)
        pairs = [[100 * hits_of(right, stage, name).mean() for stage in pair] for name, pair in EARNED.items()]
        lines.append(f"| {one['seed']} | {overall} | {' | '.join(f'{b:.0f} → {a:.0f}' for b, a in pairs)} |")
    noise = [one["nll_of_noise"] for one in seeds]
    told = ", ".join(f"{one['calibrated']:.2f} against {one['odds']:.2f} (n = {one['n']})" for one in noise)
    return "\n".join([*lines, "", f"NLL on noise, calibrated against one who knows the odds, by seed: {told}."])


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """What every script that makes tables of the household is told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workbench", default="build/household", help="one folder a seed is made in it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


if __name__ == "__main__":
    options = parser_of(__doc__).parse_args()
    cli.quiet_libraries()
    found = []
    for seed in options.seeds:
        file = ROOT / "docs" / "evidence" / f"household-{seed}.json"
        if not file.exists():
            replace_text(file, json.dumps(measure(seed, options), indent=1) + "\n")
        found.append(json.loads(file.read_text(encoding="utf-8")))
    write_between(ROOT / "docs" / "worlds.md", "household", f"{table(found)}\n\n{by_seed(found)}")
    write_between(ROOT / "README.md", "household", table(found, STAGES))
