r"""Rubrics: yes/no questions about a trace, in a TOML file.

name = "house"

[[question]]
name = "names-a-moment"
ask = "Does the text name a frame or a time for each thing that it rests on?"

[[question]]
name = "right-person"
ask = "Is the person that the text speaks of the one in the pictures?"
clip = true                               # the judge is shown the frames, too

[[question]]
name = "hedges"
pattern = '(?i)\b(perhaps|maybe)\b'       # a rule: yes where the trace holds it; nobody is asked
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deepintuit import texts
from deepintuit.errors import ConfigError, nearest

FALSE_STEP = "false-step"
"""The question which sentence is the first false one; no name of a rubric's own."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_MOST = 2000  # characters of a question or a pattern
_KEYS = {"name": str, "ask": str, "pattern": str, "clip": bool}
_EXAMPLE = "Write [[question]] tables, each with a name and either ask or pattern; see docs/training.md"


@dataclass(frozen=True)
class RubricQuestion:
    """`ask`: the question in words, or `pattern`: a regular expression (RE2) that answers it; one of both is empty.
    `clip`: who answers sees the frames."""

    name: str
    ask: str = ""
    pattern: str = ""
    clip: bool = False


@dataclass(frozen=True)
class Rubric:
    name: str
    questions: tuple[RubricQuestion, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> Rubric:
        """A rubric from its file. ConfigError, with the line, for one that cannot be asked."""
        path = Path(path)
        try:
            text = texts.read(path)
            content = texts.parse_toml(text)
        except (OSError, ValueError) as error:
            raise ConfigError(f"rubric {str(path)!r} could not be read", str(error), _EXAMPLE) from error
        for key in content.keys() - {"name", "question"}:
            raise _refusal(
                path,
                text,
                key,
                f"{key} = … is not understood",
                f"Nearest: {nearest(key, ['name', 'question']) or 'name'!r}",
            )
        name, tables = content.get("name", path.stem), content.get("question")
        if not isinstance(tables, list) or not tables:
            raise _refusal(path, text, "question", "it asks nothing", _EXAMPLE)
        if not isinstance(name, str) or not 0 < len(name.strip()) <= 80:
            raise _refusal(path, text, "name", "its name is a text of 1 to 80 characters", 'Write name = "…"')
        questions: list[RubricQuestion] = []
        for number, table in enumerate(tables):
            if fault := _fault(table, [question.name for question in questions]):
                raise _refusal(path, text, *fault, number=number)
            questions.append(RubricQuestion(**table))
        return cls(name.strip(), tuple(questions))


def _fault(table: Any, before: list[str]) -> tuple[str, str, str] | None:
    """Of a question: the key that is amiss, why, and what to do."""
    if not isinstance(table, dict):
        return "question", "a question is a table", _EXAMPLE
    for key, value in table.items():
        if key not in _KEYS:
            return (
                key,
                f"{key} = … is not understood: a question has {', '.join(_KEYS)}",
                f"Nearest: {nearest(key, _KEYS) or 'ask'!r}",
            )
        if type(value) is not _KEYS[key]:
            kind = "true or false" if _KEYS[key] is bool else "a text"
            return key, f"{key} = {value!r:.60} is not {kind}", f"Write {kind}"
    name, ask, pattern = table.get("name", ""), table.get("ask", "").strip(), table.get("pattern", "")
    if not _NAME.fullmatch(name):
        return (
            "name",
            f"its name is {name!r:.60}",
            "Write 1 to 40 small letters, digits and -: it stands in addresses and columns",
        )
    if name in before or name == FALSE_STEP:
        return (
            "name",
            f"the name {name!r} is taken" + ("" if name in before else " by --steps"),
            "Give each question a name of its own",
        )
    if bool(ask) == bool(pattern):
        return (
            "name",
            f"{name!r} has {'both ask and pattern' if ask else 'neither ask nor pattern'}",
            "Give one of them",
        )
    if not texts.fits(ask or pattern, _MOST):
        return "ask" if ask else "pattern", f"it has more than {_MOST} characters, or half of one", "Make it shorter"
    if pattern and table.get("clip"):
        return "clip", "a pattern sees the text alone", "Leave clip out, or ask in words"
    try:
        holds(pattern, [""])
    except pa.ArrowInvalid as error:
        return (
            "pattern",
            f"{pattern!r:.80} is no regular expression of RE2: {error}",
            "Correct it; RE2 has no look-around and no back references",
        )
    return None


def holds(pattern: str, traces: list[str]) -> list[bool]:
    """Whether each text holds the pattern, in time linear in its length."""
    return pc.match_substring_regex(pa.array(traces, pa.string()), pattern).to_pylist()


def _refusal(path: Path, text: str, key: str, why: str, todo: str, number: int | None = None) -> ConfigError:
    """With the line on which the key, or else the question, stands; where it is written otherwise, without."""
    lines = text.splitlines()
    heads = [n for n, line in enumerate(lines) if re.match(r"\s*\[\[\s*question\s*\]\]", line)]
    first, last = 0, heads[0] if heads else len(lines)
    if number is not None:
        if number >= len(heads):
            return ConfigError(f"rubric {str(path)!r}, question {number + 1}", why, todo)
        first, last = heads[number], heads[number + 1] if number + 1 < len(heads) else len(lines)
    line = next((n for n in range(first, last) if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", lines[n])), first)
    return ConfigError(f"rubric {str(path)!r}, line {line + 1}", why, todo)
