"""A model behind an OpenAI-compatible server as a system: a real server process over the tiny model, asked by the
commands and the page that ask a model on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import embedded
import httpx
import numpy as np
import pytest
import served
from embedded import Bench

from deepintuit import calibrate, cli, config, evaluate
from deepintuit.errors import DataError, DeepIntuitError
from deepintuit.reasoner import Clip, LocalReasoner, ServedScores, Task, likelihood_scores, live, replay
from deepintuit.reasoner.served import COUNTING
from deepintuit.vlm import VLM
from deepintuit_analysis.index import clips
from deepintuit_app.app import served as served_page
from deepintuit_clips.predict import Predictor

pytest_plugins = ["embedded"]
KEY = "served-key-0123456789-SECRET"


class Served:
    """A running server: where it is, and what it was asked."""

    def __init__(self, port: int, log: Path):
        self.port, self.log = port, log

    @property
    def sets(self) -> list[str]:
        address = f"server.base_url=http://127.0.0.1:{self.port}/v1"
        return [address, "server.model=cold", "server.key_variable=SERVED_KEY", "server.retries=1"]

    def said(self, word: str) -> list[dict]:
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if word in line]


def free_port() -> int:
    with socket.socket() as at:
        at.bind(("127.0.0.1", 0))
        return at.getsockname()[1]


@contextmanager
def serving(bench: Bench, folder: Path, models: dict, port: int | None = None, **how):
    port, log = port or free_port(), folder / f"asked-{len([*folder.iterdir()])}.jsonl"
    settings = {"models": models, "config": bench.settings().dumps(), "port": port, "log": str(log), **how}
    process = embedded._SERVER.Process(target=served.serve, args=(settings,), daemon=True)
    process.start()
    try:
        for _ in range(600):
            try:
                httpx.get(f"http://127.0.0.1:{port}/docs")
                break
            except httpx.TransportError:
                assert process.is_alive()
                time.sleep(0.05)
        yield Served(port, log)
    finally:
        process.kill()
        process.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SERVED_KEY", KEY)


@pytest.fixture(scope="module")
def server(bench, cold, calibrated, tmp_path_factory):
    models = {"cold": str(cold.checkpoint), "calibrator": str(calibrated.checkpoint)}
    with serving(bench, tmp_path_factory.mktemp("server"), models) as server:
        yield server


def scored(bench, reasoner, calibrator, *sets):
    settings = bench.settings("evaluate.controls=false", *sets)
    return evaluate.run(bench.workbench, settings, reasoner=reasoner, calibrator=calibrator, progress=False)


@pytest.fixture(scope="module")
def here(bench, cold, calibrated):
    return scored(bench, cold.id, calibrated.id)


def rows_of(run, method: str, control: str = "none"):
    rows = run.read("predictions")
    return rows[(rows["method"] == method) & (rows["control"] == control)].set_index("clip_id").sort_index()


def test_a_served_reasoner_is_the_system_that_its_weights_are_here(bench, cold, calibrated, server, here):
    run = scored(bench, cold.id, calibrated.id, *server.sets)
    columns = ["text", "frame_hash", "token_ids", "tokens", "truncated", "prompt_hash"]
    mine, theirs = (r.read("traces").set_index("clip_id").sort_index() for r in (here, run))
    assert mine[columns].map(str).equals(theirs[columns].map(str)) and set(theirs["model"]) == {"cold"}
    for method in ("raw", "label_likelihood", "linear_head"):
        one, other = (np.stack(rows_of(r, method)["probs"]) for r in (here, run))
        assert np.abs(one - other).max() < 1e-4, method
    [contact] = run.about["server"]
    assert contact["prompt_tokens"] == contact["prompt_tokens_here"] > 0 and contact["missing"] == []
    assert contact["largest_difference"] < 1e-3 and contact["tokens"] > 0
    assert "as here" in contact["said"] and contact["said"] in (run.path / "log").read_text(encoding="utf-8")
    assert run.id != here.id and run.read("predictions")["system"].iloc[0].endswith("(server.model none → cold)")


def test_a_calibrator_at_the_server_says_what_its_weights_say_here(bench, cold, calibrated, server, here):
    """Nothing but the processor is on this machine, and what needs weights is left out by name."""
    sets = [*server.sets, "server.calibrator=calibrator", "server.compare=false"]
    run = scored(bench, cold.id, calibrated.id, *sets)
    one, other = (rows_of(r, "label_likelihood") for r in (here, run))
    assert np.abs(np.stack(one["probs"]) - np.stack(other["probs"])).max() < 1e-4
    assert np.abs(one["outside_mass"] - other["outside_mass"]).max() < 1e-4
    assert set(run.summary["left_out"]) == {"linear_head"} and run.summary["tower_passes"] == 0
    assert run.read("predictions")["distance"].isna().all() and run.summary["unlike"] is None
    [contact] = run.about["server"]
    assert contact["prompt_tokens"] == contact["prompt_tokens_here"] and "mean_difference" not in contact
    assert "not loaded here" in contact["said"]


def test_a_calibrator_at_the_server_is_shown_the_video_of_a_control(bench, calibrated, server):
    settings = bench.settings(*server.sets, "server.calibrator=calibrator")
    task, traces = Task(bench.path, settings), [None, None]
    vlm = VLM.load(settings.model, settings.video, checkpoint=calibrated.checkpoint)
    known = LocalReasoner(vlm, task).readable(task.clips("test")[:2])
    swapped, scores = known.shown([(0, 1), (1, 0)])[:], ServedScores(settings.server, vlm)
    mine, theirs = (likelihood_scores(model, task, swapped, traces, 2).logits_C_K for model in (vlm, scores))
    assert np.abs(mine - theirs).max() < 1e-3
    with pytest.raises(DataError, match="was to be blanked.*shown frames"):
        likelihood_scores(scores, task, known.shown([(0, None)])[:], [None], 1)


def test_a_server_that_goes_away_is_a_sentence_and_the_run_goes_on_elsewhere(
    bench, cold, tmp_path, monkeypatch, capsys
):
    own = bench.copy(tmp_path / "own")
    words = ["evaluate", "--reasoner", cold.id, "--calibrator", "", "--quiet", "--workbench", str(own.path)]
    words += ["--config", str(embedded.TINY)]

    def asked(server: Served) -> int:
        sets = own.sets(*server.sets, "sampling.max_tokens=22", "server.concurrency=2", "server.compare=false")
        sets += ["clips.dataset=homecam", "evaluate.controls=false"]
        return cli.main([*words, *(word for one in sets for word in ("--set", one))])

    models = {"cold": str(cold.checkpoint)}
    with serving(bench, tmp_path, models, die_after=5, fail=[503, 2]) as first:
        assert asked(first) == 2
        said = capsys.readouterr().err
        assert "127.0.0.1" in said and "Rerun the command later" in said and "Traceback" not in said
        answered = len(first.said("ends"))
        assert len(first.said("begins")) >= answered + 2 and answered >= 4, "two were busy, and asked again"
    with serving(bench, tmp_path, models) as second:
        assert asked(second) == 0
        seeds = [line["seed"] for line in second.said("begins")]
        assert len(seeds) == len(set(seeds)) == embedded.TEST - answered
        run = own.workbench.runs("evaluate", finished=True)[-1]
        assert len(run.read("traces")) == embedded.TEST and len(run.about["sessions"]) == 2
        assert {line["key"] for line in second.said("begins")} == {f"Bearer {KEY}"}
    files = [path for path in [*own.path.rglob("*"), *tmp_path.glob("*.jsonl")] if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in files if path.suffix != ".jsonl")


def test_what_a_server_does_not_give_is_missing_by_name(bench, cold, calibrated, tmp_path, server, here):
    """One that knows no log-probabilities, no vLLM fields and no videos."""
    withheld = ["return_token_ids", "top_k", "min_p", "repetition_penalty", "logprobs", "seed"]
    withheld += ["top_p", "presence_penalty", "frequency_penalty"]
    with serving(bench, tmp_path, {"cold": str(cold.checkpoint)}, without=withheld, plain=True) as plain:
        sets = [*plain.sets, "server.frames=images", "evaluate.temperature=0.0"]
        run = scored(bench, cold.id, calibrated.id, *sets)
        traces = run.read("traces")
        assert traces[["token_ids", "token_logprobs", "confidence"]].isna().all().all() and traces["tokens"].min() > 0
        raw = rows_of(run, "raw")
        assert raw["probs"].isna().sum() == traces["reason"].isna().sum() > 0
        assert "came without log-probabilities" in run.summary["left_out"]["raw: probabilities"]
        assert rows_of(run, "label_likelihood")["probs"].notna().all()
        [contact] = run.about["server"]
        assert {"log-probabilities", "token ids"} == set(contact["missing"])
        assert contact["left_out"] == sorted(withheld) and f"not know {', '.join(sorted(withheld))}" in contact["said"]
        assert contact["said"] in (run.path / "log").read_text(encoding="utf-8")
        videos = tmp_path / "new"
        videos.mkdir()
        for n, row in enumerate(bench.manifest.usable("test").head(3).itertuples()):
            (videos / f"{n}.mp4").write_bytes(Path(row.path).read_bytes())
        own = bench.copy(tmp_path / "own")
        alone = Predictor(own.workbench, "zero-shot", own.settings("clips.dataset=homecam", *sets))
        answers = alone.predict(videos, threshold=0.5)
        answered = answers[answers["label"].notna() & answers["malformed"].isna()]
        assert len(answered) and answered["detail"].str.startswith("no probabilities").all()
        assert answers[answers["malformed"].isna()]["abstain"].all()
        assert answered[[name for name in answers if name.startswith("p_")]].isna().all().all()


def test_a_difference_from_what_would_be_written_here_is_said(bench, cold, server):
    """Frames as pictures without their times are another clip to the model."""
    run = scored(bench, cold.id, None, *server.sets, "server.frames=images", "server.encoding=jpeg")
    [contact] = run.about["server"]
    assert contact["mean_difference"] > 1e-3 and "from those computed here" in contact["said"]
    begun = server.said("begins")[-1]
    assert "media_io_kwargs" not in begun and begun["pictures"] == 4, "a picture each"


def test_a_server_that_counts_text_from_the_last_moment_of_a_clip_is_told_apart(bench, cold, tmp_path):
    """As vLLM's own Qwen2.5-VL does."""
    with serving(bench, tmp_path, {"cold": str(cold.checkpoint)}, counts_from_time=True) as other:
        [contact] = scored(bench, cold.id, None, *other.sets).about["server"]
    assert contact["prompt_tokens"] == contact["prompt_tokens_here"]
    assert contact["mean_difference"] > 0.05 and contact["mean_difference_if"][COUNTING] < 1e-4
    assert f"if {COUNTING}: see docs" in contact["said"] and "other weights" not in contact["said"]


def test_a_server_that_distrusts_the_times_of_frames_is_a_sentence_with_its_flag(bench, cold, tmp_path):
    with serving(bench, tmp_path, {"cold": str(cold.checkpoint)}, distrusts=True) as wary:
        with pytest.raises(DeepIntuitError, match="Start vLLM with --trust-request-mm-kwargs"):
            scored(bench, cold.id, None, *wary.sets, "sampling.max_tokens=21")


@pytest.fixture(scope="module")
def made(ours, server):
    settings = ours.settings(*server.sets, "calibrate.epochs=1", "calibrate.traces=1")
    return calibrate.run(ours.workbench, settings, reasoner=None, progress=False)


def test_a_calibrator_of_served_traces_answers_with_the_same_server(ours, calibrated, server, made):
    assert set(made.read("traces")["model"]) == {"cold"} and made.config["server"]["model"] == "cold"
    assert made.about["server"][0]["mean_difference"] > 0.05, "of the weights that the calibrator begins with"
    predictor = Predictor(ours.workbench, made.id, config.load(None, [f"model.path={ours.model}"]))
    assert predictor.config.server.replace(retries=1) == ours.settings(*server.sets).server
    assert predictor.reasoner is None
    row = ours.manifest.usable("test").iloc[0]
    answers = predictor.predict([row.path])
    assert answers["label"].notna().all() and answers["distance"].notna().all()
    workbench = ours.workbench
    workbench.refresh()
    entries = {row["run_id"]: row["calibrator"] for row in clips.reasoners(workbench) if row["server"] == "cold"}
    assert entries[made.id] == made.id and calibrated.id not in entries


def test_a_live_trace_streams_from_the_server(ours, made):
    row = ours.manifest.usable("test").iloc[0]
    clip = Clip(row.clip_id, str(row.path), None, int(row.width), int(row.height), None)
    told = []
    ask = live.Ask(clip, reasoner=made.id, calibrator=made.id)
    live.reason(live.Models(ours.workbench), ask, told.append, lambda: False)
    kinds = [type(event).__name__ for event in told]
    assert "Failed" not in kinds, told
    texts = [event.text for event in told if isinstance(event, replay.Written)]
    [done] = [event for event in told if isinstance(event, replay.TraceDone)]
    assert texts and all(done.text.startswith(text) for text in texts) and done.confidence > 0
    assert kinds[-1] == "Distribution" and told[-1].method == "label_likelihood"


def test_watch_streams_a_served_trace_and_stop_closes_its_request(ours, cold, made, server, tmp_path, page):
    own = ours.copy(tmp_path / "own")
    with serving(own, tmp_path, {"cold": str(cold.checkpoint)}, holds_after=4) as held:
        about = own.path / "runs" / made.id / "run.json"
        about.write_text(about.read_text().replace(f"127.0.0.1:{server.port}/", f"127.0.0.1:{held.port}/"))
        with served_page(own.path) as url:
            page.goto(f"{url}/watch?run={made.id}")
            page.wait_for_function("document.querySelector('#reason')?.disabled === false")
            page.click("#reason")
            page.wait_for_function("document.querySelector('#status').innerText.includes('4 tokens')")
            assert "by cold at its server" in page.inner_text("#status")
            assert page.inner_text("#trace") and not held.said("ends"), "seen while it is written"
            page.click("#stop")
            page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped')")
            page.wait_for_function("document.querySelector('#reason')?.disabled === false")
            while not held.said("broke_off"):
                time.sleep(0.05)
            assert not held.said("ends") and page.inner_text("#trace")


@pytest.mark.slow
def test_transformers_serve_writes_the_traces_and_what_it_lacks_is_named(bench, cold, tmp_path):
    """A server of somebody else: pictures, no log-probabilities, another chat."""
    port, command = free_port(), Path(sys.executable).with_name("transformers")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    with open(tmp_path / "log", "wb") as log:
        words = [command, "serve", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                if process.poll() is not None:  # it needs packages that the lock leaves out
                    pytest.skip(f"`transformers serve` does not start: {(tmp_path / 'log').read_text()[-200:]}")
                time.sleep(0.2)
        sets = [f"server.base_url=http://127.0.0.1:{port}/v1", f"server.model={cold.checkpoint}"]
        run = scored(bench, cold.id, None, *sets, "server.frames=images", "server.concurrency=1", "server.retries=0")
        [contact] = run.about["server"]
        assert {"log-probabilities", "token ids"} <= set(contact["missing"])
        assert contact["prompt_tokens"] > contact["prompt_tokens_here"] and "something else" in contact["said"]
        traces = run.read("traces")
        assert len(traces) == embedded.TEST and traces["text"].str.len().min() > 0 and traces["tokens"].min() > 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["server.base_url=http://127.0.0.1:9/v1"], "without server.model"),
        (["server.model=m"], "server.base_url"),
        (["server.model=m", "server.base_url=http://127.0.0.1:9/v1", "gate.by=confidence"], "gate.by"),
        (["server.model=m", "server.base_url=http://user:pw@127.0.0.1/v1"], "more than an address"),
        (["server.model=m", "server.base_url=http://127.0.0.1:9/v1", "server.extra=[1]"], "JSON object"),
    ],
)
def test_settings_of_a_server_that_cannot_be_are_refused(bench, sets, said):
    with pytest.raises(DeepIntuitError, match=said):
        scored(bench, None, None, "prompt.grammar=answer-think-answer", *sets)
