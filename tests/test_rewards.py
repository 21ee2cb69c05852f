"""Rewards: what earns, what does not, and the evidence that stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import ConfigError, LabelError
from deepintuit.labels import LabelSet
from deepintuit.rewards import accuracy_reward, format_reward, overlong_penalty, score
from deepintuit.trace import parse

LABELS = LabelSet("home", ("Normal", "abnormal"), {}, {"odd": "abnormal"})


def read(text, **more):
    return parse(text, "think-answer", LABELS, **more)


RIGHT = read("<think>a</think><answer>ABNORMAL.</answer>")


def test_the_right_answer_in_the_right_form_earns_both_rewards():
    assert (accuracy_reward(RIGHT, "abnormal"), format_reward(RIGHT)) == (1.0, 1.0)


def test_a_wrong_answer_in_the_right_form_earns_the_form_alone():
    assert (accuracy_reward(RIGHT, "Normal"), format_reward(RIGHT)) == (0.0, 1.0)


def test_case_and_space_of_the_true_label_do_not_matter():
    assert accuracy_reward(read("<think>a</think><answer>\nnormal\n</answer>"), " NORMAL") == 1.0


def test_an_alias_earns_what_its_label_earns():
    assert accuracy_reward(read("<think>a</think><answer>odd</answer>"), "abnormal") == 1.0


@pytest.mark.parametrize("text, accuracy", [
    ("Sure. <think>a</think><answer>abnormal</answer>", 1.0),
    ("<answer>abnormal</answer>", 1.0),
    ("<answer>Normal</answer><answer>abnormal</answer>", 0.0),
    ("abnormal", 0.0),
    ("", 0.0),
    ("<think>a</think><answer>abnormal", 0.0),
])
def test_a_broken_form_earns_no_form_and_a_clear_answer_still_counts(text, accuracy):
    assert (accuracy_reward(read(text), "abnormal"), format_reward(read(text))) == (accuracy, 0.0)


def test_unknown_label_scores_zero_and_says_why():
    found = score(read("<think>a</think><answer>dog</answer>"), "abnormal")
    assert (found.value, found.answer, found.reason) == (0.0, "none", "unknown_label")


@pytest.mark.parametrize("label", ["", " ", "none", "None."])
def test_a_clip_without_a_true_label_stops_the_run(label):
    with pytest.raises(LabelError):
        accuracy_reward(RIGHT, label)


def test_a_broken_trace_stops_the_run_instead_of_scoring_zero():
    with pytest.raises(AttributeError):
        accuracy_reward(None, "abnormal")


@pytest.mark.parametrize("length, penalty", [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (500, -1)])
def test_the_length_penalty_falls_in_a_line_to_minus_one_at_the_limit(length, penalty):
    assert overlong_penalty(length, 100, 20) == pytest.approx(penalty)


def test_no_cache_means_no_length_penalty():
    assert overlong_penalty(10_000, 100, 0) == 0


@pytest.mark.parametrize("cache", [-1, 101])
def test_an_impossible_cache_is_refused(cache):
    with pytest.raises(ConfigError):
        overlong_penalty(5, 100, cache)


@given(st.integers(0, 300), st.integers(1, 100))
def test_a_longer_trace_is_never_punished_less(length, cache):
    here, longer = overlong_penalty(length, 100, cache), overlong_penalty(length + 1, 100, cache)
    assert -1 <= longer <= here <= 0


def test_a_score_is_the_weighted_sum_and_keeps_its_evidence():
    weights, lengths = dict(accuracy_weight=2.0, format_weight=0.5), dict(length=90, max_length=100, overlong_cache=20)
    found = score(RIGHT, "abnormal", **weights, **lengths)
    assert found.value == pytest.approx(2.0 + 0.5 - 0.5)
    assert (found.accuracy, found.format, found.overlong) == (1.0, 1.0, -0.5)
    assert (found.answer, found.reason) == ("abnormal", "")


@given(st.text())
def test_any_text_gets_a_score(text):
    found = score(read(text), "abnormal")
    assert found.value in (0.0, 1.0, 2.0) and bool(found.reason) == (found.format == 0)
