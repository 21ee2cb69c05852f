"""Each class against the rest: areas and average precision are scikit-learn's, thresholds keep what they chose, and
costs are those of a matrix written out."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from deepintuit.metrics import cheapest_answers, class_curve, costs_each, ranking_of
from deepintuit.metrics.ranking import shortest
from deepintuit_analysis.report import table_of
from deepintuit_analysis.report.costs import Costs, prices, text_of

LABELS = ("fall", "sit", "wave; or = 100 %/so")
few = st.integers(0, 4).map(lambda n: n / 4)  # ties are common


@given(st.lists(st.tuples(few, st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_areas_and_average_precision_are_those_of_scikit_learn_weights_and_ties_among_them(rows):
    probs, inside, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = ranking_of(np.stack([probs, 1 - probs], 1), np.where(inside, 0, 1))(weights[None].astype(float))[0]
    drawn = inside[weights > 0]
    if drawn.any() and not drawn.all():
        assert found[0] == pytest.approx(roc_auc_score(inside, probs, sample_weight=weights))
        assert found[2] == pytest.approx(average_precision_score(inside, probs, sample_weight=weights))
    else:
        assert np.isnan(found[0])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), few, few)
def test_the_cheapest_threshold_costs_no_more_than_any_other_and_is_short(rows, miss, alarm):
    probs, inside = (np.array(column) for column in zip(*rows, strict=True))

    def cost(threshold):
        called = probs >= threshold
        return miss * (inside & ~called).sum() + alarm * (called & ~inside).sum()

    found = class_curve(probs, inside).cheapest(miss, alarm)
    assert cost(found) == min(cost(one) for one in [*probs, math.inf])


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(0.2, 0.87654, 0.8), (0.8764, 0.87654, 0.8765), (-math.inf, 0.3, 0.3), (0.0, 0.004, 0.004)],
)
def test_a_number_between_two_has_the_fewest_decimals(low, high, told):
    assert shortest(low, high) == told


def test_costs_are_those_of_the_matrix_and_the_cheapest_answer_is_the_least_of_its_columns():
    miss, alarm = np.array([2.0, 3.0, 0.5]), np.array([1.0, 2.0, 0.3])
    matrix = np.array([[0.0 if i == j else miss[i] + (alarm[j] if j < 3 else 0) for j in range(4)] for i in range(3)])
    truth, answered = np.repeat(np.arange(3), 4), np.tile(np.arange(4), 3)
    assert costs_each(truth, answered, miss, alarm).tolist() == matrix[truth, answered].tolist()
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 200)
    expected = probs @ matrix
    chosen = cheapest_answers(probs, miss, alarm)
    assert expected[np.arange(200), chosen] == pytest.approx(expected.min(1))
    assert len(set(chosen.tolist())) == 4, "each label, and none, is the cheapest somewhere"


@pytest.mark.parametrize(
    "text", ["", "nobody=3/4", "fall", "fall=", "fall=nan/inf", "fall=-1/x", "fall=1e9/1", "=;/;=2/2"]
)
def test_an_address_written_by_hand_sets_no_price(text):
    miss, alarm = prices(text, LABELS)
    assert miss.tolist() == alarm.tolist() == [1, 1, 1] and text_of(miss, alarm, LABELS) == ""


def test_prices_come_back_from_the_address_whatever_a_label_holds():
    prices_K = np.array([10.0, 1.0, 0.25]), np.array([1.0, 1.0, 3.0])
    again = prices(text_of(*prices_K, LABELS), LABELS)
    assert [one.tolist() for one in again] == [one.tolist() for one in prices_K]


def evaluated(truth, probs, split="test"):
    rows = [
        {"clip_id": f"{split}-{i}", "run_id": "r", "split": split, "system": "s", "method": "label_likelihood",
         "control": "none", "trace_id": None, "true_label": LABELS[label], "provisional": "none",
         "predicted": LABELS[int(np.argmax(p))], "labels": list(LABELS[:2]), "probs": list(p), "temperature": 1.0,
         "outside_mass": 0.0}
        for i, (label, p) in enumerate(zip(truth, probs, strict=True))
    ]  # fmt: skip
    from deepintuit.config import EvaluateConfig

    return table_of(pd.DataFrame(rows), LABELS[:2], EvaluateConfig(split=split, bootstrap=200))[0]


def test_a_threshold_is_chosen_on_validation_and_only_counted_here():
    share = np.linspace(0.05, 0.95, 20)
    mine = evaluated([0] * 5 + [1] * 15, np.stack([share, 1 - share], 1))
    other = evaluated([1] * 10 + [0] * 10, np.stack([share, 1 - share], 1), "validation")
    unpriced = np.ones(2)
    bill = Costs(mine, unpriced, unpriced, other).of_class(0)
    assert other.frame["confidence"].index[0] != mine.frame.index[0]
    assert share[9] < bill.threshold <= share[10] and bill.threshold == 0.5, "it parts the validation clips"
    assert (bill.called.missed, bill.called.alarms) == (5, 10) and bill.called.cost.value == 15 / 20
    alone = Costs(mine, np.array([3.0, 1.0]), unpriced)
    assert alone.threshold(0) == 0.25 and Costs(mine, np.zeros(2), unpriced).threshold(0) == math.inf
    assert bill.change.value == pytest.approx(bill.called.cost.value - bill.answered.cost.value)


def test_a_ranking_that_no_resample_doubts_has_no_interval():
    perfect = evaluated([0] * 4 + [1] * 4, [[0.9, 0.1]] * 4 + [[0.2, 0.8]] * 4)
    area, precision = perfect.ranking_K[0]
    assert area.value == precision.value == 1 and math.isnan(area.low) and math.isnan(precision.high)
    doubted = evaluated([0, 1] * 6, [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.6, 0.4]] * 3)
    assert doubted.ranking_K[0][0].low < doubted.ranking_K[0][0].value < doubted.ranking_K[0][0].high
