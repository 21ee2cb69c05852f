"""`python -m deepintuit.video FILE…`: the facts of each file as one JSON line, or why it cannot be read."""

import dataclasses
import json
import sys

from . import VideoError, probe

refused = 0
for name in sys.argv[1:]:
    try:
        print(json.dumps(dataclasses.asdict(probe(name, isolate=True))))
    except VideoError as error:
        refused = 2
        print(f"{error.reason}: {error}", file=sys.stderr)
sys.exit(refused)
