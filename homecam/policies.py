"""The policies of the household: an ordered list in plain words. The first that applies to a scene gives its label.

    decided(facts).words            "an outsider takes a box"
    odds(facts)                     {"theft": 1.0}

A policy of kind `exception` comes before the one that it excepts from; one of kind `idle box` hangs on a box that
merely stands by; one of kind `opinion` has odds instead of one label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from deepintuit.labels import LabelSet
from deepintuit_homecam.scene import INDOORS, Scene, touched

OUTSIDERS = frozenset({"courier", "stranger"})


@dataclass(frozen=True)
class Facts(Scene):
    """A scene of this world. `view`: `clear`, or `poor` where it is hard to see."""

    view: str

    @property
    def label(self) -> str:
        """The likeliest label."""
        return max(odds(self), key=lambda label: odds(self)[label])

    @property
    def outsider(self) -> bool:
        return self.who in OUTSIDERS

    @property
    def open_house(self) -> bool:
        """Where and when outsiders may come: outdoors by day."""
        return self.light == "day" and self.place not in INDOORS

    @property
    def idle_box(self) -> bool:
        """A box merely stands by: nobody touches it."""
        return not touched(self) and self.quarters[0][1] == "floor"

    def is_at(self, light: str, place: str, actor: str, act: str) -> bool:
        return (self.light, self.place, self.who, self.act) == (light, place, actor, act)


@dataclass(frozen=True)
class Policy:
    """`odds`: label → share of such clips that carry it."""

    name: str
    words: str
    odds: Mapping[str, float]
    applies: Callable[[Facts], bool]
    kind: str = "plain"


def _policy(name: str, label: str, words: str, applies: Callable[[Facts], bool], kind: str = "plain") -> Policy:
    return Policy(name, words, {label: 1.0}, applies, kind)


POLICIES = (
    _policy("animal", "animal", "a dog, whatever it does", lambda f: f.who == "dog"),
    _policy("play", "routine", "a child who lies down in the yard by day: it is at play",
            lambda f: f.is_at("day", "yard", "child", "falls"), "exception"),
    _policy("help", "emergency", "someone goes down and stays down", lambda f: f.act == "falls"),
    _policy("pickup", "routine", "a courier takes a box from the porch by day: it is collected",
            lambda f: f.is_at("day", "porch", "courier", "takes"), "exception"),
    _policy("property", "theft", "a courier or stranger takes a box", lambda f: f.outsider and f.act == "takes"),
    _policy("late round", "delivery", "a courier leaves a box on the porch at night",
            lambda f: f.is_at("night", "porch", "courier", "brings"), "exception"),
    _policy("closed", "intrusion", "a courier or stranger is indoors, or outdoors at night",
            lambda f: f.outsider and not f.open_house),
    _policy("left", "delivery", "someone leaves a box", lambda f: f.act == "brings"),
    _policy("unwatched", "intrusion", "a stranger is about where a box stands",
            lambda f: f.who == "stranger" and f.idle_box, "idle box"),
    _policy("just left", "delivery", "a courier is about where a box stands: it was just left",
            lambda f: f.who == "courier" and f.idle_box, "idle box"),
    Policy("opinion", "one of the family goes down and gets up again: 7 of 10 people call it routine, 3 an emergency",
           {"routine": 0.7, "emergency": 0.3}, lambda f: not f.outsider and f.act == "trips", "opinion"),
    _policy("rest", "routine", "anything else", lambda f: True),
)  # fmt: skip

_NAMES = ("routine", "animal", "delivery", "theft", "intrusion", "emergency")


def _definition(label: str) -> str:
    """The label's policies, each with its place among those of all labels: without it nobody could tell an exception
    from what it excepts."""
    own = (f"({n}) {policy.words}" for n, policy in enumerate(POLICIES, 1) if label == next(iter(policy.odds)))
    return f"{'; '.join(own)}. The first numbered policy that applies, of whichever label, decides"


LABELS = LabelSet(
    name="household",
    labels=_NAMES,
    definitions={name: _definition(name) for name in _NAMES},
    aliases={"package theft": "theft", "trespass": "intrusion", "pet": "animal", "normal": "routine"},
)


def decided(facts: Facts, *, without: tuple[str, ...] = ()) -> Policy:
    """The policy that decides, of those whose kind is not left out."""
    return next(policy for policy in POLICIES if policy.kind not in without and policy.applies(facts))


def odds(facts: Facts) -> Mapping[str, float]:
    """Label → probability, as the policies have it: what a perfect observer can know."""
    return decided(facts).odds


def with_idle_box(facts: Facts, there: bool) -> Facts:
    """The same with or without a box that stands by; unchanged where somebody touches one."""
    if touched(facts):
        return facts
    return replace(facts, quarters=tuple((posture, "floor" if there else "none") for posture, _ in facts.quarters))
