"""The manifest shelf: which clips a dataset holds and who may see them.

    manifest = assign_splits(Manifest.load("workbench", "kitchen"), seed=0)
    manifest.save()

Clips get into a manifest by another package, `deepintuit_clips`. Needs numpy, pandas and pyarrow only; never torch. A
name is imported when it is first asked for, so that its columns (`schema`) are there without pandas. See docs/data.md.
"""

from importlib import import_module
from typing import Any

_FROM = {
    "manifest": ("SPLITS", "LeakWarning", "Manifest", "Summary", "container_features", "text_corpus"),
    "splits": ("FRACTIONS", "assign_splits"),
}
_HOME = {name: module for module, names in _FROM.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
