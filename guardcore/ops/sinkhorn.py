"""Entropic transport of items to categories, one problem a pair: guardcore::sinkhorn and sinkhorn_packed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from guardcore import reference
from guardcore.ops import buffers, checks, gradient
from guardcore.ops.registration import MARGINALS, OPTIONS, Operator, Shape, register

_NAMES = ("distance", "patch_cost", "patch_score", "objective", "iterations", "marginal_error", "f", "g")
_RESULTS = dict.fromkeys(_NAMES, torch.float32) | {"iterations": torch.int32}  # the potentials f, g are for backward


class SinkhornOutput(NamedTuple):
    """Transport of B items to C categories; float32 but for `iterations`. Only `objective` carries a gradient, by
    patches and prototypes; it is the plan's, so exact at convergence and off by about the marginal error before.

    distance[B, C]: <T, C>, the transport cost, 0 ... 2. patch_cost[B, C, N]: sum_m T_nm C_nm, sums to distance over n.
    patch_score[B, C, N]: patch_cost over the plan's row sum, by the conditional plan and so defined at zero weight too;
    min_m C_nm <= patch_score <= 2. objective[B, C]: the dual value, a lower bound of <T, C> + epsilon KL(T || a b^T).
    iterations[B, C] int32. marginal_error[B, C]: L1 error of the plan's row sums.
    Packed calls have [C, T] in place of [B, C, N].
    """

    distance: Tensor
    patch_cost: Tensor
    patch_score: Tensor
    objective: Tensor
    iterations: Tensor
    marginal_error: Tensor


class SinkhornBuffers(NamedTuple):
    """Where `sinkhorn` or `sinkhorn_packed` writes with out=: tensors from `sinkhorn_buffers`.

    The fields of SinkhornOutput, the potentials f[B, C, N] ([C, T] packed) and g[B, C, M], and on a GPU a float32
    workspace, whose content means nothing. A call overwrites all of it.
    """

    distance: Tensor
    patch_cost: Tensor
    patch_score: Tensor
    objective: Tensor
    iterations: Tensor
    marginal_error: Tensor
    f: Tensor
    g: Tensor
    workspace: Tensor | None = None


def sinkhorn_buffers(patches: Tensor, prototypes: Tensor, *, cu_seqlens: Tensor | None = None) -> SinkhornBuffers:
    """Allocate what `sinkhorn`, or with cu_seqlens `sinkhorn_packed`, writes for inputs of these shapes and this dtype.

    Raises TypeError or ValueError where these functions would. The buffers serve any number of calls, one at a time.
    """
    checks.check_embeddings(patches, "B, N, D" if cu_seqlens is None else "T, D", prototypes, "C, M, D")
    checks.check_offsets(cu_seqlens, patches)
    if cu_seqlens is None:
        results = buffers.allocate(SINKHORN, (patches, prototypes))
    else:
        results = buffers.allocate(SINKHORN_PACKED, (patches, cu_seqlens, prototypes))
    workspace = buffers.workspace_for(SINKHORN, patches=patches, prototypes=prototypes, cu_seqlens=cu_seqlens)
    return SinkhornBuffers._make((*results, workspace))


def sinkhorn(
    patches: Tensor,
    prototypes: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    *,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
    out: SinkhornBuffers | None = None,
) -> SinkhornOutput:
    """Entropic optimal transport between every item's patches and every category's prototypes.

    min_T <T, C> + epsilon KL(T || a b^T) with row sums a and column sums b, C_nm = 1 - cos(patch n, prototype m).

    Args:
        patches: [B, N, D] float32, bfloat16 or float16; need not be unit length; a zero vector has cosine 0.
        prototypes: [C, M, D], same dtype and device.
        patch_weights: [B, N] >= 0, divided by their sum; None is uniform.
        prototype_weights: [C, M] >= 0, divided by their sum; None is uniform.
        epsilon: entropy weight >= 1e-6, in units of the cost.
        max_iterations: bound on iterations (a row update, then a column update or a leap: docs/operators.md), >= 1.
        tolerance: a problem stops when its L1 row-marginal error is at most this; 0 means exactly max_iterations.
        relaxation: None for an exact prototype marginal; a number rho >= 0 puts rho KL(T^T 1 || b) in its place.
        out: tensors to write into, from `sinkhorn_buffers`. On a GPU nothing is then allocated, and CUDA graphs can
            capture the call. Inputs must be contiguous and weights float32. Inference only.

    Returns:
        SinkhornOutput, of the tensors of `out` if given. A NaN or inf in an item, or weights without mass, give NaN for
        that item alone.

    Raises:
        NotImplementedError: a weight that requires a gradient; a tangent (forward-mode derivatives, not looked for
            in compiled programs).
        RuntimeError: a tensor that requires a gradient where `out` is given.
        TypeError: a wrong dtype.
        ValueError: a wrong shape, device or option; memory that tensors of `out` share; on the CPU a negative or
            non-finite weight (NaN on CUDA).

    Source: Cuturi 2013 (arXiv 1306.0895), equation 2; relaxed: Chizat et al. 2018 (arXiv 1607.05816), section 3.
    """
    options = (epsilon, max_iterations, tolerance, relaxation)
    checks.check_sinkhorn(patches, prototypes, patch_weights, prototype_weights, *options)
    if out is not None:
        checks.check_values(patch_weights, prototype_weights)
        inputs = (patches, prototypes, patch_weights, prototype_weights, *options)
        return SinkhornOutput(*buffers.write(SINKHORN, inputs, out)[:6])
    weights = checks.admit_weights(patches, prototypes, patch_weights, prototype_weights)
    return SinkhornOutput(*torch.ops.guardcore.sinkhorn(patches, prototypes, *weights, *options)[:6])


def sinkhorn_packed(
    patches: Tensor,
    cu_seqlens: Tensor,
    prototypes: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    *,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
    out: SinkhornBuffers | None = None,
) -> SinkhornOutput:
    """`sinkhorn` for items of different lengths, without padding.

    patches[T, D] and patch_weights[T] hold all items one after the other; item i owns the rows from cu_seqlens[i] to
    cu_seqlens[i + 1] - 1. The B + 1 int32 or int64 offsets start at 0, do not decrease and end at T (ValueError on the
    CPU, undefined on CUDA). patch_cost and patch_score have shape [C, T]. An empty item is NaN. `out` is made with
    cu_seqlens, which must be int32 then. All else is as in `sinkhorn`.
    """
    options = (epsilon, max_iterations, tolerance, relaxation)
    checks.check_sinkhorn(patches, prototypes, patch_weights, prototype_weights, *options, cu_seqlens=cu_seqlens)
    checks.check_offset_values(cu_seqlens, patches)
    if out is not None:
        checks.check_values(patch_weights, prototype_weights)
        inputs = (patches, cu_seqlens, prototypes, patch_weights, prototype_weights, *options)
        return SinkhornOutput(*buffers.write(SINKHORN_PACKED, inputs, out)[:6])
    weights = checks.admit_weights(patches, prototypes, patch_weights, prototype_weights, cu_seqlens)
    return SinkhornOutput(*torch.ops.guardcore.sinkhorn_packed(patches, cu_seqlens, prototypes, *weights, *options)[:6])


def _shapes(patches: Tensor, prototypes: Tensor, *_options: Any) -> tuple[Shape, ...]:
    (B, N, _), (C, M, _) = patches.shape, prototypes.shape
    return _plan_shapes((B, C), (B, C, N), (B, C, M))


def _packed_shapes(patches: Tensor, cu_seqlens: Tensor, prototypes: Tensor, *_options: Any) -> tuple[Shape, ...]:
    T, B, (C, M, _) = patches.shape[0], cu_seqlens.shape[0] - 1, prototypes.shape
    return _plan_shapes((B, C), (C, T), (B, C, M))


def _plan_shapes(pairs: Shape, per_patch: Shape, per_prototype: Shape) -> tuple[Shape, ...]:
    return (pairs, per_patch, per_patch, pairs, pairs, pairs, per_patch, per_prototype)


def _check_packed(patches: Tensor, cu_seqlens: Tensor, *rest: Any) -> None:
    checks.check_sinkhorn(patches, *rest, cu_seqlens=cu_seqlens)


SINKHORN = register(
    Operator(
        name="sinkhorn",
        inputs=f"Tensor patches, Tensor prototypes, {MARGINALS}, {OPTIONS}",
        outputs=_RESULTS,
        definition=reference.sinkhorn,
        kernels="sinkhorn",
        check=checks.check_sinkhorn,
        shapes=_shapes,
        autograd=gradient.SINKHORN,
    )
)
SINKHORN_PACKED = register(
    Operator(
        name="sinkhorn_packed",
        inputs=f"Tensor patches, Tensor cu_seqlens, Tensor prototypes, {MARGINALS}, {OPTIONS}",
        outputs=_RESULTS,
        definition=reference.sinkhorn_packed,
        kernels="sinkhorn",
        check=_check_packed,
        shapes=_packed_shapes,
        autograd=gradient.SINKHORN_PACKED,
    )
)
for _operator in (SINKHORN, SINKHORN_PACKED):
    buffers.register_out(_operator)
