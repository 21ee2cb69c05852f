"""What bad input gets: one sentence in three beats (what came, why it cannot be, what to do).

The command line prints `str(error)` and exits with code 2.
Run it:  python -c "from deepintuit.errors import nearest; print(nearest('gropu', ['group', 'tau']))"
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable
from enum import StrEnum

_LONGEST_BEAT = 2000


class DeepIntuitError(Exception):
    """Base of everything the package raises on bad input.

    `what` came (with the offending value), `why` it cannot be, `todo` that mends it. `str()` joins the three beats.
    All arguments stay in `args`, so that the error survives pickling between worker processes. Of a beat that an
    endless value stands in, the middle is left out.
    """

    def __init__(self, what: str, why: str, todo: str) -> None:
        what, why, todo = map(_shortened, (what, why, todo))
        super().__init__(what, why, todo)
        self.what, self.why, self.todo = what, why, todo

    def __str__(self) -> str:
        what, why, todo = (beat.strip().rstrip(".:") for beat in (self.what, self.why, self.todo))
        return f"{what}: {why}. {todo[:1].upper()}{todo[1:]}" + "." * (not todo.endswith("?"))


def _shortened(beat: str) -> str:
    return beat if len(beat) <= _LONGEST_BEAT else f"{beat[:800]} … {beat[-200:]}"


class ConfigError(DeepIntuitError):
    """A setting that does not exist, has the wrong type or an impossible value."""


class LabelError(DeepIntuitError):
    """A label set that cannot be one, or a label that is not in it."""


class DataError(DeepIntuitError):
    """A manifest, an annotation file or a row that does not hold what it must."""


class StoreError(DeepIntuitError):
    """A workbench, a run or a Parquet part that is not what it claims to be."""


class DiskError(StoreError):
    """A disk that does not take or give a file; `.errno` is the system's number for the reason."""

    def __init__(self, what: str, why: str, todo: str, errno: int) -> None:
        super().__init__(what, why, todo)
        self.errno = errno
        self.args = (what, why, todo, errno)


class ModelError(DeepIntuitError):
    """A checkpoint, an adapter or a device that cannot do what is asked."""


class TeachError(DeepIntuitError):
    """A teacher that cannot be reached, does not answer or refuses."""


class VideoReason(StrEnum):
    """Why a file could not be read as a video; stored in the manifest's `excluded` column and counted in reports."""

    NOT_FOUND = "not_found"
    NO_PERMISSION = "no_permission"
    READ_FAILED = "read_failed"
    CHANGED = "changed"
    EMPTY_FILE = "empty_file"
    NOT_A_VIDEO = "not_a_video"
    NO_VIDEO_STREAM = "no_video_stream"
    NO_FRAMES = "no_frames"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    DECODE_FAILED = "decode_failed"
    TRUNCATED = "truncated"
    TOO_SMALL = "too_small"


OF_THE_MOMENT = {VideoReason.NOT_FOUND, VideoReason.NO_PERMISSION, VideoReason.READ_FAILED, VideoReason.CHANGED}
"""Reasons that say nothing of what is in a file: worth another try."""


class VideoError(DeepIntuitError):
    """A clip that cannot be read; `.reason` says why in one word that can be counted."""

    def __init__(self, what: str, why: str, todo: str, reason: VideoReason) -> None:
        super().__init__(what, why, todo)
        self.reason = VideoReason(reason)
        self.args = (what, why, todo, self.reason)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The known name most like `word`, case aside, or None when nothing is near enough to be worth offering.

    Initials count as near: `lr` finds `learning_rate`.
    """
    by_folded = {name.casefold(): name for name in names}
    folded = word[:200].casefold()
    matches = difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.6)
    by_initials = [name for name in by_folded if folded == "".join(part[:1] for part in name.split("_"))]
    return by_folded[(matches + by_initials)[0]] if matches or by_initials else None


def quiet_libraries() -> None:
    """Progress and warnings are ours to show; those of the libraries below are turned down, unless the user set them.

    Called by a door before it opens anything: the libraries read these when they are imported.
    """
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # for a reader, who knows no line of code
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
    warnings.filterwarnings("ignore", message=r".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="IProgress not found")  # in Jupyter, of a bar that is not ours
    defaults = {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
