# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Calibration: when should a trace be believed?
#
# A reviewer watches a clip, writes six careful sentences and concludes *theft*. Of the last hundred clips on which they said
# *theft*, sixty were thefts. **What is the chance that this one is? And would you look at the clip yourself before you answer?**
#
# If you said "about 60 %, and yes", you have invented both halves of this stage. A *calibrator* reads the clip, the trace and its
# provisional label, and gives a probability to every class.

# %%
import os

from deepintuit_homecam import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %% [markdown]
# Two runs matter here: one trained a calibrator, and one scored it on clips that no stage has seen.

# %%
wb, run = bench.workbench, bench.calibrate
scored = [it for it in bench.evaluations if it.config.get("calibrator") == run.id][-1]
print(f"{run.id}, scored by {scored.id}")

# %% [markdown]
# ## One clip, two answers
# A clip whose trace concludes wrongly, if there is one; among those, one that calibration fixed, if it fixed any.

# %%
found = wb.query(
    """SELECT * FROM predictions WHERE run_id = ? AND method = 'label_likelihood' AND control = 'none'
       ORDER BY provisional = true_label, predicted <> true_label, clip_id LIMIT 1""",
    [scored.id],
).iloc[0]

# %%
from deepintuit.reasoner import Task
from deepintuit_analysis import show
from deepintuit_analysis.index import browse

task = Task(wb.path, bench.settings)
said = browse.trace(wb, found.trace_id)
trace = task.parse(said.text, bool(said.truncated))
show.row(show.clip(browse.clip_file(wb, found.clip_id)), show.trace(trace))

# %% [markdown]
# What the trace says is *provisional*. What stands after the second look is *calibrated*.

# %%
print(f"Provisional: {found.provisional}. Calibrated: {found.predicted}. The truth: {found.true_label}.")

# %% [markdown]
# ## Whose mistakes are there to learn from?
# The teacher's traces were kept only where they agree with the label. Suppose you learn to judge reviewers from those alone:
# **what would you learn?**

# %%
kept = wb.query(
    """SELECT provisional, true_label FROM traces JOIN scores USING (trace_id)
       WHERE stage = 'teach' AND name = 'kept' AND value = 1"""
)
right = (kept.provisional == kept.true_label).mean()
print(f"Of {len(kept)} kept teacher traces, {right:.1%} conclude rightly.")

# %% [markdown]
# That reviewers are always right: copy them. So the calibrator reads the *model's own* traces instead, on clips that the model was
# not trained on, and the wrong and unreadable ones stay in.

# %%
own = wb.query(
    """SELECT traces.* FROM traces JOIN clips USING (clip_id)
       WHERE run_id = ? AND split = 'calibration' AND dataset = ?""",
    [run.id, run.about["dataset"]],
)
print(f"Of {len(own)} own traces, {(own.provisional == own.true_label).mean():.1%} conclude rightly.")

# %% [markdown]
# ## By hand: count
# The simplest calibrator is a table: when a trace said *this*, how often was the truth *that*?

# %%
import pandas as pd

counted = pd.crosstab(own.provisional, own.true_label, normalize="index")
counted.round(2)

# %% [markdown]
# Each row is a distribution over the truth: the sixty in a hundred from above. Its highest entry is the answer.

# %%
rule = counted.idxmax(axis=1)
copied = (rule.index == rule).sum()
print(f"For {copied} of {len(rule)} conclusions of a trace, the best guess is the same label again.")

# %% [markdown]
# The table knows how far to trust *theft*. It cannot know *which* thefts to doubt: for that, somebody must read the trace and watch
# the clip.

# %% [markdown]
# ## By the package: read and watch
# The calibrator is the reasoner itself, trained on: same weights to begin with, another question.

# %%
import textwrap

prompt = task.calibrator_prompt(found.clip_id, trace)
print("\n".join(textwrap.fill(line, 100) for line in prompt.splitlines()))

# %% [markdown]
# The clip goes in front of that text. The model then says, for each label, how likely it would be to answer just this and stop.

# %%
from deepintuit.reasoner import LocalReasoner
from deepintuit.reasoner.live import Models

models = Models(wb)
calibrator = models.get(run.id)
local = LocalReasoner(calibrator, task)
clip = next(it for it in task.clips(found.split) if it.clip_id == found.clip_id)
pair = local.encode([clip])[0]

# %%
from deepintuit.reasoner import fitted_ways, likelihood_scores

fitted = fitted_ways(run)
T = fitted["label_likelihood"]["temperature"]
read = {"as it is": likelihood_scores(calibrator, task, [pair], [trace], 1).probs(T)[0]}
pd.DataFrame(read, index=list(task.labels)).round(3).T

# %% [markdown]
# ## What does it read?
# **If you blank the trace and the answer stays, what was the trace for?** A *control* alters one thing and asks again. Three of them by
# hand, on this clip. First the trace is blanked: no rationale, no conclusion.

# %%
read["trace blanked"] = likelihood_scores(calibrator, task, [pair], [None], 1).probs(T)[0]

# %% [markdown]
# Then the video: every patch becomes the clip's mean patch.

# %%
blank = (clip, pair[1].blanked())
read["video blanked"] = likelihood_scores(calibrator, task, [blank], [trace], 1).probs(T)[0]

# %% [markdown]
# Then another clip's trace is put in its place.

# %%
other = wb.query(
    "SELECT text, truncated FROM traces WHERE run_id = ? AND provisional <> ? ORDER BY trace_id LIMIT 1",
    [scored.id, found.provisional],
).iloc[0]
swapped = task.parse(other.text, bool(other.truncated))
name = f"swapped for one that says {swapped.provisional}"
read[name] = likelihood_scores(calibrator, task, [pair], [swapped], 1).probs(T)[0]

# %%
pd.DataFrame(read, index=list(task.labels)).round(3).T

# %% [markdown]
# A fall may mean little: the swapped trace mostly names another label, so it shows that label words are read, not that the reasoning is.
# So conclusion and rationale are altered apart too, a trace is swapped for one *with the same conclusion*, and a video for another
# clip's, which the model is prepared for as it is not for blank frames.
#
# One clip is an anecdote. All controls over all clips of the split, against the same answers uncontrolled:

# %%
from deepintuit_analysis.numbers import interval, number
from deepintuit_analysis.report.gather import tabulate
from deepintuit_analysis.report.results import CONTROLS
from deepintuit_analysis.report.text import shown

table = tabulate(wb, [scored.id])
rows = {row.key[1:]: row for row in table.rows}
tried = {name: rows["label_likelihood", name] for name in CONTROLS if ("label_likelihood", name) in rows}
for name, row in tried.items():
    change = f"{number(row.change.value, sign=True)} points ({interval(row.change, sign=True)})"
    says = "no clear change" if row.change.high >= 0 >= row.change.low else CONTROLS[name].falls
    says = "better so: what was taken away misled it" if row.change.low > 0 else says
    print(f"{shown(name)}: {number(row.evaluation.accuracy.value)} % right, {change}, n = {row.n}: {says}")

# %% [markdown]
# An interval that holds 0 means: no clear difference, on so many clips. A calibrator that loses nothing without the video does not
# watch; one that loses nothing without the trace does not read. What it *uses* is not what it *needs*: for that, another one is trained
# without the video or the trace (`calibrate.without`), and a classifier learns from the traces' text alone.

# %%
missing = [shown(name) for name in CONTROLS if name not in tried]
print(f"{len(tried)} controls stand in this table. Not asked here:", ", ".join(missing) or "none")

# %% [markdown]
# ## Four ways to a distribution, one interface
# **Four traces of one clip say *theft*, *theft*, *routine*, and something unreadable. What is the probability of *theft*?** Count
# them, after giving each of the labels one vote for nothing, so that none is impossible:

# %%
K = len(task.labels)
print(f"(2 + 1) / (3 + {K}) = {3 / (3 + K):.2f}")

# %% [markdown]
# That is the vote. Every way gives the same thing, `Scores`, and a temperature turns scores into probabilities. A few validation
# clips, with the traces that were sampled for them:

# %%
import numpy as np

from deepintuit.reasoner import parsed

pairs = local.encode(task.clips("validation")[:24])
stored = run.read("traces").sort_values("sample").groupby("clip_id")
traces = [parsed(task, stored.get_group(clip.clip_id)) for clip, _ in pairs]
truth = np.array([task.labels.index(clip.label) for clip, _ in pairs])
print(f"{len(pairs)} clips, {len(traces[0])} traces each: the last one is greedy, the others were sampled")

# %%
from deepintuit.reasoner import vote_scores

ways = {"vote": vote_scores(task, [several[:-1] for several in traces])}

# %% [markdown]
# Label likelihood reads one trace, the greedy one. It is the paper's way.

# %%
greedy = [several[-1] for several in traces]
ways["label_likelihood"] = likelihood_scores(calibrator, task, pairs, greedy, 8)

# %% [markdown]
# Its mean over the sampled traces costs as many readings as there are traces.

# %%
from rich.progress import track

from deepintuit.reasoner import mean_scores

each = [
    likelihood_scores(calibrator, task, pairs, list(column), 8)
    for column in track(list(zip(*traces))[:-1], "Reading each trace")
]
ways["mean_likelihood"] = mean_scores(each)

# %% [markdown]
# The cheapest: a linear head on what the *frozen* reasoner thinks at the end of the question. Nothing is fine-tuned for it.

# %%
from deepintuit.reasoner import HEAD, LinearHead, Scores, hidden_states

hidden = hidden_states(models.get(run.parent), task, pairs, greedy, 8)
ways["linear_head"] = Scores(LinearHead.load(run.checkpoint / HEAD)(hidden), np.full(len(pairs), np.nan))

# %% [markdown]
# The first of these clips, by all four:

# %%
clip_0 = {shown(way): scores.probs(fitted[way]["temperature"])[0] for way, scores in ways.items()}
print("The truth:", pairs[0][0].label)
pd.DataFrame(clip_0, index=list(task.labels)).round(2).T

# %% [markdown]
# ## Temperature
# Scores of 2, 1 and 0 for three classes. **How sure is that?** It is for us to say: divide by T before the softmax.

# %%
scores = np.array([2.0, 1.0, 0.0])
for t in (0.5, 1, 2):
    print(f"T = {t}:", (np.exp(scores / t) / np.exp(scores / t).sum()).round(2))

# %% [markdown]
# The order never changes, so no answer does; only how sure it is. T is chosen where clips that were not trained on are least
# surprising (lowest NLL):

# %%
from deepintuit.metrics import fit_temperature, nll

logits = ways["label_likelihood"].logits_C_K
best = fit_temperature(logits, truth)
tried = sorted([0.25, 0.5, 1, 2, 4, best])
pd.DataFrame({"T": tried, "NLL": [nll(ways["label_likelihood"].probs(t), truth) for t in tried]}).round(3)

# %% [markdown]
# On all validation clips, each way with its own T. Above 1 the scores were too sure and had to be softened, below 1 too shy.

# %%
pd.DataFrame(fitted).T.rename(index=shown).astype({"n": int}).round(3)

# %% [markdown]
# ## The result
# Of the clips on which a system is 80 % sure, 80 % should be right: then it lies on the diagonal.

# %%
from deepintuit_analysis.report import reliability_figure

raw, after = rows["raw", "none"], rows["label_likelihood", "none"]
reliability_figure({
    "provisional label": raw.evaluation.bins,
    "calibrated, before T": after.untempered.evaluation.bins, "calibrated": after.evaluation.bins,
})

# %%
from IPython.display import Markdown

from deepintuit_analysis.report import sentence

Markdown(sentence(after))

# %% [markdown]
# And beside it what costs nothing: the table that we counted by hand, asked about the same clips.

# %%
asked = table.predictions.query("method == 'raw' and control == 'none'")
by_hand = (asked.provisional.map(rule) == asked.true_label).mean()
print(f"Provisional label {number(raw.evaluation.accuracy.value)} %, counted by hand {number(by_hand)} %, "
      f"calibrated {number(after.evaluation.accuracy.value)} % of {after.n} clips right.")

# %%
print(f"Labels fixed: {after.flips.wrong_to_right}. Broken: {after.flips.right_to_wrong}.")

# %% [markdown]
# **Is it more honest, and was it the temperature?** Two numbers may speak: ECE (how far confidence is off, in points) and NLL (how
# surprised it was by the truth). The same clips before and after, drawn anew many times; where the interval of the difference holds 0,
# nothing was shown.

# %%
from deepintuit_analysis.report.results import Comparison

for step, before in (("Calibration, from the provisional label", raw), ("Its temperature alone", after.untempered)):
    compared = Comparison.of(before, after)
    for name, change, scale, digits in (("ECE", compared.ece, 100, 1), ("NLL", compared.nll, 1, 3)):
        said = "better" if change.high < 0 else "worse" if change.low > 0 else "no clear difference"
        span = interval(change, scale, digits, sign=True)
        print(f"{step}: {name} {number(change.value, scale, digits, sign=True)} ({span}), {said}")

# %% [markdown]
# The two may disagree: ECE asks only how sure the answers are as a group, NLL pays for each clip. A temperature fitted on few validation
# clips may miss on others, and ECE on few clips reads too high even for an honest system.

# %% [markdown]
# The dashboard has the same under *Errors*: reliability, controls, and a threshold below which a person is asked.

# %%
show.app("errors", "Reliability and controls of this system", system=after.system, method=after.method)

# %% [markdown]
# ## Three questions
#
# 1. The calibrator was trained on traces sampled at temperature 1, and is asked about greedy ones. Which of the two groups holds more
#    mistakes, and what does that do to its trust?
# 2. Your calibrator loses nothing when the video is blanked. Is it useless?
# 3. A temperature is fitted on validation clips of your cameras. A new camera comes. What would you look at first?

# %% [markdown]
# ## What you have now
#
# A distribution for every clip instead of a label, four ways to get one, a temperature fitted on validation clips, with what it changed on
# others, and controls that say what the answer rests on.
#
# Next: [06, evaluation](06_evaluation.ipynb).
