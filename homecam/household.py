"""The household: a world whose labels are house policies in plain words, with slices that each stage must earn.

The first of `policies.POLICIES` that applies gives the label; someone who has read them once agrees with the label of
a clip, or sees why not. Some are rare exceptions that the teacher seldom thinks of, some hang on a box that no
observation mentions, one is a matter of opinion with known odds; a third of the plain combinations of facts comes in
no training clip, and some clips are hard to see. Each clip notes its slice (`SLICES`) and the odds of its labels, so
that the best reachable accuracy and likelihood are known.

    table = household.write_clips("clips", train=1000, test=400, seed=0)
"""

from __future__ import annotations

import functools
import json
import random
from collections import defaultdict
from itertools import product
from pathlib import Path

from deepintuit_clips import Listing
from deepintuit_homecam import MODEL, clips
from deepintuit_homecam.draw import Home
from deepintuit_homecam.household_teacher import label_of_observation, misread, write_trace
from deepintuit_homecam.policies import LABELS, Facts, decided, odds, with_idle_box
from deepintuit_homecam.scene import ACTORS, ACTS, INDOORS, LIGHTS, PLACES, Part, scripts

__all__ = [
    "LABELS",
    "MODEL",
    "Facts",
    "facts_of",
    "label_of_observation",
    "listing",
    "misread",
    "write_clips",
    "write_trace",
]

SLICES = {
    "plain": 0.10,
    "unseen": 0.15,
    "at a glance": 0.15,
    "exception": 0.15,
    "only in the video": 0.15,
    "noise": 0.15,
    "hard to see": 0.15,
}
"""Slice → share of the test clips. A training clip is plain instead of unseen."""
_PLAIN = {"routine": 0.15, "delivery": 0.20, "theft": 0.20, "intrusion": 0.25, "emergency": 0.20}
"""Label → share of the clips that plain policies decide."""
_DECIDED_BY = {"exception": "exception", "idle box": "only in the video", "opinion": "noise"}
_HOMES = {"train": 160, "test": 80}
"""Homes of a seed: each seed has its own."""

Cell = tuple[str, bool, str, str]
"""(light, whether indoors, who, act): a combination of facts that may be held out of training."""


def cell_of(facts: Facts) -> Cell:
    return facts.light, facts.place in INDOORS, facts.who, facts.act


def slice_of(facts: Facts, held: frozenset[Cell] = frozenset()) -> str:
    """The slice of a scene, where the cells `held` are in no training clip."""
    policy = decided(with_idle_box(facts, True))  # without the box, what hangs on it is routine by no policy of its own
    if policy.name == "animal":
        return "at a glance"
    if policy.kind != "plain":
        return _DECIDED_BY[policy.kind]
    if cell_of(facts) in held:
        return "unseen"
    return "plain" if facts.view == "clear" else "hard to see"


@functools.cache
def held_out(seed: int) -> frozenset[Cell]:
    """The cells that no training clip of this seed has: of each label a third of those that plain policies decide
    wholly."""
    slices, labels = defaultdict(set), {}
    for light, place, who, act in product(LIGHTS, PLACES, ACTORS, ACTS):
        facts = Facts(light, place, who, act, scripts(act)[0], "clear")
        slices[cell_of(facts)].add(slice_of(facts))
        labels[cell_of(facts)] = facts.label
    rng, held = random.Random(f"household/held out/{seed}"), set()
    for label in LABELS.labels:
        cells = sorted(cell for cell, found in slices.items() if labels[cell] == label and found == {"plain"})
        held.update(rng.sample(cells, round(len(cells) / 3)))
    return frozenset(held)


def sample_facts(rng: random.Random, wanted: str, held: frozenset[Cell]) -> Facts:
    """A scene of the slice `wanted`; inside a slice all scenes are equally likely, but for plain labels (`_PLAIN`)."""
    plain = wanted in {"plain", "unseen", "hard to see"}
    label = rng.choices(list(_PLAIN), list(_PLAIN.values()))[0] if plain else None
    view = "poor" if wanted == "hard to see" else "clear"
    while True:
        act = rng.choice(ACTS)
        facts = Facts(rng.choice(LIGHTS), rng.choice(PLACES), rng.choice(ACTORS), act, rng.choice(scripts(act)), view)
        if slice_of(facts, held) == wanted and label in (None, facts.label):
            return facts


def write_clips(
    folder: str | Path, *, train: int, test: int, seed: int = 0, jobs: int = 1, progress: bool = True
) -> Path:
    """Render clips into a folder and return their table (`clips.write`), with the notes `slice` and `odds`."""
    plans = [_plan(part, number, seed) for part, count in (("train", train), ("test", test)) for number in range(count)]
    return clips.write(folder, plans, jobs=jobs, progress=progress)


def listing(table: Path) -> Listing:
    """The rendered clips as any importer lists them. Facts, slice and odds are notes: no model reads them."""
    return clips.listed(table, LABELS)


def facts_of(note: str) -> Facts:
    """The facts of a clip from its `facts` note."""
    return clips.facts_from(note, Facts)


def _plan(part: Part, number: int, seed: int) -> clips.Plan:
    rng = random.Random(f"household/{part}/{seed}/{number}")
    wanted = rng.choices(list(SLICES), list(SLICES.values()))[0]
    if part == "train" and wanted == "unseen":
        wanted = "plain"
    facts = sample_facts(rng, wanted, held_out(seed))
    known = odds(facts)
    label = rng.choices(list(known), list(known.values()))[0]
    home = Home(part, 1000 * seed + rng.randrange(_HOMES[part]))
    name = f"{part}-{seed}-{number:05d}"
    return clips.planned(rng, part, name, facts, label, home, facts.view, slice=wanted, odds=json.dumps(known))
