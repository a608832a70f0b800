"""How unusual is a patch score among benign patches, and which threshold flags how many benign pixels?

A patch is as suspicious as its lowest score over the categories; everything here is about that one figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardcore.detector.regions import Lattice

Floats = NDArray[np.floating[Any]]

# Levels between stored quantiles are interpolated; 40 steps of a factor 1.33 reach one benign patch in 100,000.
PATCH_LEVELS = np.geomspace(1e-5, 1.0, 41)


def quantiles_of(scores: Sequence[Floats]) -> Floats:
    """Pooled scores of all pictures ([N_i] each) at PATCH_LEVELS, rounded down: float64 [K]."""
    pooled = np.sort(np.concatenate(scores))
    return np.asarray(pooled[np.floor(PATCH_LEVELS * (len(pooled) - 1)).astype(int)], dtype=np.float64)


def level_at(quantiles: Floats, scores: Floats) -> Floats:
    """Share of benign patches with a score as low, read off quantiles [K]: [N] -> float64 [N], >= PATCH_LEVELS[0]."""
    return np.asarray(np.exp(np.interp(scores, quantiles, np.log(PATCH_LEVELS))))


def mask_threshold(scores: Sequence[Floats], lattices: Sequence[Lattice], target: float) -> float:
    """The largest score tau with (sum_i area_i(tau) + 1) / (n + 1) <= target; -inf if there is none.

    scores: [N_i] a picture; lattices: the cells of its patches. area_i(tau) is the share of picture i in patches that
        score
    at most tau. A cell is flagged at the lowest score of any patch over it, so sorting cells gives every tau's area
    at once.
    """
    cells, areas = [], []
    for score, lattice in zip(scores, lattices, strict=True):
        cells.append(lattice.lowest(score).ravel())
        areas.append(lattice.area.ravel())
    order = np.argsort(np.concatenate(cells), kind="stable")
    candidates = np.concatenate(cells)[order]
    risk = (np.concatenate(areas)[order].cumsum() + 1) / (len(scores) + 1)
    # Cells of equal score are flagged together, so the last of them counts.
    risk = risk[np.searchsorted(candidates, candidates, side="right") - 1]
    allowed = int(np.searchsorted(risk, target, side="right"))
    return float(candidates[allowed - 1]) if allowed else -np.inf
