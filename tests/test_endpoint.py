"""The endpoint's client against a real HTTP server on the loopback that behaves, and misbehaves, as such servers do."""

import asyncio
import base64
import gzip
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepintuit.config import TeachConfig
from deepintuit.endpoint import Completion, Endpoint, Refused, Request, Unreachable
from deepintuit.endpoint.wire import (
    MOST_BYTES,
    NOTHING,
    Arriving,
    NotACompletion,
    completion,
    completion_in,
    retry_after,
)
from deepintuit.errors import TeachError
from deepintuit.video import Frames

KEY = "key-0123456789-abcdef-SECRET"


def chat(text: str, finish: str = "stop", usage: object = None, status: int = 200, **headers: str):
    """A well-formed answer, as (status, headers, body)."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5} if usage is None else usage
    body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}], "usage": usage}
    return status, headers, json.dumps(body).encode()


class Server:
    """`answer(body)` gives (status, headers, bytes), or waits, for each request; what came in is kept in `seen`."""

    def __init__(self, answer: Callable[[dict], tuple[int, dict, bytes]]):
        self.answer, self.seen, self.keys, self.most = answer, [], [], 0
        self._now, self._lock = 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                    outer.seen.append(body | {"path": self.path})
                    outer.keys.append(self.headers.get("Authorization"))
                try:
                    status, headers, content = outer.answer(body)
                finally:
                    with outer._lock:
                        outer._now -= 1
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                try:
                    self.wfile.write(content)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client gave up waiting, which some tests want

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def client(server: Server, **settings) -> Endpoint:
    return Endpoint(server.base_url, "m", **({"key_variable": "TEACHER_KEY", "backoff": 0.01, "retries": 3} | settings))


def ask(endpoint: Endpoint, *requests: Request) -> list:
    """Outcomes in the order of the requests."""
    found = {}
    endpoint.complete_many(requests, lambda request, outcome: found.__setitem__(id(request), outcome))
    return [found[id(request)] for request in requests]


def in_turn(*answers):
    """A server that gives these answers one after the other, the last one for ever."""
    left = list(answers)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


def frames(shades=(0, 200)) -> Frames:
    pixels = np.stack([np.full((48, 64, 3), shade, np.uint8) for shade in shades])
    return Frames.of(pixels, range(len(shades)), [0.25 * n for n in range(len(shades))], 1.5, "pyav")


def test_answer_comes_with_its_tokens_and_reason():
    with Server(in_turn(chat("Tür 🚪 <answer>", finish="length"))) as server:
        endpoint = client(server)
        (answer,) = ask(endpoint, Request("what?", temperature=0.5, max_tokens=7))
    assert (answer.text, answer.truncated) == ("Tür 🚪 <answer>", True)
    assert (answer.prompt_tokens, answer.completion_tokens) == (10, 5)
    assert server.seen[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "what?"}],
        "temperature": 0.5,
        "max_tokens": 7,
        "stream": False,
        "path": "/v1/chat/completions",
    }
    assert server.keys == [f"Bearer {KEY}"]
    assert (endpoint.usage.prompt_tokens, endpoint.usage.completion_tokens) == (10, 5)


def test_frames_are_sent_as_jpeg_behind_their_times():
    with Server(in_turn(chat("ok"))) as server:
        ask(client(server), Request("what happens?", frames((0, 100, 200))))
    content = server.seen[0]["messages"][0]["content"]
    assert [part.get("text") for part in content] == [
        "3 frames of a clip of 1.50 s:", "0.00 s", None, "0.25 s", None, "0.50 s", None, "what happens?",
    ]  # fmt: skip
    pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    for url, shade in zip(pictures, (0, 100, 200), strict=True):
        head, data = url.split(",")
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert head == "data:image/jpeg;base64" and image.shape == (48, 64, 3)
        assert abs(int(image.mean()) - shade) <= 2


def test_never_more_requests_in_flight_than_places():
    def slow(body):
        time.sleep(0.05)
        return chat("ok")

    with Server(slow) as server:
        ask(client(server, concurrency=3), *[Request(str(n)) for n in range(12)])
    assert server.most == 3 and len(server.seen) == 12


def test_requests_are_drawn_only_as_places_become_free():
    drawn = []

    def requests():
        for n in range(20):
            drawn.append(n)
            yield Request(str(n))

    def on_done(request, outcome):
        assert len(drawn) <= int(answered.pop(0)) + 3

    answered = list(range(20))
    with Server(in_turn(chat("ok"))) as server:
        client(server, concurrency=2).complete_many(requests(), on_done)


def test_retry_after_is_waited_for():
    with Server(in_turn(chat("no", status=429, Retry_After="1"), chat("ok"))) as server:
        started = time.monotonic()
        (answer,) = ask(endpoint := client(server), Request("x"))
    assert answer.text == "ok" and time.monotonic() - started >= 1 and endpoint.usage.retries == 1


def test_server_errors_and_malformed_answers_are_tried_again():
    bad = [(500, {}, b"oops"), (200, {}, b"<html>proxy</html>"), (200, {}, b'{"choices": []}'), (503, {}, b"")]
    with Server(in_turn(*bad, chat("ok"))) as server:
        (answer,) = ask(client(server, retries=4), Request("x"))
    assert answer.text == "ok" and len(server.seen) == 5


@pytest.mark.parametrize("status, body", [(502, b""), (200, b"[]"), (200, b'{"choices":[{"message":{"content":3}}]}')])
def test_tries_end_and_the_error_says_host_and_cause(status, body):
    with Server(in_turn((status, {}, body))) as server:
        (outcome,) = ask(client(server, retries=2, concurrency=4), Request("x"))
    assert isinstance(outcome, Unreachable) and len(server.seen) == 3
    assert "127.0.0.1" in str(outcome) and "3 tries" in str(outcome)


def test_slow_answer_is_given_up_after_the_timeout_and_tried_again():
    calls = []

    def answer(body):
        calls.append(body)
        time.sleep(0.6 if len(calls) == 1 else 0)
        return chat("ok")

    with Server(answer) as server:
        (outcome,) = ask(client(server, timeout=0.3), Request("x"))
    assert outcome.text == "ok" and len(calls) == 2


def test_nobody_listening_is_unreachable_not_a_traceback():
    with Server(in_turn(chat("x"))) as server:
        gone = server.base_url
    endpoint = Endpoint(gone, "m", key_variable="TEACHER_KEY", retries=1, backoff=0.01, concurrency=4)
    (outcome,) = ask(endpoint, Request("x"))
    assert isinstance(outcome, Unreachable) and "ConnectError" in str(outcome)


def test_a_day_of_retry_after_is_not_waited_for():
    with Server(in_turn(chat("no", status=429, Retry_After="86400"))) as server:
        (outcome,) = ask(client(server), Request("x"))
    assert isinstance(outcome, Unreachable) and "86400" in str(outcome) and len(server.seen) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_what_would_fail_every_request_ends_the_work_at_once(status):
    with Server(in_turn((status, {"Location": "http://127.0.0.1:9/"}, f"bad key {KEY}".encode()))) as server:
        with pytest.raises(TeachError) as caught:
            ask(client(server, concurrency=1), *[Request(str(n)) for n in range(9)])
    assert len(server.seen) == 1, "not tried again, and no further request"
    assert str(status) in str(caught.value) and "127.0.0.1" in str(caught.value) and KEY not in str(caught.value)


def test_bad_request_concerns_that_request_alone():
    def answer(body):
        return (400, {}, b"too many images") if body["messages"][0]["content"] == "1" else chat("ok")

    with Server(answer) as server:
        outcomes = ask(client(server), *[Request(str(n)) for n in range(4)])
    assert [type(outcome) for outcome in outcomes] == [Completion, Refused, Completion, Completion]
    assert "too many images" in str(outcomes[1]) and len(server.seen) == 4


def test_of_several_servers_one_has_the_requests_about_a_clip_and_the_next_those_it_does_not_answer():
    with Server(in_turn(chat("one"))) as one, Server(in_turn(chat("two"))) as two:
        both = Endpoint(f"{one.base_url},{two.base_url}", "m", key_variable="TEACHER_KEY", backoff=0.01)
        answers = ask(both, *[Request("x", frames((n, n)), sample=k) for n in range(8) for k in range(2)])
        assert [a.text for a in answers[::2]] == [a.text for a in answers[1::2]] and len({a.text for a in answers}) == 2
        assert both.tell("/v1/x", {}, remedy="") != [] and len({*both.host.split(", ")}) == 2
        one.__exit__()
        assert {a.text for a in ask(both, *[Request(str(n)) for n in range(4)])} == {"two"}


def test_an_endpoint_that_only_fails_is_not_asked_for_ever():
    with Server(in_turn((500, {}, b""))) as server:
        with pytest.raises(Unreachable):
            ask(client(server, retries=0, concurrency=2), *[Request(str(n)) for n in range(500)])
    assert len(server.seen) <= 6


@pytest.mark.parametrize("usage", [{}, [], "many", {"prompt_tokens": -1, "completion_tokens": "5"}])
def test_wrong_usage_is_unknown_and_counted(usage):
    with Server(in_turn(chat("ok", usage=usage))) as server:
        (answer,) = ask(endpoint := client(server), Request("x"))
    assert answer.prompt_tokens is None and answer.completion_tokens is None and endpoint.usage.without_usage == 1


def test_null_content_is_an_empty_answer():
    with Server(in_turn(chat(None, finish="content_filter"))) as server:
        (answer,) = ask(client(server), Request("x"))
    assert (answer.text, answer.finish_reason) == ("", "content_filter")


def test_cached_answers_cost_nothing_and_key_on_all_that_was_asked(tmp_path):
    variants = [
        Request("x"), Request("y"), Request("x", temperature=1.0), Request("x", max_tokens=9), Request("x", sample=1),
        Request("x", frames()), Request("x", frames((1, 2))),
    ]  # fmt: skip
    with Server(in_turn(chat("Tür 🚪"))) as server:
        ask(first := client(server, cache=tmp_path), *variants)
        again = ask(second := client(server, cache=tmp_path), *variants)
        other = client(server, cache=tmp_path)
        other.model = "another"
        ask(other, Request("x"))
    assert (first.usage.paid, second.usage.paid, second.usage.cached) == (7, 0, 7) and len(server.seen) == 8
    assert all(answer.text == "Tür 🚪" and answer.cached for answer in again)


def test_damaged_cache_entry_is_asked_again(tmp_path):
    with Server(in_turn(chat("ok"))) as server:
        ask(client(server, cache=tmp_path), Request("x"))
        (entry,) = tmp_path.rglob("*.json")
        entry.write_bytes(entry.read_bytes()[:20])
        (answer,) = ask(client(server, cache=tmp_path), Request("x"))
    assert answer.text == "ok" and len(server.seen) == 2 and json.loads(entry.read_text())["text"] == "ok"


def test_work_broken_off_in_the_middle_resumes_without_paying_twice(tmp_path):
    requests = [Request(str(n)) for n in range(20)]

    def broken(request, outcome):
        done.append(outcome)
        if len(done) == 7:
            raise ZeroDivisionError

    done = []
    with Server(in_turn(chat("ok"))) as server:
        with pytest.raises(ZeroDivisionError):
            client(server, cache=tmp_path, concurrency=2).complete_many(requests, broken)
        entries = len(list(tmp_path.rglob("*.json")))
        usage = client(server, cache=tmp_path, concurrency=2).complete_many(requests)
    assert 7 <= entries <= 8 and (usage.cached, usage.paid) == (entries, 20 - entries)
    assert not list(tmp_path.rglob("*.tmp"))


def test_key_is_in_no_file_log_or_error_even_when_the_server_echoes_it(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    echo = f"you sent {KEY}"
    answers = chat(echo), (400, {}, echo.encode()), (200, {}, echo.encode()), (500, {}, echo.encode())
    with Server(in_turn(*answers)) as server:
        endpoint = client(server, cache=tmp_path, retries=1, concurrency=1)
        with pytest.raises(TeachError) as caught:
            found = []
            endpoint.complete_many([Request(str(n)) for n in range(9)], lambda request, outcome: found.append(outcome))
    everything = [caplog.text, *capfd.readouterr(), repr(caught.value), str(vars(endpoint)), str(found)]
    everything += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert found[0].text == "you sent ***" and not [text for text in everything if KEY in text]


def test_no_key_means_no_header(monkeypatch):
    monkeypatch.delenv("TEACHER_KEY")
    with Server(in_turn(chat("ok"))) as server:
        ask(client(server), Request("x"))
    assert server.keys == [None]


def test_key_that_no_header_can_carry_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(TeachError) as caught:
        Endpoint("http://127.0.0.1:1/v1", "m", key_variable="TEACHER_KEY")
    assert KEY not in str(caught.value)


NO_ADDRESSES = [
    *("http://[", "http://[::1/v1", "http://[]/v1", "http://[::1]x/v1", f"http://me:{KEY}@[/v1", f"http://me:{KEY}[@h"),
    *("http://", "http:///v1", "http:/host/v1", "//host/v1", "host:8000/v1", "127.0.0.1:8000/v1", "file:///v1"),
    *("http://a b/v1", "http://host/v 1", " http://host/v1", "http://host/v1 ", "http://host\n/v1", "http://%20/v1"),
    *("http://host:99999/v1", "http://host:65536", "http://host:0/v1", "http://host:-1/v1", "http://host:8000x/v1"),
    *("http://./v1", "http://a..b/v1", f"http://{'a' * 64}/v1", "http://*/v1", "http://host,b/v1", "http://xn--/v1"),
    *("http://host/v1?", "http://host/v1#", "http://\\host/v1", "http://256.1.1.1/v1", "http://\u3002/v1"),
]


@pytest.mark.parametrize(
    "address", ["http://[::1]:8000/v1", "HTTPS://Host.example./v1", "http://a_b:65535", "http://bücher.example/v1/x"]
)
def test_an_address_may_be_of_any_form_that_a_server_can_have(address):
    assert Endpoint.of(TeachConfig(base_url=address, model="m")).host


@pytest.mark.parametrize(
    "settings",
    [
        dict(base_url="", model="m"),
        dict(base_url="ftp://127.0.0.1/v1", model="m"),
        dict(base_url="http://127.0.0.1:port/v1", model="m"),
        dict(base_url="http://127.0.0.1/v1", model=""),
        dict(base_url=f"http://me:{KEY}@127.0.0.1/v1", model="m"),
        dict(base_url=f"http://127.0.0.1/v1?key={KEY}", model="m"),
        dict(base_url="http://127.0.0.1/v1", model="m", key_variable=KEY),
        *(dict(base_url=text, model="m") for text in NO_ADDRESSES),
    ],
)
def test_settings_that_cannot_be_are_refused_without_showing_a_key(settings):
    with pytest.raises(TeachError) as caught:
        Endpoint.of(TeachConfig(**settings))
    assert KEY not in str(caught.value) and all(caught.value.args)


def test_works_inside_a_running_event_loop_as_in_a_notebook():
    async def cell():
        return ask(client(server), Request("x"))

    with Server(in_turn(chat("ok"))) as server:
        with ThreadPoolExecutor(1) as apart:  # a browser's test leaves a loop in this thread
            assert apart.submit(asyncio.run, cell()).result()[0].text == "ok"


WORDS = st.sampled_from(["choices", "message", "content", "delta", "usage", "finish_reason"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner)
)


@given(st.text() | JSON.map(json.dumps))
def test_any_body_is_an_answer_or_not_a_completion(text):
    try:
        completion(text, 1.0)
    except NotACompletion:
        pass


@given(st.none() | st.text())
def test_retry_after_of_any_text_is_a_finite_wait(header):
    assert 0 <= retry_after(header) < float("inf")


def test_retry_after_reads_seconds_and_dates():
    assert retry_after("2.5") == 2.5
    assert 8 < retry_after(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert retry_after(formatdate(time.time() - 10, usegmt=True)) == 0


def test_nothing_of_the_cache_names_a_machine_or_a_prompt(tmp_path):
    with Server(in_turn(chat("ok"))) as server:
        ask(client(server, cache=tmp_path), Request("the prompt"))
    (entry,) = tmp_path.rglob("*.json")
    assert set(json.loads(Path(entry).read_text())) == {
        "text", "finish_reason", "prompt_tokens", "completion_tokens", "milliseconds", "cached",
    }  # fmt: skip


# What servers do with thinking, parts, refusals and fields


def message(finish: str = "stop", **fields: object):
    body = {"choices": [{"message": {"role": "assistant", **fields}, "finish_reason": finish}]}
    return 200, {}, json.dumps(body).encode()


THOUGHT = "<think>A man.</think><answer>a</answer>"


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"content": "<answer>a</answer>", "reasoning_content": "A man."}, THOUGHT),
        ({"content": "<answer>a</answer>", "reasoning": "A man."}, THOUGHT),
        ({"content": "<answer>a</answer>", "reasoning": "A man.", "reasoning_content": "A man."}, THOUGHT),
        ({"content": THOUGHT, "reasoning_content": "hidden"}, THOUGHT),
        ({"content": None, "reasoning_content": "A man and"}, "<think>A man and"),
        ({"content": None, "reasoning_content": THOUGHT}, THOUGHT),
        (
            {"content": "<answer>a</answer>", "reasoning": "<observation>O</observation><think>A"},
            "<observation>O</observation><think>A</think><answer>a</answer>",
        ),
        (
            {
                "content": [
                    {"type": "text", "text": "<think>A man.</think>"},
                    {"type": "text", "text": "<answer>a</answer>"},
                ]
            },
            THOUGHT,
        ),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "A man."}]},
                    {"type": "text", "text": "<answer>a</answer>"},
                ]
            },
            THOUGHT,
        ),
        ({"content": ["<think>A man.</think>", {"text": "<answer>a</answer>"}]}, THOUGHT),
        ({"content": {"type": "text", "text": "a"}}, "a"),
    ],
)
def test_the_text_of_every_form_of_message_is_read_at_the_first_try(fields, text):
    with Server(in_turn(message(**fields))) as server:
        (answer,) = ask(client(server), Request("x"))
    assert (answer.text, answer.lacking, len(server.seen)) == (text, "", 1)


@pytest.mark.parametrize(
    "finish, fields, said",
    [
        ("content_filter", {"content": None}, "content filter"),
        ("content_filter", {"content": "<think> A"}, "content filter"),
        ("stop", {"content": None, "refusal": "I cannot help with that."}, "refuses: I cannot help"),
        ("stop", {"content": [{"type": "refusal", "refusal": "No."}]}, "refuses: No."),
        ("length", {"content": ""}, "used up max_tokens"),
        ("tool_calls", {"content": "", "tool_calls": [{}]}, "calls a tool"),
        ("stop", {"content": " \n"}, NOTHING),
        ("stop", {}, NOTHING),
    ],
)
def test_an_answer_with_nothing_to_use_says_why_and_is_not_kept(tmp_path, finish, fields, said):
    with Server(in_turn(message(finish, **fields), chat("ok"))) as server:
        (answer,) = ask(client(server, cache=tmp_path), Request("x"))
        assert said in answer.lacking and len(server.seen) == 1
        (again,) = ask(client(server, cache=tmp_path), Request("x"))
    assert again.text == "ok" and not again.cached


def test_an_empty_answer_that_was_kept_once_is_asked_for_again(tmp_path):
    with Server(in_turn(chat("ok"))) as server:
        ask(client(server, cache=tmp_path), Request("x"))
        (entry,) = tmp_path.rglob("*.json")
        entry.write_text(entry.read_text().replace('"ok"', '""'))
        (answer,) = ask(client(server, cache=tmp_path), Request("x"))
    assert answer.text == "ok" and len(server.seen) == 2


def test_under_another_seed_an_answer_is_asked_for_anew(tmp_path):
    with Server(in_turn(chat("ok"))) as server:
        for seed in (0, 1, 0, 1):
            ask(client(server, cache=tmp_path), Request("x", seed=seed))
    assert len(server.seen) == 2 and all("seed" not in body for body in server.seen)


def test_a_server_that_only_gives_empty_answers_is_not_asked_for_ever():
    with Server(in_turn(chat(""))) as server:
        with pytest.raises(TeachError, match="answers without a text"):
            ask(client(server, concurrency=2), *[Request(str(n)) for n in range(500)])
    assert len(server.seen) <= 6


def picky(refused: dict[str, str]):
    """A server that answers 400 where a field stands in the request that it does not take."""

    def answer(body):
        for field, said in refused.items():
            if field in body:
                error = {"error": {"message": said, "type": "invalid_request_error", "param": field}}
                return 400, {}, json.dumps(error).encode()
        return chat(json.dumps({k: body[k] for k in body if "tokens" in k or k == "temperature"}))

    return answer


TOKENS = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
WARM = "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported."


@pytest.mark.parametrize(
    "refused, sent",
    [
        ({"max_tokens": TOKENS}, {"max_completion_tokens": 9, "temperature": 0.7}),
        ({"temperature": WARM}, {"max_tokens": 9}),
        ({"max_tokens": TOKENS, "temperature": WARM}, {"max_completion_tokens": 9}),
    ],
)
def test_a_field_that_a_model_refuses_by_name_is_sent_otherwise_from_then_on(refused, sent):
    with Server(picky(refused)) as server:
        endpoint = client(server, concurrency=1, retries=0)
        answers = ask(endpoint, *[Request(str(n), temperature=0.7, max_tokens=9) for n in range(3)])
        assert [json.loads(answer.text) for answer in answers] == [sent] * 3
        assert len(server.seen) == 3 + len(refused) and endpoint.usage.retries == 0
        assert {answer.left_out for answer in answers} == {("temperature",) if "temperature" in refused else ()}
        assert ("does not know temperature" in endpoint.unknown) == ("temperature" in refused)
    asked = TeachConfig(
        base_url=server.base_url, model="m", token_field="max_completion_tokens", send_temperature=False
    )
    assert Endpoint.of(asked).left_out == {"max_tokens", "temperature"}


@pytest.mark.parametrize(
    "said", ["max_tokens is too large: 9000. This model supports at most 4096.", "too many images"]
)
def test_another_fault_of_a_request_is_not_asked_twice(said):
    with Server(picky({"max_tokens": said})) as server:
        (outcome,) = ask(client(server), Request("x"))
    assert isinstance(outcome, Refused) and len(server.seen) == 1


@pytest.mark.parametrize("code, kind, asked", [(429, Unreachable, 3), (400, Refused, 1), ("busy", Unreachable, 3)])
@pytest.mark.parametrize(
    "within", [lambda error: error, lambda error: {"choices": [{**error, "message": {"content": ""}}]}]
)
def test_an_error_with_status_200_is_taken_for_what_it_says(code, kind, asked, within):
    body = within({"error": {"message": "the model is on fire", "code": code}})
    with Server(in_turn((200, {}, json.dumps(body).encode()))) as server:
        (outcome,) = ask(client(server, retries=2), Request("x"))
    assert isinstance(outcome, kind) and "on fire" in str(outcome) and len(server.seen) == asked


# What a hostile or broken server may send

BOMB = gzip.compress(bytes(4 * MOST_BYTES))


@pytest.mark.parametrize(
    "headers, body, said",
    [
        ({"Content_Encoding": "gzip"}, BOMB, "more than 16 MiB"),
        ({"Content_Encoding": "gzip"}, b"not gzip", "not gzip"),
        ({"Content_Encoding": "br"}, b"x", "not asked for"),
        ({"Content_Encoding": "gzip, gzip"}, gzip.compress(BOMB), "not asked"),
        ({}, b" " * (MOST_BYTES + 1), "more than 16 MiB"),
        ({}, b"\xff\x00", "no text"),
        ({"Content_Type": "application/json; charset=utf-16"}, b"\xfe\xff\xd8\x00", "no text"),
        ({}, b'{"choices":' + b"[" * 200_000, "without a chat completion"),
        ({"X": "y" * 200_000}, b"", "RemoteProtocolError"),
        ({}, b'{"choices":[{"message":{"content":' + b"1" * 9000 + b"}}]}", "without a chat completion"),
    ],
)
def test_a_hostile_answer_is_one_bounded_sentence(headers, body, said):
    with Server(in_turn((200, headers, body))) as server:
        (outcome,) = ask(client(server, retries=0), Request("x"))
    assert isinstance(outcome, Unreachable) and said in str(outcome) and len(str(outcome)) < 600


def test_a_packed_or_marked_answer_is_read_whatever_charset_is_claimed():
    _, _, body = chat("Tür")
    answers = (
        (200, {"Content_Encoding": "gzip"}, gzip.compress(body)),
        (200, {}, b"\xef\xbb\xbf" + body),
        (200, {"Content_Type": "application/json; charset=iso-8859-1"}, body.replace(b"\\u00fc", "ü".encode())),
    )
    with Server(in_turn(*answers)) as server:
        assert [ask(client(server), Request("x"))[0].text for _ in answers] == ["Tür"] * 3


@pytest.mark.parametrize("status", [400, 500])
def test_of_an_endless_error_message_the_beginning_is_read(status):
    with Server(in_turn((status, {}, b"x" * (30 << 20)))) as server:
        (outcome,) = ask(client(server, retries=0), Request("x"))
    assert isinstance(outcome, Refused | Unreachable) and len(str(outcome)) < 600


def dripping(body: bytes, seconds: float):
    """A server that sends a byte at a time, over and over."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                while True:
                    connection.sendall(body)
                    time.sleep(seconds)
            except OSError:
                if listener.fileno() < 0:
                    return

    threading.Thread(target=serve, daemon=True).start()
    return listener


def test_an_answer_that_never_ends_is_given_up_after_the_timeout():
    with dripping(b": wait\n", 0.02) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        endpoint = Endpoint(address, "m", key_variable="TEACHER_KEY", retries=0, timeout=0.5)
        started = time.monotonic()
        (outcome,) = ask(endpoint, Request("x"))
    assert isinstance(outcome, Unreachable) and time.monotonic() - started < 10


# Answers in pieces


def events(*pieces: str, end: str | None = "stop", usage: bool = True) -> bytes:
    """An answer as server-sent events: a text in pieces, each with a token of its own."""
    chunks = [
        {"choices": [{"delta": {"content": text}, "token_ids": [n], "logprobs": {"content": [{"logprob": -0.5 * n}]}}]}
        for n, text in enumerate(pieces)
    ]
    chunks += [{"choices": [{"delta": {}, "finish_reason": end}]}] if end else []
    chunks += [{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(pieces)}}] if usage else []
    return b": ping\n\n" + b"".join(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks)


SSE = {"Content_Type": "text/event-stream; charset=utf-8"}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_an_answer_in_pieces_is_the_same_however_it_is_cut(size):
    body, arriving = events("Tür", " 🚪", " <answer>") + b"data: [DONE]", Arriving()
    for start in range(0, len(body), size):
        arriving.feed(body[start : start + size])
    arriving.feed(b"\n")
    answer = completion_in(arriving.answer(), 1.0)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("Tür 🚪 <answer>", 9, 3)
    assert (answer.token_ids, answer.logprobs) == ([0, 1, 2], [0.0, -0.5, -1.0])


def streamed(server: Server, request: Request, **settings) -> tuple[list, list]:
    texts, outcomes = [], []
    client(server, **settings).complete_many(
        [request], lambda _, outcome: outcomes.append(outcome), on_text=lambda _, text, n: texts.append((text, n))
    )
    return texts, outcomes


def test_a_stream_that_breaks_off_or_holds_an_error_is_asked_again():
    broken, refused = events("half an", end=None), b'data: {"error": {"message": "overloaded", "code": 503}}\n\n'
    with Server(in_turn((200, SSE, broken), (200, SSE, refused), (200, SSE, events("a ", "whole")))) as server:
        texts, [answer] = streamed(server, Request("what?"))
    assert answer.text == "a whole" and not answer.truncated and texts[-1] == ("a whole", 2)
    assert len(server.seen) == 3 and all(body["stream"] for body in server.seen)


def test_a_server_that_does_not_stream_is_understood_all_the_same():
    with Server(in_turn(chat("whole"))) as server:
        _, [answer] = streamed(server, Request("what?"))
    assert answer.text == "whole"


@pytest.mark.parametrize("body", [b"data: 1\n\n", b"data: {\n\n", b'data: {"choices": 3}\n\n', b"\xff\xfe\n\n", b""])
def test_what_is_no_stream_of_an_answer_is_a_sentence(body):
    with Server(in_turn((200, SSE, body))) as server:
        _, [outcome] = streamed(server, Request("what?"), retries=0)
    assert isinstance(outcome, Unreachable) and "no answer came in 1 try" in str(outcome)


@pytest.mark.parametrize(
    "logprobs",
    [None, 3, [], {"content": None}, {"content": [1]}, {"content": [{"logprob": "x"}]}, {"content": [{"logprob": 3}]}],
)
def test_log_probabilities_that_cannot_be_are_none(logprobs):
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "logprobs": logprobs, "token_ids": [True, -1]}
    answer = completion_in({"choices": [choice]}, 1.0)
    assert (answer.logprobs, answer.token_ids, answer.prompt_logprobs) == (None, None, None)


def test_fields_that_a_server_does_not_know_are_left_out_and_named():
    def answer(body):
        unknown = [name for name in ("top_k", "logprobs", "seed") if name in body]
        said = {"error": {"message": f"Unrecognized request argument supplied: {unknown[0]}"}} if unknown else None
        return (400, {}, json.dumps(said).encode()) if unknown else chat("ok")

    with Server(answer) as server:
        more = {"top_k": 0, "logprobs": True, "seed": 3, "media_io_kwargs": {"video": {}}}
        endpoint = client(server)
        (first, second) = ask(endpoint, Request("one", more=more), Request("two", more=more))
    assert first.left_out == ("logprobs", "seed", "top_k") == second.left_out
    assert "media_io_kwargs" in server.seen[-1], "what the model is shown is never left out"
