"""Agreement: published examples, sklearn beside us, missing ratings, classes that nobody used, intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import cohen_kappa_score

from deepintuit.errors import DataError
from deepintuit_analysis.review.agreement import (
    agreement,
    alpha_of,
    consensus,
    kappa_of,
    percent_agreement_of,
    rating_matrix,
)


def value(statistic, ratings, K, *more):
    """A statistic of unweighted items."""
    return float(statistic(ratings, K, *more)(np.ones((1, len(ratings))))[0])


def rows(*raters: str) -> np.ndarray:
    """One string a rater, one character an item, "." for missing."""
    return np.array([["abcdef".find(character) for character in rater] for rater in raters]).T


def table(*counts: tuple[int, ...]) -> np.ndarray:
    """Two raters with this table of counts."""
    return np.array([(a, b) for a, row in enumerate(counts) for b, n in enumerate(row) for _ in range(n)])


# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), examples A, B and C.
MEG_AND_OWEN = rows("abaaaaaaba", "bbbaabaaaa")
BEN_AND_GERRY = rows("aabbdcccedda", "babbbccceddd")
FOUR_WITH_GAPS = rows("abccbadab...", "abccbbdabe.c", ".cccbcdbbea.", "abccbddabea.")


def test_alpha_equals_krippendorffs_worked_examples():
    assert value(alpha_of, MEG_AND_OWEN, 2) == pytest.approx(0.095, abs=5e-4)
    assert value(alpha_of, BEN_AND_GERRY, 5) == pytest.approx(0.692, abs=5e-4)
    assert value(alpha_of, FOUR_WITH_GAPS, 5) == pytest.approx(0.743, abs=5e-4)


def test_kappa_equals_worked_examples():
    # Fifty grant proposals, the textbook example: 0.7 observed, 0.5 by chance.
    assert value(kappa_of, table((20, 5), (10, 15)), 2) == pytest.approx(0.4)
    assert value(percent_agreement_of, table((20, 5), (10, 15)), 2) == pytest.approx(0.7)
    # Same per cent, other margins: what kappa is for.
    assert value(kappa_of, table((45, 15), (25, 15)), 2) == pytest.approx(0.1304, abs=5e-5)
    assert value(kappa_of, table((25, 35), (5, 35)), 2) == pytest.approx(0.2593, abs=5e-5)


@given(arrays.arrays(np.int64, st.tuples(st.integers(2, 30), st.just(2)), elements=st.integers(0, 3)))
def test_kappa_is_sklearns(ratings):
    ours = value(kappa_of, ratings, 4)
    if len(np.unique(ratings)) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(cohen_kappa_score(*ratings.T), abs=1e-12)


@given(arrays.arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(2, 4)), elements=st.integers(-1, 2)))
def test_alpha_is_one_minus_disagreement_counted_pair_by_pair(ratings):
    """The definition, in loops: pairs within items, against pairs of all ratings that have a partner."""
    units = [[int(r) for r in unit if r >= 0] for unit in ratings]
    units = [unit for unit in units if len(unit) > 1]
    everything = [r for unit in units for r in unit]
    n = len(everything)
    observed = sum((a != b) / (len(unit) - 1) for unit in units for a in unit for b in unit)
    expected = sum(a != b for a in everything for b in everything) / (n - 1) if n else 0
    ours = value(alpha_of, ratings, 3)
    assert math.isnan(ours) if expected == 0 else ours == pytest.approx(1 - observed / expected)


def test_more_raters_have_the_mean_kappa_of_their_pairs():
    ratings = rows("aabbabab", "aabbabba", "abbbabaa")
    pairs = [cohen_kappa_score(ratings[:, a], ratings[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert value(kappa_of, ratings, 2) == pytest.approx(np.mean(pairs))
    ratings[4:, 2] = -1  # the third rated half: its pairs weigh half
    pairs = [cohen_kappa_score(*ratings[:, :2].T), *(cohen_kappa_score(ratings[:4, a], ratings[:4, 2]) for a in (0, 1))]
    assert value(kappa_of, ratings, 2) == pytest.approx(np.average(pairs, weights=[8, 4, 4]))


def test_per_cent_of_three_raters_counts_pairs():
    assert value(percent_agreement_of, rows("aa.", "ab.", "aba"), 2) == pytest.approx((3 + 1) / 6)


def test_each_class_has_its_own_numbers():
    overall, a, b = agreement(table((20, 5), (10, 15)), ["yes", "no"], draws=200)
    assert (overall.label, overall.items, overall.ratings) == (None, 50, 100)
    assert (a.label, a.items, a.ratings) == ("yes", 35, 55) and (b.label, b.items, b.ratings) == ("no", 30, 45)
    assert a.percent.value == pytest.approx(2 * 20 / 55) and b.percent.value == pytest.approx(2 * 15 / 45)
    assert a.kappa.value == pytest.approx(overall.kappa.value) == pytest.approx(b.kappa.value), "of two classes"
    for number in (overall.percent, overall.kappa, overall.alpha, a.percent):
        assert number.low < number.value < number.high


def test_a_class_against_the_others_is_the_collapsed_table():
    found = {one.label: one for one in agreement(BEN_AND_GERRY, list("abcde"), draws=10)}
    collapsed = np.where(BEN_AND_GERRY == 0, 0, 1)
    assert found["a"].kappa.value == pytest.approx(cohen_kappa_score(*collapsed.T))
    assert found["a"].alpha.value == pytest.approx(value(alpha_of, collapsed, 2))
    assert found["c"].percent.value == found["c"].kappa.value == found["c"].alpha.value == 1


def test_the_interval_covers_the_true_kappa_about_as_often_as_it_says():
    generator, hit = np.random.default_rng(0), 0
    for _ in range(60):
        truth = generator.integers(0, 2, (80, 1))
        ratings = np.where(generator.random((80, 2)) < 0.6, truth, generator.integers(0, 2, (80, 2)))
        kappa = agreement(ratings, ["a", "b"], draws=300)[0].kappa  # true value: 0.6²
        hit += kappa.low <= 0.36 <= kappa.high
    assert 50 <= hit <= 60


def test_items_of_one_group_are_drawn_together():
    ratings, groups = np.repeat(table((4, 1), (1, 4)), 5, axis=0), np.repeat(np.arange(10), 5)
    alone, grouped = (agreement(ratings, ["a", "b"], groups_C=g, draws=500)[0].alpha for g in (None, groups))
    assert grouped.value == alone.value and grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_nothing_rated_twice_is_nan_and_no_error():
    for ratings in (np.empty((0, 0), int), rows("ab.", "..a"), rows("ab")):
        overall, *_ = agreement(ratings, ["a", "b"], draws=10)
        assert overall.items == 0 and all(math.isnan(e.value) for e in (overall.percent, overall.kappa, overall.alpha))


def test_one_class_only_agrees_by_hundred_per_cent_and_has_no_kappa():
    overall, *_ = agreement(rows("aaa", "aaa"), ["a", "b"], draws=10)
    assert overall.percent.value == 1 and math.isnan(overall.kappa.value) and math.isnan(overall.alpha.value)


def test_ratings_become_a_matrix_with_gaps_and_the_last_word_of_each():
    triples = [("t1", "ann", "a"), ("t1", "bob", None), ("t2", "bob", "a"), ("t2", "ann", "b"), ("t2", "bob", "b")]
    matrix, items, raters = rating_matrix(triples, ["a", "b"])
    assert (items, raters) == (["t1", "t2"], ["ann", "bob"]) and matrix.tolist() == [[0, -1], [1, 1]]
    assert rating_matrix([], ["a"])[0].shape == (0, 0)


def test_ratings_that_are_none_get_a_sentence():
    with pytest.raises(DataError, match="'c'.*the labels are a, b"):
        rating_matrix([("t1", "ann", "c")], ["a", "b"])
    with pytest.raises(DataError, match="class indices"):
        agreement([[0, 2]], ["a", "b"])


# By quality


def test_who_agrees_with_others_weighs_more_than_who_does_not():
    """Of five people, who are right 95, 90, 50, 50 and 40 times in a hundred, on three classes."""
    generator = np.random.default_rng(0)
    truth_C = generator.integers(0, 3, 200)
    said = [
        np.where(generator.random(200) < p, truth_C, generator.integers(0, 3, 200)) for p in (0.95, 0.9, 0.5, 0.5, 0.4)
    ]
    ratings = np.where(generator.random((200, 5)) < 0.3, -1, np.stack(said, 1))
    found = consensus(ratings, 3)
    assert found.quality_R[:2].min() > found.quality_R[2:].max()
    right, by_majority = (found.label_C == truth_C).mean(), (found.majority_C == truth_C).mean()
    assert right > by_majority + 0.05 and right > 0.85, (right, by_majority)


@pytest.mark.parametrize(("raters", "labels", "majority"), [
    (("abab", "abab", "b.a."), "abab", "abab"),  # two against one
    (("aab.", "aab.", "bbab"), "aabb", "aabb"),  # alone, and outvoted
    (("ab", "bb"), ".b", ".b"),  # two alone weigh the same: a tie stays one
    (("....", "abab", "abab"), "abab", "abab"),  # unsure of all
    (("aaaa", "aaaa", "aaab"), "aaaa", "aaaa"),  # one class
    (("a", "a"), "a", "a"), (("aa..", "aa..", "..bc"), "aabc", "aabc"),  # one item; nobody beside them
])  # fmt: skip
def test_labels_by_quality_and_by_majority(raters, labels, majority):
    found = consensus(rows(*raters), 3)
    assert [found.label_C.tolist(), found.majority_C.tolist()] == rows(labels, majority).T.tolist()


@pytest.mark.parametrize("raters", [("ab", "ba"), ("abc",), ("ab..", "..ab"), ("..", ".."), ()])
def test_where_no_two_say_the_same_nobody_is_known_to_be_good(raters):
    assert consensus(rows(*raters), 3) is None


@pytest.mark.filterwarnings("error")
@given(arrays.arrays(np.int64, st.tuples(st.integers(0, 6), st.integers(0, 4)), elements=st.integers(-1, 2)))
def test_a_consensus_is_never_of_a_class_that_nobody_named_and_the_same_each_time(ratings):
    found = consensus(ratings, 3)
    if found is not None:
        assert all(k == -1 or k in row for k, row in zip(found.label_C, ratings))
        assert found.label_C.tolist() == consensus(ratings, 3).label_C.tolist()
        assert ((found.quality_R >= 0) & (found.quality_R <= 1) | np.isnan(found.quality_R)).all()
