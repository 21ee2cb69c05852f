"""Worst slices: what is bad by chance is not named, what is planted is, and of nested ones the one that says most."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from deepintuit.config import EvaluateConfig
from deepintuit_analysis.report.results import Result, table_of
from deepintuit_analysis.report.worst import FEWEST, SAYS_NOT, TRUE, _tail, divided, tried, worst_of

LABELS = ("cat", "dog")
QUICK = EvaluateConfig(bootstrap=20)


def known_of(clips: int, columns: int, rng, groups_C=None) -> pd.DataFrame:
    """Numbers, texts and yes or no in turn; of each source alike, where there are `groups_C`."""
    of = np.arange(clips) if groups_C is None else groups_C
    kinds = (
        lambda n: rng.normal(size=n),
        lambda n: np.array(list("abcde"))[rng.integers(0, 5, n)],
        lambda n: rng.random(n) < 0.4,
    )
    known = {f"column {k}": kinds[k % 3](of.max() + 1)[of] for k in range(columns)}
    return pd.DataFrame(known, index=[f"c{i:06d}" for i in range(clips)])


def said_of(clips: pd.Index, words: int, rng) -> pd.DataFrame:
    places, word = np.nonzero(rng.random((len(clips), words)) < rng.uniform(0.05, 0.6, words))
    return pd.DataFrame({"clip_id": clips[places], "word": [f"word{k}" for k in word]})


def result_of(wrong_C: np.ndarray, confidence_C: np.ndarray, rng, groups_C=None) -> Result:
    clips = [f"c{i:06d}" for i in range(len(wrong_C))]
    true = np.array(LABELS)[rng.integers(0, 2, len(clips))]
    said = np.where(wrong_C, np.where(true == "cat", "dog", "cat"), true)
    probs = [[sure, 1 - sure] if label == "cat" else [1 - sure, sure] for label, sure in zip(said, confidence_C)]
    told = {"split": "test", "system": "cold start", "method": "label_likelihood", "control": "none", "trace_id": None}
    told |= {"temperature": 1.0, "outside_mass": 0.0}
    frame = pd.DataFrame({"clip_id": clips, "true_label": true, "provisional": said, "predicted": said, **told})
    groups = None if groups_C is None else {clip: f"g{group}" for clip, group in zip(clips, groups_C)}
    return table_of(frame.assign(probs=probs, labels=[list(LABELS)] * len(clips)), LABELS, QUICK, groups=groups)[0]


def drawn(seed: int, clips: int = 400, wrong: float = 0.15, columns: int = 9, words: int = 30, plant=None, beta=None):
    """A result, its parts and what is known: errors by chance, but for what `plant(known, share_C, sure_C)` changes.
    `beta` (sources, a, b): each source has its own rate of errors."""
    rng = np.random.default_rng(seed)
    groups_C = None if beta is None else rng.integers(0, beta[0], clips)
    known = known_of(clips, columns, rng, groups_C)
    share_C = np.full(clips, wrong) if beta is None else rng.beta(*beta[1:], beta[0])[groups_C]
    sure_C = np.clip(1 - wrong + rng.normal(0, 0.05, clips), 0.51, 0.99)
    said = said_of(known.index, words, rng)
    if plant is not None:
        plant(known, said, share_C, sure_C)
    result = result_of(rng.random(clips) < share_C, sure_C, rng, groups_C)
    return result, divided(result, known, said)


@pytest.mark.parametrize("chance", [{}, {"wrong": 0.9}, {"beta": (40, 0.6, 2.4)}], ids=["few", "most", "sources"])
def test_of_what_is_bad_by_chance_nothing_is_named_more_often_than_the_level_says(chance):
    """24 data sets at a level of 25 %: of 6 expected at most, 12 would come of chance once in 100 times."""
    sizes = {"clips": 300, "columns": 6, "words": 12}
    named = [bool(worst_of(*drawn(seed, **sizes, **chance), level=0.25).slices) for seed in range(24)]
    assert sum(named) <= 11


def test_a_bad_slice_is_named_first_and_alone():
    def plant(known, said, share_C, sure_C):
        share_C[known["column 1"] == "b"] = 0.6

    for seed in range(3):
        found = worst_of(*drawn(seed, plant=plant))
        assert [one.conditions for one in found.slices] == [(("column 1", "b"),)]
        [one] = found.slices
        assert one.difference.high < 0 and 0 < one.p["accuracy"] <= 0.05 and one.n == one.inside_C.sum()
        assert one.accuracy.low <= 1 - one.errors / one.n <= one.accuracy.high
        assert (
            found.table()["slice"].tolist() == ["column 1: b"] and found.table()["p_accuracy"][0] == one.p["accuracy"]
        )


def test_of_nested_slices_the_pair_is_named_where_it_alone_is_bad():
    def plant(known, said, share_C, sure_C):
        share_C[(known["column 1"] == "b") & known["column 2"]] = 0.8

    found = worst_of(*drawn(0, clips=2000, plant=plant))
    assert [one.conditions for one in found.slices] == [(("column 1", "b"), ("column 2", "yes"))]
    assert (("column 1", "b"),) in found.slices[0].alike


def test_words_of_traces_make_slices_by_who_has_them_and_by_who_lacks_them():
    def plant(known, said, share_C, sure_C):
        share_C[known.index.isin(said.loc[said["word"] == "word3", "clip_id"])] = 0.7

    result, parts = drawn(1, clips=1000, plant=plant)
    assert [one.name for one in worst_of(result, parts).slices] == ["trace says “word3”"]
    assert (TRUE, "cat") in parts and not {word for column, word in parts if column == SAYS_NOT} & {"word3"}
    most = pd.DataFrame({"clip_id": result.frame.index[50:], "word": "usual"})
    assert divided(result, pd.DataFrame(index=result.frame.index), most)[SAYS_NOT, "usual"].sum() == 50


def test_a_slice_that_is_surer_than_right_is_told_from_one_that_is_hard():
    def sure(known, said, share_C, sure_C):
        sure_C[:] = np.random.default_rng(9).uniform(0.5, 0.99, len(sure_C))
        share_C[:] = 1 - sure_C
        share_C[known["column 1"] == "b"] += 0.3

    def hard(known, said, share_C, sure_C):
        sure_C[known["column 1"] == "b"] = 0.55
        share_C[known["column 1"] == "b"] = 0.45

    [too_sure] = worst_of(*drawn(2, clips=2000, plant=sure)).slices
    assert too_sure.conditions == (("column 1", "b"),) and "confidence" in too_sure.p
    assert too_sure.as_sure > too_sure.accuracy.high
    [honest] = worst_of(*drawn(2, clips=2000, plant=hard)).slices
    assert honest.conditions == (("column 1", "b"),) and set(honest.p) == {"accuracy"}


def test_a_bad_source_is_named_as_the_source_and_not_by_what_only_it_has():
    rng = np.random.default_rng(0)
    groups_C = np.repeat(np.arange(40), 25)
    share_C = np.where(groups_C == 7, 0.9, 0.1)
    result = result_of(rng.random(1000) < share_C, np.full(1000, 0.9), rng, groups_C)
    known = pd.DataFrame({"fps": np.where(groups_C == 7, 24, 30), "group": [f"g{g}" for g in groups_C]})
    found = worst_of(result, divided(result, known.set_index(result.frame.index)))
    assert {one.conditions for one in found.slices} == {(("group", "g7"),)} or not found.slices
    assert not any(column == "fps" for one in found.slices for column, _ in one.conditions) and found.correlation > 0
    assert "correlated by up to" in tried(found)


def test_the_bound_is_never_below_the_exact_chance():
    rng = np.random.default_rng(0)
    for _ in range(300):
        clips = int(rng.integers(20, 400))
        wrong, n = rng.integers(1, clips, 2)
        found = int(rng.integers(0, min(n, wrong) + 1))
        exact = hypergeom.sf(found - 1, clips, wrong, n)
        assert _tail(found, n * wrong / clips, min(n, wrong))[0] >= exact * (1 - 1e-9)


@pytest.mark.parametrize("clips", [0, 1, 2 * FEWEST - 1])
def test_of_too_few_clips_nothing_is_tried_and_that_is_said(clips):
    rng = np.random.default_rng(0)
    result = result_of(np.ones(clips, bool), np.full(clips, 0.9), rng) if clips else drawn(0)[0].on(pd.Index([]))
    found = worst_of(result, divided(result, known_of(max(clips, 1), 3, rng).head(clips)))
    assert found.slices == () and found.tried == 0 and "No slice could be tried" in tried(found)
    assert found.table().empty and "slice" in found.table()


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_where_all_is_right_or_all_is_wrong_nothing_is_worse(wrong):
    assert worst_of(*drawn(0, wrong=wrong)).slices == ()


def test_thirty_thousand_clips_by_thirty_columns_take_seconds():
    result, parts = drawn(0, clips=30_000, columns=30, words=0)
    began = time.process_time()
    found = worst_of(result, parts)
    assert found.tried > 3000 and time.process_time() - began < 10
