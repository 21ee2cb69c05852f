"""The map of clips: a point a clip where its embedding lies, coloured by what is known of it.

    clip_map(places, {"clip id": "theft", …}, "Clips by label")

A point is its mark and its colour, so that grey print and colour-blind eyes can follow a few groups. Drawn by WebGL;
100,000 points are 3 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from deepintuit.embeddings import Places
from deepintuit_analysis.report.figures import COLOURS, RAW, SYMBOLS, finished, safe

MOST_GROUPS = 15
"""Of more, the largest have a colour, and the rest is one group."""


def clip_map(places: Places, group_of: Mapping[str, str], title: str, order: Sequence[str] = ()) -> go.Figure:
    """`group_of`: a word for each clip that is drawn, by id; clips without an embedding are left out. Groups come in
    this `order`, others behind it by their size. `customdata` of a point is the clip's id."""
    members = [clip_id for clip_id in group_of if clip_id in places.place_of]
    sizes = Counter(group_of[clip_id] for clip_id in members)
    groups = [name for name in order if name in sizes] + [name for name, _ in sizes.most_common() if name not in order]
    names = groups if len(groups) <= MOST_GROUPS else groups[: MOST_GROUPS - 1]
    kind_of = {name: k for k, name in enumerate(names)}
    kinds_C = np.array([kind_of.get(group_of[clip_id], len(names)) for clip_id in members], int)
    map_C_2 = places.map_N_2[[places.place_of[clip_id] for clip_id in members]].astype(np.float32)
    ids_C, figure = np.array(members, object), go.Figure()
    size = float(np.clip(300 / max(len(members), 1) ** 0.5, 3, 8))
    for k in range(len(names) + (len(groups) > len(names))):
        inside_C, other = kinds_C == k, k == len(names)
        name = f"{len(groups) - len(names)} others" if other else names[k]
        mark = dict(color=RAW if other else COLOURS[k % 5], symbol=SYMBOLS[(k + k // 5) % 5], size=size, opacity=0.75)
        figure.add_scattergl(
            x=map_C_2[inside_C, 0],
            y=map_C_2[inside_C, 1],
            customdata=ids_C[inside_C],
            mode="markers",
            marker=mark,
            name=f"{safe(name)} ({inside_C.sum():,})",
            hovertemplate=f"{safe(name)}<br>%{{customdata}}<extra></extra>",
        )
    hidden = dict(visible=False, showgrid=False, zeroline=False)
    figure = finished(figure, title, 460, xaxis=hidden, yaxis={**hidden, "scaleanchor": "x"}, showlegend=True)
    return figure.update_layout(dragmode="lasso", legend_itemsizing="constant")


def about(places: Places, count: int, total: int) -> str:
    """Whose embeddings the points are, how they came to lie so, and what is missing."""
    mapped, whole = places.about["mapped"], len(places.ids_N)
    words = f"By the {places.about['name']}: t-SNE of the first {places.vectors_N_D.shape[1]} principal components, "
    words += f"which hold {100 * places.about['variance']:.0f} % of the variance"
    if mapped < whole:
        words += (
            f"; {mapped:,} clips drawn at random are mapped, and each other one lies among its nearest five of them"
        )
    words += ". Neighbours are alike; distances between far groups mean nothing."
    return words + (f" {total - count:,} clips have no embedding: run deepintuit embed." if count < total else "")
