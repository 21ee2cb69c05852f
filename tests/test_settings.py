"""Every setting does something or is refused: each one is flipped, under each grammar, on parts that are tiny and real
but for the texts, which are written by hand."""

import importlib.util
import weakref
from types import SimpleNamespace

import pandas as pd
import pytest
from embedded import TINY, short_trace
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trl import SFTConfig

from deepintuit import calibrate, cli, coldstart, evaluate, grpo, schedule
from deepintuit.config import GRAMMAR_NAMES, TRACKERS, Config, GrpoConfig, VideoConfig, load
from deepintuit.errors import ConfigError
from deepintuit.grpo import prefilter
from deepintuit.grpo.round import Scorer, splits_rewards
from deepintuit.grpo.trainer import Trainer
from deepintuit.judges import Verdict
from deepintuit.reasoner import LocalReasoner, Task
from deepintuit.trace import FALLBACK, GRAMMARS, render
from deepintuit.vlm import VLM, EncodedClip, Sample
from deepintuit.vlm.clips import ClipEncoder
from deepintuit.vlm.training import trackers

ROOT = TINY.parents[1]
pytest_plugins = ["embedded"]

SEEING = "prompt.grammar=observation-think-answer"
PLAIN = (
    "grpo.group=5",
    "grpo.clips_per_step=3",
    "grpo.max_tokens=150",
    "grpo.check_clips=2",
    "grpo.learning_rate=1e-3",
    "server.model=m",
    "server.base_url=http://127.0.0.1:9/v1",
)
FLIPPED = {
    "sampler": "server", "max_difference": 0.2,
    "group": 6, "clips_per_step": 2, "learning_rate": 2e-3, "warmup_steps": 1, "weight_decay": 0.5,
    "max_grad_norm": 9.0,
    "epochs": 9.0, "warmup_share": 0.1, "max_steps": 5, "max_tokens": 90, "temperature": 0.5, "objective": "grpo",
    "epsilon_low": 0.1, "epsilon_high": 0.5,
    "tau": 0.3, "beta": 0.1, "dynamic_sampling": True, "max_refills": 1, "overlong_cache": 140, "mask_truncated": True,
    "accuracy_weight": 5.0, "format_weight": 0.0, "process": "summed", "perception_weight": 0.5, "length_bonus": 0.9,
    "perception_min": 30, "perception_max": 60, "reasoning_min": 28, "reasoning_max": 50,
    "quick_weight": 0.1, "final_weight": 3.0,
    "fallback_bonus": 2.0, "check_clips": 1, "filter_rollouts": 3, "save_steps": 3,
}  # fmt: skip
ONLY_COST = {"save_steps", "max_difference"}
"""Of GRPO. What the second refuses: `test_sampler`. That the first changes nothing:
`test_a_killed_run_continues_to_the_same_weights_and_rollouts`."""
BOUNDS = ("perception_min=28", "perception_max=40", "reasoning_min=10", "reasoning_max=30")
WAKES = {
    "max_difference": ("sampler=server",),
    "tau": ("objective=softmax_weighted",), "max_refills": ("dynamic_sampling=true",),
    "warmup_share": ("warmup_steps=5", "max_steps=10"),
    **dict.fromkeys(("length_bonus", "perception_min", "perception_max", "reasoning_min", "reasoning_max"), BOUNDS),
}  # fmt: skip
"""What else must be set for a setting to be read."""


@pytest.fixture(scope="module")
def parts(bench, tmp_path_factory):
    """A model of random weights, the clips of GRPO, and texts of every kind for each grammar."""
    settings = bench.settings()
    vlm = VLM.load(settings.model, settings.video, cache=bench.workbench.cache, trainable=True)
    local = LocalReasoner(vlm, Task(bench.path, settings))
    clips = local.encode(local.task.clips("grpo"))
    columns = ["clip_id", "stage", "sample", "text", "truncated"]
    run = SimpleNamespace(  # a run that forgets: what a flip decides must not depend on the one before
        path=tmp_path_factory.mktemp("run"), about={}, note=lambda **_: None, log=lambda _: None,
        append=lambda *_: None, read=lambda *_: pd.DataFrame(columns=columns),
    )  # fmt: skip
    return SimpleNamespace(bench=bench, vlm=vlm, encoded=clips, clips=[clip for clip, _ in clips], run=run)


def texts(grammar: str, label: str, other: str) -> list[str]:
    """Right and well seen, wrong, right but put off and not seen, without a form, right and long."""

    def text(answer: str, seen: str, quick: str, think: str) -> str:
        given = {"observation": f" {seen} ", "think": f" {think} ", "answer": f" {answer} ", "quick": f" {quick} "}
        return render(grammar, **{segment.name: given[segment.name] for segment in GRAMMARS[grammar].segments})

    return [
        text(label, "Day. Seen.", label, "So."),
        text(other, "Day. Seen.", label, "It is."),
        text(label, "Day.", FALLBACK, "So."),
        f"<think> So {label}." if label != other else text(label, "Day.", label, "So."),
        text(label, "Day. Seen." * 6, other, "So. It is. " * 4),
    ]


def decided(parts, config: Config) -> dict:
    """What a round of GRPO comes to under these settings: clips chosen, traces asked for, TRL's arguments, rewards,
    advantages and masks."""
    asked = []
    reasoner = LocalReasoner(parts.vlm, Task(parts.bench.path, config))
    encoded = {clip.clip_id: features for clip, features in parts.encoded}

    def groups(clips, samples, *, temperature, max_tokens, step):
        asked.append((tuple(clip.clip_id for clip in clips), tuple(samples), temperature, max_tokens, step))
        found = []
        for clip in clips:
            number = parts.clips.index(clip)
            other = next(label for label in reasoner.task.labels if label != clip.label)
            # Of the last clip some are right and some wrong; of the others all are right.
            written = texts(config.prompt.grammar, clip.label, other if number == len(parts.clips) - 1 else clip.label)
            ids = [parts.vlm.target_ids(written[sample % len(written)]) for sample in samples]
            cut = [one[:max_tokens] for one in ids]
            said = [parts.vlm.tokenizer.decode(one, skip_special_tokens=True) for one in cut]
            made = [Sample(t, c, [-0.1] * len(c), len(c) < len(i), 1.0) for t, c, i in zip(said, cut, ids)]
            found.append((clip, encoded[clip.clip_id], made))
        return found

    reasoner.groups = groups
    reasoner.update = lambda step: None  # of one whose weights are elsewhere
    clips = prefilter.choose(reasoner, parts.clips, config, parts.run, progress=False)
    answer = lambda asked: [Verdict("Seen" in one.observation, "") for one in asked]  # noqa: E731
    judge = answer if splits_rewards(config) else None
    trainer = Trainer(Scorer(reasoner, config, judge), clips, config, parts.run, progress=False)
    rewards = []
    trainer._store = lambda groups, *_: rewards.extend(score.value for group in groups for score in group.scores)
    trainer._log_round = lambda *_: None
    drawn = [{"clip": i} for i in list(range(len(clips)))[-3:] for _ in range(config.grpo.group)]
    batch = trainer._generate_and_score_completions(drawn)
    told = {k: v for k, v in trainer.args.to_dict().items() if not k.endswith("_dir") and k != "run_name"}
    tensors = {name: value.tolist() for name, value in batch.items()}
    return {"asked": asked, "clips": [clip.clip_id for clip in clips], "told": told, "rewards": rewards, **tensors}


def grpo_settings(parts, grammar: str, *sets: str) -> Config:
    return parts.bench.settings(*PLAIN, f"prompt.grammar={grammar}", "judge.source=facts", "grpo.max_steps=0", *sets)


def test_every_setting_of_grpo_is_flipped():
    assert set(FLIPPED) == set(GrpoConfig.model_fields)


@pytest.fixture(scope="module")
def plain(parts):
    """What a round comes to, by the settings; each is computed once."""
    known = {}

    def of(grammar: str, *sets: str) -> dict:
        if (grammar, sets) not in known:
            known[grammar, sets] = decided(parts, grpo_settings(parts, grammar, *sets))
        return known[grammar, sets]

    return of


@pytest.mark.parametrize("grammar", GRAMMAR_NAMES)
@pytest.mark.parametrize("key", FLIPPED)
def test_a_setting_of_grpo_changes_what_is_done_or_is_refused(parts, plain, key, grammar):
    value = FLIPPED[key]
    flip = f"grpo.{key}={str(value).lower() if isinstance(value, bool) else value}"
    base = tuple(f"grpo.{one}" for one in WAKES.get(key, ()))
    refused = []
    for sets in {(), base}:
        try:
            config = grpo_settings(parts, grammar, *sets, flip)
            config.refuse_idle("grpo")
        except ConfigError as error:
            assert sets or f"grpo.{key}" in str(error)
            refused.append(sets)
            continue
        if sets == base and key not in ONLY_COST:
            assert plain(grammar, *sets) != plain(grammar, *sets, flip)
    assert bool(refused) == _idle(key, grammar)


def _idle(key: str, grammar: str) -> bool:
    """Whether some state of the other settings leaves this one unread under this grammar."""
    if key in ("quick_weight", "final_weight", "fallback_bonus"):
        return not grammar.startswith("answer-")
    if key.startswith(("perception", "reasoning", "length_bonus", "process")) and not key.endswith("_max"):
        return "observation" not in grammar
    return key.startswith("epsilon") or key.endswith("_max") or key in ("tau", "max_refills", "max_difference")


@pytest.mark.parametrize(
    ("stage", "sets", "says"),
    [
        ("grpo", ("grpo.quick_weight=2",), "grpo.quick_weight = 2.0 with prompt.grammar = 'think-answer'"),
        ("grpo", ("grpo.process=off", SEEING, "grpo.length_bonus=1"), "grpo.process = 'off'"),
        ("grpo", ("grpo.tau=2",), "grpo.objective = 'dapo'"),
        ("grpo", ("grpo.max_refills=9",), "grpo.dynamic_sampling = False"),
        ("grpo", ("grpo.epsilon_high=0.2",), "no bound is ever met"),
        ("coldstart", ("model.lora_alpha=8",), "model.lora_rank = 0"),
        ("calibrate", ("gate.threshold=0.5",), "gate.by = 'off'"),
        ("evaluate", ("gate.threshold=0.5",), "gate.by = 'off'"),
        ("teach", ("teach.given_answer=true",), "only the local model is told the answer"),
        ("teach", ("teach.judged=false",), "no observation"),
        ("teach", ("teach.source=homecam", "teach.temperature=0"), "no model is sampled there"),
    ],
)  # fmt: skip
def test_a_departure_that_nothing_would_read_is_refused_by_its_name_and_what_it_hangs_on(stage, sets, says):
    with pytest.raises(ConfigError) as refused:
        load(None, sets).refuse_idle(stage)
    assert says in str(refused.value) and "Leave" in refused.value.todo
    for other in {"teach", "coldstart", "grpo", "calibrate", "evaluate"} - {stage, "calibrate", "evaluate", "grpo"}:
        load(None, sets).refuse_idle(other)  # one file of settings serves all stages


def test_the_command_refuses_before_anything_is_loaded_and_when_dry(bench, capsys):
    place = [f"--workbench={bench.path}", "--start=base", "--set=grpo.final_weight=2", "--set=clips.dataset=homecam"]
    for more in ([], ["--dry-run"]):
        assert cli.main(["grpo", *place, *more]) == 2
        assert "grpo.final_weight = 2.0 with prompt.grammar = 'think-answer'" in capsys.readouterr().err


def test_traces_that_are_compared_must_differ(bench, cold):
    config = bench.settings("calibrate.temperature=0", "calibrate.traces=1", "evaluate.method=vote")
    with pytest.raises(ConfigError, match="all the first one"):
        evaluate.run(bench.workbench, config, reasoner=cold.id, progress=False)


def test_several_traces_vote_without_a_calibrator_too_as_many_as_were_asked_for(bench, cold):
    config = bench.settings("evaluate.traces=3", "calibrate.traces=5")
    run = evaluate.run(bench.workbench, config, reasoner=cold.id, progress=False)
    assert set(run.read("traces").groupby("clip_id").size()) == {1 + 3}
    assert set(run.read("predictions")["method"]) == {"raw", "vote"}


def test_the_probability_mass_sampled_from_reaches_calibration_and_evaluation(bench, cold):
    sets = ("calibrate.epochs=0.1", "calibrate.patience=0", "evaluate.temperature=2", "evaluate.controls=false")
    said = {}
    for top_p in ("1", "0.05"):
        config = bench.settings(*sets, f"sampling.top_p={top_p}")
        made = evaluate.run(bench.workbench, config, reasoner=cold.id, progress=False).read("traces")
        said[top_p] = made.sort_values("clip_id")["text"].tolist()
    assert said["1"] != said["0.05"]


# How many updates, at which rates


def test_the_defaults_train_a_small_set_at_their_rate_and_say_that_the_updates_are_few():
    planned = schedule.of_grpo(GrpoConfig(), 217)  # SmartHome-Bench's
    assert (planned.updates, planned.warmup) == (3, 0) and {planned.rate(k) for k in range(3)} == {1e-6}
    assert "Set grpo.epochs=15" in schedule.few(planned) and "configs/small.toml" in schedule.few(planned)
    large = schedule.of_grpo(GrpoConfig(), 40_000)
    assert (large.updates, large.warmup, schedule.few(large)) == (625, 10, "")
    small = schedule.of_grpo(load(ROOT / "configs/small.toml").grpo, 217)
    assert small.updates > 200 and small.warmup == 10
    with pytest.raises(ConfigError, match="a warm-up of 3 updates, and only 3 are made"):
        schedule.of_grpo(GrpoConfig(warmup_steps=3, warmup_share=1.0), 217).refuse_no_peak("grpo")


def test_the_embedded_world_trains_as_it_did():
    tiny = schedule.of_grpo(load(ROOT / "configs/tiny.toml").grpo, 266)
    assert (tiny.updates, tiny.warmup) == (25, 3)


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
def test_the_rates_told_before_are_the_rates_of_the_updates(bench, tmp_path, shape):
    own = bench.copy(tmp_path / "own")
    sets = ("coldstart.target=label", "coldstart.epochs=4", "coldstart.warmup=0.3", f"coldstart.scheduler={shape}")
    settings = own.settings(*sets)
    run = coldstart.run(own.workbench, settings, teacher=None, progress=False)
    planned = schedule.of_coldstart(settings.coldstart, run.summary["rows"])
    made = run.read("steps").query("name == 'learning_rate'").sort_values("step")["value"].tolist()
    assert made == pytest.approx([planned.rate(k) for k in range(planned.updates)]) and planned.warmup > 1
    assert planned.sentence() in (run.path / "log").read_text()


@pytest.fixture(scope="module")
def trained(bench, cold):
    """Settings, and short runs of GRPO and calibration made with them."""
    settings = bench.settings("grpo.warmup_steps=9", "grpo.epochs=5", "calibrate.epochs=1", "grpo.max_tokens=8")
    refined = grpo.run(bench.workbench, settings, start=cold.id, progress=False)
    return settings, refined, calibrate.run(bench.workbench, settings, reasoner=cold.id, progress=False)


def test_grpo_and_calibration_say_before_what_they_will_do(trained):
    settings, run, calibrator = trained
    planned = schedule.of_grpo(settings.grpo, run.summary["clips"])
    made = run.read("steps").query("name == 'learning_rate'").sort_values("step")["value"].tolist()
    assert made == pytest.approx([planned.rate(k) for k in range(planned.updates)]) and planned.warmup > 0
    log = (run.path / "log").read_text()
    assert planned.sentence() in log and "so few updates teach little" in log
    planned = schedule.of_calibrate(settings.calibrate, calibrator.summary["rows"])
    assert planned.sentence() in (calibrator.path / "log").read_text()
    assert calibrator.summary["steps"] == planned.updates


def test_a_warm_up_of_all_updates_is_refused_before_anything_is_loaded(bench, cold):
    known = len(bench.workbench.runs())
    with pytest.raises(ConfigError, match="never reach grpo.learning_rate"):
        sets = ("grpo.max_steps=2", "grpo.warmup_steps=10", "grpo.warmup_share=1")
        grpo.run(bench.workbench, bench.settings(*sets), start=cold.id, progress=False)
    assert len(bench.workbench.runs()) == known


# Who is told


def test_tensorboard_has_the_numbers_of_every_training(cold, trained):
    for run in (cold, *trained[1:]):
        board = EventAccumulator(str(run.path / "tensorboard")).Reload()
        steps = run.read("steps")
        for name in ("loss", "grad_norm", "learning_rate"):
            known = steps[steps["name"] == name].sort_values("step")
            told = board.Scalars(f"train/{name}")
            assert len(told) == len(known) > 1 and [one.step for one in told] == list(range(1, len(told) + 1)), run.id
            assert [one.value for one in told] == pytest.approx(known["value"].tolist()), run.id


@pytest.mark.parametrize("absent", ["mlflow", "wandb", "trackio"])
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_begun(bench, cold, monkeypatch, capsys, absent):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == absent else there(name, *more))
    known, clips = len(bench.workbench.runs()), "--set=clips.dataset=homecam"
    options = {
        "coldstart": ["--set=coldstart.target=label", clips],
        "grpo": [f"--start={cold.id}", clips],
        "calibrate": [f"--reasoner={cold.id}", clips],
        "demo": [],
    }
    for stage, more in options.items():
        assert cli.main([stage, f"--workbench={bench.path}", *more, f"--set=report_to={absent}"]) == 2
        said = capsys.readouterr().err
        assert f"report_to = '{absent}'" in said and f"pip install {absent}" in said
    assert len(bench.workbench.runs()) == known


@pytest.mark.parametrize("name", TRACKERS)
def test_the_trainers_are_told_whom_to_tell(bench, tmp_path, name):
    told, callbacks = trackers(name, tmp_path / "coldstart-a")
    assert [type(one).__name__ for one in callbacks] == ["TensorBoardCallback"] * (name == "tensorboard")
    if name == "tensorboard":
        assert told == {} and (tmp_path / "coldstart-a" / "tensorboard").is_dir()
    else:
        assert (told["report_to"], told["run_name"]) == (name, "coldstart-a")
        arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **told)
        assert arguments.report_to == ([] if name == "none" else [name])


# Memory


@pytest.mark.parametrize("stage", ["coldstart", "grpo", "labels", "calibrate", "evaluate"])
def test_what_is_held_of_a_split_does_not_grow_with_it(bench, cold, calibrated, tmp_path, monkeypatch, stage):
    """Every encoded clip that lives is counted, with no room for more than one in the encoder's memory."""
    alive, most = weakref.WeakSet(), [0]

    born = EncodedClip.__init__

    def made(self, *fields, **named):
        born(self, *fields, **named)
        alive.add(self)
        most[0] = max(most[0], len(alive))

    monkeypatch.setattr(EncodedClip, "__init__", made)
    monkeypatch.setattr(EncodedClip, "__hash__", object.__hash__)
    monkeypatch.setattr(EncodedClip, "__eq__", object.__eq__)
    monkeypatch.setattr(ClipEncoder, "memory_bytes", 1)
    own = bench.copy(tmp_path / "own")
    manifest = own.manifest
    manifest.frame.loc[manifest.frame["split"].notna(), "split"] = "calibration"
    few_ = manifest.frame.index[:6]
    manifest.frame.loc[few_, "split"] = ["validation"] * 6
    wanted = {"coldstart": "coldstart", "labels": "coldstart", "grpo": "grpo", "evaluate": "test"}.get(
        stage, "calibration"
    )
    manifest.frame.loc[manifest.frame["split"] == "calibration", "split"] = wanted
    manifest.save()
    sets = (
        "sampling.clips_per_batch=2",
        "coldstart.batch=2",
        "grpo.clips_per_step=2",
        "calibrate.batch=2",
        "grpo.max_steps=2",
    )
    sets = (
        *sets,
        "coldstart.epochs=1",
        "calibrate.epochs=0.1",
        "grpo.max_tokens=4",
        "sampling.max_tokens=4",
        "calibrate.traces=1",
    )
    settings = own.settings(*sets, "coldstart.target=label") if stage == "labels" else own.settings(*sets)
    teacher = own.teach(short_trace, 1).id if stage == "coldstart" else None
    runs = {
        "coldstart": lambda: coldstart.run(own.workbench, settings, teacher=teacher, progress=False),
        "labels": lambda: coldstart.run(own.workbench, settings, teacher=None, progress=False),
        "grpo": lambda: grpo.run(own.workbench, settings, start=cold.id, progress=False),
        "calibrate": lambda: calibrate.run(own.workbench, settings, reasoner=cold.id, progress=False),
        "evaluate": lambda: evaluate.run(
            own.workbench, settings, reasoner=cold.id, calibrator=calibrated.id, progress=False
        ),
    }  # fmt: skip
    assert runs[stage]().finished
    assert len(manifest.usable(wanted)) >= 40 and 0 < most[0] <= 12


# A budget of tokens over all frames


@pytest.mark.parametrize(("frames", "budget"), [(1, 40), (7, 90), (8, 400), (32, 100)])
def test_a_clip_never_takes_more_tokens_than_its_budget(parts, frames, budget):
    video = VideoConfig(frames=frames, max_tokens=budget, min_pixels=256)
    encoder = ClipEncoder(parts.vlm.processor, parts.vlm.core, parts.vlm.family, video, None)
    sizes = [(w, h) for w in (16, 33, 64, 640, 1920, 3200) for h in (16, 48, 720, 3200) if max(w, h) <= 200 * min(w, h)]
    for width, height in sizes:
        w, h = encoder.frame_size(width, height)
        assert w % 16 == h % 16 == 0 and -(-frames // 2) * (w // 16) * (h // 16) <= budget, (width, height)
    clip = parts.clips[0]
    seen = encoder.encode(clip.clip_id, clip.path, clip.width, clip.height)
    assert 0.3 * budget < len(seen.embeds) * 1.0 <= budget or len(seen.frames.indices) < frames


def test_videoauto_r1_has_its_4096_tokens_over_256_frames(parts):
    video = load(ROOT / "configs/videoauto-r1.toml").video
    factor = 28
    assert video.max_tokens // (video.frames // 2) * factor**2 == 25_088, "pixels a frame of a Qwen2.5-VL"
    grpo_ = load(ROOT / "configs/videoauto-r1.toml").grpo
    assert grpo_.group * grpo_.clips_per_step == 256 and grpo_.filter_rollouts == 8 and grpo_.objective == "grpo"
    assert load(ROOT / "configs/videop2r.toml").video.frames == 16


def test_a_budget_below_the_fewest_pixels_is_refused_when_the_model_is_loaded(parts):
    with pytest.raises(ConfigError, match="Set video.frames to"):
        video = VideoConfig(frames=32, max_tokens=8)
        ClipEncoder(parts.vlm.processor, parts.vlm.core, parts.vlm.family, video, None)
