"""Detached jobs with real processes: they outlive their server, stop, wait for each other, and say how they ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepintuit.errors import ConfigError, StoreError
from deepintuit_analysis import Workbench
from deepintuit_app import job_requests, jobs, supervisor
from deepintuit_app.sources import Sources

SAY = "print('hello <b>&', flush=True)"
SLEEP = "import time\nprint('working', flush=True)\ntime.sleep(60)"


@pytest.fixture
def place(tmp_path: Path):
    """A workbench folder; whatever job is still alive at the end is killed."""
    yield tmp_path
    for job in jobs.listed(tmp_path):
        about = supervisor.read(tmp_path / "jobs" / job.id)
        for process in (about.get("process"), about.get("keeper")):
            if supervisor.alive(process):
                os.kill(process["pid"], signal.SIGKILL)


def start(place: Path, program: str, **more: object) -> jobs.Job:
    return jobs.launch(place, [sys.executable, "-c", program], stage="report", title="a stand-in", **more)


def until(place: Path, job: jobs.Job, *statuses: str, seconds: float = 20) -> jobs.Job:
    began = time.monotonic()
    while (found := jobs.find(place, job.id)).status not in statuses:
        assert time.monotonic() - began < seconds, f"{found} never was {statuses}\n{jobs.tail(place, job.id)}"
        time.sleep(0.05)
    return found


def test_a_job_ends_with_its_exit_code_and_its_words(place):
    job = until(place, start(place, SAY, user="ada"), "finished")
    assert (job.exit_code, job.user, job.progress) == (0, "ada", "hello <b>&")
    assert job.created <= job.started <= job.ended
    assert jobs.tail(place, job.id) == "hello <b>&"
    failed = until(place, start(place, "import sys; sys.exit('no such thing')"), "failed")
    assert failed.exit_code == 1 and "no such thing" in jobs.tail(place, failed.id)


def test_a_command_that_cannot_be_started_fails_with_a_sentence(place):
    job = jobs.launch(place, ["/nowhere/at/all"], stage="report", title="nothing")
    assert until(place, job, "failed").exit_code == 127
    assert "cannot be started" in jobs.tail(place, job.id)


def test_a_job_outlives_a_server_that_is_killed(place):
    program = f"""
import os, sys
from pathlib import Path
from deepintuit_app import jobs
print(jobs.launch(Path({str(place)!r}), [sys.executable, "-c", {SLEEP!r}], stage="report", title="x").id, flush=True)
os.kill(os.getpid(), {signal.SIGKILL})
"""
    server = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert server.returncode == -signal.SIGKILL
    job = until(place, jobs.find(place, server.stdout.strip()), "running")
    assert os.getsid(supervisor.read(place / "jobs" / job.id)["keeper"]["pid"]) != os.getsid(0)
    jobs.stop(place, job.id)
    assert until(place, job, "stopped").ended


def test_stop_is_ctrl_c_first(place):
    polite = (
        "import time\ntry:\n print('on', flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n print('tidied up')"
    )
    job = until(place, start(place, polite), "running")
    while "on" not in jobs.tail(place, job.id):
        time.sleep(0.05)
    jobs.stop(place, job.id)
    job = until(place, job, "finished", "stopped")
    assert "tidied up" in jobs.tail(place, job.id)
    assert jobs.stop(place, job.id).status == job.status, "stopping what is over changes nothing"


def test_stop_reaches_a_command_whose_server_ignored_ctrl_c(place):
    program = f"""
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
from deepintuit_app import jobs
print(jobs.launch(Path({str(place)!r}), [sys.executable, "-c", {SLEEP!r}], stage="report", title="x").id)
"""
    job_id = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30).stdout.strip()
    job = until(place, jobs.find(place, job_id), "running")
    while "working" not in jobs.tail(place, job.id):
        time.sleep(0.05)
    jobs.stop(place, job.id)
    assert until(place, job, "stopped", seconds=5).exit_code in (130, -signal.SIGINT)


def test_what_does_not_hear_ctrl_c_is_terminated_after_a_while(place):
    deaf = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)"
    )
    folder = place / "jobs" / "20260101-000000-000000-abcd"
    folder.mkdir(parents=True)
    supervisor.note(
        folder,
        id=folder.name,
        stage="report",
        title="x",
        user="local",
        command=[sys.executable, "-c", deaf],
        created="2026-01-01T00:00:00+00:00",
        created_at=time.time(),
    )
    quick = f"""
from pathlib import Path
from deepintuit_app import supervisor
supervisor.PATIENCE = 0.3
supervisor.Supervisor(Path({str(folder)!r})).run()
"""
    process = subprocess.Popen([sys.executable, "-c", quick], start_new_session=True)
    job = until(place, jobs.find(place, folder.name), "running")
    while "deaf" not in jobs.tail(place, job.id):
        time.sleep(0.05)
    jobs.stop(place, job.id)
    assert until(place, job, "stopped", seconds=5).exit_code == -signal.SIGTERM
    assert process.wait(5) == 0


def test_the_second_job_waits_for_the_first_and_can_be_stopped_while_it_waits(place):
    first = until(place, start(place, SLEEP), "running")
    second, third = start(place, SAY), start(place, SAY)
    assert until(place, second, "waiting").started is None
    until(place, third, "waiting")
    assert [job.id for job in jobs.listed(place)] == [third.id, second.id, first.id]
    jobs.stop(place, second.id)
    assert until(place, second, "stopped").started is None
    assert jobs.find(place, third.id).status == "waiting"
    jobs.stop(place, first.id)
    until(place, first, "stopped")
    assert until(place, third, "finished").started


def test_a_recycled_pid_is_not_taken_for_the_job(place):
    job = until(place, start(place, SAY), "finished")
    folder = place / "jobs" / job.id
    about = supervisor.read(folder)
    mine = supervisor.identity(os.getpid())
    assert supervisor.alive(mine) and not supervisor.alive({**mine, "born": mine["born"] - 100})
    stale = {**mine, "born": mine["born"] - 100}
    (folder / "job.json").write_text(
        json.dumps({**about, "ended": None, "exit_code": None, "keeper": stale, "process": stale})
    )
    assert jobs.find(place, job.id).status == "broken off"
    assert jobs.stop(place, job.id).status == "broken off", "and nobody's process was signalled"


def test_a_job_whose_supervisor_was_killed_still_runs_and_stops(place):
    job = until(place, start(place, "import time\ntime.sleep(60)"), "running")
    about = supervisor.read(place / "jobs" / job.id)
    os.kill(about["keeper"]["pid"], signal.SIGKILL)
    while supervisor.alive(about["keeper"]):
        time.sleep(0.05)
    assert jobs.find(place, job.id).status == "running"
    jobs.stop(place, job.id)
    assert until(place, job, "broken off").exit_code is None
    assert until(place, jobs.again(place, job.id, "bob"), "running").user == "bob"


@pytest.mark.parametrize("damage", [
    {"ended": 5}, {"ended": "soon"}, {"keeper": 5}, {"keeper": {"pid": "x"}}, {"process": {"pid": -1, "born": 1}},
    {"keeper": {"pid": 1, "born": "x"}}, {"created": "yesterday"}, {"started": [1]},
])  # fmt: skip
def test_a_damaged_job_costs_itself_and_no_page_runs_what_its_file_names(place, damage):
    sound, broken = start(place, SAY), start(place, SAY)
    for job in (sound, broken):
        until(place, job, "finished")
    folder = place / "jobs" / broken.id
    (folder / "job.json").write_text(json.dumps({**supervisor.read(folder), **damage}))
    assert [job.id for job in jobs.listed(place)] == [sound.id]
    with pytest.raises(StoreError, match="no job"):
        jobs.find(place, broken.id)
    with pytest.raises(StoreError, match="no other command"):
        job_requests.refuse_unless_stage(jobs.find(place, sound.id).command, Workbench(place), Sources())


def test_a_progress_line_is_shown_and_does_not_fill_the_log(place):
    draws = r"""
import sys, time
for i in range(8):
    sys.stdout.write(f"\r\x1b[2K\x1b[31mstep {i}/8\x1b[0m")
    sys.stdout.flush()
    time.sleep(0.2)
"""
    job = start(place, draws + "print()\nprint('done')\ntime.sleep(60)")
    seen = set()
    while "done" not in jobs.tail(place, job.id):
        seen.add(jobs.find(place, job.id).progress)
        time.sleep(0.05)
    assert len({line for line in seen if line.startswith("step")}) >= 2
    assert jobs.tail(place, job.id) == "step 7/8\ndone"


def test_an_id_that_is_no_job_gets_a_sentence_whatever_it_looks_like(place):
    for job_id in ("../../etc", "", "20260101-000000-000000-abcd", "x\0y"):
        with pytest.raises(StoreError, match="there is no job"):
            jobs.find(place, job_id)


# Orders


@pytest.fixture
def workbench(tmp_path: Path) -> Workbench:
    workbench = Workbench(tmp_path)
    with workbench.start_run("coldstart", {"grpo": {"group": 4}, "model": {"path": "mine"}}, dataset="home") as run:
        run.finish()
    with workbench.start_run("coldstart", {}, dataset="other") as run:
        run.finish()
    return workbench


def test_an_order_is_a_list_of_words_and_a_checked_config(workbench):
    [start, _] = [run.id for run in workbench.runs("coldstart")]
    request = job_requests.checked(
        workbench, "grpo", base=f"run:{start}", changes="grpo.epochs = 2\n# a remark", dataset="home", seed="3",
        inputs={"start": start}, name="second-try", dry=True,
    )  # fmt: skip
    assert request.command[1:4] == ["-m", "deepintuit.cli", "grpo"]
    assert {f"--start={start}", "--name=second-try", "--dry-run"} < set(request.command)
    changed = job_requests.changed(request.config)
    assert changed == {"grpo.group": 4, "grpo.epochs": 2.0, "model.path": "mine", "clips.dataset": "home", "seed": 3}
    assert "group = 4" in request.files["config.toml"]


@pytest.mark.parametrize(
    ("stage", "given", "sentence"),
    [
        ("rm", {}, "stage 'rm'"),
        ("grpo", {"changes": "grpo.gropu = 3"}, "Nearest: grpo.group"),
        ("grpo", {"changes": "grpo.group = 1"}, "it must be at least 2"),
        ("grpo", {"changes": "group 4"}, "no key and value"),
        ("grpo", {"changes": "model.path = /etc"}, "cannot be set from this page"),
        ("grpo", {"changes": "model = {path = '/etc'}"}, "cannot be set from this page"),
        ("teach", {"changes": "teach.base_url = http://elsewhere/v1"}, "cannot be set from this page"),
        ("teach", {"changes": "teach.key_variable = PATH"}, "cannot be set from this page"),
        ("grpo", {"base": "file:../../secret"}, "no run, file or default"),
        ("grpo", {"base": "run:nobody"}, "there is no run 'nobody'"),
        ("grpo", {"inputs": {"start": "../../x"}}, "no finished run of this dataset"),
        ("grpo", {"name": "--config=x"}, "part of a folder's name"),
        ("grpo", {"seed": "three"}, "seed = 'three': it must be a whole number"),
        ("grpo", {"seed": "1\nworkbench = '/etc'"}, "it must be a whole number"),
    ],
)
def test_what_cannot_be_started_gets_a_sentence_before_anything_runs(workbench, stage, given, sentence):
    with pytest.raises((ConfigError, StoreError), match=sentence):
        job_requests.checked(workbench, stage, **given)
    assert not (workbench.path / "jobs").exists()


def test_a_run_of_another_dataset_is_not_offered(workbench):
    home, other = workbench.runs("coldstart")
    assert job_requests.candidates(workbench, "grpo", "start", "home") == [home.id]
    with pytest.raises(ConfigError, match="no finished run of this dataset"):
        job_requests.checked(workbench, "grpo", dataset="home", inputs={"start": other.id})


def test_every_stage_that_can_be_ordered_is_a_command(workbench):
    from deepintuit import cli

    for stage in job_requests.STAGES:
        inputs = dict.fromkeys(job_requests.INPUTS.get(stage, {}), job_requests.NEWEST)
        request = job_requests.checked(workbench, stage, dataset="home", inputs=inputs, full=True, dry=True)
        assert cli._parser().parse_args(request.command[3:]).dry_run
        job_requests.refuse_unless_stage(request.command, workbench, Sources())


def test_a_real_command_runs_as_a_job(workbench):
    request = job_requests.checked(workbench, "report", dataset="home", base="file:tiny")
    job = jobs.launch(workbench.path, request.command, stage=request.stage, title=request.title, files=request.files)
    job = until(workbench.path, job, "finished", "failed", seconds=60)
    assert job.exit_code == 2 and "home" in job.progress, "no clip was imported, and the last line says so"
