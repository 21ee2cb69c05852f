"""A dataset as the models meet it: which clips, which labels, what is asked, with which text of the clip."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from deepintuit.config import Config
from deepintuit.data import Manifest
from deepintuit.errors import DataError, StoreError
from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.prompts import calibrator_prompt, label_prompt, rationale_prompt, reasoner_prompt
from deepintuit.store import Run, Workbench
from deepintuit.trace import GRAMMARS, Grammar, Malformed, Trace, parse

REASONERS = ("coldstart", "grpo")
"""The stages whose runs hold a reasoner."""


@dataclass(frozen=True)
class Clip:
    """A usable clip of the manifest, without its annotations."""

    clip_id: str
    path: str
    label: str
    width: int
    height: int
    split: str


class Opinion(NamedTuple):
    """What a calibrator reads of the first reviewer: a label or "none", and the reasoning."""

    conclusion: str
    rationale: str


class Task:
    """A manifest with its prompts. Annotations stay out unless `clips.notes_shown` names them."""

    def __init__(self, workbench_path, config: Config):
        self.manifest = Manifest.load(workbench_path, config.clips.dataset)
        self.labels: LabelSet = LabelSet.load(config.clips.labels) if config.clips.labels else self.manifest.labels
        self.grammar: Grammar = GRAMMARS[config.prompt.grammar]
        self.style = config.prompt.style
        shown = config.clips.text_fields or config.clips.notes_shown
        self._fields: Mapping[str, dict] = (
            self.manifest.text_fields(config.clips.text_fields, config.clips.notes_shown) if shown else {}
        )

    def clips(self, split: str) -> list[Clip]:
        """The usable clips of a split, in the manifest's order. Raises `DataError` when there are none."""
        rows = self.manifest.usable(split)
        if rows.empty:
            raise DataError(
                f"dataset {self.manifest.dataset!r} has no usable clip in the split {split!r}",
                "the stage would have nothing to work on",
                "Look at `deepintuit clips show`, and divide the clips with `deepintuit clips split`",
            )
        return [self._clip(row) for row in rows.itertuples()]

    def _clip(self, row: Any) -> Clip:
        # A labels.toml may keep the manifest's word as an alias.
        label = self.labels.labels[self.labels.index(row.label)]
        return Clip(row.clip_id, str(row.path), label, int(row.width), int(row.height), row.split)

    def reasoner_prompt(self, clip_id: str) -> str:
        return reasoner_prompt(self.labels, self.grammar, self.style, self._fields.get(clip_id, {}))

    def label_prompt(self, clip_id: str) -> str:
        return label_prompt(self.labels, self.style, self._fields.get(clip_id, {}))

    def rationale_prompt(self, clip_id: str, true_label: str | None) -> str:
        return rationale_prompt(self.labels, true_label, self.grammar, self.style, self._fields.get(clip_id, {}))

    def calibrator_prompt(
        self, clip_id: str, said: Trace | Malformed | Opinion | None, order: Sequence[int] | None = None
    ) -> str:
        """The meta-review of a trace, or of what is left of it; None is the "trace blanked" control."""
        said = said if isinstance(said, Opinion) else opinion_of(said)
        fields = self._fields.get(clip_id, {})
        return calibrator_prompt(self.labels, said.conclusion, said.rationale, self.style, fields, order)

    def parse(self, text: str, truncated: bool, thought: bool = True) -> Trace | Malformed:
        return parse(text, self.grammar, self.labels, truncated, thought)

    def quick_form(self, trace: Trace | Malformed) -> Trace | None:
        """The same trace as if its quick answer had ended the work; None where it gave none."""
        if not trace.ok or trace.quick is None:
            return None
        end = trace.text.index(trace.grammar.quick.close, trace.spans[trace.grammar.quick.name][1])
        return self.parse(trace.text[: end + len(trace.grammar.quick.close)], False, thought=False)

    def prompt_hash(self, prompt: str) -> str:
        return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def refuse_one_class(clips: Sequence[Clip], split: str, readable: bool = False) -> None:
    """DataError where all of these clips of a split, or all that are readable, have one label."""
    if len({clip.label for clip in clips}) == 1:
        raise DataError(
            f"all {len(clips)} {'readable ' * readable}clips of the split {split!r} are {clips[0].label!r}",
            "one class leaves nothing to tell apart: whoever always says it is right",
            "Divide the clips with another seed or other shares, until two classes are in it: `deepintuit clips split`",
        )


def identity(workbench_path, config: Config, sections: Sequence[str]) -> dict[str, Any]:
    """What makes a stage's run this one: the settings that decide its result, and the dataset as it is now."""
    settings = config.decisive()
    manifest = Manifest.load(workbench_path, config.clips.dataset)
    return {**{section: settings[section] for section in sections}, "manifest": manifest.fingerprint}


def reasoner_run(workbench: Workbench, run_id: str) -> Run:
    """The run of that id, which holds a reasoner. StoreError for another stage's, naming the reasoner it stands on."""
    run = workbench.run(run_id)
    if run.stage in REASONERS:
        return run
    stands_on = workbench.run(run.parent) if run.parent else None
    raise StoreError(
        f"run {run_id!r} is of the stage {run.stage}, and holds no reasoner",
        f"the stages {' and '.join(REASONERS)} make one",
        f"Give the one that it stands on: {stands_on.id}" if stands_on and stands_on.stage in REASONERS
        else f"Give a run of one of these stages instead of {run_id}",
    )  # fmt: skip


def card(run: Run, config: Config) -> dict[str, str]:
    """What a checkpoint's model card says: where the weights come from and how they were made."""
    about = run.about
    return {
        "run": run.id,
        "stage": run.stage,
        "base model": config.model.path,
        "parent run": run.parent or "none",
        "dataset": config.clips.dataset,
        "prompt": f"{config.prompt.style}, grammar {config.prompt.grammar}",
        "frames": f"up to {config.video.frames}, {config.video.max_pixels} pixels each",
        "seed": str(run.seed),
        "commit": about["commit"] or "unknown",
        "command": " ".join(about["command"]),
    }


def rationale_of(trace: Trace | Malformed) -> str:
    """What the second reviewer reads: the reasoning without the answer; all of a text that could not be parsed."""
    if isinstance(trace, Malformed):
        return trace.text
    return "\n".join(trace.segment(segment.name) for segment in trace.grammar.text_segments)


def opinion_of(trace: Trace | Malformed | None) -> Opinion:
    """What a calibrator is told of a trace; of None nothing: no conclusion and no rationale."""
    return Opinion(NONE_LABEL, "") if trace is None else Opinion(trace.provisional, rationale_of(trace))


def parsed(task: Task, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> list[Trace | Malformed]:
    """Stored trace rows, parsed again: the text is the truth, the columns are its index."""
    records = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)
    thought = [row.get("thought") is None or bool(row["thought"]) for row in records]  # null: no gate was there
    return [task.parse(row["text"], bool(row["truncated"]), whole) for row, whole in zip(records, thought)]
