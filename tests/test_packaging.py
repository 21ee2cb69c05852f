"""The lock, pyproject.toml, environment.yml, the Makefile and CI say the same, and nothing says where to download."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from rooms import ROOMS, ROOT, SOURCES

import deepintuit

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK_LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
LOCK = {canonicalize_name(Requirement(line).name): Requirement(line) for line in LOCK_LINES}
LOCKED_EXTRAS = ("app", "notebooks", "dev")
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def wanted() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *(text for extra in LOCKED_EXTRAS for text in extras[extra])]
    return [Requirement(text) for text in texts]


def version(requirement: Requirement) -> Version:
    (pin,) = requirement.specifier
    return Version(pin.version)


def test_lock_pins_each_package_once_by_name_and_version_alone():
    assert len(LOCK) == len(LOCK_LINES)
    assert LOCK_LINES == sorted(LOCK_LINES, key=lambda line: canonicalize_name(Requirement(line).name))
    for requirement in LOCK.values():
        assert re.fullmatch(r"==[\w.!+]+", str(requirement.specifier)) and "*" not in str(requirement.specifier)
        assert not requirement.url and not requirement.extras


@pytest.mark.parametrize("name", ["requirements.lock", "environment.yml", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_file_says_where_to_download(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|git\+|--(extra-)?index|--find-links|--hash|trusted-host", text)


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_lock_holds_what_pyproject_asks_for(requirement):
    assert version(LOCK[canonicalize_name(requirement.name)]) in requirement.specifier
    assert any(spec.operator == "<" for spec in requirement.specifier), "an open range breaks on the day of a release"


def test_lock_is_closed_and_holds_nothing_that_nobody_asks_for():
    """Walks what the installed packages declare. A package that is not installed ends its branch."""
    reached, todo = set(), [(canonicalize_name(one.name), frozenset(one.extras)) for one in wanted()]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        reached.add(name)
        try:
            declared = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for needed in map(Requirement, declared):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    locked = {name for name, pin in LOCK.items() if pin.marker is None or pin.marker.evaluate()}
    assert reached - set(LOCK) == set(), "needed and not locked: run `make lock`"
    assert locked - reached == set(), "locked and not needed: run `make lock`"


def test_torch_and_torchvision_stay_a_pair():
    """torchvision 0.N+15 is compiled against torch 2.N; any other pair fails at import (`torchvision::nms`)."""
    torch, vision = version(LOCK["torch"]), version(LOCK["torchvision"])
    assert (torch.major, vision.major, vision.minor, vision.micro) == (2, 0, torch.minor + 15, torch.micro)


def test_conda_environment_installs_the_lock_on_the_same_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["project"]["name"]
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-r requirements.lock"]}]
    assert Version("3.11") in SpecifierSet(PROJECT["project"]["requires-python"])
    assert Version("3.10") not in SpecifierSet(PROJECT["project"]["requires-python"])
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"


def test_build_needs_only_what_the_lock_brings():
    """The editable install runs without build isolation, so that it downloads nothing beside the lock."""
    for requirement in map(Requirement, PROJECT["build-system"]["requires"]):
        assert version(LOCK[canonicalize_name(requirement.name)]) in requirement.specifier


def test_version_is_read_from_the_package():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "deepintuit.__version__"}
    assert str(Version(deepintuit.__version__)) == deepintuit.__version__


def test_every_file_of_the_package_is_shipped():
    """Modules ship by themselves; any other file must match a pattern of package-data."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    shipped = {
        path for package, globs in patterns.items() for glob in globs for path in (ROOT / ROOMS[package]).glob(glob)
    }
    files = {
        path
        for folder in ROOMS.values()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", ".tmp"}
    }
    assert files <= shipped
    packages = {module for module, path in SOURCES.items() if path.name == "__init__.py"}
    packages.add("deepintuit.configs")  # files alone
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])
    assert {module.rpartition(".")[0] for module in set(SOURCES) - packages} <= packages


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of a wheel that was built of the tracked files and installed away from the repository."""
    place = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if name.split("/")[0] in {*ROOMS.values(), "pyproject.toml", "README.md", "LICENSE"}:
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    alone = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *alone, "-w", str(place), str(place / "source")], check=True, timeout=200)
    (wheel,) = place.glob("*.whl")
    subprocess.run([*pip, "install", *alone, "--target", str(place / "site"), str(wheel)], check=True, timeout=200)
    shutil.rmtree(place / "source")
    return place / "site"


def test_a_wheel_puts_no_everyday_word_into_site_packages(installed):
    found = {path.name for path in installed.iterdir() if path.name != "bin" and not path.name.endswith(".dist-info")}
    assert found == {name for name in ROOMS if "." not in name}


def test_a_wheel_holds_every_file_of_the_rooms(installed):
    for room, folder in ROOMS.items():
        files = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()}
        kept = {path for path in files if path.suffix not in {".pyc", ".tmp"}}
        missing = {path for path in kept if not installed.joinpath(*room.split("."), path).is_file()}
        assert kept and not missing


def test_a_wheel_away_from_the_repository_runs_demo_app_and_clips(installed, tmp_path):
    def said(*words: str) -> str:
        program = [sys.executable, "-c", "import sys; from deepintuit.cli import main; sys.exit(main())", *words]
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert 'path = "embedded:homecam"' in said("demo", "--dry-run")
    assert "--trusted-host" in said("app", "--help")
    made = said("clips", "homecam", "--train", "20", "--test", "4", "--workbench", "bench", "--quiet")
    assert (
        made.startswith("Usable clips by split and label")
        and (tmp_path / "bench" / "clips" / "homecam.parquet").exists()
    )


def test_weights_ship_as_safetensors_and_stay_small():
    model = ROOT / "homecam" / "model"
    assert {path.suffix for path in model.iterdir()} <= {".safetensors", ".json", ".jinja", ".txt", ".md"}
    assert sum(path.stat().st_size for path in model.glob("*.safetensors")) <= 16 * 2**20


def test_console_script_leads_to_a_function():
    target = importlib.metadata.EntryPoint("deepintuit", PROJECT["project"]["scripts"]["deepintuit"], "console_scripts")
    assert callable(target.load())


def test_licence_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert all(f"\n   {clause}. " in text for clause in range(1, 10)) and "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_expands(target):
    done = subprocess.run(
        ["make", "--dry-run", "VENV=build/none", target], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_bare_make_lists_every_target():
    said = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    assert all(f"make {target} " in said for target in TARGETS)


def test_make_refuses_a_python_that_is_too_old_in_a_sentence(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["make", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "test"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "Python 3.11" in done.stderr and not (tmp_path / "venv").exists()


def test_ci_runs_the_same_command_as_the_readme():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 and "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert script.read_text(encoding="utf-8").strip().endswith("make test")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_linter_has_nothing_to_say(root):
    found = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_formatter_would_change_nothing(root):
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "."], cwd=root, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
