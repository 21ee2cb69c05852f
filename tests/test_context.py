"""What all pages share: who asks during a rebuild of the index is answered at once, and once more afterwards."""

import pytest
from porch import until

from deepintuit import disk
from deepintuit_analysis import Workbench
from deepintuit_app import traces, watch
from deepintuit_app.context import AppContext


@pytest.fixture
def workbench(tmp_path) -> Workbench:
    workbench = Workbench(tmp_path)
    write(workbench, "first")
    workbench.refresh()
    return workbench


def write(workbench: Workbench, name: str) -> None:
    with workbench.start_run("evaluate", {}, name=name, dataset="home") as run:
        run.append("traces", [{"clip_id": "c", "sample": 0, "text": name, "provisional": "none"}])
        run.finish({})


def asked(number: str = "1") -> list:
    """What the Traces page sends for "no filter"."""
    return [*[""] * len(traces.FILTERS), "", "", number, "", None]


def held(workbench: Workbench) -> disk.Lock:
    """Whoever has this keeps the index from being rebuilt."""
    return disk.Lock(workbench.path / ".index.lock", wait=10)


def test_a_list_asked_for_during_a_rebuild_is_asked_for_once_more(workbench):
    write(workbench, "second")
    context, lock = AppContext(workbench.path), held(workbench)
    do = traces.Handlers(context)
    _, html, _, behind, timer = do.show(*asked())
    assert "second" not in html and behind is not None and timer.active
    assert not any("Timer" in type(part).__name__ for part in do.once_more(behind, *asked())), "it goes on waiting"
    lock.release()
    until(lambda: context.behind() is None, 20)
    number, html, _, behind, timer = do.once_more(behind, *asked())
    assert "second" in html and number == "1" and behind is None and not timer.active


def test_where_nothing_was_new_nothing_is_asked_again(workbench):
    context, lock = AppContext(workbench.path), held(workbench)
    do = watch.Handlers(context)
    _, behind, timer = do.find("", "", "", "", None)
    assert behind is not None and timer.active
    lock.release()
    until(lambda: context.behind() is None, 20)
    strip, behind, timer = do.once_more(behind, "", "", "", "", None)
    assert not isinstance(strip, str) and behind is None and not timer.active


def test_an_index_that_is_up_to_date_is_asked_once(workbench):
    context = AppContext(workbench.path)
    context.look()
    until(lambda: context.behind() is None, 20)
    assert traces.Handlers(context).show(*asked())[3] is None
