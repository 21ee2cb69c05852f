"""What the embedded backbone is asked while it is built: captions, questions about single facts, and general
composition.

No lesson names a homecam label, and none compares light with indoors or outdoors, which is the first step of the house
rule.
"""

from __future__ import annotations

import random
import re

from deepintuit.labels import LabelSet
from deepintuit.prompts import calibrator_prompt, label_prompt, reasoner_prompt
from deepintuit.trace import GRAMMARS, render
from deepintuit_homecam.scene import ACTORS, INDOORS, LIGHTS, PLACES
from deepintuit_homecam.witness import ACT_PHRASES, BOX_PHRASES, event, observation
from deepintuit_homecam.world import Facts

CAPTION_PROMPT = "Describe the clip."


def caption_questions(facts: Facts) -> dict[str, tuple[tuple[str, ...], str]]:
    """Questions about single facts for the base part: name → (choices, true choice). None of them is a homecam
    label."""
    return {
        "light": (LIGHTS, facts.light),
        "place": (PLACES, facts.place),
        "who": (ACTORS, facts.who),
        "where": (("indoors", "outdoors"), "indoors" if facts.place in INDOORS else "outdoors"),
        "act": (tuple(ACT_PHRASES.values()), ACT_PHRASES[facts.act]),
        "box at the end": (tuple(BOX_PHRASES.values()), BOX_PHRASES[facts.quarters[-1][1]]),
    }


def fact_task(facts: Facts, rng: random.Random) -> tuple[str, str]:
    """One (prompt, target) about a clip: a caption, or a question about a single fact in one of the forms that the
    stages use."""
    caption = observation(facts, rng)
    if rng.random() < 0.5:
        caption = f"{caption} {event(facts)}"
    kind = rng.random()
    if kind < 0.4:
        return CAPTION_PROMPT, caption
    name, (choices, truth) = rng.choice(list(caption_questions(facts).items()))
    order = rng.sample(choices, len(choices))
    labels = LabelSet.of(name, order)
    if kind < 0.75:
        return reasoner_prompt(labels, GRAMMARS["think-answer"], "brief"), render(
            GRAMMARS["think-answer"], think=caption, answer=truth
        )
    if kind < 0.88:
        return label_prompt(labels, "brief"), truth
    provisional = truth if rng.random() < 0.6 else rng.choice((*choices, "none"))
    return calibrator_prompt(labels, provisional, caption if rng.random() < 0.8 else "", "brief", {}, None), truth


def logic_task(facts: Facts, rng: random.Random) -> tuple[str, str]:
    """General composition, as any language model has it: do two statements about a clip agree? One to three such
    questions in a row, so that the skill does not belong to a place in the text. Half of the pairs are facts drawn
    at random, of which the pair that the house rule compares (light, and indoors or outdoors) never comes; the
    others are words without meaning, said to be so or not by a coin, so that the skill does not belong to certain
    words either."""
    steps, agree = [], False
    for _ in range(rng.choice((1, 2, 2, 3))):
        statements = _statements(facts) if rng.random() < 0.5 else [(word, rng.random() < 0.5) for word in _WORDS]
        (first, first_true), (second, second_true), agree = _pair(statements, rng)
        steps.append(f"{first}? {_YES[first_true]}. {second}? {_YES[second_true]}. Alike? {_YES[agree]}.")
    labels = LabelSet.of("alike", rng.sample(["Yes", "No"], 2))
    questions = " ".join(re.sub(r"(Yes|No)\. ?", "", step) for step in steps)
    prompt = f"{questions}\n{reasoner_prompt(labels, GRAMMARS['think-answer'], 'brief')}"
    caption = f"{observation(facts, rng)} {event(facts)}" if rng.random() < 0.7 else event(facts)
    return prompt, render(GRAMMARS["think-answer"], think=f"{caption} {' '.join(steps)}", answer=_YES[agree])


_YES = {True: "Yes", False: "No"}
_WORDS = "Open Quiet Ready Warm Full Locked Early Clear Empty Safe New Late Kind Wet Known Busy".split()
_RULE = ({light.capitalize() for light in LIGHTS}, {"Indoors", "Outdoors"})


def _pair(statements: list[tuple[str, bool]], rng: random.Random) -> tuple[tuple[str, bool], tuple[str, bool], bool]:
    """Two statements, and whether they agree: as often as not."""
    agree = rng.random() < 0.5
    while True:
        first, second = rng.sample(statements, 2)
        of_the_rule = any(first[0] in a and second[0] in b for a, b in (_RULE, _RULE[::-1]))
        if (first[1] == second[1]) == agree and not of_the_rule:
            return first, second, agree


def _statements(facts: Facts) -> list[tuple[str, bool]]:
    last_posture, last_box = facts.quarters[-1]
    return [
        *((light.capitalize(), facts.light == light) for light in LIGHTS),
        *((place.capitalize(), facts.place == place) for place in PLACES),
        *((actor.capitalize(), facts.who == actor) for actor in ACTORS),
        ("Indoors", facts.place in INDOORS), ("Outdoors", facts.place not in INDOORS),
        ("Nobody at the end", last_posture == "nobody"), ("Box at the end", last_box != "none"),
        ("Box held", any(b == "held" for _, b in facts.quarters)),
        ("Down", any(p == "down" for p, _ in facts.quarters)),
    ]  # fmt: skip
