"""Who may import whom: rooms and floors, as docs/architecture.md shows them. These tables are the source."""

import ast
import functools
import re
import subprocess
import sys

import pytest
from rooms import ROOMS, ROOT, SOURCES

# The rooms that a room may import.
BEFORE = {
    "deepintuit": set(),
    "deepintuit_analysis": {"deepintuit"},
    "deepintuit_app": {"deepintuit", "deepintuit_analysis"},
    "deepintuit_clips": {"deepintuit"},
    "deepintuit_homecam": {"deepintuit", "deepintuit_analysis", "deepintuit_clips"},
}
# The method, from the roof down. A module imports from below its own place: a later row, or in its row behind an arrow.
FLOORS = {
    "doors": "cli → command",
    "stages": "embed → baselines → teach coldstart grpo calibrate evaluate attribute judge → stage → plan",
    "reasoner": "reasoner judges",
    "model": "vlm",
    "wings": "endpoint → video",
    "shelves": "data runs embeddings",
    "sums": "rewards advantage schedule metrics linear",
    "words": "prompts → trace config → labels worlds rubrics",
    "ground": "addresses → disk worker ranks connections → errors texts mentions parquet tables",
}
STEPS = [step.split() for floor in FLOORS.values() for step in floor.split(" → ")]
HEIGHT = {module: len(STEPS) - depth for depth, step in enumerate(STEPS) for module in step}
HEAVY = {"torch", "torchvision", "transformers", "trl", "peft", "accelerate"}
# What opens a checkpoint. `vlm` alone does, so that one place decides about dtype, device, adapters and trust; a video
# classifier of the baselines is opened by its helpers.
OPENERS = re.compile(r"peft(\..*)?|transformers\.(Auto\w+|\w+ForConditionalGeneration|\w+Processor|\w*Tokenizer\w*)")

METHOD = [name for name in SOURCES if name.startswith("deepintuit.")]
BESIDE_THE_ROOT = {name.split(".")[1] for name in METHOD}


def place(module: str) -> str:
    """`deepintuit.runs.run` → `runs`."""
    return module.split(".")[1]


@functools.cache
def imports(module: str) -> set[str]:
    """Everything a module imports anywhere in its text, in full dotted names, lazily imported names included."""
    found = set()
    package = module.split(".") if SOURCES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_place_in_the_house():
    assert BESIDE_THE_ROOT <= set(HEIGHT), "a module on no floor: give it one in FLOORS and in docs/architecture.md"


def test_architecture_page_shows_the_same_floors():
    rows = re.findall(
        r"^\| (\w+) \| (`[^|]+) \|", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    page = {floor: cell.replace("`", "").strip() for floor, cell in rows if floor in FLOORS}
    assert page == FLOORS


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_rooms_import_only_the_rooms_that_they_may(module):
    room = module.split(".")[0]
    others = {name.split(".")[0] for name in imports(module)} & set(ROOMS) - {room}
    assert others <= BEFORE[room], f"{module} imports {others - BEFORE[room]}"


def test_gradio_is_the_dashboards_and_the_method_knows_neither_duckdb_nor_figures():
    users = {name.split(".")[0]: set() for module in SOURCES for name in imports(module)}
    for module in SOURCES:
        for name in imports(module):
            users[name.split(".")[0]].add(module.split(".")[0])
    assert users["gradio"] == {"deepintuit_app"}
    for library in ("duckdb", "plotly", "jinja2"):
        assert "deepintuit" not in users.get(library, ()), library


@pytest.mark.parametrize("module", METHOD)
def test_modules_import_only_from_floors_below(module):
    if place(module) not in HEIGHT:
        pytest.skip("on no floor yet; another test says so")
    ours = {name.split(".")[1] for name in imports(module) if name.startswith("deepintuit.")} & set(HEIGHT)
    level = [name for name in ours - {place(module)} if HEIGHT[name] >= HEIGHT[place(module)]]
    assert not level, f"{module} imports {level}, which are not below it"


def test_package_root_imports_nothing_until_a_system_is_loaded():
    assert imports("deepintuit") == {"importlib.metadata.entry_points"}
    tree = ast.parse(SOURCES["deepintuit"].read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_no_module_imports_the_workshop():
    inside = "deepintuit_homecam.workshop"
    outside = [module for module in SOURCES if not module.startswith(inside)]
    assert not [module for module in outside for name in imports(module) if name.startswith(inside)]


def test_checkpoints_are_opened_by_vlm_and_the_classifier_of_the_baselines():
    opened = {module: [name for name in imports(module) if OPENERS.fullmatch(name)] for module in SOURCES}
    users = {module for module, names in opened.items() if names and not module.startswith("deepintuit.vlm")}
    allowed = {"deepintuit_homecam.workshop.backbone", "deepintuit.baselines.classifier"}
    assert users == allowed, "opens a model by itself"


def light_modules() -> list[str]:
    """All below the model floor, the door, which starts a stage only when one is asked for, import, and the people's
    side."""
    low = {name for name, height in HEIGHT.items() if height < HEIGHT["vlm"]} | {"cli", "command"}
    method = [name for name in METHOD if not name.endswith("__main__") and place(name) in low]
    beside = [name for name in SOURCES if name.startswith(("deepintuit_analysis", "deepintuit_clips"))]
    return ["deepintuit", *method, *(name for name in beside if not f"{name}.".startswith("deepintuit_clips.predict."))]


def test_no_module_below_the_model_floor_reaches_for_torch_even_lazily():
    heavy = {module: {name.split(".")[0] for name in imports(module)} & HEAVY for module in light_modules()}
    assert {module: names for module, names in heavy.items() if names} == {}


def test_light_modules_start_without_torch_in_a_fresh_interpreter():
    program = f"""
import importlib, sys
for module in {light_modules()!r}:
    importlib.import_module(module)
    heavy = {HEAVY!r} & set(sys.modules)
    if heavy:
        sys.exit(f"importing {{module}} imports {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
