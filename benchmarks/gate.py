"""Two-step inference spends fewer tokens and less time than full generation, at the same output where it thinks.

Every clip gets a quick answer; the gate ends some traces there, the others think on from the same cache, as many
tokens as asked (VideoAuto-R1). Full generation is without a gate: all clips think. For each think rate the ratio of
seconds, full over two steps, with the tokens written; all clips in one batch, which takes as long as its longest trace,
and one clip at a time, as somebody asks who waits.

Before anything is timed it is asserted that a trace which thinks on has the tokens and log-probabilities that it has
without a gate, whoever left the batch beside it; that one which stops is the beginning of its full trace; and that one
forward pass over prompt and finished trace gives the continuation the same log-probabilities.

A tiny model of random weights: the quick answer is forced upon it, what follows is its own and never ends early. Which
clips stop is dealt out, so a ratio says what a think rate saves, not which rate a model reaches at equal accuracy
(benchmarks/systems.py thinking).

Run it:  python benchmarks/gate.py [--clips 8] [--tokens 64] [--rates 0 0.5 1] [--repeats 5] [--family embedded]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from measure import Counted, Row, beside, chosen, in_turns, options, report

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the tiny checkpoints stand there
import tiny

from deepintuit.config import ModelConfig
from deepintuit.trace import GRAMMARS
from deepintuit.vlm import VLM, EncodedClip, Gate, Sample, sample_groups, token_logprobs

QUICK = GRAMMARS["answer-think-answer"].quick
PROMPT = "What happens in the clip? Answer at once, then think, then answer again."


class Forced:
    """While open, the model begins every trace with these tokens, and none of its traces ends."""

    def __init__(self, vlm: VLM, ids: Sequence[int]):
        self.vlm, self.ids, self.silenced = vlm, ids, vlm.silenced
        self.step = 0

    def _logits(self, module, inputs, logits):
        if self.step < len(self.ids):
            logits = logits.clone()
            logits[..., self.ids[self.step]] += 1e4
        self.step += 1
        return logits

    def __enter__(self) -> Forced:
        self.vlm.silenced = sorted({*self.silenced, *self.vlm.stop_ids})
        self.hook = self.vlm.core.get_output_embeddings().register_forward_hook(self._logits)
        return self

    def __exit__(self, *_) -> None:
        self.hook.remove()
        self.vlm.silenced = self.silenced


class Work:
    """Clips with their prompts, written about with and without a gate; the same traces each time."""

    def __init__(self, vlm: VLM, clips: Sequence[EncodedClip], quick: str, tokens: int):
        self.vlm, self.clips, self.tokens = vlm, list(clips), tokens
        self.quick_ids = vlm.tokenizer.encode(quick, add_special_tokens=False)

    def write(self, thinks: set[int] | None = None, batch: int = 0) -> list[Sample]:
        """The traces, `batch` clips at a time (0: all together); with `thinks` only those clips think."""
        found: list[Sample] = []
        batch = batch or len(self.clips)
        for start in range(0, len(self.clips), batch):
            part = self.clips[start : start + batch]
            keys = [[str(start + place)] for place in range(len(part))]
            with Forced(self.vlm, self.quick_ids):
                groups = sample_groups(
                    self.vlm, part, [PROMPT] * len(part), keys, temperature=1, max_tokens=self.tokens,
                    gate=None if thinks is None else _gate(thinks, start),
                )  # fmt: skip
            found += [sample for [sample] in groups]
        return found

    def assert_same(self, full: Sequence[Sample], gated: Sequence[Sample]) -> None:
        for whole, one in zip(full, gated, strict=True):
            n = len(one.token_ids)
            assert one.token_ids == whole.token_ids[:n], "the gate changed what is written"
            assert n == (len(self.quick_ids) if one.thought is False else self.tokens), "a trace ended elsewhere"
            far = (torch.tensor(one.logprobs_T) - torch.tensor(whole.logprobs_T[:n])).abs().max()
            assert far < 1e-4, f"log-probabilities differ by {far:.2g}"

    @torch.inference_mode()
    def assert_one_pass(self, full: Sequence[Sample]) -> None:
        rows, start = [self.vlm.prompt_ids(clip, PROMPT) for clip in self.clips], len(self.quick_ids)
        told = token_logprobs(self.vlm, self.clips, rows, [sample.token_ids for sample in full])
        for one_pass, sample in zip(told, full, strict=True):
            far = (one_pass[start:].cpu() - torch.tensor(sample.logprobs_T[start:])).abs().max()
            assert far < 1e-3, f"one pass gives log-probabilities that differ by {far:.2g}"


def _gate(thinks: set[int], start: int) -> Gate:
    """Lets the clips `thinks` think, of a batch that begins with clip `start`."""
    return Gate(QUICK, 1.0, lambda answers: [float(start + answer.clip not in thinks) for answer in answers])


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of a trace that thinks, its quick answer included")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="shares of clips that think")
    parser.add_argument("--family", choices=tiny.FAMILIES, default="embedded")
    parser.add_argument("--device", default="cpu")
    given = chosen(parser)
    with tempfile.TemporaryDirectory() as scratch:
        family = tiny.write_family(given.family, Path(scratch) / "model")
        paths = tiny.write_clips(Path(scratch))
        # float32 wherever it runs: the asserts compare two paths, and bfloat16 alone would tell them apart.
        vlm = VLM.load(ModelConfig(path=str(family.folder), device=given.device, dtype="float32"), family.video)
        clips = [
            vlm.encoder.encode(name, paths[name], tiny.CLIPS[name][2], tiny.CLIPS[name][1])
            for name in (tiny.WIDE, tiny.TALL)
        ]
        many = [clips[number % len(clips)] for number in range(given.clips)]
        work = Work(vlm, many, f"{QUICK.open}theft{QUICK.close}", given.tokens)
    full = work.write()
    work.assert_one_pass(full)
    calls, counts, written = {}, {}, {}
    for rate in (None, *given.rates):
        chosen_clips = 0 if rate is None else round(rate * given.clips)
        thinks = None if rate is None else {number * given.clips // chosen_clips for number in range(chosen_clips)}
        for batch in (0, 1):
            with Counted() as counts[rate, batch]:
                found = work.write(thinks, batch)
            work.assert_same(full, found)
            calls[rate, batch] = partial(work.write, thinks, batch)
            written[rate, batch] = sum(len(sample.token_ids) for sample in found)
    spent = in_turns(calls, given.repeats)
    rows = []
    for rate in given.rates:
        for batch, how in enumerate(("one batch", "one by one")):
            whole, gated = (None, batch), (rate, batch)
            counted = beside(counts[whole], counts[gated]) | {"tokens written": (written[whole], written[gated])}
            del counted["tower passes"]
            claim = f"two-step inference, {round(rate * given.clips)} of {given.clips} clips think, {how}"
            rows.append(Row(claim, spent[gated], spent[whole], counted))
    lengths = " and ".join(map(str, sorted({len(vlm.prompt_ids(clip, PROMPT)) for clip in many})))
    report(
        given,
        rows,
        f"prompts of {lengths} tokens, quick answer {len(work.quick_ids)} tokens, thinking up to "
        f"{given.tokens}, random weights, {vlm.device}",
    )


if __name__ == "__main__":
    main()
