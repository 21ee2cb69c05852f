"""The manifest shelf: which clips a dataset holds and who may see them.

    manifest = assign_splits(Manifest.load("workbench", "kitchen"), seed=0)
    manifest.save()

Clips get into a manifest by another package, `deepintuit_clips`. Needs numpy, pandas and pyarrow only; never torch.
See docs/data.md.
"""

from deepintuit.data.manifest import SPLITS, LeakWarning, Manifest, Summary, container_features, text_corpus
from deepintuit.data.splits import FRACTIONS, assign_splits

__all__ = [
    "FRACTIONS",
    "SPLITS",
    "LeakWarning",
    "Manifest",
    "Summary",
    "assign_splits",
    "container_features",
    "text_corpus",
]
