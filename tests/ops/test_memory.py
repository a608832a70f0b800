"""Extra memory of the CPU kernels: scratch for a thread, never a copy of the batch or its cost matrix.

Measured in a process of its own, by the kernel's account of its resident set: the peak is reset before the call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"),
    pytest.mark.skipif(
        find_spec("guardcore._C") is None and "CI" not in os.environ, reason="the C++ kernels are not built"
    ),
]

B, N, D, C, M = 256, 197, 256, 8, 16  # 52 MB of float32 patches, 26 MB of cost matrices
SLACK = 1 << 20  # pages that the allocator rounds up to, and the account's own batching
MEASURE = """
import ctypes, json, sys
import torch
from guardcore import ops

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) << 10

call, B, N, D, C, M, dtype, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
torch.set_default_dtype(getattr(torch, dtype))
patches, prototypes = torch.randn(B, N, D), torch.randn(C, M, D)
options, group = {"max_iterations": 3, "tolerance": 0.0}, torch.arange(C).repeat_interleave(M)
lengths = torch.arange(len(patches) + 1, dtype=torch.int32) * N
calls = {
    "sinkhorn": lambda x: ops.sinkhorn(x, prototypes, **options),
    "sinkhorn_packed": lambda x: ops.sinkhorn_packed(x.flatten(0, 1), lengths[: len(x) + 1], prototypes, **options),
    "joint_sinkhorn": lambda x: ops.joint_sinkhorn(x, prototypes.flatten(0, 1), group, num_groups=C, **options),
    "copy": lambda x: (x + 1,) and (torch.empty(0),),
}
calls[call](patches[:1])  # loads the library, starts the threads
ctypes.CDLL(None).malloc_trim(0)  # nothing that is free may hide what the call takes
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
outputs = calls[call](patches)
print(status("VmHWM") - before - sum(tensor.nbytes for tensor in outputs))
"""


def extra_bytes(call: str, dtype: str = "float32", threads: int = 1) -> int:
    """How far a call on the whole batch raises the peak, beyond inputs and outputs."""
    arguments = json.dumps([call, B, N, D, C, M, dtype, threads])
    script = [sys.executable, "-c", MEASURE, arguments]
    return int(subprocess.run(script, capture_output=True, text=True, check=True).stdout)


def allowed(call: str, threads: int) -> int:
    """Unit prototypes, shares and potentials of the batch; for a thread an item's unit patches, tiles N x M and rows.

    Twice the tiles and rows that the kernels have today, as that is their business.
    """
    width = C * M if call == "joint_sinkhorn" else M
    scratch = N * D + 16 * D + 2 * (2 * N * width + 8 * N + 25 * width)
    potentials = 0 if call == "joint_sinkhorn" else B * C * (N + M)
    return 4 * (C * M * D + B * N + threads * scratch + potentials) + SLACK


ATTEND = """
import ctypes, json, sys
import torch
from guardcore import ops

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) << 10

kind, H, Q, K, D, dtype, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
torch.set_default_dtype(getattr(torch, dtype))
rule = torch.rand(H, 3, 3, dtype=torch.float32)
query = torch.randn(1, H, Q, D)
kinds = (torch.arange(K)[None] // 7 % 3).to(torch.uint8)
if kind == "paged":
    key, value = torch.randn(2, K // 16, 16, H, D)
    table, lengths = torch.randperm(K // 16, dtype=torch.int32)[None], torch.tensor([K], dtype=torch.int32)
    offsets = [torch.tensor([0, n], dtype=torch.int32) for n in range(Q + 1)]
    rows = query[0].transpose(0, 1)
    call = lambda n: ops.calibrated_attention_paged(
        rows[:n], key, value, table, offsets[n], lengths, kinds, rule, return_mass=True
    )
else:
    key, value = torch.randn(2, 1, H, K, D, 2)[..., 0] if kind == "gaps" else torch.randn(2, 1, H, K, D)
    options = {"is_causal": True, "return_mass": True}
    call = lambda n: ops.calibrated_attention(query[:, :, :n], key, value, kinds, rule, **options)
call(1), call(min(Q, 200))
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
outputs = call(Q)
print(status("VmHWM") - before - sum(tensor.nbytes for tensor in outputs))
"""


@pytest.mark.parametrize(
    ("kind", "dtype", "threads"),
    [("dense", "float32", 1), ("dense", "bfloat16", 2), ("gaps", "float32", 1), ("paged", "bfloat16", 2)],
)
@pytest.mark.parametrize(("H", "Q", "K"), [(8, 4096, 4096), (8, 1, 8192)], ids=["prefill", "decode"])
def test_attention_copies_no_keys_and_holds_no_scores(kind, dtype, threads, H, Q, K):
    arguments = json.dumps([kind, H, Q, K, 128, dtype, threads])
    script = [sys.executable, "-c", ATTEND, arguments]
    extra = int(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    room = threads * (2 << 20) + SLACK
    assert room < 2 * H * K * 128, "no room for a copy of the keys, nor for one head's scores"
    assert extra <= room


@pytest.mark.parametrize(("dtype", "threads"), [("float32", 1), ("bfloat16", 2)])
@pytest.mark.parametrize("call", ["sinkhorn", "sinkhorn_packed", "joint_sinkhorn"])
def test_a_call_takes_scratch_for_its_threads_only(call, dtype, threads):
    assert allowed(call, threads) < B * N * D, "no room for a copy of the patches, were it only a byte a number"
    assert extra_bytes(call, dtype, threads) <= allowed(call, threads)


def test_the_measure_sees_a_copy():
    assert extra_bytes("copy") > 0.98 * 4 * B * N * D
