"""How unusual is a patch score among benign patches, and which level flags how many benign pixels?

Levels are comparable between categories, scores are not: score[c, n] has another distribution in each category. The
level of a score is the share of benign patches of that category with a score as low, read off stored quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardcore.regions import Lattice

Floats = NDArray[np.floating[Any]]

# Levels between stored quantiles are interpolated; 40 steps of a factor 1.33 reach one benign patch in 100,000.
PATCH_LEVELS = np.geomspace(1e-5, 1.0, 41)


def quantiles_of(scores: Sequence[Floats]) -> Floats:
    """Pooled patch scores of all pictures ([C, N_i] each) at PATCH_LEVELS, rounded down: float64 [C, K]."""
    # One category at a time: all of them would be gigabytes for ten thousand pictures.
    rows = []
    for category in range(len(scores[0])):
        pooled = np.sort(np.concatenate([picture[category] for picture in scores]))
        rows.append(pooled[np.floor(PATCH_LEVELS * (len(pooled) - 1)).astype(int)])
    return np.stack(rows).astype(np.float64)


def level_at(quantiles: Floats, scores: Floats) -> Floats:
    """Where scores [C, N] fall among quantiles [C, K], as a share of benign patches in [PATCH_LEVELS[0], 1]."""
    logs = np.log(PATCH_LEVELS)
    rows = [np.interp(score, row, logs) for score, row in zip(scores, quantiles, strict=True)]
    return np.asarray(np.exp(np.stack(rows)))


def threshold_at(quantiles: Floats, level: float) -> Floats:
    """The score at a level, the inverse of `level_at`: quantiles [C, K] -> float64 [C]."""
    return np.array([np.interp(np.log(level), np.log(PATCH_LEVELS), row) for row in quantiles])


def flagged_level(levels: Sequence[Floats], lattices: Sequence[Lattice], target: float) -> float:
    """The largest patch level at which benign pixels are flagged at a rate of at most `target`; 0 if none is.

    levels: [N_i] a picture, the lowest of `level_at` over the categories; lattices: the cells of its patches. A cell is
    flagged at the lowest level of any patch over it, so sorting cells by that level gives every level's area at once.
    """
    cells, areas = [], []
    for level, lattice in zip(levels, lattices, strict=True):
        cells.append(lattice.lowest(level).ravel())
        areas.append(lattice.area.ravel())
    order = np.argsort(np.concatenate(cells), kind="stable")
    sorted_levels = np.concatenate(cells)[order]
    risk = (np.concatenate(areas)[order].cumsum() + 1) / (len(levels) + 1)
    # Cells of equal level are flagged together, so the last of them counts.
    risk = risk[np.searchsorted(sorted_levels, sorted_levels, side="right") - 1]
    allowed = int(np.searchsorted(risk, target, side="right"))
    return float(sorted_levels[allowed - 1]) if allowed else 0.0
