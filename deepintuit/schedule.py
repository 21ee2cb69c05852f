"""How many updates a training makes, and at which rates: known before anything is loaded, and what the trainers are
given.

    of_grpo(config.grpo, clips=217).sentence()
    "GRPO: 3 updates of 64 clips, at a rate of 1e-06 …"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deepintuit.config import CalibrateConfig, ColdstartConfig, Config, GrpoConfig, Section
from deepintuit.errors import ConfigError

FEW = 50
"""Updates of GRPO below which little can be learned: the warning's bound [R]."""


@dataclass(frozen=True)
class Schedule:
    """`updates` of `batch` items each out of `items`; the rate rises over the first `warmup` ones to `peak`, then takes
    its `shape`: constant, cosine or linear."""

    stage: str
    items: int
    unit: str
    batch: int
    updates: int
    warmup: int
    peak: float
    shape: str

    def rate(self, update: int) -> float:
        """The rate of an update, counted from 0: transformers' schedules, as a formula."""
        if update < self.warmup:
            return self.peak * update / self.warmup
        progress = (update - self.warmup) / max(1, self.updates - self.warmup)
        falls = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        return self.peak * falls[self.shape]

    def sentence(self) -> str:
        """What will be done, in words: the rate at the first and last update and at each tenth between them."""
        updates = sorted({round(tenth * (self.updates - 1) / 10) for tenth in range(11)})
        rates = ", ".join(f"{self.rate(update):.2g}" for update in updates)
        passes = self.updates * self.batch / self.items
        return (
            f"{self.stage}: {self.updates} update{'s' * (self.updates != 1)} of {self.batch} {self.unit} "
            f"({self.items} there, {passes:.3g} passes); peak rate {self.peak:.2g} after {self.warmup} of warm-up, "
            f"{self.shape} then; from the first update to the last: {rates}."
        )

    def refuse_no_peak(self, section: str) -> None:
        """Raises `ConfigError` where the warm-up takes all updates, so that the rate never gets where it should."""
        if self.warmup >= self.updates:
            warmup = "warmup_steps or warmup_share" if section == "grpo" else "warmup"
            raise ConfigError(
                f"a warm-up of {self.warmup} updates, and only {self.updates} are made",
                f"the rate would begin at 0 and never reach {section}.learning_rate",
                f"Lower {section}.{warmup}, or make more updates: raise {section}.epochs, or take fewer a step",
            )


def of_grpo(settings: GrpoConfig, clips: int) -> Schedule:
    """Of GRPO on so many clips: warm-up is at most a share of all updates, so that a small set trains at its rate."""
    batch = min(settings.clips_per_step, clips)
    updates = settings.max_steps or max(1, round(settings.epochs * clips / batch))
    warmup = min(settings.warmup_steps, math.floor(settings.warmup_share * updates))
    return Schedule("GRPO", clips, "clips", batch, updates, warmup, settings.learning_rate, "constant")


def few(schedule: Schedule) -> str:
    """The warning about a GRPO of too few updates, and what would make enough; empty where there are enough."""
    if schedule.updates >= FEW:
        return ""
    passes = math.ceil(FEW * schedule.batch / schedule.items)
    return (
        f" Warning: so few updates teach little, {FEW} or more are wanted. Set grpo.epochs={passes}, or lower "
        "grpo.clips_per_step; configs/small.toml has settings for small sets."
    )


def of_rows(
    stage: str, rows: int, batch: int, epochs: float, peak: float, warmup: float = 0.06, shape: str = "cosine"
) -> Schedule:
    """Of fine-tuning on so many rows; an epoch's last update may hold fewer than a batch."""
    updates = max(1, math.ceil(epochs * math.ceil(rows / batch)))
    return Schedule(stage, rows, "rows", min(batch, rows), updates, round(warmup * updates), peak, shape)


def of_coldstart(settings: ColdstartConfig, rows: int) -> Schedule:
    title = "Cold start" if settings.target == "trace" else "Labels only"
    recipe = settings.batch, settings.epochs, settings.learning_rate, settings.warmup, settings.scheduler
    return of_rows(title, rows, *recipe)


def of_calibrate(settings: CalibrateConfig, rows: int) -> Schedule:
    return of_rows("Calibrator", rows, settings.batch, settings.epochs, settings.learning_rate)


def before_coldstart(traces: int | None, config: Config, counts: Mapping[str, int]) -> str:
    """What a dry run says: `traces` kept traces of a teacher (None: a label per clip), `counts` clips by split."""
    rows = sum(counts.values()) if traces is None else traces
    return _said(of_coldstart, config.coldstart, min(rows, config.coldstart.limit or rows))


def before_grpo(config: Config, counts: Mapping[str, int]) -> str:
    return _said(of_grpo, config.grpo, counts["grpo"])


def before_calibrate(config: Config, counts: Mapping[str, int]) -> str:
    each = config.calibrate.traces + config.calibrate.greedy_trace
    return _said(of_calibrate, config.calibrate, each * counts["calibration"])


def _said(of: Callable, settings: Section, count: int) -> str:
    if not count:
        return "Nothing to train on."
    schedule = of(settings, count)
    schedule.refuse_no_peak(settings.dotted())
    return schedule.sentence() + (few(schedule) if of is of_grpo else "")


def fractions(settings: Config) -> dict[str, float]:
    """Shares of all groups by split: the stages divide what validation and test leave."""
    clips = settings.clips
    training = 1 - clips.validation_share - clips.test_share
    return {
        "coldstart": clips.coldstart_share * training,
        "grpo": clips.grpo_share * training,
        "calibration": clips.calibration_share * training,
        "validation": clips.validation_share,
        "test": clips.test_share,
    }
