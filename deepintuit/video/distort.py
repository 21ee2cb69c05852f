"""Frames made worse on purpose, to see what a system that never met such frames makes of them.

What is drawn hangs on clip and kind alone: each system meets the same, and a stronger distortion is more of it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image, ImageFilter

from .frames import Frames


def distorted(frames: Frames, kind: str, strength: float, clip_id: str) -> Frames:
    """The same moments with other pixels; `evaluate.distortion` has the kinds, 0 < `strength` ≤ 1 what it means."""
    rng = np.random.default_rng(list(hashlib.sha256(f"{kind}/{clip_id}".encode()).digest()))
    pixels = frames.pixels_T_H_W_3
    T, H, W, _ = pixels.shape
    if kind == "noise":
        drawn = pixels + rng.normal(0, 1, pixels.shape) * strength * 127.5
        pixels = drawn.round().clip(0, 255)
    elif kind == "blur":
        blur = ImageFilter.GaussianBlur(strength * min(H, W) / 8)
        pixels = np.stack([np.asarray(Image.fromarray(frame).filter(blur)) for frame in pixels])
    elif kind == "occlusion":
        h, w = (max(1, round(side * strength**0.5)) for side in (H, W))
        top, left = (int(rng.random() * (side - part + 1)) for side, part in ((H, h), (W, w)))
        pixels = pixels.copy()
        pixels[:, top : top + h, left : left + w] = 127
    else:
        kept = rng.random(T) >= strength
        kept[0] = True
        pixels = pixels[np.maximum.accumulate(np.where(kept, np.arange(T), 0))]
    about = frames.indices_T, frames.times_T, frames.seconds, frames.reader, frames.truncated
    return Frames.of(pixels, *about)
