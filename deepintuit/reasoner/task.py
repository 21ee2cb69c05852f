"""A dataset as the models meet it: which clips, which labels, what is asked, with which text of the clip."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console

from deepintuit.config import COST, Config, EvaluateConfig, ServerConfig
from deepintuit.data import Manifest
from deepintuit.errors import ConfigError, DataError, StoreError
from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.prompts import calibrator_prompt, label_prompt, reasoner_prompt
from deepintuit.runs import Run, Workbench
from deepintuit.trace import GRAMMARS, Grammar, Malformed, Trace, parse

_TAKEN = ("model", "video", "clips", "prompt", "sampling", "server")
"""Sections whose deciding settings are those of the run stood on, unless they are given."""
_NOT_TAKEN = frozenset({"model.device", "clips.dataset"})
_TAKEN_THOUGH_COST = frozenset({"server.base_url", "server.key_variable", "server.compare"})
_TO_MATCH = frozenset({"prompt.style", "prompt.grammar", "clips.text_fields", "clips.notes_shown"})
"""What a model is asked: it was taught no other question."""
_TO_BE_TOLD = frozenset(
    (*(f"video.{name}" for name in ("frames", "fps", "max_pixels", "min_pixels", "max_tokens")), "server.model")
)
"""What it sees, and who writes: more of a clip than in training is an experiment, whose rows say so."""
_OF_THE_ADAPTER = frozenset({"model.lora_rank", "model.lora_alpha", "model.lora_dropout"})
"""What an adapter was made with: a run that starts from it keeps it as it is."""

REASONERS = ("coldstart", "grpo")
"""The stages whose runs hold a reasoner."""


@dataclass(frozen=True)
class Clip:
    """A usable clip of the manifest, without its annotations; `label` and `split` are None for one to be predicted."""

    clip_id: str
    path: str
    label: str | None
    width: int
    height: int
    split: str | None


class Opinion(NamedTuple):
    """What a calibrator reads of the first reviewer: a label or "none", and the reasoning."""

    conclusion: str
    rationale: str


class Task:
    """A manifest with its prompts. Annotations stay out unless `clips.notes_shown` names them."""

    def __init__(self, workbench_path, config: Config):
        self.manifest = Manifest.load(workbench_path, config.clips.dataset)
        self.labels: LabelSet = self.manifest.labels_or(config.clips.labels)
        self.grammar: Grammar = GRAMMARS[config.prompt.grammar]
        self.style = config.prompt.style
        has_texts = config.clips.text_fields or config.clips.notes_shown
        self._fields: Mapping[str, dict] = (
            self.manifest.text_fields(config.clips.text_fields, config.clips.notes_shown) if has_texts else {}
        )

    def clips(self, split: str) -> list[Clip]:
        """The usable clips of a split that have a label, in the manifest's order. Raises `DataError` when there are
        none."""
        rows = self.manifest.usable(split).dropna(subset="label")
        if rows.empty:
            raise DataError(
                f"dataset {self.manifest.dataset!r} has no usable clip in the split {split!r}",
                "the stage would have nothing to work on",
                "Look at `deepintuit clips show`, and divide the clips with `deepintuit clips split`",
            )
        return [self._clip(row) for row in rows.itertuples()]

    def with_texts(self, fields: Mapping[str, Mapping[str, str]]) -> Task:
        """The same question about clips that are in no manifest: by clip id the texts beside them."""
        task = copy.copy(self)
        task._fields = fields
        return task

    def unlabelled(self, clip_ids: Iterable[str]) -> list[Clip]:
        """These usable clips, in this order, as one has them who knows no label."""
        rows = self.manifest.usable().set_index("clip_id", drop=False).loc[list(clip_ids)]
        return [Clip(r.clip_id, str(r.path), None, int(r.width), int(r.height), None) for r in rows.itertuples()]

    def _clip(self, row: Any) -> Clip:
        # A labels.toml may keep the manifest's word as an alias.
        label = self.labels.canonical(row.label)
        return Clip(row.clip_id, str(row.path), label, int(row.width), int(row.height), row.split)

    def reasoner_prompt(self, clip_id: str) -> str:
        return reasoner_prompt(self.labels, self.grammar, self.style, self._fields.get(clip_id, {}))

    def label_prompt(self, clip_id: str) -> str:
        return label_prompt(self.labels, self.style, self._fields.get(clip_id, {}))

    def calibrator_prompt(
        self, clip_id: str, opinion: Trace | Malformed | Opinion | None, order: Sequence[int] | None = None
    ) -> str:
        """The meta-review of a trace, or of what is left of it; None is the "trace blanked" control."""
        opinion = opinion if isinstance(opinion, Opinion) else opinion_of(opinion)
        fields = self._fields.get(clip_id, {})
        return calibrator_prompt(self.labels, opinion.conclusion, opinion.rationale, self.style, fields, order)

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


def inherited(workbench: Workbench, config: Config, *run_ids: str | None) -> tuple[Config, list[str]]:
    """The settings with what was not given taken from the runs stood on, the first one's first, and the differences in
    what the models see, as "video.frames 16 → 32".

    Of a teacher's run the question alone is taken. Raises `ConfigError` where a run was asked another question (style,
    grammar, text fields, labels) than is given. A run that does not say how it was made is taken as it comes.
    """
    differences: dict[str, None] = {}
    settled: set[str] = set()
    for run in (workbench.run(run_id) for run_id in run_ids if run_id):
        settings = run.about.get("settings") or run.config
        if run.stage in REASONERS and "server" in settings:  # it may have been given the weights, and has others by now
            settings = {**settings, "server": ServerConfig().model_dump()}
        taught, sampled = run.stage == "teach", ("calibrate",) if run.stage == "calibrate" else ()
        for name in ("clips", "prompt") if taught else (*_TAKEN, *sampled):
            section, before, changes = getattr(config, name), settings.get(name), {}
            for setting, field in type(section).model_fields.items() if isinstance(before, Mapping) else ():
                key, value = f"{name}.{setting}", getattr(section, setting)
                cost = COST in field.metadata and key not in _TAKEN_THOUGH_COST
                if setting not in before or key in _NOT_TAKEN or cost:
                    continue
                inherited_value = tuple(before[setting]) if isinstance(value, tuple) else before[setting]
                free = key not in settled and not config.is_given(key)
                settled.add(key)
                if value == inherited_value:
                    continue
                if free:
                    changes[setting] = inherited_value
                elif key in _TO_MATCH and not (taught and key != "prompt.grammar"):
                    raise ConfigError(
                        f"{key} = {_plain(value)} on {run.id}",
                        f"that run was made with {_plain(inherited_value)}, and its model was taught no other question",
                        f"Leave {key} out, and it is taken from the run; or give a run made with it",
                    )
                elif key in _OF_THE_ADAPTER and before.get("lora_rank"):
                    raise ConfigError(
                        f"{key} = {_plain(value)} on {run.id}",
                        f"that run's adapter was made with {_plain(inherited_value)}, and it would be used as it is",
                        f"Leave {key} out, and it is taken from the run; or train a new adapter on its base",
                    )
                elif key in _TO_BE_TOLD:
                    differences[f"{key} {inherited_value or 'none'} → {value or 'none'}"] = None
            config = config.replace(**{name: changes})
        _refuse_other_labels(workbench, config, run)
    return config, list(differences)


def altered(settings: EvaluateConfig) -> list[str]:
    """What an evaluation takes from thought and clip, as the name of a system says it."""
    thought, kind = settings.thinking_tokens, settings.distortion
    named = [f"thought of {thought} tokens"] * bool(thought)
    return named + [f"{kind} {settings.distortion_strength:g}"] * (kind != "none")


def refuse_altered(settings: EvaluateConfig, who: str, *keys: str) -> None:
    """ConfigError for what `altered` names, where nothing here writes a trace or looks at a clip."""
    for key in keys or ("thinking_tokens", "distortion"):
        value = getattr(settings, key)
        if value != type(settings).model_fields[key].default:
            why = "no trace is written for it here" if key == "thinking_tokens" else "it is not shown those frames"
            raise ConfigError(f"evaluate.{key} = {value!r} for {who}", why, f"Leave evaluate.{key} out")


def _plain(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


def asked(task: Task) -> dict[str, Any]:
    """The label set as a prompt shows it, for a run to keep."""
    return {"labels": list(task.labels), "definitions": dict(task.labels.definitions) if task.style == "full" else {}}


def _refuse_other_labels(workbench: Workbench, config: Config, run: Run) -> None:
    before = run.about.get("asked")
    if before is None or not config.clips.dataset:
        return
    now = asked(Task(workbench.path, config))
    if now != before:
        part = "labels" if now["labels"] != before["labels"] else "definitions"
        raise ConfigError(
            f"the {part} {_shortly(now[part])} on {run.id}",
            f"that run was made with {_shortly(before[part])}, and its model was taught no other question",
            "Give the label set that it was made with in clips.labels, or train anew",
        )


def _shortly(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) < 200 else text[:200] + " …"


def tell(run: Run, text: str, progress: bool) -> None:
    """A sentence to the run's log and, with `progress`, to the terminal."""
    run.log(text)
    if progress:
        Console().print(text, markup=False, highlight=False)


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
