"""Patches of pictures of any size, laid end to end, and statistics over each picture's part."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from guardcore.patches import PatchSet


class PackedPatches(NamedTuple):
    """Patches and global vectors of B pictures, one after the other.

    embeddings [T, D] fp32; cu_seqlens [B+1] int32, where each picture's patches start and the last ones end;
    images [V, D] fp32, the vectors of all tiles; image_offsets [B+1] int32, the same for them.
    """

    embeddings: Tensor
    cu_seqlens: Tensor
    images: Tensor
    image_offsets: Tensor

    @classmethod
    def pack(cls, sets: Sequence[PatchSet]) -> PackedPatches:
        """Lay the patches of at least one picture end to end."""
        return cls(
            torch.cat([item.embeddings for item in sets]).float(),
            _offsets([len(item.embeddings) for item in sets]),
            torch.cat([item.image for item in sets]).float(),
            _offsets([len(item.image) for item in sets]),
        )


def lowest_mean(scores: Tensor, offsets: Tensor, count: int) -> Tensor:
    """Mean of each picture's `count` lowest scores[C, T]: [B, C]; NaN without patches or with a non-finite one."""
    rows = []
    for item in _items(scores, offsets):
        valid = item.shape[1] and bool(item.isfinite().all())
        lowest = item.topk(min(count, item.shape[1]), dim=1, largest=False).values.mean(dim=1) if valid else None
        rows.append(scores.new_full(scores.shape[:1], torch.nan) if lowest is None else lowest)
    return torch.stack(rows)


def packed_mean(values: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of values[G, T] over each picture's patches, weighted by weights[T] if given: [B, G]."""
    weights = values.new_ones(values.shape[1:]) if weights is None else weights
    pairs = zip(_items(values * weights, offsets), _items(weights[None], offsets), strict=True)
    return torch.stack([item.sum(dim=1) / total.sum() for item, total in pairs])


def _items(values: Tensor, offsets: Tensor) -> list[Tensor]:
    edges = offsets.tolist()
    return [values[:, start:stop] for start, stop in pairwise(edges)]


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(dim=0).to(torch.int32)
