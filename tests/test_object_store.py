"""Clips on an object store: fsspec's memory, and a folder of this disk behind addresses of S3."""

import re
import shutil
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry

from deepintuit import addresses, disk, video, worlds
from deepintuit.cli import main
from deepintuit.data import Manifest
from deepintuit.errors import ConfigError, DataError, VideoError, VideoReason
from deepintuit.labels import LabelSet
from deepintuit.runs import Workbench
from deepintuit_analysis import Workbench as BrowsedWorkbench
from deepintuit_analysis.index import browse
from deepintuit_clips import import_csv, import_folder, scan
from deepintuit_clips.sources import import_new

LABELS = LabelSet.of("two", ("a", "b"))
looked = partial(scan, probe=video.probe, playable_copy=video.playable_copy, progress=False)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, bytes]:
    """Two sound clips, a/1.mp4 and b/2.mp4."""
    folder, contents = tmp_path_factory.mktemp("clips"), {}
    for number, label in enumerate("ab", 1):
        video.write_mp4(folder / "clip.mp4", np.full((6, 64, 64, 3), 60 * number, np.uint8), 6)
        contents[f"{label}/{number}.mp4"] = (folder / "clip.mp4").read_bytes()
    return contents


@pytest.fixture
def store(clips, request) -> str:
    """An address with both clips and a note beside them."""
    name = re.sub(r"\W+", "-", request.node.name)
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/{name}/v/{place}": content for place, content in {**clips, "a/note.txt": b"x"}.items()})
    yield f"memory://{name}/v"
    memory.rm(f"/{name}", recursive=True)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The objects that are read, in order."""
    read, names = addresses._pieces, []
    monkeypatch.setattr(addresses, "_pieces", lambda *args: names.append(args[-1]) or read(*args))
    return names


@pytest.fixture
def bucket(clips, tmp_path, monkeypatch) -> Path:
    """The folder that s3:// addresses lead to."""

    class Bucket(DirFileSystem):
        cachable = False

        def __init__(self, **options):
            super().__init__(path=str(tmp_path / "s3"), fs=LocalFileSystem(), **options)

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("s3://").rstrip("/")

    monkeypatch.setitem(_registry, "s3", Bucket)
    for name, content in clips.items():
        path = tmp_path / "s3" / "bucket" / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "s3"


def refused(call, *arguments, error=DataError, **options) -> str:
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_a_folder_on_a_store_is_imported_used_and_fetched_again(store, tmp_path, opened, clips):
    manifest, report = looked(import_folder(store, labels=LABELS), tmp_path, "remote")
    manifest.save()
    assert "1 files not listed" in str(report) and dict(zip(manifest.frame["source"], manifest.frame["label"])) == {
        "a/1.mp4": "a",
        "b/2.mp4": "b",
    }
    rows = Manifest.load(tmp_path, "remote").usable()
    origins = [addresses.origin(path) for path in rows["path"]]
    assert origins == [f"{store}/a/1.mp4", f"{store}/b/2.mp4"] == opened
    assert [Path(path).read_bytes() for path in rows["path"]] == [*clips.values()]
    looked(import_folder(store, labels=LABELS), tmp_path, "remote")
    assert opened == origins, "an object that did not change is not looked at again"

    before = video.read(rows["path"][0], 2).hash
    shutil.rmtree(tmp_path / "cache")
    assert video.read(rows["path"][0], 2).hash == before and opened[2:] == origins[:1]
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("cache"))
    assert browse.clip_file(BrowsedWorkbench(moved), rows["clip_id"][1]).is_file()


def test_an_object_that_was_lost_or_changed_is_refused(store, tmp_path, clips):
    imported, _ = looked(import_folder(store, labels=LABELS), tmp_path, "remote")
    imported.save()
    rows = imported.usable()
    shutil.rmtree(tmp_path / "cache")
    memory, place = fsspec.filesystem("memory"), store.removeprefix("memory:/")
    memory.pipe(f"{place}/a/1.mp4", clips["b/2.mp4"])
    memory.rm(f"{place}/b/2.mp4")
    for path, reason, word in zip(
        rows["path"], (VideoReason.CHANGED, VideoReason.NOT_FOUND), ("another object", "no object")
    ):
        with pytest.raises(VideoError, match=word) as caught:
            worlds.at_hand(path)
        assert caught.value.reason == reason and store in str(caught.value) and not Path(path).exists()
    assert not [*(tmp_path / "cache").rglob("*.mp4")]
    assert not browse.clip_file(BrowsedWorkbench(tmp_path), rows["clip_id"][0]).exists(), "a page says that it is gone"
    manifest, _ = looked(import_folder(store, labels=LABELS), tmp_path, "remote")
    assert manifest.usable()["source"].tolist() == ["a/1.mp4"], "another version of an object is looked at"


def table(path: Path, *names: str) -> Path:
    path.write_text("\n".join(["path,label", *(f'"{name}",a' for name in names)]), encoding="utf-8")
    return path


def test_a_table_names_objects_below_the_address_that_the_user_named(bucket, tmp_path):
    listed = table(tmp_path / "clips.csv", "a/1.mp4", "s3://bucket/videos/b/2.mp4", "a/gone.mp4")
    manifest, report = looked(import_csv(listed, "s3://bucket/videos", labels=LABELS), tmp_path, "remote")
    assert manifest.frame["excluded"].fillna("").tolist() == ["", "", "not_found"]
    assert "s3://bucket/videos/a/gone.mp4" in str(report)
    assert [addresses.origin(path) for path in manifest.usable()["path"]] == [
        "s3://bucket/videos/a/1.mp4",
        "s3://bucket/videos/b/2.mp4",
    ]


@pytest.mark.parametrize(
    "cell",
    [
        "../other/1.mp4",
        "s3://bucket/videos/../other/1.mp4",
        "s3://bucket/videosother/1.mp4",
        "s3://other/1.mp4",
        "file:///etc/hostname",
        "/etc/hostname",
        "simplecache::s3://bucket/videos/a/1.mp4",
        "s3://bucket/videos/a/1.mp4?X-Amz-Signature=SECRET",
        "a/1.mp4#SECRET",
        "s3://SECRET:SECRET@bucket/videos/a/1.mp4",
        "http://169.254.169.254/latest/SECRET?SECRET",
        "a//1.mp4",
        "a/\u202e4pm.1",
    ],
)
def test_a_cell_that_leads_out_of_the_store_or_holds_a_secret_is_refused(cell, tmp_path):
    if "SECRET" in cell:
        cell = cell.replace("latest/SECRET", "latest")
    said = refused(import_csv, table(tmp_path / "clips.csv", cell), "s3://bucket/videos")
    assert "SECRET" not in said and "line 2" in said


@pytest.mark.parametrize("cell", ["s3://bucket/a.mp4", "memory://a.mp4", "simplecache::file:///etc/hostname"])
def test_no_cell_turns_a_folder_of_this_machine_into_a_store(cell, tmp_path):
    assert "--videos" in refused(import_csv, table(tmp_path / "clips.csv", cell), tmp_path)
    assert "does not lie inside" in refused(import_csv, table(tmp_path / "clips.csv", "file:///etc/hostname"), tmp_path)


def test_a_file_address_is_a_path_where_the_user_or_a_cell_inside_it_names_one(clips, tmp_path):
    for name, content in clips.items():
        (tmp_path / "v" / name).parent.mkdir(parents=True)
        (tmp_path / "v" / name).write_bytes(content)
    assert len(import_folder(f"file://{tmp_path}/v").rows) == 2
    listing = import_csv(table(tmp_path / "clips.csv", f"file://{tmp_path}/v/a/1.mp4"), tmp_path / "v", labels=LABELS)
    assert listing.rows[0].path == tmp_path / "v" / "a" / "1.mp4" and not listing.rows[0].excluded


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest",
        "https://example.org/videos",
        "simplecache::s3://bucket/videos",
        "s3::file:///etc",
        "local:///etc",
        "github://owner:repo@main/",
        "s3://KEY:SECRET@bucket/videos",
        "s3://bucket/videos?token=SECRET",
        "s3://bucket/../other",
        "s3://",
        "S3://bucket",
    ],
)
def test_an_address_of_no_store_or_with_a_secret_is_refused(address):
    said = refused(import_folder, address)
    assert "SECRET" not in said and "KEY" not in said and said.endswith(".")


def test_a_protocol_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    assert "s3fs" in refused(import_folder, "s3://bucket/videos")


def test_what_a_store_says_is_told_without_secrets(store, monkeypatch):
    def denied(*_, **__):
        raise RuntimeError("403 for https://KEY:SECRET@host/v?X-Amz-Signature=SECRET")

    with monkeypatch.context() as patched:
        patched.setattr(fsspec.get_filesystem_class("memory"), "find", denied)
        said = refused(import_folder, store)
    assert "403 for https://host/v" in said and "SECRET" not in said and "KEY" not in said


def test_odd_keys_of_a_store_are_rows_and_never_other_addresses(store, tmp_path, clips):
    place, content = store.removeprefix("memory:/"), clips["a/1.mp4"]
    odd = ["a//1.mp4", "a/b::file", "a/file::x.mp4", "a/\u202ex.mp4", "a/\\x.mp4", f"a/{'n' * 300}.mp4"]
    fsspec.filesystem("memory").store.update(
        {f"{place}/{name}": fsspec.filesystem("memory").store[f"{place}/a/1.mp4"] for name in odd}
    )
    fsspec.filesystem("memory").pipe(f"{place}/a/what?x#1.mp4", content[:-1])
    frame = looked(import_folder(store, labels=LABELS), tmp_path, "remote")[0].frame.set_index("source")
    assert {*frame.index} == {"a/1.mp4", "b/2.mp4", "a/what?x#1.mp4", *(name for name in odd if name != "a/b::file")}
    assert {*frame["excluded"].dropna()} == {"read_failed"} and frame["excluded"].isna().sum() == 3


def test_paths_of_a_strangers_manifest_fetch_nothing(store, tmp_path, opened):
    path = addresses.copy_of(tmp_path, f"{store}/a/1.mp4", "0" * 64)
    with pytest.raises(VideoError, match="not imported from there"):
        video.read(path, 2)
    (tmp_path / "clips").mkdir()
    addresses.allow(tmp_path, [f"{store}/a/1"])
    with pytest.raises(VideoError, match="not imported from there"):
        video.read(path, 2)
    assert not opened


def test_fetched_clips_keep_within_their_bound(store, tmp_path, opened, monkeypatch, clips):
    size = len(clips["a/1.mp4"])
    monkeypatch.setenv("DEEPINTUIT_FETCHED_GIB", str(2 * size / 2**30))
    manifest, _ = looked(import_folder(store, labels=LABELS), tmp_path, "remote")
    assert manifest.frame["excluded"].tolist() == ["too_large"] * 2
    assert "DEEPINTUIT_FETCHED_GIB" in manifest.frame["excluded_detail"][0]
    room = disk.Room(tmp_path / "cache", ("fetched",), 32 * size)
    monkeypatch.setattr(addresses, "_room", lambda *_: room)
    names = {f"/{store[9:]}/a/{number}.mp4": clips["a/1.mp4"][:-1] + bytes([number]) for number in range(3, 43)}
    fsspec.filesystem("memory").pipe(names)
    rows = looked(import_folder(store, labels=LABELS), tmp_path, "remote", fresh=True)[0].frame
    kept = [*(tmp_path / "cache" / "fetched").rglob("*.mp4")]
    assert len(rows) == 42 and 20 < len(kept) <= 33 and not [*(tmp_path / "cache" / "fetched").glob(".*")]
    path = next(Path(path) for path in rows["path"].dropna() if not Path(path).exists())
    assert worlds.at_hand(path).is_file()
    monkeypatch.setenv("DEEPINTUIT_FETCHED_GIB", "much")
    refused(addresses._gib, error=ConfigError)


def test_clips_to_be_predicted_may_lie_on_a_store(store):
    names, listing = import_new([store], LABELS)
    assert [name for name, _ in names] == [f"{store}/a/1.mp4", f"{store}/b/2.mp4"]
    assert [row.path.address for row in listing.rows] == [name for name, _ in names]
    assert "no video" in refused(import_new, ["memory://nothing-there"], LABELS)


@pytest.mark.parametrize(
    "place", ["s3://bucket/workbench", "memory://workbench", "simplecache::s3://bucket", "file:///w"]
)
def test_a_workbench_on_an_object_store_is_refused(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "fsspec" in refused(Workbench, place, error=ConfigError)
    assert "fsspec" in refused(Manifest.load, place, "remote", error=ConfigError)
    assert main(["clips", "show", "--workbench", place]) == 2 and "locks" in capsys.readouterr().err
    monkeypatch.setenv("DEEPINTUIT_HOME", place)
    assert main(["report"]) == 2 and not [*tmp_path.iterdir()]


def test_a_finished_workbench_travels_through_a_store(store, tmp_path):
    """As docs/scale.md shows it."""
    with Workbench(tmp_path / "there").start_run("notes", {}, seed=1) as run:
        run.append("steps", [{"step": 1, "name": "loss", "value": 0.5}])
        run.finish({"loss": 0.5})
    looked(import_folder(store, labels=LABELS), tmp_path / "there", "remote")[0].save()
    target = store.replace("/v", "/workbench")
    system, place = fsspec.url_to_fs(target)
    for folder in ("clips", "runs"):
        system.put(f"{tmp_path}/there/{folder}", f"{place}/{folder}", recursive=True)
        system.get(f"{place}/{folder}", f"{tmp_path}/here/{folder}", recursive=True)
    there = Workbench(tmp_path / "here").run(run.id)
    assert there.finished and there.read("steps")["value"].tolist() == [0.5]
    assert video.read(Manifest.load(tmp_path / "here", "remote").usable()["path"].iloc[0], 2).hash
