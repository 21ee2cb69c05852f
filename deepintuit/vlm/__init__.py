"""The only door to transformers and peft: load, encode clips once, sample on a shared prefix, score labels, fine-tune.

- `families`  what is known of each family of backbones
- `weights`   files of a checkpoint: what is opened, and whether it fits
- `model`     a loaded Qwen-VL, its adapters, its inputs
- `clips`     features of the frozen tower, one pass a clip
- `prefix`    rows that begin alike as one tree, `attention` along it: for losses and scores
- `sampling`  groups of traces behind one prefill, one until they part
- `scoring`   label likelihoods behind one prompt; log-probabilities of written traces
- `finetune`  cross-entropy on targets, resumable, through TRL's SFTTrainer
"""

from transformers.utils import logging as _transformers_logging

from deepintuit.vlm.clips import EncodedClip, metadata_of
from deepintuit.vlm.model import VLM, Example, harmless
from deepintuit.vlm.sampling import Budget, Gate, Quick, Sample, character_offsets, sample_groups
from deepintuit.vlm.scoring import label_logprobs, last_hidden, token_logprobs
from deepintuit.vlm.weights import located

_transformers_logging.disable_progress_bar()  # the stages show their own

__all__ = [
    "VLM",
    "EncodedClip",
    "Example",
    "Budget",
    "Gate",
    "Quick",
    "Sample",
    "character_offsets",
    "harmless",
    "label_logprobs",
    "last_hidden",
    "located",
    "metadata_of",
    "sample_groups",
    "token_logprobs",
]
