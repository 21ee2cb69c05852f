# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Your own videos
#
# You have two hundred clips from eight cameras, sorted into folders by what happens. A model that you train on them is right on 90 % of
# the clips that you kept aside. **Will it be right on 90 % of the clips of a ninth camera?**
#
# Here your folder becomes a dataset whose splits can answer that, goes through all stages, and ends in the table of
# [06](06_evaluation.ipynb). First everything runs on a stand-in in a minute: rendered clips, and a model as small as a toy. Then change
# the settings in the second cell, restart the kernel and run all cells again: there is nothing to change further down.

# %%
import os

from deepintuit_homecam import demo

WORKBENCH = os.environ.get("DEEPINTUIT_HOME", "../workbench")  # or the path of your own
bench = demo.finished(WORKBENCH)

# %%
VIDEOS = None  # your folder: one folder a label, clips inside; None: the stand-in
TABLE = None  # a CSV with path (below VIDEOS), label, and the source of each clip; None: folders alone
GROUP = "group"  # that CSV's column with the source video or camera
MINE = None  # a workbench to keep it all in; None: a folder that is removed when the kernel ends
CONFIG = "../configs/tiny.toml"  # the toy; with a GPU: "../configs/qwen2.5-vl-7b-lora.toml"
ENDPOINT = os.environ.get("OPENAI_BASE_URL", "")  # a teacher's address, such as http://127.0.0.1:8000/v1
TEACHER = ""  # the model's name there

# %% [markdown]
# ## The stand-in
# Clips of two labels from the workbench, laid into folders as somebody would who has never heard of this project, and a table that says
# which source each one comes from.

# %%
import tempfile
from pathlib import Path

from deepintuit.data import Manifest, assign_splits
from deepintuit.worlds import at_hand
from deepintuit_clips import import_csv, import_folder, scan

spare = tempfile.TemporaryDirectory(prefix="deepintuit-", ignore_cleanup_errors=True)
mine = Path(MINE or spare.name).expanduser().absolute()
stand_in = VIDEOS is None
if stand_in:
    VIDEOS, TABLE = mine / "videos", mine / "videos" / "clips.csv"
    clips = Manifest.load(bench.workbench.path, bench.settings.clips.dataset).usable()
    clips = clips[clips.label.isin(clips.label.value_counts().index[:2])]
    sizes = clips.groupby("group").clip_id.transform("size")
    clips = clips.assign(size=sizes, name=clips.clip_id + clips.path.map(lambda path: Path(path).suffix))
    clips = clips.sort_values(["size", "group"], ascending=False).groupby("group").head(4).head(72)

# %%
import shutil

if stand_in:
    for clip in clips.itertuples():
        (VIDEOS / clip.label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(at_hand(clip.path), VIDEOS / clip.label / clip.name)
    clips.assign(path=clips.label + "/" + clips.name)[["path", "label", "group"]].to_csv(TABLE, index=False)

# %% [markdown]
# ## Import: what is there
# The folders are enough to know the labels.

# %%
listing = import_folder(VIDEOS)
print(listing.report)

# %%
from deepintuit_analysis import show

some = {row.label: row.path for row in listing.rows if row.path.stat().st_size < 20e6}
show.row(*(show.clip(path, label, width=220) for label, path in list(some.items())[:4]))

# %% [markdown]
# They are not enough to know which clips come from the same camera. A table can say so. (If it has a column `split`, that is kept as given,
# and what it calls *train* is divided over the stages.)

# %%
if TABLE:
    listing = import_csv(TABLE, VIDEOS, group=GROUP)
    print(listing.report)

# %% [markdown]
# ## Scan: what the files say
# Each file is opened in a process of its own: what cannot be read is listed with its reason, and nothing is dropped in silence.

# %%
from functools import partial

from deepintuit import video

manifest, _ = scan(
    listing, mine, "mine", probe=partial(video.probe, isolate=True), playable_copy=video.playable_copy
)
manifest.frame[["seconds", "width", "height", "fps", "frames"]].astype(float).describe().round(1)

# %%
left_out = manifest.frame[manifest.frame.excluded.notna()]
print(f"{len(manifest.usable())} clips can be used, {len(left_out)} cannot.")
left_out[["source", "excluded", "excluded_detail"]].head() if len(left_out) else None

# %% [markdown]
# What a model would be shown of one clip. Are the frames enough for *you* to tell the label?

# %%
clip = manifest.usable().iloc[0]
show.frames(video.read(clip.path, 8), clip.label)

# %% [markdown]
# ## Split: by source, never by clip
# Divided by clip, **how many sources would be on both sides**, known from training and asked about in the test?

# %%
from deepintuit import config, schedule

basic = [f"workbench={mine}", "clips.dataset=mine", "clips.validation_share=0.15", "clips.test_share=0.25"]
settings = config.load(CONFIG, basic)
shares = schedule.fractions(settings)
alone = manifest.frame.assign(group=manifest.frame.clip_id)
by_clip = assign_splits(Manifest(mine, "mine", alone, manifest.labels), shares).usable()

# %%
import pandas as pd

sides = pd.crosstab(manifest.usable().group, by_clip.split == "test")
torn = int((sides > 0).all(axis=1).sum())
known = f"{torn} of {len(sides)} sources would be on both sides."
print(known if TABLE else "No table names the sources, so nobody can say.")

# %%
manifest = assign_splits(manifest, shares)
manifest.save()
print(manifest.summary())

# %% [markdown]
# ## Leaks: what costs nothing
# **All clips of one label were filmed by phones, all others by a fixed camera. How would you score 100 % without watching?** So before any
# model looks at a frame: how far do the most frequent label and the *container* (size, rate, length, bytes) get?

# %%
from deepintuit import baselines, evaluate
from deepintuit_analysis import Workbench, report
from deepintuit_analysis.report.gather import tabulate

wb = Workbench(mine)
free = baselines.simple(wb, settings)
show.table(report.markdown_table(tabulate(wb, [free.id]).rows))

# %% [markdown]
# ## A backbone
# Three ways to one, and all cells below stay the same.
#
# - **A GPU.** Set `CONFIG = "../configs/qwen2.5-vl-7b-lora.toml"` above: adapters on Qwen2.5-VL 7B.
# - **An endpoint** (any OpenAI-compatible server) writes the teacher's traces; what is trained on them is still a model of yours.
# - **The toy** from the package, as here. It was made on rendered pictures: on real clips it shows that the stages run, and no more.
#
# All that the file for a GPU changes:

# %%
big = Path("../configs/qwen2.5-vl-7b-lora.toml")
print(big.read_text())

# %% [markdown]
# What would run, without running it. Every command has this switch.

# %%
import subprocess
import sys

asked = f"evaluate --config {big} --set clips.dataset=mine --reasoner zero-shot --dry-run".split()
done = subprocess.run(
    [sys.executable, "-m", "deepintuit.cli", *asked, "--workbench", mine],
    capture_output=True, text=True, env={**os.environ, "TERM": "dumb"},
)
print("deepintuit", *asked, "\n\n" + "\n".join((done.stdout or done.stderr).splitlines()[:9]), "\n…")

# %%
import torch

here = torch.cuda.is_available()
print(f"{'A GPU is here.' if here else 'No GPU is here. On a machine with one,'} set CONFIG = {str(big)!r},\n"
      "or run these commands:")
first = "teach --set teach.base_url=URL --set teach.model=NAME"
for stage in (first, "coldstart", "calibrate", "evaluate", "evaluate --reasoner baselines", "report"):
    print(f"  deepintuit {stage} --config configs/{big.name} --set clips.dataset=mine --workbench MINE")

# %% [markdown]
# ## A teacher
# Somebody must write the first traces. An endpoint sees the frames and is *not* told the label; its traces are kept where grammar and
# answer hold. It is named above, by `ENDPOINT` and `TEACHER`; the key stays in the environment (`OPENAI_API_KEY`) and is written nowhere.

# %%
toy = "tiny" in Path(CONFIG).name
short = ["teach.max_tokens=40", "teach.traces=2", "sampling.max_tokens=60"]
if ENDPOINT and TEACHER:
    teacher = ["teach.source=endpoint", f"teach.base_url={ENDPOINT}", f"teach.model={TEACHER}"]
else:
    teacher = ["teach.source=self", f"teach.given_answer={str(toy).lower()}", *(short if toy else [])]
    print("No endpoint is named: the model is told the label and says why in its own words.")

# %% [markdown]
# From the toy, that is form without insight. The toy gets short work; a real backbone keeps the settings of its file.

# %%
few = ["coldstart.epochs=16", "calibrate.traces=2", "calibrate.epochs=2"]
settings = config.load(CONFIG, [*basic, *teacher, *(few if toy else [])])

# %%
from deepintuit import teach

taught = teach.run(wb, settings)

# %% [markdown]
# ## The stages
# Cold start imitates the kept traces ([02](02_cold_start.ipynb)).

# %%
from deepintuit import coldstart

cold = coldstart.run(wb, settings, teacher=taught.id)

# %% [markdown]
# GRPO ([04](04_grpo.ipynb)) would come here: `refined = grpo.run(wb, settings, start=cold.id)`. It takes longest, and it can only sharpen
# what is there; look at the table first. Calibration learns when to trust what was written ([05](05_calibration.ipynb)).

# %%
from deepintuit import calibrate

judged = calibrate.run(wb, settings, reasoner=cold.id)

# %%
scored = evaluate.run(wb, settings, reasoner=cold.id, calibrator=judged.id)

# %% [markdown]
# A teacher at an endpoint belongs into the table as well: it is asked about the clips that are scored, at its price for each of them.

# %%
beside = []
if ENDPOINT and TEACHER:
    asked = teach.run(wb, settings, split=settings.evaluate.split)
    beside = [evaluate.run(wb, settings, reasoner=asked.id)]

# %% [markdown]
# ## The same table

# %%
table = tabulate(wb, [free.id, scored.id, *(run.id for run in beside)])
show.table(report.markdown_table(table.rows))

# %%
plain = [row for row in table.rows if row.control == "none"]
systems = list(dict.fromkeys(row.system for row in plain))
raw = {row.system: row.evaluation.accuracy for row in plain if row.method == "raw"}
after = {row.system: row.evaluation.accuracy for row in plain if row.method == settings.evaluate.method}
report.stages_figure(systems, [raw.get(name) for name in systems], [after.get(name) for name in systems])

# %%
best = report.headline(table.rows)
show.words(report.sentence(best))

# %%
from deepintuit_analysis.numbers import number

costless = [row for row in plain if row.system in ("majority", "metadata")]
bar = max(costless, key=lambda row: row.evaluation.accuracy.value)
sources = f"{best.evaluation.groups} sources" if TABLE else "sources that no table names"
print(f"On {best.n} clips of {sources}, what costs nothing reaches "
      f"{number(bar.evaluation.accuracy.value)} % ({bar.system}).")
above = best.evaluation.accuracy.low > bar.evaluation.accuracy.high
print("The result lies above that, interval and all." if above else
      "The result is not clearly above that: nothing is shown yet.")

# %% [markdown]
# The dashboard shows what lies behind the table, while it is open on this workbench (a throw-away folder is gone when the kernel ends):

# %%
print(f'make app ARGS="--workbench {mine}"')
show.app("errors", "The errors on your own clips", dataset="mine", system=best.system, method=best.method)

# %% [markdown]
# ## Three questions
#
# 1. All clips of one label come from one camera. What will the table show, and what will it not be able to show?
# 2. The metadata baseline beats your model. Name two things that you would do before training longer. Which of them needs no GPU?
# 3. Your teacher is right on 60 % of the clips, and only its right traces are kept. Which clips has the model then never read about?

# %% [markdown]
# ## What you have now
#
# Your clips as a dataset with splits that hold cameras apart, the number that costs nothing, and a chain of commands that a bigger
# model only has to repeat.
#
# Back to the beginning: [00, a trace](00_trace.ipynb).
