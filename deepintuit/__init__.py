"""DeepIntuit: classify videos by reasoning, and know when to trust the reasoning.

`ls deepintuit/` reads like the method: teach → coldstart → grpo → calibrate → evaluate, over data, runs and video.
Importing the package imports nothing heavy. `deepintuit.load(RUN)` gives a trained system, to predict with.
"""

__version__ = "0.1.0"


def load(run, workbench=None, sets=()):
    """The trained system of a run: `load(RUN, workbench="workbench").predict(paths)` gives a DataFrame, a row per clip
    (docs/predict.md). `sets`: departures from its settings, "section.key=value"."""
    from importlib.metadata import entry_points

    (entry_point,) = entry_points(group="deepintuit.api", name="load")
    return entry_point.load()(run, workbench, sets)
