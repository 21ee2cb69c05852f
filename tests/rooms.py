"""The folders of code and the names they are imported by, as pyproject.toml says."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
ROOMS = {"deepintuit": "deepintuit", **_SETUP["package-dir"]}
"""Import name → folder."""

SOURCES = {
    ".".join((room, *path.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(".__init__"): path
    for room, folder in ROOMS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}
"""Module in full → file."""
