"""Benchmarks are whole: each says how it is run, and stands in docs/performance.md with what it measured."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
SHARED = {"measure", "routes", "all"}
APART = {
    "evidence",
    "household",
    "slices",
    "systems",
    "review_loop",
    "fingerprint",
    "scale",
    "unlike",
    "near",
    "serve_load",
    "gpu",
}
"""They take hours, count instead of measuring, or want a GPU, real clips or a trained system."""
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in SHARED)
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", [*SCRIPTS, "all"])
def test_each_script_says_how_it_is_run(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("usage:") and len(told.splitlines()) > 5


def test_make_bench_runs_each_script_that_measures_speed():
    assert set(importlib.import_module("all").SCRIPTS) == set(SCRIPTS) - APART


def test_the_table_of_the_page_names_each_script_with_its_command_and_commit():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "`python benchmarks/" in line]
    named = {re.search(r"`python benchmarks/(\w+)\.py", line)[1] for line in rows}
    told = set(re.findall(r"`(\w+)`, (?:no|stopped|ended)", PAGE))
    assert named | told == set(SCRIPTS) - APART
    assert all(re.search(r"`[0-9a-f]{7}`\+? \|$", line) for line in rows)


def test_a_row_compares_medians_and_gives_the_range_of_the_turns(tmp_path, monkeypatch, capsys):
    measure = importlib.import_module("measure")
    row = measure.Row("a claim", [1.0, 2.0, 1.0], [4.0, 4.0, 3.0], {"passes": (8, 1)}, aim=5)
    assert (row.ratio, row.range, row.missed) == (4.0, (2.0, 4.0), True)
    alone = measure.Row("seconds", [0.2, 0.3, 0.1], aim=0.25)
    assert (alone.ratio, alone.range, alone.missed) == (None, (0.1, 0.3), False)
    monkeypatch.setattr(sys, "argv", ["claim.py", "--repeats", "3", "--json", str(tmp_path / "claim.json")])
    given = measure.chosen(measure.options("A claim.", repeats=5))
    measure.report(given, [row, alone], "two rows")
    said = capsys.readouterr().out
    assert "4.00 times as fast (2.00 to 4.00), n = 3; passes 8 → 1" in said and "200 ms (100 ms to 300 ms)" in said
    kept = json.loads((tmp_path / "claim.json").read_text())
    assert (kept["script"], kept["options"]) == ("claim", "--repeats 3"), "where the rows went is nobody's business"
    page = importlib.import_module("all")
    kept["rows"] = [measure.Row(**one) for one in kept["rows"]]
    table = page.tables([kept], {"gate": "no time was left"})
    assert "| a claim | 4.00 s | 1.00 s | **4.00×** (2.00–4.00) | 3 | passes 8 → 1 | ≥ 5×, missed |" in table
    assert "| seconds | – | 200 ms (100 ms–300 ms) | – | 3 | – | ≤ 250 ms |" in table and "`gate`, no time" in table


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The benchmark at small shape on this CPU; called with more words it gives what it kept."""
    script, out = importlib.import_module("gpu"), tmp_path / "kept" / "gpu.json"

    def run(*words: str) -> dict:
        given = ["--shape", "tiny", "--device", "cpu", "--folder", str(tmp_path), "--json", str(out), *words]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *given])
        script.main()
        assert [path.name for path in tmp_path.iterdir()] == ["kept"], "the checkpoint is removed"
        return json.loads(out.read_text())

    run.script = script
    return run


def test_the_benchmark_of_a_gpu_runs_whole_at_small_shape_and_a_part_that_fails_stops_no_other(gpu, monkeypatch):
    def broken(bench):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.script.PARTS, "tower", broken)
    monkeypatch.setitem(gpu.script.NEEDS, "qlora", "no_such_package")
    kept = gpu("--together")
    parts = kept["parts"]
    assert [*parts] == [*gpu.script.PARTS] and kept["shape"] == "tiny" and kept["torch"] and kept["commit"]
    assert parts.pop("tower") == {"failed": "RuntimeError: out of memory"}
    assert [parts.pop(name)["failed"] for name in ("qlora", "vllm")] == [
        f"{package} is not installed" for package in ("no_such_package", "vllm")
    ]
    assert not {name for name, told in parts.items() if "failed" in told}, parts
    for name in ("load", "sampling", "loss"):
        measured = parts[name].get("peak_gib", parts[name].get("weights_gib"))
        assert parts[name]["planned_gib"] == pytest.approx(measured, rel=0.15), name
    assert parts["sampling"]["loss_against_sampling"]["most"] < 1e-4 and parts["plain"]["seconds_over_ours"] > 0


def test_a_part_of_it_is_stopped_when_its_time_is_over(gpu, tmp_path):
    bench = gpu.script.Bench("tiny", tmp_path, "cpu")
    assert gpu.script.part_alone(bench, "load", 0.2) == {"failed": "stopped after 0.2 s"}
    assert gpu("--whole", "1")["parts"] == {"checkpoint": {"failed": "no time was left"}}


@pytest.mark.slow
@pytest.mark.thorough
def test_its_parts_are_processes_of_their_own(gpu):
    parts = gpu("--only", "load", "scores", "qlora")["parts"]
    assert "failed" not in {**parts["load"], **parts["scores"]} and parts["load"]["trained"] > 0


def test_both_routes_write_the_same_traces_and_count_what_they_compute(tmp_path):
    routes, measure = importlib.import_module("routes"), importlib.import_module("measure")
    written, counts = {}, {}
    for name, vlm, clips in routes.Pair("embedded", tmp_path):
        keys = [[f"{clip.clip_id}/{number}" for number in range(2)] for clip in clips]
        with measure.Counted() as counts[name]:
            groups = routes.sampled(vlm, clips, [routes.PROMPT] * 2, keys, temperature=1, max_tokens=6)
        written[name] = [(one.text, one.token_ids, one.truncated) for group in groups for one in group]
        longest = max(len(vlm.prompt_ids(clip, routes.PROMPT)) for clip in clips)
    assert written["plain"] == written["ours"]
    assert (counts["plain"].towers, counts["ours"].towers) == (4, 0)
    assert counts["plain"].tokens >= 4 * longest and counts["ours"].tokens < 2 * longest + 4 * 6
