"""Every reader of foreign text, under broken and hostile inputs, a moment each; 100,000 each by one command:
`python -m tests.security.fuzz --inputs 100000` (or with DEEPINTUIT_FUZZ=100000 in the environment of this test)."""

import os
from pathlib import Path

import pytest
from fuzz import LEAST, attack, targets

INPUTS = int(os.environ.get("DEEPINTUIT_FUZZ", "0"))
NAMES = (
    "settings assignments settings-file kept-settings labels csv jsonl traces answers events job_requests "
    "reviews-jsonl reviews-csv reviews-label-studio reviews-parquet reviews-cvat sql"
).split()


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory):
    return targets(Path(tmp_path_factory.mktemp("fuzz")))


@pytest.mark.timeout(0 if INPUTS else 300)
@pytest.mark.parametrize("name", NAMES)
def test_whatever_comes_is_read_or_refused_in_a_sentence(readers, name):
    assert attack(name, *readers[name], count=INPUTS or 400, seed=0, seconds=1e9 if INPUTS else 3) >= LEAST


def test_no_reader_is_left_out(readers):
    assert list(readers) == NAMES
