"""The scripted teacher of the household: what it sees, which policies it weighs, what it concludes.

It errs as `witness` says, the more where a clip is hard to see, and slips in the conclusion now and then. It passes
over a box that nobody touches, as a witness does who was asked what happened, so that policies about such a box are
lost on it; and it seldom thinks of an exception. Filtering by the label then removes most traces about both: rewards
and calibration, which see labels, are there to close that gap.
"""

from __future__ import annotations

import random
import re

from deepintuit.worlds import Step
from deepintuit_homecam.policies import LABELS, Facts, Policy, decided, with_idle_box
from deepintuit_homecam.scene import INDOORS
from deepintuit_homecam.witness import (
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

KNOWS_EXCEPTIONS = 0.4
"""How often the teacher thinks of an exception where there is one."""
POOR = Errors(who=0.25, quarter=0.2)
"""How it errs where a clip is hard to see."""


def write_trace(
    facts: Facts, seed: int, errors: Errors | None = None, knows: float = KNOWS_EXCEPTIONS
) -> dict[str, str]:
    """A trace in parts: `observation`, `think`, `answer`, and `text`, the think-answer form (sometimes broken on
    purpose)."""
    errors = errors or (USUAL if facts.view == "clear" else POOR)
    rng = random.Random(f"household/{facts}/{seed}")
    perceived = misperceived(facts, rng, errors)
    policy = decided(perceived, without=("idle box",) if rng.random() < knows else ("idle box", "exception"))
    label = next(iter(policy.odds))
    if rng.random() < errors.conclusion:
        label = rng.choice(LABELS.labels)
    caption = observation(perceived, rng, idle_box=False)
    argued = f"{event(perceived)} {weighed(perceived, policy)} So it is {label}."
    text = f"<think> {caption} {argued} </think><answer> {label} </answer>"
    if rng.random() < errors.form:
        text = broken(text, caption, label, rng)
    return {"observation": caption, "think": argued, "answer": label, "text": text}


def steps(text: str, facts: Facts) -> list[Step]:
    """Of a reasoning, held against the policies with their exceptions. What hangs on a box that nobody touches is no
    step of anybody's."""
    policy = decided(facts, without=("idle box",))
    observations = (observation(facts, idle_box=idle) for idle in (True, False))
    reasons = f"{event(facts)} {weighed(facts, policy)} So it is {next(iter(policy.odds))}."
    return steps_of(text, *openings(facts), *observations, reasons)


def weighed(facts: Facts, policy: Policy) -> str:
    """The policies that come to mind about a scene and what they say of it, in few and common words, for a small
    model."""
    closed = "No outsider may be " + ("indoors" if facts.place in INDOORS else "outdoors at night")
    calm = "Nobody stays down, no box is taken, and " + (
        "by day an outsider may be outdoors" if facts.outsider else "the family is at home"
    )
    return {
        "animal": "A dog is an animal, and no outsider.",
        "play": "Someone who stays down needs help, but in the yard by day a child is at play.",
        "help": "Someone who stays down needs help.",
        "pickup": "No outsider may take the box, but at the porch by day the courier may.",
        "property": "No outsider may take the box.",
        "late round": f"{closed}, but at the porch the courier may.",
        "closed": f"{closed}.",
        "left": "By day an outsider may be outdoors, and the box is left." if facts.outsider else "The box is left.",
        "opinion": f"The {facts.who} is down and gets up, and most see no emergency in that.",
        "rest": "The box is for the family." if facts.act == "takes" else f"{calm}.",
    }[policy.name]


def label_of_observation(text: str) -> str | None:
    """The likeliest label of a clip in which things are as an observation says; None where it says too little, as it
    does where all hangs on a box that it passes over."""
    silent = "box" not in text
    scene = scene_told(re.sub(r"(Frame \d: \w+( \w+)?)\.", r"\1, no box.", text) if silent else text)
    if scene is None:
        return None
    facts = Facts(**scene.__dict__, view="clear")
    labels = {facts.label, with_idle_box(facts, True).label} if silent else {facts.label}
    return labels.pop() if len(labels) == 1 else None


def misread(text: str, facts: Facts) -> list[str]:
    """What an observation says otherwise than it was, or leaves out: names of facts. A box that nobody touches may be
    left out."""
    truth, lean = (read_observation(observation(facts, idle_box=idle)) for idle in (True, False))
    stated = read_observation(text)
    return [name for name, value in truth.items() if stated.get(name) not in (value, lean[name])]
