"""The dashboard behind a real reverse proxy with TLS: every page, under a sub-path and not, whatever it rewrites."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import Site, serve
from porch import until

from deepintuit_app.login import hashed

PROXY = Path(__file__).parents[1] / "proxy.py"
NAME = "clips.localhost"
"""A name that Chromium finds on this machine, and that is not this machine's own."""
WAYS = {
    "host kept, sub-path taken off": ("/clips", "strip", "keep", "forward"),
    "host kept, at the root": ("", "leave", "keep", "silent"),
    "host rewritten, at the root": ("", "leave", "rewrite", "silent"),
    "host rewritten, sub-path taken off": ("/clips", "strip", "rewrite", "silent"),
    "host rewritten and forwarded, sub-path left": ("/clips", "leave", "rewrite", "forward"),
    "JupyterHub, /proxy/": ("/user/a%40b/proxy/7860", "strip", "keep", "forward"),
    "JupyterHub, /proxy/absolute/": ("/user/a%40b/proxy/absolute/7860", "leave", "keep", "forward"),
    "nginx, sub-path taken off": ("/clips", "strip", "keep", "forward"),
    "nginx, sub-path left": ("/clips", "leave", "keep", "forward"),
}
NGINX = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
DOCUMENTED = re.search("```nginx\n(.*?)```", (Path(__file__).parents[2] / "docs" / "app.md").read_text(), re.DOTALL)[1]
CONFIG = """daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
uwsgi_temp_path {folder}; scgi_temp_path {folder};
server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
{location} }} }}"""


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "certificate.pem"]
    subprocess.run([*made, *files], check=True, capture_output=True, timeout=60)
    return str(folder / "certificate.pem"), str(folder / "key.pem")


@contextlib.contextmanager
def behind(site: Site, certificate: tuple[str, str], way: str, **settings) -> Iterator[str]:
    """The dashboard of the site with a proxy before it; the address that a browser opens, without a '/' at its end."""
    prefix, *rules = WAYS[way]
    settings = {"hosts": ("127.0.0.1", "localhost", NAME), "root_path": prefix, **settings}
    if "forward" in rules:
        settings["proxies"] = ["127.0.0.1"]
    with serve(site.workbench.path, **settings) as inside:
        if way.startswith("nginx"):
            with nginx(inside, certificate, "strip" in rules) as port:
                yield f"https://{NAME}:{port}{prefix}"
            return
        command = [sys.executable, PROXY, *certificate, str(urlsplit(inside).port), prefix, *rules]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
            try:
                yield f"https://{NAME}:{int(proxy.stdout.readline())}{prefix}"
            finally:
                proxy.terminate()


@contextlib.contextmanager
def nginx(inside: str, certificate: tuple[str, str], strips: bool) -> Iterator[int]:
    """nginx as the documentation sets it up; its port."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        location = DOCUMENTED.replace("http://127.0.0.1:7860/", f"{inside}/" if strips else inside)
        names = dict(zip(("certificate", "key"), certificate))
        (config := Path(folder) / "nginx.conf").write_text(
            CONFIG.format(folder=folder, port=port, location=location, **names)
        )
        with subprocess.Popen([NGINX, "-p", folder, "-c", config], stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: reached(port) or process.poll() is not None, 30)
                assert process.poll() is None, (Path(folder) / "error.log").read_text()
                yield port
            finally:
                process.terminate()


def reached(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@pytest.fixture
def visit(browser):
    """A page that notes what goes wrong on it (`page.wrong`) and what it asks for (`page.asked`)."""
    context = browser.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(45_000)
    page.wrong, page.asked = [], []
    page.on("pageerror", lambda error: page.wrong.append(str(error)) if _LEFT not in str(error) else None)
    page.on(
        "console",
        lambda said: (
            page.wrong.append(f"{said.text} {said.location}") if said.type == "error" and not _left(said) else None
        ),
    )
    page.on(
        "response", lambda answer: page.wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
    )
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    context.close()


def _left(said) -> bool:
    """Whether it says only that a page was left while a stream of events was open, or asks the host for its icon,
    as browsers do unasked."""
    left = "Connection errored out" in said.text or said.text.startswith(_LEFT)
    return left or said.location["url"].endswith("/favicon.ico")


_LEFT = "AbortError"
"""What Gradio's client throws, or says, of a request that it gives up when its page is left."""


def replayed(page, site: Site, url: str) -> None:
    """Opens a trace in Watch and replays it to its end."""
    page.goto(f"{url}/?clip={site.clips[0]}&trace={site.traces['refined-0']}")
    page.wait_for_function("document.querySelector('video#player')?.readyState >= 2")
    page.click("#replay")
    page.wait_for_function("document.querySelector('#trace')?.innerText.includes('So it looks like delivery')")
    page.wait_for_function("[...document.querySelectorAll('#screen img')].every((one) => one.complete)")


PAGES = {
    "traces": "#traces-list button.open",
    "review": "#review form, #review table",
    "errors": ".confusion",
    "runs": "#runs-list tbody tr",
    "sql": "#sql-box textarea",
}


@pytest.mark.parametrize(("way", "names"), [
    ("JupyterHub, /proxy/absolute/", list(PAGES)),
    pytest.param("host kept, sub-path taken off", ["review"], marks=pytest.mark.thorough),
    pytest.param("host rewritten, at the root", ["runs"], marks=pytest.mark.thorough),
])  # fmt: skip
def test_pages_work_and_a_trace_is_replayed(visit, site: Site, certificate, way: str, names: list[str]):
    page = visit
    with behind(site, certificate, way) as url:
        replayed(page, site, url)
        for name in names:
            page.locator("nav a, .nav-holder a").get_by_text(
                name if name != "sql" else "SQL", exact=False
            ).first.click()
            page.wait_for_url(f"{url}/{name}*")
            page.locator(PAGES[name]).first.wait_for()
        page.goto(f"{url}/traces/?run={site.runs['grpo']}")
        page.locator("#traces-list button.open").first.click()
        page.wait_for_function("document.querySelector('#traces-detail video')?.readyState >= 2")
        page.locator("#traces-detail a", has_text="Open in Watch").click()
        page.wait_for_function("document.querySelector('video#player')?.readyState >= 2")
        assert page.wrong == []
        assert all(asked.startswith((f"{url}/", "data:", "blob:")) for asked in page.asked), "outside the sub-path"
        page.close()  # before the server, whose end it would note


def test_a_login_behind_a_proxy_leads_back_and_its_cookies_stay_there(visit, site: Site, certificate):
    page, way = visit, "JupyterHub, /proxy/"
    with behind(site, certificate, way, users={"ann": hashed("correct horse")}) as url:
        page.goto(f"{url}/runs?run={site.runs['grpo']}")
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password").fill("correct horse")
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{url}/runs?run={site.runs['grpo']}*")
        page.locator("#runs-list").wait_for(state="attached")
        cookies = page.context.cookies()
        assert len(cookies) == 2
        assert {(one["path"], one["secure"], one["httpOnly"]) for one in cookies} == {(WAYS[way][0], True, True)}
        page.goto(f"{url}/logout")
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url(f"{url}/login")
        assert page.wrong == []
        page.close()


@pytest.mark.parametrize("way", list(WAYS))
def test_pages_files_and_judgements_pass_and_other_sites_do_not(site: Site, certificate, way: str):
    trusting = ssl._create_unverified_context()

    def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
        port = urlsplit(url).port
        headers = {"Host": f"{NAME}:{port}", "Content-Type": "application/json", **headers}
        request = urllib.request.Request(url.replace(NAME, "127.0.0.1"), data, headers)
        try:
            with urllib.request.urlopen(request, context=trusting, timeout=60) as answer:
                return answer.status, answer.read(2_000_000).decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with behind(site, certificate, way) as url:
        origin = url[: len(url) - len(WAYS[way][0])]
        for path in ("/", "/traces", "/static-app/app.js", f"/media/clip/{site.clips[0]}", "/theme.css", "/config"):
            assert ask(url + path)[0] == 200, path
        assert ask(f"{url}/review-api/tasks", b"{}", Origin=origin)[0] == 200
        assert ask(f"{url}/review-api/tasks", b"{}", Origin="https://evil.example")[0] == 403
        assert ask(f"{url}/review-api/tasks", b"{}", Origin=origin, **{"Sec-Fetch-Site": "same-site"})[0] == 403
        code, said = ask(f"{url}/", Host="evil.example")
        if "rewrite" not in WAYS[way] or "forward" in WAYS[way]:
            assert code == 400 and "--trusted-host evil.example" in said
