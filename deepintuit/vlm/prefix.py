"""Rows of tokens that begin alike, computed once as far as they are alike: the prefix tree of a clip's rows.

A prompt is the same for all traces of a clip, a trace begins as another one did, and all labels follow one prompt. The
rows of a clip are laid as a tree into one sequence without padding, several clips behind one another, and a token
attends to its ancestors and itself: prompt to prompt, a branch to what lies before it and to itself, each pair once,
and no mask over pairs that never meet. Exact: the sums are those of whole rows, and gradients reach what is shared from
every row behind it. It is one ordinary forward pass, so adapters, mixed precision and activation checkpointing hold.

`vlm.shares_prefix` false computes every row by itself: the reference.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from deepintuit.vlm.attention import Branch, Tree
from deepintuit.vlm.clips import EncodedClip
from deepintuit.vlm.model import VLM

IGNORED = -100


@dataclass(frozen=True)
class Packed:
    """Rows of one or more clips, ready for a forward pass with TRL's fused head.

    `inputs`: what the model takes, `shift_labels` included. `places`: for each row, where its scored tokens' numbers
    stand in the output's `log_probs` and `entropy`, flattened.
    """

    inputs: dict[str, Any]
    places: list[torch.Tensor]


def pack(
    vlm: VLM,
    clips: Sequence[EncodedClip | None],
    rows: Sequence[Sequence[int]],
    firsts: Sequence[int],
    *,
    apart: bool = False,
) -> Packed:
    """Rows of token ids, row r about clips[r], of which the tokens from firsts[r] on are scored.

    `apart` keeps tokens that are scored out of what is shared: then each has an entry of its own, and a mean over
    entries is a mean over the rows' tokens.
    """
    if not vlm.shares_prefix:
        return _side_by_side(vlm, clips, rows, firsts)
    groups = _by_clip(clips)
    ids, labels, depths, owners, trees = [], [], [], [], []
    places: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for owner, group in enumerate(groups):
        limit = min(firsts[row] for row in group) if apart else None
        tokens, depth, branches, paths = grow([rows[row] for row in group], limit)
        targets = [IGNORED] * len(tokens)
        for row, path in zip(group, paths):
            # The token at position t is predicted from the one before it.
            for t in range(max(firsts[row], 1), len(rows[row])):
                targets[path[t - 1]] = rows[row][t]
            positions = path[max(firsts[row], 1) - 1 : len(rows[row]) - 1]
            places[row] = torch.tensor(positions, dtype=torch.long, device=vlm.device) + len(ids)
        ids += tokens
        labels += targets
        depths += depth
        owners += [owner] * len(tokens)
        trees.append(tuple(_branch(length, before, vlm.device) for length, before in branches))
    # What follows a clip's vision tokens is text, so a token's 3-D position depends on its clip and depth alone.
    longest = [max((rows[row] for row in group), key=len) for group in groups]
    whole = vlm.inputs([clips[group[0]] for group in groups], longest, side="right")
    index = torch.tensor([owners, depths], device=vlm.device)
    inputs = whole | {
        "input_ids": torch.tensor([ids], device=vlm.device),
        "position_ids": whole["position_ids"][:, index[0], index[1]][:, None],
        "attention_mask": torch.zeros(1, 1, 1, 1, device=vlm.device),  # of four dimensions: transformers makes none
        "tree": Tree(tuple(trees)),
        "shift_labels": torch.tensor([labels], device=vlm.device),
        "use_cache": False,
    }
    return Packed(inputs, places)


def packed_in_parts(
    vlm: VLM,
    clips: Sequence[EncodedClip | None],
    rows: Sequence[Sequence[int]],
    firsts: Sequence[int],
    *,
    apart: bool = False,
) -> list[tuple[list[int], Callable[[], Packed]]]:
    """The parts of `in_parts`, and of each what packs it: until that is called nothing of it is on the device."""
    return [
        (part, partial(pack, vlm, *([of[row] for row in part] for of in (clips, rows, firsts)), apart=apart))
        for part in in_parts(vlm, clips, rows)
    ]


def in_parts(vlm: VLM, clips: Sequence[EncodedClip | None], rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the rows, clip by clip, in parts for a forward pass each, of at most `vlm.tokens_per_pass` tokens;
    what rows share counts once.

    The rows of one clip are parted only where the tokens behind their common prompt are more than that, and then as
    evenly as they can be: every part computes the prompt again. A part of one clip may hold its prompt beside those
    tokens, or one longer row.
    """
    parts: list[list[int]] = [[]]
    size = 0
    for group in _by_clip(clips):
        for piece, tokens in _pieces(group, rows, vlm.tokens_per_pass, vlm.shares_prefix):
            if parts[-1] and size + tokens > vlm.tokens_per_pass:
                parts.append([])
                size = 0
            parts[-1] += piece
            size += tokens
    return parts if rows else []


def _pieces(
    group: Sequence[int], rows: Sequence[Sequence[int]], most: int, shares: bool
) -> list[tuple[list[int], int]]:
    """The rows of a clip in runs of at most `most` tokens behind their prompt, or of one row, each with all its
    tokens; as few runs as that takes, the longest as short as it can be."""
    if shares:
        group = sorted(group, key=lambda row: rows[row])  # those that are alike stand together
    alike = [0] * len(group)
    if shares:
        alike[1:] = (_alike(rows[row], rows[last], None) for last, row in pairwise(group))
    prompt = min(alike[1:], default=0)

    def runs(limit: int) -> list[tuple[list[int], int]]:
        groups: list[tuple[list[int], int]] = []
        for row, less in zip(group, alike):
            if groups and groups[-1][1] - prompt + len(rows[row]) - less <= limit:
                groups[-1] = [*groups[-1][0], row], groups[-1][1] + len(rows[row]) - less
            else:
                groups.append(([row], len(rows[row])))
        return groups

    fewest = len(runs(most))
    return runs(bisect_left(range(most), True, key=lambda limit: len(runs(limit)) <= fewest))


def _by_clip(clips: Sequence[EncodedClip | None]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for row, clip in enumerate(clips):
        members.setdefault(id(clip), []).append(row)
    return list(members.values())


def grow(
    rows: Sequence[Sequence[int]], limit: int | None = None
) -> tuple[list[int], list[int], list[tuple[int, list[int]]], list[list[int]]]:
    """Rows → tree: its tokens, their depths, branches as (length, ancestors), and for each row the tokens on its way.

    The last token of a row predicts nothing and is left out. The last token that a branch shares with its trunk is
    repeated at its begin: every entry then predicts one token only. Nothing is shared behind the first `limit` tokens.
    """
    tokens: list[int] = []
    depths: list[int] = []
    branches: list[tuple[int, list[int]]] = []
    paths: list[list[int]] = [[]] * len(rows)
    last: Sequence[int] = ()
    path: list[int] = []
    for number in sorted(range(len(rows)), key=lambda n: rows[n]):
        row = rows[number]
        alike = _alike(row, last, limit)
        common = max(0, alike - 1)
        if alike < len(row) and common < len(row) - 1:
            start = len(tokens)
            tokens += row[common:-1]
            depths += range(common, len(row) - 1)
            branches.append((len(tokens) - start, path[:common]))
            path = [*path[:common], *range(start, len(tokens))]
        paths[number], last = path, row
    return tokens, depths, branches, paths


def _alike(row: Sequence[int], former: Sequence[int], limit: int | None) -> int:
    most = min(len(row), len(former), *(() if limit is None else (limit,)))
    return next((at for at in range(most) if row[at] != former[at]), most)


def _branch(length: int, before: list[int], device: torch.device) -> Branch:
    ancestors = torch.tensor(before, dtype=torch.long, device=device)
    if not before:
        return Branch(length, ancestors, None)
    mask = torch.ones(length, len(before) + length, dtype=torch.bool, device=device).tril(len(before))
    return Branch(length, ancestors, mask)


def _side_by_side(vlm: VLM, clips, rows, firsts) -> Packed:
    inputs = vlm.inputs(clips, rows, side="right")
    width = inputs["input_ids"].shape[1]
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    places = []
    for number, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        first = max(first, 1)
        labels[number, first - 1 : len(row) - 1] = torch.tensor(row[first:])
        places.append(number * width + torch.arange(first - 1, len(row) - 1, device=vlm.device))
    return Packed({**inputs, "shift_labels": labels, "use_cache": False}, places)
