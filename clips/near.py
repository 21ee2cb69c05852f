"""Near-duplicates: clips that show the same footage, re-encoded, made smaller, trimmed or a little cropped.

    duplicates = pairs(prints(workbench, "kitchen"))    # from what an import kept of each clip's frames
    print(described(manifest, duplicates))              # those whose two clips are in different splits first
    manifest = together(manifest, duplicates)           # their groups are one now, so that no split parts them

A fingerprint has four frames a second of a clip (`FRAMES` at most), and of each the signs of its 16 × 16 lowest
frequencies (discrete cosine transform of the grey frame), of the whole frame and of centred cut-outs (`VIEWS`). Two
frames are alike when at most `BITS` signs differ between the whole of one and a view of the other, and two clips when
`SHARE` of the frames of the shorter one are like one of the longer. Only clips are compared that agree in a run of low
signs somewhere, so time grows little faster than the number of clips.

Mirrored, rotated and strongly cropped copies are not found. Never imports torch.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from deepintuit import video
from deepintuit.data import Manifest
from deepintuit_clips.scan import readable

FRAMES, RATE, SIDE = 24, 4.0, 96
VIEWS = (1.0, 0.94, 0.88, 0.82, 0.76)
"""Shares of width and height."""
BITS, SHARE = 56, 0.6
MOST_TOLD = 10
_KEPT = 16
_FLAT = 4.0
"""Standard deviation of grey levels below which a frame shows nothing to be known by."""
_BAND, _BANDS, _CROWD = 16, 6, 100
_ORDER = sorted(range(1, _KEPT**2), key=lambda at: (sum(divmod(at, _KEPT)), at))[: _BAND * _BANDS]


class Pair(NamedTuple):
    """Two clip ids, and the share of the shorter clip's frames that are like one of the other's."""

    first: str
    second: str
    share: float


def fingerprint(path: str | Path, limits: video.Limits = video.DEFAULT_LIMITS, *, isolate: bool = False) -> str:
    """Of a clip, as text; empty where no frame shows anything. VideoError as of `video.read`."""
    frames = video.read(path, FRAMES, (SIDE, SIDE), limits, RATE, isolate=isolate)
    return base64.b64encode(signs(frames.pixels_T_H_W_3).tobytes()).decode()


def signs(pixels_T_H_W_3: np.ndarray) -> np.ndarray:
    """(T, V, 32) bytes of frames of `SIDE` × `SIDE`, without those that show nothing."""
    grey_T_H_W = pixels_T_H_W_3.astype(np.float32).mean(-1)
    rows = [[_signs(grey, view) for view in VIEWS] for grey in grey_T_H_W if grey.std() > _FLAT]
    return np.array(rows, np.uint8).reshape(-1, len(VIEWS), _KEPT**2 // 8)


def _signs(grey_H_W: np.ndarray, view: float) -> np.ndarray:
    edge = round(SIDE * (1 - view) / 2)
    whole = Image.fromarray(grey_H_W[edge : SIDE - edge, edge : SIDE - edge])
    low = dctn(np.asarray(whole.resize((2 * _KEPT, 2 * _KEPT), Image.Resampling.BOX)))[:_KEPT, :_KEPT]
    low[0, 0] = 0  # brightness is no content
    return np.packbits(low > 0)


def pairs(prints: Mapping[str, str]) -> list[Pair]:
    """Clips by id → near-duplicates among them, by id."""
    bits = {clip: _bits(text) for clip, text in sorted(prints.items())}
    return [
        Pair(first, second, share)
        for first, second in sorted(_candidates(bits))
        if (share := alike(bits[first], bits[second])) >= SHARE
    ]


def _bits(text: str) -> np.ndarray:
    """(T, V, 32); a damaged fingerprint is like nothing."""
    size = len(VIEWS) * _KEPT**2 // 8
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    return np.frombuffer(data if len(data) % size == 0 else b"", np.uint8).reshape(-1, len(VIEWS), _KEPT**2 // 8)


def alike(first: np.ndarray, second: np.ndarray) -> float:
    """The share of the frames of the one with fewer that are like one of the other's."""
    fewer, more = sorted((first, second), key=len)
    if not len(fewer):
        return 0.0
    whole = np.bitwise_count(fewer[:, None, :1] ^ more[None]).sum(-1).min(-1)
    cut = np.bitwise_count(fewer[:, None] ^ more[None, :, :1]).sum(-1).min(-1)
    return float((np.minimum(whole, cut).min(1) <= BITS).mean())


def _candidates(bits: Mapping[str, np.ndarray]) -> set[tuple[str, str]]:
    """Clips that have the same run of low signs in some frame and view; runs that very many have tell nothing."""
    having: dict[tuple[int, int], set[str]] = {}
    for clip, signs_T_V in bits.items():
        low = np.packbits(np.unpackbits(signs_T_V, axis=-1)[..., _ORDER], axis=-1).view(f">u{_BAND // 8}")
        for band in range(_BANDS):
            for key in np.unique(low[..., band]).tolist():
                having.setdefault((band, key), set()).add(clip)
    few = (sorted(clips) for clips in having.values() if 1 < len(clips) <= _CROWD)
    return {pair for clips in few for pair in combinations(clips, 2)}


def prints(workbench: str | Path, dataset: str) -> dict[str, str]:
    """By clip id what the import left of the clips of a dataset (`scan`)."""
    return {look["sha256"][:16]: look["print"] for look in readable(workbench, dataset) if look.get("print")}


def described(manifest: Manifest, duplicates: Sequence[Pair]) -> str:
    """The pairs of usable clips in words, those that two splits part first; empty where there is none."""
    usable = manifest.usable().set_index("clip_id")
    here = [pair for pair in duplicates if {*pair[:2]} <= {*usable.index}]
    parted = [pair for pair in here if usable.loc[[*pair[:2]], "split"].nunique() > 1]
    if not here:
        return ""
    lines = [f"{len(here)} pairs of clips look like the same footage, {len(parted)} of them in different splits"]
    for pair in sorted(parted or here, key=lambda pair: -pair.share)[:MOST_TOLD]:
        sides = (f"{usable.loc[clip, 'source']!r} ({usable.loc[clip, 'split'] or 'no split'})" for clip in pair[:2])
        lines.append(f"    {' and '.join(sides)}: {pair.share:.0%} of the frames of the shorter one")
    if len(parted or here) > MOST_TOLD:
        lines.append(f"    … and {len(parted or here) - MOST_TOLD} more")
    if parted:
        lines.append("    What is trained on one is scored on the other: `--near together` keeps them in one split.")
    return "\n".join(lines)


def together(manifest: Manifest, duplicates: Sequence[Pair]) -> Manifest:
    """The manifest with one group for clips that near-duplicates connect; the one passed in stays as it was."""
    frame = manifest.frame
    names, place_C = np.unique(frame["group"].astype(str), return_inverse=True)
    of_clip = dict(zip(frame["clip_id"], place_C))
    ends = np.array([[of_clip[clip] for clip in pair[:2]] for pair in duplicates if {*pair[:2]} <= of_clip.keys()], int)
    ends = ends.reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), ends.T), shape=(len(names),) * 2)
    part_G = connected_components(graph, directed=False)[1]
    first = np.unique(part_G, return_index=True)[1]
    return Manifest(
        manifest.workbench, manifest.dataset, frame.assign(group=names[first[part_G]][place_C]), manifest.labels
    )
