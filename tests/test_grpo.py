"""GRPO on rendered clips: the clip is in the loss as in sampling, each objective is what it says, and a kill changes
nothing."""

import numpy as np
import pytest
import torch
from embedded import Bench, assert_same_weights, lora_of, survivor, undisturbed
from transformers import TrainerCallback

from deepintuit import grpo
from deepintuit.errors import DataError
from deepintuit.grpo import prefilter
from deepintuit.grpo.round import Scorer
from deepintuit.grpo.trainer import Trainer
from deepintuit.reasoner import LocalReasoner, Task
from deepintuit.runs.run import parts, read_part
from deepintuit.vlm import VLM, token_logprobs

pytest_plugins = ["embedded"]


@pytest.fixture(params=["full", "lora"])
def weights(request, cold, cold_lora):
    """(name, run to start from, settings): full weights, and an adapter."""
    return started(request.param, cold, cold_lora)


def started(name: str, cold, cold_lora):
    return (name, cold, ()) if name == "full" else (name, cold_lora, lora_of(cold))


def made(bench: Bench, start, name: str, *sets: str) -> Trainer:
    """The trainer as the stage makes it, before its first step."""
    config = bench.settings("grpo.learning_rate=1e-4", "grpo.max_grad_norm=1e9", *sets)
    run = bench.workbench.start_run("grpo", {**config.to_dict(), "test": name}, parent=start.id, name=name)
    vlm = loaded(bench, start, *sets)
    reasoner = LocalReasoner(vlm, Task(bench.path, config), seed=0)
    clips = [clip for clip, _ in reasoner.encode(reasoner.task.clips("grpo"))]
    return Trainer(Scorer(reasoner, config), clips, config, run, progress=False)


def loaded(bench: Bench, start, *sets: str) -> VLM:
    config = bench.settings(*sets)
    return VLM.load(
        config.model, config.video, checkpoint=start.checkpoint, cache=bench.workbench.cache, trainable=True
    )


def a_round(trainer: Trainer) -> dict[str, torch.Tensor]:
    """One round of sampling for the first four clips."""
    return trainer._generate_and_score_completions([{"clip": i} for i in range(4) for _ in range(trainer.config.group)])


def logps_in_the_loss(trainer: Trainer, batch: dict) -> torch.Tensor:
    trainer._rows = batch["row"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].shape[1]
    return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)[0].detach()


def farthest(logps: torch.Tensor, recorded) -> float:
    return max(
        float((row[: len(told)] - torch.tensor(told)).abs().max()) for row, told in zip(logps, recorded, strict=True)
    )


def test_sampled_logprobs_are_recomputed_in_the_loss_and_need_the_clip(bench, weights):
    name, start, sets = weights
    trainer = made(bench, start, f"logps-{name}", *sets)
    batch = a_round(trainer)
    recorded = list(trainer.run_.read("traces")["token_logprobs"])
    for tokens in (8192, 300):
        trainer.vlm.tokens_per_pass = tokens
        assert farthest(logps_in_the_loss(trainer, batch), recorded) < 5e-5
    trainer._encoded = [clip.blanked() for clip in trainer._encoded]
    assert farthest(logps_in_the_loss(trainer, batch), recorded) > 1e-3


def test_a_step_sees_each_clip_once_and_each_prompt_once_to_sample_and_once_in_the_loss(bench, weights, tmp_path):
    name, start, sets = weights
    sets = (*sets, "grpo.max_steps=1", "model.tokens_per_pass=400")
    config = bench.settings(*sets)
    run = bench.workbench.start_run("grpo", {**config.to_dict(), "test": f"count-{name}"}, parent=start.id)
    vlm = VLM.load(config.model, config.video, checkpoint=start.checkpoint, cache=tmp_path, trainable=True)
    seen = {"tower": 0, False: 0, True: 0}
    pad = vlm.core.config.video_token_id

    def tower(*_):
        seen["tower"] += 1

    def model(module, args, kwargs):
        seen[torch.is_grad_enabled()] += int((kwargs["input_ids"] == pad).sum())

    vlm.core.model.visual.register_forward_pre_hook(tower)
    vlm.core.model.register_forward_pre_hook(model, with_kwargs=True)
    reasoner = LocalReasoner(vlm, Task(bench.path, config), seed=0)
    clips = [clip for clip, _ in reasoner.encode(reasoner.task.clips("grpo"))]
    Trainer(Scorer(reasoner, config), clips, config, run, progress=False).train()
    traces = run.read("traces")
    chosen = {clip.clip_id: clip for clip in clips if clip.clip_id in set(traces["clip_id"])}
    visual = sum(encoded.vision_ids.count(pad) for _, encoded in reasoner.encode([*chosen.values()]))
    assert len(chosen) == 4 and len(traces) == 16
    assert seen == {"tower": len(clips), False: visual, True: visual}


class Gradient(TrainerCallback):
    """Keeps the gradient of the first update."""

    def __init__(self):
        self.flat = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.flat is None:
            self.flat = flat_gradient(model)


def flat_gradient(model) -> torch.Tensor:
    """The gradient of what is trained, as one vector; tied or unused weights without one count as zero."""
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters() if p.requires_grad]
    )


def by_hand(trainer: Trainer, vlm: VLM, objective: str) -> torch.Tensor:
    """The gradient of the objective in METHOD's words, on the stored rollouts, through another path of the model."""
    traces, scores = trainer.run_.read("traces"), trainer.run_.read("scores")
    traces = traces[traces["step"] == 0]
    reward = scores[scores["name"] == "reward"].set_index("trace_id")["value"]
    encoded = {
        clip.clip_id: clip_features
        for clip, clip_features in LocalReasoner(vlm, trainer.reasoner.task).encode(trainer.clips)
    }
    total, tokens = 0.0, int(traces["tokens"].sum())
    for clip_id, group in traces.groupby("clip_id", sort=False):
        rewards = np.array([reward[name] for name in group["trace_id"]])
        prompt = vlm.prompt_ids(encoded[clip_id], trainer.reasoner.task.reasoner_prompt(clip_id))
        logps = token_logprobs(
            vlm, [encoded[clip_id]] * len(group), [prompt] * len(group), [list(ids) for ids in group["token_ids"]]
        )
        spread = rewards.std(ddof=1)
        advantages = (rewards - rewards.mean()) / spread if spread > 0 else 0 * rewards
        if objective == "softmax_weighted":
            powers = np.exp(rewards / trainer.config.tau)
            advantages = powers / powers.sum() if spread > 0 else 0 * rewards
        for advantage, logp in zip(advantages, logps):
            if objective == "dapo":
                total = total + float(advantage) * logp.sum() / tokens
            elif objective == "grpo":
                total = total + float(advantage) * logp.mean() / len(traces)
            else:
                total = total + float(advantage) * logp.mean() / traces["clip_id"].nunique()
    vlm.model.zero_grad()
    (-total).backward()
    return flat_gradient(vlm.model)


@pytest.mark.parametrize(
    ("objective", "tokens", "weights"),
    [
        ("dapo", 8192, "full"),
        ("dapo", 1, "full"),
        ("dapo", 300, "lora"),
        ("grpo", 8192, "full"),
        ("grpo", 250, "full"),
        ("softmax_weighted", 250, "full"),
    ],
)
def test_an_update_follows_the_objective_computed_by_hand(bench, cold, cold_lora, objective, tokens, weights):
    _, start, sets = started(weights, cold, cold_lora)
    sets = (*sets, f"grpo.objective={objective}", f"model.tokens_per_pass={tokens}", "grpo.max_steps=1", "grpo.group=8")
    trainer = made(bench, start, f"hand-{objective}-{tokens}-{weights}", *sets)
    gradient = Gradient()
    trainer.add_callback(gradient)
    trainer.train()
    wanted = by_hand(trainer, loaded(bench, start, *sets), objective)
    assert wanted.norm() > 1e-3, "the round must have a group with some traces better than others"
    assert torch.cosine_similarity(gradient.flat, wanted, dim=0) > 0.9999
    assert float(gradient.flat.norm() / wanted.norm()) == pytest.approx(1, abs=1e-3)


def test_the_reference_of_the_kl_term_is_where_grpo_began(bench, weights):
    name, begun, sets = weights
    trainer = made(bench, begun, f"kl-{name}", *sets, "grpo.beta=0.04")
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 3e-3)
    batch = a_round(trainer)
    traces = trainer.run_.read("traces")
    start = loaded(bench, begun, *sets)
    encoded = {
        clip.clip_id: features for clip, features in LocalReasoner(start, trainer.reasoner.task).encode(trainer.clips)
    }
    ask = trainer.reasoner.task.reasoner_prompt
    with torch.no_grad():
        told = token_logprobs(
            start.model.eval() and start,
            [encoded[c] for c in traces["clip_id"]],
            [start.prompt_ids(encoded[c], ask(c)) for c in traces["clip_id"]],
            [list(ids) for ids in traces["token_ids"]],
        )
    assert farthest(batch["ref_per_token_logps"], [row.tolist() for row in told]) < 5e-5
    assert farthest(logps_in_the_loss(trainer, batch), [row.tolist() for row in told]) > 1e-3, (
        "the policy has moved away"
    )


def test_a_run_with_the_kl_term_ends_and_saves_no_reference(bench, weights):
    name, start, sets = weights
    config = bench.settings(*sets, "grpo.beta=0.1", "grpo.max_steps=3", "grpo.learning_rate=1e-3", "grpo.save_steps=2")
    run = grpo.run(bench.workbench, config, start=start.id, name=f"kl-{name}", progress=False)
    steps = run.read("steps").pivot(index="step", columns="name", values="value")
    assert abs(steps["kl"][0]) < 1e-6 < steps["kl"][2]
    assert not (run.checkpoint / "ref").exists()
    again = VLM.load(config.model, config.video, checkpoint=run.checkpoint)
    assert list(getattr(again.model, "peft_config", {})) == (["default"] if name == "lora" else [])


def relabelled(bench: Bench, folder, label: str, other: str) -> Bench:
    """A copy of the workbench whose GRPO clips have this label, and one the other: a single class is refused."""
    copy = bench.copy(folder)
    manifest = copy.manifest
    clips = manifest.frame.index[manifest.frame["split"] == "grpo"]
    manifest.frame.loc[clips, "label"] = [other, *[label] * (len(clips) - 1)]
    manifest.save()
    return copy


def test_a_toy_reward_rises(bench, cold, tmp_path):
    toy = relabelled(bench, tmp_path / "toy", "theft", "delivery")
    config = toy.settings("grpo.max_steps=24", "grpo.group=8", "grpo.learning_rate=3e-4")
    run = grpo.run(toy.workbench, config, start=cold.id, progress=False)
    accuracy = run.read("steps").query("name == 'accuracy'").sort_values("step")["value"].to_numpy()
    assert accuracy[-3:].mean() > max(0.8, accuracy[:3].mean() + 0.2)


def test_dynamic_sampling_keeps_mixed_groups_and_stops_refilling(bench, cold, tmp_path):
    sets = ("grpo.dynamic_sampling=true", "grpo.max_refills=2", "grpo.max_steps=2")
    run = grpo.run(bench.workbench, bench.settings(*sets), start=cold.id, progress=False)
    steps = run.read("steps").pivot(index="step", columns="name", values="value")
    scores = run.read("traces").merge(run.read("scores").query("name == 'accuracy'"), on="trace_id")
    for step, groups in scores.groupby("step"):
        right = groups.groupby(["clip_id", groups["sample"] // 4])["value"].mean()
        mixed = int(((right > 0) & (right < 1)).sum())
        assert len(right) == 4, "TRL's batch keeps its shape"
        kept = steps["dynamic_kept_share"][step] * steps["dynamic_sampled_groups"][step]
        assert mixed == min(4, round(kept))
    never = relabelled(bench, tmp_path / "never", "emergency", "intrusion")  # labels that the cold start never says
    run = grpo.run(never.workbench, never.settings(*sets), start=cold.id, name="never", progress=False)
    steps = run.read("steps").pivot(index="step", columns="name", values="value")
    assert set(steps["dynamic_sampled_groups"]) == {4 * 3.0} and set(steps["dynamic_kept_share"]) == {0.0}


def test_overlong_shaping_and_masking_reach_reward_and_loss(bench, cold):
    trainer = made(bench, cold, "overlong", "grpo.max_tokens=16", "grpo.overlong_cache=8", "grpo.mask_truncated=true")
    batch = a_round(trainer)
    traces = trainer.run_.read("traces")
    scores = trainer.run_.read("scores").pivot(index="trace_id", columns="name", values="value").loc[traces["trace_id"]]
    penalty = -np.clip(traces["tokens"].to_numpy() - 8, 0, 8) / 8
    np.testing.assert_allclose(scores["overlong"], penalty)
    np.testing.assert_allclose(scores["reward"], scores["accuracy"] + scores["format"] + penalty)
    cut = traces["truncated"].to_numpy(bool)
    assert 0 < cut.sum() < len(cut)
    np.testing.assert_array_equal(batch["completion_mask"].sum(1), np.where(cut, 0, traces["tokens"]))
    assert int(batch["num_items_in_batch"]) == traces["tokens"][~cut].sum()


def test_the_check_before_says_when_there_is_nothing_to_learn(bench, cold):
    config = bench.settings()
    for start, hopeless in ((None, True), (cold.checkpoint, False)):
        vlm = VLM.load(config.model, config.video, checkpoint=start, cache=bench.workbench.cache)
        reasoner = LocalReasoner(vlm, Task(bench.path, config))
        clips = reasoner.task.clips("grpo")[:6]
        found = prefilter.Diagnostics.of(prefilter.sample_groups(reasoner, clips, 4, config), clips)
        assert found.traces == 24 and found.hopeless == hopeless
        assert ("nothing to learn from" in found.sentence()) == hopeless


def test_the_data_filter_trains_on_clips_with_right_and_wrong_traces_and_says_what_it_left_out(bench, cold):
    config = bench.settings("grpo.filter_rollouts=3", "grpo.max_steps=4", "grpo.check_clips=2")
    run = grpo.run(bench.workbench, config, start=cold.id, name="filtered", progress=False)
    traces, labels = run.read("traces"), bench.manifest.usable("grpo").set_index("clip_id")["label"]
    first, trained = traces[traces["stage"] == "filter"], traces[traces["step"].notna()]
    right = (first["provisional"] == first["true_label"]).groupby(first["clip_id"]).mean()
    assert set(right.index) == set(labels.index) and len(first) == 3 * len(labels)
    mixed = set(right.index[(right > 0) & (right < 1)])
    assert set(trained["clip_id"]) == mixed and 0 < len(mixed) < len(labels)
    found = run.summary["filter"]
    dropped = {"all_right": (right == 1).sum(), "all_wrong": (right == 0).sum()}
    assert found == {"rollouts": 3, "kept": len(mixed), **dropped}
    assert run.summary["check"]["traces"] == len(first), "the check counts the filter's traces, and samples none"
    said = "{kept} of {n} clips kept; left out {all_right} all right, {all_wrong} all wrong"
    assert said.format(n=len(labels), **found) in (run.path / "log").read_text()


def test_a_killed_data_filter_samples_nothing_twice(bench, cold, tmp_path):
    sets = ("grpo.filter_rollouts=3", "grpo.max_steps=1", "sampling.clips_per_batch=3")  # ten clips: four parts
    one, other = bench.copy(tmp_path / "one"), bench.copy(tmp_path / "other")
    whole = undisturbed(one, "grpo", sets, start=cold.id)
    run, kills = survivor(other, "grpo", ["traces-*.parquet"] * 3, sets, start=cold.id)
    assert kills == 3
    stored = [row for _, part in parts(run.path, "traces") for row in read_part(part).to_pylist()]
    first = [row["trace_id"] for row in stored if row["stage"] == "filter"]
    assert len(first) == len(set(first)) == 3 * len(bench.manifest.usable("grpo"))
    columns = ["clip_id", "sample", "stage", "text"]
    texts = [sorted(map(tuple, one.read("traces")[columns].values)) for one in (whole, run)]
    assert texts[0] == texts[1] and run.summary["filter"] == whole.summary["filter"]


def test_a_data_filter_that_leaves_no_clip_says_why_and_what_to_do(bench, cold, tmp_path):
    never = relabelled(bench, tmp_path / "never", "emergency", "intrusion")  # labels that the cold start never says
    config = never.settings("grpo.filter_rollouts=2")
    for _ in range(2):
        with pytest.raises(DataError) as error:
            grpo.run(never.workbench, config, start=cold.id, progress=False)
        run = never.workbench.runs("grpo")[-1]
        assert run.status == "failed" and len(parts(run.path, "traces")) == 2, "the second time nothing is sampled"
    clips = len(never.manifest.usable("grpo"))
    assert error.value.what == "no clip of the split 'grpo' is left by the data filter"
    assert f"of {clips} clips, 0 have all 2 traces right and {clips} all wrong" in error.value.why
    assert "grpo.filter_rollouts=0" in error.value.todo
    assert run.about["filter"] == {"rollouts": 2, "kept": 0, "all_right": 0, "all_wrong": clips}


def test_a_step_of_clips_that_nothing_divides_is_sampled_whole(bench, cold):
    config = bench.settings("grpo.clips_per_step=3", "grpo.max_steps=1")
    run = grpo.run(bench.workbench, config, start=cold.id, progress=False)
    assert len(run.read("traces")) == 12


def test_a_killed_run_continues_to_the_same_weights_and_rollouts(bench, cold, tmp_path):
    # 10 clips, 4 a step: two updates an epoch, so that kills fall inside an epoch, between epochs, and after the last
    # update.
    sets = (
        "grpo.max_steps=7",
        "grpo.save_steps=1",
        "grpo.learning_rate=1e-3",
        "grpo.check_clips=2",
        "model.tokens_per_pass=300",
    )
    one, other = bench.copy(tmp_path / "one"), bench.copy(tmp_path / "other")
    whole = undisturbed(one, "grpo", sets, start=cold.id)
    moments = [
        "traces-*.parquet",
        "training/checkpoint-3/complete",
        "training/checkpoint-4",
        "training/checkpoint-6/complete",
        0.6,
        "checkpoint/model.safetensors",
    ]
    run, kills = survivor(other, "grpo", moments, sets, start=cold.id)
    assert kills == len(moments)
    assert_same_weights(whole, run)
    assert not (run.path / "training").exists()
    for grain, columns in {"traces": ["clip_id", "sample", "step", "text"], "scores": ["name", "value"]}.items():
        mine, yours = whole.read(grain), run.read(grain)
        assert sorted(map(tuple, mine[columns].values)) == sorted(map(tuple, yours[columns].values))
    assert len(run.read("traces")) == run.read("traces")["trace_id"].nunique() == 7 * 16
    assert run.summary["steps"] == 7 and run.summary["check"] == whole.summary["check"]


def loss_and_gradient(trainer: Trainer, batch: dict, share: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the written tokens, and the gradient of a weighted sum of them."""
    trainer.vlm.shares_prefix = share
    trainer._rows = batch["row"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    trainer.model.zero_grad()
    logps, entropy, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, batch["completion_ids"].shape[1], compute_entropy=True
    )
    kept = logps * batch["completion_mask"]
    weights = torch.linspace(-1, 1, kept.numel()).view_as(kept)
    (kept * weights).sum().backward()
    return torch.stack([kept, entropy * batch["completion_mask"]]).detach(), flat_gradient(trainer.model)


def test_a_prompt_computed_once_gives_the_numbers_and_gradients_of_one_a_trace(bench, weights):
    name, start, sets = weights
    trainer = made(bench, start, f"prefix-{name}", *sets)
    batch = a_round(trainer)
    plain, plain_gradient = loss_and_gradient(trainer, batch, share=False)
    shared, shared_gradient = loss_and_gradient(trainer, batch, share=True)
    assert (plain - shared).abs().max() < 1e-5
    assert (plain_gradient - shared_gradient).norm() / plain_gradient.norm() < 1e-4
    order = torch.randperm(len(batch["row"]), generator=torch.Generator().manual_seed(1))
    scattered = {key: value[order] if value.ndim else value for key, value in batch.items()}
    assert (loss_and_gradient(trainer, scattered, share=True)[0] - shared[:, order]).abs().max() < 1e-5
