"""Transport where only decisions count, bounds first: guardcore::sinkhorn_screen and sinkhorn_screen_packed."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from guardcore import reference
from guardcore.ops import checks, gradient
from guardcore.ops.registration import MARGINALS, OPTIONS, Operator, Shape, register

Statistic = Literal["patch_score", "distance"]

_NAMES = (
    "cleared", "bound", "distance", "patch_cost", "patch_score", "objective", "iterations", "marginal_error",
)  # fmt: skip
_RESULTS = dict.fromkeys(_NAMES, torch.float32) | {"cleared": torch.bool, "iterations": torch.int32}
_BANK = f"Tensor prototypes, Tensor threshold, {MARGINALS}, bool by_distance, {OPTIONS}"


class ScreenOutput(NamedTuple):
    """B items screened against C categories: bounds of all pairs, transport of those that the bounds did not clear.

    cleared[B, C] bool: bound > threshold, so that the pair is no hit. bound[B, C] float32: at most the statistic, in
    exact arithmetic. The other fields are those of `SinkhornOutput`, bit for bit, where a pair is not cleared; where it
    is they are NaN and `iterations` is 0. Packed calls have [C, T] in place of [B, C, N].
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
    *,
    statistic: Statistic = "patch_score",
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
) -> ScreenOutput:
    """`sinkhorn` of the pairs that can be hits, and a proof for each of the others that it can't.

    A pair (b, c) is a hit if its statistic is at most threshold[c]; a tie is one. Hits are the same as after `sinkhorn`
    of all pairs. Bounds, with C_nm = 1 - cos(patch n, prototype m):

        patch_score:  min_n patch_score[n] >= min_{n, m: b_m > 0} C_nm
        distance:     <T, C> >= sum_m b_m min_n C_nm, b the prototypes' shares; none where `relaxation` is a number

    `bound` is lower by the rounding of its computation (about 1e-5 in float32, more where the CPU kernel needs no
    float32: docs/decisions/0010-screening-cascade.md), so that it can be verified in float64.

    threshold: [C] float32; -inf clears all pairs that have a bound, +inf none. statistic: what is compared with it,
    "patch_score" (the lowest over the patches) or "distance". Everything else is as in `sinkhorn`.

    Returns:
        ScreenOutput, without gradients. Where `sinkhorn` gives NaN, `bound` is NaN and nothing is cleared.

    Raises:
        TypeError: a wrong dtype.
        ValueError: as in `sinkhorn`; an unknown statistic; on the CPU a threshold that is NaN (never cleared on CUDA).

    Source: the distance bound is one side of the relaxed word mover's distance (Kusner et al. 2015, section 4).
    """
    options = (_by_distance(statistic), epsilon, max_iterations, tolerance, relaxation)
    _check(patches, prototypes, threshold, patch_weights, prototype_weights, *options)
    _check_values(threshold)
    weights = checks.admit_weights(patches, prototypes, patch_weights, prototype_weights)
    return ScreenOutput(*torch.ops.guardcore.sinkhorn_screen(patches, prototypes, threshold, *weights, *options))


def sinkhorn_screen_packed(
    patches: Tensor,
    cu_seqlens: Tensor,
    prototypes: Tensor,
    threshold: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    *,
    statistic: Statistic = "patch_score",
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
) -> ScreenOutput:
    """`sinkhorn_screen` for items of different lengths, laid out as in `sinkhorn_packed`."""
    options = (_by_distance(statistic), epsilon, max_iterations, tolerance, relaxation)
    _check_packed(patches, cu_seqlens, prototypes, threshold, patch_weights, prototype_weights, *options)
    checks.check_offset_values(cu_seqlens, patches)
    _check_values(threshold)
    weights = checks.admit_weights(patches, prototypes, patch_weights, prototype_weights, cu_seqlens)
    tensors = (patches, cu_seqlens, prototypes, threshold)
    return ScreenOutput(*torch.ops.guardcore.sinkhorn_screen_packed(*tensors, *weights, *options))


def _by_distance(statistic: str) -> bool:
    if statistic not in get_args(Statistic):
        raise ValueError(f"statistic must be one of {', '.join(get_args(Statistic))}, got {statistic!r}")
    return statistic == "distance"


def _check(
    patches: Tensor,
    prototypes: Tensor,
    threshold: Tensor,
    patch_weights: Tensor | None,
    prototype_weights: Tensor | None,
    *options: Any,
    cu_seqlens: Tensor | None = None,
) -> None:
    weights, solver = (patch_weights, prototype_weights), options[1:]  # after by_distance
    checks.check_sinkhorn(patches, prototypes, *weights, *solver, cu_seqlens=cu_seqlens)
    if threshold.shape != prototypes.shape[:1]:
        raise ValueError(f"threshold must have shape {list(prototypes.shape[:1])}, got {list(threshold.shape)}")
    if threshold.dtype != torch.float32:
        raise TypeError(f"threshold must be float32, the results' dtype, got {threshold.dtype}")
    checks.check_device("threshold", threshold, patches)


def _check_packed(patches: Tensor, cu_seqlens: Tensor, *rest: Any) -> None:
    _check(patches, *rest, cu_seqlens=cu_seqlens)


def _check_values(threshold: Tensor) -> None:
    if checks.readable(threshold) and bool(threshold.isnan().any()):
        raise ValueError(f"threshold must not be NaN, got NaN at {threshold.isnan().nonzero()[0].tolist()}")


def _shapes(patches: Tensor, prototypes: Tensor, *_: Any) -> tuple[Shape, ...]:
    B, N, C = *patches.shape[:2], prototypes.shape[0]
    return _screen_shapes((B, C), (B, C, N))


def _packed_shapes(patches: Tensor, cu_seqlens: Tensor, prototypes: Tensor, *_: Any) -> tuple[Shape, ...]:
    T, B, C = patches.shape[0], cu_seqlens.shape[0] - 1, prototypes.shape[0]
    return _screen_shapes((B, C), (C, T))


def _screen_shapes(pairs: Shape, per_patch: Shape) -> tuple[Shape, ...]:
    return (pairs, pairs, pairs, per_patch, per_patch, pairs, pairs, pairs)


register(
    Operator(
        name="sinkhorn_screen",
        inputs=f"Tensor patches, {_BANK}",
        outputs=_RESULTS,
        definition=reference.sinkhorn_screen,
        kernels="sinkhorn_screen",
        check=_check,
        shapes=_shapes,
        autograd=gradient.INFERENCE_ONLY,
    )
)
register(
    Operator(
        name="sinkhorn_screen_packed",
        inputs=f"Tensor patches, Tensor cu_seqlens, {_BANK}",
        outputs=_RESULTS,
        definition=reference.sinkhorn_screen_packed,
        kernels="sinkhorn_screen",
        check=_check_packed,
        shapes=_packed_shapes,
        autograd=gradient.INFERENCE_ONLY,
    )
)
