"""Pages of the system's Chromium: each fails its test when a request leaves the host or a script fails."""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --ignore-certificate-errors"
).split()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium. `DEEPINTUIT_CHROMIUM` may name another one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("DEEPINTUIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium was found; DEEPINTUIT_CHROMIUM may name one")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def users(browser: Any) -> dict[tuple[int, bool], list[Any]]:
    """Of each look, browser contexts that no test has now: what they have fetched and compiled stays with them."""
    return {}


@pytest.fixture
def open_page(browser: Any, users: dict[tuple[int, bool], list[Any]]) -> Iterator[Any]:
    """Makes pages: `open_page(width=1280, dark=False)`. Each is a user of its own (cookies, storage). Its `foreign`
    lists requests to other hosts and its `failures` uncaught script errors; both must be empty at the end."""
    own, opened = [], []

    def make(width: int = 1280, dark: bool = False) -> Any:
        free = users.setdefault((width, dark), [])
        look = {"viewport": {"width": width, "height": 900}, "color_scheme": "dark" if dark else "light"}
        context = free.pop() if free else browser.new_context(**look, accept_downloads=True)
        own.append((free, context))
        page = context.new_page()
        page.set_default_timeout(45_000)  # a runner's two cores may be shared with a training
        page.foreign, page.failures = [], []
        page.on("request", lambda request: page.foreign.append(request.url) if _leaves(request.url) else None)
        page.on("pageerror", lambda error: page.failures.append(str(error)))
        page.goto = partial(_filled, page, page.goto)
        opened.append(page)
        return page

    yield make
    for free, context in own:
        for page in context.pages:
            origin = "/".join(page.url.split("/")[:3])
            about = {"origin": origin, "storageTypes": "local_storage"}
            if origin.startswith("http"):  # by the browser: a page that hangs would keep its test waiting
                context.new_cdp_session(page).send("Storage.clearDataForOrigin", about)
            page.close()
        context.clear_cookies()
        free.append(context)
    for page in opened:
        assert page.foreign == [], "a request left the host"
        assert page.failures == [], "a script failed in the browser"


@pytest.fixture
def page(open_page: Any) -> Any:
    """One page at 1280 px, light."""
    return open_page()


def _filled(page: Any, goto: Any, url: str, **options: Any) -> Any:
    """To an address, and on when its page has filled itself; with options, as Playwright does."""
    answer = goto(url, **options)
    if not options:
        page.locator("gradio-app[inert]").wait_for(state="detached")
    return answer


def _leaves(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:"))
