"""Errors: where a system fails, class by class, and in one click the clips behind any number.

    address   /errors?dataset=…&split=…&system=…&method=…&compare=…&cell=confusion.2.4&clip=…&threshold=0.9

A *cell* names some clips of what is on screen (`behind` lists the kinds): every count of the page is a button that puts
its cell into the address and the clips into the drawer. `errors_view`, `errors_honesty` and `errors_clips` write the
HTML, `deepintuit.store.answers` reads the rows, `deepintuit.metrics` computes. Left out on purpose: editing, and
comparing more than two systems (Runs does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache

import gradio as gr
import numpy as np
import pandas as pd

from app import errors_clips, errors_honesty, links
from app import errors_view as view
from app.desk import Desk
from app.html import empty
from deepintuit.errors import DeepIntuitError
from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.metrics import FLOOR, apply_temperature, class_indices
from deepintuit.report.text import shown
from deepintuit.store import Workbench, answers, browse
from deepintuit.store.index import file_signature

THRESHOLD = 0.9
NORMS = {"counts": "counts", "rows": "share of the true class", "columns": "share of the answer"}
EVERY = 5.0
"""Seconds between two looks for new answers."""
CONTROLS = ("trace_blanked", "video_blanked", "trace_swapped")


@dataclass(frozen=True)
class Choice:
    """What is looked at, as the address has it: `system` is `run/system`, `compare` `run/system/method` or empty."""

    dataset: str = ""
    split: str = ""
    system: str = ""
    method: str = ""
    compare: str = ""


@dataclass(frozen=True)
class Offers:
    """What can be chosen beside a choice: (shown, value) each."""

    datasets: list[tuple[str, str]]
    splits: list[str]
    systems: list[tuple[str, str]]
    methods: list[tuple[str, str]]
    compares: list[tuple[str, str]]


def choose(found: pd.DataFrame, wish: Choice) -> tuple[Choice, Offers]:
    """The wish as far as there are answers for it; what is not there becomes the first that is: the newest run with a
    calibrated answer, by label likelihood. `found` as of `answers.sources`; when empty, so is all."""
    datasets = list(dict.fromkeys(found["dataset"]))
    dataset = _one_of(wish.dataset, datasets)
    here = found[found["dataset"] == dataset]
    splits = list(dict.fromkeys(here["split"]))
    split = _one_of(wish.split, splits)
    here = here[here["split"] == split]
    keys = [f"{row.run_id}/{row.system}" for row in here.itertuples()]
    calibrated = [key for key, methods in zip(keys, here["methods"]) if len(methods) > 1]
    system = _one_of(wish.system, keys, (calibrated or keys or [""])[0])
    several = here["system"].duplicated(keep=False)
    names = [f"{row.system} ({row.run_id})" if twice else row.system for row, twice in zip(here.itertuples(), several)]
    methods = next((methods for key, methods in zip(keys, here["methods"]) if key == system), [])
    by_preference = sorted(methods, key=lambda name: (name == "raw", name != "label_likelihood", name))
    method = _one_of(wish.method, by_preference)
    others = [
        (f"{name}: {shown(other)}", f"{key}/{other}")
        for key, name, offered in zip(keys, names, here["methods"])
        for other in sorted(offered, key=lambda one: (one != "raw", one))
        if (key, other) != (system, method)
    ]
    compare = _one_of(wish.compare, [value for _, value in others], "")
    offers = Offers(
        [(name or "no dataset", name) for name in datasets],
        splits,
        list(zip(names, keys)),
        [(shown(name), name) for name in by_preference],
        [("nothing", ""), *others],
    )
    return Choice(dataset, split, system, method, compare), offers


def _one_of(wish: str | None, known: list[str], otherwise: str | None = None) -> str:
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

    def before(self, which: str) -> pd.Series | None:
        """Answers that `mine` is compared with, by clip id: "raw" are the provisional labels, "other" the other's."""
        if which == "raw":
            return self.mine.frame["provisional"] if self.raw is not None else None
        return self.other.frame["predicted"] if which == "other" and self.other is not None else None


def analysis(workbench: Workbench, choice: Choice) -> Analysis:
    """Read and sort out the rows; kept until the index changes. `choice` comes from `choose`."""
    return _analysis(workbench, choice, file_signature(workbench.index_path))


@lru_cache(maxsize=16)
def _analysis(workbench: Workbench, choice: Choice, _signature: object) -> Analysis:
    run_id, system = choice.system.split("/", 1)
    rows = answers.answers(workbench, run_id, system, choice.split, ["raw", choice.method])
    known = answers.facts(workbench, run_id, system, choice.split)
    labels = _labels(workbench, choice.dataset, rows)
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
    prompt = workbench.run(run_id).config.get("prompt", {})
    return Analysis(
        choice,
        run_id,
        labels,
        part(rows, choice.method),
        part(rows, "raw") if choice.method != "raw" else None,
        {name: found for name in CONTROLS if (found := part(rows, choice.method, name)) is not None},
        other,
        known,
        answers.reasons(workbench, run_id),
        answers.excluded(workbench, choice.dataset, choice.split),
        prompt.get("grammar", "think-answer") if isinstance(prompt, Mapping) else "think-answer",
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
    orders = [*dict.fromkeys(known["labels"].map(tuple))]
    if any(sorted(order) != sorted(labels) for order in orders):
        return None
    probs_C_K = np.stack(known["probs"].to_list())
    if orders != [labels]:
        columns_C_K = np.stack([np.argsort(class_indices(order, labels)) for order in known["labels"]])
        probs_C_K = np.take_along_axis(probs_C_K, columns_C_K, axis=1)
    return None if np.isin(probs_C_K, (0.0, 1.0)).all() else probs_C_K


def behind(found: Analysis, cell: str, threshold: float, by: str) -> tuple[str, pd.DataFrame] | None:
    """The clips that a cell names, surest answers first, and what they have in common. None for no such cell.

    confusion.i.j (true label i answered as j, K is "no answer") · true.i · answered.j · turned.raw.rw (right by the raw
    label, wrong now; also `other`, and any of r and w) · bin.k (confidence) · unsure (below the threshold) · slice.k
    (of the column `by`) · reason.<reason>
    """
    kind, *places = cell.split(".")
    frame, labels = found.mine.frame, (*found.labels, NONE_LABEL)
    chosen: pd.Series | np.ndarray | None = None
    title = ""
    try:
        if kind == "confusion" and len(places) == 2:
            true, answered = (labels[int(place)] for place in places)
            chosen = (frame["true_label"] == true) & (frame["predicted"] == answered)
            title = f"True {true}, {view.answer_words(answered)}"
        elif kind in {"true", "answered"} and len(places) == 1:
            label = labels[int(places[0])]
            chosen = frame["true_label" if kind == "true" else "predicted"] == label
            title = f"True {label}" if kind == "true" else view.answer_words(label).capitalize()
        elif kind == "turned" and len(places) == 2 and (before := found.before(places[0])) is not None:
            was, now = (mark == "r" for mark in places[1])
            earlier = before.reindex(frame.index)
            chosen = earlier.notna() & ((earlier == frame["true_label"]) == was) & (frame["right"] == now)
            names = ("wrong", "right")
            title = f"{names[was].capitalize()} by {'the raw label' if places[0] == 'raw' else found.other.name}"
            title += f", {names[now]} by {found.mine.name}"
        elif kind == "bin" and len(places) == 1:
            bins = view.bins_of(found.mine)
            k = int(places[0])
            chosen = np.searchsorted(bins.edges[1:-1], frame["confidence"]) == k
            title = f"Confidence {bins.edges[k]:.2f} to {bins.edges[k + 1]:.2f}"
        elif kind == "unsure" and found.mine.probs_C_K is not None:
            chosen = frame["confidence"] < threshold
            title = f"Less sure than {threshold:.3g}: abstained"
        elif kind == "slice" and len(places) == 1:
            part = view.parts(found, by)[int(places[0])]
            chosen, title = part.inside_C, f"{view.column_name(by)}: {part.name}"
        elif kind == "reason":
            reason = cell.removeprefix("reason.")
            chosen = found.facts["reason"].reindex(frame.index) == reason
            title = f"Traces that are {view.reason_words(reason)}"
    except (ValueError, IndexError, KeyError):  # an address written by hand
        return None
    return (
        None if chosen is None else (title, frame[np.asarray(chosen, bool)].sort_values("confidence", ascending=False))
    )


def _clamped(text: str | None) -> float:
    try:
        return min(1.0, max(0.0, float(text))) if text else THRESHOLD
    except ValueError:
        return THRESHOLD


def page(desk: Desk) -> None:
    """The page's components and what they do."""
    # What is offered changes as runs appear, and a page may outlive the server that offered it: `choose` decides.
    free = {"allow_custom_value": True}
    gr.HTML(view.HEAD, padding=False)
    with gr.Row(elem_classes="errors-bar"):
        dataset = gr.Dropdown([], label="Dataset", min_width=130, **free)
        split = gr.Dropdown([], label="Split", min_width=110, **free)
        system = gr.Dropdown([], label="System (run)", min_width=220, scale=2, **free)
        method = gr.Dropdown([], label="Answer by", min_width=160, **free)
        compare = gr.Dropdown([], label="Compare with", min_width=220, scale=2, **free)
    picks = [dataset, split, system, method, compare]
    nothing = gr.HTML(visible=False)
    with gr.Column(visible=False, elem_classes="errors") as body:
        summary = gr.HTML(padding=False)
        gr.HTML(view.heading("classes"), padding=False)
        with gr.Row():
            with gr.Column(min_width=560, scale=3):
                classes = gr.HTML(padding=False)
            with gr.Column(min_width=340, scale=2):
                f1 = gr.Plot(show_label=False, container=False)
        gr.HTML(view.heading("confusion"), padding=False)
        norm = gr.Radio(
            [(name, key) for key, name in NORMS.items()],
            value="counts",
            label="Cells show",
            container=False,
            elem_id="errors-norm",
        )
        confusion = gr.HTML(padding=False)
        flips = gr.HTML(padding=False)
        gr.HTML(view.heading("reliability"), padding=False)
        with gr.Row():
            with gr.Column(min_width=340):
                reliability = gr.Plot(show_label=False, container=False)
            with gr.Column(min_width=340):
                honesty = gr.HTML(padding=False)
        gr.HTML(view.heading("risk"), padding=False)
        with gr.Row():
            with gr.Column(min_width=340):
                risk = gr.Plot(show_label=False, container=False)
            with gr.Column(min_width=340):
                threshold = gr.Slider(
                    0,
                    1,
                    value=THRESHOLD,
                    step=0.005,
                    label="Answer only from this confidence on",
                    elem_id="errors-threshold",
                )
                abstain = gr.HTML(padding=False)
        controls = gr.HTML(padding=False)
        gr.HTML(view.heading("slices"), padding=False)
        by = gr.Dropdown(
            [], label="Divide the clips by", container=False, elem_id="errors-by", elem_classes="narrow", **free
        )
        slices = gr.HTML(padding=False)
        reasons = gr.HTML(padding=False)
    with gr.Column(elem_id="errors-drawer"):
        clips = gr.HTML(padding=False)
        player = gr.HTML(padding=False)
    cell = gr.Textbox(visible="hidden", elem_id="errors-cell")
    clip = gr.Textbox(visible="hidden", elem_id="errors-clip")
    state = [*picks, norm, by, threshold, cell, clip]
    timer, seen = gr.Timer(EVERY), gr.State(None)

    def settle(*wish: str | None) -> list[object]:
        """The five dropdowns, valid whatever was wished for, and what each offers."""
        choice, offers = choose(answers.sources(desk.look()), Choice(*(text or "" for text in wish)))
        return [gr.update(choices=offered, value=chosen) for offered, chosen in zip(astuple(offers), astuple(choice))]

    def restore(query: dict[str, str], request: gr.Request) -> list[object]:
        wished = [query.get(name) for name in ("dataset", "split", "system", "method", "compare")]
        shown_as = query.get("cells") if query.get("cells") in NORMS else "counts"
        column = query.get("by") or answers.FIRST[0]
        return [
            *settle(*wished),
            shown_as,
            gr.update(choices=[(view.column_name(column), column)], value=column),
            _clamped(query.get("threshold")),
            query.get("cell", "")[:200],
            query.get("clip", "")[:200],
        ]

    def looked_up(wish: tuple[str | None, ...]) -> Analysis | None:
        """None when there is nothing to analyse; DeepIntuitError when what there is cannot be."""
        workbench = desk.look()
        choice, _ = choose(answers.sources(workbench), Choice(*(text or "" for text in wish)))
        return analysis(workbench, choice) if choice.system else None

    everything = [
        nothing, body, summary, classes, f1, confusion, flips, reliability, honesty, risk, abstain, controls, by,
        slices, reasons, clips, player,
    ]  # fmt: skip

    def show(*values) -> list[object]:
        *wish, shown_as, column, sure, chosen, watched = values
        try:
            found = looked_up(tuple(wish))
            if found is None:
                raise LookupError
            if not len(found.mine.frame):
                return _instead(view.UNLABELLED)
            columns = answers.sliceable(found.facts)
            column = _one_of(column, columns)
            offered = [(view.column_name(name), name) for name in columns]
            return [
                gr.update(visible=False), gr.update(visible=True), view.summary(found), view.classes(found),
                errors_honesty.f1_figure(found), view.confusion_table(found, shown_as), view.flip_tables(found),
                errors_honesty.reliability_plot(found), errors_honesty.honesty(found),
                errors_honesty.risk_plot(found, sure), errors_honesty.abstain(found, sure), view.controls(found),
                gr.update(choices=offered, value=column or None), view.slice_table(found, column),
                view.reasons(found), _clips(found, chosen, sure, column), _player(found, watched),
            ]  # fmt: skip
        except LookupError:
            return _instead(view.NO_ANSWERS)
        except DeepIntuitError as error:
            return _instead(empty(f"{error.what}: {error.why}.", error.todo))

    def fresh(seen: tuple | None, *values) -> list[object]:
        """What appeared since `seen` (index, all answers, those on screen) → seen now, dropdowns, everything. What is
        chosen stays; it is drawn anew where it got more answers, or where nothing could be chosen before."""
        workbench = desk.look()
        index = file_signature(workbench.index_path)
        as_it_is = [gr.skip()] * (len(picks) + len(everything))
        if seen and seen[0] == index:
            return [seen, *as_it_is]
        found, wish = answers.sources(workbench), Choice(*(text or "" for text in values[: len(picks)]))
        choice, offers = choose(found, wish)
        shown_now = [f"{row.run_id}/{row.system}" in f"{wish.system} {wish.compare}" for row in found.itertuples()]
        now = (index, found.to_csv(), found[shown_now].to_csv())
        if seen and seen[1:] == now[1:]:
            return [now, *as_it_is]
        if choice != wish:
            redrawn = show(*astuple(choice), *values[len(picks) :])
        else:  # the list of clips and the player stay: one of them may be playing
            grown = seen is not None and seen[2] != now[2]
            redrawn = [*show(*values)[:-2], gr.skip(), gr.skip()] if grown else as_it_is[len(picks) :]
        boxes = [gr.update(choices=offered) for offered in astuple(offers)]  # their values are the browser's
        if choice != wish:
            boxes = [{**box, "value": chosen} for box, chosen in zip(boxes, astuple(choice))]
        return [now, *boxes, *redrawn]

    def _instead(html: str) -> list[object]:
        return [
            gr.update(value=html, visible=True),
            gr.update(visible=False),
            *[gr.update()] * (len(everything) - 4),
            "",
            "",
        ]

    def _clips(found: Analysis, chosen: str, sure: float, column: str) -> str:
        if not chosen:
            return ""
        listed = behind(found, chosen, sure, column)
        return errors_clips.no_such_cell() if listed is None else errors_clips.clip_list(found, *listed, cell=chosen)

    def opened(
        found: Analysis, _norm: str, column: str, sure: float, chosen: str, watched: str
    ) -> tuple[str, str, str]:
        """The clips of a cell. The clip that plays goes on playing when it is among them."""
        listed = behind(found, chosen, sure, column) if chosen else None
        kept = watched if listed is not None and watched in listed[1].index else ""
        return _clips(found, chosen, sure, column), kept, _player(found, kept)

    def _player(found: Analysis, watched: str) -> str:
        if not watched or watched not in found.mine.frame.index:
            return ""
        trace_id = found.mine.frame.loc[watched, "trace_id"]
        trace = browse.trace(desk.look(), trace_id) if isinstance(trace_id, str) else None
        return errors_clips.clip_detail(found, watched, trace)

    def part(make):
        """A handler of one part of the page by `make(analysis, norm, by, threshold, cell, clip)`."""

        def handler(*values):
            *wish, shown_as, column, sure, chosen, watched = values
            try:
                found = looked_up(tuple(wish))
            except DeepIntuitError as error:
                raise gr.Error(str(error), print_exception=False) from error
            return make(found, shown_as, column, sure, chosen or "", watched or "") if found is not None else gr.skip()

        return handler

    quick = {"queue": False, "show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    shown_all = links.bind(
        dict(
            zip(
                ("dataset", "split", "system", "method", "compare", "cells", "by", "threshold", "cell", "clip"),
                state,
                strict=True,
            )
        ),
        restore,
        choices=("dataset", "split", "system", "method", "compare", "cell", "clip"),
        defaults={"cells": "counts", "by": answers.FIRST[0], "threshold": f"{THRESHOLD:g}"},
    )
    shown_all.then(show, state, everything, **quick)
    timer.tick(fresh, [seen, *state], [seen, *picks, *everything], **quick)
    for pick in picks:
        pick.input(settle, picks, picks, **quick).then(lambda: ("", ""), None, [cell, clip], **quick).then(
            show, state, everything, **quick
        )
    norm.input(part(lambda found, shown_as, *_: view.confusion_table(found, shown_as)), state, confusion, **quick)
    by.input(part(lambda found, _, column, *__: view.slice_table(found, column)), state, slices, **quick)
    threshold.input(
        part(lambda found, _, column, sure, chosen, __: (
            errors_honesty.risk_plot(found, sure), errors_honesty.abstain(found, sure),
            _clips(found, chosen, sure, column) if chosen == "unsure" else gr.skip(),
        )),
        state, [risk, abstain, clips], trigger_mode="always_last", **quick,
    )  # fmt: skip
    cell.change(part(opened), state, [clips, clip, player], trigger_mode="always_last", **quick).then(
        None, js=errors_clips.FOCUS
    )
    clip.change(part(lambda found, *rest: _player(found, rest[-1])), state, player, trigger_mode="always_last", **quick)
