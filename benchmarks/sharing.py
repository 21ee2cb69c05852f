"""What is computed once is exact and cheaper: seconds of the plain path over seconds of ours, same work, same run.

Four claims, each with the passes that were counted beside its ratio (a ratio above 1 means that sharing is faster):

- sampling   G traces a clip: TRL's way (the prompt and its pixels G times, so tower and prefill run G times) against
             one prefill of cached features, and a row for each trace
- scoring    K labels a clip: one forward pass a label against one over the tree of prompt and labels
- loss       forward and backward over G traces a clip: prompt and trace in every row, as TRL does, against the tree of
             prompt and traces; both from cached features, with TRL's fused head. The traces are unlike: what true
             traces have in common comes on top
- features   the tower each time against features from memory, in a forward pass over the prompt

The same traces, sums, logits and gradients are asserted before anything is timed; sampling is greedy and never stops
early, so both sides write the same tokens. Medians over alternating repeats, one thread. A tiny model of random
weights: the ratios of a 7B differ (its tower is 10-14 % of a step, and long traces eat the gain of a shared prefill).

Run it:  python benchmarks/sharing.py [--group 8] [--tokens 32] [--repeats 7] [--family embedded] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the tiny checkpoints stand there
import tiny

from deepintuit.config import ModelConfig
from deepintuit.labels import LabelSet
from deepintuit.vlm import VLM, label_logprobs, sample_groups
from deepintuit.vlm.clips import metadata_of
from deepintuit.vlm.prefix import pack

PROMPT = "What happens in the clip? Think first, then answer with one of the labels."
LABELS = LabelSet.of(
    "events", ["theft", "delivery", "stray animal", "routine", "a fall", "nobody", "vandalism", "a visitor"]
)


class Counted:
    """Tower rows (clips) and language-model tokens that went through the model while this was open."""

    def __init__(self, vlm: VLM):
        self.model, self.towers, self.tokens = vlm.core.model, 0, 0

    def _language(self, module, args, kwargs):
        rows, length = kwargs["inputs_embeds"].shape[:2]
        self.tokens += rows * length

    def _tower(self, module, args, kwargs):
        self.towers += len(kwargs["grid_thw"])

    def __enter__(self) -> Counted:
        self.hooks = [
            self.model.language_model.register_forward_pre_hook(self._language, with_kwargs=True),
            self.model.visual.register_forward_pre_hook(self._tower, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


def timed(vlm: VLM, calls: dict[str, Callable], repeats: int) -> dict[str, tuple[float, int, int]]:
    """(median seconds, tower passes, tokens) of each call; the calls take turns."""
    counts, seconds = {}, {name: [] for name in calls}
    for name, call in calls.items():  # also warms up
        with Counted(vlm) as counted:
            call()
        counts[name] = (counted.towers, counted.tokens)
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if vlm.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: (statistics.median(seconds[name]), *counts[name]) for name in calls}


class Work:
    """The same clips both ways: encoded, and as the processor's pixels."""

    def __init__(self, vlm: VLM, paths: dict[str, Path]):
        self.vlm, self.names = vlm, list(paths)
        sizes = {name: (tiny.CLIPS[name][2], tiny.CLIPS[name][1]) for name in paths}
        self.clips = [vlm.encoder.encode(name, path, *sizes[name]) for name, path in paths.items()]
        self.frames = [vlm.encoder.frames(name, path, *sizes[name]) for name, path in paths.items()]

    def pixels(self, copies: int = 1) -> dict:
        """What the processor makes of the clips, each `copies` times, padded on the left as TRL does."""
        content = [{"type": "video"}, {"type": "text", "text": PROMPT}]
        text = self.vlm.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        frames = [f for f in self.frames for _ in range(copies)]
        return self.vlm.processor(
            text=[text] * len(frames),
            videos=[torch.from_numpy(f.pixels_T_H_W_3).permute(0, 3, 1, 2) for f in frames],
            video_metadata=[metadata_of(f) for f in frames],
            do_resize=False,
            do_sample_frames=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.vlm.device)


@torch.inference_mode()
def sampling(work: Work, group: int, tokens: int, repeats: int) -> dict:
    vlm, stops = work.vlm, work.vlm.stop_ids
    vlm.shares_prefix = False  # or greedy traces, all alike, would be one row
    vlm.silenced = sorted({*vlm.silenced, *stops})  # nobody stops early
    inputs = work.pixels(group)
    prompts, keys = [PROMPT] * len(work.clips), [[str(g) for g in range(group)]] * len(work.clips)

    def plain():
        vlm.core.model.rope_deltas = None
        out = vlm.model.generate(
            **inputs, do_sample=False, max_new_tokens=tokens, suppress_tokens=vlm.silenced, repetition_penalty=1.0
        )
        return out[:, inputs["input_ids"].shape[1] :].tolist()

    def shared():
        groups = sample_groups(vlm, work.clips, prompts, keys, temperature=0, max_tokens=tokens)
        return [sample.token_ids for samples in groups for sample in samples]

    assert plain() == shared(), "the two paths write other traces"
    found = timed(vlm, {"plain": plain, "shared": shared}, repeats)
    vlm.shares_prefix = True
    vlm.silenced = [token for token in vlm.silenced if token not in stops]
    return found


@torch.inference_mode()
def scoring(work: Work, repeats: int) -> dict:
    vlm, prompts = work.vlm, [PROMPT] * len(work.clips)
    rows = [vlm.prompt_ids(clip, PROMPT) for clip in work.clips]

    def plain():
        """One forward pass a label, over prompt and label, from cached features like the other side."""
        columns = []
        for label in LABELS:
            target = vlm.target_ids(label)
            inputs = vlm.inputs(work.clips, [row + target for row in rows], side="left")
            logprobs = torch.log_softmax(vlm.model(**inputs).logits[:, -len(target) - 1 : -1].float(), -1)
            wanted = torch.tensor(target, device=vlm.device).expand(len(rows), -1)
            columns.append(logprobs.gather(-1, wanted[..., None])[..., 0].sum(1))
        return torch.stack(columns, 1).cpu()

    def shared():
        return label_logprobs(vlm, work.clips, prompts, LABELS)

    torch.testing.assert_close(plain(), shared(), rtol=0, atol=1e-3)
    return timed(vlm, {"plain": plain, "shared": shared}, repeats)


def loss(work: Work, group: int, tokens: int, repeats: int) -> dict:
    """G written rows a clip, random tokens: what they say does not change the work."""
    vlm, model = work.vlm, work.vlm.model
    model.train()
    model.model.language_model.requires_grad_(True)
    rows, device = [vlm.prompt_ids(clip, PROMPT) for clip in work.clips], vlm.device
    owners = torch.arange(len(rows), device=device).repeat_interleave(group)
    generator = torch.Generator().manual_seed(0)
    words = torch.tensor([i for i in range(50, 250) if i not in vlm.silenced])
    written = words[torch.randint(len(words), (len(owners), tokens), generator=generator)].to(device)
    prompts = vlm.inputs(work.clips, rows, side="left")
    prompt, mask = prompts["input_ids"], prompts["attention_mask"]
    ids, seen = torch.cat([prompt[owners], written], 1), torch.cat([mask[owners], torch.ones_like(written)], 1)
    labels = ids.clone()
    labels[:, :-tokens] = -100

    def gradient(logps: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        logps.mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def plain():
        inputs = vlm.forward_inputs([work.clips[i] for i in owners.tolist()], ids, seen)
        return gradient(model(**inputs, labels=labels, fused_lm_head=True).log_probs[:, -tokens:])

    def shared():
        chosen = owners.tolist()
        whole = [rows[owner] + trace for owner, trace in zip(chosen, written.tolist())]
        packed = pack(vlm, [work.clips[i] for i in chosen], whole, [len(rows[i]) for i in chosen])
        logps = model(**packed.inputs, fused_lm_head=True).log_probs.flatten()
        return gradient(torch.stack([logps[places] for places in packed.places]))

    first, second = plain(), shared()
    assert (first - second).norm() < 1e-4 * first.norm(), "the two paths give other gradients"
    found = timed(vlm, {"plain": plain, "shared": shared}, repeats)
    model.eval().requires_grad_(False)
    return found


@torch.inference_mode()
def features(work: Work, repeats: int) -> dict:
    vlm, inputs = work.vlm, work.pixels()
    rows = [vlm.prompt_ids(clip, PROMPT) for clip in work.clips]

    def plain():
        return vlm.model(**inputs, logits_to_keep=1).logits.cpu()

    def shared():
        return vlm.model(**vlm.inputs(work.clips, rows, side="left"), logits_to_keep=1).logits.cpu()

    torch.testing.assert_close(plain(), shared(), rtol=0, atol=1e-3)
    return timed(vlm, {"plain": plain, "shared": shared}, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--family", choices=tiny.FAMILIES, default="embedded")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        family = tiny.write_family(args.family, Path(scratch) / "model")
        paths = tiny.write_clips(Path(scratch))
        # float32 wherever it runs: the asserts compare two paths, and bfloat16 alone would tell them apart.
        settings = ModelConfig(path=str(family.folder), device=args.device, dtype="float32")
        vlm = VLM.load(settings, family.video)
        work = Work(vlm, {name: paths[name] for name in (tiny.WIDE, tiny.TALL)})
        lengths = [len(vlm.prompt_ids(clip, PROMPT)) for clip in work.clips]
        claims = {
            f"sampling, {args.group} traces of {args.tokens} tokens": sampling(
                work, args.group, args.tokens, args.repeats
            ),
            f"scoring {len(LABELS)} labels": scoring(work, args.repeats),
            "features from memory": features(work, args.repeats),
            f"loss, {args.group} traces of {args.tokens} tokens": loss(work, args.group, args.tokens, args.repeats),
        }
    print(f"{args.family}, {len(lengths)} clips, prompts of {lengths} tokens, median of {args.repeats}, {vlm.device}")
    print(f"{'':36}{'plain s':>10}{'shared s':>10}{'ratio':>8}   tower passes   tokens through the model")
    for name, found in claims.items():
        (plain, *before), (shared, *after) = found["plain"], found["shared"]
        print(
            f"{name:36}{plain:10.4f}{shared:10.4f}{plain / shared:7.2f}x{before[0]:7d} → {after[0]:<5d}"
            f"{before[1]:8d} → {after[1]}"
        )


if __name__ == "__main__":
    main()
