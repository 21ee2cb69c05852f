"""Embed: a vector of every usable clip of a dataset, labelled or not, by the frozen visual tower or a video classifier.

What is embedded already, in whichever dataset, is not embedded again. The dashboard shows the nearest clips beside a
clip, and the map, of what is stored (`deepintuit.embeddings`).

Run it:  deepintuit embed kitchen
"""

from __future__ import annotations

from pathlib import Path

from deepintuit.baselines.classifier import VideoClassifier
from deepintuit.config import Config
from deepintuit.embeddings import Space
from deepintuit.errors import VideoError
from deepintuit.ranks import Shard
from deepintuit.reasoner import Task
from deepintuit.reasoner.embedding import Tower, embedded
from deepintuit.runs import Workbench
from deepintuit.stage import refuse_none
from deepintuit.vlm import VLM


def run(
    workbench: Workbench,
    config: Config,
    *,
    encoder: str | None = None,
    progress: bool = True,
    shard: Shard | None = None,
) -> tuple[Space, dict[str, VideoError]]:
    """The space in which the clips of `clips.dataset` now are, and the clips that cannot be read, by id. `encoder`: a
    folder or hub id of a video classifier, or a run that trained one, in place of the tower of `model.path`. A `shard`
    embeds its part of the clips, and the one that ends last arranges all."""
    task = Task(workbench.path, config)
    clips = task.unlabelled(task.manifest.usable()["clip_id"])
    if encoder:
        folder = workbench.path / "runs" / encoder / "checkpoint"
        path = str(folder) if Path(encoder).name == encoder and folder.is_dir() else encoder
        viewer = VideoClassifier.load(path, None, config.model.device, config.video, workbench.cache)
    else:
        viewer = Tower(VLM.load(config.model, config.video, cache=workbench.cache), config.model.path)
    space, unreadable = embedded(workbench.path, viewer, clips, progress, shard)
    if not shard:
        refuse_none([clip for clip in clips if clip.clip_id not in unreadable])
    return space, unreadable
