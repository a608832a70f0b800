"""No operator may have become slower than it was, relative to its definition timed in the same run.

`make bench-guard`; wall clocks stay out of the tests. The speedups of bench/guard.json were measured on a quiet
machine; half of them suffices, since other processors favor the one or the other. After a change that makes them
larger, write the printed ones there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.cases import CASES
from bench.rivals.contender import Task
from bench.rivals.ours import definition, operator

BASELINE: dict[str, float] = json.loads(Path(__file__).with_name("guard.json").read_text())
MARGIN = 0.5
TASKS = {  # the same shapes as in the benchmark, fewer images
    "one image": Task(CASES["a"].problem(), 0.05, 50),
    "batch": Task(replace(CASES["b"], lengths=(197,) * 4).problem(), 0.05, 50),
    "batch, tolerance": Task(replace(CASES["b"], lengths=(197,) * 4).problem(), 0.05, 1000, 1e-4),
    "batch, small epsilon": Task(replace(CASES["b"], lengths=(197,) * 4).problem(), 0.01, 1000, 1e-4),
    "large": Task(replace(CASES["c"], lengths=(577,)).problem(), 0.05, 50),
    "packed": Task(replace(CASES["e"], lengths=(64, 1000, 333)).problem(), 0.05, 50),
    "joint": Task(replace(CASES["f"], lengths=(197,) * 4).problem(), 0.05, 50),
}
seconds: dict[tuple[str, str], float] = {}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("solve", [definition, operator])
def test_time(benchmark, solve, name):
    benchmark.group = name
    with torch.inference_mode():
        rounds = 5 if solve is definition else 30
        benchmark.pedantic(solve, (TASKS[name],), rounds=rounds, warmup_rounds=1)
    seconds[solve.__name__, name] = benchmark.stats.stats.median


@pytest.mark.parametrize("name", TASKS)
def test_speedup(name):
    if ("operator", name) not in seconds:
        pytest.skip("nothing was timed")
    speedup = seconds["definition", name] / seconds["operator", name]
    print(f'"{name}": {speedup:.1f}')
    assert speedup >= MARGIN * BASELINE[name], f"{speedup:.1f} times the definition's speed, was {BASELINE[name]}"
