"""`ops.calibrated_attention_paged` against its float64 definition, and both against the dense operator."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from guardcore import ops, reference

Problem = dict[str, Tensor]

# Requests as (rows, keys). Each batch has its reason
DECODE = [(1, 1), (1, 15), (1, 16), (1, 17), (1, 97)]  # around a page of 16 and a block of 96 keys
LONG = [(1, 1700), (2, 769), (1, 768), (1, 40)]  # beyond the 768 keys of a part, by one, not quite, and a short one
CHUNKS = [(33, 33), (5, 37), (40, 130), (1, 50)]  # a whole prompt, a chunk, one above 96 keys, a decoding step
EMPTY = [(3, 0), (0, 9), (6, 4), (0, 0), (2, 5)]  # rows without keys, keys without rows, more rows than keys, neither
BATCHES = {"decode": DECODE, "long": LONG, "chunks": CHUNKS, "empty": EMPTY}
PAGES = [1, 16, 17, 256]  # a slot each, vLLM's, none that divides anything, a block of keys in one page
HEADS = [(4, 2, 16), (6, 2, 80), (3, 3, 7), (16, 1, 33)]  # groups; of 3, odd width; less than a vector; one kv head


def plain(rows: int) -> dict[str, object]:
    return {}


def windowed(rows: int) -> dict[str, object]:
    return {"window": 7}


def capped(rows: int) -> dict[str, object]:
    return {"softcap": 3.0, "scale": 0.3}


def some_rows(rows: int) -> dict[str, object]:
    return {"row_mask": torch.arange(rows) % 3 > 0}


def everything(rows: int) -> dict[str, object]:
    return capped(rows) | some_rows(rows) | {"window": 100}


VIEWS = [plain, windowed, capped, some_rows, everything]


def definition(problem: Problem, view: dict[str, object]) -> reference.Attention:
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in problem.items()}
    return reference.calibrated_attention_paged(**wide, **view, return_mass=True)


def run(problem: Problem, **view: object) -> ops.AttentionOutput:
    return ops.calibrated_attention_paged(**problem, **view, return_mass=True)


def rows_of(problem: Problem, r: int) -> slice:
    return slice(int(problem["query_offsets"][r]), int(problem["query_offsets"][r + 1]))


def assert_matches_definition(problem: Problem, view: dict[str, object]) -> None:
    """By request, within the dense operator's bounds: 2e-6, or four roundings of the largest score."""
    got, truth = run(problem, **view), definition(problem, view)
    assert torch.equal(got.lse == -math.inf, truth.lse == -math.inf)
    torch.testing.assert_close(got.lse.double(), truth.lse, atol=2e-6, rtol=2e-6)
    for r in range(len(problem["key_lengths"])):
        own = rows_of(problem, r)
        if own.start == own.stop:
            continue
        largest = float(truth.lse[own].masked_fill(truth.lse[own].isinf(), 0).abs().max())
        allowed = max(2e-6, largest * 2**-22)
        size = float(truth.output[own].abs().max().clamp_min(1e-30))
        assert float((got.output[own] - truth.output[own]).abs().max()) <= allowed * size
        assert float((got.mass[own] - truth.mass[own]).abs().max()) <= 2 * allowed


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("batch", BATCHES)
def test_matches_the_float64_definition(draw_pages, batch, page, view):
    problem = draw_pages(BATCHES[batch], page=page)
    assert_matches_definition(problem, view(len(problem["query"])))


@pytest.mark.parametrize("classes", ["span", "scattered", "all"])
@pytest.mark.parametrize("rule", ["zero", "mixed", "removed", "suppressed", "strong"])
@pytest.mark.parametrize("heads", HEADS)
def test_every_grouping_and_rule_matches_the_float64_definition(draw_pages, heads, rule, classes):
    for batch in (DECODE, CHUNKS):
        assert_matches_definition(draw_pages(batch, heads, 16, rule, classes), {})


def dense(problem: Problem, r: int, view: dict[str, object]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Arguments of the dense operator for request r, its keys gathered slot by slot."""
    length, S, own = int(problem["key_lengths"][r]), problem["key_cache"].shape[1], rows_of(problem, r)
    slots = [(int(problem["page_table"][r, j // S]), j % S) for j in range(length)]
    _, _, Hkv, D = problem["key_cache"].shape

    def gathered(cache: Tensor) -> Tensor:
        keys = torch.stack([cache[slot] for slot in slots]) if slots else cache.new_empty(0, Hkv, D)
        return keys.transpose(0, 1)[None]

    tensors = {
        "query": problem["query"][own].transpose(0, 1)[None],
        "key": gathered(problem["key_cache"]),
        "value": gathered(problem["value_cache"]),
        "key_class": problem["key_class"][r : r + 1, :length],
        "rule": problem["rule"][r],
    }
    options = {name: value[None, own] if name == "row_mask" else value for name, value in view.items()}
    return tensors, {"is_causal": True, "return_mass": True, **options}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("batch", BATCHES)
def test_definition_and_kernel_are_the_dense_ones_by_request(draw_pages, batch, view):
    problem = draw_pages(BATCHES[batch], page=5)
    options = view(len(problem["query"]))
    truth, got = definition(problem, options), run(problem, **options)
    for r in range(len(problem["key_lengths"])):
        tensors, same = dense(problem, r, options)
        wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        for field, expected in zip(truth, reference.calibrated_attention(**wide, **same), strict=True):
            torch.testing.assert_close(field[rows_of(problem, r)], expected[0].transpose(0, 1), atol=1e-13, rtol=1e-12)
        for field, expected in zip(got, ops.calibrated_attention(**tensors, **same), strict=True):
            torch.testing.assert_close(field[rows_of(problem, r)], expected[0].transpose(0, 1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["zero", "mixed", "strong"])
@pytest.mark.parametrize("page", [1, 16, 256])
def test_half_precision_errs_at_most_twice_as_much_as_torch(draw_pages, page, rule, dtype):
    """Torch gets the rule's effect as a float32 mask over all pairs, request by request."""
    problem = draw_pages(CHUNKS, (4, 2, 64), page, rule, "scattered", dtype)
    got, truth = run(problem), definition(problem, {})
    assert got.output.dtype == dtype
    torch.testing.assert_close(got.lse.double(), truth.lse, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(got.mass.double(), truth.mass, atol=5e-6, rtol=0.0)
    for r in range(len(CHUNKS)):
        tensors, _ = dense(problem, r, {})
        n, K = tensors["query"].shape[2], tensors["key"].shape[2]
        key, value = (tensors[name].repeat_interleave(2, 1) for name in ("key", "value"))
        s = tensors["query"].double() @ key.double().mT / 8
        rule_of_key = tensors["rule"].double()[:, tensors["key_class"][0].long()][:, None]
        changed = rule_of_key[..., 0] * s.relu() + rule_of_key[..., 1] * s.relu() ** 2 + rule_of_key[..., 2]
        added = torch.where(tensors["key_class"][:, None, None] > 0, changed, 0)
        behind = torch.arange(K) > K - n + torch.arange(n)[:, None]
        rival = scaled_dot_product_attention(
            tensors["query"], key, value, attn_mask=added.float().masked_fill(behind, -math.inf)
        )
        exact = truth.output[rows_of(problem, r)].transpose(0, 1)
        error = got.output[rows_of(problem, r)].transpose(0, 1) - exact
        assert error.abs().max() <= 2 * (rival[0] - exact).abs().max()


def test_requests_may_share_pages(draw_pages):
    """As after a common prefix, or in the beams of a search: the same bits as with pages of their own."""
    requests = [(4, 50), (1, 50), (3, 36)]
    problem = draw_pages(requests)
    table = problem["page_table"].clone()
    table[1, :4], table[2, :2] = table[0, :4], table[0, :2]
    caches = {name: problem[name].clone() for name in ("key_cache", "value_cache")}
    for cache in caches.values():
        for r, pages in ((1, 4), (2, 2)):
            cache[problem["page_table"][r, :pages].long()] = cache[table[0, :pages].long()]
    shared, own = run(problem | caches | {"page_table": table}), run(problem | caches)
    assert all(torch.equal(left, right) for left, right in zip(shared, own, strict=True))


def heads_first(cache: Tensor) -> Tensor:
    """The same values in the memory order P, Hkv, S, D."""
    return cache.transpose(1, 2).contiguous().transpose(1, 2)


def of_both(cache: Tensor) -> Tensor:
    """One half of a tensor that holds keys and values, of longer rows."""
    both = cache.new_full((len(cache), 2, *cache.shape[1:-1], cache.shape[-1] + 5), math.nan)
    both[:, 1, ..., 2:-3] = cache
    return both[:, 1, ..., 2:-3]


def with_gaps(cache: Tensor) -> Tensor:
    return torch.stack((cache, torch.full_like(cache, math.nan)), -1)[..., 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [heads_first, of_both, with_gaps])
def test_pages_and_queries_may_have_any_strides(draw_pages, layout: Callable[[Tensor], Tensor], dtype):
    for batch in (DECODE, CHUNKS):
        problem = draw_pages(batch, page=17, dtype=dtype)
        strided = problem | {name: layout(problem[name]) for name in ("key_cache", "value_cache")}
        strided["query"] = layout(problem["query"][None])[0]
        for got, expected in zip(run(strided), run(problem), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("batch", BATCHES)
def test_result_does_not_depend_on_the_number_of_threads(draw_pages, batch):
    problem, threads = draw_pages(BATCHES[batch], (4, 1, 32)), torch.get_num_threads()
    try:
        outcomes = [torch.set_num_threads(n) or run(problem, window=1000) for n in (1, 2, 5)]
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        assert all(torch.equal(left, right) for left, right in zip(outcomes[0], other, strict=True))


def test_one_rule_for_all_requests(draw_pages):
    problem = draw_pages(CHUNKS)
    shared = problem["rule"][1]
    got, expected = (run(problem | {"rule": rule}) for rule in (shared, shared.repeat(len(CHUNKS), 1, 1, 1)))
    assert torch.equal(got.output, expected.output)
    assert ops.calibrated_attention_paged(**problem).mass is None


def test_rows_without_a_visible_key_are_zero(draw_pages):
    problem = draw_pages(EMPTY)
    got, blind = run(problem), torch.zeros(11, dtype=torch.bool)
    blind[:3], blind[3:5] = True, True  # no keys; the first two of six rows over four keys
    assert torch.equal((got.lse == -math.inf).all(1), blind)
    assert not bool(got.output[blind].any())
    assert not bool(got.mass[blind].any())
    assert bool(got.output.isfinite().all())


@pytest.mark.parametrize("name", ["query", "key_cache", "value_cache"])
def test_nan_in_a_request_spoils_no_other(draw_pages, name):
    problem = draw_pages(CHUNKS)
    expected, own = run(problem), rows_of(problem, 2)
    at = own.start if name == "query" else int(problem["page_table"][2, 0])
    problem[name][at] = math.nan
    got, others = run(problem), torch.ones(len(problem["query"]), dtype=torch.bool)
    others[own] = False
    for left, right in zip(got, expected, strict=True):
        assert torch.equal(left[others], right[others])
    assert bool(got.output[own.start].isnan().all())


def test_no_request_and_no_row(draw_pages):
    problem = draw_pages([(0, 5)])
    assert run(problem).output.shape == (0, 4, 16)
    none = {name: problem[name][:0] for name in ("page_table", "key_lengths", "key_class", "rule")}
    assert run(problem | none | {"query_offsets": problem["query_offsets"][:1]}).lse.shape == (0, 4)
