"""Clips to embeddings: who looks, and the clips that are not in its space yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.progress import track

from deepintuit.embeddings import Space
from deepintuit.errors import ModelError, VideoError
from deepintuit.ranks import Shard, share
from deepintuit.reasoner.distance import features
from deepintuit.reasoner.local import places_of
from deepintuit.reasoner.task import Clip
from deepintuit.vlm import VLM
from deepintuit.vlm.clips import Place

_PART = 256
"""Clips of a part: what a kill takes at most."""


class Viewer(Protocol):
    """Who looks at clips. `about` says who, with the hash of its weights, and at which frames."""

    about: dict[str, Any]

    def vectors(self, places: Sequence[Place]) -> Iterator[np.ndarray | VideoError]:
        """A vector (D,) of each clip, in order, or why it cannot be read."""


class Tower:
    """The frozen visual tower: mean and standard deviation over a clip's patches (`distance.features`)."""

    def __init__(self, vlm: VLM, path: str):
        self.vlm = vlm
        name = Path(path).name if Path(path).is_dir() else path
        self.about = {"name": f"visual tower of {name}", "recipe": list(vlm.encoder.recipe)}

    def vectors(self, places: Sequence[Place]) -> Iterator[np.ndarray | VideoError]:
        with closing(self.vlm.encoder.encode_all(places)) as encoded:
            for clip in encoded:
                yield clip if isinstance(clip, VideoError) else features(clip)


def embedded(
    workbench: Path, viewer: Viewer, clips: Sequence[Clip], progress: bool = True, shard: Shard | None = None
) -> tuple[Space, dict[str, VideoError]]:
    """The viewer's space with these clips in it, and those that cannot be read, by id. A killed call goes on where it
    was. Of one `shard` its part of them. ModelError where a vector is no number."""
    space, unreadable = Space(workbench, viewer.about), {}
    with space.writing(shard):
        ids = space.ids()
        missing = [clip for clip in (share(clips, shard) if shard else clips) if clip.clip_id not in ids]
        bar = iter(track(missing, "Embeddings", disable=not progress or not missing))
        vectors = zip(bar, viewer.vectors(places_of(missing)), strict=True)
        while part := list(islice(vectors, _PART)):
            unreadable |= {clip.clip_id: look for clip, look in part if isinstance(look, VideoError)}
            readable = {clip.clip_id: look for clip, look in part if clip.clip_id not in unreadable}
            for clip_id, vector in readable.items():
                if not np.isfinite(vector).all():
                    raise ModelError(
                        f"the {viewer.about['name']} sees the clip {clip_id!r} as values that are no number",
                        "it would be near to nothing, or to everything",
                        "See whether the checkpoint is whole; with model.dtype=float32 nothing overflows",
                    )
            if readable:
                space.add([*readable], np.stack([*readable.values()]))
    return space, unreadable
