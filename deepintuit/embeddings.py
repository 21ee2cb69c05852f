"""Embeddings: a vector a clip, computed once by each that looks at clips, and where the clips then lie to each other.

    space = Space(workbench, about)                    # `deepintuit embed` writes it
    with space.writing():                              # and afterwards arranges
        space.add(ids, vectors_N_D)
    places = places_of(workbench, [clip_id])           # what pages and notebooks read
    ids, similarities = places.nearest(clip_id)

A space is the folder `embeddings/<hash of about>`: `about.json` (what looked, with the hash of its weights, at which
frames), parts with the vectors of clips by content hash, and `places.parquet`, which is made of them. All of it may be
deleted: another `deepintuit embed` makes it again.

Similarity is the cosine between vectors whose entries are standardised over the clips of the space, on at most `KEPT`
principal components. The map is t-SNE over these; of more than `MAPPED` clips some [R] are mapped, and each other one
lies among its nearest five of them. Never imports torch.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deepintuit import disk, parquet, texts
from deepintuit.errors import StoreError

KEPT = 128
MAPPED = 2_000
NEIGHBOURS = 5
_WAIT = 60.0
"""Seconds to wait for others that begin to write, or end."""
_FOLDER, _PLACES = "embeddings", "places.parquet"


class Space:
    """The embeddings of all clips of a workbench by one that looks; `about` says which, and is what it is known by."""

    def __init__(self, workbench: Path, about: Mapping[str, Any]):
        self.about = dict(about)
        key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(workbench) / _FOLDER / key

    @contextmanager
    def writing(self, shard: tuple[int, int] | None = None) -> Iterator[None]:
        """Makes the folder, and arranges what is in it afterwards: of several shards the one that ends last. StoreError
        while a process writes to it that is no other shard of the same count."""
        with disk.naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = disk.once_finished(lambda: self._take(shard))
        try:
            disk.write_json(self.folder / "about.json", self.about)
            yield
            try:
                lock = self._take(instead_of=lock)
            except StoreError:  # another shard is at work
                return
            self.arrange()
        finally:
            lock.release()

    def _take(self, shard: tuple[int, int] | None = None, instead_of: disk.Lock | None = None) -> disk.Lock:
        with disk.Lock(self.folder / ".lock", wait=_WAIT):
            if instead_of:
                instead_of.release()
            return disk.take(self.folder, shard, last=bool(instead_of))

    def parts(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Clip ids and their vectors (N, D), part by part."""
        for table in self._tables("clip_id", "vector"):
            yield table["clip_id"].to_pylist(), _matrix(table["vector"])

    def ids(self) -> set[str]:
        return {clip_id for table in self._tables("clip_id") for clip_id in table["clip_id"].to_pylist()}

    def _tables(self, *columns: str) -> Iterator[pa.Table]:
        """Part by part; a damaged one is removed, for its clips to be embedded again."""
        for path in sorted(self.folder.glob("[0-9]*.parquet")):
            try:
                yield parquet.read(path, columns).select(columns)
            except (ValueError, OSError, KeyError) as error:
                warnings.warn(f"{path.name} of {self.folder.name} is removed: {error}", stacklevel=2)
                path.unlink(missing_ok=True)

    def vectors(self, clip_ids: Sequence[str]) -> np.ndarray:
        """(N, D) of clips that are in it, in their order."""
        members, vector_of = set(clip_ids), {}
        for ids, vectors in self.parts():
            vector_of |= {clip_id: vector for clip_id, vector in zip(ids, vectors) if clip_id in members}
        return np.stack([vector_of[clip_id] for clip_id in clip_ids])

    def add(self, clip_ids: Sequence[str], vectors_N_D: np.ndarray) -> None:
        """They are on disk when this returns."""
        table = pa.table({"clip_id": list(clip_ids), "vector": _lists(np.asarray(vectors_N_D, np.float32))})
        disk.publish(lambda path: parquet.write(table, path), self.folder, lambda n: f"{n:05d}.parquet", 0)

    @property
    def arranged(self) -> bool:
        """Whether it is written where all clips lie that are in it."""
        return sorted(self.ids()) == getattr(_read(self.folder), "ids_N", [])

    def arrange(self) -> None:
        """Write where the clips lie. The same clips give the same places, in whatever order they came."""
        from sklearn.decomposition import PCA
        from sklearn.neighbors import KNeighborsRegressor

        ids = sorted(self.ids())
        if not ids or self.arranged:
            return
        sample = np.sort(np.random.default_rng(0).permutation(len(ids))[:MAPPED])
        sample_N_D = self.vectors([ids[at] for at in sample])
        mean, scale = sample_N_D.mean(0), sample_N_D.std(0)
        scale[scale < 1e-6 * max(scale.max(), 1e-6)] = 1.0
        with np.errstate(invalid="ignore"):  # a single clip varies in nothing
            components = PCA(min(KEPT, *sample_N_D.shape), random_state=0).fit((sample_N_D - mean) / scale)
        reduced_of: dict[str, np.ndarray] = {}
        for part, vectors in self.parts():
            reduced_of |= zip(part, components.transform((vectors - mean) / scale).astype(np.float32))
        reduced_N_D = np.stack([reduced_of[clip_id] for clip_id in ids])
        map_N_2 = _mapped(reduced_N_D[sample])
        if len(ids) > len(sample):
            among = KNeighborsRegressor(NEIGHBOURS, weights="distance").fit(reduced_N_D[sample], map_N_2)
            map_N_2 = among.predict(reduced_N_D)
        columns = {"clip_id": ids, "vector": _lists(reduced_N_D.astype(np.float16)), "map": _lists(map_N_2)}
        facts = {
            "mapped": len(sample),
            "variance": float(np.nan_to_num(components.explained_variance_ratio_, nan=1.0).sum()),
        }
        table = pa.table(columns).replace_schema_metadata({"about": json.dumps({**self.about, **facts})})
        with disk.replacing(self.folder / _PLACES) as temporary:
            parquet.write(table, temporary)


def _mapped(reduced_N_D: np.ndarray) -> np.ndarray:
    """(N, 2), centred, of one size whatever the number of clips."""
    from sklearn.manifold import TSNE

    count, size = reduced_N_D.shape
    if count <= NEIGHBOURS or size < 2:  # too few for neighbours: the first components
        flat = np.zeros((count, 2), np.float32)
        flat[:, : min(size, 2)] = reduced_N_D[:, :2]
    else:
        flat = TSNE(perplexity=min(30, (count - 1) / 3), init="pca", random_state=0).fit_transform(reduced_N_D)
    flat = flat - flat.mean(0)
    return (flat / max(np.abs(flat).max(), 1e-6)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Places:
    """`ids_N` in their order; `vectors_N_D` as they are compared; `map_N_2` within -1 and 1. `about`: what looked, how
    many clips t-SNE placed (`mapped`), and the share of the variance that is compared (`variance`)."""

    ids_N: list[str]
    vectors_N_D: np.ndarray
    map_N_2: np.ndarray
    about: dict[str, Any]

    @cached_property
    def place_of(self) -> dict[str, int]:
        return {clip_id: at for at, clip_id in enumerate(self.ids_N)}

    def nearest(self, clip_id: str) -> tuple[list[str], np.ndarray]:
        """All others, the most similar first, with their cosines; KeyError for a clip that is not there."""
        at = self.place_of[clip_id]
        cosines_N = self.vectors_N_D @ self.vectors_N_D[at]
        order = np.argsort(-cosines_N, kind="stable")
        order = order[order != at]
        return [self.ids_N[k] for k in order], cosines_N[order]


def places_of(workbench: str | Path, clip_ids: Sequence[str]) -> Places | None:
    """The space that holds most of these clips, of several the newest; None where none holds one."""
    folders = sorted((Path(workbench) / _FOLDER).glob("*/"), key=_changed, reverse=True)
    candidates = [
        (sum(clip_id in places.place_of for clip_id in clip_ids), places) for places in map(_read, folders) if places
    ]
    most, places = max(candidates, key=lambda pair: pair[0], default=(0, None))
    return places if most else None


def _changed(folder: Path) -> int:
    try:
        return (folder / _PLACES).stat().st_mtime_ns
    except OSError:
        return 0


def _read(folder: Path) -> Places | None:
    changed = _changed(folder)
    return _loaded(folder / _PLACES, changed) if changed else None


@lru_cache(maxsize=4)
def _loaded(path: Path, _changed: int) -> Places | None:
    try:
        table = parquet.read(path)
        vectors = _matrix(table["vector"]).astype(np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        about = texts.parse_json(table.schema.metadata[b"about"].decode())
        return Places(table["clip_id"].to_pylist(), vectors, _matrix(table["map"]), about)
    except (ValueError, OSError, KeyError, TypeError) as error:
        warnings.warn(f"{path.parent.name}/{path.name} is passed over: {error}", stacklevel=2)
        return None


def _lists(matrix_N_D: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(matrix_N_D).ravel(), matrix_N_D.shape[1])


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    lists = column.combine_chunks()
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), lists.type.list_size)
