"""docs/gpu.md is that of the kernels as they are, and its arithmetic is right."""

from __future__ import annotations

import pytest

from bench import gpu_resources
from bench.cases import CASES
from bench.gpu_resources import DEVICES, bound, resident, work


def test_the_page_was_made_from_these_kernels() -> None:
    assert gpu_resources.is_current(), "python -m bench.gpu_resources"


def test_the_work_of_a_problem() -> None:
    need = work(CASES["b"], "fp32")  # B32 N197 D512 C13 M32: in registers
    rows = 32 * 197
    assert need.products == 2 * rows * 512 * 13 * 32
    assert need.fp32 == 50 * 4 * rows * 13 * 32
    assert need.traffic == 4 * ((rows + 13 * 32) * 512 + 3 * 13 * rows + 32 * 13 * (32 + 4))
    assert need.sweep == 0
    assert work(CASES["c"], "fp32").sweep == 8 * 577 * 16 * 64 * 4
    assert work(CASES["c"], "bf16").sweep == 8 * 577 * 16 * 64 * 2
    assert work(CASES["c"], "bf16").exponentials < work(CASES["c"], "fp32").exponentials


def test_a_bound_is_the_slowest_unit() -> None:
    seconds, unit = bound(work(CASES["b"], "fp32"), DEVICES["sm_80"], "fp32")
    assert unit == "products"
    assert seconds == pytest.approx(2 * 32 * 197 * 512 * 13 * 32 / 52e12)


def test_programs_that_a_processor_holds() -> None:
    assert resident(registers=255, shared=1024, warps=8, target="sm_90") == 1
    assert resident(registers=128, shared=1024, warps=8, target="sm_90") == 2
    assert resident(registers=32, shared=48 << 10, warps=4, target="sm_120") == 2
    assert resident(registers=128, shared=1024, warps=16, target="gfx942") == 1
