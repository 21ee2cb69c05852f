"""Makes the example that ships (`homecam/example/files`) from a finished workbench.

    python -m deepintuit_homecam.workshop.example                  runs `deepintuit demo --full` in build/example first
    python -m deepintuit_homecam.workshop.example WORKBENCH        takes what stands there

Again whenever the world, its model, the weights or a format changes. What is shipped says from which commit its runs
are, and reads like any workbench of that commit; only its dataset is called `example`, so that other runs can stand
beside it, and weights that training changed are rounded to bfloat16. Reviews are those of the workbench; where it has
none, two scripted reviewers judge some traces by the facts of their clips.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import torch
from safetensors.torch import load_file, save_file

from deepintuit import cli, disk, parquet, runs, worlds
from deepintuit.data import Manifest
from deepintuit.runs.run import part_name
from deepintuit_analysis import Workbench
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.review import EventLog, Reviews, task_of
from deepintuit_homecam import MODEL, demo
from deepintuit_homecam.example import DATASET, FILES

MOST_BYTES = 12_000_000
_REVIEWED = 24
_WEIGHTS = "model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workbench", nargs="?", type=Path)
    parser.add_argument("--world", choices=demo.WORLDS, default="household")
    options = parser.parse_args()
    source, world = options.workbench, options.world
    if source is None:
        source = Path("build/example")
        if code := cli.main(["demo", "--full", "--world", world, "--workbench", str(source)]):
            raise SystemExit(code)
    with tempfile.TemporaryDirectory() as folder:
        new = pack(source, Path(folder) / "files", world)
        size = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise SystemExit(f"The example would take {size:,} bytes, and may take {MOST_BYTES:,}.")
        shutil.rmtree(FILES, ignore_errors=True)
        shutil.copytree(new, FILES, copy_function=shutil.copyfile)
    print(f"{FILES}: {size / 1e6:.1f} MB")


def pack(source: Path, target: Path, world: str) -> Path:
    """The newest chain of finished runs at `source`, and the evaluations beside it, as they ship."""
    with tempfile.TemporaryDirectory() as folder:
        chain = demo.chain_of(Workbench(source))
        chosen_runs = [chain.teach, chain.labels, chain.cold, chain.grpo, chain.calibrate, *chain.evaluations]
        clips = chain.manifest
        copy = Manifest(target, DATASET, clips.frame, clips.labels)
        # In a folder of their own: clips that another version of the world renders beside them may have their names.
        for column in ("path", "playable_path"):
            names = (Path(path).name for path in clips.frame[column])
            copy.frame[column] = [str(target / "sources" / DATASET / "videos" / name) for name in names]
        copy.save()
        for run in filter(None, chosen_runs):
            _pack_run(run, target / "runs" / run.id, chain.grpo)
        bench = Workbench(shutil.copytree(target, Path(folder) / "workbench"))
        _reviews(source, bench, chain.evaluation.id, demo.WORLDS[world], target / "reviews")
    files = sorted(file for file in target.rglob("*") if file.is_file())
    for file in files:
        if file.suffix in (".json", ".md"):  # commands name the place where the workbench lay
            disk.write_text(file, file.read_text(encoding="utf-8").replace(str(source.absolute()), source.name))
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    about = {
        "runs_of_commit": chain.grpo.about["commit"],
        "made": chain.calibrate.about["finished"],
        "world": world,
        "dataset": DATASET,
        "sha256": digest,
    }
    disk.write_json(target / runs.EXAMPLE, about)
    return target


def _pack_run(run: runs.Run, target: Path, refined: runs.Run) -> None:
    target.mkdir(parents=True)
    about = json.loads(json.dumps(run.about))
    about["dataset"] = DATASET
    for settings in (about["config"], about.get("settings") or {}):
        settings.get("clips", {}).update(dataset=DATASET)
        settings.pop("workbench", None)
    disk.write_json(target / "run.json", about)
    for grain in runs.GRAINS:
        if len(table := run.table(grain)):
            if grain == "traces":  # the name of a checkpoint begins with the place where its workbench lay
                inside = pc.replace_substring_regex(table["model"], "^.*/runs/", "runs/")
                table = table.set_column(table.schema.get_field_index("model"), "model", inside)
            parquet.write(table, target / part_name(grain, 0))
    if not (run.checkpoint / _WEIGHTS).exists() or run.summary.get("target") == "label":
        return  # of the model of labels alone, its answers are enough
    base, trained = (load_file(folder / _WEIGHTS) for folder in (MODEL, run.checkpoint))
    changed = {name: tensor for name, tensor in trained.items() if not torch.equal(tensor, base[name])}
    (target / "checkpoint").mkdir()
    save_file({name: tensor.bfloat16() for name, tensor in changed.items()}, target / "checkpoint" / _WEIGHTS)
    for file in run.checkpoint.iterdir():
        original = MODEL / file.name
        if file.name != _WEIGHTS and not (original.exists() and original.read_bytes() == file.read_bytes()):
            shutil.copyfile(file, target / "checkpoint" / file.name)


def _reviews(source: Path, bench: Workbench, run_id: str, world: worlds.World, target: Path) -> None:
    """The events of the source in one file; of scripted reviewers where nobody judged anything there."""
    log = source / "reviews" / "events.sqlite"
    if not (log.exists() and _counted(log)):
        _script_reviews(bench, run_id, world)
        log = bench.reviews / "events.sqlite"
    target.mkdir()
    with sqlite3.connect(log) as events:
        events.execute("VACUUM INTO ?", [str(target / "events.sqlite")])  # what stands in the log beside it included


def _counted(events: Path) -> int:
    with sqlite3.connect(events) as opened:
        return opened.execute("SELECT count(*) FROM events").fetchone()[0]


def _script_reviews(bench: Workbench, run_id: str, world: worlds.World) -> None:
    """Two who know the facts of each clip, of whom the second errs on every eighth: most uncertain traces first."""
    bench.refresh()
    frame = Manifest.load(bench.path, DATASET).frame.set_index("clip_id")
    traces = bench.run(run_id).read("traces").set_index("trace_id")
    settings = {"labels": list(world.LABELS), "reviewers": 3}  # one more than answer: the task can be continued
    created = task_of(bench, "first look", TraceFilter(run=run_id), "entropy", **settings)
    task = replace(created, items=dict(list(created.items.items())[:_REVIEWED]))
    with EventLog(bench.reviews) as log:
        reviews = Reviews(log)
        reviews.open(task, "scripted-lead")
        for reviewer, errs in (("scripted-one", 0.0), ("scripted-two", 0.125)):
            chance = random.Random(reviewer)  # noqa: S311 - no secret
            while item := reviews.next_item(task.name, reviewer):
                clip, trace = frame.loc[item.clip_id], traces.loc[item.trace_id]
                label = chance.choice(world.LABELS.labels) if chance.random() < errs else clip["label"]
                mistakes = world.misread(trace["text"], world.facts_of(clip["notes"]["facts"]))
                failing = {"sentence": 0, "in": "seeing"} if mistakes else None
                verdict = "wrong" if trace["provisional"] != label else "wrong reasons" if mistakes else "right"
                note = f"not as it is seen: {', '.join(mistakes)}" if mistakes else ""
                answer = {"label": label, "verdict": verdict, "failing": failing, "note": note}
                reviews.judge(task.name, reviewer, item.trace_id, answer)


if __name__ == "__main__":
    main()
