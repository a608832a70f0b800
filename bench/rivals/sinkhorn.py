"""Ways to get the Sinkhorn distances [B, C] of patches [B, N, D] and prototypes [C, M, D] at a fixed iteration count.

Every rival starts from the raw embeddings (normalization and cost matrix included) and ends at <T, C>, as our
operator does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from guardcore import ops, reference

Distance = Callable[[Tensor, Tensor, float, int], Tensor]


def cosine_cost(patches: Tensor, prototypes: Tensor) -> Tensor:
    """Return C = 1 - cos of every image with every category, shape [B, C, N, M]."""
    return 1.0 - torch.einsum("bnd,cmd->bcnm", normalize(patches, dim=-1), normalize(prototypes, dim=-1))


def guardcore_op(patches: Tensor, prototypes: Tensor, epsilon: float, iterations: int) -> Tensor:
    """guardcore.ops.sinkhorn."""
    return ops.sinkhorn(patches, prototypes, epsilon=epsilon, max_iterations=iterations, tolerance=0.0).distance


def definition(patches: Tensor, prototypes: Tensor, epsilon: float, iterations: int) -> Tensor:
    """guardcore.reference: log domain in plain PyTorch."""
    return reference.sinkhorn(patches, prototypes, epsilon=epsilon, max_iterations=iterations, tolerance=0.0).distance


def torch_exp_bmm(patches: Tensor, prototypes: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The loop that most published code uses: K = exp(-C/eps) of all pairs, two batched products an iteration."""
    cost = cosine_cost(patches, prototypes).flatten(0, 1)
    kernel = torch.exp(-cost / epsilon)
    rows, columns = cost.shape[1:]
    v = cost.new_full((len(cost), columns, 1), 1.0 / columns)
    for _ in range(iterations):
        u = (1.0 / rows) / (kernel @ v)
        v = (1.0 / columns) / (kernel.mT @ u)
    return (u * kernel * v.mT * cost).sum((1, 2)).view(len(patches), -1)


def pot_batch(patches: Tensor, prototypes: Tensor, epsilon: float, iterations: int) -> Tensor:
    """POT's batched solver on expanded pairs."""
    import ot

    cost = cosine_cost(patches, prototypes).flatten(0, 1)
    plan = ot.batch.solve_batch(cost, reg=epsilon, max_iter=iterations, tol=0.0, method="sinkhorn").plan
    return (plan * cost).sum((1, 2)).view(len(patches), -1)


def pot_loop(patches: Tensor, prototypes: Tensor, epsilon: float, iterations: int) -> Tensor:
    """POT's ot.sinkhorn, one call a pair, NumPy; transposed, so that its order of updates is ours."""
    import ot

    cost = cosine_cost(patches, prototypes).flatten(0, 1).mT.numpy().astype("float64")
    plans = (ot.sinkhorn([], [], c, epsilon, numItermax=iterations, stopThr=0.0, warn=False) for c in cost)
    return torch.tensor([(plan * c).sum() for plan, c in zip(plans, cost, strict=True)]).view(len(patches), -1)


RIVALS: dict[str, Distance] = {
    "guardcore": guardcore_op,
    "definition (torch, log domain)": definition,
    "torch exp, bmm loop": torch_exp_bmm,
    "POT ot.batch": pot_batch,
    "POT ot.sinkhorn loop": pot_loop,
}
