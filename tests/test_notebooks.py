"""The notebooks run from beginning to end on the example that ships, hold to house rules, and store no outputs.

The rules are in notebooks/README.md.
"""

import ast
import io
import os
import re
import statistics
import time
import tokenize
from dataclasses import fields
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

from deepintuit.data import Manifest
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_homecam import demo

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.py"))
MOST_SECONDS = 90
"""What a notebook may take on two idle cores."""
PATIENCE = 4
"""A machine that runs other tests beside this one is slower than an idle one by up to this."""


def source(name: str) -> nbformat.NotebookNode:
    return jupytext.read(FOLDER / f"{name}.py")


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def cells(name: str, kind: str) -> list[str]:
    return [cell.source for cell in source(name).cells if cell.cell_type == kind]


def code_lines(cell: str) -> int:
    """Lines that hold code: no blanks and no comments."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    held = set()
    for token in tokenize.generate_tokens(io.StringIO(cell).readline):
        if token.type not in nothing:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """The path that notebooks are given; the example stands beside it."""
    return tmp_path_factory.mktemp("notebooks") / "workbench"


def test_notebooks_are_numbered_without_gaps():
    assert [name[:2] for name in NOTEBOOKS] == [f"{number:02}" for number in range(len(NOTEBOOKS))]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pair_holds_the_same_cells_and_no_outputs(name):
    one, other = source(name), stored(name)
    assert [(cell.cell_type, cell.source) for cell in one.cells] == [
        (cell.cell_type, cell.source) for cell in other.cells
    ], "run `jupytext --sync` on the pair"
    for cell in other.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, "run `nbstripout` on it"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short(name):
    lines = [code_lines(cell) for cell in cells(name, "code")]
    assert statistics.median(lines) <= 5 and max(lines) <= 15, lines


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_defines_nothing(name):
    """No function, class or named lambda: what the package has is imported, and what it lacks belongs there."""
    made = []
    for node in ast.walk(ast.parse("\n".join(cells(name, "code")))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and isinstance(node.value, ast.Lambda):
            made.append(ast.unparse(node))
    assert not made


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_opens_with_its_title_and_one_setting_and_ends_with_questions(name):
    words = cells(name, "markdown")
    assert re.match(rf"# {name[:2]} · \w", words[0])
    assert cells(name, "code")[0].count('WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")') == 1
    questions, having = words[-2:]
    assert questions.startswith("## Three questions") and len(re.findall(r"^\d\. .*", questions, re.MULTILINE)) == 3
    assert len(re.findall(r"\?$", questions, re.MULTILINE)) >= 3, "a question ends with its mark"
    assert having.startswith("## What you have now") and len(having.splitlines()) > 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_links_to_the_dashboard(name):
    assert re.search(r"show\.app\(\s*\"(watch|traces|errors|runs|review)\"", "\n".join(cells(name, "code")))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_to_traces_name_what_that_page_reads(name):
    known = {field.name for field in fields(TraceFilter)} | {"trace"}
    for node in ast.walk(ast.parse("\n".join(cells(name, "code")))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "show.app" and node.args[0].value == "traces":
            assert {given.arg for given in node.keywords} <= known


def test_workbench_with_finished_runs_is_opened_and_none_is_made_beside_it(place, tmp_path):
    example = demo.finished(place)
    assert example.workbench.is_example and not place.exists() and not example.small
    (tmp_path / "mine").symlink_to(example.workbench.path)
    own = demo.finished(tmp_path / "mine")
    assert [run.id for run in own.evaluations] == [run.id for run in example.evaluations]
    assert own.evaluation.parent == own.calibrate.parent == own.grpo.id and own.grpo.parent == own.cold.id
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_scratch_has_the_same_clips_and_runs_and_what_is_made_there_stays_there(place):
    bench = demo.finished(place)
    before = [run.id for run in bench.workbench.runs()]
    scratch = bench.scratch()
    assert Manifest.load(scratch.path, bench.manifest.dataset).fingerprint == bench.manifest.fingerprint
    chain = (bench.teach, bench.cold, bench.grpo, bench.calibrate)
    assert {run.id for run in scratch.runs()} == {run.id for run in chain}
    with scratch.start_run("coldstart", {"made": "here"}, parent=None) as run:
        run.finish({})
    assert [run.id for run in bench.workbench.runs()] == before
    assert bench.file(bench.manifest.usable("test")["clip_id"].iloc[0]).exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_in_time_and_leaves_nothing_behind(name, place, tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("DEEPINTUIT_HOME", str(place))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    run = source(name)
    started = time.perf_counter()
    NotebookClient(
        run,
        timeout=MOST_SECONDS * PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        config=Config({"KernelManager": {"shutdown_wait_time": 60}}),  # after five seconds it would be killed
    ).execute()
    seconds = time.perf_counter() - started
    record_property("seconds", seconds)
    outputs = [output for cell in run.cells if cell.cell_type == "code" for output in cell.outputs]
    assert "application/vnd.plotly.v1+json" in {kind for one in outputs for kind in one.get("data", {})}, "no figure"
    assert seconds < MOST_SECONDS * PATIENCE
    assert not list(tmp_path.glob("deepintuit-*")), "what a kernel wrote for itself is gone with it"
