"""Each class against the rest, on the Errors page: ROC and precision–recall with the operating point, and what misses
and false alarms cost at prices that a person sets.

Pure functions of an `analysis.Analysis`; the numbers are the `Result`'s and `report.costs`'. Of many classes, those of
the confusion table are listed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from deepintuit_analysis.numbers import number, percent, within
from deepintuit_analysis.report import ranking_figure
from deepintuit_analysis.report.costs import Costs, prices
from deepintuit_analysis.report.figures import few_of, most_confused
from deepintuit_app.errors_honesty import narrow
from deepintuit_app.html import empty, render

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from deepintuit_app.analysis import Analysis


@lru_cache(maxsize=64)
def costs_of(analysis: Analysis, text: str) -> Costs | None:
    """None where the answers have no probabilities."""
    if analysis.mine.probs_C_K is None:
        return None
    on_validation = analysis.mine if analysis.choice.split == "validation" else analysis.validation
    return Costs(analysis.mine, *prices(text, analysis.labels), on_validation)


def class_of(analysis: Analysis, wish: str) -> int:
    """The class that is drawn: the wished one, else that of the smallest area."""
    if wish in analysis.labels or analysis.mine.probs_C_K is None:
        return analysis.labels.index(wish) if wish in analysis.labels else 0
    areas = np.array([area.value for area, _ in analysis.mine.ranking_K])
    return 0 if np.isnan(areas).all() else int(np.nanargmin(areas))


def shown_classes(analysis: Analysis) -> list[int]:
    return most_confused(analysis.mine.evaluation.confusion).tolist()


def ranking_plot(analysis: Analysis, wish: str, text: str) -> go.Figure:
    bill = costs_of(analysis, text)
    if bill is None:
        return narrow(ranking_figure(analysis.labels, None, 0, {}))
    own, k = analysis.mine, class_of(analysis, wish)
    true_C, points = own.truth_C == k, {}
    threshold = bill.threshold(k)
    called = {
        "as answered": bill.answered_C == k,
        f"from {threshold:.3g} on, by costs": own.probs_C_K[:, k] >= threshold,
    }
    for name, said_C in called.items():
        hits, alarms = int((said_C & true_C).sum()), int((said_C & ~true_C).sum())
        if hits + alarms and true_C.any() and not true_C.all():
            points[name] = (alarms / (~true_C).sum(), hits / true_C.sum(), hits / (hits + alarms))
    area = own.ranking_K[k][0]
    words = f"{analysis.labels[k]} against the rest: AUROC {number(area.value, 1, 3)}{within(area, 1, 3)}"
    return narrow(ranking_figure(analysis.labels, own.curves_K, k, points, words))


@lru_cache(maxsize=32)
def ranking(analysis: Analysis, wish: str) -> str:
    """Area, average precision and the operating point of each class."""
    own = analysis.mine
    if own.probs_C_K is None:
        return empty("These answers have no probabilities.", "Choose a calibrated label under “Method”.")
    rows = [
        {
            "label": analysis.labels[k],
            "n": own.curves_K[k].positives,
            "place": f"true.{k}",
            "ranked": own.ranking_K[k],
            "rates": (own.rates_K[k][1], own.fall_out(k)),
        }
        for k in shown_classes(analysis)
    ]
    few = few_of(len(analysis.labels))
    return render("errors/ranking.html", rows=rows, chosen=analysis.labels[class_of(analysis, wish)], few=few)


def cost_fields(analysis: Analysis, text: str) -> str:
    """Where prices are typed; `app.js` gathers them."""
    bill = costs_of(analysis, text)
    if bill is None:
        return empty("These answers have no probabilities.", "Choose a calibrated label under “Method”.")
    rows = [(analysis.labels[k], f"{bill.miss_K[k]:g}", f"{bill.alarm_K[k]:g}") for k in shown_classes(analysis)]
    return render("errors/prices.html", rows=rows)


def costs(analysis: Analysis, text: str) -> str:
    """What the answers cost, what those of least expected cost would, and a threshold for each class."""
    bill = costs_of(analysis, text)
    if bill is None:
        return ""
    K = len(analysis.labels)
    withheld = int((bill.cheapest_C == K).sum())
    words = f"As answered, a clip costs {number(bill.answered.value, 1, 3)}{within(bill.answered, 1, 3)} on average. "
    words += f"By least expected cost: {number(bill.cheapest.value, 1, 3)}{within(bill.cheapest, 1, 3)}, "
    words += f"{number(bill.change.value, 1, 3, sign=True)} a clip{within(bill.change, 1, 3, sign=True)}; "
    words += f"it answers {int((bill.cheapest_C != bill.answered_C).sum())} of {analysis.mine.n} clips otherwise"
    words += f" and withholds {percent(withheld / max(1, analysis.mine.n), 1)}."
    rows = [
        {"label": analysis.labels[k], "k": k, "bill": class_bill, "at": _texts(class_bill.threshold)}
        for k in shown_classes(analysis)
        for class_bill in [bill.of_class(k)]
    ]
    has_validation = bill.validation is not None
    return render(
        "errors/costs.html",
        words=words,
        rows=rows,
        chosen=has_validation,
        same=has_validation and bill.validation is analysis.mine,
        clips=bill.validation.n if has_validation else 0,
        run=analysis.chosen_in,
        reasoner=analysis.stands_on[0] or "zero-shot",
        calibrator=analysis.stands_on[1],
    )


def _texts(threshold: float) -> tuple[str, str] | None:
    """As it is read, and to the last digit; None where the class is never called."""
    return None if math.isinf(threshold) else (f"{threshold:.3g}", str(threshold))
