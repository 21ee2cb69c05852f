"""Reviews in and out: JSONL, CSV, Parquet, tasks of Label Studio, and spans as tracks of CVAT.

    content = dump(rows(reviews, "week 1"), "csv")
    bring_in(reviews, "week 1", load(content, "csv"), source="week-1.csv")

A row is a judgement, skip or adjudication in force, in the columns of `index.reviewed.SHOWN`. What comes in becomes new
events that name their source and always count; an answer that is in force here stays.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepintuit.data.delimited import csv_rows
from deepintuit.errors import DataError, nearest
from deepintuit.runs.schema import storable
from deepintuit.tables import as_written, spreadsheet_safe
from deepintuit.texts import decoded, parse_json
from deepintuit_analysis.index.reviewed import SCHEMA, SHOWN, row_of
from deepintuit_analysis.index.reviewed import rows as rows_of
from deepintuit_analysis.review import spans
from deepintuit_analysis.review.events import Event, Kind, State
from deepintuit_analysis.review.reviews import Reviews, person
from deepintuit_analysis.review.tasks import LONGEST_NOTE, PROCESSES, VERDICTS, ReviewTask

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

FORMS = {"jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet", "label-studio": ".json", "cvat": ".zip"}
"""Each form, and how its files end."""
LOCAL_FILES = "/".join(("", "data", "local-files", "?d="))  # in parts: it looks like a path of a machine
"""Where Label Studio serves files that lie on its own disk, given their path below its document root."""
MOST_ROWS, MOST_BYTES = 1_000_000, 256 << 20
"""Of a Parquet file that is read, as it would be without compression."""
_KINDS = ("judged", "skipped", "adjudicated")
_STARRED = "starred"  # what Label Studio calls ground truth: an adjudication when by a lead, else a judgement
_MARKED = "marked"  # spans of CVAT, which says nothing of what else is asked


def rows(reviews: Reviews, name: str) -> list[dict[str, Any]]:
    """What is in force in a task, gold items included, in order of time. For leads: it shows everybody's."""
    reviews.task(name)
    return reviews.log.look(lambda state: rows_of(state, name))


def dump(rows: Sequence[Mapping[str, Any]], form: str) -> bytes:
    """Rows as a file. In CSV, a text that a spreadsheet might take for a formula (it begins with = + - @, a tab or a
    line's end, or their wide forms) gets a ' in front, and so does one that begins with '; `load` takes it away."""
    if form == "parquet":
        file, table = io.BytesIO(), pa.Table.from_pylist(list(rows), schema=SHOWN)
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        return file.getvalue()
    records = [{**row, "time": row["time"].replace(tzinfo=UTC).isoformat()} for row in rows]
    if _known(form) == "jsonl":
        records = [{**row, "spans": row["spans"] and json.loads(row["spans"])} for row in records]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records).encode()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, SHOWN.names)
    writer.writeheader()
    writer.writerows({name: spreadsheet_safe(value) for name, value in row.items()} for row in records)
    return text.getvalue().encode()


def load(content: bytes, form: str, places: Mapping[str, tuple[str, float]] | None = None) -> list[dict[str, Any]]:
    """Rows of a file, Label Studio's too; columns that it has not are None. DataError with the row's number for what
    cannot be read. CVAT's need `places`, as of the function."""
    try:
        if form == "parquet":
            records = _parquet(content)
        elif form == "label-studio":
            records = list(_annotations(parse_json(decoded(content))))
        elif form == "cvat":
            marks = spans.from_cvat(content, places or {})
            records = [
                {"trace_id": item, "reviewer": reviewer, "kind": _MARKED, "spans": span_list}
                for (item, reviewer), span_list in marks.items()
            ]
        elif _known(form) == "jsonl":
            records = (parse_json(line, unique=True) for line in decoded(content).split("\n") if line.strip())
        else:
            records = [{name: as_written(value) for name, value in line.items()} for line in _lines(content)]
        return [_row(number, row) for number, row in enumerate(records, 1)]
    except (ValueError, KeyError, OSError, OverflowError, pa.ArrowException) as error:
        raise DataError(
            f"the file is not read as {form} ({str(error):.200})",
            "reviews come in row by row",
            f"name its form: {', '.join(FORMS)}",
        ) from error


def _parquet(content: bytes) -> list[dict[str, Any]]:
    """Rows of a Parquet file. A few bytes of it can stand for millions of rows, or for one text in each of them, so
    what it would become is counted first."""
    schema = pq.read_schema(pa.BufferReader(content))
    names = [name for name in SCHEMA.names if name in schema.names]
    if any(pa.types.is_nested(schema.field(name).type) for name in names):
        raise ValueError("a column of it holds lists or tables")
    source = pa.BufferReader(content)
    with pq.ParquetFile(source, read_dictionary=names, page_checksum_verification=True) as file:
        about = file.metadata
        size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
        if about.num_rows > MOST_ROWS or size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_ROWS:,} rows or {MOST_BYTES >> 20} MiB")
        table = file.read(names)
    texts = [chunk for column in table.columns for chunk in column.chunks if pa.types.is_dictionary(chunk.type)]
    lengths = (pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() for chunk in texts)
    if sum(filter(None, lengths)) > MOST_BYTES:
        raise ValueError(f"its texts have more than {MOST_BYTES >> 20} MiB")
    return table.to_pylist()


def _lines(content: bytes) -> list[dict[str, str]]:
    try:
        return [line for _, line in csv_rows(decoded(content, nul=True), "it")]
    except DataError as error:
        raise ValueError(error.what) from error


def _known(form: str) -> str:
    if form not in FORMS:
        raise DataError(
            f"reviews as {form!r}", f"there are {', '.join(FORMS)}", f"nearest: {nearest(form, FORMS) or 'jsonl'!r}"
        )
    return form


def _row(number: int, values: Any) -> dict[str, Any]:
    """A row as `rows` gives it: empty texts are None, the time is UTC."""
    try:
        row = {name: values.get(name) for name in SCHEMA.names}
        row = {name: None if value == "" else value for name, value in row.items()}
        sentence = row["failing_sentence"]
        row["failing_sentence"] = None if sentence is None else _place(sentence)
        row["time"] = _instant(row["time"] or datetime.now(UTC))
        marks = row["spans"]
        row["spans"] = marks and spans.dumps(spans.checked(parse_json(marks) if isinstance(marks, str) else marks))
        for name, value in row.items():
            if not isinstance(value, str | int | float | datetime | None) or value != storable(value):
                raise ValueError(f"its {name} is no text that can be kept")
        valid = isinstance(row["trace_id"], str) and isinstance(row["reviewer"], str)
        if row["kind"] not in (*_KINDS, _STARRED, _MARKED) or not valid:
            raise ValueError(f"it must name a trace_id, a reviewer and a kind: {', '.join(_KINDS)}")
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"row {number} is not a review ({str(error):.200})",
            f"its columns are {', '.join(SCHEMA.names)}",
            "mend it; nothing was taken in",
        ) from error
    return row


def _place(sentence: Any) -> int:
    """The number of a sentence, from 0; ValueError for what counts none."""
    number = int(sentence)
    if isinstance(sentence, bool) or number != float(sentence) or not 0 <= number < 10**6:
        raise ValueError(f"{sentence!r:.40} is not the number of a sentence")
    return number


def _instant(time: Any) -> datetime:
    """In UTC, without saying so. ValueError for one that nobody can have said: stores and their readers disagree about
    the edges of the calendar."""
    time = time if isinstance(time, datetime) else datetime.fromisoformat(time)
    time = time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
    if not 1970 <= time.year <= 2200:
        raise ValueError(f"{time.isoformat()} is not when a review was made")
    return time


@dataclass(frozen=True)
class Imported:
    """How many rows are `new`, how many are `repeats` (the same answer is in force), and which were left out because
    another answer of that reviewer stands (`clashes`: their trace and reviewer)."""

    new: int
    repeats: int
    clashes: list[tuple[str, str]]

    def __str__(self) -> str:
        return (
            f"{self.new} answers taken in; {self.repeats} are here already; {len(self.clashes)} left out, since "
            "another answer of that reviewer stands here."
        )


def bring_in(
    reviews: Reviews, name: str, rows: Sequence[Mapping[str, Any]], source: str, *, dry: bool = False
) -> Imported:
    """Rows as new events of a task; each says `source`, and when it was said first. All or none: DataError with the
    row's number for another task or trace, answers that the task does not ask for, or an adjudication by no lead. Of
    two answers of one reviewer the newer comes in. Coming again changes nothing. `dry`: only count."""
    task = reviews.task(name)
    events = [_event(number, row, task, source) for number, row in enumerate(rows, 1)]
    marked = {event.id for event, row in zip(events, rows) if row["kind"] == _MARKED}
    events.sort(key=_said_at, reverse=True)
    repeats, clashes, additions = 0, [], {}
    for event in events:
        place = (event.item, event.kind is Kind.ADJUDICATED or event.reviewer)
        here = additions.get(place) or reviews.log.look(lambda state, event=event: _standing(state, event))
        if here is None:
            additions[place] = event
        elif _alike(row_of(here), row_of(event), event.id in marked):
            repeats += 1
        else:
            clashes.append((str(event.item), event.reviewer))
    names = [question for question in task.questions if question in ("label", "verdict")]
    if names and marked & {event.id for event in additions.values()}:
        raise DataError(
            f"spans of CVAT for the task {name!r}",
            f"it asks for the {' and the '.join(names)} too, of which CVAT's files say nothing",
            "Bring them into a task that asks for spans alone",
        )
    for event in () if dry else sorted(additions.values(), key=_said_at):
        reviews.log.append(lambda state, event=event: None if _standing(state, event) else event)
    return Imported(len(additions), repeats, clashes)


_BESIDE = {"time": None, "event_id": None, "source": None}


def _alike(here: Mapping[str, Any], row: Mapping[str, Any], marked: bool) -> bool:
    """Whether two rows say the same; of `marked` ones the spans."""
    return here["spans"] == row["spans"] if marked else {**here, **_BESIDE} == {**row, **_BESIDE}


def _said_at(event: Event) -> str:
    return event.payload["said_at"]  # all of them in UTC, and so in one order


def _standing(state: State, event: Event) -> Event | None:
    if event.kind is Kind.ADJUDICATED:
        return state.final(event.task, event.item or "")
    return state.answers.get(event.task, {}).get(event.item or "", {}).get(event.reviewer)


def _event(number: int, row: Mapping[str, Any], task: ReviewTask, source: str) -> Event:
    item = row["trace_id"]
    try:
        reviewer = person(row["reviewer"])
        starred = Kind.ADJUDICATED if reviewer in task.leads else Kind.JUDGED
        kind = starred if row["kind"] == _STARRED else Kind.JUDGED if row["kind"] == _MARKED else Kind(row["kind"])
        if row["task"] not in (None, task.name) or item not in task.items:
            raise DataError(
                f"the trace {item!r} of the task {row['task']!r}",
                f"this is {task.name!r}, with {len(task.items)} traces of its own",
                "name the task that it belongs to",
            )
        if kind is Kind.SKIPPED:
            payload = {"reason": str(row["reason"] or "no reason given")[:LONGEST_NOTE]}
        else:
            payload = {key: row[key] for key in ("label", "verdict") if key in task.questions or row[key]}
            failing = {"sentence": row["failing_sentence"], "in": row["failing_in"]}
            payload |= {"failing": failing} if failing != {"sentence": None, "in": None} else {}
            payload |= {"note": row["note"]} if row["note"] else {}
            payload |= {"spans": json.loads(row["spans"])} if row["spans"] else {}
            payload = task.checked(payload, whole=True)
        if kind is Kind.ADJUDICATED and reviewer not in task.leads:
            raise DataError(f"{reviewer!r} adjudicates", f"leads of this task do: {', '.join(task.leads)}", "ask one")
    except DataError as error:
        raise DataError(f"row {number}: {error.what}", error.why, f"{error.todo}; nothing was taken in") from error
    payload |= {"source": source, "said_at": row["time"].replace(tzinfo=UTC).isoformat()}
    content = json.dumps([task.name, item, reviewer, kind, payload], sort_keys=True)
    number_of = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Event(kind, task.name, reviewer, item, task.items[item], payload, id=f"import {number_of}")


# Label Studio

_CHOSEN, _TYPED = ("label", "verdict", "failing_in"), ("note", "reason", "reviewer")


def label_studio(workbench: "Workbench", reviews: Reviews, name: str, *, videos: str = LOCAL_FILES) -> bytes:
    """All traces of a task as Label Studio's tasks: video and text, the model's label as a prediction, what is in force
    as annotations (skips are cancelled ones, adjudications ground truth; the reviewer is a text, since its own accounts
    are numbers). A blind task has no predictions, and its texts cover answers and labels. `videos` goes before the
    file's path, which is relative to the workbench where it lies inside."""
    task = reviews.task(name)
    facts = workbench.query(
        """SELECT facts.trace_id, facts.provisional, calibrated, certainty, facts.run_id, text
           FROM trace_facts AS facts JOIN traces USING (run_id, trace_id)
           WHERE trace_id IN (SELECT unnest(?::VARCHAR[]))
           QUALIFY row_number() OVER (PARTITION BY facts.trace_id ORDER BY created DESC) = 1""",
        [list(task.items)],
    ).set_index("trace_id")
    files = _files(workbench, task)
    answers: dict[str, list[dict[str, Any]]] = {}
    for row in rows(reviews, name):
        answers.setdefault(row["trace_id"], []).append(row)
    entries = []
    for item, clip in task.items.items():
        fact = facts.loc[item].where(facts.loc[item].notna(), None) if item in facts.index else {}
        text, file = fact.get("text") or "", files.get(clip, {})
        data = {
            "video": videos + quote(file["path"]) if file.get("path") else "",
            "fps": file.get("fps"),
            "task": name,
            "trace_id": item,
            "text": task.covered(text) if task.blind else text,
            "clip_id": clip,
        }
        label = fact.get("calibrated") or fact.get("provisional")
        # Label Studio refuses a prediction whose control its interface has not.
        guess = (
            []
            if task.blind or "label" not in task.questions or label not in task.labels
            else [
                {
                    "model_version": fact["run_id"],
                    "result": [_choice("label", label)],
                    **({} if fact.get("certainty") is None else {"score": fact["certainty"]}),
                }
            ]
        )
        annotations = [_annotation(row, file.get("fps")) for row in answers.get(item, [])]
        entries.append({"data": data, "predictions": guess, "annotations": annotations})
    return json.dumps(entries, ensure_ascii=False, indent=1).encode()


def _choice(name: str, value: str) -> dict[str, Any]:
    return _result(name, "choices", [value])


def _result(name: str, kind: str, value: Any) -> dict[str, Any]:
    key = "text" if kind == "textarea" else kind
    return {"id": name, "from_name": name, "to_name": "video", "type": kind, "value": {key: value}}


def _files(workbench: "Workbench", task: ReviewTask) -> dict[str, dict[str, Any]]:
    """Of the task's clips: path, fps, width, height, frames; None where it is not known."""
    rows = workbench.query(
        """SELECT clip_id, any_value(coalesce(playable_path, path)) AS path, any_value(fps) AS fps,
                  any_value(width) AS width, any_value(height) AS height, any_value(frames) AS frames
           FROM clips WHERE clip_id IN (SELECT unnest(?::VARCHAR[])) GROUP BY clip_id""",
        [list(task.items.values())],
    )
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return {row.pop("clip_id"): row for row in records}


def _rate(row: Mapping[str, Any], fps: float | None) -> float:
    if not fps:
        raise DataError(
            f"the clip {row['clip_id']!r} has spans and no known frame rate",
            "these programs count frames",
            "export as JSONL, CSV or Parquet, which hold seconds",
        )
    return fps


def places(workbench: "Workbench", reviews: Reviews, name: str) -> dict[str, tuple[str, float]]:
    """What a file of CVAT may call a trace of the task (its id; the name of its clip's file, with or without ending,
    where no other trace has it) → its id and frames a second."""
    task = reviews.task(name)
    files, items_of = _files(workbench, task), {}
    for item, clip in task.items.items():
        path = Path(files.get(clip, {}).get("path") or "")
        for word in {path.name, path.stem} - {""}:
            items_of.setdefault(word, set()).add(item)
    unique = {word: next(iter(items)) for word, items in items_of.items() if len(items) == 1}
    rates = {item: files.get(clip, {}).get("fps") for item, clip in task.items.items()}
    return {
        word: (item, rates[item]) for word, item in {**unique, **{item: item for item in rates}}.items() if rates[item]
    }


def cvat(workbench: "Workbench", reviews: Reviews, name: str) -> bytes:
    """The spans that reviewers marked in a task as tracks of CVAT, a file for each trace; not what leads decided, who
    may have judged themselves."""
    task, marks = reviews.task(name), {}
    files = _files(workbench, task)
    for row in rows(reviews, name):
        if row["spans"] and row["kind"] == "judged":
            _rate(row, files.get(row["clip_id"], {}).get("fps"))
            marks.setdefault(row["trace_id"], {})[row["reviewer"]] = json.loads(row["spans"])
    items = []
    for item, clip in task.items.items():
        file = files.get(clip, {})
        names, size = [item, Path(file.get("path") or "").name], (file.get("width") or 1, file.get("height") or 1)
        items.append(spans.Marked(names, file.get("fps") or 1, size, int(file.get("frames") or 0), marks.get(item, {})))
    return spans.to_cvat(items, task.labels)


def _annotation(row: Mapping[str, Any], fps: float | None) -> dict[str, Any]:
    result = [_choice(name, row[name]) for name in _CHOSEN if row[name]]
    if row["failing_sentence"] is not None:
        result.append(_result("failing_sentence", "number", row["failing_sentence"] + 1))
    result += [_result(name, "textarea", [row[name]]) for name in _TYPED if row[name]]
    for number, span in enumerate(json.loads(row["spans"] or "[]")):
        first, last = spans.frames(span, _rate(row, fps))
        value = {"ranges": [{"start": first + 1, "end": last + 1}], "timelinelabels": [span["label"]]}
        region = {"id": f"span-{number}", "from_name": "spans", "to_name": "video", "type": "timelinelabels"}
        result.append({**region, "value": value})
    return {
        "result": result,
        "was_cancelled": row["kind"] == "skipped",
        "ground_truth": row["kind"] == "adjudicated",
        "created_at": row["time"].replace(tzinfo=UTC).isoformat(),
    }


def _annotations(tasks: Any) -> Iterable[dict[str, Any]]:
    """Rows of an export in Label Studio's JSON: one task or a list. Drafts, predictions and relations between regions
    are passed over, and so are controls that are not ours."""
    try:
        for task in [tasks] if isinstance(tasks, dict) else tasks:
            if "data" not in task and "annotation_id" in task:
                raise ValueError("it is JSON-MIN, which leaves out who skipped: export as JSON")
            data = task["data"]
            for entry in task.get("annotations") or task.get("completions") or []:  # as they were called before 1.0
                values = {part["from_name"]: part["value"] for part in entry.get("result") or [] if "from_name" in part}
                row = {name: _single(name, values[name]["choices"]) for name in _CHOSEN if name in values}
                for name in (name for name in _TYPED if name in values):
                    text = values[name]["text"]
                    row[name] = text if isinstance(text, str) else "\n".join(text)
                if "failing_sentence" in values:
                    row["failing_sentence"] = int(values["failing_sentence"]["number"]) - 1
                marks = [
                    spans.of_frames(part["start"] - 1, part["end"] - 1, label, _fps_of(data))
                    for region in entry.get("result") or []
                    if "timelinelabels" in region.get("value", {})
                    for part in region["value"]["ranges"]
                    for label in region["value"]["timelinelabels"]
                ]
                row |= {"spans": marks} if marks else {}
                skipped = entry.get("was_cancelled") or entry.get("skipped")
                by = entry.get("completed_by")
                account = (by.get("email") or by.get("id")) if isinstance(by, dict) else by
                reviewer = account if isinstance(account, str) else f"Label Studio account {account}"
                yield {
                    "task": data.get("task"),
                    "trace_id": data["trace_id"],
                    "reviewer": reviewer,
                    "kind": "skipped" if skipped else _STARRED if entry.get("ground_truth") else "judged",
                    "time": entry.get("created_at"),
                    **row,
                }
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"a task or annotation has no {error}") from error


def _fps_of(data: Mapping[str, Any]) -> float:
    fps = data.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e4:
        raise ValueError(f"{fps!r:.40} is no frame rate: a task with spans names its clip's in `fps`")
    return fps


def _single(name: str, choices: Sequence[str]) -> str | None:
    if len(choices) > 1:
        raise ValueError(f"{len(choices)} choices came as the {name}, of which one holds")
    return choices[0] if choices else None


def label_config(task: ReviewTask) -> str:
    """The labelling interface that Label Studio needs for these tasks, as its XML."""

    def choices(name: str, words: Sequence[str]) -> str:
        options = "".join(f"<Choice value={quoteattr(word)}/>" for word in words)
        return (
            f'  <Header value="{name.replace("_", " ").capitalize()}"/>\n'
            f'  <Choices name="{name}" toName="video" choice="single">{options}</Choices>\n'
        )

    def text(name: str) -> str:
        return f'  <TextArea name="{name}" toName="video" maxSubmissions="1" placeholder="{name}"/>\n'

    number = (
        '  <Header value="Failing sentence (the first is 1)"/>\n'
        '  <Number name="failing_sentence" toName="video" min="1"/>\n'
    )
    labels = "".join(f"<Label value={quoteattr(label)}/>" for label in task.labels)
    parts = {
        "spans": f'  <TimelineLabels name="spans" toName="video">{labels}</TimelineLabels>\n',
        "label": choices("label", task.labels),
        "verdict": choices("verdict", VERDICTS),
        "failing": number + choices("failing_in", PROCESSES),
        "note": text("note"),
    }
    body = "".join(part for question, part in parts.items() if question in task.questions)
    return (
        f'<View>\n  <Video name="video" value="$video" frameRate="$fps"/>\n  <Text name="text" value="$text"/>\n{body}'
        f"{text('reason')}{text('reviewer')}</View>\n"
    )


def form_of(path: str | Path) -> str:
    """The form that a file's name tells; DataError for another ending."""
    forms = [form for form, ending in [*FORMS.items(), ("cvat", ".xml")] if Path(path).suffix.lower() == ending]
    if not forms:
        raise DataError(
            f"{str(path)!r} names no form",
            f"files end with {', '.join(FORMS.values())}",
            "rename it, or name one with --form",
        )
    return forms[0]
