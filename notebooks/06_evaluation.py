# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Evaluation: one table, one figure
#
# Two systems answer the same 40 clips. One is right on 30, the other on 32. **Would you throw the first one away?**
#
# Here you learn to answer with three numbers that every row of the project's tables carries: n, an interval, and what was changed from
# wrong to right and back.

# %%
import os

from deepintuit_homecam import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %% [markdown]
# ## By hand: which clips changed
# Right is 1, wrong is 0, for the same eight clips, before and after some change.

# %%
before = [1, 1, 1, 1, 0, 0, 0, 1]
after = [1, 1, 1, 0, 1, 1, 1, 1]
print(f"{sum(before)} of 8, then {sum(after)} of 8")

# %%
fixed = sum(b < a for b, a in zip(before, after))
broken = sum(b > a for b, a in zip(before, after))
print(f"{fixed} fixed, {broken} broken; on the other {8 - fixed - broken} clips nothing happened")

# %% [markdown]
# Only the changed clips say anything about the change. If it were good for nothing, each of them would be a coin: **how often do four
# coins fall at least as unevenly as three to one?** Of 16 ways to fall, 1 + 4 have three or more heads, as many have three or more tails:

# %%
print(f"{(1 + 4 + 4 + 1) / 16:.3f}")

# %% [markdown]
# That is McNemar's exact test, and the package has it. Truths here are all 1.

# %%
from deepintuit.metrics import flips

flips(before, after, [1] * 8)

# %% [markdown]
# ## By hand: how sure is 75 %?
# Draw 40 clips again, with replacement, from 30 right and 10 wrong ones. Do it many times: how far does the share wander?

# %%
import numpy as np

right = np.array([1] * 30 + [0] * 10)
shares = np.random.default_rng(0).choice(right, (2000, 40)).mean(1)
print(np.quantile(shares, [0.025, 0.975]).round(2))

# %%
from deepintuit.metrics import bootstrap, mean_of

bootstrap(mean_of(right), 40)

# %% [markdown]
# 32 of 40 is 80 %: well inside. Now suppose that these were ten videos, cut into four clips each, and that clips of one video are all
# right or all wrong. **Are there forty witnesses, or ten?** Whole groups must be drawn:

# %%
videos = np.repeat(np.arange(10), 4)
alike = np.repeat([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], 4)
print(bootstrap(mean_of(alike), 40))
print(bootstrap(mean_of(alike), 40, groups_C=videos))

# %% [markdown]
# ## The table
# All systems of the workbench on the same clips: what costs nothing first (*baselines*), then each stage behind the one before it.
# Intervals draw whole groups where the manifest names them.

# %%
from deepintuit_analysis import show
from deepintuit_analysis.report import markdown_table
from deepintuit_analysis.report.gather import tabulate

wb = bench.workbench
table = tabulate(wb, [run.id for run in bench.evaluations])
plain = [row for row in table.rows if row.control == "none"]
show.table(markdown_table(plain))

# %% [markdown]
# *No answer* is an answer that could not be read: it counts as wrong, and is counted once more on its own. *NLL*, *Brier* and *ECE* ask
# whether the confidence was honest, which accuracy does not ([05](05_calibration.ipynb)).

# %% [markdown]
# ## The figure
# Grey is the label that a system wrote itself, blue what stands after calibration.

# %%
from deepintuit_analysis.report import stages_figure
from deepintuit_analysis.report.text import shown

systems = list(dict.fromkeys(row.system for row in plain))
raw = {row.system: row for row in plain if row.method == "raw"}
calibrated = {row.system: row for row in plain if row.method == table.config.method}

# %%
stages_figure(
    [shown(name) for name in systems],
    [raw[name].evaluation.accuracy if name in raw else None for name in systems],
    [calibrated[name].evaluation.accuracy if name in calibrated else None for name in systems],
)

# %% [markdown]
# In words, and no more than the numbers allow: the last stage first.

# %%
from IPython.display import Markdown

from deepintuit_analysis.report import headline, sentence

best = headline(table.rows, table.config.method)
Markdown(sentence(best))

# %%
from deepintuit_analysis.numbers import interval, number, p_value

if best.flips:
    changed = best.flips
    print(f"Calibration fixed {changed.wrong_to_right} of {best.n} labels "
          f"and broke {changed.right_to_wrong} ({p_value(changed.p_value)}).")
if best.risk and len(best.risk.coverage):
    half = best.risk.risk[np.searchsorted(best.risk.coverage, 0.5)]
    print(f"Answering only the surer half, it errs on {number(half)} %; "
          f"answering all, on {number(best.risk.risk[-1])} %.")

# %% [markdown]
# ## What it has to beat
# A stage is worth its cost if it beats the best of what was cheaper. Among everything that is neither the result nor its own provisional label:

# %%
others = [row for row in plain if row.system != best.system]
rival = max(others, key=lambda row: row.evaluation.accuracy.value)
reached = number(rival.evaluation.accuracy.value)
print(f"{shown(rival.system)}, {shown(rival.method)}: {reached} % of {rival.n}")

# %% [markdown]
# Same clips, so the difference is *paired*: on each draw of groups, both are asked about the same clips.

# %%
from deepintuit.metrics import paired_difference

answers = table.predictions[table.predictions.control == "none"]
wide = answers.assign(right=answers.predicted == answers.true_label).pivot(
    index="clip_id", columns=["system", "method"], values="right"
)
both = wide[[(best.system, best.method), (rival.system, rival.method)]].dropna().astype(float)

# %%
sources = wb.query('SELECT clip_id, "group" FROM clips WHERE dataset = ?', [table.dataset])
groups = sources.set_index("clip_id")["group"].loc[both.index].astype(str)
ours, theirs = mean_of(both.iloc[:, 0]), mean_of(both.iloc[:, 1])
difference = paired_difference(ours, theirs, len(both), groups_C=groups)

# %%
words = "no clear difference" if difference.low <= 0 <= difference.high else "a clear one"
print(f"{shown(best.system)} against {shown(rival.system)}: {number(difference.value, sign=True)} points "
      f"({interval(difference, sign=True)}), {words},\non {len(both)} clips of {groups.nunique()} groups.")

# %% [markdown]
# The rival was picked because it scored best on these very clips, so it is flattered a little. Better it than the result.

# %% [markdown]
# ## One seed is one throw
# The interval above says how far other *clips* would move the number. **Would doing all of it once more, with another seed, move it
# less?** The project keeps the rows of its own runs on the embedded world, where a seed draws clips, splits and training anew
# ([docs/worlds.md](../docs/worlds.md)): each stage's right answers, by seed.

# %%
import json
from pathlib import Path

import pandas as pd

stored = [json.loads(path.read_text()) for path in sorted(Path("../docs/evidence").glob("household-*.json"))]
right = {one["seed"]: {stage: "".join(of.values()) for stage, of in one["right"].items()} for one in stored}
shares = pd.DataFrame(right).map(lambda digits: digits.count("1") / len(digits)).T.rename_axis("seed")
(100 * shares).round(1)

# %%
spread = shares.max() - shares.min()
gains = shares["calibrated"] - shares["cold start + GRPO"]
print(f"With {len(shares)} seeds, cold start alone lies {number(spread['cold start'])} points apart by the seed alone;\n"
      f"calibration adds {', '.join(number(gain, sign=True) for gain in gains)} points to its own seed's provisional label.")

# %% [markdown]
# The dashboard shows one system at a time, with its confusions and what lies behind each count.

# %%
show.app("errors", "This system's errors", system=best.system, method=best.method, split=best.split)

# %% [markdown]
# ## Three questions
#
# 1. A colleague reports 90 % ± 1 on 4,000 clips cut from six videos. What do you ask?
# 2. The metadata baseline stands 12 points above the majority class in your table. What does that say about all rows beneath it?
# 3. You tried eight settings on the test clips and report the best one, with its honest interval. What is wrong with the interval?

# %% [markdown]
# ## What you have now
#
# A table in which every number has its n and its interval, a figure that sets the stages against what is cheaper, and a paired test for
# what a stage changed.
#
# Next: [07, error analysis](07_error_analysis.ipynb).
