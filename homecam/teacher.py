"""The scripted teacher of the home-camera world: writes what it sees and how it concludes, with realistic, seeded
errors.

It errs as strong VLMs do: it mistakes look-alikes (a courier for a stranger), it slips in the last step, now and then
it breaks the form, and it goes by the rule of the house without knowing the habits that overrule it. Filtering by the
label, as the paper does, removes most wrong traces, and with them nearly every clip on which a habit decides: what is
left is cleaner, and biased. No trace that is kept explains a habit; rewards and calibration, which see labels, are
there to close that gap.
"""

from __future__ import annotations

import random

from deepintuit.worlds import Step
from deepintuit_homecam.scene import INDOORS
from deepintuit_homecam.witness import (
    BOX_PHRASES,
    USUAL,
    Errors,
    broken,
    event,
    misperceived,
    observation,
    openings,
    read_observation,
    scene_told,
    steps_of,
)
from deepintuit_homecam.world import LABELS, OUTCOMES, WATCH, Facts, alarm_on, belongs


def label_of_observation(text: str) -> str | None:
    """The true label of a clip in which things are as an observation says; None where it says too little, or what
    cannot be."""
    scene = scene_told(text)
    return None if scene is None else Facts(**scene.__dict__).label


def misread(text: str, facts: Facts) -> list[str]:
    """What an observation says otherwise than it was, or leaves out: names of facts."""
    truth, stated = read_observation(observation(facts)), read_observation(text)
    return [name for name, value in truth.items() if stated.get(name) != value]


def steps(text: str, facts: Facts) -> list[Step]:
    """Of a reasoning, held against the rule of the house: habits are no step of anybody's."""
    allowed, label = _conclude(facts)
    return steps_of(text, *openings(facts), observation(facts), reasoning(facts, allowed, label))


def reasoning(facts: Facts, allowed: bool, label: str) -> str:
    """The event, the house rule step by step (each step compares two things that were said), the two classes that
    the act leaves open, then the verification."""
    outdoors, night = facts.place not in INDOORS, facts.light == "night"
    alarm, watch = alarm_on(facts.light, facts.place), facts.who in WATCH
    first, second = OUTCOMES[facts.act]
    last_posture, last_box = facts.quarters[-1]
    return " ".join(
        [
            event(facts),
            f"Outdoors? {_yes(outdoors)} Night? {_yes(night)} Alike? {_yes(alarm)}",
            f"Alarm? {_yes(alarm)} Watch? {_yes(watch)} Alike? {_yes(allowed)}",
            f"{first.capitalize()} or {second}? {label.capitalize()}.",
            f"Check: at the end {last_posture}, {BOX_PHRASES[last_box]}, so {label}.",
        ]
    )


def _yes(true: bool) -> str:
    return "Yes." if true else "No."


def write_trace(facts: Facts, seed: int, errors: Errors = USUAL) -> dict[str, str]:
    """A trace in parts: `observation`, `think`, `answer`, and `text`, the think-answer form (sometimes broken on
    purpose)."""
    rng = random.Random(f"teacher/{facts}/{seed}")
    perceived = misperceived(facts, rng, errors)
    allowed, label = _conclude(perceived)
    if rng.random() < errors.conclusion:
        label = rng.choice(LABELS.labels)
    caption, argued = observation(perceived, rng), reasoning(perceived, allowed, label)
    text = f"<think> {caption} {argued} </think><answer> {label} </answer>"
    if rng.random() < errors.form:
        text = broken(text, caption, label, rng)
    return {"observation": caption, "think": argued, "answer": label, "text": text}


def _conclude(facts: Facts) -> tuple[bool, str]:
    allowed = belongs(facts.who, alarm_on(facts.light, facts.place))
    return allowed, OUTCOMES[facts.act][0 if allowed else 1]
