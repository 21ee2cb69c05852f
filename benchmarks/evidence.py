"""Claim: the stages in the paper's order on the embedded world, over several seeds, with controls, label sets and the
gain of each class. Writes docs/evidence.md.

Each seed renders clips of its own, draws its own splits, and trains every system anew in a workbench of its own (`demo
--rivals`, or with `--brief` what `demo --full` trains); all choices were made on validation. Resumable: a finished seed
lies as `docs/evidence/homecam-<seed>.json` and is not run again. `--again` reads the finished workbenches of such seeds
once more, for what their files do not hold yet: it trains nothing, and stops where the scores are other ones.

    python benchmarks/evidence.py --seeds 0 1 2 3 4 --workbench evidence
    python benchmarks/evidence.py --seeds 0 1 2 3 4 --workbench evidence --again
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

# As `deepintuit demo`: one thread a process, read when torch is loaded, here and in the processes that this one starts.
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
from fingerprint import fingerprint
from rich.console import Console
from scipy.stats import beta

from deepintuit import cli, config, disk, evaluate
from deepintuit.config import Config
from deepintuit.metrics import Estimate, conformal_folds, conformal_quantile, conformal_sets, set_coverage, wilson
from deepintuit.runs import Run
from deepintuit.runs.run import provenance
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench, report
from deepintuit_analysis.numbers import interval, number
from deepintuit_analysis.report import Measured
from deepintuit_analysis.report.gather import tabulate
from deepintuit_analysis.report.results import COVERAGES
from deepintuit_analysis.report.text import shown
from deepintuit_homecam import demo

ROOT = Path(__file__).resolve().parents[1]

DIVISIONS = 200
"""How often a seed's test clips are divided into two halves: one division alone is off by a point and a half by
chance."""


def settings_of(seed: int, options: argparse.Namespace) -> Config:
    settings = config.load(ROOT / "configs" / "tiny.toml", [f"seed={seed}", "evaluate.traces=4", *options.set])
    return settings.replace(workbench=str(Path(options.workbench) / f"seed-{seed}"))


def measure(seed: int, options: argparse.Namespace) -> dict:
    """Every system of one seed, trained where it was not yet: its scores, and how they came about."""
    settings, started = settings_of(seed, options), time.perf_counter()
    workbench = Workbench(settings.workbench)
    runs = demo.run(
        workbench,
        settings,
        labels=True,
        rivals=not options.brief,
        fractions=fractions(settings),
        progress=not options.quiet,
        console=Console(),
    )
    report.run_card(workbench, [run.id for run in runs])
    held_out = settings.replace(evaluate={"split": "validation", "controls": False})
    last = {"reasoner": runs[-1].parent, "calibrator": runs[-1].config["calibrator"]}
    runs.append(evaluate.run(workbench, held_out, **last, progress=not options.quiet))
    return {
        **origin(seed, options),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        **scores(settings, runs),
    }


def origin(seed: int, options: argparse.Namespace) -> dict:
    """What a seed's result was made by: commit, settings, and how the code behaves."""
    made = provenance()
    commit = made["commit"] + (" with changes" if made["dirty"] else "")
    return {"seed": seed, "commit": commit, "settings": options.set, "fingerprint": fingerprint()}


def again(before: dict, options: argparse.Namespace) -> dict:
    """A finished seed read once more. SystemExit where its workbench does not give the scores that are on file."""
    settings = settings_of(before["seed"], options)
    if not Path(settings.workbench, "runs").is_dir():
        raise SystemExit(f"{settings.workbench} is no workbench of seed {before['seed']}: nothing can be read again.")
    found = scores(settings, Workbench(settings.workbench).runs("evaluate", finished=True))
    for old, new in zip(before["rows"], found["rows"], strict=True):
        same = old["values"].keys() == new["values"].keys() and all(
            math.isclose(old["values"][name], new["values"][name], abs_tol=1e-9) for name in old["values"]
        )
        if not same:
            raise SystemExit(f"{settings.workbench} scores {new['system']} otherwise than the file of its seed.")
    return before | found


def scores(settings: Config, runs: Sequence[Run]) -> dict:
    """Rows of the table, label sets, and each class stage by stage, from evaluate runs that are finished."""
    workbench, ids = Workbench(settings.workbench), [run.id for run in runs]
    table = tabulate(workbench, ids, settings.evaluate)
    held_out = tabulate(workbench, ids, settings.evaluate.replace(split="validation"))
    gains = report.class_gains(report.stages_of(table.rows, report.headline(table.rows)))
    return {
        "rows": [asdict(row.measured) for row in table.rows],
        "sets": list(label_sets(table.rows, held_out.rows)),
        "classes": asdict(gains),
    }


def label_sets(rows: Sequence[report.Result], held_out: Sequence[report.Result]) -> Iterable[dict]:
    """Split-conformal label sets of every calibrated label among `rows`, as the run card has them (each half of the
    test clips measured with the other half's quantile), beside the mean over many such divisions.

    `exact`: where coverage of new clips lies in 95 of 100 halves, by the calibration half's n alone (a beta
    distribution, for scores without ties); `scores`: how many different ones there are. `validation`: all test clips
    with the quantile of the validation clips, where these were answered too.
    """
    validation = {row.key: row for row in held_out if row.probs_C_K is not None}
    for row in rows:
        if row.method == "raw" or row.control != "none" or not row.sets:
            continue
        probs_C_K, truth_C, n = row.probs_C_K, row.truth_C, row.n
        others = validation.get(row.key)
        for target in COVERAGES:
            divided = [conformal_folds(probs_C_K, truth_C, target, seed) for seed in range(DIVISIONS)]
            rank = math.ceil((n // 2 + 1) * target - 1e-9)
            found = {
                "system": row.system, "method": row.method, "target": target, "n": n,
                "coverage": asdict(divided[0].coverage), "size": divided[0].size, "single": divided[0].single,
                "mean_coverage": float(np.mean([one.coverage.value for one in divided])),
                "mean_size": float(np.mean([one.size for one in divided])), "divisions": DIVISIONS,
                "exact": [float(end) for end in beta(rank, n // 2 + 1 - rank).interval(0.95)],
                "scores": len(np.unique(probs_C_K[np.arange(n), truth_C])),
            }  # fmt: skip
            if others is not None:
                quantile = conformal_quantile(others.probs_C_K, others.truth_C, 1 - target)
                covered, size = set_coverage(conformal_sets(probs_C_K, quantile), truth_C)
                told = {"n": others.n, "coverage": asdict(wilson(round(covered * n), n)), "size": size}
                found["validation"] = told
            yield found


def page(found: list[dict], command: str) -> str:
    """The Markdown between the page's markers: table, command, commits, label sets, classes."""
    seeds = {seed["seed"]: [Measured(**row) for row in seed["rows"]] for seed in found}
    commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(seed["commit"] for seed in found))
    told = (
        f"Seed{'s' * (len(found) > 1)} {', '.join(map(str, seeds))}; commit {commits}; command:\n\n    {command}\n\n"
        "Mean over seeds, Student's 95 % interval over seeds, ± standard deviation between seeds. Each seed has its own"
        " clips, splits and training.\n\n" + report.multi_seed_table(seeds)
    )
    if len(found) == 1:
        told += "\nAccuracy of this one seed, with Wilson's 95 % interval over its clips:\n\n"
        told += _accuracies(*seeds.values())
    read = [seed for seed in found if "sets" in seed]
    if not read:
        return told
    return f"{told}\n**Label sets** {_of(read)}{sets_table(read)}\n**Class by class** {_of(read)}{classes_table(read)}"


def _accuracies(rows: Sequence[Measured]) -> str:
    """The first number of each row with the interval that its clips give; over seeds there is none of one seed."""
    each = [wilson(round(row.values["accuracy"] * row.n), row.n) for row in rows]
    cells = [(shown(row.system), shown(row.method), shown(row.control), str(row.n)) for row in rows]
    numbers = [f"{number(share.value)} ({interval(share)})" for share in each]
    return _table(["System", "Label", "Control", "n", "Accuracy %"], [[*c, n] for c, n in zip(cells, numbers)])


def _of(found: list[dict]) -> str:
    return f"(seed{'s' * (len(found) > 1)} {', '.join(str(seed['seed']) for seed in found)}).\n\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    left = ["---"] * 2 + ["---:"] * (len(heads) - 2)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, left, *rows))


def _over(values: Sequence[float], scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    mean = report.t_interval(np.array(values))
    if len(values) == 1:
        return number(mean.value, scale, digits, sign)
    return f"{number(mean.value, scale, digits, sign)} ({interval(mean, scale, digits, sign)})"


def sets_table(found: list[dict]) -> str:
    """Promised and measured coverage of each calibrated label, at the first of `COVERAGES` by seed; then with the
    validation clips' quantiles."""

    def rows(seeds: Sequence[dict], measured: Callable[[dict], dict | None]) -> Iterable[list[str]]:
        for one in seeds[0]["sets"][:: len(COVERAGES)]:
            key = one["system"], one["method"]
            same = [[sets for sets in seed["sets"] if (sets["system"], sets["method"]) == key] for seed in seeds]
            low, high = ([measured(sets) for sets in column] for column in zip(*same, strict=True))
            if None in (*low, *high):
                continue
            each = (Estimate(**sets["coverage"]) for sets in low)
            by_seed = ", ".join(f"{number(share.value)} ({interval(share)})" for share in each)
            cells = [shown(one["system"]), shown(one["method"]), by_seed]
            for column in (low, high):
                cells += [_over([s["coverage"]["value"] for s in column]), _over([s["size"] for s in column], 1, 2)]
            yield [*cells, _over([sets[0]["mean_coverage"] for sets in same])]

    at = [f"at {number(target, digits=0)} %" for target in COVERAGES]
    heads = [
        "System",
        "Label",
        f"{at[0]}: holds the truth %, by seed (Wilson)",
        "over seeds (Student)",
        "labels a set",
        f"{at[1]}: over seeds",
        "labels a set",
    ]
    first = found[0]["sets"][0]
    told = (
        f"\nBy n alone: quantiles of {first['n'] // 2} clips cover {interval(Estimate(0, *first['exact']))} % of new"
        " clips in 95 of 100 draws of them (a beta distribution, exact for scores without ties).\n"
    )
    halves = _table([*heads, f"{at[0]}: over {DIVISIONS} divisions"], rows(found, lambda sets: sets)) + told
    held_out = {
        seed["seed"]: sets["validation"]["n"] for seed in found for sets in seed["sets"] if "validation" in sets
    }
    if not held_out:
        return halves
    others = [
        row[:-1]
        for row in rows([seed for seed in found if seed["seed"] in held_out], lambda sets: sets.get("validation"))
    ]
    counts = ", ".join(f"{n} on seed {seed}" for seed, n in held_out.items())
    told = f"With the quantiles of the validation clips ({counts}; other rooms, clothes and cameras) instead:"
    return f"{halves}\n{told}\n\n{_table(heads, others)}"


def classes_table(found: list[dict]) -> str:
    """F1 of each class after each stage, and what the last gains on the first."""
    stages = list(found[0]["classes"]["stages"])
    rows = []
    for k, label in enumerate(found[0]["classes"]["labels"]):
        classes = [seed["classes"] for seed in found]
        gains = [one["gains_K"][k]["value"] for one in classes]
        rows.append([
            label, ", ".join(str(one["support_K"][k]) for one in classes),
            *(_over([one["stages"][stage][k]["value"] for one in classes]) for stage in stages),
            _over(gains, sign=True), ", ".join(number(gain, sign=True) for gain in gains),
        ])  # fmt: skip
    heads = ["Class", "Clips, by seed", *(f"F1 %, {stage}" for stage in stages), "Gain, points", "by seed"]
    return _table(heads, rows)


def write_between(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- name -->` and `<!-- /name -->` of a page; the rest of the page is a
    person's."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = path.read_text(encoding="utf-8")
    before, found, rest = old.partition(start)
    inside, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path.name} has no markers {start} … {end}: the table has no place. Put them into the page.")
    replace_text(path, f"{before}{start}\n{text}\n{end}{after}")


def replace_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_text(path, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--workbench", default="evidence", help="one folder a seed is made in it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "evidence.md")
    parser.add_argument("--again", action="store_true", help="read finished seeds once more, train nothing")
    parser.add_argument("--brief", action="store_true", help="the systems of `demo --full`: a third of the time")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    cli.quiet_libraries()
    found = []
    for seed in options.seeds:
        file = options.page.with_suffix("") / f"homecam-{seed}.json"
        made = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if made is None or options.again:
            made = measure(seed, options) if made is None else again(made, options)
            replace_text(file, json.dumps(made, indent=1) + "\n")
        found.append(made)
    command = f"python benchmarks/evidence.py --seeds {' '.join(map(str, options.seeds))}"
    command += " --brief" * options.brief + "".join(f" --set {s}" for s in options.set)
    write_between(options.page, "homecam", page(found, command))
