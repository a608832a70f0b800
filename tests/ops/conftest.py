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


@pytest.fixture
def draw_pages() -> Callable[..., dict[str, Tensor]]:
    """Draw the tensors of `ops.calibrated_attention_paged` for requests [(rows, keys), ...] of heads (Hq, Hkv, D).

    Pages are in random order, with one that nobody uses; what belongs to no request is NaN, and the table holds pages
    that there are not beyond those in use.
    """

    def draw(
        requests: list[tuple[int, int]],
        heads: tuple[int, int, int] = (4, 2, 16),
        page: int = 16,
        rule: str = "mixed",
        classes: str = "span",
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, Tensor]:
        (Hq, Hkv, D), R, g = heads, len(requests), torch.Generator().manual_seed(page + len(requests))
        rows, keys = zip(*requests, strict=True)
        used = [-(-length // page) for length in keys]
        order = torch.randperm(sum(used) + 1, generator=g, dtype=torch.int32).split([*used, 1])
        table, caches = (
            torch.full((R, max(used) + 1), -7, dtype=torch.int32),
            torch.full((2, sum(used) + 1, page, Hkv, D), torch.nan),
        )
        table[:, -1] = 10**6
        for r, length in enumerate(keys):
            table[r, : used[r]] = order[r]
            slots = torch.full((2, used[r] * page, Hkv, D), torch.nan)
            slots[:, :length] = torch.randn(2, length, Hkv, D, generator=g)
            caches[:, order[r].long()] = slots.unflatten(1, (used[r], page))
        kinds = [_classes(classes, 1, length, g)[0] for length in keys]
        unused = torch.full((max(keys) + 3,), 255, dtype=torch.uint8)
        return {
            "query": torch.randn(sum(rows), Hq, D, generator=g).to(dtype),
            "key_cache": caches[0].to(dtype),
            "value_cache": caches[1].to(dtype),
            "page_table": table,
            "query_offsets": torch.tensor([0, *rows]).cumsum(0).int(),
            "key_lengths": torch.tensor(keys, dtype=torch.int32),
            "key_class": torch.stack([torch.cat((kind, unused[len(kind) :])) for kind in kinds]),
            "rule": _RULES[rule](torch.rand(R, Hq, 3, 3, generator=g), D),
        }

    return draw


@pytest.fixture
def draw_attention() -> Callable[..., dict[str, Tensor]]:
    """Draw the tensors of `ops.calibrated_attention` by their names, with 3 classes and a rule by its name."""

    def draw(
        shape: tuple[int, ...], rule: str = "mixed", classes: str = "span", dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        (B, Hq, Hkv, Q, K, D), g = shape, torch.Generator().manual_seed(sum(shape))
        query, key = torch.randn(B, Hq, Q, D, generator=g), torch.randn(B, Hkv, K, D, generator=g)
        value = torch.randn(B, Hkv, K, D, generator=g)
        return {
            "query": query.to(dtype),
            "key": key.to(dtype),
            "value": value.to(dtype),
            "key_class": _classes(classes, B, K, g),
            "rule": _RULES[rule](torch.rand(B, Hq, 3, 3, generator=g), D),
        }

    return draw


def _classes(kind: str, B: int, K: int, g: torch.Generator) -> Tensor:
    """key_class[B, K]: a `span` of each class at a place that differs by item, `scattered` ones, or `all` keys."""
    if kind == "span":
        place = (torch.arange(K) - torch.arange(B)[:, None] - K // 3) * 8 // max(K, 1)
        return torch.where((place == 0) | (place == 3), 1 + place.clamp(0, 1), 0).to(torch.uint8)
    return torch.randint(int(kind == "all"), 3, (B, K), generator=g, dtype=torch.uint8)


def _rule(linear: Tensor | float, quadratic: Tensor | float, additive: Tensor | float, like: Tensor) -> Tensor:
    columns = [torch.as_tensor(column).expand(like.shape[:-1]) for column in (linear, quadratic, additive)]
    return torch.stack(columns, -1).float()


# From uniform u[B, Hq, G, 3] in 0 ... 1; equations 13 and 14 of GuardAlign multiply with the square root of the width
_RULES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "zero": lambda u, _: torch.zeros_like(u),
    "additive": lambda u, _: _rule(0, 0, 10 * u[..., 2] - 4, u),
    "gated": lambda u, _: _rule(u[..., 0], 0, 0, u),
    "literal": lambda u, width: _rule(0, 0.1 * u[..., 1] * width**0.5, 0, u),
    "mixed": lambda u, _: _rule(u[..., 0] - 0.3, 0.5 * u[..., 1], 4 * u[..., 2] - 2, u),
    "suppressed": lambda u, _: _rule(0, 0, -40 * u[..., 2] - 20, u),
    "removed": lambda u, _: _rule(u[..., 0], 0, torch.where(u[..., 2] < 0.5, -torch.inf, 0.3), u),
    "strong": lambda u, _: _rule(4 * u[..., 0], 2 * u[..., 1], 12 * u[..., 2], u),
}
