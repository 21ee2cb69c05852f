"""Memory that runs out is a sentence that names the setting to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deepintuit.errors import ModelError

AGAIN = "and rerun the command: it resumes from what is kept"
"""What lowering a setting that changes only the cost leads to."""


def ran_out(error: BaseException) -> bool:
    """Whether torch or Python found no memory, on whatever device."""
    phrases = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED") if isinstance(error, RuntimeError) else ()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in phrases)


@contextmanager
def within_memory(doing: str, todo: str) -> Iterator[None]:
    """Raises `ModelError` in place of what torch raises where no memory is left."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        why = next(iter(str(error).strip().splitlines()), "none was left")
        raise ModelError(f"memory ran out while {doing}", why, todo) from error
