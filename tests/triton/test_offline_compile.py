"""The GPU kernels compiled for devices that are not here: what a compiler can promise without one.

Triton does not check offline what fails at launch: more shared or tensor memory than the device has compiles silently,
and over-allocated tensor memory even leaves a stub kernel without a store. Every compile is therefore checked for
spills, memory limits, stores, matrix instructions and a plausible register count. Speed is not claimed here.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip("triton", reason="triton is the extra `gpu`")
tl = triton.language
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402 - after the checks that triton is there and compiles
from triton.compiler import ASTSource  # noqa: E402

from guardcore.triton_kernels import cosine, joint_sinkhorn, sinkhorn, sweeps  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Target(NamedTuple):
    """A device: what Triton calls it, and the shared memory that one program may have."""

    gpu: Any
    shared: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 << 10),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 << 10),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 << 10),
    "sm_120": Target(GPUTarget("cuda", 120, 32), 99 << 10),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 << 10),
}
DOTS = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
INTEGERS = {"p_offsets": "*i32", "p_iterations": "*i32", "p_group": "*i64"}
FLOATS = {"epsilon", "tolerance", "relaxation", "damping"}
NO_DOT = {"row_scale"}


class Kernel(NamedTuple):
    """A kernel with the constants and warps of one launch class."""

    function: Any
    constants: dict[str, Any]
    warps: int


class Resources(NamedTuple):
    """What a compiled kernel needs of its device."""

    registers: int
    spilled: int
    shared: int
    tensor_memory: int
    stores: int
    matrix_instructions: int


def launch_classes() -> Iterator[tuple[str, Kernel]]:
    """Every row of the launch tables."""
    yield "row_scale", Kernel(cosine.row_scale_kernel, {"BR": cosine.ROWS, "BD": cosine.DEPTH}, 4)
    for tile in sinkhorn.TILES:
        yield (
            f"registers-{tile.rows}x{tile.width}",
            Kernel(sinkhorn.register_kernel, {"BN": tile.rows, "BM": tile.width}, tile.warps),
        )
    for stream in sweeps.STREAMS:
        blocks = {"BN": stream.fill_rows, "BC": stream.fill_width, "BT": stream.rows, "BM": stream.width}
        yield f"stream-{stream.width}", Kernel(sinkhorn.stream_kernel, blocks, stream.warps)
        yield f"joint-{stream.width}", Kernel(joint_sinkhorn.joint_kernel, blocks | joint_sinkhorn.READ, stream.warps)


CLASSES = dict(launch_classes())
MATRIX = [(target, dtype, name) for target in TARGETS for dtype in ("fp32", "bf16") for name in CLASSES]
QUICK = {("sm_90", "fp32", "registers-256x32"), ("sm_90", "bf16", "stream-64"), ("gfx942", "bf16", "registers-64x16")}


def compile_for(kernel: Kernel, dtype: str, target: Target, *, dense: bool = False) -> Any:
    """Compile as the launcher would for inputs of `dtype`, packed and weighted unless dense (the larger code)."""
    precision = "ieee" if target.gpu.backend == "hip" else "tf32x3"
    kinds = {"DOT": DOTS[dtype], "BD": cosine.DOT_DEPTH[DOTS[dtype]], "PRECISION": precision, "PACKED": not dense}
    absent = dict.fromkeys(("p_offsets", "p_a", "p_b")) if dense else {}
    constants = {
        name: value for name, value in (kinds | absent | kernel.constants).items() if name in kernel.function.arg_names
    }
    pointers = {name: "*fp32" for name in kernel.function.arg_names if name.startswith("p_")}
    types = pointers | INTEGERS | dict.fromkeys(("p_x", "p_y"), f"*{dtype}") | dict.fromkeys(FLOATS, "fp32")
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.function.arg_names
    }
    aligned = [i for i, name in enumerate(signature) if signature[name].startswith("*") or name == "D"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=kernel.function, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target.gpu, options={"num_warps": kernel.warps, "num_stages": 2})


def resources(compiled: Any, folder: Path) -> Resources:
    return _amd(compiled) if "amdgcn" in compiled.asm else _nvidia(compiled, folder)


def _amd(compiled: Any) -> Resources:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s*(\d+)", text)[1])

    spilled = number("vgpr_spill_count") + number("private_segment_fixed_size")
    stores, products = len(re.findall(r"\b(?:global|buffer)_store", text)), len(re.findall(r"\bv_mfma", text))
    return Resources(number("vgpr_count"), spilled, compiled.metadata.shared, 0, stores, products)


def _nvidia(compiled: Any, folder: Path) -> Resources:
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.check_output([TOOLS / "cuobjdump", "--dump-resource-usage", cubin], text=True)
    sass = subprocess.check_output([TOOLS / "nvdisasm", "-c", cubin], text=True)

    def number(key: str) -> int:
        return int(re.search(rf"\b{key}:(\d+)", usage)[1])

    spilled = number("STACK") + number("LOCAL") + len(re.findall(r"\b(?:STL|LDL)\b", sass))
    products = len(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", sass))
    tensor_memory = compiled.metadata.tmem_size or 0
    stores = compiled.asm["ptx"].count("st.global")
    return Resources(number("REG"), spilled, compiled.metadata.shared, tensor_memory, stores, products)


def complaints(needs: Resources, target: Target, *, dot: bool = True) -> list[str]:
    """Why a kernel would fail or crawl on its device."""
    rules = {
        "spills registers": needs.spilled > 0,
        "more shared memory than the device has": needs.shared > target.shared,
        "more than 512 columns of tensor memory": needs.tensor_memory > 512,
        "stores nothing": needs.stores == 0,
        "no matrix instruction": dot and needs.matrix_instructions == 0,
        "a stub: hardly a register": needs.registers <= 16,
    }
    return [text for text, broken in rules.items() if broken]


def _names(cases: set[tuple[str, str, str]] | list[tuple[str, str, str]]) -> list[Any]:
    return [pytest.param(*case, id="-".join(case)) for case in sorted(cases)]


def _expect_sound(target: str, dtype: str, name: str, folder: Path, *, dense: bool) -> None:
    needs = resources(compile_for(CLASSES[name], dtype, TARGETS[target], dense=dense), folder)
    assert not complaints(needs, TARGETS[target], dot=name not in NO_DOT), needs


@pytest.mark.parametrize(("target", "dtype", "name"), _names(QUICK))
def test_kernels_of_dense_unweighted_batches_fit_their_device(
    target: str, dtype: str, name: str, tmp_path: Path
) -> None:
    _expect_sound(target, dtype, name, tmp_path, dense=True)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "dtype", "name"), _names(MATRIX))
def test_every_launch_class_fits_every_device(target: str, dtype: str, name: str, tmp_path: Path) -> None:
    _expect_sound(target, dtype, name, tmp_path, dense=False)


@pytest.mark.slow
def test_the_checks_see_a_spill(tmp_path: Path) -> None:
    """A green matrix means something only if a kernel that is too large is red."""
    too_large = Kernel(sinkhorn.register_kernel, {"BN": 256, "BM": 64}, 4)
    target = TARGETS["sm_80"]
    assert "spills registers" in complaints(resources(compile_for(too_large, "fp32", target), tmp_path), target)
