"""The label set: which classes there are, what they mean, and which other words mean the same.

There is no fuzzy matching. An answer that is nearly a label is not that label; a wording that should count goes under
[aliases], where everybody can see it.
Run it:  python -c "from deepintuit.labels import LabelSet; print(LabelSet.of('home', ['normal', 'abnormal']).dumps())"
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from deepintuit import texts
from deepintuit.errors import LabelError, nearest

NONE_LABEL = "none"
"""The provisional label of a trace without a readable answer. No class may have this name."""

_QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb"
_FINAL = ".,;:!?\u3002"
_TAG_CHARACTERS = "<>{}"
_LONGEST = 500
"""Characters of a label or alias."""


def normalise(text: str) -> str:
    """Fold what carries no meaning in a label: case, runs of white space, outer quotes, final punctuation, and how an
    accent is encoded (Unicode NFC, as the tokenizers of Qwen write).

    Idempotent: `normalise(normalise(t)) == normalise(t)` for every string. Takes time in proportion to its length.
    """
    while True:
        folded = " ".join(text.split())
        # Nothing so long is a label, and to sort its accents takes time with the square of their number.
        if len(folded) <= _LONGEST:
            folded = " ".join(unicodedata.normalize("NFC", folded).split())
        folded = folded.lstrip(_QUOTES + " ").rstrip(_QUOTES + _FINAL + " ").casefold()
        # Rare letters fold into several characters, which may fold again or end in a mark: go on until nothing moves.
        if folded == text:
            return folded
        text = folded


def spellings(names: Iterable[str]) -> list[str]:
    """The names as a text may hold them, accents composed or apart, longer ones first."""
    forms = {form for name in names for form in (name, *(unicodedata.normalize(f, name) for f in ("NFC", "NFD")))}
    return sorted(forms, key=len, reverse=True)


@dataclass(frozen=True)
class LabelSet:
    """The K classes of a task, in a fixed order. Raises `LabelError` when they cannot be told apart."""

    name: str
    labels: tuple[str, ...]
    definitions: Mapping[str, str] = field(default_factory=dict, hash=False)
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    _by_normal: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "definitions", dict(self.definitions))
        object.__setattr__(self, "aliases", dict(self.aliases))
        object.__setattr__(self, "_by_normal", self._checked())

    def _checked(self) -> dict[str, str]:
        by_normal: dict[str, str] = {}
        for label in self.labels:
            key = self._key(label, "label")
            if key == NONE_LABEL:
                raise LabelError(
                    f"label {label!r} of {self.name!r} is the word kept for traces without an answer",
                    "an answer 'none' and no answer at all could not be told apart",
                    "Give the class another name, for example 'nothing'",
                )
            if key in by_normal:
                raise LabelError(
                    f"labels {by_normal[key]!r} and {label!r} of {self.name!r} are the same word",
                    "case, spaces, quotes, final punctuation and the encoding of accents are folded before comparing",
                    "Rename one, or keep one and map the other under [aliases]",
                )
            by_normal[key] = label
        if len(by_normal) < 2:
            raise LabelError(
                f"label set {self.name!r} has {len(by_normal)} label(s): {list(self.labels)}",
                "there is nothing to decide between fewer than two classes",
                "List at least two labels",
            )
        for kind, target in (("definition", self.definitions), ("alias", self.aliases.values())):
            for label in target:
                if label not in self.labels:
                    raise self._unknown(label, kind)
        for alias, label in self.aliases.items():
            existing = by_normal.setdefault(self._key(alias, "alias"), label)
            if existing != label:
                raise LabelError(
                    f"alias {alias!r} of {self.name!r} stands for {label!r} and already means {existing!r}",
                    "one answer cannot mean two classes",
                    "Remove one of the two",
                )
        return by_normal

    def _key(self, word: str, kind: str) -> str:
        key = normalise(word) if isinstance(word, str) else ""
        fits = isinstance(word, str) and texts.fits(word, _LONGEST)
        if not key or not fits or any(character in word for character in _TAG_CHARACTERS):
            raise LabelError(
                f"{kind} {word!r:.80} of {self.name!r} cannot be written as an answer",
                f"nothing is left of it after normalising, or it holds one of {' '.join(_TAG_CHARACTERS)} of the tags, "
                f"half a character, or more than {_LONGEST} characters",
                f"Write the {kind} in plain words",
            )
        return key

    def _unknown(self, label: str, subject: str) -> LabelError:
        near = nearest(str(label), self.labels)
        return LabelError(
            f"{subject} {label!r} is not one of the {len(self.labels)} labels of {self.name!r}",
            f"only these are known: {', '.join(self.labels)}",
            (f"Nearest: {near!r}. " if near else "") + "Add it to labels.toml, or map it under [aliases]",
        )

    @classmethod
    def of(cls, name: str, labels: Iterable[str]) -> LabelSet:
        """A label set of bare names, without definitions or aliases."""
        return cls(name, (labels,) if isinstance(labels, str) else tuple(labels))

    @classmethod
    def load(cls, path: str | Path) -> LabelSet:
        """Read a labels.toml: `name`, `labels`, and optional tables `[definitions]` and `[aliases]`."""
        path = Path(path)
        try:
            contents = texts.parse_toml(texts.read(path))
        except (OSError, ValueError) as error:
            raise LabelError(
                f"label file {str(path)!r} could not be read",
                str(error),
                'Point to a TOML file with name = "…" and labels = ["…", "…"]',
            ) from error
        types = {"name": str, "labels": list, "definitions": dict, "aliases": dict}
        for key, value in contents.items():
            if key not in types or not isinstance(value, types[key]):
                raise LabelError(
                    f"{key} = {value!r} in {str(path)!r} is not understood",
                    "a label file holds name (text), labels (list), [definitions] and [aliases] (tables of text)",
                    f"Nearest: {nearest(key, types)!r}" if nearest(key, types) else "Remove it",
                )
        for table in ("definitions", "aliases"):
            for key, value in contents.get(table, {}).items():
                if not isinstance(value, str):
                    raise LabelError(
                        f"[{table}] {key} = {value!r} in {str(path)!r} is not a text",
                        f"{table} are tables of text",
                        "Put the value between quotes",
                    )
        return cls(
            contents.get("name", path.stem),
            tuple(contents.get("labels", ())),
            contents.get("definitions", {}),
            contents.get("aliases", {}),
        )

    def dumps(self) -> str:
        """The label set as TOML; `load` of it gives the same set back."""
        content = {"name": self.name, "labels": list(self.labels)}
        tables = {"definitions": dict(self.definitions), "aliases": dict(self.aliases)}
        return tomli_w.dumps(content | {name: table for name, table in tables.items() if table})

    def resolve(self, text: str) -> str | None:
        """The label that `text` names, itself or by an alias, exactly after normalising; None when it names none."""
        return self._by_normal.get(normalise(text))

    def index(self, label: str) -> int:
        """Position of a label (or of what an alias stands for) in 0 … K−1. Raises `LabelError` when unknown."""
        canonical = self.resolve(label)
        if canonical is None:
            raise self._unknown(label, "answer")
        return self.labels.index(canonical)

    def canonical(self, label: str) -> str:
        """A label as the set spells it, also by an alias. Raises `LabelError` when unknown."""
        return self.labels[self.index(label)]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)
