"""What comes in: bodies without end, requests without end, names and proxies that nobody gave, disks that fill up."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from fastapi.testclient import TestClient

from deepintuit import connections
from deepintuit.cli import main
from deepintuit.errors import ConfigError
from deepintuit_app import login, outside
from deepintuit_app.app import create, served
from deepintuit_app.login import hashed

ROOT = Path(__file__).parents[2]
MIB = 2**20


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """The dashboard as its command starts it: (port, process)."""
    place = tmp_path_factory.mktemp("workbench")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "deepintuit.cli",
        "app",
        "--workbench",
        str(place),
        "--port",
        str(port),
        "--no-browser",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.1)
            yield port, psutil.Process(server.pid)
        finally:
            server.terminate()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", "")).encode()


def answer(line: socket.socket) -> str:
    """All that comes until the other side closes, or nothing more comes for a while."""
    got = b""
    with contextlib.suppress(OSError):
        while piece := line.recv(65536):
            got += piece
            if b"\r\n\r\n" in got and (found := re.search(rb"content-length: (\d+)", got, re.I)):
                if len(got.partition(b"\r\n\r\n")[2]) >= int(found[1]):
                    break
    return got.decode("utf-8", "replace")


# Bodies


@pytest.mark.parametrize(
    "path", ["/review-api/judge", "/review-api/import?task=a&file=b.csv", "/gradio_api/queue/join"]
)
def test_three_hundred_megabytes_in_chunks_are_refused_and_held_nowhere(process, path):
    port, server = process
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with connected(port) as line:
        line.sendall(head("/review-api/tasks", "Content-Type: application/json", "Content-Length: 2") + b"{}")
        answer(line)
    before = server.memory_info().rss
    with connected(port) as line:
        line.sendall(head(path, "Content-Type: application/json", "Transfer-Encoding: chunked"))
        most = 0
        for _ in range(300 * MIB // 65536):
            line.sendall(piece)
            most = max(most, server.memory_info().rss)
        line.sendall(b"0\r\n\r\n")
        said = answer(line)
    assert said.startswith("HTTP/1.1 413") and "the most that this address takes" in said
    assert most - before < 30 * MIB


def test_a_length_that_is_too_much_is_refused_before_anything_is_sent(process):
    port, _ = process
    for path, most in (("/review-api/judge", MIB), ("/gradio_api/upload", 201 * MIB), ("/gradio_api/run/x", 4 * MIB)):
        with connected(port) as line:
            line.sendall(head(path, f"Content-Length: {most + 1}", "Expect: 100-continue"))
            said = answer(line)
            assert said.startswith("HTTP/1.1 413") and "larger than" in said and "100 Continue" not in said


def test_small_bodies_arrive_and_larger_ones_get_a_sentence(tmp_path):
    visitor = TestClient(create(tmp_path), base_url="http://127.0.0.1:7860")
    assert visitor.post("/review-api/tasks", json={"query": "x" * 1000}).status_code == 200
    for content in (b"x" * (MIB + 1), iter([b"x" * MIB, b"x"])):
        refused = visitor.post("/review-api/tasks", content=content)
        assert refused.status_code == 413 and "1 MiB" in refused.json()["error"]
        assert "content-security-policy" in refused.headers
    assert visitor.request("GET", "/", content=b"x" * 70_000).status_code == 413


def test_uploads_in_all_take_bounded_room_and_what_is_broken_off_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(outside.LARGEST, outside.UPLOAD, 200_000)
    monkeypatch.setattr(outside, "KEPT_BYTES", 250_000)
    app = create(tmp_path)
    visitor = TestClient(app, base_url="http://127.0.0.1:7860")
    inbox = app.state.context.uploads.inbox

    def kept() -> int:
        return sum(path.stat().st_size for path in inbox.rglob("*") if path.is_file())

    def send(size: int, name: str = "a.mp4", chunked: bool = False):
        content = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n' % name.encode()
        content += name.encode() * (size // len(name)) + b"\r\n--b--\r\n"
        pieces = (content[i : i + 4096] for i in range(0, len(content), 4096))
        asked = {"Content-Type": "multipart/form-data; boundary=b"}
        return visitor.post("/gradio_api/upload", content=pieces if chunked else content, headers=asked)

    assert send(100_000).status_code == 200 and 99_000 < kept() < 101_000
    assert send(199_999, chunked=True).status_code == 507, "a body without a length may be as large as allowed"
    assert send(300_000).status_code == 413 and kept() < 101_000
    assert send(100_000, "b.mp4").status_code == 200
    refused = send(100_000, "c.mp4")
    assert refused.status_code == 507 and refused.json()["error"].startswith("Too much was sent")
    assert visitor.post("/review-api/import?task=a&file=b", content=b"x" * 60_000).status_code == 507, "that too"
    monkeypatch.setattr(outside, "KEPT_BYTES", 2_000_000)
    assert send(250_000, "d.mp4", chunked=True).status_code == 413 and kept() < 201_000, "its parts are deleted"
    monkeypatch.setattr(outside, "KEPT_FILES", 2)
    assert send(10, "e.mp4").status_code == 507


# Slow clients


@pytest.fixture
def port(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.5)
    monkeypatch.setattr(connections, "BODY_SECONDS", 1.5)
    with served(tmp_path) as url:
        yield int(url.rpartition(":")[2])


def test_a_head_or_a_body_that_does_not_come_ends(port):
    silent, half, dripping = connected(port), connected(port), connected(port)
    half.sendall(b"GET / HTTP/1.1\r\nHost: loc")
    dripping.sendall(head("/review-api/tasks", "Content-Type: application/json", "Content-Length: 900"))
    began = time.monotonic()

    def drip():
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 20:
                dripping.sendall(b" ")
                time.sleep(0.2)

    threading.Thread(target=drip, daemon=True).start()
    assert answer(silent) == ""
    assert answer(half).startswith("HTTP/1.1 408")
    said = answer(dripping)
    assert said.startswith("HTTP/1.1 408") and "came too slowly" in said
    assert time.monotonic() - began < 10


def test_a_second_request_on_a_connection_gets_its_own_time_and_a_long_answer_all_of_it(port):
    asked = head("/review-api/tasks", "Content-Type: application/json", "Content-Length: 2")
    with connected(port) as line:
        for _ in range(3):
            line.sendall(asked[:20])
            time.sleep(0.9)
            line.sendall(asked[20:] + b"{}")
            assert answer(line).startswith("HTTP/1.1 200")
    with connected(port) as stream:
        stream.sendall(head("/gradio_api/heartbeat/abc", method="GET"))
        came = [stream.recv(65536)]
        time.sleep(4)
        stream.settimeout(20)
        came.append(stream.recv(65536))
    assert came[0].startswith(b"HTTP/1.1 200") and came[1] != b"", "a stream of events is not cut"


def test_connections_that_bring_nothing_keep_nobody_out(port, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60.0)
    monkeypatch.setattr(connections, "BODY_SECONDS", 60.0)
    monkeypatch.setattr(connections, "MOST", 100)
    with contextlib.ExitStack() as open_ones:
        for number in range(200):
            line = open_ones.enter_context(connected(port))
            body = number % 2 and ("Content-Type: application/json", "Content-Length: 900")
            line.sendall(head("/review-api/tasks", *(body or ()))[: None if body else -2])
            if number == 99:
                time.sleep(1.2)  # from here on the slowest are known
        for _ in range(5):
            with open_ones.enter_context(connected(port)) as line:
                line.sendall(head("/login", method="GET"))
                assert answer(line).startswith("HTTP/1.1 ")


# Names and proxies


def visitor(tmp_path, peer: str = "127.0.0.1", host: str = "127.0.0.1:7860", **settings) -> TestClient:
    app = create(tmp_path, **settings)
    return TestClient(app, base_url=f"http://{host}", follow_redirects=False, client=(peer, 1))


def test_forwarded_addresses_are_believed_of_named_proxies_only(tmp_path, monkeypatch):
    monkeypatch.setattr(login, "_SCRYPT", {"n": 2, "r": 1, "p": 1})
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    users = {"ann": hashed("correct horse")}

    def codes(proxies, forwarded) -> list[int]:
        someone = visitor(tmp_path, users=users, proxies=proxies)
        form = {"username": "ann", "password": "guess"}
        return [
            someone.post("/login", data=form, headers={"x-forwarded-for": forwarded(i)}).status_code for i in range(5)
        ]

    assert codes((), lambda i: f"10.0.0.{i}") == [401, 401, 401, 429, 429]
    assert codes(("127.0.0.1",), lambda i: f"10.0.0.{i}") == [401] * 5
    assert codes(("127.0.0.0/8",), lambda i: f"10.9.9.{i}, 10.0.0.7") == [401, 401, 401, 429, 429], (
        "a made-up beginning"
    )
    assert codes(("10.0.0.9",), lambda i: f"10.0.0.{i}") == [401, 401, 401, 429, 429], "another proxy"


def test_a_running_server_believes_no_proxy_on_its_own_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(login, "_SCRYPT", {"n": 2, "r": 1, "p": 1})
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    form = b"username=ann&password=guess"
    codes = []
    with (
        served(tmp_path, users={"ann": hashed("correct horse")}) as url,
        connected(int(url.rpartition(":")[2])) as line,
    ):
        for number in range(4):
            line.sendall(head("/login", f"X-Forwarded-For: 10.0.0.{number}", f"Content-Length: {len(form)}") + form)
            codes.append(answer(line)[9:12])
    assert codes == ["401", "401", "401", "429"]


def test_an_unknown_name_gets_a_sentence_that_names_the_option(tmp_path):
    for peer, said, proxies in (("127.0.0.1", {}, ()), ("127.0.0.1", {"x-forwarded-host": "localhost"}, ())):
        refused = visitor(tmp_path, peer, "evil.example", proxies=proxies).get("/", headers=said)
        assert refused.status_code == 400 and "--trusted-host evil.example" in refused.text
    forged = {"x-forwarded-host": "evil.example"}
    assert visitor(tmp_path, proxies=["127.0.0.1"]).get("/", headers=forged).status_code == 400
    plain = visitor(tmp_path)
    assert plain.get("/", headers=forged).status_code == 200, "not believed, so not looked at"
    assert "evil" not in plain.get("/", headers=forged | {"x-gradio-server": "https://evil.example"}).text
    asking = visitor(tmp_path, hosts=("127.0.0.1", "clips.example.org", "other.example.org:8443"))
    for host, code in {
        "CLIPS.example.org": 200,
        "clips.example.org:444": 200,
        "other.example.org:8443": 200,
        "other.example.org": 400,
        "clips.example.org.evil.example": 400,
        "evilclips.example.org": 400,
        "[::1": 400,
        "[::1]": 400,
        "": 400,
    }.items():
        assert asking.get("/theme.css", headers={"host": host}).status_code == code, host


@pytest.mark.parametrize(("option", "value"), [
    ("--proxy", "proxy.example.org"), ("--proxy", "0.0.0.0/0"), ("--proxy", "*"), ("--proxy", "::/0"), ("--proxy", ""),
    ("--trusted-host", "https://clips.example.org"), ("--trusted-host", "*.example.org"), ("--trusted-host", "a/b"),
    ("--trusted-host", ""), ("--trusted-host", "*"),
    ("--root-path", "https://clips.example.org/a"), ("--root-path", "clips"),
    ("--root-path", "/a/../b"), ("--root-path", "/a b"), ("--root-path", "/a\"b"), ("--root-path", "/traces"),
    ("--root-path", "//evil.example"),
])  # fmt: skip
def test_an_option_that_cannot_be_is_refused(tmp_path, capsys, option, value):
    assert main(["app", "--workbench", str(tmp_path), "--no-browser", option, value]) == 2
    assert option in capsys.readouterr().err


def test_a_sub_path_has_one_address_for_each_page(tmp_path):
    someone = visitor(tmp_path, root_path="/user/a%40b/")
    for asked, led in {
        "/user/a%40b?x=1": "/user/a%40b/?x=1",
        "/user/a@b/traces/?run=1": "../traces?run=1",
        "/traces/": "../traces",
    }.items():
        found = someone.get(asked)
        assert found.status_code == 308 and found.headers["location"] == led
    for path in ("/user/a%40b/traces", "/traces", "/user/a%40b/static-app/app.js", "/static-app/app.js"):
        assert someone.get(path).status_code == 200
    with pytest.raises(ConfigError, match="root-path"):
        create(tmp_path, root_path="clips")
