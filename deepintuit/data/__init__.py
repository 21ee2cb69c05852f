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
from deepintuit.data.sources import import_csv, import_folder, import_jsonl
from deepintuit.data.splits import FRACTIONS, assign_splits

__all__ = [
    "FRACTIONS",
    "SPLITS",
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
    "import_csv",
    "import_folder",
    "import_jsonl",
    "import_multihateclip",
    "import_smarthome",
    "scan",
    "text_corpus",
]
