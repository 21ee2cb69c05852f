"""Prediction rows → one `Result` for each system, method and control, with every number that is shown of it.

    for result in table_of(run.read("predictions"), labels, config.evaluate):
        print(result.key, result.evaluation.accuracy)

The terminal, the run card, the pages of the dashboard and the notebooks read the same estimates, so that one number has
one interval: a bootstrap of whole sources, by the settings and the seed of the run that was evaluated. Each is computed
when it is first asked for. Axes: `_C` clips, `_K` classes.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from deepintuit.config import EvaluateConfig
from deepintuit.errors import DataError
from deepintuit.metrics import (
    FLOOR,
    ClassCurve,
    Conformal,
    Estimate,
    Evaluation,
    Flips,
    RiskCoverage,
    Statistic,
    apply_temperature,
    bootstrap,
    bootstrap_each,
    class_curve,
    class_f1_of,
    class_indices,
    class_rates_of,
    conformal_folds,
    ece_of,
    evaluate_predictions,
    flips,
    mean_of,
    nll_each,
    paired_difference,
    ranking_of,
    risk_coverage,
    share_of,
    wilson,
)
from deepintuit.metrics.inputs import Floats, in_order

# Order of reading: what costs nothing first, then each stage behind the one before it (METHOD.md 1.6).
SYSTEMS = (
    "majority",
    "metadata",
    "text",
    "probe",
    "encoder",
    "zero-shot",
    "labels only",
    "labels only, all clips",
    "direct",
    "rb-ft",
    "cold start",
    "cold start + grpo",
)
METHODS = ("raw", "label_likelihood", "linear_head", "vote", "mean_likelihood")


class Control(NamedTuple):
    """A control as people read it: its name, what is asked, how a sentence about it begins, and what a fall and no fall
    of accuracy say."""

    shown: str
    asks: str
    start: str
    falls: str
    holds: str


_SAID = tomllib.loads(Path(__file__).with_name("controls.toml").read_text(encoding="utf-8"))
CONTROLS = {name: Control(**entry) for name, entry in _SAID.items()}
"""What an answer rests on, by its name in the store and in the order of reading."""

MEASURES = ("accuracy", "macro_f1", "no_answer", "nll", "brier", "ece")
"""The fields of `Evaluation` that are one number with an interval."""


COVERAGES = (0.9, 0.95)
"""Shares of the clips whose label set is promised to hold the truth."""
MOST_RANKED = 200_000_000
"""Classes times clips times draws up to which the ranking by class gets intervals: some seconds."""


@dataclass(frozen=True, eq=False)
class Result:
    """One system's answers by one method, under one control, on the labelled clips of one split.

    `frame`: true_label, provisional, predicted, right, confidence (the highest probability, nan without), trace_id, by
    clip id in their order. `probs_C_K` in the order of `labels`; None for a bare label. `groups_C` numbers the sources.
    `raw` is the same system's provisional label and `uncontrolled` the same method without this control; None where
    there is none, or this is it. `thresholds`: wanted risk → the confidence chosen for it on validation clips.
    `mismatch_C`: whether a trace argues for another label than it answers, nan where nothing says it. `unlabelled`
    clips are left out.
    """

    system: str
    method: str
    control: str
    split: str
    labels: tuple[str, ...]
    frame: pd.DataFrame
    probs_C_K: Floats | None
    groups_C: np.ndarray
    settings: EvaluateConfig = EvaluateConfig()
    seed: int = 0
    unlabelled: int = 0
    temperature: float | None = None
    outside_mass: float | None = None
    temperature_C: np.ndarray | None = None
    mismatch_C: np.ndarray | None = None
    thresholds: Mapping[str, float | None] | None = None
    raw: Result | None = None
    uncontrolled: Result | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.system, self.method, self.control

    @property
    def n(self) -> int:
        return len(self.frame)

    @property
    def right_C(self) -> np.ndarray:
        return self.frame["right"].to_numpy()

    @property
    def _options(self) -> dict[str, float]:
        settings = self.settings
        return {"draws": settings.bootstrap, "seed": self.seed, "level": settings.confidence}

    @cached_property
    def evaluation(self) -> Evaluation:
        """The numbers of a line of the table."""
        truth_C, predicted_C = (self.frame[name].tolist() for name in ("true_label", "predicted"))
        groups = {"groups_C": self.groups_C, "bins": self.settings.bins}
        numbers = evaluate_predictions(truth_C, predicted_C, self.labels, self.probs_C_K, **groups, **self._options)
        shares = {name: self._never_certain(getattr(numbers, name)) for name in ("accuracy", "no_answer")}
        return replace(numbers, **shares)

    def share(self, inside_C: np.ndarray, among_C: np.ndarray | None = None) -> Estimate:
        """The share of clips `inside_C` among those of `among_C`, of all without it. Both are boolean."""
        among_C = np.ones(self.n, bool) if among_C is None else among_C
        estimate = bootstrap(share_of(inside_C, among_C), self.n, groups_C=self.groups_C, **self._options)
        return self._never_certain(estimate, among_C)

    def means(self, values_C_S: np.ndarray) -> list[Estimate]:
        """The mean over clips of each of S values, on the same draws."""
        statistics = lambda weights_B_C: weights_B_C @ values_C_S / weights_B_C.sum(1, keepdims=True)  # noqa: E731
        return bootstrap_each(statistics, self.n, groups_C=self.groups_C, **self._options)

    def ratios(self, above_C_S: np.ndarray, below_C_S: np.ndarray) -> list[Estimate]:
        """Of each of S pairs of values a clip, the sum of the first over that of the second, on the same draws; nan
        where that is 0."""

        def statistics(weights_B_C: np.ndarray) -> np.ndarray:
            above, below = weights_B_C @ above_C_S, weights_B_C @ below_C_S
            return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)

        return bootstrap_each(statistics, self.n, groups_C=self.groups_C, **self._options)

    def to_the_rest(self, inside_C: np.ndarray) -> Estimate:
        """Accuracy of these clips minus that of all others, as a fraction."""
        inner, outer = (share_of(self.right_C, among_C) for among_C in (inside_C, ~inside_C))
        return paired_difference(inner, outer, self.n, groups_C=self.groups_C, **self._options)

    def _never_certain(self, share: Estimate, among_C: np.ndarray | None = None) -> Estimate:
        """Resampling 400 clips of which none failed never draws a failure, and would call 0 % certain: Wilson's
        interval for a share of 0 or 1, as if each group were one clip."""
        if share.value not in (0.0, 1.0) or not self.settings.bootstrap:
            return share
        groups = len(np.unique(self.groups_C if among_C is None else self.groups_C[among_C]))
        return wilson(int(share.value) * groups, groups, self.settings.confidence)

    @cached_property
    def rates_K(self) -> list[tuple[Estimate, Estimate, Estimate]]:
        """Precision, recall and F1 of each class, in the order of `labels`."""
        truth_C, predicted_C = self.frame["true_label"], self.frame["predicted"]
        statistics = class_rates_of(truth_C.tolist(), predicted_C.tolist(), self.labels)
        estimates = bootstrap_each(statistics, self.n, groups_C=self.groups_C, **self._options)
        rates = []
        for k, label in enumerate(self.labels):
            true_C, answered_C = (truth_C == label).to_numpy(), (predicted_C == label).to_numpy()
            precision, recall, f1 = estimates[k :: len(self.labels)]
            # An F1 of 0 or 1 is one of J = tp / (tp + fp + fn), too, which is a share; F1 is 2J / (1 + J).
            jaccard = self._never_certain(f1, true_C | answered_C)
            if jaccard is not f1:
                f1 = Estimate(f1.value, *(2 * end / (1 + end) for end in (jaccard.low, jaccard.high)))
            rates.append((self._never_certain(precision, answered_C), self._never_certain(recall, true_C), f1))
        return rates

    @property
    def f1_K(self) -> tuple[Estimate, ...]:
        return tuple(f1 for _, _, f1 in self.rates_K)

    def mean(self, values_C: np.ndarray) -> Estimate:
        """The mean of a value a clip."""
        return _doubtful(bootstrap(mean_of(values_C), self.n, groups_C=self.groups_C, **self._options))

    @cached_property
    def curves_K(self) -> list[ClassCurve] | None:
        """Each class against the rest, by its probability."""
        if self.probs_C_K is None:
            return None
        return [class_curve(self.probs_C_K[:, k], self.truth_C == k) for k in range(len(self.labels))]

    @cached_property
    def ranking_K(self) -> list[tuple[Estimate, Estimate]]:
        """Area under the ROC curve and average precision of each class, without intervals where they would take
        longer than a person waits."""
        K, options = len(self.labels), self._options
        if K * self.n * options["draws"] > MOST_RANKED:
            options["draws"] = 0
        estimates = bootstrap_each(ranking_of(self.probs_C_K, self.truth_C), self.n, groups_C=self.groups_C, **options)
        return [(_doubtful(estimates[k]), _doubtful(estimates[K + k])) for k in range(K)]

    def fall_out(self, k: int) -> Estimate:
        """The share of the clips of other classes that are answered so: its false positive rate."""
        return self.share((self.frame["predicted"] == self.labels[k]).to_numpy(), self.truth_C != k)

    @cached_property
    def truth_C(self) -> np.ndarray:
        return class_indices(self.frame["true_label"].tolist(), self.labels)

    @cached_property
    def top_right_C(self) -> np.ndarray:
        """Whether the distribution's own highest class is the truth, whatever was answered."""
        return self.probs_C_K.argmax(1) == self.truth_C

    @cached_property
    def risk(self) -> RiskCoverage | None:
        return None if self.probs_C_K is None else risk_coverage(self.probs_C_K.max(1), self.top_right_C)

    def wrong_from(self, threshold: float) -> Estimate:
        """The share of wrong answers among those of at least this confidence."""
        return self.share(~self.top_right_C, self.probs_C_K.max(1) >= threshold)

    @cached_property
    def at_thresholds(self) -> list[tuple[str, float | None, float, Estimate | None]]:
        """(wanted risk, threshold, share of the clips it answers, share of wrong answers among them) of each of
        `thresholds`: None where no threshold gave that risk on validation clips, or this one answers nothing here."""
        rows = []
        for risk, threshold in (self.thresholds or {}).items():
            coverage, _ = self.risk.at(math.inf if threshold is None else threshold)
            rows.append((risk, threshold, coverage, self.wrong_from(threshold) if coverage else None))
        return rows

    @cached_property
    def sets(self) -> tuple[Conformal, ...]:
        """Conformal label sets, at each of `COVERAGES`."""
        if self.probs_C_K is None:
            return ()
        level = self.settings.confidence
        return tuple(conformal_folds(self.probs_C_K, self.truth_C, target, level=level) for target in COVERAGES)

    @cached_property
    def untempered(self) -> Result | None:
        """The same answers with their distribution before the fitted temperature."""
        if self.probs_C_K is None or self.temperature_C is None or not np.isfinite(self.temperature_C).all():
            return None
        # p = softmax(s / T), so p to the power T, made to sum to 1, is the distribution before the temperature.
        logits_C_K = self.temperature_C[:, None] * np.log(np.clip(self.probs_C_K, FLOOR, 1.0))
        return replace(self, probs_C_K=apply_temperature(logits_C_K, 1.0), temperature_C=None)

    @cached_property
    def mismatch(self) -> Estimate | None:
        """The share of well-formed traces that argue for one label and answer another, of a provisional label."""
        known_C = np.zeros(self.n, bool) if self.mismatch_C is None else ~np.isnan(self.mismatch_C)
        if (self.method, self.control) != ("raw", "none") or not known_C.any():
            return None
        groups_C = self.groups_C[known_C]
        share = bootstrap(mean_of(self.mismatch_C[known_C]), int(known_C.sum()), groups_C=groups_C, **self._options)
        return self._never_certain(share, known_C)

    def on(self, clips: pd.Index) -> Result:
        """Its answers on some of its clips."""
        if len(clips) == self.n:
            return self
        places = np.sort(self.frame.index.get_indexer(clips))
        arrays = ("groups_C", "probs_C_K", "temperature_C", "mismatch_C")
        cut = {name: array[places] for name in arrays if (array := getattr(self, name)) is not None}
        return replace(self, frame=self.frame.iloc[places], **cut)

    @cached_property
    def from_raw(self) -> Comparison | None:
        """What the method changed against the provisional label of the same system."""
        return None if self.raw is None else Comparison.of(self.raw, self)

    @property
    def flips(self) -> Flips | None:
        return None if self.from_raw is None else self.from_raw.flips

    @property
    def gain(self) -> Estimate | None:
        """Accuracy minus the provisional label's, as a fraction."""
        return None if self.from_raw is None else self.from_raw.accuracy

    @cached_property
    def change(self) -> Estimate | None:
        """Accuracy of a control minus that of the same method uncontrolled."""
        return None if self.uncontrolled is None else Comparison.of(self.uncontrolled, self).accuracy

    @property
    def measured(self) -> Measured:
        measures = {name: getattr(self.evaluation, name) for name in MEASURES}
        measures |= {"gain": self.gain, "mismatch": self.mismatch}
        values = {name: e.value for name, e in measures.items() if e is not None and not math.isnan(e.value)}
        return Measured(*self.key, self.n, values)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two results, cut to the clips that both have: `after` minus `before`, on the same draws of the same clips."""

    before: Result
    after: Result

    @classmethod
    def of(cls, before: Result, after: Result) -> Comparison:
        clips = before.frame.index.intersection(after.frame.index)
        return cls(before.on(clips), after.on(clips))

    @property
    def n(self) -> int:
        return self.after.n

    @cached_property
    def flips(self) -> Flips:
        before, after = self.before.frame["predicted"], self.after.frame["predicted"]
        return flips(before.tolist(), after.tolist(), self.after.frame["true_label"].tolist())

    @cached_property
    def accuracy(self) -> Estimate:
        return paired_difference(mean_of(self.after.right_C), mean_of(self.before.right_C), self.n, **self._options)

    @cached_property
    def f1_K(self) -> tuple[Estimate, ...]:
        before, after = (
            class_f1_of(side.frame["true_label"].tolist(), side.frame["predicted"].tolist(), side.labels)
            for side in (self.before, self.after)
        )
        return tuple(
            bootstrap_each(lambda weights_B_C: after(weights_B_C) - before(weights_B_C), self.n, **self._options)
        )

    @cached_property
    def ece(self) -> Estimate | None:
        """Of the calibration error; None where one of the two has no probabilities."""

        def error(side: Result, truth_C: np.ndarray) -> Statistic:
            return ece_of(side.probs_C_K.max(1), side.probs_C_K.argmax(1) == truth_C, side.settings.bins)

        return self._of_probs(error)

    @cached_property
    def nll(self) -> Estimate | None:
        return self._of_probs(lambda side, truth_C: mean_of(nll_each(side.probs_C_K, truth_C)))

    def _of_probs(self, statistic: Callable[[Result, np.ndarray], Statistic]) -> Estimate | None:
        if self.before.probs_C_K is None or self.after.probs_C_K is None:
            return None
        truth_C = class_indices(self.after.frame["true_label"], self.after.labels)
        after, before = (statistic(side, truth_C) for side in (self.after, self.before))
        return paired_difference(after, before, self.n, **self._options)

    @property
    def _options(self) -> dict[str, object]:
        return {**self.after._options, "groups_C": self.after.groups_C}


@dataclass(frozen=True)
class Measured:
    """A result as a seed leaves it: its measures (`MEASURES`, "gain" and "mismatch") without intervals. Plain enough
    for a JSON file."""

    system: str
    method: str
    control: str
    n: int
    values: Mapping[str, float]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.system, self.method, self.control


def table_of(
    predictions: pd.DataFrame,
    labels: Iterable[str],
    config: EvaluateConfig | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    mismatches: Mapping[str, float] | None = None,
    thresholds: Mapping[str, Mapping] | None = None,
) -> list[Result]:
    """One `Result` for each (system, method, control) among the grain's rows of `config.split`, baselines first.

    `labels` is the label set; probabilities are brought into its order. `groups` (clip_id → source) makes the intervals
    draw whole sources, since clips of one are alike; `mismatches` (trace_id → the score of that name) gives provisional
    labels their share of traces that argue for another label than they answer; `thresholds` are those in the summary of
    an evaluate run. Clips without a true label are left out and counted. DataError when a clip has two rows of one key,
    or probabilities over other labels. No rows: an empty list.
    """
    config = config or EvaluateConfig()
    names = tuple(labels)
    rows = predictions[predictions["split"] == config.split]
    frames = dict(iter(rows.groupby(["system", "method", "control"], sort=False)))
    results: dict[tuple[str, str, str], Result] = {}
    # The provisional label first, then what has no control: the others are compared with them.
    for key in sorted(frames, key=lambda key: (key[2] != "none", key[1] != "raw")):
        result = _result(key, frames[key], names, groups or {}, mismatches or {})
        system, method, control = key
        raw, uncontrolled = results.get((system, "raw", "none")), results.get((system, method, "none"))
        chosen_at = (thresholds or {}).get(method) if control == "none" else None
        results[key] = replace(
            result,
            split=config.split,
            settings=config,
            seed=seed,
            raw=raw,
            uncontrolled=uncontrolled,
            thresholds=chosen_at["risks"] if chosen_at else None,
        )
    return ordered(results.values())


def _doubtful(estimate: Estimate) -> Estimate:
    """Without an interval where no resample gave another value: that is no certainty."""
    return replace(estimate, low=math.nan, high=math.nan) if estimate.low == estimate.high else estimate


def ordered(results: Iterable[Result]) -> list[Result]:
    """In the order of reading: `SYSTEMS`, `METHODS`, `CONTROLS`."""
    by_key = {result.key: result for result in results}
    return [by_key[key] for key in sorted(by_key, key=_place(list(by_key)))]


def headline(rows: Sequence[Result], method: str = "label_likelihood") -> Result | None:
    """The result a page speaks of: the last system's answer by `method`, else by another, else its provisional label;
    without a control. Last in the order of the stages, never by score."""
    plain = [row for row in rows if row.control == "none"]
    calibrated = [row for row in plain if row.method != "raw" and row.raw is not None]
    return ([row for row in calibrated if row.method == method] or calibrated or plain or [None])[-1]


def _place(keys: list[tuple[str, str, str]]) -> Callable[[tuple[str, str, str]], tuple]:
    def base(system: str) -> str:  # without what evaluate wrote behind it: other frames than in training, whose weights
        return system.casefold().partition(" (")[0]

    folded = [base(system) for system, _, _ in keys]
    names = list(dict.fromkeys(system for system, _, _ in keys))
    systems = [*SYSTEMS, *dict.fromkeys(system for system in folded if system not in SYSTEMS)]
    controls = ["none", *CONTROLS]

    def place(key: tuple[str, str, str]) -> tuple[int, ...]:
        system, method, control = key
        return tuple(
            order.index(word) if word in order else len(order)
            for word, order in ((base(system), systems), (system, names), (method, METHODS), (control, controls))
        )

    return place


def _result(
    key: tuple[str, str, str],
    frame: pd.DataFrame,
    labels: tuple[str, ...],
    groups: Mapping[str, str],
    mismatches: Mapping[str, float],
) -> Result:
    repeated = frame.loc[frame["clip_id"].duplicated(), "clip_id"]
    if len(repeated):
        raise DataError(
            f"clip {repeated.iloc[0]!r} has several predictions by {' / '.join(key)}",
            "each clip counts once in a table",
            "Pass the rows of one run, and one trace per clip",
        )
    labelled = frame[frame["true_label"].notna()].set_index("clip_id").sort_index()
    probs_C_K = _probabilities(key, labelled, labels)
    columns = ["trace_id", "true_label", "provisional", "predicted"]
    answers = (
        labelled.reindex(columns=columns)
        .astype(object)
        .assign(
            confidence=np.nan if probs_C_K is None else probs_C_K.max(1),
            right=labelled["predicted"] == labelled["true_label"],
        )
    )
    sources = np.array([groups.get(clip) or clip for clip in labelled.index], dtype=object).astype(str)
    return Result(
        *key,
        split="",
        labels=labels,
        frame=answers,
        probs_C_K=probs_C_K,
        groups_C=np.unique(sources, return_inverse=True)[1],  # numbers: they are compared thousands of times
        unlabelled=len(frame) - len(labelled),
        temperature=_mean(labelled["temperature"]),
        outside_mass=_mean(labelled["outside_mass"]),
        temperature_C=labelled["temperature"].to_numpy(dtype=float),
        mismatch_C=labelled["trace_id"].map(mismatches).to_numpy(dtype=float) if mismatches else None,
    )


def _probabilities(key: tuple[str, str, str], frame: pd.DataFrame, labels: tuple[str, ...]) -> Floats | None:
    """Shape (C, K) in the order of `labels`; None where a clip has none, or for a bare label written as one-hot."""
    if not len(frame) or frame["probs"].isna().any() or frame["labels"].isna().any():
        return None
    try:
        probs_C_K = in_order(frame["labels"], frame["probs"], labels)
    except DataError as error:
        raise DataError(f"{' / '.join(key)}: {error.what}", error.why, error.todo) from error
    if key[1] == "raw" and np.isin(probs_C_K, (0.0, 1.0)).all():
        return None
    return probs_C_K


def _mean(values: pd.Series) -> float | None:
    present = values.dropna()
    return float(present.mean()) if len(present) else None


@dataclass(frozen=True)
class SeedRow:
    """Means over seeds of one (system, method, control). `clips` is the fewest and the most clips a seed rests on.
    `means` maps a measure (`MEASURES`, and "gain") to its mean with Student's t interval over seeds, `spread` to the
    standard deviation between seeds (nan for one seed); a measure that no seed has is absent."""

    system: str
    method: str
    control: str
    seeds: tuple[int, ...]
    clips: tuple[int, int]
    means: Mapping[str, Estimate]
    spread: Mapping[str, float]


def over_seeds(seeds: Mapping[int, Sequence[Measured]], level: float = 0.95) -> list[SeedRow]:
    """The tables of several seeds as one, in the order of the first. A row that some seeds lack rests on the others.

    The interval speaks of training again with another seed, not of other clips; one seed has none (nan).
    """
    by_key: dict[tuple[str, str, str], dict[int, Measured]] = {}
    for seed, rows in seeds.items():
        for row in rows:
            by_key.setdefault(row.key, {})[seed] = row
    seed_rows = []
    for key in sorted(by_key, key=_place(list(by_key))):
        rows = by_key[key]
        columns = {
            name: np.array([row.values[name] for row in rows.values() if name in row.values])
            for name in (*MEASURES, "gain")
        }
        columns = {name: numbers for name, numbers in columns.items() if numbers.size}
        counts = [row.n for row in rows.values()]
        seed_rows.append(
            SeedRow(
                *key,
                tuple(rows),
                (min(counts), max(counts)),
                {name: t_interval(numbers, level) for name, numbers in columns.items()},
                {
                    name: float(numbers.std(ddof=1)) if numbers.size > 1 else math.nan
                    for name, numbers in columns.items()
                },
            )
        )
    return seed_rows


def t_interval(values_S: Floats, level: float = 0.95) -> Estimate:
    """The mean over seeds with Student's t interval; one seed has none (nan)."""
    mean = float(values_S.mean())
    if values_S.size < 2:
        return Estimate(mean, math.nan, math.nan)
    from scipy import stats  # here, since it takes over a second to import

    half = float(stats.t.ppf((1 + level) / 2, values_S.size - 1) * values_S.std(ddof=1) / math.sqrt(values_S.size))
    return Estimate(mean, mean - half, mean + half)
