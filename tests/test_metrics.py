"""The metrics: equal to scikit-learn and scipy where they have them, by hand otherwise, and sane at the edges."""

import json
import math
import time
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from deepintuit import metrics
from deepintuit.errors import DataError
from deepintuit.metrics import intervals
from deepintuit.metrics.inputs import in_order

LABELS = ("cat", "dog", "owl")
answers = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "none"))), min_size=1, max_size=40)
seeds = st.integers(0, 10_000)
quick = settings(max_examples=50, deadline=None)


def world(seed: int, clips: int = 60, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Scores (C, K) and truths (C,) drawn from them, so that softmax(scores) is the true distribution."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (clips, classes))
    return logits, np.array([generator.choice(classes, p=row) for row in softmax(logits, 1)])


# Answers


@quick
@given(answers)
def test_scores_of_answers_equal_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = map(list, zip(*pairs))
    found = metrics.class_scores(truth, predicted, LABELS)
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        truth, predicted, labels=list(LABELS), zero_division=0
    )
    np.testing.assert_allclose(found.precision_K, precision)
    np.testing.assert_allclose(found.recall_K, recall)
    np.testing.assert_array_equal(found.support_K, support)
    np.testing.assert_allclose(np.nan_to_num(found.f1_K), f1)
    there = [label for label in LABELS if label in truth or label in predicted]
    expected = sklearn.metrics.f1_score(truth, predicted, labels=there, average="macro", zero_division=0)
    assert metrics.macro_f1(truth, predicted, LABELS) == pytest.approx(expected)
    assert metrics.confusion(truth, predicted, LABELS).sum() == len(pairs)


def test_no_answer_is_wrong_and_has_a_column_of_its_own() -> None:
    truth, predicted = ["cat", "cat", "dog", "dog"], ["cat", "none", "cat", "dog"]
    assert metrics.confusion(truth, predicted, LABELS).tolist() == [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    found = metrics.class_scores(truth, predicted, LABELS)
    assert found.recall_K.tolist() == [0.5, 0.5, 0.0] and found.precision_K.tolist() == [0.5, 1.0, 0.0]
    assert found.f1_K[:2].tolist() == [0.5, pytest.approx(2 / 3)] and math.isnan(found.f1_K[2])
    assert metrics.macro_f1(truth, predicted, LABELS) == pytest.approx((0.5 + 2 / 3) / 2)


def test_a_class_answered_but_never_true_counts_as_zero_in_macro_f1() -> None:
    assert metrics.macro_f1(["cat", "cat"], ["cat", "owl"], LABELS) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    "call, beats",
    [
        (lambda: metrics.class_indices(["cat", "cow"], LABELS), ["'cow'", "cat, dog, owl", "LabelSet.resolve"]),
        (lambda: metrics.confusion(["none"], ["cat"], LABELS), ["true label", "no answer could be read"]),
        (lambda: metrics.confusion(["cat"], ["cat", "dog"], LABELS), ["truth 1, predicted 2", "same order"]),
        (lambda: metrics.nll([[0.5, 0.2]], [0]), ["row 0", "[0.5, 0.2]", "softmax"]),
        (lambda: metrics.nll([[0.5, 0.5], [math.nan, 1]], [0, 0]), ["row 1", "not a distribution"]),
        (lambda: metrics.nll([[0.5, 0.5]], [2]), ["class index 2", "class_indices"]),
        (lambda: metrics.ece([1.5], [1]), ["confidence of 1.5", "not logits"]),
        (lambda: metrics.apply_temperature([[1, 2]], 0), ["temperature of 0", "fit_temperature"]),
        (lambda: metrics.fit_temperature([[-np.inf, -np.inf]], [0]), ["finite maximum"]),
    ],
)
def test_bad_input_gets_a_sentence(call, beats: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        call()
    for beat in beats:
        assert beat in str(caught.value)


# Distributions


@quick
@given(seeds)
def test_nll_and_brier_equal_those_of_scikit_learn(seed: int) -> None:
    logits, truth = world(seed)
    probs = softmax(logits, 1)
    assert metrics.nll(probs, truth) == pytest.approx(sklearn.metrics.log_loss(truth, probs, labels=[0, 1, 2]))
    assert metrics.brier_each(probs, truth).mean() == pytest.approx(
        sklearn.metrics.brier_score_loss(truth, probs, labels=[0, 1, 2], scale_by_half=False)
    )


def test_certain_distributions_are_bounded() -> None:
    certain = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert metrics.nll(certain, [0, 0]) == 0 and (metrics.brier_each(certain, [0, 0]) == 0).all()
    assert metrics.nll(certain, [1, 1]) == pytest.approx(-math.log(metrics.FLOOR))
    assert (metrics.brier_each(certain, [1, 1]) == 2).all()


@quick
@given(seeds, st.integers(1, 20))
def test_bins_agree_with_scikit_learn(seed: int, bins: int) -> None:
    generator = np.random.default_rng(seed)
    confidence, correct = generator.random(50), generator.integers(0, 2, 50)
    found = metrics.reliability_bins(confidence, correct, bins)
    share, mean = calibration_curve(correct, confidence, n_bins=bins, strategy="uniform")
    np.testing.assert_allclose(found.accuracy[found.counts > 0], share)
    np.testing.assert_allclose(found.confidence[found.counts > 0], mean)
    assert found.counts.sum() == 50 and len(found.edges) == bins + 1
    assert 0 <= metrics.ece(confidence, correct, bins) <= 1


def test_ece_by_hand() -> None:
    # Bin (0.8, 1.0]: confidence 0.9, accuracy 0.5; bin (0.4, 0.6]: confidence 0.6, accuracy 1. Weights 2/3 and 1/3.
    assert metrics.ece([0.9, 0.9, 0.6], [1, 0, 1], bins=5) == pytest.approx(2 / 3 * 0.4 + 1 / 3 * 0.4)


@quick
@given(st.lists(st.integers(0, 10), min_size=1, max_size=10), st.integers(1, 15))
def test_ece_of_the_perfectly_calibrated_is_zero(tenths: list[int], bins: int) -> None:
    confidence = np.repeat(tenths, 10) / 10
    correct = np.concatenate([np.arange(10) < right for right in tenths])
    assert metrics.ece(confidence, correct, bins) == pytest.approx(0, abs=1e-12)


# Intervals


@quick
@given(answers, seeds)
def test_statistics_of_unweighted_clips_are_the_plain_metrics(pairs: list[tuple[str, str]], seed: int) -> None:
    truth, predicted = map(list, zip(*pairs))
    once = np.ones((1, len(truth)))
    plain = metrics.macro_f1(truth, predicted, LABELS)
    assert metrics.macro_f1_of(truth, predicted, LABELS)(once)[0] == pytest.approx(plain)
    generator = np.random.default_rng(seed)
    confidence, correct = generator.random(len(truth)), generator.integers(0, 2, len(truth))
    assert metrics.ece_of(confidence, correct, 7)(once)[0] == pytest.approx(metrics.ece(confidence, correct, 7))


@quick
@given(answers, seeds)
def test_a_weighted_clip_is_that_many_clips(pairs: list[tuple[str, str]], seed: int) -> None:
    generator = np.random.default_rng(seed)
    times = generator.integers(0, 4, len(pairs))
    times[0] += 1
    truth, predicted = map(np.array, zip(*pairs))
    confidence, correct = generator.random(len(pairs)), generator.integers(0, 2, len(pairs))
    weights = times[None].astype(float)
    assert metrics.macro_f1_of(truth, predicted, LABELS)(weights)[0] == pytest.approx(
        metrics.macro_f1(np.repeat(truth, times), np.repeat(predicted, times), LABELS)
    )
    assert metrics.ece_of(confidence, correct)(weights)[0] == pytest.approx(
        metrics.ece(np.repeat(confidence, times), np.repeat(correct, times))
    )


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=60), seeds)
def test_the_interval_of_an_accuracy_contains_it_and_repeats_by_seed(right: list[bool], seed: int) -> None:
    found = metrics.bootstrap(metrics.mean_of(right), len(right), draws=500, seed=seed)
    assert 0 <= found.low <= found.value + 1e-12 and found.value <= found.high + 1e-12 and found.high <= 1
    assert found == metrics.bootstrap(metrics.mean_of(right), len(right), draws=500, seed=seed)


def test_a_bootstrap_without_draws_is_a_value_without_an_interval() -> None:
    found = metrics.bootstrap(metrics.mean_of(np.array([1.0, 0.0, 1.0, 1.0])), 4, draws=0)
    assert found.value == 0.75 and math.isnan(found.low) and math.isnan(found.high)


def test_the_bootstrap_has_the_width_theory_gives_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.arange(400) < 300
    found = metrics.bootstrap(metrics.mean_of(right), 400, draws=4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / 400), rel=0.06)
    monkeypatch.setattr(metrics.intervals, "_CELLS", 400 * 7)
    assert metrics.bootstrap(metrics.mean_of(right), 400, draws=4000) == found


def test_clips_of_one_group_do_not_count_as_many() -> None:
    right = np.repeat(np.arange(20) < 14, 10)
    alone = metrics.bootstrap(metrics.mean_of(right), 200)
    grouped = metrics.bootstrap(metrics.mean_of(right), 200, groups_C=np.repeat(list("abcdefghijklmnopqrst"), 10))
    assert grouped.value == alone.value and (grouped.high - grouped.low) > 2.5 * (alone.high - alone.low)
    one = metrics.bootstrap(metrics.mean_of([1, 0]), 2, groups_C=["a", "a"])
    assert one.low == one.value == one.high == 0.5


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(300) < 0.7
    after = before | (generator.random(300) < 0.1)
    gain = metrics.paired_difference(metrics.mean_of(after), metrics.mean_of(before), 300)
    assert gain.value == pytest.approx(after.mean() - before.mean()) and 0 < gain.low < gain.value < gain.high
    single = metrics.bootstrap(metrics.mean_of(after), 300)
    assert gain.high - gain.low < single.high - single.low
    nothing = metrics.paired_difference(metrics.mean_of(after), metrics.mean_of(after), 300)
    assert nothing == metrics.Estimate(0.0, 0.0, 0.0)


def answered(K: int, C: int, seed: int = 0) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """C clips of K classes, seven of ten answered right, some not at all, with distributions."""
    generator = np.random.default_rng(seed)
    labels = [f"class {k}" for k in range(K)]
    truth = generator.integers(0, K, C)
    said = np.where(generator.random(C) < 0.7, truth, generator.integers(0, K + 1, C))
    names = [*labels, "none"]
    return labels, [names[k] for k in truth], [names[k] for k in said], generator.dirichlet(np.ones(K), C)


@pytest.mark.parametrize("K", [101, 174, 400, 1000])  # UCF101, Something-Something, Kinetics, and more
def test_many_classes_cost_a_second_and_megabytes(K: int) -> None:
    labels, truth, said, probs = answered(K, 1000)
    started = time.perf_counter()
    tracemalloc.start()
    found = metrics.evaluate_predictions(truth, said, labels, probs, draws=500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.perf_counter() - started < 3 and peak < 150e6, (time.perf_counter() - started, peak)
    assert found.macro_f1.low < found.macro_f1.high


def test_intervals_are_those_of_the_plain_metric_on_each_draw() -> None:
    labels, truth, said, probs = answered(5, 60, seed=1)
    indices, groups = metrics.class_indices(truth, labels), np.arange(60) // 3
    found = metrics.evaluate_predictions(truth, said, labels, probs, groups_C=groups, draws=40, seed=3)
    truths, answers_C, drawn = np.array(truth), np.array(said), []
    weights = np.random.default_rng(3).integers(0, 20, (40, 20))
    for groups_drawn in weights:
        clips = np.concatenate([np.flatnonzero(groups == group) for group in groups_drawn])
        drawn.append(
            (
                metrics.macro_f1(truths[clips], answers_C[clips], labels),
                (truths[clips] == answers_C[clips]).mean(),
                metrics.brier_each(probs, indices)[clips].mean(),
            )
        )
    for (low, high), one in zip(
        np.quantile(drawn, [0.025, 0.975], axis=0).T, (found.macro_f1, found.accuracy, found.brier)
    ):
        assert (one.low, one.high) == (pytest.approx(low), pytest.approx(high))


def test_probabilities_come_in_the_order_of_the_labels_whatever_order_a_row_has() -> None:
    rows = in_order([("a", "b", "c"), ("c", "a", "b")], [[0.1, 0.2, 0.7], [0.7, 0.1, 0.2]], ("b", "a", "c"))
    assert rows.tolist() == [[0.2, 0.1, 0.7]] * 2 and in_order([], [], ("a", "b")).shape == (0, 2)
    for names, values in ((("a", "b", "x"), [0.1, 0.2, 0.7]), (("a", "b", "c"), [0.3, 0.7])):
        with pytest.raises(DataError):
            in_order([names], [values], ("a", "b", "c"))


def test_wilson_by_the_formula() -> None:
    n, share, z = 40, 0.9, 1.959963984540054
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    found = metrics.wilson(36, 40)
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert metrics.wilson(5, 5).high == 1 and metrics.wilson(5, 5).low > 0.5
    nothing = metrics.wilson(0, 0)
    assert math.isnan(nothing.value) and (nothing.low, nothing.high) == (0, 1)


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.data())
def test_pass_at_k_is_the_share_of_all_draws_of_k_samples_with_a_right_one(right: list[bool], data) -> None:
    k = data.draw(st.integers(1, len(right)))
    drawn = [any(some) for some in combinations(right, k)]
    assert metrics.pass_at_k([right], k) == pytest.approx([np.mean(drawn)])
    with pytest.raises(DataError, match=f"pass@{len(right) + 1} of {len(right)} samples"):
        metrics.pass_at_k([right], len(right) + 1)


def test_flips_by_hand() -> None:
    truth = ["cat"] * 10
    before = ["cat"] * 4 + ["dog"] * 6
    after = ["dog"] + ["cat"] * 8 + ["none"]
    found = metrics.flips(before, after, truth)
    assert (found.right_to_wrong, found.wrong_to_right, found.both_right, found.both_wrong) == (1, 5, 3, 1)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 2**6)
    assert metrics.flips(before, before, truth).p_value == 1.0 and metrics.flips([], [], []).p_value == 1.0


# Temperature


@quick
@given(seeds, st.floats(0.05, 20))
def test_temperature_never_changes_the_order_of_classes(seed: int, temperature: float) -> None:
    logits, _ = world(seed)
    probs = metrics.apply_temperature(logits, temperature)
    np.testing.assert_array_equal(probs.argmax(1), logits.argmax(1))
    np.testing.assert_allclose(probs.sum(1), 1)


@quick
@given(seeds, st.floats(0.3, 5))
def test_the_fitted_temperature_is_the_best_of_a_grid(seed: int, heat: float) -> None:
    logits, truth = world(seed)
    fitted = metrics.fit_temperature(logits * heat, truth)
    best = metrics.nll(metrics.apply_temperature(logits * heat, fitted), truth)
    assert 0.05 <= fitted <= 20
    assert all(
        best <= metrics.nll(metrics.apply_temperature(logits * heat, t), truth) + 1e-7
        for t in np.geomspace(0.05, 20, 60)
    )


def test_a_known_overconfidence_is_undone() -> None:
    logits, truth = world(1, clips=20_000)
    assert metrics.fit_temperature(logits * 3, truth) == pytest.approx(3, rel=0.05)


def test_temperature_at_the_edges() -> None:
    assert metrics.fit_temperature(np.empty((0, 3)), []) == 1.0
    assert metrics.fit_temperature([[2.0, 0.0]] * 5, [0] * 5) == pytest.approx(0.05)  # all right: as sharp as allowed
    assert metrics.fit_temperature([[2.0, 0.0]] * 5, [1] * 5) == pytest.approx(20)  # all wrong: as flat as allowed
    assert 0.05 <= metrics.fit_temperature([[0.0, -np.inf], [0.0, -np.inf]], [0, 1]) <= 20
    assert metrics.apply_temperature([[0.0, -np.inf]], 20)[0].tolist() == pytest.approx([1.0, 0.0])


# Abstention


def test_risk_coverage_by_hand() -> None:
    curve = metrics.risk_coverage([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0])
    assert curve.threshold.tolist() == [0.9, 0.8, 0.1] and curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert curve.risk.tolist() == [0, pytest.approx(1 / 3), 0.5]
    assert curve.area == pytest.approx(0.5 / 3 + 0.25 * 0.5)
    assert curve.at_most(0.4) == (0.8, 0.75) and curve.at_most(0) == (0.9, 0.25) and curve.at_most(0.5) == (0.1, 1.0)
    assert metrics.risk_coverage([0.9, 0.8], [0, 0]).at_most(0.1) == (math.inf, 0)
    assert metrics.risk_coverage([], []).at_most(0.1) == (math.inf, 0)
    assert curve.at(0.8) == (0.75, pytest.approx(1 / 3)) and curve.at(0.85) == (0.25, 0) and curve.at(0) == (1.0, 0.5)
    assert curve.at(math.inf)[0] == 0 and math.isnan(curve.at(0.95)[1])
    found = metrics.thresholds_for([0.9, 0.8, 0.7], [1, 1, 0])
    assert found == {"0.01": 0.8, "0.02": 0.8, "0.05": 0.8, "0.1": 0.8} == json.loads(json.dumps(found))
    assert set(metrics.thresholds_for([0.9], [0]).values()) == {None}


@quick
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40), st.floats(0, 1))
def test_a_threshold_keeps_its_risk_on_the_clips_it_was_chosen_on(pairs: list[tuple[int, bool]], risk: float) -> None:
    confidence, correct = np.array([tenth / 10 for tenth, _ in pairs]), np.array([right for _, right in pairs])
    threshold, coverage = metrics.risk_coverage(confidence, correct).at_most(risk)
    kept = confidence >= threshold
    assert kept.mean() == pytest.approx(coverage)
    assert not kept.any() or 1 - correct[kept].mean() <= risk + 1e-12


@quick
@given(seeds, st.sampled_from([0.05, 0.1, 0.25, 0.5]))
def test_conformal_sets_hold_the_truth_of_enough_of_their_own_clips(seed: int, alpha: float) -> None:
    logits, truth = world(seed, clips=50)
    probs = softmax(logits, 1)
    sets = metrics.conformal_sets(probs, metrics.conformal_quantile(probs, truth, alpha))
    coverage, size = metrics.set_coverage(sets, truth)
    assert coverage >= 1 - alpha and 0 <= size <= 3


def test_conformal_coverage_holds_on_other_clips() -> None:
    shares = []
    for seed in range(200):
        logits, truth = world(seed, clips=120)
        probs = metrics.apply_temperature(logits, 0.3)  # overconfident on purpose: the promise does not rest on that
        quantile = metrics.conformal_quantile(probs[:60], truth[:60], 0.1)
        shares.append(metrics.set_coverage(metrics.conformal_sets(probs[60:], quantile), truth[60:])[0])
    assert 0.9 - 0.01 <= np.mean(shares) <= 0.9 + 1 / 61 + 0.01


def test_conformal_sets_by_hand() -> None:
    """Scores 1 - p of the truth are .1 .2 .3 .4: of five places, the third is half, the fourth three quarters."""
    probs = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]
    assert metrics.conformal_quantile(probs, [0, 1, 0, 1], 0.5) == pytest.approx(0.3)
    quantile = metrics.conformal_quantile(probs, [0, 1, 0, 1], 0.25)
    assert quantile == pytest.approx(0.4)
    sets = metrics.conformal_sets([[0.65, 0.35], [0.5, 0.5]], quantile)
    assert sets.tolist() == [[True, False], [False, False]]
    assert metrics.set_coverage(sets, [0, 1]) == (0.5, 0.5)


def test_too_few_clips_for_a_promise_give_every_label() -> None:
    assert metrics.conformal_quantile([[0.9, 0.1]] * 3, [0, 0, 0], 0.1) == 1.0
    assert metrics.conformal_sets([[1.0, 0.0]], 1.0).all()


# All of it


def test_an_evaluation_holds_every_metric_with_its_interval() -> None:
    logits, indices = world(3, clips=80)
    probs = softmax(logits, 1)
    truth, predicted = [LABELS[k] for k in indices], [LABELS[k] for k in probs.argmax(1)]
    predicted[0] = "none"
    found = metrics.evaluate_predictions(truth, predicted, LABELS, probs, groups_C=np.arange(80) // 4, draws=300)
    assert (found.n, found.groups) == (80, 20) and found.no_answer.value == 1 / 80
    assert found.accuracy.value == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    assert found.nll.value == pytest.approx(metrics.nll(probs, indices))
    assert found.ece.value == pytest.approx(metrics.ece(probs.max(1), probs.argmax(1) == indices))
    for estimate in (found.accuracy, found.macro_f1, found.nll, found.brier):
        assert estimate.low < estimate.value < estimate.high


def test_an_evaluation_of_answers_alone_has_no_calibration() -> None:
    found = metrics.evaluate_predictions(["cat", "dog"], ["cat", "none"], LABELS, draws=50)
    assert found.nll is found.brier is found.ece is found.bins is None and found.accuracy.value == 0.5


def test_nothing_to_score_gives_nan_not_an_error() -> None:
    found = metrics.evaluate_predictions([], [], LABELS, np.empty((0, 3)), draws=50)
    assert found.n == 0 and found.confusion.shape == (3, 4)
    numbers = [
        found.accuracy.value,
        found.macro_f1.value,
        found.nll.value,
        found.ece.low,
        metrics.nll(np.empty((0, 3)), []),
        metrics.ece([], []),
        metrics.risk_coverage([], []).area,
    ]
    assert all(math.isnan(number) for number in numbers)


def test_one_class_only_is_scored() -> None:
    found = metrics.evaluate_predictions(["cat"] * 4, ["cat"] * 4, LABELS, [[1.0, 0, 0]] * 4, draws=50)
    assert found.accuracy == found.macro_f1 == metrics.Estimate(1.0, 1.0, 1.0) and found.ece.value == 0


# Thinking only when needed


def test_a_gate_by_hand():
    """Four clips: two sure and right, one sure and wrong, one put off. Thinking mends the third."""
    curve = metrics.gate_curve([0.9, 0.8, 0.6, -1], [1, 1, 0, 0], [1, 1, 1, 1], [2, 2, 2, 4], [10, 10, 10, 12])
    assert curve.thresholds.tolist() == [0.6, 0.8, 0.9, np.inf]
    assert curve.think_rate.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.accuracy.tolist() == [0.75, 1.0, 1.0, 1.0]
    assert curve.tokens.tolist() == [4.5, 6.5, 8.5, 10.5]
    assert metrics.cheapest_threshold(curve) == 0.8 and metrics.cheapest_threshold(curve, 0.25) == 0.6
    assert curve.at(0.7) == (0.5, 1.0, 6.5)  # between two points it is the next that counts


def test_a_gate_where_every_answer_was_put_off_always_thinks():
    curve = metrics.gate_curve([-1, -1], [0, 0], [1, 0], [4, 4], [9, 11])
    assert (curve.think_rate.tolist(), curve.accuracy.tolist(), curve.tokens.tolist()) == ([1.0], [0.5], [10.0])


def test_a_gate_without_clips_knows_nothing():
    assert np.isnan(metrics.cheapest_threshold(metrics.gate_curve([], [], [], [], [])))
    with pytest.raises(DataError):
        metrics.gate_curve([0.5], [1, 0], [1], [1], [1])


@given(st.lists(st.tuples(st.sampled_from([-1, 0.2, 0.5, 0.9]), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_a_higher_threshold_never_thinks_less(rows):
    confidence, quick, final = map(np.array, zip(*rows))
    curve = metrics.gate_curve(confidence, quick, final, np.full(len(rows), 2), np.full(len(rows), 9))
    assert (np.diff(curve.think_rate) >= 0).all() and (np.diff(curve.tokens) >= 0).all()
    assert curve.think_rate[-1] == 1 and curve.accuracy[-1] == pytest.approx(final.mean())


def test_conformal_sets_hold_the_truth_as_often_as_promised():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.4] * 5, 4000)
    truth = np.array([rng.choice(5, p=p) for p in probs])
    for target in (0.8, 0.9, 0.95):
        found = metrics.conformal_folds(probs, truth, target)
        assert abs(found.coverage.value - target) < 0.02 and found.n == 4000
        assert 1 <= found.size <= 5
    assert metrics.conformal_folds(probs, truth, 0.8).size < metrics.conformal_folds(probs, truth, 0.95).size


def test_one_clip_promises_nothing():
    assert np.isnan(metrics.conformal_folds([[0.5, 0.5]], [0]).coverage.value)


def test_draws_do_not_depend_on_the_parts_they_are_made_in():
    parted = np.concatenate(list(intervals._drawn(301, 50, seed=4, step=7)), axis=1)
    assert (parted == intervals._kept(301, 50, 4)).all() and (parted.sum(0) == 301).all()
    right = np.random.default_rng(0).random(301) < 0.7
    kept = metrics.bootstrap(metrics.mean_of(right), 301, draws=50, seed=4)
    assert kept.low == np.quantile(right @ parted / 301, 0.025) and kept.low < kept.value < kept.high
