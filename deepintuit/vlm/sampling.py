"""Sample traces: one prefill per clip, and every token once for all traces of the clip that are still alike.

The traces of a group begin as one and part where they draw different tokens. A clip is one row of the batch, its cache
holds the tokens of all its traces behind one prompt, and a mask says which are whose: nothing is copied for a trace,
nor for a step. Many clips go in rounds of bounded cache. Every trace draws from its own random stream, keyed by
(seed, clip, sample): what a trace says does not depend on which others are sampled beside it, nor on where a killed
run resumed.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from deepintuit.trace import Segment
from deepintuit.vlm.clips import EncodedClip
from deepintuit.vlm.memory import AGAIN, within_memory
from deepintuit.vlm.model import VLM


@dataclass(frozen=True)
class Sample:
    """One sampled trace. `logprobs_T`: of each token, the end token included, at the temperature of sampling.

    Where a gate watched: `quick_confidence` of its quick answer (−1 where it gave none), how many tokens it took,
    whether it `thought` after it, and `quick_probability`, what the gate asked of another and decided by.
    """

    text: str
    token_ids: list[int]
    logprobs_T: list[float]
    truncated: bool
    milliseconds: float
    quick_confidence: float | None = None
    quick_tokens: int | None = None
    thought: bool | None = None
    quick_probability: float | None = None

    @property
    def confidence(self) -> float:
        """exp(mean token log-probability): 1 for a trace that the model was sure of, token by token."""
        return float(np.exp(np.mean(self.logprobs_T))) if self.logprobs_T else 0.0


@dataclass(frozen=True)
class Quick:
    """A quick answer as it was just written: of which clip and sample, the text up to its end (the token that closed it
    may say more), and how sure its tokens were.

    `confidence`: exp(mean log-probability of the tokens inside the first box); −1 for the fallback, no box, or a box
    in a box, which is no answer.
    """

    clip: int
    sample: int
    text: str
    confidence: float


@dataclass(frozen=True)
class Gate:
    """Watches for the quick answer, the segment `quick` of a grammar; one that is at least `threshold` sure ends its
    trace. How sure is its confidence, or what `judged` says of those just written.

    A trace that continues does so from the same cache: its tokens are those that it would have had without a gate.
    """

    quick: Segment
    threshold: float = float("inf")
    judged: Callable[[Sequence[Quick]], Sequence[float]] | None = None

    def read(self, ids: Sequence[int], logprobs: Sequence[float], tokenizer) -> tuple[str, float] | None:
        """Text and confidence once the first box is closed, or can no longer come; None before. The text ends with the
        box."""
        text = tokenizer.decode(ids, skip_special_tokens=True)
        start = len(text) - len(text.lstrip())
        if not text.startswith(self.quick.open, start):
            return None if self.quick.open.startswith(text[start:]) else (text, -1.0)
        first = start + len(self.quick.open)
        last = text.find(self.quick.close, first)
        if last < 0:
            return None
        inside = character_offsets(tokenizer, ids)
        in_answer = (inside[:, 0] < last) & (inside[:, 1] > first)
        inside_box, text = text[first:last].strip(), text[: last + len(self.quick.close)]
        if inside_box in ("", self.quick.fallback) or self.quick.open in inside_box or not in_answer.any():
            return text, -1.0
        return text, float(np.exp(np.mean(np.asarray(logprobs)[in_answer])))


@dataclass(frozen=True)
class Budget:
    """Closes a thought, the segment `thought` of a grammar, that has begun when its trace has `tokens` tokens: then the
    tokens `ids`, from the thought's closing mark to the opening one of the answer, stand in place of drawn ones, with a
    log-probability of 0. What follows is drawn."""

    thought: Segment
    tokens: int
    ids: tuple[int, ...]

    def state(self, text: str) -> bool | None:
        """Of a trace so far: whether its thought is to be closed; None where it is closed already."""
        _, begun, inside = text.partition(self.thought.open)
        if self.thought.close in inside:
            return None
        marks = (self.thought.close[:length] for length in range(1, len(self.thought.close)))
        return bool(begun and inside.strip()) and not inside.endswith(tuple(marks))


def character_offsets(tokenizer, ids: Sequence[int]) -> np.ndarray:
    """(T, 2): first and last + 1 character of each token in the decoded text, special tokens left out of it.

    Tokens that share a character of several bytes share its range; a special token has none (start = end).
    """
    offsets = np.zeros((len(ids), 2), np.int64)
    start, at = 0, 0
    for position in range(len(ids)):
        piece = tokenizer.decode(ids[start : position + 1], skip_special_tokens=True)
        if piece.endswith("\ufffd") and position + 1 < len(ids) and position - start < 3:
            continue  # the middle of a character, of four bytes at most
        offsets[start : position + 1] = at, at + len(piece)
        start, at = position + 1, at + len(piece)
    return offsets


def stream(key: str, length: int) -> np.ndarray:
    """`length` uniform numbers in [0, 1) that depend on the key alone."""
    words = np.frombuffer(hashlib.sha256(key.encode()).digest()[:16], np.uint64)
    return np.random.Generator(np.random.Philox(key=words)).random(length)


def sample_groups(
    vlm: VLM,
    clips: Sequence[EncodedClip],
    prompts: Sequence[str],
    keys_C_G: Sequence[Sequence[str]],
    *,
    temperature: float | Sequence[float],
    max_tokens: int,
    top_p: float = 1.0,
    on_token: Callable[[int, int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    gate: Gate | None = None,
    budget: Budget | None = None,
) -> list[list[Sample]]:
    """G traces for each of C clips; `keys_C_G` names each trace's random stream. `temperature`: of all, or of each of
    the G; 0 is greedy. In rounds whose cache, were all traces as long as they may be, is of `vlm.tokens_in_cache`
    tokens at most.

    `on_token(clip, sample, token_id)` is called as tokens come; `stop()` true ends the work after the current token,
    leaving traces truncated. `gate` may end a trace after its quick answer, `budget` close its thought.
    """
    group, groups = len(keys_C_G[0]), [[] for _ in clips]
    temperatures = [temperature] * group if isinstance(temperature, int | float) else temperature
    rows = [vlm.prompt_ids(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
    lower = f"Lower model.tokens_in_cache (now {vlm.tokens_in_cache}), {AGAIN}"
    with vlm.evaluating(), within_memory("sampling", lower):
        for clip_slice, sample_slice in _rounds(list(map(len, rows)), group, max_tokens, vlm):
            keys = [keys_C_G[clip][sample_slice] for clip in range(len(clips))[clip_slice]]
            traces = _Traces(vlm, keys, (clip_slice.start, sample_slice.start), temperatures[sample_slice], max_tokens)
            samples = _sample(vlm, clips[clip_slice], rows[clip_slice], traces, top_p, on_token, stop, gate, budget)
            for clip, own in zip(groups[clip_slice], samples):
                clip += own
    return groups


def _rounds(lengths: Sequence[int], group: int, trace_tokens: int, vlm: VLM) -> Iterator[tuple[slice, slice]]:
    """Clips, and samples of each, that go together; a group is parted, and its prompt computed again, only where one
    clip alone is more than the cache may hold."""

    def held(clips: slice, samples: int) -> int:
        prompts = max(lengths[clips]) * (1 if vlm.shares_prefix else samples)
        return (clips.stop - clips.start) * (prompts + samples * trace_tokens)

    start = 0
    while start < len(lengths):
        clip_slice, most = slice(start, start + 1), vlm.tokens_in_cache
        while clip_slice.stop < len(lengths) and held(slice(start, clip_slice.stop + 1), group) <= most:
            clip_slice = slice(start, clip_slice.stop + 1)
        fitting = next((n for n in range(group, 1, -1) if held(clip_slice, n) <= most), 1)
        share = math.ceil(group / math.ceil(group / fitting))
        for first in range(0, group, share):
            yield clip_slice, slice(first, min(first + share, group))
        start = clip_slice.stop


def _sample(
    vlm: VLM,
    clips: Sequence[EncodedClip],
    rows: Sequence[list[int]],
    traces: _Traces,
    top_p: float,
    on_token: Callable[[int, int, int], None] | None,
    stop: Callable[[], bool] | None,
    gate: Gate | None,
    budget: Budget | None,
) -> list[list[Sample]]:
    """One round: all traces of these clips, whose prompts are `rows`."""
    start = time.perf_counter()
    # 1. Prefill: one row per clip, padded on the left so that all rows end at the same column.
    cache, logits = _prefill(vlm, clips, rows, traces)  # logits (C, 1, V)
    if not vlm.shares_prefix:  # the plain path: a row per trace
        cache.reorder_cache(torch.arange(len(clips), device=vlm.device).repeat_interleave(traces.group))
        logits = logits.repeat_interleave(traces.group, 0)
    for step in range(traces.max_tokens):
        # 2. A token for each trace that is still being written; those that end leave.
        tokens = traces.draw(logits, step, top_p, vlm)
        if budget:
            tokens = traces.close_by(budget, tokens, vlm)
        if on_token:
            for trace, token in zip(traces.active.tolist(), tokens.tolist()):
                on_token(*traces.place(trace), token)
        tokens = tokens[traces.extend(tokens)]
        if gate:
            tokens = tokens[traces.stop_by(gate, vlm)]
        if not len(traces.active) or step + 1 == traces.max_tokens or (stop and stop()):
            break
        # 3. Rows whose traces have all ended give their cache back.
        kept_rows = traces.drop_finished_rows()
        if kept_rows is not None:
            cache.reorder_cache(kept_rows)
        # 4. Traces that drew different tokens branch into slots of their row; one pass serves all slots.
        logits = vlm.model(
            input_ids=traces.branch(tokens),
            attention_mask=traces.attention_mask(),
            position_ids=traces.position_ids(step),
            past_key_values=cache,
            use_cache=True,
        ).logits  # (rows, slots, V)
    milliseconds = (time.perf_counter() - start) * 1000 / len(traces.ids)
    samples = [traces.sample(trace, vlm, milliseconds) for trace in range(len(traces.ids))]
    return [samples[start : start + traces.group] for start in range(0, len(samples), traces.group)]


def _prefill(
    vlm: VLM, clips: Sequence[EncodedClip], rows: Sequence[list[int]], traces: _Traces
) -> tuple[Cache, torch.Tensor]:
    """The cache of these prompts and the logits (C, 1, V) behind them; `traces` begin there. In passes of at most
    `vlm.tokens_per_pass` tokens, where all layers keep keys and values, which can be laid together."""
    width = max(map(len, rows))
    keeps = all(type(layer) is DynamicLayer for layer in DynamicCache(config=vlm.core.config).layers)
    each = max(1, vlm.tokens_per_pass // width) if keeps else len(rows)
    caches, logits, masks, last = [], [], [], []
    for start in range(0, len(rows), each):
        part = slice(start, start + each)
        inputs = vlm.inputs(clips[part], rows[part], side="left", pad_to=width)
        caches.append(DynamicCache(config=vlm.core.config))
        out = vlm.model(**inputs, past_key_values=caches[-1], use_cache=True, logits_to_keep=1)
        logits.append(out.logits[:, -1:])
        masks.append(inputs["attention_mask"].bool())
        last.append(inputs["position_ids"][:, :, -1].max(0).values)
    traces.begin(torch.cat(masks), torch.cat(last))
    cache = caches[0]
    for number, layers in enumerate(zip(*(part.layers for part in caches))):
        if type(layers[0]) is DynamicLayer:
            cache.layers[number] = _Buffered(layers)
    return cache, torch.cat(logits)


class _Buffered(DynamicLayer):
    """Keys and values, (rows, heads, tokens, width), in buffers that grow by an eighth when they are full: a step
    writes its own tokens and copies no others, where `DynamicLayer` concatenates all of them anew. Rows that leave give
    their memory back at once."""

    def __init__(self, layers: Sequence[DynamicLayer]):
        """Those of `layers`, rows below rows, which are emptied."""
        super().__init__()
        self.lazy_initialization(layers[0].keys, layers[0].values)
        self.buffers: dict[str, torch.Tensor] = {}
        filled = layers[0].get_seq_length()
        for name in ("keys", "values"):
            self._hold(name, torch.cat([getattr(layer, name) for layer in layers]), filled)
            for layer in layers:
                setattr(layer, name, None)

    def _hold(self, name: str, buffer: torch.Tensor, filled: int) -> None:
        self.buffers[name] = buffer
        setattr(self, name, buffer[:, :, :filled])

    def update(self, key_states, value_states, *args, **kwargs):
        length, filled = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        for name, new in (("keys", key_states), ("values", value_states)):
            buffer = self.buffers[name]
            if buffer.shape[2] < filled:
                buffer = buffer.new_empty(*buffer.shape[:2], filled + max(filled // 8, 16), buffer.shape[3])
                buffer[:, :, :length] = self.buffers[name][:, :, :length]
            buffer[:, :, length:filled] = new
            self._hold(name, buffer, filled)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        filled = self.get_seq_length()
        for name in ("keys", "values"):
            self._hold(name, self.buffers[name].index_select(0, beam_idx), filled)


class _Traces:
    """All traces of a round: their tokens so far, where those being written stand in the batch, their random numbers.

    A row of the batch is a clip (a trace, on the plain path). Its traces that are alike so far share a slot, the query
    of one step; `seen` says which of the row's cached tokens a slot attends to. Of the A traces that are `active`:
    `row` (A,) and `slot` (A,).
    """

    mask: torch.Tensor  # (rows, slots, tokens)
    last: torch.Tensor  # (rows,) the last position of each prompt

    def __init__(
        self,
        vlm: VLM,
        keys_C_G: Sequence[Sequence[str]],
        first: tuple[int, int],
        temperature_G: Sequence[float],
        max_tokens: int,
    ):
        keys, self.group, self.first = [key for keys in keys_C_G for key in keys], len(keys_C_G[0]), first
        self.stops = torch.tensor(vlm.stop_ids, device=vlm.device)
        self.active = torch.arange(len(keys), device=vlm.device)
        self.rows_per_clip = 1 if vlm.shares_prefix else self.group
        self.row = self.active * self.rows_per_clip // self.group
        self.slot = torch.zeros_like(self.active)
        self.temperature = torch.tensor([*temperature_G], dtype=torch.float64, device=vlm.device).repeat(len(keys_C_G))
        self.pad = vlm.tokenizer.pad_token_id
        self.ids: list[list[int]] = [[] for _ in keys]
        self.logprobs: list[list[float]] = [[] for _ in keys]
        self.ended = [False] * len(keys)
        self.keys, self.max_tokens = keys, max_tokens
        self._uniform: torch.Tensor | None = None
        self.confidence: list[float | None] = [None] * len(keys)
        self.quick_tokens: list[int | None] = [None] * len(keys)
        self.thought: list[bool | None] = [None] * len(keys)
        self.probability: list[float | None] = [None] * len(keys)
        self.quick_texts: dict[int, str] = {}
        self.closing: dict[int, Iterator[int]] = {}  # by trace whose thought is closed, what is still to come of that

    def begin(self, mask: torch.Tensor, last: torch.Tensor) -> None:
        """Prompts: (C, tokens) which of the cached tokens are theirs, and (C,) their last positions."""
        self.mask, self.last = (
            mask.repeat_interleave(self.rows_per_clip, 0)[:, None],
            last.repeat_interleave(self.rows_per_clip),
        )

    def place(self, trace: int) -> tuple[int, int]:
        """Clip and sample, as the caller numbers them."""
        return self.first[0] + trace // self.group, self.first[1] + trace % self.group

    def draw(self, logits: torch.Tensor, step: int, top_p: float, vlm: VLM) -> torch.Tensor:
        """(A,) the next token of each active trace, by the inverse of the cumulative distribution of its slot."""
        tokens, logprobs = torch.empty_like(self.active), logits.new_empty(len(self.active), dtype=torch.float32)
        for temperature in sorted(set(self.temperature.tolist())):
            subset = (self.temperature[self.active] == temperature).nonzero()[:, 0]
            if len(subset):
                tokens[subset], logprobs[subset] = self._draw_at(logits, subset, step, temperature, top_p, vlm)
        for trace, value in zip(self.active.tolist(), logprobs.tolist()):
            self.logprobs[trace].append(value)
        return tokens

    def _draw_at(
        self, logits: torch.Tensor, subset: torch.Tensor, step: int, temperature: float, top_p: float, vlm: VLM
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next tokens of these active traces, one temperature for all, and their log-probabilities."""
        slots, place = (self.row[subset] * logits.shape[1] + self.slot[subset]).unique(return_inverse=True)
        logprobs = torch.log_softmax(logits.flatten(0, 1)[slots].float() / (temperature or 1.0), -1)
        scores = logprobs.clone()
        scores[:, vlm.silenced] = -torch.inf  # a sampled vision mark would be taken for a second clip in the loss
        if temperature == 0:
            tokens = scores.argmax(-1)[place]
        else:
            if self._uniform is None:
                self._uniform = torch.tensor(
                    np.stack([stream(key, self.max_tokens) for key in self.keys]), device=logits.device
                )
            probs = scores.softmax(-1).double()
            if top_p < 1:
                ranked, order = probs.sort(-1, descending=True)
                probs = probs.scatter(-1, order, torch.where(ranked.cumsum(-1) - ranked < top_p, ranked, 0.0))
            # Each trace reads its own number off the cumulative distribution of its slot.
            cumulative = probs.cumsum(-1)[place]  # (traces, V)
            levels = self._uniform[self.active[subset], step] * cumulative[:, -1]
            tokens = torch.searchsorted(cumulative, levels[:, None], right=True)[:, 0]
            tokens = tokens.clamp(max=probs.shape[-1] - 1)
        return tokens, logprobs[place, tokens]

    def close_by(self, budget: Budget, tokens: torch.Tensor, vlm: VLM) -> torch.Tensor:
        """(A,) the tokens just drawn, with those of the budget in place of some."""
        tokens = tokens.tolist()
        for place, trace in enumerate(self.active.tolist()):
            if trace not in self.closing and len(self.ids[trace]) >= budget.tokens:
                state = budget.state(vlm.tokenizer.decode(self.ids[trace], skip_special_tokens=True))
                if state is not False:
                    self.closing[trace] = iter(budget.ids if state else ())
            forced = next(self.closing.get(trace, iter(())), None)
            if forced is not None:
                tokens[place], self.logprobs[trace][-1] = forced, 0.0
        return torch.tensor(tokens, device=self.active.device)

    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Takes the tokens in; (A,) which of the traces that were active continue."""
        ends = torch.isin(tokens, self.stops)
        for trace, token, end in zip(self.active.tolist(), tokens.tolist(), ends.tolist()):
            self.ids[trace].append(token)
            self.ended[trace] = end
        self._keep(~ends)
        return ~ends

    def stop_by(self, gate: Gate, vlm: VLM) -> torch.Tensor:
        """Asks the gate about quick answers that were just closed; (A,) which of the active traces continue."""
        active, closed = self.active.tolist(), {}
        for trace in active:
            if self.thought[trace] is not None:
                continue
            if answer := gate.read(self.ids[trace], self.logprobs[trace], vlm.tokenizer):
                closed[trace] = Quick(*self.place(trace), *answer)
        for trace, quick in closed.items():
            self.confidence[trace], self.quick_tokens[trace] = quick.confidence, len(self.ids[trace])
            self.thought[trace] = True
        answers = {trace: quick for trace, quick in closed.items() if quick.confidence >= 0}
        if answers and gate.judged:
            for trace, probability in zip(answers, gate.judged(list(answers.values())), strict=True):
                self.probability[trace] = float(probability)
        for trace, quick in answers.items():
            certainty = self.probability[trace] if gate.judged else quick.confidence
            if certainty >= gate.threshold:
                self.thought[trace], self.ended[trace], self.quick_texts[trace] = False, True, quick.text
        continues = torch.tensor(
            [not self.ended[trace] for trace in active], dtype=torch.bool, device=self.active.device
        )
        self._keep(continues)
        return continues

    def _keep(self, mask_A: torch.Tensor) -> None:
        self.active, self.row, self.slot = self.active[mask_A], self.row[mask_A], self.slot[mask_A]

    def drop_finished_rows(self) -> torch.Tensor | None:
        """The rows of the batch that stay, where some have no trace left; None where all stay."""
        rows, row = self.row.unique(return_inverse=True)
        if len(rows) == len(self.last):
            return None
        self.row, self.mask, self.last = row, self.mask[rows], self.last[rows]
        return rows

    def branch(self, tokens: torch.Tensor) -> torch.Tensor:
        """(rows, slots) the next token of each slot. Traces of a slot that drew the same token stay together."""
        branches, member = torch.stack([self.row, self.slot, tokens], 1).unique(dim=0, return_inverse=True)
        row, parent, token = branches.unbind(1)
        counts = row.bincount(minlength=len(self.last))
        slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        slots = int(counts.max())
        next_tokens = token.new_full((len(counts), slots), self.pad)
        next_tokens[row, slot] = token
        # A slot sees what its parent saw, and itself; an empty one (a row with fewer branches) itself alone.
        mask = self.mask.new_zeros(len(counts), slots, self.mask.shape[2])
        mask[row, slot] = self.mask[row, parent]
        own = torch.eye(slots, dtype=torch.bool, device=row.device).expand(len(counts), -1, -1)
        self.mask = torch.cat([mask, own], 2)
        self.slot = slot[member]
        return next_tokens

    def attention_mask(self) -> torch.Tensor:
        """(rows, tokens) where every row has one slot, which any attention takes; else (rows, 1, slots, tokens)."""
        return self.mask[:, 0].long() if self.mask.shape[1] == 1 else self.mask[:, None]

    def position_ids(self, step: int) -> torch.Tensor:
        """(3, rows, slots): the prompt's last position, then one further for every token."""
        return (self.last + 1 + step)[None, :, None].expand(3, -1, self.mask.shape[1])

    def sample(self, trace: int, vlm: VLM, milliseconds: float) -> Sample:
        ids = self.ids[trace]
        text = self.quick_texts.get(trace) or vlm.tokenizer.decode(ids, skip_special_tokens=True)
        quick = self.confidence[trace], self.quick_tokens[trace], self.thought[trace], self.probability[trace]
        return Sample(text, ids, self.logprobs[trace], not self.ended[trace], milliseconds, *quick)
