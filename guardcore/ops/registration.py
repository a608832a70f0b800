"""How an operator reaches torch's dispatcher: schema, definition, GPU launcher, fake and autograd."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MARGINALS = "Tensor? patch_weights, Tensor? prototype_weights"
OPTIONS = "float epsilon, int max_iterations, float tolerance, float? relaxation"

Shape = Sequence[int]

_LIBRARY: Any = torch.library.Library("guardcore", "DEF")  # type: ignore[no-untyped-call]
_REGISTERED: list[str] = []


class Operator(NamedTuple):
    """What makes `guardcore::<name>`; every callable takes the schema's positional arguments.

    inputs: the schema's arguments. outputs: the tensors returned and their dtypes, None for that of the first input.
    definition: runs on devices without a kernel. kernels: the module of guardcore.triton_kernels that has the launcher
    <name>. check: raises TypeError or ValueError at bad arguments, values apart. shapes: of the outputs. autograd:
    (what backward needs, backward), see `guardcore.ops.gradient`.
    """

    name: str
    inputs: str
    outputs: Mapping[str, torch.dtype | None]
    definition: Callable[..., tuple[Tensor, ...]]
    kernels: str
    check: Callable[..., None]
    shapes: Callable[..., tuple[Shape, ...]]
    autograd: tuple[Callable[..., None], Callable[..., Any]]

    @property
    def schema(self) -> str:
        """The operator in torch's schema language."""
        return f"{self.name}({self.inputs}) -> ({', '.join(f'Tensor {name}' for name in self.outputs)})"

    @property
    def input_names(self) -> tuple[str, ...]:
        """The schema's arguments by name."""
        return tuple(argument.split()[-1] for argument in self.inputs.split(", "))

    def fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        """What torch needs to trace the operator: the checks, and results without values."""
        self.check(*arguments)
        shapes = zip(self.shapes(*arguments), self.outputs.values(), strict=True)
        return tuple(arguments[0].new_empty(shape, dtype=dtype) for shape, dtype in shapes)


def register(operator: Operator) -> Operator:
    """Make torch.ops.guardcore.<name>. The C++ kernels of guardcore._C join when that library is loaded."""
    setup_context, backward = operator.autograd
    define(
        operator.schema,
        {"CompositeExplicitAutograd": _definition(operator.definition)},  # devices without a kernel
        {"CUDA": triton_launcher(operator.kernels, operator.name)},
        fake=operator.fake,
    )
    torch.library.register_autograd(f"guardcore::{operator.name}", backward, setup_context=setup_context, lib=_LIBRARY)
    _REGISTERED.append(operator.name)
    return operator


def define(
    schema: str,
    implementations: dict[str, Callable[..., Any]],
    with_triton: dict[str, Callable[..., Any]],
    fake: Callable[..., Any],
) -> None:
    """Give torch a schema, implementations by dispatch key, some of them only where triton is installed, and a fake."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    if importlib.util.find_spec("triton") is not None:
        implementations = implementations | with_triton
    for key, function in implementations.items():
        _LIBRARY.impl(name, function, key)
    torch.library.register_fake(f"guardcore::{name}", fake, lib=_LIBRARY)


def registered() -> tuple[str, ...]:
    """Names of the operators, in the order of their registration."""
    return tuple(_REGISTERED)


def load_kernels() -> None:
    """Load the C++ kernels. Not built is a state that the first call and `guardcore doctor` show; broken raises."""
    if importlib.util.find_spec("guardcore._C") is not None:
        importlib.import_module("guardcore._C")


def triton_launcher(module: str, name: str) -> Callable[..., tuple[Tensor, ...]]:
    """The launcher guardcore.triton_kernels.<module>.<name>, imported at its first call: triton is heavy."""

    def launch(*args: Any) -> tuple[Tensor, ...]:
        kernels = importlib.import_module(f"guardcore.triton_kernels.{module}")
        if name.endswith("_packed"):  # these kernels read int32 offsets
            args = (args[0], args[1].to(torch.int32), *args[2:])
        return tuple(getattr(kernels, name)(*args))

    return launch


def _definition(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    def run(patches: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        _say_not_built(patches.device.type)
        return tuple(function(patches, *rest))

    return run


@functools.cache
def _say_not_built(device: str) -> None:
    what = "C++ kernels are not built" if device == "cpu" else f"kernels do not cover {device}"
    warnings.warn(
        f"guardcore's {what}: {device} tensors run the plain PyTorch definitions, many times slower. "
        "`guardcore doctor` says what is missing and how to get it.",
        UserWarning,
        stacklevel=2,
    )
