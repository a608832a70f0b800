"""Interleaved timing: every round runs every contender once, so that a noisy neighbor hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender over the rounds, of process CPU time and of wall time."""

    cpu_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]

    @property
    def cpu(self) -> float:
        """Median CPU time, ms (all threads together)."""
        return median(self.cpu_ms)

    @property
    def wall(self) -> float:
        """Median wall time, ms."""
        return median(self.wall_ms)

    @property
    def cpu_quartiles(self) -> tuple[float, float]:
        """First and third quartile of the CPU time, ms."""
        low, _, high = quantiles(self.cpu_ms, n=4) if len(self.cpu_ms) > 1 else (self.cpu,) * 3
        return low, high


def once(run: Callable[[], object]) -> tuple[float, float]:
    """Run once; return (CPU ms, wall ms)."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time every contender `rounds` times in rotating order, after one warm-up call each."""
    names = list(contenders)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for name in names:
        contenders[name]()
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(once(contenders[name]))
    return {name: Timing(*(tuple(column) for column in zip(*rows, strict=True))) for name, rows in samples.items()}
