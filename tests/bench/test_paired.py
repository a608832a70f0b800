"""Ratios of paired rounds and their intervals, on numbers that are known."""

from __future__ import annotations

import itertools
import math
import time

import pytest

from bench.measure import Timing, interleave
from bench.paired import Ratio, median_interval, paired_ratio


def test_an_interval_holds_the_median_as_often_as_it_says():
    """Every order of n draws below or above the true median is equally likely: count those that miss it."""
    n = 9
    missed = 0
    for sides in itertools.product((-1.0, 1.0), repeat=n):
        low, high = median_interval([side * (1 + i) for i, side in enumerate(sides)])
        missed += low > 0 or high < 0
    assert missed / 2**n == 2 * (1 + 9) / 512  # 3.9 %, the most that leaves 95 %


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (9, 2), (15, 4), (25, 8), (50, 18)])  # as tables of the sign test have
def test_the_ranks_are_those_of_the_sign_test(n, rank):
    assert median_interval([float(number) for number in range(n, 0, -1)]) == (rank, n + 1 - rank)


def test_five_samples_are_too_few():
    assert all(math.isnan(bound) for bound in median_interval([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0], confidence=0.9) == (1.0, 5.0)


def test_ratios_are_of_the_same_rounds():
    own = Timing((30.0, 20.0, 60.0), (3.0, 2.0, 6.0), (1, 4, 5))
    base = Timing((10.0, 10.0, 10.0, 10.0, 20.0, 20.0), (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), (0, 1, 2, 3, 4, 5))
    assert paired_ratio(own, base).median == 3.0  # of 3, 1 and 3; unpaired medians would say 3 / 1
    assert paired_ratio(own, base, "wall").median == 3.0
    assert paired_ratio(base, own).pairs == 3


def test_a_slow_minute_cancels():
    base = Timing((10.0,) * 8 + (25.0,) * 8, (), tuple(range(16)))
    own = Timing((11.0,) * 8 + (27.5,) * 8, (), tuple(range(16)))
    ratio = paired_ratio(own, base)
    assert ratio == Ratio(pytest.approx(1.1), pytest.approx(1.1), pytest.approx(1.1), 16)


def test_overheads_read_as_percent():
    assert Ratio(1.012, 0.998, 1.021, 15).percent == "+1.2 (-0.2 ... +2.1)"
    assert Ratio(0.5, math.nan, math.nan, 3).percent == "-50.0"


@pytest.mark.parametrize("shuffled", [False, True])
def test_every_round_runs_everybody_once_and_is_remembered(shuffled):
    calls: list[str] = []
    contenders = {name: lambda name=name: (time.sleep(0.001), calls.append(name)) for name in "abc"}
    timings = interleave(contenders, 8, warm=0.0, shuffled=shuffled)
    rounds = [calls[first : first + 3] for first in range(3, 27, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert all(timing.rounds == tuple(range(8)) for timing in timings.values())
    followers = {(left, right) for one in rounds for left, right in itertools.pairwise(one)}
    assert len(followers) == (6 if shuffled else 3)  # a rotation leaves everybody the same predecessor


def test_a_slow_contender_keeps_the_numbers_of_its_rounds():
    contenders = {"fast": lambda: None, "slow": lambda: time.sleep(0.02)}
    timings = interleave(contenders, 12, budget=0.1, warm=0.0)
    slow = timings["slow"].rounds
    assert 3 <= len(slow) <= 6
    assert slow[-1] == 11
    assert paired_ratio(timings["slow"], timings["fast"], "wall").pairs == len(slow)
