"""Embeddings of clips: stored once, found without torch, and where clips lie to each other."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from deepintuit import cli, embed, embeddings
from deepintuit.embeddings import Space, places_of
from deepintuit.errors import ModelError, StoreError, VideoError, VideoReason
from deepintuit.ranks import Shard
from deepintuit.reasoner import Clip
from deepintuit.reasoner.embedding import embedded

pytest_plugins = ["embedded"]


@dataclass
class Viewer:
    """Sees two groups of clips, by the parity of their number; counts what it was shown."""

    about: dict = field(default_factory=lambda: {"name": "parity", "recipe": [1]})
    shown: list[str] = field(default_factory=list)
    fails_at: int = 10**9
    strange: str = ""

    def vectors(self, places):
        for clip_id, *_ in places:
            if len(self.shown) == self.fails_at:
                raise KeyboardInterrupt
            self.shown.append(clip_id)
            number = int(clip_id[1:])
            noise = np.random.default_rng(number).normal(size=6)
            if clip_id == self.strange:
                yield np.full(6, np.nan)
            elif number == 13:
                yield VideoError("c13", "no frame can be read", "Leave it out", VideoReason.NOT_A_VIDEO)
            else:
                yield noise + 20 * (number % 2)


def clips(count: int) -> list[Clip]:
    return [Clip(f"c{number}", f"{number}.mp4", None, 64, 64, None) for number in range(count)]


def test_a_clip_is_embedded_once_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("deepintuit.reasoner.embedding._PART", 8)
    viewer = Viewer(fails_at=20)
    with pytest.raises(KeyboardInterrupt):
        embedded(tmp_path, viewer, clips(40), progress=False)
    assert places_of(tmp_path, ["c1"]) is None
    again = Viewer()
    space, unreadable = embedded(tmp_path, again, clips(40), progress=False)
    assert again.shown == ["c13", *(f"c{k}" for k in range(16, 40))]  # what could not be read is tried again
    assert set(unreadable) == {"c13"} and space.ids() == {f"c{k}" for k in range(40)} - {"c13"}
    third = Viewer()
    embedded(tmp_path, third, clips(42), progress=False)
    assert third.shown == ["c13", "c40", "c41"]
    assert "c41" in places_of(tmp_path, ["c41"]).place_of
    assert np.allclose(space.vectors(["c3", "c2"])[:, 0] > 10, [True, False])


def test_shards_share_out_the_clips_and_the_one_that_ends_last_arranges(tmp_path):
    space, two, one = Space(tmp_path, Viewer().about), Viewer(), Viewer()
    with space.writing(Shard(1, 2)):
        embedded(tmp_path, two, clips(40), progress=False, shard=Shard(2, 2))
        assert space.ids() and not space.arranged and places_of(tmp_path, ["c1"]) is None
        for other in (Shard(1, 2), Shard(2, 3), None):
            with pytest.raises(StoreError, match="is in use by process"), space.writing(other):
                pass
    assert places_of(tmp_path, ["c1"]).ids_N == sorted(space.ids())
    embedded(tmp_path, one, clips(40), progress=False, shard=Shard(1, 2))
    assert [one.shown, two.shown] == [[f"c{number}" for number in range(at, 40, 2)] for at in (0, 1)]
    assert space.arranged and len(places_of(tmp_path, ["c1"]).ids_N) == 39
    embedded(tmp_path, again := Viewer(), clips(40), progress=False)
    assert again.shown == ["c13"]


def test_the_nearest_clips_are_of_the_same_kind_and_the_same_whatever_the_order(tmp_path):
    embedded(tmp_path / "a", Viewer(), clips(60), progress=False)
    embedded(tmp_path / "b", Viewer(), clips(60)[::-1], progress=False)
    one, other = (places_of(tmp_path / name, ["c7"]) for name in "ab")
    ids, similarities = one.nearest("c7")
    assert len(ids) == 58 and "c7" not in ids and (np.diff(similarities) <= 0).all() and similarities.max() <= 1.001
    assert all(int(clip_id[1:]) % 2 for clip_id in ids[:20])
    assert one.ids_N == other.ids_N and np.array_equal(one.map_N_2, other.map_N_2)
    halves = [one.map_N_2[[at for c, at in one.place_of.items() if int(c[1:]) % 2 == k]] for k in (0, 1)]
    assert np.linalg.norm(halves[0].mean(0) - halves[1].mean(0)) > 2 * max(half.std() for half in halves)
    assert np.abs(one.map_N_2).max() == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_so_few_clips_have_places_too(tmp_path, count):
    embedded(tmp_path, Viewer(), clips(count), progress=False)
    places = places_of(tmp_path, ["c0"])
    assert places.map_N_2.shape == (count, 2) and np.isfinite(places.map_N_2).all()
    assert len(places.nearest("c0")[0]) == count - 1


def test_of_many_clips_some_are_mapped_and_the_others_lie_among_them(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "MAPPED", 60)
    embedded(tmp_path, Viewer(), clips(200), progress=False)
    places = places_of(tmp_path, ["c0"])
    assert places.about["mapped"] == 60 and len(places.ids_N) == 199
    odd = np.array([int(c[1:]) % 2 == 1 for c in places.ids_N])
    centres = np.stack([places.map_N_2[odd == kind].mean(0) for kind in (False, True)])
    nearest = np.linalg.norm(places.map_N_2[:, None] - centres, axis=2).argmin(1)
    assert (nearest == odd).mean() > 0.95


def test_a_damaged_part_is_embedded_again_and_damaged_places_are_passed_over(tmp_path):
    space, _ = embedded(tmp_path, Viewer(), clips(20), progress=False)
    for name in ("00000.parquet", "places.parquet"):
        path = space.folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="places.parquet is passed over"):
        assert places_of(tmp_path, ["c1"]) is None
    again = Viewer()
    with pytest.warns(UserWarning, match="00000.parquet .* is removed"):
        embedded(tmp_path, again, clips(20), progress=False)
    assert len(again.shown) == 20 and "c1" in places_of(tmp_path, ["c1"]).place_of


def test_values_that_are_no_number_are_refused_and_two_writers_too(tmp_path):
    with pytest.raises(ModelError, match="'c4'"):
        embedded(tmp_path, Viewer(strange="c4"), clips(9), progress=False)
    space = Space(tmp_path, Viewer().about)
    with space.writing(), pytest.raises(StoreError):
        embedded(tmp_path, Viewer(), clips(9), progress=False)


def test_another_viewer_has_a_space_of_its_own_and_the_one_with_more_of_the_clips_is_shown(tmp_path):
    embedded(tmp_path, Viewer(), clips(30), progress=False)
    embedded(tmp_path, Viewer(about={"name": "parity", "recipe": [2]}), clips(10), progress=False)
    assert places_of(tmp_path, ["c1"]).about["recipe"] == [2]  # the newest
    assert places_of(tmp_path, ["c1", "c29"]).about["recipe"] == [1]
    assert places_of(tmp_path, ["c99"]) is None and places_of(tmp_path / "nowhere", ["c1"]) is None


def test_the_command_embeds_by_the_tower_of_the_newest_reasoner(bench, tmp_path, capsys):
    own = bench.copy(tmp_path / "own")
    sets = own.settings("video.frames=3").to_dict()
    with own.workbench.start_run("coldstart", sets, dataset="homecam") as run:
        run.finish({})
    usable = own.manifest.usable()["clip_id"].tolist()
    embed = ["embed", "--workbench", str(own.path), "--quiet"]
    assert cli.main([*embed, "--dry-run"]) == 0 and not (own.path / "embeddings").exists()
    assert [cli.main([*embed, "homecam", "--shard", shard]) for shard in ("1/2", "3/2", "2/2")] == [0, 2, 0]
    assert f"{len(usable)} clips by the visual tower of {bench.model.name}" in capsys.readouterr().out
    places = places_of(own.path, usable)
    assert sorted(usable) == places.ids_N and places.about["recipe"][3] == 3
    assert cli.main(["embed", "homecan", "--workbench", str(own.path)]) == 2
    assert "homecan" in capsys.readouterr().err


def test_places_are_read_without_torch(tmp_path):
    embedded(tmp_path, Viewer(), clips(5), progress=False)
    program = f"""
import sys
from deepintuit.embeddings import places_of
assert places_of({str(tmp_path)!r}, ["c1"]).nearest("c1")[0]
assert not {{"torch", "sklearn"}} & set(sys.modules)"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(embed.__file__).parents[1]).returncode == 0
