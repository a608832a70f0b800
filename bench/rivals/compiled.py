"""The plain PyTorch loops under torch.compile (default mode, one graph): ten iterations a call, unrolled.

A graph of all fifty would take minutes to compile, with nothing more to fuse: row and column sums keep iterations
apart. The stop rule is looked at after every ten.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.rivals.contender import Contender, by_plans, gibbs

STRIDE = 10
Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
PlanOf = Callable[[Tensor, Tensor, Tensor], Tensor]


def bmm_step(kernel: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration by batched products."""
    u = a / torch.bmm(kernel, v.unsqueeze(2)).squeeze(2)
    return u, b / torch.bmm(u.unsqueeze(1), kernel).squeeze(1)


def mul_sum_step(kernel: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration by multiply and sum."""
    u = a / (kernel * v.unsqueeze(1)).sum(2)
    return u, b / (kernel * u.unsqueeze(2)).sum(1)


def log_step(negative: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration in the log domain on -C / eps; a and b are logarithms, too."""
    u = a - torch.logsumexp(negative + v.unsqueeze(1), 2)
    return u, b - torch.logsumexp(negative + u.unsqueeze(2), 1)


def exp_plan(kernel: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """T = u K v."""
    return u.unsqueeze(2) * kernel * v.unsqueeze(1)


def log_plan(negative: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """T = exp(u - C / eps + v)."""
    return torch.exp(negative + u.unsqueeze(2) + v.unsqueeze(1))


def several(step: Step) -> Callable[..., tuple[Tensor, Tensor]]:
    """STRIDE iterations as one function."""

    def run(matrix: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        u = v
        for _ in range(STRIDE):
            u, v = step(matrix, v, a, b)
        return u, v

    return run


def largest_row_error(plan: PlanOf) -> Callable[..., Tensor]:
    """The largest L1 row error of a batch of plans as one function."""

    def run(matrix: Tensor, u: Tensor, v: Tensor, weight: Tensor) -> Tensor:
        return (plan(matrix, u, v).sum(2) - weight).abs().sum(1).max()

    return run


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call; for a second shape with symbolic sizes.

    A copy, because compiled versions belong to a code object and are few.
    """
    own = types.FunctionType(function.__code__.replace(), globals(), function.__name__, None, function.__closure__)
    return torch.compile(own, fullgraph=True)


class Compiled:
    """A loop of compiled pieces."""

    def __init__(self, step: Step, plan: PlanOf, logarithmic: bool) -> None:
        self.logarithmic = logarithmic
        self.step, self.plan, self.error = compiled(several(step)), compiled(plan), compiled(largest_row_error(plan))

    def __call__(self, cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> Tensor:
        """Return the plans after `iterations`, a multiple of ten."""
        matrix = cost * (-1 / epsilon) if self.logarithmic else gibbs(cost, epsilon)
        weights = cost.new_tensor(1 / cost.shape[1]), cost.new_tensor(1 / cost.shape[2])
        a, b = (weight.log() for weight in weights) if self.logarithmic else weights
        u, v = matrix, b.expand(len(cost), cost.shape[2]).contiguous()
        for _ in range(iterations // STRIDE):
            u, v = self.step(matrix, v, a, b)
            if tolerance and float(self.error(matrix, u, v, weights[0])) <= tolerance:
                break
        return self.plan(matrix, u, v)


def contender(name: str, step: Step, plan: PlanOf, logarithmic: bool) -> Contender:
    """Contender around compiled pieces; nothing compiles before the first call."""
    return Contender(name, by_plans(Compiled(step, plan, logarithmic)), forget=torch.compiler.reset)


CONTENDERS = (
    contender("torch.compile exp, bmm", bmm_step, exp_plan, logarithmic=False),
    contender("torch.compile exp, mul-sum", mul_sum_step, exp_plan, logarithmic=False),
    contender("torch.compile log", log_step, log_plan, logarithmic=True),
)
