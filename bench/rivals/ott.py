"""OTT-JAX: everything from the embeddings to the distances in one jitted function, the pairs by vmap."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.cases import Problem
from bench.rivals.contender import Contender, Solution, Solve, Task


@functools.cache
def compiled(log_domain: bool, iterations: int, stops: bool, groups: int) -> Callable[..., Any]:
    """Return the jitted function (patches, weights, prototypes, group, epsilon, tolerance) -> values, row sums.

    Costs are transposed, so that its order of updates is ours: with the fixed number of iterations it is a scan, else a
    loop that looks at the L1 row error every ten iterations and runs all pairs until the last one is done.
    """
    import jax
    import jax.numpy as jnp
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    bounds = {} if stops else {"min_iterations": iterations, "inner_iterations": iterations}

    def pair(patches: Any, weights: Any, prototypes: Any, group: Any, epsilon: Any, tolerance: Any) -> Any:
        cost = 1 - prototypes @ patches.T
        # a factor per patch is part of its scaling, and keeps the exponentials in float32's range
        level = 0 if log_domain else cost.min(0, keepdims=True)
        solver = Sinkhorn(lse_mode=log_domain, threshold=tolerance, max_iterations=iterations, **bounds)
        plan = solver(LinearProblem(Geometry(cost - level, epsilon=epsilon), b=weights)).matrix
        rows = plan.sum(0)
        if not groups:
            return ((plan * cost).sum(),), rows
        member = jax.nn.one_hot(group, groups)
        return (member.T @ (plan / rows), member.T @ (plan * cost / rows)), rows

    def unit(rows: Any) -> Any:
        return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)

    @jax.jit
    def run(patches: Any, weights: Any, prototypes: Any, group: Any, epsilon: float, tolerance: float) -> Any:
        images = jax.vmap(pair, (0, 0, None, None, None, None))  # over images, with the prototypes of one category
        pairs = images if groups else jax.vmap(images, (None, None, 0, None, None, None), 1)
        bank = unit(prototypes)[0] if groups else unit(prototypes)
        return pairs(unit(patches), weights, bank, group, epsilon, tolerance)

    return run


def solver(log_domain: bool) -> Solve:
    """Contender in the log domain or with the kernel matrix."""

    def run(task: Task) -> Solution:
        problem = task.problem
        function = compiled(log_domain, task.iterations, task.tolerance > 0, problem.num_groups)
        group = None if problem.group is None else shared(problem.group)
        options = (shared(problem.prototypes), group, task.epsilon, task.tolerance)
        outputs = [function(*map(shared, points), *options) for points in padded(problem)]
        values = [[torch.from_dlpack(value) for value in output[0]] for output in outputs]
        counts = (n for n in problem.lengths) if problem.kind == "packed" else iter(problem.lengths[:1])
        rows = [torch.from_dlpack(output[1])[..., :count] for output, count in zip(outputs, counts, strict=True)]
        return Solution(tuple(torch.cat(parts) for parts in zip(*values, strict=True)), lambda: rows)

    return run


def padded(problem: Problem) -> list[tuple[Tensor, Tensor]]:
    """Patches [B, N, D] with their weights [B, N]: the batch; or each packed image, filled to a power of two.

    Filling has weight zero and saves compiling for every length.
    """
    if problem.kind != "packed":
        batch = problem.batch
        return [(batch, batch.new_full(batch.shape[:2], 1 / batch.shape[1]))]
    images = []
    for own, length in zip(problem.patches.split(problem.lengths), problem.lengths, strict=True):
        size = 1 << (length - 1).bit_length()
        points, weights = own.new_ones(1, size, own.shape[1]), own.new_zeros(1, size)
        points[0, :length], weights[0, :length] = own, 1 / length
        images.append((points, weights))
    return images


def shared(tensor: Tensor) -> Any:
    """The tensor as a JAX array, without a copy where JAX allows it."""
    import jax

    return jax.numpy.from_dlpack(tensor)


CONTENDERS = (
    Contender("ott-jax log", solver(log_domain=True), "ott", devices=("cpu",)),
    Contender("ott-jax kernel", solver(log_domain=False), "ott", devices=("cpu",)),
)
