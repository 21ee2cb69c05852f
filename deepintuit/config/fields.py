"""What a setting is: a typed field with its meaning, its limits, and what must hold for it to be read; a section checks
them all when it is made."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from deepintuit import texts
from deepintuit.errors import ConfigError, nearest

if TYPE_CHECKING:
    from deepintuit.config import Config

_LARGEST = 2**53
"""Of a number: up to here floats hold every whole one, and so does everybody who reads JSON."""
_LONGEST = 10_000
"""Characters of a text."""

_IN_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple[str, ...]: "a list of texts",
}


class Need(NamedTuple):
    """What must hold for a setting to be read at all: the setting it hangs on, a test of the config, and its words."""

    on: str
    met: Callable[[Config], bool]
    why: str
    set: str


def setting(
    default: Any,
    doc: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    choices: tuple[str, ...] = (),
    decides: bool = True,
    added: bool = False,
    needs: tuple[Need, ...] = (),
) -> Any:
    """A field with its meaning (and unit), and what it may be: low ≤ value ≤ high, value > above, or one of choices.
    `decides` false: it changes what the work costs and not what comes of it. `added`: it came later, so at its default
    it is no part of what a run is. `needs`: what must hold for it to do anything."""
    return dataclasses.field(
        default=default,
        metadata=dict(
            doc=doc, low=low, high=high, above=above, choices=choices, decides=decides, added=added, needs=needs
        ),
    )


@functools.cache
def hints(owner: type) -> dict[str, Any]:
    """The settings of a section with their types: its fields that are compared."""
    found = typing.get_type_hints(owner)
    return {field.name: found[field.name] for field in dataclasses.fields(owner) if field.compare}


@dataclass(frozen=True)
class Section:
    """Checks every field of a section against its type and range when it is made, so that no bad one can exist."""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            field = type(self).__dataclass_fields__[name]
            object.__setattr__(self, name, _checked(_dotted(self, name), getattr(self, name), hint, field.metadata))
        self._check_together()

    def _check_together(self) -> None:
        """What no field can check alone."""


def _dotted(section: Section, key: str) -> str:
    name = type(section).__name__.removesuffix("Config").lower()
    return f"{name}.{key}" if name else key


def _checked(key: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """The value in the field's own type. Only what loses nothing is converted: int → float, list → tuple."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ConfigError(
            f"{key} is a number of {value.bit_length()} bits",
            f"one of at most {_LARGEST:,} is stored as it is",
            f"Meaning: {limits.get('doc', key)}",
        )
    if hint is float and type(value) is int:
        value = float(value)
    if hint == tuple[str, ...] and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        value = tuple(value)
    if any(
        not texts.fits(item, _LONGEST)
        for item in (value if isinstance(value, tuple) else [value])
        if isinstance(item, str)
    ):
        raise ConfigError(
            f"{key} = {value!r}",
            f"a text has at most {_LONGEST:,} characters, and no half of one",
            f"Meaning: {limits.get('doc', key)}",
        )
    if hint == tuple[str, ...] and isinstance(value, tuple):
        return value
    if type(value) is not hint:
        raise ConfigError(f"{key} = {value!r}", f"it must be {_IN_WORDS[hint]}", f"Meaning: {limits.get('doc', key)}")
    if choices := limits.get("choices"):
        if value not in choices:
            near = nearest(value, choices)
            raise ConfigError(
                f"{key} = {value!r}",
                f"it must be one of {', '.join(choices)}",
                f"Nearest: {near!r}" if near else f"Meaning: {limits['doc']}",
            )
    elif limits and hint in (int, float):
        low, high, above = limits["low"], limits["high"], limits["above"]
        if not math.isfinite(value) or not low <= value <= high or value <= above:
            bounds = [(low, f"at least {low}"), (above, f"above {above}"), (high, f"at most {high}")]
            bounds = [text for bound, text in bounds if math.isfinite(bound)]
            allowed = " and ".join(bounds + ([] if math.isfinite(value) else ["finite"]))
            raise ConfigError(f"{key} = {value!r}", f"it must be {allowed}", f"Meaning: {limits['doc']}")
    return value
