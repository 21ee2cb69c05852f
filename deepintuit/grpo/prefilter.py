"""Before GRPO: a group of traces of each clip by the model it starts from, and what they say about the clips.

`Diagnostics`: is there anything to learn? `DifficultyFilter` (VideoAuto-R1): clips whose traces are all right or all
wrong have nothing to teach, and are left out. Both count the same traces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from deepintuit import ranks
from deepintuit.advantage import kept_by_dynamic_sampling
from deepintuit.config import Config
from deepintuit.errors import DataError
from deepintuit.reasoner import Clip, LocalReasoner, tell
from deepintuit.rewards import accuracy_reward
from deepintuit.runs import Run
from deepintuit.trace import Malformed, Trace

STAGE = "filter"
"""The stage of the data filter's traces, in the run of GRPO that they belong to."""

Traces = Mapping[str, Sequence[Trace | Malformed]]
"""Clip id → the traces of its group."""


def choose(reasoner: LocalReasoner, clips: list[Clip], config: Config, run: Run, progress: bool) -> list[Clip]:
    """The clips that GRPO trains on, after filter and check where the settings ask for them; both are noted, logged and
    with `progress` printed, once a run. DataError when the filter leaves none."""
    selection, settings = clips, config.grpo
    if settings.filter_rollouts:
        traces = sample_groups(reasoner, clips, settings.filter_rollouts, config, run)
        selection, stats = filter_clips(clips, traces)
        _tell(run, "filter", stats, progress)
    if settings.check_clips and "check" not in run.about:
        if not settings.filter_rollouts:
            traces = sample_groups(reasoner, clips[: settings.check_clips], settings.group, config)
        _tell(run, "check", Diagnostics.of(traces, clips), progress)
    if not selection:
        raise DataError(
            "no clip of the split 'grpo' is left by the data filter",
            f"of {len(clips)} clips, {stats.all_right} have all {stats.rollouts} traces right and {stats.all_wrong} "
            "all wrong: neither would teach anything",
            "Start from another run, raise grpo.filter_rollouts or grpo.temperature, or set grpo.filter_rollouts=0",
        )
    return selection


def _tell(run: Run, name: str, stats: Diagnostics | DifficultyFilter, progress: bool) -> None:
    if name in run.about:
        return
    run.note(**{name: asdict(stats)})
    tell(run, stats.sentence(), progress)


def sample_groups(
    reasoner: LocalReasoner, clips: Sequence[Clip], count: int, config: Config, run: Run | None = None
) -> Traces:
    """`count` traces of each clip at the temperature of training. With `run` they are stored there as they come, and
    what it holds is not sampled again. Of several processes each samples its share."""
    task, settings, batch, traces = reasoner.task, config.grpo, config.sampling.clips_per_batch, {}

    def written() -> Traces:
        rows = run.read("traces", ["clip_id", "stage", "sample", "text", "truncated"])
        rows = rows[rows["stage"] == STAGE].sort_values("sample")
        return {
            clip_id: [task.parse(text, bool(cut)) for text, cut in zip(group["text"], group["truncated"])]
            for clip_id, group in rows.groupby("clip_id", sort=False)
        }

    if run is not None:
        traces = ranks.first(written)
    missing = [clip for clip in clips if clip.clip_id not in traces]
    if run is not None and missing:
        run.log(f"Data filter: {count} traces of each of {len(missing)} clips, {len(traces)} have theirs.")
    new = {}
    for start in ranks.share(range(0, len(missing), batch)):
        groups = reasoner.groups(
            missing[start : start + batch],
            range(count),
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            step=-1,  # names the random streams: the first update has its own
        )
        if run is not None:  # a batch is one part, so a clip has all of its traces or none
            rows = [
                replace(reasoner.row(clip, encoded, sample, number, settings.temperature), stage=STAGE)
                for clip, encoded, group in groups
                for number, sample in enumerate(group)
            ]
            run.append("traces", rows)
        new |= {clip.clip_id: [task.parse(s.text, s.truncated) for s in group] for clip, _, group in groups}
    for more in ranks.gather(new):
        traces |= more
    return traces


def _right(traces: Traces, clips: Sequence[Clip]) -> list[list[float]]:
    """Of each clip that has traces, whether each is right."""
    return [[accuracy_reward(t, clip.label) for t in traces[clip.clip_id]] for clip in clips if clip.clip_id in traces]


@dataclass(frozen=True)
class DifficultyFilter:
    """What the data filter did: clips kept, and those left out."""

    rollouts: int
    kept: int
    all_right: int
    all_wrong: int

    def sentence(self) -> str:
        return (
            f"Data filter, {self.rollouts} traces a clip: {self.kept} of {self.kept + self.all_right + self.all_wrong} "
            f"clips kept; left out {self.all_right} all right, {self.all_wrong} all wrong."
        )


def filter_clips(clips: Sequence[Clip], traces: Traces) -> tuple[list[Clip], DifficultyFilter]:
    """The clips with some traces right and some wrong, and what became of the others."""
    shares = [float(np.mean(group)) for group in _right(traces, clips)]
    mixed = [clip for clip, share in zip(clips, shares, strict=True) if 0 < share < 1]
    rollouts = len(next(iter(traces.values()), ()))
    return mixed, DifficultyFilter(rollouts, len(mixed), shares.count(1.0), shares.count(0.0))


@dataclass(frozen=True)
class Diagnostics:
    """What sampling at the training temperature gives before GRPO: shares over traces, and the share of groups that
    can teach."""

    traces: int
    well_formed: float
    correct: float
    groups_that_teach: float
    reasons: dict[str, int]

    @classmethod
    def of(cls, traces: Traces, clips: Sequence[Clip]) -> Diagnostics:
        flat = [trace for group in traces.values() for trace in group]
        right = np.array(_right(traces, clips))
        return cls(
            len(flat),
            float(np.mean([trace.ok for trace in flat])),
            float(right.mean()),
            float(kept_by_dynamic_sampling(right).mean()),
            dict(Counter(str(trace.reason) for trace in flat if not trace.ok)),
        )

    @property
    def hopeless(self) -> bool:
        return self.groups_that_teach == 0 or self.well_formed < 0.05

    def sentence(self) -> str:
        text = (
            f"Before GRPO, {self.traces} traces at the sampling temperature: "
            f"{self.well_formed:.0%} well-formed, {self.correct:.0%} correct, "
            f"{self.groups_that_teach:.0%} of groups have both right and wrong traces."
        )
        if self.hopeless:
            text += (
                " Warning: there is nothing to learn from. Train the cold start longer or at a higher rate, or lower"
                " grpo.temperature."
            )
        if self.reasons:
            text += (
                " Malformed: " + ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items())) + "."
            )
        return text
