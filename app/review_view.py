"""How reviews look: the list of tasks, the form that opens one, the desk where items are judged, and a lead's view.

Pure functions of tasks and events: HTML out, every foreign text escaped. `static/review.js` moves it.

A blind task hides what the model answered: the answer's segment, and every place where the trace names one of the
labels. The true label and the clip's file name, which may tell it, are shown to nobody who judges.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from deepintuit.metrics import Agreement, agreement, rating_matrix
from deepintuit_analysis.review import ORDERS, Task, exchange
from deepintuit_analysis.review.insight import PROCESSES, Blame, GoldRecord
from deepintuit_app import prose
from deepintuit_app.html import address, badge, empty, esc, link, percent, table, tag
from deepintuit_app.slices import NONE_SAVED

ORDER_WORDS = {
    "entropy": "uncertain first (entropy)", "margin": "uncertain first (margin)",
    "changed": "changed by calibration first", "traces": "clips whose traces disagree first",
    "reviewers": "where reviewers differ so far", "doubted": "labels that are probably wrong first",
    "random": "by chance", "given": "as listed",
}  # fmt: skip
VERDICT_KEYS = (
    ("a", "right", "Accept", "The reasoning is right"),
    ("w", "wrong reasons", "Wrong reasons", "The right label for wrong reasons"),
    ("r", "wrong", "Reject", "The reasoning is wrong"),
    ("u", None, "Unsure", "Cannot tell"),
)
FAILING_KEYS = (
    ("s", "seeing", "Seeing", "It says what is not in the clip, or misses what is"),
    ("d", "reasoning", "Reasoning", "What it saw is right, what it concludes is not"),
)
KEYS = (
    ("1 … 9, 0", "the label; 0: unsure"), ("A  W  R  U", "accept · right label, wrong reasons · reject · unsure"),
    ("↑ ↓", "pick a sentence, and show its moment"),
    ("S  D", "this sentence fails in seeing · in reasoning; again: it does not"),
    ("N", "write a note; Esc leaves it"), ("Enter", "submit, and on to the next"), ("→ ←", "next · previous item"),
    ("K", "skip, with a reason"), ("Z", "undo the last answer"), ("Space", "play, pause"),
    (",  .", "a frame back · on"), ("<  >", "slower · faster"), ("?", "this sheet"),
)  # fmt: skip
CORRECTED = tag("code", esc("<think> what is seen, what follows </think><answer> label </answer>"))
GOLD_LINE = "3f0c9a…, theft, wrong, 2, seeing"
STANDING = {
    "extra": "Saved. The item before this one had all the answers it needs by then: yours is kept as an extra, which "
    "leads see and agreement leaves out.",
    "decided": "Saved. A lead had decided the item before this one by then: yours is kept, and does not change that.",
}
"""What is said when an answer comes too late to settle its item, by `Reviews.standing`."""
SKIP_REASONS = ("The clip does not play", "The clip is of something else", "I know the people in it", "I cannot tell")


def _key(name: str) -> str:
    return tag("kbd", esc(name))


# The list, and opening a task


def tasks_html(tasks: Sequence[tuple[Task, Mapping[str, Any]]], closed: set[str], who: str, damage: str = "") -> str:
    """Tasks with how far they are, the newest first, behind what is said of `damage`."""
    alert = tag("p", esc(damage), role="alert") if damage else ""
    if not tasks:
        todo = "A task is a slice of traces with questions. Open the first one below."
        return alert + empty("No review task is open yet.", todo)
    cards = []
    for task, progress in tasks:
        done, asked = progress["done"], progress["asked"]
        mine = progress["by"].get(who, 0)
        judge = tag("a", "Review", href=address("review", task=task.name), class_="go", data_go=True)
        links = "" if task.name in closed else judge
        if who in task.leads:
            links += tag("a", "Lead’s view", href=address("review", task=task.name, view="lead"), data_go=True)
        facts = [
            f"{progress['items']:,} items",
            f"{task.reviewers} reviewer{'s' * (task.reviewers > 1)} each",
            _order(task.order),
            "blind" if task.blind else "",
        ]
        people = " · ".join(f"{esc(name)} {n:,}" for name, n in sorted(progress["by"].items(), key=lambda it: -it[1]))
        bar = tag("progress", "", max=str(max(1, asked)), value=str(done), aria_label="Judgements")
        head = tag("h3", esc(task.name) + (" " + badge("closed") if task.name in closed else ""))
        said = f"{done:,} of {asked:,} judgements · {progress['complete']:,} items complete · {mine:,} by you"
        cards.append(
            tag(
                "article",
                tag("header", head + tag("span", links, class_="links"))
                + tag("p", esc(" · ".join(filter(None, facts))), class_="quiet")
                + bar
                + tag("p", said)
                + (tag("p", people, class_="quiet") if people else ""),
            )
        )
    return alert + tag("div", "".join(cards), class_="tasks")


def _order(order: str | Mapping[str, float]) -> str:
    if isinstance(order, str):
        return ORDER_WORDS.get(order, order)
    return "mixed: " + ", ".join(f"{ORDER_WORDS.get(name, name)} {share:g}" for name, share in order.items())


def form_html(
    slices: Sequence[str],
    runs: Sequence[tuple[str, int]],
    datasets: Sequence[str],
    who: str,
    opened: bool,
    query: str = "",
    chosen: str = "",
) -> str:
    """The form that opens a task, with the address of traces and the slice that a link brought."""

    def field(words: str, inside: str, note: str = "", **more: Any) -> str:
        return tag("label", tag("span", words) + inside + (tag("small", esc(note)) if note else ""), **more)

    def number(name: str, value: float, low: float, high: float, step: str = "1") -> str:
        return tag("input", type="number", name_=name, value=f"{value:g}", min=f"{low:g}", max=f"{high:g}", step=step)

    def options(pairs: Sequence[tuple[str, str]], now: str = "") -> str:
        return "".join(tag("option", esc(words), value=value, selected=value == now != "") for value, words in pairs)

    def tick(name: str, value: str, words: str, on: bool) -> str:
        box = tag("input", type="checkbox", name_=name, value=value, checked=on)
        return tag("label", box + " " + words, class_="tick")

    names = dict.fromkeys([*slices, *filter(None, [chosen])])
    saved = [("", "Any" if names else NONE_SAVED), *((name, name) for name in names)]
    ran = [("", "Any"), *((run, f"{run} ({n:,} traces)") for run, n in runs)]
    shares = "".join(
        field(ORDER_WORDS[name], number(f"share-{name}", 0, 0, 100, "0.5")) for name in ORDERS if name != "reviewers"
    )
    orders = [*((name, ORDER_WORDS[name]) for name in ORDERS), ("mixture", "a mixture of these")]
    sources = [
        ("", "what a filter finds"),
        ("suspects", "whose labels are probably wrong"),
        ("teach", "that would teach most, the clip once labelled"),
    ]
    which = tag(
        "fieldset",
        tag("legend", "Which traces")
        + field("Traces", tag("select", options(sources), name_="source"), class_="wide")
        + field("Slice", tag("select", options(saved, chosen), name_="slice"))
        + tag(
            "div",
            field("Dataset", tag("select", options([(name, name) for name in datasets]), name_="dataset"))
            + field("At most", number("most", 50, 1, 5000))
            + field(
                "Split, for suspected labels",
                tag("input", type="text", name_="split"),
                "Empty: the one predicted last that the model was not trained on",
            ),
            class_="part wide",
            data_source="list",
            hidden=True,
        )
        + tag(
            "div",
            field("Run", tag("select", options(ran), name_="run"))
            + field(
                "Filter",
                tag("input", type="text", name_="query", value=query, placeholder="flip=broken&split=test"),
                "The address of the Traces page with your filters, or what stands behind its “?”",
                class_="wide",
            ),
            class_="part wide",
            data_source="filter",
        )
        + tag("p", "", class_="quiet", id="review-count", role="status"),
    )
    asks = tag(
        "fieldset",
        tag("legend", "What is asked")
        + tag(
            "div",
            (
                tick("questions", "label", "label of the clip", True)
                + tick("questions", "verdict", "verdict on the trace", True)
                + tick("questions", "failing", "which sentence fails", True)
                + tick("questions", "note", "note", True)
                + tick("blind", "1", "blind: the model’s label is hidden", False)
            ),
            class_="ticks wide",
        )
        + field(
            "Labels",
            tag("input", type="text", name_="labels", placeholder="those of the dataset"),
            "With commas between them; the keys 1 … 9 give them in this order",
            class_="wide",
        ),
    )
    hands = tag(
        "fieldset",
        tag("legend", "Who and in which order")
        + field("Reviewers an item", number("reviewers", 1, 1, 50))
        + field("Order", tag("select", options(orders), name_="order"))
        + tag("div", shares, class_="shares part wide", hidden=True)
        + field("Other leads", tag("input", type="text", name_="leads", placeholder="names, with commas")),
    )
    listed = tag("textarea", "", name_="gold_list", rows="3", placeholder=GOLD_LINE, spellcheck="false")
    note = (
        "One line each: trace (its id or address), then what is known of it, each empty if not: label (else the "
        "clip’s true one), verdict, number of the sentence that fails, seeing or reasoning"
    )
    gold = tag(
        "fieldset",
        tag("legend", "Hidden gold items")
        + field("Drawn by chance", number("gold", 0, 0, 200), "Their clips’ true labels count as known")
        + field("Share of what one gets, %", number("gold_share", 10, 0, 90))
        + field("With known answers", listed, note, class_="wide"),
    )
    name = field("Name", tag("input", type="text", name_="name", required=True, maxlength="200", autocomplete="off"))
    send = tag("p", tag("button", "Open the task", class_="go") + tag("span", "", role="alert", id="review-refused"))
    lead = f"You ({esc(who)}) lead it: you see everybody’s answers and decide where they differ."
    lead = tag("p", lead, class_="quiet")
    body = tag("form", tag("div", name, class_="first") + which + asks + hands + gold + lead + send, id="review-open")
    return tag("details", tag("summary", "Open a task") + body, open=opened)


# The desk


def desk_html(task: Task, decide: bool = False) -> str:
    """The desk without an item: player, trace and questions, to be filled by the script again and again."""
    labels = "".join(
        tag(
            "button",
            (_key(str(n)) if n <= 9 else "") + tag("span", esc(label)),
            type="button",
            data_label=label,
            aria_pressed="false",
        )
        for n, label in enumerate(task.labels, 1)
    ) + tag(
        "button",
        _key("0") + tag("span", "unsure"),
        type="button",
        data_label="",
        data_unsure=True,
        aria_pressed="false",
    )
    verdicts = "".join(
        tag("button", _key(key.upper()) + tag("span", words), type="button", data_verdict=value or "", title=title,
            data_unsure=value is None, aria_pressed="false")
        for key, value, words, title in VERDICT_KEYS
    )  # fmt: skip
    failing = tag("span", "none", id="review-failing") + "".join(
        tag("button", _key(key.upper()) + tag("span", words), type="button", data_failing=value, title=title,
            aria_pressed="false")
        for key, value, words, title in FAILING_KEYS
    )  # fmt: skip
    note = "What others should know (N). To correct the trace, write the whole trace here."
    note = tag("textarea", "", id="review-note", rows="2", maxlength="10000", aria_label="Note", placeholder=note)
    asked = {
        "label": ("Label of the clip", labels),
        "verdict": ("The trace", verdicts),
        "failing": ("Sentence that fails", failing),
        "note": ("Note", note),
    }
    questions = "".join(
        tag("div", tag("h4", words) + tag("div", inside, class_=f"answers {name}"), role="group", aria_label=words)
        for name, (words, inside) in asked.items() if name in task.questions
    )  # fmt: skip
    words = {
        "skip": ("K", "Skip"),
        "undo": ("Z", "Undo"),
        "sheet": ("?", "Keys"),
        "submit": ("Enter", "Decide" if decide else "Submit"),
    }
    moves = "".join(
        tag("button", _key(arrow), type="button", data_do=name, title=f"{name.title()} item", aria_label=f"{name} item")
        for name, arrow in (("previous", "←"), ("next", "→"))
    ) + "".join(
        tag("button", _key(key) + tag("span", does), type="button", data_do=name,
            class_="go" if name == "submit" else None)
        for name, (key, does) in words.items()
    )  # fmt: skip
    head = tag(
        "header",
        tag("h2", esc(task.name) + (" " + badge("deciding", "warn") if decide else ""))
        + tag("span", "", id="review-progress", class_="quiet")
        + tag("button", "All tasks", type="button", data_do="leave"),
    )
    status = tag("p", "", id="review-status", role="status")
    film = tag("div", "", id="review-film", class_="player") + tag("p", "", id="review-speed")
    film = tag("div", film, class_="film-box")
    item = tag(
        "div",
        tag("p", "Fetching the first item …", class_="quiet"),
        id="review-item",
        tabindex="0",
        role="region",
        aria_label="Trace",
    )
    asks = tag("div", questions + status + tag("div", moves, class_="moves"), class_="asks")
    return head + tag("div", film + item + asks, class_="desk") + _dialogs()


def _dialogs() -> str:
    rows = "".join(tag("tr", tag("th", esc(keys), scope="row") + tag("td", esc(does))) for keys, does in KEYS)
    close = tag("form", tag("button", "Close"), method="dialog")
    none = tag("p", "None of them does anything while you type in a field.", class_="quiet")
    none += tag(
        "p",
        f"To correct a trace, give another verdict than Accept and write the whole trace as it should be "
        f"into the note, in the form of the one shown: {CORRECTED}. It has to end in the label you give; "
        "then the next cold start can learn from it.",
        id="review-correct",
    )
    sheet = tag("dialog", tag("h3", "Keys") + tag("table", rows) + none + close, id="review-sheet", aria_label="Keys")
    offered = tag("datalist", "".join(tag("option", value=reason) for reason in SKIP_REASONS), id="review-reasons")
    ask = tag(
        "label",
        tag("span", "Why? Others will get this item.")
        + tag(
            "input",
            type="text",
            name_="reason",
            required=True,
            maxlength="500",
            list="review-reasons",
            autocomplete="off",
        ),
    )
    go = tag("button", "Skip", class_="go")
    skip = tag("form", tag("h3", "Skip this item") + ask + offered + go, method="dialog")
    return sheet + tag("dialog", skip, id="review-skip", aria_label="Skip this item")


def item_html(
    task: Task, fact: Mapping[str, Any] | None, row: Any, clip: Mapping[str, Any] | None, grammar: str
) -> str:
    """The trace of an item and, unless the task is blind, what the model said of the clip."""
    if fact is None or row is None:
        return empty("This trace is not in the workbench any more.", "Its run was deleted since. Skip it.")
    seconds = (clip or {}).get("seconds")
    times = row["frame_times"] if hasattr(row["frame_times"], "__len__") else None
    text = task.covered(row["text"]) if task.blind else row["text"]
    body = prose.trace_html(text, grammar, times, seconds)
    if not row["text"].strip():
        body = tag("p", "Nothing was written.", class_="quiet")
    said = tag("p", "The model’s label is hidden in this task.", class_="quiet")
    if not task.blind:
        said = "Model: " + (
            badge(fact["provisional"])
            if fact["reason"] is None
            else badge("malformed: " + fact["reason"].replace("_", " "), "warn")
        )
        if fact["calibrated"]:
            sure = "" if fact["certainty"] is None else f" {100 * fact['certainty']:.0f} %"
            said += " calibrated: " + badge(fact["calibrated"] + sure)
        said = tag("p", said, class_="model")
    return said + body


def said_html(task: Task, rows: Sequence[Mapping[str, Any]]) -> str:
    """What reviewers said of an item, for a lead; `rows` as `exchange.rows` gives them."""
    return table(_SAID, [_cells(task, row) for row in rows], "What reviewers said")


_SAID = ("Reviewer", "Label", "Trace is", "Fails", "Note")


def _cells(task: Task, row: Mapping[str, Any]) -> list[str]:
    if row["kind"] == "skipped":
        return [esc(row["reviewer"]), badge("skipped"), "", "", _words(row["reason"])]
    sentence, where = row["failing_sentence"], row["failing_in"]
    fails = f"sentence {sentence + 1}, {where}" if sentence is not None else ""
    given = [row[key] or ("unsure" if key in task.questions else "–") for key in ("label", "verdict")]
    late = " " + badge("extra", "plain", "Beyond the answers asked for: it settles nothing") if row.get("extra") else ""
    return [esc(row["reviewer"]) + late, *map(esc, (*given, fails)), _words(row["note"])]


def _words(text: str | None) -> str:
    """What somebody wrote, however long."""
    return tag("div", esc(text), class_="words") if text else ""


# The lead's view


def lead_html(
    task: Task,
    progress: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    gold: Sequence[GoldRecord],
    ratings: Sequence[tuple[str, str, Any]],
    model: Mapping[str, Sequence[Agreement]],
    disputed: Sequence[tuple[str, float]],
    closed: bool,
    blame: Blame | None = None,
    doubted: Sequence[Any] = (),
) -> str:
    """Agreement, gold items, doubted labels, what is disputed and decided, notes and skips, files out and in, closing.
    `rows`: what is in force, as `exchange.rows` gives it; `doubted`: as `insight.doubted` does."""
    decide = (
        tag(
            "a",
            f"Decide {len(disputed):,} disputed",
            class_="go",
            data_go=True,
            href=address("review", task=task.name, view="decide"),
        )
        if disputed
        else ""
    )
    shut = tag(
        "button",
        "Open it again" if closed else "Close the task",
        type="button",
        data_do="close",
        title=None if closed else "Hands out nothing more, takes no more answers, shows what was said to all",
        data_closed="" if closed else "1",
    )
    back = tag("button", "All tasks", type="button", data_do="leave")
    state = " " + badge("closed: no more answers") if closed else ""
    head = tag("header", tag("h2", esc(task.name) + state) + tag("span", decide + shut + back, class_="links"))
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("judged", "skipped", "adjudicated")}
    exports = " ".join(
        tag("a", words, href=address("review-api/export", task=task.name, form=form), download=True)
        for form, words in _FORMS
    )
    file = tag("input", type="file", id="review-import", accept=",".join(exchange.FORMS.values()))
    files = tag("p", f"Export {exports} · ") + tag("label", tag("span", "Import answers ") + file, class_="file")
    line = (
        f"{progress['done']:,} of {progress['asked']:,} judgements, {progress['complete']:,} of "
        f"{progress['items']:,} items complete, {len(kinds['adjudicated']):,} decided by leads."
    )
    if extra := sum(row["extra"] for row in rows):
        line += f" Extra answers, to items that had all they need: {extra:,}, kept and left out of agreement."
    parts = [
        head,
        tag("p", line),
        tag("div", files, class_="files"),
        tag("p", "", id="review-status", role="status"),
        _people(kinds, gold),
    ]
    if not kinds["judged"]:
        todo = "Agreement is counted once two people judged the same ones."
        parts.append(empty("Nobody has judged an item yet.", todo))
    elif "label" in task.questions:
        parts.append(_between_people(ratings, list(task.labels)))
    if model:
        said = [
            (f"{words}: {found.label or 'all classes'}", found)
            for kind, words in _MODEL
            for found in model[kind]
            if found.items
        ]
        parts.append(_agreement(said, "The model against what people settled on (bootstrap over clips)"))
    parts.append(_verdicts(kinds["judged"]))
    if blame is not None:
        parts.append(_blame(blame))
    if doubted:
        cells = [
            [
                link(row.clip_id[:12], "traces", trace=row.trace_id),
                *map(esc, (row.given, row.likely)),
                f"{100 * row.self_confidence:.1f} %",
            ]
            for row in doubted[:50]
        ]
        heads = ("Clip", "Label", "Likely", "Probability of the label")
        more = f" (50 of {len(doubted):,})" if len(doubted) > 50 else ""
        caption = f"Labels of these clips that are probably wrong{more}"
        parts.append(tag("details", tag("summary", caption) + table(heads, cells)))
    said_of = defaultdict(list)
    for row in kinds["judged"]:
        said_of[row["trace_id"]].append(row)
    for caption, some in (
        ("Disputed items, the most disputed first", [row for item, _ in disputed[:50] for row in said_of[item]]),
        ("Decided by leads, the newest last", kinds["adjudicated"][-50:]),
        ("Notes and skips, the newest last", [row for row in rows if row["note"] or row["kind"] == "skipped"][-50:]),
    ):
        cells = [[link(row["trace_id"][:12], "traces", trace=row["trace_id"]), *_cells(task, row)] for row in some]
        if cells:
            parts.append(tag("details", tag("summary", caption) + table(("Trace", *_SAID), cells)))
    return "".join(parts)


_FORMS = (
    ("csv", "CSV"),
    ("jsonl", "JSONL"),
    ("parquet", "Parquet"),
    ("label-studio", "Label Studio"),
    ("interface", "its interface"),
)
_ASKED = {"label": "label", "verdict": "verdict", "failing": "place", "note": "note"}
_MODEL = (("provisional", "first answer"), ("calibrated", "calibrated label"))


def _people(kinds: Mapping[str, Sequence[Mapping[str, Any]]], gold: Sequence[GoldRecord]) -> str:
    """A row a reviewer; gold items in two halves of time, so that drift shows."""
    known = {record.reviewer: record for record in gold}
    judged, skipped = (Counter(row["reviewer"] for row in kinds[kind]) for kind in ("judged", "skipped"))
    rows = []
    for who in sorted(judged | skipped):
        on, drift = "–", "–"
        if record := known.get(who):
            on = f"{percent(record.share.value)} of {record.n} " + _between(record.share, 100, 0)
            if len(record.by) > 1:
                each = (f"{_ASKED[question]} {percent(share.value)}" for question, share in record.by.items())
                on += tag("br") + tag("small", esc(" · ".join(each)))
            if record.p == record.p:
                drift = f"{percent(record.early.value)} → {percent(record.late.value)} "
                drift += tag("small", f"p {record.p:.2f}", title="Fisher’s exact test that both halves are the same")
        last = max(row["time"] for row in (*kinds["judged"], *kinds["skipped"]) if row["reviewer"] == who)
        rows.append([esc(who), f"{judged[who]:,}", f"{skipped[who]:,}", on, drift, f"{last:%Y-%m-%d %H:%M}"])
    heads = ("Reviewer", "Judged", "Skipped", "Right on gold", "First half → second", "Last, UTC")
    return table(heads, rows, "By person") if rows else ""


def _between(estimate: Any, scale: float, digits: int) -> str:
    if estimate.low == estimate.high:
        return tag("small", "no interval", title="All draws are alike: they do not tell how sure this is")
    return tag("small", f"{scale * estimate.low:.{digits}f} … {scale * estimate.high:.{digits}f}")


def _between_people(ratings: Sequence[tuple[str, str, Any]], labels: list[str]) -> str:
    matrix, _, _ = rating_matrix(ratings, labels)
    if not len(matrix) or not ((matrix >= 0).sum(1) >= 2).any():
        return tag("p", "No item has two labels yet: agreement cannot be counted.", class_="quiet")
    found = [(one.label or "all classes", one) for one in agreement(matrix, labels, draws=300)]
    return _agreement(found, "Agreement on the label between people (bootstrap over items)")


def _shown(estimate: Any, scale: float = 1.0, digits: int = 2) -> str:
    if estimate.value != estimate.value:
        return "–"
    return f"{scale * estimate.value:.{digits}f} " + _between(estimate, scale, digits)


def _agreement(found: Sequence[tuple[str, Agreement]], caption: str) -> str:
    rows = [
        [esc(words), f"{one.items:,}", _shown(one.percent, 100, 0), _shown(one.kappa), _shown(one.alpha)]
        for words, one in found
    ]
    return table(("Class", "Items", "Agreement, %", "Cohen’s κ", "Krippendorff’s α"), rows, caption)


def _blame(blame: Blame) -> str:
    """Two by two counts, and how far people and the judge of the observation name the same process."""
    counts = zip(PROCESSES, blame.counts_2_2.tolist(), strict=True)
    rows = [[f"people: {process}", *(f"{n:,}" for n in row)] for process, row in counts]
    heads = ("Fails in", *(f"judge: {process}" for process in PROCESSES))
    found = blame.found
    spoken = (
        f"Agreement {_shown(found.percent, 100, 0)} %, Cohen’s κ {_shown(found.kappa)}, n = {blame.n:,} traces "
        f"where both say what fails. {blame.people_only:,} more fail for people only, {blame.judge_only:,} for "
        "the judge only."
    )
    caption = "Seeing or reasoning: people against the judge of the observation (bootstrap over clips)"
    return table(heads, rows, caption) + tag("p", spoken)


def _verdicts(judged: Sequence[Mapping[str, Any]]) -> str:
    said = Counter(row["verdict"] or "unsure" for row in judged)
    fails = Counter(row["failing_in"] for row in judged if row["failing_in"])
    words = [f"{esc(verdict)} {n:,}" for verdict, n in said.most_common()]
    words += [f"fails in {esc(where)} {n:,}" for where, n in fails.most_common()]
    return tag("p", "Verdicts on traces: " + " · ".join(words)) if words else ""
