"""Rendered worlds whose clips carry known facts: found by entry points, never imported by name.

A world is a module with the members of `World`. A package announces one in its metadata:

    [project.entry-points."deepintuit.worlds"]
    homecam = "deepintuit_homecam"
    household = "deepintuit_homecam.household"
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from deepintuit.errors import ConfigError, nearest


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


# Once a process: finding entry points reads the metadata of every installed package, and a judge asks per observation.
@functools.cache
def names() -> list[str]:
    return sorted(entry_points(group="deepintuit.worlds").names)


@functools.cache
def named(name: str) -> World:
    """The world of this name. ConfigError where none is installed."""
    found = entry_points(group="deepintuit.worlds", name=name)
    if not found:
        guess = nearest(name, names())
        raise ConfigError(
            f"there is no world {name!r}",
            f"installed: {', '.join(names()) or 'none'}" + (f"; nearest: {guess!r}" if guess else ""),
            "Name one of them, or install the package that brings it",
        )
    return next(iter(found)).load()


def knowing(note: str) -> tuple[World, Any]:
    """The world that can read a clip's note `facts`, and the facts. ValueError where none can."""
    for name in names():
        world = named(name)
        try:
            return world, world.facts_of(note)
        except (KeyError, ValueError, TypeError):
            continue
    raise ValueError("no installed world can read this note")
