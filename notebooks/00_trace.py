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
# A *reasoner* watches a clip and writes a *trace*: what it sees, what follows from that, and an answer. Rewards, calibration and error analysis all read
# traces. Here you read one, break it in every way it can be broken, parse it and score it.
#
# The first cell opens a workbench: yours, if all stages have ended in it, else the example that ships with the package, in a copy of its own.

# %%
import os

from deepintuit_homecam import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %% [markdown]
# ## A clip and what was written about it
#
# The evaluation of the last system holds one trace for each test clip. We take a well-formed one, and one that is right if there is any.

# %%
traces = bench.evaluation.read("traces")
traces["right"] = traces["provisional"] == traces["true_label"]
one = traces[traces["reason"].isna()].sort_values("right", ascending=False).iloc[0]

# %%
from deepintuit_analysis import show

show.clip(bench.file(one["clip_id"]), f"true label: {one['true_label']}")

# %% [markdown]
# That is what you see. A model is shown a few frames, each with its time. Frames are counted from 1, as traces count them.

# %%
from deepintuit import video

show.frames(video.read(bench.file(one["clip_id"]), bench.settings.video.frames))

# %% [markdown]
# And this is what it wrote, mark for mark. Check two of its sentences against the frames before you read on: a trace that sounds right is not yet one
# that looked.

# %%
import textwrap

print(textwrap.fill(one["text"], 100))

# %% [markdown]
# ## From text to value
#
# Nothing can be counted on a text. `parse` turns it into a value: the segments with their places, and the answer as one of the labels.

# %%
from deepintuit.trace import parse

labels = bench.manifest.labels
parsed = parse(one["text"], bench.settings.prompt.grammar, labels)
show.trace(parsed, "the trace")

# %%
parsed.label, dict(parsed.spans)

# %% [markdown]
# The same text without one closing mark reads almost the same to you. Not to the parser:

# %%
cut = one["text"].replace("</think>", "")
show.trace(parse(cut, bench.settings.prompt.grammar, labels), "without </think>")

# %% [markdown]
# That is the pair; here is the definition. A text is a **`Trace`** when every segment of its grammar occurs once, in order, none inside another, none empty, with nothing but white
# space around them, and the answer is a label. Everything else is a **`Malformed`**, with one reason. Nothing is repaired: a model that is forgiven does not learn the form.

# %% [markdown]
# ## Break it in every way
#
# We write the same thought in the plainest grammar, think and answer, and spoil it eleven times.

# %%
from deepintuit.trace import Reason, render

think = parsed.segment("think").strip()
good = render("think-answer", think=think, answer=parsed.label)
thought, answer = f"<think>{think}</think>", f"<answer>{parsed.label}</answer>"

# %%
broken = {
    "nothing at all": "",
    "cut at the token limit": good[: len(good) // 2],
    "never answers": thought,
    "answers what is no label": f"{thought}<answer>a unicorn</answer>",
    "a tag left open": good.replace("</think>", ""),
    "answers without thinking": answer,
    "one tag inside another": f"<think>{think}{answer}</think>",
    "answers twice": good + answer,
    "small talk in front": f"Sure, here it is! {good}",
    "the answer first": answer + thought,
    "thinks nothing": f"<think> </think>{answer}",
}

# %%
verdicts = {
    name: parse(text, "think-answer", labels, truncated="limit" in name) for name, text in broken.items()
}
assert {found.reason for found in verdicts.values()} == set(Reason), "every reason is seen once"

# %%
import pandas as pd

rows = {name: [found.reason, found.detail, found.label or "none"] for name, found in verdicts.items()}
pd.DataFrame(rows, index=["reason", "detail", "answer that can be read all the same"]).T

# %% [markdown]
# The last column: where exactly one closed answer stands, it is beyond doubt even in a malformed text. A text with two answers hedges, and counts as none.
#
# ## Score it
#
# By hand: one point for the right answer, one for the form. The good trace, were its own answer the true one, gets 1 + 1 = 2. The one without `</think>` gets 1 + 0 = 1, since its
# answer is beyond doubt and its form is not. By package:

# %%
from deepintuit.rewards import score

whole = parse(good, "think-answer", labels)
score(whole, true_label=parsed.label)

# %%
scores = {"as it was": whole, **verdicts}
pd.DataFrame({name: vars(score(found, parsed.label)) for name, found in scores.items()}).T

# %% [markdown]
# A score keeps its evidence: what was answered, and why it was malformed. "No answer" is an answer of its own, and is counted on its own line everywhere.
#
# ## What all traces of the workbench say
#
# The same two numbers over every stored trace: the teacher's, and those that the models wrote on test clips after each stage. The baseline beside them is the class that is commonest
# in training: it writes no trace at all.

# %%
from deepintuit.metrics import wilson

stages = {"teacher": bench.teach.read("traces")}
for run in bench.evaluations:
    if run.parent in (bench.cold.id, bench.grpo.id):
        stages[run.summary["system"]] = run.read("traces")
formed = [wilson(rows["reason"].isna().sum(), len(rows)) for rows in stages.values()]
right = [wilson((rows["provisional"] == rows["true_label"]).sum(), len(rows)) for rows in stages.values()]

# %%
clips = bench.manifest.usable()
common = clips.loc[clips["split"] != "test", "label"].mode()[0]
asked = clips[clips["split"] == "test"]
majority = wilson((asked["label"] == common).sum(), len(asked))

# %%
from deepintuit_analysis.report import stages_figure

stages_figure(
    [*stages, f"always {common}"], [*formed, None], [*right, majority],
    series=("well-formed", "well-formed and right"), quantity="Share of traces",
    title="Form comes first, being right is another matter",
)

# %%
last, n = list(stages)[-1], len(list(stages.values())[-1])
above = "above" if right[-1].low > majority.high else "not clearly above"
show.words(
    f"Of the system {last!r}, {formed[-1].value:.0%} of {n} traces are well-formed,",
    f"and {right[-1].value:.0%} are right as well, {above} the {majority.value:.0%} of always saying {common}.",
    f"The teacher, whose traces are imitated, is right in {right[0].value:.0%}: it is not an oracle.",
    "In a small workbench the model has seen few clips for a short time." if bench.small else "",
)

# %% [markdown]
# On the dashboard, every one of these traces opens beside its clip, with frames that seek and tokens coloured by how sure the model was.

# %%
show.app(
    "traces", "This trace on the Traces page",
    run=bench.evaluation.id, clip=one["clip_id"], trace=one["trace_id"],
)

# %% [markdown]
# ## Three questions
#
# 1. Which of the eleven reasons would a longer token limit cure, and which not?
# 2. A text with two answers counts as none. Whom would a kinder rule help: the model, or you?
# 3. What in the trace above would read differently if the model had not looked at the clip at all?

# %% [markdown]
# ## What you have now
#
# - A text that is a value: a `Trace` with its segments, or a `Malformed` with one of eleven reasons.
# - A score that keeps its evidence.
# - Two numbers for any pile of traces, with intervals, beside a baseline that writes none.
#
# Next: [01, clips and labels](01_clips_and_labels.ipynb), where the clips come from and how they give themselves away.
