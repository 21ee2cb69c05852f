"""How sure the model was of each token of a trace, laid over its text.

The store keeps token ids with their log-probabilities; their texts come from the `tokenizer.json` of the checkpoint
that wrote the trace. Only the `tokenizers` package reads it, so that nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from deepintuit_analysis import Workbench
from deepintuit_app.prose import TokenMark

LEVELS = (
    (0.3, "sure0", "under 30 %"), (0.6, "sure1", "under 60 %"), (0.9, "sure2", "under 90 %"),
    (0.99, "sure3", "under 99 %"),
)  # fmt: skip
"""Probability below which a token is marked, the mark's class, and its words. Surer tokens are left plain."""
_LONGEST_CHARACTER = 8  # tokens that one character may be spread over


def marked_tokens(workbench: Workbench, row: Any) -> tuple[list[TokenMark], str]:
    """Marks over the text of a trace (a row of `traces`), and "", or none and a sentence that says why not."""
    ids, logprobs = row["token_ids"], row["token_logprobs"]
    if ids is None or logprobs is None or isinstance(ids, float) or isinstance(logprobs, float) or not len(ids):
        return [], "This trace was stored without token probabilities."
    file = tokenizer_file(workbench, row["model"])
    if file is None:
        return [], "The tokenizer that wrote this trace is not on this machine, so its tokens cannot be told apart."
    tokenizer = _tokenizer(str(file), file.stat().st_mtime_ns)
    marks = lay(
        row["text"],
        [int(i) for i in ids],
        [float(p) for p in logprobs],
        lambda some: tokenizer.decode(some, skip_special_tokens=False),
    )
    if marks is None:
        return [], "The stored tokens do not spell the stored text, so no colour can be laid over it."
    return marks, ""


def tokenizer_file(workbench: Workbench, model: str | None) -> Path | None:
    """`tokenizer.json` of the checkpoint that a trace names: the run of that name in this workbench (which may have
    been moved since), else the folder itself."""
    if not isinstance(model, str) or not model:
        return None
    run_ids = {run.id for run in workbench.runs()}
    inside = [workbench.path / "runs" / part / "checkpoint" for part in PurePath(model).parts if part in run_ids]
    files = [folder / "tokenizer.json" for folder in (*inside, Path(model))]
    return next((file for file in files if file.is_file()), None)


@lru_cache(maxsize=8)
def _tokenizer(path: str, changed: int) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)


def lay(
    text: str, ids: Sequence[int], logprobs: Sequence[float], decode: Callable[[list[int]], str]
) -> list[TokenMark] | None:
    """Tokens as marks on the characters they stand for, in order. None when they do not spell the text.

    A character may be spread over several tokens: they are taken together, with the least sure one's probability. What
    was decoded past the text (an end mark) is left out.
    """
    pieces: list[tuple[str, float]] = []
    pending: list[int] = []
    least = 0.0
    for number, logprob in zip(ids, logprobs):
        pending.append(number)
        least = min(least, logprob)
        piece = decode(pending)
        if piece.endswith("\ufffd") and len(pending) < _LONGEST_CHARACTER:
            continue
        pieces.append((piece, math.exp(least)))
        pending, least = [], 0.0
    spelled = "".join(piece for piece, _ in pieces)
    at = -spelled.find(text) if text in spelled else None
    if at is None:
        return None
    marks = []
    for piece, p in pieces:
        start, at = at, at + len(piece)
        kind = next((kind for bound, kind, _ in LEVELS if p < bound), None)
        if kind and at > 0 and start < len(text):
            marks.append(TokenMark(max(0, start), min(at, len(text)), kind, f"{100 * p:.0f} % sure"))
    return marks
