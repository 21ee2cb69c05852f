"""What can happen before a home's camera, whatever a world makes of it: who, where, in which light, in which order.

A clip has four quarters. In each, one actor is absent, up or down, and a box is absent, on the floor or held. A world
(`world`, `household`) adds the rule that turns a scene into a label; the look (rooms, clothes, camera) is drawn apart,
in `draw`.

The parts of a world share no home and no actor: `base` (captions for the embedded backbone), `train` and `test`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["base", "train", "test"]

LIGHTS = ("day", "night")
PLACES = ("porch", "yard", "garage", "kitchen")
INDOORS = frozenset({"garage", "kitchen"})
ACTORS = ("resident", "courier", "stranger", "child", "dog")
ACTS = ("brings", "takes", "passes", "lingers", "falls", "trips")

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
class Scene:
    """What happens in a clip. `quarters` are the four (posture, box) states in order."""

    light: str
    place: str
    who: str
    act: str
    quarters: tuple[Quarter, Quarter, Quarter, Quarter]


def scripts(act: str) -> list[tuple[Quarter, ...]]:
    """Every order of states that shows this act (with and without a box standing by, where the act does not touch
    one)."""
    orders = []
    for script in _SCRIPTS[act]:
        for standing_by in "-f" if "x" in script else " ":
            states = script.replace("x", standing_by).split()
            orders.append(tuple((_POSTURE[s[0]], _BOX[s[1]]) for s in states))
    return orders


def act_of(quarters: tuple[Quarter, ...]) -> str | None:
    """The act that these states show, or None if no script has them in this order."""
    return _ACT_BY_STATES.get(tuple(quarters))


_ACT_BY_STATES = {states: act for act in ACTS for states in scripts(act)}


def touched(scene: Scene) -> bool:
    """Whether somebody holds the box at any time."""
    return any(box == "held" for _, box in scene.quarters)
