"""The GPU kernels under Triton's interpreter against the float64 definition, on grids of a few programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore import reference

FIELDS = reference.Plan._fields
# fp32 cosines carry about 3e-7; costs keep that size, shares p(m|n) multiply it by 1 / epsilon
COST, SHARE = 2e-6, 2e-5
TOLERANCES = dict.fromkeys(FIELDS, COST) | {"marginal_error": SHARE, "group_mass": SHARE, "group_cost": SHARE}

# id, N, M, D, C, epsilon, max_iterations, tolerance, relaxation: every class of both launch tables, and their edges
SINKHORN = {
    "one-patch-one-prototype": (1, 1, 3, 2, 0.05, 4, 1e-4, None),
    "64x16-odd": (37, 5, 24, 2, 0.1, 40, 1e-4, None),
    "64x32-full": (64, 32, 40, 1, 0.05, 8, 0.0, 0.1),
    "256x16-one-over": (65, 16, 17, 1, 0.02, 8, 0.0, None),  # 17: a tail after one step over D
    "256x16-one-less": (255, 15, 8, 1, 0.05, 6, 0.0, None),
    "256x32-vit": (197, 17, 33, 1, 0.01, 8, 0.0, None),
    "256x32-full": (256, 32, 8, 1, 0.02, 6, 0.0, 0.1),
    "256x32-softmax": (50, 20, 33, 1, 0.01, 9, 1e-4, 0.0),
    "stream-16-one-over": (257, 3, 24, 3, 0.05, 6, 1e-4, None),
    "stream-16-most-patches": (4096, 2, 8, 1, 0.05, 2, 0.0, None),
    "stream-32": (300, 20, 24, 1, 0.01, 4, 0.0, 0.05),
    "stream-32-one-over": (257, 32, 8, 1, 0.02, 4, 0.0, None),
    "stream-64-few-rows": (5, 33, 24, 2, 0.02, 12, 1e-4, None),
    "stream-64-full": (129, 64, 8, 1, 0.05, 5, 0.0, None),
    "stream-128": (70, 65, 24, 1, 0.05, 4, 0.0, None),
    "stream-256": (33, 129, 8, 1, 0.05, 4, 0.0, 0.1),
    "stream-512": (17, 257, 8, 1, 0.05, 4, 0.0, None),
    "stream-1024": (9, 513, 8, 1, 0.05, 4, 0.0, None),
}


def points(*shape: int, seed: int) -> Tensor:
    """Rows with a common direction, as embeddings have."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.7


def masses(*shape: int, seed: int) -> Tensor:
    """Weights of any sum, the first of every row zero (unless it is the only one)."""
    values = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.05
    if shape[-1] > 1:
        values[..., 0] = 0
    return values


def definition(operator: str, *arguments: Any) -> Any:
    """The definition in float64, of the very inputs given."""
    exact = (value.double() if torch.is_tensor(value) and value.is_floating_point() else value for value in arguments)
    return getattr(reference, operator)(*exact)


def stopped_plan(operator: str, got: tuple[Tensor, ...], *arguments: Any) -> Any:
    """The definition after as many plain iterations as each problem took, having checked that it was right to stop.

    To a tolerance the definition may take other steps than the kernels, which only do plain ones.
    """
    *inputs, epsilon, limit, tolerance, relaxation = arguments

    def after(count: int) -> Any:
        return definition(operator, *inputs, epsilon, count, 0.0, relaxation)

    counts = next(field for field in got if field.dtype == torch.int32)
    plan, before = after(1), after(1)
    for count in counts.unique().tolist():
        there = counts == count
        for whole, one in ((plan, after(max(count, 1))), (before, after(max(count - 1, 1)))):
            for field, values in zip(whole, one, strict=True):
                field[there] = values[there]
    assert ((plan.marginal_error <= tolerance) | (counts == limit) | (counts == 0)).all()
    assert tolerance == 0 or ((before.marginal_error > tolerance) | (counts <= 1)).all()
    return plan


def check(got: tuple[Tensor, ...], want: Any, slack: float = 1.0) -> None:
    assert len(got) == len(want)
    for name, ours, exact in zip(want._fields, got, want, strict=True):
        if name == "iterations":
            assert ours.tolist() == exact.tolist()
        else:
            assert ours.dtype == torch.float32, name
            close = torch.isclose(ours.double(), exact, rtol=COST, atol=slack * TOLERANCES[name], equal_nan=True)
            assert close.all(), f"{name}: off by {(ours - exact).abs().max():.2e}"


@pytest.mark.parametrize("case", SINKHORN)
def test_sinkhorn_is_the_definition_in_every_tile_class(interpreted: Callable[..., Any], case: str) -> None:
    N, M, D, C, *options = SINKHORN[case]
    x, p, a, b = points(1, N, D, seed=1), points(C, M, D, seed=2), masses(1, N, seed=3), masses(C, M, seed=4)
    got = interpreted("sinkhorn", x, p, a, b, *options, PROGRAMS=2)  # 2: streaming programs take categories in turn
    check(got, stopped_plan("sinkhorn", got, x, p, a, b, *options))


@pytest.mark.parametrize(("dtype", "M"), [(torch.bfloat16, 7), (torch.float16, 7), (torch.float16, 33)])
def test_half_precision_inputs_lose_nothing_after_their_rounding(interpreted, dtype: torch.dtype, M: int) -> None:
    x, p = points(1, 20, 40, seed=1).to(dtype), points(1, M, 40, seed=2).to(dtype)
    options = (0.05, 30, 1e-4, None)
    got = interpreted("sinkhorn", x, p, None, None, *options)
    check(got, stopped_plan("sinkhorn", got, x, p, None, None, *options))


def test_inputs_of_two_types_are_multiplied_in_fp32(interpreted: Callable[..., Any]) -> None:
    x, p = points(1, 20, 40, seed=1).bfloat16(), points(1, 7, 40, seed=2)
    options = (0.05, 30, 1e-4, None)
    got = interpreted("sinkhorn", x, p, None, None, *options)
    check(got, stopped_plan("sinkhorn", got, x, p, None, None, *options))


@pytest.mark.parametrize("M", [4, 36])  # in registers, streamed
def test_a_bad_item_is_nan_and_its_neighbors_are_untouched(interpreted: Callable[..., Any], M: int) -> None:
    x, p = points(6, 9, 24, seed=1), points(2, M, 24, seed=2)
    a, b = masses(6, 9, seed=3), masses(2, M, seed=4)
    x[1, 3, 5] = torch.nan
    x[2, 0, 0] = torch.inf  # in a patch of no weight
    a[3] = 0
    x[4, 2] = 0  # a zero patch is legal
    a[5, 2] = -1
    options = (0.05, 20, 1e-4, None)
    got = interpreted("sinkhorn", x, p, a, b, *options)
    want = stopped_plan("sinkhorn", got, x, p, a, b, *options)
    check(got, want._replace(f=want.f + 0 * want.marginal_error[..., None]))  # all f, not its patch's only
    spoiled = [bool(item.isnan().all()) for item in got[0]]
    assert spoiled == [False, True, True, True, False, True]


@pytest.mark.parametrize("M", [4, 36])
def test_a_bad_prototype_spoils_its_category_only(interpreted: Callable[..., Any], M: int) -> None:
    x, p, b = points(1, 9, 24, seed=1), points(3, M, 24, seed=2), masses(3, M, seed=4)
    p[1, 0, 0] = torch.nan  # of weight zero
    p[2, 1] = 0
    options = (0.05, 20, 1e-4, 0.1)
    got = interpreted("sinkhorn", x, p, None, b, *options)
    check(got, stopped_plan("sinkhorn", got, x, p, None, b, *options))
    assert got[0].isnan().tolist() == [[False, True, False]]


@pytest.mark.parametrize("M", [4, 36])
@pytest.mark.parametrize("size", [1e-43, 3e38])
def test_weights_of_any_size_are_divided_by_their_sum(interpreted: Callable[..., Any], M: int, size: float) -> None:
    x, p = points(1, 9, 24, seed=1), points(2, M, 24, seed=2)
    a, b = torch.full((1, 9), size), torch.full((2, M), size)
    a[0, 0], b[0, 0] = 0, size / 2
    options = (0.05, 20, 1e-4, None)
    got = interpreted("sinkhorn", x, p, a, b, *options)
    check(got, stopped_plan("sinkhorn", got, x, p, a, b, *options))


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30, 3e37])
def test_lengths_of_any_size_cancel(interpreted: Callable[..., Any], size: float) -> None:
    x, p = points(1, 9, 24, seed=1), points(1, 4, 24, seed=2)
    x[:, ::2] *= size
    p[:, ::3] *= size
    options = (0.05, 20, 1e-4, None)
    got = interpreted("sinkhorn", x, p, None, None, *options)
    check(got, stopped_plan("sinkhorn", got, x, p, None, None, *options))


@pytest.mark.parametrize("M", [4, 36])
@pytest.mark.parametrize("relaxation", [None, 0.02])
def test_a_prototype_that_underflows_is_solved_in_logarithms(interpreted, M: int, relaxation: float | None) -> None:
    x, p, b = points(2, 9, 24, seed=1) + 2, points(3, M, 24, seed=2) + 2, masses(3, M, seed=4)
    p[1, 1] *= -1  # cost about 1.9 for every patch: e^-380 at epsilon 0.005
    p[1, 0] = x[0].mean(0)  # by far the nearest prototype has weight zero
    p[2, 0] *= -1  # a far prototype of weight zero still has a potential
    options = (0.005, 12, 0.0, relaxation)
    x[1, 2] = p[1, 1]  # the only patch near it has no weight
    a = masses(2, 9, seed=3)
    a[1, 2] = 0
    # logarithms reach 400 / ln 2, where fp32 steps by 6e-5: as much of a share, and of costs that span 2
    got = interpreted("sinkhorn", x, p, a, b, *options)
    check(got, definition("sinkhorn", x, p, a, b, *options), slack=20.0)


@pytest.mark.parametrize("M", [4, 36])
def test_packed_items_of_all_lengths_go_to_the_kernel_of_their_size(interpreted: Callable[..., Any], M: int) -> None:
    lengths = torch.tensor([0, 3, 0, 65, 261, 1])  # empty ones, both register tiles' sizes, one row over the largest
    offsets = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    T = int(lengths.sum())
    x, p, a = points(T, 24, seed=1), points(2, M, 24, seed=2), masses(T, seed=3)
    options = (0.05, 5, 0.0, None)
    got = interpreted("sinkhorn_packed", x, offsets, p, a, None, *options)
    check(got, definition("sinkhorn_packed", x, offsets, p, a, None, *options))


def test_an_empty_batch_launches_nothing(interpreted: Callable[..., Any]) -> None:
    got = interpreted("sinkhorn", torch.empty(0, 5, 8), torch.ones(2, 3, 8), None, None, 0.05, 10, 1e-4, None)
    assert [tuple(field.shape) for field in got[:2]] == [(0, 2), (0, 2, 5)]


def test_more_prototypes_than_any_class_holds_is_a_named_error(interpreted: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="prototypes: at most 1024 prototypes a problem on CUDA, got 1025"):
        interpreted("sinkhorn", torch.ones(1, 2, 8), torch.ones(1, 1025, 8), None, None, 0.05, 10, 1e-4, None)


def test_float64_is_a_named_error(interpreted: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match=r"take float32, bfloat16 or float16, got torch\.float64"):
        interpreted("sinkhorn", torch.ones(1, 2, 8).double(), torch.ones(1, 2, 8), None, None, 0.05, 10, 1e-4, None)


# id, N, M, D, groups, epsilon, max_iterations, tolerance, relaxation
JOINT = {
    "width-16": (3, 5, 24, 1, 0.05, 30, 1e-4, None),
    "width-64-two-turns-of-groups": (33, 50, 24, 35, 0.05, 12, 1e-4, 0.1),
    "width-128-softmax": (20, 90, 24, 19, 0.01, 9, 1e-4, 0.0),
    "width-256": (40, 130, 17, 8, 0.02, 4, 0.0, 0.02),
    "width-512": (17, 257, 16, 2, 0.1, 3, 0.0, None),
    "width-1024-odd": (9, 999, 24, 33, 0.05, 3, 0.0, 1.0),
}


@pytest.mark.parametrize("case", JOINT)
def test_joint_sinkhorn_is_the_definition_in_every_tile_class(interpreted: Callable[..., Any], case: str) -> None:
    N, M, D, G, *options = JOINT[case]
    x, p, a, b = points(1, N, D, seed=1), points(M, D, seed=2), masses(1, N, seed=3), masses(M, seed=4)
    group = torch.arange(M) * 7 % G
    got = interpreted("joint_sinkhorn", x, p, group, a, b, G, *options)
    check(got, stopped_plan("joint_sinkhorn", got, x, p, group, a, b, G, *options))
    torch.testing.assert_close(got[0].sum(1), torch.ones(1, N), rtol=0, atol=SHARE)


def test_joint_half_precision_inputs_lose_nothing_after_their_rounding(interpreted: Callable[..., Any]) -> None:
    x, p, group = points(1, 20, 40, seed=1).half(), points(21, 40, seed=2).half(), torch.arange(21) % 4
    options = (4, 0.05, 30, 1e-4, 0.1)
    got = interpreted("joint_sinkhorn", x, p, group, None, None, *options)
    check(got, stopped_plan("joint_sinkhorn", got, x, p, group, None, None, *options))


def test_joint_items_are_spoiled_alone_and_packed_items_keep_their_rows(interpreted: Callable[..., Any]) -> None:
    lengths = torch.tensor([3, 0, 40, 5])
    offsets = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    x, p, group = points(48, 24, seed=1), points(20, 24, seed=2), torch.arange(20) % 3
    x[44] = torch.nan  # an item of its own
    options = (3, 0.05, 9, 0.0, 0.1)
    got = interpreted("joint_sinkhorn_packed", x, offsets, p, group, None, None, *options)
    check(got, definition("joint_sinkhorn_packed", x, offsets, p, group, None, None, *options))
    assert got[0].isnan().all(0).tolist() == [False] * 43 + [True] * 5


def test_a_group_out_of_range_gives_nan_where_the_cpu_raises(interpreted: Callable[..., Any]) -> None:
    x, p, group = points(1, 4, 8, seed=1), points(3, 8, seed=2), torch.tensor([0, 1, 2])
    got = interpreted("joint_sinkhorn", x, p, group, None, None, 2, 0.05, 9, 0.0, None)
    assert got[0].isnan().all()
    assert got[3].isnan().all()
