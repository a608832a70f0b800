"""A few drawn pictures that tell how far an encoder spreads its costs.

Epsilon is set in units of that spread. It is measured on these pictures rather than on the user's, so that nothing in
the detector depends on the calibration pictures but their ranks: the calibration's guarantee stays exact.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

PROBES = 4


def probe_pictures(side: int) -> list[Image.Image]:
    """The same colored shapes on gradients every time, `side` x `side` pixels RGB."""
    rng = np.random.default_rng(0)
    return [_picture(rng, side) for _ in range(PROBES)]


def _picture(rng: np.random.Generator, side: int) -> Image.Image:
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x0, y0 = rng.uniform(-0.1, 0.8, 2) * side
        width, height = rng.uniform(0.1, 0.5, 2) * side
        color = tuple(rng.integers(0, 256, 3).tolist())
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x0, y0, x0 + width, y0 + height), fill=color)
    return image
