"""One word a quantity, wherever it is read: provisional and calibrated label, fixed and broken, (token) confidence; and
the words of the field for what is pressed and listed."""

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
