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
    """Items of equal length: contiguous patches[B, N, D]."""
    B, N, D = patches.shape
    return Batch(patches.view(B * N, D), None, B, N)


def packed(patches: Tensor, cu_seqlens: Tensor) -> Batch:
    """Items of different lengths: patches[T, D], cu_seqlens[B + 1] int32. Lengths are not looked at."""
    return Batch(patches, cu_seqlens, cu_seqlens.shape[0] - 1, patches.shape[0])


def batch_of(patches: Tensor, cu_seqlens: Tensor | None) -> Batch:
    """Dense without offsets, packed with them."""
    return dense(patches) if cu_seqlens is None else packed(patches, cu_seqlens)


def shape_of(patches: Tensor, cu_seqlens: Tensor | None) -> Batch:
    """A batch of the same sizes and dtype without values, for patches of any layout."""
    return batch_of(patches.new_empty(patches.shape, device="meta"), cu_seqlens)


def streams_half(batch: Batch, prototypes: Tensor) -> bool:
    """Whether K is streamed as bfloat16: for bfloat16 inputs, whose own rounding costs more (docs/decisions/0011)."""
    return batch.rows.dtype == prototypes.dtype == torch.bfloat16


def rows(embeddings: Tensor) -> Tensor:
    """Embeddings as the kernels read them."""
    if embeddings.dtype not in DTYPES:
        raise TypeError(f"patches: the Triton kernels take float32, bfloat16 or float16, got {embeddings.dtype}")
    return embeddings.contiguous()


def weights(values: Tensor | None) -> Tensor | None:
    """Weights as the kernels read them."""
    return None if values is None else values.to(torch.float32).contiguous()


def damping(relaxation: float | None, epsilon: float) -> float:
    """Exponent rho / (rho + epsilon) of the column update; 1 keeps the marginal exact."""
    if relaxation is None or math.isinf(relaxation):
        return 1.0
    return relaxation / (relaxation + epsilon)
