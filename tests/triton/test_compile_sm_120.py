"""Every launch class compiled for sm_120: see bench/gpu_compile.py and bench/gpu_attention.py."""

from __future__ import annotations

import pytest

from bench import gpu_attention
from bench.gpu_compile import CLASSES, TARGETS, compile_for, complaints, matrix, resources

CELLS = [cell[1:] for cell in matrix() if cell[0] == "sm_120"]
ATTENTION = [cell[1:] for cell in gpu_attention.matrix() if cell[0] == "sm_120"]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "name"), CELLS)
def test_every_launch_class_fits(dtype: str, name: str) -> None:
    needs = resources(compile_for(CLASSES[name], dtype, TARGETS["sm_120"]))
    assert not complaints(needs, TARGETS["sm_120"], dot=CLASSES[name].dot), needs


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "name"), ATTENTION)
def test_every_use_of_attention_fits(dtype: str, name: str) -> None:
    needs = resources(gpu_attention.compile_class(name, dtype, "sm_120"))
    assert not complaints(needs, TARGETS["sm_120"], dot=not name.startswith("merge")), needs
