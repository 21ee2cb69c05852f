"""Results → tables and figures: what a system scored, how sure that is, and a page to show it on. No torch.

    rows = table_of(run.read("predictions"), labels, config.evaluate)
    rich.print(terminal_table(rows))
    show(workbench, [run.id])                     # the same, from the workbench, with the result in words
    run_card(workbench, [run.id])

`results` computes (`costs` where a miss of one class is worse than of another), `text` prints (terminal, Markdown,
over seeds), `figures` and `curves` draw, `gather` reads a workbench, `gains` compares classes stage by stage, `worst`
finds slices, `card` writes the page by the templates of `templates/card`.
"""

from deepintuit_analysis.report.card import run_card, show
from deepintuit_analysis.report.curves import training_figure
from deepintuit_analysis.report.figures import (
    class_f1_figure,
    confusion_figure,
    flips_figure,
    ranking_figure,
    reliability_figure,
    risk_coverage_figure,
    stages_figure,
)
from deepintuit_analysis.report.gains import ClassGains, class_gains, gains_figure, stages_of
from deepintuit_analysis.report.gather import worst_slices
from deepintuit_analysis.report.results import (
    Comparison,
    Measured,
    Result,
    SeedRow,
    headline,
    over_seeds,
    t_interval,
    table_of,
)
from deepintuit_analysis.report.text import markdown_table, multi_seed_table, sentence, terminal_table

__all__ = [
    "ClassGains",
    "Comparison",
    "Measured",
    "Result",
    "SeedRow",
    "class_f1_figure",
    "class_gains",
    "confusion_figure",
    "flips_figure",
    "gains_figure",
    "headline",
    "markdown_table",
    "multi_seed_table",
    "over_seeds",
    "ranking_figure",
    "reliability_figure",
    "risk_coverage_figure",
    "run_card",
    "sentence",
    "show",
    "stages_figure",
    "stages_of",
    "t_interval",
    "table_of",
    "terminal_table",
    "training_figure",
    "worst_slices",
]
