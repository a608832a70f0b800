"""Nobody is timed whose result is off: every contender against the definition in float64, before the clock starts.

At a fixed number of iterations, values must agree with the definition's at that number. To a tolerance, every contender
gets the loosest of its own thresholds that brings the L1 row error of all its plans, measured here in float64, down to
it.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from bench.cases import Case, Problem
from bench.rivals.contender import Contender, Solution, Task
from bench.rivals.ours import definition

SLACK = 1.01  # float32 contenders measure their row error to about a thousandth
STOPPED_EARLY = {"batch": 2e-3, "packed": 2e-3, "joint": 3e-2}  # what a row error of 1e-4 may leave in the values
JOINT_GATE = 1e-4  # shares are exponentials: float32 rounding of the cost, over epsilon, shows in them


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a contender did: its largest relative error and row error; the task to time it on, or why it is not timed."""

    error: float
    row_error: float
    task: Task | None
    reason: str = ""


class Gate:
    """The truth of one case at one epsilon, computed once for every precision of the inputs."""

    def __init__(self, case: Case, epsilon: float, iterations: int, tolerance: float, device: str = "cpu") -> None:
        self.case, self.device = case, device
        self.task = Task(case.problem().to(device), epsilon, iterations, tolerance)

    @functools.cached_property
    def kind(self) -> str:
        """The case's kind of problem."""
        return self.task.problem.kind

    def judge(self, contender: Contender) -> Verdict:
        """Run a contender; search its stop threshold if there is a tolerance."""
        if reason := contender.why_not(self.kind, self.device, self.task.tolerance):
            return Verdict(float("nan"), float("nan"), None, reason)
        problem = self.task.problem.to(contender.dtype)
        if not self.task.tolerance:
            return self.compare(contender, dataclasses.replace(self.task, problem=problem))
        assert contender.criterion is not None
        thresholds = contender.criterion(self.task.tolerance, max(self.case.lengths))
        tasks = [dataclasses.replace(self.task, problem=problem, tolerance=one) for one in thresholds]
        return self.loosest(contender, tasks)

    def loosest(self, contender: Contender, tasks: list[Task]) -> Verdict:
        """Bisect for the first task that reaches the tolerance; the last one's verdict if none does."""
        verdict, below, reached = self.compare(contender, tasks[-1]), -1, len(tasks) - 1
        if verdict.task is None:
            return verdict
        while reached - below > 1:
            middle = (below + reached) // 2
            attempt = self.compare(contender, tasks[middle])
            if attempt.task is None:
                below = middle
            else:
                verdict, reached = attempt, middle
        return verdict

    def compare(self, contender: Contender, task: Task) -> Verdict:
        """Verdict on one task."""
        solution = contender.solve(task)
        truth = self.truth(contender.dtype, contender.optimum)
        error, row_error = largest_error(solution, truth), solution.row_error()
        bound = STOPPED_EARLY[self.kind] if task.tolerance else self.bound(contender)
        if not error < bound:
            return Verdict(error, row_error, None, f"off by {error:.0e}, gate {bound:.0e}")
        if task.tolerance and not row_error <= SLACK * self.task.tolerance:
            return Verdict(error, row_error, None, f"row error {row_error:.0e}")
        return Verdict(error, row_error, task)

    def bound(self, contender: Contender) -> float:
        """Largest error at a fixed number of iterations."""
        return max(contender.gate, JOINT_GATE if self.kind == "joint" else 0.0)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a gate lives as long as its case
    def truth(self, dtype: torch.dtype, optimum: bool) -> tuple[Tensor, ...]:
        """The definition's values for inputs rounded to dtype; `optimum`: where it converges instead."""
        rounded: Problem = self.task.problem.to(dtype).to(torch.float64)
        task = dataclasses.replace(self.task, problem=rounded)
        if optimum:
            task = dataclasses.replace(task, iterations=2000, tolerance=1e-5)
        return definition(task).values


def largest_error(solution: Solution, truth: tuple[Tensor, ...]) -> float:
    """Largest |value - truth| / max(|truth|, 0.1) of all values."""
    pairs = zip(solution.values, truth, strict=True)
    return max(float(((value.double() - true).abs() / true.abs().clamp(min=0.1)).max()) for value, true in pairs)
