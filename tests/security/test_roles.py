"""Roles: what a viewer, a reviewer and a lead may do, for every way in; old lists of users go on working."""

from pathlib import Path

import pytest
from porch import live_workbench
from starlette.testclient import TestClient

from deepintuit.cli import main
from deepintuit.errors import ConfigError
from deepintuit_app import jobs, login, review
from deepintuit_app.app import create
from deepintuit_app.login import add_user, hashed, read_users
from deepintuit_app.roles import ROLES

WORDS = "correct horse"
LEADS = {"start", "begin_again", "stop_now", "write_card"}
REVIEWERS = {"save"}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """The server, a workbench behind it, and somebody of each role who is logged in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(login, "_SCRYPT", {"n": 2, "r": 1, "p": 1})
        patch.setattr(login, "SECONDS_A_TRY", 0.0)
        folder = tmp_path_factory.mktemp("roles") / "workbench"
        live_workbench(folder)
        app = create(folder, users={role: f"{hashed(WORDS)}:{role}" for role in ROLES})
        people = {role: TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) for role in ROLES}
        for role, person in people.items():
            assert person.post("/login", data={"username": role, "password": WORDS}).status_code == 303
        with people["viewer"]:  # one event loop for all its calls: the queue works in it
            yield folder, app, people


def files(folder: Path) -> set[tuple[str, int]]:
    """What stands in a workbench; indexes and caches may come and go, and locks be taken."""
    return {
        (str(path), path.stat().st_mtime_ns)
        for kind in ("jobs", "runs", "clips", "reports", "slices", "reviews")
        for path in (folder / kind).rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def fields(person: TestClient) -> list[dict]:
    return [one for one in person.get("/config").json()["dependencies"] if one["backend_fn"]]


def test_no_endpoint_of_gradio_changes_a_workbench_for_a_viewer(house):
    folder, app, people = house
    before = files(folder)
    refused = {name: set() for name in ROLES}
    events = fields(people["viewer"])
    names = {one["id"]: one["api_name"] for one in events}
    for role in ("viewer", "reviewer"):
        for one in events if role == "viewer" else [one for one in events if one["id"] in refused["viewer"]]:
            call = {"fn_index": one["id"], "data": ["report"] * len(one["inputs"]), "session_hash": f"of-{role}"}
            answer = people[role].post("/gradio_api/run/predict", json=call)
            if answer.status_code == 403:
                refused[role].add(one["id"])
                assert f"'{role}' is a {role} here" in answer.text
            named = people[role].post(f"/gradio_api/call/{names[one['id']]}", json={"data": call["data"]})
            assert named.status_code == 404, "by its name nothing can be called"
        if role == "viewer":
            assert files(folder) == before and not jobs.listed(folder)
    functions = {number: fn.fn.__name__ for number, fn in _events(app).items() if fn.fn}
    assert {functions[number] for number in refused["viewer"]} == LEADS | REVIEWERS
    assert {functions[number] for number in refused["reviewer"]} == LEADS
    assert not jobs.listed(folder)


def test_a_queued_event_of_a_wrong_role_ends_with_the_refusal(house):
    _, app, people = house
    number = next(number for number, fn in _events(app).items() if fn.fn and fn.fn.__name__ == "begin_again")
    call = {"fn_index": number, "data": ["x"], "session_hash": "queued"}
    assert people["viewer"].post("/gradio_api/queue/join", json=call).status_code == 200
    told = people["viewer"].get("/gradio_api/queue/data?session_hash=queued").text
    assert "is a viewer here" in told and '"success":false' in told.replace(" ", "")


def _events(app):
    gradio = next(route.app for route in app.routes if hasattr(getattr(route, "app", None), "get_blocks"))
    return gradio.get_blocks().fns


FORM = {"name": "all", "questions": ["verdict"], "order": "given", "reviewers": "1", "query": "split=test"}


def test_a_viewer_answers_no_review_and_a_reviewer_opens_and_decides_none(house):
    folder, app, people = house
    routes = sorted(
        route.path.removeprefix("/review-api/")
        for route in review.routes(app.state.context).routes
        if "POST" in route.methods
    )
    assert {"open", "close", "decide", "judge", "import", "tasks"} <= set(routes)

    def asked(role: str, route: str, **body) -> str:
        answer = people[role].post(f"/review-api/{route}?task=all&file=x.csv", json={"task": "all", **body})
        return answer.json().get("error", "") if answer.status_code == 400 else ""

    viewer = {route for route in routes if "is a viewer here" in asked("viewer", route)}
    assert viewer == {*routes} - {"tasks"}
    reviewer = {route for route in routes if "is a reviewer here" in asked("reviewer", route)}
    assert reviewer >= {"open", "close", "decide", "import", "lead", "count"}
    assert not reviewer & {"tasks", "start", "next", "judge", "draft", "skip", "undo"}
    assert "is a reviewer here" in asked("reviewer", "start", view="decide")
    assert "is a reviewer here" in asked("reviewer", "next", decide=True)
    assert people["reviewer"].get("/review-api/export?task=all&form=csv").status_code == 400
    assert "is a lead" not in asked("lead", "open", **FORM)


def test_forms_that_start_jobs_are_for_leads_and_refused_to_others(house, monkeypatch):
    folder, _, people = house
    calls = []
    monkeypatch.setattr(jobs, "launch", lambda *given, **about: calls.append(about))
    for role, person in people.items():
        assert ("<form" in person.get("/").text) == (role == "lead")
        answer = person.post("/jobs", data={"stage": "report", "dataset": "porch"})
        assert (answer.status_code, len(calls)) == ((303, 1) if role == "lead" else (400, 0))
        assert role == "lead" or not jobs.listed(folder)


def test_pages_say_the_role_and_hide_by_it(house):
    _, _, people = house
    for role, person in people.items():
        html = person.get("/runs", headers={"accept": "text/html"}).text
        assert f'data-role="{role}"' in html and (f"({role})" in html) == (role != "lead")


def test_a_line_without_a_role_is_a_leads_and_a_changed_role_ends_the_session(tmp_path, monkeypatch):
    monkeypatch.setattr(login, "_SCRYPT", {"n": 2, "r": 1, "p": 1})
    path = tmp_path / "users"
    path.write_text(f"ann:{hashed(WORDS)}\n")
    assert login.parted(read_users(path)["ann"])[1] == "lead"
    add_user(path, "bob", WORDS, "viewer")
    add_user(path, "bob", WORDS)
    assert login.parted(read_users(path)["bob"])[1] == "viewer", "a new password leaves the role"
    path.chmod(0o600)
    door = login.Login(None, login.Users(path))
    scope = {"headers": [(b"cookie", f"{login.COOKIE}={door._session('bob', read_users(path)['bob'])}".encode())]}
    assert door._user(scope)[0::2] == ("bob", "viewer")
    add_user(path, "bob", WORDS, "lead")
    assert door._user(scope)[0] is None


@pytest.mark.parametrize("role", ["Lead", "admin", "lead:viewer", "viewer "])
def test_a_role_that_is_none_is_named(tmp_path, role):
    path = tmp_path / "users"
    path.write_text(f"ann:{hashed(WORDS)}:{role}:\n" if ":" in role else f"ann:{hashed(WORDS)}:{role}x\n")
    with pytest.raises(ConfigError, match="there are viewer, reviewer, lead"):
        read_users(path)
    assert main(["app", "--auth", str(path), "--add-user", "bob", "--role", role]) == 2
