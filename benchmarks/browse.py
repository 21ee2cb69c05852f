"""Millions of traces are browsed without waiting: count, page, filter, sort, search, and the first rows of an export.

Makes a synthetic workbench (parts written as Parquet in the shape that the stages write: texts of 250 to 3,000
characters about what is seen when, token ids with log-probabilities, predictions under every control), indexes it and
asks what the Traces page asks, each question many times in random order with other values each time. Prints medians and
95th percentiles in milliseconds, the processor time (of all threads: on a busy machine it says what an idle one would
take at most), the rate at which the index was built and a run was added to it, its size, the rate of a whole export,
and the most memory that the process held while it built and while it asked.

Making it takes minutes and 6 GB a million traces (10 while an index is replaced); a killed run goes on where it stood.
`--brief`: texts of two sentences, no token lists, and controls for one evaluation of seven, so that ten million traces
take 10 GB. The questions are timed at the server's side of the store (query, rows as pandas), without HTTP and HTML, on
a warm file cache.

Run it:  python benchmarks/browse.py FOLDER [--traces 1000000] [--brief] [--repeats 30]
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from measure import Row, chosen, now, options, report

from deepintuit import disk
from deepintuit.labels import NONE_LABEL
from deepintuit.runs import GRAINS, Run
from deepintuit.runs.run import part_name
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import browse, clips
from deepintuit_analysis.index.browse import TraceFilter

DATASET, LABELS = "street", ("routine", "delivery", "theft", "intrusion", "stray", "emergency")
SPLITS = ("coldstart", "grpo", "calibration", "validation", "test")
CLIPS, PART = 20_000, 10_000
STAGES = {"teach": 0.02, "grpo": 0.5, "calibrate": 0.2, "evaluate": 0.28}
"""Share of all traces by stage; evaluation is spread over seven runs."""
CONTROLS = ("none", "trace_blanked", "video_blanked", "trace_swapped")
ASKED = {
    "a page": "first page", "a filter": "filter: a run", "one id": "open a trace", "class counts": "choices",
    "flips": "filter: flips", "confusion": "confusion of a run", "a confusion cell": "filter: a confusion cell",
}  # fmt: skip
"""What the table of all benchmarks shows → the question here."""
WHO = "courier,resident,child,neighbour,stranger,dog,cat,cyclist,driver,cleaner,guest,gardener".split(",")
WHAT = "box,parcel,bag,door,gate,window,car,bicycle,letter,lamp,ladder,bucket,key,phone,umbrella,bench".split(",")
DOES = "takes,drops,carries,opens,closes,passes,watches,lifts,kicks,leaves,moves,inspects,hides,pushes".split(",")
WHERE = "porch,yard,hall,garage,street,drive,garden,stairs,fence,corner,shed,lawn".split(",")
LINK = "Then,So,Now,Meanwhile,Shortly after,In the background,Again,At first,Finally,Next".split(",")


def sentences(count: int = 30_000) -> list[str]:
    rng = random.Random(0)
    made = []
    for _ in range(count):
        who, what, does, where = rng.choice(WHO), rng.choice(WHAT), rng.choice(DOES), rng.choice(WHERE)
        link, at, frame = rng.choice(LINK), rng.randrange(600) / 10, rng.randrange(1, 33)
        made.append(rng.choice((
            f"{link} the {who} {does} the {what} at {at} s near the {where}.",
            f"Frame {frame}: the {who} stands by the {where}, {what} down.",
            f"{link} nobody is at the {where}; the {what} is still there in frame {frame}.",
            f"Is it the {who}'s {what}? The way he {does} it from {at} s on says no.",
        )))  # fmt: skip
    return made


def traces(run: Run, stage: str, numbers: range, pool: pa.Array, brief: bool = False) -> pa.Table:
    """Rows of traces `numbers` of a run; the same for the same arguments."""
    n = len(numbers)
    rng = np.random.default_rng([int(hashlib.sha256(run.id.encode()).hexdigest()[:8], 16), numbers[0]])
    samples, number = {"grpo": 8, "calibrate": 4}.get(stage, 1), np.arange(numbers[0], numbers[0] + n)
    clip = number // samples % CLIPS
    true, other = clip % len(LABELS), rng.integers(0, len(LABELS), n)
    said = np.where(rng.random(n) < {"teach": 0.8, "grpo": 0.7}.get(stage, 0.78), true, other)
    broken = rng.random(n) < 0.05
    length = np.full(n, 2) if brief else rng.choice((5, 12, 30), n, p=(0.4, 0.4, 0.2)) + rng.integers(0, 6, n)
    bodies = pa.ListArray.from_arrays(_offsets(length), pool.take(pa.array(rng.integers(0, len(pool), length.sum()))))
    end = pa.array(["", *(f" </think><answer> {label} </answer>" for label in LABELS)])
    ends = end.take(pa.array(np.where(broken, 0, said + 1)))
    texts = pc.binary_join_element_wise("<think> ", pc.binary_join(bodies, " "), ends, "")
    tokens = pc.utf8_length(texts).to_numpy() // 4
    logprobs = -rng.gamma(0.25, 0.2, int(tokens.sum())).astype(np.float32)
    starts = _offsets(tokens)
    confidence = np.exp(np.add.reduceat(logprobs, starts.to_numpy()[:-1]) / tokens)
    lists = {} if brief else {
        "token_logprobs": pa.ListArray.from_arrays(starts, pa.array(logprobs)),
        "token_ids": pa.ListArray.from_arrays(starts, pa.array(rng.integers(0, 32_000, len(logprobs)), pa.int32())),
    }  # fmt: skip
    ids = pa.StringArray.from_buffers(
        n, pa.array(np.arange(n + 1, dtype=np.int32) * 20).buffers()[1], pa.py_buffer(rng.bytes(10 * n).hex().encode())
    )
    clips = pa.array([f"{i:016x}" for i in range(CLIPS)]).take(pa.array(clip))
    reasons = pa.array(["truncated", "unclosed_tag", "unknown_label"]).take(pa.array(other % 3))
    columns = {
        "trace_id": ids, "run_id": [run.id] * n, "clip_id": clips, "stage": [stage] * n, "sample": number % samples,
        "step": number // 512 if stage == "grpo" else [None] * n, "temperature": rng.random(n).round(),
        "text": texts, "answer": _labels(np.where(broken, -1, said), None),
        "provisional": _labels(np.where(broken, -1, said), NONE_LABEL), "true_label": _labels(true, None),
        "reason": pc.if_else(pa.array(broken), reasons, None), "tokens": tokens, "milliseconds": rng.gamma(4, 20, n),
        "confidence": confidence, "frame_hash": clips, "truncated": broken, "model": ["checkpoint"] * n, **lists,
    }  # fmt: skip
    return _shaped("traces", columns, n)


def _offsets(length_N: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(length_N)]), pa.int32())


def _labels(place_N: np.ndarray, without: str | None) -> pa.Array:
    """`LABELS` by their places; -1 is `without` one."""
    return pa.array([without, *LABELS], pa.string()).take(pa.array(place_N + 1))


def predictions(run: Run, rows: pa.Table, controls: tuple[str, ...]) -> pa.Table:
    """The answer as given, and what a calibrator made of it under each control."""
    n, k, rng = len(rows), len(LABELS), np.random.default_rng(len(rows))
    shared = {name: rows[name].combine_chunks() for name in ("trace_id", "clip_id", "true_label", "provisional")}
    labels = pa.ListArray.from_arrays(_offsets(np.full(n, k)), pa.array(LABELS * n))
    made = []
    for method, control in (("raw", "none"), *(("label_likelihood", control) for control in controls)):
        raw, said = method == "raw", shared["provisional"]
        if not raw:
            better = pc.if_else(pa.array(rng.random(n) < 0.15), shared["true_label"], said)
            said = pc.if_else(pc.equal(better, NONE_LABEL), LABELS[0], better)
        probs = rng.dirichlet(np.full(k, 0.3), n).round(6).ravel()
        made.append(
            _shaped(
                "predictions",
                {
                    **shared,
                    "run_id": [run.id] * n,
                    "split": ["test"] * n,
                    "system": [run.id] * n,
                    "method": [method] * n,
                    "control": [control] * n,
                    "predicted": said,
                    "labels": [None] * n if raw else labels,
                    "probs": [None] * n if raw else pa.ListArray.from_arrays(labels.offsets, pa.array(probs)),
                },
                n,
            )
        )
    return pa.concat_tables(made)


def _shaped(grain: str, columns: dict, n: int) -> pa.Table:
    schema = GRAINS[grain].schema
    return pa.Table.from_arrays(
        [
            column
            if isinstance(column := columns.get(field.name, [None] * n), pa.Array)
            else pa.array(column, field.type)
            for field in schema
        ],
        schema=schema,
    )


def write(workbench: Workbench, count: int, brief: bool) -> None:
    """Manifest and runs; a part that is there already is kept."""
    manifest = {
        "dataset": [DATASET] * CLIPS, "clip_id": [f"{i:016x}" for i in range(CLIPS)],
        "path": [f"videos/{i:05d}.mp4" for i in range(CLIPS)], "label": [LABELS[i % len(LABELS)] for i in range(CLIPS)],
        "split": [SPLITS[i % len(SPLITS)] for i in range(CLIPS)], "group": [f"camera-{i % 500}" for i in range(CLIPS)],
        "seconds": [2.0 + i % 60 for i in range(CLIPS)],
    }  # fmt: skip
    if not (workbench.clips / f"{DATASET}.parquet").exists():
        pq.write_table(pa.table(manifest), workbench.clips / f"{DATASET}.parquet")
    pool = pa.array(sentences())
    shares = [
        (stage, i, share / (7 if stage == "evaluate" else 1))
        for stage, share in STAGES.items()
        for i in range(7 if stage == "evaluate" else 1)
    ]
    done = 0
    for stage, number, share in shares:
        run = workbench.start_run(stage, {"traces": count, "brief": brief}, name=f"{stage} {number}", dataset=DATASET)
        size = round(count * share)
        step = 5 * PART if brief else PART
        for part, first in enumerate(range(0, size, step)):
            numbers = range(first, min(first + step, size))
            if not run.finished and not (run.path / part_name("traces", part)).exists():
                rows = traces(run, stage, numbers, pool, brief)
                if stage == "evaluate":
                    controls = CONTROLS[:1] if brief and number else CONTROLS
                    _write(run, "predictions", part, predictions(run, rows, controls))
                _write(run, "traces", part, rows)
            done += len(numbers)
        if not run.finished:
            run.finish({"traces": size})
        print(f"{done:,} of {count:,} traces written", flush=True)


def _write(run: Run, grain: str, number: int, rows: pa.Table) -> None:
    target = run.path / part_name(grain, number)
    with disk.replacing(target, durable=False) as temporary:
        pq.write_table(rows, temporary, compression="zstd")


def questions(workbench: Workbench, seed: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and calls of one round, in random order; values differ from round to round."""
    rng = random.Random(seed)
    choices = browse.choices(workbench)
    run, size = rng.choice(choices["run"])
    label, other = rng.sample(LABELS, 2)
    low = 0.85 + 0.1 * rng.random()  # where most are
    deep = min(499_950, browse.count(workbench, TraceFilter()) // 2)
    between = TraceFilter(min_token_confidence=low, max_token_confidence=low + 0.01)
    cell = TraceFilter(true=label, provisional=other)
    common = rng.choice(WHO)
    rare = f"{rng.choice(LINK)} the {rng.choice(WHO)} {rng.choice(DOES)} the {rng.choice(WHAT)}"
    exact, absent = f"at {rng.randrange(600) / 10} s near the {rng.choice(WHERE)}", f"zebra {seed}"
    [chosen_trace] = browse.page(workbench, TraceFilter(run=run), limit=1, offset=rng.randrange(size)).rows.trace_id
    ask = {
        "first page": lambda: browse.page(workbench, TraceFilter()),
        "first page, 500 rows": lambda: browse.page(workbench, TraceFilter(), limit=500),
        "count": lambda: browse.count(workbench, TraceFilter()),
        "choices": lambda: browse.choices(workbench),
        "filter: a run": lambda: browse.page(workbench, TraceFilter(run=run)),
        "filter: a confusion cell": lambda: browse.page(workbench, cell),
        "filter: flips": lambda: browse.page(workbench, TraceFilter(flip=rng.choice(("fixed", "broken")))),
        "filter: malformed": lambda: browse.page(workbench, TraceFilter(reason="malformed", split="test")),
        "filter: confidence range": lambda: browse.page(workbench, between),
        "filter: a clip": lambda: browse.page(workbench, TraceFilter(clip=f"{rng.randrange(CLIPS):016x}")),
        "sort: confidence": lambda: browse.page(workbench, TraceFilter(), sort="confidence"),
        "sort: tokens in a run": lambda: browse.page(workbench, TraceFilter(run=run), sort="tokens", descending=True),
        "sort: label": lambda: browse.page(workbench, TraceFilter(), sort="true"),
        "page 10,000 of all": lambda: browse.page(workbench, TraceFilter(), offset=deep),
        "page 10,000, sorted": lambda: browse.page(workbench, TraceFilter(), sort="tokens", offset=deep),
        "search: a common word": lambda: browse.page(workbench, TraceFilter(text=common)),
        "search: common, by confidence": lambda: browse.page(workbench, TraceFilter(text=common), "confidence"),
        "search: three letters": lambda: browse.page(workbench, TraceFilter(text=rng.choice(("zqx", "dog")))),
        "search: a phrase": lambda: browse.page(workbench, TraceFilter(text=rare)),
        "search: a rare phrase": lambda: browse.page(workbench, TraceFilter(text=exact)),
        "search: not there": lambda: browse.page(workbench, TraceFilter(text=absent)),
        "search: in a run": lambda: browse.page(workbench, TraceFilter(text=exact, run=run)),
        "confusion of a run": lambda: workbench.query(
            "SELECT true_label, provisional, sum(n) FROM trace_counts WHERE run_id = ? GROUP BY ALL", [run]
        ),
        "flips counted": lambda: workbench.query(
            "SELECT provisional, calibrated, sum(n) FROM trace_counts WHERE calibrated <> provisional GROUP BY ALL"
        ),
        "open a trace": lambda: (browse.fact(workbench, chosen_trace), browse.trace(workbench, chosen_trace)),
        "other traces of a clip": lambda: browse.siblings(workbench, chosen_trace),
        "what was said of a trace": lambda: (
            browse.scores_of(workbench, chosen_trace),
            clips.predictions_on(workbench, chosen_trace),
        ),
        "export, first bytes": lambda: next(browse.export(workbench, cell, "csv")),
        "export all, first bytes": lambda: next(browse.export(workbench, TraceFilter(), "parquet")),
    }
    names = list(ask)
    rng.shuffle(names)
    for name in names:
        yield name, ask[name]


def _refresh(workbench: Workbench, what: str, count: int) -> list[Row]:
    began, started, worked = now(), time.perf_counter(), time.process_time()
    if not workbench.refresh():
        return []
    disk.fsync_folder(workbench.path)
    spent, seconds, work = now() - began, time.perf_counter() - started, time.process_time() - worked
    print(f"index {what} in {seconds:.1f} s (processor {work:.1f} s), {count / seconds:,.0f} traces a second")
    return [Row(f"store, index {what}", [spent], counted={"traces": count, "a second": round(count / spent)})]


def whole_export(workbench: Workbench, form: str, most: int = 100_000) -> None:
    """Print what the first traces of an export of all take, and how much the process grew meanwhile."""
    before, started, worked = _memory(), time.perf_counter(), time.process_time()
    rows = size = 0
    for piece in browse.export(workbench, TraceFilter(), form):
        size += len(piece)
        rows += piece.count(b"\n")
        if rows > most:
            break
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    print(
        f"export, {form}: {rows:,} traces, {size / 1e6:.0f} MB, {rows / seconds:,.0f} traces a second "
        f"(of processor {rows / work:,.0f}), memory {_memory() - before:+.2f} GiB"
    )


def _memory(what: str = "VmRSS") -> float:
    """What the process holds now (VmHWM: at the most so far), in GiB; 0 where that cannot be read."""
    status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(what)) / 2**20


def _forget_peak() -> None:
    """From here on VmHWM counts anew, where the system can do so."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = options(__doc__, repeats=30)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", type=int, default=1_000_000)
    parser.add_argument("--brief", action="store_true", help="short texts, no token lists")
    given = chosen(parser)
    workbench = Workbench(given.folder)
    write(workbench, given.traces, given.brief)
    _forget_peak()
    rows = _refresh(workbench, "built", given.traces)
    run = workbench.start_run("evaluate", {"traces": "added", "at": time.time()}, dataset=DATASET)
    _write(run, "traces", 0, traces(run, "evaluate", range(1_000), pa.array(sentences()), given.brief))
    run.finish()
    rows += _refresh(workbench, "added to", 1_000)
    built = _memory("VmHWM")
    parts = sum(path.stat().st_size for path in workbench.path.glob("runs/*/*.parquet"))
    print(
        f"parts {parts / 1e9:.2f} GB, index {workbench.index_path.stat().st_size / 1e9:.2f} GB, "
        f"peak memory while building {built:.2f} GiB"
    )
    _forget_peak()
    milliseconds: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    for number in range(given.repeats + 1):
        for name, ask in questions(workbench, number):
            started, worked = time.perf_counter(), time.process_time()
            ask()
            if number:  # the first round warms the file cache
                milliseconds.setdefault(name, []).append(1000 * (time.perf_counter() - started))
                processor.setdefault(name, []).append(1000 * (time.process_time() - worked))
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"\n{'ms':28} {'median':>8} {'p95':>8} {'worst':>8} {'processor':>10}   n = {given.repeats}, "
        f"{os.cpu_count()} cores, {load}"
    )
    for name, times in sorted(milliseconds.items()):
        p95, work = float(np.percentile(times, 95)), statistics.median(processor[name])
        print(f"{name:28} {statistics.median(times):8.0f} {p95:8.0f} {max(times):8.0f} {work:10.0f}")
    everything = [t for times in milliseconds.values() for t in times]
    p95 = np.percentile(everything, 95)
    print(f"{'all':28} {statistics.median(everything):8.0f} {p95:8.0f} {max(everything):8.0f}")
    asking = _memory("VmHWM")
    print(f"peak memory while asking {asking:.2f} GiB")
    whole_export(workbench, "jsonl")
    taken = processor if given.clock == "processor" else milliseconds
    for title, name in (*ASKED.items(), ("all questions", None)):
        times = [one for asked, some in taken.items() if name in (asked, None) for one in some]
        told = {"p95 ms": round(float(np.percentile(times, 95)), 1)}
        rows.append(Row(f"store, {title}", [one / 1000 for one in times], counted=told))
    report(
        given,
        rows,
        f"{given.traces:,} traces, {len(taken)} kinds of questions, peak memory {built:.2f} GiB while "
        f"building, {asking:.2f} while asking",
    )


if __name__ == "__main__":
    main()
