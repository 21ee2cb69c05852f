"""Files of a checkpoint: what is opened at all, whether tensors and model fit, and on which base an adapter stands.

Weights are safetensors, and every tensor must have its place; code that lies in a checkpoint is never run, nor asked
about. A checkpoint from the hub is a folder like any other: of it, only text and safetensors are fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig

from deepintuit import disk, worlds
from deepintuit.errors import ModelError
from deepintuit.vlm.families import KNOWN
from deepintuit.vlm.memory import ran_out

WHOLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
ADAPTER_CONFIG, BASE = "adapter_config.json", "base.json"
_ANOTHER = f"Give a local folder or a hub id of a checkpoint of {KNOWN} in model.path"
VLM_KIND = "vision-language model"
WHOLE_AGAIN = "Copy or download the checkpoint again, whole, with the config.json that it was saved with"


def located(path: str, *, text_only: bool = False, kind: str = VLM_KIND, todo: str = _ANOTHER) -> Path:
    """The folder of a checkpoint: one that ships with the package (`embedded:NAME`), a folder, or the files of a hub
    id, fetched where they are not kept yet (`text_only`: all but the weights). Raises `ModelError`."""
    prefix, _, name = path.partition(":")
    if prefix == "embedded":
        if name not in worlds.names():
            raise ModelError(
                f"model.path = {path!r}",
                "no such model ships with the package",
                f"Shipped: {', '.join(worlds.names()) or 'none'}",
            )
        return worlds.named(name).MODEL
    if Path(path).is_dir():
        return Path(path)
    with reading(path, kind, todo):
        patterns = ["*.json", "*.jinja", "*.txt", *([] if text_only else ["*.safetensors"])]
        return Path(snapshot_download(path, allow_patterns=patterns))


@contextmanager
def reading(source: str, kind: str = VLM_KIND, todo: str = _ANOTHER) -> Iterator[None]:
    """What a library raises over the files of `source`, of whatever type, becomes a `ModelError`."""
    try:
        yield
    except (ModelError, ImportError):
        raise
    except Exception as error:
        if ran_out(error):
            raise
        raise ModelError(
            f"{source!r} cannot be loaded as a {kind}",
            next(iter(str(error).strip().splitlines()), type(error).__name__),
            todo,
        ) from error


def read_config(folder: Path, kind: str = VLM_KIND, todo: str = _ANOTHER) -> PretrainedConfig:
    """The configuration of a checkpoint that may be opened. Raises `ModelError`.

    Refused are: code of the checkpoint's own, other files of weights than safetensors, weights that are quantised
    already, and an adapter in place of a model.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(
            f"{str(folder)!r} holds an adapter",
            "its base would be taken from wherever the adapter names one",
            "Give the base itself in model.path; a run's adapter is found by the name of the run",
        )
    with reading(str(folder), kind, todo):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for file in folder.glob("*config.json"):
            json.loads(file.read_text(encoding="utf-8"), object_hook=partial(_hold_to_no_code, file))
    quantised = "quantization_config" in config
    if quantised or "transformers_weights" in config:
        raise ModelError(
            f"config.json of {str(folder)!r} has a {'quantization_config' if quantised else 'transformers_weights'}",
            "weights that are quantised already, or lie elsewhere, can be neither trained nor compared with a run's",
            "Give the checkpoint as its makers published it, with model.quantize=4bit where memory is short",
        )
    with reading(str(folder), kind, todo):
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


def _hold_to_no_code(file: Path, part: dict) -> dict:
    if part.get("auto_map"):
        raise ModelError(
            f"{file.name} of {str(file.parent)!r} has an auto_map",
            "it asks to run code that lies in the checkpoint, which is never done",
            f"Give a checkpoint of {KNOWN} that transformers loads by itself",
        )
    return part


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a whole model, none outside the folder. Raises `ModelError`."""
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    names: Collection[str] = []
    if (folder / INDEX).exists():
        with reading(str(folder)):
            names = sorted({str(name) for name in json.loads((folder / INDEX).read_text())["weight_map"].values()})
    elsewhere = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    missing = [name for name in names if not (folder / name).is_file()]
    if not names or elsewhere or missing:
        unsafe = sorted(file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        raise ModelError(
            f"{str(folder)!r} has no {WHOLE}"
            + (f", and its index names {some(elsewhere or missing)}" if names else ""),
            f"{some(unsafe)} would run code when it is read"
            if unsafe
            else "safetensors files inside it are all that is read",
            "Save the weights as safetensors (transformers' save_pretrained does)" if unsafe else WHOLE_AGAIN,
        )
    return [folder / name for name in names]


def read_model(folder: Path, **settings: Any) -> torch.nn.Module:
    """The model of a checkpoint; `settings` go to `from_pretrained`. Raises `ModelError` unless each tensor of the
    files has its place in the model, and each of the model one in the files (tied ones stand there once)."""
    weight_files(folder)
    with reading(str(folder)):
        model, info = AutoModelForImageTextToText.from_pretrained(
            str(folder),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are told of below
            output_loading_info=True,
            **settings,
        )
    shapes = {
        name: f"{name} is {tuple(theirs)} and not {tuple(ours)}" for name, theirs, ours in info["mismatched_keys"]
    }
    hold_to_fit(str(folder), info["missing_keys"], info["unexpected_keys"], shapes.values(), info["error_msgs"])
    return model


def hold_to_fit(
    source: str,
    missing: Collection[str],
    unknown: Collection[str],
    shapes: Collection[str],
    errors: Collection[str] = (),
) -> None:
    """Raises `ModelError` unless all four are empty."""
    amiss = {"missing": missing, "of no use to the model": unknown, "of another shape": shapes, "unread": errors}
    if faults := [f"{len(names)} {words} ({some(names)})" for words, names in amiss.items() if names]:
        raise ModelError(
            f"tensors of {source!r} do not fit its model: {', '.join(faults)}",
            "a model with weights drawn at random in their place would be trained or scored as if it were whole",
            WHOLE_AGAIN,
        )


def hold_to_numbers(model: torch.nn.Module, source: str) -> None:
    """Raises `ModelError` where a weight is infinite or not a number: a training that ran away, or a damaged file."""
    weights = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    sums = torch.stack([p.detach().sum(dtype=torch.float32) for p in weights.values()])
    bad = [name for name, finite in zip(weights, sums.isfinite().tolist()) if not finite]
    if bad:
        raise ModelError(
            f"{len(bad)} tensors of {source!r} hold infinite values or none at all ({some(bad)})",
            "whatever is computed with them is no number",
            "Train again at a lower learning rate, or copy the checkpoint again",
        )


def some(names: Collection[str], most: int = 3) -> str:
    """The first of many names."""
    first = sorted(names)[:most]
    return ", ".join(first) + (", …" if len(names) > most else "")


# --------------------------------------------------------------------------------------------------------- adapters


def fill_adapter(model: torch.nn.Module, folder: Path, name: str = "default") -> None:
    """Lay an adapter's weights into a PEFT model that has its shape. Raises `ModelError` unless all of them fit."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    with reading(str(folder), "LoRA adapter", WHOLE_AGAIN):
        weights = load_file(folder / ADAPTER)
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    shapes = [
        f"{n} is {tuple(weights[n].shape)} and not {tuple(state[n].shape)}"
        for n in weights.keys() & state.keys()
        if weights[n].shape != state[n].shape
    ]
    hold_to_fit(str(folder), state.keys() - weights.keys(), weights.keys() - state.keys(), shapes)
    set_peft_model_state_dict(model, weights, adapter_name=name)


def record_base(folder: Path, path: str, base: Path) -> None:
    """Write beside an adapter on which base it was trained: its `model.path`, and the hash of its weights."""
    disk.write_json(folder / BASE, {"path": path, "weights": weights_hash(base)})


def hold_to_base(adapter: Path, path: str, base: Path) -> None:
    """Raises `ModelError` where the adapter was trained on other weights than those of `base`, given as `path`.

    Weights are compared by their hash. Of an adapter from before hashes were recorded, the base that its
    `adapter_config.json` names is compared in the same way where it still lies there, else by its last name.
    """
    with reading(str(adapter), "LoRA adapter", WHOLE_AGAIN):
        base_name = str(
            json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        )
        record = json.loads((adapter / BASE).read_text(encoding="utf-8")) if (adapter / BASE).exists() else {}
        base_name = record.get("path", base_name)
        expected_hash = record.get("weights")
    if expected_hash is None and Path(base_name).is_dir() and any(Path(base_name).glob("*.safetensors")):
        expected_hash = weights_hash(Path(base_name))
    if expected_hash is None:
        matches = base_name in ("", path) or _last_name(Path(base_name)) in (_last_name(base), _last_name(Path(path)))
    else:
        matches = expected_hash == weights_hash(base)
    if not matches:
        raise ModelError(
            f"the adapter in {str(adapter)!r} on model.path = {path!r}",
            f"it was trained on other weights, those of {base_name!r}"
            + (f" (hash {expected_hash[:12]}, and here {weights_hash(base)[:12]})" if expected_hash else ""),
            f"Set model.path={base_name}, as it was then",
        )


def _last_name(path: Path) -> tuple[str, ...]:
    return path.parts[-2:] if path.name == "model" else path.parts[-1:]


def weights_hash(folder: Path) -> str:
    """SHA-256 over name, number type, shape and bytes of every tensor of a whole model, however they are divided over
    files. Computed once a process, at 0.4 GB a second and core or faster."""
    files = [(file, os.stat(file)) for file in weight_files(folder)]
    with reading(str(folder)):
        return _hash(tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in files))


@lru_cache(maxsize=8)
def _hash(files: tuple[tuple[str, int, int], ...]) -> str:
    def digest(place: tuple[str, Any]) -> bytes:
        name, file = place
        tensor = file.get_tensor(name)
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        return hashlib.sha256(head.encode() + hashlib.sha256(raw(tensor)).digest()).digest()

    opened = [safe_open(file, "pt") for file, *_ in files]
    places = sorted(((name, file) for file in opened for name in file.keys()), key=lambda place: place[0])
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter free
        return hashlib.sha256(b"".join(pool.map(digest, places))).hexdigest()


def raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, of any number type."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
