"""The host side that every launcher shares: a batch of items as rows, weights and the marginal's exponent."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Batch(NamedTuple):
    """B items in contiguous rows[X, D]: N rows each, or with offsets[B + 1] between them, then at most N."""

    rows: Tensor
    offsets: Tensor | None
    B: int
    N: int


def dense(patches: Tensor) -> Batch:
    """Items of equal length: patches[B, N, D]."""
    B, N, D = patches.shape
    return Batch(_rows(patches.reshape(B * N, D)), None, B, N)


def packed(patches: Tensor, cu_seqlens: Tensor) -> Batch:
    """Items of different lengths: patches[T, D], cu_seqlens[B + 1] on the same device. Lengths are not looked at."""
    return Batch(_rows(patches), cu_seqlens.contiguous(), cu_seqlens.shape[0] - 1, patches.shape[0])


def weights(values: Tensor | None) -> Tensor | None:
    """Weights as the kernels read them."""
    return None if values is None else values.to(torch.float32).contiguous()


def damping(relaxation: float | None, epsilon: float) -> float:
    """Exponent rho / (rho + epsilon) of the column update; 1 keeps the marginal exact."""
    if relaxation is None or math.isinf(relaxation):
        return 1.0
    return relaxation / (relaxation + epsilon)


def _rows(rows: Tensor) -> Tensor:
    if rows.dtype not in DTYPES:
        raise TypeError(f"patches: the Triton kernels take float32, bfloat16 or float16, got {rows.dtype}")
    return rows.contiguous()
