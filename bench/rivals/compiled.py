"""The plain PyTorch loops under torch.compile (default mode, one graph): ten iterations a call, unrolled.

A graph of all fifty is no faster, as nothing fuses across a row and a column sum, and takes minutes to compile. The
stop rule is looked at after every ten.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable

import torch
from torch import Tensor

from bench.rivals.contender import Contender, by_plans, gibbs

STRIDE = 10
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def bmm_step(kernel: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration by batched products."""
    u = (1 / kernel.shape[1]) / torch.bmm(kernel, v.unsqueeze(2)).squeeze(2)
    return u, (1 / kernel.shape[2]) / torch.bmm(u.unsqueeze(1), kernel).squeeze(1)


def mul_sum_step(kernel: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration by multiply and sum."""
    u = (1 / kernel.shape[1]) / (kernel * v.unsqueeze(1)).sum(2)
    return u, (1 / kernel.shape[2]) / (kernel * u.unsqueeze(2)).sum(1)


def log_step(negative: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration in the log domain on -C / eps."""
    u = -math.log(negative.shape[1]) - torch.logsumexp(negative + v.unsqueeze(1), 2)
    return u, -math.log(negative.shape[2]) - torch.logsumexp(negative + u.unsqueeze(2), 1)


def exp_plan(kernel: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """T = u K v."""
    return u.unsqueeze(2) * kernel * v.unsqueeze(1)


def log_plan(negative: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """T = exp(u - C / eps + v)."""
    return torch.exp(negative + u.unsqueeze(2) + v.unsqueeze(1))


def several(step: Step, plan: Callable[[Tensor, Tensor, Tensor], Tensor], measured: bool) -> Callable[..., tuple]:
    """STRIDE iterations as one function; with the largest L1 row error of what comes out, if measured."""

    def run(matrix: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        u = v
        for _ in range(STRIDE):
            u, v = step(matrix, v)
        if not measured:
            return u, v
        return u, v, (plan(matrix, u, v).sum(2) - 1 / matrix.shape[1]).abs().sum(1).max()

    # compiled versions belong to a code object and are few: each loop needs one of its own
    return types.FunctionType(run.__code__.replace(), globals(), f"{step.__name__}s", None, run.__closure__)


class Compiled:
    """A loop whose pieces are compiled for every new shape."""

    def __init__(self, step: Step, plan: Callable[[Tensor, Tensor, Tensor], Tensor], logarithmic: bool) -> None:
        compiled = functools.partial(torch.compile, fullgraph=True)
        self.logarithmic = logarithmic
        self.plan = compiled(types.FunctionType(plan.__code__.replace(), globals()))
        self.steps = {measured: compiled(several(step, plan, measured)) for measured in (False, True)}

    def __call__(self, cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> Tensor:
        """Return the plans after `iterations`, a multiple of ten."""
        matrix = cost * (-1 / epsilon) if self.logarithmic else gibbs(cost, epsilon)
        start = -math.log(cost.shape[2]) if self.logarithmic else 1 / cost.shape[2]
        u, v = matrix, matrix.new_full((len(cost), cost.shape[2]), start)
        for _ in range(iterations // STRIDE):
            u, v, *error = self.steps[tolerance > 0](matrix, v)
            if tolerance and float(error[0]) <= tolerance:
                break
        return self.plan(matrix, u, v)


def contender(name: str, step: Step, plan: Callable[[Tensor, Tensor, Tensor], Tensor], logarithmic: bool) -> Contender:
    """Contender around compiled pieces; nothing compiles before the first call."""
    return Contender(name, by_plans(Compiled(step, plan, logarithmic)), forget=torch.compiler.reset)


CONTENDERS = (
    contender("torch.compile exp, bmm", bmm_step, exp_plan, logarithmic=False),
    contender("torch.compile exp, mul-sum", mul_sum_step, exp_plan, logarithmic=False),
    contender("torch.compile log", log_step, log_plan, logarithmic=True),
)
