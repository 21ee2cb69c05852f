"""Which kinds of sentences carried the calibrated labels of a split: the grain `attributions`, summed over its clips.

carriers(attributions(workbench, run_id), result)      # by segment of the grammar, and by word
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from deepintuit.metrics import Estimate
from deepintuit_analysis.report.results import Result

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

MOST_WORDS = 8
_LEAST_CLIPS = 10
"""In which a word must stand to be listed."""
_WORD = re.compile(r"[^\W\d_]{3,}")


class Carrier(NamedTuple):
    """A kind of sentence. `effect`: the mean of its sentences, of the probability of 1; `largest`: the share of clips
    in which the sentence of the largest effect is one; `changes`: sentences without which the label is another."""

    kind: str
    clips: int
    sentences: int
    effect: Estimate
    largest: Estimate
    changes: int


def attributions(workbench: Workbench, run_id: str) -> pd.DataFrame:
    """A row a sentence behind the calibrated labels of an evaluate run, by the newest finished attribute run on it:
    clip_id, segment, text, effect, changes; none where nobody asked."""
    return workbench.query(
        """SELECT clip_id, segment, text, effect, answer_without <> answer AS changes FROM attributions
           WHERE run_id = (SELECT run_id FROM runs WHERE stage = 'attribute' AND status = 'finished' AND parent = ?
                           ORDER BY created DESC, run_id DESC LIMIT 1) ORDER BY clip_id, sentence""",
        [run_id],
    )


def carriers(rows: pd.DataFrame, result: Result) -> tuple[list[Carrier], list[Carrier], int]:
    """By segment in the order of the trace, and by word, those of the largest mean effect; and among how many words.
    Only clips of the result count."""
    rows = rows[rows["clip_id"].isin(result.frame.index)].reset_index(drop=True)
    segments = {name: (rows["segment"] == name).to_numpy() for name in rows["segment"].unique()}
    words: dict[str, list[int]] = {}
    for n, text in enumerate(rows["text"]):
        for word in dict.fromkeys(_WORD.findall(text.casefold())):
            words.setdefault(word, []).append(n)
    common = {word: places for word, places in words.items() if rows["clip_id"][places].nunique() >= _LEAST_CLIPS}
    effect_N = rows["effect"].to_numpy()
    first = sorted(common, key=lambda word: -effect_N[common[word]].mean())[:MOST_WORDS]
    inside = {word: np.isin(np.arange(len(rows)), common[word]) for word in first}
    return _of(rows, segments, result), _of(rows, inside, result), len(common)


def _of(rows: pd.DataFrame, kinds: dict[str, np.ndarray], result: Result) -> list[Carrier]:
    clip_N, C = result.frame.index.get_indexer(rows["clip_id"]), result.n
    largest_N = rows.index.isin(rows.groupby("clip_id")["effect"].idxmax())
    asked_C = np.bincount(clip_N, minlength=C) > 0
    sums_C_S = [np.bincount(clip_N, rows["effect"] * inside_N, C) for inside_N in kinds.values()]
    counts_C_S = [np.bincount(clip_N, inside_N, C) for inside_N in kinds.values()]
    effects = result.ratios(np.stack(sums_C_S, 1), np.stack(counts_C_S, 1)) if kinds else []
    return [
        Carrier(
            kind,
            int((count_C > 0).sum()),
            int(inside_N.sum()),
            effect,
            result.share(np.bincount(clip_N[inside_N & largest_N], minlength=C) > 0, asked_C),
            int(rows["changes"][inside_N].sum()),
        )
        for (kind, inside_N), count_C, effect in zip(kinds.items(), counts_C_S, effects, strict=True)
    ]
