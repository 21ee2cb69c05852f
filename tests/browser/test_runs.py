"""The Runs page in a real browser: a run opens, rollouts follow the slider, a stage started here runs to its end."""

import shutil
import sys
import time
import urllib.error
import urllib.request

import pytest
from conftest import HOSTILE, serve

from deepintuit_analysis import Workbench, report
from deepintuit_app import jobs, supervisor

SLEEP = "import time\nprint('at work', flush=True)\ntime.sleep(60)"


@pytest.fixture
def own(site, tmp_path):
    """A copy of the workbench that a test may write into, served; its jobs are ended with it."""
    shutil.copytree(site.workbench.path, tmp_path / "workbench")
    workbench = Workbench(tmp_path / "workbench")
    with serve(workbench.path) as url:
        yield url, workbench
    for job in jobs.listed(workbench.path):
        jobs.stop(workbench.path, job.id)
        about = supervisor.read(workbench.path / "jobs" / job.id)
        began = time.monotonic()
        while supervisor.alive(about.get("keeper")) and time.monotonic() - began < 10:
            time.sleep(0.05)


def test_a_run_opens_from_the_table_and_shows_its_curves(site, page):
    run = site.runs["grpo"]
    page.goto(f"{site.url}/runs")
    page.locator(f"#runs-list tbody th button[data-value='{run}']").click()
    article = page.get_by_role("article", name=f"Run {run}")
    article.wait_for()
    assert site.runs["coldstart"] in article.inner_text() and site.runs["calibrate"] in article.inner_text()
    article.get_by_role("button", name="Training").click()
    page.locator(".js-plotly-plot .scatterlayer path").first.wait_for(state="attached")
    assert "too few to tell a trend" in page.get_by_role("list", name="Health remarks").inner_text()
    page.wait_for_function(f"location.search.includes('run={run}') && location.search.includes('tab=training')")


def test_rollouts_follow_the_slider_and_a_group_opens(site, page):
    page.goto(f"{site.url}/runs?run={site.runs['grpo']}&tab=rollouts")
    groups, traces = page.locator("#runs-groups"), page.get_by_label("Traces of this group").locator("article")
    groups.get_by_text("Update 1: 2 groups, 2 of them teach").wait_for()
    assert traces.count() == 4
    assert "advantage" in traces.first.inner_text() and "Sample 0" in traces.first.inner_text()
    other = groups.locator("button:not([aria-current])").first
    title = other.get_attribute("title").split(":")[0]
    other.click()
    page.locator("#runs-group h2", has_text=title).wait_for()
    slider = page.locator("#runs-step input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    groups.get_by_text("Update 2: 2 groups").wait_for()
    page.wait_for_function("location.search.includes('step=2') && location.search.includes('clip=')")
    links = page.locator("#runs-group a", has_text="replay in Watch")
    assert links.first.get_attribute("href").startswith("watch?clip=")


def test_a_deep_link_restores_comparison_tab_and_filter(site, page):
    two = f"{site.runs['evaluate-cold']},{site.runs['evaluate-refined']}"
    page.goto(f"{site.url}/runs?stage=evaluate&compare={two}")
    numbers = page.locator("#runs-compare table").first
    numbers.wait_for()
    told = numbers.inner_text()
    assert "right on test, provisional label" in told and "of 6 (" in told
    assert (
        f"against {site.runs['evaluate-cold']}, test, provisional label" in told
        and "points (" in told
        and "n 6" in told
    )
    page.locator("#runs-list tbody tr").nth(1).wait_for()  # it may come after the comparison
    assert page.locator("#runs-list tbody tr").count() == 2
    page.goto(f"{site.url}/runs?run=no-such-run&tab=nowhere&step=x&job=../../etc")
    page.locator("#runs-list tbody tr").nth(5 - 1).wait_for()


@pytest.mark.thorough
def test_curves_of_compared_runs_lie_over_each_other(site, page):
    page.goto(
        f"{site.url}/runs?tab=training&run={site.runs['coldstart']}&compare={site.runs['calibrate']},{site.runs['grpo']}"
    )
    legend = page.locator("#runs-curves .legend")
    legend.get_by_text(site.runs["grpo"]).first.wait_for()
    assert site.runs["calibrate"] in legend.first.text_content()
    page.goto(f"{site.url}/runs?tab=training&run={site.runs['evaluate-cold']}&compare={site.runs['grpo']}")
    page.locator("#runs-curves .scatterlayer path").first.wait_for(state="attached")


def test_the_columns_of_the_table_are_chosen_and_stay_in_the_address(site, page):
    page.goto(f"{site.url}/runs?columns=seed,result,nobody")
    heads = page.locator("#runs-list thead th")
    page.locator("#runs-list tbody tr").first.wait_for()
    assert heads.all_inner_texts() == ["Run", "Seed", "Result"]
    page.get_by_role("button", name="Columns").click()
    page.get_by_label("Columns of the table").click()
    page.get_by_role("option", name="Duration").click()
    page.locator("#runs-list th", has_text="Duration").wait_for()
    page.wait_for_function("location.search.includes('columns=seed%2Cresult%2Cduration')")
    page.goto(f"{site.url}/runs?columns=nobody")
    page.locator("#runs-list th", has_text="Rerun").wait_for()
    assert len(heads.all_inner_texts()) == 9


def test_a_started_stage_logs_finishes_and_is_there_after_a_restart(own, open_page):
    url, workbench = own
    page = open_page()
    page.set_default_timeout(60_000)  # a process starts, and imports what a report needs
    page.goto(f"{url}/runs?tab=jobs")
    page.get_by_text("No job was started from here yet.").wait_for()
    page.get_by_role("button", name="Start a stage").click()
    page.locator("#runs-preview pre", has_text="deepintuit report").wait_for()
    page.get_by_label("Other settings").fill("evaluate.bootstrap = -1")
    page.get_by_role("alert").get_by_text("it must be at least 0").wait_for()
    page.locator("#runs-start").click()
    page.wait_for_timeout(300)
    assert jobs.listed(workbench.path) == [], "what cannot run is refused before it starts"
    page.get_by_label("Other settings").fill("evaluate.bootstrap = 20")
    page.locator("#runs-preview pre", has_text="deepintuit report").wait_for()
    page.locator("#runs-start").click()
    page.locator("#runs-log pre.log", has_text="The whole report").wait_for(timeout=150_000)
    page.locator("#runs-jobs .badge", has_text="finished").wait_for()
    [job] = jobs.listed(workbench.path)
    assert (job.status, job.user, job.stage) == ("finished", "local", "report")
    with serve(workbench.path) as again:
        page.goto(f"{again}/runs?tab=jobs&job={job.id}")
        page.locator("#runs-log pre.log", has_text="The whole report").wait_for()
        shown = page.locator("#runs-jobs").inner_text()
    assert "report on" in shown and "finished" in shown


def test_a_running_job_is_followed_and_stopped_after_a_question(own, open_page):
    url, workbench = own
    job = jobs.launch(workbench.path, [sys.executable, "-c", SLEEP], stage="grpo", title="a long one", user="ada")
    page = open_page()
    page.goto(f"{url}/runs?tab=jobs&job={job.id}")
    page.locator("#runs-log pre.log", has_text="at work").wait_for()
    page.locator("#runs-stop").click()
    page.get_by_role("button", name="Let it run").click()
    page.locator("#runs-stop-sure").wait_for(state="hidden")
    assert jobs.find(workbench.path, job.id).active
    page.locator("#runs-stop").click()
    page.locator("#runs-stop-sure").click()
    page.locator("#runs-jobs .badge", has_text="stopped").wait_for()
    page.locator("#runs-again").wait_for()
    assert not jobs.find(workbench.path, job.id).active


def test_hostile_words_in_a_runs_name_and_a_jobs_log_are_text(own, open_page):
    url, workbench = own
    with workbench.start_run("teach", {"grpo": {HOSTILE: 1}}, name=HOSTILE) as run:
        run.log(HOSTILE)
        run.fail(HOSTILE)
    workbench.refresh()
    job = jobs.launch(workbench.path, [sys.executable, "-c", f"print({HOSTILE!r})"], stage="report", title=HOSTILE)
    page = open_page()
    page.goto(f"{url}/runs?run={run.id}&tab=details")
    page.locator("#runs-details .problem").get_by_text("<script>window.hacked='script'</script>").wait_for()
    page.get_by_role("tab", name="Runs").click()
    page.locator("#runs-list small", has_text="<img src=x onerror=").wait_for()
    page.goto(f"{url}/runs?tab=jobs&job={job.id}")
    page.locator("#runs-log pre.log", has_text="{{window.hacked='braces'}}").wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.locator("#runs-log img, #runs-list img, #runs-details img").count() == 0


def test_a_card_is_served_by_run_id_in_a_sandbox(own):
    url, workbench = own
    [run] = [run.id for run in workbench.runs("evaluate") if run.about["name"] == "cold start"]
    report.run_card(workbench, run)
    with urllib.request.urlopen(f"{url}/media/card/{run}") as answer:
        policy, body = answer.headers["Content-Security-Policy"], answer.read()
    assert policy.startswith("sandbox allow-scripts; default-src 'none'") and b"script-src 'sha256-" in body
    for wrong in ("nobody", "..%2f..%2findex", "%2e%2e/index.duckdb"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/media/card/{wrong}")


def test_a_run_without_steps_and_an_empty_workbench_say_what_to_run(site, open_page, tmp_path):
    page = open_page(width=390, dark=True)
    page.goto(f"{site.url}/runs?run={site.runs['evaluate-cold']}&tab=training")
    page.get_by_text("This run logged no training step.").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    Workbench(tmp_path).refresh()
    with serve(tmp_path) as url:
        page.goto(f"{url}/runs")
        page.get_by_text("This workbench has no run yet.").wait_for()
