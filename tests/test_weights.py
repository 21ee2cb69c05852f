"""Weights fit, or nothing runs: every tensor has its place, an adapter its base, and no code of a checkpoint is run."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from deepintuit.config import ModelConfig
from deepintuit.errors import ModelError
from deepintuit.reasoner import LinearHead
from deepintuit.vlm import VLM
from deepintuit.vlm.weights import ADAPTER, BASE, weights_hash

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny.write_family("embedded", tmp_path_factory.mktemp("family") / "model")


@pytest.fixture(scope="module")
def trained(family, tmp_path_factory):
    """An adapter of that base whose second matrices are not zero."""
    torch.manual_seed(1)
    vlm = family.load(trainable=True, lora_rank=2)
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    vlm.save(folder, {"run": "r1"})
    return folder


@pytest.fixture
def copy(family, tmp_path):
    return Path(shutil.copytree(family.folder, tmp_path / "copy"))


@pytest.fixture
def adapter(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


def refused(family, path, *words, checkpoint=None, **settings) -> str:
    """The sentence that loading ends with, in three beats and on one line."""
    with pytest.raises(ModelError) as caught:
        VLM.load(ModelConfig(path=str(path), device="cpu", **settings), family.video, checkpoint=checkpoint)
    told, error = str(caught.value), caught.value
    assert all(beat.strip() for beat in (error.what, error.why, error.todo)) and "\n" not in told
    assert error.todo[0].isupper() and all(word in told for word in words), told
    return told


def rewrite(file: Path, change) -> None:
    """Tensors of a safetensors file, changed by `change`, in its place."""
    save_file({k: v.clone().contiguous() for k, v in change(load_file(file)).items()}, file, metadata={"format": "pt"})


def edit(file: Path, **content) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))


# ------------------------------------------------------------------------------------------------------- whole models


def shrunk(tensors, name):
    return {**tensors, name: tensors[name][:-1]}


EMBEDDING, LAST = "model.embed_tokens.weight", "model.norm.weight"  # under the hub's names
UNFIT = {
    "one tensor missing": (lambda t: {k: v for k, v in t.items() if k != LAST}, "1 missing"),
    "a layer missing": (lambda t: {k: v for k, v in t.items() if ".layers.3." not in k}, "missing"),
    "the tower missing": (lambda t: {k: v for k, v in t.items() if "visual." not in k}, "missing"),
    "the tied embedding missing": (lambda t: {k: v for k, v in t.items() if k != EMBEDDING}, "missing"),
    "a layer too many": (
        lambda t: t | {k.replace("layers.3", "layers.4"): v for k, v in t.items() if "model.layers.3" in k},
        "of no use",
    ),
    "other names": (lambda t: {k.replace("model.layers", "text.layers"): v for k, v in t.items()}, "of no use"),
    "another shape": (lambda t: shrunk(t, LAST), "of another shape"),
    "another vocabulary": (lambda t: shrunk(t, EMBEDDING), "of another shape"),
    "nothing": (lambda t: {"x": torch.zeros(1)}, "missing"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_checkpoint_whose_tensors_do_not_fit_is_refused(case, family, copy):
    change, word = UNFIT[case]
    rewrite(copy / WEIGHTS, change)
    refused(family, copy, "tensors of", word)


def test_a_config_of_more_layers_than_the_weights_is_refused(family, copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}
    (copy / "config.json").write_text(json.dumps(config))
    refused(family, copy, "missing", "layers.4")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(value, family, copy):
    def spoil(tensors):
        tensors[LAST][3] = value
        return tensors

    rewrite(copy / WEIGHTS, spoil)
    refused(family, copy, "norm.weight")


def test_weights_divided_over_files_are_the_same_weights(family, copy):
    tensors = load_file(copy / WEIGHTS)
    halves = sorted(tensors)[::2], sorted(tensors)[1::2]
    for number, names in enumerate(halves):
        save_file({n: tensors[n] for n in names}, copy / f"part-{number}.safetensors", metadata={"format": "pt"})
    (copy / WEIGHTS).unlink()
    places = {name: f"part-{number}.safetensors" for number, names in enumerate(halves) for name in names}
    (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    VLM.load(ModelConfig(path=str(copy), device="cpu"), family.video)
    assert weights_hash(copy) == weights_hash(family.folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "../family/model.safetensors", "/tmp/x.safetensors", "gone.safetensors"]
)
def test_an_index_that_names_other_files_is_refused(name, family, copy):
    (copy / WEIGHTS).rename(copy / "part.safetensors")
    (copy / "pytorch_model.bin").write_bytes(b"")
    (copy / INDEX).write_text(json.dumps({"weight_map": {LAST: name, EMBEDDING: "part.safetensors"}}))
    refused(family, copy, Path(name).name)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none_is_refused(content, family, copy):
    (copy / WEIGHTS).unlink()
    (copy / INDEX).write_text(content)
    refused(family, copy)


@pytest.mark.parametrize("damage", [b"", b"\x00" * 8, b"\xff" * 64, b"PK\x03\x04" + b"\x00" * 64])
def test_a_file_that_is_no_safetensors_is_refused(damage, family, copy):
    (copy / WEIGHTS).write_bytes(damage)
    refused(family, copy)


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was run')",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", WEIGHTS])
def test_a_pickle_is_never_read(name, family, copy):
    (copy / WEIGHTS).unlink()
    (copy / name).write_bytes(pickle.dumps(Trap()))
    assert name == WEIGHTS or name in refused(family, copy, "safetensors")
    if name == WEIGHTS:
        refused(family, copy)


@pytest.mark.parametrize(
    "content", [{"transformers_weights": "adapter_model.bin"}, {"quantization_config": {"quant_method": "fp8"}}]
)
def test_weights_that_lie_elsewhere_or_are_quantised_already_are_refused(content, family, copy):
    edit(copy / "config.json", **content)
    refused(family, copy, *content)


# --------------------------------------------------------------------------------------------- code of the checkpoint


CODE = {
    "AutoConfig": "mine.Config",
    "AutoModelForImageTextToText": "mine.Model",
    "AutoProcessor": "mine.Processor",
    "AutoTokenizer": ["mine.Tokenizer", None],
}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"auto_map": CODE}),
        ("config.json", {"auto_map": CODE, "model_type": "mine"}),
        ("config.json", {"text_config": {"auto_map": CODE}}),
        ("processor_config.json", {"auto_map": CODE, "processor_class": "Mine"}),
        ("processor_config.json", {"video_processor": {"auto_map": CODE}}),
        ("tokenizer_config.json", {"auto_map": CODE, "tokenizer_class": "Mine"}),
    ],
)
def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(file, content, family, copy, monkeypatch, capfd):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question at the terminal"))
    (copy / "mine.py").write_text("raise SystemExit('the code was run')")
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text("raise SystemExit('the code was run')")
    edit(copy / file, **content)
    refused(family, copy, file, "auto_map")
    assert "custom code" not in "".join(capfd.readouterr())


def test_a_generate_of_the_checkpoints_own_is_passed_over(family, copy):
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text("raise SystemExit('the code was run')")
    vlm = VLM.load(ModelConfig(path=str(copy), device="cpu"), family.video)
    assert "generate" not in vars(vlm.model)


# ------------------------------------------------------------------------------------------------ template and tokens


def test_a_missing_chat_template_is_refused(family, copy):
    (copy / "chat_template.jinja").unlink()
    refused(family, copy, "no chat template")


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['content'][1]['text'] }}", "{{ nothing.at.all }}", "{% for %}", "{{ ''.__class__.__mro__ }}"],
)
def test_a_chat_template_that_writes_no_clip_is_refused(template, family, copy):
    (copy / "chat_template.jinja").write_text(template)
    refused(family, copy)


@pytest.mark.parametrize(("token", "word"), [("pad_token", "pad"), ("eos_token", "end")])
def test_a_tokenizer_without_a_token_that_is_needed_is_refused(token, word, family, copy):
    edit(copy / "tokenizer_config.json", **{token: None})
    refused(family, copy, f"no {word} token")


def test_the_tokenizer_of_another_checkpoint_is_refused(family, copy, tmp_path):
    other = tiny.write_family("hub3", tmp_path / "other").folder
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(other / name, copy / name)
    refused(family, copy, "tokenizer")


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_a_processor_that_cannot_be_read_is_refused(file, family, copy):
    (copy / file).write_text("{")
    refused(family, copy)


# ----------------------------------------------------------------------------------------------------------- adapters


def test_an_adapter_stands_on_its_base_wherever_that_was_moved(family, adapter, copy):
    VLM.load(ModelConfig(path=str(copy), device="cpu"), family.video, checkpoint=adapter)


@pytest.mark.parametrize("name", [LAST, "visual.merger.ln_q.weight"])
def test_an_adapter_of_other_weights_is_refused(name, family, adapter, copy):
    """Of the same shapes and at the same path: one number is another."""

    def change(tensors):
        tensors[name][0] += 0.5
        return tensors

    assert (told := json.loads((adapter / BASE).read_text()))["weights"] == weights_hash(family.folder)
    (adapter / BASE).write_text(json.dumps(told | {"path": str(copy)}))
    rewrite(copy / WEIGHTS, change)
    refused(family, copy, "other weights", checkpoint=adapter)
    refused(family, copy, "other weights", checkpoint=adapter, lora_rank=2)


class TestAnAdapterFromBeforeHashes:
    @pytest.fixture
    def old(self, adapter):
        (adapter / BASE).unlink()
        return adapter

    def load(self, family, path, old):
        return VLM.load(ModelConfig(path=str(path), device="cpu"), family.video, checkpoint=old)

    def test_loads_on_the_base_that_it_names(self, family, old):
        self.load(family, family.folder, old)

    def test_loads_on_a_copy_of_that_base(self, family, old, copy):
        self.load(family, copy, old)

    def test_loads_on_a_folder_of_that_name_where_the_named_one_is_gone(self, family, old, tmp_path):
        edit(old / "adapter_config.json", base_model_name_or_path="/elsewhere/qwen-small")
        self.load(family, shutil.copytree(family.folder, tmp_path / "qwen-small"), old)

    def test_is_refused_on_other_weights_while_the_named_base_is_there(self, family, old, copy):
        rewrite(copy / WEIGHTS, lambda tensors: tensors | {LAST: tensors[LAST] + 1})
        refused(family, copy, str(family.folder), checkpoint=old)

    @pytest.mark.parametrize(
        "name", ["/elsewhere/qwen-other", "Qwen/Qwen2.5-VL-7B-Instruct", "/elsewhere/homecam/model"]
    )
    def test_is_refused_on_a_base_of_another_name_where_the_named_one_is_gone(self, name, family, old):
        edit(old / "adapter_config.json", base_model_name_or_path=name)
        refused(family, family.folder, name, checkpoint=old)


OTHER_KEYS = {
    "names of another version": lambda t: {k.replace("language_model.", ""): v for k, v in t.items()},
    "one key missing": lambda t: dict(list(t.items())[1:]),
    "one key too many": lambda t: t | {"base_model.model.model.visual.x.lora_A.weight": torch.zeros(2, 2)},
    "another rank": lambda t: {k: v[:1] if "lora_A" in k else v[:, :1] for k, v in t.items()},
    "another width": lambda t: {k: v[:, :-1] if "lora_A" in k else v for k, v in t.items()},
}


@pytest.mark.parametrize("case", OTHER_KEYS)
def test_an_adapter_whose_tensors_do_not_fit_is_refused(case, family, adapter):
    rewrite(adapter / ADAPTER, OTHER_KEYS[case])
    refused(family, family.folder, "tensors of", checkpoint=adapter)


@pytest.mark.parametrize("damage", ["truncated", "a pickle", "not a number", "no config", "of the tower"])
def test_an_adapter_that_cannot_be_read_is_refused(damage, family, adapter):
    file = adapter / ADAPTER
    match damage:
        case "truncated":
            file.write_bytes(file.read_bytes()[:500])
        case "a pickle":
            file.unlink()
            (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
        case "not a number":
            rewrite(file, lambda tensors: {k: v * torch.nan for k, v in tensors.items()})
        case "no config":
            (adapter / "adapter_config.json").write_text("{}")
        case "of the tower":
            edit(adapter / "adapter_config.json", target_modules=["qkv"])
    refused(family, family.folder, checkpoint=adapter)


def test_a_hub_id_is_its_kept_files_and_the_name_that_an_adapter_records(family, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    kept = tmp_path / "models--someone--small"
    shutil.copytree(family.folder, kept / "snapshots" / ("0" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    hub = tiny.Family("hub", Path("someone/small"), family.video)
    hub.load(trainable=True, lora_rank=2).save(tmp_path / "adapter", {})
    assert json.loads((tmp_path / "adapter" / BASE).read_text())["path"] == "someone/small"
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "someone/small"
    )
    hub.load(checkpoint=tmp_path / "adapter")
    (tmp_path / "adapter" / BASE).unlink()
    hub.load(checkpoint=tmp_path / "adapter")
    refused(family, "someone/other")


def test_an_adapter_in_place_of_a_model_is_refused(family, adapter):
    refused(family, adapter, "adapter")


def test_the_base_of_an_adapter_is_recorded_by_name_and_hash(family, trained):
    assert json.loads((trained / BASE).read_text()) == {
        "path": str(family.folder),
        "weights": weights_hash(family.folder),
    }
    assert not [file for file in trained.iterdir() if file.suffix in {".bin", ".pt"}]


# -------------------------------------------------------------------------------------------------------- linear heads


@pytest.fixture
def head(tmp_path):
    LinearHead(np.ones((3, 4)), np.zeros(3), np.zeros(4), np.ones(4)).save(tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


def test_a_linear_head_comes_back_as_it_was_saved(head):
    assert (LinearHead.load(head)(np.ones((2, 4))) == 4).all()


@pytest.mark.parametrize(
    "change",
    [
        {"bias_K": None},
        {"further": torch.zeros(1)},
        {"bias_K": torch.zeros(2)},
        {"mean_D": torch.zeros(5)},
        {"scale_D": torch.full((4,), torch.nan)},
        {"weight_K_D": torch.zeros(12)},
    ],
)
def test_a_linear_head_whose_tensors_do_not_fit_is_refused(change, head):
    rewrite(head, lambda tensors: {k: v for k, v in (tensors | change).items() if v is not None})
    with pytest.raises(ModelError, match="linear head"):
        LinearHead.load(head)


def test_a_linear_head_that_cannot_be_read_or_is_of_another_backbone_is_refused(head):
    with pytest.raises(ModelError, match="another backbone"):
        LinearHead.load(head)(np.ones((2, 5)))
    head.write_bytes(head.read_bytes()[:50])
    with pytest.raises(ModelError, match="linear head"):
        LinearHead.load(head)
