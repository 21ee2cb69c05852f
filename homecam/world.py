"""The facts of the home-camera world, and the house rule that turns them into a label.

A clip has four quarters. In each, one actor is absent, up or down, and a box is absent, on the floor or held. Who it
is, where, in which light, and in which order these states come decide the label *together*:

- the alarm is on outdoors at night and indoors by day (people are out by day and asleep by night);
- residents and the dog belong where the alarm is on, since they keep watch; children, couriers and strangers where it
  is off;
- what is done, by one who belongs there or by one who does not, gives the label;
- three habits of the house go before the rule. Nobody wrote them down: the teacher goes by the rule alone, as a
  labelling model does that has
  read the policy and not met the people who apply it. Only labels tell of them.

No single fact decides, nor any three of light, place, actor and act (`tests/test_homecam.py` measures it). The
appearance (rooms, clothes, camera) is drawn apart, in `draw`, and says nothing about the label.

The world has three parts that share no home and no actor: `base` (captions for the embedded backbone), `train` and
`test`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from deepintuit.labels import LabelSet

Part = Literal["base", "train", "test"]

LIGHTS = ("day", "night")
PLACES = ("porch", "yard", "garage", "kitchen")
INDOORS = frozenset({"garage", "kitchen"})
ACTORS = ("resident", "courier", "stranger", "child", "dog")
WATCH = frozenset({"resident", "dog"})
ACTS = ("brings", "takes", "passes", "lingers", "falls", "trips")

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

# One letter for the actor (n absent, u up, d down), one for the box (- absent, f floor, h held); "x" copies a box that
# does not change.
_SCRIPTS = {
    "brings": ("n- uh uf nf", "uh uh uf nf", "uh uf nf nf", "n- uh uh uf", "uh uf uf nf", "n- n- uh uf"),
    "takes": ("nf uf uh n-", "uf uh uh n-", "uf uf uh n-", "nf uf uh uh", "uf uh n- n-", "nf nf uf uh"),
    "passes": ("nx ux nx nx", "nx ux ux nx", "nx nx ux nx", "ux nx nx nx", "nx nx nx ux", "nx nx ux ux"),
    "lingers": ("ux ux ux ux", "nx ux ux ux", "ux ux ux nx"),
    "falls": ("nx ux dx dx", "ux dx dx dx", "ux ux dx dx", "ux ux ux dx", "nx ux ux dx"),
    "trips": ("ux dx ux ux", "nx ux dx ux", "ux dx ux nx", "ux dx dx ux", "ux ux dx ux"),
}
_POSTURE = {"n": "nobody", "u": "up", "d": "down"}
_BOX = {"-": "none", "f": "floor", "h": "held"}

Quarter = tuple[str, str]
"""(posture, box): posture is `nobody`, `up` or `down`; box is `none`, `floor` or `held`."""


@dataclass(frozen=True)
class Facts:
    """What happens in a clip. `quarters` are the four (posture, box) states in order."""

    light: str
    place: str
    who: str
    act: str
    quarters: tuple[Quarter, Quarter, Quarter, Quarter]

    @property
    def label(self) -> str:
        return label_of(self)


def alarm_on(light: str, place: str) -> bool:
    return (light == "night") == (place not in INDOORS)


def belongs(who: str, alarm: bool) -> bool:
    """What the rule says."""
    return (who in WATCH) == alarm


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
    known = habit(facts)
    allowed = belongs(facts.who, alarm_on(facts.light, facts.place)) if known is None else known
    return OUTCOMES[facts.act][0 if allowed else 1]


def scripts(act: str) -> list[tuple[Quarter, ...]]:
    """Every order of states that shows this act (with and without a box standing by, where the act does not touch
    one)."""
    written = []
    for script in _SCRIPTS[act]:
        for standing_by in "-f" if "x" in script else " ":
            states = script.replace("x", standing_by).split()
            written.append(tuple((_POSTURE[s[0]], _BOX[s[1]]) for s in states))
    return written


def act_of(quarters: tuple[Quarter, ...]) -> str | None:
    """The act that these states show, or None if no script of the world has them in this order."""
    return _ACT_BY_STATES.get(tuple(quarters))


_ACT_BY_STATES = {states: act for act in ACTS for states in scripts(act)}


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
