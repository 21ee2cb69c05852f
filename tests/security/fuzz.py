"""Broken and hostile texts for everything that reads one: each is read or refused with a `DeepIntuitError`, in time.

    python -m tests.security.fuzz --inputs 100000              # every reader
    python -m tests.security.fuzz --inputs 100000 settings sql --seed 7

Inputs are well-formed examples that were cut, spliced, repeated and filled with what parsers stumble on. They come from
a seed, so a number that fails once fails again: `attack` raises with the target, the seed, the number and the input.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deepintuit import config, mentions, trace
from deepintuit.endpoint.wire import NotACompletion, completion, refused_fields, retry_after, unpacked
from deepintuit.errors import DeepIntuitError
from deepintuit.labels import LabelSet, normalise
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import console
from deepintuit_analysis.index.reviewed import SCHEMA
from deepintuit_analysis.review import fold, import_export, read_events
from deepintuit_analysis.review.spans import Marked, to_cvat
from deepintuit_clips import import_csv, import_jsonl

SECONDS = 5.0
"""What a single input may take of this processor's time at the most; thousands of them a second are the rule."""
LEAST = 60
"""Inputs that are fed however slow the machine is."""
HOME = LabelSet("home", ("fall", "walk", "café"), {"fall": "A person falls."}, {"tumble": "fall"})
TOKENS = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    "\u0301".encode() * 9,
    "\u2028".encode(),
    b"\r",
    b"\n",
    b"\r\n",
    b"[" * 999,
    b"{" * 999,
    b'{"a":' * 200,
    b"]" * 9,
    b"}" * 9,
    b"(" * 300,
    b'"',
    b"'",
    b'"""',
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"1" * 400,
    b"9" * 5000,
    b"0x" + b"f" * 999,
    b"1e999",
    b"-1",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"nan",
    b"null",
    b"true",
    b"0001-01-01T00:00:00+14:00",
    b"9999-12-31T23:59:59-14:00",
    b"-0044-03-15",
    b"a." * 99,
    b"x" * 3000,
    b" " * 3000,
    b"data:",
    b"[DONE]",
    b"<think>",
    b"</think>",
    b"<answer>",
    b"</answer>",
    b"\\boxed{",
    b"}",
    b"=",
    b",",
    b";",
    b"\t",
    b"--",
    b"/*",
    b"../" * 9,
    b"/etc/passwd",
    b"sep=;\n",
    b"#",
    b"%2e%2e%2f",
    b"SELECT ",
    b" FROM ",
    b" UNION ALL ",
    b"{}",
    b"[]",
    b"1-" * 99,
]


def inputs(examples: list[bytes], seed: str) -> Iterator[bytes]:
    """Endless variations of the examples, the same ones for the same seed."""
    draw = random.Random(seed)
    yield from examples
    while True:
        text = bytearray(draw.choice(examples))
        for _ in range(draw.choice((1, 1, 2, 3, 6))):
            at, other = draw.randint(0, len(text)), draw.randint(0, len(text))
            start, end = min(at, other), max(at, other)
            match draw.randrange(7):
                case 0:
                    text[at:at] = draw.choice(TOKENS)
                case 1:
                    text[start:end] = draw.choice(TOKENS)
                case 2:
                    del text[start:end]
                case 3:
                    text[at:at] = text[start:end][:400] * draw.choice((1, 2, 9))
                case 4:
                    text[at:at] = draw.choice(examples)[: draw.randint(0, 400)]
                case 5 if text:
                    text[at % len(text)] = draw.randrange(256)
                case _:
                    text = bytearray(
                        bytes(text).decode("utf-8", "replace").encode(draw.choice(("utf-16", "utf-8-sig")))
                    )
        yield bytes(text[:20_000])


def text_of(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _settings(content: bytes) -> None:
    config.loads(text_of(content)).dumps().encode()


def _assignment(content: bytes) -> None:
    config.loads("", [text_of(content)]).dumps().encode()


def _kept_settings(content: bytes) -> None:
    try:
        kept = json.loads(content)
    except (ValueError, RecursionError):
        return
    if isinstance(kept, dict):
        config.of(kept)


def _trace(content: bytes) -> None:
    text = text_of(content)
    for grammar in trace.GRAMMARS:
        for truncated in (False, True):
            parsed = trace.parse(text, grammar, HOME, truncated)
            assert parsed.text == text
            if parsed.ok:
                trace.argued_label(parsed, HOME)
    mentions.mentions(text)
    assert normalise(normalise(text)) == normalise(text)


def _wire(content: bytes) -> None:
    text = text_of(content)
    retry_after(text), refused_fields(text)
    readers: list[Callable[[], object]] = [
        lambda: completion(text, 1.0),
        lambda: unpacked(content, "gzip"),
        lambda: completion(unpacked(content, ""), 1.0),
    ]
    for read in readers:
        try:
            read()
        except NotACompletion:
            continue


class _Files:
    """Readers that need a place on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workbench = folder, Workbench(folder / "workbench")
        (folder / "1.mp4").write_bytes(b"x")
        self.workbench.refresh()

    def written(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def settings_file(self, content: bytes) -> None:
        config.load(self.written("settings.toml", content))

    def labels(self, content: bytes) -> None:
        found = LabelSet.load(self.written("labels.toml", content))
        assert LabelSet.load(self.written("again.toml", found.dumps().encode())) == found

    def csv(self, content: bytes) -> None:
        import_csv(self.written("clips.csv", content), self.folder)

    def jsonl(self, content: bytes) -> None:
        import_jsonl(self.written("clips.jsonl", content), self.folder)

    def events(self, content: bytes) -> None:
        self.written("reviews/events.jsonl", content)
        fold(read_events(self.folder / "reviews")[0])

    def sql(self, content: bytes) -> None:
        console.ask(self.workbench, text_of(content), seconds=2)

    def request(self, content: bytes) -> None:
        from deepintuit_app import job_requests

        text = text_of(content)
        for given in (
            {"changes": text},
            {"dataset": text},
            {"seed": text},
            {"name": text},
            {"base": text},
            {"stage": text},
        ):
            try:
                job_requests.checked(self.workbench, **{"stage": "grpo", **given})
            except DeepIntuitError:
                continue


def _review(form: str) -> Callable[[bytes], None]:
    def read(content: bytes) -> None:
        for row in import_export.load(content, form):
            row["time"].isoformat()
        import_export.dump(import_export.load(content, form), "jsonl")

    return read


SETTINGS = [
    b'seed = 3\n[grpo]\ngroup = 4\ntau = 2.0\n[clips]\ntext_fields = ["title", "asr"]\n[model]\npath = "a b"\n',
    b"[teach]\nbase_url = 'http://127.0.0.1/v1'\njudged = true\n",
]
SETS = [b"grpo.group=4", b"clips.text_fields=title, asr", b"seed=7", b'model.path="a"', b"grpo.tau=1e-3"]
TRACES = [
    b"<think> A man falls at 1.5 s, frames 3 to 5. </think><answer> fall </answer>",
    b"<observation>x 0:03</observation><think>So walk.</think><answer>Walk.</answer>",
    b"\\boxed{fall}<think>2-3 seconds</think>\\boxed{walk}",
    "<think>café</think><answer>café</answer>".encode(),
]
ANSWERS = [
    json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}).encode()
    for message in (
        {"content": "a", "reasoning_content": "b"},
        {"content": [{"type": "text", "text": "a"}]},
        {"refusal": "no"},
    )
] + [b'{"error": {"message": "max_tokens is unsupported", "code": 400}}']
JSONL = [
    b'{"path": "1.mp4", "label": "a", "title": "t", "split": "test"}\n'
    b'{"path": "2.mp4", "label": "b", "x": [1, {"y": 2}]}\n'
]
CSV = [b'path,label,title\n1.mp4,a,"x, ""y"""\n2.mp4,b,\n', b"sep=;\npath;label;\n1.mp4;a;\n2.mp4;b\n"]
LABELS = [b'name = "x"\nlabels = ["a", "b"]\n[definitions]\na = "A."\n[aliases]\nc = "a"\n']
ROW = {
    "task": "t",
    "trace_id": "i",
    "reviewer": "ada",
    "kind": "judged",
    "label": "a",
    "failing_sentence": 2,
    "time": "2026-01-02T03:04:05+00:00",
}
SPAN = {"start": 0.5, "end": 1.0, "label": "a"}
STUDIO = [
    {
        "data": {"task": "t", "trace_id": "i", "fps": 8.0},
        "annotations": [
            {
                "completed_by": {"email": "a@b"},
                "created_at": ROW["time"],
                "result": [
                    {"from_name": "label", "value": {"choices": ["a"]}},
                    {"from_name": "failing_sentence", "value": {"number": 2}},
                    {"value": {"ranges": [{"start": 1, "end": 4}], "timelinelabels": ["a"]}},
                ],
            }
        ],
    }
]
EVENTS = [
    b"".join(
        json.dumps(
            {
                "kind": kind,
                "task": "t",
                "reviewer": "ada",
                "item": "i",
                "clip": "c",
                "id": str(n),
                "time": ROW["time"],
                "payload": payload,
            }
        ).encode()
        + b"\n"
        for n, (kind, payload) in enumerate(
            [
                ("opened", {"items": {"i": "c"}, "labels": ["a", "b"]}),
                ("judged", {"label": "a", "failing": {"sentence": 1, "in": "seeing"}, "spans": [SPAN]}),
                ("undone", {"event": "1"}),
                ("closed", {"closed": True}),
            ]
        )
    )
]
SQL = [
    b"SELECT true_label, count(*) FROM trace_facts GROUP BY ALL",
    b"SELECT * FROM traces ORDER BY run_id LIMIT 5 -- x",
    b"WITH a AS (SELECT 1 AS b) SELECT list(b), {'a': b}, MAP {'k': b} FROM a",
    b"SELECT '1'::DATE + INTERVAL 1 DAY, 1/0, 'a' LIKE '%'",
    b"SELECT unnest([1,2,NULL]), struct_pack(a := 1), x'ff'::BLOB, uuid()",
    b"SELECT path FROM duckdb_databases()",
]


CVAT = (
    b"<annotations><version>1.1</version><meta><task><id>1</id><name>i</name><size>80</size></task></meta>"
    b'<track id="0" label="a"><box frame="3" outside="0"><attribute name="reviewer">ada</attribute></box>'
    b'<box frame="9" outside="1"/></track></annotations>'
)


def _cvat(content: bytes) -> None:
    import_export.load(content, "cvat", {"i": ("i", 8.0)})


def _parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{**ROW, "time": None}], schema=SCHEMA), file)
    return file.getvalue()


def targets(folder: Path) -> dict[str, tuple[Callable[[bytes], None], list[bytes]]]:
    """Every reader by its name, with well-formed examples."""
    files = _Files(folder)
    table = ",".join(ROW) + "\r\n" + ",".join(map(str, ROW.values())) + "\r\n"
    return {
        "settings": (_settings, SETTINGS),
        "assignments": (_assignment, SETS),
        "settings-file": (files.settings_file, SETTINGS),
        "kept-settings": (_kept_settings, [json.dumps(config.Config().to_dict()).encode()]),
        "labels": (files.labels, LABELS),
        "csv": (files.csv, CSV),
        "jsonl": (files.jsonl, JSONL),
        "traces": (_trace, TRACES),
        "answers": (_wire, ANSWERS),
        "events": (files.events, EVENTS),
        "job_requests": (files.request, [*SETTINGS, *SETS, b"grpo", b"file:tiny"]),
        "reviews-jsonl": (_review("jsonl"), [json.dumps(ROW).encode()]),
        "reviews-csv": (_review("csv"), [table.encode()]),
        "reviews-label-studio": (_review("label-studio"), [json.dumps(STUDIO).encode()]),
        "reviews-parquet": (_review("parquet"), [_parquet()]),
        "reviews-cvat": (_cvat, [CVAT, to_cvat([Marked(["i"], 8.0, (4, 3), 80, {"ada": [SPAN]})], ["a"])]),
        "sql": (files.sql, SQL),
    }


def attack(
    name: str, read: Callable[[bytes], None], examples: list[bytes], count: int, seed: int, seconds: float = 1e9
) -> int:
    """Feed so many inputs, or for so long; how many they were. AssertionError for the first that is neither read nor
    refused, or takes too long."""
    began = time.monotonic()
    for number, content in enumerate(inputs(examples, f"{name} {seed}")):
        if number >= count or (number >= LEAST and time.monotonic() - began > seconds):
            return number
        started = time.process_time()  # of this process: how busy the machine is does not count
        told = f"{name}, seed {seed}, input {number}: {content[:300]!r}"
        try:
            read(content)
        except DeepIntuitError as error:
            assert all(beat.strip() for beat in (error.what, error.why, error.todo)) and len(str(error)) < 6000, told
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} ({told})") from error
        assert time.process_time() - started < SECONDS, f"{time.process_time() - started:.1f} s ({told})"
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="which readers (default: all)")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked, failed = parser.parse_args(), 0
    with tempfile.TemporaryDirectory() as folder:
        for name, (read, examples) in targets(Path(folder)).items():
            if asked.targets and name not in asked.targets:
                continue
            started = time.monotonic()
            try:
                count = attack(name, read, examples, asked.inputs, asked.seed)
                print(f"{name}: {count:,} inputs held in {time.monotonic() - started:.0f} s", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"{name}: FAILED: {error}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
