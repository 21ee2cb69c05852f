"""What one system answered on one split, made ready to be looked at: the choice among what there is, and the analysis.

Plain functions, no Gradio and no HTML: `errors` wires them to its page, `errors_view`, `errors_honesty` and
`errors_clips` show them. Reads rows by `deepintuit_analysis.index.answers`; what is computed is `deepintuit.metrics`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from deepintuit.errors import DataError
from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.metrics import FLOOR, apply_temperature
from deepintuit.metrics.inputs import in_order
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import answers
from deepintuit_analysis.index.build import file_signature, signatures
from deepintuit_analysis.report.table import CONTROLS
from deepintuit_analysis.report.text import shown

THRESHOLD = 0.9


@dataclass(frozen=True)
class Choice:
    """What is looked at, as the address has it: `system` is `run/system`, `compare` `run/system/method` or empty,
    `slice` the name of a saved slice or empty: only clips that the system answered from a trace of it count."""

    dataset: str = ""
    split: str = ""
    system: str = ""
    method: str = ""
    compare: str = ""
    slice: str = ""


@dataclass(frozen=True)
class Offers:
    """What can be chosen beside a choice: (shown, value) each."""

    datasets: list[tuple[str, str]]
    splits: list[str]
    systems: list[tuple[str, str]]
    methods: list[tuple[str, str]]
    compares: list[tuple[str, str]]
    slices: list[tuple[str, str]]


def choose(found: pd.DataFrame, wish: Choice, slices: Sequence[tuple[str, str]] = ()) -> tuple[Choice, Offers]:
    """The wish as far as there are answers for it; what is not there becomes the first that is: the newest run with a
    calibrated answer, by label likelihood. `found` as of `answers.sources`; when empty, so is all. `slices` that are
    offered; the one that is wished for stays, and `analysis` says so when it is none."""
    datasets = list(dict.fromkeys(found["dataset"]))
    dataset = one_of(wish.dataset, datasets)
    here = found[found["dataset"] == dataset]
    splits = list(dict.fromkeys(here["split"]))
    split = one_of(wish.split, splits)
    here = here[here["split"] == split]
    keys = [f"{row.run_id}/{row.system}" for row in here.itertuples()]
    calibrated = [key for key, methods in zip(keys, here["methods"]) if len(methods) > 1]
    system = one_of(wish.system, keys, (calibrated or keys or [""])[0])
    several = here["system"].duplicated(keep=False)
    names = [f"{row.system} ({row.run_id})" if twice else row.system for row, twice in zip(here.itertuples(), several)]
    methods = next((methods for key, methods in zip(keys, here["methods"]) if key == system), [])
    by_preference = sorted(methods, key=lambda name: (name == "raw", name != "label_likelihood", name))
    method = one_of(wish.method, by_preference)
    others = [
        (f"{name}: {shown(other)}", f"{key}/{other}")
        for key, name, offered in zip(keys, names, here["methods"])
        for other in sorted(offered, key=lambda one: (one != "raw", one))
        if (key, other) != (system, method)
    ]
    compare = one_of(wish.compare, [value for _, value in others], "")
    offers = Offers(
        [(name or "no dataset", name) for name in datasets],
        splits,
        list(zip(names, keys)),
        [(shown(name), name) for name in by_preference],
        [("nothing", ""), *others],
        list(slices),
    )
    return Choice(dataset, split, system, method, compare, wish.slice), offers


def one_of(wish: str | None, known: list[str], otherwise: str | None = None) -> str:
    return wish if wish in known else (known or [""])[0] if otherwise is None else otherwise


@dataclass(frozen=True, eq=False)
class Answers:
    """What one system answered by one method, labelled clips only, ordered by id. `frame`: trace_id, true_label,
    provisional, predicted, confidence (highest probability, nan without), right, by clip id. `groups_C` are numbers of
    sources, None where each clip has its own. `probs_C_K` in the order of the labels, `before_C_K` the same without the
    fitted temperature; None where there are none."""

    name: str
    frame: pd.DataFrame
    groups_C: np.ndarray | None
    probs_C_K: np.ndarray | None
    before_C_K: np.ndarray | None
    temperature: float | None
    unlabelled: int

    @property
    def right_C(self) -> np.ndarray:
        return self.frame["right"].to_numpy()


@dataclass(frozen=True, eq=False)
class Analysis:
    """All numbers of the page come from here. `raw` is the same system's raw label (None when that is `mine`)."""

    choice: Choice
    run_id: str
    labels: tuple[str, ...]
    mine: Answers
    raw: Answers | None
    controls: dict[str, Answers]
    other: Answers | None
    facts: pd.DataFrame
    reasons: pd.DataFrame
    excluded: pd.DataFrame
    grammar: str
    whole: int
    """Labelled clips that `mine` would have without a slice."""
    thresholds: Mapping[str, float | None] | None = None
    """Wanted risk → the confidence chosen for it on validation clips; None where none were chosen."""

    def before(self, which: str) -> pd.Series | None:
        """Answers that `mine` is compared with, by clip id: "raw" are the provisional labels, "other" the other's."""
        if which == "raw":
            return self.mine.frame["provisional"] if self.raw is not None else None
        return self.other.frame["predicted"] if which == "other" and self.other is not None else None


def analysis(workbench: Workbench, choice: Choice) -> Analysis:
    """Read and sort out the rows; kept until the index changes, or a slice where one is chosen. `choice` comes from
    `choose`. StoreError for a slice that cannot be asked, or has nothing here."""
    slices = [(one.name, one.version) for one in workbench.slices()] if choice.slice else []
    # A query of a slice may ask for reviews, which lie beside the index.
    mark = signatures(workbench.index_path) if choice.slice else file_signature(workbench.index_path)
    return _analysis(workbench, choice, (mark, *slices))


@lru_cache(maxsize=16)
def _analysis(workbench: Workbench, choice: Choice, _signature: object) -> Analysis:
    run_id, system = choice.system.split("/", 1)
    rows = answers.answers(workbench, run_id, system, choice.split, ["raw", choice.method])
    known = answers.facts(workbench, run_id, system, choice.split)
    labels = _labels(workbench, choice.dataset, rows)
    left_out = answers.excluded(workbench, choice.dataset, choice.split)
    counted = rows[(rows["method"] == choice.method) & (rows["control"] == "none") & rows["true_label"].notna()]
    if choice.slice:
        inside = answers.within(workbench, run_id, system, choice.split, choice.method, choice.slice)
        rows, known = rows[rows["clip_id"].isin(inside)], known[known.index.isin(inside)]
        left_out = left_out[:0]  # what could not be used has no trace either
    groups = known["group"] if "group" in known and known["group"].notna().any() else None

    def part(frame: pd.DataFrame, method: str, control: str = "none", name: str = "") -> Answers | None:
        chosen = frame[(frame["method"] == method) & (frame["control"] == control)]
        return _answers(name or shown(method), chosen, labels, groups) if len(chosen) else None

    other = None
    if choice.compare:
        other_run, rest = choice.compare.split("/", 1)
        other_system, other_method = rest.rsplit("/", 1)
        other_rows = answers.answers(workbench, other_run, other_system, choice.split, [other_method])
        other = part(other_rows, other_method, name=f"{other_system}: {shown(other_method)}")
    run = workbench.run(run_id)
    prompt, chosen = run.config.get("prompt", {}), run.summary.get("thresholds", {}).get(choice.method)
    return Analysis(
        choice,
        run_id,
        labels,
        part(rows, choice.method),
        part(rows, "raw") if choice.method != "raw" else None,
        {name: found for name in CONTROLS if (found := part(rows, choice.method, name)) is not None},
        other,
        known,
        answers.reasons(workbench, run_id, choice.slice),
        left_out,
        prompt.get("grammar", "think-answer") if isinstance(prompt, Mapping) else "think-answer",
        counted["clip_id"].nunique(),
        chosen["risks"] if chosen else None,
    )


def _labels(workbench: Workbench, dataset: str, rows: pd.DataFrame) -> tuple[str, ...]:
    listed = rows["labels"].dropna()
    path = workbench.clips / f"{dataset}.labels.toml"
    if len(listed):
        return tuple(listed.iloc[0])
    if dataset and path.is_file():
        return LabelSet.load(path).labels
    return tuple(sorted({*rows["true_label"].dropna(), *rows["predicted"]} - {NONE_LABEL}))


def _answers(name: str, rows: pd.DataFrame, labels: tuple[str, ...], groups: pd.Series | None) -> Answers:
    known = rows[rows["true_label"].notna()].drop_duplicates("clip_id").set_index("clip_id").sort_index()
    probs_C_K = _probabilities(known, labels)
    frame = known[["trace_id", "true_label", "provisional", "predicted"]].copy()
    frame["confidence"] = np.nan if probs_C_K is None else probs_C_K.max(1)
    frame["right"] = frame["predicted"] == frame["true_label"]
    temperatures = known["temperature"].dropna().unique()
    temperature = float(temperatures[0]) if len(temperatures) == 1 else None
    before = None
    if probs_C_K is not None and temperature is not None and abs(temperature - 1) > 1e-3:
        # p = softmax(s / T), so softmax(T log p) is the distribution before the temperature.
        before = apply_temperature(temperature * np.log(np.clip(probs_C_K, FLOOR, 1)), 1.0)
    groups_C = None
    if groups is not None:  # as numbers: they are compared thousands of times
        groups_C, distinct = pd.factorize(groups.reindex(frame.index).fillna(frame.index.to_series()))
        groups_C = groups_C if len(distinct) < len(frame) else None
    return Answers(name, frame, groups_C, probs_C_K, before, temperature, len(rows) - len(known))


def _probabilities(known: pd.DataFrame, labels: tuple[str, ...]) -> np.ndarray | None:
    """Shape (C, K) in the order of `labels`; None where a clip has none or a bare label was written as one-hot."""
    if not len(known) or known["probs"].isna().any() or known["labels"].isna().any():
        return None
    try:
        probs_C_K = in_order(known["labels"], known["probs"], labels)
    except DataError:
        return None
    return None if np.isin(probs_C_K, (0.0, 1.0)).all() else probs_C_K


def clamped(text: str | None) -> float:
    """A threshold from an address: 0 … 1, the usual one where it is none."""
    try:
        return min(1.0, max(0.0, float(text))) if text else THRESHOLD
    except ValueError:
        return THRESHOLD
