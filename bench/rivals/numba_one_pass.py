"""Numba: what a day of careful work without C++ gives. One matrix product for all pairs, then problems in the cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.cases import Problem
from bench.rivals.contender import Contender, Solution, Task


def one_pass(task: Task) -> Solution:
    """Solve all problems; by as many threads as torch uses."""
    import numba
    import numpy as np

    from bench.rivals.numba_kernel import solve_all

    problem, (C, M, _) = task.problem, task.problem.prototypes.shape
    T, B, G = len(problem.patches), len(problem.lengths), problem.num_groups
    cosine = normalize(problem.patches, dim=-1) @ normalize(problem.prototypes, dim=-1).flatten(0, 1).T
    cost, rows = torch.empty(B, C), torch.empty(C, T)
    shares, costs = torch.zeros(G, T), torch.zeros(G, T)
    group = torch.empty(0, dtype=torch.int64) if problem.group is None else problem.group
    numba.set_num_threads(torch.get_num_threads())
    solve_all(
        cosine.numpy(), problem.cu_seqlens.numpy(), C, M, np.float32(1 / task.epsilon), task.iterations, task.tolerance,
        group.numpy(), cost.numpy(), rows.numpy(), shares.numpy(), costs.numpy(),
    )  # fmt: skip
    values = (cost,) if problem.group is None else (by_image(shares, problem), by_image(costs, problem))
    return Solution(values, lambda: list(rows.split(problem.lengths, dim=1)))


def by_image(per_patch: Tensor, problem: Problem) -> Tensor:
    """[G, T] as [B, G, N]."""
    return per_patch.unflatten(1, (len(problem.lengths), -1)).transpose(0, 1)


CONTENDERS = (Contender("numba one-pass", one_pass, "numba", devices=("cpu",)),)
