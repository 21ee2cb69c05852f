"""Health remarks: what a training's curves say, in plain words with their numbers.

    for remark in remarks(run.read("steps")):
        print(remark.kind, remark.text)

Each rule compares the mean of the first quarter with that of the last (at least three updates), and a change counts
when it is twice what the noise between neighbouring updates would make of it. They say what to look at, not what is so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deepintuit_analysis.numbers import percent

FEWEST = 6
"""Below so many updates nothing is said about a trend."""


@dataclass(frozen=True)
class Remark:
    """`kind`: good, warn, bad, or plain where a fact is no verdict."""

    kind: str
    text: str


@dataclass(frozen=True)
class Course:
    """One logged number over the updates: where it began, where it ended, and what noise alone would do to the two."""

    values: np.ndarray
    steps: np.ndarray

    @property
    def width(self) -> int:
        return min(len(self.values), max(3, len(self.values) // 4))

    @property
    def first(self) -> float:
        return float(self.values[: self.width].mean())

    @property
    def last(self) -> float:
        return float(self.values[-self.width :].mean())

    @property
    def change(self) -> float:
        return self.last - self.first

    @property
    def noise(self) -> float:
        """Standard error of `change`, from the differences of neighbours: a trend adds little to them."""
        return float(np.std(np.diff(self.values)) / math.sqrt(2) * math.sqrt(2 / self.width))

    @property
    def moved(self) -> bool:
        return abs(self.change) > 2 * self.noise and abs(self.change) > 1e-9

    @property
    def finite(self) -> Course:
        mask = np.isfinite(self.values)
        return Course(self.values[mask], self.steps[mask])


Courses = dict[str, Course]


def remarks(steps: pd.DataFrame) -> list[Remark]:
    """What is worth saying of `steps` (columns step, name, value), the worst first. Nothing logged: nothing said."""
    by_name = {
        str(name): Course(rows["value"].to_numpy(float), rows["step"].to_numpy())
        for name, rows in steps.sort_values("step").groupby("name")
    }
    broken = list(_not_numbers(by_name))
    sound = {name: course.finite for name, course in by_name.items()}
    sound = {name: course for name, course in sound.items() if len(course.values)}
    longest = max((len(course.values) for name, course in sound.items() if name in ("reward", "loss")), default=0)
    if 0 < longest < FEWEST:
        return [*broken, Remark("plain", f"{longest} updates so far: too few to tell a trend from noise.")]
    remarks = broken + [remark for rule in RULES for remark in rule(sound)]
    return sorted(remarks, key=lambda remark: ("bad", "warn", "good", "plain").index(remark.kind))


def _not_numbers(courses: Courses) -> Iterator[Remark]:
    for name in ("loss", "reward", "grad_norm"):
        if name in courses and not (finite := np.isfinite(courses[name].values)).all():
            first = int(courses[name].steps[~finite][0])
            text = f"{_shown(name)} is not a number from update {first} on ({(~finite).sum()} of {len(finite)} updates)"
            yield Remark("bad", f"{text}: lower the rate, or look for a clip that breaks the sum.")


def _reward(courses: Courses) -> Iterator[Remark]:
    reward = courses.get("reward")
    if reward is None:
        return
    span = f"from {reward.first:.2f} to {reward.last:.2f}"
    updates = f"{len(reward.values)} updates"
    if not reward.moved:
        change = f"it went {span} in {updates} ({reward.change:+.2f}), and noise alone makes ±{2 * reward.noise:.2f}"
        yield Remark("warn", f"The reward did not rise: it moved less than its own noise; {change}.")
    elif reward.change > 0:
        yield Remark("good", f"The reward rose {span} in {updates}; noise alone makes ±{2 * reward.noise:.2f}.")
    else:
        yield Remark("bad", f"The reward fell {span} in {updates}: the rate may be too high.")


def _well_formed(courses: Courses) -> Iterator[Remark]:
    share = courses.get("well_formed")
    if share is None:
        return
    reward = courses.get("reward")
    if share.moved and share.change < -0.03:
        rose = reward is not None and reward.moved and reward.change > 0
        context = " while the reward rose" if rose else ""
        span = f"from {percent(share.first)} to {percent(share.last)}{context}"
        kind = "bad" if share.change < -0.1 else "warn"
        yield Remark(kind, f"The well-formed share fell {span}: the rate may be too high.")
    elif share.last < 0.5:
        yield Remark(
            "bad", f"Only {percent(share.last)} of the traces are well-formed: train the cold start longer before GRPO."
        )
    else:
        yield Remark(
            "good", f"{percent(share.last)} of the traces are well-formed (at the beginning {percent(share.first)})."
        )


def _groups(courses: Courses) -> Iterator[Remark]:
    ties = courses.get("zero_variance_share")
    if ties is None:
        return
    teaching = 1 - float(ties.values.mean())
    now = f"{percent(teaching)} of the groups teach (in the last {ties.width} updates {percent(1 - ties.last)})"
    if teaching >= 0.5:
        yield Remark("good", f"{now}: their traces earn different rewards.")
    else:
        todo = "take harder clips, more traces per group, or grpo.dynamic_sampling"
        kind = "bad" if teaching < 0.1 else "warn"
        yield Remark(kind, f"Only {now}; in the others all traces earn the same, and nothing is learned: {todo}.")


def _entropy(courses: Courses) -> Iterator[Remark]:
    entropy = courses.get("entropy")
    if entropy is None or "reward" not in courses or not entropy.moved:
        return  # while imitating, a falling entropy is what is wanted
    span = f"from {entropy.first:.3g} to {entropy.last:.3g} nats a token"
    if entropy.last < 0.3 * entropy.first:
        yield Remark("bad", f"Entropy collapsed {span}: the traces of a group become alike, and groups stop teaching.")
    elif entropy.last > 3 * entropy.first:
        yield Remark("warn", f"Entropy grew {span}: the traces drift apart; the rate may be too high.")


def _lengths(courses: Courses) -> Iterator[Remark]:
    tokens, cut = courses.get("tokens_mean"), courses.get("truncated_share")
    if tokens is not None and tokens.moved and not 0.75 < tokens.last / max(tokens.first, 1e-9) < 1.33:
        way = "shorter" if tokens.change < 0 else "longer"
        yield Remark("warn", f"The traces became {way}: {tokens.first:.0f} → {tokens.last:.0f} tokens.")
    if cut is not None and cut.last > 0.1:
        yield Remark("warn", f"{percent(cut.last)} of the traces are cut at the limit: raise grpo.max_tokens.")


def _loss(courses: Courses) -> Iterator[Remark]:
    loss = courses.get("loss")
    if loss is None or "reward" in courses:
        return  # GRPO's loss hovers round zero and says little
    span = f"from {loss.first:.3g} to {loss.last:.3g} nats a token in {len(loss.values)} updates"
    if not loss.moved:
        yield Remark("warn", f"The loss did not fall: it moved less than its own noise, {span}.")
    elif loss.change > 0:
        yield Remark("bad", f"The loss rose {span}: the rate may be too high.")
    else:
        yield Remark("good", f"The training loss fell {span}.")


def _validation(courses: Courses) -> Iterator[Remark]:
    nll = courses.get("validation_nll")
    if nll is None or len(nll.values) < 2:
        return
    best = int(np.argmin(nll.values))
    at_best, at_last = nll.values[best], nll.values[-1]
    of = f"of {len(nll.values)}"
    if best == len(nll.values) - 1:
        text = (
            f"Validation NLL still fell at the last epoch ({nll.values[-2]:.3f} → {at_last:.3f}, epoch {best + 1} {of})"
        )
        yield Remark("good", f"{text}: more epochs may help.")
    else:
        span = f"validation NLL {at_best:.3f} at epoch {best + 1}, {at_last:.3f} at the last"
        text = f"Over-fits from epoch {best + 2} {of}: {span}. The weights of epoch {best + 1} are kept."
        yield Remark("warn" if best else "bad", text)


def _rate(courses: Courses) -> Iterator[Remark]:
    rate = courses.get("learning_rate")
    if rate is not None and rate.values.max() == 0:
        yield Remark("bad", f"The learning rate is 0 in all {len(rate.values)} updates: nothing can be learned.")


def _sampler(courses: Courses) -> Iterator[Remark]:
    apart, effective = courses.get("sampler_difference_mean"), courses.get("sampler_effective_share")
    if apart is None or effective is None:
        return
    text = f"Server and loss are {apart.last:.2g} apart in log-probability on average"
    if effective.last < 0.9:
        share = f"{percent(effective.last)} of the tokens count effectively"
        yield Remark("warn", f"{text}, and {share}: see docs/servers.md, A sampler for GRPO.")
    else:
        yield Remark("good", f"{text}.")


RULES: tuple[Callable[[Courses], Iterator[Remark]], ...] = (
    _reward, _well_formed, _groups, _entropy, _lengths, _loss, _validation, _rate, _sampler,
)  # fmt: skip


def _shown(name: str) -> str:
    return {"loss": "The loss", "reward": "The reward", "grad_norm": "The gradient's norm"}[name]
