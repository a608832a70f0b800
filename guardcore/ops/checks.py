"""What the transport operators accept. Each check names the argument, what was expected and what came.

Shapes, dtypes, devices and options are checked by the public call and by the fake; values only by the public call, on
the CPU and outside a trace, where looking at them costs no synchronization. Elsewhere a bad value is a NaN result
(CUDA) or the C++ kernel's own RuntimeError (compiled programs on the CPU).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

_EMBEDDING_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INDEX_DTYPES = (torch.int32, torch.int64)
# float32 rounds a cost to 1e-7: with a smaller epsilon that rounding, not the cost, would choose the plan
_LEAST_EPSILON = 1e-6


def check_sinkhorn(
    patches: Tensor,
    prototypes: Tensor,
    patch_weights: Tensor | None,
    prototype_weights: Tensor | None,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    relaxation: float | None,
    *,
    cu_seqlens: Tensor | None = None,
) -> None:
    """Raise TypeError or ValueError unless `guardcore.ops.sinkhorn`, or its packed form, can take them."""
    check_embeddings(patches, "B, N, D" if cu_seqlens is None else "T, D", prototypes, "C, M, D")
    check_offsets(cu_seqlens, patches)
    check_weights(patch_weights, patches, prototype_weights, prototypes)
    check_options(epsilon, max_iterations, tolerance, relaxation)


def check_joint(
    patches: Tensor,
    prototypes: Tensor,
    group: Tensor,
    patch_weights: Tensor | None,
    prototype_weights: Tensor | None,
    num_groups: int,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    relaxation: float | None,
    *,
    cu_seqlens: Tensor | None = None,
) -> None:
    """Raise TypeError or ValueError unless `guardcore.ops.joint_sinkhorn`, or its packed form, can take them."""
    check_embeddings(patches, "B, N, D" if cu_seqlens is None else "T, D", prototypes, "M, D")
    check_offsets(cu_seqlens, patches)
    check_group(group, prototypes, num_groups)
    check_weights(patch_weights, patches, prototype_weights, prototypes)
    check_options(epsilon, max_iterations, tolerance, relaxation)


def check_options(epsilon: float, max_iterations: int, tolerance: float, relaxation: float | None) -> None:
    """Raise ValueError unless epsilon >= 1e-6, max_iterations >= 1, tolerance and relaxation >= 0 (None), all finite.

    By comparisons alone, which also hold for the symbolic numbers of a compiled program and fail for NaN.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be a finite number > 0, got {epsilon}")
    if epsilon < _LEAST_EPSILON:
        raise ValueError(f"epsilon must be >= {_LEAST_EPSILON}, what float32 costs can resolve, got {epsilon}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be >= 1, got {max_iterations}")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number >= 0, got {tolerance}")
    if relaxation is not None and not 0 <= relaxation < math.inf:
        raise ValueError(f"relaxation must be None (balanced) or a finite number >= 0, got {relaxation}")


def check_embeddings(patches: Tensor, patch_layout: str, prototypes: Tensor, prototype_layout: str) -> None:
    """Raise TypeError or ValueError unless both have their layouts ("B, N, D"), one dtype, one device, one width D."""
    for name, tensor, layout in (("patches", patches, patch_layout), ("prototypes", prototypes, prototype_layout)):
        if tensor.dim() != layout.count(",") + 1:
            raise ValueError(f"{name} must have shape [{layout}], got {list(tensor.shape)}")
        if tensor.dtype not in _EMBEDDING_DTYPES:
            raise TypeError(f"{name} must be float32, bfloat16 or float16, got {tensor.dtype}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense (strided) tensor, got {tensor.layout}")
    if patches.dtype != prototypes.dtype:
        raise TypeError(f"prototypes must have the dtype of patches, {patches.dtype}, got {prototypes.dtype}")
    check_device("prototypes", prototypes, patches)
    if patches.shape[-1] != prototypes.shape[-1]:
        raise ValueError(f"prototypes must have the width of patches, {patches.shape[-1]}, got {prototypes.shape[-1]}")
    if patches.shape[-1] == 0:
        raise ValueError(f"patches must have a width D >= 1, got {list(patches.shape)}")
    if prototypes.shape[-2] == 0:
        raise ValueError(f"prototypes must hold at least one prototype, got {list(prototypes.shape)}")


def check_weights(
    patch_weights: Tensor | None, patches: Tensor, prototype_weights: Tensor | None, prototypes: Tensor
) -> None:
    """Raise unless weights are None or floating point with one entry for each of the points[..., D]."""
    for name, weights, points in (
        ("patch_weights", patch_weights, patches),
        ("prototype_weights", prototype_weights, prototypes),
    ):
        if weights is None:
            continue
        if weights.shape != points.shape[:-1]:
            raise ValueError(f"{name} must have shape {list(points.shape[:-1])}, got {list(weights.shape)}")
        if not weights.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating point, got {weights.dtype}")
        check_device(name, weights, points)


def check_offsets(cu_seqlens: Tensor | None, patches: Tensor) -> None:
    """Raise unless cu_seqlens is None or a nonempty integer vector on the device of patches[T, D]."""
    if cu_seqlens is None:
        return
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must hold B + 1 offsets in one dimension, got shape {list(cu_seqlens.shape)}")
    _check_index("cu_seqlens", cu_seqlens, patches)


def check_group(group: Tensor, prototypes: Tensor, num_groups: int) -> None:
    """Raise unless group has one integer for each of the prototypes[M, D] and num_groups is >= 1."""
    if group.shape != prototypes.shape[:1]:
        raise ValueError(f"group must have shape {list(prototypes.shape[:1])}, got {list(group.shape)}")
    check_num_groups(num_groups)
    _check_index("group", group, prototypes)


def check_num_groups(num_groups: int) -> None:
    """Raise ValueError unless num_groups is >= 1."""
    if num_groups < 1:
        raise ValueError(f"num_groups must be >= 1, got {num_groups}")


def admit_weights(
    patches: Tensor,
    prototypes: Tensor,
    patch_weights: Tensor | None,
    prototype_weights: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The weights in float32, once their values are looked at and no derivative is asked for that would be lost."""
    check_derivatives(patches, prototypes, patch_weights, prototype_weights)
    check_values(patch_weights, prototype_weights)
    return _to_float32(patch_weights, cu_seqlens), _to_float32(prototype_weights, None)


def check_derivatives(
    patches: Tensor, prototypes: Tensor, patch_weights: Tensor | None, prototype_weights: Tensor | None
) -> None:
    """Raise NotImplementedError where a derivative is asked for that would silently be zero.

    Tangents (forward mode) are looked for outside a trace only.
    """
    weights = (("patch_weights", patch_weights), ("prototype_weights", prototype_weights))
    for name, values in weights:
        if values is not None and values.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(f"{name} carries no gradient, yet requires one; detach it")
    if torch.compiler.is_compiling():
        return
    for name, tensor in (("patches", patches), ("prototypes", prototypes), *weights):
        if tensor is not None and has_tangent(tensor):
            raise NotImplementedError(f"{name} has a tangent, but forward-mode derivatives are not there; use backward")


def check_values(patch_weights: Tensor | None, prototype_weights: Tensor | None) -> None:
    """Raise ValueError at a negative or non-finite weight, where values can be looked at."""
    for name, weights in (("patch_weights", patch_weights), ("prototype_weights", prototype_weights)):
        if weights is None or not readable(weights):
            continue
        bad = ~(weights.isfinite() & (weights >= 0))
        if bool(bad.any()):
            index = bad.nonzero()[0].tolist()
            raise ValueError(f"{name} must be finite and >= 0, got {weights[tuple(index)].item()} at {index}")


def check_offset_values(cu_seqlens: Tensor, patches: Tensor) -> None:
    """Raise ValueError unless the offsets run from 0 to T without decreasing, where values can be looked at."""
    if not readable(cu_seqlens):
        return
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != patches.shape[0] or offsets != sorted(offsets):
        raise ValueError(
            f"cu_seqlens must start at 0, not decrease and end at the {patches.shape[0]} packed patches, "
            f"got {_brief(offsets)}"
        )


def check_group_values(group: Tensor, num_groups: int) -> None:
    """Raise ValueError at a group outside 0 ... num_groups - 1, where values can be looked at."""
    if not readable(group):
        return
    bad = (group < 0) | (group >= num_groups)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise ValueError(
            f"group must be in 0 ... {num_groups - 1} (num_groups = {num_groups}), got {int(group[at])} at {at}"
        )


def _to_float32(weights: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """Weights[..., N] as float32; float64 ones over the largest of their item, which may be beyond float32's range."""
    if weights is None or weights.dtype != torch.float64 or weights.numel() == 0:
        return None if weights is None else weights.float()
    size = weights.abs()
    if cu_seqlens is None:
        largest = size.amax(-1, keepdim=True)
    else:
        item = packed_items(cu_seqlens, weights.shape[0])
        largest = size.new_zeros(cu_seqlens.shape[0]).scatter_reduce(0, item, size, "amax")[item]
    return (weights / largest.masked_fill(largest == 0, 1)).float()


def packed_items(cu_seqlens: Tensor, total: int) -> Tensor:
    """The item that each of the packed patches belongs to: [total] int64."""
    rows = torch.arange(total, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens[1:].contiguous(), rows, right=True)


def _check_index(name: str, index: Tensor, like: Tensor) -> None:
    if index.dtype not in _INDEX_DTYPES:
        raise TypeError(f"{name} must be int32 or int64, got {index.dtype}")
    check_device(name, index, like)


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    """Raise ValueError unless the tensor is where another one is."""
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the other inputs, got {tensor.device}")


def readable(tensor: Tensor) -> bool:
    """True if values can be read without synchronizing a device or breaking a trace."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
    )


def has_tangent(tensor: Tensor) -> bool:
    """True if forward-mode differentiation goes through this tensor."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _brief(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:7]))}, ..., {values[-1]}]"
