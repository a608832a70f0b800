"""Problems for the transport operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

Draw = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory: None) -> None:
    """No operator may return memory that it did not write."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A failure must come back when its test is run alone."""
    torch.manual_seed(20)


@pytest.fixture
def draw() -> Draw:
    """Draw unit patches [B, N, D] and prototypes [C, M, D]: `random` cosines near 0, `clustered` ones up to 0.95."""

    def draw(kind: str, B: int, N: int, C: int, M: int, D: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        patches, prototypes = torch.randn(B, N, D, generator=g), torch.randn(C, M, D, generator=g)
        if kind == "clustered":
            centers = 3 * torch.randn(6, D, generator=g)
            patches += centers[torch.randint(6, (B, N), generator=g)]
            prototypes += centers[torch.randint(6, (C, M), generator=g)]
        return normalize(patches, dim=-1), normalize(prototypes, dim=-1)

    return draw
