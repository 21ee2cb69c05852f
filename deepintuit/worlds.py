"""Rendered worlds whose clips carry known facts: found by entry points, never imported by name.

A world is a module with the members of `World`. A package announces one in its metadata:

    [project.entry-points."deepintuit.worlds"]
    homecam = "deepintuit_homecam"
    household = "deepintuit_homecam.household"
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from deepintuit import addresses
from deepintuit.errors import ConfigError, VideoError, VideoReason, nearest

RENDERED = "rendered.json"
"""Beside clips that a world renders when they are first looked at: its name, and SHA-256 by file name."""


class Step(NamedTuple):
    """Characters `begins` … `ends` of a text, and whether they say what is so. `kind`: observation, summary (of what
    was seen), policy, conclusion."""

    begins: int
    ends: int
    kind: str
    true: bool


class World(Protocol):
    """`MODEL` is a backbone as a hub folder (`model.path = "embedded:NAME"`)."""

    MODEL: Path

    def facts_of(self, note: str) -> Any:
        """The facts of a clip from its note `facts`. ValueError, KeyError or TypeError for another kind of note."""

    def write_trace(self, facts: Any, seed: int) -> Mapping[str, str]:
        """The parts of a scripted teacher's trace: `observation`, `think`, `answer`, and the whole as `text`."""

    def label_of_observation(self, text: str) -> str | None:
        """The label that an observation leads to by the world's own rule, or None."""

    def misread(self, text: str, facts: Any) -> list[str]:
        """Facts that an observation gets wrong or leaves out, by name."""

    def steps(self, text: str, facts: Any) -> list[Step]:
        """The steps of a reasoning, each held against what a teacher without errors writes of these facts."""

    def render_clip(self, path: Path) -> None:
        """Write the clip that a file of this name holds, the same bytes each time."""


# Once a process: finding entry points reads the metadata of every installed package, and a judge asks per observation.
@functools.cache
def names() -> list[str]:
    return sorted(entry_points(group="deepintuit.worlds").names)


@functools.cache
def named(name: str) -> World:
    """The world of this name. ConfigError where none is installed."""
    matches = entry_points(group="deepintuit.worlds", name=name)
    if not matches:
        guess = nearest(name, names())
        raise ConfigError(
            f"there is no world {name!r}",
            f"installed: {', '.join(names()) or 'none'}" + (f"; nearest: {guess!r}" if guess else ""),
            "Name one of them, or install the package that brings it",
        )
    return next(iter(matches)).load()


def knowing(note: str) -> tuple[World, Any]:
    """The world that can read a clip's note `facts`, and the facts. ValueError where none can."""
    for name in names():
        world = named(name)
        try:
            return world, world.facts_of(note)
        except (KeyError, ValueError, TypeError):
            continue
    raise ValueError("no installed world can read this note")


def example(place: Path) -> Path | None:
    """A finished workbench to look at, in a copy beside `place`, by the first world that brings one as
    `unpack_example(place)`; None where none does."""
    world = next((world for world in map(named, names()) if hasattr(world, "unpack_example")), None)
    return world and world.unpack_example(place.with_name(f"{place.name}-example"))


def at_hand(path: str | os.PathLike[str]) -> Path:
    """The path of a clip; one that a world renders on demand, or that lies on an object store, is there when this
    returns. VideoError where what comes has other bytes than those that traces and labels are about."""
    path = Path(os.fsdecode(path))
    if addresses.origin(path):
        addresses.at_hand(path)
    if (pending := to_render(path)) is None:
        return path
    world, digest = pending
    named(world).render_clip(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        path.unlink(missing_ok=True)
        raise VideoError(
            f"clip {path.name!r} of the example",
            "this machine renders it with other bytes than those that its traces were written about",
            "Install the versions of requirements.lock, or make the workbench anew: `deepintuit demo`",
            VideoReason.CHANGED,
        )
    return path


def to_render(path: Path) -> tuple[str, str] | None:
    """Name of the world and SHA-256 of a clip that is rendered when first looked at and is not there yet; else None."""
    listing = path.parent / RENDERED
    if os.path.exists(path) or not os.path.exists(listing):
        return None
    world, hashes = _listed(listing, listing.stat().st_mtime_ns)
    return (world, hashes[path.name]) if path.name in hashes else None


@functools.lru_cache(maxsize=8)
def _listed(file: Path, _changed: int) -> tuple[str, dict[str, str]]:
    listing = json.loads(file.read_text(encoding="utf-8"))
    return listing["world"], listing["sha256"]
