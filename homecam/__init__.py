"""A small rendered home-camera world with known facts, so that everything runs with nothing downloaded.

    table = homecam.write_clips("clips-of-homecam", train=1000, test=400, seed=0)
    listing = homecam.listing(table)          # then `deepintuit_clips.scan`, as for anybody's clips

- `world`    facts, and the rule that makes a label of several of them
- `draw`     facts → frames, in three parts of the world that share no room and no clothes
- `teacher`  facts → a trace, with realistic errors
- `model/`   the embedded backbone (card inside), `example/` a finished workbench; `workshop/` makes both anew
"""

from __future__ import annotations

import random
from pathlib import Path

from deepintuit_homecam import clips
from deepintuit_homecam.draw import homes
from deepintuit_homecam.teacher import label_of_observation, misread, steps, write_trace
from deepintuit_homecam.world import LABELS, Facts, sample_facts

MODEL = Path(__file__).parent / "model"
"""The embedded backbone, as a hub folder."""

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
    "unpack_example",
    "write_clips",
    "write_trace",
]


def unpack_example(place: Path) -> Path:
    """The finished workbench that ships with this package, at `place`, where it is written if it is not there."""
    from deepintuit_homecam.example import unpack

    return unpack(place)


def _plan(part: str, number: int, seed: int) -> clips.Plan:
    rng = random.Random(f"homecam/{part}/{seed}/{number}")
    facts = sample_facts(rng)
    return clips.planned(rng, part, f"{part}-{seed}-{number:05d}", facts, facts.label, rng.choice(homes(part)))


_files = clips.ClipFiles(LABELS, Facts, _plan)
write_clips, render_clip = _files.write_clips, _files.render_clip
listing, facts_of = _files.listing, _files.facts_of
