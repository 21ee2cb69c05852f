"""Every setting of the stages beside GRPO (`test_settings` has that one) is flipped alone: it changes what is done, or
is declared to change only what the work costs. Clips, models, servers and stages are real and tiny; of calibration
alone the training is left out, which is cold start's."""

import dataclasses
import itertools
import shutil
from types import SimpleNamespace

import pytest
from embedded import Bench, short_trace
from safetensors.torch import load_file, save_file
from test_endpoint import KEY, Server, chat

from deepintuit import calibrate, coldstart, evaluate, grpo, stage, teach
from deepintuit.config import COST, Config, choices_of, load
from deepintuit.errors import ConfigError, DeepIntuitError
from deepintuit.reasoner import Task
from deepintuit.vlm import VLM
from deepintuit.vlm.clips import ClipEncoder
from deepintuit_analysis.report import table_of

pytest_plugins = ["embedded"]

# Section → setting → its other value, and what else must be set, in both cases, for it to be read.
FLIPPED = {
    "model": {
        "path": ("OTHER",), "dtype": ("bfloat16",), "device": ("cuda:99",), "lora_rank": (4,),
        "lora_alpha": (7, "model.lora_rank=4"), "lora_dropout": (0.5, "model.lora_rank=4"), "quantize": ("4bit",),
        "attention": ("eager",), "share_prefix": (False,), "gradient_checkpointing": (True,),
    },
    "video": {
        "frames": (3,), "fps": (1.0, "video.frames=6"), "max_pixels": (1024,), "max_tokens": (8,),
        "limit_pixels": (64,), "min_pixels": (40_000, "video.max_pixels=50000"),
        "limit_mib": (1, "video.frames=64"), "limit_seconds": (1e-9,),
    },
    "prompt": {"style": ("full",), "grammar": ("answer-think-answer",)},
    "sampling": {"top_p": (0.05, "evaluate.temperature=3"), "max_tokens": (3,)},
    "teach": {
        "source": ("homecam",), "base_url": ("ELSEWHERE",), "model": ("n",), "key_variable": ("OTHER_KEY",),
        "send_temperature": (False,), "traces": (2,), "temperature": (0.1,), "max_tokens": (9,),
        "judged": (False, "prompt.grammar=observation-think-answer", "judge.source=facts"),
        "given_answer": (True, "teach.source=self", "teach.max_tokens=9"), "keep_wrong": (True,),
    },
    "coldstart": {
        "target": ("label",), "splits": ("calibration", "coldstart.target=label"), "learning_rate": (2e-3,),
        "epochs": (2.0,), "batch": (3,), "warmup": (0.9,), "scheduler": ("linear",), "weight_decay": (0.5,),
        "max_grad_norm": (1e-3,), "save_steps": (1,), "limit": (4,),
    },
    "calibrate": {
        "traces": (3,), "temperature": (3.0,), "learning_rate": (2e-3,), "epochs": (2.0,), "batch": (3,),
        "patience": (0,), "greedy_trace": (False,), "shuffle_labels": (False,), "save_steps": (1,),
        "without": ("trace",),
    },
    "evaluate": {
        "split": ("validation",), "traces": (2,), "temperature": (3.0,), "method": ("vote",), "controls": (True,),
        "bootstrap": (20,), "confidence": (0.5,), "bins": (3,), "thinking_tokens": (3,), "distortion": ("noise",),
        "distortion_strength": (0.9, "evaluate.distortion=noise"),
    },
}  # fmt: skip
ONLY_COST = {"coldstart.save_steps", "calibrate.save_steps"}
"""They change what a run is called by, since they once did, and nothing else: `test_a_killed_run_continues_…`."""


@pytest.fixture(scope="module")
def parts(bench, cold, calibrated, tmp_path_factory):
    """A workbench of a few clips in each split, with a cold start, a calibrator of it, and a model."""
    own = bench.copy(tmp_path_factory.mktemp("few") / "own")
    manifest = own.manifest
    for split, most in {"coldstart": 6, "calibration": 4, "validation": 4, "test": 4}.items():
        members = manifest.frame.index[manifest.frame["split"] == split]
        by_label = manifest.frame.loc[members].groupby("label").cumcount().sort_values(kind="stable").index
        manifest.frame.loc[by_label[most:], "split"] = None
    manifest.save()
    settings = own.settings()
    vlm = VLM.load(settings.model, settings.video, trainable=True)
    return SimpleNamespace(
        own=own, cold=cold, calibrator=calibrated, vlm=vlm, teacher=own.teach(short_trace, 1, "one"),
        folder=tmp_path_factory.mktemp("more"), numbers=itertools.count(),
    )  # fmt: skip


def _model(parts, config: Config, _):
    vlm = VLM.load(config.model, config.video, trainable=True)
    trained = {name: tuple(p.shape) for name, p in vlm.model.named_parameters() if p.requires_grad}
    adapters = [(one.r, one.lora_alpha, one.lora_dropout) for one in getattr(vlm.model, "peft_config", {}).values()]
    how = vlm.core.config._attn_implementation, vlm.core.is_activation_checkpointing, vlm.shares_prefix
    weights = float(vlm.core.lm_head.weight.float().sum()), str(vlm.dtype)
    return weights, trained, adapters, how, {type(module).__name__ for module in vlm.model.modules()}


def _video(parts, config: Config, _):
    encoder = ClipEncoder(parts.vlm.processor, parts.vlm.core, parts.vlm.family, config.video, None)
    clip = Task(parts.own.path, config).clips("test")[0]
    seen = encoder.encode(clip.clip_id, clip.path, clip.width, clip.height)
    return seen.frames, seen.embeds.tolist()


def _prompt(parts, config: Config, _):
    task = Task(parts.own.path, config)
    clip_id = task.clips("test")[0].clip_id
    said = task.parse(short_trace({"clip_id": clip_id}, 0), False)
    asked = task.reasoner_prompt(clip_id), task.label_prompt(clip_id), task.calibrator_prompt(clip_id, said)
    return asked, said.ok


def _teach(parts, config: Config, monkeypatch):
    """Two clips, an empty cache: what a server is asked, and what is stored and kept of its answers, of which one is
    right."""
    clean = parts.folder / f"teach-{next(parts.numbers)}"
    shutil.copytree(parts.own.path, clean, ignore=shutil.ignore_patterns("runs", "cache"))
    bench = Bench(clean, parts.own.model)
    manifest = bench.manifest
    two = manifest.usable("coldstart").drop_duplicates("label")[:2]
    outside = (manifest.frame["split"] == "coldstart") & ~manifest.frame["clip_id"].isin(two["clip_id"])
    manifest.frame.loc[outside, "split"] = None
    manifest.save()
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", "another")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    grammar = "<observation> Day. </observation>" * ("observation" in config.prompt.grammar)
    said = f"{grammar}<think> So. </think><answer> {two['label'].iloc[0]} </answer>"
    with Server(lambda _: chat(said)) as server:
        url = server.base_url.replace("/v1", "/other/v1" if config.teach.base_url else "/v1")
        run = teach.run(bench.workbench, config.replace(teach={"base_url": url}), progress=False)
        asked = [str({**body, "messages": None}) for body in server.seen]
    scores = run.read("scores")
    told = sorted(zip(scores["name"], scores["value"], scores["evidence"].astype(str)))
    return sorted(asked), sorted(map(str, server.keys)), sorted(run.read("traces")["text"]), told


def _coldstart(parts, config: Config, _):
    teacher = parts.teacher.id if config.coldstart.target == "trace" else None
    run = coldstart.run(parts.own.workbench, config, teacher=teacher, progress=False)
    steps = run.read("steps").query("name in ('loss', 'grad_norm', 'learning_rate')").sort_values(["name", "step"])
    return run.summary["rows"], steps["value"].tolist()


def _calibrate(parts, config: Config, monkeypatch):
    told = []

    def asked(vlm, clips, example, recipe, *_, validate, **__):
        rows = [(one.clip.clip_id, one.prompt, one.target) for one in (example(row, 0) for row in range(len(clips)))]
        told.append((dataclasses.replace(recipe, save_steps=1), rows, validate is None))
        return {"steps": 0}

    monkeypatch.setattr(stage, "finetune", asked)
    name = f"flip-{next(parts.numbers)}"  # one that is finished would be given back, and nothing asked
    run = calibrate.run(parts.own.workbench, config, reasoner=parts.cold.id, name=name, progress=False)
    assert len(told) == 1
    return told, sorted(run.read("traces")["text"])


def _evaluate(parts, config: Config, _, calibrator: str | None = None):
    """The texts, and the table as a person reads it."""
    run = evaluate.run(parts.own.workbench, config, reasoner=parts.cold.id, calibrator=calibrator, progress=False)
    rows = table_of(run.read("predictions"), tuple(parts.own.manifest.labels), config.evaluate)
    return run.read("traces").sort_values(["clip_id", "sample"])["text"].tolist(), *map(str, rows)


def _calibrated(parts, config: Config, monkeypatch):
    return _evaluate(parts, config, monkeypatch, parts.calibrator.id)


LOOKED_AT = {
    "model": (_model,), "video": (_video,), "prompt": (_prompt,), "teach": (_teach,), "coldstart": (_coldstart,),
    "calibrate": (_calibrate,), "evaluate": (_evaluate,), "sampling": (_evaluate, _calibrate),
    "evaluate.controls": (_calibrated,),
}  # fmt: skip
"""What is looked at for the settings of a section, or for one."""
ALWAYS = (
    "video.frames=2", "sampling.max_tokens=12", "sampling.clips_per_batch=4", "teach.source=endpoint", "teach.model=m",
    "teach.key_variable=TEACHER_KEY", "teach.retries=0", "coldstart.batch=2", "coldstart.epochs=1", "coldstart.limit=6",
    "evaluate.controls=false", "evaluate.bootstrap=50",
)  # fmt: skip


def settings(parts, *sets: str) -> Config:
    return parts.own.settings(*ALWAYS, *sets)


@pytest.fixture(scope="module")
def plain(parts):
    """What is done under these settings, or the refusal; each is computed once."""
    known = {}

    def of(look, sets: tuple[str, ...], monkeypatch) -> str:
        if (look, sets) not in known:
            try:
                known[look, sets] = str(look(parts, settings(parts, *sets), monkeypatch))
            except DeepIntuitError as error:
                known[look, sets] = f"refused: {error}"
        return known[look, sets]

    return of


def test_every_setting_that_decides_is_flipped_and_the_others_make_no_other_run():
    for section, flips in FLIPPED.items():
        fields = type(getattr(Config(), section)).model_fields
        cheap = {key for key, field in fields.items() if COST in field.metadata}
        assert set(flips) == set(fields) - cheap, section
        for key in cheap:
            other = [
                *choices_of(fields[key])[1:],
                "true" if fields[key].default is False else 3 if isinstance(fields[key].default, int) else 3.5,
            ][0]
            flipped = load(None, [f"{section}.{key}={other}"])
            assert flipped != Config() and flipped.decisive() == Config().decisive(), key


@pytest.mark.parametrize(("section", "key"), [(section, key) for section in FLIPPED for key in FLIPPED[section]])
def test_a_setting_changes_what_is_done(parts, plain, monkeypatch, section, key):
    value, *base = FLIPPED[section][key]
    if value == "OTHER":
        value = parts.folder / "model"
        shutil.copytree(parts.own.model, value)
        tensors = load_file(value / "model.safetensors")
        save_file(
            {name: tensor * 1.5 for name, tensor in tensors.items()}, value / "model.safetensors", {"format": "pt"}
        )
    flip = f"{section}.{key}={str(value).lower() if isinstance(value, bool) else value}"
    for look in LOOKED_AT.get(f"{section}.{key}", LOOKED_AT[section]):
        before = plain(look, tuple(base), monkeypatch)
        after = plain(look, (*base, flip), monkeypatch)
        assert not before.startswith("refused"), before
        assert (before == after) == (f"{section}.{key}" in ONLY_COST), after[:500]


@pytest.mark.parametrize("given", ["model.lora_rank=8", "model.lora_alpha=7", "model.lora_dropout=0.5"])
def test_an_adapter_that_is_stood_on_keeps_its_shape(bench, cold, cold_lora, given):
    path = f"model.path={cold.checkpoint}"
    known = len(bench.workbench.runs())
    for made in (
        lambda s: grpo.run(bench.workbench, s, start=cold_lora.id, progress=False),
        lambda s: calibrate.run(bench.workbench, s, reasoner=cold_lora.id, progress=False),
        lambda s: evaluate.run(bench.workbench, s, reasoner=cold_lora.id, progress=False),
    ):
        with pytest.raises(ConfigError, match=r"model\.lora_\w+ = .* on coldstart-.*adapter was made with"):
            made(bench.settings(path, given))
    assert len(bench.workbench.runs()) == known, "nothing was begun"
