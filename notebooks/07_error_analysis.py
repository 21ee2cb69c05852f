# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Error analysis: SQL as a microscope
#
# Two systems watch a hundred clips, two of them thefts. One says *routine* a hundred times. The other finds both thefts, and calls two
# routine clips *theft*. Both are right on 98. **Which one would you install?**
#
# Accuracy cannot tell them apart. Here you look closer, one turn of the screw at a time: from a class to its clips, from a clip to its
# trace, from a trace to the sentence that is wrong.

# %%
import os

from deepintuit_homecam import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %% [markdown]
# ## By hand: F1
# For *theft*: 2 clips are one, how many are called one, how many are both?

# %%
for name, called, hits in (("always routine", 0, 0), ("the other", 4, 2)):
    print(f"{name}: 2 · {hits} / (2 + {called}) = {2 * hits / (2 + called):.2f}")

# %% [markdown]
# That is F1, and it is three counts. The index of a workbench is a DuckDB file; `workbench.query` runs any SELECT over it and cannot
# write. All labels that the traces gave, on clips that no stage has seen:

# %%
wb = bench.workbench
run = [it for it in bench.evaluations if it.config.get("calibrator") == bench.calibrate.id][-1]
classes = wb.query(
    """WITH said AS (SELECT true_label, predicted FROM predictions
                     WHERE run_id = ? AND method = 'raw' AND control = 'none' AND true_label IS NOT NULL)
       SELECT label, count(*) FILTER (true_label = label) AS clips,
              count(*) FILTER (predicted = label) AS called,
              count(*) FILTER (true_label = label AND predicted = label) AS hits,
              2 * hits / (clips + called) AS f1
       FROM said, (SELECT DISTINCT true_label AS label FROM said) GROUP BY label ORDER BY f1""",
    [run.id],
)
classes.round(3)

# %% [markdown]
# ## By the package
# The same numbers, before and after calibration, and beside them a baseline that never saw a frame: the file's size, rate and length.

# %%
from deepintuit_analysis.report.gather import tabulate

baselines = [it.id for it in bench.evaluations if it.summary["system"] == "baselines"][-1:]
table = tabulate(wb, [run.id, *baselines])
rows = {row.key: row for row in table.rows}
system = run.summary["system"]

# %%
from deepintuit_analysis.report import class_f1_figure

asked = {"metadata": ("metadata", "raw", "none"), "provisional label": (system, "raw", "none"),
         "calibrated": (system, "label_likelihood", "none")}
f1 = {name: rows[key].evaluation.classes.f1_K for name, key in asked.items() if key in rows}
class_f1_figure(table.labels, f1, rows[asked["provisional label"]].evaluation.classes.support_K)

# %%
import pandas as pd

from deepintuit_analysis.numbers import interval, number
from deepintuit_analysis.report.results import Comparison

pd.set_option("display.max_colwidth", None)
provisional, calibrated = (rows.get(asked[name]) for name in ("provisional label", "calibrated"))
for label, change in zip(table.labels, Comparison.of(provisional, calibrated).f1_K if calibrated else ()):
    says = "better" if change.low > 0 else "worse" if change.high < 0 else "no clear difference"
    print(f"{label}: F1 {number(change.value, sign=True)} points ({interval(change, sign=True)}), {says}")

# %% [markdown]
# ## From the class to its answers
# The class on which the traces do worst, and what they call it instead. (*none*: an answer that could not be read.)

# %%
worst = classes.label[0]
answers = wb.query(
    """SELECT provisional, count(*) AS clips, avg((predicted = true_label)::INT) AS right_after_calibration
       FROM predictions
       WHERE run_id = ? AND method = 'label_likelihood' AND control = 'none' AND true_label = ?
       GROUP BY provisional ORDER BY any_value(provisional = true_label), clips DESC, provisional""",
    [run.id, worst],
)
print("Clips of the class:", worst)
answers.round(2)

# %% [markdown]
# ## From the answer to its clips
# The commonest wrong answer; the clips behind it, with the trace that was surest of itself first.

# %%
taken_for = answers.provisional[0]
clips = wb.query(
    """SELECT clip_id, trace_id, provisional, calibrated, confidence, tokens FROM trace_facts
       WHERE run_id = ? AND true_label = ? AND provisional = ? AND sample = 0
       ORDER BY confidence DESC, clip_id""",
    [run.id, worst, taken_for],
)
clips.head(8)

# %% [markdown]
# ## Watch one
# **Before you read the trace: what do you see?**

# %%
from deepintuit_analysis import show
from deepintuit_analysis.index import browse

first = clips.iloc[0]
show.clip(browse.clip_file(wb, first.clip_id), f"{worst}, called {taken_for}")

# %%
from deepintuit.reasoner import Task, parsed

task = Task(wb.path, bench.settings)
[trace] = parsed(task, [browse.trace(wb, first.trace_id)])
show.trace(trace)

# %% [markdown]
# ## From the clips to their sentences
# One clip may be odd. Cut the traces of all clips of this class into sentences: **which are said where the trace goes wrong, and not
# where it goes right?**

# %%
sentences = wb.query(
    """WITH plain AS (SELECT trace_id, provisional <> true_label AS wrong,
                             regexp_replace(text, '<answer>.*|<[^>]*>', ' ', 'gs') AS text
                      FROM traces WHERE run_id = ? AND true_label = ? AND sample = 0),
            cut AS (SELECT DISTINCT trace_id, wrong, trim(unnest(string_split(text, '. '))) AS sentence FROM plain)
       SELECT sentence, count(*) FILTER (wrong) AS in_wrong, count(*) FILTER (NOT wrong) AS in_right
       FROM cut WHERE sentence <> '' GROUP BY sentence HAVING in_wrong > 0
       ORDER BY in_wrong / (SELECT 1 + count(*) FILTER (wrong) FROM plain)
                - in_right / (SELECT 1 + count(*) FILTER (NOT wrong) FROM plain) DESC, sentence LIMIT 8""",
    [run.id, worst],
)
sentences

# %% [markdown]
# A sentence high in this list is a suspect, not a culprit: it may be true, and only told more often of hard clips.

# %% [markdown]
# ## The sentence that is wrong
# Of real clips nobody wrote down the facts. The embedded world has them, as a note that no model reads. So there, each sentence can be
# held against what a teacher who makes no mistake would have written of the same clip.

# %%
from deepintuit_analysis.report.steps import KINDS, false_step, first_false_steps

step = false_step(first_false_steps(wb, run.id, [first.trace_id]), first.trace_id)
print(f"{KINDS[step.kind]}: {trace.text[step.begins : step.ends]!r}" if step else "No facts are known of it.")

# %% [markdown]
# What comes first may drag the rest along. So for every wrong trace of the run, all classes together: which is the *first* false step?

# %%
from deepintuit_analysis.report.steps import why_wrong

provisional = rows[system, "raw", "none"]
wrong = provisional.frame[~provisional.right_C]
told = first_false_steps(wb, run.id, wrong.trace_id)
kinds = [[it.words, it.n, it.share.value, it.share.low, it.share.high] for it in why_wrong(told, provisional)]
pd.DataFrame(kinds, columns=["first false step", "traces", "share", "low", "high"]).round(2)

# %% [markdown]
# A *summary* tells in a sentence who does what, a *policy* step says what the house allows, a *conclusion* names the class. The page Errors has the same table, with a button behind each number.

# %%
notes = task.manifest.frame.set_index("clip_id")["notes"]
blameless = wrong.index[wrong.trace_id.isin(told.index[told.kind == "none"])]
print(f"Wrong traces: {len(wrong)}. Of these with every step true: {len(blameless)}.")
kinds = [notes[clip].get("slice", "no slice is noted") for clip in blameless]
pd.Series(kinds, name="slice of the clip", dtype=str).value_counts().to_frame("traces")

# %% [markdown]
# Where every step is true and the answer is wrong all the same, no better eye would help. The embedded world has such clips on purpose: labels on which people differ (*noise*), boxes that decide and that no
# trace mentions (*only in the video*).

# %% [markdown]
# ## Keep what you found
# A *slice* is a filter (or a query) under a name. It can be used wherever traces are filtered, in the dashboard too, and what a later run
# writes belongs to it as well. It is saved in a throw-away copy here, so that nothing is left in yours.

# %%
from deepintuit_analysis.index.browse import TraceFilter

copy = bench.scratch()
(copy.path / "runs" / run.id).symlink_to(run.path)
name = f"{worst} called {taken_for}"
made = copy.save_slice(name, TraceFilter(true=worst, provisional=taken_for), by="notebook 07")
print(made.to_python())

# %% [markdown]
# From then on it is one line away, here and in any other notebook:

# %%
kept = copy.slice(name).df()
kept[["trace_id", "stage", "split", "clip_id", "confidence"]].head()

# %%
two = parsed(task, [browse.trace(copy, it) for it in kept.trace_id[:2]])
show.row(*map(show.trace, two))

# %% [markdown]
# It is wider than the clips above: what the model wrote of calibration clips is in it too. That is where to look for more of the same.

# %%
show.app("traces", "These traces in the dashboard", run=run.id, true=worst, provisional=taken_for)

# %% [markdown]
# ## Three questions
#
# 1. Suppose that your worst class has nine clips in the test split. How many of its errors must be alike before you would change anything?
# 2. A sentence is false, and the answer right all the same. Is that an error? Whose?
# 3. You find that every *theft* at night is missed. Which split do you look at next, and which one do you leave alone?

# %% [markdown]
# ## What you have now
#
# A way from a number to the sentence that is behind it, in SQL that you can change, and a name under which to come back to it.
#
# Next: [08, your own videos](08_your_own_videos.ipynb).
