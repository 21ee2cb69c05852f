"""Two routes through the same work, and the work: ours, and the plain one that every claim is measured against.

The plain route is how TRL and transformers do it, and what one writes who has only them: each row of a batch by itself,
with its clip as pixels through the tower; a group sampled by `generate` over G copies of the prompt; losses by TRL's
fused head; labels scored a row each. `Plain` is a `VLM` that works so, and `plainly()` gives it to all stages. It is
kinder than most such code: clips are decoded and processed once and held, and rows are padded no further than they
need.

Both draw from the same random streams, so they write the same traces as far as rounding lets them.

The work: a model of random weights on two clips (`Pair`), or the embedded world's clips and a model cold-started on
them (`started`), which takes a minute or two, once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from measure import FOLDER, ROOT, Counted, Row, beside, in_turns
from transformers import LogitsProcessor, LogitsProcessorList

from deepintuit import config
from deepintuit.config import Config, ModelConfig
from deepintuit.errors import quiet_libraries
from deepintuit.runs import Run
from deepintuit.schedule import fractions
from deepintuit.vlm import VLM, EncodedClip, Sample, sample_groups
from deepintuit.vlm.clips import ClipEncoder, VisualFeatures
from deepintuit.vlm.sampling import stream
from deepintuit_analysis import Workbench
from deepintuit_homecam import demo

PROMPT = "What happens in the clip? Think first, then answer with one of the labels."


class Plain(VLM):
    """A `VLM` whose clips are pixels: where ours has features of the tower, `EncodedClip.embeds` holds what the
    processor makes of the frames, and each row takes its own through the tower. Load it with `share_prefix` false."""

    def __init__(self, model, processor, video, cache: Path | None, name: str):
        super().__init__(model, processor, video, None, name)
        door = SimpleNamespace(visual=self.core.model.visual, get_video_features=_as_they_are)
        self.encoder = ClipEncoder(processor, SimpleNamespace(model=door), self.family, video, None)

    def forward_inputs(self, clips, ids, mask) -> dict:
        inputs = super().forward_inputs(clips, ids, mask)
        if features := inputs.pop("mm_encoder_outputs", None):
            inputs["pixel_values_videos"] = torch.cat(features["video"].pooler_output)
            inputs["video_grid_thw"] = torch.stack([clip.grid_thw for clip in clips]).to(ids.device)
        return inputs


def _as_they_are(pixels: torch.Tensor, grid_thw: torch.Tensor, **_) -> VisualFeatures:
    return VisualFeatures(pooler_output=(pixels,))


class _Drawn(LogitsProcessor):
    """Leaves of each row the one token that its random stream draws, as `vlm.sampling` draws it."""

    def __init__(self, vlm: VLM, keys: Sequence[str], width: int, most: int, temperature: float, top_p: float):
        assert top_p == 1, "the plain route has no top-p"
        self.vlm, self.width, self.temperature = vlm, width, temperature
        self.uniform = torch.stack([torch.from_numpy(stream(key, most)) for key in keys]).to(vlm.device)
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logprobs = torch.log_softmax(scores.float() / (self.temperature or 1.0), -1)
        allowed = logprobs.clone()
        allowed[:, self.vlm.silenced] = -torch.inf
        if self.temperature == 0:
            tokens = allowed.argmax(-1, keepdim=True)
        else:
            heights = allowed.softmax(-1).double().cumsum(-1)
            drawn = self.uniform[:, input_ids.shape[1] - self.width, None] * heights[:, -1:]
            tokens = torch.searchsorted(heights, drawn, right=True).clamp(max=heights.shape[-1] - 1)
        self.logprobs.append(logprobs.gather(-1, tokens)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens, 0.0)


@torch.no_grad()
def generated(
    vlm: VLM,
    clips: Sequence[EncodedClip],
    prompts: Sequence[str],
    keys_C_G: Sequence[Sequence[str]],
    *,
    temperature: float,
    max_tokens: int,
    top_p: float = 1.0,
    gate=None,
) -> list[list[Sample]]:
    """What `sample_groups` gives, by `generate`: prompt and pixels in all rows, which stay until the last has ended."""
    assert gate is None, "the plain route has no gate"
    started, group = time.perf_counter(), len(keys_C_G[0])
    rows = [vlm.prompt_ids(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True) for _ in range(group)]
    each = [clip for clip in clips for _ in range(group)]
    inputs = vlm.inputs(each, rows, side="left")
    del inputs["position_ids"]  # `generate` works them out
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == vlm.core.config.video_token_id).int() * 2
    inputs["second_per_grid_ts"] = torch.tensor([clip.seconds_per_grid for clip in each], device=vlm.device)
    width = inputs["input_ids"].shape[1]
    draw = _Drawn(vlm, [key for keys in keys_C_G for key in keys], width, max_tokens, temperature, top_p)
    was_training = vlm.model.training
    vlm.model.eval()
    vlm.core.model.rope_deltas = None
    try:
        out = vlm.model.generate(
            **inputs, do_sample=False, max_new_tokens=max_tokens, logits_processor=LogitsProcessorList([draw]),
            repetition_penalty=1.0, eos_token_id=vlm.stop_ids or None, pad_token_id=vlm.tokenizer.pad_token_id,
        )  # fmt: skip
    finally:
        vlm.model.train(was_training)
    spent = 1000 * (time.perf_counter() - started) / len(rows)
    logprobs, found = torch.stack(draw.logprobs, 1).tolist(), []
    for ids, numbers in zip(out[:, width:].tolist(), logprobs, strict=True):
        end = next((at for at, token in enumerate(ids, 1) if token in vlm.stop_ids), None)
        ids = ids[:end]
        text = vlm.tokenizer.decode(ids, skip_special_tokens=True)
        found.append(Sample(text, ids, numbers[: len(ids)], end is None, spent))
    return [found[start : start + group] for start in range(0, len(found), group)]


def sampled(vlm: VLM, *args, **given) -> list[list[Sample]]:
    """A group of traces for each clip, by the route of this model."""
    return (generated if isinstance(vlm, Plain) else sample_groups)(vlm, *args, **given)


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """While open, all stages take the plain route. Their settings must have `model.share_prefix` false."""
    from deepintuit import calibrate, coldstart, evaluate, grpo
    from deepintuit.reasoner import local

    stages = (coldstart, grpo, calibrate, evaluate)
    for stage in stages:
        stage.VLM = Plain
    local.sample_groups = generated
    try:
        yield
    finally:
        for stage in stages:
            stage.VLM = VLM
        local.sample_groups = sample_groups


def route(name: str) -> contextlib.AbstractContextManager[None]:
    """`plain` or `ours`, as a context."""
    return plainly() if name == "plain" else contextlib.nullcontext()


class Pair:
    """Two clips and a model of random weights, by both routes: `plain` and `ours` are the same model, loaded twice.

    Random weights write unlike traces, so that a group shares its prompt and little more."""

    def __init__(self, family: str, folder: Path, device: str = "cpu", trainable: bool = False):
        sys.path.append(str(ROOT / "tests"))  # the tiny checkpoints stand there
        import tiny

        made, paths = tiny.write_family(family, folder / "model"), tiny.write_clips(folder)
        self.vlms, self.clips = {}, {}
        for name, kind in (("plain", Plain), ("ours", VLM)):
            # float32 wherever it runs: two routes are compared, and bfloat16 alone would tell them apart.
            settings = ModelConfig(path=str(made.folder), device=device, dtype="float32", share_prefix=name == "ours")
            vlm = self.vlms[name] = kind.load(settings, made.video, trainable=trainable)
            self.clips[name] = [
                vlm.encoder.encode(clip, paths[clip], tiny.CLIPS[clip][2], tiny.CLIPS[clip][1])
                for clip in (tiny.WIDE, tiny.TALL)
            ]

    def __iter__(self) -> Iterator[tuple[str, VLM, list[EncodedClip]]]:
        return ((name, vlm, self.clips[name]) for name, vlm in self.vlms.items())

    def row(self, claim: str, work: Callable, alike: Callable, repeats: int) -> Row:
        """`work(vlm, clips)` by both routes, which take turns; `alike(plain, ours)` raises where they differ."""
        calls = {name: partial(work, vlm, clips) for name, vlm, clips in self}
        counts, found = {}, {}
        for name, call in calls.items():
            with Counted() as counts[name]:
                found[name] = call()
        alike(found["plain"], found["ours"])
        spent = in_turns(calls, repeats)
        return Row(claim, spent["ours"], spent["plain"], beside(counts["plain"], counts["ours"]))

    @property
    def about(self) -> str:
        ours = self.vlms["ours"]
        lengths = " and ".join(str(len(ours.prompt_ids(clip, PROMPT))) for clip in self.clips["ours"])
        return f"2 clips, prompts of {lengths} tokens, random weights, {ours.device}"


@dataclass(frozen=True)
class Start:
    """Homecam clips, and the embedded model after a short cold start on some of them."""

    workbench: Workbench
    settings: Config
    cold: Run


def started(workbench: Path | None = None, *, train: int = 240, epochs: int = 20) -> Start:
    """The start that scripts share, made where it is not there yet; or the newest cold start of a finished
    `workbench`, as `demo` or `benchmarks/evidence.py` leaves one.

    The shared one is trained for a minute, less than a good one: its traces are longer and less alike, so that there is
    less to share."""
    quiet_libraries()
    if workbench:
        bench = Workbench(workbench)
        for run in reversed(bench.runs("coldstart", finished=True)):
            if run.summary.get("target") == "trace" and run.about["name"] is None:  # RB-FT has a name
                return Start(bench, config.of(run.about["settings"]).replace(workbench=str(workbench)), run)
        raise SystemExit(f"{workbench} holds no finished cold start: name a workbench that `deepintuit demo` made.")
    from deepintuit import coldstart, teach

    settings = config.load(ROOT / "configs" / "tiny.toml", [
        f"workbench={FOLDER / 'start'}", f"coldstart.epochs={epochs}", "coldstart.batch=4",
        "clips.coldstart_share=0.7", "clips.grpo_share=0.15", "clips.calibration_share=0.15", "model.device=cpu",
    ])  # fmt: skip
    demo.clips(settings, train, 8, jobs=1, progress=False, fractions=fractions(settings))
    bench = Workbench(settings.workbench)
    teacher = teach.run(bench, settings, progress=False)
    return Start(bench, settings, coldstart.run(bench, settings, teacher=teacher.id, progress=False))


def start_of(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names another start."""
    parser.add_argument(
        "--workbench",
        type=Path,
        metavar="DIR",
        help="start from the newest cold start of a finished "
        "workbench; without it from a short one, made once under build/bench",
    )
