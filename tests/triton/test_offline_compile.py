"""The GPU kernels compiled for devices that are not here: some classes, and whether the checks can fail.

The whole matrix is test_compile_<device>.py, a file a device, which pytest-xdist spreads over its workers.
"""

from __future__ import annotations

import pytest

from bench import gpu_attention, gpu_compile
from bench.gpu_compile import CLASSES, TARGETS, Resources, compile_for, complaints, resources
from guardcore.triton_kernels import sinkhorn_kernels
from guardcore.triton_kernels.calibrated_attention_tables import WIDTHS, tile_for

QUICK = [("sm_90", "fp32", "registers-256x32"), ("sm_90", "bf16", "stream-64"), ("gfx942", "bf16", "registers-64x16")]
SOUND = Resources(registers=128, spilled=0, shared=1 << 15, tensor_memory=64, stores=8, matrix_instructions=4)


@pytest.mark.parametrize(("target", "dtype", "name"), QUICK)
def test_kernels_of_dense_unweighted_batches_fit_their_device(target: str, dtype: str, name: str) -> None:
    needs = resources(compile_for(CLASSES[name], dtype, TARGETS[target], dense=True))
    assert not complaints(needs, TARGETS[target], dot=CLASSES[name].dot), needs


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"spilled": 8}, "spills registers"),
        ({"shared": 100 << 10}, "more shared memory than the device has"),
        ({"tensor_memory": 768}, "more tensor memory than the device has"),
        ({"stores": 0}, "stores nothing"),
        ({"matrix_instructions": 0}, "no matrix instruction"),
        ({"registers": 4}, "a stub: hardly a register"),
    ],
)
def test_every_false_green_has_a_complaint(broken: dict[str, int], expected: str) -> None:
    assert complaints(SOUND, TARGETS["sm_120"], dot=True) == []
    assert complaints(SOUND._replace(**broken), TARGETS["sm_120"], dot=True) == [expected]


def test_the_matrix_has_every_class_on_every_device() -> None:
    cells = set(gpu_compile.matrix())
    for target in TARGETS:
        for name, kernel in CLASSES.items():
            assert {dtype for t, dtype, n in cells if (t, n) == (target, name)} == set(kernel.dtypes)


@pytest.mark.parametrize(("target", "dtype", "name"), [("sm_90", "bf16", "block-128"), ("gfx942", "fp32", "decode-64")])
def test_attention_fits_its_device(target: str, dtype: str, name: str) -> None:
    needs = resources(gpu_attention.compile_class(name, dtype, target))
    assert not complaints(needs, TARGETS[target], dot=True), needs


def test_the_matrix_has_every_tile_of_attention() -> None:
    cells = gpu_attention.matrix()
    assert {target for target, *_ in cells} == set(TARGETS)
    for few, use in ((False, "block"), (True, "marked"), (True, "decode")):
        for width in WIDTHS:
            tiles = {tile_for(width, size, target, few=few)[1:] for target in TARGETS for size in (2, 4)}
            compiled = {
                gpu_attention.tile_of(name, dtype, target)[1:]
                for target, dtype, name in cells
                if name == f"{use}-{width}"
            }
            assert compiled == tiles


@pytest.mark.slow
def test_the_checks_see_a_spill() -> None:
    """A green matrix means something only if a kernel that is too large is red."""
    too_large = gpu_compile.Kernel(sinkhorn_kernels.register_kernel, {"BN": 256, "BM": 64}, 4)
    target = TARGETS["sm_80"]
    assert "spills registers" in complaints(resources(compile_for(too_large, "fp32", target)), target, dot=True)
