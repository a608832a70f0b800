"""What paged calibrated attention refuses, by name and by request, and what torch does with the operator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from guardcore import ops, reference

REQUESTS = [(3, 20), (1, 33), (4, 4)]


def index(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


REFUSED = [
    ("query", torch.zeros(1, 8, 4, 16), ValueError, r"query must have shape \[T, Hq, D\]"),
    ("query", torch.zeros(8, 4, 16).double(), TypeError, "query must be float32"),
    ("query", torch.zeros(8, 4, 0), ValueError, "query must have a width"),
    ("query", torch.zeros(8, 3, 16), ValueError, "query must have a multiple of the 2 heads of key_cache, got 3"),
    ("key_cache", torch.zeros(7, 16, 2, 8), ValueError, "key_cache must have shape"),
    ("key_cache", torch.zeros(7, 16, 2, 16).half(), TypeError, "key_cache must be torch.float32"),
    ("value_cache", torch.zeros(7, 15, 2, 16), ValueError, "value_cache must have shape"),
    ("value_cache", torch.zeros(7, 2, 16), ValueError, r"value_cache must have shape \[P, S, Hkv, D\]"),
    ("page_table", torch.zeros(3, 4, dtype=torch.int64), TypeError, "page_table must be torch.int32"),
    ("page_table", torch.zeros(3, dtype=torch.int32), ValueError, r"page_table must have shape \[R, L\]"),
    ("page_table", torch.full((3, 4), 9).int(), ValueError, r"page_table must be in 0 \.\.\. 6 .* got 9 for request 0"),
    ("page_table", torch.full((3, 1), 1).int(), ValueError, "page_table must cover key_lengths, got 1 pages of 16"),
    ("query_offsets", index(0, 3, 8), ValueError, r"query_offsets must have shape \[4\]"),
    ("query_offsets", index(0, 3, 4, 7), ValueError, "query_offsets must start at 0 and end at the 8 rows"),
    ("query_offsets", index(1, 3, 4, 8), ValueError, "query_offsets must start at 0"),
    ("query_offsets", index(0, 5, 4, 8), ValueError, "query_offsets must not decrease, got 5 and 4 for request 1"),
    ("query_offsets", index(0, 3, 4, 8).long(), TypeError, "query_offsets must be torch.int32"),
    ("key_lengths", index(20, -1, 4), ValueError, r"key_lengths must be in 0 \.\.\. 36 .* got -1 at 1"),
    ("key_lengths", index(20, 33, 37), ValueError, r"key_lengths must be in 0 \.\.\. 36 .* got 37 at 2"),
    ("key_lengths", index(20, 33), ValueError, r"key_lengths must have shape \[3\]"),
    ("key_class", torch.full((3, 36), 3, dtype=torch.uint8), ValueError, "key_class must be below the 3 classes"),
    ("key_class", torch.zeros(2, 36, dtype=torch.uint8), ValueError, "key_class must have shape"),
    ("key_class", torch.zeros(3, 36), TypeError, "key_class must be torch.uint8"),
    ("rule", torch.zeros(2, 4, 3, 3), ValueError, r"rule must have shape \[4, G, 3\] or \[3, 4, G, 3\]"),
    ("rule", torch.full((4, 3, 3), math.nan), ValueError, "rule must be finite"),
    ("row_mask", torch.ones(7, dtype=torch.bool), ValueError, r"row_mask must have shape \[8\]"),
    ("row_mask", torch.ones(8), TypeError, "row_mask must be torch.bool"),
    ("row_mask", torch.ones(8, dtype=torch.bool, device="meta"), ValueError, "row_mask must be on cpu"),
    ("scale", 0.0, ValueError, "scale must be"),
    ("softcap", math.inf, ValueError, "softcap must be"),
    ("window", 0, ValueError, "window must be None or >= 1, got 0"),
    ("max_query_length", 3, ValueError, "max_query_length is 3, yet request 2 has 4 rows"),
    ("max_query_length", -1, ValueError, "max_query_length must be"),
]


@pytest.mark.parametrize(("name", "bad", "error", "message"), REFUSED)
def test_refuses_by_name(draw_pages, name, bad, error, message):
    with pytest.raises(error, match=message):
        ops.calibrated_attention_paged(**draw_pages(REQUESTS) | {name: bad})


def test_refuses_pages_without_slots(draw_pages):
    empty = {name: torch.zeros(7, 0, 2, 16) for name in ("key_cache", "value_cache")}
    with pytest.raises(ValueError, match="key_cache must have pages of at least one slot"):
        ops.calibrated_attention_paged(**draw_pages(REQUESTS) | empty)


UNREADABLE = {
    "page_table": ("page_table must be in", lambda t: t.index_fill(1, torch.tensor(1), 70)),
    "key_lengths": ("key_lengths must be in", lambda t: t + 30),
    "query_offsets": ("query_offsets must", lambda t: t - 1),
    "key_class": ("key_class", lambda t: t.clamp_min(3)),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_compiled_programs_refuse_what_the_public_call_refuses(draw_pages, name):
    """They skip the public call's look at values; the C++ kernel looks."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("guardcore::calibrated_attention_paged", "CPU"):
        pytest.skip("the C++ kernels are not built")
    message, spoil = UNREADABLE[name]
    problem = draw_pages(REQUESTS)
    compiled = torch.compile(lambda t: ops.calibrated_attention_paged(**t).output, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=message):
        compiled(problem | {name: spoil(problem[name])})


@pytest.mark.parametrize("name", ["page_table", "key_lengths", "max_query_length"])
def test_the_definition_spoils_a_request_that_can_not_be_read_and_no_other(draw_pages, name):
    problem: dict[str, object] = draw_pages(REQUESTS)
    expected, rows = reference.calibrated_attention_paged(**problem), slice(0, 3)
    if name == "max_query_length":
        problem[name], rows = 3, slice(4, 8)
    else:
        problem[name] = problem[name].clone()
        problem[name].view(3, -1)[0, 0] = 70
    got = reference.calibrated_attention_paged(**problem)
    bad = torch.zeros(8, dtype=torch.bool)
    bad[rows] = True
    assert torch.equal(got.output.isnan().all(-1).all(-1), bad)
    assert torch.equal(got.output[~bad], expected.output[~bad])


def test_max_query_length_is_a_hint(draw_pages):
    problem = draw_pages(REQUESTS)
    got, expected = (ops.calibrated_attention_paged(**problem, max_query_length=most) for most in (4, None))
    assert torch.equal(got.output, expected.output)


def test_is_inference_only(draw_pages):
    problem = draw_pages(REQUESTS)
    problem["query"].requires_grad_()
    with pytest.raises(NotImplementedError, match="inference only"):
        ops.calibrated_attention_paged(**problem).output.sum().backward()
    with torch.inference_mode():
        assert not ops.calibrated_attention_paged(**problem).output.requires_grad


@pytest.mark.filterwarnings("ignore:.*vmap:UserWarning")
def test_refuses_tangents(draw_pages):
    problem = draw_pages(REQUESTS)
    with forward_ad.dual_level():
        problem["key_cache"] = forward_ad.make_dual(problem["key_cache"], torch.ones_like(problem["key_cache"]))
        with pytest.raises(NotImplementedError, match="key_cache has a tangent"):
            ops.calibrated_attention_paged(**problem)


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "changing"])
def test_compiles_into_one_graph(draw_pages, dynamic):
    """Rows, lengths and options change, as in serving."""

    def attend(problem: dict[str, Tensor], softcap: float, window: int) -> tuple[Tensor, Tensor]:
        out = ops.calibrated_attention_paged(**problem, softcap=softcap, window=window, return_mass=True)
        return out.output.flatten(1), out.mass

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (2, 3, 4):
        problem = draw_pages([(n, 20 + n), (1, 33), (n, 5)])
        for got, expected in zip(compiled(problem, 20.0 + n, 9 + n), attend(problem, 20.0 + n, 9 + n), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


class Largest(TorchDispatchMode):
    """The size of the largest floating-point tensor that any torch op returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_holds_gathered_keys(draw_pages):
    problem = draw_pages([(1, 900), (2, 1000)])
    if not torch._C._dispatch_has_kernel_for_dispatch_key("guardcore::calibrated_attention_paged", "CPU"):
        pytest.skip("the C++ kernels are not built")
    with Largest() as seen:
        ops.calibrated_attention_paged(**problem, return_mass=True)
    assert seen.numel < 900 * 2 * 16 / 4
