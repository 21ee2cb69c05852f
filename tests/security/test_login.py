"""The login: who may have it, who is let in while others attack, what a session ends with, whom nobody can log out."""

import asyncio
import os
import re
import threading
import time

import httpx
import pytest
from apart import run_apart
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from deepintuit.cli import main
from deepintuit.errors import ConfigError
from deepintuit_app import login
from deepintuit_app.app import create
from deepintuit_app.login import Login, Throttle, Users, add_user, hashed, network, read_users

WORDS = "correct horse"
PAGE = {"accept": "text/html"}


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Hashes that cost little: what is tested is who may try, not how long one try takes."""
    monkeypatch.setattr(login, "_SCRYPT", {"n": 2, "r": 1, "p": 1})
    monkeypatch.setattr(login, "SECONDS_A_TRY", 0.0)


@pytest.fixture
def ann() -> dict[str, str]:
    return {"ann": hashed(WORDS)}


def door(users) -> Login:
    """The login before a page that says who asks."""

    async def page(scope, receive, send):
        await PlainTextResponse(str(scope.get("deepintuit_user")))(scope, receive, send)

    return Login(page, users)


def visitor(app: Login, address: str = "10.0.0.1") -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1", follow_redirects=False, client=(address, 5000))


def log_in(someone, name: str = "ann", password: str = WORDS, **more):
    return someone.post("/login", data={"username": name, "password": password}, **more)


# The list of users


@pytest.mark.parametrize(("content", "why"), [
    (b"", "names no user"), (b"# ann:\n\n  \n", "names no user"), (b"\xef\xbb\xbf# nobody", "names no user"),
    (b"\xef\xbb\xbf", "byte-order mark and nothing else"),
    (b"\xff\xfea\x00n\x00n\x00:\x00", "never kept as they are"), (b"ann:secret\n", "never kept as they are"),
    ("ann:x".encode("utf-16"), "never kept as they are"), (b"ann:\0", "NUL bytes"), (None, "cannot be read"),
])  # fmt: skip
def test_a_list_that_names_nobody_or_cannot_be_read_starts_no_server(tmp_path, capsys, content, why):
    path = tmp_path / "users"
    if content is not None:
        path.write_bytes(content)
    (tmp_path / "workbench").mkdir()
    for given in (path, tmp_path) if content is None else (path,):  # missing, and a folder
        asked = ["app", "--workbench", str(tmp_path / "workbench"), "--auth", str(given), "--no-browser"]
        assert main(asked) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert why in said and ("--add-user" in said)


def test_an_option_without_a_file_name_is_no_wish_for_no_login(tmp_path):
    (tmp_path / "workbench").mkdir()
    assert main(["app", "--workbench", str(tmp_path / "workbench"), "--auth", "", "--no-browser"]) == 2


def test_an_empty_list_given_to_the_server_is_not_no_login(tmp_path):
    with pytest.raises(ConfigError, match="nobody could log in"):
        create(tmp_path, users={})


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    one, two = hashed(WORDS), hashed("another one")
    path = tmp_path / "users"
    path.write_bytes(f"\ufeffann:{one}\r\n # a comment\r\nbob:{two}\r\n".encode())
    assert read_users(path) == {"ann": one, "bob": two}
    path.write_bytes(f"ann:{one}\nbob:{two}\nann:{two}\n".encode())
    with pytest.raises(ConfigError, match="line 3 .*twice"):
        read_users(path)


def test_a_changed_password_changes_one_line_and_comments_stay(tmp_path):
    path = tmp_path / "users"
    path.write_text("# of the team\n")
    for name in ("ann", "bob", "ann"):
        add_user(path, name, "correct horse " + name)
    assert path.read_text().startswith("# of the team\n") and list(read_users(path)) == ["bob", "ann"]
    for name in ("#ann", "ann\u2028bob", "ann\u00a0", " ann", "a\x85"):
        with pytest.raises(ConfigError, match="user name"):
            add_user(path, name, "correct horse")


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_a_list_that_all_may_read_is_told_and_one_that_all_may_write_is_refused(tmp_path, capsys):
    path = tmp_path / "users"
    add_user(path, "ann", WORDS)
    Users(path)
    assert capsys.readouterr().err == ""
    path.chmod(0o644)
    Users(path)
    assert "chmod 600" in capsys.readouterr().err
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="everybody on this machine can write"):
        Users(path)


# Sessions


def test_who_is_taken_out_of_the_list_or_gets_another_password_is_out(tmp_path):
    path = tmp_path / "users"
    for name in ("ann", "bob"):
        add_user(path, name, WORDS)
    app = door(Users(path))
    ann, bob = visitor(app), visitor(app)
    assert log_in(ann).status_code == log_in(bob, "bob").status_code == 303
    add_user(path, "bob", "another one")
    assert ann.get("/").text == "ann" and bob.get("/").status_code == 401
    assert log_in(bob, "bob").status_code == 401 and log_in(bob, "bob", "another one").status_code == 303
    path.write_text("".join(line for line in path.open() if not line.startswith("bob")))
    assert bob.get("/").status_code == 401 and log_in(bob, "bob", "another one").status_code == 401
    path.write_text("ann:damaged\n")
    assert ann.get("/").text == "ann", "a damaged list changes nothing"
    path.write_text("")
    assert ann.get("/").status_code == 401, "an empty one means nobody"


def test_sessions_take_bounded_memory_and_nobody_pushes_others_out(ann, monkeypatch):
    monkeypatch.setattr(login, "SESSIONS_OF_ONE", 3)
    app = door(ann | {"bob": hashed(WORDS)})
    bob = visitor(app)
    log_in(bob, "bob")
    people = [visitor(app) for _ in range(5)]
    assert all(log_in(one).status_code == 303 for one in people)
    assert [one.get("/").status_code for one in people] == [401, 401, 200, 200, 200] and bob.get("/").text == "bob"
    monkeypatch.setattr(login, "SESSIONS", 2)
    assert log_in(visitor(app)).status_code == 303 and len(app._sessions) <= 4


def test_a_login_gives_a_token_of_its_own_whatever_cookie_came(ann):
    app = door(ann)
    chosen = {"cookie": f"{login.COOKIE}=chosen-by-another; {login.COOKIE}="}
    answer = log_in(visitor(app), headers=chosen)
    assert answer.status_code == 303 and "chosen-by-another" not in answer.headers["set-cookie"]
    assert visitor(app).get("/", headers=chosen).status_code == 401


def test_cookies_are_for_the_sub_path_and_for_https_where_the_page_is(tmp_path, ann):
    for root, origin, secure in (("", None, False), ("/clips", "https://clips.example.org", True)):
        app = create(tmp_path, ann, ("clips.example.org",), root_path=root)
        someone = TestClient(app, base_url="http://clips.example.org", follow_redirects=False)
        answer = log_in(someone, headers={"origin": origin} if origin else {})
        cookies = answer.headers.get_list("set-cookie")
        assert len(cookies) == 2
        for cookie in map(str.lower, cookies):
            assert f"path={root or '/'};" in cookie and "httponly" in cookie and "samesite=lax" in cookie
            assert ("secure" in cookie) == secure


def test_another_site_can_log_nobody_in_or_out(tmp_path, ann):
    someone = TestClient(create(tmp_path, ann), base_url="http://127.0.0.1:7860", follow_redirects=False)
    assert log_in(someone).status_code == 303
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "http://[::1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert log_in(someone, headers=headers).status_code == 403
        assert someone.post("/logout", headers=headers).status_code == 403
    assert someone.get("/logout", headers=PAGE).status_code == 200
    assert someone.get("/theme.css").status_code != 401
    form = re.search(r'action="([^"]*)"', someone.get("/logout").text)[1]
    assert someone.post(form, headers={"sec-fetch-site": "same-origin"}).status_code == 303
    assert someone.get("/theme.css").status_code == 401


# Guesses


@pytest.mark.thorough
def test_an_owner_gets_in_while_a_thousand_addresses_guess_and_the_guesses_are_few(ann, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(login, "Throttle", lambda: Throttle(lambda: now[0]))
    app = door(ann)
    tried: list[str] = []

    async def post(address: str, password: str) -> int:
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as someone:
            answer = await log_in(someone, password=password)
        if password != WORDS and answer.status_code == 401:
            tried.append(address)
        return answer.status_code

    async def hour(number: int) -> list[int]:
        """Every address guesses four times; all through it the owner comes from ten new ones, each once."""
        attack = [post(f"10.1.{i // 250}.{i % 250}", f"guess {n}") for n in range(4) for i in range(1000)]
        owner = [post(f"192.0.{number}.{i}", WORDS) for i in range(10)]
        step = len(attack) // len(owner)
        mixed = [one for i, own in enumerate(owner) for one in (*attack[i * step : (i + 1) * step], own)]
        answers = await asyncio.gather(*map(asyncio.create_task, mixed))
        return answers[step :: step + 1]

    for number in range(3):
        assert run_apart(hour(number)) == [303] * 10
        most = 1000 * login.FREE + (login.NAME_FREE + number * login.NAME_AN_HOUR)
        assert 1000 <= len(tried) <= most
        now[0] += 3600


def test_a_known_browser_or_address_does_not_wait_for_what_strangers_did(ann):
    now = [0.0]
    app = door(ann)
    app.throttle = Throttle(lambda: now[0])
    at_home, away = visitor(app, "10.0.0.1"), visitor(app, "10.0.0.2")
    assert log_in(at_home).status_code == log_in(away).status_code == 303
    away.cookies.delete(login.COOKIE)
    for address in ("10.0.0.2", "10.0.0.3"):
        stranger = visitor(app, address)
        while log_in(stranger, password="guess").status_code != 429:
            pass
    assert log_in(visitor(app, "10.0.0.3")).status_code == 429, "the address of an attacker, and nothing known"
    assert log_in(visitor(app, "10.0.0.1")).status_code == 303, "a known address"
    away_at = TestClient(
        app, base_url="http://127.0.0.1", follow_redirects=False, client=("10.0.0.3", 1), cookies=away.cookies
    )
    assert log_in(away_at).status_code == 303, "a known browser at an attacker's address"
    assert [log_in(away_at, password="guess").status_code for _ in range(4)] == [401, 401, 401, 429]
    now[0] += 1.1
    assert log_in(away_at).status_code == 303, "a stolen browser is slowed down too"


def test_a_cookie_of_a_browser_counts_for_its_name_and_password_only(ann):
    users = ann | {"bob": hashed(WORDS)}
    app = door(users)
    someone = visitor(app)
    log_in(someone)
    device = someone.cookies[login.DEVICE]
    assert login._belongs(device, users["ann"]) and not login._belongs(device, users["bob"])
    assert not login._belongs(device, hashed(WORDS)), "another password, another salt"
    about, _, signature = device.rpartition(".")
    old = f"{int(time.time()) - 366 * 86_400}.x"
    for forged in (
        f"{about}.",
        f".{signature}",
        signature,
        "",
        "..",
        f"{about}x.{signature}",
        "é.é",
        "9" * 99 + ".x.y",
    ):
        assert not login._belongs(forged, users["ann"])
    assert not login._belongs(login._device(users["ann"], old), users["ann"])


def test_pauses_double_to_five_minutes_and_belong_to_one_network():
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    place, friend = throttle.place("2001:db8::1", "ann")
    assert place == throttle.place("2001:db8::ffff:1%eth0", "bob")[0] and not friend
    waits = []
    for _ in range(14):
        assert throttle.enter(place, "ann") == 0
        waits.append(throttle.enter(place, "ann") if throttle.failures(place) >= login.FREE else 0)
        now[0] += waits[-1]
    assert waits[:6] == [0, 0, 1, 2, 4, 8] and waits[-1] == login.LONGEST
    assert throttle.enter(throttle.place("2001:db8:0:1::1", "ann")[0], "ann") == 0, "the next /64"
    now[0] += 86_401
    assert [throttle.enter(place, "ann") for _ in range(3)] == [0, 0, 0], "forgotten after a day"
    assert network("::ffff:10.0.0.1") == network("10.0.0.1") == "10.0.0.1" and len(network("x" * 999)) == 64


def test_a_right_login_does_not_wipe_out_guesses_at_another_name(ann):
    app = door(ann | {"eve": hashed("her own words")})
    stranger = visitor(app)
    codes = []
    for _ in range(4):
        codes.append(log_in(stranger, password="guess").status_code)
        log_in(stranger, "eve", "her own words")
    assert codes == [401, 401, 401, 429]


def test_what_is_remembered_of_attackers_is_bounded(monkeypatch):
    monkeypatch.setattr(login, "ADDRESSES", 100)
    throttle = Throttle()
    for i in range(1000):
        throttle.enter(f"10.0.{i // 250}.{i % 250}", f"name {i}")
        throttle.passed(f"10.1.{i // 250}.{i % 250}", f"name {i}", True, "10.0.0.1")
    assert len(throttle._failed) == len(throttle._friends) == 100 and len(throttle._budgets) == 1024


def test_names_that_do_not_exist_cost_and_say_the_same(ann, monkeypatch):
    checked = []
    matches = login.matches
    monkeypatch.setattr(login, "matches", lambda password, stored: checked.append(stored) or matches(password, stored))
    app = door(ann)
    told = []
    for address, name in (("10.0.0.1", "ann"), ("10.0.0.2", "nobody")):
        answers = [log_in(visitor(app, address), name, "guess") for _ in range(5)]
        told.append([(one.status_code, one.text) for one in answers])
    assert told[0] == told[1] and len(checked) == 6 and len(set(map(len, checked))) == 1


def test_few_passwords_are_checked_at_a_time_and_first_tries_go_first(ann, monkeypatch):
    running, most, order, lock = 0, 0, [], threading.Lock()

    def slow(password, stored):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
            order.append(password)
        return False

    monkeypatch.setattr(login, "matches", slow)
    monkeypatch.setattr(login, "IN_LINE", 8)
    line = login._Line()

    async def all_at_once():
        tries = [line.matches(f"again {i}", "", 2, False) for i in range(12)] + [line.matches("first", "", 0, False)]
        return await asyncio.gather(*tries)

    answers = run_apart(all_at_once())
    assert most == login.AT_ONCE and order.index("first") < 2 * login.AT_ONCE
    assert answers.count(None) == 12 + 1 - login.AT_ONCE - 8 and answers[-1] is False
