"""What the GPU kernels need of five devices, and the bounds of their work there: writes docs/gpu.md.

    python -m bench.gpu_resources            # compile everything (minutes) and write the page
    python -m bench.gpu_resources --check    # is the page that of these kernels? (a moment)

Nothing here is a measurement: registers and memory are what the compiler reports, bounds are work over published peaks.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import NamedTuple

from bench.cases import CASES, Case

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gpu.md"
ITERATIONS = 50
MARK = "Kernels: "


class Device(NamedTuple):
    """Published peaks: bytes/s of device memory, dense FLOP/s of bfloat16 and of the products that fp32 inputs take
    (`passes` tf32 products each on NVIDIA), FLOP/s of fp32 outside matrix units. exponentials: a second, 16 a clock and
    processor. The last three: what a processor can hold.
    """

    name: str
    bandwidth: float
    bfloat16: float
    fp32_products: float
    passes: int
    fp32: float
    exponentials: float
    threads: int
    shared: int
    registers: int


# NVIDIA A100 80GB SXM, H100 SXM, B200 (HGX, an eighth of the board) data sheets and the RTX Blackwell white paper;
# AMD CDNA 3 white paper and MI300X data sheet. exponentials from the CUDA programming guide's table of throughputs (a
# quarter of the vector rate on CDNA 3) at the clock of the fp32 peak.
DEVICES = {
    "sm_80": Device("A100 80GB", 2.04e12, 312e12, 156e12, 3, 19.5e12, 19.5e12 / 8, 2048, 164 << 10, 65536),
    "sm_90": Device("H100 SXM", 3.35e12, 989e12, 494e12, 3, 67e12, 67e12 / 16, 2048, 228 << 10, 65536),
    "sm_100": Device("B200", 8.0e12, 2250e12, 1125e12, 3, 75e12, 75e12 / 16, 2048, 228 << 10, 65536),
    "sm_120": Device("RTX 5090", 1.79e12, 209.5e12, 104.8e12, 3, 104.8e12, 104.8e12 / 16, 1536, 100 << 10, 65536),
    "gfx942": Device("MI300X", 5.3e12, 1307e12, 163.4e12, 1, 163.4e12, 163.4e12 / 16, 2048, 64 << 10, 131072),
}
DTYPES = {"fp32": 4, "bf16": 2}


class Work(NamedTuple):
    """What a problem costs at least: bytes of inputs and results, products (FLOP), fp32 operations, exponentials; and
    the workspace that one sweep over all problems reads through the cache, 0 if they stay in registers.
    """

    traffic: float
    products: float
    fp32: float
    exponentials: float
    sweep: float


def work(case: Case, dtype: str) -> Work:
    """Of ITERATIONS iterations; a problem is in registers at no more than 256 patches and 32 prototypes."""
    T, B, D, C, M, size = case.total, len(case.lengths), case.width, case.categories, case.prototypes, DTYPES[dtype]
    results = 2 * case.groups * T + 2 * B if case.groups else 3 * C * T + B * C * (M + 4)
    products = 2.0 * T * D * C * M + 4.0 * T * M * case.groups
    streamed = sum(n for n in case.lengths if n > 256 or M > 32) * C * M
    held = T * C * M - streamed
    logarithmic = 0 if dtype == "bf16" else streamed  # an exponential an element and sweep, and a dozen operations
    fp32 = ITERATIONS * (4.0 * (T * C * M - logarithmic) + 12.0 * logarithmic)
    exponentials = 2.0 * (held + streamed) + ITERATIONS * logarithmic
    return Work((T + C * M) * D * size + 4 * results, products, fp32, exponentials, float(streamed * size))


def bound(need: Work, device: Device, dtype: str) -> tuple[float, str]:
    """Seconds that the device's busiest unit takes at its peak, and which one that is."""
    peak = device.bfloat16 if dtype == "bf16" else device.fp32_products / device.passes
    times = {
        "memory": need.traffic / device.bandwidth,
        "products": need.products / peak,
        "fp32": need.fp32 / device.fp32,
        "exp": need.exponentials / device.exponentials,
    }
    unit = max(times, key=lambda name: times[name])
    return times[unit], unit


def resident(registers: int, shared: int, warps: int, target: str) -> int:
    """Programs of a kernel that one processor holds at once."""
    device, lanes = DEVICES[target], 64 if target == "gfx942" else 32
    threads = warps * lanes
    by_registers = device.registers // (-(-registers // 8) * 8 * threads)
    return min(by_registers, device.threads // threads, device.shared // max(1, shared), 32)


def fingerprint() -> str:
    """Of all sources of the kernels: a page with another one is stale."""
    sources = sorted((ROOT / "triton_kernels").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def is_current() -> bool:
    """Whether docs/gpu.md was made from these kernels."""
    return f"{MARK}{fingerprint()}" in PAGE.read_text()


def resource_table(dtype: str) -> list[str]:
    """One row a launch class whose code the dtype decides, one column a device."""
    from bench.gpu_compile import CLASSES  # triton is heavy, and --check needs none of it

    rows = [f"| class | {' | '.join(DEVICES)} |", f"|---|{'---|' * len(DEVICES)}"]
    for name, kernel in CLASSES.items():
        if dtype in kernel.dtypes:
            cells = (resource_cell(name, dtype, target) for target in DEVICES)
            rows.append(f"| {name}, {kernel.warps} warps | {' | '.join(cells)} |")
    return rows


def resource_cell(name: str, dtype: str, target: str) -> str:
    """Registers, memory and programs held; ends the program if the class would fail there, in its dense form, too."""
    from bench import gpu_compile

    kernel, device = gpu_compile.CLASSES[name], gpu_compile.TARGETS[target]
    for dense in (True, False):
        needs = gpu_compile.resources(gpu_compile.compile_for(kernel, dtype, device, dense=dense))
        wrong = gpu_compile.complaints(needs, device, dot=kernel.dot)
        if wrong:
            raise SystemExit(f"{target} {dtype} {name}{' dense' * dense}: {', '.join(wrong)}: {needs}")
    held = resident(needs.registers, needs.shared, kernel.warps, target)
    tensor = f" + {needs.tensor_memory}t" if needs.tensor_memory else ""
    return f"{needs.registers} / {needs.shared / 1024:.1f}{tensor} / {held}"


def attention_table(dtype: str) -> list[str]:
    """As `resource_table`, of calibrated attention, whose tiles differ by device."""
    from bench import gpu_attention

    rows = [f"| class | {' | '.join(DEVICES)} |", f"|---|{'---|' * len(DEVICES)}"]
    names = [name for target, own, name in gpu_attention.matrix() if (target, own) == ("sm_80", dtype)]
    cells = [" | ".join(attention_cell(name, dtype, target) for target in DEVICES) for name in names]
    return [*rows, *(f"| {name} | {row} |" for name, row in zip(names, cells, strict=True))]


def attention_cell(name: str, dtype: str, target: str) -> str:
    """Tile, registers, memory and programs held; ends the program if the class would fail there."""
    from bench import gpu_attention, gpu_compile

    needs = gpu_compile.resources(gpu_attention.compile_class(name, dtype, target))
    merges = name.startswith("merge")
    wrong = gpu_compile.complaints(needs, gpu_compile.TARGETS[target], dot=not merges)
    if wrong:
        raise SystemExit(f"{target} {dtype} {name}: {', '.join(wrong)}: {needs}")
    tile = None if merges else gpu_attention.tile_of(name, dtype, target)
    warps = gpu_attention.MERGE_WARPS if tile is None else tile.warps
    head = "" if tile is None else f"{tile.rows}x{tile.keys} "
    tensor = f" + {needs.tensor_memory}t" if needs.tensor_memory else ""
    held = resident(needs.registers, needs.shared, warps, target)
    return f"{head}w{warps}: {needs.registers} / {needs.shared / 1024:.1f}{tensor} / {held}"


def bound_table() -> list[str]:
    """One row a problem and dtype: its work, and the bound on every device."""
    names = " | ".join(device.name for device in DEVICES.values())
    head = "| problem | | MB | product GFLOP | fp32 GFLOP | G exp | FLOP / byte | MB a sweep |"
    rows = [f"{head} {names} |", f"|---|---|---|---|---|---|---|---|{'---|' * len(DEVICES)}"]
    for name, case in CASES.items():
        for dtype in DTYPES:
            need = work(case, dtype)
            cells = [
                f"{seconds * 1e6:.3g} {unit}" for seconds, unit in (bound(need, d, dtype) for d in DEVICES.values())
            ]
            sizes = (need.traffic / 1e6, need.products / 1e9, need.fp32 / 1e9, need.exponentials / 1e9)
            intensity = (need.products + need.fp32) / need.traffic
            numbers = [*(f"{size:.3g}" for size in sizes), f"{intensity:.0f}", f"{need.sweep / 1e6:.3g}"]
            rows.append(f"| {name}: {case.shape} | {dtype} | {' | '.join(numbers + cells)} |")
    return rows


def page() -> str:
    """docs/gpu.md."""
    import triton

    tables = {dtype: resource_table(dtype) for dtype in ("fp32", "bf16", "fp16")}
    sections = [TITLE, f"{MARK}{fingerprint()}, Triton {triton.__version__}.", RESOURCES]
    for dtype, rows in tables.items():
        sections += [f"### {dtype} inputs", "\n".join(rows)]
    sections += [BOUNDS, "\n".join(bound_table()), ATTENTION]
    for dtype in ("fp32", "bf16", "fp16"):
        sections += [f"### Attention, {dtype}", "\n".join(attention_table(dtype))]
    return "\n\n".join([*sections, ""])


TITLE = """# GPU kernels: resources and bounds

Made by `python -m bench.gpu_resources`; a test fails when the kernels have changed since. **No figure on this page is a
measurement**: nothing here has run on a GPU. Compiled offline for packed, weighted batches (the larger code); the same
compiles are tests (`tests/triton/test_compile_*.py`) that assert no spill, memory within the device's limits, stores
and matrix instructions. The program asserts that of dense batches without weights, too, before it writes this page."""

RESOURCES = """## Resources

Registers a thread / KiB of shared memory a program (+ columns of tensor memory, of 512) / programs that a processor
holds at once. No kernel spills. `registers-NxM`: problems of up to N patches and M prototypes, solved in registers.
`stream-M`: larger ones, swept over from a workspace. `joint-M`, `joint-cosines-M`, `joint-shares`: the joint operator.
A class is listed under the dtypes that make different code: `joint-M` reads no inputs (float16 is as float32), nor does
`joint-shares`. Screening and `out=` run the same code."""

BOUNDS = f"""## Bounds

What {ITERATIONS} iterations of the benchmark's problems need as these kernels do them, and the time, in microseconds,
that the busiest unit of each device takes at its published peak, all others overlapping: **a roofline bound, not a
forecast**. Units: device memory (inputs and results once), matrix products (three tf32 products for one of fp32 on
NVIDIA, never tf32 alone; fp32 matrix units on AMD), fp32 operations, exponentials (one an element and iteration where
float32 problems are streamed). `MB a sweep`: what an iteration reads through the cache, for which no peak is published;
0 in registers. A bound leaves out latency: a problem's iterations wait for one another, and small batches do not fill a
device, so small problems stay far above it."""


ATTENTION = """## Calibrated attention

Nothing of this has run on a GPU: the numbers are the kernels' under Triton's interpreter, the resources those of
kernels compiled offline, and no time is known. What was and what was not looked at:

* Under the interpreter, on grids of a few programs, outputs, log-sum-exps and masses keep the bounds of the CPU's
  kernels against the float64 definition: dense and paged, by blocks and over merged ranges of keys. float32 is three
  tf32 products on NVIDIA; the tests repeat them as matrix units are known to do at worst (sums cut off, not rounded),
  and the bounds still hold. fp32 on AMD is plain fp32 products.
* Compiled for each device as the launcher would, the larger code (causality, window, cap, row mask, and what else the
  use takes): no spill, memory within the device's limits, stores and matrix instructions, for every row of the launch
  tables. The tables were chosen by that alone. They are a start for whoever tunes on a device, not the end.
* Keys and values are loaded asynchronously, 16 bytes at once, ahead of their use, in spite of the rule's scalar branch
  (seen in the compiler's output for bfloat16 on sm_80 and sm_90). Whether that hides its cost is for a measurement.

Cells: rows x keys of a tile and warps, then as above. `block-D`: rows of a prefill, heads up to D wide. `paged-block`:
over pages of 16. `marked`: with key groups and masses. `few`: 4 heads of a key-value head, over ranges of the keys.
`decode`: 8 heads and one row, over pages and ranges. `merge`: of 64 ranges."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compile nothing, fail if the page is stale")
    if parser.parse_args().check:
        raise SystemExit(0 if is_current() else f"{PAGE.relative_to(ROOT)} is stale: python -m bench.gpu_resources")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
