"""A small real workbench behind a real server in a real browser, for the tests of every page.

The workbench is written through the store's own API: eight MP4s of three seconds, one run of each stage that a page can
show, rollouts of two training steps, flips in both directions, a malformed trace, and one trace and one file name full
of markup. `site` is a `Site`; `page` is a Chromium page that fails its test when a request leaves the host.

A test that needs one writes its own workbench and calls `serve`.
Run it:  python -m pytest tests/browser        (skips, with the reason, where no Chromium is found)
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepintuit_homecam as homecam
from deepintuit import video
from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.runs import trace_id
from deepintuit_analysis import Workbench
from deepintuit_clips import import_csv, scan

LABELS = LabelSet.of("doorstep", ["delivery", "theft", "routine"])
DATASET = "doorstep"
HOSTILE_FILE = "test-4 <b onclick=alert(1)> ${1+1} {{7}} 'x'.mp4"
HOSTILE = (
    "<img src=x onerror=\"window.hacked='img'\"><script>window.hacked='script'</script> ${window.hacked='dollar'} "
    "{{window.hacked='braces'}} {{{value}}} `tick` \"quoted\" 'single' </textarea> &lt;b&gt; \x07\x1b[31m "
    "\u202eright to left"
)
TRUE = ("delivery", "delivery", "theft", "theft", "routine", "routine")
COLD = ("delivery", "theft", "theft", "theft", "delivery", NONE_LABEL)
REFINED = ("delivery", "delivery", "theft", "routine", "routine", "delivery")
CALIBRATED = ("delivery", "theft", "theft", "theft", "routine", "routine")
"""The six test clips: truth, provisional after cold start and after GRPO, calibrated (1 right→wrong, 2 wrong→right)."""


@dataclass
class Site:
    """A served workbench. `clips`: ids of the test clips in the order of `TRUE`; `traces`: name → trace id, with
    `cold-0` … `cold-5` and `refined-0` … `refined-5`, `hostile` (is `refined-4`) and `malformed` (is `cold-5`)."""

    url: str
    workbench: Workbench
    clips: list[str]
    traces: dict[str, str]
    runs: dict[str, str] = field(default_factory=dict)
    """`coldstart`, `grpo`, `calibrate`, `evaluate-cold`, `evaluate-refined` → run id."""


def text_of(label: str, clip: int, inside: str = "") -> str:
    """A think-answer trace that mentions times and frames."""
    seen = f"At 0.5 s a courier {clip} steps onto the porch. {inside}Frame 3 shows a box. From 1.0 to 2.0 s it moves."
    return f"<think> {seen} So it looks like {label}. </think><answer> {label} </answer>"


def write_clip(path: Path, number: int) -> None:
    """24 frames at 8 a second: a block that wanders over a ground of the clip's own colour."""
    frames = np.empty((24, 96, 128, 3), np.uint8)
    frames[:] = (40 + 20 * number, 90, 160 - 15 * number)
    for t in range(24):
        frames[t, 40:64, 4 * t : 4 * t + 24] = (240, 230 - 20 * number, 60)
    video.write_mp4(path, frames, 8.0)


def write_workbench(folder: Path) -> tuple[Workbench, list[str], dict[str, str], dict[str, str]]:
    """The workbench of this module's docstring; ids of the six test clips, traces by name, runs by name."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(homecam.MODEL / "tokenizer.json"))
    workbench = Workbench(folder)
    videos = folder / "sources" / DATASET
    videos.mkdir(parents=True)
    names = [HOSTILE_FILE if i == 4 else f"test-{i}.mp4" for i in range(6)] + ["grpo-0.mp4", "grpo-1.mp4"]
    rows = ["path,label,group,split"]
    for number, name in enumerate(names):
        write_clip(videos / name, number)
        label, split = (TRUE[number], "test") if number < 6 else (("delivery", "theft")[number - 6], "grpo")
        rows.append(f'"{name}",{label},camera-{number % 3},{split}')
    (videos / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    listing = import_csv(videos / "clips.csv", videos, labels=LABELS)
    manifest, _ = scan(listing, folder, DATASET, probe=video.probe, progress=False)
    manifest.save()
    by_file = {Path(path).name: clip for path, clip in zip(manifest.frame["path"], manifest.frame["clip_id"])}
    ids = [by_file[name] for name in names]
    rng = np.random.default_rng(0)

    def trace(run_id: str, number: int, label: str, text: str, model: Path, **more: Any) -> dict[str, Any]:
        frames = video.read(videos / names[number], 8, (64, 48))
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        logprobs = -rng.gamma(0.3, 0.3, len(tokens))
        true = TRUE[number] if number < 6 else ("delivery", "theft")[number - 6]
        row = {
            "clip_id": ids[number], "sample": 0, "temperature": 0.0, "text": text, "answer": f" {label} ",
            "provisional": label, "true_label": true, "tokens": len(tokens), "token_ids": tokens,
            "token_logprobs": logprobs, "frame_indices": frames.indices_T, "frame_times": frames.times_T,
            "frame_hash": frames.hash, "frames_size": (64, 48), "reader": frames.reader, "milliseconds": 20.0 + number,
            "confidence": float(np.exp(logprobs.mean())), "truncated": False, "model": str(model), **more,
        }  # fmt: skip
        return {**row, "trace_id": trace_id(run_id, ids[number], row["sample"], row.get("step"))}

    def predictions(traces: list[dict], system: str, method: str, predicted: list[str], control: str = "none") -> list:
        rows = []
        for row, label in zip(traces, predicted):
            probs = [0.8 if known == label else 0.1 for known in LABELS.labels]
            given = {} if method == "raw" else {"probs": probs, "labels": list(LABELS.labels), "outside_mass": 0.01}
            shared = {name: row[name] for name in ("clip_id", "trace_id", "true_label", "provisional")}
            rows.append(
                {
                    **shared,
                    **given,
                    "split": "test",
                    "system": system,
                    "method": method,
                    "control": control,
                    "predicted": label,
                    "temperature": None if method == "raw" else 0.9,
                }
            )
        return rows

    with workbench.start_run("coldstart", {"lr": 2e-3}, dataset=DATASET) as run:
        run.append("steps", [{"step": s, "name": "loss", "value": 2.0 / s} for s in range(1, 6)])
        shutil.copy(homecam.MODEL / "tokenizer.json", run.checkpoint)
        run.finish({"loss": 0.4})
    cold = run
    with workbench.start_run("grpo", {"group": 4}, parent=cold.id, dataset=DATASET) as run:
        for step in (1, 2):
            rollouts = []
            for number in (6, 7):
                for sample in range(4):
                    label = ("delivery", "theft")[(number + sample // (step + 1)) % 2]
                    text = text_of(label, number, f"Sample {sample}. ")
                    more = {"sample": sample, "step": step, "temperature": 1.0}
                    rollouts.append(trace(run.id, number, label, text, cold.checkpoint, **more))
            run.append("traces", rollouts)
            right = [float(row["provisional"] == row["true_label"]) for row in rollouts]
            kinds = {"accuracy": right, "format": [1.0] * 8, "reward": [1 + r for r in right]}
            kinds["advantage"] = [(r - 0.5) * 2 for r in right]
            run.append("scores", [
                {"trace_id": row["trace_id"], "name": name, "value": value, "evidence": row["provisional"]}
                for name, values in kinds.items() for row, value in zip(rollouts, values)
            ])  # fmt: skip
            share = np.mean(right)
            logged = {
                "reward": 1 + share,
                "accuracy": share,
                "well_formed": 1.0,
                "entropy": 0.3 / step,
                "loss": 0.01,
                "zero_variance_share": 0.0,
                "tokens_mean": 40.0,
                "truncated_share": 0.0,
            }
            run.append("steps", [{"step": step, "name": name, "value": float(value)} for name, value in logged.items()])
        run.finish({"clips": 2, "steps": 2})
    refined = run
    with workbench.start_run("calibrate", {}, parent=refined.id, dataset=DATASET) as run:
        run.append("steps", [{"step": s, "name": "validation_nll", "value": 1.0 / s} for s in range(1, 4)])
        run.finish({"validation_nll": 0.33})
    calibrator = run
    with workbench.start_run("evaluate", {}, parent=cold.id, name="cold start", dataset=DATASET) as run:
        traces = [trace(run.id, i, label, text_of(label, i), cold.checkpoint) for i, label in enumerate(COLD)]
        broken = "<think> At 0.5 s a courier steps onto the porch, and then"
        traces[5] |= {
            "text": broken,
            "answer": None,
            "reason": "truncated",
            "truncated": True,
            "token_ids": None,
            "token_logprobs": None,
            "detail": "cut at the token limit: <think> is never closed",
        }
        run.append("traces", traces)
        run.append("predictions", predictions(traces, "cold start", "raw", list(COLD)))
        run.finish({"system": "cold start", "clips": 6})
    named = {f"cold-{i}": row["trace_id"] for i, row in enumerate(traces)} | {"malformed": traces[5]["trace_id"]}
    evaluated = run
    with workbench.start_run("evaluate", {}, parent=calibrator.id, name="cold start + GRPO", dataset=DATASET) as run:
        said = [text_of(label, i, HOSTILE if i == 4 else "") for i, label in enumerate(REFINED)]
        traces = [trace(run.id, i, REFINED[i], said[i], refined.path / "checkpoint") for i in range(6)]
        run.append("traces", traces)
        run.append("predictions", predictions(traces, "cold start + GRPO", "raw", list(REFINED)))
        blank = COLD[:5] + ("theft",)
        for control, labels in (("none", CALIBRATED), ("trace_blanked", blank), ("video_blanked", REFINED)):
            rows = predictions(traces, "cold start + GRPO", "label_likelihood", list(labels), control)
            run.append("predictions", rows)
        run.finish({"system": "cold start + GRPO", "clips": 6})
    named |= {f"refined-{i}": row["trace_id"] for i, row in enumerate(traces)} | {"hostile": traces[4]["trace_id"]}
    runs = {
        "coldstart": cold.id,
        "grpo": refined.id,
        "calibrate": calibrator.id,
        "evaluate-cold": evaluated.id,
        "evaluate-refined": run.id,
    }
    workbench.refresh()
    return workbench, ids[:6], named, runs


def serve(folder: Path, **settings: Any) -> contextlib.AbstractContextManager[str]:
    """The dashboard of a workbench on a free port of this machine; gives its address, stops the server at the end."""
    from deepintuit_app.app import served

    return served(folder, **settings)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests of the session. A test that writes into the workbench makes one of its own."""
    workbench, clips, traces, runs = write_workbench(tmp_path_factory.mktemp("site") / "workbench")
    with serve(workbench.path) as url:
        yield Site(url, workbench, clips, traces, runs)
