"""Claim: the stages in the paper's order on the embedded world, over several seeds, with controls. Writes docs/evidence.md.

Each seed renders clips of its own, draws its own splits, and trains every system anew in a workbench of its own (`demo --full`); all choices
were made on validation. Resumable: a seed that is finished is not run again.

    python benchmarks/evidence.py --seeds 0 1 2 3 4 --workbench evidence
"""

from __future__ import annotations

import argparse
import os
import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import pandas as pd
from rich.console import Console

from deepintuit import cli, config, demo, report
from deepintuit.data import Manifest
from deepintuit.report import Row
from deepintuit.store import Workbench

ROOT = Path(__file__).resolve().parents[1]


def rows_of(seed: int, options: argparse.Namespace) -> list[Row]:
    """Every system of one seed, trained where it was not yet, as the rows of its table."""
    settings = config.load(ROOT / "configs" / "tiny.toml", [f"seed={seed}", "evaluate.traces=4", *options.set])
    settings = replace(settings, workbench=str(Path(options.workbench) / f"seed-{seed}"))
    workbench = Workbench(settings.workbench)
    runs = demo.run(
        workbench, settings, full=True, fractions=cli.fractions(settings), progress=not options.quiet, console=Console()
    )
    predictions = pd.concat([run.read("predictions") for run in runs], ignore_index=True)
    report.run_card(workbench, [run.id for run in runs])
    labels = Manifest.load(workbench.path, settings.clips.dataset).labels
    return report.table_of(predictions, labels, settings.evaluate)


def page(rows_by_seed: dict[int, list[Row]], command: str, commit: str) -> str:
    """The Markdown between the page's markers: table, command, commit."""
    seeds = ", ".join(map(str, rows_by_seed))
    return (
        f"Seeds {seeds}; {date.today().isoformat()}; commit `{commit}`; command:\n\n    {command}\n\n"
        "Mean over seeds, Student's 95 % interval over seeds, ± standard deviation between seeds. Each seed has its own clips, splits and training.\n\n"
        + report.multi_seed_table(rows_by_seed)
    )


def write_between(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- name -->` and `<!-- /name -->` of a page; the rest of the page is a person's."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = path.read_text(encoding="utf-8")
    before, found, rest = old.partition(start)
    inside, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path.name} has no markers {start} … {end}: the table has no place. Put them into the page.")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--workbench", default="evidence", help="one folder a seed is made in it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--page", default=str(ROOT / "docs" / "evidence.md"))
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    cli.quiet_libraries()
    results = {seed: rows_of(seed, options) for seed in options.seeds}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    command = f"python benchmarks/evidence.py --seeds {' '.join(map(str, options.seeds))}" + "".join(
        f" --set {s}" for s in options.set
    )
    write_between(Path(options.page), "homecam", page(results, command, commit))
