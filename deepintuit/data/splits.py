"""Splits by group: cold start, GRPO, calibration, validation, test, disjoint and reproducible by seed. Never by clip.

The stages must not share clips (METHOD.md 1.3, 1.4), nor clips of one source. The optimal assignment is bin packing;
the best of many randomised greedy rounds is close, and says how close in `Manifest.summary()`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from deepintuit.data.manifest import SPLITS, Manifest
from deepintuit.errors import DataError, nearest

# 70 % to train on, divided 30 : 30 : 40 over the stages [R]: the paper gives calibration the largest part too
# (METHOD.md 1.4).
FRACTIONS: Mapping[str, float] = {
    "coldstart": 0.21,
    "grpo": 0.21,
    "calibration": 0.28,
    "validation": 0.10,
    "test": 0.20,
}
_STEPS = 40_000  # greedy steps over all rounds: few groups get many rounds, many groups need few


def assign_splits(manifest: Manifest, fractions: Mapping[str, float] = FRACTIONS, seed: int = 0) -> Manifest:
    """A manifest whose usable clips with a label all have a split; the one passed in stays as it was.

    A split that the annotation gives (`given_split`) is kept as given. Clips given as `train`, or without a split,
    are divided by group over the splits that were not given, in the proportions of `fractions`, with labels as even
    as groups allow. The same clips, fractions and seed give the same splits, in whatever order the rows stand. Raises
    `DataError` for fractions that are no shares, for fewer groups than splits, and for a group that the annotation
    itself puts into two splits.
    """
    _check(fractions)
    frame = manifest.frame
    usable = frame["excluded"].isna() & frame["label"].notna()
    given_split = frame["given_split"].where(frame["given_split"] != "train")
    _refuse_torn_groups(frame[usable])
    splits = [s for s in SPLITS if fractions.get(s, 0) > 0 and s not in set(given_split.dropna())]
    pool = frame[usable & given_split.isna()]
    split = given_split.copy()
    if splits and len(pool):
        counts_G_K = pd.crosstab(pool["group"], pool["label"]).sort_index().sort_index(axis=1)
        if len(counts_G_K) < len(splits):
            raise DataError(
                f"{manifest.dataset!r} has {len(counts_G_K)} groups to divide over {len(splits)} splits "
                f"({', '.join(splits)}).",
                "A group is never torn, since clips of one source in two splits leak from one into the other.",
                "Set the fraction of some splits to 0, bring more sources, or name a finer group column.",
            )
        shares_S = np.array([fractions[s] for s in splits]) / sum(fractions[s] for s in splits)
        places_G = _divide(counts_G_K.to_numpy(float), shares_S, seed)
        of_group = dict(zip(counts_G_K.index, (splits[place] for place in places_G)))
        split[pool.index] = pool["group"].map(of_group)
    return Manifest(manifest.workbench, manifest.dataset, frame.assign(split=split), manifest.labels)


def _check(fractions: Mapping[str, float]) -> None:
    for name, share in fractions.items():
        if name not in SPLITS:
            raise DataError(
                f"The fractions name a split {name!r}.",
                f"Splits are {', '.join(SPLITS)}.",
                f"Nearest: {nearest(name, SPLITS) or SPLITS[0]}.",
            )
        if not 0 <= share <= 1:
            raise DataError(f"The fraction of {name!r} is {share}.", "A fraction lies between 0 and 1.", "Correct it.")
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise DataError(
            f"The fractions sum to {sum(fractions.values()):.6g}.",
            "Together they are all the clips.",
            "Make them sum to 1.",
        )


def _refuse_torn_groups(frame: pd.DataFrame) -> None:
    splits = frame.assign(place=frame["given_split"].fillna("train")).groupby("group")["place"].unique()
    torn = splits[splits.map(len) > 1].sort_index()
    if len(torn):
        raise DataError(
            f"The annotation puts {len(torn)} groups into two splits, for example {torn.index[0]!r} into "
            f"{' and '.join(sorted(torn.iloc[0]))}.",
            "Clips of one source in two splits leak from one into the other.",
            "Name another group or split column, or import without the split column so that groups are divided here.",
        )


def _divide(counts_G_K: np.ndarray, shares_S: np.ndarray, seed: int) -> np.ndarray:
    """Place of each group, G numbers below S. Large groups first, each where it lessens the misfit most; best of many
    rounds.

    Misfit is the squared distance to the wished count of each split and label over that wish, as in a chi-square, so
    that a small split's clip weighs more. No split stays empty (G ≥ S).
    """
    groups, places = len(counts_G_K), len(shares_S)
    sizes_G = counts_G_K.sum(axis=1)
    # The last column is the split's size itself, so that it counts even where labels cannot be even.
    counts_G_K = np.column_stack([counts_G_K, sizes_G])
    wish_S_K = np.outer(shares_S, counts_G_K.sum(axis=0))
    random = np.random.default_rng(seed)
    best_G, least = np.zeros(groups, int), np.inf
    for _ in range(int(np.clip(_STEPS // groups, 1, 200))):
        place_G, have_S_K = np.zeros(groups, int), np.zeros_like(wish_S_K)
        # Jitter lets groups of similar size change turns between rounds.
        for g in np.argsort(-sizes_G * random.uniform(0.7, 1.3, groups), kind="stable"):
            after = ((have_S_K + counts_G_K[g] - wish_S_K) ** 2 - (have_S_K - wish_S_K) ** 2) / wish_S_K
            gain_S = after.sum(axis=1)
            place_G[g] = random.choice(np.flatnonzero(gain_S <= gain_S.min() + 1e-9))
            have_S_K[place_G[g]] += counts_G_K[g]
        _fill_empty(place_G, sizes_G, places)
        have_S_K = np.stack([counts_G_K[place_G == s].sum(axis=0) for s in range(places)])
        misfit = (((have_S_K - wish_S_K) ** 2) / wish_S_K).sum()
        if misfit < least:
            best_G, least = place_G, misfit
    return best_G


def _fill_empty(place_G: np.ndarray, sizes_G: np.ndarray, places: int) -> None:
    for s in range(places):
        if not (place_G == s).any():
            crowded = np.bincount(place_G, minlength=places)[place_G] > 1
            place_G[np.flatnonzero(crowded)[np.argmin(sizes_G[crowded])]] = s
