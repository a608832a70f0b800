"""The operators: per op its schema, checks, definition, kernels, fake and autograd.

The dispatcher chooses: the C++ kernels of guardcore._C run CPU tensors, the Triton kernels of guardcore.triton_kernels
run CUDA and ROCm tensors, and the definition of guardcore.reference runs every device that has no kernel, which it says
once. To force the definition, call it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guardcore import _checks, _gradient, reference

_MARGINALS = "Tensor? patch_weights, Tensor? prototype_weights"
_OPTIONS = "float epsilon, int max_iterations, float tolerance, float? relaxation"
_PLAN = (
    "(Tensor distance, Tensor patch_cost, Tensor patch_score, Tensor objective, Tensor iterations, "
    "Tensor marginal_error, Tensor f, Tensor g)"  # the potentials are for backward
)
_SHARES = "(Tensor group_mass, Tensor group_cost, Tensor iterations, Tensor marginal_error)"
_POINTS = "Tensor patches, Tensor prototypes"
_PACKED_POINTS = "Tensor patches, Tensor cu_seqlens, Tensor prototypes"


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


class JointOutput(NamedTuple):
    """Shares of B items' patches in G groups; float32 but for `iterations`, without gradients.

    group_mass[B, G, N]: share of patch n's mass on group g, 0 ... 1, sums to 1 over g. group_cost[B, G, N]: the cost of
    that share. iterations[B] int32. marginal_error[B]: L1 error of the plan's row sums. Packed calls have [G, T].
    """

    group_mass: Tensor
    group_cost: Tensor
    iterations: Tensor
    marginal_error: Tensor


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
) -> SinkhornOutput:
    """Entropic optimal transport between every item's patches and every category's prototypes.

    min_T <T, C> + epsilon KL(T || a b^T) with row sums a and column sums b, C_nm = 1 - cos(patch n, prototype m).

    Args:
        patches: [B, N, D] float32, bfloat16 or float16; need not be unit length; a zero vector has cosine 0.
        prototypes: [C, M, D], same dtype and device.
        patch_weights: [B, N] >= 0, divided by their sum; None is uniform.
        prototype_weights: [C, M] >= 0, divided by their sum; None is uniform.
        epsilon: entropy weight >= 1e-6, in units of the cost.
        max_iterations: bound on iterations (a row, then a column update each), >= 1.
        tolerance: a problem stops when its L1 row-marginal error is at most this; 0 means exactly max_iterations.
        relaxation: None for an exact prototype marginal; a number rho >= 0 puts rho KL(T^T 1 || b) in its place.

    Returns:
        SinkhornOutput. A NaN or inf in an item, or weights without mass, give NaN for that item alone.

    Raises:
        NotImplementedError: a weight that requires a gradient; a tangent (forward-mode derivatives, not looked for
            in compiled programs).
        TypeError: a wrong dtype.
        ValueError: a wrong shape, device or option; on the CPU a negative or non-finite weight (NaN on CUDA).

    Source: Cuturi 2013 (arXiv 1306.0895), equation 2; relaxed: Chizat et al. 2018 (arXiv 1607.05816), section 3.
    """
    options = (epsilon, max_iterations, tolerance, relaxation)
    _checks.check_sinkhorn(patches, prototypes, patch_weights, prototype_weights, *options)
    weights = _checks.admit_weights(patches, prototypes, patch_weights, prototype_weights)
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
) -> SinkhornOutput:
    """`sinkhorn` for items of different lengths, without padding.

    patches[T, D] and patch_weights[T] hold all items one after the other; item i owns the rows from cu_seqlens[i] to
    cu_seqlens[i + 1] - 1. The B + 1 int32 or int64 offsets start at 0, do not decrease and end at T (ValueError on the
    CPU, undefined on CUDA). patch_cost and patch_score have shape [C, T]. An empty item is NaN. All else is as in
    `sinkhorn`.
    """
    options = (epsilon, max_iterations, tolerance, relaxation)
    _checks.check_sinkhorn(patches, prototypes, patch_weights, prototype_weights, *options, cu_seqlens=cu_seqlens)
    _checks.check_offset_values(cu_seqlens, patches)
    weights = _checks.admit_weights(patches, prototypes, patch_weights, prototype_weights, cu_seqlens)
    return SinkhornOutput(*torch.ops.guardcore.sinkhorn_packed(patches, cu_seqlens, prototypes, *weights, *options)[:6])


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
) -> JointOutput:
    """One transport problem per item over the prototypes of all groups, which compete for its patches.

    patches: [B, N, D]. prototypes: [M, D], M to 1024 on a GPU. group: [M] int32 or int64 in 0 ... num_groups - 1
    (ValueError on the CPU). Weights [B, N] and [M]; a prototype of weight 0 gets no mass. Options as in `sinkhorn`:
    relaxation 0 is a softmax over the prototypes with temperature epsilon and prior prototype_weights, None the
    balanced plan. Inference only: backward raises NotImplementedError.
    """
    options = (num_groups, epsilon, max_iterations, tolerance, relaxation)
    _checks.check_joint(patches, prototypes, group, patch_weights, prototype_weights, *options)
    _checks.check_group_values(group, num_groups)
    weights = _checks.admit_weights(patches, prototypes, patch_weights, prototype_weights)
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
) -> JointOutput:
    """`joint_sinkhorn` for items of different lengths, laid out as in `sinkhorn_packed`; results have shape [G, T]."""
    options = (num_groups, epsilon, max_iterations, tolerance, relaxation)
    _checks.check_joint(patches, prototypes, group, patch_weights, prototype_weights, *options, cu_seqlens=cu_seqlens)
    _checks.check_offset_values(cu_seqlens, patches)
    _checks.check_group_values(group, num_groups)
    weights = _checks.admit_weights(patches, prototypes, patch_weights, prototype_weights, cu_seqlens)
    tensors = (patches, cu_seqlens, prototypes, group.long())
    return JointOutput(*torch.ops.guardcore.joint_sinkhorn_packed(*tensors, *weights, *options))


def _sinkhorn_fake(patches: Tensor, prototypes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _checks.check_sinkhorn(patches, prototypes, *rest)
    (B, N, _), (C, M, _) = patches.shape, prototypes.shape
    return _empty_plan(patches, (B, C), (B, C, N), (B, C, M))


def _sinkhorn_packed_fake(patches: Tensor, cu_seqlens: Tensor, prototypes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _checks.check_sinkhorn(patches, prototypes, *rest, cu_seqlens=cu_seqlens)
    T, B, (C, M, _) = patches.shape[0], cu_seqlens.shape[0] - 1, prototypes.shape
    return _empty_plan(patches, (B, C), (C, T), (B, C, M))


def _joint_fake(patches: Tensor, prototypes: Tensor, group: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _checks.check_joint(patches, prototypes, group, *rest)
    (B, N, _), G = patches.shape, rest[2]
    return _empty_shares(patches, (B, G, N), (B,))


def _joint_packed_fake(
    patches: Tensor, cu_seqlens: Tensor, prototypes: Tensor, group: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    _checks.check_joint(patches, prototypes, group, *rest, cu_seqlens=cu_seqlens)
    return _empty_shares(patches, (rest[2], patches.shape[0]), (cu_seqlens.shape[0] - 1,))


def _empty_plan(like: Tensor, pairs: Any, per_patch: Any, per_prototype: Any) -> tuple[Tensor, ...]:
    shapes = (pairs, per_patch, per_patch, pairs, pairs, pairs, per_patch, per_prototype)
    return tuple(
        like.new_empty(shape, dtype=torch.int32 if i == 4 else torch.float32) for i, shape in enumerate(shapes)
    )


def _empty_shares(like: Tensor, per_patch: Any, items: Any) -> tuple[Tensor, ...]:
    shapes = (per_patch, per_patch, items, items)
    return tuple(
        like.new_empty(shape, dtype=torch.int32 if i == 2 else torch.float32) for i, shape in enumerate(shapes)
    )


@functools.cache
def _say_not_built(device: str) -> None:
    what = "C++ kernels are not built" if device == "cpu" else f"kernels do not cover {device}"
    warnings.warn(
        f"guardcore's {what}: {device} tensors run the plain PyTorch definitions, many times slower. "
        "`guardcore doctor` says what is missing and how to get it.",
        UserWarning,
        stacklevel=2,
    )


def _definition(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    def run(patches: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        _say_not_built(patches.device.type)
        return tuple(function(patches, *rest))

    return run


def _triton(module: str, name: str) -> Callable[..., tuple[Tensor, ...]]:
    def launch(*args: Any) -> tuple[Tensor, ...]:
        kernels = importlib.import_module(f"guardcore.triton_kernels.{module}")  # first use only: triton is heavy
        if name.endswith("_packed"):  # these kernels read int32 offsets
            args = (args[0], args[1].to(torch.int32), *args[2:])
        return tuple(getattr(kernels, name)(*args))

    return launch


_LIBRARY = torch.library.Library("guardcore", "DEF")  # type: ignore[no-untyped-call]
_TABLE = (  # op, its schema, the module of its Triton kernel, its fake, (what backward needs, backward)
    ("sinkhorn", f"({_POINTS}, {_MARGINALS}, {_OPTIONS}) -> {_PLAN}", "sinkhorn", _sinkhorn_fake, _gradient.SINKHORN),
    (
        "sinkhorn_packed",
        f"({_PACKED_POINTS}, {_MARGINALS}, {_OPTIONS}) -> {_PLAN}",
        "sinkhorn",
        _sinkhorn_packed_fake,
        _gradient.SINKHORN_PACKED,
    ),
    (
        "joint_sinkhorn",
        f"({_POINTS}, Tensor group, {_MARGINALS}, int num_groups, {_OPTIONS}) -> {_SHARES}",
        "joint_sinkhorn",
        _joint_fake,
        _gradient.INFERENCE_ONLY,
    ),
    (
        "joint_sinkhorn_packed",
        f"({_PACKED_POINTS}, Tensor group, {_MARGINALS}, int num_groups, {_OPTIONS}) -> {_SHARES}",
        "joint_sinkhorn",
        _joint_packed_fake,
        _gradient.INFERENCE_ONLY,
    ),
)
OPS = tuple(row[0] for row in _TABLE)


def _register(name: str, schema: str, module: str, fake: Callable[..., Any], autograd: tuple[Any, Any]) -> None:
    library: Any = _LIBRARY
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, _definition(getattr(reference, name)), "CompositeExplicitAutograd")  # devices without a kernel
    if importlib.util.find_spec("triton") is not None:
        library.impl(name, _triton(module, name), "CUDA")
    torch.library.register_fake(f"guardcore::{name}", fake, lib=library)
    setup_context, backward = autograd
    torch.library.register_autograd(f"guardcore::{name}", backward, setup_context=setup_context, lib=library)


for _row in _TABLE:
    _register(*_row)

# not built is a state that the first call and `guardcore doctor` show; built but broken raises here
if importlib.util.find_spec("guardcore._C") is not None:
    importlib.import_module("guardcore._C")
