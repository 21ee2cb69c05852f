"""The dashboard on a small workbench, in seconds: from the command to the first response, from an address to rows on
screen, from page to page, from a submitted review to the next item on screen. Nothing is compared: these are what
somebody waits.

The server is a process of its own, started by its command; Chromium has a fresh context for each page, so that nothing
is in its cache; from page to page it has what the pages before left there. Next items are timed by the page itself,
from the key to the paint, the next item fetched ahead as it is while a person reads.

Run it:  python benchmarks/dashboard.py [--repeats 5] [--items 20]          needs Chromium and the playwright package
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from measure import ROOT, Row, chosen, options, report

# The small workbench and Chromium's flags stand with the browser tests, in a file whose name another one has, too.
_SPEC = importlib.util.spec_from_file_location("browser_tests", ROOT / "tests" / "browser" / "conftest.py")
site = sys.modules["browser_tests"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(site)

OPEN = """async (form) => {
    const headers = {"Content-Type": "application/json"};
    const answer = await fetch("/review-api/open", {method: "POST", body: JSON.stringify(form), headers});
    if (!answer.ok) throw await answer.text();
}"""
FORM = {"questions": ["label", "verdict"], "order": "given", "reviewers": "1", "query": "", "name": "bench"}


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, float]]:
    """The dashboard by its command; its address, and the seconds until its first page answered."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from deepintuit.cli import main; main()", "app", "--no-browser"]
    url, began = f"http://127.0.0.1:{port}", time.perf_counter()
    server = subprocess.Popen(
        [*program, "--workbench", str(folder), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=60).read()
                break
            if server.poll() is not None or time.perf_counter() - began > 300:
                raise SystemExit("the dashboard does not start: `deepintuit app` says why")
            time.sleep(0.02)
        yield url, time.perf_counter() - began
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def painted(browser, url: str) -> tuple[float, float]:
    """Seconds from the address to the first paint, and to the rows of the Traces page."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    began = time.perf_counter()
    page.goto(f"{url}/traces")
    page.wait_for_selector("#traces-list [role=status]")
    spent = time.perf_counter() - began
    [first] = page.evaluate("performance.getEntriesByName('first-contentful-paint').map((one) => one.startTime)")
    context.close()
    return first / 1000, spent


CONTENT = {"traces": "#traces-list [role=status]", "runs": "#runs-list table", "errors": ".errors .confusion"}
"""Page → what it is opened for."""


def changed(browser, url: str) -> list[float]:
    """Seconds from a click in the header to the content of the next page, of each page the second time."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{url}/sql")
    page.wait_for_selector("#sql-box textarea")
    seconds = []
    for path, content in [*CONTENT.items()] * 2:
        began = time.perf_counter()
        page.click(f'header nav a[href="{path}"]', no_wait_after=True)
        page.wait_for_url(f"**/{path}*", wait_until="commit")
        page.wait_for_selector(content)
        seconds.append(time.perf_counter() - began)
    page.context.close()
    return seconds[len(CONTENT) :]


def reviewed(browser, url: str, items: int) -> list[float]:
    """Seconds from Enter to the next item on screen."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{url}/review")
    page.wait_for_selector("#review-open", state="attached")
    page.evaluate(OPEN, FORM)
    page.goto(f"{url}/review?task={FORM['name']}")
    page.wait_for_selector("#review-item .trace")
    for turn in range(items):
        page.wait_for_selector("#review:not([data-ahead='0']):not([data-busy])", state="attached")
        for key in ("1", "a", "Enter"):
            page.keyboard.press(key)
        page.wait_for_function("(n) => performance.getEntriesByName('review-next').length >= n", arg=turn + 1)
    took = page.evaluate("performance.getEntriesByName('review-next').map((one) => one.duration)")
    page.context.close()
    return [milliseconds / 1000 for milliseconds in took]


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--items", type=int, default=20, help="reviews in a row, 27 at most")
    given = chosen(parser)
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("DEEPINTUIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise SystemExit("No Chromium was found: DEEPINTUIT_CHROMIUM may name one.")
    starts, paints, rows, changes = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        workbench, *_ = site.write_workbench(Path(scratch) / "workbench")
        for turn in range(min(3, given.repeats) + 1):  # the first fills the file cache
            with served(workbench.path) as (url, spent):
                starts.append(spent)
                if turn < min(3, given.repeats):
                    continue
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=path, args=site.FLAGS)
                    painted(browser, url)
                    for _ in range(given.repeats):
                        first, whole = painted(browser, url)
                        paints.append(first)
                        rows.append(whole)
                        changes += changed(browser, url)
                    nexts = reviewed(browser, url, given.items)
                    browser.close()
    report(
        given,
        [
            Row("app start, command to first response", starts[1:]),
            Row("first paint of a page", paints),
            Row("rows of the Traces page on screen", rows),
            Row("content of the next page, from page to page", changes),
            Row("next review item on screen", nexts),
        ],
        "a workbench of 8 clips and 28 traces, Chromium without a cache",
    )


if __name__ == "__main__":
    main()
