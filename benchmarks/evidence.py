"""Claim: the stages in the paper's order on the embedded world, over several seeds, with controls. Writes
docs/evidence.md.

Each seed renders clips of its own, draws its own splits, and trains every system anew in a workbench of its own (`demo
--full`); all choices were made on validation. Resumable: a seed that is finished lies as
`docs/evidence/homecam-<seed>.json` and is not run again.

    python benchmarks/evidence.py --seeds 0 1 2 3 4 --workbench evidence
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from deepintuit import cli, config, demo, report
from deepintuit.data import Manifest
from deepintuit.report import Measured
from deepintuit.store import Workbench
from deepintuit.store.run import provenance

ROOT = Path(__file__).resolve().parents[1]


def measure(seed: int, options: argparse.Namespace) -> dict:
    """Every system of one seed, trained where it was not yet: its rows, and how they came about."""
    settings = config.load(ROOT / "configs" / "tiny.toml", [f"seed={seed}", "evaluate.traces=4", *options.set])
    settings = replace(settings, workbench=str(Path(options.workbench) / f"seed-{seed}"))
    workbench, started = Workbench(settings.workbench), time.perf_counter()
    runs = demo.run(
        workbench, settings, full=True, fractions=cli.fractions(settings), progress=not options.quiet, console=Console()
    )
    predictions = pd.concat([run.read("predictions") for run in runs], ignore_index=True)
    report.run_card(workbench, [run.id for run in runs])
    labels = Manifest.load(workbench.path, settings.clips.dataset).labels
    rows = report.table_of(predictions, labels, settings.evaluate)
    made = provenance()
    return {
        "seed": seed,
        "commit": made["commit"] + (" with changes" if made["dirty"] else ""),
        "settings": options.set,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "rows": [asdict(row.measured) for row in rows],
    }


def page(found: list[dict], command: str) -> str:
    """The Markdown between the page's markers: table, command, commits."""
    seeds = {seed["seed"]: [Measured(**row) for row in seed["rows"]] for seed in found}
    commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(seed["commit"] for seed in found))
    return (
        f"Seeds {', '.join(map(str, seeds))}; commit {commits}; command:\n\n    {command}\n\n"
        "Mean over seeds, Student's 95 % interval over seeds, ± standard deviation between seeds. Each seed has its own"
        " clips, splits and training.\n\n"
        + report.multi_seed_table(seeds)
    )


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
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--workbench", default="evidence", help="one folder a seed is made in it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "evidence.md")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    cli.quiet_libraries()
    found = []
    for seed in options.seeds:
        file = options.page.with_suffix("") / f"homecam-{seed}.json"
        if not file.exists():
            replace_text(file, json.dumps(measure(seed, options), indent=1) + "\n")
        found.append(json.loads(file.read_text(encoding="utf-8")))
    command = f"python benchmarks/evidence.py --seeds {' '.join(map(str, options.seeds))}" + "".join(
        f" --set {s}" for s in options.set
    )
    write_between(options.page, "homecam", page(found, command))
