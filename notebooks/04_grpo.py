# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · GRPO
#
# Sample a group of traces for each clip, score each, push the good ones up. Here is one real update of the model, looked at from both sides: what was sampled, and what the update did to it. Then the
# curve of a whole run, dips included.

# %%
import os

from deepintuit_homecam import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %% [markdown]
# ## How far one update may go
#
# A token had probability 0.2 when it was sampled. After half an update it has 0.3: half as much again. Should a good trace push it further? And a bad trace pull it back?

# %%
import numpy as np

low, high = 1 - bench.settings.grpo.epsilon_low, 1 + bench.settings.grpo.epsilon_high
ratio = 0.3 / 0.2
{f"advantage {a:+}": round(float(min(ratio * a, np.clip(ratio, low, high) * a)), 2) for a in (1, -1)}

# %% [markdown]
# In the good trace the gain is cut at the upper bound: no further push from there. In the bad trace nothing is cut, and it is pulled back with all force. That is PPO's **clipped ratio**; DAPO, the default here, sets the
# upper bound higher than the lower, so that rare tokens can still rise. With one update a round, as here, the ratio begins at 1 and the bounds seldom matter.
#
# ## One real update
#
# Eight clips, a group of traces each, one step from the cold-started weights. This is the real stage, cut short; what it makes goes to a throw-away copy of the workbench, with at most 32 clips of each split.

# %%
from deepintuit import grpo

settings = bench.settings.grpo.replace(max_steps=1, clips_per_step=8, check_clips=0, filter_rollouts=0, warmup_steps=0)
scratch = bench.scratch(32)
step = grpo.run(scratch, bench.settings.replace(grpo=settings), start=bench.cold.id)

# %%
scores = step.read("scores").pivot_table(index="trace_id", columns="name", values="value")
rollouts = step.read("traces").set_index("trace_id").join(scores)
groups = rollouts.groupby("clip_id").agg(
    label=("true_label", "first"), right=("accuracy", "sum"),
    well_formed=("format", "sum"), spread=("reward", "std"),
)
groups.astype({"right": int, "well_formed": int}).round(2)

# %% [markdown]
# Each line is a group. Where the spread is 0, nothing was learned. We look into the group with the largest.

# %%
from deepintuit.reasoner import LocalReasoner, Task, parsed
from deepintuit_analysis import show

task = Task(bench.workbench.path, bench.settings)
clip_id = rollouts.groupby("clip_id")["reward"].std().idxmax()
group = rollouts[rollouts["clip_id"] == clip_id].sort_values("reward", ascending=False)

# %%
show.clip(bench.file(clip_id), f"true label: {group['true_label'].iloc[0]}", width=240)

# %%
best, *_, worst = parsed(task, group)
most, *_, least = group["advantage"]
show.row(show.trace(best, f"advantage {most:+.2f}"), show.trace(worst, f"advantage {least:+.2f}"))

# %% [markdown]
# ## Did it push?
#
# The same traces, read by the weights before and after the update: how probable is each now? Up should go with a positive advantage, down with a negative one.

# %%
from deepintuit.vlm import VLM, token_logprobs

model, frames, cache = bench.settings.model, bench.settings.video, bench.workbench.cache
before, after = (VLM.load(model, frames, checkpoint=run.checkpoint, cache=cache) for run in (bench.cold, step))

# %%
clips = {clip.clip_id: clip for clip in task.clips("grpo")}
[(clip, encoded)] = LocalReasoner(before, task).encode([clips[clip_id]])
prompts = [before.prompt_ids(encoded, task.reasoner_prompt(clip_id))] * len(group)
written = [list(ids) for ids in group["token_ids"]]

# %%
sums = {}
for name, vlm in {"before": before, "after": after}.items():
    logprobs_G = token_logprobs(vlm, [encoded] * len(group), prompts, written)
    sums[name] = [logprobs_T.sum().item() for logprobs_T in logprobs_G]

# %%
pushed = group[["provisional", "reward", "advantage"]].assign(**sums).reset_index(drop=True)
pushed["change"] = pushed["after"] - pushed["before"]
pushed.round(3)

# %%
agree = (np.sign(pushed["change"]) == np.sign(pushed["advantage"])).sum()
show.words(
    f"{agree} of {len(pushed)} traces moved the way their advantage points.",
    "An update is shared by all groups and all tokens: traces of one clip have most of their words in common,",
    "so pushing one moves the others too.",
)

# %% [markdown]
# ## A whole run
#
# One update is nothing. These are the steps of the run that this workbench holds. The first point of each panel was sampled before any update: that is the baseline, the cold start itself.
# Every point is of other clips, so some jumps are theirs.

# %%
from deepintuit_analysis.report import training_figure

steps = bench.grpo.read("steps")
training_figure(steps)

# %%
from deepintuit_analysis.report import health

right = steps[steps["name"] == "accuracy"].sort_values("step")["value"].to_numpy()
dip = int((right - np.maximum.accumulate(right)).argmin())
show.words(
    f"Right answers: {right[0]:.0%} of the traces before any update,",
    f"{right[-10:].mean():.0%} over the last {min(10, len(right))} of {len(right)} updates.",
    f"The deepest dip, to {right[dip]:.0%}, came at update {dip}.",
    *(remark.text for remark in health.remarks(steps)),
)

# %% [markdown]
# These sentences are computed from the stored steps by `report.health`, the reader that also stands on the dashboard. A data filter leaves clips that the model gets right sometimes (`grpo.filter_rollouts`), so their
# share is no accuracy on all clips. What GRPO was worth on test clips, beside cold start alone and over three seeds, is in README's first table.

# %%
show.app("runs", "This run on the Runs page", run=bench.grpo.id, tab="training")

# %% [markdown]
# ## Three questions
#
# 1. In another run the share of groups that teach nothing rises while accuracy rises. Is that a failure?
# 2. In a third one entropy falls from the first update to the last. What would you look at to tell sharpening from collapse?
# 3. Which single change would you try first when reward stays within its noise: harder clips, larger groups, or a higher rate?

# %% [markdown]
# ## What you have now
#
# - One update, from sampled groups to moved probabilities, on your own machine.
# - A whole run's curve, and a reader that says in words what it shows.
#
# Next: [05, calibration](05_calibration.ipynb): when to trust what the model says.
