"""`deepintuit serve`: a trained system behind HTTP, until it is stopped."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path

from deepintuit.command import common, console, opened, port
from deepintuit.errors import ConfigError, DataError
from deepintuit_clips.predict_command import abstaining, say_of

KEYS = "DEEPINTUIT_SERVE_KEY"
"""The environment variable with the key, or several with white space between them."""
SHORTEST_KEY = 16


def add(commands) -> None:
    """The command's parser."""
    help_text, example = "answer clips over HTTP, as `predict` does", "serve RUN --port 8080 --root videos"
    parser = common(commands.add_parser("serve", help=help_text, example=example, settings="predict"))
    option = parser.add_argument
    option("system", metavar="RUN", help="a calibrate run, or a coldstart or grpo run (its calibrator)")
    option("--host", default="127.0.0.1", help=f"another address than this machine's own needs a key in {KEYS}")
    option("--port", type=port, default=8080, help="0: any that is free (default: %(default)s)")
    option("--root", metavar="DIR", help="clips below it may be named by path instead of sent")
    option("--queue", type=int, metavar="N", default=64, help="clips that may wait; 429 beyond (default 64)")
    option("--most-mib", type=int, metavar="N", default=200, help="largest clip that may be sent (default 200)")
    option("--grace", type=int, metavar="SECONDS", default=30, help="for what is being answered when it is stopped")
    abstaining(parser)
    parser.set_defaults(run=_serve)


def _serve(options) -> int:
    keys, root = _keys(), _root(options.root)
    for name in ("queue", "most_mib", "grace"):
        if getattr(options, name) < 1:
            option = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise ConfigError(option, "nothing could be answered", "Give a whole number of 1 or more")
    if not keys and not _loopback(options.host):
        raise ConfigError(
            f"--host {options.host} without a key",
            "whoever reaches this machine could have clips answered, and read those below --root",
            f"Export a key as {KEYS}, or leave --host out",
        )
    from deepintuit_clips.predict import Predictor

    workbench, settings = opened(options)
    predictor = Predictor(workbench, options.system, settings)
    rules = predictor.rules(options.threshold, options.risk, options.false_alarms)
    say_of(predictor, options, rules)
    if options.dry_run:
        console.print(f"deepintuit serve {predictor.system} in {workbench.path}", markup=False)
        console.print("Nothing was run (--dry-run).")
        return 0
    with _bound(options.host, options.port) as at:
        from deepintuit_clips.serve.http import create, listen

        predictor.models  # noqa: B018  loaded before anybody can ask
        most = options.most_mib << 20
        api = create(predictor, rules, keys=keys, root=root, places=options.queue, most_bytes=most)
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{host}:{at.getsockname()[1]}"
        print(f"{predictor.system} answers at {address}/predict; {address}/docs says how.", flush=True)
        print(f"{options.queue} clips may wait. " + ("A key is needed." if keys else "No key is needed."), flush=True)
        listen(api, at, options.grace)
    return 0


def _keys() -> list[str]:
    keys = os.environ.get(KEYS, "").split()
    if KEYS in os.environ and (not keys or not all(re.fullmatch(rf"[!-~]{{{SHORTEST_KEY},}}", key) for key in keys)):
        raise ConfigError(
            f"the key in {KEYS}",
            f"a key has {SHORTEST_KEY} or more letters, digits and signs of ASCII, since short ones are guessed",
            'Make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"',
        )
    return keys


def _root(folder: str | None) -> Path | None:
    if folder is not None and not os.path.isdir(folder):
        raise DataError(f"--root {folder!r}", "it is no folder", "Name the folder that holds the clips")
    return Path(folder).resolve() if folder is not None else None


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    at = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        at.bind((host, port))
    except (OSError, OverflowError) as error:
        at.close()
        why = f"it cannot be listened on ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(f"port {port} on {host}", why, "Name another with --port") from error
    return at
