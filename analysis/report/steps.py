"""Why a trace is wrong: its first false step, where known facts or a judge tell.

    told = first_false_steps(workbench, run_id, trace_ids)   # a row a trace: kind, begins, ends, by
    why_wrong(told, result)                                  # of a provisional label: counts by kind, with intervals

The facts of a rendered world say of each step whether it is so (`worlds.Step`); where there are none, what a judge
answered stands (`deepintuit judge RUN --steps`). A habit or a box that nobody mentions
makes a label wrong without a false step: no better eye would help there. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from deepintuit import worlds
from deepintuit.metrics import Estimate
from deepintuit.rubrics import FALSE_STEP
from deepintuit.trace import GRAMMARS, Grammar, pieces, sentences_of
from deepintuit_analysis.index.clips import grammar_of
from deepintuit_analysis.report.results import Result

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

KINDS = {
    "observation": "A false observation",
    "summary": "A false summary of what was seen",
    "policy": "A false policy step",
    "conclusion": "The conclusion does not follow",
    "none": "Every step is right, the label is wrong",
    "malformed": "No readable answer",
}
"""What the first false step is, in the order of a trace."""
SOURCES = {"facts": "by the known facts of the clip", "judge": "by a judge", "form": "by its form"}


class FalseStep(NamedTuple):
    """The first false step of a trace: a key of `KINDS`, its characters `begins` … `ends` of the text (both 0 where no
    step is to be marked), and a key of `SOURCES`."""

    kind: str
    begins: int
    ends: int
    by: str

    @property
    def words(self) -> str:
        return f"{KINDS[self.kind]}, {SOURCES[self.by]}"


class Why(NamedTuple):
    """`share`: of the wrong traces of which it is known; `inside_C` marks the clips of the result."""

    kind: str
    words: str
    n: int
    share: Estimate
    inside_C: np.ndarray


def first_false_steps(workbench: Workbench, run_id: str, trace_ids: Sequence[str]) -> pd.DataFrame:
    """Of these traces of a run those of which it is known, by trace id: the fields of `FalseStep`."""
    if not len(trace_ids):
        return pd.DataFrame(columns=FalseStep._fields)
    rows = workbench.query(
        """SELECT traces.trace_id, clip_id, text, reason, argued, judged.answer AS mistake, value AS sentence
           FROM traces
           LEFT JOIN (FROM judge_answers WHERE question = $step) AS judged ON judged.trace_id = traces.trace_id
           LEFT JOIN (SELECT trace_id, any_value(evidence) AS argued FROM scores
                      WHERE run_id = $run AND name = 'mismatch' AND value > 0 GROUP BY trace_id) AS scored
               ON scored.trace_id = traces.trace_id
           WHERE run_id = $run AND traces.trace_id IN (SELECT unnest($ids::VARCHAR[]))""",
        {"run": run_id, "ids": list(trace_ids), "step": FALSE_STEP},
    )
    facts, grammar = _facts(workbench, run_id, rows["clip_id"]), GRAMMARS[grammar_of(workbench, run_id)]
    steps = {}
    for row in rows.itertuples(index=False):
        if isinstance(row.reason, str):
            steps[row.trace_id] = FalseStep("malformed", 0, 0, "form")
        elif row.clip_id in facts:
            steps[row.trace_id] = _by_facts(row.text, grammar, isinstance(row.argued, str), *facts[row.clip_id])
        elif row.mistake == "none":
            steps[row.trace_id] = FalseStep("none", 0, 0, "judge")
        elif row.mistake in KINDS:
            piece = sentences_of(row.text, grammar)[int(row.sentence)]
            steps[row.trace_id] = FalseStep(row.mistake, piece.start, piece.end, "judge")
    return pd.DataFrame(list(steps.values()), index=list(steps), columns=FalseStep._fields)


def false_step(steps: pd.DataFrame, trace_id: str) -> FalseStep | None:
    """Of one trace, where it is known."""
    return FalseStep(*steps.loc[trace_id]) if trace_id in steps.index else None


def _facts(workbench: Workbench, run_id: str, clip_ids: pd.Series) -> dict[str, tuple[worlds.World, object]]:
    """The world and the facts of each clip that has any."""
    clips = workbench.query(
        """SELECT * FROM clips WHERE clip_id IN (SELECT unnest($ids::VARCHAR[])) AND dataset IS NOT DISTINCT FROM
               coalesce((SELECT dataset FROM runs WHERE run_id = $run), dataset)""",
        {"run": run_id, "ids": clip_ids.unique().tolist()},
    )
    facts_of = {}
    for clip_id, notes in zip(clips["clip_id"], clips["notes"] if "notes" in clips else ()):
        for note in notes if hasattr(notes, "__len__") else ():
            if note["name"] == "facts" and note["value"]:
                try:
                    world, facts = worlds.knowing(note["value"])
                except ValueError:
                    continue  # a note of somebody else
                if hasattr(world, "steps"):
                    facts_of[clip_id] = world, facts
    return facts_of


def _by_facts(text: str, grammar: Grammar, argued: bool, world: worlds.World, facts: object) -> FalseStep:
    """`argued`: its reasoning argues for another label than its answer."""
    cut = pieces(text, grammar)
    for piece in cut:
        if piece.name in {segment.name for segment in grammar.text_segments}:
            for step in world.steps(text[piece.start : piece.end], facts):
                if not step.true:
                    return FalseStep(step.kind, piece.start + step.begins, piece.start + step.ends, "facts")
    answer = next((piece for piece in reversed(cut) if piece.name == grammar.answer.name), None)
    if argued and answer:
        return FalseStep("conclusion", answer.start, answer.end, "facts")
    return FalseStep("none", 0, 0, "facts")


def why_wrong(steps: pd.DataFrame, result: Result) -> list[Why]:
    """How often each kind is the first false step of a wrong trace; kinds that do not occur are left out. `result`: of
    the provisional label, whose traces `steps` are about."""
    kind_C = steps["kind"].reindex(result.frame["trace_id"]).to_numpy()
    wrong_C = ~result.right_C & pd.notna(kind_C)
    rows = ((kind, words, (kind_C == kind) & wrong_C) for kind, words in KINDS.items())
    return [Why(kind, words, int(C.sum()), result.share(C, wrong_C), C) for kind, words, C in rows if C.any()]
