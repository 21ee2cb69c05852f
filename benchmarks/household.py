"""Claim: on the household each stage gains on the slice that it must earn. Writes the table of docs/worlds.md.

Each seed has clips, held-out circumstances, homes, splits and training of its own, in a workbench of its own, made by
what `deepintuit demo --world household` runs. Resumable: a finished seed lies as `docs/evidence/household-<seed>.json`.

    python benchmarks/household.py --seeds 0 1 --workbench build/household
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from evidence import ROOT, origin, replace_text, write_between
from rich.console import Console

from deepintuit import cli, config
from deepintuit.data import Manifest
from deepintuit.metrics import wilson
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_analysis.numbers import interval, number
from deepintuit_homecam import demo, household

STAGES = ("labels only", "cold start", "cold start + GRPO", "calibrated")
EARNED = {"unseen": STAGES[:2], "exception": STAGES[1:3], "only in the video": STAGES[2:]}
"""Slice → the two stages between which it must gain."""
Rows = dict[str, dict[str, list[int]]]
"""Stage → slice → [right, clips]."""


def measure(seed: int, options: argparse.Namespace) -> dict:
    """One seed, trained where it was not yet: what is right by stage and slice, and the NLL on noise."""
    path = Path(options.workbench) / f"seed-{seed}"
    settings = config.load(config.CONFIGS / "household.toml", [f"seed={seed}", f"workbench={path}", *options.set])
    given = {"fractions": fractions(settings), "progress": False, "console": Console(), "world": "household"}
    runs = demo.run(Workbench(path), settings, labels=True, **given)
    notes = dict(zip(*(Manifest.load(path, "household").frame[name] for name in ("clip_id", "notes"))))
    rows: Rows = {}
    for run in runs:
        found = run.read("predictions").query("control == 'none' and method in ('raw', 'label_likelihood')")
        for (system, method), answers in found.groupby(["system", "method"]):
            stage = system if method == "raw" else "calibrated"
            if stage not in STAGES or (method != "raw" and not run.config["calibrator"]):
                continue
            slices = np.array([notes[clip]["slice"] for clip in answers["clip_id"]])
            right = (answers["predicted"] == answers["true_label"]).to_numpy()
            inside = {name: right[slices == name] for name in household.SLICES} | {"all": right}
            rows[stage] = {name: [int(hits.sum()), len(hits)] for name, hits in inside.items()}
            if stage == "calibrated":
                loss = _nll(answers[slices == "noise"], notes)
    return {**origin(seed, options), "rows": rows, "nll_of_noise": loss}


def _nll(answers, notes: dict) -> dict[str, float]:
    """Mean −log p of the drawn labels: as calibrated, and of one who knows the odds."""
    own = [p[list(names).index(y)] for p, names, y in zip(answers["probs"], answers["labels"], answers["true_label"])]
    known = [json.loads(notes[clip]["odds"])[y] for clip, y in zip(answers["clip_id"], answers["true_label"])]
    return {"calibrated": float(-np.log(own).mean()), "odds": float(-np.log(known).mean()), "n": len(own)}


def page(seeds: list[dict]) -> str:
    """The tables, all seeds taken together: Wilson's intervals are over clips, not over seeds."""
    commits = ", ".join(sorted({f"`{one['commit']}`" for one in seeds}))
    names = ", ".join(str(one["seed"]) for one in seeds)
    lines = [
        f"Seeds {names}; commit {commits}; `python benchmarks/household.py --seeds {names.replace(',', '')}`.",
        "",
        "Right answers, %, with Wilson's 95 % interval over the clips of all seeds:",
        "",
        "| slice | clips | " + " | ".join(STAGES) + " |",
        "|---|---:|" + "---:|" * len(STAGES),
    ]
    for name in (*household.SLICES, "all"):
        shares = []
        for stage in STAGES:
            hits, n = np.sum([one["rows"][stage][name] for one in seeds], axis=0)
            share = wilson(hits, n)
            shares.append(f"{number(share.value)} ({interval(share)})")
        lines.append(f"| {name} | {n} | " + " | ".join(shares) + " |")
    heads = [f"all, {stage}" for stage in STAGES] + [f"{name}: {b} → {a}" for name, (b, a) in EARNED.items()]
    lines += ["", "By seed:", "", f"| seed | {' | '.join(heads)} |", "|---:|" + "---:|" * len(heads)]
    for one in seeds:
        share = {s: {k: 100 * a / n for k, (a, n) in by.items()} for s, by in one["rows"].items()}
        overall = " | ".join(f"{share[stage]['all']:.1f}" for stage in STAGES)
        earned = " | ".join(f"{share[b][name]:.0f} → {share[a][name]:.0f}" for name, (b, a) in EARNED.items())
        lines.append(f"| {one['seed']} | {overall} | {earned} |")
    noise = [one["nll_of_noise"] for one in seeds]
    told = ", ".join(f"{one['calibrated']:.2f} against {one['odds']:.2f} (n = {one['n']})" for one in noise)
    return "\n".join([*lines, "", f"NLL on noise, calibrated against one who knows the odds, by seed: {told}."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--workbench", default="build/household", help="one folder a seed is made in it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    cli.quiet_libraries()
    found = []
    for seed in options.seeds:
        file = ROOT / "docs" / "evidence" / f"household-{seed}.json"
        if not file.exists():
            replace_text(file, json.dumps(measure(seed, options), indent=1) + "\n")
        found.append(json.loads(file.read_text(encoding="utf-8")))
    write_between(ROOT / "docs" / "worlds.md", "household", page(found))
