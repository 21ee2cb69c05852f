"""An epoch of calibration, several rows a clip, against a row each with its clip as pixels, as one trains with TRL.

The stage's own training, one epoch: homecam clips, four sampled traces and the greedy one each, prompts with labels in
shuffled order. Rows of a clip that stand in one batch share their prompt as far as it is alike: a batch of 16 rows is
drawn row by row and has few such, the paper's 256 hold all rows of a clip. The tower's features come from memory. The
losses of the steps are compared before anything is timed.

Run it:  python benchmarks/calibration.py [--clips 24] [--batch 16] [--repeats 3] [--threads 1]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from measure import Counted, Row, beside, chosen, in_turns, now, options, report
from routes import Start, route, start_of, started

from deepintuit import calibrate
from deepintuit.reasoner import Clip, LocalReasoner, Task
from deepintuit.stage import Stage
from deepintuit.vlm import VLM
from deepintuit.vlm import finetune as training
from deepintuit_analysis import Workbench


def written(start: Start, count: int) -> list[tuple[Clip, list]]:
    """Clips of the calibration split with the traces that the cold start writes about them, the greedy one last."""
    settings = start.settings
    vlm = VLM.load(settings.model, settings.video, checkpoint=start.cold.checkpoint, cache=start.workbench.cache)
    task = Task(start.workbench.path, settings)
    local, limit = LocalReasoner(vlm, task, settings.seed), settings.sampling.max_tokens
    clips = task.clips("calibration")[:count]
    sampled = local.groups(clips, range(settings.calibrate.traces), temperature=1.0, max_tokens=limit)
    greedy = local.groups(clips, [0], temperature=0.0, max_tokens=limit)
    return [
        (clip, [task.parse(sample.text, sample.truncated) for sample in [*group, *last]])
        for (clip, _, group), (_, _, last) in zip(sampled, greedy, strict=True)
    ]


def epoch(name: str, start: Start, traces: list[tuple[Clip, list]], batch: int) -> tuple[float, Counted, np.ndarray]:
    """Seconds of the training, counts, and the loss of each step; from the cold start's weights, in a throw-away
    workbench."""
    settings = start.settings.replace(
        model={"share_prefix": name == "ours"}, calibrate={"epochs": 1.0, "patience": 0, "batch": batch}
    )
    task, counted, spent = Task(start.workbench.path, settings), Counted(), []
    train = training._Trainer.train_or_resume

    def clocked(trainer, folder: Path) -> None:  # without loading and setting up, which ten epochs have once
        began = now()
        train(trainer, folder)
        spent.append(now() - began)

    with tempfile.TemporaryDirectory() as scratch, route(name):
        load = {"checkpoint": start.cold.checkpoint, "cache": start.workbench.cache, "trainable": True}
        reasoner = LocalReasoner(VLM.load(settings.model, settings.video, **load), task)
        known = reasoner.readable([clip for clip, _ in traces])
        rows = calibrate.calibrator_rows(known, [(at, trace) for at, (_, some) in enumerate(traces) for trace in some])
        training._Trainer.train_or_resume = clocked
        try:
            with Workbench(scratch).start_run("calibrate", {}) as run, counted:
                stage = Stage(start.workbench, settings, run, reasoner, progress=False)
                calibrate.train(stage, rows, held_out=rows, truth=np.empty(0))  # patience 0: nothing is validated
                run.finish()
        finally:
            training._Trainer.train_or_resume = train
        logged = run.read("steps")
        losses = logged.loc[logged["name"] == "loss", "value"].to_numpy()
    return spent[0], counted, losses


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument(
        "--batch",
        type=int,
        help="rows an update, else as the start has it (16); from 80 on, "
        "16 clips of 5, the rows of a clip stand together",
    )
    start_of(parser)
    given = chosen(parser)
    start = started(given.workbench)
    traces, batch = written(start, given.clips), given.batch or start.settings.calibrate.batch
    found: dict[str, list] = {"plain": [], "ours": []}
    calls = {name: lambda name=name: found[name].append(epoch(name, start, traces, batch)) for name in found}
    in_turns(calls, given.repeats)
    (_, plain, before), (_, ours, after) = found["plain"][0], found["ours"][0]
    assert len(before) == len(after) and np.allclose(before, after, rtol=1e-2), f"losses {before} and {after}"
    spent = {name: [seconds for seconds, _, _ in epochs[1:]] for name, epochs in found.items()}
    rows = sum(len(some) for _, some in traces)
    claim = f"calibration epoch, {len(traces)} clips × {rows // len(traces)} rows, {batch} an update"
    row = Row(claim, spent["ours"], spent["plain"], beside(plain, ours))
    far = float(np.abs(before - after).max())
    report(given, [row], f"homecam, {len(after)} updates; their losses differ by at most {far:.1g}")


if __name__ == "__main__":
    main()
