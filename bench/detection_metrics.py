"""Detection metrics by hand, tested against scikit-learn: few lines, so that anyone can check what a table means.

A score is higher for more unsafe. Ties count one half in AUROC, and fall on the same side of a threshold elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def auroc(scores: Floats, positive: Bools) -> float:
    """Probability that a positive scores above a negative, ties one half; NaN without either."""
    negatives, positives = np.sort(scores[~positive]), scores[positive]
    if not len(negatives) or not len(positives):
        return float("nan")
    below = np.searchsorted(negatives, positives, "left") + np.searchsorted(negatives, positives, "right")
    return float(below.mean() / (2 * len(negatives)))


def _counts(scores: Floats, positive: Bools) -> tuple[Floats, Floats]:
    """True and false positives at every distinct threshold, from the strictest."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = positive[order].cumsum()[last]
    return hits.astype(float), (last + 1 - hits).astype(float)


def average_precision(scores: Floats, positive: Bools) -> float:
    """Sum over thresholds of (recall gained) x (precision there)."""
    hits, alarms = _counts(scores, positive)
    return float((np.diff(hits, prepend=0) * hits / (hits + alarms)).sum() / positive.sum())


def fpr_at_recall(scores: Floats, positive: Bools, recall: float = 0.95) -> float:
    """Lowest false-positive rate of a threshold that finds at least `recall` of the positives."""
    hits, alarms = _counts(scores, positive)
    return float(alarms[hits >= recall * positive.sum() - 1e-9].min() / (~positive).sum())


def critical_levels(levels: Floats, coverage: Floats, share: float = 0.5) -> Floats:
    """The patch level at which flagged patches hold `share` of an object's visible pixels.

    levels [B, N]: lower = more suspicious, flagged when <= a threshold; coverage [B, N]: the patches' parts of the
    object's pixels.
    """
    order = np.argsort(levels, axis=1, kind="stable")
    found = np.take_along_axis(coverage, order, axis=1).cumsum(axis=1)
    first = (found >= share * coverage.sum(axis=1, keepdims=True) - 1e-9).argmax(axis=1)
    return np.take_along_axis(np.take_along_axis(levels, order, axis=1), first[:, None], axis=1)[:, 0]


def false_mask_at_recall(benign_levels: Floats, critical: Floats, recall: float = 0.9) -> float:
    """Share of benign patches flagged at the threshold that finds `recall` of the objects: [B, N], [P]."""
    threshold = np.quantile(critical, recall, method="inverted_cdf")
    return float((benign_levels <= threshold).mean())


def patch_iou(flagged: Bools, shown: Bools) -> float:
    """Flagged patches against those that show the object, pooled over scenes: both [B, N]."""
    union = (flagged | shown).sum()
    return float((flagged & shown).sum() / union) if union else 1.0


def interval(
    metric: Callable[[NDArray[np.int64]], float], positive: Bools, draws: int, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval; positives and negatives are drawn apart, so that their numbers stay."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    values = [metric(np.concatenate([rng.choice(group, len(group)) for group in groups])) for _ in range(draws)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
