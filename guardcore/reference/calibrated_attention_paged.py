"""Calibrated attention over keys and values that lie in pages: the definition.

The pages of each request are gathered, and the dense definition does the rest; see
`guardcore.reference.calibrated_attention` for the formula. Row i of the n rows of a request with K keys is at position
K - n + i and sees no key behind it.

A request that can't be read (a page that there is not, more keys than key_class or page_table cover, more rows than
max_query_length) is NaN and touches no other, as on a GPU, which may not wait to complain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guardcore.reference.calibrated_attention import Attention, calibrated_attention
from guardcore.reference.sinkhorn import result_dtype


def calibrated_attention_paged(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    page_table: Tensor,
    query_offsets: Tensor,
    key_lengths: Tensor,
    key_class: Tensor,
    rule: Tensor,
    row_mask: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    max_query_length: int | None = None,
    return_mass: bool = False,
) -> Attention:
    """Attend with query[T, Hq, D] to the pages [P, S, Hkv, D] of R requests under rule[Hq, G, 3] or [R or 1, Hq, G, 3].

    See `guardcore.ops.calibrated_attention_paged` for the arguments. Returns output[T, Hq, D] in the query's
    dtype, lse[T, Hq] and mass[T, Hq, G], or [T, Hq, 0] where it is not asked for; these are float64 if the query is,
    else float32.
    """
    (T, Hq, _), G, R = query.shape, rule.shape[-2], len(key_lengths)
    most = T if max_query_length is None else max_query_length
    numbers = result_dtype(query)
    output, lse = torch.full_like(query, torch.nan), query.new_full((T, Hq), torch.nan, dtype=numbers)
    mass = query.new_full((T, Hq, G if return_mass else 0), torch.nan, dtype=numbers)
    rule = (rule if rule.dim() == 4 else rule.unsqueeze(0)).expand(R, -1, -1, -1)
    offsets = query_offsets.tolist()
    for r, length in enumerate(key_lengths.tolist()):
        rows, kind = slice(offsets[r], offsets[r + 1]), key_class[r : r + 1]
        keys = _gathered(key_cache, page_table[r], length)
        values = _gathered(value_cache, page_table[r], length)
        if keys is None or values is None or length > kind.shape[1] or rows.stop - rows.start > most:
            continue
        one = calibrated_attention(
            query[rows].transpose(0, 1).unsqueeze(0),
            keys,
            values,
            kind[:, :length],
            rule[r],
            None if row_mask is None else row_mask[None, rows],
            is_causal=True,
            scale=scale,
            window=window,
            softcap=softcap,
            return_mass=return_mass,
        )
        output[rows], lse[rows], mass[rows] = (field[0].transpose(0, 1) for field in one)
    return Attention(output, lse, mass)


def _gathered(cache: Tensor, pages: Tensor, length: int) -> Tensor | None:
    """The first `length` slots of the pages[L] of cache[P, S, Hkv, D]: [1, Hkv, length, D]; None if there are not."""
    P, S = cache.shape[:2]
    used = pages[: -(-length // S)].long()
    if not 0 <= length <= len(pages) * S or bool(((used < 0) | (used >= P)).any()):
        return None
    return cache[used].flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0)
