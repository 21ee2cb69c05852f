"""The reasoner on this machine: clips in, traces out, as rows for the store, a batch at a time.

A clip that cannot be read any more is reported as such and left out, never replaced.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from deepintuit import ranks
from deepintuit.endpoint import BETWEEN_LOOKS, Refused
from deepintuit.errors import VideoError
from deepintuit.reasoner.task import Clip, Task
from deepintuit.runs import TraceRow
from deepintuit.vlm import VLM, Budget, EncodedClip, Sample, sample_groups
from deepintuit.vlm.clips import Place

if TYPE_CHECKING:
    from deepintuit.reasoner.gate import GateOf


@dataclass(frozen=True)
class Unreadable:
    """A clip that the manifest lists and the reader refuses."""

    clip: Clip
    error: VideoError | Refused


class EncodedClips(Sequence[tuple[Clip, EncodedClip]]):
    """Rows about readable clips, each with the features of its video when it is asked for: from the encoder's bounded
    memory, its cache or the tower. Nothing here keeps them, so that memory does not grow with the split; take slices,
    which read ahead."""

    def __init__(self, encoder, rows: Sequence[tuple[Clip, Clip, bool]]):
        self._encoder, self._rows = encoder, rows  # what each is about, whose video it shows, and whether blanked

    @property
    def clips(self) -> list[Clip]:
        return [clip for clip, _, _ in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if not isinstance(index, slice):
            return self[index : index + 1 or None][0]
        rows, pairs = self._rows[index], []
        with closing(self._encoder.encode_all(places_of(video for _, video, _ in rows))) as features:
            for (clip, _, blank), encoded in zip(rows, features, strict=True):
                if isinstance(encoded, VideoError):
                    raise encoded  # it could be read a moment ago
                pairs.append((clip, encoded.blanked() if blank else encoded))
        return pairs

    def shown(self, rows: Iterable[tuple[int, int | None]]) -> EncodedClips:
        """For each row the clip at the first place, with the video of the second one (None: its own, blanked)."""
        entries = []
        for place, video_place in rows:
            _, video, blank = self._rows[place if video_place is None else video_place]
            entries.append((self._rows[place][0], video, blank or video_place is None))
        return EncodedClips(self._encoder, entries)


OnText = Callable[[Clip, str, int], None]


class _Writing:
    """Tells of the trace of a clip as it is written."""

    def __init__(self, clip: Clip, tokenizer, on_text: OnText):
        self.clip, self._tokenizer, self._on_text = clip, tokenizer, on_text
        self._ids: list[int] = []
        self._last = 0.0

    def take(self, token: int) -> None:
        self._ids.append(token)
        if time.monotonic() - self._last >= BETWEEN_LOOKS:  # every text is decoded as a whole
            self._last = time.monotonic()
            text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
            self._on_text(self.clip, text.rstrip("\ufffd"), len(self._ids))  # of a character some tokens may be missing


def places_of(clips: Iterable[Clip]) -> list[Place]:
    return [(clip.clip_id, clip.path, clip.width, clip.height) for clip in clips]


class LocalReasoner:
    """`vlm` asked the questions of `task`. The random stream of a trace is named by (seed, clip, sample, step).

    `gate` may end a trace after its quick answer, and `budget` close its thought (`reasoner.gate`).
    """

    budget: Budget | None = None

    def __init__(self, vlm: VLM, task: Task, seed: int = 0, gate: GateOf | None = None):
        self.vlm, self.task, self.seed, self.gate = vlm, task, seed, gate
        self.unreadable: dict[str, Unreadable] = {}

    def asking(self, task: Task) -> Self:
        """The same, asked about other clips, of which none was unreadable yet."""
        reasoner = copy.copy(self)
        reasoner.task, reasoner.unreadable = task, {}
        return reasoner

    def encode(self, clips: Sequence[Clip]) -> list[tuple[Clip, EncodedClip]]:
        """Readable clips with their features, all at once: for a batch. The others go to `unreadable`."""
        return list(self._encoded(clips))

    def readable(self, clips: Sequence[Clip]) -> EncodedClips:
        """The readable ones of a split: each is encoded, so that the cache has it, and let go; of several processes, by
        one."""
        for _ in self._encoded(ranks.share(clips)):
            pass
        for unreadable in ranks.gather(self.unreadable):
            self.unreadable |= unreadable
        rows = [(clip, clip, False) for clip in clips if clip.clip_id not in self.unreadable]
        return EncodedClips(self.vlm.encoder, rows)

    def features(self, clip: Clip) -> EncodedClip:
        """Of one clip that is known to be readable."""
        return self.vlm.encoder.encode(clip.clip_id, clip.path, clip.width, clip.height)

    def _encoded(self, clips: Sequence[Clip]) -> Iterator[tuple[Clip, EncodedClip]]:
        readable = [clip for clip in clips if clip.clip_id not in self.unreadable]
        with closing(self.vlm.encoder.encode_all(places_of(readable))) as features:
            for clip, outcome in zip(readable, features, strict=True):
                if isinstance(outcome, VideoError):
                    self.unreadable[clip.clip_id] = Unreadable(clip, outcome)
                else:
                    yield clip, outcome
                outcome = None  # else it stays while the next is read

    def key(self, clip: Clip, sample: int, step: int | None = None) -> str:
        return f"{self.seed}/{clip.clip_id}/{sample}/{'' if step is None else step}"

    def groups(
        self,
        clips: Sequence[Clip],
        samples: Sequence[int],
        *,
        temperature: float | Sequence[float],
        max_tokens: int,
        top_p: float = 1.0,
        step: int | None = None,
        on_text: OnText | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[tuple[Clip, EncodedClip, list[Sample]]]:
        """One group of traces for each readable clip; `samples`: their numbers, which name the random streams;
        `temperature` of all, or of each. `on_text(clip, text so far, its tokens)` is called as text comes; `stop()`
        true ends the work after the current token, leaving traces truncated."""
        pairs = self.encode(clips)
        if not pairs:
            return []
        prompts = [self.task.reasoner_prompt(clip.clip_id) for clip, _ in pairs]
        keys = [[self.key(clip, sample, step) for sample in samples] for clip, _ in pairs]
        limits = {"temperature": temperature, "max_tokens": max_tokens, "top_p": top_p, "stop": stop}
        if on_text:
            writing = {place: _Writing(clip, self.vlm.tokenizer, on_text) for place, (clip, _) in enumerate(pairs)}
            limits["on_token"] = lambda place, _sample, token: writing[place].take(token)
        gate = self.gate(pairs) if self.gate else None
        groups = sample_groups(self.vlm, [e for _, e in pairs], prompts, keys, **limits, gate=gate, budget=self.budget)
        return [(clip, encoded, group) for (clip, encoded), group in zip(pairs, groups)]

    def rows(
        self, clips: Sequence[Clip], temperatures: Sequence[float], *, max_tokens: int, batch: int, top_p: float = 1.0
    ) -> Iterator[list[TraceRow]]:
        """Trace rows for the store, one list a batch of clips: samples 0 … of each, one for each of `temperatures`."""
        for start in range(0, len(clips), batch):
            part, samples = clips[start : start + batch], range(len(temperatures))
            groups = self.groups(part, samples, temperature=temperatures, max_tokens=max_tokens, top_p=top_p)
            yield [
                self.row(clip, encoded, *numbered)
                for clip, encoded, group in groups
                for numbered in zip(group, samples, temperatures, strict=True)
            ]

    def row(
        self, clip: Clip, encoded: EncodedClip, sample: Sample, number: int, temperature: float, step: int | None = None
    ) -> TraceRow:
        return TraceRow.of(
            self.task.parse(sample.text, sample.truncated, sample.thought is not False),
            clip_id=clip.clip_id,
            sample=number,
            step=step,
            temperature=float(temperature),
            true_label=clip.label,
            tokens=len(sample.token_ids),
            token_logprobs=sample.logprobs_T,
            token_ids=sample.token_ids,
            milliseconds=sample.milliseconds,
            confidence=sample.confidence,
            truncated=sample.truncated,
            quick_confidence=sample.quick_confidence,
            quick_probability=sample.quick_probability,
            quick_tokens=sample.quick_tokens,
            thought=sample.thought,
            prompt_hash=self.task.prompt_hash(self.task.reasoner_prompt(clip.clip_id)),
            model=self.vlm.name,
            **encoded.frames.columns(),
        )
