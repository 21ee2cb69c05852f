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
import re
from dataclasses import dataclass, replace

from deepintuit_homecam.world import (
    ACTORS,
    INDOORS,
    LABELS,
    LIGHTS,
    OUTCOMES,
    PLACES,
    WATCH,
    Facts,
    act_of,
    alarm_on,
    belongs,
)

_LOOKALIKES = {
    "resident": ("stranger", "child"),
    "courier": ("stranger", "resident"),
    "stranger": ("courier", "resident"),
    "child": ("resident", "dog"),
    "dog": ("child",),
}
ACT_PHRASES = {
    "brings": "leaves the box",
    "takes": "takes the box",
    "passes": "passes by",
    "lingers": "stays around",
    "falls": "goes down and stays down",
    "trips": "goes down and gets up",
}
BOX_PHRASES = {"none": "no box", "floor": "box down", "held": "box held"}
_KINDS = {"resident": "family", "child": "family", "courier": "an outsider", "stranger": "an outsider", "dog": "a pet"}


@dataclass(frozen=True)
class Errors:
    """How often the teacher errs; each a probability. `Errors.none()` is the perfect teacher."""

    who: float = 0.06
    light: float = 0.02
    place: float = 0.01
    quarter: float = 0.02
    conclusion: float = 0.03
    form: float = 0.03

    @classmethod
    def none(cls) -> Errors:
        return cls(0, 0, 0, 0, 0, 0)


def observation(facts: Facts, rng: random.Random | None = None) -> str:
    """What is seen, quarter by quarter, naming states and the first frame of each quarter (of 8). No conclusion."""
    opening = f"It is {facts.light} at the {facts.place}. A {facts.who} is seen."
    if rng and rng.random() < 0.3:
        opening = f"A {facts.who} is seen at the {facts.place}. It is {facts.light}."
    lines = [
        f"Frame {2 * index + 1}: {'nobody' if posture == 'nobody' else f'{facts.who} {posture}'}, {BOX_PHRASES[box]}."
        for index, (posture, box) in enumerate(facts.quarters)
    ]
    return " ".join([opening, *lines])


def read_observation(text: str) -> dict[str, str]:
    """The facts that an observation states, by name; a fact that it does not state is missing. The way back of
    `observation`."""
    found = {}
    for name, pattern in {
        "light": r"It is (\w+)",
        "place": r"at the (\w+)\.",
        "who": r"A (\w+) is seen",
        **{f"quarter {k}": rf"Frame {2 * k - 1}: ([^.]*)\." for k in (1, 2, 3, 4)},
    }.items():
        if match := re.search(pattern, text):
            found[name] = match.group(1)
    return found


def label_of_observation(text: str) -> str | None:
    """The true label of a clip in which things are as an observation says; None where it says too little, or what
    cannot be."""
    stated = read_observation(text)
    states = {phrase: box for box, phrase in BOX_PHRASES.items()}
    quarters = []
    for k in (1, 2, 3, 4):
        body, _, box = stated.get(f"quarter {k}", "").partition(", ")
        quarters.append((body.split(" ")[-1], states.get(box, "")))
    act = act_of(tuple(quarters))
    known = (("light", LIGHTS), ("place", PLACES), ("who", ACTORS))
    if act is None or any(stated.get(name) not in values for name, values in known):
        return None
    return Facts(stated["light"], stated["place"], stated["who"], act, tuple(quarters)).label


def misread(text: str, facts: Facts) -> list[str]:
    """What an observation says otherwise than it was, or leaves out: names of facts."""
    truth, stated = read_observation(observation(facts)), read_observation(text)
    return [name for name, value in truth.items() if stated.get(name) != value]


def event(facts: Facts) -> str:
    """One sentence that sums up what happens: who does what, indoors or outdoors, in which light."""
    act = ACT_PHRASES.get(act_of(facts.quarters) or "", "does something else")
    where = "indoors" if facts.place in INDOORS else "outdoors"
    return f"So the {facts.who}, {_KINDS[facts.who]}, {act} {where} at {facts.light}."


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


def write_trace(facts: Facts, seed: int, errors: Errors = Errors()) -> dict[str, str]:
    """A trace in parts: `observation`, `think`, `answer`, and `text`, the think-answer form (sometimes broken on
    purpose)."""
    rng = random.Random(f"teacher/{facts}/{seed}")
    seen = _misperceive(facts, rng, errors)
    allowed, label = _conclude(seen, rng, errors)
    told, argued = observation(seen, rng), reasoning(seen, allowed, label)
    text = f"<think> {told} {argued} </think><answer> {label} </answer>"
    if rng.random() < errors.form:
        text = rng.choice(
            (text.replace("</think>", ""), text.replace("<answer>", ""), text[: len(text) // 2], f"{told} {label}")
        )
    return {"observation": told, "think": argued, "answer": label, "text": text}


def _misperceive(facts: Facts, rng: random.Random, errors: Errors) -> Facts:
    seen = facts
    if rng.random() < errors.who:
        seen = replace(seen, who=rng.choice(_LOOKALIKES[facts.who]))
    if rng.random() < errors.light:
        seen = replace(seen, light=LIGHTS[1 - LIGHTS.index(facts.light)])
    if rng.random() < errors.place:
        seen = replace(seen, place=rng.choice(PLACES))
    if rng.random() < errors.quarter:
        quarters = list(seen.quarters)
        index = rng.randrange(4)
        quarters[index] = quarters[max(0, index - 1)]
        seen = replace(seen, quarters=tuple(quarters))
    return replace(seen, act=act_of(seen.quarters) or "lingers")


def _conclude(seen: Facts, rng: random.Random, errors: Errors) -> tuple[bool, str]:
    alarm = alarm_on(seen.light, seen.place)
    allowed = belongs(seen.who, alarm)
    label = OUTCOMES[seen.act][0 if allowed else 1]
    if rng.random() < errors.conclusion:
        label = rng.choice(LABELS.labels)
    return allowed, label
