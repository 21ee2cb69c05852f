"""Claim: the tables of VideoP2R and VideoAuto-R1, and DeepIntuit's figures 4 and 7, in shape, on the embedded world.

    python benchmarks/systems.py processes --seeds 0 1 2     PA-GRPO against its ablations
    python benchmarks/systems.py thinking --seeds 0 1 2      always, never, and think-when-needed by two gates
    python benchmarks/systems.py lengths --seeds 0 1 2       accuracy against the length of the teacher's traces
    python benchmarks/systems.py distillation --seeds 0 1 2  labels against traces, for a growing number of clips

Over several seeds, each with clips, splits and training of its own; thresholds are chosen on validation. Resumable: a
seed that is finished lies as `docs/evidence/<table>-<seed>.json`, a stopped one goes on. Writes into docs/evidence.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from evidence import ROOT, replace_text, write_between
from fingerprint import fingerprint
from rich.console import Console
from scipy import stats

from deepintuit import cli, coldstart, config, evaluate, grpo, teach
from deepintuit.calibrate import run as calibrate
from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.metrics import cheapest_threshold, gate_curve, wilson
from deepintuit.runs import Run, trace_id
from deepintuit.runs.run import provenance
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_analysis.report.thinking import GATE_COLUMNS, quick_answers
from deepintuit_homecam import demo, facts_of, teacher

Rows = dict[str, dict[str, float]]
"""System → measure → value."""

BUDGETS = {"none": 0, "short": 1, "medium": 2, "long": 3}
CLIPS = (32, 64, 128, 0)
"""Clips to learn from; 0: all of the cold start's."""
TRAIN, TEST = demo.SIZES["homecam"]


class Seed:
    """One seed's world, and the stages on it with settings given as `--set` takes them."""

    def __init__(self, seed: int, options: argparse.Namespace):
        self.path = Path(options.workbench) / f"seed-{seed}"  # tables share a seed's clips, and runs where they agree
        self.sets = [f"seed={seed}", f"workbench={self.path}", "evaluate.controls=false", *options.set]
        self.progress = not options.quiet
        settings = self.settings()
        demo.clips(
            settings,
            options.train,
            options.test,
            jobs=os.cpu_count() or 1,
            progress=self.progress,
            fractions=fractions(settings),
        )
        self.workbench = Workbench(self.path)

    def settings(self, *sets: str) -> Config:
        return config.load(ROOT / "configs" / "tiny.toml", [*self.sets, *sets])

    def evaluated(self, reasoner: Run, system: str, *sets: str, calibrator: Run | None = None) -> Run:
        given = {"reasoner": reasoner.id, "calibrator": calibrator.id if calibrator else None, "system": system}
        return evaluate.run(self.workbench, self.settings(*sets), **given, progress=self.progress)


def right_share(run: Run, method: str = "raw") -> float:
    rows = run.read("predictions").query("method == @method and control == 'none'")
    return float((rows["predicted"] == rows["true_label"]).mean())


def score_share(run: Run, name: str) -> float:
    return float(run.read("scores").query("name == @name")["value"].mean())


def last_steps(run: Run, name: str) -> float:
    """Mean of a logged number over the second half of the updates."""
    rows = run.read("steps").query("name == @name").sort_values("step")
    return float(rows["value"].iloc[len(rows) // 2 :].mean()) if len(rows) else math.nan


def processes(seed: Seed) -> Rows:
    """PA-GRPO: separate against summed, off, and without a perception reward; all from one judged cold start."""
    base = ("prompt.grammar=observation-think-answer", "judge.source=facts", *TINY_LENGTHS)
    write = teach.run(seed.workbench, seed.settings(*base), progress=seed.progress)
    start = coldstart.run(seed.workbench, seed.settings(*base), teacher=write.id, progress=seed.progress)
    variants = {
        "separate (PA-GRPO)": ("grpo.process=separate",),
        "summed reward": ("grpo.process=summed",),
        "process-agnostic": ("grpo.process=off",),
        "without perception reward": ("grpo.process=separate", "grpo.perception_weight=0"),
    }
    found: Rows = {"cold start only": _seeing(seed.evaluated(start, "cold start", *base))}
    for name, sets in variants.items():
        tuned = grpo.run(seed.workbench, seed.settings(*base, *sets), start=start.id, progress=seed.progress)
        shares = {f"groups that agree, {what} %": 100 * last_steps(tuned, key) for what, key in _AGREE.items()}
        found[name] = _seeing(seed.evaluated(tuned, name, *base, *sets)) | shares
    return found


TINY_LENGTHS = ("grpo.perception_min=20", "grpo.perception_max=90", "grpo.reasoning_min=30", "grpo.reasoning_max=110")
"""The embedded model's traces are short; the bonus is for the same shape."""
_AGREE = {"whole": "zero_variance_share", "seeing": "zero_variance_perception", "reasoning": "zero_variance_reasoning"}


def _seeing(run: Run) -> dict[str, float]:
    return {
        "n": float(run.summary["clips"]),
        "accuracy %": 100 * right_share(run),
        "observation suffices %": 100 * score_share(run, "sufficient"),
        "mismatch %": 100 * score_share(run, "mismatch"),
    }


def thinking(seed: Seed) -> Rows:
    """Always, never and when needed: accuracy, think rate, tokens and time of each, thresholds chosen on validation."""
    base = ("prompt.grammar=answer-think-answer",)
    write = teach.run(seed.workbench, seed.settings(*base), progress=seed.progress)
    start = coldstart.run(seed.workbench, seed.settings(*base), teacher=write.id, progress=seed.progress)
    tuned = grpo.run(seed.workbench, seed.settings(*base), start=start.id, progress=seed.progress)
    judge = calibrate(
        seed.workbench, seed.settings(*base, "gate.by=calibrated"), reasoner=tuned.id, progress=seed.progress
    )
    return gates(seed, base, tuned, judge)


def gates(seed: Seed, base: Sequence[str], tuned: Run, judge: Run) -> Rows:
    """The table's rows for a reasoner and its calibrator."""
    watched = seed.evaluated(tuned, "validation", *base, "evaluate.split=validation")
    labels = Manifest.load(seed.path, "homecam").labels
    quick = quick_answers(watched.read("traces"), labels)
    sure = _cheapest([quick[name] for name in GATE_COLUMNS])
    knows = _calibrated_threshold(seed, base, tuned, judge)
    variants = {
        "always think": ("off", None),
        "never think": ("confidence", 0.0),
        "when needed, by confidence": ("confidence", sure),
        "when needed, by the calibrator": ("calibrated", knows),
        "when needed, by the calibrator at 0.97": ("calibrated", 0.97),
    }
    found: Rows = {}
    for name, (by, threshold) in variants.items():
        sets = (f"gate.by={by}", *([] if threshold is None else [f"gate.threshold={threshold!r}"]))
        run = seed.evaluated(tuned, name, *base, *sets, calibrator=judge)
        traces = run.read("traces").query("sample == 0")
        found[name] = {
            "n": float(len(traces)),
            "accuracy %": 100 * right_share(run),
            "calibrated %": 100 * right_share(run, "label_likelihood"),
            "think rate %": 100 * float((traces["thought"] != False).mean()),  # noqa: E712 - null thought too
            "tokens a clip": float(traces["tokens"].mean()),
            "threshold": math.nan if threshold is None else threshold,
        }
    return found


def _cheapest(columns: Sequence) -> float:
    """The threshold that thinks least within half a point of the best accuracy; 1 where nothing is sure enough."""
    return min(cheapest_threshold(gate_curve(*columns), tolerance=0.005), 1.0)


def _calibrated_threshold(seed: Seed, base: Sequence[str], tuned: Run, judge: Run) -> float:
    """Of the calibrator's gate, chosen on validation by calibrated labels: after the quick answer, and after all."""
    ends = []
    for threshold in (0.0, 1.0):
        sets = ("evaluate.split=validation", "gate.by=calibrated", f"gate.threshold={threshold}")
        run = seed.evaluated(tuned, f"validation, {threshold}", *base, *sets, calibrator=judge)
        told = run.read("predictions").query("method == 'label_likelihood' and control == 'none'")
        right = (told["predicted"] == told["true_label"]).groupby(told["clip_id"]).first()
        traces = run.read("traces").query("sample == 0").set_index("clip_id")
        ends.append(traces.assign(right=right.astype(float)))
    quick, whole = ends[0].loc[ends[1].index], ends[1]
    sure = whole["quick_probability"].fillna(-1.0)
    return _cheapest([sure, quick["right"], whole["right"], quick["tokens"], whole["tokens"]])


def _trimmed(facts, number: int, budget: int) -> str:
    """The teacher's trace at a length: 1 the event and the label, 2 with the steps of the rule, 3 with what is seen."""
    parts = teacher.write_trace(facts, number)
    sentences = parts["think"].split("Check:")[0].split(". ")
    think = {1: sentences[0] + ".", 2: parts["think"], 3: f"{parts['observation']} {parts['think']}"}[budget]
    return f"<think> {think} </think><answer> {parts['answer']} </answer>"


def _taught(seed: Seed, name: str, budget: int, limit: int = 0) -> Run:
    """A finished teach run with traces of a budget for the first `limit` cold-start clips (0: all), kept where
    right."""
    clips = Manifest.load(seed.path, "homecam").usable("coldstart").to_dict("records")
    with seed.workbench.start_run("teach", {"budget": budget, "limit": limit}, name=name, dataset="homecam") as run:
        if not run.finished:
            rows, scores = [], []
            for number, clip in enumerate(clips[: limit or None]):
                text = _trimmed(facts_of(clip["notes"]["facts"]), number, budget)
                rows.append({"clip_id": clip["clip_id"], "sample": 0, "text": text, "true_label": clip["label"]})
                kept = float(text.endswith(f"<answer> {clip['label']} </answer>"))
                scores.append({"trace_id": trace_id(run.id, clip["clip_id"], 0), "name": "kept", "value": kept})
            run.append("traces", rows)
            run.append("scores", scores)
            run.finish({"kept": int(sum(score["value"] for score in scores))})
    return run


def _cold_start(seed: Seed, budget: int, count: int = 0) -> Run:
    """A cold start on the first `count` clips (0: all): on labels alone at no budget, else on traces of that budget."""
    sets: tuple[str, ...] = ()
    if count:
        # As many updates for few clips as for many, or the small sets would only be trained less.
        clips = len(Manifest.load(seed.path, "homecam").usable("coldstart"))
        sets = (f"coldstart.limit={count}", f"coldstart.epochs={seed.settings().coldstart.epochs * clips / count}")
    if not budget:
        settings = seed.settings(*sets, "coldstart.target=label")
        return coldstart.run(seed.workbench, settings, teacher=None, progress=seed.progress)
    write = _taught(seed, f"budget {budget}, {count or 'all'} clips", budget, count)
    return coldstart.run(seed.workbench, seed.settings(*sets), teacher=write.id, progress=seed.progress)


def lengths(seed: Seed) -> Rows:
    """No reasoning, and traces of three lengths: a cold start on each (DeepIntuit, figure 7)."""
    found: Rows = {}
    for name, budget in BUDGETS.items():
        scored = seed.evaluated(_cold_start(seed, budget), name)
        tokens = scored.read("traces").query("sample == 0")["tokens"].mean() if budget else 0.0
        share = 100 * right_share(scored)
        found[name] = {"n": float(scored.summary["clips"]), "accuracy %": share, "tokens a clip": float(tokens)}
    return found


def distillation(seed: Seed) -> Rows:
    """The same clips with labels alone and with traces, for a growing number of clips (DeepIntuit, figure 4)."""
    found: Rows = {}
    for count in CLIPS:
        for kind, budget in (("labels", BUDGETS["none"]), ("traces", BUDGETS["long"])):
            name = f"{kind}, {count or 'all'} clips"
            scored = seed.evaluated(_cold_start(seed, budget, count), name)
            share = 100 * right_share(scored)
            found[name] = {"n": float(scored.summary["clips"]), "accuracy %": share}
    return found


TABLES: dict[str, Callable[[Seed], Rows]] = {f.__name__: f for f in (processes, thinking, lengths, distillation)}
_COLD_STARTS = ("clips", "teach", "coldstart", "grpo_traces", "evaluate_traces")
MADE_BY = {"lengths": _COLD_STARTS, "distillation": _COLD_STARTS}
"""Parts of the fingerprint that a table's numbers hang on, where it is not all of them; traces stand for sampling."""


def rival(table: str, system: str, systems: Sequence[str]) -> str:
    """Whom a system's accuracy is set against, on the same clips: traces against labels, else the table's first row."""
    return system.replace("traces", "labels") if table == "distillation" else systems[0]


def page(table: str, found: Sequence[dict], command: str) -> str:
    """Mean over seeds with Student's 95 % interval; of one seed, Wilson's over its clips for shares of them. Seeds
    differ more than systems do, so differences are taken within each seed."""
    systems = list(dict.fromkeys(name for seed in found for name in seed["rows"]))
    for seed in found:
        rows = seed["rows"]
        for system, row in rows.items():
            other = rows.get(rival(table, system, systems), row)
            for measure, name in _PAIRED.items():
                if other is not row and measure in row and measure in other:
                    row[name] = row[measure] - other[measure]
    measures = list(dict.fromkeys(m for seed in found for row in seed["rows"].values() for m in row if m != "n"))
    head = "| System | Seeds | n a seed | " + " | ".join(measures) + " |"
    lines = [head, "|---|---:|---:|" + "---:|" * len(measures)]
    for system in systems:
        rows = [seed["rows"][system] for seed in found if system in seed["rows"]]
        counts = sorted({int(row["n"]) for row in rows})
        cells = [_cell(m, [row[m] for row in rows if row.get(m) is not None], counts[0]) for m in measures]
        lines.append(f"| {system} | {len(rows)} | {'–'.join(map(str, counts))} | " + " | ".join(cells) + " |")
    commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(seed["commit"] for seed in found))
    seeds = ", ".join(str(seed["seed"]) for seed in found)
    told = f"Seed{'s' if len(found) > 1 else ''} {seeds}; commit {commits}; command:\n\n    {command}\n"
    how = (
        "Mean over seeds, Student's 95 % interval over seeds."
        if len(found) > 1
        else "One seed so far; Wilson's 95 % interval over its clips."
    )
    against = f"\\* points against {_AGAINST.get(table, repr(systems[0]))}, within each seed.\n"
    return "\n".join([told, how + "\n", *lines, "", against])


_PAIRED = {"accuracy %": "accuracy, against*", "calibrated %": "calibrated, against*"}
_AGAINST = {"distillation": "labels on the same clips"}


def _cell(measure: str, values: Sequence[float], n: int) -> str:
    known = np.array([value for value in values if not math.isnan(value)])
    if not known.size:
        return "–"
    digits = 2 if measure == "threshold" else 1
    if measure in _PAIRED.values():
        told = [f"{value:+.1f}".replace("-", "−") for value in _with_interval(known)]
        return told[0] if len(told) == 1 else f"{told[0]} ({told[1]} to {told[2]})"
    mean, low, high = float(known.mean()), math.nan, math.nan
    if known.size > 1:
        mean, low, high = _with_interval(known)
    elif measure.endswith("%") and not measure.startswith("groups"):
        interval = wilson(round(mean / 100 * n), n)
        low, high = 100 * interval.low, 100 * interval.high
    told = f"{mean:.{digits}f}"
    return told if math.isnan(low) else f"{told} ({low:.{digits}f}–{high:.{digits}f})".replace("-", "−")


def _with_interval(values: np.ndarray) -> tuple[float, ...]:
    """Mean and Student's 95 % interval; of one value, itself."""
    mean = float(values.mean())
    if values.size == 1:
        return (mean,)
    half = float(stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size))
    return mean, mean - half, mean + half


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workbench", default="evidence", help="one folder a seed is made in it")
    parser.add_argument("--train", type=int, default=TRAIN, help="clips rendered for training and validation")
    parser.add_argument("--test", type=int, default=TEST, help="clips rendered for test")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "evidence.md")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    cli.quiet_libraries()
    found = []
    for number in options.seeds:
        file = options.page.with_suffix("") / f"{options.table}-{number}.json"
        if not file.exists():
            started = time.perf_counter()
            rows = TABLES[options.table](Seed(number, options))
            made = provenance()
            # JSON has no nan: what was not measured is left out.
            measured = {s: {m: v for m, v in row.items() if not math.isnan(v)} for s, row in rows.items()}
            told = {
                "seed": number,
                "commit": made["commit"] + (" with changes" if made["dirty"] else ""),
                "settings": options.set,
                "fingerprint": {n: v for n, v in fingerprint().items() if n in MADE_BY.get(options.table, [n])},
                "minutes": round((time.perf_counter() - started) / 60, 1),
                "rows": measured,
            }
            replace_text(file, json.dumps(told, indent=1) + "\n")
        found.append(json.loads(file.read_text(encoding="utf-8")))
    words = " ".join(["python benchmarks/systems.py", options.table, "--seeds", *map(str, options.seeds)])
    text = page(options.table, found, words + "".join(f" --set {s}" for s in options.set))
    write_between(options.page, options.table, text)
    Console().print(text)
