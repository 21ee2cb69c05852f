"""What every test shares: no network, no keys, a workbench of its own, and the real clips where there are any."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from pages import browser, open_page, page, users  # noqa: F401 - fixtures

# Before any test module can import a library that reads them.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", TOKENIZERS_PARALLELISM="false"
)
for name in [name for name in os.environ if name.endswith("_API_KEY")]:
    del os.environ[name]

# Shared machines stall for longer than any deadline; CI draws the same examples every time.
settings.register_profile("here", deadline=None, max_examples=30)  # with 100 the suite has no room in its time
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

ROOT = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("DEEPINTUIT_REAL_DATA", ROOT.parent / "shared" / "data"))


PROCESSES = (ROOT / "tests" / "browser", ROOT / "tests" / "security", ROOT / "tests" / "test_review_page.py")
"""Tests that speak to a browser or a server process. A busy machine can drop a connection of theirs, so one that fails
is run once more, one with a browser twice; the summary lists it as rerun."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with slow tests first: a worker that begins with one when the others are done would keep them waiting.
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name != "test_order.py", -slow[item.path]))
    for item in items:
        if any(item.path.is_relative_to(place) for place in PROCESSES):
            item.add_marker(pytest.mark.flaky(reruns=2 if item.path.is_relative_to(PROCESSES[0]) else 1))
    if "DEEPINTUIT_THOROUGH" not in os.environ:
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="DEEPINTUIT_THOROUGH=1 runs it: the suite has no room for it"))
    if not REAL_DATA.is_dir():
        absent = pytest.mark.skip(reason="no real clips here; DEEPINTUIT_REAL_DATA may name the folder that holds them")
        for item in items:
            if item.get_closest_marker("real_data"):
                item.add_marker(absent)


@pytest.fixture(autouse=True)
def _workbench_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can write into the workbench of whoever runs it."""
    monkeypatch.setenv("DEEPINTUIT_HOME", str(tmp_path_factory.getbasetemp() / "workbench"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real clips, read-only. Mark its tests `real_data`."""
    return REAL_DATA


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT
