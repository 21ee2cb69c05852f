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

from deepintuit_homecam import MODEL, clips
from deepintuit_homecam.draw import Home
from deepintuit_homecam.household_teacher import label_of_observation, misread, steps, write_trace
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
    "render_clip",
    "steps",
    "write_clips",
    "write_trace",
]

SLICES = {
    "plain": (4, 23),
    "unseen": (13, 0),
    "at a glance": (6, 4),
    "exception": (4, 2),
    "only in the video": (4, 2),
    "noise": (5, 5),
    "hard to see": (4, 4),
}
"""Slice → how many of forty test clips it takes, and of forty training clips."""
_PLAIN = {"routine": 0.15, "delivery": 0.20, "theft": 0.20, "intrusion": 0.25, "emergency": 0.20}
"""Label → share of the clips that plain policies decide."""
_DECIDED_BY = {"exception": "exception", "idle box": "only in the video", "opinion": "noise"}
_SPEEDS = {"train": ((2.2, 3.2), (5, 6)), "test": ((2.0, 3.6), (4, 5, 7))}
_HOMES = {"train": 160, "test": 80}
"""Homes of a seed: each seed has its own."""

Cell = tuple[str, bool, str, str]
"""(light, whether indoors, who, act): a combination of facts that may be held out of training."""
_HALVES = (("day", None), ("night", None), (None, True), (None, False))


def cell_of(facts: Facts) -> Cell:
    return facts.light, facts.place in INDOORS, facts.who, facts.act


def slice_of(facts: Facts, cells: frozenset[Cell] = frozenset()) -> str:
    """The slice of a scene, where `cells` are in no training clip."""
    policy = decided(with_idle_box(facts, True))  # without the box, what hangs on it is routine by no policy of its own
    if policy.name == "animal":
        return "at a glance"
    if policy.kind != "plain":
        return _DECIDED_BY[policy.kind]
    if cell_of(facts) in cells:
        return "unseen"
    return "plain" if facts.view == "clear" else "hard to see"


@functools.cache
def held_out(seed: int) -> frozenset[Cell]:
    """The cells that no training clip of this seed has: a third of those that plain policies decide wholly.

    Training shows each policy in some circumstances alone (theft at night, say, and the family taking boxes by day), so
    that light and place go with labels there, as chance has it in any collection; these cells are the others.
    """
    rng, cells = random.Random(f"household/held out/{seed}"), set()
    light, second_light = rng.sample(LIGHTS, 2)
    holes = {"theft": (light, None), "routine": (second_light, None), "emergency": rng.choice(_HALVES)}
    holes |= {"delivery": rng.choice((("night", None), (None, True))), "intrusion": ("night", True)}
    slices, labels = defaultdict(set), {}
    for at, place, actor, act in product(LIGHTS, PLACES, ACTORS, ACTS):
        facts = Facts(at, place, actor, act, scripts(act)[0], "clear")
        slices[cell_of(facts)].add(slice_of(facts))
        labels[cell_of(facts)] = facts.label
    for cell, kinds in slices.items():
        label, (at, indoors, _, act) = labels[cell], cell
        if kinds != {"plain"} or (label == "routine" and act != "takes"):
            continue
        hole = holes[label]
        if hole[0] in (None, at) and hole[1] in (None, indoors):
            cells.add(cell)
    return frozenset(cells)


@functools.cache
def _forty(part: Part, seed: int, block: int) -> tuple[str, ...]:
    """The slices of forty clips in a row."""
    slices = [name for name, counts in SLICES.items() for _ in range(counts[part == "train"])]
    random.Random(f"household/slices/{part}/{seed}/{block}").shuffle(slices)
    return tuple(slices)


def sample_facts(rng: random.Random, slice_name: str, cells: frozenset[Cell]) -> Facts:
    """A scene of this slice; inside a slice all scenes are equally likely, but for plain labels (`_PLAIN`)."""
    plain = slice_name in {"plain", "unseen", "hard to see"}
    label = rng.choices(list(_PLAIN), list(_PLAIN.values()))[0] if plain else None
    view = "poor" if slice_name == "hard to see" else "clear"
    while True:
        act = rng.choice(ACTS)
        facts = Facts(rng.choice(LIGHTS), rng.choice(PLACES), rng.choice(ACTORS), act, rng.choice(scripts(act)), view)
        if slice_of(facts, cells) == slice_name and label in (None, facts.label):
            return facts


def _plan(part: Part, number: int, seed: int) -> clips.Plan:
    rng = random.Random(f"household/{part}/{seed}/{number}")
    slice_name = _forty(part, seed, number // 40)[number % 40]
    facts = sample_facts(rng, slice_name, held_out(seed))
    weights = odds(facts)
    label = rng.choices(list(weights), list(weights.values()))[0]
    home = Home(part, 1000 * seed + rng.randrange(_HOMES[part]))
    notes = {"slice": slice_name, "odds": json.dumps(weights)}
    name = f"{part}-{seed}-{number:05d}"
    return clips.planned(rng, part, name, facts, label, home, look=facts.view, speeds=_SPEEDS, **notes)


_files = clips.ClipFiles(LABELS, Facts, _plan)
write_clips, render_clip = _files.write_clips, _files.render_clip
listing, facts_of = _files.listing, _files.facts_of
