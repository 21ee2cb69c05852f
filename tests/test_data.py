"""The manifest shelf: importers, the scan of real files, splits by group. Real MP4s, no mocks; real data where it is
there."""

import csv
import json
import os
import shutil
import signal
import threading
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepintuit import cli, video
from deepintuit.data import FRACTIONS, SPLITS, LeakWarning, Manifest, assign_splits, container_features, text_corpus
from deepintuit.data.manifest import rows_to_table, to_frame
from deepintuit.errors import DataError, LabelError
from deepintuit.labels import LabelSet
from deepintuit.video import isolation
from deepintuit_clips import (
    Excluded,
    Kind,
    import_csv,
    import_folder,
    import_jsonl,
    import_multihateclip,
    import_smarthome,
    scan,
)

REAL = Path(os.environ.get("DEEPINTUIT_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
AB = LabelSet.of("ab", ("a", "b"))
quiet_scan = partial(scan, probe=video.probe, playable_copy=video.playable_copy, progress=False)


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"{name} is not there; DEEPINTUIT_REAL_DATA may name the folder that holds it")
    return REAL / name


def mp4(path: Path, shade: int = 0) -> Path:
    """A real clip of six grey frames; `shade` decides its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write_mp4(path, np.full((6, 64, 64, 3), 10 * shade, np.uint8), 6)
    return path


def table(path: Path, rows: list[dict], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def manifest_of(rows: list[tuple], labels: LabelSet = AB, workbench: str | Path = "unwritten") -> Manifest:
    """A manifest from (clip_id, label, group, given_split) alone, as if its files had been scanned."""
    blank = {"also_at": [], "text": {}, "notes": {}}
    records = [{**blank, "clip_id": c, "label": label, "group": g, "given_split": s} for c, label, g, s in rows]
    return Manifest(workbench, "made", to_frame(rows_to_table(records), Path(workbench)), labels)


# --- one's own clips


def test_class_folders_become_labels(tmp_path):
    for name in ("pour/1.mp4", "pour/deep/2.MOV", "stir/3.mp4", "stir/notes.txt", "stray.mp4", ".hidden/4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listing = import_folder(tmp_path)
    assert {row.source: row.label for row in listing.rows} == {
        "pour/1.mp4": "pour",
        "pour/deep/2.MOV": "pour",
        "stir/3.mp4": "stir",
    }
    assert {f.source for f in listing.report.of(Kind.NOT_A_CLIP)} == {".txt", "directly in the root"}


def test_folders_named_like_splits_are_splits(tmp_path):
    for name in ("train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4", "test/b/4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert {(r.split, r.label) for r in import_folder(tmp_path).rows} == {
        ("train", "a"),
        ("train", "b"),
        ("validation", "a"),
        ("test", "b"),
    }


def test_empty_folder_and_empty_table_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="lists no clips"):
        import_folder(tmp_path)
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(DataError, match="lists no clips"):
        import_csv(tmp_path / "t.csv", tmp_path)
    (tmp_path / "t.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="lists no clips"):
        import_csv(tmp_path / "t.csv", tmp_path)


def test_csv_with_byte_order_mark_quotes_newlines_and_markup_keeps_the_names(tmp_path):
    names = ['a "quoted", name.mp4', "two\nlines.mp4", "<script>alert(1)</script>.mp4", "ü \u2028 é.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = [{"path": n, "label": label} for n, label in zip(names, ("Fight", " fight ", "no  fight", "No Fight"))]
    listing = import_csv(table(tmp_path / "t.csv", rows, encoding="utf-8-sig"), tmp_path)
    assert [row.source for row in listing.rows] == names
    assert [row.label for row in listing.rows] == ["Fight", "Fight", "No Fight", "No Fight"]
    assert listing.rows[1].label_given == " fight "
    assert not any(row.excluded for row in listing.rows)


def test_blank_paths_are_passed_over_and_counted(tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"x")
    listing = import_csv(
        table(tmp_path / "t.csv", [{"path": "1.mp4", "label": "a"}, {"path": " ", "label": "b"}]), tmp_path, labels=AB
    )
    assert len(listing.rows) == 1 and len(listing.report.of(Kind.EMPTY_ROW)) == 1


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/passwd", "a/../../secret.mp4", ".", "x\0.mp4"])
def test_a_path_that_leaves_the_videos_folder_is_refused(tmp_path, name):
    (tmp_path / "t.jsonl").write_text(json.dumps({"path": name, "label": "a"}))
    with pytest.raises(DataError, match="does not lie inside the videos folder"):
        import_jsonl(tmp_path / "t.jsonl", tmp_path, labels=AB)


def test_absolute_and_dotted_paths_inside_the_videos_folder_are_fine(tmp_path):
    rows = [{"path": str(tmp_path / "1.mp4"), "label": "a"}, {"path": "x/../1.mp4", "label": "a"}]
    listing = import_csv(table(tmp_path / "t.csv", rows), tmp_path, labels=AB)
    assert (
        len(listing.rows) == 1
        and listing.rows[0].path == tmp_path / "1.mp4"
        and listing.rows[0].also_at == ("x/../1.mp4",)
    )


def test_missing_column_names_the_nearest_one(tmp_path):
    path = table(tmp_path / "t.csv", [{"path": "1.mp4", "label": "a", "split_group": "g"}])
    with pytest.raises(DataError, match="no column 'splitgroup'.*nearest: 'split_group'"):
        import_csv(path, tmp_path, group="splitgroup")


@pytest.mark.parametrize(
    "text, said",
    [
        ("path,label\n1.mp4,a,b\n", "3 cells for 2 columns"),
        ('path,label\n"1.mp4,a\n', "not valid CSV"),
        ("path,path\n1.mp4,a\n", "twice"),
        ("path,label,split\n1.mp4,a,tset\n", "nearest: test"),
    ],
)
def test_broken_tables_are_refused_with_the_place(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        import_csv(tmp_path / "t.csv", tmp_path)


@pytest.mark.parametrize("line", ["{", "[1]", '"a"', "[" * 100_000])
def test_broken_json_lines_are_refused_with_the_line(tmp_path, line):
    (tmp_path / "t.jsonl").write_text('{"path": "1.mp4", "label": "a"}\n\n' + line)
    with pytest.raises(DataError, match="line 3"):
        import_jsonl(tmp_path / "t.jsonl", tmp_path)


def test_not_utf8_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff.mp4,a\n")
    with pytest.raises(DataError, match="not UTF-8"):
        import_csv(tmp_path / "t.csv", tmp_path)


def test_unknown_and_empty_labels_are_excluded_with_the_nearest_label(tmp_path):
    for n in "123":
        (tmp_path / f"{n}.mp4").write_bytes(b"x")
    rows = [{"path": "1.mp4", "label": "fihgt"}, {"path": "2.mp4", "label": ""}, {"path": "3.mp4", "label": "FIGHT."}]
    listing = import_csv(table(tmp_path / "t.csv", rows), tmp_path, labels=LabelSet.of("f", ("fight", "calm")))
    assert [row.excluded for row in listing.rows] == [Excluded.UNKNOWN_LABEL, Excluded.NO_LABEL, None]
    assert "'fight'" in listing.rows[0].detail and listing.rows[2].label == "fight"


def test_one_class_is_no_task(tmp_path):
    with pytest.raises(LabelError):
        import_csv(table(tmp_path / "t.csv", [{"path": "1.mp4", "label": "a"}]), tmp_path)


def test_only_uploaders_text_is_text_and_the_rest_are_notes(tmp_path):
    row = {"path": "1.mp4", "label": "a", "title": "T", "description": "a fight", "reasoning": "so a", "width": "640"}
    got = import_csv(table(tmp_path / "t.csv", [row]), tmp_path, labels=AB).rows[0]
    assert got.text == {"title": "T"} and got.notes == {"description": "a fight", "reasoning": "so a"}
    named = import_csv(table(tmp_path / "t.csv", [row]), tmp_path, labels=AB, text=["description"]).rows[0]
    assert named.text == {"description": "a fight"} and named.notes["title"] == "T"


def test_a_clip_in_two_splits_stays_in_test_only(tmp_path):
    rows = [
        {"path": "1.mp4", "label": "a", "split": s, "group": g}
        for s, g in (("train", "x"), ("TEST", "y"), ("dev", "x"))
    ]
    listing = import_csv(table(tmp_path / "t.csv", rows), tmp_path, labels=AB)
    assert [row.split for row in listing.rows] == ["test"]
    assert listing.report.counts() == {"missing": 1, "duplicate": 2, "two_splits": 1, "two_groups": 1}
    assert listing.report.listed == {"train": 1, "test": 1, "validation": 1}


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


SPLIT = ("train/fall/1.mp4", "train/walk/2.mp4", "test/fall/3.mp4")


@pytest.mark.parametrize(
    "odd", ["__MACOSX/train/fall/._1.mp4", "annotations/all.json", "readme/x/y.txt", "__MACOSX/a.mp4"]
)
def test_a_folder_beside_the_splits_is_reported_and_makes_no_classes(tmp_path, odd):
    listing = import_folder(touched(tmp_path, *SPLIT, odd))
    assert list(listing.labels) == ["fall", "walk"] and listing.report.listed == {"train": 2, "test": 1}
    assert odd.partition("/")[0] in [finding.source for finding in listing.report.of(Kind.NOT_A_CLIP)]


def test_splits_beside_a_folder_of_clips_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"named like splits \(test, train\) beside extra"):
        import_folder(touched(tmp_path, *SPLIT, "extra/4.mp4"))


@pytest.mark.parametrize(
    "names, split",
    [
        (("training", "validation"), "validation"),
        (("Train", "valid"), "validation"),
        (("train", "dev"), "validation"),
        (("train", "testing"), "test"),
        (("train", "eval"), "test"),
        (("train", "evaluation"), "test"),
        (("TRAIN", "VAL"), "validation"),
    ],
)
def test_split_folders_go_by_every_usual_name(tmp_path, names, split):
    listing = import_folder(touched(tmp_path, f"{names[0]}/a/1.mp4", f"{names[0]}/b/2.mp4", f"{names[1]}/a/3.mp4"))
    assert list(listing.labels) == ["a", "b"] and listing.report.listed == {"train": 2, split: 1}


def test_splits_inside_of_classes_are_splits_and_a_class_may_be_called_train(tmp_path):
    listing = import_folder(touched(tmp_path / "1", "fall/train/1.mp4", "fall/test/2.mp4", "walk/train/3.mp4"))
    assert list(listing.labels) == ["fall", "walk"] and listing.report.listed == {"train": 2, "test": 1}
    for names in (
        ("train/1.mp4", "bus/2.mp4"),
        ("train/a/1.mp4", "bus/a/2.mp4"),
        ("train/1.mp4", "test/2.mp4", "bus/3.mp4"),
    ):
        listing = import_folder(touched(tmp_path / str(len(names) + len(names[0])), *names))
        assert list(listing.labels) == sorted(name.partition("/")[0] for name in names)
        assert listing.report.listed == {"no split": len(names)}


def test_files_of_operating_systems_are_no_clips(tmp_path):
    names = ("a/1.mp4", "b/2.mp4", "a/._1.mp4", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", "__MACOSX/a/._1.mp4")
    assert [row.source for row in import_folder(touched(tmp_path, *names)).rows] == ["a/1.mp4", "b/2.mp4"]


ODD_LABELS = [
    ((1, 1.0, 0), ["1", "1", "0"]),
    (("1.0", "1", "0.0"), ["1", "1", "0.0"]),
    ((True, "true", False), ["true", "true", "false"]),
    (("fall", float("nan"), "walk"), ["fall", None, "walk"]),
    (("fall", None, "walk"), ["fall", None, "walk"]),
    (("fall", "NaN", "walk"), ["fall", None, "walk"]),
    (("fall", float("inf"), "walk"), ["fall", None, "walk"]),
    ((["fall"], "fall", ["walk"]), ["fall", "fall", "walk"]),
    (("fall", [], "walk"), ["fall", None, "walk"]),
    (([1], 1.0, 2), ["1", "1", "2"]),
    (("1.5", 1.5, 2), ["1.5", "1.5", "2"]),
    ((10**30, "a", "a"), [str(10**30), "a", "a"]),
    ((1e300, "a", "a"), ["1e+300", "a", "a"]),
]


@pytest.mark.parametrize("given_labels, read", ODD_LABELS)
def test_a_label_that_is_no_text_is_the_class_that_is_meant_or_none(tmp_path, given_labels, read):
    touched(tmp_path, *(f"{n}.mp4" for n in range(3)))
    lines = [json.dumps({"path": f"{n}.mp4", "label": label}) for n, label in enumerate(given_labels)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    listing = import_jsonl(tmp_path / "t.jsonl", tmp_path)
    assert [row.label for row in listing.rows] == read
    assert [row.excluded for row in listing.rows] == [Excluded.NO_LABEL if label is None else None for label in read]


@pytest.mark.parametrize("pair, told", [
    (("fight", "fight\u200b"), True), (("fight", "\u202efight"), True), (("no fight", "no_fight"), True),
    (("1", "01"), True), (("0.5", "0.50"), True), (("Ａ", "A"), True), (("c", "c++"), False), (("की", "का"), False),
    (("🥊", "👍🏽"), False), (("fight", "Fight "), False), (("-1", "1"), False), (("殴る", "蹴る"), False),
])  # fmt: skip
def test_labels_that_look_alike_are_told(tmp_path, pair, told):
    touched(tmp_path, *(f"{n}.mp4" for n in range(3)))
    lines = [f"{n}.mp4,{label}" for n, label in enumerate((*pair, "other"))]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    report = import_csv(tmp_path / "t.csv", tmp_path).report
    assert [repr(pair[1]) in finding.sentence for finding in report.of(Kind.LABELS_ALIKE)] == [True] * told


@pytest.mark.parametrize("label", ['["fall", "walk"]', '{"name": "fall"}', '[["fall"]]'])
def test_several_labels_of_a_clip_are_refused(tmp_path, label):
    (tmp_path / "t.jsonl").write_text(f'{{"path": "1.mp4", "label": {label}}}')
    with pytest.raises(DataError, match="line 1, has the label.*one label"):
        import_jsonl(tmp_path / "t.jsonl", tmp_path, labels=AB)


@pytest.mark.parametrize(
    "line",
    [
        '{"path": "1.mp4", "label": "a", "label": "b"}',
        '{"path": "1.mp4", "label": ' + "1" * 5000 + "}",
        "NaN",
        '{"path": "\0"}',
        '{"path": "1.mp4", "x": ' + "[" * 200 + "]" * 200 + "}",
    ],
)
def test_a_line_of_json_that_cannot_be_meant_is_refused(tmp_path, line):
    (tmp_path / "t.jsonl").write_text(line)
    with pytest.raises(DataError):
        import_jsonl(tmp_path / "t.jsonl", tmp_path, labels=AB)


ROWS = "path,label\r\n1.mp4,a\r\n2.mp4,b\r\n"


@pytest.mark.parametrize(
    "content",
    [
        ROWS.encode("utf-8-sig"),
        ROWS.encode("utf-16"),
        ROWS.replace(",", "\t").encode("utf-16"),
        ROWS.replace(",", ";").encode(),
        ("sep=;\r\n" + ROWS.replace(",", ";")).encode(),
        ROWS.replace("\r\n", "\r").encode(),
        ROWS.replace("\r\n", ",\r\n").encode(),
        ROWS.replace("\n1.mp4,a", "\n1.mp4,a,,").encode(),
        ROWS.replace("path,label", " Path , LABEL").encode(),
        ROWS.replace("path,label", '"path","label"').encode(),
        ROWS.replace("1.mp4", '"1.mp4"').encode("utf-16"),
        ROWS.replace("path,", ",path,").replace("\n1", "\n0,1").replace("\n2", "\n1,2").encode(),
    ],
)
def test_tables_of_every_spreadsheet_are_read(tmp_path, content):
    touched(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "t.csv").write_bytes(content)
    listing = import_csv(tmp_path / "t.csv", tmp_path)
    assert [(row.source, row.label, row.excluded) for row in listing.rows] == [
        ("1.mp4", "a", None),
        ("2.mp4", "b", None),
    ]


def test_a_split_column_in_another_case_is_no_note(tmp_path):
    listing = import_csv(
        table(tmp_path / "t.csv", [{"Path": "1.mp4", "Label": "a", "Split": "test"}]), tmp_path, labels=AB
    )
    assert listing.rows[0].split == "test" and not listing.rows[0].notes


def test_a_long_cell_is_read(tmp_path):
    long = "word " * 40_000
    listing = import_csv(
        table(tmp_path / "t.csv", [{"path": "1.mp4", "label": "a", "transcript": long}]), tmp_path, labels=AB
    )
    assert listing.rows[0].text == {"transcript": long}


def test_a_file_is_found_under_the_names_that_other_systems_give_it(tmp_path):
    touched(tmp_path, "sub/My clip.mp4", "sub/cafe\u0301.mp4", "x.MP4", "y.mp4", "Y.mp4")
    names = [
        "sub\\My clip.mp4",
        "sub/My%20clip.mp4",
        "SUB/my clip.mp4",
        "sub/caf\u00e9.mp4",
        "x.mp4",
        "y.mp4",
        "gone.mp4",
        "..\\..\\secret.mp4",
        "..%2f..%2fsecret.mp4",
        "a" * 300 + ".mp4",
    ]
    listing = import_csv(
        table(tmp_path / "t.csv", [{"path": name, "label": "a"} for name in names]), tmp_path, labels=AB
    )
    found = {row.path.name: row.excluded for row in listing.rows if row.excluded is None}
    assert set(found) == {"My clip.mp4", "cafe\u0301.mp4", "x.MP4", "y.mp4"}
    assert len(listing.report.of(Kind.OTHER_NAME)) == 5 and len(listing.report.of(Kind.MISSING)) == 4


def test_a_file_that_another_row_names_is_not_taken_for_a_missing_one(tmp_path):
    touched(tmp_path, "a.mp4")
    rows = [{"path": "A.mp4", "label": "a"}, {"path": "a.mp4", "label": "b"}]
    listing = import_csv(table(tmp_path / "t.csv", rows), tmp_path, labels=AB)
    assert [row.excluded for row in listing.rows] == [Excluded.MISSING, None]


def test_the_command_names_its_columns_and_says_so(tmp_path, capsys):
    path = table(tmp_path / "t.csv", [{"video_path": "1.mp4", "class": "a"}, {"video_path": "2.mp4", "class": "b"}])
    for n in (1, 2):
        mp4(tmp_path / f"{n}.mp4", n)
    common = ["clips", "csv", str(path), "--name", "d", "--workbench", str(tmp_path / "w"), "--quiet", "--jobs", "1"]
    assert cli.main(common) == 2 and "--path-column" in capsys.readouterr().err
    shares = [
        f"--set=clips.{name}_share={share}"
        for name, share in {"validation": 0, "test": 0.5, "coldstart": 1, "grpo": 0, "calibration": 0}.items()
    ]
    assert cli.main([*common, "--path-column", "video_path", "--label-column", "class", *shares]) == 0
    before = Manifest.load(tmp_path / "w", "d")
    for n in (1, 2):
        (tmp_path / f"{n}.mp4").unlink()
    assert cli.main([*common, "--path-column", "video_path", "--label-column", "class", *shares]) == 2
    assert "no clip of 'd' can be used" in capsys.readouterr().err
    assert Manifest.load(tmp_path / "w", "d").fingerprint == before.fingerprint
    assert not list((tmp_path / "w" / "clips").glob("d@*"))


# --- files


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Five readable clips, one copy under another label, one plain copy, an empty file, a text file, a missing one,
    one for no browser."""
    root = tmp_path_factory.mktemp("videos")
    for n in range(4):
        mp4(root / f"{n}.mp4", n)
    shutil.copy(root / "0.mp4", root / "copy.mp4")
    shutil.copy(root / "1.mp4", root / "contradicts.mp4")
    (root / "empty.mp4").touch()
    (root / "empty too.mp4").touch()
    (root / "text.mp4").write_text("version https://git-lfs.github.com/spec/v1\n")
    shutil.copy(root / "2.mp4", root / "<b>\n'odd'.mp4")
    names = {
        "0.mp4": "a",
        "1.mp4": "b",
        "2.mp4": "a",
        "3.mp4": "b",
        "copy.mp4": "A",
        "contradicts.mp4": "a",
        "empty.mp4": "a",
        "empty too.mp4": "b",
        "text.mp4": "b",
        "gone.mp4": "a",
        "<b>\n'odd'.mp4": "a",
    }
    rows = [{"path": n, "label": label, "title": f"title of {n}", "description": "leaks"} for n, label in names.items()]
    listing = import_csv(table(root / "t.csv", rows), root)
    workbench = tmp_path_factory.mktemp("workbench")
    return listing, workbench, *quiet_scan(listing, workbench, "small")


def test_every_listed_clip_is_usable_or_has_a_reason(imported):
    _, _, manifest, report = imported
    reasons = dict(zip(manifest.frame["source"], manifest.frame["excluded"]))
    assert {s for s, r in reasons.items() if pd.isna(r)} == {"0.mp4", "2.mp4", "3.mp4"}
    assert reasons["1.mp4"] == "conflicting_label" and reasons["gone.mp4"] == video.VideoReason.NOT_FOUND
    assert reasons["empty.mp4"] == reasons["empty too.mp4"] == "empty_file" and reasons["text.mp4"] == "not_a_video"
    assert report.counts() == {"missing": 1, "unreadable": 3, "duplicate": 3, "conflicting_label": 1}
    assert manifest.frame["excluded_detail"].notna().sum() == 5
    assert manifest.frame["clip_id"].is_unique


def test_clip_id_is_the_content(imported):
    _, _, manifest, _ = imported
    row = manifest.frame.set_index("source").loc["0.mp4"]
    assert row["clip_id"] == video.file_sha256(row["path"])[:16] == row["sha256"][:16]
    assert row["also_at"] == ["copy.mp4"] and row["group"] == row["clip_id"]
    assert (row["width"], row["height"], row["frames"], row["audio"], row["codec"]) == (64, 64, 6, False, "h264")


def test_summary_counts_splits_reasons_and_duplicates(imported):
    summary = imported[2].summary()
    assert summary.by_split.loc["unassigned", "all"] == 3 and summary.duplicates == 3 and summary.without_group == 3
    assert summary.excluded.sum().sum() == 5
    assert "name no group" in str(summary)


def test_saved_manifest_loads_as_it_was_and_moves_with_its_workbench(imported, tmp_path):
    _, workbench, manifest, _ = imported
    manifest.save()
    pd.testing.assert_frame_equal(Manifest.load(workbench, "small").frame, manifest.frame)
    assert Manifest.load(workbench, "small").labels == manifest.labels
    shutil.copytree(workbench, tmp_path / "moved")
    assert len(Manifest.load(tmp_path / "moved", "small").usable()) == 3


def test_text_and_notes_are_readable_in_duckdb_and_hugging_face_datasets(imported):
    path = imported[2].save()
    title = "select map_from_entries(text)['title'] from read_parquet(?) where source = '0.mp4'"
    assert "title of 0.mp4" in str(duckdb.execute(title, [str(path)]).fetchone()[0])
    datasets = pytest.importorskip("datasets")
    assert datasets.Features.from_arrow_schema(rows_to_table([]).schema)["label"].dtype == "string"


def test_an_older_version_is_never_lost(imported, tmp_path):
    manifest = Manifest(tmp_path, "home", imported[2].frame, imported[2].labels)
    manifest.save()
    manifest.save()
    assert not list(tmp_path.glob("clips/home@*"))
    for n in (1, 2):
        before = manifest.path.read_bytes()
        manifest.frame = manifest.frame.assign(split=f"version {n}")
        manifest.save()
        assert (tmp_path / "clips" / f"home@{n}.parquet").read_bytes() == before
        assert (tmp_path / "clips" / f"home@{n}.labels.toml").is_file()
    assert not list(tmp_path.glob("clips/.*"))


def test_unknown_dataset_names_the_nearest_and_bad_names_are_refused(imported):
    imported[2].save()
    with pytest.raises(DataError, match="Nearest: 'small'"):
        Manifest.load(imported[1], "smal")
    for name in ("../x", "a@1", "", "a b"):
        with pytest.raises(DataError, match="cannot name a dataset"):
            Manifest.load(imported[1], name)


def test_damaged_manifest_is_refused_in_a_sentence(imported, tmp_path):
    manifest = Manifest(tmp_path, "home", imported[2].frame, imported[2].labels)
    manifest.save().write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match="cannot be read"):
        Manifest.load(tmp_path, "home")
    manifest.save()
    assert len(Manifest.load(tmp_path, "home").frame) == len(manifest.frame)
    assert (tmp_path / "clips" / "home@1.parquet").read_bytes() == b"PAR1 not"


def test_a_killed_scan_continues_without_opening_a_file_twice(imported, tmp_path):
    listing, _, whole, _ = imported
    opened = []

    def dies_at_the_fourth(path):
        if len(opened) == 3:
            raise KeyboardInterrupt
        opened.append(path)
        return video.probe(path)

    with pytest.raises(KeyboardInterrupt):
        scan(listing, tmp_path, "small", probe=dies_at_the_fourth, progress=False)
    journal = tmp_path / "clips" / "small.journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'\n{"key": ["cut sho')

    def counts(path):
        opened.append(path)
        return video.probe(path)

    manifest, _ = scan(listing, tmp_path, "small", probe=counts, progress=False)
    assert len(opened) == len(set(opened)) == 10
    assert manifest.frame["clip_id"].tolist() == whole.frame["clip_id"].tolist()
    manifest, _ = scan(listing, tmp_path, "small", probe=None, progress=False)
    assert manifest.frame["clip_id"].tolist() == whole.frame["clip_id"].tolist()


def test_a_changed_file_is_looked_at_again(tmp_path):
    mp4(tmp_path / "v" / "a" / "1.mp4", 1), mp4(tmp_path / "v" / "b" / "2.mp4", 2)
    first, _ = quiet_scan(import_folder(tmp_path / "v"), tmp_path, "d")
    mp4(tmp_path / "v" / "b" / "2.mp4", 3)
    second, _ = quiet_scan(import_folder(tmp_path / "v"), tmp_path, "d")
    assert (first.frame["clip_id"] == second.frame["clip_id"]).tolist() == [True, False]


def test_a_clip_no_browser_plays_gets_a_playable_copy(tmp_path):
    odd = real("odd-videos")
    rows = [{"path": "xvid_ucf101.avi", "label": "a"}, {"path": "git_lfs_pointer.mp4", "label": "b"}]
    manifest, _ = quiet_scan(import_csv(table(tmp_path / "t.csv", rows), odd, labels=AB), tmp_path, "odd")
    row = manifest.usable().iloc[0]
    assert row["playable_path"] == str(tmp_path / "clips" / "playable" / f"{row['clip_id']}.mp4")
    assert video.probe(row["playable_path"]).playable
    manifest.save()
    assert Manifest.load(tmp_path, "odd").usable().iloc[0]["playable_path"] == row["playable_path"]


def dies_on_two(path):
    """A reader whose child process dies on one file."""
    if "2.mp4" in str(path):
        child = isolation._children.idle[-1].process
        os.kill(child.pid, signal.SIGSTOP)
        threading.Timer(0.2, child.kill).start()
    return video.probe(path, isolate=True)


def test_a_reader_that_crashes_costs_one_clip(tmp_path):
    for n in (1, 2, 3):
        mp4(tmp_path / "v" / "ab"[n % 2] / f"{n}.mp4", n)
    video.probe(tmp_path / "v" / "b" / "1.mp4", isolate=True)
    manifest, report = scan(import_folder(tmp_path / "v"), tmp_path, "d", probe=dies_on_two, progress=False)
    assert manifest.frame.set_index("source")["excluded"].dropna().to_dict() == {"a/2.mp4": "decode_failed"}
    assert len(report.of(Kind.UNREADABLE)) == 1


def test_a_file_name_that_is_not_utf8_is_listed_and_excluded(tmp_path):
    mp4(tmp_path / "a" / "1.mp4"), (tmp_path / "b").mkdir()
    try:
        (tmp_path / "b" / os.fsdecode(b"\xff.mp4")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    manifest, _ = quiet_scan(import_folder(tmp_path), tmp_path / "w", "d")
    assert manifest.frame["excluded"].dropna().tolist() == [Excluded.NAME_NOT_UTF8]
    manifest.save()


# --- what a model may see


def test_notes_are_shown_only_by_name_and_with_a_warning(imported):
    manifest = imported[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = manifest.text_fields(["title"])
    clip = manifest.usable().iloc[0]["clip_id"]
    assert shown[clip] == {"title": "title of 0.mp4"} == manifest.texts[clip]
    with pytest.warns(LeakWarning, match="85.2 %.*99.5 %"):
        assert manifest.text_fields(["title"], ["description"])[clip]["description"] == "leaks"
    with pytest.raises(DataError, match="annotation column, not a text field"):
        manifest.text_fields(["description"])
    with pytest.raises(DataError, match="Nearest: 'title'"):
        manifest.text_fields(["titel"])


def test_baseline_inputs_are_plain_numbers_and_plain_text(imported):
    rows = imported[2].usable()
    features = container_features(rows)
    assert features.columns.tolist() == ["width", "height", "fps", "seconds", "frames", "audio", "bytes", "bitrate"]
    assert (features.dtypes == "float64").all() and features["bitrate"].gt(0).all()
    assert text_corpus(rows, ["title"]).iloc[0] == "title of 0.mp4"
    assert np.isnan(container_features(rows.assign(seconds=0.0))["bitrate"]).all()


# --- splits

clips = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), min_size=1, max_size=120)


def splits_of(manifest: Manifest) -> dict[str, str]:
    return dict(zip(manifest.frame["clip_id"], manifest.frame["split"]))


@settings(max_examples=25, deadline=None)
@given(clips, st.integers(0, 5), st.randoms(use_true_random=False))
def test_no_group_is_in_two_splits_and_row_order_does_not_matter(rows, seed, random):
    made = [(f"c{i}", label, f"g{group}", None) for i, (label, group) in enumerate(rows)]
    if len({row[2] for row in made}) < len(FRACTIONS):
        with pytest.raises(DataError, match="groups to divide over"):
            assign_splits(manifest_of(made), seed=seed)
        return
    split = assign_splits(manifest_of(made), seed=seed)
    assert (split.frame.groupby("group")["split"].nunique() == 1).all()
    assert set(split.frame["split"]) == set(SPLITS)
    shuffled = random.sample(made, len(made))
    assert splits_of(assign_splits(manifest_of(shuffled), seed=seed)) == splits_of(split)


@settings(max_examples=6, deadline=None)
@given(st.integers(150, 300), st.floats(0.1, 0.9), st.integers(0, 100))
def test_many_groups_keep_the_fractions_in_every_label(n, share, seed):
    labels = np.random.default_rng(seed).random(n) < share
    frame = assign_splits(
        manifest_of([(f"c{i}", "ab"[int(b)], f"g{i // 2}", None) for i, b in enumerate(labels)]), seed=seed
    ).frame
    sizes = frame["split"].value_counts(normalize=True)
    assert all(abs(sizes[s] - FRACTIONS[s]) < 0.03 for s in SPLITS)
    by_label = frame.groupby("split")["label"].agg(lambda x: (x == "b").mean())
    assert (abs(by_label - labels.mean()) < 0.1).all()


def test_another_seed_divides_otherwise_and_the_old_manifest_stays():
    manifest = manifest_of([(f"c{i}", "ab"[i % 2], f"g{i}", None) for i in range(60)])
    one, two = assign_splits(manifest, seed=1), assign_splits(manifest, seed=2)
    assert splits_of(one) != splits_of(two) and manifest.frame["split"].isna().all()
    assert splits_of(assign_splits(one, seed=2)) == splits_of(two)


def test_given_splits_stay_and_train_is_divided_over_what_is_missing():
    given_ = [(f"t{i}", "ab"[i % 2], f"tg{i}", "test") for i in range(10)]
    pool = [(f"c{i}", "ab"[i % 2], f"g{i}", "train" if i % 3 else None) for i in range(80)]
    frame = assign_splits(manifest_of(given_ + pool)).frame.set_index("clip_id")
    assert (frame.loc[[c for c, *_ in given_], "split"] == "test").all()
    assert set(frame.loc[[c for c, *_ in pool], "split"]) == set(SPLITS) - {"test"}
    assert abs((frame["split"] == "validation").sum() - 80 * 0.1 / 0.8) <= 1


def test_a_group_that_the_annotation_tears_is_refused():
    rows = [("c1", "a", "g", "test"), ("c2", "b", "g", "train"), *((f"d{i}", "a", f"h{i}", None) for i in range(9))]
    with pytest.raises(DataError, match="'g' into test and train"):
        assign_splits(manifest_of(rows))


@pytest.mark.parametrize(
    "fractions, said",
    [
        ({"train": 1.0}, "split 'train'"),
        ({"test": 0.5}, "sum to 0.5"),
        ({"test": 1.5, "grpo": -0.5}, "between 0 and 1"),
    ],
)
def test_fractions_that_are_no_shares_are_refused(fractions, said):
    with pytest.raises(DataError, match=said):
        assign_splits(manifest_of([("c", "a", "g", None)]), fractions)


def test_one_huge_group_leaves_no_split_empty():
    rows = [(f"c{i}", "ab"[i % 2], "huge", None) for i in range(100)] + [
        (f"d{i}", "a", f"g{i}", None) for i in range(4)
    ]
    assert set(assign_splits(manifest_of(rows)).frame["split"]) == set(SPLITS)


# --- benchmarks, on small files of the same shape


def smarthome(folder: Path) -> Path:
    tags = ["Normal", "Vague Abnormal", "Abnormal", "Normal"]
    table(
        folder / "Video_Annotation.csv",
        [
            {
                "Title": f"s_{i}",
                "Category": "Pets",
                "Anomaly Tag": tag,
                "Video Description": "A cat,\nasleep.",
                "Reasoning": "It sleeps.",
            }
            for i, tag in enumerate(tags)
        ],
        encoding="utf-8-sig",
    )
    table(
        folder / "Video_url.csv",
        [
            {"Title": f"s_{i}", "URL": "https://www.youtube.com/watch?v=AAA" if i < 2 else "privacy url"}
            for i in range(4)
        ],
        encoding="utf-8-sig",
    )
    table(
        folder / "deepintuit_split.csv",
        [
            {"Title": f"s_{i}", "split": s}
            for i, s in enumerate(["train_candidate", "test", "train_candidate", "private"])
        ],
    )
    return folder


def test_smarthome_counts_vague_as_abnormal_and_lists_what_is_missing(tmp_path):
    (tmp_path / "v" / "sub").mkdir(parents=True)
    for name in ("s_0.mp4", "sub/s_0.mp4", "other.mp4", "sub/s_2.mkv"):
        (tmp_path / "v" / name).write_bytes(b"x")
    listing = import_smarthome(smarthome(tmp_path / "a"), tmp_path / "v")
    assert [(r.label, r.split, r.excluded) for r in listing.rows] == [
        ("normal", "train", None),
        ("abnormal", "test", "not_found"),
        ("abnormal", "train", None),
        ("normal", None, "private"),
    ]
    assert listing.report.counts() == {"missing": 1, "ambiguous_file": 1, "not_listed": 1}
    assert listing.rows[0].path.parent.name == "v" and listing.rows[0].group == listing.rows[1].group == "yt:AAA"
    assert listing.rows[0].text == {} and set(listing.rows[0].notes) == {"Category", "Video Description", "Reasoning"}
    three = import_smarthome(tmp_path / "a", tmp_path / "v", labels="three")
    assert three.rows[1].label == "vague abnormal"


@pytest.mark.parametrize("name", ["Trim_video_label.csv", "trim_video_labels.CSV", None])
def test_smarthome_clips_that_must_be_cut_are_named_with_their_lengths_unless_they_are_trimmed(tmp_path, name):
    annotations, videos = smarthome(tmp_path / "a"), tmp_path / "v"
    cuts = {"s_0": "2", "s_1": "-1.5", "s_2": "0", "s_3": "4"}
    if name:
        rows = [{"No.": str(i), "Title": title, "Time": time} for i, (title, time) in enumerate(cuts.items())]
        table(annotations / name, rows, encoding="utf-8-sig")
    else:
        words = ["train_candidate", "test", "train_candidate", "private"]
        rows = [{"Title": t, "split": w, "trim_seconds": c} for (t, c), w in zip(cuts.items(), words)]
        table(annotations / "deepintuit_split.csv", rows)
    videos.mkdir()
    for title, seconds in (("s_0", 1), ("s_1", 4), ("s_2", 1)):
        pictures = np.random.default_rng(int(title[-1])).integers(0, 255, (seconds * 4, 64, 64, 3))
        video.write_mp4(videos / f"{title}.mp4", pictures.astype(np.uint8), 4)
    listing = import_smarthome(annotations, videos)
    assert [row.cut for row in listing.rows] == [2, -1.5, 0, 0] and listing.rows[1].notes["trim_seconds"] == "-1.5"
    told = [finding.sentence for finding in listing.report.of(Kind.TRIM_TABLE)]
    assert [one.split(" clips")[0] for one in told] == ["1 of 1 test", "1 of 2 train"]
    assert [finding.source for finding in listing.report.of(Kind.UNTRIMMED)] == ["s_0", "s_1"]
    _, report = quiet_scan(listing, tmp_path / "w", "home")
    (left,) = report.of(Kind.UNTRIMMED)  # s_0 is shorter than what goes: it was cut
    assert left.source == "s_1" and "the first 1.5 s of 4.0 must be cut off" in left.sentence
    assert "--trimmed" in left.sentence
    assert not import_smarthome(annotations, videos, trimmed=True).report.of(Kind.UNTRIMMED)


@pytest.mark.parametrize("time", ["soon", "nan", "inf", "1/0"])
def test_a_trim_table_that_holds_no_seconds_is_refused_by_its_line(tmp_path, time):
    table(smarthome(tmp_path / "a") / "Trim_video_label.csv", [{"Title": "s_0", "Time": time}])
    with pytest.raises(DataError, match="Trim_video_label.csv, line 2"):
        import_smarthome(tmp_path / "a", tmp_path)


def test_smarthome_without_the_papers_split_is_refused_in_three_beats(tmp_path):
    (smarthome(tmp_path / "a") / "deepintuit_split.csv").unlink()
    with pytest.raises(DataError, match="no deepintuit_split.csv.*196 clips.*Put the file"):
        import_smarthome(tmp_path / "a", tmp_path)


def multihateclip(folder: Path, cell: str = "['Woman', 'Man']") -> Path:
    for split, ids in {"train": ("t1", "both"), "valid": ("v1",), "test": ("both", "-e1")}.items():
        table(
            folder / "annotation" / f"{split}.tsv",
            [
                {
                    "Video_ID": i,
                    "Majority_Voting": "Counter Narrative" if i == "t1" else "Hateful",
                    "Label": "['Hateful']",
                    "Target_Victim": cell,
                    "Duration": "[(1, 2)]",
                }
                for i in ids
            ],
            delimiter="\t",
        )
    (folder / "text.json").write_text(
        json.dumps({"t1": {"title": "T", "transcript": "hi \ud83d\ude00", "label": "Normal"}})
    )
    return folder


def test_multihateclip_keeps_the_doubled_id_in_test_and_the_guess_out_of_the_text(tmp_path):
    listing = import_multihateclip(multihateclip(tmp_path / "English_data").parent, tmp_path)
    rows = {row.source: row for row in listing.rows}
    assert {s: r.split for s, r in rows.items()} == {"t1": "train", "both": "test", "v1": "validation", "-e1": "test"}
    assert rows["t1"].label == "normal" and rows["t1"].text == {"title": "T", "transcript": "hi 😀"}
    assert rows["t1"].notes["text_json_label"] == "Normal" and rows["t1"].notes["Target_Victim"] == '["Woman", "Man"]'
    assert listing.report.listed == {"train": 2, "validation": 1, "test": 2}
    assert [f.source for f in listing.report.of(Kind.TWO_SPLITS)] == ["both"]


@pytest.mark.parametrize("cell", ["__import__('os').system('true')", "[" * 5000, "{'a': 1}", "['a'", "[x for x in ()]"])
def test_multihateclip_cells_are_data_and_are_never_run(tmp_path, cell):
    with pytest.raises(DataError, match="Target_Victim"):
        import_multihateclip(multihateclip(tmp_path, cell), tmp_path)


# --- the real files, where they are


def test_real_smarthome_has_the_papers_196_test_ids(tmp_path):
    listing = import_smarthome(real("smarthome-bench"), tmp_path)
    test = [row.label for row in listing.rows if row.split == "test"]
    assert (len(listing.rows), len(test), test.count("normal"), test.count("abnormal")) == (1203, 196, 68, 128)
    assert sum(row.split == "train" for row in listing.rows) == 827
    assert (
        len(listing.report.of(Kind.MISSING)) == 1023
        and sum(r.excluded == Excluded.PRIVATE for r in listing.rows) == 180
    )
    told = [finding.sentence.split(" must")[0] for finding in listing.report.of(Kind.TRIM_TABLE)]
    assert told == ["81 of 196 test clips", "321 of 827 train clips"]
    manifest, _ = quiet_scan(listing, tmp_path, "smarthome")
    assert manifest.summary().excluded.loc["not_found", "test"] == 196 and manifest.usable("test").empty


def test_real_multihateclip_is_701_100_200_with_one_id_twice(tmp_path):
    listing = import_multihateclip(real("multihateclip"), tmp_path)
    assert listing.report.listed == {"train": 701, "validation": 100, "test": 200} and len(listing.rows) == 1000
    assert [f.source for f in listing.report.of(Kind.TWO_SPLITS)] == ["k9OtaMbK0Ac"]
    assert next(r.split for r in listing.rows if r.source == "k9OtaMbK0Ac") == "test"
    assert not any(row.text.keys() - {"title", "transcript"} for row in listing.rows)


@pytest.fixture(scope="module")
def fights():
    root = real("fight-surv")
    return root, import_csv(root / "clips.csv", root, group="split_group")


def test_real_fights_are_read_with_the_sizes_and_hashes_of_their_table(fights, tmp_path):
    root, listing = fights
    some = replace(listing, rows=listing.rows[::16])  # all 237 take half a minute
    manifest, report = quiet_scan(some, tmp_path, "fights")
    frame, table_ = manifest.frame.set_index("source"), pd.read_csv(root / "clips.csv").set_index("path").iloc[::16]
    assert len(manifest.usable()) == 15 and not report.findings
    for mine, theirs in {
        "sha256": "sha256",
        "group": "split_group",
        "label": "label",
        "width": "width",
        "height": "height",
    }.items():
        assert frame[mine].tolist() == table_[theirs].tolist()


def test_real_fights_divide_by_source_with_both_classes_in_each_split(fights):
    rows = fights[1].rows
    assert len(rows) == 237 and not any(row.excluded for row in rows)
    frame = assign_splits(
        manifest_of([(r.source, r.label, r.group, r.split) for r in rows], fights[1].labels), seed=0
    ).frame
    assert (frame.groupby("group")["split"].nunique() == 1).all()
    assert (frame.loc[frame["given_split"] == "validation", "split"] == "validation").all()
    assert (
        pd.crosstab(frame["split"], frame["label"]).shape == (5, 2)
        and pd.crosstab(frame["split"], frame["label"]).min().min() > 0
    )
