"""One GPU, eight minutes at most: what a real backbone takes, with random weights at its true shape.

Each part is a process of its own with a bound on its seconds: one that fails, runs out of memory or of time is written
down with its reason, and the others go on. Peaks stand beside those that `deepintuit plan` says. Nothing is downloaded.

    checkpoint   weights drawn on the device and written as a hub folder (not part of what is measured)
    load         `VLM.load` in bfloat16 with LoRA
    tower        one clip: frames read from an MP4, encoded
    sampling     groups of traces; and how far the log-probabilities of the loss are from those of sampling
    loss         GRPO's: a group as one tree, with an AdamW step; TRL's plain route, prompt and pixels in each row
    calibration  rows of a calibrator: prompt, trace, label
    scores       likelihoods of labels behind a prompt
    qlora        load in 4 bits, and the loss
    vllm         sampling by vLLM, of text, where it is installed

Run it:  python benchmarks/gpu.py [--shape 7b] [--json docs/performance/gpu.json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measure import ROOT, now

from deepintuit import disk
from deepintuit.runs.run import plain as storable
from deepintuit.runs.run import provenance

SHAPES = {
    "7b": ("hub25", "Qwen/Qwen2.5-VL-7B-Instruct"),
    "3b": ("hub25", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "qwen3-4b": ("hub3", "Qwen/Qwen3-VL-4B-Instruct"),
    "qwen3-8b": ("hub3", "Qwen/Qwen3-VL-8B-Instruct"),
    "tiny": ("hub25", None),
}
"""Name → the tiny checkpoint whose tokenizer and processor it takes, and whose shape it has (None: its own)."""
SIZES = {
    "7b": {"clips": 8, "group": 8, "tokens": 128, "trace": 512, "labels": 8},
    "tiny": {"clips": 2, "group": 2, "tokens": 4, "trace": 6, "labels": 2},
}
"""Clips and traces sampled, tokens of each; tokens of a trace in losses; labels scored. Others are as 7b."""
GIB = 2**30
PROMPT = "What happens in the clip? Think first, then answer with one of the labels."


class Bench:
    """What the parts share: the checkpoint, and how they measure."""

    def __init__(self, shape: str, folder: Path, device: str):
        self.shape, self.folder, self.device = shape, folder, device
        self.size = SIZES.get(shape, SIZES["7b"])
        self.family, self.path = SHAPES[shape]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model"

    def settings(self, **changes: Any):
        from deepintuit.config import ModelConfig

        given = {"dtype": "bfloat16", "lora_rank": 64, "lora_alpha": 128, "gradient_checkpointing": True}
        return ModelConfig(path=str(self.checkpoint), device=self.device, **given | changes)

    def video(self):
        import tiny

        from deepintuit.config import VideoConfig

        return VideoConfig() if self.path else tiny.video(self.family)

    def load(self, kind: type | None = None, **changes: Any):
        from deepintuit.vlm import VLM

        vlm = (kind or VLM).load(self.settings(**changes), self.video(), trainable=True)
        vlm.silenced = sorted({*vlm.silenced, *vlm.stop_ids})  # no trace ends early
        return vlm

    def clips(self, vlm, count: int) -> list:
        """The one clip, under several names."""
        path = self.folder / "clip.mp4"
        return [vlm.encoder.encode(f"{number}", path, *self.frame) for number in range(count)]

    @property
    def frame(self) -> tuple[int, int]:
        return (448, 448) if self.path else (64, 64)

    def rows(self, vlm, clip) -> tuple[list[list[int]], int]:
        """Prompt and a trace of random tokens, for each of a group, and the length of the prompt."""
        import torch

        prompt, draw = vlm.prompt_ids(clip, PROMPT), torch.Generator().manual_seed(0)
        traces = torch.randint(50, 250, (self.size["group"], self.size["trace"]), generator=draw).tolist()
        return [prompt + trace for trace in traces], len(prompt)

    def measured(
        self, vlm, work: Callable[[], Any], tokens: int = 0, repeats: int = 2, beside: int = 0
    ) -> dict[str, float]:
        """Seconds (the median of the repeats, after one that is not counted), the peak, tokens a second. `beside`:
        bytes of gradients and of the optimizer, which are there already."""
        peak = self.peak(vlm, work) + (beside / GIB if vlm.device.type != "cuda" else 0)
        told = {"peak_gib": peak, "seconds": statistics.median(self.spent(work) for _ in range(repeats))}
        return told | ({"tokens_per_second": tokens / told["seconds"]} if tokens else {})

    def spent(self, work: Callable[[], Any]) -> float:
        started = now()
        work()
        return now() - started

    def peak(self, vlm, work: Callable[[], Any]) -> float:
        """GiB at most, weights included; on a CPU by counting what is alive."""
        import torch

        from deepintuit.vlm import footprint

        if vlm.device.type != "cuda":
            return (sum(p.nbytes for p in vlm.model.parameters()) + footprint.peak(vlm.model, work)) / GIB
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / GIB

    def footprint(self, **changes: Any):
        from deepintuit.vlm.footprint import Footprint
        from deepintuit.vlm.weights import read_config

        return Footprint(read_config(self.checkpoint), self.settings(**changes))


def checkpoint(bench: Bench) -> dict[str, Any]:
    """Tokenizer, processor and layout of the tiny one; weights of the true shape, drawn on the device."""
    import numpy as np
    import tiny
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from deepintuit.video import write_mp4
    from deepintuit.vlm.footprint import published

    made = tiny.write_family(bench.family, bench.checkpoint)
    started = now()
    if bench.path:
        small, true = AutoConfig.from_pretrained(made.folder), published(bench.path)
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            setattr(true, name, getattr(small, name))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "rope_parameters"):
            if getattr(small.text_config, name, None) is not None:
                setattr(true.text_config, name, getattr(small.text_config, name))
        with torch.device(bench.device):
            model = AutoModelForImageTextToText.from_config(true, dtype=torch.bfloat16)
        for old in made.folder.glob("model*.safetensors*"):
            old.unlink()
        model.save_pretrained(made.folder)
    count, (width, height) = 64 if bench.path else 8, bench.frame
    frames = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    write_mp4(bench.folder / "clip.mp4", frames, 8.0)
    weights = sum(file.stat().st_size for file in made.folder.glob("*.safetensors"))
    return {"seconds": now() - started, "gib": weights / GIB}


def load(bench: Bench) -> dict[str, Any]:
    found: list = []
    seconds = bench.spent(lambda: found.append(bench.load()))
    vlm, planned = found[0], bench.footprint()
    held = sum(p.nbytes for p in vlm.model.parameters()) / GIB
    told = {"seconds": seconds, "gib_per_second": held / seconds, "weights_gib": held}
    return told | {"planned_gib": planned.weights / GIB, "trained": planned.trained, "parameters": planned.parameters}


def tower(bench: Bench) -> dict[str, Any]:
    vlm = bench.load()
    names = iter(range(100))

    def encode() -> None:
        vlm.encoder.encode(f"one-{next(names)}", bench.folder / "clip.mp4", *bench.frame)

    [clip] = bench.clips(vlm, 1)
    return bench.measured(vlm, encode, repeats=3) | {"visual_tokens": len(clip.vision_ids)}


def sampling(bench: Bench) -> dict[str, Any]:
    import torch

    from deepintuit.vlm import sample_groups
    from deepintuit.vlm.prefix import pack

    vlm, size, found = bench.load(), bench.size, []
    clips = bench.clips(vlm, size["clips"])
    keys = [[f"{clip}/{trace}" for trace in range(size["group"])] for clip in range(len(clips))]
    written = size["clips"] * size["group"] * size["tokens"]

    def sample() -> None:
        found[:] = sample_groups(vlm, clips, [PROMPT] * len(clips), keys, temperature=1.0, max_tokens=size["tokens"])

    told = bench.measured(vlm, sample, written, repeats=1)
    prompt = vlm.prompt_ids(clips[0], PROMPT)
    rows = [prompt + trace.token_ids for trace in found[0]]
    with vlm.evaluating():
        packed = pack(vlm, [clips[0]] * len(rows), rows, [len(prompt)] * len(rows))
        scored = vlm.model(**packed.inputs, fused_lm_head=True).log_probs.flatten()
    far = torch.cat([
        scored[places].float().cpu() - torch.tensor(trace.logprobs_T) for places, trace in zip(packed.places, found[0])
    ])  # fmt: skip
    planned, length = bench.footprint(), len(prompt)
    tokens = size["clips"] * (length + size["group"] * size["tokens"])
    cache = planned.cache_token * tokens * 1.125 + planned.step(size["clips"] * size["group"])
    each = min(size["clips"], max(1, vlm.tokens_per_pass // length))
    prefill = planned.prefill(length, each) + planned.cache_token * (size["clips"] - each) * length
    apart = {"mean": float(far.abs().mean()), "most": float(far.abs().max()), "tokens": len(far)}
    return told | {
        "planned_gib": (planned.weights + max(cache, prefill)) / GIB,
        "loss_against_sampling": apart,
        "prompt_tokens": length,
    }


def loss(bench: Bench, **changes: Any) -> dict[str, Any]:
    import torch

    from deepintuit.vlm.prefix import pack

    vlm, size = bench.load(**changes), bench.size
    [clip] = bench.clips(vlm, 1)
    rows, first = bench.rows(vlm, clip)
    trained = [p for p in vlm.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def update() -> None:
        packed = pack(vlm, [clip] * len(rows), rows, [first] * len(rows))
        logprobs = vlm.model(**packed.inputs, fused_lm_head=True).log_probs.flatten()
        torch.stack([logprobs[places].mean() for places in packed.places]).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    update()
    planned = bench.footprint(**changes)
    most = planned.loss(prompt=first, traces=len(rows), trace_tokens=size["trace"])
    tokens = first + len(rows) * size["trace"]
    told = {"planned_gib": (planned.weights + planned.optimizer + most) / GIB, "tokens": tokens}
    return bench.measured(vlm, update, tokens, beside=planned.optimizer + 4 * planned.trained) | told


def plain(bench: Bench) -> dict[str, Any]:
    """The loss of the same rows as TRL computes it, a row at a time: prompt and pixels in each."""
    import torch
    from routes import Plain

    from deepintuit.vlm.prefix import pack

    vlm = bench.load(Plain, share_prefix=False)
    [clip] = bench.clips(vlm, 1)
    rows, first = bench.rows(vlm, clip)

    def update() -> None:
        for row in rows:
            packed = pack(vlm, [clip], [row], [first])
            logprobs = vlm.model(**packed.inputs, fused_lm_head=True).log_probs.flatten()
            (torch.cat([logprobs[places] for places in packed.places]).mean() / len(rows)).backward()
        vlm.model.zero_grad(set_to_none=False)

    return bench.measured(vlm, update, sum(map(len, rows)), repeats=1)


def calibration(bench: Bench) -> dict[str, Any]:
    from deepintuit.vlm.prefix import pack

    vlm = bench.load()
    [clip] = bench.clips(vlm, 1)
    rows, _ = bench.rows(vlm, clip)
    rows = [[*row, *vlm.target_ids("calm")] for row in rows]
    firsts = [len(row) - len(vlm.target_ids("calm")) for row in rows]

    def update() -> None:
        packed = pack(vlm, [clip] * len(rows), rows, firsts, apart=True)
        labels = packed.inputs["shift_labels"]
        vlm.model(**packed.inputs, fused_lm_head=True).log_probs[labels >= 0].mean().neg().backward()
        vlm.model.zero_grad(set_to_none=False)

    return bench.measured(vlm, update) | {"rows": len(rows)}


def scores(bench: Bench) -> dict[str, Any]:
    from deepintuit.labels import LabelSet
    from deepintuit.vlm import label_logprobs

    vlm, size = bench.load(), bench.size
    clips = bench.clips(vlm, size["clips"])
    labels = LabelSet("bench", tuple(f"label {number}" for number in range(size["labels"])))
    told = bench.measured(vlm, partial(label_logprobs, vlm, clips, [PROMPT] * len(clips), labels))
    return told | {"seconds_per_clip": told["seconds"] / len(clips)}


def qlora(bench: Bench) -> dict[str, Any]:
    return loss(bench, quantize="4bit")


def vllm(bench: Bench) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    size = bench.size
    model = LLM(str(bench.checkpoint), dtype="bfloat16", max_model_len=8192, gpu_memory_utilization=0.8)
    count, how = size["clips"] * size["group"], SamplingParams(max_tokens=size["tokens"], ignore_eos=True)
    prompts = [{"prompt_token_ids": [50 + number % 200 for number in range(4096)]}] * count
    model.generate(prompts[:1], how)
    seconds = bench.spent(lambda: model.generate(prompts, how))
    return {"seconds": seconds, "tokens_per_second": count * size["tokens"] / seconds}


PARTS = {part.__name__: part for part in (
    checkpoint, load, tower, sampling, loss, plain, calibration, scores, qlora, vllm,
)}  # fmt: skip
NEEDS = {"qlora": "bitsandbytes", "vllm": "vllm"}
"""Part → the package without which it is left out."""


def part_alone(bench: Bench, name: str, seconds: float) -> dict[str, Any]:
    """A part in a process of its own."""
    out = bench.folder / f"{name}.json"
    words = [sys.executable, __file__, "--shape", bench.shape, "--device", bench.device, "--part", name]
    try:
        ended = subprocess.run(
            [*words, "--folder", str(bench.folder), "--json", str(out)],
            timeout=seconds,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {seconds:.3g} s"}
    if out.exists():
        return json.loads(out.read_text(encoding="utf-8"))
    return {"failed": f"ended with {ended.returncode}: {ended.stderr.strip()[-500:]}"}


def part_here(bench: Bench, name: str) -> dict[str, Any]:
    sys.path.append(str(ROOT / "tests"))  # the tiny checkpoints stand there
    try:
        return PARTS[name](bench)
    except Exception as error:  # noqa: BLE001 - what went wrong is what is told
        return {"failed": f"{type(error).__name__}: {str(error).strip()[:500]}"}


def measured(
    bench: Bench, names: list[str], each: float, whole: float, together: bool, keep: Callable[[dict], None]
) -> None:
    """What each part tells, kept after each; all within `whole` seconds, one within `each`."""
    ends, told = time.monotonic() + whole, {}
    for name in names:
        left, package = min(each, ends - time.monotonic()), NEEDS.get(name)
        if package and importlib.util.find_spec(package) is None:
            told[name] = {"failed": f"{package} is not installed"}
        elif left < 5:
            told[name] = {"failed": "no time was left"}
        else:
            told[name] = part_here(bench, name) if together else part_alone(bench, name, left)
        if name == "plain" and "seconds" in told.get("loss", {}) and "seconds" in told[name]:
            told[name]["seconds_over_ours"] = told[name]["seconds"] / told["loss"]["seconds"]
        print(f"{name}: {json.dumps(told[name])}", flush=True)
        keep(told)
        if name == "checkpoint" and "failed" in told[name]:
            break


def machine() -> dict[str, Any]:
    import torch

    told = {"torch": torch.__version__, "cores": os.cpu_count(), "python": platform.python_version()}
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        told |= {"gpu": about.name, "gpu_gib": about.total_memory / GIB, "cuda": torch.version.cuda}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts, beside the checkpoint")
    parser.add_argument("--limit", type=float, default=120, help="seconds of one part (default: %(default)s)")
    parser.add_argument("--whole", type=float, default=460, help="seconds of all (default: %(default)s)")
    parser.add_argument("--together", action="store_true", help="all parts in this process, without bounds on each")
    parser.add_argument("--folder", type=Path, help="where the checkpoint goes (default: a temporary folder)")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "performance" / "gpu.json")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        bench = Bench(given.shape, given.folder, given.device)
        disk.write_json(given.json, storable(part_here(bench, given.part)))
        return
    names = list(dict.fromkeys(["checkpoint", *given.only]))
    made = provenance()
    about = {"shape": given.shape, "commit": made["commit"], "dirty": made["dirty"], **machine()}
    about |= {"date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "sizes": SIZES.get(given.shape, SIZES["7b"])}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    bench = Bench(given.shape, folder, given.device)
    try:
        measured(
            bench,
            names,
            given.limit,
            given.whole,
            given.together,
            lambda told: disk.write_json(given.json, storable({**about, "parts": told})),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
