"""Prediction rows → one result a system, method and control, with intervals and what it changed against the raw label.

Left out on purpose: drawing and wording (`text`, `figures`), any ranking. Axes: `_C` clips, `_K` classes.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from deepintuit.config import EvaluateConfig
from deepintuit.errors import DataError
from deepintuit.metrics import (
    FLOOR,
    Bins,
    Conformal,
    Estimate,
    Evaluation,
    Flips,
    RiskCoverage,
    apply_temperature,
    bootstrap,
    class_indices,
    conformal_folds,
    evaluate_predictions,
    flips,
    mean_of,
    paired_difference,
    reliability_bins,
    risk_coverage,
    wilson,
)
from deepintuit.metrics.inputs import Floats, in_order

# Order of reading: what costs nothing first, then each stage behind the one before it (METHOD.md 1.6).
SYSTEMS = (
    "majority",
    "metadata",
    "text",
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
CONTROLS = {name: Control(**said) for name, said in _SAID.items()}
"""What an answer rests on, by its name in the store and in the order of reading."""

MEASURES = ("accuracy", "macro_f1", "no_answer", "nll", "brier", "ece")
"""The fields of `Evaluation` that are one number with an interval."""


COVERAGES = (0.9, 0.95)
"""Shares of the clips whose label set is promised to hold the truth."""


@dataclass(frozen=True)
class Row:
    """One system, by one method, under one control, on the clips of one split.

    `flips` and `gain` (accuracy minus accuracy, as a fraction) compare it with the raw label of the same system on the
    clips both have; None where there is no raw label or this row is it. `change` compares a control with the same
    method uncontrolled. `mismatch` is the share of well-formed traces that argue for one label and answer another, of a
    raw label that comes from traces. `untempered` are the reliability bins before the fitted `temperature`; `risk` is
    None, as are the last four of `evaluation`, for a bare label without probabilities. `sets`: conformal ones, at each
    of `COVERAGES`.
    """

    system: str
    method: str
    control: str
    split: str
    evaluation: Evaluation
    unlabelled: int
    flips: Flips | None = None
    gain: Estimate | None = None
    change: Estimate | None = None
    risk: RiskCoverage | None = None
    sets: tuple[Conformal, ...] = ()
    untempered: Bins | None = None
    temperature: float | None = None
    outside_mass: float | None = None
    mismatch: Estimate | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.system, self.method, self.control

    @property
    def n(self) -> int:
        return self.evaluation.n

    @property
    def measured(self) -> Measured:
        found = {name: getattr(self.evaluation, name) for name in MEASURES}
        found |= {"gain": self.gain, "mismatch": self.mismatch}
        values = {name: one.value for name, one in found.items() if one is not None and not math.isnan(one.value)}
        return Measured(*self.key, self.n, values)


@dataclass(frozen=True)
class Measured:
    """A row as a seed leaves it: its measures (`MEASURES`, "gain" and "mismatch") without intervals. Plain enough for a
    JSON file."""

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
) -> list[Row]:
    """One `Row` for each (system, method, control) among the grain's rows of `config.split`, baselines first.

    `labels` is the label set; probabilities are brought into its order. `groups` (clip_id → source) makes the
    intervals draw whole sources, since clips of one are alike; `mismatches` (trace_id → the score of that name) gives
    raw labels their share of traces that argue for another label than they answer. Clips without a true label are left
    out and counted. DataError when a clip has two rows of one key, or probabilities over other labels. No rows: an
    empty list.
    """
    config = config or EvaluateConfig()
    names = tuple(labels)
    chosen = predictions[predictions["split"] == config.split]
    answers = {
        key: _Answers.of(key, frame, names, groups or {})
        for key, frame in chosen.groupby(["system", "method", "control"], sort=False)
    }
    return [
        _row(answers, key, names, config, seed, mismatches or {}) for key in sorted(answers, key=_place(list(answers)))
    ]


def headline(rows: Sequence[Row], method: str = "label_likelihood") -> Row | None:
    """The row a page speaks of: the last system's answer by `method`, else by another, else its raw label; without a
    control. Last in the order of the stages, never by score."""
    plain = [row for row in rows if row.control == "none"]
    calibrated = [row for row in plain if row.method != "raw" and row.gain is not None]
    return ([row for row in calibrated if row.method == method] or calibrated or plain or [None])[-1]


def _place(keys: list[tuple[str, str, str]]) -> Callable[[tuple[str, str, str]], tuple]:
    def base(system: str) -> str:  # without what it saw otherwise than in training, which evaluate wrote behind it
        return system.casefold().partition(" (video.")[0]

    folded = [base(system) for system, _, _ in keys]
    systems = [*SYSTEMS, *dict.fromkeys(system for system in folded if system not in SYSTEMS)]
    controls = ["none", *CONTROLS]

    def place(key: tuple[str, str, str]) -> tuple[int, ...]:
        system, method, control = key
        return tuple(
            known.index(word) if word in known else len(known)
            for word, known in ((system.casefold(), systems), (method, METHODS), (control, controls))
        )

    return place


@dataclass(frozen=True)
class _Answers:
    """The labelled clips of one key, in the order of their ids."""

    frame: pd.DataFrame
    groups_C: np.ndarray
    probs_C_K: Floats | None
    unlabelled: int

    @classmethod
    def of(
        cls, key: tuple[str, str, str], frame: pd.DataFrame, labels: tuple[str, ...], groups: Mapping[str, str]
    ) -> _Answers:
        repeated = frame.loc[frame["clip_id"].duplicated(), "clip_id"]
        if len(repeated):
            raise DataError(
                f"clip {repeated.iloc[0]!r} has several predictions by {' / '.join(key)}",
                "each clip counts once in a table",
                "pass the rows of one run, and one trace a clip",
            )
        known = frame[frame["true_label"].notna()].sort_values("clip_id").reset_index(drop=True)
        drawn = np.array([groups.get(clip) or clip for clip in known["clip_id"]], dtype=object).astype(str)
        return cls(known, drawn, _probabilities(key, known, labels), len(frame) - len(known))

    @property
    def right_C(self) -> np.ndarray:
        return (self.frame["predicted"] == self.frame["true_label"]).to_numpy()


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


def _row(
    answers: Mapping[tuple[str, str, str], _Answers],
    key: tuple[str, str, str],
    labels: tuple[str, ...],
    config: EvaluateConfig,
    seed: int,
    mismatches: Mapping[str, float],
) -> Row:
    mine = answers[key]
    frame = mine.frame
    system, method, control = key
    options = dict(draws=config.bootstrap, seed=seed, level=config.confidence)
    evaluation = evaluate_predictions(
        frame["true_label"].tolist(),
        frame["predicted"].tolist(),
        labels,
        mine.probs_C_K,
        groups_C=mine.groups_C,
        bins=config.bins,
        **options,
    )
    if config.bootstrap:
        shares = {
            name: _never_certain(getattr(evaluation, name), evaluation.groups, config.confidence)
            for name in ("accuracy", "no_answer")
        }
        evaluation = replace(evaluation, **shares)
    row = Row(
        system,
        method,
        control,
        config.split,
        evaluation,
        mine.unlabelled,
        temperature=_mean(frame["temperature"]),
        outside_mass=_mean(frame["outside_mass"]),
    )
    if mine.probs_C_K is not None:
        row = replace(row, **_curves(mine, labels, config))
    raw, uncontrolled = answers.get((system, "raw", "none")), answers.get((system, method, "none"))
    if raw is not None and key != (system, "raw", "none"):
        before, after = _both(raw, mine)
        row = replace(
            row,
            gain=_difference(before, after, options),
            flips=flips(before.frame["predicted"], after.frame["predicted"], after.frame["true_label"]),
        )
    if (method, control) == ("raw", "none") and mismatches:
        noted_C = frame["trace_id"].map(mismatches).to_numpy(dtype=float)
        known_C = ~np.isnan(noted_C)
        if known_C.any():
            n, groups_C = int(known_C.sum()), mine.groups_C[known_C]
            share = bootstrap(mean_of(noted_C[known_C]), n, groups_C=groups_C, **options)
            row = replace(row, mismatch=_never_certain(share, len(np.unique(groups_C)), config.confidence))
    if uncontrolled is not None and control != "none":
        row = replace(row, change=_difference(*_both(uncontrolled, mine), options))
    return row


def _never_certain(share: Estimate, groups: int, level: float) -> Estimate:
    """Resampling 400 clips of which none failed never draws a failure, and would call 0 % certain: Wilson's interval
    for a share of 0 or 1, as if each group were one clip."""
    return wilson(int(share.value) * groups, groups, level) if share.value in (0.0, 1.0) else share


def _curves(mine: _Answers, labels: tuple[str, ...], config: EvaluateConfig) -> dict[str, object]:
    truth_C = class_indices(mine.frame["true_label"], labels)

    def sure_and_right(probs_C_K: Floats) -> tuple[Floats, np.ndarray]:
        return probs_C_K.max(1), probs_C_K.argmax(1) == truth_C

    promised = tuple(conformal_folds(mine.probs_C_K, truth_C, target) for target in COVERAGES)
    found: dict[str, object] = {"risk": risk_coverage(*sure_and_right(mine.probs_C_K)), "sets": promised}
    temperature_C = mine.frame["temperature"].to_numpy(dtype=float)
    if np.isfinite(temperature_C).all():
        # p = softmax(s / T), so p to the power T, made to sum to 1, is the distribution before the temperature.
        before_C_K = apply_temperature(temperature_C[:, None] * np.log(np.clip(mine.probs_C_K, FLOOR, 1.0)), 1.0)
        found["untempered"] = reliability_bins(*sure_and_right(before_C_K), config.bins)
    return found


def _both(before: _Answers, after: _Answers) -> tuple[_Answers, _Answers]:
    """Both cut to the clips they share; ids are sorted in each, so the clips then match."""
    kept = [
        one.frame["clip_id"].isin(other.frame["clip_id"]).to_numpy()
        for one, other in ((before, after), (after, before))
    ]
    return tuple(
        _Answers(one.frame[keep].reset_index(drop=True), one.groups_C[keep], None, one.unlabelled)
        for one, keep in zip((before, after), kept, strict=True)
    )


def _difference(before: _Answers, after: _Answers, options: dict[str, float]) -> Estimate:
    return paired_difference(
        mean_of(after.right_C), mean_of(before.right_C), len(after.frame), groups_C=after.groups_C, **options
    )


def _mean(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.mean()) if len(known) else None


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
    found = []
    for key in sorted(by_key, key=_place(list(by_key))):
        rows = by_key[key]
        columns = {
            name: np.array([row.values[name] for row in rows.values() if name in row.values])
            for name in (*MEASURES, "gain")
        }
        columns = {name: numbers for name, numbers in columns.items() if numbers.size}
        counts = [row.n for row in rows.values()]
        found.append(
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
    return found


def t_interval(values_S: Floats, level: float = 0.95) -> Estimate:
    """The mean over seeds with Student's t interval; one seed has none (nan)."""
    mean = float(values_S.mean())
    if values_S.size < 2:
        return Estimate(mean, math.nan, math.nan)
    from scipy import stats  # here, since it takes over a second to import

    half = float(stats.t.ppf((1 + level) / 2, values_S.size - 1) * values_S.std(ddof=1) / math.sqrt(values_S.size))
    return Estimate(mean, mean - half, mean + half)
