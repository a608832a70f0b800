"""What paged calibrated attention accepts. Each check names the argument, what was expected and what came.

As in `guardcore.ops.attention_checks`, values are looked at by the public call, on the CPU and outside a trace.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from guardcore.ops.attention_checks import (
    check_attention_values,
    check_groups,
    check_layout,
    check_query,
    check_rule,
    check_scores,
    check_tensor,
)
from guardcore.ops.checks import readable


def check_paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    page_table: Tensor,
    query_offsets: Tensor,
    key_lengths: Tensor,
    key_class: Tensor,
    rule: Tensor,
    row_mask: Tensor | None,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    max_query_length: int,
    _return_mass: bool,
) -> None:
    """Raise TypeError or ValueError unless `ops.calibrated_attention_paged` can take them, values apart."""
    _check_cache(query, key_cache, value_cache)
    check_layout("page_table", page_table, "R, L")
    check_layout("key_class", key_class, "R, Kmax")
    (T, Hq, _), (R, L) = query.shape, page_table.shape
    check_rule(rule, R, Hq, query)
    for name, tensor, shape, dtype in (
        ("page_table", page_table, (R, L), torch.int32),
        ("query_offsets", query_offsets, (R + 1,), torch.int32),
        ("key_lengths", key_lengths, (R,), torch.int32),
        ("key_class", key_class, (R, key_class.shape[1]), torch.uint8),
        ("row_mask", row_mask, (T,), torch.bool),
    ):
        if tensor is not None:
            check_tensor(name, tensor, query, shape, (dtype,))
    check_scores(scale, window, softcap)
    if max_query_length < 0:
        raise ValueError(f"max_query_length must be None (T) or >= 0, got {max_query_length}")


def check_requests(query_offsets: Tensor, rows: int, max_query_length: int) -> None:
    """Raise ValueError unless the offsets run from 0 to `rows` in steps of 0 ... max_query_length."""
    if not readable(query_offsets):
        return
    offsets = query_offsets.tolist()
    if offsets[0] != 0 or offsets[-1] != rows:
        raise ValueError(
            f"query_offsets must start at 0 and end at the {rows} rows of query, got {offsets[0]} and {offsets[-1]}"
        )
    for r, (first, last) in enumerate(pairwise(offsets)):
        if first > last:
            raise ValueError(f"query_offsets must not decrease, got {first} and {last} for request {r}")
        if last - first > max_query_length:
            raise ValueError(f"max_query_length is {max_query_length}, yet request {r} has {last - first} rows")


def check_pages(key_lengths: Tensor, page_table: Tensor, key_cache: Tensor, key_class: Tensor) -> None:
    """Raise ValueError unless key_class and pages in the cache[P, S, Hkv, D] cover the keys of every request."""
    if not (readable(key_lengths) and readable(page_table)):
        return
    (P, S), L, Kmax = key_cache.shape[:2], page_table.shape[1], key_class.shape[1]
    for r, length in enumerate(key_lengths.tolist()):
        if not 0 <= length <= Kmax:
            raise ValueError(f"key_lengths must be in 0 ... {Kmax} (key_class has {Kmax} keys), got {length} at {r}")
        if length > L * S:
            raise ValueError(
                f"page_table must cover key_lengths, got {L} pages of {S} for {length} keys of request {r}"
            )
    bad = (page_table < 0) | (page_table >= P)
    if bool(bad.any()):
        used = torch.arange(L) < -(key_lengths.long() // -S)[:, None]
        for r, i in (bad & used).nonzero()[:1].tolist():
            raise ValueError(
                f"page_table must be in 0 ... {P - 1} ({P} pages), got {int(page_table[r, i])} for request {r} at {i}"
            )


def check_classes(key_lengths: Tensor, key_class: Tensor, rule: Tensor) -> None:
    """Raise ValueError at a class of a request's keys that the rule lacks, or a rule that is not finite."""
    if readable(key_class) and readable(key_lengths) and bool((key_class >= rule.shape[-2]).any()):
        own = torch.arange(key_class.shape[1]) < key_lengths[:, None]
        key_class = key_class * own
    check_attention_values(key_class, rule)


def _check_cache(query: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    check_query(query, "T, Hq, D")
    for name, tensor in (("key_cache", key_cache), ("value_cache", value_cache)):
        check_layout(name, tensor, "P, S, Hkv, D")
    (_, Hq, D), (P, S, Hkv, _) = query.shape, key_cache.shape
    check_tensor("key_cache", key_cache, query, (P, S, Hkv, D), (query.dtype,))
    check_tensor("value_cache", value_cache, query, (P, S, Hkv, D), (query.dtype,))
    if S == 0:
        raise ValueError(f"key_cache must have pages of at least one slot, got {list(key_cache.shape)}")
    check_groups(Hq, Hkv, "key_cache")
