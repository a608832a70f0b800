"""Every launch class compiled for sm_80: see bench/gpu_compile.py."""

from __future__ import annotations

import pytest

from bench.gpu_compile import CLASSES, TARGETS, compile_for, complaints, matrix, resources

CELLS = [cell[1:] for cell in matrix() if cell[0] == "sm_80"]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "name"), CELLS)
def test_every_launch_class_fits(dtype: str, name: str) -> None:
    needs = resources(compile_for(CLASSES[name], dtype, TARGETS["sm_80"]))
    assert not complaints(needs, TARGETS["sm_80"], dot=CLASSES[name].dot), needs
