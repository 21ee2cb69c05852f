"""The pages are held to the code: what they name exists, what exists is named, and no page holds a machine's paths."""

import ast
import contextlib
import functools
import io
import re
import shlex
import subprocess
import tokenize
import tomllib
from pathlib import Path

import pytest
from rooms import ROOMS, ROOT, SOURCES

from deepintuit import cli, config, errors
from deepintuit.runs import GRAINS

# Comments are for whoever writes on; they may name what is still to come.
PAGES = {
    path.relative_to(ROOT).as_posix(): re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
PACKAGE = ROOT / "deepintuit"
MODULES = {path.stem for path in PACKAGE.glob("[a-z]*") if path.suffix == ".py" or (path / "__init__.py").exists()}
ENTRY_POINTS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"])
FOLDERS = "|".join(("configs", "docs", "benchmarks", "tests", *ROOMS.values()))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

# A path of somebody's machine, and hosts that packages come from. Written so that these lines do not match themselves.
MACHINE = re.compile(r"(?<![\w.~/])/(?:home|root|Users|opt|work|mnt|srv|data)/[a-z]|[A-Z]:\\\\Users")
REGISTRY = re.compile(
    r"pypi\.(?:org|python)|pythonhosted\.|anaconda\.(?:org|com)|index-url[ =]|artifactory|find-links[ =]"
)


def blocks(text: str) -> list[str]:
    """Command lines of a page's shell blocks: continued lines joined, comments and prompts dropped."""
    found = []
    for block in re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        found += [
            line.removeprefix("$ ").strip() for line in lines if line.strip() and not line.lstrip().startswith("#")
        ]
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Commands of all pages as (page, words): lines of shell blocks, and spans of code in the running text."""
    found = []
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for line in [*blocks(text), *re.findall(r"`((?:make|deepintuit) [^`\n]+)`", prose)]:
            with contextlib.suppress(ValueError):  # an unclosed quotation; another test reads the blocks strictly
                found.append((page, shlex.split(line, comments=True)))
    return found


def called(program: str) -> list[tuple[str, list[str]]]:
    """Calls of one program with what follows it, up to a pipe or the next command."""
    found = []
    for page, words in commands():
        if program in words:
            rest = words[words.index(program) + 1 :]
            ends = [place for place, word in enumerate(rest) if word in {"|", "||", "&&", ";", ">", "&"}]
            found.append((page, rest[: ends[0]] if ends else rest))
    return found


@functools.cache
def tracked() -> dict[str, str]:
    """Every text file of the project, by its path: those that git knows, or in an export all that are there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    if not any(names):
        made = {
            ".git",
            ".venv",
            "build",
            "dist",
            "workbench",
            "__pycache__",
            ".hypothesis",
            ".pytest_cache",
            ".ruff_cache",
        }
        names = [
            path.relative_to(ROOT).as_posix()
            for path in ROOT.rglob("*")
            if not made & set(path.relative_to(ROOT).parts)
        ]
    texts = {}
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 2**20:
            with contextlib.suppress(UnicodeDecodeError):  # a picture or a video
                texts[name] = path.read_text(encoding="utf-8")
    return texts


def test_shell_blocks_are_lines_that_a_shell_can_read():
    for page, text in PAGES.items():
        for line in blocks(text):
            done = subprocess.run(["sh", "-n"], input=line, capture_output=True, text=True, timeout=20)
            assert done.returncode == 0, f"{page}: {line!r}: {done.stderr}"


def test_every_make_target_of_the_pages_exists():
    named = {(page, word) for page, words in called("make") for word in words[:1] if re.fullmatch(r"[a-z]+", word)}
    assert {("README.md", "demo"), ("README.md", "test")} <= named
    assert not [(page, target) for page, target in named if target not in TARGETS]


def test_every_command_of_the_pages_is_understood():
    for page, words in called("deepintuit"):
        if any(re.search(r"[…<>\[\]]|^[A-Z_]+$", word) for word in words):
            continue  # a form to fill in, not a command
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                cli._parser().parse_args(words)
            except SystemExit as left:  # --help and --version
                assert left.code == 0
            except errors.ConfigError as error:
                bare = len(words) == 1 and "required" in error.why  # the name of a command, not a call
                assert bare, f"{page}: {error}"


def test_every_command_is_named_in_the_readme():
    (commands,) = [action.choices for action in cli._parser()._actions if isinstance(action.choices, dict)]
    missing = [name for name in commands if not re.search(rf"\b(deepintuit|make) {name}\b", PAGES["README.md"])]
    assert not missing


def test_settings_that_pages_set_exist_and_take_that_value():
    """Assignments in commands and in spans of code; a line that shows an error is not an assignment."""
    for page, text in PAGES.items():
        for assignment in re.findall(r"--set[ =]([a-z]+\.[a-z_]+=[^\s`…]+)", text):
            try:
                config.load(None, [assignment])
            except config.ConfigError as error:
                pytest.fail(f"{page}: --set {assignment}: {error}")


def test_settings_that_pages_name_exist():
    known = {f"{section}.{key}" for section, key, _, _ in config.describe() if section}
    sections = {name.partition(".")[0] for name in known} - MODULES
    for page, text in PAGES.items():
        for name in re.findall(r"`([a-z]+\.[a-z_]+)(?: ?=[^`]*)?`", text):
            if name.partition(".")[0] in sections:
                assert name in known, f"{page} names `{name}`, which is no setting"


def test_every_setting_is_documented():
    page = PAGES.get("docs/training.md")
    if page is None:
        pytest.skip("docs/training.md is not in this tree yet")
    missing = [
        f"{section}.{key}".lstrip(".") for section, key, _, _ in config.describe() if not re.search(rf"\b{key}\b", page)
    ]
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.toml")), ids=lambda path: path.name)
def test_every_config_loads_and_opens_with_a_sentence(path):
    config.load(path)
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert tomllib.loads(path.read_text(encoding="utf-8"))


def test_every_grain_is_documented():
    missing = [grain for grain in GRAINS if not any(f"`{grain}`" in text for text in PAGES.values())]
    assert not missing


def test_every_module_stands_on_the_architecture_page():
    rows = re.findall(r"^\| \w+ \| (`[^|]+) \|", PAGES["docs/architecture.md"], re.MULTILINE)
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert named == MODULES


def test_dotted_names_on_the_pages_lead_somewhere():
    for page, text in PAGES.items():
        for dotted in set(re.findall(r"`(deepintuit(?:\.\w+)+)", text)) - ENTRY_POINTS:
            first = dotted.split(".")[1]
            assert first in MODULES, f"{page} names {dotted}"
            inner = dotted.split(".")[2:]
            if inner:
                stem = PACKAGE / first / inner[0]
                found = (
                    stem.exists()
                    or stem.with_suffix(".py").exists()
                    or any(
                        re.search(rf"\b{inner[0]}\b", path.read_text(encoding="utf-8"))
                        for path in [PACKAGE / f"{first}.py", PACKAGE / first / "__init__.py"]
                        if path.exists()
                    )
                )
                assert found, f"{page} names {dotted}"


def test_links_between_pages_lead_to_files():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_files_that_pages_name_exist():
    for page, text in PAGES.items():
        for name in re.findall(rf"\b((?:{FOLDERS})/[\w./-]*\w\.(?:toml|md|py))\b", text):
            assert (ROOT / name).exists(), f"{page} names {name}"


def test_every_page_is_linked_from_the_readme():
    missing = [page for page in PAGES if page != "README.md" and f"({page})" not in PAGES["README.md"]]
    assert not missing


def test_first_screen_is_a_sentence_then_a_table_then_commands():
    text = PAGES["README.md"]
    sentence, table, shell = text.index("\n\n"), text.index("\n|"), text.index("\n```sh")
    assert text.startswith("# ") and sentence < table < shell
    assert text[:table].count("\n") < 20 and "[![" not in text, "badges and news come after the first command"


def test_no_tracked_file_holds_a_path_of_a_machine_or_a_registry():
    bad = [
        f"{name}:{number}: {line.strip()[:90]}"
        for name, text in tracked().items()
        for number, line in enumerate(text.splitlines(), 1)
        if (MACHINE.search(line) or REGISTRY.search(line)) and name != "tests/test_docs.py"
    ]
    assert not bad


def test_every_module_says_what_it_is():
    """The docstring; and in a flat module, or at a package's door, how to run it or what it leaves out."""
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in SOURCES.values()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_no_module_is_a_drawer():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert not [
        path
        for folder in (*ROOMS.values(), "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem in drawers
    ]


def code_lines(path: Path) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    prose = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose |= set(range(node.lineno, node.end_lineno + 1))
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    held = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in nothing:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - prose)


# Lines of code that a room may hold, and that all hold together.
MOST_LINES = {
    "deepintuit": 13_677,
    "deepintuit_analysis": 7_720,
    "deepintuit_app": 7_173,
    "deepintuit_clips": 2_663,
    "deepintuit_homecam": 2_247,
}
MOST_IN_ALL = 33_480
# What one reads, in this order, to know the method.
READING_PATH = "trace prompts rewards advantage coldstart grpo calibrate reasoner.distribution evaluate".split()
MOST_TO_READ = 1_977


def test_rooms_stay_within_their_lines(record_property):
    lines = {module: code_lines(path) for module, path in SOURCES.items()}
    held = {room: sum(n for module, n in lines.items() if module.split(".")[0] == room) for room in MOST_LINES}
    path = [f"deepintuit.{name}" for name in READING_PATH]
    to_read = sum(n for module, n in lines.items() if any(f"{module}.".startswith(f"{name}.") for name in path))
    for name, number in {**held, "reading path": to_read}.items():
        record_property(name, number)
    assert not {room: n for room, n in held.items() if n > MOST_LINES[room]} and sum(held.values()) <= MOST_IN_ALL, held
    assert to_read <= MOST_TO_READ, to_read


def test_no_file_outgrows_one_reading():
    long = {module: n for module, path in SOURCES.items() if (n := code_lines(path)) > 500}
    assert not long, "past about 500 lines a module becomes a package of the same name"
