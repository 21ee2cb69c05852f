"""Texts of others into values, within bounds: an encoding told by its mark, JSON and TOML of bounded depth.

Every function raises `ValueError` with the reason in words and nothing else (`read` also `OSError`); who calls knows
what came and what to do about it. Nothing is guessed. What has no byte-order mark is UTF-8, or refused.
Run it:  python -c "from deepintuit.texts import parse_toml; print(parse_toml('a = 1'))"
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

DEEPEST = 64
"""Lists and tables inside each other."""
MOST_TOML = 1 << 20
"""Characters."""
_MOST_BITS = 14_000  # a number that Python still writes out: 4,300 digits at most
# The longer marks first: that of UTF-32 begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# tomllib takes time with the square of the parts of a dotted key. Possessive, so that the search itself does not.
_PART = r"""(?:"[^"\n]*+"|'[^'\n]*+'|[\w-]++)[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(rf"(?<![\w-])(?:{_PART}){{{DEEPEST}}}")
_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?![\s\"')\]]|$)[^.!?\n]*)*(?:[.!?]+[\"')\]]*|\n|$)\s*")
_LONG = "a number in it has thousands of digits"
_DEEP = f"it is nested more than {DEEPEST} deep"


def decoded(content: bytes, *, nul: bool = False) -> str:
    """Bytes as text, by their byte-order mark (UTF-8, UTF-16, UTF-32), without one as UTF-8; NUL bytes are refused
    unless the text may hold them (`nul`)."""
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not {encoding.upper()} text (byte {error.start})") from error
    if content and not text:
        raise ValueError("it is a byte-order mark and nothing else")
    if "\0" in text and not nul:
        raise ValueError("it holds NUL bytes, as binary files do, and UTF-16 without its byte-order mark")
    return text


def read(path: str | Path) -> str:
    """A file's text, `decoded`; line ends as they are."""
    return decoded(Path(path).read_bytes())


def parse_json(text: str, *, unique: bool = False) -> Any:
    """A JSON value; NaN and infinities are read as floats. `unique`: a name that an object has twice is refused."""
    return _checked(lambda: json.loads(text, object_pairs_hook=_each_once if unique else None))


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text of at most `MOST_TOML` characters."""
    if len(text) > MOST_TOML:
        raise ValueError(f"it has {len(text):,} characters, of which at most {MOST_TOML:,} are read")
    if _LONG_KEY.search(text):
        raise ValueError(_DEEP)
    return _checked(lambda: tomllib.loads(text))


def fits(text: str, most: int) -> bool:
    """Whether a text can be kept and shown: at most so many characters, and no half of a surrogate pair."""
    return len(text) <= most and text.encode("utf-8", "ignore").decode() == text


def sentences(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, with the white space behind them. "1.5 s" is not two."""
    inner = text[start:end].lstrip()
    start += len(text[start:end]) - len(inner)
    return [(start + match.start(), start + match.end()) for match in _SENTENCE.finditer(inner) if match[0]]


def _each_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"it has {name[:80]!r} twice")
        mapping[name] = value
    return mapping


def _checked(parse: Callable[[], Any]) -> Any:
    """What a parser of the library gives, when it is neither deep nor long. Breadth first, so that depth costs no
    stack."""
    try:
        value = parse()
    except RecursionError as error:
        raise ValueError(_DEEP) from error
    except ValueError as error:
        if "integer string" not in str(error):
            raise
        raise ValueError(_LONG) from error
    level = [value]
    for _ in range(DEEPEST):
        if not level:
            break
        if any(isinstance(each, int) and each.bit_length() > _MOST_BITS for each in level):
            raise ValueError(_LONG)
        lists = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = list(itertools.chain.from_iterable(lists))
    if level:
        raise ValueError(_DEEP)
    return value
