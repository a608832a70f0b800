"""POT: its batched solvers on torch tensors, and its classic solver called once a pair."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.rivals.contender import Contender, by_plans, falling, gibbs


def batched(cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> Tensor:
    """The batched scaling loop itself: ot.batch.solve_batch around it would also compute an entropy."""
    from ot.batch import bregman_projection_batch

    a, b = uniform_marginals(cost)
    return bregman_projection_batch(gibbs(cost, epsilon), a, b, max_iter=iterations, tol=tolerance)["T"]


def batched_log(cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> Tensor:
    """The same loop in the log domain, which solve_batch takes by default."""
    from ot.batch import bregman_log_projection_batch

    a, b = uniform_marginals(cost)
    return bregman_log_projection_batch(cost * (-1 / epsilon), a, b, max_iter=iterations, tol=tolerance)["T"]


def uniform_marginals(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights [P, N] and [P, M]."""
    return tuple(cost.new_full(cost.shape[:2], 1 / cost.shape[1]) for cost in (cost, cost.mT))  # type: ignore[return-value]


def pair_by_pair(cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> Tensor:
    """ot.sinkhorn on NumPy arrays; transposed, so that its order of updates is ours.

    In float32 where that has the range; below epsilon 0.025 in float64, which needs no other method to be stable.
    """
    import ot

    dtype = torch.float32 if epsilon >= 0.025 else torch.float64
    options = {"numItermax": iterations, "stopThr": tolerance, "warn": False}
    plans = [ot.sinkhorn([], [], one.T, epsilon, **options) for one in cost.to(dtype).numpy()]
    return torch.stack([torch.from_numpy(plan) for plan in plans]).mT.to(cost.dtype)


def euclidean(tolerance: float, rows: int) -> list[float]:
    """POT measures the Euclidean length of the row error, whose L1 length is up to sqrt(N) times that."""
    return falling(10 * tolerance / math.sqrt(rows), 1.5)


CONTENDERS = (
    Contender("POT ot.batch", by_plans(batched), "ot", criterion=euclidean),
    Contender("POT ot.batch log", by_plans(batched_log), "ot", criterion=euclidean),
    Contender("POT ot.sinkhorn loop", by_plans(pair_by_pair), "ot", devices=("cpu",), criterion=euclidean),
)
