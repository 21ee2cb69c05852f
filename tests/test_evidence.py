"""Evidence read from a finished workbench: label sets and classes as the report has them, and nothing trained."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import LABELS, clip_row

from deepintuit.data import Manifest
from deepintuit.labels import LabelSet
from deepintuit_analysis import Workbench
from deepintuit_analysis.report import Measured, table_of

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import evidence
import fingerprint
import household
import slices

ROOT = Path(__file__).parents[1]

CLIPS = 60


@pytest.fixture
def finished(tmp_path: Path) -> argparse.Namespace:
    """Seed 3 as it lies when its training is over: a cold start whose raw labels err on every third clip."""
    workbench = Workbench(tmp_path / "seed-3")
    truth = [LABELS[k % 2] for k in range(CLIPS)]
    clips = [clip_row(f"c{k:02}", label) for k, label in enumerate(truth)]
    Manifest(workbench.path, "homecam", pd.DataFrame(clips), LabelSet.of("homecam", LABELS)).save()
    rng = np.random.default_rng(0)
    with workbench.start_run("evaluate", {"system": "cold start"}, dataset="homecam", seed=3) as run:
        rows = []
        for k, label in enumerate(truth):
            sure = float(rng.uniform(0.4, 1.0))
            row = {"clip_id": f"c{k:02}", "split": "test", "system": "cold start", "true_label": label}
            raw = LABELS[(k + (k % 3 == 0)) % 2]
            rows.append({**row, "method": "raw", "predicted": raw, "provisional": raw})
            probs = [sure, 1 - sure] if label == LABELS[0] else [1 - sure, sure]
            answer = LABELS[int(np.argmax(probs))]
            rows.append({**row, "method": "label_likelihood", "predicted": answer, "labels": LABELS, "probs": probs})
        run.append("predictions", rows)
        run.finish({})
    with workbench.start_run("evaluate", {"split": "validation"}, dataset="homecam", seed=3) as held_out:
        sure = {"probs": [0.7, 0.3], "labels": LABELS, "predicted": LABELS[0], "true_label": LABELS[0]}
        held_out.append(
            "predictions",
            [
                {
                    "clip_id": f"v{k}",
                    "split": "validation",
                    "system": "cold start",
                    "method": "label_likelihood",
                    **sure,
                }
                for k in range(20)
            ],
        )
        held_out.finish({})
    return argparse.Namespace(workbench=str(tmp_path), set=["evaluate.bootstrap=50"])


def rows_of(run) -> list[dict]:
    return run.read("predictions").query("method == 'label_likelihood'").to_dict("records")


def kept(options: argparse.Namespace, **more: object) -> dict:
    """What a file of an older version holds: the rows alone."""
    run = Workbench(Path(options.workbench) / "seed-3").runs("evaluate")[0]
    rows = [row.measured for row in table_of(run.read("predictions"), LABELS)]
    return {"seed": 3, "commit": "abc", "minutes": 70.0, "rows": [vars(row) for row in rows], **more}


def test_a_finished_seed_read_again_gets_its_label_sets_and_classes_and_keeps_what_it_had(finished):
    found = json.loads(json.dumps(evidence.again(kept(finished), finished)))
    assert (found["commit"], found["minutes"]) == ("abc", 70.0), "it was trained when it was trained"
    assert [(one["method"], one["target"], one["n"]) for one in found["sets"]] == [
        ("label_likelihood", 0.9, CLIPS),
        ("label_likelihood", 0.95, CLIPS),
    ]
    nine, _ = found["sets"]
    run = Workbench(Path(finished.workbench) / "seed-3").runs("evaluate")[0]
    [row] = [row for row in table_of(run.read("predictions"), LABELS) if row.method == "label_likelihood"]
    assert nine["coverage"]["value"] == row.sets[0].coverage.value and nine["size"] == row.sets[0].size
    # 30 clips a half: the quantile is the 28th of 31, so new clips are covered as Beta(28, 3) says.
    assert nine["exact"] == pytest.approx([0.779, 0.979], abs=1e-3)
    assert nine["mean_coverage"] == pytest.approx(28 / 31, abs=0.01) and nine["scores"] == CLIPS
    # Validation clips give their truth 0.7 each: the sets hold every label of at least 0.7.
    held = [row["probs"] for row in rows_of(run) if max(row["probs"]) >= 0.7 - 1e-9]
    right = [row for row in rows_of(run) if row["probs"][LABELS.index(row["true_label"])] >= 0.7 - 1e-9]
    assert nine["validation"]["n"] == 20 and nine["validation"]["size"] == pytest.approx(len(held) / CLIPS)
    assert nine["validation"]["coverage"]["value"] == pytest.approx(len(right) / CLIPS)
    assert list(found["classes"]["stages"]) == ["cold start", "calibrated label"]
    assert found["classes"]["support_K"] == [30, 30] and len(found["classes"]["gains_K"]) == 2


def test_a_workbench_of_other_scores_is_refused(finished):
    other = kept(finished)
    other["rows"][0]["values"] = {**other["rows"][0]["values"], "accuracy": 0.123}
    with pytest.raises(SystemExit, match="scores cold start otherwise"):
        evidence.again(other, finished)
    with pytest.raises(SystemExit, match="no workbench of seed 4"):
        evidence.again(kept(finished, seed=4), finished)


def test_the_page_has_both_tables_of_the_seeds_that_hold_them(finished):
    new = evidence.again(kept(finished), finished)
    text = evidence.page([new, kept(finished, seed=4)], "command")
    assert "Seeds 3, 4" in text and text.count("(seed 3).") == 2
    [line] = [
        line
        for line in text.splitlines()
        if line.startswith("| cold start | calibrated label | 9") and "–" in line and line.count("|") == 9
    ]
    assert f"{100 * new['sets'][0]['coverage']['value']:.1f} (" in line
    assert "Beta" not in text and "a beta distribution" in text
    assert "quantiles of the validation clips (20 on seed 3; " in text
    assert "| cat | 30 |" in text and "label sets" not in evidence.page([kept(finished)], "c").lower()
    assert Measured(**new["rows"][0]).n == CLIPS


def test_every_result_that_is_shown_was_made_by_code_that_behaves_as_this_code():
    present = fingerprint.fingerprint()
    files = sorted((ROOT / "docs" / "evidence").glob("*.json"))
    kept = {file.name: json.loads(file.read_text(encoding="utf-8")).get("fingerprint") for file in files}
    differing = {name: fingerprint.differences(old, present) for name, old in kept.items()}
    assert kept and not any(differing.values()), differing


def test_rounding_leaves_a_fingerprint_alike_and_another_number_trace_or_hash_does_not():
    old = {"clips": "#a1", "loss": "2.303 0.05", "traces": " ".join(f"#{n}" for n in range(20))}
    rounded = old | {"loss": "2.304 0.0501", "traces": old["traces"].replace("#3 ", "#z ")}
    assert fingerprint.differences(old, rounded) == []
    for name, value in {"clips": "#a2", "loss": "2.4 0.05", "traces": " ".join(f"#{n}" for n in range(3, 23))}.items():
        assert fingerprint.differences(old, old | {name: value}) == [name]
    assert fingerprint.differences(old, old | {"loss": "2.303"}) == ["loss"], "an update less"
    assert fingerprint.differences(None, old) == list(old), "a result without a fingerprint is nobody's"
    assert fingerprint.differences({"clips": "#a1"}, old) == [], "a table need not hang on all of it"


def test_the_tables_of_readme_and_worlds_are_those_of_the_results_on_file():
    files = sorted((ROOT / "docs" / "evidence").glob("household-*.json"))
    seeds = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    table = household.table(seeds)
    assert len(seeds) > 2 and table.count("\n| ") == 9, "a head, seven slices and all"
    readme, worlds = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/worlds.md"))
    assert f"<!-- household -->\n{household.table(seeds, household.STAGES)}\n<!-- /household -->" in readme
    assert f"<!-- household -->\n{table}\n\n{household.by_seed(seeds)}\n<!-- /household -->" in worlds


def test_each_table_of_slices_on_the_page_is_that_of_the_results_on_file():
    page = (ROOT / "docs" / "worlds.md").read_text(encoding="utf-8")
    for name in slices.TABLES:
        files = sorted((ROOT / "docs" / "evidence").glob(f"{name}-household-*.json"))
        seeds = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        assert bool(seeds) == (f"<!-- {name} -->" in page), name
        assert not seeds or f"<!-- {name} -->\n{slices.page(name, seeds)}\n<!-- /{name} -->" in page, name
