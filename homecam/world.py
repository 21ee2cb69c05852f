"""The facts of the home-camera world, and the house rule that turns them into a label.

Who is seen (`scene`), where, in which light, and in which order things happen decide the label *together*:

- the alarm is on outdoors at night and indoors by day (people are out by day and asleep by night);
- residents and the dog belong where the alarm is on, since they keep watch; children, couriers and strangers where it
  is off;
- what is done, by one who belongs there or by one who does not, gives the label;
- three habits of the house go before the rule. Nobody wrote them down: the teacher goes by the rule alone, as a
  labelling model does that has
  read the policy and not met the people who apply it. Only labels tell of them.

No single fact decides, nor any three of light, place, actor and act (`tests/test_homecam.py` measures it). The
appearance (rooms, clothes, camera) is drawn apart, in `draw`, and says nothing about the label.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from deepintuit.labels import LabelSet
from deepintuit_homecam.scene import ACTORS, ACTS, INDOORS, LIGHTS, PLACES, Scene, scripts

WATCH = frozenset({"resident", "dog"})

LABELS = LabelSet(
    name="homecam",
    labels=("routine", "delivery", "theft", "intrusion", "stray", "emergency"),
    definitions={
        "routine": "someone who belongs there passes by, stays around or takes the box",
        "delivery": "someone who belongs there leaves a box",
        "theft": "someone who does not belong there takes the box",
        "intrusion": "someone who does not belong there passes by, or goes down and stays down",
        "stray": "someone who does not belong there stays around, trips or leaves a box",
        "emergency": "someone who belongs there goes down, even if they get up again",
    },
    aliases={"package theft": "theft", "break in": "intrusion", "normal": "routine"},
)

LABEL_WEIGHTS = {"routine": 0.22, "delivery": 0.12, "theft": 0.12, "intrusion": 0.18, "stray": 0.20, "emergency": 0.16}


@dataclass(frozen=True)
class Facts(Scene):
    """A scene of this world."""

    @property
    def label(self) -> str:
        return label_of(self)


def alarm_on(light: str, place: str) -> bool:
    return (light == "night") == (place not in INDOORS)


def belongs(actor: str, alarm: bool) -> bool:
    """What the rule says."""
    return (actor in WATCH) == alarm


def habit(facts: Facts) -> bool | None:
    """Whether the actor belongs there by a habit of the house, whatever the alarm; None where the rule decides."""
    if facts.who == "dog" and facts.act in {"passes", "lingers", "trips"}:
        return True  # the dog may roam
    if facts.who == "courier" and facts.act in {"brings", "takes"}:
        return True  # who handles parcels is expected
    if facts.who == "stranger" and facts.place in INDOORS:
        return False  # no stranger is let in
    return None


OUTCOMES = {
    "brings": ("delivery", "stray"),
    "takes": ("routine", "theft"),
    "passes": ("routine", "intrusion"),
    "lingers": ("routine", "stray"),
    "falls": ("emergency", "intrusion"),
    "trips": ("emergency", "stray"),
}
"""Act → (label if the actor belongs there, label if not)."""


def label_of(facts: Facts) -> str:
    """The true label: `OUTCOMES` of the act, by whether the actor belongs there: by habit, else by the rule."""
    habitual = habit(facts)
    allowed = belongs(facts.who, alarm_on(facts.light, facts.place)) if habitual is None else habitual
    return OUTCOMES[facts.act][0 if allowed else 1]


def sample_facts(rng: random.Random) -> Facts:
    """Facts drawn so that labels have `LABEL_WEIGHTS`; inside a label all combinations of facts are equally likely."""
    label = rng.choices(list(LABEL_WEIGHTS), weights=list(LABEL_WEIGHTS.values()))[0]
    while True:
        facts = any_facts(rng)
        if facts.label == label:
            return facts


def any_facts(rng: random.Random) -> Facts:
    """Facts drawn without regard to labels (the base part uses these, so that captions tell nothing about labels)."""
    act = rng.choice(ACTS)
    return Facts(rng.choice(LIGHTS), rng.choice(PLACES), rng.choice(ACTORS), act, rng.choice(scripts(act)))
