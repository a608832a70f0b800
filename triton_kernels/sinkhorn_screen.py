"""Screening by bounds before any iteration: the operator `guardcore::sinkhorn_screen`.

The kernels are those of `sinkhorn`, which compute the bounds on their way: see `screening`. Definition:
`guardcore.reference.sinkhorn_screen`.
"""

from typing import Any

import torch
from torch import Tensor

from .screening import DISTANCE, PATCH_SCORE
from .sinkhorn import Plan, Screening, empty_plan, with_workspace


def sinkhorn_screen(patches: Tensor, prototypes: Tensor, threshold: Tensor, *rest: Any) -> Plan:
    """Launch `guardcore::sinkhorn_screen`, threshold[C]: see `guardcore.ops.sinkhorn_screen`."""
    B, N, _ = patches.shape
    plan = empty_plan(prototypes, B, (B, len(prototypes), N))
    return _screened(patches, None, prototypes, threshold, rest, plan)


def sinkhorn_screen_packed(
    patches: Tensor, cu_seqlens: Tensor, prototypes: Tensor, threshold: Tensor, *rest: Any
) -> Plan:
    """Launch `guardcore::sinkhorn_screen_packed`: see `guardcore.ops.sinkhorn_screen_packed`."""
    plan = empty_plan(prototypes, len(cu_seqlens) - 1, (len(prototypes), len(patches)))
    return _screened(patches, cu_seqlens, prototypes, threshold, rest, plan)


def _screened(
    patches: Tensor,
    cu_seqlens: Tensor | None,
    prototypes: Tensor,
    threshold: Tensor,
    rest: tuple[Any, ...],
    plan: Plan,
) -> Plan:
    """rest: two weights, by_distance, and the options."""
    pairs = plan[0]
    cleared = torch.empty_like(pairs, dtype=torch.bool)
    statistic = DISTANCE if rest[2] else PATCH_SCORE
    screening = Screening(threshold.contiguous(), cleared.view(torch.uint8), torch.empty_like(pairs), statistic)
    with_workspace(patches, cu_seqlens, prototypes, (*rest[:2], *rest[3:]), plan, screening)
    return (cleared, screening.bound, *plan[:6])
