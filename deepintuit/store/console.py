"""The SQL console without its page: ask, export, what there is to ask about, and questions to begin with.

    answer = ask(workbench, "SELECT true_label, count(*) FROM trace_facts GROUP BY ALL")
    answer.names, answer.rows, answer.cut

Left out on purpose: running anything but one guarded SELECT, and a query builder. Never imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deepintuit.errors import StoreError, nearest
from deepintuit.store import browse

if TYPE_CHECKING:
    from deepintuit.store import Workbench

SHOWN, EXPORTED, SECONDS = 200, 100_000, 10.0
"""Rows on a page, rows of a file, and how long a query may take."""

EXAMPLES = {
    "Which classes are worst?": """SELECT system, true_label, count(*) AS clips,
       round(avg((predicted = true_label)::INT), 3) AS recall
FROM latest_predictions
WHERE split = 'test' AND method = 'label_likelihood' AND control = 'none'
GROUP BY ALL ORDER BY recall, clips DESC""",
    "What is taken for what?": """SELECT true_label, predicted, count(*) AS clips
FROM latest_predictions
WHERE split = 'test' AND control = 'none' AND predicted <> true_label
GROUP BY ALL ORDER BY clips DESC""",
    "Why are traces malformed, by stage?": """SELECT stage, coalesce(reason, 'well-formed') AS form, count(*) AS traces,
       round(count(*) / sum(count(*)) OVER (PARTITION BY stage), 4) AS share
FROM trace_facts GROUP BY stage, reason ORDER BY stage, traces DESC""",
    "Which sentences of wrong traces hold a word?": """WITH sentences AS (
    SELECT trace_id, clip_id, true_label, provisional,
           unnest(regexp_extract_all(regexp_replace(text, '<[^>]*>', ' ', 'g'), '\\S.*?[.!?](?:\\s|$)')) AS sentence
    FROM traces WHERE provisional <> true_label)
SELECT * FROM sentences WHERE sentence ILIKE '%door%'""",
    "Which words stand in wrong traces?": """WITH words AS (
    SELECT DISTINCT trace_id, provisional = true_label AS is_right,
           unnest(regexp_extract_all(lowered, '[a-z]{4,}')) AS word
    FROM trace_facts WHERE reason IS NULL AND true_label IS NOT NULL)
SELECT word, count(*) AS traces, round(avg((NOT is_right)::INT), 3) AS share_wrong
FROM words GROUP BY word HAVING count(*) >= 20 ORDER BY share_wrong DESC, traces DESC""",
    "Where is the calibrated label wrong and sure?": """SELECT trace_id, clip_id, true_label, provisional, calibrated,
       round(certainty, 3) AS certainty
FROM trace_facts WHERE calibrated <> true_label ORDER BY certainty DESC""",
    "Which clips does every trace get wrong?": """SELECT clip_id, true_label, count(*) AS traces,
       mode(provisional) AS mostly_said
FROM trace_facts WHERE true_label IS NOT NULL
GROUP BY ALL HAVING count(*) >= 3 AND count(*) FILTER (provisional = true_label) = 0
ORDER BY traces DESC""",
    "Are long traces right more often?": """SELECT stage, 50 * (tokens // 50) AS tokens_from, count(*) AS traces,
       round(avg((provisional = true_label)::INT), 3) AS share_right
FROM trace_facts WHERE tokens IS NOT NULL AND true_label IS NOT NULL
GROUP BY ALL ORDER BY stage, tokens_from""",
    "How did the reward of training go?": """SELECT run_id, step, value AS reward
FROM steps WHERE name = 'reward' ORDER BY run_id, step""",
    "Where do reviewers and the model disagree?": """SELECT trace_id, reviewer, reviews.label, provisional,
       calibrated, note
FROM reviews JOIN trace_facts USING (trace_id)
WHERE kind = 'judged' AND reviews.label <> coalesce(calibrated, provisional)""",
}
"""Question → query."""

TABLES = {
    "trace_facts": "a row a trace: what the Traces page filters by, calibrated label included",
    "traces": "a row a trace: text, tokens and the frames that were seen",
    "latest_predictions": "predictions, for each clip and way only those of the newest run",
    "predictions": "a row for each clip, system, method and control: the class distribution",
    "reviews": "what people said of traces",
    "clips": "the manifest, a row a clip, with the columns that its annotation brought",
    "runs": "a row a run of a stage, with its settings",
    "scores": "a row for each number about a trace: rewards and what they rest on",
    "steps": "a row for each number that a training logged",
    "accuracy_by_run": "share of right clips by run, system, method and control",
    "trace_reasons": "well-formed traces and reasons of malformed ones, by run and stage",
    "parts": "the files that the index was built from",
    "problems": "what could not be read when the index was built",
}
_MEANINGS = {
    "trace_id": "the trace; in a result it links there", "clip_id": "the clip; in a result it links there",
    "run_id": "the run; in a result it links there",
    "stage": "teach, coldstart, grpo, calibrate or evaluate", "dataset": "the manifest's name",
    "split": "coldstart, grpo, calibration, validation or test", "sample": "which of the clip's traces, from 0",
    "step": "optimizer step; none outside training", "true_label": "the label of the clip",
    "provisional": "the trace's own answer; none without one", "calibrated": "the label after calibration",
    "certainty": "probability of the calibrated label", "reason": "why malformed; missing when well-formed",
    "confidence": "exp of the mean log-probability of its tokens", "tokens": "how many were written",
    "milliseconds": "how long writing took", "created": "when the run began, UTC", "lowered": "the text in lower case",
    "temperature": "of sampling", "text": "what was written", "answer": "the answer as written",
    "detail": "the malformed place", "token_logprobs": "natural log-probability of each token",
    "quick_confidence": "of the quick answer", "thought": "whether it thought on after that",
    "token_ids": "of the tokenizer of the checkpoint", "frame_indices": "frames seen", "frame_times": "their seconds",
    "frame_hash": "of their pixels", "frames_size": "[width, height] seen", "reader": "what decoded the file",
    "truncated": "cut at the token limit", "prompt_hash": "of the prompt", "model": "checkpoint that wrote it",
    "part": "number of the Parquet part", "system": "what predicts, such as cold start + GRPO",
    "method": "raw, label_likelihood, vote, mean_likelihood or linear_head",
    "control": "none, trace_blanked, video_blanked or trace_swapped", "predicted": "the most probable label",
    "labels": "all labels", "probs": "their probabilities, in this order", "outside_mass": "probability of other words",
    "n": "how many", "no_answer": "without an answer", "accuracy": "share of right ones", "share": "of run and stage",
    "name": "what it is called", "value": "the number", "evidence": "what the number rests on", "time": "when, UTC",
    "task": "the review task", "reviewer": "who", "kind": "judged, skipped or adjudicated", "label": "the label",
    "verdict": "right, wrong reasons or wrong", "failing_sentence": "the first sentence that fails, from 0",
    "failing_in": "seeing or reasoning", "note": "free words", "source": "where it comes from",
    "event_id": "of the line in events.jsonl", "path": "of the file", "group": "source video or camera",
    "seconds": "length", "width": "pixels", "height": "pixels", "fps": "frames a second", "frames": "how many",
    "codec": "of the file", "audio": "whether it has sound", "bytes": "size", "excluded": "why it cannot be used",
    "excluded_detail": "more about that", "playable_path": "the copy that browsers play", "sha256": "of the content",
    "label_given": "as the annotation wrote it", "given_split": "as the annotation gave it",
    "also_at": "other names of the same content", "notes": "columns of the annotation that no model sees",
    "parent": "the run it builds on", "status": "running, finished or failed", "device": "what it ran on",
    "commit": "of the code", "error": "why it failed", "command": "how it was started", "config": "all settings",
    "versions": "of the libraries", "summary": "its results", "seed": "of chance", "dirty": "code was changed",
    "finished": "when it ended, UTC", "grain": "which table", "row_count": "rows in it", "problem": "what is wrong",
}  # fmt: skip
_ELSEWHERE = {
    ("trace_reasons", "reason"): "well-formed, or why malformed", ("reviews", "label"): "the label a person gives",
    ("reviews", "reason"): "why skipped", ("predictions", "temperature"): "that the logits were divided by",
    ("latest_predictions", "temperature"): "that the logits were divided by", ("clips", "label"): "the true one",
    ("clips", "text"): "the uploader's own words, as (name, value)", ("runs", "dataset"): "that it was about",
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """`rows` hold a cell a column, None where nothing is; `numbers` tells for each column whether it holds numbers;
    `cut`: there were more rows; `seconds` that it took."""

    names: Sequence[str]
    numbers: Sequence[bool]
    rows: Sequence[Sequence[Any]]
    cut: bool
    seconds: float


def ask(workbench: Workbench, sql: str, rows: int = SHOWN, seconds: float = SECONDS) -> Answer:
    """The first rows of a person's query; StoreError for all that it may not do, with the reason."""
    begun = time.monotonic()
    found = workbench.ask(sql, rows, seconds)
    kinds = [found.schema.field(i).type for i in range(found.num_columns)]
    numbers = [pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) for kind in kinds]
    cells = [_cells(column) for column in found.slice(0, rows).columns]
    return Answer(found.column_names, numbers, list(zip(*cells)), found.num_rows > rows, time.monotonic() - begun)


def warm(workbench: Workbench) -> None:
    """Have the process for queries up before the first one comes."""
    workbench.ask("SELECT 1", 1, SECONDS)


def _cells(column: pa.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        return [f"({column.type} that Python cannot hold)" if cell.is_valid else None for cell in column]


def export(workbench: Workbench, sql: str, form: str) -> bytes:
    """At most `EXPORTED` rows of a person's query as a file in one of `browse.FORMATS`."""
    if form not in browse.FORMATS:
        raise StoreError(f"an export as {form!r}", f"there are {', '.join(browse.FORMATS)}",
                         f"nearest: {nearest(form, browse.FORMATS) or 'csv'!r}")  # fmt: skip
    found = workbench.ask(sql, EXPORTED, SECONDS).slice(0, EXPORTED)
    try:
        return b"".join(browse.written(iter([found]), form))
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise StoreError(f"the result cannot be written as {form}", str(error),
                         "cast the column, such as `created::VARCHAR`") from error  # fmt: skip


def schema(workbench: Workbench) -> dict[str, list[tuple[str, str, str]]]:
    """Table → (column, type, meaning; "" for a column of the manifest's own)."""
    found = workbench.query("SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal "
                            "ORDER BY column_index")  # fmt: skip
    shown: dict[str, list[tuple[str, str, str]]] = {name: [] for name in TABLES}
    for table, column, kind in found.itertuples(index=False):
        if table in shown:
            meaning = _ELSEWHERE.get((table, column), _MEANINGS.get(column, ""))
            shown[table].append((column, "STRUCT[]" if kind.startswith("STRUCT") else kind, meaning))
    return shown


def to_python(workbench: Workbench, sql: str) -> str:
    """Lines that give the same rows, all of them, in a notebook."""
    text = repr(sql) if "\\" in sql or '"""' in sql or sql.endswith('"') else f'"""{sql}"""'
    return (
        f"from deepintuit.store import Workbench\n\nworkbench = Workbench({str(workbench.path)!r})\n"
        f"workbench.refresh()\nrows = workbench.query({text})\n"
    )
