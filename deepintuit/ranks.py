"""One command in several processes ("ranks"), as torchrun or accelerate launch start them: which one this is, what its
share of the work is, and what they tell each other.

    for batch in ranks.share(batches):        # every n-th: no two processes do the same
        run.append("traces", ...)             # each writes parts of its own
    scores = ranks.spread(score, batches)     # the share is computed here, the others' results come in between

A process alone has the whole share, and what it tells comes back at once: a stage is written once for both. All
processes must make the calls that exchange something (`gather`, `merged`, `spread`, `first`) in the same order, so what
decides about such a call must be the same everywhere: ask `first` what is on disk. The exchange itself is `vlm.group`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple, NoReturn, TypeVar

from deepintuit.errors import ConfigError, DeepIntuitError

DIVIDED = ("coldstart", "grpo", "calibrate", "evaluate", "predict")
"""The commands that several processes do together."""

T = TypeVar("T")
_NOTHING = object()
_number, _count = 0, 1
_exchange: Callable[[Any], list[Any]] = lambda value: [value]  # noqa: E731


class Shard(NamedTuple):
    """One of `count` commands, counted from 1, that divide the clips of one run and never meet: any scheduler starts
    them, when and where it likes."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str | None) -> Shard | None:
        """From "2/8"; None from no text. Raises `ConfigError`."""
        if not text:
            return None
        match = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            why = "a shard is its number, counted from 1, and how many there are"
            raise ConfigError(f"--shard {text!r}", why, "Write 1/8 to 8/8 for eight of them")
        if launched() > 1:
            why = "those divide the clips among themselves, and meet; shards never do"
            what = f"--shard {text} in {launched()} processes of a launcher"
            raise ConfigError(what, why, "Start each shard as one process, or leave --shard out")
        return cls(int(match[1]), int(match[2]))

    def refuse(self, why: str) -> NoReturn:
        raise ConfigError(f"--shard {self.number}/{self.count}", why, "Leave --shard out")


def launched() -> int:
    """How many processes a launcher started this command in; 1 once they have met."""
    count = os.environ.get("WORLD_SIZE", "")
    return max(1, int(count)) if count.isdigit() else 1


def meet(number: int, count: int, exchange: Callable[[Any], list[Any]]) -> None:
    """From now on this is process `number` of `count`; `exchange(value)` gives everyone's values in order."""
    global _number, _count, _exchange
    _number, _count, _exchange = number, count, exchange


def number() -> int:
    """Which of the processes this is, counted from 0."""
    return _number if launched() == 1 else int(os.environ.get("RANK", "0") or 0)


def count() -> int:
    """How many processes have met."""
    return _count


def leads() -> bool:
    """Whether this is the process that writes what is written once: run.json, logs, checkpoints, the summary."""
    return number() == 0


def share(items: Sequence[T], shard: Shard | None = None) -> Sequence[T]:
    """This process's items, or those of a shard: every n-th, so that what lies together is spread out."""
    return items[shard.number - 1 :: shard.count] if shard else items[_number::_count]


def gather(value: T) -> list[T]:
    """Everyone's value, in the order of the processes."""
    return _exchange(value)


def merged(own: Sequence[T]) -> list[T]:
    """Of what each process has for the items of its `share`, the list for all items, in their order."""
    rounds = zip_longest(*gather(list(own)), fillvalue=_NOTHING)
    return [item for item in chain.from_iterable(rounds) if item is not _NOTHING]


def spread(work: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
    """`[work(item) for item in items]`, of which this process does its share."""
    return merged([work(item) for item in share(items)])


def first(decide: Callable[[], T]) -> T:
    """What the leading process finds, everywhere; a `DeepIntuitError` that it raises is raised everywhere."""
    value = error = None
    if leads():
        try:
            value = decide()
        except DeepIntuitError as raised:
            error = raised
    value, error = gather((value, error))[0]
    if error is not None:
        raise error
    return value
