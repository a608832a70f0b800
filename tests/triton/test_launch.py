"""The launch tables: every size finds a class, and no workspace outgrows its bound."""

from __future__ import annotations

import pytest

from guardcore.triton_kernels.sinkhorn import WORKSPACE_BYTES, categories_at_once, tile_for
from guardcore.triton_kernels.sweeps import STREAMS, stream_for


def test_small_problems_stay_in_registers_and_large_ones_do_not() -> None:
    assert [tile_for(*size)[:2] for size in ((1, 1), (64, 17), (65, 16), (256, 32))] == [
        (64, 16),
        (64, 32),
        (256, 16),
        (256, 32),
    ]
    assert tile_for(257, 1) is None
    assert tile_for(1, 33) is None


def test_every_number_of_prototypes_gets_the_narrowest_class_that_holds_it() -> None:
    for M in range(1, 1025):
        stream = stream_for(M, "prototypes")
        assert stream.width >= M
        assert all(other.width < M for other in STREAMS if other.width < stream.width)


@pytest.mark.parametrize(
    ("B", "C", "rows", "width", "expected"),
    [
        (1, 16, 577, 64, 16),  # one item: all categories at once
        (256, 16, 256 * 577, 64, 1),  # a full device: one after the other, 38 MB
        (32, 16, 32 * 577, 64, 10),  # two programs a processor
        (64, 16, 64 * 4096, 64, 1),  # the bound cannot be kept by one category, which still runs
    ],
)
def test_categories_fill_the_device_within_the_workspace_bound(
    B: int, C: int, rows: int, width: int, expected: int
) -> None:
    assert categories_at_once(B, C, rows, width) == expected
    assert expected == 1 or expected * rows * width * 4 <= WORKSPACE_BYTES
