"""What answers cost where a miss of one class is worse than that of another: expected cost, and thresholds for it.

    bill = Costs(result, miss_K=np.array([1.0, 10.0]), alarm_K=np.array([1.0, 1.0]), validation=None)
    print(bill.answered.value, bill.cheapest.value)

Axes: `_C` clips, `_K` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from urllib.parse import quote, unquote

import numpy as np

from deepintuit.metrics import Estimate, cheapest_answers, class_indices, costs_each
from deepintuit_analysis.report.results import Result

DEAREST = 1e6


def prices(text: str, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What a miss and a false alarm of each class cost, of `label=miss/alarm;…` (labels percent-encoded): 1 where
    none is said, or what is said is no number from 0 to `DEAREST`."""
    entries = {}
    for entry in text.split(";"):
        name, _, both = entry.rpartition("=")
        entries[unquote(name)] = both.split("/")
    known_K = [entries.get(label, ()) for label in labels]
    miss_K, alarm_K = ([_price(both[k] if k < len(both) else "") for both in known_K] for k in (0, 1))
    return np.array(miss_K), np.array(alarm_K)


def text_of(miss_K: np.ndarray, alarm_K: np.ndarray, labels: Sequence[str]) -> str:
    """The way back: what `prices` reads, without classes of cost 1 and 1."""
    each = zip(labels, miss_K, alarm_K, strict=True)
    return ";".join(f"{quote(name)}={miss:g}/{alarm:g}" for name, miss, alarm in each if (miss, alarm) != (1, 1))


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        return 1.0
    return price if 0 <= price <= DEAREST else 1.0


class Bill(NamedTuple):
    """What calling a class cost: clips missed, false alarms, and the mean cost a clip."""

    missed: int
    alarms: int
    cost: Estimate


class ClassBill(NamedTuple):
    """A class as it was answered, and as called from `threshold` of its probability on. `change`: the cost of that
    minus that of the answers."""

    answered: Bill
    threshold: float
    called: Bill
    change: Estimate


@dataclass(frozen=True, eq=False)
class Costs:
    """The answers of a result at prices. A wrong answer costs a miss of the true class and a false alarm of the one
    answered, no answer the miss alone. `validation`: the same system on other clips, on which thresholds are chosen;
    without it they are alarm / (miss + alarm), the best ones where probabilities are honest."""

    result: Result
    miss_K: np.ndarray
    alarm_K: np.ndarray
    validation: Result | None = None

    @cached_property
    def answered_C(self) -> np.ndarray:
        return class_indices(self.result.frame["predicted"].tolist(), self.result.labels)

    def _each(self, answered_C: np.ndarray) -> np.ndarray:
        return costs_each(self.result.truth_C, answered_C, self.miss_K, self.alarm_K)

    @cached_property
    def answered(self) -> Estimate:
        """The mean cost of a clip as it was answered."""
        return self.result.mean(self._each(self.answered_C))

    @cached_property
    def cheapest_C(self) -> np.ndarray:
        """The answers of least expected cost by the probabilities; K where none is cheaper than no answer."""
        return cheapest_answers(self.result.probs_C_K, self.miss_K, self.alarm_K)

    @cached_property
    def cheapest(self) -> Estimate:
        return self.result.mean(self._each(self.cheapest_C))

    @cached_property
    def change(self) -> Estimate:
        """`cheapest` minus `answered`, on the same draws."""
        return self.result.mean(self._each(self.cheapest_C) - self._each(self.answered_C))

    def threshold(self, k: int) -> float:
        """The probability from which on class `k` is called."""
        miss, alarm = float(self.miss_K[k]), float(self.alarm_K[k])
        if self.validation is not None:
            return self.validation.curves_K[k].cheapest(miss, alarm)
        return alarm / (miss + alarm) if miss else math.inf

    def of_class(self, k: int) -> ClassBill:
        threshold, true_C = self.threshold(k), self.result.truth_C == k
        answered_C, called_C = self.answered_C == k, self.result.probs_C_K[:, k] >= threshold
        was, now = (
            self.miss_K[k] * (true_C & ~said_C) + self.alarm_K[k] * (said_C & ~true_C)
            for said_C in (answered_C, called_C)
        )
        bills = (
            Bill(int((true_C & ~said_C).sum()), int((said_C & ~true_C).sum()), self.result.mean(each_C))
            for said_C, each_C in ((answered_C, was), (called_C, now))
        )
        before, after = bills
        return ClassBill(before, threshold, after, self.result.mean(now - was))
