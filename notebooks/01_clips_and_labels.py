# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Clips and labels
#
# A classifier of videos can be right for the wrong reason: it has seen this home before, or the file gives the label away, or somebody's notes do. Here you see what is asked
# (*open-instance* classes), how clips are divided so that nothing leaks, and what can be scored without watching anything.

# %%
import os

from deepintuit_homecam import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %% [markdown]
# ## One label, two instances
#
# Here are two clips of one label: one to train on, one to test on. What do they have in common?

# %%
clips = bench.manifest.usable()
label = clips.loc[clips["split"] == "test", "label"].mode()[0]
alike = clips[clips["label"] == label]
pair = [alike[alike["split"] == split].iloc[0] for split in ("coldstart", "test")]

# %%
from deepintuit import video
from deepintuit_analysis import show

show.row(*(
    show.frames(video.read(clip.path, 4), f"{clip.split}: {clip.label}", height=80) for clip in pair
))

# %% [markdown]
# Not a pixel needs to be alike. A class like *normal*, *theft* or *hateful* is **open-instance**: nobody can list what belongs to it, and a new instance may look like none before. What
# holds the class together is a meaning, and the label set is where that meaning is written down.

# %%
labels = bench.manifest.labels
for name in labels:
    print(f"{name:14}{labels.definitions.get(name, '(no definition was given)')}")

# %% [markdown]
# An answer has to name a label exactly, after case, spaces and quotes are folded. What else should count goes under aliases, where everybody can see it.

# %%
words = (label.upper(), f' "{label}." ', f"{label} or so", *list(labels.aliases)[:2])
{word: labels.resolve(word) for word in words}

# %% [markdown]
# ## Splits that don't leak
#
# Each stage has clips of its own: cold start imitates on one part, GRPO explores on another, the calibrator learns from a third what the model does on clips it was not trained on.

# %%
import pandas as pd

pd.crosstab(clips["split"], clips["label"], margins=True, margins_name="all")

# %% [markdown]
# First by hand, the way that leaks: shuffle the training clips, and cut. How many sources (homes, cameras, channels) then stand on both sides?

# %%
train = clips[clips["split"] != "test"].sample(frac=1, random_state=0)
half = len(train) // 2
both = set(train["group"][:half]) & set(train["group"][half:])
f"{len(both)} of {train['group'].nunique()} sources are on both sides of the cut"

# %% [markdown]
# A model that recognises the wallpaper is then asked about wallpaper it knows. Now by package: whole groups go to one side, with labels as even as that allows.

# %%
from deepintuit.data import Manifest, assign_splits

frame = bench.manifest.frame
free = frame[frame["split"] != "test"].assign(given_split=None)
free = Manifest(bench.workbench.path, "free", free, labels)
divided = assign_splits(free, {"coldstart": 0.5, "grpo": 0.5}, seed=0).usable()

# %%
sides = divided.groupby("group")["split"].nunique()
f"{(sides > 1).sum()} of {len(sides)} sources are on both sides"

# %% [markdown]
# And test? In how many splits of this workbench does each source occur?

# %%
clips.groupby("group")["split"].nunique().value_counts().rename_axis("splits").to_frame("sources")

# %% [markdown]
# ## What scores without watching
#
# One clip of each label, and nothing but what its file says of itself. Could you tell the label?

# %%
from deepintuit.data import container_features

each = clips.groupby("label").head(1)
container_features(each).set_axis(each["label"]).T.round(1)

# %% [markdown]
# Now notes: what annotators (here: the renderer) wrote about the clip. No model is ever shown them, and this is why.

# %%
notes = tuple(sorted({name for texts in clips["notes"] for name in texts}))
pair[0].notes or "These clips came without notes."

# %% [markdown]
# Three rivals that never see a frame are fitted on the training clips and asked about the test clips: the commonest class; the container's metadata (seconds, size, bitrate …); and TF-IDF on the
# notes, which has to be allowed by name, and is answered with a warning. They run in a throw-away copy of the workbench.

# %%
from deepintuit import baselines

shown = bench.settings.replace(clips={"notes_shown": notes})
leaks = baselines.simple(bench.scratch(), shown)

# %% [markdown]
# Beside them stands the system of this workbench, which does watch.

# %%
from deepintuit_analysis.report import stages_figure, table_of

answers = pd.concat([leaks.read("predictions"), bench.evaluation.read("predictions")])
sources = dict(zip(clips["clip_id"], clips["group"]))
rows = table_of(answers, labels, bench.settings.evaluate, groups=sources)
by_key = {row.key: row.evaluation.accuracy for row in rows}

# %%
system = bench.evaluation.summary["system"]
names = {"majority": "commonest class", "metadata": "container metadata", "text": "TF-IDF on the notes"}
known = {name: words for name, words in {**names, system: system}.items() if (name, "raw", "none") in by_key}
calibrated = [by_key.get((name, bench.settings.evaluate.method, "none")) for name in known]

# %%
raw = [by_key[name, "raw", "none"] for name in known]
stages_figure(
    list(known.values()), raw, calibrated, title="What can be scored without watching, beside what watches"
)

# %%
found, best = dict(zip(known, raw)), calibrated[-1] or raw[-1]
n = (clips["split"] == "test").sum()
leak = "beats" if found["metadata"].low > found["majority"].high else "does not clearly beat"
show.words(
    f"On {n} test clips, metadata alone {leak} the commonest class",
    f"({found['metadata'].value:.0%} against {found['majority'].value:.0%}).",
    f"Notes alone score {found['text'].value:.0%}: whoever is shown them has that without a look." if notes else "",
    f"The system that watches is right on {raw[-1].value:.0%} by its traces, on {best.value:.0%} calibrated.",
    "That is not clearly above what a file says of itself." if found["metadata"].high > best.low else "",
    "Notes score more: who wrote them saw more." if notes and found["text"].value > best.value else "",
)

# %% [markdown]
# On public data it is no different: on SmartHome-Bench, TF-IDF on the annotators' descriptions scores 85.2 % on the paper's test ids, and on their reasonings 99.5 % (README, *Before you trust a number*).
#
# The dashboard shows the same rivals beside every system.

# %%
show.app("errors", "The Errors page, where systems are compared", dataset=bench.settings.clips.dataset)

# %% [markdown]
# ## Three questions
#
# 1. Your clips come from ten cameras. What should the group be: the camera, the place, or the day?
# 2. Metadata beats the commonest class on your data. Which column does it, and what would you do about it?
# 3. Which of your own notes would you be glad to show a model, and would you still believe the score?

# %% [markdown]
# ## What you have now
#
# - A label set whose meaning is written down, and which answers count as which label.
# - Splits in which no source stands on two sides, and a way to see it.
# - Three scores that need no video. Everything from here on is read against them.
#
# Next: [02, cold start](02_cold_start.ipynb).
