"""Contenders of the benchmark: each that is installed passes the gate, and the gate lets nothing else through."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import torch

from bench import floor
from bench.cases import CASES, TINY
from bench.compare import is_chosen, iterations_done
from bench.gate import Gate
from bench.rivals.contender import Contender, Solution, Task, falling
from bench.rivals.ours import operator
from bench.rivals.table import CONTENDERS

SLOW = [name for name in CONTENDERS if name.startswith("torch.compile")]
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CONTENDERS]


def judge(name: str, case: int, epsilon: float, iterations: int, tolerance: float):
    gate = Gate(TINY[case], epsilon, iterations, tolerance)
    contender = CONTENDERS[name]
    if reason := contender.why_not(gate.kind, "cpu", tolerance):
        pytest.skip(f"{name}: {reason}")
    if contender.optimum and gate.kind == "joint":
        pytest.skip(f"{name}: its annealed shares are far from the optimum")
    contender.forget()
    with torch.inference_mode():
        return gate.judge(contender)


@pytest.mark.parametrize("case", range(len(TINY)), ids=[case.name for case in TINY])
@pytest.mark.parametrize("name", NAMES)
def test_a_contender_computes_what_the_definition_does(name, case):
    verdict = judge(name, case, 0.05, 20, 0.0)
    assert verdict.task is not None, verdict.reason


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name not in SLOW])
def test_a_contender_reaches_the_tolerance_by_its_own_criterion(name):
    verdict = judge(name, 0, 0.01, 2000, 1e-4)  # float32 exponentials of a cost over 0.01 underflow without care
    assert verdict.task is not None, verdict.reason
    assert verdict.row_error <= 1.01e-4


def test_a_wrong_contender_is_not_timed():
    def off_by_a_thousandth(task: Task) -> Solution:
        right = operator(task)
        return Solution((right.values[0] * 1.001,), right.row_sums)

    verdict = Gate(TINY[0], 0.05, 20, 0.0).judge(Contender("wrong", off_by_a_thousandth))
    assert verdict.task is None
    assert verdict.reason.startswith("off by ")


def test_a_contender_that_stops_early_is_not_timed():
    def impatient(task: Task) -> Solution:
        return operator(replace(task, tolerance=2 * task.tolerance))

    verdict = Gate(TINY[0], 0.05, 2000, 1e-4).judge(Contender("impatient", impatient))
    assert verdict.task is None
    assert 1e-4 < verdict.row_error < 2e-4


def test_of_a_contenders_thresholds_the_loosest_that_suffices_is_timed():
    def strict(task: Task) -> Solution:
        return operator(replace(task, tolerance=task.tolerance * 1e3))

    contender = Contender("strict", strict, criterion=lambda tolerance, _: falling(tolerance, 6))
    verdict = Gate(TINY[0], 0.05, 2000, 1e-4).judge(contender)
    assert verdict.task is not None
    assert verdict.task.tolerance * 1e3 == pytest.approx(1e-4)


def test_a_missing_library_is_a_reason():
    contender = replace(CONTENDERS["guardcore"], library="no_such_library")
    assert Gate(TINY[0], 0.05, 20, 0.0).judge(contender).reason == "not installed"


def test_row_errors_are_those_the_operator_reports():
    with torch.inference_mode():
        problem = TINY[1].problem()
        task = Task(problem, 0.05, 7)
        from guardcore import ops

        out = ops.sinkhorn_packed(
            problem.patches, problem.cu_seqlens, problem.prototypes, epsilon=0.05, max_iterations=7, tolerance=0.0
        )
        assert operator(task).row_error() == pytest.approx(float(out.marginal_error.max()), rel=1e-3)
        assert iterations_done(task) == [14, 14, 14]  # seven for each of two categories


def test_the_packed_case_spans_all_lengths():
    case = CASES["e"]
    assert (min(case.lengths), max(case.lengths), len(case.lengths)) == (64, 4096, 24)
    assert case.gemm_flops == 2 * sum(case.lengths) * 512 * 8 * 32


def test_contenders_are_chosen_by_parts_of_their_names():
    assert is_chosen("POT ot.batch", "numba,POT")
    assert is_chosen("guardcore", "numba")
    assert not is_chosen("definition", "numba,POT")


def test_the_floor_is_a_sinkhorn_and_is_timed_in_full(monkeypatch):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    loaded = floor.library()  # compares scalings and exponentials with float64, and raises
    counts: list[int] = []
    monkeypatch.setattr(floor.Resident, "run", lambda _, iterations: counts.append(iterations))
    floor.Floor(TINY[1], [3, 10, 7], threads=2).passes()
    assert sum(counts) == 20
    assert loaded.lanes() in (4, 8, 16)
    assert math.isfinite(floor.peak())
