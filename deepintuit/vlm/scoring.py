"""Score given tokens: label likelihoods on one shared prefix, and the log-probabilities of a written trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from deepintuit.labels import LabelSet
from deepintuit.vlm.clips import EncodedClip
from deepintuit.vlm.memory import AGAIN, within_memory
from deepintuit.vlm.model import VLM
from deepintuit.vlm.prefix import packed_in_parts


def label_logprobs(
    vlm: VLM, clips: Sequence[EncodedClip | None], prompts: Sequence[str], labels: LabelSet
) -> torch.Tensor:
    """(C, K) float32: Σ log p(tokens of label k, and the end token | clip, prompt): `label_likelihood`, unscaled.

    Clips of None, all of them, are prompts of text alone. All prompts about a clip are computed as one tree, in parts
    of at most `vlm.tokens_per_pass` tokens.

    The end token is part of the sum, so labels of several tokens, and labels that begin alike, compete fairly. The K
    sums of a clip are log-probabilities of disjoint events: 1 − Σ exp is the probability mass outside the label set.
    """
    with _scoring(vlm):
        turns = [vlm.prompt_ids(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        targets = [vlm.target_ids(label) for label in labels]
        rows = [[*prompt, *target] for prompt in turns for target in targets]
        firsts = [len(prompt) for prompt in turns for _ in targets]
        sums = torch.empty(len(rows))
        for part, pack in packed_in_parts(vlm, [clip for clip in clips for _ in targets], rows, firsts):
            packed = pack()
            logprobs = vlm.model(**packed.inputs, fused_lm_head=True).log_probs.flatten()
            sums[part] = torch.stack([logprobs[places].sum() for places in packed.places]).float().cpu()
        return sums.view(len(turns), len(targets))


def last_hidden(vlm: VLM, clips: Sequence[EncodedClip], prompts: Sequence[str]) -> torch.Tensor:
    """(C, hidden) float32: the last layer at the prompt's last token, what the linear head reads (`reasoner.head`).
    In parts as `label_logprobs`."""
    with _scoring(vlm):
        turns = [vlm.prompt_ids(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        rows = [[*prompt, vlm.tokenizer.pad_token_id] for prompt in turns]  # of a row all but its last is computed
        states: dict[int, torch.Tensor] = {}
        for part, pack in packed_in_parts(vlm, clips, rows, [len(prompt) for prompt in turns]):
            packed = pack()
            inputs = {name: value for name, value in packed.inputs.items() if name != "shift_labels"}
            hidden = vlm.core.model(**inputs).last_hidden_state.flatten(0, 1)
            states |= zip(part, hidden[torch.cat(packed.places)].float().cpu())
        return torch.stack([states[row] for row in range(len(rows))])


@contextmanager
def _scoring(vlm: VLM) -> Iterator[None]:
    lower = f"Lower model.tokens_per_pass (now {vlm.tokens_per_pass}), {AGAIN}"
    with vlm.evaluating(), within_memory("scoring", lower):
        yield


def token_logprobs(
    vlm: VLM,
    clips: Sequence[EncodedClip],
    prompt_rows: Sequence[list[int]],
    written_rows: Sequence[list[int]],
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """Log-probabilities of written tokens, in one forward pass over prompt and trace, with gradients."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompt_rows, written_rows, strict=True)]
    inputs = vlm.inputs(clips, rows, side="right")
    logprobs = torch.log_softmax(vlm.model(**inputs).logits.float() / temperature, -1)
    picked = logprobs[:, :-1].gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return [picked[i, len(p) - 1 : len(p) - 1 + len(w)] for i, (p, w) in enumerate(zip(prompt_rows, written_rows))]
