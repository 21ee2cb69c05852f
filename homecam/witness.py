"""What a scripted teacher sees of a scene and how it says so, with realistic, seeded errors. Every world's teacher
begins with it.

It errs as strong VLMs do: it mistakes look-alikes (a courier for a stranger), misses a moment, and now and then breaks
the form.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import TypeVar

from deepintuit.worlds import Step
from deepintuit_homecam.scene import ACTORS, INDOORS, LIGHTS, PLACES, Scene, act_of, touched

Seen = TypeVar("Seen", bound=Scene)

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
_STEP = re.compile(r"(?:(?!\.(?:\s|$)).)+\.?(?:\s+(?:Night|Alike|Watch)\?[^.]*\.)*", re.S)
_STEPS = {
    "observation": re.compile(r"It is \w+( at |\.)|An? \w+ is seen|Frame \d"),
    "summary": re.compile(r"So the "),
    "conclusion": re.compile(r"So it is |Check: |\w+ or \w+\?"),
}
"""A sentence, or a chain of questions with their answers; and by how it begins its kind: a policy where by none."""
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


USUAL = Errors()


def observation(facts: Scene, rng: random.Random | None = None, *, idle_box: bool = True) -> str:
    """What is seen, quarter by quarter, naming states and the first frame of each quarter (of 8). No conclusion.
    Without `idle_box`, boxes are passed over where nobody touches one."""
    opening = openings(facts)[1 if rng and rng.random() < 0.3 else 0]
    boxes = idle_box or touched(facts)
    lines = [
        f"Frame {2 * index + 1}: {'nobody' if posture == 'nobody' else f'{facts.who} {posture}'}"
        + (f", {BOX_PHRASES[box]}." if boxes else ".")
        for index, (posture, box) in enumerate(facts.quarters)
    ]
    return " ".join([opening, *lines])


def openings(facts: Scene) -> tuple[str, str]:
    """How an observation may begin."""
    return (
        f"It is {facts.light} at the {facts.place}. A {facts.who} is seen.",
        f"A {facts.who} is seen at the {facts.place}. It is {facts.light}.",
    )


def steps_of(text: str, *true: str) -> list[Step]:
    """The steps of a text; those are true that stand in one of the texts `true`."""
    truths = {_words(match) for sentence in true for match in _STEP.finditer(sentence)}
    steps = []
    for match in _STEP.finditer(text):
        if words := _words(match):
            kind = next((kind for kind, opening in _STEPS.items() if opening.match(words)), "policy")
            blank = len(match[0]) - len(match[0].lstrip())
            steps.append(Step(match.start() + blank, match.start() + len(match[0].rstrip()), kind, words in truths))
    return steps


def _words(match: re.Match[str]) -> str:
    return " ".join(match[0].split())


def read_observation(text: str) -> dict[str, str]:
    """The facts that an observation states, by name; a fact that it does not state is missing. The way back of
    `observation`."""
    facts = {}
    for name, pattern in {
        "light": r"It is (\w+)",
        "place": r"at the (\w+)\.",
        "who": r"A (\w+) is seen",
        **{f"quarter {k}": rf"Frame {2 * k - 1}: ([^.]*)\." for k in (1, 2, 3, 4)},
    }.items():
        if match := re.search(pattern, text):
            facts[name] = match.group(1)
    return facts


def scene_told(text: str) -> Scene | None:
    """The scene in which things are as an observation says; None where it says too little, or what cannot be."""
    stated = read_observation(text)
    states = {phrase: box for box, phrase in BOX_PHRASES.items()}
    quarters = []
    for k in (1, 2, 3, 4):
        body, _, box = stated.get(f"quarter {k}", "").partition(", ")
        quarters.append((body.split(" ")[-1], states.get(box, "")))
    act = act_of(tuple(quarters))
    choices = (("light", LIGHTS), ("place", PLACES), ("who", ACTORS))
    if act is None or any(stated.get(name) not in values for name, values in choices):
        return None
    return Scene(stated["light"], stated["place"], stated["who"], act, tuple(quarters))


def event(facts: Scene) -> str:
    """One sentence that sums up what happens: who does what, indoors or outdoors, in which light."""
    act = ACT_PHRASES.get(act_of(facts.quarters) or "", "does something else")
    setting = "indoors" if facts.place in INDOORS else "outdoors"
    return f"So the {facts.who}, {_KINDS[facts.who]}, {act} {setting} at {facts.light}."


def misperceived(facts: Seen, rng: random.Random, errors: Errors) -> Seen:
    """The scene as it is seen by one who errs."""
    scene = facts
    if rng.random() < errors.who:
        scene = replace(scene, who=rng.choice(_LOOKALIKES[facts.who]))
    if rng.random() < errors.light:
        scene = replace(scene, light=LIGHTS[1 - LIGHTS.index(facts.light)])
    if rng.random() < errors.place:
        scene = replace(scene, place=rng.choice(PLACES))
    if rng.random() < errors.quarter:
        quarters = list(scene.quarters)
        index = rng.randrange(4)
        quarters[index] = quarters[max(0, index - 1)]
        scene = replace(scene, quarters=tuple(quarters))
    return replace(scene, act=act_of(scene.quarters) or "lingers")


def broken(text: str, observation: str, label: str, rng: random.Random) -> str:
    """A think-answer trace whose form does not hold."""
    return rng.choice(
        (text.replace("</think>", ""), text.replace("<answer>", ""), text[: len(text) // 2], f"{observation} {label}")
    )
