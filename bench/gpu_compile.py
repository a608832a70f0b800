"""Compile the GPU kernels for devices that are not here, and read what they need of them.

Triton does not check offline what fails at launch: more shared or tensor memory than the device has compiles silently,
and over-allocated tensor memory even leaves a stub kernel without a store. `complaints` says which of these a compiled
kernel has. Speed can't be told this way.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from guardcore.triton_kernels import cosine, joint_sinkhorn, sinkhorn, sinkhorn_kernels, sweeps

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
TENSOR_MEMORY = 512  # columns, where there is any
DOTS = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
DTYPES = tuple(DOTS)
TYPES = {"p_offsets": "*i32", "p_iterations": "*i32", "p_group": "*i64", "p_cleared": "*u8", "p_k": "*bf16"}
FLOATS = dict.fromkeys(("epsilon", "tolerance", "relaxation", "damping", "scale", "slack", "share"), "fp32")


class Kernel(NamedTuple):
    """A kernel with the constants and warps of one launch class; dtypes: of the inputs that make different code."""

    function: Any
    constants: dict[str, Any]
    warps: int
    dtypes: tuple[str, ...] = DTYPES
    dot: bool = True


class Resources(NamedTuple):
    """What a compiled kernel needs of its device: registers a thread, bytes spilled and shared, columns of tensor
    memory; and how many stores and matrix instructions it has.
    """

    registers: int
    spilled: int
    shared: int
    tensor_memory: int
    stores: int
    matrix_instructions: int


def launch_classes() -> Iterator[tuple[str, Kernel]]:
    """Every row of the launch tables."""
    scale = {"BR": cosine.ROWS, "BD": cosine.DEPTH}
    yield "row-scale", Kernel(cosine.row_scale_kernel, scale, 4, dot=False)
    for tile in sinkhorn.TILES:
        blocks = {"BN": tile.rows, "BM": tile.width}
        yield f"registers-{tile.rows}x{tile.width}", Kernel(sinkhorn_kernels.register_kernel, blocks, tile.warps)
    for stream in sweeps.STREAMS:
        sweep = {"BT": stream.rows, "BM": stream.width}
        fill = {"BN": stream.fill_rows, "BC": stream.fill_width}
        yield f"stream-{stream.width}", Kernel(sinkhorn_kernels.stream_kernel, sweep | fill, stream.warps)
        joint = Kernel(joint_sinkhorn.joint_kernel, sweep, joint_sinkhorn.SOLVE_WARPS, ("fp32", "bf16"), dot=False)
        yield f"joint-{stream.width}", joint
    for columns, width in ((16, 16), (32, 32), (joint_sinkhorn.COSINES["BC"], 256)):
        products = joint_sinkhorn.COSINES | {"BC": columns, "BM": width}
        yield f"joint-cosines-{columns}", Kernel(joint_sinkhorn.cosine_kernel, products, joint_sinkhorn.WARPS)
    shares = joint_sinkhorn.READ | {"BT": joint_sinkhorn.READ_WEIGHTS, "BM": 256}
    yield "joint-shares", Kernel(joint_sinkhorn.share_kernel, shares, joint_sinkhorn.WARPS, ("fp32",))


CLASSES = dict(launch_classes())


def matrix() -> list[tuple[str, str, str]]:
    """All (target, dtype, class) that make different code."""
    return [(target, dtype, name) for target in TARGETS for name in CLASSES for dtype in CLASSES[name].dtypes]


def compile_for(kernel: Kernel, dtype: str, target: Target, *, dense: bool = False) -> Any:
    """Compile as the launcher would for inputs of `dtype`, packed and weighted unless dense (the larger code)."""
    names = kernel.function.arg_names
    precision = "ieee" if target.gpu.backend == "hip" else "tf32x3"
    kinds = {"DOT": DOTS[dtype], "BD": cosine.DOT_DEPTH[DOTS[dtype]], "PRECISION": precision, "PACKED": not dense}
    kinds["HALF"] = dtype == "bf16"
    absent = dict.fromkeys(("p_offsets", "p_a", "p_b")) if dense else {}
    constants = {name: value for name, value in (kinds | absent | kernel.constants).items() if name in names}
    pointers = {name: "*fp32" for name in names if name.startswith("p_")}
    types = pointers | TYPES | dict.fromkeys(("p_x", "p_y"), f"*{dtype}") | FLOATS
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name == "D"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=kernel.function, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target.gpu, options={"num_warps": kernel.warps, "num_stages": 2})


def resources(compiled: Any) -> Resources:
    """Read the compiler's output, and for NVIDIA the machine code."""
    return _amd(compiled) if "amdgcn" in compiled.asm else _nvidia(compiled)


def complaints(needs: Resources, target: Target, *, dot: bool) -> list[str]:
    """Why a kernel would fail or crawl on its device."""
    rules = {
        "spills registers": needs.spilled > 0,
        "more shared memory than the device has": needs.shared > target.shared,
        "more tensor memory than the device has": needs.tensor_memory > TENSOR_MEMORY,
        "stores nothing": needs.stores == 0,
        "no matrix instruction": dot and needs.matrix_instructions == 0,
        "a stub: hardly a register": needs.registers <= 16,
    }
    return [text for text, broken in rules.items() if broken]


def _amd(compiled: Any) -> Resources:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s*(\d+)", text)[1])

    spilled = number("vgpr_spill_count") + number("private_segment_fixed_size")
    stores, products = len(re.findall(r"\b(?:global|buffer)_store", text)), len(re.findall(r"\bv_mfma", text))
    return Resources(number("vgpr_count"), spilled, compiled.metadata.shared, 0, stores, products)


def _nvidia(compiled: Any) -> Resources:
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.check_output([TOOLS / "cuobjdump", "--dump-resource-usage", cubin], text=True)
        sass = subprocess.check_output([TOOLS / "nvdisasm", "-c", cubin], text=True, stderr=subprocess.DEVNULL)

    def number(key: str) -> int:
        return int(re.search(rf"\b{key}:(\d+)", usage)[1])

    spilled = number("STACK") + number("LOCAL") + len(re.findall(r"\b(?:STL|LDL)\b", sass))
    products = len(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", sass))
    tensor_memory = compiled.metadata.tmem_size or 0
    stores = compiled.asm["ptx"].count("st.global")
    return Resources(number("REG"), spilled, compiled.metadata.shared, tensor_memory, stores, products)
