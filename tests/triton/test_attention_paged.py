"""Calibrated attention over pages on the GPU under Triton's interpreter against its float64 definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore import reference

SLOTS = 8
ROW_MASK, MOST = 8, 12  # places of arguments


def requests(
    lengths: list[int], rows: list[int], heads: tuple[int, int] = (6, 2), width: int = 20, slots: int = SLOTS
) -> list[Any]:
    """The launcher's arguments up to row_mask: pages in any order, NaN in what no request owns, bad ids beyond."""
    g, (Hq, Hkv), R, K = torch.Generator().manual_seed(sum(lengths)), heads, len(lengths), max(lengths) + 3
    used = [-(-length // slots) for length in lengths]
    P = sum(used) + 2
    free, table = torch.randperm(P, generator=g).int(), torch.full((R, max(used) + 1), -9, dtype=torch.int32)
    keys, values = torch.full((P, slots, Hkv, width), torch.nan), torch.full((P, slots, Hkv, width), torch.nan)
    for r, (length, count) in enumerate(zip(lengths, used, strict=True)):
        table[r, :count], free = free[:count], free[count:]
        own = (table[r, torch.arange(length) // slots].long(), torch.arange(length) % slots)
        keys[own], values[own] = (torch.randn(length, Hkv, width, generator=g) for _ in range(2))
    offsets, T = torch.tensor([0, *torch.tensor(rows).cumsum(0)]).int(), sum(rows)
    kinds = torch.randint(3, (R, K), generator=g, dtype=torch.uint8)
    rule = torch.rand(R, Hq, 3, 3, generator=g) - torch.tensor([0.3, 0.0, 0.5])
    query, marked = torch.randn(T, Hq, width, generator=g), torch.rand(T, generator=g) > 0.3
    return [query, keys, values, table, offsets, torch.tensor(lengths).int(), kinds, rule, marked]


def options(
    window: int | None = None, softcap: float | None = None, most: int = 1, mass: bool = True, width: int = 20
) -> list[Any]:
    return [width**-0.5, window, softcap, most, mass]


def check(interpreted: Callable[..., Any], arguments: list[Any]) -> tuple[Tensor, ...]:
    got = interpreted("calibrated_attention_paged", *arguments)
    exact = (t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in arguments)
    truth = reference.calibrated_attention_paged(*exact)
    for ours, expected in zip(got, truth, strict=True):
        torch.testing.assert_close(ours.double(), expected, atol=4e-6, rtol=4e-6, equal_nan=True)
    return got


@pytest.mark.parametrize("mass", [False, True])
def test_decoding(interpreted, mass: bool) -> None:
    """Lengths at and around a page's end, a request of no key or no row."""
    check(interpreted, requests([37, 5, 64, 1, 8, 9], [1, 1, 1, 1, 0, 1]) + options(mass=mass))


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, 2.0)])
def test_decoding_beside_chunks_of_prefills(interpreted, window: int | None, softcap: float | None) -> None:
    """The rows of the last request are more than its keys."""
    arguments = requests([37, 45, 64, 5], [1, 20, 3, 7], heads=(2, 1)) + options(window, softcap, most=20)
    got = check(interpreted, arguments)
    assert bool((got[1][-7:-5] == -torch.inf).all())


@pytest.mark.parametrize("window", [None, 300])
def test_ranges_of_the_keys_are_merged(interpreted, window: int | None) -> None:
    """Of a request with few keys, most ranges have none."""
    check(interpreted, requests([530, 5, 0], [2, 1, 1], heads=(2, 1), slots=16) + options(window, most=2, mass=False))


@pytest.mark.parametrize("slots", [1, 16, 24])
def test_pages_of_any_size(interpreted, slots: int) -> None:
    check(interpreted, requests([50, 23], [1, 2], slots=slots) + options(most=2))


def test_one_rule_for_all_requests_and_no_mask(interpreted) -> None:
    arguments = requests([37, 12], [2, 1]) + options(most=2)
    arguments[7], arguments[ROW_MASK] = arguments[7][:1], None
    check(interpreted, arguments)


def test_half_precision_is_that_of_the_dense_kernel(interpreted) -> None:
    arguments = requests([40], [4], slots=40) + options(most=4)
    arguments[:3] = (tensor.bfloat16() for tensor in arguments[:3])
    query, keys, values, table, _, _, kinds, rule, marked = arguments[:9]
    own = [cache[table[0, 0]].transpose(0, 1)[None] for cache in (keys, values)]
    masks = (marked[None], None, None, None)
    dense = interpreted(
        "calibrated_attention", query.transpose(0, 1)[None], *own, kinds[:, :40], rule, *masks, True, 20**-0.5, None,
        None, True,
    )  # fmt: skip
    output, lse, mass = interpreted("calibrated_attention_paged", *arguments)
    assert torch.equal(output, dense[0][0])
    assert torch.equal(lse.T, dense[1][0])
    assert torch.equal(mass.transpose(0, 1), dense[2][0])


@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("broken", ["page", "negative page", "classes", "table", "length", "rows"])
def test_a_request_that_can_not_be_read_is_nan_and_no_other(interpreted, broken: str, mass: bool) -> None:
    arguments = requests([37, 300, 9], [1, 2, 1], heads=(3, 1)) + options(most=2, mass=mass)
    table, lengths, kinds = arguments[3], arguments[5], arguments[6]
    if broken in ("page", "negative page"):
        table[1, 30] = 99 if broken == "page" else -1
    elif broken == "classes":
        arguments[6] = kinds[:, :299].contiguous()
    elif broken == "table":
        arguments[3] = table[:, :37].contiguous()
    elif broken == "length":
        lengths[1] = -3
    else:
        arguments[MOST] = 1
    output, lse, masses = check(interpreted, arguments) if broken != "length" else interpreted(
        "calibrated_attention_paged", *arguments
    )  # fmt: skip
    bad = torch.tensor([False, True, True, False])
    assert torch.equal(lse.isnan().all(1), bad)
    assert torch.equal(output.isnan().flatten(1).all(1), bad)
    assert not bool(output[~bad].isnan().any())
    assert torch.equal(masses.isnan().any(1).any(1), bad & mass)


def test_rows_of_no_request_are_nan(interpreted) -> None:
    arguments = requests([37, 20], [2, 1]) + options(most=2, mass=False)
    arguments[4][-1] = 2  # the last row is no one's; nothing on a GPU may look
    output, lse, _ = interpreted("calibrated_attention_paged", *arguments)
    assert lse.isnan().all(1).tolist() == [False, False, True]
    assert bool(output[2].isnan().all())


@pytest.mark.parametrize(("rows", "lengths"), [([], []), ([0, 0], [5, 3])], ids=["no-request", "no-row"])
def test_nothing_to_do(interpreted, rows: list[int], lengths: list[int]) -> None:
    arguments = requests(lengths or [3], rows or [0])
    if not lengths:
        arguments = [*arguments[:3], arguments[3][:0], arguments[4][:1], *(t[:0] for t in arguments[5:8]), None]
    output, lse, mass = interpreted("calibrated_attention_paged", *arguments, *options(most=0))
    assert [tuple(field.shape) for field in (output, lse, mass)] == [(0, 6, 20), (0, 6), (0, 6, 3)]
