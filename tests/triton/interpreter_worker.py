"""Run launchers of guardcore.triton_kernels on CPU tensors for the tests: started by the fixture `interpreted`."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import traceback
import warnings
from typing import Any

import numpy as np
import tensor_cores  # a neighbor of this script
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

matrix_units = False


def launch(launcher: str, arguments: tuple[Any, ...], constants: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Call a launcher; `constants` are set in its module for the time of the call (small tables for small grids).

    One that writes into its arguments gives them back: the floats and integers between its options and its workspace.
    `matrix_units` among the constants: float32 is multiplied as NVIDIA's matrix units do, not exactly.
    """
    global matrix_units
    matrix_units = constants.pop("matrix_units", False)
    module = importlib.import_module(
        f"guardcore.triton_kernels.{launcher.removesuffix('_out').removesuffix('_packed')}"
    )
    shipped = {name: getattr(module, name) for name in constants}
    try:
        vars(module).update(constants)
        result = getattr(module, launcher)(*arguments)
        if launcher.endswith("_out"):
            last = max(i for i, argument in enumerate(arguments) if not torch.is_tensor(argument))
            return arguments[last + 1 : -1]
        return result
    finally:
        vars(module).update(shipped)


def mend_bfloat16() -> None:
    """Make bfloat16 what devices make of it: triton 3.8's interpreter multiplies its bit patterns in tl.dot, and cuts
    off where it should round.
    """
    multiply, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def round_to_nearest(builder: InterpreterBuilder, source: TensorHandle, target: Any) -> TensorHandle:
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(builder, source, target)
        bits = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return TensorHandle(bits, tl.bfloat16)

    def widen(block: TensorHandle) -> TensorHandle:
        if block.data.dtype != np.uint16:
            return block
        return TensorHandle((block.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(builder: InterpreterBuilder, left: Any, right: Any, *rest: Any) -> TensorHandle:
        if matrix_units and left.data.dtype == np.float32:
            total = rest[0].data + tensor_cores.multiply(left.data, right.data)
            return TensorHandle(total, tl.float32)
        return multiply(builder, widen(left), widen(right), *rest)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = InterpreterBuilder.create_fp_trunc = round_to_nearest


def serve() -> None:
    """Answer pickled (launcher, arguments, constants) by (result, error) until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not get into the answers
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (launch(*request), None)
        except Exception:  # noqa: BLE001 - the test process raises it
            answer = (None, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)  # torch.empty is NaN: what a kernel leaves unwritten shows
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # numpy's division by zero and overflow are defined here
    mend_bfloat16()
    serve()
