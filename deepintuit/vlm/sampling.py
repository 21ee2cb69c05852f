"""Sample traces: one prefill a clip, and every token once for all traces of the clip that are still alike.

The traces of a group begin as one and part where they draw different tokens. A clip is one row of the batch, its cache
holds the tokens of all its traces behind one prompt, and a mask says which are whose: nothing is copied for a trace,
nor for a step. Every trace draws from a random stream of its own, keyed by (seed, clip, sample): what a trace says does
not depend on which others are sampled beside it, nor on where a killed run resumed.

Left out on purpose: beam search, repetition penalties.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from deepintuit.trace import Segment
from deepintuit.vlm.clips import EncodedClip
from deepintuit.vlm.model import VLM
from deepintuit.vlm.precision import evaluating


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

    A trace that goes on does so from the same cache: its tokens are those that it would have had without a gate.
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
        chosen = (inside[:, 0] < last) & (inside[:, 1] > first)
        inside_box, text = text[first:last].strip(), text[: last + len(self.quick.close)]
        if inside_box in ("", self.quick.fallback) or self.quick.open in inside_box or not chosen.any():
            return text, -1.0
        return text, float(np.exp(np.mean(np.asarray(logprobs)[chosen])))


def character_offsets(tokenizer, ids: Sequence[int]) -> np.ndarray:
    """(T, 2): first and last + 1 character of each token in the decoded text, special tokens left out of it.

    Tokens that share a character of several bytes share its range; a special token has none (start = end).
    """
    offsets = np.zeros((len(ids), 2), np.int64)
    begun, at = 0, 0
    for position in range(len(ids)):
        piece = tokenizer.decode(ids[begun : position + 1], skip_special_tokens=True)
        if piece.endswith("\ufffd") and position + 1 < len(ids) and position - begun < 3:
            continue  # the middle of a character, of four bytes at most
        offsets[begun : position + 1] = at, at + len(piece)
        begun, at = position + 1, at + len(piece)
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
    temperature: float,
    max_tokens: int,
    top_p: float = 1.0,
    on_token: Callable[[int, int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    gate: Gate | None = None,
) -> list[list[Sample]]:
    """G traces for each of C clips; `keys_C_G` names each trace's random stream. Temperature 0 is greedy.

    `on_token(clip, sample, token_id)` is called as tokens come; `stop()` true ends the work after the current token,
    leaving traces truncated. `gate` may end a trace after its quick answer.
    """
    started = time.perf_counter()
    with evaluating(vlm.model):
        rows = [vlm.prompt_ids(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        inputs = vlm.inputs(clips, rows, side="left")
        cache = _cache(vlm)
        out = vlm.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        group = len(keys_C_G[0])
        state = _Batch(vlm, inputs, group, [key for keys in keys_C_G for key in keys], max_tokens)
        logits = out.logits[:, -1:]
        if not vlm.shares_prefix:
            cache.reorder_cache(torch.arange(len(rows), device=vlm.device).repeat_interleave(group))
            logits = logits.repeat_interleave(group, 0)
        for step in range(max_tokens):
            tokens = state.choose(logits, step, temperature, top_p, vlm)
            if on_token:
                for row, token in zip(state.alive.tolist(), tokens.tolist()):
                    on_token(row // group, row % group, token)
            tokens = tokens[state.append(tokens)]
            if gate:
                tokens = tokens[state.undecided(gate, group, vlm)]
            if not len(state.alive) or step + 1 == max_tokens or (stop and stop()):
                break
            left = state.leave()
            if left is not None:
                cache.reorder_cache(left)
            logits = vlm.model(
                input_ids=state.part(tokens),
                attention_mask=state.mask(),
                position_ids=state.positions(step),
                past_key_values=cache,
                use_cache=True,
            ).logits
    spent = (time.perf_counter() - started) * 1000 / len(state.ids)
    samples = [state.sample(row, vlm, spent) for row in range(len(state.ids))]
    return [samples[start : start + group] for start in range(0, len(samples), group)]


def _cache(vlm: VLM) -> Cache:
    """A cache whose layers are what the model's own are: keys and values, those of a window, or a state."""
    cache = DynamicCache(config=vlm.core.config)
    cache.layers = [_Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _Roomy(DynamicLayer):
    """Keys and values in rooms that double when they are full: a step writes its own tokens and copies no others."""

    room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            return super().update(key_states, value_states)
        held, filled = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        if self.room is None or self.room[0].shape[2] < filled:
            old = self.keys, self.values
            self.room = tuple(part.new_empty(*part.shape[:2], 2 * filled, part.shape[3]) for part in old)
            for room, part in zip(self.room, old):
                room[:, :, :held] = part
        for room, new in zip(self.room, (key_states, value_states)):
            room[:, :, held:filled] = new
        self.keys, self.values = (room[:, :, :filled] for room in self.room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.room = None


class _Batch:
    """Traces still being written: what they hold so far, where they stand in the batch, their random numbers.

    A row of the batch is a clip (a trace, where nothing is shared); those of its traces that are alike share a seat.
    """

    def __init__(self, vlm: VLM, inputs: dict, group: int, keys: Sequence[str], max_tokens: int):
        self.stops = torch.tensor(vlm.stop_ids, device=vlm.device)
        self.alive = torch.arange(len(keys), device=vlm.device)
        each = 1 if vlm.shares_prefix else group
        self.row = self.alive * each // group
        self.seat = torch.zeros_like(self.alive)
        self.seen = inputs["attention_mask"].bool().repeat_interleave(each, 0)[:, None]  # by each row's seats
        self.last = inputs["position_ids"][:, :, -1].max(0).values.repeat_interleave(each)
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
        self.ended_with: dict[int, str] = {}

    def choose(self, logits: torch.Tensor, step: int, temperature: float, top_p: float, vlm: VLM) -> torch.Tensor:
        """The next token of every trace that is alive. Draws by the inverse of the cumulative distribution."""
        place = self.row * logits.shape[1] + self.seat
        logprobs = torch.log_softmax(logits.flatten(0, 1).float() / (temperature or 1.0), -1)
        allowed = logprobs.clone()
        allowed[:, vlm.silenced] = -torch.inf  # a sampled vision mark would be taken for a second clip in the loss
        if temperature == 0:
            tokens = allowed.argmax(-1)[place]
        else:
            if self._uniform is None:
                self._uniform = torch.tensor(
                    np.stack([stream(key, self.max_tokens) for key in self.keys]), device=logits.device
                )
            probs = allowed.softmax(-1).double()
            if top_p < 1:
                ranked, order = probs.sort(-1, descending=True)
                probs = probs.scatter(-1, order, torch.where(ranked.cumsum(-1) - ranked < top_p, ranked, 0.0))
            heights = probs.cumsum(-1)[place]
            tokens = torch.searchsorted(
                heights, (self._uniform[self.alive, step] * heights[:, -1])[:, None], right=True
            )[:, 0]
            tokens = tokens.clamp(max=probs.shape[-1] - 1)
        chosen = logprobs[place, tokens].tolist()
        for row, value in zip(self.alive.tolist(), chosen):
            self.logprobs[row].append(value)
        return tokens

    def append(self, tokens: torch.Tensor) -> torch.Tensor:
        """Take the tokens in; returns which of the traces that were alive go on."""
        ends = torch.isin(tokens, self.stops)
        for row, token, end in zip(self.alive.tolist(), tokens.tolist(), ends.tolist()):
            self.ids[row].append(token)
            self.ended[row] = end
        self._keep(~ends)
        return ~ends

    def undecided(self, gate: Gate, group: int, vlm: VLM) -> torch.Tensor:
        """Ask the gate about quick answers that were just closed; returns which of the traces alive go on."""
        rows = self.alive.tolist()
        closed = {}
        for row in rows:
            if self.thought[row] is None and (read := gate.read(self.ids[row], self.logprobs[row], vlm.tokenizer)):
                closed[row] = Quick(row // group, row % group, *read)
        for row, quick in closed.items():
            self.confidence[row], self.quick_tokens[row] = quick.confidence, len(self.ids[row])
            self.thought[row] = True
        answered = {row: quick for row, quick in closed.items() if quick.confidence >= 0}
        if answered and gate.judged:
            for row, probability in zip(answered, gate.judged(list(answered.values())), strict=True):
                self.probability[row] = float(probability)
        for row, quick in answered.items():
            sure = self.probability[row] if gate.judged else quick.confidence
            if sure >= gate.threshold:
                self.thought[row], self.ended[row], self.ended_with[row] = False, True, quick.text
        going = torch.tensor([not self.ended[row] for row in rows], dtype=torch.bool, device=self.alive.device)
        self._keep(going)
        return going

    def _keep(self, going: torch.Tensor) -> None:
        self.alive, self.row, self.seat = self.alive[going], self.row[going], self.seat[going]

    def leave(self) -> torch.Tensor | None:
        """The rows of the batch that stay, where some have no trace left; None where all stay."""
        rows, row = self.row.unique(return_inverse=True)
        if len(rows) == len(self.last):
            return None
        self.row, self.seen, self.last = row, self.seen[rows], self.last[rows]
        return rows

    def part(self, tokens: torch.Tensor) -> torch.Tensor:
        """(rows, seats): the next token of each seat. Traces of a seat that drew the same one stay together."""
        drawn, member = torch.stack([self.row, self.seat, tokens], 1).unique(dim=0, return_inverse=True)
        row, parent, token = drawn.unbind(1)
        counts = row.bincount(minlength=len(self.last))
        seat = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        seats = int(counts.max())
        next_tokens = token.new_full((len(counts), seats), self.pad)
        next_tokens[row, seat] = token
        # A seat sees what its parent saw, and itself; one that nobody takes sees itself alone.
        seen = self.seen.new_zeros(len(counts), seats, self.seen.shape[2])
        seen[row, seat] = self.seen[row, parent]
        own = torch.eye(seats, dtype=torch.bool, device=row.device).expand(len(counts), -1, -1)
        self.seen = torch.cat([seen, own], 2)
        self.seat = seat[member]
        return next_tokens

    def mask(self) -> torch.Tensor:
        """(rows, tokens) where every row has one seat, which any attention takes; else (rows, 1, seats, tokens)."""
        return self.seen[:, 0].long() if self.seen.shape[1] == 1 else self.seen[:, None]

    def positions(self, step: int) -> torch.Tensor:
        """(3, rows, seats): the prompt's last position, then one further for every token."""
        return (self.last + 1 + step)[None, :, None].expand(3, -1, self.seen.shape[1])

    def sample(self, row: int, vlm: VLM, milliseconds: float) -> Sample:
        ids = self.ids[row]
        text = self.ended_with.get(row) or vlm.tokenizer.decode(ids, skip_special_tokens=True)
        quick = self.confidence[row], self.quick_tokens[row], self.thought[row], self.probability[row]
        return Sample(text, ids, self.logprobs[row], not self.ended[row], milliseconds, *quick)
