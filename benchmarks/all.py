"""Every claim about speed that a CPU can show, one script after the other, and the tables of docs/performance.md.

A script is a process of its own and leaves its rows, each repeat of them, as docs/performance/<script>.json; the page
is written from these, each row with its own commit, so that one script can be run again without the others (`--json
docs/performance/grpo_step-long.json` keeps a further run beside the first). What finds no time is told.

    make bench                                   all of them, 15 minutes on two idle cores
    make bench ARGS="--only loss grpo_step"      some, and the page with them
    make bench ARGS="--only"                     none: the page from the rows that are there

Not here, since they take hours: evidence, household, slices, systems, review_loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from evidence import write_between
from measure import CLOCKS, ROOT, Row, counted, seconds

SCRIPTS: dict[str, Sequence[str]] = {
    "grpo_step": (), "loss": (), "sampling": (), "scoring": (), "features": (), "calibration": (), "gate": (),
    "decode": (), "ahead": (), "browse": ("build/bench/traces", "--traces", "100000", "--repeats", "10"),
    "dashboard": (), "pipeline": (),
}  # fmt: skip
"""Script → its arguments, in the order in which they are run and shown."""
WALL_ONLY = {"ahead", "dashboard"}
"""They measure what two cores or two processes do beside one another."""
PAGE = ROOT / "docs" / "performance.md"
ROWS = PAGE.with_suffix("")


def run(name: str, given: argparse.Namespace, left: float) -> str:
    """Run a script within `left` seconds; what went wrong, in words, or nothing."""
    if left < 20:
        return "no time was left"
    words = [*SCRIPTS[name], "--json", f"docs/performance/{name}.json"]
    if name not in WALL_ONLY:
        words += ["--clock", given.clock] if given.clock != "wall" else []
    try:
        ended = subprocess.run([sys.executable, f"benchmarks/{name}.py", *words], cwd=ROOT, timeout=left, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {left:.0f} s"
    return f"ended with {ended.returncode}" if ended.returncode else ""


def found() -> list[dict]:
    """What was measured, in the order of the scripts, each one's further runs behind it; `rows` as `Row`s."""
    files = [file for name in SCRIPTS for file in sorted(ROWS.glob(f"{name}*.json"))]
    made = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [one | {"rows": [Row(**row) for row in one["rows"]]} for one in made]


def line(row: Row, made: dict) -> str:
    """One row of the table."""
    low, high = row.range
    if row.ratio is None:
        plain, ours, ratio = "–", f"{seconds(statistics.median(row.ours))} ({seconds(low)}–{seconds(high)})", "–"
        aim = f"≤ {seconds(row.aim)}" if row.aim else "–"
    else:
        plain, ours = seconds(statistics.median(row.plain)), seconds(statistics.median(row.ours))
        ratio = f"**{row.ratio:.2f}×** ({low:.2f}–{high:.2f})"
        aim = f"≥ {row.aim:g}×" if row.aim else "–"
    if row.missed:
        aim += ", missed"
    told = "; ".join(f"{name} {counted(value)}" for name, value in row.counted.items()) or "–"
    command = f"`python benchmarks/{made['script']}.py{' ' * bool(made['options'])}{made['options']}`"
    commit = f"`{(made['commit'] or 'none')[:7]}`{'+' if made['dirty'] else ''}"
    return f"| {row.claim} | {plain} | {ours} | {ratio} | {len(row.ours)} | {told} | {aim} | {command} | {commit} |"


def tables(all_made: Sequence[dict], failed: dict[str, str]) -> str:
    """What stands between the page's markers."""
    dates = sorted(made["date"] for made in all_made)
    loads = sorted(made["load"] for made in all_made if made["load"] is not None)
    clocks = {"wall": "seconds on the wall", "processor": "seconds of the processor"}
    text = [
        f"Measured {dates[0]} to {dates[-1]} UTC on {all_made[0]['cores']} cores without a GPU, beside other work "
        f"(load average {loads[0]} to {loads[-1]})."
        if loads
        else "",
        "",
    ]
    for clock, words in clocks.items():
        names = [made["script"] for made in all_made if made["clock"] == clock]
        if names:
            text.append(f"In {words}: {', '.join(f'`{name}`' for name in names)}.")
    text += [
        "",
        "| claim | plain | ours | ratio (range) | n | counted, plain → ours | aim | command | commit |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- | --- | --- |",
    ]
    text += [line(row, made) for made in all_made for row in made["rows"]]
    text += ["", *(f"- `{made['script']}`: {made['about']} (load {made['load']})." for made in all_made)]
    parts = [(row, name, pair) for made in all_made for row in made["rows"] for name, pair in row.parts.items()]
    if parts:
        text += ["", "**Where the time goes** (medians).", ""]
        text += ["| claim | part | plain | ours | ratio | share of ours |", "| --- | --- | ---: | ---: | ---: | ---: |"]
        for row, name, (plain, ours) in parts:
            share = ours / sum(pair[1] for pair in row.parts.values())
            cells = (row.claim, name, seconds(plain), seconds(ours), f"{plain / ours:.2f}×", f"{share:.0%}")
            text.append(f"| {' | '.join(cells)} |")
    if failed:
        text += ["", "Not measured this time: " + "; ".join(f"`{name}`, {why}" for name, why in failed.items()) + "."]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SCRIPTS, default=list(SCRIPTS), metavar="NAME", help="run these")
    parser.add_argument("--minutes", type=float, default=15, help="for all together (default: 15)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: on a machine that others use too")
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ends, failed = time.monotonic() + 60 * given.minutes, {}
    for name in given.only:
        print(f"\n{name}", flush=True)
        if why := run(name, given, ends - time.monotonic()):
            failed[name] = why
            print(f"{name}: {why}", flush=True)
    made = found()
    if not made:
        raise SystemExit("Nothing was measured, so the page stays as it is.")
    told = {one["script"] for one in made}
    untold = {name: "not run yet" for name in SCRIPTS if name not in told}
    write_between(PAGE, "measured", tables(made, untold | failed))
    print(f"\n{PAGE.relative_to(ROOT)} is written from {sum(len(one['rows']) for one in made)} rows.")
    if failed:
        raise SystemExit("Not measured: " + ", ".join(failed))


if __name__ == "__main__":
    main()
