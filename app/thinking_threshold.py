"""What a threshold of thinking would cost and bring: the words under Watch's slider (VideoAuto-R1).

Measured on the stored evaluations in which every trace of the reasoner gave a quick answer and thought on all the same.
"""

from __future__ import annotations

from functools import lru_cache

from deepintuit.data import Manifest
from deepintuit.metrics import GateCurve, cheapest_threshold, gate_curve
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import clips
from deepintuit_analysis.numbers import percent
from deepintuit_analysis.report.thinking import GATE_COLUMNS, QUICK_GRAMMARS, quick_answers
from deepintuit_app.html import empty, note, render


def consequences(workbench: Workbench, reasoner: str | None, threshold: float) -> str:
    """Share of clips that think, accuracy and tokens per clip: at the threshold, always thinking, and never."""
    if not reasoner:
        return ""
    grammar = clips.grammar_of(workbench, reasoner)
    if grammar not in QUICK_GRAMMARS:
        return note("This reasoner gives no quick answer, so it always thinks.")
    measured = clips.watched(workbench, reasoner)
    n, curve = _curve(workbench.path, *measured[:2]) if measured else (0, None)
    if not n:
        command = f"deepintuit evaluate --reasoner {reasoner} --set prompt.grammar={grammar}"
        return empty(
            "What this threshold costs was not measured yet.",
            "Let every trace think, on validation:",
            f"{command} --set gate.by=off --set evaluate.split=validation",
        )
    run, _, split = measured
    at = threshold if threshold < 1 else float("inf")
    rows = [
        [name, percent(rate), percent(right, 1), f"{tokens:.0f}"]
        for name, (rate, right, tokens) in (
            ("Always thinks", curve.at(float("inf"))), (f"At {threshold:.2f}", curve.at(at)),
            ("Never, where it may", curve.at(0.0)),
        )
    ]  # fmt: skip
    best = cheapest_threshold(curve)
    hint = f"The lowest threshold that loses nothing there is {best:.3f}" if best <= 1 else "There thinking always pays"
    if split != "validation":
        hint = "Choose a threshold on validation clips: evaluate them with gate.by=off and evaluate.split=validation"
    about = f"Provisional labels, and tokens per clip, of {n} {split} clips in {run}. {hint}."
    return render("watch/thinking.html", rows=rows, about=about)


@lru_cache(maxsize=32)
def _curve(path, run: str, dataset: str) -> tuple[int, GateCurve]:
    """Of a finished run, which does not change."""
    traces = Workbench(path).run(run).read("traces")
    quick = quick_answers(traces[traces["sample"] == 0], Manifest.load(path, dataset).labels)
    return len(quick), gate_curve(*(quick[name] for name in GATE_COLUMNS))
