"""`deepintuit clips`: import a dataset, divide it, show what it holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from deepintuit import video
from deepintuit.command import Parser, common, console, positive, settings_of, with_dataset
from deepintuit.config import Config
from deepintuit.data import Manifest, assign_splits
from deepintuit.errors import DataError
from deepintuit.labels import LabelSet
from deepintuit.schedule import fractions
from deepintuit_clips import near
from deepintuit_clips.benchmarks import import_multihateclip, import_smarthome
from deepintuit_clips.scan import scan
from deepintuit_clips.sources import import_csv, import_folder, import_jsonl


def add(commands) -> None:
    clips = commands.add_parser(
        "clips",
        help="import clips, divide them into splits, show what is there",
        example="clips folder videos --name kitchen",
    )
    verbs = clips.add_verbs()
    folder = _importer(verbs, "folder", "a folder of class folders", _read_folder, "videos")
    folder.add_argument("source", metavar="DIR")
    for name, kind in (("csv", "CSV or TSV"), ("jsonl", "JSONL")):
        columns = "path, label and optional group, split and text columns"
        table = _importer(verbs, name, f"a {kind} with {columns}", _read_table, f"clips.{name} --text title")
        option = table.add_argument
        option("source", metavar="FILE")
        option("--videos", metavar="DIR", help="where paths are relative to (default: the table's folder)")
        option("--path-column", metavar="NAME", default="path", help="column of the video file (default: path)")
        option("--label-column", metavar="NAME", default="label", help="column of the label (default: label)")
        option("--group", help="column that names the source video or camera")
        option("--split", help="column that names a given split")
        option("--text", nargs="*", help="columns with the uploader's own words (title, transcript)")
    for name, title in (("smarthome", "SmartHome-Bench"), ("multihateclip", "MultiHateClip")):
        about = f"{title} annotations and a folder of videos"
        bench = _importer(verbs, name, about, _read_benchmark, "annotations.csv --videos videos")
        bench.add_argument("source", metavar="ANNOTATIONS")
        bench.add_argument("--videos", metavar="DIR", required=True)
        if name == "smarthome":
            about = "the videos went through the benchmark's Video_trim.py"
            bench.add_argument("--trimmed", action="store_true", help=about)
    about = "divide a dataset by group into cold start, GRPO, calibration, validation and test"
    split = _verb(verbs, "split", about, _split, "kitchen --seed 1")
    split.add_argument("name", nargs="?")
    _near(split)
    about = "what a dataset holds: splits, labels, and every clip that is left out, with its reason"
    _verb(verbs, "show", about, _show_clips, "kitchen").add_argument("name", nargs="?")


def _verb(verbs, name: str, about: str, run: Callable, example: str) -> Parser:
    parser = common(verbs.add_parser(name, help=about, example=f"clips {name} {example}", settings="clips"))
    parser.set_defaults(run=run)
    return parser


def _importer(verbs, name: str, about: str, reader: Callable, example: str) -> Parser:
    parser = _verb(verbs, name, about, _import, f"{example} --name kitchen")
    parser.set_defaults(read=reader, kind=name)
    option = parser.add_argument
    option("--name", required=True, help="what the dataset is called in the workbench")
    option("--labels", metavar="FILE", help="labels.toml with labels, definitions and aliases")
    option("--jobs", type=positive, default=os.cpu_count() or 1, help="files looked at side by side")
    about = "what becomes of clips that end before their file says (default: keep)"
    option("--truncated", choices=("keep", "exclude"), default="keep", help=about)
    _near(parser)
    about = "look at every file again, also at those known from an earlier import"
    option("--fresh", action="store_true", help=about)
    return parser


def _near(parser: Parser) -> None:
    about = "clips that look like the same footage: report them (default), keep their groups together, or do not look"
    parser.add_argument("--near", choices=("report", "together", "off"), default="report", help=about)


def _read_folder(options):
    return import_folder(options.source, labels=_labels(options))


def _read_table(options):
    return (import_csv if options.kind == "csv" else import_jsonl)(
        options.source,
        options.videos or Path(options.source).parent,
        path=options.path_column,
        label=options.label_column,
        group=options.group,
        split=options.split,
        text=options.text,
        labels=_labels(options),
    )


def _read_benchmark(options):
    if options.kind == "smarthome":
        return import_smarthome(options.source, options.videos, trimmed=options.trimmed)
    return import_multihateclip(options.source, options.videos)


def _labels(options):
    return LabelSet.load(options.labels) if options.labels else None


def _import(options) -> int:
    settings = settings_of(options)
    listing = options.read(options)
    if options.dry_run:
        console.print(str(listing.report), markup=False)
        console.print("Nothing was imported (--dry-run).")
        return 0
    limits = video.Limits.of(settings.video)
    manifest, report = scan(
        listing,
        settings.workbench,
        options.name,
        probe=partial(video.probe, isolate=True),
        playable_copy=partial(video.playable_copy, limits=limits, isolate=True),
        fingerprint=partial(near.fingerprint, limits=limits, isolate=True) if options.near != "off" else None,
        limits=limits,
        jobs=options.jobs,
        progress=not options.quiet,
        fresh=options.fresh,
        keep_truncated=options.truncated == "keep",
    )
    console.print(str(report), markup=False)
    if not len(manifest.usable()):
        raise DataError(
            f"no clip of {options.name!r} can be used",
            "nothing was saved, and what is there of this name stays",
            "See the reasons above, and check that the videos are where --videos says",
        )
    return _divide(manifest, settings, options.near)


def _split(options) -> int:
    manifest, settings = _named(options)
    return _divide(manifest, settings, options.near, options.dry_run)


def _show_clips(options) -> int:
    manifest, _ = _named(options)
    console.print(str(manifest.summary()), markup=False)
    for line in manifest.remarks():
        console.print(f"  {line}", markup=False)
    _tell(near.described(manifest, _pairs(manifest)))
    return 0


def _named(options):
    """The manifest of the dataset that is named, or is the only one, and the settings."""
    settings = settings_of(options)
    settings = with_dataset(settings.replace(clips={"dataset": options.name}) if options.name else settings)
    return Manifest.load(settings.workbench, settings.clips.dataset), settings


def _divide(manifest, settings: Config, near_ones: str, dry: bool = False) -> int:
    duplicates = _pairs(manifest) if near_ones != "off" else []
    if near_ones == "together":
        manifest = near.together(manifest, duplicates)
    manifest = assign_splits(manifest, fractions(settings), settings.seed)
    if not dry:
        manifest.save()
    console.print(str(manifest.summary()), markup=False)
    _tell(near.described(manifest, duplicates))
    if dry:
        console.print("Nothing was saved (--dry-run).")
    return 0


def _pairs(manifest: Manifest) -> list[near.Pair]:
    """Those of the clips that can be used, from what their import kept."""
    usable = {*manifest.usable()["clip_id"]}
    prints = near.prints(manifest.workbench, manifest.dataset)
    return near.pairs({clip: text for clip, text in prints.items() if clip in usable})


def _tell(text: str) -> None:
    if text:
        console.print(text, markup=False, soft_wrap=True)
