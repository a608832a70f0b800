"""No operator may have become slower than it was, relative to its definition timed in the same run.

`make bench-guard`; wall clocks stay out of the tests. The speedups of bench/guard.json were measured on a quiet
machine; half of them suffices, since other processors favor the one or the other. After a change that makes them
larger, write the printed ones there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from bench.attention_cases import AttentionCase
from bench.cases import CASES
from bench.rivals.contender import Task
from bench.rivals.ours import definition, operator
from guardcore import ops, reference

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
ATTENTION = {
    "attention, many rows": AttentionCase("many", "a prompt", 1, 4, 4, 512, 512, 128),
    "attention, single rows": AttentionCase("single", "a token for each of eight requests", 8, 8, 2, 1, 1024, 128),
}
Solve = Callable[[], object]
seconds: dict[tuple[str, str], float] = {}


def attention(functions: object, case: AttentionCase) -> Solve:
    """Calibrated attention of scattered keys by the operator or by its definition."""
    task = case.task(case.tensors(torch.float32), "gated", "scattered")
    tensors = (task.query, task.key, task.value, task.key_class, task.rule)
    return partial(functions.calibrated_attention, *tensors, is_causal=task.is_causal)


SOLVERS: dict[str, dict[str, Solve]] = {
    "definition": {name: partial(definition, task) for name, task in TASKS.items()}
    | {name: attention(reference, case) for name, case in ATTENTION.items()},
    "operator": {name: partial(operator, task) for name, task in TASKS.items()}
    | {name: attention(ops, case) for name, case in ATTENTION.items()},
}


@pytest.mark.parametrize("name", [*TASKS, *ATTENTION])
@pytest.mark.parametrize("solver", SOLVERS)
def test_time(benchmark, solver, name):
    benchmark.group = name
    with torch.inference_mode():
        rounds = 5 if solver == "definition" else 30
        benchmark.pedantic(SOLVERS[solver][name], rounds=rounds, warmup_rounds=1)
    seconds[solver, name] = benchmark.stats.stats.median


@pytest.mark.parametrize("name", [*TASKS, *ATTENTION])
def test_speedup(name):
    if ("operator", name) not in seconds:
        pytest.skip("nothing was timed")
    speedup = seconds["definition", name] / seconds["operator", name]
    print(f'"{name}": {speedup:.1f}')
    assert speedup >= MARGIN * BASELINE[name], f"{speedup:.1f} times the definition's speed, was {BASELINE[name]}"
