"""What judges answered about the traces behind some results: by system, and how far several judges agree.

    for row in rubric_results(workbench, table.rows): print(row.system, row.question, row.yes)
    for row in judge_agreements(workbench, result): print(row.question, row.agreement.kappa)

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from deepintuit.metrics import Estimate
from deepintuit.rubrics import FALSE_STEP
from deepintuit_analysis.report.results import Result
from deepintuit_analysis.review.agreement import Agreement, agreement

if TYPE_CHECKING:
    from deepintuit_analysis import Workbench

_WORDS = ("yes", "no")


class RubricResult(NamedTuple):
    """`yes`: the share of yes among yes and no, None without any; `unclear` and `lacking` (it could not be asked) are
    traces that stand in neither."""

    system: str
    question: str
    n: int
    yes: Estimate | None
    unclear: int
    lacking: int


class JudgeAgreement(NamedTuple):
    question: str
    judges: int
    agreement: Agreement


def rubric_results(workbench: Workbench, results: Iterable[Result]) -> list[RubricResult]:
    """Of each provisional label among the results, by question of a rubric, as the newest judge answered it."""
    rows = []
    for result in results:
        answers = _answers(workbench, result, "judge_answers") if result.key[1:] == ("raw", "none") else ()
        for question, answer in answers.groupby("question")["answer"] if len(answers) else ():
            answer_C = answer.reindex(result.frame["trace_id"]).to_numpy()
            decided_C = np.isin(answer_C, _WORDS)
            yes = result.share(answer_C == "yes", decided_C) if decided_C.any() else None
            counts = (int((answer_C == word).sum()) for word in ("unclear", "not asked"))
            rows.append(RubricResult(result.system, question, len(answer), yes, *counts))
    return rows


def judge_agreements(workbench: Workbench, result: Result) -> list[JudgeAgreement]:
    """Of questions that several judges were asked about the traces of a result: how far their yes and no agree."""
    rows = []
    answers = _answers(workbench, result, "every_judge_answer")
    for question, group in answers.groupby("question") if len(answers) else ():
        codes = group.assign(code=group["answer"].map({word: k for k, word in enumerate(_WORDS)}))
        table = codes.pivot_table(index=codes.index, columns="judge_run", values="code", aggfunc="last")
        if table.shape[1] < 2:
            continue
        ratings_C_R = table.reindex(result.frame["trace_id"]).fillna(-1).to_numpy(int)
        settings = result.settings
        options = {"draws": settings.bootstrap, "seed": result.seed, "level": settings.confidence}
        whole, *_ = agreement(ratings_C_R, _WORDS, groups_C=result.groups_C, **options)
        if whole.items:
            rows.append(JudgeAgreement(question, table.shape[1], whole))
    return rows


def _answers(workbench: Workbench, result: Result, view: str) -> pd.DataFrame:
    """Rows of a view of judges' answers to rubrics about the traces of a result, by trace id."""
    rows = workbench.query(
        f"""SELECT trace_id, question, answer, judge_run FROM {view}
            WHERE trace_id IN (SELECT unnest($ids::VARCHAR[])) AND question <> $step""",  # noqa: S608 - a name of ours
        {"ids": result.frame["trace_id"].dropna().tolist(), "step": FALSE_STEP},
    )
    return rows.set_index("trace_id")
