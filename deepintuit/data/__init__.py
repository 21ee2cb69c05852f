"""The manifest shelf: which clips exist and who may see them.

    listing = import_csv("clips.csv", "videos", group="split_group")              # what the annotation says exists
    manifest, report = scan(listing, "workbench", "home", probe=video.probe)      # what the files say
    assign_splits(manifest, seed=0).save()                                        # who may see them

Needs numpy, pandas and pyarrow only; never torch. See docs/data.md.
"""

from deepintuit.data.benchmarks import import_multihateclip, import_smarthome
from deepintuit.data.listing import SPLITS, Excluded, Finding, Kind, Listing, Report, Row
from deepintuit.data.manifest import LeakWarning, Manifest, Summary, container_features, text_corpus
from deepintuit.data.scan import scan
from deepintuit.data.sources import VIDEO_SUFFIXES, files, import_csv, import_folder, import_jsonl, import_new
from deepintuit.data.splits import FRACTIONS, assign_splits

__all__ = [
    "FRACTIONS",
    "SPLITS",
    "VIDEO_SUFFIXES",
    "Excluded",
    "Finding",
    "Kind",
    "LeakWarning",
    "Listing",
    "Manifest",
    "Report",
    "Row",
    "Summary",
    "assign_splits",
    "container_features",
    "files",
    "import_csv",
    "import_folder",
    "import_jsonl",
    "import_multihateclip",
    "import_new",
    "import_smarthome",
    "scan",
    "text_corpus",
]
