"""Pictures of the dashboard's pages, light, dark and on a phone, from a real workbench in a real browser.

    python docs/screens.py workbench --out screens

Needs Chromium (DEEPINTUIT_CHROMIUM names another one). What is shown comes from the workbench: the newest evaluated
run, a changed clip, a query's answer. With `--task NAME` an item of that review task is shown, which reserves it; else
the list of tasks.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from deepintuit_analysis import Workbench
from deepintuit_app.app import served
from deepintuit_app.html import address

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


PRESSED = {"sql": "#sql-run"}
"""Page → the button that is pressed before its picture: a query of the address waits for that."""
QUERY = """-- Which answers did calibration change?
SELECT clip_id, trace_id, true_label AS true,
       provisional, calibrated, round(certainty, 3) AS sure
FROM trace_facts
WHERE calibrated <> provisional
ORDER BY sure DESC"""


def pages(workbench: Workbench, task: str | None = None) -> dict[str, str]:
    """What to show: name → address. A clip whose label calibration fixed, else any evaluated one."""
    workbench.refresh()
    evaluated = workbench.query(
        """SELECT p.trace_id, p.clip_id, p.run_id, p.system FROM predictions p JOIN runs r USING (run_id)
           WHERE p.method = 'label_likelihood' AND p.control = 'none' AND p.trace_id IS NOT NULL
           ORDER BY (p.predicted = p.true_label AND p.provisional <> p.true_label) DESC, r.created DESC, p.clip_id
           LIMIT 1"""
    )
    grpo = workbench.query(
        "SELECT run_id FROM runs WHERE stage = 'grpo' AND status = 'finished' ORDER BY created DESC LIMIT 1"
    )
    if evaluated.empty:
        raise SystemExit("Nothing calibrated was evaluated in this workbench: run `deepintuit demo` first.")
    shown = evaluated.iloc[0]
    found = {
        "start": "",
        "watch": address("watch", clip=shown.clip_id, trace=shown.trace_id),
        "traces": address("traces", run=shown.run_id),
        "review": address("review", task=task) if task else address("review"),
        "sql": address("sql", q=QUERY),
        "errors": address("errors", system=f"{shown.run_id}/{shown.system}", method="label_likelihood"),
    }
    if len(grpo):
        found["runs"] = address("runs")
        found["training"] = address("runs", run=grpo.run_id[0], tab="training")
        found["rollouts"] = address("runs", run=grpo.run_id[0], tab="rollouts")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workbench", type=Path)
    parser.add_argument("--out", type=Path, default=Path("screens"))
    parser.add_argument("--seconds", type=float, default=6.0, help="given to each page to fill itself")
    parser.add_argument("--task", help="a review task whose desk is shown")
    parser.add_argument("--only", nargs="*", help="names of pages")
    options = parser.parse_args()
    chromium = os.environ.get("DEEPINTUIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        raise SystemExit("No Chromium was found: install one, or name it in DEEPINTUIT_CHROMIUM.")
    options.out.mkdir(parents=True, exist_ok=True)
    with served(options.workbench) as root, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name, where in pages(Workbench(options.workbench), options.task).items():
            if options.only and name not in options.only:
                continue
            for kind, size, scheme in (("light", WIDE, "light"), ("dark", WIDE, "dark"), ("phone", PHONE, "light")):
                page = browser.new_page(viewport=size, color_scheme=scheme)
                page.goto(f"{root}/{where}")
                page.wait_for_timeout(options.seconds * 1000)  # a page keeps a stream open, so it is never idle
                if name in PRESSED:
                    page.click(PRESSED[name])
                    page.wait_for_timeout(options.seconds * 1000)
                page.screenshot(path=options.out / f"{name}-{kind}.png")
                page.close()
        browser.close()
    print(f"Pictures are in {options.out}.")
