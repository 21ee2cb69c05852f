"""How the benchmarks measure: calls that take turns, what went through the model counted, rows as text and as JSON.

A ratio is the median of the plain route's seconds over the median of ours, in one run, the two taking turns; its range
is that of the ratios of each turn. Beside it stands what was counted, which no machine and no load changes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepintuit import disk
from deepintuit.runs.run import provenance

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "bench"
"""Where scripts keep what several of them need, and their rows."""


@dataclass
class Row:
    """One line of the table. `ours`, `plain`: seconds of each repeat; without `plain` the seconds stand for themselves.

    `counted`: what → (plain, ours), or one number. `parts`: where the time goes, what → (plain, ours) in seconds.
    `aim`: the ratio to reach; without `plain`, the seconds not to exceed.
    """

    claim: str
    ours: Sequence[float]
    plain: Sequence[float] = ()
    counted: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    aim: float | None = None

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.plain) / statistics.median(self.ours) if self.plain else None

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest: of the ratios of the turns, or of the seconds where nothing is compared."""
        each = [p / o for p, o in zip(self.plain, self.ours, strict=True)] if self.plain else self.ours
        return min(each), max(each)

    @property
    def missed(self) -> bool:
        if self.aim is None:
            return False
        return self.ratio < self.aim if self.ratio is not None else statistics.median(self.ours) > self.aim

    def sentence(self) -> str:
        low, high = self.range
        told = f"{self.claim}: "
        if self.ratio is None:
            told += f"{seconds(statistics.median(self.ours))} ({seconds(low)} to {seconds(high)})"
        else:
            told += f"plain {seconds(statistics.median(self.plain))}, ours {seconds(statistics.median(self.ours))}, "
            told += f"{self.ratio:.2f} times as fast ({low:.2f} to {high:.2f})"
        told += f", n = {len(self.ours)}"
        if self.counted:
            told += "; " + ", ".join(f"{name} {counted(value)}" for name, value in self.counted.items())
        for name, (plain, ours) in self.parts.items():
            told += f"\n    {name}: plain {seconds(plain)}, ours {seconds(ours)}"
        return told


def seconds(value: float) -> str:
    """Three figures, in the unit that fits."""
    if value < 0.9995:
        return f"{1000 * value:#.3g}".rstrip(".") + " ms"
    return (f"{value:.0f}" if value >= 100 else f"{value:#.3g}") + " s"


def counted(value: Any) -> str:
    """A number, or `plain → ours`."""
    return " → ".join(
        f"{one:,}" if isinstance(one, int) else f"{one:,.3g}" if isinstance(one, float) else str(one)
        for one in (value if isinstance(value, list | tuple) else [value])
    )


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
_clock = "wall"


def now() -> float:
    """Seconds by the clock that the options named, after what a GPU was still at."""
    if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_available():
        torch.cuda.synchronize()
    return CLOCKS[_clock]()


def in_turns(calls: Mapping[str, Callable[[], object]], repeats: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each call and repeat; the calls take turns, after a round that is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1 if warm else 0, repeats):
        for name, call in calls.items():
            started = now()
            call()
            if turn >= 0:
                spent[name].append(now() - started)
    return spent


class Counted:
    """While open: clips that went through a visual tower, token places that went through a language model, and how
    often one was called; of all models in this process."""

    def __enter__(self) -> Counted:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen25
        from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3

        self.towers = self.tokens = self.passes = 0
        self._kept = [(kind, kind.forward) for kind in (
            qwen25.Qwen2_5_VLTextModel, qwen3.Qwen3VLTextModel,
            qwen25.Qwen2_5_VisionTransformerPretrainedModel, qwen3.Qwen3VLVisionModel,
        )]  # fmt: skip
        for (kind, forward), watch in zip(self._kept, (self._language, self._language, self._tower, self._tower)):
            kind.forward = _watched(forward, watch)
        return self

    def _language(self, args: tuple, given: Mapping[str, Any]) -> None:
        rows, length = given["inputs_embeds"].shape[:2]
        self.tokens, self.passes = self.tokens + rows * length, self.passes + 1

    def _tower(self, args: tuple, given: Mapping[str, Any]) -> None:
        self.towers += len(given["grid_thw"] if "grid_thw" in given else args[1])

    def __exit__(self, *_) -> None:
        for kind, forward in self._kept:
            kind.forward = forward


def _watched(forward: Callable, watch: Callable) -> Callable:
    def watched(self, *args, **given):
        watch(args, given)
        return forward(self, *args, **given)

    return watched


def beside(plain: Counted, ours: Counted) -> dict[str, tuple[int, int]]:
    """The counts of both routes, as a row has them."""
    return {"tower passes": (plain.towers, ours.towers), "tokens through the model": (plain.tokens, ours.tokens)}


def options(doc: str, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with what all scripts take; `doc` is the script's own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns that are counted (default: {repeats})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: seconds that this process worked, "
        "which others' work does not stretch; with one thread, what an idle machine takes",
    )
    return parser


def chosen(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options as given, in force: threads and clock."""
    global _clock
    given = parser.parse_args()
    _clock = given.clock
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(given.threads)
    return given


def report(given: argparse.Namespace, rows: Sequence[Row], about: str = "") -> None:
    """Print the rows; write them with command, commit, date and load where the options name a file."""
    if about:
        print(about)
    for row in rows:
        print(row.sentence())
    if given.json:
        told = provenance()
        words = told["command"][1:]
        made = {
            "script": Path(told["command"][0]).stem,
            "options": " ".join(word for at, word in enumerate(words) if "--json" not in (word, *words[at - 1 : at])),
            "commit": told["commit"],
            "dirty": told["dirty"],
            "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
            "cores": os.cpu_count(),
            "threads": given.threads,
            "clock": given.clock,
            "about": about,
            "rows": [asdict(row) for row in rows],
        }
        given.json.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(given.json, json.dumps(_rounded(made)) + "\n")


def _rounded(value: Any) -> Any:
    """Without digits that no clock has."""
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
