"""What attention cannot do without on this machine, measured in the same run by bench/floor.cpp, on one core.

Many rows: both products over visible pairs at the core's multiply-add peak, and one exponential a pair. In 16 bits the
peak is that of the processor's bfloat16 products where it has them: nobody here uses them for both products.
One row: reading keys and values once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import torch

from bench import floor
from bench.attention_cases import AttentionCase

CHUNK = 4096  # exponentials, whose arguments stay in the cache
STEPS = 10_000_000
READ = 1024  # bytes: read_all takes whole groups of vectors


def prefill_ms(case: AttentionCase, dtype: torch.dtype) -> float:
    """Milliseconds of the arithmetic of many rows."""
    arguments, results = torch.linspace(-20, 0, CHUNK), torch.empty(CHUNK)
    pointers = floor.pointer(arguments), floor.pointer(results), ctypes.c_int64(CHUNK)
    run = partial(floor.library().exponentials, *pointers)
    repeats = 1000
    each = floor.fastest(lambda: [run() for _ in range(repeats)]) / repeats / CHUNK
    return case.flops / peak(dtype) / 1e6 + case.pairs * each


def peak(dtype: torch.dtype) -> float:
    """GFLOP/s of one core in the precision of the inputs."""
    loaded = floor.library()
    flops = loaded.bfloat16_flops() if dtype == torch.bfloat16 else 0
    if not flops:
        return floor.peak()
    return flops * STEPS / floor.fastest(lambda: loaded.bfloat16_dots(ctypes.c_int64(STEPS))) / 1e6


def reading(case: AttentionCase, dtype: torch.dtype) -> Callable[[], object]:
    """A call that reads as many bytes as keys and values have."""
    count = case.cache_bytes(dtype) // READ * READ // 4
    memory = torch.ones(count)
    read = floor.library().read_all
    read.restype = ctypes.c_float
    return lambda: read(floor.pointer(memory), ctypes.c_int64(count))
