"""Rewards: what earns, what does not, and the evidence that stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import ConfigError, LabelError
from deepintuit.labels import LabelSet
from deepintuit.rewards import (
    accuracy_reward,
    dual_score,
    format_reward,
    length_bonus,
    overlong_penalty,
    process_score,
    score,
)
from deepintuit.trace import FALLBACK, parse

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


@pytest.mark.parametrize(
    "text, accuracy",
    [
        ("Sure. <think>a</think><answer>abnormal</answer>", 1.0),
        ("<answer>abnormal</answer>", 1.0),
        ("<answer>Normal</answer><answer>abnormal</answer>", 0.0),
        ("abnormal", 0.0),
        ("", 0.0),
        ("<think>a</think><answer>abnormal", 0.0),
    ],
)
def test_a_broken_form_earns_no_form_and_a_clear_answer_still_counts(text, accuracy):
    assert (accuracy_reward(read(text), "abnormal"), format_reward(read(text))) == (accuracy, 0.0)


def test_unknown_label_scores_zero_and_says_why():
    found = score(read("<think>a</think><answer>dog</answer>"), "abnormal")
    assert (found.value, found.label, found.reason) == (0.0, "none", "unknown_label")


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
    assert (found.label, found.reason) == ("abnormal", "")


@given(st.text())
def test_any_text_gets_a_score(text):
    found = score(read(text), "abnormal")
    assert found.value in (0.0, 1.0, 2.0) and bool(found.reason) == (found.format == 0)


# VideoP2R


def seen(text):
    return parse(text, "observation-think-answer", LABELS)


WHOLE = seen("<observation>o</observation><think>t</think><answer>abnormal</answer>")
BROKEN = seen("<think>t</think><answer>abnormal</answer>")


@pytest.mark.parametrize(
    "sufficient, true, lengths, perception, reasoning",
    [
        (True, "abnormal", (200, 400), 2.2, 2.2),
        (True, "abnormal", (127, 513), 2.0, 2.0),
        (True, "abnormal", (128, 512), 2.2, 2.2),
        (False, "abnormal", (200, 400), 1.0, 2.2),  # right for no visible reason: only reasoning earns
        (True, "Normal", (200, 400), 2.2, 1.0),  # seen rightly, concluded wrongly
        (False, "Normal", (200, 400), 1.0, 1.0),
    ],
)
def test_seeing_and_reasoning_earn_apart(sufficient, true, lengths, perception, reasoning):
    found = process_score(WHOLE, true, sufficient=sufficient, perception_tokens=lengths[0], reasoning_tokens=lengths[1])
    assert (found.perception, found.reasoning) == pytest.approx((perception, reasoning))
    assert found.value == pytest.approx(perception + reasoning)


def test_a_trace_without_an_observation_earns_no_perception_whatever_the_judge_says():
    found = process_score(BROKEN, "abnormal", sufficient=True, perception_tokens=200, reasoning_tokens=400)
    assert (found.sufficient, found.perception, found.format) == (0, 0, 0)
    assert found.reasoning == 1.0  # the answer is beyond doubt; no bonus for a length without its form
    assert found.reason == "missing_segment"


@pytest.mark.parametrize(
    "text, reason, reasoning",
    [
        ("<observation> </observation><think>t</think><answer>abnormal</answer>", "empty_segment", 1.0),
        ("<observation>o</observation><think></think><answer>abnormal</answer>", "empty_segment", 1.0),
        ("<observation>o</observation><think>t</think><answer></answer>", "no_answer", 0.0),
        ("<think>t</think><observation>o</observation><answer>abnormal</answer>", "wrong_order", 1.0),
        ("<observation>o<think>t</think><answer>abnormal</answer>", "unclosed_tag", 1.0),
        ("", "empty", 0.0),
    ],
)
def test_a_broken_grammar_earns_no_form_no_bonus_and_no_perception(text, reason, reasoning):
    found = process_score(seen(text), "abnormal", sufficient=True, perception_tokens=200, reasoning_tokens=400)
    assert (found.reason, found.perception, found.reasoning, found.value) == (reason, 0, reasoning, reasoning)


def test_a_perception_weight_of_zero_leaves_reasoning_alone():
    found = process_score(
        WHOLE, "abnormal", sufficient=True, perception_tokens=200, reasoning_tokens=1, perception_weight=0
    )
    assert (found.perception, found.reasoning, found.value) == (0, 2, 2)


@pytest.mark.parametrize("length, earned", [(127, 0), (128, 0.2), (320, 0.2), (321, 0)])
def test_the_length_bonus_counts_both_ends_and_needs_a_right_process(length, earned):
    assert length_bonus(length, 128, 320, 1.0) == earned
    assert length_bonus(length, 128, 320, 0.0) == 0


# VideoAuto-R1


def dual(quick, final):
    return parse(rf"\boxed{{{quick}}}<think>t</think>\boxed{{{final}}}", "answer-think-answer", LABELS)


@pytest.mark.parametrize(
    "quick, final, value",
    [
        ("abnormal", "abnormal", 0.9 + 1.1 + 1.0),
        ("Normal", "abnormal", 1.1 + 1.0),
        ("abnormal", "Normal", 0.9 + 1.0),
        ("Normal", "Normal", 1.0),
        (FALLBACK, "abnormal", 1.1 + 1.0 + 0.3),
        (FALLBACK, "Normal", 1.0),  # put off, and wrong in the end: no bonus
    ],
)
def test_a_quick_and_a_final_answer_by_hand(quick, final, value):
    assert dual_score(dual(quick, final), "abnormal").value == pytest.approx(value)


@pytest.mark.parametrize(
    "text, value",
    [
        (r"\boxed{abnormal}<think></think>\boxed{abnormal}", 1.1),  # of a broken form only the final answer counts
        (rf"\boxed{{{FALLBACK}}}<think> </think>\boxed{{abnormal}}", 1.1),  # so no bonus for putting off either
        (rf"\boxed{{abnormal}}<think>t</think>\boxed{{{FALLBACK}}}", 0.0),  # what is put off must come
        (r"\boxed{}<think>t</think>\boxed{abnormal}", 1.1),
        (r"<think>t</think>\boxed{abnormal}", 0.0),  # one box where two are asked for: whose is it?
        (r"\boxed{abnormal}\boxed{abnormal}", 1.1),
    ],
)
def test_quick_answers_in_a_broken_form_by_hand(text, value):
    assert dual_score(parse(text, "answer-think-answer", LABELS), "abnormal").value == pytest.approx(value)


def test_a_quick_answer_alone_earns_neither_form_nor_answer_in_training():
    found = dual_score(parse(r"\boxed{abnormal}", "answer-think-answer", LABELS), "abnormal")
    assert (found.value, found.quick, found.reason) == (0, 0, "no_answer")


def test_what_is_stored_of_a_score_names_every_part():
    assert set(dual_score(dual("odd", "odd"), "abnormal").numbers()) == {
        "accuracy", "format", "overlong", "reward", "quick", "put_off",
    }  # fmt: skip
    assert dual_score(dual("odd", "odd"), "abnormal").quick == 1  # by its alias


# Both


@pytest.mark.parametrize(
    "quick, final, sufficient, perception, reasoning",
    [
        ("abnormal", "abnormal", True, 2.2, 0.9 + 1.1 + 1.0 + 0.2),
        ("abnormal", "abnormal", False, 1.0, 0.9 + 1.1 + 1.0 + 0.2),
        ("Normal", "abnormal", True, 2.2, 1.1 + 1.0 + 0.2),
        ("abnormal", "Normal", True, 2.2, 0.9 + 1.0),  # the bonus for length goes by the final answer
        (FALLBACK, "abnormal", False, 1.0, 1.1 + 1.0 + 0.3 + 0.2),
        (FALLBACK, "Normal", False, 1.0, 1.0),
    ],
)
def test_a_quick_answer_before_an_observation_earns_both_ways(quick, final, sufficient, perception, reasoning):
    text = rf"\boxed{{{quick}}}<observation>o</observation><think>t</think>\boxed{{{final}}}"
    trace = parse(text, "answer-observation-think-answer", LABELS)
    found = process_score(
        trace, "abnormal", sufficient=sufficient, perception_tokens=200, reasoning_tokens=400,
        answer_score=dual_score(trace, "abnormal"),
    )  # fmt: skip
    assert (found.perception, found.reasoning) == pytest.approx((perception, reasoning))
    assert found.value == pytest.approx(perception + reasoning)
    told = found.numbers()
    assert (told["quick"], told["put_off"]) == (quick == "abnormal", quick == FALLBACK)
    assert (
        "quick"
        not in process_score(WHOLE, "abnormal", sufficient=True, perception_tokens=1, reasoning_tokens=1).numbers()
    )


# Labels that begin alike

ALIKE = LabelSet.of("falls", ["fall", "fall from a bed", "no fall"])


@pytest.mark.parametrize("said", ALIKE.labels)
@pytest.mark.parametrize("true", ALIKE.labels)
def test_a_label_that_begins_another_earns_only_for_itself(said, true):
    right = float(said == true)
    plain = parse(f"<think>t</think><answer> {said} </answer>", "think-answer", ALIKE)
    assert score(plain, true).value == 1 + right
    text = f"<observation>o</observation><think>t</think><answer>{said}</answer>"
    apart = parse(text, "observation-think-answer", ALIKE)
    found = process_score(apart, true, sufficient=True, perception_tokens=1, reasoning_tokens=1)
    assert (found.perception, found.reasoning) == (2, 1 + right)
    quick = parse(rf"\boxed{{{said}}}<think>t</think>\boxed{{fall}}", "answer-think-answer", ALIKE)
    assert dual_score(quick, true).value == pytest.approx(1 + 0.9 * right + 1.1 * (true == "fall"))
