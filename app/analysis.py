"""What one system answered on one split, made ready to be looked at: the choice among what there is, and the analysis.

Plain functions, no Gradio and no HTML: `errors` wires them to its page, `errors_view`, `errors_honesty` and
`errors_clips` show them. Rows are read by `deepintuit_analysis.index.answers`; every number is a
`deepintuit_analysis.report.Result`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd

from deepintuit.errors import DeepIntuitError, StoreError
from deepintuit.metrics import Estimate
from deepintuit.runs import Run
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import answers
from deepintuit_analysis.index.build import file_signature, signatures
from deepintuit_analysis.report.attribution import attributions
from deepintuit_analysis.report.gather import labels_of, results_of, settings_of
from deepintuit_analysis.report.grounding import Grounding, grounding
from deepintuit_analysis.report.results import CONTROLS, METHODS, Comparison, Result
from deepintuit_analysis.report.steps import Why, first_false_steps, why_wrong
from deepintuit_analysis.report.text import NAMES, shown
from deepintuit_analysis.report.worst import Condition, Parts, WorstSlices, inside, parts_of, words_of, worst_of

THRESHOLD = 0.9


@dataclass(frozen=True)
class Choice:
    """What is looked at, as the address has it: `system` is `run/system`, `compare` `run/system/method` or empty,
    `slice` the name of a saved slice or empty: only clips that the system answered from a trace of it count. `only`:
    conditions (`conditions`), of which all have to hold for a clip to count."""

    dataset: str = ""
    split: str = ""
    system: str = ""
    method: str = ""
    compare: str = ""
    slice: str = ""
    only: str = ""

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return tuple(parse_qsl(self.only, keep_blank_values=True))


@dataclass(frozen=True)
class Offers:
    """What can be chosen beside a choice: (shown, value) each."""

    datasets: list[tuple[str, str]]
    splits: list[str]
    systems: list[tuple[str, str]]
    methods: list[tuple[str, str]]
    compares: list[tuple[str, str]]
    slices: list[tuple[str, str]]


def choose(sources: pd.DataFrame, wish: Choice, slices: Sequence[tuple[str, str]] = ()) -> tuple[Choice, Offers]:
    """The wish as far as there are answers for it; what is not there becomes the first that is: the newest run with a
    calibrated label. `sources` as of `answers.sources`; when empty, so is all. `slices` that are
    offered; the one that is wished for stays, and `analysis` says so when it is none."""
    datasets = list(dict.fromkeys(sources["dataset"]))
    dataset = one_of(wish.dataset, datasets)
    here = sources[sources["dataset"] == dataset]
    splits = list(dict.fromkeys(here["split"]))
    split = one_of(wish.split, splits)
    here = here[here["split"] == split]
    keys = [f"{row.run_id}/{row.system}" for row in here.itertuples()]
    calibrated = [key for key, methods in zip(keys, here["methods"]) if len(methods) > 1]
    system = one_of(_key_of(wish.system, keys), keys, (calibrated or keys or [""])[0])
    several = here["system"].duplicated(keep=False)
    names = [f"{row.system} ({row.run_id})" if twice else row.system for row, twice in zip(here.itertuples(), several)]
    methods = next((methods for key, methods in zip(keys, here["methods"]) if key == system), [])
    by_preference = sorted(methods, key=lambda name: (name == "raw", name != "label_likelihood", name))
    method = one_of(_method_of(wish.method), by_preference)
    options = [
        (f"{name}: {shown(way)}", f"{key}/{way}")
        for key, name, offered in zip(keys, names, here["methods"])
        for way in sorted(offered, key=lambda item: (item != "raw", item))
        if (key, way) != (system, method)
    ]
    against, _, its_method = wish.compare.rpartition("/")
    target = f"{_key_of(against, keys)}/{_method_of(its_method)}" if against else _key_of(wish.compare, keys)
    compares = [value for _, value in options]
    compare = one_of(target, compares, next((item for item in compares if item.rpartition("/")[0] == target), ""))
    offers = Offers(
        [(name or "no dataset", name) for name in datasets],
        splits,
        list(zip(names, keys)),
        [(shown(name), name) for name in by_preference],
        [("nothing", ""), *options],
        list(slices),
    )
    return replace(wish, dataset=dataset, split=split, system=system, method=method, compare=compare), offers


SPELLED = {"raw": "provisional", "label_likelihood": "calibrated"}
"""Method as it is stored → as addresses have it; `choose` reads both."""


def _key_of(wish: str, keys: Sequence[str]) -> str:
    """`run/system` of what an address calls so, or by the system's name or its run alone: the newest of that name."""
    return wish if wish in keys else next((key for key in keys if wish and wish in key.split("/", 1)), wish)


def _method_of(wish: str) -> str:
    """The method of what an address calls so: as it is stored, or by the name it has on screen, without "label" too."""
    names = {name: method for method, name in NAMES.items() if method in METHODS}
    return names.get(wish) or names.get(f"{wish} label") or wish.replace(" ", "_")


def one_of(wish: str | None, choices: list[str], otherwise: str | None = None) -> str:
    return wish if wish in choices else (choices or [""])[0] if otherwise is None else otherwise


@dataclass(frozen=True, eq=False)
class Analysis:
    """What the page shows of a choice. All numbers are those of its results, as on the run card: `mine`, the same
    system's provisional label (None when that is `mine`), the controls of the method, and the `other` that `mine` is
    compared with. `whole`: labelled clips that `mine` would have without a slice and conditions. `parts`: what they can
    be divided by. `validation`: `mine` on validation clips, where the same system was evaluated on them, by the run
    `chosen_in`. `stands_on`: its reasoner's and its calibrator's run. `attributions`: a row
    a sentence, where they were asked for. `steps`: the first false step of each wrong trace of which it is known."""

    choice: Choice
    run_id: str
    mine: Result
    raw: Result | None
    controls: dict[str, Result]
    other: Result | None
    facts: pd.DataFrame
    reasons: pd.DataFrame
    excluded: pd.DataFrame
    grammar: str
    whole: int
    parts: Parts
    validation: Result | None = None
    chosen_in: str = ""
    stands_on: tuple[str | None, str | None] = (None, None)
    attributions: pd.DataFrame = field(default_factory=pd.DataFrame)
    steps: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def provisional(self) -> Result | None:
        """The system's provisional label, be it `mine` or beside it."""
        return self.mine if self.mine.method == "raw" else self.raw

    @cached_property
    def why(self) -> list[Why]:
        return why_wrong(self.steps, self.provisional) if len(self.steps) else []

    @cached_property
    def worst(self) -> WorstSlices:
        return worst_of(self.mine, self.parts)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.mine.labels

    @property
    def name(self) -> str:
        return shown(self.mine.method)

    @property
    def heading(self) -> str:
        """What a column of its labels is called."""
        return "Provisional" if self.mine.method == "raw" else "Calibrated"

    @property
    def other_name(self) -> str:
        return f"{self.other.system}: {shown(self.other.method)}"

    @cached_property
    def against_other(self) -> Comparison | None:
        return None if self.other is None else Comparison.of(self.other, self.mine)

    def against(self, side: str) -> Comparison | None:
        """What `mine` changed against "provisional", its provisional label, or "other"; None where there is none."""
        return {"provisional": self.mine.from_raw, "other": self.against_other}.get(side)


def analysis(workbench: Workbench, choice: Choice) -> Analysis:
    """Read and sort out the rows; kept until the index changes, or a slice where one is chosen. `choice` comes from
    `choose`. StoreError for a slice that cannot be asked, or has nothing here."""
    slices = [(entry.name, entry.version) for entry in workbench.slices()] if choice.slice else []
    # A query of a slice may ask for reviews, which lie beside the index.
    mark = signatures(workbench.index_path) if choice.slice else file_signature(workbench.index_path)
    whole = _analysis(workbench, replace(choice, only=""), (mark, *slices))
    return _narrowed(whole, choice) if choice.only else whole


@lru_cache(maxsize=16)
def _narrowed(whole: Analysis, choice: Choice) -> Analysis:
    """To the clips that fulfil the choice's conditions."""
    try:
        inside_C = inside(whole.parts, choice.conditions)
    except (KeyError, ValueError):
        inside_C = np.zeros(whole.mine.n, bool)
    if not inside_C.any():
        raise StoreError(
            f"no clip here is one of {words_of(choice.conditions)!r:.300}",
            "these conditions divide other clips, or are of an address written by hand",
            "Take the condition away, or choose the system that it was whole for",
        )
    clips = whole.mine.frame.index[inside_C]

    def on(result: Result | None) -> Result | None:
        return None if result is None else replace(result.on(result.frame.index.intersection(clips)), unlabelled=0)

    controls = {name: on(result) for name, result in whole.controls.items()}
    shares = {"raw": on(whole.raw), "controls": controls, "other": on(whole.other), "excluded": whole.excluded[:0]}
    return replace(
        whole,
        choice=choice,
        mine=on(whole.mine),
        **shares,
        facts=whole.facts[whole.facts.index.isin(clips)],
        parts={name: inside_C_of[inside_C] for name, inside_C_of in whole.parts.items()},
    )


@lru_cache(maxsize=16)
def _analysis(workbench: Workbench, choice: Choice, _signature: object) -> Analysis:
    run_id, system = choice.system.split("/", 1)
    run = workbench.run(run_id)
    if run.stage == "predict":
        raise StoreError(
            f"the clips of {run_id!r} have no label",
            "an answer is right or wrong only against one",
            "Have the clips reviewed, or choose a dataset with labels",
        )
    rows = answers.answers(workbench, run_id, system, choice.split, ["raw", choice.method])
    facts = answers.facts(workbench, run_id, system, choice.split)
    left_out = answers.excluded(workbench, choice.dataset, choice.split)
    labelled = rows[(rows["method"] == choice.method) & (rows["control"] == "none") & rows["true_label"].notna()]
    labels = labels_of(workbench, choice.dataset, rows)
    if choice.slice:
        inside = answers.within(workbench, run_id, system, choice.split, choice.method, choice.slice)
        rows, facts = rows[rows["clip_id"].isin(inside)], facts[facts.index.isin(inside)]
        left_out = left_out[:0]  # what could not be used has no trace either
    results = {result.key[1:]: result for result in _results(workbench, run, rows, labels)}
    other_result = None
    if choice.compare:
        other_run, rest = choice.compare.split("/", 1)
        other_system, other_method = rest.rsplit("/", 1)
        other_answers = answers.answers(workbench, other_run, other_system, choice.split, [other_method])
        other_answers = other_answers[other_answers["control"] == "none"]
        [other_result] = _results(workbench, workbench.run(other_run), other_answers, labels)
    prompt = run.config.get("prompt", {})
    result, raw = results[choice.method, "none"], results.get(("raw", "none"))
    wrong_ids = raw.frame.loc[~raw.right_C, "trace_id"].dropna() if raw is not None else ()
    return Analysis(
        choice,
        run_id,
        result,
        raw if choice.method != "raw" else None,
        {name: results[choice.method, name] for name in CONTROLS if (choice.method, name) in results},
        other_result,
        facts,
        answers.reasons(workbench, run_id, choice.slice),
        left_out,
        prompt.get("grammar", "think-answer") if isinstance(prompt, Mapping) else "think-answer",
        labelled["clip_id"].nunique(),
        parts_of(workbench, run_id, result, facts),
        *_on_validation(workbench, run, choice, labels),
        _stands_on(run),
        attributions(workbench, run_id),
        first_false_steps(workbench, run_id, wrong_ids),
    )


def _on_validation(workbench: Workbench, run: Run, choice: Choice, labels: Sequence[str]) -> tuple[Result | None, str]:
    """The same method of the same system on validation clips, and the run that has it: the newest that stands on what
    `run` stands on, which makes it the same."""
    sources, (_, system) = answers.sources(workbench), choice.system.split("/", 1)
    evaluations = sources[
        (sources["dataset"] == choice.dataset) & (sources["split"] == "validation") & (sources["system"] == system)
    ]
    for row in evaluations[[choice.method in methods for methods in evaluations["methods"]]].itertuples():
        candidate = workbench.run(row.run_id)
        if _stands_on(candidate) == _stands_on(run):
            rows = answers.answers(workbench, candidate.id, system, "validation", [choice.method])
            [result] = _results(workbench, candidate, rows[rows["control"] == "none"], labels)
            if result.n and result.probs_C_K is not None:
                return result, candidate.id
    return None, ""


def grounded(workbench: Workbench, analysis: Analysis) -> list[Grounding]:
    """Whether traces about these clips cite the moments that reviewers marked in tasks that are closed, by system; that
    of the newest run first."""
    rows = answers.sources(workbench)
    rows = rows[(rows["dataset"] == analysis.choice.dataset) & (rows["split"] == analysis.choice.split)]
    several = rows["system"].duplicated(keep=False)

    def results() -> Iterator[Result]:
        for row, twice in zip(rows.itertuples(), several):
            result = result_of(workbench, row.run_id, row.system, row.split, "raw") if "raw" in row.methods else None
            clips = () if result is None else result.frame.index.intersection(analysis.mine.frame.index)
            if len(clips):
                yield replace(result.on(clips), system=f"{row.system} ({row.run_id})" if twice else row.system)

    return grounding(workbench, results(), public=True)


def _stands_on(run: Run) -> tuple[str | None, str | None]:
    return run.about.get("parent"), run.config.get("calibrator")


def _results(workbench: Workbench, run: Run, rows: pd.DataFrame, labels: Sequence[str]) -> list[Result]:
    split = rows["split"].iloc[0] if len(rows) else "test"
    return results_of(workbench, run, rows, labels, settings_of(run).replace(split=split))


@lru_cache(maxsize=1024)
def accuracy(
    workbench: Workbench, run_id: str, system: str, split: str, method: str, _clips: int = 0
) -> Estimate | None:
    """The accuracy of one line of the run card, and nothing else of it; kept while the run has as many `_clips`. None
    where the rows cannot be scored: the card says why."""
    result = result_of(workbench, run_id, system, split, method)
    return None if result is None else result.share(result.right_C)


def result_of(workbench: Workbench, run_id: str, system: str, split: str, method: str) -> Result | None:
    """One line of the run card; None where its rows cannot be scored."""
    try:
        rows = answers.answers(workbench, run_id, system, split, [method])
        run = workbench.run(run_id)
        rows = rows[rows["control"] == "none"]
        [result] = _results(workbench, run, rows, labels_of(workbench, run.about["dataset"], rows))
    except (DeepIntuitError, ValueError):
        return None
    return result


def clamped(text: str | None) -> float:
    """A threshold from an address: 0 … 1, the usual one where it is none."""
    try:
        return min(1.0, max(0.0, float(text))) if text else THRESHOLD
    except ValueError:
        return THRESHOLD
