"""The embedded backbone: a Qwen2.5-VL of about 1.4 million parameters that perceives the home-camera world and knows no
label rule.

It is the same class as the real thing, with its own small tokenizer, so that every line that runs on a laptop is the
line that runs for 7B. Trained on captions and single-fact questions about the `base` part of the world only. The
package ships what this makes and none of this. Rebuild it, from the root of the repository (its three phases took about
9, 36 and 3 minutes on two busy cores, after rendering):

    python -m deepintuit_homecam.workshop.backbone --shards /some/scratch/folder --out homecam/model
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.video_utils import VideoMetadata

from deepintuit.metrics import wilson
from deepintuit.prompts import label_prompt, reasoner_prompt
from deepintuit_homecam import MODEL
from deepintuit_homecam.scene import ACTORS, LIGHTS, PLACES
from deepintuit_homecam.teacher import write_trace
from deepintuit_homecam.witness import event, observation, read_observation
from deepintuit_homecam.workshop.captions import SHARD, read_shard, write_shard
from deepintuit_homecam.workshop.lessons import CAPTION_PROMPT, fact_task, logic_task
from deepintuit_homecam.world import LABELS, Facts, any_facts

VOCABULARY = 1024
_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_processor() -> Qwen2_5_VLProcessor:
    """A byte-level BPE tokenizer trained on the words of the world and of the prompts, and the usual Qwen video
    processor at patch 8."""
    rng = random.Random(0)
    corpus = []
    for seed in range(4000):
        facts = any_facts(rng)
        corpus += [f"{observation(facts, rng)} {event(facts)}", write_trace(facts, seed)["text"]]
        corpus += [prompt for prompt, _ in (fact_task(facts, rng) for _ in range(2))]
        corpus += [reasoner_prompt(LABELS, "think-answer", "brief")] * 3 + [label_prompt(LABELS, "brief")]
        corpus += [*LABELS.labels, *(f" {label}" for label in LABELS.labels)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    pixels = {"shortest_edge": 32 * 32, "longest_edge": 64 * 48}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=8, temporal_patch_size=2, merge_size=2, size=dict(pixels)),
        video_processor=Qwen2VLVideoProcessor(
            patch_size=8,
            temporal_patch_size=2,
            merge_size=2,
            size=dict(pixels),
            do_sample_frames=False,
            cap_pixels_per_frame=False,
        ),
        tokenizer=fast,
        chat_template=_TEMPLATE,
    )


def build_model(processor: Qwen2_5_VLProcessor, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(seed)
    ids = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(processor.tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.04,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            bos_token_id=None,
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|endoftext|>"),
        ),
        vision_config=dict(
            depth=3,
            hidden_size=96,
            intermediate_size=256,
            num_heads=3,
            patch_size=8,
            spatial_merge_size=2,
            temporal_patch_size=2,
            tokens_per_second=4,
            window_size=64,
            out_hidden_size=128,
            fullatt_block_indexes=[0, 1, 2],
            initializer_range=0.04,
        ),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    return model


class _Batches:
    """Token and patch tensors for a list of (clip, prompt, target)."""

    def __init__(self, processor: Qwen2_5_VLProcessor, shards: list[Path]):
        self.processor, self.tokenizer = processor, processor.tokenizer
        parts = [read_shard(path) for path in shards]
        self.seconds = np.concatenate([part[1] for part in parts])
        self.facts = [facts for part in parts for facts in part[2]]
        self.patches = torch.cat([self._patchify(pixels) for pixels, _, _ in parts])
        self.grid = torch.tensor([4, 6, 8])

    def _patchify(self, pixels: np.ndarray) -> torch.Tensor:
        videos = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in pixels]
        metadata = [VideoMetadata(total_num_frames=8, fps=4.0, frames_indices=list(range(8)))] * len(videos)
        out = self.processor.video_processor(videos, video_metadata=metadata, do_resize=False, return_tensors="pt")
        return out["pixel_values_videos"].view(len(videos), 192, -1).to(torch.bfloat16)

    def prompt_ids(self, prompt: str) -> list[int]:
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        return self.tokenizer(text.replace("<|video_pad|>", "<|video_pad|>" * 48))["input_ids"]

    def batch(self, indices: list[int], tasks: list[tuple[str, str]], augment: bool) -> dict[str, torch.Tensor]:
        end, pad = self.tokenizer.convert_tokens_to_ids("<|im_end|>"), self.tokenizer.pad_token_id
        rows = [(self.prompt_ids(p), [*self.tokenizer(t)["input_ids"], end]) for p, t in tasks]
        width = max(len(p) + len(t) for p, t in rows)
        ids = torch.full((len(rows), width), pad)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, (prompt, target) in enumerate(rows):
            length = len(prompt) + len(target)
            ids[row, :length] = torch.tensor(prompt + target)
            labels[row, len(prompt) : length] = torch.tensor(target)
            mask[row, :length] = 1
        patches = self.patches[indices].float()
        if augment:
            patches = patches * (0.85 + 0.3 * torch.rand(len(rows), 1, 1)) + 0.2 * torch.randn(len(rows), 1, 1)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "pixel_values_videos": patches.reshape(-1, patches.shape[-1]),
            "video_grid_thw": self.grid.expand(len(rows), 3),
            "second_per_grid_ts": torch.tensor(self.seconds[indices]) / 4,
            "mm_token_type_ids": (ids == self.tokenizer.convert_tokens_to_ids("<|video_pad|>")).int() * 2,
        }


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    out = Path(arguments.out)
    # The tokenizer that ships is kept, so that a rebuild differs in weights alone.
    processor = Qwen2_5_VLProcessor.from_pretrained(out) if (out / "tokenizer.json").exists() else build_processor()
    model = build_model(processor)
    processor.save_pretrained(out)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(processor.tokenizer)}", flush=True
    )
    folder = Path(arguments.shards)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [write_shard(folder, "base", number) for number in range(math.ceil(arguments.clips / SHARD))]
    data = _Batches(processor, shards)
    held_out = _Batches(processor, [write_shard(folder, "test", number) for number in range(2)])
    if arguments.tower_steps:
        teach_tower(model, data, held_out, arguments)
        model.save_pretrained(out, max_shard_size="1GB")
    teach_language(
        model, data, held_out, arguments.steps, arguments.batch, arguments.rate, fact_task, out, arguments.every
    )
    if arguments.logic_steps:
        model.model.visual.requires_grad_(False)
        both = lambda facts, rng: (logic_task if rng.random() < 0.6 else fact_task)(facts, rng)  # noqa: E731
        teach_language(
            model,
            data,
            held_out,
            arguments.logic_steps,
            arguments.batch // 2,
            arguments.rate / 2,
            both,
            out,
            arguments.every,
        )


def measure(arguments: argparse.Namespace) -> None:
    """Perception on 500 clips of the `test` part, into the model's card."""
    out, folder = Path(arguments.out), Path(arguments.shards)
    processor = Qwen2_5_VLProcessor.from_pretrained(out)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(out)
    count = 2 * SHARD
    right = perception(model, _Batches(processor, [write_shard(folder, "test", number) for number in range(2)]), count)
    lines = []
    for name, share in right.items():
        low, high = _wilson(round(share * count), count)
        lines.append(f"| {name} | {100 * share:.1f} | {100 * low:.1f} – {100 * high:.1f} |")
    size = (out / "model.safetensors").stat().st_size / 1e6
    card = (
        (Path(__file__).parent / "card.md")
        .read_text(encoding="utf-8")
        .format(
            parameters=sum(p.numel() for p in model.parameters()),
            vocabulary=len(processor.tokenizer),
            size=size,
            n=count,
            rows="\n".join(lines),
        )
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    print(card)


def _wilson(hits: int, n: int) -> tuple[float, float]:
    interval = wilson(hits, n)
    return interval.low, interval.high


def teach_language(
    model, data: _Batches, held_out: _Batches, steps: int, batch_size: int, peak: float, task, out: Path, every: int
) -> None:
    """Cross-entropy on the targets of `task`; the tower learns along unless it is frozen. Perception is measured as
    it goes."""
    rng = random.Random(steps)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))
    started = time.time()
    order: list[int] = []
    model.train()
    for step in range(steps):
        rate = peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if len(order) < batch_size:
            order += rng.sample(range(len(data.facts)), len(data.facts))
        indices = [order.pop() for _ in range(batch_size)]
        batch = data.batch(indices, [task(data.facts[index], rng) for index in indices], augment=True)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f} rate {rate:.2e} {time.time() - started:.0f} s", flush=True)
        if (step + 1) % every == 0 or step + 1 == steps:
            model.save_pretrained(out, max_shard_size="1GB")
            print(json.dumps({"step": step + 1, **perception(model, held_out, 250)}), flush=True)
            model.train()


_HEADS = {
    "posture": ("nobody", "up", "down"),
    "box": ("none", "floor", "held"),
    "who": ("nobody", *ACTORS),
    "place": PLACES,
    "light": LIGHTS,
}


def teach_tower(
    model: Qwen2_5_VLForConditionalGeneration, data: _Batches, held_out: _Batches, arguments: argparse.Namespace
) -> None:
    """The tower first, alone: linear heads on its pooled output name the states of each quarter, as a real tower is
    pretrained before it meets a language model. The heads are thrown away."""
    tower = model.model.visual
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(2 * 128, len(classes)) for name, classes in _HEADS.items()})
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=0.02)
    truths, tests = _states(data.facts), _states(held_out.facts)
    rng, started = random.Random(1), time.time()

    def scores(source: _Batches, indices: list[int], augment: bool) -> dict[str, torch.Tensor]:
        patches = source.patches[indices].float()
        if augment:
            patches = patches * (0.8 + 0.4 * torch.rand(len(indices), 1, 1)) + 0.2 * torch.randn(len(indices), 1, 1)
        merged = tower(
            patches.reshape(-1, patches.shape[-1]), grid_thw=source.grid.expand(len(indices), 3)
        ).pooler_output
        merged = merged.view(len(indices), 4, 12, -1)
        pooled = torch.cat([merged.mean(2), merged.max(2).values], -1)
        return {name: head(pooled) for name, head in heads.items()}

    for step in range(arguments.tower_steps):
        rate = (
            2e-3
            * min(1.0, (step + 1) / 50)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / arguments.tower_steps)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        indices = [rng.randrange(len(data.facts)) for _ in range(arguments.batch)]
        logits = scores(data, indices, augment=True)
        loss = sum(
            torch.nn.functional.cross_entropy(logits[name].flatten(0, 1), truths[name][indices].flatten())
            for name in _HEADS
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step + 1 == arguments.tower_steps:
            with torch.no_grad():
                logits = scores(held_out, list(range(250)), augment=False)
            right = {
                name: round((logits[name].argmax(-1) == tests[name][:250]).float().mean().item(), 4) for name in _HEADS
            }
            print(
                f"tower step {step} loss {loss.item():.4f} {json.dumps(right)} {time.time() - started:.0f} s",
                flush=True,
            )


def _states(facts: list[Facts]) -> dict[str, torch.Tensor]:
    """Class numbers (clips, 4) of each head: who is `nobody` in a quarter without the actor."""

    def of(fact: Facts) -> dict[str, list[str]]:
        return {
            "posture": [posture for posture, _ in fact.quarters], "box": [box for _, box in fact.quarters],
            "who": ["nobody" if posture == "nobody" else fact.who for posture, _ in fact.quarters],
            "place": [fact.place] * 4, "light": [fact.light] * 4,
        }  # fmt: skip

    rows = [of(fact) for fact in facts]
    return {
        name: torch.tensor([[classes.index(v) for v in row[name]] for row in rows]) for name, classes in _HEADS.items()
    }


@torch.no_grad()
def perception(model: Qwen2_5_VLForConditionalGeneration, data: _Batches, count: int) -> dict[str, float]:
    """Share of clips whose greedy caption states each fact rightly, on rooms and actors of the `test` part."""
    model.eval()
    tokenizer = data.tokenizer
    right: dict[str, int] = {}
    for start in range(0, count, 50):
        indices = list(range(start, min(count, start + 50)))
        batch = data.batch(indices, [(CAPTION_PROMPT, "")] * len(indices), augment=False)
        batch.pop("labels")
        ids = batch.pop("input_ids")[:, :-1]
        batch["attention_mask"], batch["mm_token_type_ids"] = (
            batch["attention_mask"][:, :-1],
            batch["mm_token_type_ids"][:, :-1],
        )
        texts = tokenizer.batch_decode(
            model.generate(input_ids=ids, **batch, max_new_tokens=100, do_sample=False)[:, ids.shape[1] :],
            skip_special_tokens=True,
        )
        for index, text in zip(indices, texts):
            facts = data.facts[index]
            stated, true = read_observation(text), read_observation(observation(facts))
            for name in true:
                right[name] = right.get(name, 0) + (stated.get(name) == true[name])
            right["all"] = right.get("all", 0) + all(stated.get(name) == true[name] for name in true)
    return {name: round(hits / count, 4) for name, hits in right.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shards",
        required=True,
        help="scratch folder for rendered base clips (kept, so that a second run starts at once)",
    )
    parser.add_argument("--out", default=str(MODEL))
    parser.add_argument("--clips", type=int, default=12000)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tower-steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--logic-steps", type=int, default=1450)
    parser.add_argument("--every", type=int, default=400)
    parser.add_argument("--measure", action="store_true", help="train nothing; measure perception and write the card")
    options = parser.parse_args()
    (measure if options.measure else train)(options)
