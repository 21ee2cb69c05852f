"""Typed settings: one frozen dataclass a section, whose defaults *are* the method: the DeepIntuit paper's settings.

A config file and `--set` hold departures only. An unknown key, a wrong type or an impossible value is a `ConfigError`
that names the nearest key, the value and the allowed ones. [R] marks what the paper does not say.
Left out on purpose: no inheritance between files, no environment variables but DEEPINTUIT_HOME, no secrets.
Run it:  python -c "from deepintuit import config; print(config.load(None, ['grpo.group=4']).departures())"
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from deepintuit import texts
from deepintuit.config import needs as _needs
from deepintuit.config.fields import Section, hints
from deepintuit.config.fields import setting as _setting
from deepintuit.errors import ConfigError, nearest

GRAMMAR_NAMES = ("think-answer", "observation-think-answer", "answer-think-answer", "answer-observation-think-answer")
METHODS = ("label_likelihood", "linear_head", "vote", "mean_likelihood")
SPLITS = ("coldstart", "grpo", "calibration", "validation", "test")
TRACKERS = ("none", "tensorboard", "trackio", "wandb", "mlflow")


# fmt: off
@dataclass(frozen=True)
class ModelConfig(Section):
    path: str = _setting("Qwen/Qwen2.5-VL-7B-Instruct", "folder or hub id of a Qwen2.5-VL, Qwen3-VL or Qwen3.5 checkpoint, or embedded:NAME for one that ships with the package")
    dtype: str = _setting("auto", "number type of the weights", choices=("auto", "float32", "bfloat16", "float16"))
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    lora_rank: int = _setting(0, "rank of the LoRA adapters; 0 is full fine-tuning, as in the paper", low=0)
    lora_alpha: int = _setting(32, "scale of the adapters: alpha / rank [R]", low=1, needs=(_needs.ADAPTER,))
    lora_dropout: float = _setting(0.0, "dropout inside the adapters [R]", low=0, high=0.99, needs=(_needs.ADAPTER,))
    quantize: str = _setting("none", "4bit is QLoRA and needs lora_rank > 0 to train", choices=("none", "4bit"))
    attention: str = _setting("sdpa", "attention kernel", choices=("sdpa", "eager", "flash_attention_2"))
    share_prefix: bool = _setting(True, "compute once what rows about a clip have in common, in losses and scores, exactly; "
                                  "false: every row by itself")
    tokens_per_pass: int = _setting(8192, "most tokens of a forward pass in training, what rows share counted once; a longer row goes "
                                    "alone", low=1, decides=False)
    gradient_checkpointing: bool = _setting(False, "recompute activations in the backward pass: less memory, more time")


@dataclass(frozen=True)
class VideoConfig(Section):
    frames: int = _setting(32, "most frames a clip is read at (paper, cold start)", low=1)
    fps: float = _setting(0.0, "frames a second to read, up to `frames`; 0: spread evenly over the clip", low=0)
    max_pixels: int = _setting(256 * 28 * 28, "most pixels a frame after resizing (paper, cold start)", low=1)
    min_pixels: int = _setting(4 * 28 * 28, "fewest pixels a frame after resizing", low=1)
    max_tokens: int = _setting(0, "most visual tokens of a clip, shared out over `frames` frames; 0: no bound but max_pixels", low=0, added=True)
    limit_pixels: int = _setting(7680 * 4320, "a file whose frames have more pixels is refused before decoding", low=1)
    limit_mib: int = _setting(1024, "a read that would hold more MiB of decoded frames is refused", low=1)
    limit_seconds: float = _setting(60.0, "wall seconds that reading one file may take", above=0)
    cache_gib: float = _setting(50.0, "most GiB on disk for frames and features; used longest ago goes first, 0 keeps none", low=0,
                                decides=False)

    def _check_together(self) -> None:
        if self.min_pixels > self.max_pixels:
            raise ConfigError(f"video.min_pixels = {self.min_pixels}", f"video.max_pixels is only {self.max_pixels}",
                              "Lower the first or raise the second")


@dataclass(frozen=True)
class ClipsConfig(Section):
    dataset: str = _setting("", "name of the manifest in the workbench")
    labels: str = _setting("", "path of a labels.toml; empty: the labels found in the manifest")
    text_fields: tuple[str, ...] = _setting((), "text fields of a clip (title, transcript) that a model may read")
    notes_shown: tuple[str, ...] = _setting((), "annotation columns shown to a model on purpose; they leak the label")
    coldstart_share: float = _setting(0.3, "share of the training groups for cold start [R]", low=0, high=1)
    grpo_share: float = _setting(0.3, "share of the training groups for GRPO [R]", low=0, high=1)
    calibration_share: float = _setting(0.4, "share of the training groups for calibration [R]", low=0, high=1)
    validation_share: float = _setting(0.1, "share of all groups on which choices are made [R]", low=0, high=0.9)
    test_share: float = _setting(0.2, "share of all groups kept for the last look [R]", low=0, high=0.9)

    def _check_together(self) -> None:
        training = self.coldstart_share + self.grpo_share + self.calibration_share
        if not math.isclose(training, 1, abs_tol=1e-6):
            raise ConfigError(f"clips.coldstart_share + grpo_share + calibration_share = {training:g}",
                              "they share out the training groups, so they must sum to 1", "Change one of the three")
        if self.validation_share + self.test_share >= 1:
            raise ConfigError(f"clips.validation_share + test_share = {self.validation_share + self.test_share:g}",
                              "nothing would be left to train on", "Keep their sum below 1")


@dataclass(frozen=True)
class PromptConfig(Section):
    style: str = _setting("full", "brief: few tokens, for small models", choices=("full", "brief"))
    grammar: str = _setting("think-answer", "DeepIntuit's, VideoP2R's or VideoAuto-R1's, or the last two in one", choices=GRAMMAR_NAMES)


@dataclass(frozen=True)
class SamplingConfig(Section):
    top_p: float = _setting(1.0, "probability mass that is sampled from", above=0, high=1)
    max_tokens: int = _setting(2048, "most tokens of a trace (paper, GRPO)", low=1)
    clips_per_batch: int = _setting(8, "clips sampled at once", low=1, decides=False)


@dataclass(frozen=True)
class TeachConfig(Section):
    source: str = _setting("endpoint", "endpoint: OpenAI-compatible server; homecam: scripted teacher; self: RB-FT",
                           choices=("endpoint", "homecam", "self"))
    base_url: str = _setting("", "address of the endpoint, up to and with /v1")
    model: str = _setting("", "model name at the endpoint (the paper: Gemini 2.5 Flash)")
    key_variable: str = _setting("OPENAI_API_KEY", "NAME of the environment variable that holds the key, never the key")
    concurrency: int = _setting(8, "requests in flight", low=1, decides=False)
    retries: int = _setting(6, "tries after the first, with back-off", low=0, decides=False)
    timeout: float = _setting(120.0, "seconds a request may take", above=0, decides=False)
    token_field: str = _setting("max_tokens", "what the server calls the bound of an answer; tried the other way when refused",
                                choices=("max_tokens", "max_completion_tokens"), decides=False)
    send_temperature: bool = _setting(True, "false: for models that take no temperature but their own; left out when refused", added=True)
    traces: int = _setting(1, "traces asked for a clip", low=1)
    temperature: float = _setting(0.7, "of the teacher [R]", low=0, needs=(_needs.A_MODEL,))
    max_tokens: int = _setting(2048, "most tokens of a teacher's trace", low=1, needs=(_needs.A_MODEL,))
    price_in: float = _setting(0.0, "currency units per million prompt tokens, for the cost count", low=0, decides=False)
    price_out: float = _setting(0.0, "currency units per million completion tokens", low=0, decides=False)
    judged: bool = _setting(True, "grammars with an observation: keep a trace only if it suffices (VideoP2R)", needs=(_needs.OBSERVATION,))
    given_answer: bool = _setting(False, "self: the form and the true label are given, the model writes only the reasoning [R]", added=True, needs=(_needs.OWN_WORDS,))
    keep_wrong: bool = _setting(False, "keep traces whose answer is not the label (the paper drops them)")


@dataclass(frozen=True)
class JudgeConfig(Section):
    """Who says whether an observation, read without the clip, suffices for the right answer (VideoP2R)."""

    source: str = _setting("endpoint", "endpoint: OpenAI-compatible server; answerer: a frozen model that must reach the "
                           "label from the text; facts: the known facts of homecam", choices=("endpoint", "answerer", "facts"))
    model: str = _setting("", "model name at the endpoint, or the answerer's folder or hub id; empty there: model.path")
    base_url: str = _setting("", "address of the endpoint, up to and with /v1")
    key_variable: str = _setting("OPENAI_API_KEY", "NAME of the environment variable that holds the key, never the key")
    concurrency: int = _setting(8, "requests in flight", low=1, decides=False)
    retries: int = _setting(6, "tries after the first, with back-off", low=0, decides=False)
    timeout: float = _setting(120.0, "seconds a request may take", above=0, decides=False)
    max_tokens: int = _setting(8, "most tokens of a verdict; a server that thinks first needs some thousands", low=1, decides=False)
    token_field: str = _setting("max_tokens", "what the server calls the bound of an answer; tried the other way when refused",
                                choices=("max_tokens", "max_completion_tokens"), decides=False)
    send_temperature: bool = _setting(True, "false: for models that take no temperature but their own; left out when refused", decides=False)


@dataclass(frozen=True)
class GateConfig(Section):
    """When a quick answer ends the work (VideoAuto-R1); for grammars with a quick answer only."""

    by: str = _setting("off", "off: always think; confidence: of the quick answer's tokens; calibrated: the calibrator's "
                       "highest probability after it", choices=("off", "confidence", "calibrated"))
    threshold: float = _setting(0.97, "at least this sure, the quick answer stands (paper, Qwen2.5-VL; 0.98 for Qwen3-VL); "
                                "0 never thinks, 1 nearly always", low=0, high=1, needs=(_needs.GATE,))


@dataclass(frozen=True)
class ColdstartConfig(Section):
    target: str = _setting("trace", "trace, or label: the answer alone (Direct-SFT)", choices=("trace", "label"))
    splits: tuple[str, ...] = _setting(("coldstart",), "splits to train on; more than cold start's own only for target = \"label\"")
    learning_rate: float = _setting(2e-5, "peak rate (paper, cold start)", above=0)
    epochs: float = _setting(5.0, "passes over the traces (paper, cold start)", above=0)
    batch: int = _setting(64, "traces an update (paper, cold start)", low=1)
    warmup: float = _setting(0.06, "share of the updates over which the rate rises (paper, cold start)", low=0, high=1)
    scheduler: str = _setting("cosine", "how the rate falls after that [R]", choices=("cosine", "linear", "constant"))
    weight_decay: float = _setting(0.0, "[R]", low=0)
    max_grad_norm: float = _setting(1.0, "gradients are clipped to this norm [R]", above=0)
    save_steps: int = _setting(50, "updates between two resumable checkpoints", low=1)
    limit: int = _setting(0, "use only the first N traces; 0: all", low=0)

    def _check_together(self) -> None:
        if not self.splits:
            raise ConfigError("coldstart.splits = []", "nothing would be trained on", "Name at least coldstart")
        for split in self.splits:
            if split not in ("coldstart", "grpo", "calibration"):
                raise ConfigError(f"coldstart.splits names {split!r}", "only coldstart, grpo and calibration clips are trained on",
                                  f"Nearest: {nearest(split, SPLITS) or 'coldstart'!r}")
        if self.target == "trace" and self.splits != ("coldstart",):
            raise ConfigError(f"coldstart.splits = {list(self.splits)} with target = \"trace\"", "teacher traces belong to the cold-start split, "
                              "and later stages need clips that it never saw", "Set coldstart.target = \"label\", or leave splits out")


@dataclass(frozen=True)
class GrpoConfig(Section):
    group: int = _setting(8, "traces sampled a clip, G (paper, GRPO); one alone has nothing to be compared with", low=2)
    clips_per_step: int = _setting(64, "clips an update (paper, GRPO)", low=1)
    learning_rate: float = _setting(1e-6, "peak rate (paper, GRPO)", above=0)
    warmup_steps: int = _setting(10, "updates over which the rate rises (paper, GRPO), at most", low=0)
    warmup_share: float = _setting(0.2, "of all updates, what warm-up may take at most: small sets train too [R]", low=0, high=1, added=True)
    weight_decay: float = _setting(0.1, "(paper, GRPO)", low=0)
    max_grad_norm: float = _setting(1.0, "gradients are clipped to this norm (paper, GRPO)", above=0)
    epochs: float = _setting(1.0, "passes over the clips (the paper; its release says 20)", above=0)
    max_steps: int = _setting(0, "stop after N updates; 0: by epochs", low=0)
    max_tokens: int = _setting(2048, "most tokens of a trace (paper, GRPO)", low=1)
    temperature: float = _setting(1.0, "of sampling (paper, GRPO)", above=0)
    objective: str = _setting("dapo", "dapo; softmax_weighted, the paper's text [R]; grpo, mean per trace",
                              choices=("dapo", "softmax_weighted", "grpo"))
    epsilon_low: float = _setting(0.2, "the ratio is clipped below 1 − this", above=0, high=1, needs=(_needs.NEVER,))
    epsilon_high: float = _setting(0.28, "the ratio is clipped above 1 + this", above=0, needs=(_needs.NEVER,))
    beta: float = _setting(0.0, "weight of the KL term; 0: none (paper, GRPO)", low=0)
    tau: float = _setting(1.0, "softmax_weighted: temperature of the reward weights [R]", above=0, needs=(_needs.SOFTMAX,))
    dynamic_sampling: bool = _setting(False, "keep only groups with some traces right and some wrong")
    max_refills: int = _setting(3, "dynamic_sampling: at most N further rounds to fill a step", low=0, needs=(_needs.REFILLS,))
    overlong_cache: int = _setting(0, "tokens before the limit over which a penalty falls to −1; 0: off", low=0)
    mask_truncated: bool = _setting(False, "leave traces cut at the limit out of the loss")
    accuracy_weight: float = _setting(1.0, "weight of the accuracy reward (paper, GRPO)", low=0)
    format_weight: float = _setting(1.0, "weight of the format reward (paper, GRPO)", low=0)
    process: str = _setting("separate", "grammars with an observation: separate, seeing and reasoning pushed apart (VideoP2R); "
                            "summed, one advantage of both; off, the answer's rewards alone", choices=("separate", "summed", "off"), needs=(_needs.OBSERVATION,))
    perception_weight: float = _setting(1.0, "of the observation's rewards; 0: none (VideoP2R's ablation)", low=0, needs=(_needs.OBSERVATION, _needs.PROCESS))
    length_bonus: float = _setting(0.2, "for a right process of fitting length [R]", low=0, needs=(_needs.OBSERVATION, _needs.PROCESS))
    perception_min: int = _setting(128, "tokens of an observation that earn the bonus, from (VideoP2R)", low=0, needs=(_needs.OBSERVATION, _needs.PROCESS, _needs.BONUS))
    perception_max: int = _setting(320, "… to", low=1, needs=(_needs.OBSERVATION, _needs.PROCESS, _needs.BONUS))
    reasoning_min: int = _setting(320, "tokens of thinking and answer that earn it, from (VideoP2R)", low=0, needs=(_needs.OBSERVATION, _needs.PROCESS, _needs.BONUS))
    reasoning_max: int = _setting(512, "… to", low=1, needs=(_needs.OBSERVATION, _needs.PROCESS, _needs.BONUS))
    quick_weight: float = _setting(0.9, "grammars with a quick answer: of its accuracy (VideoAuto-R1)", low=0, needs=(_needs.QUICK,))
    final_weight: float = _setting(1.1, "grammars with a quick answer: of the last one's accuracy (VideoAuto-R1)", low=0, needs=(_needs.QUICK,))
    fallback_bonus: float = _setting(0.3, "grammars with a quick answer: for putting off and then being right (VideoAuto-R1)", low=0, needs=(_needs.QUICK,))
    check_clips: int = _setting(32, "clips sampled first, to see whether there is anything to learn; 0: none", low=0)
    filter_rollouts: int = _setting(0, "traces sampled of each clip first; clips whose traces are all right or all wrong are left out "
                                    "(VideoAuto-R1: 8); 0: off", low=0)
    save_steps: int = _setting(20, "updates between two resumable checkpoints", low=1)

    def _check_together(self) -> None:
        if self.filter_rollouts == 1:
            raise ConfigError("grpo.filter_rollouts = 1", "one trace is all right or all wrong, so no clip would be left",
                              "Set 2 or more (VideoAuto-R1: 8), or 0 for no filter")
        if self.overlong_cache > self.max_tokens:
            raise ConfigError(f"grpo.overlong_cache = {self.overlong_cache}", f"grpo.max_tokens is {self.max_tokens}",
                              "Lower the first or raise the second")
        if self.accuracy_weight == self.format_weight == 0:
            raise ConfigError("grpo.accuracy_weight = grpo.format_weight = 0", "every trace would earn the same",
                              "Give one of them a weight above 0")
        for part in ("perception", "reasoning"):
            low, high = getattr(self, f"{part}_min"), getattr(self, f"{part}_max")
            if low > high:
                raise ConfigError(f"grpo.{part}_min = {low}", f"grpo.{part}_max is only {high}, so no length would ever earn the bonus",
                                  "Lower the first or raise the second")


@dataclass(frozen=True)
class CalibrateConfig(Section):
    traces: int = _setting(4, "traces sampled a clip from the frozen reasoner (paper, calibration)", low=1)
    temperature: float = _setting(1.0, "of sampling them (paper, calibration)", low=0)
    learning_rate: float = _setting(2e-5, "peak rate (paper, calibration)", above=0)
    epochs: float = _setting(10.0, "passes over the rows, at most (paper, calibration)", above=0)
    batch: int = _setting(256, "rows an update (paper, calibration)", low=1)
    patience: int = _setting(2, "stop after N epochs without a better validation NLL, once the rate is below a tenth of its peak [R]; 0: never (paper)", low=0)
    greedy_trace: bool = _setting(True, "add one greedy trace a clip, as the test uses one [R]")
    shuffle_labels: bool = _setting(True, "shuffle the order of the labels in each row's prompt [R]")
    save_steps: int = _setting(50, "updates between two resumable checkpoints", low=1)
    without: str = _setting("none", "a control: a calibrator that never sees the video, or the trace; a run of its own, which "
                            "evaluate puts beside the calibrator that sees both", choices=("none", "video", "trace"), added=True)


@dataclass(frozen=True)
class EvaluateConfig(Section):
    split: str = _setting("test", "which clips", choices=SPLITS)
    traces: int = _setting(1, "traces a clip; 1 with temperature 0 as the paper", low=1)
    temperature: float = _setting(0.0, "of sampling them; 0 is greedy", low=0)
    method: str = _setting("label_likelihood", "how a class distribution is made", choices=METHODS)
    bootstrap: int = _setting(1000, "resamples of the clips for the intervals; 0: no intervals", low=0)
    confidence: float = _setting(0.95, "of the intervals", above=0, high=0.999)
    bins: int = _setting(15, "reliability bins for ECE", low=1)
    controls: bool = _setting(True, "also score what the answer rests on: inputs blanked and swapped, the text of the traces alone, and calibrators "
                              "trained without an input where there are any")


_CHECKED = {
    "teach": ("teach",), "coldstart": ("model",), "grpo": ("model", "grpo"), "calibrate": ("model", "gate"), "evaluate": ("gate",),
}
"""Stage → the sections in which it refuses what would do nothing."""
# fmt: on


@dataclass(frozen=True)
class Config(Section):
    """All settings of a run. Raises `ConfigError` when made with a value that cannot be."""

    model: ModelConfig = ModelConfig()
    video: VideoConfig = VideoConfig()
    clips: ClipsConfig = ClipsConfig()
    prompt: PromptConfig = PromptConfig()
    sampling: SamplingConfig = SamplingConfig()
    teach: TeachConfig = TeachConfig()
    judge: JudgeConfig = JudgeConfig()
    coldstart: ColdstartConfig = ColdstartConfig()
    grpo: GrpoConfig = GrpoConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    gate: GateConfig = GateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    seed: int = _setting(0, "of every random choice", low=0, high=2**32 - 1)
    report_to: str = _setting(
        "tensorboard", "who is told the numbers of every training, beside the run's own `steps`", choices=TRACKERS
    )
    workbench: str = dataclasses.field(
        default_factory=lambda: os.environ.get("DEEPINTUIT_HOME") or "./workbench",
        metadata=dict(doc="folder of manifests, runs and caches; DEEPINTUIT_HOME where it is not set"),
    )
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)
    """Dotted keys that a file or `--set` named, also at their defaults: they are not inherited."""

    def _check_together(self) -> None:
        if "\0" in self.workbench:
            raise ConfigError(f"workbench = {self.workbench!r}", "no path holds a NUL byte", "Name a folder")

    def to_dict(self) -> dict[str, Any]:
        """Sections and keys as plain dicts, lists and scalars, ready for JSON."""
        told = dataclasses.asdict(self)
        del told["given"]
        return json.loads(json.dumps(told))

    def is_given(self, key: str) -> bool:
        """Whether `section.key` was named, or departs from its default: then no other run's value takes its place."""
        section, _, name = key.partition(".")
        part = getattr(self, section)
        return key in self.given or getattr(part, name) != type(part).__dataclass_fields__[name].default

    def told(self) -> dict[str, Any]:
        """What was given, nested as in a config file: everything else is a default, or comes from the run stood on."""
        whole, found = self.to_dict(), self.departures()
        for section, _, name in (key.partition(".") for key in sorted(self.given)):
            (found.setdefault(section, {}) if name else found)[name or section] = (
                whole[section][name] if name else whole[section]
            )
        return found

    def require_tracker(self) -> None:
        """Raises `ConfigError` where `report_to` names a package that is not there."""
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise ConfigError(
                f"report_to = {self.report_to!r}",
                "that package is not installed here, so nobody would be told",
                f"Install it (pip install {self.report_to}), or set report_to=tensorboard",
            )

    def decisive(self) -> dict[str, Any]:
        """`to_dict` without the settings that change only what the work costs: other ones make no other run."""
        told = self.to_dict()
        del told["report_to"]
        for name, settings in told.items():
            if isinstance(settings, dict):
                told[name] = {key: value for key, value in settings.items() if _part_of_a_run(getattr(self, name), key)}
        return told

    def refuse_idle(self, stage: str) -> None:
        """Raises `ConfigError` for a departure that this stage would not read, as the other settings are: what is set
        shall do something, or be said to do nothing."""
        self.require_tracker()
        for name in _CHECKED[stage]:
            section = getattr(self, name)
            for field in dataclasses.fields(section):
                value = getattr(section, field.name)
                lacking = [need for need in field.metadata["needs"] if not need.met(self)]
                if value == field.default or not lacking:
                    continue
                need, set_to = lacking[0], f"{name}.{field.name} = {value!r}"
                if not need.on:
                    raise ConfigError(set_to, need.why, f"Leave {name}.{field.name} out: it would change nothing")
                other, key = need.on.split(".")
                raise ConfigError(
                    f"{set_to} with {need.on} = {getattr(getattr(self, other), key)!r}",
                    f"{need.why}, so it would change nothing",
                    f"Leave {name}.{field.name} out, or set {need.set}",
                )

    def dumps(self) -> str:
        """All settings as TOML; `loads` gives the same config back."""
        return tomli_w.dumps(self.to_dict())

    def departures(self) -> dict[str, Any]:
        """What differs from the defaults, nested as in a config file."""
        return _difference(self.to_dict(), Config().to_dict())

    def hash(self, *sections: str) -> str:
        """16 hex digits of the named parts ("grpo", "seed" …); of all but the workbench folder when none is named."""
        content = self.to_dict()
        if unknown := set(sections) - set(content):
            raise ConfigError(f"section {sorted(unknown)[0]!r}", f"there are {', '.join(content)}", "Name one of them")
        chosen = {name: content[name] for name in sorted(sections or set(content) - {"workbench", "report_to"})}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def _part_of_a_run(section: Section, key: str) -> bool:
    field = type(section).__dataclass_fields__[key]
    return field.metadata["decides"] and not (field.metadata["added"] and getattr(section, key) == field.default)


def _difference(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in mine.items():
        if isinstance(value, dict):
            if inner := _difference(value, other[key]):
                found[key] = inner
        elif value != other[key]:
            found[key] = value
    return found


def load(path: str | Path | None = None, sets: Sequence[str] = ()) -> Config:
    """The defaults, then the departures of a TOML file, then each `section.key=value`, in order.

    A value of `sets` is TOML; a bare word is a text, and `a,b` a list where a list is wanted.
    """
    text = ""
    if path is not None:
        try:
            text = texts.read(path)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"config file {str(path)!r} could not be read",
                str(error),
                "Point --config to a TOML file, such as one in configs/",
            ) from error
    return loads(text, sets, source=str(path))


def loads(text: str, sets: Sequence[str] = (), source: str = "the text") -> Config:
    """As `load`, from TOML text."""
    try:
        content = texts.parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{source!r} is not a TOML file", str(error), "Mend that line") from error
    for assignment in sets:
        key, equals, value = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or len(parts) > 2 or not all(parts):
            raise ConfigError(f"--set {assignment!r}", "it has no key and value to read", "Write --set grpo.group=4")
        hint = _hint(parts)
        target = content
        if len(parts) == 2:
            target = content.setdefault(parts[0], {})
            _require_table(parts[0], target)
        target[parts[-1]] = _value(value.strip(), hint)
    sections = {}
    for name, value in content.items():
        hint = _hint([name])
        if isinstance(hint, type) and issubclass(hint, Section):
            _require_table(name, value)
            for key in value:
                _hint([name, key])
            value = hint(**value)
        sections[name] = value
    given = (
        f"{name}.{key}".rstrip(".")
        for name, value in content.items()
        for key in (value if isinstance(value, dict) else ("",))
    )
    return Config(**sections, given=frozenset(given))


def of(kept: Mapping[str, Any]) -> Config:
    """The config that run.json kept under `settings`; a key of another version is left to its default."""
    made = {}
    for section in dataclasses.fields(Config):
        given = kept.get(section.name)
        if given is None or not dataclasses.is_dataclass(section.default):
            continue
        _require_table(section.name, given)
        known = {field.name for field in dataclasses.fields(section.default)}
        made[section.name] = type(section.default)(**{key: value for key, value in given.items() if key in known})
    return Config(**made, seed=kept.get("seed", 0))


def _require_table(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} = {value!r}", "it is a section, not a value", f"Write [{name}] and its keys below")


def _hint(parts: Sequence[str]) -> Any:
    """The type of a setting. Raises `ConfigError` with the nearest name when there is none."""
    owner: Any = Config
    for depth, part in enumerate(parts):
        known = hints(owner) if isinstance(owner, type) and issubclass(owner, Section) else {}
        if part not in known:
            above = ".".join(parts[:depth])
            near = nearest(part, known)
            elsewhere = [f"{section}.{key}" for section, key, _, _ in describe() if section and key == part]
            offers = [f"Nearest: {'.'.join([*parts[:depth], near])}"] if near else []
            offers += ["It is " + " or ".join(elsewhere)] if elsewhere else []
            raise ConfigError(
                f"{'.'.join(parts)} is not a setting",
                f"{above or 'a config'} has {', '.join(known)}" if known else f"{above} is one value, not a section",
                offers[0] if offers else "Use one of these" if known else f"Write {above}=…",
            )
        owner = known[part]
    return owner


def _value(text: str, hint: Any) -> Any:
    """The value of an assignment, read as TOML where that gives the wanted type, else as the bare word it is."""
    try:
        found = texts.parse_toml(f"value = {text}")
    except ValueError:
        found = {}
    value = found["value"] if set(found) == {"value"} else text
    if hint is str and not isinstance(value, str):
        return text
    if hint == tuple[str, ...] and isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return value


def describe() -> list[tuple[str, str, Any, str]]:
    """Every setting as (section, key, default, meaning); the section of a top-level key is ""."""
    rows = []
    for field in dataclasses.fields(Config):
        if field.name not in hints(Config):
            continue
        value = getattr(Config(), field.name)
        if isinstance(value, Section):
            inner = dataclasses.fields(value)
            rows += [(field.name, setting.name, setting.default, setting.metadata["doc"]) for setting in inner]
        else:
            rows.append(("", field.name, value, field.metadata["doc"]))
    return rows
