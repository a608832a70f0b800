"""Plain PyTorch: the loops that people write."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.rivals.contender import (
    Contender,
    Solution,
    Task,
    by_plans,
    falling,
    gibbs,
    group_shares,
    together,
    transport_cost,
)

Product = Callable[[Tensor, Tensor], Tensor]


def scale(kernel: Tensor, rows_of: Product, columns_of: Product, iterations: int, tolerance: float) -> Tensor:
    """Return the plans u K v after Sinkhorn's iterations; the batch stops on its worst problem's L1 row error."""
    _, N, M = kernel.shape
    u, v = kernel.new_empty(()), kernel.new_full((len(kernel), M), 1 / M)
    for done in range(iterations + 1):
        if done == iterations and not tolerance:
            break
        rows = rows_of(kernel, v)
        if tolerance and done and (done == iterations or row_error(u, rows) <= tolerance):
            break
        u = (1 / N) / rows
        v = (1 / M) / columns_of(kernel, u)
    return u.unsqueeze(2) * kernel * v.unsqueeze(1)


def row_error(u: Tensor, rows: Tensor) -> float:
    """Return the largest L1 error of the row sums u (K v) of a batch."""
    return float((u * rows - 1 / rows.shape[1]).abs().sum(1).max())


def exp_bmm(cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> Tensor:
    """K = exp(-C / eps) of all pairs, two batched matrix-vector products an iteration."""

    def rows(kernel: Tensor, v: Tensor) -> Tensor:
        return torch.bmm(kernel, v.unsqueeze(2)).squeeze(2)

    def columns(kernel: Tensor, u: Tensor) -> Tensor:
        return torch.bmm(u.unsqueeze(1), kernel).squeeze(1)

    return scale(gibbs(cost, epsilon), rows, columns, iterations, tolerance)


def exp_mul_sum(cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> Tensor:
    """The same with products written as multiply and sum, which a compiler can fuse."""

    def rows(kernel: Tensor, v: Tensor) -> Tensor:
        return (kernel * v.unsqueeze(1)).sum(2)

    def columns(kernel: Tensor, u: Tensor) -> Tensor:
        return (kernel * u.unsqueeze(2)).sum(1)

    return scale(gibbs(cost, epsilon), rows, columns, iterations, tolerance)


def log_domain(cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> Tensor:
    """Potentials by logsumexp; u and v below are their logarithms over epsilon."""
    negative = cost * (-1 / epsilon)
    _, N, M = cost.shape
    u, v = negative.new_empty(()), negative.new_full((len(cost), M), -math.log(M))
    for done in range(iterations + 1):
        if done == iterations and not tolerance:
            break
        rows = torch.logsumexp(negative + v.unsqueeze(1), 2)
        if tolerance and done and (done == iterations or row_error((u + rows).exp(), torch.ones_like(u)) <= tolerance):
            break
        u = -math.log(N) - rows
        v = -math.log(M) - torch.logsumexp(negative + u.unsqueeze(2), 1)
    return torch.exp(negative + u.unsqueeze(2) + v.unsqueeze(1))


def prompt_learning(task: Task) -> Solution:
    """The loop of PLOT (arXiv 2210.01253, algorithm 1) and of those who took it over, such as AWT (arXiv 2407.04603).

    Pairs are expanded and multiplied pair by pair; it stops when the scaling of the rows changes little on average
    over the batch. The published fixed threshold depends on the number of patches; here it is the caller's.
    """
    problem = task.problem
    if problem.kind == "packed":
        return together(
            [prompt_learning(Task(i, task.epsilon, task.iterations, task.tolerance)) for i in problem.images()]
        )
    B, (C, M, D) = len(problem.lengths), problem.prototypes.shape
    patches = normalize(problem.batch, dim=-1).unsqueeze(1).expand(-1, C, -1, -1).reshape(B * C, -1, D)
    prototypes = normalize(problem.prototypes, dim=-1).expand(B, -1, -1, -1).reshape(B * C, M, D)
    cost = 1 - torch.bmm(patches, prototypes.mT)
    kernel = gibbs(cost, task.epsilon)
    N = cost.shape[1]
    r, c = kernel.new_ones(B * C, N, 1), kernel.new_ones(B * C, M, 1)
    for _ in range(task.iterations):
        before = r
        r = (1 / N) / torch.bmm(kernel, c)
        c = (1 / M) / torch.bmm(kernel.mT, r)
        if task.tolerance and float((r - before).abs().mean()) < task.tolerance:
            break
    plan = r * kernel * c.mT
    if problem.kind == "joint":
        values = group_shares(plan, cost, problem)
    else:
        values = (transport_cost(plan, cost).view(B, C),)
    return Solution(values, lambda: [plan.double().sum(-1)])


def row_scaling_change(tolerance: float, rows: int) -> list[float]:
    """PLOT's own criterion: r is about exp(C / epsilon) / N, so that any power of ten may be right."""
    return falling(1e9 * tolerance / rows, 15)


CONTENDERS = (
    Contender("torch exp, bmm", by_plans(exp_bmm)),
    Contender("torch exp, mul-sum", by_plans(exp_mul_sum)),
    Contender("torch log", by_plans(log_domain)),
    Contender("PLOT/AWT loop", prompt_learning, criterion=row_scaling_change),
)
