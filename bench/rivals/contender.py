"""What every contender takes and gives, and the steps that those with a cost matrix share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from bench.cases import Problem


@dataclass(frozen=True)
class Task:
    """A problem and how far to solve it.

    tolerance 0: exactly `iterations` (a row, then a column update each). Else the contender's own stop criterion, with
    `iterations` as a bound.
    """

    problem: Problem
    epsilon: float
    iterations: int
    tolerance: float = 0.0


@dataclass(frozen=True)
class Solution:
    """What a call returns: the values that count, and how to measure, outside the clock, how far it got.

    values: the distances [B, C]; or, of a joint problem, the groups' masses and costs [B, G, N].
    row_sums: per image, the row sums [..., N] of the plans that the values come from.
    """

    values: tuple[Tensor, ...]
    row_sums: Callable[[], list[Tensor]]

    def row_error(self) -> float:
        """Largest L1 error of any problem's row sums against the uniform marginal, in float64."""
        errors = [(rows.double() - 1 / rows.shape[-1]).abs().sum(-1).max() for rows in self.row_sums()]
        return float(torch.stack(errors).max())


Solve = Callable[[Task], Solution]
PlanSolver = Callable[[Tensor, float, int, float], Tensor]


def same_criterion(tolerance: float, rows: int) -> list[float]:
    """The threshold of a contender that measures the L1 row error itself."""
    del rows
    return [tolerance]


def falling(first: float, decades: float) -> list[float]:
    """Thresholds from the first down, four a decade."""
    return [first * 10 ** (-step / 4) for step in range(round(4 * decades) + 1)]


@dataclass(frozen=True)
class Contender:
    """One way to solve the problems, as good as its library allows.

    criterion: own stop thresholds to try for an L1 row error and N rows, loosest first; None: it has no stop rule.
    optimum: its schedule is not a number of iterations, so it is compared with the optimum, by `gate`, relative.
    """

    name: str
    solve: Solve
    library: str | None = None
    kinds: tuple[str, ...] = ("batch", "packed", "joint")
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtype: torch.dtype = torch.float32
    criterion: Callable[[float, int], list[float]] | None = same_criterion
    optimum: bool = False
    gate: float = 3e-5  # float32 sums over 4096 patches lose a digit more than those over 197
    forget: Callable[[], None] = lambda: None  # what it compiled for other shapes

    def why_not(self, kind: str, device: str, tolerance: float) -> str | None:
        """Return the reason why it cannot run, or None."""
        if self.library is not None and importlib.util.find_spec(self.library) is None:
            return "not installed"
        if device not in self.devices:
            return f"runs on {self.devices[0]} only"
        if kind not in self.kinds:
            return f"has no {kind} form"
        return "no stop rule" if tolerance and self.criterion is None else None


def cosine_cost(problem: Problem) -> Tensor:
    """Return C = 1 - cos of every image with every category, [B * C, N, M] contiguous, by one matrix product."""
    (C, M, _), B = problem.prototypes.shape, len(problem.lengths)
    cosine = normalize(problem.patches, dim=-1) @ normalize(problem.prototypes, dim=-1).flatten(0, 1).T
    return 1 - cosine.view(B, -1, C, M).transpose(1, 2).reshape(B * C, -1, M)


def gibbs(cost: Tensor, epsilon: float) -> Tensor:
    """Return K = exp(-C / epsilon); below epsilon 0.025, where float32 would underflow, over each row's maximum.

    A factor per row is part of u: the plan stays the same.
    """
    if epsilon < 0.025:
        cost = cost - cost.amin(-1, keepdim=True)
    return torch.exp(cost * (-1 / epsilon))


def transport_cost(plan: Tensor, cost: Tensor) -> Tensor:
    """Return <T, C> of [P, N, M] plans, [P]; a dot product of the library would need no temporary, but loses digits."""
    return (plan * cost).sum((1, 2))


def group_shares(plan: Tensor, cost: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return every group's share of each patch's mass and that share's cost, [B, G, N], of plans [B, N, M]."""
    assert problem.group is not None
    member = one_hot(problem.group, problem.num_groups).to(plan.dtype)
    share = plan / plan.sum(-1, keepdim=True)
    return (share @ member).mT, ((share * cost) @ member).mT


def by_plans(solve: PlanSolver) -> Solve:
    """A contender from a function of (cost [P, N, M], epsilon, iterations, tolerance) that returns the plans."""

    def run(task: Task) -> Solution:
        problem, options = task.problem, (task.epsilon, task.iterations, task.tolerance)
        if problem.kind == "packed":  # image by image: padding all to the longest doubles the work
            return together([run(Task(image, *options)) for image in problem.images()])
        cost = cosine_cost(problem)
        plan = solve(cost, *options)
        if problem.kind == "joint":
            return Solution(group_shares(plan, cost, problem), lambda: [plan.double().sum(-1)])
        values = (transport_cost(plan, cost).view(len(problem.lengths), -1),)
        return Solution(values, lambda: [plan.double().sum(-1)])

    return run


def together(images: list[Solution]) -> Solution:
    """Join the solutions of single images."""
    values = tuple(torch.cat(parts) for parts in zip(*(image.values for image in images), strict=True))
    return Solution(values, lambda: [rows for image in images for rows in image.row_sums()])
