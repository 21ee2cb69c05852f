"""GRPO whose traces a server writes: a real process of its own, which is given the weights before each round by vLLM's
routes. With its traces training is what it is with local ones; each token weighs what the two engines make of it."""

import json
import shutil
import subprocess
import sys

import httpx
import pytest
import together
import torch
from embedded import TINY, assert_same_weights, lora_of, survivor
from safetensors.torch import load_file
from test_grpo import a_round, flat_gradient, logps_in_the_loss, made
from test_served import environment, serving  # noqa: F401

from deepintuit import config, grpo
from deepintuit.errors import DeepIntuitError
from deepintuit.reasoner import LocalReasoner, ServedSampler, inherited
from deepintuit.reasoner.served import COUNTING
from deepintuit.vlm import Sample

pytest_plugins = ["embedded"]
SERVED = ("grpo.sampler=server", "server.model=m", "server.base_url=http://127.0.0.1:9/v1")
LENGTH = ("grpo.max_steps=3", "grpo.save_steps=1", "grpo.check_clips=2")


@pytest.fixture(scope="module", params=["whole", "lora"])
def sampler(request, bench, cold, cold_lora, tmp_path_factory):
    """A server that takes weights, of which kind, the run to start from, and settings by which the server samples."""
    kind, folder = request.param, tmp_path_factory.mktemp("sampler")
    start, sets, name = (cold, (), "cold") if kind == "whole" else (cold_lora, lora_of(cold), "adapter")
    settings = bench.settings(*sets).dumps()
    with serving(bench, folder, {"cold": str(cold.checkpoint)}, updates=kind, config=settings) as server:
        yield server, kind, start, (*sets, *server.sets, "grpo.sampler=server", f"server.model={name}")


def refined(bench, start, sets, name: str | None = None):
    return grpo.run(bench.workbench, bench.settings(*sets, *LENGTH), start=start.id, name=name, progress=False)


@pytest.fixture(scope="module")
def trained(bench, sampler):
    _, _, start, sets = sampler
    return refined(bench, start, sets)


def test_with_a_servers_traces_training_is_what_it_is_where_they_are_sampled_here(bench, sampler, trained, monkeypatch):
    _, kind, start, sets = sampler
    traces = trained.read("traces")
    assert len(traces) == 3 * 16 and set(traces["model"]) == {"adapter" if kind == "lora" else "cold"}
    written = {(row.step, row.clip_id, row.sample): row for row in traces.itertuples()}

    def groups(self, clips, samples, *, step, **_):
        groups = []
        for clip, encoded in self.encode(clips):
            rows = [written[step, clip.clip_id, number] for number in samples]
            assert {row.frame_hash for row in rows} == {encoded.frames.hash}
            made = [Sample(r.text, [*r.token_ids], [*r.token_logprobs], r.truncated, 1.0) for r in rows]
            groups.append((clip, encoded, made))
        return groups

    monkeypatch.setattr(LocalReasoner, "groups", groups)
    monkeypatch.setattr(grpo.prefilter, "choose", lambda reasoner, clips, *_: clips)
    here = refined(bench, start, (*sets, "grpo.sampler=local"), name=f"here-{kind}")
    one, other = (run.read("steps").pivot(index="step", columns="name", values="value") for run in (trained, here))
    names = ["loss", "grad_norm", "reward", "accuracy", "tokens_mean"]
    assert (one[names] - other[names]).abs().max().max() < 1e-4 < one["grad_norm"].max()
    mine, theirs = (load_file(next(run.checkpoint.glob("*.safetensors"))) for run in (trained, here))
    assert max(float((mine[key] - theirs[key]).abs().max()) for key in mine) < 1e-5, "Adam makes much of roundings"
    assert "sampler_difference_mean" not in other and one["sampler_difference_max"].max() < 1e-4
    assert one["sampler_truncated_share"].max() == 0 and one["sampler_effective_share"].min() > 0.999


def test_weights_reach_the_server_before_each_round_and_no_copy_stays(sampler, trained):
    assert sampler[0].said("begins")[0]["media_io_kwargs"]["video"]["num_frames"] == 4
    own = [line["weights"] for line in sampler[0].said("weights") if trained.id in line["weights"]]
    given = [folder.rpartition("/weights-")[2].rpartition("-")[0] for folder in own]
    assert given == ["-1", "0", "1", "2"] and not (trained.path / "training").exists()
    [contact] = trained.about["server"]
    assert contact["prompt_tokens"] == contact["prompt_tokens_here"] and contact["largest_difference"] < 1e-4
    said = (trained.path / "log").read_text(encoding="utf-8")
    assert contact["said"] in said and "Round 0: log-probabilities of the server are" in said


def test_an_evaluation_of_what_a_server_sampled_for_asks_the_weights_here(bench, trained):
    settings, _ = inherited(bench.workbench, bench.settings(), trained.id)
    assert trained.about["settings"]["server"]["model"] and not settings.server.model


@pytest.mark.parametrize(
    ("sampler", "how", "said"),
    [
        ("whole", {"plain": True}, "gives no log-probabilities"),
        ("whole", {"without": ["return_token_ids"]}, "no token ids"),
        ("whole", {"without": ["temperature", "top_k"]}, "does not know temperature"),
        ("whole", {"counts_from_time": True}, COUNTING),
        ("whole", {"frames": 2}, "it is shown something else"),
        ("whole", {"updates": ""}, "VLLM_SERVER_DEV_MODE=1"),
        ("whole", {"restarts_after": 5}, "has other weights than it was given"),
        ("whole", {"fail": [503, 99]}, "Rerun the command later"),
        ("lora", {"stuck": True}, "is not the model that is trained here"),
        ("lora", {"updates": ""}, "--max-lora-rank 4"),
        ("lora", {"restarts_after": 5}, "has other weights than it was given"),
    ],
    indirect=["sampler"],
    scope="module",
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_server_that_samples_from_something_else_is_refused_before_an_update(bench, sampler, how, said):
    server, kind, start, sets = sampler
    if "stuck" in how:  # a cold start of a quarter of a pass is near what it stands on
        sets = (*sets, "grpo.max_difference=1e-9")
    httpx.post(f"http://127.0.0.1:{server.port}/how", json=how)
    try:
        with pytest.raises(DeepIntuitError, match=said):
            refined(bench, start, sets, name=f"{kind}-{next(iter(how))}")
    finally:
        httpx.post(f"http://127.0.0.1:{server.port}/how", json={"updates": kind})
    run = bench.workbench.runs("grpo")[-1]
    assert run.status == "failed" and not [*run.path.glob("steps-*")]


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", ["whole"], indirect=True, scope="module")
def test_a_killed_run_and_a_killed_server_change_nothing(bench, cold, sampler, trained, tmp_path):
    _, kind, start, sets = sampler
    own, log, models = bench.copy(tmp_path / "own"), tmp_path / "log", {"cold": str(cold.checkpoint)}
    log.mkdir()
    for run in own.workbench.runs("grpo"):
        shutil.rmtree(run.path)
    how = {"updates": kind, "config": own.settings(*sets).dumps()}
    with serving(own, log, models, die_after=18, **how) as first:
        moved = (*sets, f"server.base_url=http://127.0.0.1:{first.port}/v1", "server.concurrency=2")
        with pytest.raises(DeepIntuitError, match="Rerun the command later"):
            refined(own, start, moved)
        answered = {line["seed"] for line in first.said("ends")}
    with serving(own, log, models, **how) as second:
        moved = (*sets, f"server.base_url=http://127.0.0.1:{second.port}/v1", *LENGTH)
        moments = ["training/answers-1/**/*.json", "training/checkpoint-2/complete"]
        run, kills = survivor(own, "grpo", moments, moved, start=start.id)
        assert kills == 2
        assert_same_weights(trained, run)
        asked = {line["seed"] for line in second.said("begins")}
        assert len(answered) > 12 and len(answered & asked) == 4, "but for the traces by which a server is met"


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", ["whole", "lora"], indirect=True, scope="module")
def test_two_processes_share_a_server_and_train_what_one_does(bench, sampler, trained, tmp_path):
    _, kind, start, sets = sampler
    words = ["grpo", "--start", start.id, "--config", str(TINY), "--quiet", "--name", f"two-{kind}"]
    words += ["--workbench", str(bench.path), *(word for one in bench.sets(*sets, *LENGTH) for word in ("--set", one))]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", together.__file__]
    command = [*launch, str(tmp_path / "told"), str(bench.path), json.dumps([words])]
    said = subprocess.run(command, capture_output=True, text=True, timeout=600).stderr
    run = next((run for run in bench.workbench.runs("grpo") if run.about["name"] == f"two-{kind}"), None)
    assert run and run.finished and run.about["processes"] == 2, said
    told = [json.loads((tmp_path / f"told.{rank}").read_text())[0] for rank in (0, 1)]
    assert [one["code"] for one in told] == [0, 0] and min(one["tokens"] for one in told) > 0
    key = ["step", "clip_id", "sample", "text"]
    texts, others = (sorted(map(tuple, one.read("traces")[key].values)) for one in (trained, run))
    assert texts == others, "each clip is asked for once, with its own seeds"
    mine, theirs = (load_file(next(one.checkpoint.glob("*.safetensors"))) for one in (trained, run))
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-5


@pytest.mark.parametrize("objective", ["dapo", "grpo"])
def test_each_token_weighs_its_ratio_of_probabilities_but_two_at_most(bench, cold, objective):
    sets = (*SERVED, f"grpo.objective={objective}", "grpo.max_difference=99", "model.tokens_per_pass=300")
    trainer = made(bench, cold, f"weighed-{objective}", *sets)
    local = trainer.reasoner
    trainer.reasoner = ServedSampler(local, bench.settings(*sets), trainer.run_, progress=False)
    trainer.reasoner.groups, trainer.reasoner.row = local.groups, local.row
    trainer.reasoner.update = lambda step: None
    batch, trainer.current_gradient_accumulation_steps = a_round(trainer), 1
    noise = torch.randn(batch["sampled_logps"].shape, generator=torch.Generator().manual_seed(1))
    batch["sampled_logps"] += noise
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    gradient = flat_gradient(trainer.model)
    trainer._log.flush()

    trainer.use_vllm = False
    logps, mask = logps_in_the_loss(trainer, batch), batch["completion_mask"]
    ratio = (logps - batch["sampled_logps"]).double().exp()
    told = ratio[mask.bool()]
    batch["advantages"] = (batch["advantages"] * ratio.clamp(max=2)).float()
    trainer.model.zero_grad()
    wanted = trainer._compute_loss(trainer.model, batch)
    wanted.backward()
    assert float(loss) == pytest.approx(float(wanted), abs=1e-5)
    assert (gradient - flat_gradient(trainer.model)).norm() < 1e-4 * gradient.norm()
    numbers = trainer.run_.read("steps").set_index("name")["value"]
    assert numbers["sampler_truncated_share"] == pytest.approx(float((told > 2).double().mean()))
    assert numbers["sampler_effective_share"] == pytest.approx(float(told.mean() ** 2 / (told**2).mean()), rel=1e-3)
    assert numbers["sampler_difference_mean"] == pytest.approx(float(told.log().abs().mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("server.model=",), "server.model"),
        (("server.base_url=",), "server.base_url"),
        (("server.frames=images",), "frames of the record"),
        (("server.encoding=jpeg",), "frames of the record"),
        (("grpo.temperature=0.7",), "temperature 1"),
        (('server.extra={"top_k": 4}',), "may change what is drawn"),
        (("grpo.max_difference=0.2", "grpo.sampler=local"), "sampled by the very model"),
    ],
)
def test_settings_by_which_a_server_would_sample_something_else_are_refused(sets, said):
    with pytest.raises(DeepIntuitError, match=said):
        config.load(None, [*SERVED, *sets]).refuse_idle("grpo")
    config.load(None, [*SERVED, 'server.extra={"mm_processor_kwargs": {"do_resize": false}}']).refuse_idle("grpo")
