"""Typed settings: one frozen model per section, whose defaults *are* the method: the DeepIntuit paper's settings.

A config file and `--set` hold departures only. An unknown key, a wrong type or an impossible value is a `ConfigError`
that names the nearest key, the value and the allowed ones. [R] marks what the paper does not say.
Run it:  python -c "from deepintuit import config; print(config.load(None, ['grpo.group=4']).departures())"
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from deepintuit import texts
from deepintuit.errors import ConfigError, nearest

Grammar = Literal["think-answer", "observation-think-answer", "answer-think-answer", "answer-observation-think-answer"]
Split = Literal["coldstart", "grpo", "calibration", "validation", "test"]
Distortion = Literal["none", "noise", "blur", "occlusion", "dropped"]
Tracker = Literal["none", "tensorboard", "trackio", "wandb", "mlflow"]
GRAMMAR_NAMES, SPLITS, TRACKERS = get_args(Grammar), get_args(Split), get_args(Tracker)
TRAINING = SPLITS[:3]

_LARGEST = 2**53
"""Of a number: up to here floats hold every whole one, and so does everybody who reads JSON."""
_LONGEST = 10_000
"""Characters of a text."""


CONFIGS = next(
    folder
    for folder in (Path(__file__).parent / "configs", Path(__file__).resolve().parents[1] / "configs")
    if folder.is_dir()
)
"""The files of settings that are shipped: inside an installed package, beside it in a checkout."""
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Identity(Enum):
    """How a setting belongs to what a run is, where it is not simply part of it."""

    COST = "it changes what the work costs and not what comes of it: another value makes no other run"
    ADDED = "it came later: at its default it is no part of what a run is"


COST, ADDED = Identity


class Need(NamedTuple):
    """What must hold for a setting to be read at all: a test of the setting `on`, why nothing reads it otherwise, and a
    value of `on` with which the test holds. Not `idle`: for it to do what it is for."""

    on: str
    met: Callable[[Any], bool]
    why: str
    value: str
    idle: bool = True


# fmt: off
OBSERVATION = Need("prompt.grammar", lambda name: "observation" in name, "that grammar has no observation to ask for or reward", "observation-think-answer")
QUICK = Need("prompt.grammar", lambda name: name.startswith("answer-"), "that grammar has no quick answer to reward", "answer-think-answer")
PROCESS = Need("grpo.process", lambda process: process != "off", "seeing earns nothing there", "separate")
BONUS = Need("grpo.length_bonus", lambda bonus: bonus > 0, "no length earns anything", "0.2")
SOFTMAX = Need("grpo.objective", lambda name: name == "softmax_weighted", "that objective has no weights of rewards", "softmax_weighted")
REFILLS = Need("grpo.dynamic_sampling", lambda on: on, "no round is filled up", "true")
WHOLE = Need("model.lora_rank", lambda rank: rank == 0, "an adapter is small, and every process holds all of it and the frozen weights", "0")
ADAPTER = Need("model.lora_rank", lambda rank: rank > 0, "there is no adapter", "64")
SERVED = Need("grpo.sampler", lambda sampler: sampler == "server", "traces are sampled by the very model that is trained", "server")
PIXELS = "the loss is computed on the frames of the record, and the server would be shown others"
FIT = (
    Need("server.model", bool, "a server serves models by name", "NAME", idle=False),
    Need("server.base_url", bool, "it has no address", "http://HOST:8000/v1", idle=False),
    Need("server.frames", lambda frames: frames == "video", PIXELS, "video", idle=False),
    Need("server.encoding", lambda coding: coding == "png", PIXELS, "png", idle=False),
    Need("server.extra", lambda extra: {*texts.parse_json(extra or "{}")} <= {"mm_processor_kwargs"}, "such fields may change what is drawn", '""', idle=False),
    Need("grpo.temperature", lambda heat: heat == 1, "servers give log-probabilities of temperature 1", "1", idle=False),
)
GATE = Need("gate.by", lambda by: by != "off", "nothing is compared with it", "confidence")
SELF_TAUGHT = Need("teach.source", lambda source: source == "self", "only the local model is told the answer", "self")
MODEL_TAUGHT = Need("teach.source", lambda source: source != "homecam", "no model is sampled there", "endpoint")
THOUGHT = Need("prompt.grammar", lambda name: "observation" not in name, "in that grammar more than a thought stands before the answer", "think-answer")
HERE = Need("server.model", lambda name: not name, "a server writes a trace to its end", "''")
DISTORTED = Need("evaluate.distortion", lambda name: name != "none", "no frame is distorted", "noise")
NEVER = Need("", lambda _: False, "a round is followed by one update, whose ratio is 1, so that no bound is ever met", "")
# fmt: on


class Section(BaseModel):
    """Settings that belong together. Frozen, and checked however one is made: `ConfigError` for what cannot be."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def dotted(cls, key: str = "") -> str:
        """`grpo.group` for the key `group` of [grpo]; a key of no section is its own name."""
        return ".".join(filter(None, (cls.__name__.removesuffix("Config").lower(), key)))

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, values: Any, handler: Callable[[Any], Self]) -> Self:
        for key, value in values.items() if isinstance(values, dict) else ():
            _refuse_unbounded(cls, key, value)
        try:
            return handler(values)
        except ValidationError as error:
            raise _refusal(cls, values, error.errors(include_url=False)[0]) from None

    def replace(self, **changes: Any) -> Self:
        """The same with other values, checked like all. A dict holds what changes within a section:
        `config.replace(seed=3, grpo={"group": 4})`."""
        for name, change in changes.items():
            before = getattr(self, name, None)
            if isinstance(before, Section) and isinstance(change, dict):
                changes[name] = before.replace(**change)
        checked = type(self).model_validate({**dict(self), **changes})
        return super().model_copy(update={name: getattr(checked, name) for name in changes})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """`replace`: pydantic's own checks nothing."""
        return self.replace(**(update or {}))

    def decisive(self) -> dict[str, Any]:
        """The settings without those that change only what the work costs: other ones make no other run."""
        settings = {}
        for key, json_value in self.model_dump(mode="json").items():
            field, value = type(self).model_fields[key], getattr(self, key)
            if COST not in field.metadata and not (ADDED in field.metadata and value == field.default):
                settings[key] = value.decisive() if isinstance(value, Section) else json_value
        return settings


_NO_TEMPERATURE = "false: for models that take no temperature but their own; left out when refused"


# fmt: off
class ModelConfig(Section):
    path: str = Field("Qwen/Qwen2.5-VL-7B-Instruct", description="folder or hub id of a Qwen2.5-VL, Qwen3-VL or Qwen3.5 checkpoint, or embedded:NAME for one that ships with the package")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="number type of the weights")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    lora_rank: int = Field(0, ge=0, description="rank of the LoRA adapters; 0 is full fine-tuning, as in the paper")
    lora_alpha: Annotated[int, ADAPTER] = Field(32, ge=1, description="scale of the adapters: alpha / rank [R]")
    lora_dropout: Annotated[float, ADAPTER] = Field(0.0, ge=0, le=0.99, description="dropout inside the adapters [R]")
    quantize: Literal["none", "4bit"] = Field("none", description="4bit is QLoRA and needs lora_rank > 0 to train")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="attention kernel of the language model; rows share prefixes with sdpa alone")
    tower_attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], COST] = Field("sdpa", description="attention kernel of the visual tower")
    share_prefix: bool = Field(True, description="compute once what rows about a clip have in common, in losses and scores, exactly; false: every row by itself")
    tokens_per_pass: Annotated[int, COST] = Field(16384, ge=1, description="max tokens of a forward pass in losses and scores, what rows share counted once; of one clip, those behind its prompt")
    tokens_in_cache: Annotated[int, COST] = Field(262144, ge=1, description="max tokens whose keys and values are held while sampling, were all traces of max_tokens; a round of clips is as large as that allows")
    divide_weights: Annotated[bool, COST, WHOLE] = Field(False, description="full fine-tuning in several processes: each holds a part of what is trained, its gradients and the optimizer's numbers (FSDP2); docs/scale.md")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")


class VideoConfig(Section):
    frames: int = Field(32, ge=1, description="max frames read per clip (paper, cold start)")
    fps: float = Field(0.0, ge=0, description="frames per second to read, up to `frames`; 0: spread evenly over the clip")
    max_pixels: int = Field(256 * 28 * 28, ge=1, description="max pixels per frame after resizing (paper, cold start)")
    min_pixels: int = Field(4 * 28 * 28, ge=1, description="min pixels per frame after resizing")
    max_tokens: Annotated[int, ADDED] = Field(0, ge=0, description="max visual tokens per clip, shared out over `frames` frames; 0: no bound but max_pixels")
    limit_pixels: int = Field(7680 * 4320, ge=1, description="a file whose frames have more pixels is refused before decoding")
    limit_mib: int = Field(1024, ge=1, description="a read that would hold more MiB of decoded frames is refused")
    limit_seconds: float = Field(60.0, gt=0, description="wall seconds that reading one file may take")
    cache_gib: Annotated[float, COST] = Field(50.0, ge=0, description="max GiB on disk for frames and features; the least recently used goes first, 0 keeps none")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ConfigError(f"video.min_pixels = {self.min_pixels}", f"video.max_pixels is only {self.max_pixels}", "Lower the first or raise the second")
        return self


class ClipsConfig(Section):
    dataset: str = Field("", description="name of the manifest in the workbench")
    labels: str = Field("", description="path of a labels.toml; empty: the labels found in the manifest")
    text_fields: Texts = Field((), description="text fields of a clip (title, transcript) that a model may read")
    notes_shown: Texts = Field((), description="annotation columns shown to a model on purpose; they leak the label")
    coldstart_share: float = Field(0.3, ge=0, le=1, description="share of the training groups for cold start [R]")
    grpo_share: float = Field(0.3, ge=0, le=1, description="share of the training groups for GRPO [R]")
    calibration_share: float = Field(0.4, ge=0, le=1, description="share of the training groups for calibration [R]")
    validation_share: float = Field(0.1, ge=0, le=0.9, description="share of all groups on which choices are made [R]")
    test_share: float = Field(0.2, ge=0, le=0.9, description="share of all groups kept for the last look [R]")

    @model_validator(mode="after")
    def _together(self) -> Self:
        training = self.coldstart_share + self.grpo_share + self.calibration_share
        if not math.isclose(training, 1, abs_tol=1e-6):
            raise ConfigError(f"clips.coldstart_share + grpo_share + calibration_share = {training:g}", "they share out the training groups, so they must sum to 1", "Change one of the three")
        if self.validation_share + self.test_share >= 1:
            raise ConfigError(f"clips.validation_share + test_share = {self.validation_share + self.test_share:g}", "nothing would be left to train on", "Keep their sum below 1")
        return self


class PromptConfig(Section):
    style: Literal["full", "brief"] = Field("full", description="brief: few tokens, for small models")
    grammar: Grammar = Field("think-answer", description="DeepIntuit's, VideoP2R's or VideoAuto-R1's, or the last two in one")


class SamplingConfig(Section):
    top_p: float = Field(1.0, gt=0, le=1, description="probability mass that is sampled from")
    max_tokens: int = Field(2048, ge=1, description="max tokens of a trace (paper, GRPO)")
    clips_per_batch: Annotated[int, COST] = Field(8, ge=1, description="clips sampled at once")


class EndpointConfig(Section):
    """An OpenAI-compatible server."""

    model: str = Field("", description="model name at the endpoint")
    base_url: str = Field("", description="address of the endpoint, up to and with /v1")
    key_variable: str = Field("OPENAI_API_KEY", description="NAME of the environment variable that holds the key, never the key")
    concurrency: Annotated[int, COST] = Field(8, ge=1, description="requests in flight")
    retries: Annotated[int, COST] = Field(6, ge=0, description="tries after the first, with back-off")
    timeout: Annotated[float, COST] = Field(120.0, gt=0, description="seconds a request may take")
    token_field: Annotated[Literal["max_tokens", "max_completion_tokens"], COST] = Field("max_tokens", description="what the server calls the bound of an answer; tried the other way when refused")
    send_temperature: bool = Field(True, description=_NO_TEMPERATURE)


class ServerConfig(EndpointConfig):
    """An OpenAI-compatible server that writes the traces, in place of a model on this machine."""

    model: str = Field("", description="name of the reasoner at the server; empty: traces are written on this machine")
    base_url: Annotated[str, COST] = Field("", description="address of the server, up to and with /v1; several with commas between share the clips out")
    key_variable: Annotated[str, COST] = Field("VLLM_API_KEY", description="NAME of the environment variable that holds the key, never the key")
    calibrator: str = Field("", description="name of the calibrator at the server: it must give `prompt_logprobs`, as vLLM does; empty: the calibrator is on this machine")
    frames: Literal["video", "images"] = Field("video", description="video: a list of frames with their times, as vLLM takes it; images: one picture each, for other servers")
    encoding: Literal["png", "jpeg"] = Field("png", description="of a frame; png: the very pixels of the record; jpeg: a fifth of the bytes, and other pixels")
    compare: Annotated[bool, COST] = Field(True, description="load the reasoner's weights here as well, to compare log-probabilities of one clip; false where they are not here, or too large")
    extra: str = Field("", description="JSON object of further fields of a request, such as {\"mm_processor_kwargs\": {\"do_resize\": false}}")

    @model_validator(mode="after")
    def _together(self) -> Self:
        try:
            more = texts.parse_json(self.extra) if self.extra else {}
        except ValueError:
            more = None
        if not isinstance(more, dict):
            raise ConfigError(f"server.extra = {self.extra!r}", "it is no JSON object", "Write the fields of a request as {\"name\": value}")
        return self


class TeachConfig(EndpointConfig):
    source: Literal["endpoint", "homecam", "self"] = Field("endpoint", description="endpoint: OpenAI-compatible server; homecam: scripted teacher; self: RB-FT")
    model: str = Field("", description="model name at the endpoint (the paper: Gemini 2.5 Flash)")
    send_temperature: Annotated[bool, ADDED] = Field(True, description=_NO_TEMPERATURE)
    traces: int = Field(1, ge=1, description="traces asked for per clip")
    temperature: Annotated[float, MODEL_TAUGHT] = Field(0.7, ge=0, description="of the teacher [R]")
    max_tokens: Annotated[int, MODEL_TAUGHT] = Field(2048, ge=1, description="max tokens of a teacher's trace")
    price_in: Annotated[float, COST] = Field(0.0, ge=0, description="currency units per million prompt tokens, for the cost count")
    price_out: Annotated[float, COST] = Field(0.0, ge=0, description="currency units per million completion tokens")
    judged: Annotated[bool, OBSERVATION] = Field(True, description="grammars with an observation: keep a trace only if it suffices (VideoP2R)")
    given_answer: Annotated[bool, ADDED, SELF_TAUGHT] = Field(False, description="self: the form and the true label are given, the model writes only the reasoning [R]")
    keep_wrong: bool = Field(False, description="keep traces whose answer is not the label (the paper drops them)")


class JudgeConfig(EndpointConfig):
    """Who says whether an observation, read without the clip, suffices for the right answer (VideoP2R)."""

    source: Literal["endpoint", "answerer", "facts"] = Field("endpoint", description="endpoint: OpenAI-compatible server; answerer: a frozen model that must reach the label from the text; facts: the known facts of homecam")
    model: str = Field("", description="model name at the endpoint, or the answerer's folder or hub id; empty there: model.path")
    max_tokens: Annotated[int, COST] = Field(8, ge=1, description="max tokens of a verdict; a server that thinks first needs some thousands")
    send_temperature: Annotated[bool, COST] = Field(True, description=_NO_TEMPERATURE)


class GateConfig(Section):
    """When a quick answer ends the work (VideoAuto-R1); for grammars with a quick answer only."""

    by: Literal["off", "confidence", "calibrated"] = Field("off", description="off: always think; confidence: of the quick answer's tokens; calibrated: the calibrator's highest probability after it")
    threshold: Annotated[float, GATE] = Field(0.97, ge=0, le=1, description="at least this sure, the quick answer stands (paper, Qwen2.5-VL; 0.98 for Qwen3-VL); 0 never thinks, 1 nearly always")


class ColdstartConfig(Section):
    target: Literal["trace", "label"] = Field("trace", description="trace, or label: the answer alone (Direct-SFT)")
    splits: Texts = Field(("coldstart",), description='splits to train on; more than cold start\'s own only for target = "label"')
    learning_rate: float = Field(2e-5, gt=0, description="peak rate (paper, cold start)")
    epochs: float = Field(5.0, gt=0, description="passes over the traces (paper, cold start)")
    batch: int = Field(64, ge=1, description="traces per update (paper, cold start)")
    warmup: float = Field(0.06, ge=0, le=1, description="share of the updates over which the rate rises (paper, cold start)")
    scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="how the rate falls after that [R]")
    weight_decay: float = Field(0.0, ge=0, description="[R]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm [R]")
    save_steps: int = Field(50, ge=1, description="updates between two resumable checkpoints")
    limit: int = Field(0, ge=0, description="use only the first N traces; 0: all")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not self.splits:
            raise ConfigError("coldstart.splits = []", "nothing would be trained on", "Name at least coldstart")
        for split in self.splits:
            if split not in TRAINING:
                raise ConfigError(f"coldstart.splits names {split!r}", "only coldstart, grpo and calibration clips are trained on", f"Nearest: {nearest(split, TRAINING) or 'coldstart'!r}")
        if self.target == "trace" and self.splits != ("coldstart",):
            raise ConfigError(f'coldstart.splits = {list(self.splits)} with target = "trace"', "teacher traces belong to the cold-start split, and later stages need clips that it never saw", 'Set coldstart.target = "label", or leave splits out')
        return self


class GrpoConfig(Section):
    sampler: Annotated[Literal["local", "server"], ADDED, *FIT] = Field("local", description="who writes the traces: the model here, or vLLM at [server], which is given the weights before each round")
    max_difference: Annotated[float, COST, SERVED] = Field(0.05, gt=0, description="sampler = server: largest mean difference of log-probabilities between server and loss in a round; beyond it the run ends [R]")
    group: int = Field(8, ge=2, description="traces sampled per clip, G (paper, GRPO); one alone has nothing to be compared with")
    clips_per_step: int = Field(64, ge=1, description="clips per update (paper, GRPO)")
    learning_rate: float = Field(1e-6, gt=0, description="peak rate (paper, GRPO)")
    warmup_steps: int = Field(10, ge=0, description="updates over which the rate rises (paper, GRPO), at most")
    warmup_share: Annotated[float, ADDED] = Field(0.2, ge=0, le=1, description="of all updates, what warm-up may take at most: small sets train too [R]")
    weight_decay: float = Field(0.1, ge=0, description="(paper, GRPO)")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm (paper, GRPO)")
    epochs: float = Field(1.0, gt=0, description="passes over the clips (the paper; its release says 20)")
    max_steps: int = Field(0, ge=0, description="stop after N updates; 0: by epochs")
    max_tokens: int = Field(2048, ge=1, description="max tokens of a trace (paper, GRPO)")
    temperature: float = Field(1.0, gt=0, description="of sampling (paper, GRPO)")
    objective: Literal["dapo", "softmax_weighted", "grpo"] = Field("dapo", description="dapo; softmax_weighted, the paper's text [R]; grpo, mean per trace")
    epsilon_low: Annotated[float, NEVER] = Field(0.2, gt=0, le=1, description="the ratio is clipped below 1 − this")
    epsilon_high: Annotated[float, NEVER] = Field(0.28, gt=0, description="the ratio is clipped above 1 + this")
    beta: float = Field(0.0, ge=0, description="weight of the KL term; 0: none (paper, GRPO)")
    tau: Annotated[float, SOFTMAX] = Field(1.0, gt=0, description="softmax_weighted: temperature of the reward weights [R]")
    dynamic_sampling: bool = Field(False, description="keep only groups with some traces right and some wrong")
    max_refills: Annotated[int, REFILLS] = Field(3, ge=0, description="dynamic_sampling: at most N further rounds to fill a step")
    overlong_cache: int = Field(0, ge=0, description="tokens before the limit over which a penalty falls to −1; 0: off")
    mask_truncated: bool = Field(False, description="leave traces cut at the limit out of the loss")
    accuracy_weight: float = Field(1.0, ge=0, description="weight of the accuracy reward (paper, GRPO)")
    format_weight: float = Field(1.0, ge=0, description="weight of the format reward (paper, GRPO)")
    process: Annotated[Literal["separate", "summed", "off"], OBSERVATION] = Field("separate", description="grammars with an observation: separate, seeing and reasoning pushed apart (VideoP2R); summed, one advantage of both; off, the answer's rewards alone")
    perception_weight: Annotated[float, OBSERVATION, PROCESS] = Field(1.0, ge=0, description="of the observation's rewards; 0: none (VideoP2R's ablation)")
    length_bonus: Annotated[float, OBSERVATION, PROCESS] = Field(0.2, ge=0, description="for a right process of fitting length [R]")
    perception_min: Annotated[int, OBSERVATION, PROCESS, BONUS] = Field(128, ge=0, description="tokens of an observation that earn the bonus, from (VideoP2R)")
    perception_max: Annotated[int, OBSERVATION, PROCESS, BONUS] = Field(320, ge=1, description="… to")
    reasoning_min: Annotated[int, OBSERVATION, PROCESS, BONUS] = Field(320, ge=0, description="tokens of thinking and answer that earn it, from (VideoP2R)")
    reasoning_max: Annotated[int, OBSERVATION, PROCESS, BONUS] = Field(512, ge=1, description="… to")
    quick_weight: Annotated[float, QUICK] = Field(0.9, ge=0, description="grammars with a quick answer: of its accuracy (VideoAuto-R1)")
    final_weight: Annotated[float, QUICK] = Field(1.1, ge=0, description="grammars with a quick answer: of the last one's accuracy (VideoAuto-R1)")
    fallback_bonus: Annotated[float, QUICK] = Field(0.3, ge=0, description="grammars with a quick answer: for putting off and then being right (VideoAuto-R1)")
    check_clips: int = Field(32, ge=0, description="clips sampled first, to see whether there is anything to learn; 0: none")
    filter_rollouts: int = Field(0, ge=0, description="traces sampled of each clip first; clips whose traces are all right or all wrong are left out (VideoAuto-R1: 8); 0: off")
    save_steps: int = Field(20, ge=1, description="updates between two resumable checkpoints")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.filter_rollouts == 1:
            raise ConfigError("grpo.filter_rollouts = 1", "one trace is all right or all wrong, so no clip would be left", "Set 2 or more (VideoAuto-R1: 8), or 0 for no filter")
        if self.overlong_cache > self.max_tokens:
            raise ConfigError(f"grpo.overlong_cache = {self.overlong_cache}", f"grpo.max_tokens is {self.max_tokens}", "Lower the first or raise the second")
        if self.accuracy_weight == self.format_weight == 0:
            raise ConfigError("grpo.accuracy_weight = grpo.format_weight = 0", "every trace would earn the same", "Give one of them a weight above 0")
        for part, low, high in (("perception", self.perception_min, self.perception_max), ("reasoning", self.reasoning_min, self.reasoning_max)):
            if low > high:
                raise ConfigError(f"grpo.{part}_min = {low}", f"grpo.{part}_max is only {high}, so no length would ever earn the bonus", "Lower the first or raise the second")
        return self


class CalibrateConfig(Section):
    traces: int = Field(4, ge=1, description="traces sampled per clip from the frozen reasoner (paper, calibration)")
    temperature: float = Field(1.0, ge=0, description="of sampling them (paper, calibration)")
    learning_rate: float = Field(2e-5, gt=0, description="peak rate (paper, calibration)")
    epochs: float = Field(10.0, gt=0, description="passes over the rows, at most (paper, calibration)")
    batch: int = Field(256, ge=1, description="rows per update (paper, calibration)")
    patience: int = Field(2, ge=0, description="stop after N epochs without a better validation NLL, once the rate is below a tenth of its peak [R]; 0: never (paper)")
    greedy_trace: bool = Field(True, description="add one greedy trace per clip, as the test uses one [R]")
    shuffle_labels: bool = Field(True, description="shuffle the order of the labels in each row's prompt [R]")
    save_steps: int = Field(50, ge=1, description="updates between two resumable checkpoints")
    without: Annotated[Literal["none", "video", "trace"], ADDED] = Field("none", description="a control: a calibrator that never sees the video, or the trace; a run of its own, which evaluate puts beside the calibrator that sees both")


class EncoderConfig(Section):
    """A conventional classifier of videos, for the row beside a reasoner."""

    path: str = Field("random", description="folder or hub id of a VideoMAE, V-JEPA 2, TimeSformer, ViViT or other model for video classification; random: a small VideoMAE without training, for small worlds")
    learning_rate: float = Field(1e-4, gt=0, description="peak rate, of all weights [R]")
    epochs: float = Field(20.0, gt=0, description="passes over the training clips, of which the one of least validation NLL is kept [R]")
    batch: int = Field(8, ge=1, description="clips per update [R]")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the updates over which the rate rises, before it falls as a cosine [R]")
    weight_decay: float = Field(0.05, ge=0, description="[R]")


class EvaluateConfig(Section):
    split: Split = Field("test", description="which clips")
    traces: int = Field(1, ge=1, description="traces per clip; 1 with temperature 0 as the paper")
    temperature: float = Field(0.0, ge=0, description="of sampling them; 0 is greedy")
    method: Literal["label_likelihood", "linear_head", "vote", "mean_likelihood"] = Field("label_likelihood", description="how a class distribution is made")
    thinking_tokens: Annotated[int, ADDED, THOUGHT, HERE] = Field(0, ge=0, description="close the thought of a trace after N tokens, and have it answer (paper, figure 7); 0: no bound but sampling.max_tokens")
    distortion: Annotated[Distortion, ADDED] = Field("none", description="of the frames that are scored, as a test of what was trained without: noise in each pixel; blur; occlusion, a grey box in one place; dropped, frames that repeat the one before")
    distortion_strength: Annotated[float, ADDED, DISTORTED] = Field(0.25, gt=0, le=1, description="noise: standard deviation, of half the range of a pixel; blur: radius, of an eighth of the shorter side; occlusion: share of the picture; dropped: share of the frames")
    bootstrap: int = Field(1000, ge=0, description="resamples of the clips for the intervals; 0: no intervals")
    confidence: float = Field(0.95, gt=0, le=0.999, description="of the intervals")
    bins: int = Field(15, ge=1, description="reliability bins for ECE")
    controls: bool = Field(True, description="also score what the answer rests on: inputs blanked and swapped, the text of the traces alone, and calibrators trained without an input where there are any")
# fmt: on


class Config(Section):
    """All settings of a run. Raises `ConfigError` when made with a value that cannot be."""

    model: ModelConfig = ModelConfig()
    video: VideoConfig = VideoConfig()
    clips: ClipsConfig = ClipsConfig()
    prompt: PromptConfig = PromptConfig()
    sampling: SamplingConfig = SamplingConfig()
    server: Annotated[ServerConfig, ADDED] = ServerConfig()
    teach: TeachConfig = TeachConfig()
    judge: JudgeConfig = JudgeConfig()
    coldstart: ColdstartConfig = ColdstartConfig()
    grpo: GrpoConfig = GrpoConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    gate: GateConfig = GateConfig()
    encoder: Annotated[EncoderConfig, ADDED] = EncoderConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of every random choice")
    report_to: Annotated[Tracker, COST] = Field(
        "tensorboard", description="who is told the numbers of every training, beside the run's own `steps`"
    )
    workbench: str = Field(
        default_factory=lambda: os.environ.get("DEEPINTUIT_HOME") or "./workbench",
        description="folder of manifests, runs and caches; DEEPINTUIT_HOME where it is not set",
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if "\0" in self.workbench:
            raise ConfigError(f"workbench = {self.workbench!r}", "no path holds a NUL byte", "Name a folder")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Sections and keys as plain dicts, lists and scalars, ready for JSON."""
        return self.model_dump(mode="json")

    def dumps(self) -> str:
        """All settings as TOML; `loads` gives the same config back."""
        return tomli_w.dumps(self.to_dict())

    def departures(self) -> dict[str, Any]:
        """What differs from the defaults, nested as in a config file."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def told(self) -> dict[str, Any]:
        """What was given, nested as in a config file: everything else is a default, or comes from the run stood on."""
        return self.model_dump(mode="json", exclude_unset=True)

    def is_given(self, key: str) -> bool:
        """Whether `section.key` was named, also at its default: then no other run's value takes its place."""
        section, _, name = key.partition(".")
        return name in getattr(self, section).model_fields_set

    def require_tracker(self) -> None:
        """Raises `ConfigError` where `report_to` names a package that is not there."""
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise ConfigError(
                f"report_to = {self.report_to!r}",
                "that package is not installed here, so nobody would be told",
                f"Install it (pip install {self.report_to}), or set report_to=tensorboard",
            )

    def refuse_idle(self, stage: str) -> None:
        """Raises `ConfigError` for a departure that this stage would not read, as the other settings are: what is set
        shall do something, or be said to do nothing."""
        self.require_tracker()
        for name in _WITH_NEEDS[stage]:
            for key, field in type(section := getattr(self, name)).model_fields.items():
                value = getattr(section, key)
                needs = (need for need in field.metadata if isinstance(need, Need)) if value != field.default else ()
                for need in needs:
                    self._refuse_lacking(f"{name}.{key}", value, need)

    def _refuse_lacking(self, key: str, value: Any, need: Need) -> None:
        if not need.on:
            raise ConfigError(f"{key} = {value!r}", need.why, f"Leave {key} out: it would change nothing")
        section, _, name = need.on.partition(".")
        state = getattr(getattr(self, section), name)
        if not need.met(state):
            raise ConfigError(
                f"{key} = {value!r} with {need.on} = {state!r}",
                need.why + ", so it would change nothing" * need.idle,
                f"Leave {key} out, or set {need.on}={need.value}",
            )


_WITH_NEEDS = {
    "teach": ("teach",),
    "coldstart": ("model",),
    "grpo": ("model", "grpo"),
    "calibrate": ("model", "gate"),
    "evaluate": ("gate", "evaluate"),
    "predict": ("gate",),
    "attribute": (),
    "judge": (),
    "embed": (),
}
"""Stage → the sections in which it refuses what would do nothing."""


def load(path: str | Path | None = None, sets: Sequence[str] = ()) -> Config:
    """The defaults, then the departures of a TOML file, then each `section.key=value`, in order.

    A value of `sets` is TOML; a bare word is a text, and `a,b` a list where a list is wanted. `configs/tiny.toml` is the
    shipped file where no other one lies there.
    """
    text = ""
    if path is not None:
        shipped = CONFIGS / Path(path).name
        if Path(path) == Path("configs", shipped.name) and not Path(path).exists() and shipped.is_file():
            path = shipped
        try:
            text = texts.read(path)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"config file {str(path)!r} could not be read",
                str(error),
                "Point --config to a TOML file, such as configs/tiny.toml",
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
        section, *inner = parts = key.strip().split(".")
        if not equals or len(parts) > 2 or not all(parts):
            raise ConfigError(f"--set {assignment!r}", "it has no key and value to read", "Write --set grpo.group=4")
        field = field_of(key.strip())
        target = content.setdefault(section, {}) if inner else content
        if not isinstance(target, dict):
            raise _no_section(section, target)
        target[parts[-1]] = _value(value.strip(), field)
    return Config.model_validate(content)


def known(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings that a run kept, those that this version has; where the workbench lay is left out."""
    tables = {name: saved[name] for name in Config.model_fields if saved.get(name) is not None and name != "workbench"}
    for name, value in tables.items():
        section = Config.model_fields[name].default
        if isinstance(section, Section) and isinstance(value, Mapping):
            tables[name] = {key: setting for key, setting in value.items() if key in type(section).model_fields}
    return tables


def of(saved: Mapping[str, Any]) -> Config:
    """The config that run.json kept under `settings`; what is at its default there does not count as given."""
    return Config.model_validate(Config.model_validate(known(saved)).departures())


def describe() -> list[tuple[str, str, Any, str]]:
    """Every setting as (section, key, default, meaning); the section of a top-level key is ""."""
    rows = []
    for name, field in Config.model_fields.items():
        if isinstance(field.default, Section):
            inner = type(field.default).model_fields.items()
            rows += [(name, key, setting.default, setting.description) for key, setting in inner]
        else:
            rows.append(("", name, getattr(Config(), name), field.description))
    return rows


def field_of(key: str) -> FieldInfo:
    """The setting `section.key`, or a section. Raises `ConfigError` with the nearest name when there is none."""
    first, _, second = key.partition(".")
    if first not in Config.model_fields:
        raise _unknown(Config, key)
    field = Config.model_fields[first]
    if not second:
        return field
    if not isinstance(field.default, Section):
        raise ConfigError(f"{key} is not a setting", f"{first} is one value, not a section", f"Write {first}=…")
    if second not in type(field.default).model_fields:
        raise _unknown(type(field.default), key)
    return type(field.default).model_fields[second]


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The words that a setting chooses from; empty where it takes other values."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _value(text: str, field: FieldInfo) -> Any:
    """The value of an assignment, read as TOML where that gives the wanted type, else as the bare word it is."""
    try:
        table = texts.parse_toml(f"value = {text}")
    except ValueError:
        table = {}
    value = table["value"] if set(table) == {"value"} else text
    if (field.annotation is str or choices_of(field)) and not isinstance(value, str):
        return text
    if get_origin(field.annotation) is tuple and isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return value


def _refuse_unbounded(section: type[Section], key: str, value: Any) -> None:
    if isinstance(value, int) and abs(value) > _LARGEST:
        what, why = f" is a number of {value.bit_length()} bits", f"one of at most {_LARGEST:,} is stored as it is"
    elif any(
        isinstance(element, str) and not texts.fits(element, _LONGEST)
        for element in (value if isinstance(value, list | tuple) else [value])
    ):
        what, why = f" = {value!r}", f"a text has at most {_LONGEST:,} characters, and no half of one"
    else:
        return
    raise ConfigError(section.dotted(key) + what, why, _meaning(section, key))


def _refusal(section: type[Section], values: Any, fault: Mapping[str, Any]) -> ConfigError:
    """What pydantic found first, in three beats."""
    if not fault["loc"]:
        return _no_section(section.dotted(), values)
    key = fault["loc"][0]
    if fault["type"] == "extra_forbidden":
        return _unknown(section, section.dotted(key))
    field, value, todo = section.model_fields[key], values[key], _meaning(section, key)
    bounds = [
        f"{word} {getattr(bound, sign)}"
        for bound in field.metadata
        for sign, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"))
        if hasattr(bound, sign)
    ]
    if choices := choices_of(field):
        allowed = f"one of {', '.join(choices)}"
        near = nearest(value, choices) if isinstance(value, str) else None
        todo = f"Nearest: {near!r}" if near else todo
    elif fault["type"].endswith("_type"):
        allowed = _IN_WORDS.get(field.annotation, "a list of texts")
    else:
        allowed = " and ".join(bounds + ["finite"] * (fault["type"] == "finite_number"))
    return ConfigError(f"{section.dotted(key)} = {value!r}", f"it must be {allowed}", todo)


def _meaning(section: type[Section], key: str) -> str:
    return f"Meaning: {section.model_fields[key].description if key in section.model_fields else key}"


def _no_section(name: str, value: Any) -> ConfigError:
    return ConfigError(f"{name} = {value!r}", "it is a section, not a value", f"Write [{name}] and its keys below")


def _unknown(owner: type[Section], key: str) -> ConfigError:
    part = key.split(".")[0 if owner is Config else 1]
    near = nearest(part, owner.model_fields)
    elsewhere = [f"{section}.{name}" for section, name, _, _ in describe() if section and name == part]
    return ConfigError(
        f"{key} is not a setting",
        f"{owner.dotted() or 'a config'} has {', '.join(owner.model_fields)}",
        f"Nearest: {owner.dotted(near)}" if near
        else f"It is {' or '.join(elsewhere)}" if elsewhere
        else "Use one of these",
    )  # fmt: skip
