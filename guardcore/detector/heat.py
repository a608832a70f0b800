"""Patch scores as colors: a smooth heat map in a perceptually uniform scale."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from guardcore.detector.regions import Lattice
from guardcore.detector.verdict import Verdict

Floats = NDArray[np.floating[Any]]

# Patch levels at the two ends of the scale: one benign patch in ten is cold, one in 10,000 is hot.
COLD, HOT = 1e-1, 1e-4

# OKLab (L, a, b) along the scale: indigo, violet, red, orange, pale yellow. Equal steps of L and even bends of hue make
# equal differences of heat look equally large, also in gray and to most color-blind eyes.
_STOPS = np.array(
    [
        (0.22, 0.02, -0.12),
        (0.40, 0.13, -0.10),
        (0.58, 0.20, 0.07),
        (0.76, 0.07, 0.15),
        (0.94, -0.02, 0.12),
    ]
)
_TO_LMS = np.array(
    [(1, 0.3963377774, 0.2158037573), (1, -0.1055613458, -0.0638541728), (1, -0.0894841775, -1.2914855480)]
)
_TO_LINEAR = np.array(
    [
        (4.0767416621, -3.3077115913, 0.2309699292),
        (-1.2684380046, 2.6097574011, -0.3413193965),
        (-0.0041960863, -0.7034186147, 1.7076147010),
    ]
)
# Cells of the map's working picture; finer would only be smoothed away.
_RESOLUTION = 384


@cache
def _table() -> NDArray[np.uint8]:
    """256 colors of the scale, uint8 [256, 3]: OKLab to linear sRGB to sRGB (Ottosson 2020)."""
    where = np.linspace(0, len(_STOPS) - 1, 256)
    lab = np.stack([np.interp(where, np.arange(len(_STOPS)), channel) for channel in _STOPS.T], axis=1)
    linear = ((lab @ _TO_LMS.T) ** 3 @ _TO_LINEAR.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(255 * encoded), dtype=np.uint8)


def colors(heat: Floats) -> NDArray[np.uint8]:
    """Heat in [0, 1] of any shape as sRGB, uint8 [..., 3]."""
    return np.asarray(_table()[np.round(255 * np.clip(heat, 0, 1)).astype(np.uint8)])


def patch_heat(verdict: Verdict) -> Floats | None:
    """Heat of each patch in [0, 1], [N]: how unusual it is; before calibration, how near within this picture."""
    if verdict.patch_scores is None or not verdict.patch_scores.size:
        return None
    if verdict.patch_levels is not None:
        level = np.log(verdict.patch_levels)
        return np.asarray(((np.log(COLD) - level) / (np.log(COLD) - np.log(HOT))).clip(0, 1))
    scores = verdict.patch_scores.min(axis=0)
    spread = float(scores.max() - scores.min())
    return np.asarray((scores.max() - scores) / spread if spread else np.zeros_like(scores))


def heat_map(verdict: Verdict, size: tuple[int, int]) -> Floats:
    """The heat as a smooth map of size (width, height), float [height, width] in [0, 1]; 0 without patches."""
    heat = patch_heat(verdict)
    if heat is None or verdict.boxes is None:
        return np.zeros(size[::-1])
    lattice = Lattice.of(verdict.boxes, verdict.size)
    cells = -lattice.lowest(-heat)
    cells[np.isinf(cells)] = 0
    shrink = max(1.0, max(verdict.size) / _RESOLUTION)
    xs, ys = (np.round(cuts / shrink).astype(int) for cuts in (lattice.xs, lattice.ys))
    coarse = np.repeat(np.repeat(cells, np.diff(ys), axis=0), np.diff(xs), axis=1)
    picture = Image.fromarray(np.round(255 * coarse).astype(np.uint8))
    smooth = picture.filter(ImageFilter.GaussianBlur(0.3 * _patch_side(verdict) / shrink))
    return np.asarray(smooth.resize(size, Image.Resampling.BICUBIC), dtype=np.float64) / 255


def _patch_side(verdict: Verdict) -> float:
    """A typical side of a patch in pixels."""
    assert verdict.boxes is not None
    return float(np.median(verdict.boxes[:, 2:] - verdict.boxes[:, :2]))
