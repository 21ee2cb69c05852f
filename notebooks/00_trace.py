# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · A trace
#
# A reasoner watches a clip and writes a *trace*: what it sees, what follows, and an answer. Everything later (rewards, calibration, error
# analysis) reads traces. Here you read one, break one, parse one and score one.

# %%
import os

from deepintuit import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %% [markdown]
# ## Three questions
#
# 1. Which reasons to be malformed would a longer token limit cure, and which not?
# 2. A text with two answers counts as none. Whom would a kinder rule help: the model, or you?
# 3. What would you see in this trace if the model had not looked at the clip at all?

# %% [markdown]
# ## What you have now
#
# A text that is a value: a `Trace` with its segments, or a `Malformed` with its reason.
#
# Next: [01, clips and labels](01_clips_and_labels.ipynb).
