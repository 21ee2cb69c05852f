"""Attention of a packed sequence along a tree: a token sees its ancestors and itself.

Registered with transformers as `prefix_tree`; a call without a tree is its `sdpa`. Every pair that meets is computed
once, branch by branch, without a mask over pairs that never meet. Sliding windows are not supported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


@dataclass(frozen=True)
class Branch:
    """A run of tokens that continues others: `length` of them behind the ancestors `before` (indices into the clip's
    own tokens), whom `mask` (length, ancestors + length) lets them see; None where there are no ancestors."""

    length: int
    before: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Tree:
    """How the tokens of a packed sequence hang together: the branches of each clip, in the order of their tokens."""

    clips: tuple[tuple[Branch, ...], ...]

    @property
    def sizes(self) -> list[int]:
        return [sum(branch.length for branch in branches) for branches in self.clips]


def attend(module, query, key, value, attention_mask, tree: Tree | None = None, **kwargs):
    """Attention of a packed sequence (1, heads, N, d) along its tree; without one, transformers' own.

    Registered with transformers under `ATTENTION`.
    """
    repeats = query.shape[1] // key.shape[1]
    if tree is None:
        if repeats > 1 and attention_mask is not None and query.shape[2] < key.shape[2]:
            return _behind_cache(query, key, value, attention_mask, repeats, kwargs.get("scaling")), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    parts = []
    settings = {"dropout_p": kwargs.get("dropout", 0.0), "scale": kwargs.get("scaling")}
    sizes = tree.sizes
    for branches, q, k, v in zip(tree.clips, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2)):
        own = [branch.length for branch in branches]
        for branch, queries, keys, values in zip(branches, q.split(own, 2), k.split(own, 2), v.split(own, 2)):
            if branch.mask is not None:
                keys = torch.cat([k.index_select(2, branch.before), keys], 2)
                values = torch.cat([v.index_select(2, branch.before), values], 2)
            causal = branch.mask is None
            parts.append(scaled_dot_product_attention(queries, keys, values, branch.mask, is_causal=causal, **settings))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _behind_cache(query, key, value, mask, repeats: int, scaling: float | None) -> torch.Tensor:
    """Few queries against a long cache: the heads that share keys become further queries, and no key is copied."""
    rows, heads, length, width = query.shape
    queries = query.reshape(rows, heads // repeats, repeats * length, width)
    output = scaled_dot_product_attention(queries, key, value, mask.repeat(1, 1, repeats, 1), scale=scaling)
    return output.reshape(rows, heads, length, width).transpose(1, 2).contiguous()


ATTENTION = "prefix_tree"
AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def see_trees(model) -> None:
    """Let a Qwen-VL's language model take a tree; one that was not told so ignores it, and attends to all before."""
    model.model.language_model.set_attn_implementation(ATTENTION)
