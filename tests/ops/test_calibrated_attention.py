"""`ops.calibrated_attention` against its float64 definition, the definition against formulas, both against torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from guardcore import ops, reference

# Each shape has its reason: (B, Hq, Hkv, Q, K, D)
SHAPES = [
    pytest.param((1, 1, 1, 1, 1, 1), id="one-of-each"),
    pytest.param((3, 8, 2, 1, 257, 128), id="decode-in-groups-and-K-above-a-multiple-of-16"),
    pytest.param((2, 6, 2, 33, 33, 80), id="groups-of-3-and-a-width-that-is-no-power-of-two"),
    pytest.param((2, 4, 1, 17, 50, 33), id="one-kv-head-and-an-odd-width"),
    pytest.param((1, 4, 2, 130, 200, 64), id="second-chunk-of-a-prefill-above-a-multiple-of-64"),
    pytest.param((2, 2, 1, 40, 24, 16), id="more-rows-than-keys"),
    pytest.param((1, 2, 2, 65, 65, 256), id="Gemma-width-and-one-row-above-64"),
    pytest.param((2, 5, 5, 3, 96, 7), id="less-than-a-vector-wide"),
]


def nothing(shape: tuple[int, ...]) -> dict[str, object]:
    return {}


def causal(shape: tuple[int, ...]) -> dict[str, object]:
    return {"is_causal": True}


def windowed(shape: tuple[int, ...]) -> dict[str, object]:
    return {"is_causal": True, "window": max(1, shape[4] // 5)}


def capped(shape: tuple[int, ...]) -> dict[str, object]:
    return {"softcap": 3.0, "scale": 1.2 / shape[5] ** 0.5}


def padded(shape: tuple[int, ...]) -> dict[str, object]:
    """Left padding that differs by item, and a hole."""
    j = torch.arange(shape[4])
    return {"key_mask": (j >= 3 * torch.arange(shape[0])[:, None]) & (j != shape[4] // 2), "is_causal": True}


def some_rows(shape: tuple[int, ...]) -> dict[str, object]:
    return {"row_mask": (torch.arange(shape[3]) + torch.arange(shape[0])[:, None]) % 3 > 0, "is_causal": True}


def grouped(shape: tuple[int, ...]) -> dict[str, object]:
    """Two images, one of them in two parts, under a window."""
    group = torch.tensor([0, 7, 7, 7, 0, -2, -2, 7]).repeat_interleave(-(-shape[4] // 8))[: shape[4]]
    return {"key_group": group.repeat(shape[0], 1), "is_causal": True, "window": 1 + shape[4] // 10}


def static_cache(shape: tuple[int, ...]) -> dict[str, object]:
    """Rows in the middle of the slots, for one item before them all."""
    start = torch.arange(shape[0]) * (shape[4] // 2) - 2
    return {"query_start": start, "is_causal": True}


def everything(shape: tuple[int, ...]) -> dict[str, object]:
    return some_rows(shape) | grouped(shape) | padded(shape) | static_cache(shape) | capped(shape)


VIEWS = [nothing, causal, windowed, capped, padded, some_rows, grouped, static_cache, everything]
RULES = ["zero", "additive", "gated", "literal", "mixed", "suppressed", "removed", "strong"]


def double(problem: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in problem.items()}


def definition(problem: dict[str, Tensor], view: dict[str, object]) -> reference.Attention:
    return reference.calibrated_attention(**double(problem), **view, return_mass=True)


def excess(got: Tensor, truth: Tensor, lse: Tensor, size: Tensor | float = 1.0) -> float:
    """Largest error [B, ...] over what is promised for its item: 2e-6, or four roundings of its largest score."""
    largest = lse.masked_fill(lse.isinf(), 0).abs().flatten(1).amax(1)
    return float(((got - truth).abs().flatten(1).amax(1) / ((largest * 2**-22).clamp_min(2e-6) * size)).max())


def sizes(truth: Tensor) -> Tensor:
    """The largest number of every item."""
    return truth.abs().flatten(1).amax(1).clamp_min(1e-30)


def assert_matches_definition(problem: dict[str, Tensor], view: dict[str, object], most: float = 1.0) -> None:
    got = ops.calibrated_attention(**problem, **view, return_mass=True)
    truth = definition(problem, view)
    assert excess(got.output, truth.output, truth.lse, sizes(truth.output)) <= most
    assert excess(got.mass, truth.mass, truth.lse) <= 2  # plain float32 sums of 4097 shares reach 1.2
    assert torch.equal(got.lse == -math.inf, truth.lse == -math.inf)
    torch.testing.assert_close(got.lse.double(), truth.lse, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_float64_definition(draw_attention, shape, view):
    for classes in ("span", "scattered", "all"):
        assert_matches_definition(draw_attention(shape, "mixed", classes), view(shape))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_rule_matches_the_float64_definition(draw_attention, shape, rule):
    for classes, view in (("span", causal), ("scattered", nothing), ("all", capped)):
        assert_matches_definition(draw_attention(shape, rule, classes), view(shape))


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("rule", RULES)
def test_matches_the_float64_definition_on_long_sequences(draw_attention, rule, view):
    for shape in ((1, 4, 2, 257, 1025, 128), (2, 2, 2, 200, 577, 72), (2, 8, 2, 1, 4097, 128)):
        most = 1.25 if shape[4] == 4097 else 1.0  # torch's own attention without a rule reaches 1.02 here
        for classes in ("span", "scattered"):
            assert_matches_definition(draw_attention(shape, rule, classes), view(shape), most)


def scores(problem: dict[str, Tensor], scale: float | None = None, softcap: float | None = None) -> Tensor:
    """Scores before the rule [B, Hq, Q, K], with the keys' heads repeated."""
    query, key = problem["query"].double(), problem["key"].double()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    s = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return s if softcap is None else softcap * (s / softcap).tanh()


def hidden(shape: tuple[int, ...], view: dict[str, object]) -> Tensor:
    """Which keys a row doesn't see [B, 1, Q, K], pair by pair."""
    B, _, _, Q, K, _ = shape
    start = view.get("query_start", torch.full((B,), K - Q)).tolist()
    group = view.get("key_group", torch.zeros(B, K, dtype=torch.int64)).tolist()
    mask, window = view.get("key_mask", torch.ones(B, K, dtype=torch.bool)).tolist(), view.get("window", K + Q)

    def is_hidden(b: int, i: int, j: int) -> bool:
        at = start[b] + i
        mates = 0 <= at < K and group[b][at] != 0 and group[b][at] == group[b][j]
        return not (mask[b][j] and (0 <= at - j < window or mates or "is_causal" not in view))

    return torch.tensor([[[[is_hidden(b, i, j) for j in range(K)] for i in range(Q)]] for b in range(B)])


def change(problem: dict[str, Tensor], s: Tensor, row_mask: Tensor | None) -> Tensor:
    """What the rule adds to scores s[B, Hq, Q, K], by loops over classes."""
    added = torch.zeros_like(s)
    for g in (1, 2):
        linear, quadratic, additive = problem["rule"].double()[:, :, g, :, None, None].unbind(2)
        own = (problem["key_class"] == g)[:, None, None].expand_as(s)
        added = torch.where(own, linear * s.clamp_min(0) + quadratic * s.clamp_min(0) ** 2 + additive, added)
    return added if row_mask is None else added * row_mask[:, None, :, None]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(2, 6, 2, 9, 21, 10), (2, 2, 1, 12, 7, 4)], ids=["fewer-rows", "more-rows"])
def test_the_definition_is_the_formula(draw_attention, shape, view):
    problem, options = draw_attention(shape, "mixed", "scattered"), view(shape)
    truth = definition(problem, options)
    s = scores(problem, options.get("scale"), options.get("softcap"))
    s = (s + change(problem, s, options.get("row_mask"))).masked_fill(hidden(shape, options), -math.inf)
    share = s.softmax(-1).nan_to_num(0)
    value = problem["value"].double().repeat_interleave(shape[1] // shape[2], 1)
    torch.testing.assert_close(truth.output, share @ value, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(truth.lse, s.logsumexp(-1), atol=1e-13, rtol=1e-12)
    for g in range(3):
        own = (problem["key_class"] == g)[:, None, None]
        torch.testing.assert_close(truth.mass[..., g], (share * own).sum(-1), atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_rule_it_is_torch_s_attention(draw_attention, shape):
    problem = draw_attention(shape, "zero", "all")
    query, key, value = (problem[name].double() for name in ("query", "key", "value"))
    key, value = (tensor.repeat_interleave(shape[1] // shape[2], 1) for tensor in (key, value))
    expected = scaled_dot_product_attention(query, key, value)
    got = ops.calibrated_attention(**problem)
    torch.testing.assert_close(definition(problem, {}).output, expected, atol=1e-12, rtol=1e-12)
    assert excess(got.output, expected, got.lse, sizes(expected)) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("view", [nothing, causal, padded, grouped])
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_errs_at_most_twice_as_much_as_torch(draw_attention, dtype, rule, view):
    """Torch gets the rule's effect as a float32 mask over all pairs."""
    shape = (2, 4, 2, 70, 150, 64)
    problem, options = draw_attention(shape, rule, "scattered", dtype), view(shape)
    s = scores(problem)
    mask = change(problem, s, None).masked_fill(hidden(shape, options), -math.inf).float()
    key, value = (problem[name].repeat_interleave(2, 1) for name in ("key", "value"))
    rival = scaled_dot_product_attention(problem["query"], key, value, attn_mask=mask)
    got, truth = ops.calibrated_attention(**problem, **options, return_mass=True), definition(problem, options)
    seen = (truth.lse > -math.inf)[..., None]
    assert got.output.dtype == dtype
    assert got.lse.dtype == got.mass.dtype == torch.float32
    allowed = 2 * ((rival - truth.output) * seen).nan_to_num(0).abs().max()
    assert ((got.output - truth.output) * seen).abs().max() <= allowed
    torch.testing.assert_close(got.lse.double(), truth.lse, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(got.mass.double(), truth.mass, atol=5e-6, rtol=0.0)


def heads_by_row(tensor: Tensor) -> Tensor:
    """The same values in the memory order B, Q, H, D, which hosts pass."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def in_a_cache(tensor: Tensor) -> Tensor:
    """The same values as a slice of longer rows and more slots, with NaN around."""
    B, H, K, D = tensor.shape
    cache = tensor.new_full((B, H, K + 3, D + 5), math.nan)
    cache[:, :, 1 : K + 1, 2 : D + 2] = tensor
    return cache[:, :, 1 : K + 1, 2 : D + 2]


def broadcast_heads(tensor: Tensor) -> Tensor:
    return tensor[:, :1].expand_as(tensor)


def with_gaps(tensor: Tensor) -> Tensor:
    """The same values two elements apart, with NaN between."""
    return torch.stack((tensor, torch.full_like(tensor, math.nan)), -1)[..., 0]


@pytest.mark.parametrize("rows", [1, 19], ids=["few", "many"])
@pytest.mark.parametrize("layout", [heads_by_row, in_a_cache, broadcast_heads, with_gaps])
def test_any_strides(draw_attention, layout: Callable[[Tensor], Tensor], rows: int):
    shape, tensors = (2, 4, 2, rows, 270, 40), ("query", "key", "value")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        problem = draw_attention(shape, dtype=dtype)
        strided = problem | {name: layout(problem[name]) for name in tensors}
        kinds = problem["key_class"]
        strided["key_class"] = torch.stack((kinds, kinds + 7), -1)[..., 0]
        if dtype == torch.float32:
            assert_matches_definition(strided, {"is_causal": True})
        same = {name: tensor.contiguous() for name, tensor in strided.items()}
        got, expected = (ops.calibrated_attention(**each).output for each in (strided, same))
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6 if dtype == torch.float32 else 1e-2)


def test_output_is_laid_out_for_the_projection_that_follows(draw_attention):
    got = ops.calibrated_attention(**draw_attention((2, 4, 2, 5, 9, 8)))
    assert got.output.shape == (2, 4, 5, 8)
    assert got.output.transpose(1, 2).is_contiguous()
    assert got.mass is None


def test_one_rule_for_all_items(draw_attention):
    problem = draw_attention((3, 4, 2, 6, 20, 8))
    shared = problem["rule"][1]
    got = ops.calibrated_attention(**problem | {"rule": shared})
    expected = ops.calibrated_attention(**problem | {"rule": shared.repeat(3, 1, 1, 1)})
    assert torch.equal(got.output, expected.output)


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_the_definition_does_not_depend_on_its_blocks(draw_attention, rows):
    shape = (2, 4, 2, 71, 90, 16)
    problem, view = double(draw_attention(shape)), everything(shape)
    got = reference.calibrated_attention(**problem, **view, return_mass=True, rows=rows)
    for field, expected in zip(got, definition(problem, view), strict=True):
        torch.testing.assert_close(field, expected, atol=1e-13, rtol=1e-12)


def test_chunks_of_a_prefill_give_what_the_whole_gives(draw_attention):
    """Rows 0 ... 15 of 40 keys do not see keys 16 ... 39, so that a chunk may bring the keys so far only."""
    shape = (2, 4, 2, 40, 40, 16)
    problem = draw_attention(shape)
    whole = ops.calibrated_attention(**problem, is_causal=True, return_mass=True)
    for first, last in ((0, 16), (16, 17), (17, 40)):
        part = {name: problem[name][:, :, :last] for name in ("key", "value")}
        part |= {"key_class": problem["key_class"][:, :last], "query": problem["query"][:, :, first:last]}
        got = ops.calibrated_attention(**problem | part, is_causal=True, return_mass=True)
        torch.testing.assert_close(got.output, whole.output[:, :, first:last], atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(got.lse, whole.lse[:, :, first:last], atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(got.mass, whole.mass[:, :, first:last], atol=2e-6, rtol=2e-6)


def test_result_does_not_depend_on_the_number_of_threads(draw_attention):
    shape = (2, 4, 2, 70, 130, 32)
    problem, view, threads = draw_attention(shape), everything(shape), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.calibrated_attention(**problem, **view, return_mass=True)
        torch.set_num_threads(3)
        three = ops.calibrated_attention(**problem, **view, return_mass=True)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(left, right) for left, right in zip(one, three, strict=True))
