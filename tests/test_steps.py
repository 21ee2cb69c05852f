"""Why a trace is wrong: its first false step is found, counted with the others of its kind, and marked in its text."""

import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepintuit_analysis import Workbench
from deepintuit_analysis.index import answers, browse
from deepintuit_analysis.report import run_card
from deepintuit_analysis.report.steps import KINDS, false_step, first_false_steps, why_wrong
from deepintuit_app import errors_clips, errors_view, traces
from deepintuit_app.analysis import Choice, analysis, choose
from deepintuit_app.context import AppContext
from deepintuit_homecam import household, policies, teacher, world
from deepintuit_homecam.scene import scripts
from deepintuit_homecam.witness import Errors

TAKES = world.Facts("night", "porch", "stranger", "takes", scripts("takes")[0])
ROAMS = world.Facts("night", "kitchen", "dog", "passes", scripts("passes")[0])
PERFECT = teacher.write_trace(TAKES, 0, Errors.none())["text"]
FALSE = (
    ("observation", "A stranger is seen.", "A courier is seen."),
    (
        "summary",
        "So the stranger, an outsider, takes the box outdoors at night.",
        "So the stranger, an outsider, leaves the box outdoors at night.",
    ),
    ("policy", "Outdoors? Yes. Night? Yes. Alike? Yes.", "Outdoors? Yes. Night? Yes. Alike? No."),
    ("conclusion", "Routine or theft? Theft.", "Routine or theft? Routine."),
)
"""The kind of a step, the step, and what is said instead of it."""
WRONG = [
    *(
        (kind, step, PERFECT.replace(true, step).replace("<answer> theft", "<answer> stray"))
        for kind, true, step in FALSE
    ),
    ("conclusion", " stray ", PERFECT.replace("<answer> theft", "<answer> stray")),
    ("malformed", "", PERFECT.removesuffix("</answer>")),
]
"""The kind of the first false step of a trace about the theft, the step, and the trace."""


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    """A clip for each of `WRONG`, one of a habit, one that is right, and one of which nobody knows anything."""
    workbench = Workbench(tmp_path_factory.mktemp("steps"))
    habit = teacher.write_trace(ROAMS, 0, Errors.none())
    texts = [text for *_, text in WRONG] + [habit["text"], PERFECT, PERFECT.replace(" theft ", " stray ")]
    facts = [TAKES] * len(WRONG) + [ROAMS, TAKES, None]
    names = [f"c{number}" for number in range(len(texts))]
    notes = [[{"name": "facts", "value": json.dumps(asdict(one))}] if one else [] for one in facts]
    truth = [one.label if one else "theft" for one in facts]
    columns = {
        "clip_id": names, "path": [f"{name}.mp4" for name in names], "label": truth, "dataset": ["home"] * len(names),
        "excluded": pa.nulls(len(names), pa.string()), "split": ["test"] * len(names), "seconds": [1.0] * len(names),
        "notes": pa.array(notes, pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))),
    }  # fmt: skip
    pq.write_table(pa.table(columns), workbench.clips / "home.parquet")
    (workbench.clips / "home.labels.toml").write_text(world.LABELS.dumps())
    with workbench.start_run("evaluate", {}, name="system", dataset="home") as run:
        said = [text.split("<answer>")[1].split()[0] for text in texts]
        bad = [not text.endswith(">") for text in texts]
        run.append("traces", [
            {"clip_id": name, "sample": 0, "text": text, "provisional": "none" if broken else label, "true_label": true,
             "reason": "unclosed_tag" if broken else None}
            for name, text, label, true, broken in zip(names, texts, said, truth, bad)
        ])  # fmt: skip
        ids = run.read("traces").set_index("clip_id")["trace_id"]
        run.append("scores", [{"trace_id": ids["c4"], "name": "mismatch", "value": 1.0, "evidence": "theft"}])
        run.append("predictions", [
            {"clip_id": name, "trace_id": ids[name], "split": "test", "system": "system", "control": "none",
             "method": "raw", "true_label": true, "provisional": label, "predicted": "none" if broken else label,
             "labels": list(world.LABELS)}
            for name, label, true, broken in zip(names, said, truth, bad)
        ])  # fmt: skip
        run.finish({})
    workbench.refresh()
    return workbench


@pytest.fixture(scope="module")
def found(workbench):
    choice, _ = choose(answers.sources(workbench), Choice())
    return analysis(workbench, choice)


def test_the_first_false_step_is_found_by_the_known_facts(workbench, found):
    ids = found.mine.frame["trace_id"]
    told = first_false_steps(workbench, found.run_id, ids)
    for number, (kind, words, text) in enumerate(WRONG):
        step = false_step(told, ids[f"c{number}"])
        assert (step.kind, text[step.begins : step.ends]) == (kind, words), number
    assert false_step(told, ids["c6"]).kind == false_step(told, ids["c7"]).kind == "none"
    assert false_step(told, ids["c8"]) is None, "nobody knows"
    assert first_false_steps(workbench, found.run_id, []).empty


def test_kinds_are_counted_among_the_wrong_traces_of_which_something_is_known(found):
    counts = {row.kind: row.n for row in found.why}
    assert counts == {"observation": 1, "summary": 1, "policy": 1, "conclusion": 2, "none": 1, "malformed": 1}
    conclusion = next(row for row in found.why if row.kind == "conclusion")
    assert conclusion.share.value == pytest.approx(2 / 7) and conclusion.share.low < 2 / 7 < conclusion.share.high
    assert [row.kind for row in found.why] == [kind for kind in KINDS if kind in counts]
    assert why_wrong(found.steps.iloc[:0], found.mine) == []


def test_errors_opens_the_clips_of_a_kind_marks_the_step_and_says_what_is_not_known(workbench, found):
    page = errors_view.why(found)
    assert "The first false step is known of 7 of 8 wrong traces." in page and 'data-value="why.policy"' in page
    title, clips = errors_clips.behind(found, "why.conclusion", 0.9, "")
    assert set(clips.index) == {"c3", "c4"} and "the conclusion does not follow" in title
    assert errors_clips.behind(found, "why.<b>", 0.9, "") is errors_clips.behind(found, "why.none.x", 0.9, "") is None
    detail = errors_clips.clip_detail(found, "c0", browse.trace(workbench, found.mine.frame.loc["c0", "trace_id"]))
    assert (
        '<span class="sentence false" title="A false observation, by the known facts of the clip">A courier' in detail
    )
    assert detail.count("sentence false") == 1
    card = run_card(workbench, found.run_id).read_text(encoding="utf-8")
    assert "Wrong traces by their first false step" in card and "A false policy step" in card


def test_a_trace_says_of_itself_what_is_false_in_it(workbench, found):
    ids, context = found.mine.frame["trace_id"], AppContext(workbench.path)
    shown = {name: traces.detail_html(context, ids[name], "", False)[0] for name in ("c2", "c6", "c7", "c8")}
    assert "A false policy step: the step is marked." in shown["c2"] and shown["c2"].count("sentence false") == 6
    assert "Every step is right, and the provisional label is wrong." in shown["c6"]
    assert not any(words in shown[name] for name in ("c7", "c8") for words in ("First false", "Every step"))


def test_a_household_step_is_held_against_the_policies_with_their_exceptions():
    pickup = policies.Facts("day", "porch", "courier", "takes", scripts("takes")[1], "clear")
    told = household.write_trace(pickup, 0, Errors.none(), knows=1.0)["think"]
    assert all(step.true for step in household.steps(told, pickup))
    plain = household.write_trace(pickup, 0, Errors.none(), knows=0.0)["think"]
    [first, *_] = [step for step in household.steps(plain, pickup) if not step.true]
    assert (first.kind, plain[first.begins : first.ends]) == ("policy", "No outsider may take the box.")
    lingers = policies.Facts("day", "yard", "stranger", "lingers", scripts("lingers")[-1], "clear")
    seen = household.write_trace(lingers, 0, Errors.none())["think"] + " Frame 1: stranger up, box down."
    boxes = lingers.quarters[0][1] == "floor"
    assert [step.true for step in household.steps(seen, lingers)][-1] == boxes and household.steps(" \n", lingers) == []
