"""The launchers' host side: every size finds a class, workspaces keep their bound, and nothing is allocated."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from guardcore.triton_kernels import joint_sinkhorn, sinkhorn
from guardcore.triton_kernels.sinkhorn import WORKSPACE_BYTES, categories_at_once, tile_for
from guardcore.triton_kernels.sweeps import STREAMS, stream_for

KERNELS = {
    "cosine": ("row_scale_kernel",),
    "sinkhorn": ("register_kernel", "stream_kernel"),
    "joint_sinkhorn": ("cosine_kernel", "joint_kernel", "share_kernel"),
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
