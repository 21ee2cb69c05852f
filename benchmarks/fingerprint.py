"""What the training code does, in a few numbers: the losses, sampled traces and scores of one fixed tiny run of every
stage.

A result is the present code's when both behave alike, whatever was moved or renamed between their commits. Each file
of results keeps the fingerprint of the code that made it; `make check` compares it with the present one.

    python benchmarks/fingerprint.py                        shows the present fingerprint
    python benchmarks/fingerprint.py docs/evidence/*.json   compares files with it, exit code 1 where one differs

Machines, thread counts and builds of torch round differently. `differences` allows for that: hashes must be equal,
nine of ten traces the same, and numbers equal within one per cent. A change of the method moves them by far more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deepintuit import calibrate, cli, coldstart, config, evaluate, grpo, teach
from deepintuit.runs import Run, trace_id
from deepintuit.schedule import fractions
from deepintuit_analysis import Workbench
from deepintuit_homecam import LABELS, demo

ROOT = Path(__file__).resolve().parents[1]

Fingerprint = dict[str, str]
"""Part → its numbers, or hashes that begin with #, separated by spaces."""

_SETTINGS = (
    "clips.coldstart_share=0.4", "clips.grpo_share=0.3", "clips.calibration_share=0.3", "clips.validation_share=0.2",
    "sampling.max_tokens=32", "coldstart.epochs=4", "coldstart.batch=8", "coldstart.learning_rate=2e-3",
    "grpo.group=4", "grpo.clips_per_step=4", "grpo.max_steps=2", "grpo.max_tokens=32", "grpo.check_clips=0",
    "grpo.warmup_steps=0", "calibrate.traces=2", "calibrate.epochs=4", "calibrate.learning_rate=3e-3",
    "evaluate.bootstrap=50",
)  # fmt: skip
"""The calibrator's rate is too high for its few rows, so that where it stops early is part of what is seen."""
_TRAIN, _TEST = 36, 6
_TRACES_ALIKE, _TOLERANCE = 0.9, 0.01


def fingerprint() -> Fingerprint:
    """Run every stage once on a few clips of the embedded world, in a folder that is gone afterwards; about half a
    minute of one core."""
    with tempfile.TemporaryDirectory(prefix="deepintuit-fingerprint-") as folder:
        settings = config.load(ROOT / "configs" / "tiny.toml", [f"workbench={folder}", *_SETTINGS])
        bench, quiet = Workbench(folder), {"progress": False}
        demo.clips(settings, _TRAIN, _TEST, jobs=1, fractions=fractions(settings), **quiet)
        teacher = teach.run(bench, settings, **quiet)
        cold = coldstart.run(bench, settings, teacher=_short_traces(bench, teacher).id, **quiet)
        refined = grpo.run(bench, settings, start=cold.id, **quiet)
        calibrator = calibrate.run(bench, settings, reasoner=refined.id, **quiet)
        plain = settings.replace(evaluate={"controls": False})
        scored = evaluate.run(bench, plain, reasoner=refined.id, calibrator=calibrator.id, **quiet)
        return {
            "clips": _hash(scored.read("traces")["frame_hash"]),
            "teach": _hash(teacher.read("traces")["text"]),
            "coldstart": _numbers(cold, "loss", "grad_norm"),
            "grpo": _numbers(refined, "loss", "grad_norm", "accuracy", "reward"),
            "grpo_traces": _texts(refined),
            "calibrate": _numbers(calibrator, "loss", "grad_norm", "validation_nll"),
            "calibrate_traces": _texts(calibrator),
            "evaluate": _probabilities(scored),
            "evaluate_traces": _texts(scored),
        }


def differences(old: Mapping | None, new: Fingerprint) -> list[str]:
    """Names of what differs by more than rounding, of those that the result keeps: a table of cold starts does not hang
    on how calibrators are trained. All of them for a result that keeps no fingerprint."""
    return [name for name in old or new if not _alike((old or {}).get(name), new[name])]


def _alike(old: str | None, new: str) -> bool:
    before, now = (old or "").split(), new.split()
    if len(before) != len(now):
        return False
    if now[0].startswith("#"):
        return np.mean([a == b for a, b in zip(before, now)]) >= _TRACES_ALIKE
    return np.allclose(np.array(before, float), np.array(now, float), rtol=_TOLERANCE, atol=_TOLERANCE)


def _short_traces(bench: Workbench, teacher: Run) -> Run:
    """Traces of a few words for the teacher's clips, so that few updates teach their form and leave the label open."""
    openings = ("It is day.", "It is night.", "A dog is seen.")
    with bench.start_run("teach", {"made": "short"}, name="short", dataset="homecam") as run:
        asked = [(clip, k) for clip in sorted(set(teacher.read("traces")["clip_id"])) for k in range(8)]
        draws = [random.Random(f"{number}/{k}") for number, (_, k) in enumerate(asked)]
        texts = [f"<think> {d.choice(openings)} </think><answer> {d.choice(LABELS.labels)} </answer>" for d in draws]
        run.append("traces", [{"clip_id": c, "sample": k, "text": text} for (c, k), text in zip(asked, texts)])
        run.append("scores", [{"trace_id": trace_id(run.id, *one), "name": "kept", "value": 1.0} for one in asked])
        run.finish({})
    return run


def _numbers(run: Run, *names: str) -> str:
    steps = run.read("steps").sort_values(["name", "step"])
    return " ".join(f"{value:.4g}" for value in steps.loc[steps["name"].isin(names), "value"])


def _texts(run: Run) -> str:
    traces = run.read("traces").sort_values(["step", "clip_id", "sample"])
    return " ".join(_hash([text]) for text in traces["text"])


def _probabilities(run: Run) -> str:
    rows = run.read("predictions").query("control == 'none' and split == 'test'").sort_values(["method", "clip_id"])
    return " ".join(f"{value:.3f}" for probs in rows["probs"].dropna() for value in probs)


def _hash(texts: Sequence[str]) -> str:
    return "#" + hashlib.sha256("\n".join(sorted(map(str, texts))).encode()).hexdigest()[:8]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="files of results; none: show the present fingerprint")
    results = parser.parse_args().results
    cli.quiet_libraries()
    present = fingerprint()
    if not results:
        print(json.dumps(present))
    found = {path: differences(json.loads(path.read_text()).get("fingerprint"), present) for path in results}
    for path, names in found.items():
        print(f"{path}: " + (f"differs in {', '.join(names)}" if names else "made by code that behaves as the present"))
    sys.exit(any(found.values()))
