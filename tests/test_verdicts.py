"""What a trace page says of seeing, arguing and thinking."""

import pytest

from deepintuit_app.verdicts import verdicts

CONFIDENT, CALIBRATED = {"by": "confidence", "threshold": 0.97}, {"by": "calibrated", "threshold": 0.9}
RIGHT, WRONG = {"provisional": "theft"}, {"provisional": "stray"}


@pytest.mark.parametrize(
    "enough, row, words",
    [
        (1.0, RIGHT, "Seen enough, concluded rightly"),
        (1.0, WRONG, "Seen enough; the reasoning failed"),
        (0.0, RIGHT, "Right without having seen enough"),
        (0.0, WRONG, "The seeing failed"),
    ],
)
def test_it_says_which_of_seeing_and_reasoning_failed(enough, row, words):
    found = verdicts({"sufficient": (enough, "it leads to <b>stray</b>")}, row, "theft")
    assert words in found and "&lt;b&gt;stray" in found and "<b>" not in found


@pytest.mark.parametrize(
    "enough, row, people, words",
    [
        (1.0, WRONG, ["reasoning", "reasoning"], "it fails in reasoning (2); the judge says the same"),
        (0.0, WRONG, ["seeing", "reasoning", "seeing"], "seeing (2), reasoning (1); by the judge it fails in seeing"),
        (1.0, RIGHT, ["seeing"], "it fails in seeing (1); by the judge it fails in neither"),
        (0.0, RIGHT, [], ""),
        (None, RIGHT, ["seeing"], ""),
    ],
)
def test_reviewers_stand_beside_the_judge_where_both_said_something(enough, row, people, words):
    scores = {} if enough is None else {"sufficient": (enough, "yes")}
    found = verdicts(scores, row, "theft", people)
    assert words in found and ("By reviewers" in found) == bool(words)


def test_an_answer_that_does_not_follow_says_what_was_argued():
    said = verdicts({"mismatch": (1.0, "delivery")}, RIGHT, "theft")
    assert "argues for delivery, the provisional label is theft" in said
    assert "argues for no label" in verdicts({"mismatch": (1.0, "none")}, RIGHT, "theft")
    assert verdicts({"mismatch": (0.0, "theft")}, RIGHT, "theft") == ""


@pytest.mark.parametrize(
    "confidence, judged, thought, gate, words",
    [
        (0.991, None, False, CONFIDENT, "at once: its tokens were 0.991 sure of the quick answer, at least the"),
        (0.5, None, True, CONFIDENT, "its tokens were 0.500 sure of the quick answer, less than the 0.97 that"),
        (0.5, None, True, {}, "sure of the quick answer, and no gate could end it there."),
        (0.5, None, True, None, "Thought: its tokens were 0.500 sure of the quick answer."),
        (0.2, 0.98, False, CALIBRATED, "once: the calibrator was 0.980 sure of the quick answer, at least the 0.9"),
        (0.99, 0.6, True, CALIBRATED, "the calibrator was 0.600 sure of the quick answer, less than the 0.9"),
        (0.99, float("nan"), True, CALIBRATED, "and no gate could end it there"),  # its training
        (-1.0, None, True, CONFIDENT, "Thought: the quick answer was put off, or missing."),
        (None, None, None, {}, ""),
        (float("nan"), None, None, {}, ""),
    ],
)
def test_it_says_whether_it_thought_and_why(confidence, judged, thought, gate, words):
    row = {**RIGHT, "quick_confidence": confidence, "quick_probability": judged, "thought": thought}
    found = verdicts({}, row, "theft", gate=gate)
    assert words in found and bool(found) == bool(words)


def test_where_nothing_is_known_nothing_is_said():
    assert verdicts({}, RIGHT, None) == ""
