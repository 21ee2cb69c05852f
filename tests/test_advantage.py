"""Advantages: by hand on small groups, by law on all, and zero where nothing can be learned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deepintuit.advantage import (
    group_advantages,
    kept_by_dynamic_sampling,
    softmax_weights,
    token_advantages,
    zero_variance_share,
)
from deepintuit.errors import ConfigError, DataError
from deepintuit.labels import LabelSet
from deepintuit.trace import outer_spans, parse

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 9))
REWARDS = arrays(np.float64, SHAPES, elements=st.sampled_from([-1, 0, 0.2, 1, 2]))


def test_two_of_four_right_by_hand():
    spread = np.sqrt(4 * 0.25 / 3)
    assert group_advantages([1, 1, 0, 0], eps=0) == pytest.approx(np.array([1, 1, -1, -1]) * 0.5 / spread)


def test_group_of_one_gets_zero_advantage():
    assert (group_advantages([[3.0], [0.0]]) == 0).all()


def test_a_group_that_agrees_with_itself_gets_exactly_zero():
    assert (group_advantages([[0.1] * 7, [1.2] * 7]) == 0).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_rewards_equal_but_for_rounding_are_equal(kind):
    tenths = np.cumsum(np.full(10, 0.1, dtype=kind), dtype=kind)
    sums = [tenths[-1], kind(1.0), kind(0.1) * kind(10)]
    assert len(set(sums)) > 1
    assert (group_advantages(sums) == 0).all() and (softmax_weights(sums) == 0).all()
    assert zero_variance_share([sums]) == 1


@given(REWARDS)
def test_advantages_of_a_group_sum_to_zero_and_keep_the_order_of_rewards(rewards_N_G):
    found = group_advantages(rewards_N_G)
    assert found.shape == rewards_N_G.shape and np.isfinite(found).all()
    assert found.sum(axis=-1) == pytest.approx(0, abs=1e-6)
    for rewards, advantages in zip(rewards_N_G, found, strict=True):
        order = np.argsort(rewards, kind="stable")
        assert (np.diff(advantages[order]) >= -1e-12).all()


@given(REWARDS, st.sampled_from([-3.0, 0.5, 4.0]), st.sampled_from([0.5, 2.0, 8.0]))
def test_shifting_or_scaling_all_rewards_changes_no_advantage(rewards_N_G, shift, factor):
    assert group_advantages(rewards_N_G * factor + shift, eps=0) == pytest.approx(
        group_advantages(rewards_N_G, eps=0), abs=1e-9
    )


@given(REWARDS)
def test_each_group_stands_for_itself(rewards_N_G):
    for function in (group_advantages, softmax_weights, kept_by_dynamic_sampling):
        assert (function(rewards_N_G) == np.stack([function(rewards) for rewards in rewards_N_G])).all()


@pytest.mark.parametrize("rewards", [[np.nan, 1], [np.inf, 1], [], [[]], 3.0])
def test_rewards_that_are_none_or_not_finite_stop_the_run(rewards):
    with pytest.raises(DataError):
        group_advantages(rewards)


@given(REWARDS, st.floats(0.05, 10))
def test_softmax_weights_of_a_group_sum_to_one_or_are_all_zero(rewards_N_G, tau):
    weights = softmax_weights(rewards_N_G, tau)
    tied = np.ptp(rewards_N_G, axis=-1) == 0
    assert (weights[tied] == 0).all()
    assert weights[~tied].sum(axis=-1) == pytest.approx(1)
    assert (weights >= 0).all()


def test_softmax_weights_by_hand_and_for_huge_rewards():
    assert softmax_weights([1, 0], tau=1.0) == pytest.approx([np.e / (np.e + 1), 1 / (np.e + 1)])
    assert softmax_weights([1e6, 0]) == pytest.approx([1, 0])


@pytest.mark.parametrize("tau", [0, -1, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(tau):
    with pytest.raises(ConfigError):
        softmax_weights([1, 0], tau)


def test_dynamic_sampling_keeps_what_is_sometimes_right():
    assert kept_by_dynamic_sampling([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).tolist() == [False, True, True, False]


def test_zero_variance_share_counts_tied_groups():
    assert zero_variance_share([[1, 1], [0, 1], [0.3, 0.1 + 0.2], [2, 0]]) == 0.5
    assert np.isnan(zero_variance_share(np.empty((0, 4))))


# ---- tokens

LABELS = LabelSet.of("home", ["normal", "abnormal"])
TEXT = "<observation>A cat.</observation>\n<think>Fine.</think><answer>normal</answer>"
SPANS = outer_spans(parse(TEXT, "observation-think-answer", LABELS))
BY_SEGMENT = {"observation": 1.0, "think": -2.0, "answer": -3.0}


def test_one_token_a_character_takes_its_segments_advantage():
    offsets = [(i, i + 1) for i in range(len(TEXT))]
    found = token_advantages(offsets, SPANS, BY_SEGMENT, elsewhere=9.0)
    border = TEXT.index("\n")
    assert (found[:border] == 1).all() and found[border] == 9
    assert (found[border + 1 : TEXT.index("<answer>")] == -2).all()
    assert (found[TEXT.index("<answer>") :] == -3).all()


@pytest.mark.parametrize("before, after, value", [(3, 1, -2.0), (1, 3, -3.0), (2, 2, -2.0)])
def test_a_token_across_a_border_goes_where_most_of_it_lies_and_to_the_earlier_on_a_tie(before, after, value):
    border = TEXT.index("<answer>")
    assert token_advantages([(border - before, border + after)], SPANS, BY_SEGMENT) == [value]


def test_a_token_that_swallows_a_whole_segment_goes_where_most_of_it_lies():
    assert token_advantages([(0, len(TEXT))], SPANS, BY_SEGMENT) == [1.0]


def test_the_end_token_and_an_unparsed_text_take_the_advantage_elsewhere():
    assert token_advantages([(0, 0), (len(TEXT), len(TEXT))], SPANS, BY_SEGMENT, elsewhere=7.0).tolist() == [7, 7]
    assert token_advantages([(0, 3), (3, 9)], {}, {}, elsewhere=7.0).tolist() == [7, 7]
    assert token_advantages([], SPANS, BY_SEGMENT).shape == (0,)


def test_a_segment_without_an_advantage_stops_the_run():
    with pytest.raises(DataError, match="answer"):
        token_advantages([(0, 1)], SPANS, {"observation": 1.0, "think": 2.0})


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_every_cut_into_tokens_gives_each_the_advantage_of_a_segment_it_touches(lengths):
    ends = np.minimum(np.cumsum(lengths), len(TEXT))
    offsets = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    found = token_advantages(offsets, SPANS, BY_SEGMENT, elsewhere=9.0)
    for (start, end), value in zip(offsets, found, strict=True):
        touched = {BY_SEGMENT[name] for name, (left, right) in SPANS.items() if start < right and left < end}
        assert value in (touched or {9.0})
