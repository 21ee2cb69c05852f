"""Calls of every endpoint that no page would make: none is an error of the server, and it goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from apart import run_apart
from porch import live_workbench, until

from deepintuit_analysis import Workbench
from deepintuit_app.app import blocks, served
from deepintuit_app.context import AppContext
from deepintuit_app.doors import SESSIONS

DEEP = '{"data":' + "[" * 5000 + "]" * 5000 + ', "fn_index": 4, "session_hash": "deep"}'
LONG = "x" * 1_000_000
VALUES = [
    None, True, -1, 0, 2**31, 2**63, 10**300, -(2**64), 0.5, 1e308, float("nan"), float("inf"), float("-inf"), "", "x",
    "NaN", "1e999", "-" + "9" * 400, "a\0b", "\ud800", "x" * 50_000, LONG, "' OR 1=1 --", "<script>1</script>",
    "../" * 50 + "etc/passwd", "\u202e\U0001f3ac" * 500, "٣", "[" * 10_000, "a=" * 2_000, [], {}, [[]], [None],
    ["x"] * 5_000,
    {"a": 1}, {"__type__": "update", "choices": 3}, [1, {"b": [2]}], list(range(500)),
]  # fmt: skip


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    return live_workbench(tmp_path_factory.mktemp("hostile") / "workbench")


@pytest.fixture(scope="module")
def url(workbench) -> Iterator[str]:
    with served(workbench.path) as url:
        yield url


def sent(url: str, calls: list[tuple[str, Any]]) -> list[tuple[int, str, str]]:
    """Status, answer and call of each, many at a time. What is no text is sent as JSON, NaN and all."""

    async def run() -> list[tuple[int, str, str]]:
        gate = asyncio.Semaphore(12)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:

            async def one(path: str, given: Any) -> tuple[int, str, str]:
                body = given if isinstance(given, str) else json.dumps(given)
                async with gate:
                    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
                return answer.status_code, answer.text, f"{path} {body[:200]}"

            return await asyncio.gather(*(one(*call) for call in calls))

    return run_apart(run())


def held(url: str, answers: list[tuple[int, str, str]]) -> None:
    broken = [answer for answer in answers if answer[0] >= 500 or "Traceback" in answer[1]]
    assert not broken, [(status, text[:200], call) for status, text, call in broken[:20]]
    assert httpx.get(url, timeout=60).status_code == 200


def test_no_value_breaks_a_handler(url):
    config = httpx.get(f"{url}/config", timeout=60).json()
    taking = [one for one in config["dependencies"] if one["backend_fn"] and one["inputs"]]
    calls = []
    for number, one in enumerate(taking):
        n = len(one["inputs"])
        # Each handler gets three of the values everywhere; all handlers together get each of them several times.
        for place in range(3):
            value = VALUES[(number * 3 + place) % len(VALUES)]
            calls.append({"fn_index": one["id"], "data": [value] * n, "session_hash": "hostile"})
        mixed = [VALUES[(number + place) % 22] for place in range(n)]
        calls += [{"fn_index": one["id"], "data": mixed}, {"fn_index": one["id"], "data": [None] * (n - 1)}]
    held(url, sent(url, [("/gradio_api/run/predict", call) for call in calls]))


def test_no_call_of_what_is_not_there_breaks_the_server(url, capfd):
    numbers, sessions = (10**6, -1, 2**70, 1.5, True, "1", [0], 10**300), ("x", None, 5, ["x"])
    calls = [{"fn_index": number, "data": [], "session_hash": name} for number in numbers for name in sessions]
    config = httpx.get(f"{url}/config", timeout=60).json()
    of_browsers = [one["id"] for one in config["dependencies"] if not one["backend_fn"]]
    calls += [{"fn_index": number, "data": [], "session_hash": "x"} for number in of_browsers]
    bodies = [*calls, DEEP, "", "[]", "{", "null", "\xff", '{"fn_index": 1e999}', {"data": []}, {"session_hash": None}]
    answers = sent(url, [(f"/gradio_api/{name}", body) for name in ("run/predict", "queue/join") for body in bodies])
    assert {status for status, _, _ in answers} <= {400, 404, 422}
    held(url, sent(url, [(f"/gradio_api/{name}", body) for name in ("cancel", "reset") for body in bodies]))
    for path in ("call/v2/x", "call/x", "api/x", "run/x", "call/v2/x/1"):
        assert httpx.post(f"{url}/gradio_api/{path}", json={"data": []}).status_code == 404
    assert "session_not_found" in httpx.get(f"{url}/gradio_api/queue/data?session_hash=nobody").text
    for query in ("page=x", "page=", "deep_link=..%2fx", "page=traces&deep_link=x", "%ff=%00"):
        assert httpx.get(f"{url}/watch?{query}").status_code == httpx.get(f"{url}/?{query}").status_code == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_visitors_leave_behind_is_bounded(workbench):
    """A session's name of megabytes is refused, and sessions that nobody comes back to are forgotten."""
    pages = blocks(AppContext(workbench.path))
    assert pages.state_session_capacity == pages._queue.pending_messages_per_session.max_size == SESSIONS
    with served(workbench.path) as url:
        for name in ("run/predict", "queue/join"):
            asked = {"fn_index": 0, "data": [], "session_hash": "x" * 2**20}
            assert httpx.post(f"{url}/gradio_api/{name}", json=asked).status_code == 400


def test_sessions_that_read_no_answer_are_forgotten_and_bounded(workbench, monkeypatch):
    """Gradio keeps what a session waits for until it is read, and which events those are for ever."""
    monkeypatch.setattr("deepintuit_app.doors.SESSIONS", 10)
    monkeypatch.setattr("deepintuit_app.doors.UNREAD", 20)
    made = []
    monkeypatch.setattr("deepintuit_app.app.blocks", lambda context: made.append(blocks(context)) or made[0])
    with served(workbench.path) as url:
        number = next(number for number, one in made[0].fns.items() if not one.inputs and one.queue)
        joins = [{"fn_index": number, "data": [], "session_hash": f"s{n}"} for n in range(40)]
        held(url, sent(url, [("/gradio_api/queue/join", join) for join in joins]))
        queue = made[0]._queue
        assert 0 < len(queue.pending_event_ids_session) <= 10 and len(queue.pending_messages_per_session) <= 10
        greedy = [("/gradio_api/queue/join", {**joins[0], "session_hash": "one"})] * 40
        assert {status for status, _, _ in sent(url, greedy)} <= {200, 429, 503}
        until(lambda: not len(queue) and not any(queue.active_jobs), 30)
        answers = sent(url, greedy)
        assert {status for status, _, _ in answers} == {429} and "does not read" in answers[0][1]
        held(url, sent(url, [("/gradio_api/queue/join", {**joins[0], "session_hash": "another"})]))


def test_no_request_breaks_the_review(url):
    names = [
        "tasks",
        "start",
        "next",
        "lead",
        "count",
        "open",
        "again",
        "gather",
        "draft",
        "judge",
        "decide",
        "skip",
        "release",
        "undo",
        "close",
    ]
    fields = [
        "task",
        "item",
        "seat",
        "holding",
        "answers",
        "id",
        "query",
        "slice",
        "reason",
        "closed",
        "first",
        "name",
        "order",
        "questions",
        "view",
        "decide",
        "shares",
        "gold",
        "reviewers",
        "size",
    ]
    bodies: list[Any] = [dict.fromkeys(fields, value) for value in VALUES if value != LONG]
    bodies += ["", "[]", "null", "{", "5", "[1e999]", "NaN", DEEP, '{"task":' * 3000]
    bodies += [{"task": "x", "answers": {"label": {"a": []}}}]
    held(url, sent(url, [(f"/review-api/{name}", body) for name in names for body in bodies]))


@pytest.mark.parametrize("query", [
    "page=9999999999999999999999", "step=NaN", "min_tokens=1e999", "max_confidence=-inf", "sample=" + "9" * 500,
    "text=%00", "text=%ed%a0%80", "slice=" + "x" * 5000, "run=%27", "clip=" + "%F0%9F%8E%AC" * 400, "flip=x&flip=y",
])  # fmt: skip
def test_no_query_breaks_an_export(url, query):
    for path in ("export/traces.csv", "export/traces.x", "review-api/export"):
        answer = httpx.get(f"{url}/{path}?{query}&task=x&form=csv", timeout=60)
        assert answer.status_code < 500 and "Traceback" not in answer.text


def test_pages_answer_while_many_exports_wait_and_too_many_are_told_so(workbench, monkeypatch):
    """Sixty queries that end only when they are stopped: two run, eight wait, and no thread of the pages is theirs."""
    monkeypatch.setattr("deepintuit_analysis.index.console.SECONDS", 40)
    endless = {"sql": "SELECT count(*) FROM range(10000000000000) AS a, range(10000000)"}

    async def run(url: str) -> tuple[list[httpx.Response], list[httpx.Response], int]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            exports = [asyncio.ensure_future(client.post("/export/sql.csv", data=endless)) for _ in range(60)]
            while sum(one.done() for one in exports) < 50:
                await asyncio.sleep(0.02)
            pages = [await client.get(path) for path in ("/static-app/app.js", "/media/card/x", "/traces")]
            waiting = [one for one in exports if not one.done()]
            told = [one.result() for one in exports if one.done()]
            for one in waiting:
                one.cancel()
            return told, pages, len(waiting)

    with served(workbench.path) as url:
        told, pages, waiting = run_apart(run(url))
    assert [answer.status_code for answer in pages] == [200, 404, 200] and waiting == 10
    assert {answer.status_code for answer in told} == {503} and "Try again in a minute" in told[0].text
    assert told[0].headers["retry-after"] == "60"
