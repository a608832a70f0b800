"""The floor: what this machine takes for the arithmetic that cannot be left out, measured beside the contenders.

One matrix product at the case's shape, the exponentials, and Sinkhorn's passes over kernel matrices that stay in the
cache: bench/floor.cpp, compiled here with the machine's own instructions. Nothing is normalized, read from memory
twice, checked, stored or returned.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.cases import Case
from bench.measure import once

SOURCE = Path(__file__).with_suffix(".cpp")


@functools.cache
def library() -> ctypes.CDLL:
    """Compile bench/floor.cpp into build/, load and check it; SystemExit without a compiler or if it is wrong."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise SystemExit("the floor needs a C++ compiler (GCC); set CXX")
    processor = Path("/proc/cpuinfo").read_text().split("\n\n")[0] if Path("/proc/cpuinfo").exists() else ""
    flags = next((line for line in processor.splitlines() if line.startswith("flags")), "")
    key = hashlib.sha256((SOURCE.read_text() + compiler + flags).encode()).hexdigest()[:12]
    binary = SOURCE.parents[1] / "build" / f"floor-{key}.so"
    if not binary.exists():
        binary.parent.mkdir(exist_ok=True)
        command = [compiler, "-O3", "-std=c++17", "-march=native", "-shared", "-fPIC", str(SOURCE), "-o", str(binary)]
        subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(binary))
    check(loaded)
    return loaded


def check(loaded: ctypes.CDLL) -> None:
    """Compare scalings and exponentials with float64."""
    problem = Resident(loaded, 197, 32, spread=4.0)
    problem.run(30)
    K, v = problem.kernel[:197].double(), torch.full((32,), 1 / 32, dtype=torch.float64)
    for _ in range(30):
        v = 1 / 32 / (K.T @ (1 / 197 / (K @ v)))
    x = torch.linspace(-80, 0, 4096)
    y, exact = torch.empty_like(x), x.double().exp()
    loaded.exponentials(pointer(x), pointer(y), ctypes.c_int64(x.numel()))
    errors = float((problem.scaling / v - 1).abs().max()), float((y / exact - 1).abs().max())
    if not max(errors) < 2e-5:
        raise SystemExit(f"bench/floor.cpp is wrong: relative errors of scalings and exponentials {errors}")


class Resident:
    """A Sinkhorn problem of N rows and M columns whose kernel matrix stays in the cache while it is iterated on."""

    def __init__(self, loaded: ctypes.CDLL, rows: int, columns: int, spread: float = 1.0) -> None:
        lanes = loaded.lanes()
        rows_padded, self.width = -(-rows // lanes) * lanes, -(-columns // lanes) * lanes
        g = torch.Generator().manual_seed(0)
        self.kernel = torch.exp(-spread * torch.rand(rows_padded, self.width, generator=g))
        self.a, self.b = torch.zeros(rows_padded), torch.full((self.width,), 1 / self.width)
        self.a[:rows] = 1 / rows
        self.scaling = torch.full((self.width,), 1 / self.width)
        self.loaded = loaded

    def run(self, iterations: int) -> None:
        """Iterate, reading the kernel matrix once each time."""
        tensors = map(pointer, (self.kernel, self.a, self.b, self.scaling))
        self.loaded.sinkhorn(*tensors, len(self.a), self.width, ctypes.c_int(iterations))


class Floor:
    """A case's floor: iterations[i] in all for image i, over its categories."""

    def __init__(self, case: Case, iterations: list[int], threads: int = 1) -> None:
        problem = case.problem()
        self.patches, self.bank = problem.patches, problem.prototypes.flatten(0, 1).T
        self.cosine = torch.empty(len(self.patches), self.bank.shape[1])
        self.loaded, self.threads, self.pool = library(), threads, ThreadPoolExecutor(threads)
        self.exponents, self.results = torch.linspace(-20, 0, 4096), torch.empty(4096)
        self.work = [self._share(case, iterations, thread) for thread in range(threads)]

    def _share(self, case: Case, iterations: list[int], thread: int) -> list[tuple[Resident, int]]:
        """A thread's share of every image's iterations, with matrices of its own, one for all images of a length."""
        matrices = {length: Resident(self.loaded, length, case.prototypes) for length in set(case.lengths)}
        start, end = thread / self.threads, (thread + 1) / self.threads
        counts = [int(count * end) - int(count * start) for count in iterations]
        return [(matrices[length], count) for length, count in zip(case.lengths, counts, strict=True)]

    def product(self) -> None:
        """The cost matrix."""
        torch.mm(self.patches, self.bank, out=self.cosine)

    def exponentials(self) -> None:
        """One exponential per entry of the cost matrix, by one thread."""
        arguments = pointer(self.exponents), pointer(self.results), ctypes.c_int64(len(self.results))
        for _ in range(self.cosine.numel() // len(self.results)):
            self.loaded.exponentials(*arguments)

    def passes(self) -> None:
        """All iterations of all problems."""
        if self.threads == 1:
            iterate(self.work[0])
        else:
            list(self.pool.map(iterate, self.work))  # ctypes lets go of the interpreter

    def run(self) -> None:
        """All of it."""
        self.product()
        self.exponentials()
        self.passes()


def iterate(work: list[tuple[Resident, int]]) -> None:
    """Run each matrix for its number of iterations."""
    for resident, count in work:
        resident.run(count)


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Address of a tensor's data; torch aligns it to 64 bytes, as bench/floor.cpp wants."""
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % 64 == 0
    return ctypes.c_void_p(tensor.data_ptr())


def peak() -> float:
    """GFLOP/s of one core that multiplies and adds in registers."""
    loaded, count = library(), 10_000_000
    return loaded.multiply_add_flops() * count / fastest(lambda: loaded.multiply_add(ctypes.c_int64(count))) / 1e6


def product_rates(case: Case) -> dict[str, float]:
    """GFLOP/s of torch's matrix product at the case's shape, by precision."""
    problem = case.problem()
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        patches, bank = problem.patches.to(dtype), problem.prototypes.flatten(0, 1).T.to(dtype)
        rates[str(dtype).removeprefix("torch.")] = case.gemm_flops / fastest(partial(torch.mm, patches, bank)) / 1e6
    return rates


def fastest(run: Callable[[], object], times: int = 5) -> float:
    """CPU milliseconds of the fastest of several calls."""
    return min(once(run)[0] for _ in range(times))
