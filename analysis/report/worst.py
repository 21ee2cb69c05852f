"""Slices in which a system is worse than elsewhere, found without being asked for.

    worst = worst_slices(workbench, "evaluate-20260101-0a1b2c3d")
    worst.table()                                   # a row a slice
    worst.slices[0].conditions                      # (("seconds", "4.0 to 6.0"), ("trace says", "dark"))

Tried is each part of each column of the manifest (numbers in quarters), each true class, each common word of the
traces, and each pair of these: whether more clips are wrong than elsewhere ("accuracy"), and more than among clips that
are answered as surely ("confidence": the system is too sure there). A pair must be worse than the rest of each of its
two as well. Holm's correction is over all that was tried, single slices and pairs at half of the level each: with
probability 1 − level no slice is named falsely, whichever of nested ones is shown.

The p of a slice is on the safe side at any size. Drawn at random, its number of wrong clips is a sum of independent yes
and no (hypergeometric in each bin of confidence), whose upper tail is bounded by a binomial's of the same mean
(Hoeffding 1956). Clips of one source are alike: counts are divided by the design effect (Rao and Scott 1992), from an
upper bound of the correlation within sources. A slice that is a source is compared clip by clip.

Three conditions at once are not tried. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from scipy.sparse import csc_array, csr_array
from scipy.special import betainc, fdtri

from deepintuit.metrics import Estimate
from deepintuit_analysis.index import answers
from deepintuit_analysis.numbers import percent
from deepintuit_analysis.report.results import Result
from deepintuit_analysis.report.text import column_name

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

LEVEL = 0.05
FEWEST = 10
"""Clips of a slice, of the rest, and of each of a pair's two outside the pair; of many clips one in a hundred."""
MOST_SHOWN = 10
WORSE = {"accuracy": "less accurate", "confidence": "too sure"}
"""What is worse, as people read it."""
TRUE, SAYS, SAYS_NOT = "true class", "trace says", "trace does not say"
_ROWS = 8192
_BIN_CLIPS, _MOST_BINS = 25, 100

Condition = tuple[str, str]
"""A column of the facts and the name of its part; or one of the three above, and a class or a word."""
Parts = Mapping[Condition, np.ndarray]
"""Marks the clips that fulfil a condition."""


@dataclass(frozen=True, eq=False)
class WorstSlice:
    """`difference`: of accuracy to the clips outside. `as_sure`: the accuracy of all clips that are answered as surely,
    None without probabilities. `p`: adjusted, by what is worse ("accuracy", "confidence"), where it is at most the
    level. `alike`: other slices that were found, and are worse by much the same clips."""

    conditions: tuple[Condition, ...]
    inside_C: np.ndarray
    n: int
    errors: int
    accuracy: Estimate
    difference: Estimate
    as_sure: float | None
    p: Mapping[str, float]
    alike: tuple[tuple[Condition, ...], ...]

    @property
    def name(self) -> str:
        return words_of(self.conditions)

    @property
    def only(self) -> str:
        """What the address of the Errors page calls it."""
        return urlencode(self.conditions)


@dataclass(frozen=True)
class WorstSlices:
    """`slices`, the smallest p first; `tried`: comparisons that were corrected for; `least`: clips of a slice;
    `correlation`: the upper bound of that within sources, 0 where each clip is its own source."""

    slices: tuple[WorstSlice, ...]
    tried: int
    least: int
    level: float
    correlation: float

    def table(self) -> pd.DataFrame:
        """A row a slice, shares of 1."""
        kinds = [f"p_{kind}" for kind in WORSE]
        ends = [f"{name}{end}" for name in ("accuracy", "difference") for end in ("", "_low", "_high")]
        rows = (
            (
                item.name,
                item.n,
                item.errors,
                *astuple(item.accuracy),
                *astuple(item.difference),
                item.as_sure,
                *map(item.p.get, WORSE),
            )
            for item in self.slices
        )
        return pd.DataFrame(rows, columns=["slice", "n", "errors", *ends, "as_sure", *kinds])


def parts_of(workbench: Workbench, run_id: str, result: Result, facts: pd.DataFrame | None = None) -> Parts:
    """The parts of its clips by all that is known of them, and by the common words of the traces that it answered from.
    `facts`: where they were asked for already."""
    key = (workbench, run_id, result.system, result.split)
    facts = answers.facts(*key) if facts is None else facts
    return divided(result, facts, answers.words(*key, result.method, least(result.n)))


def divided(result: Result, facts: pd.DataFrame, words: pd.DataFrame | None = None) -> Parts:
    """By each column of the facts, by true class, and by the words (`answers.words`): one that most traces have divides
    the clips by those without it."""
    clips = result.frame.index
    facts = facts.reindex(clips).assign(**{TRUE: result.frame["true_label"]})
    parts: dict[Condition, np.ndarray] = {}
    for column in answers.sliceable(facts):
        for part in answers.parts_of(facts[column]):  # two numbers may be one where they are shown
            parts[column, part.name] = part.inside_C | parts.get((column, part.name), False)
    if words is not None:
        places = clips.get_indexer(words["clip_id"])
        for word, rows in words.groupby("word", sort=False).indices.items():
            having_C = np.zeros(len(clips) + 1, bool)
            having_C[places[rows]] = True
            having_C = having_C[:-1]  # the last one is of clips without a true label
            most = 2 * having_C.sum() > len(clips)
            parts[(SAYS_NOT if most else SAYS, word)] = ~having_C if most else having_C
    return parts


def inside(parts: Parts, conditions: Iterable[Condition]) -> np.ndarray:
    """Marks the clips that fulfil all of them. KeyError for a condition that divides nothing here."""
    return np.logical_and.reduce([parts[condition] for condition in conditions])


def least(clips: int) -> int:
    """Clips of which a slice has to consist."""
    return max(FEWEST, clips // 100)


def words_of(conditions: Iterable[Condition]) -> str:
    """A slice as people read it."""
    forms = {SAYS: "{} “{}”", SAYS_NOT: "{} “{}”"}
    return " and ".join(forms.get(column, "{}: {}").format(column_name(column), part) for column, part in conditions)


def tried(worst: WorstSlices) -> str:
    """What was compared and corrected for, in words."""
    if not worst.tried:
        return f"No slice could be tried: one has at least {worst.least} clips, and leaves as many outside."
    text = (
        f"{worst.tried:,} comparisons of slices of at least {worst.least} clips: columns, true classes, words of "
        f"traces, and pairs of them. Holm's correction keeps the chance of any false one at {percent(worst.level)}."
    )
    alike = f" Clips of one source count for less: their errors are correlated by up to {worst.correlation:.2f}."
    return text + alike * bool(worst.correlation)


def worst_of(result: Result, parts: Parts, level: float = LEVEL) -> WorstSlices:
    """Among these parts of its clips and their pairs."""
    fewest, C, wrong_C = least(result.n), result.n, ~result.right_C.astype(bool)
    parts = {name: inside_C for name, inside_C in parts.items() if fewest <= inside_C.sum() <= C - fewest}
    if not parts:
        return WorstSlices((), 0, fewest, level, 0.0)
    correlation = _correlation(wrong_C, result.groups_C)
    expected = {"accuracy": np.full(C, wrong_C.mean())}
    if result.probs_C_K is not None:
        expected["confidence"] = _of_equally_sure(wrong_C, result.frame["confidence"].to_numpy())
    names = list(parts)
    sums = _sums(_members(parts.values(), C), [np.ones(C), wrong_C, *expected.values()])
    adjusted_p: dict[tuple[Condition, ...], dict[str, float]] = {}
    families = _families(names, sums[0], fewest)
    for a, b in families:
        p = np.stack([_p_of((*sums[:2], of_kind), wrong_C.sum(), a, b) for of_kind in sums[2:]])
        if correlation:
            near = p <= 10 * level / p.size  # others cannot be found any more
            for kind, k in np.argwhere(near):
                pair = (names[a[k]], names[b[k]])
                if {column for column, _ in pair} != {"group"}:
                    effect = _design_effect(result.groups_C[inside(parts, pair)], correlation)
                    triple = (*sums[:2], sums[2 + kind])
                    p[kind, k] = _p_of(triple, wrong_C.sum(), a[[k]], b[[k]], effect)[0]
            p[~near] = 1
        adjusted = len(families) * _holm(p.ravel()).reshape(p.shape)
        for kind, k in np.argwhere(adjusted <= level):
            pair = tuple(dict.fromkeys((names[a[k]], names[b[k]])))
            adjusted_p.setdefault(pair, {})[[*expected][kind]] = float(adjusted[kind, k])
    slices = _apart(adjusted_p, {pair: inside(parts, pair) for pair in adjusted_p}, wrong_C, expected, level)
    tried = len(expected) * sum(len(a) for a, _ in families)
    items = (_described(result, *item, adjusted_p[item[0]], expected.get("confidence")) for item in slices)
    return WorstSlices(tuple(items), tried, fewest, level, correlation)


def _described(result, conditions, inside_C, alike, p, expected_C) -> WorstSlice:
    errors = int((inside_C & ~result.right_C.astype(bool)).sum())
    as_sure = None if expected_C is None else 1 - float(expected_C[inside_C].mean())
    accuracy = result.share(result.right_C, inside_C)
    difference = result.to_the_rest(inside_C)
    return WorstSlice(conditions, inside_C, int(inside_C.sum()), errors, accuracy, difference, as_sure, p, tuple(alike))


def _families(names: Sequence[Condition], n_A_A: np.ndarray, fewest: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is tried: single parts, as pairs with themselves, and pairs. None is chosen by what was answered."""
    n_A, (a, b) = n_A_A.diagonal(), np.triu_indices(len(names), 1)
    source_A = np.array([column == "group" for column, _ in names], bool)
    real = (n_A_A[a, b] >= fewest) & (np.minimum(n_A[a], n_A[b]) - n_A_A[a, b] >= fewest)
    real &= ~(source_A[a] | source_A[b])  # what befalls a source is no matter of chance between its clips
    singles = np.arange(len(names))
    return [(a, b) for a, b in ((singles, singles), (a[real], b[real])) if len(a)]


def _apart(adjusted_p, inside, wrong_C, expected, level) -> list[tuple[tuple[Condition, ...], np.ndarray, list]]:
    """Of what was found those that are still worse without the clips of those before, the smallest p first, and pairs
    before single ones, since a pair that was found says more. Any other stands with what it shares most clips with."""
    slices: list[tuple[tuple[Condition, ...], np.ndarray, list]] = []
    covered_C = np.zeros(len(wrong_C), bool)
    for pair in sorted(
        adjusted_p, key=lambda item: (-len(item), min(adjusted_p[item].values()), -inside[item].sum(), item)
    ):
        left_C = inside[pair] & ~covered_C
        mean, errors = expected[min(adjusted_p[pair], key=adjusted_p[pair].get)][left_C].sum(), wrong_C[left_C].sum()
        if slices and _tail(errors, mean, min(left_C.sum(), wrong_C.sum())) > level:
            nearest = max(slices, key=lambda item: (item[1] & inside[pair]).sum() / (item[1] | inside[pair]).sum())
            nearest[2].append(pair)
        else:
            slices.append((pair, inside[pair], []))
            covered_C |= inside[pair]
    return sorted(slices, key=lambda item: min(adjusted_p[item[0]].values()))[:MOST_SHOWN]


# Sums


def _members(parts: Iterable[np.ndarray], clips: int) -> csr_array:
    """(C, A): 1 where a clip is in a part."""
    places = [np.flatnonzero(inside_C) for inside_C in parts]
    ends = np.cumsum([0, *map(len, places)])
    filled = np.concatenate([np.empty(0, np.intp), *places])
    return csc_array((np.ones(len(filled), np.float32), filled, ends), shape=(clips, len(places))).tocsr()


def _sums(member_C_A: csr_array, values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(A, A) for each of the values: its sum over the clips that are in both parts."""
    sums = [np.zeros((member_C_A.shape[1],) * 2) for _ in values]
    for start in range(0, member_C_A.shape[0], _ROWS):
        dense = member_C_A[start : start + _ROWS].toarray()
        for total, values_C in zip(sums, values):
            weights = values_C[start : start + _ROWS].astype(np.float32)
            some = weights != 0
            total += dense[some].T @ (dense[some] * weights[some, None])
    return sums


def _of_equally_sure(wrong_C: np.ndarray, confidence_C: np.ndarray) -> np.ndarray:
    """For each clip the share of wrong answers in its bin of confidence; bins hold about as many clips each."""
    bins = int(np.clip(len(wrong_C) // _BIN_CLIPS, 1, _MOST_BINS))
    edges = np.quantile(confidence_C, np.linspace(0, 1, bins + 1)[1:-1])
    place_C = np.searchsorted(edges, confidence_C, side="right")
    return (np.bincount(place_C, wrong_C) / np.maximum(1, np.bincount(place_C)))[place_C]


# Chance


def _p_of(sums: Sequence[np.ndarray], total: float, a: np.ndarray, b: np.ndarray, effect: float = 1.0) -> np.ndarray:
    """That so many clips of a and b are wrong by chance: against all clips, of which `total` are, and of a pair against
    each of its two as well. `sums`: clips, wrong and expected ones, (A, A) each."""
    n, errors, expected = (of_each[a, b] for of_each in sums)
    p = _tail(errors, expected, np.minimum(n, total), effect)
    for alone in (a, b):
        among, mean = sums[1][alone, alone], sums[2][alone, alone]
        share = np.divide(expected, mean, out=np.ones_like(mean), where=mean > 0)
        p = np.where(a == b, p, np.maximum(p, _tail(errors, among * share, np.minimum(n, among), effect)))
    return p


def _tail(errors, mean, most, effect: float = 1.0) -> np.ndarray:
    """Bound of the chance of so many among at most `most` that are independent, `mean` of which are to be expected."""
    errors, mean, most = (np.atleast_1d(np.asarray(count, float)) / effect for count in (errors, mean, most))
    p = np.ones_like(errors)
    beyond = errors >= mean + 1  # below it the bound says nothing
    p[beyond] = betainc(errors[beyond], most[beyond] - errors[beyond] + 1, mean[beyond] / most[beyond])
    return p


def _holm(p: np.ndarray) -> np.ndarray:
    """Adjusted for the number of them."""
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _correlation(wrong_C: np.ndarray, groups_C: np.ndarray) -> float:
    """Upper 95 % bound of the correlation of errors within sources, by the analysis of variance; 0 where each clip is
    its own source, 1 where nothing can be said."""
    n_G = np.bincount(groups_C)
    n_G, C = n_G[n_G > 0], len(wrong_C)
    if len(n_G) == C:
        return 0.0
    wrong_G = np.bincount(groups_C, wrong_C)[np.bincount(groups_C) > 0]
    between = (wrong_G**2 / n_G).sum() - wrong_C.sum() ** 2 / C
    within = wrong_C.sum() - (wrong_G**2 / n_G).sum()
    if len(n_G) < 2 or within <= 0:
        return 1.0
    ratio = between / (len(n_G) - 1) / (within / (C - len(n_G))) / fdtri(len(n_G) - 1, C - len(n_G), 0.05)
    typical = (C - (n_G**2).sum() / C) / (len(n_G) - 1)
    return float(np.clip((ratio - 1) / (ratio + typical - 1), 0, 1))


def _design_effect(groups_C: np.ndarray, correlation: float) -> float:
    n_G = np.bincount(groups_C)
    return 1 + correlation * ((n_G**2).sum() / n_G.sum() - 1)
