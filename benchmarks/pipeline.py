"""All stages on a small homecam, cold start to evaluation with controls, by the plain route and by ours.

`demo` with its own settings (configs/tiny.toml) on a twentieth of its clips, so that stages have about the share of the
work that they have there; same clips and seeds, each route in a workbench of its own. Clips are rendered before and
decoded by the project's reader on both sides; plain differs in what the model is asked to compute again (`routes`). So
few clips teach little: traces are longer and less alike than the demo's. Minutes, so it is run once unless more repeats
are asked for.

Run it:  python benchmarks/pipeline.py [--train 60] [--test 20] [--repeats 1] [--threads 1]
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from measure import ROOT, Counted, Row, beside, chosen, in_turns, now, options, report
from rich.console import Console
from routes import route

import deepintuit_homecam as homecam
from deepintuit import config
from deepintuit.errors import quiet_libraries
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_homecam import demo


class Stages(Console):
    """Takes the place of the demo's console: when each stage began, by the clock of the options."""

    def __init__(self):
        super().__init__(quiet=True)
        self.began: list[tuple[str, float]] = []

    def rule(self, title: str = "", **_) -> None:
        self.began.append((title.removeprefix("[bold]"), now()))

    def seconds(self) -> dict[str, float]:
        ends = [at for _, at in self.began[1:]] + [now()]
        return {title: end - at for (title, at), end in zip(self.began, ends, strict=True)}


def whole(name: str, rendered: Path, given) -> tuple[dict[str, float], Counted, list]:
    """Seconds of each stage, counts, and what each system answered."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(rendered, Path(scratch) / "sources" / rendered.name)
        share = "true" if name == "ours" else "false"
        sets = [f"workbench={scratch}", f"model.share_prefix={share}", "model.device=cpu", "grpo.check_clips=2"]
        settings = config.load(ROOT / "configs" / "tiny.toml", sets)
        console = Stages()
        with Counted() as counted, route(name):
            runs = demo.run(
                Workbench(scratch), settings, fractions=fractions(settings), progress=False, console=console,
                train=given.train, test=given.test, labels=True, jobs=1,
            )  # fmt: skip
        spent = console.seconds()
        answers = [
            (run.about["name"], row.clip_id, row.method, row.predicted)
            for run in runs
            for row in run.read("predictions").itertuples()
            if row.control != "video_blanked"  # blank features are no blank pixels
        ]
    return spent, counted, answers


def main() -> None:
    parser = options(__doc__, repeats=1)
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--test", type=int, default=20)
    given = chosen(parser)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        rendered = Path(scratch) / "homecam-0"
        homecam.write_clips(rendered, train=given.train, test=given.test, jobs=os.cpu_count() or 1, progress=False)
        found: dict[str, list] = {"ours": [], "plain": []}
        calls = {name: lambda name=name: found[name].append(whole(name, rendered, given)) for name in found}
        in_turns(calls, given.repeats, warm=False)
    (plain, before, said), (ours, after, says) = found["plain"][0], found["ours"][0]
    same = sum(a == b for a, b in zip(said, says, strict=True)) / len(says)
    spent = {name: [sum(stages.values()) for stages, _, _ in runs] for name, runs in found.items()}
    parts = {title: (plain[title], ours[title]) for title in ours if plain[title] >= 0.05}
    claim = f"whole pipeline on homecam, {given.train} + {given.test} clips"
    row = Row(claim, spent["ours"], spent["plain"], beside(before, after), parts, aim=5)
    report(given, [row], f"{same:.0%} of {len(says)} answers are the same by both routes")


if __name__ == "__main__":
    main()
