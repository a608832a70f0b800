"""Operators that write into tensors of the caller: guardcore::<op>_out takes the arguments, the results, a workspace.

On a GPU the launcher writes straight into the results, allocates nothing and waits for nothing: a CUDA graph can
capture the call. Elsewhere the operator runs as ever and its results are copied. As a conversion would allocate, inputs
must come as the kernels read them; on every device, so that a program tried on the CPU also runs on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from guardcore.ops.checks import check_device, has_tangent
from guardcore.ops.registration import Operator, define

_READ_AS = {
    "patch_weights": torch.float32,
    "prototype_weights": torch.float32,
    "cu_seqlens": torch.int32,
    "group": torch.int64,
}
_SIZES = ("patches", "prototypes", "num_groups", "cu_seqlens")  # what a launcher's workspace depends on
_ALIGNMENT = 16  # bytes; vector loads and stores of a workspace


def register_out(operator: Operator) -> None:
    """Make torch.ops.guardcore.<name>_out. The launcher is guardcore.triton_kernels.<kernels>.<name>_out."""
    results = (f"Tensor({chr(ord('a') + i)}!) {name}" for i, name in enumerate(operator.outputs))
    schema = f"{operator.name}_out({operator.inputs}, {', '.join(results)}, Tensor(z!)? workspace) -> ()"
    define(
        schema,
        {"CompositeExplicitAutograd": _copying(operator), "Autograd": _without_gradient(operator)},
        {"CUDA": out_launcher(operator)},
        fake=lambda *arguments: _check(operator, arguments),
    )


def write(operator: Operator, inputs: tuple[Any, ...], out: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """Run the operator on its positional arguments into `out`, its results and a workspace, and give that back."""
    if not isinstance(out, tuple) or len(out) != len(operator.outputs) + 1:
        raise TypeError(f"out must be what ops.{operator.name.removesuffix('_packed')}_buffers makes, got {type(out)}")
    getattr(torch.ops.guardcore, f"{operator.name}_out")(*inputs, *out)
    return out


def allocate(operator: Operator, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Results, without values, of a call with these positional arguments; what gives no size may be left out."""
    shapes = zip(operator.shapes(*inputs), operator.outputs.values(), strict=True)
    return tuple(inputs[0].new_empty(shape, dtype=dtype) for shape, dtype in shapes)


def workspace_for(operator: Operator, **sizes: Any) -> Tensor | None:
    """Memory that the operator's GPU kernels need for patches, prototypes, ... of these sizes; None elsewhere."""
    patches: Tensor = sizes["patches"]
    if not patches.is_cuda or importlib.util.find_spec("triton") is None:
        return None
    return patches.new_empty(_workspace_numel(operator, sizes), dtype=torch.float32)


def _workspace_numel(operator: Operator, sizes: dict[str, Any]) -> int:
    kernels = importlib.import_module(f"guardcore.triton_kernels.{operator.kernels}")
    return int(kernels.workspace_numel(**sizes))


def _copying(operator: Operator) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        _check(operator, arguments)
        _check_overlap(operator, arguments)
        inputs, results, _ = _split(operator, arguments)
        with torch.inference_mode():  # in which tensors made in inference mode may be written, as a launcher may
            for result, value in zip(results, getattr(torch.ops.guardcore, operator.name)(*inputs), strict=True):
                result.copy_(value)

    return run


def out_launcher(operator: Operator) -> Callable[..., None]:
    """The GPU side: checks, then guardcore.triton_kernels.<kernels>.<name>_out on the very arguments."""

    def launch(*arguments: Any) -> None:
        _check(operator, arguments)
        _check_overlap(operator, arguments)
        inputs, _, workspace = _split(operator, arguments)
        sizes = {name: value for name, value in zip(operator.input_names, inputs, strict=True) if name in _SIZES}
        _check_size(workspace, _workspace_numel(operator, sizes))
        kernels = importlib.import_module(f"guardcore.triton_kernels.{operator.kernels}")
        getattr(kernels, f"{operator.name}_out")(*arguments)

    return launch


def _without_gradient(operator: Operator) -> Callable[..., None]:
    """The autograd side: a call that would lose a derivative is refused; others mark what they overwrite."""

    def run(*arguments: Any) -> None:
        for name, value in _named(operator, arguments):
            if torch.is_grad_enabled() and value.requires_grad:
                raise RuntimeError(f"{name} requires a gradient, which out= cannot record; use torch.no_grad()")
            if has_tangent(value):
                raise RuntimeError(f"{name} has a tangent, which out= cannot carry on")
        _, results, workspace = _split(operator, arguments)
        written = (*results, workspace)
        increment_version([tensor for tensor in written if tensor is not None and not tensor.is_inference()])
        with torch._C._AutoDispatchBelowAutograd():
            getattr(torch.ops.guardcore, f"{operator.name}_out")(*arguments)

    return run


def _split(operator: Operator, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Tensor, ...], Tensor | None]:
    """Inputs, results and workspace."""
    count = len(operator.input_names)
    return arguments[:count], arguments[count:-1], arguments[-1]


def _named(operator: Operator, arguments: tuple[Any, ...]) -> Iterator[tuple[str, Tensor]]:
    """All tensors with the names that a caller knows them by."""
    names = (*operator.input_names, *(f"out.{name}" for name in (*operator.outputs, "workspace")))
    return ((name, value) for name, value in zip(names, arguments, strict=True) if isinstance(value, Tensor))


def _check(operator: Operator, arguments: tuple[Any, ...]) -> None:
    """Raise TypeError or ValueError unless inputs and results are what the kernels read and write."""
    inputs, results, workspace = _split(operator, arguments)
    operator.check(*inputs)
    for name, value in zip(operator.input_names, inputs, strict=True):
        if isinstance(value, Tensor):
            _check_tensor(name, value, inputs[0], value.shape, _READ_AS.get(name, value.dtype))
    expected = zip(operator.outputs.items(), operator.shapes(*inputs), results, strict=True)
    for (name, dtype), shape, result in expected:
        _check_tensor(f"out.{name}", result, inputs[0], shape, dtype or inputs[0].dtype)
    if workspace is not None:
        _check_tensor("out.workspace", workspace, inputs[0], (workspace.numel(),), torch.float32)


def _check_tensor(name: str, tensor: Tensor, like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} where out= is given, got {tensor.dtype}")
    check_device(name, tensor, like)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous where out= is given, got strides {list(tensor.stride())}")


def _check_overlap(operator: Operator, arguments: tuple[Any, ...]) -> None:
    """Raise ValueError if a tensor that is written shares memory with another one."""
    spans = [(name, t.data_ptr(), t.data_ptr() + t.nbytes) for name, t in _named(operator, arguments) if t.numel()]
    for i, (name, start, end) in enumerate(spans):
        for other, other_start, other_end in spans[:i]:
            if name.startswith("out.") and start < other_end and other_start < end:
                raise ValueError(f"{name} must have memory of its own, yet shares some with {other}")


def _check_size(workspace: Tensor | None, numel: int) -> None:
    got = "none" if workspace is None else f"{workspace.numel()}"
    if workspace is None or workspace.numel() < numel:
        raise ValueError(f"out.workspace must hold at least {numel} float32 numbers for these sizes, got {got}")
    if workspace.data_ptr() % _ALIGNMENT:
        raise ValueError(f"out.workspace must start at a multiple of {_ALIGNMENT} bytes, got {workspace.data_ptr()}")
