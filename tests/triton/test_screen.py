"""Screening on the GPU under the interpreter: bounds that hold in float64, and plans as without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore import reference

SIZES = [(37, 5), (65, 20), (257, 3), (9, 36)]  # two register tiles, two streamed classes
DISTANCE = 2  # places in the operator's results
PER_PAIR = (2, 5, 7)


def points(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.7


def costs(x: Tensor, p: Tensor) -> Tensor:
    """C[B, C, N, M] in float64."""
    unit_x, unit_p = (torch.nn.functional.normalize(rows.double(), dim=-1) for rows in (x, p))
    return 1 - torch.einsum("bnd,cmd->bcnm", unit_x, unit_p)


def exact_bound(x: Tensor, p: Tensor, b: Tensor, by_distance: bool) -> Tensor:
    nearest = costs(x, p).amin(2)  # [B, C, M]
    shares = (b / b.sum(-1, keepdim=True)).double()
    return (shares * nearest).sum(-1) if by_distance else nearest.masked_fill(shares == 0, torch.inf).amin(-1)


def prototype_weights(C: int, M: int) -> Tensor:
    b = torch.rand(C, M, generator=torch.Generator().manual_seed(4)) + 0.05
    b[:, 0] = 0
    return b


@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.parametrize(("N", "M"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_are_cleared_by_a_true_bound_or_solved(
    interpreted: Callable[..., Any], N: int, M: int, by_distance: bool, dtype: torch.dtype
) -> None:
    x, p, b = points(2, N, 24, seed=1).to(dtype), points(3, M, 24, seed=2).to(dtype), prototype_weights(3, M)
    exact = exact_bound(x, p, b, by_distance)
    threshold = exact.median(0).values.float()  # of two items: one pair of each category is above, or tied
    options = (0.05, 6, 1e-4, None)
    cleared, bound, *rest = interpreted("sinkhorn_screen", x, p, threshold, None, b, by_distance, *options)
    plain = interpreted("sinkhorn", x, p, None, b, *options)[:6]

    slack = (24 + M + 32) * 2.0**-22 + (0.03 if dtype == torch.bfloat16 and by_distance else 1e-4)
    assert cleared.dtype == torch.bool
    assert (bound.double() <= exact).all()
    assert (bound.double() >= exact - slack).all()
    assert torch.equal(cleared, bound > threshold)
    assert not cleared[exact <= threshold.double()].any()
    for i, (ours, solved) in enumerate(zip(rest, plain, strict=True)):
        assert torch.equal(ours[~cleared], solved[~cleared])  # bit for bit
        assert (ours[cleared] == 0).all() if i == 4 else ours[cleared].isnan().all()
    statistic = plain[0] if by_distance else plain[2].amin(-1)
    assert (statistic >= bound).all()


@pytest.mark.parametrize("M", [4, 36])
def test_infinite_thresholds_clear_all_or_nothing_and_nan_nothing(interpreted: Callable[..., Any], M: int) -> None:
    x, p = points(1, 9, 24, seed=1), points(3, M, 24, seed=2)
    threshold = torch.tensor([-torch.inf, torch.inf, torch.nan])
    options = (None, None, False, 0.05, 5, 1e-4, None)
    cleared, _, distance, *_ = interpreted("sinkhorn_screen", x, p, threshold, *options)
    assert cleared.tolist() == [[True, False, False]]
    assert distance.isnan().tolist() == [[True, False, False]]


@pytest.mark.parametrize("M", [4, 36])
def test_a_relaxed_distance_has_no_bound(interpreted: Callable[..., Any], M: int) -> None:
    x, p, threshold = points(1, 9, 24, seed=1), points(2, M, 24, seed=2), torch.tensor([0.0, -torch.inf])
    options = (None, None, True, 0.05, 5, 0.0, 0.1)
    cleared, bound, *rest = interpreted("sinkhorn_screen", x, p, threshold, *options)
    assert not cleared.any()
    assert (bound == -torch.inf).all()
    solved = interpreted("sinkhorn", x, p, None, None, 0.05, 5, 0.0, 0.1)
    assert all(torch.equal(ours, plain) for ours, plain in zip(rest, solved, strict=False))


@pytest.mark.parametrize("M", [4, 36])
def test_broken_items_are_never_cleared(interpreted: Callable[..., Any], M: int) -> None:
    x, p = points(4, 9, 24, seed=1), points(2, M, 24, seed=2)
    x[1, 3, 5] = torch.nan
    x[2, 0, 0] = torch.inf
    a = torch.ones(4, 9)
    a[3] = 0
    cleared, bound, *rest = interpreted(
        "sinkhorn_screen", x, p, torch.full((2,), -torch.inf), a, None, False, 0.05, 5, 1e-4, None
    )
    assert cleared.tolist() == [[True, True], *[[False, False]] * 3]
    assert bound.isnan().tolist() == [[False, False], *[[True, True]] * 3]
    assert rest[0].isnan().all()
    assert (rest[4] == 0).all()


@pytest.mark.parametrize("M", [4, 36])
def test_packed_items_are_screened_each_by_its_own_rows(interpreted: Callable[..., Any], M: int) -> None:
    lengths = [3, 0, 65, 259]
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    x, p, b = points(sum(lengths), 24, seed=1), points(2, M, 24, seed=2), prototype_weights(2, M)
    whole = [exact_bound(own[None], p, b, False)[0] for own in x.split(lengths) if len(own)]
    threshold = torch.stack(whole).median(0).values.float() - 1e-3  # further from it than any rounding
    options = (None, b, False, 0.05, 3, 0.0, None)
    cleared, bound, *rest = interpreted("sinkhorn_screen_packed", x, offsets, p, threshold, *options)
    want = reference.sinkhorn_screen_packed(x.double(), offsets, p.double(), threshold, None, b.double(), *options[2:])
    assert cleared.tolist() == want.cleared.tolist()
    torch.testing.assert_close(bound.double(), want.bound, rtol=0, atol=1e-4, equal_nan=True)
    for i in (0, 1, 2, 3, 5):
        torch.testing.assert_close(rest[i].double(), want[i + 2], rtol=2e-6, atol=2e-5, equal_nan=True)
