"""Clips that look alike, by the embeddings that `deepintuit embed` stored, and what was answered to them.

    nearest(workbench, clip_id, dataset, ("run", "cold start", "raw"))     # None where the clip has no embedding
    workbench.save_slice("a corner of the map", slice_of(clip_ids))

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deepintuit.embeddings import places_of
from deepintuit.errors import StoreError
from deepintuit_analysis.index.browse import records

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

MOST_CHOSEN = 5_000
"""Clips of a slice that was drawn on the map: their ids stand in its query, which is of bounded length."""
_NEAR = """
    SELECT clip_id, path, split, label, true_label, predicted FROM clips LEFT JOIN (
        SELECT clip_id, any_value(true_label) AS true_label, any_value(predicted) AS predicted FROM predictions
        WHERE run_id = $3 AND system = $4 AND method = $5 AND control = 'none' GROUP BY clip_id) USING (clip_id)
    WHERE dataset = $1 AND excluded IS NULL AND path IS NOT NULL AND clip_id IN (SELECT unnest($2::VARCHAR[]))"""


class Neighbours(NamedTuple):
    """`viewer`: whose embeddings they are. `clips`: the most similar first; `name`, `similarity` (a cosine), `split`,
    `label`, and `predicted` with `right` where the system in question answered them."""

    viewer: str
    clips: list[dict[str, Any]]


def nearest(
    workbench: Workbench, clip_id: str, dataset: str, system: tuple[str, str, str] | None = None, most: int = 8
) -> Neighbours | None:
    """The usable clips of the dataset that are most like this one. `system`: whose answers are told (run, system,
    method). None where no embedding of the clip is stored."""
    places = places_of(workbench.path, [clip_id])
    if places is None:
        return None
    ids, similarities = places.nearest(clip_id)
    cosines, rows = dict(zip(ids, similarities.tolist())), []
    for count in (8 * most, len(ids)):  # other datasets' clips lie among them
        rows = records(workbench.query(_NEAR, [dataset, ids[:count], *(system or ("", "", ""))]))
        if len(rows) >= most:
            break
    for row in rows:
        row["name"], row["similarity"] = Path(row.pop("path")).stem, cosines[row["clip_id"]]
        row["right"] = None if row["predicted"] is None else row["predicted"] == row.pop("true_label")
    return Neighbours(places.about["name"], sorted(rows, key=lambda row: -row["similarity"])[:most])


def slice_of(clip_ids: Sequence[str]) -> str:
    """The query of the traces about these clips, for a saved slice. StoreError for none or too many."""
    if not 0 < len(clip_ids) <= MOST_CHOSEN:
        raise StoreError(
            f"{len(clip_ids):,} clips were chosen",
            f"a slice by their ids holds 1 to {MOST_CHOSEN:,}",
            "Draw around fewer of them" if clip_ids else "Draw around some of the points",
        )
    listed = ",".join("'" + clip_id.replace("'", "''") + "'" for clip_id in sorted(set(clip_ids)))
    return f"SELECT trace_id FROM trace_facts WHERE clip_id IN ({listed})"  # noqa: S608 - quoted, and run guarded
