"""Score given tokens: label likelihoods on one shared prefix, and the log-probabilities of a written trace."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepintuit.labels import LabelSet
from deepintuit.vlm.clips import EncodedClip
from deepintuit.vlm.model import VLM


@torch.no_grad()
def label_logprobs(
    vlm: VLM, clips: Sequence[EncodedClip | None], prompts: Sequence[str], labels: LabelSet
) -> torch.Tensor:
    """(C, K) float32: Σ log p(tokens of label k, and the end token | clip, prompt). METHOD: the paper's option A.

    Clips of None, all of them, are prompts of text alone.

    The end token is part of the sum, so labels of several tokens, and labels that begin alike, compete fairly. The K
    sums of a clip are log-probabilities of disjoint events: 1 − Σ exp is the probability mass outside the label set.
    """
    was_training = vlm.model.training
    vlm.model.eval()
    try:
        rows = [vlm.prompt_ids(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        inputs = vlm.inputs(clips, rows, side="left")
        out = vlm.model(**inputs, use_cache=True, logits_to_keep=1)
        first_C_V = torch.log_softmax(out.logits[:, -1].float(), -1)
        targets = [vlm.target_ids(label) for label in labels]
        width = max(map(len, targets)) - 1  # the last token of a label is never fed, only scored
        fed = torch.full((len(targets), width), vlm.tokenizer.pad_token_id, device=vlm.device)
        scored = torch.full((len(targets), width + 1), -1, device=vlm.device)
        for row, ids in enumerate(targets):
            fed[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            scored[row, : len(ids)] = torch.tensor(ids)
        clips_n, k = len(clips), len(targets)
        sums = first_C_V[:, scored[:, 0]]
        if width:
            cache = out.past_key_values
            cache.batch_repeat_interleave(k)
            mask = inputs["attention_mask"].repeat_interleave(k, 0)
            last = inputs["position_ids"][:, :, -1].max(0).values.repeat_interleave(k)
            steps = torch.arange(1, width + 1, device=vlm.device)
            logits = vlm.model(
                input_ids=fed.repeat(clips_n, 1),
                attention_mask=torch.cat([mask, mask.new_ones(len(mask), width)], 1),
                position_ids=(last[:, None] + steps)[None].expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).logits
            rest = scored[:, 1:].repeat(clips_n, 1)
            values = torch.log_softmax(logits.float(), -1).gather(-1, rest.clamp(min=0)[..., None])[..., 0]
            sums = sums + (values * (rest >= 0)).sum(-1).view(clips_n, k)
        return sums.cpu()
    finally:
        vlm.model.train(was_training)


@torch.no_grad()
def last_hidden(vlm: VLM, clips: Sequence[EncodedClip], prompts: Sequence[str]) -> torch.Tensor:
    """(C, hidden) float32: the last layer at the last token of the prompt, the input of the linear head (option B)."""
    was_training = vlm.model.training
    vlm.model.eval()
    try:
        rows = [vlm.prompt_ids(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        hidden = vlm.core.model(**vlm.inputs(clips, rows, side="left")).last_hidden_state
        return hidden[:, -1].float().cpu()
    finally:
        vlm.model.train(was_training)


def token_logprobs(
    vlm: VLM,
    clips: Sequence[EncodedClip],
    prompt_rows: Sequence[list[int]],
    written_rows: Sequence[list[int]],
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """Log-probabilities of written tokens, in one forward pass over prompt and trace, with gradients."""
    rows = [[*prompt, *written] for prompt, written in zip(prompt_rows, written_rows, strict=True)]
    inputs = vlm.inputs(clips, rows, side="right")
    logprobs = torch.log_softmax(vlm.model(**inputs).logits.float() / temperature, -1)
    picked = logprobs[:, :-1].gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return [picked[i, len(p) - 1 : len(p) - 1 + len(w)] for i, (p, w) in enumerate(zip(prompt_rows, written_rows))]
