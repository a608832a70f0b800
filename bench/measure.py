"""Interleaved timing: every round runs every contender once, so that a noisy neighbor hits all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

WARM = 0.005  # seconds


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender, of process CPU time and of wall time, and the rounds that they were taken in."""

    cpu_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]
    rounds: tuple[int, ...] = ()

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


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    budget: float = 1e9,
    *,
    warm: float = WARM,
    shuffled: bool = False,
) -> dict[str, Timing]:
    """Time every contender `rounds` times in rotating order, after one warm-up call each.

    Every turn begins with `warm` seconds of untimed calls, where a call is shorter than that: what the predecessor left
    in the caches is no property of a contender, and would be a third of the time of the shortest. `shuffled`: every
    round in an order of its own, drawn once for all runs, so that nobody has one predecessor throughout.

    One that would need more than `budget` seconds runs in fewer rounds, spread over all: three at least, or a single
    one if a call takes more than two budgets.
    """
    names = list(contenders)
    samples: dict[str, list[tuple[float, float, int]]] = {name: [] for name in names}
    seconds = {name: once(contenders[name])[1] / 1e3 for name in names}
    shares = {name: share_of(rounds, budget, seconds[name]) for name in names}
    draw = random.Random(0)
    for index in range(rounds):
        shift = index % len(names)
        order = draw.sample(names, len(names)) if shuffled else names[shift:] + names[:shift]
        for name in order:
            if int((index + 1) * shares[name] + 1e-9) > int(index * shares[name] + 1e-9):
                warm_up(contenders[name], seconds[name], warm)
                samples[name].append((*once(contenders[name]), index))
    return {name: Timing(*zip(*rows, strict=True)) for name, rows in samples.items()}


def warm_up(run: Callable[[], object], seconds: float, warm: float) -> None:
    """Call again and again for `warm` seconds; not at all if one call, of this many seconds, takes longer."""
    for _ in range(int(warm / seconds)):
        run()


def share_of(rounds: int, budget: float, seconds: float) -> float:
    """Share of the rounds that a contender takes part in."""
    least = 3 if seconds <= 2 * budget else 1
    return min(1.0, max(least, int(budget / max(seconds, budget / rounds))) / rounds)
