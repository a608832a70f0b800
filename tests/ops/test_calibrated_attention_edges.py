"""Rows without keys, bad values, extreme rules, refused arguments, and what torch does with the operator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from guardcore import ops, reference

SHAPE = (3, 4, 2, 20, 45, 16)


def run(problem: dict[str, Tensor], **options: object) -> ops.AttentionOutput:
    return ops.calibrated_attention(**problem, **options, return_mass=True)


def assert_equal_items(got: ops.AttentionOutput, expected: ops.AttentionOutput, items: list[int]) -> None:
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left[items], right[items], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_without_a_visible_key_are_zero(draw_attention, dtype):
    """By padding, by position, and as all keys are removed; neighbors are not concerned."""
    problem = draw_attention(SHAPE, "gated", "all", dtype)
    problem["rule"][2, :, :, 2] = -math.inf
    keys, start = torch.ones(3, 45, dtype=torch.bool), torch.tensor([25, -7, 25])
    keys[0] = False
    got = run(problem, key_mask=keys, query_start=start, is_causal=True)
    empty = torch.zeros(3, 4, 20, dtype=torch.bool)
    empty[0], empty[1, :, :7], empty[2] = True, True, True
    assert torch.equal(got.lse == -math.inf, empty)
    assert not bool(got.output[empty].any())
    assert not bool(got.mass[empty].any())
    assert bool(got.output[~empty].isfinite().all())
    torch.testing.assert_close(got.mass[~empty].sum(-1), torch.ones(4 * 13), atol=2e-6, rtol=0.0)


def test_removed_classes_hold_for_calibrated_rows_only(draw_attention):
    problem = draw_attention(SHAPE, "zero", "all")
    problem["rule"][..., 2] = -math.inf
    rows = torch.arange(20).expand(3, -1) % 2 == 0
    got = run(problem, row_mask=rows)
    plain = run(draw_attention(SHAPE, "zero", "all"))
    assert bool((got.lse[:, :, ::2] == -math.inf).all())
    torch.testing.assert_close(got.output[:, :, 1::2], plain.output[:, :, 1::2], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 4, 8), (2, 2, 1, 0, 4, 8), (2, 2, 1, 3, 0, 8)], ids=["B", "Q", "K"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_empty_sizes(draw_attention, shape, is_causal):
    B, Hq, _, Q, K, D = shape
    got = run(draw_attention(shape), is_causal=is_causal)
    assert [field.shape for field in got] == [(B, Hq, Q, D), (B, Hq, Q), (B, Hq, Q, 3)]
    assert K > 0 or (not bool(got.output.any()) and bool((got.lse == -math.inf).all()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_keys_may_hold_anything(draw_attention, bad, dtype):
    """Padding before, holes, and slots of a cache that no row reaches, behind or before the window."""
    problem = draw_attention(SHAPE, dtype=dtype)
    mask = torch.ones(3, 45, dtype=torch.bool)
    mask[0, :9], mask[1, 11] = False, False
    view = {"key_mask": mask, "query_start": torch.tensor([10, 20, 15]), "is_causal": True, "window": 12}
    expected = run(problem, **view)
    reached = torch.arange(45) < torch.tensor([10, 20, 15])[:, None] + 20
    reached &= torch.arange(45) > torch.tensor([10, 20, 15])[:, None] - 12
    for name in ("key", "value"):
        problem[name][~(mask & reached)[:, None].expand(-1, 2, -1)] = bad
    got = run(problem, **view)
    assert bool(got.output.isfinite().all())
    assert_equal_items(got, expected, [0, 1, 2])


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_nan_in_an_item_spoils_no_other(draw_attention, name):
    problem = draw_attention(SHAPE)
    expected = run(problem, is_causal=True)
    problem[name][1, :, 2] = math.nan
    got = run(problem, is_causal=True)
    assert_equal_items(got, expected, [0, 2])
    assert bool(got.output[1, :, 2].isnan().all())


def test_nan_in_a_query_spoils_its_row_only(draw_attention):
    problem = draw_attention(SHAPE)
    expected = run(problem)
    problem["query"][1, 2, 3, 4] = math.nan
    got, bad = run(problem), torch.zeros(3, 4, 20, dtype=torch.bool)
    bad[1, 2, 3] = True
    for left, right in zip(got, expected, strict=True):
        assert bool(left[bad].isnan().all())
        torch.testing.assert_close(left[~bad], right[~bad], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_see_a_bad_value_are_not_finite(draw_attention, bad):
    problem = draw_attention(SHAPE)
    problem["value"][1, 0, 30, 5] = bad
    got = run(problem, is_causal=True)
    assert not bool(got.output[1, :2, 5:, 5].isfinite().any())  # row 5 is at key 30
    assert bool(got.output[1, 2:].isfinite().all())
    assert bool(got.lse.isfinite().all())


def test_the_definition_spoils_the_rows_that_see_a_bad_value_only(draw_attention):
    problem = draw_attention(SHAPE)
    expected = reference.calibrated_attention(**problem, is_causal=True).output
    problem["value"][1, 0, 30, 5] = math.nan
    got = reference.calibrated_attention(**problem, is_causal=True).output
    seen = torch.zeros_like(got, dtype=torch.bool)
    seen[1, :2, 5:, 5] = True
    assert torch.equal(got.isnan(), seen)
    assert torch.equal(got[~seen], expected[~seen])


def test_class_0_is_untouched_whatever_the_rule_says(draw_attention):
    problem = draw_attention(SHAPE)
    expected = run(problem)
    problem["rule"][:, :, 0] = math.nan
    assert_equal_items(run(problem), expected, [0, 1, 2])


def test_rows_that_are_not_calibrated_are_plain_attention(draw_attention):
    plain, got = (
        run(draw_attention(SHAPE, rule), row_mask=torch.zeros(3, 20, dtype=torch.bool)) for rule in ("zero", "strong")
    )
    for left, right in zip(got, plain, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("column", [0, 1, 2], ids=["linear", "quadratic", "additive"])
@pytest.mark.parametrize("amount", [1e4, 1e9])
def test_overwhelming_rules_leave_the_span_alone(draw_attention, column, amount):
    """All attention goes to keys of class 1, of which each row here has one with a score clearly above the others."""
    problem = draw_attention(SHAPE, "zero", "scattered")
    problem["rule"][:, :, 1, column] = amount
    got = run(problem)
    assert all(bool(field.isfinite().all()) for field in got)
    torch.testing.assert_close(got.mass[..., 1], torch.ones(3, 4, 20), atol=2e-6, rtol=0.0)


@pytest.mark.parametrize("amount", [-200.0, -1e30])
def test_overwhelming_suppression_is_removal(draw_attention, amount):
    problem, removed = draw_attention(SHAPE, "zero", "scattered"), draw_attention(SHAPE, "zero", "scattered")
    problem["rule"][:, :, 1:, 2], removed["rule"][:, :, 1:, 2] = amount, -math.inf
    assert_equal_items(run(problem), run(removed), [0, 1, 2])


def test_huge_scores_do_not_overflow(draw_attention):
    problem = draw_attention(SHAPE, "mixed", "scattered")
    got = run(problem | {"query": 1e4 * problem["query"]})
    assert all(bool(field.isfinite().all()) for field in got)


FLOATS, MASK = torch.zeros(3, 45), torch.ones(3, 45, dtype=torch.bool)
REFUSED = [
    ("query", torch.zeros(4, 20, 16), ValueError, r"query must have shape \[B, Hq, Q, D\]"),
    ("query", torch.zeros(3, 4, 20, 16, dtype=torch.float64), TypeError, "query must be float32"),
    ("query", torch.zeros(3, 4, 20, 0), ValueError, "query must have a width"),
    ("query", torch.zeros(3, 3, 20, 16), ValueError, "query must have a multiple of the 2 heads of key, got 3"),
    ("key", torch.zeros(3, 2, 45, 8), ValueError, r"key must have shape \[3, 2, 45, 16\]"),
    ("key", torch.zeros(2, 2, 45, 16), ValueError, "key must have shape"),
    ("key", torch.zeros(3, 0, 45, 16), ValueError, "value must have shape|query must have a multiple"),
    ("key", torch.zeros(3, 2, 45, 16).half(), TypeError, "key must be torch.float32"),
    ("value", torch.zeros(3, 2, 44, 16), ValueError, "value must have shape"),
    ("value", torch.zeros(3, 2, 45, 16).to_sparse(), TypeError, "value must be a dense"),
    ("key_class", torch.zeros(3, 45, dtype=torch.int64), TypeError, "key_class must be torch.uint8"),
    ("key_class", torch.zeros(45, dtype=torch.uint8), ValueError, r"key_class must have shape \[3, 45\]"),
    ("key_class", torch.full((3, 45), 3, dtype=torch.uint8), ValueError, "key_class must be below the 3 classes"),
    ("rule", torch.zeros(2, 3, 3), ValueError, r"rule must have shape \[4, G, 3\] or \[3, 4, G, 3\]"),
    ("rule", torch.zeros(4, 3, 2), ValueError, "rule must have shape"),
    ("rule", torch.zeros(2, 4, 3, 3), ValueError, "rule must have shape"),
    ("rule", torch.zeros(4, 0, 3), ValueError, "rule must have 1 to 256 classes"),
    ("rule", torch.zeros(4, 257, 3), ValueError, "rule must have 1 to 256 classes"),
    ("rule", torch.zeros(4, 3, 3).double(), TypeError, "rule must be float32"),
    ("rule", torch.full((4, 3, 3), math.nan), ValueError, r"rule must be finite .* got nan at \[0, 1, 0\]"),
    ("rule", torch.full((4, 3, 3), -math.inf), ValueError, r"rule must be finite .* got -inf at \[0, 1, 0\]"),
    ("rule", torch.full((4, 3, 3), 0.0).index_fill(2, torch.tensor(2), math.inf), ValueError, "rule must be finite"),
    ("row_mask", MASK, ValueError, r"row_mask must have shape \[3, 20\]"),
    ("row_mask", torch.zeros(3, 20), TypeError, "row_mask must be torch.bool"),
    ("key_mask", MASK[0], ValueError, "key_mask must have shape"),
    ("key_mask", FLOATS, TypeError, "key_mask must be torch.bool"),
    ("key_group", FLOATS, TypeError, "key_group must be torch.int32 or torch.int64"),
    ("key_group", MASK[:2].long(), ValueError, "key_group must have shape"),
    ("query_start", torch.zeros(2, dtype=torch.int64), ValueError, r"query_start must have shape \[3\]"),
    ("query_start", torch.zeros(3), TypeError, "query_start must be torch.int32 or torch.int64"),
    ("scale", 0.0, ValueError, "scale must be"),
    ("scale", math.nan, ValueError, "scale must be"),
    ("softcap", -1.0, ValueError, "softcap must be"),
    ("softcap", math.inf, ValueError, "softcap must be"),
    ("window", 0, ValueError, "window must be None or >= 1, got 0"),
    ("key_mask", MASK.to("meta"), ValueError, "key_mask must be on cpu"),
    ("rule", torch.zeros(4, 3, 3, device="meta"), ValueError, "rule must be on cpu"),
]


@pytest.mark.parametrize(("name", "bad", "error", "message"), REFUSED)
def test_refuses_by_name(draw_attention, name, bad, error, message):
    with pytest.raises(error, match=message):
        ops.calibrated_attention(**draw_attention(SHAPE) | {name: bad}, is_causal=True)


@pytest.mark.parametrize("option", [{"window": 4}, {"key_group": MASK.long()}])
def test_refuses_what_has_no_meaning_without_causality(draw_attention, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} needs is_causal"):
        ops.calibrated_attention(**draw_attention(SHAPE), **option)


def test_takes_int32_positions_and_groups(draw_attention):
    group, start = torch.arange(45).repeat(3, 1) // 7, torch.tensor([3, 20, 25])
    long = run(draw_attention(SHAPE), key_group=group, query_start=start, is_causal=True)
    short = run(draw_attention(SHAPE), key_group=group.int(), query_start=start.int(), is_causal=True)
    assert all(torch.equal(left, right) for left, right in zip(long, short, strict=True))


def test_is_inference_only(draw_attention):
    problem = draw_attention(SHAPE)
    problem["query"].requires_grad_()
    out = ops.calibrated_attention(**problem)
    with pytest.raises(NotImplementedError, match="inference only"):
        out.output.sum().backward()
    with torch.no_grad():
        assert not ops.calibrated_attention(**problem).output.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(ops.calibrated_attention(**problem).output, out.output.detach())


@pytest.mark.filterwarnings("ignore:.*vmap:UserWarning")
def test_refuses_tangents(draw_attention):
    problem = draw_attention(SHAPE)
    with forward_ad.dual_level():
        problem["key"] = forward_ad.make_dual(problem["key"], torch.ones_like(problem["key"]))
        with pytest.raises(NotImplementedError, match="key has a tangent"):
            ops.calibrated_attention(**problem)


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "changing"])
def test_compiles_into_one_graph(draw_attention, dynamic):
    """Lengths and options change, as in decoding."""

    def attend(problem: dict[str, Tensor], softcap: float, window: int) -> tuple[Tensor, Tensor]:
        out = ops.calibrated_attention(**problem, is_causal=True, softcap=softcap, window=window, return_mass=True)
        return out.output.transpose(1, 2).flatten(2), out.mass

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for K in (9, 10, 11):
        problem = draw_attention((2, 4, 2, 3, K, 8))
        for got, expected in zip(compiled(problem, 20.0 + K, K - 2), attend(problem, 20.0 + K, K - 2), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_a_class_without_a_rule_is_never_silent(draw_attention):
    """Compiled programs skip the public call's look at values; the C++ kernel looks, the definition gives NaN."""
    problem = draw_attention(SHAPE, "mixed", "scattered")
    problem["key_class"][1, 40] = 3
    rows = torch.arange(20).expand(3, -1) % 2 == 0
    got = reference.calibrated_attention(**problem, row_mask=rows, is_causal=True)
    bad = torch.zeros(3, 4, 20, dtype=torch.bool)
    bad[1, :, 16::2] = True  # calibrated rows from position 40 on: row 15 is at key 40
    assert torch.equal(got.lse.isnan(), bad)
    compiled = torch.compile(lambda t: ops.calibrated_attention(**t).output, fullgraph=True, backend="aot_eager")
    if torch._C._dispatch_has_kernel_for_dispatch_key("guardcore::calibrated_attention", "CPU"):
        with pytest.raises(RuntimeError, match="key_class"):
            compiled(problem)
    else:
        assert bool(compiled(problem)[1].isnan().all())


class Largest(TorchDispatchMode):
    """The size of the largest floating-point tensor that any torch op returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_holds_the_scores_of_a_query(draw_attention):
    shape = (1, 2, 1, 700, 900, 8)
    with Largest() as seen:
        ops.calibrated_attention(**draw_attention(shape), is_causal=True, return_mass=True)
    assert seen.numel < 700 * 900 / 4
