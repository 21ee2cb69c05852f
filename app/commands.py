"""`deepintuit app`."""

from __future__ import annotations

import argparse
import getpass
import sys
import threading
import time
from pathlib import Path

from deepintuit import worlds
from deepintuit.command import named_workbench, port, workbench_option
from deepintuit.config import Config
from deepintuit.errors import ConfigError
from deepintuit_app.roles import ROLES


def add_app(commands) -> None:
    about = "the dashboard: watch a clip being reasoned about, browse traces, find where classes fail"
    parser = commands.add_parser("app", help=about, example="app --workbench demo --port 8000")
    workbench_option(parser)
    option = parser.add_argument
    option("--host", default="127.0.0.1", help="another address than this machine's own needs --auth")
    option("--port", type=port, default=7860, help="0: any that is free (default: %(default)s)")
    option("--auth", metavar="FILE", help="ask for a login; one `name:hash:role` per line, written by --add-user")
    option("--add-user", metavar="NAME", help="ask for a password, write it hashed into the --auth file, and end")
    about = "with --add-user: a viewer looks, a reviewer reviews too, a lead does all (default for a new name)"
    option("--role", choices=ROLES, help=about)
    about = "a name that browsers know the proxy before it by (repeatable)"
    option("--trusted-host", metavar="NAME", action="append", default=[], help=about)
    option("--root-path", metavar="/PATH", default="", help="the sub-path that a proxy shows it under")
    about = "whose X-Forwarded-For, -Proto and -Host are believed (repeatable; default: nobody's)"
    option("--proxy", metavar="ADDRESS", action="append", default=[], help=about)
    about = "a folder that pages may import clips from (repeatable; default without a login: the current one)"
    option("--clips-from", metavar="DIR", action="append", default=[], help=about)
    about = "a teacher that pages may ask, and the environment variable that holds its key (repeatable)"
    option("--endpoint", metavar="URL=NAME", action="append", default=[], help=about)
    option("--no-browser", action="store_true", help="do not open a browser")
    about = "a stage with its options, started as a job once the dashboard is there (last on the line)"
    option("--start", metavar="STAGE", nargs=argparse.REMAINDER, default=[], help=about)
    parser.set_defaults(run=_app)


def _app(options) -> int:
    try:
        from deepintuit_app import login
        from deepintuit_app.app import serve
        from deepintuit_app.sources import Sources
    except ImportError as error:
        raise ConfigError(
            f"the dashboard cannot start ({error})",
            "it needs the packages of the extra 'app'",
            "Install them: pip install 'deepintuit[app]'",
        ) from error
    if options.add_user:
        if not options.auth:
            raise ConfigError("--add-user without --auth", "there is no file to write to", "Add --auth FILE")
        login.add_user(
            options.auth, options.add_user, getpass.getpass(f"Password for {options.add_user}: "), options.role
        )
        return 0
    place = Path(named_workbench(options) or Config().workbench).expanduser().absolute()
    if not place.is_dir() and options.workbench is None and (example := worlds.example(place)):
        place = example
    if not place.is_dir():
        raise ConfigError(
            f"there is no workbench at {str(place)!r}",
            "the dashboard shows what is in one",
            "Make one with `deepintuit demo`, or name another with --workbench",
        )
    users = login.Users(options.auth) if options.auth is not None else None
    serve(
        place,
        host=options.host,
        port=options.port,
        users=users,
        trusted_hosts=options.trusted_host,
        proxies=options.proxy,
        root_path=options.root_path,
        sources=Sources.of(options.clips_from, options.endpoint, login=users is not None),
        open_browser=not options.no_browser,
        on_ready=(lambda: _start(place, options.start)) if options.start else None,
    )
    return 0


def _start(place: Path, words: list[str]) -> None:
    """Start a stage as a job, and say here what it ended with."""
    from deepintuit_app import jobs

    command = [sys.executable, "-m", "deepintuit.cli", *words, f"--workbench={place}"]
    job = jobs.launch(place, command, stage=words[0], title=" ".join(words))
    print(f"`deepintuit {' '.join(words)}` runs as a job: see Runs, where it can be stopped.", flush=True)

    def follow() -> None:
        while jobs.find(place, job.id).active:
            time.sleep(1)
        print(f"\n{jobs.tail(place, job.id)}\nThe job {jobs.STATUSES[jobs.find(place, job.id).status]}.", flush=True)

    threading.Thread(target=follow, daemon=True).start()
