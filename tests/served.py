"""An OpenAI-compatible server of its own process over a checkpoint, which says what vLLM does: log-probabilities, token
ids, `prompt_logprobs`, frames as a client sends them. `python tests/served.py SETTINGS.json`.

The settings: `models` (name → checkpoint), `config` (of the project's settings), `log` (a file to which each request
is written as a line, without its pictures), and what is withheld or done wrong: `without` (fields that it refuses by
name), `plain` (it gives no log-probabilities at all), `fail` ([status, how often]), `die_after` (answers),
`holds_after` (tokens of a stream, until its client goes away), `distrusts` (vLLM without --trust-request-mm-kwargs),
`frames` (how many of a clip it takes), `counts_from_time` (as vLLM's own Qwen2.5-VL). It takes weights by vLLM's routes
where `updates` is "lora" or "whole", keeps the old ones where it is `stuck`, and forgets them behind `restarts_after`
answers. `/how` changes all that later.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from transformers.video_utils import VideoMetadata

from deepintuit import config
from deepintuit.video import Frames
from deepintuit.vlm import VLM, clips, sample_groups

DISTRUST = (
    "Per-request media_io_kwargs are disabled by default because they can change multimodal media loading resource "
    "usage. Start the server with --trust-request-mm-kwargs only when clients are trusted."
)
"""As vLLM 0.32 says it."""


class Model:
    """A checkpoint behind the server. One request at a time."""

    def __init__(self, settings: config.Config, checkpoint: str):
        self.vlm = VLM.load(settings.model, settings.video, checkpoint=Path(checkpoint))
        self.turn = threading.Lock()

    def clip(self, messages: list[dict], body: dict) -> tuple[Any, str]:
        """The clip as the server was told of it, and the question."""
        content, frames, told = messages[0]["content"], [], (body.get("media_io_kwargs") or {}).get("video", {})
        if isinstance(content, str):
            return None, content
        for part in content:
            if part["type"] == "video_url":
                kind, _, data = part["video_url"]["url"].partition(",")
                assert kind == "data:video/jpeg;base64", kind
                frames += data.split(",")[: told.get("num_frames", 32)]
            elif part["type"] == "image_url":
                frames.append(part["image_url"]["url"].partition(",")[2])
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(frame)))) for frame in frames])
        indices = told.get("frames_indices") or list(range(len(pixels)))
        assert len(indices) == len(pixels)
        seen = VideoMetadata(
            total_num_frames=told.get("total_num_frames", len(pixels)), fps=told.get("fps", 1.0),
            frames_indices=indices, duration=told.get("duration", 1.0), width=pixels.shape[2], height=pixels.shape[1],
        )  # fmt: skip
        clips.metadata_of = lambda frames: seen  # what it was told, to the bit
        times = [index / seen.fps for index in indices]
        encoder = self.vlm.encoder
        return encoder._run_tower("sent", Frames.of(pixels, indices, times, seen.duration, "sent")), content[-1]["text"]

    def write(self, body: dict, on_token=None, stop=None) -> dict:
        with self.turn:
            clip, question = self.clip(body["messages"], body)
            prompt = self.vlm.prompt_ids(clip, question)
            limits = {"temperature": body.get("temperature", 1.0), "max_tokens": body["max_tokens"]}
            key = str(body.get("seed"))
            [[sample]] = sample_groups(
                self.vlm, [clip], [question], [[key]], top_p=body.get("top_p", 1.0),
                on_token=on_token and (lambda _clip, _sample, token: on_token(token)), stop=stop, **limits,
            )  # fmt: skip
        return {"prompt": len(prompt), "sample": sample}

    def score(self, body: dict) -> dict:
        """`prompt_logprobs` of a conversation that ends with the assistant's turn."""
        with self.turn, torch.no_grad(), self.vlm.evaluating():
            clip, question = self.clip(body["messages"], body)
            vlm, reply = self.vlm, body["messages"][1]["content"]
            ids = [*vlm.prompt_ids(clip, question), *vlm.target_ids(reply), *vlm._tokens("\n")]
            logprobs = torch.log_softmax(vlm.model(**vlm.inputs([clip], [ids], side="right")).logits[0].float(), -1)
            told = [{str(t): {"logprob": float(logprobs[i, t])}} for i, t in enumerate(ids[1:])]
        return {"prompt": len(ids), "prompt_logprobs": [None, *told]}


def create(settings: dict) -> FastAPI:
    api, asked = FastAPI(), config.loads(settings["config"])
    models = {name: Model(asked, folder) for name, folder in settings["models"].items()}
    count, lock = [0], threading.Lock()

    def note(**line) -> None:
        with lock, open(settings["log"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    own, weights = dict(models), {}
    roots = {name: str(folder) for name, folder in settings["models"].items()}

    def given(name: str, folder: str) -> None:
        models[name] = next(iter(own.values())) if settings.get("stuck") else Model(asked, folder)
        roots[name] = weights["version"] = folder
        note(weights=folder)

    @api.post("/how")
    async def how(request: Request):
        for name in {*settings} - {"models", "config", "log", "updates"}:
            del settings[name]
        settings.update(await request.json())
        count[0] = 0

    @api.post("/v1/load_lora_adapter")
    async def load_lora_adapter(request: Request):
        body = await request.json()
        if settings.get("updates") != "lora":
            return JSONResponse({"detail": "Not Found"}, 404)
        if body["lora_name"] in own:
            message = f"The lora adapter '{body['lora_name']}' conflicts with a served base model."
            return JSONResponse({"error": {"message": message}}, 400)
        assert body["load_inplace"] and body["lora_path"] not in roots.values()
        given(body["lora_name"], body["lora_path"])

    @api.post("/collective_rpc")
    async def collective_rpc(request: Request):
        body = await request.json()
        if settings.get("updates") != "whole":
            return JSONResponse({"detail": "Not Found"}, 404)
        assert body["method"] == "reload_weights"
        given(next(iter(own)), body["kwargs"]["weights_path"])

    @api.post("/reset_prefix_cache")
    def reset_prefix_cache():
        return {"success": True}

    @api.post("/update_weight_version")
    async def update_weight_version(request: Request):
        weights["version"] = (await request.json())["new_version"]

    @api.get("/weight_info")
    def weight_info():
        return {"weight_version": weights.get("version", "default")}

    @api.get("/v1/models")
    def listed():
        return {"data": [{"id": name, "root": root} for name, root in roots.items() if weights or name in own]}

    @api.post("/v1/chat/completions")
    async def complete(request: Request):
        body = await request.json()
        told = {name: value for name, value in body.items() if name != "messages"}
        pictures = json.dumps(body["messages"]).count("base64")
        note(begins=True, **told, pictures=pictures, key=request.headers.get("authorization"))
        if settings.get("distrusts") and body.get("media_io_kwargs"):
            return JSONResponse({"error": {"message": DISTRUST, "param": "media_io_kwargs", "code": 400}}, 400)
        if refused := [name for name in settings.get("without", []) if name in body]:
            return JSONResponse({"error": {"message": f"Unknown parameter: '{refused[0]}'."}}, 400)
        status, times = settings.get("fail", [0, 0])
        if times:
            settings["fail"] = [status, times - 1]
            return JSONResponse({"error": {"message": "busy"}}, status, {"Retry-After": "0"})
        with lock:
            count[0] += 1
            if settings.get("die_after") is not None and count[0] > settings["die_after"]:
                os._exit(1)
            if count[0] == settings.get("restarts_after"):
                weights.clear()
        model = models[body["model"]]
        model.vlm.counts_from_time = settings.get("counts_from_time", False)
        if body.get("prompt_logprobs") is not None:
            scored = await asyncio.to_thread(model.score, body)
            return {**whole(scored, "", [], [], "length"), "prompt_logprobs": scored["prompt_logprobs"]}
        if body["stream"]:
            return StreamingResponse(stream(model, body, request), media_type="text/event-stream")
        if frames := settings.get("frames"):
            video = body["media_io_kwargs"]["video"]
            video |= {"num_frames": frames, "frames_indices": video["frames_indices"][:frames]}
        done = await asyncio.to_thread(model.write, body)
        s = done["sample"]
        note(ends=True, seed=body.get("seed"))
        return whole(done, s.text, *told_of(body, s), "length" if s.truncated else "stop")

    def told_of(body: dict, sample) -> tuple[list, list]:
        if settings.get("plain"):
            return [], []
        return sample.token_ids * bool(body.get("return_token_ids")), sample.logprobs_T * bool(body.get("logprobs"))

    def whole(done: dict, text: str, ids: list, logprobs: list, reason: str) -> dict:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        choice |= {"token_ids": ids} if ids else {}
        choice |= {"logprobs": {"content": [{"token": "", "logprob": value} for value in logprobs]}} if logprobs else {}
        written = len(done["sample"].token_ids) if "sample" in done else 1
        return {"choices": [choice], "usage": {"prompt_tokens": done["prompt"], "completion_tokens": written}}

    async def stream(model: Model, body: dict, request: Request):
        """Tokens as they come; a client that goes away ends the work."""
        queue: asyncio.Queue = asyncio.Queue()
        loop, gone = asyncio.get_running_loop(), threading.Event()

        written = itertools.count(1)

        def on_token(token: int) -> None:
            if next(written) > settings.get("holds_after", 2**30):
                gone.wait(60)
            loop.call_soon_threadsafe(queue.put_nowait, token)

        work = asyncio.ensure_future(asyncio.to_thread(model.write, body, on_token, gone.is_set))
        work.add_done_callback(lambda _: queue.put_nowait(None))
        ids, sent, tokenizer = [], 0, model.vlm.tokenizer
        try:
            while (token := await queue.get()) is not None:
                ids.append(token)
                text = tokenizer.decode(ids, skip_special_tokens=True)
                piece = {"delta": {"content": text[sent:]}, "token_ids": [] if settings.get("plain") else [token]}
                sent = len(text)
                yield f"data: {json.dumps({'choices': [piece]})}\n\n"
            done = work.result()
            s = done["sample"]
            logprobs = {"content": [{"logprob": value} for value in told_of(body, s)[1]]}
            last = {"delta": {}, "finish_reason": "length" if s.truncated else "stop", "logprobs": logprobs}
            usage = {"prompt_tokens": done["prompt"], "completion_tokens": len(s.token_ids)}
            yield f"data: {json.dumps({'choices': [last]})}\n\n"
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"
            note(ends=True)
        finally:
            if not work.done():
                gone.set()
                note(broke_off=len(ids))

    return api


def serve(settings: dict) -> None:
    torch.set_num_threads(1)
    uvicorn.Server(uvicorn.Config(create(settings), port=settings["port"], log_level="warning")).run()


if __name__ == "__main__":
    serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
