"""What stands beside a reasoner: a video classifier trained on the same clips, and a probe of frozen features."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from deepintuit import baselines, cli
from deepintuit.baselines.classifier import VideoClassifier
from deepintuit.config import VideoConfig
from deepintuit.embeddings import places_of
from deepintuit.errors import ConfigError, DataError, ModelError
from deepintuit.video import write_mp4
from deepintuit_analysis.report.results import ordered

pytest_plugins = ["embedded"]

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SEEN = {"image_size": 16, "patch_size": 8, "num_frames": 4, "intermediate_size": 16, "num_labels": 3, **TINY}
PREDICTOR = {"pred_hidden_size": 8, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2, "num_pooler_layers": 1}
FUTURE = {"crop_size": 16, "frames_per_clip": 4, "patch_size": 8, "num_labels": 3, **PREDICTOR, **TINY}
DECODER = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
FAMILIES = {
    "videomae": lambda: VideoMAEForVideoClassification(VideoMAEConfig(**SEEN)),
    "timesformer": lambda: TimesformerForVideoClassification(TimesformerConfig(**SEEN)),
    "vivit": lambda: VivitForVideoClassification(VivitConfig(**{**SEEN, "patch_size": 0}, tubelet_size=[2, 8, 8])),
    "vjepa2": lambda: VJEPA2ForVideoClassification(VJEPA2Config(**FUTURE)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3)).astype(np.uint8)
    write_mp4(path, frames, 8.0)
    return "clip", path, 64, 48


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders") / "tiny-videomae"
    FAMILIES["videomae"]().save_pretrained(folder)
    return folder


def loaded(folder, labels=None) -> VideoClassifier:
    return VideoClassifier.load(str(folder), labels, "cpu", VideoConfig(), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_sees_a_clip_shorter_than_its_frames_and_takes_a_new_head(family, place, tmp_path):
    FAMILIES[family]().save_pretrained(tmp_path)
    as_it_is, anew = loaded(tmp_path), loaded(tmp_path, ["a", "b", "c", "d", "e"])
    assert as_it_is.logits([place, place]).shape == (2, 3) and anew.logits([place]).shape == (1, 5)
    [one], [other] = as_it_is.vectors([place]), anew.vectors([place])
    assert one.shape == (16,) and np.array_equal(one, other), "an embedding hangs on no head"
    pixels = as_it_is.pixels([as_it_is.frames(place)])
    assert pixels.shape == (1, 4, 3, 16, 16) and not torch.equal(pixels[0, 0], pixels[0, 3])
    head = as_it_is.model.classifier
    with torch.no_grad():
        assert np.allclose(head(torch.from_numpy(one)).numpy(), as_it_is.logits([place])[0], atol=1e-5)


def test_a_backbone_without_a_head_is_trained_and_embeds_only_where_nothing_would_be_drawn(place, tmp_path):
    VideoMAEForPreTraining(VideoMAEConfig(**SEEN, **DECODER, decoder_intermediate_size=8)).save_pretrained(
        tmp_path / "mae"
    )
    VJEPA2Model(VJEPA2Config(**FUTURE)).save_pretrained(tmp_path / "jepa")
    assert loaded(tmp_path / "mae", ["a", "b"]).logits([place]).shape == (1, 2)
    assert [*loaded(tmp_path / "mae").vectors([place])][0].shape == (16,)
    assert loaded(tmp_path / "jepa", ["a", "b"]).logits([place]).shape == (1, 2)
    with pytest.raises(ModelError, match="pooler.* drawn at random"):
        loaded(tmp_path / "jepa")


def test_what_is_no_whole_classifier_is_refused(model_folder, tiny, tmp_path):
    for folder in (model_folder, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match="video classifier"):
            loaded(folder, ["a", "b"])
    torn = shutil.copytree(tiny, tmp_path / "torn")
    (torn / "config.json").write_text(
        (torn / "config.json").read_text().replace('"hidden_size": 16', '"hidden_size": 32')
    )
    with pytest.raises(ModelError, match="do not fit"):
        loaded(torn, ["a", "b"])
    (torn / "model.safetensors").rename(torn / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        loaded(torn, ["a", "b"])


SHORT = ("encoder.epochs=2", "encoder.batch=16", "encoder.learning_rate=1e-3")


@pytest.fixture(scope="module")
def trained(bench, tiny, tmp_path_factory):
    own = bench.copy(tmp_path_factory.mktemp("trained") / "own")
    return own, baselines.encoder(own.workbench, own.settings(f"encoder.path={tiny}", *SHORT), progress=False)


def test_an_encoder_is_trained_on_the_training_clips_and_stands_in_the_table(trained, tiny, capsys):
    own, run = trained
    rows = run.read("predictions")
    test, validation = own.manifest.usable("test"), own.manifest.usable("validation")
    assert set(rows["system"]) == {"encoder (videomae, tiny-videomae)"} and run.parent is None
    assert {m: len(part) for m, part in rows.groupby("method")} == {"raw": len(test), "label_likelihood": len(test)}
    assert set(rows["clip_id"]) == set(test["clip_id"]) and set(rows["control"]) == {"none"}
    assert np.allclose([sum(probs) for probs in rows["probs"]], 1)
    assert run.summary["steps"] == 2 * -(-(40 - len(validation)) // 16) and 0 < run.summary["best_epoch"] <= 2
    logged = run.read("steps").query("name == 'validation_nll'")["value"].tolist()
    assert len(logged) == 2 and min(logged) == pytest.approx(run.summary["validation_nll"])
    assert not (run.path / "training").exists()
    assert run.summary["thresholds"]["label_likelihood"]["n"] == len(validation)
    # What is left is the best epoch, and a folder like any other.
    again = loaded(run.checkpoint, list(own.manifest.labels))
    places = [(r.clip_id, r.path, r.width, r.height) for r in validation.itertuples()]
    truth = [own.manifest.labels.index(label) for label in validation["label"]]
    assert again._nll(places, truth) == pytest.approx(run.summary["validation_nll"], abs=1e-4)
    same = own.settings(f"encoder.path={tiny}", *SHORT)
    assert baselines.encoder(own.workbench, same, progress=False).id == run.id
    command = ["embed", "--encoder", run.id, "--workbench", str(own.path), "--quiet"]
    assert cli.main(command) == 0 and f"video classifier videomae, {run.id}" in capsys.readouterr().out
    assert places_of(own.path, test["clip_id"].tolist()).about["name"] == f"video classifier videomae, {run.id}"


def test_a_killed_encoder_goes_on_to_the_same_answers(bench, trained, tiny, tmp_path, monkeypatch):
    other, (_, whole) = bench.copy(tmp_path / "other"), trained
    settings = other.settings(f"encoder.path={tiny}", *SHORT)
    save, nll, calls = VideoClassifier.save, VideoClassifier._nll, []

    def second(self, *given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return nll(self, *given)

    def full(*given):
        raise KeyboardInterrupt

    for name, broken, mended in (("_nll", second, nll), ("save", full, save)):  # in training, and behind it
        monkeypatch.setattr(VideoClassifier, name, broken)
        with pytest.raises(KeyboardInterrupt):
            baselines.encoder(other.workbench, settings, progress=False)
        monkeypatch.setattr(VideoClassifier, name, mended)
    resumed = baselines.encoder(other.workbench, settings, progress=False)
    rows = [run.read("predictions").sort_values(["method", "clip_id"]) for run in (whole, resumed)]
    before, after = (np.stack(part["probs"]) for part in rows)
    assert np.allclose(before, after, atol=1e-5) and resumed.summary["best_epoch"] == whole.summary["best_epoch"]


def test_a_probe_learns_from_frozen_features_and_is_chosen_on_validation(bench, tiny, tmp_path):
    own = bench.copy(tmp_path / "own")
    run = baselines.probe(own.workbench, own.settings(), progress=False)
    rows = run.read("predictions")
    assert set(rows["system"]) == {f"probe (visual tower of {bench.model.name})"}
    assert set(rows["method"]) == {"raw", "label_likelihood"} and len(rows) == 2 * len(own.manifest.usable("test"))
    assert run.summary["strength"] in baselines._STRENGTHS and run.summary["validation_nll"] > 0
    classified = baselines.probe(own.workbench, own.settings(f"encoder.path={tiny}"), progress=False)
    assert classified.read("predictions")["system"][0] == "probe (video classifier videomae, tiny-videomae)"
    assert classified.summary["features"] == 16


def test_nothing_to_tell_apart_and_a_named_calibrator_are_refused(bench, tmp_path, capsys):
    own = bench.copy(tmp_path / "own")
    call = ["evaluate", "--workbench", str(own.path), "--reasoner"]
    assert cli.main([*call, "probe", "--calibrator", "x"]) == 2
    assert "no run" in capsys.readouterr().err
    with own.workbench.start_run("calibrate", {}, dataset="homecam") as run:
        run.finish({})
    assert cli.main([*call, "encoder", "--calibrator", run.id]) == 2
    assert "Leave it out" in capsys.readouterr().err
    manifest = own.manifest
    manifest.frame["label"] = manifest.frame["label"].iloc[0]
    manifest.save()
    for way in (baselines.encoder, baselines.probe):
        with pytest.raises(DataError, match="training"):
            way(own.workbench, own.settings(), progress=False)
    with pytest.raises(ConfigError, match="encoder.epochs"):
        own.settings("encoder.epochs=0")


def test_they_stand_before_the_first_reasoner_and_variants_of_a_system_beside_it():
    from types import SimpleNamespace

    names = [
        "cold start", "labels only", "encoder (videomae, x)", "cold start (video.frames 8 → 16)", "probe (tower)",
        "majority", "my own",
    ]  # fmt: skip
    rows = [SimpleNamespace(key=(name, method, "none")) for name in names for method in ("label_likelihood", "raw")]
    read = list(dict.fromkeys(row.key[0] for row in ordered(rows)))
    assert read == [names[place] for place in (5, 4, 2, 1, 0, 3, 6)]
    assert [row.key[1] for row in ordered(rows)] == ["raw", "label_likelihood"] * len(names)
