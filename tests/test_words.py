"""One word per quantity, wherever it is read: provisional and calibrated label, fixed and broken, (token) confidence;
the words of the field for what is pressed and listed; and nouns as names of values."""

import ast
import functools
import re

import pytest
from rooms import ROOT, SOURCES

OTHER_WORDS = re.compile(
    r"first answers?\b|raw (label|answer|distribution)s?\b|calibrated answers?\b|against raw\b|\bmended\b(?! and)"
    r"|(answer|label|clip)s? (whose answer )?(is |was |were )?(turned|flipped)\b|turned (from|by calibration)"
    r"|\bflipped:|confidence of the (trace|token)|sure of its tokens"
    r"|(?-i:Look again|Begun|Run it again|Most tokens|Only say what|Put away|Drawn by chance)",
    re.IGNORECASE,
)
# Names that say how a value came and not what it is. "what" is not among them: it is the first beat of an error.
NO_NOUNS = frozenset(
    "found said told asked known kept one ones mine who given made shown taken done seen held left written read "
    "begun gone chosen wanted sought meant named drawn counted weighed shared spent spoken stored scored wrong "
    "other others same these those such it them they whose where which how begin".split()
)
# How many of a thousand names of values in a room may be such ones.
MOST_NO_NOUNS = {
    "deepintuit": 2,
    "deepintuit_analysis": 2,
    "deepintuit_app": 2,
    "deepintuit_clips": 2,
    "deepintuit_homecam": 2,
}
PROSE = [
    path
    for pattern in (
        "README.md",
        "docs/*.md",
        "notebooks/*.py",
        "notebooks/*.md",
        "app/templates/**/*",
        "app/static/*.js",
        "analysis/**/*.toml",
        "analysis/**/templates/**/*",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.is_file()
]


@functools.cache
def strings() -> dict[str, str]:
    """Every text in the four rooms, docstrings among them, by `file:line`; pieces of one f-string stand together."""
    found = {}
    for path in SOURCES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}:{getattr(node, 'col_offset', 0)}"
            if isinstance(node, ast.JoinedStr):
                found[place] = "".join(one.value if isinstance(one, ast.Constant) else "‹›" for one in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found[place] = node.value
    return found


def others(text: str) -> list[str]:
    return [found[0] for found in OTHER_WORDS.finditer(" ".join(text.split()))]


def test_no_text_of_the_code_has_another_word_for_a_quantity():
    wrong = {place: others(text) for place, text in strings().items() if others(text)}
    assert len(strings()) > 5000 and not wrong


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_page_of_prose_has_another_word_for_a_quantity(path):
    assert not others(path.read_text(encoding="utf-8"))


def names(module: str) -> list[str]:
    """What a module's assignments, loops and arguments are called."""
    nodes = list(ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))))
    stores = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return stores + [node.arg for node in nodes if isinstance(node, ast.arg)]


@pytest.mark.parametrize("room", MOST_NO_NOUNS)
def test_names_of_values_are_nouns(room):
    of_module = {module: names(module) for module in SOURCES if module.split(".")[0] == room}
    bad = [f"{module}: {name}" for module, listed in of_module.items() for name in listed if name in NO_NOUNS]
    assert 1000 * len(bad) <= MOST_NO_NOUNS[room] * sum(map(len, of_module.values())), bad
