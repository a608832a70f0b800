"""One transport problem per image over the prototypes of all categories and the neutral anchors: the definition.

The same iteration as `guardcore.reference.sinkhorn`, on one shared bank of prototypes with a group (category) each. The
conditional plan p(m | n), summed over a group, says which share of patch n's mass goes there, in competition with all
other groups. With relaxation 0 it is a softmax over all prototypes with temperature epsilon and prior b.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from guardcore.reference.sinkhorn import (
    conditional_plan,
    full_precision,
    one_by_one,
    pack,
    result_dtype,
    rounded,
    simplex,
    solve,
    spans,
    unit_rows,
    working,
)


class JointPlan(NamedTuple):
    """Shares and costs of B items and G groups: the fields of `guardcore.ops.JointOutput`. Packed calls have [G, T]."""

    group_mass: Tensor
    group_cost: Tensor
    iterations: Tensor
    marginal_error: Tensor


def joint_sinkhorn(
    patches: Tensor,
    prototypes: Tensor,
    group: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    num_groups: int = 1,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
) -> JointPlan:
    """Solve B problems: patches[B, N, D] of an item against all prototypes[M, D], each in a group 0 ... num_groups - 1.

    group_mass[b, g, n] = sum_{m in g} p(m | n) and group_cost[b, g, n] = sum_{m in g} p(m | n) C_nm.
    See `guardcore.ops.joint_sinkhorn` for the arguments.
    """
    if len(patches) > 1:  # as in `sinkhorn`: one item at a time stays in the cache
        options = (prototype_weights, num_groups, epsilon, max_iterations, tolerance, relaxation)
        items = [joint_sinkhorn(own, prototypes, group, w, *options) for own, w in one_by_one(patches, patch_weights)]
        return JointPlan(*map(torch.cat, zip(*items, strict=True)))
    dtype, patches, prototypes = result_dtype(patches), working(patches), working(prototypes)
    a, b = simplex(patch_weights, patches), simplex(prototype_weights, prototypes)
    with full_precision(patches.device):
        cost = 1 - unit_rows(patches) @ unit_rows(prototypes).T  # [B, N, M]
    dual = solve(cost, a, b, epsilon, max_iterations, tolerance, relaxation)
    share = conditional_plan(cost, b, dual, epsilon)
    nothing = dual.marginal_error.isnan()[:, None, None]  # a NaN anywhere in an item is one in all of it
    plan = JointPlan(
        group_mass=_sum_groups(share, group, num_groups).masked_fill(nothing, torch.nan),
        group_cost=_sum_groups(share * cost, group, num_groups).masked_fill(nothing, torch.nan),
        iterations=dual.iterations,
        marginal_error=dual.marginal_error,
    )
    return JointPlan(*(rounded(field, dtype) for field in plan))


def joint_sinkhorn_packed(
    patches: Tensor,
    cu_seqlens: Tensor,
    prototypes: Tensor,
    group: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    num_groups: int = 1,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
) -> JointPlan:
    """Solve `joint_sinkhorn` for items of different lengths, laid out as in `sinkhorn_packed`."""
    options = (prototype_weights, num_groups, epsilon, max_iterations, tolerance, relaxation)
    nothing = joint_sinkhorn(patches[None, :0].expand(0, -1, -1), prototypes, group, None, *options)
    items = [nothing]
    for own in spans(cu_seqlens, patches.shape[0]):
        weights = None if patch_weights is None else patch_weights[None, own]
        items.append(joint_sinkhorn(patches[None, own], prototypes, group, weights, *options))
    packed = {"group_mass", "group_cost"}
    fields = zip(JointPlan._fields, zip(*items, strict=True), strict=True)
    return JointPlan(*(pack(parts) if name in packed else torch.cat(parts) for name, parts in fields))


def _sum_groups(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Sum values[B, N, M] over the prototypes of each group: [B, G, N]."""
    sums = values.new_zeros(*values.shape[:-1], num_groups)
    return sums.index_add(-1, group, values).transpose(-1, -2).contiguous()
