"""A whole GRPO step (sample, score, loss, update), against TRL's way: the clip's pixels in all G rows, twice.

Plain: tower and prefill G times in `generate`, then the loss over G whole rows with the tower again. Ours: features
from memory, a group as one row until its traces part, the loss over their prefix tree. Both are the same trainer, which
is TRL's, on homecam clips from the same cold-started weights, each turn from those weights anew: the same traces from
the same random streams, the same rewards. Traces, loss and gradients of the two are compared before anything is timed.

`--first` lets ours run the tower in the step, once a clip, as in the first epoch of a clip that no stage has met.

Run it:  python benchmarks/grpo_step.py [--clips 32] [--group 8] [--repeats 3] [--first] [--threads 1]
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass

import torch
from measure import Counted, Row, beside, chosen, in_turns, now, options, report
from routes import Plain, Start, route, start_of, started
from transformers import PrinterCallback, TrainerCallback

from deepintuit import grpo
from deepintuit.grpo.round import Scorer
from deepintuit.grpo.trainer import Trainer
from deepintuit.reasoner import LocalReasoner, Task
from deepintuit_analysis import Workbench


class Watched(TrainerCallback):
    """A step: its seconds, those of sampling and scoring in it, and the gradient before the update."""

    def __init__(self, trainer: Trainer):
        self.sampling, self.gradient, self.counted = 0.0, torch.empty(0), Counted()
        self._sample = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = self._sampled
        trainer.add_callback(self)

    def _sampled(self, inputs):
        started = now()
        batch = self._sample(inputs)
        self.sampling += now() - started
        return batch

    def on_step_begin(self, args, state, control, **kwargs):
        self.counted.__enter__()
        self.started = now()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = now() - self.started
        self.counted.__exit__()


@dataclass
class Step:
    """What a step was: seconds, of them sampling with scoring, counts, its traces, its gradient."""

    seconds: float
    sampling: float
    counted: Counted
    traces: list[list[int]]
    gradient: torch.Tensor


def step(name: str, start: Start, given, first: bool) -> Step:
    """One update from the start's weights, in a throw-away workbench."""
    settings = start.settings.replace(
        model={"share_prefix": name == "ours"},
        grpo={"clips_per_step": given.clips, "group": given.group, "max_steps": 1},
    )
    with tempfile.TemporaryDirectory() as scratch, route(name):
        task = Task(start.workbench.path, settings)
        cache = None if first else start.workbench.cache
        vlm = grpo.VLM.load(
            settings.model, settings.video, checkpoint=start.cold.checkpoint, cache=cache, trainable=True
        )
        reasoner = LocalReasoner(vlm, task, settings.seed)
        clips = task.clips("grpo")[: given.clips]
        if not first or isinstance(vlm, Plain):  # the plain route holds pixels; its towers run in the step
            reasoner.encode(clips)
        run = Workbench(scratch).start_run("grpo", {})
        with run:
            trainer = Trainer(Scorer(reasoner, settings), clips, settings, run, False)
            trainer.remove_callback(PrinterCallback)
            watched = Watched(trainer)
            trainer.train()
            traces = [list(ids) for ids in run.read("traces", ["token_ids"])["token_ids"]]
            run.finish()
    return Step(watched.seconds, watched.sampling, watched.counted, traces, watched.gradient)


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--clips", type=int, default=32, help="as configs/tiny.toml has them")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--first", action="store_true", help="no features are kept from an earlier stage")
    start_of(parser)
    given = chosen(parser)
    start = started(given.workbench)
    found: dict[str, list[Step]] = {"plain": [], "ours": []}
    calls = {name: lambda name=name: found[name].append(step(name, start, given, given.first)) for name in found}
    in_turns(calls, given.repeats, warm=False)  # its seconds hold loading, too: those of the steps are in `found`
    plain, ours = found["plain"][0], found["ours"][0]
    alike = sum(a == b for a, b in zip(plain.traces, ours.traces, strict=True))
    assert ours.gradient.norm() > 0, "all traces of each clip earn the same, so nothing is learned: take more --clips"
    far = float((plain.gradient - ours.gradient).norm() / ours.gradient.norm())
    assert alike == len(ours.traces), f"{alike} of {len(ours.traces)} traces are the same"
    assert far < 1e-3, f"gradients differ by {far:.2g} of their length"
    spent = {name: [one.seconds for one in steps] for name, steps in found.items()}
    parts = {
        "sampling and scoring": lambda one: one.sampling,
        "loss and update": lambda one: one.seconds - one.sampling,
    }
    parts = {
        title: tuple(statistics.median(map(part, found[name])) for name in ("plain", "ours"))
        for title, part in parts.items()
    }
    when = ", features first" if given.first else ""
    claim = f"whole GRPO step, {given.clips} clips × {given.group} traces{when}"
    lengths = [len(trace) for trace in ours.traces]
    row = Row(claim, spent["ours"], spent["plain"], beside(plain.counted, ours.counted), parts, aim=3)
    distinct = len({tuple(trace) for trace in ours.traces})
    report(
        given,
        [row],
        f"homecam, traces of {min(lengths)} to {max(lengths)} tokens, {distinct} of {len(lengths)} "
        f"distinct; the same traces by both routes, gradients within {far:.1g}",
    )


if __name__ == "__main__":
    main()
