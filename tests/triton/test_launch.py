"""The launchers' host side: every size finds a class, workspaces keep their bound, and nothing is allocated."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from guardcore.triton_kernels import calibrated_attention, calibrated_attention_paged, joint_sinkhorn, sinkhorn
from guardcore.triton_kernels.calibrated_attention_tables import (
    WIDTHS,
    rows_of,
    splits_for,
    width_of,
)
from guardcore.triton_kernels.calibrated_attention_tables import (
    tile_for as attention_tile,
)
from guardcore.triton_kernels.sinkhorn import WORKSPACE_BYTES, categories_at_once, tile_for
from guardcore.triton_kernels.sweeps import STREAMS, stream_for

KERNELS = {
    "cosine": ("row_scale_kernel",),
    "sinkhorn": ("register_kernel", "stream_kernel"),
    "joint_sinkhorn": ("cosine_kernel", "joint_kernel", "share_kernel"),
    "calibrated_attention": ("attention_kernel", "merge_kernel"),
}


class Calls:
    """Stands for a kernel: takes grid and arguments, runs nothing."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(size > 0 for size in grid), grid
        return lambda *arguments, **_: self.made.append(arguments)


class Operations(TorchDispatchMode):
    """Notes what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    recorder = Calls()
    for module, names in KERNELS.items():
        for name in names:
            monkeypatch.setattr(importlib.import_module(f"guardcore.triton_kernels.{module}"), name, recorder)
    return recorder


VIEWS = {"view", "slice", "split_with_sizes", "_unsafe_view", "alias", "detach"}
OPTIONS = (0.05, 10, 1e-4, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "M"), [(9, 4), (300, 40), (0, 40)])
@pytest.mark.parametrize("packed", [False, True])
def test_launching_into_buffers_only_makes_views(calls: Calls, N: int, M: int, packed: bool, dtype: Any) -> None:
    x, p = torch.zeros(2, N, 8, dtype=dtype), torch.zeros(3, M, 8, dtype=dtype)
    offsets = (torch.tensor([0, N, 2 * N]).int(),) if packed else ()
    x = x.flatten(0, 1) if packed else x
    plan = sinkhorn.empty_plan(p, 2, (3, 2 * N) if packed else (2, 3, N))
    workspace = torch.empty(sinkhorn.workspace_numel(x, p, *offsets))
    run = sinkhorn.sinkhorn_packed_out if packed else sinkhorn.sinkhorn_out
    with Operations() as operations:
        assert run(x, *offsets, p, None, None, *OPTIONS, *plan, workspace) is None
    assert set(operations.names) <= VIEWS
    assert len(calls.made) >= 2  # lengths, solution
    handed = [t for made in calls.made for t in made if isinstance(t, torch.Tensor) and t.numel()]
    assert all(t.data_ptr() % 16 == 0 for t in handed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("N", [0, 9])
def test_launching_a_joint_problem_into_buffers_only_makes_views(calls: Calls, N: int, dtype: Any) -> None:
    x, p, group = torch.zeros(2, N, 8, dtype=dtype), torch.zeros(40, 8, dtype=dtype), torch.arange(40) % 3
    plan = (torch.empty(2, 3, N), torch.empty(2, 3, N), torch.empty(2, dtype=torch.int32), torch.empty(2))
    workspace = torch.empty(joint_sinkhorn.workspace_numel(patches=x, prototypes=p, num_groups=3))
    with Operations() as operations:
        joint_sinkhorn.joint_sinkhorn_out(x, p, group, None, None, 3, *OPTIONS, *plan, workspace)
    assert set(operations.names) <= VIEWS
    assert len(calls.made) == (4 if N else 3)


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
    assert categories_at_once(B, C, rows, 4 * width) == expected
    assert expected == 1 or expected * rows * width * 4 <= WORKSPACE_BYTES


@pytest.mark.parametrize(("dtype", "megabytes"), [(torch.float32, 40), (torch.bfloat16, 60)])
def test_the_workspace_of_a_large_batch_keeps_its_bound(dtype: torch.dtype, megabytes: int) -> None:
    x, p = torch.empty(256, 577, 768, dtype=dtype, device="meta"), torch.empty(16, 64, 768, dtype=dtype, device="meta")
    assert sinkhorn.workspace_numel(x, p) * 4 <= megabytes << 20
    assert sinkhorn.workspace_numel(x[:, :197], p[:, :32]) * 4 <= 1 << 20  # in registers: lengths only; views, too


PREPARED = VIEWS | {"empty", "fill_", "transpose", "expand", "unsqueeze"}  # nothing that waits for the device


@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize(("Q", "kernels"), [(1, 2), (70, 1)], ids=["few-rows", "blocks"])
def test_launching_attention_copies_no_keys_and_waits_for_nothing(
    calls: Calls, Q: int, kernels: int, mass: bool
) -> None:
    query, cache = torch.zeros(2, 4, Q, 16), torch.zeros(2, 600, 2, 16).transpose(1, 2)  # as hosts lay them out
    kinds, rule, start = torch.zeros(2, 600, dtype=torch.uint8), torch.zeros(1, 4, 3, 3), torch.zeros(2).long()
    masks = (torch.ones(2, Q, dtype=torch.bool), torch.ones(2, 600, dtype=torch.bool), torch.zeros(2, 600).long())
    with Operations() as operations:
        calibrated_attention.calibrated_attention(
            query, cache, cache, kinds, rule, *masks, start, True, 0.25, 9, 3.0, mass
        )  # fmt: skip
    assert set(operations.names) <= PREPARED
    assert len(calls.made) == (1 if mass else kernels)
    assert calls.made[0][1] is cache


@pytest.mark.parametrize("most", [1, 70])
def test_launching_paged_attention_copies_no_pages_and_waits_for_nothing(calls: Calls, most: int) -> None:
    query, cache, table = torch.zeros(75, 4, 16), torch.zeros(40, 16, 2, 16), torch.zeros(6, 38, dtype=torch.int32)
    offsets, lengths = torch.zeros(7, dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    kinds, rule = torch.zeros(6, 600, dtype=torch.uint8), torch.zeros(6, 4, 3, 3)
    with Operations() as operations:
        calibrated_attention_paged.calibrated_attention_paged(
            query, cache, cache, table, offsets, lengths, kinds, rule, None, 0.25, 9, 3.0, most, False
        )  # fmt: skip
    assert set(operations.names) <= PREPARED
    assert len(calls.made) == (2 if most == 1 else 1)
    assert calls.made[0][1].data_ptr() == cache.data_ptr()


def test_every_width_of_a_head_gets_the_narrowest_tile_that_holds_it() -> None:
    for D in range(1, WIDTHS[-1] + 1):
        assert D <= width_of(D) == min(width for width in WIDTHS if width >= D)
    for few in (False, True):
        for size in (2, 4):
            for width in WIDTHS:
                tile = attention_tile(width, size, "sm_90", few=few)
                assert width % tile.depth == 0
                assert tile.rows >= 16


def test_blocks_have_no_more_rows_than_items_or_masses_ask_for() -> None:
    tile = attention_tile(128, 2, "sm_90", few=False)
    assert [rows_of(tile, rows, 1) for rows in (1, 17, 1000)] == [16, 32, 128]
    assert [rows_of(tile, 1000, classes) for classes in (5, 33, 256)] == [128, 32, 16]


def test_keys_are_split_to_fill_the_device_into_ranges_that_are_not_short() -> None:
    assert [splits_for(K, 1) for K in (0, 1, 511, 512, 4096, 10**6)] == [1, 1, 1, 2, 16, 64]
    assert [splits_for(4096, units) for units in (64, 100, 1000)] == [5, 3, 1]
