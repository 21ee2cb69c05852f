# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Cold start
#
# A model that only perceives knows neither the rule nor quite the form, so hardly anything it samples could be rewarded. Cold start shows it how: a teacher writes traces, the right ones are kept,
# and the model imitates them token by token. Here you look at what is kept, compute the loss of one trace, imitate a few, and read the same clip before and after.

# %%
import os

from deepintuit_homecam import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %% [markdown]
# ## What the teacher wrote
#
# One trace that was kept, and one that was dropped. Which is which?

# %%
scores = bench.teach.read("scores")
kept_ids = set(scores.loc[(scores["name"] == "kept") & (scores["value"] == 1), "trace_id"])
taught = bench.teach.read("traces").assign(kept=lambda rows: rows["trace_id"].isin(kept_ids))

# %%
from deepintuit.reasoner import Task, parsed
from deepintuit_analysis import show

task = Task(bench.workbench.path, bench.settings)
pair = taught.groupby("kept").head(1)
both = zip(parsed(task, pair), pair["true_label"])
show.row(*(show.trace(trace, f"true label {label}") for trace, label in both))

# %% [markdown]
# A trace is kept when it is well-formed and its answer is the clip's label. Whether its *reasons* are true nobody checks: a teacher that sees wrongly and concludes rightly is imitated as well.

# %%
outcome = taught["reason"].fillna("wrong label").mask(taught["kept"], "kept")
outcome.rename("outcome").value_counts().to_frame("traces")

# %% [markdown]
# ## What imitation means
#
# By hand: the model gives each token of the teacher's text a probability. Say three tokens had 0.9, 0.5 and 0.1. The loss is the mean of their negative logarithms: nearly all of it is the
# token that surprised.

# %%
import numpy as np

surprise = -np.log([0.9, 0.5, 0.1])
surprise.round(2), round(float(surprise.mean()), 2)

# %% [markdown]
# By package: the same on a kept trace, with the model as it was before any training.

# %%
from deepintuit.reasoner import LocalReasoner
from deepintuit.vlm import VLM, character_offsets, token_logprobs

untouched = VLM.load(bench.settings.model, bench.settings.video, cache=bench.workbench.cache)

# %%
example = taught[taught["kept"]].iloc[0]
[clip] = [clip for clip in task.clips("coldstart") if clip.clip_id == example["clip_id"]]
[(_, encoded)] = LocalReasoner(untouched, task).encode([clip])
prompt = untouched.prompt_ids(encoded, task.reasoner_prompt(clip.clip_id))
target = untouched.target_ids(example["text"])

# %%
[logprobs_T] = token_logprobs(untouched, [encoded], [prompt], [target])
logprobs_T = logprobs_T.detach().float().numpy()
f"{len(target)} tokens, loss {-logprobs_T.mean():.2f} nats a token"

# %%
show.tokens(example["text"], character_offsets(untouched.tokenizer, target[:-1]), -logprobs_T[:-1],
            "the stronger the colour, the less the untouched model expected this token")

# %% [markdown]
# The strong colours are what it has to learn. (With the embedded model, what is *seen* costs little, since it was trained on captions; the rule and the conclusion are new to it.)
#
# ## A few steps
#
# Up to 64 of the kept traces, each imitated once. This is the real stage with fewer rows; what it makes goes to a throw-away copy of the workbench, with at most 96 clips of each split.

# %%
from deepintuit import coldstart

scratch = bench.scratch(96)
few = bench.settings.replace(coldstart={"epochs": 1.0, "limit": 64})
run = coldstart.run(scratch, few, teacher=bench.teach.id)

# %%
models = {"untouched": untouched}
for name, made in {f"{run.summary['steps']} updates": run, "the whole stage": bench.cold}.items():
    models[name] = VLM.load(
        bench.settings.model, bench.settings.video, checkpoint=made.checkpoint, cache=bench.workbench.cache
    )

# %% [markdown]
# The same trace, the same loss, three models:

# %%
read = {name: token_logprobs(vlm, [encoded], [prompt], [target])[0] for name, vlm in models.items()}
{name: round(-logprobs_T.mean().item(), 2) for name, logprobs_T in read.items()}

# %% [markdown]
# And a test clip, from a source that no training clip shows. What does each write about it?

# %%
test = task.clips("test")[0]
show.clip(bench.file(test.clip_id), f"true label: {test.label}", width=240)

# %%
shown, most = [], bench.settings.sampling.max_tokens
for name, vlm in models.items():
    [(_, _, [sample])] = LocalReasoner(vlm, task).groups([test], [0], temperature=0, max_tokens=most)
    shown.append(show.trace(task.parse(sample.text, sample.truncated), name))

# %%
show.row(*shown)

# %% [markdown]
# ## Is it worth the words?
#
# The rival is plain: the same model, the same clips, the same recipe, trained on labels alone (Direct-SFT). If traces were only decoration, it would do as well.

# %%
import pandas as pd

from deepintuit_analysis.report import stages_figure, table_of

own = next((run for run in bench.evaluations if run.parent == bench.cold.id), bench.evaluation)
plain = (None, bench.labels.id if bench.labels else None)
rivals = [run for run in bench.evaluations if run.parent in plain]
answers = pd.concat([run.read("predictions") for run in (*rivals, own)])
homes = bench.manifest.frame.set_index("clip_id")["group"].dropna().to_dict()

# %%
table = table_of(answers, task.labels, bench.settings.evaluate, groups=homes)
rows = [row for row in table if row.method == "raw" and row.control == "none"]
right = {row.system: row.evaluation.accuracy for row in rows}
title = "Imitated traces beside labels alone, on test clips"
stages_figure(list(right), list(right.values()), [None] * len(right), title=title)

# %%
name = own.summary["system"]
mine = right[name]
best = max((other for other in right if other != name), key=lambda other: right[other].value)
rival = right[best]
verdict = "not clearly different from"
verdict = "clearly better than" if mine.low > rival.high else verdict
verdict = "clearly worse than" if mine.high < rival.low else verdict
show.words(
    f"The system {name!r} answers {mine.value:.0%} of {rows[0].n} test clips right",
    f"({mine.low:.0%} to {mine.high:.0%}), {verdict} the best of its rivals here, {best},",
    f"with {rival.value:.0%} ({rival.low:.0%} to {rival.high:.0%}).",
    "It was trained for a minute on few traces." if bench.small else "",
    "Whether reasons pay is decided on more; README's first table has that." if bench.small else "",
)

# %% [markdown]
# The dashboard shows the stage's curve, and what was imitated.

# %%
show.app("runs", "This cold start on the Runs page", run=bench.cold.id, tab="training")

# %% [markdown]
# ## Three questions
#
# 1. The teacher errs on purpose in some traces that were kept. How would you find those where seeing was wrong and the answer right?
# 2. The loss counts every token alike. Which tokens of the trace above would you weigh more, and what would that break?
# 3. What would the labels-only rival need to be a fair one: the same clips, the same updates, or the same number of tokens?

# %% [markdown]
# ## What you have now
#
# - Traces that were kept, and the reasons of those that were not.
# - A loss that you can compute by hand, and a model that writes the form.
# - A first comparison with labels alone.
#
# Next: [03, rewards and advantages](03_rewards_and_advantages.ipynb): what to do once the model can write traces of its own.
