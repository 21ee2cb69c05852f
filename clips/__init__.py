"""Clips that come in: imported with labels and looked at, or answered without.

    listing = import_csv("clips.csv", "videos", group="split_group")              # what the annotation says exists
    manifest, report = scan(listing, "workbench", "home", probe=video.probe)      # what the files say
    assign_splits(manifest, seed=0).save()                                        # who may see them (`deepintuit.data`)

    deepintuit.load(RUN).predict(["videos", "clip.mp4"])                       # its answers (`predict`)

Importing it brings no torch. See docs/data.md and docs/predict.md.
"""

from deepintuit_clips.benchmarks import import_multihateclip, import_smarthome
from deepintuit_clips.listing import Excluded, Finding, Kind, Listing, Report, Row
from deepintuit_clips.scan import scan
from deepintuit_clips.sources import VIDEO_SUFFIXES, files, import_csv, import_folder, import_jsonl, import_new

__all__ = [
    "VIDEO_SUFFIXES",
    "Excluded",
    "Finding",
    "Kind",
    "Listing",
    "Report",
    "Row",
    "files",
    "import_csv",
    "import_folder",
    "import_jsonl",
    "import_multihateclip",
    "import_new",
    "import_smarthome",
    "scan",
]
