"""Near-duplicates: a copy is known again, another clip is not, and one split holds both where that is wanted."""

import numpy as np
import pytest
from PIL import Image

from deepintuit import cli, video
from deepintuit.data import Manifest
from deepintuit_clips import near
from deepintuit_clips.scan import readable


def scene(number: int, count: int = 16) -> np.ndarray:
    """A camera that pans over a picture of blots, no two scenes alike."""
    rng = np.random.default_rng(number)
    blots = Image.fromarray(rng.integers(0, 255, (9, 14, 3), np.uint8))
    picture = np.asarray(blots.resize((260, 144), Image.Resampling.BICUBIC))
    return np.stack([picture[8:136, 4 * t : 4 * t + 192] for t in range(count)])


EDITS = {
    "smaller": lambda pixels: pixels[:, ::2, ::2],
    "trimmed": lambda pixels: pixels[5:13],
    "cropped by a tenth": lambda pixels: pixels[:, 6:122, 10:182],
    "cropped by a fifth, off the middle": lambda pixels: pixels[:, 8:116, 22:182],
    "darker": lambda pixels: (pixels * 0.6).astype(np.uint8),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve scenes of two labels, and of the first an edited copy each."""
    folder = tmp_path_factory.mktemp("near") / "videos"
    for label in ("fall", "sit"):
        (folder / label).mkdir(parents=True)
    for number in range(12):
        video.write_mp4(folder / ("fall", "sit")[number % 2] / f"scene-{number}.mp4", scene(number), 8.0)
    for number, edit in enumerate(EDITS.values()):
        video.write_mp4(folder / "fall" / f"copy-{number}.mp4", edit(scene(2 * number)), 8.0)
    video.write_mp4(folder / "sit" / "dark.mp4", np.zeros((16, 64, 64, 3), np.uint8), 8.0)
    video.write_mp4(folder / "sit" / "dark-too.mp4", np.ones((16, 64, 64, 3), np.uint8), 8.0)
    return folder


def test_each_edited_copy_is_known_again_and_nothing_else(folder):
    prints = {path.stem: near.fingerprint(path) for path in folder.rglob("*.mp4")}
    assert prints["dark"] == prints["dark-too"] == "", "a dark frame is like any other"
    prints |= {"damaged": "%%%", "cut": prints["scene-0"][:-5], "short": prints["scene-0"][:-8]}
    named = {pair[:2]: pair.share for pair in near.pairs(prints)}
    wanted = {(f"copy-{number}", f"scene-{2 * number}"): edit for number, edit in enumerate(EDITS)}
    assert {wanted.get(pair, pair) for pair in named} == {*EDITS} and min(named.values()) >= near.SHARE


def test_groups_of_near_duplicates_are_one_also_over_a_third_clip(folder):
    import pandas as pd

    frame = pd.DataFrame({"clip_id": list("abcde"), "group": ["x", "y", "z", "y", "v"]})
    manifest = Manifest(folder, "home", frame, None)
    pairs = [near.Pair("a", "b", 1.0), near.Pair("c", "d", 0.9), near.Pair("e", "gone", 1.0)]
    assert near.together(manifest, pairs).frame["group"].tolist() == ["x", "x", "x", "x", "v"]
    assert manifest.frame["group"].tolist() == ["x", "y", "z", "y", "v"]
    assert near.together(manifest, []).frame["group"].tolist() == manifest.frame["group"].tolist()


def test_an_import_reports_them_and_keeps_them_together_when_told(folder, tmp_path, capsys):
    place = ["--workbench", str(tmp_path)]
    words = ["clips", "folder", str(folder), "--name", "home", "--jobs", "1", "--quiet", "--set", "seed=1", *place]
    assert cli.main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "5 pairs of clips look like the same footage" in shown and "--near together" in shown
    assert "'fall/copy-" in shown and "in different splits" in shown
    prints = near.prints(tmp_path, "home")
    assert len(prints) == 17 and len(readable(tmp_path, "home")) == 19
    assert cli.main(["clips", "split", "home", "--near", "together", "--set", "seed=1", *place]) == 0
    assert "0 of them in different splits" in " ".join(capsys.readouterr().out.split())
    frame = Manifest.load(tmp_path, "home").frame
    split = dict(zip(frame["source"].str.split("/").str[-1].str.removesuffix(".mp4"), frame["split"]))
    assert all(split[f"copy-{number}"] == split[f"scene-{2 * number}"] for number in range(5))
    journal = tmp_path / "clips" / "home.journal.jsonl"
    before = journal.stat().st_size
    assert cli.main([*words, "--near", "off"]) == 0
    assert "same footage" not in capsys.readouterr().out and journal.stat().st_size == before
    assert cli.main(["clips", "show", "home", *place]) == 0
    assert "5 pairs of clips" in " ".join(capsys.readouterr().out.split())
