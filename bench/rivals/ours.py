"""guardcore's operators, with inputs of each precision, and their definition."""

from __future__ import annotations

from typing import Any

import torch

from bench.rivals.contender import Contender, Solution, Task
from guardcore import ops, reference


def operator(task: Task) -> Solution:
    """guardcore.ops: the kernels of the device."""
    return solution(ops, task)


def definition(task: Task) -> Solution:
    """guardcore.reference: log domain, float64 within, plain PyTorch."""
    return solution(reference, task)


def solution(functions: Any, task: Task) -> Solution:
    """Call the operator of the problem's kind."""
    problem = task.problem
    options = {"epsilon": task.epsilon, "max_iterations": task.iterations, "tolerance": task.tolerance}
    if problem.group is not None:
        options["num_groups"] = problem.num_groups
        joint = functions.joint_sinkhorn(problem.batch, problem.prototypes[0], problem.group, **options)
        return Solution((joint.group_mass, joint.group_cost), lambda: replay(task, joint.iterations))
    if problem.kind == "packed":
        out = functions.sinkhorn_packed(problem.patches, problem.cu_seqlens, problem.prototypes, **options)
    else:
        out = functions.sinkhorn(problem.batch, problem.prototypes, **options)
    # the score is the cost over the plan's own row sum
    per_image = problem.lengths if problem.kind == "packed" else out.patch_cost.shape[-1]
    return Solution((out.distance,), lambda: list((out.patch_cost / out.patch_score).split(per_image, dim=-1)))


def replay(task: Task, iterations: torch.Tensor) -> list[torch.Tensor]:
    """Row sums in float64 at the iteration where each image stopped: nothing that joint operators return gives them."""
    from guardcore.reference.sinkhorn import solve, unit_rows

    rows = []
    for image, count in zip(task.problem.images(), iterations.tolist(), strict=True):
        cost = 1 - unit_rows(image.patches.double()) @ unit_rows(image.prototypes[0].double()).T
        a, b = (cost.new_full((size,), 1 / size) for size in cost.shape)
        dual = solve(cost, a, b, task.epsilon, count, 0.0, None)
        rows.append(a * ((dual.f - dual.f_next) / task.epsilon).exp())
    return rows


CONTENDERS = (
    Contender("guardcore", operator),
    Contender("guardcore, bf16 inputs", operator, dtype=torch.bfloat16),
    Contender("guardcore, fp16 inputs", operator, dtype=torch.float16),
    Contender("definition", definition),
)
