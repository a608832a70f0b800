"""Which categories can be near an item at all? Lower bounds clear most pairs before any iteration: the definition.

Pair (b, c) is a hit if its statistic, min_n patch_score[n] or distance, is at most threshold[c]. From the cost alone,

    patch score:  min_n patch_score[n] >= min_{n, m: b_m > 0} C_nm, since a patch's score is a mean of its costs;
    distance:     <T, C> >= sum_m b_m min_n C_nm, since the columns of every iterate, the last one too, sum to b.

The second is half of the relaxed word mover's distance (Kusner et al. 2015, section 4). The other half, by rows, would
need a bound on the row error of a plan that is stopped early; and with a relaxed marginal the columns are not exact
either, so that nothing is cleared by distance there.

A pair is cleared if its bound is above the threshold, and then it is no hit; a tie is solved. The bound is less than
the rounding of its own computation, so that it holds in exact arithmetic: a cleared pair's bound is its certificate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from guardcore.reference.sinkhorn import (
    Plan,
    cosine_cost,
    one_by_one,
    pack,
    plan_of,
    result_dtype,
    rounded,
    simplex,
    spans,
    working,
)


class Screen(NamedTuple):
    """The screened pairs of B items and C categories: the fields of `guardcore.ops.ScreenOutput`.

    Packed calls have [C, T] in place of [B, C, N].
    """

    cleared: Tensor
    bound: Tensor
    distance: Tensor
    patch_cost: Tensor
    patch_score: Tensor
    objective: Tensor
    iterations: Tensor
    marginal_error: Tensor


def sinkhorn_screen(
    patches: Tensor,
    prototypes: Tensor,
    threshold: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    by_distance: bool = False,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
) -> Screen:
    """Bound patches[B, N, D] against prototypes[C, M, D], and solve the pairs whose bound is <= threshold[C].

    See `guardcore.ops.sinkhorn_screen` for the results. Pairs that are solved hold what `sinkhorn` returns.
    """
    if len(patches) > 1:  # as in `sinkhorn`: one item at a time stays in the cache
        options = (prototype_weights, by_distance, epsilon, max_iterations, tolerance, relaxation)
        items = [
            sinkhorn_screen(own, prototypes, threshold, weights, *options)
            for own, weights in one_by_one(patches, patch_weights)
        ]
        return Screen(*map(torch.cat, zip(*items, strict=True)))
    dtype, patches, prototypes = result_dtype(patches), working(patches), working(prototypes)
    a = simplex(patch_weights, patches)[:, None, :]  # [B, 1, N]
    b = simplex(prototype_weights, prototypes)  # [C, M]
    cost = cosine_cost(patches, prototypes)
    slack = _slack(cost.dtype, patches.shape[-1], prototypes.shape[-2])
    bound = rounded_down(_bound(cost, a, b, epsilon, relaxation, by_distance) - slack, dtype)
    cleared = bound > threshold
    todo = (~cleared).any(0)  # of one item, or none
    part = plan_of(cost[:, todo], a, b[todo], epsilon, max_iterations, tolerance, relaxation)
    return Screen(cleared, bound, *_spread(Plan(*(rounded(field, dtype) for field in part)), todo))


def sinkhorn_screen_packed(
    patches: Tensor,
    cu_seqlens: Tensor,
    prototypes: Tensor,
    threshold: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    by_distance: bool = False,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
) -> Screen:
    """Screen items of different lengths, laid out as in `sinkhorn_packed`."""
    options = (prototype_weights, by_distance, epsilon, max_iterations, tolerance, relaxation)
    nothing = sinkhorn_screen(patches[None, :0].expand(0, -1, -1), prototypes, threshold, None, *options)
    items = [nothing]
    for own in spans(cu_seqlens, patches.shape[0]):
        weights = None if patch_weights is None else patch_weights[None, own]
        items.append(sinkhorn_screen(patches[None, own], prototypes, threshold, weights, *options))
    packed = {"patch_cost", "patch_score"}
    fields = zip(Screen._fields, zip(*items, strict=True), strict=True)
    return Screen(*(pack(parts) if name in packed else torch.cat(parts) for name, parts in fields))


def rounded_down(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest number of the dtype that is not above each value."""
    nearest = values.to(dtype)
    below = nearest.nextafter(torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.to(values.dtype) > values, below, nearest)


def _bound(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, relaxation: float | None, by_distance: bool) -> Tensor:
    """The statistic's lower bound on cost[B, C, N, M] as it is: [B, C], NaN where `sinkhorn` gives NaN."""
    if cost.shape[2] == 0:
        return cost.new_full(cost.shape[:2], torch.nan)
    nearest = cost.amin(dim=2)  # [B, C, M], NaN if any patch is
    missing = 0 * (nearest.sum(-1) + a.sum(-1) + b.sum(-1))  # NaN also at a prototype without weight
    if not by_distance:
        return nearest.masked_fill(b == 0, torch.inf).amin(-1) + missing
    if relaxation is not None:
        return missing - torch.inf
    # what the solver's own rounding can take off a sum of nonnegative terms: their count, and exponents over epsilon
    share = torch.finfo(cost.dtype).eps * (cost.shape[2] + cost.shape[3] + 16 / epsilon)
    return (b * nearest).sum(-1) * (1 - share) + missing


def _slack(dtype: torch.dtype, width: int, prototypes: int) -> float:
    """What rounding can do to a bound at most: (D + M + 16) unit roundoffs, four times over.

    A row's length takes D products and sums, a square root and a division; the cosine of two such rows D more; the mean
    that makes a score, or the sum that makes the bound of a distance, M terms of at most 2.
    """
    return 2 * (width + prototypes + 16) * torch.finfo(dtype).eps


def _spread(part: Plan, todo: Tensor) -> list[Tensor]:
    """Results of the categories in todo[C] at their places; NaN, or zero iterations, at the others."""
    spread = []
    for field in part[:6]:
        missing = torch.nan if field.is_floating_point() else 0
        whole = field.new_full((field.shape[0], len(todo), *field.shape[2:]), missing)
        whole[:, todo] = field
        spread.append(whole)
    return spread
