"""Launches into the caller's tensors, under the interpreter: the same numbers, whatever was in them before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore.triton_kernels import joint_sinkhorn, sinkhorn

OPTIONS = (0.05, 6, 1e-4, None)


def points(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.7


def spoiled(like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tensors of the same shapes and dtypes, full of what no result may be."""
    return tuple(torch.full_like(t, -7 if t.dtype == torch.int32 else math.inf) for t in like)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "M"), [(9, 4), (9, 36), (0, 4), (0, 36)])
def test_sinkhorn(interpreted: Callable[..., Any], N: int, M: int, dtype: torch.dtype) -> None:
    x, p = points(2, N, 24, seed=1).to(dtype), points(3, M, 24, seed=2).to(dtype)
    want = interpreted("sinkhorn", x, p, None, None, *OPTIONS)
    workspace = torch.full((sinkhorn.workspace_numel(x, p),), torch.nan)
    out = interpreted("sinkhorn_out", x, p, None, None, *OPTIONS, *spoiled(want), workspace)
    assert all(torch.equal(*pair) or pair[0].isnan().all() for pair in zip(out, want, strict=True))
    assert want[0].isnan().all() == (N == 0)


@pytest.mark.parametrize("M", [4, 36])
def test_sinkhorn_packed(interpreted: Callable[..., Any], M: int) -> None:
    offsets = torch.tensor([0, 5, 5, 270]).int()
    x, p, a = points(270, 24, seed=1), points(2, M, 24, seed=2), torch.rand(270)
    want = interpreted("sinkhorn_packed", x, offsets, p, a, None, *OPTIONS)
    workspace = torch.full((sinkhorn.workspace_numel(x, p, offsets),), torch.nan)
    out = interpreted("sinkhorn_packed_out", x, offsets, p, a, None, *OPTIONS, *spoiled(want), workspace)
    for ours, plain in zip(out, want, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joint_sinkhorn(interpreted: Callable[..., Any], dtype: torch.dtype) -> None:
    x, p, group = points(3, 9, 24, seed=1).to(dtype), points(40, 24, seed=2).to(dtype), torch.arange(40) % 5
    want = interpreted("joint_sinkhorn", x, p, group, None, None, 5, *OPTIONS)
    workspace = torch.full((joint_sinkhorn.workspace_numel(x, p, 5),), torch.nan)
    out = interpreted("joint_sinkhorn_out", x, p, group, None, None, 5, *OPTIONS, *spoiled(want), workspace)
    assert all(torch.equal(*pair) for pair in zip(out, want, strict=True))


def test_joint_sinkhorn_packed(interpreted: Callable[..., Any]) -> None:
    offsets = torch.tensor([0, 5, 5, 40]).int()
    x, p, group = points(40, 24, seed=1), points(40, 24, seed=2), torch.arange(40) % 5
    want = interpreted("joint_sinkhorn_packed", x, offsets, p, group, None, None, 5, *OPTIONS)
    workspace = torch.full((joint_sinkhorn.workspace_numel(x, p, 5, offsets),), torch.nan)
    tensors = (*spoiled(want), workspace)
    out = interpreted("joint_sinkhorn_packed_out", x, offsets, p, group, None, None, 5, *OPTIONS, *tensors)
    for ours, plain in zip(out, want, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)
