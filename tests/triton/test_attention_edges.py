"""Calibrated attention on the GPU under Triton's interpreter: rows without keys, bad values, strides, extreme rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore import reference

NAMES = ("query", "key", "value", "key_class", "rule", "row_mask", "key_mask", "key_group", "query_start")
SHAPE = (3, 2, 2, 20, 45, 16)  # blocks of rows
FEW = (3, 4, 2, 3, 45, 16)  # all rows and heads of a key-value head in one block
RANGES = (2, 2, 1, 2, 530, 16)  # keys in two ranges, as no masses are asked for
ANY = pytest.mark.parametrize("shape", [SHAPE, FEW], ids=["blocks", "few-rows"])


def launch(interpreted: Callable[..., Any], problem: dict[str, Any], mass: bool = True) -> tuple[Tensor, ...]:
    """Output [B, Hq, Q, D], lse and mass of the launcher."""
    causal, window = problem.get("is_causal", False), problem.get("window")
    tensors = (problem.get(name) for name in NAMES)
    got = interpreted("calibrated_attention", *tensors, causal, problem["query"].shape[-1] ** -0.5, window, None, mass)
    return got[0].transpose(1, 2), *got[1:]


def same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], items: Any = slice(None)) -> None:
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left[items], right[items], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@ANY
def test_rows_without_a_visible_key_are_zero(interpreted, draw_attention, shape, dtype) -> None:
    """By padding, by position, and as all keys are removed; neighbors are not concerned."""
    B, H, _, Q, K, _ = shape
    problem = draw_attention(shape, "gated", dtype)
    problem["key_class"].fill_(1)
    problem["rule"][2, :, :, 2] = -math.inf
    keys, early = torch.ones(B, K, dtype=torch.bool), Q // 2
    keys[0] = False
    start = torch.tensor([K - Q, -early, K - Q])
    out, lse, mass = launch(interpreted, problem | {"key_mask": keys, "query_start": start, "is_causal": True})
    empty = torch.zeros(B, H, Q, dtype=torch.bool)
    empty[0], empty[1, :, :early], empty[2] = True, True, True
    assert torch.equal(lse == -math.inf, empty)
    assert not bool(out[empty].any())
    assert not bool(mass[empty].any())
    assert bool(out[~empty].isfinite().all())
    torch.testing.assert_close(mass[~empty].sum(-1), torch.ones(H * (Q - early)), atol=2e-6, rtol=0.0)


@pytest.mark.parametrize("start", [-(2**40), 2**40])
@pytest.mark.parametrize("window", [None, 7])
def test_positions_far_outside(interpreted, draw_attention, start, window) -> None:
    problem = draw_attention(FEW) | {"is_causal": True, "window": window, "query_start": torch.full((3,), start)}
    _, lse, _ = launch(interpreted, problem)
    assert bool((lse == -math.inf).all()) == (start < 0 or window is not None)


def test_a_range_without_visible_keys_has_no_weight(interpreted, draw_attention) -> None:
    """All keys of the first range are padding, which holds NaN; the second item sees nothing at all."""
    problem = draw_attention(RANGES) | {"is_causal": True}
    mask = torch.arange(530).expand(2, -1) >= torch.tensor([[400], [530]])
    clean = launch(interpreted, problem | {"key_mask": mask}, mass=False)
    for name in ("key", "value"):
        problem[name] = problem[name].masked_fill(~mask[:, None, :, None], math.nan)
    out, lse, _ = launch(interpreted, problem | {"key_mask": mask}, mass=False)
    same((out, lse), clean[:2])
    assert bool(out[0].isfinite().all())
    assert not bool(out[1].any())
    assert bool((lse[1] == -math.inf).all())


@pytest.mark.parametrize(
    ("bad", "grouped"), [(math.nan, False), (math.nan, True), pytest.param(math.inf, True, marks=pytest.mark.slow)]
)
def test_hidden_keys_may_hold_anything(interpreted, draw_attention, bad, grouped) -> None:
    """Padding before, holes, and slots of a cache that no row reaches, behind or before the window."""
    problem, j, start = draw_attention(SHAPE), torch.arange(45), torch.tensor([10, 20, 15])
    mask = torch.ones(3, 45, dtype=torch.bool)
    mask[0, :9], mask[1, 11] = False, False
    problem |= {"key_mask": mask, "query_start": start, "is_causal": True, "window": 12}
    if grouped:
        problem["key_group"] = torch.where((j >= 25) & (j < 29), 3, torch.where(j == 43, 4, 0)).repeat(3, 1)
    expected = launch(interpreted, problem)
    reached = (j < start[:, None] + 20) & (j > start[:, None] - 12)
    for name in ("key", "value"):
        problem[name] = problem[name].masked_fill(~(mask & reached)[:, None, :, None], bad)
    got = launch(interpreted, problem)
    assert bool(got[0].isfinite().all())
    same(got, expected)


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("shape", [pytest.param(SHAPE, marks=pytest.mark.slow), FEW], ids=["blocks", "few-rows"])
def test_nan_in_an_item_spoils_no_other(interpreted, draw_attention, shape, name) -> None:
    problem = draw_attention(shape) | {"is_causal": True}
    expected = launch(interpreted, problem)
    problem[name][1, :, 2] = math.nan
    got = launch(interpreted, problem)
    same(got, expected, [0, 2])
    assert bool(got[0][1, :, 2].isnan().all())
    assert bool(got[2][1, :, 2].isnan().all()) == (name != "value")


@ANY
def test_nan_in_a_query_spoils_its_row_only(interpreted, draw_attention, shape) -> None:
    problem = draw_attention(shape)
    expected = launch(interpreted, problem)
    problem["query"][1, 1, 1, 4] = math.nan
    got, bad = launch(interpreted, problem), torch.zeros(*expected[1].shape, dtype=torch.bool)
    bad[1, 1, 1] = True
    assert all(bool(field[bad].isnan().all()) for field in got)
    same(got, expected, ~bad)


@ANY
def test_a_class_without_a_rule_is_nan_for_the_calibrated_rows_that_see_it(interpreted, draw_attention, shape) -> None:
    (_, _, _, Q, K, _), problem = shape, draw_attention(shape)
    problem["key_class"][1, K - 2], problem["key_class"][2, K - 1] = 3, 255
    rows = torch.arange(Q).expand(3, -1) % 2 == (Q - 1) % 2
    _, lse, mass = launch(interpreted, problem | {"row_mask": rows, "is_causal": True})
    bad = torch.zeros_like(lse, dtype=torch.bool)
    bad[1:, :, Q - 1] = True  # of the rows from key K - 2 on, the last one is calibrated
    assert torch.equal(lse.isnan(), bad)
    assert torch.equal(mass.isnan().all(-1), bad)


@pytest.mark.parametrize("bad", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_rows_that_see_a_bad_value_are_not_finite(interpreted, draw_attention, bad) -> None:
    problem = draw_attention(SHAPE) | {"is_causal": True}
    problem["value"][1, 0, 30, 5] = bad
    out, lse, mass = launch(interpreted, problem)
    assert not bool(out[1, 0, 5:, 5].isfinite().any())  # row 5 is at key 30
    assert all(bool(field.isfinite().all()) for field in (out[[0, 2]], out[1, 1:], lse, mass))


def test_class_0_is_untouched_whatever_the_rule_says(interpreted, draw_attention) -> None:
    problem = draw_attention(FEW)
    expected = launch(interpreted, problem)
    problem["rule"][:, :, 0] = math.nan
    same(launch(interpreted, problem), expected)


@pytest.mark.parametrize(
    "column", [0, pytest.param(1, marks=pytest.mark.slow), 2], ids=["linear", "quadratic", "additive"]
)
def test_overwhelming_rules_leave_the_span_alone(interpreted, draw_attention, column) -> None:
    """All attention goes to keys of class 1, of which each row here has one with a score clearly above the others."""
    problem = draw_attention(SHAPE, "zero")
    problem["key_class"] = torch.arange(45).expand(3, -1).to(torch.uint8) % 2
    problem["rule"][:, :, 1, column] = 1e9
    got = launch(interpreted, problem)
    assert all(bool(field.isfinite().all()) for field in got)
    torch.testing.assert_close(got[2][..., 1], torch.ones(3, 2, 20), atol=2e-6, rtol=0.0)


def test_overwhelming_suppression_is_removal(interpreted, draw_attention) -> None:
    problem, removed = draw_attention(FEW, "zero"), draw_attention(FEW, "zero")
    problem["rule"][:, :, 1:, 2], removed["rule"][:, :, 1:, 2] = -1e30, -math.inf
    same(launch(interpreted, problem), launch(interpreted, removed))


def test_many_classes(interpreted, draw_attention) -> None:
    problem, g = draw_attention((1, 2, 1, 3, 45, 16)), torch.Generator().manual_seed(0)
    problem["key_class"] = torch.randint(200, (1, 45), generator=g, dtype=torch.uint8)
    problem["rule"] = torch.rand(1, 2, 200, 3, generator=g)
    truth = reference.calibrated_attention(**problem, return_mass=True)
    same(launch(interpreted, problem), tuple(truth))


def heads_by_row(tensor: Tensor) -> Tensor:
    """The same values in the memory order B, Q, H, D, which hosts pass."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def in_a_cache(tensor: Tensor) -> Tensor:
    """The same values as a slice of longer rows and more slots, with NaN around."""
    B, H, K, D = tensor.shape
    cache = tensor.new_full((B, H, K + 3, D + 5), math.nan)
    cache[:, :, 1 : K + 1, 2 : D + 2] = tensor
    return cache[:, :, 1 : K + 1, 2 : D + 2]


def by_column(tensor: Tensor) -> Tensor:
    """The same values with the width's stride the largest."""
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize("layout", [heads_by_row, in_a_cache, by_column])
def test_any_strides(interpreted, draw_attention, layout) -> None:
    problem = draw_attention(FEW) | {"is_causal": True}
    expected = launch(interpreted, problem)
    same(launch(interpreted, problem | {name: layout(problem[name]) for name in ("query", "key", "value")}), expected)


def test_one_rule_for_all_items(interpreted, draw_attention) -> None:
    problem = draw_attention(FEW)
    problem["rule"] = problem["rule"][1:2]
    same(launch(interpreted, problem), launch(interpreted, problem | {"rule": problem["rule"].repeat(3, 1, 1, 1)}))


@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 4, 8), (2, 2, 1, 0, 4, 8), (2, 2, 1, 3, 0, 8)], ids=["B", "Q", "K"])
@pytest.mark.parametrize("causal", [False, True])
def test_empty_sizes(interpreted, draw_attention, shape, causal) -> None:
    (B, H, _, Q, K, D), problem = shape, draw_attention(shape) | {"is_causal": causal}
    out, lse, mass = launch(interpreted, problem)
    assert [field.shape for field in (out, lse, mass)] == [(B, H, Q, D), (B, H, Q), (B, H, Q, 3)]
    assert K > 0 or (not bool(out.any()) and bool((lse == -math.inf).all()))


def test_heads_wider_than_any_tile_are_a_named_error(interpreted, draw_attention) -> None:
    with pytest.raises(AssertionError, match="query: heads at most 512 wide on CUDA, got 513"):
        launch(interpreted, draw_attention((1, 1, 1, 1, 1, 513)))
