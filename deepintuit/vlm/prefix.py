"""Written tokens scored behind a prompt that is computed once for all the traces of a clip, with gradients.

The prompt runs through the model once a clip and leaves its keys and values; every trace reads them and runs alone
behind them. Attention of the prompt to itself, and of a trace to prompt and itself, is computed once each: no mask over
pairs that never meet. Exact: the same sums as in one row of prompt and trace, and gradients reach the prompt through
its keys and values.

Left out on purpose: activation checkpointing, which runs layers again without a cache (callers take the plain path).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from deepintuit.vlm.clips import EncodedClip
from deepintuit.vlm.model import VLM


def forward_behind_prompts(
    vlm: VLM,
    model: torch.nn.Module,
    clips: Sequence[EncodedClip],
    prompt_C_P: tuple[torch.Tensor, torch.Tensor],
    owners_B: torch.Tensor,
    written_B_T: tuple[torch.Tensor, torch.Tensor],
) -> Any:
    """What `model`, patched with TRL's fused head, says of B written rows; row b stands behind the prompt of clip
    owners_B[b].

    Prompts are (ids, mask) padded on the left, written rows (ids, mask) padded on the right. The output's `log_probs`
    and `entropy` are (B, T), one entry a written token.
    """
    prompt, prompt_mask = prompt_C_P
    written, written_mask = written_B_T
    inputs = vlm.forward_inputs(clips, prompt, prompt_mask)
    positions = inputs["position_ids"]
    cache = DynamicCache(config=vlm.core.config.get_text_config())
    # The last token of a prompt is fed with each trace: it is what the first written token is predicted from.
    head = {"input_ids": prompt[:, :-1], "attention_mask": prompt_mask[:, :-1], "position_ids": positions[:, :, :-1]}
    nothing = torch.full_like(prompt[:, :-1], -100)
    model(**inputs | head, past_key_values=cache, shift_labels=nothing, fused_lm_head=True)
    cache.batch_select_indices(owners_B)
    last = positions[:, owners_B, -1:]
    steps = torch.arange(written.shape[1], device=written.device)
    fed = torch.cat([prompt[owners_B, -1:], written[:, :-1]], 1)
    seen = torch.cat([prompt_mask[owners_B], written_mask[:, :-1]], 1)
    return model(
        input_ids=fed,
        attention_mask=seen,
        position_ids=last + steps,
        past_key_values=cache,
        shift_labels=written.masked_fill(written_mask == 0, -100),
        fused_lm_head=True,
    )
