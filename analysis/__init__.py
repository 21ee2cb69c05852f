"""What people ask of a workbench: the index and its questions (`index`), tables and figures (`report`), reviews
(`review`), and pieces of HTML for notebooks (`show`). Reads what the stages of `deepintuit` wrote; never imports torch
or Gradio.
"""

from deepintuit_analysis.index.slices import Slice
from deepintuit_analysis.workbench import Workbench

__all__ = ["Slice", "Workbench"]
