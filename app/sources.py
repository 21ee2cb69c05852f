"""What a page may name beyond the workbench: folders that clips are imported from, and endpoints that teach.

    sources = Sources.of(["videos"], ["https://llm.example.org/v1=LLM_KEY"], login=True)
    sources.place("kitchen")                # the folder videos/kitchen, if it is there
    sources.key_variable("https://llm.example.org/v1")

Who may open the page need not be allowed to read the server's disk, nor to send its keys anywhere: a folder lies in one
that the dashboard was started with, links resolved, and a key goes to its own provider only. Keys stay in the
environment; a page learns whether there is one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepintuit.errors import ConfigError, DataError, TeachError, nearest

PROVIDERS = {
    "https://generativelanguage.googleapis.com/v1beta/openai": "GEMINI_API_KEY",
    "https://api.openai.com/v1": "OPENAI_API_KEY",
    "https://openrouter.ai/api/v1": "OPENROUTER_API_KEY",
}
"""Address of an endpoint → the variable of the environment that holds its key."""
OTHER_KEY = "DEEPINTUIT_ENDPOINT_KEY"
"""The variable of an endpoint that was typed into the page; a server of one's own mostly needs none."""
TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl"}
_MOST = 100


@dataclass(frozen=True)
class Sources:
    """`folders`: those that clips may be imported from; `endpoints`: address → variable of its key; `others`: whether
    further endpoints may be typed."""

    folders: tuple[Path, ...] = ()
    endpoints: Mapping[str, str] = ()
    others: bool = True

    @classmethod
    def of(cls, folders: Sequence[str | Path], endpoints: Sequence[str], login: bool) -> Sources:
        """By the options of `deepintuit app`. Without folders it is the one that the server was started in, if nobody
        logs in. ConfigError for what is no folder, address or name of a variable."""
        variables = dict(PROVIDERS)
        for text in endpoints:
            address, _, variable = text.partition("=")
            if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", address):
                why = "an endpoint is an http(s) address without a key, a name or a query in it"
                raise ConfigError(f"--endpoint {text}", why, "Write it like https://llm.example.org/v1=LLM_KEY")
            if variable and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
                why = "behind the '=' stands the NAME of the environment variable that holds the key, never the key"
                raise ConfigError(f"--endpoint {address}=…", why, "Name it in capitals, like LLM_KEY")
            variables[address.rstrip("/")] = variable or OTHER_KEY
        here = Path.cwd()
        if not folders and not login and here != Path(here.anchor):
            folders = [here]
        for folder in folders:
            if not Path(folder).expanduser().is_dir():
                why = "clips are imported from folders below it, and it is none"
                raise ConfigError(f"--clips-from {folder}", why, "Name a folder that is there")
        return cls(tuple(Path(folder).expanduser().resolve() for folder in folders), variables, not login)

    def place(self, text: str) -> Path:
        """The folder or table that a page names, absolute or below one of the folders. DataError for another."""
        if not self.folders:
            why = "this dashboard was started without a folder that pages may import from"
            raise DataError("the import of clips", why, "Start it with --clips-from DIR, or import on the command line")
        name = text.strip()
        if not name or "\0" in name:
            raise DataError("no folder came", "there is nothing to import then", "Name a folder of class folders")
        path = next(filter(None, (self._resolved(root / os.path.expanduser(name)) for root in self.folders)), None)
        if path is None:
            allowed = ", ".join(root.name for root in self.folders)
            why = f"no such folder or table lies in {allowed}, where this dashboard may import from"
            similar = nearest(name, self.offered())
            todo = f"Nearest: {similar!r}" if similar else "Name one below it, or start the dashboard with --clips-from"
            raise DataError(f"{name[:200]!r}", why, todo)
        if path.is_file() and path.suffix.lower() not in TABLES:
            why = "clips come from a folder of class folders, or from a table"
            raise DataError(f"{name[:200]!r}", why, f"Name a folder, or a file that ends in {', '.join(TABLES)}")
        return path

    def _resolved(self, path: Path) -> Path | None:
        """Where it is, links followed; None where that is nothing, or not below an allowed folder."""
        try:
            path = path.resolve(strict=True)
        except (OSError, RuntimeError):  # a loop of links is the latter before Python 3.13
            return None
        return path if any(path.is_relative_to(root) for root in self.folders) else None

    def offered(self) -> list[str]:
        """Folders and tables directly below the allowed ones, as a page may name them."""
        names = (
            entry.name
            for root in self.folders
            for entry in sorted(root.iterdir())
            if not entry.name.startswith(".") and (entry.is_dir() or entry.suffix.lower() in TABLES)
        )
        return [name for name, _ in zip(names, range(_MOST))]

    def key_variable(self, address: str) -> str:
        """The variable that holds the key of an endpoint. TeachError for an endpoint that pages may not ask."""
        variable = self.endpoints.get(address.rstrip("/"), OTHER_KEY if self.others else None)
        if variable is None:
            raise TeachError(
                f"the endpoint {address[:200]!r}",
                "with a login pages ask those that the dashboard was started with, and well-known providers",
                f"Start it with --endpoint {address[:200]}=NAME_OF_ITS_KEY, or choose one of the list",
            )
        if variable != OTHER_KEY and not os.environ.get(variable):
            why = f"its key is read from the environment of the dashboard, as {variable}, which is not set there"
            raise TeachError(f"the endpoint {address[:200]!r}", why, f"Export {variable} and start the dashboard again")
        return variable
