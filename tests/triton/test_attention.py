"""Calibrated attention on the GPU under Triton's interpreter against the float64 definition, bounds as in tests/ops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from guardcore import reference

NAMES = ("query", "key", "value", "key_class", "rule", "row_mask", "key_mask", "key_group", "query_start")

# (B, Hq, Hkv, Q, K, D), each with its reason
FEW = (2, 3, 1, 3, 45, 20)  # all heads of a key-value head in one block of 16 rows, a width that is padded
BLOCKS = (1, 2, 1, 130, 70, 16)  # several blocks, more rows than there are keys
RANGES = (1, 2, 1, 2, 530, 16)  # keys in two ranges, which are merged


def causal(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"is_causal": True}


def windowed(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"is_causal": True, "window": max(1, shape[4] // 5)}


def capped(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"softcap": 3.0, "scale": 1.2 / shape[5] ** 0.5}


def padded(shape: tuple[int, ...]) -> dict[str, Any]:
    """Left padding by more than a tile for the second item, and a hole."""
    j = torch.arange(shape[4])
    return {"key_mask": (j >= 35 * torch.arange(shape[0])[:, None]) & (j != shape[4] - 5), "is_causal": True}


def some_rows(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"row_mask": (torch.arange(shape[3]) + torch.arange(shape[0])[:, None]) % 3 > 0, "is_causal": True}


def grouped(shape: tuple[int, ...]) -> dict[str, Any]:
    """Two images, one of them in two parts, under a window; ids of any size."""
    group = torch.tensor([0, 7, 7, 7, 0, -(2**40), -(2**40), 7]).repeat_interleave(-(-shape[4] // 8))[: shape[4]]
    return {"key_group": group.repeat(shape[0], 1), "is_causal": True, "window": 1 + shape[4] // 10}


def static_cache(shape: tuple[int, ...]) -> dict[str, Any]:
    """Rows in the middle of the slots, for one item before them all."""
    return {"query_start": torch.arange(shape[0]) * (shape[4] // 2) - 2, "is_causal": True}


def everything(shape: tuple[int, ...]) -> dict[str, Any]:
    return some_rows(shape) | grouped(shape) | padded(shape) | static_cache(shape) | capped(shape)


VIEWS = [causal, windowed, capped, padded, some_rows, grouped, static_cache, everything]


def launch(interpreted: Callable[..., Any], problem: dict[str, Any], mass: bool = True, **constants: Any) -> Any:
    """Output [B, Hq, Q, D], lse and mass of the launcher."""
    width, options = problem["query"].shape[-1], (problem.get("window"), problem.get("softcap"), mass)
    tensors = (problem.get(name) for name in NAMES)
    scale = problem.get("scale", width**-0.5)
    got = interpreted("calibrated_attention", *tensors, problem.get("is_causal", False), scale, *options, **constants)
    assert got[0].is_contiguous()
    return got[0].transpose(1, 2), *got[1:]


def definition(problem: dict[str, Any]) -> reference.Attention:
    exact = {name: t.double() if torch.is_tensor(t) and t.is_floating_point() else t for name, t in problem.items()}
    return reference.calibrated_attention(**exact, return_mass=True)


def excess(got: Tensor, truth: Tensor, lse: Tensor, size: Tensor | float = 1.0) -> float:
    """Largest error [B, ...] over what is promised for its item: 2e-6, or four roundings of its largest score."""
    largest = lse.masked_fill(lse.isinf(), 0).abs().flatten(1).amax(1)
    return float(((got - truth).abs().flatten(1).amax(1) / ((largest * 2**-22).clamp_min(2e-6) * size)).max())


def check(got: Any, problem: dict[str, Any]) -> None:
    truth = definition(problem)
    size = truth.output.abs().flatten(1).amax(1).clamp_min(1e-30)
    assert excess(got[0], truth.output, truth.lse, size) <= 1
    assert torch.equal(got[1] == -math.inf, truth.lse == -math.inf)
    torch.testing.assert_close(got[1].double(), truth.lse, atol=2e-6, rtol=2e-6)
    if got[2].shape[-1]:
        assert excess(got[2], truth.mass, truth.lse) <= 2


SLOW = pytest.mark.slow
HERE = [(FEW, view) for view in VIEWS] + [(BLOCKS, view) for view in (windowed, everything)]
ELSEWHERE = [pytest.param(BLOCKS, view, marks=SLOW) for view in (causal, capped, padded, some_rows, static_cache)]


@pytest.mark.parametrize(("shape", "view"), HERE + ELSEWHERE)
def test_is_the_definition(interpreted, draw_attention, shape, view) -> None:
    problem = draw_attention(shape) | view(shape)
    check(launch(interpreted, problem), problem)


@pytest.mark.parametrize("view", [windowed, padded, static_cache, everything])
def test_ranges_of_the_keys_are_merged(interpreted, draw_attention, view) -> None:
    """A window leaves ranges without keys."""
    problem = draw_attention(RANGES) | view(RANGES)
    check(launch(interpreted, problem, mass=False), problem)


@pytest.mark.parametrize("view", [windowed, pytest.param(capped, marks=pytest.mark.slow), grouped])
def test_blocks_without_masses(interpreted, draw_attention, view) -> None:
    """Their tiles are others."""
    problem = draw_attention(BLOCKS) | view(BLOCKS)
    check(launch(interpreted, problem, mass=False), problem)


@pytest.mark.parametrize("rule", ["zero", "additive", "gated", "literal", "suppressed", "removed", "strong"])
def test_every_rule(interpreted, draw_attention, rule) -> None:
    problem = draw_attention(FEW, rule) | causal(FEW)
    check(launch(interpreted, problem), problem)


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("rule", ["mixed", "removed", "strong"])
def test_long_sequences(interpreted, draw_attention, rule, view) -> None:
    for shape in ((1, 4, 2, 150, 257, 128), (1, 2, 2, 65, 65, 256), (2, 8, 2, 1, 1025, 128), (1, 3, 1, 20, 50, 300)):
        problem = draw_attention(shape, rule) | view(shape)
        check(launch(interpreted, problem), problem)
        check(launch(interpreted, problem, mass=False), problem)


@pytest.mark.parametrize("shape", [(1, 1, 1, 40, 70, 128), (1, 2, 1, 1, 530, 64)], ids=["blocks", "ranges"])
@pytest.mark.parametrize("view", [causal, everything])
def test_three_tf32_products_are_accurate_enough(interpreted, draw_attention, shape, view) -> None:
    """Multiplied as matrix units may do at worst, float32 still keeps the bounds of the CPU's kernels."""
    problem = draw_attention(shape) | view(shape)
    check(launch(interpreted, problem, mass=False, matrix_units=True), problem)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["zero", "mixed", "strong"])
def test_three_tf32_products_are_accurate_enough_for_long_sequences(interpreted, draw_attention, rule) -> None:
    for shape in ((1, 1, 1, 100, 1025, 128), (1, 2, 2, 65, 65, 256), (1, 8, 2, 1, 2049, 128)):
        problem = draw_attention(shape, rule) | causal(shape)
        check(launch(interpreted, problem, mass=False, matrix_units=True), problem)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["mixed", "strong"])
@pytest.mark.parametrize("shape", [(1, 2, 1, 40, 70, 64), (1, 4, 2, 1, 600, 64)], ids=["blocks", "ranges"])
def test_half_precision_errs_at_most_twice_as_much_as_torch(interpreted, draw_attention, shape, rule, dtype) -> None:
    """Torch gets the rule's effect as a float32 mask over all pairs."""
    problem = draw_attention(shape, rule, dtype) | causal(shape)
    (_, _, _, Q, K, D), truth = shape, definition(problem)
    key, value = (problem[name].repeat_interleave(2, 1) for name in ("key", "value"))
    s = problem["query"].double() @ key.double().transpose(-1, -2) * D**-0.5
    linear, quadratic, additive = (
        part.gather(2, problem["key_class"].long()[:, None].expand(-1, shape[1], -1))[:, :, None]
        for part in problem["rule"].double().index_fill(2, torch.tensor(0), 0).unbind(-1)
    )
    mask = linear * s.relu() + quadratic * s.relu() ** 2 + additive
    mask = mask.masked_fill(torch.ones(Q, K, dtype=torch.bool).triu(K - Q + 1), -math.inf)
    rival = scaled_dot_product_attention(problem["query"], key, value, attn_mask=mask.float())
    got = launch(interpreted, problem, mass=K < 600)
    assert got[0].dtype == dtype
    assert got[1].dtype == torch.float32
    assert (got[0] - truth.output).abs().max() <= 2 * (rival - truth.output).abs().max()
    torch.testing.assert_close(got[1].double(), truth.lse, atol=5e-6, rtol=5e-6)
    if K < 600:
        torch.testing.assert_close(got[2].double(), truth.mass, atol=5e-6, rtol=0.0)
