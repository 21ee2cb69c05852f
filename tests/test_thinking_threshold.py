"""What Watch says under the threshold of thinking: by hand, from the evaluation in which every trace thought on."""

import pytest
from porch import live_workbench

from deepintuit_analysis.index import clips
from deepintuit_app.thinking_threshold import consequences

GRAMMAR = {"prompt": {"grammar": "answer-think-answer"}}


@pytest.fixture(scope="module")
def workbench(tmp_path_factory):
    return live_workbench(tmp_path_factory.mktemp("thinking") / "workbench")


def reasoner_of(workbench, name):
    with workbench.start_run("coldstart", GRAMMAR, dataset="porch", name=name) as run:
        run.finish({})
    return run.id


def evaluated(workbench, reasoner, split, confidences, gate=None):
    """Two clips: a quick answer that is right, and one that is wrong and mended by thinking."""
    settings = GRAMMAR | {"evaluate": {"split": split}} | ({"gate": gate} if gate else {})
    with workbench.start_run("evaluate", settings, parent=reasoner, dataset="porch") as run:
        run.append("traces", [
            {"clip_id": clip, "sample": 0, "text": rf"\boxed{{{quick}}}<think>t</think>\boxed{{theft}}",
             "provisional": "theft", "true_label": "theft", "truncated": False, "tokens": tokens, "quick_tokens": 4,
             "quick_confidence": confidence, "thought": True}
            for clip, quick, tokens, confidence in zip("ab", ("theft", "routine"), (10, 12), confidences)
        ])  # fmt: skip
        run.finish({})
    workbench.refresh()
    return run.id


def test_the_slider_tells_what_its_threshold_costs_and_brings(workbench):
    reasoner = reasoner_of(workbench, "quick")
    evaluated(workbench, reasoner, "test", (0.2, 0.2))
    said = consequences(workbench, reasoner, 0.8)
    assert "of 2 test clips" in said and "Choose a threshold on validation clips" in said
    assert "loses nothing" not in said
    measured = evaluated(workbench, reasoner, "validation", (0.9, 0.6))
    gated = {"by": "calibrated", "threshold": 0.9}
    other = evaluated(workbench, reasoner, "validation", (0.1, 0.1), gated)
    assert clips.watched(workbench, reasoner) == (measured, "porch", "validation")
    assert clips.gate_of(workbench, other) == gated and clips.gate_of(workbench, measured) == {}
    said = consequences(workbench, reasoner, 0.8)
    for name, *numbers in (
        ("Always thinks", "100 %", "100.0 %", "11"),
        ("At 0.80", "50 %", "100.0 %", "8"),  # the first stands after 4 tokens, the second thinks for 12
        ("Never, where it may", "0 %", "50.0 %", "4"),
    ):
        assert f">{name}</th>" + "".join(f"<td>{text}</td>" for text in numbers) in said
    assert f"of 2 validation clips in {measured}. The lowest threshold that" in said and "is 0.900" in said
    assert consequences(workbench, reasoner, 1.0).count("<td>11</td>") == 2  # the slider's end always thinks


def test_without_a_measurement_the_slider_says_what_to_run(workbench):
    reasoner = reasoner_of(workbench, "unmeasured")
    workbench.refresh()
    said = consequences(workbench, reasoner, 0.5)
    assert f"deepintuit evaluate --reasoner {reasoner}" in said and "evaluate.split=validation" in said
    plain = next(row["run_id"] for row in clips.reasoners(workbench) if row["calibrator"])
    assert "gives no quick answer" in consequences(workbench, plain, 0.5)
    assert consequences(workbench, None, 0.5) == ""
