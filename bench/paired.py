"""Ratios of contenders that were timed in the same rounds: what a slower minute does to both of a pair cancels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.measure import Timing


@dataclass(frozen=True)
class Ratio:
    """Median of the paired ratios with its confidence interval; `low` and `high` are NaN where pairs are too few."""

    median: float
    low: float
    high: float
    pairs: int

    @property
    def percent(self) -> str:
        """The overhead, e.g. `+1.2 (+0.8 ... +1.9)`, percent."""
        center, low, high = (100 * (number - 1) for number in (self.median, self.low, self.high))
        return f"{center:+.1f} ({low:+.1f} ... {high:+.1f})" if low == low else f"{center:+.1f}"


def paired_ratio(own: Timing, base: Timing, clock: str = "cpu", confidence: float = 0.95) -> Ratio:
    """Ratio of own to base time by rounds that both took part in; clock is `cpu` or `wall`."""
    numerator, denominator = (
        dict(zip(timing.rounds, getattr(timing, f"{clock}_ms"), strict=True)) for timing in (own, base)
    )
    ratios = [numerator[index] / denominator[index] for index in numerator if index in denominator]
    return Ratio(median(ratios), *median_interval(ratios, confidence), len(ratios))


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the median by order statistics, exact for any distribution; NaNs if samples are too few.

    x_(k) ... x_(n+1-k) with the largest k for which P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2.
    """
    n, ordered = len(samples), sorted(samples)
    below, k = 0.0, 0
    while (below := below + math.comb(n, k) / 2**n) <= (1 - confidence) / 2:
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else (math.nan, math.nan)
