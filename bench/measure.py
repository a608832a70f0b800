"""Interleaved timing: every round runs every contender once, so that a noisy neighbor hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

WARM = 0.005  # seconds


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
        return quartiles(self.cpu_ms)

    @property
    def wall_quartiles(self) -> tuple[float, float]:
        """First and third quartile of the wall time, ms."""
        return quartiles(self.wall_ms)


def quartiles(samples: tuple[float, ...]) -> tuple[float, float]:
    """First and third quartile."""
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return low, high


def once(run: Callable[[], object]) -> tuple[float, float]:
    """Run once; return (CPU ms, wall ms). On a GPU wall time ends when the device is done."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int, budget: float = 1e9) -> dict[str, Timing]:
    """Time every contender `rounds` times in rotating order, after one warm-up call each.

    Every turn begins with WARM seconds of untimed calls, where a call is shorter than that: what the predecessor left
    in the caches is no property of a contender, and would be a third of the time of the shortest.

    One that would need more than `budget` seconds runs in fewer rounds, spread over all: three at least, or a single
    one if a call takes more than two budgets.
    """
    names = list(contenders)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    seconds = {name: once(contenders[name])[1] / 1e3 for name in names}
    shares = {name: share_of(rounds, budget, seconds[name]) for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            if int((index + 1) * shares[name] + 1e-9) > int(index * shares[name] + 1e-9):
                warm_up(contenders[name], seconds[name])
                samples[name].append(once(contenders[name]))
    return {name: Timing(*(tuple(column) for column in zip(*rows, strict=True))) for name, rows in samples.items()}


def warm_up(run: Callable[[], object], seconds: float) -> None:
    """Call again and again for WARM seconds; not at all if one call, of this many seconds, takes longer."""
    for _ in range(int(WARM / seconds)):
        run()


def share_of(rounds: int, budget: float, seconds: float) -> float:
    """Share of the rounds that a contender takes part in."""
    least = 3 if seconds <= 2 * budget else 1
    return min(1.0, max(least, int(budget / max(seconds, budget / rounds))) / rounds)
