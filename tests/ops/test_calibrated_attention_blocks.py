"""Where the CPU kernel cuts keys: blocks of 96, of which hidden or removed ones are skipped, and parts of 768."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from guardcore import ops, reference

ROWS = {"few": (1, 4, 2, 1), "many": (1, 4, 2, 30), "one-head-for-16": (1, 16, 1, 1)}  # B, Hq, Hkv, Q


def assert_matches_definition(problem: dict[str, Tensor], **view: object) -> ops.AttentionOutput:
    """Within 2e-6, or four roundings of the largest score."""
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in problem.items()}
    got = ops.calibrated_attention(**problem, **view, return_mass=True)
    truth = reference.calibrated_attention(**wide, **view, return_mass=True)
    allowed = max(2e-6, float(truth.lse.masked_fill(truth.lse.isinf(), 0).abs().max()) * 2**-22)
    size = float(truth.output.abs().max())
    torch.testing.assert_close(got.output.double(), truth.output, atol=allowed * size, rtol=0.0)
    torch.testing.assert_close(got.mass.double(), truth.mass, atol=2 * allowed, rtol=0.0)
    torch.testing.assert_close(got.lse.double(), truth.lse, atol=2e-6, rtol=2e-6)
    return got


VISIBLE = [(0, 1), (95, 96), (95, 97), (96, 192), (96, 193), (150, 151), (100, 290), (287, 288), (0, 0)]


@pytest.mark.parametrize(("first", "end"), VISIBLE)
@pytest.mark.parametrize("rows", ROWS)
def test_visible_keys_at_the_edges_of_blocks(draw_attention, rows, first, end):
    """What is hidden holds NaN, in the blocks that are cut off and in those that are skipped."""
    problem = draw_attention((*ROWS[rows], 288, 16), "mixed", "scattered")
    mask = torch.zeros(1, 288, dtype=torch.bool)
    mask[:, first:end] = True
    mask[:, (first + end) // 2] &= end - first < 50  # a hole
    for name in ("key", "value"):
        problem[name].masked_fill_(~mask[:, None, :, None], math.nan)
    got = ops.calibrated_attention(**problem, key_mask=mask, return_mass=True)
    clean = {name: tensor.nan_to_num(0) if name in ("key", "value") else tensor for name, tensor in problem.items()}
    expected = assert_matches_definition(clean, key_mask=mask)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("first", "end"), [(96, 192), (90, 300), (0, 500), (400, 500), (120, 150)])
@pytest.mark.parametrize("rows", ROWS)
def test_a_removed_span_is_a_hidden_one(draw_attention, rows, first, end):
    """Whole blocks of it are skipped; rows that are not calibrated see them."""
    problem = draw_attention((*ROWS[rows], 500, 16), "zero")
    problem["key_class"][:] = 0
    problem["key_class"][:, first:end] = 2
    problem["rule"][:, :, 2, 2] = -math.inf
    got = assert_matches_definition(problem)
    expected = ops.calibrated_attention(**problem, key_mask=problem["key_class"] == 0, return_mass=True)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)
    assert_matches_definition(problem, row_mask=torch.arange(ROWS[rows][3])[None] % 3 > 0)
    problem["rule"][:, 0, 2, 2] = 0.5  # one head keeps it
    assert_matches_definition(problem)


LONG = 1700  # keys: two parts of 768 and a rest


def plain() -> dict[str, object]:
    return {}


def windowed() -> dict[str, object]:
    return {"is_causal": True, "window": 950}


def short_window() -> dict[str, object]:
    return {"is_causal": True, "window": 3}


def across_the_cut() -> dict[str, object]:
    return {"is_causal": True, "window": 4, "query_start": torch.tensor([769])}


def before_all() -> dict[str, object]:
    return {"is_causal": True, "query_start": torch.tensor([-1])}


def hidden_part() -> dict[str, object]:
    mask = torch.rand(1, LONG, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[:, 700:1600] = False
    return {"key_mask": mask}


def grouped() -> dict[str, object]:
    group = torch.zeros(1, LONG, dtype=torch.int64)
    group[:, 5:9], group[:, -1] = 3, 3
    return {"is_causal": True, "window": 20, "key_group": group}


def capped() -> dict[str, object]:
    return {"softcap": 2.0}


VIEWS = [plain, windowed, short_window, across_the_cut, before_all, hidden_part, grouped, capped]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("rule", ["mixed", "removed", "strong"])
@pytest.mark.parametrize("rows", ["few", "one-head-for-16"])
def test_parts_of_long_keys_are_merged(draw_attention, rows, rule, view):
    assert_matches_definition(draw_attention((*ROWS[rows], LONG, 20), rule, "scattered"), **view())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", VIEWS)
def test_merged_parts_do_not_depend_on_the_number_of_threads(draw_attention, view, dtype):
    problem, threads = draw_attention((1, 4, 1, 2, LONG, 20), dtype=dtype), torch.get_num_threads()
    try:
        outcomes = [
            torch.set_num_threads(n) or ops.calibrated_attention(**problem, **view(), return_mass=True)
            for n in (1, 2, 5)
        ]
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        assert all(torch.equal(left, right) for left, right in zip(outcomes[0], other, strict=True))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_a_bad_value_in_one_part_shows(draw_attention, name):
    problem = draw_attention((2, 4, 2, 1, LONG, 20))
    problem[name][0, :, 0 if name == "query" else 800] = math.nan
    got = ops.calibrated_attention(**problem)
    assert bool(got.output[0].isnan().all())
    assert bool(got.output[1].isfinite().all())
