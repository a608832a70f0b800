"""Entropic transport of items to the prototypes of all groups: guardcore::joint_sinkhorn and joint_sinkhorn_packed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from guardcore import reference
from guardcore.ops import buffers, checks, gradient
from guardcore.ops.registration import MARGINALS, OPTIONS, Operator, Shape, register

_RESULTS = {
    "group_mass": torch.float32,
    "group_cost": torch.float32,
    "iterations": torch.int32,
    "marginal_error": torch.float32,
}
_BANK = f"Tensor prototypes, Tensor group, {MARGINALS}, int num_groups, {OPTIONS}"


class JointOutput(NamedTuple):
    """Shares of B items' patches in G groups; float32 but for `iterations`, without gradients.

    group_mass[B, G, N]: share of patch n's mass on group g, 0 ... 1, sums to 1 over g. group_cost[B, G, N]: the cost of
    that share. iterations[B] int32. marginal_error[B]: L1 error of the plan's row sums. Packed calls have [G, T].
    """

    group_mass: Tensor
    group_cost: Tensor
    iterations: Tensor
    marginal_error: Tensor


class JointBuffers(NamedTuple):
    """Where `joint_sinkhorn` or `joint_sinkhorn_packed` writes with out=: tensors from `joint_sinkhorn_buffers`.

    The fields of JointOutput, and on a GPU a float32 workspace, whose content means nothing. A call overwrites all.
    """

    group_mass: Tensor
    group_cost: Tensor
    iterations: Tensor
    marginal_error: Tensor
    workspace: Tensor | None = None


def joint_sinkhorn_buffers(
    patches: Tensor, prototypes: Tensor, *, num_groups: int, cu_seqlens: Tensor | None = None
) -> JointBuffers:
    """Allocate what `joint_sinkhorn`, or with cu_seqlens its packed form, writes for these shapes and this dtype.

    Raises TypeError or ValueError where these functions would. The buffers serve any number of calls, one at a time.
    """
    checks.check_embeddings(patches, "B, N, D" if cu_seqlens is None else "T, D", prototypes, "M, D")
    checks.check_offsets(cu_seqlens, patches)
    checks.check_num_groups(num_groups)
    bank = (prototypes, None, None, None, num_groups)
    if cu_seqlens is None:
        results = buffers.allocate(JOINT, (patches, *bank))
    else:
        results = buffers.allocate(JOINT_PACKED, (patches, cu_seqlens, *bank))
    sizes = {"patches": patches, "prototypes": prototypes, "num_groups": num_groups, "cu_seqlens": cu_seqlens}
    return JointBuffers._make((*results, buffers.workspace_for(JOINT, **sizes)))


def joint_sinkhorn(
    patches: Tensor,
    prototypes: Tensor,
    group: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    *,
    num_groups: int,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
    out: JointBuffers | None = None,
) -> JointOutput:
    """One transport problem per item over the prototypes of all groups, which compete for its patches.

    patches: [B, N, D]. prototypes: [M, D], M to 1024 on a GPU. group: [M] int32 or int64 in 0 ... num_groups - 1
    (ValueError on the CPU). Weights [B, N] and [M]; a prototype of weight 0 gets no mass. Options as in `sinkhorn`:
    relaxation 0 is a softmax over the prototypes with temperature epsilon and prior prototype_weights, None the
    balanced plan. Inference only: backward raises NotImplementedError. `out` from `joint_sinkhorn_buffers` as in
    `sinkhorn`; then group must be int64.
    """
    options = (num_groups, epsilon, max_iterations, tolerance, relaxation)
    checks.check_joint(patches, prototypes, group, patch_weights, prototype_weights, *options)
    checks.check_group_values(group, num_groups)
    if out is not None:
        checks.check_values(patch_weights, prototype_weights)
        inputs = (patches, prototypes, group, patch_weights, prototype_weights, *options)
        return JointOutput(*buffers.write(JOINT, inputs, out)[:4])
    weights = checks.admit_weights(patches, prototypes, patch_weights, prototype_weights)
    return JointOutput(*torch.ops.guardcore.joint_sinkhorn(patches, prototypes, group.long(), *weights, *options))


def joint_sinkhorn_packed(
    patches: Tensor,
    cu_seqlens: Tensor,
    prototypes: Tensor,
    group: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    *,
    num_groups: int,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
    out: JointBuffers | None = None,
) -> JointOutput:
    """`joint_sinkhorn` for items of different lengths, laid out as in `sinkhorn_packed`; results have shape [G, T]."""
    options = (num_groups, epsilon, max_iterations, tolerance, relaxation)
    checks.check_joint(patches, prototypes, group, patch_weights, prototype_weights, *options, cu_seqlens=cu_seqlens)
    checks.check_offset_values(cu_seqlens, patches)
    checks.check_group_values(group, num_groups)
    if out is not None:
        checks.check_values(patch_weights, prototype_weights)
        inputs = (patches, cu_seqlens, prototypes, group, patch_weights, prototype_weights, *options)
        return JointOutput(*buffers.write(JOINT_PACKED, inputs, out)[:4])
    weights = checks.admit_weights(patches, prototypes, patch_weights, prototype_weights, cu_seqlens)
    tensors = (patches, cu_seqlens, prototypes, group.long())
    return JointOutput(*torch.ops.guardcore.joint_sinkhorn_packed(*tensors, *weights, *options))


def _shapes(patches: Tensor, *rest: Any) -> tuple[Shape, ...]:
    (B, N, _), G = patches.shape, rest[4]  # after prototypes, group and their weights
    return (B, G, N), (B, G, N), (B,), (B,)


def _packed_shapes(patches: Tensor, cu_seqlens: Tensor, *rest: Any) -> tuple[Shape, ...]:
    T, B, G = patches.shape[0], cu_seqlens.shape[0] - 1, rest[4]
    return (G, T), (G, T), (B,), (B,)


def _check_packed(patches: Tensor, cu_seqlens: Tensor, *rest: Any) -> None:
    checks.check_joint(patches, *rest, cu_seqlens=cu_seqlens)


JOINT = register(
    Operator(
        name="joint_sinkhorn",
        inputs=f"Tensor patches, {_BANK}",
        outputs=_RESULTS,
        definition=reference.joint_sinkhorn,
        kernels="joint_sinkhorn",
        check=checks.check_joint,
        shapes=_shapes,
        autograd=gradient.INFERENCE_ONLY,
    )
)
JOINT_PACKED = register(
    Operator(
        name="joint_sinkhorn_packed",
        inputs=f"Tensor patches, Tensor cu_seqlens, {_BANK}",
        outputs=_RESULTS,
        definition=reference.joint_sinkhorn_packed,
        kernels="joint_sinkhorn",
        check=_check_packed,
        shapes=_packed_shapes,
        autograd=gradient.INFERENCE_ONLY,
    )
)
for _operator in (JOINT, JOINT_PACKED):
    buffers.register_out(_operator)
