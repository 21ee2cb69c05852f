"""DeepIntuit: classify videos by reasoning, and know when to trust the reasoning.

`ls deepintuit/` reads like the method: teach → coldstart → grpo → calibrate → evaluate, over data, store and video.
Importing the package imports nothing heavy.
"""

__version__ = "0.1.0"
