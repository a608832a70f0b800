"""Calibrated attention over a paged cache of keys and values, by request: guardcore::calibrated_attention_paged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guardcore import reference
from guardcore.ops import attention_checks, gradient, paged_attention_checks
from guardcore.ops.calibrated_attention import AttentionOutput
from guardcore.ops.registration import Operator, Shape, register

_INPUTS = (
    "Tensor query, Tensor key_cache, Tensor value_cache, Tensor page_table, Tensor query_offsets, Tensor key_lengths, "
    "Tensor key_class, Tensor rule, Tensor? row_mask, float scale, int? window, float? softcap, "
    "int max_query_length, bool return_mass"
)


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
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    max_query_length: int | None = None,
    return_mass: bool = False,
) -> AttentionOutput:
    """Decode and chunked prefill of R requests in one call, where a serving engine keeps keys and values in pages.

    Request r owns the rows query_offsets[r] ... query_offsets[r + 1] - 1 and the keys 0 ... key_lengths[r] - 1; key j
    is slot j % S of page page_table[r, j // S]. Row i of its n rows is at position key_lengths[r] - n + i and sees no
    key behind it (none at all, if the position is negative). Scores and rule are those of `calibrated_attention`:

        s' = s + linear[h, g] relu(s) + quadratic[h, g] relu(s)^2 + additive[h, g],    s = scale <q_i, k_j>

    Pages are read where they lie; requests may share them, and what unused slots hold does not matter.

    Args:
        query: [T, Hq, D] float32, bfloat16 or float16, the rows of all requests, with any strides.
        key_cache: [P, S, Hkv, D] pages of S slots, same dtype and device, any strides (1 in the last place is
            fastest); Hq is a multiple of Hkv, query head h reads head h Hkv // Hq.
        value_cache: [P, S, Hkv, D], likewise.
        page_table: [R, L] int32; entries beyond the pages in use are not read.
        query_offsets: [R + 1] int32, from 0 to T, not decreasing; a request may have no row.
        key_lengths: [R] int32, >= 0, the rows of this call included: their keys are in the cache already.
        key_class: [R, Kmax] uint8, below G, with Kmax >= every key length; 0 is untouched.
        rule: [Hq, G, 3] or, by request, [R, Hq, G, 3] float32: linear, quadratic, additive of every query head and
            class. Finite, but for additive = -inf. Class 0's entries mean nothing. 1 <= G <= 256.
        row_mask: [T] bool, the rows that are calibrated; None is all. The others are plain attention.
        scale: of the scores, finite, > 0; None is 1 / sqrt(D).
        window: a row sees the last `window` >= 1 keys up to its position.
        softcap: bound of the scores' size before the rule, finite, > 0; None is no bound.
        max_query_length: no request has more rows than that; it sizes the launch on a GPU. None is T.
        return_mass: whether `mass` is computed.

    Returns:
        AttentionOutput with output[T, Hq, D], lse[T, Hq] and mass[T, Hq, G]. A row that sees no key, or removed ones
        only, has output 0, lse -inf and mass 0. A NaN in a query's row, or in a key or value that a row sees, makes
        that row NaN; requests that don't read it are untouched.

    Raises:
        NotImplementedError: in backward, and for tangents: inference only.
        TypeError: a wrong dtype.
        ValueError: a wrong shape, device or option; on the CPU also offsets, lengths, pages and classes that do not fit
            together, by request (on CUDA that request is NaN; offsets are not looked at there).

    Source: the cache's layout is that of Kwon et al. 2023 (arXiv 2309.06180); the rule as in `calibrated_attention`.
    """
    max_query_length = query.shape[0] if max_query_length is None else max_query_length
    options = (scale, window, softcap, max_query_length, return_mass)
    tensors = (query, key_cache, value_cache, page_table, query_offsets, key_lengths, key_class, rule, row_mask)
    paged_attention_checks.check_paged_attention(*tensors, *options)
    paged_attention_checks.check_requests(query_offsets, query.shape[0], max_query_length)
    paged_attention_checks.check_pages(key_lengths, page_table, key_cache, key_class)
    paged_attention_checks.check_classes(key_lengths, key_class, rule)
    attention_checks.check_no_tangent(query=query, key_cache=key_cache, value_cache=value_cache, rule=rule)
    output, lse, mass = torch.ops.guardcore.calibrated_attention_paged(
        *tensors[:7],
        rule if rule.dim() == 4 else rule.unsqueeze(0),
        row_mask,
        query.shape[-1] ** -0.5 if scale is None else scale,
        *options[1:],
    )
    return AttentionOutput(output, lse, mass if return_mass else None)


def _check(*arguments: Any) -> None:
    paged_attention_checks.check_paged_attention(*arguments)
    rule: Tensor = arguments[7]
    if rule.dim() != 4:
        raise ValueError(f"rule must have shape [1 or R, Hq, G, 3], got {list(rule.shape)}")


def _shapes(query: Tensor, *rest: Any) -> tuple[Shape, ...]:
    (T, Hq, D), rule, return_mass = query.shape, rest[6], rest[-1]
    return (T, Hq, D), (T, Hq), (T, Hq, rule.shape[-2] if return_mass else 0)


register(
    Operator(
        name="calibrated_attention_paged",
        inputs=_INPUTS,
        outputs={"output": None, "lse": torch.float32, "mass": torch.float32},
        definition=reference.calibrated_attention_paged,
        kernels="calibrated_attention_paged",
        check=_check,
        shapes=_shapes,
        autograd=gradient.INFERENCE_ONLY,
    )
)
