# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Rewards and advantages
#
# The model writes several traces for one clip. Some are right. How does that become a push on each token? By sums that fit on a napkin. We do them by hand on `[1, 1, 0, 0]`, then by package,
# then on a real completion, token by token.

# %%
import os

from deepintuit_homecam import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %% [markdown]
# ## Better than its group
#
# Four traces of one clip: two right, two wrong. And four traces of another: one right, three wrong. Should the one right trace be pushed as much as each of the two?

# %%
import numpy as np

two, one = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])
(two - two.mean()) / two.std(ddof=1), (one - one.mean()) / one.std(ddof=1)

# %% [markdown]
# No: what is rare counts more. That is an **advantage**: the reward minus the group's mean, over its spread. By package:

# %%
from deepintuit.advantage import group_advantages

group_advantages([two, one]).round(3)

# %% [markdown]
# ## Groups that agree
#
# All right, or all wrong: the mean is the reward, the spread is zero. By hand that would be 0 / 0. By package it is exactly nothing, since a group that agrees with itself says nothing about which of its
# traces is better.

# %%
group_advantages([[1, 1, 1, 1], [0, 0, 0, 0]])

# %% [markdown]
# Two lessons: an easy clip teaches nothing, and neither does one that is too hard. **Dynamic sampling** keeps only groups with some right and some wrong, and draws further clips instead of the others.

# %%
from deepintuit.advantage import kept_by_dynamic_sampling, zero_variance_share

groups = np.array([two, one, [1, 1, 1, 1], [0, 0, 0, 0]])
kept_by_dynamic_sampling(groups), zero_variance_share(groups)

# %% [markdown]
# ## Too long
#
# A trace that is cut at the limit has lost its answer. A cliff teaches little: at one token below the limit all is well, one more and all is lost. DAPO's penalty is a slope instead.

# %%
from deepintuit.rewards import overlong_penalty

{length: overlong_penalty(length, max_length=200, cache=50) for length in (100, 150, 175, 190, 200, 260)}

# %% [markdown]
# ## Only upwards
#
# The paper writes its objective with weights that are never negative: softmax of the rewards over the group. Nothing is pushed down; a low temperature τ leaves all weight on the best.

# %%
from deepintuit.advantage import softmax_weights

{tau: softmax_weights(two, tau).round(3) for tau in (10, 1, 0.1)}

# %% [markdown]
# Compare with the advantages above: those add up to zero, these to one. Which is better is a question to measure (`grpo.objective`), not one of taste.
#
# ## A real group
#
# One group from this workbench's GRPO run: the traces of one clip in one update, best and worst beside each other, with what they earned.

# %%
written = bench.grpo.read("traces").query("stage == 'grpo'")  # a data filter's traces before it are pushed nowhere
rollouts = written.drop_duplicates("trace_id", keep="last").set_index("trace_id")
scores = bench.grpo.read("scores")
rollouts = rollouts.join(scores.pivot_table(index="trace_id", columns="name", values="value", aggfunc="last"))

# %%
spread = rollouts.groupby(["step", "clip_id"])["reward"].std()
step, clip_id = spread.idxmax()
group = rollouts[(rollouts["step"] == step) & (rollouts["clip_id"] == clip_id)]
group = group.sort_values("reward", ascending=False)

# %%
asked = ["provisional", "true_label", "reason", "accuracy", "format", "reward", "advantage"]
group[asked].fillna({"reason": ""}).reset_index(drop=True).round(3)

# %%
from deepintuit.reasoner import Task, parsed
from deepintuit_analysis import show

task = Task(bench.workbench.path, bench.settings)
best, *_, worst = parsed(task, group)
show.row(show.trace(best, "most reward"), show.trace(worst, "least"))

# %% [markdown]
# The stored advantages are what the package gives for the stored rewards, to the last digit:

# %%
float(np.abs(group_advantages(group["reward"]) - group["advantage"]).max())

# %% [markdown]
# ## Down to the tokens
#
# Plain GRPO gives every token of a trace the same advantage: a good look at the clip is punished with the wrong conclusion drawn from it. **Process-aware** rewards (VideoP2R) score seeing and concluding apart. For that a trace
# needs a segment for each: observation, think, answer.

# %%
from deepintuit.trace import outer_spans, parse, render

whole = next(trace for trace in reversed(parsed(task, group)) if trace.ok)
seen, _, concluded = whole.segment("think").strip().partition(" So ")
parts = {"observation": seen, "think": f"So {concluded or 'it is.'}", "answer": whole.label}
told = parse(render("observation-think-answer", **parts), "observation-think-answer", task.labels)

# %%
show.trace(told)

# %% [markdown]
# Now two rewards in a group of four: who saw rightly `[1, 1, 0, 0]`, who concluded rightly `[0, 1, 0, 1]`. Each is compared within its own column. Suppose that ours is the first of the four: it saw well and concluded badly.

# %%
seeing, concluding = group_advantages([[1, 1, 0, 0], [0, 1, 0, 1]])[:, 0].round(3).tolist()
by_segment = {"observation": seeing, "think": concluding, "answer": concluding}
by_segment

# %% [markdown]
# Tokens have no segments; they have places in the text, character offsets. A token belongs to the segment that holds most of its characters:

# %%
from deepintuit.advantage import token_advantages
from deepintuit.vlm import VLM, character_offsets

vlm = VLM.load(bench.settings.model, bench.settings.video)
offsets_T = character_offsets(vlm.tokenizer, vlm.target_ids(told.text)[:-1])
offsets_T[:4].tolist(), [told.text[start:end] for start, end in offsets_T[:4]]

# %%
advantages_T = token_advantages(offsets_T, outer_spans(told), by_segment)
meaning = "blue is pushed up, vermilion (underlined) down; hover for the number"
show.tokens(told.text, offsets_T, advantages_T, meaning)

# %% [markdown]
# Look closely at the borders. Where a token was merged across one, it has characters of two segments; the one with more of them takes it, and on a tie the earlier:

# %%
borders = [end for _, end in outer_spans(told).values()]
tokens = zip(offsets_T.tolist(), advantages_T.round(2).tolist())
[(told.text[a:b], push) for (a, b), push in tokens if any(a < end < b for end in borders)]

# %% [markdown]
# ## How many groups teach
#
# Back to the plain reward, over all groups of the run: how many of their traces were right? The line is a baseline: what chance would give, if every clip were equally hard.

# %%
from scipy.stats import binom

G, rate = bench.settings.grpo.group, rollouts["accuracy"].mean()
right_N = rollouts.groupby(["step", "clip_id"])["accuracy"].sum().round().astype(int)
count = np.bincount(right_N.clip(upper=G), minlength=G + 1)
chance = len(right_N) * binom.pmf(np.arange(G + 1), G, rate)

# %%
import plotly.graph_objects as go

from deepintuit_analysis.report.figures import CALIBRATED, RAW, finished

silent = count[0] + count[G]
right = list(range(G + 1))
figure = go.Figure(go.Bar(x=right, y=count, name="groups", marker_color=CALIBRATED))
figure.add_scatter(x=right, y=chance, name="if all clips were equally hard", line=dict(color=RAW, dash="dot"))
finished(figure, f"{silent} of {len(right_N)} groups agree on accuracy, and teach nothing about it", 260,
         xaxis_title="right traces in a group", yaxis_title="groups")

# %%
luck = chance[0] + chance[G]
differ = "clips differ, and the easy and the hard ones are paid for in vain"
differ = differ if silent > 1.25 * luck else "that is about what chance gives"
show.words(
    f"{rate:.0%} of {len(rollouts)} sampled traces were right.",
    f"{count[0]} of {len(right_N)} groups were all wrong and {count[G]} all right:",
    f"{silent / len(right_N):.0%} of the sampling taught nothing about the answer.",
    f"Were all clips equally hard, it would be {luck / len(right_N):.0%}; {differ}.",
    "The run is short: take the shape and not the numbers." if bench.small else "",
)

# %% [markdown]
# On the dashboard, every group of every update can be opened beside its clip.

# %%
where = {"run": bench.grpo.id, "tab": "rollouts", "step": int(step), "clip": clip_id}
show.app("runs", "This group on the Runs page", **where)

# %% [markdown]
# ## Three questions
#
# 1. The reward is accuracy plus format. When all eight traces are wrong but one is malformed, what does the group teach?
# 2. Why is the spread taken within a group and not over the whole batch?
# 3. Who should say whether an observation was sufficient, and how could a model please that judge without looking?

# %% [markdown]
# ## What you have now
#
# - Advantages of a group, by hand and by package, and the cases in which there are none.
# - Rewards of whole traces and of their parts, laid over tokens.
# - The share of sampling that teaches nothing, beside what chance would give.
#
# Next: [04, GRPO](04_grpo.ipynb): what these numbers do to a model.
