"""flash-sinkhorn: Triton kernels for one large problem of points, called once a pair. CUDA only.

Half the squared Euclidean distance of unit vectors is 1 - cosine. It gives potentials; the plan is formed from them.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from bench.rivals.contender import Contender, Solution, Task, cosine_cost, transport_cost


def pair_by_pair(task: Task) -> Solution:
    """Alternating updates in full float32; shared prototypes have to be passed once a pair."""
    from flash_sinkhorn import SamplesLoss

    problem = task.problem
    loss = SamplesLoss(
        backend="alternating", use_epsilon_scaling=False, half_cost=True, potentials=True, allow_tf32=False,
        eps=task.epsilon, n_iters=task.iterations, threshold=task.tolerance or None,
    )  # fmt: skip
    bank = normalize(problem.prototypes, dim=-1)
    distances, rows = [], []
    for image in problem.images():
        points, costs = normalize(image.patches, dim=-1), cosine_cost(image)
        for category, cost in zip(bank, costs, strict=True):
            f, g = loss(points, category)
            plan = torch.exp((f[:, None] + g - cost) / task.epsilon) / cost.numel()
            distances.append(transport_cost(plan[None], cost[None]))
            rows.append(plan.sum(1))
    return Solution((torch.cat(distances).view(len(problem.lengths), -1),), lambda: rows)


CONTENDERS = (
    Contender(
        "flash-sinkhorn", pair_by_pair, "flash_sinkhorn", kinds=("batch", "packed"), devices=("cuda",), gate=1e-4
    ),
)
