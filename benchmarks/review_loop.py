"""Does review pay? Errors found among the suspected labels → a new cold start, against as many clips drawn by chance.

On homecam, with a tenth of the training labels made wrong, and a simulated reviewer who knows the facts of each clip:

1. Half A trains a cold start and its calibrator (all labels noisy). Half B is the split `grpo`, which no run of that
   chain was trained on, so the calibrated distributions of its clips are out of fold.
2. The reviewer judges the teacher's traces of B: of the `--items` most suspicious clips, and of as many by chance.
   Labels are corrected; where a trace is wrong, a right one is written if the house rule alone gives the label.
3. B trains three cold starts, on the teacher's kept traces alone and with either of the two reviews on top, and three
   on the labels alone, as they were and as either review left them. Their raw accuracy is measured on the test clips,
   whose labels are right.

More traces are more updates at the same number of epochs. One seed is an anecdote: run several.

Run it:  python benchmarks/review_loop.py --workbench loop-0 --seed 0 [--train 1200] [--test 400] [--items 60]
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

import numpy as np

from deepintuit import calibrate, coldstart, config, evaluate, teach
from deepintuit.data import Manifest
from deepintuit.metrics import wilson
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_analysis.review import EventLog, Reviews, task_of
from deepintuit_analysis.review.feedback import coldstart_set, corrections, relabel
from deepintuit_analysis.review.quality import suspects
from deepintuit_homecam import demo, facts_of
from deepintuit_homecam.teacher import Errors, write_trace

ROOT = Path(__file__).parents[1]
ARMS = ("no review", "suspects", "chance")


def with_wrong_labels(manifest: Manifest, share: float, seed: int) -> Manifest:
    """A share of the labels of the training splits, each now another label."""
    generator = np.random.default_rng(seed)
    rows = manifest.usable()
    rows = rows[rows["split"].isin(["coldstart", "grpo", "calibration"])]
    chosen = rows.sample(int(share * len(rows)), random_state=seed)
    labels = {
        row.clip_id: str(generator.choice([one for one in manifest.labels if one != row.label]))
        for row in chosen.itertuples()
    }
    return manifest.relabelled(labels, dict.fromkeys(labels, "made wrong by the benchmark"))


def copied(manifest: Manifest, dataset: str) -> Manifest:
    """The same clips as another dataset whose cold start learns from half B."""
    other = {"coldstart": "grpo", "grpo": "coldstart"}
    frame = manifest.frame.assign(split=manifest.frame["split"].replace(other))
    copy = Manifest(manifest.workbench, dataset, frame, manifest.labels)
    copy.save()
    return copy


def judge(reviews: Reviews, name: str, manifest: Manifest, answers: dict[str, str | None], seed: int) -> None:
    """One who knows the facts answers all items: `answers` are the labels that the traces end in."""
    notes = dict(zip(manifest.frame["clip_id"], manifest.frame["notes"]))
    while item := reviews.next_item(name, "simulated"):
        facts = facts_of(notes[item.clip_id]["facts"])
        said = {"label": facts.label, "verdict": "right" if answers[item.trace_id] == facts.label else "wrong"}
        written = write_trace(facts, seed, Errors.none())
        if said["verdict"] == "wrong" and written["answer"] == facts.label:
            said["note"] = written["text"]
        reviews.judge(name, "simulated", item.trace_id, said)


def _share(right: list[bool]) -> dict[str, float]:
    return {"right": sum(right), **vars(wilson(sum(right), len(right)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workbench", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=1200)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--items", type=int, default=60, help="clips reviewed in either way")
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--set", action="append", default=[], help="as of the command line")
    said = parser.parse_args()
    sets = ["evaluate.controls=false", *said.set, f"seed={said.seed}"]
    settings = config.load(ROOT / "configs" / "tiny.toml", sets).replace(workbench=said.workbench)
    workbench = Workbench(said.workbench)

    def on(dataset: str, target: str = "trace", **evaluated: str) -> config.Config:
        return settings.replace(clips={"dataset": dataset}, coldstart={"target": target}, evaluate=evaluated)

    def right_of(dataset: str, target: str, learned: str | None) -> list[bool]:
        """Clip by clip: whether a new cold start on half B names the true class of the test clips."""
        cold = coldstart.run(workbench, on(dataset, target), teacher=learned)
        scored = evaluate.run(workbench, on(dataset, target, split="test"), reasoner=cold.id).read("predictions")
        raw = scored[scored["method"] == "raw"].sort_values("clip_id")
        return (raw["predicted"] == raw["true_label"]).tolist()

    if not (workbench.clips / "homecam.parquet").exists():
        demo.clips(
            settings, said.train, said.test, jobs=os.cpu_count() or 1, progress=True, fractions=fractions(settings)
        )
    noisy = Manifest.load(workbench.path, "homecam")
    if not any("review" in notes for notes in noisy.frame["notes"]):
        noisy = with_wrong_labels(noisy, said.noise, said.seed)
        noisy.save()
    teacher = teach.run(workbench, settings)
    first = coldstart.run(workbench, settings, teacher=teacher.id)
    calibrator = calibrate.run(workbench, settings, reasoner=first.id)
    evaluate.run(workbench, on("homecam", split="grpo"), reasoner=first.id, calibrator=calibrator.id)
    half = copied(noisy, "half")
    second = teach.run(workbench, on("half"))
    workbench.refresh()

    doubted = suspects(workbench, "homecam", "grpo").rows["clip_id"].tolist()
    by_chance = random.Random(said.seed).sample(sorted(doubted), len(doubted))  # noqa: S311 - no secret
    traces = second.read("traces").set_index("clip_id")
    answers = dict(zip(traces["trace_id"], traces["provisional"]))
    wrong = {
        clip
        for clip, notes, label in zip(half.frame["clip_id"], half.frame["notes"], half.frame["label"])
        if facts_of(notes["facts"]).label != label
    }
    found = []
    with EventLog(workbench.reviews) as log:
        reviews = Reviews(log)
        for arm, order in zip(ARMS, ([], doubted, by_chance)):
            name, dataset = f"{arm} {said.seed}", f"half-{arm.replace(' ', '-')}"
            chosen = [clip for clip in order if clip in traces.index][: said.items]
            copied(noisy, dataset)
            if chosen:
                slice_ = traces.loc[chosen, "trace_id"].tolist()
                reviews.open(task_of(workbench, name, slice_, "given", labels=noisy.labels.labels), "simulated")
                judge(reviews, name, half, answers, said.seed)
                relabel(workbench, corrections(workbench, reviews, [name], dataset))
            learned = coldstart_set(workbench, reviews, [name] if chosen else [], on(dataset), onto=second.id)
            traces_right = right_of(dataset, "trace", learned.id)
            labels_right = right_of(dataset, "label", None)
            found.append(
                {
                    "arm": arm,
                    "reviewed": len(chosen),
                    "errors found": len(wrong & set(chosen)),
                    **{key: learned.summary[key] for key in ("kept", "accepted", "corrected", "onto")},
                    "n": len(traces_right),
                    "traces": _share(traces_right),
                    "labels alone": _share(labels_right),
                }
            )
            print(json.dumps(found[-1]), flush=True)
    share = len(wrong & set(doubted)) / len(doubted)
    told = {"seed": said.seed, "clips in B": len(doubted), "wrong among them": round(share, 3), "arms": found}
    (workbench.path / "review_loop.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
